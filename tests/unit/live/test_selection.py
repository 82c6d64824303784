from __future__ import annotations

import pytest

from rtmpd.live.selection import Conflict, SourceSelection


@pytest.mark.parametrize("takeover_s", [0, 10])
def test_a_source_without_a_rival_is_activated(takeover_s):
    assert SourceSelection(takeover_s).decide(None) is Conflict.ACTIVATE


@pytest.mark.parametrize(
    ("silent_s", "expected"),
    [
        (0, Conflict.REFUSE),
        (9.99, Conflict.REFUSE),
        (10, Conflict.TAKE_OVER),
        (3600, Conflict.TAKE_OVER),
    ],
)
def test_a_source_is_replaced_once_it_has_been_silent_for_long_enough(silent_s, expected):
    assert SourceSelection(10).decide(silent_s) is expected


@pytest.mark.parametrize("silent_s", [0, 10, 1e9])
def test_without_takeover_the_active_source_always_stays(silent_s):
    assert SourceSelection(0).decide(silent_s) is Conflict.REFUSE
