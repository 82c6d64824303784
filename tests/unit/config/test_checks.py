"""The checks of the configspec: what they accept, how they convert it, and their messages."""

from __future__ import annotations

import re

import pytest

from rtmpd.config.checks import Wrong, converter, describer
from rtmpd.config.file_names import FileNameTemplate
from rtmpd.config.model import ListenAddress


def check(spec: str, value: str | list[str]) -> object:
    return converter().check(spec, value)


def problem(spec: str, value: str | list[str]) -> str:
    with pytest.raises(Wrong) as raised:
        check(spec, value)
    assert str(raised.value).isprintable()
    return str(raised.value)


def description(spec: str) -> str:
    return describer().check(spec, "")


# Users and groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "rtmpd", "_rtmpd", "www-data", "a.b", "machine$", "0", "65534", "a" * 31])
def test_a_user_is_a_name_or_a_number(name):
    assert check('account(empty="stay")', name) == name


@pytest.mark.parametrize("name", ["-1", "1x", "a b", "a:b", "ü", "/etc", "a" * 33, "4294967295", "a\n", "$"])
def test_texts_that_are_no_user(name):
    message = problem('account(empty="stay")', name)
    assert message.startswith("expected a name or a number, or nothing (stay), got ")


# Paths --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["recordings", "/var/lib/rtmpd", ".", "../x", "a b", "ü", "a/" * 100])
def test_a_path_is_not_changed(path):
    assert check("path", path) == path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "expected a path, got nothing"),
        ("a\0b", r'expected a path, got "a\\x00b"'),
        (["a", "b"], "expected a path, got a list of 2: quote a value that contains commas"),
    ],
)
def test_values_that_are_no_path(value, message):
    assert re.fullmatch(message, problem("path", value))


# Names of files -----------------------------------------------------------------------------------------------------------


def test_a_file_name_becomes_a_template():
    assert check("file_name", "{app}/{name}") == FileNameTemplate.parse("{app}/{name}")


def test_a_file_name_that_is_wrong_says_what_was_expected_and_why():
    expected = "expected a relative path with {app}, {name}, {start:FORMAT} or {n} in it, got "
    assert problem("file_name", "x") == expected + '"x": a field such as {name} is missing'
    assert problem("file_name", "") == expected + "nothing: a template has 1 to 1000 characters"
    assert problem("file_name", "a\n{name}") == (
        expected + r'"a\n{name}": besides fields only letters from A to Z, digits, spaces and any of /.,;@+=()~_- are possible'
    )
    assert problem("file_name", ["{app}", "{name}"]) == expected + "a list of 2: quote a value that contains commas"
    assert description("file_name") == "a relative path with {app}, {name}, {start:FORMAT} or {n} in it"


# Patterns -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "patterns"),
    [
        ("", ()),
        ([], ()),
        ("live/*", ("live/*",)),
        ("*/cam?", ("*/cam?",)),
        ("live/sub/cam", ("live/sub/cam",)),
        (["live/a", "*/b"], ("live/a", "*/b")),
        ("live/ü", ("live/ü",)),
        ("*", ("*",)),
        ("cam?", ("cam?",)),
    ],
)
def test_patterns(value, patterns):
    assert check("patterns", value) == patterns


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *(("[a]/b", "[a]/b"), ("/", "/"), ("live/", "live/"), ("/live/cam", "/live/cam"), ("live/cam/", "live/cam/")),
        *(("live/a\nb", r"live/a\nb"), (["live/*", ""], ""), (["live/*", "/cam"], "/cam")),
    ],
)
def test_values_that_are_no_pattern(value, shown):
    got = f'"{shown}"' if shown else "nothing"
    assert (
        problem("patterns", value)
        == f"expected APPLICATION/NAME or NAME with * and ? for any text and any character, got {got}"
    )


# Addresses ----------------------------------------------------------------------------------------------------------------

ALL = "addresses()"
OFF = "addresses(host=127.0.0.1, empty=off)"


