"""Plays a slate on one stream: a greenlet that feeds a source with the frames of a file, in real time and without end."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent

from rtmpd.live.framing import AUDIO, VIDEO
from rtmpd.live.source import Source, SourceInfo, SourceKind

if TYPE_CHECKING:
    from rtmpd.media.slate import Slate
    from rtmpd.phases import CloseReason

log = logging.getLogger(__name__)

_AHEAD_S = 0.02
"""Frames that are due this soon are sent at once: one turn of the greenlet serves audio and video."""

_LATE_S = 1.0
"""A player that is later than this, after a suspend of the machine, does not catch up."""


class SlatePlayer:
    """Plays a slate from its beginning.

    Args:
        slate: The slate.

    Attributes:
        slate: Likewise.
        source: What it feeds.
    """

    def __init__(self, slate: Slate) -> None:
        self.slate = slate
        self.source = Source(SourceInfo(SourceKind.SLATE, ""), log, self._stop)
        self._greenlet: gevent.Greenlet[[Source, Slate], None] | None = None

    def start(self) -> None:
        """Send the headers and the first frame at once, and all others in real time. The source is attached to its stream."""
        for type_id, payload in self.slate.headers:
            self._feed(type_id, 0, payload)
        first = self.slate.messages[0]
        self._feed(first.type_id, first.timestamp_ms, first.payload)
        self._greenlet = gevent.spawn(_play, self.source, self.slate)

    def stop(self) -> None:
        """Stop playing."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill(block=False)

    def _stop(self, reason: CloseReason) -> None:
        self.stop()

    def _feed(self, type_id: int, timestamp_ms: int, payload: bytes) -> None:
        _feed(self.source, type_id, timestamp_ms, payload)


def _play(source: Source, slate: Slate) -> None:
    """Feed all frames but the first one of the first round."""
    begun_s, round_ms, skip = time.monotonic(), 0, 1
    while True:
        for type_id, timestamp_ms, payload in slate.messages[skip:]:
            time_ms = round_ms + timestamp_ms
            wait_s = begun_s + time_ms / 1000 - time.monotonic()
            if wait_s > _AHEAD_S:
                gevent.sleep(wait_s)
            elif wait_s < -_LATE_S:
                begun_s -= wait_s
            _feed(source, type_id, time_ms & 0xFFFFFFFF, payload)
        round_ms, skip = round_ms + slate.duration_ms, 0


def _feed(source: Source, type_id: int, timestamp_ms: int, payload: bytes) -> None:
    take = source.video if type_id == VIDEO else source.audio if type_id == AUDIO else source.data
    take(timestamp_ms, payload)
