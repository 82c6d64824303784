"""Long work that gives way to the event loop. Imports gevent."""

from __future__ import annotations

import time

import gevent

__all__ = ["Pace"]

_SLICE_S = 0.002
_REST_S = 0.001
"""Not 0: gevent runs up to fifty switches of that kind before it looks at timers and sockets again (measured: slices of 2 ms
held it for 100 ms)."""


class Pace:
    """Called now and then by long work, it waits a moment when the work has held the event loop for a slice."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def restart(self) -> None:
        """Begin a slice: something else has just let the event loop run."""
        self._begun = time.perf_counter()

    def __call__(self) -> None:
        """Wait if it is time to."""
        if time.perf_counter() - self._begun > _SLICE_S:
            gevent.sleep(_REST_S)
            self._begun = time.perf_counter()
