"""A live stream: one name, its sources, and the outputs that deliver it to any number of readers.

At most one source is active. Its messages are on one timeline, and are appended to the log of each output: the published one,
those that are rewritten for players that can't take the stream as it is published, and those in other framings.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from rtmpd.live.courier import Courier
from rtmpd.live.fanout import DeliveryCounters
from rtmpd.live.flv_framing import FLV
from rtmpd.live.framing import NO_HEADERS, Notice, NoticeKind
from rtmpd.live.grant import NOTHING_GRANTED
from rtmpd.live.ingest import Ingest
from rtmpd.live.output import Output
from rtmpd.live.selection import SourceRole
from rtmpd.live.stats import Stats
from rtmpd.media.rewrite import AS_PUBLISHED, Content
from rtmpd.media.timestamps import Timeline
from rtmpd.phases import STREAM, CloseKind, CloseReason, IllegalTransition, Machine, StreamPhase
from rtmpd.util.stream_key import StreamKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import ApplicationConfig, LimitsConfig
    from rtmpd.live.framing import Framing, Headers
    from rtmpd.live.grant import Grant
    from rtmpd.live.ingest import Switch
    from rtmpd.live.lane import Lane
    from rtmpd.live.log import Log, LogReader
    from rtmpd.live.source import Received, Source
    from rtmpd.media.audio_codecs import AudioConfig
    from rtmpd.media.rewrite import Rewrite
    from rtmpd.media.slate import Slate
    from rtmpd.media.video_codecs import VideoConfig

log = logging.getLogger(__name__)

_REVISIONS = 4
"""How often the content may change between two sweeps before players are only moved by sweeps."""

_UNUSED_S = 5.0
"""How long an output without readers is kept for the next one: to make it again and again would be dear."""

_LAZY_LIMIT = 5_000_000
"""A source with a bitrate above this, bits per second, is always wanted at once: until the next lazy read the receive window of
its encoder would be full."""

_LAZY_AFTER_S = 3.0
"""By then the bitrate of a source is known."""

_AUDIO_JOIN_MS = 1000
"""Without video any frame will do to start at; late joiners get up to this much at once, to fill their buffer."""

_NO_STATS = Stats(lambda found: None)

Decisions = dict[int, tuple[str, Output]]
"""By the id of a player's capabilities: why such players are refused, if they are; and the output that they read."""


class StreamPlayer(Protocol):
    """What a stream asks of its players.

    Attributes:
        number: Counts the server's plays; given by the hub.
    """

    number: int

    def revise(self, decisions: Decisions) -> None:
        """Decide again which output the player reads: the content or the options have changed. Must not wait.

        Args:
            decisions: What has been decided for other players in this round; the player adds its own.
        """

    def ended(self) -> None:
        """Take note that the stream has ended, after it has been notified of it. Must not wait."""

    def output_ended(self, output: Output) -> None:
        """Take note that the log of an output has ended, after its readers have been notified. Must not wait."""


