"""Fragments of several samples, for files and segments: frames are collected, and cut where the caller says.

How long a sample lasts is known when the next one of its track has come. So the last sample of each track waits for its
successor, and the durations of a track's samples add up exactly to its decoding times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.media.flv import AUDIO, VIDEO
from rtmpd.media.fmp4.codecs import AUDIO_TRACK, VIDEO_TIMESCALE, VIDEO_TRACK
from rtmpd.media.fmp4.fragments import NOT_SYNC, SYNC, Run, Sample, fragment
from rtmpd.media.fmp4.frames import frame_ticks
from rtmpd.media.fmp4.times import AudioTimes, Unwrapper, VideoTimes

if TYPE_CHECKING:
    from rtmpd.media.fmp4.tracks import Tracks

_TICKS_PER_MS = VIDEO_TIMESCALE // 1000


@dataclass(frozen=True, slots=True)
class Fragment:
    """A fragment.

    Attributes:
        data: moof and mdat.
        start_ms: The decoding time of its first sample, rounded down.
        end_ms: The end of its last sample, rounded up.
        sync_times: By track id, the presentation time in ticks of the track's first sample, if decoding can start at it.
    """

    data: bytes
    start_ms: int
    end_ms: int
    sync_times: dict[int, int]


class _Waiting(NamedTuple):
    """A sample without a duration yet."""

    time: int
    flags: int
    composition: int
    data: bytes | memoryview


class _Lane:
    """The samples of a track since the last cut."""

    __slots__ = ("samples", "time", "timescale", "track_id", "waiting")

    def __init__(self, track_id: int, timescale: int) -> None:
        self.track_id = track_id
        self.timescale = timescale
        self.time = 0
        self.samples: list[Sample] = []
        self.waiting: _Waiting | None = None

    def add(self, sample: _Waiting, estimate: int) -> None:
        self.complete(sample.time, estimate)
        self.waiting = sample

    def complete(self, until: int | None, estimate: int) -> None:
        """Give the sample that waits its duration: up to the time of the next one, or *estimate* if there is none."""
        waiting = self.waiting
        if waiting is None:
            return
        duration = estimate if until is None or until <= waiting.time else until - waiting.time
        if not self.samples:
            self.time = waiting.time
        self.samples.append(Sample(waiting.data, duration, waiting.flags, waiting.composition))
        self.waiting = None

    def take(self) -> Run:
        run = Run(self.track_id, self.time, self.samples)
        self.samples = []
        return run


class Fragmenter:
    """Makes fragments of the frames of a stream.

    Args:
        tracks: Its tracks, with at least one. They must not change: another fragmenter and another initialization segment are
            needed then.

    Attributes:
        held_bytes: The size of the samples that wait for a cut.
    """

    __slots__ = ("_audio", "_audio_times", "_clock", "_lanes", "_sequence", "_tracks", "_video_times", "held_bytes")

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        self._audio, video = tracks.audio, tracks.video
        self._clock = Unwrapper()
        self._video_times = VideoTimes()
        self._audio_times = AudioTimes(self._audio.timescale if self._audio else 1000)
        self._lanes = {}
        if video is not None:
            self._lanes[VIDEO] = _Lane(VIDEO_TRACK, VIDEO_TIMESCALE)
        if self._audio is not None:
            self._lanes[AUDIO] = _Lane(AUDIO_TRACK, self._audio.timescale)
        self._sequence = 0
        self.held_bytes = 0

    def add(self, type_id: int, timestamp: int, payload: bytes) -> None:
        """Add an audio or video message; one without a frame, or of a track that is not carried, is ignored.

        Args:
            type_id: `AUDIO` or `VIDEO`.
            timestamp: Milliseconds modulo 2**32.
            payload: The payload.
        """
        lane = self._lanes.get(type_id)
        frame = self._tracks.plain.frame(type_id, payload) if lane is not None else None
        track = self._tracks.of(type_id)
        if lane is None or frame is None or track is None or frame.codec != track.four_cc:
            return
        time_ms = self._clock.unwrap(timestamp)
        data = memoryview(frame.payload)[frame.body :]
        self.held_bytes += len(data)
        if type_id == VIDEO:
            time = self._video_times.place(time_ms)
            composition = (time_ms + frame.composition_ms) * _TICKS_PER_MS - time
            lane.add(_Waiting(time, SYNC if frame.key else NOT_SYNC, composition, data), self._video_times.duration)
            return
        assert self._audio is not None
        ticks = frame_ticks(frame, self._audio.frame_ticks)
        before = self._audio_times.duration
        time = self._audio_times.place(time_ms, ticks)
        lane.add(_Waiting(time, SYNC, 0, data), before)

    def cut(self) -> Fragment | None:
        """Return a fragment of all samples that have a successor; None if there are none."""
        runs = [lane.take() for lane in self._lanes.values() if lane.samples]
        if not runs:
            return None
        self._sequence += 1
        scales = {lane.track_id: lane.timescale for lane in self._lanes.values()}
        self.held_bytes = sum(len(lane.waiting.data) for lane in self._lanes.values() if lane.waiting is not None)
        return Fragment(
            fragment(self._sequence, runs),
            min(run.time * 1000 // scales[run.track_id] for run in runs),
            max(-(-run.end * 1000 // scales[run.track_id]) for run in runs),
            {run.track_id: run.time + run.samples[0].composition for run in runs if run.samples[0].flags == SYNC},
        )

    def finish(self) -> Fragment | None:
        """Return the last fragment, with the samples that have no successor; they last as long as it is estimated."""
        for type_id, lane in self._lanes.items():
            lane.complete(None, self._video_times.duration if type_id == VIDEO else self._audio_times.duration)
        return self.cut()
