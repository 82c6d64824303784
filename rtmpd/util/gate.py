"""A gate for work that many greenlets want to do at the same time, such as ending: it is done in slices.

Greenlets that become ready together all run before the event loop looks at timers and sockets again. So the first do their
work at once; the work of the others is queued, and one greenlet does it, 2 ms at a time.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections.abc import Callable

_SLICE_S = 0.002
_WINDOW_S = 0.01
"""Work at once may take a slice in this time."""


class _Work:
    __slots__ = ("begun", "done", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.begun = False
        self.done = Event()

    def run(self) -> None:
        self.begun = True
        try:
            self.work()
        finally:
            self.done.set()


class Gate:
    """Does work in slices, in the order of arrival."""

    def __init__(self) -> None:
        self._queue: deque[_Work] = deque()
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._window_ends_at = 0.0
        self._spent_s = 0.0

    def run(self, work: Callable[[], None]) -> None:
        """Do *work* and return, now or after a wait. It must not wait or raise. A killed greenlet does its own at once."""
        if self._greenlet is None:
            now_s = time.monotonic()
            if now_s >= self._window_ends_at:
                self._window_ends_at, self._spent_s = now_s + _WINDOW_S, 0.0
            if self._spent_s < _SLICE_S:
                try:
                    work()
                finally:
                    self._spent_s += time.monotonic() - now_s
                return
            self._greenlet = gevent.spawn(self._run)
        mine = _Work(work)
        self._queue.append(mine)
        try:
            mine.done.wait()
        finally:
            if not mine.begun:
                mine.run()

    def _run(self) -> None:
        try:
            while self._queue:
                give_way()
                ends_at_s = time.monotonic() + _SLICE_S
                while self._queue and time.monotonic() < ends_at_s:
                    mine = self._queue.popleft()
                    if not mine.begun:
                        mine.run()
        finally:
            self._greenlet = None
