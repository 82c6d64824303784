"""Dispatching events to hooks: queues, order, retries, and how many deliveries are under way.

Each destination keeps its events in lanes, one for each stream, or for each connection where there is no stream. The events of
a lane are delivered one after the other, lanes side by side. To offer an event never waits.
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

from rtmpd.util.backoff import JITTER, nth_wait_s
from rtmpd.util.log_throttle import LogThrottle

if TYPE_CHECKING:
    from collections import Counter

    from rtmpd.config.model import HooksConfig
    from rtmpd.services.hooks.event import HookEvent

log = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.5
_KILL_S = 3.0
"""How long deliveries may take to clean up when they are killed."""
_CPU_LIMIT = 0.25
"""The share of a processor core that hooks may take from media."""
_FIRST_COST_S = 0.001
_COST_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an attempt to deliver an event.

    Attributes:
        problem: What went wrong, for the log; empty after a success.
        retry: Whether another attempt may help.
        timed_out: Whether the attempt took too long.
        retry_after_s: How long the destination asks to wait for another attempt.
        remark: What was wrong about a success.
        cpu_s: The CPU time that the attempt took of this process; 0: it was not measured.
    """

    problem: str = ""
    retry: bool = False
    timed_out: bool = False
    retry_after_s: float = 0.0
    remark: str = ""
    cpu_s: float = 0.0


class Delivery(Protocol):
    """A way to deliver events to one destination."""

    @property
    def label(self) -> str:
        """The name of the destination in the log, without secrets."""

    def deliver(self, event: HookEvent, attempt: int, options: HooksConfig) -> Outcome:
        """Deliver an event and wait for the result, for ``hook_timeout_s`` and a little. Cleans up when it is killed."""


class CpuLimit:
    """Keeps the starts of attempts so far apart that hooks leave most of the processor core to media.

    Native threads take turns with the event loop: a thread that sends a request or starts a program holds the interpreter
    meanwhile. With a web server that answers at once, hooks would deliver 800 events a second, and delay media by several
    milliseconds.
    """

    def __init__(self, limit: float = _CPU_LIMIT) -> None:
        self._limit = limit
        self._next_at_s = 0.0

    def wait(self, cost_s: float) -> None:
        """Wait until an attempt with this CPU time may start. Waiters are served in order of arrival."""
        now_s = time.monotonic()
        start_s = max(now_s, self._next_at_s)
        self._next_at_s = start_s + cost_s / self._limit
        if start_s > now_s:
            gevent.sleep(start_s - now_s)

    def lift(self) -> None:
        """Limit nothing from now on: there is no media left."""
        self._limit = 1000.0
        self._next_at_s = 0.0


