"""What comes before the first segment: the durations that a session promises are chosen from the first frames. Pure."""

from __future__ import annotations

from itertools import pairwise
from statistics import median_low
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.live.framing import DATA, VIDEO
from rtmpd.media.flv_metadata import read_metadata
from rtmpd.media.hls.targets import choose_targets
from rtmpd.services.hls.feed import is_keyframe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.media.hls.targets import Targets

_OTHER_TRACK_MS = 1000
"""How long after the first of audio and video the other one is waited for. One that comes later is a discontinuity."""

_GROUP_MS = 5000
"""How long the second keyframe is waited for. Groups of pictures are taken to be of the longest target duration after that."""

_FEW_STEPS = 5
_LONGEST_TARGET_S = 10
_RATES = (10, 12, 12.5, 15, 24000 / 1001, 24, 25, 30000 / 1001, 30, 48, 50, 60000 / 1001, 60, 90, 100, 120000 / 1001, 120)
_NEAR = 0.004
_AGREES = 0.05
_HIGHEST_RATE = 300


def frame_rate(measured: float, items: Iterable[tuple[int, bytes]]) -> float:
    """Return the frame rate of a stream: what its metadata say, if that agrees with what was measured, or a common one near it.

    Args:
        measured: What was measured, roughly; 0: nothing was.
        items: The headers in force, ``(type_id, payload)``.
    """
    for type_id, payload in items:
        declared = read_metadata(payload).get("framerate") if type_id == DATA else None
        if not isinstance(declared, (int, float)) or not 0 < declared <= _HIGHEST_RATE:
            continue
        if abs(declared - measured) <= measured * _AGREES or not measured:
            return _near_rate(declared)
    return _near_rate(measured)


def _near_rate(rate: float) -> float:
    nearest = min(_RATES, key=lambda each: abs(each - rate))
    return nearest if abs(nearest - rate) <= rate * _NEAR else round(rate, 3)


class Held(NamedTuple):
    """A frame that is held back.

    Attributes:
        type_id, time_ms, payload: The message; the time is unwrapped.
    """

    type_id: int
    time_ms: int
    payload: bytes


class Prelude:
    """Holds frames back until enough is known.

    Attributes:
        frames: The frames, in order; with video they begin at a keyframe or before it.
        held_bytes: Their size.
        has_keyframe: Whether there is a keyframe of video.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the frames."""
        self.frames: list[Held] = []
        self.held_bytes = 0
        self.has_keyframe = False
        self._video: list[int] = []
        self._audio: list[int] = []
        self._keyframes: list[int] = []

    def add(self, type_id: int, time_ms: int, payload: bytes) -> None:
        """Add a frame."""
        if is_keyframe(type_id, payload):
            if not self.has_keyframe:
                # What came before could not be decoded.
                self.clear()
            self.has_keyframe = True
            self._note(self._keyframes, time_ms)
        self.frames.append(Held(type_id, time_ms, payload))
        self.held_bytes += len(payload)
        self._note(self._video if type_id == VIDEO else self._audio, time_ms)

    @staticmethod
    def _note(times: list[int], time_ms: int) -> None:
        # Several tracks have frames at the same time.
        if not times or time_ms > times[-1]:
            times.append(time_ms)

    @property
    def _span_ms(self) -> int:
        return max((times[-1] - times[0] for times in (self._video, self._audio) if times), default=0)

    def frame_ms(self, *, has_video: bool) -> float:
        """Return the usual duration of a frame of video, or of audio if there is no video; 0: unknown."""
        times = self._video if has_video else self._audio
        steps = [after - before for before, after in pairwise(times)]
        if len(steps) < _FEW_STEPS:
            return 0.0
        usual = median_low(steps)
        # Timestamps are rounded to milliseconds: the mean of ordinary steps is more precise.
        ordinary = [step for step in steps if abs(step - usual) <= 1]
        return sum(ordinary) / len(ordinary)

    def frame_rate(self) -> float:
        """Return the frame rate of video, as it was measured; 0: unknown, or there is no video."""
        frame_ms = self.frame_ms(has_video=True)
        return 1000 / frame_ms if frame_ms else 0.0

    def knows_tracks(self, *, video: bool, audio: bool) -> bool:
        """Return whether no further track is to be waited for.

        Args:
            video, audio: Whether the codec is known, or known to have no place in MP4.
        """
        return (video and audio) or ((video or audio) and self._span_ms >= _OTHER_TRACK_MS)

    def targets(self, segment_ms: int, part_ms: int, *, has_video: bool, gop_ms: int, is_full: bool) -> Targets | None:
        """Return the durations for a session; None: too little is known yet.

        Args:
            segment_ms, part_ms: The configuration.
            has_video: Whether there is video that is packaged.
            gop_ms: The time between two keyframes, if it has been observed before; 0: unknown.
            is_full: Whether no more frames can be held back.
        """
        frame_ms, span_ms = self.frame_ms(has_video=has_video), self._span_ms
        if not has_video:
            known = bool(frame_ms) or span_ms >= _OTHER_TRACK_MS or is_full
            return choose_targets(segment_ms, part_ms, frame_ms=frame_ms) if known else None
        if not self.has_keyframe:
            return None
        if len(self._keyframes) > 1:
            gop_ms = max(gop_ms, *(after - before for before, after in pairwise(self._keyframes)))
        if not gop_ms:
            if span_ms < _GROUP_MS and not is_full:
                return None
            gop_ms = _LONGEST_TARGET_S * 1000 if span_ms >= _GROUP_MS else max(2 * segment_ms, span_ms)
        elif not frame_ms and span_ms < _OTHER_TRACK_MS and not is_full:
            return None
        gop_ms = max(gop_ms, self._video[-1] - self._keyframes[-1])
        return choose_targets(segment_ms, part_ms, frame_ms=frame_ms, gop_ms=gop_ms, longest_target_s=_LONGEST_TARGET_S)
