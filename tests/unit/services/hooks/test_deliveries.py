"""Programs, web servers and readers of standard output, well and badly behaved, as destinations of events."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import gevent
import pytest

from rtmpd.config.hook_targets import ScriptHook, WebhookHook
from rtmpd.http.client import HttpClient
from rtmpd.services.hooks.deliveries import Script, Stdio, Webhook
from rtmpd.util.threads import Threads
from tests.ports import free_port
from tests.unit.http.servers import QUERY, SECRETS, RawServer, WebServer, drip, ok, reply
from tests.unit.services.hooks.fakes import hook_event, options, wait_for, within

THREADS = Threads(4)


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a shell script for an event, and gives the outcome and how long it took."""

    def go(text: str, event=None, ini: str = "hook_timeout_s = 10\n", arguments: str = "", interpreter: str = "/bin/sh"):
        path = tmp_path / "hook"
        path.write_text(f"#!{interpreter}\n{text}")
        path.chmod(0o755)
        script = Script(ScriptHook.parse(f"*={path} {arguments}"), THREADS)
        began = time.monotonic()
        with within(20):
            outcome = script.deliver(event or hook_event(), 1, options(ini))
        return outcome, time.monotonic() - began

    return go


def descriptors() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_script_finds_the_event_in_its_environment(run, tmp_path):
    outcome, _ = run(f"env > {tmp_path}/env; echo $# $1 > {tmp_path}/arguments", hook_event(3, reason="a b"), arguments="'x y'")
    assert not outcome.problem
    lines = (tmp_path / "env").read_text().splitlines()
    for line in ("RTMP_EVENT_TYPE=publish_start", "RTMP_STREAM_KEY=live/a", "RTMP_CONN_ID=7", "RTMP_ID=3", "RTMP_REASON=a b"):
        assert line in lines
    assert (tmp_path / "arguments").read_text() == "1 x y\n"


def test_a_script_gets_nothing_that_is_meant_for_the_server(run, tmp_path, monkeypatch):
    for name in (
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "WATCHDOG_USEC",
        "SECRET_OF_A_HOOK",
        "RTMP_STREAM_KEY",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "leaked")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    run(f"env > {tmp_path}/env; ls -l /proc/$$/fd > {tmp_path}/fds; cat > {tmp_path}/stdin", hook_event(1, ""))
    text = (tmp_path / "env").read_text()
    assert "leaked" not in text
    assert "PATH=" in text
    assert "LC_ALL=C.UTF-8" in text
    assert (tmp_path / "stdin").read_text() == ""
    assert "socket" not in (tmp_path / "fds").read_text()


def test_names_have_their_bytes_and_no_shell_reads_them(run, tmp_path):
    name = f"live/$(touch {tmp_path}/owned);`touch {tmp_path}/owned`\udce9'\""
    run(f'printf "%s" "$RTMP_STREAM_KEY" > {tmp_path}/key', hook_event(1, name))
    assert (tmp_path / "key").read_bytes() == os.fsencode(name)
    assert not (tmp_path / "owned").exists()


def test_a_script_that_fails_says_with_what(run, caplog):
    caplog.set_level(logging.DEBUG)
    outcome, _ = run("echo one; echo 'two\t\x07' >&2; exit 3")
    assert outcome.problem == 'exit status 3: "one | two\\t\\x07"'
    assert not outcome.retry
    assert "printed: one" in caplog.text
    assert run("kill -9 $$")[0].problem == "killed by SIGKILL"
    assert run("exit 1")[0].problem == "exit status 1"


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda path: path, "the program can't be started: No such file or directory"),
        (lambda path: path.write_text("#!/bin/sh\n"), "the program can't be started: Permission denied"),
        (lambda path: path.mkdir(), "the program can't be started: Permission denied"),
        (
            lambda path: (path.write_text("#!/nowhere/sh\n"), path.chmod(0o755)),
            "the program can't be started: No such file or directory",
        ),
        (lambda path: (path.write_bytes(b"\x00\x01"), path.chmod(0o755)), "the program can't be started: Exec format error"),
    ],
    ids=["missing", "not executable", "a directory", "no interpreter", "no program"],
)
def test_what_can_not_be_started(tmp_path, prepare, problem):
    path = tmp_path / "hook"
    prepare(path)
    before = descriptors()
    outcome = Script(ScriptHook.parse(f"*={path}"), THREADS).deliver(hook_event(), 1, options())
    assert outcome.problem == problem
    assert not outcome.retry
    assert descriptors() == before


