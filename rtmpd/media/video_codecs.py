"""The configuration of video tracks: codec, profile, level, size, sample format and colours, parsed from RTMP messages.

Sequence headers contain decoder configuration records: avcC, hvcC and vvcC (ISO/IEC 14496-15), av1C (AV1 codec ISO media file
format binding) and vpcC (VP codec ISO media file format binding). Where these lack a field, and for older codecs, keyframes are
parsed. Colours come from the colorInfo of Enhanced RTMP (section "Metadata Frame"). The names of profiles are FFmpeg's. Nothing
raises: encoders send truncated and wrong records, and fields that can't be parsed stay 0 or empty. Of multitrack messages, the
first track is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from rtmpd.errors import AmfError, LimitExceeded
from rtmpd.media.bits import BitReader, unescape
from rtmpd.media.tags import Kind, VideoPacket, codec_id, first_track_data, video_info
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import AmfLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rtmpd.media.tags import TagInfo
    from rtmpd.protocol.amf_values import AmfValue

_MAX_SIDE = 1 << 16  # pixels; a larger number means that the header was misread


@dataclass(frozen=True, slots=True)
class VideoConfig:
    """The configuration of a video track. 0 and empty texts mean unknown.

    Attributes:
        codec: The name as in `TagInfo`, such as ``h264``.
        profile: FFmpeg's name, such as ``High`` or ``Main 10``.
        level: The level, such as ``4.1``; ``1b`` is a level of H.264.
        width, height: The size of the displayed picture in pixels: cropped, before the pixel aspect ratio is applied.
        bit_depth: Bits per sample of luma.
        chroma: ``4:2:0``, ``4:2:2``, ``4:4:4``, ``4:4:0``, or ``4:0:0`` for grey.
        codec_id: The codec in messages and in ``videocodecid`` of onMetaData: the id of a legacy header, or the FourCC as a
            big-endian number. Not compared, because it describes the transport of the track.
        color: The text of `ColorInfo`. Not compared, because it comes in separate messages.
    """

    codec: str
    profile: str = ""
    level: str = ""
    width: int = 0
    height: int = 0
    bit_depth: int = 0
    chroma: str = ""
    codec_id: int | None = field(default=None, compare=False)
    color: str = field(default="", compare=False)


def video_config(payload: bytes) -> VideoConfig | None:
    """Parse the payload of a video message: a sequence header, or a keyframe of a codec whose keyframes have the configuration.

    Keyframes also help with VP9 and AV1, whose records may lack the size.

    Returns:
        The fields that could be parsed, at least the codec of every sequence header; None for messages without any.
    """
    info = video_info(payload)
    found = _video_config(payload, info) if info.codec else None
    return replace(found, codec_id=codec_id(payload[0] & 15, info)) if found else None


def _video_config(payload: bytes, info: TagInfo) -> VideoConfig | None:
    body = first_track_data(payload, info)
    if info.kind == Kind.HEADER:
        if info.packet_type == VideoPacket.MPEG2TS_SEQUENCE_START:
            return VideoConfig(info.codec)
        record = _RECORDS.get(info.codec)
        return record(body) if record else VideoConfig(info.codec)
    if info.kind in (Kind.KEYFRAME, Kind.TRACK_KEYFRAME):
        keyframe = _KEYFRAMES.get(info.codec)
        if keyframe:
            return keyframe(body)
        if info.packet_type is None:
            return VideoConfig(info.codec)
    return None


def refine_video(config: VideoConfig | None, payload: bytes) -> VideoConfig | None:
    """Return a configuration with the fields that a keyframe adds: vpcC has no size, and FFmpeg's av1C of libaom is empty.

    Args:
        config: The configuration so far.
        payload: The payload of a video message of any kind.
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
    """Parse a metadata packet of a video track.

    Returns:
        The text of its `ColorInfo`, which is empty if it resets the colours; None without a colorInfo.
    """
    info = video_info(payload)
    color = read_color_info(first_track_data(payload, info)) if info.kind == Kind.METADATA else None
    return None if color is None else str(color)


def _picture_size(width: int, height: int) -> tuple[int, int]:
    """Return the size, or 0 and 0 if it is not possible for a picture."""
    return (width, height) if 0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE else (0, 0)


_CHROMA = ("4:0:0", "4:2:0", "4:2:2", "4:4:4")
"""By chroma_format_idc."""


