from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest

from rtmpd.live.flv_framing import FLV
from rtmpd.live.framing import AUDIO, DATA, VIDEO, Headers
from rtmpd.live.log import NEVER, Log
from rtmpd.live.pages import MAX_PAGE_BYTES, MIN_PAGE_BYTES, Page
from rtmpd.live.rtmp_framing import RtmpFraming
from rtmpd.media import flv
from rtmpd.media.tags import Kind
from rtmpd.protocol.chunk import frame_message
from rtmpd.protocol.message import CSID_STATUS, MessageType
from tests.unit.live.fakes import live_pages, parse


def rtmp_log(chunk_size, cache_limit_bytes):
    return Log(RtmpFraming(chunk_size), cache_limit_bytes)


def append(log, timestamp, payload, *, join_point=False):
    """Append a video message."""
    log.append(VIDEO, timestamp, payload, Kind.KEYFRAME if join_point else Kind.FRAME, join_point)


def pages_from(page):
    while page is not None:
        yield page
        page = page.next


def append_rate(log, bits_per_s, seconds, start_ms=0):
    """Append frames of 40 ms at a bitrate; return the time behind them."""
    size = bits_per_s // 8 // 25
    for index in range(int(seconds * 25)):
        append(log, start_ms + index * 40, bytes(size))
    return start_ms + int(seconds * 1000)


# Pages ------------------------------------------------------------------------------------------------------------------


def test_a_new_log_takes_no_memory_and_its_first_page_is_small():
    log = rtmp_log(4096, NEVER)
    assert (log.tail.size, log.tail.end, log.position, log.newest_timestamp) == (0, 0, 0, -1)
    assert log.account.bytes == 0
    assert log.join_page is None
    assert log.read(log.tail, 0) is None
    assert log.timestamp_at(log.tail, 0) is None
    assert log.tail.boundary(0) == 0
    append(log, 0, b"small")
    assert (log.tail.size, log.account.bytes) == (MIN_PAGE_BYTES, MIN_PAGE_BYTES)


def test_a_message_that_just_fits_does_not_turn_the_page():
    log = rtmp_log(1 << 20, NEVER)
    append(log, 0, bytes(1))
    page = log.tail
    append(log, 0, bytes(MIN_PAGE_BYTES - 12 - page.end))
    assert (log.tail, page.end) == (page, page.size)


def test_a_message_that_does_not_fit_starts_the_next_page():
    log = rtmp_log(1 << 20, NEVER)
    append(log, 0, bytes(MIN_PAGE_BYTES - 100))
    page = log.tail
    append(log, 40, bytes(89))
    assert page.next is log.tail
    assert page.end == MIN_PAGE_BYTES - 88
    assert (log.tail.base, list(log.tail.starts), log.tail.end) == (page.end, [0], 101)
    assert page.next.next is None


def test_a_message_larger_than_a_page_gets_one_of_its_own():
    log = rtmp_log(60000, NEVER)
    first = log.tail
    payload = bytes(range(256)) * 4096
    append(log, 0, b"\x27\x01small")
    append(log, 40, payload)
    large = log.tail
    append(log, 80, b"\x27\x01small")
    assert list(large.starts) == [0]
    assert large.end == large.size == len(payload) + 12 + len(payload) // 60000
    assert log.tail is large.next
    wire = b"".join(bytes(page.view[: page.end]) for page in pages_from(first))
    assert [len(message.payload) for message in parse(wire, 60000)] == [7, len(payload), 7]


def test_the_largest_possible_message_is_read_back():
    log = rtmp_log(0xFFFFFF, NEVER)
    payload = bytes(0xFFFFFF)
    append(log, 0xFFFFFFFF, payload)
    message = log.read(log.tail, 0)
    assert (message.timestamp, message.payload == payload) == (0xFFFFFFFF, True)


def test_a_fast_stream_gets_large_pages():
    log = rtmp_log(60000, 0)
    append_rate(log, 50_000_000, 5)
    assert log.tail.size == MAX_PAGE_BYTES


def test_an_idle_stream_keeps_small_pages():
    log = rtmp_log(60000, 0)
    append_rate(log, 16_000, 60)
    assert log.tail.size == MIN_PAGE_BYTES


def test_pages_of_one_bitrate_last_for_a_while():
    log = rtmp_log(60000, 0)
    end_ms = append_rate(log, 1_000_000, 20)
    settled = log.tail.size
    assert 100 <= settled * 8 / 1000 <= 1000  # ms, at 1000 bit/ms
    append_rate(log, 1_000_000, 20, end_ms)
    assert log.tail.size == settled


