from __future__ import annotations

import json
import logging
import re
import time
from functools import partial

import pytest

from rtmpd.daemon.log_formats import (
    MESSAGE_LIMIT,
    access_json,
    access_text,
    journal_datagram,
    json_line,
    mask,
    text_line,
    time_text,
)

TIME_S = 1_700_000_000.123


def record(message="publishes live/a", level=logging.INFO, **extra):
    made = logging.LogRecord("rtmpd.rtmp.connection", level, "/x/connection.py", 77, message, None, None, "start")
    made.created = TIME_S
    made.msecs = 123
    made.__dict__.update(extra)
    return made


def of_connection(message, level=logging.INFO, **extra):
    return record(message, level, **{"connection": 7, "peer": "192.0.2.5:50512", "stream": "live/a", **extra})


@pytest.fixture(params=["UTC", "Asia/Kathmandu", "America/New_York"])
def zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield {"UTC": "+00:00", "Asia/Kathmandu": "+05:45", "America/New_York": "-05:00"}[request.param]
    monkeypatch.undo()
    time.tzset()


# Text -------------------------------------------------------------------------------------------------------------------


def test_a_line_of_text_is_time_level_message():
    line = text_line(record("rtmpd 0.1.0", logging.WARNING)).decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,123 WARNING rtmpd 0\.1\.0\n", line)


@pytest.mark.parametrize(
    ("message", "stream", "line"),
    [
        ("publishes live/a", "live/a", "#7 192.0.2.5:50512 publishes live/a"),
        ("closed: failed; 1.0 s", "live/a", "#7 192.0.2.5:50512 closed: failed; 1.0 s [live/a]"),
        ("connected to live", "", "#7 192.0.2.5:50512 connected to live"),
    ],
)
def test_a_line_names_its_connection_peer_and_stream_once(message, stream, line):
    assert text_line(of_connection(message, stream=stream)).decode().endswith(f" INFO    {line}\n")


def test_the_journal_behind_standard_error_gets_levels_and_no_time():
    line = partial(text_line, journal=True)
    assert line(record("a", logging.ERROR)) == b"<3>ERROR   a\n"
    assert line(record("a", logging.DEBUG)) == b"<7>DEBUG   a\n"
    assert line(record("bug", logging.CRITICAL, exc_text="Traceback:\n  one\nE: x")) == (
        b"<2>CRITICAL bug\n<2>Traceback:\n<2>  one\n<2>E: x\n"
    )
    assert json_line(record("a"), journal=True).startswith(b'<6>{"time": ')


def test_a_message_can_not_forge_a_line():
    line = text_line(record("name 'x\n2026-01-01 00:00:00,000 INFO    \x1b[2Jforged\x85\u2028'")).decode()
    assert line.count("\n") == 1
    assert len(line.splitlines()) == 1
    assert "\\n2026" in line
    assert "\\x1b[2J" in line
    assert "\\x85\\u2028'" in line


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_characters_that_the_terminal_can_not_show_are_escaped(encoding):
    line = text_line(record("publishes live/\udcff\ud800 €"), encoding=encoding).decode(encoding)
    assert "live/\\udcff\\ud800 " in line


@pytest.mark.parametrize("form", [text_line, json_line, journal_datagram])
@pytest.mark.parametrize("name", ["token=s3cret", "user=a&pass=s3cret", "rtmp://ann:s3cret@h/live", "cam%3Ftoken%3Ds3cret"])
def test_all_fields_are_masked_alike(form, name):
    made = of_connection(f"play of {name!r} ended", stream=f"live/{name}", exc_text=f"E: {name}")
    made.peer = name
    line = form(made)
    assert b"s3cret" not in line
    assert line.count(b"***") >= 3


# JSON -------------------------------------------------------------------------------------------------------------------


def test_a_line_of_json_has_the_fields_in_order(zone):
    line = json_line(of_connection("closed: failed", logging.WARNING))
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    entry = json.loads(line)
    assert list(entry) == ["time", "level", "logger", "message", "connection", "peer", "stream"]
    assert entry["level"] == "warning"
    assert entry["message"] == "closed: failed"
    assert (entry["connection"], entry["peer"], entry["stream"]) == (7, "192.0.2.5:50512", "live/a")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.123[+-]\d\d:\d\d", entry["time"])
    assert entry["time"].endswith(zone)