# H.264 --------------------------------------------------------------------------------------------------------------------

_AVC_PROFILES = {
    44: "CAVLC 4:4:4",
    66: "Baseline",
    77: "Main",
    88: "Extended",
    100: "High",
    110: "High 10",
    118: "Multiview High",
    122: "High 4:2:2",
    128: "Stereo High",
    144: "High 4:4:4",
    244: "High 4:4:4 Predictive",
}
_AVC_INTRA_PROFILES = {110: "High 10 Intra", 122: "High 4:2:2 Intra", 244: "High 4:4:4 Intra"}
_AVC_WITH_CHROMA = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # section 7.3.2.1.1


def _avc(record: bytes) -> VideoConfig:
    """Parse avcC (ISO/IEC 14496-15 section 5.3.3.1)."""
    if len(record) < 4 or record[0] != 1:
        return VideoConfig("h264")
    profile_idc, constraints, level_idc = record[1:4]
    profile = _AVC_PROFILES.get(profile_idc, "")
    if profile_idc == 66 and constraints & 0x40:
        profile = "Constrained Baseline"
    elif constraints & 0x10:
        profile = _AVC_INTRA_PROFILES.get(profile_idc, profile)
    level = f"{level_idc // 10}.{level_idc % 10}"
    # Annex A.3.1: in the older profiles, level 1.1 with constraint_set3_flag is 1b; the newer ones have level_idc 9 for it.
    if level_idc == 9 or (level_idc == 11 and constraints & 0x10 and profile_idc in (66, 77, 88)):
        level = "1b"
    config = VideoConfig("h264", profile, level)
    size = int.from_bytes(record[6:8], "big")
    try:
        return _avc_sps(config, BitReader(unescape(record[9 : 8 + size])))
    except (EOFError, IndexError):
        return config


def _avc_sps(config: VideoConfig, reader: BitReader) -> VideoConfig:
    """Parse a sequence parameter set (H.264 section 7.3.2.1.1) up to the usability information."""
    profile_idc = reader.bits(8)
    reader.skip(16)  # constraints, level
    reader.ue()  # the set's id
    chroma_format, bit_depth, separate_planes = 1, 8, False
    if profile_idc in _AVC_WITH_CHROMA:
        chroma_format = reader.ue()
        if chroma_format == 3:
            separate_planes = reader.flag()
        bit_depth = reader.ue() + 8
        reader.ue()  # bit depth of chroma
        reader.skip(1)
        if reader.flag():
            for index in range(12 if chroma_format == 3 else 8):
                if reader.flag():
                    _skip_scaling_list(reader, 16 if index < 6 else 64)
    chroma = _CHROMA[chroma_format]
    reader.ue()  # log2_max_frame_num_minus4
    order_count_type = reader.ue()
    if order_count_type == 0:
        reader.ue()
    elif order_count_type == 1:
        reader.skip(1)
        reader.se()
        reader.se()
        for _ in range(min(reader.ue(), 255)):
            reader.se()
    reader.ue()  # max_num_ref_frames
    reader.skip(1)
    width = (reader.ue() + 1) * 16
    map_units = reader.ue() + 1
    frames_only = reader.flag()
    height = map_units * 16 * (1 if frames_only else 2)
    if not frames_only:
        reader.skip(1)
    reader.skip(1)
    if reader.flag():
        unit_x, unit_y = (1, 1) if separate_planes else _crop_units(chroma_format)
        width -= (reader.ue() + reader.ue()) * unit_x
        height -= (reader.ue() + reader.ue()) * unit_y * (1 if frames_only else 2)
    width, height = _picture_size(width, height)
    return replace(config, width=width, height=height, bit_depth=bit_depth, chroma=chroma)


def avc_timing_bits(record: bytes) -> int | None:
    """Return the number of bits before pic_struct in picture timing SEI messages (H.264 section D.1.3).

    Args:
        record: An avcC.

    Returns:
        None if there is no pic_struct, or the record can't be parsed.
    """
    if len(record) < 9 or record[0] != 1:
        return None
    reader = BitReader(unescape(record[9 : 8 + int.from_bytes(record[6:8], "big")]))
    try:
        _avc_sps(VideoConfig("h264"), reader)
        # vui_parameters, section E.1.1.
        if not reader.flag():
            return None
        if reader.flag() and reader.bits(8) == _EXTENDED_SAR:
            reader.skip(32)
        if reader.flag():
            reader.skip(1)  # overscan
        if reader.flag():
            reader.skip(4)
            if reader.flag():
                reader.skip(24)  # colours
        if reader.flag():
            reader.ue()  # chroma locations
            reader.ue()
        if reader.flag():
            reader.skip(65)  # time scale
        bits = [_hrd_delay_bits(reader) for _ in range(2) if reader.flag()]
        if bits:
            reader.skip(1)
        return (bits[-1] if bits else 0) if reader.flag() else None
    except (EOFError, IndexError):
        return None


