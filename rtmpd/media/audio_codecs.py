"""The configuration of audio tracks: codec, profile, sample rate and channels, parsed from RTMP messages.

Sequence headers contain an AudioSpecificConfig (ISO/IEC 14496-3), an OpusHead (RFC 7845) or a STREAMINFO (RFC 9639); other
codecs describe themselves in their frames or in the tag header, and a multichannel configuration of Enhanced RTMP (table
ExAudioTagBody) adds the layout of the channels. The names of profiles and layouts are FFmpeg's. Nothing raises: encoders send
truncated and wrong records, and fields that can't be parsed stay 0 or empty. Of multitrack messages, the first track is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rtmpd.media.bits import BitReader
from rtmpd.media.tags import AudioPacket, Kind, audio_info, codec_id, first_track_data

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.media.tags import TagInfo


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """The configuration of an audio track. 0 and empty texts mean unknown.

    Attributes:
        codec: The name as in `TagInfo`, such as ``aac``.
        profile: FFmpeg's name, such as ``LC`` or ``HE-AACv2``; only AAC has profiles.
        sample_rate_hz: The rate of the decoded audio: with SBR, the doubled one.
        channels: The channels of the decoded audio: 2 with parametric stereo. 0 also if a program config element lists them.
        codec_id: The codec in messages and in ``audiocodecid`` of onMetaData: the id of a legacy header, or the FourCC as a
            big-endian number. Not compared, because it describes the transport of the track.
        layout: The layout of the channels, such as ``5.1``, from a multichannel configuration. Not compared.
    """

    codec: str
    profile: str = ""
    sample_rate_hz: int = 0
    channels: int = 0
    codec_id: int | None = field(default=None, compare=False)
    layout: str = field(default="", compare=False)


def audio_config(payload: bytes) -> AudioConfig | None:
    """Parse the payload of an audio message: a sequence header, or a frame of a codec without sequence headers.

    Returns:
        The fields that could be parsed; None for messages without any.
    """
    info = audio_info(payload)
    found = _audio_config(payload, info) if info.codec else None
    return replace(found, codec_id=codec_id(payload[0] >> 4, info)) if found else None


def _audio_config(payload: bytes, info: TagInfo) -> AudioConfig | None:
    body = first_track_data(payload, info)
    if info.kind == Kind.HEADER:
        if info.packet_type == AudioPacket.MULTICHANNEL_CONFIG:
            return None
        record = _RECORDS.get(info.codec)
        # The sequence start of MP3, AC-3 and E-AC-3 is empty: their frames have the configuration.
        return record(body) if record else None if info.codec in _FRAMES else AudioConfig(info.codec)
    if info.kind == Kind.FRAME:
        frame = _FRAMES.get(info.codec)
        if frame:
            found = frame(body)
            if found or info.packet_type is not None:
                return found
        if info.packet_type is None:
            return _from_tag_header(payload[0], info.codec)
    return None


def refine_audio(config: AudioConfig | None, payload: bytes) -> AudioConfig | None:
    """Return a configuration with the fields that an audio message adds: a sequence header or multichannel configuration.

    Args:
        config: The configuration so far.
        payload: The payload of an audio message of any kind.
    """
    info = audio_info(payload)
    if info.packet_type != AudioPacket.MULTICHANNEL_CONFIG or not info.four_cc:
        return audio_config(payload) or config
    channels = read_channels(first_track_data(payload, info))
    if channels is None or (config is not None and config.codec != info.codec):
        return config
    # FFmpeg sends a layout for mono and stereo, too, which adds nothing to the number.
    layout = channels.layout if channels.count > 2 else ""
    if config is None and info.codec in _FRAMES:
        return None  # the frames of the codec have more fields
    if config is None:
        return AudioConfig(info.codec, channels=channels.count, codec_id=codec_id(0, info), layout=layout)
    return replace(config, channels=config.channels or channels.count, layout=layout)


# Channels -----------------------------------------------------------------------------------------------------------------

_UNSPECIFIED, _NATIVE, _CUSTOM = range(3)
_SPEAKERS = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR"),
    *("LFE2", "TSL", "TSR", "BFC", "BFL", "BFR"),
)
_LAYOUTS = {
    0x3: "stereo",
    0x4: "mono",
    0x7: "3.0",
    0xB: "2.1",
    0xF: "3.1",
    0x33: "quad",
    0x37: "5.0",
    0x3F: "5.1",
    0x107: "4.0",
    0x10F: "4.1",
    0x603: "quad(side)",
    0x607: "5.0(side)",
    0x60F: "5.1(side)",
    0x63F: "7.1",
    0x637: "7.0",
    0x70F: "6.1",
    0xFFFFFF: "22.2",
}
_NOT_USED = 0xFE


@dataclass(frozen=True, slots=True)
class Channels:
    """A multichannel configuration.

    Attributes:
        count: The number of channels.
        layout: FFmpeg's name, such as ``5.1``, or the speakers joined by ``+``; empty if the order is unspecified.
    """

    count: int
    layout: str = ""


def read_channels(body: bytes) -> Channels | None:
    """Parse the body of an AudioPacketType.MultichannelConfig packet; None if it is truncated, or of an unknown order."""
    if len(body) < 2 or not body[1]:
        return None
    order, count = body[0], body[1]
    if order == _UNSPECIFIED:
        return Channels(count)
    if order == _NATIVE and len(body) >= 6:
        flags = int.from_bytes(body[2:6], "big")
        speakers = [name for bit, name in enumerate(_SPEAKERS) if flags >> bit & 1]
        return Channels(count, _LAYOUTS.get(flags) or "+".join(speakers))
    if order == _CUSTOM and len(body) >= 2 + count:
        mapped = body[2 : 2 + count]
        names = [_SPEAKERS[number] if number < len(_SPEAKERS) else "?" for number in mapped if number != _NOT_USED]
        return Channels(count, "+".join(names[: len(_SPEAKERS)]))
    return None


# AAC ----------------------------------------------------------------------------------------------------------------------

_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_AAC_CHANNELS = (0, 1, 2, 3, 4, 5, 6, 8, 0, 0, 0, 7, 8, 24, 8, 0)  # table 1.19
_AAC_PROFILES = {1: "Main", 2: "LC", 3: "SSR", 4: "LTP", 23: "LD", 39: "ELD", 42: "xHE-AAC"}
_SBR, _PS = 5, 29
_WITH_GA_CONFIG = (1, 2, 3, 4, 6, 7)
_SYNC_SBR, _SYNC_PS = 0x2B7, 0x548


def _aac(record: bytes) -> AudioConfig:
    """Parse an AudioSpecificConfig (ISO/IEC 14496-3 section 1.6.2.1)."""
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
            # Hierarchical signalling: the extension comes first, the base layer after it.
            rate = _aac_rate(reader) or rate
            object_type = _aac_object_type(reader)
        elif object_type in _WITH_GA_CONFIG and channels_code:
            # Backward compatible signalling, after GASpecificConfig (section 4.4.1).
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
    """Parse a sampling frequency, Hz: an index, or a number after index 15."""
    index = reader.bits(4)
    if index == 15:
        return reader.bits(24)
    return _AAC_RATES[index] if index < len(_AAC_RATES) else 0


# Other audio --------------------------------------------------------------------------------------------------------------


def _opus(record: bytes) -> AudioConfig:
    """Parse OpusHead (RFC 7845 section 5.1). Opus always decodes to 48 kHz; the rate in it is that of the encoder's input."""
    return AudioConfig("opus", "", 48000, record[9] if record[:8] == b"OpusHead" and len(record) > 9 else 0)


