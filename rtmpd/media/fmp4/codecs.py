"""Sample entries and codec names of MP4 tracks, from the sequence headers and frames of RTMP messages.

Messages have the headers that `rtmpd.media.fmp4.frames` makes. The names are those of RFC 6381 section 3 and of the bindings of
each codec, as a browser expects them in ``codecs``. MP4 has no place for Sorenson H.263, Screen video, VP6, Nellymoser, Speex,
ADPCM and G.711 in the form that RTMP carries; browsers play neither them nor PCM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rtmpd.errors import UnsupportedByMp4
from rtmpd.media.audio_codecs import AudioConfig, audio_config
from rtmpd.media.bits import BitReader
from rtmpd.media.fmp4.boxes import box, full_box
from rtmpd.media.tags import audio_info
from rtmpd.media.video_codecs import ColorInfo, VideoConfig, video_config

if TYPE_CHECKING:
    from collections.abc import Callable

VIDEO_TRACK, AUDIO_TRACK = 1, 2
"""The ids of the tracks."""

VIDEO_TIMESCALE: Final = 90_000

_BODY = 5
"""The offset of the codec's data: behind a FourCC, or a composition time."""
_AAC_BODY = 2
_RESERVED = bytes(6)
_FIRST_DATA_REFERENCE = b"\0\1"
_ENTRY_RATE_LIMIT_HZ = 0xFFFF
_MAX_SIDE = 0xFFFF


@dataclass(frozen=True, slots=True)
class Track:
    """A track of the movie.

    Attributes:
        track_id: `VIDEO_TRACK` or `AUDIO_TRACK`.
        codec: The name of the codec in ``codecs`` (RFC 6381), such as ``avc1.64001f``.
        timescale: Ticks per second: 90000 for video, the sample rate for audio.
        entry: The sample entry.
        width, height: The size of the picture, pixels; 0 for audio.
        frame_ticks: The duration of an audio frame, if all have the same; otherwise 0.
    """

    track_id: int
    codec: str
    timescale: int
    entry: bytes
    width: int = 0
    height: int = 0
    frame_ticks: int = 0

    @property
    def four_cc(self) -> bytes:
        """The FourCC of the codec in Enhanced RTMP."""
        return b".mp3" if self.codec == "mp3" else self.entry[4:8]


# Video --------------------------------------------------------------------------------------------------------------------


def video_track(header: bytes, keyframe: bytes, size: tuple[int, int], color: ColorInfo | None) -> Track:
    """Return the video track of a sequence header.

    Args:
        header: The payload of the sequence header.
        keyframe: The payload of a keyframe, for codecs whose sequence header may lack the size; empty: none has come yet.
        size: The size that onMetaData has, if neither of them has it; zeros: unknown.
        color: The colours of Enhanced RTMP's colorInfo.

    Raises:
        UnsupportedByMp4: MP4 can't carry the codec, or the header is damaged.
    """
    legacy = header[0] < 0x80
    kind = b"avc1" if legacy else header[1:5]
    make = _VIDEO.get(kind)
    config = video_config(header)
    if make is None or config is None or (legacy and header[0] & 15 != _CODEC_AVC):
        raise UnsupportedByMp4(f"MP4 can't carry video codec {config.codec if config else 'without a name'}")
    frame = video_config(keyframe) if keyframe else None
    width, height = config.width, config.height
    if not width and frame is not None and frame.codec == config.codec:
        width, height = frame.width, frame.height
    width, height = (width, height) if width else size
    if not 0 < width <= _MAX_SIDE or not 0 < height <= _MAX_SIDE:
        raise UnsupportedByMp4(f"the size of {config.codec} video is not known yet")
    name, setup = make(header[_BODY:], frame)
    entry = box(
        kind,
        _RESERVED,
        _FIRST_DATA_REFERENCE,
        bytes(16),
        struct.pack(">HHII", width, height, 72 << 16, 72 << 16),  # pixels per inch
        bytes(4),
        b"\0\1",  # frames per sample
        bytes(32),
        b"\0\x18\xff\xff",
        setup,
        *_color_boxes(color),
    )
    return Track(VIDEO_TRACK, name, VIDEO_TIMESCALE, entry, width, height)


_CODEC_AVC = 7


def _need(record: bytes, shortest: int, what: str) -> None:
    if len(record) < shortest:
        raise UnsupportedByMp4(f"the sequence header is damaged: {what} has {len(record)} bytes, expected at least {shortest}")


def _avc(record: bytes, _keyframe: VideoConfig | None) -> tuple[str, bytes]:
    _need(record, 7, "avcC")
    return f"avc1.{record[1:4].hex()}", box(b"avcC", record)