_EXTENDED_SAR = 255


def _hrd_delay_bits(reader: BitReader) -> int:
    """Parse hrd_parameters (H.264 section E.1.2); return the bits of the two delays in picture timing."""
    buffers = min(reader.ue(), 31) + 1
    reader.skip(8)
    for _ in range(buffers):
        reader.ue()
        reader.ue()
        reader.skip(1)
    reader.skip(5)
    bits = reader.bits(5) + 1 + reader.bits(5) + 1
    reader.skip(5)
    return bits


def _skip_scaling_list(reader: BitReader, size: int) -> None:
    """Skip a scaling list (H.264 section 7.3.2.1.1.1)."""
    last, following = 8, 8
    for _ in range(size):
        if following:
            following = (last + reader.se()) % 256
        last = following or last


def _crop_units(chroma_format: int) -> tuple[int, int]:
    """Return SubWidthC and SubHeightC (H.264 table 6-1), the units of cropping; 1 and 1 for grey."""
    return (2 if chroma_format in (1, 2) else 1, 2 if chroma_format == 1 else 1)


# HEVC ---------------------------------------------------------------------------------------------------------------------

_HEVC_PROFILES = {1: "Main", 2: "Main 10", 3: "Main Still Picture", 4: "Rext", 6: "Multiview Main", 9: "Scc"}
_HEVC_SPS = 33


def _hevc(record: bytes) -> VideoConfig:
    """Parse hvcC (ISO/IEC 14496-15 section 8.3.3.1)."""
    if len(record) < 23:
        return VideoConfig("hevc")
    config = VideoConfig(
        "hevc",
        _HEVC_PROFILES.get(record[1] & 31, ""),
        f"{record[12] // 30}.{record[12] % 30 // 3}",
        bit_depth=8 + (record[17] & 7),
        chroma=_CHROMA[record[16] & 3],
    )
    for nal in _hevc_sets(record):
        try:
            return _hevc_sps(config, nal)
        except (EOFError, IndexError):
            continue
    return config


def _hevc_sets(record: bytes) -> Iterator[bytes]:
    """Yield the sequence parameter sets of the base layer."""
    position = 23
    for _ in range(record[22]):
        nal_type = record[position] & 63 if position < len(record) else -1
        count = int.from_bytes(record[position + 1 : position + 3], "big")
        position += 3
        for _ in range(count):
            if position >= len(record):
                return
            size = int.from_bytes(record[position : position + 2], "big")
            nal = record[position + 2 : position + 2 + size]
            position += 2 + size
            # The sets of other layers (MV-HEVC) have another syntax.
            if nal_type == _HEVC_SPS and len(nal) > 2 and not nal[0] & 1 and not nal[1] & 0xF8:
                yield nal


def _hevc_sps(config: VideoConfig, nal: bytes) -> VideoConfig:
    """Parse a sequence parameter set (HEVC section 7.3.2.2.1)."""
    reader = BitReader(unescape(nal[2:]))
    reader.skip(4)
    sub_layers = reader.bits(3)  # minus 1
    reader.skip(1 + 96)  # profile_tier_level: 88 bits of profile, 8 of level
    present = [(reader.flag(), reader.flag()) for _ in range(sub_layers)]
    if sub_layers:
        reader.skip(2 * (8 - sub_layers))
    for has_profile, has_level in present:
        reader.skip(88 * has_profile + 8 * has_level)
    reader.ue()  # the set's id
    chroma_format = reader.ue()
    chroma = _CHROMA[chroma_format]
    separate_planes = chroma_format == 3 and reader.flag()
    width, height = _cropped(reader, *((1, 1) if separate_planes else _crop_units(chroma_format)))
    bit_depth = reader.ue() + 8
    return replace(config, width=width, height=height, bit_depth=bit_depth, chroma=chroma)


