"""Readers: edge-triggered epolls for the sockets of all connections, in the event loop.

To wake a connection's greenlet for each read costs more than the media that was read. So what a socket has is handed to a
function of its connection in the event loop, and the greenlet sleeps until that function has something for it.

A socket is read once for each event, so that none holds the event loop, and a slice of time ends the round: with a watcher of
gevent for each socket, the greenlets of thousands of clients that leave together would all unwind in one turn of the loop.

Publishers have an epoll of their own: however many other clients ask for something, or leave together, media waits for one
slice at most. Publishers whose streams have no readers are read lazily: together, some times a second. Most of the cost of
such a publisher is to wake up for it.
"""

from __future__ import annotations

import enum
import select
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from gevent import get_hub

from rtmpd.live.courier import set_reading
from rtmpd.util.speed import accelerated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from gevent.hub import Hub

_READ = 1
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP
_MOMENT_S = 1e-6


class Readable(Protocol):
    """A transport, as its reader sees it.

    Attributes:
        intake: Takes what is read from the socket, if that is all there is to do; else None.
    """

    intake: Callable[[bytes | memoryview], object] | None

    def fileno(self) -> int:
        """Return the descriptor of the socket."""

    def readable(self, *, ending: bool = False) -> None:
        """Read once: the socket has data, or the connection has ended; with *ending*, both may be. Must not wait or raise."""

    def wake(self, found: object) -> None:
        """Hand over what `intake` has returned."""

    def wake_with_error(self) -> None:
        """Hand over what `intake` has raised, while it is handled."""

    def read_failed(self, number: int) -> None:
        """Take note of an error of the socket, by its number."""

    def read_full(self) -> None:
        """Take note that a read was full."""


@accelerated
def read_each(events: list[tuple[int, int]], sockets: Mapping[int, Readable]) -> None:
    """Read the sockets that have events.

    The compiled form reads those whose ``intake`` is a `rtmpd.protocol.intake.FrameIntake` itself, and calls the others.

    Args:
        events: Descriptors and what has happened, as ``epoll.poll`` returns them.
        sockets: By descriptor: a dict.
    """
    for number, found in events:
        # It may have been closed since, by what came for another one.
        sock = sockets.get(number)
        if sock is not None:
            sock.readable(ending=found != select.EPOLLIN)


class Pace(enum.Enum):
    """When a socket is read."""

    REQUESTS = "as soon as it has data and those before it have had their turn"
    EAGER = "as soon as it has data: a publisher"
    LAZY = "with the others, some times a second"


class _Round(NamedTuple):
    """How the ready sockets of an epoll are read.

    Attributes:
        poll: The epoll's method.
        block: Sockets between two looks at the clock. A request may take a millisecond.
        most: A block of fewer sockets is the last one.
        slice_s: The time for one round.
        computes: The time is CPU time: on a busy machine what is not read in time would wait for a whole rest more.
    """

    poll: Callable[[float, int], list[tuple[int, int]]]
    block: int
    most: int
    slice_s: float
    computes: bool = False


