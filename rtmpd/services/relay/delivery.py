"""Does what is sent to a destination arrive? Pure: the clock is an argument.

The proof is the peer's Acknowledgement (RTMP 1.0 section 5.4.3): what it says to have read. Peers differ: rtmpd and SRS
acknowledge by the window that they are told, nginx-rtmp by its own (5 MB), and some never do. So only a peer that has
acknowledged before is held to it, and by steps no smaller than its own. For the others TCP must do: their host acknowledges
segments, though that says nothing of the program; a program that does not read is found out when the socket takes no more.
"""

from __future__ import annotations

__all__ = ["DeliveryWatch"]

_WINDOWS = 2


class DeliveryWatch:
    """Watches one connection.

    Args:
        now_s: The monotonic clock.
    """

    def __init__(self, now_s: float) -> None:
        self._acknowledged = 0
        self._acknowledgements = 0
        self._step = 0
        self._looked_at = now_s
        self._owing_since: float | None = None
        self._silent_since: float | None = None

    def look(
        self,
        now_s: float,
        timeout_s: float,
        *,
        sent: int,
        acknowledged: int,
        window: int,
        segments: int = 0,
        host_acknowledged_s: float = 0.0,
    ) -> str:
        """Say why the peer is to be given up; empty if it is not.

        Args:
            now_s: The monotonic clock.
            timeout_s: How long it may acknowledge nothing.
            sent: Bytes that the socket has taken.
            acknowledged: The peer's last Acknowledgement.
            window: How often it is to acknowledge, bytes.
            segments: How many TCP segments its host has not acknowledged.
            host_acknowledged_s: How long ago its host last acknowledged any.
        """
        if acknowledged != self._acknowledged:
            self._step = max(self._step, acknowledged - self._acknowledged)
            self._acknowledged = acknowledged
            self._acknowledgements += 1
            self._owing_since = None
        reason = ""
        if not self._acknowledgements or sent - acknowledged <= _WINDOWS * max(window, self._step):
            self._owing_since = None
        elif self._owing_since is None:
            self._owing_since = now_s
        elif now_s - self._owing_since >= timeout_s:
            reason = f"it has acknowledged nothing for {timeout_s:g} s, and {sent - acknowledged} bytes are out"
        # The time since the last one alone says nothing: there may have been nothing to acknowledge.
        if not segments or host_acknowledged_s < now_s - self._looked_at:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now_s
        elif now_s - self._silent_since >= timeout_s:
            reason = f"its host has acknowledged nothing for {timeout_s:g} s"
        self._looked_at = now_s
        return reason
