"""Reads the headers of video codecs: AV1, VP8, VP9 and what Flash had; those of H.264, HEVC and VVC are in nal_codecs.

Records are av1C (AV1 codec ISO media file format binding) and vpcC (VP codec ISO media file format binding); where they lack
something, keyframes are read. Nothing raises; see codecs.

Imports bits, nal_codecs and track_config; must not import codecs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.media.bits import BitReader
from rtmpd.media.nal_codecs import NAL_RECORDS
from rtmpd.media.track_config import VideoConfig, picture_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VIDEO_KEYFRAMES", "VIDEO_RECORDS"]


# AV1 ----------------------------------------------------------------------------------------------------------------------

_AV1_PROFILES = {0: "Main", 1: "High", 2: "Professional"}
_AV1_SEQUENCE_HEADER = 1


def _av1(record: bytes) -> VideoConfig:
    """Read av1C (AV1 codec ISO media file format binding, section 2.3)."""
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
    """Return the level of a seq_level_idx (AV1 annex A.3); 31 is none."""
    return f"{2 + (index >> 2)}.{index & 3}" if index < 24 else ""


def _subsampled(*, mono: bool, x: bool, y: bool) -> str:
    """Name a subsampling by its two flags, as AV1 and VP9 have them."""
    if mono:
        return "4:0:0"
    if x:
        return "4:2:0" if y else "4:2:2"
    return "4:4:0" if y else "4:4:4"


def _av1_sequence(units: bytes) -> VideoConfig | None:
    """Find and read the sequence header in a series of OBUs (AV1 section 5.3)."""
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
    """Read a sequence header OBU (AV1 section 5.5)."""
    reader = BitReader(unit)
    profile = reader.bits(3)
    reader.skip(1)
    reduced = reader.flag()
    level = reader.bits(5) if reduced else _av1_operating_points(reader)
    width_bits, height_bits = reader.bits(4) + 1, reader.bits(4) + 1
    width, height = picture_size(reader.bits(width_bits) + 1, reader.bits(height_bits) + 1)
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
    """Read from the timing info to the operating points; return seq_level_idx of the first of them."""
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


def _av1_keyframe(units: bytes) -> VideoConfig | None:
    return _av1_sequence(units)


# VP8, VP9, and what Flash had ---------------------------------------------------------------------------------------------


def _vpx(codec: str) -> Callable[[bytes], VideoConfig]:
    """Return a reader of vpcC (VP codec ISO media file format binding, section 4), which has no size."""

    def read(record: bytes) -> VideoConfig:
        # FFmpeg puts version and flags of the box in front of it.
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
    """Read the uncompressed header of a keyframe (VP9 section 6.2)."""
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
    """Read the header of a keyframe (RFC 6386 section 9.1)."""
    if len(frame) < 10 or frame[0] & 1 or frame[3:6] != b"\x9d\x01\x2a":
        return None
    width = int.from_bytes(frame[6:8], "little") & 0x3FFF
    height = int.from_bytes(frame[8:10], "little") & 0x3FFF
    return VideoConfig("vp8", "", "", width, height, 8, "4:2:0")


_H263_SIZES = {2: (352, 288), 3: (176, 144), 4: (128, 96), 5: (320, 240), 6: (160, 120)}


def _h263_keyframe(frame: bytes) -> VideoConfig | None:
    """Read the picture header of Sorenson H.263 (SWF file format specification, H263VIDEOPACKET)."""
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
    """Return a reader of screen video (SWF file format specification, SCREENVIDEOPACKET): 12 bits each for the size."""

    def read(frame: bytes) -> VideoConfig:
        width, height = int.from_bytes(frame[:2], "big") & 0xFFF, int.from_bytes(frame[2:4], "big") & 0xFFF
        return VideoConfig(codec, "", "", width, height)

    return read


VIDEO_RECORDS: dict[str, Callable[[bytes], VideoConfig]] = {
    **NAL_RECORDS,
    "av1": _av1,
    "vp8": _vpx("vp8"),
    "vp9": _vpx("vp9"),
}
"""Readers of sequence headers, by codec."""

VIDEO_KEYFRAMES: dict[str, Callable[[bytes], VideoConfig | None]] = {
    "av1": _av1_keyframe,
    "vp8": _vp8_keyframe,
    "vp9": _vp9_keyframe,
    "h263": _h263_keyframe,
    "screen": _screen_keyframe("screen"),
    "screen2": _screen_keyframe("screen2"),
}
"""Readers of keyframes that say what they are, by codec."""
