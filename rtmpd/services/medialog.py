"""The media log: a line with the codecs of a stream once they are known, and a summary of its rates at an interval.

No work is done per message: codecs arrive as events, and rates are computed from totals.
"""

from __future__ import annotations

import logging
import operator
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gevent

from rtmpd.events import EventType
from rtmpd.media.description import describe_audio, describe_video
from rtmpd.util.text import count_of

if TYPE_CHECKING:
    from rtmpd.config.model import Config
    from rtmpd.events import Event
    from rtmpd.hub import Hub
    from rtmpd.live.stream import Stream

log = logging.getLogger(__name__)

_TICK_S = 1.0
_KINDS = 2
_CHANGE_S = 10.0
"""The shortest time between two lines about changed codecs of a stream."""
_OTHER_TRACK_S = 1.5
"""How long after the first of video and audio the second may appear, before the stream is logged as having only one."""


def _totals(stream: Stream) -> tuple[int, ...]:
    """Return the media bytes, video frames, keyframes and drops of a stream so far."""
    frames = stream.received.frames
    return stream.received.bytes, frames, stream.stats.keyframes, stream.counters.drops


@dataclass(slots=True)
class _Entry:
    """The state of one publish.

    Attributes:
        since_s, totals: The time and the totals at the last summary.
        logged: The tracks in the last line about codecs.
        kinds: The kinds (video, audio) whose codec has been detected.
        changed_at_s: When the first codec was detected that is not logged yet.
        next_s: No change is logged before this time.
    """

    since_s: float
    totals: tuple[int, ...]
    logged: str = ""
    kinds: set[object] = field(default_factory=set)
    changed_at_s: float | None = None
    next_s: float = 0.0


class MediaLog:
    """The media log service.

    Args:
        hub: The hub.
        options: The interval of summaries, ``stream_summary_s``; 0: none.
    """

    def __init__(self, hub: Hub, options: float) -> None:
        self._hub = hub
        self._summary_s = options
        self._entries: dict[Stream, _Entry] = {}
        self._greenlet: gevent.Greenlet[[], None] | None = None

    @staticmethod
    def select(config: Config) -> float:
        """Return ``stream_summary_s``."""
        return config.log.stream_summary_s

    def start(self) -> None:
        """Subscribe to events, and start the greenlet that logs."""
        self._hub.bus.subscribe((EventType.PUBLISH_START, EventType.PUBLISH_STOP, EventType.CODEC_DETECTED), self._handle)
        self._greenlet = gevent.spawn(self._run)

    def reload(self, options: float) -> None:
        """Apply a new interval."""
        self._summary_s = options

    def stop(self, limit_s: float) -> None:
        """Unsubscribe, and stop the greenlet."""
        self._hub.bus.unsubscribe(self._handle)
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _handle(self, event: Event) -> None:
        stream = event.stream
        assert stream is not None
        now_s = time.monotonic()
        if event.type is EventType.PUBLISH_START:
            self._entries[stream] = _Entry(now_s, _totals(stream))
        elif event.type is EventType.PUBLISH_STOP:
            entry = self._entries.pop(stream, None)
            if entry is not None:
                # A stream too short for the wait for a second track still gets its line.
                self._log_codecs(stream, entry, now_s)
        elif (entry := self._entries.get(stream)) is not None:
            if entry.changed_at_s is None:
                entry.changed_at_s = now_s
            entry.kinds.add(event.data["kind"])
            if len(entry.kinds) == _KINDS and now_s >= entry.next_s:
                self._log_codecs(stream, entry, now_s)

    def _run(self) -> None:
        while True:
            gevent.sleep(_TICK_S)
            self.tick(time.monotonic())

    def tick(self, now_s: float) -> None:
        """Log the lines that are due. Called every second."""
        for stream, entry in list(self._entries.items()):
            if entry.changed_at_s is not None and now_s >= max(entry.changed_at_s + _OTHER_TRACK_S, entry.next_s):
                self._log_codecs(stream, entry, now_s)
            if self._summary_s and now_s - entry.since_s >= self._summary_s:
                self._log_summary(stream, entry, now_s)

    @staticmethod
    def _log_codecs(stream: Stream, entry: _Entry, now_s: float) -> None:
        if entry.changed_at_s is None:
            return
        entry.changed_at_s = None
        video, audio = stream.stats.video, stream.stats.audio
        tracks = f"video {describe_video(video)}" if video is not None else "no video"
        tracks += f", audio {describe_audio(audio)}" if audio is not None else ", no audio"
        if tracks != entry.logged:
            log.info("%s %s: %s", stream.key, "is now" if entry.logged else "is", tracks, extra={"stream": stream.key})
            entry.next_s = now_s + _CHANGE_S if entry.logged else now_s
            entry.logged = tracks

    @staticmethod
    def _log_summary(stream: Stream, entry: _Entry, now_s: float) -> None:
        elapsed_s, totals = now_s - entry.since_s, _totals(stream)
        size, frames, keyframes, drops = map(operator.sub, totals, entry.totals)
        entry.since_s, entry.totals = now_s, totals
        log.info(
            "%s: %.0f kbit/s, %.1f fps, %s, %s, %s",
            stream.key,
            size * 8 / 1000 / elapsed_s,
            frames / elapsed_s,
            f"a keyframe every {elapsed_s / keyframes:.1f} s" if keyframes else "no keyframes",
            count_of(len(stream.players), "player"),
            count_of(drops, "drop"),
            extra={"stream": stream.key},
        )
