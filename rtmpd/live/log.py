"""The log: one stream in one framing, kept for its readers.

Each message is framed once, as the bytes that all readers get, and a cursor may start at any message. Besides its pages a log
keeps the join point, where new readers start, and the headers in force. Pure data structure: no event loop, no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Protocol

from rtmpd.live.framing import DATA, NO_HEADERS, VIDEO, Headers, Message
from rtmpd.live.pages import ALL_PAGES, MAX_PAGE_BYTES, MIN_PAGE_BYTES, Page, PageAccount
from rtmpd.media.disposable import is_disposable, read_formats
from rtmpd.media.tags import Kind
from rtmpd.util.speed import accelerated, completes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rtmpd.live.framing import Framing
    from rtmpd.media.disposable import FrameFormat

NEVER: Final = 1 << 62
"""A position that no log reaches."""

# A page should last about this long: an idle stream then takes little memory, and a fast one turns few pages.
_FAST_MS = 100
_SLOW_MS = 400
_OTHER = int(Kind.OTHER)


class LogReader(Protocol):
    """A part of the server that reads a log in batches.

    Attributes:
        wake_at: The log's position at which `wake` is called; `NEVER`: it is not.
    """

    wake_at: int

    def wake(self) -> None:
        """The log has reached `wake_at`, which is `NEVER` by now. Called by the source's greenlet: it must not wait."""

    def fail(self) -> None:
        """The log ends, because of an error of the server. Must not wait."""


@accelerated
class LogState:
    """What an append of an ordinary message changes of a log, and what it needs.

    Attributes:
        tail: The last page; the log ends at ``tail.end``.
        position: The number of bytes appended so far: the end of the log as an absolute position.
        newest_timestamp: The timestamp of the last audio or video message; -1 before the first and after the end.
        on_growth: Called after each append: the fan-out's wake-up, while it has subscribers. It must not wait.
        account: Counts the log's pages.
        join_page, join_offset, join_position: Where a new reader starts; join_page is None if there is no such place.
        join_timestamp: The timestamp of the message there.
        joins: The number of join points so far.
        headers, join_headers: What a decoder needs before the frames at the log's end, and at the join point.
    """

    __slots__ = (
        "_alarm_at",
        "_chunk_size",
        "_finds_disposable",
        "_page_bytes",
        "_page_limits",
        "_page_timestamp",
        "account",
        "headers",
        "join_headers",
        "join_offset",
        "join_page",
        "join_position",
        "join_timestamp",
        "joins",
        "newest_timestamp",
        "on_growth",
        "position",
        "tail",
    )

    tail: Page
    position: int
    newest_timestamp: int
    on_growth: Callable[[], None] | None
    account: PageAccount
    join_page: Page | None
    join_offset: int
    join_position: int
    join_timestamp: int
    joins: int
    headers: Headers
    join_headers: Headers
    _alarm_at: int
    _chunk_size: int
    _finds_disposable: bool
    _page_bytes: int
    _page_limits: tuple[int, int]
    _page_timestamp: int


