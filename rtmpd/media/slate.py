"""Slates: the media of an FLV or MP4 file, ready to be sent in a loop on a stream without a publisher. Pure but for one read.

A slate with video begins with a keyframe, so that each round can be decoded by itself.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from rtmpd.errors import Mp4Error, SlateError
from rtmpd.media.audio_codecs import AudioConfig, refine_audio
from rtmpd.media.description import describe_audio, describe_video
from rtmpd.media.flv import AUDIO, FILE_HEADER_SIZE, SCRIPT, TAG_HEADER, TAG_HEADER_SIZE, TAG_OVERHEAD, VIDEO
from rtmpd.media.metadata import made_metadata
from rtmpd.media.mp4.boxes import LONGEST_HEADER_BYTES
from rtmpd.media.mp4.movie import is_mp4, read_movie
from rtmpd.media.tags import Kind, VideoPacket, audio_info, video_info
from rtmpd.media.video_codecs import VideoConfig, refine_video
from rtmpd.util.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rtmpd.media.tags import TagInfo

DEFAULT_LIMIT_BYTES = 64 << 20
MAX_MESSAGES = 250_000
"""The number of frames of a slate: an object for each takes more memory than a small payload."""

SHORTEST_MS = 200
LONGEST_MS = 24 * 3600 * 1000

USUAL_RATES = (*map(Fraction, (24, 25, 30, 48, 50, 60)), *(Fraction(rate * 1000, 1001) for rate in (24, 30, 60)))
"""Frame rates of cameras and encoders."""

_FRAMES = (Kind.FRAME, Kind.KEYFRAME, Kind.TRACK_KEYFRAME)
_KEYFRAMES = (Kind.KEYFRAME, Kind.TRACK_KEYFRAME)
_HEADERS = (Kind.HEADER, Kind.METADATA)
_NEED_HEADERS = ("h264", "hevc", "vvc", "aac")
_KINDS = {AUDIO: "audio", VIDEO: "video"}
_FLV_VERSION = b"FLV\1"

_SAMPLE_BYTES, _SAMPLE_FRAMES = 8 << 20, 2000
"""The part of a recording that its parameters are read from: the beginning of an FLV file, frames of an MP4 file."""


class SlateMessage(NamedTuple):
    """A frame of a slate.

    Attributes:
        type_id: The type id of the message: 8 for audio, 9 for video.
        timestamp_ms: The time since the beginning of the round; the first one is 0.
        payload: The payload.
    """

    type_id: int
    timestamp_ms: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Slate:
    """The media of a file.

    Attributes:
        headers: Type id and payload of the messages before the first frame: onMetaData (type 18, without @setDataFrame), then
            the sequence headers and colours of video, then the sequence headers of audio.
        messages: The frames by timestamp, at least one; video is before audio of the same time. The first one is a keyframe,
            or audio if there is no video.
        duration_ms: The duration of a round, which is more than the last timestamp: the next round begins that much later.
        description: Codecs, size, frame rate, duration and bytes, for the log.
        size_bytes: The size of all payloads.
        video: The configuration of the video; None without video.
        audio: The configuration of the audio; None without audio.
        fps: The average frame rate; 0 without video.
    """

    headers: tuple[tuple[int, bytes], ...] = field(repr=False)
    messages: tuple[SlateMessage, ...] = field(repr=False)
    duration_ms: int
    description: str
    size_bytes: int
    video: VideoConfig | None
    audio: AudioConfig | None
    fps: float


def load_slate(source: str | Path | BinaryIO, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Slate:
    """Read a file for a slate. Blocks as long as its disk does, and computes for about 0.1 s for each 10 MB of a usual file.

    Args:
        source: The path of a regular file, or a binary file.
        limit_bytes: The largest size of the file. About twice as much memory is used meanwhile.

    Raises:
        SlateError: The file can't be read, is too large, too short, damaged or of an unsupported form; the message names the
            path, what was expected, and what was found.
    """
    if isinstance(source, (str, os.PathLike)):
        name = f"{os.fspath(source)}: "
        try:
            data = read_file(os.fspath(source), limit_bytes + 1)
        except OSError as error:
            raise SlateError(f"{name}{error.strerror or error}") from error
    else:
        name = ""
        data = source.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise SlateError(f"{name}expected a slate of at most {limit_bytes} bytes (slate_limit_bytes), found a larger file")
    try:
        return _load(data)
    except (SlateError, Mp4Error) as error:
        raise SlateError(f"{name}{error}") from error


def _load(data: bytes) -> Slate:
    media = _Media()
    if data.startswith(_FLV_VERSION):
        for message in _flv_messages(data):
            media.add(*message)
        ends_ms = {type_id: track.end_ms for type_id, track in media.tracks.items() if track.last_ms >= 0}
    elif is_mp4(data[:LONGEST_HEADER_BYTES]):
        movie = read_movie(io.BytesIO(data))
        for header in movie.headers:
            media.add(header[0], 0, header[1])
        for frame in movie.messages():
            media.add(*frame)
        ends_ms = movie.ends_ms()
    else:
        raise SlateError(f"expected an FLV or MP4 file, found {_found(data)}")
    return media.slate(ends_ms)


def _found(data: bytes) -> str:
    return f"one that begins with {data[:8].hex(' ')}" if data else "an empty one"


class Parameters(NamedTuple):
    """What the beginning of a recording is encoded with.

    Attributes:
        video, audio: The configurations; None for a track that is missing.
        fps: The average frame rate; 0 if it is not known.
        reordered: Whether there are B-frames.
    """

    video: VideoConfig | None
    audio: AudioConfig | None
    fps: float
    reordered: bool


def read_parameters(file: BinaryIO) -> Parameters:
    """Read the parameters of an FLV or MP4 recording of any size, from its first frames.

    Raises:
        SlateError, Mp4Error: It is neither, or damaged.
        OSError: The file can't be read.
    """
    media = _Media()
    data = file.read(_SAMPLE_BYTES)
    if data.startswith(_FLV_VERSION):
        for message in _flv_messages(data, complete=False):
            media.add(*message)
    elif is_mp4(data[:LONGEST_HEADER_BYTES]):
        movie = read_movie(file)
        for header in movie.headers:
            media.add(header[0], 0, header[1])
        for frame in islice(movie.messages(), _SAMPLE_FRAMES):
            media.add(*frame)
    else:
        raise SlateError(f"expected an FLV or MP4 file, found {_found(data)}")
    return Parameters(media.video, media.audio, media.fps, media.reordered)


# FLV ----------------------------------------------------------------------------------------------------------------------


def _flv_messages(data: bytes, *, complete: bool = True) -> Iterator[tuple[int, int, bytes]]:
    """Yield type id, timestamp and payload of the audio and video tags of a file.

    Args:
        data: The file.
        complete: Raise if the file ends within a tag; otherwise end before it.

    Raises:
        SlateError: The file is damaged.
    """
    position = int.from_bytes(data[5:9], "big") + 4
    if len(data) < FILE_HEADER_SIZE or position < FILE_HEADER_SIZE:
        raise SlateError("damaged: the header of the FLV file is invalid")
    while position < len(data):
        if position + TAG_OVERHEAD > len(data):
            if complete:
                raise SlateError(f"truncated: the file ends within a tag at byte {position}")
            return
        word, time = TAG_HEADER.unpack_from(data, position)
        type_id, length = word >> 24, word & 0xFFFFFF
        end = position + TAG_HEADER_SIZE + length
        if end + 4 > len(data) and not complete:
            return
        if int.from_bytes(data[end : end + 4], "big") != length + TAG_HEADER_SIZE or end + 4 > len(data):
            raise SlateError(f"damaged or truncated: a tag at byte {position} is not followed by its size")
        if type_id in _KINDS:
            yield type_id, time >> 8 | (time & 0xFF) << 24, data[position + TAG_HEADER_SIZE : end]
        elif type_id != SCRIPT:
            raise SlateError(f"expected audio, video and script tags, found one of type {type_id} at byte {position}")
        position = end + 4


# Both ---------------------------------------------------------------------------------------------------------------------


class _Track:
    """The times of the audio or video of a file.

    Attributes:
        ids: The track ids of the first message: what is known of a slate is that of its first track.
        times: The timestamps of the frames of that track.
        last_ms: The timestamp of the last frame of all tracks; -1 before the first.
    """

    __slots__ = ("ids", "last_ms", "times")

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids
        self.times: list[int] = []
        self.last_ms = -1

    @property
    def end_ms(self) -> int:
        """The end of the last frame of an FLV file, which has no durations: it lasts as long as the average one, rounded up.

        A single frame is assumed to last a millisecond.
        """
        times = self.times
        average_ms = -(-(times[-1] - times[0]) // (len(times) - 1)) if len(times) > 1 else 0
        return self.last_ms + max(1, average_ms)


class _Media:
    """Collects the messages of a file.

    Attributes:
        tracks: The tracks by type id.
        video, audio: The configurations.
        reordered: Whether a video frame has a composition time other than 0: there are B-frames.
    """

    def __init__(self) -> None:
        self.tracks: dict[int, _Track] = {}
        self.video: VideoConfig | None = None
        self.audio: AudioConfig | None = None
        self.reordered = False
        self._headers: dict[tuple[object, ...], tuple[int, bytes]] = {}
        self._frames: list[SlateMessage] = []
        self._has_keyframe = False

    def add(self, type_id: int, timestamp_ms: int, payload: bytes) -> None:
        """Add a message. What is neither a frame nor a header, such as the end of a sequence, is left out."""
        info = video_info(payload) if type_id == VIDEO else audio_info(payload)
        if info.kind not in _HEADERS and info.kind not in _FRAMES:
            return
        track = self.tracks.get(type_id)
        if track is None:
            track = self.tracks[type_id] = _Track(info.tracks)
        if info.kind in _HEADERS:
            self._add_header(type_id, timestamp_ms, payload, info)
        else:
            self._add_frame(type_id, timestamp_ms, payload, info)
        if info.tracks != track.ids:
            return
        if type_id == AUDIO:
            if info.kind is Kind.HEADER or self.audio is None:
                self.audio = refine_audio(self.audio, payload)
        elif info.kind is not Kind.FRAME:
            self.video = refine_video(self.video, payload)

    def _add_header(self, type_id: int, timestamp_ms: int, payload: bytes, info: TagInfo) -> None:
        key = (type_id, info.kind, info.packet_type, info.tracks)
        if self.tracks[type_id].last_ms >= 0 and self._headers.get(key, (type_id, payload)) != (type_id, payload):
            raise SlateError(f"expected one codec configuration, found another one of {_KINDS[type_id]} at {timestamp_ms} ms")
        self._headers[key] = (type_id, payload)

    def _add_frame(self, type_id: int, timestamp_ms: int, payload: bytes, info: TagInfo) -> None:
        kind, track = _KINDS[type_id], self.tracks[type_id]
        if track.last_ms < 0:
            if not info.codec or info.codec.startswith(("0x", "id ")):
                raise SlateError(f"{kind} codec {info.codec or 'without a name'} is not supported")
            if info.codec in _NEED_HEADERS and not any(header[0] == type_id for header in self._headers.values()):
                raise SlateError(f"expected a sequence header before the first frame of {info.codec}, found none")
        elif timestamp_ms < track.last_ms:
            raise SlateError(f"damaged: the timestamps of {kind} go back from {track.last_ms} to {timestamp_ms} ms")
        track.last_ms = timestamp_ms
        if info.tracks == track.ids:
            track.times.append(timestamp_ms)
        if len(self._frames) == MAX_MESSAGES:
            raise SlateError(f"expected at most {MAX_MESSAGES} frames, found more")
        self._has_keyframe = self._has_keyframe or info.kind in _KEYFRAMES
        self.reordered = self.reordered or (type_id == VIDEO and _is_reordered(payload, info))
        self._frames.append(SlateMessage(type_id, timestamp_ms, payload))

    @property
    def fps(self) -> float:
        """The average frame rate; 0 if it is not known."""
        times = self.tracks[VIDEO].times if VIDEO in self.tracks else []
        if len(times) < 2 or times[-1] == times[0]:
            return 0.0
        frames, span_ms = len(times) - 1, times[-1] - times[0]
        usual = min(USUAL_RATES, key=lambda rate: abs(frames / rate * 1000 - span_ms))
        # Timestamps are whole milliseconds.
        return float(usual) if abs(frames / usual * 1000 - span_ms) <= 1 else frames / span_ms * 1000

    def slate(self, ends_ms: dict[int, int]) -> Slate:
        """Return the slate. *ends_ms* are the ends of the last frames by type id."""
        if not self._frames:
            raise SlateError("expected audio or video frames, found none")
        has_video = VIDEO in self.tracks and self.tracks[VIDEO].last_ms >= 0
        # Sorting keeps the order of equal ones, and so of each track.
        frames = sorted(self._frames, key=lambda message: (message.timestamp_ms, message.type_id != VIDEO))
        first = 0
        if has_video:
            if not self._has_keyframe:
                raise SlateError("expected a keyframe, found none")
            first = next(index for index, message in enumerate(frames) if _is_keyframe(message))
        start_ms = frames[first].timestamp_ms
        duration_ms = max(max(ends_ms.values()), frames[-1].timestamp_ms + 1) - start_ms
        if not SHORTEST_MS <= duration_ms <= LONGEST_MS:
            raise SlateError(f"expected a duration from {SHORTEST_MS / 1000:g} s to 24 h, found {duration_ms / 1000:g} s")
        messages = tuple(message._replace(timestamp_ms=message.timestamp_ms - start_ms) for message in frames[first:])
        return self._made(messages, duration_ms)

    def _made(self, messages: tuple[SlateMessage, ...], duration_ms: int) -> Slate:
        present = {message.type_id for message in messages}
        video = self.video if VIDEO in present else None
        audio = self.audio if AUDIO in present else None
        media_bytes = sum(len(message.payload) for message in messages)
        fps = self.fps if video else 0.0
        bitrate = media_bytes * 8000 / duration_ms
        metadata = made_metadata(video, audio, fps=fps, bitrate=bitrate)
        found = [header for header in self._headers.values() if header[0] in present]
        headers = [header for header in found if header[0] == VIDEO] + [header for header in found if header[0] == AUDIO]
        if metadata is not None:
            headers.insert(0, (SCRIPT, metadata))
        size_bytes = media_bytes + sum(len(payload) for _, payload in headers)
        parts = []
        if VIDEO in present:
            rate = f" {fps:.4g} fps" if fps else ""
            parts.append(f"video {describe_video(video) if video else 'unknown'}{rate}")
        if AUDIO in present:
            parts.append(f"audio {describe_audio(audio) if audio else 'unknown'}")
        parts.append(f"{duration_ms / 1000:g} s, {bitrate / 1000:.0f} kbit/s, {size_bytes} bytes")
        return Slate(tuple(headers), messages, duration_ms, ", ".join(parts), size_bytes, video, audio, fps)


def _is_keyframe(message: SlateMessage) -> bool:
    return message.type_id == VIDEO and video_info(message.payload).kind in _KEYFRAMES


def _is_reordered(payload: bytes, info: TagInfo) -> bool:
    """Return whether a frame of H.264 or HEVC has a composition time other than 0."""
    if info.codec not in ("h264", "hevc") or info.packet_type != VideoPacket.CODED_FRAMES or info.multitrack:
        return False
    offset = info.body_offset if info.four_cc else info.body_offset - 3
    return payload[offset : offset + 3] != b"\0\0\0"
