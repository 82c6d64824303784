"""Repair of fragmented MP4 files after a crash: `scan` finds the complete fragments, `repair_plan` makes a whole file of them.

Files are objects that the caller opens. A fragment is sound if its boxes are, and its data are complete; the data itself is not
looked at.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from rtmpd.errors import Mp4Error
from rtmpd.media.flv_repair import Gap, RepairPlan
from rtmpd.media.fmp4.files import MARK, FragmentIndex, capacity, head_patches, is_recording, render_head
from rtmpd.media.fmp4.fragmenter import Fragment
from rtmpd.media.fmp4.movie import FTYP
from rtmpd.media.mp4.boxes import LONGEST_HEADER_BYTES, Box, Content, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_WINDOW_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 20
_MAX_MOOF_BYTES = 4 << 20
_MAX_GAPS = 1024
_MAX_CANDIDATES = 10_000
"""How often a scan looks whether something is a fragment: a hostile file is full of them."""
_CANDIDATE = re.compile(rb".{4}moof\0\0\0\x10mfhd", re.DOTALL)
_CANDIDATE_BYTES = 16
_LEAST_BOX_BYTES = 8
_TAIL_BYTES = 16
"""The last fragment is incomplete if so many zeros are its end."""
_MAX_BOX_BYTES = 0xFFFFFFFF
_TO_THE_END = bytes(4)
_LATEST_MS = 1 << 32
"""No recording is as long: the time of a fragment is damaged."""

_DEFAULT_DURATION, _DEFAULT_SIZE, _DEFAULT_FLAGS = 8, 0x10, 0x20
_BASE_OFFSET, _DESCRIPTION = 1, 2
_OFFSET, _FIRST_FLAGS, _DURATIONS, _SIZES, _FLAGS, _COMPOSITIONS = 1, 4, 0x100, 0x200, 0x400, 0x800
_NOT_SYNC = 0x10000
_TRACK_KINDS = (b"vide", b"soun")
_ROOM_KINDS = (b"free", b"sidx")
_HEAD_KINDS = (b"ftyp", b"uuid", b"moov", *_ROOM_KINDS)


@dataclass(frozen=True, slots=True)
class Mp4Scan:
    """The result of `scan`.

    Attributes:
        valid: Whether the file begins with the tracks of a fragmented file. If not, all other fields are those of an empty one.
        ours: Whether rtmpd has made it.
        size: The size of the file, bytes.
        end: The end of the last complete fragment.
        rest_bytes: The number of bytes behind it, without zeros at the end of the file and without an index.
        gaps: The damaged parts before it.
        frames: The number of samples.
        duration_ms: The end of the last sample.
        head_bytes: The position of the first fragment.
        init: The initialization segment, without the mark.
        index: The index of the fragments; None without one.
        is_cut: Whether the file ends within its head, which is that of rtmpd.
    """

    valid: bool = False
    ours: bool = False
    size: int = 0
    end: int = 0
    rest_bytes: int = 0
    gaps: tuple[Gap, ...] = ()
    frames: int = 0
    duration_ms: int = 0
    head_bytes: int = 0
    init: bytes = field(default=b"", repr=False)
    index: FragmentIndex | None = field(default=None, repr=False)
    is_cut: bool = False

    @property
    def gap_bytes(self) -> int:
        """The size of all gaps."""
        return sum(gap.end - gap.start for gap in self.gaps)

    @property
    def gap_ms(self) -> int:
        """The time in all gaps."""
        return sum(max(0, gap.last_ms - gap.first_ms) for gap in self.gaps)


class _Track(NamedTuple):
    track_id: int
    timescale: int
    kind: bytes


class _Found(NamedTuple):
    """A fragment, and the end of its mdat."""

    fragment: Fragment
    end: int


class _Scan:
    """The state of `scan`."""

    def __init__(self, file: BinaryIO, window_bytes: int) -> None:
        self._file = file
        self._window_bytes = window_bytes
        self.size = file.seek(0, os.SEEK_END)
        self._start = 0
        self._data = b""
        self._candidates = _MAX_CANDIDATES

    def read(self, position: int, length: int) -> bytes:
        """Return *length* bytes from a position on, fewer at the end of the file."""
        offset = position - self._start
        if offset < 0 or offset + length > len(self._data):
            self._file.seek(position)
            self._start = position
            self._data = self._file.read(max(length, self._window_bytes))
            offset = 0
        return self._data[offset : offset + length]

    def box_at(self, position: int) -> Box:
        """Return the box at a position. Raises Mp4Error."""
        head = self.read(position, LONGEST_HEADER_BYTES)
        if len(head) < _LEAST_BOX_BYTES:
            raise Mp4Error("the file ends within a box")
        if head.startswith(_TO_THE_END):
            # It would take in what the repair appends.
            raise Mp4Error("a box without a size")
        return read_header(head, position, self.size)

    # The head ----------------------------------------------------------------------------------------------------------

    def head(self) -> tuple[bytes, int]:
        """Return the initialization segment and the position of the first fragment. Raises Mp4Error."""
        position = 0
        init = b""
        while position + _LEAST_BOX_BYTES <= min(self.size, _MAX_HEAD_BYTES):
            kind = self.read(position + 4, 4)
            if kind not in _HEAD_KINDS:
                break
            try:
                found = self.box_at(position)
                if found.end > _MAX_HEAD_BYTES:
                    raise Mp4Error("the head is too large")
            except Mp4Error:
                if kind in _ROOM_KINDS:
                    # What is damaged is a gap.
                    break
                raise
            if found.kind == (b"moov" if init else b"ftyp"):
                init += self.read(position, found.end - position)
            position = found.end
        return init, position

    # Fragments ---------------------------------------------------------------------------------------------------------

    def fragment_at(self, position: int, tracks: dict[int, _Track]) -> _Found:
        """Return the fragment at a position. Raises Mp4Error or struct.error."""
        moof = self.box_at(position)
        if moof.kind != b"moof" or moof.end - moof.start > _MAX_MOOF_BYTES:
            raise Mp4Error("expected a fragment")
        mdat = self.box_at(moof.end)
        if mdat.kind != b"mdat":
            raise Mp4Error("expected the data of a fragment")
        data = self.read(position, moof.end - position)
        content = Content(data, Box(b"moof", 0, moof.content - position, len(data)))
        content.need(b"mfhd")
        runs = [_read_run(traf, tracks) for traf in content.boxes() if traf.box.kind == b"traf"]
        length = sum(run.data_bytes for run in runs)
        if not runs or length != mdat.end - mdat.content:
            raise Mp4Error("the samples of a fragment are not its data")
        end_ms = max(-(-run.end * 1000 // run.timescale) for run in runs)
        if end_ms > _LATEST_MS:
            raise Mp4Error("the time of a fragment is damaged")
        fragment = Fragment(
            b"",
            min(run.time * 1000 // run.timescale for run in runs),
            end_ms,
            {run.track_id: run.time + run.composition for run in runs if run.is_sync},
            tuple(run.track_id for run in runs),
            sum(run.samples for run in runs),
        )
        return _Found(fragment, mdat.end)

    def covered(self, position: int) -> int:
        """Return the end of a free box, with which a repair that was interrupted has covered a gap; *position* without one."""
        try:
            found = self.box_at(position)
        except Mp4Error:
            return position
        return found.end if found.kind == b"free" else position

    def next_fragment(self, position: int, tracks: dict[int, _Track]) -> int:
        """Return the position of the next sound fragment; -1 without one."""
        while position < self.size:
            data = self.read(position, self._window_bytes)
            for match in _CANDIDATE.finditer(data):
                if self._candidates == 0:
                    return -1
                self._candidates -= 1
                candidate = position + match.start()
                try:
                    self.fragment_at(candidate, tracks)
                except (Mp4Error, struct.error):
                    continue
                return candidate
            if len(data) < self._window_bytes:
                return -1
            position += len(data) - _CANDIDATE_BYTES + 1
        return -1

    def rest_bytes(self, position: int) -> int:
        """Return the number of bytes from a position on, without zeros at the end."""
        end = position
        while position < self.size:
            data = self.read(position, self._window_bytes)
            if not data:
                break
            kept = len(data.rstrip(b"\0"))
            if kept:
                end = position + kept
            position += len(data)
        return end


class _Run(NamedTuple):
    """What is read of a traf."""

    track_id: int
    timescale: int
    time: int
    end: int
    samples: int
    data_bytes: int
    is_sync: bool
    composition: int


def _read_run(traf: Content, tracks: dict[int, _Track]) -> _Run:
    """Read the samples of a track. Raises Mp4Error or struct.error."""
    tfhd, tfdt = traf.need(b"tfhd"), traf.need(b"tfdt")
    track = tracks.get(tfhd.number(4, 4))
    if track is None:
        raise Mp4Error("a fragment of an unknown track")
    at = 8 + 8 * bool(tfhd.flags & _BASE_OFFSET) + 4 * bool(tfhd.flags & _DESCRIPTION)
    defaults = {}
    for flag in (_DEFAULT_DURATION, _DEFAULT_SIZE, _DEFAULT_FLAGS):
        defaults[flag] = tfhd.number(at, 4) if tfhd.flags & flag else 0
        at += 4 * bool(tfhd.flags & flag)
    time = tfdt.number(4, 8 if tfdt.version else 4)
    end, samples, data_bytes = time, 0, 0
    is_sync, composition = not defaults[_DEFAULT_FLAGS] & _NOT_SYNC, 0
    for trun in traf.boxes():
        if trun.box.kind != b"trun":
            continue
        flags, count = trun.flags, trun.number(4, 4)
        at = 8 + 4 * bool(flags & _OFFSET)
        if flags & _FIRST_FLAGS and not samples:
            is_sync = not trun.number(at, 4) & _NOT_SYNC
        at += 4 * bool(flags & _FIRST_FLAGS)
        names = [each for each in (_DURATIONS, _SIZES, _FLAGS, _COMPOSITIONS) if flags & each]
        columns = len(names)
        numbers = struct.unpack(f">{count * columns}I", trun.take(at, 4 * count * columns)) if columns else ()
        column = {name: numbers[place::columns] for place, name in enumerate(names)}
        end += sum(column[_DURATIONS]) if flags & _DURATIONS else count * defaults[_DEFAULT_DURATION]
        data_bytes += sum(column[_SIZES]) if flags & _SIZES else count * defaults[_DEFAULT_SIZE]
        if count and not samples:
            if flags & _FLAGS:
                is_sync = not column[_FLAGS][0] & _NOT_SYNC
            if flags & _COMPOSITIONS:
                composition = column[_COMPOSITIONS][0]
                composition -= composition >> 31 << 32
        samples += count
    if not samples:
        raise Mp4Error("a fragment without samples")
    return _Run(track.track_id, track.timescale, time, end, samples, data_bytes, is_sync, composition)


def _read_tracks(init: bytes) -> list[_Track]:
    """Return the tracks of an initialization segment, video first. Raises Mp4Error."""
    root = Content(init, Box(b"", 0, 0, len(init)))
    moov = root.need(b"moov")
    moov.need(b"mvex")
    tracks = []
    for trak in moov.boxes():
        if trak.box.kind == b"trak":
            tkhd, mdhd = trak.need(b"tkhd"), trak.need(b"mdia", b"mdhd")
            track_id = tkhd.number(20 if tkhd.version else 12, 4)
            timescale = mdhd.number(20 if mdhd.version else 12, 4)
            if not timescale:
                raise Mp4Error("a track without a timescale")
            tracks.append(_Track(track_id, timescale, trak.need(b"mdia", b"hdlr").take(8, 4)))
    tracks = [track for track in tracks if track.kind in _TRACK_KINDS]
    if not tracks:
        raise Mp4Error("no tracks")
    return sorted(tracks, key=lambda track: _TRACK_KINDS.index(track.kind))


def scan(file: BinaryIO, window_bytes: int = DEFAULT_WINDOW_BYTES) -> Mp4Scan:
    """Scan a fragmented MP4 file that may be truncated anywhere, end with zeros, or be no MP4 at all.

    Behind damage the scan continues at the next sound fragment: what is in between is a gap. A few MiB of memory are used for
    any file.

    Args:
        file: A binary, seekable file. Its position changes.
        window_bytes: The size of each read.

    Raises:
        OSError: The file can't be read.
    """
    state = _Scan(file, window_bytes)
    begin = state.read(0, 64)
    ours = is_recording(begin)
    try:
        init, head_bytes = state.head()
        tracks = _read_tracks(init)
        # The repair needs that.
        render_head(init, head_bytes, 1)
    except (Mp4Error, struct.error):
        is_head = ours and state.size <= _MAX_HEAD_BYTES and b"moof" not in state.read(0, state.size)
        return Mp4Scan(size=state.size, is_cut=is_head or (FTYP + MARK).startswith(begin))
    entries = capacity(init, head_bytes)
    index = FragmentIndex([(track.track_id, track.timescale) for track in tracks], entries)
    by_id = {track.track_id: track for track in tracks}
    position = end = head_bytes
    last: tuple[Fragment, int, int] | None = None
    gaps: list[Gap] = []
    while position < state.size:
        try:
            found = state.fragment_at(position, by_id)
        except (Mp4Error, struct.error):
            # Before the first fragment there may be a free box with a damaged size.
            covered = state.covered(position) if last is not None else position
            if covered > position:
                position = covered
                continue
            # The next one must leave room for a box that covers the gap.
            following = state.next_fragment(position + _LEAST_BOX_BYTES, by_id) if len(gaps) < _MAX_GAPS else -1
            if following < 0:
                break
            first_ms = last[0].end_ms if last is not None else 0
            gaps.append(Gap(position, following, first_ms, state.fragment_at(following, by_id).fragment.start_ms))
            position = following
            continue
        if last is not None:
            index.add(last[0], last[1])
            end = last[2]
        last = (found.fragment, position, found.end)
        position = found.end
    # The last blocks before a crash may not have been written.
    if last is not None and any(state.read(last[2] - _TAIL_BYTES, _TAIL_BYTES)):
        index.add(last[0], last[1])
        end = last[2]
    gaps = [gap for gap in gaps if gap.end <= end]
    rest = _without_index(state, end)
    return Mp4Scan(
        valid=True,
        ours=ours,
        size=state.size,
        end=end,
        rest_bytes=rest,
        gaps=tuple(gaps),
        frames=index.frames,
        duration_ms=index.end_ms,
        head_bytes=head_bytes,
        init=init,
        index=index,
    )


def _without_index(state: _Scan, end: int) -> int:
    """Return the number of bytes that are lost behind the last fragment."""
    try:
        if state.box_at(end).kind == b"mfra":
            return 0
    except Mp4Error:
        pass
    return state.rest_bytes(end) - end


def repair_plan(found: Mp4Scan) -> RepairPlan | None:
    """Return the changes that repair a file: gaps become free boxes, and the file gets its duration and indexes.

    Returns:
        None if the file has no fragment. Interrupted changes do no harm: another scan gives a plan for the others.
    """
    index = found.index
    if index is None or not found.frames:
        return None
    patches = [patch for gap in found.gaps for patch in _filler(gap)]
    sidx = index.sidx(found.end, found.duration_ms)
    # The room of another program's file may not be enough.
    for each in (sidx, b""):
        head = head_patches(found.init, found.head_bytes, found.duration_ms, each)
        if head:
            patches += head
            break
    return RepairPlan(found.end, (*patches, (found.end, index.mfra(found.end))))


def _filler(gap: Gap) -> Iterator[tuple[int, bytes]]:
    """Yield the headers of free boxes that cover a gap."""
    position = gap.start
    while position < gap.end:
        left = gap.end - position
        size = min(left, _MAX_BOX_BYTES)
        if 0 < left - size < _LEAST_BOX_BYTES:
            size -= _LEAST_BOX_BYTES
        yield position, struct.pack(">I4s", size, b"free")
        position += size
