"""What a published stream contains that not every player can take, and how it is rewritten for such players.

`VIDEO_FEATURES` and `AUDIO_FEATURES` detect at low cost, by the first byte of a message, what could need rewriting. `Content`
collects the codecs, tracks and headers that the publisher has used so far. `Rewrite` describes the difference between what is
published and what a player gets; it is hashable, so that players with equal ones share the result. Rewriting changes headers
only: codec data is copied, nothing is decoded, and nothing raises.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from rtmpd.errors import AmfError, LimitExceeded
from rtmpd.media.tags import AudioPacket, Kind, VideoPacket, audio_info, skip_mod_ex, split_tracks, video_info
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import AmfLimits

if TYPE_CHECKING:
    from rtmpd.media.tags import TagInfo


class Feature(enum.IntFlag):
    """Something in a stream's headers that not every player can parse."""

    MULTITRACK = 1
    MOD_EX = 2
    HEVC_CODEC12 = 4
    """HEVC with the legacy header and CodecID 12, as Chinese CDNs and encoders send it."""


OLD_AUDIO: Final = ("mp4a", ".mp3")
"""FourCCs of audio codecs that also have a legacy header."""

_AVC1, _HVC1, _MP4A, _MP3 = b"avc1", b"hvc1", b"mp4a", b".mp3"
_CODEC_AVC, _CODEC_HEVC = 7, 12  # CodecID of the legacy video header
_LEGACY_AAC, _LEGACY_MP3 = 0xAF, 0x2F  # the first byte of a legacy audio message: format, 44 kHz, 16 bit, stereo
_ENHANCED_VIDEO = 0x80  # the first byte of Enhanced video has this bit set
_ENHANCED_AUDIO = 9  # the upper four bits of the first byte of Enhanced audio
_FRAME_TYPE_COMMAND = 5
_FOUR_CC_SIZE = 4
_NO_OFFSET = b"\0\0\0"  # a composition time of 0
_DESCRIBING = (Kind.HEADER, Kind.FRAME, Kind.KEYFRAME, Kind.TRACK_KEYFRAME)
_METADATA_LIMITS = AmfLimits(depth=8, string_bytes=64 << 10, total_bytes=64 << 10)
_METADATA_NAME = amf0.encode("onMetaData")
_TRACK_LISTS = ("videoTrackIdInfoMap", "audioTrackIdInfoMap")


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What a player gets instead of what is published.

    Attributes:
        default_track: Send only `video_track` and `audio_track`, without multitrack headers. Messages of other tracks, and
            malformed multitrack messages, are left out. A message without a multitrack header belongs to track 0.
        hevc: The header of HEVC video: ``published`` (unchanged), ``hvc1`` (always the Enhanced one) or ``codec12`` (always
            the legacy one with CodecID 12).
        mod_ex: Keep ModEx packets. Otherwise they are removed, and their nanosecond offsets are lost.
        video_track: The lowest video track id of the stream, for `default_track`.
        audio_track: The lowest audio track id of the stream, for `default_track`.
        old_video: Send H.264 of FourCC avc1 with the legacy header and CodecID 7, which every player can parse.
        old_audio: Send AAC of FourCC mp4a and MP3 of FourCC .mp3 with the legacy header.
        mute: Send no audio.
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
        """Whether no message is ever changed."""
        changes = self.default_track or self.old_video or self.old_audio or self.mute or self.hevc != "published"
        return self.mod_ex and not changes

    def video(self, payload: bytes) -> bytes | None:
        """Rewrite a video message.

        Returns:
            The same object if nothing changes; None if the player does not get the message.
        """
        if not payload:
            return payload
        first = payload[0]
        if first < _ENHANCED_VIDEO:
            if first >> 4 == _FRAME_TYPE_COMMAND:
                return payload
            if self.default_track and self.video_track:
                return None
            return _to_hvc1(payload) if first & 15 == _CODEC_HEVC and self.hevc == "hvc1" else payload
        made = self._simplify(payload, VideoPacket.MOD_EX, VideoPacket.MULTITRACK, self.video_track)
        if made is not None and self.hevc == "codec12":
            made = _to_legacy_video(made, _HVC1, _CODEC_HEVC)
        if made is not None and self.old_video:
            made = _to_legacy_video(made, _AVC1, _CODEC_AVC)
        return made

    def audio(self, payload: bytes) -> bytes | None:
        """Rewrite an audio message.

        Returns:
            The same object if nothing changes; None if the player does not get the message.
        """
        if not payload:
            return payload  # an empty audio message means silence
        if self.mute:
            return None
        if payload[0] >> 4 != _ENHANCED_AUDIO:
            return None if self.default_track and self.audio_track else payload
        made = self._simplify(payload, AudioPacket.MOD_EX, AudioPacket.MULTITRACK, self.audio_track)
        return _to_legacy_audio(made) if made is not None and self.old_audio else made

    def _simplify(self, payload: bytes, mod_ex: int, multitrack: int, track: int) -> bytes | None:
        """Remove the ModEx packets and the multitrack header of an Enhanced message, as far as this rewrite asks for it."""
        first = payload[0]
        packet_at = _after_mod_ex(payload, mod_ex)
        if packet_at < 0:
            return payload if self.mod_ex else None
        packet = payload[packet_at] & 15
        # The upper bits of audio are 9, which reads as frame type 1: audio is never taken for a command.
        command = first >> 4 & 7 == _FRAME_TYPE_COMMAND and packet != VideoPacket.METADATA
        body: bytes | None = None
        if self.default_track and not command:
            if packet == multitrack:
                taken = _extract_track(payload, packet_at + 1, mod_ex, multitrack, track)
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
        # The packet type is in the first byte of the message, or in the last byte of its ModEx packets.
        return b"%b%c%b" % (payload[:prefix_end], payload[prefix_end] & 0xF0 | packet, body)


