"""Clients that ask for as much work as they can: whoever watches a stream meanwhile does not notice."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from bench import attacks
from rtmpd.protocol.command import encode_command
from tests.conftest import Server
from tests.integration.wire import VIDEO, Wire, inter, key

if TYPE_CHECKING:
    from collections.abc import Iterator

INI = "[live]\npublisher_grace_s = 0\n"
ATTACKERS = 12
ATTACK_S = 2.0
P99_S = 0.02
REST_S = 0.4

_names = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(INI, directory=tmp_path_factory.mktemp("load"), level="info")
    yield made
    assert made.stop() == 0


class Viewer:
    """A publisher and its player: measures how long each frame takes."""

    def __init__(self, server: Server) -> None:
        name = f"watched{next(_names)}"
        self._player = Wire(server).play(name)
        self._publisher = Wire(server).publish(name)
        self._number = 0
        self._pause = threading.Event()

    def delays(self, duration_s: float) -> list[float]:
        found = []
        ends_at = time.monotonic() + duration_s
        while time.monotonic() < ends_at:
            payload = inter(self._number) if self._number % 25 else key(self._number)
            sent_at = time.monotonic()
            self._publisher.send(VIDEO, self._number * 10, payload)
            self._player.until(lambda one, payload=payload: one.payload == payload)
            found.append(time.monotonic() - sent_at)
            self._player.seen.clear()
            self._publisher.available()
            self._number += 1
            self._pause.wait(0.01)
        return found

    def close(self) -> None:
        self._player.close()
        self._publisher.close()


def p99(delays: list[float]) -> float:
    return sorted(delays)[len(delays) * 99 // 100 - 1]


class Watched:
    """A stream that is watched before and during an attack: other tests may keep the machine busy."""

    def __init__(self, server: Server) -> None:
        self._viewer = Viewer(server)
        self._at_rest = max(self._viewer.delays(REST_S))

    def check(self, duration_s: float = ATTACK_S) -> None:
        """Assert that the stream is not delayed now."""
        assert p99(self._viewer.delays(duration_s)) < P99_S + 3 * max(0.01, self._at_rest)

    def close(self) -> None:
        self._viewer.close()


@pytest.fixture
def watched(server):
    made = Watched(server)
    yield made
    made.close()


@contextmanager
def attack(attackers: list[Wire], data: bytes) -> Iterator[None]:
    """Flood from a thread. One thread: this interpreter must have time for the viewer."""
    over = threading.Event()
    thread = threading.Thread(target=attacks.flood, args=([wire.sock for wire in attackers], data, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("data", [attacks.PINGS, attacks.EMPTY_MESSAGES], ids=["pings", "messages of one byte"])
def test_floods_of_tiny_messages_do_not_delay_others(server, opened, watched, data):
    attackers = [opened.enter_context(Wire(server)).publish(f"flood{next(_names)}") for _ in range(ATTACKERS)]
    with attack(attackers, data):
        watched.check()


def test_an_aggregate_of_very_many_messages_does_not_delay_others(server, opened, watched):
    attackers = [opened.enter_context(Wire(server)).publish(f"aggregate{next(_names)}") for _ in range(4)]
    for wire in attackers:
        wire.set_chunk_size(1 << 24)
    with attack(attackers, attacks.aggregate()):
        watched.check()


def connected(server, opened, app, tc_url):
    wire = opened.enter_context(Wire(server)).handshake()
    wire.call("connect", obj={"app": app, "tcUrl": tc_url})
    return wire


@pytest.mark.parametrize("names", [("play",), ("publish", "closeStream")])
def test_pipelined_commands_do_not_delay_others(server, opened, watched, names):
    attackers = [connected(server, opened, "live", "rtmp://host/live") for _ in range(ATTACKERS)]
    for number, wire in enumerate(attackers):
        wire.set_chunk_size(1 << 16)
        wire.write(attacks.commands(names, 480, f"{names[0]}{number}"))
    watched.check()


def test_long_urls_and_names_do_not_delay_others(server, opened, watched):
    attackers = [connected(server, opened, "", "rtmp://host/live" + "/" * 4000) for _ in range(ATTACKERS)]
    query = "&".join(f"{i}=%41" for i in range(500))
    for number, wire in enumerate(attackers):
        plays = [wire.frame(20, 0, encode_command("play", 0, None, f"n{number}_{turn}?{query}"), 3) for turn in range(12)]
        wire.write(b"".join(plays))
    watched.check(1)


def test_clients_with_half_a_message_cost_little_memory(server, opened):
    before = server.rss_mb()
    for number in range(40):
        wire = opened.enter_context(Wire(server))
        if number % 2:
            wire.play(f"waiting{number}")
        else:
            wire.handshake()
        wire.set_chunk_size(1 << 23)
        wire.sock.settimeout(0.2)
        with suppress(OSError):
            wire.write(attacks.HALF_MESSAGE)
    assert server.rss_mb() < before + 40