def _cropped(reader: BitReader, unit_x: int, unit_y: int) -> tuple[int, int]:
    """Parse a size and its conformance window, which HEVC and VVC encode in the same way."""
    width, height = reader.ue(), reader.ue()
    if reader.flag():
        width -= (reader.ue() + reader.ue()) * unit_x
        height -= (reader.ue() + reader.ue()) * unit_y
    return _picture_size(width, height)


# VVC ----------------------------------------------------------------------------------------------------------------------

_VVC_PROFILES = {1: "Main 10", 33: "Main 10 4:4:4"}


def _vvc(record: bytes) -> VideoConfig:
    """Parse vvcC (ISO/IEC 14496-15 section 11.2.4.2)."""
    reader = BitReader(record)
    config = VideoConfig("vvc")
    try:
        reader.skip(7)
        if not reader.flag():
            return config
        reader.skip(9)
        sub_layers = reader.bits(3)
        reader.skip(2)
        chroma = _CHROMA[reader.bits(2)]
        bit_depth = reader.bits(3) + 8
        reader.skip(5 + 2)
        constraint_bytes = reader.bits(6)
        profile = _VVC_PROFILES.get(reader.bits(7), "")
        reader.skip(1)
        level_idc = reader.bits(8)  # 16 per level, 3 per minor one (VVC section A.4.1)
        level = f"{level_idc // 16}.{level_idc % 16 // 3}"
        config = VideoConfig("vvc", profile, level, bit_depth=bit_depth, chroma=chroma)
        reader.skip(8 * constraint_bytes)
        if sub_layers > 1:
            reader.skip(8 * reader.bits(8).bit_count())  # levels of sub-layers
        reader.skip(32 * reader.bits(8))  # sub-profiles
        # The size of the coded picture; the set has the cropping.
        width, height = _picture_size(reader.bits(16), reader.bits(16))
        config = replace(config, width=width, height=height)
        reader.skip(16)
        for _ in range(reader.bits(8)):
            nal_type = reader.bits(8) & 31
            for _ in range(1 if nal_type in (_VVC_DCI, _VVC_OPI) else reader.bits(16)):
                size = reader.bits(16)
                if nal_type == _VVC_SPS:
                    return _vvc_sps(config, reader.bits(8 * size).to_bytes(size, "big"))
                reader.skip(8 * size)
    except EOFError:
        pass
    return config


_VVC_OPI, _VVC_DCI, _VVC_SPS = 12, 13, 15


def _vvc_sps(config: VideoConfig, nal: bytes) -> VideoConfig:
    """Parse the size from a sequence parameter set (VVC section 7.3.2.4)."""
    reader = BitReader(unescape(nal[2:]))
    reader.skip(8)
    sub_layers = reader.bits(3)  # minus 1
    chroma_format = reader.bits(2)
    reader.skip(2)
    if reader.flag():
        reader.skip(16 + 2)  # profile_tier_level, section 7.3.3.1
        if reader.flag():
            return config  # general constraints, which no encoder sends
        reader.skip(5)
        if sub_layers:
            present = reader.bits(sub_layers).bit_count()
            reader.skip(8 - sub_layers + 8 * present)
        reader.skip(32 * reader.bits(8))
    reader.skip(1)
    if reader.flag():
        reader.skip(1)
    width, height = _cropped(reader, *_crop_units(chroma_format))
    return replace(config, width=width, height=height)


# AV1 ----------------------------------------------------------------------------------------------------------------------

_AV1_PROFILES = {0: "Main", 1: "High", 2: "Professional"}
_AV1_SEQUENCE_HEADER = 1


def _av1(record: bytes) -> VideoConfig:
    """Parse av1C (AV1 codec ISO media file format binding, section 2.3)."""
    if len(record) < 4:
        return VideoConfig("av1")
    flags = record[2]
    config = VideoConfig(
        "av1",
        _AV1_PROFILES.get(record[1] >> 5, ""),
        _av1_level(record[1] & 31),
        bit_depth=(12 if flags & 0x20 else 10) if flags & 0x40 else 8,
        chroma=_subsampled(mono=bool(flags & 0x10), x=bool(flags & 8), y=bool(flags & 4)),
    )
    return _av1_sequence(record[4:]) or config


def _av1_level(index: int) -> str:
    """Return the level of a seq_level_idx (AV1 annex A.3); 31 means no level."""
    return f"{2 + (index >> 2)}.{index & 3}" if index < 24 else ""


