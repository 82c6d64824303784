"""The onMetaData tag of an FLV recording, and the keyframe index in it. No I/O.

`KeyframeIndex` collects seek points, `FrameTimes` the duration; `MetadataBlock` renders the tag, which is written first and
overwritten at the end.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from rtmpd.errors import AmfError, LimitExceeded, LocalProtocolError
from rtmpd.media.audio_codecs import AudioConfig
from rtmpd.media.flv import MAX_PAYLOAD_BYTES, SCRIPT, tag, tag_size
from rtmpd.media.video_codecs import VideoConfig
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import AmfLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEFAULT_INDEX_ENTRIES = 4096

METADATA_NAME = b"\2\0\x0aonMetaData"
"""The start of the payload of a metadata tag, in AMF0."""

_U32 = struct.Struct(">I")
_U16 = struct.Struct(">H")
_DOUBLE = struct.Struct(">d")


# Keyframe index -----------------------------------------------------------------------------------------------------------

_AUDIO_STEP_MS = 1000


class KeyframeIndex:
    """The seek points of a recording: its video keyframes, or audio frames about a second apart while there are none.

    Memory is bounded: above the capacity, every second entry is dropped, and from then on only every second seek point is
    added, later every fourth, and so on. The first entry always stays.

    Args:
        capacity: The highest number of entries, 1 or more.

    Attributes:
        entries: Pairs of timestamp in milliseconds and file position of the tag, ascending.
    """

    __slots__ = ("_audio_header", "_capacity", "_has_video", "_next_audio_ms", "_seen", "_stride", "_video_header", "entries")

    def __init__(self, capacity: int = DEFAULT_INDEX_ENTRIES) -> None:
        self.entries: list[tuple[int, int]] = []
        self._capacity = capacity
        self._stride = 1
        self._seen = 0
        self._has_video = False
        self._next_audio_ms = -1
        self._audio_header: tuple[int, int] | None = None
        self._video_header: tuple[int, int] | None = None

    @property
    def sequence_header(self) -> tuple[int, int] | None:
        """The first sequence header of the track of the entries, as an entry."""
        return self._video_header if self._has_video else self._audio_header

    def header(self, timestamp_ms: int, position: int, *, video: bool) -> None:
        """Add a sequence header."""
        if video:
            self._video_header = self._video_header or (timestamp_ms, position)
        else:
            self._audio_header = self._audio_header or (timestamp_ms, position)

    def keyframe(self, timestamp_ms: int, position: int) -> None:
        """Add a video keyframe."""
        if not self._has_video:
            self._has_video = True
            self.entries.clear()
            self._seen, self._stride = 0, 1
        self._add(timestamp_ms, position)

    def audio(self, timestamp_ms: int, position: int) -> None:
        """Add an audio frame."""
        if timestamp_ms >= self._next_audio_ms and not self._has_video:
            self._next_audio_ms = timestamp_ms + _AUDIO_STEP_MS
            self._add(timestamp_ms, position)

    def _add(self, timestamp_ms: int, position: int) -> None:
        seen = self._seen
        self._seen = seen + 1
        if seen % self._stride:
            return
        self.entries.append((timestamp_ms, position))
        if len(self.entries) > self._capacity:
            del self.entries[1::2]
            self._stride *= 2


# Times --------------------------------------------------------------------------------------------------------------------

_MAX_FRAME_MS = 1000  # a longer gap between two frames is not used as the duration of a frame


class FrameTimes:
    """The times of the audio or video frames of a recording.

    Attributes:
        first_ms, last_ms: The first and the latest timestamp; -1 without frames.
        frame_ms: The assumed duration of the last frame: that of the frame before it.
    """

    __slots__ = ("first_ms", "frame_ms", "last_ms")

    def __init__(self) -> None:
        self.first_ms = self.last_ms = -1
        self.frame_ms = 0

    def frame(self, timestamp: int) -> None:
        """Add a frame."""
        step = timestamp - self.last_ms
        if self.first_ms < 0:
            self.first_ms = self.last_ms = timestamp
        elif step > 0:
            self.last_ms = timestamp
            if step <= _MAX_FRAME_MS:
                self.frame_ms = step

    @property
    def end_ms(self) -> int:
        """The end of the last frame."""
        return self.last_ms + self.frame_ms


# Metadata -----------------------------------------------------------------------------------------------------------------

_VIDEO_IDS = {
    "h263": 2,
    "screen": 3,
    "vp6": 4,
    "vp6a": 5,
    "screen2": 6,
    "h264": 7,
    # The FourCC as a number, for Enhanced RTMP. The table is for tracks without messages.
    "hevc": int.from_bytes(b"hvc1", "big"),
    "vvc": int.from_bytes(b"vvc1", "big"),
    "av1": int.from_bytes(b"av01", "big"),
    "vp8": int.from_bytes(b"vp08", "big"),
    "vp9": int.from_bytes(b"vp09", "big"),
}
_AUDIO_IDS = {
    "pcm": 0,
    "adpcm": 1,
    "mp3": 2,
    "pcm_le": 3,
    "nellymoser": 6,
    "g711a": 7,
    "g711u": 8,
    "aac": 10,
    "speex": 11,
    "opus": int.from_bytes(b"Opus", "big"),
    "flac": int.from_bytes(b"fLaC", "big"),
    "ac3": int.from_bytes(b"ac-3", "big"),
    "eac3": int.from_bytes(b"ec-3", "big"),
}

_CREATOR = "rtmpd"

# FFmpeg rejects texts of 1024 bytes or more, and all metadata after them.
_MAX_NAME_BYTES = 64
_MAX_TEXT_BYTES = 512
_MAX_MEMBERS = 64
_MAX_METADATA_BYTES = 4096
_MAX_NUMBER = float(1 << 53)
_METADATA_LIMITS = AmfLimits(depth=8, values=1 << 17, string_bytes=1 << 16, total_bytes=1 << 20)

# Members that only the recorder knows, or that belong to the index. Those of the publisher are dropped.
_RESERVED = frozenset(
    (
        *("duration", "filesize", "datasize", "videosize", "audiosize", "totalframes", "lasttimestamp"),
        *("lastkeyframetimestamp", "lastkeyframelocation", "metadatacreator", "padding", "keyframes", "cuePoints"),
        *("hasVideo", "hasAudio", "hasMetadata", "hasKeyframes", "hasCuePoints", "canSeekToEnd"),
    )
)
_ABOUT_VIDEO = frozenset(("width", "height", "videodatarate", "framerate", "videocodecid"))
_ABOUT_AUDIO = frozenset(
    ("audiodatarate", "audiosamplerate", "audiosamplesize", "audiochannels", "stereo", "audiocodecid", "audiodelay")
)

_NUMBER, _BOOLEAN, _STRING, _OBJECT, _STRICT_ARRAY = b"\0", b"\1", b"\2", b"\3", b"\x0a"  # AMF0 section 2.1
_END = b"\0\0\x09"
_BEGIN = METADATA_NAME + b"\x08"  # the marker of an ECMA array, before its count
_ENTRY_SIZE = 18


def _name(name: str) -> bytes:
    encoded = name.encode()
    return _U16.pack(len(encoded)) + encoded


def _number(number: float) -> bytes:
    return _NUMBER + _DOUBLE.pack(number)


def _numbers(numbers: Iterable[float]) -> bytes:
    """Return a strict array."""
    values = [_number(number) for number in numbers]
    return _STRICT_ARRAY + _U32.pack(len(values)) + b"".join(values)


def _scalar(value: object) -> bytes | None:
    """Encode a number, a boolean or a text that every player accepts; None for other values.

    Dates are excluded because the first versions of flv.js drop all metadata that contain one.
    """
    if isinstance(value, bool):
        return _BOOLEAN + bytes((value,))
    if isinstance(value, (int, float)):
        return _number(value) if abs(value) <= _MAX_NUMBER else None  # the comparison is also false for NaN
    if isinstance(value, str):
        encoded = value.encode() if value.isprintable() else b""
        return _STRING + _U16.pack(len(encoded)) + encoded if 0 < len(encoded) <= _MAX_TEXT_BYTES else None
    return None


def _scalars(metadata: Mapping[str, object]) -> dict[str, bytes]:
    """Encode the members of a publisher's metadata that are kept: scalars, bounded in size and number, in order."""
    kept: dict[str, bytes] = {}
    left = _MAX_METADATA_BYTES
    for name, value in metadata.items():
        if not isinstance(name, str) or name in _RESERVED or not name.isprintable():
            continue
        if not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
            continue
        if name == "framerate" and not (isinstance(value, (int, float)) and 0 < value <= 1000):
            continue
        encoded = _scalar(value)
        if encoded is None or len(_name(name)) + len(encoded) > left:
            continue
        kept[name] = encoded
        left -= len(_name(name)) + len(encoded)
        if len(kept) == _MAX_MEMBERS:
            break
    return kept


