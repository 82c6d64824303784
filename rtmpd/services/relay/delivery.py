"""Whether what a relay sends is delivered. Pure: the clock is an argument.

The proof is the destination's Acknowledgement (RTMP 1.0 section 5.4.3): the number of bytes that it has read. Servers differ:
rtmpd and SRS acknowledge by the window that they are given, nginx-rtmp by its own (5 MB), and some never do. So only a
destination that has acknowledged before is held to it, and by steps no smaller than its own. For others TCP must do: their host
acknowledges segments, although that says nothing of the program; a program that does not read is found when the socket accepts
no more data.
"""

from __future__ import annotations

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
        self._checked_at = now_s
        self._owing_since: float | None = None
        self._silent_since: float | None = None

    def check(
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
        """Return why the connection is to be closed; empty if it is not.

        Args:
            now_s: The monotonic clock.
            timeout_s: How long the destination may acknowledge nothing.
            sent: Bytes that the socket has accepted.
            acknowledged: The destination's last Acknowledgement.
            window: How often the destination is to acknowledge, bytes.
            segments: The number of TCP segments that its host has not acknowledged.
            host_acknowledged_s: The time since its host last acknowledged any.
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
            reason = f"the destination has acknowledged nothing for {timeout_s:g} s, of {sent - acknowledged} bytes"
        # The time since the last acknowledgement alone says nothing: there may have been nothing to acknowledge.
        if not segments or host_acknowledged_s < now_s - self._checked_at:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now_s
        elif now_s - self._silent_since >= timeout_s:
            reason = f"the destination's host has acknowledged nothing for {timeout_s:g} s (relay_ack_timeout_s)"
        self._checked_at = now_s
        return reason
