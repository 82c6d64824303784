"""Codecs of MP4 tracks as RTMP messages: the sequence header from a sample entry, and the payload of a sample.

H.264, AAC and MP3 get the headers of the FLV specification (sections E.4.2 and E.4.3), all others those of Enhanced RTMP
(ExVideoTagHeader, ExAudioTagHeader), in the form that FFmpeg sends: the record of VP9 with the version and flags of its box,
FLAC's STREAMINFO without a marker, and an empty sequence start for AC-3 and E-AC-3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtmpd.errors import Mp4Error
from rtmpd.media.flv import AUDIO, VIDEO
from rtmpd.media.mp4.boxes import name

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.media.mp4.boxes import Content

_VIDEO_ENTRY_BYTES, _AUDIO_ENTRY_BYTES = 78, 28
"""The fields of a sample entry before the boxes in it (ISO/IEC 14496-12 section 12.1.3 and 12.2.3)."""
_SOUND_EXTENSIONS = {0: 0, 1: 16, 2: 36}
"""The fields that QuickTime adds to an audio entry, by its version (QuickTime File Format, "Sound Sample Descriptions")."""

_COMPOSITION_LIMIT_MS = 1 << 23
_KEY_FRAME, _INTER_FRAME = 1, 2

_EX_VIDEO, _SEQUENCE_START, _CODED_FRAMES, _CODED_FRAMES_X = 0x80, 0, 1, 3
_EX_AUDIO = 0x90
_MP3_8_KHZ = 0xE0
_PLAIN_OPUS = 0
"""The channel mapping family without a table (RFC 7845 section 5.1.1)."""

_DESCRIPTOR_ES, _DESCRIPTOR_CONFIG, _DESCRIPTOR_INFO = 3, 4, 5
_AAC_OBJECTS, _MP3_OBJECTS = (0x40, 0x66, 0x67, 0x68), (0x69, 0x6B)


@dataclass(frozen=True, slots=True)
class Codec:
    """How the samples of a track become messages.

    Attributes:
        type_id: `AUDIO` or `VIDEO`.
        header: The payload of the sequence header; empty for MP3, which has none.
        wrap: Return the payload for a sample: its data, whether it is a keyframe, its composition time in milliseconds.
    """

    type_id: int
    header: bytes
    wrap: Callable[[bytes, bool, int], bytes]


def video_codec(entry: Content) -> Codec | None:
    """Return the codec of a video sample entry; None for a codec that is not supported.

    Raises:
        Mp4Error: The entry is damaged.
    """
    make = _VIDEO.get(entry.box.kind)
    return make(_inner(entry, _VIDEO_ENTRY_BYTES)) if make else None


def audio_codec(entry: Content) -> Codec | None:
    """Return the codec of an audio sample entry; None for a codec that is not supported.

    Raises:
        Mp4Error: The entry is damaged.
    """
    make = _AUDIO.get(entry.box.kind)
    if make is None:
        return None
    extension = _SOUND_EXTENSIONS.get(entry.number(8, 2))
    if extension is None:
        raise Mp4Error(f"damaged: audio entry {name(entry.box.kind)} has version {entry.number(8, 2)}")
    channels, sample_rate_hz = entry.number(16, 2), entry.number(24, 4) >> 16
    return make(_inner(entry, _AUDIO_ENTRY_BYTES + extension), channels, sample_rate_hz)


def _inner(entry: Content, offset: int) -> dict[bytes, Content]:
    """Return the boxes in a sample entry by type, the first of each."""
    found: dict[bytes, Content] = {}
    entry.take(0, offset)
    for box in entry.boxes(offset):
        found.setdefault(box.box.kind, box)
    return found


def _record(boxes: dict[bytes, Content], kind: bytes, shortest: int) -> bytes:
    if kind not in boxes:
        raise Mp4Error(f"damaged: a sample entry has no {name(kind)}")
    record = boxes[kind].rest(0)
    if len(record) < shortest:
        raise Mp4Error(f"damaged: {name(kind)} has {len(record)} bytes, expected at least {shortest}")
    return record


def _composition(time_ms: int) -> bytes:
    if not -_COMPOSITION_LIMIT_MS <= time_ms < _COMPOSITION_LIMIT_MS:
        raise Mp4Error(f"damaged: a composition time of {time_ms} ms")
    return (time_ms & 0xFFFFFF).to_bytes(3, "big")


# Video --------------------------------------------------------------------------------------------------------------------


def _avc(boxes: dict[bytes, Content]) -> Codec:
    record = _record(boxes, b"avcC", 7)
    if not record[5] & 31:
        raise Mp4Error("H.264 whose parameter sets are only in its frames (avc3) is not supported")

    def wrap(data: bytes, key: bool, composition_ms: int) -> bytes:
        return (b"\x17\1" if key else b"\x27\1") + _composition(composition_ms) + data

    return Codec(VIDEO, b"\x17\0\0\0\0" + record, wrap)


def _hevc(boxes: dict[bytes, Content]) -> Codec:
    record = _record(boxes, b"hvcC", 23)
    if not record[22]:
        raise Mp4Error("HEVC whose parameter sets are only in its frames (hev1) is not supported")

    def wrap(data: bytes, key: bool, composition_ms: int) -> bytes:
        if composition_ms:
            return _enhanced(_CODED_FRAMES, key, b"hvc1") + _composition(composition_ms) + data
        return _enhanced(_CODED_FRAMES_X, key, b"hvc1") + data

    return Codec(VIDEO, _enhanced(_SEQUENCE_START, True, b"hvc1") + record, wrap)


def _enhanced(packet: int, key: bool, four_cc: bytes) -> bytes:
    frame_type = _KEY_FRAME if key else _INTER_FRAME
    return bytes((_EX_VIDEO | frame_type << 4 | packet,)) + four_cc


def _simple_video(four_cc: bytes, kind: bytes, shortest: int) -> Callable[[dict[bytes, Content]], Codec]:
    """Return the function for a codec whose frames have no composition time."""

    def wrap(data: bytes, key: bool, composition_ms: int) -> bytes:
        return _enhanced(_CODED_FRAMES, key, four_cc) + data

    def make(boxes: dict[bytes, Content]) -> Codec:
        return Codec(VIDEO, _enhanced(_SEQUENCE_START, True, four_cc) + _record(boxes, kind, shortest), wrap)

    return make


# Audio --------------------------------------------------------------------------------------------------------------------


def _mpeg4_audio(boxes: dict[bytes, Content], channels: int, sample_rate_hz: int) -> Codec | None:
    """Return AAC or MP3, by the decoder configuration of an esds box (ISO/IEC 14496-1 section 7.2.6)."""
    box = boxes.get(b"esds")
    if box is None and b"wave" in boxes:
        # QuickTime has it in a box of its own.
        box = boxes[b"wave"].find(b"esds")
    if box is None:
        raise Mp4Error("damaged: an audio entry has no esds")
    object_type, info = _decoder_config(box.rest(4))
    if object_type in _MP3_OBJECTS:
        return _mp3(boxes, channels, sample_rate_hz)
    if object_type not in _AAC_OBJECTS:
        return None
    if len(info) < 2:
        raise Mp4Error("damaged: AAC without its AudioSpecificConfig")
    return Codec(AUDIO, b"\xaf\0" + info, lambda data, _key, _composition_ms: b"\xaf\1" + data)


def _decoder_config(data: bytes) -> tuple[int, bytes]:
    """Return the object type and the decoder specific info of an elementary stream descriptor."""
    position, object_type = 0, -1
    try:
        while position < len(data):
            tag = data[position]
            position += 1
            size = 0
            for _ in range(4):
                size = size << 7 | data[position] & 127
                position += 1
                if data[position - 1] < 128:
                    break
            if tag == _DESCRIPTOR_ES:
                flags = data[position + 2]
                position += 3 + 2 * bool(flags & 0x80)
                position += 1 + data[position] if flags & 0x40 else 0
                position += 2 * bool(flags & 0x20)
            elif tag == _DESCRIPTOR_CONFIG:
                object_type = data[position]
                position += 13
            elif tag == _DESCRIPTOR_INFO:
                return object_type, data[position : position + size]
            else:
                position += size
    except IndexError:
        raise Mp4Error("damaged: esds ends within a descriptor") from None
    return object_type, b""


def _mp3(_boxes: dict[bytes, Content], channels: int, sample_rate_hz: int) -> Codec:
    # Players take rate and channels from the frames; the header has room for four rates only.
    rate = sum(sample_rate_hz >= lowest for lowest in (11025, 22050, 44100))
    first = (_MP3_8_KHZ if sample_rate_hz == 8000 else 0x20 | rate << 2) | 2 | (channels > 1)
    head = bytes((first,))
    return Codec(AUDIO, b"", lambda data, _key, _composition_ms: head + data)


def _opus(boxes: dict[bytes, Content], _channels: int, _sample_rate_hz: int) -> Codec:
    """Return Opus, with the fields of dOps as an OpusHead, whose numbers are little-endian (RFC 7845 section 5.1)."""
    record = _record(boxes, b"dOps", 11)
    version, channels, skip, rate, gain, family = struct.unpack_from(">BBHIhB", record)
    if version != 0:
        raise Mp4Error(f"Opus with version {version} of dOps is not supported")
    mapping = record[11 : 13 + channels] if family != _PLAIN_OPUS else b""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, channels, skip, rate, gain, family) + mapping
    return _enhanced_audio(b"Opus", head)


def _flac(boxes: dict[bytes, Content], _channels: int, _sample_rate_hz: int) -> Codec:
    # Version and flags, the header of the first metadata block, and STREAMINFO (RFC 9639 section 8).
    return _enhanced_audio(b"fLaC", _record(boxes, b"dfLa", 42)[8:42])


def _simple_audio(four_cc: bytes) -> Callable[[dict[bytes, Content], int, int], Codec]:
    return lambda _boxes, _channels, _sample_rate_hz: _enhanced_audio(four_cc, b"")


def _enhanced_audio(four_cc: bytes, record: bytes) -> Codec:
    head = bytes((_EX_AUDIO | _CODED_FRAMES,)) + four_cc
    start = bytes((_EX_AUDIO | _SEQUENCE_START,)) + four_cc + record
    return Codec(AUDIO, start, lambda data, _key, _composition_ms: head + data)


_VIDEO: dict[bytes, Callable[[dict[bytes, Content]], Codec]] = {
    b"avc1": _avc,
    b"avc3": _avc,
    b"hvc1": _hevc,
    b"hev1": _hevc,
    b"av01": _simple_video(b"av01", b"av1C", 4),
    b"vp09": _simple_video(b"vp09", b"vpcC", 8),
}
_AUDIO: dict[bytes, Callable[[dict[bytes, Content], int, int], Codec | None]] = {
    b"mp4a": _mpeg4_audio,
    b".mp3": _mp3,
    b"Opus": _opus,
    b"fLaC": _flac,
    b"ac-3": _simple_audio(b"ac-3"),
    b"ec-3": _simple_audio(b"ec-3"),
}

SUPPORTED = "H.264, HEVC, AV1 or VP9 with AAC, MP3, Opus, FLAC, AC-3 or E-AC-3"
"""The codecs, for a message."""
