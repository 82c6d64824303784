"""The health of one source, judged from its totals without decoding. Pure: the clock is an argument.

A source can be connected and useless: silent, slow, without keyframes, with a frozen picture or without sound. Each rule needs
figures that a source counts anyway.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import NamedTuple

TICK_S = 0.05
"""The longest usual time between two ticks, for which the stall rule is exact."""
_LATE_S = 2 * TICK_S  # messages that came before a later tick are still to be read, and counted in the next one
_WINDOW_S, _SAMPLE_S = 3.0, 0.25
_RECOVERY = 1.1


class Fault(enum.Enum):
    """Why a source is not healthy. Of several faults, the first one of this list counts."""

    STALLED = "stalled"
    """It sends nothing, or has not sent anything yet."""
    NO_KEYFRAME = "no keyframe"
    LOW_FRAME_RATE = "low frame rate"
    LOW_BITRATE = "low bitrate"
    FROZEN = "frozen picture"
    """All inter frames are tiny."""
    SILENT = "silent"
    """All audio frames are tiny, or there are none."""


class HealthRules(NamedTuple):
    """The rules, from the options. 0 switches a rule off, except the first.

    Attributes:
        stall_timeout_s: How long a healthy source may send nothing; at least some ticks.
        frame_rate_floor: The lowest rate of video frames, over 3 s.
        keyframe_timeout_s: How long a source with video may send no keyframe.
        bitrate_floor: The lowest rate of payloads in bits per second, over 3 s.
        frozen_timeout_s: How long all inter frames may have at most *frozen_frame_bytes*.
        frozen_frame_bytes: The largest inter frame of a frozen picture.
        silence_timeout_s: How long all audio messages may have at most *silence_frame_bytes*.
        silence_frame_bytes: The largest audio message of silence.
    """

    stall_timeout_s: float = 2.0
    frame_rate_floor: float = 0.0
    keyframe_timeout_s: float = 0.0
    bitrate_floor: int = 0
    frozen_timeout_s: float = 0.0
    frozen_frame_bytes: int = 0
    silence_timeout_s: float = 0.0
    silence_frame_bytes: int = 0


class HealthFigures(NamedTuple):
    """What a source has sent, as totals; the sizes are those since the last tick.

    Attributes:
        messages: Audio and video messages.
        bytes: Their payloads.
        video_frames: Video messages that are frames; keyframes are among them.
        keyframes: Keyframes.
        largest_inter_bytes: The largest payload of a video frame that is no keyframe, since the last tick; 0: there was none.
        largest_audio_bytes: The largest payload of an audio message, since the last tick; 0: there was none.
        has_video, has_audio: Whether the source has such a track.
    """

    messages: int = 0
    bytes: int = 0
    video_frames: int = 0
    keyframes: int = 0
    largest_inter_bytes: int = 0
    largest_audio_bytes: int = 0
    has_video: bool = False
    has_audio: bool = False


class Health:
    """Judges one source, some 20 times a second.

    If ticks come at least each 50 ms, a stall is declared before the source has been silent for longer than
    ``stall_timeout_s``, and at most two ticks before: within a tick it is not known when the last message came. A tick that is
    late, by more than 50 ms, declares nothing, since the messages that came meanwhile are still to be read; the next one does.
    Other rules count late ticks as 100 ms. Rates are first judged 3 s after the first message. A rate that was too low must
    reach 110 % of the floor, so that a floor should not be above 90 % of the usual rate.

    Args:
        rules: The rules; may be replaced at any time.

    Attributes:
        rules: Likewise.
        fault: What is wrong; None if the source is healthy.
        text: The fault with figures and the option, for the log; empty if the source is healthy.
        healthy_since_s: When the source became healthy, on the clock of `tick`; None if it is not.
    """

    __slots__ = (
        "_clock_s",
        "_inter_frames",
        "_keyframe_at_s",
        "_keyframes",
        "_late",
        "_loud_at_s",
        "_messages",
        "_moved_at_s",
        "_quiet_before_s",
        "_samples",
        "_slow",
        "_thin",
        "_ticked_at_s",
        "fault",
        "healthy_since_s",
        "rules",
        "text",
    )

    def __init__(self, rules: HealthRules) -> None:
        self.rules = rules
        self.fault: Fault | None = Fault.STALLED
        self.text = "it has sent nothing"
        self.healthy_since_s: float | None = None
        self._ticked_at_s: float | None = None
        self._clock_s = 0.0  # the sum of the times between ticks, without lateness
        self._late = False
        self._messages = 0
        self._quiet_before_s = 0.0  # the newest message came after this time
        # On the clock without lateness:
        self._keyframe_at_s = self._moved_at_s = self._loud_at_s = 0.0
        self._keyframes = 0
        self._inter_frames = 0  # when the picture last moved
        self._samples: deque[tuple[float, int, int]] = deque()  # time, bytes, video frames
        self._slow = self._thin = False

    def tick(self, now_s: float, figures: HealthFigures) -> bool:
        """Judge the source; return whether `fault` has changed.

        Args:
            now_s: The monotonic clock.
            figures: What the source has sent.
        """
        # Messages may have come before the first tick: ticks were not needed until then, or the source has just been added.
        before_s = now_s - TICK_S if self._ticked_at_s is None else self._ticked_at_s
        self._ticked_at_s = now_s
        was_late, self._late = self._late, now_s - before_s > _LATE_S
        before_s = max(before_s, now_s - _LATE_S)
        self._clock_s += now_s - before_s
        first, unchanged = not self._messages, figures.messages == self._messages
        if unchanged and (first or (self._late and not was_late)):
            return False
        if not unchanged:
            self._messages = figures.messages
            self._quiet_before_s = before_s
        self._observe(figures, first=first)
        fault, text = self._judge(now_s, figures)
        if fault is self.fault:
            return False
        self.fault, self.text = fault, text
        self.healthy_since_s = now_s if fault is None else None
        return True

    def note(self, now_s: float, messages: int) -> None:
        """Take note that the source has sent messages since the last tick: a tick that judges nothing, and costs a fraction.

        Args:
            now_s: The monotonic clock.
            messages: What `HealthFigures` has of them.
        """
        before_s = now_s if self._ticked_at_s is None else self._ticked_at_s
        self._ticked_at_s = now_s
        self._late = now_s - before_s > _LATE_S
        if self._late:
            before_s = now_s - _LATE_S
        self._clock_s += now_s - before_s
        if self._messages:
            self._messages = messages
            self._quiet_before_s = before_s

    def _observe(self, figures: HealthFigures, *, first: bool) -> None:
        """Take note of the times that the rules need."""
        clock_s, rules, samples = self._clock_s, self.rules, self._samples
        if first or figures.keyframes != self._keyframes or not figures.has_video:
            self._keyframe_at_s, self._keyframes = clock_s, figures.keyframes
        if first or figures.largest_inter_bytes > rules.frozen_frame_bytes or not figures.has_video:
            self._moved_at_s, self._inter_frames = clock_s, figures.video_frames - figures.keyframes
        if first or figures.largest_audio_bytes > rules.silence_frame_bytes or not figures.has_audio:
            self._loud_at_s = clock_s
        if first or clock_s - samples[-1][0] >= _SAMPLE_S:
            samples.append((clock_s, figures.bytes, figures.video_frames))
            while len(samples) > 1 and clock_s - samples[1][0] >= _WINDOW_S:
                samples.popleft()

    def _judge(self, now_s: float, figures: HealthFigures) -> tuple[Fault | None, str]:
        rules, clock_s = self.rules, self._clock_s
        # The next tick would be too late.
        quiet_s = now_s - self._quiet_before_s
        if quiet_s + TICK_S > rules.stall_timeout_s:
            return Fault.STALLED, f"no media for {quiet_s:.1f} s (stall_timeout_s)"
        if figures.has_video and 0 < rules.keyframe_timeout_s <= clock_s - self._keyframe_at_s:
            return Fault.NO_KEYFRAME, f"no keyframe for {clock_s - self._keyframe_at_s:.1f} s (keyframe_timeout_s)"
        fps, bitrate = self._rates(figures)
        self._slow = fps is not None and figures.has_video and fps < rules.frame_rate_floor * (_RECOVERY if self._slow else 1)
        if self._slow:
            return Fault.LOW_FRAME_RATE, f"{fps:.1f} frames/s, less than {rules.frame_rate_floor:g} (frame_rate_floor)"
        self._thin = bitrate is not None and bitrate < rules.bitrate_floor * (_RECOVERY if self._thin else 1)
        if self._thin and bitrate is not None:
            return Fault.LOW_BITRATE, f"{bitrate / 1000:.0f} kbit/s, less than {rules.bitrate_floor / 1000:g} (bitrate_floor)"
        still_s = clock_s - self._moved_at_s
        if figures.has_video and 0 < rules.frozen_timeout_s <= still_s:
            inter_frames = figures.video_frames - figures.keyframes - self._inter_frames
            if inter_frames:
                largest = f"{inter_frames} inter frames of at most {rules.frozen_frame_bytes} bytes"
                return Fault.FROZEN, f"{largest} in {still_s:.1f} s (frozen_timeout_s, frozen_frame_bytes)"
        quiet_s = clock_s - self._loud_at_s
        if figures.has_audio and 0 < rules.silence_timeout_s <= quiet_s:
            largest = f"no audio of more than {rules.silence_frame_bytes} bytes"
            return Fault.SILENT, f"{largest} for {quiet_s:.1f} s (silence_timeout_s, silence_frame_bytes)"
        return None, ""

    def _rates(self, figures: HealthFigures) -> tuple[float | None, float | None]:
        """Return frames and bits per second over the last 3 s; None before 3 s have passed."""
        began_s, sent_bytes, frames = self._samples[0]
        seconds = self._clock_s - began_s
        if seconds < _WINDOW_S:
            return None, None
        return (figures.video_frames - frames) / seconds, (figures.bytes - sent_bytes) * 8 / seconds
