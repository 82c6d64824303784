"""The relays: which streams go where, and the life of their relays."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent
from gevent.pool import Group

from rtmpd.config.relay_url import labels
from rtmpd.events import EventType
from rtmpd.services.relay.relay import Relay
from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import Config, RelayConfig
    from rtmpd.config.relay_url import RelayUrl
    from rtmpd.events import Event
    from rtmpd.hub import Hub, RelayFigures
    from rtmpd.live.stream import Stream

__all__ = ["Relays"]

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_SWEEP_BLOCK = 50  # relays looked at between two looks at the event loop
_LIMIT_LOG_S = 10.0


class Relays:
    """The service.

    Attributes:
        hub: The hub.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._relays: dict[Stream, dict[RelayUrl, Relay]] = {}
        self._endings: dict[tuple[str, RelayUrl], Relay] = {}
        self._greenlets = Group()
        self._sweeper: gevent.Greenlet[[], None] | None = None
        self._limit_logged_at = 0.0

    def start(self) -> None:
        """Begin."""
        self.hub.bus.subscribe((EventType.PUBLISH_START, EventType.PUBLISH_STOP), self._handle)
        self.hub.relays = self._figures
        self._sweeper = gevent.spawn(self._sweep)

    @staticmethod
    def select(config: Config) -> Config:
        """Return the part of a configuration that the service uses."""
        return config

    def reload(self, config: Config) -> None:
        """Begin and end relays of live streams as the new configuration wants it."""
        for stream in self.hub.streams.values():
            if stream.publisher is not None and self._has_options(stream):
                self._adjust(stream, "reload")

    def stop(self, limit_s: float) -> None:
        """End every relay, and wait for that."""
        self.hub.bus.unsubscribe(self._handle)
        if self._sweeper is not None:
            self._sweeper.kill(block=False)
        for relay in list(self._all()):
            relay.end("the server is stopping")
        self._relays.clear()
        if not self._greenlets.join(timeout=limit_s):
            log.warning("%d relays did not end in %g s", len(self._greenlets), limit_s)
            self._greenlets.kill(block=False)

    # Who is relayed where ----------------------------------------------------------------------------------------------

    def _has_options(self, stream: Stream) -> bool:
        return self.hub.config.application(stream.key.rpartition("/")[0]) is not None

    def options_of(self, stream: Stream) -> RelayConfig:
        """Return the options in force for a stream; those of [relay] if its application is gone."""
        found = self.hub.config.application(stream.key.rpartition("/")[0])
        return found[1].relay if found is not None else self.hub.config.relay

    def _handle(self, event: Event) -> None:
        stream = event.stream
        assert stream is not None
        if event.type is EventType.PUBLISH_START:
            self._adjust(stream, "")
        else:
            for relay in self._relays.pop(stream, {}).values():
                self._end(stream, relay, str(event.data.get("reason", "")))

    def _adjust(self, stream: Stream, reason: str) -> None:
        """Begin the relays that a stream lacks, and end those that it should not have."""
        wanted = self.options_of(stream).relay_to
        relays = self._relays.get(stream, {})
        for url in [url for url in relays if url not in wanted]:
            self._end(stream, relays.pop(url), reason)
        for url, label in labels(wanted).items():
            if url not in relays and self._has_room(stream):
                before = self._endings.get((stream.key, url))
                relay = relays[url] = Relay(self, stream, url, label, before.greenlet if before is not None else None)
                self._greenlets.start(relay.greenlet)  # type: ignore[arg-type]
        if relays:
            self._relays[stream] = relays
        else:
            self._relays.pop(stream, None)

    def _has_room(self, stream: Stream) -> bool:
        limit = self.hub.config.limits.relay_limit
        if len(self._greenlets) < limit:
            return True
        self.hub.count("relays_refused")
        now_s = time.monotonic()
        if now_s - self._limit_logged_at > _LIMIT_LOG_S:
            self._limit_logged_at = now_s
            refused = self.hub.counters["relays_refused"]
            log.warning("%s: not relayed: relay_limit is %d (%d relays refused so far)", stream.key, limit, refused)
        return False

    def _end(self, stream: Stream, relay: Relay, reason: str) -> None:
        key = (stream.key, relay.url)
        self._endings[key] = relay
        relay.greenlet.rawlink(lambda _: self._endings.pop(key) if self._endings.get(key) is relay else None)
        relay.end(reason)

    # Upkeep ------------------------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[Relay]:
        for relays in self._relays.values():
            yield from relays.values()

    def _figures(self) -> list[RelayFigures]:
        return [relay.figures() for relay in self._all()]

    def _sweep(self) -> None:
        while True:
            gevent.sleep(_SWEEP_S)
            for index, relay in enumerate(list(self._all()), 1):
                relay.sweep(time.monotonic())
                if index % _SWEEP_BLOCK == 0:
                    give_way()
