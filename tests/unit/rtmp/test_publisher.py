"""A publisher that exceeds its bitrate limit, and one whose stream has no reader."""

from __future__ import annotations

import gevent
import pytest

from rtmpd.net.readers import Pace
from rtmpd.phases import CloseKind, ConnectionPhase
from rtmpd.rtmp import publisher as module
from rtmpd.rtmp.publisher import Publisher
from tests.unit.live.fakes import FakeTransport, app_options, keyframe, new_stream, new_subscriber, parse, settle
from tests.unit.rtmp.fakes import FakePolicy, new_connection

LIMIT = {"publish_bitrate_limit": 8000, "publish_bitrate_grace_s": 3.0}


class Scene:
    """A connection that publishes.

    Attributes:
        counted: The counters that were incremented.
        now_s: The clock of the sweeps.
    """

    def __init__(self):
        policy = FakePolicy()
        self.counted = policy.counted
        self.connection = new_connection(policy)
        self.connection.enter(ConnectionPhase.CONNECT)
        self.connection.enter(ConnectionPhase.COMMAND)
        self.transport = self.connection.transport
        self.stream = policy.streams["live/a"] = new_stream("live/a", app_options(**LIMIT), count=policy.count)
        self.message_stream = self.connection.create_message_stream()
        self.now_s = 0
        self.publish()

    def publish(self):
        self.publisher = Publisher(self.connection, self.message_stream, "a")
        self.stream.begin(self.publisher.source)
        self.publisher.start(self.stream)

    def run(self, seconds, bytes_per_s):
        """Send and sweep, second by second."""
        for _ in range(seconds):
            self.now_s += 1
            self.publisher.source.video(self.now_s * 1000, keyframe("", bytes_per_s))
            self.stream.sweep(self.now_s, 30)

    def sent(self):
        return parse(bytes(self.transport.data), 128)

    @property
    def publishes(self):
        return self.stream.source is self.publisher.source and self.message_stream.role is self.publisher


@pytest.fixture
def scene(monkeypatch):
    monkeypatch.setattr(module, "LINGER_S", 0.01)
    made = Scene()
    yield made
    made.stream.end()
    made.stream.close()


def test_a_publisher_within_the_limit_continues(scene):
    scene.run(30, 1000)
    assert scene.counted == []
    assert scene.publishes


def test_a_publisher_that_exceeds_the_limit_for_too_long_gets_the_reason_and_is_disconnected(scene, caplog):
    scene.run(1 + 3, 2000)
    assert scene.counted == []
    scene.run(1, 2000)
    assert scene.counted == ["publish_bitrate_exceeded"]
    (message,) = scene.sent()
    assert b"NetStream.Publish.Rejected" in message.payload
    assert b"The bitrate is too high: 16 kbit/s, and 8 kbit/s are allowed." in message.payload
    assert message.message_stream_id == 1
    text = (
        "live/a: the publisher sends 16 kbit/s, and has sent more than 8 kbit/s for 3 s (publish_bitrate_limit): "
        "it is disconnected"
    )
    assert caplog.messages[0].endswith(text)
    assert not scene.publishes
    assert scene.publisher.key == ""
    assert scene.stream.source is None
    # The client has time to read that before its connection is closed.
    assert not scene.transport.close_reason
    with gevent.Timeout(5):
        while not scene.transport.close_reason:
            gevent.sleep(0.001)
    assert scene.transport.close_reason == "publish_bitrate_limit"
    assert scene.transport.close_reason.kind is CloseKind.EXPELLED
    assert scene.counted == ["publish_bitrate_exceeded"]


def test_media_between_the_status_and_the_close_is_discarded(scene):
    scene.run(5, 2000)
    assert scene.connection.sources == {}
    assert scene.connection.phase is ConnectionPhase.COMMAND
    position = scene.stream.published.log.position
    scene.publisher.source.video(10_000, keyframe())
    assert scene.stream.published.log.position == position


