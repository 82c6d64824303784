"""Events as lines, for readers that read, pause, or go."""

from __future__ import annotations

import json
import os
from collections import Counter

import gevent
import pytest

from rtmpd.services.hooks.deliveries import Stdio
from tests.unit.services.hooks.fakes import hook_event, options, wait_for, within


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
    counters = Counter()
    stdio = Stdio(options("hook_stdio_format = json\n"), counters, pipe[1])
    for number in range(100):
        stdio.offer(hook_event(number))
    lines = read_lines(pipe[0], 100)
    assert [json.loads(line.removeprefix(b"RTMP_EVENT: "))["data"]["id"] for line in lines] == list(range(100))
    wait_for(lambda: counters == {"hook_deliveries": 100})
    stdio.stop(5)


def test_the_form_may_change(pipe):
    stdio = Stdio(options("hook_stdio_format = json\n"), Counter(), pipe[1])
    stdio.offer(hook_event(1))
    stdio.options = options("hook_stdio_format = env\n")
    stdio.offer(hook_event(2))
    stdio.stop(5)
    assert os.read(pipe[0], 1 << 16) == hook_event(1).lines("json") + hook_event(2).lines("env")


def test_a_reader_that_pauses_blocks_nothing_and_loses_events(pipe, caplog):
    counters = Counter()
    stdio = Stdio(options("hook_stdio_format = json\nhook_queue_limit = 100\n"), counters, pipe[1])
    with within():
        for number in range(5000):
            stdio.offer(hook_event(number))
            if number % 100 == 0:
                gevent.sleep(0.001)
        # The pipe is full, and the thread stuck.
        wait_for(lambda: stdio.waiting < 100 or counters["hook_deliveries"] > 300)
    assert counters["hook_drops"] > 1000
    assert "hook standard output: the reader has paused (hook_queue_limit): 1 events discarded so far" in caplog.text
    assert len(caplog.records) == 1
    before = counters["hook_drops"]
    with within(5):
        stdio.stop(0.2)
    assert counters["hook_drops"] >= before
    assert "events discarded at shutdown" in caplog.text
    os.close(pipe[0])
    stdio._thread.join(5)
    assert not stdio._thread.is_alive()


def test_a_reader_that_is_gone_is_logged_once(pipe, caplog):
    counters = Counter()
    stdio = Stdio(options("hook_stdio_format = json\n"), counters, pipe[1])
    os.close(pipe[0])
    stdio.offer(hook_event(1))
    wait_for(lambda: counters["hook_failures"] == 1)
    stdio.offer(hook_event(2))
    stdio.offer(hook_event(3))
    assert counters == {"hook_failures": 1, "hook_drops": 2}
    assert "hook standard output: Broken pipe: no further events are written until rtmpd is restarted" in caplog.text
    stdio.stop(1)


def test_a_descriptor_that_was_made_non_blocking_is_still_written_to(pipe):
    os.set_blocking(pipe[1], False)
    counters = Counter()
    stdio = Stdio(options("hook_stdio_format = json\nhook_queue_limit = 10000\n"), counters, pipe[1])
    for number in range(2000):
        stdio.offer(hook_event(number))
    assert len(read_lines(pipe[0], 2000)) == 2000
    stdio.stop(5)
