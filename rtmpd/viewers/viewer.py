"""A viewer: one play by HTTP, from the head of its response to the end of its connection."""

from __future__ import annotations

import logging
import socket as stdlib_socket
import time
from typing import TYPE_CHECKING

import gevent

from rtmpd.errors import DeadlineExceeded, LimitExceeded, TransportClosed
from rtmpd.live.framing import AUDIO, VIDEO
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.player import StreamReader
from rtmpd.protocol.enhanced import NOTHING_DECLARED
from rtmpd.rtmp.connection import ConnectionLog
from rtmpd.rtmp.fitness import wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.admission import Admission
    from rtmpd.events import EventType, Scalar
    from rtmpd.http.routes import Exchange
    from rtmpd.hub import Hub
    from rtmpd.live.flv_framing import FlvFraming
    from rtmpd.live.stream import Stream
    from rtmpd.live.ws_flv_framing import WsFlvFraming
    from rtmpd.media.rewrite import Rewrite
    from rtmpd.net.transport import Transport

log = logging.getLogger(__name__)

_TRACKS_S = 1.0
"""How long after the beginning of a source a viewer waits until both audio and video have come."""

_TRACKS_STEP_S = 0.05
_BURST_BYTES = 64 << 10
_RATE_BYTES = 4 << 10
"""What a viewer may send at once, and for each second: it has nothing to say but answers and pings."""

_KEEPALIVE = ((stdlib_socket.TCP_KEEPIDLE, 60), (stdlib_socket.TCP_KEEPINTVL, 15), (stdlib_socket.TCP_KEEPCNT, 4))
"""A viewer that waits is sent nothing, and has no pings: TCP finds out that its host is gone."""


def tracks_of(stream: Stream) -> tuple[bool, bool]:
    """Return whether a stream has audio, and whether it has video, as far as its active source has shown."""
    lane = stream.ingest.active
    types = {type_id for type_id, _ in stream.headers.items}
    if lane is None:
        return AUDIO in types, VIDEO in types
    received = lane.source.received
    return received.audio > 0 or AUDIO in types, received.video > 0 or VIDEO in types


class ViewerConnection:
    """The connection of a viewer, as hub, admission and events see one.

    Args:
        exchange: The HTTP connection.
        hub: The hub.
        protocol: ``http``, ``https``, ``ws`` or ``wss``.

    Attributes:
        bytes_played: What plays that have ended have sent.
        log: Adds the fields of the connection.
    """

    user = ""

    def __init__(self, exchange: Exchange, hub: Hub, protocol: str) -> None:
        self._exchange = exchange
        self.hub = hub
        self.protocol = protocol
        self.bytes_played = 0
        self.log = ConnectionLog(log, exchange.number, exchange.transport.peer)

    @property
    def transport(self) -> Transport:
        """The transport."""
        return self._exchange.transport

    @property
    def unsent_limit_bytes(self) -> int:
        """``unsent_limit_bytes``."""
        return self.hub.config.server.unsent_limit_bytes

    def emit(self, event_type: EventType, stream: Stream | None = None, /, **data: Scalar) -> None:
        """Publish an event of the connection."""
        bus = self.hub.bus
        if bus.wanted(event_type):
            data = {"remote_addr": self.transport.peer, **data}
            bus.emit(event_type, data, stream=stream, connection_id=str(self._exchange.number))

    def emit_end(self, event_type: EventType, stream: Stream, /, *, reason: str, **data: Scalar) -> None:
        """Publish the end of a play."""
        agent = {"agent": self._exchange.agent} if self._exchange.agent else {}
        self.emit(event_type, stream, reason=reason, **agent, **data)

    def close(self, reason: CloseReason) -> None:
        """End the play's response. The first reason counts."""
        self._exchange.close(reason)

    def report(self, reason: CloseReason) -> None:
        """Count why the play has ended, and log it if that has a line of its own."""
        for counter in reason.counters:
            self.hub.count(counter)
        if reason.logged:
            self.log.warning("playing by %s: %s", self.protocol, reason.detail)


