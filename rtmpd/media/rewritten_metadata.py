"""The metadata of a stream, made to agree with a `Rewrite`: players may choose their decoder by it.

Runs when metadata comes, not for each message. Imports the rewriting, and AMF0 of protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rtmpd.errors import AmfError, LimitExceeded
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import AmfLimits

if TYPE_CHECKING:
    from rtmpd.media.rewrite import Rewrite

__all__ = ["rewritten_metadata"]

_LIMITS = AmfLimits(depth=8, string_bytes=64 << 10, total_bytes=64 << 10)
_NAME: Final = "onMetaData"
_ENCODED_NAME = amf0.encode(_NAME)
_TRACKS = ("videoTrackIdInfoMap", "audioTrackIdInfoMap")


def _number(four_cc: bytes) -> float:
    return float(int.from_bytes(four_cc, "big"))


_CODEC12, _HVC1 = 12.0, _number(b"hvc1")
_OLD_VIDEO = {_number(b"avc1"): 7.0}
_OLD_AUDIO = {_number(b"mp4a"): 10.0, _number(b".mp3"): 2.0}


def rewritten_metadata(payload: bytes, rewrite: Rewrite) -> bytes:
    """Return an onMetaData message as it is for those who get what *rewrite* makes of the stream.

    ``videocodecid`` and ``audiocodecid`` follow the headers that they get; lists of tracks are left out for those who get one.
    What is no metadata, can't be read or need not change is returned as it is.
    """
    if not payload.startswith(_ENCODED_NAME):
        return payload
    try:
        values = amf0.decode_all(payload, limits=_LIMITS)
    except (AmfError, LimitExceeded):
        return payload
    if len(values) < 2 or not isinstance(values[1], dict):
        return payload
    metadata = values[1]
    before = dict(metadata)
    for name, codecs in (("videocodecid", _video_codecs(rewrite)), ("audiocodecid", _OLD_AUDIO if rewrite.old_audio else {})):
        codec = metadata.get(name)
        if isinstance(codec, (int, float)) and codec in codecs:
            metadata[name] = codecs[codec]
    if rewrite.default_track:
        for name in _TRACKS:
            metadata.pop(name, None)
    if rewrite.mute:
        metadata.pop("audiocodecid", None)
    return payload if metadata == before else amf0.encode(*values)


def _video_codecs(rewrite: Rewrite) -> dict[float, float]:
    codecs = dict(_OLD_VIDEO) if rewrite.old_video else {}
    if rewrite.hevc == "codec12":
        codecs[_HVC1] = _CODEC12
    elif rewrite.hevc == "hvc1":
        codecs[_CODEC12] = _HVC1
    return codecs
