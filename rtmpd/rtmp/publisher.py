"""The publisher: the role of a message stream that feeds a stream. It is the RTMP side of a source."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING

import gevent

from rtmpd.admission import LINGER_S
from rtmpd.events import EventType
from rtmpd.live.grant import NOTHING_GRANTED
from rtmpd.live.source import Source, SourceInfo, SourceKind
from rtmpd.net.readers import Pace
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.protocol import status
from rtmpd.rtmp.connection import WITH_CONNECTION, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.admission import Admission
    from rtmpd.live.stream import Stream
    from rtmpd.rtmp.connection import Connection, MessageStream


def _pace(sources: Mapping[int, Source]) -> Pace:
    """Return when to read a connection that feeds these sources."""
    if not sources:
        return Pace.REQUESTS
    return Pace.EAGER if any(source.wanted for source in sources.values()) else Pace.LAZY


class Publisher(Role):
    """One publish.

    Attributes:
        source: What it is to the stream and the hub.
    """

    def __init__(
        self, connection: Connection, message_stream: MessageStream, name: str, admission: Admission | None = None
    ) -> None:
        client = connection.client
        self.name = name
        info = SourceInfo(
            SourceKind.RTMP, connection.transport.peer, client.user, client.agent, client.via, str(connection.number)
        )
        # Weak: a cycle would keep the connection until the garbage collector runs, which is seldom.
        stop_source = weakref.WeakMethod(self._stop_source)

        def stop(reason: CloseReason) -> None:
            method = stop_source()
            if method is not None:
                method(reason)

        transport, sources = connection.transport, connection.sources

        def set_pace(wanted: bool) -> None:
            transport.set_pace(_pace(sources))

        grant = admission.grant if admission is not None else NOTHING_GRANTED
        self.source = Source(info, connection.log, stop, set_pace, grant)
        self._admission = admission
        self._connection = connection
        self._message_stream = message_stream
        self._stream: Stream | None = None
        self._skips_before = self._dropped_before = 0

    @property
    def key(self) -> str:
        """The stream's key."""
        return self._stream.key if self._stream is not None else ""

    def start(self, stream: Stream) -> None:
        """Feed *stream* from now on; the hub has agreed."""
        connection, counters = self._connection, stream.counters
        self._stream = stream
        self._skips_before, self._dropped_before = counters.skips, counters.dropped
        self._message_stream.role = self
        connection.sources[self._message_stream.id] = self.source
        connection.transport.set_pace(_pace(connection.sources))
        connection.settle()
        connection.log.stream = stream.key
        connection.log.info("publishes %s", stream.key)
        terms = str(self.source.grant)
        if terms:
            connection.log.info("%s: this publish is granted: %s", stream.key, terms)
        connection.emit(EventType.PUBLISH_START, stream, id=self.source.number)
        if self._admission is not None:
            self._admission.begin(connection, stream.key, self._stop_source)

    def stop(self, reason: str) -> bytes:
        """End the publish; harmless if it has ended. Nothing remains to be sent."""
        stream, source, connection = self._stream, self.source, self._connection
        if stream is None:
            return b""
        self._stream = None
        self._message_stream.role = None
        if self._admission is not None:
            self._admission.end()
        connection.sources.pop(self._message_stream.id, None)
        connection.transport.set_pace(_pace(connection.sources))
        duration_s = time.monotonic() - source.started_at
        # The number of the first track means nothing to an operator: "video 0" would read as none.
        codecs = ", ".join(f"{track.removesuffix(' 0')} {codec}" for track, codec in source.headers.codecs.items())
        connection.log.info(
            "stopped publishing %s: %s; %.1f s, %d bytes%s",
            stream.key,
            reason,
            duration_s,
            source.bytes_in,
            f" ({codecs})" if codecs else "",
            extra={"stream": stream.key},
        )
        connection.emit_end(
            EventType.PUBLISH_STOP,
            stream,
            id=source.number,
            reason=reason,
            duration_s=round(duration_s, 3),
            bytes=source.bytes_in,
            skips=stream.counters.skips - self._skips_before,
            dropped=stream.counters.dropped - self._dropped_before,
        )
        # A client that ends its publish by a command does so by a plain text.
        lost = reason == WITH_CONNECTION or isinstance(reason, CloseReason)
        connection.hub.unpublish(stream, source, lost=lost, reason=reason)
        return b""

    def _stop_source(self, reason: CloseReason) -> None:
        """End the publish for a reason of the hub's or the stream's, and close the connection as that requires."""
        connection = self._connection
        if reason.kind is CloseKind.EXPELLED:
            # The client gets the reason, and the time to read it. What it sends meanwhile is read and discarded: unread, it
            # would make the kernel reset the connection, and the message would be lost. Encoders retry at once after most
            # codes, and would send as much again.
            connection.leave(self._message_stream, reason)
            connection.send_status(self._message_stream.id, status.info(status.PUBLISH_REJECTED, reason.client_text))
            if not connection.transport.sending:
                connection.send_now()
            gevent.spawn_later(LINGER_S, connection.close, reason)
            return
        self.stop(reason)
        connection.settle()
        if reason.kind is CloseKind.TAKEN_OVER:
            connection.close(reason)
