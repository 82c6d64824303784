"""Look-ups of host names: bounded, one for each name at a time, with a memory of addresses that have worked."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter

import gevent
import pytest

from rtmpd.net import resolver as module
from rtmpd.net.resolver import Resolver, look_up

LIMIT_S = 10
GOOD = ("192.0.2.1", 1935)
OTHER = ("2001:db8::1", 1935, 0, 0)


class Names:
    """A system's resolver: names that begin with ``hang`` are answered when the test allows it."""

    def __init__(self) -> None:
        self.answers: list[list[tuple]] = []
        self.calls: Counter[str] = Counter()
        self.go = threading.Event()

    def look_up(self, host, port):
        self.calls[host] += 1
        if host.startswith("hang"):
            self.go.wait(60)
        if host.endswith("unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.answers.pop(0) if self.answers else [GOOD]


@pytest.fixture
def names():
    made = Names()
    yield made
    made.go.set()


@pytest.fixture
def counted():
    return Counter()


@pytest.fixture
def resolver(names, counted):
    return Resolver(lambda name: counted.update([name]), names.look_up, 20)


@pytest.fixture(autouse=True)
def limited():
    with gevent.Timeout(LIMIT_S, AssertionError("a look-up waits for another")):
        yield


def test_names_that_hang_delay_no_other_name(resolver, names):
    hanging = [gevent.spawn(resolver.resolve, f"hang{number}", 1935, 60) for number in range(10)]
    gevent.sleep(0)
    assert list(resolver.resolve("good", 1935, 60)) == [GOOD]
    assert not any(each.ready() for each in hanging)
    gevent.killall(hanging)


def test_a_name_is_looked_up_once_at_a_time_for_all_callers(resolver, names):
    calls = [gevent.spawn(resolver.resolve, "Hang" if number % 2 else "hang", 1935, 60) for number in range(50)]
    gevent.sleep(0)
    names.go.set()
    assert [call.get() for call in calls] == [[GOOD]] * 50
    assert names.calls == {"hang": 1}
    # The answer is not kept longer than that.
    resolver.resolve("hang", 1935, 60)
    assert names.calls == {"hang": 2}


def test_a_caller_waits_no_longer_than_its_limit_and_a_late_answer_is_for_the_next(resolver, names, counted):
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"the name could not be looked up within 0\.05 s"):
            resolver.resolve("hang", 1935, 0.05)
    assert counted == {"lookup_failures": 3}
    look = resolver._look_ups["hang", 1935]
    names.go.set()
    look.ended.wait()
    assert list(resolver.resolve("hang", 1935, 60)) == [GOOD]
    assert names.calls == {"hang": 1}
    assert not resolver._look_ups


def test_a_late_answer_that_is_old_is_not_used(resolver, names, monkeypatch):
    with pytest.raises(TimeoutError):
        resolver.resolve("hang", 1935, 0.05)
    look = resolver._look_ups["hang", 1935]
    names.go.set()
    look.ended.wait()
    monkeypatch.setattr(module, "_LATE_S", -1)
    resolver.resolve("hang", 1935, 60)
    assert names.calls == {"hang": 2}


def test_look_ups_above_the_number_of_threads_wait_and_are_forgotten_without_a_caller(names):
    resolver = Resolver(look_up=names.look_up, threads=2)
    hanging = [gevent.spawn(resolver.resolve, f"hang{number}", 1935, 60) for number in range(2)]
    gevent.sleep(0)
    for number in range(100):
        with pytest.raises(TimeoutError):
            resolver.resolve(f"good{number}", 1935, 0.001)
    assert (len(resolver._look_ups), len(resolver._waiting)) == (2, 0)
    waiting = gevent.spawn(resolver.resolve, "good", 1935, 60)
    gevent.sleep(0)
    names.go.set()
    gevent.joinall([*hanging, waiting], raise_error=True)
    assert set(names.calls) == {"hang0", "hang1", "good"}
    assert (resolver._free, resolver._look_ups) == (2, {})


