"""Hooks of a real server: every start has its stop, whatever connections do, and no stream waits for a hook."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from rtmpd.config.hook_targets import EVENT_NAMES
from tests.conftest import ROOT
from tests.integration.beside import Bystander, wait_until
from tests.integration.wire import AVC_HEADER, VIDEO, Wire, code_of, key

PAIRS = {
    "connection_accept": "connection_close",
    "stream_create": "stream_delete",
    "publish_start": "publish_stop",
    "play_start": "play_stop",
}


class Events:
    """Standard output of a server, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")

    def all(self) -> list[dict]:
        lines = self.path.read_text().splitlines()
        return [json.loads(line.removeprefix("RTMP_EVENT: ")) for line in lines if line.startswith("RTMP_EVENT: ")]

    def of(self, kind: str) -> list[dict]:
        return [event for event in self.all() if event["type"] == kind]

    def wait(self, kind: str, count: int = 1) -> list[dict]:
        wait_until(lambda: len(self.of(kind)) >= count, f"{count} x {kind}")
        return self.of(kind)


@pytest.fixture
def events(tmp_path):
    made = Events(tmp_path / "events")
    yield made
    made.file.close()


class Hooked:
    """A web server that answers hooks as a test says."""

    def __init__(self, answer=None) -> None:
        got = self.got = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                with contextlib.suppress(OSError):
                    (answer or self.ok)()

            def ok(self) -> None:
                self.send_response(204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web():
    made = []

    def start(answer=None) -> Hooked:
        made.append(Hooked(answer))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def script(tmp_path):
    """Return a function that writes a shell script and gives its path."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return write


# Starts and stops -------------------------------------------------------------------------------------------------------


def name_of(event: dict) -> tuple:
    """What a start and its stop have in common."""
    kind = event["type"].partition("_")[0]
    if kind == "connection":
        return kind, event["conn_id"]
    if kind == "stream":
        return kind, event["stream_key"]
    return kind, event["stream_key"], event["conn_id"], event["data"]["id"]


@functools.cache
def documented() -> dict[str, set[str]]:
    """The names that docs/hooks.rst gives to the data of each event."""
    text = (ROOT / "docs" / "hooks.rst").read_text()
    rows = re.findall(r"^   \* - ``(\w+)``\n     -(.*)\n", text, re.MULTILINE)
    return {event: set(re.findall(r"\w+", data)) for event, data in rows}


def check_pairs(found: list[dict]) -> Counter:
    """Assert that each start has one stop behind it, that says what a stop has to say, and no stop lacks its start."""
    stops = {stop: start for start, stop in PAIRS.items()}
    open_now: set[tuple] = set()
    counts: Counter = Counter()
    for event in found:
        counts[event["type"]] += 1
        assert set(event.get("data", {})) <= documented()[event["type"]], event
        if event["type"] in PAIRS:
            assert name_of(event) not in open_now, event
            open_now.add(name_of(event))
        elif event["type"] in stops:
            assert name_of(event) in open_now, event
            open_now.discard(name_of(event))
            data = event["data"]
            assert data["duration_s"] >= 0
            assert any(name.startswith("bytes") for name in data)
            if event["type"] != "stream_delete":
                assert data["reason"]
                assert data["remote_addr"].startswith("127.")
    assert not open_now
    for start, stop in PAIRS.items():
        assert counts[start] == counts[stop]
    return counts


def reset(wire: Wire) -> None:
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


def garbage(wire: Wire) -> None:
    wire.write(os.urandom(3000))


ENDS = {
    "close": Wire.close,
    "reset": reset,
    "garbage": garbage,
    "shutdown": lambda wire: wire.sock.shutdown(socket.SHUT_WR),
    "deleteStream": lambda wire: wire.command("deleteStream", wire.msid, tid=0),
    "closeStream": lambda wire: wire.command("closeStream", tid=0, msid=wire.msid),
    "FCUnpublish": lambda wire: wire.command("FCUnpublish", "x", tid=0),
    "another publish": lambda wire: wire.command("publish", "another", "live", tid=0, msid=wire.msid),
    "another play": lambda wire: wire.command("play", "another", tid=0, msid=wire.msid),
    "play instead": lambda wire: wire.command("play", "r1", tid=0, msid=wire.msid),
    "publish nothing": lambda wire: wire.command("publish", False, tid=0, msid=wire.msid),
    "play nothing": lambda wire: wire.command("play", False, tid=0, msid=wire.msid),
    "stay": lambda _: None,
}


def begin(server, rng: random.Random) -> Wire | None:
    """Make a client that does something."""
    wire = Wire(server, timeout_s=5)
    name = f"r{rng.randrange(20)}"
    match rng.choice(("nothing", "half a handshake", "handshake", "connect", "publish", "publish", "play", "play", "both")):
        case "half a handshake":
            wire.write(b"\x03" + bytes(rng.randrange(1500)))
        case "handshake":
            wire.handshake()
        case "connect":
            wire.connect()
        case "publish":
            wire.connect()
            wire.command("publish", name, "live", msid=wire.create_stream())
            wire.send(VIDEO, 0, AVC_HEADER)
            wire.send(VIDEO, 0, key(1))
        case "play":
            wire.connect()
            wire.command("play", name, -2000, msid=wire.create_stream())
        case "both":
            wire.connect()
            for command in ("play", "publish", "play"):
                wire.command(command, f"r{rng.randrange(20)}", msid=wire.create_stream())
    return wire


@pytest.mark.parametrize(("grace_s", "drain_s"), [(0, 2), (1, 2), (1, 0)])
def test_every_start_has_its_stop_whatever_connections_do(server, events, grace_s, drain_s):
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    running = server(
        f"[publish]\npublisher_grace_s = {grace_s}\npublisher_takeover_s = 0.5\n[server]\ndrain_timeout_s = {drain_s}\n",
        "--hook-stdio-format",
        "json",
        level="info",
        stdout=events.file,
    )
    wires: list[Wire] = []
    ended = Counter()
    with contextlib.suppress(BrokenPipeError):
        for _ in range(250):
            with contextlib.suppress(OSError, AssertionError):
                wires.append(begin(running, rng))
            if len(wires) > 15 or rng.random() < 0.3:
                wire = wires.pop(rng.randrange(len(wires)))
                end = rng.choice(sorted(ENDS))
                ended[end] += 1
                with contextlib.suppress(OSError):
                    ENDS[end](wire)
                if end not in ("close", "reset"):
                    wires.append(wire)
    assert len(ended) > 5, seed
    # Some are still open when the server gets the signal to stop.
    running.process.send_signal(signal.SIGTERM)
    running.wait_for_line(r"INFO +stopped;")
    for wire in wires:
        wire.close()
    running.stop()
    counts = check_pairs(events.all())
    assert counts["connection_accept"] >= 200, seed
    assert counts["publish_start"] >= 15, seed
    assert counts["play_start"] >= 15, seed
    took_over = sum(event["data"]["reason"].startswith("another publisher took over, ") for event in events.of("publish_stop"))
    print(f"seed {seed}: {dict(counts)}, {took_over} taken over, ends {dict(ended)}")


def test_a_takeover_has_a_stop_and_a_start_event(server, events, opened):
    running = server("[publish]\npublisher_takeover_s = 0.5\n", "--hook-stdio-format", "json", stdout=events.file)
    opened.enter_context(Wire(running).publish("a"))

    def take_over() -> bool:
        second = opened.enter_context(Wire(running))
        second.connect()
        second.command("publish", "a", "live", msid=second.create_stream())
        return code_of(second.wait_for(lambda command: command.name == "onStatus")) == "NetStream.Publish.Start"

    wait_until(take_over, "the first has been silent for long enough")
    events.wait("publish_start", 2)
    found = [(event["type"], event.get("data", {}).get("reason")) for event in events.all() if "stream_key" in event]
    # The stream stays live.
    assert found[:6] == [
        ("stream_create", None),
        ("publish_start", None),
        ("live_start", None),
        ("source_active", None),
        ("publish_stop", "another publisher took over"),
        ("publish_start", None),
    ]


def test_the_events_of_a_connection_are_in_order(server, events):
    running = server("[publish]\npublisher_grace_s = 0\n", "--hook-stdio-format", "json", stdout=events.file)
    with Wire(running) as wire:
        wire.publish("a?token=hunter2")
        wire.send(VIDEO, 0, AVC_HEADER)
        wire.send(VIDEO, 0, key(1))
        with Wire(running) as other:
            other.play("a?token=hunter2")
            events.wait("play_start")
        events.wait("play_stop")
    events.wait("connection_close", 2)
    events.wait("stream_delete")
    found = events.all()
    check_pairs(found)
    assert [event["type"] for event in found if event.get("stream_key") == "live/a"] == [
        "stream_create",
        "publish_start",
        "live_start",
        "source_active",
        "codec_detected",
        "subscriber_count",
        "play_start",
        "play_stop",
        "subscriber_count",
        "publish_stop",
        "live_stop",
        "stream_delete",
    ]
    assert [event["type"] for event in found if event.get("conn_id") == "1"] == [
        "connection_accept",
        "handshake_complete",
        "publish_start",
        "live_start",
        "source_active",
        "publish_stop",
        "connection_close",
    ]
    assert "hunter2" not in events.path.read_text()
    assert all(abs(event["timestamp"] - time.time()) < 60 for event in found)


def test_the_page_lists_every_event():
    assert tuple(documented()) == EVENT_NAMES


# Each kind, in a server -------------------------------------------------------------------------------------------------


def test_scripts_webhooks_and_lines_have_the_same_content(server, events, web, script, tmp_path):
    site = web()
    path = script("hook", f'echo "$RTMP_EVENT_TYPE $RTMP_STREAM_KEY $RTMP_ID" >> {tmp_path}/told')
    running = server(
        f"[publish]\npublisher_grace_s = 0\n[hooks]\nhook_scripts = publish_*={path}\nhook_webhooks = publish_*={site.url}\n"
        "hook_stdio_format = env\n",
        stdout=events.file,
    )
    with Wire(running) as wire:
        wire.publish("a")
    wait_until(lambda: len(site.got) == 2, "two posts")
    wait_until(lambda: (tmp_path / "told").exists() and len((tmp_path / "told").read_text().splitlines()) == 2, "two runs")
    assert (tmp_path / "told").read_text().splitlines() == ["publish_start live/a 1", "publish_stop live/a 1"]
    assert [event["type"] for event in site.got] == ["publish_start", "publish_stop"]
    wait_until(lambda: "RTMP_EVENT_TYPE=publish_stop\n" in events.path.read_text(), "lines")
    assert "\n\n# RTMP Event: publish_stop\nRTMP_EVENT_TYPE=publish_stop\nRTMP_TIMESTAMP=" in events.path.read_text()


def test_a_reload_adds_and_removes_hooks(server, web, tmp_path):
    site = web()
    running = server("[publish]\npublisher_grace_s = 0\n")
    ini = tmp_path / "rtmpd.ini"
    before = ini.read_text()
    ini.write_text(f"{before}[hooks]\nhook_webhooks = publish_start={site.url}\n")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line(r"hooks: http://127\.0\.0\.1")
    with Wire(running) as wire:
        wire.publish("a")
        wait_until(lambda: len(site.got) == 1, "a post")
    ini.write_text(before)
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line(r"hooks: none")
    with Wire(running) as wire:
        wire.publish("b")
    running.wait_for_line(r"stopped publishing live/b")
    assert len(site.got) == 1


def test_a_stop_lets_hooks_end(server, script, tmp_path, web):
    site = web()
    path = script("slow", f'sleep 1; echo "$RTMP_EVENT_TYPE" >> {tmp_path}/told')
    running = server(f"[hooks]\nhook_scripts = publish_*={path}, *_close={path}\nhook_webhooks = *_delete={site.url}\n")
    Wire(running).publish("a")
    assert running.stop() == 0
    assert sorted((tmp_path / "told").read_text().split()) == ["connection_close", "publish_start", "publish_stop"]
    assert [event["type"] for event in site.got] == ["stream_delete"]


def test_a_stop_does_not_wait_without_end_for_a_hook(server, script, tmp_path):
    path = script("stubborn", f"trap '' TERM; echo $$ >> {tmp_path}/pids; while :; do sleep 1; done")
    running = server(f"[hooks]\nhook_scripts = publish_start={path}\n")
    Wire(running).publish("a")
    wait_until((tmp_path / "pids").exists, "the script runs")
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    running.wait_for_line(r"hook .*/stubborn: 1 events discarded at shutdown")
    running.wait_for_line(r" stopped;")
    assert running.stop() == 0
    assert time.monotonic() - began < 14
    for pid in (tmp_path / "pids").read_text().split():
        wait_until(lambda pid=pid: not is_running(pid), "it is gone")


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# No stream waits ------------------------------------------------------------------------------------------------------


def test_bad_hooks_cost_streams_nothing(server, web, script, events):
    hang = threading.Event()
    never = web(hang.wait)
    bad = script("bad", "trap '' TERM; sleep 60 & while :; do sleep 1; done")
    loud = script("loud", "exec yes")
    running = server(
        "[hooks]\nhook_timeout_s = 1\nhook_retries = 1\nhook_queue_limit = 20\n"
        f"hook_scripts = *={bad}, *={loud}, *=/no/such/hook\n"
        f"hook_webhooks = *={never.url}, *=http://127.0.0.1:9/gone, *=http://no-such-host.invalid/\n",
        "--hook-stdio-format",
        "json",
        level="info",
        stdout=subprocess.PIPE,  # is not read
    )
    beside = Bystander(running)
    try:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            with Wire(running) as wire:
                wire.publish("a")
            with Wire(running) as wire:
                wire.play("bystander")
            beside.check()
        for line in (
            r"hook .*/bad: .* the program ran for more than 1 s \(hook_timeout_s\) and was killed",
            r"hook .*/loud: .* the program ran for more than 1 s \(hook_timeout_s\) and was killed: \"y \|",
            r"hook /no/such/hook: .*: the program can't be started: No such file or directory",
            r"hook http://127\.0\.0\.1:\d+/: .*: timed out after 1 s .*\(2 attempts\)",
            r"hook http://127\.0\.0\.1:9/gone: .*: Connection refused \(2 attempts\)",
            r"hook http://no-such-host\.invalid/: .*: the host name .*",
            r"hook \S+ is too slow: 20 events are queued \(hook_queue_limit\), \w+ of \S+ discarded; \d+ discarded so far",
        ):
            running.wait_for_line(line)
        beside.check()
    finally:
        beside.close()
        hang.set()
    log = "\n".join(running.log())
    # Lines are rate-limited, whatever goes wrong how often.
    assert len(re.findall(r" hook ", log)) < 40
    running.process.send_signal(signal.SIGTERM)
    counted = running.wait_for_line(r"stopped; counted: (.*)")[1]
    for name in ("hook_drops", "hook_failures", "hook_timeouts", "hook_retries"):
        assert int(re.search(rf"{name} (\d+)", counted)[1]) > 0
    running.process.stdout.close()
