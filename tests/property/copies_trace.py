"""What becomes of random identical copies, as digests of all that can be seen; see `tests.property.publish_trace`.

    python -m tests.property.copies_trace FIRST STOP      one digest per seed
    python -m tests.property.copies_trace SEED            what the digest of one seed is made of

Hashes are compared by the merger and are no part of a trace: each process has other ones.
"""

from __future__ import annotations

import random
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING
from unittest import mock

from rtmpd.live.copies import CopyMerger, CopyOffsets
from rtmpd.live.framing import AUDIO, VIDEO
from rtmpd.live.selection import SourceRole
from rtmpd.protocol.chunk import ChunkReader, frame_message
from tests.property.digests import main
from tests.property.publish_trace import clock_of
from tests.unit.live.fakes import AAC_HEADER, AVC_HEADER, FakeTime, app_options, close_stream, new_source, new_stream, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.live.copies import CopyInput, Frame

STEPS = 80
BASES = [0, 5000, 2**31, 2**32 - 300, 2**32 - 9000]


class Encoder:
    """Makes frames: mostly with regular steps, sometimes with gaps, steps back, and payloads that it has made before."""

    def __init__(self, generator: random.Random, calm: float) -> None:
        self.random, self.calm = generator, calm
        self.steps = {VIDEO: generator.choice([0, 1, 17, 33, 40]), AUDIO: generator.choice([1, 21, 23])}
        self.times = dict.fromkeys(self.steps, generator.choice([0, 2000]))
        self.made = 0
        self.last = b"\x27\1"

    def frame(self) -> Frame:
        generator = self.random
        type_id = VIDEO if self.times[VIDEO] <= self.times[AUDIO] else AUDIO
        if generator.random() > self.calm:
            self.times[type_id] += generator.choice([0, 1, 100, 100, 700, 3000, 9000, 11_000, -5, -900, -1100])
        else:
            self.times[type_id] += self.steps[type_id]
        if self.steps[VIDEO] < 10 and generator.random() < 0.9:
            # Thousands of frames in a window.
            type_id = VIDEO
        self.made += 1
        if generator.random() < 0.995:
            self.last = (b"\x27\1" if type_id == VIDEO else b"\xaf\1") + self.made.to_bytes(4, "big")
        return type_id, self.times[type_id], self.last


class Copy:
    """One copy: what the encoder has made and it has not brought yet, and what its network and clock do with it."""

    def __init__(self, generator: random.Random, calm: float) -> None:
        self.random, self.calm = generator, calm
        self.waiting: deque[Frame] = deque()
        base = generator.choice(BASES)
        self.offsets = CopyOffsets(base, base + generator.choice([0, -11, 21]))

    def next(self) -> Frame | None:
        """Return the next frame that arrives; None: it is lost."""
        type_id, time_ms, payload = self.waiting.popleft()
        generator = self.random
        if generator.random() > self.calm:
            deed = generator.choice(["lost", "lost", "other", "early", "late", "jump"])
            if deed == "lost":
                for _ in range(generator.randrange(min(30, len(self.waiting) + 1))):
                    self.waiting.popleft()
                return None
            if deed == "other":
                payload += b"other"
            elif deed == "jump" and generator.random() < 0.05:
                time_ms += 60_000
            else:
                time_ms += -1 if deed == "early" else 1
        offset_ms = self.offsets.video_ms if type_id == VIDEO else self.offsets.audio_ms
        return type_id, (time_ms + offset_ms) % 2**32, payload