AS_PUBLISHED: Final = Rewrite()
"""Changes nothing."""


def _features(first: int, multitrack: int, mod_ex: int) -> int:
    packet = first & 15
    return int(Feature.MULTITRACK if packet == multitrack else Feature.MOD_EX if packet == mod_ex else 0)


def _video_features(first: int) -> int:
    if first < _ENHANCED_VIDEO:
        return int(Feature.HEVC_CODEC12) if first & 15 == _CODEC_HEVC and first >> 4 != _FRAME_TYPE_COMMAND else 0
    return _features(first, VideoPacket.MULTITRACK, VideoPacket.MOD_EX)


def _audio_features(first: int) -> int:
    return _features(first, AudioPacket.MULTITRACK, AudioPacket.MOD_EX) if first >> 4 == _ENHANCED_AUDIO else 0


VIDEO_FEATURES: Final = bytes(map(_video_features, range(256)))
"""The `Feature` bits that the first byte of a video message shows, indexed by that byte."""

AUDIO_FEATURES: Final = bytes(map(_audio_features, range(256)))
"""The `Feature` bits that the first byte of an audio message shows, indexed by that byte."""


@dataclass(slots=True)
class Content:
    """What a publisher has sent so far, as far as not every player can take it.

    Updated with headers and with the first message of each feature only, never with ordinary frames.

    Attributes:
        multitrack: A message had a multitrack header.
        mod_ex: A message had a ModEx packet.
        hevc: The header of HEVC on the first video track: ``hvc1`` or ``codec12``; empty for other codecs.
        video_track, audio_track: The lowest track id, which players without multitrack get; -1 before the first message.
        known: The `Feature` bits that have been seen and need not be looked for again.
        video_four_cc, audio_four_cc: The FourCCs of these tracks; empty with legacy headers, or before the first message.
    """

    multitrack: bool = False
    mod_ex: bool = False
    hevc: str = ""
    video_track: int = -1
    audio_track: int = -1
    video_four_cc: str = ""
    audio_four_cc: str = ""
    known: int = 0

    @property
    def ordinary(self) -> bool:
        """Whether every player can take the stream as it is published."""
        others = self.multitrack or self.mod_ex or self.video_track > 0 or self.audio_track > 0
        return not (others or self.hevc or self.video_four_cc or self.audio_four_cc)

    def look_at_video(self, payload: bytes) -> bool:
        """Update the content by a video message; return whether it changed."""
        info = video_info(payload)
        before = _state(self)
        self._look(info)
        track = min(info.tracks)
        if info.kind in _DESCRIBING and (self.video_track < 0 or track <= self.video_track):
            self.video_track = track
            self.video_four_cc = info.four_cc.decode("latin-1")
            legacy_hevc = payload[0] < _ENHANCED_VIDEO and payload[0] & 15 == _CODEC_HEVC
            self.hevc = "codec12" if legacy_hevc else "hvc1" if info.four_cc == _HVC1 else ""
            self.known = self.known & ~Feature.HEVC_CODEC12 | Feature.HEVC_CODEC12 * legacy_hevc
        return _state(self) != before

    def look_at_audio(self, payload: bytes) -> bool:
        """Update the content by an audio message; return whether it changed."""
        info = audio_info(payload)
        before = _state(self)
        self._look(info)
        track = min(info.tracks)
        if info.kind in _DESCRIBING and (self.audio_track < 0 or track <= self.audio_track):
            self.audio_track = track
            self.audio_four_cc = info.four_cc.decode("latin-1")
        return _state(self) != before

    def _look(self, info: TagInfo) -> None:
        self.multitrack = self.multitrack or info.multitrack
        self.mod_ex = self.mod_ex or info.mod_ex
        self.known |= Feature.MULTITRACK * info.multitrack | Feature.MOD_EX * info.mod_ex

    def narrow(self, wanted: Rewrite) -> Rewrite:
        """Return the part of *wanted* that makes a difference for this content.

        Players whose wishes differ only in what this content does not have get equal rewrites, and share a variant.
        """
        video_track, audio_track = max(self.video_track, 0), max(self.audio_track, 0)
        # A ModEx packet may hide a multitrack header.
        one = wanted.default_track and (self.multitrack or self.mod_ex or video_track + audio_track > 0)
        same_hevc = wanted.hevc in ("published", self.hevc) or not self.hevc
        return Rewrite(
            default_track=one,
            video_track=video_track if one else 0,
            audio_track=audio_track if one else 0,
            hevc="published" if same_hevc else wanted.hevc,
            mod_ex=wanted.mod_ex or not self.mod_ex,
            old_video=wanted.old_video and self.video_four_cc == "avc1",
            old_audio=wanted.old_audio and self.audio_four_cc in OLD_AUDIO,
            mute=wanted.mute and bool(self.audio_four_cc),
        )


