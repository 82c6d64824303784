import random

import pytest

from rtmpd.util.backoff import JITTER, Backoff, nth_wait_s


def test_waits_double_up_to_the_limit():
    backoff = Backoff(lambda: 0.5)
    assert [backoff.next_s(1, 60) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_waits_differ_by_the_jitter_and_no_more():
    backoff = Backoff(random.Random(1).random)
    for wanted in (1, 2, 4, 8, 16, 32, *[60] * 50):
        assert wanted * (1 - JITTER) <= backoff.next_s(1, 60) <= wanted * (1 + JITTER)
    waits = {backoff.next_s(1, 60) for _ in range(50)}
    assert len(waits) == 50


def test_after_a_reset_waits_are_short_again():
    backoff = Backoff(lambda: 0.5)
    for _ in range(5):
        backoff.next_s(1, 60)
    backoff.reset()
    assert backoff.next_s(1, 60) == 1


def test_without_hope_the_wait_is_the_longest_at_once():
    backoff = Backoff(lambda: 0.5)
    assert backoff.next_s(1, 60, longest=True) == 60


@pytest.mark.parametrize("tries", [100, 5000])
def test_any_number_of_tries_is_no_overflow(tries):
    backoff = Backoff(lambda: 0.5)
    for _ in range(tries):
        backoff.next_s(1, 60)
    assert backoff.next_s(1, 60) == 60


def test_a_limit_below_the_first_wait_wins():
    assert Backoff(lambda: 0.5).next_s(10, 3) == 3


def test_the_nth_wait_is_known_without_a_series():
    assert [nth_wait_s(number, 0.5, 4) for number in (0, 1, 2, 3, 5000)] == [0.5, 1, 2, 4, 4]
