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


class PlayConnection(Protocol):
    """What plays ask of their connection."""

    @property
    def hub(self) -> PlayerHub:
        """The hub."""

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """The log."""

    @property
    def protocol(self) -> str:
        """The protocol, as events name it."""

    def emit(self, event_type: EventType, stream: Stream | None = None, /, **data: Scalar) -> None:
        """Publish an event of the connection."""

    def emit_end(self, event_type: EventType, stream: Stream, /, *, reason: str, **data: Scalar) -> None:
        """Publish the end of a play."""


class PlayerConnection(PlayConnection, Protocol):
    """What players with a connection of their own ask of it."""

    bytes_played: int

    @property
    def transport(self) -> Transport:
        """The transport."""

    @property
    def user(self) -> str:
        """The user that the client has logged in as; empty: none."""

    @property
    def unsent_limit_bytes(self) -> int:
        """``unsent_limit_bytes``."""

    def close(self, reason: CloseReason) -> None:
        """Close the connection. Must not wait."""


class Play(ABC):
    """One play, however the client gets the stream: its events, its log lines and its admission.

    Args:
        connection: Its connection.
        admission: What it was granted; None: nothing was asked.

    Attributes:
        connection: Likewise.
        stream: What it plays; None before the start and after the end.
        number: Counts the server's plays; given by the hub.
    """

    def __init__(self, connection: PlayConnection, admission: Admission | None) -> None:
        self.connection = connection
        self._admission = admission
        self.stream: Stream | None = None
        self.number = 0
        self._started_at = 0.0

    @abstractmethod
    def _expel(self, reason: CloseReason) -> None:
        """End the play, tell the client why, and close the connection. Must not wait."""

    @abstractmethod
    def revise(self, decisions: Decisions) -> None:
        """As `rtmpd.live.stream.StreamPlayer.revise`."""

    @abstractmethod
    def ended(self) -> None:
        """As `rtmpd.live.stream.StreamPlayer.ended`."""

    def output_ended(self, output: Output) -> None:
        """As `rtmpd.live.stream.StreamPlayer.output_ended`."""
        # That of a player of RTMP never does.
        return

    @property
    def _by_protocol(self) -> str:
        """The protocol, as log lines name it behind the stream; empty for RTMP."""
        protocol = self.connection.protocol
        return "" if protocol in ("rtmp", "rtmps") else f" by {protocol}"

    def _announce(self, stream: Stream) -> None:
        """Log and publish the start."""
        connection = self.connection
        connection.log.stream = stream.key  # type: ignore[attr-defined]
        connection.log.info("plays %s%s", stream.key, self._by_protocol)
        connection.emit(EventType.PLAY_START, stream, id=self.number, protocol=connection.protocol)

    def _keep_admitted(self, stream: Stream) -> None:
        """Renew the admission whenever it expires, from now on."""
        if self._admission is not None:
            self._admission.begin(self.connection, stream.key, self._expel)

    def _take_leave(self) -> Stream | None:
        """End the admission; return the stream, which it plays no longer, or None if it has played none."""
        stream, self.stream = self.stream, None
        if stream is not None and self._admission is not None:
            self._admission.end()
        return stream

    def _announce_end(self, stream: Stream, reason: str, sent: int, skips: int = 0, dropped: int = 0) -> None:
        """Log and publish the end, and unregister the player.

        Args:
            stream: What it has played.
            reason: Why it has ended.
            sent: Bytes that it was sent.
            skips, dropped: How often it was moved to a keyframe, and the messages that it has missed.
        """
        connection = self.connection
        duration_s = time.monotonic() - self._started_at
        connection.log.info(
            "stopped playing %s%s: %s; %.1f s, %d bytes, %s, %s dropped",
            stream.key,
            self._by_protocol,
            reason,
            duration_s,
            sent,
            count_of(skips, "skip"),
            count_of(dropped, "message"),
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
            skips=skips,
            dropped=dropped,
        )
        connection.hub.unplay(stream, self)


class StreamReader(Play):
    """One play that reads an output of its stream.

    Args:
        connection: Its connection.
        admission: What it was granted; None: nothing was asked.
        framing: The format that it gets; None: that of the published output.

    Attributes:
        subscriber: Its place in an output of the stream, while it plays.
    """

    connection: PlayerConnection

    def __init__(self, connection: PlayerConnection, admission: Admission | None, framing: Framing | None = None) -> None:
        super().__init__(connection, admission)
        self._format = framing
        self.subscriber: Subscriber | None = None
        self._output: Output | None = None

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
        self.connection.transport.limit_unsent(self.connection.unsent_limit_bytes)

    def _join(self, stream: Stream, output: Output | None = None) -> None:
        """Log and publish the start, and join an output of the stream: that which is wanted, unless one is given."""
        self._announce(stream)
        self._output = output or stream.output(self._wanted(stream), self._format)
        assert self.subscriber is not None
        self._output.fanout.join(self.subscriber)
        self._keep_admitted(stream)

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
            connection = self.connection
            connection.hub.count("unsupported_codecs")
            connection.log.warning("play of %s refused: %s (unsupported_codec)", stream.key, problem)
            self._refuse_codec(problem)
        elif output is not self._output:
            self.subscriber = transfer(subscriber, self._output.fanout, output.fanout)
            self._output = output

    def _slow(self, slow: Slow) -> None:
        """Log and publish that the player begins to lose messages. Must not wait."""
        connection, stream, subscriber = self.connection, self.stream, self.subscriber
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
        self.subscriber = self._output = None
        self._take_leave()
        rest = output.fanout.leave(subscriber)
        sent = output.fanout.sent_bytes(subscriber)
        self.connection.bytes_played += sent
        self._announce_end(stream, reason, sent, subscriber.skips, subscriber.dropped)
        return rest
