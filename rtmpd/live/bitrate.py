"""Whether a publisher sends more than it may. Looked at by the sweep, never for a message.

Pure: rate and clock are arguments. Imports nothing.
"""

from __future__ import annotations

__all__ = ["BitrateWatch"]


class BitrateWatch:
    """Watches one publish."""

    __slots__ = ("_above_since_s", "_dealt_with")

    def __init__(self) -> None:
        self._above_since_s: float | None = None
        self._dealt_with = ""

    def is_due(self, now_s: float, bitrate: float, *, limit: int, grace_s: float, action: str) -> bool:
        """Whether the publisher is to be dealt with now: once, and again when it has been below, or *action* is another.

        Args:
            now_s: The monotonic clock.
            bitrate: What it sends, bits per second, over the last seconds.
            limit: What it may send, bits per second; 0: anything.
            grace_s: How long it may send more.
            action: What is to be done.
        """
        if not limit or bitrate <= limit:
            self._above_since_s = None
            self._dealt_with = ""
            return False
        if self._above_since_s is None:
            self._above_since_s = now_s
        if now_s - self._above_since_s < grace_s or self._dealt_with == action:
            return False
        self._dealt_with = action
        return True
