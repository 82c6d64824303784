from __future__ import annotations

import logging
from types import SimpleNamespace

import gevent
import pytest
from gevent.event import Event

from rtmpd.config.loader import load_text
from rtmpd.daemon.supervision import Supervision
from rtmpd.hub import Hub

LIMIT_S = 10


class FakeNotifier:
    """Keeps the messages to systemd."""

    def __init__(self, watchdog_s=0.0):
        self.watchdog_s = watchdog_s
        self.sent = []
        self.fed = 0
        self.full = False

    def send(self, **fields):
        self.sent.append(fields)

    def flush(self):
        return not self.full

    def feed_watchdog(self):
        self.fed += 1

    def names(self):
        return [next(iter(fields)) for fields in self.sent]


@pytest.fixture
def make(monkeypatch):
    """Return a function that makes a `Supervision` with short pauses."""
    monkeypatch.setattr("rtmpd.daemon.supervision._STATUS_S", 0.002)
    monkeypatch.setattr("rtmpd.daemon.supervision._RELOAD_REST_S", 0.002)
    made = []

    def start(reload=lambda: "", notifier=None):
        one = Supervision(notifier or FakeNotifier(), Hub(load_text("")), reload)
        made.append(one)
        return one, one._notifier, one._hub

    yield start
    for one in made:
        one.stopping(0)
        if one._watchdog is not None:
            one._watchdog.kill()


def wait_until(condition):
    with gevent.Timeout(LIMIT_S):
        while not condition():
            gevent.sleep(0.001)


def stream(players, *, live=True):
    return SimpleNamespace(source=object() if live else None, players=set(range(players)))


# Status -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "text"),
    [
        ([], "0 streams, 0 players"),
        ([stream(1)], "1 stream, 1 player"),
        ([stream(40), stream(0), stream(0), stream(1, live=False)], "3 streams, 41 players"),
    ],
)
def test_the_status_counts_published_streams_and_all_players(make, streams, text):
    supervision, _, hub = make()
    hub.streams = dict(enumerate(streams))
    assert supervision.status() == text


def test_the_status_is_sent_only_when_it_changes(make):
    supervision, notifier, hub = make()
    supervision.start()
    gevent.sleep(0.03)
    assert notifier.sent == [{"READY": 1, "STATUS": "0 streams, 0 players"}]
    hub.streams["a"] = stream(2)
    wait_until(lambda: len(notifier.sent) == 2)
    gevent.sleep(0.03)
    assert notifier.sent[1:] == [{"STATUS": "1 stream, 2 players"}]


def test_while_the_queue_of_systemd_is_full_no_status_is_added(make):
    supervision, notifier, hub = make()
    supervision.start()
    notifier.full = True
    hub.streams["a"] = stream(2)
    gevent.sleep(0.03)
    assert len(notifier.sent) == 1
    notifier.full = False
    wait_until(lambda: notifier.sent[1:] == [{"STATUS": "1 stream, 2 players"}])


def test_a_stop_is_announced_with_its_time_limit(make):
    supervision, notifier, hub = make()
    supervision.start()
    supervision.stopping(25.5)
    hub.streams["a"] = stream(2)
    supervision.request_reload()
    gevent.sleep(0.03)
    assert notifier.sent[1:] == [{"STOPPING": 1, "STATUS": "stopping", "EXTEND_TIMEOUT_USEC": 25_500_000}]


# Watchdog ---------------------------------------------------------------------------------------------------------------


def test_the_watchdog_is_fed_twice_in_its_time_also_during_a_stop(make):
    supervision, notifier, _ = make(notifier=FakeNotifier(watchdog_s=0.02))
    supervision.start()
    wait_until(lambda: notifier.fed >= 3)
    supervision.stopping(1)
    before = notifier.fed
    wait_until(lambda: notifier.fed >= before + 3)


def test_without_a_watchdog_nothing_is_fed(make):
    supervision, notifier, _ = make()
    supervision.start()
    gevent.sleep(0.02)
    assert notifier.fed == 0


# Reloads ----------------------------------------------------------------------------------------------------------------


def test_start_and_end_of_a_reload_are_announced(make):
    supervision, notifier, _ = make()
    supervision.start()
    supervision.request_reload()
    wait_until(lambda: len(notifier.sent) == 3)
    reloading, ready = notifier.sent[1:]
    assert list(reloading) == ["RELOADING", "MONOTONIC_USEC"]
    assert reloading["MONOTONIC_USEC"] > 0
    assert ready == {"READY": 1, "STATUS": "0 streams, 0 players"}


def test_a_failed_reload_stays_in_the_status_until_one_succeeds(make):
    problems = ["rtmpd.ini:1: wrong", ""]
    supervision, notifier, hub = make(lambda: problems.pop(0))
    supervision.start()
    supervision.request_reload()
    wait_until(lambda: len(notifier.sent) == 3)
    assert notifier.sent[2] == {"READY": 1, "STATUS": "0 streams, 0 players; reload failed: rtmpd.ini:1: wrong"}
    hub.streams["a"] = stream(1)
    wait_until(lambda: notifier.sent[-1] == {"STATUS": "1 stream, 1 player; reload failed: rtmpd.ini:1: wrong"})
    supervision.request_reload()
    wait_until(lambda: notifier.sent[-1] == {"READY": 1, "STATUS": "1 stream, 1 player"})


def test_a_bug_in_a_reload_is_logged_and_counted_and_the_next_one_runs(make, caplog):
    caplog.set_level(logging.INFO, "rtmpd")
    outcomes = [RuntimeError("a bug"), None]

    def reload():
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome
        return ""

    supervision, notifier, hub = make(reload)
    supervision.start()
    supervision.request_reload()
    wait_until(lambda: len(notifier.sent) == 3)
    assert notifier.sent[2]["STATUS"].endswith("reload failed: internal error: RuntimeError")
    assert hub.counters["internal_errors"] == 1
    assert "a bug" in caplog.text
    supervision.request_reload()
    wait_until(lambda: notifier.names()[3:] == ["RELOADING", "READY"])


def test_requests_during_a_reload_lead_to_one_more_reload(make):
    going, may_end, runs = Event(), Event(), []

    def reload():
        runs.append(1)
        assert not going.is_set(), "two at a time"
        going.set()
        may_end.wait()
        going.clear()
        return ""

    supervision, notifier, _ = make(reload)
    supervision.start()
    supervision.request_reload()
    assert going.wait(LIMIT_S)
    for _ in range(100):
        gevent.spawn(supervision.request_reload)
    gevent.sleep(0.02)
    assert len(runs) == 1
    may_end.set()
    wait_until(lambda: len(runs) == 2)
    gevent.sleep(0.03)
    assert len(runs) == 2
    assert notifier.names() == ["READY", "RELOADING", "READY", "RELOADING", "READY"]


def test_a_reload_requested_before_the_start_runs_after_it(make):
    runs = []
    supervision, notifier, _ = make(lambda: runs.append(1) or "")
    supervision.request_reload()
    gevent.sleep(0.02)
    assert not runs
    supervision.start()
    wait_until(lambda: runs)
    assert notifier.names()[:2] == ["READY", "RELOADING"]
