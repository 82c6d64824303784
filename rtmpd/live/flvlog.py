"""The FLV log: a live stream as FLV tags, for those who write files and the like.

It is there only while somebody reads it. Tags have the stream's own timestamps; a reader that begins in the middle counts them
from its own beginning. Data messages are script tags.

Pure data structure: no event loop, no clock. Imports the pages and media.flv.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rtmpd.live.pages import ALL_PAGES, Page, PageAccount, PageLog
from rtmpd.media.flv import TAG_OVERHEAD, tag_into

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NEVER", "FlvLog", "FlvReader", "LoggedTag"]

NEVER = 1 << 62
"""A position that no log comes to."""


class FlvReader(Protocol):
    """Who reads the log.

    Attributes:
        wake_at: The position of the log's end at which it wants to be woken; `NEVER` if it doesn't.
    """

    wake_at: int

    def wake(self) -> None:
        """Say that the log has come there. Called by the publisher's greenlet: it must not wait, and sets ``wake_at`` anew."""


class LoggedTag(NamedTuple):
    """A tag read back from the log.

    Attributes:
        type_id: 8 audio, 9 video, 18 script.
        kind: The message's `rtmpd.media.tags.Kind`; a keyframe that is no place to start at is a frame here.
        timestamp: Milliseconds, 0..2**32-1, on the stream's timeline.
        data: The whole tag, with its size behind it. A view: it keeps the page.
        page, offset: The cursor behind it.
    """

    type_id: int
    kind: int
    timestamp: int
    data: memoryview
    page: Page
    offset: int


class FlvPage(Page):
    """A page that knows what its tags are.

    Attributes:
        kinds: The kind of each tag, as ``starts`` has its offset.
    """

    __slots__ = ("kinds",)

    def __init__(self, size: int, base: int, number: int = 0, account: PageAccount = ALL_PAGES) -> None:
        super().__init__(size, base, number, account)
        self.kinds: list[int] = []


class FlvLog(PageLog):
    """One stream's FLV tags.

    Attributes:
        readers: Who reads it.
    """

    __slots__ = ("_wake_at", "readers")

    page_type = FlvPage

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[FlvReader] = []
        self._wake_at = NEVER

    def append(self, type_id: int, timestamp: int, payload: bytes, kind: int) -> None:
        """Append a message as a tag. The hot path of recording: once per message, however many readers there are."""
        size = len(payload) + TAG_OVERHEAD
        page = self.tail
        if page.end + size > page.size:
            page = self._turn(size, timestamp)
        start = page.end
        page.starts.append(start)
        page.end = tag_into(page.buffer, start, type_id, timestamp, payload)
        page.kinds.append(kind)  # type: ignore[attr-defined]
        self.position += size
        if self.position >= self._wake_at:
            self._wake()

    def _wake(self) -> None:
        for reader in list(self.readers):
            if reader.wake_at <= self.position:
                reader.wake_at = NEVER
                reader.wake()
        self.look()

    def look(self) -> None:
        """Take note of what readers have set as ``wake_at``."""
        self._wake_at = min((reader.wake_at for reader in self.readers), default=NEVER)

    def read(self, page: Page, offset: int) -> Iterator[LoggedTag]:
        """Yield the tags from a cursor, which is where a tag begins, to the end of the log."""
        while True:
            buffer, view, kinds = page.buffer, page.view, page.kinds  # type: ignore[attr-defined]
            for index in range(bisect_left(page.starts, offset), len(page.starts)):
                start = page.starts[index]
                offset = start + int.from_bytes(buffer[start + 1 : start + 4], "big") + TAG_OVERHEAD
                timestamp = int.from_bytes(buffer[start + 4 : start + 7], "big") | buffer[start + 7] << 24
                yield LoggedTag(buffer[start], kinds[index], timestamp, view[start:offset], page, offset)
            if page.next is None:
                return
            page, offset = page.next, 0
