"""The service: who is asked for, reloads, what is told of real events."""

from __future__ import annotations

import json
import logging
import os
import sys

import gevent
import pytest

from rtmpd.config.loader import load_text
from rtmpd.events import EventType
from rtmpd.hub import Hub
from rtmpd.services.hooks import service as module
from rtmpd.services.hooks.deliveries import Stdio
from rtmpd.services.hooks.service import Hooks
from tests.unit.services.hooks.fakes import wait_for, within

LIMIT_S = 10


@pytest.fixture
def make(monkeypatch):
    """Return a function that makes the service with an INI, on a hub of its own."""
    made = []
    read_end, write_end = os.pipe()
    writers = []

    def writer(options, counters):
        writers.append(Stdio(options, counters, write_end))
        return writers[-1]

    monkeypatch.setattr(module, "Stdio", writer)

    def start(ini=""):
        hub = Hub(load_text("[hooks]\n" + ini))
        hooks = Hooks(hub, Hooks.select(hub.config))
        hooks.start()
        hooks.lines = read_end
        made.append(hooks)
        return hub, hooks

    yield start
    for hooks in made:
        hooks.stop(1)
    os.close(read_end)
    # A thread that is stuck would go on with a descriptor that is somebody else's by then.
    for each in writers:
        each._thread.join(LIMIT_S)
        assert not each._thread.is_alive()
    os.close(write_end)


@pytest.fixture
def script(tmp_path):
    """A program that appends what it is told to a file, and what that holds."""
    path = tmp_path / "hook"
    path.write_text(f'#!/bin/sh\necho "$1 $RTMP_EVENT_TYPE $RTMP_ID" >> {tmp_path}/told\n')
    path.chmod(0o755)
    told = tmp_path / "told"
    told.touch()
    return path, lambda: told.read_text().splitlines()


def reload(hub, hooks, ini):
    config = load_text("[hooks]\n" + ini)
    hub.reload(config)
    hooks.reload(Hooks.select(config))


def test_without_hooks_no_event_is_made(make):
    hub, _ = make()
    assert not any(hub.bus.wanted(kind) for kind in EventType)


def test_only_events_with_a_hook_are_made(make, script):
    hub, _ = make(f"hook_scripts = publish_*={script[0]}, play_start={script[0]}\n")
    assert {kind.value for kind in EventType if hub.bus.wanted(kind)} == {"publish_start", "publish_stop", "play_start"}


def test_standard_output_gets_every_event(make):
    hub, _ = make("hook_stdio_format = json\n")
    assert all(hub.bus.wanted(kind) for kind in EventType)


def test_an_event_reaches_all_that_asked_for_it(make, script):
    path, told = script
    hub, hooks = make(f"hook_scripts = publish_start={path} a, publish_*={path} b\nhook_stdio_format = json\n")
    hub.bus.emit(EventType.PUBLISH_START, {"id": 1}, stream_key="live/a")
    wait_for(lambda: hub.counters["hook_deliveries"] == 3)
    assert sorted(told()) == ["a publish_start 1", "b publish_start 1"]
    assert json.loads(os.read(hooks.lines, 65536).removeprefix(b"RTMP_EVENT: "))["data"] == {"id": 1}
    assert hub.gauges["hooks_waiting"]() == 0


def test_options_with_the_same_target_are_one_destination(make, script):
    path, told = script
    hub, _ = make(f"hook_scripts = publish_start={path} x, publish_stop={path} x, *={path} x\n")
    for number in range(5):
        hub.bus.emit(EventType.PUBLISH_START, {"id": number}, stream_key="live/a")
        hub.bus.emit(EventType.PUBLISH_STOP, {"id": number}, stream_key="live/a")
    wait_for(lambda: hub.counters["hook_deliveries"] == 10)
    assert told() == [f"x {kind} {number}" for number in range(5) for kind in ("publish_start", "publish_stop")]


