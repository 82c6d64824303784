"""The packager of one stream: a greenlet that reads the published log in batches and makes segments of it.

It is a cursor in the log, as players and recordings are: the publisher is never delayed. It sleeps until the next part should
be complete, then until the log grows. A packager lasts as long as the stream is live, whatever its sources: another source, and
other headers, are discontinuities.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

import gevent
from gevent.event import Event

from rtmpd.live.framing import AUDIO, DATA, VIDEO
from rtmpd.live.headers import HeaderCache
from rtmpd.live.log import NEVER
from rtmpd.live.pages import Page
from rtmpd.live.rtmp_framing import RtmpFraming
from rtmpd.media.fmp4.times import Unwrapper
from rtmpd.media.hls.window import Limits
from rtmpd.media.tags import Kind
from rtmpd.services.hls.feed import FIRST_AUDIO, Feed, TrackIds, is_header, is_keyframe, selections
from rtmpd.services.hls.prelude import Prelude, frame_rate
from rtmpd.util.event_loop import Slices, give_way
from rtmpd.util.text import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtmpd.config.model import HlsConfig
    from rtmpd.live.framing import Headers
    from rtmpd.live.log import Log
    from rtmpd.live.stream import Stream
    from rtmpd.media.hls.targets import Targets
    from rtmpd.media.hls.window import Segment, Window
    from rtmpd.services.hls.packaged import Packaged
    from rtmpd.util.stream_key import StreamKey

log = logging.getLogger(__name__)

_BATCH_BYTES = 256 << 10
"""A publisher that sends faster than in real time wakes the packager when so much is unread."""

_SLICE_S = 0.002
"""How long a batch may hold the event loop."""

_AHEAD_S = 0.006
"""How much earlier than it is expected a part may be complete, since frames do not arrive evenly."""

_LOOKS = 6
"""How many frames the packager looks at one by one when a part does not end as expected; then it waits for the next part."""

_PATIENCE_S = 0.25
_LONGEST_SLEEP_S = 1.0
_PRELUDE_S = 0.1
_UNKNOWN_S = 10.0
"""After this long without a track that can be packaged, `Packager.problem` has the reason."""

_FRAMES = (int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.TRACK_KEYFRAME))

_LIMIT_PARTS = 4
"""A segment ends early when it takes this part of the memory of a stream."""


class PackagerOwner(Protocol):
    """What a packager needs of the service.

    Attributes:
        memory_bytes: The memory of all packagers, which each of them counts.
    """

    memory_bytes: int

    def changed(self, packager: Packager) -> None:
        """The memory of a packager has changed: keep it below the limits. Must not wait."""

    def completed(self, packager: Packager, packaged: Packaged, segment: Segment) -> None:
        """A segment is complete. Must not wait."""

    def removed(self, segment: Segment) -> None:
        """A segment is no longer available. Must not wait."""

    def first_number(self, key: StreamKey, begun_at_s: float) -> int:
        """Return the media sequence number of the first segment, whose wall clock is *begun_at_s*, seconds since 1970."""

    def failed(self, packager: Packager) -> None:
        """Packaging has failed; the exception is logged."""


class _Mark(NamedTuple):
    """A change of the source.

    Attributes:
        position: Where in the log its messages begin.
        headers: Its headers.
    """

    position: int
    headers: Headers


class Packager:
    """Makes segments of one stream; a reader of its published log.

    Args:
        owner: The service.
        stream: The stream, which is announced.

    Attributes:
        key: The stream.
        stream: Likewise.
        renditions: The renditions, the default one first; empty until the codecs are known.
        problem: Why the stream can't be packaged; empty: it can.
        ended: Whether the stream has ended, or packaging has. The renditions can be served for a while all the same.
        ended_at_s: When (monotonic, seconds); 0: it has not.
        touched_at_s: The last request of a viewer (monotonic, seconds).
        greenlet: To be started by the owner.
        wake_at: See `rtmpd.live.log.LogReader`.
        memory_bytes: The memory of its segments, and of the frames that are in none yet.
        failed: Whether it has ended because of an exception.
        limit_logged: For the owner: whether a line was logged that its memory is at the limit.
    """

    def __init__(self, owner: PackagerOwner, stream: Stream) -> None:
        self.key = stream.key
        self.stream = stream
        self.renditions: Sequence[Packaged] = ()
        self.problem = ""
        self.ended = False
        self.ended_at_s = 0.0
        self.touched_at_s = time.monotonic()
        self.greenlet = gevent.Greenlet(self._run)
        self.wake_at = NEVER
        self.memory_bytes = 0
        self.failed = self.limit_logged = False
        self._owner = owner
        self._options: HlsConfig = stream.options.hls
        self._ready = Event()
        self._woken = Event()
        self._clock = Unwrapper()
        self._prelude: Prelude | None = Prelude()
        self._feeds: list[Feed] = []
        self._headers = HeaderCache()
        self._next_numbers: dict[str, int] = {}  # of renditions that have ended
        self._targets: Targets | None = None
        self._marks: deque[_Mark] = deque()
        self._end = NEVER
        self._stopping = self._cleared = False
        self._begun_at_s = time.monotonic()
        self._looks = 0  # at single frames, for the part that is expected
        self._guide_ms = 0  # where the last segment of the default rendition has ended
        self._is_full = False  # the prelude, which must become segments or be given up
        self._is_muxed = True  # the default audio is in the segments of video
        self._restarts = False  # at the next keyframe: the audio track has changed
        self._paused = False
        self._changed: set[str] = set()  # the renditions whose windows have changed in this batch
        self._log, self._page, self._offset = self._attach()

    @property
    def ending(self) -> bool:
        """Whether it packages the last of the publish, or has ended."""
        return self.ended or self._end != NEVER

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until there are renditions, or a problem, or the packager has ended; at most *timeout_s*."""
        self._ready.wait(timeout_s)

    def touch(self) -> None:
        """Take note that a viewer has requested something: packaging on demand continues for ``hls_idle_s``."""
        self.touched_at_s = time.monotonic()

    def report(self) -> str:
        """Return a line for SIGUSR2."""
        now_s = time.monotonic()
        asked = f"last request {now_s - self.touched_at_s:.0f} s ago" if self.touched_at_s > self._begun_at_s else "no request"
        line = f"{self.key}: HLS for {now_s - self._begun_at_s:.0f} s, {asked}, {self.memory_bytes} bytes"
        if self._targets is not None:
            targets = self._targets
            parts = f"parts of {targets.part_ms} ms" if targets.part_ms else "no parts"
            line += f"; segments of {targets.segment_ms} ms, target duration {targets.target_s} s, {parts}"
        for each in self.renditions:
            line += f"; {each.name}: {count_of(len(each.window.listed), 'segment')}"
        return line + (f"; {self.problem}" if self.problem else "") + ("; ended" if self.ended else "")

    # The log -----------------------------------------------------------------------------------------------------------

    def _attach(self) -> tuple[Log, Page, int]:
        """Begin to read, at the join point if there is one: the first part is complete at once then."""
        stream = self.stream
        framing = stream.published.framing
        assert isinstance(framing, RtmpFraming)
        self._framing = framing
        found = stream.read(self, framing, patient=True)
        if found.join_page is not None:
            headers = found.join_headers
            place = found.join_page, found.join_offset
        else:
            headers = stream.headers
            place = found.tail, found.tail.end
        self._headers = _cache_of(headers)
        self._feeds = [Feed(selections(TrackIds(), is_muxed=True)[0], headers.items)]
        return found, *place

    def wake(self) -> None:
        """Called by the log in the publisher's greenlet: there is something to read."""
        self._woken.set()

    def fail(self) -> None:
        """Called by the stream: its log ends because of an error."""
        self.end()

    def source_changed(self, headers: Headers) -> None:
        """Another source is active, none of whose messages is in the log. Must not wait."""
        if not self.ended and self._end == NEVER:
            self._marks.append(_Mark(self._log.position, headers))
            self._woken.set()

    def end(self) -> None:
        """Package everything up to the present end of the log, and end. Must not wait."""
        if self._end == NEVER:
            self._end = self._log.position
            self.stream.stop_reading(self)
            self._woken.set()

    def stop(self) -> None:
        """End at once. Must not wait."""
        self._stopping = True
        self.end()

    def _collect(self) -> bool:
        """Package what is unread, for at most `_SLICE_S`; return whether there is more."""
        begun_s = time.monotonic()
        count = 0
        while True:
            page = self._page
            for type_id, timestamp, payload, kind, offset in self._framing.read_page(page, self._offset):
                if self._marks or self._end != NEVER:
                    position = page.base + offset
                    if position > self._end:
                        return False
                    while self._marks and position > self._marks[0].position:
                        self._switch(self._marks.popleft())
                if kind in _FRAMES:
                    if payload:
                        self._take_frame(type_id, self._clock.unwrap(timestamp), payload)
                elif is_header(type_id, kind):
                    self._take_header(type_id, bytes(payload))
                self._offset = offset
                count += 1
                if count % 16 == 0 and (self._is_full or time.monotonic() - begun_s > _SLICE_S):
                    return True
            if page.next is None:
                return False
            self._page, self._offset = page.next, 0

    # The greenlet ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                more = self._collect()
                if self._prelude is not None:
                    self._try_to_begin(self._prelude, is_full=self._is_full)
                self._announce()
                if more:
                    give_way()
                elif self._end != NEVER:
                    if self._prelude is not None:
                        self._try_to_begin(self._prelude, is_full=True)
                    break
                else:
                    self._pause()
        except Exception:
            log.exception("%s: internal error: packaging for HLS has ended", self.key, extra={"stream": self.key})
            self.failed = True
            self._owner.failed(self)
        finally:
            # Also after a bug or a kill: a cursor that no longer moves would keep the memory of the log.
            self.stream.stop_reading(self)
            self._page, self._offset = Page(0, 0), 0
            self._finish()

    def _finish(self) -> None:
        """End all renditions."""
        self._prelude = None
        self.ended = True
        self.ended_at_s = time.monotonic()
        for feed in self._feeds:
            try:
                feed.finish()
            except Exception:
                log.exception("%s: internal error: the last part of rendition %s is lost", self.key, feed.selection.name)
                if feed.packaged is not None:
                    feed.packaged.window.ended = True
                    feed.packaged.notify()
            if feed.packaged is not None:
                self._changed.add(feed.selection.name)
                if self._cleared:
                    feed.packaged.window.clear()
        self._announce()
        self._feeds = []
        self._ready.set()

    def _pause(self) -> None:
        """Sleep until there should be something to do."""
        woken, found = self._woken, self._log
        if self._idle:
            self._pause_feeds()
        if self._end != NEVER:
            return
        expected = [feed.expected_ms for feed in self._feeds]
        times = [each for each in expected if each is not None]
        delay_s = _PRELUDE_S if self._prelude is not None and not self.problem else _PATIENCE_S
        unread_bytes = _BATCH_BYTES
        sleeps_until_due = False
        if times and not self._paused:
            delay_s = (min(times) - (self._clock.newest_ms or 0)) / 1000 - _AHEAD_S
            if delay_s > _AHEAD_S and not self._looks:
                sleeps_until_due = delay_s <= _LONGEST_SLEEP_S
                delay_s = min(delay_s, _LONGEST_SLEEP_S)
            elif self._looks < _LOOKS:
                # A part should be complete with the next frame, or with one soon after.
                self._looks += 1
                delay_s, unread_bytes = _PATIENCE_S, 1
            else:
                self._looks = 0
                delay_s = max(min(delay_s, _LONGEST_SLEEP_S), _PATIENCE_S / 2)
        self.wake_at = self._position + unread_bytes
        found.schedule()
        if self.wake_at > found.position and not woken.wait(delay_s) and sleeps_until_due:
            self._looks = 1
        self.wake_at = NEVER
        woken.clear()

    @property
    def _position(self) -> int:
        return self._page.base + self._offset

    @property
    def _idle(self) -> bool:
        """Whether nothing more comes of the last source: what follows will be of another one."""
        return self.stream.ingest.active is None and self._position >= self._log.position

    def _pause_feeds(self) -> None:
        if self._prelude is not None and self._prelude.frames:
            self._try_to_begin(self._prelude, is_full=True)
        if self._paused or self._prelude is not None:
            return
        self._paused = True
        for feed in self._feeds:
            if feed.pause():
                self._changed.add(feed.selection.name)
        self._announce()

    # Messages ----------------------------------------------------------------------------------------------------------

    def _take_frame(self, type_id: int, time_ms: int, payload: bytes | memoryview) -> None:
        """Add a frame to all renditions. The hot path."""
        if self._prelude is not None:
            self._hold(self._prelude, type_id, time_ms, bytes(payload))
            return
        if self._restarts and is_keyframe(type_id, payload):
            self._restart()
        self._paused = False
        for feed in self._feeds:
            if feed.add(type_id, time_ms, payload):
                self._changed.add(feed.selection.name)
                self._looks = 0
                if feed is self._feeds[0] and len(self._feeds) > 1:
                    self._guide(feed.segment_start_ms)
            if feed.stale and not self._restarts:
                self._follow_tracks()
                # The frame has said what its track is, and is the first one of it.
                feed.add(type_id, time_ms, payload)

    def _guide(self, start_ms: int) -> None:
        """Let segments of further audio end where the one of the default rendition has ended, which was added to."""
        if start_ms != self._guide_ms:
            self._guide_ms = start_ms
            for feed in self._feeds:
                if feed.is_audio_alone:
                    feed.guide(start_ms)

    def _hold(self, prelude: Prelude, type_id: int, time_ms: int, payload: bytes) -> None:
        prelude.add(type_id, time_ms, payload)
        feed = self._feeds[0]
        if not feed.tracks.settled(type_id):
            feed.take_header(type_id, payload)
        self._is_full = prelude.held_bytes > self._options.hls_memory_limit_bytes // _LIMIT_PARTS

    def _take_header(self, type_id: int, payload: bytes) -> None:
        _add_header(self._headers, type_id, payload)
        main = self._feeds[0].tracks
        before = main.of(type_id)
        for feed in self._feeds:
            feed.take_header(type_id, payload)
        if self._prelude is not None:
            if before is not None and main.of(type_id) != before:
                # What is held back is encoded otherwise.
                self._prelude.clear()
            return
        if type_id != DATA:
            self._add_renditions()
        if any(feed.stale for feed in self._feeds):
            self._follow_tracks()

    # Sources and tracks --------------------------------------------------------------------------------------------------

    def _switch(self, mark: _Mark) -> None:
        """Continue with another source."""
        self._headers = _cache_of(mark.headers)
        prelude = self._prelude
        if prelude is not None:
            # The frames of both would need a discontinuity between them.
            prelude.clear()
            for feed in self._feeds:
                feed.set_headers(mark.headers.items)
            return
        names = {each.name for each in selections(TrackIds.of(mark.headers.items), is_muxed=self._is_muxed)}
        for feed in self._feeds:
            if feed.selection.name in names:
                feed.set_headers(mark.headers.items)
            elif feed.packaged is not None:
                feed.finish()
                window = feed.packaged.window
                self._next_numbers[feed.selection.name] = window.next_part[0]
                window.clear()
        self._feeds = [feed for feed in self._feeds if feed.selection.name in names]
        self._list_renditions()
        self._restart()
        self._add_renditions()

    def _follow_tracks(self) -> None:
        """Restart with the tracks that have changed: at once, or at the next keyframe if only audio has."""
        stale = [feed for feed in self._feeds if feed.stale]
        if any(feed.video_is_stale for feed in stale) or not self._feeds[0].has_video:
            self._restart()
        else:
            self._restarts = True

    def _restart(self) -> None:
        """Begin a discontinuity, in all renditions: clients expect the same numbers of them."""
        self._restarts = False
        self._set_dates()
        rate = self.stream.stats.fps
        for feed in self._feeds:
            if rate and feed.packaged is not None and feed.packaged.has_video:
                feed.packaged.frame_rate = frame_rate(rate, self._headers.current.items)
            if feed.tracks.tracks:
                feed.restart()
            else:
                feed.pause()
                feed.stale = False
            self._changed.add(feed.selection.name)
        self.problem = "" if any(feed.tracks.tracks for feed in self._feeds) else _problem_of(self._feeds[0])

    def _set_dates(self) -> None:
        for feed in self._feeds:
            feed.anchor_ms = self._anchor_ms

    @property
    def _anchor_ms(self) -> int:
        """The wall clock at the time 0 of the timeline, milliseconds: the newest frame in the log is of now."""
        newest_ms = self._clock.newest_ms or 0
        newest = self._log.newest_timestamp
        if newest >= 0:
            newest_ms += (newest - newest_ms + 0x80000000 & 0xFFFFFFFF) - 0x80000000
        return int(time.time() * 1000) - newest_ms

    def _add_renditions(self) -> None:
        """Begin renditions for tracks that have appeared."""
        targets, main = self._targets, self._feeds[0].packaged
        if targets is None or main is None:
            return
        items = self._headers.current.items
        known = {feed.selection.name for feed in self._feeds}
        for selection in selections(TrackIds.of(items), is_muxed=self._is_muxed):
            if selection.name in known:
                continue
            feed = Feed(selection, items)
            if feed.tracks.tracks:
                number = max(main.window.next_part[0], self._next_numbers.get(selection.name, 0))
                self._begin_feed(feed, targets, number, self._feeds[0].discontinuity_sequence)
                feed.anchor_ms = self._feeds[0].anchor_ms
                self._feeds.append(feed)
        self._list_renditions()

    # The beginning -----------------------------------------------------------------------------------------------------

    def _try_to_begin(self, prelude: Prelude, *, is_full: bool = False) -> None:
        """Begin to make segments if enough is known."""
        main = self._feeds[0]
        tracks = main.tracks
        video = tracks.video is not None or VIDEO in tracks.problems
        audio = tracks.audio is not None or AUDIO in tracks.problems
        targets = None
        if tracks.tracks and prelude.frames and (prelude.knows_tracks(video=video, audio=audio) or is_full):
            options = self._options
            targets = prelude.targets(
                round(options.hls_segment_s * 1000),
                round(options.hls_part_ms),
                has_video=tracks.video is not None,
                gop_ms=self.stream.stats.keyframe_interval_ms,
                is_full=is_full,
            )
        if targets is None:
            if is_full:
                # Frames before the first keyframe, or of codecs that MP4 can't carry.
                prelude.clear()
                self._is_full = False
            self._look_for_problems(main, prelude)
            return
        self._begin(prelude, targets)

    def _look_for_problems(self, main: Feed, prelude: Prelude) -> None:
        """Tell viewers why there are no segments."""
        problem = ""
        waited = time.monotonic() - self._begun_at_s > _UNKNOWN_S
        if not main.tracks.tracks:
            problems = main.tracks.problems
            if waited or prelude.knows_tracks(video=VIDEO in problems, audio=AUDIO in problems):
                problem = _problem_of(main)
        elif waited and main.tracks.video is not None and not prelude.has_keyframe:
            problem = f"no keyframe has come for {_UNKNOWN_S:g} s"
        if problem != self.problem:
            self.problem = problem
            if problem:
                self._ready.set()
            else:
                self._ready.clear()

    def _begin(self, prelude: Prelude, targets: Targets) -> None:
        self._prelude = None
        self._is_full = False
        self._targets = targets
        self.problem = ""
        number = self._owner.first_number(self.key, (self._anchor_ms + prelude.frames[0].time_ms) / 1000)
        self._feeds = self._choose_feeds(prelude)
        for feed in self._feeds:
            self._begin_feed(feed, targets, number, 0)
            if feed.packaged is not None and feed.packaged.has_video:
                feed.packaged.frame_rate = frame_rate(prelude.frame_rate(), self._headers.current.items)
        self._set_dates()
        self._list_renditions()
        slices = Slices()
        for type_id, time_ms, payload in prelude.frames:
            self._take_frame(type_id, time_ms, payload)
            slices.check()
        log.debug(
            "%s: packaged for HLS: target duration %d s, parts of %d ms, from segment %d on",
            self.key,
            targets.target_s,
            targets.part_ms,
            number,
        )

    def _choose_feeds(self, prelude: Prelude) -> list[Feed]:
        """Return what the renditions are made by, the default one first.

        If there is a choice of audio, no video has audio in its segments: hls.js and other players can't leave that out. This
        holds as long as the packager: a second audio track that comes later is beside one that is in the segments.
        """
        main = self._feeds[0]
        items = self._headers.current.items
        ids = TrackIds.of(items)
        self._is_muxed = len(ids.audio) < 2 or main.tracks.video is None
        feeds = [Feed(selection, items) for selection in selections(ids, is_muxed=self._is_muxed)]
        for feed in feeds:
            for type_id, _, payload in prelude.frames:
                if not feed.tracks.settled(type_id):
                    feed.take_header(type_id, payload)
        if self._is_muxed or not feeds[0].tracks.tracks:
            self._is_muxed = True
            feeds = [main, *(feed for feed in feeds[1:] if feed.selection.name != FIRST_AUDIO)]
        return [feed for feed in feeds if feed.tracks.tracks]

    def _begin_feed(self, feed: Feed, targets: Targets, number: int, discontinuity: int) -> None:
        limits = self._limits()
        packaged = feed.begin(targets, limits._replace(bytes=limits.bytes // _LIMIT_PARTS), number, discontinuity)
        packaged.window.on_removed = self._owner.removed
        if self.renditions:
            packaged.frame_rate = self.renditions[0].frame_rate

    def _limits(self) -> Limits:
        options = self.stream.options.hls
        return Limits(segments=1 << 31, seconds=options.hls_window_s, bytes=options.hls_memory_limit_bytes)

    def _list_renditions(self) -> None:
        self.renditions = tuple(feed.packaged for feed in self._feeds if feed.packaged is not None)
        if self.renditions:
            self._ready.set()

    # Windows -----------------------------------------------------------------------------------------------------------

    @property
    def windows(self) -> list[Window]:
        """The windows of all renditions."""
        return [packaged.window for packaged in self.renditions]

    @property
    def kept_s(self) -> float:
        """How long the segments are worth keeping after the end, seconds: as long as a client may still play them."""
        return max((_kept_s(window) for window in self.windows), default=0.0)

    def drop_oldest(self) -> bool:
        """Remove the oldest segment of the largest rendition that has one to spare, to free memory; return whether one has."""
        for window in sorted(self.windows, key=lambda each: each.size_bytes, reverse=True):
            if window.drop_oldest():
                self._count()
                return True
        return False

    def clear(self) -> None:
        """Free all segments, for good."""
        self._cleared = True
        for window in self.windows:
            window.clear()
        self.renditions = ()
        self._count()

    def reload(self) -> None:
        """Apply the options of the stream that hold for packagers that have begun."""
        for window in self.windows:
            window.limits = window.limits._replace(seconds=self.stream.options.hls.hls_window_s)

    def _announce(self) -> None:
        """Wake those that wait for windows that have changed, once for each batch, and take note of their memory."""
        changed = self._changed
        if not changed:
            return
        self._changed = set()
        for packaged in self.renditions:
            if packaged.name in changed:
                packaged.notify()
                for segment in packaged.take_complete():
                    self._owner.completed(self, packaged, segment)
                    packaged.prune()
        self.count_memory()

    def count_memory(self) -> None:
        """Tell the owner that the memory has changed."""
        self._count()
        self._owner.changed(self)

    def _count(self) -> None:
        now_bytes = sum(window.size_bytes for window in self.windows) + sum(feed.held_bytes for feed in self._feeds)
        self._owner.memory_bytes += now_bytes - self.memory_bytes
        self.memory_bytes = now_bytes


def _kept_s(window: Window) -> float:
    listed_s = sum(segment.duration_ms for segment in window.listed) / 1000
    return max(listed_s, 3 * window.targets.target_s) + window.targets.target_s


def _cache_of(headers: Headers) -> HeaderCache:
    cache = HeaderCache()
    for type_id, payload in headers.items:
        _add_header(cache, type_id, payload)
    return cache


def _add_header(cache: HeaderCache, type_id: int, payload: bytes) -> None:
    if type_id == VIDEO:
        cache.add_video(payload)
    elif type_id == AUDIO:
        cache.add_audio(payload)
    else:
        cache.set_metadata(payload)


def _problem_of(feed: Feed) -> str:
    return "; ".join(feed.tracks.problems.values()) or "there is neither an audio nor a video track"
