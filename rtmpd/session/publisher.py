"""The publisher's role of a connection: one message stream that feeds one live stream."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rtmpd.events import EventType

if TYPE_CHECKING:
    from rtmpd.session.connection import Connection, MessageStream
    from rtmpd.stream.stream import Stream

__all__ = ["Publisher"]


class Publisher:
    """One publish.

    Attributes:
        name: As the client gave it, query and all. Never logged: it may hold the key.
        stream: What it feeds, once started.
        number: Counts the server's publishes; given by the hub.
    """

    def __init__(self, connection: Connection, message_stream: MessageStream, name: str) -> None:
        self.connection = connection
        self.message_stream = message_stream
        self.name = name
        self.stream: Stream | None = None
        self.number = 0
        self.started_at = 0.0
        self._bytes_before = 0
        self._drops_before = 0

    @property
    def key(self) -> str:
        """The stream's key."""
        return self.stream.key if self.stream is not None else ""

    def start(self, stream: Stream) -> None:
        """Take messages for *stream* from now on; the hub has agreed."""
        self.stream = stream
        self.started_at = time.monotonic()
        self._bytes_before = stream.bytes_in
        self._drops_before = stream.fanout.skips + stream.fanout.stalled
        self.message_stream.publisher = self
        self.connection.live[self.message_stream.id] = stream
        self.connection.phase = "publish"
        self.connection.log.stream = stream.key
        self.connection.log.info("publishes %s", stream.key)
        self.connection.emit(EventType.PUBLISH_START, stream, id=self.number)

    def stop(self, reason: str) -> None:
        """End the publish; harmless if it has ended."""
        stream = self.stream
        if stream is None:
            return
        self.stream = None
        self.message_stream.publisher = None
        self.connection.live.pop(self.message_stream.id, None)
        duration_s = time.monotonic() - self.started_at
        byte_count = stream.bytes_in - self._bytes_before
        codecs = ", ".join(f"{track} {codec}" for track, codec in stream.headers.codecs.items())
        self.connection.log.info(
            "stopped publishing %s: %s; %.1f s, %d bytes%s",
            stream.key,
            reason,
            duration_s,
            byte_count,
            f" ({codecs})" if codecs else "",
            extra={"stream": stream.key},
        )
        self.connection.emit_end(
            EventType.PUBLISH_STOP,
            stream,
            id=self.number,
            reason=reason,
            duration_s=round(duration_s, 3),
            bytes=byte_count,
            drops=stream.fanout.skips + stream.fanout.stalled - self._drops_before,
        )
        self.connection.hub.unpublish(stream, self)

    def evict(self, reason: str) -> None:
        """End the connection that publishes."""
        self.connection.transport.close(reason)
