"""Session ids: who accepts which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.services.hls.session_ids import LENGTH, RANDOM_BYTES, Claim, check_id, make_id

SECRET, KEY, UNTIL_S = b"s" * 32, "live/test", 2_000_000_000
RANDOM = bytes(range(RANDOM_BYTES))


@given(
    st.binary(min_size=1, max_size=40),
    st.text(min_size=1, max_size=20),
    st.integers(1, 2**32 - 1),
    st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES),
    st.booleans(),
    st.booleans(),
)
def test_an_id_says_what_it_was_made_for_and_nothing_else(secret, key, until_s, random, proved, expires):
    made = make_id(secret, key, until_s, random, proved=proved, expires=expires)
    assert len(made) == LENGTH
    assert check_id(secret, made, ["x/y", key], until_s - 1) == Claim(key, until_s, proved, expires)
    assert check_id(secret, made, [key], until_s) is None
    assert check_id(secret + b"x", made, [key], until_s - 1) is None
    assert check_id(secret, made, [key + "x"], until_s - 1) is None
    assert check_id(secret, made, [], until_s - 1) is None


@pytest.mark.parametrize("position", range(0, LENGTH, 5))
def test_every_character_counts(position):
    made = make_id(SECRET, KEY, UNTIL_S, RANDOM, proved=True)
    for other in "A_9":
        changed = made[:position] + other + made[position + 1 :]
        if changed != made:
            assert check_id(SECRET, changed, [KEY], 0) is None


@given(st.text(max_size=40))
def test_anything_else_is_none(text):
    assert check_id(SECRET, text, [KEY], 0) is None


@pytest.mark.parametrize("text", ["+" * LENGTH, "=" * LENGTH, "A" * (LENGTH - 1) + "=", "\u0661" * LENGTH, " " * LENGTH])
def test_what_is_not_base64_is_none(text):
    assert check_id(SECRET, text, [KEY], 0) is None
