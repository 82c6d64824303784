"""What becomes of random messages of publishers, from the wire to the players' sockets, as digests of all that can be seen.

A process has either the compiled or the pure form of the hot paths, so `tests.property.test_fast` runs this module in another
process and compares::

    python -m tests.property.publish_trace FIRST STOP      one digest per seed
    python -m tests.property.publish_trace SEED            what the digest of one seed is made of
"""

from __future__ import annotations

import hashlib
import random
from contextlib import ExitStack
from typing import TYPE_CHECKING
from unittest import mock

from rtmpd.live.framing import AUDIO, DATA, VIDEO
from rtmpd.live.log import NEVER
from rtmpd.live.subscriber import State
from rtmpd.protocol import amf0
from rtmpd.protocol.chunk import ChunkReader, frame_message
from tests.property.digests import main
from tests.unit.live.fakes import (
    AAC_HEADER,
    FakeTime,
    FakeTransport,
    app_options,
    close_stream,
    new_source,
    new_stream,
    new_subscriber,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.live.log import Log
    from rtmpd.live.subscriber import Subscriber
    from rtmpd.media.timestamps import Timeline

STEPS = 120
EDGE_TIMES = [0, 1, 0xFFFFF0, 0xFFFFFE, 0xFFFFFF, 0x1000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFE0, 0xFFFFFFFF]
AVC_HEADER = b"\x17\0\0\0\0\1\x64\0\x1f\xff\xe1\0\0"  # lengths of NAL units have 4 bytes
METADATA = amf0.encode("onMetaData") + amf0.encode({"width": 640.0})
ORDINARY = {VIDEO: b"\x27\x01\0\0\0", AUDIO: b"\xaf\x01", DATA: METADATA}
OTHERS = {
    VIDEO: [
        *(b"", b"\x27", b"\x17", b"\x27\x01", b"\x37\x01", b"\x17\x01", b"\x27\x02", b"\x27\x00", b"\x57\x01", b"\xa7\x01"),
        *(
            b"\x22\x01",
            b"\x2c\x01",
            b"\x1c\x01\0",
            b"\x7f\1",
            b"\x91hvc1",
            b"\xa1hvc1",
            b"\xa3av01",
            b"\x96\x21",
            b"\xa7\x01\0",
        ),
    ],
    AUDIO: [
        *(b"", b"\xaf", b"\xaf\x01", b"\xaf\x01\x21\x10", b"\xaf\x02", b"\xae\x01", b"\xaf\x00\x12\x10", b"\x2f\xff"),
        *(b"\x91mp4a", b"\x95\x01"),
    ],
    DATA: [METADATA, b"\2\0\3abc", b"xy"],
}


class BatchReader:
    """A reader of a log in batches."""

    def __init__(self, log: Log, every: int) -> None:
        self.log, self.every, self.woken = log, every, []
        self.wake_at = log.position + every

    def wake(self) -> None:
        assert self.wake_at == NEVER
        self.woken.append(self.log.position)
        self.wake_at = self.log.position + self.every

    def fail(self) -> None:
        self.woken.append(-1)


class Trace:
    """A random script, and what can be seen after each step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        choose = self.random.choice
        self.chunk_size_in = choose([128, 4096, 65_536])
        self.stream = new_stream(
            options=app_options(gop_cache=choose([True, True, False]), gop_cache_limit_bytes=choose([3000, 60_000, 8 << 20])),
            chunk_size=choose([1, 128, 4096, 65_536]),
        )
        self.biggest = 300 if self.stream.published.log.framing.chunk_size == 1 else choose([300, 3000, 20_000])
        self.players: list[tuple[Subscriber, FakeTransport]] = []
        self.readers: list[BatchReader] = []
        self.stopped: list[str] = []
        self.calm = choose([0.6, 0.9, 0.99])  # the share of ordinary messages
        self.begin()

    def begin(self) -> None:
        self.source = new_source(lambda reason: self.stopped.append(str(reason)))
        self.stream.begin(self.source)
        self.reader, self.unread, self.messages = ChunkReader(), b"", 0
        self.reader.chunk_size = self.chunk_size_in
        self.clocks = dict.fromkeys((AUDIO, VIDEO, DATA), self.random.choice([*EDGE_TIMES, 5000, 90_000]))
        if self.random.random() < 0.9:
            for type_id, payload in ((DATA, METADATA), (VIDEO, AVC_HEADER), (AUDIO, AAC_HEADER)):
                self.give(type_id, 0, payload)

    def give(self, type_id: int, timestamp: int, payload: bytes) -> None:
        """Let a message come as chunks: at once, or with others in one read, which may end anywhere."""
        csid, message_stream_id = (4 if type_id == VIDEO else 5), self.random.choice([1, 1, 1, 1, 1, 1, 1, 2])
        self.unread += frame_message(csid, type_id, message_stream_id, timestamp, payload, self.chunk_size_in)
        if self.random.random() < 0.5:
            end = self.random.choice([len(self.unread), self.random.randrange(len(self.unread))])
            self.read(self.unread[:end])
            self.unread = self.unread[end:]

    def read(self, data: bytes) -> None:
        """Handle a read as a session does."""
        take = {VIDEO: self.source.video, AUDIO: self.source.audio, DATA: self.source.data}
        while True:
            handed, messages = self.reader.feed_frames(data, self.random.choice([3, 64]), {1: self.source})
            self.messages += handed + len(messages)
            for message in messages:
                if message.message_stream_id == 1:
                    take[message.type_id](message.timestamp, message.payload)
            if not self.reader.unread:
                return
            data = b""

    def message(self) -> None:
        generator = self.random
        type_id = generator.choice([VIDEO, VIDEO, AUDIO, AUDIO, AUDIO, DATA])
        if generator.random() < self.calm:
            step, start = generator.choice([0, 23, 40, 40]), ORDINARY[type_id]
            if type_id == VIDEO and generator.random() < 0.1:
                start = b"\x17\x01\0\0\0"
        else:
            step = generator.choice([-1, -40, 2000, 2001, -2000, -2001, 60_000, 70_000, 1 << 31, *EDGE_TIMES])
            start = generator.choice(OTHERS[type_id])
        self.clocks[type_id] = (self.clocks[type_id] + step) & 0xFFFFFFFF
        body = generator.randbytes(generator.randrange(self.biggest))
        if start == ORDINARY[VIDEO] and generator.random() < 0.7:
            # A NAL unit, which is a slice that other frames need or do not need.
            body = (len(body) + 1).to_bytes(4, "big") + generator.choice([b"\x01", b"\x41"]) + body
        self.give(type_id, self.clocks[type_id], start + body)

    def player(self) -> None:
        """A player joins or leaves, or its socket changes; all in the middle of whatever is under way."""
        fanout, generator = self.stream.published.fanout, self.random
        deed = generator.choice(["join", "join", "leave", "fill", "take", "reset"])
        if deed == "join" and len(self.players) < 5:
            transport = FakeTransport(generator.choice([None, None, 500, 5000]))
            subscriber = new_subscriber(transport, generator.choice([1, 1, 2]), fanout.log.framing.chunk_size)
            self.players.append((subscriber, transport))
            fanout.join(subscriber)
        elif self.players:
            subscriber, transport = generator.choice(self.players)
            if deed == "leave" and subscriber.state is not State.REMOVED:
                fanout.leave(subscriber)
            elif deed == "fill":
                transport.capacity = generator.choice([0, 1, 700])
            elif deed == "take":
                transport.take(generator.choice([None, 1000]))
            elif deed == "reset":
                transport.error = ConnectionResetError(104, "Connection reset by peer")

    def step(self) -> None:
        generator = self.random
        kind = generator.random()
        log = self.stream.published.log
        if kind < 0.84:
            self.message()
        elif kind < 0.92:
            self.player()
        elif kind < 0.95:
            settle()
        elif kind < 0.96:
            log.find_disposable(wanted=generator.random() < 0.7)
        elif kind < 0.97:
            log.cache_limit_bytes = generator.choice([2000, 60_000, 8 << 20])
        elif kind < 0.985:
            if self.readers and generator.random() < 0.5:
                log.remove_reader(self.readers.pop())
            else:
                self.readers.append(BatchReader(log, generator.choice([1, 1000, 30_000])))
                log.add_reader(self.readers[-1])
        else:
            if generator.random() < 0.5:
                self.stream.wait_for_source(lost=generator.random() < 0.5)
            else:
                self.stream.end()
            self.begin()

    def seen(self) -> list[object]:
        """What there is to compare."""
        log, source, timeline = self.stream.published.log, self.source, self.stream.timeline
        pages = []
        page = log.join_page or log.tail
        while page is not None:
            data = hashlib.sha1(page.view[: page.end], usedforsecurity=False).hexdigest()
            messages = (list(page.starts), bytes(page.kinds), page.disposable)
            pages.append((page.base, page.end, page.size, page.number, messages, data))
            page = page.next
        return [
            pages,
            log.account.bytes,
            (log.position, log.newest_timestamp, log.joins, log.join_offset, log.join_position, log.join_timestamp),
            (log.join_page is not None, log.headers.items, log.join_headers.items),
            clock_of(timeline),
            (tuple(source.received), source.stats.asks_audio, source.content.known),
            (source.stats.keyframes, source.stats.keyframe_interval_ms, source.stats.keyframe_at),
            [reader.woken for reader in self.readers],
            (self.stream.counters.errors, self.stopped, self.messages, self.reader.export_state()),
        ]

    def sent(self) -> list[object]:
        """What the players' sockets have accepted, when all that can be done has been."""
        settle()
        found: list[object] = []
        for subscriber, transport in self.players:
            data = hashlib.sha1(transport.data, usedforsecurity=False).hexdigest()
            found.append((subscriber.state, len(transport.data), data, str(transport.close_reason)))
        return found

    def run(self) -> Iterator[list[object]]:
        for _ in range(STEPS):
            self.step()
            yield self.seen()
        yield self.sent()
        close_stream(self.stream)


def steps(seed: int) -> Iterator[list[object]]:
    """Yield what can be seen after each step. The clock of the machine decides nothing of it."""
    with ExitStack() as stack:
        for name in ("stream", "source", "ingest", "fanout", "courier"):
            stack.enter_context(mock.patch(f"rtmpd.live.{name}.time", FakeTime()))
        yield from Trace(seed).run()


def clock_of(timeline: Timeline) -> tuple[object, ...]:
    """All of a timeline's state."""
    tracks = [tuple(getattr(track, name) for name in TRACK) for track in (timeline.audio, timeline.video)]
    return (timeline.newest, timeline.offset, timeline.jumps, timeline.running, *tracks)


TRACK = ("last_in", "raw", "shown", "offset", "moved", "left_offset", "left_moved", "left_at")


if __name__ == "__main__":
    main(steps)
