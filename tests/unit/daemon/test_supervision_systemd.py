from __future__ import annotations

import os
import socket

import pytest

from rtmpd.daemon.supervision import Inherited, Notifier, take_sockets
from rtmpd.errors import RtmpdError


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A socket of systemd, and its name."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@rtmpd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(5)
        yield sock, name


# Notifications ----------------------------------------------------------------------------------------------------------


def test_fields_are_lines_of_one_datagram(manager):
    sock, name = manager
    Notifier({"NOTIFY_SOCKET": name}).send(READY=1, STATUS="3 streams, 41 players")
    assert sock.recv(4096) == b"READY=1\nSTATUS=3 streams, 41 players"


def test_a_status_is_always_one_line(manager):
    sock, name = manager
    Notifier({"NOTIFY_SOCKET": name}).send(STATUS="a\nMAINPID=1\r\nb \udcff €")
    assert sock.recv(4096).decode() == "STATUS=a MAINPID=1 b \\udcff €"


def test_the_variables_of_systemd_are_removed_from_the_environment():
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    assert Notifier(environment).watchdog_s == 1
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("name", ["", "/nowhere/at/all", "@nobody-there", "relative", "/" + "x" * 300, "@" + "x" * 300])
def test_without_systemd_nothing_happens(name):
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.send(READY=1)
    notifier.feed_watchdog()
    assert notifier.flush()


@pytest.mark.parametrize(
    ("given", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 20),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({"WATCHDOG_USEC": "-5"}, 0),
        ({"WATCHDOG_USEC": ""}, 0),
        ({}, 0),
    ],
)
def test_the_interval_of_the_watchdog(given, watchdog_s):
    assert Notifier({"NOTIFY_SOCKET": "/x", **given}).watchdog_s == watchdog_s


def test_without_notifications_there_is_no_watchdog():
    assert Notifier({"WATCHDOG_USEC": "20000000"}).watchdog_s == 0


def test_messages_that_do_not_fit_are_sent_later_in_order_and_nothing_blocks(manager):
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    count = 0
    while notifier.flush():
        notifier.send(N=count)
        count += 1
        assert count < 100_000
    notifier.send(READY=1)
    for _ in range(100):
        # Watchdog messages are not kept: the next one follows soon. Messages about reloads are kept.
        notifier.feed_watchdog()
    assert [sock.recv(100) for _ in range(count - 1)] == [f"N={number}".encode() for number in range(count - 1)]
    assert notifier.flush()
    assert [sock.recv(100) for _ in range(2)] == [f"N={count - 1}".encode(), b"READY=1"]
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(100)


# Sockets ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hand_over(monkeypatch):
    """Return a function that makes sockets look as if systemd had handed them over."""
    made = []

    def hand(*sockets, names=None, process=None):
        # Consecutive descriptors.
        first = 200
        monkeypatch.setattr("rtmpd.daemon.supervision._FIRST_DESCRIPTOR", first)
        for offset, sock in enumerate(sockets):
            made.append(os.dup2(sock.fileno(), first + offset, inheritable=True))
        environment = {"LISTEN_PID": process or str(os.getpid()), "LISTEN_FDS": str(len(sockets)), "HOME": "/"}
        return environment | ({"LISTEN_FDNAMES": names} if names is not None else {})

    yield hand
    for descriptor in made:
        os.close(descriptor)


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_sockets_have_names_and_are_not_inherited_by_programs(hand_over, listening):
    environment = hand_over(listening, listening, listening, names="rtmp:rtmpd.socket:metrics")
    found = take_sockets(environment)
    assert found == [Inherited("rtmp", 200), Inherited("", 201), Inherited("metrics", 202)]
    assert not any(os.get_inheritable(one.descriptor) for one in found)
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("names", [None, "", "unknown"])
def test_sockets_without_a_name(hand_over, listening, names):
    assert take_sockets(hand_over(listening, names=names)) == [Inherited("", 200)]


def test_sockets_for_another_process_are_ignored(hand_over, listening):
    environment = hand_over(listening, process="1")
    assert take_sockets(environment) == []
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("count", ["", "two", "-1", "0"])
def test_an_invalid_count_means_no_sockets(count):
    assert take_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}) == []


@pytest.mark.parametrize("kind", ["connected", "UDP", "Unix"])
def test_a_socket_that_can_not_be_served_is_an_error_with_the_reason(hand_over, listening, tmp_path, kind):
    family = socket.AF_UNIX if kind == "Unix" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "UDP" else socket.SOCK_STREAM) as sock:
        if kind == "connected":
            sock.connect(listening.getsockname())
        elif kind == "Unix":
            sock.bind(str(tmp_path / "socket"))
            sock.listen()
        environment = hand_over(sock)
        with pytest.raises(RtmpdError, match=r"descriptor 200 from systemd is not a listening TCP socket"):
            take_sockets(environment)


def test_a_descriptor_that_is_no_socket_is_an_error(monkeypatch, tmp_path):
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr("rtmpd.daemon.supervision._FIRST_DESCRIPTOR", file.fileno())
        with pytest.raises(RtmpdError, match="is not a socket"):
            take_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


def test_a_descriptor_that_is_not_open_is_an_error(monkeypatch):
    monkeypatch.setattr("rtmpd.daemon.supervision._FIRST_DESCRIPTOR", 900)
    with pytest.raises(RtmpdError, match="descriptor 900 from systemd is not a socket: Bad file descriptor"):
        take_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
