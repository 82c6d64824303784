"""A splice: how the messages of a source that takes over continue those of the source before, on one timeline. Pure.

The source that takes over begins with a keyframe that is usually older than what readers have been sent: decoders need it, but
it must not be shown later than it was taken. So the video up to the place where the source before has ended is compressed: it
gets timestamps a millisecond or more apart, and players show the last of it. From there on timestamps are those of the source.
Audio needs no frame before it: what readers have heard is left out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Self

from rtmpd.live.framing import AUDIO, DATA, VIDEO
from rtmpd.media.composition import composition_ms, with_composition
from rtmpd.media.tags import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

_WORD = 0xFFFFFFFF
_HALF = 0x8000_0000
_COMPOSITION_LIMIT_MS = 10_000
"""A longer composition time is taken for damage: it would hold back what follows for as long."""
_SHORTEST_STEP_MS = 8
"""The time between two frames that follow, at least, if only one is known: that of 120 frames per second."""
_INTERLEAVE_MS = 2000
"""A frame may come this much later than frames of the other track with its timestamp, or be shown this much before its own."""
_FRAME, _KEYFRAME, _METADATA = int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.METADATA)


class Kept(NamedTuple):
    """A message that is kept of a source, at its time on that source's timeline."""

    type_id: int
    timestamp: int
    payload: bytes
    kind: int


class End(NamedTuple):
    """Where the messages of a source end.

    Attributes:
        shown: The latest time at which a picture is shown: its timestamp and composition time; None without video.
        audio: The timestamp of the last audio frame; None without audio.
        audio_step_ms: The time between the last two audio frames; 0 if it is not known.
        video: The timestamp of the last video frame; None without video.
    """

    shown: int | None = None
    audio: int | None = None
    audio_step_ms: int = 0
    video: int | None = None

    @classmethod
    def of(cls, messages: Iterable[tuple[int, int, bytes, int]]) -> Self:
        """Return the end of messages: type, timestamp, payload (its beginning is enough) and kind of each."""
        shown: int | None = None
        audio: int | None = None
        video: int | None = None
        step_ms = 0
        for type_id, timestamp, payload, kind in messages:
            if kind not in (_FRAME, _KEYFRAME):
                continue
            if type_id == VIDEO:
                composition = composition_ms(payload)
                time = timestamp + (composition if 0 <= composition <= _COMPOSITION_LIMIT_MS else 0)
                if shown is None or signed(time - shown) > 0:
                    shown = time & _WORD
                video = timestamp
            elif type_id == AUDIO:
                step_ms = signed(timestamp - audio) if audio is not None else 0
                audio = timestamp
        return cls(shown, audio, max(0, step_ms), video)

    def at_least(self, video: int | None, audio: int | None) -> End:
        """Return the end, if frames with these timestamps have been sent, too; None: there were none of the track."""
        shown, own_video, own_audio = _later(self.shown, video), _later(self.video, video), _later(self.audio, audio)
        return self._replace(shown=shown, video=own_video, audio=own_audio)

    def shown_after(self, other: End) -> End:
        """Return the end, if pictures were shown until another end, too."""
        return self._replace(shown=_later(self.shown, other.shown))

    @property
    def known(self) -> bool:
        """Whether any frame was sent."""
        return self.shown is not None or self.audio is not None


def _later(one: int | None, other: int | None) -> int | None:
    """Return the later timestamp; None: there is none."""
    if one is None or other is None:
        return one if other is None else other
    return other if signed(other - one) > 0 else one


def signed(difference: int) -> int:
    """Return a difference of timestamps, which are modulo 2**32, as a number from -2**31 on."""
    return (difference + _HALF & _WORD) - _HALF


