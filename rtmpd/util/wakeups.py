"""Wakes greenlets in slices: not all that the event loop finds ready in one turn run in that turn.

Thousands of clients that leave together, or whose deadlines are due together, would hold the event loop until the last of them
has unwound, been logged and been released: gevent looks at timers and sockets only when all have run.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from gevent import get_hub, getcurrent
from gevent.exceptions import ConcurrentObjectUseError
from gevent.hub import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.hub import Hub

_SLICE_S = 0.001
_MOMENT_S = 1e-6
_READ = 1
_STEP = 8
"""How many sockets are asked for at once."""

_READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT


class Wakeups:
    """Wakes greenlets: in each turn of the event loop for a slice, and further ones in the next turns.

    Sockets wait in an epoll of their own, which the event loop sees as one: it would otherwise look at each of thousands that
    are ready before it does anything else, 2 µs each.

    Args:
        hub: gevent's hub, in which everything here runs.

    Attributes:
        hub: The argument.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._epoll = select.epoll()
        self._ready = hub.loop.io(self._epoll.fileno(), _READ)
        self._waiters: dict[int, Waiter[None]] = {}
        self._expired: deque[Callable[[], object]] = deque()
        self._timer = hub.loop.timer(_MOMENT_S)

    def wait_readable(self, fd: int) -> None:
        """Wait until a socket is readable, closed or broken. Rarely returns too early."""
        waiters = self._waiters
        if fd in waiters:
            raise ConcurrentObjectUseError("another greenlet reads from this socket already")
        try:
            self._epoll.modify(fd, _READABLE)
        except FileNotFoundError:
            self._epoll.register(fd, _READABLE)
        if not waiters:
            self._ready.start(self._wake)
        waiter = waiters[fd] = Waiter(self.hub)
        try:
            waiter.get()
        finally:
            if waiters.get(fd) is waiter:
                self._forget(fd)

    def _forget(self, fd: int) -> None:
        del self._waiters[fd]
        if not self._waiters:
            self._ready.stop()

    def _wake(self) -> None:
        ends_at_s = time.monotonic() + _SLICE_S
        more = True
        while more and time.monotonic() < ends_at_s:
            found = self._epoll.poll(0, _STEP)
            more = len(found) == _STEP
            for fd, _ in found:
                waiter = self._waiters.get(fd)
                if waiter is not None:
                    self._forget(fd)
                    waiter.switch(None)

    def expire(self, throw: Callable[[], object]) -> None:
        """Call a function, which must do nothing if its deadline has been met, in one of the next turns."""
        if not self._expired:
            self._timer.start(self._run)
        self._expired.append(throw)

    def _run(self) -> None:
        ends_at_s = time.monotonic() + _SLICE_S
        try:
            while self._expired and time.monotonic() < ends_at_s:
                self._expired.popleft()()
        finally:
            if self._expired:
                self._timer.start(self._run)


class Deadline:
    """A context manager that raises an exception in its greenlet if its body takes too long.

    As ``gevent.Timeout``, but thousands that are due together end in slices.

    Args:
        limit_s: The time for the body.
        error: The exception.
    """

    __slots__ = ("_error", "_greenlet", "_limit_s", "_timer")

    def __init__(self, limit_s: float, error: Exception) -> None:
        self._limit_s = limit_s
        self._error = error
        self._greenlet: Any = None

    def __enter__(self) -> Self:
        found = wakeups()
        self._greenlet = getcurrent()
        self._timer = found.hub.loop.timer(max(0.0, self._limit_s))
        self._timer.start(found.expire, self._expire, update=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._greenlet = None
        self._timer.close()

    def _expire(self) -> None:
        # The greenlet may have left the body since the timer was due.
        if self._greenlet is not None:
            self._greenlet.throw(self._error)


_local = threading.local()


def wakeups() -> Wakeups:
    """Return the wakeups of this thread's event loop."""
    hub = get_hub()
    found: Wakeups | None = getattr(_local, "found", None)
    if found is None or found.hub is not hub:
        found = _local.found = Wakeups(hub)
    return found