def test_a_script_that_takes_too_long_gets_sigterm(run, tmp_path):
    outcome, took_s = run(f"trap 'echo bye > {tmp_path}/bye; exit 0' TERM; sleep 60 & wait", ini="hook_timeout_s = 0.3\n")
    assert outcome.timed_out
    assert outcome.problem == "the program ran for more than 0.3 s (hook_timeout_s) and was killed"
    assert (tmp_path / "bye").exists()
    assert took_s < 2


def test_a_script_that_ignores_term_is_killed_with_all_that_it_began(run, tmp_path):
    text = f"trap '' TERM; echo $$ > {tmp_path}/pids; sleep 60 & echo $! >> {tmp_path}/pids; while :; do sleep 1; done"
    outcome, took_s = run(text, ini="hook_timeout_s = 0.3\n")
    assert outcome.timed_out
    assert 2 < took_s < 5
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    wait_for(lambda: not any(map(alive, pids)))


def test_children_that_outlive_a_script_are_killed(run, tmp_path):
    outcome, took_s = run(f"sleep 60 & echo $! > {tmp_path}/pid; echo started")
    assert not outcome.problem
    assert took_s < 5
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not alive(pid))


def test_a_child_in_its_own_session_survives_and_delays_nothing(run, tmp_path):
    outcome, took_s = run(f"setsid sleep 60 & echo $! > {tmp_path}/pid; sleep 0.1; echo started; exit 1")
    assert outcome.problem == 'exit status 1: "started"'
    assert took_s < 5
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_sleep(path)]
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def _is_sleep(path: Path) -> bool:
    try:
        return (path / "cmdline").read_bytes() == b"sleep\x0060\x00" and os.getsid(int(path.name)) == int(path.name)
    except OSError:
        return False


def test_a_script_that_prints_a_lot_ends_and_its_begin_is_kept(run):
    ticks = []

    def tick():
        while True:
            ticks.append(time.monotonic())
            gevent.sleep(0.005)

    ticker = gevent.spawn(tick)
    outcome, _ = run("echo begin; head -c 2000000 /dev/zero | tr '\\0' x; exit 2", ini="hook_timeout_s = 15\n")
    ticker.kill()
    assert outcome.problem.startswith('exit status 2: "begin | xxx')
    assert outcome.problem.endswith('..."')
    assert len(outcome.problem) < 500
    assert max(after - before for before, after in itertools.pairwise(ticks)) < 0.1


def test_a_script_that_never_stops_printing_costs_little_and_is_ended(run):
    cpu_s = time.process_time()
    outcome, took_s = run("exec yes", ini="hook_timeout_s = 1\n")
    assert outcome.timed_out
    assert took_s < 3
    assert time.process_time() - cpu_s < 0.5


def children():
    """The processes that this one has started and not waited for; other tests have some, too."""
    return {child for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()}


def test_nothing_is_left_behind(run):
    run("echo a")
    before = descriptors(), children()
    for _ in range(5):
        run("echo a; exit 1")
    assert (descriptors(), children()) == before


