"""A lane: what lies between one source and its stream while the stream has, or is about to have, another source.

The lane of a source that stands by keeps its last group of pictures in a log of its own, so that the source can take over at
once. The lane of the active source hands its messages to the stream. Both observe what the health of the source follows from. A
source that is alone feeds its stream directly.
"""

from __future__ import annotations

import enum
import logging
from typing import TYPE_CHECKING, Protocol

from rtmpd.live.framing import DATA, NO_HEADERS, VIDEO
from rtmpd.live.health import Fault, Health, HealthFigures
from rtmpd.live.log import Log
from rtmpd.live.selection import Candidate, Condition, SourceRole
from rtmpd.live.splice import Kept
from rtmpd.media.clock import USUAL_LAYOUT, ContentClock, data_time, frame_layout, video_time
from rtmpd.media.tags import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.live.copies import CopyInput, CopyMerger, Frame
    from rtmpd.live.framing import Framing, Headers
    from rtmpd.live.health import HealthRules
    from rtmpd.live.source import Source, SourceStream
    from rtmpd.live.splice import End, Splice
    from rtmpd.media.clock import ContentTime, FrameLayout

log = logging.getLogger(__name__)

_FRAME, _KEYFRAME = int(Kind.FRAME), int(Kind.KEYFRAME)
_LAG_WEIGHT = 0.1
_AUDIO_ALONE_S = 1.0
"""A source without video is not taken for one that has none before this time: encoders may send audio first."""
_AUDIO_JOIN_MS = 1000
_UNKNOWN_BYTES = 1 << 24


def _discard(type_id: int, timestamp: int, payload: bytes, kind: int) -> None:
    pass


class Mode(enum.Enum):
    """Where the messages of a lane go."""

    STANDBY = "to its own log"
    ACTIVE = "to the stream"
    COPY = "to the merger of identical copies"


class LaneOwner(Protocol):
    """What a lane asks of the one that keeps it."""

    @property
    def stream(self) -> SourceStream:
        """The stream."""

    def is_active(self, lane: Lane) -> bool:
        """Return whether a source is the active one."""

    def joined(self, lane: Lane) -> None:
        """A source that stands by has sent a keyframe, or an audio frame to start at. May make it active."""

    def spliced(self, lane: Lane) -> None:
        """No further message of the active source has to be mapped."""

    def observe(self, lane: Lane, type_id: int, timestamp: int, payload: bytes) -> None:
        """A source that may be a copy of another one has sent a frame."""

    def emit(self, frames: list[Frame]) -> None:
        """Hand merged frames to the stream."""