@pytest.mark.parametrize(
    ("spec", "value", "addresses"),
    [
        (ALL, ":1935", [("", 1935)]),
        (ALL, "10.0.0.1:1935", [("10.0.0.1", 1935)]),
        (OFF, ":9100", [("127.0.0.1", 9100)]),
        (OFF, "0.0.0.0:9100", [("0.0.0.0", 9100)]),
        (OFF, [":9100", "[::1]:9100"], [("127.0.0.1", 9100), ("::1", 9100)]),
        (OFF, ["[::]:9100", ":9100"], [("::", 9100), ("127.0.0.1", 9100)]),
        (OFF, [":0", ":0"], [("127.0.0.1", 0), ("127.0.0.1", 0)]),
        (OFF, "", []),
        (OFF, [], []),
    ],
)
def test_addresses(spec, value, addresses):
    assert check(spec, value) == tuple(ListenAddress(*address) for address in addresses)


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (ALL, "", 'expected HOST:PORT, :PORT or [IPv6]:PORT, got ""'),
        (ALL, [], "expected at least one address, got nothing"),
        (OFF, "off", 'expected HOST:PORT, :PORT or [IPv6]:PORT, got "off"'),
        (OFF, [":9100", "127.0.0.1:9100"], 'expected different addresses, got "127.0.0.1:9100" twice'),
        (OFF, [":9100", "0.0.0.0:9100"], 'expected addresses that do not overlap, got "127.0.0.1:9100" and "0.0.0.0:9100"'),
        (ALL, [":9100", "127.0.0.1:9100"], 'expected addresses that do not overlap, got ":9100" and "127.0.0.1:9100"'),
        (OFF, [":9100", ""], 'expected HOST:PORT, :PORT or [IPv6]:PORT, got ""'),
    ],
)
def test_addresses_that_are_wrong(spec, value, message):
    assert problem(spec, value) == message


def test_addresses_are_described():
    assert description(ALL) == "HOST:PORT, :PORT or [IPv6]:PORT"
    assert description(OFF) == "HOST:PORT, :PORT or [IPv6]:PORT, or nothing (off)"


# Times and sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (".5", 0.5),
        ("500ms", 0.5),
        ("30s", 30),
        ("1.5m", 90),
        ("5m", 300),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h1m1s", 3661),
        ("1d", 86400),
    ],
)
def test_times(text, seconds):
    assert check("duration(0.1, 86400)", text) == seconds


@pytest.mark.parametrize("text", ["5 m", "5M", "m", "5x", "-5m", "5m5m", "1h30", "1e3s", "5m ", "2d", "0", "nan", "\u0665m"])
def test_texts_that_are_no_time(text):
    with pytest.raises(Wrong, match=r"expected a time from 100ms to 1d, got "):
        check("duration(0.1, 86400)", text)


def test_a_time_may_be_counted_in_milliseconds():
    spec = 'duration(1, 10000, unit=ms, zero="off")'
    assert [check(spec, text) for text in ("350", "350ms", "2s", "0", "0s")] == [350, 350, 2000, 0, 0]
    assert description(spec) == "0 (off) or a time from 1ms to 10s"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("4096", 4096), ("4K", 4096), ("4k", 4096), ("4KB", 4096), ("4KiB", 4096), ("10M", 10 << 20), ("1.5G", 3 << 29)),
        ("1T", 1 << 40),
    ],
)
def test_sizes(text, size):
    found = check("size(1024, 1099511627776)", text)
    assert (found, type(found)) == (size, int)


@pytest.mark.parametrize(
    "text", ["4 K", "4096.0", "1.0001K", "K", "4KK", "4B", "4iB", "-4K", "1023", "2T", "1e6", "0x1000", "\u0664K"]
)
def test_texts_that_are_no_size(text):
    with pytest.raises(Wrong, match=r"expected a size from 1K to 1T, got "):
        check("size(1024, 1099511627776)", text)
