"""The player: the role of a message stream that reads an output of a stream."""

from __future__ import annotations

import time
from sys import getsizeof
from typing import TYPE_CHECKING

import gevent

from rtmpd.events import EventType
from rtmpd.live.framing import Notice, NoticeKind
from rtmpd.live.output import transfer
from rtmpd.live.rtmp_framing import RtmpSubscriberFraming
from rtmpd.live.subscriber import State, Subscriber
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.protocol import status
from rtmpd.rtmp.admission import LINGER_S
from rtmpd.rtmp.connection import PlayerRole
from rtmpd.rtmp.fitness import unsupported, wanted
from rtmpd.rtmp.outlet import SharedOutlet
from rtmpd.util.text import count_of

if TYPE_CHECKING:
    from rtmpd.live.output import Output
    from rtmpd.live.stream import Decisions, Stream
    from rtmpd.live.subscriber import Slow, SubscriberTransport
    from rtmpd.media.rewrite import Rewrite
    from rtmpd.rtmp.admission import Admission
    from rtmpd.rtmp.connection import Connection, MessageStream

_LAST_MESSAGE_BYTES = 1 << 30
"""The unsent limit of a socket that is about to be closed: whatever its buffer has room for."""


class Player(PlayerRole):
    """One play.

    Attributes:
        connection: Its connection.
        stream: What it plays; None before the start and after the end.
        subscriber: Its place in an output of the stream, while it plays.
        number: Counts the server's plays; given by the hub.
    """

    def __init__(
        self, connection: Connection, message_stream: MessageStream, name: str, admission: Admission | None = None
    ) -> None:
        self.connection = connection
        self._admission = admission
        self.name = name
        self.stream: Stream | None = None
        self.subscriber: Subscriber | None = None
        self.number = 0
        chunk_size = connection.options.server.chunk_size_bytes
        self._framing = RtmpSubscriberFraming(chunk_size, message_stream.id)
        self._message_stream = message_stream
        self._output: Output | None = None
        self._started_at = 0.0

    @property
    def key(self) -> str:
        """The stream's key."""
        return self.stream.key if self.stream is not None else ""

    @property
    def bytes_sent(self) -> int:
        """Bytes of media and replies that the socket has accepted."""
        output, subscriber = self._output, self.subscriber
        return output.fanout.sent_bytes(subscriber) if output is not None and subscriber is not None else 0

    @property
    def held_bytes(self) -> int:
        """The memory of the name, and of what is pending for the client."""
        subscriber = self.subscriber
        return 2 * getsizeof(self.name) + (len(subscriber.pending) if subscriber is not None else 0)

    @property
    def _active(self) -> tuple[Output, Subscriber]:
        """The output and the subscriber. Only while it plays."""
        assert self._output is not None
        assert self.subscriber is not None
        return self._output, self.subscriber

    def _wanted(self, stream: Stream) -> Rewrite:
        return wanted(self.connection.client.capabilities, stream.options.live, stream.content)

    def unsupported(self, stream: Stream) -> str:
        """Return why the player does not get a stream: it does not support the codec. Empty if it does."""
        return unsupported(self.connection.client.capabilities, stream.options.live, stream.content)

    def start(self, stream: Stream) -> None:
        """Join an output of the stream; the hub has agreed, and the client was sent that the play starts."""
        connection = self.connection
        self.stream = stream
        self._started_at = time.monotonic()
        transport = self._transport()
        self._message_stream.role = self
        self.subscriber = Subscriber(transport, self._framing, f"player {connection.transport.peer}")
        self.subscriber.on_slow = self._slow
        connection.transport.limit_unsent(connection.options.server.unsent_limit_bytes)
        connection.settle()
        connection.log.stream = stream.key
        connection.log.info("plays %s", stream.key)
        connection.emit(EventType.PLAY_START, stream, id=self.number)
        self._output = stream.output(self._wanted(stream))
        self._output.fanout.join(self.subscriber)
        if self._admission is not None:
            self._admission.begin(connection, stream.key, self._expel)

    def _expel(self, reason: CloseReason) -> None:
        """End the play, tell the client why, and close the connection. Must not wait."""
        connection = self.connection
        # Otherwise the socket of a slow player does not accept the last message.
        connection.transport.limit_unsent(_LAST_MESSAGE_BYTES)
        rest = connection.leave(self._message_stream, reason)
        connection.send_status(self._message_stream.id, status.info(status.PLAY_FAILED, reason.client_text))
        connection.endpoint.outgoing[:0] = rest
        if not connection.transport.sending:
            connection.send_now()
        gevent.spawn_later(LINGER_S, connection.close, reason)

    def revise(self, decisions: Decisions) -> None:
        """Decide again which output the player reads: the content or the options have changed. Must not wait.

        Args:
            decisions: What has been decided for other players in this round, to which this adds its own.
        """
        stream, subscriber, capabilities = self.stream, self.subscriber, self.connection.client.capabilities
        if stream is None or subscriber is None or self._output is None or subscriber.state is State.REMOVED:
            return
        found = decisions.get(id(capabilities))
        if found is None:
            problem = self.unsupported(stream)
            output = self._output if problem else stream.output(self._wanted(stream))
            found = decisions[id(capabilities)] = problem, output
        problem, output = found
        if problem:
            connection = self.connection
            connection.hub.count("unsupported_codecs")
            connection.log.warning("play of %s refused: %s (unsupported_codec)", stream.key, problem)
            self.write(self._framing.notice(Notice(NoticeKind.UNSUPPORTED, problem)))
            connection.close(CloseReason(CloseKind.EXPELLED, f"refused: {problem}"))
        elif output is not self._output:
            self.subscriber = transfer(subscriber, self._output.fanout, output.fanout)
            self._output = output

    def _transport(self) -> SubscriberTransport:
        """Return what to write to: the socket itself, or the connection's outlet once a second stream plays on it."""
        connection = self.connection
        others = connection.players()
        if connection.outlet is None and others:
            connection.outlet = SharedOutlet(connection.transport)
            for other in others:
                other.change_outlet(connection.outlet)
        return connection.outlet or connection.transport

    def change_outlet(self, outlet: SharedOutlet) -> None:
        """Write to an outlet from now on."""
        output, subscriber = self._active
        outlet.owe(output.fanout.change_transport(subscriber, outlet))

    def _slow(self, slow: Slow) -> None:
        """Log and publish that the player begins to lose messages. Must not wait."""
        connection, stream, subscriber = self.connection, self.stream, self.subscriber
        if stream is None or subscriber is None:
            return
        if slow.action == "disconnect":
            # Otherwise its socket does not accept the last message.
            connection.transport.limit_unsent(_LAST_MESSAGE_BYTES)
        connection.log.warning(
            "%s: the player is too slow (%s, backpressure_policy): %.1f s and %d bytes behind, %d skips, %d messages dropped",
            stream.key,
            slow.action,
            slow.lag_ms / 1000,
            slow.lag_bytes,
            subscriber.skips,
            subscriber.dropped,
            extra={"stream": stream.key},
        )
        user = {"user": connection.client.user} if connection.client.user else {}
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
        output, subscriber = self._active
        output.fanout.write(subscriber, data)

    def pause(self) -> None:
        """Send no media until `resume`."""
        output, subscriber = self._active
        output.fanout.pause(subscriber)

    def resume(self) -> None:
        """Send media again, from the newest keyframe."""
        output, subscriber = self._active
        output.fanout.resume(subscriber)

    def receive(self, *, audio: bool | None = None, video: bool | None = None) -> None:
        """Switch audio or video on or off; video resumes at a keyframe."""

        def change(subscriber: Subscriber) -> None:
            if self._framing.switch(audio=audio, video=video):
                # Headers may have changed while video was off.
                subscriber.headers = None

        output, subscriber = self._active
        output.fanout.reframe(subscriber, change)

    def stop(self, reason: str) -> bytes:
        """End the play; return the bytes that must be sent on the connection before anything else."""
        stream, subscriber, output = self.stream, self.subscriber, self._output
        if stream is None or subscriber is None or output is None:
            return b""
        self.stream = self.subscriber = self._output = None
        self._message_stream.role = None
        if self._admission is not None:
            self._admission.end()
        connection = self.connection
        rest = output.fanout.leave(subscriber)
        sent = output.fanout.sent_bytes(subscriber)
        connection.bytes_played += sent
        duration_s = time.monotonic() - self._started_at
        connection.log.info(
            "stopped playing %s: %s; %.1f s, %d bytes, %s, %s dropped",
            stream.key,
            reason,
            duration_s,
            sent,
            count_of(subscriber.skips, "skip"),
            count_of(subscriber.dropped, "message"),
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
        return rest