class Lane:
    """The lane of one source.

    Args:
        owner: Keeps it.
        source: The source.
        role: Its role.
        framing: The format of the log of a source that stands by.
        cache_limit_bytes: A group of pictures that is larger is not kept.
        rules: What its health is judged by.

    Attributes:
        source, role, health: Likewise.
        clock: The clock in its content.
        mode: Where its messages go.
        append: Takes a frame that begins no group of pictures; see `route`.
        log: What is kept of a source that stands by; None: it does not.
        lag_ms: The time of arrival minus the newest timestamp, as a moving mean, milliseconds; None: not known.
    """

    __slots__ = (
        "_cache_limit_bytes",
        "_copy_input",
        "_framing",
        "_largest_audio",
        "_largest_inter",
        "_layout",
        "_layout_of",
        "_merger",
        "_messages",
        "_observed",
        "_owner",
        "_splice",
        "append",
        "clock",
        "health",
        "lag_ms",
        "log",
        "mode",
        "role",
        "source",
    )

    def __init__(
        self, owner: LaneOwner, source: Source, role: SourceRole, framing: Framing, cache_limit_bytes: int, rules: HealthRules
    ) -> None:
        self._owner: LaneOwner | None = owner
        self.source = source
        self.role = role
        self.health = Health(rules)
        self.clock = ContentClock()
        self.mode = Mode.ACTIVE
        self._observed = False
        self.log: Log | None = None
        self._framing = framing
        self._cache_limit_bytes = cache_limit_bytes
        self.lag_ms: float | None = None
        self._layout, self._layout_of = USUAL_LAYOUT, NO_HEADERS
        self._splice: Splice | None = None
        self._merger: CopyMerger | None = None
        self._copy_input: CopyInput | None = None
        self.append: Callable[[int, int, bytes, int], None] = _discard
        self._messages = 0
        self._largest_inter = self._largest_audio = 0

    # Its life ----------------------------------------------------------------------------------------------------------

    def stand_by(self) -> None:
        """Keep what the source sends from now on."""
        self.mode, self._splice, self._merger, self._copy_input = Mode.STANDBY, None, None, None
        self.log = Log(self._framing, self._cache_limit_bytes)
        self.log.headers = self.source.headers.current
        self.route()
        self.source.feed(self)

    def activate(self, splice: Splice | None) -> None:
        """Hand the messages to the stream from now on."""
        self.mode, self._splice, self.log = Mode.ACTIVE, splice, None
        self._merger = self._copy_input = None
        self.route()
        self.source.feed(self)

    def bypass(self, stream: SourceStream) -> None:
        """Let the active source feed its stream directly: it is alone."""
        self.source.feed(stream)

    @property
    def bypassed(self) -> bool:
        """Whether the source feeds its stream directly."""
        return not self.source.feeds(self)

    @property
    def observed(self) -> bool:
        """Whether the owner observes its frames, to recognize copies."""
        return self._observed

    def observe(self, *, observed: bool) -> None:
        """Set whether the owner observes the frames."""
        if observed is not self._observed:
            self._observed = observed
            self.route()

    @property
    def splicing(self) -> bool:
        """Whether messages of the active source are still mapped."""
        return self._splice is not None

    def replay(self, message: Kept, *, join_point: bool) -> None:
        """Hand the stream a message that was kept."""
        if self._splice is not None:
            self._map(self._splice, message, join_point=join_point, ends=False)
        elif self._owner is not None:
            self._owner.stream.deliver(*message, join_point)

    def copy(self, merger: CopyMerger) -> None:
        """Hand the frames to the merger from now on."""
        self.mode, self._splice, self.log = Mode.COPY, None, None
        self._merger = merger
        if self._owner is not None:
            self._copy_input = merger.input(self.source.number, self._owner.stream, self._owner.emit)
        self.route()
        self.source.feed(self)

    def close(self) -> None:
        """Release what the lane refers to: a cycle would keep pages until the garbage collector runs."""
        self._owner = self.log = self._merger = self._copy_input = None
        self.route()

    def take_group(self) -> tuple[Headers, list[Kept]]:
        """Return the headers at the join point, and the messages from there on; without one, the headers in force."""
        page = self.log.join_page if self.log is not None else None
        if page is None or self.log is None:
            return self.source.headers.current, []
        messages = self.log.read_all(page, self.log.join_offset)
        return self.log.join_headers, [Kept(each.type_id, each.timestamp, bytes(each.payload), each.kind) for each in messages]

    # As a `SourceStream` -----------------------------------------------------------------------------------------------

    def route(self) -> None:
        """Decide where frames go that begin no group of pictures: past the lane, unless something has to look at each."""
        owner, rules = self._owner, self.health.rules
        looks = self._observed or self._splice is not None
        if owner is None:
            self.append = _discard
        elif looks or rules.frozen_timeout_s or rules.silence_timeout_s:
            self.append = self._append
        elif self._copy_input is not None:
            self.append = self._copy_input.append
        else:
            self.append = self.log.append if self.log is not None else owner.stream.append

    def _append(self, type_id: int, timestamp: int, payload: bytes, kind: int) -> None:
        """Take a frame that begins no group of pictures."""
        size = len(payload)
        if type_id == VIDEO:
            if size > self._largest_inter:
                self._largest_inter = size
        elif size > self._largest_audio:
            self._largest_audio = size
        owner = self._owner
        if owner is None:
            return
        if self._observed:
            owner.observe(self, type_id, timestamp, payload)
        if self.log is not None:
            self.log.append(type_id, timestamp, payload, kind)
        elif self._copy_input is not None:
            self._copy_input.append(type_id, timestamp, payload, kind)
        elif self._splice is not None:
            self._map(self._splice, Kept(type_id, timestamp, payload, kind), join_point=False)
        else:
            owner.stream.append(type_id, timestamp, payload, kind)

    def append_failed(self, error: Exception) -> None:
        """End what has raised an exception."""
        if self.log is not None:
            log.error("internal error in what is kept of a source that stands by", exc_info=error)
            self.log = Log(self._framing, self._cache_limit_bytes)
            self.route()
        elif self._owner is not None:
            self._owner.stream.append_failed(error)

    def deliver(self, type_id: int, timestamp: int, payload: bytes, kind: int, join_point: bool = False) -> None:
        """Take a message."""
        owner = self._owner
        if owner is None:
            return
        if kind == _KEYFRAME and type_id == VIDEO:
            self._note_time(timestamp, video_time(payload, self._frame_layout()))
        elif type_id == DATA:
            self._note_time(timestamp, data_time(payload))
        elif kind == _FRAME:
            self._note_size(type_id, len(payload))
        if self._observed and kind in (_FRAME, _KEYFRAME):
            owner.observe(self, type_id, timestamp, payload)
        if self.log is not None:
            self.log.append(type_id, timestamp, payload, kind, join_point)
            if join_point:
                owner.joined(self)
        elif self._merger is not None:
            self._deliver_copy(owner, self._merger, Kept(type_id, timestamp, payload, kind))
        elif self._splice is not None:
            self._map(self._splice, Kept(type_id, timestamp, payload, kind), join_point=join_point)
        else:
            owner.stream.deliver(type_id, timestamp, payload, kind, join_point)

    def _note_time(self, timestamp: int, time: ContentTime | None) -> None:
        if time is not None:
            self.clock.note(timestamp, time)

    def _frame_layout(self) -> FrameLayout:
        """Return how frames are to be read for a clock: what the newest video header says."""
        headers = self.source.headers.current
        if headers is not self._layout_of:
            self._layout_of = headers
            videos = [payload for type_id, payload in headers.items if type_id == VIDEO]
            self._layout = frame_layout(videos[-1]) if videos else USUAL_LAYOUT
        return self._layout

    def _deliver_copy(self, owner: LaneOwner, merger: CopyMerger, message: Kept) -> None:
        """Take a message of a copy. Data come from the active source alone; what comes before a frame, in the place of one."""
        if message.type_id == DATA:
            if owner.is_active(self):
                owner.stream.deliver(*message)
            return
        if message.kind not in (_FRAME, _KEYFRAME):
            timeline = self.source.timeline
            track = timeline.video if message.type_id == VIDEO else timeline.audio
            message = message._replace(timestamp=track.shown & 0xFFFFFFFF)
        found = merger.take(self.source.number, message.type_id, message.timestamp, message.payload)
        if found:
            owner.emit(found)

    def _note_size(self, type_id: int, size: int) -> None:
        if type_id == VIDEO:
            self._largest_inter = max(self._largest_inter, size)
        else:
            self._largest_audio = max(self._largest_audio, size)

    def _map(self, splice: Splice, message: Kept, *, join_point: bool, ends: bool = True) -> None:
        owner = self._owner
        assert owner is not None
        type_id, timestamp, _, kind = message
        found = splice.take(*message)
        if found is not None:
            owner.stream.deliver(type_id, found[0], found[1], kind, join_point)
        if ends and kind in (_FRAME, _KEYFRAME) and splice.done(timestamp):
            self._splice = None
            self.route()
            self.keep_beyond(splice.end)
            owner.spliced(self)

    def keep_beyond(self, end: End) -> None:
        """Let no frame be before what readers have been sent of another source, however late it comes."""
        timeline = self.source.timeline
        for track, sent in ((timeline.video, end.video), (timeline.audio, end.audio)):
            if sent is not None:
                timeline.keep_beyond(track, sent)

    def audio_joins_at(self, timestamp: int) -> bool:
        """Return whether readers may start at an audio frame of a source without video."""
        if self.log is None:
            return self._owner is not None and self._owner.stream.audio_joins_at(timestamp)
        return self.log.join_page is None or (timestamp - self.log.join_timestamp) & 0xFFFFFFFF >= _AUDIO_JOIN_MS

    def set_headers(self, headers: Headers) -> None:
        """Take note of changed headers."""
        if self.log is not None:
            self.log.headers = headers
        elif self._owner is not None and self._owner.is_active(self):
            self._owner.stream.set_headers(headers)

    def content_changed(self, ordinary: bool) -> None:
        """Take note of changed content."""
        if self._owner is not None and self.log is None and self._owner.is_active(self):
            self._owner.stream.content_changed(ordinary)

    # Upkeep ------------------------------------------------------------------------------------------------------------

    def tick(self, now_s: float, *, judges: bool = True) -> bool:
        """Update lag and health, and return whether the health was judged. A source that is silent always is."""
        source = self.source
        messages = source.audio_messages + source.video_messages
        if messages != self._messages:
            self._messages = messages
            newest_ms, lag_ms = source.timeline.newest, self.lag_ms
            if newest_ms >= 0:
                sample_ms = now_s * 1000 - newest_ms
                if lag_ms is None or not -_AUDIO_JOIN_MS <= sample_ms - lag_ms <= _AUDIO_JOIN_MS:
                    # Another clock, or the first sample.
                    self.lag_ms = sample_ms
                else:
                    self.lag_ms = lag_ms + _LAG_WEIGHT * (sample_ms - lag_ms)
            if not judges:
                self.health.note(now_s, messages)
                return False
        bypassed = self.bypassed
        figures = HealthFigures(
            messages=messages,
            bytes=source.bytes_in,
            video_frames=source.video_frames,
            keyframes=source.stats.keyframes,
            # Sizes are not observed of a source that feeds its stream directly.
            largest_inter_bytes=_UNKNOWN_BYTES if bypassed else self._largest_inter,
            largest_audio_bytes=_UNKNOWN_BYTES if bypassed else self._largest_audio,
            has_video=source.has_video,
            has_audio=source.audio_messages > 0,
        )
        self._largest_inter = self._largest_audio = 0
        self.health.tick(now_s, figures)
        return True

    def shifted(self, by_ms: int) -> None:
        """Take note that the source's timeline was shifted."""
        if self.lag_ms is not None:
            self.lag_ms -= by_ms
        self.clock.shift(by_ms)

    def limit_cache(self, limit_bytes: int) -> None:
        """Keep no larger group of pictures from now on."""
        self._cache_limit_bytes = limit_bytes
        if self.log is not None:
            self.log.cache_limit_bytes = limit_bytes

    @property
    def held_bytes(self) -> int:
        """The memory of what is kept."""
        return self.log.account.bytes if self.log is not None else 0

    def forget(self) -> None:
        """Free what is kept: memory is short."""
        if self.log is not None:
            self.log.forget_join_point()

    @property
    def has_join_point(self) -> bool:
        """Whether a group of pictures is kept."""
        return self.log is not None and self.log.join_page is not None

    def is_ready(self, now_s: float, *, had_video: bool) -> bool:
        """Return whether decoding can start in what is kept. *had_video*: the source before had video."""
        if not self.has_join_point:
            return False
        audio_alone_s = now_s - self.source.started_at
        return self.source.has_video or not had_video or audio_alone_s >= _AUDIO_ALONE_S

    def candidate(self, now_s: float, *, had_video: bool) -> Candidate:
        """Return the source as the selection sees it."""
        fault, since_s = self.health.fault, self.health.healthy_since_s
        condition = Condition.HEALTHY
        if fault is not None:
            condition = Condition.DOWN if fault is Fault.STALLED else Condition.FAULTY
        healthy_s = max(0.0, now_s - since_s) if since_s is not None else 0.0
        ready = self.mode is not Mode.STANDBY or self.is_ready(now_s, had_video=had_video)
        return Candidate(self.role, self.source.number, condition, healthy_s, ready)
