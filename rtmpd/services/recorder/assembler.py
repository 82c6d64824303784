"""Assembles FLV files from the tags of a stream: where a file begins and ends, its header, and its patches. Pure.

A file begins at a keyframe, or with audio if there is no video, and its timestamps start there. It starts with metadata that
have room for the keyframe index, and the sequence headers in force. Another file continues at the next keyframe once it is long
or large enough, or if sequence headers have changed: with other headers, many players do not continue within a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rtmpd.live.headers import MAX_HEADER_BYTES, HeaderCache
from rtmpd.live.stats import Stats
from rtmpd.media import flv
from rtmpd.media.flv_metadata import (
    DEFAULT_INDEX_ENTRIES,
    FrameTimes,
    KeyframeIndex,
    MetadataBlock,
    read_metadata,
)
from rtmpd.media.tags import MAX_RECORD_BYTES, AudioPacket, Kind, VideoPacket

if TYPE_CHECKING:
    from rtmpd.live.framing import Headers, Message

_FRAME, _KEYFRAME, _HEADER, _METADATA = int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.HEADER), int(Kind.METADATA)
_HALF = 0x8000_0000

_AUDIO_ALONE_MS = 1000
"""How long audio is held back to wait for a first video message. Without one, the file begins with the audio held back."""
_KEYFRAME_WAIT_MS = 10_000
"""A file begins without a keyframe if none arrives for this long: some encoders send only one. If no video arrives for this
long, another file may begin at an audio frame."""
_HELD_LIMIT_BYTES = 4 << 20
_LONGEST_MS = 20 * 86_400_000
"""The longest file: many players treat timestamps as signed, which limits them to 24.8 days."""
_CHANGES_LIMIT = 4
"""How many files may end between two calls of `Assembler.take` since their headers have changed: a publisher that changes them
with each keyframe must not cost a file each."""
_INDEX_PER_S = 2
_LEAST_INDEX_ENTRIES = 128

_VIDEO_EX, _AUDIO_EX = 0x80, 9
"""Mark an Enhanced RTMP header: a bit of the first byte, and an audio codec id."""
_VIDEO_WITH_FOUR_CC = (VideoPacket.SEQUENCE_START, VideoPacket.CODED_FRAMES, VideoPacket.CODED_FRAMES_X)
_AUDIO_WITH_FOUR_CC = (AudioPacket.SEQUENCE_START, AudioPacket.CODED_FRAMES)


class SegmentLimits(NamedTuple):
    """The duration and size at which another file continues; 0: no limit."""

    duration_s: float = 0.0
    size_bytes: int = 0


class Piece(NamedTuple):
    """The next work: write *data* to the file of *segment*, and close that if this is its *last* piece."""

    segment: Segment
    data: bytes
    last: bool


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
        base: The timestamp of the stream that is 0 in the file.
        size: The size in bytes, including `pending`.
        pending: The bytes that have not been taken yet.
        cut: Whether another file continues where this one ends.
        written: What of it is on the disk.
    """

    def __init__(self, number: int, base: int, stats: Stats, metadata: bytes, headers: Headers, index_entries: int) -> None:
        self.number = number
        self.base = base
        self.pending = bytearray()
        self.cut = False
        self.written = Written()
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
        self.pending += flv.file_header(has_audio, has_video) + self._block.render()
        self.size = len(self.pending)
        for type_id, payload in headers.items:
            if type_id != flv.SCRIPT:
                self.header(type_id, flv.tag(type_id, 0, payload), base)

    def header(self, type_id: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add a sequence header."""
        video = type_id == flv.VIDEO
        self._has_video |= video
        self._has_audio |= not video
        self._index.header(self._time(timestamp), self.size, video=video)
        self.add(data, timestamp)

    def frame(self, type_id: int, kind: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add a frame."""
        time_ms = self._time(timestamp)
        self._frames += 1
        if type_id == flv.VIDEO:
            self._has_video = True
            self._video.frame(time_ms)
            if kind == _KEYFRAME:
                self._index.keyframe(time_ms, self.size)
        else:
            self._has_audio = True
            self._audio.frame(time_ms)
            self._index.audio(time_ms, self.size)
        self.add(data, timestamp)

    def add(self, data: bytes | memoryview, timestamp: int) -> None:
        """Add a tag that is neither a frame nor a sequence header."""
        time_ms = self._time(timestamp)
        at = len(self.pending) + 4
        self.pending += data
        self.size += len(data)
        self.pending[at : at + 4] = ((time_ms & 0xFFFFFF) << 8 | time_ms >> 24).to_bytes(4, "big")

    def _time(self, timestamp: int) -> int:
        """Return the timestamp in the file; what is earlier than the file becomes 0."""
        time_ms = (timestamp - self.base) & 0xFFFFFFFF
        return time_ms if time_ms < _HALF else 0

    def take(self) -> bytes:
        """Return and clear the pending bytes."""
        data = bytes(self.pending)
        self.pending.clear()
        return data

    def mark_written(self) -> None:
        """Record that all bytes taken are on the disk. The file is valid up to here, whatever happens later."""
        audio, video = self._audio, self._video
        duration_ms, last_ms = max(0, audio.end_ms, video.end_ms), max(0, audio.last_ms, video.last_ms)
        self.written = Written(self.size - len(self.pending), duration_ms, last_ms, self._frames)

    def patches(self) -> list[tuple[int, bytes]]:
        """Return the positions and bytes that complete the file on the disk: its flags, metadata and keyframe index."""
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


def _new_stats() -> Stats:
    return Stats(lambda found: None)


def _codec_of(type_id: int, data: memoryview) -> int | bytes | None:
    """Return the codec id, or the FourCC, of a tag without multitrack; None if it is not known."""
    first = data[flv.TAG_HEADER_SIZE]
    if type_id == flv.VIDEO:
        if first < _VIDEO_EX:
            return first & 0x0F
        single = first & 0x0F in _VIDEO_WITH_FOUR_CC
    else:
        if first >> 4 != _AUDIO_EX:
            return first >> 4
        single = first & 0x0F in _AUDIO_WITH_FOUR_CC
    return bytes(data[flv.TAG_HEADER_SIZE + 1 : flv.TAG_HEADER_SIZE + 5]) if single else None


class Assembler:
    """Assembles the files of one recording.

    Args:
        limits: The limits of a file.

    Attributes:
        limits: See above; may be replaced at any time.
        segment: The file in progress; None before its first frame.
    """

    def __init__(self, limits: SegmentLimits) -> None:
        self.limits = limits
        self.segment: Segment | None = None
        self._stats = _new_stats()
        self._count = 0
        self._done: list[Segment] = []
        self._headers = HeaderCache()
        self._metadata = b""
        self._has_video = False
        self._held: list[tuple[int, bytes]] = []
        self._held_bytes = 0
        self._waiting_since: int | None = None
        self._last_video: int | None = None
        # Of the file in progress, by track: the headers that it has begun with, and those that were last written to it.
        self._begun_with: dict[str, tuple[int, bytes]] = {}
        self._written: dict[str, tuple[int, bytes]] = {}
        self._codecs: dict[int, int | bytes] = {}  # of its frames, by type
        self._usual: set[int] = set()  # type and first byte of frames with these codecs: they need no second look
        self._headers_changed = self._codec_changed = False
        self._unwritten: frozenset[int] = frozenset()  # the types with headers in force that are not in the file
        self._changes = 0  # since the last call of `take`

    # Input -------------------------------------------------------------------------------------------------------------

    def feed(self, tag: Message) -> None:
        """Add the next tag of the stream."""
        type_id, kind = tag.type_id, tag.kind
        if kind in (_FRAME, _KEYFRAME):
            self._frame(type_id, kind, tag.timestamp, tag.data)
            return
        segment = self.segment
        if kind in (_HEADER, _METADATA):
            payload = bytes(tag.data[flv.TAG_HEADER_SIZE : -4])
            self._header(type_id, payload)
            if segment is not None and type_id != flv.SCRIPT:
                self._segment_header(segment, tag, payload)
        elif segment is not None and len(tag.data) > flv.TAG_OVERHEAD:
            segment.add(tag.data, tag.timestamp)

    def _header(self, type_id: int, payload: bytes) -> None:
        """Put a header in force. The file in progress, if there is one, may never get it: another one may begin before that."""
        if type_id == flv.SCRIPT:
            # A file has its own onMetaData, made from the newest one when it begins.
            if len(payload) <= MAX_HEADER_BYTES:
                self._metadata = payload
            return
        if type_id == flv.VIDEO:
            self._note_video()
            self._headers.add_video(payload)
        else:
            self._headers.add_audio(payload)
        if self.segment is None:
            self._read_header(type_id, payload)

    def _segment_header(self, segment: Segment, tag: Message, payload: bytes) -> None:
        """Add a header to the file in progress, unless it begins another one."""
        type_id = tag.type_id
        if tag.kind == _HEADER:
            self._compare()
            self._note_codec(type_id, _codec_of(type_id, tag.data))
            if self._changed:
                return
        self._read_header(type_id, payload)
        self._write_header(segment, (type_id, payload), tag.data, tag.timestamp)

    def _read_header(self, type_id: int, payload: bytes) -> None:
        if type_id == flv.VIDEO:
            self._stats.video_header(payload)
        elif type_id == flv.AUDIO:
            self._stats.audio_header(payload)

    def _note_video(self) -> None:
        if not self._has_video:
            self._has_video = True
            self._take_held()

    def _frame(self, type_id: int, kind: int, timestamp: int, data: memoryview) -> None:
        segment = self.segment
        mark = type_id << 8 | data[flv.TAG_HEADER_SIZE]
        codec = None if mark in self._usual else _codec_of(type_id, data)
        if segment is None:
            self._read_frame(type_id, kind, timestamp, data)
            if not self._may_begin(type_id, kind, timestamp, data):
                return
            segment = self.segment
        elif codec is not None:
            self._note_codec(type_id, codec)
        if segment is None:
            segment = self._begin(timestamp)
        elif self._is_due(segment, timestamp) and self._is_cut(type_id, kind, timestamp):
            segment.cut = True
            self._close(segment)
            if self._changed:
                self._changes += 1
                self._describe_afresh()
            self._read_frame(type_id, kind, timestamp, data)
            segment = self._begin(timestamp)
        elif self._count == 1 and (timestamp - segment.base) & _HALF:
            # The frame is older than the first picture: players do not get it either.
            return
        else:
            if type_id in self._unwritten:
                self._write_headers(segment, type_id, timestamp)
            self._read_frame(type_id, kind, timestamp, data)
        if type_id == flv.VIDEO:
            self._last_video = timestamp
        if codec is not None and self._codecs.setdefault(type_id, codec) == codec and isinstance(codec, int):
            self._usual.add(mark)
        segment.frame(type_id, kind, data, timestamp)

    def _read_frame(self, type_id: int, kind: int, timestamp: int, data: memoryview) -> None:
        """Read the codec of a frame, if no header has said enough."""
        stats = self._stats
        if type_id == flv.AUDIO:
            if stats.asks_audio and not self._changed:
                stats.audio_frame(bytes(data[flv.TAG_HEADER_SIZE : -4][:MAX_RECORD_BYTES]))
        elif kind == _KEYFRAME and (stats.video is None or not stats.video.width) and not self._changed:
            stats.keyframe(timestamp, bytes(data[flv.TAG_HEADER_SIZE : -4][:MAX_RECORD_BYTES]), 0.0)

    # Changed codecs ----------------------------------------------------------------------------------------------------

    @property
    def _changed(self) -> bool:
        """Whether a codec, or its parameters, are not those of the file in progress."""
        return self._headers_changed or self._codec_changed

    def _compare(self) -> None:
        """Compare the headers in force to those of the file in progress. A track that the file does not have is no change."""
        found = self._headers.sequence_headers
        begun_with, written = self._begun_with, self._written
        self._headers_changed = any(begun_with.get(track, item) != item for track, item in found.items())
        self._unwritten = frozenset(item[0] for track, item in found.items() if written.get(track) != item)

    def _note_codec(self, type_id: int, codec: int | bytes | None) -> None:
        if codec is not None and self._codecs.get(type_id, codec) != codec:
            self._codec_changed = True

    def _write_header(self, segment: Segment, header: tuple[int, bytes], data: bytes | memoryview, timestamp: int) -> None:
        """Add a header, as a tag, to the file in progress."""
        segment.header(header[0], data, timestamp)
        for track, item in self._headers.sequence_headers.items():
            if item == header:
                self._written[track] = item
                self._begun_with.setdefault(track, item)

    def _write_headers(self, segment: Segment, type_id: int, timestamp: int) -> None:
        """Add the missing headers of a type to the file in progress: its frames follow, and the file can't end yet."""
        items = self._headers.sequence_headers.items()
        for header in dict.fromkeys(item for track, item in items if item[0] == type_id and self._written.get(track) != item):
            if not self._changed:
                self._read_header(*header)
            self._write_header(segment, header, flv.tag(type_id, 0, header[1]), timestamp)
        self._unwritten -= {type_id}

    def _describe_afresh(self) -> None:
        """Describe the tracks by the headers in force, from now on."""
        if self._codec_changed:
            self._forget_codecs()
        self._headers_changed = self._codec_changed = False
        self._stats = _new_stats()
        for type_id, payload in self._headers.current.items:
            self._read_header(type_id, payload)

    def _forget_codecs(self) -> None:
        self._codecs.clear()
        self._usual.clear()

    # The beginning of files --------------------------------------------------------------------------------------------

    def _may_begin(self, type_id: int, kind: int, timestamp: int, data: memoryview) -> bool:
        if type_id == flv.VIDEO:
            self._note_video()
        if kind == _KEYFRAME:
            return True
        if self._waiting_since is None:
            self._waiting_since = timestamp
        waited_ms = (timestamp - self._waiting_since) & 0xFFFFFFFF
        if self._has_video:
            return _KEYFRAME_WAIT_MS <= waited_ms < _HALF
        if waited_ms >= _AUDIO_ALONE_MS or self._held_bytes > _HELD_LIMIT_BYTES:
            self._release_held()
            return True
        self._held.append((timestamp, bytes(data)))
        self._held_bytes += len(data)
        return False

    def _release_held(self) -> None:
        """Begin a file with the audio that was held back."""
        held = self._take_held()
        if held:
            segment = self._begin(held[0][0])
            for timestamp, data in held:
                segment.frame(flv.AUDIO, _FRAME, data, timestamp)

    def _take_held(self) -> list[tuple[int, bytes]]:
        held, self._held, self._held_bytes = self._held, [], 0
        return held

    def _begin(self, timestamp: int) -> Segment:
        self._count += 1
        entries = DEFAULT_INDEX_ENTRIES
        if self.limits.duration_s:
            entries = min(entries, max(_LEAST_INDEX_ENTRIES, int(self.limits.duration_s * _INDEX_PER_S)))
        self._begun_with = self._headers.sequence_headers
        self._written = dict(self._begun_with)
        self._headers_changed = self._codec_changed = False
        self._unwritten = frozenset()
        self.segment = Segment(self._count, timestamp, self._stats, self._metadata, self._headers.current, entries)
        return self.segment

    def _is_due(self, segment: Segment, timestamp: int) -> bool:
        if (self._headers_changed or self._codec_changed) and self._changes < _CHANGES_LIMIT:
            return True
        duration_ms, size_bytes = self.limits.duration_s * 1000, self.limits.size_bytes
        time_ms = (timestamp - segment.base) & 0xFFFFFFFF
        return _HALF > time_ms >= (duration_ms or _LONGEST_MS) or 0 < size_bytes <= segment.size

    def _is_cut(self, type_id: int, kind: int, timestamp: int) -> bool:
        """Return whether a file may begin with this frame."""
        if type_id == flv.VIDEO:
            return kind == _KEYFRAME
        if self._last_video is None:
            return True
        return _HALF > (timestamp - self._last_video) & 0xFFFFFFFF > _KEYFRAME_WAIT_MS

    def _close(self, segment: Segment) -> None:
        self._done.append(segment)
        self.segment = None

    # Output ------------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """End the recording: audio that was held back becomes a file of its own, and the last file is closed."""
        if self.segment is None and not self._has_video:
            self._release_held()
        if self.segment is not None:
            self._close(self.segment)

    def abandon(self) -> None:
        """Discard everything that was not taken, after a failure to write."""
        self._done.clear()
        self.segment = None

    def restart(self, headers: Headers) -> None:
        """Start to read at the next tag, with these headers in force: another file begins at the next keyframe."""
        self._waiting_since = None
        self._take_held()
        self.replace_headers(headers)

    def replace_headers(self, headers: Headers) -> None:
        """Put the headers of another source in force. A track that it does not have is in no file that begins later."""
        self._headers = HeaderCache()
        if self.segment is None:
            self._stats = _new_stats()
            self._forget_codecs()
        for type_id, payload in headers.items:
            self._header(type_id, payload)
        if self.segment is not None:
            self._compare()

    def take(self) -> list[Piece]:
        """Return the pieces to write, in order."""
        self._changes = 0
        pieces = [Piece(segment, segment.take(), last=True) for segment in self._done]
        self._done.clear()
        if self.segment is not None and self.segment.pending:
            pieces.append(Piece(self.segment, self.segment.take(), last=False))
        return pieces
