"""Turns: greenlets that compute for long do so one at a time, in the order in which they asked, with rests in between.

A greenlet that only gave way after each slice would leave the event loop a turn after each slice, but fifty of them would
then hold the loop for fifty slices in a row.
"""

from __future__ import annotations

from collections import deque

import gevent
from gevent.event import Event

SLICE_S = 0.001
"""How long a greenlet may compute in one turn."""

_TURN_S = 2 * SLICE_S
"""The time from the beginning of one turn to that of the next: each is followed by a rest as long."""


class Turns:
    """Grants turns."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def wait(self) -> None:
        """Wait for a turn. A greenlet that is killed meanwhile wastes its turn, and nothing else."""
        mine = Event()
        self._waiting.append(mine)
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._grant)
        mine.wait()

    def _grant(self) -> None:
        # A turn is granted only from here, one by one: if the loop was late, several timers would be due at once.
        while self._waiting:
            self._waiting.popleft().set()
            gevent.sleep(_TURN_S)
        self._greenlet = None
