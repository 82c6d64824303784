"""The repair of FLV files that end in a crash.

What is left of a recording is found by `scan`, and set right by `repair_plan` and `apply_plan`.

Files are objects that are passed in. Imports codecs, flv, flv_metadata and tags; must not import anything
above media, nor be imported in it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from rtmpd.media.audio_codecs import AudioConfig, audio_config
from rtmpd.media.flv import (
    AUDIO,
    FLAGS_OFFSET,
    SCRIPT,
    TAG_HEADER,
    TAG_HEADER_SIZE,
    TAG_OVERHEAD,
    VIDEO,
    header_flags,
    tag_size,
)
from rtmpd.media.flv_metadata import METADATA_NAME, MIN_METADATA_BYTES, FrameTimes, KeyframeIndex, MetadataBlock, read_metadata
from rtmpd.media.tags import MAX_RECORD_BYTES, Kind, audio_kind, video_kind
from rtmpd.media.video_codecs import VideoConfig, refine_video

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RepairPlan", "ScanResult", "apply_plan", "repair_plan", "scan"]

_U32 = struct.Struct(">I")


# Scan ---------------------------------------------------------------------------------------------------------------------

DEFAULT_WINDOW_BYTES = 1 << 18
_PREFIX_BYTES = 64  # of a payload: what its kind, and the size of a keyframe's picture, can be read from
_MAX_METADATA_TAG = 1 << 20
_MAX_BAD_SIZES = 1024


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What `scan` found in a file.

    Attributes:
        valid: Whether it begins as an FLV file. If not, everything else is as if it were empty.
        size: Its size, bytes.
        end: Where the last complete tag of an unbroken chain from the beginning ends, its size included.
        header_flags: The flags in the file header: 4 audio, 1 video.
        has_audio, has_video: Whether there are such tags, other than empty ones.
        first_ms, last_ms: Timestamps of the earliest and of the latest frame; 0 without any.
        duration_ms: From the one to the other, and how long the last frame lasts if it lasts as long as the one before.
        keyframes, sequence_header: See `KeyframeIndex`; at most `DEFAULT_INDEX_ENTRIES`.
        metadata_position: Where the first onMetaData tag begins; None if there is none.
        metadata_bytes: The size of its payload.
        metadata_tag: The whole tag, unless it has over 1 MiB; then empty.
        metadata: Its scalars, as far as it can be read; may be empty.
        audio, video: What is known of the first audio and video track.
        audio_tags, video_tags, script_tags, other_tags: How many there are.
        frames: How many audio and video tags hold frames, not headers.
        bad_sizes: Tags that are followed by a wrong size and then by a sound tag: position of the size, and what it should be.
    """

    valid: bool = False
    size: int = 0
    end: int = 0
    header_flags: int = 0
    has_audio: bool = False
    has_video: bool = False
    first_ms: int = 0
    last_ms: int = 0
    duration_ms: int = 0
    keyframes: tuple[tuple[int, int], ...] = ()
    sequence_header: tuple[int, int] | None = None
    metadata_position: int | None = None
    metadata_bytes: int = 0
    metadata_tag: bytes = field(default=b"", repr=False)
    metadata: Mapping[str, object] = field(default_factory=dict)
    audio: AudioConfig | None = None
    video: VideoConfig | None = None
    audio_tags: int = 0
    video_tags: int = 0
    script_tags: int = 0
    other_tags: int = 0
    frames: int = 0
    bad_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def clean(self) -> bool:
        """Whether the file is whole: tags to its end, each followed by its size."""
        return self.valid and self.end == self.size and not self.bad_sizes


# Plain integers, for millions of tags.
_FRAME, _KEYFRAME, _HEADER, _OTHER = int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.HEADER), int(Kind.OTHER)
_FRAMES = (_FRAME, _KEYFRAME, int(Kind.TRACK_KEYFRAME))


class _Window:
    """A piece of a file in memory, which moves forward.

    Attributes:
        data: The piece.
        size: The file's size, bytes.
    """

    __slots__ = ("_file", "_start", "_window_bytes", "data", "size")

    def __init__(self, file: BinaryIO, window_bytes: int) -> None:
        self._file = file
        self._window_bytes = window_bytes
        self._start = 0
        self.data = b""
        self.size = file.seek(0, os.SEEK_END)

    def reach(self, position: int, length: int) -> int:
        """Have *length* bytes from *position* on in ``data``.

        Returns:
            Their offset in ``data``, or -1 if the file ends before. Offsets of earlier calls are void.
        """
        offset = position - self._start
        if offset >= 0 and offset + length <= len(self.data):
            return offset
        if position + length > self.size:
            return -1
        self._file.seek(position)
        self._start = position
        self.data = self._file.read(max(length, self._window_bytes))
        return 0 if len(self.data) >= length else -1

    def copy(self, position: int, length: int) -> bytes:
        """Return bytes that the file is known to have."""
        offset = self.reach(position, length)
        return self.data[offset : offset + length] if offset >= 0 else b""


