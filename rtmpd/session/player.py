"""The player's role of a connection: one message stream that a live stream's fan-out writes to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rtmpd.events import EventType
from rtmpd.session.outlet import SharedOutlet
from rtmpd.stream.subscriber import Subscriber, SubscriberTransport

if TYPE_CHECKING:
    from rtmpd.session.connection import Connection, MessageStream
    from rtmpd.stream.stream import Stream

__all__ = ["Player"]


class Player:
    """One play.

    Attributes:
        name: As the client gave it; never logged, it may hold a token.
        stream: What it plays, once started.
        subscriber: Its place in the stream's fan-out, once started.
        number: Counts the server's plays; given by the hub.
    """

    def __init__(self, connection: Connection, message_stream: MessageStream, name: str) -> None:
        self.connection = connection
        self.message_stream = message_stream
        self.name = name
        self.stream: Stream | None = None
        self.subscriber: Subscriber | None = None
        self.number = 0
        self.started_at = 0.0

    @property
    def key(self) -> str:
        """The stream's key."""
        return self.stream.key if self.stream is not None else ""

    def start(self, stream: Stream) -> None:
        """Join the stream's fan-out; the hub has agreed, and the client has been told that play starts."""
        connection = self.connection
        self.stream = stream
        self.started_at = time.monotonic()
        self.message_stream.player = self
        self.subscriber = Subscriber(self._writer(), self.message_stream.id)
        connection.transport.limit_unsent(connection.config.unsent_limit_bytes)
        connection.phase = "play"
        connection.log.stream = stream.key
        connection.log.info("plays %s", stream.key)
        connection.emit(EventType.PLAY_START, stream, id=self.number)
        stream.fanout.join(self.subscriber)

    def _writer(self) -> SubscriberTransport:
        """Return what to write through: the socket itself, or the connection's outlet once a second stream plays on it."""
        connection = self.connection
        others = [m.player for m in connection.message_streams.values() if m.player not in (None, self)]
        if connection.outlet is None and others:
            connection.outlet = SharedOutlet(connection.transport)
            for other in others:
                assert other is not None
                assert other.stream is not None
                assert other.subscriber is not None
                connection.outlet.owe(other.stream.fanout.rehome(other.subscriber, connection.outlet))
        return connection.outlet or connection.transport

    def write(self, data: bytes) -> None:
        """Send a reply, between two messages of the media."""
        assert self.stream is not None
        assert self.subscriber is not None
        self.stream.fanout.write(self.subscriber, data)

    def pause(self) -> None:
        """Send no media until `resume`."""
        assert self.stream is not None
        assert self.subscriber is not None
        self.stream.fanout.pause(self.subscriber)

    def resume(self) -> None:
        """Send media again, from the newest keyframe."""
        assert self.stream is not None
        assert self.subscriber is not None
        self.stream.fanout.resume(self.subscriber)

    def receive(self, *, audio: bool | None = None, video: bool | None = None) -> None:
        """Switch audio or video on or off."""
        assert self.stream is not None
        assert self.subscriber is not None
        self.stream.fanout.receive(self.subscriber, audio=audio, video=video)

    def stop(self, reason: str) -> bytes:
        """End the play; return what is owed on the connection before anything else may be sent."""
        stream, subscriber = self.stream, self.subscriber
        if stream is None or subscriber is None:
            return b""
        self.stream = self.subscriber = None
        self.message_stream.player = None
        connection = self.connection
        owed = stream.fanout.leave(subscriber)
        sent = stream.fanout.sent_bytes(subscriber)
        connection.bytes_played += sent
        duration_s = time.monotonic() - self.started_at
        connection.log.info(
            "stopped playing %s: %s; %.1f s, %d bytes, %d skips",
            stream.key,
            reason,
            duration_s,
            sent,
            subscriber.skips,
            extra={"stream": stream.key},
        )
        connection.emit_end(
            EventType.PLAY_STOP,
            stream,
            id=self.number,
            reason=reason,
            duration_s=round(duration_s, 3),
            bytes=sent,
            drops=subscriber.skips,
        )
        connection.hub.unplay(stream, self)
        return owed