def test_json_omits_empty_fields_and_has_tracebacks():
    entry = json.loads(json_line(record("a bug", exc_text="Traceback:\n  RuntimeError: token=abc")))
    assert list(entry) == ["time", "level", "logger", "message", "exception"]
    assert entry["exception"] == "Traceback:\n  RuntimeError: token=***"


@pytest.mark.parametrize("name", ['€ü\n\t"\\', "\udcff\ud800", "\x00\x1f\x7f\u2028", "a" * 5000])
def test_json_takes_any_name(name):
    line = json_line(of_connection(f"publishes {name}", stream=name))
    assert line.count(b"\n") == 1
    entry = json.loads(line.decode("utf-8"))
    assert entry["stream"] == name
    assert entry["message"] == f"publishes {name}"


# The journal ------------------------------------------------------------------------------------------------------------


def fields(datagram):
    found = {}
    while datagram:
        head, _, rest = datagram.partition(b"\n")
        if b"=" in head:
            name, _, value = head.partition(b"=")
            datagram = rest
        else:
            name, size = head, int.from_bytes(rest[:8], "little")
            value, datagram = rest[8 : 8 + size], rest[9 + size :]
            assert rest[8 + size : 9 + size] == b"\n"
        found[name.decode()] = value.decode()
    return found


def test_a_datagram_has_the_fields_of_the_journal():
    assert fields(journal_datagram(of_connection("closed: failed", logging.WARNING))) == {
        "MESSAGE": "#7 192.0.2.5:50512 closed: failed [live/a]",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "rtmpd",
        "CODE_FILE": "/x/connection.py",
        "CODE_LINE": "77",
        "CODE_FUNC": "start",
        "RTMPD_LOGGER": "rtmpd.rtmp.connection",
        "RTMPD_CONNECTION": "7",
        "RTMPD_PEER": "192.0.2.5:50512",
        "RTMPD_STREAM": "live/a",
    }


def test_a_datagram_without_a_connection_has_no_fields_of_one_and_tracebacks_are_whole():
    found = fields(journal_datagram(record("a bug", logging.ERROR, exc_text="Traceback:\n  x\nRuntimeError: y")))
    assert found["MESSAGE"] == "a bug\nTraceback:\n  x\nRuntimeError: y"
    assert found["PRIORITY"] == "3"
    assert not [name for name in found if name in ("RTMPD_CONNECTION", "RTMPD_PEER", "RTMPD_STREAM")]


def test_a_name_can_not_forge_a_field():
    found = fields(journal_datagram(of_connection("x", stream="live/a\nPRIORITY=0\nX=y")))
    assert found["PRIORITY"] == "6"
    assert found["RTMPD_STREAM"] == "live/a\nPRIORITY=0\nX=y"
    assert "X" not in found


def test_a_datagram_has_a_bound():
    found = fields(journal_datagram(record("€" * (MESSAGE_LIMIT + 1))))
    assert found["MESSAGE"] == "€" * MESSAGE_LIMIT + "..."


# The access log ---------------------------------------------------------------------------------------------------------


ENTRY = {
    "action": "play",
    "connection": 2,
    "peer": "[2001:db8::1]:40318",
    "agent": 'LNX "9,0" \\ token=hunter2',
    "user": "",
    "app": "live",
    "stream": "live/ä",
    "start": TIME_S - 2.5,
    "duration_s": 2.5,
    "bytes": 7120231,
    "skips": 0,
    "dropped": 0,
    "reason": "closed by the peer",
}


def test_an_entry_as_json(zone):
    entry = json.loads(access_json(record(entry=ENTRY)))
    assert list(entry) == ["time", *ENTRY]
    assert entry["time"] == time_text(TIME_S)
    assert entry["start"] == time_text(TIME_S - 2.5)
    assert entry["time"].endswith(zone)
    assert entry["agent"] == 'LNX "9,0" \\ token=***'
    assert {name: entry[name] for name in ("connection", "duration_s", "bytes", "stream")} == {
        name: ENTRY[name] for name in ("connection", "duration_s", "bytes", "stream")
    }


