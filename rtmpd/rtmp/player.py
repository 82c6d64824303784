"""The player: the role of a message stream that reads an output of a stream."""

from __future__ import annotations

from sys import getsizeof
from typing import TYPE_CHECKING

import gevent

from rtmpd.admission import LINGER_S
from rtmpd.live.framing import Notice, NoticeKind
from rtmpd.live.rtmp_framing import RtmpSubscriberFraming
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.player import LAST_MESSAGE_BYTES, StreamReader
from rtmpd.protocol import status
from rtmpd.rtmp.connection import PlayerRole
from rtmpd.rtmp.fitness import unsupported, wanted
from rtmpd.rtmp.outlet import SharedOutlet

if TYPE_CHECKING:
    from rtmpd.admission import Admission
    from rtmpd.live.stream import Stream
    from rtmpd.live.subscriber import Subscriber, SubscriberTransport
    from rtmpd.media.rewrite import Rewrite
    from rtmpd.rtmp.connection import Connection, MessageStream


class Player(StreamReader, PlayerRole):
    """One play; as `rtmpd.player.StreamReader`.

    Attributes:
        connection: Its connection.
    """

    connection: Connection

    def __init__(
        self, connection: Connection, message_stream: MessageStream, name: str, admission: Admission | None = None
    ) -> None:
        super().__init__(connection, admission)
        self.name = name
        chunk_size = connection.options.server.chunk_size_bytes
        self._framing = RtmpSubscriberFraming(chunk_size, message_stream.id)
        self._message_stream = message_stream

    @property
    def key(self) -> str:
        """The stream's key."""
        return self.stream.key if self.stream is not None else ""

    @property
    def held_bytes(self) -> int:
        """The memory of the name, and of what is pending for the client."""
        subscriber = self.subscriber
        return 2 * getsizeof(self.name) + (len(subscriber.pending) if subscriber is not None else 0)

    @property
    def _likeness(self) -> int:
        return id(self.connection.client.capabilities)

    def _wanted(self, stream: Stream) -> Rewrite:
        return wanted(self.connection.client.capabilities, stream.options.live, stream.content)

    def unsupported(self, stream: Stream) -> str:
        """Return why the player does not get a stream: it does not support the codec. Empty if it does."""
        return unsupported(self.connection.client.capabilities, stream.options.live, stream.content)

    def start(self, stream: Stream) -> None:
        """Join an output of the stream; the hub has agreed, and the client was sent that the play starts."""
        transport = self._transport()
        self._message_stream.role = self
        self._begin(stream, transport, self._framing, f"player {self.connection.transport.peer}")
        self.connection.settle()
        self._join(stream)

    def _expel(self, reason: CloseReason) -> None:
        connection = self.connection
        # Otherwise the socket of a slow player does not accept the last message.
        connection.transport.limit_unsent(LAST_MESSAGE_BYTES)
        rest = connection.leave(self._message_stream, reason)
        connection.send_status(self._message_stream.id, status.info(status.PLAY_FAILED, reason.client_text))
        connection.endpoint.outgoing[:0] = rest
        if not connection.transport.sending:
            connection.send_now()
        gevent.spawn_later(LINGER_S, connection.close, reason)

    def _refuse_codec(self, problem: str) -> None:
        self.write(self._framing.notice(Notice(NoticeKind.UNSUPPORTED, problem)))
        self.connection.close(CloseReason(CloseKind.EXPELLED, f"refused: {problem}"))

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
        if self.stream is not None:
            self._message_stream.role = None
        return self._leave(reason)
