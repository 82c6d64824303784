"""Bans: an address with too many failures is kept out for a while.

Bounded: of those that fail, and of those that are banned, only so many are remembered; the ones that were heard of longest ago
go first. Pure; the time is the caller's.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from rtmpd.config.access_rules import address_group

__all__ = ["Ban", "Bans"]

_LIMIT = 10_000


@dataclass(slots=True)
class _Failing:
    since_s: float
    until_s: float
    failures: int = 0


@dataclass(slots=True)
class _Banned:
    until_s: float
    refused: int = 0


class Ban(NamedTuple):
    """A ban that is over: of whom, and how many connections it refused."""

    who: str
    refused: int


class Bans:
    """Counts failures by address.

    Args:
        limit: How many addresses are remembered.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._failing: OrderedDict[str, _Failing] = OrderedDict()
        self._banned: OrderedDict[str, _Banned] = OrderedDict()

    def __len__(self) -> int:
        return len(self._banned)

    def fail(self, address: str, now_s: float, *, failures: int, window_s: float, ban_s: float) -> str:
        """Count a failure; return who is banned for it from now on, or an empty text.

        Args:
            address: Who failed.
            now_s: The time.
            failures: How many make a ban; 0: they never do.
            window_s: How long they add up, from the first one.
            ban_s: How long the ban lasts.
        """
        if not failures:
            return ""
        who = address_group(address)
        entry = self._failing.pop(who, None)
        if entry is None or now_s >= entry.until_s:
            entry = _Failing(now_s, now_s + window_s)
        entry.failures += 1
        if entry.failures >= failures:
            if who in self._banned:
                # Connections that were there before fail on.
                return ""
            self._banned[who] = _Banned(now_s + ban_s)
            self._shorten(self._banned)
            return who
        self._failing[who] = entry
        self._shorten(self._failing)
        return ""

    def _shorten(self, entries: OrderedDict[str, _Failing] | OrderedDict[str, _Banned]) -> None:
        while len(entries) > self._limit:
            entries.popitem(last=False)

    def bars(self, address: str, now_s: float) -> bool:
        """Whether an address is banned; counts what is refused for it."""
        if not self._banned:
            return False
        entry = self._banned.get(address_group(address))
        if entry is None or now_s >= entry.until_s:
            return False
        entry.refused += 1
        return True

    def over(self, now_s: float) -> list[Ban]:
        """Forget failures and bans whose time is over; return those bans."""
        for who in [who for who, entry in self._failing.items() if now_s >= entry.until_s]:
            del self._failing[who]
        ended = [Ban(who, entry.refused) for who, entry in self._banned.items() if now_s >= entry.until_s]
        for ban in ended:
            del self._banned[ban.who]
        return ended
