"""Encoders and readers of streams, on a clock that tests set: nothing waits, and no greenlet runs."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.live.framing import AUDIO, VIDEO
from rtmpd.live.log import NEVER
from rtmpd.live.selection import SourceRole
from rtmpd.live.splice import signed
from tests.unit.live.fakes import AAC_HEADER, AVC_HEADER, new_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rtmpd.live.stream import Stream
    from tests.unit.live.fakes import FakeTime

STEP_S = 0.01
TICK_STEPS = 5
AUDIO_MS = 20


class Sent(NamedTuple):
    """A frame as a reader gets it.

    Attributes:
        timestamp: On the stream's timeline.
        name: The encoder's.
        number: The frame's among those of its type, from 0.
        key: It is a keyframe.
        content_ms: When it was captured.
    """

    type_id: int
    timestamp: int
    name: str
    number: int
    key: bool
    content_ms: int


class Encoder:
    """Publishes on a stream.

    Args:
        clock: The time of the test.
        stream: The stream.
        name: In each frame; copies have the same one.
        role: The role of the source.
        fps: Video frames per second; 0: no video.
        gop: Frames from one keyframe to the next.
        audio: It sends audio.
        base_ms: The first timestamp.
        speed: Of its clock: 1.001 is one millisecond a second too fast.
        latency_s: From the capture of a frame to its arrival.
        headers: The sequence headers that it sends first.
        size: Of frames, bytes.

    Attributes:
        muted: It sends nothing: its network has failed, and what it does not send is lost.
        loses: Tells by type and number which frames are lost.
        stopped: Why it was stopped.
    """

    numbers = 0

    def __init__(
        self,
        clock: FakeTime,
        stream: Stream,
        name: str,
        role: SourceRole = SourceRole.PRIMARY,
        *,
        fps: float = 25,
        gop: int = 25,
        audio: bool = True,
        base_ms: int = 0,
        speed: float = 1.0,
        latency_s: float = 0.0,
        headers: tuple[bytes, ...] = (AVC_HEADER,),
        size: int = 300,
    ) -> None:
        self.clock, self.stream, self.name = clock, stream, name
        self.fps, self.gop, self.audio, self.size = fps, gop, audio, size
        self.base_ms, self.speed, self.latency_s = base_ms, speed, latency_s
        self.muted = False
        self.loses: Callable[[int, int], bool] = lambda type_id, number: False
        self.stopped = None
        self.source = new_source(self._stop, peer=f"192.0.2.1:{50000 + Encoder.numbers}")
        Encoder.numbers += 1
        self.source.number = Encoder.numbers
        self.began_s = clock.now_s
        self._frames = self._sounds = 0
        stream.begin(self.source, role)
        for header in headers if fps else ():
            self.source.video(base_ms, header)
        if audio:
            self.source.audio(base_ms, AAC_HEADER)

    def _stop(self, reason: object) -> None:
        self.stopped = reason
        self.stream.remove(self.source, str(reason))

    def leave(self, reason: str = "the publisher left") -> None:
        self.stream.remove(self.source, reason)

    def step(self) -> None:
        """Send what is due."""
        media_s = (self.clock.now_s - self.began_s - self.latency_s) * self.speed
        while True:
            video_s = self._frames / self.fps if self.fps else NEVER
            audio_s = self._sounds * AUDIO_MS / 1000 if self.audio else NEVER
            if min(video_s, audio_s) > media_s + 1e-9:
                return
            if video_s <= audio_s:
                self._send(VIDEO, self._frames, video_s)
                self._frames += 1
            else:
                self._send(AUDIO, self._sounds, audio_s)
                self._sounds += 1

    def _send(self, type_id: int, number: int, at_s: float) -> None:
        if self.muted or self.loses(type_id, number):
            return
        timestamp = (self.base_ms + round(at_s * 1000)) % (1 << 32)
        captured_ms = round((self.began_s + at_s / self.speed) * 1000)
        label = f"{self.name} {number} {captured_ms} ".encode()
        if type_id == AUDIO:
            self.source.audio(timestamp, (b"\xaf\x01" + label).ljust(80, b"a"))
            return
        key = self.gop and number % self.gop == 0
        body = (b"\x17" if key else b"\x27") + b"\x01\x00\x00\x00" + label
        self.source.video(timestamp, body.ljust(self.size * (5 if key else 1), b"v"))


class Reader:
    """Reads a stream, as a recording does.

    Attributes:
        log: What it reads.
    """

    def __init__(self, stream: Stream) -> None:
        self.wake_at = NEVER
        self.failed = False
        self.log = stream.read(self)
        self._page, self._offset = self.log.tail, self.log.tail.end

    def wake(self) -> None:
        pass

    def fail(self) -> None:
        self.failed = True

    def messages(self) -> list[tuple[int, int, bytes, int]]:
        """Return all messages so far: type, timestamp, payload and kind."""
        found = self.log.read_all(self._page, self._offset)
        return [(each.type_id, each.timestamp, bytes(each.payload), each.kind) for each in found]

    def frames(self) -> list[Sent]:
        """Return all frames so far."""
        found = []
        for type_id, timestamp, payload, _ in self.messages():
            if type_id == VIDEO and payload[1] == 1:
                name, number, content_ms = payload[5:].split(b" ")[:3]
            elif type_id == AUDIO and payload[1] == 1:
                name, number, content_ms = payload[2:].split(b" ")[:3]
            else:
                continue
            key = type_id == VIDEO and payload[0] == 0x17
            found.append(Sent(type_id, timestamp, name.decode(), int(number), key, int(content_ms)))
        return found

    def headers(self) -> list[bytes]:
        """Return the sequence headers so far."""
        return [payload for type_id, _, payload, _ in self.messages() if type_id != 18 and payload[1] == 0]


def names(frames: Iterable[Sent], type_id: int = VIDEO) -> list[str]:
    """Return the names of the encoders, each time that another one follows."""
    found: list[str] = []
    for each in frames:
        if each.type_id == type_id and found[-1:] != [each.name]:
            found.append(each.name)
    return found


def check(frames: list[Sent], *, whole: bool = True) -> None:
    """Fail unless the frames are one stream: timestamps never decrease, and each source begins with a keyframe.

    Args:
        frames: What a reader has got.
        whole: No video frame is missing but between sources.
    """
    for type_id in (AUDIO, VIDEO):
        own = [each for each in frames if each.type_id == type_id]
        for before, after in pairwise(own):
            assert signed(after.timestamp - before.timestamp) >= 0, (before, after)
            if type_id == VIDEO and before.name != after.name:
                assert after.key, (before, after)
            elif before.name == after.name:
                assert after.number > before.number, (before, after)
                if type_id == VIDEO and whole:
                    assert after.number == before.number + 1 or after.key, (before, after)


def longest_step_ms(frames: Iterable[Sent], type_id: int = VIDEO) -> int:
    """Return the longest time between two frames of a type."""
    own = [each.timestamp for each in frames if each.type_id == type_id]
    return max((signed(after - before) for before, after in pairwise(own)), default=0)


def run(clock: FakeTime, stream: Stream, seconds: float, *encoders: Encoder) -> None:
    """Let time pass, while encoders send and the stream is watched."""
    for _ in range(round(seconds / STEP_S)):
        clock.now_s += STEP_S
        for each in encoders:
            each.step()
        if round(clock.now_s / STEP_S) % TICK_STEPS == 0:
            stream.tick(clock.now_s)