def test_addresses_that_worked_are_used_while_a_name_can_not_be_looked_up(resolver, caplog, counted):
    caplog.set_level(logging.INFO)
    for address in (GOOD, OTHER):
        resolver.worked("unknown", 1935, address)
    for _ in range(3):
        assert list(resolver.resolve("unknown", 1935, 60)) == [OTHER, GOOD]
    assert counted == {"lookup_failures": 3}
    text = (
        "unknown can't be looked up: Name or service not known; its last addresses are used meanwhile: 2001:db8::1, 192.0.2.1"
    )
    assert [record.getMessage() for record in caplog.records] == [text]
    with pytest.raises(socket.gaierror):
        resolver.resolve("unknown", 443, 60)


def test_addresses_that_worked_are_used_after_half_the_time_and_at_once_while_the_look_up_hangs(resolver, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    resolver.worked("hang", 1935, GOOD)
    assert list(resolver.resolve("hang", 1935, 0.1)) == [GOOD]
    assert "hang can't be looked up: no answer within 0.05 s" in caplog.text
    monkeypatch.setattr(module, "_HANGS_S", 0)
    assert list(resolver.resolve("hang", 1935, 3600)) == [GOOD]


def test_a_fresh_answer_replaces_addresses_that_worked_before(resolver, names, caplog):
    caplog.set_level(logging.INFO)
    names.answers = [[OTHER, GOOD], [OTHER]]
    resolver.worked("hang", 1935, GOOD)
    resolver.resolve("hang", 1935, 0.01)
    names.go.set()
    assert list(resolver.resolve("hang", 1935, 60)) == [OTHER, GOOD]
    assert resolver._worked == {("hang", 1935): [GOOD]}
    assert list(resolver.resolve("hang", 1935, 60)) == [OTHER]
    assert resolver._worked == {}
    # A new failure would be logged again.
    assert not resolver._reported


def test_an_answer_without_addresses_is_none(resolver, names):
    names.answers = [[]]
    with pytest.raises(socket.gaierror):
        resolver.resolve("empty", 1935, 60)


def test_what_is_remembered_is_bounded(resolver, names):
    for number in range(1000):
        resolver.worked(f"name{number}", 1935, GOOD)
    for number in range(100):
        resolver.worked("name999", 1935, (f"192.0.2.{number}", 1935))
    assert len(resolver._worked) == 256
    assert [address[0] for address in resolver._worked["name999", 1935]] == [f"192.0.2.{number}" for number in (99, 98, 97, 96)]


def test_late_answers_are_bounded(names, monkeypatch):
    monkeypatch.setattr(module, "_NAMES", 3)
    resolver = Resolver(look_up=names.look_up, threads=20)
    for number in range(20):
        with pytest.raises(TimeoutError):
            resolver.resolve(f"hang{number}", 1935, 0.001)
    looks = list(resolver._look_ups.values())
    names.go.set()
    for look in looks:
        look.ended.wait()
    assert len(resolver._look_ups) == 3


def test_a_failure_that_no_caller_waits_for_is_forgotten(resolver, names):
    with pytest.raises(TimeoutError):
        resolver.resolve("hang-unknown", 1935, 0.001)
    look = resolver._look_ups["hang-unknown", 1935]
    names.go.set()
    look.ended.wait()
    assert resolver._look_ups == {}


def test_numbers_need_no_look_up(resolver, names):
    assert list(resolver.resolve("192.0.2.1", 1935, 60)) == [GOOD]
    assert list(resolver.resolve("2001:db8::1", 1935, 60)) == [OTHER]
    resolver.worked("192.0.2.1", 1935, GOOD)
    assert (names.calls, resolver._worked) == ({}, {})


def test_the_families_take_turns(monkeypatch):
    def answer(*_, **__):
        six = [(socket.AF_INET6, 1, 6, "", (f"2001:db8::{number}", 1935, 0, 0)) for number in (1, 2, 3)]
        return [*six, *((socket.AF_INET, 1, 6, "", (f"192.0.2.{number}", 1935)) for number in (1, 2, 1))]

    monkeypatch.setattr(module.socket, "getaddrinfo", answer)
    found = [address[0] for address in look_up("a", 1935)]
    assert found == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"]


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", "\udc80"])
def test_a_name_that_can_not_be_one_is_unknown(resolver, names, host):
    with pytest.raises(OSError, match="Not a valid host name"):
        resolver.resolve(host, 1935, 60)
    assert not names.calls