class Splice:
    """Maps the messages of the source that takes over.

    Timestamps are on the stream's timeline, modulo 2**32: the source's timeline has been shifted to it.

    Args:
        end: Where the source before has ended.
        group: The messages that are kept of the source that takes over, from a keyframe on, or from an audio frame.

    Attributes:
        end: Likewise.
        compressed: The number of video frames that have been moved.
        skipped_audio: The number of audio frames that were left out.
    """

    __slots__ = ("_audio_from", "_first", "_length", "_start", "compressed", "end", "skipped_audio")

    def __init__(self, end: End, group: list[Kept]) -> None:
        self.end = end
        self.compressed = 0
        self.skipped_audio = 0
        video = [each for each in group if each.type_id == VIDEO and each.kind in (_FRAME, _KEYFRAME)]
        audio = None if end.audio is None else end.audio + max(1, end.audio_step_ms * 3 // 4)
        # Where video begins, after all that has been shown.
        self._start = (end.shown if end.shown is not None else audio if audio is not None else 0) + 1
        self._first = self._length = 0
        self._audio_from = audio if audio is not None or not end.known else self._start
        if not video:
            return
        if not end.known:
            self._start = video[0].timestamp
        first = signed(video[0].timestamp - self._start)
        if first < 0:
            self._first = first
            self._length = _compressed_ms(first, [signed(each.timestamp - self._start) for each in video])
            return
        self._start = video[0].timestamp
        if audio is None or signed(video[0].timestamp - audio) > 0:
            # A picture first: audio begins at it or behind it.
            self._audio_from = video[0].timestamp

    @property
    def begins(self) -> int:
        """The timestamp of the first video frame of the source that takes over."""
        return self._start & _WORD

    @property
    def audio_begins(self) -> int:
        """The timestamp before which none of its audio frames is."""
        return (self._audio_from if self._audio_from is not None else self._start) & _WORD

    def _map(self, time: int) -> int:
        """Return where a time, relative to the start, is shown: not below it, and in the same order."""
        if time >= self._length:
            return time
        if self._first >= 0:
            return 0
        return max(0, (time - self._first) * self._length // (self._length - self._first))

    def take(self, type_id: int, timestamp: int, payload: bytes, kind: int) -> tuple[int, bytes] | None:
        """Return a message's timestamp and payload for the stream; None: it is left out."""
        if type_id == DATA and kind == _METADATA:
            # Metadata have the time 0, see `Source.data`.
            return timestamp, payload
        if type_id == AUDIO:
            if self._audio_from is None or signed(timestamp - self._audio_from) >= 0:
                return timestamp, payload
            if kind in (_FRAME, _KEYFRAME):
                self.skipped_audio += 1
                return None
            return self.audio_begins, payload
        time = signed(timestamp - self._start)
        moved = self._map(time)
        if type_id == VIDEO and kind in (_FRAME, _KEYFRAME):
            self.compressed += moved != time
            composition = composition_ms(payload)
            own = self._map(time + composition) - moved
            if own != composition:
                payload = with_composition(payload, own)
        return (self._start + moved) & _WORD, payload

    def done(self, timestamp: int) -> bool:
        """Return whether messages need no longer be mapped, once a frame with a timestamp has come."""
        behind = signed(timestamp - self._start) >= self._length + _INTERLEAVE_MS
        return behind and (self._audio_from is None or signed(timestamp - self._audio_from) >= _INTERLEAVE_MS)


def _compressed_ms(first: int, times: list[int]) -> int:
    """Return the length of what is compressed: at least a millisecond for each frame.

    Args:
        first: The time of the keyframe, relative to the start: negative.
        times: The times of the frames that are known, in their order.
    """
    before = sum(1 for time in times if time < 0)
    if not before:
        return 0
    # Often only the keyframe is known so far: its successors must not get the same timestamp either. Milliseconds are rounded:
    # a step that is yet to come may be shorter by one.
    steps = [other - one for one, other in pairwise(times) if other > one]
    usual_ms = (times[-1] - times[0]) / len(steps) if steps else 0.0
    step_ms = max(1.5, min(steps, default=_SHORTEST_STEP_MS + 1) - 1, usual_ms / 2)
    # With this length the frames that are compressed, those before the start and those within it, are a millisecond apart.
    return min(-first, int(-first / (step_ms - 1)) + 1)