_state = attrgetter(*(field.name for field in fields(Content)))
"""Returns all fields, to compare: ``dataclasses.astuple`` copies each deeply, and a publisher may send a header each time."""


def rewritten_metadata(payload: bytes, rewrite: Rewrite) -> bytes:
    """Return an onMetaData message that agrees with *rewrite*, because players may choose their decoder by it.

    ``videocodecid`` and ``audiocodecid`` follow the rewritten headers; lists of tracks are left out for `default_track`. A
    message that is not onMetaData, can't be decoded or needs no change is returned as it is.
    """
    if not payload.startswith(_METADATA_NAME):
        return payload
    try:
        values = amf0.decode_all(payload, limits=_METADATA_LIMITS)
    except (AmfError, LimitExceeded):
        return payload
    if len(values) < 2 or not isinstance(values[1], dict):
        return payload
    metadata = values[1]
    before = dict(metadata)
    video: dict[float, float] = {_codec_id(_AVC1): _CODEC_AVC} if rewrite.old_video else {}
    if rewrite.hevc == "codec12":
        video[_codec_id(_HVC1)] = _CODEC_HEVC
    elif rewrite.hevc == "hvc1":
        video[_CODEC_HEVC] = _codec_id(_HVC1)
    audio: dict[float, float] = (
        {_codec_id(_MP4A): _LEGACY_AAC >> 4, _codec_id(_MP3): _LEGACY_MP3 >> 4} if rewrite.old_audio else {}
    )
    for name, codecs in (("videocodecid", video), ("audiocodecid", audio)):
        codec = metadata.get(name)
        if isinstance(codec, (int, float)) and codec in codecs:
            metadata[name] = float(codecs[codec])
    if rewrite.default_track:
        for name in _TRACK_LISTS:
            metadata.pop(name, None)
    if rewrite.mute:
        metadata.pop("audiocodecid", None)
    return payload if metadata == before else amf0.encode(*values)


