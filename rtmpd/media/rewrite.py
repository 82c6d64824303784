"""Makes what a player can read of what is published: one track of several, without ModEx, HEVC in the header that it knows.

A `Rewrite` describes the difference between what is published and what a player gets. It is hashable: players with the same
one share what it makes. Its methods look at the headers of a message and copy the codec's data as it is; nothing is decoded,
and nothing raises.

`VIDEO_FEATURES` and `AUDIO_FEATURES` tell at low cost which rewriting a stream could need at all.

Imports tags; must not import the readers of codecs.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from rtmpd.media.tags import AudioPacket, VideoPacket

__all__ = ["AS_PUBLISHED", "AUDIO_FEATURES", "VIDEO_FEATURES", "Feature", "Rewrite"]


class Feature(enum.IntFlag):
    """What a stream has in its headers that not every player reads."""

    MULTITRACK = 1
    MOD_EX = 2
    HEVC_CODEC12 = 4
    """HEVC with the legacy header and CodecID 12, as Chinese CDNs and encoders have it."""


_HVC1 = b"hvc1"
_CODEC7, _CODEC12 = 7, 12
_OLD_AAC = 0xAF
_OLD_MP3 = 0x2F
_FRAME_TYPE_COMMAND = 5
_FOUR_CC_SIZE = 4
_ONE_TRACK, _MANY_CODECS = 0, 2  # all others are read as ManyTracks, as tags and FFmpeg do
_NO_OFFSET = b"\0\0\0"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What a player gets instead of what is published.

    Attributes:
        default_track: Only `video_track` and `audio_track`, without multitrack headers. Messages of other tracks, and
            multitrack messages that can't be taken apart, are left out. A message without a multitrack header is of track 0.
        hevc: In which header HEVC comes: ``published`` as it is; ``hvc1`` Enhanced, also if published with CodecID 12;
            ``codec12`` the other way round.
        mod_ex: Whether ModEx packets stay; otherwise they are taken off, and with them what they say (nanoseconds).
        video_track: The track that `default_track` leaves: the lowest id that the stream has.
        audio_track: Likewise.
        old_video: H.264 of FourCC avc1 comes with the legacy header and CodecID 7, which every player reads.
        old_audio: Likewise AAC of FourCC mp4a and MP3 of FourCC .mp3.
        mute: No audio at all.
    """

    default_track: bool = False
    hevc: str = "published"
    mod_ex: bool = True
    video_track: int = 0
    audio_track: int = 0
    old_video: bool = False
    old_audio: bool = False
    mute: bool = False

    @property
    def identity(self) -> bool:
        """Whether nothing is ever changed."""
        changes = self.default_track or self.old_video or self.old_audio or self.mute or self.hevc != "published"
        return self.mod_ex and not changes

    def video(self, payload: bytes) -> bytes | None:
        """Return what the player gets of a video message.

        Returns:
            The same object if nothing changes; None if the message is not for this player.
        """
        if not payload:
            return payload
        first = payload[0]
        if first < 0x80:
            if first >> 4 == _FRAME_TYPE_COMMAND:
                return payload
            if self.default_track and self.video_track:
                return None
            return _to_hvc1(payload) if first & 15 == _CODEC12 and self.hevc == "hvc1" else payload
        made = self._plain(payload, VideoPacket.MOD_EX, VideoPacket.MULTITRACK, self.video_track)
        if made is not None and self.hevc == "codec12":
            made = _to_legacy(made, _HVC1, _CODEC12)
        if made is not None and self.old_video:
            made = _to_legacy(made, b"avc1", _CODEC7)
        return made

    def audio(self, payload: bytes) -> bytes | None:
        """Return what the player gets of an audio message.

        Returns:
            The same object if nothing changes; None if the message is not for this player.
        """
        if not payload:
            return payload  # silence
        if self.mute:
            return None
        if payload[0] >> 4 != 9:
            return None if self.default_track and self.audio_track else payload
        made = self._plain(payload, AudioPacket.MOD_EX, AudioPacket.MULTITRACK, self.audio_track)
        return _to_legacy_audio(made) if made is not None and self.old_audio else made

    def _plain(self, payload: bytes, mod_ex: int, multitrack: int, track: int) -> bytes | None:
        """Take off what the player can't read of a message with an Enhanced header."""
        first = payload[0]
        packet_at = _behind_mod_ex(payload, mod_ex)
        if packet_at < 0:
            return payload if self.mod_ex else None
        packet = payload[packet_at] & 15
        # Audio has 9 in the upper bits, so that a frame type of 1 is read there: never a command.
        command = first >> 4 & 7 == _FRAME_TYPE_COMMAND and packet != VideoPacket.METADATA
        body: bytes | None = None
        if self.default_track and not command:
            if packet == multitrack:
                taken = _take_track(payload, packet_at + 1, mod_ex, multitrack, track)
                if taken is None:
                    return None
                packet, body = taken
            elif track:
                return None
        prefix_end = packet_at if self.mod_ex else 0
        if body is None:
            if prefix_end == packet_at:
                return payload
            body = payload[packet_at + 1 :]
        # The byte that says the packet type: the first one, or the last of the ModEx packets.
        return b"%b%c%b" % (payload[:prefix_end], payload[prefix_end] & 0xF0 | packet, body)


