"""Several players of one connection write to one socket, each message whole."""

from __future__ import annotations

import random

import gevent
import pytest
from gevent import socket

from rtmpd.net.transport import Transport
from rtmpd.phases import CloseKind, CloseReason, ConnectionPhase
from rtmpd.protocol.message import MessageType, UserControlType
from rtmpd.rtmp.connection import MessageStream
from rtmpd.rtmp.outlet import SharedOutlet
from rtmpd.rtmp.player import Player
from tests.unit.live.fakes import (
    CHUNK,
    FakeTransport,
    Scene,
    frame,
    keyframe,
    new_source,
    new_stream,
    new_subscriber,
    parse,
    settle,
)
from tests.unit.rtmp.fakes import ConnectionTransport, new_connection

LIMIT_S = 10


@pytest.fixture
def scenes():
    made = [Scene(), Scene()]
    yield made
    for scene in made:
        scene.close()


# The outlet alone --------------------------------------------------------------------------------------------------------


def test_bytes_that_the_socket_accepts_are_sent_at_once():
    transport = FakeTransport()
    outlet = SharedOutlet(transport)
    assert outlet.try_send(b"message") == 7
    assert transport.data == b"message"
    assert outlet.take_rest() == b""


@pytest.mark.parametrize("capacity", [0, 1, 6])
def test_a_message_is_accepted_whole_or_not_at_all(capacity):
    transport = FakeTransport(capacity)
    outlet = SharedOutlet(transport)
    assert outlet.try_send(b"message") == 7
    with pytest.raises(BlockingIOError):
        outlet.try_send(b"another")
    transport.capacity = 3
    if capacity < 4:
        with pytest.raises(BlockingIOError):
            outlet.try_send(b"another")
    transport.capacity = None
    assert outlet.try_send(b"another") == 7
    assert transport.data == b"messageanother"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_each_type_of_bytes_is_accepted_and_copied(kind):
    transport = FakeTransport(3)
    outlet = SharedOutlet(transport)
    data = bytearray(b"message")
    outlet.try_send(kind(data))
    data[:] = b"xxxxxxx"
    transport.capacity = None
    outlet.try_send(b"")
    assert transport.data == b"message"


def test_owed_bytes_are_sent_first():
    transport = FakeTransport(0)
    outlet = SharedOutlet(transport)
    outlet.owe(b"rest of a message,")
    with pytest.raises(BlockingIOError):
        outlet.try_send(b"message")
    transport.capacity = None
    outlet.try_send(b"message")
    assert transport.data == b"rest of a message,message"


def test_unsent_bytes_can_be_taken_back():
    outlet = SharedOutlet(FakeTransport(3))
    outlet.try_send(b"message")
    assert outlet.take_rest() == b"sage"
    assert outlet.take_rest() == b""


def test_callbacks_are_called_once_when_all_bytes_are_sent():
    transport = FakeTransport(0)
    outlet = SharedOutlet(transport)
    outlet.try_send(b"message")
    calls = []
    outlet.watch_writable(lambda: calls.append("first"))
    outlet.watch_writable(lambda: calls.append("second"))
    transport.take(3)
    assert calls == []
    transport.take()
    assert calls == ["first", "second"]
    assert not transport.watched
    assert transport.data == b"message"


def test_a_callback_that_blocks_again_is_called_again():
    transport = FakeTransport(0)
    outlet = SharedOutlet(transport)
    outlet.try_send(b"message")
    calls = []

    def first():
        calls.append("first")
        if len(calls) == 1:
            transport.capacity = 2
            outlet.try_send(b"more")
            outlet.watch_writable(first)

    outlet.watch_writable(first)
    transport.take()
    assert calls == ["first"]
    transport.take()
    assert calls == ["first", "first"]
    assert transport.data == b"messagemore"