def _codec_id(four_cc: bytes) -> float:
    """Return the number by which metadata names a codec that has a FourCC."""
    return float(int.from_bytes(four_cc, "big"))


def _after_mod_ex(payload: bytes, mod_ex: int) -> int:
    """Return the offset of the byte whose lower bits hold the packet type after all ModEx packets; -1 if they are truncated."""
    if payload[0] & 15 != mod_ex:
        return 0
    packet, position, _ = skip_mod_ex(payload, mod_ex, mod_ex)
    return position - 1 if packet >= 0 else -1


def _extract_track(payload: bytes, position: int, mod_ex: int, multitrack: int, track: int) -> tuple[int, bytes] | None:
    """Extract a track from a multitrack message; the first one if several have the same id.

    Args:
        payload: The message.
        position: The offset of the multitrack header.
        mod_ex: The packet type of ModEx, which may not occur inside.
        multitrack: The packet type of multitrack, which may not occur inside.
        track: The track's id.

    Returns:
        The packet type, and FourCC and data as in a message of a single track; None if the track is missing.
    """
    if position >= len(payload) or payload[position] & 15 in (mod_ex, multitrack):
        return None
    for number, four_cc, start, end in split_tracks(payload, position):
        if number == track:
            return payload[position] & 15, four_cc + payload[start:end]
    return None


def _to_hvc1(payload: bytes) -> bytes:
    """Turn a message of CodecID 12 into one of FourCC hvc1. Truncated messages and unknown packet types stay."""
    if len(payload) < 5:
        return payload
    packet, first = payload[1], _ENHANCED_VIDEO | payload[0] & 0x70
    if packet == VideoPacket.SEQUENCE_START:
        return b"%c%b%b" % (first | VideoPacket.SEQUENCE_START, _HVC1, payload[5:])
    if packet == VideoPacket.CODED_FRAMES:
        if payload[2:5] == _NO_OFFSET:
            return b"%c%b%b" % (first | VideoPacket.CODED_FRAMES_X, _HVC1, payload[5:])
        return b"%c%b%b" % (first | VideoPacket.CODED_FRAMES, _HVC1, payload[2:])
    if packet == VideoPacket.SEQUENCE_END:
        return b"%c%b" % (first | VideoPacket.SEQUENCE_END, _HVC1)
    return payload


def _to_legacy_video(payload: bytes, four_cc: bytes, codec_id: int) -> bytes | None:
    """Turn a message of a FourCC into one with the legacy header. Other codecs and truncated messages stay.

    Metadata and other packets without a legacy form are left out (None). ModEx packets are removed.
    """
    packet_at = _after_mod_ex(payload, VideoPacket.MOD_EX)
    if packet_at < 0:
        return payload
    body = packet_at + 1 + _FOUR_CC_SIZE
    frame_type = payload[0] >> 4 & 7
    if payload[0] < _ENHANCED_VIDEO or payload[packet_at + 1 : body] != four_cc:
        return payload
    packet, first = payload[packet_at] & 15, frame_type << 4 | codec_id
    if packet == VideoPacket.MULTITRACK or (frame_type == _FRAME_TYPE_COMMAND and packet != VideoPacket.METADATA):
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
    """Turn a message of FourCC mp4a or .mp3 into one with the legacy header. Other codecs and truncated messages stay.

    Packets without a legacy form, such as a multichannel configuration, are left out (None). ModEx packets are removed.
    """
    if payload[0] >> 4 != _ENHANCED_AUDIO:
        return payload
    packet_at = _after_mod_ex(payload, AudioPacket.MOD_EX)
    if packet_at < 0:
        return payload
    packet, body = payload[packet_at] & 15, packet_at + 1 + _FOUR_CC_SIZE
    four_cc = payload[packet_at + 1 : body]
    if packet == AudioPacket.MULTITRACK or four_cc not in (_MP4A, _MP3):
        return payload
    if four_cc == _MP3:
        return b"%c%b" % (_LEGACY_MP3, payload[body:]) if packet == AudioPacket.CODED_FRAMES else None
    if packet in (AudioPacket.SEQUENCE_START, AudioPacket.CODED_FRAMES):
        return b"%c%c%b" % (_LEGACY_AAC, packet, payload[body:])
    return None
