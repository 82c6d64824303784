"""The hub: the registry of streams and connections, policy, and the sweep.

Decides which client may publish and play what. Everything here runs between two switches of the event loop, so that no lock is
needed.
"""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import gevent

from rtmpd.authorization import AllowAll
from rtmpd.connection_limits import ConnectionLimits
from rtmpd.errors import Refused, RtmpdError, TransportClosed
from rtmpd.events import EventBus, EventType
from rtmpd.live.courier import Courier
from rtmpd.live.memory import Holder, MemoryGuard
from rtmpd.live.rtmp_framing import RtmpFraming
from rtmpd.live.selection import Arrival, Cause, Conflict, ConflictRules, OnConflict, SourceRole
from rtmpd.live.stream import Stream, StreamPlayer
from rtmpd.live.watch import Watch
from rtmpd.media.video_codecs import VideoConfig
from rtmpd.net.load_balancer import is_from, read_proxy_header
from rtmpd.net.readers import readers
from rtmpd.net.tls import Tls
from rtmpd.net.tls_transport import TlsTransport
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.protocol import status
from rtmpd.protocol.via import LOOP, is_loop
from rtmpd.rtmp.connection import Connection, ConnectionOptions
from rtmpd.rtmp.session import Session
from rtmpd.util.event_loop import Slices
from rtmpd.util.log_throttle import LogThrottle
from rtmpd.util.stream_key import StreamKey
from rtmpd.util.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from rtmpd.authorization import Authorizer
    from rtmpd.config.model import ApplicationConfig, Config, LiveConfig, PublishConfig
    from rtmpd.events import Scalar
    from rtmpd.http.connection import HttpConnection
    from rtmpd.live.ingest import Switch
    from rtmpd.live.lane import Lane
    from rtmpd.live.source import Source
    from rtmpd.media.audio_codecs import AudioConfig
    from rtmpd.media.slate import Slate
    from rtmpd.net.transport import Transport

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_LONGEST_STEP = 3
_WAITING_SWEPT = 1000  # streams that players only wait for, in one sweep
_FLUSH_S = 1.0
_REDIRECT_STEP_S = 0.02


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
    "internal_errors",
    "copies_joined",
    "copies_broken",
    "copy_frames_duplicate",
    "copy_frames_filled",
    "copy_frames_mismatched",
    "copy_frames_late",
)


def _counts(stream: Stream) -> tuple[int, ...]:
    """Return the counters of a stream, in the order of `_STREAM_COUNTERS`."""
    received, counters, ingest = stream.received, stream.counters, stream.ingest
    merged = ingest.merged
    return (
        received.audio,
        received.video,
        received.data,
        received.bytes,
        counters.bytes_sent,
        counters.skips,
        counters.dropped,
        counters.disposed,
        counters.disconnects,
        counters.stalled,
        stream.timestamp_jumps,
        counters.errors,
        ingest.copies_joined,
        ingest.copies_broken,
        merged.duplicates,
        merged.filled,
        merged.mismatches,
        merged.late,
    )


