"""Reads the headers of audio codecs: AAC, Opus, FLAC, MP3, AC-3, E-AC-3, and what the tag header says of the others.

Records are AudioSpecificConfig (ISO/IEC 14496-3), OpusHead (RFC 7845) and STREAMINFO (RFC 9639). Nothing raises; see codecs.

Imports bits and track_config; must not import codecs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.media.bits import BitReader
from rtmpd.media.track_config import AudioConfig

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AUDIO_FRAMES", "AUDIO_RECORDS", "from_tag_header"]


# AAC ----------------------------------------------------------------------------------------------------------------------

_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_AAC_CHANNELS = (0, 1, 2, 3, 4, 5, 6, 8, 0, 0, 0, 7, 8, 24, 8, 0)  # table 1.19
_AAC_PROFILES = {1: "Main", 2: "LC", 3: "SSR", 4: "LTP", 23: "LD", 39: "ELD", 42: "xHE-AAC"}
_SBR, _PS = 5, 29
_WITH_GA_CONFIG = (1, 2, 3, 4, 6, 7)
_SYNC_SBR, _SYNC_PS = 0x2B7, 0x548


def _aac(record: bytes) -> AudioConfig:
    """Read an AudioSpecificConfig (ISO/IEC 14496-3 section 1.6.2.1)."""
    reader = BitReader(record)
    try:
        object_type = _aac_object_type(reader)
        rate = _aac_rate(reader)
        channels_code = reader.bits(4)
    except EOFError:
        return AudioConfig("aac")
    sbr, ps = object_type in (_SBR, _PS), object_type == _PS
    try:
        if sbr:
            # Hierarchical signalling: the extension comes first, what it extends after it.
            rate = _aac_rate(reader) or rate
            object_type = _aac_object_type(reader)
        elif object_type in _WITH_GA_CONFIG and channels_code:
            # Backward compatible signalling, behind GASpecificConfig (section 4.4.1).
            reader.skip(1)
            if reader.flag():
                reader.skip(14)
            reader.skip(1)
            if reader.bits(11) == _SYNC_SBR and _aac_object_type(reader) == _SBR:
                sbr = reader.flag()
                if sbr:
                    rate = _aac_rate(reader) or rate
                    ps = reader.bits(11) == _SYNC_PS and reader.flag()
    except EOFError:
        pass  # the extension is optional
    channels = _AAC_CHANNELS[channels_code]
    profile = "HE-AACv2" if ps else "HE-AAC" if sbr else _AAC_PROFILES.get(object_type, "")
    return AudioConfig("aac", profile, rate, 2 if ps and channels == 1 else channels)


def _aac_object_type(reader: BitReader) -> int:
    object_type = reader.bits(5)
    return 32 + reader.bits(6) if object_type == 31 else object_type


def _aac_rate(reader: BitReader) -> int:
    """Read a sampling frequency, Hz: an index, or the number itself behind index 15."""
    index = reader.bits(4)
    if index == 15:
        return reader.bits(24)
    return _AAC_RATES[index] if index < len(_AAC_RATES) else 0


# Other audio --------------------------------------------------------------------------------------------------------------


def _opus(record: bytes) -> AudioConfig:
    """Read OpusHead (RFC 7845 section 5.1). Opus always decodes to 48 kHz; the rate in there is only the input's."""
    return AudioConfig("opus", "", 48000, record[9] if record[:8] == b"OpusHead" and len(record) > 9 else 0)


def _flac(record: bytes) -> AudioConfig:
    """Read STREAMINFO (RFC 9639 section 8.2), alone or as the first block of a FLAC file."""
    if record[:4] == b"fLaC":
        record = record[8:]
    reader = BitReader(record)
    try:
        reader.skip(80)
        return AudioConfig("flac", "", reader.bits(20), reader.bits(3) + 1)
    except EOFError:
        return AudioConfig("flac")


_MP3_RATES = (44100, 48000, 32000)
_MP3_RATE_SHIFTS = {3: 0, 2: 1, 0: 2}  # MPEG 1, 2 and 2.5


def _mp3_frame(frame: bytes) -> AudioConfig | None:
    """Read a frame header (ISO/IEC 11172-3 section 2.4.1.3)."""
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    version, rate_index = frame[1] >> 3 & 3, frame[2] >> 2 & 3
    if version not in _MP3_RATE_SHIFTS or rate_index == 3 or not frame[1] & 6:
        return None
    return AudioConfig("mp3", "", _MP3_RATES[rate_index] >> _MP3_RATE_SHIFTS[version], 1 if frame[3] >> 6 == 3 else 2)


_AC3_RATES = (48000, 44100, 32000)
_AC3_CHANNELS = (2, 1, 2, 3, 3, 4, 4, 5)  # by acmod, without the low frequency channel


def _ac3_frame(frame: bytes) -> AudioConfig | None:
    """Read a sync frame of AC-3 or E-AC-3 (ETSI TS 102 366 sections 4.3 and E.1.2); bsid tells them apart."""
    if len(frame) < 8 or frame[:2] != b"\x0b\x77":
        return None
    rate_code = frame[4] >> 6
    if frame[5] >> 3 > 10:
        half_code = frame[4] >> 4 & 3
        rates = (*_AC3_RATES, _AC3_RATES[half_code] // 2 if half_code < 3 else 0)
        return AudioConfig("eac3", "", rates[rate_code], _AC3_CHANNELS[frame[4] >> 1 & 7] + (frame[4] & 1))
    if rate_code == 3:
        return None
    reader = BitReader(frame[6:8])
    mode = reader.bits(3)
    # Mix levels and the surround mode take 2 bits each, where the mode has use for them.
    reader.skip(2 * (mode & 1 and mode != 1) + 2 * bool(mode & 4) + 2 * (mode == 2))
    # Half and quarter rates have a bsid of 9 and 10.
    rate = _AC3_RATES[rate_code] >> max(0, (frame[5] >> 3) - 8)
    return AudioConfig("ac3", "", rate, _AC3_CHANNELS[mode] + reader.bits(1))


_FIXED_RATES = {"speex": 16000, "g711a": 8000, "g711u": 8000, "opus": 48000}
_FORMAT_RATES = {4: 16000, 5: 8000, 14: 8000}  # Nellymoser at 16 and 8 kHz, MP3 at 8 kHz


def from_tag_header(first: int, codec: str) -> AudioConfig:
    """Read the first byte of a legacy audio tag (FLV specification section E.4.2.1)."""
    rate = _FIXED_RATES.get(codec) or _FORMAT_RATES.get(first >> 4) or 44100 << (first >> 2 & 3) >> 3
    # Speex and the fixed Nellymosers are mono whatever the flag says.
    channels = 1 if codec == "speex" or first >> 4 in (4, 5) else 1 + (first & 1)
    return AudioConfig(codec, "", rate, channels)


AUDIO_RECORDS: dict[str, Callable[[bytes], AudioConfig]] = {"aac": _aac, "opus": _opus, "flac": _flac}
"""Readers of sequence headers, by codec."""

AUDIO_FRAMES: dict[str, Callable[[bytes], AudioConfig | None]] = {"mp3": _mp3_frame, "ac3": _ac3_frame, "eac3": _ac3_frame}
"""Readers of frames that say what they are, by codec."""
