"""The timeline of a live stream: publishers' timestamps made fit for players.

Players get the publisher's own timeline as long as it runs on. Encoders in the field restart it at 0, jump, count audio and
video from different bases, or go a little backwards; players stop or drift then. So a jump is turned into a step to the
newest time of the stream, and each track never goes backwards. Nothing here closes a stream. Pure; imports nothing.
"""

from __future__ import annotations

__all__ = ["Timeline", "Track"]

_BACKWARD_LIMIT_MS = -2_000
"""A step back further than this is a jump; less is jitter, and is held level."""

_FORWARD_LIMIT_MS = 60_000
"""A step forward further than this is a jump: a stream may well show one picture for a while."""

_NEAR_MS = 10_000
"""Tracks of one stream whose clocks are within this of each other share a base."""

_WRAP = 0x1_0000_0000
_HALF = 0x8000_0000


class Track:
    """The state of one track (audio, or video) on a timeline. Owned by `Timeline`."""

    __slots__ = ("last_in", "raw", "shown")

    def __init__(self) -> None:
        self.last_in = -1  # the publisher's last timestamp, -1 before the first
        self.raw = 0  # the same on the timeline, unwrapped
        self.shown = 0  # what was given out: raw, but never less than before


class Timeline:
    """Maps the timestamps of one stream's successive publishers to one that players can follow.

    All times are milliseconds. What goes in is modulo 2**32 as on the wire, what comes out too; inside nothing wraps.

    Attributes:
        newest: The newest time given out, unwrapped; -1 before the first.
        jumps: How often a track had to be rebased.
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
        self.audio = Track()
        self.video = Track()
        if self.newest >= 0:
            self.newest += max(1, elapsed_ms)
            self._anchor = True

    def stamp(self, track: Track, timestamp: int) -> int:
        """Map the timestamp of a frame of *track* (``audio`` or ``video`` of this timeline)."""
        if track.last_in >= 0:
            step = (timestamp - track.last_in + _HALF) % _WRAP - _HALF
            if _BACKWARD_LIMIT_MS <= step <= _FORWARD_LIMIT_MS:
                track.last_in = timestamp
                raw = track.raw = track.raw + step
                if raw > track.shown:
                    track.shown = raw
                    if raw > self.newest:
                        self.newest = raw
                    return raw & 0xFFFFFFFF
                return track.shown & 0xFFFFFFFF
            self.jumps += 1
        return self._enter(track, timestamp)

    def _enter(self, track: Track, timestamp: int) -> int:
        """Place the first timestamp of a track, or the first after a jump."""
        if self.newest < 0:
            raw = timestamp
        elif self._anchor:
            self._anchor = False
            raw = self.newest
            self.offset = raw - timestamp
        else:
            raw = self._near(timestamp)
            if abs(raw - self.newest) > _NEAR_MS:
                raw = self.newest
                self.offset = raw - timestamp
        track.last_in = timestamp
        track.raw = raw
        track.shown = max(raw, track.shown)
        self.newest = max(self.newest, track.shown)
        return track.shown & 0xFFFFFFFF

    def _near(self, timestamp: int) -> int:
        """Unwrap a timestamp with the stream's offset to the value that is nearest to the newest time."""
        return self.newest + (timestamp + self.offset - self.newest + _HALF) % _WRAP - _HALF

    def beside(self, timestamp: int) -> int:
        """Map the timestamp of what is no frame: headers, metadata, cue points.

        Encoders stamp those with 0 or with the time of the moment, so that they must never move the timeline: what is not
        near the newest time is given that.
        """
        if self.newest < 0:
            return timestamp
        raw = self._near(timestamp)
        if self._anchor or abs(raw - self.newest) > _NEAR_MS:
            raw = self.newest
        return raw & 0xFFFFFFFF
