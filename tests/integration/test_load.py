"""Clients that ask for as much work as they can: whoever watches a stream meanwhile does not notice."""

from __future__ import annotations

import itertools
import select
import threading
import time
from contextlib import ExitStack

import pytest

from rtmpd.protocol import message
from rtmpd.protocol.command import encode_command
from rtmpd.protocol.message import UserControlType
from tests.conftest import Server
from tests.integration.wire import VIDEO, Wire, inter, key

INI = "[live]\npublisher_grace_s = 0\n"
ATTACKERS = 12
ATTACK_S = 2.0
P99_S = 0.05
"""20 ms, and a margin for a machine that is busy with other tests."""

_viewers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(INI, directory=tmp_path_factory.mktemp("load"), level="info")
    yield made
    assert made.stop() == 0


class Viewer:
    """A publisher and its player: measures how long each frame takes."""

    def __init__(self, server: Server) -> None:
        name = f"watched{next(_viewers)}"
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


def flood(attackers: list[Wire], data: bytes, over: threading.Event) -> None:
    """Send *data* again and again on all connections, and discard what comes."""
    open_ones = {wire.sock: memoryview(data) for wire in attackers}
    for sock in open_ones:
        sock.setblocking(False)
    while open_ones and not over.is_set():
        readable, writable, _ = select.select(open_ones, open_ones, [], 0.1)
        for sock in {*readable, *writable}:
            try:
                if sock in readable and not sock.recv(1 << 16):
                    del open_ones[sock]
                elif sock in writable:
                    sent = sock.send(open_ones[sock][: 1 << 16])
                    open_ones[sock] = open_ones[sock][sent:] or memoryview(data)
            except BlockingIOError:
                continue
            except OSError:
                del open_ones[sock]
        over.wait(0.001)


def under_attack(server: Server, attackers: list[Wire], data: bytes) -> list[float]:
    """Return the delays of a stream that is watched during an attack."""
    viewer = Viewer(server)
    over = threading.Event()
    # One thread: this interpreter must have time for the viewer.
    thread = threading.Thread(target=flood, args=(attackers, data, over), daemon=True)
    try:
        thread.start()
        return viewer.delays(ATTACK_S)
    finally:
        over.set()
        thread.join()
        viewer.close()


PINGS = message.user_control(UserControlType.PING_REQUEST, 1) * 20_000
EMPTY = bytes((7, *bytes(6), 30, *bytes(4))) + b"\xc7" * 300_000
"""A message of an unknown type without payload, and type 3 headers that repeat it."""


@pytest.mark.parametrize("data", [PINGS, EMPTY], ids=["pings", "messages of one byte"])
def test_floods_of_tiny_messages_do_not_delay_others(server, opened, data):
    attackers = [opened.enter_context(Wire(server)).publish(f"flood{number}") for number in range(ATTACKERS)]
    assert p99(under_attack(server, attackers, data)) < P99_S


def test_an_aggregate_of_very_many_messages_does_not_delay_others(server, opened):
    attackers = [opened.enter_context(Wire(server)).publish(f"aggregate{number}") for number in range(4)]
    for wire in attackers:
        wire.set_chunk_size(1 << 24)
    tags = (b"\x1f" + bytes(10) + bytes(4)) * 250_000
    assert p99(under_attack(server, attackers, attackers[0].frame(22, 0, tags))) < P99_S


@pytest.mark.parametrize("names", [("play",), ("publish", "closeStream")])
def test_pipelined_commands_do_not_delay_others(server, opened, names):
    attackers = []
    for _ in range(ATTACKERS):
        wire = opened.enter_context(Wire(server))
        wire.connect()
        wire.create_stream()
        attackers.append(wire)
    viewer = Viewer(server)
    with ExitStack() as stack:
        stack.callback(viewer.close)
        delays = viewer.delays(0.1)
        for number, wire in enumerate(attackers):
            data = b"".join(
                wire.frame(20, 0, encode_command(name, 0, None, f"{name}{number}_{turn}"), 3)
                for turn in range(480 // len(names))
                for name in names
            )
            wire.write(data)
        delays += viewer.delays(ATTACK_S)
    assert p99(delays) < P99_S
    assert max(delays) < 5 * P99_S
