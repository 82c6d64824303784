"""A TLS transport delivers all bytes in order for any behaviour of the socket, and keeps a bounded number of them."""

from __future__ import annotations

import contextlib
import ssl

import gevent
import pytest
from gevent import socket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtmpd.net.tls_transport import KEPT_LIMIT_BYTES, RecordCounter, TlsTransport
from rtmpd.net.transport import RECEIVE_BYTES
from tests.unit.net.tls_peer import Peer

SIZES = st.one_of(st.integers(1, 300), st.sampled_from([4096, 16383, 16384, 16385, 32768, 40_000]), st.integers(1, 70_000))


@pytest.fixture(scope="module")
def contexts(authority):
    return authority.server_context(authority.issue("localhost")), authority.client_context()


def connect(contexts, send_buffer=4096):
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    transport, peer = TlsTransport(ours, "unix"), Peer(theirs, contexts[1])
    shaking = gevent.spawn(peer.handshake)
    transport.secure(contexts[0], 10)
    shaking.get(timeout=10)
    return transport, peer


def take(peer, limit):
    """Have the peer read at most this much from its socket; return what that decrypts to."""
    with contextlib.suppress(BlockingIOError):
        # The interpreter's socket: gevent's waits.
        peer._in.write(peer.sock._sock.recv(limit))
    plain = bytearray()
    try:
        while True:
            plain += peer.tls.read(65536)
    except ssl.SSLWantReadError:
        return bytes(plain)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(["send", "read", "loop"]), SIZES), max_size=40))
def test_taken_bytes_arrive_whole_and_in_order(contexts, steps):
    transport, peer = connect(contexts)
    taken, got, number = bytearray(), bytearray(), 0
    for what, size in steps:
        if what == "send":
            data = bytes((number + index) & 255 for index in range(min(size, 251))) * (size // 251 + 1)
            number += 1
            kept = len(transport._rest)
            try:
                accepted = transport.try_send(data[:size])
            except BlockingIOError:
                assert kept
            else:
                assert 0 < accepted <= size
                assert accepted == size or transport._rest
                taken += data[:accepted]
            assert len(transport._rest) <= KEPT_LIMIT_BYTES
        elif what == "read":
            got += take(peer, size)
        else:
            gevent.sleep(0)
        assert bytes(taken).startswith(bytes(got))
    with gevent.Timeout(10):
        while len(got) < len(taken):
            got += take(peer, 65536)
            gevent.sleep(0)
    assert got == taken
    assert not transport._rest
    peer.sock.close()
    transport.dispose()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(SIZES, min_size=1, max_size=8), cuts=st.lists(st.integers(1, 20_000), max_size=20))
def test_received_bytes_are_read_in_any_pieces(contexts, sizes, cuts):
    transport, peer = connect(contexts, 1 << 20)
    plain = b"".join(bytes([index]) * size for index, size in enumerate(sizes))
    records = b"".join(peer.encrypt(bytes([index]) * size) for index, size in enumerate(sizes))

    def send():
        rest = records
        for cut in cuts:
            peer.sock.sendall(rest[:cut])
            rest = rest[cut:]
            gevent.sleep(0)
        peer.sock.sendall(rest)

    sending = gevent.spawn(send)
    got = b""
    with gevent.Timeout(10):
        while len(got) < len(plain):
            piece = transport.recv()
            assert 0 < len(piece) <= RECEIVE_BYTES
            got += piece
    assert got == plain
    sending.join()
    peer.sock.close()
    transport.dispose()


@given(sizes=st.lists(st.integers(0, 20_000), max_size=6), cuts=st.lists(st.integers(1, 9000)), end=st.integers(0, 60_000))
def test_records_are_counted(sizes, cuts, end):
    data = b"".join(b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size) for size in sizes)[:end]
    counter = RecordCounter()
    rest = data
    for cut in cuts:
        counter.feed(rest[:cut])
        rest = rest[cut:]
    counter.feed(rest)
    position, missing = 0, 0
    for size in sizes:
        if position >= len(data):
            break
        if len(data) - position < 5:
            missing = 5 - (len(data) - position)
            break
        position += 5 + size
        missing = max(0, position - len(data))
    assert counter.missing == missing
