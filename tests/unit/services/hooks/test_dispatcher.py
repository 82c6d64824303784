"""Order, concurrency, retries, bounds, the limit of CPU time and the end of deliveries."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter

import gevent
import pytest
from gevent.event import Event

from rtmpd.services.hooks import dispatcher as module
from rtmpd.services.hooks.dispatcher import CpuLimit, Dispatcher, Outcome
from tests.unit.services.hooks.fakes import LIMIT_S, hook_event, options, wait_for, within


class FakeDelivery:
    """A destination that does what a test says.

    ``outcomes`` are given one after the other, then success; while ``gate`` is clear, everything waits.
    """

    def __init__(self, label="there", outcomes=(), duration_s=0.0):
        self.label = label
        self.outcomes = list(outcomes)
        self.duration_s = duration_s
        self.gate = Event()
        self.gate.set()
        self.delivered = []
        self.attempts = []
        self.running = 0
        self.most = 0
        self.killed = 0

    def deliver(self, event, attempt, options):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            self.gate.wait()
            gevent.sleep(self.duration_s() if callable(self.duration_s) else self.duration_s)
            self.attempts.append(attempt)
            outcome = self.outcomes.pop(0) if self.outcomes else Outcome()
            if isinstance(outcome, Exception):
                raise outcome
            if not outcome.problem:
                self.delivered.append(event)
            return outcome
        except gevent.GreenletExit:
            self.killed += 1
            raise
        finally:
            self.running -= 1


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.01)
    made = []

    def dispatcher(ini=""):
        made.append(Dispatcher(options(ini), Counter()))
        made[-1].cpu_limit.lift()
        return made[-1]

    yield dispatcher
    for each in made:
        each.stop(0)


def test_events_of_a_lane_keep_their_order_and_lanes_go_side_by_side(make):
    dispatcher = make("hook_concurrency = 4\n")
    delivery = FakeDelivery(duration_s=lambda: random.uniform(0, 0.003))
    destination = dispatcher.add(delivery)
    for number in range(200):
        destination.offer(hook_event(number, f"live/{number % 7}"))
    wait_for(lambda: dispatcher.waiting == 0)
    for lane in range(7):
        numbers = [each.data["id"] for each in delivery.delivered if each.stream_key == f"live/{lane}"]
        assert numbers == sorted(numbers)
        assert len(numbers) == 200 // 7 + (lane < 200 % 7)
    assert delivery.most == 4
    assert dispatcher.counters == {"hook_deliveries": 200}


def test_one_lane_has_one_event_under_way(make):
    dispatcher = make()
    delivery = FakeDelivery(duration_s=0.001)
    destination = dispatcher.add(delivery)
    for number in range(20):
        destination.offer(hook_event(number))
    wait_for(lambda: len(delivery.delivered) == 20)
    assert delivery.most == 1


def test_a_destination_that_hangs_delays_no_other(make):
    dispatcher = make("hook_concurrency = 4\n")
    stuck, well = FakeDelivery("stuck"), FakeDelivery("well")
    stuck.gate.clear()
    first, second = dispatcher.add(stuck), dispatcher.add(well)
    for number in range(50):
        first.offer(hook_event(number, f"live/{number}"))
    gevent.sleep(0.02)
    for number in range(50):
        second.offer(hook_event(number, f"live/{number}"))
    wait_for(lambda: len(well.delivered) == 50)
    assert stuck.running == 2
    assert not stuck.delivered


def test_each_of_many_destinations_has_a_place(make):
    dispatcher = make("hook_concurrency = 2\n")
    stuck = [FakeDelivery(f"stuck {number}") for number in range(5)]
    well = FakeDelivery("well")
    destinations = []
    for delivery in stuck:
        delivery.gate.clear()
        destinations.append(dispatcher.add(delivery))
    last = dispatcher.add(well)
    for destination in destinations:
        for number in range(20):
            destination.offer(hook_event(number, f"live/{number}"))
    last.offer(hook_event())
    wait_for(lambda: len(well.delivered) == 1)
    assert all(delivery.running >= 1 for delivery in stuck)
    assert sum(delivery.running for delivery in stuck) <= 6


def test_a_full_queue_drops_and_counts_and_says_so_once(make, caplog):
    dispatcher = make("hook_queue_limit = 10\n")
    delivery = FakeDelivery()
    delivery.gate.clear()
    destination = dispatcher.add(delivery)
    for number in range(25):
        destination.offer(hook_event(number))
    assert dispatcher.waiting == 10
    assert dispatcher.counters == {"hook_drops": 15}
    assert [record.getMessage() for record in caplog.records] == [
        "hook there is too slow: 10 events are queued (hook_queue_limit), publish_start of live/a discarded; 1 discarded so far"
    ]
    delivery.gate.set()
    wait_for(lambda: dispatcher.waiting == 0)
    assert [each.data["id"] for each in delivery.delivered] == list(range(10))


def test_what_may_help_is_tried_again_and_the_lane_waits(make):
    dispatcher = make("hook_retries = 3\n")
    delivery = FakeDelivery(outcomes=[Outcome("away", retry=True)] * 2)
    destination = dispatcher.add(delivery)
    destination.offer(hook_event(1))
    destination.offer(hook_event(2))
    wait_for(lambda: dispatcher.waiting == 0)
    assert [each.data["id"] for each in delivery.delivered] == [1, 2]
    assert delivery.attempts == [1, 2, 3, 1]
    assert dispatcher.counters == {"hook_retries": 2, "hook_deliveries": 2}


def test_a_lane_that_rests_takes_no_place(make, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT_S", LIMIT_S)
    dispatcher = make("hook_concurrency = 1\n")
    delivery = FakeDelivery(outcomes=[Outcome("away", retry=True)])
    destination = dispatcher.add(delivery)
    destination.offer(hook_event(1, "live/a"))
    destination.offer(hook_event(2, "live/b"))
    wait_for(lambda: len(delivery.delivered) == 1)
    assert delivery.delivered[0].stream_key == "live/b"
    assert dispatcher.waiting == 1


def test_tries_end_with_a_line_and_a_count(make, caplog):
    dispatcher = make("hook_retries = 2\n")
    delivery = FakeDelivery(outcomes=[Outcome("it answered 500", retry=True, timed_out=True)] * 3)
    destination = dispatcher.add(delivery)
    destination.offer(hook_event())
    wait_for(lambda: dispatcher.waiting == 0)
    assert dispatcher.counters == {"hook_retries": 2, "hook_failures": 1, "hook_timeouts": 3}
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == "hook there: publish_start of live/a could not be delivered: it answered 500 (3 attempts)"


def test_what_can_not_help_is_not_tried_again(make):
    dispatcher = make()
    delivery = FakeDelivery(outcomes=[Outcome("it answered 404")])
    dispatcher.add(delivery).offer(hook_event())
    wait_for(lambda: dispatcher.waiting == 0)
    assert dispatcher.counters == {"hook_failures": 1}


def test_pauses_grow_up_to_the_limit_and_heed_the_destination(make, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.5)
    destination = make("hook_retries = 100\nhook_retry_limit_s = 5\n").add(FakeDelivery())
    failed = Outcome("away", retry=True)
    pauses = [destination.wait_s(failed, attempt) for attempt in range(1, 8)]
    for pause, middle in zip(pauses, (0.5, 1, 2, 4), strict=False):
        assert middle * 0.8 <= pause <= middle * 1.2
    assert pauses[4:] == [5, 5, 5]
    assert destination.wait_s(Outcome("busy", retry=True, retry_after_s=3), 1) == 3
    assert destination.wait_s(Outcome("busy", retry=True, retry_after_s=3000), 1) == 5
    assert destination.wait_s(failed, 101) is None


def test_failures_share_a_line_and_a_success_after_them_is_logged(make, caplog):
    caplog.set_level(logging.INFO)
    dispatcher = make("hook_retries = 0\n")
    delivery = FakeDelivery(outcomes=[Outcome("away")] * 5)
    destination = dispatcher.add(delivery)
    for number in range(6):
        destination.offer(hook_event(number))
    wait_for(lambda: dispatcher.waiting == 0)
    assert [record.getMessage() for record in caplog.records] == [
        "hook there: publish_start of live/a could not be delivered: away",
        "hook there works again, 5 events have failed",
    ]


def test_a_bug_in_a_delivery_is_logged_counted_and_over(make, caplog):
    dispatcher = make()
    delivery = FakeDelivery(outcomes=[KeyError("oops")])
    destination = dispatcher.add(delivery)
    destination.offer(hook_event(1))
    destination.offer(hook_event(2))
    wait_for(lambda: dispatcher.waiting == 0)
    assert dispatcher.counters == {"internal_errors": 1, "hook_failures": 1, "hook_deliveries": 1}
    assert "internal error in hook there" in caplog.text


def test_a_destination_that_is_removed_drops_what_waits_and_ends_what_is_under_way(make):
    dispatcher = make()
    delivery = FakeDelivery()
    delivery.gate.clear()
    destination = dispatcher.add(delivery)
    for number in range(5):
        destination.offer(hook_event(number))
    wait_for(lambda: delivery.running == 1)
    dispatcher.remove(destination)
    assert dispatcher.counters == {"hook_drops": 4}
    delivery.gate.set()
    wait_for(lambda: dispatcher.counters["hook_deliveries"] == 1)
    assert not dispatcher.destinations


def test_a_stop_waits_for_what_waits_and_for_no_pause(make, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 1000)
    dispatcher = make("hook_retry_limit_s = 3600\n")
    delivery = FakeDelivery(outcomes=[Outcome("away", retry=True)], duration_s=0.001)
    destination = dispatcher.add(delivery)
    for number in range(10):
        destination.offer(hook_event(number))
    wait_for(lambda: dispatcher.counters["hook_retries"] == 1)
    with within():
        dispatcher.stop(LIMIT_S)
    assert len(delivery.delivered) == 10
    assert dispatcher.counters == {"hook_retries": 1, "hook_deliveries": 10}


def test_a_stop_is_bounded(make, caplog, monkeypatch):
    monkeypatch.setattr(module, "_KILL_S", 0.05)
    dispatcher = make()
    delivery = FakeDelivery()
    delivery.gate.clear()
    destination = dispatcher.add(delivery)
    for number in range(5):
        destination.offer(hook_event(number))
    with within(5):
        dispatcher.stop(0.2)
    assert delivery.killed == 1
    assert dispatcher.counters == {"hook_drops": 5}
    assert "hook there: 5 events discarded at shutdown" in caplog.text
    # What comes later is nobody's.
    destination.offer(hook_event())
    gevent.sleep(0.01)
    assert delivery.running == 0


def test_a_dispatcher_without_anything_stops_at_once(make):
    with within(1):
        make().stop(LIMIT_S)


def test_random_loads_are_delivered_once_and_in_order(make):
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    dispatcher = make("hook_concurrency = 5\nhook_retries = 2\n")
    deliveries = [FakeDelivery(str(n), duration_s=lambda: rng.choice((0, 0, 0.001))) for n in range(4)]
    for delivery in deliveries:
        delivery.outcomes = [rng.choice((Outcome(), Outcome("x", retry=True), Outcome("x"))) for _ in range(100)]
    destinations = [dispatcher.add(delivery) for delivery in deliveries]
    for number in range(300):
        for destination in destinations:
            destination.offer(hook_event(number, f"live/{rng.randrange(5)}"))
        if rng.random() < 0.2:
            gevent.sleep(0)
        assert sum(delivery.running for delivery in deliveries) <= 5
    wait_for(lambda: dispatcher.waiting == 0)
    for delivery in deliveries:
        for lane in range(5):
            numbers = [each.data["id"] for each in delivery.delivered if each.stream_key == f"live/{lane}"]
            assert numbers == sorted(set(numbers)), seed
    counts = dispatcher.counters
    assert counts["hook_deliveries"] + counts["hook_failures"] == 1200, seed


# CPU time ---------------------------------------------------------------------------------------------------------------


def test_attempts_start_as_far_apart_as_the_limit_requires():
    limit = CpuLimit(0.25)
    started = []

    def attempt(number):
        limit.wait(0.005)
        started.append((number, time.monotonic()))

    began = time.monotonic()
    with within():
        gevent.joinall([gevent.spawn(attempt, number) for number in range(10)])
    assert [number for number, _ in started] == list(range(10))
    for number, at in started:
        assert at - began >= number * 0.02 - 0.002


def test_an_attempt_that_comes_late_does_not_wait():
    limit = CpuLimit(0.25)
    limit.wait(0.001)
    gevent.sleep(0.01)
    began = time.monotonic()
    limit.wait(0.001)
    assert time.monotonic() - began < 0.003


def test_no_attempt_waits_after_the_limit_is_lifted():
    limit = CpuLimit(0.25)
    limit.wait(10)
    limit.lift()
    with within(2):
        for _ in range(50):
            limit.wait(10)


def test_the_cost_of_an_attempt_follows_what_is_measured(make, monkeypatch):
    costs = []
    monkeypatch.setattr(CpuLimit, "wait", lambda self, cost_s: costs.append(cost_s))
    dispatcher = make()
    delivery = FakeDelivery(outcomes=[Outcome(cpu_s=0.004)] * 100)
    destination = dispatcher.add(delivery)
    for number in range(101):
        destination.offer(hook_event(number))
    wait_for(lambda: dispatcher.waiting == 0)
    assert costs[-1] == pytest.approx(0.004, rel=0.01)
