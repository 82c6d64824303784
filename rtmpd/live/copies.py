"""Identical copies of one stream: how they are recognised, and how they are merged into one sequence of frames. Pure.

An encoder that publishes twice over two networks sends the same coded frames; only the timestamps differ, by a constant. Each
frame is taken from the copy that brings it first, so that the loss of one network costs no frame. This is seamless protection
switching (SMPTE ST 2022-7) for RTMP. Frames are compared by Python's hash, which is keyed: a client can't choose collisions.

The constant may differ between audio and video by less than an audio frame, and timestamps may be 1 ms off, since OBS subtracts
the first timestamp of each track of an output before it rounds to milliseconds.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from rtmpd.live.framing import VIDEO
from rtmpd.util.speed import accelerated, completes

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

_WRAP, _HALF, _MASK = 1 << 32, 1 << 31, (1 << 32) - 1

WINDOW_MS = 8000
"""How much media is remembered, for copies that are up to 5 s behind."""
_MAX_FRAMES = 4096  # remembered, of one track or source

# Recognition.
_AGREEING = 24  # frames that must have one offset
_STRONG = 2  # of them, keyframes or large frames
_STRONG_BYTES = 1024
_VIDEO_BYTES, _AUDIO_BYTES = 256, 64  # smaller frames are no evidence: any encoder makes the same of a still picture or silence
_AUDIO_AGREEING = 3  # audio frames that tell the offset of audio
_OFFSET_SPREAD_MS = 2
_TRACKS_APART_MS = 200  # of one encoder, the offsets of audio and video differ by a frame at most

# Merging.
_JUMP_MS = 10_000  # a longer step is another clock
_BACK_MS = 1000  # a shorter step back is the encoder's, and stays in its place
_MEASURED, _MEASURED_EVERY = 16, 8  # steps whose median is the usual one; before the first measurement, no step is a gap
_MAX_TOLERANCE_MS, _FIRST_TOLERANCE_MS = 20, 5
_GAP_FACTOR = 1.5
_LEGITIMATE_FACTOR, _LEGITIMATE_FRAMES, _LEGITIMATE_AFTER = 4, 600, 4
_HOLD_BEYOND_LAG_MS, _MAX_HOLD_MS = 500, 6000
MAX_WAIT_MS = _MAX_HOLD_MS - _HOLD_BEYOND_LAG_MS
"""A copy that is further behind is not waited for."""
_LONGEST_TICK_S = 0.25
MAX_HELD_BYTES = 32 << 20
_BROKEN_AFTER = 5  # mismatches of one track without a match between them

_NEVER = -(1 << 62)
_APART = -2  # the position of a copy whose place in the sequence is unknown
_CONFLICT, _HOLE = -1, -2
_DUPLICATE, _OTHER = -1, -2


class CopyOffsets(NamedTuple):
    """The timestamps of one copy minus those of another, in milliseconds."""

    video_ms: int = 0
    audio_ms: int = 0


SAME_CLOCK: Final = CopyOffsets()


# Recognition --------------------------------------------------------------------------------------------------------------


class _Ring:
    """The newest frames of one source.

    Attributes:
        audio: The number of audio frames that came; `match` needs it only while it is small.
        seen: By hash: four times the timestamp, plus 2 for a keyframe or large frame, plus 1 for video; -1 for payloads that
            came more than once.
    """

    __slots__ = ("_frames", "_repeats", "audio", "has_video", "seen")

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.has_video = False
        self.audio = 0
        self._frames: deque[tuple[int, int]] = deque()
        self._repeats: dict[int, int] = {}

    def add(self, signature: int, timestamp_ms: int, flags: int) -> None:
        frames, seen = self._frames, self.seen
        if signature in seen:
            seen[signature] = -1
            self._repeats[signature] = self._repeats.get(signature, 1) + 1
        else:
            seen[signature] = timestamp_ms << 2 | flags
        frames.append((signature, timestamp_ms))
        while len(frames) > _MAX_FRAMES or not -WINDOW_MS <= _difference(timestamp_ms, frames[0][1]) <= WINDOW_MS:
            self._drop(frames.popleft()[0])

    def _drop(self, signature: int) -> None:
        left = self._repeats.get(signature, 1) - 1
        if left:
            self._repeats[signature] = left
        else:
            self._repeats.pop(signature, None)
            del self.seen[signature]


class CopyMatcher:
    """Recognises that two sources of a stream send identical frames.

    It remembers `WINDOW_MS` of frames of each source: 1 µs for a frame besides its hash.
    """

    def __init__(self) -> None:
        self._rings: dict[Hashable, _Ring] = {}

    def note(self, source: Hashable, type_id: int, timestamp_ms: int, payload: bytes) -> None:
        """Take note of a frame; sequence headers and metadata are none.

        Args:
            source: The key of the source that has sent it.
            type_id: Audio or video.
            timestamp_ms: As the source has sent it, modulo 2**32.
            payload: The payload of the message.
        """
        ring = self._rings.get(source)
        if ring is None:
            ring = self._rings[source] = _Ring()
        size = len(payload)
        if type_id == VIDEO:
            ring.has_video = True
            if size >= _VIDEO_BYTES:
                strong = size >= _STRONG_BYTES or payload[0] & 0x70 == 0x10
                ring.add(hash(payload), timestamp_ms, 3 if strong else 1)
        elif size >= _AUDIO_BYTES:
            ring.audio += 1
            ring.add(hash(payload), timestamp_ms, 0)

    def forget(self, source: Hashable) -> None:
        """Forget all frames of a source."""
        self._rings.pop(source, None)

    def match(self, first: Hashable, second: Hashable) -> CopyOffsets | None:
        """Return the timestamps of the second source minus those of the first; None unless they send identical frames.

        24 frames must agree, two of them keyframes or large video frames. Tiny payloads, and those that a source has sent
        more than once, are no evidence. If both have audio, some of it must agree, too; of sources without video, 24 frames.
        Audio and video must have the same offset within 200 ms. A call takes half a millisecond.
        """
        one, two = self._rings.get(first), self._rings.get(second)
        if one is None or two is None or one.has_video is not two.has_video:
            return None
        common = one.seen.keys() & two.seen.keys()
        if len(common) < _AGREEING:
            return None
        video, audio, strong = Counter[int](), Counter[int](), Counter[int]()
        for signature in common:
            old, new = one.seen[signature], two.seen[signature]
            if old < 0 or new < 0 or (old ^ new) & 1:
                continue
            offset = _difference(new >> 2, old >> 2)
            if not new & 1:
                audio[offset] += 1
                continue
            video[offset] += 1
            if new & 2:
                strong[offset] += 1
        audio_ms, of_audio = _agreement(audio)
        if not one.has_video:
            return CopyOffsets(audio_ms, audio_ms) if of_audio >= _AGREEING else None
        video_ms, of_video = _agreement(video)
        if of_video + of_audio < _AGREEING or _votes(strong, video_ms) < _STRONG:
            return None
        if of_audio < _AUDIO_AGREEING and min(one.audio, two.audio) >= _AGREEING:
            # The same picture with other sound, such as a test pattern of two encoders.
            return None
        if of_audio < _AUDIO_AGREEING:
            return CopyOffsets(video_ms, video_ms)
        # Two encoders may make the same of one tone, at any offset.
        return CopyOffsets(video_ms, audio_ms) if abs(_difference(audio_ms, video_ms)) <= _TRACKS_APART_MS else None


def _difference(later: int, earlier: int) -> int:
    """Return the difference of two timestamps, -2**31..2**31-1."""
    return (later - earlier + _HALF) % _WRAP - _HALF


def _votes(offsets: Counter[int], offset: int) -> int:
    return sum(offsets[near] for near in range(offset - _OFFSET_SPREAD_MS, offset + _OFFSET_SPREAD_MS + 1))


def _agreement(offsets: Counter[int]) -> tuple[int, int]:
    """Return the most frequent offset, and the number of frames that agree with it; 0 and 0 if too many do not."""
    if not offsets:
        return 0, 0
    offset = offsets.most_common(1)[0][0]
    agreeing = _votes(offsets, offset)
    return (offset, agreeing) if agreeing * 5 >= offsets.total() * 4 else (0, 0)


# Merging ------------------------------------------------------------------------------------------------------------------


Frame = tuple[int, int, bytes]
"""A frame of the merged sequence: type, timestamp on the common clock modulo 2**32, payload. Timestamps never decrease within a
type."""


class MergeCounters(NamedTuple):
    """Totals of frames.

    Attributes:
        duplicates: They had been emitted already.
        filled: Only one copy has brought them; counted when they leave the window.
        mismatches: The sequence has another payload at their place.
        held: They had to wait for another copy.
        late: The sequence had passed their place without them.
    """

    duplicates: int = 0
    filled: int = 0
    mismatches: int = 0
    held: int = 0
    late: int = 0

    def plus(self, other: MergeCounters) -> MergeCounters:
        """Return the sums."""
        return MergeCounters(*map(sum, zip(self, other, strict=True)))


_SIGNATURE, _TIME, _ALONE = 0, 1, 2


@accelerated
class MergedTrackState:
    """The merged sequence of one type: the newest frames, numbered from 0.

    Attributes:
        first, end: The numbers of the frames that are remembered are first..end-1.
        newest_ms: The time of the newest frame.
        usual_ms: The usual step; 0 before it was measured.
        gap_ms: A longer step may be a gap.
        tolerance_ms: Frames so near to each other may be at the same place: about half the usual step.
        duplicates: Frames that had been emitted already.
        filled: Frames that have left the window and that only one copy has brought.
    """

    __slots__ = ("_frames", "duplicates", "end", "filled", "first", "gap_ms", "newest_ms", "tolerance_ms", "usual_ms")

    def __init__(self) -> None:
        self._frames: dict[int, list[int]] = {}  # by number: hash, time, and 1 until a second copy has brought the frame
        self.first = self.end = 0
        self.newest_ms = _NEVER
        self.usual_ms = 0
        self.gap_ms: float = _JUMP_MS
        self.tolerance_ms: float = _FIRST_TOLERANCE_MS
        self.duplicates = self.filled = 0

    def append(self, signature: int, time_ms: int) -> int:
        """Append a frame; return its time, which is not before that of the frame before it."""
        if time_ms < self.newest_ms:
            time_ms = self.newest_ms
        else:
            self.newest_ms = time_ms
        frames, number = self._frames, self.end
        frames[number] = [signature, time_ms, 1]
        self.end = number + 1
        if not number % _MEASURED_EVERY and number:
            self._measure()
        first, oldest = self.first, time_ms - WINDOW_MS
        while frames[first][_TIME] < oldest or number - first >= _MAX_FRAMES:
            self.filled += frames.pop(first)[_ALONE]
            first += 1
        self.first = first
        return time_ms

    def _measure(self) -> None:
        """Measure the usual step: the median of the newest ones."""
        times = [self._frames[number][_TIME] for number in range(max(self.first, self.end - _MEASURED - 1), self.end)]
        # Frames of several tracks may have one timestamp.
        steps = sorted(after - before for before, after in pairwise(times) if after > before)
        if steps:
            self.usual_ms = steps[len(steps) // 2]
            self.gap_ms = self.usual_ms * _GAP_FACTOR + 1
            self.tolerance_ms = min(max(2.0, self.usual_ms / 2), _MAX_TOLERANCE_MS)

    def matched(self, number: int) -> None:
        """Take note that another copy has brought a frame, too. Raises KeyError if it is not remembered, as the next two."""
        self._frames[number][_ALONE] = 0
        self.duplicates += 1

    def signature_of(self, number: int) -> int:
        """Return the hash of a frame."""
        return self._frames[number][_SIGNATURE]

    def time_of(self, number: int) -> int:
        """Return the time of a frame."""
        return self._frames[number][_TIME]


class _Track(MergedTrackState):
    """The merged sequence of one type, and what its long steps mean."""

    __slots__ = ("_legitimate_ms", "_legitimate_seen", "_legitimate_until")

    def __init__(self) -> None:
        super().__init__()
        self._legitimate_ms = self._legitimate_seen = 0
        self._legitimate_until = 0

    def allow(self, step_ms: int) -> None:
        """Take note that a long step is in all copies. After the fourth, such steps are the encoder's habit for some time."""
        if self.end >= self._legitimate_until:
            self._legitimate_ms, self._legitimate_seen = 0, 0
        if step_ms <= self.usual_ms * _LEGITIMATE_FACTOR:
            self._legitimate_ms = max(step_ms, self._legitimate_ms)
            self._legitimate_seen += 1
            self._legitimate_until = self.end + _LEGITIMATE_FRAMES

    def continues(self, step_ms: int) -> bool:
        """Return whether no frame is missing in a step."""
        if step_ms > self.gap_ms:
            return (
                step_ms <= self._legitimate_ms + self.tolerance_ms
                and self._legitimate_seen >= _LEGITIMATE_AFTER
                and self.end < self._legitimate_until
            )
        return step_ms >= -_BACK_MS

    def is_beyond(self, time_ms: int) -> bool:
        """Return whether the sequence has not reached a time yet."""
        return time_ms > self.newest_ms + self.tolerance_ms

    def find(self, time_ms: int, signature: int) -> int:
        """Return the number of a frame, by its time and hash; `_CONFLICT` if there are only others, `_HOLE` if none."""
        end = self.end
        low, high = self.first, end
        earliest, latest = time_ms - self.tolerance_ms, time_ms + self.tolerance_ms
        while low < high:
            middle = (low + high) >> 1
            if self.time_of(middle) < earliest:
                low = middle + 1
            else:
                high = middle
        found = _HOLE
        while low < end and self.time_of(low) <= latest:
            if self.signature_of(low) == signature:
                return low
            found = _CONFLICT
            low += 1
        return found


