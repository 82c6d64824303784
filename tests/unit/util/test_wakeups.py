"""Wakeups: sockets that become readable together, and deadlines that are due together, leave turns to the event loop."""

from __future__ import annotations

import socket
import threading

import gevent
import pytest
from gevent.exceptions import ConcurrentObjectUseError

from rtmpd.util import wakeups as module
from rtmpd.util.wakeups import Deadline, wakeups

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


@pytest.fixture
def pairs():
    made = [socket.socketpair() for _ in range(MANY)]
    yield made
    for pair in made:
        for each in pair:
            each.close()


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


def test_sockets_that_become_readable_together_leave_turns_to_the_event_loop(clock, pairs):
    done = []

    def read(number):
        wakeups().wait_readable(pairs[number][0].fileno())
        clock.work()
        done.append(number)

    greenlets = [gevent.spawn(read, number) for number in range(MANY)]
    gevent.sleep(0)
    for _, there in pairs:
        there.close()
    bystander = Bystander(clock)
    gevent.joinall(greenlets, LIMIT_S, raise_error=True)
    bystander.greenlet.kill()
    assert sorted(done) == list(range(MANY))
    assert bystander.longest_s <= module._SLICE_S + module._STEP * WORK_S


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
    greenlet = gevent.getcurrent()
    with Deadline(LIMIT_S, TimeoutError()) as deadline:
        wakeups().expire(deadline._expire)
    gevent.sleep(0.01)
    assert greenlet is gevent.getcurrent()


def test_a_deadline_ends_the_wait_for_a_socket_which_can_be_waited_for_again(pairs):
    here, there = pairs[0]
    with pytest.raises(TimeoutError), Deadline(0.001, TimeoutError()):
        wakeups().wait_readable(here.fileno())
    there.send(b"a")
    gevent.sleep(0.01)
    with gevent.Timeout(LIMIT_S):
        for expected in (b"a", b"b"):
            wakeups().wait_readable(here.fileno())
            assert here.recv(10) == expected
            there.send(b"b")


def test_a_descriptor_that_is_used_again_is_waited_for_as_new(pairs):
    here, there = pairs[0]
    there.send(b"a")
    with gevent.Timeout(LIMIT_S):
        wakeups().wait_readable(here.fileno())
        number = here.fileno()
        here.close()
        new, other = socket.socketpair()
        with new, other:
            assert new.fileno() == number
            other.send(b"b")
            wakeups().wait_readable(number)
            assert new.recv(10) == b"b"


def test_two_greenlets_can_not_wait_for_one_socket(pairs):
    here, _ = pairs[0]
    first = gevent.spawn(wakeups().wait_readable, here.fileno())
    gevent.sleep(0)
    with pytest.raises(ConcurrentObjectUseError):
        wakeups().wait_readable(here.fileno())
    first.kill()


def test_each_thread_has_its_own():
    found = []
    thread = threading.Thread(target=lambda: found.append(wakeups()))
    thread.start()
    thread.join()
    assert found != [wakeups()]
    assert wakeups() is wakeups()
