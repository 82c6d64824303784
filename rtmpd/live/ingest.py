"""The sources of one stream: which of them is active, and what happens when it fails.

A source that is alone feeds its stream directly. When there are several, or readers continue on the timeline of one that
has ended, each source has a lane (`rtmpd.live.lane`), which keeps its last group of pictures until the source is active. What
follows from roles and health is decided by `rtmpd.live.selection`; how the messages of two sources are joined, by
`rtmpd.live.splice`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rtmpd.live.copies import CopyMatcher, CopyMerger, CopyOffsets, MergeCounters
from rtmpd.live.framing import DATA, VIDEO, Headers
from rtmpd.live.health import HealthRules
from rtmpd.live.lane import Lane, Mode
from rtmpd.live.selection import Candidate, Cause, Choice, Condition, Failback, SelectionRules, SourceRole, is_preferred
from rtmpd.live.slate_player import SlatePlayer
from rtmpd.live.source import Received, Source, SourceStream
from rtmpd.live.splice import End, Kept, Splice, signed
from rtmpd.media.clock import timestamp_shift_ms
from rtmpd.media.tags import Kind, audio_kind, video_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rtmpd.config.model import ApplicationConfig, PublishConfig
    from rtmpd.live.copies import Frame
    from rtmpd.live.log import Log
    from rtmpd.media.audio_codecs import AudioConfig
    from rtmpd.media.clock import ContentClock
    from rtmpd.media.slate import Slate
    from rtmpd.media.timestamps import Timeline, Track
    from rtmpd.media.video_codecs import VideoConfig
    from rtmpd.util.stream_key import StreamKey

log = logging.getLogger(__name__)

_METADATA, _HEADER, _TRACK_KEYFRAME = int(Kind.METADATA), int(Kind.HEADER), int(Kind.TRACK_KEYFRAME)
_FRAMES = _FRAME, _KEYFRAME = int(Kind.FRAME), int(Kind.KEYFRAME)
_WORD = 0xFFFFFFFF
_MATCH_S = 0.5
_JUDGE_S = 0.2
"""How often sources that send are judged; one that is silent is, in each tick."""
_OBSERVED_S, _OBSERVED_EVERY_S = 15.0, 60.0
_COPY_WAIT_MS = 2000
"""A copy that is further behind is not waited for when another one has left out a frame: viewers would wait, too."""
_CLOCK_LIMIT_MS = 10_000
"""Clocks in the content of two sources that differ by more than this from what their arrival says are not comparable."""
_AHEAD_LIMIT_MS = 1000
_BEHIND_LIMIT_MS = 100
"""A source that takes over may be this much behind the one before: the splice compresses that. Without it, each switch would
move the timeline forward by a frame or so."""


def _nothing() -> None:
    pass


class Switch(NamedTuple):
    """A change of the active source.

    Attributes:
        source: The source that is active from now on.
        role: Its role.
        before: The source that was active last; None: there was none.
        cause: Why.
        reason: The fault of the source before, or another text for the log.
        headers_changed: Codecs, or their parameters, are not those of the source before.
        gap_ms: The time of the stream that has no media: 0 if content was repeated or continues.
    """

    source: Source
    role: SourceRole
    before: Source | None
    cause: Cause
    reason: str
    headers_changed: bool
    gap_ms: int


class IngestHost(SourceStream, Protocol):
    """What the sources of a stream ask of it."""

    @property
    def key(self) -> StreamKey:
        """Its key."""

    @property
    def options(self) -> ApplicationConfig:
        """The application's options."""

    @property
    def timeline(self) -> Timeline:
        """The timeline of the active source, or of the last one."""

    @property
    def headers(self) -> Headers:
        """The headers in force."""

    @property
    def published_log(self) -> Log:
        """The log of the published output."""

    @property
    def continued(self) -> bool:
        """Whether there are readers on the timeline."""

    @property
    def has_viewers(self) -> bool:
        """Whether there are players or relays, also such that wait."""

    @property
    def slate(self) -> Slate | None:
        """The slate of the stream's application."""

    def slate_ended(self) -> None:
        """The slate is no longer played, and no other source is active."""

    def follow(self, timeline: Timeline, *, afresh: bool) -> None:
        """Take over the timeline of a source. *afresh*: no reader is on the one before."""

    def source_changed(self, switch: Switch) -> None:
        """Another source is active; none of its messages has been delivered."""

    def codec_found(self, found: VideoConfig | AudioConfig) -> None:
        """A track of the active source is encoded with this."""


