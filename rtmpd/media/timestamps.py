"""The timeline of a live stream: corrects the publisher's timestamps for players. No I/O, and nothing raises.

Players get the publisher's timestamps as long as these are continuous. Encoders in the field restart them at 0, jump, use
different bases for audio and video, or step back a little, at which players stop or drift. So a jump becomes a step to the
newest time of the stream, and the timestamps of a track never decrease.
"""

from __future__ import annotations

_STEP_LIMIT_MS = 2_000
"""A step of at most this, in either direction, is continuous. A step back is jitter: the output stays at its last value."""

_GAP_LIMIT_MS = 60_000
"""A longer step forward, up to this, is a gap: a stream may show one picture for a while. Other steps are jumps."""

_STRAY_MS = 1_000
"""A track that returns to its former clock within this time had a stray timestamp, not a new clock."""

_NEAR_MS = 10_000
"""Tracks whose clocks differ by at most this share a base."""

_WRAP = 0x1_0000_0000
_HALF = 0x8000_0000


class Track:
    """The state of one track (audio or video) of a `Timeline`."""

    __slots__ = ("last_in", "left_at", "left_offset", "raw", "shown")

    def __init__(self) -> None:
        self.last_in = -1  # the publisher's last timestamp; -1 before the first
        self.raw = 0  # that timestamp on the timeline, unwrapped
        self.shown = 0  # the last output: raw, but never less than the output before
        self.left_offset: int | None = None  # raw minus timestamp before the last jump
        self.left_at = 0  # raw at the last jump


class Timeline:
    """Maps the timestamps of a stream's successive publishers to one continuous clock.

    All times are milliseconds. Input and output are modulo 2**32, as on the wire; internal times do not wrap.

    Attributes:
        newest: The newest output, unwrapped; -1 before the first.
        offset: Timeline minus publisher's clock, of the track that was placed last. Other tracks use it if it fits.
        jumps: The number of jumps so far.
    """

    __slots__ = ("_anchor", "audio", "jumps", "newest", "offset", "video")

    def __init__(self) -> None:
        self.audio = Track()
        self.video = Track()
        self.offset = 0
        self.newest = -1
        self.jumps = 0
        self._anchor = False

    def restart(self, elapsed_ms: int) -> None:
        """Start with another publisher, *elapsed_ms* after the last message: its first timestamp continues the timeline."""
        for track in (self.audio, self.video):
            # The last output stays, because players that were kept have got it.
            track.last_in = -1
            track.left_offset = None
        if self.newest >= 0:
            self.newest += max(1, elapsed_ms)
            self._anchor = True

    def stamp(self, track: Track, timestamp: int) -> int:
        """Map the timestamp of a frame of *track* (``audio`` or ``video`` of this timeline)."""
        if track.last_in < 0:
            return self._enter(track, timestamp)
        step = (timestamp - track.last_in + _HALF) % _WRAP - _HALF
        if -_STEP_LIMIT_MS <= step <= _STEP_LIMIT_MS:
            track.last_in = timestamp
            raw = track.raw = track.raw + step
            if raw > track.shown:
                track.shown = raw
                if raw > self.newest:
                    self.newest = raw
                return raw & 0xFFFFFFFF
            return track.shown & 0xFFFFFFFF
        return self._leap(track, timestamp, step)

    def _enter(self, track: Track, timestamp: int) -> int:
        """Place a timestamp without regard to the track's last one: by the other track's offset, if that fits."""
        if self.newest < 0:
            return self._place(track, timestamp, timestamp)
        if not self._anchor:
            raw = self._near(timestamp, self.offset)
            if abs(raw - self.newest) <= _NEAR_MS:
                return self._place(track, timestamp, raw)
        self._anchor = False
        return self._rebase(track, timestamp)

    def _leap(self, track: Track, timestamp: int, step: int) -> int:
        """Place a timestamp far from the track's last one: a gap, a jump, or the return from a stray timestamp."""
        offset = track.raw - track.last_in
        leads = (offset - self.offset) % _WRAP == 0
        if track.left_offset is not None and track.raw - track.left_at <= _STRAY_MS:
            raw = self._near(timestamp, track.left_offset)
            if abs(raw - self.newest) <= _STEP_LIMIT_MS:
                if leads:
                    self.offset = track.left_offset
                track.left_offset = None
                return self._place(track, timestamp, raw)
        if 0 < step <= _GAP_LIMIT_MS:
            return self._place(track, timestamp, track.raw + step)
        self.jumps += 1
        # The first track to jump is placed at the newest time, the other one by the offset of the first.
        stamped = self._rebase(track, timestamp) if leads else self._enter(track, timestamp)
        track.left_offset, track.left_at = offset, track.raw
        return stamped

    def _rebase(self, track: Track, timestamp: int) -> int:
        """Place a timestamp at the newest time."""
        self.offset = self.newest - timestamp
        return self._place(track, timestamp, self.newest)

    def _place(self, track: Track, timestamp: int, raw: int) -> int:
        track.last_in = timestamp
        track.raw = raw
        track.shown = max(raw, track.shown)
        self.newest = max(self.newest, track.shown)
        return track.shown & 0xFFFFFFFF

    def _near(self, timestamp: int, offset: int) -> int:
        """Return the timestamp plus the offset, unwrapped to the value nearest to the newest time."""
        return self.newest + (timestamp + offset - self.newest + _HALF) % _WRAP - _HALF

    def beside(self, timestamp: int) -> int:
        """Map the timestamp of a message that is not a frame: a header, metadata, a cue point.

        Encoders send these with 0 or with the current time, so that they must never move the timeline: a timestamp that is not
        near the newest time becomes the newest time.
        """
        if self.newest < 0:
            return timestamp
        raw = self._near(timestamp, self.offset)
        if self._anchor or abs(raw - self.newest) > _NEAR_MS:
            raw = self.newest
        return raw & 0xFFFFFFFF