def _hevc(record: bytes, _keyframe: VideoConfig | None) -> tuple[str, bytes]:
    """Return the name as in ISO/IEC 14496-15 annex E.3: compatibility flags in reverse order, constraints without zeros."""
    _need(record, 23, "hvcC")
    space = ("", "A", "B", "C")[record[1] >> 6]
    tier = "H" if record[1] & 0x20 else "L"
    flags = int(f"{int.from_bytes(record[2:6], 'big'):032b}"[::-1], 2)
    constraints = "".join(f".{byte:X}" for byte in record[6:12].rstrip(b"\0"))
    return f"hvc1.{space}{record[1] & 31}.{flags:X}.{tier}{record[12]}{constraints}", box(b"hvcC", record)


_AV1_PROFILES = {"Main": 0, "High": 1, "Professional": 2}
_AV1_CHROMA = {"4:0:0": 0x1C, "4:2:0": 0x0C, "4:2:2": 8, "4:4:4": 0}


def _av1(record: bytes, keyframe: VideoConfig | None) -> tuple[str, bytes]:
    """Return the name as in the AV1 codec ISO media file format binding, section 5.

    FFmpeg's av1C of libaom is empty: the fields are then those of a keyframe.
    """
    if len(record) < 4:
        if keyframe is None:
            raise UnsupportedByMp4("the parameters of AV1 video are not known yet")
        major, _, minor = keyframe.level.partition(".")
        level = (int(major) - 2) * 4 + int(minor) if minor else 31
        depth = {10: 0x40, 12: 0x60}.get(keyframe.bit_depth, 0)
        profile = _AV1_PROFILES.get(keyframe.profile, 0)
        record = bytes((0x81, profile << 5 | level, depth | _AV1_CHROMA.get(keyframe.chroma, 0x0C), 0))
    flags = record[2]
    depth = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    name = f"av01.{record[1] >> 5}.{record[1] & 31:02}{'H' if flags & 0x80 else 'M'}.{depth:02}"
    return name, box(b"av1C", record)


_LOWEST_VPX_LEVEL = 10
_VPCC = b"\1\0\0\0"


def _vpx(kind: str) -> Callable[[bytes, VideoConfig | None], tuple[str, bytes]]:
    """Return the function for VP8 or VP9 (VP codec ISO media file format binding, sections 3 and 5)."""

    def make(record: bytes, _keyframe: VideoConfig | None) -> tuple[str, bytes]:
        # FFmpeg sends the version and flags of the box before the record.
        if record[:4] == _VPCC:
            record = record[4:]
        _need(record, 8, "vpcC")
        # Encoders that do not know the level send 0, for which browsers have no decoder.
        level = record[1] or _LOWEST_VPX_LEVEL
        return f"{kind}.{record[0]:02}.{level:02}.{record[2] >> 4:02}", box(b"vpcC", _VPCC, record[:8])

    return make


_VIDEO: dict[bytes, Callable[[bytes, VideoConfig | None], tuple[str, bytes]]] = {
    b"avc1": _avc,
    b"hvc1": _hevc,
    b"av01": _av1,
    b"vp08": _vpx("vp08"),
    b"vp09": _vpx("vp09"),
}

_UNSPECIFIED = 2
_CHROMATICITY_UNIT, _LUMINANCE_UNIT = 50_000, 10_000


def _color_boxes(color: ColorInfo | None) -> list[bytes]:
    """Return the boxes for colours and luminance that are known (ISO/IEC 14496-12 sections 12.1.5 to 12.1.7)."""
    if color is None:
        return []
    found = []
    if color.primaries or color.transfer or color.matrix > 0:
        matrix = color.matrix if color.matrix >= 0 else _UNSPECIFIED
        numbers = (color.primaries or _UNSPECIFIED, color.transfer or _UNSPECIFIED, matrix)
        found.append(box(b"colr", b"nclx", struct.pack(">HHHB", *numbers, 0)))
    if color.chromaticities and color.max_luminance:
        red, green, blue, white = (color.chromaticities[index : index + 2] for index in range(0, 8, 2))
        points = [round(each * _CHROMATICITY_UNIT) for each in (*green, *blue, *red, *white)]
        luminance = [round(each * _LUMINANCE_UNIT) for each in (color.max_luminance, color.min_luminance)]
        found.append(box(b"mdcv", struct.pack(">8H2I", *points, *luminance)))
    if color.max_cll or color.max_fall:
        found.append(box(b"clli", struct.pack(">HH", round(color.max_cll), round(color.max_fall))))
    return found


# Audio --------------------------------------------------------------------------------------------------------------------


