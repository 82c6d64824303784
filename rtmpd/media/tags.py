"""What an audio or video message is: a frame, a keyframe, a sequence header, on which track, of which codec.

Reads the first bytes of the payload only: the legacy headers of the FLV specification (sections E.4.2.1 and E.4.3.1) and those
of Enhanced RTMP v2 (ExVideoTagHeader, ExAudioTagHeader) with multitrack and ModEx. Nothing is changed, and nothing raises:
cameras and drones send garbage FourCCs and truncated headers, and a server passes them on.

`video_kind` and `audio_kind` run once per message; the other functions only for headers. Imports nothing.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["AudioPacket", "Kind", "TagInfo", "VideoPacket", "audio_info", "audio_kind", "video_info", "video_kind"]


class Kind(enum.IntEnum):
    """What a message means to those who cache and join."""

    FRAME = 0
    KEYFRAME = 1
    """A video frame that decoding can start at."""
    HEADER = 2
    """A sequence header, or a multichannel configuration: a decoder needs it before any frame."""
    METADATA = 3
    """Enhanced video metadata (colorInfo): belongs with the headers."""
    END = 4
    """The end of a sequence."""
    OTHER = 5
    """An empty message (silence), a video command frame, or a header that is cut short."""
    TRACK_KEYFRAME = 6
    """A keyframe inside a multitrack message: a place to join only if its track is the one to join at."""


# Plain integers for the hot path: an enum member costs a lookup and a slower comparison.
_FRAME, _KEYFRAME, _HEADER, _METADATA, _END, _OTHER, _TRACK_KEYFRAME = (int(kind) for kind in Kind)


class VideoPacket(enum.IntEnum):
    """VideoPacketType of Enhanced RTMP; 0..2 are also the AVCPacketType of the legacy header."""

    SEQUENCE_START = 0
    CODED_FRAMES = 1
    SEQUENCE_END = 2
    CODED_FRAMES_X = 3
    METADATA = 4
    MPEG2TS_SEQUENCE_START = 5
    MULTITRACK = 6
    MOD_EX = 7


class AudioPacket(enum.IntEnum):
    """AudioPacketType of Enhanced RTMP; 0 and 1 are also the AACPacketType of the legacy header."""

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
_MOD_EX_NANO_OFFSET, _MAX_NANO_OFFSET = 0, 999_999
_MAX_TRACKS = 256  # track ids have 8 bits; without a bound a message of empty tracks would name millions

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
    """The whole header of an audio or video message.

    Attributes:
        kind: See `Kind`.
        codec: FFmpeg's name for it, or the FourCC in hex or ``id N`` where it has none; empty if it can't be read.
        packet_type: The Enhanced packet type, or the legacy one; None for codecs without any.
        tracks: Track ids that the message holds; ``(0,)`` without multitrack.
        multitrack: Whether it uses the multitrack header.
        body_offset: Where the codec's data begins (for multitrack, the first track's header).
        frame_type: The video frame type; 0 for audio.
        four_cc: The FourCC of the first track; empty with a legacy header, or if it can't be read.
        mod_ex: Whether ModEx packets come before the packet.
        layout: How a multitrack header is laid out (AvMultitrackType): 0 OneTrack, 1 ManyTracks, 2 ManyTracksManyCodecs; None
            without one.
        nano_offset_ns: What a ModEx packet adds to the timestamp, 0 to 999999 nanoseconds; None without one.
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
    """Classify a video message; the result is a `Kind` as a plain int."""
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
    """Classify an audio message; the result is a `Kind` as a plain int, never a keyframe."""
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
    """Read the whole header of a video message."""
    if not payload:
        return TagInfo(Kind.OTHER, "", None, (0,), False, 0, 0)
    first = payload[0]
    frame_type = first >> 4 & 7
    if first < 0x80:
        codec_id = first & 15
        codec = _LEGACY_VIDEO_CODECS.get(codec_id, f"id {codec_id}")
        if codec_id in (_LEGACY_AVC, _LEGACY_HEVC) and len(payload) > 1 and frame_type != _FRAME_TYPE_COMMAND:
            return TagInfo(Kind(video_kind(payload)), codec, payload[1], (0,), False, 5, frame_type)
        return TagInfo(Kind(video_kind(payload)), codec, None, (0,), False, 1, frame_type)
    packet, position, nano_offset_ns = _skip_mod_ex(payload, first & 15, VideoPacket.MOD_EX)
    mod_ex = first & 15 == VideoPacket.MOD_EX
    if packet < 0:
        return TagInfo(Kind.OTHER, "", None, (0,), False, len(payload), frame_type, b"", mod_ex)
    if packet != VideoPacket.METADATA and frame_type == _FRAME_TYPE_COMMAND:
        return TagInfo(Kind.OTHER, "", packet, (0,), False, position, frame_type, b"", mod_ex, nano_offset_ns)
    layout = payload[position] >> 4 if packet == VideoPacket.MULTITRACK and position < len(payload) else None
    packet, tracks, multitrack, four_cc, position = _read_tracks(payload, packet, position, VideoPacket.MULTITRACK)
    codec = _codec_name(four_cc)
    if packet < 0:
        return TagInfo(
            Kind.OTHER, codec, None, tracks, multitrack, position, frame_type, four_cc, mod_ex, nano_offset_ns, layout
        )
    if packet in (VideoPacket.SEQUENCE_START, VideoPacket.MPEG2TS_SEQUENCE_START):
        kind = Kind.HEADER
    elif packet == VideoPacket.METADATA:
        kind = Kind.METADATA
    elif packet == VideoPacket.SEQUENCE_END:
        kind = Kind.END
    elif packet in (VideoPacket.CODED_FRAMES, VideoPacket.CODED_FRAMES_X):
        key = Kind.TRACK_KEYFRAME if multitrack else Kind.KEYFRAME
        kind = key if frame_type == _FRAME_TYPE_KEY else Kind.FRAME
    else:
        kind = Kind.OTHER
    return TagInfo(kind, codec, packet, tracks, multitrack, position, frame_type, four_cc, mod_ex, nano_offset_ns, layout)


