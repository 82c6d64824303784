"""The throttle: throttle in proportion to the work, and cancellation."""

from __future__ import annotations

import io

import pytest

from rtmpd.services.recorder.throttle import Cancelled, Throttle, ThrottledFile


@pytest.mark.parametrize(("work_s", "rest_s"), [(0.0, 0.001), (0.0001, 0.001), (0.001, 0.004), (0.01, 0.04), (1.0, 0.1)])
def test_a_thread_rests_four_times_as_long_as_it_worked_within_bounds(work_s, rest_s):
    used_s = 5.0
    slept: list[float] = []
    throttle = Throttle(slept.append, lambda: used_s)
    throttle.begin()
    for _ in range(2):
        used_s += work_s
        throttle.pause()
    assert slept == pytest.approx([rest_s, rest_s])


def test_a_cancelled_thread_ends_at_its_next_pause():
    throttle = Throttle(pytest.fail)
    throttle.cancel()
    with pytest.raises(Cancelled):
        throttle.pause()


def test_a_throttled_file_pauses_before_each_read():
    slept: list[float] = []
    throttle = Throttle(slept.append)
    throttle.begin()
    file = ThrottledFile(io.BytesIO(b"abcdef"), throttle)
    assert file.seek(0, io.SEEK_END) == 6
    file.seek(2)
    assert (file.read(3), file.read(3)) == (b"cde", b"f")
    assert len(slept) == 2