def audio_track(header: bytes, frame: bytes) -> Track:
    """Return the audio track of a sequence header or frame.

    Args:
        header: The payload of the sequence header; empty for a codec that has none.
        frame: The payload of a frame, for codecs whose frames have the configuration; empty: none has come yet.

    Raises:
        UnsupportedByMp4: MP4 can't carry the codec, or the header is damaged.
    """
    config = audio_config(frame or header) or audio_config(header)
    codec = config.codec if config else ""
    first = header or frame
    kind = b"" if first[0] >> 4 != _ENHANCED else first[1:5]
    if not header and (first[0] >> 4 == _LEGACY_AAC or kind in (b"mp4a", b"Opus", b"fLaC")):
        raise UnsupportedByMp4(f"MP4 can't carry audio codec {audio_info(first).codec} without a sequence header")
    if codec == "aac":
        return _aac(header[_AAC_BODY:], audio_config(header) or AudioConfig(codec))
    if codec == "mp3":
        return mp3_track(config.sample_rate_hz, config.channels) if config else mp3_track(0, 0)
    make = _AUDIO.get(kind)
    if make is None:
        raise UnsupportedByMp4(f"MP4 can't carry audio codec {codec or 'without a name'}")
    return make(header[_BODY:], frame[_BODY:], audio_config(frame) if frame else config)


_ENHANCED, _LEGACY_AAC = 9, 10


def _audio_entry(kind: bytes, rate_hz: int, channels: int, *setup: bytes) -> bytes:
    # A rate that has no place here is in the codec's own box.
    entry_rate = rate_hz if rate_hz <= _ENTRY_RATE_LIMIT_HZ else 0
    fields = struct.pack(">8xHHIHH", channels, 16, 0, entry_rate, 0)
    return box(kind, _RESERVED, _FIRST_DATA_REFERENCE, fields, *setup)


def _descriptor(tag: int, *content: bytes) -> bytes:
    """Return a descriptor (ISO/IEC 14496-1 section 8.3.3), with a length of four bytes, as most writers have it."""
    size = sum(map(len, content))
    length = bytes((size >> 21 & 127 | 128, size >> 14 & 127 | 128, size >> 7 & 127 | 128, size & 127))
    return b"".join((bytes((tag,)), length, *content))


def _esds(track_id: int, object_type: int, info: bytes) -> bytes:
    """Return an elementary stream descriptor (ISO/IEC 14496-1 section 7.2.6.5); bit rates are not known."""
    audio_stream = 5 << 2 | 1
    specific = _descriptor(5, info) if info else b""
    config = _descriptor(4, bytes((object_type, audio_stream)), bytes(11), specific)
    return full_box(b"esds", 0, 0, _descriptor(3, struct.pack(">HB", track_id, 0), config, _descriptor(6, b"\2")))


_AAC_OBJECT, _MPEG1_AUDIO, _MPEG2_AUDIO = 0x40, 0x6B, 0x69
_AAC_PROFILES = {"Main": 1, "LC": 2, "SSR": 3, "LTP": 4, "HE-AAC": 5, "LD": 23, "HE-AACv2": 29, "ELD": 39, "xHE-AAC": 42}
_AAC_FRAME, _SHORT_AAC_FRAME = 1024, 960


def _aac(record: bytes, config: AudioConfig) -> Track:
    _need(record, 2, "AudioSpecificConfig")
    rate = config.sample_rate_hz
    if not rate:
        raise UnsupportedByMp4("the sequence header is damaged: AAC without a sample rate")
    ticks = _SHORT_AAC_FRAME if record[1] & 4 and record[0] >> 3 == 2 else _AAC_FRAME
    if config.profile in ("HE-AAC", "HE-AACv2"):
        ticks *= 2
    object_type = _AAC_PROFILES.get(config.profile, record[0] >> 3)
    entry = _audio_entry(b"mp4a", rate, config.channels or 2, _esds(AUDIO_TRACK, _AAC_OBJECT, record))
    return Track(AUDIO_TRACK, f"mp4a.40.{object_type}", rate, entry, frame_ticks=ticks)


def mp3_track(rate_hz: int, channels: int) -> Track:
    """Return an MP3 track. Zeros: unknown; 44.1 kHz and stereo are assumed."""
    rate_hz = rate_hz or 44100
    low = rate_hz < 32000  # MPEG-2 and 2.5: frames have half of the samples
    entry = _audio_entry(b"mp4a", rate_hz, channels or 2, _esds(AUDIO_TRACK, _MPEG2_AUDIO if low else _MPEG1_AUDIO, b""))
    return Track(AUDIO_TRACK, "mp3", rate_hz, entry, frame_ticks=576 if low else 1152)


