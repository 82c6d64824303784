"""A player's place in a stream: its cursor in the wire log, and what waits to be sent to it.

Knows how to go on alone; when, and with whom, is for `rtmpd.live.fanout`. Imports nothing of gevent.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Protocol

from rtmpd.media.tags import Kind, video_kind
from rtmpd.protocol.chunk import frame_message
from rtmpd.protocol.message import MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.live.backpressure import Slow
    from rtmpd.live.headers import Headers
    from rtmpd.live.pages import Page
    from rtmpd.live.wirelog import LoggedMessage, WireLog

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
        dropped: How many messages it was not sent: those that it was made to skip or was not there for, and disposable frames.
        disposed: The disposable frames among these.
        thin: It gets no disposable frames.
        skips_only: Whatever ``backpressure_policy`` says, it is only moved to keyframes: it is another server, not a player.
        skipped: It was moved, and has no new place yet.
        slow: It has lost something since it was last level.
        on_slow: Called when it begins to lose something; it must not wait.
        told_at: When that was last called (monotonic, seconds).
        begun_behind_ms, begun_behind_bytes: How far behind it began, until it has caught up.
        left_at: Where it last left the log: how many messages of the log begin before; None: it has not left.
        write_timeout_s: It is cut off when it has taken nothing for this long; 0: the server's option says.
    """

    __slots__ = (
        "_begun_at",
        "begun_behind_bytes",
        "begun_behind_ms",
        "blocked",
        "disposed",
        "dropped",
        "headers_version",
        "joins_seen",
        "left_at",
        "listed",
        "message_stream_id",
        "messages",
        "offset",
        "on_slow",
        "page",
        "pending",
        "progress_at",
        "receive_audio",
        "receive_video",
        "send",
        "sent",
        "skipped",
        "skips",
        "skips_only",
        "slow",
        "state",
        "thin",
        "told_at",
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
        self.disposed = 0
        self.thin = False
        self.skips_only = False
        self.skipped = False
        self.slow = False
        self.on_slow: Callable[[Slow], None] | None = None
        self.told_at = -math.inf
        self.begun_behind_ms = 0
        self.begun_behind_bytes = 0
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

    def successor(self) -> Subscriber:
        """Make what goes on for it in another log of the same stream. It must have left this one."""
        made = Subscriber(self.transport, self.message_stream_id)
        made.receive_audio, made.receive_video = self.receive_audio, self.receive_video
        made.video_gate = self.video_gate
        made.skips, made.messages, made.dropped, made.sent = self.skips, self.messages, self.dropped, self.sent
        made.disposed, made.on_slow, made.told_at, made.slow = self.disposed, self.on_slow, self.told_at, self.slow
        made.write_timeout_s = self.write_timeout_s
        return made

    def begin_at(self, page: Page, offset: int) -> int:
        """Give it a place in the log, which it did not have; return how many messages a skip has cost it."""
        number = page.messages_before(offset)
        # It may begin before where it left: then it gets some for the second time.
        missed = max(0, number - self.left_at) if self.left_at is not None else 0
        self.dropped += missed
        skipped, self.skipped = self.skipped, False
        self._begun_at = number
        self.page, self.offset = page, offset
        return missed if skipped else 0

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
                if self.thin:
                    end = self._next_disposable(page, offset, end)
                    if end == offset:
                        self._dispose(page.boundary(offset + 1))
                        continue
                sent = self.send(page.view[offset:end])
                self.sent += sent
                self.offset = offset + sent
                if sent < end - offset:
                    return Progress.BLOCKED
        except BlockingIOError:
            return Progress.BLOCKED

    @staticmethod
    def _next_disposable(page: Page, offset: int, end: int) -> int:
        """Return where the next disposable frame begins, from a cursor on; *end* if that is farther."""
        index = bisect_left(page.disposable, offset)
        return min(end, page.disposable[index]) if index < len(page.disposable) else end

    def _dispose(self, offset: int) -> None:
        """Step over a disposable frame."""
        self.offset = offset
        self.disposed += 1
        self.dropped += 1
        # It is counted with those between where it began and where it leaves.
        self.messages -= 1

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
            if self.thin and page.is_disposable(message.offset):
                self._dispose(offset)
            elif self._wants(message):
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
