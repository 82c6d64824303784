"""Fragments of several samples, for files and segments: frames are collected, and cut where the caller says.

How long a sample lasts is known when the next one of its track has come. So the last sample of each track waits for its
successor, and the durations of a track's samples add up exactly to its decoding times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtmpd.media.flv import AUDIO, VIDEO
from rtmpd.media.fmp4.codecs import AUDIO_TRACK, VIDEO_TIMESCALE, VIDEO_TRACK
from rtmpd.media.fmp4.fragments import NOT_SYNC, SYNC, Run, fragment
from rtmpd.media.fmp4.frames import (
    AAC_BODY,
    AAC_HEADER,
    AVC_BODY,
    AVC_FRAME,
    AVC_KEYFRAME,
    NEGATIVE,
    WRAP,
    frame_ticks,
)
from rtmpd.media.fmp4.times import AudioTimes, Unwrapper, VideoTimes

if TYPE_CHECKING:
    from rtmpd.media.fmp4.codecs import Track
    from rtmpd.media.fmp4.tracks import Tracks

_TICKS_PER_MS = VIDEO_TIMESCALE // 1000

_LONGEST_STRETCH_S = 0.25
"""How much the duration of the last sample of a track may be extended."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A fragment.

    Attributes:
        data: moof and mdat.
        start_ms: The decoding time of its first sample, rounded down.
        end_ms: The end of its last sample, rounded up.
        sync_times: By track id, the presentation time in ticks of the track's first sample, if decoding can start at it.
        tracks: The ids of the tracks that have samples in it, in the order of its traf boxes.
        frames: The number of samples.
    """

    data: bytes
    start_ms: int
    end_ms: int
    sync_times: dict[int, int]
    tracks: tuple[int, ...] = ()
    frames: int = 0


class _Lane(Run):
    """The samples of a track since the last cut, and the last one, whose duration is not known yet."""

    __slots__ = ("composition", "flag", "timescale", "waiting", "waiting_time")

    def __init__(self, track_id: int, timescale: int) -> None:
        super().__init__(track_id)
        self.timescale = timescale
        self.waiting: bytes | memoryview | None = None
        self.waiting_time = self.flag = self.composition = 0

    def add(self, time: int, flag: int, composition: int, data: bytes | memoryview, estimate: int) -> None:
        """Add a sample. The one before lasts until its time, or *estimate* if that is not later."""
        if self.waiting is not None:
            step = time - self.waiting_time
            self.complete(step if step > 0 else estimate)
        self.waiting_time, self.flag, self.composition, self.waiting = time, flag, composition, data

    def complete(self, duration: int) -> None:
        """Give the sample that waits its duration."""
        if self.waiting is None:
            return
        if not self.data:
            self.time = self.waiting_time
        self.data.append(self.waiting)
        self.durations.append(duration)
        self.flags.append(self.flag)
        self.compositions.append(self.composition)
        self.waiting = None

    def clear(self) -> None:
        """Forget the samples that have been taken."""
        self.data, self.durations, self.flags, self.compositions = [], [], [], []


class Fragmenter:
    """Makes fragments of the frames of a stream.

    Args:
        tracks: Its tracks, with at least one. They must not change: another fragmenter and another initialization segment are
            needed then. A track may be added, see `take_tracks`.

    Attributes:
        held_bytes: The size of the samples that wait for a cut.
    """

    __slots__ = (
        "_aac",
        "_audio",
        "_audio_times",
        "_avc",
        "_clock",
        "_lanes",
        "_sequence",
        "_tracks",
        "_video_times",
        "held_bytes",
    )

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        self._audio: Track | None = None
        # Whether video is H.264, and audio AAC, with the legacy header.
        self._avc = self._aac = False
        self._clock = Unwrapper()
        self._video_times = VideoTimes()
        self._audio_times = AudioTimes(1000)
        self._lanes: dict[int, _Lane] = {}
        self._sequence = 0
        self.held_bytes = 0
        self.take_tracks()

    def take_tracks(self) -> None:
        """Carry a track that the tracks have had since. Those that are carried already stay as they were."""
        tracks = self._tracks
        if tracks.video is not None and VIDEO not in self._lanes:
            self._lanes = {VIDEO: _Lane(VIDEO_TRACK, VIDEO_TIMESCALE), **self._lanes}
            self._avc = tracks.has_legacy_avc
        if tracks.audio is not None and self._audio is None:
            self._audio = tracks.audio
            self._aac = tracks.has_legacy_aac
            self._audio_times = AudioTimes(self._audio.timescale)
            self._lanes[AUDIO] = _Lane(AUDIO_TRACK, self._audio.timescale)

    def add(self, type_id: int, timestamp: int, payload: bytes | memoryview) -> None:
        """Add an audio or video message; one without a frame, or of a track that is not carried, is ignored.

        Args:
            type_id: `AUDIO` or `VIDEO`.
            timestamp: Milliseconds modulo 2**32.
            payload: The payload.
        """
        if len(payload) > AVC_BODY:
            first = payload[0]
            if type_id == VIDEO:
                if self._avc and payload[1] == 1 and first in (AVC_KEYFRAME, AVC_FRAME):
                    composition_ms = payload[2] << 16 | payload[3] << 8 | payload[4]
                    if composition_ms >= NEGATIVE:
                        composition_ms -= WRAP
                    self._add_video(timestamp, memoryview(payload)[AVC_BODY:], first == AVC_KEYFRAME, composition_ms)
                    return
            elif self._aac and payload[1] == 1 and first & 0xF0 == AAC_HEADER and self._audio is not None and type_id == AUDIO:
                self._add_audio(timestamp, memoryview(payload)[AAC_BODY:], self._audio.frame_ticks)
                return
        self._add_other(type_id, timestamp, bytes(payload))

    def _add_other(self, type_id: int, timestamp: int, payload: bytes) -> None:
        """Add a message that is no ordinary frame of H.264 or AAC."""
        frame = self._tracks.plain.frame(type_id, payload) if type_id in self._lanes else None
        track = self._tracks.of(type_id)
        if frame is None or track is None or frame.codec != track.four_cc:
            return
        data = memoryview(frame.payload)[frame.body :]
        if type_id == VIDEO:
            self._add_video(timestamp, data, frame.key, frame.composition_ms)
        else:
            self._add_audio(timestamp, data, frame_ticks(frame, track.frame_ticks))

    def _add_video(self, timestamp: int, data: memoryview, key: bool, composition_ms: int) -> None:
        self.held_bytes += len(data)
        time_ms = self._clock.unwrap(timestamp)
        times = self._video_times
        time = times.place(time_ms)
        composition = (time_ms + composition_ms) * _TICKS_PER_MS - time
        self._lanes[VIDEO].add(time, SYNC if key else NOT_SYNC, composition, data, times.duration)

    def _add_audio(self, timestamp: int, data: memoryview, ticks: int) -> None:
        self.held_bytes += len(data)
        times = self._audio_times
        before = times.duration
        time = times.place(self._clock.unwrap(timestamp), ticks)
        self._lanes[AUDIO].add(time, SYNC, 0, data, before)

    def cut(self) -> Fragment | None:
        """Return a fragment of all samples that have a successor; None if there are none."""
        runs = [lane for lane in self._lanes.values() if lane.data]
        if not runs:
            return None
        self._sequence += 1
        self.held_bytes = sum(len(lane.waiting) for lane in self._lanes.values() if lane.waiting is not None)
        made = Fragment(
            fragment(self._sequence, runs),
            min(run.time * 1000 // run.timescale for run in runs),
            max(-(-run.end * 1000 // run.timescale) for run in runs),
            {run.track_id: run.time + run.compositions[0] for run in runs if run.flags[0] == SYNC},
            tuple(run.track_id for run in runs),
            sum(len(run.data) for run in runs),
        )
        for run in runs:
            run.clear()
        return made

    def empty(self) -> Fragment:
        """Return a fragment without samples."""
        self._sequence += 1
        newest_ms = self._clock.newest_ms or 0
        return Fragment(fragment(self._sequence, []), newest_ms, newest_ms, {}, (), 0)

    def finish(self, *, even: bool = False) -> Fragment | None:
        """Return the last fragment, with the samples that have no successor; they last as long as it is estimated.

        Args:
            even: If one track ends a little before the other, its last sample lasts up to the end of the other. Browsers have
                media up to where the first track ends, and stall at a hole if something else follows.
        """
        for type_id, lane in self._lanes.items():
            lane.complete(self._video_times.duration if type_id == VIDEO else self._audio_times.duration)
        if even:
            self._make_even()
        return self.cut()

    def _make_even(self) -> None:
        runs = [lane for lane in self._lanes.values() if lane.data]
        end_s = max((run.end / run.timescale for run in runs), default=0.0)
        for run in runs:
            missing = round(end_s * run.timescale) - run.end
            if 0 < missing < _LONGEST_STRETCH_S * run.timescale:
                run.durations[-1] += missing
