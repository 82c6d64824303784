"""What MP4 carries of a stream, for the heads of responses, and the wait until that is known."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import gevent
from gevent.event import Event

from rtmpd.live.fmp4_framing import find_tracks
from rtmpd.live.framing import AUDIO, VIDEO
from rtmpd.media.fmp4.movie import mime_type
from rtmpd.util.event_loop import SharedSlices

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.live.stream import Stream

log = logging.getLogger(__name__)

_TRACKS_S = 1.0
"""How long after the beginning of a source viewers wait until both audio and video have come."""

_STEP_S = 0.05
_CHECK_S = 1.0


def tracks_of(stream: Stream) -> tuple[bool, bool]:
    """Return whether a stream has audio, and whether it has video, as far as its active source has shown."""
    lane = stream.ingest.active
    types = {type_id for type_id, _ in stream.headers.items}
    if lane is None:
        return AUDIO in types, VIDEO in types
    received = lane.source.received
    return received.audio > 0 or AUDIO in types, received.video > 0 or VIDEO in types


def is_complete(stream: Stream) -> bool:
    """Return whether both audio and video have come, or are no longer waited for."""
    lane = stream.ingest.active
    young = lane is not None and time.monotonic() - lane.source.started_at < _TRACKS_S
    return not young or all(tracks_of(stream))


class Mp4Codecs(NamedTuple):
    """What MP4 carries of a stream.

    Attributes:
        mime: The MIME type with the codecs; empty: none is known that MP4 carries.
        problem: Why MP4 carries nothing of the stream; empty if it does, or if nothing is known yet.
        known: Nothing more will be known soon.
    """

    mime: str
    problem: str
    known: bool


_NOTHING = Mp4Codecs("", "", False)


def mp4_codecs(stream: Stream | None) -> Mp4Codecs:
    """Return what MP4 carries of a stream, as far as it is known; None: there is no such stream."""
    if stream is None or not stream.available:
        return _NOTHING
    types = [type_id for type_id, has in zip((AUDIO, VIDEO), tracks_of(stream), strict=True) if has]
    if not types:
        return _NOTHING
    tracks = find_tracks(stream.published.log, types)
    known = is_complete(stream) and all(tracks.settled(each) for each in types)
    if tracks.tracks:
        return Mp4Codecs(mime_type(tracks.tracks), "", known)
    return Mp4Codecs("", "; ".join(tracks.problems.values()), known and bool(tracks.problems))


class CodecWatch:
    """Finds out when the codecs of streams are known that viewers wait for: once for all viewers of a stream.

    Args:
        find: Returns the stream of a key, if there is one.
    """

    def __init__(self, find: Callable[[str], Stream | None]) -> None:
        self._find = find
        self._waiting: dict[str, Event] = {}
        self._wakeup = Event()
        self._slices = SharedSlices()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Start to look at streams."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Stop."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def wait(self, key: str, limit_s: float, ensure_open: Callable[[], None]) -> Mp4Codecs:
        """Wait until the codecs of a stream are known, and return them; what is known if that takes longer.

        Args:
            key: The stream, which may not be there yet.
            limit_s: The longest time.
            ensure_open: Raises `TransportClosed` if the viewer has left.

        Raises:
            TransportClosed: The viewer has left.
        """
        found = mp4_codecs(self._find(key))
        until_s = time.monotonic() + limit_s
        while not found.known and (left_s := until_s - time.monotonic()) > 0:
            known = self._waiting.setdefault(key, Event())
            self._wakeup.set()
            known.wait(min(left_s, _CHECK_S))
            # All viewers of a stream are woken at once.
            self._slices.check()
            ensure_open()
            found = mp4_codecs(self._find(key))
        return found

    def _run(self) -> None:
        while True:
            self._wakeup.wait()
            self._wakeup.clear()
            since: dict[str, float] = {}
            while self._waiting:
                gevent.sleep(_STEP_S)
                now_s = time.monotonic()
                since = {key: since.get(key, now_s) for key in self._waiting}
                for key, known in list(self._waiting.items()):
                    # Viewers that still wait register again after a while: all viewers of a stream may have left.
                    if self._is_known(key) or now_s - since[key] > _CHECK_S:
                        del self._waiting[key]
                        known.set()

    def _is_known(self, key: str) -> bool:
        try:
            return mp4_codecs(self._find(key)).known
        except Exception:
            # What a publisher has sent must not end the wait for other streams. The viewer gets the same exception.
            log.exception("internal error: the codecs of %s are not known", key)
            return True
