from __future__ import annotations

import logging

import pytest

from rtmpd.config.loader import load_text
from rtmpd.events import Event, EventType
from rtmpd.hub import Hub
from rtmpd.services.accesslog import AccessLog, entry_of

ON = load_text("[log]\naccess_log_file = access\n")
OFF = load_text("")
STOP = {
    "id": 3,
    "remote_addr": "192.0.2.5:50512",
    "reason": "deleteStream",
    "duration_s": 1.5,
    "bytes": 99,
    "skips": 2,
    "dropped": 70,
}


@pytest.fixture
def service(caplog):
    """The service, of a server with an access log."""
    caplog.set_level(logging.INFO, "rtmpd")
    made = AccessLog(Hub(ON), AccessLog.select(ON))
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
        "skips": 2,
        "dropped": 70,
        "reason": "deleteStream",
    }
    assert start > 1_700_000_000


def test_a_publish_says_why_its_connection_was_closed(service, caplog):
    stop(service, EventType.PUBLISH_STOP, reason="connection closed", close_reason="no answer to a ping for 60 s")
    (entry,) = entries(caplog)
    assert (entry["action"], entry["reason"]) == ("publish", "no answer to a ping for 60 s")
    assert (entry["user"], entry["agent"]) == ("", "")


def test_the_start_is_computed_from_the_duration():
    assert entry_of(Event(EventType.PLAY_STOP, 1000.0, "1", "live/a", {"duration_s": 40}))["start"] == 960


def test_a_reload_subscribes_and_unsubscribes(service, caplog):
    bus = service._hub.bus
    for config, wanted in [(ON, True), (OFF, False), (OFF, False), (ON, True), (ON, True)]:
        service.reload(AccessLog.select(config))
        assert bus.wanted(EventType.PLAY_STOP) is wanted
    stop(service)
    assert len(entries(caplog)) == 1
    service.stop(0)
    stop(service)
    assert len(entries(caplog)) == 1


# Connections that neither published nor played


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


CLOSE = {"remote_addr": "192.0.2.5:50512", "reason": "refused: X", "duration_s": 0.25, "bytes_in": 412, "bytes_out": 3000}


@pytest.fixture
def clocked(caplog):
    """The service with a clock of the test's; returns both."""
    caplog.set_level(logging.INFO, "rtmpd")
    clock = Clock()
    made = AccessLog(Hub(ON), AccessLog.select(ON), clock)
    made.start()
    return made, clock


def close(service, **more):
    service._hub.bus.emit(EventType.CONNECTION_CLOSE, {**CLOSE, "served": False, **more}, connection_id="9")


def test_a_connection_that_neither_published_nor_played_is_an_entry(clocked, caplog):
    close(clocked[0], app="live", wanted="publish", wanted_stream="live/a", user="bob", agent="OBS")
    (entry,) = entries(caplog)
    ignored = ("start", "drops", "skips", "dropped")
    assert [item for item in entry.items() if item[0] not in ignored] == [
        ("action", "connect"),
        ("connection", 9),
        ("peer", "192.0.2.5:50512"),
        ("agent", "OBS"),
        ("user", "bob"),
        ("app", "live"),
        ("stream", "live/a"),
        ("duration_s", 0.25),
        ("bytes", 412),
        ("reason", "refused: X"),
        ("wanted", "publish"),
        ("unlisted", 0),
    ]


@pytest.mark.parametrize("more", [{"served": True}, {"bytes_in": 0}], ids=["published or played", "sent nothing"])
def test_other_connections_are_not_entries(clocked, caplog, more):
    close(clocked[0], **more)
    assert entries(caplog) == []


def test_lines_of_connections_are_limited_to_a_burst_of_a_hundred_and_ten_a_second_and_further_ones_are_counted(
    clocked, caplog
):
    service, clock = clocked
    for _ in range(1000):
        close(service)
    assert [entry["unlisted"] for entry in entries(caplog)] == [0] * 100
    # Lines of publishes and plays are not limited.
    stop(service)
    assert len(entries(caplog)) == 101
    caplog.clear()
    clock.now_s += 1.0
    for _ in range(50):
        close(service)
    assert [entry["unlisted"] for entry in entries(caplog)] == [900] + [0] * 9
    caplog.clear()
    clock.now_s += 3600.0
    for _ in range(101):
        close(service)
    assert [entry["unlisted"] for entry in entries(caplog)] == [40] + [0] * 99
