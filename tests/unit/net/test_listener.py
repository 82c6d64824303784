from __future__ import annotations

import socket as stdlib_socket

import gevent
import pytest
from gevent import get_hub, socket
from gevent.event import Event

from rtmpd.config.model import ListenAddress
from rtmpd.errors import RtmpdError, TransportClosed
from rtmpd.net.listener import Listener, inherited_socket, is_listened_on, is_local, listening_places

LIMIT_S = 10
LOOPBACK = ListenAddress("127.0.0.1", 0)
ipv6 = pytest.mark.skipif(not stdlib_socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def listen():
    made = []

    def make(serve, address=LOOPBACK):
        listener = Listener(address, serve)
        listener.start()
        made.append(listener)
        return listener

    yield make
    for listener in made:
        listener.close()
        listener.kill()


@pytest.fixture
def connect():
    made = []

    def make(port, host="127.0.0.1"):
        sock = socket.create_connection((host, port), timeout=LIMIT_S)
        made.append(sock)
        return sock

    yield make
    for sock in made:
        sock.close()


def say_who(transport):
    transport.send_all(transport.peer.encode(), LIMIT_S)


def serve_until_closed(transport):
    transport.send_all(b"hello", LIMIT_S)
    try:
        while True:
            transport.recv()
    except TransportClosed:
        return


def read_all(sock):
    text = b""
    while data := sock.recv(1000):
        text += data
    return text.decode()


# Addresses --------------------------------------------------------------------------------------------------------------


def test_port_0_listens_on_a_free_port_and_returns_it(listen, connect):
    listener = listen(say_who)
    assert listener.port > 0
    assert listener.bound == f"127.0.0.1:{listener.port}"
    client = connect(listener.port)
    assert read_all(client) == f"127.0.0.1:{client.getsockname()[1]}"


def test_an_address_in_use_is_an_error_with_a_hint(listen):
    port = listen(say_who).port
    with pytest.raises(RtmpdError, match=rf"^can't listen on 127\.0\.0\.1:{port}: .*: another process listens on it$"):
        Listener(ListenAddress("127.0.0.1", port), say_who)


def test_an_address_that_is_free_again_can_be_used_at_once(listen, connect):
    first = listen(serve_until_closed)
    client = connect(first.port)
    assert client.recv(10) == b"hello"
    first.close()
    first.kill()
    assert listen(say_who, ListenAddress("127.0.0.1", first.port)).port == first.port


def test_a_privileged_port_is_an_error_with_a_hint(monkeypatch):
    class Forbidden(socket.socket):
        def bind(self, address):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("rtmpd.net.listener.socket", Forbidden)
    with pytest.raises(RtmpdError, match=r"^can't listen on 127\.0\.0\.1:80: Permission denied: .*CAP_NET_BIND_SERVICE$"):
        Listener(ListenAddress("127.0.0.1", 80), say_who)


def test_an_unknown_host_is_an_error(monkeypatch):
    def fail(*_, **__):
        raise stdlib_socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(stdlib_socket, "getaddrinfo", fail)
    with pytest.raises(RtmpdError, match=r"^can't listen on media\.invalid:1935: Name or service not known$"):
        Listener(ListenAddress("media.invalid", 1935), say_who)


@ipv6
def test_without_a_host_ipv4_and_ipv6_are_served_over_one_socket(listen, connect):
    listener = listen(say_who, ListenAddress("", 0))
    assert listener.bound == f"[::]:{listener.port}"
    over_ipv4, over_ipv6 = connect(listener.port), connect(listener.port, "::1")
    assert read_all(over_ipv4) == f"127.0.0.1:{over_ipv4.getsockname()[1]}"
    assert read_all(over_ipv6) == f"[::1]:{over_ipv6.getsockname()[1]}"


@ipv6
def test_an_ipv6_address_leaves_the_same_port_free_for_ipv4(listen, connect):
    for _ in range(20):
        six = listen(say_who, ListenAddress("::", 0))
        try:
            four = listen(lambda transport: transport.send_all(b"four", LIMIT_S), ListenAddress("0.0.0.0", six.port))
        except RtmpdError:
            # Another process of this machine has that port.
            continue
        break
    assert four.port == six.port
    assert read_all(connect(six.port)) == "four"
    assert read_all(connect(six.port, "::1")).startswith("[::1]:")


def test_without_ipv6_an_empty_host_means_ipv4(monkeypatch, listen, connect):
    monkeypatch.setattr(stdlib_socket, "has_dualstack_ipv6", lambda: False)
    listener = listen(say_who, ListenAddress("", 0))
    assert listener.bound == f"0.0.0.0:{listener.port}"
    assert read_all(connect(listener.port)).startswith("127.0.0.1:")


# Connections ------------------------------------------------------------------------------------------------------------


def test_a_connection_is_closed_when_its_handler_returns(listen, connect):
    kept = []
    client = connect(listen(kept.append).port)
    assert client.recv(10) == b""
    assert kept[0].sock.fileno() == -1


def test_an_error_in_one_handler_harms_no_other(listen, connect, monkeypatch):
    escaped = []
    monkeypatch.setattr(get_hub(), "print_exception", lambda context, kind, value, traceback: escaped.append(value))
    kept = []

    def serve(transport):
        kept.append(transport)
        if len(kept) == 2:
            raise RuntimeError("a bug")
        serve_until_closed(transport)

    port = listen(serve).port
    first = connect(port)
    assert first.recv(10) == b"hello"
    assert connect(port).recv(10) == b""
    assert connect(port).recv(10) == b"hello"
    kept[0].send_all(b"still there", LIMIT_S)
    assert first.recv(20) == b"still there"
    assert [str(value) for value in escaped] == ["a bug"]
    assert kept[1].sock.fileno() == -1


def test_many_connections_at_once_are_served(listen, connect):
    port = listen(serve_until_closed).port
    clients = [connect(port) for _ in range(200)]
    assert all(client.recv(10) == b"hello" for client in clients)


def test_a_connection_lost_before_it_is_served_does_no_harm(listen, connect, monkeypatch):
    served = Event()

    def vanish(sock, peer):
        raise OSError(22, "Invalid argument")

    listener = listen(lambda transport: served.set())
    port = listener.port
    with monkeypatch.context() as patch:
        patch.setattr(listener, "kind", vanish)
        assert connect(port).recv(10) == b""
    assert not served.is_set()
    assert connect(port).recv(10) == b""
    assert served.is_set()


# The end ----------------------------------------------------------------------------------------------------------------


def test_a_closed_listener_accepts_no_more_and_keeps_its_connections(listen, connect):
    kept = []

    def serve(transport):
        kept.append(transport)
        serve_until_closed(transport)

    listener = listen(serve)
    client = connect(listener.port)
    assert client.recv(10) == b"hello"
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        connect(listener.port)
    kept[0].send_all(b"still there", LIMIT_S)
    assert client.recv(20) == b"still there"


def test_waiting_ends_when_the_last_connection_has_ended(listen, connect):
    listener = listen(serve_until_closed)
    assert listener.wait(LIMIT_S)
    clients = [connect(listener.port) for _ in range(3)]
    assert all(client.recv(10) == b"hello" for client in clients)
    listener.close()
    assert not listener.wait(0.02)
    waiting = gevent.spawn(listener.wait, LIMIT_S)
    for client in clients:
        gevent.sleep(0)
        assert not waiting.ready()
        client.close()
    assert waiting.get(timeout=LIMIT_S)


def test_connections_that_do_not_end_are_killed(listen, connect):
    ended = []

    def serve(transport):
        try:
            serve_until_closed(transport)
        except gevent.GreenletExit:
            ended.append(transport.peer)
            raise

    listener = listen(serve)
    clients = [connect(listener.port) for _ in range(3)]
    assert all(client.recv(10) == b"hello" for client in clients)
    listener.kill()
    assert len(ended) == 3
    assert all(client.recv(10) == b"" for client in clients)
    assert listener.wait(LIMIT_S)


# Sockets that were handed over -------------------------------------------------------------------------------------------


@pytest.fixture
def inherited():
    """Return a function that makes a socket as another process would have bound it, and gives its port too."""
    held = []

    def make(host, *, dual=False, port=0):
        family = stdlib_socket.AF_INET6 if ":" in host else stdlib_socket.AF_INET
        sock = stdlib_socket.create_server((host, port), family=family, dualstack_ipv6=dual)
        held.append(sock)
        made = inherited_socket(sock.dup().detach())
        held.append(made)
        return made, sock.getsockname()[1]

    yield make
    for sock in held:
        sock.close()


def test_an_inherited_socket_is_listened_with_and_the_other_process_keeps_it(listen, inherited, connect):
    sock, port = inherited("127.0.0.1")
    held = stdlib_socket.socket(fileno=sock.dup().detach())
    listener = listen(say_who, sock)
    assert (listener.port, listener.addresses) == (port, (("127.0.0.1", port),))
    client = connect(port)
    host, number = client.getsockname()
    assert client.recv(100).decode() == f"{host}:{number}"
    listener.close()
    # The connection is not refused: it waits for the next process.
    waiting = connect(port)
    listen(say_who, inherited_socket(held.detach()))
    assert waiting.recv(100).startswith(b"127.0.0.1:")


@ipv6
@pytest.mark.parametrize(
    ("host", "dual", "address", "warned"),
    [
        ("::", True, "", False),
        ("::", True, "0.0.0.0", True),
        ("::", True, "127.0.0.1", True),
        ("::", True, "::1", True),
        ("127.0.0.1", False, "127.0.0.1", False),
        ("127.0.0.1", False, "localhost", False),
        ("127.0.0.1", False, "", True),
        ("0.0.0.0", False, "127.0.0.1", True),
        ("::1", False, "::1", False),
    ],
)
def test_an_address_that_overlaps_an_inherited_socket_is_not_bound_again(
    inherited, caplog, monkeypatch, host, dual, address, warned
):
    # Whatever this machine's name service says.
    real = stdlib_socket.getaddrinfo
    monkeypatch.setattr(
        stdlib_socket,
        "getaddrinfo",
        lambda host, *more, **and_more: real(host.replace("localhost", "127.0.0.1"), *more, **and_more),
    )
    sock, port = inherited(host, dual=dual)
    assert listening_places([ListenAddress(address, port)], [sock]) == [sock]
    assert ("the inherited socket" in caplog.text) is warned


@ipv6
@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1"), ("127.0.0.1", "127.0.0.2"), ("::", "127.0.0.1")]
)
def test_addresses_without_an_inherited_socket_are_bound(inherited, caplog, host, address):
    sock, port = inherited(host)
    wanted = [ListenAddress(address, port), ListenAddress("127.0.0.1", 0)]
    assert listening_places(wanted, [sock]) == [sock, *wanted]
    assert not caplog.records


