"""Enhanced RTMP v2 in the connect command and its answer, and the request to reconnect. No I/O, and nothing raises.

A client lists the codecs that it supports in ``fourCcList`` (v1) or in ``videoFourCcInfoMap`` and ``audioFourCcInfoMap`` (v2),
and its other capabilities in ``capsEx``; the server answers with the same properties in the command object of ``_result``
(enhanced-rtmp-v2, "Enhancing NetConnection connect Command"). All of it is optional, and some clients send wrong values.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rtmpd.protocol import status

VIDEO_FOUR_CCS: Final = frozenset({"avc1", "hvc1", "vvc1", "av01", "vp08", "vp09"})
"""The FourCCs of VideoFourCc."""

AUDIO_FOUR_CCS: Final = frozenset({"ac-3", "ec-3", "Opus", ".mp3", "fLaC", "mp4a"})
"""The FourCCs of AudioFourCc."""

_ANY = "*"
_MAX_ENTRIES = 64  # there are twelve FourCCs
_MAX_FLAGS = (1 << 31) - 1


class FourCcInfo(enum.IntFlag):
    """The operations that a peer supports for a codec (FourCcInfoMask)."""

    CAN_DECODE = 1
    CAN_ENCODE = 2
    CAN_FORWARD = 4


class CapsEx(enum.IntFlag):
    """The other capabilities of a peer (CapsExMask)."""

    RECONNECT = 1
    MULTITRACK = 2
    MOD_EX = 4
    TIMESTAMP_NANO_OFFSET = 8


_TAKES = FourCcInfo.CAN_DECODE | FourCcInfo.CAN_FORWARD


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities that a client has declared in its connect command.

    ``videoCodecs``, ``audioCodecs`` and ``videoFunction`` are ignored; docs/spec-compliance.rst has the reason.

    Attributes:
        four_ccs: The entries of ``fourCcList``: FourCCs of audio and video codecs; ``*`` means all.
        video: ``videoFourCcInfoMap``: `FourCcInfo` bits by FourCC. The bits of ``*`` apply to every codec.
        audio: ``audioFourCcInfoMap`` in the same form.
        caps_ex: `CapsEx` bits, and unknown ones.
        object_encoding: 3 if the client supports AMF3 besides AMF0, otherwise 0.
    """

    four_ccs: frozenset[str] = frozenset()
    video: Mapping[str, int] = field(default_factory=dict)
    audio: Mapping[str, int] = field(default_factory=dict)
    caps_ex: int = 0
    object_encoding: int = 0

    @property
    def reconnect(self) -> bool:
        """Whether the client follows a request to reconnect."""
        return bool(self.caps_ex & CapsEx.RECONNECT)

    @property
    def multitrack(self) -> bool:
        """Whether the client supports multitrack messages."""
        return bool(self.caps_ex & CapsEx.MULTITRACK)

    @property
    def mod_ex(self) -> bool:
        """Whether the client supports ModEx packets. Support of nanosecond offsets, which are ModEx packets, implies it."""
        return bool(self.caps_ex & (CapsEx.MOD_EX | CapsEx.TIMESTAMP_NANO_OFFSET))

    def takes_video(self, four_cc: str) -> bool | None:
        """Return whether the client supports a video codec in messages with an Enhanced header.

        Legacy headers are independent of it: a client that only lists HEVC can still play H.264 with CodecID 7.

        Args:
            four_cc: The codec's FourCC, such as ``hvc1``.

        Returns:
            None if the client has declared nothing about video.
        """
        return self._takes(four_cc, self.video, VIDEO_FOUR_CCS)

    def takes_audio(self, four_cc: str) -> bool | None:
        """Return whether the client supports an audio codec in messages with an Enhanced header.

        Returns:
            None if the client has declared nothing about audio. A ``fourCcList`` of video codecs only is no declaration about
            audio, because v1 had no FourCCs for audio.
        """
        return self._takes(four_cc, self.audio, AUDIO_FOUR_CCS)

    def _takes(self, four_cc: str, infos: Mapping[str, int], kind: frozenset[str]) -> bool | None:
        if (infos.get(four_cc, 0) | infos.get(_ANY, 0)) & _TAKES:
            return True
        if four_cc in infos:
            return False  # listed, but only for encoding, or without any flag
        if four_cc in self.four_ccs or _ANY in self.four_ccs:
            return True
        return False if infos or not kind.isdisjoint(self.four_ccs) else None


NOTHING_DECLARED: Final = Capabilities()
"""The capabilities of a client that declares none of Enhanced RTMP."""


def parse_capabilities(properties: Mapping[str, Any]) -> Capabilities:
    """Parse the command object of a connect command.

    Entries of a wrong type or with an invalid value are ignored, and so are all but the first 64 entries of a list or map.
    Connections with equal capabilities mostly share one object, to save memory.
    """
    found = Capabilities(
        four_ccs=_four_ccs(properties.get("fourCcList")),
        video=_info_map(properties.get("videoFourCcInfoMap")),
        audio=_info_map(properties.get("audioFourCcInfoMap")),
        caps_ex=_flags(properties.get("capsEx")) or 0,
        object_encoding=3 if _flags(properties.get("objectEncoding")) == 3 else 0,
    )
    for known in (NOTHING_DECLARED, *_known):
        if known == found:
            return known
    _known.append(found)
    return found


_known: deque[Capabilities] = deque(maxlen=16)
"""The capabilities of recent clients. There are few different ones."""


def server_answer() -> dict[str, Any]:
    """Return the Enhanced RTMP members of the ``_result`` to connect: the server forwards every codec."""
    return {
        "fourCcList": [_ANY],
        "videoFourCcInfoMap": {_ANY: int(FourCcInfo.CAN_FORWARD)},
        "audioFourCcInfoMap": {_ANY: int(FourCcInfo.CAN_FORWARD)},
        "capsEx": int(CapsEx.RECONNECT | CapsEx.MULTITRACK | CapsEx.MOD_EX | CapsEx.TIMESTAMP_NANO_OFFSET),
    }


def reconnect_request(tc_url: str = "", description: str = "") -> dict[str, Any]:
    """Return the info object of an onStatus command that asks the client to reconnect (section "Reconnect Request").

    The command has transaction id 0 and message stream id 0, and may only be sent to clients that declare `reconnect`.

    Args:
        tc_url: The target: an absolute URL, or one relative to the client's tcUrl. Empty: the present server.
        description: A text for people; empty for none.
    """
    found = status.info(status.CONNECT_RECONNECT_REQUEST, description)
    if not description:
        del found["description"]
    if tc_url:
        found["tcUrl"] = tc_url
    return found


def _is_four_cc(value: object) -> bool:
    return isinstance(value, str) and (value == _ANY or (len(value) == 4 and value.isascii() and value.isprintable()))


def _entries(value: object) -> list[Any]:
    """Return the first entries of a strict array, or of an ECMA array or object that is used as one."""
    if isinstance(value, Mapping):
        value = list(value.values())[:_MAX_ENTRIES]
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value[:_MAX_ENTRIES])
    return []


def _four_ccs(value: object) -> frozenset[str]:
    return frozenset(entry for entry in _entries(value) if _is_four_cc(entry))


def _info_map(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        return {}
    found = {}
    for name, mask in list(value.items())[:_MAX_ENTRIES]:
        flags = _flags(mask)
        if flags is not None and _is_four_cc(name):
            found[name] = flags
    return found


def _flags(value: object) -> int | None:
    """Return an AMF number as an int; None if it is not a whole number in the range of flags."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MAX_FLAGS:
        return None  # the comparison is also false for NaN
    return int(value) if value == int(value) else None
