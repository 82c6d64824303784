from __future__ import annotations

import dataclasses

import pytest

from rtmpd.config.loader import load_text
from rtmpd.connection_limits import DEFAULT_CONNECTION_LIMIT, ConnectionLimits

LIMITS = load_text("").limits


def make(**options):
    return ConnectionLimits(dataclasses.replace(LIMITS, **options))


def let_in(limits, count, address="192.0.2.1", now_s=0.0):
    """How many of so many connections come in; the first that does not ends it."""
    for number in range(count):
        if limits.refusal(address, now_s):
            return number
        limits.enter(address)
    return count


def test_a_burst_of_twice_the_rate_is_accepted():
    limits = make(connection_rate_limit=5)
    assert let_in(limits, 100) == 10
    assert limits.refusal("192.0.2.1", 0.0) == "connection_rate_limit is 5 per second"
    assert let_in(limits, 100, now_s=1.0) == 5
    assert let_in(limits, 100, now_s=1.125) == 0
    assert let_in(limits, 100, now_s=1.25) == 1
    # A quiet time saves up for two seconds and no longer.
    assert let_in(limits, 100, now_s=1000.0) == 10


def test_a_refused_connection_does_not_count_for_the_rate():
    limits = make(connection_rate_limit=1)
    assert let_in(limits, 100) == 2
    for hundredth in range(1, 100):
        assert limits.refusal("192.0.2.1", hundredth / 100)
    assert not limits.refusal("192.0.2.1", 1.01)


def test_the_rate_is_per_address_and_for_ipv6_per_64():
    limits = make(connection_rate_limit=1)
    assert let_in(limits, 9, "192.0.2.1") == 2
    assert let_in(limits, 9, "192.0.2.2") == 2
    assert let_in(limits, 9, "[2001:db8::1]") == 2
    assert let_in(limits, 9, "[2001:db8::ffff:1]") == 0
    assert let_in(limits, 9, "[2001:db8:0:1::1]") == 2
    assert let_in(limits, 9, "[::ffff:192.0.2.2]") == 0


def test_changed_options_apply_at_once():
    limits = make(connection_rate_limit=1)
    assert let_in(limits, 9) == 2
    limits.limits = dataclasses.replace(LIMITS, connection_rate_limit=100)
    assert let_in(limits, 9, now_s=0.02) == 2
    limits.limits = LIMITS
    assert let_in(limits, 1000, now_s=0.02) == 1000
    limits.limits = dataclasses.replace(LIMITS, connection_rate_limit=3)
    # What was before is forgotten.
    assert let_in(limits, 100, now_s=0.02) == 6
    limits.limits = dataclasses.replace(LIMITS, connection_rate_limit=1)
    assert let_in(limits, 100, now_s=100.0) == 2


def test_the_rate_counts_only_accepted_connections():
    limits = make(connection_rate_limit=1, connections_per_address_limit=1)
    assert let_in(limits, 9) == 1
    for _ in range(9):
        assert limits.refusal("192.0.2.1", 0.0) == "connections_per_address_limit is 1"
    limits.leave("192.0.2.1")
    assert not limits.refusal("192.0.2.1", 0.0)


def test_waiting_tls_handshakes_take_at_most_a_quarter_of_the_connections():
    limits = make(connection_limit=100)
    assert limits.handshake_refusal(24) == ""
    assert limits.handshake_refusal(25) == "25 TLS handshakes wait already, a quarter of connection_limit"
    limits.limits = dataclasses.replace(LIMITS, connection_limit=1)
    assert limits.handshake_refusal(0) == ""


@pytest.mark.parametrize(("options", "most"), [({}, 7), ({"connection_limit": 5}, 5), ({"connection_limit": 9}, 9)])
def test_without_the_option_the_capacity_is_the_limit(options, most):
    limits = make(**options)
    assert limits.capacity == DEFAULT_CONNECTION_LIMIT == 10_000
    limits.capacity = 7
    assert let_in(limits, 100) == most
    assert limits.refusal("192.0.2.9", 0.0) == f"connection_limit is {most}"
    limits.leave("192.0.2.1")
    assert not limits.refusal("192.0.2.9", 0.0)


def test_all_ipv6_addresses_of_a_network_of_64_bits_are_one_address_for_the_limit_of_connections():
    limits = make(connections_per_address_limit=3)
    addresses = [f"2001:db8:0:1::{number:x}" for number in range(1, 5)]
    assert [limits.refusal(address, 0.0) or limits.enter(address) for address in addresses] == [
        None,
        None,
        None,
        "connections_per_address_limit is 3",
    ]
    assert limits.refusal("2001:db8:0:2::1", 0.0) == ""
    limits.leave(addresses[0])
    assert limits.refusal(addresses[3], 0.0) == ""
    for address in addresses[1:3]:
        limits.leave(address)
    assert not limits._by_group


def test_idle_connections_give_way_where_the_limit_is_reached():
    limits, idle, asked = make(connection_limit=3, connections_per_address_limit=2), [], []

    def give_way(group):
        asked.append(group)
        found = next((each for each in idle if group in ("", each)), None)
        if found is not None:
            idle.remove(found)
        return found

    for address in ("192.0.2.1", "192.0.2.1"):
        assert limits.refusal(address, 0.0, give_way) == ""
        limits.enter(address)
    # One of another address would not help.
    idle.append("192.0.2.2")
    assert limits.refusal("192.0.2.1", 0.0, give_way) == "connections_per_address_limit is 2"
    idle.append("192.0.2.1")
    assert limits.refusal("192.0.2.1", 0.0, give_way) == ""
    limits.enter("192.0.2.1")
    limits.enter("192.0.2.2")
    assert limits.refusal("192.0.2.3", 0.0, give_way) == ""
    assert asked == ["192.0.2.1", "192.0.2.1", ""]
    assert idle == []
