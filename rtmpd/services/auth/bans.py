"""Bans: addresses with too many failures are refused for a while. Pure: the clock is an argument.

The numbers of failing and of banned addresses that are remembered are bounded; the oldest entries are forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from rtmpd.config.access_rules import address_group

_LIMIT = 10_000


@dataclass(slots=True)
class _Entry:
    """Failures until a ban, or connections that were refused during one; valid until a time."""

    until_s: float
    count: int = 0


class Ban(NamedTuple):
    """A ban that is over: its address or IPv6 network, and how many connections it refused."""

    address: str
    refused: int


class Bans:
    """Counts failures by address, or by /64 network of IPv6.

    Args:
        limit: The number of addresses that are remembered.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._failing: OrderedDict[str, _Entry] = OrderedDict()
        self._banned: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._banned)

    def fail(self, address: str, now_s: float, *, failures: int, window_s: float, ban_s: float) -> str:
        """Count a failure. Return the address or network that is banned from now on; empty: none is.

        Args:
            address: The address of the client.
            now_s: The monotonic clock.
            failures: The number of failures that make a ban; 0: there are no bans.
            window_s: The time from the first failure in which they must happen.
            ban_s: The length of the ban.
        """
        if not failures:
            return ""
        group = address_group(address)
        entry = self._failing.pop(group, None)
        if entry is None or now_s >= entry.until_s:
            entry = _Entry(now_s + window_s)
        entry.count += 1
        if entry.count < failures:
            self._add(self._failing, group, entry)
            return ""
        if group in self._banned:
            # A connection from before the ban has failed again.
            return ""
        self._add(self._banned, group, _Entry(now_s + ban_s))
        return group

    def _add(self, entries: OrderedDict[str, _Entry], group: str, entry: _Entry) -> None:
        entries[group] = entry
        if len(entries) > self._limit:
            entries.popitem(last=False)

    def bars(self, address: str, now_s: float) -> bool:
        """Return whether an address is banned, and count the refusal."""
        if not self._banned:
            return False
        entry = self._banned.get(address_group(address))
        if entry is None or now_s >= entry.until_s:
            return False
        entry.count += 1
        return True

    def over(self, now_s: float) -> list[Ban]:
        """Forget failures and bans whose time is over; return those bans."""
        for group in [group for group, entry in self._failing.items() if now_s >= entry.until_s]:
            del self._failing[group]
        ended = [Ban(group, entry.count) for group, entry in self._banned.items() if now_s >= entry.until_s]
        for ban in ended:
            del self._banned[ban.address]
        return ended
