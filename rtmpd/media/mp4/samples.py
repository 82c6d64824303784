"""The samples of a track: sample tables (ISO/IEC 14496-12, sections 8.6 and 8.7) and movie fragments (section 8.8).

What a table claims is checked before memory is taken for it: the number of samples is limited, and each lies in the file.
"""

from __future__ import annotations

from itertools import accumulate, chain, islice, repeat
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.errors import Mp4Error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.media.mp4.boxes import Content

MAX_SAMPLES = 250_000
"""The number of samples of a track: more than an hour of video with 60 frames per second."""

MAX_FRAGMENT_BOXES = 200_000
"""The number of boxes in all fragments of a file."""

_NOT_SYNC = 0x10000  # sample_is_non_sync_sample (section 8.8.3.1)
_MAX_DELTA = 1 << 31


class Sample(NamedTuple):
    """A sample. Times are ticks of its track's timescale.

    Attributes:
        position: The offset in the file.
        size: Its size, bytes.
        time: Its decoding time.
        offset: Its composition time minus its decoding time; may be negative.
        duration: The time to the next sample.
        sync: Whether decoding can start at it.
    """

    position: int
    size: int
    time: int
    offset: int
    duration: int
    sync: bool


# Sample tables ------------------------------------------------------------------------------------------------------------


def table_samples(table: Content, file_bytes: int) -> tuple[list[Sample], int]:
    """Read the samples of a sample table box (stbl).

    Args:
        table: The box.
        file_bytes: The size of the file.

    Returns:
        The samples in decoding order, and the number of their sample description, from 1 on.

    Raises:
        Mp4Error: The tables are damaged, contradict each other, or use several descriptions.
    """
    sizes = _sizes(table, file_bytes)
    count = len(sizes)
    if not count:
        return [], 1
    positions, description = _positions(table, sizes)
    durations = _durations(table.need(b"stts"), count)
    offsets = _offsets(table.find(b"ctts"), count)
    sync_table = table.find(b"stss")
    sync = None if sync_table is None else {number for (number,) in sync_table.table(4, ">I", MAX_SAMPLES)}
    samples = [
        Sample(position, size, time, offset, duration, sync is None or number in sync)
        for number, (position, size, time, offset, duration) in enumerate(
            zip(positions, sizes, accumulate(chain((0,), durations[:-1])), offsets, durations, strict=True), 1
        )
    ]
    _check_place(samples, file_bytes)
    return samples, description


