"""Reads the headers of video codecs made of NAL units: H.264, HEVC and VVC.

These are avcC, hvcC and vvcC (ISO/IEC 14496-15), and the sequence parameter sets in them. Nothing raises; see codecs.

Imports bits and track_config; must not import codecs or video_codecs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rtmpd.media.bits import BitReader, unescape
from rtmpd.media.track_config import VideoConfig, picture_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["NAL_RECORDS"]

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
    """Read avcC (ISO/IEC 14496-15 section 5.3.3.1)."""
    if len(record) < 4 or record[0] != 1:
        return VideoConfig("h264")
    profile_idc, constraints, level_idc = record[1:4]
    profile = _AVC_PROFILES.get(profile_idc, "")
    if profile_idc == 66 and constraints & 0x40:
        profile = "Constrained Baseline"
    elif constraints & 0x10:
        profile = _AVC_INTRA_PROFILES.get(profile_idc, profile)
    level = f"{level_idc // 10}.{level_idc % 10}"
    # Annex A.3.1: constraint_set3_flag makes level 1.1 of the older profiles 1b; the newer ones have a number for it.
    if level_idc == 9 or (level_idc == 11 and constraints & 0x10 and profile_idc in (66, 77, 88)):
        level = "1b"
    config = VideoConfig("h264", profile, level)
    size = int.from_bytes(record[6:8], "big")
    try:
        return _avc_sps(config, record[8 : 8 + size])
    except (EOFError, IndexError):
        return config


def _avc_sps(config: VideoConfig, nal: bytes) -> VideoConfig:
    """Read a sequence parameter set (H.264 section 7.3.2.1.1)."""
    reader = BitReader(unescape(nal[1:]))
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
    width, height = picture_size(width, height)
    return dataclasses.replace(config, width=width, height=height, bit_depth=bit_depth, chroma=chroma)


def _skip_scaling_list(reader: BitReader, size: int) -> None:
    """Step over a scaling list (H.264 section 7.3.2.1.1.1)."""
    last, following = 8, 8
    for _ in range(size):
        if following:
            following = (last + reader.se()) % 256
        last = following or last


def _crop_units(chroma_format: int) -> tuple[int, int]:
    """Return SubWidthC and SubHeightC (H.264 table 6-1), which cropping is counted in; 1 and 1 for grey."""
    return (2 if chroma_format in (1, 2) else 1, 2 if chroma_format == 1 else 1)


# HEVC ---------------------------------------------------------------------------------------------------------------------

_HEVC_PROFILES = {1: "Main", 2: "Main 10", 3: "Main Still Picture", 4: "Rext", 6: "Multiview Main", 9: "Scc"}
_HEVC_SPS = 33


def _hevc(record: bytes) -> VideoConfig:
    """Read hvcC (ISO/IEC 14496-15 section 8.3.3.1)."""
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
            # A set of another layer (MV-HEVC) begins in another way.
            if nal_type == _HEVC_SPS and len(nal) > 2 and not nal[0] & 1 and not nal[1] & 0xF8:
                yield nal


def _hevc_sps(config: VideoConfig, nal: bytes) -> VideoConfig:
    """Read a sequence parameter set (HEVC section 7.3.2.2.1)."""
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
    return dataclasses.replace(config, width=width, height=height, bit_depth=bit_depth, chroma=chroma)


def _cropped(reader: BitReader, unit_x: int, unit_y: int) -> tuple[int, int]:
    """Read a size and its conformance window, which HEVC and VVC write in the same way."""
    width, height = reader.ue(), reader.ue()
    if reader.flag():
        width -= (reader.ue() + reader.ue()) * unit_x
        height -= (reader.ue() + reader.ue()) * unit_y
    return picture_size(width, height)


# VVC ----------------------------------------------------------------------------------------------------------------------

_VVC_PROFILES = {1: "Main 10", 33: "Main 10 4:4:4"}


def _vvc(record: bytes) -> VideoConfig:
    """Read vvcC (ISO/IEC 14496-15 section 11.2.4.2)."""
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
        # Of the coded picture; the set says what is cropped.
        width, height = picture_size(reader.bits(16), reader.bits(16))
        config = dataclasses.replace(config, width=width, height=height)
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
    """Read the size from a sequence parameter set (VVC section 7.3.2.4)."""
    reader = BitReader(unescape(nal[2:]))
    reader.skip(8)
    sub_layers = reader.bits(3)  # minus 1
    chroma_format = reader.bits(2)
    reader.skip(2)
    if reader.flag():
        reader.skip(16 + 2)  # profile_tier_level, section 7.3.3.1
        if reader.flag():
            return config  # general constraints: nobody sends any
        reader.skip(5)
        if sub_layers:
            present = reader.bits(sub_layers).bit_count()
            reader.skip(8 - sub_layers + 8 * present)
        reader.skip(32 * reader.bits(8))
    reader.skip(1)
    if reader.flag():
        reader.skip(1)
    width, height = _cropped(reader, *_crop_units(chroma_format))
    return dataclasses.replace(config, width=width, height=height)


NAL_RECORDS: dict[str, Callable[[bytes], VideoConfig]] = {"h264": _avc, "hevc": _hevc, "vvc": _vvc}
"""Readers of sequence headers, by codec."""