AS_PUBLISHED: Final = Rewrite()
"""Nothing is changed."""


def _video_features(first: int) -> int:
    if first < 0x80:
        return int(Feature.HEVC_CODEC12) if first & 15 == _CODEC12 and first >> 4 != _FRAME_TYPE_COMMAND else 0
    packet = first & 15
    return int(
        Feature.MULTITRACK if packet == VideoPacket.MULTITRACK else Feature.MOD_EX if packet == VideoPacket.MOD_EX else 0
    )


def _audio_features(first: int) -> int:
    packet = first & 15 if first >> 4 == 9 else 0
    return int(
        Feature.MULTITRACK if packet == AudioPacket.MULTITRACK else Feature.MOD_EX if packet == AudioPacket.MOD_EX else 0
    )


VIDEO_FEATURES: Final = bytes(map(_video_features, range(256)))
"""By the first byte of a video message: `Feature` bits that it shows."""

AUDIO_FEATURES: Final = bytes(map(_audio_features, range(256)))
"""By the first byte of an audio message, likewise."""


def _behind_mod_ex(payload: bytes, mod_ex: int) -> int:
    """Return where the packet type behind all ModEx packets is (in the lower bits of a byte), or -1 if they are cut short.

    That is 0 without any.
    """
    position, packet = 0, payload[0] & 15
    while packet == mod_ex:
        if position + 1 >= len(payload):
            return -1
        size = payload[position + 1] + 1
        position += 2
        if size == 256:
            if position + 2 > len(payload):
                return -1
            size = (payload[position] << 8 | payload[position + 1]) + 1
            position += 2
        position += size
        if position >= len(payload):
            return -1
        packet = payload[position] & 15
    return position


def _take_track(payload: bytes, position: int, mod_ex: int, multitrack: int, track: int) -> tuple[int, bytes] | None:
    """Take a track out of a multitrack message; if it is there twice, the first one.

    Args:
        payload: The message.
        position: Where the multitrack header begins.
        mod_ex: The packet type that may not be inside.
        multitrack: The other one.
        track: The track's id.

    Returns:
        The packet type, and FourCC and data as they are in a message of one track; None if it is not there.
    """
    if position >= len(payload):
        return None
    layout, packet = payload[position] >> 4, payload[position] & 15
    position += 1
    if packet in (mod_ex, multitrack):
        return None
    four_cc = b""
    if layout != _MANY_CODECS:
        four_cc = payload[position : position + _FOUR_CC_SIZE]
        position += _FOUR_CC_SIZE
    if layout == _ONE_TRACK:
        if position < len(payload) and payload[position] == track:
            return packet, four_cc + payload[position + 1 :]
        return None
    while position < len(payload):
        if layout == _MANY_CODECS:
            four_cc = payload[position : position + _FOUR_CC_SIZE]
            position += _FOUR_CC_SIZE
        data = position + 4
        end = data + int.from_bytes(payload[position + 1 : data], "big")
        if data > len(payload) or end > len(payload):
            return None
        if payload[position] == track:
            return packet, four_cc + payload[data:end]
        position = end
    return None


