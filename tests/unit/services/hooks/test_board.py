"""Order, places, retries, bounds and the end of what hooks are told."""

from __future__ import annotations

import logging
import random

import gevent
import pytest
from gevent.event import Event

from rtmpd.services.hooks import board as module
from rtmpd.services.hooks.board import Board, Hush, Outcome
from tests.unit.services.hooks.fakes import LIMIT_S, CountingPolicy, notice, wait_for, within


class FakeCarrier:
    """A destination that does what a test says.

    ``outcomes`` are given one after the other, then success; while ``gate`` is clear, everything waits.
    """

    def __init__(self, label="there", outcomes=(), duration_s=0.0):
        self.label = label
        self.outcomes = list(outcomes)
        self.duration_s = duration_s
        self.gate = Event()
        self.gate.set()
        self.told = []
        self.attempts = []
        self.running = 0
        self.most = 0
        self.killed = 0

    def carry(self, notice, attempt, config):
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
                self.told.append(notice)
            return outcome
        except gevent.GreenletExit:
            self.killed += 1
            raise
        finally:
            self.running -= 1


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    made = []

    def board(ini=""):
        made.append(Board(CountingPolicy(ini)))
        return made[-1]

    yield board
    for each in made:
        each.stop(0)


def test_events_of_a_lane_keep_their_order_and_lanes_go_side_by_side(make):
    board = make("hook_concurrency = 4\n")
    carrier = FakeCarrier(duration_s=lambda: random.uniform(0, 0.003))
    destination = board.add(carrier)
    for number in range(200):
        destination.offer(notice(number, f"live/{number % 7}"))
    wait_for(lambda: board.waiting == 0)
    for lane in range(7):
        numbers = [each.data["id"] for each in carrier.told if each.stream_key == f"live/{lane}"]
        assert numbers == sorted(numbers)
        assert len(numbers) == 200 // 7 + (lane < 200 % 7)
    assert carrier.most == 4
    assert board.policy.counts == {"deliveries": 200}


def test_one_lane_has_one_event_under_way(make):
    board = make()
    carrier = FakeCarrier(duration_s=0.001)
    destination = board.add(carrier)
    for number in range(20):
        destination.offer(notice(number))
    wait_for(lambda: len(carrier.told) == 20)
    assert carrier.most == 1


def test_a_destination_that_stands_still_holds_up_no_other(make):
    board = make("hook_concurrency = 4\n")
    stuck, well = FakeCarrier("stuck"), FakeCarrier("well")
    stuck.gate.clear()
    first, second = board.add(stuck), board.add(well)
    for number in range(50):
        first.offer(notice(number, f"live/{number}"))
    gevent.sleep(0.02)
    for number in range(50):
        second.offer(notice(number, f"live/{number}"))
    wait_for(lambda: len(well.told) == 50)
    assert stuck.running == 2
    assert not stuck.told


def test_each_of_many_destinations_has_a_place(make):
    board = make("hook_concurrency = 2\n")
    stuck = [FakeCarrier(f"stuck {number}") for number in range(5)]
    well = FakeCarrier("well")
    destinations = []
    for carrier in stuck:
        carrier.gate.clear()
        destinations.append(board.add(carrier))
    last = board.add(well)
    for destination in destinations:
        for number in range(20):
            destination.offer(notice(number, f"live/{number}"))
    last.offer(notice())
    wait_for(lambda: len(well.told) == 1)
    assert all(carrier.running >= 1 for carrier in stuck)
    assert sum(carrier.running for carrier in stuck) <= 6


def test_a_full_queue_drops_and_counts_and_says_so_once(make, caplog):
    board = make("hook_queue_limit = 10\n")
    carrier = FakeCarrier()
    carrier.gate.clear()
    destination = board.add(carrier)
    for number in range(25):
        destination.offer(notice(number))
    assert board.waiting == 10
    assert board.policy.counts == {"drops": 15}
    assert [record.getMessage() for record in caplog.records] == [
        "hook there is too slow: 10 events wait, and publish_start of live/a is dropped; 1 dropped so far"
    ]
    carrier.gate.set()
    wait_for(lambda: board.waiting == 0)
    assert [each.data["id"] for each in carrier.told] == list(range(10))


def test_what_may_help_is_tried_again_and_the_lane_waits(make):
    board = make("hook_retries = 3\n")
    carrier = FakeCarrier(outcomes=[Outcome("away", again=True)] * 2)
    destination = board.add(carrier)
    destination.offer(notice(1))
    destination.offer(notice(2))
    wait_for(lambda: board.waiting == 0)
    assert [each.data["id"] for each in carrier.told] == [1, 2]
    assert carrier.attempts == [1, 2, 3, 1]
    assert board.policy.counts == {"retries": 2, "deliveries": 2}


