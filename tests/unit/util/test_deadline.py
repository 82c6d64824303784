"""Deadlines that are due together leave turns to the event loop, and those that are met raise nothing."""

from __future__ import annotations

import gevent
import pytest

from rtmpd.util import deadline as module
from rtmpd.util.deadline import Deadline

WORK_S = 0.0005
LIMIT_S = 10
MANY = 300


class Clock:
    """A clock that only work moves on."""

    now_s = 100.0

    def monotonic(self):
        return self.now_s

    def work(self):
        self.now_s += WORK_S


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


class Bystander:
    """A greenlet that runs in each turn of the event loop: measures how far the clock moves in one turn."""

    def __init__(self, clock):
        self._clock = clock
        self.longest_s = 0.0
        self.greenlet = gevent.spawn(self._run)

    def _run(self):
        while True:
            before_s = self._clock.now_s
            gevent.sleep(1e-6)
            self.longest_s = max(self.longest_s, self._clock.now_s - before_s)


def test_deadlines_that_are_due_together_leave_turns_to_the_event_loop(clock):
    late = []

    def wait(number):
        try:
            with Deadline(0.001, TimeoutError()):
                gevent.sleep(LIMIT_S)
        except TimeoutError:
            clock.work()
            late.append(number)

    greenlets = [gevent.spawn(wait, number) for number in range(MANY)]
    bystander = Bystander(clock)
    gevent.joinall(greenlets, LIMIT_S, raise_error=True)
    bystander.greenlet.kill()
    assert sorted(late) == list(range(MANY))
    assert bystander.longest_s <= module._SLICE_S + WORK_S


def test_a_deadline_that_is_met_while_it_waits_for_its_turn_raises_nothing():
    with Deadline(LIMIT_S, TimeoutError()) as deadline:
        pass
    deadline.expire()
