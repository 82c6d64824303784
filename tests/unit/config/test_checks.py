"""The checks of the configspec that are more than a number or a word."""

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


# Paths --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["recordings", "/var/lib/rtmpd", ".", "../x", "a b", "ü", "a/" * 100])
def test_a_path_is_taken_as_it_is(path):
    assert check("path", path) == path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "expected a path, got nothing"),
        ("a\0b", r'expected a path, got "a\\x00b"'),
        (["a", "b"], "expected a path, got a list of 2: quote a value that contains commas"),
    ],
)
def test_what_is_no_path(value, message):
    assert re.fullmatch(message, problem("path", value))


# Names of files -----------------------------------------------------------------------------------------------------------


def test_a_file_name_becomes_a_template():
    assert check("file_name", "{app}/{name}") == FileNameTemplate.parse("{app}/{name}")


def test_a_file_name_that_is_wrong_says_what_was_expected_and_why():
    expected = "expected a relative path with {app}, {name}, {start:FORMAT} or {n} in it, got "
    assert problem("file_name", "x") == expected + '"x": it has a field, such as {name}'
    assert problem("file_name", "") == expected + "nothing: it has 1 to 1000 characters"
    assert problem("file_name", "a\n{name}") == (
        expected + r'"a\n{name}": besides fields it has letters from A to Z, digits, spaces and any of /.,;@+=()~_-'
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
    ],
)
def test_patterns(value, patterns):
    assert check("patterns", value) == patterns


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *(("*", "*"), ("cam", "cam"), ("/", "/"), ("live/", "live/"), ("/live/cam", "/live/cam"), ("live/cam/", "live/cam/")),
        *(("live/a\nb", r"live/a\nb"), (["live/*", ""], ""), (["live/*", "cam"], "cam")),
    ],
)
def test_what_is_no_pattern(value, shown):
    assert problem("patterns", value) == f'expected {description("patterns")}, got "{shown}"'


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
        (ALL, [], "expected at least one address"),
        (OFF, "off", 'expected HOST:PORT, :PORT or [IPv6]:PORT, got "off"'),
        (OFF, [":9100", "127.0.0.1:9100"], '"127.0.0.1:9100" is given twice'),
        (OFF, [":9100", "0.0.0.0:9100"], '"127.0.0.1:9100" and "0.0.0.0:9100" overlap'),
        (ALL, [":9100", "127.0.0.1:9100"], '":9100" and "127.0.0.1:9100" overlap'),
        (OFF, [":9100", ""], 'expected HOST:PORT, :PORT or [IPv6]:PORT, got ""'),
    ],
)
def test_addresses_that_are_wrong(spec, value, message):
    assert problem(spec, value) == message


def test_addresses_are_described():
    assert description(ALL) == "HOST:PORT, :PORT or [IPv6]:PORT"
    assert description(OFF) == "HOST:PORT, :PORT or [IPv6]:PORT, or nothing (off)"
