"""Hooks take a share of a core, and no more."""

from __future__ import annotations

import time

import gevent
import pytest

from rtmpd.services.hooks.share import Cost, CpuShare
from tests.unit.services.hooks.fakes import within


def test_a_cost_follows_what_is_measured():
    cost = Cost()
    for _ in range(100):
        cost.add(0.004)
    assert cost.seconds == pytest.approx(0.004, rel=0.01)


def test_hooks_begin_as_far_apart_as_their_share_wants_it():
    share, cost = CpuShare(0.25), Cost()
    cost.seconds = 0.005
    begun = []

    def begin(number):
        share.wait(cost)
        begun.append((number, time.monotonic()))

    began = time.monotonic()
    with within():
        gevent.joinall([gevent.spawn(begin, number) for number in range(10)])
    assert [number for number, _ in begun] == list(range(10))
    for number, at in begun:
        assert at - began >= number * 0.02 - 0.002


def test_one_that_comes_late_waits_for_nothing():
    share, cost = CpuShare(0.25), Cost()
    cost.seconds = 0.001
    share.wait(cost)
    gevent.sleep(0.01)
    began = time.monotonic()
    share.wait(cost)
    assert time.monotonic() - began < 0.003


def test_at_the_end_nobody_waits():
    share, cost = CpuShare(0.25), Cost()
    cost.seconds = 10
    share.wait(cost)
    share.lift()
    with within(2):
        for _ in range(50):
            share.wait(cost)
