"""RTMP messages as samples: where a frame's data begins, whether it is a keyframe, and its composition time.

MP4 tracks have no place for what is beside the frame in a message. So messages of several tracks become those of the lowest
one, ModEx packets are left out, and each codec gets one header: the legacy one for H.264, AAC and MP3, else a FourCC.
"""

from __future__ import annotations

from typing import NamedTuple

from rtmpd.media.flv import VIDEO
from rtmpd.media.rewrite import Rewrite
from rtmpd.media.tags import audio_info, video_info

_ONE_TRACK = {"default_track": True, "hevc": "hvc1", "mod_ex": False, "old_video": True, "old_audio": True}

_CODED_FRAMES, _CODED_FRAMES_X = 1, 3
_WITH_COMPOSITION = b"hvc1"
_AVC, _AAC, _MP3, _ENHANCED_AUDIO = 7, 10, (2, 14), 9
_TEMPORAL_DELIMITER = b"\x12\0"
_KEY = 1
_COMMAND = 5

AVC_KEYFRAME, AVC_FRAME, AAC_HEADER = 0x17, 0x27, 0xA0
"""What an ordinary frame begins with, for the hot paths: the first byte of H.264, and the upper half of that of AAC."""
AVC_BODY, AAC_BODY = 5, 2
"""Where the data of such a frame begins."""
NEGATIVE, WRAP = 1 << 23, 1 << 24
"""Composition times from `NEGATIVE` on, 24 bits, are negative: less by `WRAP`."""


class FrameData(NamedTuple):
    """The frame in a message.

    Attributes:
        payload: The message, possibly with another header.
        body: The offset of the frame's data.
        key: Whether decoding can start at it; always true for audio.
        composition_ms: How much later than its timestamp the frame is shown; may be negative.
        codec: The FourCC, also with a legacy header.
    """

    payload: bytes
    body: int
    key: bool
    composition_ms: int
    codec: bytes


class Plain:
    """Gives messages the one header that each codec has here.

    Attributes:
        video_track, audio_track: The track ids that are kept: the lowest that have been seen in a sequence header.
    """

    __slots__ = ("_rewrite", "audio_track", "video_track")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget the tracks."""
        self.video_track: int | None = None
        self.audio_track: int | None = None
        self._rewrite = Rewrite(**_ONE_TRACK)  # type: ignore[arg-type]

    def copy(self) -> Plain:
        """Return another one that knows the same tracks."""
        made = Plain()
        made.video_track, made.audio_track, made._rewrite = self.video_track, self.audio_track, self._rewrite
        return made

    def note_tracks(self, type_id: int, payload: bytes) -> None:
        """Take note of the track ids of a sequence header."""
        lowest = min((video_info if type_id == VIDEO else audio_info)(payload).tracks)
        if type_id == VIDEO:
            self.video_track = lowest if self.video_track is None else min(lowest, self.video_track)
        else:
            self.audio_track = lowest if self.audio_track is None else min(lowest, self.audio_track)
        self._rewrite = Rewrite(**_ONE_TRACK, video_track=self.video_track or 0, audio_track=self.audio_track or 0)  # type: ignore[arg-type]

    def message(self, type_id: int, payload: bytes) -> bytes | None:
        """Return a message with its one header; None if it is of another track, or has no such form."""
        return self._rewrite.video(payload) if type_id == VIDEO else self._rewrite.audio(payload)

    def frame(self, type_id: int, payload: bytes) -> FrameData | None:
        """Return the frame of an audio or video message; None if it has none, or the codec no place in MP4."""
        plain = self.message(type_id, payload)
        if plain is None or len(plain) < 2:
            return None
        return _video_frame(plain) if type_id == VIDEO else _audio_frame(plain)


def _video_frame(payload: bytes) -> FrameData | None:
    first = payload[0]
    frame_type, packet = first >> 4 & 7, first & 15
    if frame_type == _COMMAND or len(payload) <= 5:
        return None
    key = frame_type == _KEY
    if first < 0x80:
        if packet != _AVC or payload[1] != 1:
            return None
        return FrameData(payload, 5, key, int.from_bytes(payload[2:5], "big", signed=True), b"avc1")
    codec = payload[1:5]
    if packet == _CODED_FRAMES and codec == _WITH_COMPOSITION:
        if len(payload) <= 8:
            return None
        return FrameData(payload, 8, key, int.from_bytes(payload[5:8], "big", signed=True), codec)
    if packet not in (_CODED_FRAMES, _CODED_FRAMES_X):
        return None
    # A temporal delimiter has no place in a sample (AV1 codec ISO media file format binding, section 2.4).
    body = 7 if codec == b"av01" and payload[5:7] == _TEMPORAL_DELIMITER else 5
    return FrameData(payload, body, key, 0, codec)


def _audio_frame(payload: bytes) -> FrameData | None:
    sound_format = payload[0] >> 4
    if sound_format == _AAC:
        return FrameData(payload, 2, True, 0, b"mp4a") if payload[1] == 1 and len(payload) > 2 else None
    if sound_format in _MP3:
        return FrameData(payload, 1, True, 0, b".mp3")
    if sound_format != _ENHANCED_AUDIO or payload[0] & 15 != _CODED_FRAMES or len(payload) <= 5:
        return None
    return FrameData(payload, 5, True, 0, payload[1:5])


_OPUS_TICKS = (*(480, 960, 1920, 2880) * 3, *(480, 960) * 2, *(120, 240, 480, 960) * 4)
"""The duration of a frame by the configuration of an Opus packet, at 48 kHz (RFC 6716 table 2)."""

_HEAD_BYTES = 16
"""The longest header of a FLAC frame (RFC 9639 section 9.1)."""


def frame_ticks(frame: FrameData, usual: int) -> int:
    """Return the duration of an audio frame, in samples; 0: unknown.

    Args:
        frame: The frame.
        usual: The duration of the frames of a codec whose frames all have the same.
    """
    if frame.codec == b"Opus":
        return opus_ticks(frame.payload[frame.body : frame.body + 2])
    if frame.codec == b"fLaC":
        return flac_ticks(frame.payload[frame.body : frame.body + _HEAD_BYTES]) or usual
    return usual


def opus_ticks(packet: bytes) -> int:
    """Return the duration of an Opus packet at 48 kHz (RFC 6716 section 3.1); 0 if it is truncated."""
    if not packet:
        return 0
    code = packet[0] & 3
    if code == 3 and len(packet) < 2:
        return 0
    count = (1, 2, 2, packet[1] & 63 if code == 3 else 0)[code]
    return _OPUS_TICKS[packet[0] >> 3] * count


def flac_ticks(frame: bytes) -> int:
    """Return the number of samples of a FLAC frame (RFC 9639 section 9.1); 0 if it is truncated."""
    if len(frame) < 5 or frame[0] != 0xFF or frame[1] >> 1 != 0xF8 >> 1:
        return 0
    code = frame[2] >> 4
    if code == 1:
        return 192
    if code >= 8:
        return 256 << (code - 8)
    if code in (6, 7):
        # Behind the number of the frame, which is coded as a character of UTF-8.
        ones = 8 - (frame[4] ^ 0xFF).bit_length()
        if ones in (1, 8):
            return 0
        begin = 4 + max(1, ones)
        field = frame[begin : begin + code - 5]
        return int.from_bytes(field, "big") + 1 if len(field) == code - 5 else 0
    return 576 << (code - 2) if code >= 2 else 0
