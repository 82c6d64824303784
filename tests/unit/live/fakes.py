"""Stand-ins for the tests of streams: a transport without a socket, a clock without time, media without a codec."""

from __future__ import annotations

import dataclasses
import gc
import logging
from typing import TYPE_CHECKING

import gevent

from rtmpd.config.loader import load_text
from rtmpd.live.fanout import Fanout
from rtmpd.live.framing import AUDIO, DATA, VIDEO, Headers
from rtmpd.live.log import Log
from rtmpd.live.pages import Page
from rtmpd.live.rtmp_framing import RtmpFraming, RtmpSubscriberFraming
from rtmpd.live.source import Source, SourceInfo, SourceKind
from rtmpd.live.stream import Stream
from rtmpd.live.subscriber import Subscriber
from rtmpd.media.tags import Kind, audio_kind, video_kind
from rtmpd.phases import NOT_CLOSED, CloseReason
from rtmpd.protocol.chunk import ChunkReader, RawMessage, frame_message
from rtmpd.protocol.message import CSID_COMMAND, MessageType

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
    """A `SubscriberTransport` whose socket accepts as much as the test says.

    Attributes:
        capacity: The number of bytes that the socket still accepts; None: any number.
        data: The bytes that it has accepted.
        sends: The number of calls of try_send.
        error: Raised by try_send, if it is set.
        on_send: Called at the beginning of each try_send.
        close_reason: The first reason given to `close`; empty: it is open.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.data = bytearray()
        self.sends = 0
        self.error: OSError | None = None
        self.on_send: Callable[[], None] | None = None
        self.close_reason: CloseReason = NOT_CLOSED
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

    def close(self, reason: CloseReason) -> None:
        self.close_reason = self.close_reason or reason

    @property
    def watched(self) -> bool:
        return self._callback is not None

    def take(self, capacity: int | None = None) -> None:
        """Let the socket accept *capacity* more bytes (None: any number), and call the callback that watches it."""
        self.capacity = capacity
        if self._callback is not None and capacity != 0:
            self._callback()

    def messages(self, chunk_size: int = CHUNK) -> list[RawMessage]:
        """Return the messages that the peer has received; fail if the bytes end inside one."""
        return parse(bytes(self.data), chunk_size)


def reader(chunk_size: int = CHUNK) -> ChunkReader:
    made = ChunkReader(message_limit_bytes=0xFFFFFF)
    made.chunk_size = chunk_size
    return made


def parse(data: bytes, chunk_size: int = CHUNK) -> list[RawMessage]:
    """Parse chunks; fail if they end inside a message, header or body."""
    end = frame_message(CSID_COMMAND, MessageType.COMMAND_AMF0, 0, 0, b"the end", chunk_size)
    *messages, last = reader(chunk_size).feed(data + end)
    assert last.payload == b"the end"
    return messages


class FakeTime:
    """Stands in for a module's ``time``: each call of `thread_time` adds *step_s*; `monotonic` is set by the test."""

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
    """Let other greenlets run until they have nothing to do; *rounds* is more than any pass here takes."""
    for _ in range(rounds):
        gevent.sleep(0)


def live_pages() -> int:
    """Return the number of pages in this process."""
    gc.collect()
    return sum(type(each) is Page for each in gc.get_objects())


# Media: the first two bytes are those of real tags, then follows a label, then padding.


def keyframe(label: str = "", size: int = 0) -> bytes:
    return (b"\x17\x01" + label.encode()).ljust(size, b"k")


def frame(label: str = "", size: int = 0) -> bytes:
    return (b"\x27\x01" + label.encode()).ljust(size, b"f")


def audio_frame(label: str = "", size: int = 0) -> bytes:
    return (b"\xaf\x01" + label.encode()).ljust(size, b"a")


AVC_HEADER = b"\x17\x00\x00\x00\x00avcC"
AAC_HEADER = b"\xaf\x00\x12\x10"


def video_headers(*payloads: bytes) -> Headers:
    return Headers(tuple((VIDEO, payload) for payload in payloads))


def new_source(
    on_stop: Callable[[CloseReason], None] = lambda reason: None,
    *,
    log: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
    **info: object,
) -> Source:
    """Return a source as an RTMP publish makes one; *info* are fields of its `SourceInfo`."""
    values = {"kind": SourceKind.RTMP, "peer": "192.0.2.1:50000", **info}
    return Source(SourceInfo(**values), log or logging.getLogger("test.source"), on_stop)


