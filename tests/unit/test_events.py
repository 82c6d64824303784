from __future__ import annotations

from types import SimpleNamespace

from rtmpd.events import EventBus, EventType

PUBLISHES = (EventType.PUBLISH_START, EventType.PUBLISH_STOP)


def test_an_event_is_delivered_to_its_handlers_in_order():
    bus = EventBus()
    seen = []
    bus.subscribe(PUBLISHES, lambda event: seen.append(("first", event.type)))
    bus.subscribe((EventType.PUBLISH_START,), lambda event: seen.append(("second", event.type)))
    bus.emit(EventType.PUBLISH_START)
    bus.emit(EventType.PUBLISH_STOP)
    bus.emit(EventType.PLAY_START)
    assert seen == [
        ("first", EventType.PUBLISH_START),
        ("second", EventType.PUBLISH_START),
        ("first", EventType.PUBLISH_STOP),
    ]


def test_an_event_has_its_stream_connection_and_data():
    bus = EventBus()
    seen = []
    bus.subscribe(PUBLISHES, seen.append)
    stream = SimpleNamespace(key="live/a")
    bus.emit(EventType.PUBLISH_STOP, {"bytes": 3}, stream=stream, connection_id="7")
    bus.emit(EventType.PUBLISH_STOP, stream_key="live/b")
    first, second = seen
    assert (first.stream_key, first.stream, first.connection_id, first.data) == ("live/a", stream, "7", {"bytes": 3})
    assert (second.stream_key, second.stream, second.connection_id, second.data) == ("live/b", None, "", {})
    assert first.time_s > 1_700_000_000


def test_a_failing_handler_is_logged_and_the_others_are_called(caplog):
    bus = EventBus()
    seen = []

    def fail(event):
        raise RuntimeError("boom")

    bus.subscribe(PUBLISHES, fail)
    bus.subscribe(PUBLISHES, seen.append)
    bus.emit(EventType.PUBLISH_START)
    assert len(seen) == 1
    assert bus.failures == 1
    assert "internal error: a handler of publish_start failed" in caplog.text


def test_an_unsubscribed_handler_is_not_called():
    bus = EventBus()
    seen = []
    bus.subscribe(PUBLISHES, seen.append)
    assert bus.wanted(EventType.PUBLISH_START)
    bus.unsubscribe(seen.append)
    bus.emit(EventType.PUBLISH_START)
    assert seen == []
    assert not bus.wanted(EventType.PUBLISH_START)


def test_the_public_names_do_not_change():
    assert [str(each) for each in EventType] == [
        *("connection_accept", "connection_close", "handshake_complete", "stream_create", "stream_delete"),
        *("publish_start", "publish_stop", "live_start", "live_stop", "source_active", "failover", "failback"),
        *("play_start", "play_stop", "player_slow"),
        *("codec_detected", "subscriber_count", "auth_failed", "record_done", "relay_up", "relay_down"),
    ]