def test_a_lane_that_rests_takes_no_place(make, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", LIMIT_S)
    board = make("hook_concurrency = 1\n")
    carrier = FakeCarrier(outcomes=[Outcome("away", again=True)])
    destination = board.add(carrier)
    destination.offer(notice(1, "live/a"))
    destination.offer(notice(2, "live/b"))
    wait_for(lambda: len(carrier.told) == 1)
    assert carrier.told[0].stream_key == "live/b"
    assert board.waiting == 1


def test_tries_end_with_a_line_and_a_count(make, caplog):
    board = make("hook_retries = 2\n")
    carrier = FakeCarrier(outcomes=[Outcome("it answered 500", again=True, timed_out=True)] * 3)
    destination = board.add(carrier)
    destination.offer(notice())
    wait_for(lambda: board.waiting == 0)
    assert board.policy.counts == {"retries": 2, "failures": 1, "timeouts": 3}
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == "hook there: publish_start of live/a: it answered 500 (tried 3 times)"


def test_what_can_not_help_is_not_tried_again(make):
    board = make()
    carrier = FakeCarrier(outcomes=[Outcome("it answered 404")])
    board.add(carrier).offer(notice())
    wait_for(lambda: board.waiting == 0)
    assert board.policy.counts == {"failures": 1}


def test_pauses_grow_up_to_the_limit_and_heed_the_destination(make, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.5)
    destination = make("hook_retries = 100\nhook_retry_limit_s = 5\n").add(FakeCarrier())
    failed = Outcome("away", again=True)
    pauses = [destination._pause_s(failed, attempt) for attempt in range(1, 8)]
    for pause, middle in zip(pauses, (0.5, 1, 2, 4), strict=False):
        assert middle * 0.8 <= pause <= middle * 1.2
    assert pauses[4:] == [5, 5, 5]
    assert destination._pause_s(Outcome("busy", again=True, wait_s=3), 1) == 3
    assert destination._pause_s(Outcome("busy", again=True, wait_s=3000), 1) == 5
    assert destination._pause_s(failed, 101) is None


def test_failures_share_a_line_and_its_end_is_told(make, caplog):
    caplog.set_level(logging.INFO)
    board = make("hook_retries = 0\n")
    carrier = FakeCarrier(outcomes=[Outcome("away")] * 5)
    destination = board.add(carrier)
    for number in range(6):
        destination.offer(notice(number))
    wait_for(lambda: board.waiting == 0)
    assert [record.getMessage() for record in caplog.records] == [
        "hook there: publish_start of live/a: away",
        "hook there works again; 5 events had failed",
    ]


def test_a_hush_says_how_often_it_was_silent(caplog):
    now = [0.0]
    hush = Hush(lambda: now[0])
    for _ in range(4):
        hush.warn("failed: %s", "x")
    now[0] = 10.0
    hush.warn("failed: %s", "y")
    assert [record.getMessage() for record in caplog.records] == [
        "failed: x",
        "failed: y (and 3 more since the last such line)",
    ]


def test_a_bug_in_a_carrier_is_logged_counted_and_over(make, caplog):
    board = make()
    carrier = FakeCarrier(outcomes=[KeyError("oops")])
    destination = board.add(carrier)
    destination.offer(notice(1))
    destination.offer(notice(2))
    wait_for(lambda: board.waiting == 0)
    assert board.policy.counts == {"bugs": 1, "failures": 1, "deliveries": 1}
    assert "internal error in hook there" in caplog.text


def test_a_destination_that_is_removed_drops_what_waits_and_ends_what_is_under_way(make):
    board = make()
    carrier = FakeCarrier()
    carrier.gate.clear()
    destination = board.add(carrier)
    for number in range(5):
        destination.offer(notice(number))
    wait_for(lambda: carrier.running == 1)
    board.remove(destination)
    assert board.policy.counts == {"drops": 4}
    carrier.gate.set()
    wait_for(lambda: board.policy.counts["deliveries"] == 1)
    assert not board.destinations


def test_a_stop_waits_for_what_waits_and_for_no_pause(make, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 1000)
    board = make("hook_retry_limit_s = 3600\n")
    carrier = FakeCarrier(outcomes=[Outcome("away", again=True)], duration_s=0.001)
    destination = board.add(carrier)
    for number in range(10):
        destination.offer(notice(number))
    wait_for(lambda: board.policy.counts["retries"] == 1)
    with within():
        board.stop(LIMIT_S)
    assert len(carrier.told) == 10
    assert board.policy.counts == {"retries": 1, "deliveries": 10}


def test_a_stop_is_bounded(make, caplog, monkeypatch):
    monkeypatch.setattr(module, "_KILL_S", 0.05)
    board = make()
    carrier = FakeCarrier()
    carrier.gate.clear()
    destination = board.add(carrier)
    for number in range(5):
        destination.offer(notice(number))
    with within(5):
        board.stop(0.2)
    assert carrier.killed == 1
    assert board.policy.counts == {"drops": 5}
    assert "hook there: 5 events could not be told before the end" in caplog.text
    # What comes later is nobody's.
    destination.offer(notice())
    gevent.sleep(0.01)
    assert carrier.running == 0


def test_a_board_without_anything_stops_at_once(make):
    with within(1):
        make().stop(LIMIT_S)


def test_random_loads_are_told_once_and_in_order(make):
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    board = make("hook_concurrency = 5\nhook_retries = 2\n")
    carriers = [FakeCarrier(str(n), duration_s=lambda: rng.choice((0, 0, 0.001))) for n in range(4)]
    for carrier in carriers:
        carrier.outcomes = [rng.choice((Outcome(), Outcome("x", again=True), Outcome("x"))) for _ in range(100)]
    destinations = [board.add(carrier) for carrier in carriers]
    for number in range(300):
        for destination in destinations:
            destination.offer(notice(number, f"live/{rng.randrange(5)}"))
        if rng.random() < 0.2:
            gevent.sleep(0)
        assert sum(carrier.running for carrier in carriers) <= 5
    wait_for(lambda: board.waiting == 0)
    for carrier in carriers:
        for lane in range(5):
            numbers = [each.data["id"] for each in carrier.told if each.stream_key == f"live/{lane}"]
            assert numbers == sorted(set(numbers)), seed
    counts = board.policy.counts
    assert counts["deliveries"] + counts["failures"] == 1200, seed
