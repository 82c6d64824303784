"""The share of a processor core that hooks may take from media.

Threads take turns with the event loop: one that makes a request or starts a program holds the interpreter meanwhile. A web
server that answers at once would be told of 800 events a second, and media be late by several milliseconds. So what a hook
costs is measured, and the next one begins when enough time has gone by. Imports gevent.
"""

from __future__ import annotations

import time
from typing import Final

import gevent

__all__ = ["Cost", "CpuShare"]

_SHARE: Final = 0.25
_WEIGHT = 0.1
_FIRST_S = 0.001


class Cost:
    """What one hook costs of a core, by the average of the last ones.

    Attributes:
        seconds: Of CPU time.
    """

    def __init__(self) -> None:
        self.seconds = _FIRST_S

    def add(self, seconds: float) -> None:
        """Take note of one more."""
        self.seconds += (seconds - self.seconds) * _WEIGHT


class CpuShare:
    """Lets hooks begin one after the other."""

    def __init__(self, share: float = _SHARE) -> None:
        self._share = share
        self._next_at = 0.0

    def wait(self, cost: Cost) -> None:
        """Wait until one with this cost may begin. Whoever comes first goes first."""
        now = time.monotonic()
        begin_at = max(now, self._next_at)
        self._next_at = begin_at + cost.seconds / self._share
        if begin_at > now:
            gevent.sleep(begin_at - now)

    def lift(self) -> None:
        """Let everybody begin at once from now on: there is no media any more."""
        self._share = 1000.0
        self._next_at = 0.0
