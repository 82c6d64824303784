"""The media log: what a stream is encoded with, once that is known, and how it does, now and then.

Nothing is logged, and nothing is done, for each message: codecs come as events, and the figures are read from totals.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent

from rtmpd.events import EventType

if TYPE_CHECKING:
    from rtmpd.config.model import Config
    from rtmpd.events import Event
    from rtmpd.hub import Hub
    from rtmpd.live.stream import Stream
    from rtmpd.media.track_config import AudioConfig, VideoConfig

__all__ = ["MediaLog", "describe_audio", "describe_video"]

log = logging.getLogger(__name__)

_TICK_S = 1.0
_KINDS = 2
_OTHER_TRACK_S = 1.5
"""How long the second of video and audio may take after the first, before there is taken to be none."""


def describe_video(config: VideoConfig) -> str:
    """Describe a video track: ``hevc Main 10 4.1 1280x720 4:2:0 10 bit bt2020nc/bt2020/smpte2084``, as far as it is known."""
    words = [config.codec, config.profile, config.level]
    if config.width:
        words.append(f"{config.width}x{config.height}")
    words.append(config.chroma)
    if config.bit_depth:
        words.append(f"{config.bit_depth} bit")
    words.append(config.color)
    return " ".join(word for word in words if word)


def describe_audio(config: AudioConfig) -> str:
    """Describe an audio track: ``aac LC 48000 Hz 2 channels``, ``flac 48000 Hz 6 channels 5.1``."""
    words = [config.codec, config.profile]
    if config.sample_rate_hz:
        words.append(f"{config.sample_rate_hz} Hz")
    if config.channels:
        words.append("1 channel" if config.channels == 1 else f"{config.channels} channels")
    words.append(config.layout)
    return " ".join(word for word in words if word)


class _Entry:
    """What has been said of one publish."""

    def __init__(self, stream: Stream, now_s: float) -> None:
        self.told = ""
        self.known: set[object] = set()
        self.news_at: float | None = None
        self.restart(stream, now_s)

    def restart(self, stream: Stream, now_s: float) -> None:
        """Count from here."""
        self.since = now_s
        self.bytes_in = stream.bytes_in
        self.frames = stream.video_messages - stream.video_others
        self.keyframes = stream.vitals.keyframes
        self.drops = stream.fanout.tally.drops


class MediaLog:
    """The service."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._entries: dict[Stream, _Entry] = {}
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin."""
        self._hub.bus.subscribe((EventType.PUBLISH_START, EventType.PUBLISH_STOP, EventType.CODEC_DETECTED), self._handle)
        self._greenlet = gevent.spawn(self._run)

    @staticmethod
    def select(config: Config) -> Config:
        """Return the part of a configuration that the service uses."""
        return config

    def reload(self, config: Config) -> None:
        """Nothing: the interval is looked up each time."""

    def stop(self, limit_s: float) -> None:
        """End."""
        self._hub.bus.unsubscribe(self._handle)
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _handle(self, event: Event) -> None:
        stream = event.stream
        assert stream is not None
        now = time.monotonic()
        if event.type is EventType.PUBLISH_STOP:
            entry = self._entries.pop(stream, None)
            if entry is not None:
                # A stream that was too short for the second track still gets its line.
                self._say_codecs(stream, entry)
            return
        if event.type is EventType.PUBLISH_START:
            self._entries[stream] = _Entry(stream, now)
            return
        entry = self._entries.get(stream)
        if entry is not None:
            entry.news_at = entry.news_at if entry.news_at is not None else now
            entry.known.add(event.data["kind"])
            if len(entry.known) == _KINDS:
                self._say_codecs(stream, entry)

    def _run(self) -> None:
        while True:
            gevent.sleep(_TICK_S)
            self.tick(time.monotonic())

    def tick(self, now_s: float) -> None:
        """Say what is due; called every second."""
        interval_s = self._hub.config.log.stream_summary_s
        for stream, entry in list(self._entries.items()):
            if entry.news_at is not None and now_s - entry.news_at >= _OTHER_TRACK_S:
                self._say_codecs(stream, entry)
            if interval_s and now_s - entry.since >= interval_s:
                self._say_summary(stream, entry, now_s)

    @staticmethod
    def _say_codecs(stream: Stream, entry: _Entry) -> None:
        if entry.news_at is None:
            return
        entry.news_at = None
        video, audio = stream.vitals.video, stream.vitals.audio
        tracks = f"video {describe_video(video)}" if video is not None else "no video"
        tracks += f", audio {describe_audio(audio)}" if audio is not None else ", no audio"
        if tracks != entry.told:
            log.info("%s %s: %s", stream.key, "is now" if entry.told else "is", tracks, extra={"stream": stream.key})
            entry.told = tracks

    @staticmethod
    def _say_summary(stream: Stream, entry: _Entry, now_s: float) -> None:
        elapsed_s = now_s - entry.since
        keyframes = stream.vitals.keyframes - entry.keyframes
        log.info(
            "%s: %.0f kbit/s, %.1f fps, %s, %d players, %d drops",
            stream.key,
            (stream.bytes_in - entry.bytes_in) * 8 / 1000 / elapsed_s,
            (stream.video_messages - stream.video_others - entry.frames) / elapsed_s,
            f"a keyframe every {elapsed_s / keyframes:.1f} s" if keyframes else "no keyframes",
            len(stream.players),
            stream.fanout.tally.drops - entry.drops,
            extra={"stream": stream.key},
        )
        entry.restart(stream, now_s)
