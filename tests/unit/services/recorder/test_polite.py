"""Pauses: as long as the work before asks for, and a way to end it."""

from __future__ import annotations

import io

import pytest

from rtmpd.services.recorder.polite import Cancelled, Pauses, PoliteFile


@pytest.mark.parametrize(("work_s", "rest_s"), [(0.0, 0.001), (0.0001, 0.001), (0.001, 0.004), (0.01, 0.04), (1.0, 0.1)])
def test_a_thread_rests_four_times_as_long_as_it_worked_within_bounds(work_s, rest_s):
    used_s = 5.0
    slept: list[float] = []
    pauses = Pauses(slept.append, lambda: used_s)
    pauses.begin()
    for _ in range(2):
        used_s += work_s
        pauses.pause()
    assert slept == pytest.approx([rest_s, rest_s])


def test_a_cancelled_thread_ends_at_its_next_pause():
    pauses = Pauses(pytest.fail)
    pauses.cancel()
    with pytest.raises(Cancelled):
        pauses.pause()


def test_a_polite_file_rests_before_each_read():
    slept: list[float] = []
    pauses = Pauses(slept.append)
    pauses.begin()
    file = PoliteFile(io.BytesIO(b"abcdef"), pauses)
    assert file.seek(0, io.SEEK_END) == 6
    file.seek(2)
    assert (file.read(3), file.read(3)) == (b"cde", b"f")
    assert len(slept) == 2
