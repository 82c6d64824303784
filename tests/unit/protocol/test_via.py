import pytest

from rtmpd.protocol.via import VIA_LIMIT, format_via, is_loop, parse_via

ONE, OTHER = "0123456789abcdef", "fedcba9876543210"


def test_what_is_written_is_read():
    assert parse_via(format_via((ONE, OTHER))) == (ONE, OTHER)
    assert format_via(()) == ""


@pytest.mark.parametrize("value", [None, 1.0, "", ",", "x" * 16, ONE.upper(), "a" * 33, [ONE], {"a": ONE}, f"{ONE}\n"])
def test_a_malformed_member_is_empty(value):
    assert parse_via(value) == ()


def test_malformed_ids_are_ignored():
    assert parse_via(f"{ONE},?,{OTHER}") == (ONE, OTHER)


def test_a_long_list_is_read_to_the_limit():
    assert parse_via(",".join([ONE] * 100_000)) == (ONE,) * VIA_LIMIT


def test_a_path_with_the_own_id_is_a_loop():
    assert is_loop((OTHER, ONE), ONE)
    assert not is_loop((OTHER,), ONE)
    assert not is_loop((), ONE)


def test_a_path_that_is_too_long_is_a_loop():
    assert is_loop((OTHER,) * VIA_LIMIT, ONE)
    assert not is_loop((OTHER,) * (VIA_LIMIT - 1), ONE)
