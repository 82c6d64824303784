"""How the server does, told to systemd: ready, status, reloads, the watchdog, the end. Imports gevent and the hub's type."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.daemon.systemd import Notifier
    from rtmpd.hub import Hub

__all__ = ["Supervision"]

log = logging.getLogger(__name__)

_STATUS_S = 1.0
_RELOAD_REST_S = 0.25
"""Time between two reloads: each holds the event loop for as long as the file takes to read."""


class Supervision:
    """Speaks to systemd for the server, and runs its reloads one at a time.

    However many reloads are asked for while one runs, one more follows: it reads what the file says by then.

    Args:
        notifier: The way to systemd.
        hub: What the status is about.
        reload: Reloads the configuration; returns what is wrong, or nothing.
    """

    def __init__(self, notifier: Notifier, hub: Hub, reload: Callable[[], str]) -> None:
        self._notifier = notifier
        self._hub = hub
        self._reload = reload
        self._wanted = Event()
        self._problem = ""
        self._told = ""
        self._greenlets: list[gevent.Greenlet[[], None]] = []
        self._watchdog: gevent.Greenlet[[float], None] | None = None

    def request_reload(self) -> None:
        """Ask for a reload; safe in a signal handler's greenlet, and before `start`."""
        self._wanted.set()

    def start(self) -> None:
        """Say that the server is ready, and begin to look after it."""
        self._say(READY=1)
        self._greenlets = [gevent.spawn(self._keep_status), gevent.spawn(self._run_reloads)]
        if self._notifier.watchdog_s:
            # Half of the limit, as sd_watchdog_enabled(3) has it. When the event loop is blocked, so is this.
            self._watchdog = gevent.spawn(self._feed_watchdog, self._notifier.watchdog_s / 2)

    def stopping(self, limit_s: float) -> None:
        """Say that the end has begun, and how long it may take. The watchdog goes on: an end may hang too."""
        gevent.killall(self._greenlets, block=False)
        self._notifier.send(STOPPING=1, STATUS="stopping", EXTEND_TIMEOUT_USEC=int(limit_s * 1e6))

    def status(self) -> str:
        """Return how the server does, in a few words."""
        streams = list(self._hub.streams.values())
        live, players = sum(each.publisher is not None for each in streams), sum(len(each.players) for each in streams)
        text = f"{live} stream{'' if live == 1 else 's'}, {players} player{'' if players == 1 else 's'}"
        return f"{text}; reload failed: {self._problem}" if self._problem else text

    def _say(self, **fields: int) -> None:
        self._told = self.status()
        self._notifier.send(**fields, STATUS=self._told)

    def _keep_status(self) -> None:
        while True:
            gevent.sleep(_STATUS_S)
            if self._notifier.flush() and self.status() != self._told:
                self._say()

    def _feed_watchdog(self, interval_s: float) -> None:
        while True:
            self._notifier.feed_watchdog()
            gevent.sleep(interval_s)

    def _run_reloads(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            # By the time, systemd knows that it is the reload that it asked for. It waits for READY=1, however it went.
            self._notifier.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
            try:
                self._problem = self._reload()
            except Exception as error:
                # A bug must not end reloads for good.
                log.exception("internal error in a reload")
                self._hub.count("internal_errors")
                self._problem = f"internal error: {type(error).__name__}"
            self._say(READY=1)
            gevent.sleep(_RELOAD_REST_S)
