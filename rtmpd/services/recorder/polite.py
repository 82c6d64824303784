"""Work in a native thread that leaves the event loop its processor.

A thread that computes in Python gives the interpreter away only when another one has waited for it for 5 ms, and the event loop
has to wait for it after each system call. So long work in the recorder's threads is done in short pieces with pauses between.

Imports the standard library only.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

__all__ = ["Cancelled", "Pauses", "PoliteFile"]

_SHORTEST_S = 0.001
_LONGEST_S = 0.1
_REST_FACTOR = 4.0
"""A thread rests so many times as long as it computed: it uses at most a fifth of a processor."""


class Cancelled(Exception):
    """The work is no longer wanted. It ends as it is."""


class Pauses:
    """The pauses of one thread.

    Args:
        sleep: Waits, seconds.
        clock: Processor time that the calling thread has used, seconds.
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
        """Let the next pause raise `Cancelled`. Called from any thread."""
        self._cancelled = True

    def begin(self) -> None:
        """Count the processor time of this thread from now on. The one who calls `pause` calls this first."""
        self._used_s = self._clock()

    def pause(self) -> None:
        """Rest for 1 ms, or longer after longer work; at most 0.1 s.

        Raises:
            Cancelled: See `cancel`.
        """
        if self._cancelled:
            raise Cancelled
        used_s = self._clock() - self._used_s
        self._sleep(min(max(used_s * _REST_FACTOR, _SHORTEST_S), _LONGEST_S))
        self._used_s = self._clock()


class PoliteFile:
    """What a scan needs of a file, with a pause before each read."""

    def __init__(self, file: BinaryIO, pauses: Pauses) -> None:
        self.seek = file.seek
        self._read = file.read
        self._pauses = pauses

    def read(self, size: int, /) -> bytes:
        """Read as the file does."""
        self._pauses.pause()
        return self._read(size)