def test_the_event_loop_is_not_held_up_while_scripts_start(tmp_path):
    path = tmp_path / "hook"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    script = Script(ScriptHook.parse(f"*={path}"), THREADS)
    late = []

    def tick():
        while True:
            due = time.monotonic() + 0.002
            gevent.sleep(0.002)
            late.append(time.monotonic() - due)

    ticker = gevent.spawn(tick)
    gevent.joinall([gevent.spawn(script.deliver, hook_event(n), 1, options()) for n in range(20)], timeout=20, raise_error=True)
    ticker.kill()
    assert sorted(late)[len(late) // 2] < 0.02


def test_a_kill_ends_the_script_too(tmp_path):
    path = tmp_path / "hook"
    path.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\ntrap '' TERM\nsleep 60 & wait; wait\n")
    path.chmod(0o755)
    greenlet = gevent.spawn(Script(ScriptHook.parse(f"*={path}"), THREADS).deliver, hook_event(), 1, options())
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    with within(5):
        greenlet.kill()
    wait_for(lambda: not alive(pid))


def test_an_interpreter_with_arguments_is_a_script_too(tmp_path):
    program = tmp_path / "hook.py"
    program.write_text(f"import os; open('{tmp_path}/out', 'w').write(os.environ['RTMP_EVENT_TYPE'])")
    target = ScriptHook.parse(f"*={sys.executable} -I {program}")
    assert not Script(target, THREADS).deliver(hook_event(), 1, options()).problem
    assert (tmp_path / "out").read_text() == "publish_start"


CLIENT = HttpClient(4)


@pytest.fixture
def serve():
    made = []

    def start(answer=None, kind=WebServer, **more):
        made.append(kind(answer, **more))
        return made[-1]

    yield start
    for each in made:
        each.close()


def post(url, event=None, ini="", attempt=1):
    """Post an event; give the outcome and how long it took. Nothing in the outcome is secret."""
    began = time.monotonic()
    with within(20):
        outcome = Webhook(WebhookHook.parse(f"*={url}"), CLIENT).deliver(event or hook_event(), attempt, options(ini))
    assert "hunter2" not in f"{outcome}"
    return outcome, time.monotonic() - began


# What is sent -----------------------------------------------------------------------------------------------------------


def test_an_event_is_posted_as_json(serve):
    server = serve()
    event = hook_event(3, "live/ü", reason="x")
    outcome, _ = post(server.url, event, attempt=2)
    assert (outcome.problem, outcome.remark) == ("", "")
    ((path, headers, body),) = server.got
    assert path == f"/hook{QUERY}"
    assert body == event.json()
    assert json.loads(body)["stream_key"] == "live/ü"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Rtmpd-Event"] == "publish_start"
    assert headers["X-Rtmpd-Event-Id"] == "run-3"
    assert headers["X-Rtmpd-Attempt"] == "2"
    assert headers["User-Agent"].startswith("rtmpd/")
    assert headers["Authorization"].startswith("Basic ")
    assert headers["X-Rtmpd-Signature"] is None


def test_a_post_is_signed(serve):
    server = serve()
    post(server.url, ini="hook_secret = köy\n")
    ((_, headers, body),) = server.got
    assert headers["X-Rtmpd-Signature"] == "sha256=" + hmac.new("köy".encode(), body, hashlib.sha256).hexdigest()


def test_connections_are_used_again(serve):
    server = serve(lambda handler: reply(handler, body=b"fine"))
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), HttpClient(1))
    for number in range(5):
        assert not hook.deliver(hook_event(number), 1, options()).problem
    assert len(server.peers) == 1


def test_a_connection_that_the_server_closed_is_made_anew(serve):
    server = serve(lambda handler: reply(handler, Connection="close"))
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), HttpClient(1))
    for number in range(3):
        assert not hook.deliver(hook_event(number), 1, options()).problem
    assert len(server.peers) == 3


def test_no_proxy_is_taken_from_the_environment(serve, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert not post(serve().url)[0].problem


def test_cookies_are_not_kept(serve):
    server = serve(lambda handler: reply(handler, Set_Cookie="a=b"))
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), HttpClient(1))
    for number in range(2):
        hook.deliver(hook_event(number), 1, options())
    assert server.got[1][1]["Cookie"] is None


# What comes back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "problem", "again"),
    [
        (200, "", False),
        (204, "", False),
        (400, "the server answered 400", False),
        (401, "the server answered 401", False),
        (404, "the server answered 404", False),
        (408, "the server answered 408", True),
        (429, "the server answered 429", True),
        (500, "the server answered 500", True),
        (503, "the server answered 503", True),
    ],
)
def test_the_status_decides(serve, status, problem, again):
    outcome, _ = post(serve(lambda handler: reply(handler, status)).url)
    assert (outcome.problem, outcome.retry, outcome.timed_out) == (problem, again, False)


@pytest.mark.parametrize(("value", "wait_s"), [("7", 7), ("soon", 0), ("-1", 0), ("9" * 30, 0), ("1.5", 0)])
def test_a_server_may_say_when_to_come_again(serve, value, wait_s):
    assert post(serve(lambda handler: reply(handler, 503, Retry_After=value)).url)[0].retry_after_s == wait_s


def test_redirects_are_not_followed(serve):
    server = serve(lambda handler: reply(handler, 302, Location=handler.path))
    outcome, _ = post(server.url)
    assert outcome.problem == "the server answered 302; redirects are not followed"
    assert not outcome.retry
    assert len(server.got) == 1


