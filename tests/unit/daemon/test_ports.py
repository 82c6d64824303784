from __future__ import annotations

import threading

import gevent
import pytest
from gevent import socket

from rtmpd.config.model import ListenAddress
from rtmpd.daemon import ports as module
from rtmpd.daemon.ports import Ports, overlap_problems
from rtmpd.errors import RtmpdError
from rtmpd.net.listener import Listener
from rtmpd.net.resolver import Resolver
from tests.ports import free_port

LIMIT_S = 10


def answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        with socket.create_connection((host, port), timeout=LIMIT_S) as client:
            return client.recv(1) == b"x"
    except ConnectionRefusedError:
        return False


@pytest.fixture
def ports():
    made = Ports(lambda transport: transport.send_all(b"x", LIMIT_S))
    yield made
    made.close()
    made.kill()


def test_addresses_come_and_go(ports):
    first, second, third = free_port(), free_port(), free_port()
    ports.open([ListenAddress("127.0.0.1", first), ListenAddress("127.0.0.1", second)])
    ports.start()
    ports.change([ListenAddress("127.0.0.1", second), ListenAddress("127.0.0.1", third)])
    assert [answers(port) for port in (first, second, third)] == [False, True, True]
    assert sorted(ports.addresses) == sorted([("127.0.0.1", second), ("127.0.0.1", third)])
    ports.change([ListenAddress("127.0.0.1", first)])
    assert [answers(port) for port in (first, second, third)] == [True, False, False]


