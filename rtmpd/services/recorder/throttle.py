"""Limits the processor time of long work in a native thread, so that the event loop is not delayed.

A thread that computes in Python releases the interpreter only when another one has waited for it for 5 ms, and the event loop
has to wait for it after each system call. So long work is done in short pieces with pauses in between.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

_SHORTEST_S = 0.001
_LONGEST_S = 0.1
_REST_FACTOR = 4.0
"""The ratio of pauses to work: the thread uses at most a fifth of a processor."""


class Cancelled(Exception):
    """The work was cancelled and ends as it is."""


class Throttle:
    """Inserts pauses into the work of one thread at a time.

    Args:
        sleep: Waits, seconds.
        clock: Returns the processor time used by the calling thread, seconds.
    """

    def __init__(
        self,
        sleep: Callable[[float], None] = time.sleep,  # noqa: TID251 - in a native thread, not in a greenlet
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._sleep = sleep
        self._clock = clock
        self._cancelled = False
        self._used_s = 0.0

    def cancel(self) -> None:
        """Make each later `pause` raise `Cancelled`. May be called from any thread."""
        self._cancelled = True

    def begin(self) -> None:
        """Start to measure the calling thread. To be called before its first `pause`."""
        self._used_s = self._clock()

    def pause(self) -> None:
        """Sleep four times as long as the thread has worked since the last pause, at least 1 ms, at most 0.1 s.

        Raises:
            Cancelled: `cancel` was called.
        """
        if self._cancelled:
            raise Cancelled
        used_s = self._clock() - self._used_s
        self._sleep(min(max(used_s * _REST_FACTOR, _SHORTEST_S), _LONGEST_S))
        self._used_s = self._clock()


class ThrottledFile:
    """The part of a file's interface that a scan needs, with a pause before each read."""

    def __init__(self, file: BinaryIO, throttle: Throttle) -> None:
        self.seek = file.seek
        self._read = file.read
        self._throttle = throttle

    def read(self, size: int, /) -> bytes:
        """Pause, then read."""
        self._throttle.pause()
        return self._read(size)