@accelerated
class CopyLaneState:
    """What an ordinary frame changes of one type of one copy.

    Args:
        track: The merged sequence.
        offset_ms: See below.

    Attributes:
        track: Likewise.
        offset_ms: The timestamps of the copy minus those of the common clock, which are not modulo 2**32 here.
        last_ms: The time of the last frame that came.
        position: The number of its last frame in the merged sequence; `_APART` if that is not there.
        mismatches: Since its last match.
    """

    __slots__ = ("last_ms", "mismatches", "offset_ms", "position", "track")

    track: _Track

    def __init__(self, track: _Track, offset_ms: int) -> None:
        self.track = track
        self.offset_ms = offset_ms
        self.last_ms = _NEVER
        self.position = _APART
        self.mismatches = 0

    def take(self, time_ms: int, signature: int) -> int:
        """Take a frame if it is simply the next one of its copy, while no copy is held.

        Returns:
            The timestamp with which it is to be emitted, modulo 2**32; `_DUPLICATE` if it was emitted already; `_OTHER` if it
            is not simply the next one: nothing has changed then.
        """
        track, number = self.track, self.position + 1
        if number == track.end:
            if -_BACK_MS <= time_ms - self.last_ms <= track.gap_ms:
                timestamp_ms = track.append(signature, time_ms) & _MASK
                self.last_ms = time_ms
                self.position = number
                return timestamp_ms
            return _OTHER
        frame = track._frames.get(number)
        if frame is not None and frame[0] == signature:
            tolerance_ms = track.tolerance_ms
            if -tolerance_ms <= time_ms - frame[1] <= tolerance_ms:
                self.last_ms = time_ms
                self.position = number
                self.mismatches = frame[2] = 0
                track.duplicates += 1
                return _DUPLICATE
        return _OTHER