def new_stream(
    key: str = "live/test", options: ApplicationConfig | None = None, chunk_size: int = CHUNK, **more: object
) -> Stream:
    """Return a stream whose published output is framed as RTMP chunks; *more* are further arguments of `Stream`."""
    return Stream(key, options or app_options(), RtmpFraming(chunk_size), **more)


def close_stream(stream: Stream) -> None:
    """End a stream, whatever its phase, and close it."""
    stream.end()
    stream.close()
    settle(2)


def new_subscriber(transport: FakeTransport, message_stream_id: int = 1, chunk_size: int = CHUNK) -> Subscriber:
    """Return the subscriber of a player."""
    return Subscriber(transport, RtmpSubscriberFraming(chunk_size, message_stream_id), "the player")


def kind_of(type_id: int, payload: bytes) -> int:
    """Return the kind of a message, as a source finds it."""
    if type_id == VIDEO:
        return video_kind(payload)
    return audio_kind(payload) if type_id == AUDIO else int(Kind.OTHER)


def receive(fanout: Fanout, subscriber: Subscriber, *, audio: bool | None = None, video: bool | None = None) -> None:
    """Switch audio or video of a player on or off, as the commands receiveAudio and receiveVideo do."""

    def change(subscriber: Subscriber) -> None:
        assert isinstance(subscriber.framing, RtmpSubscriberFraming)
        if subscriber.framing.switch(audio=audio, video=video):
            subscriber.headers = None

    fanout.reframe(subscriber, change)


class Scene:
    """A log of RTMP chunks with its fan-out, and short words for what tests do with them."""

    def __init__(self, chunk_size: int = CHUNK, **options: object) -> None:
        self.options = app_options(**options)
        self.log = Log(RtmpFraming(chunk_size), self.options.limits.gop_cache_limit_bytes)
        self.fanout = Fanout(self.log, self.options, "live/test")
        self.timestamp = 0
        self.chunk_size = chunk_size

    def append(self, type_id: int, payload: bytes, timestamp: int | None = None, *, join_point: bool = False) -> None:
        self.timestamp = self.timestamp + 10 if timestamp is None else timestamp
        self.log.append(type_id, self.timestamp, payload, kind_of(type_id, payload), join_point)

    def video(self, payload: bytes, timestamp: int | None = None) -> None:
        self.append(VIDEO, payload, timestamp, join_point=payload[:1] == b"\x17")

    def audio(self, payload: bytes, timestamp: int | None = None) -> None:
        self.append(AUDIO, payload, timestamp)

    def data(self, payload: bytes, timestamp: int | None = None) -> None:
        self.append(DATA, payload, timestamp)

    def subscriber(self, transport: FakeTransport, message_stream_id: int = 1) -> Subscriber:
        """Return a subscriber that has not joined."""
        return new_subscriber(transport, message_stream_id, self.chunk_size)

    def join(self, capacity: int | None = None, message_stream_id: int = 1) -> tuple[Subscriber, FakeTransport]:
        transport = FakeTransport(capacity)
        subscriber = self.subscriber(transport, message_stream_id)
        self.fanout.join(subscriber)
        return subscriber, transport

    def receive(self, subscriber: Subscriber, *, audio: bool | None = None, video: bool | None = None) -> None:
        """Switch audio or video of a player on or off, as the commands receiveAudio and receiveVideo do."""
        receive(self.fanout, subscriber, audio=audio, video=video)

    def reply(self, text: str) -> bytes:
        """Return a command as chunks: what a connection writes between media."""
        return frame_message(CSID_COMMAND, MessageType.COMMAND_AMF0, 0, 0, text.encode(), self.chunk_size)

    def close(self) -> None:
        self.fanout.close()
        settle(2)


def texts(transport: FakeTransport, chunk_size: int = CHUNK) -> list[bytes]:
    """Return the payloads that a peer has received."""
    return [message.payload for message in transport.messages(chunk_size)]


def remove_and_read_on(scene: Scene, subscriber: Subscriber, transport: FakeTransport) -> FakeTransport:
    """Remove a subscriber, and let its socket accept all bytes of the log from its place on."""
    page, offset = scene.fanout.place_of(subscriber)
    transport.data += scene.fanout.leave(subscriber)
    while page is not None:
        transport.data += page.view[offset : page.end]
        page, offset = page.next, 0
    return transport
