"""Messages appended to a log come out of it unchanged: to a player's chunk reader, and to readers of single messages."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.live.log import NEVER, Log
from rtmpd.live.rtmp_framing import RtmpFraming
from rtmpd.protocol.chunk import frame_message
from rtmpd.protocol.message import CSID_CONTROL, CSID_STATUS
from tests.unit.live.fakes import kind_of, parse

if TYPE_CHECKING:
    from rtmpd.live.pages import Page

LOG = settings(deadline=None, max_examples=100)
NOTICES = {4: CSID_CONTROL, 20: CSID_STATUS}

TIMESTAMPS = st.one_of(
    st.integers(0, 3000),
    st.sampled_from([0xFFFFFE, 0xFFFFFF, 0x1000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
)
# Sizes around what matters: nothing, a chunk, two chunks, a page.
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda size, fill: bytes((fill,)) * size, st.integers(0, 3000), st.integers(0, 255)),
    st.builds(lambda size: (bytes(range(256)) * 120)[:size], st.integers(8000, 30000)),
)
MESSAGES = st.tuples(st.sampled_from([4, 8, 9, 18, 20]), TIMESTAMPS, PAYLOADS)
CHUNK_SIZES = st.sampled_from([128, 129, 4096, 60000, 65536, 0x7FFFFFFF])
PAGE_SIZES = st.sampled_from([(64, 64), (100, 1000), (8 << 10, 256 << 10)])


def small_pages(sizes):
    return mock.patch.multiple("rtmpd.live.log", MIN_PAGE_BYTES=sizes[0], MAX_PAGE_BYTES=sizes[1])


@st.composite
def streams(draw, min_size=0):
    """A chunk size and messages, not of too many chunks."""
    messages = draw(st.lists(MESSAGES, min_size=min_size, max_size=20))
    if draw(st.booleans()):
        return draw(CHUNK_SIZES), messages
    return draw(st.integers(1, 5)), [(*message[:2], message[2][:40]) for message in messages]


def wire_bytes(page: Page) -> bytes:
    """Return all bytes from a page on, as a player gets them."""
    pieces = []
    following: Page | None = page
    while following is not None:
        pieces.append(bytes(following.view[: following.end]))
        following = following.next
    return b"".join(pieces)


def append(log, type_id, timestamp, payload, join_point=False):
    """Append a message, or a notice, at which no reader may join."""
    if type_id not in NOTICES:
        log.append(type_id, timestamp, payload, kind_of(type_id, payload), join_point)
        return
    log.append_notice(frame_message(NOTICES[type_id], type_id, 1, timestamp, payload, log.framing.chunk_size))


def fill(chunk_size, messages):
    log = Log(RtmpFraming(chunk_size), NEVER)
    first = log.tail
    cursors = []
    for type_id, timestamp, payload in messages:
        append(log, type_id, timestamp, payload)
        cursors.append((log.tail, log.tail.starts[-1]))
    return log, first, cursors


@LOG
@given(PAGE_SIZES, streams())
def test_players_can_parse_what_was_appended(page_sizes, stream):
    chunk_size, messages = stream
    with small_pages(page_sizes):
        log, first, _ = fill(chunk_size, messages)
    wire = wire_bytes(first)
    assert log.position == len(wire) == log.tail.base + log.tail.end
    assert parse(wire, chunk_size) == [(type_id, 1, timestamp, payload) for type_id, timestamp, payload in messages]


@LOG
@given(PAGE_SIZES, streams())
def test_messages_are_read_back_one_by_one(page_sizes, stream):
    chunk_size, messages = stream
    with small_pages(page_sizes):
        log, page, _ = fill(chunk_size, messages)
    offset = 0
    found = []
    while (message := log.read(page, offset)) is not None:
        found.append(message[:3])
        page, offset = message.page, message.offset
    assert found == messages
    assert (page, offset) == (log.tail, log.tail.end)


@LOG
@given(PAGE_SIZES, streams(min_size=1), st.data())
def test_a_cursor_may_start_at_any_message(page_sizes, stream, data):
    chunk_size, messages = stream
    with small_pages(page_sizes):
        _, _, cursors = fill(chunk_size, messages)
    index = data.draw(st.integers(0, len(messages) - 1))
    page, offset = cursors[index]
    got = parse(wire_bytes(page)[offset:], chunk_size)
    assert got == [(type_id, 1, timestamp, payload) for type_id, timestamp, payload in messages[index:]]


@LOG
@given(PAGE_SIZES, st.lists(MESSAGES, max_size=20), st.data())
def test_the_boundary_is_the_next_message_start_or_the_end(page_sizes, messages, data):
    with small_pages(page_sizes):
        log, first, cursors = fill(1000, messages)
    page = data.draw(st.sampled_from([first, *(page for page, _ in cursors)]))
    boundaries = sorted({start for each, start in cursors if each is page} | {page.end})
    offset = data.draw(st.integers(0, page.end))
    assert page.boundary(offset) == min(each for each in boundaries if each >= offset)
    assert list(page.starts) == boundaries[:-1]
    assert log.tail.next is None


@LOG
@given(PAGE_SIZES, st.lists(MESSAGES, min_size=1, max_size=20), st.data())
def test_the_time_at_a_cursor_is_that_of_the_first_media_behind_it(page_sizes, messages, data):
    with small_pages(page_sizes):
        log, first, cursors = fill(1000, messages)
    index = data.draw(st.integers(0, len(messages)))
    if index == len(messages):
        page, offset = log.tail, log.tail.end
    else:
        page, offset = cursors[index]
        # Anywhere behind the start of the message before means this one.
        if index and cursors[index - 1][0] is page:
            offset = data.draw(st.integers(cursors[index - 1][1] + 1, offset))
    expected = next((timestamp for type_id, timestamp, _ in messages[index:] if type_id in (8, 9)), None)
    assert log.timestamp_at(page, offset) == expected
    media = [timestamp for type_id, timestamp, _ in messages if type_id in (8, 9)]
    assert log.newest_timestamp == (media[-1] if media else -1)
    assert first.base == 0


@LOG
@given(PAGE_SIZES, st.lists(st.tuples(st.booleans(), MESSAGES), max_size=30), st.integers(0, 20000))
def test_the_join_point_is_the_last_one_that_is_not_too_far_back(page_sizes, messages, limit_bytes):
    with small_pages(page_sizes):
        log = Log(RtmpFraming(1000), limit_bytes)
    expected = None
    position = 0
    joins = 0
    with small_pages(page_sizes):
        for join_point, (type_id, timestamp, payload) in messages:
            if join_point and type_id not in NOTICES:
                expected = (position, timestamp)
                joins += 1
            elif expected is not None and position - expected[0] > limit_bytes:
                expected = None
            append(log, type_id, timestamp, payload, join_point)
            position = log.position
            if expected is None:
                assert log.join_page is None
            else:
                assert (log.join_position, log.join_timestamp) == expected
                assert log.join_page.base + log.join_offset == log.join_position
                assert log.join_offset in log.join_page.starts
            assert log.joins == joins


@pytest.mark.parametrize("limit_bytes", [1, 100, 5000, 1 << 20])
@settings(deadline=None, max_examples=25)
@given(PAGE_SIZES, st.lists(MESSAGES, min_size=1, max_size=20), st.data())
def test_gathering_goes_over_everything_once(limit_bytes, page_sizes, messages, data):
    with small_pages(page_sizes):
        log, first, cursors = fill(1000, messages)
    page, offset = data.draw(st.sampled_from([(first, 0), *cursors]))
    expected = wire_bytes(page)[offset:]
    pieces = []
    while (page, offset) != (log.tail, log.tail.end):
        piece, page, offset = log.gather(page, offset, limit_bytes)
        assert len(piece)
        assert offset == page.boundary(offset)
        pieces.append(bytes(piece))
    assert b"".join(pieces) == expected
    assert all(len(piece) < limit_bytes + max(each.size for each, _ in cursors) for piece in pieces)
