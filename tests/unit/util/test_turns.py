"""Turns: one at a time, in order, with rests."""

from __future__ import annotations

import itertools
import time

import gevent

from rtmpd.util.turns import SLICE_S, Turns

LIMIT_S = 10


def test_greenlets_compute_one_at_a_time_in_the_order_in_which_they_asked():
    turns, begun, loop = Turns(), [], []

    def compute(number):
        for turn in range(3):
            turns.wait()
            begun.append((turn, number, len(loop)))

    def others():
        while True:
            gevent.sleep(SLICE_S / 10)
            loop.append(time.monotonic())

    beside = gevent.spawn(others)
    greenlets = [gevent.spawn(compute, number) for number in range(5)]
    gevent.joinall(greenlets, LIMIT_S, raise_error=True)
    beside.kill()
    assert [(turn, number) for turn, number, _ in begun] == [(turn, number) for turn in range(3) for number in range(5)]
    # Between two turns other greenlets have run.
    assert all(earlier[2] < later[2] for earlier, later in itertools.pairwise(begun))


def test_a_greenlet_that_is_alone_gets_its_turn_at_once():
    turns = Turns()
    with gevent.Timeout(LIMIT_S):
        turns.wait()
        gevent.sleep(3 * SLICE_S)
        turns.wait()


def test_a_greenlet_that_is_killed_while_it_waits_does_not_delay_others():
    turns = Turns()
    killed = gevent.spawn(turns.wait)
    other = gevent.spawn(turns.wait)
    gevent.sleep(0)
    killed.kill()
    other.join(LIMIT_S)
    assert other.successful()