class Log(LogState):
    """The messages of a stream in one framing.

    Args:
        framing: The format.
        cache_limit_bytes: A join point that is further back than this is forgotten, and its pages are freed.
        account: Counts the log's pages; None: one of its own.
    """

    __slots__ = ("_cache_limit_bytes", "_formats", "_formats_of", "_readers", "_write", "framing")

    def __init__(self, framing: Framing, cache_limit_bytes: int, account: PageAccount | None = None) -> None:
        self.framing = framing
        self._write = framing.write
        # The extension writes plain chunks itself.
        self._chunk_size = getattr(framing, "plain_chunk_size", 0)
        self._cache_limit_bytes = cache_limit_bytes
        self.position = 0
        self.account = account or PageAccount(ALL_PAGES)
        # Without room: a stream that players only wait for takes no memory.
        self.tail = Page(0, 0, 0, self.account)
        self._page_limits = MIN_PAGE_BYTES, MAX_PAGE_BYTES
        self._page_bytes = MIN_PAGE_BYTES
        self._page_timestamp = 0
        self.join_page = None
        self.join_offset = 0
        self.join_position = 0
        self.join_timestamp = 0
        self.joins = 0
        self.newest_timestamp = -1
        self.headers = NO_HEADERS
        self.join_headers = NO_HEADERS
        self.on_growth = None
        self._readers: list[LogReader] = []
        self._alarm_at = NEVER
        self._finds_disposable = False
        self._formats_of: Headers = NO_HEADERS
        self._formats: Mapping[int, FrameFormat] = {}

    def set_headers(self, headers: Headers) -> None:
        """Set the headers in force for the messages that follow."""
        self.headers = headers
        self.framing.set_headers(headers)

    # Appending ---------------------------------------------------------------------------------------------------------

    @completes(LogState)
    def append(self, type_id: int, timestamp: int, payload: bytes, kind: int, join_point: bool = False) -> None:
        """Frame a message and append it. The hot path: once for each message of a stream, however many readers there are.

        Args:
            type_id: `AUDIO`, `VIDEO` or `DATA`.
            timestamp: Milliseconds, 0..2**32-1.
            payload: At most 0xFFFFFF bytes.
            kind: A `rtmpd.media.tags.Kind`.
            join_point: New readers start here from now on.
        """
        page = self.tail
        end = self._write(page, type_id, timestamp, payload)
        if end < 0:
            page = self._turn(self.framing.size(timestamp, len(payload)), timestamp)
            end = self._write(page, type_id, timestamp, payload)
        start = page.end
        if join_point:
            self.join_page = page
            self.join_offset = start
            self.join_position = self.position
            self.join_timestamp = timestamp
            self.join_headers = self.headers
            self.joins += 1
            self.schedule()
        if type_id != DATA:
            self.newest_timestamp = timestamp
        if end == start:
            # The format does not carry the message.
            return
        if self._finds_disposable and type_id == VIDEO and self._is_disposable(payload):
            page.disposable.append(start)
        page.starts.append(start)
        page.kinds.append(kind)
        page.end = end
        self.position += end - start
        if self.on_growth is not None:
            self.on_growth()
        if self.position >= self._alarm_at:
            self._alarm()

    def append_notice(self, data: bytes) -> None:
        """Append a message that the framing has made as a whole."""
        page = self.tail
        if page.end + len(data) > page.size:
            page = self._turn(len(data), max(self.newest_timestamp, 0))
        start = page.end
        page.starts.append(start)
        page.kinds.append(_OTHER)
        page.end = start + len(data)
        page.buffer[start : page.end] = data
        self.position += len(data)
        if self.on_growth is not None:
            self.on_growth()
        if self.position >= self._alarm_at:
            self._alarm()

    def _turn(self, size: int, timestamp: int) -> Page:
        """Link a new last page that has room for *size* bytes. Its size follows from how long the last one took to fill."""
        lasted_ms = (timestamp - self._page_timestamp) & 0xFFFFFFFF
        least_bytes, most_bytes = self._page_limits
        if not self.tail.size and size <= least_bytes:
            pass  # the first page: nothing is known of the stream
        elif lasted_ms < _FAST_MS:
            self._page_bytes = min(self._page_bytes * 2, most_bytes)
        elif lasted_ms > _SLOW_MS:
            self._page_bytes = max(self._page_bytes // 2, least_bytes)
        self._page_timestamp = timestamp
        number = self.tail.number + len(self.tail.starts)
        page = Page(max(size, self._page_bytes), self.position, number, self.account)
        self.tail.next = page
        self.tail = page
        return page

    def prepend(self, older: Log) -> None:
        """Place the messages of another log, which nothing else uses, before the end of this one, and join there.

        A log that is only read in batches has no join point. When it gets its first subscriber, that starts at the newest
        keyframe all the same: *older* has the same framing, and the messages from there to the present end.
        """
        bytes_before = self.position - older.position
        messages_before = self.tail.number + len(self.tail.starts) - older.tail.number - len(older.tail.starts)
        page = older.join_page
        if page is None:
            return
        self._turn(0, max(self.newest_timestamp, 0))
        self.join_page, self.join_offset, self.join_headers = page, older.join_offset, older.join_headers
        self.join_position, self.join_timestamp = older.join_position + bytes_before, older.join_timestamp
        self.joins += 1
        while True:
            page.base += bytes_before
            page.number += messages_before
            if page.next is None:
                break
            page = page.next
        page.next = self.tail
        self.schedule()

    @property
    def cache_limit_bytes(self) -> int:
        """A join point that is further back than this is forgotten."""
        return self._cache_limit_bytes

    @cache_limit_bytes.setter
    def cache_limit_bytes(self, limit_bytes: int) -> None:
        self._cache_limit_bytes = limit_bytes
        self.schedule()

    def find_disposable(self, *, wanted: bool) -> None:
        """Set whether disposable frames are noted in the pages: it costs a look into each video message."""
        self._finds_disposable = wanted

    def _is_disposable(self, payload: bytes) -> bool:
        if self._formats_of is not self.headers:
            self._formats_of = self.headers
            self._formats = read_formats(header for type_id, header in self.headers.items if type_id == VIDEO)
        return is_disposable(payload, self._formats)

    def forget_join_point(self) -> None:
        """Forget the join point, and free its pages."""
        self.join_page = None

    # Readers in batches ------------------------------------------------------------------------------------------------

    @property
    def readers(self) -> list[LogReader]:
        """The readers, a copy."""
        return list(self._readers)

    def add_reader(self, reader: LogReader) -> None:
        """Register a reader; its ``wake_at`` counts from now on."""
        self._readers.append(reader)
        self.schedule()

    def remove_reader(self, reader: LogReader) -> None:
        """Unregister a reader; harmless if it is not registered."""
        if reader in self._readers:
            self._readers.remove(reader)
            self.schedule()

    def schedule(self) -> None:
        """Take note of changed ``wake_at`` attributes of readers."""
        cache_end = self.join_position + self._cache_limit_bytes + 1 if self.join_page is not None else NEVER
        self._alarm_at = min((reader.wake_at for reader in self._readers), default=NEVER)
        if cache_end < self._alarm_at:
            self._alarm_at = cache_end

    def _alarm(self) -> None:
        """Forget a join point that is too far back, and wake readers that are due."""
        # Without the last message: a keyframe that is longer than the limit is a join point until the next message.
        if self.tail.base + self.tail.starts[-1] - self.join_position > self._cache_limit_bytes:
            self.join_page = None
        for reader in list(self._readers):
            if reader.wake_at <= self.position:
                reader.wake_at = NEVER
                reader.wake()
        self.schedule()

    # Reading -----------------------------------------------------------------------------------------------------------

    def read(self, page: Page, offset: int) -> Message | None:
        """Return the message at a cursor, which is at a message boundary; None at the end of the log."""
        while offset >= page.end:
            if page.next is None:
                return None
            page, offset = page.next, 0
        return self.framing.read(page, bisect_left(page.starts, offset))

    def read_all(self, page: Page, offset: int) -> Iterator[Message]:
        """Yield the messages from a cursor, which is at a message boundary, to the end of the log."""
        read = self.framing.read
        while True:
            for index in range(bisect_left(page.starts, offset), len(page.starts)):
                yield read(page, index)
            if page.next is None:
                return
            page, offset = page.next, 0

    def kept(self) -> Iterator[Message]:
        """Yield the messages from the join point on; none without one."""
        return self.read_all(self.join_page, self.join_offset) if self.join_page is not None else iter(())

    @staticmethod
    def gather(page: Page, offset: int, limit_bytes: int) -> tuple[memoryview | bytes, Page, int]:
        """Return the bytes of the log from a cursor on, and the cursor behind them.

        Within one page the bytes are a view. A range over several pages is copied together, once for all readers; it ends at
        the end of the page on which it becomes longer than *limit_bytes*.
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

    def lag_ms(self, page: Page, offset: int) -> int:
        """Return how much older than the newest frame the first one at or behind a cursor is; 0 if there is none."""
        timestamp = self.timestamp_at(page, offset)
        lag_ms = 0 if timestamp is None or self.newest_timestamp < 0 else (self.newest_timestamp - timestamp) & 0xFFFFFFFF
        # The first may be a little newer than the newest: audio and video come interleaved.
        return lag_ms if lag_ms < 0x80000000 else 0

    def timestamp_at(self, page: Page, offset: int) -> int | None:
        """Return the timestamp of the first audio or video message at or behind a cursor; None if there is none."""
        media_timestamp = self.framing.media_timestamp
        while True:
            for index in range(bisect_left(page.starts, offset), len(page.starts)):
                timestamp = media_timestamp(page, index)
                if timestamp >= 0:
                    return timestamp
            if page.next is None:
                return None
            page, offset = page.next, 0
