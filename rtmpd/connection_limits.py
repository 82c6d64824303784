"""The limits of connections: in total, and by number and rate per address or IPv6 /64. No clock; the caller passes the time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rtmpd.config.access_rules import address_group
from rtmpd.util.token_bucket import KeyedTokenBuckets

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import LimitsConfig

DEFAULT_CONNECTION_LIMIT = 10_000
"""The limit for ``connection_limit = 0``, if the limit of open files allows so many."""

_REMEMBERED = 10_000
"""The number of networks whose rate is remembered. Those without connections for the longest time are dropped first."""
_HANDSHAKES_DIVISOR = 4
_BURST_S = 2.0
"""A network may open the connections of this time, at the limit of the rate, at once."""


class ConnectionLimits:
    """Counts the open connections, and refuses new ones above a limit.

    Args:
        limits: The options.

    Attributes:
        limits: The options, which may be replaced at any time.
        capacity: The limit for ``connection_limit = 0``.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self.limits = limits
        self.capacity = DEFAULT_CONNECTION_LIMIT
        self._by_group: Counter[str] = Counter()
        self._open = 0
        self._rates = KeyedTokenBuckets(_REMEMBERED, _BURST_S)

    @property
    def limit(self) -> int:
        """``connection_limit``, or what it stands for if it is 0."""
        return self.limits.connection_limit or self.capacity

    def refusal(self, address: str, now_s: float, give_way: Callable[[str], str | None] = lambda group: None) -> str:
        """Return why a new connection must be refused; empty if it is accepted, after which the caller must call `enter`.

        Args:
            address: The peer's address without the port.
            now_s: The time of the monotonic clock.
            give_way: Closes an idle connection of an address group, or with "" of any, and returns its address; `leave` is
                called here. None: there is none.
        """
        limits = self.limits
        limit = self.limit
        if self._open >= limit and not self._make_room(give_way, ""):
            return f"connection_limit is {limit}"
        limit = limits.connections_per_address_limit
        group = address_group(address)
        if limit and self._by_group[group] >= limit and not self._make_room(give_way, group):
            return f"connections_per_address_limit is {limit}"
        rate = limits.connection_rate_limit
        if not rate:
            self._rates.clear()
        elif not self._rates.take(address_group(address), now_s, rate):
            return f"connection_rate_limit is {rate} per second"
        return ""

    def _make_room(self, give_way: Callable[[str], str | None], group: str) -> bool:
        """Let an idle connection give way; return whether there was one."""
        closed = give_way(group)
        if closed is None:
            return False
        self.leave(closed)
        return True

    def handshake_refusal(self, waiting: int) -> str:
        """Return why a new RTMPS connection must be refused; empty if it is accepted.

        A flood of TLS handshakes must leave most connections to other clients.

        Args:
            waiting: The number of TLS handshakes that wait for their turn.
        """
        limit = self.waiting_limit
        return f"{waiting} TLS handshakes wait already, a quarter of connection_limit" if waiting >= limit else ""

    @property
    def waiting_limit(self) -> int:
        """How many connections may wait for a TLS handshake, and how many for an HTTP request: a quarter of all."""
        return max(1, self.limit // _HANDSHAKES_DIVISOR)

    def enter(self, address: str) -> None:
        """Add a connection from an address."""
        self._open += 1
        self._by_group[address_group(address)] += 1

    def leave(self, address: str) -> None:
        """Remove a connection from an address."""
        self._open -= 1
        group = address_group(address)
        self._by_group[group] -= 1
        if not self._by_group[group]:
            del self._by_group[group]
