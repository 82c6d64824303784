"""The state of one RTMP connection: its phase, its client, its message streams, and everything that is written to it.

`rtmpd.rtmp.session` runs a connection; publishers and players are the roles of its message streams.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from sys import getsizeof
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rtmpd.errors import LimitExceeded
from rtmpd.phases import CONNECTION, CloseKind, CloseReason, ConnectionPhase, Machine
from rtmpd.protocol.endpoint import Endpoint
from rtmpd.protocol.enhanced import NOTHING_DECLARED, reconnect_request
from rtmpd.protocol.message import CSID_STATUS, UserControlType
from rtmpd.protocol.naming import StreamName, is_printable, resolve
from rtmpd.util.connection_log import ConnectionLog
from rtmpd.util.stream_key import StreamKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.authorization import Authorizer
    from rtmpd.config.model import LimitsConfig, LiveConfig, PublishConfig, ServerConfig
    from rtmpd.events import EventBus, EventType, Scalar
    from rtmpd.live.memory import MemoryGuard
    from rtmpd.live.selection import SourceRole
    from rtmpd.live.source import Source
    from rtmpd.live.stream import Stream, StreamPlayer
    from rtmpd.net.tls import Tls
    from rtmpd.net.transport import Transport
    from rtmpd.protocol.enhanced import Capabilities
    from rtmpd.rtmp.outlet import SharedOutlet
    from rtmpd.util.turns import Turns

log = logging.getLogger(__name__)

_PLAYER_DISPENSABILITY = 4
_IDLE_DISPENSABILITY = 16
_INCOMPLETE_LIMIT = "request_limit_bytes"
_COMMAND_WINDOW_S = 10.0
_IN_FLIGHT_S = 2.0
"""How long after its last publish a client may still send large messages: they may have been on their way."""
WITH_CONNECTION = "connection closed"
"""The reason of a publish or play that ends with its connection."""

_ENDING = (ConnectionPhase.CLOSING, ConnectionPhase.CLOSED)
_NOT_SWEPT = (ConnectionPhase.TLS_HANDSHAKE, ConnectionPhase.HANDSHAKE, *_ENDING)
_CAN_RECONNECT = (ConnectionPhase.COMMAND, ConnectionPhase.AUTHORIZE, ConnectionPhase.PUBLISH, ConnectionPhase.PLAY)


class ConnectionOptions(NamedTuple):
    """The part of the configuration that connections use.

    Attributes:
        server: ``[server]``.
        limits: ``[limits]``.
        tls_handshake_timeout_s: The option of ``[tls]``.
    """

    server: ServerConfig
    limits: LimitsConfig
    tls_handshake_timeout_s: float


class Policy(Protocol):
    """What connections ask of the hub."""

    @property
    def tls(self) -> Tls:
        """The TLS settings in force."""

    @property
    def bus(self) -> EventBus:
        """Publishes events."""

    @property
    def authorizer(self) -> Authorizer:
        """Authorizes connections, publishes and plays."""

    @property
    def turns(self) -> Turns:
        """Connections with much to do wait here."""

    @property
    def memory(self) -> MemoryGuard:
        """Counts what connections hold."""

    def admit(self, app: str) -> LiveConfig:
        """Return the options for a connection to an application, as far as its path tells; raises `Refused`."""

    def publish_options(self, key: str) -> PublishConfig:
        """Return the options for publishers of a stream."""

    def publish(
        self, key: str, source: Source, role: SourceRole | None = None, announce: Callable[[Stream], None] = ...
    ) -> Stream:
        """Let *source* feed a stream, once *announce* has been called; raises `Refused`."""

    def unpublish(self, stream: Stream, source: Source, *, lost: bool = True, reason: str = "") -> None:
        """Remove a source of a stream; *lost*: its publish has not ended in an orderly way."""

    def play(self, key: str, player: StreamPlayer) -> Stream:
        """Register a player; return the stream; raises `Refused`."""

    def unplay(self, stream: Stream, player: StreamPlayer) -> None:
        """Unregister a player."""

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""


@dataclass(slots=True)
class ClientInfo:
    """What a client has said of itself in its connect command.

    Attributes:
        app, tc_url: As it sent them, with their queries. Secret.
        application: What they resolve to: the path of the application, and the parameters. Secret.
        agent: What it calls itself, fit to be shown.
        capabilities: What it declares to support.
        page_url, swf_url: ``pageUrl`` and ``swfUrl``, which may contain secrets, cut to a bounded length.
        via: The ids of the servers that a relay's streams have come through; see `rtmpd.protocol.via`.
        user: The name that it has logged in with; empty: none.
        options: The options of its application, as far as the path tells; None before it is connected.
        held_bytes: The memory of all that, about; set by `measure`.
    """

    app: str = ""
    tc_url: str = ""
    application: StreamName = field(default_factory=lambda: StreamName(StreamKey(), {}))
    agent: str = ""
    page_url: str = ""
    swf_url: str = ""
    capabilities: Capabilities = NOTHING_DECLARED
    via: tuple[str, ...] = ()
    user: str = ""
    options: LiveConfig | None = None
    held_bytes: int = 0

    def resolve(self, name: str, default_name: str) -> StreamName:
        """Resolve a stream name within the application, which is taken apart only once; as `rtmpd.protocol.naming.resolve`."""
        detached = "?" if self.app.endswith("?") or self.tc_url.strip("'\"").endswith("?") else ""
        found = resolve(self.application.key + detached, "", name, default_name)
        return found._replace(parameters=self.application.parameters | found.parameters)

    def measure(self) -> None:
        """Set `held_bytes`: app and tcUrl are kept as sent and resolved."""
        urls = getsizeof(self.app) + getsizeof(self.tc_url)
        self.held_bytes = 2 * urls + getsizeof(self.page_url) + getsizeof(self.swf_url) + getsizeof(self.agent)

    def as_event_data(self) -> dict[str, Scalar]:
        """Return user and agent, as far as they are known."""
        return {name: value for name, value in (("user", self.user), ("agent", self.agent)) if value}


class LastRequest:
    """The last request of a connection (connect, publish or play), reported when it closes.

    Attributes:
        action: ``connect``, ``publish`` or ``play``; empty before the connect command.
        stream_key: The stream that it was authorized for. Empty until then: the name of a publish may be a secret, and a client
            may confuse it with the name of a play.
        served: The request was fulfilled, or was a step of a login: there is nothing to report.
    """

    __slots__ = ("_app", "action", "served", "stream_key")

    def __init__(self) -> None:
        self._app = ""
        self.action = ""
        self.stream_key = ""
        self.served = False

    def connect(self, app: str) -> None:
        """Record a connect to an application, given without its query. A path that can't be shown is left out."""
        self.action = "connect"
        self._app = app if is_printable(app) else ""

    def begin(self, action: str) -> None:
        """Record that the client wants to publish or play."""
        self.action = action
        self.stream_key = ""

    def as_event_data(self) -> dict[str, Scalar]:
        """Return the request; empty fields are left out."""
        found = {"app": self._app, "wanted": self.action, "wanted_stream": self.stream_key}
        return {**{name: value for name, value in found.items() if value}, "served": self.served}


