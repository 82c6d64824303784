"""Whether one more connection may come in: how many there are, how many of one address, and how fast they come.

Pure; the time is the caller's. Bounded: rates are remembered of so many addresses, and the ones that were heard of longest ago
go first. Imports the configuration's types.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rtmpd.config.access_rules import address_group
from rtmpd.util.token_bucket import KeyedTokenBuckets

if TYPE_CHECKING:
    from rtmpd.config.model import LimitsConfig

__all__ = ["DEFAULT_CONNECTION_LIMIT", "ConnectionLimits"]

DEFAULT_CONNECTION_LIMIT = 10_000
"""What ``connection_limit = 0`` means, where open files allow it."""

_REMEMBERED = 10_000
_BURST_S = 2.0
"""A bucket holds what comes in by rate in this time."""


class ConnectionLimits:
    """Knows the connections by address.

    Args:
        limits: The options.

    Attributes:
        limits: Likewise; may be changed at any time.
        capacity: What ``connection_limit = 0`` means.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self.limits = limits
        self.capacity = DEFAULT_CONNECTION_LIMIT
        self._by_address: Counter[str] = Counter()
        self._open = 0
        self._rates = KeyedTokenBuckets(_REMEMBERED, _BURST_S)

    def refusal(self, address: str, now_s: float) -> str:
        """Return why a new connection is to be refused; an empty text lets it in: then `enter` is due.

        Args:
            address: Of the peer, without its port.
            now_s: The monotonic clock.
        """
        limits = self.limits
        most = limits.connection_limit or self.capacity
        if self._open >= most:
            return f"connection_limit is {most}"
        most = limits.connections_per_address_limit
        if most and self._by_address[address] >= most:
            return f"connections_per_address_limit is {most}"
        rate = limits.connection_rate_limit
        if not rate:
            self._rates.clear()
        elif not self._rates.take(address_group(address), now_s, rate):
            return f"connection_rate_limit is {rate} per second"
        return ""

    def enter(self, address: str) -> None:
        """Count a connection."""
        self._open += 1
        self._by_address[address] += 1

    def leave(self, address: str) -> None:
        """Count it no more."""
        self._open -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
