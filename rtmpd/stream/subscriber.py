"""A player's place in a stream: its cursor in the wire log, and what waits to be sent to it.

Knows how to go on alone; when, and with whom, is for `rtmpd.stream.fanout`. Imports nothing of gevent.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from rtmpd.media.tags import Kind, video_kind
from rtmpd.protocol.chunk import frame_message
from rtmpd.protocol.message import MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.stream.headers import Headers
    from rtmpd.stream.pages import Page
    from rtmpd.stream.wirelog import LoggedMessage, WireLog

__all__ = ["Progress", "State", "Subscriber", "SubscriberTransport"]

_WALK_BYTES = 64 << 10
"""How much is framed ahead for a player with a framing of its own."""


class SubscriberTransport(Protocol):
    """What a subscriber writes through: a plain socket's non-blocking side."""

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Send without waiting; return how much was taken.

        Raises:
            BlockingIOError: Nothing fits now. OSError: The connection is gone.
        """

    def watch_writable(self, callback: Callable[[], None]) -> None:
        """Call *callback*, in the event loop, once the socket takes data again."""

    def unwatch_writable(self) -> None:
        """Stop that; harmless if it was not started."""

    def close(self, reason: str) -> None:
        """Close the connection; its session ends with *reason*."""


class State(enum.Enum):
    """Where a subscriber gets its bytes from."""

    WAITING = "waits for a keyframe"
    GROUP = "goes with the others, at the group's cursor"
    ALONE = "has a cursor of its own: behind the group, or with a framing of its own"
    PAUSED = "paused"
    GONE = "has left, or its connection has failed"


def _gone(data: object) -> int:
    raise OSError("the subscriber has left")


class Progress(enum.Enum):
    """How far `Subscriber.advance` came."""

    LEVEL = "has had everything up to the limit"
    BLOCKED = "its socket is full"
    IDLE = "there is nothing for it now"


class Subscriber:
    """One play of one stream.

    Attributes:
        send: The transport's try_send, looked up once.
        message_stream_id: The player's; 1 gets the shared bytes, others a framing of their own.
        page, offset: The cursor, while the state is ALONE.
        pending: Bytes that go out before anything else: replies, headers, the rest of a message that was half sent. Always
            ends at a message boundary.
        blocked: The socket is full and watched.
        joins_seen: How many join points there had been when it began to wait.
        listed: Is in the fan-out's list of members, though it may have left the group since.
        progress_at: When it last took something (monotonic, seconds); not kept up while it is in the group.
        waiting_since: Since when it waits for a keyframe (monotonic, seconds).
        headers_version: Version of the headers that it was last sent.
        video_gate: Video is held back until the next keyframe, after receiveVideo(true).
        skips: How often it fell too far behind and was moved to a keyframe.
        messages: How many messages of the log it has had, up to where it last left the log.
        dropped: How many messages it was made to skip.
        left_at: Where it last left the log: how many messages of the log begin before; None: it has not left.
        write_timeout_s: It is cut off when it has taken nothing for this long; 0: the server's option says.
    """

    __slots__ = (
        "_begun_at",
        "blocked",
        "dropped",
        "headers_version",
        "joins_seen",
        "left_at",
        "listed",
        "message_stream_id",
        "messages",
        "offset",
        "page",
        "pending",
        "progress_at",
        "receive_audio",
        "receive_video",
        "send",
        "sent",
        "skips",
        "state",
        "transport",
        "video_gate",
        "waiting_since",
        "write_timeout_s",
    )

    def __init__(self, transport: SubscriberTransport, message_stream_id: int = 1) -> None:
        self.transport = transport
        self.send = transport.try_send
        self.message_stream_id = message_stream_id
        self.state = State.WAITING
        self.page: Page | None = None
        self.offset = 0
        self.pending = bytearray()
        self.blocked = False
        self.joins_seen = 0
        self.listed = False
        self.progress_at = 0.0
        self.waiting_since = 0.0
        self.headers_version = -1
        self.receive_audio = True
        self.receive_video = True
        self.video_gate = False
        self.skips = 0
        self.messages = 0
        self.dropped = 0
        self.write_timeout_s = 0.0
        self._begun_at: int | None = None
        self.left_at: int | None = None
        self.sent = 0  # bytes; while in the group: less the group's position, so that passes need not count

    @property
    def position(self) -> int:
        """Its cursor as a position in the log; 0 while it has none."""
        return self.page.base + self.offset if self.page is not None else 0

    def be_gone(self) -> None:
        """Send nothing more: a pass under way may still come to it when its connection is sending something else."""
        self.state = State.GONE
        self.send = _gone

    def begin_at(self, page: Page, offset: int) -> None:
        """Give it a place in the log, which it did not have."""
        number = page.messages_before(offset)
        if self.left_at is not None:
            # It may begin before where it left: then it gets some for the second time.
            self.dropped += max(0, number - self.left_at)
        self._begun_at = number
        self.page, self.offset = page, offset

    def leave_at(self, page: Page | None, offset: int) -> None:
        """Take note of where it leaves the log, or its place in it; harmless if it had none."""
        if page is not None and self._begun_at is not None:
            self.left_at = page.messages_before(offset)
            self.messages += self.left_at - self._begun_at
            self._begun_at = None

    def messages_until(self, page: Page | None, offset: int) -> int:
        """Return how many messages it has had, if that is its place in the log."""
        if page is None or self._begun_at is None:
            return self.messages
        return self.messages + page.messages_before(offset) - self._begun_at

    @property
    def walks(self) -> bool:
        """Whether it reads the log message by message, since the shared bytes are not what it wants."""
        return self.message_stream_id != 1 or not self.receive_audio or not self.receive_video or self.video_gate

    def advance(self, wirelog: WireLog, limit_page: Page | None, limit_offset: int) -> Progress:
        """Send what is pending, and then the log from the cursor up to a limit, as far as the socket takes it.

        Args:
            wirelog: The log that the cursor is in.
            limit_page, limit_offset: The group's cursor, at a message boundary. A cursor beyond it stays where it is.

        Raises:
            OSError: The connection is gone.
        """
        pending = self.pending
        try:
            while True:
                if pending:
                    sent = self.send(pending)
                    self.sent += sent
                    del pending[:sent]
                    if pending:
                        return Progress.BLOCKED
                page, offset = self.page, self.offset
                if self.state is not State.ALONE or page is None:
                    return Progress.IDLE
                level = page is limit_page and offset == limit_offset
                if self.walks:
                    if level or not self._walk(wirelog, limit_page, limit_offset):
                        return Progress.IDLE
                    continue
                if level:
                    return Progress.LEVEL
                end = limit_offset if page is limit_page else page.end
                if offset >= end:
                    if page.next is None or page is limit_page:
                        return Progress.IDLE
                    self.page, self.offset = page.next, 0
                    continue
                sent = self.send(page.view[offset:end])
                self.sent += sent
                self.offset = offset + sent
                if sent < end - offset:
                    return Progress.BLOCKED
        except BlockingIOError:
            return Progress.BLOCKED

    def finish_message(self) -> None:
        """Move the cursor to a message boundary; the rest of a half-sent message becomes pending."""
        page = self.page
        if page is None:
            return
        boundary = page.boundary(self.offset)
        if boundary > self.offset:
            self.pending += page.view[self.offset : boundary]
            self.offset = boundary

    def queue_headers(self, headers: Headers, timestamp: int, chunk_size: int) -> None:
        """Make headers pending, at the timestamp of the frame that follows them, if it has not been sent these."""
        if self.headers_version != headers.version:
            self.headers_version = headers.version
            self.pending += headers.frame(timestamp, self.message_stream_id, chunk_size)

    def frame(self, csid: int, type_id: int, timestamp: int, payload: bytes, chunk_size: int) -> bytes:
        """Frame a message for this subscriber's message stream id."""
        message_stream_id = self.message_stream_id
        if type_id == MessageType.USER_CONTROL:
            # StreamBegin and StreamEOF name the message stream in their body and travel on message stream 0.
            payload = payload[:2] + message_stream_id.to_bytes(4, "big")
            message_stream_id = 0
        return frame_message(csid, type_id, message_stream_id, timestamp, payload, chunk_size)

    def _walk(self, wirelog: WireLog, limit_page: Page | None, limit_offset: int) -> bool:
        """Frame messages up to the limit for this subscriber; return whether that made anything pending.

        Stops at the message after which the shared bytes are what it wants.
        """
        page, offset = self.page, self.offset
        assert page is not None
        pending = self.pending
        if self.headers_version < 0:
            self.queue_headers(wirelog.headers, max(wirelog.newest_timestamp, 0), wirelog.chunk_size)
        while len(pending) < _WALK_BYTES and self.walks and not (page is limit_page and offset == limit_offset):
            message = wirelog.read(page, offset)
            if message is None:
                break
            page, offset = message.page, message.offset
            if self._wants(message):
                pending += self.frame(message.csid, message.type_id, message.timestamp, message.payload, wirelog.chunk_size)
        self.page, self.offset = page, offset
        return bool(pending)

    def _wants(self, message: LoggedMessage) -> bool:
        if message.type_id == MessageType.AUDIO:
            return self.receive_audio
        if message.type_id == MessageType.VIDEO:
            if not self.receive_video:
                return False
            if self.video_gate:
                kind = video_kind(message.payload)
                if kind in (Kind.KEYFRAME, Kind.TRACK_KEYFRAME):
                    self.video_gate = False
                return kind != Kind.FRAME
        return True