def test_a_publisher_that_is_only_warned_is_warned_again_after_it_was_below_the_limit(scene, caplog):
    scene.stream.reload(app_options(**LIMIT, publish_bitrate_action="warn"))
    scene.run(20, 2000)
    assert scene.counted == ["publish_bitrate_exceeded"]
    (line,) = caplog.messages
    assert line.endswith("it may continue")
    scene.run(10, 500)
    scene.run(20, 2000)
    assert scene.counted == ["publish_bitrate_exceeded"] * 2
    assert scene.publishes
    assert scene.sent() == []


def test_a_reload_applies_to_a_publish_under_way(scene):
    scene.stream.reload(app_options())
    scene.run(20, 2000)
    assert scene.counted == []
    scene.stream.reload(app_options(**LIMIT, publish_bitrate_action="warn"))
    scene.run(5, 2000)
    assert scene.publishes
    scene.stream.reload(app_options(**LIMIT))
    scene.run(1, 2000)
    assert not scene.publishes
    assert len(scene.counted) == 2


@pytest.mark.parametrize("sending", [False, True])
def test_a_socket_without_room_or_in_use_does_not_delay_the_sweep(scene, sending):
    scene.transport.capacity = 0
    scene.transport.sending = sending
    scene.run(5, 2000)
    assert not scene.publishes
    settle(2)


def test_the_next_publisher_starts_with_a_new_grace(scene):
    scene.run(4, 2000)
    scene.publisher.stop("closed by the peer")
    scene.publish()
    scene.run(4, 2000)
    assert scene.publishes
    scene.run(1, 2000)
    assert not scene.publishes


# Lazy reads -------------------------------------------------------------------------------------------------------------


class BatchReader:
    wake_at = 1 << 62

    def wake(self):
        pass

    def fail(self):
        pass


def sweep(scene, now_s, size=1000):
    """Send a message, and sweep."""
    scene.publisher.source.video(now_s * 1000, keyframe("", size))
    scene.stream.sweep(scene.publisher.source.started_at + now_s, 30)


def test_a_publisher_is_read_lazily_while_its_stream_has_no_reader():
    scene = Scene()
    scene.stream.reload(app_options())
    stream = scene.stream
    assert scene.transport.paces == [Pace.EAGER]
    paces = scene.transport.paces = []
    for now_s in range(1, 6):
        sweep(scene, now_s)
    assert paces == [Pace.LAZY]
    # The first player makes it eager at once.
    subscriber = new_subscriber(FakeTransport())
    stream.output().fanout.join(subscriber)
    assert paces == [Pace.LAZY, Pace.EAGER]
    sweep(scene, 5)
    stream.output().fanout.leave(subscriber)
    assert len(paces) == 2
    sweep(scene, 6)
    assert paces[2:] == [Pace.LAZY]
    # So does what reads in batches, such as a recording.
    reader = BatchReader()
    stream.read(reader)
    sweep(scene, 7)
    assert paces[3:] == [Pace.EAGER]
    stream.stop_reading(reader)
    sweep(scene, 8)
    scene.publisher.stop("a test")
    assert paces[4:] == [Pace.LAZY, Pace.REQUESTS]


def test_a_publisher_that_would_fill_its_window_meanwhile_is_not_read_lazily():
    scene = Scene()
    scene.stream.reload(app_options())
    for now_s in range(1, 6):
        sweep(scene, now_s, 700_000)
    assert scene.transport.paces == [Pace.EAGER]


def test_a_connection_with_two_publishes_is_read_lazily_only_while_neither_stream_has_a_reader():
    scene = Scene()
    other = scene.connection.hub.streams["live/b"] = new_stream("live/b", app_options())
    second = Publisher(scene.connection, scene.connection.create_message_stream(), "b")
    other.begin(second.source)
    second.start(other)
    scene.publisher.source.set_wanted(False)
    assert scene.transport.paces[-1] is Pace.EAGER
    second.source.set_wanted(False)
    assert scene.transport.paces[-1] is Pace.LAZY
    second.source.set_wanted(True)
    assert scene.transport.paces[-1] is Pace.EAGER
    second.stop("a test")
    assert scene.transport.paces[-1] is Pace.LAZY
    scene.publisher.stop("a test")
    assert scene.transport.paces[-1] is Pace.REQUESTS
