"""What hooks get, byte by byte."""

from __future__ import annotations

import json

from rtmpd.events import Event, EventType
from rtmpd.services.hooks.event import HookEvent
from tests.unit.services.hooks.fakes import hook_event


def test_an_event_as_json_has_go_rtmps_names_and_its_way_to_write():
    event = Event(EventType.PUBLISH_STOP, 1700000000.9, "7", "live/a", {"id": 3, "duration_s": 1.5, "reason": "x"})
    assert HookEvent.of(event, "run-1").json() == (
        b'{"type":"publish_stop","timestamp":1700000000,"conn_id":"7","stream_key":"live/a",'
        b'"data":{"id":3,"duration_s":1.5,"reason":"x"}}'
    )


def test_what_is_empty_is_left_out():
    made = HookEvent("run-1", "stream_create", 5, "", "", {})
    assert made.json() == b'{"type":"stream_create","timestamp":5}'
    assert made.environment() == {b"RTMP_EVENT_TYPE": b"stream_create", b"RTMP_TIMESTAMP": b"5"}


def test_a_hook_event_holds_on_to_no_stream():
    made = HookEvent.of(Event(EventType.STREAM_CREATE, 1.0, stream=object()), "run-1")
    assert not hasattr(made, "stream")


def test_an_event_as_variables():
    made = hook_event(3, duration_s=1.5, gone=True, reason="it left")
    assert made.environment() == {
        b"RTMP_EVENT_TYPE": b"publish_start",
        b"RTMP_TIMESTAMP": b"1700000000",
        b"RTMP_CONN_ID": b"7",
        b"RTMP_STREAM_KEY": b"live/a",
        b"RTMP_ID": b"3",
        b"RTMP_DURATION_S": b"1.5",
        b"RTMP_GONE": b"true",
        b"RTMP_REASON": b"it left",
    }


def test_bytes_that_are_not_utf8_are_replaced_in_json_and_kept_in_variables():
    made = hook_event(1, "live/caf\udce9", note="a\0b\ud800")
    assert json.loads(made.json())["stream_key"] == "live/caf\ufffd"
    assert made.environment()[b"RTMP_STREAM_KEY"] == b"live/caf\xe9"
    assert made.environment()[b"RTMP_NOTE"] == b"ab?"


def test_unicode_is_not_escaped():
    assert '"live/ü✓"'.encode() in hook_event(1, "live/ü✓").json()


def test_lines_of_json():
    made = hook_event(1, "live/a\nRTMP_EVENT: {}")
    line = made.lines("json")
    assert line.startswith(b"RTMP_EVENT: {")
    assert line.count(b"\n") == 1
    assert json.loads(line.removeprefix(b"RTMP_EVENT: ")) == json.loads(made.json())


def test_lines_of_variables_end_with_an_empty_one():
    assert hook_event(3).lines("env") == (
        b"# RTMP Event: publish_start\nRTMP_EVENT_TYPE=publish_start\nRTMP_TIMESTAMP=1700000000\n"
        b"RTMP_CONN_ID=7\nRTMP_STREAM_KEY=live/a\nRTMP_ID=3\n\n"
    )


def test_nothing_in_a_value_begins_a_line():
    made = hook_event(1, "live/a\nX=1\r\u2028\udce9")
    assert b"RTMP_STREAM_KEY=live/a\\nX=1\\r\\u2028\xe9\n" in made.lines("env")


def test_no_character_of_a_value_ends_or_turns_a_line_of_json():
    name = "live/a\x85\u2028\u2029\u202a\u202e"
    line = hook_event(1, name).lines("json").decode()
    assert len(line.splitlines()) == 1
    assert not set(line) & set("\x85\u2028\u2029\u202a\u202e")
    assert json.loads(line.removeprefix("RTMP_EVENT: "))["stream_key"] == name


def test_events_of_a_stream_share_a_lane_and_others_go_by_connection():
    assert hook_event(1, "live/a", connection="1").lane == hook_event(2, "live/a", connection="2").lane
    assert hook_event(1, "", connection="1").lane != hook_event(2, "", connection="2").lane
    assert hook_event(1, "live/a").subject == "live/a"
    assert hook_event(1, "", connection="1").subject == "#1"
    assert HookEvent("x", "record_done", 0, "", "", {}).subject == "the server"
