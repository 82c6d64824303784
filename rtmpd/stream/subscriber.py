"""A player's place in a stream: its cursor in the wire log and what waits to be sent to it.

Data only; `rtmpd.stream.fanout` moves it. Imports nothing of gevent.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.stream.wirelog import Page

__all__ = ["State", "Subscriber", "SubscriberTransport"]


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


class Subscriber:
    """One play of one stream.

    Attributes:
        send: The transport's try_send, looked up once.
        message_stream_id: The player's; 1 gets the shared bytes, others a framing of their own.
        page, offset: The cursor, while the state is ALONE.
        pending: Bytes that go out before anything else: replies, headers, the rest of a message that was half sent. Always
            ends at a message boundary.
        blocked: The socket is full and watched.
        progress_at: When it last took something (monotonic, seconds), while it is blocked.
        waiting_since: Since when it waits for a keyframe (monotonic, seconds).
        headers_version: Version of the headers that it was last sent.
        video_gate: Video is held back until the next keyframe, after receiveVideo(true).
        skips: How often it fell too far behind and was moved to a keyframe.
    """

    __slots__ = (
        "blocked",
        "headers_version",
        "message_stream_id",
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
        self.progress_at = 0.0
        self.waiting_since = 0.0
        self.headers_version = -1
        self.receive_audio = True
        self.receive_video = True
        self.video_gate = False
        self.skips = 0
        self.sent = 0  # bytes; while in the group: less the group's position, so that passes need not count

    @property
    def walks(self) -> bool:
        """Whether it reads the log message by message, since the shared bytes are not what it wants."""
        return self.message_stream_id != 1 or not self.receive_audio or not self.receive_video or self.video_gate
