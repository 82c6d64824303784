"""The player's role of a connection: one message stream that a live stream's fan-out writes to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rtmpd.events import EventType
from rtmpd.live.stream import stream_status
from rtmpd.live.subscriber import State, Subscriber, SubscriberTransport
from rtmpd.live.variant import transfer
from rtmpd.protocol import status
from rtmpd.protocol.message import CSID_STATUS, MessageType
from rtmpd.rtmp.fitness import unsupported, wanted
from rtmpd.rtmp.outlet import SharedOutlet

if TYPE_CHECKING:
    from rtmpd.live.backpressure import Slow
    from rtmpd.live.fanout import Fanout
    from rtmpd.live.stream import Decisions, Stream
    from rtmpd.media.rewrite import Rewrite
    from rtmpd.rtmp.connection import Connection, MessageStream

__all__ = ["Player"]

_COMMAND = int(MessageType.COMMAND_AMF0)
_FAREWELL_BYTES = 1 << 30
"""What a socket may hold unsent that is about to be closed: whatever its buffer has room for."""


class Player:
    """One play.

    Attributes:
        name: As the client gave it; never logged, it may hold a token.
        stream: What it plays, once started.
        subscriber: Its place in a fan-out of the stream, once started.
        number: Counts the server's plays; given by the hub.
    """

    def __init__(self, connection: Connection, message_stream: MessageStream, name: str) -> None:
        self.connection = connection
        self.message_stream = message_stream
        self.name = name
        self.stream: Stream | None = None
        self.subscriber: Subscriber | None = None
        self._fanout: Fanout | None = None
        self.number = 0
        self.started_at = 0.0

    @property
    def key(self) -> str:
        """The stream's key."""
        return self.stream.key if self.stream is not None else ""

    @property
    def fanout(self) -> Fanout:
        """Who delivers to it. Only while it plays."""
        assert self._fanout is not None
        return self._fanout

    @property
    def active(self) -> Subscriber:
        """Its subscriber. Only while it plays."""
        assert self.subscriber is not None
        return self.subscriber

    def _wanted(self, stream: Stream) -> Rewrite:
        return wanted(self.connection.capabilities, stream.options.live, stream.content)

    def unsupported(self, stream: Stream) -> str:
        """Return why it is not to get a stream: the codec is none that it takes; empty if it is."""
        return unsupported(self.connection.capabilities, stream.options.live, stream.content)

    def start(self, stream: Stream) -> None:
        """Join a fan-out of the stream; the hub has agreed, and the client has been told that play starts."""
        connection = self.connection
        self.stream = stream
        self.started_at = time.monotonic()
        self.message_stream.player = self
        self.subscriber = Subscriber(self._writer(), self.message_stream.id)
        self.subscriber.on_slow = self._slow
        connection.transport.limit_unsent(connection.config.unsent_limit_bytes)
        connection.phase = "play"
        connection.log.stream = stream.key
        connection.log.info("plays %s", stream.key)
        connection.emit(EventType.PLAY_START, stream, id=self.number)
        self._fanout = stream.fanout_for(self._wanted(stream))
        self._fanout.join(self.subscriber)

    def revise(self, decisions: Decisions) -> None:
        """Look again what it is to get: there is news of what is published, or of the options. Must not wait.

        Args:
            decisions: What has been decided for others in this go; and for this one, afterwards.
        """
        stream, subscriber, capabilities = self.stream, self.subscriber, self.connection.capabilities
        if stream is None or subscriber is None or subscriber.state is State.GONE:
            return
        found = decisions.get(id(capabilities))
        if found is None:
            problem = self.unsupported(stream)
            fanout = self.fanout if problem else stream.fanout_for(self._wanted(stream))
            found = decisions[id(capabilities)] = problem, fanout
        problem, fanout = found
        if problem:
            self._refuse(stream, subscriber, problem)
        elif fanout is not self.fanout:
            self.subscriber = transfer(subscriber, self.fanout, fanout)
            self._fanout = fanout

    def _refuse(self, stream: Stream, subscriber: Subscriber, problem: str) -> None:
        connection = self.connection
        connection.hub.count("unsupported_codecs")
        connection.log.warning("play refused: %s", problem)
        payload = stream_status(status.PLAY_NO_TRACK, problem)
        self.write(subscriber.frame(CSID_STATUS, _COMMAND, 0, payload, stream.wirelog.chunk_size))
        connection.cut_off(f"refused: {problem}")

    def _writer(self) -> SubscriberTransport:
        """Return what to write through: the socket itself, or the connection's outlet once a second stream plays on it."""
        connection = self.connection
        others = [m.player for m in connection.message_streams.values() if m.player not in (None, self)]
        if connection.outlet is None and others:
            connection.outlet = SharedOutlet(connection.transport)
            for other in others:
                assert other is not None
                connection.outlet.owe(other.fanout.rehome(other.active, connection.outlet))
        return connection.outlet or connection.transport

    def _slow(self, slow: Slow) -> None:
        """Tell those who want to know that it begins to lose something. Must not wait."""
        connection, stream, subscriber = self.connection, self.stream, self.subscriber
        if stream is None or subscriber is None:
            return
        if slow.action == "disconnect":
            connection.expect_close()
            # Else its socket takes no word of why.
            connection.transport.limit_unsent(_FAREWELL_BYTES)
        connection.log.warning(
            "%s: too slow (%s): %.1f s and %d bytes behind, %d skips, %d messages dropped",
            stream.key,
            slow.action,
            slow.lag_ms / 1000,
            slow.lag_bytes,
            subscriber.skips,
            subscriber.dropped,
            extra={"stream": stream.key},
        )
        user = {"user": connection.user} if connection.user else {}
        connection.emit(
            EventType.PLAYER_SLOW,
            stream,
            id=self.number,
            **user,
            action=slow.action,
            policy=slow.policy,
            lag_ms=slow.lag_ms,
            lag_bytes=slow.lag_bytes,
            skips=subscriber.skips,
            dropped=subscriber.dropped,
        )

    def write(self, data: bytes) -> None:
        """Send a reply, between two messages of the media."""
        self.fanout.write(self.active, data)

    def pause(self) -> None:
        """Send no media until `resume`."""
        self.fanout.pause(self.active)

    def resume(self) -> None:
        """Send media again, from the newest keyframe."""
        self.fanout.resume(self.active)

    def receive(self, *, audio: bool | None = None, video: bool | None = None) -> None:
        """Switch audio or video on or off."""
        self.fanout.receive(self.active, audio=audio, video=video)

    def stop(self, reason: str) -> bytes:
        """End the play; return what is owed on the connection before anything else may be sent."""
        stream, subscriber, fanout = self.stream, self.subscriber, self._fanout
        if stream is None or subscriber is None or fanout is None:
            return b""
        self.stream = self.subscriber = self._fanout = None
        self.message_stream.player = None
        connection = self.connection
        owed = fanout.leave(subscriber)
        sent = fanout.sent_bytes(subscriber)
        connection.bytes_played += sent
        duration_s = time.monotonic() - self.started_at
        connection.log.info(
            "stopped playing %s: %s; %.1f s, %d bytes, %d skips, %d messages dropped",
            stream.key,
            reason,
            duration_s,
            sent,
            subscriber.skips,
            subscriber.dropped,
            extra={"stream": stream.key},
        )
        connection.emit_end(
            EventType.PLAY_STOP,
            stream,
            id=self.number,
            reason=reason,
            duration_s=round(duration_s, 3),
            bytes=sent,
            skips=subscriber.skips,
            dropped=subscriber.dropped,
        )
        connection.hub.unplay(stream, self)
        return owed
