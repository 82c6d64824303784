"""The courier: one turn for all streams with news, rests in proportion to the work, slices of time."""

from __future__ import annotations

import gevent
import pytest

from rtmpd.live.courier import Courier
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
