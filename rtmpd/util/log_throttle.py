"""Limiting how often a repeated message is logged. Pure: the clock is an argument."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

REPEAT_S = 10.0
"""The shortest time between two lines of one throttle, seconds."""


class LogThrottle:
    """Lets one line through per interval, and counts those that it suppresses.

    Args:
        interval_s: The shortest time between two lines, seconds.
        clock: The monotonic clock.

    Attributes:
        suppressed: The number of lines suppressed since the last one that was let through.
    """

    __slots__ = ("_clock", "_interval_s", "_next_at_s", "suppressed")

    def __init__(self, interval_s: float = REPEAT_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next_at_s = float("-inf")
        self.suppressed = 0

    def due(self) -> bool:
        """Return whether a line may be logged now. The next one may follow after the interval."""
        now_s = self._clock()
        if now_s < self._next_at_s:
            self.suppressed += 1
            return False
        self._next_at_s = now_s + self._interval_s
        return True

    def log(
        self, logger: logging.Logger | logging.LoggerAdapter[logging.Logger], level: int, message: str, *args: object
    ) -> None:
        """Log a line, or count it as suppressed. A line says how many were suppressed before it."""
        if self.due():
            if self.suppressed:
                message += " (%d similar lines suppressed)"
                args = (*args, self.suppressed)
                self.suppressed = 0
            logger.log(level, message, *args)
