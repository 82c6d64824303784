"""Whether what a relay sends is delivered. Pure: the clock is an argument.

Two things count: that TCP makes progress, which the destination's host proves by acknowledging bytes, and that a destination
which has ever sent an Acknowledgement (RTMP 1.0 section 5.4.3) continues to, while bytes arrive at its host. Any of them
proves that the program reads. Their number proves nothing: servers count from the last one, up to 2^31, or message bodies only.
Some never acknowledge; a program among these that does not read is found when its host accepts no more bytes.
"""

from __future__ import annotations

_WINDOWS = 2


class DeliveryWatch:
    """Watches one connection."""

    def __init__(self) -> None:
        self._acknowledgements = 0
        self._acknowledged_at = 0  # bytes delivered when the last check with a new Acknowledgement was made
        self._step = 0
        self._owing_since: float | None = None
        self._delivered = 0
        self._standing_since: float | None = None

    def check(
        self, now_s: float, timeout_s: float, *, delivered: int, outstanding: int, acknowledgements: int, window: int
    ) -> str:
        """Return why the connection is to be closed; empty if it is not.

        Args:
            now_s: The monotonic clock.
            timeout_s: How long TCP may make no progress, and how long the destination may send no Acknowledgement.
            delivered: Bytes that the destination's host has acknowledged.
            outstanding: Bytes that the socket has accepted and that host has not acknowledged.
            acknowledgements: The number of Acknowledgements that the destination has sent.
            window: How often the destination is to acknowledge, bytes. Its own steps count if they are larger.
        """
        reason = ""
        if acknowledgements != self._acknowledgements:
            self._step = max(self._step, delivered - self._acknowledged_at)
            self._acknowledgements, self._acknowledged_at = acknowledgements, delivered
            self._owing_since = None
        owed = delivered - self._acknowledged_at
        if not acknowledgements or owed <= _WINDOWS * max(window, self._step):
            self._owing_since = None
        elif self._owing_since is None:
            self._owing_since = now_s
        elif now_s - self._owing_since >= timeout_s:
            reason = f"the destination has acknowledged nothing for {timeout_s:g} s, of {owed} bytes (relay_ack_timeout_s)"
        if not outstanding or delivered != self._delivered:
            self._delivered = delivered
            self._standing_since = None
        elif self._standing_since is None:
            self._standing_since = now_s
        elif now_s - self._standing_since >= timeout_s:
            reason = f"TCP made no progress for {timeout_s:g} s, {outstanding} bytes wait (relay_ack_timeout_s)"
        return reason
