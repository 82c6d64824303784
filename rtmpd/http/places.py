"""The bounds of the connections of an HTTP server: those that wait for a request, and responses under way.

Slow clients delay no others. When too many send a request or are idle, an idle one gives way, or the oldest of the address that
has most. Of those that read a response, one that is slow gives way to a request.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from gevent.lock import BoundedSemaphore

from rtmpd.config.access_rules import address_group
from rtmpd.phases import CloseKind, CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.net.transport import Transport

SLOW_S = 1.0
"""A client that has not read its response for this long gives way to requests that wait."""

_IDLE = CloseReason(CloseKind.DEADLINE, "idle while other clients connect")
_TOO_SLOW = CloseReason(CloseKind.DEADLINE, "too slow while others wait")


class Occupant(Protocol):
    """A connection.

    Attributes:
        gave_way: It was closed while it was idle, for another one, and is no longer counted.
    """

    gave_way: bool

    @property
    def transport(self) -> Transport:
        """Its transport."""

    def close(self, reason: CloseReason) -> None:
        """Close it. Must not wait."""


class Receiver(Protocol):
    """A request whose response takes a place, or waits for one."""

    def ensure_open(self) -> None:
        """Raise TransportClosed if the client has gone. Must not wait."""

    def close(self, reason: CloseReason) -> None:
        """End it. Must not wait."""


class Places:
    """The connections of one server by what they wait for.

    Args:
        waiting_limit: Returns how many connections may wait for a request, or send one.
        responses_limit: How many responses may be under way, each with its body in memory.
        count: Adds to a counter of failures.
    """

    def __init__(self, waiting_limit: Callable[[], int], responses_limit: int, count: Callable[[str], None]) -> None:
        self._waiting_limit = waiting_limit
        self._count = count
        self._reading: dict[Occupant, None] = {}
        self._idle: dict[Occupant, None] = {}
        self._sending: dict[Receiver, float] = {}
        self._free = BoundedSemaphore(responses_limit)

    def begin_reading(self, connection: Occupant) -> None:
        """Take note that a connection reads a request; another one gives way if they are too many."""
        self._idle.pop(connection, None)
        self._reading[connection] = None
        if len(self._reading) + len(self._idle) > self._waiting_limit() and self.close_idle() is None:
            most = Counter(address_group(each.transport.address) for each in self._reading).most_common(1)[0][0]
            oldest = next(each for each in self._reading if address_group(each.transport.address) == most)
            self._count("http_deadlines")
            del self._reading[oldest]
            oldest.close(_TOO_SLOW)

    def begin_idle(self, connection: Occupant) -> None:
        """Take note that a connection waits for a further request."""
        self._idle[connection] = None

    def end(self, connection: Occupant) -> None:
        """Take note that a connection has a complete request, or has ended."""
        self._reading.pop(connection, None)
        self._idle.pop(connection, None)

    def close_idle(self, group: str = "") -> Occupant | None:
        """Close the connection that has been idle for the longest time; return it, or None if there is none.

        Args:
            group: The address or IPv6 /64 that it must come from; empty: any.
        """
        for connection in self._idle:
            if not group or address_group(connection.transport.address) == group:
                del self._idle[connection]
                connection.close(_IDLE)
                return connection
        return None

    def give_way(self, group: str) -> str | None:
        """Close an idle connection, which counts as closed from now on; as `rtmpd.hub.Hub.give_way`."""
        connection = self.close_idle(group)
        if connection is None:
            return None
        connection.gave_way = True
        return connection.transport.address

    def take(self, receiver: Receiver) -> None:
        """Wait for a place for a response."""
        while not self._free.acquire(timeout=SLOW_S / 4):
            receiver.ensure_open()
            slowest = min(self._sending, key=lambda each: self._sending[each], default=None)
            since_s = self._sending[slowest] if slowest is not None else math.inf
            if slowest is not None and time.monotonic() - since_s > SLOW_S:
                self._count("http_deadlines")
                del self._sending[slowest]
                slowest.close(_TOO_SLOW)

    def leave(self) -> None:
        """Free the place."""
        self._free.release()

    def begin_sending(self, receiver: Receiver) -> None:
        """Take note that a response that has a place waits for its client to read."""
        self._sending[receiver] = time.monotonic()

    def end_sending(self, receiver: Receiver) -> None:
        """Take note that the client has read."""
        self._sending.pop(receiver, None)