def test_a_server_that_never_answers_is_given_up(serve):
    server = serve(lambda _: threading.Event().wait(5))
    outcome, took_s = post(server.url, ini="hook_timeout_s = 0.4\n")
    assert outcome.timed_out
    assert outcome.retry
    assert outcome.problem == "timed out after 0.4 s while waiting for the response"
    assert took_s < 2


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100, b"HTTP/1.1 200 O" + b"K" * 1000], ids=["headers", "status"]
)
def test_a_server_that_drips_is_cut_short(serve, data):
    outcome, took_s = post(serve(drip(data), RawServer).url, ini="hook_timeout_s = 0.5\n")
    assert outcome.problem == "timed out after 0.5 s while waiting for the response"
    assert outcome.timed_out
    assert took_s < 2


@pytest.mark.parametrize("header", ["Content-Length: 1000000", "Connection: close", "Transfer-Encoding: chunked"])
def test_a_body_that_drips_does_not_undo_the_status(serve, header):
    def answer(connection):
        connection.recv(65536)
        connection.sendall(f"HTTP/1.1 200 OK\r\n{header}\r\n\r\n".encode())
        drip(b"5\r\nhello\r\n" * 1000)(connection)

    began_threads = threading.active_count()
    server = serve(lambda connection: answer(connection), RawServer)
    outcome, took_s = post(server.url, ini="hook_timeout_s = 0.5\n")
    assert outcome.problem == ""
    assert outcome.remark == "the response did not end within 0.5 s"
    assert took_s < 2
    assert threading.active_count() <= began_threads + 6


def test_a_gigabyte_is_not_read(serve):
    sent = []

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 30))
        handler.end_headers()
        block = bytes(1 << 20)
        for _ in range(1 << 10):
            handler.wfile.write(block)
            sent.append(len(block))

    outcome, took_s = post(serve(answer).url)
    assert outcome.problem == ""
    assert outcome.remark == "the response is longer than 65536 bytes"
    assert took_s < 3
    gevent.sleep(0.3)
    assert sum(sent) < 64 << 20


def test_a_gigabyte_of_headers_is_not_read_either(serve):
    def answer(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"X: " + b"y" * 60000 + b"\r\n")

    outcome, took_s = post(serve(answer, RawServer).url)
    assert outcome.problem
    assert took_s < 5


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the server closed the connection without a response"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the response is not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "the response is not HTTP"),
        (b"\xff" * 70000, "the head of the response is longer than 32768 bytes"),
    ],
    ids=["nothing", "ssh", "bad status", "endless line"],
)
def test_what_is_no_response(serve, data, problem):
    def answer(connection):
        connection.recv(65536)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    outcome, _ = post(serve(answer, RawServer).url)
    assert outcome.problem == problem
    assert outcome.retry


def test_a_server_that_is_gone():
    port = free_port()
    outcome, _ = post(f"http://{SECRETS}127.0.0.1:{port}/{QUERY}")
    assert outcome.problem == "Connection refused"
    assert outcome.retry


def test_a_name_that_is_not_known():
    outcome, _ = post(f"http://{SECRETS}no-such-host.invalid/{QUERY}")
    assert outcome.problem.startswith("the host name ")
    assert outcome.retry


def test_a_self_signed_certificate_is_refused(serve, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    outcome, _ = post(serve(ok, secure=(certificate, key)).url)
    assert outcome.problem == "the server's certificate can't be verified: self-signed certificate"


def test_tls_that_never_comes_is_cut_short(serve):
    server = serve(lambda connection: drip(bytes.fromhex("1603034000") + bytes(1000))(connection), RawServer)
    outcome, took_s = post(server.url.replace("http:", "https:"), ini="hook_timeout_s = 0.5\n")
    assert outcome.problem == "timed out after 0.5 s in the TLS handshake"
    assert took_s < 2


def test_a_certificate_that_the_configured_authority_signed(serve, authority):
    pair = authority.issue("127.0.0.1")
    server = serve(ok, secure=(pair.cert, pair.key))
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), CLIENT, lambda: str(authority.path))
    assert hook.deliver(hook_event(), 1, options("")).problem == ""
    # And by no other.
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), CLIENT)
    assert hook.deliver(hook_event(), 1, options("")).problem.startswith("the server's certificate can't be verified: ")


