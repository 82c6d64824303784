"""A publisher that sends more than it may."""

from __future__ import annotations

from types import SimpleNamespace

import gevent
import pytest

from rtmpd.config.loader import load_text
from rtmpd.events import EventBus
from rtmpd.live.stream import Stream
from rtmpd.rtmp import publisher as module
from rtmpd.rtmp.connection import Connection
from rtmpd.rtmp.publisher import Publisher
from tests.unit.live.fakes import CHUNK, FakeTransport, app_options, keyframe, parse, settle

LIMIT = {"publish_bitrate_limit": 8000, "publish_bitrate_grace_s": 3.0}


class Socket(FakeTransport):
    """A transport as a session knows it, over a fake socket."""

    peer = "192.0.2.1:50000"
    bytes_sent = 0
    sending = False


@pytest.fixture
def scene(monkeypatch):
    """A connection that publishes; `counted` is what it counts."""
    monkeypatch.setattr(module, "_LINGER_S", 0.01)
    counted = []

    def unpublish(stream, publisher):
        stream.publisher = None

    hub = SimpleNamespace(config=load_text(""), stopping=False, bus=EventBus(), count=counted.append, unpublish=unpublish)
    connection = Connection(Socket(), hub, 1)
    stream = Stream("live/a", app_options(**LIMIT), CHUNK)
    message_stream = connection.create_message_stream()
    publisher = Publisher(connection, message_stream, "a")
    stream.begin(publisher)
    publisher.start(stream)
    yield SimpleNamespace(
        connection=connection, stream=stream, publisher=publisher, counted=counted, transport=connection.transport
    )
    stream.close()


def run(scene, seconds, bytes_per_s):
    """Send and sweep, second by second, on a clock of the stream's own."""
    for _ in range(seconds):
        now_s = scene.now_s = getattr(scene, "now_s", 0) + 1
        scene.stream.video(now_s * 1000, keyframe("", bytes_per_s))
        scene.stream.sweep(now_s, 30)
        scene.publisher.sweep(now_s)


def sent(scene):
    return parse(bytes(scene.transport.data), 128)


def test_who_sends_as_much_as_it_may_goes_on(scene):
    run(scene, 30, 1000)
    assert scene.counted == []
    assert scene.publisher.stream is scene.stream


def test_who_sends_more_for_too_long_is_told_why_and_disconnected(scene, caplog):
    run(scene, 1 + 3, 2000)
    assert scene.counted == []
    run(scene, 1, 2000)
    assert scene.counted == ["publish_bitrate_exceeded"]
    (message,) = sent(scene)
    assert b"NetStream.Publish.Rejected" in message.payload
    assert b"The bitrate is too high: 16 kbit/s, and 8 kbit/s are allowed." in message.payload
    assert message.message_stream_id == 1
    text = "live/a: it has sent 16 kbit/s, and more than 8 kbit/s for 3 s (publish_bitrate_limit): it is disconnected"
    assert caplog.messages[0].endswith(text)
    assert scene.publisher.stream is None
    assert scene.stream.publisher is None
    # It can read that before the end comes.
    assert not scene.transport.close_reason
    with gevent.Timeout(5):
        while not scene.transport.close_reason:
            gevent.sleep(0.001)
    assert scene.transport.close_reason == "publish_bitrate_limit"


def test_what_it_sends_before_the_end_is_for_nobody(scene):
    run(scene, 5, 2000)
    assert scene.connection.live == {}
    assert scene.connection.phase == "command"


def test_who_is_only_warned_goes_on_and_is_warned_again_when_it_was_below(scene, caplog):
    scene.stream.reload(app_options(**LIMIT, publish_bitrate_action="warn"))
    run(scene, 20, 2000)
    assert scene.counted == ["publish_bitrate_exceeded"]
    (line,) = caplog.messages
    assert line.endswith("it may go on")
    run(scene, 10, 500)
    run(scene, 20, 2000)
    assert scene.counted == ["publish_bitrate_exceeded"] * 2
    assert scene.publisher.stream is scene.stream
    assert sent(scene) == []


def test_a_reload_reaches_a_publisher_that_is_there(scene):
    scene.stream.reload(app_options())
    run(scene, 20, 2000)
    assert scene.counted == []
    scene.stream.reload(app_options(**LIMIT, publish_bitrate_action="warn"))
    run(scene, 5, 2000)
    assert scene.publisher.stream is scene.stream
    scene.stream.reload(app_options(**LIMIT))
    run(scene, 1, 2000)
    assert scene.publisher.stream is None
    assert len(scene.counted) == 2


def test_a_socket_without_room_or_in_use_does_not_hold_up_the_sweep(scene):
    scene.transport.capacity = 0
    run(scene, 5, 2000)
    assert scene.publisher.stream is None
    settle(2)


def test_another_publisher_begins_afresh(scene):
    run(scene, 4, 2000)
    scene.publisher.stop("closed by the peer")
    again = Publisher(scene.connection, scene.connection.message_streams[1], "a")
    scene.stream.begin(again)
    again.start(scene.stream)
    scene.publisher = again
    run(scene, 4, 2000)
    assert again.stream is scene.stream
    run(scene, 1, 2000)
    assert again.stream is None
