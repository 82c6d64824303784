"""The tracks of a stream as MP4 carries them: collected from its sequence headers, metadata and first frames.

There is one video and one audio track. Of a stream with several, the lowest of each kind is carried and the others are not: MP4
could hold them, but browsers play the first ones only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.errors import AmfError, LimitExceeded, UnsupportedByMp4
from rtmpd.media.flv import AUDIO, SCRIPT, VIDEO
from rtmpd.media.fmp4.codecs import audio_track, mp3_track, video_track
from rtmpd.media.fmp4.frames import Plain
from rtmpd.media.tags import MAX_RECORD_BYTES, Kind, audio_info, first_track_data, video_info
from rtmpd.media.video_codecs import read_color_info
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import AmfLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.media.fmp4.codecs import Track
    from rtmpd.media.video_codecs import ColorInfo

_LIMITS = AmfLimits(depth=32, values=8192, string_bytes=1 << 16, total_bytes=1 << 17)
_MP3_IDS = (2.0, float(int.from_bytes(b".mp3", "big")))
_HIGHEST_RATE = 48000
_SELF_DESCRIBING = ("mp3", "ac3", "eac3")
"""Codecs of audio whose frames have the configuration."""
_DESCRIBED = ("h264", "hevc", "av1", "vp8", "vp9")
"""Codecs of video that MP4 can carry: their sequence headers have the configuration."""
_MAX_SIDE = 0xFFFF

MAX_HEADER_BYTES = 64 << 10
"""The longest sequence header that is taken: no real encoder's comes near."""

_FRAME_BYTES = 64
"""The part of a frame of audio that its configuration is in."""


