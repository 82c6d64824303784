"""Pages: the memory of a stream's logs.

A log is a linked list of pages. A reader is a *cursor*: a page and an offset in it. The list is linked forwards only, so that
a page lives exactly as long as a cursor is on it or before it: Python's reference counts free it after that. Pages know where
their messages start and what these are, and are counted as long as they live. Pure.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from rtmpd.util.speed import accelerated

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_PAGE_BYTES = 8 << 10
MAX_PAGE_BYTES = 256 << 10


@accelerated
class PageAccount:
    """Counts the memory of pages.

    Args:
        whole: Another account that counts these pages too.

    Attributes:
        bytes: The size of the pages that live.
        alarm_bytes: *alarm* is called when a new page brings `bytes` above this, and with each further page; None: never.
        alarm: Called in the middle of an append: it may set a flag, and nothing else.
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
        """Count a page that has been freed."""
        self.bytes -= size
        if self.whole is not None:
            self.whole.remove(size)


ALL_PAGES = PageAccount()
"""The pages of all logs of the process, including those that outlive their logs."""


@accelerated
class PageState:
    """What an append changes of a page, and what it makes a new one of.

    Args:
        size: How much memory the page has.
        base: The log position of its first byte.
        number: The number of messages in the log before its first one.
        account: Counts it.

    Attributes:
        buffer: The page's memory. Its size never changes.
        view: The same, for slices without a copy.
        size: Its size.
        base, number, account: As given.
        end: The number of bytes in use. Only grows, and only on the last page.
        next: The following page, or None.
        starts: The offsets of the messages, ascending.
        kinds: The kind of each message (`rtmpd.media.tags.Kind`).
        disposable: The offsets of disposable frames, if the log looks for them.
    """

    __slots__ = ("account", "base", "buffer", "disposable", "end", "kinds", "next", "number", "size", "starts", "view")

    def __init__(self, size: int, base: int, number: int = 0, account: PageAccount = ALL_PAGES) -> None:
        # If there is no memory for the page, nothing has been counted.
        self.account = account
        self.size = 0
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)
        self.size = size
        self.base = base
        self.end = 0
        self.next: Page | None = None
        self.number = number
        self.starts = array("I")
        self.kinds = bytearray()
        self.disposable: list[int] = []
        account.add(size)

    def __del__(self) -> None:
        self.account.remove(self.size)


class Page(PageState):
    """A piece of a log."""

    __slots__ = ()

    def boundary(self, offset: int) -> int:
        """Return the first message boundary at or behind *offset*."""
        index = bisect_right(self.starts, offset - 1)
        return self.starts[index] if index < len(self.starts) else self.end

    def message_end(self, index: int) -> int:
        """Return the offset behind message *index*."""
        index += 1
        return self.starts[index] if index < len(self.starts) else self.end

    def next_disposable(self, offset: int) -> int:
        """Return the offset of the first disposable frame at or behind *offset*; the end of the page if there is none."""
        index = bisect_left(self.disposable, offset)
        return self.disposable[index] if index < len(self.disposable) else self.end

    def messages_before(self, offset: int) -> int:
        """Return the number of messages of the log that begin before *offset*."""
        return self.number + bisect_left(self.starts, offset)