def _opus(record: bytes, _frame: bytes, _config: AudioConfig | None) -> Track:
    """Return Opus: its box has the fields of OpusHead as big-endian numbers (Opus in ISOBMFF section 4.3.2)."""
    _need(record, 19, "OpusHead")
    version, channels, skip, rate, gain, family = struct.unpack_from("<BBHIhB", record, 8)
    if record[:8] != b"OpusHead" or version >> 4:
        raise UnsupportedByMp4("the sequence header is damaged: Opus without OpusHead")
    mapping = record[19 : 21 + channels] if family else b""
    setup = box(b"dOps", struct.pack(">BBHIhB", 0, channels, skip, rate, gain, family), mapping)
    return Track(AUDIO_TRACK, "opus", 48000, _audio_entry(b"Opus", 48000, channels, setup))


_STREAMINFO_BYTES = 34


def _flac(record: bytes, _frame: bytes, config: AudioConfig | None) -> Track:
    """Return FLAC (Encapsulation of FLAC in ISO Base Media File Format, section 3.3.2)."""
    if record[:4] == b"fLaC":
        record = record[8:]
    _need(record, _STREAMINFO_BYTES, "STREAMINFO")
    rate = config.sample_rate_hz if config else 0
    if not rate:
        raise UnsupportedByMp4("the sequence header is damaged: FLAC without a sample rate")
    shortest, longest = struct.unpack_from(">HH", record)
    setup = full_box(b"dfLa", 0, 0, b"\x80\0\0\x22", record[:_STREAMINFO_BYTES])
    entry = _audio_entry(b"fLaC", rate, config.channels if config else 2, setup)
    return Track(AUDIO_TRACK, "fLaC", rate, entry, frame_ticks=longest if shortest == longest else 0)


_AC3_FRAME = 1536
_STEREO_AC3 = b"\x0b\x77\0\0\x14\x40\x43\xe1"
"""The beginning of a frame of 192 kbit/s, 48 kHz and two channels: what is assumed until the first frame comes."""
_STEREO_EAC3 = b"\x0b\x77\1\x7f\x34\x86"


def _ac3(_record: bytes, frame: bytes, config: AudioConfig | None) -> Track:
    """Return AC-3 (ETSI TS 102 366 annex F.4), by the bit stream information of a frame (section 4.4.2)."""
    if config is None or len(frame) < 8:
        frame, config = _STEREO_AC3, AudioConfig("ac3", "", 48000, 2)
    reader = BitReader(frame[4:8])
    rate_code, bit_rate_code = reader.bits(2), reader.bits(6) >> 1
    bsid, bsmod, acmod = reader.bits(5), reader.bits(3), reader.bits(3)
    reader.skip(2 * (acmod & 1 and acmod != 1) + 2 * bool(acmod & 4) + 2 * (acmod == 2))
    fields = rate_code << 22 | bsid << 17 | bsmod << 14 | acmod << 11 | reader.bits(1) << 10 | bit_rate_code << 5
    rate = config.sample_rate_hz or 48000
    entry = _audio_entry(b"ac-3", rate, config.channels or 2, box(b"dac3", fields.to_bytes(3, "big")))
    return Track(AUDIO_TRACK, "ac-3", rate, entry, frame_ticks=_AC3_FRAME)


def _eac3(_record: bytes, frame: bytes, config: AudioConfig | None) -> Track:
    """Return E-AC-3 with one independent substream (ETSI TS 102 366 annexes E.1.2 and F.6)."""
    if config is None or len(frame) < 6:
        frame, config = _STEREO_EAC3, AudioConfig("eac3", "", 48000, 2)
    reader = BitReader(frame[2:6])
    reader.skip(5)
    size = (reader.bits(11) + 1) * 2
    rate_code, blocks_code, acmod, lfe, bsid = (reader.bits(count) for count in (2, 2, 3, 1, 5))
    blocks = 6 if rate_code == 3 else (1, 2, 3, 6)[blocks_code]
    rate = config.sample_rate_hz or 48000
    kbit_s = min(size * 8 * rate // (blocks * 256 * 1000), 0x1FFF)
    # Then the number of independent substreams less 1, and reserved bits.
    fields = kbit_s << 27 | rate_code << 22 | bsid << 17 | acmod << 9 | lfe << 8
    entry = _audio_entry(b"ec-3", rate, config.channels or 2, box(b"dec3", fields.to_bytes(5, "big")))
    return Track(AUDIO_TRACK, "ec-3", rate, entry, frame_ticks=blocks * 256)


_AUDIO: dict[bytes, Callable[[bytes, bytes, AudioConfig | None], Track]] = {
    b"Opus": _opus,
    b"fLaC": _flac,
    b"ac-3": _ac3,
    b"ec-3": _eac3,
}
