from __future__ import annotations

import gc

import pytest

from rtmpd.live import pages
from rtmpd.live.flvlog import NEVER, FlvLog, FlvPage
from rtmpd.media import flv
from rtmpd.media.tags import Kind


class Reader:
    def __init__(self, wake_at=NEVER):
        self.wake_at = wake_at
        self.woken = []
        self.log = None

    def wake(self):
        self.woken.append(self.log.position)


def tags(log, page, offset=0):
    return list(log.read(page, offset))


def test_what_was_appended_is_read_back_as_tags():
    log = FlvLog()
    first = log.tail
    log.append(9, 0, b"\x17\x01video", Kind.KEYFRAME)
    log.append(8, 0x01234567, b"\xaf\x01audio", Kind.FRAME)
    log.append(18, 0xFFFFFFFF, b"data", Kind.OTHER)
    read = tags(log, first)
    assert [(tag.type_id, tag.kind, tag.timestamp) for tag in read] == [
        (9, Kind.KEYFRAME, 0),
        (8, Kind.FRAME, 0x01234567),
        (18, Kind.OTHER, 0xFFFFFFFF),
    ]
    expected = [
        flv.tag(9, 0, b"\x17\x01video"),
        flv.tag(8, 0x01234567, b"\xaf\x01audio"),
        flv.tag(18, 0xFFFFFFFF, b"data"),
    ]
    assert [bytes(tag.data) for tag in read] == expected
    assert log.position == sum(map(len, expected))


@pytest.mark.parametrize("size", [16, 64])
def test_reading_goes_over_pages_and_on_from_any_tag(monkeypatch, size):
    monkeypatch.setattr(pages, "MIN_PAGE_BYTES", size)
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", size)
    log = FlvLog()
    first = log.tail
    payloads = [bytes([number]) * (number * 7 % 90) for number in range(40)]
    for number, payload in enumerate(payloads):
        log.append(8, number, payload, Kind.FRAME)
    read = tags(log, first)
    assert [bytes(tag.data) for tag in read] == [flv.tag(8, number, payload) for number, payload in enumerate(payloads)]
    for number, tag in enumerate(read):
        assert [each.timestamp for each in tags(log, tag.page, tag.offset)] == list(range(number + 1, 40))
    assert tags(log, log.tail, log.tail.end) == []


def test_a_reader_is_woken_once_when_the_log_has_come_to_its_place():
    log = FlvLog()
    size = flv.tag_size(10)
    reader, other = Reader(3 * size), Reader(5 * size)
    for each in (reader, other):
        each.log = log
        log.readers.append(each)
    log.look()
    for number in range(8):
        log.append(8, number, bytes(10), Kind.FRAME)
    assert reader.woken == [3 * size]
    assert other.woken == [5 * size]
    assert reader.wake_at == NEVER


def test_a_reader_that_is_woken_may_ask_to_be_woken_again_or_leave():
    log = FlvLog()

    class Again(Reader):
        def wake(self):
            super().wake()
            self.wake_at = log.position + 50

    class Once(Reader):
        def wake(self):
            super().wake()
            log.readers.remove(self)

    readers = [Once(1), Again(1)]
    for each in readers:
        each.log = log
        log.readers.append(each)
    log.look()
    for number in range(4):
        log.append(8, number, bytes(10), Kind.FRAME)
    assert [each.woken for each in readers] == [[25], [25, 75]]


def test_pages_are_freed_behind_the_cursor():
    log = FlvLog()
    cursor = log.tail
    for number in range(1000):
        log.append(9, number * 40, bytes(5000), Kind.FRAME)
    *_, last = log.read(cursor, 0)
    assert last.page is log.tail
    del cursor, _
    page = last.page
    del last
    gc.collect()
    assert [each for each in gc.get_objects() if type(each) is FlvPage] == [page]