def test_pages_shrink_again_when_the_bitrate_falls():
    log = rtmp_log(60000, 0)
    end_ms = append_rate(log, 50_000_000, 5)
    append_rate(log, 16_000, 1800, end_ms)
    assert log.tail.size == MIN_PAGE_BYTES


def test_an_empty_stream_costs_little_more_than_its_page():
    log = rtmp_log(60000, NEVER)
    assert sys.getsizeof(log.tail.buffer) < MIN_PAGE_BYTES + 200
    assert sys.getsizeof(log) + sys.getsizeof(log.tail) + sys.getsizeof(log.tail.starts) < 1000


def test_pages_have_no_dictionary():
    assert not hasattr(Page(64, 0), "__dict__")
    assert not hasattr(rtmp_log(128, 0), "__dict__")


# Timestamps -------------------------------------------------------------------------------------------------------------


def test_only_audio_and_video_messages_set_the_newest_timestamp():
    log = rtmp_log(128, NEVER)
    log.append(DATA, 5, b"data", Kind.OTHER)
    log.append_notice(frame_message(CSID_STATUS, MessageType.COMMAND_AMF0, 1, 0, b"onStatus", 128))
    assert log.newest_timestamp == -1
    assert log.timestamp_at(log.tail, 0) is None
    log.append(AUDIO, 77, b"\xaf\x01", Kind.FRAME)
    assert log.timestamp_at(log.tail, 0) == log.newest_timestamp == 77


def test_a_notice_that_does_not_fit_starts_the_next_page():
    log = rtmp_log(1 << 20, NEVER)
    append(log, 0, bytes(MIN_PAGE_BYTES - 100))
    page = log.tail
    notice = bytes(120)
    log.append_notice(notice)
    assert page.next is log.tail
    assert (log.tail.base, list(log.tail.starts), bytes(log.tail.view[: log.tail.end])) == (page.end, [0], notice)
    assert log.position == page.end + 120


# The join point ---------------------------------------------------------------------------------------------------------


def test_the_join_point_moves_to_the_newest_keyframe_and_keeps_its_headers():
    log = rtmp_log(4096, NEVER)
    first, second = Headers(((VIDEO, b"one"),)), Headers(((VIDEO, b"two"),))
    log.headers = first
    append(log, 1000, b"\x17\x01", join_point=True)
    log.headers = second
    assert log.join_headers is first
    append(log, 1040, b"\x27\x01")
    assert (log.join_offset, log.join_timestamp, log.joins) == (0, 1000, 1)
    append(log, 1080, b"\x17\x01", join_point=True)
    assert (log.join_page, log.join_offset, log.join_position, log.join_timestamp) == (log.tail, 28, 28, 1080)
    assert log.join_headers is second
    assert log.joins == 2


def test_a_join_point_too_far_back_is_forgotten_until_the_next_one():
    log = rtmp_log(4096, 10_000)
    append(log, 0, b"\x17\x01", join_point=True)
    appended = 0
    while log.join_page is not None:
        append(log, 0, bytes(1000))
        appended += 1
    assert appended == 11
    append(log, 0, bytes(1000))
    assert log.join_page is None
    append(log, 0, b"\x17\x01", join_point=True)
    assert log.join_page is log.tail


def test_a_keyframe_longer_than_the_limit_is_a_join_point_until_the_next_message():
    log = rtmp_log(4096, 1000)
    append(log, 0, bytes(5000), join_point=True)
    assert log.join_page is log.tail
    append(log, 0, b"\x27\x01")
    assert log.join_page is None


def test_a_smaller_limit_takes_effect_with_the_next_message():
    log = rtmp_log(4096, NEVER)
    append(log, 0, b"\x17\x01", join_point=True)
    append(log, 0, bytes(5000))
    log.cache_limit_bytes = 1000
    append(log, 0, bytes(10))
    assert log.join_page is None


def test_a_join_point_can_be_forgotten():
    log = rtmp_log(4096, NEVER)
    append(log, 0, b"\x17\x01", join_point=True)
    log.forget_join_point()
    assert log.join_page is None


# Memory -----------------------------------------------------------------------------------------------------------------


def test_pages_are_freed_when_no_join_point_and_no_cursor_holds_them():
    before = live_pages()
    log = rtmp_log(4096, NEVER)
    append(log, 0, b"\x17\x01", join_point=True)
    for _ in range(100):
        append(log, 0, bytes(9000))
    cursor = log.join_page.next.next
    held = len(list(pages_from(log.join_page)))
    assert held > 5
    assert live_pages() - before == held
    append(log, 0, b"\x17\x01", join_point=True)
    # The pages before the cursor are freed; those behind it are needed to get to the end.
    assert live_pages() - before == len(list(pages_from(cursor))) >= held - 2
    del cursor
    assert live_pages() - before == 1
    del log
    assert live_pages() == before


