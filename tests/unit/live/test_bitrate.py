from __future__ import annotations

from rtmpd.live.bitrate import BitrateWatch

LIMIT = 1000


def due(watch, times, bitrate, *, limit=LIMIT, grace_s=3, action="warn"):
    """The times, of those looked at, at which it is due."""
    return [time for time in times if watch.is_due(time, bitrate, limit=limit, grace_s=grace_s, action=action)]


def test_who_keeps_to_the_limit_is_left_alone():
    assert due(BitrateWatch(), range(100), LIMIT) == []


def test_without_a_limit_there_is_nothing_to_exceed():
    assert due(BitrateWatch(), range(100), 1e12, limit=0) == []


def test_it_is_due_once_when_the_grace_is_over():
    assert due(BitrateWatch(), range(10, 100), LIMIT + 1) == [13]


def test_it_is_due_again_only_after_it_was_below():
    watch = BitrateWatch()
    assert due(watch, range(10), LIMIT + 1) == [3]
    assert due(watch, range(10, 12), LIMIT) == []
    assert due(watch, range(12, 20), LIMIT + 1) == [15]


def test_whoever_is_below_within_the_grace_begins_anew():
    watch = BitrateWatch()
    for begin in range(0, 30, 3):
        assert due(watch, (begin, begin + 1), LIMIT * 2) == []
        assert due(watch, (begin + 2,), LIMIT) == []


def test_other_options_hold_at_once():
    watch = BitrateWatch()
    assert due(watch, range(2), LIMIT + 1, grace_s=10) == []
    assert due(watch, (2,), LIMIT + 1, grace_s=2) == [2]
    assert due(watch, (3, 4), LIMIT + 1, grace_s=2, action="disconnect") == [3]
    assert due(watch, range(5, 9), LIMIT + 1, limit=LIMIT * 2, grace_s=2) == []
    assert due(watch, range(9, 20), LIMIT + 1, grace_s=2) == [11]
