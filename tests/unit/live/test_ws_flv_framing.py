"""FLV in WebSocket frames: each frame is whole, and holds the tag of the plain framing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection

from rtmpd.live.framing import AUDIO, DATA, NO_HEADERS, VIDEO, Headers, Notice, NoticeKind
from rtmpd.live.log import Log
from rtmpd.live.ws_flv_framing import WS_FLV, close_frame, header_size
from rtmpd.media import flv
from rtmpd.media.tags import Kind


def received(data):
    """What a client gets: whole messages, and the code and reason of a close frame."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    found, part = [], b""
    for event in client.events():
        if isinstance(event, BytesMessage):
            part += event.data
            if event.message_finished:
                found.append(part)
                part = b""
        elif isinstance(event, CloseConnection):
            found.append((event.code, event.reason))
    assert part == b""
    return found


def all_bytes(log, page):
    pieces = []
    while page is not None:
        pieces.append(bytes(page.view[: page.end]))
        page = page.next
    return b"".join(pieces)


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([AUDIO, VIDEO, DATA]),
        st.integers(0, 2**32 - 1),
        st.one_of(st.binary(max_size=200), st.sampled_from([110, 111, 65520, 65521, 70000]).map(bytes)),
    ),
    max_size=8,
)


@given(MESSAGES)
def test_each_message_is_the_tag_of_the_plain_framing(messages):
    log = Log(WS_FLV, 1 << 20)
    first = log.tail
    for type_id, timestamp, payload in messages:
        log.append(type_id, timestamp, payload, Kind.FRAME)
    assert received(all_bytes(log, first)) == [flv.tag(*each) for each in messages]
    read = [(each.type_id, each.timestamp, bytes(each.payload)) for each in log.read_all(first, 0)]
    assert read == messages


@pytest.mark.parametrize("length", [0, 109, 110, 111, 65520, 65521])
def test_the_size_is_that_of_the_frame(length):
    assert WS_FLV.size(0, length) == length + 15 + header_size(length + 15)


def test_a_viewer_gets_the_file_header_in_a_message_of_its_own():
    framing = WS_FLV.for_viewer(lambda: (True, True))
    headers = Headers(((VIDEO, b"\x17\0\0\0\0abc"), (AUDIO, b"\xaf\0\x12\x10")))
    assert received(framing.headers(headers, 40)) == [
        flv.file_header(has_audio=True, has_video=True),
        flv.tag(VIDEO, 40, b"\x17\0\0\0\0abc"),
        flv.tag(AUDIO, 40, b"\xaf\0\x12\x10"),
    ]
    assert framing.headers(NO_HEADERS, 0) == b""


def test_the_end_of_the_stream_is_a_close_frame_in_the_log():
    log = Log(WS_FLV, 1 << 20)
    first = log.tail
    log.append(VIDEO, 40, b"\x27\1\0\0\0", Kind.FRAME)
    for data in WS_FLV.notices(Notice(NoticeKind.UNPUBLISHED, "a is now unpublished.")):
        log.append_notice(data)
    assert received(all_bytes(log, first)) == [flv.tag(VIDEO, 40, b"\x27\1\0\0\0"), (1000, "the stream has ended")]
    assert [each.type_id for each in log.read_all(first, 0)] == [VIDEO, 0]
    assert WS_FLV.notices(Notice(NoticeKind.PUBLISHED, "")) == ()
    assert received(WS_FLV.for_subscriber().notice(Notice(NoticeKind.TOO_SLOW, "slow"))) == [(1008, "slow")]


def test_a_long_reason_is_cut_between_characters():
    ((code, reason),) = received(close_frame(1008, "é" * 100))
    assert (code, reason) == (1008, "é" * 61)