class _Lane(CopyLaneState):
    """One type of one copy.

    Attributes:
        done_ms: While the copy is held: the time of the last frame that was not held.
        waived_ms: `last_ms` when it was last waited for in vain.
    """

    __slots__ = ("done_ms", "waived_ms")

    def __init__(self, track: _Track, offset_ms: int) -> None:
        super().__init__(track, offset_ms)
        self.done_ms = self.waived_ms = _NEVER


_Item = tuple[int, int, int, bytes]  # type, time, hash, payload


class _Copy:
    """What is known of one copy.

    Attributes:
        queue: What is held; the copy is *held* if there is anything.
        waited_ms, limit_ms: How long it has been held, and may be.
    """

    __slots__ = ("audio", "broken", "limit_ms", "queue", "video", "waited_ms")

    def __init__(self, video: _Lane, audio: _Lane) -> None:
        self.video, self.audio = video, audio
        self.queue: deque[_Item] = deque()
        self.broken = False
        self.waited_ms = self.limit_ms = 0.0

    def lane(self, type_id: int) -> _Lane:
        return self.video if type_id == VIDEO else self.audio

    @property
    def head_ms(self) -> int:
        """The time of the first held message."""
        return self.queue[0][1]


class FrameOutput(Protocol):
    """Where frames of the merged sequence go."""

    @property
    def append(self) -> Callable[[int, int, bytes, int], None]:
        """Appends a frame that begins no group of pictures: type, timestamp, payload, kind."""