def audio_info(payload: bytes) -> TagInfo:
    """Read the whole header of an audio message."""
    if not payload:
        return TagInfo(Kind.OTHER, "", None, (0,), False, 0, 0)
    sound_format = payload[0] >> 4
    if sound_format != _AUDIO_EX:
        codec = _LEGACY_AUDIO_CODECS.get(sound_format, f"id {sound_format}")
        if sound_format == _AUDIO_AAC and len(payload) > 1:
            return TagInfo(Kind(audio_kind(payload)), codec, payload[1], (0,), False, 2, 0)
        return TagInfo(Kind(audio_kind(payload)), codec, None, (0,), False, 1, 0)
    packet, position, nano_offset_ns = _skip_mod_ex(payload, payload[0] & 15, AudioPacket.MOD_EX)
    mod_ex = payload[0] & 15 == AudioPacket.MOD_EX
    if packet < 0:
        return TagInfo(Kind.OTHER, "", None, (0,), False, len(payload), 0, b"", mod_ex)
    layout = payload[position] >> 4 if packet == AudioPacket.MULTITRACK and position < len(payload) else None
    packet, tracks, multitrack, four_cc, position = _read_tracks(payload, packet, position, AudioPacket.MULTITRACK)
    codec = _codec_name(four_cc)
    if packet < 0:
        return TagInfo(Kind.OTHER, codec, None, tracks, multitrack, position, 0, four_cc, mod_ex, nano_offset_ns, layout)
    if packet in (AudioPacket.SEQUENCE_START, AudioPacket.MULTICHANNEL_CONFIG):
        kind = Kind.HEADER
    elif packet == AudioPacket.SEQUENCE_END:
        kind = Kind.END
    elif packet == AudioPacket.CODED_FRAMES:
        kind = Kind.FRAME
    else:
        kind = Kind.OTHER
    return TagInfo(kind, codec, packet, tracks, multitrack, position, 0, four_cc, mod_ex, nano_offset_ns, layout)


def _skip_mod_ex(payload: bytes, packet: int, mod_ex: int) -> tuple[int, int, int | None]:
    """Step over ModEx packets.

    Returns:
        The packet type behind them (-1 if cut short), the offset after it, and the nanoseconds of TimestampOffsetNano.
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
    """Read the FourCC, or the multitrack header with its track ids.

    Returns:
        Packet type (-1 if cut short), track ids, whether multitrack, FourCC of the first track, offset of the body.
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
    one_track, many_codecs = layout == 0, layout == 2
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