class Viewer(StreamReader):
    """One play over HTTP: FLV as the body of a response.

    Args:
        connection: Its connection.
        admission: What it was granted.
        framing: The format of its output.
        end: Called when the stream has ended; has it closed when it was sent everything. Must not wait.

    Attributes:
        over: The stream has ended.
    """

    def __init__(
        self,
        connection: ViewerConnection,
        admission: Admission,
        framing: FlvFraming | WsFlvFraming,
        end: Callable[[Viewer], None],
    ) -> None:
        super().__init__(connection, admission, framing)
        self.connection = connection
        self._likeness_id = id(framing)
        self._flv = framing
        self._end = end
        self.over = False
        self._received = 0
        self._began_s = time.monotonic()

    @property
    def _likeness(self) -> int:
        return self._likeness_id

    def _wanted(self, stream: Stream) -> Rewrite:
        # Browsers say nothing of what they support: they get what a player of RTMP gets that declares nothing.
        return wanted(NOTHING_DECLARED, stream.options.live, stream.content)

    def unsupported(self, stream: Stream) -> str:
        """Return nothing: a viewer lists no codecs."""
        return ""

    def _refuse_codec(self, problem: str) -> None:
        self.connection.close(CloseReason(CloseKind.EXPELLED, f"refused: {problem}"))

    def _expel(self, reason: CloseReason) -> None:
        self.connection.close(reason)

    def ended(self) -> None:
        """Take note that the stream has ended: the viewer leaves when it was sent everything."""
        self.over = True
        if self.subscriber is not None:
            self._end(self)

    def finish(self, reason: CloseReason) -> None:
        """End the play, which the client has had all of. Must not wait."""
        self.connection.close(reason)

    @property
    def has_all(self) -> bool:
        """Whether it was sent everything, or has left."""
        output, subscriber = self._output, self.subscriber
        return output is None or subscriber is None or output.fanout.has_all(subscriber)

    @property
    def held_bytes(self) -> int:
        """The memory of what is pending for the client."""
        return len(self.subscriber.pending) if self.subscriber is not None else 0

    def wait_for_tracks(self, stream: Stream) -> None:
        """Wait until a source that has just begun has sent both audio and video, for a second at most.

        The first bytes of FLV say which of them there are, and players trust that.
        """
        while True:
            lane = stream.ingest.active
            young = lane is not None and time.monotonic() - lane.source.started_at < _TRACKS_S
            if not young or all(tracks_of(stream)):
                return
            gevent.sleep(_TRACKS_STEP_S)

    def run(self, stream: Stream, unread: bytes) -> None:
        """Play until the connection ends, in its greenlet. The head of the response has been sent.

        Args:
            stream: The stream; the hub has registered the viewer.
            unread: What the client has sent behind its request.
        """
        connection = self.connection
        transport = connection.transport
        for option, value in _KEEPALIVE:
            transport.sock.setsockopt(stdlib_socket.IPPROTO_TCP, option, value)
        subscriber_framing = self._flv.for_viewer(lambda: tracks_of(stream))
        self._begin(stream, transport, subscriber_framing, f"viewer {transport.peer}")
        reason = CloseReason(CloseKind.INTERNAL, "internal error")
        try:
            self._join(stream)
            if self.over:
                # While the head of the response was sent.
                self._end(self)
            reason = self._listen(unread)
        except TransportClosed as error:
            reason = transport.close_reason or CloseReason(CloseKind.PEER_LEFT, str(error))
        except DeadlineExceeded as error:
            reason = CloseReason(CloseKind.DEADLINE, str(error))
        except LimitExceeded as error:
            reason = CloseReason(CloseKind.LIMIT, "limit exceeded while playing", detail=str(error))
        except gevent.GreenletExit:
            reason = CloseReason(CloseKind.SHUTDOWN, "the server is stopping")
        finally:
            transport.close(reason)
            connection.report(transport.close_reason)
            self._leave(str(transport.close_reason))

    def _listen(self, unread: bytes) -> CloseReason:
        """Read what the client sends until the connection ends; return why it does, or raise it."""
        self._check_received(len(unread))
        return self.connection.transport.recv_while(self._discard)

    def _discard(self, data: bytes | memoryview) -> None:
        self._check_received(len(data))

    def _check_received(self, size: int) -> None:
        """Count bytes of the client.

        Raises:
            LimitExceeded: It sends too much.
        """
        self._received += size
        allowed = _BURST_BYTES + int(_RATE_BYTES * (time.monotonic() - self._began_s))
        if self._received > allowed:
            raise LimitExceeded("bytes from a viewer", allowed, self._received)