@accelerated
class CopyInputState:
    """What an ordinary frame of a copy needs.

    Attributes:
        video, audio: The lanes of the copy.
        held: The copies that are held; a list that stays the same.
        output: See `CopyInput`.
    """

    __slots__ = ("audio", "held", "output", "video")

    video: _Lane
    audio: _Lane
    held: list[_Copy]
    output: FrameOutput


class CopyInput(CopyInputState):
    """Takes the frames of one copy that begin no group of pictures: nearly all. See `CopyMerger.input`."""

    __slots__ = ("_copy", "_emit", "_merger")

    def __init__(
        self, merger: CopyMerger, copy: _Copy, held: list[_Copy], output: FrameOutput, emit: Callable[[list[Frame]], None]
    ) -> None:
        self.video, self.audio = copy.video, copy.audio
        self.held = held
        self.output = output
        self._copy = copy
        self._merger = merger
        self._emit = emit

    @completes(CopyInputState)
    def append(self, type_id: int, timestamp_ms: int, payload: bytes, kind: int) -> None:
        """Take a frame of the copy.

        Args:
            type_id: Audio or video.
            timestamp_ms: As the copy has sent it, modulo 2**32.
            payload: The payload of the message.
            kind: Handed to the output with it.
        """
        lane = self.video if type_id == VIDEO else self.audio
        time_ms, signature = timestamp_ms - lane.offset_ms, hash(payload)
        if not self.held:
            found = lane.take(time_ms, signature)
            if found >= 0:
                self.output.append(type_id, found, payload, kind)
                return
            if found == _DUPLICATE:
                return
        frames = self._merger.take_slowly(self._copy, lane, (type_id, time_ms, signature, payload))
        if frames:
            self._emit(frames)


