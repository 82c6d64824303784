"""A publisher and a player that run beside a test, and helpers that search the server's log."""

from __future__ import annotations

import itertools
import re
import threading
import time
from typing import TYPE_CHECKING

import gevent

from tests.integration.wire import VIDEO, Wire, inter, key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

_PACE_S = 0.01


class Bystander:
    """A publisher and its player in a thread, which a misbehaving client of the test must not disturb."""

    def __init__(self, server: Server, name: str = "bystander") -> None:
        self._player = Wire(server).play(name)
        self._publisher = Wire(server).publish(name)
        self._sent: list[bytes] = []
        self._got: list[bytes] = []
        self._error = ""
        self._over = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for number in itertools.count():
                self._step(number)
                if self._over.wait(_PACE_S):
                    break
        except (OSError, AssertionError) as error:
            self._error = f"{type(error).__name__}: {error}"
        with self._news:
            self._news.notify_all()

    def _step(self, number: int) -> None:
        payload = inter(number) if number % 25 else key(number)
        self._sent.append(payload)
        self._publisher.send(VIDEO, number * 10, payload)
        got = self._player.available()
        self._publisher.available()
        with self._news:
            self._got += [one.payload for one in got if one.type_id == VIDEO]
            self._news.notify_all()

    def check(self, limit_s: float = 5) -> None:
        """Assert that the player has got everything so far, and continues to."""
        with self._news:
            goal = len(self._sent) + 3
            arrived = self._news.wait_for(lambda: len(self._got) >= goal or self._error, limit_s)
            assert not self._error, self._error
            assert arrived, f"the player has {len(self._got)} of {goal} frames"
            assert self._got == self._sent[: len(self._got)]

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._publisher.close()
        self._player.close()


def warning_about(server: Server, wire: Wire, limit_s: float = 20) -> str:
    """Wait until the server has closed a connection, and return the only warning about it."""
    server.wait_for_line(f" {re.escape(wire.address)} closed: ", limit_s)
    warnings = [line for line in server.log() if f" {wire.address} " in line and ("WARNING" in line or "ERROR" in line)]
    assert len(warnings) == 1, warnings
    return warnings[0].partition("WARNING")[2].strip()


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 10) -> None:
    """Wait until a condition is true that the log does not show."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        gevent.sleep(0.02)
