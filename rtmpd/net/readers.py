"""Readers: one edge-triggered epoll for the sockets of all connections, in the event loop.

To wake a connection's greenlet for each read costs more than the media that was read. So what a socket has is handed to a
function of its connection in the event loop, and the greenlet sleeps until that function has something for it.

A socket is read once for each event, so that none holds the event loop, and a slice of time ends the round: with a watcher of
gevent for each socket, the greenlets of thousands of clients that leave together would all unwind in one turn of the loop.

Sockets of publishers whose streams have no readers are read lazily: together, some times a second. Most of the cost of such a
publisher is to wake up for it.
"""

from __future__ import annotations

import enum
import select
import time
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from gevent import get_hub

if TYPE_CHECKING:
    from typing import Any

    from gevent.hub import Hub

_READ = 1
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP
_BLOCK = 8  # sockets between two looks at the clock
_SLICE_S = 0.0015
_MOMENT_S = 1e-6


class Readable(Protocol):
    """A transport, as its reader sees it."""

    def fileno(self) -> int:
        """Return the descriptor of the socket."""

    def readable(self, *, ending: bool = False) -> None:
        """Read once: the socket has data, or the connection has ended; with *ending*, both may be. Must not wait or raise."""


class Pace(enum.Enum):
    """When a socket is read."""

    EAGER = "as soon as it has data"
    LAZY = "with the others, some times a second"


class Readers:
    """Reads sockets when they have data.

    Attributes:
        lazy_read_s: The interval of lazy reads, seconds; 0: sockets are never read lazily.
    """

    def __init__(self) -> None:
        self.lazy_read_s = 0.0
        self._eager = select.epoll()
        self._lazy = select.epoll()
        self._sockets: dict[int, Readable] = {}
        self._lazy_sockets: set[int] = set()
        self._watcher = get_hub().loop.io(self._eager.fileno(), _READ)
        self._timer: Any = None

    def add(self, sock: Readable) -> None:
        """Read a socket eagerly, until `remove`. What it has by now is an event, too."""
        number = sock.fileno()
        if not self._sockets:
            self._watcher.start(self._round)
        self._sockets[number] = sock
        self._eager.register(number, _EVENTS | select.EPOLLET)

    def remove(self, sock: Readable) -> None:
        """Read a socket no longer. Before it is closed."""
        number = sock.fileno()
        if self._sockets.pop(number, None) is None:
            return
        if number in self._lazy_sockets:
            self._end_lazy(number)
        else:
            self._eager.unregister(number)
        if not self._sockets:
            # A watcher that is started keeps the event loop alive.
            self._watcher.stop()

    def ask_again(self, sock: Readable) -> None:
        """Let a socket that was not read to its end have an event in the next round."""
        number = sock.fileno()
        if number not in self._lazy_sockets:
            self._eager.modify(number, _EVENTS | select.EPOLLET)

    def set_pace(self, sock: Readable, pace: Pace) -> None:
        """Read a socket eagerly or lazily from now on. Eagerly, what it has by now is read at once."""
        number = sock.fileno()
        if self._sockets.get(number) is not sock or (pace is Pace.LAZY) == (number in self._lazy_sockets):
            return
        if pace is Pace.LAZY:
            if not self.lazy_read_s:
                return
            self._eager.unregister(number)
            self._lazy.register(number, _EVENTS)
            self._lazy_sockets.add(number)
            if self._timer is None:
                self._start_timer(self.lazy_read_s)
        else:
            self._end_lazy(number)
            self._eager.register(number, _EVENTS | select.EPOLLET)

    def _end_lazy(self, number: int) -> None:
        self._lazy_sockets.discard(number)
        self._lazy.unregister(number)
        if not self._lazy_sockets:
            self._stop_timer()

    def reload(self, lazy_read_s: float) -> None:
        """Set the interval of lazy reads; with 0 all sockets are read eagerly."""
        self.lazy_read_s = lazy_read_s
        if lazy_read_s and self._lazy_sockets:
            self._start_timer(lazy_read_s)
        elif not lazy_read_s:
            for number in list(self._lazy_sockets):
                self.set_pace(self._sockets[number], Pace.EAGER)

    # Events ------------------------------------------------------------------------------------------------------------

    def _round(self) -> None:
        """Read the sockets that are ready. Those that are left at the end of the slice have their turn in the next round."""
        self._read(self._eager, _BLOCK)

    def _read(self, epoll: select.epoll, most: int) -> bool:
        """Read sockets for a slice of time, or until fewer than *most* are ready; return whether some may be left."""
        sockets = self._sockets
        ends_at_s = time.monotonic() + _SLICE_S
        while True:
            events = epoll.poll(0, _BLOCK)
            for number, found in events:
                # It may have been closed since, by what came for another one.
                sock = sockets.get(number)
                if sock is not None:
                    if found == select.EPOLLIN:
                        sock.readable()
                    else:
                        sock.readable(ending=True)
            if len(events) < most:
                return False
            if time.monotonic() >= ends_at_s:
                return True

    def _lazy_round(self) -> None:
        # Sockets that have more than one read takes are ready again, and are read until they are empty.
        left = self._read(self._lazy, 1)
        if self._lazy_sockets:
            self._start_timer(_MOMENT_S if left else self.lazy_read_s)

    def _start_timer(self, after_s: float) -> None:
        self._stop_timer()
        self._timer = get_hub().loop.timer(after_s)
        self._timer.start(self._lazy_round, update=True)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None


_BY_HUB: WeakKeyDictionary[Hub, Readers] = WeakKeyDictionary()


def readers() -> Readers:
    """Return the readers of this thread's event loop."""
    hub = get_hub()
    found = _BY_HUB.get(hub)
    if found is None:
        found = _BY_HUB[hub] = Readers()
    return found