def _keyframes(entries: Sequence[tuple[int, int]]) -> bytes:
    """Return the member with the index, including its name, in the form of flvtool2 and its successors."""
    return b"".join(
        (
            _name("keyframes") + _OBJECT,
            _name("filepositions") + _numbers(position for _, position in entries),
            _name("times") + _numbers(_seconds(time) for time, _ in entries),
            _END,
        )
    )


def _seconds(milliseconds: int) -> float:
    """Return seconds that give the same milliseconds when multiplied by 1000 and rounded down, as in FFmpeg and flv.js."""
    seconds = milliseconds / 1000
    return seconds if seconds * 1000 >= milliseconds else math.nextafter(seconds, math.inf)


def _padding(size: int) -> bytes:
    """Return a member of *size* bytes for padding: an array of zeros, and a short text for the rest.

    A single long text would be simpler, but FFmpeg rejects it.
    """
    zeros, blanks = divmod(size - _MIN_PADDING, 9)
    array = _STRICT_ARRAY + _U32.pack(zeros + 1) + bytes(9 * zeros)
    return _name("padding") + array + _STRING + _U16.pack(blanks) + b" " * blanks


_MIN_PADDING = 17
_INDEX_OVERHEAD = len(_keyframes(()))
_FRAME_SIZE = len(_BEGIN) + 4 + len(_END)

