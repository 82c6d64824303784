"""Streams for tests of HLS: a fragmenter whose fragments are lists of samples, and a model of what a server does with them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import NamedTuple

from rtmpd.media.flv import AUDIO, VIDEO
from rtmpd.media.hls.assembly import Rendition
from rtmpd.media.hls.playlist import media_playlist, part_name, segment_name
from rtmpd.media.hls.window import Limits, Window
from tests.hls_rules import Client, Media, Violation

KEY, INTER = b"K", b"P"


class Fragment(NamedTuple):
    data: bytes


class SampleFragmenter:
    """Makes fragments that are lists of samples: type id, time, duration, keyframe. Times are milliseconds."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, bool]] = {}
        self._steps = {VIDEO: 33, AUDIO: 21}
        self._samples: list[tuple[int, int, int, bool]] = []
        self._waiting_bytes: dict[int, int] = {}
        self.held_bytes = 0

    def add(self, type_id: int, timestamp: int, payload: bytes) -> None:
        waiting = self._waiting.get(type_id)
        if waiting is not None:
            # As in the fragmenter of MP4: times increase.
            timestamp = max(timestamp, waiting[0] + 1)
            self._steps[type_id] = timestamp - waiting[0]
            self._samples.append((type_id, waiting[0], self._steps[type_id], waiting[1]))
        self._waiting[type_id] = (timestamp, payload[:1] == KEY)
        self._waiting_bytes[type_id] = len(payload)
        self.held_bytes += len(payload)

    def cut(self) -> Fragment | None:
        samples, self._samples = self._samples, []
        self.held_bytes = sum(self._waiting_bytes.values())
        return Fragment(json.dumps(samples).encode()) if samples else None

    def empty(self) -> Fragment:
        return Fragment(b"[]")

    def finish(self, *, even: bool = False) -> Fragment | None:
        for type_id, (time, key) in self._waiting.items():
            self._samples.append((type_id, time, self._steps[type_id], key))
        self._waiting, self._waiting_bytes = {}, {}
        return self.cut()


def media_of(samples: list[tuple[int, int, int, bool]], *, has_video: bool, longest_ms: int = 0) -> Media:
    """The driving track of some samples."""
    track = VIDEO if has_video else AUDIO
    frames = [sample for sample in samples if sample[0] == track]
    if not frames:
        return Media(0, Decimal(0), Decimal(0), Decimal(0), False, False)
    keys = [sample[3] or not has_video for sample in frames]
    longest_ms = max(longest_ms, *(sample[2] for sample in frames))
    start, end = frames[0][1], frames[-1][1] + frames[-1][2]
    others = sum(sample[2] for sample in samples if sample[0] != track)
    return Media(len(frames), Decimal(start), Decimal(end), Decimal(longest_ms), keys[0], any(keys), Decimal(others))


class Show:
    """A stream whose playlist a client loads after each change.

    Attributes:
        violations: What the client found.
        cut_samples: The samples of all complete segments, with the track that drives.
    """

    def __init__(self, targets, *, has_video, limits=None, first_number=0, has_keyframes=True, delta_every=0, checks=True):
        self.window = Window(targets, limits or Limits(), first_number=first_number)
        self.has_video = has_video
        self.inits = 0
        self.rendition = Rendition(
            self.window,
            SampleFragmenter(),
            init_id="0",
            has_video=has_video,
            date_of=lambda time_ms: 1_700_000_000_000 + time_ms,
        )
        self.media: dict[str, Media] = {}
        self.client = Client(self.media, has_keyframes=has_keyframes) if checks else None
        self.violations: list[Violation] = []
        self.delta_every = delta_every
        self.loads = 0
        self.longest_ms = 0
        self.newest = ""
        self.seen = -1
        self.closed: list = []
        self.videos: dict[int, bool] = {}
        self.samples: dict[int, list] = {}
        self.longest: dict[int, int] = {}

    def add(self, type_id: int, timestamp_ms: int, *, key: bool = False) -> None:
        payload = KEY if key else INTER
        if self.rendition.add(type_id, timestamp_ms, payload, is_keyframe=key):
            self.load()

    def restart(self, *, has_video: bool) -> None:
        self.inits += 1
        self.rendition.restart(SampleFragmenter(), init_id=str(self.inits), has_video=has_video)
        self.load()
        self.has_video = has_video
        self.longest_ms = 0

    def finish(self) -> None:
        self.rendition.finish()
        self.load()

    def load(self) -> None:
        window = self.window
        for segment in [*window.listed, *([window.open] if window.open else [])]:
            if segment.sequence_number > self.seen:
                self._look_at(segment)
        if self.client is None:
            return
        self.loads += 1
        skip = bool(self.delta_every) and self.loads % self.delta_every == 0
        self.violations += self.client.load(media_playlist(window, skip=skip), skip=skip)

    def _look_at(self, segment) -> None:
        number = segment.sequence_number
        samples, longest_ms = self.samples.setdefault(number, []), self.longest
        video = self.videos.setdefault(number, self.has_video)
        for index, part in enumerate(segment.parts):
            name = part_name(number, index)
            if part.data and name not in self.media:
                new = json.loads(part.data)
                samples += new
                # A frame may extend from the part before into this one, or begin before this one.
                found = media_of(new, has_video=video, longest_ms=self.longest_ms)
                self.media[name] = found
                if not found.frames:
                    continue
                self.longest_ms = int(found.longest_ms)
                longest_ms[number] = max(self.longest_ms, longest_ms.get(number, 0))
                if self.newest in self.media:
                    before = self.media[self.newest]
                    self.media[self.newest] = before._replace(longest_ms=max(before.longest_ms, found.longest_ms))
                self.newest = name
        if segment is not self.window.open:
            self.seen = number
            self.closed.append((segment, samples, video))
            if not segment.is_gap:
                self.media[segment_name(number)] = media_of(samples, has_video=video, longest_ms=longest_ms.get(number, 0))
