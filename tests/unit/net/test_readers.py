"""Reading in the event loop: what consumes it, what wakes the greenlet, ends and errors, lazy reads."""

from __future__ import annotations

import functools

import gevent
import pytest
from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError

from rtmpd.errors import DeadlineExceeded, LimitExceeded, TransportClosed
from rtmpd.net import readers as module
from rtmpd.net.readers import Pace, readers
from rtmpd.net.transport import RECEIVE_BYTES, Transport, deadline
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.protocol.chunk import frame_message
from rtmpd.protocol.endpoint import Endpoint
from rtmpd.protocol.intake import FrameIntake
from rtmpd.util.speed import PURE
from tests.unit.util.test_deadline import WORK_S, Bystander, Clock

LIMIT_S = 10


@pytest.fixture(params=["tcp", "unix"])
def pair(request, make_transport):
    return make_transport(Transport, tcp=request.param == "tcp")


@pytest.fixture
def lazily():
    """Set the interval of lazy reads."""
    yield readers().reload
    readers().reload(0)


def reset(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()


class Consumer:
    """Takes what comes; a line that ends with ``!`` is for the greenlet."""

    def __init__(self):
        self.taken = bytearray()
        self.calls = 0
        self.in_loop = True

    def __call__(self, data):
        self.in_loop = self.in_loop and gevent.getcurrent() is gevent.get_hub()
        self.calls += 1
        data = bytes(data)
        self.taken += data
        return bytes(self.taken) if data.endswith(b"!") else None


def wait_until(condition):
    with gevent.Timeout(LIMIT_S):
        while not condition():
            gevent.sleep(0.001)


def test_what_comes_is_consumed_in_the_event_loop_until_the_consumer_has_something_for_the_greenlet(pair):
    transport, peer = pair
    consumer = Consumer()
    waiting = gevent.spawn(transport.recv_while, consumer)
    for piece in (b"a", b"bc", b"d"):
        peer.sendall(piece)
        wait_until(lambda piece=piece: consumer.taken.endswith(piece))
        assert not waiting.ready()
    peer.sendall(b"e!")
    assert waiting.get(timeout=LIMIT_S) == b"abcde!"
    assert consumer.in_loop


def test_data_from_before_is_consumed_and_nothing_is_read_between_two_calls(pair):
    transport, peer = pair
    peer.sendall(b"one!")
    assert transport.recv_while(Consumer()) == b"one!"
    peer.sendall(b"two")
    consumer = Consumer()
    gevent.sleep(0.01)
    peer.sendall(b"three!")
    assert transport.recv_while(consumer) == b"twothree!"
    # The blocking way may be used in between.
    peer.sendall(b"four")
    assert transport.recv() == b"four"
    peer.sendall(b"five!")
    assert transport.recv_while(Consumer()) == b"five!"


def test_much_data_is_read_in_several_rounds(pair):
    transport, peer = pair
    sent = bytes(4 * RECEIVE_BYTES) + b"!"
    sending = gevent.spawn(peer.sendall, sent)
    consumer = Consumer()
    assert transport.recv_while(consumer) == sent
    assert consumer.calls >= 5
    sending.get(timeout=LIMIT_S)


@pytest.mark.parametrize("data", [b"", b"rest"])
def test_an_end_behind_data_is_noticed(pair, data):
    transport, peer = pair
    peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
    consumer = Consumer()
    with gevent.Timeout(LIMIT_S), pytest.raises(TransportClosed, match="closed by the peer"):
        transport.recv_while(consumer)
    assert consumer.taken == data


def test_a_reset_is_noticed_and_so_is_a_close_by_the_server(make_transport):
    transport, peer = make_transport(Transport, tcp=True)
    waiting = gevent.spawn(transport.recv_while, Consumer())
    gevent.sleep(0)
    transport.close(CloseReason(CloseKind.EXPELLED, "kicked"))
    with pytest.raises(TransportClosed, match="kicked"):
        waiting.get(timeout=LIMIT_S)
    other, peer = make_transport(Transport, tcp=True)
    waiting = gevent.spawn(other.recv_while, Consumer())
    gevent.sleep(0)
    reset(peer)
    with pytest.raises(TransportClosed, match="reset"):
        waiting.get(timeout=LIMIT_S)


def test_what_the_consumer_raises_is_raised_in_the_greenlet(pair):
    transport, peer = pair

    def consume(data):
        raise ValueError(bytes(data))

    peer.sendall(b"bad")
    with gevent.Timeout(LIMIT_S), pytest.raises(ValueError, match="bad"):
        transport.recv_while(consume)
    peer.sendall(b"good!")
    assert transport.recv_while(Consumer()) == b"good!"


def test_a_deadline_ends_the_wait_and_data_that_comes_later_is_kept(pair):
    transport, peer = pair
    with pytest.raises(DeadlineExceeded), deadline(0.01, "the test"):
        transport.recv_while(Consumer())
    peer.sendall(b"late!")
    gevent.sleep(0.01)
    assert transport.recv_while(Consumer()) == b"late!"


def test_a_transport_that_is_disposed_of_by_what_came_for_another_one_is_not_read(make_transport):
    pairs = [make_transport(Transport) for _ in range(2)]
    consumed = []

    def consume(number, data):
        consumed.append(bytes(data))
        other = pairs[1 - number][0]
        if other.fileno() >= 0:
            other.dispose()
        return True

    waiting = [gevent.spawn(one.recv_while, functools.partial(consume, number)) for number, (one, _) in enumerate(pairs)]
    gevent.sleep(0)
    for _, peer in pairs:
        peer.sendall(b"x")
    gevent.joinall(waiting, timeout=0.5, count=1)
    gevent.sleep(0.01)
    assert consumed == [b"x"]
    gevent.killall(waiting)


def test_a_socket_that_is_always_full_does_not_hold_the_event_loop(make_transport):
    floods = [make_transport(Transport) for _ in range(20)]
    quiet, quiet_peer = make_transport(Transport)
    consumers = [Consumer() for _ in floods]
    greenlets = [gevent.spawn(one.recv_while, each) for (one, _), each in zip(floods, consumers, strict=True)]
    quiet_consumer = Consumer()
    greenlets.append(gevent.spawn(quiet.recv_while, quiet_consumer))

    def flood(peer):
        while True:
            peer.sendall(bytes(1 << 16))

    senders = [gevent.spawn(flood, peer) for _, peer in floods]
    for number in range(10):
        quiet_peer.sendall(b"%d" % number)
        wait_until(lambda number=number: quiet_consumer.taken.endswith(b"%d" % number))
    assert all(each.calls for each in consumers)
    gevent.killall([*senders, *greenlets])


def test_sockets_that_end_together_leave_turns_to_the_event_loop(make_transport, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    pairs = [make_transport(Transport) for _ in range(100)]
    ended = []

    def read(number):
        transport = pairs[number][0]
        try:
            transport.recv_while(Consumer()) if number % 2 else transport.recv()
        except TransportClosed:
            clock.work()
            ended.append(number)

    greenlets = [gevent.spawn(read, number) for number in range(len(pairs))]
    gevent.sleep(0)
    for _, peer in pairs:
        peer.close()
    bystander = Bystander(clock)
    gevent.joinall(greenlets, LIMIT_S, raise_error=True)
    bystander.greenlet.kill()
    assert sorted(ended) == list(range(len(pairs)))
    assert bystander.longest_s <= 0.001 + WORK_S


def test_clients_that_leave_together_do_not_delay_a_publisher(make_transport, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    pairs = [make_transport(Transport) for _ in range(50)]
    publisher, encoder = make_transport(Transport)
    ended, ended_before = [], []

    def read(transport):
        with pytest.raises(TransportClosed):
            transport.recv_while(Consumer())
        clock.work()
        ended.append(transport)

    greenlets = [gevent.spawn(read, transport) for transport, _ in pairs]
    media = gevent.spawn(publisher.recv_while, lambda data: ended_before.append(len(ended)))
    gevent.sleep(0)
    publisher.set_pace(Pace.EAGER)
    for _, peer in pairs:
        peer.close()
    encoder.sendall(b"frame")
    gevent.joinall(greenlets, LIMIT_S, raise_error=True)
    assert len(ended) == len(pairs)
    assert ended_before[0] <= 4
    media.kill()


def test_a_descriptor_that_is_used_again_is_read_as_new(make_transport):
    first, peer = make_transport(Transport)
    peer.sendall(b"a")
    assert first.recv() == b"a"
    number = first.fileno()
    first.dispose()
    second, peer = make_transport(Transport)
    assert number in (second.fileno(), peer.fileno())
    peer.sendall(b"b!")
    assert second.recv_while(Consumer()) == b"b!"


@pytest.mark.parametrize("second", ["recv", "recv_while"])
def test_two_greenlets_can_not_read_one_connection(pair, second):
    transport, _ = pair
    first = gevent.spawn(transport.recv_while, Consumer())
    gevent.sleep(0)
    with pytest.raises(ConcurrentObjectUseError):
        transport.recv() if second == "recv" else transport.recv_while(Consumer())
    first.kill()


# Rests ------------------------------------------------------------------------------------------------------------------


def test_publishers_are_not_read_during_a_rest_and_everything_that_has_come_is_read_at_its_end(make_transport):
    publishers = [make_transport(Transport) for _ in range(3)]
    consumers = [Consumer() for _ in publishers]
    waiting = [gevent.spawn(each.recv_while, consumer) for (each, _), consumer in zip(publishers, consumers, strict=True)]
    player, client = make_transport(Transport)
    playing = gevent.spawn(player.recv_while, Consumer())
    gevent.sleep(0)
    for transport, _ in publishers:
        transport.set_pace(Pace.EAGER)
    readers().rest()
    for _, encoder in publishers:
        for piece in (b"a", b"b"):
            encoder.sendall(piece)
            gevent.sleep(0.002)
    # More than one read takes.
    publishers[0][1].sendall(bytes(RECEIVE_BYTES))
    client.sendall(b"command!")
    assert playing.get(timeout=LIMIT_S) == b"command!"
    assert not any(consumer.calls for consumer in consumers)
    assert not readers().read_waiting()
    assert [len(consumer.taken) for consumer in consumers] == [RECEIVE_BYTES + 2, 2, 2]
    assert [consumer.calls for consumer in consumers] == [2, 1, 1]
    readers().end_rest()
    for _, encoder in publishers:
        encoder.sendall(b"!")
    gevent.joinall(waiting, LIMIT_S, raise_error=True)


def test_a_rest_may_outlast_the_last_socket(make_transport):
    transport, _ = make_transport(Transport)
    waiting = gevent.spawn(transport.recv_while, Consumer())
    gevent.sleep(0)
    readers().rest()
    waiting.kill()
    transport.dispose()
    readers().end_rest()
    other, peer = make_transport(Transport)
    peer.sendall(b"a!")
    assert other.recv_while(Consumer()) == b"a!"


# Lazy reads -------------------------------------------------------------------------------------------------------------


def test_a_lazy_socket_is_read_at_intervals_and_eagerly_at_once_when_it_is_wanted(pair, lazily):
    transport, peer = pair
    lazily(0.02)
    consumer = Consumer()
    waiting = gevent.spawn(transport.recv_while, consumer)
    gevent.sleep(0)
    transport.set_pace(Pace.LAZY)
    for _ in range(20):
        peer.sendall(b"x")
        gevent.sleep(0.002)
    wait_until(lambda: len(consumer.taken) == 20)
    assert consumer.calls < 10
    lazily(3600)
    gevent.sleep(0.05)
    peer.sendall(b"y")
    gevent.sleep(0.05)
    before = bytes(consumer.taken)
    transport.set_pace(Pace.EAGER)
    wait_until(lambda: consumer.taken.endswith(b"y"))
    assert len(before) in (20, 21)
    peer.sendall(b"!")
    assert waiting.get(timeout=LIMIT_S).endswith(b"y!")


def test_without_an_interval_no_socket_is_lazy_and_a_reload_to_0_makes_all_eager(pair, lazily):
    transport, peer = pair
    consumer = Consumer()
    waiting = gevent.spawn(transport.recv_while, consumer)
    gevent.sleep(0)
    lazily(3600)
    transport.set_pace(Pace.LAZY)
    peer.sendall(b"x")
    gevent.sleep(0.01)
    assert not consumer.taken
    lazily(0)
    wait_until(lambda: consumer.taken == b"x")
    transport.set_pace(Pace.LAZY)
    peer.sendall(b"!")
    assert waiting.get(timeout=LIMIT_S) == b"x!"


def test_a_lazy_socket_is_read_until_it_is_empty(pair, lazily):
    transport, peer = pair
    lazily(0.02)
    consumer = Consumer()
    waiting = gevent.spawn(transport.recv_while, consumer)
    gevent.sleep(0)
    transport.set_pace(Pace.LAZY)
    sent = bytes(3 * RECEIVE_BYTES)
    sending = gevent.spawn(peer.sendall, sent)
    wait_until(lambda: len(consumer.taken) == len(sent))
    sending.get(timeout=LIMIT_S)
    peer.sendall(b"!")
    assert waiting.get(timeout=LIMIT_S) == sent + b"!"


@pytest.mark.parametrize("data", [b"", b"rest"])
def test_a_lazy_socket_that_ends_is_noticed(pair, lazily, data):
    transport, peer = pair
    lazily(0.005)
    consumer = Consumer()
    waiting = gevent.spawn(transport.recv_while, consumer)
    gevent.sleep(0)
    transport.set_pace(Pace.LAZY)
    peer.sendall(data)
    peer.close()
    with pytest.raises(TransportClosed):
        waiting.get(timeout=LIMIT_S)
    assert consumer.taken == data


def test_a_lazy_socket_that_nothing_waits_for_costs_nothing(pair, lazily, monkeypatch):
    transport, peer = pair
    lazily(0.005)
    consumer = Consumer()
    peer.sendall(b"one!")
    assert transport.recv_while(consumer) == b"one!"
    transport.set_pace(Pace.LAZY)
    rounds = []
    read = module.read_each
    monkeypatch.setattr(module, "read_each", lambda events, sockets: (rounds.append(len(events)), read(events, sockets)))
    peer.sendall(b"two!")
    gevent.sleep(0.1)
    # One event; then nothing is ready until something waits.
    assert sum(rounds) == 1
    assert len(rounds) < 50
    with gevent.Timeout(LIMIT_S):
        assert transport.recv_while(consumer) == b"one!two!"


def test_a_lazy_socket_may_be_disposed_of(pair, lazily):
    transport, peer = pair
    lazily(0.005)
    waiting = gevent.spawn(transport.recv_while, Consumer())
    gevent.sleep(0)
    transport.set_pace(Pace.LAZY)
    waiting.kill()
    transport.dispose()
    peer.close()
    gevent.sleep(0.02)


# The intake of a publisher, which the compiled readers call themselves ---------------------------------------------------


@pytest.fixture(params=["in use", "pure"])
def intake_of(request, monkeypatch):
    """Make the intake of a connection without sources: it leaves whole messages for the greenlet."""
    form = FrameIntake
    if request.param == "pure":
        form = PURE["FrameIntake"]
        monkeypatch.setattr(module, "read_each", PURE["read_each"])

    def make():
        endpoint = Endpoint(message_limit_bytes=1 << 20)
        made = form(endpoint, {}, bytes, lambda messages: messages or None)
        made.direct = True
        return made, endpoint

    return make


def test_a_publisher_is_read_until_there_is_something_for_its_greenlet(make_transport, intake_of):
    transport, peer = make_transport(Transport, tcp=True)
    transport.interactive = False
    intake, endpoint = intake_of()
    data = frame_message(6, 20, 1, 0, bytes(range(250)), 128)
    waiting = gevent.spawn(transport.recv_while, intake)
    for start in range(0, len(data), 50):
        assert not waiting.ready()
        peer.sendall(data[start : start + 50])
        wait_until(lambda start=start: endpoint.bytes_received == min(len(data), start + 50))
    assert [message.payload for message in waiting.get(timeout=LIMIT_S)] == [bytes(range(250))]
    # What comes while nothing waits is kept.
    peer.sendall(data)
    gevent.sleep(0.01)
    assert endpoint.bytes_received == len(data)
    with gevent.Timeout(LIMIT_S):
        assert len(transport.recv_while(intake)) == 1
    # While it is not direct, the connection gets bytes.
    intake.direct = False
    peer.sendall(b"bytes")
    assert transport.recv_while(intake) == b"bytes"


def test_a_long_message_of_a_publisher_takes_several_full_reads(make_transport, intake_of):
    transport, peer = make_transport(Transport, tcp=True)
    transport.interactive = False
    intake, endpoint = intake_of()
    payload = bytes(5 * RECEIVE_BYTES)
    endpoint.reader.chunk_size = 65536
    sending = gevent.spawn(peer.sendall, frame_message(6, 20, 1, 0, payload, 65536))
    with gevent.Timeout(LIMIT_S):
        assert [len(message.payload) for message in transport.recv_while(intake)] == [len(payload)]
    sending.get(timeout=LIMIT_S)


def test_what_ends_a_publisher_is_raised_in_its_greenlet(make_transport, intake_of):
    for ending, error, text in (
        (lambda peer: peer.sendall(b"\xc3" * 20), LimitExceeded, "message_limit_bytes is 1048576"),
        (lambda peer: peer.close(), TransportClosed, "closed by the peer"),
        (reset, TransportClosed, "reset"),
    ):
        transport, peer = make_transport(Transport, tcp=True)
        transport.interactive = False
        intake, endpoint = intake_of()
        waiting = gevent.spawn(transport.recv_while, intake)
        peer.sendall(b"\x03")
        wait_until(lambda endpoint=endpoint: endpoint.bytes_received == 1)
        ending(peer)
        with pytest.raises(error, match=text):
            waiting.get(timeout=LIMIT_S)
