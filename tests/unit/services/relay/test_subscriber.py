import pytest

from rtmpd.config.loader import load_text
from rtmpd.live.stream import Stream
from rtmpd.protocol import amf0
from rtmpd.protocol.chunk import RawMessage
from rtmpd.services.relay.subscriber import RelaySubscriber
from tests.unit.live.fakes import AAC_HEADER, AVC_HEADER, CHUNK, FakeTransport, keyframe, settle

METADATA = amf0.encode("onMetaData", {"width": 64.0})
OTHER = amf0.encode("onMetaData", {"width": 128.0})
SET = amf0.encode("@setDataFrame")


@pytest.fixture
def stream():
    made = Stream("live/a", load_text("").defaults, CHUNK)
    made.begin(object())
    yield made
    made.close()
    settle(2)


def metadata(stream, payload):
    stream.data(RawMessage(18, 1, 0, SET + payload))


@pytest.mark.parametrize("message_stream_id", [1, 5])
def test_headers_have_metadata_in_the_envelope(stream, message_stream_id):
    metadata(stream, METADATA)
    stream.video(0, AVC_HEADER)
    stream.audio(0, AAC_HEADER)
    stream.video(40, keyframe("a"))
    transport = FakeTransport()
    stream.fanout.join(RelaySubscriber(transport, message_stream_id))
    settle()
    got = transport.messages()
    assert [(one.type_id, one.timestamp, one.payload) for one in got] == [
        (18, 0, SET + METADATA),
        (9, 40, AVC_HEADER),
        (8, 40, AAC_HEADER),
        (9, 40, keyframe("a")),
    ]
    assert {one.message_stream_id for one in got} == {message_stream_id}


def test_metadata_that_change_go_out_once_more_in_the_envelope(stream):
    metadata(stream, METADATA)
    subscriber = RelaySubscriber(FakeTransport(), 1)
    assert subscriber.news(stream.wirelog.headers, CHUNK) == b""
    stream.video(0, keyframe("a"))
    stream.fanout.join(subscriber)
    settle()
    assert subscriber.news(stream.wirelog.headers, CHUNK) == b""
    metadata(stream, OTHER)
    stream.fanout.write(subscriber, subscriber.news(stream.wirelog.headers, CHUNK))
    settle()
    payloads = [one.payload for one in subscriber.transport.messages()]
    assert payloads[:2] == [SET + METADATA, keyframe("a")]
    assert sorted(payloads[2:]) == sorted([OTHER, SET + OTHER])
    assert subscriber.news(stream.wirelog.headers, CHUNK) == b""
