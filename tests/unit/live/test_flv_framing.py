from __future__ import annotations

import pytest

from rtmpd.live.flv_framing import FLV
from rtmpd.live.framing import AUDIO, DATA, NO_HEADERS, VIDEO, Headers, Notice, NoticeKind
from rtmpd.live.log import NEVER, Log
from rtmpd.media import flv
from rtmpd.media.tags import Kind
from tests.unit.live.fakes import AAC_HEADER, AVC_HEADER

METADATA = b"\x02\x00\x0aonMetaData\x08\x00\x00\x00\x00\x00\x00\x09"


def test_messages_are_read_back_as_tags():
    log = Log(FLV, NEVER)
    first = log.tail
    log.append(VIDEO, 0, b"\x17\x01video", Kind.KEYFRAME)
    log.append(AUDIO, 0x01234567, b"\xaf\x01audio", Kind.FRAME)
    log.append(DATA, 0xFFFFFFFF, b"data", Kind.OTHER)
    read = list(log.read_all(first, 0))
    assert [(tag.type_id, tag.kind, tag.timestamp, bytes(tag.payload)) for tag in read] == [
        (9, Kind.KEYFRAME, 0, b"\x17\x01video"),
        (8, Kind.FRAME, 0x01234567, b"\xaf\x01audio"),
        (18, Kind.OTHER, 0xFFFFFFFF, b"data"),
    ]
    expected = [
        flv.tag(9, 0, b"\x17\x01video"),
        flv.tag(8, 0x01234567, b"\xaf\x01audio"),
        flv.tag(18, 0xFFFFFFFF, b"data"),
    ]
    assert [bytes(tag.data) for tag in read] == expected
    assert log.position == sum(map(len, expected))


@pytest.mark.parametrize("timestamp", [0, 0xFFFFFF, 0x1000000, 0xFFFFFFFF])
def test_only_audio_and_video_have_a_media_timestamp(timestamp):
    log = Log(FLV, NEVER)
    for type_id in (AUDIO, VIDEO, DATA):
        log.append(type_id, timestamp, b"payload", Kind.OTHER)
    assert [FLV.media_timestamp(log.tail, index) for index in range(3)] == [timestamp, timestamp, -1]


def test_headers_are_tags_at_the_timestamp_of_the_next_frame_behind_one_file_header():
    viewer = FLV.for_subscriber()
    headers = Headers(((DATA, METADATA), (VIDEO, AVC_HEADER), (AUDIO, AAC_HEADER)))
    tags = flv.tag(DATA, 0, METADATA) + flv.tag(VIDEO, 1234, AVC_HEADER) + flv.tag(AUDIO, 1234, AAC_HEADER)
    assert viewer.headers(headers, 1234) == flv.file_header(has_audio=True, has_video=True) + tags
    assert viewer.headers(headers, 1234) == tags


def test_the_file_header_names_the_tracks_that_have_sequence_headers():
    assert FLV.for_subscriber().headers(Headers(((AUDIO, AAC_HEADER),)), 0)[:9] == b"FLV\1\4\0\0\0\x09"
    assert FLV.for_subscriber().headers(Headers(((VIDEO, AVC_HEADER),)), 0)[:9] == b"FLV\1\1\0\0\0\x09"
    assert FLV.for_subscriber().headers(NO_HEADERS, 0)[:3] == b"FLV"


@pytest.mark.parametrize("kind", NoticeKind)
def test_notices_are_no_bytes(kind):
    assert list(FLV.notices(Notice(kind, "text"))) == []
    assert FLV.for_subscriber().notice(Notice(kind, "text")) == b""
