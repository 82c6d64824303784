"""The rule by which the frames of a live stream become segments and parts.

The track that drives is video if there is any, otherwise audio. A part begins and ends at a frame of it, and the other track
goes along in the order of arrival. So parts add up exactly to their segment, and segments to the timeline.

* A segment ends at the first keyframe that is at least ``segment_ms`` after its start, within one frame. It ends at an earlier
  keyframe if the next one would come after ``limit_ms``. If no keyframe comes in time, it ends at another frame: the
  target duration is never exceeded, and the next segment begins without a keyframe. Without video every frame is as good as
  a keyframe.
* A rendition of audio that goes with video in another one is guided: its segments end at the first frame at or behind the
  end of each segment of that one, unless they would become too long.
* A part ends before the frame that would make it longer than ``part_ms``. That is foreseen from the duration of the frame
  before, so that a part is usually complete when the first frame behind it arrives; a wrong guess costs one frame of delay.
* A part lasts at least 85 % of ``part_ms``, unless it is the last of a segment or has a keyframe. Frames of irregular duration
  may leave no such place. Then a part lasts exactly ``part_ms``, and its last frame, or the first frame of the next part,
  extends over the end: media and playlist differ by less than that frame there, and not behind it.
* A frame that lasts longer than several parts leaves parts that have no frame. A segment of such parts alone is a gap.
* A step of the timeline by more than the target duration, in which nothing came, or backwards by more than a second, is a
  discontinuity. The frame before is then assumed to last as long as the one before it.
* While video is silent for a second and audio is not, parts of ``part_ms`` go on with audio alone.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.media.hls.targets import PART_FLOOR_PERCENT

if TYPE_CHECKING:
    from rtmpd.media.hls.targets import Targets

_BACK_MS = 1000
_SILENCE_MS = 1000
_FIRST_STEP_MS = 33
_SHORTEST_SHARE = 8  # of segment_ms: how short a segment may be that ends since the next keyframe would be too late


class Frame(NamedTuple):
    """A frame.

    Attributes:
        is_video: Whether it is of the video track.
        timestamp_ms: Its decoding time, unwrapped.
        is_keyframe: Whether decoding can start at it; of no meaning for audio.
    """

    is_video: bool
    timestamp_ms: int
    is_keyframe: bool


class When(enum.Enum):
    """When samples are taken from a fragmenter, which holds the last sample of each track until its successor comes."""

    PREVIOUS = "previous"
    """Before the frame is added: the frame before it begins the next part."""
    THIS = "this"
    """After the frame was added: it begins the next part."""
    FINISH = "finish"
    """Before the frame is added, together with the samples that wait: the frame does not follow them."""


class Cut(NamedTuple):
    """The end of a part, and maybe of a segment.

    Attributes:
        when: When the samples are to be taken.
        duration_ms: The duration of the part.
        is_independent: Whether the part has a keyframe.
        frames: The number of its frames of all tracks.
        ends_segment: Whether the segment ends too.
        next_start_ms: Where the next part begins on the timeline.
        next_discontinuity: If the segment ends: whether the next one does not continue the timeline.
    """

    when: When
    duration_ms: int
    is_independent: bool
    frames: int
    ends_segment: bool
    next_start_ms: int
    next_discontinuity: bool


class _Lane:
    """The frames of a track in the part: those whose duration is known, and the one that waits.

    Attributes:
        frames: The number of those whose duration is known.
        has_keyframe: Whether there is a keyframe among them.
        waits: Whether there is one that waits.
        waiting_key: Whether that is a keyframe.
    """

    __slots__ = ("frames", "has_keyframe", "waiting_key", "waits")

    def __init__(self) -> None:
        self.frames = 0
        self.has_keyframe = self.waits = self.waiting_key = False

    def add(self, *, is_keyframe: bool) -> None:
        """Add a frame, which waits for its successor."""
        self.complete()
        self.waits, self.waiting_key = True, is_keyframe

    def complete(self) -> None:
        """Count the frame that waits: its duration is known."""
        if self.waits:
            self.frames += 1
            self.has_keyframe |= self.waiting_key
        self.waits = self.waiting_key = False

    def clear(self) -> None:
        self.frames = 0
        self.has_keyframe = False


class Cutter:
    """Finds the ends of parts and segments. Nothing raises.

    The caller, for each frame: calls `add`; takes the samples of the cuts with `When.PREVIOUS` and `When.FINISH`; adds the
    frame to the fragmenter if `started` is true; takes the samples of the cuts with `When.THIS`. Cuts are in this order.
    Only the first cut of each `When` has samples; the following ones of the same `When` are empty.

    Args:
        targets: The durations of the session. Without parts, a segment is one part.
        has_video: Whether there is video: the first segment then begins at a keyframe.
        guided: Whether segments end where `guide` says; only without video.

    Attributes:
        started: Whether the first frame of a segment has come. Frames before it are left out.
        segment_start_ms: Where the segment begins on the timeline.
    """

    __slots__ = (
        "_audio",
        "_audio_ms",
        "_cuts",
        "_ends_early",
        "_gop_ms",
        "_guide_ms",
        "_guided",
        "_has_video",
        "_keyframe_ms",
        "_last_ms",
        "_part_ms",
        "_part_start_ms",
        "_quiet_ms",
        "_silent_ms",
        "_step_ms",
        "_targets",
        "_video",
        "segment_start_ms",
        "started",
    )

    def __init__(self, targets: Targets, *, has_video: bool, guided: bool = False) -> None:
        self._targets = targets
        self._guided = guided
        self._part_ms = targets.part_ms or targets.limit_ms
        self._cuts: list[Cut] = []
        self._gop_ms = 0
        self._reset(has_video=has_video)

    def _reset(self, *, has_video: bool) -> None:
        self._has_video = has_video
        self._video, self._audio = _Lane(), _Lane()
        self.started = False
        self.segment_start_ms = self._part_start_ms = self._last_ms = self._keyframe_ms = 0
        self._step_ms = _FIRST_STEP_MS
        self._audio_ms: int | None = None
        self._silent_ms = 0
        self._ends_early = False
        self._guide_ms: int | None = None
        self._quiet_ms = 0

    def _set_quiet(self) -> None:
        """Set up to where frames of the driving track may last without ending anything."""
        targets = self._targets
        quiet_ms = min(self._part_start_ms + self._part_ms, self.segment_start_ms + targets.limit_ms)
        if not self._has_video and not self._guided:
            quiet_ms = min(quiet_ms, self.segment_start_ms + targets.segment_ms - 1)
        self._quiet_ms = quiet_ms

    def guide(self, end_ms: int) -> None:
        """Let the segment end at the first frame at or behind a time."""
        self._guide_ms = end_ms

    @property
    def expected_ms(self) -> int:
        """When the next part is expected to end: a frame of the driving track with this time, or a later one, ends it."""
        targets = self._targets
        end_ms = min(self._part_start_ms + self._part_ms, self.segment_start_ms + targets.limit_ms)
        if self._has_video:
            keyframe_ms = self._keyframe_ms + self._gop_ms
            if self._last_ms < keyframe_ms < end_ms:
                return keyframe_ms
        elif not self._guided:
            end_ms = min(end_ms, self.segment_start_ms + targets.segment_ms)
        return end_ms - self._step_ms

    def end_early(self) -> None:
        """Let the segment end at the next frame of the driving track, as it takes too much memory."""
        self._ends_early = True

    def passes(self, timestamp_ms: int, *, is_video: bool) -> bool:
        """Add a frame that is no keyframe of video, if it ends nothing; return whether it does not. The hot path: `add` is for
        all other frames.
        """
        if not self.started:
            return False
        if is_video is self._has_video:
            step_ms = timestamp_ms - self._last_ms
            if not 0 < step_ms <= self._quiet_ms - timestamp_ms or self._last_ms < self._part_start_ms:
                return False
            if self._ends_early or self._guide_ms is not None:
                return False
            self._last_ms = timestamp_ms
            self._step_ms = step_ms
            self._silent_ms = 0
            lane = self._video if is_video else self._audio
        else:
            if is_video or self._audio_ms is None:
                return False
            step_ms = timestamp_ms - self._audio_ms
            silent_ms = self._silent_ms + step_ms
            if step_ms <= 0 or silent_ms >= _SILENCE_MS:
                return False
            self._audio_ms = timestamp_ms
            self._silent_ms = silent_ms
            lane = self._audio
        if lane.waits:
            lane.frames += 1
            lane.has_keyframe |= lane.waiting_key
        lane.waits, lane.waiting_key = True, False
        return True

    def add(self, frame: Frame) -> list[Cut]:
        """Add a frame, in the order of arrival; return the cuts, in order."""
        self._cuts = []
        if frame.is_video and not self._has_video:
            return self._cuts
        drives = frame.is_video or not self._has_video
        if not self.started:
            if drives and (frame.is_keyframe or not frame.is_video):
                self._begin(frame)
            return self._cuts
        if drives:
            self._drive(frame)
        else:
            self._follow(frame)
        return self._cuts

    def restart(self, *, has_video: bool) -> list[Cut]:
        """End the segment at once, since the headers change or another source follows; return the cuts.

        The next segment begins with the next keyframe, with a discontinuity; its timestamps may have another base.
        """
        cuts = self.finish()
        if cuts:
            cuts[-1] = cuts[-1]._replace(next_discontinuity=True)
        self._reset(has_video=has_video)
        return cuts

    def finish(self) -> list[Cut]:
        """End the stream; return the cuts. The last frame is assumed to last as long as the one before."""
        self._cuts = []
        if self.started:
            self._close(When.FINISH, None)
            self.started = False
        return self._cuts

    # The driving track ----------------------------------------------------------------------------------------------------

    def _begin(self, frame: Frame) -> None:
        self.started = True
        self.segment_start_ms = self._part_start_ms = self._last_ms = self._keyframe_ms = frame.timestamp_ms
        lane = self._lane(frame)
        lane.waits, lane.waiting_key = True, frame.is_keyframe
        self._silent_ms = 0
        self._set_quiet()

    def _lane(self, frame: Frame) -> _Lane:
        return self._video if frame.is_video else self._audio

    def _drive(self, frame: Frame) -> None:
        targets = self._targets
        newest_ms = max(self._last_ms, self._part_start_ms)
        if not -_BACK_MS <= frame.timestamp_ms - newest_ms <= targets.target_s * 1000:
            self._break(frame)
            return
        time_ms = max(frame.timestamp_ms, newest_ms + 1)
        step_ms = time_ms - self._last_ms
        is_keyframe = frame.is_keyframe or not self._has_video
        if is_keyframe and frame.is_video:
            self._gop_ms = max(time_ms - self._keyframe_ms, self._gop_ms - (self._gop_ms >> 3))
            self._keyframe_ms = time_ms
        length_ms = time_ms - self.segment_start_ms
        if self._guided and not self._has_video:
            ends = self._guide_ms is not None and time_ms >= self._guide_ms
            if ends:
                self._guide_ms = None
                # One that has just ended, since it would have become too long, has ended near enough.
                ends = length_ms * _SHORTEST_SHARE >= targets.segment_ms
        else:
            ends = is_keyframe and length_ms + step_ms >= targets.segment_ms
        if frame.is_video and is_keyframe and length_ms * _SHORTEST_SHARE >= targets.segment_ms:
            ends |= length_ms + self._gop_ms > targets.limit_ms
        added = self._reach(time_ms, frame, When.THIS, ends=ends)
        if not added:
            self._lane(frame).add(is_keyframe=frame.is_keyframe)
        self._last_ms = time_ms
        self._step_ms = step_ms
        self._silent_ms = 0
        next_ms = time_ms + max(step_ms, 1)
        ends |= next_ms > self.segment_start_ms + targets.limit_ms or self._ends_early
        duration_ms = time_ms - self._part_start_ms
        full = duration_ms * 100 >= self._part_ms * PART_FLOOR_PERCENT and next_ms > self._part_start_ms + self._part_ms
        if ends or full:
            self._cut(When.THIS, time_ms, ends=ends)

    def _reach(self, time_ms: int, frame: Frame | None, when: When, *, ends: bool) -> bool:
        """End parts until none is too long at *time_ms*, where the last frame ends; return whether *frame* was added.

        Args:
            time_ms: The time.
            frame: The frame that begins there; None: there is none.
            when: How the last frame of the driving track is taken.
            ends: Whether a part ends there in any case.
        """
        part_ms, driving = self._part_ms, self._video if self._has_video else self._audio
        added = False
        while True:
            start_ms, last_ms = self._part_start_ms, self._last_ms
            end_ms = self.segment_start_ms + self._targets.limit_ms
            too_long = time_ms > end_ms
            if time_ms - start_ms <= part_ms and not too_long:
                return added
            has_more = last_ms > start_ms and not added
            enough = (last_ms - start_ms) * 100 >= part_ms * PART_FLOOR_PERCENT or driving.has_keyframe or not self._has_video
            if has_more and (enough or too_long):
                self._cut(When.PREVIOUS, last_ms, ends=too_long)
                continue
            # The last frame extends over the end of the part. It belongs into the next part if that would have no frame.
            place_ms = min(start_ms + part_ms, end_ms)
            if has_more and (ends or time_ms - place_ms > part_ms):
                self._cut(When.PREVIOUS, place_ms, ends=place_ms == end_ms)
                continue
            if not added:
                added = True
                self._add_behind(frame, when)
            self._cut(when, place_ms, ends=place_ms == end_ms)

    def _add_behind(self, frame: Frame | None, when: When) -> None:
        if when is When.FINISH:
            self._video.complete()
            self._audio.complete()
        elif frame is not None:
            self._lane(frame).add(is_keyframe=frame.is_keyframe)

    def _break(self, frame: Frame) -> None:
        """End the segment before a frame that does not continue the timeline."""
        self._close(When.FINISH, frame)
        self._cuts[-1] = self._cuts[-1]._replace(next_start_ms=frame.timestamp_ms, next_discontinuity=True)
        self._begin(frame)
        self._audio_ms = None

    def _close(self, when: When, frame: Frame | None) -> None:
        """End the segment behind the last frame, which is assumed to last as long as the one before."""
        end_ms = max(self._last_ms + max(1, min(self._step_ms, self._part_ms)), self._part_start_ms + 1)
        if not self._reach(end_ms, frame, when, ends=True):
            self._add_behind(frame, when)
        self._cut(when, end_ms, ends=True)

    def _cut(self, when: When, end_ms: int, *, ends: bool) -> None:
        video, audio = self._video, self._audio
        frames = video.frames + audio.frames
        has_keyframe = video.has_keyframe if self._has_video else frames > 0
        duration_ms = end_ms - self._part_start_ms
        self._cuts.append(Cut(when, duration_ms, has_keyframe, frames, ends, end_ms, False))
        self._part_start_ms = end_ms
        video.clear()
        audio.clear()
        if ends:
            self.segment_start_ms = end_ms
            self._ends_early = False
        self._set_quiet()

    # The other track ------------------------------------------------------------------------------------------------------

    def _follow(self, frame: Frame) -> None:
        """Add audio; if video is silent, end the parts that it should have ended."""
        before_ms, self._audio_ms = self._audio_ms, frame.timestamp_ms
        if before_ms is not None and 0 < frame.timestamp_ms - before_ms <= self._targets.target_s * 1000:
            self._silent_ms += frame.timestamp_ms - before_ms
        # Audio may be on another clock, or arrive late in one burst: neither is silence of the video.
        heard_ms = min(self._last_ms + self._silent_ms, frame.timestamp_ms) - _SILENCE_MS
        while heard_ms >= self._part_start_ms + self._part_ms:
            limit_ms = self.segment_start_ms + self._targets.limit_ms
            place_ms = min(self._part_start_ms + self._part_ms, limit_ms)
            self._cut(When.PREVIOUS, place_ms, ends=place_ms == limit_ms)
        self._audio.add(is_keyframe=frame.is_keyframe)
