"""Events as lines, for readers that read, pause, or go."""

from __future__ import annotations

import json
import os

import gevent
import pytest

from rtmpd.services.hooks.notice import as_lines
from rtmpd.services.hooks.stdio import Stdio
from tests.unit.services.hooks.fakes import CountingPolicy, notice, wait_for, within


@pytest.fixture
def pipe():
    read_end, write_end = os.pipe()
    yield read_end, write_end
    for descriptor in (read_end, write_end):
        try:
            os.close(descriptor)
        except OSError:
            continue


def read_lines(descriptor: int, count: int) -> list[bytes]:
    data = b""
    while data.count(b"\n") < count:
        data += os.read(descriptor, 1 << 16)
    return data.splitlines()


def test_events_are_written_in_order(pipe):
    policy = CountingPolicy()
    stdio = Stdio(policy, "json", pipe[1])
    for number in range(100):
        stdio.offer(notice(number))
    lines = read_lines(pipe[0], 100)
    assert [json.loads(line.removeprefix(b"RTMP_EVENT: "))["data"]["id"] for line in lines] == list(range(100))
    wait_for(lambda: policy.counts == {"deliveries": 100})
    stdio.stop(5)


def test_the_form_may_change(pipe):
    stdio = Stdio(CountingPolicy(), "json", pipe[1])
    stdio.offer(notice(1))
    stdio.form = "env"
    stdio.offer(notice(2))
    stdio.stop(5)
    assert os.read(pipe[0], 1 << 16) == as_lines(notice(1), "json") + as_lines(notice(2), "env")


def test_a_reader_that_pauses_holds_up_nobody_and_costs_events(pipe, caplog):
    policy = CountingPolicy("hook_queue_limit = 100\n")
    stdio = Stdio(policy, "json", pipe[1])
    with within():
        for number in range(5000):
            stdio.offer(notice(number))
            if number % 100 == 0:
                gevent.sleep(0.001)
        # The pipe is full, and the thread stuck.
        wait_for(lambda: stdio.waiting < 100 or policy.counts["deliveries"] > 300)
    assert policy.counts["drops"] > 1000
    assert "hook standard output: whoever reads it has paused: 1 events dropped so far" in caplog.text
    assert len(caplog.records) == 1
    before = policy.counts["drops"]
    with within(5):
        stdio.stop(0.2)
    assert policy.counts["drops"] >= before
    assert "could not be written before the end" in caplog.text
    os.close(pipe[0])
    stdio._thread.join(5)
    assert not stdio._thread.is_alive()


def test_a_reader_that_is_gone_is_said_once(pipe, caplog):
    policy = CountingPolicy()
    stdio = Stdio(policy, "json", pipe[1])
    os.close(pipe[0])
    stdio.offer(notice(1))
    wait_for(lambda: policy.counts["failures"] == 1)
    stdio.offer(notice(2))
    stdio.offer(notice(3))
    assert policy.counts == {"failures": 1, "drops": 2}
    assert "hook standard output: Broken pipe: no more events are written" in caplog.text
    stdio.stop(1)


def test_a_descriptor_that_somebody_made_non_blocking_is_written_to_all_the_same(pipe):
    os.set_blocking(pipe[1], False)
    policy = CountingPolicy("hook_queue_limit = 10000\n")
    stdio = Stdio(policy, "json", pipe[1])
    for number in range(2000):
        stdio.offer(notice(number))
    assert len(read_lines(pipe[0], 2000)) == 2000
    stdio.stop(5)
