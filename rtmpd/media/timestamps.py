"""The timeline of a live stream: corrects the publisher's timestamps for players. No I/O, and nothing raises.

Players get the publisher's timestamps as long as these are continuous. Encoders in the field restart them at 0, jump, use
different bases for audio and video, or step back a little, at which players stop or drift. So a jump becomes a step to the
newest time of the stream, and the timestamps of a track never decrease.
"""

from __future__ import annotations

from rtmpd.util.speed import accelerated, completes

_STEP_LIMIT_MS = 2_000
"""A step of at most this, in either direction, is continuous. A step back is jitter: the output stays at its last value."""

_GAP_LIMIT_MS = 60_000
"""A longer step forward, to at most this far ahead of the newest time, is a gap: a stream may show one picture for a while,
and one track may be silent for hours while the other runs on. Other steps are jumps."""

_STRAY_MS = 1_000
"""A track that returns to its former clock within this time had a stray timestamp, not a new clock."""

_NEAR_MS = 10_000
"""Tracks whose clocks differ by at most this share a base."""

_WRAP = 0x1_0000_0000
_HALF = 0x8000_0000


@accelerated
class TrackState:
    """What an ordinary step changes of a track: the publisher's last timestamp, and the last one on the timeline."""

    __slots__ = ("last_in", "raw", "shown")

    last_in: int
    raw: int
    shown: int


class Track(TrackState):
    """The state of one track (audio or video) of a `Timeline`."""

    __slots__ = ("left_at", "left_moved", "left_offset", "moved", "offset")

    def __init__(self) -> None:
        self.raw = 0  # the last timestamp on the timeline, unwrapped
        self.shown = 0  # the last output: raw, but never less than the output before
        self.last_in = -1  # the publisher's last timestamp; -1: the next one is placed without regard to the last
        self.offset: int | None = None  # raw minus timestamp, since the last placement; None before the first
        self.moved = 0  # the part of the timeline's `_moved` that is in the offset
        self.left_offset: int | None = None  # the offset before the last placement, if that may have been a stray timestamp
        self.left_moved = 0
        self.left_at = 0  # raw at the last placement


@accelerated
class TimelineState:
    """What an ordinary step changes of a timeline: the newest output."""

    __slots__ = ("audio", "newest", "video")

    audio: Track
    video: Track
    newest: int


