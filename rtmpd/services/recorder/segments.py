"""The content of one file of a recording, as FLV: tags behind metadata that have room for the keyframe index. Pure.

`Segment` is what files of all formats have in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rtmpd.media import flv
from rtmpd.media.flv_metadata import FrameTimes, KeyframeIndex, MetadataBlock, read_metadata
from rtmpd.media.tags import Kind

if TYPE_CHECKING:
    from rtmpd.live.framing import Headers
    from rtmpd.live.stats import Stats

HALF = 0x8000_0000
_KEYFRAME = int(Kind.KEYFRAME)


class Written(NamedTuple):
    """The part of a file that is on the disk: its size, duration, last timestamp, and audio and video frames."""

    size_bytes: int = 0
    duration_ms: int = 0
    last_ms: int = 0
    frames: int = 0


class Segment:
    """The content of one file.

    Attributes:
        number: The number of the file within the recording, from 1.
        base: The timestamp of the stream at which the file begins.
        cut: Whether another file continues where this one ends.
        written: What of it is on the disk.
        suffix: The extension of the file.
        left_out: The tracks that the format has no place for.
        instead_of: Why the file is FLV although another format was asked for; empty: it is not so.
        outgrown: Whether the stream now has frames that the file can't hold: they are left out until another file begins.
        admits_video: Whether video that begins now belongs into the file.
        refused: Why the stream can't be recorded in this format, see `as_flv`; empty: it can, or too little is known yet.
    """

    suffix = flv.SUFFIX
    outgrown = False
    admits_video = True
    refused = ""

    def __init__(self, number: int, base: int) -> None:
        self.number = number
        self.base = base
        self.cut = False
        self.written = Written()
        self.left_out: list[str] = []
        self.instead_of = ""

    @property
    def size(self) -> int:
        """The size in bytes, including all that waits to be written."""
        raise NotImplementedError

    def header(self, type_id: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add a sequence header or video metadata, as a tag."""
        raise NotImplementedError

    def frame(self, type_id: int, kind: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add a frame, as a tag."""
        raise NotImplementedError

    def add(self, type_id: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add a tag that is neither a frame nor a sequence header."""
        raise NotImplementedError

    def flush(self, *, at_once: bool) -> None:
        """Make all frames `pending` if none has come for some calls: the next one may take long to come.

        Args:
            at_once: Do not wait for that.
        """

    def finish(self) -> None:
        """Make all frames `pending`."""

    def as_flv(self, stats: Stats) -> Segment:
        """Return the same content as FLV; only of a segment that is `refused`."""
        raise NotImplementedError

    @property
    def pending(self) -> bool:
        """Whether there are bytes that have not been taken yet."""
        raise NotImplementedError

    def take(self) -> bytes:
        """Return and clear the pending bytes."""
        raise NotImplementedError

    def created(self, now_s: float) -> tuple[tuple[int, bytes], ...]:
        """Note that the file was created, at a time in seconds since 1970. Return positions and bytes, as `take_patches`."""
        return ()

    def take_patches(self) -> tuple[tuple[int, bytes], ...]:
        """Return positions and bytes that replace what is there, once the pending bytes are written."""
        return ()

    def mark_written(self) -> None:
        """Record that all bytes taken are on the disk. The file is valid up to here, whatever happens later."""
        raise NotImplementedError

    def patches(self) -> list[tuple[int, bytes]]:
        """Return the positions and bytes that complete the file on the disk, in this order."""
        raise NotImplementedError


class FlvSegment(Segment):
    """The content of an FLV file.

    Args:
        number, base: See `Segment`.
        stats: Describes the tracks.
        metadata: The payload of the publisher's onMetaData; empty: none.
        headers: The sequence headers that the file begins with.
        index_entries: The capacity of its keyframe index.
    """

    def __init__(self, number: int, base: int, stats: Stats, metadata: bytes, headers: Headers, index_entries: int) -> None:
        super().__init__(number, base)
        self._data = bytearray()
        self._frames = 0
        self._stats = stats
        self._has_audio = self._has_video = False
        self._audio, self._video = FrameTimes(), FrameTimes()
        self._index = KeyframeIndex(index_entries)
        tracks = [type_id for type_id, _ in headers.items]
        # An estimate for a file that is never closed; `patches` corrects it.
        has_audio = flv.AUDIO in tracks or stats.audio is not None
        has_video = flv.VIDEO in tracks or stats.video is not None
        self._block = MetadataBlock(
            read_metadata(metadata),
            has_audio=has_audio,
            has_video=has_video,
            audio=stats.audio,
            video=stats.video,
            index_entries=index_entries,
        )
        self._data += flv.file_header(has_audio, has_video) + self._block.render()
        self._size = len(self._data)
        for type_id, payload in headers.items:
            if type_id != flv.SCRIPT:
                self.header(type_id, flv.tag(type_id, 0, payload), base)

    @property
    def size(self) -> int:
        """Return the size in bytes, including all that waits to be written."""
        return self._size

    def header(self, type_id: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add a sequence header or video metadata."""
        video = type_id == flv.VIDEO
        self._has_video |= video
        self._has_audio |= not video
        self._index.header(self._time(timestamp), self._size, video=video)
        self.add(type_id, data, timestamp)

    def frame(self, type_id: int, kind: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add a frame."""
        time_ms = self._time(timestamp)
        self._frames += 1
        if type_id == flv.VIDEO:
            self._has_video = True
            self._video.frame(time_ms)
            if kind == _KEYFRAME:
                self._index.keyframe(time_ms, self._size)
        else:
            self._has_audio = True
            self._audio.frame(time_ms)
            self._index.audio(time_ms, self._size)
        self.add(type_id, data, timestamp)

    def add(self, type_id: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add another tag."""
        time_ms = self._time(timestamp)
        at = len(self._data) + 4
        self._data += data
        self._size += len(data)
        self._data[at : at + 4] = ((time_ms & 0xFFFFFF) << 8 | time_ms >> 24).to_bytes(4, "big")

    def _time(self, timestamp: int) -> int:
        """Return the timestamp in the file; what is earlier than the file becomes 0."""
        time_ms = (timestamp - self.base) & 0xFFFFFFFF
        return time_ms if time_ms < HALF else 0

    @property
    def pending(self) -> bool:
        """Whether there are bytes that have not been taken yet."""
        return bool(self._data)

    def take(self) -> bytes:
        """Return and clear the pending bytes."""
        data = bytes(self._data)
        self._data.clear()
        return data

    def mark_written(self) -> None:
        """Record that all bytes taken are on the disk."""
        audio, video = self._audio, self._video
        duration_ms, last_ms = max(0, audio.end_ms, video.end_ms), max(0, audio.last_ms, video.last_ms)
        self.written = Written(self._size - len(self._data), duration_ms, last_ms, self._frames)

    def patches(self) -> list[tuple[int, bytes]]:
        """Return the flags, the metadata and the keyframe index."""
        size, duration_ms, last_ms, _ = self.written
        block = self._block
        block.has_audio, block.has_video = self._has_audio, self._has_video
        block.audio, block.video = self._stats.audio or block.audio, self._stats.video or block.video
        header = self._index.sequence_header
        rendered = block.render(
            duration_s=duration_ms / 1000,
            filesize_bytes=size,
            last_timestamp_ms=last_ms,
            keyframes=[entry for entry in self._index.entries if entry[1] < size],
            sequence_header=header if header is not None and header[1] < size else None,
        )
        flags = flv.header_flags(self._has_audio, self._has_video)
        return [(flv.FLAGS_OFFSET, bytes((flags,))), (flv.FILE_HEADER_SIZE, rendered)]
