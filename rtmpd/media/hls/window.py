"""The segments and parts of a live stream that clients can have: a sliding window, and what a client may wait for.

Media sequence numbers are given from outside, and URIs follow from them, so that every server that cuts the same stream serves
the same resources. Of what leaves the playlist, media stays available as long as the draft requires (section 6.2.2), unless
the limit of memory is reached first.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rtmpd.media.hls.targets import Targets

_EPOCH_S: Final = 1_577_836_800  # 2020-01-01
_LONGEST_QUERY = 1024
_MOST_PAIRS = 32
_LONGEST_NUMBER = 19


def first_sequence_number(published_at_s: float) -> int:
    """Return the media sequence number of the first segment of a publish: its seconds since 2020.

    Later publishes of the same name have higher numbers, as long as segments last a second on average. Numbers fit into 31
    bits until 2088.
    """
    return max(0, int(published_at_s) - _EPOCH_S)


@dataclass(frozen=True, slots=True)
class Part:
    """A part.

    Attributes:
        duration_ms: Its duration.
        is_independent: Whether it has a keyframe.
        data: Its fragment; empty: `stored_bytes` are elsewhere.
        stored_bytes: The size of a fragment that is not in memory.
        has_media: Whether its fragment has samples.
    """

    duration_ms: int
    is_independent: bool
    data: bytes
    stored_bytes: int = 0
    has_media: bool = True


class Location(Protocol):
    """Where the media of a segment is stored."""

    def read(self, offset: int, size: int) -> bytes | None:
        """Return a piece; None: it can't be read. May wait for a disk."""


@dataclass(slots=True)
class Segment:
    """A segment, complete or not.

    Attributes:
        sequence_number: Its media sequence number.
        init_id: The initialization segment that it needs.
        date_ms: The wall clock at its first frame, milliseconds since 1970; None: unknown.
        is_discontinuity: Whether it does not continue the segment before.
        parts: Its parts.
        duration_ms, size_bytes: Of its parts.
        location: Where its media is stored; None: in memory. See `Window.store`.
    """

    sequence_number: int
    init_id: str
    date_ms: int | None = None
    is_discontinuity: bool = False
    parts: list[Part] = field(default_factory=list)
    duration_ms: int = 0
    size_bytes: int = 0
    location: Location | None = None

    @property
    def is_independent(self) -> bool:
        """Whether its first part has a keyframe."""
        return bool(self.parts) and self.parts[0].is_independent

    @property
    def is_gap(self) -> bool:
        """Whether it has no media."""
        return not any(part.has_media for part in self.parts)

    @property
    def data(self) -> list[bytes]:
        """The fragments, one behind the other; empty ones if they are not in memory."""
        return [part.data for part in self.parts]


class Limits(NamedTuple):
    """The size of a window.

    Attributes:
        segments: How many complete segments a playlist has at most; at least 3 target durations are listed.
        seconds: How long a playlist is at most; likewise.
        bytes: The most memory for media. It counts before everything else: segments are removed early then, but the newest
            complete one is kept.
    """

    segments: int = 1000
    seconds: float = 60.0
    bytes: int = 64 << 20


class Directives(NamedTuple):
    """The delivery directives of a request for a playlist (section 6.2.5).

    Attributes:
        sequence_number: ``_HLS_msn``; None: there is none.
        part: ``_HLS_part``; None: there is none.
        skip: Whether ``_HLS_skip`` asks for a delta update.
    """

    sequence_number: int | None = None
    part: int | None = None
    skip: bool = False


def parse_directives(query: str) -> Directives | None:
    """Return the directives in the query of a URL, without its question mark; None: the request is bad (400).

    Other parameters are ignored. The numbers are decimal, of at most 19 digits. A directive must not come twice, and a part
    needs a sequence number.
    """
    if len(query) > _LONGEST_QUERY:
        return None
    found: dict[str, str] = {}
    for pair in query.split("&", _MOST_PAIRS)[:_MOST_PAIRS]:
        name, _, value = pair.partition("=")
        if name in ("_HLS_msn", "_HLS_part", "_HLS_skip"):
            if name in found:
                return None
            found[name] = value
    skip = found.pop("_HLS_skip", "") in ("YES", "v2")
    if not all(len(value) <= _LONGEST_NUMBER and value.isascii() and value.isdigit() for value in found.values()):
        return None
    numbers = {name: int(value) for name, value in found.items()}
    if "_HLS_part" in numbers and "_HLS_msn" not in numbers:
        return None
    return Directives(numbers.get("_HLS_msn"), numbers.get("_HLS_part"), skip)


