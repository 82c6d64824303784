"""The hooks service: keeps the destinations in line with the options, and hands them the events that they asked for.

Events that no hook asked for are not even made.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from rtmpd.config.hook_targets import EVENT_NAMES, ScriptHook, WebhookHook
from rtmpd.events import EventType
from rtmpd.http.client import HttpClient
from rtmpd.net.resolver import Resolver
from rtmpd.services.hooks.deliveries import Script, Stdio, Webhook
from rtmpd.services.hooks.dispatcher import Dispatcher
from rtmpd.services.hooks.event import HookEvent
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from rtmpd.config.model import Config, HooksConfig
    from rtmpd.events import Event
    from rtmpd.hub import Hub
    from rtmpd.services.hooks.dispatcher import Delivery, Destination

log = logging.getLogger(__name__)

_STDIO_SHARE = 0.3
"""The share of the time to stop that is kept for standard output."""

_Key = str | tuple[str, ...]


class Hooks:
    """The service.

    Args:
        hub: The hub.
        options: The section ``[hooks]``.
    """

    def __init__(self, hub: Hub, options: HooksConfig) -> None:
        self._hub = hub
        self._dispatcher = Dispatcher(options, hub.counters)
        self._destinations: dict[_Key, Destination] = {}
        self._receivers: dict[EventType, list[Destination | Stdio]] = {}
        self._stdio: Stdio | None = None
        # Separate threads: a disk that does not answer must not delay requests.
        self._threads = Threads(1)
        self._client = HttpClient(1, Resolver(hub.count))
        # Makes the ids of events unique across runs of the server.
        self._run = os.urandom(4).hex()
        self._number = 0
        self._logged = ""

    @staticmethod
    def select(config: Config) -> HooksConfig:
        """Return the section ``[hooks]``."""
        return config.hooks

    def start(self) -> None:
        """Subscribe to events."""
        self._hub.gauges["hooks_waiting"] = lambda: self._dispatcher.waiting + (self._stdio.waiting if self._stdio else 0)
        self.reload(self._dispatcher.options)

    def reload(self, options: HooksConfig) -> None:
        """Apply new options. Destinations that stay keep their queues."""
        self._dispatcher.options = options
        targets: dict[_Key, ScriptHook | WebhookHook] = {}
        wanted: dict[str, set[_Key]] = {name: set() for name in EVENT_NAMES}
        configured: list[ScriptHook | WebhookHook] = [*options.hook_scripts, *options.hook_webhooks]
        for target in configured:
            # Two options with the same target are one destination, for which events keep their order.
            key = target.argv if isinstance(target, ScriptHook) else target.url
            targets[key] = target
            for name in target.events:
                wanted[name].add(key)
        for key in self._destinations.keys() - targets.keys():
            self._dispatcher.remove(self._destinations.pop(key))
        for key, target in targets.items():
            if key not in self._destinations:
                self._destinations[key] = self._dispatcher.add(self._delivery(target))
        self._reload_stdio(options)
        self._threads.resize(self._dispatcher.places)
        self._client.resize(self._dispatcher.places)
        self._receivers = {EventType(name): [self._destinations[key] for key in keys] for name, keys in wanted.items()}
        if self._stdio is not None:
            for receivers in self._receivers.values():
                receivers.append(self._stdio)
        bus = self._hub.bus
        bus.unsubscribe(self._handle)
        bus.subscribe((kind for kind, receivers in self._receivers.items() if receivers), self._handle)
        # With other limits, more deliveries may start.
        self._dispatcher.kick()
        self._log_destinations(options)

    def stop(self, limit_s: float) -> None:
        """Deliver what is queued, for at most *limit_s*, and discard the rest."""
        self._hub.bus.unsubscribe(self._handle)
        self._dispatcher.stop(limit_s * (1 - _STDIO_SHARE) if self._stdio else limit_s)
        if self._stdio is not None:
            self._stdio.stop(limit_s * _STDIO_SHARE)
            self._stdio = None

    def _log_destinations(self, options: HooksConfig) -> None:
        labels = [destination.delivery.label for destination in self._destinations.values()]
        if options.hook_stdio_format != "off":
            labels.append(f"standard output ({options.hook_stdio_format})")
        text = ", ".join(labels)
        if text != self._logged:
            log.info("hooks: %s", text or "none")
            self._logged = text

    def _delivery(self, target: ScriptHook | WebhookHook) -> Delivery:
        if isinstance(target, ScriptHook):
            return Script(target, self._threads)
        return Webhook(target, self._client, lambda: self._hub.tls.client.ca)

    def _reload_stdio(self, options: HooksConfig) -> None:
        if options.hook_stdio_format == "off":
            if self._stdio is not None:
                self._stdio.end()
                self._stdio = None
        elif self._stdio is None:
            self._stdio = Stdio(options, self._hub.counters)
        else:
            self._stdio.options = options

    def _handle(self, event: Event) -> None:
        self._number += 1
        made = HookEvent.of(event, f"{self._run}-{self._number}")
        for receiver in self._receivers[event.type]:
            receiver.offer(made)