class Timeline(TimelineState):
    """Maps the timestamps of one source to a continuous clock. When it becomes active, `shift` moves it to that of its stream.

    An offset, once learned, is kept as long as timestamps fit it, however long a track was silent. When a track jumps, the
    other one is expected to jump by the same distance, so that their lip sync stays as it was, to the millisecond.

    All times are milliseconds. Input and output are modulo 2**32, as on the wire; internal times do not wrap.

    Attributes:
        newest: The newest output, unwrapped; -1 before the first.
        offset: Timeline minus publisher's clock, of the track that was placed last. Other tracks use it if it fits.
        jumps: The number of jumps so far.
    """

    __slots__ = ("_moved", "jumps", "offset")

    def __init__(self) -> None:
        self.audio = Track()
        self.video = Track()
        self.offset = 0
        self.newest = -1
        self.jumps = 0
        self._moved = 0  # by how much jumps have changed the offsets, of the track that has jumped last

    @property
    def running(self) -> bool:
        """Whether there was a frame."""
        return self.newest >= 0

    def shift(self, by_ms: int) -> None:
        """Move the timeline: all that comes, and what has been, is later by *by_ms*, which may be negative."""
        for track in (self.audio, self.video):
            track.raw += by_ms
            track.shown += by_ms
            track.left_at += by_ms
            if track.offset is not None:
                track.offset += by_ms
            if track.left_offset is not None:
                track.left_offset += by_ms
        self.offset += by_ms
        if self.newest >= 0:
            self.newest += by_ms

    def keep_beyond(self, track: Track, timestamp: int) -> None:
        """Let no frame of a track be before a timestamp, modulo 2**32, that another source's frame had on this timeline."""
        track.shown += max(0, (timestamp - track.shown + _HALF) % _WRAP - _HALF)
        self.newest = max(self.newest, track.shown)

    @completes(TimelineState)
    def stamp(self, track: Track, timestamp: int) -> int:
        """Map the timestamp of a frame of *track* (``audio`` or ``video`` of this timeline)."""
        if track.last_in < 0:
            return self._enter(track, timestamp) if track.offset is None else self._leap(track, timestamp, track.offset)
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
        assert track.offset is not None
        return self._leap(track, timestamp, track.offset)

    def _enter(self, track: Track, timestamp: int) -> int:
        """Place the first timestamp of a track: by the other track's offset, if that fits."""
        track.moved = self._moved
        before = self.offset
        if self.newest < 0:
            stamped = self._place(track, timestamp, timestamp)
        else:
            raw = self._near(timestamp, before)
            near = abs(raw - self.newest) <= _NEAR_MS
            stamped = self._place(track, timestamp, raw) if near else self._rebase(track, timestamp)
        # It may be a stray timestamp: the next one decides.
        self._leave(track, before, self._moved)
        return stamped

    def _leap(self, track: Track, timestamp: int, offset: int) -> int:
        """Place a timestamp far from the track's last one: a gap, a jump, or the return from a stray timestamp."""
        moved = track.moved
        if track.left_offset is not None and track.raw - track.left_at <= _STRAY_MS:
            raw = self._near(timestamp, track.left_offset)
            # The stray timestamp may have moved the newest time, but not the other track.
            if self._fits_other(track, raw) or abs(raw - self.newest) <= _STEP_LIMIT_MS:
                if (offset - self.offset) % _WRAP == 0:
                    self.offset = track.left_offset
                if moved == self._moved:
                    self._moved = track.left_moved
                track.moved, track.left_offset = track.left_moved, None
                return self._place(track, timestamp, raw)
        own = self._near(timestamp, offset)
        if moved != self._moved:
            # The other track has jumped: this one follows by the same distance, unless it is still nearer to its old clock.
            raw = self._near(timestamp, offset + self._moved - moved)
            if abs(raw - self.newest) <= min(_NEAR_MS, abs(own - self.newest) - 1):
                return self._jump(track, timestamp, raw)
        if track.raw - _STEP_LIMIT_MS <= own <= self.newest + _GAP_LIMIT_MS:
            ahead = own > self.newest + _STEP_LIMIT_MS
            stamped = self._place(track, timestamp, own)
            if ahead:
                self._leave(track, offset, moved)
            return stamped
        new = track.raw - track.left_at <= _STRAY_MS
        if (new or moved != self._moved) and (offset - self.offset) % _WRAP:
            # The other track has been placed anew; and the clocks may share a base, which they did not before.
            raw = self._near(timestamp, self.offset)
            if abs(raw - self.newest) <= _NEAR_MS:
                return self._jump(track, timestamp, raw)
        # The first track to jump is placed at the newest time.
        self._moved += self.newest - timestamp - offset - (self._moved - moved)
        self.offset = self.newest - timestamp
        other = self.audio if track is self.video else self.video
        if self.newest - other.raw > _NEAR_MS:
            # It is silent: when it returns, its timestamp may be near its last one by chance.
            other.last_in = -1
        return self._jump(track, timestamp, self.newest)

    def _jump(self, track: Track, timestamp: int, raw: int) -> int:
        self.jumps += 1
        offset, moved = track.offset, track.moved
        track.moved = self._moved
        stamped = self._place(track, timestamp, raw)
        self._leave(track, offset, moved)
        return stamped

    @staticmethod
    def _leave(track: Track, offset: int | None, moved: int) -> None:
        """Take note of the clock that a track has left, in case its timestamp is a stray one."""
        track.left_offset, track.left_moved, track.left_at = offset, moved, track.raw

    def _fits_other(self, track: Track, raw: int) -> bool:
        other = self.audio if track is self.video else self.video
        return other.offset is not None and abs(raw - other.raw) <= _STEP_LIMIT_MS

    def _rebase(self, track: Track, timestamp: int) -> int:
        """Place a timestamp at the newest time."""
        self.offset = self.newest - timestamp
        return self._place(track, timestamp, self.newest)

    def _place(self, track: Track, timestamp: int, raw: int) -> int:
        track.last_in = timestamp
        track.raw = raw
        track.offset = raw - timestamp
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
        if abs(raw - self.newest) > _NEAR_MS:
            raw = self.newest
        return raw & 0xFFFFFFFF
