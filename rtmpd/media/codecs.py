"""What a stream is encoded with: profile, level, size, sample rate and channels, read from its headers.

`video_config` and `audio_config` take the payload of one RTMP message, with a legacy or an Enhanced RTMP header. Sequence
headers are decoder configuration records: avcC, hvcC and vvcC (ISO/IEC 14496-15), av1C (AV1 codec ISO media file format
binding), vpcC (VP codec ISO media file format binding), AudioSpecificConfig (ISO/IEC 14496-3), OpusHead (RFC 7845) and
STREAMINFO (RFC 9639). Codecs without one describe themselves in their frames, or in the tag header.

The names of profiles are FFmpeg's. Nothing raises: encoders send records that are cut short or wrong, and what can't be read
is left at 0 or empty. The work is bounded by the first `MAX_RECORD_BYTES` of a message. Of multitrack messages, the first
track counts.

The readers are in video_codecs, nal_codecs and audio_codecs. Imports these, tags and track_config; must not import flv.
"""

from __future__ import annotations

from rtmpd.media.audio_codecs import AUDIO_FRAMES, AUDIO_RECORDS, from_tag_header
from rtmpd.media.tags import AudioPacket, Kind, TagInfo, VideoPacket, audio_info, video_info
from rtmpd.media.track_config import AudioConfig, VideoConfig
from rtmpd.media.video_codecs import VIDEO_KEYFRAMES, VIDEO_RECORDS

__all__ = ["MAX_RECORD_BYTES", "AudioConfig", "VideoConfig", "audio_config", "refine_video", "video_config"]

MAX_RECORD_BYTES = 1 << 14
"""What is read of a message. x265 puts 2 KiB of its options into a record; the parameter sets have some hundred bytes."""


def video_config(payload: bytes) -> VideoConfig | None:
    """Read a sequence header, or a keyframe of a codec whose keyframes say what they are.

    Keyframes help with VP9 and AV1 too, whose records may lack the size.

    Args:
        payload: The payload of a video message.

    Returns:
        What could be read; at least the codec for every sequence header. None for messages that say nothing.
    """
    info = video_info(payload)
    if not info.codec:
        return None
    body = _body(payload, info, VideoPacket.MULTITRACK)
    if info.kind == Kind.HEADER:
        if info.packet_type == VideoPacket.MPEG2TS_SEQUENCE_START:
            return VideoConfig(info.codec)
        record = VIDEO_RECORDS.get(info.codec)
        return record(body) if record else VideoConfig(info.codec)
    if info.kind in (Kind.KEYFRAME, Kind.TRACK_KEYFRAME):
        keyframe = VIDEO_KEYFRAMES.get(info.codec)
        if keyframe:
            return keyframe(body)
        if info.packet_type is None:
            return VideoConfig(info.codec)
    return None


def refine_video(config: VideoConfig | None, payload: bytes) -> VideoConfig | None:
    """Fill in from a keyframe what a track's record lacks: vpcC has no size, and FFmpeg sends an empty one for libaom's AV1.

    Args:
        config: What is known so far.
        payload: The payload of a video message, of any kind.
    """
    if config is not None and config.width:
        return config
    found = video_config(payload)
    if config is None or found is None or found.codec != config.codec:
        return config or found
    return VideoConfig(
        config.codec,
        config.profile or found.profile,
        config.level or found.level,
        found.width,
        found.height,
        config.bit_depth or found.bit_depth,
        config.chroma or found.chroma,
    )


def audio_config(payload: bytes) -> AudioConfig | None:
    """Read a sequence header, or a frame of a codec that has none.

    Args:
        payload: The payload of an audio message.

    Returns:
        What could be read. None for messages that say nothing.
    """
    info = audio_info(payload)
    if not info.codec:
        return None
    body = _body(payload, info, AudioPacket.MULTITRACK)
    if info.kind == Kind.HEADER:
        if info.packet_type == AudioPacket.MULTICHANNEL_CONFIG:
            return None
        record = AUDIO_RECORDS.get(info.codec)
        # The sequence start of MP3, AC-3 and E-AC-3 is empty: their frames say it.
        return record(body) if record else None if info.codec in AUDIO_FRAMES else AudioConfig(info.codec)
    if info.kind == Kind.FRAME:
        frame = AUDIO_FRAMES.get(info.codec)
        if frame:
            found = frame(body)
            if found or info.packet_type is not None:
                return found
        if info.packet_type is None:
            return from_tag_header(payload[0], info.codec)
    return None


def _body(payload: bytes, info: TagInfo, multitrack_packet: int) -> bytes:
    """Return the codec's data, of the first track."""
    body = payload[info.body_offset : info.body_offset + MAX_RECORD_BYTES]
    if not info.multitrack:
        return body
    if payload[0] & 15 != multitrack_packet:
        return b""  # behind a ModEx packet, which nobody puts on headers
    layout = payload[1] >> 4
    if layout == 0:
        return body
    if layout == 2:
        body = body[4:]
    return body[4 : 4 + int.from_bytes(body[1:4], "big")]
