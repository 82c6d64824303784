from __future__ import annotations

import errno

import pytest

from rtmpd.util.text import connection_error, count_of, printable, shown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("live/cäm 1", "live/cäm 1"),
        ("a\nb\x1b", r"a\nb\x1b"),
        ("\u2028\u202e", r"\u2028\u202e"),
        ("\ud800", r"\ud800"),
        ("", ""),
    ],
)
def test_control_characters_are_escaped(text, escaped):
    assert printable(text) == escaped


def test_a_value_in_a_message_is_quoted_and_shortened():
    assert shown("loud\n") == '"loud\\n"'
    assert shown("x" * 80) == f'"{"x" * 80}"'
    assert shown("x" * 81) == f'"{"x" * 80}..."'


def test_a_reset_is_no_failure():
    for number in (errno.ECONNRESET, errno.EPIPE):
        assert connection_error("read", OSError(number, "text")) == "closed by the peer (connection reset)"
    assert connection_error("send", OSError(errno.ETIMEDOUT, "Connection timed out")) == "send failed: Connection timed out"


def test_a_count_of_one_has_a_singular():
    assert [count_of(number, "stream") for number in (0, 1, 2)] == ["0 streams", "1 stream", "2 streams"]
