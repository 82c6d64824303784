"""What a stream is encoded with: profile, level, size, sample rate and channels, read from its headers.

`video_config` and `audio_config` take the payload of one RTMP message, with a legacy or an Enhanced RTMP header. Sequence
headers are decoder configuration records: avcC, hvcC and vvcC (ISO/IEC 14496-15), av1C (AV1 codec ISO media file format
binding), vpcC (VP codec ISO media file format binding), AudioSpecificConfig (ISO/IEC 14496-3), OpusHead (RFC 7845) and
STREAMINFO (RFC 9639). Codecs without one describe themselves in their frames, or in the tag header.

The names of profiles are FFmpeg's. Nothing raises: encoders send records that are cut short or wrong, and what can't be read
is left at 0 or empty. The work is bounded by the first `MAX_RECORD_BYTES` of a message. Of multitrack messages, the first
track counts.

The readers are in video_codecs, nal_codecs, audio_codecs and color_info. Imports these, tags and track_config; must not import
flv.
"""

from __future__ import annotations

from dataclasses import replace

from rtmpd.media.audio_codecs import AUDIO_FRAMES, AUDIO_RECORDS, from_tag_header
from rtmpd.media.color_info import read_channels, read_color_info
from rtmpd.media.tags import AudioPacket, Kind, TagInfo, VideoPacket, audio_info, video_info
from rtmpd.media.track_config import AudioConfig, VideoConfig
from rtmpd.media.video_codecs import VIDEO_KEYFRAMES, VIDEO_RECORDS

__all__ = [
    "MAX_RECORD_BYTES",
    "AudioConfig",
    "VideoConfig",
    "audio_config",
    "refine_audio",
    "refine_video",
    "video_color",
    "video_config",
]

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
    found = _video_config(payload, info) if info.codec else None
    return replace(found, codec_id=_codec_id(payload[0] & 15, info)) if found else None


def _video_config(payload: bytes, info: TagInfo) -> VideoConfig | None:
    body = _body(payload, info)
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
    return replace(
        config,
        profile=config.profile or found.profile,
        level=config.level or found.level,
        width=found.width,
        height=found.height,
        bit_depth=config.bit_depth or found.bit_depth,
        chroma=config.chroma or found.chroma,
    )


def video_color(payload: bytes) -> str | None:
    """Read a metadata packet of a video track.

    Returns:
        What its colorInfo says, as `ColorInfo` describes it: empty if it resets the colours. None if there is none.
    """
    info = video_info(payload)
    color = read_color_info(_body(payload, info)) if info.kind == Kind.METADATA else None
    return None if color is None else str(color)


def audio_config(payload: bytes) -> AudioConfig | None:
    """Read a sequence header, or a frame of a codec that has none.

    Args:
        payload: The payload of an audio message.

    Returns:
        What could be read. None for messages that say nothing.
    """
    info = audio_info(payload)
    found = _audio_config(payload, info) if info.codec else None
    return replace(found, codec_id=_codec_id(payload[0] >> 4, info)) if found else None


def _audio_config(payload: bytes, info: TagInfo) -> AudioConfig | None:
    body = _body(payload, info)
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


def refine_audio(config: AudioConfig | None, payload: bytes) -> AudioConfig | None:
    """Read a sequence header or a multichannel configuration, which adds to what is known.

    Args:
        config: What is known so far.
        payload: The payload of an audio message, of any kind.
    """
    info = audio_info(payload)
    if info.packet_type != AudioPacket.MULTICHANNEL_CONFIG or not info.four_cc:
        return audio_config(payload) or config
    channels = read_channels(_body(payload, info))
    if channels is None or (config is not None and config.codec != info.codec):
        return config
    # FFmpeg sends one for mono and stereo as well, which says no more than the number.
    layout = channels.layout if channels.count > 2 else ""
    if config is None and info.codec in AUDIO_FRAMES:
        return None  # its frames say more
    if config is None:
        return AudioConfig(info.codec, channels=channels.count, codec_id=_codec_id(0, info), layout=layout)
    return replace(config, channels=config.channels or channels.count, layout=layout)


def _codec_id(legacy: int, info: TagInfo) -> int:
    """Return what onMetaData calls the codec."""
    return int.from_bytes(info.four_cc, "big") if info.four_cc else legacy


def _body(payload: bytes, info: TagInfo) -> bytes:
    """Return the codec's data, of the first track."""
    body = payload[info.body_offset : info.body_offset + MAX_RECORD_BYTES]
    if not info.multitrack or info.layout == 0:
        return body
    if info.layout == 2:
        body = body[4:]
    return body[4 : 4 + int.from_bytes(body[1:4], "big")]
