from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest

from rtmpd.live import pages
from rtmpd.live.headers import Headers
from rtmpd.live.pages import MAX_PAGE_BYTES, MIN_PAGE_BYTES, Page
from rtmpd.live.wirelog import WireLog
from tests.unit.live.fakes import live_pages, parse

VIDEO, DATA = 9, 18
NEVER = 1 << 40


def pages_from(page):
    while page is not None:
        yield page
        page = page.next


def append_rate(log, bits_per_s, seconds, start_ms=0):
    """Append frames of 40 ms at a bitrate; return the time behind them."""
    size = bits_per_s // 8 // 25
    for index in range(int(seconds * 25)):
        log.append(6, VIDEO, start_ms + index * 40, bytes(size))
    return start_ms + int(seconds * 1000)


# Pages ------------------------------------------------------------------------------------------------------------------


def test_a_new_log_has_one_small_empty_page():
    log = WireLog(4096, NEVER)
    assert (log.tail.size, log.tail.end, log.position, log.newest_timestamp) == (MIN_PAGE_BYTES, 0, 0, -1)
    assert log.join_page is None
    assert log.read(log.tail, 0) is None
    assert log.timestamp_at(log.tail, 0) is None
    assert log.tail.boundary(0) == 0


def test_a_message_that_just_fits_does_not_turn_the_page():
    log = WireLog(1 << 20, NEVER)
    page = log.tail
    log.append(6, VIDEO, 0, bytes(MIN_PAGE_BYTES - 12))
    assert (log.tail, page.end) == (page, page.size)


def test_a_message_that_does_not_fit_starts_the_next_page():
    log = WireLog(1 << 20, NEVER)
    page = log.tail
    log.append(6, VIDEO, 0, bytes(MIN_PAGE_BYTES - 100))
    log.append(6, VIDEO, 40, bytes(89))
    assert page.next is log.tail
    assert page.end == MIN_PAGE_BYTES - 88
    assert (log.tail.base, log.tail.starts, log.tail.end) == (page.end, [0], 101)
    assert page.next.next is None


def test_a_message_larger_than_a_page_gets_one_of_its_own():
    log = WireLog(60000, NEVER)
    first = log.tail
    payload = bytes(range(256)) * 4096
    log.append(6, VIDEO, 0, b"\x27\x01small")
    log.append(6, VIDEO, 40, payload)
    large = log.tail
    log.append(6, VIDEO, 80, b"\x27\x01small")
    assert large.starts == [0]
    assert large.end == large.size == len(payload) + 12 + len(payload) // 60000
    assert log.tail is large.next
    wire = b"".join(bytes(page.view[: page.end]) for page in pages_from(first))
    assert [len(message.payload) for message in parse(wire, 60000)] == [7, len(payload), 7]


def test_the_largest_message_there_can_be_goes_through():
    log = WireLog(0xFFFFFF, NEVER)
    payload = bytes(0xFFFFFF)
    log.append(6, VIDEO, 0xFFFFFFFF, payload)
    message = log.read(log.tail, 0)
    assert (message.timestamp, message.payload == payload) == (0xFFFFFFFF, True)


def test_a_fast_stream_gets_large_pages():
    log = WireLog(60000, 0)
    append_rate(log, 50_000_000, 5)
    assert log.tail.size == MAX_PAGE_BYTES


def test_an_idle_stream_keeps_small_pages():
    log = WireLog(60000, 0)
    append_rate(log, 16_000, 60)
    assert log.tail.size == MIN_PAGE_BYTES


def test_pages_of_one_bitrate_last_for_a_while():
    log = WireLog(60000, 0)
    end_ms = append_rate(log, 1_000_000, 20)
    settled = log.tail.size
    assert 100 <= settled * 8 / 1000 <= 1000  # ms, at 1000 bit/ms
    append_rate(log, 1_000_000, 20, end_ms)
    assert log.tail.size == settled


def test_pages_shrink_again_when_the_bitrate_falls():
    log = WireLog(60000, 0)
    end_ms = append_rate(log, 50_000_000, 5)
    append_rate(log, 16_000, 1800, end_ms)
    assert log.tail.size == MIN_PAGE_BYTES


def test_an_empty_stream_costs_little_more_than_its_page():
    log = WireLog(60000, NEVER)
    assert sys.getsizeof(log.tail.buffer) < MIN_PAGE_BYTES + 200
    assert sys.getsizeof(log) + sys.getsizeof(log.tail) + sys.getsizeof(log.tail.starts) < 1000


def test_pages_have_no_dictionary():
    assert not hasattr(Page(64, 0), "__dict__")
    assert not hasattr(WireLog(128, 0), "__dict__")


# Timestamps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timestamp", [0, 0xFFFFFE, 0xFFFFFF, 0x1000000, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 1, 128, 129, 1000])
def test_timestamps_survive_extended_or_not(timestamp, size):
    log = WireLog(128, NEVER)
    log.append(6, VIDEO, timestamp, b"\xc6" * size)
    message = log.read(log.tail, 0)
    assert message[:4] == (6, VIDEO, timestamp, b"\xc6" * size)
    assert (message.page, message.offset) == (log.tail, log.tail.end)
    assert parse(bytes(log.tail.view[: log.tail.end]), 128) == [(VIDEO, 1, timestamp, b"\xc6" * size)]
    assert log.timestamp_at(log.tail, 0) == timestamp