def test_without_a_join_point_only_the_last_page_is_kept():
    before = live_pages()
    log = rtmp_log(4096, NEVER)
    for _ in range(100):
        append(log, 0, bytes(9000))
    assert live_pages() - before == 1


def test_a_group_of_pictures_over_the_limit_is_not_kept():
    before = live_pages()
    log = rtmp_log(4096, 100_000)
    append(log, 0, b"\x17\x01", join_point=True)
    for index in range(1000):
        append(log, index * 40, bytes(9000))
        assert live_pages_bytes(log) < 100_000 + 2 * MAX_PAGE_BYTES
    assert log.join_page is None
    assert live_pages() - before == 1


def live_pages_bytes(log):
    return sum(page.size for page in pages_from(log.join_page or log.tail))


def test_100_mb_leave_nothing_behind_but_the_group_of_pictures():
    """A group of pictures is 1 MB here: the log never holds much more than that."""
    gc.collect()
    tracemalloc.start()
    try:
        log = rtmp_log(60000, 32 << 20)
        payload = bytes(20_000)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for index in range(5000):
            append(log, index * 40, payload, join_point=index % 50 == 0)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert log.position > 100_000_000
    assert peak - before < 3 << 20
    assert now - before < 3 << 20


def test_a_chain_of_100_000_pages_is_freed_without_recursion(monkeypatch):
    monkeypatch.setattr("rtmpd.live.log.MIN_PAGE_BYTES", 16)
    monkeypatch.setattr("rtmpd.live.log.MAX_PAGE_BYTES", 16)
    before = live_pages()
    log = rtmp_log(128, NEVER)
    append(log, 0, b"", join_point=True)
    for _ in range(100_000):
        append(log, 0, b"1234")
    assert live_pages() - before == 100_001
    log.forget_join_point()
    assert live_pages() - before == 1


# Readers in batches -----------------------------------------------------------------------------------------------------


class Reader:
    def __init__(self, log, wake_at=NEVER):
        self.log = log
        self.wake_at = wake_at
        self.woken = []

    def wake(self):
        self.woken.append(self.log.position)

    def fail(self):
        raise AssertionError("the log has not failed")


def append_audio(log, count):
    for number in range(count):
        log.append(AUDIO, number, bytes(10), Kind.FRAME)


def test_a_reader_is_woken_once_when_the_log_reaches_its_position():
    log = Log(FLV, NEVER)
    size = flv.tag_size(10)
    reader, other = Reader(log, 3 * size), Reader(log, 5 * size)
    for each in (reader, other):
        log.add_reader(each)
    append_audio(log, 8)
    assert reader.woken == [3 * size]
    assert other.woken == [5 * size]
    assert reader.wake_at == NEVER


def test_a_reader_that_is_woken_may_set_another_position_or_unregister():
    log = Log(FLV, NEVER)

    class Again(Reader):
        def wake(self):
            super().wake()
            self.wake_at = log.position + 50

    class Once(Reader):
        def wake(self):
            super().wake()
            log.remove_reader(self)

    readers = [Once(log, 1), Again(log, 1)]
    for each in readers:
        log.add_reader(each)
    append_audio(log, 4)
    assert [each.woken for each in readers] == [[25], [25, 75]]
    assert log.readers == readers[1:]


def test_a_changed_position_counts_after_schedule():
    log = Log(FLV, NEVER)
    reader = Reader(log)
    log.add_reader(reader)
    append_audio(log, 2)
    reader.wake_at = 75
    log.schedule()
    append_audio(log, 2)
    assert reader.woken == [75]


def test_a_notice_wakes_readers_too():
    log = rtmp_log(128, NEVER)
    reader = Reader(log, 20)
    log.add_reader(reader)
    log.append_notice(bytes(30))
    assert reader.woken == [30]


def test_an_unregistered_reader_is_not_woken_and_may_be_unregistered_again():
    log = Log(FLV, NEVER)
    reader = Reader(log, 1)
    log.add_reader(reader)
    log.remove_reader(reader)
    log.remove_reader(reader)
    append_audio(log, 2)
    assert (reader.woken, log.readers) == ([], [])


