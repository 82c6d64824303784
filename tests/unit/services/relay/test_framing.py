"""The chunks that a relay sends: metadata in the envelope of encoders."""

import pytest

from rtmpd.live.rtmp_framing import RelayFraming
from rtmpd.live.subscriber import Subscriber
from rtmpd.protocol import amf0
from tests.unit.live.fakes import (
    AAC_HEADER,
    AVC_HEADER,
    CHUNK,
    DEFAULTS,
    FakeTransport,
    keyframe,
    new_source,
    new_stream,
    settle,
)

METADATA = amf0.encode("onMetaData", {"width": 64.0})
OTHER = amf0.encode("onMetaData", {"width": 128.0})
SET = amf0.encode("@setDataFrame")


@pytest.fixture
def stream():
    made = new_stream("live/a", DEFAULTS)
    made.begin(new_source())
    yield made
    made.end()
    made.close()
    settle(2)


def join(stream, message_stream_id=1):
    """Join as a relay does; return the subscriber, its framing and its transport."""
    framing, transport = RelayFraming(CHUNK, message_stream_id), FakeTransport()
    subscriber = Subscriber(transport, framing, "relay")
    # Until it has its place in the log, metadata need not be sent to it: all headers follow there.
    assert subscriber.headers is None
    stream.published.fanout.join(subscriber)
    settle()
    return subscriber, framing, transport


@pytest.mark.parametrize("message_stream_id", [1, 5])
def test_headers_have_metadata_in_the_envelope(stream, message_stream_id):
    stream.source.data(0, SET + METADATA)
    stream.source.video(0, AVC_HEADER)
    stream.source.audio(0, AAC_HEADER)
    stream.source.video(40, keyframe("a"))
    _, _, transport = join(stream, message_stream_id)
    got = transport.messages()
    assert [(one.type_id, one.timestamp, one.payload) for one in got] == [
        (18, 0, SET + METADATA),
        (9, 40, AVC_HEADER),
        (8, 40, AAC_HEADER),
        (9, 40, keyframe("a")),
    ]
    assert {one.message_stream_id for one in got} == {message_stream_id}


def test_changed_metadata_is_sent_once_more_in_the_envelope(stream):
    stream.source.data(0, SET + METADATA)
    stream.source.video(0, keyframe("a"))
    subscriber, framing, transport = join(stream)
    published = stream.published
    assert framing.changed_metadata(published.log.headers) == b""
    stream.source.data(0, SET + OTHER)
    published.fanout.write(subscriber, framing.changed_metadata(published.log.headers))
    settle()
    payloads = [one.payload for one in transport.messages()]
    assert payloads[:2] == [SET + METADATA, keyframe("a")]
    assert sorted(payloads[2:]) == sorted([OTHER, SET + OTHER])
    assert framing.changed_metadata(published.log.headers) == b""
