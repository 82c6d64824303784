"""Deadlines whose exceptions are raised in slices: those of thousands of clients may be due in one turn of the event loop.

gevent looks at timers and sockets only when all greenlets that are ready have run: it would wait until the last of thousands
has unwound, been logged and been released.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from gevent import get_hub, getcurrent

if TYPE_CHECKING:
    from gevent.hub import Hub

_SLICE_S = 0.001
_MOMENT_S = 1e-6


class _Expired:
    """The deadlines that are due in one event loop: in each turn they are raised for a slice, the others in the next turns."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._due: deque[Deadline] = deque()
        self._timer = hub.loop.timer(_MOMENT_S)

    def add(self, deadline: Deadline) -> None:
        """Raise a deadline in one of the next turns."""
        if not self._due:
            self._timer.start(self._run)
        self._due.append(deadline)

    def _run(self) -> None:
        ends_at_s = time.monotonic() + _SLICE_S
        try:
            while self._due and time.monotonic() < ends_at_s:
                self._due.popleft().expire()
        finally:
            if self._due:
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
        found = _expired()
        self._greenlet = getcurrent()
        self._timer = found.hub.loop.timer(max(0.0, self._limit_s))
        self._timer.start(found.add, self, update=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._greenlet = None
        self._timer.close()

    def expire(self) -> None:
        """Raise the exception now, unless the body has been left."""
        # The greenlet may have left the body since the timer was due.
        if self._greenlet is not None:
            self._greenlet.throw(self._error)


_local = threading.local()


def _expired() -> _Expired:
    """Return the deadlines that are due in this thread's event loop."""
    hub = get_hub()
    found: _Expired | None = getattr(_local, "found", None)
    if found is None or found.hub is not hub:
        found = _local.found = _Expired(hub)
    return found