def _to_hvc1(payload: bytes) -> bytes:
    """Turn a message of CodecID 12 into one of FourCC hvc1; what is cut short or unknown stays."""
    if len(payload) < 5:
        return payload
    packet, first = payload[1], 0x80 | payload[0] & 0x70
    if packet == VideoPacket.SEQUENCE_START:
        return b"%c%b%b" % (first | VideoPacket.SEQUENCE_START, _HVC1, payload[5:])
    if packet == VideoPacket.CODED_FRAMES:
        if payload[2:5] == _NO_OFFSET:
            return b"%c%b%b" % (first | VideoPacket.CODED_FRAMES_X, _HVC1, payload[5:])
        return b"%c%b%b" % (first | VideoPacket.CODED_FRAMES, _HVC1, payload[2:])
    if packet == VideoPacket.SEQUENCE_END:
        return b"%c%b" % (first | VideoPacket.SEQUENCE_END, _HVC1)
    return payload


def _to_legacy(payload: bytes, four_cc: bytes, codec_id: int) -> bytes | None:
    """Turn a message of a FourCC into one of a legacy codec id; other codecs stay, and so does what is cut short.

    Metadata and other packets that the legacy header has no place for are left out, and ModEx packets are taken off.
    """
    packet_at = _behind_mod_ex(payload, VideoPacket.MOD_EX)
    if packet_at < 0:
        return payload
    body = packet_at + 1 + _FOUR_CC_SIZE
    frame_type = payload[0] >> 4 & 7
    if payload[0] < 0x80 or payload[packet_at + 1 : body] != four_cc:
        return payload
    packet, first = payload[packet_at] & 15, frame_type << 4 | codec_id
    if frame_type == _FRAME_TYPE_COMMAND and packet != VideoPacket.METADATA:
        return payload
    if packet == VideoPacket.MULTITRACK:
        return payload
    if packet == VideoPacket.SEQUENCE_START:
        return b"%c\0%b%b" % (first, _NO_OFFSET, payload[body:])
    if packet == VideoPacket.CODED_FRAMES:
        return b"%c\1%b" % (first, payload[body:]) if len(payload) >= body + 3 else payload
    if packet == VideoPacket.CODED_FRAMES_X:
        return b"%c\1%b%b" % (first, _NO_OFFSET, payload[body:])
    if packet == VideoPacket.SEQUENCE_END:
        return b"%c\2%b" % (first, _NO_OFFSET)
    return None


def _to_legacy_audio(payload: bytes) -> bytes | None:
    """Turn a message of FourCC mp4a or .mp3 into one with the legacy header; other codecs stay, and what is cut short.

    What there is no legacy form of, such as a multichannel configuration, is left out.
    """
    if payload[0] >> 4 != 9:
        return payload
    packet_at = _behind_mod_ex(payload, AudioPacket.MOD_EX)
    if packet_at < 0:
        return payload
    packet, body = payload[packet_at] & 15, packet_at + 1 + _FOUR_CC_SIZE
    four_cc = payload[packet_at + 1 : body]
    if packet == AudioPacket.MULTITRACK or four_cc not in (b"mp4a", b".mp3"):
        return payload
    if four_cc == b".mp3":
        return b"%c%b" % (_OLD_MP3, payload[body:]) if packet == AudioPacket.CODED_FRAMES else None
    if packet in (AudioPacket.SEQUENCE_START, AudioPacket.CODED_FRAMES):
        return b"%c%c%b" % (_OLD_AAC, packet, payload[body:])
    return None
