"""Movie fragments: moof and mdat (ISO/IEC 14496-12 section 8.8).

`fragment` makes one of any number of samples. `write_sample` writes one of a single sample into memory: the unit of live
delivery, 112 bytes more than the sample.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from rtmpd.media.fmp4.boxes import full_box

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SYNC: Final = 0x02000000
NOT_SYNC: Final = 0x01010000
"""The flags of samples (section 8.8.3.1): depends on no other sample; depends on others, and is no sync sample."""

_BASE_IS_MOOF, _DEFAULT_DURATION, _DEFAULT_FLAGS = 0x20000, 8, 0x20
_OFFSET, _DURATIONS, _SIZES, _FLAGS, _COMPOSITIONS = 1, 0x100, 0x200, 0x400, 0x800
_SIGNED_COMPOSITIONS = 1
_MDAT_HEADER_BYTES = 8
_MOOF_HEADER_BYTES = 24  # with mfhd
_TFDT_BYTES = 20
_TRUN_HEADER_BYTES = 20


class Sample(NamedTuple):
    """A sample of a fragment.

    Attributes:
        data: The frame.
        duration: Ticks.
        flags: `SYNC` or `NOT_SYNC`.
        composition: The composition time less the decoding time, ticks; may be negative.
    """

    data: bytes | memoryview
    duration: int
    flags: int
    composition: int


class Run:
    """Successive samples of a track, as columns.

    Args:
        track_id: The track.
        time: The decoding time of the first sample, ticks.
        samples: The samples.

    Attributes:
        track_id, time: Likewise.
        data: The frames.
        durations, flags, compositions: As in `Sample`.
    """

    __slots__ = ("compositions", "data", "durations", "flags", "time", "track_id")

    def __init__(self, track_id: int, time: int = 0, samples: Iterable[Sample] = ()) -> None:
        self.track_id = track_id
        self.time = time
        self.data: list[bytes | memoryview] = []
        self.durations: list[int] = []
        self.flags: list[int] = []
        self.compositions: list[int] = []
        for sample in samples:
            self.data.append(sample.data)
            self.durations.append(sample.duration)
            self.flags.append(sample.flags)
            self.compositions.append(sample.composition)

    @property
    def end(self) -> int:
        """The end of the last sample, ticks."""
        return self.time + sum(self.durations)


def fragment(sequence: int, runs: Sequence[Run]) -> bytes:
    """Return a fragment.

    Args:
        sequence: Its number; higher than that of the one before.
        runs: The samples, by track; each has at least one. Without any the fragment is empty.
    """
    sizes = [list(map(len, run.data)) for run in runs]
    trafs = [_traf(run, each) for run, each in zip(runs, sizes, strict=True)]
    moof_size = _MOOF_HEADER_BYTES + sum(len(head) + 4 + len(entries) for head, entries in trafs)
    pieces: list[bytes | memoryview] = [struct.pack(">I4sI4sII", moof_size, b"moof", 16, b"mfhd", 0, sequence & 0xFFFFFFFF)]
    offset = moof_size + _MDAT_HEADER_BYTES
    for (head, entries), each in zip(trafs, sizes, strict=True):
        pieces += (head, struct.pack(">i", offset), entries)
        offset += sum(each)
    pieces.append(struct.pack(">I4s", offset - moof_size, b"mdat"))
    for run in runs:
        pieces += run.data
    return b"".join(pieces)


def _traf(run: Run, sizes: list[int]) -> tuple[bytes, bytes]:
    """Return the boxes of a track: up to the offset of its data, and behind it. Values of all samples are written once."""
    count = len(sizes)
    durations, flags, compositions = run.durations, run.flags, run.compositions
    head_flags, head = _BASE_IS_MOOF, struct.pack(">I", run.track_id)
    run_flags = _OFFSET | _SIZES
    columns = []
    if durations.count(durations[0]) == count:
        head_flags |= _DEFAULT_DURATION
        head += struct.pack(">I", durations[0])
    else:
        run_flags |= _DURATIONS
        columns.append(durations)
    columns.append(sizes)
    if flags.count(flags[0]) == count:
        head_flags |= _DEFAULT_FLAGS
        head += struct.pack(">I", flags[0])
    else:
        run_flags |= _FLAGS
        columns.append(flags)
    if any(compositions):
        run_flags |= _COMPOSITIONS
        columns.append([each & 0xFFFFFFFF for each in compositions])
    numbers = sizes
    if len(columns) > 1:
        step = len(columns)
        numbers = [0] * (count * step)
        for index, column in enumerate(columns):
            numbers[index::step] = column
    entries = struct.pack(f">{len(numbers)}I", *numbers)
    tfhd = full_box(b"tfhd", 0, head_flags, head)
    trun_size = _TRUN_HEADER_BYTES + len(entries)
    traf_size = 8 + len(tfhd) + _TFDT_BYTES + trun_size
    return (
        b"".join(
            (
                struct.pack(">I4s", traf_size, b"traf"),
                tfhd,
                struct.pack(">I4sIQ", _TFDT_BYTES, b"tfdt", 1 << 24, run.time),
                struct.pack(">I4sII", trun_size, b"trun", _SIGNED_COMPOSITIONS << 24 | run_flags, count),
            )
        ),
        entries,
    )


# One sample ---------------------------------------------------------------------------------------------------------------

_ONE = struct.Struct(">20sI20sI12sQ20s3IiI4s")
OVERHEAD_BYTES: Final = _ONE.size
_SEQUENCE_AT, _TRACK_AT, _TIME_AT = 20, 44, 60
_MOOF_AT = struct.pack(">I4s", OVERHEAD_BYTES - _MDAT_HEADER_BYTES, b"moof") + struct.pack(">I4sI", 16, b"mfhd", 0)
_TRAF_AT = struct.pack(">I4sI4sI", OVERHEAD_BYTES - 32, b"traf", 16, b"tfhd", _BASE_IS_MOOF)
_TFDT_AT = struct.pack(">I4sI", 20, b"tfdt", 1 << 24)
_RUN_FLAGS = _SIGNED_COMPOSITIONS << 24 | _OFFSET | _DURATIONS | _SIZES | _FLAGS | _COMPOSITIONS
_TRUN_AT = struct.pack(">I4sIIi", 36, b"trun", _RUN_FLAGS, 1, OVERHEAD_BYTES)
_SEQUENCE, _TIME = struct.Struct(">I"), struct.Struct(">Q")

_pack_one = _ONE.pack_into


def write_sample(
    buffer: bytearray | memoryview,
    offset: int,
    sequence: int,
    track_id: int,
    time: int,
    duration: int,
    flags: int,
    composition: int,
    data: bytes | memoryview,
) -> int:
    """Write a fragment of one sample into *buffer*, which must be large enough; return the offset behind it. The hot path.

    Args:
        buffer, offset: Where to.
        sequence: The number of the fragment, 0..2**32-1.
        track_id: The track.
        time, duration: The decoding time and the duration, ticks.
        flags: `SYNC` or `NOT_SYNC`.
        composition: The composition time less the decoding time, ticks.
        data: The frame.
    """
    size = len(data)
    begin = offset + OVERHEAD_BYTES
    end = begin + size
    where = (_MOOF_AT, sequence, _TRAF_AT, track_id, _TFDT_AT, time, _TRUN_AT)
    _pack_one(buffer, offset, *where, duration, size, flags, composition, size + _MDAT_HEADER_BYTES, b"mdat")
    buffer[begin:end] = data
    return end


def sample_of(buffer: bytearray | memoryview, offset: int) -> tuple[int, int, int]:
    """Return sequence number, track id and decoding time (ticks) of a fragment that `write_sample` has written."""
    sequence = _SEQUENCE.unpack_from(buffer, offset + _SEQUENCE_AT)[0]
    return sequence, _SEQUENCE.unpack_from(buffer, offset + _TRACK_AT)[0], _TIME.unpack_from(buffer, offset + _TIME_AT)[0]