class Answer(enum.Enum):
    """What to do with a request."""

    READY = "ready"
    WAIT = "wait"
    """Wait until the window changes, then ask again; after `Window.hold_limit_s` answer 503."""
    BAD = "bad"
    """Answer 400."""
    MISSING = "missing"
    """Answer 404."""


class Window:
    """The window of one rendition.

    Args:
        targets: The durations of the session.
        limits: Its size.
        first_number: The media sequence number of the first segment.
        first_discontinuity: The discontinuity sequence number at the beginning.

    Attributes:
        targets: Likewise.
        open: The segment that is not complete; None: there is none.
        ended: Whether the stream has ended.
        discontinuity_sequence: EXT-X-DISCONTINUITY-SEQUENCE.
        size_bytes: The media in memory.
        limits: Its size; may be replaced.
        on_removed: Called with each segment that is no longer available.
    """

    __slots__ = (
        "_listed",
        "_listed_ms",
        "_longest_ms",
        "_next_number",
        "_old",
        "_old_ms",
        "discontinuity_sequence",
        "ended",
        "limits",
        "on_removed",
        "open",
        "size_bytes",
        "targets",
    )

    def __init__(self, targets: Targets, limits: Limits, *, first_number: int = 0, first_discontinuity: int = 0) -> None:
        self.targets = targets
        self.limits = limits
        self.on_removed: Callable[[Segment], None] | None = None
        self._listed: deque[Segment] = deque()
        self._listed_ms = 0
        self._longest_ms = 0
        self._old: deque[Segment] = deque()
        self._old_ms = 0
        self._next_number = first_number
        self.open: Segment | None = None
        self.ended = False
        self.discontinuity_sequence = first_discontinuity
        self.size_bytes = 0

    # Filling --------------------------------------------------------------------------------------------------------------

    def open_segment(self, init_id: str, *, date_ms: int | None = None, is_discontinuity: bool = False) -> None:
        """Begin a segment. The one before must be complete."""
        if self.open is not None or self.ended:
            raise ValueError("the segment before is not complete, or the stream has ended")
        self.open = Segment(self._next_number, init_id, date_ms, is_discontinuity)
        self._next_number += 1

    def add_part(self, part: Part) -> None:
        """Add a part to the open segment."""
        segment = self.open
        if segment is None:
            raise ValueError("no segment is open")
        segment.parts.append(part)
        segment.duration_ms += part.duration_ms
        segment.size_bytes += len(part.data)
        self.size_bytes += len(part.data)
        self._shrink()

    def close_segment(self) -> None:
        """Complete the open segment; one without parts is given up, and its number used again."""
        segment, self.open = self.open, None
        if segment is None:
            return
        if not segment.parts:
            self._next_number -= 1
            return
        self._listed.append(segment)
        self._listed_ms += segment.duration_ms
        self._shrink()
        self._longest_ms = max(self._longest_ms, self._listed_ms)

    def end(self) -> None:
        """Complete the open segment and end the stream: the playlist does not change after that."""
        self.close_segment()
        self.ended = True

    def _shrink(self) -> None:
        limits, listed = self.limits, self._listed
        least_ms = 3 * self.targets.target_s * 1000
        while listed:
            rest_ms = self._listed_ms - listed[0].duration_ms
            if rest_ms < least_ms or (len(listed) <= limits.segments and self._listed_ms <= limits.seconds * 1000):
                break
            self._unlist()
        # A segment must be available for its own duration and that of the longest playlist that had it.
        while self._old and self._old_ms - self._old[0].duration_ms >= self._longest_ms + self._old[0].duration_ms:
            self._forget()
        while self.size_bytes > limits.bytes and self.drop_oldest():
            pass

    def drop_oldest(self) -> bool:
        """Remove the oldest segment early, to free memory; return whether there was one. The newest complete one is kept."""
        if not self._old:
            if len(self._listed) <= 1:
                return False
            self._unlist()
        self._forget()
        return True

    def store(self, segment: Segment, location: Location) -> bool:
        """Free the memory of a complete segment, whose media is stored now; return False if it has been removed meanwhile."""
        if self._find(segment.sequence_number) is not segment:
            return False
        self.size_bytes -= segment.size_bytes
        segment.location = location
        segment.parts = [replace(part, data=b"", stored_bytes=len(part.data)) for part in segment.parts]
        return True

    def clear(self) -> None:
        """Remove all segments."""
        while self._listed:
            self._unlist()
        while self._old:
            self._forget()

    def _unlist(self) -> None:
        segment = self._listed.popleft()
        self._listed_ms -= segment.duration_ms
        self.discontinuity_sequence += segment.is_discontinuity
        self._old.append(segment)
        self._old_ms += segment.duration_ms

    def _forget(self) -> None:
        segment = self._old.popleft()
        self._old_ms -= segment.duration_ms
        if segment.location is None:
            self.size_bytes -= segment.size_bytes
        if self.on_removed is not None:
            self.on_removed(segment)

    # Reading --------------------------------------------------------------------------------------------------------------

    @property
    def listed(self) -> Sequence[Segment]:
        """The complete segments of the playlist."""
        return self._listed

    @property
    def first_number(self) -> int:
        """The number of the first segment of the playlist, or of the next one if there is none: EXT-X-MEDIA-SEQUENCE."""
        if self._listed:
            return self._listed[0].sequence_number
        return self._next_number if self.open is None else self.open.sequence_number

    @property
    def last_number(self) -> int:
        """The number of the last complete segment of the playlist, or the one before the first number."""
        return self._listed[-1].sequence_number if self._listed else self.first_number - 1

    @property
    def last_part(self) -> tuple[int, int] | None:
        """The sequence number and index of the last part; None: there is none."""
        for segment in (self.open, self._listed[-1] if self._listed else None):
            if segment is not None and segment.parts:
                return segment.sequence_number, len(segment.parts) - 1
        return None

    @property
    def next_part(self) -> tuple[int, int]:
        """The sequence number and index of the next part, if the open segment does not end before."""
        if self.open is None:
            return self._next_number, 0
        return self.open.sequence_number, len(self.open.parts)

    @property
    def bit_rates(self) -> tuple[int, int]:
        """The highest bit rate of a segment, and the average one, bits per second; zeros: there is no segment yet.

        Segments of less than half of the target duration do not count for the highest.
        """
        segments = [segment for segment in self._listed if segment.duration_ms >= self.targets.target_s * 500] or self._listed
        if not segments:
            return 0, 0
        total = sum(segment.size_bytes for segment in self._listed)
        average = total * 8000 // self._listed_ms
        return max(average, *(segment.size_bytes * 8000 // segment.duration_ms for segment in segments)), average

    @property
    def hold_limit_s(self) -> int:
        """How long a request may wait: 3 target durations."""
        return 3 * self.targets.target_s

    @property
    def init_ids(self) -> set[str]:
        """The initialization segments that media in memory needs."""
        ids = {segment.init_id for part in (self._old, self._listed) for segment in part}
        return ids | {self.open.init_id} if self.open is not None else ids

    def find_segment(self, number: int) -> tuple[Answer, Segment | None]:
        """Return a complete segment, or that it is missing: playlists do not name the one that is open (section 6.2.6)."""
        segment = self._find(number)
        if segment is not None and segment is not self.open:
            return Answer.READY, segment
        return Answer.MISSING, None

    def find_part(self, number: int, index: int) -> tuple[Answer, Part | None]:
        """Return a part, or why there is none. The next part, which playlists hint at, is worth a wait."""
        segment = self._find(number)
        if segment is not None and 0 <= index < len(segment.parts):
            part = segment.parts[index]
            return Answer.READY, part
        waits = not self.ended and (number, index) == self.next_part
        return (Answer.WAIT if waits else Answer.MISSING), None

    def _find(self, number: int) -> Segment | None:
        if self.open is not None and number == self.open.sequence_number:
            return self.open
        for segments in (self._listed, self._old):
            if segments and segments[0].sequence_number <= number <= segments[-1].sequence_number:
                at = bisect_left(segments, number, key=lambda segment: segment.sequence_number)
                return segments[at] if segments[at].sequence_number == number else None
        return None

    def answer(self, directives: Directives) -> Answer:
        """Decide about a request for the playlist (section 6.2.5.2).

        `Answer.WAIT` holds until the playlist has what was asked for. A request without directives waits for the first complete
        segment: hls.js takes a playlist without one for empty. Directives are ignored when the stream has ended.
        """
        if self.ended:
            return Answer.READY
        number, part = directives.sequence_number, directives.part
        last = self.last_number
        if number is None:
            return Answer.READY if self._listed else Answer.WAIT
        if number > last + 2:
            return Answer.BAD
        if part is None or not self.targets.part_ms:
            return Answer.READY if number <= last else Answer.WAIT
        if number <= last:
            segment = self._find(number)
            if number < last or segment is None or part < len(segment.parts):
                return Answer.READY
            # A part behind the last one of a segment is the first one of the next.
            number, part = last + 1, 0
        parts = len(self.open.parts) if self.open is not None and self.open.sequence_number == number else 0
        if part < parts:
            return Answer.READY
        return Answer.BAD if part >= parts + self.targets.advance_parts else Answer.WAIT
