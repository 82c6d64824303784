"""Configuration files as they should not be, given to a server that runs: each is a clear line, and costs no message."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.integration.beside import Bystander, wait_until

if TYPE_CHECKING:
    from pathlib import Path

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

GOOD = "[publish]\npublisher_grace_s = 7\n"

BAD = {
    "a tab in a value": (b"[log]\nlevel = in\tfo\n", r':2: \[log\] level: expected debug, .*, got "in\\tfo"'),
    "a section twice": (b"[live]\n[log]\n[live]\n", r":3: \[live\]: given twice \(first in line 1\): merge both"),
    "a number sign": (b"[log]\nlog_file = /tmp/a#b\n", r':2: \[log\] log_file: quote a value that contains "#", or '),
    "a comma": (b"[server]\nread_timeout_s = 5,5\n", r":2: \[server\] read_timeout_s: .*quote a value that contains commas"),
    "a mark in the middle": ("[log]\n\ufefflevel = info\n".encode(), r":2: .*unknown option"),
    "UTF-16": ("[log]\n".encode("utf-16"), r": can't be read: line 1 is not UTF-8 \(byte 0xff\)"),
    "10 MB": (b"# long\n" * (10 << 20 >> 3), r": can't be read: the file is larger than 1048576 bytes"),
    "10 MB in a line": (b"#" * (10 << 20), r": can't be read: the file is larger than 1048576 bytes"),
    "the rest is missing": (b"[server]\nlisten", r':2: expected a section header or "option = value", got "listen"'),
}

FINE = {
    "empty": b"",
    "a mark, and lines that end as on Windows": b"\xef\xbb\xbf[publish]\r\npublisher_grace_s = 8\r\n",
    "tabs": b"[publish]\n\tpublisher_grace_s\t=\t9\t# seconds\n",
    "quoted": b'[log]\naccess_log_file = "/dev/null" # a, b\n',
}


@pytest.fixture
def running(server, tmp_path):
    """A server with its file, and a publisher and player that miss nothing of each other."""
    made = server(GOOD, level="info")
    made.ini = tmp_path / "rtmpd.ini"
    bystander = made.bystander = Bystander(made)
    bystander.check()
    yield made
    bystander.check()
    bystander.close()


def put(path: Path, data: bytes) -> None:
    """Put a file in the place of another in one step, as editors do."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.rename(path)


def outcomes(running) -> list[str]:
    return [line for line in running.log() if "reload failed" in line or "configuration reloaded" in line]


def reload(running) -> str:
    """Reload; return the line of how it went."""
    before = len(outcomes(running))
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(outcomes(running)) > before, "the end of the reload")
    return outcomes(running)[before]


def test_wrong_files_change_nothing_and_odd_but_valid_files_are_read(running, tmp_path):
    for name, (data, problem) in BAD.items():
        put(running.ini, data)
        seen = len(running.log())
        assert reload(running).endswith("; the old configuration stays in force"), name
        problems = [line for line in running.log()[seen:] if " ERROR " in line]
        assert len(problems) == 1, (name, problems)
        assert re.search(f"ERROR +reload failed: {re.escape(str(running.ini))}{problem}", problems[0]), (name, problems)
    running.ini.unlink()
    running.ini.mkdir()
    assert "reload failed" in reload(running)
    running.wait_for_line("rtmpd.ini: can't be read: Is a directory;")
    running.ini.rmdir()
    running.ini.symlink_to(running.ini)
    assert "reload failed" in reload(running)
    running.wait_for_line("rtmpd.ini: can't be read: Too many levels of symbolic links;")
    running.ini.unlink()
    for name, data in FINE.items():
        put(running.ini, data)
        assert "configuration reloaded: " in reload(running), name
    assert "nothing has changed" not in "".join(outcomes(running))


