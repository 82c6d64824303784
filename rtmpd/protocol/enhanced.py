"""What Enhanced RTMP v2 adds to the connect command and its answer, and the request to reconnect.

A client names the codecs that it takes in ``fourCcList`` (v1) or in ``videoFourCcInfoMap`` and ``audioFourCcInfoMap`` (v2),
and its other abilities in ``capsEx``; the server answers with the same properties in the command object of ``_result``
(enhanced-rtmp-v2, "Enhancing NetConnection connect Command"). `parse_capabilities` reads the client's, `server_answer` makes
the server's.

All of it is optional, and what clients send is sometimes wrong: nothing here raises. Pure; imports status only.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rtmpd.protocol import status

__all__ = [
    "AUDIO_FOUR_CCS",
    "NOTHING_DECLARED",
    "VIDEO_FOUR_CCS",
    "Capabilities",
    "CapsEx",
    "FourCcInfo",
    "parse_capabilities",
    "reconnect_request",
    "server_answer",
]

VIDEO_FOUR_CCS: Final = frozenset({"avc1", "hvc1", "vvc1", "av01", "vp08", "vp09"})
"""The FourCCs of VideoFourCc."""

AUDIO_FOUR_CCS: Final = frozenset({"ac-3", "ec-3", "Opus", ".mp3", "fLaC", "mp4a"})
"""The FourCCs of AudioFourCc."""

_ANY = "*"
_MAX_ENTRIES = 64  # there are twelve FourCCs; more are read from nobody
_MAX_FLAGS = (1 << 31) - 1


class FourCcInfo(enum.IntFlag):
    """What a peer can do with a codec (FourCcInfoMask)."""

    CAN_DECODE = 1
    CAN_ENCODE = 2
    CAN_FORWARD = 4


class CapsEx(enum.IntFlag):
    """What a peer can do besides (CapsExMask)."""

    RECONNECT = 1
    MULTITRACK = 2
    MOD_EX = 4
    TIMESTAMP_NANO_OFFSET = 8


_TAKES = FourCcInfo.CAN_DECODE | FourCcInfo.CAN_FORWARD


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a client said of itself in its connect command, as far as it makes a difference.

    Not ``videoCodecs``, ``audioCodecs`` and ``videoFunction``: docs/spec-compliance.rst says why.

    Attributes:
        four_ccs: The entries of ``fourCcList``: FourCCs of audio and video; ``*`` for all.
        video: ``videoFourCcInfoMap``: bits of `FourCcInfo` by FourCC; ``*`` adds its bits to every codec's.
        audio: ``audioFourCcInfoMap``, likewise.
        caps_ex: Bits of `CapsEx`, and unknown ones.
        object_encoding: 3 if the client takes AMF3 besides AMF0, else 0.
    """

    four_ccs: frozenset[str] = frozenset()
    video: Mapping[str, int] = field(default_factory=dict)
    audio: Mapping[str, int] = field(default_factory=dict)
    caps_ex: int = 0
    object_encoding: int = 0

    @property
    def reconnect(self) -> bool:
        """Whether it follows a request to reconnect."""
        return bool(self.caps_ex & CapsEx.RECONNECT)

    @property
    def multitrack(self) -> bool:
        """Whether it reads multitrack messages."""
        return bool(self.caps_ex & CapsEx.MULTITRACK)

    @property
    def mod_ex(self) -> bool:
        """Whether it reads ModEx packets; who supports nanosecond offsets does, as these are ModEx packets."""
        return bool(self.caps_ex & (CapsEx.MOD_EX | CapsEx.TIMESTAMP_NANO_OFFSET))

    def takes_video(self, four_cc: str) -> bool | None:
        """Whether the client can receive this codec in messages with an Enhanced header.

        Legacy headers are no matter of this: a client that lists HEVC alone still plays H.264 with CodecID 7.

        Args:
            four_cc: Such as ``hvc1``.

        Returns:
            None if the client said nothing of video.
        """
        return self._takes(four_cc, self.video, VIDEO_FOUR_CCS)

    def takes_audio(self, four_cc: str) -> bool | None:
        """Whether the client can receive this codec in messages with an Enhanced header; None if it said nothing of audio.

        A list of video codecs alone says nothing of audio: v1 had no FourCCs for audio.
        """
        return self._takes(four_cc, self.audio, AUDIO_FOUR_CCS)

    def _takes(self, four_cc: str, infos: Mapping[str, int], kind: frozenset[str]) -> bool | None:
        if (infos.get(four_cc, 0) | infos.get(_ANY, 0)) & _TAKES:
            return True
        if four_cc in infos:
            return False  # named, but only as what it encodes, or with no flag at all
        if four_cc in self.four_ccs or _ANY in self.four_ccs:
            return True
        return False if infos or not kind.isdisjoint(self.four_ccs) else None


NOTHING_DECLARED: Final = Capabilities()
"""A client that knows nothing of Enhanced RTMP, or does not say so."""


def parse_capabilities(properties: Mapping[str, Any]) -> Capabilities:
    """Read the command object of a connect command.

    What has a wrong type or makes no sense counts as not sent, entry by entry; of a list or map, the first 64 entries count.
    Those of a connection are mostly those of many others: then it is the same object.
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
"""What clients said lately. Few kinds of clients exist."""


def server_answer() -> dict[str, Any]:
    """Return what the command object of the ``_result`` to connect says of this server: it forwards whatever it gets."""
    return {
        "fourCcList": [_ANY],
        "videoFourCcInfoMap": {_ANY: int(FourCcInfo.CAN_FORWARD)},
        "audioFourCcInfoMap": {_ANY: int(FourCcInfo.CAN_FORWARD)},
        "capsEx": int(CapsEx.RECONNECT | CapsEx.MULTITRACK | CapsEx.MOD_EX | CapsEx.TIMESTAMP_NANO_OFFSET),
    }


def reconnect_request(tc_url: str = "", description: str = "") -> dict[str, Any]:
    """Make the info object of an onStatus command that asks the client to reconnect (section "Reconnect Request").

    The command has transaction id 0, goes over message stream 0, and may only be sent to clients that declare `reconnect`.

    Args:
        tc_url: Where to: an absolute URL, or a reference relative to the client's tcUrl. Empty: to where it is connected now.
        description: For people; empty: left out.
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
    """Return the first entries of a strict array, or the values of an ECMA array or object that stands for one."""
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
    """Return an AMF number as an int; None if it is no whole number that flags could be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MAX_FLAGS:
        return None  # NaN fails the comparison too
    return int(value) if value == int(value) else None