def _subsampled(*, mono: bool, x: bool, y: bool) -> str:
    """Return the name of a subsampling by the two flags of AV1 and VP9."""
    if mono:
        return "4:0:0"
    if x:
        return "4:2:0" if y else "4:2:2"
    return "4:4:0" if y else "4:4:4"


def _av1_sequence(units: bytes) -> VideoConfig | None:
    """Find and parse the sequence header in a series of OBUs (AV1 section 5.3)."""
    position = 0
    while position < len(units):
        head = units[position]
        position += 2 if head & 4 else 1
        size = len(units) - position
        if head & 2:
            size, shift = 0, 0
            while True:
                if position >= len(units) or shift > 49:
                    return None
                size |= (units[position] & 127) << shift
                position += 1
                shift += 7
                if units[position - 1] < 128:
                    break
        if head >> 3 & 15 == _AV1_SEQUENCE_HEADER:
            try:
                return _av1_sequence_header(units[position : position + size])
            except EOFError:
                return None
        position += size
    return None


def _av1_sequence_header(unit: bytes) -> VideoConfig:
    """Parse a sequence header OBU (AV1 section 5.5)."""
    reader = BitReader(unit)
    profile = reader.bits(3)
    reader.skip(1)
    reduced = reader.flag()
    level = reader.bits(5) if reduced else _av1_operating_points(reader)
    width_bits, height_bits = reader.bits(4) + 1, reader.bits(4) + 1
    width, height = _picture_size(reader.bits(width_bits) + 1, reader.bits(height_bits) + 1)
    if not reduced and reader.flag():
        reader.skip(4 + 3)  # frame ids
    reader.skip(3)
    if not reduced:
        reader.skip(4)
        order_hint = reader.flag()
        if order_hint:
            reader.skip(2)
        screen_content_tools = reader.flag() or reader.flag()  # chosen per frame, or always
        if screen_content_tools and not reader.flag():
            reader.skip(1)
        if order_hint:
            reader.skip(3)
    reader.skip(3)
    # color_config, section 5.5.2.
    bit_depth = 10 if reader.flag() else 8
    if profile == 2 and bit_depth == 10 and reader.flag():
        bit_depth = 12
    mono = profile != 1 and reader.flag()
    colors = (reader.bits(8), reader.bits(8), reader.bits(8)) if reader.flag() else ()
    x, y = profile != 1, profile == 0
    if colors == (1, 13, 0):  # sRGB
        x = y = False
    elif not mono:
        reader.skip(1)
        if profile == 2 and bit_depth == 12:
            x = reader.flag()
            y = x and reader.flag()
    chroma = _subsampled(mono=mono, x=x, y=y)
    return VideoConfig("av1", _AV1_PROFILES.get(profile, ""), _av1_level(level), width, height, bit_depth, chroma)


def _av1_operating_points(reader: BitReader) -> int:
    """Parse from the timing info to the operating points; return seq_level_idx of the first of them."""
    delay_bits = 0
    if reader.flag():
        reader.skip(64)
        if reader.flag():
            reader.ue()
        if reader.flag():
            delay_bits = reader.bits(5) + 1
            reader.skip(32 + 5 + 5)
    has_display_delay = reader.flag()
    levels = []
    for _ in range(reader.bits(5) + 1):
        reader.skip(12)
        levels.append(reader.bits(5))
        if levels[-1] > 7:
            reader.skip(1)
        if delay_bits and reader.flag():
            reader.skip(2 * delay_bits + 1)
        if has_display_delay and reader.flag():
            reader.skip(4)
    return levels[0]


# VP8, VP9 and the codecs of Flash -----------------------------------------------------------------------------------------


def _vpx(codec: str) -> Callable[[bytes], VideoConfig]:
    """Return a parser of vpcC (VP codec ISO media file format binding, section 4), which has no size."""

    def read(record: bytes) -> VideoConfig:
        # FFmpeg sends the version and flags of the box before the record.
        if record[:4] == b"\1\0\0\0":
            record = record[4:]
        if len(record) < 3:
            return VideoConfig(codec)
        level = f"{record[1] // 10}.{record[1] % 10}" if record[1] else ""
        chroma = ("4:2:0", "4:2:0", "4:2:2", "4:4:4", "4:4:0", "", "", "")[record[2] >> 1 & 7]
        profile = f"Profile {record[0]}" if codec == "vp9" and record[0] < 4 else ""
        return VideoConfig(codec, profile, level, bit_depth=record[2] >> 4, chroma=chroma)

    return read


