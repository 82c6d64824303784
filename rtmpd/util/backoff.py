"""Waits between retries that double each time. Pure: randomness is an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

JITTER = 0.2
"""A wait is longer or shorter by up to this share, so that peers that failed together are not retried together."""


class Backoff:
    """Computes the waits of one series of retries.

    Args:
        random: Returns a number from 0 up to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._tries = 0

    def next_s(self, first_s: float, limit_s: float, *, longest: bool = False) -> float:
        """Return the next wait, seconds: about *first_s* at first, then twice as long each time, up to about *limit_s*.

        Args:
            first_s: The first wait.
            limit_s: The longest wait.
            longest: Return the longest wait at once: a retry has no prospect of success.
        """
        wait_s = limit_s if longest else nth_wait_s(self._tries, first_s, limit_s)
        self._tries += 1
        return wait_s * (1 + JITTER * (2 * self._random() - 1))

    def reset(self) -> None:
        """Start over with the first wait, after a success."""
        self._tries = 0


def nth_wait_s(number: int, first_s: float, limit_s: float) -> float:
    """Return the wait before retry *number*, counted from 0, without jitter, seconds."""
    # The exponent is bounded: a power of thousands is no float.
    return min(limit_s, first_s * 2.0 ** min(number, 64))
