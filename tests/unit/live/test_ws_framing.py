"""Messages in WebSocket frames: each frame is whole, and holds what the plain framing makes of the message."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection

from rtmpd.live.flv_framing import FlvSubscriberFraming
from rtmpd.live.fmp4_framing import FMP4
from rtmpd.live.framing import AUDIO, DATA, NO_HEADERS, VIDEO, Headers, Notice, NoticeKind
from rtmpd.live.log import Log
from rtmpd.live.ws_framing import WS_FLV, WS_FMP4, CloseCode, WsSubscriberFraming, close_frame, header_size
from rtmpd.media import flv
from rtmpd.media.tags import Kind
from rtmpd.protocol import amf0
from tests.fmp4_files import all_kinds
from tests.unit.media.test_fmp4 import AAC, AVC


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
    framing = WsSubscriberFraming(FlvSubscriberFraming(lambda: (True, True)))
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


HEADERS = Headers(((VIDEO, AVC), (AUDIO, AAC)))


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just(VIDEO), st.sampled_from([1, 5, 6, 16, 17, 65420, 65428, 65429, 70000])),
            st.tuples(st.just(AUDIO), st.integers(1, 20)),
            st.just((VIDEO, None)),
            st.just((AUDIO, None)),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_each_message_is_the_fragment_of_the_plain_framing(parts):
    plain, framed = Log(FMP4.for_log(), 1 << 20), Log(WS_FMP4.for_log(), 1 << 20)
    pages = plain.tail, framed.tail
    for log in (plain, framed):
        log.set_headers(HEADERS)
        for number, (type_id, size) in enumerate(parts):
            if size is None:
                # Another profile or rate: an initialization segment precedes the next fragment.
                payload = AVC.replace(b"\1\x64\0\x0a", bytes((1, 0x64, 0, number))) if type_id == VIDEO else b"\xaf\0\x12\x10"
            else:
                payload = (b"\x17\1\0\0\0" if type_id == VIDEO else b"\xaf\1") + bytes(size)
            log.append(type_id, number * 40, payload, Kind.FRAME)
    expected = list(plain.read_all(pages[0], 0))
    assert received(all_bytes(framed, pages[1])) == [bytes(each.data) for each in expected]
    read = list(framed.read_all(pages[1], 0))
    assert [each[:2] for each in read] == [each[:2] for each in expected]
    assert [bytes(each.payload) for each in read] == [bytes(each.payload) for each in expected]
    times = [framed.framing.media_timestamp(framed.tail, index) for index in range(len(framed.tail.starts))]
    assert times == [each.timestamp for each in read][len(read) - len(times) :]


def test_a_fragment_is_longer_than_its_size_if_its_frame_shows_what_the_track_is():
    log = Log(WS_FMP4.for_log(), 1 << 20)
    first = log.tail
    log.set_headers(Headers(((DATA, amf0.encode("onMetaData", {"audiocodecid": 2.0, "audiosamplerate": 44100.0})),)))
    assert log.framing.inner.announce() == 'audio/mp4; codecs="mp3"'
    # 48 kHz.
    log.append(AUDIO, 0, b"\x2e\xff\xfb\x94\xc0" + bytes(20), Kind.FRAME)
    assert [all_kinds(each) for each in received(all_bytes(log, first))] == [[b"ftyp", b"moov", b"moof", b"mdat"]]


def test_a_viewer_of_mp4_gets_the_initialization_segment_in_a_message_of_its_own():
    log = Log(WS_FMP4.for_log(), 1 << 20)
    log.set_headers(HEADERS)
    framing = log.framing.for_subscriber()
    (message,) = received(framing.headers(log.headers, 0))
    assert all_kinds(message) == [b"ftyp", b"moov"]
    assert framing.headers(log.headers, 0) == b""


def test_other_codecs_end_the_log_with_a_close_frame():
    (data,) = WS_FMP4.notices(Notice(NoticeKind.CHANGED, "text"))
    assert received(data) == [(1012, "the codecs of the stream have changed")]
    assert received(WS_FMP4.for_subscriber().notice(Notice(NoticeKind.CHANGED, "text"))) == received(data)


def test_a_long_reason_is_cut_between_characters():
    ((code, reason),) = received(close_frame(CloseCode.POLICY, "é" * 100))
    assert (code, reason) == (1008, "é" * 61)
