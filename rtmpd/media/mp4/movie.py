"""An MP4 or MOV file: its first video and audio track as RTMP messages, in the order and with the timestamps of a publisher.

Edit lists (ISO/IEC 14496-12, section 8.6.6) keep audio and video in sync: a delay before the first sample, and a start within
the media, as the delay of B-frames or the priming of an audio encoder. More than one part of the media is not supported.
"""

from __future__ import annotations

import heapq
import os
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from rtmpd.errors import Mp4Error
from rtmpd.media.flv import AUDIO, MAX_PAYLOAD_BYTES, VIDEO
from rtmpd.media.mp4.boxes import LONGEST_HEADER_BYTES, Box, Content, name, read_header
from rtmpd.media.mp4.codecs import SUPPORTED, Codec, audio_codec, video_codec
from rtmpd.media.mp4.samples import Fragments, Sample, read_defaults, table_samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FIRST_BOXES = frozenset(
    (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"uuid", b"pdin", b"moof", b"prfl")
)
_MAX_MOOV_BYTES = 32 << 20
_MAX_TOP_BOXES = 10_000
_MAX_TRACKS = 64
_MAX_EDITS = 1024
_KINDS = {b"vide": VIDEO, b"soun": AUDIO}
_NO_MEDIA = -1  # the media time of an empty edit
_DURATION_LIMIT_MS = 1 << 31


class Message(NamedTuple):
    """An RTMP message.

    Attributes:
        type_id: `AUDIO` or `VIDEO`.
        timestamp_ms: The decoding time; that of the earliest message is 0.
        payload: The payload.
    """

    type_id: int
    timestamp_ms: int
    payload: bytes


@dataclass(slots=True)
class _Track:
    """A track that is read.

    Attributes:
        codec: Its codec.
        timescale: Ticks per second.
        samples: Its samples, which fragments add to.
        edits: Its edit list: duration in ticks of the movie, and media time in ticks of the track.
        description: The number of the sample description that `codec` is of.
    """

    codec: Codec
    timescale: int
    samples: list[Sample]
    edits: list[tuple[int, int]]
    description: int


