"""The times of samples, from the timestamps of messages: whole numbers, computed from each timestamp, so that nothing drifts.

Timestamps are milliseconds modulo 2**32. A tick of video is 1/90000 s, so that its times are exact. The ticks of audio are its
samples: a frame that begins where the one before has ended, to within half of a frame, begins exactly there. Timestamps are
rounded to milliseconds, and players would otherwise hear gaps and overlaps of up to 48 samples. A frame further off begins
where its timestamp says: frames were lost, or the encoder's clock is another than that of its sound card.
"""

from __future__ import annotations

from rtmpd.media.fmp4.codecs import VIDEO_TIMESCALE

_MASK = 0xFFFFFFFF
_HALF = 0x80000000
_TICKS_PER_MS = VIDEO_TIMESCALE // 1000

_FIRST_DURATION = VIDEO_TIMESCALE // 30
"""What the first frame of video is assumed to last."""

_ASSUMED_RATE_HZ = 50
"""The number of frames of audio in a second that is assumed, if nothing is known of their duration."""

_LONGEST_DURATION = VIDEO_TIMESCALE
"""The longest duration that is estimated: a still picture may last for hours."""

_RESTART_MS = 1000
"""Times that go back by less are jitter and stay; others begin another timeline."""

_DECAY = 4
"""Of a longer estimate a sixteenth is left off with each frame: it lasts for about half a second."""


class Unwrapper:
    """Makes timestamps continuous beyond 2**32 ms.

    Attributes:
        newest_ms: The newest time; None before the first.
    """

    __slots__ = ("newest_ms",)

    def __init__(self, newest_ms: int | None = None) -> None:
        self.newest_ms = newest_ms

    def unwrap(self, timestamp: int) -> int:
        """Return the time of a timestamp, the one nearest to the newest time, milliseconds; not negative."""
        newest_ms = self.newest_ms
        if newest_ms is None:
            self.newest_ms = timestamp
            return timestamp
        time_ms = newest_ms + ((timestamp - newest_ms + _HALF) & _MASK) - _HALF
        if time_ms > newest_ms or time_ms < newest_ms - _RESTART_MS:
            self.newest_ms = max(time_ms, 0)
        return max(time_ms, 0)


class VideoTimes:
    """Decoding times of video.

    Attributes:
        duration: An estimate of how long a frame lasts that has no successor yet, ticks: the longest recent step between
            frames. A browser takes a step of more than two durations for a gap, at which it stops playing.
    """

    __slots__ = ("_last", "duration")

    def __init__(self) -> None:
        self._last = -1
        self.duration = 0

    def place(self, time_ms: int) -> int:
        """Return the decoding time of the next frame, ticks. Times increase, unless another timeline begins."""
        ticks = time_ms * _TICKS_PER_MS
        step = ticks - self._last
        if self._last < 0:
            self.duration = self.duration or _FIRST_DURATION
        elif step <= 0:
            if step > -_RESTART_MS * _TICKS_PER_MS:
                ticks = self._last + 1
        elif step >= self.duration or not self.duration:
            self.duration = min(step, _LONGEST_DURATION)
        else:
            self.duration -= (self.duration - step) >> _DECAY
        self._last = ticks
        return ticks


class AudioTimes:
    """Decoding times of audio.

    Args:
        rate_hz: Ticks per second.

    Attributes:
        duration: The duration of the last frame, ticks; estimated for codecs that do not say it.
    """

    __slots__ = ("_expected", "_last", "_rate_hz", "duration")

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._last = -1
        self._expected = -1
        self.duration = 0

    def place(self, time_ms: int, frame_ticks: int) -> int:
        """Return the decoding time of the next frame, ticks. Times increase, unless another timeline begins.

        Args:
            time_ms: Its time.
            frame_ticks: Its duration; 0: unknown.
        """
        ticks = (time_ms * self._rate_hz + 500) // 1000
        last = self._last
        off = ticks - self._expected
        if last < 0:
            self.duration = self._rate_hz // _ASSUMED_RATE_HZ
        elif frame_ticks and -self.duration <= 2 * off <= self.duration:
            ticks = self._expected
        elif ticks <= last and ticks > last - self._rate_hz * _RESTART_MS // 1000:
            ticks = last + 1
        elif not frame_ticks and 0 < ticks - last <= self._rate_hz:
            self.duration = ticks - last
        if frame_ticks:
            self.duration = frame_ticks
        self._last = ticks
        self._expected = ticks + self.duration
        return ticks
