"""The relay service: which streams are relayed to which destinations."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent
from gevent.pool import Group

from rtmpd.config.relay_url import labels
from rtmpd.events import EventType
from rtmpd.net.resolver import Resolver
from rtmpd.services.relay.relay import Relay, RelayOptions
from rtmpd.util.event_loop import give_way
from rtmpd.util.log_throttle import LogThrottle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import Config
    from rtmpd.config.relay_url import RelayUrl
    from rtmpd.events import Event
    from rtmpd.hub import Hub, RelayFigures
    from rtmpd.live.stream import Stream

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_SWEEP_BLOCK = 50  # relays that are swept before the event loop has a turn


class Relays:
    """The relay service.

    Attributes:
        hub: The hub.
        options: The options in force.
        resolver: Looks up the names of destinations.
    """

    def __init__(self, hub: Hub, options: RelayOptions) -> None:
        self.hub = hub
        self.options = options
        self.resolver = Resolver(hub.count)
        self._relays: dict[Stream, dict[RelayUrl, Relay]] = {}
        self._origins: dict[Stream, tuple[str, ...]] = {}
        self._endings: dict[tuple[str, RelayUrl], Relay] = {}
        self._greenlets = Group()
        self._sweeper: gevent.Greenlet[[], None] | None = None
        self._refusals = LogThrottle()

    @staticmethod
    def select(config: Config) -> RelayOptions:
        """Return the part of a configuration that the service uses; each stream has its ``relay`` options."""
        return RelayOptions(config.limits.relay_limit, config.server.unsent_limit_bytes)

    def start(self) -> None:
        """Follow the streams that are live from now on."""
        self.hub.bus.subscribe((EventType.LIVE_START, EventType.SOURCE_ACTIVE, EventType.LIVE_STOP), self._handle)
        self.hub.relays = self._figures
        self._sweeper = gevent.spawn(self._sweep)

    def reload(self, options: RelayOptions) -> None:
        """Apply new options: start and end relays of live streams."""
        self.options = options
        for stream in self.hub.streams.values():
            if stream.live:
                self._adjust(stream, "reload")

    def stop(self, limit_s: float) -> None:
        """End all relays, and wait for that."""
        self.hub.bus.unsubscribe(self._handle)
        if self._sweeper is not None:
            self._sweeper.kill(block=False)
        for relay in list(self._all()):
            relay.end("the server is stopping")
        self._relays.clear()
        self._origins.clear()
        if not self._greenlets.join(timeout=limit_s):
            log.warning("%d relays did not end within %g s of the stop, and were cut off", len(self._greenlets), limit_s)
            self._greenlets.kill(block=False)

    # Which stream is relayed where -------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        stream = event.stream
        assert stream is not None
        if event.type is EventType.LIVE_START:
            self._note_origin(stream)
            self._adjust(stream, "")
        elif event.type is EventType.LIVE_STOP:
            self._origins.pop(stream, None)
            for relay in self._relays.pop(stream, {}).values():
                self._end(stream, relay, str(event.data.get("reason", "")))
        else:
            self._note_origin(stream)
            if event.data.get("headers_changed"):
                for relay in self._relays.get(stream, {}).values():
                    relay.headers_changed()

    def _note_origin(self, stream: Stream) -> None:
        """Take note of the servers that a stream comes through: a relay may begin while no publisher is active."""
        if stream.source is not None:
            self._origins[stream] = stream.source.info.via

    def _adjust(self, stream: Stream, reason: str) -> None:
        """Start the relays that a stream lacks, and end those that it should not have."""
        wanted = stream.grant.destinations(stream.options.relay, stream.key)
        relays = self._relays.get(stream, {})
        for url in [url for url in relays if url not in wanted]:
            self._end(stream, relays.pop(url), reason)
        for url, label in labels(wanted).items():
            if url not in relays and self._has_room(stream):
                before = self._endings.get((stream.key, url))
                origin = self._origins.get(stream, ())
                relay = relays[url] = Relay(self, stream, url, label, origin, before.greenlet if before is not None else None)
                self._greenlets.start(relay.greenlet)  # type: ignore[arg-type]
        if relays:
            self._relays[stream] = relays
        else:
            self._relays.pop(stream, None)

    def _has_room(self, stream: Stream) -> bool:
        limit = self.options.relay_limit
        if len(self._greenlets) < limit:
            return True
        self.hub.count("relays_refused")
        if self._refusals.due():
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