class Movie:
    """A file that `read_movie` has read: its tables, not its media.

    Attributes:
        headers: The payloads of the sequence headers, each with its type id.
        has_video: Whether there is video.
    """

    __slots__ = ("_base", "_file", "_tracks", "has_video", "headers")

    def __init__(self, file: BinaryIO, tracks: Sequence[_Track]) -> None:
        self._file = file
        self._tracks = tracks
        self._base = min(Fraction(track.samples[0].time, track.timescale) for track in tracks)
        self.has_video = any(track.codec.type_id == VIDEO for track in tracks)
        self.headers = [(track.codec.type_id, track.codec.header) for track in tracks if track.codec.header]

    def messages(self) -> Iterator[Message]:
        """Yield the frames in the order of their timestamps, video before audio of the same time. Samples are read one by one.

        Raises:
            Mp4Error: A frame is too large for a message, or has an impossible composition time.
            OSError: The file can't be read.
        """
        return heapq.merge(*map(self._track_messages, self._tracks), key=attrgetter("timestamp_ms"))

    def ends_ms(self) -> dict[int, int]:
        """Return the end of the last frame of each track, by type id."""
        ends = {}
        for track in self._tracks:
            last = track.samples[-1]
            ends[track.codec.type_id] = self._milliseconds(last.time + last.duration, track.timescale)
        return ends

    def _milliseconds(self, ticks: int, timescale: int) -> int:
        """Return the time since the earliest sample, rounded to the nearest."""
        base = self._base
        numerator = (ticks * base.denominator - base.numerator * timescale) * 2000
        denominator = timescale * base.denominator * 2
        return (numerator + denominator // 2) // denominator

    def _track_messages(self, track: _Track) -> Iterator[Message]:
        codec, timescale, file = track.codec, track.timescale, self._file
        for sample in track.samples:
            if not sample.size:
                continue
            time_ms = self._milliseconds(sample.time, timescale)
            if time_ms >= _DURATION_LIMIT_MS:
                raise Mp4Error("damaged, or longer than 24 days")
            file.seek(sample.position)
            data = file.read(sample.size)
            if len(data) < sample.size:
                raise Mp4Error("truncated while it was read")
            composition_ms = self._milliseconds(sample.time + sample.offset, timescale) - time_ms
            payload = codec.wrap(data, sample.sync, composition_ms)
            if len(payload) > MAX_PAYLOAD_BYTES:
                raise Mp4Error(f"a frame of {len(payload)} bytes, an RTMP message has at most {MAX_PAYLOAD_BYTES}")
            yield Message(codec.type_id, time_ms, payload)


def is_mp4(head: bytes) -> bool:
    """Return whether the first 12 bytes of a file are those of an MP4 or MOV file."""
    return head[4:8] in _FIRST_BOXES


def read_movie(file: BinaryIO) -> Movie:
    """Read the tables of a file.

    Args:
        file: A binary, seekable file, which must stay open for `Movie.messages`. At most some 100 MB of memory are used.

    Raises:
        Mp4Error: The file is damaged, or has no track that is supported.
        OSError: The file can't be read.
    """
    file_bytes = file.seek(0, os.SEEK_END)
    tracks: dict[int, _Track] | None = None
    fragments: Fragments | None = None
    for box in _top_boxes(file, file_bytes):
        if box.kind == b"moov" and tracks is None:
            moov = _load(file, box)
            tracks = _read_tracks(moov, file_bytes)
            extension = moov.find(b"mvex")
            if extension is not None:
                defaults = dict(read_defaults(each) for each in extension.boxes() if each.box.kind == b"trex")
                samples = {number: track.samples for number, track in tracks.items()}
                fragments = Fragments(samples, defaults, file_bytes)
        elif box.kind == b"moof":
            if fragments is None:
                raise Mp4Error("damaged: a fragment (moof) without a moov and mvex before it")
            fragments.add(_load(file, box), box.start)
    if tracks is None:
        raise Mp4Error("box moov is missing: the file is truncated or still being written")
    found = [track for track in tracks.values() if track.samples]
    if not found:
        raise Mp4Error("the file has no audio and no video samples")
    for track in found:
        track.samples = _edit(track, fragmented=fragments is not None)
    return Movie(file, sorted(found, key=lambda track: track.codec.type_id != VIDEO))


def _top_boxes(file: BinaryIO, file_bytes: int) -> Iterator[Box]:
    position = 0
    for _ in range(_MAX_TOP_BOXES):
        if position + 8 > file_bytes:
            return
        file.seek(position)
        box = read_header(file.read(LONGEST_HEADER_BYTES), position, file_bytes)
        yield box
        position = box.end
    raise Mp4Error(f"the file has more than {_MAX_TOP_BOXES} boxes")


def _load(file: BinaryIO, box: Box) -> Content:
    size = box.end - box.start
    if size > _MAX_MOOV_BYTES:
        raise Mp4Error(f"box {name(box.kind)} has {size} bytes, at most {_MAX_MOOV_BYTES} are read")
    file.seek(box.start)
    data = file.read(size)
    if len(data) < size:
        raise Mp4Error("truncated while it was read")
    return Content(data, Box(box.kind, 0, box.content - box.start, size))


def _read_tracks(moov: Content, file_bytes: int) -> dict[int, _Track]:
    """Return the first supported video track and the first supported audio track, by track id."""
    movie_timescale = _timescale(moov.need(b"mvhd"))
    tracks: dict[int, _Track] = {}
    unsupported: dict[int, bytes] = {}
    kinds: set[int] = set()
    for number, trak in enumerate(each for each in moov.boxes() if each.box.kind == b"trak"):
        if number == _MAX_TRACKS:
            raise Mp4Error(f"the file has more than {_MAX_TRACKS} tracks")
        kind = _KINDS.get(trak.need(b"mdia", b"hdlr").take(8, 4))
        if kind is None or kind in kinds:
            continue
        entries = list(trak.need(b"mdia", b"minf", b"stbl", b"stsd").boxes(8))
        if not entries:
            raise Mp4Error("damaged: a track without a sample description")
        # Of several sample descriptions the first one that is used counts; a track that uses two is refused below.
        codec = (video_codec if kind == VIDEO else audio_codec)(entries[0])
        if codec is None:
            unsupported.setdefault(kind, entries[0].box.kind)
            continue
        track_id, track = _read_track(trak, kind, entries, movie_timescale, file_bytes)
        tracks[track_id] = track
        kinds.add(kind)
    for kind, entry in unsupported.items():
        if kind not in kinds:
            word = "video" if kind == VIDEO else "audio"
            raise Mp4Error(f"{word} codec {name(entry)} is not supported: expected {SUPPORTED}")
    if not tracks:
        raise Mp4Error("the file has no audio and no video track")
    return tracks


def _read_track(
    trak: Content, kind: int, entries: Sequence[Content], movie_timescale: int, file_bytes: int
) -> tuple[int, _Track]:
    """Return the id of a track, and the track."""
    head = trak.need(b"tkhd")
    track_id = head.number(20 if head.version else 12, 4)
    timescale = _timescale(trak.need(b"mdia", b"mdhd"))
    samples, description = table_samples(trak.need(b"mdia", b"minf", b"stbl"), file_bytes)
    if not 1 <= description <= len(entries):
        raise Mp4Error(f"damaged: a track uses sample description {description} of {len(entries)}")
    entry = entries[description - 1]
    codec = (video_codec if kind == VIDEO else audio_codec)(entry)
    if codec is None:
        raise Mp4Error(f"codec {name(entry.box.kind)} is not supported: expected {SUPPORTED}")
    edits = [
        (duration * timescale // movie_timescale, media_time)
        for duration, media_time in _read_edits(trak.find(b"edts", b"elst"))
    ]
    return track_id, _Track(codec, timescale, samples, edits, description)


def _timescale(box: Content) -> int:
    """Return the timescale in an mvhd or mdhd box."""
    timescale = box.number(20 if box.version else 12, 4)
    if not timescale:
        raise Mp4Error(f"damaged: box {name(box.box.kind)} has a timescale of 0")
    return timescale


def _read_edits(box: Content | None) -> list[tuple[int, int]]:
    if box is None:
        return []
    return [(entry[0], entry[1]) for entry in box.table(4, ">QqI" if box.version else ">IiI", _MAX_EDITS)]


def _edit(track: _Track, *, fragmented: bool) -> list[Sample]:
    """Apply the edit list of a track, and shift decoding times so that no composition offset is negative.

    Video before the start of an edit stays from the keyframe on that is needed to decode it, and audio for a second: a decoder
    needs both. What begins after its end is left out; in a fragmented file, the end may be that of the first fragment.
    """
    samples = track.samples
    delay, start, duration = 0, 0, 0
    parts = [edit for edit in track.edits if edit[1] != _NO_MEDIA]
    if parts:
        if len(parts) > 1:
            raise Mp4Error("an edit list with several parts of the media is not supported")
        duration, start = parts[0]
        before = track.edits[: track.edits.index(parts[0])]
        delay = sum(length for length, _ in before)
    shift = -min(0, min(sample.offset for sample in samples))
    first, last = _range(samples, start, start + duration if duration and not fragmented else None, track)
    move = delay - start - shift
    return [sample._replace(time=sample.time + move, offset=sample.offset + shift) for sample in samples[first:last]]


def _range(samples: list[Sample], start: int, end: int | None, track: _Track) -> tuple[int, int]:
    """Return the range of samples that an edit from *start* to *end* needs."""
    if track.codec.type_id == AUDIO:
        wanted = start - track.timescale
        first = next((index for index, each in enumerate(samples) if each.time + each.duration > wanted), 0)
    else:
        first = 0
        for index, each in enumerate(samples):
            if each.time > start:
                break
            if each.sync and each.time + each.offset <= start:
                first = index
    last = len(samples)
    while end is not None and last > first + 1 and samples[last - 1].time + samples[last - 1].offset >= end:
        last -= 1
    return first, last
