from __future__ import annotations

import time

import gevent
from gevent import socket
from gevent.event import Event

from rtmpd.util.event_loop import SharedSlices, give_way

SLICE_S = 0.002
SLICES = 100


def work() -> None:
    begun = time.perf_counter()
    while time.perf_counter() - begun < SLICE_S:
        pass


def latest_tick_s(give_way) -> float:
    """How late a timer of 5 ms is at the most, while somebody else works in slices."""
    late = []

    def tick():
        while True:
            begun = time.perf_counter()
            gevent.sleep(0.005)
            late.append(time.perf_counter() - begun - 0.005)

    ticker = gevent.spawn(tick)
    gevent.sleep(0.01)
    late.clear()
    for _ in range(SLICES):
        work()
        give_way()
    ticker.kill()
    assert late
    return max(late)


def test_timers_have_their_turn_between_two_slices():
    # Without it the timer waits for most of the slices.
    assert latest_tick_s(give_way) < SLICE_S * SLICES / 4


def test_sockets_have_their_turn_between_two_slices():
    one, other = socket.socketpair()
    answers = []

    def echo():
        while True:
            answers.append(other.recv(1))

    greenlet = gevent.spawn(echo)
    gevent.sleep(0)
    one.send(b"x")
    turns = 0
    while not answers and turns < 10:
        give_way()
        turns += 1
    assert turns <= 2
    greenlet.kill()
    one.close()
    other.close()


def test_greenlets_that_are_woken_at_once_continue_in_their_order_with_turns_for_others():
    woken, slices, order, ticks = Event(), SharedSlices(), [], []

    def waiter(number):
        woken.wait()
        slices.check()
        order.append(number)
        work()

    def tick():
        while len(order) < 30:
            gevent.sleep(0.0005)
            ticks.append(len(order))

    waiters = [gevent.spawn(waiter, number) for number in range(30)]
    ticker = gevent.spawn(tick)
    gevent.sleep(0)
    # One that is killed delays no others.
    waiters[7].kill()
    waiters.append(gevent.spawn(waiter, 30))
    gevent.sleep(0)
    woken.set()
    gevent.joinall([*waiters, ticker], timeout=10)
    assert order == [number for number in range(31) if number != 7]
    # Without it all continue between two ticks.
    assert len(set(ticks)) > 15
