from __future__ import annotations

import pytest

from rtmpd.live.framing import AUDIO, DATA, NO_HEADERS, VIDEO, Headers, Notice, NoticeKind
from rtmpd.live.log import NEVER, Log
from rtmpd.live.rtmp_framing import RelayFraming, RtmpFraming, RtmpSubscriberFraming
from rtmpd.media.tags import Kind
from rtmpd.protocol import amf0
from rtmpd.protocol.command import decode_command
from rtmpd.protocol.message import (
    CSID_AUDIO,
    CSID_DATA,
    CSID_VIDEO,
    MessageType,
    UserControlType,
    parse_user_control,
)
from tests.unit.live.fakes import AAC_HEADER, AVC_HEADER, parse

METADATA = b"\x02\x00\x0aonMetaData\x08\x00\x00\x00\x00\x00\x00\x09"
SET_DATA_FRAME = amf0.encode("@setDataFrame")


def rtmp_log(chunk_size=128):
    return Log(RtmpFraming(chunk_size), NEVER)


# Messages ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timestamp", [0, 0xFFFFFE, 0xFFFFFF, 0x1000000, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 1, 128, 129, 1000])
def test_timestamps_survive_with_and_without_the_extended_field(timestamp, size):
    log = rtmp_log()
    log.append(VIDEO, timestamp, b"\xc6" * size, Kind.FRAME)
    message = log.read(log.tail, 0)
    assert message[:3] == (VIDEO, timestamp, b"\xc6" * size)
    assert message.data == log.tail.view[: log.tail.end]
    assert (message.kind, message.page, message.offset) == (Kind.FRAME, log.tail, log.tail.end)
    assert parse(bytes(log.tail.view[: log.tail.end]), 128) == [(VIDEO, 1, timestamp, b"\xc6" * size)]
    assert log.timestamp_at(log.tail, 0) == timestamp


@pytest.mark.parametrize("size", [10, 1000])
@pytest.mark.parametrize(("type_id", "csid"), [(AUDIO, CSID_AUDIO), (VIDEO, CSID_VIDEO), (DATA, CSID_DATA)])
def test_each_type_has_its_own_chunk_stream_id(type_id, csid, size):
    log = rtmp_log()
    log.append(type_id, 0, bytes(size), Kind.OTHER)
    assert log.tail.buffer[0] == csid


# Notices ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (NoticeKind.PUBLISHED, [UserControlType.STREAM_BEGIN, "NetStream.Play.PublishNotify"]),
        (NoticeKind.UNPUBLISHED, ["NetStream.Play.UnpublishNotify", UserControlType.STREAM_EOF]),
        (NoticeKind.TOO_SLOW, ["NetStream.Play.InsufficientBW"]),
    ],
)
@pytest.mark.parametrize("message_stream_id", [1, 7])
def test_notices_are_control_messages_on_message_stream_0_and_statuses_on_that_of_the_player(kind, expected, message_stream_id):
    notice = Notice(kind, "the text")
    own = RtmpSubscriberFraming(128, message_stream_id).notice(notice)
    if message_stream_id == 1:
        assert b"".join(RtmpFraming(128).notices(notice)) == own
    found = []
    for message in parse(own, 128):
        assert message.timestamp == 0
        if message.type_id == MessageType.USER_CONTROL:
            control = parse_user_control(message)
            assert (message.message_stream_id, control.value) == (0, message_stream_id)
            found.append(control.event)
        else:
            command = decode_command(message)
            assert (command.name, command.transaction_id, command.command_object) == ("onStatus", 0, None)
            assert message.message_stream_id == message_stream_id
            assert command.arguments[0]["description"] == "the text"
            found.append(command.arguments[0]["code"])
    assert found == expected


def test_players_show_the_notice_of_being_too_slow_as_an_error():
    (message,) = parse(RtmpSubscriberFraming(4096).notice(Notice(NoticeKind.TOO_SLOW, "too slow")))
    assert decode_command(message).arguments[0]["level"] == "error"


@pytest.mark.parametrize("kind", NoticeKind)
def test_a_notice_in_the_log_is_framed_again_for_another_message_stream_id(kind):
    log, framing = rtmp_log(4096), RtmpSubscriberFraming(4096, 7)
    for data in log.framing.notices(Notice(kind, "text")):
        log.append_notice(data)
    again = b"".join(framing.message(message) for message in log.read_all(log.tail, 0))
    assert parse(again) == parse(framing.notice(Notice(kind, "text")))


# Headers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timestamp", [0, 1234, 0xFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("message_stream_id", [1, 7])
def test_headers_have_the_timestamp_of_the_frame_that_follows_and_metadata_0(timestamp, message_stream_id):
    headers = Headers(((DATA, METADATA), (VIDEO, AVC_HEADER.ljust(500, b"x")), (AUDIO, AAC_HEADER)))
    data = RtmpSubscriberFraming(128, message_stream_id).headers(headers, timestamp)
    assert parse(data, 128) == [
        (MessageType.DATA_AMF0, message_stream_id, 0, METADATA),
        (MessageType.VIDEO, message_stream_id, timestamp, AVC_HEADER.ljust(500, b"x")),
        (MessageType.AUDIO, message_stream_id, timestamp, AAC_HEADER),
    ]


def test_no_headers_are_no_bytes():
    assert RtmpSubscriberFraming(128).headers(NO_HEADERS, 0) == b""


def test_a_relay_sends_metadata_in_its_envelope_and_again_when_it_has_changed():
    relay = RelayFraming(4096)
    headers = Headers(((DATA, METADATA), (VIDEO, AVC_HEADER)))
    assert parse(relay.headers(headers, 40)) == [(DATA, 1, 0, SET_DATA_FRAME + METADATA), (VIDEO, 1, 40, AVC_HEADER)]
    assert relay.changed_metadata(headers) == b""
    assert relay.changed_metadata(NO_HEADERS) == b""
    changed = Headers(((DATA, METADATA + b"new"),))
    assert parse(relay.changed_metadata(changed)) == [(DATA, 1, 0, SET_DATA_FRAME + METADATA + b"new")]
    assert relay.changed_metadata(changed) == b""


# Players that do not get the log's bytes --------------------------------------------------------------------------------


def test_only_a_player_that_receives_all_on_message_stream_1_gets_the_bytes_of_the_log():
    assert RtmpFraming(128).for_subscriber().shared
    assert not RtmpSubscriberFraming(128, 2).shared
    for name, value in (("receive_audio", False), ("receive_video", False), ("video_gate", True)):
        framing = RtmpSubscriberFraming(128)
        setattr(framing, name, value)
        assert not framing.shared


def test_video_is_held_back_until_the_next_keyframe():
    log, framing = rtmp_log(), RtmpSubscriberFraming(128)
    framing.video_gate = True
    log.append(VIDEO, 0, b"\x27\x01lost", Kind.FRAME)
    log.append(VIDEO, 0, AVC_HEADER, Kind.HEADER)
    log.append(AUDIO, 0, b"\xaf\x01", Kind.FRAME)
    log.append(VIDEO, 40, b"\x17\x01key", Kind.KEYFRAME)
    log.append(VIDEO, 80, b"\x27\x01next", Kind.FRAME)
    data = b"".join(framing.message(message) for message in log.read_all(log.tail, 0))
    assert [message.payload for message in parse(data, 128)] == [AVC_HEADER, b"\xaf\x01", b"\x17\x01key", b"\x27\x01next"]
    assert framing.shared
