"""The courier: delivers what is new in all streams with few players, in one turn.

A greenlet, a timer and a look at the clock for each stream and message would cost more than to send the message to three
players. So streams with news are listed, and served together when the event loop has handled all sockets that were ready.

Under load the courier rests between turns, and messages gather meanwhile, as they do between the passes of a large stream. What
counts is all that the event loop computes: many small streams cost as much to receive as to deliver. Publishers are not read
from during a rest either, and what has come meanwhile is read together at its end: half of the cost of a message that is read
alone is to wake up for it.
"""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from gevent import get_hub

from rtmpd.util.speed import accelerated, completes

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gevent.hub import Hub

SLICE_S = 0.003
"""How long delivery may hold the event loop."""

_BLOCK = 16  # streams between two looks at the clock
_SHORTEST_REST_S = 0.0005
_LONGEST_REST_S = 0.01
_MOMENT_S = 1e-6
_AVERAGED_TURNS = 8
_MOST_SLICES = 4  # of reading, before a turn
_UNPACED_TURNS = 200  # about a second


class Deliverer(Protocol):
    """A fan-out, as the courier sees it."""

    @property
    def paces(self) -> bool:
        """Whether delivery may rest."""

    def deliver_if_small(self) -> None:
        """Send what is new, or leave that to a greenlet. Must not wait or raise."""


class Reading(Protocol):
    """What reads from publishers, as the courier sees it."""

    def rest(self) -> None:
        """Read nothing until `end_rest`."""

    def end_rest(self) -> None:
        """Read again what comes."""

    def read_waiting(self) -> bool:
        """Read what has come by now, for a slice of time; return whether some of it may be left. Must not wait or raise."""


_READING: WeakKeyDictionary[Hub, Reading] = WeakKeyDictionary()


def set_reading(hub: Hub, reading: Reading) -> None:
    """Let couriers know what reads from publishers in the event loop of *hub*."""
    _READING[hub] = reading


class _State(enum.IntEnum):
    IDLE = 0
    """There is nothing to deliver."""
    CALLED = 1
    """A turn comes as soon as the sockets that are ready have been handled."""
    RESTING = 2
    """A turn comes, if there is something to deliver by then, when the rest is over."""


@accelerated
class CourierState:
    """What news of a stream change of a courier, if a turn is to come in any case."""

    __slots__ = ("_due", "_state")

    _due: list[Deliverer]
    _state: int

    @staticmethod
    def all_pace(due: list[Deliverer]) -> bool:
        """Return whether deliveries may rest for all of these fan-outs."""
        return all(fanout.paces for fanout in due)


@accelerated
def deliver_each(due: list[Deliverer], clock: Callable[[], float], begun: float) -> int:
    """Let fan-outs deliver, one after the other, until *clock* has come to `SLICE_S` after *begun*; return how many have."""
    for index, fanout in enumerate(due, 1):
        fanout.deliver_if_small()
        if index % _BLOCK == 0 and clock() - begun > SLICE_S:
            return index
    return len(due)


class Courier(CourierState):
    """Delivers to small groups of subscribers, of all streams.

    Args:
        share: The share of a CPU core that the event loop may take before deliveries rest.
        limit_ms: The longest rest; at most 10 ms, whatever it says.
    """

    def __init__(self, share: float = 0.2, limit_ms: float = _LONGEST_REST_S * 1000) -> None:
        self._state = _State.IDLE
        self._due = []
        self._counted_s = 0.0  # CPU time at the end of the last turn
        self._average_s = 0.0  # what the event loop computes from one turn to the next
        self._timer: Any = None
        self._reading: Reading | None = None  # during a rest: what rests, too
        self._slices = 0  # of time in which was read since the end of the rest
        self._read_s = 0.0  # CPU time of these
        self._read_all = True  # reading has come to an end behind the last rest
        self._unpaced = 0  # so many turns must follow before reading rests again: there was a stream for which nothing rests
        self.reload(share, limit_ms)

    def reload(self, share: float, limit_ms: float) -> None:
        """Apply other options."""
        self._rest_factor = 1 / share - 1
        self._longest_rest_s = min(limit_ms / 1000, _LONGEST_REST_S)

    @completes(CourierState)
    def add(self, fanout: Deliverer) -> None:
        """Deliver what *fanout* has in the next turn. Do not add it again before that."""
        self._due.append(fanout)
        if self._state != _State.CALLED and (self._state == _State.IDLE or not fanout.paces):
            if self._timer is not None:
                self._timer.stop()
            self._state = _State.CALLED
            self._end_rest()
            get_hub().loop.run_callback(self._turn)

    def remove(self, fanout: Deliverer) -> None:
        """Forget a fan-out."""
        if fanout in self._due:
            self._due.remove(fanout)

    def _turn(self) -> None:
        due, self._due = self._due, []
        self._unpaced = max(0, self._unpaced - 1) if self.all_pace(due) else _UNPACED_TURNS
        begun = time.thread_time()
        count = deliver_each(due, time.thread_time, begun)
        if count < len(due):
            self._due = due[count:] + self._due
            self._rest(_MOMENT_S)
            return
        now_s = time.thread_time()
        # After a time without news it includes much that has nothing to do with media.
        spent_s = min(now_s - self._counted_s, self._longest_rest_s / self._rest_factor) if self._rest_factor else 0.0
        self._counted_s = now_s
        self._average_s += (spent_s - self._average_s) / _AVERAGED_TURNS
        rest_s = self._average_s * self._rest_factor
        if rest_s >= _SHORTEST_REST_S:
            self._rest(max(rest_s - self._rest_reading(), _MOMENT_S))
        elif self._due:
            self._rest(_MOMENT_S)
        else:
            self._state = _State.IDLE

    def _rest_reading(self) -> float:
        """Let reading rest, too, unless it can't keep up with what comes, or there are streams for which nothing rests.

        Returns:
            The CPU time, in seconds, that reading will take at the end of the rest, as it did last time.
        """
        expected_s = 0.0
        if self._read_all and not self._unpaced:
            self._reading = _READING.get(get_hub())
            if self._reading is not None:
                expected_s, self._read_s = self._read_s, 0.0
                self._slices = 0
                self._reading.rest()
        self._read_all = True
        return expected_s

    def _rest(self, rest_s: float) -> None:
        self._state = _State.RESTING
        if self._timer is not None:
            self._timer.close()
        self._timer = get_hub().loop.timer(rest_s)
        self._timer.start(self._rested, update=True)

    def _rested(self) -> None:
        if self._reading is not None and self._read_slice(self._reading):
            # Other sockets and timers have their turn in between.
            self._rest(_MOMENT_S)
            return
        self._end_rest()
        if self._due:
            self._state = _State.CALLED
            self._turn()
        else:
            self._state = _State.IDLE

    def _read_slice(self, reading: Reading) -> bool:
        """Read what has come during the rest, for a slice of time; return whether to read for another one before the turn."""
        self._state = _State.CALLED
        begun_s = time.thread_time()
        self._read_all = not reading.read_waiting()
        self._read_s += time.thread_time() - begun_s
        self._slices += 1
        return not self._read_all and self._slices < _MOST_SLICES

    def _end_rest(self) -> None:
        """Let what rests with the courier go on."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.end_rest()