MIN_METADATA_BYTES = _FRAME_SIZE + _MIN_PADDING
"""The smallest payload of a `MetadataBlock`."""


class MetadataBlock:
    """The onMetaData tag of a recording. Its size never changes, so that it can be written first and overwritten at the end.

    It describes the tracks, keeps the publisher's scalars, and has a keyframe index in the form that FFmpeg, VLC, flv.js and
    nginx-rtmp read. Unknown members are left out, and unused space is padding.

    Args:
        metadata: The publisher's metadata; every value is checked.
        has_audio, has_video, audio, video: As the attributes.
        index_entries: The number of keyframes to reserve space for; of more, every second, fourth and so on is kept.
        payload_bytes: The size of the payload instead, at least `MIN_METADATA_BYTES`. Members that do not fit are left out.

    Attributes:
        payload_bytes: The size of the tag's payload.
        has_audio, has_video: Whether the recording has such tags. May change between two calls of `render`.
        audio, video: The configuration of the tracks. May change likewise.

    Raises:
        LocalProtocolError: ``payload_bytes`` is too small, or the index too large for a tag.
    """

    __slots__ = ("_publisher", "audio", "has_audio", "has_video", "payload_bytes", "video")

    def __init__(
        self,
        metadata: Mapping[str, object] | None = None,
        *,
        has_audio: bool = True,
        has_video: bool = True,
        audio: AudioConfig | None = None,
        video: VideoConfig | None = None,
        index_entries: int = DEFAULT_INDEX_ENTRIES,
        payload_bytes: int | None = None,
    ) -> None:
        self.has_audio = has_audio
        self.has_video = has_video
        self.audio = audio
        self.video = video
        self._publisher = _scalars(metadata or {})
        if payload_bytes is None:
            members = {**_OWN_MEMBERS, **self._publisher}
            index = _INDEX_OVERHEAD + _ENTRY_SIZE * (index_entries + 1)  # one for the sequence header
            payload_bytes = MIN_METADATA_BYTES + sum(map(_member_size, members.items())) + index
        if not MIN_METADATA_BYTES <= payload_bytes <= MAX_PAYLOAD_BYTES:
            raise LocalProtocolError(f"metadata of {payload_bytes} bytes, expected {MIN_METADATA_BYTES} to {MAX_PAYLOAD_BYTES}")
        self.payload_bytes = payload_bytes

    @property
    def tag_size(self) -> int:
        """The size of the tag, including the size field after it."""
        return tag_size(self.payload_bytes)

    def render(
        self,
        *,
        duration_s: float = 0.0,
        filesize_bytes: int = 0,
        last_timestamp_ms: int = 0,
        keyframes: Sequence[tuple[int, int]] = (),
        sequence_header: tuple[int, int] | None = None,
    ) -> bytes:
        """Return the tag of `tag_size` bytes. The default arguments are those of a recording in progress.

        Args:
            duration_s: The duration. With 0, FFmpeg reads the last tag for it.
            filesize_bytes: The size of the whole file.
            last_timestamp_ms: The timestamp of the last tag.
            keyframes: Pairs of timestamp in milliseconds and file position, ascending. All positions are starts of tags after
                this one: FFmpeg drops an index whose first two entries are not.
            sequence_header: A pair for the first sequence header of the keyframes' track. It becomes the first entry, because
                many writers count it as a keyframe, so that flv.js and mpegts.js skip the first entry of every index and could
                otherwise not seek to the start.
        """
        room = self.payload_bytes - MIN_METADATA_BYTES
        last_keyframe = keyframes[-1] if keyframes else (0, 0)
        numbers = {
            "duration": duration_s,
            "filesize": filesize_bytes,
            "lasttimestamp": last_timestamp_ms / 1000,
            "lastkeyframetimestamp": last_keyframe[0] / 1000,
            "lastkeyframelocation": last_keyframe[1],
        }
        wanted = _own_members(numbers, self.has_audio, self.has_video, self.audio, self.video)
        # Members about a missing track make players wait for it.
        untrue = (frozenset() if self.has_audio else _ABOUT_AUDIO) | (frozenset() if self.has_video else _ABOUT_VIDEO)
        for name, value in self._publisher.items():
            if name not in wanted and name not in untrue:
                wanted[name] = value
        members = {}
        for member in wanted.items():
            if _member_size(member) <= room:
                members[member[0]] = member[1]
                room -= _member_size(member)
        entries = _fit(keyframes, sequence_header, (room - _INDEX_OVERHEAD) // _ENTRY_SIZE)
        if "hasKeyframes" in members:
            members["hasKeyframes"] = _BOOLEAN + bytes((bool(entries),))
        index = _keyframes(entries) if entries else b""
        parts = [_name(name) + value for name, value in members.items()]
        # The index is last, because the first versions of flv.js read nothing after an object.
        parts += [_padding(_MIN_PADDING + room - len(index)), index]
        count = len(members) + 1 + bool(entries)
        return tag(SCRIPT, 0, b"".join((_BEGIN, _U32.pack(count), *parts, _END)))


def read_metadata(payload: bytes) -> Mapping[str, object]:
    """Return the scalars of an onMetaData message; none if it is truncated or invalid."""
    if not payload.startswith(METADATA_NAME):
        return {}
    try:
        value, _ = amf0.decode(payload, len(METADATA_NAME), _METADATA_LIMITS)
    except (AmfError, LimitExceeded):
        return {}
    if not isinstance(value, dict):
        return {}
    return {str(name): member for name, member in value.items() if isinstance(member, (bool, int, float, str))}


def _member_size(member: tuple[str, bytes]) -> int:
    return len(_name(member[0])) + len(member[1])


def _own_members(
    numbers: Mapping[str, float], has_audio: bool, has_video: bool, audio: AudioConfig | None, video: VideoConfig | None
) -> dict[str, bytes]:
    """Encode the recorder's own members, the most useful ones first. *numbers* keeps its order."""
    values: dict[str, object] = {**numbers}
    if has_video and video:
        if video.width:
            values |= {"width": video.width, "height": video.height}
        values["videocodecid"] = _VIDEO_IDS.get(video.codec) if video.codec_id is None else video.codec_id
    if has_audio and audio:
        values["audiocodecid"] = _AUDIO_IDS.get(audio.codec) if audio.codec_id is None else audio.codec_id
        if audio.sample_rate_hz:
            values |= {"audiosamplerate": audio.sample_rate_hz, "audiosamplesize": 16}
        if audio.channels:
            values |= {"stereo": audio.channels == 2, "audiochannels": audio.channels}
    values |= {"hasVideo": has_video, "hasAudio": has_audio, "hasKeyframes": False, "hasMetadata": True}
    values["metadatacreator"] = _CREATOR
    encoded = ((name, _scalar(value)) for name, value in values.items())
    return {name: value for name, value in encoded if value is not None}


# The largest size of these members, for the size of a block.
_OWN_MEMBERS = _own_members(
    dict.fromkeys(("duration", "filesize", "lasttimestamp", "lastkeyframetimestamp", "lastkeyframelocation"), 0.0),
    has_audio=True,
    has_video=True,
    audio=AudioConfig("aac", "LC", 1, 1),
    video=VideoConfig("h264", "High", "1.0", 1, 1),
)


def _fit(keyframes: Sequence[tuple[int, int]], sequence_header: tuple[int, int] | None, room: int) -> Sequence[tuple[int, int]]:
    """Reduce an index to at most *room* entries. A single entry is dropped, because FFmpeg warns about it."""
    if not keyframes:
        return ()
    first = [sequence_header] if sequence_header and sequence_header[1] < keyframes[0][1] else []
    step = 1
    while step < len(keyframes) and -(-len(keyframes) // step) + len(first) > room:
        step *= 2
    entries = [*first, *keyframes[::step]]
    return entries if 2 <= len(entries) <= room else ()
