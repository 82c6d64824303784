"""Statistics of a source: what its tracks are encoded with, how often keyframes come, bitrate and frame rate.

For metrics, the media log and recordings. Nothing here runs for each message: codecs are read from headers and, where these
do not say enough, from keyframes; rates are computed by the sweep. Pure: the clock is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from rtmpd.media.audio_codecs import AudioConfig, audio_config, refine_audio
from rtmpd.media.tags import Kind, audio_info, video_info
from rtmpd.media.video_codecs import VideoConfig, refine_video, video_color, video_config
from rtmpd.util.speed import accelerated

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW = 6
"""The number of sweeps that a rate is computed over: one more than seconds."""

_NO_TRACK = 256
"""Larger than any track id: those have 8 bits."""

_AUDIO_TRIES = 50
"""The number of audio frames that are examined for their codec, where no header names it."""


def _ignore(found: VideoConfig | AudioConfig) -> None:
    pass


@accelerated
class StatsState:
    """What frames ask of the statistics, and what a keyframe of a known codec changes.

    Attributes:
        asks_audio: Whether `Stats.audio_frame` is to be called: no header has named the audio codec.
        keyframes: The number of keyframes.
        keyframe_at: When the last keyframe came (monotonic, seconds); 0 before the first.
        keyframe_interval_ms: The time between the last two keyframes; 0 before there are two.
    """

    __slots__ = ("_keyframe_timestamp", "_video_reported", "asks_audio", "keyframe_at", "keyframe_interval_ms", "keyframes")

    asks_audio: bool
    keyframes: int
    keyframe_at: float
    keyframe_interval_ms: int
    _keyframe_timestamp: int
    _video_reported: VideoConfig | None


class Stats(StatsState):
    """The statistics of one source, from its first message to its last.

    Args:
        on_codec: Called with the first configuration of a track, and with each that differs from the one before.

    Attributes:
        video, audio: What the lowest track of each is encoded with; None while that is not known.
        bitrate: Bits per second of media, over the last seconds.
        fps: Video frames per second, likewise.
    """

    __slots__ = (
        "_audio_track",
        "_color",
        "_on_codec",
        "_samples",
        "_tries",
        "_video_track",
        "audio",
        "bitrate",
        "fps",
        "video",
    )

    def __init__(self, on_codec: Callable[[VideoConfig | AudioConfig], None]) -> None:
        self._on_codec = on_codec
        self.video: VideoConfig | None = None
        self.audio: AudioConfig | None = None
        self.asks_audio = True
        self.keyframes = 0
        self.keyframe_at = 0.0
        self.keyframe_interval_ms = 0
        self.bitrate = 0.0
        self.fps = 0.0
        self._video_reported = None
        self._keyframe_timestamp = 0
        self._tries = 0
        self._video_track = self._audio_track = _NO_TRACK
        self._color = ""
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=_WINDOW)

    def close(self) -> None:
        """Drop the callback."""
        self._on_codec = _ignore

    def video_header(self, payload: bytes) -> None:
        """Read a video sequence header, or a metadata packet with colorInfo."""
        info = video_info(payload)
        if info.kind == Kind.METADATA:
            # FFmpeg leaves out the track, but names the codec.
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
            # The header says less than keyframes did.
            return
        self.video = found
        if found.width:
            # Without a size, a keyframe may say more.
            self._report_video(found)

    def keyframe(self, timestamp: int, payload: bytes, now_s: float) -> None:
        """Count a video keyframe, and read its codec configuration if no header has said enough."""
        if self.keyframes:
            self.keyframe_interval_ms = (timestamp - self._keyframe_timestamp) & 0xFFFFFFFF
        self.keyframes += 1
        self.keyframe_at = now_s
        self._keyframe_timestamp = timestamp
        if self._video_reported is None:
            found = refine_video(self.video, payload)
            if found is not None:
                self.video = found
                self._report_video(found)

    def _report_video(self, found: VideoConfig) -> None:
        if found != self._video_reported:
            self._video_reported = found
            self._on_codec(found)

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
            changed = found != self.audio
            self.audio = found
            if changed:
                self._on_codec(found)

    def sweep(self, now_s: float, bytes_in: int, frames: int) -> None:
        """Compute the rates; called about once a second with totals that only grow."""
        samples = self._samples
        samples.append((now_s, bytes_in, frames))
        first_s, first_bytes, first_frames = samples[0]
        if now_s > first_s:
            self.bitrate = (bytes_in - first_bytes) * 8 / (now_s - first_s)
            self.fps = (frames - first_frames) / (now_s - first_s)