class Role(ABC):
    """What a message stream does: it publishes or plays.

    Attributes:
        name: As the client gave it, with its query. Secret: it may hold a key or a token.
    """

    name: str

    @property
    @abstractmethod
    def key(self) -> str:
        """The stream's key; empty before the start and after the end."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of media and replies that the socket has accepted; a publisher sends none."""
        return 0

    @property
    def held_bytes(self) -> int:
        """The memory of the name, as sent and resolved."""
        return 2 * getsizeof(self.name)

    @abstractmethod
    def stop(self, reason: str) -> bytes:
        """End the role; return what must be sent on the connection before anything else. Harmless if it has ended."""


class PlayerRole(Role):
    """The role of a message stream that plays: what connection and outlet ask of it."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send a reply, between two messages of the media."""

    @abstractmethod
    def change_outlet(self, outlet: SharedOutlet) -> None:
        """Write to an outlet from now on."""


class MessageStream:
    """A message stream (NetStream) of a connection: publishes, plays, or does nothing yet.

    Attributes:
        id: The message stream id.
        role: What it does.
    """

    __slots__ = ("id", "role")

    def __init__(self, message_stream_id: int) -> None:
        self.id = message_stream_id
        self.role: Role | None = None


class _Activity:
    """What the last sweeps saw of a connection. All times are monotonic, seconds.

    Attributes:
        messages_at: When it last sent a message.
        bytes_at: When it last sent bytes, or its socket accepted media.
        busy_at: When a publish or play last began or ended.
        pinged_at: When it was last sent a ping.
        served: It has published or played.
    """

    __slots__ = ("busy_at", "bytes_at", "messages_at", "pinged_at", "seen_bytes", "seen_messages", "seen_taken", "served")

    def __init__(self, now_s: float) -> None:
        self.seen_messages = self.seen_bytes = self.seen_taken = 0
        self.messages_at = self.bytes_at = self.busy_at = self.pinged_at = now_s
        self.served = False

    def update(self, messages: int, received: int, taken: int, now_s: float) -> None:
        """Compare totals with those of the last sweep."""
        if messages != self.seen_messages:
            self.seen_messages = messages
            self.messages_at = now_s
        if received != self.seen_bytes or taken != self.seen_taken:
            self.seen_bytes, self.seen_taken = received, taken
            self.bytes_at = now_s

    def excuse(self, now_s: float) -> None:
        """Ignore the silence so far: the connection does not read, and waits for the server itself."""
        self.messages_at = self.bytes_at = self.busy_at = now_s