@pytest.mark.parametrize("framing", [FLV, RtmpFraming(20)], ids=["FLV", "RTMP"])
@pytest.mark.parametrize("size", [16, 64])
def test_reading_crosses_pages_and_continues_behind_any_message(monkeypatch, size, framing):
    monkeypatch.setattr("rtmpd.live.log.MIN_PAGE_BYTES", size)
    monkeypatch.setattr("rtmpd.live.log.MAX_PAGE_BYTES", size)
    log = Log(framing, NEVER)
    first = log.tail
    payloads = [bytes([number]) * (number * 7 % 90) for number in range(40)]
    for number, payload in enumerate(payloads):
        log.append(AUDIO, number, payload, Kind.FRAME)
    read = list(log.read_all(first, 0))
    assert [(each.type_id, each.timestamp, bytes(each.payload), each.kind) for each in read] == [
        (AUDIO, number, payload, Kind.FRAME) for number, payload in enumerate(payloads)
    ]
    for number, message in enumerate(read):
        assert [each.timestamp for each in log.read_all(message.page, message.offset)] == list(range(number + 1, 40))
    assert list(log.read_all(log.tail, log.tail.end)) == []


def test_pages_are_freed_behind_the_cursor_of_a_reader():
    before = live_pages()
    log = Log(FLV, NEVER)
    cursor = log.tail
    for number in range(1000):
        log.append(VIDEO, number * 40, bytes(5000), Kind.FRAME)
    *_, last = log.read_all(cursor, 0)
    assert last.page is log.tail
    del cursor, _, last
    assert live_pages() - before == 1


# Wake-up of the fan-out -------------------------------------------------------------------------------------------------


def test_each_append_reports_the_growth_of_the_log():
    log = rtmp_log(128, NEVER)
    append(log, 0, b"nothing listens")
    positions = []
    log.on_growth = lambda: positions.append(log.position)
    append(log, 0, bytes(10))
    log.append_notice(bytes(30))
    assert positions == [log.position - 30, log.position]


# Prepending -------------------------------------------------------------------------------------------------------------


def both(chunk_size=128):
    """Return a log that is only read in batches and began in the middle, and one with all from the keyframe on."""
    log, older = rtmp_log(chunk_size, NEVER), rtmp_log(chunk_size, NEVER)
    older.headers = Headers(((VIDEO, b"header"),))
    append(older, 1000, b"\x17\x01key", join_point=True)
    for number in range(30):
        append(older, 1040 + number * 40, bytes([number]) * 1000)
    for number in range(20, 30):
        append(log, 1040 + number * 40, bytes([number]) * 1000)
    return log, older


def test_a_prepended_log_is_read_from_the_keyframe_to_the_end():
    log, older = both()
    position, end = log.position, older.position
    log.prepend(older)
    append(log, 2280, b"next")
    read = list(log.read_all(log.join_page, log.join_offset))
    assert [each.timestamp for each in read] == [1000, *range(1040, 2240, 40), 2280]
    assert bytes(read[-1].payload) == b"next"
    assert (log.join_timestamp, log.joins) == (1000, 1)
    assert log.join_headers is older.headers
    assert position - log.join_position == end
    assert log.join_page.base + log.join_offset == log.join_position


def test_a_prepended_log_keeps_positions_and_message_counts():
    log, older = both()
    log.prepend(older)
    append(log, 2280, b"next")
    page, base, number = log.join_page, log.join_page.base, log.join_page.number
    while page is not None:
        assert (page.base, page.number) == (base, number)
        base, number = base + page.end, number + len(page.starts)
        page = page.next
    assert base == log.position
    assert number == 11
    assert log.lag_ms(log.join_page, log.join_offset) == 1280


def test_a_batch_reader_does_not_notice_that_a_log_is_prepended():
    log, older = both()
    page, offset = log.tail, log.tail.end
    reader = Reader(log, log.position + 1)
    log.add_reader(reader)
    log.prepend(older)
    assert reader.woken == []
    append(log, 2280, b"next")
    append(log, 2320, b"last")
    assert reader.woken == [log.position - len(log.read(log.tail, log.tail.starts[-1]).data)]
    assert [bytes(each.payload) for each in log.read_all(page, offset)] == [b"next", b"last"]


def test_without_a_join_point_nothing_is_prepended():
    log, older = both()
    older.forget_join_point()
    tail = log.tail
    log.prepend(older)
    assert (log.tail, log.join_page, log.joins) == (tail, None, 0)


def test_a_prepended_join_point_too_far_back_is_forgotten():
    before = live_pages()
    log, older = both()
    log.cache_limit_bytes = older.position + 10_000
    log.prepend(older)
    del older
    appended = 0
    while log.join_page is not None:
        append(log, 3000, bytes(1000))
        appended += 1
    assert appended == 11
    assert live_pages() - before == 1
