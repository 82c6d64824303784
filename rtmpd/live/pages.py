"""Pages: what the logs of a live stream are made of.

A log is a linked list of pages. A reader is a *cursor*: a page and an offset in it. The list is linked forwards only, so that a
page lives exactly as long as some cursor is on it or before it: Python's reference counts free it after that. Pages know where
their messages start, and are counted as long as they live.

Pure data structure, below the wire log and the FLV log; imports nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ALL_PAGES", "MAX_PAGE_BYTES", "MIN_PAGE_BYTES", "Page", "PageAccount", "PageLog"]

MIN_PAGE_BYTES = 8 << 10
MAX_PAGE_BYTES = 256 << 10

# A page should last about this long: an idle stream then costs a small one, a fast stream isn't all page turns.
_FAST_MS = 200
_SLOW_MS = 800


class PageAccount:
    """Counts the memory of pages.

    Args:
        whole: Another account that these pages are in as well.

    Attributes:
        bytes: Of the pages that live.
        alarm_bytes: When a new page brings it above this, *alarm* is called; None: never. Each further page calls it again.
        alarm: Called in the middle of an append: it may take note, and do nothing else.
    """

    __slots__ = ("alarm", "alarm_bytes", "bytes", "whole")

    def __init__(self, whole: PageAccount | None = None) -> None:
        self.whole = whole
        self.bytes = 0
        self.alarm_bytes: int | None = None
        self.alarm: Callable[[], object] = lambda: None

    def add(self, size: int) -> None:
        """Count a new page."""
        self.bytes += size
        if self.alarm_bytes is not None and self.bytes > self.alarm_bytes:
            self.alarm()
        if self.whole is not None:
            self.whole.add(size)

    def remove(self, size: int) -> None:
        """Count a page no more."""
        self.bytes -= size
        if self.whole is not None:
            self.whole.remove(size)


ALL_PAGES = PageAccount()
"""The pages of all logs of the process, those that outlive their logs as well."""


class Page:
    """A piece of the log.

    Attributes:
        view: The page's memory, for slices without a copy.
        base: The log position of the page's first byte.
        end: How many bytes are in use. Only grows, and only on the last page.
        next: The page behind it, or None.
        account: Where it is counted.
        number: How many messages the log has had before the page's first.
        starts: Offsets at which messages start, ascending.
        disposable: Those of them at which disposable frames start, as far as somebody has asked for that.
    """

    __slots__ = ("account", "base", "buffer", "disposable", "end", "next", "number", "size", "starts", "view")

    def __init__(self, size: int, base: int, number: int = 0, account: PageAccount = ALL_PAGES) -> None:
        # If there is no memory for it, nothing has been counted.
        self.account = account
        self.size = 0
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)
        self.size = size
        self.base = base
        self.end = 0
        self.next: Page | None = None
        self.number = number
        self.starts: list[int] = []
        self.disposable: list[int] = []
        account.add(size)

    def __del__(self) -> None:
        self.account.remove(self.size)

    def boundary(self, offset: int) -> int:
        """Return the first message boundary at or behind *offset*."""
        index = bisect_right(self.starts, offset - 1)
        return self.starts[index] if index < len(self.starts) else self.end

    def is_disposable(self, end: int) -> bool:
        """Return whether the message that ends at *end* is a disposable frame."""
        index = bisect_left(self.starts, end) - 1
        at = bisect_left(self.disposable, self.starts[index])
        return at < len(self.disposable) and self.disposable[at] == self.starts[index]

    def messages_before(self, offset: int) -> int:
        """Return how many messages of the log begin before *offset*."""
        return self.number + bisect_left(self.starts, offset)


class PageLog:
    """A log without a framing: its subclasses append.

    Attributes:
        page_type: What its pages are.
        tail: The last page; the log ends at ``tail.end``.
        position: Bytes appended so far: the log's end as an absolute position.
        account: Counts its pages.
    """

    __slots__ = ("_page_bytes", "_page_timestamp", "account", "position", "tail")

    page_type = Page

    def __init__(self) -> None:
        self.position = 0
        self.account = PageAccount(ALL_PAGES)
        self.tail = self.page_type(MIN_PAGE_BYTES, 0, 0, self.account)
        self._page_bytes = MIN_PAGE_BYTES
        self._page_timestamp = 0

    def _turn(self, size: int, timestamp: int) -> Page:
        """Link a new last page that has room for *size* bytes, its size by how long the last one took to fill."""
        lasted_ms = (timestamp - self._page_timestamp) & 0xFFFFFFFF
        if lasted_ms < _FAST_MS:
            self._page_bytes = min(self._page_bytes * 2, MAX_PAGE_BYTES)
        elif lasted_ms > _SLOW_MS:
            self._page_bytes = max(self._page_bytes // 2, MIN_PAGE_BYTES)
        self._page_timestamp = timestamp
        number = self.tail.number + len(self.tail.starts)
        page = self.page_type(max(size, self._page_bytes), self.position, number, self.account)
        self.tail.next = page
        self.tail = page
        return page

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
