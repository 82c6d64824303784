"""The gate: work that many greenlets have at the same time is done in slices, with turns of the event loop in between."""

from __future__ import annotations

import gevent
import pytest

from rtmpd.util import gate as module
from rtmpd.util.gate import Gate

WORK_S = 0.0005


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


def test_work_that_comes_now_and_then_is_done_at_once(clock):
    gate = Gate()
    for _ in range(100):
        before = clock.now_s
        gate.run(clock.work)
        assert clock.now_s == before + WORK_S
        clock.now_s += 0.02


def test_work_that_comes_together_leaves_turns_to_the_event_loop(clock):
    gate, done, longest, last = Gate(), [], [0.0], [clock.now_s]

    def bystander():
        while len(done) < 1000:
            gevent.sleep(1e-6)
            longest[0] = max(longest[0], clock.now_s - last[0])
            last[0] = clock.now_s

    def end(number):
        def work():
            clock.work()
            done.append(number)

        gate.run(work)

    greenlets = [gevent.spawn(end, number) for number in range(1000)]
    greenlets.append(gevent.spawn(bystander))
    gevent.joinall(greenlets, timeout=30, raise_error=True)
    assert done == list(range(1000))
    assert clock.now_s == pytest.approx(100 + 1000 * WORK_S)
    # What is done at once, and one slice.
    assert longest[0] <= 0.0051


def test_a_greenlet_that_is_killed_while_it_waits_has_its_work_done_once(clock):
    gate, done = Gate(), []

    def end(number):
        gate.run(lambda: (clock.work(), clock.work(), done.append(number)))

    greenlets = [gevent.spawn(end, number) for number in range(50)]
    gevent.sleep(0)
    assert len(done) < 50
    gevent.killall(greenlets, timeout=10)
    gevent.sleep(0.01)
    assert sorted(done) == list(range(50))