def test_an_entry_as_text():
    line = access_text(record(entry=ENTRY)).decode()
    assert line == (
        f"time={time_text(TIME_S)} action=play connection=2 peer=[2001:db8::1]:40318 "
        'agent="LNX \\"9,0\\" \\\\ token=***" user="" app=live stream=live/ä '
        f'start={time_text(TIME_S - 2.5)} duration_s=2.5 bytes=7120231 skips=0 dropped=0 reason="closed by the peer"\n'
    )


@pytest.mark.parametrize("value", ["a\nb", "a b", "a=b", '"', "\x1b", "\u2028", "\x85", "\udcff"])
def test_no_value_of_an_entry_begins_another_field_or_line(value):
    line = access_text(record(entry={**ENTRY, "agent": value})).decode()
    assert len(line.splitlines()) == 1
    assert re.fullmatch(r'(\w+=([^\s"=]+|"([^"\\]|\\.)*") ?)+\n', line)


# Secrets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("live/a?token=hunter2", "live/a?token=***"),
        ("live/a?x=1&token=hunter2&y=2", "live/a?x=1&token=***&y=2"),
        ("a?expires=5&sign=0a-_b", "a?expires=5&sign=***"),
        ("a?signature=ab", "a?signature=***"),
        ("a?KEY=hunter2", "a?KEY=***"),
        ("streamkey=hunter2", "streamkey=***"),
        ("auth_token=hunter2", "auth_token=***"),
        ("pass=hunter2", "pass=***"),
        ("password=hunter2", "password=***"),
        ("passwd=hunter2 and more", "passwd=*** and more"),
        ("passphrase='hunter2 hunter2' x", "passphrase=*** x"),
        ('secret="hunter2 hunter2" x', "secret=*** x"),
        ("'live/a?token=hunter2'", "'live/a?token=***'"),
        ("{'token': 'hunter2', 'a': 1}", "{'token': ***, 'a': 1}"),
        ('{"password": "hunter2"}', '{"password": ***}'),
        ("rtmp://bob:hunter2@host/live", "rtmp://***@host/live"),
        ("rtmp://bob:hunt@er2@host/live", "rtmp://***@host/live"),
        ("https://hunter2@host", "https://***@host"),
        ("from rtmp://u:hunter2@a/ to rtmp://v:hunter2@b/", "from rtmp://***@a/ to rtmp://***@b/"),
    ],
)
def test_text_like_a_secret_is_masked(text, masked):
    assert mask(text) == masked
    for form in (text_line, json_line, journal_datagram):
        assert b"hunter2" not in form(of_connection(f"refused: {text}"))
        assert b"hunter2" not in form(record("a bug", exc_text=f"Traceback\n  {text}"))


@pytest.mark.parametrize(
    "text",
    [
        "publishes live/keys/token",
        "#1 192.0.2.5:50512 stopped playing live/a: deleteStream; 43.4 s, 7120231 bytes, 0 skips",
        "connected to live by 'FMLE/3.0 (compatible; FMSc/1.0)'",
        "metrics on http://127.0.0.1:9500/metrics",
        "mail bob@example.com",
        "http://host/a@b",
    ],
)
def test_other_text_is_not_masked(text):
    assert mask(text) == text


@pytest.mark.parametrize("piece", ["token=", "://", "a", "://a", "pass", 'password="', "@", "key: "])
def test_masking_takes_linear_time(piece):
    text = piece * 100_000
    begun = time.monotonic()
    mask(text)
    assert time.monotonic() - begun < 5


DECEIVING = "\x85\u2028\u2029\u202a\u202e\u2066\u200f"
ESCAPED = "\\u2028\\u2029\\u202a\\u202e\\u2066\\u200f"


def test_no_character_of_a_name_ends_or_turns_a_line_of_any_log():
    name = f"live/a{DECEIVING}b"
    found = of_connection(f"publishes {name}", stream=name, entry={"stream": name}, exc_text=f"Error: {name}")
    elsewhere = of_connection("publishes", stream=name)
    made = [text_line(found), text_line(elsewhere), json_line(found), access_text(found), access_json(found)]
    for line in (each.decode() for each in made):
        assert ESCAPED in line
        assert not set(line) & set(DECEIVING)
        assert line.removesuffix("\n").splitlines() == line.removesuffix("\n").split("\n")
    assert json.loads(json_line(found))["stream"] == json.loads(access_json(found))["stream"] == name
