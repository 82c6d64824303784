"""What delivery counts, for all players of a stream together, whatever variant of it they get. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Counters that only grow.

    Attributes:
        bytes_sent: Handed to players' sockets.
        skips: Players moved to a newer keyframe because they were too far behind.
        dropped: Messages that players were not sent for being slow: those skipped, and disposable frames.
        disposed: The disposable frames among these.
        disconnects: Players disconnected by ``backpressure_policy``.
        stalled: Players cut off because they took nothing.
    """

    bytes_sent: int = 0
    skips: int = 0
    dropped: int = 0
    disposed: int = 0
    disconnects: int = 0
    stalled: int = 0

    @property
    def drops(self) -> int:
        """How often a player was too slow: skips, and players that were disconnected or cut off."""
        return self.skips + self.disconnects + self.stalled