class _Scan:
    """The state of `scan`."""

    def __init__(self, window: _Window) -> None:
        self.window = window
        self.counts = dict.fromkeys((AUDIO, VIDEO, SCRIPT, 0), 0)
        self.has_audio = self.has_video = False
        self.audio: AudioConfig | None = None
        self.video: VideoConfig | None = None
        self.audio_track, self.video_track = FrameTimes(), FrameTimes()
        self.index = KeyframeIndex()
        self.frames = 0
        self.metadata_position: int | None = None
        self.metadata_bytes = 0
        self.bad_sizes: list[tuple[int, int]] = []

    def run(self, position: int) -> int:
        """Go through the tags from *position* on; return the end of the last good one."""
        window = self.window
        while True:
            offset = window.reach(position, min(TAG_HEADER_SIZE + _PREFIX_BYTES, max(window.size - position, TAG_OVERHEAD)))
            if offset < 0:
                return position
            word, time = TAG_HEADER.unpack_from(window.data, offset)
            length = word & 0xFFFFFF
            start = offset + TAG_HEADER_SIZE
            prefix = window.data[start : start + min(length, _PREFIX_BYTES)]
            behind = position + TAG_HEADER_SIZE + length
            if not self._has_size(behind, length):
                # Perhaps only the size is wrong. Then another tag follows, and that one is good; zeros are none.
                if len(self.bad_sizes) == _MAX_BAD_SIZES or not self._has_tag(behind + 4):
                    return position
                self.bad_sizes.append((behind, length + TAG_HEADER_SIZE))
            self._tag(position, word >> 24, time >> 8 | (time & 0xFF) << 24, prefix, length)
            position = behind + 4

    def _has_size(self, position: int, length: int) -> bool:
        """Return whether the size of a tag with *length* bytes of payload is at *position*."""
        offset = self.window.reach(position, 4)
        return offset >= 0 and _U32.unpack_from(self.window.data, offset)[0] == length + TAG_HEADER_SIZE

    def _has_tag(self, position: int) -> bool:
        """Return whether a tag is at *position*, and its size behind it."""
        offset = self.window.reach(position, TAG_HEADER_SIZE)
        if offset < 0:
            return False
        length = _U32.unpack_from(self.window.data, offset)[0] & 0xFFFFFF
        return self._has_size(position + TAG_HEADER_SIZE + length, length)

    def _tag(self, position: int, type_id: int, timestamp: int, prefix: bytes, length: int) -> None:
        self.counts[type_id if type_id in self.counts else 0] += 1
        if type_id == AUDIO:
            self._audio(position, timestamp, prefix, length)
        elif type_id == VIDEO:
            self._video(position, timestamp, prefix, length)
        elif type_id == SCRIPT and self.metadata_position is None and prefix.startswith(METADATA_NAME):
            self.metadata_position = position
            self.metadata_bytes = length

    def _audio(self, position: int, timestamp: int, prefix: bytes, length: int) -> None:
        kind = audio_kind(prefix)
        if kind == _OTHER:
            return
        self.has_audio = True
        if kind == _FRAME:
            self.frames += 1
            self.audio_track.frame(timestamp)
            self.index.audio(timestamp, position)
        elif kind == _HEADER:
            self.index.header(timestamp, position, video=False)
        if self.audio is None:
            self.audio = audio_config(self._payload(position, prefix, length))

    def _video(self, position: int, timestamp: int, prefix: bytes, length: int) -> None:
        kind = video_kind(prefix)
        if kind == _OTHER:
            return
        self.has_video = True
        if kind in _FRAMES:
            self.frames += 1
            self.video_track.frame(timestamp)
            if kind == _KEYFRAME:
                self.index.keyframe(timestamp, position)
        elif kind == _HEADER:
            self.index.header(timestamp, position, video=True)
        if kind != _FRAME and (self.video is None or not self.video.width):
            self.video = refine_video(self.video, self._payload(position, prefix, length))

    def _payload(self, position: int, prefix: bytes, length: int) -> bytes:
        """Return what of a payload may hold a configuration."""
        if len(prefix) == length:
            return prefix
        return self.window.copy(position + TAG_HEADER_SIZE, min(length, MAX_RECORD_BYTES))

    def result(self, end: int, header_flags: int) -> ScanResult:
        """Sum up."""
        tracks = [track for track in (self.audio_track, self.video_track) if track.last_ms >= 0]
        metadata_tag = b""
        if self.metadata_position is not None and self.metadata_bytes <= _MAX_METADATA_TAG:
            metadata_tag = self.window.copy(self.metadata_position, tag_size(self.metadata_bytes))
        first_ms = min((track.first_ms for track in tracks), default=0)
        return ScanResult(
            valid=True,
            size=self.window.size,
            end=end,
            header_flags=header_flags,
            has_audio=self.has_audio,
            has_video=self.has_video,
            first_ms=first_ms,
            last_ms=max((track.last_ms for track in tracks), default=0),
            duration_ms=max((track.end_ms - first_ms for track in tracks), default=0),
            keyframes=tuple(self.index.entries),
            sequence_header=self.index.sequence_header,
            metadata_position=self.metadata_position,
            metadata_bytes=self.metadata_bytes,
            metadata_tag=metadata_tag,
            metadata=read_metadata(metadata_tag[TAG_HEADER_SIZE:-4]),
            audio=self.audio,
            video=self.video,
            audio_tags=self.counts[AUDIO],
            video_tags=self.counts[VIDEO],
            script_tags=self.counts[SCRIPT],
            other_tags=self.counts[0],
            frames=self.frames,
            bad_sizes=tuple(self.bad_sizes),
        )


