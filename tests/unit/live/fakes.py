"""What the tests of a stream stand on: a transport without a socket, a clock without time, media without a codec."""

from __future__ import annotations

import dataclasses
import gc
from typing import TYPE_CHECKING

import gevent

from rtmpd.config.loader import load_text
from rtmpd.live.fanout import Fanout
from rtmpd.live.pages import Page
from rtmpd.live.subscriber import Subscriber
from rtmpd.live.wirelog import WireLog
from rtmpd.protocol.chunk import ChunkReader, RawMessage, frame_message
from rtmpd.protocol.message import CSID_AUDIO, CSID_COMMAND, CSID_DATA, CSID_VIDEO, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import ApplicationConfig

CHUNK = 4096
DEFAULTS = load_text("").defaults


def app_options(base: ApplicationConfig = DEFAULTS, **changes: object) -> ApplicationConfig:
    """The options of an application, without pacing, with *changes*, which are each found in its section."""
    changes = {"pacing": False, **changes}
    parts = {}
    for part in dataclasses.fields(base):
        values = getattr(base, part.name)
        own = {each.name: changes.pop(each.name) for each in dataclasses.fields(values) if each.name in changes}
        parts[part.name] = dataclasses.replace(values, **own)
    assert not changes, changes
    return dataclasses.replace(base, **parts)


class FakeTransport:
    """A `SubscriberTransport` whose socket takes what the test says.

    Attributes:
        capacity: Bytes that the socket still takes; None: all.
        data: What it has taken.
        sends: How often it was asked to take something.
        error: What try_send raises instead.
        on_send: Called at the beginning of each try_send.
        close_reason: The first reason given to `close`.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.data = bytearray()
        self.sends = 0
        self.error: OSError | None = None
        self.on_send: Callable[[], None] | None = None
        self.close_reason = ""
        self._callback: Callable[[], None] | None = None

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        self.sends += 1
        if self.on_send is not None:
            self.on_send()
        if self.error is not None:
            raise self.error
        taken = len(data) if self.capacity is None else min(self.capacity, len(data))
        if not taken and len(data):
            raise BlockingIOError
        if self.capacity is not None:
            self.capacity -= taken
        self.data += data[:taken]
        return taken

    def watch_writable(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def unwatch_writable(self) -> None:
        self._callback = None

    def close(self, reason: str) -> None:
        self.close_reason = self.close_reason or reason

    @property
    def watched(self) -> bool:
        return self._callback is not None

    def take(self, capacity: int | None = None) -> None:
        """Let the socket take so much more (None: everything), and say so to whoever watches it."""
        self.capacity = capacity
        if self._callback is not None and capacity != 0:
            self._callback()

    def messages(self, chunk_size: int = CHUNK) -> list[RawMessage]:
        """What the peer has got; fails if it ends inside a message."""
        return parse(bytes(self.data), chunk_size)


def reader(chunk_size: int = CHUNK) -> ChunkReader:
    made = ChunkReader(message_limit_bytes=0xFFFFFF)
    made.chunk_size = chunk_size
    return made


def parse(data: bytes, chunk_size: int = CHUNK) -> list[RawMessage]:
    """Take whole messages apart; what ends inside a message, header or body, is an error."""
    end = frame_message(CSID_COMMAND, MessageType.COMMAND_AMF0, 0, 0, b"the end", chunk_size)
    *messages, last = reader(chunk_size).feed(data + end)
    assert last.payload == b"the end"
    return messages


class FakeTime:
    """Stands in for a module's ``time``: work goes on by *step_s* whenever somebody looks, the clock on the wall by hand."""

    def __init__(self, now_s: float = 1000.0, step_s: float = 0.0) -> None:
        self.now_s = now_s
        self.worked_s = 0.0
        self.step_s = step_s

    def monotonic(self) -> float:
        return self.now_s

    def thread_time(self) -> float:
        self.worked_s += self.step_s
        return self.worked_s


def settle(rounds: int = 40) -> None:
    """Let other greenlets run until they have nothing left to do; *rounds* is more than any pass here takes."""
    for _ in range(rounds):
        gevent.sleep(0)


def live_pages() -> int:
    """How many pages there are in this process."""
    gc.collect()
    return sum(type(each) is Page for each in gc.get_objects())


# Media: the first two bytes are those of real tags, then comes a label, then padding.


def keyframe(label: str = "", size: int = 0) -> bytes:
    return (b"\x17\x01" + label.encode()).ljust(size, b"k")


def frame(label: str = "", size: int = 0) -> bytes:
    return (b"\x27\x01" + label.encode()).ljust(size, b"f")


def audio_frame(label: str = "", size: int = 0) -> bytes:
    return (b"\xaf\x01" + label.encode()).ljust(size, b"a")


AVC_HEADER = b"\x17\x00\x00\x00\x00avcC"
AAC_HEADER = b"\xaf\x00\x12\x10"


class Scene:
    """A wire log with its fan-out, and short words for what tests do with them."""

    def __init__(self, chunk_size: int = CHUNK, **options: object) -> None:
        self.options = app_options(**options)
        self.log = WireLog(chunk_size, self.options.limits.gop_cache_limit_bytes)
        self.fanout = Fanout(self.log, self.options, "live/test")
        self.timestamp = 0

    def append(self, csid: int, type_id: int, payload: bytes, timestamp: int | None = None, **more: object) -> None:
        self.timestamp = self.timestamp + 10 if timestamp is None else timestamp
        self.log.append(csid, type_id, self.timestamp, payload, **more)
        if self.fanout.active:
            self.fanout.wake()

    def video(self, payload: bytes, timestamp: int | None = None) -> None:
        self.append(CSID_VIDEO, MessageType.VIDEO, payload, timestamp, join_point=payload[:1] == b"\x17")

    def audio(self, payload: bytes, timestamp: int | None = None) -> None:
        self.append(CSID_AUDIO, MessageType.AUDIO, payload, timestamp)

    def data(self, payload: bytes, timestamp: int | None = None) -> None:
        self.append(CSID_DATA, MessageType.DATA_AMF0, payload, timestamp)

    def join(self, capacity: int | None = None, message_stream_id: int = 1) -> tuple[Subscriber, FakeTransport]:
        transport = FakeTransport(capacity)
        subscriber = Subscriber(transport, message_stream_id)
        self.fanout.join(subscriber)
        return subscriber, transport

    def reply(self, text: str) -> bytes:
        """A command as chunks: what a session writes between media."""
        return frame_message(CSID_COMMAND, MessageType.COMMAND_AMF0, 0, 0, text.encode(), self.log.chunk_size)

    def close(self) -> None:
        self.fanout.close()
        settle(2)


def texts(transport: FakeTransport, chunk_size: int = CHUNK) -> list[bytes]:
    """The payloads that a peer has got."""
    return [message.payload for message in transport.messages(chunk_size)]
