"""The wire log: a live stream as the bytes that every player gets, framed once.

Every message starts with a type 0 chunk header, so that a cursor may start, or be moved, at any message. Besides the pages it
keeps the join point, where late joiners start. Pure data structure: no event loop, no clock. Imports the chunk writer and the
search for disposable frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rtmpd.live.headers import NO_HEADERS
from rtmpd.live.pages import Page, PageLog
from rtmpd.media.disposable import is_disposable, read_formats
from rtmpd.protocol.chunk import EXTENDED_TIMESTAMP, frame_into, framed_size, pack_header

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.media.disposable import FrameFormat

__all__ = ["LoggedMessage", "WireLog"]

_MEDIA = (8, 9)  # audio, video
_VIDEO = 9


class LoggedMessage(NamedTuple):
    """A message read back from the log; ``page`` and ``offset`` are the cursor behind it."""

    csid: int
    type_id: int
    timestamp: int
    payload: bytes
    page: Page
    offset: int


class WireLog(PageLog):
    """One stream's bytes for its players.

    Args:
        chunk_size: Outbound chunk size, bytes.
        cache_limit_bytes: A join point that lies further back than this is given up, and with it the pages that it holds.

    Attributes:
        join_page, join_offset, join_position: Where a late joiner starts; join_page is None when there is no such place.
        join_timestamp: The timestamp of the message there.
        newest_timestamp: The timestamp of the last audio or video message; -1 before the first and after the end.
        joins: How many join points there have been.
        headers, join_headers: What a decoder needs before the frames at the log's end, and at the join point.
    """

    __slots__ = (
        "_finds_disposable",
        "_formats",
        "_formats_of",
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
    )

    def __init__(self, chunk_size: int, cache_limit_bytes: int) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.cache_limit_bytes = cache_limit_bytes
        self.join_page: Page | None = None
        self.join_offset = 0
        self.join_position = 0
        self.join_timestamp = 0
        self.joins = 0
        self.newest_timestamp = -1
        self.headers = NO_HEADERS
        self.join_headers = NO_HEADERS
        self._finds_disposable = False
        self._formats_of = NO_HEADERS
        self._formats: Mapping[int, FrameFormat] = {}

    def find_disposable(self, *, wanted: bool) -> None:
        """Say whether disposable frames are to be noted in the pages, from now on: it costs a look into each frame."""
        self._finds_disposable = wanted

    def _is_disposable(self, payload: bytes) -> bool:
        if self._formats_of is not self.headers:
            self._formats_of = self.headers
            self._formats = read_formats(header for _, type_id, header in self.headers.items if type_id == _VIDEO)
        return is_disposable(payload, self._formats)

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
        if self._finds_disposable and type_id == _VIDEO and self._is_disposable(payload):
            page.disposable.append(start)
        if short:
            end = start + size
            page.buffer[start + 12 : end] = payload
            pack_header(page.buffer, start, csid << 24 | timestamp, length << 8 | type_id, message_stream_id << 24)
            page.end = end
        else:
            page.end = frame_into(page.buffer, start, csid, type_id, message_stream_id, timestamp, payload, self.chunk_size)
        self.position += size

    def forget_join_point(self) -> None:
        """Give up the join point: the stream has ended, or its content is no longer worth starting at."""
        self.join_page = None

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

    def lag_ms(self, page: Page, offset: int) -> int:
        """Return how much older than the newest frame the first one at or behind a cursor is; 0 if there is neither."""
        timestamp = self.timestamp_at(page, offset)
        lag_ms = 0 if timestamp is None or self.newest_timestamp < 0 else (self.newest_timestamp - timestamp) & 0xFFFFFFFF
        # The first may be a little newer than the newest: audio and video come interleaved.
        return lag_ms if lag_ms < 0x80000000 else 0

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