class Ingest:
    """The sources of one stream.

    Args:
        host: The stream.
        watch: Called when there is something to be watched: `tick` must be called about every 50 ms from then on, until it
            returns False.

    Attributes:
        lanes: One for each source.
        active: The lane of the active source; None: there is none.
        switches: The number of changes of the active source while readers were on the timeline.
        copies_joined, copies_broken: How often a source was found to be a copy of the active one, and to be none after that.
    """

    def __init__(self, host: IngestHost, watch: Callable[[], None] = _nothing) -> None:
        self._host: IngestHost | None = host
        self._watch = watch
        self.lanes: list[Lane] = []
        self.active: Lane | None = None
        self.switches = self.copies_joined = self.copies_broken = 0
        self._changed_at = self._missed_since = time.monotonic()
        self._waited_for: Choice | None = None
        self._last: Source | None = None  # the last active source
        self._last_clock: ContentClock | None = None
        self._last_fault = ""
        self._left_behind: set[int] = set()  # the numbers of the publishers that stood by when the active one ended
        self._last_lag_ms: float | None = None
        self._left = End()  # where the last active source has ended, if it was removed
        self._received = Received()
        self._matcher = CopyMatcher()
        self._merger: CopyMerger | None = None
        self._merged = MergeCounters()
        self._matched_at = self._observed_from = self._judged_at = 0.0
        self._slate: SlatePlayer | None = None

    # What others see ---------------------------------------------------------------------------------------------------

    @property
    def stream(self) -> SourceStream:
        """The stream, for lanes."""
        assert self._host is not None
        return self._host

    @property
    def publishers(self) -> list[Lane]:
        """The lanes of publishers."""
        return [lane for lane in self.lanes if lane.role is not SourceRole.SLATE]

    @property
    def received(self) -> Received:
        """The totals of all publishers, also of those that have ended."""
        total = self._received
        for lane in self.publishers:
            total = total.plus(lane.source.received)
        return total

    @property
    def merged(self) -> MergeCounters:
        """The totals of the frames of copies."""
        return self._merged.plus(self._merger.counters) if self._merger is not None else self._merged

    def lane_of(self, source: Source) -> Lane | None:
        """Return the lane of a source; None: it is no source of the stream."""
        return next((lane for lane in self.lanes if lane.source is source), None)

    def _publish_options(self) -> PublishConfig:
        assert self._host is not None
        return self._host.options.publish

    def health_rules(self) -> HealthRules:
        """Return what sources are judged by."""
        options = self._publish_options()
        return HealthRules(
            stall_timeout_s=options.stall_timeout_s,
            frame_rate_floor=options.frame_rate_floor,
            keyframe_timeout_s=options.keyframe_timeout_s,
            bitrate_floor=options.bitrate_floor,
            frozen_timeout_s=options.frozen_timeout_s,
            frozen_frame_bytes=options.frozen_frame_bytes,
            silence_timeout_s=options.silence_timeout_s,
            silence_frame_bytes=options.silence_frame_bytes,
        )

    # Sources come and go -----------------------------------------------------------------------------------------------

    def add(self, source: Source, role: SourceRole) -> None:
        """Add a source. It becomes active at once if no other is, and no reader is on the timeline of an earlier one."""
        host = self._host
        assert host is not None
        cache_limit_bytes = host.options.limits.gop_cache_limit_bytes
        lane = Lane(self, source, role, host.published_log.framing, cache_limit_bytes, self.health_rules())
        self.lanes.append(lane)
        source.attach(lane, lambda found: self._codec_found(lane, found))
        self._observed_from = time.monotonic()
        if self.active is None and not host.continued:
            self._activate(lane, Cause.FIRST, "")
        else:
            lane.stand_by()
            source.set_wanted(False)
        # The source that was alone gets its lane, too.
        self._settle()

    def remove(self, source: Source, reason: str) -> None:
        """Remove a source, whatever it was; harmless if it is none. Another one takes over at once if it can."""
        lane = self.lane_of(source)
        if lane is None:
            return
        source.check_activity(time.monotonic())
        others = [each for each in self.copies if each is not lane]
        if lane is self.active and lane.mode is Mode.COPY and others:
            self._note_last(lane)
            self._adopt(min(others, key=lambda each: each.health.fault is not None), Cause.FAILOVER, reason)
        self._leave_copies(lane)
        self.lanes.remove(lane)
        source.detach()
        if lane.role is not SourceRole.SLATE:
            self._received = self._received.plus(source.received)
        if lane is self.active:
            self._note_last(lane)
            # The stream may forget what it has sent.
            self._left = self._end()
            self._last_fault = reason
            self.active = None
            if lane.role is not SourceRole.SLATE:
                self._missed_since = time.monotonic()
            if lane.role is not SourceRole.SLATE:
                self._left_behind = {each.source.number for each in self.publishers}
        lane.close()
        self._matcher.forget(source.number)
        self._settle()
        self.update(time.monotonic())

    def outputs_changed(self) -> None:
        """Take note that frames for the stream go elsewhere."""
        for lane in self.lanes:
            lane.route()

    def reload(self) -> None:
        """Apply the options of the stream that have changed."""
        assert self._host is not None
        rules, cache_limit_bytes = self.health_rules(), self._host.options.limits.gop_cache_limit_bytes
        for lane in self.lanes:
            lane.health.rules = rules
            lane.route()
            lane.limit_cache(cache_limit_bytes)
        self._settle()
        self.viewers_came()

    def close(self) -> None:
        """Remove all sources, and release the stream."""
        if self._slate is not None:
            self._slate.stop()
            self._slate = None
        for lane in list(self.lanes):
            lane.source.detach()
            lane.close()
        self.lanes.clear()
        self.active = None
        self._host = None
        self._watch = _nothing

    def _note_last(self, lane: Lane) -> None:
        source = lane.source
        lag_ms = lane.lag_ms
        if lag_ms is None and source.timeline.newest >= 0:
            lag_ms = source.active_at * 1000 - source.timeline.newest
        if lag_ms is not None:
            self._last_lag_ms = lag_ms
        self._last, self._last_clock = source, lane.clock

    def _codec_found(self, lane: Lane, found: VideoConfig | AudioConfig) -> None:
        if lane is self.active and lane.role is not SourceRole.SLATE and self._host is not None:
            self._host.codec_found(found)

    def _settle(self) -> None:
        """Give the active source a lane if there are others, and let it feed the stream directly if there are none."""
        lane, host = self.active, self._host
        if host is None:
            return
        if len(self.lanes) > 1:
            self._watch()
            if lane is not None and lane.bypassed:
                lane.activate(None)
                # Nothing was watched so far.
                lane.tick(time.monotonic())
        elif lane is not None and lane.mode is Mode.ACTIVE and not lane.splicing:
            lane.bypass(host)

    # The active source -------------------------------------------------------------------------------------------------

    def is_active(self, lane: Lane) -> bool:
        """Return whether a source is the active one."""
        return lane is self.active

    def joined(self, lane: Lane) -> None:
        """A source that stands by has sent a message to start at."""
        lane.tick(time.monotonic())
        waited = self._waited_for
        if self.active is None or self.active.role is SourceRole.SLATE:
            self.update(time.monotonic())
        elif waited is not None and waited.number == lane.source.number:
            self._switch(lane, waited.cause)

    def spliced(self, lane: Lane) -> None:
        """No further message of the active source has to be mapped."""
        if lane is self.active:
            self._settle()

    def tick(self, now_s: float) -> bool:
        """Check the health of all sources, and change the active one if that has to be. Return whether to be called again."""
        if self._host is None:
            return False
        judges = now_s - self._judged_at >= _JUDGE_S or self._slate is not None or self.active is None
        judged = False
        for lane in list(self.lanes):
            judged |= lane.tick(now_s, judges=judges)
        if self._merger is not None:
            frames = self._merger.expire(now_s)
            if frames:
                self.emit(frames)
        if not judged and not judges:
            return True
        self._judged_at = now_s
        self._tick_copies(now_s)
        self._tick_slate(now_s)
        self.update(now_s)
        several = len(self.lanes) > 1 or self._merger is not None
        return several or (bool(self.lanes) and self.active is None) or self._may_need_slate

    # The slate ---------------------------------------------------------------------------------------------------------

    @property
    def _may_need_slate(self) -> bool:
        return self._slate is not None or (self._host is not None and self._host.has_viewers and self._host.slate is not None)

    def stop_slate(self) -> None:
        """End the slate, if it is played: the server stops."""
        if self._slate is not None:
            self._end_slate(self._slate, replaced=False)

    def viewers_came(self) -> None:
        """The stream has a player or relay: the slate may be needed."""
        if self._may_need_slate:
            self._watch()

    def _tick_slate(self, now_s: float) -> None:
        """Start or stop the slate."""
        host, player = self._host, self._slate
        assert host is not None
        slate = host.slate
        if player is None and slate is None:
            return
        usable = (self._candidate(lane, now_s) for lane in self.publishers)
        needed = host.has_viewers and not any(each.ready and each.condition is not Condition.DOWN for each in usable)
        if player is not None and (not needed or player.slate is not slate or self._is_left(player)):
            if self.active is not None and self.active.role is SourceRole.SLATE and needed is False and host.has_viewers:
                # Until a publisher has taken over, in `update`.
                return
            self._end_slate(player, replaced=needed and slate is not None)
            player = None
        if player is None and needed and slate is not None:
            player = self._slate = SlatePlayer(slate)
            self.add(player.source, SourceRole.SLATE)
            player.start()

    def _is_left(self, player: SlatePlayer) -> bool:
        """Return whether a publisher has taken over from the slate: its next keyframe may be seconds away."""
        lane = self.lane_of(player.source)
        return lane is not None and lane is not self.active and not lane.has_join_point

    def _end_slate(self, player: SlatePlayer, *, replaced: bool) -> None:
        self._slate = None
        player.stop()
        was_active = self.active is not None and self.active.source is player.source
        self.remove(player.source, "the slate has ended")
        if was_active and self.active is None and self._host is not None and not replaced:
            self._host.slate_ended()

    def _rules(self) -> SelectionRules:
        options = self._publish_options()
        return SelectionRules(Failback(options.failback), options.failback_after_s, options.failover_hold_s)

    def _candidate(self, lane: Lane, now_s: float) -> Candidate:
        had_video = self._last is not None and self._last.has_video
        candidate = lane.candidate(now_s, had_video=had_video)
        assert self._host is not None
        if (self.active is None or self.active.role is SourceRole.SLATE) and not candidate.ready:
            # Some encoders send one keyframe, or none: then readers start without. And those that come later start with one.
            wait_s, waited_s = self._host.options.live.keyframe_wait_s, now_s - max(lane.source.started_at, self._missed_since)
            if self.active is None and not self._host.continued:
                candidate = candidate._replace(ready=True, condition=Condition.HEALTHY)
            elif 0 < wait_s <= waited_s:
                candidate = candidate._replace(ready=True)
        return candidate

    def update(self, now_s: float) -> None:
        """Change the active source if that has to be."""
        if self._host is None or not self.lanes:
            return
        active = self.active
        if (
            active is not None
            and active.health.fault is None
            and not any(is_preferred(each.role, active.role) for each in self.lanes)
        ):
            # It stays, whatever the others are.
            self._waited_for = None
            return
        others = [self._candidate(lane, now_s) for lane in self.lanes if lane is not active]
        own = self._candidate(active, now_s) if active is not None else None
        choice = self._rules().choose(own, others, now_s - self._changed_at)
        self._waited_for = None
        if choice is None:
            return
        if choice.cause is Cause.RETURN and choice.number in self._left_behind:
            choice = choice._replace(cause=Cause.FAILOVER)
        lane = next(each for each in self.lanes if each.source.number == choice.number)
        if choice.at_keyframe and lane.mode is not Mode.COPY:
            self._waited_for = choice
        else:
            self._switch(lane, choice.cause)

    def request(self, number: int) -> bool:
        """Make the source of this number active, for an operator; return whether it is, or will be at its next keyframe."""
        lane = next((each for each in self.lanes if each.source.number == number), None)
        if lane is None:
            return False
        if lane is not self.active:
            self._switch(lane, Cause.MANUAL)
        return True

    def _switch(self, lane: Lane, cause: Cause) -> None:
        """Let another source continue on the timeline."""
        old = self.active
        reason = self._last_fault
        if lane.role is SourceRole.SLATE and old is not None:
            self._missed_since = time.monotonic()
        if old is not None:
            fault = old.health.fault
            reason = old.health.text if fault is not None and cause is not Cause.FAILBACK else ""
            self._note_last(old)
            self.active = None
            if not (old.mode is Mode.COPY and lane.mode is Mode.COPY):
                self._leave_copies(old)
                old.stand_by()
                old.source.set_wanted(False)
        if lane.mode is Mode.COPY:
            self._adopt(lane, cause, reason)
        else:
            self._activate(lane, cause, reason)
        self._settle()

    def _activate(self, lane: Lane, cause: Cause, reason: str) -> None:
        host, source, before = self._host, lane.source, self._last
        assert host is not None
        now_s = time.monotonic()
        headers, group = lane.take_group()
        end = End()
        afresh = not host.continued or host.timeline.newest < 0
        newest_before = host.timeline.newest
        if not afresh:
            end = self._end()
            shift_ms = self._shift_ms(lane, end, now_s)
            source.timeline.shift(shift_ms)
            lane.shifted(shift_ms)
            group = [_shifted(message, shift_ms) for message in group]
            self.switches += 1
        splice = Splice(end, group) if not afresh and end.known else None
        self._left = End()
        host.follow(source.timeline, afresh=afresh)
        self.active, self._changed_at, self._waited_for = lane, now_s, None
        if lane.role is not SourceRole.SLATE:
            self._left_behind = set()
        changed = list(headers.items) if afresh else _changed(host.headers, headers)
        begins = group[0].timestamp if group else 0
        gap_ms = max(0, signed(begins - (newest_before & 0xFFFFFFFF))) if not afresh and group else 0
        host.source_changed(
            Switch(source, lane.role, before, cause, reason, any(type_id != DATA for type_id, _ in changed), gap_ms)
        )
        if not afresh and not changed and len(headers.items) == len(host.headers.items):
            # A reader is sent headers again if they are another object.
            if headers is source.headers.current:
                headers = source.headers.current = host.headers
        else:
            host.set_headers(headers)
        host.content_changed(ordinary=source.content.ordinary and (before is None or before.content.ordinary))
        lane.activate(splice)
        at_ms = splice.begins if splice is not None else begins
        audio_at_ms = splice.audio_begins if splice is not None else begins
        for type_id, payload in changed:
            header_at_ms = 0 if type_id == DATA else at_ms if type_id == VIDEO else audio_at_ms
            host.deliver(type_id, header_at_ms, payload, _METADATA if type_id == DATA else _HEADER)
        for index, message in enumerate(group):
            lane.replay(message, join_point=index == 0)
        if headers is not source.headers.current:
            host.set_headers(source.headers.current)
        for found in (source.stats.video, source.stats.audio):
            if found is not None:
                self._codec_found(lane, found)
        source.set_wanted(True)
        self._last, self._last_fault = source, ""

    def _end(self) -> End:
        """Return where the messages end that readers have been sent."""
        host = self._host
        assert host is not None
        video, audio = ((track.shown & _WORD if track.offset is not None else None) for track in _tracks(host.timeline))
        # The log may keep little: without a join point, or after an error in an output.
        return End.of(_messages(host.published_log)).at_least(video, audio).shown_after(self._left)

    # Identical copies --------------------------------------------------------------------------------------------------

    @property
    def copies(self) -> list[Lane]:
        """The lanes of identical copies that are merged."""
        return [lane for lane in self.lanes if lane.mode is Mode.COPY]

    def observe(self, lane: Lane, type_id: int, timestamp: int, payload: bytes) -> None:
        """A source that may be a copy of another one has sent a frame."""
        self._matcher.note(lane.source.number, type_id, timestamp, payload)

    def _tick_copies(self, now_s: float) -> None:
        """Part copies that are none, and look for others of the active source."""
        merger = self._merger
        if merger is not None:
            for lane in self.copies:
                if merger.broken(lane.source.number):
                    self._break_copy(lane)
                    # That may have been the last pair.
                    break
        active = self.active
        if self._merger is not None and active is not None and self.copies == [active]:
            self._end_copies(active, self._merger)
        self._observe_for_a_while(now_s)
        if active is None or not active.observed or active.splicing or now_s - self._matched_at < _MATCH_S:
            return
        self._matched_at = now_s
        for lane in self.publishers:
            if lane.mode is Mode.STANDBY:
                offsets = self._matcher.match(active.source.number, lane.source.number)
                if offsets is not None:
                    self._join_copies(active, lane, offsets)
                    return

    def _observe_for_a_while(self, now_s: float) -> None:
        """Observe frames when a source has come, and then again now and then: to compare them costs as much as to keep them."""
        publishers = self.publishers
        may_match = self._publish_options().match_copies and len(publishers) > 1
        may_match = may_match and any(each.mode is Mode.STANDBY for each in publishers)
        observes = may_match and (now_s - self._observed_from) % _OBSERVED_EVERY_S < _OBSERVED_S
        if not observes:
            self._matcher = CopyMatcher()
        for each in publishers:
            each.observe(observed=observes)

    def _join_copies(self, active: Lane, lane: Lane, offsets: CopyOffsets) -> None:
        """Merge a copy of the active source with it."""
        host, number = self._host, lane.source.number
        assert host is not None
        if self._merger is None:
            self._merger = CopyMerger(max_wait_ms=_COPY_WAIT_MS)
            self._merger.add(active.source.number)
            # What readers have been sent must not be emitted again.
            for type_id, timestamp, payload, kind in _messages(host.published_log):
                if kind in _FRAMES:
                    self._merger.take(active.source.number, type_id, timestamp, payload)
            active.copy(self._merger)
        lane.source.timeline.shift(-offsets.video_ms)
        lane.shifted(-offsets.video_ms)
        self._merger.add(number, CopyOffsets(0, offsets.audio_ms - offsets.video_ms), relative_to=active.source.number)
        lane.copy(self._merger)
        lane.source.set_wanted(active.source.wanted)
        self._matcher.forget(number)
        self.copies_joined += 1
        log.info(
            "%s: the publishers from %s and %s send identical frames (%d ms apart): each frame is taken from the first one "
            "that brings it (match_copies)",
            host.key,
            active.source.info.peer,
            lane.source.info.peer,
            round((lane.lag_ms or 0) - (active.lag_ms or 0)),
        )
        self._settle()

    def emit(self, frames: list[Frame]) -> None:
        """Hand merged frames to the stream."""
        host, active = self._host, self.active
        if host is None:
            return
        has_video = active is None or active.source.has_video
        for type_id, timestamp, payload in frames:
            kind = video_kind(payload) if type_id == VIDEO else audio_kind(payload)
            if kind == _FRAME and (has_video or type_id == VIDEO):
                host.append(type_id, timestamp, payload, kind)
            elif kind in (_KEYFRAME, _TRACK_KEYFRAME):
                joins = active is None or active.source.joins_at(kind, payload)
                host.deliver(type_id, timestamp, payload, _KEYFRAME if joins else _FRAME, joins)
            else:
                host.deliver(type_id, timestamp, payload, kind, kind == _FRAME and host.audio_joins_at(timestamp))

    def _break_copy(self, lane: Lane) -> None:
        """A copy sends other frames than the rest: from now on it is another source."""
        host = self._host
        assert host is not None
        self.copies_broken += 1
        log.warning(
            "%s: the publisher from %s no longer sends the frames of the other one: from now on a failover takes place at a "
            "keyframe (match_copies)",
            host.key,
            lane.source.info.peer,
        )
        others = [each for each in self.copies if each is not lane]
        if lane is self.active and others:
            # What readers have been sent came from the others.
            self._note_last(lane)
            self.active = None
            self._adopt(others[0], Cause.FAILOVER, "its copy sends other frames")
        self._leave_copies(lane)
        if lane is not self.active:
            lane.stand_by()
            lane.source.set_wanted(False)
        self._settle()

    def _adopt(self, lane: Lane, cause: Cause, reason: str) -> None:
        """Make another copy the active source. Readers notice nothing."""
        host, source = self._host, lane.source
        assert host is not None
        before = self._last
        self.active, self._changed_at, self._waited_for = lane, time.monotonic(), None
        self.switches += 1
        host.follow(source.timeline, afresh=False)
        host.source_changed(Switch(source, lane.role, before, cause, reason, headers_changed=False, gap_ms=0))
        if source.headers.current.items == host.headers.items:
            source.headers.current = host.headers
        else:
            host.set_headers(source.headers.current)
        source.set_wanted(True)
        self._last, self._last_fault = source, ""

    def _leave_copies(self, lane: Lane) -> None:
        """Take a source out of the merger; the last one needs none."""
        merger = self._merger
        if merger is None or lane.mode is not Mode.COPY:
            return
        self.emit(merger.remove(lane.source.number))
        lane.activate(None)
        rest = self.copies
        if rest == [self.active]:
            # It may be behind what the other one has brought: until it has caught up, its frames are merged with those.
            return
        if not rest:
            lane.keep_beyond(self._end())
        if len(rest) <= 1:
            self._end_merger()
            for last in rest:
                last.stand_by()

    def _end_copies(self, last: Lane, merger: CopyMerger) -> None:
        """Let the last copy feed the stream itself, once it has brought all that others have."""
        if merger.in_step(last.source.number):
            self._end_merger()
            last.activate(None)
            self._settle()

    def _end_merger(self) -> None:
        self._merged, self._merger = self.merged, None

    def _shift_ms(self, lane: Lane, end: End, now_s: float) -> int:
        """Return by how much the source's timeline is to be moved for the stream's: content at its time, or by its arrival."""
        host, source = self._host, lane.source
        assert host is not None
        newest, own = host.timeline.newest, max(0, source.timeline.newest)
        # Copies may have brought more than the active one.
        sent = host.published_log.newest_timestamp
        newest += max(0, signed(sent - newest)) if sent >= 0 else 0
        if end.video is not None and source.timeline.video.offset is not None:
            # An encoder that ends may have sent its audio further than its video: that much of the other one's is left out.
            newest += signed(end.video - newest)
            own = source.timeline.video.shown
        lag_ms = lane.lag_ms if lane.lag_ms is not None else now_s * 1000 - own
        before_ms = self._last_lag_ms if self._last_lag_ms is not None else now_s * 1000 - newest
        by_arrival = round(lag_ms - before_ms)
        # What has arrived by now is not much earlier than what readers have been sent, and not much later than now.
        earliest, present = newest - own - _BEHIND_LIMIT_MS, max(0, round(now_s * 1000 - before_ms - newest))
        by_arrival = max(earliest, min(by_arrival, newest - own + present + _AHEAD_LIMIT_MS))
        if self._publish_options().align_clocks and self._last_clock is not None:
            difference_ms = timestamp_shift_ms(self._last_clock, lane.clock, -by_arrival)
            if difference_ms is not None and abs(difference_ms + by_arrival) <= _CLOCK_LIMIT_MS:
                return max(earliest, -difference_ms)
        return by_arrival


def _tracks(timeline: Timeline) -> tuple[Track, Track]:
    return timeline.video, timeline.audio


def _shifted(message: Kept, by_ms: int) -> Kept:
    if message.type_id == DATA and message.kind == _METADATA:
        return message
    return message._replace(timestamp=(message.timestamp + by_ms) & 0xFFFFFFFF)


def _messages(stream_log: Log) -> Iterator[Kept]:
    """Yield the last messages of a log, as far as they are kept: from the join point, or on the last page."""
    page, offset = stream_log.join_page, stream_log.join_offset
    if page is None:
        page, offset = stream_log.tail, 0
    for each in stream_log.read_all(page, offset):
        yield Kept(each.type_id, each.timestamp, bytes(each.payload), each.kind)


def _changed(before: Headers, after: Headers) -> list[tuple[int, bytes]]:
    """Return the headers that readers need: all of the codecs' if one differs, and metadata if they do."""
    media = [each for each in after.items if each[0] != DATA]
    same = {each for each in before.items if each[0] != DATA} == set(media)
    metadata = [each for each in after.items if each[0] == DATA and each not in before.items]
    return metadata + ([] if same else media)