def _sizes(table: Content, file_bytes: int) -> list[int]:
    """Read the sizes of samples (stsz and stz2, section 8.7.3)."""
    box = table.find(b"stsz")
    if box is not None:
        size, count = box.number(4, 4), box.number(8, 4)
        _check_count(count)
        if not size:
            return [each for (each,) in box.table(8, ">I", MAX_SAMPLES)]
        if size * count > file_bytes:
            raise Mp4Error(f"damaged: {count} samples of {size} bytes in a file of {file_bytes} bytes")
        return [size] * count
    box = table.need(b"stz2")
    bits, count = box.number(7, 1), box.number(8, 4)
    _check_count(count)
    if bits == 4:
        packed = box.take(12, (count + 1) // 2)
        return list(islice(chain.from_iterable((each >> 4, each & 15) for each in packed), count))
    if bits not in (8, 16):
        raise Mp4Error(f"damaged: box stz2 has sizes of {bits} bits")
    return [each for (each,) in box.table(8, ">B" if bits == 8 else ">H", MAX_SAMPLES)]


def _check_count(count: int) -> None:
    if count > MAX_SAMPLES:
        raise Mp4Error(f"a track has {count} samples, at most {MAX_SAMPLES} are read")


def _positions(table: Content, sizes: list[int]) -> tuple[list[int], int]:
    """Return the positions of samples (stsc, stco and co64, sections 8.7.4 and 8.7.5), and their sample description."""
    box = table.find(b"stco")
    chunks = box.table(4, ">I", MAX_SAMPLES) if box is not None else table.need(b"co64").table(4, ">Q", MAX_SAMPLES)
    runs = list(table.need(b"stsc").table(4, ">III", MAX_SAMPLES))
    positions: list[int] = []
    count, run, description = len(sizes), -1, 0
    for number, (position,) in enumerate(chunks, 1):
        while run + 1 < len(runs) and runs[run + 1][0] <= number:
            run += 1
        if run < 0:
            raise Mp4Error("damaged: box stsc does not begin with the first chunk")
        for size in sizes[len(positions) : len(positions) + runs[run][1]]:
            positions.append(position)
            position += size
        if description not in (0, runs[run][2]):
            raise Mp4Error("a track that changes its codec parameters is not supported")
        description = runs[run][2]
        if len(positions) == count:
            return positions, description
    raise Mp4Error(f"damaged: the chunks of a track have {len(positions)} of its {count} samples")


def _durations(box: Content, count: int) -> list[int]:
    """Return the durations of samples (stts, section 8.6.1.2)."""
    durations: list[int] = []
    for number, delta in box.table(4, ">II", MAX_SAMPLES):
        if delta >= _MAX_DELTA:
            raise Mp4Error(f"damaged: a sample has a duration of {delta} ticks")
        durations.extend(repeat(delta, min(number, count - len(durations))))
    if len(durations) < count:
        raise Mp4Error(f"damaged: box stts has {len(durations)} of {count} samples")
    return durations


def _offsets(box: Content | None, count: int) -> list[int]:
    """Return the composition offsets of samples (ctts, section 8.6.1.3).

    They are read as signed in version 0, too, as in FFmpeg: writers put negative ones there.
    """
    offsets: list[int] = []
    for number, offset in box.table(4, ">Ii", MAX_SAMPLES) if box is not None else ():
        offsets.extend(repeat(offset, min(number, count - len(offsets))))
    offsets.extend(repeat(0, count - len(offsets)))
    return offsets


def _check_place(samples: list[Sample], file_bytes: int) -> None:
    """Raise if a sample lies outside of the file, or if all together are larger than it."""
    total = 0
    for sample in samples:
        total += sample.size
        if sample.position + sample.size > file_bytes:
            raise Mp4Error(f"damaged or truncated: a sample ends at byte {sample.position + sample.size} of {file_bytes}")
    if total > file_bytes:
        raise Mp4Error(f"damaged: samples of {total} bytes in a file of {file_bytes} bytes")


# Fragments ----------------------------------------------------------------------------------------------------------------


class Defaults(NamedTuple):
    """The values of samples that a fragment does not set (trex, section 8.8.3)."""

    description: int
    duration: int
    size: int
    flags: int


def read_defaults(box: Content) -> tuple[int, Defaults]:
    """Read a trex box: the track's id and its defaults."""
    return box.number(4, 4), Defaults(box.number(8, 4), box.number(12, 4), box.number(16, 4), box.number(20, 4))


class Fragments:
    """Collects the samples of movie fragments.

    Args:
        tracks: The samples of each track by its id, to which those of fragments are added.
        defaults: The defaults of each track by its id.
        file_bytes: The size of the file.
    """

    __slots__ = ("_defaults", "_file_bytes", "_left_boxes", "_left_bytes", "_tracks")

    def __init__(self, tracks: dict[int, list[Sample]], defaults: dict[int, Defaults], file_bytes: int) -> None:
        self._tracks = tracks
        self._defaults = defaults
        self._file_bytes = file_bytes
        self._left_bytes = file_bytes
        self._left_boxes = MAX_FRAGMENT_BOXES

    def add(self, moof: Content, moof_position: int) -> None:
        """Add the samples of a fragment.

        Args:
            moof: Its moof box.
            moof_position: The offset of the box in the file.

        Raises:
            Mp4Error: The fragment is damaged.
        """
        position = moof_position
        for traf in self._children(moof):
            if traf.box.kind == b"traf":
                position = self._add_track(traf, moof_position, position)

    def _children(self, box: Content) -> list[Content]:
        """Return the boxes in a box of a fragment."""
        children = list(islice(box.boxes(), self._left_boxes + 1))
        self._left_boxes -= len(children)
        if self._left_boxes < 0:
            raise Mp4Error(f"the fragments of the file have more than {MAX_FRAGMENT_BOXES} boxes")
        return children

    def _add_track(self, traf: Content, moof_position: int, position: int) -> int:
        """Add the samples of a traf box; *position* is the end of the data of the one before it. Return that of this one."""
        children = self._children(traf)
        head = next((each for each in children if each.box.kind == b"tfhd"), None)
        if head is None:
            raise Mp4Error("damaged: a fragment of a track has no tfhd")
        track = head.number(4, 4)
        samples = self._tracks.get(track)
        if samples is None:
            # A track of another kind; its data is not parsed, and the next track has a base of its own.
            return position
        if track not in self._defaults:
            raise Mp4Error(f"damaged: a fragment of track {track}, which has no trex box")
        flags, offset = head.flags, 8
        values = list(self._defaults[track])
        base = moof_position if flags & 0x20000 else position
        if flags & 1:
            base, offset = head.number(offset, 8), offset + 8
        for index, bit in enumerate((2, 8, 0x10, 0x20)):
            if flags & bit:
                values[index] = head.number(offset, 4)
                offset += 4
        decode = next((each for each in children if each.box.kind == b"tfdt"), None)
        time = samples[-1].time + samples[-1].duration if samples else 0
        if decode is not None:
            start = decode.number(4, 8 if decode.version else 4)
            if start < time and samples:
                # The duration of the sample before was rounded up, or the fragments overlap.
                if start < samples[-1].time:
                    raise Mp4Error("damaged: the decoding times of a fragment go back")
                samples[-1] = samples[-1]._replace(duration=start - samples[-1].time)
            time = start
        position = base
        for run in children:
            if run.box.kind == b"trun":
                position, time = self._add_run(run, samples, Defaults(*values), base, position, time)
        return position

    def _add_run(
        self, run: Content, samples: list[Sample], defaults: Defaults, base: int, position: int, time: int
    ) -> tuple[int, int]:
        """Add the samples of a trun box (section 8.8.8). Return the end of their data and of their time."""
        flags, count, offset = run.flags, run.number(4, 4), 8
        _check_count(len(samples) + count)
        if flags & 1:
            position, offset = base + _signed(run.number(offset, 4)), offset + 4
        first_flags = defaults.flags
        if flags & 4:
            first_flags, offset = run.number(offset, 4), offset + 4
        for number, (duration, size, sample_flags, composition) in enumerate(_run_entries(run, offset, count, defaults)):
            if number == 0 and flags & 4:
                sample_flags = first_flags
            if duration >= _MAX_DELTA:
                raise Mp4Error(f"damaged: a sample has a duration of {duration} ticks")
            self._left_bytes -= size
            if self._left_bytes < 0 or not 0 <= position <= self._file_bytes - size:
                raise Mp4Error(
                    f"damaged or truncated: a sample of a fragment ends at byte {position + size} of {self._file_bytes}"
                )
            samples.append(Sample(position, size, time, composition, duration, not sample_flags & _NOT_SYNC))
            position += size
            time += duration
        return position, time


def _run_entries(run: Content, offset: int, count: int, defaults: Defaults) -> Iterator[tuple[int, int, int, int]]:
    """Yield duration, size, flags and composition offset of each sample of a run."""
    flags = run.flags
    present = [bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800)]
    values = [defaults.duration, defaults.size, defaults.flags, 0]
    length = 4 * sum(present)
    run.take(offset, length * count)
    for _ in range(count):
        for index in range(4):
            if present[index]:
                values[index] = run.number(offset, 4)
                offset += 4
        yield values[0], values[1], values[2], _signed(values[3])


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number
