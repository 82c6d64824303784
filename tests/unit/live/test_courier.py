"""The courier: one turn for all streams with news, rests in proportion to the work, slices of time."""

from __future__ import annotations

import gevent
import pytest

from rtmpd.live.courier import Courier, set_reading
from tests.unit.live.fakes import FakeTime


class Fanout:
    """Takes note of its turns, each of which takes *work_s* of CPU time."""

    def __init__(self, courier, clock, work_s=0.0, *, paces=True):
        self.courier = courier
        self.clock = clock
        self.work_s = work_s
        self.paces = paces
        self.turns = 0

    def deliver_if_small(self):
        self.turns += 1
        self.clock.worked_s += self.work_s


class Timers:
    """Stands in for the event loop: callbacks and timers run when the test says so."""

    def __init__(self):
        self.loop = self
        self.called = []
        self.rests_s = []

    def run_callback(self, callback):
        self.called.append(callback)

    def timer(self, rest_s):
        self.rests_s.append(rest_s)
        return self

    def start(self, callback, **_):
        self.rested = callback

    def stop(self):
        self.rested = None

    def close(self):
        self.rested = None

    def turn(self):
        called, self.called = self.called, []
        for callback in called:
            callback()

    def rest(self):
        self.rested()


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime()
    monkeypatch.setattr("rtmpd.live.courier.time", made)
    return made


@pytest.fixture
def loop(monkeypatch):
    made = Timers()
    monkeypatch.setattr("rtmpd.live.courier.get_hub", lambda: made)
    return made


def test_all_streams_with_news_are_served_in_one_turn_behind_the_sockets_that_are_ready(clock):
    courier = Courier()
    fanouts = [Fanout(courier, clock) for _ in range(5)]
    for fanout in fanouts[:4]:
        courier.add(fanout)
    assert not any(fanout.turns for fanout in fanouts)
    gevent.sleep(0)
    assert [fanout.turns for fanout in fanouts] == [1, 1, 1, 1, 0]
    courier.add(fanouts[4])
    gevent.sleep(0)
    assert fanouts[4].turns == 1


@pytest.mark.parametrize(("share", "work_s", "rest_s"), [(0.5, 0.002, 0.002), (0.2, 0.002, 0.008), (0.2, 0.02, 0.01)])
def test_rests_are_in_proportion_to_the_work_and_at_most_10_ms(loop, clock, share, work_s, rest_s):
    courier = Courier(share, 350)
    fanout = Fanout(courier, clock, work_s)
    # The rest follows from the average of eight turns.
    for _ in range(100):
        courier.add(fanout)
        if loop.called:
            loop.turn()
        else:
            loop.rest()
    assert loop.rests_s[-1] == pytest.approx(rest_s, rel=0.01)
    assert fanout.turns == 100


def test_a_message_that_comes_in_a_rest_waits_for_its_end(loop, clock):
    courier = Courier(0.2, 350)
    first, second = Fanout(courier, clock, 0.1), Fanout(courier, clock)
    courier.add(first)
    loop.turn()
    courier.add(second)
    assert not loop.called
    assert not second.turns
    loop.rest()
    assert second.turns == 1


def test_a_stream_without_pacing_waits_for_no_rest(loop, clock):
    courier = Courier(0.2, 350)
    first, second = Fanout(courier, clock, 0.1), Fanout(courier, clock, paces=False)
    courier.add(first)
    loop.turn()
    courier.add(second)
    assert loop.rested is None
    loop.turn()
    assert second.turns == 1


def test_light_work_is_followed_by_no_rest(loop, clock):
    courier = Courier(0.2, 350)
    fanout = Fanout(courier, clock, 0.0001)
    for _ in range(20):
        courier.add(fanout)
        loop.turn()
    assert fanout.turns == 20
    assert not loop.rests_s


def run(loop, courier, fanout, turns):
    """Let a fan-out have news for each turn."""
    for _ in range(turns):
        courier.add(fanout)
        if loop.called:
            loop.turn()
        else:
            loop.rest()


def test_a_limit_of_rests_below_10_ms_holds(loop, clock):
    courier = Courier(0.2, 3)
    run(loop, courier, Fanout(courier, clock, 0.1), 100)
    assert loop.rests_s[-1] == pytest.approx(0.003, rel=0.01)


def test_what_the_event_loop_does_beside_deliveries_counts_for_rests(loop, clock):
    courier = Courier(0.2, 350)
    fanout = Fanout(courier, clock, 0.0)
    for _ in range(100):
        clock.worked_s += 0.001
        run(loop, courier, fanout, 1)
    assert loop.rests_s[-1] == pytest.approx(0.004, rel=0.01)


