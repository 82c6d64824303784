from __future__ import annotations

import pytest

from rtmpd.util.text import printable, shown


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