def test_notices_do_not_count_as_media():
    log = WireLog(128, NEVER)
    log.append(8, DATA, 5, b"data")
    log.append(5, 20, 0, b"onStatus")
    assert log.newest_timestamp == -1
    assert log.timestamp_at(log.tail, 0) is None
    log.append(4, 8, 77, b"\xaf\x01")
    assert log.timestamp_at(log.tail, 0) == log.newest_timestamp == 77


def test_control_messages_travel_on_message_stream_0():
    log = WireLog(128, NEVER)
    log.append(2, 4, 0, b"\0\0\0\0\0\1", message_stream_id=0)
    log.append(6, VIDEO, 0, b"\x17\x01")
    assert [message.message_stream_id for message in parse(bytes(log.tail.view[: log.tail.end]))] == [0, 1]


# The join point ---------------------------------------------------------------------------------------------------------


def test_the_join_point_moves_to_the_newest_keyframe_and_keeps_its_headers():
    log = WireLog(4096, NEVER)
    log.headers = Headers(((6, VIDEO, b"one"),), 1)
    log.append(6, VIDEO, 1000, b"\x17\x01", join_point=True)
    log.headers = Headers(((6, VIDEO, b"two"),), 2)
    assert log.join_headers.version == 1
    log.append(6, VIDEO, 1040, b"\x27\x01")
    assert (log.join_offset, log.join_timestamp, log.joins) == (0, 1000, 1)
    log.append(6, VIDEO, 1080, b"\x17\x01", join_point=True)
    assert (log.join_page, log.join_offset, log.join_position, log.join_timestamp) == (log.tail, 28, 28, 1080)
    assert (log.join_headers.version, log.joins) == (2, 2)


def test_a_join_point_too_far_back_is_given_up_and_the_next_one_taken():
    log = WireLog(4096, 10_000)
    log.append(6, VIDEO, 0, b"\x17\x01", join_point=True)
    appended = 0
    while log.join_page is not None:
        log.append(6, VIDEO, 0, bytes(1000))
        appended += 1
    assert appended == 11
    log.append(6, VIDEO, 0, bytes(1000))
    assert log.join_page is None
    log.append(6, VIDEO, 0, b"\x17\x01", join_point=True)
    assert log.join_page is log.tail


def test_a_smaller_limit_takes_effect_with_the_next_message():
    log = WireLog(4096, NEVER)
    log.append(6, VIDEO, 0, b"\x17\x01", join_point=True)
    log.append(6, VIDEO, 0, bytes(5000))
    log.cache_limit_bytes = 1000
    log.append(6, VIDEO, 0, bytes(10))
    assert log.join_page is None


def test_a_join_point_can_be_forgotten():
    log = WireLog(4096, NEVER)
    log.append(6, VIDEO, 0, b"\x17\x01", join_point=True)
    log.forget_join_point()
    assert log.join_page is None


# Memory -----------------------------------------------------------------------------------------------------------------


def test_pages_are_freed_when_no_join_point_and_no_cursor_holds_them():
    before = live_pages()
    log = WireLog(4096, NEVER)
    log.append(6, VIDEO, 0, b"\x17\x01", join_point=True)
    for _ in range(100):
        log.append(6, VIDEO, 0, bytes(9000))
    cursor = log.join_page.next.next
    held = len(list(pages_from(log.join_page)))
    assert held > 5
    assert live_pages() - before == held
    log.append(6, VIDEO, 0, b"\x17\x01", join_point=True)
    # Those before the cursor are gone; those behind it are needed to get to the end.
    assert live_pages() - before == len(list(pages_from(cursor))) >= held - 2
    del cursor
    assert live_pages() - before == 1
    del log
    assert live_pages() == before


def test_without_a_join_point_only_the_last_page_is_kept():
    before = live_pages()
    log = WireLog(4096, NEVER)
    for _ in range(100):
        log.append(6, VIDEO, 0, bytes(9000))
    assert live_pages() - before == 1


def test_a_group_of_pictures_over_the_limit_is_not_kept():
    before = live_pages()
    log = WireLog(4096, 100_000)
    log.append(6, VIDEO, 0, b"\x17\x01", join_point=True)
    for index in range(1000):
        log.append(6, VIDEO, index * 40, bytes(9000))
        assert live_pages_bytes(log) < 100_000 + 2 * MAX_PAGE_BYTES
    assert log.join_page is None
    assert live_pages() - before == 1


def live_pages_bytes(log):
    return sum(page.size for page in pages_from(log.join_page or log.tail))


def test_100_mb_leave_nothing_behind_but_the_group_of_pictures():
    """A group of pictures is 1 MB here; what is held at any time is about that, not what went through."""
    gc.collect()
    tracemalloc.start()
    try:
        log = WireLog(60000, 32 << 20)
        payload = bytes(20_000)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for index in range(5000):
            log.append(6, VIDEO, index * 40, payload, join_point=index % 50 == 0)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert log.position > 100_000_000
    assert peak - before < 3 << 20
    assert now - before < 3 << 20


def test_a_chain_of_100_000_pages_is_freed_without_recursion(monkeypatch):
    monkeypatch.setattr(pages, "MIN_PAGE_BYTES", 16)
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 16)
    before = live_pages()
    log = WireLog(128, NEVER)
    log.append(6, VIDEO, 0, b"", join_point=True)
    for _ in range(100_000):
        log.append(6, VIDEO, 0, b"1234")
    assert live_pages() - before == 100_001
    log.forget_join_point()
    assert live_pages() - before == 1
