"""What the recorder logs about old recordings. The integration tests show the rest of it."""

from __future__ import annotations

import pytest

from rtmpd.config.loader import load_text
from rtmpd.hub import Hub
from rtmpd.services.recorder.retention import RetentionReport
from rtmpd.services.recorder.service import Recorder


@pytest.fixture
def recorder():
    config = load_text("")
    return Recorder(Hub(config), Recorder.select(config))


def test_a_jump_of_the_clock_and_its_end_are_logged(recorder, caplog):
    for trusted in (None, False, None, True, None):
        recorder._report_deleted(RetentionReport(clock_trusted=trusted))
    assert [record.getMessage() for record in caplog.records] == [
        "the system clock has jumped: no recording is deleted for keep_age_s until it is steady for 3600 s",
        "the system clock is steady again: recordings are deleted for keep_age_s again",
    ]


def test_an_error_that_persists_is_logged_once_and_counted_each_time(recorder, caplog):
    for errors in (["a", "b"], ["b"], [], ["b"]):
        recorder._report_deleted(RetentionReport(errors=errors))
    assert [record.getMessage()[-1] for record in caplog.records] == ["a", "b", "b"]
    assert recorder._hub.counters["retention_errors"] == 4
