"""Who is told what next: destinations, their queues, and how many are told at the same time.

A destination keeps events in lanes, one per stream (or per connection, where there is no stream): in a lane one event goes out
after the other, and lanes go side by side. Nothing here waits for a destination; whoever adds an event least of all. Imports
gevent.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import gevent
from gevent.event import Event as Flag
from gevent.pool import Group

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import HooksConfig
    from rtmpd.services.hooks.notice import Notice

__all__ = ["Board", "Carrier", "Destination", "Hush", "Outcome", "Policy"]

log = logging.getLogger(__name__)

_REPEAT_S = 10.0
_FIRST_PAUSE_S = 0.5
_KILL_S = 3.0
"""How long carriers may take to clean up when they are told to end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a try went.

    Attributes:
        problem: What went wrong, for the log; empty if nothing did.
        again: Whether another try may help.
        timed_out: Whether it took too long.
        wait_s: How long the destination asks to be left alone.
        remark: What was odd, although it went well.
    """

    problem: str = ""
    again: bool = False
    timed_out: bool = False
    wait_s: float = 0.0
    remark: str = ""


class Carrier(Protocol):
    """A way to tell a destination."""

    @property
    def label(self) -> str:
        """What the log calls the destination; nothing secret."""

    def carry(self, notice: Notice, attempt: int, config: HooksConfig) -> Outcome:
        """Tell it of an event, and wait until that is done, at most the timeout and a little. Cleans up when it is killed."""


class Policy(Protocol):
    """What a board asks of the service that it belongs to."""

    @property
    def config(self) -> HooksConfig:
        """The options in force."""

    def count_delivery(self) -> None:
        """Count an event that has arrived."""

    def count_failure(self) -> None:
        """Count one that was given up."""

    def count_timeout(self) -> None:
        """Count a try that took too long."""

    def count_retry(self) -> None:
        """Count a try after the first."""

    def count_drops(self, number: int) -> None:
        """Count events that were never tried."""

    def count_bug(self) -> None:
        """Count an internal error."""


class Hush:
    """Speaks at most once in ten seconds, and says then how often it was silent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at = 0.0
        self._held = 0

    def due(self) -> bool:
        """Whether it may speak now; if so, it may not again for a while."""
        now = self._clock()
        if now < self._next_at:
            self._held += 1
            return False
        self._next_at = now + _REPEAT_S
        return True

    def warn(self, message: str, *values: object) -> None:
        """Log a warning, or count it."""
        if self.due():
            if self._held:
                message += " (and %d more since the last such line)"
                values = (*values, self._held)
                self._held = 0
            log.warning(message, *values)


class _Lane:
    """Events that go out one after the other.

    Attributes:
        notices: What waits, the next one first.
        attempt: The next try of that one, from 1.
    """

    __slots__ = ("attempt", "key", "notices")

    def __init__(self, key: str) -> None:
        self.key = key
        self.notices: deque[Notice] = deque()
        self.attempt = 1


class Destination:
    """Somebody who is told of events.

    Attributes:
        carrier: How.
        waiting: Events that wait, with those under way.
        running: Lanes of which an event is under way.
    """

    def __init__(self, carrier: Carrier, board: Board) -> None:
        self.carrier = carrier
        self.waiting = 0
        self.running = 0
        self._board = board
        self._lanes: dict[str, _Lane] = {}
        self._ready: deque[_Lane] = deque()
        self._resting: dict[_Lane, gevent.Greenlet[[], None]] = {}
        self._failures = Hush()
        self._drops = Hush()
        self._recoveries = Hush()
        self._dropped = 0
        self._failed = 0

    @property
    def ready(self) -> bool:
        """Whether there is something to do for it."""
        return bool(self._ready)

    def offer(self, notice: Notice) -> None:
        """Take an event, or drop it if too many wait. Never waits."""
        policy = self._board.policy
        if self.waiting >= policy.config.hook_queue_limit:
            self._dropped += 1
            policy.count_drops(1)
            self._drops.warn(
                "hook %s is too slow: %d events wait, and %s of %s is dropped; %d dropped so far",
                self.carrier.label,
                self.waiting,
                notice.type,
                notice.subject,
                self._dropped,
            )
            return
        self.waiting += 1
        lane = self._lanes.get(notice.lane)
        if lane is None:
            lane = self._lanes[notice.lane] = _Lane(notice.lane)
            self._ready.append(lane)
        lane.notices.append(notice)
        self._board.kick()

    def take(self) -> _Lane:
        """Return the lane whose turn it is."""
        self.running += 1
        return self._ready.popleft()

    def work(self, lane: _Lane) -> None:
        """Carry the first event of a lane, and see what comes of it."""
        notice = lane.notices[0]
        policy = self._board.policy
        try:
            outcome = self.carrier.carry(notice, lane.attempt, policy.config)
        except Exception as error:
            policy.count_bug()
            log.exception("internal error in hook %s", self.carrier.label)
            outcome = Outcome(f"internal error: {type(error).__name__}")
        finally:
            self.running -= 1
        if outcome.timed_out:
            policy.count_timeout()
        if self._lanes.get(lane.key) is not lane:
            # The destination has been closed meanwhile, and this was the last event for it.
            self._settle(notice, outcome, lane.attempt)
            return
        pause_s = self._pause_s(outcome, lane.attempt)
        if pause_s is not None:
            policy.count_retry()
            log.debug("hook %s: %s of %s: %s", self.carrier.label, notice.type, notice.subject, outcome.problem)
            lane.attempt += 1
            self._resting[lane] = gevent.spawn_later(pause_s, lambda: self._wake(lane))
            return
        self._settle(notice, outcome, lane.attempt)
        lane.notices.popleft()
        lane.attempt = 1
        self.waiting -= 1
        if lane.notices:
            self._ready.append(lane)
        else:
            del self._lanes[lane.key]

    def _pause_s(self, outcome: Outcome, attempt: int) -> float | None:
        """How long to wait for another try; None: there is none."""
        config = self._board.policy.config
        if not outcome.problem or not outcome.again or attempt > config.hook_retries or self._board.stopping:
            return None
        pause_s = _FIRST_PAUSE_S * 2 ** min(attempt - 1, 30) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
        return float(min(max(pause_s, outcome.wait_s), config.hook_retry_limit_s))

    def _settle(self, notice: Notice, outcome: Outcome, attempts: int) -> None:
        """Count an event and say what there is to say."""
        label, policy = self.carrier.label, self._board.policy
        if outcome.problem:
            self._failed += 1
            policy.count_failure()
            tries = f" (tried {attempts} times)" if attempts > 1 else ""
            self._failures.warn("hook %s: %s of %s: %s%s", label, notice.type, notice.subject, outcome.problem, tries)
            return
        policy.count_delivery()
        if outcome.remark:
            self._failures.warn("hook %s: %s of %s: %s", label, notice.type, notice.subject, outcome.remark)
        if self._failed and self._recoveries.due():
            log.info("hook %s works again; %d events had failed", label, self._failed)
            self._failed = 0

    def _wake(self, lane: _Lane) -> None:
        del self._resting[lane]
        self._ready.append(lane)
        self._board.kick()

    def hurry(self) -> None:
        """Let lanes rest no longer."""
        for lane, timer in self._resting.items():
            timer.kill(block=False)
            self._ready.append(lane)
        self._resting.clear()

    def close(self) -> int:
        """Drop what waits, and return how many events that is, with those under way, which go on."""
        dropped = self.waiting
        for timer in self._resting.values():
            timer.kill(block=False)
        self._resting.clear()
        self._lanes.clear()
        self._ready.clear()
        self.waiting = 0
        return dropped


