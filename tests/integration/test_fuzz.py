"""Recordings of real clients, as they are and broken in every way that a seed thinks of, against a live server."""

from __future__ import annotations

import json
import random
import re
import socket
from pathlib import Path

import pytest

from tests.integration.beside import Bystander
from tests.integration.wire import VIDEO, Wire, key

RECORDINGS = Path(__file__).resolve().parent.parent / "golden" / "wire"
INDEX = json.loads((RECORDINGS / "index.json").read_text())
CASES = 1200
AT_ONCE = 8
RSS_GROWTH_MB = 40
INI = """
[server]
handshake_timeout_s = 2
connect_timeout_s = 2
[limits]
message_limit_bytes = 1000000
[publish]
publisher_grace_s = 0.5
"""


def recorded(entry):
    return (RECORDINGS / entry["file"]).read_bytes()


def flip(rng, data, _other):
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng, data, _other):
    begin = rng.randrange(len(data))
    return data[:begin] + data[begin + rng.randrange(1, 200) :]


def truncate(rng, data, _other):
    return data[: rng.randrange(1, len(data))]


def duplicate(rng, data, _other):
    begin = rng.randrange(len(data))
    end = begin + rng.randrange(1, 500)
    return data[:end] + data[begin:]


def insert(rng, data, _other):
    position = rng.randrange(len(data))
    return data[:position] + rng.randbytes(rng.randrange(1, 50)) + data[position:]


def splice(rng, data, other):
    return data[: rng.randrange(1, len(data))] + other[rng.randrange(len(other)) :]


def overwrite(rng, data, _other):
    position = rng.randrange(len(data))
    value = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff", b"\x14\x11\x16"))
    return data[:position] + value + data[position + len(value) :]


MUTATIONS = (flip, cut, truncate, duplicate, insert, splice, overwrite)
HEAD_BYTES = 3073  # C0, C1 and C2


def mutated(rng):
    """Return a recording with one to three mutations, mostly behind the handshake so that most cases get past it."""
    data, other = (recorded(rng.choice(INDEX)) for _ in range(2))
    head = b"" if rng.random() < 0.1 else data[:HEAD_BYTES]
    data, other = data[len(head) :], other[HEAD_BYTES:]
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(MUTATIONS)(rng, data, other) or b"\0"
    return head + data


class Thrower:
    """One connection that throws bytes at the server in random pieces, and reads what comes back, to the end."""

    def __init__(self, server, rng, data):
        self.wire = Wire(server)
        self.wire.sock.setblocking(False)
        self.pieces = []
        while data:
            size = rng.choice((1, 7, 100, 1000, 4096, len(data))) if len(self.pieces) < 200 else len(data)
            self.pieces.append(data[:size])
            data = data[size:]

    def step(self):
        """Send a piece; return whether the connection is over."""
        try:
            if self.pieces:
                sent = self.wire.sock.send(self.pieces[0])
                self.pieces[0] = self.pieces[0][sent:]
                if not self.pieces[0]:
                    del self.pieces[0]
                    if not self.pieces:
                        # Nothing more comes: the server closes.
                        self.wire.sock.shutdown(socket.SHUT_WR)
            return self._read()
        except BlockingIOError:
            return self._read()
        except OSError:
            return True

    def _read(self):
        try:
            while data := self.wire.sock.recv(1 << 16):
                self.wire.bytes_in += len(data)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


@pytest.mark.parametrize("entry", [entry for entry in INDEX if entry["role"] == "publisher"], ids=lambda entry: entry["name"])
def test_recorded_publishers_are_served_without_a_complaint(shared, raw, entry):
    wire = raw(shared)
    wire.write(recorded(entry))
    wire.sock.shutdown(socket.SHUT_WR)
    shared.wait_for_line(f"{wire.address} publishes {entry['app']}/{entry['stream_name'].partition('?')[0]}$")
    line = shared.wait_for_line(rf"{wire.address} (closed: .*)")[1]
    assert line.startswith("closed: closed by the peer;"), line
    assert f" {wire_bytes(entry)} bytes in" in line
    assert not [line for line in shared.log() if wire.address in line and ("WARNING" in line or "ERROR" in line)]


def wire_bytes(entry):
    return len(recorded(entry)) - HEAD_BYTES


@pytest.mark.parametrize("entry", [entry for entry in INDEX if entry["role"] == "player"], ids=lambda entry: entry["name"])
def test_recorded_players_are_served_without_a_complaint(shared, raw, entry):
    wire = raw(shared)
    wire.write(recorded(entry))
    shared.wait_for_line(f"{wire.address} plays {entry['app']}/")
    wire.sock.shutdown(socket.SHUT_WR)
    line = shared.wait_for_line(rf"{wire.address} (closed: .*)")[1]
    assert line.startswith("closed: closed by the peer;"), line
    assert not [line for line in shared.log() if wire.address in line and ("WARNING" in line or "ERROR" in line)]


def test_mutated_recordings_disturb_no_client_and_leave_nothing_behind(server):
    rng = random.Random(0x52544D50)
    running = server(INI, level="info")
    bystander = Bystander(running)
    bystander.check()
    # What comes out must be whole messages whatever went in: `Wire` would raise.
    watchers = [Wire(running).play(entry["stream_name"], entry["app"]) for entry in INDEX if entry["role"] == "publisher"]
    before = running.rss_mb()
    wires, under_way = [], []
    for number in range(CASES):
        under_way.append(Thrower(running, rng, mutated(rng)))
        wires.append(under_way[-1].wire)
        while len(under_way) >= (AT_ONCE if number < CASES - 1 else 1):
            under_way = [one for one in under_way if not one.step()]
            running.log()
        watched = watchers[number % len(watchers)]
        watched.seen += watched.available()
    for watcher in watchers:
        watcher.sync()
        watcher.close()
    assert sum(one.type_id == VIDEO for watcher in watchers for one in watcher.seen) > CASES
    for wire in wires:
        running.wait_for_line(f"{wire.address} closed: ")
        wire.close()
    bystander.check()
    assert running.rss_mb() < before + RSS_GROWTH_MB
    bystander.close()
    # When this one's grace is over, that of all others is.
    last = Wire(running).play("last")
    encoder = Wire(running).publish("last")
    encoder.send(VIDEO, 0, key(1))
    last.until(lambda one: one.type_id == VIDEO)
    encoder.close()
    last.status("NetStream.Play.UnpublishNotify")
    last.close()
    running.wait_for_line(f"{last.address} closed: ")
    assert running.stop() == 0
    running.wait_for_line("stopping: 0 streams, 0 connections")
    lines = "\n".join(running.log())
    publishes, plays = (re.findall(rf" (#\d+) \S+ {what} ", lines) for what in ("publishes", "plays"))
    assert sorted(publishes) == sorted(re.findall(r" (#\d+) \S+ stopped publishing ", lines))
    assert sorted(plays) == sorted(re.findall(r" (#\d+) \S+ stopped playing ", lines))
    assert len(publishes) > CASES / 5, "most cases should get past their first commands"
    assert len(plays) - len(watchers) > CASES / 40
    assert len(re.findall(r" closed: ", lines)) == CASES + len(watchers) + 4