def test_a_name_that_hangs_stops_no_event_loop_and_keeps_its_address(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_UP_LIMIT_S", 0.2)
    hangs, over = set(), threading.Event()

    def look_up(host, port):
        if host in hangs:
            over.wait(LIMIT_S)
        return [("127.0.0.1", port)]

    made = Ports(lambda transport: transport.send_all(b"x", LIMIT_S), resolver=Resolver(look_up=look_up))
    known, port, other = "known.example", free_port(), free_port()
    made.open([ListenAddress(known, port)])
    made.start()
    hangs |= {known, "new.example"}
    changing = gevent.spawn(made.change, [ListenAddress(known, port), ListenAddress("127.0.0.1", other)])
    assert answers(port)
    changing.get(timeout=LIMIT_S)
    assert answers(port)
    assert answers(other)
    with pytest.raises(RtmpdError, match=r"can't listen on new\.example:\d+: the name could not be looked up within 0\.2 s"):
        made.change([ListenAddress("new.example", port)])
    assert answers(other)
    over.set()
    made.close()
    made.kill()


def test_equal_addresses_change_nothing(ports):
    ports.open([ListenAddress("127.0.0.1", 0), ListenAddress("127.0.0.1", 0)])
    ports.start()
    before = list(ports.listeners)
    ports.change([ListenAddress("127.0.0.1", 0), ListenAddress("127.0.0.1", 0)])
    assert ports.listeners == before


def test_an_address_may_be_made_narrower_and_wider_on_the_same_port(ports):
    port = free_port()
    ports.open([ListenAddress("", port)])
    ports.start()
    ports.change([ListenAddress("127.0.0.1", port)])
    assert answers(port)
    assert ports.addresses == (("127.0.0.1", port),)
    ports.change([ListenAddress("", port)])
    assert answers(port)


def test_a_failed_change_restores_all_addresses(ports):
    taken = Listener(ListenAddress("127.0.0.1", 0), lambda transport: None)
    port, other = free_port(), free_port()
    ports.open([ListenAddress("", port)])
    ports.start()
    wanted = [ListenAddress("127.0.0.1", port), ListenAddress("127.0.0.1", other), ListenAddress("127.0.0.1", taken.port)]
    with pytest.raises(RtmpdError, match=f"can't listen on 127.0.0.1:{taken.port}"):
        ports.change(wanted)
    assert answers(port)
    assert not answers(other)
    assert [listener.place for listener in ports.listeners] == [ListenAddress("", port)]
    taken.close()


def test_connections_of_a_removed_address_are_waited_for_and_ended():
    ended = []

    def serve(transport):
        try:
            gevent.sleep(LIMIT_S)
        except gevent.GreenletExit:
            ended.append(transport.peer)

    ports = Ports(serve)
    ports.open([ListenAddress("127.0.0.1", 0)])
    ports.start()
    client = socket.create_connection(("127.0.0.1", ports.listeners[0].port), timeout=LIMIT_S)
    while not ports.listeners[0].busy:
        gevent.sleep(0)
    ports.change([ListenAddress("127.0.0.1", free_port())])
    ports.close()
    ports.wait(0.01)
    assert not ended
    ports.kill()
    assert len(ended) == 1
    assert client.recv(1) == b""


def test_an_inherited_socket_is_kept():
    handed = socket.socket()
    handed.bind(("127.0.0.1", 0))
    handed.listen()
    port = handed.getsockname()[1]
    ports = Ports(lambda transport: transport.send_all(b"x", LIMIT_S), [handed])
    ports.open([ListenAddress("127.0.0.1", port)])
    ports.start()
    ports.change([ListenAddress("127.0.0.1", free_port())])
    assert answers(port)
    assert len(ports.listeners) == 2
    ports.close()
    ports.kill()


def test_an_address_may_become_one_for_rtmps_and_two_may_change_sides():
    kinds = {}
    ports = Ports(lambda transport: kinds.__setitem__(transport.peer, transport.scheme))
    first, second = free_port(), free_port()
    one, two = ListenAddress("127.0.0.1", first), ListenAddress("127.0.0.1", second)

    def schemes():
        found = []
        for port in (first, second):
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
                assert client.recv(1) == b""
                found.append(kinds[f"127.0.0.1:{client.getsockname()[1]}"])
        return found

    ports.open([one], [two])
    ports.start()
    assert schemes() == ["rtmp", "rtmps"]
    ports.change([two], [one])
    assert schemes() == ["rtmps", "rtmp"]
    ports.change([], [one, two])
    assert schemes() == ["rtmps", "rtmps"]
    assert sorted(ports.addresses) == sorted([("127.0.0.1", first), ("127.0.0.1", second)])
    before = list(ports.listeners)
    with pytest.raises(RtmpdError, match=rf"can't listen on 127.0.0.1:{first}: it overlaps with :{first} of \[server\] listen"):
        ports.change([ListenAddress("", first)], [one])
    assert ports.listeners == before
    ports.close()
    ports.kill()


def test_an_inherited_rtmps_socket_serves_rtmps():
    handed = socket.socket()
    handed.bind(("127.0.0.1", 0))
    handed.listen()
    schemes = []
    ports = Ports(lambda transport: schemes.append(transport.scheme), (), [handed])
    ports.open([ListenAddress("127.0.0.1", 0)], [ListenAddress("127.0.0.1", handed.getsockname()[1])])
    ports.start()
    with socket.create_connection(handed.getsockname(), timeout=LIMIT_S) as client:
        assert client.recv(1) == b""
    assert schemes == ["rtmps"]
    assert len(ports.listeners) == 2
    ports.close()
    ports.kill()


def test_no_address_at_all_is_refused(ports):
    with pytest.raises(RtmpdError, match=r"nothing to listen on: \[server\] listen and \[tls\] tls_listen are empty"):
        ports.open([], [])
    ports.open([ListenAddress("127.0.0.1", 0)])
    before = list(ports.listeners)
    with pytest.raises(RtmpdError, match="nothing to listen on"):
        ports.change([])
    assert ports.listeners == before


def test_addresses_that_overlap_are_found_with_their_options():
    wanted = [
        (("server", "listen"), ListenAddress("", 1935)),
        (("server", "listen"), ListenAddress("127.0.0.1", 0)),
        (("tls", "tls_listen"), ListenAddress("127.0.0.1", 0)),
        (("tls", "tls_listen"), ListenAddress("127.0.0.1", 1935)),
        (("metrics", "metrics_listen"), ListenAddress("::1", 9500)),
        (("metrics", "metrics_listen"), ListenAddress("127.0.0.1", 9500)),
    ]
    assert overlap_problems(wanted) == {3: "can't listen on 127.0.0.1:1935: it overlaps with :1935 of [server] listen"}
