"""The greenlet of a fan-out: when there is something to deliver it has that done, and rests in proportion to the work.

With few players the rest is too short to be worth it, and every message goes out at once; with thousands they batch by
themselves. May import gevent.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import LiveConfig

__all__ = ["Pump"]

log = logging.getLogger(__name__)

_SHORTEST_REST_S = 0.0005
_AVERAGED = 8  # passes
_AFTER_BUG_S = 0.01


def _at_end() -> bool:
    return True


def _no_work() -> float:
    return 0.0


class Pump:
    """Runs passes.

    Args:
        name: The stream's key, for the log.
        options: For ``pacing``, ``pacing_share`` and ``pacing_limit_ms``.
        at_end: Whether there is nothing to deliver.
        work: Makes a pass; returns the seconds of work that it took.
        mend: Called when that has failed.
    """

    def __init__(
        self,
        name: str,
        options: LiveConfig,
        at_end: Callable[[], bool],
        work: Callable[[], float],
        mend: Callable[[], object],
    ) -> None:
        self._name = name
        self.options = options
        self._at_end, self._work, self._mend = at_end, work, mend
        self._idle, self._wakeup = True, Event()
        self._spent_s = 0.0  # what a pass takes, averaged
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin; harmless if it has begun."""
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """End, for good. Lets go of the fan-out, which else would stay with its pages until the garbage collector comes."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
            self._greenlet = None
        self._at_end, self._work, self._mend = _at_end, _no_work, _no_work

    def wake(self) -> None:
        """Say that there may be something to deliver. Cheap."""
        if self._idle:
            self._idle = False
            self._wakeup.set()

    def _run(self) -> None:
        while True:
            # No local may hold a page here: it would keep all of the log behind it for as long as nobody watches.
            if self._at_end():
                self._idle = True
                self._wakeup.clear()
                self._wakeup.wait()
                continue
            try:
                spent_s = self._work()
            except Exception:
                # A bug must not end delivery for everyone who watches.
                log.exception("%s: the fan-out failed", self._name)
                self._mend()
                gevent.sleep(_AFTER_BUG_S)
                continue
            options = self.options
            # By the average: the rest after a pass with a keyframe, which takes long, would make the frames behind it late.
            self._spent_s += (spent_s - self._spent_s) / _AVERAGED if self._spent_s else spent_s
            rest_s = min(self._spent_s * (1 / options.pacing_share - 1), options.pacing_limit_ms / 1000)
            if options.pacing and rest_s >= _SHORTEST_REST_S:
                gevent.sleep(rest_s)