class Stream:
    """One live stream.

    Args:
        key: ``app/name``.
        options: The application's options.
        framing: The framing of the published output.
        on_codec: Called with what a track is encoded with, when that is known and when it changes.
        count: Increments a counter of failures.
        courier: Delivers to small groups of subscribers, of all streams; None: one of its own.
        on_switch: Called with each change of the active source, before any of its messages is delivered, and with whether the
            stream becomes live by it.
        on_live_stop: Called with the reason when the stream is no longer live, before anything is appended for that.
        watch: Called when `tick` is to be called about every 50 ms, until it returns False.
        slates: Returns the slate that was read from a file.

    Attributes:
        players: Those that play the stream, or are about to; kept by the hub.
        published: The output that rewrites nothing, in the framing of players.
        counters: What is delivered, by all outputs.
        ended_at: When the last source ended (monotonic, seconds); None while one is active, or before the first.
        begun_at: Where in the published log the active source's messages begin: a position.
        created_at: Monotonic, seconds.
        taken_over_at: When a publisher was last replaced that was not silent (monotonic, seconds); None: never.
    """

    def __init__(
        self,
        key: str,
        options: ApplicationConfig,
        framing: Framing,
        on_codec: Callable[[Stream, VideoConfig | AudioConfig], None] | None = None,
        count: Callable[[str], None] = lambda name: None,
        courier: Courier | None = None,
        on_switch: Callable[[Stream, Switch, bool], None] = lambda stream, switch, first: None,
        on_live_stop: Callable[[Stream, str], None] = lambda stream, reason: None,
        watch: Callable[[Stream], None] = lambda stream: None,
        slates: Callable[[str], Slate | None] = lambda path: None,
    ) -> None:
        self.key = StreamKey(key)
        self.options = options
        self.players: set[StreamPlayer] = set()
        self.counters = DeliveryCounters()
        self.timeline = Timeline()
        self.ended_at: float | None = None
        self.begun_at = 0
        self.created_at = time.monotonic()
        self._machine = Machine(STREAM, StreamPhase.IDLE)
        self._on_codec = on_codec
        self._count = count
        self._courier = courier or Courier()
        self._on_switch = on_switch
        self._on_live_stop = on_live_stop
        self._slates = slates
        self._end_reason = ""
        self.taken_over_at: float | None = None
        self._jumps = 0
        self._headers: Headers = NO_HEADERS
        self._revisions = 0  # since the last sweep
        self._grant = NOTHING_GRANTED
        self._patient: set[LogReader] = set()  # those that do not need each message at once
        self.published = Output(key, options, framing, counters=self.counters, courier=self._courier)
        self._outputs: list[Output] = []
        self.ingest = Ingest(self, lambda: watch(self))
        self._set_outputs([self.published])

    def _set_outputs(self, outputs: list[Output]) -> None:
        """Set the outputs. A list is never changed: `deliver` may be iterating over it."""
        self._outputs = outputs
        # The hot path of ordinary streams: no loop, and one call less.
        self.append: Callable[[int, int, bytes, int], None] = self.deliver if len(outputs) > 1 else self.published.log.append
        self.ingest.outputs_changed()

    @property
    def phase(self) -> StreamPhase:
        """The phase."""
        return self._machine.phase

    # Sources -----------------------------------------------------------------------------------------------------------

    @property
    def source(self) -> Source | None:
        """The publisher that is active; None: there is none, or a slate is."""
        lane = self.ingest.active
        return lane.source if lane is not None and lane.role is not SourceRole.SLATE else None

    @property
    def live(self) -> bool:
        """Whether the stream has a publisher, or waits for one that was lost: recordings and relays go on."""
        return self.phase in (StreamPhase.LIVE, StreamPhase.GRACE)

    @property
    def announced(self) -> bool:
        """Whether players have been notified that the stream is live, and not yet that it has ended."""
        return self.phase not in (StreamPhase.IDLE, StreamPhase.CLOSED)

    @property
    def available(self) -> bool:
        """Whether there is a publisher, or the stream is kept after the last one."""
        return bool(self.ingest.publishers) or (self.announced and self.phase is not StreamPhase.SLATE)

    @property
    def grant(self) -> Grant:
        """What the active publisher, or the last one, was granted; nothing after the end of the stream."""
        return self._grant

    def begin(self, source: Source, role: SourceRole = SourceRole.PRIMARY) -> None:
        """Add a publisher. It becomes active at once, or at its first keyframe if readers continue with it, or stands by."""
        if self.phase is StreamPhase.CLOSED:
            raise IllegalTransition(f"{self.key} is closed")
        self.ended_at = None
        self.ingest.add(source, role)

    def remove(self, source: Source, reason: str = "") -> None:
        """Remove a publisher. Another one takes over if it can; without one players are kept until one comes, or `end`."""
        self.ingest.remove(source, reason)
        if not self.ingest.publishers:
            if self.phase is StreamPhase.LIVE:
                self._machine.to(StreamPhase.GRACE)
            self.ended_at = time.monotonic()
            self._end_reason = reason

    def wait_for_source(self, *, lost: bool = True, reason: str = "") -> None:
        """Remove all publishers; players are kept until another one begins or `end` is called.

        Args:
            lost: The source may be back at any moment, and new players get its last group of pictures meanwhile. Otherwise it
                has ended in an orderly way, and they wait as after the end.
            reason: Why, for the notice that the stream has ended.
        """
        for lane in self.ingest.publishers:
            self.remove(lane.source, reason)
        if not lost and self.live:
            self._stop_being_live(reason)
            self._machine.to(StreamPhase.LINGER)
            if self.ingest.active is None:
                # Otherwise a slate is active, and keeps its place.
                self._start_waiting()
                self._forget_media()

    def _stop_being_live(self, reason: str) -> None:
        if self.live:
            self._on_live_stop(self, reason)
            self._grant = NOTHING_GRANTED

    def _start_waiting(self) -> None:
        """Start players that waited for the last media, which the fan-out's next pass would find forgotten."""
        self._for_each(lambda output: output.fanout.start_waiting())

    def end(self, reason: str = "") -> None:
        """Remove all publishers, and notify players that the stream has ended. They may wait for the next source."""
        for lane in self.ingest.publishers:
            self.remove(lane.source, reason)
        self._stop_being_live(reason or self._end_reason)
        slate = self.ingest.active
        if slate is not None:
            # Viewers continue to see the slate.
            self._machine.to(StreamPhase.SLATE)
        elif self.announced:
            self._end_announcement()

    def _end_announcement(self) -> None:
        """Notify players that the stream has ended."""
        self._machine.to(StreamPhase.IDLE)
        self._start_waiting()
        self._notify(NoticeKind.UNPUBLISHED, f"{self.key} is now unpublished.")
        for player in list(self.players):
            player.ended()
        self._forget_media()

    def _forget_media(self) -> None:
        """Let no player start in what the last source has sent."""
        self._forget_join_points()
        for output in self._outputs:
            output.log.newest_timestamp = -1
        self.set_headers(NO_HEADERS)

    def _notify(self, kind: NoticeKind, text: str) -> None:
        self._end_outputs()
        notice = Notice(kind, text)
        self._for_each(lambda output: None if output.ended else output.fanout.notify(notice))

    def _end_outputs(self) -> None:
        """Notify the readers of outputs whose logs have ended."""
        for output in self._outputs:
            if output.over and not output.ended:
                output.ended = True
                output.fanout.notify(Notice(NoticeKind.CHANGED, "The codecs of the stream have changed."))
                output.log.forget_join_point()
                for player in list(self.players):
                    player.output_ended(output)

    def _for_each(self, action: Callable[[Output], None]) -> None:
        """Do something with each output; one that raises an exception ends."""
        for output in self._outputs:
            try:
                action(output)
            except Exception as error:  # noqa: BLE001 - logged by _fail
                self._fail(output, error)

    @property
    def stats(self) -> Stats:
        """The statistics of the active source."""
        return self.ingest.active.source.stats if self.ingest.active is not None else _NO_STATS

    @property
    def content(self) -> Content:
        """What of the active source's messages not every player can take."""
        return self.ingest.active.source.content if self.ingest.active is not None else Content()

    @property
    def headers(self) -> Headers:
        """The headers in force."""
        return self._headers

    @property
    def received(self) -> Received:
        """The totals of all its publishers."""
        return self.ingest.received

    @property
    def timestamp_jumps(self) -> int:
        """How often a track had to be placed anew on the timeline."""
        return self._jumps + self.timeline.jumps

    # As the host of its sources ----------------------------------------------------------------------------------------

    @property
    def published_log(self) -> Log:
        """The log of the published output."""
        return self.published.log

    @property
    def continued(self) -> bool:
        """Whether there are readers on the timeline: those that only wait or pause are on none yet."""
        return any(each.fanout.has_cursors or each.log.readers for each in self._outputs)

    @property
    def has_viewers(self) -> bool:
        """Whether there are players or relays, also such that wait."""
        return bool(self.players) or any(len(each.fanout) for each in self._outputs)

    @property
    def slate(self) -> Slate | None:
        """The slate of the stream's application."""
        path = self.options.slate.slate_file
        return self._slates(path) if path else None

    def slate_ended(self) -> None:
        """Notify players that the stream has ended, unless its publisher is still waited for."""
        if self.phase is StreamPhase.SLATE:
            self._end_announcement()

    def follow(self, timeline: Timeline, *, afresh: bool) -> None:
        """Take over the timeline of a source. *afresh*: no reader is on the one before, and none may join on it."""
        if afresh:
            self._forget_join_points()
        self._jumps += self.timeline.jumps - timeline.jumps
        self.timeline = timeline
        for output in self._outputs:
            output.fanout.timeline = timeline

    def source_changed(self, switch: Switch) -> None:
        """Announce the stream, if it was not; another source is active."""
        announced, live = self.announced, self.live
        if switch.role is not SourceRole.SLATE:
            self._machine.to(StreamPhase.LIVE)
            self._grant = switch.source.grant
        elif not live:
            self._machine.to(StreamPhase.SLATE)
        if not announced:
            self._notify(NoticeKind.PUBLISHED, f"{self.key} is now published.")
        if not live:
            self.begun_at = self.published.log.position
        self._on_switch(self, switch, switch.role is not SourceRole.SLATE and not live)

    def codec_found(self, found: VideoConfig | AudioConfig) -> None:
        """A track of the active source is encoded with this."""
        if self._on_codec is not None:
            self._on_codec(self, found)

    def tick(self, now_s: float) -> bool:
        """Check the health of the sources; return whether to be called again."""
        return self.ingest.tick(now_s)

    # Messages of the active source -------------------------------------------------------------------------------------

    def deliver(self, type_id: int, timestamp: int, payload: bytes, kind: int, join_point: bool = False) -> None:
        """Append a message to all outputs. The hot path: once per message and output, never per reader."""
        for output in self._outputs:
            try:
                if output.rewrites:
                    output.append(type_id, timestamp, payload, kind, join_point)
                else:
                    output.log.append(type_id, timestamp, payload, kind, join_point and output.takes_join_point)
            except Exception as error:  # noqa: BLE001 - logged by _fail
                self._fail(output, error)

    def append_failed(self, error: Exception) -> None:
        """End the only output, whose log has raised an exception."""
        self._fail(self.published, error)

    def audio_joins_at(self, timestamp: int) -> bool:
        """Return whether new readers of a stream without video may start at an audio frame."""
        published = self.published.log
        if not self.published.takes_join_point and len(self._outputs) == 1:
            return False
        return published.join_page is None or (timestamp - published.join_timestamp) & 0xFFFFFFFF >= _AUDIO_JOIN_MS

    def set_headers(self, headers: Headers) -> None:
        """Set the headers in force from now on."""
        if headers is not self._headers:
            self._headers = headers
            self._for_each(lambda output: output.set_headers(headers))
            if len(self._outputs) > 1:
                self._end_outputs()

    def content_changed(self, ordinary: bool) -> None:
        """Decide again what each player gets, unless every player can take the content, before the change and after."""
        if ordinary and len(self._outputs) == 1:
            return
        # To move thousands of players is dear, and a source could cause it with every message.
        self._revisions += 1
        if self._revisions <= _REVISIONS:
            self.revise()

    def _fail(self, output: Output, error: Exception) -> None:
        """End an output that has raised an exception: the others, and the source, continue."""
        self.counters.errors += 1
        log.error(
            "%s: internal error in the %s output: its %d readers are closed, other outputs continue",
            self.key,
            output.log.framing.name,
            len(output.fanout) + len(output.log.readers),
            exc_info=error,
        )
        index = self._outputs.index(output)
        self._set_outputs([each for each in self._outputs if each is not output])
        output.fanout.close_connections(CloseReason(CloseKind.INTERNAL, "internal error"))
        for reader in output.log.readers:
            reader.fail()
        output.close()
        if output is self.published:
            self.published = Output(self.key, self.options, output.framing, counters=self.counters, courier=self._courier)
            self.published.set_headers(self._headers)
            self.published.fanout.timeline = self.timeline
            self.begun_at = 0
            self._set_outputs([*self._outputs[:index], self.published, *self._outputs[index:]])

    # Outputs and their readers -----------------------------------------------------------------------------------------

    @property
    def outputs(self) -> list[Output]:
        """All outputs, the published one first."""
        return list(self._outputs)

    def output(self, wanted: Rewrite = AS_PUBLISHED, framing: Framing | None = None) -> Output:
        """Return the output for a subscriber.

        Args:
            wanted: What is to be rewritten for it, whatever the content. What the content does not require is left out.
            framing: The format; None: that of the published output.
        """
        self._want_source()
        output = self._find(self.content.narrow(wanted), framing or self.published.framing, keeps_join_point=True)
        output.keep_join_point(self.published.log)
        return output

    def _want_source(self) -> None:
        for lane in self._feeding:
            lane.source.set_wanted(True)
        self.ingest.viewers_came()

    @property
    def _feeding(self) -> list[Lane]:
        """The lanes whose messages readers get: that of the active source, and those of its copies."""
        active = self.ingest.active
        return [active, *(each for each in self.ingest.copies if each is not active)] if active is not None else []

    @property
    def _has_urgent_readers(self) -> bool:
        """Whether a player, or a reader that is not patient, needs each message at once."""
        published = self.published
        if len(self._outputs) > 1 or len(published.fanout) > 0:
            return True
        return any(reader not in self._patient for reader in published.log.readers)

    def _find(self, rewrite: Rewrite, framing: Framing, *, keeps_join_point: bool) -> Output:
        for output in self._outputs:
            if output.rewrite == rewrite and output.framing is framing and not output.over:
                return output
        output = Output(self.key, self.options, framing, rewrite, self.counters, self._courier)
        output.fanout.timeline = self.timeline
        output.keeps_join_point = keeps_join_point
        if keeps_join_point:
            output.replay(self.published.log)
        else:
            output.set_headers(self._headers)
            output.log.newest_timestamp = self.published.log.newest_timestamp
        self._set_outputs([*self._outputs, output])
        return output

    def read(self, reader: LogReader, framing: Framing = FLV, *, patient: bool = False) -> Log:
        """Let *reader* read the stream in batches, from the end of the returned log on.

        Args:
            reader: The reader.
            framing: The format.
            patient: Publishers may be read at intervals of ``lazy_read_ms``, as long as the stream has the published output
                only, and no other reader or player needs its messages at once.
        """
        if patient:
            self._patient.add(reader)
        else:
            self._want_source()
        found = self._find(AS_PUBLISHED, framing, keeps_join_point=False).log
        found.add_reader(reader)
        return found

    def stop_reading(self, reader: LogReader) -> None:
        """Unregister a reader; harmless if it is not registered. An output without readers is dropped."""
        self._patient.discard(reader)
        for output in self._outputs:
            if reader in output.log.readers:
                output.log.remove_reader(reader)
                if not output.used and not output.keeps_join_point:
                    self._drop(output)

    def _drop(self, output: Output) -> None:
        self._set_outputs([each for each in self._outputs if each is not output])
        output.close()

    def _drop_unused(self, now_s: float) -> None:
        for output in self._outputs[1:]:
            if len(output.fanout):
                output.unused_since = None
            elif output.ended:
                self._drop(output)
            elif output.unused_since is None:
                output.unused_since = now_s
            elif now_s - output.unused_since >= _UNUSED_S:
                if output.log.readers:
                    # Subscribers are gone; a recording needs no join point.
                    output.keeps_join_point = False
                    output.log.forget_join_point()
                else:
                    self._drop(output)

    def revise(self) -> None:
        """Decide again which output each player reads. They may be thousands: what holds for one holds for all like it."""
        decisions: Decisions = {}
        for player in list(self.players):
            player.revise(decisions)

    def _forget_join_points(self) -> None:
        for output in self._outputs:
            output.log.forget_join_point()

    # Upkeep ------------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether the stream may be removed: it has no source and no player, and waits for none."""
        return self.phase is StreamPhase.IDLE and not self.players and not self.ingest.lanes

    def sweep(self, now_s: float, write_timeout_s: float) -> None:
        """Check the source, end the stream when its grace is over, and check slow players. Called about every second."""
        feeding, read = self._feeding, self._has_urgent_readers
        for lane in self.ingest.lanes:
            source = lane.source
            young = now_s - source.started_at < _LAZY_AFTER_S
            source.set_wanted((lane in feeding and (read or young)) or source.stats.bitrate > _LAZY_LIMIT)
        self.check_sources(now_s)
        kept = self.available and not self.ingest.publishers and self.ended_at is not None
        if kept and now_s - (self.ended_at or 0.0) >= self.options.publish.publisher_grace_s:
            self.end(self._end_reason)
        if self._revisions > _REVISIONS:
            self.revise()
        self._revisions = 0
        self._end_outputs()
        self._drop_unused(now_s)
        for output in self.outputs:
            output.fanout.sweep(now_s, write_timeout_s)

    def check_sources(self, now_s: float) -> None:
        """Update the activity and rates of the publishers, and enforce their limits."""
        for lane in self.ingest.publishers:
            if lane.source.sweep(now_s, self.limits, self.key):
                self._count("publish_bitrate_exceeded")

    @property
    def limits(self) -> LimitsConfig:
        """The limits in force: until the stream ends, what its last publish was granted instead of the application's."""
        return self._grant.limited(self.options.limits)

    def lag_ms(self) -> int:
        """Return how far the last of all subscribers is behind the newest frame."""
        return max(output.fanout.lag_ms() for output in self._outputs)

    def held_bytes(self) -> int:
        """Return the memory of the stream's logs."""
        return sum(lane.held_bytes for lane in self.ingest.lanes) + sum(output.log.account.bytes for output in self._outputs)

    def forget_standbys(self) -> bool:
        """Free what is kept of sources that stand by, until their next keyframes; return whether there was something."""
        held = [lane for lane in self.ingest.lanes if lane.has_join_point]
        for lane in held:
            lane.forget()
        return bool(held)

    def reload(self, options: ApplicationConfig) -> None:
        """Apply new options."""
        changed = options.live != self.options.live
        self.options = options
        self.ingest.reload()
        if not options.live.gop_cache:
            self._forget_join_points()
        for output in self._outputs:
            output.reload(options)
        if changed:
            self.revise()

    def flush(self, limit_s: float) -> None:
        """Wait until subscribers that keep up were sent what the logs hold, at most *limit_s*."""
        deadline = time.monotonic() + limit_s
        for output in self.outputs:
            output.fanout.flush(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Stop delivering, and free all pages. Only while `idle`."""
        self._machine.to(StreamPhase.CLOSED)
        # `deliver` here would be a reference cycle, which keeps the pages until the garbage collector runs.
        self.append = self.published.log.append
        self.ingest.close()
        for output in self._outputs:
            output.close()
