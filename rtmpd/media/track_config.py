"""What is known of a track: the dataclasses that the readers of headers fill in.

Imports nothing; must not import the readers, which import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["AudioConfig", "VideoConfig", "picture_size"]

_MAX_SIDE = 1 << 16  # pixels; more is a header that was misread


@dataclass(frozen=True, slots=True)
class VideoConfig:
    """What is known of a video track. 0 or an empty text: not known.

    Attributes:
        codec: As `TagInfo` names it, such as ``h264``.
        profile: As FFmpeg prints it, such as ``High`` or ``Main 10``.
        level: Such as ``4.1``; ``1b`` is a level of H.264.
        width: Pixels, of the picture that is shown: cropped, before the pixels' aspect ratio.
        height: The same.
        bit_depth: Bits per sample of luma.
        chroma: ``4:2:0``, ``4:2:2``, ``4:4:4``, ``4:4:0``, or ``4:0:0`` for grey.
        codec_id: How messages name the codec, and ``videocodecid`` of onMetaData: the id of a legacy header, or the FourCC as a
            big-endian number. Not compared: it says how the same track is carried.
        color: What colorInfo says, as `ColorInfo` describes it. Not compared: it comes in messages of its own.
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


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """What is known of an audio track. 0 or an empty text: not known.

    Attributes:
        codec: As `TagInfo` names it, such as ``aac``.
        profile: As FFmpeg prints it, such as ``LC`` or ``HE-AACv2``; only AAC has any.
        sample_rate_hz: Of what is heard: with SBR, the doubled rate.
        channels: Of what is heard: with parametric stereo, 2. 0 also if a program config element lists them.
        codec_id: As for video, and ``audiocodecid``. Not compared.
        layout: Where the channels are, such as ``5.1``, if a multichannel configuration says so. Not compared.
    """

    codec: str
    profile: str = ""
    sample_rate_hz: int = 0
    channels: int = 0
    codec_id: int | None = field(default=None, compare=False)
    layout: str = field(default="", compare=False)


def picture_size(width: int, height: int) -> tuple[int, int]:
    """Return the size, or 0 and 0 if no picture can have it."""
    return (width, height) if 0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE else (0, 0)
