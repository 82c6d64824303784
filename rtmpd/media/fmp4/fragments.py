"""Movie fragments: moof and mdat (ISO/IEC 14496-12 section 8.8).

`fragment` makes one of any number of samples. `write_sample` writes one of a single sample into memory: the unit of live
delivery, 112 bytes more than the sample.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from rtmpd.media.fmp4.boxes import box, full_box

if TYPE_CHECKING:
    from collections.abc import Sequence

SYNC: Final = 0x02000000
NOT_SYNC: Final = 0x01010000
"""The flags of samples (section 8.8.3.1): depends on no other sample; depends on others, and is no sync sample."""

_BASE_IS_MOOF, _DEFAULT_DURATION, _DEFAULT_FLAGS = 0x20000, 8, 0x20
_OFFSET, _DURATIONS, _SIZES, _FLAGS, _COMPOSITIONS = 1, 0x100, 0x200, 0x400, 0x800
_SIGNED_COMPOSITIONS = 1
_MDAT_HEADER_BYTES = 8


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


class Run(NamedTuple):
    """Successive samples of a track.

    Attributes:
        track_id: The track.
        time: The decoding time of the first one, ticks.
        samples: The samples, at least one.
    """

    track_id: int
    time: int
    samples: Sequence[Sample]

    @property
    def end(self) -> int:
        """The end of the last one, ticks."""
        return self.time + sum(sample.duration for sample in self.samples)


def fragment(sequence: int, runs: Sequence[Run]) -> bytes:
    """Return a fragment.

    Args:
        sequence: Its number; higher than that of the one before.
        runs: The samples, by track.
    """
    size = len(_moof(sequence, runs, 0))
    moof = _moof(sequence, runs, size + _MDAT_HEADER_BYTES)
    data = [sample.data for run in runs for sample in run.samples]
    header = struct.pack(">I4s", _MDAT_HEADER_BYTES + sum(map(len, data)), b"mdat")
    return b"".join((moof, header, *data))


def _moof(sequence: int, runs: Sequence[Run], offset: int) -> bytes:
    trafs = []
    for run in runs:
        trafs.append(_traf(run, offset))
        offset += sum(len(sample.data) for sample in run.samples)
    return box(b"moof", full_box(b"mfhd", 0, 0, struct.pack(">I", sequence & 0xFFFFFFFF)), *trafs)


def _traf(run: Run, offset: int) -> bytes:
    """Return the boxes of a track. What is the same for all samples is said once."""
    samples = run.samples
    first = samples[0]
    same_duration = all(sample.duration == first.duration for sample in samples)
    same_flags = all(sample.flags == first.flags for sample in samples)
    composed = any(sample.composition for sample in samples)
    head_flags, head = _BASE_IS_MOOF, struct.pack(">I", run.track_id)
    run_flags, entry = _OFFSET | _SIZES, ">I"
    if same_duration:
        head_flags |= _DEFAULT_DURATION
        head += struct.pack(">I", first.duration)
    else:
        run_flags |= _DURATIONS
        entry += "I"
    if same_flags:
        head_flags |= _DEFAULT_FLAGS
        head += struct.pack(">I", first.flags)
    else:
        run_flags |= _FLAGS
        entry += "I"
    if composed:
        run_flags |= _COMPOSITIONS
        entry += "i"
    packer = struct.Struct(entry)
    entries = []
    for sample in samples:
        fields = [] if same_duration else [sample.duration]
        fields.append(len(sample.data))
        if not same_flags:
            fields.append(sample.flags)
        if composed:
            fields.append(sample.composition)
        entries.append(packer.pack(*fields))
    return box(
        b"traf",
        full_box(b"tfhd", 0, head_flags, head),
        full_box(b"tfdt", 1, 0, struct.pack(">Q", run.time)),
        full_box(b"trun", _SIGNED_COMPOSITIONS, run_flags, struct.pack(">Ii", len(samples), offset), *entries),
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
