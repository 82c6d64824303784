"""The hooks service: who is told of which events, and that nobody waits for it.

Media never waits: an event is put into queues, which are bounded, and goes out from greenlets and threads that belong to hooks.
Only events that somebody wants are made at all.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from rtmpd.config.hook_targets import EVENT_NAMES, ScriptHook, WebhookHook
from rtmpd.events import EventType
from rtmpd.services.hooks.board import Board
from rtmpd.services.hooks.notice import Notice
from rtmpd.services.hooks.script import Script
from rtmpd.services.hooks.share import CpuShare
from rtmpd.services.hooks.stdio import Stdio
from rtmpd.services.hooks.webhook import Webhook
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from rtmpd.config.model import Config, HooksConfig
    from rtmpd.events import Event
    from rtmpd.hub import Hub
    from rtmpd.services.hooks.board import Carrier, Destination

__all__ = ["Hooks"]

log = logging.getLogger(__name__)

_STDIO_SHARE = 0.3
"""Of the time to stop, what is kept for lines that wait."""


class Hooks:
    """The service.

    Args:
        hub: The hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._board = Board(self)
        self._destinations: dict[str | tuple[str, ...], Destination] = {}
        self._wanted: dict[EventType, list[Destination | Stdio]] = {}
        self._stdio: Stdio | None = None
        # Of programs and of requests apart: a disk that does not answer must not hold up the web.
        self._starters = Threads(1)
        self._posters = Threads(1)
        self._share = CpuShare()
        # Names events across runs of the server.
        self._run = os.urandom(4).hex()
        self._number = 0
        self._told = ""

    # What the board asks for -------------------------------------------------------------------------------------------

    @property
    def config(self) -> HooksConfig:
        """The options in force."""
        return self._hub.config.hooks

    def count_delivery(self) -> None:
        """Count an event that has arrived."""
        self._hub.count("hook_deliveries")

    def count_failure(self) -> None:
        """Count one that was given up."""
        self._hub.count("hook_failures")

    def count_timeout(self) -> None:
        """Count a try that took too long."""
        self._hub.count("hook_timeouts")

    def count_retry(self) -> None:
        """Count a try after the first."""
        self._hub.count("hook_retries")

    def count_drops(self, number: int) -> None:
        """Count events that were never tried."""
        self._hub.counters["hook_drops"] += number

    def count_bug(self) -> None:
        """Count an internal error."""
        self._hub.count("internal_errors")

    # The service -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._hub.gauges["hooks_waiting"] = lambda: self._board.waiting + (self._stdio.waiting if self._stdio else 0)
        self._follow()

    @staticmethod
    def select(config: Config) -> Config:
        """Return the part of a configuration that the service uses."""
        return config

    def reload(self, config: Config) -> None:
        """Tell others from now on, or of other events. Destinations that stay keep their queues."""
        self._follow()

    def stop(self, limit_s: float) -> None:
        """Tell what there is still to tell, and wait for that."""
        self._hub.bus.unsubscribe(self._handle)
        self._share.lift()
        self._board.stop(limit_s * (1 - _STDIO_SHARE) if self._stdio else limit_s)
        if self._stdio is not None:
            self._stdio.stop(limit_s * _STDIO_SHARE)
            self._stdio = None

    def _follow(self) -> None:
        """Make what happens agree with the options."""
        config = self.config
        targets: dict[str | tuple[str, ...], ScriptHook | WebhookHook] = {}
        wanted: dict[str, set[str | tuple[str, ...]]] = {name: set() for name in EVENT_NAMES}
        configured: list[ScriptHook | WebhookHook] = [*config.hook_scripts, *config.hook_webhooks]
        for target in configured:
            # Two options with the same target are one destination: what it is told keeps its order.
            key = target.argv if isinstance(target, ScriptHook) else target.url
            targets[key] = target
            for name in target.events:
                wanted[name].add(key)
        for key in self._destinations.keys() - targets.keys():
            self._board.remove(self._destinations.pop(key))
        for key, target in targets.items():
            if key not in self._destinations:
                self._destinations[key] = self._board.add(self._carrier(target))
        self._follow_stdio(config.hook_stdio_format)
        for threads in (self._starters, self._posters):
            threads.resize(self._board.places)
        self._wanted = {EventType(name): [self._destinations[key] for key in keys] for name, keys in wanted.items()}
        if self._stdio is not None:
            for receivers in self._wanted.values():
                receivers.append(self._stdio)
        bus = self._hub.bus
        bus.unsubscribe(self._handle)
        bus.subscribe((kind for kind, receivers in self._wanted.items() if receivers), self._handle)
        # More places, or other limits, may let something go on.
        self._board.kick()
        self._say(config)

    def _say(self, config: HooksConfig) -> None:
        """Log who is told, if that is news."""
        labels = [destination.carrier.label for destination in self._destinations.values()]
        if config.hook_stdio_format != "off":
            labels.append(f"standard output ({config.hook_stdio_format})")
        told = ", ".join(labels)
        if told != self._told:
            log.info("hooks: %s", told or "none")
            self._told = told

    def _carrier(self, target: ScriptHook | WebhookHook) -> Carrier:
        if isinstance(target, ScriptHook):
            return Script(target, self._starters, self._share)
        return Webhook(target, self._posters, self._share, lambda: self._hub.tls.client.ca)

    def _follow_stdio(self, form: str) -> None:
        if form == "off":
            if self._stdio is not None:
                self._stdio.end()
                self._stdio = None
        elif self._stdio is None:
            self._stdio = Stdio(self, form)
        else:
            self._stdio.form = form

    def _handle(self, event: Event) -> None:
        self._number += 1
        notice = Notice.of(event, f"{self._run}-{self._number}")
        for receiver in self._wanted[event.type]:
            receiver.offer(notice)