def test_an_unknown_name_is_left_to_bind(inherited, monkeypatch):
    def fail(*_, **__):
        raise stdlib_socket.gaierror(-2, "Name or service not known")

    sock, _ = inherited("127.0.0.1")
    monkeypatch.setattr(stdlib_socket, "getaddrinfo", fail)
    wanted = ListenAddress("nowhere.invalid", 1935)
    assert listening_places([wanted], [sock]) == [sock, wanted]


# Which addresses lead here --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_addresses_of_this_host_are_local(host):
    assert is_local((host, 1935))


@pytest.mark.parametrize("host", ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"])
def test_addresses_of_others_are_not(host):
    assert not is_local((host, 1935, 0, 0) if ":" in host else (host, 1935))


@pytest.mark.parametrize(
    ("address", "listening", "own"),
    [
        (("127.0.0.1", 1935), [("127.0.0.1", 1935)], True),
        (("127.0.0.1", 1935), [("127.0.0.1", 1936)], False),
        (("127.0.0.1", 1935), [("127.0.0.2", 1935)], False),
        (("127.0.0.1", 1935), [("0.0.0.0", 1935)], True),
        (("127.0.0.1", 1935), [("::", 1935)], False),
        (("127.0.0.1", 1935), [("::", 1935), ("0.0.0.0", 1935)], True),
        (("::ffff:127.0.0.1", 1935, 0, 0), [("127.0.0.1", 1935)], True),
        (("127.5.5.5", 1935), [("0.0.0.0", 1935)], True),
        (("192.0.2.1", 1935), [("0.0.0.0", 1935)], False),
        # It may have come here by a translation of addresses that leaves it as it is.
        (("192.0.2.1", 1935), [("192.0.2.1", 1935)], True),
        (("127.0.0.1", 1935), [], False),
    ],
)
def test_is_listened_on_finds_the_listener_that_an_address_leads_to(address, listening, own):
    assert is_listened_on(address, listening) is own


def test_a_listener_for_every_address_accepts_ipv4():
    listener = Listener(ListenAddress("", 0), lambda _: None)
    try:
        assert is_listened_on(("127.0.0.1", listener.port), listener.addresses)
        assert not is_listened_on(("127.0.0.1", listener.port + 1), listener.addresses)
    finally:
        listener.close()


def test_a_listener_for_one_address_accepts_only_that():
    listener = Listener(ListenAddress("127.0.0.1", 0), lambda _: None)
    try:
        assert listener.addresses == (("127.0.0.1", listener.port),)
    finally:
        listener.close()