@pytest.mark.parametrize(("data", "problem"), BAD.values(), ids=BAD)
def test_a_start_with_a_wrong_file_fails_at_once_with_the_reason(tmp_path, data, problem):
    path = tmp_path / "rtmpd.ini"
    path.write_bytes(data)
    done = subprocess.run([sys.executable, "-m", "rtmpd", "-c", str(path)], capture_output=True, timeout=20, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert re.match(re.escape(str(path)) + problem, line), line


def test_an_address_in_use_fails_the_reload_and_disturbs_no_stream(server, tmp_path):
    free = "127.0.0.1:0"
    running = server(f"[server]\nlisten = {free}\n", start=("-m", "rtmpd"))
    running.ini = tmp_path / "rtmpd.ini"
    bystander = Bystander(running)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        put(running.ini, f"[server]\nlisten = {free}, 127.0.0.2:0, 127.0.0.1:{port}\n".encode())
        line = reload(running)
    reason = f"can't listen on 127.0.0.1:{port}: Address already in use: another process listens on it"
    assert line.endswith(f"reload failed: {reason}; the old configuration stays in force")
    bystander.check()
    # And is had when it is free again.
    assert "configuration reloaded: [server] listen = " in reload(running)
    running.wait_for_line(f"listening on 127.0.0.1:{port}$")
    bystander.check()
    bystander.close()


@root
def test_a_file_that_the_user_of_the_server_may_not_read(server, public_path):
    running = server("[server]\nuser = nobody\n")
    running.ini = public_path / "rtmpd.ini"
    running.ini.chmod(0o600)
    bystander = Bystander(running)
    assert "reload failed" in reload(running)
    running.wait_for_line("rtmpd.ini: can't be read: Permission denied;")
    bystander.check()
    running.ini.chmod(0o644)
    assert "configuration reloaded: nothing has changed" in reload(running)
    bystander.close()


def test_a_storm_of_hang_ups_with_a_file_that_changes_all_the_time(running):
    for number in range(100):
        put(running.ini, BAD["a comma"][0] if number % 2 else f"[publish]\npublisher_grace_s = {number + 10}\n".encode())
        running.process.send_signal(signal.SIGHUP)
    put(running.ini, b"[publish]\npublisher_grace_s = 999\n")
    running.process.send_signal(signal.SIGHUP)
    # What it says in the end is what holds.
    running.wait_for_line(r"configuration reloaded: \[publish\] publisher_grace_s = 999s?\b")
    assert len(outcomes(running)) < 20


PLACES = {
    "a secret": "[hooks]\nhook_secret = file:{}\n",
    "a certificate": "[tls]\ntls_listen = 127.0.0.1:0\ntls_cert = {}\n",
    "authorities": "[tls]\ntls_ca = {}\n",
    "tokens": "[auth]\nauth_file = {}\nauth_mode = file\n",
}


@pytest.mark.parametrize("text", PLACES.values(), ids=PLACES)
def test_pipes_and_devices_in_the_place_of_a_file_fail_a_reload_at_once_and_the_next_tries_again(running, tmp_path, text):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (str(pipe), "/dev/zero"):
        put(running.ini, text.format(path).encode())
        for _ in range(2):
            line = reload(running)
            assert "reload failed" in line
            assert "it is a pipe, socket or device, and only regular files are read; the old configuration" in line
            assert path in line or "hook_secret" in line
    put(running.ini, b"[publish]\npublisher_grace_s = 8\n")
    assert "configuration reloaded: " in reload(running)


@pytest.mark.parametrize("text", PLACES.values(), ids=PLACES)
def test_a_start_with_a_pipe_in_the_place_of_a_file_fails_at_once_with_the_reason(tmp_path, text):
    pipe, ini = tmp_path / "pipe", tmp_path / "rtmpd.ini"
    os.mkfifo(pipe)
    ini.write_text(text.format(pipe))
    command = [sys.executable, "-m", "rtmpd", "-c", str(ini), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, timeout=20, cwd=ROOT, text=True)
    assert done.returncode == 1
    assert "it is a pipe, socket or device, and only regular files are read" in done.stderr


def test_a_start_without_its_auth_file_fails_with_the_reason(tmp_path):
    ini = tmp_path / "rtmpd.ini"
    ini.write_text(f"[auth]\nauth_mode = file\nauth_file = {tmp_path}/none\n")
    command = [sys.executable, "-m", "rtmpd", "-c", str(ini), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, timeout=20, cwd=ROOT, text=True)
    assert done.returncode == 1
    assert re.search(r"ERROR +auth_file .*/none: can't be read: No such file or directory$", done.stderr, re.MULTILINE)


def test_a_file_that_does_not_answer_delays_no_stream_no_later_reload_and_no_stop(running):
    # A pipe whose writer does not write: to read waits, as with a network file system that does not answer.
    running.ini.unlink()
    os.mkfifo(running.ini)
    writer = os.open(running.ini, os.O_RDWR)
    try:
        running.process.send_signal(signal.SIGHUP)
        for _ in range(3):
            running.bystander.check()
        running.wait_for_line(rf"reload failed: {running.ini} could not be read within 5 s: ", 20)
        running.ini.rename(running.ini.with_suffix(".old"))
        put(running.ini, b"[publish]\npublisher_grace_s = 8\n")
        assert "configuration reloaded: [publish] publisher_grace_s = 8" in reload(running)
        running.bystander.check()
    finally:
        os.close(writer)


def test_a_server_whose_file_does_not_answer_can_be_stopped(server, tmp_path):
    running = server(GOOD)
    ini = tmp_path / "rtmpd.ini"
    ini.unlink()
    os.mkfifo(ini)
    writer = os.open(ini, os.O_RDWR)
    try:
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_line("reload failed: .*could not be read within 5 s", 20)
        running.process.send_signal(signal.SIGHUP)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
    finally:
        os.close(writer)
