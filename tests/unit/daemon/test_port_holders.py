from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from rtmpd.config.model import ListenAddress
from rtmpd.daemon.port_holders import Holder, holders_of, listening_sockets


@pytest.fixture(params=["127.0.0.1", "::1", "0.0.0.0", "::"])
def listening(request):
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((request.param, 0))
        sock.listen()
        yield request.param, sock.getsockname()[1], sock


def test_this_process_is_found_by_its_address(listening):
    host, port, _ = listening
    (one,) = listening_sockets(ListenAddress(host, port))
    assert (one.address, one.user_id) == (ListenAddress(host, port), os.geteuid())
    (holder,) = holders_of([one])
    assert holder.pid == os.getpid()
    assert holder.directory == str(Path.cwd())
    assert not holder.is_rtmpd


def test_every_address_is_any_of_them(listening):
    _, port, _ = listening
    assert len(listening_sockets(ListenAddress("", port))) == 1


def test_a_socket_that_does_not_listen_is_none():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert listening_sockets(ListenAddress("127.0.0.1", sock.getsockname()[1])) == []


def test_the_one_that_has_the_address_counts_and_else_any_that_has_the_port():
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        other.bind(("127.0.0.2", port))
        one.listen()
        other.listen()
        assert [each.address.host for each in listening_sockets(ListenAddress("127.0.0.2", port))] == ["127.0.0.2"]
        assert len(listening_sockets(ListenAddress("127.0.0.3", port))) == 2


def test_an_invisible_process_is_not_returned(tmp_path, listening):
    _, port, _ = listening
    (tmp_path / "net").mkdir()
    assert listening_sockets(ListenAddress("", port), tmp_path) == []
    (tmp_path / "77").mkdir()
    assert holders_of(listening_sockets(ListenAddress("", port)), tmp_path) == []


@pytest.mark.parametrize(
    ("line", "is_rtmpd", "file"),
    [
        ("/opt/rtmpd/bin/python /opt/rtmpd/bin/rtmpd -c /etc/rtmpd.ini", True, "/etc/rtmpd.ini"),
        ("python3 -P -m rtmpd --config=my.ini", True, "/srv/my.ini"),
        ("rtmpd -cmy.ini --chunk-size 4096", True, "/srv/my.ini"),
        ("/usr/bin/rtmpd", True, ""),
        ("python3 -m http.server 1935 rtmpd rtmpd", False, ""),
        ("nginx: master process nginx", False, ""),
        ("", False, ""),
    ],
)
def test_an_rtmpd_is_known_by_its_command_line(line, is_rtmpd, file):
    holder = Holder(1, "python3", tuple(line.split()), "/srv")
    assert (holder.is_rtmpd, holder.config_file) == (is_rtmpd, file)
