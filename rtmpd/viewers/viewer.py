"""A viewer: one play by HTTP, from the head of its response to the end of its connection."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent

from rtmpd.errors import DeadlineExceeded, LimitExceeded, TransportClosed
from rtmpd.phases import NOT_CLOSED, CloseKind, CloseReason
from rtmpd.player import StreamReader
from rtmpd.util.connection_log import ConnectionLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.admission import Admission
    from rtmpd.events import EventType, Scalar
    from rtmpd.http.routes import Exchange
    from rtmpd.hub import Hub
    from rtmpd.live.framing import Framing
    from rtmpd.live.output import Output
    from rtmpd.live.stream import Decisions, Stream
    from rtmpd.media.rewrite import Rewrite
    from rtmpd.net.transport import Transport
    from rtmpd.viewers.formats import Format

log = logging.getLogger(__name__)

_BURST_BYTES = 64 << 10
_RATE_BYTES = 4 << 10
"""What a viewer may send at once, and for each second: it has nothing to say but answers and pings."""

ENDED = CloseReason(CloseKind.COMMAND, "the stream has ended")
CHANGED = CloseReason(CloseKind.COMMAND, "the codecs of the stream have changed")
"""Why a viewer is `over`."""


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
    """One play over HTTP: the body of a response.

    Args:
        connection: Its connection.
        admission: What it was granted.
        media: The format.
        end: Called when the viewer gets nothing more; has it closed when it was sent everything. Must not wait.

    Attributes:
        connection: Likewise.
        over: Why the viewer gets nothing more: the stream has ended, or continues in a way that the viewer can't take. Empty
            while it plays.
    """

    connection: ViewerConnection

    def __init__(
        self, connection: ViewerConnection, admission: Admission, media: Format, end: Callable[[Viewer], None]
    ) -> None:
        super().__init__(connection, admission, self._framing_of(media))
        self._media = media
        self._end = end
        self.over = NOT_CLOSED
        self._received = 0
        self._began_s = time.monotonic()

    @staticmethod
    def _framing_of(media: Format) -> Framing:
        return media.framing

    @property
    def _likeness(self) -> int:
        return id(self._format)

    def _wanted(self, stream: Stream) -> Rewrite:
        return self._media.wanted(stream)

    def revise(self, decisions: Decisions) -> None:
        """Decide again which output the viewer reads, unless it gets the rest of one that is over."""
        if self._output is None or not self._output.over:
            super().revise(decisions)

    def unsupported(self, stream: Stream) -> str:
        """Return nothing: a viewer lists no codecs."""
        return ""

    def _refuse_codec(self, problem: str) -> None:
        self._expel(CloseReason(CloseKind.EXPELLED, f"refused: {problem}"))

    def _expel(self, reason: CloseReason) -> None:
        self.connection.close(reason)

    def ended(self) -> None:
        """Take note that the stream has ended: the viewer leaves when it was sent everything."""
        self._finish(ENDED)

    def output_ended(self, output: Output) -> None:
        """Take note that the codecs have changed: the viewer leaves when it was sent what was before."""
        if output is self._output:
            self._finish(CHANGED)

    def _finish(self, reason: CloseReason) -> None:
        if not self.over:
            self.over = reason
            if self.subscriber is not None:
                self._end(self)

    def finish(self) -> None:
        """End the play, which the client has had all of. Must not wait."""
        self.connection.close(self.over)

    @property
    def has_all(self) -> bool:
        """Whether it was sent everything, or has left."""
        output, subscriber = self._output, self.subscriber
        return output is None or subscriber is None or output.fanout.has_all(subscriber)

    @property
    def held_bytes(self) -> int:
        """The memory of what is pending for the client."""
        return len(self.subscriber.pending) if self.subscriber is not None else 0

    def announce(self, stream: Stream) -> str:
        """Return the media type of what the viewer is about to get.

        Raises:
            HttpError: The format does not carry the stream.
        """
        return self._media.announce(stream.output(self._wanted(stream), self._format))

    def run(self, stream: Stream, announced: str, unread: bytes) -> None:
        """Play until the connection ends, in its greenlet. The head of the response has been sent.

        Args:
            stream: The stream; the hub has registered the viewer.
            announced: The media type that the client was told.
            unread: What the client has sent behind its request.
        """
        connection = self.connection
        transport = connection.transport
        # A viewer that waits is sent nothing, and has no pings.
        transport.keep_alive()
        reason = CloseReason(CloseKind.INTERNAL, "internal error")
        try:
            output = stream.output(self._wanted(stream), self._format)
            if not self.over and self._media.announce(output) != announced:
                self.over = CHANGED
            if self.over:
                # While the head of the response was sent.
                self._send_end()
                reason = self.over
                return
            self._begin(stream, transport, self._media.subscriber_framing(stream, output), f"viewer {transport.peer}")
            self._join(stream, output)
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

    def _send_end(self) -> None:
        """Tell the client, which is sent no media, that it is `over`."""

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