_VP9_SYNC_CODE = 0x498342


def _vp9_keyframe(frame: bytes) -> VideoConfig | None:
    """Parse the uncompressed header of a keyframe (VP9 section 6.2)."""
    reader = BitReader(frame)
    try:
        if reader.bits(2) != 2:
            return None
        profile = reader.bits(1) | reader.bits(1) << 1
        if profile == 3:
            reader.skip(1)
        shows_existing, is_inter = reader.flag(), reader.flag()
        reader.skip(2)
        if shows_existing or is_inter or reader.bits(24) != _VP9_SYNC_CODE:
            return None
        bit_depth = (12 if reader.flag() else 10) if profile >= 2 else 8
        x = y = profile in (0, 2)
        if reader.bits(3) == 7:  # RGB
            x = y = False
            reader.skip(profile & 1)
        else:
            reader.skip(1)
            if profile & 1:
                x, y = reader.flag(), reader.flag()
                reader.skip(1)
        width, height = reader.bits(16) + 1, reader.bits(16) + 1
    except EOFError:
        return None
    return VideoConfig("vp9", f"Profile {profile}", "", width, height, bit_depth, _subsampled(mono=False, x=x, y=y))


def _vp8_keyframe(frame: bytes) -> VideoConfig | None:
    """Parse the header of a keyframe (RFC 6386 section 9.1)."""
    if len(frame) < 10 or frame[0] & 1 or frame[3:6] != b"\x9d\x01\x2a":
        return None
    width = int.from_bytes(frame[6:8], "little") & 0x3FFF
    height = int.from_bytes(frame[8:10], "little") & 0x3FFF
    return VideoConfig("vp8", "", "", width, height, 8, "4:2:0")


_H263_SIZES = {2: (352, 288), 3: (176, 144), 4: (128, 96), 5: (320, 240), 6: (160, 120)}


def _h263_keyframe(frame: bytes) -> VideoConfig | None:
    """Parse the picture header of Sorenson H.263 (SWF file format specification, H263VIDEOPACKET)."""
    reader = BitReader(frame)
    try:
        reader.skip(17 + 5 + 8)
        code = reader.bits(3)
        bits = 8 if code == 0 else 16
        width, height = (reader.bits(bits), reader.bits(bits)) if code < 2 else _H263_SIZES.get(code, (0, 0))
    except EOFError:
        return VideoConfig("h263")
    return VideoConfig("h263", "", "", width, height, 8, "4:2:0")


def _screen_keyframe(codec: str) -> Callable[[bytes], VideoConfig]:
    """Return a parser of screen video, with 12 bits each for the size (SWF file format specification, SCREENVIDEOPACKET)."""

    def read(frame: bytes) -> VideoConfig:
        width, height = int.from_bytes(frame[:2], "big") & 0xFFF, int.from_bytes(frame[2:4], "big") & 0xFFF
        return VideoConfig(codec, "", "", width, height)

    return read


_RECORDS: dict[str, Callable[[bytes], VideoConfig]] = {
    "h264": _avc,
    "hevc": _hevc,
    "vvc": _vvc,
    "av1": _av1,
    "vp8": _vpx("vp8"),
    "vp9": _vpx("vp9"),
}
"""Parsers of sequence headers, by codec."""

_KEYFRAMES: dict[str, Callable[[bytes], VideoConfig | None]] = {
    "av1": _av1_sequence,
    "vp8": _vp8_keyframe,
    "vp9": _vp9_keyframe,
    "h263": _h263_keyframe,
    "screen": _screen_keyframe("screen"),
    "screen2": _screen_keyframe("screen2"),
}
"""Parsers of keyframes, for codecs whose keyframes have the configuration."""


# Colours ----------------------------------------------------------------------------------------------------------------

MAX_COLOR_INFO_BYTES: Final = 4096
"""All defined members take some 500 bytes."""

_COLOR_LIMITS = AmfLimits(depth=4, values=64, string_bytes=64, total_bytes=2048)
_MAX_PAIRS = 4

