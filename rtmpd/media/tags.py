"""The headers of audio and video messages: kind of frame, codec and tracks.

Only the first bytes of the payload are parsed: the legacy headers of the FLV specification (sections E.4.2.1 and E.4.3.1) and
those of Enhanced RTMP v2 (ExVideoTagHeader, ExAudioTagHeader) with multitrack and ModEx. Nothing raises: cameras and drones
send invalid FourCCs and truncated headers, which a server passes on. `video_kind` and `audio_kind` run for every message, the
other functions for headers.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_RECORD_BYTES = 1 << 14
"""The part of a message that is parsed for a configuration. x265 puts 2 KiB of options into a record; parameter sets have some
hundred bytes."""


class Kind(enum.IntEnum):
    """The kind of a message, which decides about caching and joining."""

    FRAME = 0
    KEYFRAME = 1
    """A video frame at which decoding can start."""
    HEADER = 2
    """A sequence header or a multichannel configuration, which a decoder needs before any frame."""
    METADATA = 3
    """Enhanced video metadata (colorInfo), which is kept with the headers."""
    END = 4
    """The end of a sequence."""
    OTHER = 5
    """An empty message (silence), a video command frame, or a truncated header."""
    TRACK_KEYFRAME = 6
    """A keyframe inside a multitrack message. Players can join at it if its track is the one to join at."""


# Plain integers for the hot path: an enum member costs an attribute lookup and a slower comparison.
_FRAME, _KEYFRAME, _HEADER, _METADATA, _END, _OTHER, _TRACK_KEYFRAME = (int(kind) for kind in Kind)


class VideoPacket(enum.IntEnum):
    """VideoPacketType of Enhanced RTMP. 0 to 2 are also the AVCPacketType of the legacy header."""

    SEQUENCE_START = 0
    CODED_FRAMES = 1
    SEQUENCE_END = 2
    CODED_FRAMES_X = 3
    METADATA = 4
    MPEG2TS_SEQUENCE_START = 5
    MULTITRACK = 6
    MOD_EX = 7


class AudioPacket(enum.IntEnum):
    """AudioPacketType of Enhanced RTMP. 0 and 1 are also the AACPacketType of the legacy header."""

    SEQUENCE_START = 0
    CODED_FRAMES = 1
    SEQUENCE_END = 2
    MULTICHANNEL_CONFIG = 4
    MULTITRACK = 5
    MOD_EX = 7


_LEGACY_AVC, _LEGACY_HEVC = 7, 12
_FRAME_TYPE_KEY, _FRAME_TYPE_COMMAND = 1, 5
_AUDIO_AAC, _AUDIO_EX = 10, 9

_FOUR_CC_SIZE = 4
_ONE_TRACK, _MANY_CODECS = 0, 2  # every other layout is read as ManyTracks, as in FFmpeg
_MOD_EX_NANO_OFFSET, _MAX_NANO_OFFSET = 0, 999_999
_MAX_TRACKS = 256  # track ids have 8 bits; without a limit a message of empty tracks could list millions

_LEGACY_VIDEO_CODECS = {2: "h263", 3: "screen", 4: "vp6", 5: "vp6a", 6: "screen2", 7: "h264", 12: "hevc"}
_LEGACY_AUDIO_CODECS = {
    0: "pcm",
    1: "adpcm",
    2: "mp3",
    3: "pcm_le",
    4: "nellymoser",
    5: "nellymoser",
    6: "nellymoser",
    7: "g711a",
    8: "g711u",
    10: "aac",
    11: "speex",
    13: "opus",
    14: "mp3",
}
_FOURCC_CODECS = {
    b"avc1": "h264",
    b"hvc1": "hevc",
    b"vvc1": "vvc",
    b"av01": "av1",
    b"vp08": "vp8",
    b"vp09": "vp9",
    b"mp4a": "aac",
    b"Opus": "opus",
    b"fLaC": "flac",
    b".mp3": "mp3",
    b"ac-3": "ac3",
    b"ec-3": "eac3",
}


class TagInfo(NamedTuple):
    """The parsed header of an audio or video message.

    Attributes:
        kind: The kind of message.
        codec: FFmpeg's name; for unknown codecs the FourCC in hexadecimal or ``id N``; empty if it can't be parsed.
        packet_type: The Enhanced or legacy packet type; None for codecs without packet types.
        tracks: The track ids in the message; ``(0,)`` without multitrack.
        multitrack: Whether there is a multitrack header.
        body_offset: The offset of the codec's data; with multitrack, of the first track's header.
        frame_type: The video frame type; 0 for audio.
        four_cc: The FourCC of the first track; empty with a legacy header, or if it can't be parsed.
        mod_ex: Whether there are ModEx packets.
        layout: The layout of the multitrack header (AvMultitrackType): 0 OneTrack, 1 ManyTracks, 2 ManyTracksManyCodecs; None
            without one.
        nano_offset_ns: The addition of a ModEx packet to the timestamp, 0 to 999999 nanoseconds; None without one.
    """

    kind: Kind
    codec: str
    packet_type: int | None
    tracks: tuple[int, ...]
    multitrack: bool
    body_offset: int
    frame_type: int
    four_cc: bytes = b""
    mod_ex: bool = False
    nano_offset_ns: int | None = None
    layout: int | None = None


def video_kind(payload: bytes) -> int:
    """Return the `Kind` of a video message as a plain int."""
    if len(payload) < 2:
        return _OTHER
    first = payload[0]
    if first < 0x80:
        frame_type = first >> 4
        if frame_type == _FRAME_TYPE_COMMAND:
            return _OTHER
        codec = first & 15
        if codec in (_LEGACY_AVC, _LEGACY_HEVC):
            packet = payload[1]
            if packet != 1:
                return _HEADER if packet == 0 else _END if packet == 2 else _OTHER
        return _KEYFRAME if frame_type == _FRAME_TYPE_KEY else _FRAME
    packet = first & 15
    if packet in (1, 3) and len(payload) > _FOUR_CC_SIZE:
        frame_type = first >> 4 & 7
        if frame_type == _FRAME_TYPE_KEY:
            return _KEYFRAME
        return _OTHER if frame_type == _FRAME_TYPE_COMMAND else _FRAME
    return int(video_info(payload).kind)


def audio_kind(payload: bytes) -> int:
    """Return the `Kind` of an audio message as a plain int, which is never a keyframe."""
    if len(payload) < 2:
        return _OTHER
    first = payload[0]
    sound_format = first >> 4
    if sound_format == _AUDIO_AAC:
        return _FRAME if payload[1] else _HEADER
    if sound_format == _AUDIO_EX and (first & 15 != 1 or len(payload) <= _FOUR_CC_SIZE):
        return int(audio_info(payload).kind)
    return _FRAME


def video_info(payload: bytes) -> TagInfo:
    """Parse the header of a video message."""
    if not payload:
        return TagInfo(Kind.OTHER, "", None, (0,), False, 0, 0)
    first = payload[0]
    frame_type = first >> 4 & 7
    if first >= 0x80:
        return _enhanced_info(payload, frame_type, VideoPacket.MOD_EX, VideoPacket.MULTITRACK, _VIDEO_KINDS)
    codec_id = first & 15
    codec = _LEGACY_VIDEO_CODECS.get(codec_id, f"id {codec_id}")
    if codec_id in (_LEGACY_AVC, _LEGACY_HEVC) and len(payload) > 1 and frame_type != _FRAME_TYPE_COMMAND:
        return TagInfo(Kind(video_kind(payload)), codec, payload[1], (0,), False, 5, frame_type)
    return TagInfo(Kind(video_kind(payload)), codec, None, (0,), False, 1, frame_type)


def audio_info(payload: bytes) -> TagInfo:
    """Parse the header of an audio message."""
    if not payload:
        return TagInfo(Kind.OTHER, "", None, (0,), False, 0, 0)
    sound_format = payload[0] >> 4
    if sound_format == _AUDIO_EX:
        return _enhanced_info(payload, 0, AudioPacket.MOD_EX, AudioPacket.MULTITRACK, _AUDIO_KINDS)
    codec = _LEGACY_AUDIO_CODECS.get(sound_format, f"id {sound_format}")
    if sound_format == _AUDIO_AAC and len(payload) > 1:
        return TagInfo(Kind(audio_kind(payload)), codec, payload[1], (0,), False, 2, 0)
    return TagInfo(Kind(audio_kind(payload)), codec, None, (0,), False, 1, 0)


_VIDEO_KINDS: dict[int, Kind] = {
    VideoPacket.SEQUENCE_START: Kind.HEADER,
    VideoPacket.CODED_FRAMES: Kind.FRAME,
    VideoPacket.SEQUENCE_END: Kind.END,
    VideoPacket.CODED_FRAMES_X: Kind.FRAME,
    VideoPacket.METADATA: Kind.METADATA,
    VideoPacket.MPEG2TS_SEQUENCE_START: Kind.HEADER,
}
_AUDIO_KINDS: dict[int, Kind] = {
    AudioPacket.SEQUENCE_START: Kind.HEADER,
    AudioPacket.CODED_FRAMES: Kind.FRAME,
    AudioPacket.SEQUENCE_END: Kind.END,
    AudioPacket.MULTICHANNEL_CONFIG: Kind.HEADER,
}


def _enhanced_info(payload: bytes, frame_type: int, mod_ex: int, multitrack: int, kinds: Mapping[int, Kind]) -> TagInfo:
    """Parse the header of an Enhanced RTMP message. *kinds* lists the kinds of its packet types."""
    has_mod_ex = payload[0] & 15 == mod_ex
    packet, position, nano_offset_ns = skip_mod_ex(payload, payload[0] & 15, mod_ex)
    if packet < 0:
        return TagInfo(Kind.OTHER, "", None, (0,), False, len(payload), frame_type, b"", has_mod_ex)
    if packet != VideoPacket.METADATA and frame_type == _FRAME_TYPE_COMMAND:
        return TagInfo(Kind.OTHER, "", packet, (0,), False, position, frame_type, b"", has_mod_ex, nano_offset_ns)
    layout = payload[position] >> 4 if packet == multitrack and position < len(payload) else None
    found, tracks, several, four_cc, position = _read_tracks(payload, packet, position, multitrack)
    kind = kinds.get(found, Kind.OTHER)
    if kind is Kind.FRAME and frame_type == _FRAME_TYPE_KEY:
        kind = Kind.TRACK_KEYFRAME if several else Kind.KEYFRAME
    packet_type = found if found >= 0 else None
    codec = _codec_name(four_cc)
    return TagInfo(kind, codec, packet_type, tracks, several, position, frame_type, four_cc, has_mod_ex, nano_offset_ns, layout)


def skip_mod_ex(payload: bytes, packet: int, mod_ex: int) -> tuple[int, int, int | None]:
    """Skip the ModEx packets of an Enhanced message.

    Args:
        payload: The message, which is not empty.
        packet: The packet type in its first byte.
        mod_ex: The packet type of ModEx.

    Returns:
        The packet type after them (-1 if they are truncated), the offset after the byte with it, and the nanoseconds of
        TimestampOffsetNano.
    """
    position, nano_offset_ns = 1, None
    while packet == mod_ex:
        if position >= len(payload):
            return -1, position, None
        size = payload[position] + 1
        position += 1
        if size == 256:
            if position + 2 > len(payload):
                return -1, position, None
            size = (payload[position] << 8 | payload[position + 1]) + 1
            position += 2
        data, position = position, position + size
        if position >= len(payload):
            return -1, position, None
        if payload[position] >> 4 == _MOD_EX_NANO_OFFSET and size >= 3:
            offset = int.from_bytes(payload[data : data + 3], "big")
            nano_offset_ns = offset if offset <= _MAX_NANO_OFFSET else nano_offset_ns
        packet = payload[position] & 15
        position += 1
    return packet, position, nano_offset_ns


def _read_tracks(
    payload: bytes, packet: int, position: int, multitrack_packet: int
) -> tuple[int, tuple[int, ...], bool, bytes, int]:
    """Parse the FourCC, or the multitrack header with its track ids.

    Returns:
        The packet type (-1 if truncated), the track ids, whether multitrack, the FourCC of the first track, the body's offset.
    """
    if packet != multitrack_packet:
        four_cc = payload[position : position + 4]
        if len(four_cc) < _FOUR_CC_SIZE:
            return -1, (0,), False, b"", len(payload)
        return packet, (0,), False, four_cc, position + 4
    if position >= len(payload):
        return -1, (0,), True, b"", position
    layout, packet = payload[position] >> 4, payload[position] & 15
    position += 1
    one_track, many_codecs = layout == _ONE_TRACK, layout == _MANY_CODECS
    four_cc = b""
    if not many_codecs:
        four_cc = payload[position : position + 4]
        position += 4
    body = position
    tracks: list[int] = []
    while position < len(payload) and len(tracks) < _MAX_TRACKS:
        if many_codecs:
            four_cc = four_cc or payload[position : position + 4]
            position += 4
            if position >= len(payload):
                break
        tracks.append(payload[position])
        if one_track:
            body = position + 1
            break
        size = int.from_bytes(payload[position + 1 : position + 4], "big")
        position += 4 + size
    four_cc = four_cc if len(four_cc) == _FOUR_CC_SIZE else b""
    if not tracks or packet == multitrack_packet:
        return -1, tuple(tracks) or (0,), True, four_cc, min(position, len(payload))
    return packet, tuple(tracks), True, four_cc, body


def _codec_name(four_cc: bytes) -> str:
    return _FOURCC_CODECS.get(four_cc) or (f"0x{four_cc.hex()}" if four_cc else "")


def split_tracks(payload: bytes, position: int) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield track id, FourCC, and start and end of the data for each track of a multitrack message.

    A truncated track has the id -1 and ends the iteration. A message that ends before the header has no tracks.

    Args:
        payload: The message.
        position: The offset of the multitrack header.
    """
    if position >= len(payload):
        return
    layout = payload[position] >> 4
    position += 1
    four_cc = b""
    if layout != _MANY_CODECS:
        four_cc = payload[position : position + _FOUR_CC_SIZE]
        position += _FOUR_CC_SIZE
    while position < len(payload):
        if layout == _ONE_TRACK:
            yield payload[position], four_cc, position + 1, len(payload)
            return
        if layout == _MANY_CODECS:
            four_cc = payload[position : position + _FOUR_CC_SIZE]
            position += _FOUR_CC_SIZE
        start = position + 4
        end = start + int.from_bytes(payload[position + 1 : start], "big")
        if start > len(payload) or end > len(payload):
            yield -1, four_cc, start, end
            return
        yield payload[position], four_cc, start, end
        position = end


def first_track_data(payload: bytes, info: TagInfo) -> bytes:
    """Return the codec's data of the first track, of at most the first `MAX_RECORD_BYTES` of the message."""
    body = payload[info.body_offset : info.body_offset + MAX_RECORD_BYTES]
    if not info.multitrack or info.layout == _ONE_TRACK:
        return body
    if info.layout == _MANY_CODECS:
        body = body[_FOUR_CC_SIZE:]
    return body[4 : 4 + int.from_bytes(body[1:4], "big")]


def codec_id(legacy: int, info: TagInfo) -> int:
    """Return the number of a codec in onMetaData: the FourCC as a number, or the id of the legacy header."""
    return int.from_bytes(info.four_cc, "big") if info.four_cc else legacy
