"""The hub: the registry of streams and connections, and the greenlet that looks after them.

Decides who may publish and play. Everything here runs between two switches of the event loop, so nothing needs a lock. Imports
the session and everything below.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import gevent

from rtmpd.authorization import AllowAll
from rtmpd.connection_limits import ConnectionLimits
from rtmpd.errors import Refused, RtmpdError, TransportClosed
from rtmpd.events import EventBus, EventType
from rtmpd.live.memory import MemoryGuard
from rtmpd.live.stream import Stream
from rtmpd.media.video_codecs import VideoConfig
from rtmpd.net.load_balancer import is_from, read_proxy_header
from rtmpd.net.tls import Tls
from rtmpd.protocol import status
from rtmpd.protocol.via import LOOP, is_loop
from rtmpd.rtmp.connection import Connection
from rtmpd.rtmp.reconnect import ask_to_reconnect, wait_until_gone
from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rtmpd.authorization import Authorizer
    from rtmpd.config.model import ApplicationConfig, Config, LiveConfig
    from rtmpd.media.audio_codecs import AudioConfig
    from rtmpd.net.transport import Transport
    from rtmpd.rtmp.player import Player
    from rtmpd.rtmp.publisher import Publisher

__all__ = ["Configured", "Hub", "RelayFigures"]

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_SWEEP_BLOCK = 500  # connections looked at between two looks at the event loop
_REFUSAL_LOG_S = 10.0
_FLUSH_S = 1.0


_STREAM_COUNTERS = (
    "audio_messages",
    "video_messages",
    "data_messages",
    "bytes_ingested",
    "bytes_egress",
    "player_skips",
    "player_messages_dropped",
    "player_frames_disposed",
    "players_disconnected",
    "players_stalled",
    "timestamp_jumps",
)


def _counted(stream: Stream) -> tuple[int, ...]:
    """Return what a stream has counted, in the order of `_STREAM_COUNTERS`."""
    tally = stream.fanout.tally
    return (
        stream.audio_messages,
        stream.video_messages,
        stream.data_messages,
        stream.bytes_in,
        tally.bytes_sent,
        tally.skips,
        tally.dropped,
        tally.disposed,
        tally.disconnects,
        tally.stalled,
        stream.timeline.jumps,
    )


@dataclass(frozen=True, slots=True)
class RelayFigures:
    """How a relay of one stream to one destination does.

    Attributes:
        stream_key: What is relayed.
        destination: Where to, without what is secret: the name of the relay, or scheme, host and application.
        state: ``up`` while media goes out; else a word for what it is at.
        bytes_sent: To the destination, since the relay began.
        messages_sent: Likewise.
        messages_dropped: Skipped, since the destination was too slow or away.
        reconnects: How often the connection had to be made again.
        lag_s: How far the destination is behind the newest frame.
    """

    stream_key: str
    destination: str
    state: str
    bytes_sent: int = 0
    messages_sent: int = 0
    messages_dropped: int = 0
    reconnects: int = 0
    lag_s: float = 0.0


def _no_relays() -> Iterable[RelayFigures]:
    return ()


class Configured(Protocol):
    """A part of the server that uses a part of the configuration."""

    @staticmethod
    def select(config: Config) -> Any:
        """Return the part of a configuration that this part of the server uses."""

    def reload(self, options: Any) -> None:
        """Apply new options, as `select` returns them. Must not wait or fail."""


class Hub:
    """Owns the streams.

    Args:
        config: The configuration in force.

    Attributes:
        streams: By key.
        connections: Those that are open.
        bus: Tells services what happens.
        counters: Failures and totals by name. Those of streams are of streams that are gone; `totals` has them all.
        gauges: Figures of services that go up and down, by name: each is a function that gives the present one.
        authorizer: Decides who may come in: everybody, until the service that authenticates puts itself here.
        relays: Gives the figures of every relay there is; the service that relays puts its own function here.
        id: A random name of this server, by which it knows its own streams again.
        parts: Receive their options at each reload, in this order; the daemon adds the services.
        listening: Host and port of every address that is listened on; kept by the daemon.
        tls: What is in force for RTMPS; kept by the daemon.
        memory: Keeps the memory of streams below its limit.
        connection_limits: Counts connections, and says when there are too many; the daemon gives its capacity.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.streams: dict[str, Stream] = {}
        self.connections: set[Connection] = set()
        self.bus = EventBus()
        self.counters: Counter[str] = Counter()
        self.gauges: dict[str, Callable[[], float]] = {}
        self.authorizer: Authorizer = AllowAll()
        self.relays: Callable[[], Iterable[RelayFigures]] = _no_relays
        self.id = os.urandom(8).hex()
        self.parts: list[Configured] = []
        self.listening: tuple[tuple[str, int], ...] = ()
        self.tls = Tls()
        self.stopping = False
        self.connection_limits = ConnectionLimits(config.limits)
        self.memory = MemoryGuard(self.streams, self.counters, config.limits.memory_limit_bytes)
        self.gauges["wire_log_bytes"] = self.memory.total_bytes
        self._refusal_logged_at = 0.0
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin to look after streams and connections."""
        self._greenlet = gevent.spawn(self._run)
        self.memory.start()

    @property
    def greenlet(self) -> gevent.Greenlet[[], None] | None:
        """The hub's greenlet; the daemon can't go on without it."""
        return self._greenlet

    def reload(self, config: Config) -> None:
        """Apply a new, valid configuration: hand each part the options that it uses. Live streams and connections stay."""
        self.config = config
        self.connection_limits.limits = config.limits
        self.memory.reload(config.limits.memory_limit_bytes)
        for connection in self.connections:
            connection.config = config.server
            connection.limits = config.limits
        for stream in self.streams.values():
            found = config.application(stream.key.rpartition("/")[0])
            if found is not None:
                stream.reload(found[1])
        for part in self.parts:
            part.reload(part.select(config))

    def count(self, name: str) -> None:
        """Count an event."""
        self.counters[name] += 1

    # Connections -------------------------------------------------------------------------------------------------------

    def serve(self, transport: Transport) -> None:
        """Run a connection to its end, in the greenlet that accepted it."""
        try:
            first = self._unwrap(transport)
        except TransportClosed:
            # Balancers look whether we are there.
            self.counters["early_closes"] += 1
            return
        except RtmpdError as error:
            self.counters["proxy_errors"] += 1
            log.warning("%s: %s", transport.peer, error)
            return
        address = transport.address
        if self.authorizer.bars(address):
            return
        now = time.monotonic()
        refused = "the server is stopping" if self.stopping else self.connection_limits.refusal(address, now)
        if refused:
            self.counters["connections_refused"] += 1
            if now - self._refusal_logged_at > _REFUSAL_LOG_S:
                self._refusal_logged_at = now
                log.warning("%s refused: %s (%d refused so far)", transport.peer, refused, self.counters["connections_refused"])
            return
        self.counters["connections"] += 1
        connection = Connection(transport, self, self.counters["connections"])
        self.connections.add(connection)
        self.connection_limits.enter(address)
        connection.emit(EventType.CONNECTION_ACCEPT)
        try:
            connection.run(first)
        except gevent.GreenletExit:
            # The drain's deadline is over.
            return
        except Exception:
            self.counters["internal_errors"] += 1
            connection.log.exception("internal error in %s", connection.phase)
        finally:
            self._say_closed(connection)
            self.connections.discard(connection)
            self.connection_limits.leave(address)

    def _unwrap(self, transport: Transport) -> bytes:
        """Find out who is behind a load balancer; return what has come of the client's own bytes."""
        server = self.config.server
        if server.proxy_protocol_from and is_from(transport, server.proxy_protocol_from):
            return read_proxy_header(transport, server.handshake_timeout_s)
        return b""

    def _say_closed(self, connection: Connection) -> None:
        if self.bus.wanted(EventType.CONNECTION_CLOSE):
            connection.emit(
                EventType.CONNECTION_CLOSE,
                reason=connection.end_reason,
                duration_s=round(time.monotonic() - connection.opened_at, 3),
                bytes_in=connection.endpoint.bytes_received,
                bytes_out=connection.bytes_out,
                **connection.who(),
                **connection.wish.told(),
            )

    # Policy ------------------------------------------------------------------------------------------------------------

    def admit(self, app: str) -> LiveConfig:
        """Let a client connect to an app; return the options that hold for it as far as the app tells.

        Clients cut URLs in different places: an application ``live/sub`` may come as the app ``live``.

        Raises:
            Refused: There are applications in the configuration, and none can be meant.
        """
        found = self.config.application(app)
        if found is not None:
            return found[1].live
        if any(name.startswith(f"{app}/") for name in self.config.applications):
            return self.config.live
        raise Refused(status.CONNECT_INVALID_APP, "There is no such application.")

    def _options(self, key: str, code: str) -> ApplicationConfig:
        """Return the options for a stream, by the whole of its path; raises `Refused` with *code*."""
        found = self.config.application(key.rpartition("/")[0])
        if found is None:
            raise Refused(code, "There is no such application.")
        return found[1]

    def publish(self, key: str, publisher: Publisher) -> Stream:
        """Let *publisher* publish *key*.

        Raises:
            Refused: The name is being published by somebody else, belongs to no application, the stream was here before, or
                there are too many.
        """
        options = self._options(key, status.PUBLISH_DENIED)
        via = publisher.connection.via
        if is_loop(via, self.id):
            self.counters["relay_loops"] += 1
            raise Refused(status.PUBLISH_REJECTED, LOOP)
        lack = self.memory.refusal(time.monotonic())
        if lack:
            self.counters["memory_refusals"] += 1
            raise Refused(status.STREAM_FAILED, "The server has too little memory.", lack)
        stream = self.streams.get(key)
        if stream is not None and stream.publisher is not None:
            self._make_way(stream)
            # It is gone if nobody was watching.
            stream = self.streams.get(key)
        if stream is None:
            stream = self._open(key, options, status.STREAM_FAILED)
        stream.begin(publisher)
        stream.via = via
        self.counters["publishes"] += 1
        publisher.number = self.counters["publishes"]
        return stream

    def _make_way(self, stream: Stream) -> None:
        """Refuse a second publisher, unless the first has fallen silent: an encoder that lost its network must get back in."""
        now = time.monotonic()
        # The last sweep may be a second old, and the publisher have sent since.
        stream.sweep(now, 0.0)
        silent_s = now - stream.active_at
        takeover_s = stream.options.live.publisher_takeover_s
        if not takeover_s or silent_s < takeover_s:
            raise Refused(status.PUBLISH_BAD_NAME, f"{stream.key} is already being published.")
        publisher: Publisher = stream.publisher  # type: ignore[assignment]
        log.warning("%s: its publisher has been silent for %.1f s and makes way for another", stream.key, silent_s)
        self.counters["takeovers"] += 1
        connection = publisher.connection
        publisher.stop("another publisher took over")
        connection.transport.close("it was silent, and another publisher took over")

    def unpublish(self, stream: Stream, publisher: Publisher) -> None:
        """Take leave of a publisher; its players are kept for a while."""
        if stream.publisher is publisher:
            stream.pause()
            if not stream.options.live.publisher_grace_s:
                stream.end()
            self._drop_if_idle(stream)

    def play(self, key: str, player: Player) -> Stream:
        """Return the stream *key* for a player.

        Raises:
            Refused: Nobody publishes it and players may not wait, it belongs to no application, or there are too many.
        """
        options = self._options(key, status.PLAY_STREAM_NOT_FOUND)
        stream = self.streams.get(key)
        if stream is None or not stream.announced:
            if not options.live.wait_for_publisher:
                raise Refused(status.PLAY_STREAM_NOT_FOUND, f"{key} is not being published.")
            if stream is None:
                stream = self._open(key, options, status.PLAY_FAILED)
        most = options.limits.players_per_stream_limit
        if most and len(stream.players) >= most:
            self.counters["players_refused"] += 1
            reason = f"players_per_stream_limit is {most}"
            raise Refused(status.PLAY_FAILED, f"{key} has too many players.", reason)
        stream.players.add(player)
        self.counters["plays"] += 1
        player.number = self.counters["plays"]
        self.bus.emit(EventType.SUBSCRIBER_COUNT, {"count": len(stream.players)}, stream=stream)
        return stream

    def unplay(self, stream: Stream, player: Player) -> None:
        """Take leave of a player."""
        if player in stream.players:
            stream.players.discard(player)
            self.bus.emit(EventType.SUBSCRIBER_COUNT, {"count": len(stream.players)}, stream=stream)
        self._drop_if_idle(stream)

    def _open(self, key: str, options: ApplicationConfig, code: str) -> Stream:
        """Make a stream; raises `Refused` with *code*, which says that it may be had later, if there are too many."""
        most = self.config.limits.stream_limit
        if most and len(self.streams) >= most:
            self.counters["streams_refused"] += 1
            raise Refused(code, "The server has too many streams.", f"stream_limit is {most}")
        stream = self.streams[key] = Stream(key, options, self.config.server.chunk_size_bytes, self._say_codec)
        self.bus.emit(EventType.STREAM_CREATE, stream=stream)
        return stream

    def _say_codec(self, stream: Stream, found: VideoConfig | AudioConfig) -> None:
        if self.bus.wanted(EventType.CODEC_DETECTED):
            kind = "video" if isinstance(found, VideoConfig) else "audio"
            known = {name: value for name, value in asdict(found).items() if value}
            self.bus.emit(EventType.CODEC_DETECTED, {"kind": kind, **known}, stream=stream)

    def _drop_if_idle(self, stream: Stream) -> None:
        if stream.idle and self.streams.get(stream.key) is stream:
            del self.streams[stream.key]
            self.counters.update(dict(zip(_STREAM_COUNTERS, _counted(stream), strict=True)))
            self.bus.emit(
                EventType.STREAM_DELETE,
                {
                    "duration_s": round(time.monotonic() - stream.created_at, 3),
                    "bytes_in": stream.bytes_in,
                    "bytes_out": stream.fanout.tally.bytes_sent,
                },
                stream=stream,
            )
            stream.close()

    def totals(self) -> Counter[str]:
        """Return the counters, with what live streams have counted so far.

        In one go, since a stream that ended meanwhile would be counted twice or not at all: 1 ms for 1000 streams.
        """
        totals = self.counters.copy()
        sums = map(sum, zip(*map(_counted, self.streams.values()), strict=True))
        totals.update(dict(zip(_STREAM_COUNTERS, sums, strict=bool(self.streams))))
        return totals

    # Upkeep ------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            gevent.sleep(_SWEEP_S)
            # A method of its own: a local here would keep the last stream, and its pages, for as long as there is no other.
            self._sweep(time.monotonic())

    def _sweep(self, now_s: float) -> None:
        write_timeout_s = self.config.server.write_timeout_s
        for index, connection in enumerate(list(self.connections)):
            connection.sweep(now_s)
            if index % _SWEEP_BLOCK == _SWEEP_BLOCK - 1:
                give_way()
        for stream in list(self.streams.values()):
            stream.sweep(now_s, write_timeout_s)
            if stream.publisher is not None:
                stream.publisher.sweep(now_s)  # type: ignore[attr-defined]
            self._drop_if_idle(stream)

    def request_reconnect(self, tc_url: str = "", description: str = "", among: Iterable[Connection] | None = None) -> int:
        """Ask clients to connect again; those that do not know how to are not asked.

        Args:
            tc_url: Where to; empty: where they are.
            description: For people.
            among: Of these connections; None: of all.

        Returns:
            How many were asked.
        """
        asked = ask_to_reconnect(self.connections if among is None else among, tc_url, description)
        self.counters["reconnect_requests"] += len(asked)
        return len(asked)

    def _send_away(self, limit_s: float) -> None:
        """Ask clients to reconnect; where there is another server, let them go there before their streams end."""
        tc_url = self.config.server.drain_reconnect_url
        asked = [connection for connection in self.connections if connection.capabilities.reconnect]
        if asked and self.request_reconnect(tc_url, "The server is stopping.", asked) and tc_url:
            wait_until_gone(asked, self.connections, limit_s)

    def stop(self, limit_s: float = 0.0) -> None:
        """End every stream and close every connection: players are told, sessions end by themselves.

        Args:
            limit_s: How long those may take who are asked to go to another server.
        """
        self.stopping = True
        self._send_away(limit_s)
        for stream in list(self.streams.values()):
            publisher: Publisher | None = stream.publisher  # type: ignore[assignment]
            stream.publisher = None
            if publisher is not None:
                # What it still sends would come behind the end.
                publisher.stop("the server is stopping")
            stream.end()
        deadline = time.monotonic() + _FLUSH_S
        for stream in list(self.streams.values()):
            stream.flush(max(0.0, deadline - time.monotonic()))
            # Those with players end with the last of these.
            self._drop_if_idle(stream)
        for connection in list(self.connections):
            connection.transport.close("the server is stopping")
        self.memory.stop()
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
