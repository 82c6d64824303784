"""Files of fragments: what they begin with, and the indexes by which players seek. Pure.

A file begins with ftyp, a mark, moov, and room. Fragments follow, so that a file that is not finished can be played up to its
last whole fragment. In the end the room gets the duration (mehd) and an index of the fragments (sidx), in place, and an index
of random access points for each track (mfra) is appended. Some players read one, some the other (ISO/IEC 14496-12 sections
8.8.2, 8.8.9 and 8.16.3).
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from rtmpd.media.fmp4.boxes import box, full_box
from rtmpd.media.mp4.boxes import Box, Content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtmpd.media.fmp4.fragmenter import Fragment

SUFFIX: Final = ".mp4"

MARK: Final = box(b"uuid", bytes.fromhex("8f0f3c1e5b7a4c64b9d2726d70642101"))
"""Marks a file as a recording of rtmpd. Programs that copy a recording leave it out."""

DEFAULT_ENTRIES: Final = 8192
"""The number of entries of sidx that there is room for."""

MAX_ENTRIES: Final = 0xFFFF

_MEHD_BYTES = 20
_SPARE_BYTES = 4096
"""Room for a track that begins later."""
_SIDX_BYTES, _ENTRY_BYTES = 40, 12
_LEAST_FREE_BYTES = 8
_MAX_POINTS = 65536
_MAX_REFERENCE_BYTES = 0x7FFFFFFF
_MAX_U32 = 0xFFFFFFFF
_SAP = 9 << 28
"""The fragment begins with a stream access point of type 1."""


# The beginning ------------------------------------------------------------------------------------------------------------


def head_size(init: bytes, entries: int = DEFAULT_ENTRIES) -> int:
    """Return the size of a head with room for *entries* of the index and for another track.

    Args:
        init: The initialization segment.
        entries: The capacity of the `FragmentIndex`.
    """
    return len(init) + len(MARK) + _MEHD_BYTES + _SPARE_BYTES + _LEAST_FREE_BYTES + _SIDX_BYTES + _ENTRY_BYTES * entries


def capacity(init: bytes, size_bytes: int) -> int:
    """Return how many entries of the index a head of *size_bytes* has room for, with the duration; may be negative."""
    return (size_bytes - head_size(init, 0)) // _ENTRY_BYTES


def render_head(init: bytes, size_bytes: int, duration_ms: int = 0, sidx: bytes = b"", *, mark: bytes = MARK) -> bytes | None:
    """Return what a file begins with, up to its first fragment.

    Args:
        init: The initialization segment.
        size_bytes: The size of the head.
        duration_ms: The duration of the file; 0: it is not known yet.
        sidx: The index of the fragments; empty: there is none.
        mark: `MARK`, or nothing for a file that is no recording.

    Returns:
        None if there is not enough room.
    """
    begin = _begin(init, duration_ms, mark)
    free = size_bytes - len(begin) - len(sidx)
    if free < _LEAST_FREE_BYTES:
        return None
    return begin + box(b"free", bytes(free - _LEAST_FREE_BYTES)) + sidx


def head_patches(init: bytes, size_bytes: int, duration_ms: int = 0, sidx: bytes = b"") -> list[tuple[int, bytes]]:
    """Return positions and bytes that replace the head of a recording by another one, in this order; arguments as above.

    The index is written into the room before the room becomes smaller: where the disk is full, or the server is killed, in
    between, the file is what it was.

    Returns:
        Nothing if there is not enough room.
    """
    begin = _begin(init, duration_ms, MARK)
    free = size_bytes - len(begin) - len(sidx)
    if free < _LEAST_FREE_BYTES:
        return []
    # Zeros where there may have been a larger moov.
    zeros = bytes(min(free - _LEAST_FREE_BYTES, _SPARE_BYTES))
    patches = [(0, begin + struct.pack(">I4s", free, b"free") + zeros)]
    return [(size_bytes - len(sidx), sidx), *patches] if sidx else patches


def _begin(init: bytes, duration_ms: int, mark: bytes) -> bytes:
    """Return what is before the room."""
    ftyp_end = int.from_bytes(init[:4], "big")
    moov = init[ftyp_end:]
    return init[:ftyp_end] + mark + (with_duration(moov, duration_ms) if duration_ms else moov)


def is_recording(begin: bytes) -> bool:
    """Return whether the *begin* of a file, 64 bytes or more, is that of a recording of rtmpd."""
    return begin[4:8] == b"ftyp" and begin.startswith(MARK, int.from_bytes(begin[:4], "big"))


def with_duration(moov: bytes, duration_ms: int) -> bytes:
    """Return a moov box with the duration of its fragments (mehd).

    Raises:
        Mp4Error: It is damaged, or not one of a fragmented file.
    """
    mvex = Content(moov, Box(b"moov", 0, 8, len(moov))).need(b"mvex")
    kept = b"".join(moov[each.box.start : each.box.end] for each in mvex.boxes() if each.box.kind != b"mehd")
    made = box(b"mvex", full_box(b"mehd", 1, 0, struct.pack(">Q", duration_ms)), kept)
    return box(b"moov", moov[8 : mvex.box.start], made, moov[mvex.box.end :])


# Indexes ------------------------------------------------------------------------------------------------------------------


class _Points:
    """Points in time, with their positions. Above the capacity every second one is left out, later every fourth, and so on.

    Attributes:
        items: For each point its time in ticks, its position in the file, and a third number.
    """

    __slots__ = ("_capacity", "_seen", "_stride", "items")

    def __init__(self, capacity: int) -> None:
        self.items = array("Q")
        self._capacity = capacity
        self._stride = 1
        self._seen = 0

    def add(self, time: int, position: int, third: int) -> None:
        if self._seen % self._stride == 0:
            if len(self.items) == 3 * self._capacity:
                items = self.items
                self.items = array("Q", bytes(8 * 3 * ((self._capacity + 1) // 2)))
                for part in range(3):
                    self.items[part::3] = items[part::6]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self.items.extend((time, position, third))
        self._seen += 1

    def before(self, position: int) -> array[int]:
        """Return the points before a position."""
        return self.items[: 3 * bisect_left(self.items[1::3], position)]


class FragmentIndex:
    """The indexes of one file.

    Args:
        tracks: Id and timescale of each track; the first one is that of the sidx: players seek by it.
        entries: The highest number of entries of the sidx.

    Attributes:
        end_ms: The end of the last sample.
        frames: The number of samples.
        track_ids: The tracks that have samples.
    """

    def __init__(self, tracks: Sequence[tuple[int, int]], entries: int = DEFAULT_ENTRIES) -> None:
        self._points = {track_id: _Points(_MAX_POINTS) for track_id, _ in tracks}
        self._leading, self._timescale = tracks[0]
        self._entries = min(entries, MAX_ENTRIES)
        self._times = array("Q")
        self._positions = array("Q")
        self._saps = array("I")
        self._no_sidx_from: int | None = None
        self.end_ms = 0
        self.frames = 0
        self.track_ids: set[int] = set()

    def add_track(self, track_id: int) -> None:
        """Add a track that begins later."""
        self._points.setdefault(track_id, _Points(_MAX_POINTS))

    def add(self, fragment: Fragment, position: int) -> None:
        """Add a fragment.

        Args:
            fragment: The fragment.
            position: Its position in the file.
        """
        for number, track_id in enumerate(fragment.tracks, 1):
            time = fragment.sync_times.get(track_id, -1)
            if time >= 0 and track_id in self._points:
                # Number of the traf, of the trun in it, and of the sample in that.
                self._points[track_id].add(time, position, number << 48 | 1 << 32 | 1)
        has_leading = self._leading in fragment.tracks
        begin = fragment.sync_times.get(self._leading)
        if self._no_sidx_from is None:
            if (has_leading and begin is None) or len(self._times) >= self._entries:
                self._no_sidx_from = position
            else:
                start = fragment.start_ms * self._timescale // 1000 if begin is None else begin
                self._times.append(max(0, start))
                self._positions.append(position)
                self._saps.append(_SAP if has_leading else 0)
        self.end_ms = max(self.end_ms, fragment.end_ms)
        self.frames += fragment.frames
        self.track_ids.update(fragment.tracks)

    def sidx(self, end: int, end_ms: int) -> bytes:
        """Return the index that precedes the first fragment.

        FFmpeg, and with it Chromium, takes each entry for one fragment that begins with a keyframe, and reads no others.

        Args:
            end: The end of the last fragment: those behind it are left out.
            end_ms: Its time.

        Returns:
            Nothing if there is no fragment, or a fragment without a keyframe at its beginning, or too many.
        """
        count = bisect_left(self._positions, end)
        if not count or (self._no_sidx_from is not None and self._no_sidx_from < end):
            return b""
        times = [*self._times[:count], end_ms * self._timescale // 1000]
        positions = [*self._positions[:count], end]
        entries = array("I")
        for number in range(count):
            size = min(positions[number + 1] - positions[number], _MAX_REFERENCE_BYTES)
            entries.extend((size, min(max(0, times[number + 1] - times[number]), _MAX_U32), self._saps[number]))
        fields = struct.pack(">IIQQHH", self._leading, self._timescale, times[0], 0, 0, len(entries) // 3)
        return full_box(b"sidx", 1, 0, fields, _big_endian(entries))

    def mfra(self, end: int) -> bytes:
        """Return the index that follows the last fragment.

        Args:
            end: As for `sidx`.
        """
        tables = []
        for track_id, points in self._points.items():
            items = points.before(end)
            if items:
                # Numbers of trafs and truns have two bytes, those of samples four.
                fields = struct.pack(">III", track_id, 1 << 4 | 1 << 2 | 3, len(items) // 3)
                tables.append(full_box(b"tfra", 1, 0, fields, _big_endian(items)))
        size = 8 + sum(map(len, tables)) + 16
        return box(b"mfra", *tables, full_box(b"mfro", 0, 0, struct.pack(">I", size)))


def _big_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "little":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()
