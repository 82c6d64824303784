"""onMetaData for readers that join late: decoded and encoded again, or made from what is known of the tracks. Pure.

FFmpeg refuses a stream whose onMetaData it can't read. Encoders and restreamers in the field send XML, undefined members, no
end marker, and bytes behind the end.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rtmpd.errors import AmfError, LimitExceeded, LocalProtocolError
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import AmfDate, AmfDictionary, AmfLimits, EcmaArray, TypedObject, XmlDocument

if TYPE_CHECKING:
    from rtmpd.media.audio_codecs import AudioConfig
    from rtmpd.media.video_codecs import VideoConfig
    from rtmpd.protocol.amf_values import AmfEncodable, AmfValue

_NAME = "onMetaData"
_LIMITS = AmfLimits(depth=32, values=8192, string_bytes=1 << 16, total_bytes=1 << 17)
_DEEPEST = 8  # FFmpeg reads 16 levels
_MAX_TEXT_BYTES = 1023  # FFmpeg refuses longer ones, and long strings altogether


def sound_metadata(payload: bytes) -> bytes | None:
    """Return an onMetaData message encoded again, without the members that players can't read.

    Left out are undefined values, XML documents, objects of a class, numbers that are not finite, texts and names that FFmpeg
    does not read, and what follows the metadata or can't be decoded.

    Returns:
        The message; None if no member can be kept, unless there was none.
    """
    try:
        values = amf0.decode_all(payload, limits=_LIMITS, lenient=True)
        metadata = next(
            (value for value in values[1:] if isinstance(value, dict) and not isinstance(value, AmfDictionary)), None
        )
        if metadata is None:
            return None
        kept = _kept_members(metadata, 1)
        if metadata and not kept:
            return None
        if not metadata and not _is_empty(payload):
            return None
        return amf0.encode(_NAME, kept)
    except (AmfError, LimitExceeded, LocalProtocolError):
        return None


def _is_empty(payload: bytes) -> bool:
    """Whether metadata without a member were sent so, and not damaged at the first one."""
    try:
        amf0.decode_all(payload, limits=_LIMITS)
    except AmfError:
        return False
    return True


def _kept_members(members: dict[str, AmfValue], depth: int) -> dict[str, AmfEncodable]:
    kept: dict[str, AmfEncodable] = EcmaArray() if isinstance(members, EcmaArray) else {}  # type: ignore[assignment]
    for name, value in members.items():
        if 0 < _size(name) <= _MAX_TEXT_BYTES and _is_kept(value, depth):
            kept[name] = _kept(value, depth)
    return kept


def _is_kept(value: AmfValue, depth: int) -> bool:
    if isinstance(value, (bool, AmfDate)) or value is None:
        return True
    if isinstance(value, (int, float)):
        return math.isfinite(value)
    if isinstance(value, str):
        return not isinstance(value, XmlDocument) and _size(value) <= _MAX_TEXT_BYTES
    if isinstance(value, (TypedObject, AmfDictionary)):
        return False
    return isinstance(value, (dict, list)) and depth < _DEEPEST


def _kept(value: AmfValue, depth: int) -> AmfEncodable:
    if isinstance(value, list):
        return [_kept(each, depth + 1) for each in value if _is_kept(each, depth + 1)]
    if isinstance(value, dict):
        return _kept_members(value, depth + 1)  # type: ignore[arg-type]
    return value


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def made_metadata(
    video: VideoConfig | None, audio: AudioConfig | None, *, fps: float = 0.0, bitrate: float = 0.0
) -> bytes | None:
    """Return an onMetaData message that says what is known of the tracks; None if that is nothing.

    Args:
        video, audio: What the tracks are encoded with.
        fps: The frame rate; 0: unknown.
        bitrate: Of all tracks together, bits per second; 0: unknown.
    """
    members: dict[str, AmfEncodable] = {}
    if video is not None:
        if video.width:
            members |= {"width": video.width, "height": video.height}
        if video.codec_id is not None:
            members["videocodecid"] = video.codec_id
        if fps:
            members["framerate"] = round(fps, 1)
    if audio is not None:
        if audio.codec_id is not None:
            members["audiocodecid"] = audio.codec_id
        if audio.sample_rate_hz:
            members["audiosamplerate"] = audio.sample_rate_hz
        if audio.channels:
            members |= {"audiochannels": audio.channels, "stereo": audio.channels == 2}
    if members and bitrate:
        members["totaldatarate"] = round(bitrate / 1000)
    return amf0.encode(_NAME, EcmaArray(members)) if members else None  # type: ignore[arg-type]
