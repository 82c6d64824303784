"""What is known of a live stream besides its bytes: what it is encoded with, how often keyframes come, how fast it is.

For metrics, the media log and recordings. Nothing here runs for each message: codecs are read from headers and, where these
don't say enough, from keyframes; rates are counted by the sweep. Imports media; no event loop, no clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from rtmpd.media.audio_codecs import AudioConfig, audio_config, refine_audio
from rtmpd.media.tags import Kind, audio_info, video_info
from rtmpd.media.video_codecs import VideoConfig, refine_video, video_color, video_config

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Vitals"]

_WINDOW = 6
"""Sweeps that a rate is counted over, one more than the seconds."""

_NO_TRACK = 256
"""Ids have 8 bits."""

_AUDIO_TRIES = 50
"""Audio frames that are asked what they are, where no header says it."""


def _nobody(found: VideoConfig | AudioConfig) -> None:
    """Be told nothing."""


class Vitals:
    """The vitals of one stream, from its publisher's first message to its last.

    Args:
        tell: Called with each configuration that is news: the first, and each that differs from the one before.

    Attributes:
        video, audio: What the lowest track of each is encoded with; None while that is not known.
        asks_audio: Whether `audio_frame` is to be called: no header says what the audio is.
        keyframes: How many there were.
        keyframe_at: When the last one came (monotonic, seconds); 0 before the first.
        keyframe_interval_ms: Between the last two; 0 before.
        bitrate: Bits per second of media, over the last seconds.
        fps: Video frames per second, likewise.
    """

    __slots__ = (
        "_audio_track",
        "_color",
        "_keyframe_timestamp",
        "_samples",
        "_tell",
        "_tries",
        "_video_told",
        "_video_track",
        "asks_audio",
        "audio",
        "bitrate",
        "fps",
        "keyframe_at",
        "keyframe_interval_ms",
        "keyframes",
        "video",
    )

    def __init__(self, tell: Callable[[VideoConfig | AudioConfig], None]) -> None:
        self._tell = tell
        self.reset()

    def close(self) -> None:
        """Tell nobody any more. Who is told is a stream that holds these vitals: it would keep itself, and its pages."""
        self._tell = _nobody

    def reset(self) -> None:
        """Forget everything: another publisher begins."""
        self.video: VideoConfig | None = None
        self.audio: AudioConfig | None = None
        self.asks_audio = True
        self.keyframes = 0
        self.keyframe_at = 0.0
        self.keyframe_interval_ms = 0
        self.bitrate = 0.0
        self.fps = 0.0
        self._video_told: VideoConfig | None = None
        self._keyframe_timestamp = 0
        self._tries = 0
        self._video_track = self._audio_track = _NO_TRACK
        self._color = ""
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=_WINDOW)

    def video_header(self, payload: bytes) -> None:
        """Read a video sequence header, or a metadata packet with colorInfo."""
        info = video_info(payload)
        if info.kind == Kind.METADATA:
            # FFmpeg leaves out of which track it is, but says the codec.
            color = video_color(payload)
            if color is not None and (self.video is None or self.video.codec == info.codec):
                self._color = color
                self.video = self.video and replace(self.video, color=color)
            return
        found = video_config(payload)
        if found is None or info.tracks[0] > self._video_track:
            return
        self._video_track = info.tracks[0]
        found = replace(found, color=self._color)
        known = self.video
        if known is not None and known.codec == found.codec and not found.width:
            # The record says less than keyframes did.
            return
        self.video = found
        if found.width:
            # Otherwise a keyframe may say more.
            self._tell_video(found)

    def keyframe(self, timestamp: int, payload: bytes, now_s: float) -> None:
        """Note a video keyframe, and read it if there is something left to know."""
        if self.keyframes:
            self.keyframe_interval_ms = (timestamp - self._keyframe_timestamp) & 0xFFFFFFFF
        self.keyframes += 1
        self.keyframe_at = now_s
        self._keyframe_timestamp = timestamp
        if self._video_told is None:
            found = refine_video(self.video, payload)
            if found is not None:
                self.video = found
                self._tell_video(found)

    def _tell_video(self, found: VideoConfig) -> None:
        if found != self._video_told:
            self._video_told = found
            self._tell(found)

    def audio_header(self, payload: bytes) -> None:
        """Read an audio sequence header, or a multichannel configuration."""
        track = audio_info(payload).tracks[0]
        if track <= self._audio_track:
            self._audio_track = track
            self._set_audio(refine_audio(self.audio, payload))

    def audio_frame(self, payload: bytes) -> None:
        """Read an audio frame of a codec without headers. Only while ``asks_audio``."""
        self._tries += 1
        found = audio_config(payload)
        self._set_audio(found)
        self.asks_audio = found is None and self._tries < _AUDIO_TRIES

    def _set_audio(self, found: AudioConfig | None) -> None:
        if found is not None:
            self.asks_audio = False
            news = found != self.audio
            self.audio = found
            if news:
                self._tell(found)

    def sweep(self, now_s: float, bytes_in: int, frames: int) -> None:
        """Count the rates; called once a second or so with totals that only grow."""
        samples = self._samples
        samples.append((now_s, bytes_in, frames))
        first_s, first_bytes, first_frames = samples[0]
        if now_s > first_s:
            self.bitrate = (bytes_in - first_bytes) * 8 / (now_s - first_s)
            self.fps = (frames - first_frames) / (now_s - first_s)
