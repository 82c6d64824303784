"""``--check-config`` beside servers that run, and as the users that they run as."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rtmpd.client import Client
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def check(*arguments: str, cwd: Path = ROOT, **options) -> tuple[int, list[str]]:
    """Run a check; return the exit status and what it says, without the note that root gets."""
    command = [sys.executable, "-m", "rtmpd", *arguments, "--check-config"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, **options
    )
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines() + done.stdout.splitlines()
    return done.returncode, [line for line in lines if "files were checked as root" not in line]


def state(directory: Path) -> list[tuple[str, int, int]]:
    """What a check must leave as it is: every file with its times."""
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in [directory, *directory.rglob("*")])


def test_the_check_beside_the_running_server_succeeds_and_changes_nothing(server, tmp_path):
    running = server(
        f"[metrics]\nmetrics_listen = 127.0.0.1:0\n[record]\nrecord_all = yes\nrecord_directory = {tmp_path}/recordings\n"
        f"[log]\nlog_file =\naccess_log_file = {tmp_path}/access.log\n",
        # Its command line says that it is rtmpd.
        start=("-m", "rtmpd", "--listen", "127.0.0.1:0", "--http-listen", ""),
    )
    path = tmp_path / "rtmpd.ini"
    before = state(tmp_path)
    port = f"127.0.0.1:{running.port}"
    assert check("-c", str(path), "--listen", port) == (
        0,
        [f"--listen: [server] listen: note: {port} is in use by rtmpd (pid {running.pid})", f"{path}: ok"],
    )
    assert state(tmp_path) == before
    with Client(running.url()) as client:
        client.connect()
    # It is the first that the server has seen.
    running.wait_for_line("#1 .* connected to live")


def test_a_port_of_another_program_is_an_error_that_names_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        (tmp_path / "rtmpd.ini").write_text(f"[server]\nlisten =\n  127.0.0.1:0,\n  127.0.0.1:{port}\n".replace("\n  ", " "))
        status, lines = check("-c", "rtmpd.ini", cwd=tmp_path)
    assert status == 1
    (line,) = lines
    assert line.startswith(f"rtmpd.ini:2: [server] listen: 127.0.0.1:{port} is in use by ")
    assert f"(pid {os.getpid()})" in line


def test_every_problem_is_said_at_once(tmp_path):
    (tmp_path / "rtmpd.ini").write_text(
        "[server]\nlisten = no.such.host.invalid:1935\n[log]\nlog_file = /no/where.log\n"
        "[record]\nrecord_streams = live/*\nrecord_directory = /no/where\n"
        "[hooks]\nhook_scripts = publish_start=/no/program\n[auth]\nauth_mode = file\nauth_file = none.json\n"
    )
    status, lines = check("-c", "rtmpd.ini", cwd=tmp_path)
    assert status == 1
    assert sorted(line.partition("] ")[0] + "] " + line.partition("] ")[2].partition(":")[0] for line in lines) == [
        "rtmpd.ini:12: [auth] auth_file",
        "rtmpd.ini:2: [server] listen",
        "rtmpd.ini:4: [log] log_file",
        "rtmpd.ini:7: [record] record_directory",
        "rtmpd.ini:9: [hooks] hook_scripts",
    ]


@root
def test_the_check_notes_that_an_ordinary_user_can_not_see_processes_of_root(server, tmp_path):
    running = server()
    # The Python of the tests may be in root's home: it is loaded before the process switches to nobody.
    program = (
        "import os, sys\nfrom rtmpd import cli\nimport rtmpd.daemon.preflight, rtmpd.config.loader\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"sys.exit(cli.main(['--listen', '127.0.0.1:{running.port}', '--check-config']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "the built-in configuration: ok\n"), done.stderr
    assert done.stderr.startswith(
        f"--listen: [server] listen: note: 127.0.0.1:{running.port} is in use by a process of the user root "
        "that is not visible to the user nobody: check as root"
    )


@root
def test_the_check_finds_missing_permissions_of_the_servers_user(public_path):
    tmp_path = public_path
    recordings, log = tmp_path / "recordings", tmp_path / "logs"
    recordings.mkdir(0o755)
    log.mkdir(0o755)
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "program").chmod(0o700)
    ini = tmp_path / "rtmpd.ini"
    ini.write_text(
        f"[server]\nlisten = 127.0.0.1:0\nuser = nobody\n[record]\nrecord_all = yes\nrecord_directory = {recordings}\n"
        f"[log]\nlog_file = {log}/log\n[hooks]\nhook_scripts = *={tmp_path}/program\n"
    )
    status, lines = check("-c", str(ini))
    assert status == 1
    problems = [line.partition(": ")[2] for line in lines]
    denied = "the user nobody may not write to the directory {}: chown or chmod it, or set another one"
    assert problems == [
        f"[record] record_directory: {denied.format(recordings)}",
        f"[log] log_file: can't create {log}/log: {denied.format(log)}",
        f"[hooks] hook_scripts: the user nobody may not run {tmp_path}/program: chmod +x it, or set another program",
    ]
    for path in (recordings, log, tmp_path / "program"):
        os.chown(path, 65534, 65534)
    assert check("-c", str(ini)) == (0, [f"{ini}: ok"])
    assert list(recordings.iterdir()) + list(log.iterdir()) == []
