"""Look-ups of host names, in native threads of their own.

The system's resolver blocks for as long as the name servers do not answer. So each name is looked up only once at a time,
callers wait with a limit, and addresses that have worked are remembered for the time in which a name can't be looked up.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from rtmpd.util.text import printable
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rtmpd.util.threads import Job

log = logging.getLogger(__name__)

Address = tuple[Any, ...]
"""A socket address: host and port, for IPv6 with flow and scope."""

THREADS = 64
"""Look-ups at the same time. One that hangs takes a thread until the system's resolver gives up."""

ADDRESSES = 16
"""Addresses of a name that are used."""

_HANGS_S = 5.0
_LATE_S = 60.0
_NAMES = 256
_WORKED = 4


def look_up(host: str, port: int, flags: int = 0) -> list[Address]:
    """Return the addresses of a host in the order in which they should be tried: IPv6 and IPv4 by turns. Blocks.

    Raises:
        OSError: The name can't be looked up. UnicodeError: It can't be a name.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    first: list[Address] = []
    other: list[Address] = []
    for family, _, _, _, address in found:
        (first if family == found[0][0] else other).append(address)
    mixed: list[Address] = []
    while first or other:
        mixed += [*first[:1], *other[:1]]
        first, other = first[1:], other[1:]
    return list(dict.fromkeys(mixed))[:ADDRESSES]


def numeric(host: str, port: int) -> list[Address]:
    """Return the address that *host* is, without a look-up; empty if it is a name. Raises UnicodeError if it can't be one."""
    try:
        return look_up(host, port, socket.AI_NUMERICHOST)
    except OSError:
        return []


class _LookUp:
    """A look-up that waits for a thread, runs, or has ended without a caller to take its answer."""

    def __init__(self, key: tuple[str, int]) -> None:
        self.key = key
        self.job: Job[list[Address]] | None = None
        self.began_s = self.ended_s = 0.0
        self.callers = 0
        self.ended = Event()

    def hangs(self) -> bool:
        return self.job is not None and not self.job.done and time.monotonic() - self.began_s >= _HANGS_S


class Resolver:
    """Looks up host names for one service. Belongs to the event loop.

    Args:
        count: Called with the name of a counter when a name can't be looked up.
        look_up: Returns the addresses of a host and port; called in a thread.
        threads: Most look-ups at the same time; others wait.
    """

    def __init__(
        self,
        count: Callable[[str], None] = lambda _: None,
        look_up: Callable[[str, int], list[Address]] = look_up,
        threads: int = THREADS,
    ) -> None:
        self._count = count
        self._look_up = look_up
        self._threads = Threads(threads)
        self._free = threads
        self._waiting: dict[tuple[str, int], _LookUp] = {}
        self._look_ups: dict[tuple[str, int], _LookUp] = {}
        # The least recently used name is the first; of each name, the address that worked last.
        self._worked: dict[tuple[str, int], list[Address]] = {}
        self._reported: set[tuple[str, int]] = set()

    def resolve(self, host: str, port: int, limit_s: float) -> Sequence[Address]:
        """Return the addresses of a host, in the order in which they should be tried.

        If the look-up fails, or has no answer within half of *limit_s* or 5 s, these are the addresses that have worked.
        Without such, the call waits for the answer for up to *limit_s*. A later answer is for the next call.

        Raises:
            OSError: The name can't be looked up. TimeoutError: There was no answer in time.
        """
        try:
            literal = numeric(host, port)
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "Not a valid host name") from None
        if literal:
            return literal
        key = (host.lower(), port)
        one = self._join(key)
        patience_s = limit_s
        if key in self._worked:
            patience_s = 0.0 if one.hangs() else min(limit_s / 2, _HANGS_S)
        one.callers += 1
        try:
            ended = one.ended.wait(patience_s)
        finally:
            one.callers -= 1
            self._leave(one)
        problem: OSError = TimeoutError(f"the name could not be looked up within {limit_s:g} s")
        if ended and one.job is not None:
            try:
                return self._fresh(key, one.job.get())
            except OSError as error:
                problem = error
        self._count("lookup_failures")
        worked = self._worked.get(key, ())
        if not worked:
            raise problem
        if key not in self._reported:
            self._reported.add(key)
            reason = problem.strerror or f"no answer within {patience_s:g} s"
            known = ", ".join(str(address[0]) for address in worked)
            log.info("%s can't be looked up: %s; its last addresses are used meanwhile: %s", printable(host), reason, known)
        return tuple(worked)

    def worked(self, host: str, port: int, address: Address) -> None:
        """Remember an address of a host for times in which the name can't be looked up."""
        key = (host.lower(), port)
        if numeric(host, port):
            return
        known = self._worked.pop(key, [])
        self._worked[key] = [address, *(each for each in known if each != address)][:_WORKED]
        while len(self._worked) > _NAMES:
            oldest = next(iter(self._worked))
            del self._worked[oldest]
            self._reported.discard(oldest)

    def _fresh(self, key: tuple[str, int], addresses: list[Address]) -> list[Address]:
        """Forget the addresses that a fresh answer does not have."""
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "No address")
        self._reported.discard(key)
        if key in self._worked:
            self._worked[key] = [each for each in self._worked[key] if each in addresses]
            if not self._worked[key]:
                del self._worked[key]
        return addresses

    # Look-ups ----------------------------------------------------------------------------------------------------------

    def _join(self, key: tuple[str, int]) -> _LookUp:
        """Return the look-up of a name: one that is under way, one whose answer came late, or a new one."""
        one = self._look_ups.get(key)
        if one is not None and one.ended.is_set() and time.monotonic() - one.ended_s > _LATE_S:
            one = None
        if one is None:
            one = self._look_ups[key] = self._waiting[key] = _LookUp(key)
            self._start()
        return one

    def _leave(self, one: _LookUp) -> None:
        """Forget a look-up that no caller needs: its answer was taken, or it has not begun."""
        if one.ended.is_set() or (one.job is None and not one.callers):
            self._waiting.pop(one.key, None)
            if self._look_ups.get(one.key) is one:
                del self._look_ups[one.key]

    def _start(self) -> None:
        while self._free and self._waiting:
            one = self._waiting.pop(next(iter(self._waiting)))
            self._free -= 1
            one.began_s = time.monotonic()
            # Does not wait: a thread is free.
            one.job = self._threads.spawn(self._look_up, *one.key)
            one.job.when_done(lambda one=one: self._end(one))  # type: ignore[misc]

    def _end(self, one: _LookUp) -> None:
        self._free += 1
        one.ended_s = time.monotonic()
        one.ended.set()
        if self._waiting:
            gevent.spawn(self._start)
        if not one.callers and one.job is not None and not one.job.succeeded:
            self._look_ups.pop(one.key, None)
        late = [each for each in self._look_ups.values() if each.ended.is_set()]
        for each in late[: max(0, len(late) - _NAMES)]:
            del self._look_ups[each.key]
