"""How long to wait before a destination is tried again. Pure: randomness is an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["JITTER", "Backoff"]

JITTER = 0.2
"""A wait is longer or shorter by up to this share, so that what failed together is not tried together."""


class Backoff:
    """Waits that double.

    Args:
        random: Gives numbers from 0 up to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._tries = 0

    def next_s(self, first_s: float, limit_s: float, *, longest: bool = False) -> float:
        """Return the next wait: about *first_s* at first, then twice as long each time, up to about *limit_s*.

        With *longest* it is that at once: there is no hope that the next try does better.
        """
        # The exponent is bounded: a power of thousands is no float.
        wanted_s = limit_s if longest else min(limit_s, first_s * 2.0 ** min(self._tries, 64))
        self._tries += 1
        return wanted_s * (1 + JITTER * (2 * self._random() - 1))

    def reset(self) -> None:
        """Begin with short waits again: it went well for a while."""
        self._tries = 0