class CopyMerger:
    """Merges identical copies into one sequence, in which every frame is emitted once.

    - A frame that was emitted already is dropped.
    - A frame is emitted at once if the one before it, in the same copy, was emitted or matched.
    - Other frames are new places: of a copy that has joined, that has left frames out (its timestamps make a longer step than
      usual), or whose last frame was not that of the other copies. They are emitted at once if no other copy is behind, since
      no other copy can bring what is missing. Otherwise the copy is *held*: all its messages wait until the other copies
      have reached the place, have been removed, or let the time pass that `expire` allows.
    - A copy is *broken* once its frames are others, or its clock has jumped. All its frames are dropped from then on. If all
      copies are broken, nothing is emitted: the caller must go back to a single source.

    A message that is no frame may be taken as one if all copies send it: a sequence header inside the stream, with the newest
    timestamp of its type. Frames with one timestamp, of several tracks, must come in the same order in all copies.

    Args:
        max_held_bytes: A bound for the payloads of all held messages.
        max_wait_ms: A copy that is further behind is not waited for, at most `MAX_WAIT_MS`. What only it brings is lost then.
    """

    def __init__(self, max_held_bytes: int = MAX_HELD_BYTES, max_wait_ms: int = MAX_WAIT_MS) -> None:
        self._max_held_bytes = max_held_bytes
        self._max_wait_ms = max_wait_ms
        self._video, self._audio = _Track(), _Track()
        self._copies: dict[Hashable, _Copy] = {}
        self._held: list[_Copy] = []  # removed copies stay until their queues are empty
        self._held_bytes = 0
        self._expired_at_s = 0.0
        self._mismatches = self._held_frames = self._late = 0

    # Copies --------------------------------------------------------------------------------------------------------------

    def add(self, copy: Hashable, offsets: CopyOffsets = SAME_CLOCK, relative_to: Hashable = None) -> None:
        """Add a copy.

        Args:
            copy: Its key.
            offsets: Its timestamps minus those of the common clock. The first copy defines that clock, without offsets.
            relative_to: The key of a copy; the offsets are relative to its timestamps then, as in ``match(relative_to, copy)``.
        """
        video_ms, audio_ms = offsets
        if relative_to is not None:
            other = self._copies[relative_to]
            video_ms, audio_ms = video_ms + other.video.offset_ms, audio_ms + other.audio.offset_ms
        self._copies[copy] = _Copy(_Lane(self._video, video_ms), _Lane(self._audio, audio_ms))

    def remove(self, copy: Hashable) -> list[Frame]:
        """Remove a copy. What it has brought remains; other copies no longer wait for it. Return what is emitted now."""
        out: list[Frame] = []
        if self._copies.pop(copy, None) is not None and self._held:
            self._settle(out)
        return out

    def broken(self, copy: Hashable) -> bool:
        """Return whether the frames of a copy are no longer those of the others."""
        return self._copies[copy].broken

    def lag_ms(self, copy: Hashable) -> int:
        """Return how far a copy is behind what was emitted, in media time; 0 if it leads, or has sent nothing."""
        state = self._copies[copy]
        lags = [lane.track.newest_ms - lane.last_ms for lane in (state.video, state.audio) if lane.last_ms != _NEVER]
        return max(0, min(lags, default=0))

    def in_step(self, copy: Hashable) -> bool:
        """Return whether a copy has brought the newest frames that were emitted, and nothing of it is held."""
        state = self._copies[copy]
        return not state.queue and all(lane.track.end in (0, lane.position + 1) for lane in (state.video, state.audio))

    @property
    def counters(self) -> MergeCounters:
        """The totals."""
        duplicates, filled = self._video.duplicates + self._audio.duplicates, self._video.filled + self._audio.filled
        return MergeCounters(duplicates, filled, self._mismatches, self._held_frames, self._late)

    @property
    def _newest_ms(self) -> int:
        return max(self._video.newest_ms, self._audio.newest_ms)

    # Frames --------------------------------------------------------------------------------------------------------------

    def take(self, copy: Hashable, type_id: int, timestamp_ms: int, payload: bytes) -> list[Frame]:
        """Take a frame of a copy; return what is emitted now, in order.

        Args:
            copy: The key of the copy.
            type_id: Audio or video.
            timestamp_ms: As the copy has sent it, modulo 2**32.
            payload: The payload of the message.
        """
        state = self._copies[copy]
        lane = state.video if type_id == VIDEO else state.audio
        time_ms = timestamp_ms - lane.offset_ms
        signature = hash(payload)
        if not self._held:
            found = lane.take(time_ms, signature)
            if found >= 0:
                return [(type_id, found, payload)]
            if found == _DUPLICATE:
                return []
        return self.take_slowly(state, lane, (type_id, time_ms, signature, payload))

    def input(self, copy: Hashable, output: FrameOutput, emit: Callable[[list[Frame]], None]) -> CopyInput:
        """Return what takes the frames of a copy that begin no group of pictures, for less than `take`. Until it is removed.

        Args:
            copy: Its key.
            output: Where a frame goes if it is all that is emitted.
            emit: Called with what is emitted otherwise.
        """
        return CopyInput(self, self._copies[copy], self._held, output, emit)

    def take_slowly(self, state: _Copy, lane: _Lane, item: _Item) -> list[Frame]:
        """Take a frame that is not simply the next one of its copy, or any frame while a copy is held."""
        out: list[Frame] = []
        time_ms, last_ms = self._unwrap(lane, item[1]), lane.last_ms
        near_ms = last_ms
        if last_ms == _NEVER and len(self._copies) > 1:
            near_ms = self._newest_ms
        if near_ms != _NEVER and not -_JUMP_MS <= time_ms - near_ms <= _JUMP_MS:
            self._break(state)
            self._settle(out)
        if state.broken:
            return out
        item = (item[0], time_ms, *item[2:])
        lane.last_ms = time_ms
        if state.queue:
            self._hold(state, item, out)
            return out
        step_ms = time_ms - last_ms if last_ms != _NEVER else 0
        if lane.position + 1 != lane.track.end or not lane.track.continues(step_ms):
            # Copies that have waited for this one may have what comes before this frame.
            self._settle(out)
        if self._place(state, lane, item, step_ms, out):
            self._settle(out)
        else:
            state.video.done_ms, state.audio.done_ms = state.video.last_ms, state.audio.last_ms
            lane.done_ms = last_ms
            self._hold(state, item, out)
        return out

    def _unwrap(self, lane: _Lane, time_ms: int) -> int:
        """Return a time without the jumps of a clock of 32 bits; move the offset for the following ones."""
        near_ms = lane.last_ms if lane.last_ms != _NEVER else self._newest_ms
        if near_ms == _NEVER:
            return time_ms
        unwrapped = near_ms + _difference(time_ms, near_ms)
        lane.offset_ms += time_ms - unwrapped
        return unwrapped

    def _place(self, state: _Copy, lane: _Lane, item: _Item, step_ms: int, out: list[Frame]) -> bool:
        """Emit or drop a frame; return False if it must be held instead."""
        type_id, time_ms, signature, payload = item
        track = lane.track
        runs = lane.position + 1 == track.end
        if not (runs and track.continues(step_ms)):
            found = track.find(time_ms, signature)
            if found >= 0:
                track.matched(found)
                lane.mismatches = 0
                lane.position = max(found, lane.position)
                return True
            if not track.is_beyond(time_ms):
                self._refuse(state, lane, time_ms, found)
                return True
            if any(self._blockers(state, type_id, time_ms)):
                return False
            if runs and any(other.last_ms >= time_ms - track.tolerance_ms for other in self._others(state, type_id)):
                track.allow(step_ms)
        lane.position = track.end
        out.append((type_id, track.append(signature, time_ms) & _MASK, payload))
        return True

    def _refuse(self, state: _Copy, lane: _Lane, time_ms: int, found: int) -> None:
        """Drop a frame whose place is taken or passed. The following ones do not continue what was emitted."""
        lane.position = _APART
        track = lane.track
        if found == _CONFLICT:
            self._mismatches += 1
            lane.mismatches += 1
            if lane.mismatches >= _BROKEN_AFTER:
                self._break(state)
        elif time_ms >= track.time_of(track.first):
            self._late += 1

    # Held copies ---------------------------------------------------------------------------------------------------------

    def expire(self, now_s: float) -> list[Frame]:
        """Emit what has been held for too long; return it. To be called some 20 times a second while there are several copies.

        A copy is held for 500 ms more than the other one was behind, at most 6 s. Time between two calls counts as 250 ms at
        most: when the event loop was late, the frames of the other copy are still to be read.

        Args:
            now_s: The monotonic clock.
        """
        passed_ms = 1000 * max(0.0, min(now_s - self._expired_at_s, _LONGEST_TICK_S)) if self._held else 0.0
        self._expired_at_s = now_s
        out: list[Frame] = []
        for state in list(self._held):
            state.waited_ms += passed_ms
            if state.queue and state.waited_ms >= state.limit_ms:
                self._release(state, out)
        return out

    def _others(self, state: _Copy, type_id: int) -> Iterable[_Lane]:
        """Yield the lanes of the other copies that are not held."""
        for other in self._copies.values():
            if other is not state and not other.queue and not other.broken:
                yield other.lane(type_id)

    def _blockers(self, state: _Copy, type_id: int, time_ms: int) -> Iterable[_Lane]:
        """Yield the lanes that may still bring what comes before a frame."""
        for other in self._held:
            # The held copy that is furthest behind continues first; what it waits for is before this frame.
            if other is not state and other.head_ms < time_ms:
                yield other.lane(type_id)
        for lane in self._others(state, type_id):
            last_ms = lane.last_ms
            behind_ms = time_ms - last_ms
            if last_ms not in (_NEVER, lane.waived_ms) and lane.track.tolerance_ms < behind_ms <= self._max_wait_ms:
                yield lane

    def _hold(self, state: _Copy, item: _Item, out: list[Frame]) -> None:
        if not state.queue:
            self._held.append(state)
            self._limit(state, item)
        state.queue.append(item)
        self._held_frames += 1
        self._held_bytes += len(item[3])
        while self._held and (self._held_bytes > self._max_held_bytes or len(state.queue) > _MAX_FRAMES):
            self._release(state if state.queue else self._held[0], out)

    def _limit(self, state: _Copy, head: _Item) -> None:
        """Decide for how long a copy is held with this message, from now on."""
        type_id, time_ms = head[:2]
        lag_ms = max((time_ms - lane.last_ms for lane in self._blockers(state, type_id, time_ms)), default=0)
        # A held copy that is further behind continues first.
        held_ms = max(
            (other.limit_ms - other.waited_ms for other in self._held if other.queue and other.head_ms < time_ms), default=0.0
        )
        state.waited_ms, state.limit_ms = 0.0, min(max(lag_ms + _HOLD_BEYOND_LAG_MS, held_ms), _MAX_HOLD_MS)

    def _release(self, state: _Copy, out: list[Frame]) -> None:
        """Emit the first message of a held copy, and what follows it, without waiting for others."""
        head = state.queue[0]
        while state.queue and state.queue[0] is head:
            first = min(self._held, key=lambda held: held.head_ms)
            for lane in self._blockers(first, first.queue[0][0], first.head_ms):
                lane.waived_ms = lane.last_ms
            self._settle(out)

    def _settle(self, out: list[Frame]) -> None:
        """Emit what need not be held any longer: the earliest first."""
        while self._held:
            for state in sorted(self._held, key=lambda held: held.head_ms):
                type_id, time_ms = state.queue[0][:2]
                if not state.lane(type_id).track.is_beyond(time_ms) or not any(self._blockers(state, type_id, time_ms)):
                    self._drain(state, out)
                    break
            else:
                return

    def _drain(self, state: _Copy, out: list[Frame]) -> None:
        """Emit or drop messages of a held copy until one must be held again."""
        queue = state.queue
        while queue:
            item = queue[0]
            lane = state.lane(item[0])
            step_ms = item[1] - lane.done_ms if lane.done_ms != _NEVER else 0
            if not self._place(state, lane, item, step_ms, out):
                self._limit(state, item)
                return
            lane.done_ms = item[1]
            if queue:  # empty if the copy has been found to be broken
                queue.popleft()
                self._held_bytes -= len(item[3])
        if state in self._held:
            self._held.remove(state)

    def _break(self, state: _Copy) -> None:
        """Drop everything of a copy from now on."""
        state.broken = True
        state.video.position = state.audio.position = _APART
        if state.queue:
            self._held_bytes -= sum(len(item[3]) for item in state.queue)
            state.queue.clear()
            self._held.remove(state)