def test_a_player_that_stops_waiting_does_not_affect_others():
    transport = FakeTransport(0)
    outlet = SharedOutlet(transport)
    outlet.try_send(b"message")
    calls = []
    outlet.watch_writable(lambda: calls.append("one"))
    outlet.unwatch_writable()
    outlet.watch_writable(lambda: calls.append("two"))
    transport.take()
    assert "two" in calls


def test_kept_bytes_are_sent_without_another_message(scenes):
    """The stream may have ended with it, or the next message may be a minute off."""
    transport = FakeTransport(100)
    scenes[0].video(keyframe("", 1000))
    scenes[0].fanout.join(new_subscriber(SharedOutlet(transport)))
    settle()
    transport.take()
    settle()
    assert [m.payload for m in parse(bytes(transport.data))] == [keyframe("", 1000)]
    assert not transport.watched


def test_a_send_on_a_failed_socket_raises():
    transport = FakeTransport()
    outlet = SharedOutlet(transport)
    transport.error = ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(ConnectionResetError):
        outlet.try_send(b"message")


def test_a_socket_that_fails_during_a_wait_closes_the_connection_and_calls_back():
    transport = FakeTransport(0)
    outlet = SharedOutlet(transport)
    outlet.try_send(b"message")
    calls = []
    outlet.watch_writable(lambda: calls.append("called"))
    transport.error = ConnectionResetError(104, "Connection reset by peer")
    transport.take()
    assert transport.close_reason == "closed by the peer (connection reset)"
    assert transport.close_reason.kind is CloseKind.PEER_LEFT
    assert calls == ["called"]
    assert not transport.watched


def test_close_closes_the_connection():
    transport = FakeTransport()
    reason = CloseReason(CloseKind.STALLED, "it took nothing for 30 s")
    SharedOutlet(transport).close(reason)
    assert transport.close_reason is reason


# Two players ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_two_players_share_a_slow_socket_message_by_message(scenes, seed):
    source = random.Random(seed)
    transport = FakeTransport(source.randrange(300))
    outlet = SharedOutlet(transport)
    subscribers = []
    sent = [[], []]
    replies = 0

    def append(index):
        label = f"{index} {len(sent[index])}"
        payload = (frame if sent[index] else keyframe)(label, source.choice([0, 100, 5000]))
        sent[index].append(payload)
        scenes[index].video(payload)

    for index, scene in enumerate(scenes):
        append(index)
        subscribers.append(new_subscriber(outlet, index + 1))
        scene.fanout.join(subscribers[-1])
    for _ in range(60):
        append(source.randrange(2))
        if source.random() < 0.5:
            settle(2)
        if source.random() < 0.5:
            transport.take(source.randrange(6000))
        if source.random() < 0.2:
            index = source.randrange(2)
            scenes[index].fanout.write(subscribers[index], scenes[index].reply(f"reply {replies}"))
            replies += 1
    settle()
    while transport.watched:
        transport.take()
        settle()
    rest = outlet.take_rest()
    messages = parse(bytes(transport.data) + rest)
    for index in range(2):
        assert [m.payload for m in messages if m.message_stream_id == index + 1] == sent[index]
    assert sorted(m.payload for m in messages if m.message_stream_id == 0) == sorted(b"reply %d" % n for n in range(replies))


def test_a_player_that_leaves_inside_a_message_does_not_affect_the_other(scenes):
    transport = FakeTransport(100)
    outlet = SharedOutlet(transport)
    subscribers = []
    for index, scene in enumerate(scenes):
        scene.video(keyframe(str(index), 1000))
        subscribers.append(new_subscriber(outlet, index + 1))
        scene.fanout.join(subscribers[-1])
    owed = scenes[0].fanout.leave(subscribers[0])
    scenes[1].fanout.write(subscribers[1], owed + scenes[1].reply("bye"))
    transport.take()
    scenes[1].video(frame("1"))
    settle()
    messages = [m.payload for m in parse(bytes(transport.data))]
    assert sorted(messages) == sorted([keyframe("0", 1000), keyframe("1", 1000), b"bye", frame("1")])