class MergerTrace:
    """A merger whose copies come and go."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.calm = generator.choice([0.9, 0.99, 0.999])
        self.merger = CopyMerger(generator.choice([200, 32 << 20]), generator.choice([300, 2000, 5500]))
        self.encoder = Encoder(generator, generator.choice([0.9, 0.99, 1.0]))
        self.copies: dict[int, Copy] = {}
        self.inputs: dict[int, CopyInput] = {}
        self.found: list[object] = []
        self.now_s = 0.0
        self.number = 0
        self.add()
        self.add()

    def append(self, type_id: int, timestamp_ms: int, payload: bytes, kind: int) -> None:
        """Take a frame, as an output."""
        self.found.append((type_id, timestamp_ms, payload, kind))
        if self.random.random() < 0.002:
            raise RuntimeError("the output has failed")

    def emit(self, frames: list[Frame]) -> None:
        self.found.append(frames)

    def add(self) -> None:
        self.number += 1
        copy = self.copies[self.number] = Copy(self.random, self.calm)
        self.merger.add(self.number, copy.offsets)
        self.inputs[self.number] = self.merger.input(self.number, self, self.emit)

    def take(self, key: int, frame: Frame) -> None:
        if self.random.random() < 0.1:
            self.found.append(self.merger.take(key, *frame))
            return
        try:
            self.inputs[key].append(*frame, self.random.choice([0, 0, 3]))
        except RuntimeError as error:
            self.found.append(str(error))

    def step(self) -> None:
        generator = self.random
        for _ in range(generator.choice([1, 10, 60])):
            frame = self.encoder.frame()
            for each in self.copies.values():
                each.waiting.append(frame)
        keys = list(self.copies)
        generator.shuffle(keys)
        slow = keys[0] if generator.random() < 0.3 else None
        for key in keys:
            copy = self.copies[key]
            for _ in range(generator.randrange(3) if key == slow else len(copy.waiting)):
                frame = copy.next() if copy.waiting else None
                if frame is not None:
                    self.take(key, frame)
        self.now_s += generator.choice([0.05, 0.05, 0.3])
        self.found.append(self.merger.expire(self.now_s))
        deed = generator.random()
        if deed < 0.03 and len(keys) > 1:
            del self.copies[slow or keys[0]], self.inputs[slow or keys[0]]
            self.found.append(self.merger.remove(slow or keys[0]))
        elif deed < 0.06 and len(keys) < 4:
            self.add()

    def run(self) -> Iterator[list[object]]:
        for _ in range(STEPS):
            self.found = []
            self.step()
            states = [(key, self.merger.lag_ms(key), self.merger.in_step(key), self.merger.broken(key)) for key in self.copies]
            yield [self.found, states, tuple(self.merger.counters)]


class StreamTrace:
    """A stream with two publishers whose frames are recognized as identical, from the wire to the log."""

    def __init__(self, generator: random.Random, clock: FakeTime) -> None:
        self.random, self.clock = generator, clock
        self.stream = new_stream(options=app_options(match_copies=True, stall_timeout_s=generator.choice([0.0, 2.0])))
        self.copies = [Copy(generator, 1.0), Copy(generator, 1.0)]
        self.sources = [new_source(), new_source()]
        self.readers = [ChunkReader(), ChunkReader()]
        for number, source in enumerate(self.sources):
            source.number = number + 1
            self.stream.begin(source, SourceRole.BACKUP if number else SourceRole.PRIMARY)
            source.video(0, AVC_HEADER)
            source.audio(0, AAC_HEADER)
        self.made = 0

    def frame(self) -> None:
        number, key = self.made, self.made % 50 == 0
        self.made += 1
        for type_id, start in ((VIDEO, b"\x17\1\0\0\0" if key else b"\x27\1\0\0\0"), (AUDIO, b"\xaf\1")):
            payload = start + random.Random(number * 2 + type_id % 2).randbytes(1200 if key else 300)
            for each in self.copies:
                each.waiting.append((type_id, number * 40, payload))

    def give(self, number: int) -> None:
        """Let a frame come in a read of its own, or as a message."""
        copy, source = self.copies[number], self.sources[number]
        frame = copy.next()
        if frame is None:
            return
        if self.random.random() < 0.1:
            (source.video if frame[0] == VIDEO else source.audio)(*frame[1:])
            return
        data = frame_message(4, frame[0], 1, frame[1], frame[2], 128)
        _, messages = self.readers[number].feed_frames(data, 64, {1: source})
        for each in messages:
            (source.video if each.type_id == VIDEO else source.audio)(each.timestamp, each.payload)

    def run(self) -> Iterator[list[object]]:
        generator, stream = self.random, self.stream
        for step in range(STEPS):
            for _ in range(5):
                self.frame()
            order = [0, 1] if generator.random() < 0.7 else [1, 0]
            for number in order:
                waiting = self.copies[number].waiting
                late = 0 if generator.random() < 0.8 else generator.randrange(len(waiting))
                while len(waiting) > late:
                    self.give(number)
            self.clock.now_s += 0.2
            stream.tick(self.clock.now_s)
            if step == 20:
                # They have been found to be the same.
                for each in self.copies:
                    each.calm = generator.choice([0.95, 0.99, 1.0])
            log, ingest = stream.published.log, stream.ingest
            yield [
                parse(bytes(log.tail.view[: log.tail.end]), log.framing.chunk_size),
                (log.position, log.newest_timestamp, log.joins, log.join_position, log.join_timestamp),
                [(clock_of(each.timeline), tuple(each.received)) for each in self.sources],
                [(lane.mode.name, lane.lag_ms) for lane in ingest.lanes],
                (tuple(ingest.merged), ingest.copies_joined, ingest.copies_broken, stream.counters.errors),
            ]
        close_stream(stream)


def steps(seed: int) -> Iterator[list[object]]:
    """Yield what can be seen after each step. The clock of the machine decides nothing of it."""
    generator, clock = random.Random(seed), FakeTime()
    if seed % 3:
        yield from MergerTrace(generator).run()
        return
    with ExitStack() as stack:
        for name in ("stream", "source", "ingest", "fanout", "courier"):
            stack.enter_context(mock.patch(f"rtmpd.live.{name}.time", clock))
        yield from StreamTrace(generator, clock).run()


if __name__ == "__main__":
    main(steps)