def test_a_reload_acts_at_once(make, script, caplog):
    caplog.set_level(logging.INFO)
    path, told = script
    hub, hooks = make()
    hub.bus.emit(EventType.PUBLISH_START, {"id": 1})
    reload(hub, hooks, f"hook_scripts = publish_start={path} a\n")
    hub.bus.emit(EventType.PUBLISH_START, {"id": 2})
    reload(hub, hooks, f"hook_scripts = publish_stop={path} a\nhook_stdio_format = env\n")
    hub.bus.emit(EventType.PUBLISH_START, {"id": 3})
    hub.bus.emit(EventType.PUBLISH_STOP, {"id": 4})
    reload(hub, hooks, "")
    hub.bus.emit(EventType.PUBLISH_STOP, {"id": 5})
    wait_for(lambda: hub.counters["hook_deliveries"] >= 3)
    assert "RTMP_ID=4" in os.read(hooks.lines, 65536).decode()
    assert [record.getMessage() for record in caplog.records if record.getMessage().startswith("hooks: ")] == [
        f"hooks: {path}",
        f"hooks: {path}, standard output (env)",
        "hooks: none",
    ]
    assert not any(hub.bus.wanted(kind) for kind in EventType)
    assert "a publish_start 3" not in told()


def test_a_reload_changes_limits_of_what_waits(make, tmp_path):
    path = tmp_path / "slow"
    path.write_text("#!/bin/sh\nsleep 60\n")
    path.chmod(0o755)
    hub, hooks = make(f"hook_scripts = *={path}\nhook_queue_limit = 2\n")
    for number in range(5):
        hub.bus.emit(EventType.PUBLISH_START, {"id": number}, stream_key=f"live/{number}")
    assert hub.counters["hook_drops"] == 3
    reload(hub, hooks, f"hook_scripts = *={path}\nhook_queue_limit = 5\nhook_concurrency = 3\n")
    for number in range(5, 10):
        hub.bus.emit(EventType.PUBLISH_START, {"id": number}, stream_key=f"live/{number}")
    assert hub.counters["hook_drops"] == 5
    assert hub.gauges["hooks_waiting"]() == 5


def test_a_stop_delivers_what_is_queued(make, script):
    path, told = script
    hub, hooks = make(f"hook_scripts = *={path} x\nhook_stdio_format = json\n")
    for number in range(20):
        hub.bus.emit(EventType.PUBLISH_START, {"id": number}, stream_key="live/a")
    with within():
        hooks.stop(LIMIT_S)
    assert told() == [f"x publish_start {number}" for number in range(20)]
    assert os.read(hooks.lines, 65536).count(b"\n") == 20
    assert hub.counters["hook_deliveries"] == 40
    hub.bus.emit(EventType.PUBLISH_START, {"id": 99})
    assert hub.counters["hook_drops"] == 0


def test_a_service_that_never_began_stops():
    with within(1):
        Hooks(Hub(load_text("")), load_text("").hooks).stop(5)


def test_an_emitter_never_waits(make, tmp_path):
    path = tmp_path / "slow"
    path.write_text("#!/bin/sh\nsleep 60\n")
    path.chmod(0o755)
    hub, _ = make(
        f"hook_scripts = *={path}, *=/no/such/program\nhook_webhooks = *=http://127.0.0.1:9/\nhook_stdio_format = env\n"
    )
    switched = []
    other = gevent.spawn(switched.append, 1)
    for number in range(3000):
        hub.bus.emit(EventType.SUBSCRIBER_COUNT, {"count": number}, stream_key=f"live/{number % 50}")
    assert not switched
    other.join()
    assert hub.counters["hook_drops"] > 3000


def test_secrets_reach_no_log_and_no_event(make, caplog):
    caplog.set_level(logging.DEBUG)
    hub, _ = make(
        "hook_webhooks = *=http://user:hunter2@127.0.0.1:9/x?k=hunter2\nhook_secret = hunter2\nhook_retries = 1\n"
        f"hook_scripts = *={sys.executable} hunter2\nhook_retry_limit_s = 0.1\n"
    )
    hub.bus.emit(EventType.PUBLISH_START, {"id": 1}, stream_key="live/a")
    wait_for(lambda: hub.counters["hook_failures"] == 2)
    lines = [record.getMessage() for record in caplog.records if "can't open file" not in record.getMessage()]
    assert any("http://127.0.0.1:9/x" in line for line in lines)
    assert not any("hunter2" in line for line in lines)