def test_a_failed_socket_removes_both_players(scenes):
    transport = FakeTransport(100)
    outlet = SharedOutlet(transport)
    for index, scene in enumerate(scenes):
        scene.video(keyframe(str(index), 1000))
        scene.fanout.join(new_subscriber(outlet, index + 1))
    transport.error = ConnectionResetError(104, "Connection reset by peer")
    transport.take()
    for scene in scenes:
        scene.video(frame())
    settle()
    assert transport.close_reason == "closed by the peer (connection reset)"
    assert [len(scene.fanout) for scene in scenes] == [0, 0]


# A connection that plays twice ------------------------------------------------------------------------------------------


def connected(transport):
    connection = new_connection(transport=transport, ini=f"[server]\nchunk_size_bytes = {CHUNK}\n")
    connection.enter(ConnectionPhase.CONNECT)
    connection.enter(ConnectionPhase.COMMAND)
    return connection


def play(connection, stream, number):
    message_stream = connection.message_streams.setdefault(number, MessageStream(number))
    player = Player(connection, message_stream, "name")
    player.start(stream)
    return player


@pytest.fixture
def streams():
    made = []
    for name in ("one", "two"):
        stream = new_stream(f"live/{name}")
        stream.begin(new_source())
        stream.source.video(0, keyframe(name, 1000))
        stream.source.video(40, frame(name))
        made.append(stream)
    yield made
    for stream in made:
        stream.end()
        stream.close()
    settle(2)


@pytest.mark.parametrize("taken", [0, 1, 12, 500, 1011, 1012, 1020])
def test_a_second_play_on_a_connection_whose_socket_is_full(streams, taken):
    """The first player's half-sent message is finished before anything else goes out."""
    transport = ConnectionTransport(taken)
    connection = connected(transport)
    play(connection, streams[0], 1)
    play(connection, streams[1], 2)
    for stream in streams:
        stream.source.video(80, frame("later"))
    settle()
    while transport.watched:
        transport.take()
        settle()
    got = parse(bytes(transport.data) + connection.outlet.take_rest())
    for number, name in ((1, "one"), (2, "two")):
        payloads = [m.payload for m in got if m.message_stream_id == number]
        assert payloads == [keyframe(name, 1000), frame(name), frame("later")]


def test_replies_after_the_last_play_follow_the_bytes_that_the_outlet_holds(streams):
    transport = ConnectionTransport(100)
    connection = connected(transport)
    play(connection, streams[0], 1)
    play(connection, streams[1], 2)
    settle()
    owed = b"".join(connection.leave(each, "deleteStream") for each in list(connection.message_streams.values()))
    connection.endpoint.outgoing[:0] = owed
    connection.endpoint.send_user_control(UserControlType.STREAM_EOF, 2)
    transport.capacity = None
    connection.flush()
    assert parse(bytes(transport.data))[-1].type_id == MessageType.USER_CONTROL


def test_a_connection_sends_directly_after_its_players_have_left_a_full_socket(streams):
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    transport = Transport(ours, "unix")
    connection = connected(transport)
    play(connection, streams[0], 1)
    play(connection, streams[1], 2)
    for index in range(20):
        for stream in streams:
            stream.source.video(80 + index, frame("later", 1000))
        settle(5)
    for message_stream in list(connection.message_streams.values()):
        connection.endpoint.outgoing += connection.leave(message_stream, "deleteStream")
    connection.endpoint.send_user_control(UserControlType.STREAM_EOF, 2)
    peer.settimeout(LIMIT_S)
    flushing = gevent.spawn(connection.flush)
    flushing.link(lambda _: transport.close(CloseReason(CloseKind.SHUTDOWN, "done")))
    # The flush finds the socket full, and waits.
    gevent.sleep(0)
    got = b""
    while data := peer.recv(1 << 16):
        got += data
    flushing.get(timeout=LIMIT_S)
    assert parse(got)[-1].type_id == MessageType.USER_CONTROL
    transport.dispose()
    peer.close()
