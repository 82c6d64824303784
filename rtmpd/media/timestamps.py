"""The timeline of a live stream: publishers' timestamps made fit for players.

Players get the publisher's own timeline as long as it runs on. Encoders in the field restart it at 0, jump, count audio and
video from different bases, or go a little backwards; players stop or drift then. So a jump is turned into a step to the
newest time of the stream, and each track never goes backwards. Nothing here closes a stream. Pure; imports nothing.
"""

from __future__ import annotations

__all__ = ["Timeline", "Track"]

_STEP_LIMIT_MS = 2_000
"""A step within this, either way, is the stream running on. A step back is then jitter, and is held level."""

_GAP_LIMIT_MS = 60_000
"""A longer step forward is a gap up to here: a stream may well show one picture for a while. All else is a jump."""

_STRAY_MS = 1_000
"""A track that is back within this on the clock that it jumped from had a stray timestamp, and no new clock."""

_NEAR_MS = 10_000
"""Tracks of one stream whose clocks are within this of each other share a base."""

_WRAP = 0x1_0000_0000
_HALF = 0x8000_0000


class Track:
    """The state of one track (audio, or video) on a timeline. Owned by `Timeline`."""

    __slots__ = ("last_in", "left_at", "left_offset", "raw", "shown")

    def __init__(self) -> None:
        self.last_in = -1  # the publisher's last timestamp, -1 before the first
        self.raw = 0  # the same on the timeline, unwrapped
        self.shown = 0  # what was given out: raw, but never less than before
        self.left_offset: int | None = None  # raw less timestamp, before the last jump
        self.left_at = 0  # raw at that jump


class Timeline:
    """Maps the timestamps of one stream's successive publishers to one that players can follow.

    All times are milliseconds. What goes in is modulo 2**32 as on the wire, what comes out too; inside nothing wraps.

    Attributes:
        newest: The newest time given out, unwrapped; -1 before the first.
        offset: Timeline less publisher's clock, of the track that was placed anew last; others follow it if it fits them.
        jumps: How often a track had to be placed anew.
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
        """Begin with another publisher, *elapsed_ms* after the last message: its first timestamp follows the newest one."""
        for track in (self.audio, self.video):
            # What was shown stays: players that were kept have seen it.
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
        """Place a timestamp that says nothing by the track's last: with the other track, if that can be."""
        if self.newest < 0:
            return self._place(track, timestamp, timestamp)
        if not self._anchor:
            raw = self._near(timestamp, self.offset)
            if abs(raw - self.newest) <= _NEAR_MS:
                return self._place(track, timestamp, raw)
        self._anchor = False
        return self._rebase(track, timestamp)

    def _leap(self, track: Track, timestamp: int, step: int) -> int:
        """Place a timestamp that is far from the track's last: a gap, a jump, or the way back from a stray one."""
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
        # The first track to jump goes to the newest time, the others after it.
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
        """Unwrap a timestamp with an offset to the value that is nearest to the newest time."""
        return self.newest + (timestamp + offset - self.newest + _HALF) % _WRAP - _HALF

    def beside(self, timestamp: int) -> int:
        """Map the timestamp of what is no frame: headers, metadata, cue points.

        Encoders stamp those with 0 or with the time of the moment, so that they must never move the timeline: what is not
        near the newest time is given that.
        """
        if self.newest < 0:
            return timestamp
        raw = self._near(timestamp, self.offset)
        if self._anchor or abs(raw - self.newest) > _NEAR_MS:
            raw = self.newest
        return raw & 0xFFFFFFFF
