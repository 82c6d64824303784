"""Repair of FLV files after a crash: `scan` finds the complete tags, `repair_plan` and `apply_plan` make a whole file of them.

Files are objects that the caller opens.
"""

from __future__ import annotations

import os
import re
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
    from collections.abc import Iterator, Mapping

_U32 = struct.Struct(">I")


# Scan ---------------------------------------------------------------------------------------------------------------------

DEFAULT_WINDOW_BYTES = 1 << 18
_PREFIX_BYTES = 64  # the part of a payload that its kind, and the size of a keyframe's picture, are parsed from
_MAX_METADATA_TAG = 1 << 20
_MAX_BAD_SIZES = 1024
_MAX_GAPS = 1024
_MAX_CANDIDATES = 10_000
"""How often a scan looks whether something is a tag: each may read a window elsewhere, and a hostile file is full of them."""
_CANDIDATE = re.compile(rb"[\x08\x09\x12](?=.{7}\0\0\0)", re.DOTALL)
"""The header of an audio, video or script tag; its message stream id is 0."""
_CANDIDATE_BYTES = 11


@dataclass(frozen=True, slots=True)
class Gap:
    """A damaged part of a file between two sound tags.

    Attributes:
        start, end: Its positions.
        first_ms, last_ms: The timestamps of the tags before and after it.
    """

    start: int
    end: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The result of `scan`.

    Attributes:
        valid: Whether the file starts as an FLV file. If not, all other fields are those of an empty file.
        size: The size of the file, bytes.
        end: The end of the last complete tag, including its size field.
        rest_bytes: The number of bytes behind it, without zeros at the end of the file.
        gaps: The damaged parts before it.
        header_flags: The flags in the file header: 4 audio, 1 video.
        has_audio, has_video: Whether there are such tags, other than empty ones.
        first_ms, last_ms: The timestamps of the earliest and the latest frame; 0 without frames.
        duration_ms: The duration of all frames. The last frame is assumed to last as long as the one before.
        keyframes, sequence_header: As in `KeyframeIndex`, at most `DEFAULT_INDEX_ENTRIES`.
        metadata_position: The position of the first onMetaData tag; None without one.
        metadata_bytes: The size of its payload.
        metadata_tag: The whole tag; empty if it is larger than 1 MiB.
        metadata: The scalars that could be parsed from it.
        audio, video: The configuration of the first audio and video track.
        audio_tags, video_tags, script_tags, other_tags: The number of tags by type.
        frames: The number of audio and video tags with frames instead of headers.
        bad_sizes: The position and the correct value of each wrong size field that is followed by a valid tag.
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
    rest_bytes: int = 0
    gaps: tuple[Gap, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether the file consists of tags up to its end, each followed by its size."""
        return self.valid and self.end == self.size and not self.bad_sizes and not self.gaps

    @property
    def gap_bytes(self) -> int:
        """The size of all gaps."""
        return sum(gap.end - gap.start for gap in self.gaps)

    @property
    def gap_ms(self) -> int:
        """The time in all gaps."""
        return sum(max(0, gap.last_ms - gap.first_ms) for gap in self.gaps)


# Plain integers, because a file may have millions of tags.
_FRAME, _KEYFRAME, _HEADER, _OTHER = int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.HEADER), int(Kind.OTHER)
_FRAMES = (_FRAME, _KEYFRAME, int(Kind.TRACK_KEYFRAME))


class _Window:
    """A part of a file in memory, which moves forward.

    Attributes:
        data: The part.
        start: Its position.
        size: The size of the file, bytes.
    """

    __slots__ = ("_file", "_window_bytes", "data", "size", "start")

    def __init__(self, file: BinaryIO, window_bytes: int) -> None:
        self._file = file
        self._window_bytes = window_bytes
        self.start = 0
        self.data = b""
        self.size = file.seek(0, os.SEEK_END)

    def reach(self, position: int, length: int) -> int:
        """Load *length* bytes from *position* on into ``data``.

        Returns:
            Their offset in ``data``; -1 if the file is too short. Offsets of earlier calls become invalid.
        """
        offset = position - self.start
        if offset >= 0 and offset + length <= len(self.data):
            return offset
        if position + length > self.size:
            return -1
        self._file.seek(position)
        self.start = position
        self.data = self._file.read(max(length, self._window_bytes))
        return 0 if len(self.data) >= length else -1

    def copy(self, position: int, length: int) -> bytes:
        """Return *length* bytes from *position* on; empty if the file is too short."""
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
        self.gaps: list[Gap] = []
        self.rest_bytes = 0
        self.time_ms = 0
        self._candidates = _MAX_CANDIDATES

    def run(self, position: int) -> int:
        """Read the tags from *position* on; return the end of the last valid one."""
        while True:
            position = self._run(position)
            resumed = self._resume(position)
            if resumed < 0:
                return position
            _, time = TAG_HEADER.unpack(self.window.copy(resumed, TAG_HEADER.size))
            self.gaps.append(Gap(position, resumed, self.time_ms, _timestamp(time)))
            position = resumed

    def _resume(self, position: int) -> int:
        """Return the position of the next valid tag that leaves room for a tag in front of it; -1 without one."""
        window = self.window
        end = position
        position += TAG_OVERHEAD
        while window.size - position >= TAG_OVERHEAD and len(self.gaps) < _MAX_GAPS:
            offset = window.reach(position, TAG_OVERHEAD)
            if offset < 0:
                break
            # To look at a candidate may move the window.
            data, start = window.data, window.start
            for found in _CANDIDATE.finditer(data, offset):
                if not self._candidates:
                    self.rest_bytes = window.size - end
                    return -1
                self._candidates -= 1
                if self._has_tag(start + found.start()):
                    return start + found.start()
            content = len(data.rstrip(b"\0"))
            if content > offset:
                self.rest_bytes = start + content - end
            position = start + len(data) - _CANDIDATE_BYTES + 1
        if len(self.gaps) == _MAX_GAPS or window.size - end < 2 * TAG_OVERHEAD:
            self.rest_bytes = window.size - end
        return -1

    def _run(self, position: int) -> int:
        """Read the tags from *position* on, up to the first damaged one; return its position."""
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
                # Only the size may be wrong: then a valid tag follows. Zeros are no valid tag.
                if len(self.bad_sizes) == _MAX_BAD_SIZES or not self._has_tag(behind + 4):
                    return position
                self.bad_sizes.append((behind, length + TAG_HEADER_SIZE))
            self.time_ms = _timestamp(time)
            self._tag(position, word >> 24, self.time_ms, prefix, length)
            position = behind + 4

    def _has_size(self, position: int, length: int) -> bool:
        """Return whether the size of a tag with *length* bytes of payload is at *position*."""
        offset = self.window.reach(position, 4)
        return offset >= 0 and _U32.unpack_from(self.window.data, offset)[0] == length + TAG_HEADER_SIZE

    def _has_tag(self, position: int) -> bool:
        """Return whether there is a tag at *position* with its size after it."""
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
        """Return the part of a payload that may contain a configuration."""
        if len(prefix) == length:
            return prefix
        return self.window.copy(position + TAG_HEADER_SIZE, min(length, MAX_RECORD_BYTES))

    def result(self, end: int, header_flags: int) -> ScanResult:
        """Return the result."""
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
            rest_bytes=self.rest_bytes,
            gaps=tuple(self.gaps),
        )


def _timestamp(field: int) -> int:
    """Return the timestamp of a tag's header, whose highest byte comes last."""
    return field >> 8 | (field & 0xFF) << 24


def scan(file: BinaryIO, window_bytes: int = DEFAULT_WINDOW_BYTES) -> ScanResult:
    """Scan an FLV file that may be truncated anywhere, end with zeros, or not be FLV at all.

    Each tag must be followed by its size. Behind a tag without it, the scan continues at the next audio, video or script tag
    that has its size: what is in between is a gap. Behind the last such tag everything is ignored, because the last blocks
    before a crash may not have been written. Tags of unknown types are valid if their size is. At most a few MiB of memory are
    used for any file.

    Args:
        file: A binary, seekable file. Its position changes.
        window_bytes: The size of each read. Between two reads it computes, for about 8 ms with 256 KiB of audio.

    Raises:
        OSError: The file can't be read.
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
    """The changes that repair a file, for `apply_plan`.

    Attributes:
        truncate_to: The size to truncate the file to, bytes.
        patches: Pairs of file position and bytes to write there.
    """

    truncate_to: int
    patches: tuple[tuple[int, bytes], ...]


def repair_plan(result: ScanResult) -> RepairPlan | None:
    """Return the changes that repair a file.

    The repaired file ends after its last valid tag, its gaps are script tags that players ignore, its header has the right
    flags, and its metadata the right duration, size and index. The metadata tag keeps its size: in files of other programs,
    without padding, there is no space for an index, and some members are replaced.

    Returns:
        None if the file does not start as FLV. A plan without any effect for a file that is already repaired.
    """
    if not result.valid:
        return None
    patches = [(position, _U32.pack(size)) for position, size in result.bad_sizes]
    for gap in result.gaps:
        patches.extend(_filler(gap))
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


_FILLER = b"\2\0\x09rtmpdLost\5"
"""The beginning of a script tag in a gap: a name, and null. What follows is ignored."""


def _filler(gap: Gap) -> Iterator[tuple[int, bytes]]:
    """Yield the patches that make tags of a gap: position and bytes of each header and each size field."""
    position = gap.start
    while position < gap.end:
        left = gap.end - position
        size = min(left, tag_size(0xFFFFFF))
        if 0 < left - size < TAG_OVERHEAD:
            size -= TAG_OVERHEAD
        length = size - TAG_OVERHEAD
        time = (gap.first_ms << 8 | gap.first_ms >> 24) & 0xFFFFFFFF
        body = _FILLER if length >= len(_FILLER) else bytes(length)
        yield position, TAG_HEADER.pack(SCRIPT << 24 | length, time) + bytes(TAG_HEADER_SIZE - TAG_HEADER.size) + body
        position += size
        yield position - 4, _U32.pack(length + TAG_HEADER_SIZE)


def apply_plan(file: BinaryIO, plan: RepairPlan) -> None:
    """Apply the changes. If that is interrupted, another `scan` gives a plan for the remaining ones.

    Args:
        file: A binary, seekable file, open for reading and writing. It is neither flushed nor synced.

    Raises:
        OSError: The file can't be written.
    """
    file.truncate(plan.truncate_to)
    for position, data in plan.patches:
        file.seek(position)
        file.write(data)