class Readers:
    """Reads sockets when they have data.

    Attributes:
        lazy_read_s: The interval of lazy reads, seconds; 0: sockets are never read lazily.
    """

    def __init__(self) -> None:
        self.lazy_read_s = 0.0
        self._epolls = {pace: select.epoll() for pace in Pace}
        self._sockets: dict[int, Readable] = {}
        self._paces: dict[int, Pace] = {}
        self._lazy = 0
        self._watchers = {pace: get_hub().loop.io(self._epolls[pace].fileno(), _READ) for pace in (Pace.EAGER, Pace.REQUESTS)}
        polls = {pace: epoll.poll for pace, epoll in self._epolls.items()}
        self._rounds = {
            Pace.REQUESTS: _Round(polls[Pace.REQUESTS], 1, 1, 0.001),
            Pace.EAGER: _Round(polls[Pace.EAGER], 16, 16, 0.0015),
            # Sockets that have more than one read takes are ready again, and are read until they are empty.
            Pace.LAZY: _Round(polls[Pace.LAZY], 16, 1, 0.0015),
        }
        self._after_rest = _Round(polls[Pace.EAGER], 16, 1, 0.0015, computes=True)
        self._resting = False  # those of `Pace.EAGER`
        self._timer: Any = None

    def add(self, sock: Readable) -> None:
        """Read a socket, with `Pace.REQUESTS`, until `remove`. What it has by now is an event, too."""
        if not self._sockets:
            self._watch(Pace.REQUESTS)
            if not self._resting:
                self._watch(Pace.EAGER)
        number = sock.fileno()
        self._sockets[number] = sock
        self._register(number, Pace.REQUESTS)

    def _watch(self, pace: Pace) -> None:
        self._watchers[pace].start(self._read, self._rounds[pace])

    def _register(self, number: int, pace: Pace) -> None:
        self._paces[number] = pace
        # Edge-triggered: a socket that has data while nothing waits for it would be ready again and again.
        self._epolls[pace].register(number, _EVENTS | select.EPOLLET)
        if pace is Pace.LAZY:
            self._lazy += 1
            if self._timer is None:
                self._start_timer(self.lazy_read_s)

    def _unregister(self, number: int) -> None:
        pace = self._paces.pop(number)
        self._epolls[pace].unregister(number)
        if pace is Pace.LAZY:
            self._lazy -= 1
            if not self._lazy:
                self._stop_timer()

    def remove(self, sock: Readable) -> None:
        """Read a socket no longer. Before it is closed."""
        number = sock.fileno()
        if self._sockets.pop(number, None) is None:
            return
        self._unregister(number)
        if not self._sockets:
            # A watcher that is started keeps the event loop alive.
            for watcher in self._watchers.values():
                watcher.stop()

    def ask_again(self, sock: Readable) -> None:
        """Let a socket that was not read to its end have an event in the next round."""
        number = sock.fileno()
        self._epolls[self._paces[number]].modify(number, _EVENTS | select.EPOLLET)

    def set_pace(self, sock: Readable, pace: Pace) -> None:
        """Read a socket in another way from now on. Unless that is lazily, what it has by now is read at once."""
        number = sock.fileno()
        if pace is Pace.LAZY and not self.lazy_read_s:
            pace = Pace.EAGER
        if self._sockets.get(number) is sock and self._paces[number] is not pace:
            self._unregister(number)
            self._register(number, pace)

    def reload(self, lazy_read_s: float) -> None:
        """Set the interval of lazy reads; with 0 all publishers are read eagerly."""
        self.lazy_read_s = lazy_read_s
        if lazy_read_s and self._lazy:
            self._start_timer(lazy_read_s)
        elif not lazy_read_s:
            for number in [number for number, pace in self._paces.items() if pace is Pace.LAZY]:
                self.set_pace(self._sockets[number], Pace.EAGER)

    # Events ------------------------------------------------------------------------------------------------------------

    def _read(self, each: _Round) -> bool:
        """Read the sockets that are ready, for a slice of time; return whether some may be left: they are first next time."""
        poll, block, most, slice_s, computes = each
        sockets = self._sockets
        clock = time.thread_time if computes else time.monotonic
        ends_at_s = clock() + slice_s
        while True:
            events = poll(0, block)
            read_each(events, sockets)
            if len(events) < most:
                return False
            if clock() >= ends_at_s:
                return True

    def rest(self) -> None:
        """Read from no publishers until `end_rest`, but those that are read lazily."""
        self._resting = True
        self._watchers[Pace.EAGER].stop()

    def end_rest(self) -> None:
        """Read from publishers again when they have sent something."""
        self._resting = False
        if self._sockets:
            self._watch(Pace.EAGER)

    def read_waiting(self) -> bool:
        """Read what publishers have sent by now, for a slice of time; return whether some of it may be left."""
        return self._read(self._after_rest)

    def _lazy_round(self) -> None:
        left = self._read(self._rounds[Pace.LAZY])
        if self._lazy:
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
        set_reading(hub, found)
    return found