# ITU-T H.273 tables 2 to 4, as FFmpeg names the entries.
_COMMON = {1: "bt709", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m"}
_PRIMARIES = _COMMON | {4: "bt470m", 8: "film", 9: "bt2020", 10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213"}
_TRANSFERS = _COMMON | dict(
    enumerate(
        ("linear", "log100", "log316", "iec61966-2-4", "bt1361e", "iec61966-2-1", "bt2020-10", "bt2020-12", "smpte2084"), 8
    )
)
_TRANSFERS |= {4: "bt470m", 17: "smpte428", 18: "arib-std-b67"}
_MATRICES = _COMMON | {0: "gbr", 4: "fcc"}
_MATRICES |= dict(enumerate(("ycgco", "bt2020nc", "bt2020c", "smpte2085", "chroma-derived-nc", "chroma-derived-c", "ictcp"), 8))


@dataclass(frozen=True, slots=True)
class ColorInfo:
    """A colorInfo object. 0 means missing or out of range.

    Attributes:
        bit_depth: Bits per sample.
        primaries, transfer, matrix: The numbers of ITU-T H.273, 1 to 255; 2 is "unspecified". A matrix of 0 is RGB, a missing
            one is -1.
        max_fall, max_cll: The light levels of frames and pixels, cd/m2.
        min_luminance, max_luminance: The luminance of the mastering display, cd/m2.
        chromaticities: x and y of red, green, blue and white of the mastering display; empty unless all are present.
    """

    bit_depth: int = 0
    primaries: int = 0
    transfer: int = 0
    matrix: int = -1
    max_fall: float = 0.0
    max_cll: float = 0.0
    min_luminance: float = 0.0
    max_luminance: float = 0.0
    chromaticities: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Return FFmpeg's description, ``bt2020nc/bt2020/smpte2084``, and the highest luminance; empty if unknown."""
        colors = (_MATRICES.get(self.matrix), _PRIMARIES.get(self.primaries), _TRANSFERS.get(self.transfer))
        # FFmpeg sends RGB and nothing else for pictures of unknown colours.
        known = any(colors[1:]) or self.matrix > 0
        words = ["/".join(name or "unknown" for name in colors)] if any(colors) and known else []
        brightest = self.max_cll or self.max_luminance
        if brightest:
            words.append(f"{brightest:g} cd/m2")
        return " ".join(words)


_COORDINATES = ("redX", "redY", "greenX", "greenY", "blueX", "blueY", "whitePointX", "whitePointY")


def read_color_info(body: bytes) -> ColorInfo | None:
    """Parse the body of a VideoPacketType.Metadata packet: names and values, of which only ``colorInfo`` is defined.

    Returns:
        None without a colorInfo, or if the body is truncated. An empty colorInfo resets the colours, and so does undefined.
    """
    if len(body) > MAX_COLOR_INFO_BYTES:
        return None
    try:
        values = amf0.decode_all(body, 0, _COLOR_LIMITS)
    except (AmfError, LimitExceeded):
        return None
    for name, value in list(zip(values[::2], values[1::2], strict=False))[:_MAX_PAIRS]:
        if name == "colorInfo":
            return _color_info(*(_members(value, group) for group in ("colorConfig", "hdrCll", "hdrMdcv")))
    return None


def _color_info(config: dict[str, float], light: dict[str, float], display: dict[str, float]) -> ColorInfo:
    def number(members: dict[str, float], name: str, low: float, high: float) -> float:
        value = members.get(name, 0.0)
        return value if low <= value <= high else 0.0

    matrix = config.get("matrixCoefficients", -1.0)
    coordinates = tuple(display.get(name, -1.0) for name in _COORDINATES)
    return ColorInfo(
        int(number(config, "bitDepth", 1, 16)),
        int(number(config, "colorPrimaries", 0, 255)),
        int(number(config, "transferCharacteristics", 0, 255)),
        int(matrix) if 0 <= matrix <= 255 else -1,
        number(light, "maxFall", 0.0001, 10000),
        number(light, "maxCLL", 0.0001, 10000),
        number(display, "minLuminance", 0.0001, 5),
        number(display, "maxLuminance", 5, 10000),
        coordinates if all(0 <= coordinate <= 1 for coordinate in coordinates) else (),
    )


def _members(value: AmfValue, group: str) -> dict[str, float]:
    """Return the numbers in an object that is a member of another object."""
    found = value.get(group) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        return {}
    return {name: float(member) for name, member in found.items() if isinstance(name, str) and isinstance(member, float)}