class Connection:
    """The server's end of one connection.

    Args:
        transport: The accepted connection.
        hub: Decides what the client may do.
        options: The options in force.
        number: Names the connection in the log.

    Attributes:
        options: Replaced by a reload.
        client: What the client has said of itself.
        message_streams: By id.
        sources: The sources that it feeds, by message stream id: the hot path's shortcut.
        outlet: What players of a connection with more than one write to.
        opened_at: Monotonic, seconds.
        bytes_played: What plays that have ended have sent.
        close_reason: Why it was closed; empty while it is open.
        last_request: What the client asked for last.
    """

    def __init__(self, transport: Transport, hub: Policy, options: ConnectionOptions, number: int) -> None:
        self.transport = transport
        self.hub = hub
        self.options = options
        self.number = number
        self.endpoint = Endpoint(options.limits.message_limit_bytes, options.limits.chunk_stream_limit)
        self._limit_incomplete()
        self.endpoint.reader.on_growth = hub.memory.note_growth
        self.log = ConnectionLog(log, number, transport.peer)
        self.client = ClientInfo()
        self.message_streams: dict[int, MessageStream] = {}
        self.sources: dict[int, Source] = {}
        self.outlet: SharedOutlet | None = None
        self.opened_at = time.monotonic()
        self.bytes_played = 0
        self.close_reason = CloseReason(CloseKind.INTERNAL, "")
        self.last_request = LastRequest()
        first = ConnectionPhase.TLS_HANDSHAKE if transport.scheme == "rtmps" else ConnectionPhase.HANDSHAKE
        self._machine = Machine(CONNECTION, first)
        self._activity = _Activity(self.opened_at)
        self._command_times: deque[float] = deque(maxlen=options.limits.command_limit)
        self._counted_interruptions = 0

    # Phase -------------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> ConnectionPhase:
        """The phase."""
        return self._machine.phase

    @property
    def protocol(self) -> str:
        """``rtmp`` or ``rtmps``."""
        return self.transport.scheme

    @property
    def user(self) -> str:
        """The user that the client has logged in as; empty: none."""
        return self.client.user

    @property
    def unsent_limit_bytes(self) -> int:
        """``unsent_limit_bytes``."""
        return self.options.server.unsent_limit_bytes

    @property
    def messages(self) -> int:
        """The number of messages received."""
        return self.endpoint.messages_received

    @property
    def connected(self) -> bool:
        """Whether the connect command was accepted."""
        return self.client.options is not None

    def enter(self, phase: ConnectionPhase) -> None:
        """Change the phase; harmless once the connection is closing."""
        if self.phase not in _ENDING:
            self._machine.to(phase)
            if phase is ConnectionPhase.CONNECT:
                self._activity.busy_at = time.monotonic()

    def settle(self) -> None:
        """Enter the phase that follows from what the message streams do."""
        activity = self._activity
        activity.busy_at = time.monotonic()
        if self.sources:
            activity.served = True
            self.enter(ConnectionPhase.PUBLISH)
            self.endpoint.reader.limit_buffered()
        elif self.any_player() is not None:
            activity.served = True
            self.enter(ConnectionPhase.PLAY)
            self._limit_incomplete()
        else:
            # What is still on its way from a publisher that stops is read; `sweep` ends that.
            self.enter(ConnectionPhase.COMMAND)

    def _limit_incomplete(self) -> None:
        """Allow small messages only: this client does not publish."""
        self.endpoint.reader.limit_buffered(self.options.limits.request_limit_bytes, _INCOMPLETE_LIMIT)

    def close(self, reason: CloseReason) -> None:
        """Close the connection; its greenlet ends when it notices that. The first reason counts. Does not wait."""
        if self.phase not in _ENDING:
            self._report(reason)
            self.begin_closing(reason)
        self.transport.close(reason)

    def begin_closing(self, reason: CloseReason) -> None:
        """Take note of why the connection is going to be closed; a last message may still be sent."""
        if self.phase not in _ENDING:
            self._machine.to(ConnectionPhase.CLOSING)
            self.close_reason = reason

    def closed(self, reason: CloseReason) -> None:
        """Take note that the connection has ended: stop its roles, log it. Called by its own greenlet, at the end.

        Args:
            reason: Why, unless the server had closed it: then that reason counts.
        """
        if self.phase is not ConnectionPhase.CLOSING:
            self._report(reason)
            self.close_reason = reason
        self.transport.close(self.close_reason)
        self._machine.to(ConnectionPhase.CLOSED)
        self.leave_all()
        self._count_interruptions()
        self.log.info(
            "closed: %s; %.1f s, %d bytes in, %d out",
            self.close_reason,
            time.monotonic() - self.opened_at,
            self.endpoint.bytes_received,
            self.bytes_out,
        )

    def _report(self, reason: CloseReason) -> None:
        """Count a reason, and log it if it has a line of its own."""
        for counter in reason.counters:
            self.hub.count(counter)
        if reason.logged:
            self.log.warning("%s: %s", self.phase.value, reason.detail)

    @property
    def bytes_out(self) -> int:
        """Bytes that the client's socket has accepted, without those of plays under way."""
        return self.transport.bytes_sent + self.bytes_played

    @property
    def _bytes_taken(self) -> int:
        """Bytes that the client's socket has accepted."""
        return self.bytes_out + sum([each.role.bytes_sent for each in self.message_streams.values() if each.role is not None])

    # Memory ------------------------------------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """The client's address and port."""
        return self.transport.peer

    @property
    def ending(self) -> bool:
        """Whether it has been closed: then its memory will be free in a moment."""
        return bool(self.transport.close_reason)

    @property
    def dispensability(self) -> int:
        """How much rather than a publisher with as much memory it is closed when memory is short."""
        if self.sources:
            return 1
        return _PLAYER_DISPENSABILITY if self.phase is ConnectionPhase.PLAY else _IDLE_DISPENSABILITY

    def held_bytes(self) -> int:
        """Return the memory of its buffers: incomplete messages, unread replies, names, what the transport holds."""
        endpoint = self.endpoint
        reader = endpoint.reader
        if reader.grown:
            reader.watch_growth()
        held = reader.buffered_bytes + len(endpoint.outgoing) + self.transport.held_bytes + self.client.held_bytes
        if self.outlet is not None:
            held += self.outlet.held_bytes
        for each in self.message_streams.values():
            role = each.role
            if role is not None:
                held += role.held_bytes
        return held

    # Events ------------------------------------------------------------------------------------------------------------

    def emit(self, event_type: EventType, stream: Stream | None = None, /, **data: Scalar) -> None:
        """Publish an event of this connection."""
        bus = self.hub.bus
        if bus.wanted(event_type):
            data = {"remote_addr": self.transport.peer, **data}
            bus.emit(event_type, data, stream=stream, connection_id=str(self.number))

    def emit_end(self, event_type: EventType, stream: Stream, /, *, reason: str, **data: Scalar) -> None:
        """Publish the end of a publish or play."""
        if reason == WITH_CONNECTION:
            data["close_reason"] = str(self.close_reason)
        self.emit(event_type, stream, reason=reason, **self.client.as_event_data(), **data)

    # Writing -----------------------------------------------------------------------------------------------------------

    def send_status(self, message_stream_id: int, info: dict[str, Any]) -> None:
        """Queue an onStatus for a message stream."""
        self.endpoint.send_command("onStatus", 0, None, info, message_stream_id=message_stream_id, csid=CSID_STATUS)

    def flush(self) -> None:
        """Send what is queued: directly, or between two media messages while a message stream plays."""
        data = self.endpoint.take_outgoing()
        if not data:
            return
        player = self.any_player()
        if player is None:
            if self.outlet is not None:
                data = self.outlet.take_rest() + data
            self.transport.send_all(data, self.options.server.write_timeout_s)
        else:
            player.write(data)

    def send_now(self) -> bool:
        """Send what is queued without waiting; return whether it has been sent, or will be."""
        player = self.any_player()
        data = self.endpoint.take_outgoing()
        if player is not None:
            player.write(data)
            return True
        # A publisher's socket has room for so little, or the connection is broken.
        try:
            sent = self.transport.try_send(data)
        except OSError as error:
            self.log.debug("= not sent: %s", error)
            return False
        if sent < len(data):
            self.close(CloseReason(CloseKind.EXPELLED, "its socket accepts no data"))
        return sent == len(data)

    def any_player(self) -> PlayerRole | None:
        """Return a player of this connection, whichever."""
        return next(iter(self.players()), None)

    def players(self) -> list[PlayerRole]:
        """Return the players of this connection."""
        return [each.role for each in self.message_streams.values() if isinstance(each.role, PlayerRole)]

    # Message streams ---------------------------------------------------------------------------------------------------

    def create_message_stream(self) -> MessageStream:
        """Open a message stream with the lowest free id, from 1 on: GStreamer only knows 1."""
        limit = self.options.limits.message_stream_limit
        if len(self.message_streams) >= limit:
            raise LimitExceeded("message_stream_limit", limit, len(self.message_streams) + 1)
        number = next(n for n in range(1, len(self.message_streams) + 2) if n not in self.message_streams)
        message_stream = self.message_streams[number] = MessageStream(number)
        return message_stream

    def message_stream(self, number: int) -> MessageStream:
        """Return the message stream for a publish or play: the one of that id, else the only one, else a new one."""
        found = self.message_streams.get(number)
        if found is not None:
            return found
        if len(self.message_streams) == 1:
            return next(iter(self.message_streams.values()))
        return self.create_message_stream()

    def leave(self, message_stream: MessageStream, reason: str) -> bytes:
        """Stop publishing or playing on a message stream.

        Returns:
            The bytes (rest of a half-sent message, queued replies) that must be sent before anything else.
        """
        rest = message_stream.role.stop(reason) if message_stream.role is not None else b""
        self.settle()
        return rest

    def leave_all(self) -> bytes:
        """Stop publishing and playing on all message streams; return as `leave`."""
        rest = b"".join(
            each.role.stop(WITH_CONNECTION) for each in list(self.message_streams.values()) if each.role is not None
        )
        return self.outlet.take_rest() + rest if self.outlet is not None else rest

    def check_command_rate(self) -> None:
        """Count a command.

        Raises:
            LimitExceeded: There were more than ``command_limit`` in the last ten seconds.
        """
        now_s, times = time.monotonic(), self._command_times
        if len(times) == times.maxlen and now_s - times[0] < _COMMAND_WINDOW_S:
            raise LimitExceeded(f"command_limit (commands in {_COMMAND_WINDOW_S:g} s)", len(times), len(times) + 1)
        times.append(now_s)

    # Upkeep ------------------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        """Close the connection if it has been silent, or idle, for too long; ping the client if it is quiet. From the hub."""
        options, activity, phase = self.options.server, self._activity, self.phase
        activity.update(self.messages, self.endpoint.bytes_received, self._bytes_taken, now_s)
        self._count_interruptions()
        if phase is ConnectionPhase.AUTHORIZE:
            # The authorizer bounds how long it may wait.
            activity.excuse(now_s)
        if phase in _NOT_SWEPT:
            return
        if activity.served and self.endpoint.reader.buffered_limit.name != _INCOMPLETE_LIMIT:
            self._end_large_messages(now_s)
        quiet_s = now_s - activity.bytes_at
        idle_limit_s = options.idle_timeout_s if activity.served else options.connect_timeout_s
        if self.sources and now_s - activity.messages_at > options.read_timeout_s:
            text = f"the publisher sent no message for {options.read_timeout_s:g} s"
            self.close(CloseReason(CloseKind.SILENT, text))
        elif not self.sources and self.any_player() is None and now_s - activity.busy_at > idle_limit_s:
            text = f"neither published nor played within {idle_limit_s:g} s"
            if activity.served:
                text = f"idle for {idle_limit_s:g} s after the last publish or play"
            self.close(CloseReason(CloseKind.DEADLINE, text))
        elif options.ping_interval_s and quiet_s > options.ping_interval_s + options.ping_timeout_s:
            self.close(CloseReason(CloseKind.SILENT, f"no answer to a ping for {options.ping_timeout_s:g} s"))
        elif options.ping_interval_s and min(quiet_s, now_s - activity.pinged_at) > options.ping_interval_s:
            activity.pinged_at = now_s
            if not self.transport.sending:
                self.endpoint.send_user_control(UserControlType.PING_REQUEST, int(now_s * 1000))
                self.send_now()
                # The socket of a client that is gone accepts pings, too. One that waits behind media comes later, with these.
                activity.seen_taken = self._bytes_taken

    def _end_large_messages(self, now_s: float) -> None:
        """Allow small messages only, once the last publish is over for a while."""
        reader, limit = self.endpoint.reader, self.options.limits.request_limit_bytes
        if self.phase is ConnectionPhase.COMMAND and now_s - self._activity.busy_at > _IN_FLIGHT_S:
            self._limit_incomplete()
            if reader.buffered_bytes > limit:
                error = LimitExceeded(_INCOMPLETE_LIMIT, limit, reader.buffered_bytes)
                self.close(CloseReason(CloseKind.LIMIT, f"limit exceeded in phase {self.phase.value}", detail=str(error)))

    def _count_interruptions(self) -> None:
        """Count the messages that the chunk reader has dropped because the client began another one inside of them."""
        dropped = self.endpoint.reader.dropped_messages - self._counted_interruptions
        if dropped:
            if not self._counted_interruptions:
                self.log.info("the client began a message inside another one, which was dropped; further ones are only counted")
            self._counted_interruptions += dropped
            self.hub.count("interrupted_messages", dropped)

    def request_reconnect(self, tc_url: str, description: str) -> bool:
        """Ask the client to connect again, if it has declared that it can; return whether it was asked. Does not wait.

        Args:
            tc_url: Where to; empty: where it is.
            description: For people; empty: none.
        """
        if not self.client.capabilities.reconnect or self.phase not in _CAN_RECONNECT or self.transport.sending:
            return False
        self.log.info("asked to reconnect%s", f" to {tc_url}" if tc_url else "")
        # On message stream 0, as all that is about the connection; players do not expect media there either.
        self.send_status(0, reconnect_request(tc_url, description))
        return self.send_now()
