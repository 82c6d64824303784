from __future__ import annotations

import logging

import pytest

from rtmpd.config.loader import load_text
from rtmpd.events import Event, EventType
from rtmpd.hub import Hub
from rtmpd.services.accesslog import AccessLog, entry_of

ON = load_text("[log]\naccess_log_file = access\n")
OFF = load_text("")
STOP = {"id": 3, "remote_addr": "192.0.2.5:50512", "reason": "deleteStream", "duration_s": 1.5, "bytes": 99, "drops": 2}


@pytest.fixture
def service(caplog):
    """The service, of a server with an access log."""
    caplog.set_level(logging.INFO, "rtmpd")
    made = AccessLog(Hub(ON))
    made.start()
    yield made
    made.stop(0)


def stop(service, kind=EventType.PLAY_STOP, **more):
    service._hub.bus.emit(kind, {**STOP, **more}, stream_key="live/sub/a", connection_id="7")


def entries(caplog):
    return [record.entry for record in caplog.records if record.name == "rtmpd.access"]


def test_the_end_of_a_play_is_an_entry(service, caplog):
    stop(service, user="bob", agent="OBS")
    (entry,) = entries(caplog)
    start = entry.pop("start")
    assert entry == {
        "action": "play",
        "connection": 7,
        "peer": "192.0.2.5:50512",
        "agent": "OBS",
        "user": "bob",
        "app": "live/sub",
        "stream": "live/sub/a",
        "duration_s": 1.5,
        "bytes": 99,
        "drops": 2,
        "reason": "deleteStream",
    }
    assert start > 1_700_000_000


def test_a_publish_says_why_its_connection_was_closed(service, caplog):
    stop(service, EventType.PUBLISH_STOP, reason="connection closed", close_reason="no answer to a ping for 60 s")
    (entry,) = entries(caplog)
    assert (entry["action"], entry["reason"]) == ("publish", "no answer to a ping for 60 s")
    assert (entry["user"], entry["agent"]) == ("", "")


def test_it_began_when_it_began():
    assert entry_of(Event(EventType.PLAY_STOP, 1000.0, "1", "live/a", {"duration_s": 40}))["start"] == 960


def test_a_reload_begins_and_ends_it_and_without_a_file_no_event_is_made(service, caplog):
    bus = service._hub.bus
    for config, wanted in [(ON, True), (OFF, False), (OFF, False), (ON, True), (ON, True)]:
        service.reload(config)
        assert bus.wanted(EventType.PLAY_STOP) is wanted
    stop(service)
    assert len(entries(caplog)) == 1
    service.stop(0)
    stop(service)
    assert len(entries(caplog)) == 1
