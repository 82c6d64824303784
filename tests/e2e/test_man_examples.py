"""The examples of the manual pages, run as they stand: each in a network and with directories of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.e2e.machine import can_unshare, run_apart
from tests.meta.test_man import COMMAND, FILE, ROOT, examples

pytestmark = pytest.mark.peer

LIMIT_S = 30
COMMANDS = examples(COMMAND)
# Connects to a port until that is listened on, and sees what answers.
_ASK = """
import socket, sys, time
port, what = int(sys.argv[1]), sys.argv[2].encode()
end = time.monotonic() + 20
while True:
    try:
        with socket.create_connection(("127.0.0.1", port), 20) as sock:
            sock.sendall(what or bytes([3]) + bytes(1536))
            sys.exit(not sock.recv(1))
    except ConnectionRefusedError:
        if time.monotonic() > end:
            raise
        time.sleep(0.02)
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that begins a script with rtmpd on the PATH and /etc/rtmpd.ini in place, and gives its log."""
    if not can_unshare():
        reason = "namespaces need root, and a kernel that allows them"
        if os.environ.get("RTMPD_REQUIRE_PEERS"):
            pytest.fail(reason)
        pytest.skip(reason)
    installed = tmp_path / "installed"
    for directory in ("etc", "usr/local/bin", "usr/local/lib/sysusers.d", "usr/local/lib/tmpfiles.d", "opt"):
        (installed / directory).mkdir(parents=True)
    (installed / "etc/rtmpd.ini").write_bytes((ROOT / "etc/rtmpd.ini").read_bytes())
    (installed / "ask").write_text(_ASK)
    for kind in ("sysusers", "tmpfiles"):
        (installed / f"usr/local/lib/{kind}.d/rtmpd.conf").write_bytes((ROOT / f"systemd/rtmpd.{kind}").read_bytes())
    command = installed / "usr/local/bin/rtmpd"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -m rtmpd "$@"\n')
    command.chmod(0o755)
    (tmp_path / "root").mkdir()
    started = []

    def begin(script, then=""):
        log = (tmp_path / "log").open("w+")
        # What serves ends when it has answered; what prints ends by itself.
        asked = f"trap 'kill $(jobs -p)' EXIT; ({script}) & {then}" if then else script
        process = run_apart(installed, tmp_path / "root", asked, stdout=log, stderr=subprocess.STDOUT)
        started.append(process)
        process.log = tmp_path / "log"
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(LIMIT_S)


def ask(port, what=""):
    return f'{sys.executable} "$2/ask" {port} "{what}"'


def finish(process):
    code = process.wait(LIMIT_S)
    return code, process.log.read_text()


def which(text):
    (found,) = [one for one in COMMANDS if text in one]
    return found


def test_every_example_is_run_below():
    assert len(COMMANDS) == 7


def test_serve_on_this_host_only(run):
    code, log = finish(run(which("--listen 127.0.0.1"), ask(1935)))
    assert code == 0, log
    assert re.search(r"^\S+ \S+ INFO +listening on 127\.0\.0\.1:1935$", log, re.MULTILINE)


def test_record_every_stream(run):
    ffmpeg = __import__("imageio_ffmpeg").get_ffmpeg_exe()
    publish = f"{ffmpeg} -v error -f lavfi -i testsrc2=size=64x64:rate=10 -t 3 -c:v flv -g 10 -f flv rtmp://127.0.0.1/live/test"
    code, log = finish(run(which("--record-all"), f"{ask(1935)}; {publish}; sleep 2; find /var/tmp/recordings -name '*.flv*'"))
    assert code == 0, log
    assert re.search(r"^/var/tmp/recordings/live/test.*\.flv", log, re.MULTILINE), log


def test_check_a_configuration(run):
    code, log = finish(run(which("--check-config")))
    assert code == 0
    assert log.endswith("/etc/rtmpd.ini: ok\n")


def test_print_one_option(run):
    code, log = finish(run(which("--print-config")))
    assert code == 0
    assert re.match(r"gop_cache_limit_bytes = 33554432 .*\ngop_cache = yes\b", log)


def test_hand_over_sockets(run, peer):
    peer("systemd-socket-activate", "systemd")
    code, log = finish(run(which("systemd-socket-activate"), f"{ask(1935)} && {ask(9500, 'GET / HTTP/1.0')}"))
    assert code == 0, log
    assert "listening on [::]:1935" in log
    assert "metrics on http://127.0.0.1:9500/metrics" in log


def test_a_low_port_as_root(run):
    # The Python of the tests may be in root's home, which no other user can read.
    code, log = finish(run(which("user = nobody"), ask(443)))
    assert code == 0, log
    assert "switched to user nobody" in log
    assert "listening on [::]:443" in log


def test_rtmp_over_tls(run, peer):
    options = "-connect 127.0.0.1:1936 -CAfile /run/tls.crt -verify_return_error"
    shake = f"{peer('openssl', 'openssl')} s_client {options} </dev/null"
    code, log = finish(run(which("--tls-listen"), f"{ask(1935)} && {shake}"))
    assert code == 0, log
    assert re.search(r"listening on \[::\]:1936 for RTMPS$", log, re.MULTILINE)
    assert "Verify return code: 0 (ok)" in log


@pytest.mark.parametrize("example", examples(FILE), ids=lambda text: text.split("\n")[0])
def test_a_server_starts_with_each_example_of_a_file(run, example):
    code, log = finish(run(f"printf '%s' '{example}' >/etc/rtmpd.ini; rtmpd -c /etc/rtmpd.ini", ask(1935)))
    assert code == 0, log
    assert "listening on [::]:1935" in log
