"""One connection: handshake, then messages until it ends.

Runs in a greenlet of its own and reads like the specification: do the handshake, then for each message that arrives do what it
asks. What went wrong, if anything, is one exception, one log line and one counter. Imports everything below; not the hub, which
it is given.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from rtmpd.errors import (
    DeadlineExceeded,
    HandshakeError,
    LimitExceeded,
    LoginRequired,
    Refused,
    RemoteProtocolError,
    TlsError,
    TransportClosed,
)
from rtmpd.events import EventType
from rtmpd.net.transport import deadline
from rtmpd.protocol import status
from rtmpd.protocol.command import decode_command
from rtmpd.protocol.endpoint import Endpoint
from rtmpd.protocol.enhanced import NOTHING_DECLARED, reconnect_request
from rtmpd.protocol.handshake import ServerHandshake
from rtmpd.protocol.message import (
    COMMAND_TYPES,
    CONTROL_TYPES,
    CSID_STATUS,
    DATA_TYPES,
    MessageType,
    UserControlType,
    split_aggregate,
)
from rtmpd.rtmp.commands import COMMANDS, answer_unknown
from rtmpd.rtmp.log import ConnectionLog
from rtmpd.rtmp.security import secure
from rtmpd.rtmp.wish import Wish

if TYPE_CHECKING:
    from rtmpd.config.model import LimitsConfig, LiveConfig, ServerConfig
    from rtmpd.events import Scalar
    from rtmpd.live.stream import Stream
    from rtmpd.net.transport import Transport
    from rtmpd.protocol.chunk import RawMessage
    from rtmpd.rtmp.contract import ConnectionHub
    from rtmpd.rtmp.outlet import SharedOutlet
    from rtmpd.rtmp.player import Player
    from rtmpd.rtmp.publisher import Publisher

__all__ = ["Connection", "MessageStream"]

log = logging.getLogger(__name__)

_AUDIO, _VIDEO = int(MessageType.AUDIO), int(MessageType.VIDEO)
_COMMAND_WINDOW_S = 10.0
_LINGER_S = 1.5

CLOSED = "connection closed"
"""Why a publish or play ended, when it was with its connection."""


class MessageStream:
    """A message stream (NetStream) of a connection: publishes, plays, or does nothing yet."""

    __slots__ = ("id", "player", "publisher")

    def __init__(self, message_stream_id: int) -> None:
        self.id = message_stream_id
        self.publisher: Publisher | None = None
        self.player: Player | None = None


class Connection:
    """The server's end of one connection.

    Args:
        transport: The accepted connection.
        hub: Decides who may do what.
        number: Counts up; names the connection in the log.

    Attributes:
        phase: What the connection is at: TLS handshake, handshake, connect, command, publish, play. For the log.
        app, tc_url: From the connect command.
        agent: What the client calls itself, from the same; fit to be shown.
        capabilities: What it said at connect that it takes.
        user: Who has logged in; empty: nobody.
        authorizing: It waits to hear whether it may publish or play, and reads nothing meanwhile.
        via: The servers that the streams of a relay have come through; see `rtmpd.protocol.via`.
        message_streams: By id.
        live: The streams being published, by message stream id: the hot path's shortcut.
        outlet: How players of a connection with more than one write.
        end_reason: Why it ended, once it has.
        wish: What it has asked for.
    """

    def __init__(self, transport: Transport, hub: ConnectionHub, number: int) -> None:
        self.transport = transport
        self.hub = hub
        self.number = number
        self.config: ServerConfig = hub.config.server
        self.limits: LimitsConfig = hub.config.limits
        self.endpoint = Endpoint(self.limits.message_limit_bytes, self.limits.chunk_stream_limit)
        self.log = ConnectionLog(log, number, transport.peer)
        self.phase = "handshake"
        self.connected = False
        self.app = ""
        self.tc_url = ""
        self.agent = ""
        self.capabilities = NOTHING_DECLARED
        self.user = ""
        self.authorizing = False
        self.via: tuple[str, ...] = ()
        self.options: LiveConfig | None = None
        self.message_streams: dict[int, MessageStream] = {}
        self.live: dict[int, Stream] = {}
        self.outlet: SharedOutlet | None = None
        self.opened_at = time.monotonic()
        self.messages = 0
        self.bytes_played = 0
        self.end_reason = "failed"
        self.wish = Wish()
        self._given_up = False
        self._command_times: deque[float] = deque(maxlen=self.limits.command_limit)
        # What the sweep saw last, and when it changed.
        self._seen_messages = 0
        self._seen_bytes = 0
        self._messages_at = self.opened_at
        self._bytes_at = self.opened_at
        self._busy_at = self.opened_at
        self._pinged_at = self.opened_at

    # The connection's life ---------------------------------------------------------------------------------------------

    def run(self, first: bytes = b"") -> None:
        """Serve the connection to its end. Raises nothing but what is a bug.

        Args:
            first: What has been read of it already.
        """
        reason = "failed"
        try:
            self._handshake(secure(self, first))
            self._serve()
        except TlsError as error:
            reason = self._broken("tls_failures", error)
        except TransportClosed as error:
            reason = str(error)
            if self.phase == "handshake" and self.transport.scheme == "rtmps" and not self.transport.close_reason:
                # So does GnuTLS with a certificate that it does not take: it sends no alert.
                reason += " behind the TLS handshake"
            if self.transport.close_reason:
                if not self._given_up and not self.hub.stopping and not reason.startswith("send failed"):
                    # The fan-out did: a player that stalled. One whose socket failed has merely gone.
                    self.hub.count("zombie_connections")
                    self.log.warning("%s: %s", self.phase, reason)
            elif not self.connected:
                self.hub.count("early_closes")
        except HandshakeError as error:
            reason = self._broken("handshake_failures", error)
        except LimitExceeded as error:
            reason = self._broken("limits_exceeded", error)
        except RemoteProtocolError as error:
            reason = self._broken("protocol_errors", error)
        except DeadlineExceeded as error:
            if self.phase == "TLS handshake":
                reason = self._broken("tls_failures", error)
            else:
                name = "handshake_failures" if self.phase == "handshake" else "deadlines_exceeded"
                reason = self._broken(name, error)
        except Refused as error:
            reason = f"refused: {error}"
        finally:
            self.transport.close(reason)
            self.end_reason = reason
            self._leave_all()
            self.log.info(
                "closed: %s; %.1f s, %d bytes in, %d out",
                reason,
                time.monotonic() - self.opened_at,
                self.endpoint.bytes_received,
                self.bytes_out,
            )

    @property
    def bytes_out(self) -> int:
        """Bytes that the peer's socket has taken, without those of plays that go on."""
        return self.transport.bytes_sent + self.bytes_played

    def emit_end(self, event_type: EventType, stream: Stream, /, *, reason: str, **data: Scalar) -> None:
        """Tell services that a publish or play has ended, and whose it was."""
        if reason == CLOSED:
            data["close_reason"] = self.end_reason
        self.emit(event_type, stream, reason=reason, **self.who(), **data)

    def who(self) -> dict[str, Scalar]:
        """Return its user and agent as data of an event, as far as they are known."""
        return {name: value for name, value in (("user", self.user), ("agent", self.agent)) if value}

    def emit(self, event_type: EventType, stream: Stream | None = None, /, **data: Scalar) -> None:
        """Tell services of something that happens on this connection."""
        bus = self.hub.bus
        if bus.wanted(event_type):
            data = {"remote_addr": self.transport.peer, **data}
            bus.emit(event_type, data, stream=stream, connection_id=str(self.number))

    def _broken(self, counter: str, error: Exception) -> str:
        """Count and log what the peer did wrong; the closing line follows at a lower level of interest."""
        self.hub.count(counter)
        self.log.warning("%s: %s", self.phase, error)
        return f"{type(error).__name__} in {self.phase}"

    def _handshake(self, data: bytes) -> None:
        handshake = ServerHandshake(os.urandom)
        with deadline(self.config.handshake_timeout_s, "handshake"):
            while not handshake.done:
                reply = handshake.feed(data or self.transport.recv())
                data = b""
                if reply:
                    self.transport.send_all(reply, self.config.handshake_timeout_s)
        self.log.debug("= handshake done: %s", handshake.kind)
        self.phase = "connect"
        self._busy_at = time.monotonic()
        self.emit(EventType.HANDSHAKE_COMPLETE, kind=str(handshake.kind))
        self._take(handshake.remainder)

    def _serve(self) -> None:
        transport = self.transport
        while True:
            self._take(transport.recv())

    def _take(self, data: bytes) -> None:
        """Do what the messages ask that *data* completes. The hot path of ingest."""
        endpoint = self.endpoint
        live = self.live
        messages = endpoint.receive(data)
        self.messages += len(messages)
        for message in messages:
            type_id, message_stream_id, timestamp, payload = message
            if type_id == _VIDEO:
                stream = live.get(message_stream_id) or self._lone_stream()
                if stream is not None:
                    stream.video(timestamp, payload)
            elif type_id == _AUDIO:
                stream = live.get(message_stream_id) or self._lone_stream()
                if stream is not None:
                    stream.audio(timestamp, payload)
            else:
                self._other(message)
        if endpoint.outgoing:
            self.flush()

    def _lone_stream(self) -> Stream | None:
        """Return the one stream being published, for media on another message stream: librtmp's first type 1 header has 0."""
        if len(self.live) == 1:
            return next(iter(self.live.values()))
        if not self.connected:
            raise RemoteProtocolError("media before connect")
        return None

    def _other(self, message: RawMessage) -> None:
        type_id = message.type_id
        if type_id in COMMAND_TYPES:
            self._command(message)
        elif type_id in CONTROL_TYPES:
            event = self.endpoint.control(message)
            if event is not None and event.event == UserControlType.PING_RESPONSE:
                self.log.debug("< ping response")
        elif type_id in DATA_TYPES:
            self._media(message)
        elif type_id == MessageType.AGGREGATE:
            for part in split_aggregate(message):
                if part.type_id in (_VIDEO, _AUDIO, *DATA_TYPES):
                    self._media(part)
        else:
            # Shared objects, and types that no specification knows.
            self.log.debug("< message of type %d ignored", type_id)

    def _media(self, message: RawMessage) -> None:
        stream = self.live.get(message.message_stream_id) or self._lone_stream()
        if stream is None:
            return
        if message.type_id == _VIDEO:
            stream.video(message.timestamp, message.payload)
        elif message.type_id == _AUDIO:
            stream.audio(message.timestamp, message.payload)
        else:
            stream.data(message)

    def _command(self, message: RawMessage) -> None:
        now = time.monotonic()
        times = self._command_times
        if len(times) == times.maxlen and now - times[0] < _COMMAND_WINDOW_S:
            raise LimitExceeded(
                f"command_limit (commands in {_COMMAND_WINDOW_S:g} s)", self.limits.command_limit, len(times) + 1
            )
        times.append(now)
        command = decode_command(message)
        if not self.connected and command.name != "connect":
            raise RemoteProtocolError(f"command {command.name[:40]!r} before connect")
        # A name is whatever the peer sent: quoted, it can't forge a line.
        self.log.debug("< %.80r %g on %d", command.name, command.transaction_id, command.message_stream_id)
        handler = COMMANDS.get(command.name)
        try:
            if handler is None:
                answer_unknown(self, command)
            else:
                handler(self, command)
        except Refused as refused:
            if isinstance(refused, LoginRequired):
                self.log.debug("= %s: %s", command.name, refused)
            else:
                self.hub.count("refused")
                self.log.warning("%s refused: %s", command.name, refused)
            self._refuse(refused, command.name, command.transaction_id, command.message_stream_id)
            raise

    def _refuse(self, refused: Refused, command: str, transaction_id: float, message_stream_id: int) -> None:
        """Say no, make sure that it arrives, and let the peer go: OBS hangs when a server just closes."""
        self.end_reason = f"refused: {refused}"
        owed = self._leave_all()
        info = status.info(refused.code, refused.description)
        if command == "connect":
            self.endpoint.send_command("_error", transaction_id, None, info)
        else:
            self.send_status(message_stream_id, info)
        self.transport.send_all(owed + self.endpoint.take_outgoing(), self.config.write_timeout_s)
        self.transport.linger(_LINGER_S)

    # Writing -----------------------------------------------------------------------------------------------------------

    def send_status(self, message_stream_id: int, info: dict[str, Any]) -> None:
        """Queue an onStatus for a message stream."""
        self.endpoint.send_command("onStatus", 0, None, info, message_stream_id=message_stream_id, csid=CSID_STATUS)

    def flush(self) -> None:
        """Send what is queued: directly, or between two media messages while something plays."""
        data = self.endpoint.take_outgoing()
        if not data:
            return
        player = self.any_player()
        if player is None:
            if self.outlet is not None:
                data = self.outlet.take_rest() + data
            self.transport.send_all(data, self.config.write_timeout_s)
        else:
            player.write(data)

    def any_player(self) -> Player | None:
        """Return a player of this connection, whichever."""
        for message_stream in self.message_streams.values():
            if message_stream.player is not None:
                return message_stream.player
        return None

    # Message streams ---------------------------------------------------------------------------------------------------

    def create_message_stream(self) -> MessageStream:
        """Open a message stream with the lowest free id, from 1 on: GStreamer only knows 1."""
        if len(self.message_streams) >= self.limits.message_stream_limit:
            raise LimitExceeded("message_stream_limit", self.limits.message_stream_limit, len(self.message_streams) + 1)
        number = next(n for n in range(1, len(self.message_streams) + 2) if n not in self.message_streams)
        message_stream = self.message_streams[number] = MessageStream(number)
        return message_stream

    def message_stream(self, number: int) -> MessageStream:
        """Return the message stream for a publish or play: the one named, else the only one, else a new one."""
        found = self.message_streams.get(number)
        if found is not None:
            return found
        if len(self.message_streams) == 1:
            return next(iter(self.message_streams.values()))
        return self.create_message_stream()

    def leave(self, message_stream: MessageStream, reason: str) -> bytes:
        """End what a message stream does; return what is owed on the connection before anything else."""
        owed = b""
        if message_stream.publisher is not None:
            message_stream.publisher.stop(reason)
        if message_stream.player is not None:
            owed = message_stream.player.stop(reason)
        if self.live:
            self.phase = "publish"
        else:
            self.phase = "command" if self.any_player() is None else "play"
        self._busy_at = time.monotonic()
        return owed

    def _leave_all(self) -> bytes:
        owed = b""
        for message_stream in list(self.message_streams.values()):
            owed += self.leave(message_stream, CLOSED)
        if self.outlet is not None:
            owed = self.outlet.take_rest() + owed
        return owed

    # Upkeep ------------------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        """Close the connection if it has been silent, or idle, for too long; ping it if it is quiet. Called by the hub."""
        config = self.config
        if self.messages != self._seen_messages:
            self._seen_messages = self.messages
            self._messages_at = now_s
        if self.endpoint.bytes_received != self._seen_bytes:
            self._seen_bytes = self.endpoint.bytes_received
            self._bytes_at = now_s
        if self.authorizing:
            # Its silence is ours. How long it may wait is bounded by those who decide.
            self._messages_at = self._bytes_at = self._busy_at = now_s
        if self.phase.endswith("handshake"):
            return
        if self.live:
            if now_s - self._messages_at > config.read_timeout_s:
                self._give_up(f"the publisher sent no message for {config.read_timeout_s:g} s", zombie=True)
                return
        elif self.any_player() is None and now_s - self._busy_at > config.connect_timeout_s:
            self._give_up(f"neither published nor played within {config.connect_timeout_s:g} s")
            return
        if config.ping_interval_s and now_s - self._bytes_at > config.ping_interval_s:
            if now_s - self._bytes_at > config.ping_interval_s + config.ping_timeout_s:
                self._give_up(f"no answer to a ping for {config.ping_timeout_s:g} s", zombie=True)
            elif now_s - self._pinged_at > config.ping_interval_s:
                self._pinged_at = now_s
                self._ping(now_s)

    def _ping(self, now_s: float) -> None:
        if self.transport.sending:
            return
        self.endpoint.send_user_control(UserControlType.PING_REQUEST, int(now_s * 1000))
        self.send_now()

    def ask_to_reconnect(self, tc_url: str, description: str) -> bool:
        """Ask the client to connect again, if it said that it would; return whether it was asked. Does not wait."""
        if not self.capabilities.reconnect or not self.connected or self.transport.sending or self.transport.close_reason:
            return False
        self.log.info("asked to reconnect%s", f" to {tc_url}" if tc_url else "")
        # As all that is about the connection: on message stream 0, of which players know no media either.
        self.send_status(0, reconnect_request(tc_url, description))
        return self.send_now()

    def send_now(self) -> bool:
        """Send what is queued without waiting; return whether it has gone out, or is bound to."""
        player = self.any_player()
        data = self.endpoint.take_outgoing()
        if player is not None:
            player.write(data)
            return True
        # A publisher's socket has room for so little, or is beyond help.
        try:
            sent = self.transport.try_send(data)
        except OSError as error:
            self.log.debug("= not sent: %s", error)
            return False
        if sent < len(data):
            self.cut_off("it takes nothing")
        return sent == len(data)

    def cut_off(self, reason: str) -> None:
        """Close the connection for a reason that has been logged and counted."""
        self.expect_close()
        self.transport.close(reason)

    def expect_close(self) -> None:
        """Say that somebody is about to close the connection, for a reason that has been logged and counted."""
        self._given_up = True

    def _give_up(self, reason: str, *, zombie: bool = False) -> None:
        """Close the connection for its peer's silence; a zombie is one that was at work and has gone without a word."""
        self.hub.count("deadlines_exceeded")
        if zombie:
            self.hub.count("zombie_connections")
        self.log.warning("%s: %s", self.phase, reason)
        self.cut_off(reason)
