from __future__ import annotations

from ipaddress import ip_network

import pytest

from rtmpd.config.access_rules import parse_address, within
from rtmpd.services.auth.bans import Ban, Bans

RULE = {"failures": 3, "window_s": 60.0, "ban_s": 300.0}


def fail(bans, address, now_s=0.0, times=1, **rule):
    return [bans.fail(address, now_s, **(RULE | rule)) for _ in range(times)]


def test_an_address_with_enough_failures_is_banned_for_a_while():
    bans = Bans()
    assert fail(bans, "192.0.2.1", times=3) == ["", "", "192.0.2.1"]
    assert bans.bars("192.0.2.1", 0)
    assert bans.bars("192.0.2.1", 299)
    assert not bans.bars("192.0.2.1", 300)
    assert not bans.bars("192.0.2.2", 0)


def test_it_begins_anew_after_a_ban():
    bans = Bans()
    fail(bans, "192.0.2.1", times=3)
    assert bans.over(300) == [Ban("192.0.2.1", 0)]
    assert fail(bans, "192.0.2.1", 301, times=3) == ["", "", "192.0.2.1"]


def test_failures_add_up_for_a_while_only():
    bans = Bans()
    fail(bans, "192.0.2.1", 0, times=2)
    assert fail(bans, "192.0.2.1", 60, times=2) == ["", ""]
    assert fail(bans, "192.0.2.1", 61) == ["192.0.2.1"]


def test_failures_of_others_do_not_count():
    bans = Bans()
    for number in range(10):
        assert fail(bans, f"192.0.2.{number}", times=2) == ["", ""]


def test_without_a_limit_there_are_no_bans():
    bans = Bans()
    assert not any(fail(bans, "192.0.2.1", times=50, failures=0))
    assert not bans.bars("192.0.2.1", 0)


def test_one_failure_can_be_too_many():
    assert fail(Bans(), "192.0.2.1", failures=1) == ["192.0.2.1"]


def test_a_ban_is_reported_once_and_not_extended_by_earlier_connections():
    bans = Bans()
    fail(bans, "192.0.2.1", times=3)
    assert not any(fail(bans, "192.0.2.1", 100, times=10))
    assert not bans.bars("192.0.2.1", 300)


def test_of_ipv6_a_64_counts_as_one_address():
    bans = Bans()
    fail(bans, "[2001:db8::1]")
    fail(bans, "[2001:db8::ffff:2]")
    assert fail(bans, "2001:db8::3%eth0") == ["2001:db8::/64"]
    assert bans.bars("[2001:db8::aaaa]", 0)
    assert not bans.bars("[2001:db8:0:1::1]", 0)


def test_ipv4_inside_of_ipv6_is_ipv4():
    bans = Bans()
    fail(bans, "[::ffff:192.0.2.1]", times=3)
    assert bans.bars("192.0.2.1", 0)
    assert not bans.bars("[::ffff:192.0.2.2]", 0)


def test_what_a_ban_refused_is_counted():
    bans = Bans()
    fail(bans, "192.0.2.1", times=3)
    for _ in range(5):
        bans.bars("192.0.2.1", 1)
    assert bans.over(299) == []
    assert bans.over(300) == [Ban("192.0.2.1", 5)]
    assert len(bans) == 0


def test_memory_is_bounded():
    bans = Bans(limit=10)
    for number in range(100):
        fail(bans, f"198.51.100.{number}")
        fail(bans, f"203.0.113.{number}", failures=1)
    assert len(bans) == 10
    assert len(bans._failing) == 10
    assert bans.bars("203.0.113.99", 0)
    assert not bans.bars("203.0.113.0", 0)


def test_the_address_that_was_heard_of_longest_ago_goes_first():
    bans = Bans(limit=2)
    fail(bans, "192.0.2.1")
    fail(bans, "192.0.2.2")
    fail(bans, "192.0.2.1")
    fail(bans, "192.0.2.3")
    assert fail(bans, "192.0.2.1") == ["192.0.2.1"]


def test_old_failures_are_forgotten():
    bans = Bans()
    fail(bans, "192.0.2.1")
    bans.over(61)
    assert not bans._failing


@pytest.mark.parametrize("text", ["unix", "", "localhost", "1.2.3", "[::1", "[x]"])
def test_what_is_no_address_is_in_no_network(text):
    address = parse_address(text.replace("[::1", "[:"))
    assert address is None
    assert not within(address, [ip_network("0.0.0.0/0"), ip_network("::/0")])


def test_addresses_are_in_networks_of_their_kind():
    networks = [ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")]
    assert within(parse_address("192.0.2.77"), networks)
    assert within(parse_address("::ffff:192.0.2.77"), networks)
    assert within(parse_address("[2001:db8::1]"), networks)
    assert not within(parse_address("192.0.3.1"), networks)
    assert not within(parse_address("[2001:db9::1]"), networks)
    assert not within(parse_address("192.0.2.77"), [])
