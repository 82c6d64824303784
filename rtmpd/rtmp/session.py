"""The life of one RTMP connection: handshakes, then messages until it ends.

Runs in a greenlet of its own and reads like the specification. Whatever ends the connection is one `CloseReason`: one log line
and its counters.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import gevent

from rtmpd.errors import (
    DeadlineExceeded,
    HandshakeError,
    LimitExceeded,
    LoginRequired,
    Refused,
    RemoteProtocolError,
    RtmpdError,
    TlsError,
    TransportClosed,
)
from rtmpd.events import EventType
from rtmpd.net.tls_transport import TlsTransport
from rtmpd.net.transport import deadline
from rtmpd.phases import CloseKind, CloseReason, ConnectionPhase
from rtmpd.protocol import status
from rtmpd.protocol.command import amf0_body, decode_command
from rtmpd.protocol.handshake import ServerHandshake
from rtmpd.protocol.intake import FrameIntake
from rtmpd.protocol.message import (
    COMMAND_TYPES,
    CONTROL_TYPES,
    DATA_TYPES,
    MessageType,
    UserControlType,
    split_aggregate,
)
from rtmpd.rtmp.commands import COMMANDS, answer_unknown
from rtmpd.util.turns import SLICE_S

if TYPE_CHECKING:
    from rtmpd.live.source import Source
    from rtmpd.protocol.chunk import RawMessage
    from rtmpd.protocol.command import Command
    from rtmpd.rtmp.connection import Connection

_AUDIO, _VIDEO = int(MessageType.AUDIO), int(MessageType.VIDEO)
_CHUNKS = 64
"""How many chunks are read between two looks at the clock. Ordinary reads have fewer."""

_STEP = 8
"""How many messages are handled between two looks at the clock: a header may take a fifth of a millisecond."""

_REQUESTS = 1000
"""How many messages a client may send before it publishes or plays."""

_BUSY_S = 1.0
"""How long a connection that has exceeded a slice waits for a turn before it handles what it reads."""

_LINGER_S = 1.5
_KINDS: tuple[tuple[type[RtmpdError], CloseKind, str], ...] = (
    (TlsError, CloseKind.TLS, "TLS failed"),
    (HandshakeError, CloseKind.HANDSHAKE, "invalid RTMP"),
    (LimitExceeded, CloseKind.LIMIT, "limit exceeded"),
    (RemoteProtocolError, CloseKind.PROTOCOL, "invalid RTMP"),
)
"""What the text of the close reason begins with, by exception."""
_LATE = {ConnectionPhase.TLS_HANDSHAKE: CloseKind.TLS, ConnectionPhase.HANDSHAKE: CloseKind.HANDSHAKE}


class Session:
    """Runs one connection.

    Audio and video are handed to the stream in the event loop, as they come; the connection's greenlet does all else, which
    may wait. What a read asks for is done in slices of time: after the first slice the connection waits for a turn, and for a
    while it does so before each read. So a client that asks for much work delays itself and others like it, and nothing else.

    Args:
        connection: The connection.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._admitted = False
        self._slice_ends_at = 0.0
        self._busy_until = 0.0
        self._unfed = b""
        self._intake = FrameIntake(connection.endpoint, connection.sources, self._take_data, self._take_messages)

    def run(self, first: bytes = b"") -> CloseReason:
        """Serve the connection until it ends; return why it does. The caller calls `Connection.closed`. Raises nothing.

        Args:
            first: Bytes of the client that have been read already.
        """
        connection = self._connection
        try:
            self._handshake(self._secure(first))
            while True:
                messages = connection.transport.recv_while(self._intake)
                data, self._unfed = self._unfed, b""
                if data:
                    self._take(data)
                else:
                    self._serve(messages)
        except gevent.GreenletExit:
            # The time limit of a stop is over.
            return CloseReason(CloseKind.SHUTDOWN, "the server is stopping")
        except Exception as error:
            known = self._reason(error)
            if known is not None:
                return known
            connection.hub.count("internal_errors")
            connection.log.exception("internal error in phase %s: the connection is closed", connection.phase.value)
            return CloseReason(CloseKind.INTERNAL, "internal error")
        finally:
            # A reference cycle would keep the connection until the garbage collector runs, which is seldom.
            del self._intake

    def _reason(self, error: Exception) -> CloseReason | None:
        """Return why the connection ends, by the exception that ended it; None: the exception is a bug."""
        connection, phase = self._connection, self._connection.phase
        if isinstance(error, Refused):
            return connection.close_reason
        for kind, close_kind, text in _KINDS:
            if isinstance(error, kind):
                return CloseReason(close_kind, f"{text} in phase {phase.value}", detail=str(error))
        if isinstance(error, TransportClosed):
            if connection.transport.close_reason:
                return connection.transport.close_reason
            if connection.connected:
                return CloseReason(CloseKind.PEER_LEFT, str(error))
            # GnuTLS leaves a server whose certificate it does not accept like this: it sends no alert.
            after_tls = phase is ConnectionPhase.HANDSHAKE and connection.transport.scheme == "rtmps"
            hint = " right after the TLS handshake: it probably does not trust the certificate" if after_tls else ""
            return CloseReason(CloseKind.EARLY, f"{error}{hint}")
        if isinstance(error, DeadlineExceeded):
            return CloseReason(_LATE.get(phase, CloseKind.DEADLINE), f"too slow in phase {phase.value}", detail=str(error))
        return None

    # Handshakes --------------------------------------------------------------------------------------------------------

    def _secure(self, first: bytes) -> bytes:
        """Do the TLS handshake of a connection that came in by RTMPS; return what was read of RTMP."""
        connection = self._connection
        transport, hub = connection.transport, connection.hub
        if not isinstance(transport, TlsTransport):
            return first
        hub.tls.accept(transport, connection.options.tls_handshake_timeout_s, first)
        hub.count("tls_handshakes")
        connection.log.debug("= TLS handshake done: %s", transport.description)
        subject = transport.certificate_subject
        if subject:
            connection.log.info("client certificate: %s", subject)
        connection.enter(ConnectionPhase.HANDSHAKE)
        return b""

    def _handshake(self, data: bytes) -> None:
        connection, limit_s = self._connection, self._connection.options.server.handshake_timeout_s
        handshake = ServerHandshake(os.urandom)
        with deadline(limit_s, "handshake"):
            while not handshake.done:
                reply = handshake.feed(data or connection.transport.recv())
                data = b""
                if reply:
                    connection.transport.send_all(reply, limit_s)
        connection.log.debug("= handshake done: %s", handshake.kind)
        connection.enter(ConnectionPhase.CONNECT)
        connection.emit(EventType.HANDSHAKE_COMPLETE, kind=str(handshake.kind))
        self._take(handshake.remainder)

    # Messages ----------------------------------------------------------------------------------------------------------

    def _take_data(self, data: bytes | memoryview) -> list[RawMessage] | None:
        """Take what was read from a client that neither publishes nor plays, or has exceeded a slice. In the event loop.

        Returns:
            As `rtmpd.protocol.intake.FrameIntake`.
        """
        if not self._admitted or time.monotonic() < self._busy_until:
            self._unfed = bytes(data)
            return []
        self._intake.direct = True
        return self._intake(data)

    def _take_messages(self, messages: list[RawMessage]) -> list[RawMessage] | None:
        """Hand audio and video to sources, in the event loop. Must not wait.

        Returns:
            None: all is done. Otherwise the greenlet continues with these messages, of which the first is none of media, and
            with what the chunk reader has not read.
        """
        connection = self._connection
        self._slice_ends_at = time.monotonic() + SLICE_S
        endpoint, sources = connection.endpoint, connection.sources
        while True:
            for number, message in enumerate(messages):
                type_id, message_stream_id, timestamp, payload = message
                late = number % _STEP == _STEP - 1 and time.monotonic() >= self._slice_ends_at
                if late or (type_id != _VIDEO and type_id != _AUDIO):
                    return messages[number:]
                source = sources.get(message_stream_id) or self._only_source()
                if source is None:
                    continue
                if type_id == _VIDEO:
                    source.video(timestamp, payload)
                else:
                    source.audio(timestamp, payload)
            if not endpoint.reader.unread and not endpoint.outgoing:
                return None
            if endpoint.outgoing or time.monotonic() >= self._slice_ends_at:
                return []
            messages = endpoint.receive(b"", _CHUNKS)

    def _take(self, data: bytes) -> None:
        """Do what the messages ask that *data* completes."""
        now_s = time.monotonic()
        self._slice_ends_at = now_s + SLICE_S
        if now_s < self._busy_until:
            self._wait_for_turn()
        self._serve(self._connection.endpoint.receive(data, _CHUNKS))

    def _serve(self, messages: list[RawMessage]) -> None:
        """Do what messages ask, and those behind them that the chunk reader has not read."""
        connection = self._connection
        endpoint, sources = connection.endpoint, connection.sources
        while True:
            for number, message in enumerate(messages):
                if number % _STEP == _STEP - 1:
                    self._pace()
                type_id, message_stream_id, timestamp, payload = message
                if type_id == _VIDEO:
                    source = sources.get(message_stream_id) or self._only_source()
                    if source is not None:
                        source.video(timestamp, payload)
                elif type_id == _AUDIO:
                    source = sources.get(message_stream_id) or self._only_source()
                    if source is not None:
                        source.audio(timestamp, payload)
                else:
                    self._other(message)
            if endpoint.outgoing:
                connection.flush()
            if not self._admitted:
                self._check_requests()
            if not endpoint.reader.unread:
                return
            self._pace()
            messages = endpoint.receive(b"", _CHUNKS)

    def _check_requests(self) -> None:
        """Limit what a client sends before it publishes or plays."""
        connection = self._connection
        self._admitted = connection.phase in (ConnectionPhase.PUBLISH, ConnectionPhase.PLAY)
        received, limit = connection.endpoint.bytes_received, connection.options.limits.request_limit_bytes
        if not self._admitted and received > limit:
            raise LimitExceeded("request_limit_bytes", limit, received)
        if not self._admitted and connection.messages > _REQUESTS:
            raise LimitExceeded("messages before the first publish or play", _REQUESTS, connection.messages)

    def _pace(self) -> None:
        """Wait for a turn if the slice is over."""
        now_s = time.monotonic()
        if now_s >= self._slice_ends_at:
            self._busy_until = now_s + _BUSY_S
            self._intake.direct = False
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        transport = self._connection.transport
        self._connection.hub.turns.wait()
        self._slice_ends_at = time.monotonic() + SLICE_S
        if transport.close_reason:
            raise TransportClosed(str(transport.close_reason))

    def _only_source(self) -> Source | None:
        """Return the only source, for media on another message stream: librtmp's first type 1 header has 0."""
        sources = self._connection.sources
        if len(sources) == 1:
            return next(iter(sources.values()))
        if not self._connection.connected:
            raise RemoteProtocolError("media before connect")
        return None

    def _other(self, message: RawMessage) -> None:
        connection, type_id = self._connection, message.type_id
        if type_id in COMMAND_TYPES:
            self._command(message)
        elif type_id in CONTROL_TYPES:
            event = connection.endpoint.control(message)
            if event is not None and event.event == UserControlType.PING_RESPONSE:
                connection.log.debug("< ping response")
        elif type_id in DATA_TYPES:
            self._media(message)
        elif type_id == MessageType.AGGREGATE:
            for number, part in enumerate(split_aggregate(message), 1):
                if number % _CHUNKS == 0:
                    self._pace()
                if part.type_id in (_VIDEO, _AUDIO, *DATA_TYPES):
                    self._media(part)
        else:
            # Shared objects, and types that no specification lists.
            connection.log.debug("< message of type %d ignored", type_id)

    def _media(self, message: RawMessage) -> None:
        source = self._connection.sources.get(message.message_stream_id) or self._only_source()
        if source is None:
            return
        if message.type_id == _VIDEO:
            source.video(message.timestamp, message.payload)
        elif message.type_id == _AUDIO:
            source.audio(message.timestamp, message.payload)
        else:
            source.data(message.timestamp, amf0_body(message))

    def _command(self, message: RawMessage) -> None:
        connection = self._connection
        self._pace()
        connection.check_command_rate()
        limit = connection.options.limits.request_limit_bytes
        if len(message.payload) > limit:
            raise LimitExceeded("request_limit_bytes", limit, len(message.payload))
        command = decode_command(message)
        if not connection.connected and command.name != "connect":
            raise RemoteProtocolError(f"command {command.name[:40]!r} before connect")
        # A name is whatever the client sent: quoted, it can't forge a line.
        connection.log.debug("< %.80r %g on %d", command.name, command.transaction_id, command.message_stream_id)
        handler = COMMANDS.get(command.name, answer_unknown)
        try:
            handler(connection, command)
        except Refused as refused:
            self._refuse(refused, command)
            raise

    def _refuse(self, refused: Refused, command: Command) -> None:
        """Send a refusal and wait until the client has read it: OBS hangs when a server just closes the connection."""
        connection = self._connection
        kind = CloseKind.REFUSED
        if isinstance(refused, LoginRequired):
            kind = CloseKind.LOGIN
            connection.log.debug("= %s: %s", command.name, refused)
        else:
            connection.hub.count("refused")
            connection.log.warning("%s refused: %s", command.name, refused)
        connection.begin_closing(CloseReason(kind, f"refused: {refused}"))
        rest = connection.leave_all()
        info = status.info(refused.code, refused.description)
        if command.name == "connect":
            connection.endpoint.send_command("_error", command.transaction_id, None, info)
        else:
            connection.send_status(command.message_stream_id, info)
        data = rest + connection.endpoint.take_outgoing()
        connection.transport.send_all(data, connection.options.server.write_timeout_s)
        connection.transport.linger(_LINGER_S)
