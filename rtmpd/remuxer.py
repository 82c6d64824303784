"""Makes a fragmented MP4 file of an FLV recording, for the command ``rtmpd --remux``. It blocks; the server does not use it.

The recording is read twice: for its tracks, which the file begins with, and for its frames. At most a fragment is in memory.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from rtmpd.errors import Mp4Error, RemuxError
from rtmpd.media.flv import AUDIO, FILE_HEADER_SIZE, SCRIPT, TAG_HEADER, TAG_HEADER_SIZE, TAG_OVERHEAD, VIDEO
from rtmpd.media.fmp4.files import MAX_ENTRIES, FragmentIndex, head_size, render_head
from rtmpd.media.fmp4.fragmenter import Fragmenter
from rtmpd.media.fmp4.movie import init_segment, mime_type, require_tracks
from rtmpd.media.fmp4.tracks import Tracks
from rtmpd.media.tags import Kind, audio_kind, video_kind
from rtmpd.media.timestamps import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rtmpd.media.fmp4.codecs import Track
    from rtmpd.media.fmp4.fragmenter import Fragment

SUFFIXES: Final = (".mp4", ".m4a", ".m4v")

_FRAGMENT_MS = 1000
"""The shortest fragment: it ends before a keyframe, or, without video, anywhere."""
_LONGEST_FRAGMENT_MS = 10_000
_LARGEST_FRAGMENT_BYTES = 16 << 20
_SPARE_ENTRIES = 64
_PREFIX_BYTES = 64
"""The part of a frame that its kind is read from."""
_BEGIN = b"FLV\1"
_FRAMES = (int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.TRACK_KEYFRAME))
_KEYFRAMES = (int(Kind.KEYFRAME), int(Kind.TRACK_KEYFRAME))
_HEADERS = (int(Kind.HEADER), int(Kind.METADATA))
_KINDS = {VIDEO: "video", AUDIO: "audio"}


@dataclass(frozen=True, slots=True)
class Remuxed:
    """The new file.

    Attributes:
        description: Its MIME type, duration and size.
        notes: What of the recording is not in it.
    """

    description: str
    notes: tuple[str, ...]


def remux(recording: str, out: str) -> Remuxed:
    """Make a fragmented MP4 file of an FLV recording, with indexes of its fragments (sidx and mfra).

    Args:
        recording: The path of the recording.
        out: The path of the new file, which ends in ``.mp4``, ``.m4a`` or ``.m4v``. A file there is replaced when all has
            succeeded.

    Raises:
        RemuxError: The recording is damaged or can't be an MP4 file, or a file can't be read or written.
    """
    target = Path(out).absolute()
    if target.suffix.lower() not in SUFFIXES:
        raise RemuxError(f"{out}: expected a name that ends in {', '.join(SUFFIXES)}")
    if not Path(recording).is_file():
        raise RemuxError(f"{recording}: expected a recording, found no such file")
    try:
        if target.exists() and target.samefile(recording):
            raise RemuxError(f"{out}: is the recording itself")
        with Path(recording).open("rb") as source:
            contents = _Contents(source)
            # Beside the target: a file is renamed within its file system only.
            with tempfile.TemporaryDirectory(prefix=".rtmpd-remux-", dir=target.parent) as directory:
                made = Path(directory, "remuxed")
                with made.open("wb") as file:
                    remuxed = _write(source, contents, file)
                    file.flush()
                    os.fsync(file.fileno())
                made.replace(target)
    except Mp4Error as error:
        raise RemuxError(f"{recording}: {error}") from None
    except OSError as error:
        raise RemuxError(f"{error.filename or out}: {error.strerror or error}") from None
    return remuxed


# The recording ------------------------------------------------------------------------------------------------------------


class _Tag(NamedTuple):
    """A tag; *payload* is its beginning or all of it, *position* that of its payload."""

    type_id: int
    timestamp: int
    payload: bytes
    position: int
    length: int


def _tags(file: BinaryIO, limit_bytes: int | None) -> Iterator[_Tag]:
    """Yield the tags of a file; one that is not complete ends it.

    Args:
        file: The file.
        limit_bytes: How much of each payload is read; None: all.

    Raises:
        Mp4Error: The file is damaged.
    """
    file.seek(0)
    head = file.read(FILE_HEADER_SIZE)
    position = int.from_bytes(head[5:9], "big") + 4
    if head[:4] != _BEGIN or position < FILE_HEADER_SIZE:
        raise Mp4Error("expected an FLV file")
    size = os.fstat(file.fileno()).st_size
    while position + TAG_OVERHEAD <= size:
        file.seek(position)
        head = file.read(TAG_HEADER_SIZE)
        if len(head) < TAG_HEADER_SIZE:
            return
        word, time = TAG_HEADER.unpack(head)
        type_id, length = word >> 24, word & 0xFFFFFF
        end = position + length + TAG_OVERHEAD
        if type_id not in (AUDIO, VIDEO, SCRIPT):
            raise Mp4Error(f"damaged: expected an audio, video or script tag at byte {position}, found type {type_id}")
        if end > size:
            return
        payload = file.read(length if limit_bytes is None else min(length, limit_bytes))
        yield _Tag(type_id, time >> 8 | (time & 0xFF) << 24, payload, position + TAG_HEADER_SIZE, length)
        position = end


class _Contents:
    """What a recording contains.

    Args:
        file: The recording.

    Attributes:
        tracks: Its tracks.
        begin_ms: The timestamp of its first frame, on a timeline without jumps.
        duration_s: About how long it lasts.
        end: The end of the last complete tag, bytes.

    Raises:
        Mp4Error: The file is damaged, has no track for MP4, or changes one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.tracks = tracks = Tracks()
        self.end = 0
        timeline = Timeline()
        first: dict[int, int] = {}
        stamp = 0
        for tag in _tags(file, _PREFIX_BYTES):
            self.end = tag.position + tag.length + 4
            payload, type_id = tag.payload, tag.type_id
            if type_id == SCRIPT:
                if not first:
                    tracks.take(SCRIPT, _whole(file, tag))
                continue
            kind = _kind(type_id, payload)
            if kind in _FRAMES:
                stamp = timeline.stamp(timeline.video if type_id == VIDEO else timeline.audio, tag.timestamp)
                if not tracks.settled(type_id):
                    tracks.take(type_id, _whole(file, tag))
                first.setdefault(type_id, stamp)
            elif kind in _HEADERS and tracks.take(type_id, _whole(file, tag)) and kind == Kind.HEADER and type_id in first:
                raise Mp4Error(
                    f"the parameters of {_KINDS[type_id]} change at {tag.timestamp / 1000:.3f} s, "
                    f"an MP4 file of several kinds of {_KINDS[type_id]} is not supported"
                )
        self.begin_ms = min(first.values(), default=0)
        self.duration_s = ((stamp - self.begin_ms) & 0xFFFFFFFF) // 1000
        require_tracks(tracks)


