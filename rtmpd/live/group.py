"""The players of a stream that are level: one cursor for all of them, and the pass that moves it on.

The hottest code of delivery. A pass takes the log's bytes from the cursor on and hands them to each member with one
non-blocking send; it gives way to the event loop every few milliseconds. Members may leave and others come while it does.
May import gevent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rtmpd.live.subscriber import State
from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.live.pages import Page
    from rtmpd.live.subscriber import Subscriber
    from rtmpd.live.wirelog import WireLog

__all__ = ["SLICE_S", "Group"]

SLICE_S = 0.003
"""How long delivery may hold the event loop."""

_BLOCK = 64  # members between two looks at the clock
_BIG_BYTES = 16 << 10  # of a range of this size or more, an eighth: to copy it, and to encrypt it for some, takes longer
_GATHER_BYTES = 1 << 20  # a pass over several pages takes about this much at the most


class Group:
    """The members and their cursor.

    Attributes:
        members: In the order of coming. One that has left stays listed until `compact`, at the latest when a pass begins.
        page, offset: The cursor; page is None while nobody watches. During a pass it is already where the pass will end.
        passing: A pass is under way.
    """

    __slots__ = ("_begun", "_left", "_range", "_served", "_visited", "members", "offset", "page", "passing")

    def __init__(self) -> None:
        self.members: list[Subscriber] = []
        self.page: Page | None = None
        self.offset = 0
        self.passing = False
        self._left = 0  # of those that are listed
        self._begun: tuple[Page, int] | None = None  # the cursor before the pass under way
        self._served = 0  # members that the pass under way has come to, of those that it visits
        self._visited = 0
        self._range = 0  # bytes that it hands to each

    def __len__(self) -> int:
        return len(self.members) - self._left

    @property
    def position(self) -> int:
        """The cursor as a position in the log."""
        return self.page.base + self.offset if self.page is not None else 0

    def is_at(self, page: Page | None, offset: int) -> bool:
        """Whether the group's cursor is there."""
        return page is self.page and offset == self.offset

    def move_to_end(self, wirelog: WireLog) -> None:
        """Put the cursor at the log's end: there is nobody who would miss anything."""
        self.page, self.offset = wirelog.tail, wirelog.tail.end

    def enter(self, subscriber: Subscriber) -> None:
        """Let a subscriber in that is level."""
        subscriber.sent -= self.position
        subscriber.state = State.GROUP
        subscriber.page = None
        if subscriber.listed:
            self._left -= 1
        else:
            # A pass under way visits only those who were members when it began. One that fell behind in it is listed still.
            subscriber.listed = True
            self.members.append(subscriber)

    def _is_due(self, subscriber: Subscriber) -> bool:
        """Whether the pass under way has still to come to a member."""
        return self.passing and self._served <= self.members.index(subscriber) < self._visited

    def place_of(self, subscriber: Subscriber) -> tuple[Page | None, int]:
        """Return the cursor behind what a member has had: the group's, or where the pass under way began."""
        return self._begun if self._begun is not None and self._is_due(subscriber) else (self.page, self.offset)

    def drop(self, subscriber: Subscriber, state: State) -> None:
        """Let a member go; it has had all bytes up to the group's cursor, or to where the pass under way began."""
        subscriber.sent += self.position
        if self._is_due(subscriber):
            subscriber.sent -= self._range
        subscriber.state = state
        self._left += 1

    def end_pass(self) -> None:
        """Say that the pass is over."""
        self.passing = False
        self._begun = None

    def compact(self, *, every: bool = False) -> None:
        """Forget who has left, if that is a good part or *every* one is to be forgotten: thousands may leave one by one."""
        if self._left and not self.passing and (every or self._left * 4 >= len(self.members)):
            self._left = 0
            members = []
            for subscriber in self.members:
                if subscriber.state is State.GROUP:
                    members.append(subscriber)
                else:
                    subscriber.listed = False
            self.members = members

    def deliver(
        self,
        wirelog: WireLog,
        fall_behind: Callable[[Subscriber, Page, int], None],
        fail: Callable[[Subscriber, str], None],
    ) -> tuple[int, float]:
        """Bring all members to the log's end, or a good piece nearer. Leaves ``passing`` set, for the caller to end the pass.

        Args:
            wirelog: The log.
            fall_behind: Called with a member that did not take everything, and the cursor behind what it took.
            fail: Called with a member whose connection is gone, and why.

        Returns:
            The bytes that sockets took, and the seconds of CPU time that it cost.
        """
        # The thread's CPU time: on a busy machine the clock on the wall would make passes look dear, and rests long.
        clock = time.thread_time
        begun = clock()
        spent = 0.0
        page, offset = self.page, self.offset
        assert page is not None
        start = page.base + offset
        self.compact(every=True)
        members = self.members
        count = len(members)
        data, tail, end = wirelog.gather(page, offset, _GATHER_BYTES)
        size = len(data)
        self.passing = True
        self._begun = page, offset
        self._served, self._visited, self._range = 0, count, size
        # Set before anything is sent: who is served alone meanwhile goes as far as the group will have gone.
        self.page, self.offset = tail, end
        short = 0
        block = _BLOCK if size < _BIG_BYTES else max(1, _BLOCK // 8)
        for index in range(0, count, block):
            for subscriber in members[index : min(index + block, count)]:
                # In two steps: CPython reads a slot faster than it looks up a method.
                send = subscriber.send
                try:
                    sent = send(data)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    if subscriber.state is State.GROUP:
                        fail(subscriber, f"send failed: {error.strerror or error}")
                    short += size
                    continue
                if sent != size:
                    short += size - sent
                    if subscriber.state is State.GROUP:
                        subscriber.sent += start + sent
                        subscriber.state = State.ALONE
                        self._left += 1
                        fall_behind(subscriber, *_step(page, offset + sent))
            self._served = index + block
            now = clock()
            if now - begun > SLICE_S and self._served < count:
                spent += now - begun
                give_way()
                begun = clock()
        return size * count - short, spent + clock() - begun


def _step(page: Page, offset: int) -> tuple[Page, int]:
    """Turn an offset that may lie beyond a page into a cursor."""
    while offset > page.end:
        assert page.next is not None
        offset -= page.end
        page = page.next
    return page, offset
