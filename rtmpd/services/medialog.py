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
from rtmpd.live.lane import Mode
from rtmpd.live.selection import SourceRole
from rtmpd.media.description import describe_audio, describe_video
from rtmpd.util.text import count_of

if TYPE_CHECKING:
    from rtmpd.config.model import Config
    from rtmpd.events import Event
    from rtmpd.hub import Hub
    from rtmpd.live.source import Source
    from rtmpd.live.stream import Stream

log = logging.getLogger(__name__)

_TICK_S = 1.0
_KINDS = _SEVERAL = 2
_CHANGE_S = 10.0
"""The shortest time between two lines about changed codecs of a stream."""
_OTHER_TRACK_S = 1.5
"""How long after the first of video and audio the second may appear, before the stream is logged as having only one."""


def _totals(source: Source) -> tuple[int, ...]:
    """Return the media bytes, video frames and keyframes of a source so far."""
    return source.bytes_in, source.video_frames, source.stats.keyframes


@dataclass(slots=True)
class _Entry:
    """The state of one live stream.

    Attributes:
        source: The source that is active, or was last.
        since_s: The time of the last summary.
        totals: The totals of the source then, or when it became active.
        before: What sources that were active before have sent since then.
        drops: The drops of the stream then.
        logged: The tracks in the last line about codecs.
        kinds: The kinds (video, audio) whose codec has been detected.
        changed_at_s: When the first codec was detected that is not logged yet.
        next_s: No change is logged before this time.
    """

    source: Source
    since_s: float
    totals: tuple[int, ...]
    before: tuple[int, ...] = (0, 0, 0)
    drops: int = 0
    logged: str = ""
    kinds: set[object] = field(default_factory=set)
    changed_at_s: float | None = None
    next_s: float = 0.0

    def sent(self) -> tuple[int, ...]:
        """Return what the active sources have sent since the last summary."""
        return tuple(map(operator.add, self.before, map(operator.sub, _totals(self.source), self.totals)))

    def follow(self, source: Source) -> None:
        """Count what another source sends from now on."""
        self.before, self.source, self.totals = self.sent(), source, _totals(source)


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
        wanted = (EventType.LIVE_START, EventType.LIVE_STOP, EventType.SOURCE_ACTIVE, EventType.CODEC_DETECTED)
        self._hub.bus.subscribe(wanted, self._handle)
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
        if event.type is EventType.LIVE_START:
            lane = stream.ingest.active
            assert lane is not None
            self._entries[stream] = _Entry(lane.source, now_s, _totals(lane.source), drops=stream.counters.drops)
        elif event.type is EventType.LIVE_STOP:
            entry = self._entries.pop(stream, None)
            if entry is not None:
                # A stream too short for the wait for a second track still gets its line.
                self._log_codecs(stream, entry, now_s)
        elif (entry := self._entries.get(stream)) is None:
            return
        elif event.type is EventType.SOURCE_ACTIVE:
            if stream.ingest.active is not None:
                entry.follow(stream.ingest.active.source)
            if entry.source.stats.video is not None or entry.source.stats.audio is not None:
                # It has stood by, and its codecs are known.
                entry.changed_at_s = now_s
        else:
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
        video, audio = entry.source.stats.video, entry.source.stats.audio
        tracks = f"video {describe_video(video)}" if video is not None else "no video"
        tracks += f", audio {describe_audio(audio)}" if audio is not None else ", no audio"
        if tracks != entry.logged:
            log.info("%s %s: %s", stream.key, "is now" if entry.logged else "is", tracks, extra={"stream": stream.key})
            entry.next_s = now_s + _CHANGE_S if entry.logged else now_s
            entry.logged = tracks

    @staticmethod
    def _log_summary(stream: Stream, entry: _Entry, now_s: float) -> None:
        elapsed_s, drops = now_s - entry.since_s, stream.counters.drops - entry.drops
        size, frames, keyframes = entry.sent()
        entry.since_s, entry.totals, entry.before, entry.drops = now_s, _totals(entry.source), (0, 0, 0), stream.counters.drops
        log.info(
            "%s: %.0f kbit/s, %.1f fps, %s, %s, %s%s",
            stream.key,
            size * 8 / 1000 / elapsed_s,
            frames / elapsed_s,
            f"a keyframe every {elapsed_s / keyframes:.1f} s" if keyframes else "no keyframes",
            count_of(len(stream.players), "player"),
            count_of(drops, "drop"),
            f"; {described}" if (described := _sources(stream)) else "",
            extra={"stream": stream.key},
        )


def _sources(stream: Stream) -> str:
    """Return the sources of a stream, for a line of the log; empty if there is one only."""
    lanes, active = stream.ingest.lanes, stream.ingest.active
    if len(lanes) < _SEVERAL:
        return ""
    parts = []
    for lane in lanes:
        text = f"{lane.role} {'is active' if lane is active else 'is a copy' if lane.mode is Mode.COPY else 'stands by'}"
        fault = lane.health.fault if lane.role is not SourceRole.SLATE else None
        parts.append(f"{text} ({fault.value})" if fault is not None else text)
    return ", ".join(parts)