class _Lane:
    """Events that are delivered one after the other; `attempt` is the next attempt for the first one, from 1."""

    __slots__ = ("attempt", "events", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.events: deque[HookEvent] = deque()
        self.attempt = 1


class Destination:
    """The queue of one program or web server.

    Attributes:
        delivery: How events are delivered.
        waiting: The number of events that are queued or under way.
        running: The number of lanes of which an event is under way.
        ready: The lanes of which an event could be delivered now.
    """

    def __init__(self, delivery: Delivery, dispatcher: Dispatcher) -> None:
        self.delivery = delivery
        self.waiting = 0
        self.running = 0
        self._dispatcher = dispatcher
        self._counters = dispatcher.counters
        self._lanes: dict[str, _Lane] = {}
        self.ready: deque[_Lane] = deque()
        self._resting: dict[_Lane, gevent.Greenlet[[], None]] = {}
        self._cost_s = _FIRST_COST_S
        self._failures = LogThrottle()
        self._drops = LogThrottle()
        self._recoveries = LogThrottle()
        self._dropped = 0
        self._failed = 0

    def offer(self, event: HookEvent) -> None:
        """Queue an event, or discard it if the queue is full. Never waits."""
        if self.waiting >= self._dispatcher.options.hook_queue_limit:
            self._dropped += 1
            self._counters["hook_drops"] += 1
            label, values = self.delivery.label, (event.type, event.subject, self._dropped)
            text = "hook %s is too slow: %d events are queued (hook_queue_limit), %s of %s discarded; %d discarded so far"
            self._drops.log(log, logging.WARNING, text, label, self.waiting, *values)
            return
        self.waiting += 1
        lane = self._lanes.get(event.lane)
        if lane is None:
            lane = self._lanes[event.lane] = _Lane(event.lane)
            self.ready.append(lane)
        lane.events.append(event)
        self._dispatcher.kick()

    def work(self, lane: _Lane) -> None:
        """Try to deliver the first event of a lane, and subtract it from `running`. Waits."""
        event = lane.events[0]
        label, attempt = self.delivery.label, lane.attempt
        try:
            self._dispatcher.cpu_limit.wait(self._cost_s)
            outcome = self.delivery.deliver(event, attempt, self._dispatcher.options)
        except Exception as error:
            self._counters["internal_errors"] += 1
            log.exception("internal error in hook %s", label)
            outcome = Outcome(f"internal error: {type(error).__name__}")
        finally:
            self.running -= 1
        if outcome.cpu_s:
            self._cost_s += (outcome.cpu_s - self._cost_s) * _COST_WEIGHT
        if outcome.timed_out:
            self._counters["hook_timeouts"] += 1
        if self._lanes.get(lane.key) is not lane:
            # The destination has been closed meanwhile, and this was its last event.
            self._settle(event, outcome, attempt)
            return
        wait_s = self.wait_s(outcome, attempt)
        if wait_s is not None:
            self._counters["hook_retries"] += 1
            log.debug("hook %s: %s of %s: attempt %d failed: %s", label, event.type, event.subject, attempt, outcome.problem)
            lane.attempt += 1
            self._resting[lane] = gevent.spawn_later(wait_s, lambda: self._wake(lane))
            return
        self._settle(event, outcome, attempt)
        lane.events.popleft()
        lane.attempt = 1
        self.waiting -= 1
        if lane.events:
            self.ready.append(lane)
        else:
            del self._lanes[lane.key]

    def wait_s(self, outcome: Outcome, attempt: int) -> float | None:
        """Return how long to wait before another attempt; None: there is no other."""
        options = self._dispatcher.options
        if not outcome.problem or not outcome.retry or attempt > options.hook_retries or self._dispatcher.stopping:
            return None
        first_s = _FIRST_WAIT_S * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load
        wait_s = max(nth_wait_s(attempt - 1, first_s, options.hook_retry_limit_s), outcome.retry_after_s)
        return min(wait_s, options.hook_retry_limit_s)

    def _settle(self, event: HookEvent, outcome: Outcome, attempts: int) -> None:
        """Count an event, and log what is worth it."""
        label = self.delivery.label
        if outcome.problem:
            self._failed += 1
            self._counters["hook_failures"] += 1
            text = "hook %s: %s of %s could not be delivered: %s%s"
            tried = f" ({attempts} attempts)" if attempts > 1 else ""
            self._failures.log(log, logging.WARNING, text, label, event.type, event.subject, outcome.problem, tried)
            return
        self._counters["hook_deliveries"] += 1
        if outcome.remark:
            text = "hook %s: %s of %s was delivered, but %s"
            self._failures.log(log, logging.WARNING, text, label, event.type, event.subject, outcome.remark)
        if self._failed and self._recoveries.due():
            log.info("hook %s works again, %d events have failed", label, self._failed)
            self._failed = 0

    def _wake(self, lane: _Lane) -> None:
        del self._resting[lane]
        self.ready.append(lane)
        self._dispatcher.kick()

    def hurry(self) -> None:
        """End the waits between attempts."""
        for lane, timer in self._resting.items():
            timer.kill(block=False)
            self.ready.append(lane)
        self._resting.clear()

    def close(self) -> int:
        """Discard queued events; return their number, with those under way, which are not interrupted."""
        self.hurry()
        self._lanes.clear()
        self.ready.clear()
        dropped, self.waiting = self.waiting, 0
        return dropped


class Dispatcher:
    """All destinations, and the greenlets that deliver.

    ``hook_concurrency`` deliveries are under way at the same time, or as many as there are destinations. Each destination has a
    place of its own among these, so that a slow one holds up no other, and none of several takes more than half.

    Args:
        options: The options in force; may be replaced.
        counters: The server's counters.

    Attributes:
        destinations: In the order in which they are served.
        stopping: Whether failed attempts are final.
    """

    def __init__(self, options: HooksConfig, counters: Counter[str]) -> None:
        self.options = options
        self.counters = counters
        self.cpu_limit = CpuLimit()
        self.destinations: deque[Destination] = deque()
        self.stopping = False
        self._greenlets = Group()
        self._settled = Flag()
        self._closed = False

    @property
    def places(self) -> int:
        """The largest number of deliveries under way."""
        return max(self.options.hook_concurrency, len(self.destinations))

    @property
    def waiting(self) -> int:
        """The number of events that are queued or under way."""
        return sum(destination.waiting for destination in self.destinations)

    def kick(self) -> None:
        """Start all deliveries for which there are an event and a place."""
        while not self._closed:
            destination = self._next()
            if destination is None:
                return
            destination.running += 1
            self._greenlets.spawn(self._work, destination, destination.ready.popleft())

    def _next(self) -> Destination | None:
        """Return the destination to be served next."""
        destinations = self.destinations
        free = self.places - len(self._greenlets)
        if free <= 0:
            return None
        limit = self.places if len(destinations) == 1 else (self.places + 1) // 2
        reserved = sum(not each.running for each in destinations)
        for _ in range(len(destinations)):
            destination = destinations[0]
            destinations.rotate(-1)
            # Its first place is its own; further ones are those that no other destination has reserved.
            if destination.ready and (not destination.running or (destination.running < limit and free > reserved)):
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

    def add(self, delivery: Delivery) -> Destination:
        """Add a destination."""
        destination = Destination(delivery, self)
        self.destinations.append(destination)
        return destination

    def remove(self, destination: Destination) -> None:
        """Remove a destination, and discard its queue."""
        self.destinations.remove(destination)
        dropped = destination.close() - destination.running
        if dropped > 0:
            self.counters["hook_drops"] += dropped
            log.warning("hook %s was removed from the configuration: %d events discarded", destination.delivery.label, dropped)

    def stop(self, limit_s: float) -> None:
        """Deliver what is queued, for at most *limit_s*; then kill the deliveries under way, and discard the queues."""
        self.cpu_limit.lift()
        self.stopping = True
        deadline_s = time.monotonic() + limit_s
        for destination in self.destinations:
            destination.hurry()
        self.kick()
        self._settled.clear()
        if self.waiting:
            self._settled.wait(max(limit_s / 2, limit_s - _KILL_S))
        self._closed = True
        for destination in self.destinations:
            dropped = destination.close()
            if dropped:
                self.counters["hook_drops"] += dropped
                log.warning("hook %s: %d events discarded at shutdown", destination.delivery.label, dropped)
        self._greenlets.kill(timeout=max(0.1, min(_KILL_S, deadline_s - time.monotonic())))
