from __future__ import annotations

import functools
import socket as stdlib_socket
import struct
import time
from contextlib import suppress

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from rtmpd.errors import DeadlineExceeded, TransportClosed
from rtmpd.net.transport import RECEIVE_BYTES, Transport, deadline, format_address
from rtmpd.phases import CloseKind, CloseReason

LIMIT_S = 10  # for what should take no time


@pytest.fixture
def tcp(make_transport):
    """Make a transport and the peer's socket, connected over loopback."""
    return functools.partial(make_transport, Transport, tcp=True)


@pytest.fixture
def pair(make_transport):
    """Return a transport and the peer's socket, connected by a pair of Unix sockets."""
    return make_transport(Transport)


def fill(transport):
    """Send until nothing fits."""
    sent = 0
    while True:
        try:
            sent += transport.try_send(bytes(65536))
        except BlockingIOError:
            return sent


def read_forever(transport):
    while True:
        assert transport.recv()


def read_all(peer):
    pieces = []
    while data := peer.recv(1 << 16):
        pieces.append(data)
    return b"".join(pieces)


def reset(peer):
    """Close so that the other side gets a reset."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


# Reading ----------------------------------------------------------------------------------------------------------------


def test_what_the_peer_sends_is_read(tcp):
    transport, peer = tcp()
    peer.sendall(b"one")
    assert transport.recv() == b"one"
    reading = gevent.spawn(transport.recv)
    gevent.sleep(0)
    assert not reading.ready()
    peer.sendall(b"two")
    assert reading.get(timeout=LIMIT_S) == b"two"


def test_unix_sockets_work(pair):
    transport, peer = pair
    peer.sendall(b"one")
    assert transport.recv() == b"one"
    transport.limit_unsent(1000)
    transport.send_all(b"two", LIMIT_S)
    assert peer.recv(10) == b"two"


def test_the_peers_end_is_reported(tcp):
    transport, peer = tcp()
    peer.sendall(b"last words")
    peer.close()
    assert transport.recv() == b"last words"
    with pytest.raises(TransportClosed, match=r"^closed by the peer$"):
        transport.recv()


def test_a_reset_says_so(tcp):
    transport, peer = tcp()
    reading = gevent.spawn(transport.recv)
    gevent.sleep(0)
    reset(peer)
    with pytest.raises(TransportClosed, match=r"^closed by the peer \(connection reset\)$"):
        reading.get(timeout=LIMIT_S)


def until_gone(transport, message):
    """Wait until a look at the connection finds that it is gone."""

    def look():
        while True:
            transport.ensure_open()
            gevent.sleep(0.001)

    with gevent.Timeout(LIMIT_S), pytest.raises(TransportClosed, match=message):
        look()


def test_ensure_open_takes_no_bytes(tcp):
    transport, peer = tcp()
    transport.ensure_open()
    peer.sendall(b"waiting")
    transport.ensure_open()
    assert transport.recv() == b"waiting"
    peer.close()
    until_gone(transport, r"^closed by the peer$")


def test_ensure_open_raises_after_a_reset_and_after_close(tcp):
    transport, peer = tcp()
    reset(peer)
    until_gone(transport, r"^closed by the peer \(connection reset\)$")
    transport, peer = tcp()
    transport.close(CloseReason(CloseKind.EXPELLED, "we had enough"))
    until_gone(transport, r"^we had enough$")


def test_delivered_bytes_are_those_that_the_peers_host_has_acknowledged(tcp):
    transport, _ = tcp()
    before = transport.delivery().delivered
    transport.send_all(b"x" * 1000, LIMIT_S)
    with gevent.Timeout(LIMIT_S):
        while transport.delivery().outstanding:
            gevent.sleep(0.001)
    # The kernel counts the SYN as a byte, and some take note of it late.
    assert 1000 <= transport.delivery().delivered - before <= 1001


def test_what_a_peer_does_not_read_stays_outstanding(tcp):
    transport, _ = tcp()
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += transport.try_send(bytes(100_000))
    gevent.sleep(0.1)
    before = transport.delivery()
    gevent.sleep(0.1)
    assert transport.delivery() == before
    assert 0 < before.outstanding < sent
    assert sent <= before.delivered + before.outstanding <= sent + 1


def test_a_lost_connection_has_delivered_nothing(tcp):
    transport, _ = tcp()
    transport._sock.close()
    assert transport.delivery() == (0, 0)


def test_unix_sockets_have_delivered_nothing(pair):
    transport, _ = pair
    assert transport.delivery() == (0, 0)


def test_a_read_is_bounded(tcp):
    transport, peer = tcp()
    sending = gevent.spawn(peer.sendall, bytes(RECEIVE_BYTES * 5))
    got = [len(transport.recv())]
    while sum(got) < RECEIVE_BYTES * 5:
        got.append(len(transport.recv()))
    sending.get(timeout=LIMIT_S)
    assert max(got) <= RECEIVE_BYTES
    assert sum(got) == RECEIVE_BYTES * 5


@pytest.mark.parametrize("size", [100, RECEIVE_BYTES])
def test_reading_gives_way_though_there_is_always_more(tcp, size):
    """A peer that sends faster than we read must not hold the event loop."""
    transport, peer = tcp()
    turns = [0]

    def other():
        while True:
            turns[0] += 1
            gevent.sleep(0)

    def flood():
        while True:
            peer.sendall(bytes(size))
            gevent.sleep(0)

    others = [gevent.spawn(other), gevent.spawn(flood)]
    gevent.sleep(0)
    reads = 0
    for _ in range(10):
        before, begun_s = turns[0], time.thread_time()
        while turns[0] == before:
            transport.recv()
            reads += 1
            # CPU time, since the machine may be busy: a slice, and the work of one read.
            assert time.thread_time() - begun_s < 0.02
    assert reads >= 10
    gevent.killall(others)


def test_replies_are_acknowledged_at_once_as_long_as_it_is_interactive(tcp):
    transport, peer = tcp()
    assert transport.interactive
    peer.sendall(b"x")
    transport.recv()
    transport.interactive = False
    peer.sendall(b"y")
    assert transport.recv() == b"y"


# Deadlines --------------------------------------------------------------------------------------------------------------


def test_a_deadline_holds_though_the_peer_sends_byte_by_byte(tcp):
    transport, peer = tcp()

    def drip():
        while True:
            peer.sendall(b".")
            gevent.sleep(0.01)

    dripping = gevent.spawn(drip)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"^handshake took longer than 0\.15 s$") as caught, deadline(0.15, "handshake"):
        read_forever(transport)
    assert 0.1 < time.monotonic() - begun < 5
    assert (caught.value.phase, caught.value.limit_s) == ("handshake", 0.15)
    dripping.kill()


def test_a_deadline_that_was_met_leaves_no_timer(tcp):
    transport, peer = tcp()
    peer.sendall(b"x")
    with deadline(0.02, "handshake"):
        transport.recv()
    gevent.sleep(0.05)


def test_the_outer_deadline_holds_while_something_is_sent(tcp):
    transport, _ = tcp(send_buffer=4096)
    with pytest.raises(DeadlineExceeded, match=r"^handshake took"), deadline(0.05, "handshake"):
        transport.send_all(bytes(1 << 20), LIMIT_S)
    assert not transport.sending


# Writing ----------------------------------------------------------------------------------------------------------------


def test_everything_is_sent_however_slowly_it_is_read(tcp):
    transport, peer = tcp(send_buffer=4096)
    data = bytes(range(256)) * 4000
    sending = gevent.spawn(transport.send_all, data, LIMIT_S)
    gevent.sleep(0)
    assert transport.sending
    got = b""
    while len(got) < len(data):
        got += peer.recv(10_000)
        gevent.sleep(0)
    sending.get(timeout=LIMIT_S)
    assert got == data
    assert (transport.bytes_sent, transport.sending) == (len(data), False)


def test_bytes_that_wait_to_be_sent_are_held(tcp):
    transport, peer = tcp()
    sending = gevent.spawn(transport.send_all, bytes(20_000_000), LIMIT_S)
    with gevent.Timeout(LIMIT_S):
        while not transport.held_bytes:
            gevent.sleep(0.001)
    assert 1_000_000 < transport.held_bytes < 20_000_000
    reading = gevent.spawn(read_all, peer)
    sending.get()
    assert transport.held_bytes == 0
    transport.close(CloseReason(CloseKind.EXPELLED, "enough"))
    reading.get(timeout=LIMIT_S)


def test_send_all_has_a_deadline(tcp):
    transport, _ = tcp(send_buffer=4096)
    with pytest.raises(DeadlineExceeded, match=r"^sending took longer than 0\.05 s$"):
        transport.send_all(bytes(1 << 20), 0.05)
    assert 0 < transport.bytes_sent < 1 << 20
    assert not transport.sending


def test_sending_on_a_lost_connection_raises(tcp):
    transport, peer = tcp(send_buffer=4096)
    sending = gevent.spawn(transport.send_all, bytes(1 << 20), LIMIT_S)
    gevent.sleep(0)
    reset(peer)
    with pytest.raises(TransportClosed, match=r"^closed by the peer \(connection reset\)$"):
        sending.get(timeout=LIMIT_S)


def test_sending_nothing_does_nothing(tcp):
    transport, _ = tcp()
    transport.send_all(b"", LIMIT_S)
    assert transport.bytes_sent == 0


def test_try_send_takes_what_fits_and_then_nothing(tcp):
    transport, peer = tcp(send_buffer=4096)
    sent = fill(transport)
    with pytest.raises(BlockingIOError):
        transport.try_send(b"x")
    transport.close(CloseReason(CloseKind.EXPELLED, "done"))
    assert len(read_all(peer)) == sent
    assert transport.bytes_sent == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_try_send_takes_any_kind_of_bytes(tcp, kind):
    transport, peer = tcp()
    assert transport.try_send(kind(b"media")) == 5
    assert peer.recv(10) == b"media"


def test_try_send_on_a_closed_connection_fails(tcp):
    transport, _ = tcp()
    transport.close(CloseReason(CloseKind.EXPELLED, "done"))
    with pytest.raises(OSError, match="Broken pipe"):
        transport.try_send(b"x")
    transport.dispose()
    with pytest.raises(OSError, match="Bad file descriptor"):
        transport.try_send(b"x")


def test_watch_writable_calls_back_until_it_is_unwatched(tcp):
    transport, peer = tcp(send_buffer=4096)
    sent = fill(transport)
    calls = []
    enough = Event()

    def writable():
        calls.append(transport.try_send(b"x"))
        if len(calls) == 3:
            transport.unwatch_writable()
            enough.set()

    transport.watch_writable(writable)
    gevent.sleep(0.01)
    assert calls == []
    got = 0
    while got < sent:
        got += len(peer.recv(1 << 16))
        gevent.sleep(0)
    assert enough.wait(LIMIT_S)
    gevent.sleep(0.01)
    assert calls == [1, 1, 1]


def test_unwatching_twice_is_harmless(tcp):
    transport, _ = tcp()
    transport.unwatch_writable()
    transport.watch_writable(lambda: None)
    transport.unwatch_writable()
    transport.unwatch_writable()


def test_watch_writable_calls_back_when_the_peer_has_closed(tcp):
    transport, peer = tcp(send_buffer=4096)
    fill(transport)
    called = Event()
    transport.watch_writable(called.set)
    reset(peer)
    assert called.wait(LIMIT_S)
    transport.unwatch_writable()


def test_limit_unsent_bounds_what_the_kernel_holds(tcp):
    transport, _ = tcp()
    before = transport.sock.getsockopt(socket.IPPROTO_TCP, stdlib_socket.TCP_NOTSENT_LOWAT)
    transport.limit_unsent(0)
    assert transport.sock.getsockopt(socket.IPPROTO_TCP, stdlib_socket.TCP_NOTSENT_LOWAT) == before
    transport.limit_unsent(123_456)
    assert transport.sock.getsockopt(socket.IPPROTO_TCP, stdlib_socket.TCP_NOTSENT_LOWAT) == 123_456


def test_small_messages_are_sent_at_once_and_dead_peers_noticed(tcp):
    transport, _ = tcp()
    assert transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert transport.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


# Closing ----------------------------------------------------------------------------------------------------------------


def test_closing_ends_a_read_in_another_greenlet_with_the_reason(tcp):
    transport, peer = tcp()
    reading = gevent.spawn(transport.recv)
    gevent.sleep(0)
    transport.close(CloseReason(CloseKind.STALLED, "it took nothing for 30 s"))
    with pytest.raises(TransportClosed, match=r"^it took nothing for 30 s$"):
        reading.get(timeout=LIMIT_S)
    assert peer.recv(1) == b""


def test_closing_ends_a_write_in_another_greenlet_with_the_reason(tcp):
    transport, _ = tcp(send_buffer=4096)
    sending = gevent.spawn(transport.send_all, bytes(1 << 20), LIMIT_S)
    gevent.sleep(0)
    transport.close(CloseReason(CloseKind.SHUTDOWN, "the server is stopping"))
    with pytest.raises(TransportClosed, match=r"^the server is stopping$"):
        sending.get(timeout=LIMIT_S)


def test_the_first_reason_counts(tcp):
    transport, _ = tcp()
    transport.close(CloseReason(CloseKind.EXPELLED, "first"))
    transport.close(CloseReason(CloseKind.EXPELLED, "second"))
    assert transport.close_reason == "first"
    with pytest.raises(TransportClosed, match=r"^first$"):
        transport.recv()
    with pytest.raises(TransportClosed, match=r"^first$"):
        transport.send_all(b"x", LIMIT_S)


def test_data_sent_before_close_is_delivered(tcp):
    transport, peer = tcp()
    transport.send_all(bytes(100_000), LIMIT_S)
    transport.close(CloseReason(CloseKind.EXPELLED, "done"))
    assert len(read_all(peer)) == 100_000


def test_closing_what_the_peer_has_closed_is_harmless(tcp):
    transport, peer = tcp()
    reset(peer)
    gevent.sleep(0.01)
    transport.close(CloseReason(CloseKind.EXPELLED, "done"))
    transport.dispose()
    transport.close(CloseReason(CloseKind.EXPELLED, "again"))


def test_a_disposed_transport_has_no_descriptor(tcp):
    transport, peer = tcp()
    transport.dispose()
    assert transport.sock.fileno() == -1
    assert peer.recv(1) == b""


def test_a_refusal_reaches_a_peer_that_is_still_sending(tcp):
    """Closing with unread data would make the kernel reset the connection, and the peer never reads why."""
    transport, peer = tcp()
    over = Event()

    def encoder():
        while not over.is_set():
            peer.sendall(bytes(10_000))
            gevent.sleep(0)

    sending = gevent.spawn(encoder)

    def refuse():
        transport.send_all(b"you are refused", LIMIT_S)
        transport.linger(LIMIT_S)
        transport.dispose()

    refusing = gevent.spawn(refuse)
    assert read_all(peer) == b"you are refused"
    over.set()
    sending.get(timeout=LIMIT_S)
    peer.close()
    refusing.get(timeout=LIMIT_S)


@pytest.mark.parametrize("flood", [False, True])
def test_lingering_has_an_end(tcp, flood):
    transport, peer = tcp()

    def encoder():
        while True:
            peer.sendall(bytes(100_000))
            gevent.sleep(0)

    sending = gevent.spawn(encoder) if flood else None
    begun = time.monotonic()
    transport.linger(0.1)
    assert 0.05 < time.monotonic() - begun < 5
    if sending is not None:
        sending.kill()


def test_lingering_ends_when_the_peer_has_closed(tcp):
    transport, peer = tcp()
    peer.close()
    begun = time.monotonic()
    transport.linger(LIMIT_S)
    assert time.monotonic() - begun < LIMIT_S / 2


# Addresses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 1935), "192.0.2.1:1935"),
        (("::1", 1935, 0, 0), "[::1]:1935"),
        (("2001:db8::1", 80, 0, 0), "[2001:db8::1]:80"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1%eth0]:80"),
        (("fe80::1%eth0.100", 80, 0, 2), "[fe80::1%eth0.100]:80"),
        (("::ffff:192.0.2.1", 1935, 0, 0), "192.0.2.1:1935"),
        (("::ffff:0:1", 1935, 0, 0), "[::ffff:0:1]:1935"),
        ("", "unix"),
        ("/run/rtmpd.sock", "/run/rtmpd.sock"),
    ],
)
def test_addresses_are_formatted(address, text):
    assert format_address(address) == text


@pytest.mark.parametrize(
    ("peer", "address"), [("192.0.2.1:50000", "192.0.2.1"), ("[2001:db8::1]:80", "[2001:db8::1]"), ("unix", "")]
)
def test_the_address_is_the_peer_without_its_port(pair, peer, address):
    transport, _ = pair
    transport.peer = peer
    assert transport.address == address
