"""Whether one more connection may come in: how many there are, how many of one address, and how fast they come.

Pure; the time is the caller's. Bounded: rates are remembered of so many addresses, and the ones that were heard of longest ago
go first. Imports the configuration's types.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from rtmpd.config.access import address_group

if TYPE_CHECKING:
    from rtmpd.config.model import LimitsConfig

__all__ = ["DEFAULT_CONNECTION_LIMIT", "ConnectionLimits", "RateLimiter"]

DEFAULT_CONNECTION_LIMIT = 10_000
"""What ``connection_limit = 0`` means, where open files allow it."""

_REMEMBERED = 10_000
_BURST_S = 2.0
"""A bucket holds what comes in by rate in this time."""


class RateLimiter:
    """A token bucket for each address; of IPv6 for each /64.

    Args:
        limit: How many addresses are remembered. One that is forgotten begins with a full bucket.
    """

    def __init__(self, limit: int = _REMEMBERED) -> None:
        self._limit = limit
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str, now_s: float, rate: float) -> bool:
        """Take a token of an address; return whether there was one.

        Args:
            address: Of the peer.
            now_s: The monotonic clock.
            rate: Tokens per second. Those of two seconds are kept.
        """
        who = address_group(address)
        burst = rate * _BURST_S
        tokens, counted_at_s = self._buckets.pop(who, (burst, now_s))
        tokens = min(burst, tokens + (now_s - counted_at_s) * rate)
        taken = tokens >= 1
        self._buckets[who] = (tokens - taken, now_s)
        if len(self._buckets) > self._limit:
            self._buckets.popitem(last=False)
        return taken

    def clear(self) -> None:
        """Forget all."""
        self._buckets.clear()


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
        self._rates = RateLimiter()

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
        elif not self._rates.take(address, now_s, rate):
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
