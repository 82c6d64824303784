"""The watch of streams with more than one source: a greenlet that looks at their health about every 50 ms.

It sleeps while there is nothing to watch.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

import gevent
from gevent.event import Event

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

TICK_S = 0.05


class Watched(Protocol):
    """A stream that is watched."""

    def tick(self, now_s: float) -> bool:
        """Check the health of the sources; return whether to be called again. Must not wait."""


class Watch:
    """The watch of the streams of one server.

    Args:
        count: Increments a counter of failures.
    """

    def __init__(self, count: Callable[[str], None] = lambda name: None) -> None:
        self._count = count
        self._watched: set[Watched] = set()
        self._due = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Start the greenlet."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Stop it."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        self._watched.clear()

    def add(self, stream: Watched) -> None:
        """Call the ``tick`` of a stream until it returns False."""
        self._watched.add(stream)
        self._due.set()

    def _run(self) -> None:
        while True:
            if not self._watched:
                self._due.clear()
                self._due.wait()
            gevent.sleep(TICK_S)
            # A method of its own: a local variable here would keep the last stream, and its pages, until the next tick.
            self._tick(time.monotonic())

    def _tick(self, now_s: float) -> None:
        for stream in list(self._watched):
            try:
                again = stream.tick(now_s)
            except Exception:
                # The streams behind it must be watched all the same.
                self._count("internal_errors")
                log.exception("internal error: the sources of a stream are no longer watched")
                again = False
            if not again:
                self._watched.discard(stream)