def test_work_of_a_time_without_news_delays_messages_hardly(loop, clock):
    courier = Courier(0.2, 350)
    clock.worked_s += 10.0
    run(loop, courier, Fanout(courier, clock, 0.00001), 1)
    assert max(loop.rests_s, default=0.0) <= 0.00125


def test_a_long_turn_gives_way_to_sockets_and_timers(loop, clock):
    courier = Courier(1, 350)
    fanouts = [Fanout(courier, clock, 0.001) for _ in range(40)]
    for fanout in fanouts:
        courier.add(fanout)
    loop.turn()
    assert [fanout.turns for fanout in fanouts] == [1] * 16 + [0] * 24
    # What has news meanwhile comes behind those that wait.
    courier.add(fanouts[0])
    loop.rest()
    loop.rest()
    assert [fanout.turns for fanout in fanouts] == [2] + [1] * 39
    assert loop.rests_s == [pytest.approx(1e-6)] * 2


def test_a_fanout_that_is_removed_gets_no_turn(loop, clock):
    courier = Courier()
    kept, removed = Fanout(courier, clock), Fanout(courier, clock)
    courier.add(removed)
    courier.add(kept)
    courier.remove(removed)
    loop.turn()
    assert (kept.turns, removed.turns) == (1, 0)


class Reading:
    """What reads from publishers: takes note of its rests, and of the news that it reads, one list for each slice of time."""

    def __init__(self, courier):
        self.courier = courier
        self.rests = False
        self.waiting = []
        self.slices = 0
        self.work = lambda: None

    def rest(self):
        self.rests = True

    def end_rest(self):
        self.rests = False

    def read_waiting(self):
        assert self.rests
        self.slices += 1
        self.work()
        for fanout in self.waiting.pop(0) if self.waiting else []:
            self.courier.add(fanout)
        return bool(self.waiting)


@pytest.fixture
def resting(loop, clock):
    """A courier that rests, and so does reading."""
    courier = Courier(0.2, 350)
    reading = Reading(courier)
    set_reading(loop, reading)
    courier.add(Fanout(courier, clock, 0.1))
    loop.turn()
    assert reading.rests
    return courier, reading


def test_reading_rests_with_the_courier_and_what_has_come_is_read_and_delivered_at_the_end(loop, clock, resting):
    courier, reading = resting
    fanouts = [Fanout(courier, clock, 0.1), Fanout(courier, clock, paces=False)]
    reading.waiting = [fanouts]
    loop.rest()
    assert [fanout.turns for fanout in fanouts] == [1, 1]
    assert not loop.called


def test_without_news_reading_goes_on(loop, resting):
    _, reading = resting
    loop.rest()
    assert not reading.rests
    assert reading.slices == 1


def test_reading_gives_way_between_two_slices_and_is_followed_by_the_turn(loop, clock, resting):
    courier, reading = resting
    fanout = Fanout(courier, clock)
    reading.waiting = [[fanout], [], []]
    for _ in range(2):
        loop.rest()
        assert reading.rests
        assert loop.rests_s[-1] == pytest.approx(1e-6)
        assert not fanout.turns
    loop.rest()
    assert (fanout.turns, reading.slices) == (1, 3)
    assert reading.rests  # again: it had come to its end


def test_reading_that_can_not_keep_up_delays_the_turn_by_four_slices_and_does_not_rest_next_time(loop, clock, resting):
    courier, reading = resting
    first, second = Fanout(courier, clock, 0.1), Fanout(courier, clock, 0.1)
    reading.waiting = [[first], *[[]] * 10]
    for _ in range(4):
        loop.rest()
    assert (first.turns, reading.slices) == (1, 4)
    assert not reading.rests
    # It reads in the event loop, as sockets are ready.
    courier.add(second)
    loop.rest()
    assert second.turns == 1
    assert reading.slices == 4
    assert reading.rests


def test_the_time_that_reading_takes_is_a_part_of_the_rest(loop, clock, resting):
    courier, reading = resting

    def work():
        clock.worked_s += 0.002

    reading.work = work
    for _ in range(100):
        reading.waiting = [[Fanout(courier, clock, 0.1)], []]
        loop.rest()
        loop.rest()
    assert loop.rests_s[-2:] == [pytest.approx(1e-6), pytest.approx(0.006, rel=0.01)]


def test_news_of_a_stream_without_pacing_end_the_rest_of_reading_and_it_rests_no_more_for_a_while(loop, clock, resting):
    courier, reading = resting
    unpaced, paced = Fanout(courier, clock, 0.1, paces=False), Fanout(courier, clock, 0.1)
    courier.add(unpaced)
    assert not reading.rests
    assert not reading.slices
    loop.turn()
    run(loop, courier, paced, 100)
    assert not reading.rests
    run(loop, courier, paced, 200)
    assert reading.rests