@dataclass(frozen=True, slots=True)
class RelayFigures:
    """The figures of the relay of one stream to one destination.

    Attributes:
        stream_key: The stream.
        destination: The name of the relay, or scheme, host and application: nothing secret.
        state: The value of its `rtmpd.phases.RelayPhase`.
        bytes_sent, messages_sent: To the destination, since the relay began.
        messages_dropped: Skipped, since the destination was too slow or away.
        reconnects: How often the connection was made again.
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


_CAUSES = {
    Cause.RETURN: "it sends media",
    Cause.FAILOVER: "the active source has failed",
    Cause.FAILBACK: "it is healthy again (failback)",
    Cause.SLATE: "no publisher sends media",
    Cause.MANUAL: "an operator has requested it",
}


def _entitled(takeover_by: str, new: Source, old: Source) -> bool:
    """Return whether a publisher may replace another one (``takeover_by``)."""
    same_address = new.info.address == old.info.address
    if takeover_by != "credential":
        return takeover_by == "any" or same_address
    mine, other = new.grant.credential, old.grant.credential
    return hmac.compare_digest(mine, other) if mine or other else same_address


def _no_relays() -> Iterable[RelayFigures]:
    return ()


class _AllConnections(Collection[Holder]):
    """The connections of all protocols.

    Args:
        parts: The connections of each.
    """

    def __init__(self, *parts: Collection[Holder]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[Holder]:
        for part in self._parts:
            yield from part

    def __contains__(self, each: object) -> bool:
        return any(each in part for part in self._parts)


class Configured(Protocol):
    """A part of the server that uses a part of the configuration."""

    @staticmethod
    def select(config: Config) -> Any:
        """Return the part of a configuration that this part of the server uses."""

    def reload(self, options: Any) -> None:
        """Apply new options, as `select` returns them. Must not wait or fail."""


class Hub:
    """Owns the streams and connections.

    Args:
        config: The configuration in force.

    Attributes:
        streams: By key.
        connections: The open ones of RTMP.
        http_connections: The open ones of the HTTP listener.
        give_way: Closes an idle HTTP connection of an address group, or with "" of any, and returns its address; None: there is
            none. Set by the daemon.
        bus: Publishes events to services.
        counters: Failures and totals by name. Those of streams are of streams that have ended; `totals` includes all.
        gauges: Figures of services that go up and down, by name: functions that return the present one.
        reports: Functions of services that give lines about them for SIGUSR2; bounded, and without secrets.
        authorizer: Authorizes connections, publishes and plays: allows all, until the authentication service replaces it.
        relays: Returns the figures of all relays; set by the relay service.
        id: A random name of this server, by which it recognizes its own streams.
        parts: Receive their options at each reload, in this order; the daemon adds the services.
        listening: Host and port of every address that is listened on; set by the daemon.
        tls: The TLS settings in force; set by the daemon.
        turns: Connections with much to do do it in turns.
        chunk_size: The outbound chunk size, bytes: that of the logs.
        memory: Keeps the memory of streams and connections below its limit.
        connection_limits: Limits the connections; the daemon sets its capacity.
        slates: By path; set by the daemon.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.streams: dict[str, Stream] = {}
        self._announced: dict[str, Stream] = {}  # those with a source, or within the grace after it
        self._turn = self._sweeps = self._numbers = 0
        self.connections: set[Connection] = set()
        self.bus = EventBus()
        self.counters: Counter[str] = Counter()
        self.gauges: dict[str, Callable[[], float]] = {}
        self.reports: list[Callable[[], Iterable[str]]] = []
        self.authorizer: Authorizer = AllowAll()
        self.relays: Callable[[], Iterable[RelayFigures]] = _no_relays
        self.id = os.urandom(8).hex()
        self.parts: list[Configured] = []
        self.listening: tuple[tuple[str, int], ...] = ()
        self.tls = Tls()
        self.turns = Turns()
        self.stopping = False
        self.connection_limits = ConnectionLimits(config.limits)
        self.http_connections: set[HttpConnection] = set()
        self.give_way: Callable[[str], str | None] = lambda group: None
        holders = _AllConnections(self.connections, self.http_connections)
        self.memory = MemoryGuard(self.streams, holders, self.counters, config.limits.memory_limit_bytes)
        self.gauges["wire_log_bytes"] = self.memory.page_bytes
        self.gauges["connection_buffer_bytes"] = lambda: self.memory.connection_bytes
        self.gauges["http_connections_active"] = lambda: len(self.http_connections)
        self.gauges["http2_connections_active"] = lambda: sum(each.version == "HTTP/2" for each in self.http_connections)
        self._refusals = LogThrottle()
        self._holds = LogThrottle()
        self._watch = Watch(self.count)
        self._taken_over: Stream | None = None  # while its publishers are replaced
        self.slates: Mapping[str, Slate] = {}
        self.chunk_size = config.server.chunk_size_bytes
        self._framing = RtmpFraming(self.chunk_size)
        self._courier = Courier(config.live.pacing_share, config.live.pacing_limit_ms)
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Start the sweep."""
        readers().reload(self.config.server.lazy_read_ms / 1000)
        self._greenlet = gevent.spawn(self._run)
        self.memory.start()
        self._watch.start()

    @property
    def greenlet(self) -> gevent.Greenlet[[], None] | None:
        """The hub's greenlet; the server can't continue without it."""
        return self._greenlet

    def reload(self, config: Config) -> None:
        """Apply a new, valid configuration: hand each part the options that it uses. Live streams and connections stay."""
        self.config = config
        self.connection_limits.limits = config.limits
        self.memory.reload(config.limits.memory_limit_bytes)
        self._courier.reload(config.live.pacing_share, config.live.pacing_limit_ms)
        readers().reload(config.server.lazy_read_ms / 1000)
        options = self._connection_options()
        for connection in self.connections:
            connection.options = options
        slices = Slices()
        for stream in list(self.streams.values()):
            found = config.application(stream.key.app)
            if found is not None and self.streams.get(stream.key) is stream:
                stream.reload(found[1])
            slices.check()
        for part in self.parts:
            part.reload(part.select(config))

    def _connection_options(self) -> ConnectionOptions:
        config = self.config
        return ConnectionOptions(config.server, config.limits, config.tls.tls_handshake_timeout_s)

    def _slate(self, path: str) -> Slate | None:
        return self.slates.get(path)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        self.counters[name] += number

    # Connections -------------------------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """Return the number of a new connection."""
        self._numbers += 1
        return self._numbers

    def _admit(self, transport: Transport) -> bytes | None:
        """Decide whether a connection is served; return what was read of the client's own bytes. None: close it.

        If it is, `connection_limits` counts it.
        """
        try:
            first = self._unwrap(transport)
        except TransportClosed:
            # Load balancers check like this whether the server is up.
            self.counters["early_closes"] += 1
            return None
        except RtmpdError as error:
            self.counters["proxy_errors"] += 1
            log.warning("%s: %s", transport.peer, error)
            return None
        address = transport.address
        if self.authorizer.bars(address):
            return None
        now = time.monotonic()
        refused = "the server is stopping" if self.stopping else ""
        if not refused and isinstance(transport, TlsTransport):
            refused = self.connection_limits.handshake_refusal(self.tls.turns.waiting)
        refused = refused or self.connection_limits.refusal(address, now, self.give_way)
        if refused:
            self.counters["connections_refused"] += 1
            if self._refusals.due():
                total = self.counters["connections_refused"]
                log.warning("connection from %s refused: %s (%d refused so far)", transport.peer, refused, total)
            return None
        self.connection_limits.enter(address)
        return first

    def serve(self, transport: Transport) -> None:
        """Run an RTMP connection to its end, in the greenlet that accepted it."""
        first = self._admit(transport)
        if first is None:
            return
        address = transport.address
        self.counters["connections"] += 1
        connection = Connection(transport, self, self._connection_options(), self.next_number())
        self.connections.add(connection)
        connection.emit(EventType.CONNECTION_ACCEPT)
        reason = CloseReason(CloseKind.INTERNAL, "internal error")
        try:
            reason = Session(connection).run(first)
        finally:
            self._end(connection, address, reason)

    def _end(self, connection: Connection, address: str, reason: CloseReason) -> None:
        try:
            connection.closed(reason)
            self._emit_closed(connection)
        finally:
            self.connections.discard(connection)
            self.connection_limits.leave(address)

    def _unwrap(self, transport: Transport) -> bytes:
        """Read the PROXY header of a load balancer; return what was read of the client's own bytes."""
        server = self.config.server
        if server.proxy_protocol_from and is_from(transport, server.proxy_protocol_from):
            return read_proxy_header(transport, server.handshake_timeout_s)
        return b""

    def _emit_closed(self, connection: Connection) -> None:
        if self.bus.wanted(EventType.CONNECTION_CLOSE):
            connection.emit(
                EventType.CONNECTION_CLOSE,
                reason=str(connection.close_reason),
                duration_s=round(time.monotonic() - connection.opened_at, 3),
                bytes_in=connection.endpoint.bytes_received,
                bytes_out=connection.bytes_out,
                **connection.client.as_event_data(),
                **connection.last_request.as_event_data(),
            )

    # As the gate of the HTTP listener ----------------------------------------------------------------------------------

    @property
    def waiting_limit(self) -> int:
        """How many HTTP connections may wait for a request, or send one."""
        return self.connection_limits.waiting_limit

    def admit_http(self, transport: Transport) -> tuple[int, bytes] | None:
        """Decide about an HTTP connection as about one of RTMP; as `rtmpd.http.server.Gate`."""
        first = self._admit(transport)
        return (self.next_number(), first) if first is not None else None

    def enter_http(self, connection: HttpConnection) -> None:
        """Take note of an HTTP connection that begins."""
        self.counters["http_connections"] += 1
        self.http_connections.add(connection)
        data = {"remote_addr": connection.peer}
        self.bus.emit(EventType.CONNECTION_ACCEPT, data, connection_id=str(connection.number))

    def leave_http(self, connection: HttpConnection) -> None:
        """Take note that an HTTP connection has ended."""
        try:
            if self.bus.wanted(EventType.CONNECTION_CLOSE):
                data: dict[str, Scalar] = {
                    "remote_addr": connection.peer,
                    "reason": str(connection.close_reason),
                    "duration_s": round(time.monotonic() - connection.opened_at, 3),
                    "bytes_in": connection.bytes_received,
                    "bytes_out": connection.bytes_out,
                    **({"agent": connection.agent} if connection.agent else {}),
                    **connection.outcome,
                }
                self.bus.emit(EventType.CONNECTION_CLOSE, data, connection_id=str(connection.number))
        finally:
            self.http_connections.discard(connection)
            if not connection.gave_way:
                self.connection_limits.leave(connection.transport.address)

    # Policy ------------------------------------------------------------------------------------------------------------

    def admit(self, app: str) -> LiveConfig:
        """Return the options for a connection to an application, as far as its path tells.

        Clients cut URLs in different places: an application ``live/sub`` may come as the app ``live``.

        Raises:
            Refused: The configuration lists applications, and the path can belong to none of them.
        """
        found = self.config.application(app)
        if found is not None:
            return found[1].live
        if any(name.startswith(f"{app}/") for name in self.config.applications):
            return self.config.live
        raise Refused(status.CONNECT_INVALID_APP, "There is no such application.")

    def publish_options(self, key: str) -> PublishConfig:
        """Return the options for publishers of a stream; those of ``[publish]`` if the key belongs to no application."""
        found = self.config.application(StreamKey(key).app)
        return found[1].publish if found is not None else self.config.publish

    def _options(self, key: str, code: str) -> ApplicationConfig:
        """Return the options for a stream, by the whole of its path; raises `Refused` with *code*."""
        found = self.config.application(StreamKey(key).app)
        if found is None:
            raise Refused(code, "There is no such application.")
        return found[1]

    def publish(
        self, key: str, source: Source, role: SourceRole | None = None, announce: Callable[[Stream], None] = lambda stream: None
    ) -> Stream:
        """Let *source* feed the stream *key*: at once, or from its first keyframe on, or when the active source fails.

        Args:
            key: The stream.
            source: The source.
            role: The role that it asks for; None: the primary, or the backup if there is a primary.
            announce: Called with the stream before the source begins.

        Raises:
            Refused: Another source feeds the stream, the key belongs to no application, the stream has been here before (a
                loop of relays), or there are too many streams or too little memory.
        """
        options = self._options(key, status.PUBLISH_DENIED)
        if is_loop(source.info.via, self.id):
            self.counters["relay_loops"] += 1
            raise Refused(status.PUBLISH_REJECTED, LOOP)
        refusal = self.memory.refusal(time.monotonic())
        if refusal:
            self.counters["memory_refusals"] += 1
            raise Refused(status.STREAM_FAILED, "The server has too little memory.", refusal)
        stream = self.streams.get(key)
        replaced = self._resolve_conflict(stream, source) if stream is not None and stream.ingest.publishers else []
        if stream is None or not stream.available:
            self._check_stream_limit()
        if stream is None:
            stream = self._open(key, options)
        self.counters["publishes"] += 1
        source.number = self.counters["publishes"]
        self._announced[key] = stream
        role = role or self._role(stream, replaced)
        self._replace(stream, replaced)
        announce(stream)
        stream.begin(source, role)
        return stream

    def _replace(self, stream: Stream, replaced: list[Lane]) -> None:
        """Stop the publishers that a new one replaces. Players are kept without any grace."""
        self._taken_over = stream
        try:
            for lane in replaced:
                lane.source.stop(CloseReason(CloseKind.TAKEN_OVER, "another publisher took over"))
        finally:
            self._taken_over = None

    @staticmethod
    def _role(stream: Stream, replaced: list[Lane]) -> SourceRole:
        """Return the role of a publisher that asks for none: that of the one that it replaces, or the first that is free."""
        if replaced:
            return min((lane.role for lane in replaced), key=list(SourceRole).index)
        taken = any(lane.role is SourceRole.PRIMARY for lane in stream.ingest.publishers)
        return SourceRole.BACKUP if taken else SourceRole.PRIMARY

    def _resolve_conflict(self, stream: Stream, source: Source) -> list[Lane]:
        """Return the lanes of the publishers that a new one replaces; raises `Refused` if it must not come."""
        now_s = time.monotonic()
        # The last sweep may be a second old, and the sources may have sent since.
        stream.check_sources(now_s)
        publishers, options = stream.ingest.publishers, stream.options.publish
        silent = max(publishers, key=lambda lane: now_s - lane.source.active_at)
        silent_s = now_s - silent.source.active_at
        on_conflict = OnConflict(options.on_conflict)
        entitled = all(_entitled(options.takeover_by, source, lane.source) for lane in publishers)
        since_s = now_s - stream.taken_over_at if stream.taken_over_at is not None else None
        held = since_s is not None and since_s < options.takeover_hold_s
        rules = ConflictRules(options.publisher_takeover_s, on_conflict, options.standby_limit)
        match rules.decide(Arrival(len(publishers), silent_s, entitled, held)):
            case Conflict.STAND_BY | Conflict.ACTIVATE:
                return []
            case Conflict.TAKE_OVER if 0 < options.publisher_takeover_s <= silent_s:
                silent.source.log.warning(
                    "%s: its publisher has been silent for %.1f s, and is replaced by a new one (publisher_takeover_s)",
                    stream.key,
                    silent_s,
                )
                return [silent]
            case Conflict.TAKE_OVER:
                stream.taken_over_at = now_s
                for lane in publishers:
                    lane.source.log.warning(
                        "%s: its publisher is replaced by a new one from %s (on_conflict, takeover_by is %s)",
                        stream.key,
                        source.info.peer,
                        options.takeover_by,
                    )
                return publishers
        raise self._conflict(stream, len(publishers), entitled=entitled, since_s=since_s if held else None)

    def _conflict(self, stream: Stream, publishers: int, *, entitled: bool, since_s: float | None) -> Refused:
        """Return the refusal of a further publisher of a stream."""
        options = stream.options.publish
        why = "on_conflict is refuse"
        if options.on_conflict == OnConflict.BACKUP:
            why = f"it has {publishers} publishers, and standby_limit is {options.standby_limit}"
        elif options.on_conflict == OnConflict.TAKEOVER and not entitled:
            self.counters["takeovers_refused"] += 1
            why = f"the new publisher may not replace the other one: takeover_by is {options.takeover_by}"
        elif options.on_conflict == OnConflict.TAKEOVER:
            self.counters["takeovers_held"] += 1
            why = f"the last takeover was {since_s:.1f} s ago, and takeover_hold_s is {options.takeover_hold_s:g}"
            if self._holds.due():
                log.warning(
                    "%s: two publishers replace each other in turn; the one that is there stays for takeover_hold_s, %g s "
                    "(%d takeovers refused so far)",
                    stream.key,
                    options.takeover_hold_s,
                    self.counters["takeovers_held"],
                )
        text = f"{stream.key} is already being published."
        return Refused(status.PUBLISH_BAD_NAME, text, f"{text.rstrip('.')}: {why}")

    def unpublish(self, stream: Stream, source: Source, *, lost: bool = True, reason: str = "") -> None:
        """Remove a publisher; without another one the stream's players are kept for a while.

        Args:
            stream: The stream.
            source: The publisher's source; if it feeds the stream no longer, nothing happens.
            lost: It has not ended in an orderly way.
            reason: Why it has ended.
        """
        if stream.ingest.lane_of(source) is None:
            return
        stream.remove(source, reason)
        if stream is self._taken_over:
            return
        if not stream.ingest.publishers:
            if not stream.options.publish.publisher_grace_s or self.stopping:
                stream.end(reason)
            elif not lost:
                stream.wait_for_source(lost=False, reason=reason)
        self._drop_if_idle(stream)

    def play(self, key: str, player: StreamPlayer, *, may_wait: bool = True) -> Stream:
        """Register a player of the stream *key*; return the stream.

        Args:
            key: The stream.
            player: The player.
            may_wait: The player may wait for a publisher, if ``wait_for_publisher`` allows it.

        Raises:
            Refused: The stream is not published and players may not wait for it, the key belongs to no application, or there
                are too many players or streams.
        """
        options = self._options(key, status.PLAY_STREAM_NOT_FOUND)
        stream = self.streams.get(key)
        if stream is None or not stream.available:
            if not (may_wait and options.live.wait_for_publisher):
                raise Refused(status.PLAY_STREAM_NOT_FOUND, f"{key} is not being published.")
            if stream is None:
                self._check_waiting_limit()
                stream = self._open(key, options)
        most = stream.limits.players_per_stream_limit
        if most and len(stream.players) >= most:
            self.counters["players_refused"] += 1
            reason = f"players_per_stream_limit is {most}"
            raise Refused(status.PLAY_FAILED, f"{key} has too many players.", reason)
        stream.players.add(player)
        self.counters["plays"] += 1
        player.number = self.counters["plays"]
        self.bus.emit(EventType.SUBSCRIBER_COUNT, {"count": len(stream.players)}, stream=stream)
        return stream

    def unplay(self, stream: Stream, player: StreamPlayer) -> None:
        """Unregister a player."""
        if player in stream.players:
            stream.players.discard(player)
            self.bus.emit(EventType.SUBSCRIBER_COUNT, {"count": len(stream.players)}, stream=stream)
        self._drop_if_idle(stream)

    def _check_stream_limit(self) -> None:
        """Make room for one more published stream; raises `Refused`, so that encoders retry, if there are too many.

        Streams that players only wait for do not count. A grace that no player is in ends early.
        """
        most = self.config.limits.stream_limit
        if not most or len(self._announced) < most:
            return
        unused = [each for each in self._announced.values() if not each.ingest.publishers and not each.players]
        if unused and len(self._announced) - len(unused) < most:
            for stream in sorted(unused, key=lambda each: each.ended_at or 0.0)[: len(self._announced) - most + 1]:
                stream.end()
                self._drop_if_idle(stream)
            return
        self.counters["streams_refused"] += 1
        raise Refused(status.STREAM_FAILED, "The server has too many streams.", f"stream_limit is {most}")

    def _check_waiting_limit(self) -> None:
        """Raise `Refused` if players wait for too many streams already."""
        most = self.config.limits.waiting_stream_limit
        if most and len(self.streams) - len(self._announced) >= most:
            self.counters["streams_refused"] += 1
            text = "Too many streams are waited for."
            raise Refused(status.PLAY_FAILED, text, f"waiting_stream_limit is {most}")

    def _open(self, key: str, options: ApplicationConfig) -> Stream:
        """Add a stream."""
        stream = self.streams[key] = Stream(
            key,
            options,
            self._framing,
            self._emit_codec,
            self.count,
            self._courier,
            self._note_switch,
            self._emit_live_stop,
            self._watch.add,
            self._slate,
        )
        self.bus.emit(EventType.STREAM_CREATE, stream=stream)
        return stream

    def _emit_codec(self, stream: Stream, found: VideoConfig | AudioConfig) -> None:
        if self.bus.wanted(EventType.CODEC_DETECTED):
            kind = "video" if isinstance(found, VideoConfig) else "audio"
            known = {name: value for name, value in asdict(found).items() if value}
            self.bus.emit(EventType.CODEC_DETECTED, {"kind": kind, **known}, stream=stream)

    def _note_switch(self, stream: Stream, switch: Switch, becomes_live: bool) -> None:
        """Log and announce that another source of a stream is active."""
        source, before, info = switch.source, switch.before, switch.source.info
        if becomes_live:
            self.bus.emit(EventType.LIVE_START, {"id": source.number}, stream=stream, connection_id=info.connection_id)
        data: dict[str, Scalar] = {
            "id": source.number,
            "kind": str(info.kind),
            "role": str(switch.role),
            "cause": str(switch.cause),
            "headers_changed": switch.headers_changed,
        }
        if switch.role is not SourceRole.SLATE:
            data["remote_addr"] = info.peer
        self.bus.emit(EventType.SOURCE_ACTIVE, data, stream=stream, connection_id=info.connection_id)
        if switch.cause is Cause.FIRST:
            return
        self.count(f"source_switches_{switch.cause}")
        kind = {Cause.FAILOVER: EventType.FAILOVER, Cause.FAILBACK: EventType.FAILBACK}.get(switch.cause)
        reason = switch.reason or _CAUSES[switch.cause]
        if kind is not None:
            ids = {"id": source.number, "from_id": before.number if before is not None else 0}
            more: dict[str, Scalar] = {"role": str(switch.role), "reason": reason, "gap_ms": switch.gap_ms}
            self.bus.emit(kind, {**ids, **more}, stream=stream, connection_id=info.connection_id)
        log.log(
            logging.WARNING if switch.cause in (Cause.FAILOVER, Cause.SLATE) else logging.INFO,
            "%s: the %s is active from now on: %s; %d ms of the stream have no media%s",
            stream.key,
            f"{switch.role} from {info.peer}" if switch.role is not SourceRole.SLATE else "slate",
            reason,
            switch.gap_ms,
            "; its codecs or their parameters differ" if switch.headers_changed else "",
            extra={"stream": stream.key},
        )

    def _emit_live_stop(self, stream: Stream, reason: str) -> None:
        self.bus.emit(EventType.LIVE_STOP, {"reason": reason}, stream=stream)

    def _drop_if_idle(self, stream: Stream) -> None:
        if not stream.available and self._announced.get(stream.key) is stream:
            del self._announced[stream.key]
        if stream.idle and self.streams.get(stream.key) is stream:
            del self.streams[stream.key]
            self.counters.update(dict(zip(_STREAM_COUNTERS, _counts(stream), strict=True)))
            self.bus.emit(
                EventType.STREAM_DELETE,
                {
                    "duration_s": round(time.monotonic() - stream.created_at, 3),
                    "bytes_in": stream.received.bytes,
                    "bytes_out": stream.counters.bytes_sent,
                },
                stream=stream,
            )
            stream.close()

    def totals(self) -> Counter[str]:
        """Return the counters, including those of live streams.

        Without a switch of the event loop: a stream that ended meanwhile would be counted twice or not at all. 1 ms for 1000
        streams.
        """
        totals = self.counters.copy()
        sums = map(sum, zip(*map(_counts, self.streams.values()), strict=True))
        totals.update(dict(zip(_STREAM_COUNTERS, sums, strict=bool(self.streams))))
        return totals

    # Upkeep ------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            gevent.sleep(_SWEEP_S)
            # A method of its own: a local variable here would keep the last stream, and its pages, until the next sweep.
            self._sweep(time.monotonic())

    def _sweep(self, now_s: float) -> None:
        write_timeout_s = self.config.server.write_timeout_s
        slices = Slices()
        step = self._connection_step()
        self._sweeps += 1
        for connection in list(self.connections):
            if (connection.number + self._sweeps) % step == 0:
                connection.sweep(now_s)
                slices.check()
        self.memory.sweep()
        for stream in self._due():
            # It may have ended while the sweep gave way.
            if self.streams.get(stream.key) is stream:
                stream.sweep(now_s, write_timeout_s)
                self._drop_if_idle(stream)
            slices.check()

    def _connection_step(self) -> int:
        """Return in how many sweeps each connection is swept once: their timeouts may be exceeded by a fifth, at most 2 s."""
        server = self.config.server
        shortest_s = min(
            server.connect_timeout_s,
            server.idle_timeout_s,
            server.read_timeout_s,
            server.ping_interval_s or server.read_timeout_s,
            server.ping_timeout_s,
        )
        return min(_LONGEST_STEP, max(1, int(shortest_s / 5)))

    def _due(self) -> list[Stream]:
        """Return the streams to sweep now: of many that players only wait for, some. Nothing urgent happens there."""
        streams = list(self.streams.values())
        step = 1 + (len(streams) - len(self._announced)) // _WAITING_SWEPT
        if step == 1:
            return streams
        self._turn = (self._turn + 1) % step
        return [*self._announced.values(), *(each for each in streams[self._turn :: step] if not each.available)]

    def request_reconnect(self, tc_url: str = "", description: str = "", among: Iterable[Connection] | None = None) -> int:
        """Ask clients to connect again: those that have declared that they can.

        Args:
            tc_url: Where to; empty: where they are.
            description: For people.
            among: These connections; None: all.

        Returns:
            The number of clients that were asked.
        """
        connections = list(self.connections if among is None else among)
        asked = sum(connection.request_reconnect(tc_url, description) for connection in connections)
        self.counters["reconnect_requests"] += asked
        return asked

    def _redirect_clients(self, limit_s: float) -> None:
        """Ask clients to reconnect; if there is another server, wait until they have left, at most *limit_s*."""
        tc_url = self.config.server.drain_reconnect_url
        asked = [connection for connection in self.connections if connection.client.capabilities.reconnect]
        if asked and self.request_reconnect(tc_url, "The server is stopping.", asked) and tc_url:
            deadline = time.monotonic() + limit_s
            while time.monotonic() < deadline and not self.connections.isdisjoint(asked):
                gevent.sleep(_REDIRECT_STEP_S)

    def stop(self, limit_s: float = 0.0) -> None:
        """End every stream and close every connection: players are notified, sessions end by themselves.

        Args:
            limit_s: The time limit for clients that are asked to reconnect to another server.
        """
        self.stopping = True
        self._redirect_clients(limit_s)
        reason = CloseReason(CloseKind.SHUTDOWN, "the server is stopping")
        self._watch.stop()
        slices = Slices()
        for stream in list(self.streams.values()):
            stream.ingest.stop_slate()
            for lane in stream.ingest.publishers:
                # What it still sends after that is discarded.
                lane.source.stop(reason)
            stream.end()
            slices.check()
        deadline = time.monotonic() + _FLUSH_S
        for stream in list(self.streams.values()):
            stream.flush(max(0.0, deadline - time.monotonic()))
            # A stream with players is removed with the last of them.
            self._drop_if_idle(stream)
        for each in list(self.memory.connections):
            each.close(reason)
            slices.check()
        self.memory.stop()
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
