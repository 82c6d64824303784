"""Webhooks against real web servers, well and badly behaved."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.server
import json
import socket
import socketserver
import ssl
import subprocess
import threading
import time

import gevent
import pytest

from rtmpd.config.hook_targets import WebhookHook
from rtmpd.services.hooks.notice import json_body
from rtmpd.services.hooks.share import CpuShare
from rtmpd.services.hooks.webhook import Webhook
from rtmpd.util.threads import Threads
from tests.ports import free_port
from tests.unit.services.hooks.fakes import notice, options, within

THREADS = Threads(4)
SECRETS = "user:hunter2@"
QUERY = "?token=hunter2"


class WebServer:
    """Answers as a test says, in threads. ``got`` has (path, headers, body) of each request, ``peers`` the connections."""

    def __init__(self, answer=None, secure=None):
        got, peers = self.got, self.peers = [], set()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got.append((self.path, self.headers, body))
                peers.add(self.client_address)
                try:
                    (answer or ok)(self)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        scheme = "http"
        if secure:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*secure)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{scheme}://{SECRETS}127.0.0.1:{self.server.server_port}/hook{QUERY}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class RawServer:
    """Does what a test says with each connection, below HTTP."""

    def __init__(self, serve):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    serve(self.request)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://{SECRETS}127.0.0.1:{self.server.server_address[1]}/hook{QUERY}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def reply(handler, status=200, body=b"", **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def ok(handler):
    reply(handler)


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
        outcome = Webhook(WebhookHook.parse(f"*={url}"), THREADS, CpuShare()).carry(event or notice(), attempt, options(ini))
    assert "hunter2" not in f"{outcome}"
    return outcome, time.monotonic() - began


# What is sent -----------------------------------------------------------------------------------------------------------


def test_an_event_is_posted_as_json(serve):
    server = serve()
    event = notice(3, "live/ü", reason="x")
    outcome, _ = post(server.url, event, attempt=2)
    assert (outcome.problem, outcome.remark) == ("", "")
    ((path, headers, body),) = server.got
    assert path == f"/hook{QUERY}"
    assert body == json_body(event)
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
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), Threads(1), CpuShare())
    for number in range(5):
        assert not hook.carry(notice(number), 1, options()).problem
    assert len(server.peers) == 1


def test_a_connection_that_the_server_closed_is_made_anew(serve):
    server = serve(lambda handler: reply(handler, Connection="close"))
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), Threads(1), CpuShare())
    for number in range(3):
        assert not hook.carry(notice(number), 1, options()).problem
    assert len(server.peers) == 3


def test_no_proxy_is_taken_from_the_environment(serve, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert not post(serve().url)[0].problem


def test_cookies_are_not_kept(serve):
    server = serve(lambda handler: reply(handler, Set_Cookie="a=b"))
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), Threads(1), CpuShare())
    for number in range(2):
        hook.carry(notice(number), 1, options())
    assert server.got[1][1]["Cookie"] is None


# What comes back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "problem", "again"),
    [
        (200, "", False),
        (204, "", False),
        (400, "it answered 400", False),
        (401, "it answered 401", False),
        (404, "it answered 404", False),
        (408, "it answered 408", True),
        (429, "it answered 429", True),
        (500, "it answered 500", True),
        (503, "it answered 503", True),
    ],
)
def test_the_status_decides(serve, status, problem, again):
    outcome, _ = post(serve(lambda handler: reply(handler, status)).url)
    assert (outcome.problem, outcome.again, outcome.timed_out) == (problem, again, False)


@pytest.mark.parametrize(("value", "wait_s"), [("7", 7), ("soon", 0), ("-1", 0), ("9" * 30, 0), ("1.5", 0)])
def test_a_server_may_say_when_to_come_again(serve, value, wait_s):
    assert post(serve(lambda handler: reply(handler, 503, Retry_After=value)).url)[0].wait_s == wait_s


def test_redirects_are_not_followed(serve):
    server = serve(lambda handler: reply(handler, 302, Location=handler.path))
    outcome, _ = post(server.url)
    assert outcome.problem == "it answered 302; redirects are not followed"
    assert not outcome.again
    assert len(server.got) == 1


def test_a_server_that_never_answers_is_given_up(serve):
    server = serve(lambda _: threading.Event().wait(5))
    outcome, took_s = post(server.url, ini="hook_timeout_s = 0.4\n")
    assert outcome.timed_out
    assert outcome.again
    assert outcome.problem in ("no answer in 0.4 s", "no whole answer in 0.4 s")
    assert took_s < 2


def drip(data, pause_s=0.05):
    def serve(connection):
        connection.recv(65536)
        for byte in data:
            connection.sendall(bytes([byte]))
            threading.Event().wait(pause_s)
        threading.Event().wait(5)

    return serve


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100, b"HTTP/1.1 200 O" + b"K" * 1000], ids=["headers", "status"]
)
def test_a_server_that_drips_is_cut_short(serve, data):
    outcome, took_s = post(serve(drip(data), RawServer).url, ini="hook_timeout_s = 0.5\n")
    assert outcome.problem == "no whole answer in 0.5 s"
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
    assert outcome.remark == "its answer did not end in 0.5 s"
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
    assert outcome.remark == "it answered more than 65536 bytes; the rest was not read"
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
        (b"", "it closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "its answer is not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "its answer is not HTTP"),
        (b"\xff" * 70000, "its answer is not HTTP"),
    ],
    ids=["nothing", "ssh", "bad status", "endless line"],
)
def test_what_is_no_answer(serve, data, problem):
    def answer(connection):
        connection.recv(65536)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    outcome, _ = post(serve(answer, RawServer).url)
    assert outcome.problem == problem
    assert outcome.again


def test_a_server_that_is_gone():
    port = free_port()
    outcome, _ = post(f"http://{SECRETS}127.0.0.1:{port}/{QUERY}")
    assert outcome.problem == "Connection refused"
    assert outcome.again


def test_a_name_that_is_not_known():
    outcome, _ = post(f"http://{SECRETS}no-such-host.invalid/{QUERY}")
    assert outcome.problem.startswith("its name ")
    assert outcome.again


def test_a_certificate_that_nobody_knows(serve, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    outcome, _ = post(serve(ok, secure=(certificate, key)).url)
    assert outcome.problem == "its certificate is not good: self-signed certificate"


def test_tls_that_never_comes_is_cut_short(serve):
    server = serve(lambda connection: drip(bytes.fromhex("1603034000") + bytes(1000))(connection), RawServer)
    outcome, took_s = post(server.url.replace("http:", "https:"), ini="hook_timeout_s = 0.5\n")
    assert outcome.problem == "no whole answer in 0.5 s"
    assert took_s < 2


def test_a_certificate_that_the_configured_authority_signed(serve, authority):
    pair = authority.issue("127.0.0.1")
    server = serve(ok, secure=(pair.cert, pair.key))
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), THREADS, CpuShare(), lambda: str(authority.path))
    assert hook.carry(notice(), 1, options("")).problem == ""
    # And by no other.
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), THREADS, CpuShare())
    assert hook.carry(notice(), 1, options("")).problem.startswith("its certificate is not good: ")


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
    threads = Threads(1)
    hook = Webhook(WebhookHook.parse(f"*={server.url}"), threads, CpuShare())
    greenlet = gevent.spawn(hook.carry, notice(), 1, options())
    with within():
        while not server.got:
            gevent.sleep(0.01)
        greenlet.kill()
        # The thread is free for the next.
        assert threads.call(int) == 0