def test_plain_http_behind_an_https_url(serve):
    outcome, _ = post(serve().url.replace("http:", "https:"))
    assert outcome.problem.startswith("TLS failed: ")


def test_the_event_loop_goes_on_meanwhile(serve):
    server = serve(lambda handler: (threading.Event().wait(0.3), reply(handler)))
    late = []

    def tick():
        while True:
            due = time.monotonic() + 0.005
            gevent.sleep(0.005)
            late.append(time.monotonic() - due)

    ticker = gevent.spawn(tick)
    post(server.url)
    ticker.kill()
    assert len(late) > 30


def test_a_kill_cuts_the_request_short(serve):
    server = serve(lambda _: threading.Event().wait(10))
    client = HttpClient(1)
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), client)
    greenlet = gevent.spawn(hook.deliver, hook_event(), 1, options())
    with within():
        while not server.got:
            gevent.sleep(0.01)
        greenlet.kill()
        # The thread is free for the next.
        assert client.post(serve().url, b"", {}, timeout_s=5, body_limit_bytes=10).status == 200


# Standard output --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe():
    read_end, write_end = os.pipe()
    yield read_end, write_end
    for descriptor in (read_end, write_end):
        try:
            os.close(descriptor)
        except OSError:
            continue


def read_lines(descriptor: int, count: int) -> list[bytes]:
    data = b""
    while data.count(b"\n") < count:
        data += os.read(descriptor, 1 << 16)
    return data.splitlines()


def test_events_are_written_in_order(pipe):
    counters = Counter()
    stdio = Stdio(options("hook_stdio_format = json\n"), counters, pipe[1])
    for number in range(100):
        stdio.offer(hook_event(number))
    lines = read_lines(pipe[0], 100)
    assert [json.loads(line.removeprefix(b"RTMP_EVENT: "))["data"]["id"] for line in lines] == list(range(100))
    wait_for(lambda: counters == {"hook_deliveries": 100})
    stdio.stop(5)


def test_the_form_may_change(pipe):
    stdio = Stdio(options("hook_stdio_format = json\n"), Counter(), pipe[1])
    stdio.offer(hook_event(1))
    stdio.options = options("hook_stdio_format = env\n")
    stdio.offer(hook_event(2))
    stdio.stop(5)
    assert os.read(pipe[0], 1 << 16) == hook_event(1).lines("json") + hook_event(2).lines("env")


def test_a_reader_that_pauses_blocks_nothing_and_loses_events(pipe, caplog):
    counters = Counter()
    stdio = Stdio(options("hook_stdio_format = json\nhook_queue_limit = 100\n"), counters, pipe[1])
    with within():
        for number in range(5000):
            stdio.offer(hook_event(number))
            if number % 100 == 0:
                gevent.sleep(0.001)
        # The pipe is full, and the thread stuck.
        wait_for(lambda: stdio.waiting < 100 or counters["hook_deliveries"] > 300)
    assert counters["hook_drops"] > 1000
    assert "hook standard output: the reader has paused (hook_queue_limit): 1 events discarded so far" in caplog.text
    assert len(caplog.records) == 1
    before = counters["hook_drops"]
    with within(5):
        stdio.stop(0.2)
    assert counters["hook_drops"] >= before
    assert "events discarded at shutdown" in caplog.text
    os.close(pipe[0])
    stdio._thread.join(5)
    assert not stdio._thread.is_alive()


def test_a_reader_that_is_gone_is_logged_once(pipe, caplog):
    counters = Counter()
    stdio = Stdio(options("hook_stdio_format = json\n"), counters, pipe[1])
    os.close(pipe[0])
    stdio.offer(hook_event(1))
    wait_for(lambda: counters["hook_failures"] == 1)
    stdio.offer(hook_event(2))
    stdio.offer(hook_event(3))
    assert counters == {"hook_failures": 1, "hook_drops": 2}
    assert "hook standard output: Broken pipe: no further events are written until rtmpd is restarted" in caplog.text
    stdio.stop(1)


def test_a_descriptor_that_was_made_non_blocking_is_still_written_to(pipe):
    os.set_blocking(pipe[1], False)
    counters = Counter()
    stdio = Stdio(options("hook_stdio_format = json\nhook_queue_limit = 10000\n"), counters, pipe[1])
    for number in range(2000):
        stdio.offer(hook_event(number))
    assert len(read_lines(pipe[0], 2000)) == 2000
    stdio.stop(5)
