"""Reads what Enhanced RTMP says beside the codec: colorInfo of video, and the multichannel configuration of audio.

For display only: what is passed on to players is never changed. Nothing raises, and the work is bounded. Section "Metadata
Frame" and table ExAudioTagBody of enhanced-rtmp-v2. Imports AMF0 of protocol; must not import codecs, which imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rtmpd.errors import AmfError, LimitExceeded
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import AmfLimits

if TYPE_CHECKING:
    from rtmpd.protocol.amf_values import AmfValue

__all__ = ["MAX_COLOR_INFO_BYTES", "Channels", "ColorInfo", "read_channels", "read_color_info"]

MAX_COLOR_INFO_BYTES: Final = 4096
"""All defined members take some 500 bytes."""

_LIMITS = AmfLimits(depth=4, values=64, string_bytes=64, total_bytes=2048)
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
    """A colorInfo object. 0: not said, or out of range.

    Attributes:
        bit_depth: Bits per sample.
        primaries, transfer, matrix: The numbers of ITU-T H.273, 1 to 255; 2 is "unspecified". The matrix may be 0 too, which is
            RGB: -1 if it is not said.
        max_fall, max_cll: Light levels of frames and pixels, cd/m2.
        min_luminance, max_luminance: Of the mastering display, cd/m2.
        chromaticities: Of the mastering display: x and y of red, green, blue and white; empty unless all are said.
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
        """Describe it as FFmpeg does, ``bt2020nc/bt2020/smpte2084``, with the brightest pixel or display; empty if unknown."""
        colors = (_MATRICES.get(self.matrix), _PRIMARIES.get(self.primaries), _TRANSFERS.get(self.transfer))
        # FFmpeg says RGB, and nothing else, of pictures whose colours it does not know.
        known = any(colors[1:]) or self.matrix > 0
        words = ["/".join(name or "unknown" for name in colors)] if any(colors) and known else []
        brightest = self.max_cll or self.max_luminance
        if brightest:
            words.append(f"{brightest:g} cd/m2")
        return " ".join(words)


_COORDINATES = ("redX", "redY", "greenX", "greenY", "blueX", "blueY", "whitePointX", "whitePointY")


def read_color_info(body: bytes) -> ColorInfo | None:
    """Read the body of a VideoPacketType.Metadata packet: names and values, of which ``colorInfo`` is the only one defined.

    Returns:
        None if there is no colorInfo in it, or it is cut short. An empty one resets the colours, and so does undefined.
    """
    if len(body) > MAX_COLOR_INFO_BYTES:
        return None
    try:
        values = amf0.decode_all(body, 0, _LIMITS)
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
    """Return the numbers in an object that is a member of another one."""
    found = value.get(group) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        return {}
    return {name: float(member) for name, member in found.items() if isinstance(name, str) and isinstance(member, float)}


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
        count: Number of channels.
        layout: As FFmpeg names it, such as ``5.1``, or the speakers joined by ``+``; empty if the order is not said.
    """

    count: int
    layout: str = ""


def read_channels(body: bytes) -> Channels | None:
    """Read the body of an AudioPacketType.MultichannelConfig packet; None if it is cut short, or of an unknown order."""
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
