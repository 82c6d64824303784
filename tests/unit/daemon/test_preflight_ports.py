from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from rtmpd.config.loader import load_text
from rtmpd.daemon import preflight
from rtmpd.daemon.port_holders import ListeningSocket
from rtmpd.daemon.preflight import check_ports
from tests.ports import free_port

_HOLD = """
import socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


def found(ini, config_file=""):
    return [(".".join(each.path), each.text, each.is_note) for each in check_ports(load_text(ini), config_file)]


@pytest.fixture
def hold(tmp_path):
    """Return a function that starts a program that listens on a port; it returns the process id and the port."""
    started = []

    def start(*arguments):
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        started.append(process)
        return process.pid, int(process.stdout.readline())

    yield start
    for process in started:
        process.communicate(timeout=20)


@pytest.fixture
def rtmpd(tmp_path):
    """A program with the name of rtmpd."""
    path = tmp_path / "rtmpd"
    path.write_text(_HOLD)
    return str(path)


def test_addresses_that_are_free_stay_free():
    port = free_port()
    assert found(f"[server]\nlisten = 127.0.0.1:{port}, 127.0.0.1:0\n[metrics]\nmetrics_listen = :0\n") == []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))


def test_an_address_in_use_by_another_program(hold):
    pid, port = hold("-c", _HOLD)
    for ini, option in [
        ("[server]\nlisten = {}\n", "server.listen"),
        ("[server]\nlisten = :0\n[metrics]\nmetrics_listen = {}\n", "metrics.metrics_listen"),
    ]:
        ((path, text, is_note),) = found(ini.format(f"127.0.0.1:{port}"))
        assert (path, is_note) == (option, False)
        assert text.startswith(f"127.0.0.1:{port} is in use by python")
        assert text.endswith(f" (pid {pid}): stop it or choose another port")


def test_an_rtmpd_that_runs_with_this_file_is_a_note(hold, rtmpd, tmp_path):
    (tmp_path / "my.ini").touch()
    pid, port = hold(rtmpd, "-c", "my.ini")
    assert found(f"[server]\nlisten = 127.0.0.1:{port}\n", str(tmp_path / "my.ini")) == [
        ("server.listen", f"127.0.0.1:{port} is in use by rtmpd (pid {pid})", True)
    ]


@pytest.mark.parametrize(
    ("arguments", "shown"), [([], "without a configuration file"), (["-c", "/etc/other.ini"], "with /etc/other.ini")]
)
def test_an_rtmpd_that_runs_with_another_file_is_a_note_with_that_file(hold, rtmpd, tmp_path, arguments, shown):
    (tmp_path / "my.ini").touch()
    pid, port = hold(rtmpd, *arguments)
    assert found(f"[server]\nlisten = 127.0.0.1:{port}\n", str(tmp_path / "my.ini")) == [
        ("server.listen", f"127.0.0.1:{port} is in use by rtmpd (pid {pid}), which runs {shown}", True)
    ]


def test_a_socket_inherited_by_this_process_is_no_finding():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert found(f"[server]\nlisten = 127.0.0.1:{sock.getsockname()[1]}\n") == []


def test_a_socket_that_systemd_holds_is_a_note(hold, monkeypatch):
    pid, port = hold("-c", _HOLD)
    monkeypatch.setattr(preflight, "_SYSTEMD", pid)
    ((_, text, is_note),) = found(f"[server]\nlisten = 127.0.0.1:{port}\n")
    assert is_note
    assert text.startswith(f"127.0.0.1:{port} is held by systemd: ")


@pytest.mark.parametrize(
    ("me", "owner", "is_note"),
    [(1000, 0, True), (1000, 1000, True), (1000, 33, False), (0, 0, False)],
    ids=["root's", "the same user's", "another user's", "asked as root"],
)
def test_a_process_that_is_not_visible(hold, monkeypatch, me, owner, is_note):
    _, port = hold("-c", _HOLD)
    monkeypatch.setattr(preflight, "holders_of", lambda sockets: [])
    monkeypatch.setattr(preflight, "listening_sockets", lambda address: [ListeningSocket(address, owner, 5)])
    monkeypatch.setattr(os, "geteuid", lambda: me)
    ((_, text, noted),) = found(f"[server]\nlisten = 127.0.0.1:{port}\n")
    assert noted is is_note
    assert text.startswith(f"127.0.0.1:{port} is in use by a process of the user ")


def test_one_address_in_two_options():
    port = free_port()
    ini = f"[server]\nlisten = :{port}\n[metrics]\nmetrics_listen = localhost:{port}\n"
    assert found(ini) == [
        ("metrics.metrics_listen", f"can't listen on localhost:{port}: it overlaps with :{port} of [server] listen", False)
    ]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("media.invalid:1935", "Name or service not known"),
        ("192.0.2.1:1935", "Cannot assign requested address: no network interface of this host has it"),
    ],
)
def test_an_address_that_can_not_be_bound(address, problem):
    assert found(f"[server]\nlisten = {address}\n") == [("server.listen", f"can't listen on {address}: {problem}", False)]


@pytest.fixture
def denied(monkeypatch):
    """A process without the right to bind any port."""

    def bound_socket(address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(preflight, "bound_socket", bound_socket)


def test_a_low_port_without_the_right_that_systemd_hands_over_to_an_rtmpd(denied, hold, rtmpd):
    pid, port = hold(rtmpd)
    ((_, text, is_note),) = found(f"[server]\nlisten = 127.0.0.1:{port}\n")
    assert is_note
    assert text == f"127.0.0.1:{port} is in use by rtmpd (pid {pid})"


def test_a_low_port_without_the_right(denied, monkeypatch):
    monkeypatch.setattr(preflight, "listening_sockets", lambda address: [])
    ((_, text, is_note),) = found("[server]\nlisten = :80\n")
    assert text == "can't listen on :80: Permission denied: ports below 1024 need CAP_NET_BIND_SERVICE"
    assert not is_note