def scan(file: BinaryIO, window_bytes: int = DEFAULT_WINDOW_BYTES) -> ScanResult:
    """Read through an FLV file that may be cut anywhere, end in zeros, or be anything else.

    Every tag must be followed by its size; where one isn't, the file is taken to end before that tag, as after a crash whose
    last blocks were not written. Tags of unknown types are sound if their size is right.

    Keeps at most a few MiB, whatever the file holds.

    Args:
        file: Binary and seekable; its position is changed.
        window_bytes: Reads in pieces of this size. It computes between two reads, for some 8 ms with 256 KiB of audio.

    Raises:
        OSError: From *file*.
    """
    window = _Window(file, window_bytes)
    head = window.copy(0, 9)
    data_offset = int.from_bytes(head[5:9], "big")
    if head[:4] != b"FLV\1" or data_offset < 9 or data_offset + 4 > window.size:
        return ScanResult(size=window.size)
    state = _Scan(window)
    end = state.run(data_offset + 4)
    return state.result(end, head[FLAGS_OFFSET])


# Repair -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What to do to a file. See `apply_plan`.

    Attributes:
        truncate_to: The size that the file is to have, bytes.
        patches: Position in the file, and what to write there.
    """

    truncate_to: int
    patches: tuple[tuple[int, bytes], ...]


def repair_plan(result: ScanResult) -> RepairPlan | None:
    """Decide how to make a whole file of what is left.

    It ends behind its last good tag, its header says which kinds of tags there are, and its metadata have the right duration,
    size and index. The metadata keep their place: in files of other programs, whose metadata have no spare room, there is no
    index, and some members give way.

    Returns:
        None if the file does not even begin as FLV. A plan that does nothing for a file that was repaired before.
    """
    if not result.valid:
        return None
    patches = [(position, _U32.pack(size)) for position, size in result.bad_sizes]
    flags = header_flags(result.has_audio, result.has_video)
    if flags != result.header_flags:
        patches.append((FLAGS_OFFSET, bytes((flags,))))
    position = result.metadata_position
    if position is not None and result.metadata_bytes >= MIN_METADATA_BYTES:
        block = MetadataBlock(
            result.metadata,
            has_audio=result.has_audio,
            has_video=result.has_video,
            audio=result.audio,
            video=result.video,
            payload_bytes=result.metadata_bytes,
        )
        header = result.sequence_header
        rendered = block.render(
            duration_s=result.duration_ms / 1000,
            filesize_bytes=result.end,
            last_timestamp_ms=result.last_ms,
            keyframes=[entry for entry in result.keyframes if entry[1] > position],
            sequence_header=header if header and header[1] > position else None,
        )
        if rendered != result.metadata_tag:
            patches.append((position, rendered))
    return RepairPlan(result.end, tuple(patches))


def apply_plan(file: BinaryIO, plan: RepairPlan) -> None:
    """Carry out a plan. If it is interrupted, another `scan` gives a plan for the rest.

    Args:
        file: Binary, seekable, open for reading and writing; neither flushed nor synced.

    Raises:
        OSError: From *file*.
    """
    file.truncate(plan.truncate_to)
    for position, data in plan.patches:
        file.seek(position)
        file.write(data)
