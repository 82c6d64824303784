"""The wire log: a live stream as the bytes that every player gets, framed once.

A linked list of pages. A reader is a *cursor*: a page and an offset in it. The list is linked forwards only, so that a page
lives exactly as long as the join point or some cursor is on it or before it: Python's reference counts free it after that.

Every message starts with a type 0 chunk header, so that a cursor may start, or be moved, at any message. Pages know where
their messages start. Pure data structure: no event loop, no clock. Imports the chunk writer.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from rtmpd.protocol.chunk import EXTENDED_TIMESTAMP, frame_into, framed_size, pack_header
from rtmpd.stream.headers import NO_HEADERS

__all__ = ["LoggedMessage", "Page", "WireLog"]

MIN_PAGE_BYTES = 8 << 10
MAX_PAGE_BYTES = 256 << 10

# A page should last about this long: an idle stream then costs a small one, a fast stream isn't all page turns.
_FAST_MS = 200
_SLOW_MS = 800

_MEDIA = (8, 9)  # audio, video


class LoggedMessage(NamedTuple):
    """A message read back from the log; ``page`` and ``offset`` are the cursor behind it."""

    csid: int
    type_id: int
    timestamp: int
    payload: bytes
    page: Page
    offset: int


class Page:
    """A piece of the log.

    Attributes:
        view: The page's memory, for slices without a copy.
        base: The log position of the page's first byte.
        end: How many bytes are in use. Only grows, and only on the last page.
        next: The page behind it, or None.
        starts: Offsets at which messages start, ascending.
    """

    __slots__ = ("base", "buffer", "end", "next", "size", "starts", "view")

    def __init__(self, size: int, base: int) -> None:
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)
        self.size = size
        self.base = base
        self.end = 0
        self.next: Page | None = None
        self.starts: list[int] = []

    def boundary(self, offset: int) -> int:
        """Return the first message boundary at or behind *offset*."""
        index = bisect_right(self.starts, offset - 1)
        return self.starts[index] if index < len(self.starts) else self.end


class WireLog:
    """One stream's bytes for its players.

    Args:
        chunk_size: Outbound chunk size, bytes.
        cache_limit_bytes: A join point that lies further back than this is given up, and with it the pages that it holds.

    Attributes:
        tail: The last page; the log ends at ``tail.end``.
        position: Bytes appended so far: the log's end as an absolute position.
        join_page, join_offset, join_position: Where a late joiner starts; join_page is None when there is no such place.
        join_timestamp: The timestamp of the message there.
        newest_timestamp: The timestamp of the last audio or video message; -1 before the first and after the end.
        joins: How many join points there have been.
        headers, join_headers: What a decoder needs before the frames at the log's end, and at the join point.
    """

    __slots__ = (
        "_page_bytes",
        "_page_timestamp",
        "cache_limit_bytes",
        "chunk_size",
        "headers",
        "join_headers",
        "join_offset",
        "join_page",
        "join_position",
        "join_timestamp",
        "joins",
        "newest_timestamp",
        "position",
        "tail",
    )

    def __init__(self, chunk_size: int, cache_limit_bytes: int) -> None:
        self.chunk_size = chunk_size
        self.cache_limit_bytes = cache_limit_bytes
        self.position = 0
        self.tail = Page(MIN_PAGE_BYTES, 0)
        self._page_bytes = MIN_PAGE_BYTES
        self._page_timestamp = 0
        self.join_page: Page | None = None
        self.join_offset = 0
        self.join_position = 0
        self.join_timestamp = 0
        self.joins = 0
        self.newest_timestamp = -1
        self.headers = NO_HEADERS
        self.join_headers = NO_HEADERS

    def append(
        self, csid: int, type_id: int, timestamp: int, payload: bytes, join_point: bool = False, message_stream_id: int = 1
    ) -> None:
        """Frame a message and append it.

        Args:
            csid: Chunk stream id, 2..63.
            timestamp: Milliseconds, 0..2**32-1.
            payload: At most 0xFFFFFF bytes.
            join_point: Late joiners start here from now on.
            message_stream_id: 1 but for control messages, which belong to 0.
        """
        length = len(payload)
        # Nearly every message fits into one chunk.
        short = length <= self.chunk_size and timestamp < EXTENDED_TIMESTAMP
        size = 12 + length if short else framed_size(length, timestamp, self.chunk_size)
        page = self.tail
        if page.end + size > page.size:
            page = self._turn(size, timestamp)
        start = page.end
        if join_point:
            self.join_page = page
            self.join_offset = start
            self.join_position = self.position
            self.join_timestamp = timestamp
            self.join_headers = self.headers
            self.joins += 1
        elif self.join_page is not None and self.position - self.join_position > self.cache_limit_bytes:
            self.join_page = None
        if type_id in _MEDIA:
            self.newest_timestamp = timestamp
        page.starts.append(start)
        if short:
            end = start + size
            page.buffer[start + 12 : end] = payload
            pack_header(page.buffer, start, csid << 24 | timestamp, length << 8 | type_id, message_stream_id << 24)
            page.end = end
        else:
            page.end = frame_into(page.buffer, start, csid, type_id, message_stream_id, timestamp, payload, self.chunk_size)
        self.position += size

    def _turn(self, size: int, timestamp: int) -> Page:
        """Link a new last page that has room for *size* bytes, its size by how long the last one took to fill."""
        lasted_ms = (timestamp - self._page_timestamp) & 0xFFFFFFFF
        if lasted_ms < _FAST_MS:
            self._page_bytes = min(self._page_bytes * 2, MAX_PAGE_BYTES)
        elif lasted_ms > _SLOW_MS:
            self._page_bytes = max(self._page_bytes // 2, MIN_PAGE_BYTES)
        self._page_timestamp = timestamp
        page = Page(max(size, self._page_bytes), self.position)
        self.tail.next = page
        self.tail = page
        return page

    def forget_join_point(self) -> None:
        """Give up the join point: the stream has ended, or its content is no longer worth starting at."""
        self.join_page = None

    @staticmethod
    def gather(page: Page, offset: int, limit_bytes: int) -> tuple[memoryview | bytes, Page, int]:
        """Return the log's bytes from a cursor on, and the cursor behind them.

        Within one page that is a view. A range over several is copied together, once for all players; it ends at a page's end
        as soon as it is longer than *limit_bytes*.
        """
        while offset == page.end and page.next is not None:
            page, offset = page.next, 0
        if page.next is None:
            return page.view[offset : page.end], page, page.end
        views = [page.view[offset : page.end]]
        size = page.end - offset
        while page.next is not None and size < limit_bytes:
            page = page.next
            views.append(page.view[: page.end])
            size += page.end
        return b"".join(views), page, page.end

    def read(self, page: Page, offset: int) -> LoggedMessage | None:
        """Read the message at a cursor that is at a boundary, its payload in one piece; None at the end of the log."""
        while offset >= page.end:
            if page.next is None:
                return None
            page, offset = page.next, 0
        buffer = page.buffer
        csid_byte = buffer[offset]
        timestamp = int.from_bytes(buffer[offset + 1 : offset + 4], "big")
        length = int.from_bytes(buffer[offset + 4 : offset + 7], "big")
        type_id = buffer[offset + 7]
        offset += 12
        separator_size = 1
        if timestamp == 0xFFFFFF:
            timestamp = int.from_bytes(buffer[offset : offset + 4], "big")
            offset += 4
            separator_size = 5
        pieces = []
        left = length
        while left > self.chunk_size:
            pieces.append(page.view[offset : offset + self.chunk_size])
            offset += self.chunk_size + separator_size
            left -= self.chunk_size
        pieces.append(page.view[offset : offset + left])
        return LoggedMessage(csid_byte & 63, type_id, timestamp, b"".join(pieces), page, offset + left)

    def timestamp_at(self, page: Page, offset: int) -> int | None:
        """Return the timestamp of the first audio or video message at or behind a cursor; None if there is none."""
        offset = page.boundary(offset)
        while True:
            if offset >= page.end:
                if page.next is None:
                    return None
                page, offset = page.next, 0
            elif page.buffer[offset + 7] not in _MEDIA:
                offset = page.boundary(offset + 1)
            else:
                timestamp = int.from_bytes(page.buffer[offset + 1 : offset + 4], "big")
                if timestamp == 0xFFFFFF:
                    timestamp = int.from_bytes(page.buffer[offset + 12 : offset + 16], "big")
                return timestamp
