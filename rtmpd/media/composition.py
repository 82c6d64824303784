"""The composition time of video messages: how much later than its timestamp a frame is shown. Pure.

It is in the legacy header of AVC and HEVC (FLV specification, section E.4.3.1), and in the CodedFrames packets of AVC, HEVC and
VVC of Enhanced RTMP. Other messages have none: frames are shown at their timestamp.
"""

from __future__ import annotations

from typing import Final

_LEGACY: Final = (7, 12)
_CODED_FRAMES: Final = 1
_WITH_COMPOSITION: Final = (b"avc1", b"hvc1", b"vvc1")
_SIZE: Final = 3
_LONGEST_MS: Final = 0x7FFFFF


def _offset(payload: bytes) -> int:
    """Return the offset of the composition time; 0 if the message has none."""
    if len(payload) < 2 + _SIZE:
        return 0
    first = payload[0]
    if first < 0x80:
        return 2 if first & 15 in _LEGACY and payload[1] == 1 else 0
    return 5 if first & 15 == _CODED_FRAMES and payload[1:5] in _WITH_COMPOSITION and len(payload) >= 5 + _SIZE else 0


def composition_ms(payload: bytes) -> int:
    """Return the composition time of a video message, milliseconds; 0 if it has none."""
    at = _offset(payload)
    return int.from_bytes(payload[at : at + _SIZE], "big", signed=True) if at else 0


def with_composition(payload: bytes, time_ms: int) -> bytes:
    """Return a video message with another composition time; as it is if it has none. The time is limited to 24 bits."""
    at = _offset(payload)
    if not at:
        return payload
    limited = max(-_LONGEST_MS, min(_LONGEST_MS, time_ms))
    return payload[:at] + limited.to_bytes(_SIZE, "big", signed=True) + payload[at + _SIZE :]
