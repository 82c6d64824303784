"""What a player of any protocol has to do with hub and stream: its output, its events, its log lines and its figures."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from rtmpd.events import EventType
from rtmpd.live.output import transfer
from rtmpd.live.subscriber import State, Subscriber
from rtmpd.util.text import count_of

if TYPE_CHECKING:
    import logging

    from rtmpd.admission import Admission
    from rtmpd.authorization import Authorizer
    from rtmpd.events import Scalar
    from rtmpd.live.framing import Framing, SubscriberFraming
    from rtmpd.live.output import Output
    from rtmpd.live.stream import Decisions, Stream, StreamPlayer
    from rtmpd.live.subscriber import Slow, SubscriberTransport
    from rtmpd.media.rewrite import Rewrite
    from rtmpd.net.transport import Transport
    from rtmpd.phases import CloseReason

LAST_MESSAGE_BYTES = 1 << 30
"""The unsent limit of a socket that is about to be closed: whatever its buffer has room for."""


class PlayerHub(Protocol):
    """What players ask of the hub."""

    @property
    def authorizer(self) -> Authorizer:
        """Authorizes connections, publishes and plays."""

    def unplay(self, stream: Stream, player: StreamPlayer) -> None:
        """Unregister a player."""

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""


class PlayerConnection(Protocol):
    """What players ask of their connection."""

    bytes_played: int

    @property
    def hub(self) -> PlayerHub:
        """The hub."""

    @property
    def transport(self) -> Transport:
        """The transport."""

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """The log."""

    @property
    def protocol(self) -> str:
        """The protocol, as events name it."""

    @property
    def user(self) -> str:
        """The user that the client has logged in as; empty: none."""

    @property
    def unsent_limit_bytes(self) -> int:
        """``unsent_limit_bytes``."""

    def emit(self, event_type: EventType, stream: Stream | None = None, /, **data: Scalar) -> None:
        """Publish an event of the connection."""

    def emit_end(self, event_type: EventType, stream: Stream, /, *, reason: str, **data: Scalar) -> None:
        """Publish the end of a play."""

    def close(self, reason: CloseReason) -> None:
        """Close the connection. Must not wait."""


class StreamReader(ABC):
    """One play.

    Args:
        connection: Its connection.
        admission: What it was granted; None: nothing was asked.
        framing: The format that it gets; None: that of the published output.

    Attributes:
        stream: What it plays; None before the start and after the end.
        subscriber: Its place in an output of the stream, while it plays.
        number: Counts the server's plays; given by the hub.
    """

    def __init__(self, connection: PlayerConnection, admission: Admission | None, framing: Framing | None = None) -> None:
        self._reader = connection
        self._admission = admission
        self._format = framing
        self.stream: Stream | None = None
        self.subscriber: Subscriber | None = None
        self.number = 0
        self._output: Output | None = None
        self._started_at = 0.0

    @abstractmethod
    def _wanted(self, stream: Stream) -> Rewrite:
        """Return what is to be rewritten for it, whatever the content."""

    @abstractmethod
    def unsupported(self, stream: Stream) -> str:
        """Return why the player does not get a stream: it does not support the codec. Empty if it does."""

    @property
    @abstractmethod
    def _likeness(self) -> int:
        """A number that is the same for players that get the same."""

    @abstractmethod
    def _refuse_codec(self, problem: str) -> None:
        """Tell the client that it does not support the codec, and close the connection."""

    @abstractmethod
    def _expel(self, reason: CloseReason) -> None:
        """End the play, tell the client why, and close the connection. Must not wait."""

    def ended(self) -> None:
        """Take note that the stream has ended. Must not wait."""
        # Players of RTMP have been notified in the log, and may stay.
        return

    @property
    def bytes_sent(self) -> int:
        """Bytes of media and replies that the socket has accepted."""
        output, subscriber = self._output, self.subscriber
        return output.fanout.sent_bytes(subscriber) if output is not None and subscriber is not None else 0

    @property
    def _active(self) -> tuple[Output, Subscriber]:
        """The output and the subscriber. Only while it plays."""
        assert self._output is not None
        assert self.subscriber is not None
        return self._output, self.subscriber

    def _begin(self, stream: Stream, transport: SubscriberTransport, framing: SubscriberFraming, label: str) -> None:
        """Make the subscriber."""
        self.stream = stream
        self._started_at = time.monotonic()
        self.subscriber = Subscriber(transport, framing, label)
        self.subscriber.on_slow = self._slow
        self._reader.transport.limit_unsent(self._reader.unsent_limit_bytes)

    def _join(self, stream: Stream) -> None:
        """Log and publish the start, and join an output of the stream."""
        connection = self._reader
        connection.log.stream = stream.key  # type: ignore[attr-defined]
        connection.log.info("plays %s", stream.key)
        connection.emit(EventType.PLAY_START, stream, id=self.number, protocol=connection.protocol)
        self._output = stream.output(self._wanted(stream), self._format)
        assert self.subscriber is not None
        self._output.fanout.join(self.subscriber)
        if self._admission is not None:
            self._admission.begin(connection, stream.key, self._expel)

    def revise(self, decisions: Decisions) -> None:
        """Decide again which output the player reads: the content or the options have changed. Must not wait.

        Args:
            decisions: What has been decided for other players in this round, to which this adds its own.
        """
        stream, subscriber = self.stream, self.subscriber
        if stream is None or subscriber is None or self._output is None or subscriber.state is State.REMOVED:
            return
        found = decisions.get(self._likeness)
        if found is None:
            problem = self.unsupported(stream)
            output = self._output if problem else stream.output(self._wanted(stream), self._format)
            found = decisions[self._likeness] = problem, output
        problem, output = found
        if problem:
            connection = self._reader
            connection.hub.count("unsupported_codecs")
            connection.log.warning("play of %s refused: %s (unsupported_codec)", stream.key, problem)
            self._refuse_codec(problem)
        elif output is not self._output:
            self.subscriber = transfer(subscriber, self._output.fanout, output.fanout)
            self._output = output

    def _slow(self, slow: Slow) -> None:
        """Log and publish that the player begins to lose messages. Must not wait."""
        connection, stream, subscriber = self._reader, self.stream, self.subscriber
        if stream is None or subscriber is None:
            return
        if slow.action == "disconnect":
            # Otherwise its socket does not accept the last message.
            connection.transport.limit_unsent(LAST_MESSAGE_BYTES)
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
        output, subscriber = self._active
        output.fanout.write(subscriber, data)

    def _leave(self, reason: str) -> bytes:
        """End the play; return the bytes that must be sent on the connection before anything else."""
        stream, subscriber, output = self.stream, self.subscriber, self._output
        if stream is None or subscriber is None or output is None:
            return b""
        self.stream = self.subscriber = self._output = None
        if self._admission is not None:
            self._admission.end()
        connection = self._reader
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
            protocol=connection.protocol,
            reason=reason,
            duration_s=round(duration_s, 3),
            bytes=sent,
            skips=subscriber.skips,
            dropped=subscriber.dropped,
        )
        connection.hub.unplay(stream, self)
        return rest
