"""The transport of a body by HTTP/2: what the fan-out and viewers ask of a transport."""

from __future__ import annotations

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.errors import DeadlineExceeded, TransportClosed
from rtmpd.http.http2_body import BodyTransport
from rtmpd.phases import CloseKind, CloseReason

REASON = CloseReason(CloseKind.COMMAND, "the stream has ended")
LIMIT_S = 5
CHUNK = bytes(range(256)) * 100


@pytest.fixture
def body():
    return BodyTransport("127.0.0.1:5555")


def fill(body):
    taken = 0
    try:
        while True:
            taken += body.try_send(CHUNK)
    except BlockingIOError:
        return taken


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=10), st.integers(1, 30))
def test_what_is_taken_comes_out_in_order(pieces, size):
    body = BodyTransport("127.0.0.1:5555")
    for piece in pieces:
        view = bytearray(piece)
        assert body.try_send(memoryview(view)) == len(piece)
        # The pages of a log are used again.
        view[:] = bytes(len(view))
    body.close(REASON)
    found = []
    while data := body.take(size):
        assert len(data) <= size
        found.append(data)
    assert b"".join(found) == b"".join(pieces)
    assert body.held_bytes == 0


def test_so_much_is_taken_and_no_more(body):
    taken = fill(body)
    assert 64 << 10 <= taken == body.held_bytes < 200 << 10
    assert body.take(1 << 20) == (CHUNK * 10)[:taken]
    body.limit_unsent(4096)
    assert fill(body) == len(CHUNK)
    assert body.try_send.__self__ is body
    body.limit_unsent(1 << 30)
    assert fill(body) < 100 << 10
    # A large frame is taken in few pieces.
    assert BodyTransport("").try_send(bytes(1 << 20)) == 128 << 10


def test_room_is_reported_in_the_event_loop(body):
    called = []

    def callback():
        assert gevent.getcurrent() is gevent.get_hub()
        called.append(body.held_bytes)
        body.unwatch_writable()

    fill(body)
    body.watch_writable(callback)
    gevent.sleep(0)
    assert not called
    while body.held_bytes:
        body.take(16 << 10)
    gevent.sleep(0)
    assert called == [0]
    # There is room already.
    body.watch_writable(callback)
    gevent.sleep(0)
    assert called == [0, 0]
    body.watch_writable(callback)
    body.unwatch_writable()
    gevent.sleep(0)
    assert called == [0, 0]


def test_it_ends_behind_what_was_taken(body):
    waiting = gevent.spawn(body.take, 100)
    handler = gevent.spawn(body.recv_while, lambda data: None)
    gevent.sleep(0)
    body.try_send(b"last")
    body.close(REASON)
    body.close(CloseReason(CloseKind.SHUTDOWN, "another"))
    assert waiting.get(timeout=LIMIT_S) == b"last"
    assert body.take(100) == b""
    with pytest.raises(TransportClosed, match="the stream has ended"):
        handler.get(timeout=LIMIT_S)
    with pytest.raises(TransportClosed):
        body.ensure_open()
    with pytest.raises(BrokenPipeError):
        body.try_send(b"more")
    body.dispose()
    with pytest.raises(BrokenPipeError):
        body.try_send(b"more")


def test_all_is_sent_or_the_deadline_passes(body):
    data = CHUNK * 20
    sending = gevent.spawn(body.send_all, data, LIMIT_S)
    found = b""
    while len(found) < len(data):
        found += body.take(16 << 10)
    sending.get(timeout=LIMIT_S)
    assert found == data
    with pytest.raises(DeadlineExceeded):
        body.send_all(data, 0.05)
    sending = gevent.spawn(body.send_all, data, LIMIT_S)
    gevent.sleep(0)
    body.close(REASON)
    with pytest.raises(TransportClosed):
        sending.get(timeout=LIMIT_S)
