"""Fan-out: sends the bytes of one log to all of its subscribers.

Subscribers that are in sync share one cursor, that of the group, and get new bytes in passes: one non-blocking send each. A
subscriber whose socket does not accept everything leaves the group with a cursor of its own, is served when its socket is
writable, and enters the group again when it is in sync. Replies enter a subscriber's bytes only at a message boundary.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from rtmpd.live.backpressure import Backpressure
from rtmpd.live.courier import SLICE_S, Courier
from rtmpd.live.subscriber import Progress, State, Subscriber, SubscriberTransport, send_each
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.util.event_loop import give_way
from rtmpd.util.speed import accelerated, completes
from rtmpd.util.text import connection_error

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    from rtmpd.config.model import ApplicationConfig, LiveConfig
    from rtmpd.live.framing import Headers, Notice
    from rtmpd.live.log import Log
    from rtmpd.live.pages import Page
    from rtmpd.media.timestamps import Timeline

log = logging.getLogger(__name__)

PENDING_LIMIT_BYTES = 256 << 10
"""Replies that wait for a subscriber. One that does not read them is closed above this."""

SMALL = 64
"""A group of at most so many members is served by the courier."""

_FLUSH_STEP_S = 0.005
_BLOCK = 64  # members between two looks at the clock
_BIG_BYTES = 16 << 10  # of a range of this size or more, an eighth: to copy it, and to encrypt it for some, takes longer
_GATHER_BYTES = 1 << 20  # a pass over several pages takes about this much at the most
_SHORTEST_REST_S = 0.0005
_AVERAGED_PASSES = 8
_AFTER_ERROR_S = 0.01


@dataclass(slots=True)
class DeliveryCounters:
    """What delivery counts, for all subscribers of a stream together, whatever output they read. The counters only grow.

    Attributes:
        bytes_sent: Accepted by subscribers' sockets.
        skips: Subscribers moved to a newer keyframe, since they were too far behind.
        dropped: Messages that slow subscribers were not sent: those skipped, and disposable frames.
        disposed: The disposable frames among these.
        disconnects: Subscribers disconnected by ``backpressure_policy``.
        stalled: Subscribers closed because their sockets accepted nothing.
        errors: Internal errors of delivery.
    """

    bytes_sent: int = 0
    skips: int = 0
    dropped: int = 0
    disposed: int = 0
    disconnects: int = 0
    stalled: int = 0
    errors: int = 0

    @property
    def drops(self) -> int:
        """How often a subscriber was too slow: skips, disconnects and stalls."""
        return self.skips + self.disconnects + self.stalled


@accelerated
class GroupState:
    """What an ordinary pass needs of a group, and its cursor, which it moves.

    Attributes:
        members: In the order of entering. One that has left stays listed until `compact`, at the latest when a pass begins.
        page, offset: The cursor; page is None without subscribers. During a pass it is already where the pass will end.
        passing: A pass is under way.
    """

    __slots__ = ("_left", "members", "offset", "page", "passing")

    members: list[Subscriber]
    page: Page | None
    offset: int
    passing: bool
    _left: int


class Group(GroupState):
    """The subscribers that are in sync, and their cursor. The hottest code of delivery.

    A pass moves the cursor on: it takes the log's bytes from there and hands them to each member with one non-blocking send. It
    gives way to the event loop every few milliseconds; members may leave and enter meanwhile.
    """

    __slots__ = ("_begun", "_range", "_served", "_visited")

    def __init__(self) -> None:
        self.members = []
        self.page = None
        self.offset = 0
        self.passing = False
        self._left = 0  # of those that are listed
        self._begun: tuple[Page, int] | None = None  # the cursor before the pass under way
        self._served = 0  # members that the pass under way has reached, of those that it visits
        self._visited = 0
        self._range = 0  # bytes that the pass hands to each

    def __len__(self) -> int:
        return len(self.members) - self._left

    @property
    def has_left(self) -> bool:
        """Whether a member that has left is listed still."""
        return self._left > 0

    @property
    def position(self) -> int:
        """The cursor as a position in the log."""
        return self.page.base + self.offset if self.page is not None else 0

    def is_at(self, page: Page | None, offset: int) -> bool:
        """Whether the group's cursor is there."""
        return page is self.page and offset == self.offset

    def move_to_end(self, stream_log: Log) -> None:
        """Move the cursor to the log's end: there is no member that would miss anything."""
        self.page, self.offset = stream_log.tail, stream_log.tail.end

    def enter(self, subscriber: Subscriber) -> None:
        """Add a subscriber that is in sync."""
        subscriber.sent -= self.position
        subscriber.state = State.GROUP
        subscriber.page = None
        if subscriber.listed:
            self._left -= 1
        else:
            # A pass under way visits only the members that it began with. One that fell behind in it is listed still.
            subscriber.listed = True
            self.members.append(subscriber)

    def _is_due(self, subscriber: Subscriber) -> bool:
        """Whether the pass under way has still to reach a member."""
        return self.passing and self._served <= self.members.index(subscriber) < self._visited

    def place_of(self, subscriber: Subscriber) -> tuple[Page | None, int]:
        """Return the cursor behind what a member was sent: the group's, or where the pass under way began."""
        return self._begun if self._begun is not None and self._is_due(subscriber) else (self.page, self.offset)

    def drop(self, subscriber: Subscriber, state: State) -> None:
        """Remove a member, which was sent all bytes up to the group's cursor, or to where the pass under way began."""
        subscriber.sent += self.position
        if self._is_due(subscriber):
            subscriber.sent -= self._range
        subscriber.state = state
        self._left += 1

    def end_pass(self) -> None:
        """End the pass under way."""
        self.passing = False
        self._begun = None

    def compact(self, *, every: bool = False) -> None:
        """Unlist members that have left, if they are many or *every* one is to be: thousands may leave one by one."""
        if self._left and not self.passing and (every or self._left * 4 >= len(self.members)):
            self._left = 0
            members = []
            for subscriber in self.members:
                if subscriber.state is State.GROUP:
                    members.append(subscriber)
                else:
                    subscriber.listed = False
            self.members = members

    def deliver(
        self,
        stream_log: Log,
        fall_behind: Callable[[Subscriber, Page, int], None],
        fail: Callable[[Subscriber, str], None],
    ) -> tuple[int, float]:
        """Bring all members to the log's end, or a good piece nearer. Leaves ``passing`` set, for the caller to end the pass.

        Args:
            stream_log: The log.
            fall_behind: Called with a member that did not accept everything, and the cursor behind what it accepted.
            fail: Called with a member whose connection is gone, and why.

        Returns:
            The number of bytes that sockets accepted, and the seconds of CPU time that the pass took.
        """
        # The thread's CPU time: on a busy machine wall-clock time would make passes look dear, and rests long.
        clock = time.thread_time
        begun = clock()
        spent = 0.0
        self.compact(every=True)
        count = len(self.members)
        data, start, page, offset = self._begin_pass(stream_log, count)
        size = len(data)
        short = 0
        block = _BLOCK if size < _BIG_BYTES else max(1, _BLOCK // 8)
        for index in range(0, count, block):
            short += self._send(index, min(index + block, count), data, start, page, offset, fall_behind, fail)
            self._served = index + block
            now = clock()
            if now - begun > SLICE_S and self._served < count:
                spent += now - begun
                give_way()
                begun = clock()
        return size * count - short, spent + clock() - begun

    def deliver_at_once(
        self,
        stream_log: Log,
        fall_behind: Callable[[Subscriber, Page, int], None],
        fail: Callable[[Subscriber, str], None],
        index: int = 0,
        sent: int | OSError | None = None,
    ) -> int:
        """Do a whole pass for a small group, without a look at the clock; the first arguments as `deliver`.

        Args:
            index: The extension has sent all to the members before this one.
            sent: How much this one's socket has accepted, or the error of its connection; None: nothing was sent to it.

        Returns:
            The number of bytes that sockets accepted.
        """
        if self._left:
            self.compact(every=True)
        members, tail = self.members, stream_log.tail
        page, offset, count = self.page, self.offset, len(members)
        if page is tail:
            # The usual case.
            end = tail.end
            data: memoryview | bytes = tail.view[offset:end]
            size = end - offset
            self.passing = True
            self._begun = page, offset
            self._served, self._visited, self._range = 0, count, size
            self.offset = end
        else:
            data, _, page, offset = self._begin_pass(stream_log, count)
            size = len(data)
        if sent is None:
            index, sent = send_each(members, index, count, data)
        short = 0
        if index < count:
            start = page.base + offset
            short = self._fell_short(members[index], sent, size, start, page, offset, fall_behind, fail)
            short += self._send(index + 1, count, data, start, page, offset, fall_behind, fail)
        self.passing = False
        self._begun = None
        return size * count - short

    def _begin_pass(self, stream_log: Log, count: int) -> tuple[memoryview | bytes, int, Page, int]:
        """Begin a pass to the first *count* members; return the bytes for them, their position, and their cursor."""
        page, offset = self.page, self.offset
        assert page is not None
        data, tail, end = stream_log.gather(page, offset, _GATHER_BYTES)
        self.passing = True
        self._begun = page, offset
        self._served, self._visited, self._range = 0, count, len(data)
        # Set before anything is sent: subscribers that are served alone meanwhile go as far as the group will have gone.
        self.page, self.offset = tail, end
        return data, page.base + offset, page, offset

    def _send(
        self,
        index: int,
        stop: int,
        data: memoryview | bytes,
        start: int,
        page: Page,
        offset: int,
        fall_behind: Callable[[Subscriber, Page, int], None],
        fail: Callable[[Subscriber, str], None],
    ) -> int:
        """Send to the members from *index* to *stop*; return the number of bytes that their sockets did not accept."""
        members = self.members
        size = len(data)
        short = 0
        while True:
            index, sent = send_each(members, index, stop, data)
            if index == stop:
                return short
            short += self._fell_short(members[index], sent, size, start, page, offset, fall_behind, fail)
            index += 1

    def _fell_short(
        self,
        subscriber: Subscriber,
        sent: int | OSError,
        size: int,
        start: int,
        page: Page,
        offset: int,
        fall_behind: Callable[[Subscriber, Page, int], None],
        fail: Callable[[Subscriber, str], None],
    ) -> int:
        """Handle a member whose socket did not accept all; return the number of bytes that it did not accept."""
        if isinstance(sent, OSError):
            if subscriber.state is State.GROUP:
                fail(subscriber, connection_error("send", sent))
            return size
        if subscriber.state is State.GROUP:
            subscriber.sent += start + sent
            subscriber.state = State.LAGGING
            self._left += 1
            fall_behind(subscriber, *_step(page, offset + sent))
        return size - sent


def _step(page: Page, offset: int) -> tuple[Page, int]:
    """Return an offset that may lie behind the end of a page as a cursor."""
    while offset > page.end:
        assert page.next is not None
        offset -= page.end
        page = page.next
    return page, offset


def _nothing(error: Exception) -> None:
    pass


class Pump:
    """The greenlet of a fan-out: makes a pass when there is something to deliver, then rests in proportion to the work.

    With few subscribers the rest is too short to be worth a timer, and each message is sent at once; with thousands, messages
    gather during the rest, and one send takes several.

    Args:
        options: For ``pacing``, ``pacing_share`` and ``pacing_limit_ms``.
        at_end: Returns whether there is nothing to deliver.
        work: Makes a pass; returns the seconds of CPU time that it took.
        recover: Called with its exception when a pass has failed.
    """

    def __init__(
        self,
        options: LiveConfig,
        at_end: Callable[[], bool],
        work: Callable[[], float],
        recover: Callable[[Exception], object],
    ) -> None:
        self.options = options
        self._at_end, self._work, self._recover = at_end, work, recover
        self._idle, self._wakeup = True, Event()
        self._average_s = 0.0  # what a pass takes
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def close(self) -> None:
        """Stop for good. Drops the references to the fan-out: the cycle would keep its pages until the collector runs."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
            self._greenlet = None
        self._idle = False
        self._at_end, self._work, self._recover = lambda: True, lambda: 0.0, _nothing

    def wake(self) -> None:
        """Take note that there may be something to deliver. Cheap."""
        if self._idle:
            self._idle = False
            self._wakeup.set()
            if self._greenlet is None:
                # Not before: a stream that players only wait for needs no greenlet.
                self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            # No local variable may hold a page here: it would keep all of the log behind it while there is nothing to do.
            if self._at_end():
                self._idle = True
                self._wakeup.clear()
                self._wakeup.wait()
                continue
            try:
                spent_s = self._work()
            except Exception as error:  # noqa: BLE001 - logged by _recover
                # An error must not end delivery for all subscribers.
                self._recover(error)
                gevent.sleep(_AFTER_ERROR_S)
                continue
            options = self.options
            # By the average: the rest after a pass with a keyframe, which takes long, would make the frames behind it late.
            self._average_s += (spent_s - self._average_s) / _AVERAGED_PASSES if self._average_s else spent_s
            rest_s = min(self._average_s * (1 / options.pacing_share - 1), options.pacing_limit_ms / 1000)
            if options.pacing and rest_s >= _SHORTEST_REST_S:
                gevent.sleep(rest_s)


@accelerated
class FanoutState:
    """What an ordinary pass of the courier needs of a fan-out.

    Attributes:
        log: The log that is delivered.
        options: The application's, for live streams.
        counters: Counts; the fan-outs of one stream share it.
    """

    __slots__ = ("_after_pass", "_courier", "_group", "_lagging", "_noted", "_waiting", "counters", "log", "options")

    log: Log
    options: LiveConfig
    counters: DeliveryCounters
    _courier: Courier
    _noted: bool  # by the courier
    _group: Group
    _lagging: set[Subscriber]
    _waiting: set[Subscriber]
    _after_pass: list[tuple[Subscriber, Callable[[Fanout, Subscriber], None]]]


class Fanout(FanoutState):
    """Delivers one log.

    The courier makes the passes of a small group whose members are all in sync, together with those of other streams. All else
    is done by a greenlet of its own, the pump.

    Args:
        stream_log: The log.
        options: The application's options.
        name: The stream's key, for the log.
        counters: Counts; the fan-outs of one stream share it.
        courier: Delivers to small groups; None: one of its own.

    Attributes:
        wake: Lets the pump make a pass. Cheap, and only needed while ``active``.
        active: Whether there are subscribers.
        timeline: The stream's: shows whether its source has sent a frame. None: headers are only sent with a frame.
    """

    def __init__(
        self,
        stream_log: Log,
        options: ApplicationConfig,
        name: str,
        counters: DeliveryCounters | None = None,
        courier: Courier | None = None,
    ) -> None:
        self.log = stream_log
        self._name = name
        self._courier = courier or Courier()
        self._noted = False
        self.options = options.live
        self.backpressure = Backpressure(stream_log, options.backpressure)
        self.counters = counters or DeliveryCounters()
        self.timeline: Timeline | None = None
        self._group = Group()
        self._lagging = set()
        self._waiting = set()
        self._paused: set[Subscriber] = set()
        self._headers_sent = stream_log.headers  # those that waiting subscribers were last sent
        self._joins_handled = 0  # the join point at which waiting subscribers were last started
        self._after_pass = []
        self._pump = Pump(options.live, self._at_end, self._pass, self._recover)
        self.wake = self._pump.wake

    def reload(self, options: ApplicationConfig) -> None:
        """Apply new options."""
        self.options = self._pump.options = options.live
        self.backpressure.reload(options.backpressure)

    # Subscribers come and go -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._group) + len(self._lagging) + len(self._waiting) + len(self._paused)

    @property
    def active(self) -> bool:
        """Whether there are subscribers."""
        return self.log.on_growth is not None

    @property
    def wants_keyframe(self) -> bool:
        """Whether a subscriber waits for a join point, or should be moved to one."""
        return bool(self._waiting) or self.backpressure.wants_keyframe

    @property
    def lagging(self) -> Set[Subscriber]:
        """The subscribers with a cursor of their own."""
        return self._lagging

    @property
    def has_cursors(self) -> bool:
        """Whether a subscriber has been given media: those that only wait or pause are on no timeline yet."""
        return bool(len(self._group) or self._lagging)

    def subscribers(self) -> list[Subscriber]:
        """Return all subscribers."""
        members = [each for each in self._group.members if each.state is State.GROUP]
        return [*members, *self._lagging, *self._waiting, *self._paused]

    def join(self, subscriber: Subscriber, not_before: int | None = None) -> None:
        """Add a subscriber: at the join point, if there is one at that position or behind it; else it waits for the next."""
        self._add(subscriber)
        self._start(subscriber, not_before)

    def join_at_end(self, subscriber: Subscriber) -> None:
        """Add a subscriber that was sent, from another log of the stream, all that this one holds."""
        self._add(subscriber)
        self._start_at_end(subscriber)
        self._serve(subscriber)

    def _add(self, subscriber: Subscriber) -> None:
        subscriber.progress_at = time.monotonic()
        if not self.active:
            self._group.move_to_end(self.log)
            self.log.on_growth = self._note_growth
            if self.log.position:
                self.wake()

    def _start(self, subscriber: Subscriber, not_before: int | None = None) -> None:
        stream_log = self.log
        # The position of a join point that was prepended may be negative.
        too_early = not_before is not None and stream_log.join_position < not_before
        if stream_log.join_page is None or not self.options.gop_cache or too_early:
            self._set_waiting(subscriber, time.monotonic())
            self._send_headers(subscriber)
            return
        self._move_to_join_point(subscriber)
        self._serve(subscriber)

    def _set_waiting(self, subscriber: Subscriber, now_s: float) -> None:
        """Let a subscriber wait for the next join point."""
        subscriber.state = State.WAITING
        subscriber.page = None
        subscriber.waiting_since = now_s
        subscriber.joins_seen = self.log.joins
        self._waiting.add(subscriber)

    @property
    def _before_frames(self) -> bool:
        """Whether the source may have sent headers, but no frame so far."""
        return self.timeline is not None and not self.timeline.running

    def _send_headers(self, subscriber: Subscriber) -> None:
        """Send the headers in force to a subscriber that waits, if the source has sent headers but no frame so far.

        If its socket is full, it gets them with the first frame.
        """
        stream_log = self.log
        early = self._before_frames and subscriber.framing.sends_early
        if early and stream_log.headers.items and not subscriber.blocked:
            self._queue_headers(subscriber, stream_log.headers, max(stream_log.newest_timestamp, 0), only_new=True)
        self._serve(subscriber)

    def _send_changed_headers(self) -> float:
        """Send changed headers to all that wait; return the seconds of CPU time that it took. Once per pass at most."""
        self._headers_sent = headers = self.log.headers
        if not self._before_frames:
            return 0.0
        begun = time.thread_time()
        spent = 0.0
        for subscriber in list(self._waiting):
            if subscriber.headers is not headers and subscriber.state is State.WAITING and headers is self.log.headers:
                self._send_headers(subscriber)
                if time.thread_time() - begun > SLICE_S:
                    spent += time.thread_time() - begun
                    give_way()
                    begun = time.thread_time()
        return spent + time.thread_time() - begun

    def _move_to_join_point(self, subscriber: Subscriber) -> None:
        stream_log = self.log
        assert stream_log.join_page is not None
        headers, early = stream_log.join_headers, subscriber.early_headers
        if not self._queue_headers(subscriber, headers, stream_log.join_timestamp, only_new=early):
            return
        self.counters.dropped += subscriber.begin_at(stream_log.join_page, stream_log.join_offset)
        self.backpressure.begins(subscriber)
        self._set_lagging(subscriber, stream_log.join_page, stream_log.join_offset)
        # The group may not have come as far yet: a pass is due.
        self.wake()

    def leave(self, subscriber: Subscriber) -> bytes:
        """Remove a subscriber; return what must be sent on its connection before anything else.

        That is the rest of a half-sent message, and replies.
        """
        rest = b"" if subscriber.state is State.REMOVED else self._detach(subscriber)
        self._remove(subscriber)
        if not self.options.gop_cache and not self._waiting:
            # A keyframe may have been marked for this one.
            self.log.forget_join_point()
        return rest

    def place_of(self, subscriber: Subscriber) -> tuple[Page | None, int]:
        """Return where in the log a subscriber is, behind what `leave` would return; no page: it has no place."""
        if subscriber.state is State.GROUP:
            return self._group.place_of(subscriber)
        if subscriber.state is State.LAGGING:
            subscriber.finish_message()
        return subscriber.page, subscriber.offset

    def _remove(self, subscriber: Subscriber) -> None:
        subscriber.remove()
        self._compact()

    def _detach(self, subscriber: Subscriber) -> bytes:
        """Take a subscriber out of the set that it is in; return what is still to be sent to it."""
        subscriber.leave_at(*self.place_of(subscriber))
        if subscriber.state is State.GROUP:
            self._group.drop(subscriber, State.REMOVED)
        self._lagging.discard(subscriber)
        self._waiting.discard(subscriber)
        self._paused.discard(subscriber)
        if subscriber.blocked:
            subscriber.blocked = False
            subscriber.transport.unwatch_writable()
        subscriber.page = None
        rest = bytes(subscriber.pending)
        subscriber.pending.clear()
        return rest

    def close(self) -> None:
        """Stop delivering: the log is gone."""
        self._pump.close()
        self._courier.remove(self)
        self._group.page = None
        self.log.on_growth = None

    def close_connections(self, reason: CloseReason) -> None:
        """Close the connections of all subscribers."""
        for subscriber in self.subscribers():
            self._fail(subscriber, reason)

    # What sessions ask for ---------------------------------------------------------------------------------------------

    def write(self, subscriber: Subscriber, data: bytes) -> None:
        """Send a reply to a subscriber, at the next message boundary of its bytes."""
        if self._group.passing and subscriber.state is State.GROUP:
            # Until the pass is over it is not known what the subscriber was sent.
            subscriber.add_reply(data)
            self._after_pass.append((subscriber, lambda fanout, each: fanout._write(each, b"")))
        else:
            self._write(subscriber, data)

    def _write(self, subscriber: Subscriber, data: bytes) -> None:
        state = subscriber.state
        if state is State.REMOVED:
            return
        if state is State.LAGGING:
            subscriber.finish_message()
        if subscriber.unread_replies > PENDING_LIMIT_BYTES:
            text = f"it does not read the replies to its commands: more than {PENDING_LIMIT_BYTES} bytes wait for it"
            self._fail(subscriber, CloseReason(CloseKind.STALLED, text))
            return
        subscriber.add_reply(data)
        if state is State.GROUP:
            self._leave_group(subscriber)
        self._serve(subscriber)

    def pause(self, subscriber: Subscriber) -> None:
        """Send no media until `resume`."""
        self.when_between_passes(subscriber, Fanout._pause)

    def _pause(self, subscriber: Subscriber) -> None:
        if subscriber.state in (State.REMOVED, State.PAUSED):
            return
        if subscriber.state is State.GROUP:
            subscriber.progress_at = time.monotonic()
        rest = self._detach(subscriber)
        # Messages that pass meanwhile are not counted as dropped.
        subscriber.left_at = None
        subscriber.state = State.PAUSED
        self._paused.add(subscriber)
        self._compact()
        subscriber.pending += rest
        self._serve(subscriber)

    def resume(self, subscriber: Subscriber) -> None:
        """Send media again, from the newest keyframe."""
        self.when_between_passes(subscriber, Fanout._resume)

    def _resume(self, subscriber: Subscriber) -> None:
        if subscriber.state is State.PAUSED:
            self._paused.discard(subscriber)
            self._start(subscriber)

    def reframe(self, subscriber: Subscriber, change: Callable[[Subscriber], None]) -> None:
        """Change how messages are framed for a subscriber, from a message boundary on.

        Args:
            change: Changes the subscriber's framing.
        """
        self.when_between_passes(subscriber, lambda fanout, each: fanout._reframe(each, change))

    def _reframe(self, subscriber: Subscriber, change: Callable[[Subscriber], None]) -> None:
        change(subscriber)
        if subscriber.state is State.GROUP and not subscriber.framing.shared:
            self._leave_group(subscriber)
        if subscriber.state is State.LAGGING:
            subscriber.finish_message()
            self._serve(subscriber)

    def change_transport(self, subscriber: Subscriber, transport: SubscriberTransport) -> bytes:
        """Let a subscriber write to another transport; return what must be sent on the old one before anything else.

        Hand these bytes over before the event loop runs again.
        """
        if subscriber.state is State.LAGGING:
            subscriber.finish_message()
        if subscriber.blocked:
            subscriber.transport.unwatch_writable()
            subscriber.blocked = False
        rest = bytes(subscriber.pending)
        subscriber.pending.clear()
        subscriber.transport, subscriber.send = transport, transport.try_send
        gevent.get_hub().loop.run_callback(self._serve, subscriber)
        return rest

    def when_between_passes(self, subscriber: Subscriber, action: Callable[[Fanout, Subscriber], None]) -> None:
        """Run *action* now, or after the pass that is under way: until then it is not known which members were served."""
        if self._group.passing:
            self._after_pass.append((subscriber, action))
        else:
            action(self, subscriber)

    def has_all(self, subscriber: Subscriber) -> bool:
        """Return whether a subscriber was sent all that there is for it."""
        if subscriber.pending:
            return False
        tail = self.log.tail
        if subscriber.state is State.GROUP:
            return not self._group.passing and self._group.is_at(tail, tail.end)
        return subscriber.page is None or (subscriber.page is tail and subscriber.offset == tail.end)

    def take_requests(self, subscriber: Subscriber) -> list[Callable[[Fanout, Subscriber], None]]:
        """Return what was requested for a subscriber during the pass under way, and forget it: another fan-out will do it."""
        taken = [action for each, action in self._after_pass if each is subscriber]
        self._after_pass = [one for one in self._after_pass if one[0] is not subscriber]
        return taken

    def notify(self, notice: Notice) -> None:
        """Send a notice: in the log, so that it comes behind the last frame; directly to subscribers without a place there."""
        if not self.active:
            return
        for data in self.log.framing.notices(notice):
            self.log.append_notice(data)
        for subscriber in [*self._waiting, *self._paused]:
            data = subscriber.framing.notice(notice)
            if data:
                self._write(subscriber, data)

    # Delivery ----------------------------------------------------------------------------------------------------------

    def flush(self, limit_s: float = 1.0) -> bool:
        """Wait until the group was sent what the log holds, at most *limit_s*; return whether it was."""
        self.wake()
        with gevent.Timeout(limit_s, False):  # type: ignore[arg-type]
            while self._group.passing or not self._at_end():
                gevent.sleep(_FLUSH_STEP_S)
            return True
        return False

    def _at_end(self) -> bool:
        """Whether there is nothing to deliver."""
        if self._group.page is None:
            return True
        if not self._group.is_at(self.log.tail, self.log.tail.end):
            return False
        return not self._waiting or self.log.join_page is None or self._joins_handled == self.log.joins

    def start_waiting(self) -> None:
        """Start the subscribers that wait for a join point, if there is a new one."""
        if self._waiting and self.log.join_page is not None:
            self._joins_handled = self.log.joins
            for subscriber in list(self._waiting):
                if subscriber.joins_seen != self.log.joins:
                    self._waiting.discard(subscriber)
                    self._move_to_join_point(subscriber)

    def _pass(self) -> float:
        """Send each subscriber what the log holds; return the seconds of CPU time that it took."""
        stream_log, group = self.log, self._group
        if self.backpressure.due:
            self.sweep(time.monotonic())
        spent = 0.0
        if len(group) and not group.is_at(stream_log.tail, stream_log.tail.end):
            sent, spent = group.deliver(stream_log, self._fall_behind, self._fail_send)
            self.counters.bytes_sent += sent
            self._finish_pass()
        elif group.page is not None:
            group.move_to_end(stream_log)
        if self._waiting and stream_log.headers is not self._headers_sent:
            spent += self._send_changed_headers()
        self.start_waiting()
        if not self.options.gop_cache:
            # The subscribers that it was marked for have started there.
            stream_log.forget_join_point()
        begun = time.thread_time()
        for subscriber in list(self._lagging):
            if not subscriber.blocked and subscriber.state is State.LAGGING:
                self._serve(subscriber)
                if time.thread_time() - begun > SLICE_S:
                    spent += time.thread_time() - begun
                    give_way()
                    begun = time.thread_time()
        return spent + time.thread_time() - begun

    @completes(FanoutState)
    def _note_growth(self) -> None:
        """Take note that the log has grown. Called for each message."""
        if not self._noted:
            self._noted = True
            self._courier.add(self)

    @completes(FanoutState)
    def deliver_if_small(self, index: int = 0, sent: int | OSError | None = None) -> None:
        """Bring the group to the log's end at once, if it is small and nothing else is to be done; else wake the pump.

        For the courier. Does not wait or raise.

        Args:
            index, sent: As `Group.deliver_at_once`: how far the extension has come.
        """
        self._noted = False
        group, stream_log = self._group, self.log
        page, tail = group.page, stream_log.tail
        if page is None:
            return
        far = page is not tail and tail.base - page.base > _GATHER_BYTES
        if self._waiting or self._lagging or group.passing or far or len(group.members) > SMALL or not self.options.gop_cache:
            self.wake()
            return
        if page is tail and group.offset == tail.end:
            return
        try:
            # No member lags, so that there is nothing to check.
            self.counters.bytes_sent += group.deliver_at_once(stream_log, self._fall_behind, self._fail_send, index, sent)
            if group.has_left:
                self._compact()
            if self._after_pass:
                self._do_requests()
        except Exception as error:  # noqa: BLE001 - logged by _recover
            # An error must not end delivery for other streams.
            self._recover(error)

    @property
    def paces(self) -> bool:
        """Whether delivery may rest."""
        return self.options.pacing

    def _finish_pass(self) -> None:
        """End a pass: unlist members that have left the group, then do what was requested meanwhile."""
        self._group.end_pass()
        self._compact()
        if len(self._group.members) <= SMALL and self.active:
            self.log.on_growth = self._note_growth
        self._do_requests()

    def _do_requests(self) -> None:
        while self._after_pass:
            subscriber, action = self._after_pass.pop(0)
            try:
                action(self, subscriber)
            except Exception as error:  # noqa: BLE001 - logged by _fail_internally
                self._fail_internally(subscriber, error)

    def _recover(self, error: Exception) -> None:
        """End a pass that an error has cut short."""
        log.error("%s: internal error in the fan-out: one pass to its players was cut short", self._name, exc_info=error)
        self.counters.errors += 1
        self._finish_pass()

    def _compact(self) -> None:
        """Unlist members that have left the group; stop when there are no subscribers. Not during a pass."""
        if not self._group.passing:
            self._group.compact()
            if len(self) == 0:
                self.log.on_growth = None
                self._group.page = None

    def _fall_behind(self, subscriber: Subscriber, page: Page, offset: int) -> None:
        """Give a member that did not accept everything a cursor of its own."""
        subscriber.progress_at = time.monotonic()
        held = bytes(subscriber.pending)
        subscriber.pending.clear()
        self._set_lagging(subscriber, page, offset)
        if held:
            # Replies that came in the middle of this pass: they wait for the end of the message.
            subscriber.finish_message()
            subscriber.pending += held
        self._block(subscriber)

    def _leave_group(self, subscriber: Subscriber) -> None:
        """Give a member a cursor of its own where the group is. Not during a pass."""
        assert self._group.page
        subscriber.progress_at = time.monotonic()
        self._group.drop(subscriber, State.LAGGING)
        self._set_lagging(subscriber, self._group.page, self._group.offset)
        self._compact()

    def _set_lagging(self, subscriber: Subscriber, page: Page, offset: int) -> None:
        subscriber.state, subscriber.page, subscriber.offset = State.LAGGING, page, offset
        self._lagging.add(subscriber)

    def _block(self, subscriber: Subscriber) -> None:
        """Wait until the socket accepts data again."""
        if not subscriber.blocked:
            subscriber.blocked = True
            subscriber.transport.watch_writable(lambda: self._unblock(subscriber))

    def _unblock(self, subscriber: Subscriber) -> None:
        subscriber.transport.unwatch_writable()
        subscriber.blocked = False
        self._serve(subscriber)

    def _serve(self, subscriber: Subscriber) -> None:
        """Send a subscriber what it was not sent yet, up to the group's cursor, as far as its socket accepts it.

        A subscriber that is not behind the group, since it has joined at a keyframe that the group has not reached yet, is
        served up to the log's end: it must not wait for its first picture while the group rests.
        """
        if subscriber.blocked:
            return
        before, disposed = subscriber.sent, subscriber.disposed
        page, offset = self._group.page, self._group.offset
        if subscriber.page is not None and subscriber.page.base + subscriber.offset >= self._group.position:
            page, offset = self.log.tail, self.log.tail.end
        try:
            progress = subscriber.advance(self.log, page, offset)
        except OSError as error:
            self._fail_send(subscriber, connection_error("send", error))
            return
        except Exception as error:  # noqa: BLE001 - logged by _fail_internally
            # An error of the framing: it would come again in each pass, and cut that short for all others.
            self._fail_internally(subscriber, error)
            return
        finally:
            self.counters.bytes_sent += subscriber.sent - before
            self.counters.disposed += subscriber.disposed - disposed
            self.counters.dropped += subscriber.disposed - disposed
        if subscriber.sent != before:
            subscriber.progress_at = time.monotonic()
        if subscriber.disposed != disposed:
            self.backpressure.thinned(subscriber, time.monotonic())
        if progress is Progress.BLOCKED:
            self._block(subscriber)
        elif progress is Progress.IN_SYNC and self._group.is_at(page, offset):
            self._lagging.discard(subscriber)
            self.backpressure.in_sync(subscriber)
            self._group.enter(subscriber)
            if len(self._group.members) > SMALL:
                # Until the group is small again.
                self.log.on_growth = self.wake

    def sent_bytes(self, subscriber: Subscriber) -> int:
        """Return the number of bytes that a subscriber's socket has accepted."""
        return subscriber.sent + (self._group.position if subscriber.state is State.GROUP else 0)

    def _fail_send(self, subscriber: Subscriber, text: str) -> None:
        self._fail(subscriber, CloseReason(CloseKind.PEER_LEFT, text))

    def _queue_headers(self, subscriber: Subscriber, headers: Headers, timestamp: int, *, only_new: bool = False) -> bool:
        """Make headers pending; return whether the subscriber is still there: its framing may have an error."""
        try:
            (subscriber.queue_new_headers if only_new else subscriber.queue_headers)(headers, timestamp)
        except Exception as error:  # noqa: BLE001 - logged by _fail_internally
            self._fail_internally(subscriber, error)
            return False
        return True

    def _fail_internally(self, subscriber: Subscriber, error: Exception) -> None:
        """Close the connection of a subscriber whose framing has raised an exception."""
        self.counters.errors += 1
        log.error("internal error while %s was served: its connection is closed", subscriber.label, exc_info=error)
        self._fail(subscriber, CloseReason(CloseKind.INTERNAL, "internal error"))

    def _fail(self, subscriber: Subscriber, reason: CloseReason) -> None:
        """Remove a subscriber and close its connection; its session ends when it notices that."""
        self._detach(subscriber)
        self._remove(subscriber)
        subscriber.transport.close(reason)

    # Back-pressure -----------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float, write_timeout_s: float = 0.0) -> None:
        """Check subscribers that lag, stall or wait: called about every second, and by a pass when the log has grown.

        Args:
            now_s: The monotonic clock.
            write_timeout_s: A subscriber whose socket has accepted nothing for this long is closed; 0: that is not checked.
        """
        self.backpressure.check(self, now_s)
        if write_timeout_s:
            apart = (self._lagging, self._waiting, self._paused)
            for subscriber in [each for those in apart for each in those if each.blocked]:
                limit_s = subscriber.write_timeout_s or write_timeout_s
                if now_s - subscriber.progress_at > limit_s:
                    self.counters.stalled += 1
                    self._fail(subscriber, CloseReason(CloseKind.STALLED, f"it took nothing for {limit_s:g} s"))
        if self._waiting and self._group.page is not None and self.log.join_page is None:
            for subscriber in list(self._waiting):
                self._check_waiting(subscriber, now_s)

    def skip(self, subscriber: Subscriber) -> None:
        """Move a subscriber to the join point."""
        self._count_skip(subscriber)
        self._move_to_join_point(subscriber)
        self._serve(subscriber)

    def skip_and_wait(self, subscriber: Subscriber, now_s: float) -> None:
        """Take a subscriber's cursor away until the next join point."""
        self._count_skip(subscriber)
        self._lagging.discard(subscriber)
        self._set_waiting(subscriber, now_s)

    def disconnect(self, subscriber: Subscriber, last: bytes, text: str) -> None:
        """Send a subscriber its last message, if its socket accepts it now, and close its connection."""
        self.counters.disconnects += 1
        last = self._detach(subscriber) + last
        # What does not fit is lost: nothing waits for a subscriber that is too slow.
        with suppress(OSError):
            sent = subscriber.transport.try_send(last)
            subscriber.sent += sent
            self.counters.bytes_sent += sent
        self._remove(subscriber)
        subscriber.transport.close(CloseReason(CloseKind.EXPELLED, text))

    def lag_ms(self) -> int:
        """Return how far the last of the subscribers is behind the newest frame. Looks at all that lag: not for hot paths."""
        places: tuple[Group | Subscriber, ...] = (self._group, *self._lagging)
        last = min((each for each in places if each.page is not None), key=lambda each: each.position, default=None)
        return self.log.lag_ms(last.page, last.offset) if last is not None and last.page is not None else 0

    def _count_skip(self, subscriber: Subscriber) -> None:
        subscriber.leave_at(*self.place_of(subscriber))
        subscriber.skipped = True
        subscriber.skips += 1
        self.counters.skips += 1

    def _check_waiting(self, subscriber: Subscriber, now_s: float) -> None:
        """Start a subscriber that has waited long enough for a keyframe without one: some encoders send none."""
        early = now_s - subscriber.waiting_since < self.options.keyframe_wait_s
        if early or self.log.newest_timestamp < 0 or subscriber.blocked:
            return
        self._waiting.discard(subscriber)
        self._start_at_end(subscriber)
        self.wake()

    def _start_at_end(self, subscriber: Subscriber) -> None:
        stream_log, early = self.log, subscriber.early_headers
        if not self._queue_headers(subscriber, stream_log.headers, max(stream_log.newest_timestamp, 0), only_new=early):
            return
        self.counters.dropped += subscriber.begin_at(stream_log.tail, stream_log.tail.end)
        self._set_lagging(subscriber, stream_log.tail, stream_log.tail.end)