class Board:
    """All destinations, and the greenlets that tell them.

    Each destination has a place of its own among those that are told at the same time, so that one that is slow or gone holds
    up no other; no one of several takes more than half of the places.

    Attributes:
        policy: The service.
        destinations: Whose turn comes first, first.
        stopping: Whether there are no more tries after the first.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.destinations: deque[Destination] = deque()
        self.stopping = False
        self._greenlets = Group()
        self._settled = Flag()
        self._closed = False

    @property
    def places(self) -> int:
        """How many events may be under way."""
        return max(self.policy.config.hook_concurrency, len(self.destinations))

    @property
    def waiting(self) -> int:
        """How many events have not been told yet."""
        return sum(destination.waiting for destination in self.destinations)

    def kick(self) -> None:
        """Begin what there is a place for."""
        while not self._closed:
            destination = self._next()
            if destination is None:
                return
            self._greenlets.spawn(self._work, destination, destination.take())

    def _next(self) -> Destination | None:
        """Return the destination whose turn it is."""
        destinations = self.destinations
        free = self.places - len(self._greenlets)
        if free <= 0:
            return None
        share = self.places if len(destinations) == 1 else (self.places + 1) // 2
        kept = sum(not each.running for each in destinations)
        for _ in range(len(destinations)):
            destination = destinations[0]
            destinations.rotate(-1)
            # Its first place is its own; further ones are those that nobody else has a right to.
            if destination.ready and (not destination.running or (destination.running < share and free > kept)):
                return destination
        return None

    def _work(self, destination: Destination, lane: _Lane) -> None:
        try:
            destination.work(lane)
        finally:
            # This greenlet's place is free from now on.
            self._greenlets.discard(gevent.getcurrent())  # type: ignore[arg-type]
            self.kick()
            if not self.waiting:
                self._settled.set()

    def add(self, carrier: Carrier) -> Destination:
        """Make a destination."""
        destination = Destination(carrier, self)
        self.destinations.append(destination)
        return destination

    def remove(self, destination: Destination) -> None:
        """Take leave of one. What waits for it is dropped."""
        self.destinations.remove(destination)
        dropped = destination.close() - destination.running
        if dropped > 0:
            self.policy.count_drops(dropped)
            log.warning(
                "hook %s is gone from the configuration: %d events for it are dropped", destination.carrier.label, dropped
            )

    def stop(self, limit_s: float) -> None:
        """Tell what waits, at most for *limit_s*; then end what is under way, and drop the rest."""
        self.stopping = True
        deadline = time.monotonic() + limit_s
        for destination in self.destinations:
            destination.hurry()
        self.kick()
        self._settled.clear()
        if self.waiting:
            self._settled.wait(max(limit_s / 2, limit_s - _KILL_S))
        self._closed = True
        dropped = 0
        for destination in self.destinations:
            lost = destination.close()
            if lost:
                log.warning("hook %s: %d events could not be told before the end", destination.carrier.label, lost)
            dropped += lost
        if dropped:
            self.policy.count_drops(dropped)
        self._greenlets.kill(timeout=max(0.1, min(_KILL_S, deadline - time.monotonic())))