def _kind(type_id: int, payload: bytes) -> int:
    return video_kind(payload) if type_id == VIDEO else audio_kind(payload)


def _whole(file: BinaryIO, tag: _Tag) -> bytes:
    if len(tag.payload) == tag.length:
        return tag.payload
    file.seek(tag.position)
    return file.read(tag.length)


# The new file -------------------------------------------------------------------------------------------------------------


def _write(source: BinaryIO, contents: _Contents, file: BinaryIO) -> Remuxed:
    tracks = contents.tracks
    fragmenter, timeline = Fragmenter(tracks), Timeline()
    output = _Output(file, tracks.tracks, min(contents.duration_s + _SPARE_ENTRIES, MAX_ENTRIES))
    # The track that decides where a fragment ends: the times of the other one may be far off.
    leading = VIDEO if tracks.video is not None else AUDIO
    cut_ms = 0
    for tag in _tags(source, None):
        type_id, payload = tag.type_id, tag.payload
        kind = Kind.OTHER if type_id == SCRIPT else _kind(type_id, payload)
        if kind not in _FRAMES:
            continue
        stamp = timeline.stamp(timeline.video if type_id == VIDEO else timeline.audio, tag.timestamp)
        time_ms = (stamp - contents.begin_ms) & 0xFFFFFFFF
        fragmenter.add(type_id, time_ms, payload)
        large = fragmenter.held_bytes >= _LARGEST_FRAGMENT_BYTES
        if type_id == leading:
            lasted_ms = time_ms - cut_ms
            ends = kind in _KEYFRAMES or leading == AUDIO
            if large or lasted_ms >= _LONGEST_FRAGMENT_MS or (ends and lasted_ms >= _FRAGMENT_MS):
                output.add(fragmenter.cut())
                cut_ms = time_ms
        elif large:
            output.add(fragmenter.cut())
    output.add(fragmenter.finish())
    size, duration_ms = output.finish()
    notes = [f"not in the new file: {problem}" for problem in tracks.problems.values()]
    rest_bytes = os.fstat(source.fileno()).st_size - contents.end
    if rest_bytes:
        notes.append(f"the recording is truncated within a tag: its last {rest_bytes} bytes are not in the new file")
    description = f"{mime_type(tracks.tracks)}, {duration_ms / 1000:.3f} s, {size} bytes"
    return Remuxed(description, tuple(notes))


class _Output:
    """The new file: its head, the fragments, and their indexes.

    Args:
        file: The file.
        tracks: Its tracks.
        entries: The capacity of the index at its beginning: the number of fragments at most.
    """

    def __init__(self, file: BinaryIO, tracks: Sequence[Track], entries: int) -> None:
        self._file = file
        self._init = init_segment(tracks)
        self._head_size = self._position = head_size(self._init, entries)
        self._index = FragmentIndex([(track.track_id, track.timescale) for track in tracks], entries)
        self._write_head(0, b"")

    def _write_head(self, duration_ms: int, sidx: bytes) -> None:
        head = render_head(self._init, self._head_size, duration_ms, sidx, mark=b"")
        assert head is not None
        self._file.write(head)

    def add(self, fragment: Fragment | None) -> None:
        """Write a fragment."""
        if fragment is not None:
            self._index.add(fragment, self._position)
            self._file.write(fragment.data)
            self._position += len(fragment.data)

    def finish(self) -> tuple[int, int]:
        """Write the indexes and the duration; return the size of the file in bytes and the duration in milliseconds."""
        end, duration_ms = self._position, self._index.end_ms
        size = end + self._file.write(self._index.mfra(end))
        self._file.seek(0)
        self._write_head(duration_ms, self._index.sidx(end, duration_ms))
        return size, duration_ms
