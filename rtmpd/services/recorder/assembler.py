"""Assembles files from the tags of a stream: where a file begins and ends, and with which headers. Pure.

A file begins at a keyframe, or with audio if there is no video, and its timestamps start there. It starts with the sequence
headers in force. Another file continues at the next keyframe once it is long or large enough, or if sequence headers have
changed: with other headers, many players do not continue within a file. Its content is a segment, in one of the formats; a
segment whose format can't carry the stream is replaced by one of FLV, which can carry all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rtmpd.live.headers import MAX_HEADER_BYTES, HeaderCache
from rtmpd.live.stats import Stats
from rtmpd.media import flv
from rtmpd.media.flv_metadata import DEFAULT_INDEX_ENTRIES
from rtmpd.media.fmp4.files import DEFAULT_ENTRIES
from rtmpd.media.tags import MAX_RECORD_BYTES, AudioPacket, Kind, VideoPacket
from rtmpd.services.recorder.mp4_segment import Mp4Segment
from rtmpd.services.recorder.segments import HALF, FlvSegment

if TYPE_CHECKING:
    from rtmpd.live.framing import Headers, Message
    from rtmpd.services.recorder.segments import Segment

_FRAME, _KEYFRAME, _HEADER, _METADATA = int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.HEADER), int(Kind.METADATA)

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
_MOST_INDEX_ENTRIES = 32768
"""Of MP4, which has no index at its beginning if there are more fragments: twelve hours of keyframes, or nine of audio."""
_LEAST_FRAGMENT_BYTES = 96
"""No fragment of MP4 is as small: a file of a limited size needs no room for more, and the room is not larger than the file."""

_VIDEO_EX, _AUDIO_EX = 0x80, 9
"""Mark an Enhanced RTMP header: a bit of the first byte, and an audio codec id."""
_VIDEO_WITH_FOUR_CC = (VideoPacket.SEQUENCE_START, VideoPacket.CODED_FRAMES, VideoPacket.CODED_FRAMES_X)
_AUDIO_WITH_FOUR_CC = (AudioPacket.SEQUENCE_START, AudioPacket.CODED_FRAMES)


class SegmentLimits(NamedTuple):
    """The duration and size at which another file continues; 0: no limit."""

    duration_s: float = 0.0
    size_bytes: int = 0


class Piece(NamedTuple):
    """The next work: append *data* to the file of *segment*, apply *patches*, and close it if this is its *last* piece."""

    segment: Segment
    data: bytes
    last: bool
    patches: tuple[tuple[int, bytes], ...] = ()


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
        record_format: ``flv`` or ``mp4``.

    Attributes:
        limits, record_format: See above; may be replaced at any time. A format holds for files that begin later.
        segment: The file in progress; None before its first frame.
    """

    def __init__(self, limits: SegmentLimits, record_format: str = "flv") -> None:
        self.limits = limits
        self.record_format = record_format
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
            segment.add(type_id, tag.data, tag.timestamp)
        if segment is not None and segment.refused:
            self.segment = segment.as_flv(self._stats)

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
        elif self._is_due(segment, type_id, timestamp) and self._is_cut(type_id, kind, timestamp):
            segment.cut = True
            changed = self._changed
            self._close(segment)
            if changed:
                self._changes += 1
                self._describe_afresh()
            self._read_frame(type_id, kind, timestamp, data)
            segment = self._begin(timestamp)
        elif self._count == 1 and (timestamp - segment.base) & HALF:
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
        if segment.refused:
            self.segment = segment.as_flv(self._stats)

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
        return self._headers_changed or self._codec_changed or (self.segment is not None and self.segment.outgrown)

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
            return _KEYFRAME_WAIT_MS <= waited_ms < HALF
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
                if segment.refused:
                    segment = self.segment = segment.as_flv(self._stats)

    def _take_held(self) -> list[tuple[int, bytes]]:
        held, self._held, self._held_bytes = self._held, [], 0
        return held

    def _begin(self, timestamp: int) -> Segment:
        self._count += 1
        is_mp4 = self.record_format == "mp4"
        entries = DEFAULT_ENTRIES if is_mp4 else DEFAULT_INDEX_ENTRIES
        if self.limits.duration_s:
            wanted = max(_LEAST_INDEX_ENTRIES, int(self.limits.duration_s * _INDEX_PER_S))
            entries = min(wanted, _MOST_INDEX_ENTRIES if is_mp4 else entries)
        if is_mp4 and self.limits.size_bytes:
            entries = min(entries, self.limits.size_bytes // _LEAST_FRAGMENT_BYTES)
        self._begun_with = self._headers.sequence_headers
        self._written = dict(self._begun_with)
        self._headers_changed = self._codec_changed = False
        self._unwritten = frozenset()
        beginning = (self._metadata, self._headers.current, entries)
        if is_mp4:
            self.segment = Mp4Segment(self._count, timestamp, *beginning, self._begun_with)
        else:
            self.segment = FlvSegment(self._count, timestamp, self._stats, *beginning)
        return self.segment

    def _is_due(self, segment: Segment, type_id: int, timestamp: int) -> bool:
        if (self._headers_changed or self._codec_changed or segment.outgrown) and self._changes < _CHANGES_LIMIT:
            return True
        if type_id == flv.VIDEO and not segment.admits_video:
            return True
        duration_ms, size_bytes = self.limits.duration_s * 1000, self.limits.size_bytes
        time_ms = (timestamp - segment.base) & 0xFFFFFFFF
        return HALF > time_ms >= (duration_ms or _LONGEST_MS) or 0 < size_bytes <= segment.size

    def _is_cut(self, type_id: int, kind: int, timestamp: int) -> bool:
        """Return whether a file may begin with this frame."""
        if type_id == flv.VIDEO:
            return kind == _KEYFRAME
        if self._last_video is None:
            return True
        return HALF > (timestamp - self._last_video) & 0xFFFFFFFF > _KEYFRAME_WAIT_MS

    def _close(self, segment: Segment) -> None:
        segment.finish()
        if segment.refused:
            segment = segment.as_flv(self._stats)
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

    def flush(self, *, at_once: bool) -> None:
        """Have frames written that wait for the next ones, see `Segment.flush`."""
        segment = self.segment
        if segment is not None:
            segment.flush(at_once=at_once)
            if segment.refused:
                self.segment = segment.as_flv(self._stats)

    def take(self) -> list[Piece]:
        """Return the pieces to write, in order."""
        self._changes = 0
        pieces = [Piece(segment, segment.take(), last=True, patches=segment.take_patches()) for segment in self._done]
        self._done.clear()
        segment = self.segment
        if segment is not None and segment.pending:
            pieces.append(Piece(segment, segment.take(), last=False, patches=segment.take_patches()))
        return pieces