def _flac(record: bytes) -> AudioConfig:
    """Parse STREAMINFO (RFC 9639 section 8.2), alone or as the first block of a FLAC file."""
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
    """Parse a frame header (ISO/IEC 11172-3 section 2.4.1.3)."""
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    version, rate_index = frame[1] >> 3 & 3, frame[2] >> 2 & 3
    if version not in _MP3_RATE_SHIFTS or rate_index == 3 or not frame[1] & 6:
        return None
    return AudioConfig("mp3", "", _MP3_RATES[rate_index] >> _MP3_RATE_SHIFTS[version], 1 if frame[3] >> 6 == 3 else 2)


_AC3_RATES = (48000, 44100, 32000)
_AC3_CHANNELS = (2, 1, 2, 3, 3, 4, 4, 5)  # by acmod, without the low frequency channel


def _ac3_frame(frame: bytes) -> AudioConfig | None:
    """Parse a sync frame of AC-3 or E-AC-3, which differ in bsid (ETSI TS 102 366 sections 4.3 and E.1.2)."""
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
    # The mix levels and the surround mode take 2 bits each, if the mode has them.
    reader.skip(2 * (mode & 1 and mode != 1) + 2 * bool(mode & 4) + 2 * (mode == 2))
    # Half and quarter rates have a bsid of 9 and 10.
    rate = _AC3_RATES[rate_code] >> max(0, (frame[5] >> 3) - 8)
    return AudioConfig("ac3", "", rate, _AC3_CHANNELS[mode] + reader.bits(1))


_FIXED_RATES = {"speex": 16000, "g711a": 8000, "g711u": 8000, "opus": 48000}
_FORMAT_RATES = {4: 16000, 5: 8000, 14: 8000}  # Nellymoser at 16 and 8 kHz, MP3 at 8 kHz


def _from_tag_header(first: int, codec: str) -> AudioConfig:
    """Parse the first byte of a legacy audio tag (FLV specification section E.4.2.1)."""
    rate = _FIXED_RATES.get(codec) or _FORMAT_RATES.get(first >> 4) or 44100 << (first >> 2 & 3) >> 3
    # Speex and the two Nellymosers of a fixed rate are always mono.
    channels = 1 if codec == "speex" or first >> 4 in (4, 5) else 1 + (first & 1)
    return AudioConfig(codec, "", rate, channels)


_RECORDS: dict[str, Callable[[bytes], AudioConfig]] = {"aac": _aac, "opus": _opus, "flac": _flac}
"""Parsers of sequence headers, by codec."""

_FRAMES: dict[str, Callable[[bytes], AudioConfig | None]] = {"mp3": _mp3_frame, "ac3": _ac3_frame, "eac3": _ac3_frame}
"""Parsers of frames, for codecs whose frames have the configuration."""