class Tracks:
    """The tracks of a stream.

    Attributes:
        video, audio: The tracks; None: there is none, or MP4 can't carry it, or too little is known of it yet.
        problems: Why there is no such track, by type id, although there are messages of the kind.
        plain: Gives messages the headers that tracks have here.
    """

    __slots__ = (
        "_audio_frame",
        "_audio_header",
        "_color",
        "_keyframe",
        "_size",
        "_video_header",
        "audio",
        "plain",
        "problems",
        "video",
    )

    def __init__(self) -> None:
        self.plain = Plain()
        self._clear()

    def _clear(self) -> None:
        self.video: Track | None = None
        self.audio: Track | None = None
        self.problems: dict[int, str] = {}
        self.plain.forget()
        self._video_header = b""
        self._keyframe = b""
        self._audio_header = b""
        self._audio_frame = b""
        self._size = (0, 0)
        self._color: ColorInfo | None = None

    def set_headers(self, items: Iterable[tuple[int, bytes]]) -> bool:
        """Begin anew with the headers in force, ``(type_id, payload)``; return whether tracks have changed.

        What frames have shown of a track is kept while its sequence header is the same.
        """
        before = (self.video, self.audio)
        kept = (self._video_header, self._keyframe, self._audio_header, self._audio_frame)
        self._clear()
        for type_id, payload in items:
            self.take(type_id, payload)
        if kept[1] and kept[0] == self._video_header:
            self._keyframe = kept[1]
            self._set_video()
        if kept[3] and kept[2] == self._audio_header:
            self._audio_frame = kept[3]
            self._set_audio()
        return before != (self.video, self.audio)

    def with_headers(self, items: Iterable[tuple[int, bytes]]) -> Tracks:
        """Return the tracks with other headers in force."""
        made = Tracks()
        made._video_header, made._keyframe = self._video_header, self._keyframe
        made._audio_header, made._audio_frame = self._audio_header, self._audio_frame
        made.set_headers(items)
        return made

    def copy(self) -> Tracks:
        """Return the tracks as they are now."""
        made = Tracks()
        for name in self.__slots__:
            setattr(made, name, getattr(self, name))
        made.problems, made.plain = dict(self.problems), self.plain.copy()
        return made

    def take(self, type_id: int, payload: bytes) -> bool:
        """Take a message: a header, metadata, or a frame of a track that is not `settled`. Return whether tracks have changed.

        Other messages are ignored.
        """
        before = (self.video, self.audio)
        if type_id == VIDEO:
            self._take_video(payload)
        elif type_id == AUDIO:
            self._take_audio(payload)
        elif type_id == SCRIPT:
            self._take_metadata(payload)
        return before != (self.video, self.audio)

    def settled(self, type_id: int) -> bool:
        """Return whether frames of this type add nothing to what is known."""
        if type_id == AUDIO:
            return AUDIO in self.problems or (self.audio is not None and (bool(self._audio_frame) or not self._assumed))
        return self.video is not None or (VIDEO in self.problems and (bool(self._keyframe) or not self._video_header))

    @property
    def _assumed(self) -> bool:
        """Whether the audio track is a guess until a frame comes."""
        return self.audio is not None and self.audio.codec in ("mp3", "ac-3", "ec-3")

    def _take_video(self, payload: bytes) -> None:
        info = video_info(payload)
        if info.kind is Kind.METADATA:
            color = read_color_info(first_track_data(payload, info))
            mine = info.tracks[0] == (self.plain.video_track or 0)
            if mine and color is not None and color != self._color:
                self._color = color
                self._set_video()
            return
        if info.kind is Kind.HEADER:
            if len(payload) > MAX_HEADER_BYTES:
                self.problems[VIDEO] = _too_long(payload)
                return
            self.plain.note_tracks(VIDEO, payload)
            header = self.plain.message(VIDEO, payload)
            if header:
                self._keyframe = self._keyframe if header == self._video_header else b""
                self._video_header = header
                self._set_video()
        elif info.kind in (Kind.KEYFRAME, Kind.TRACK_KEYFRAME):
            if self._video_header:
                if not self._keyframe:
                    self._keyframe = (self.plain.message(VIDEO, payload) or b"")[:MAX_RECORD_BYTES]
                    self._set_video()
            elif self.video is None:
                lacks = " without a sequence header" if info.codec in _DESCRIBED else ""
                self.problems[VIDEO] = f"MP4 can't carry video codec {info.codec or 'without a name'}{lacks}"

    def _set_video(self) -> None:
        if not self._video_header:
            return
        self.problems.pop(VIDEO, None)
        try:
            self.video = video_track(self._video_header, self._keyframe, self._size, self._color)
        except UnsupportedByMp4 as error:
            self.video = None
            self.problems[VIDEO] = str(error)

    def _take_audio(self, payload: bytes) -> None:
        info = audio_info(payload)
        if info.kind is Kind.HEADER and info.packet_type == 0:
            if len(payload) > MAX_HEADER_BYTES:
                self.problems[AUDIO] = _too_long(payload)
                return
            self.plain.note_tracks(AUDIO, payload)
            header = self.plain.message(AUDIO, payload)
            if header:
                self._audio_frame = self._audio_frame if header == self._audio_header else b""
                self._audio_header = header
                self._set_audio()
        elif info.kind is Kind.FRAME:
            described = self._audio_header and info.codec not in _SELF_DESCRIBING
            frame = b"" if described else self.plain.message(AUDIO, payload)
            if frame is not None and frame[:_FRAME_BYTES] != self._audio_frame:
                self._audio_frame = frame[:_FRAME_BYTES]
                self._set_audio()

    def _set_audio(self) -> None:
        if not self._audio_header and not self._audio_frame:
            return
        self.problems.pop(AUDIO, None)
        try:
            self.audio = audio_track(self._audio_header, self._audio_frame)
        except UnsupportedByMp4 as error:
            self.audio = None
            self.problems[AUDIO] = str(error)

    def _take_metadata(self, payload: bytes) -> None:
        """Take the size of the picture, and whether audio is MP3, whose legacy form has no sequence header."""
        try:
            values = amf0.decode_all(payload, limits=_LIMITS, lenient=True)
        except (AmfError, LimitExceeded):
            return
        members = next((value for value in values[1:] if isinstance(value, dict)), {})

        def number(name: str) -> float:
            value = members.get(name)
            return value if isinstance(value, float) else 0.0

        width, height = number("width"), number("height")
        if 0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE:
            self._size = (int(width), int(height))
            self._set_video()
        if number("audiocodecid") in _MP3_IDS and not self._audio_header and not self._audio_frame:
            rate = number("audiosamplerate")
            self.audio = mp3_track(int(rate) if 0 < rate <= _HIGHEST_RATE else 0, 1 if members.get("stereo") is False else 2)

    def of(self, type_id: int) -> Track | None:
        """Return the track of messages of a type."""
        return self.video if type_id == VIDEO else self.audio if type_id == AUDIO else None

    @property
    def has_legacy_avc(self) -> bool:
        """Whether video is H.264 of the track whose frames may have the legacy header, and so need no look at `plain`."""
        return self.video is not None and self.video.codec.startswith("avc1") and not self.plain.video_track

    @property
    def has_legacy_aac(self) -> bool:
        """Whether audio is AAC of the track whose frames may have the legacy header; likewise."""
        return self.audio is not None and self.audio.codec.startswith("mp4a.40") and not self.plain.audio_track

    @property
    def tracks(self) -> list[Track]:
        """The tracks, video first."""
        return [track for track in (self.video, self.audio) if track is not None]


def _too_long(header: bytes) -> str:
    return f"a sequence header has {len(header)} bytes, expected at most {MAX_HEADER_BYTES}"
