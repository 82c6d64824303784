"""Fan-out: hands the bytes of one wire log to all of a stream's players.

Players that are level share one cursor, the group's (rtmpd.live.group), and get new bytes in passes. Who can't take all
leaves the group with a cursor of its own, is served when its socket is writable, and comes back when it is level again.
rtmpd.live.pump says when there is a pass, rtmpd.live.backpressure what becomes of players that fall too far behind. Replies
enter a player's bytes only at a message boundary. May import gevent; makes no sockets and knows no session.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import gevent

from rtmpd.live.backpressure import Backpressure
from rtmpd.live.group import SLICE_S, Group
from rtmpd.live.pump import Pump
from rtmpd.live.subscriber import Progress, State, Subscriber, SubscriberTransport
from rtmpd.live.tally import Tally
from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    from rtmpd.config.model import ApplicationConfig
    from rtmpd.live.pages import Page
    from rtmpd.live.wirelog import WireLog

__all__ = ["PENDING_LIMIT_BYTES", "Fanout"]

PENDING_LIMIT_BYTES = 256 << 10
"""Replies that wait for a player who does not read. One who asks for more than this is cut off."""

_FLUSH_STEP_S = 0.005


class Fanout:
    """Delivers one wire log.

    Args:
        options, name: The application's options, and the stream's key for the log.

    Attributes:
        tally: Counts. The fan-outs of one stream share it.
        wake: Says that the log has grown. Cheap, and only needed while ``active``.
        active: Whether there is anyone to wake the fan-out for.
    """

    def __init__(self, wirelog: WireLog, options: ApplicationConfig, name: str) -> None:
        self.wirelog = wirelog
        self.options = options.live
        self.backpressure = Backpressure(wirelog, options.backpressure)
        self.name = name
        self.tally = Tally()
        self._group = Group()
        self._alone: set[Subscriber] = set()
        self._waiting: set[Subscriber] = set()
        self._paused: set[Subscriber] = set()
        self._joins_handled = 0  # the join point at which those who waited were last let in
        self._at_rest: list[tuple[Subscriber, Callable[[Fanout, Subscriber], None]]] = []
        self._pump = Pump(name, options.live, self._at_end, self._pass, self._rest)
        self.wake = self._pump.wake
        self.active = False

    def reload(self, options: ApplicationConfig) -> None:
        """Go on under other options."""
        self.options = self._pump.options = options.live
        self.backpressure.reload(options.backpressure)

    # Players come and go -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._group) + len(self._alone) + len(self._waiting) + len(self._paused)

    @property
    def anyone_waits(self) -> bool:
        """Whether a subscriber waits for a join point, or should be moved to one."""
        return bool(self._waiting) or self.backpressure.wants_keyframe

    @property
    def alone(self) -> Set[Subscriber]:
        """Those with a cursor of their own."""
        return self._alone

    @property
    def has_cursors(self) -> bool:
        """Whether any subscriber has been given media: those who only wait or pause don't mind where a timeline begins."""
        return bool(len(self._group) or self._alone)

    def join(self, subscriber: Subscriber, not_before: int = 0) -> None:
        """Let a subscriber in: from the join point, if there is one at that position or behind; else it waits for the next."""
        self._welcome(subscriber)
        self._start(subscriber, not_before)

    def join_at_end(self, subscriber: Subscriber) -> None:
        """Let a subscriber in that has had, from another log of the stream, all that this one holds."""
        self._welcome(subscriber)
        self._start_at_end(subscriber)
        self._serve(subscriber)

    def _welcome(self, subscriber: Subscriber) -> None:
        self._pump.start()
        subscriber.progress_at = time.monotonic()
        if not self.active:
            self._group.move_to_end(self.wirelog)
            self.active = True

    def _start(self, subscriber: Subscriber, not_before: int = 0) -> None:
        wirelog = self.wirelog
        if wirelog.join_page is None or not self.options.gop_cache or wirelog.join_position < not_before:
            self._set_waiting(subscriber, time.monotonic())
        else:
            self._move_to_join_point(subscriber)
        self._serve(subscriber)

    def _set_waiting(self, subscriber: Subscriber, now_s: float) -> None:
        """Let a subscriber wait for the next join point."""
        subscriber.state = State.WAITING
        subscriber.page = None
        subscriber.waiting_since = now_s
        subscriber.joins_seen = self.wirelog.joins
        self._waiting.add(subscriber)

    def _move_to_join_point(self, subscriber: Subscriber) -> None:
        wirelog = self.wirelog
        subscriber.queue_headers(wirelog.join_headers, wirelog.join_timestamp, wirelog.chunk_size)
        assert wirelog.join_page is not None
        self.tally.dropped += subscriber.begin_at(wirelog.join_page, wirelog.join_offset)
        self.backpressure.begins(subscriber)
        self._set_alone(subscriber, wirelog.join_page, wirelog.join_offset)
        # The group may not have come as far yet: it is due a pass.
        self.wake()

    def leave(self, subscriber: Subscriber) -> bytes:
        """Take a subscriber out; return what is owed before anything else may be sent on its connection.

        That is the rest of a half-sent message, and replies.
        """
        owed = b"" if subscriber.state is State.GONE else self._detach(subscriber)
        self._forget(subscriber)
        if not self.options.gop_cache and not self._waiting:
            # A keyframe may have been marked for this one.
            self.wirelog.forget_join_point()
        return owed

    def place_of(self, subscriber: Subscriber) -> tuple[Page | None, int]:
        """Return where in the log a subscriber is, behind what `leave` would say is owed; no page: it has no place."""
        if subscriber.state is State.GROUP:
            return self._group.place_of(subscriber)
        if subscriber.state is State.ALONE:
            subscriber.finish_message()
        return subscriber.page, subscriber.offset

    def _forget(self, subscriber: Subscriber) -> None:
        subscriber.be_gone()
        self._compact()

    def _detach(self, subscriber: Subscriber) -> bytes:
        """Take a subscriber out of whatever it is in; return what is owed to it."""
        subscriber.leave_at(*self.place_of(subscriber))
        if subscriber.state is State.GROUP:
            self._group.drop(subscriber, State.GONE)
        self._alone.discard(subscriber)
        self._waiting.discard(subscriber)
        self._paused.discard(subscriber)
        if subscriber.blocked:
            subscriber.blocked = False
            subscriber.transport.unwatch_writable()
        subscriber.page = None
        owed = bytes(subscriber.pending)
        subscriber.pending.clear()
        return owed

    def close(self) -> None:
        """Stop delivering; the stream is gone."""
        self._pump.close()
        self._group.page = None
        self.active = False

    # What sessions ask for ---------------------------------------------------------------------------------------------

    def write(self, subscriber: Subscriber, data: bytes) -> None:
        """Send a reply to a player, at the next message boundary of its bytes."""
        if self._group.passing and subscriber.state is State.GROUP:
            # Until the pass is over nobody knows what it has had.
            subscriber.pending += data
            self._at_rest.append((subscriber, lambda fanout, who: fanout._write(who, b"")))
        else:
            self._write(subscriber, data)

    def _write(self, subscriber: Subscriber, data: bytes) -> None:
        state = subscriber.state
        if state is State.GONE:
            return
        if state is State.ALONE:
            subscriber.finish_message()
        if len(subscriber.pending) > PENDING_LIMIT_BYTES + self.backpressure.options.lag_limit_bytes:
            self._fail(subscriber, "it does not read the replies that it asks for")
            return
        subscriber.pending += data
        if state is State.GROUP:
            self._leave_group(subscriber)
        self._serve(subscriber)

    def pause(self, subscriber: Subscriber) -> None:
        """Send no media until `resume`."""
        self.when_at_rest(subscriber, Fanout._pause)

    def _pause(self, subscriber: Subscriber) -> None:
        if subscriber.state in (State.GONE, State.PAUSED):
            return
        if subscriber.state is State.GROUP:
            subscriber.progress_at = time.monotonic()
        owed = self._detach(subscriber)
        # What goes by meanwhile is not dropped.
        subscriber.left_at = None
        subscriber.state = State.PAUSED
        self._paused.add(subscriber)
        self._compact()
        subscriber.pending += owed
        self._serve(subscriber)

    def resume(self, subscriber: Subscriber) -> None:
        """Send media again, from the newest keyframe."""
        self.when_at_rest(subscriber, Fanout._resume)

    def _resume(self, subscriber: Subscriber) -> None:
        if subscriber.state is State.PAUSED:
            self._paused.discard(subscriber)
            self._start(subscriber)

    def receive(self, subscriber: Subscriber, *, audio: bool | None = None, video: bool | None = None) -> None:
        """Switch audio or video on or off; video comes back at a keyframe."""
        self.when_at_rest(subscriber, lambda fanout, who: fanout._receive(who, audio, video))

    def _receive(self, subscriber: Subscriber, audio: bool | None, video: bool | None) -> None:
        if audio is not None:
            subscriber.receive_audio = audio
        if video is not None and video != subscriber.receive_video:
            subscriber.receive_video = video
            subscriber.video_gate = video
            if video:
                # Headers may have changed while video was off.
                subscriber.headers_version = -1
        if subscriber.state is State.GROUP and subscriber.walks:
            self._leave_group(subscriber)
        if subscriber.state is State.ALONE:
            subscriber.finish_message()
            self._serve(subscriber)

    def rehome(self, subscriber: Subscriber, transport: SubscriberTransport) -> bytes:
        """Let a subscriber write through another transport; return what is owed on the old one, which must go out first.

        Hand it over before the event loop runs again.
        """
        if subscriber.state is State.ALONE:
            subscriber.finish_message()
        if subscriber.blocked:
            subscriber.transport.unwatch_writable()
            subscriber.blocked = False
        owed = bytes(subscriber.pending)
        subscriber.pending.clear()
        subscriber.transport, subscriber.send = transport, transport.try_send
        gevent.get_hub().loop.run_callback(self._serve, subscriber)
        return owed

    def when_at_rest(self, subscriber: Subscriber, action: Callable[[Fanout, Subscriber], None]) -> None:
        """Run *action* now, or after the pass that is under way: until then nobody knows who has been served."""
        if self._group.passing:
            self._at_rest.append((subscriber, action))
        else:
            action(self, subscriber)

    def take_requests(self, subscriber: Subscriber) -> list[Callable[[Fanout, Subscriber], None]]:
        """Return what was asked for a subscriber during the pass under way, and forget it: another fan-out is to do it."""
        taken = [action for who, action in self._at_rest if who is subscriber]
        self._at_rest = [one for one in self._at_rest if one[0] is not subscriber]
        return taken

    def tell_waiting(self, csid: int, type_id: int, payload: bytes) -> None:
        """Send a notice to players who have no place in the log; the others get theirs through it."""
        for subscriber in [*self._waiting, *self._paused]:
            self._write(subscriber, subscriber.frame(csid, type_id, 0, payload, self.wirelog.chunk_size))

    # Delivery ----------------------------------------------------------------------------------------------------------

    def flush(self, limit_s: float = 1.0) -> bool:
        """Wait until the group has had what the log holds, at most *limit_s*; return whether it has."""
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
        if not self._group.is_at(self.wirelog.tail, self.wirelog.tail.end):
            return False
        return not self._waiting or self.wirelog.join_page is None or self._joins_handled == self.wirelog.joins

    def _pass(self) -> float:
        """Give everyone what the log holds; return the seconds of work that it took."""
        wirelog, group = self.wirelog, self._group
        if self.backpressure.due:
            self.sweep(time.monotonic())
        spent = 0.0
        if len(group) and not group.is_at(wirelog.tail, wirelog.tail.end):
            sent, spent = group.deliver(wirelog, self._fall_behind, self._fail)
            self.tally.bytes_sent += sent
            self._rest()
        elif group.page is not None:
            group.move_to_end(wirelog)
        if self._waiting and wirelog.join_page is not None:
            self._joins_handled = wirelog.joins
            for subscriber in list(self._waiting):
                if subscriber.joins_seen != wirelog.joins:
                    self._waiting.discard(subscriber)
                    self._move_to_join_point(subscriber)
        if not self.options.gop_cache:
            # Whoever it was marked for is there.
            wirelog.forget_join_point()
        begun = time.thread_time()
        for subscriber in list(self._alone):
            if not subscriber.blocked and subscriber.state is State.ALONE:
                self._serve(subscriber)
                if time.thread_time() - begun > SLICE_S:
                    spent += time.thread_time() - begun
                    give_way()
                    begun = time.thread_time()
        return spent + time.thread_time() - begun

    def _rest(self) -> None:
        """End a pass: forget who has left the group, then do what waited for it."""
        self._group.end_pass()
        self._compact()
        while self._at_rest:
            subscriber, action = self._at_rest.pop(0)
            action(self, subscriber)

    def _compact(self) -> None:
        """Forget who has left the group, and stand still when nobody is left. Not during a pass."""
        if not self._group.passing:
            self._group.compact()
            if len(self) == 0:
                self.active = False
                self._group.page = None

    def _fall_behind(self, subscriber: Subscriber, page: Page, offset: int) -> None:
        """Give a member that did not take everything a cursor of its own."""
        subscriber.progress_at = time.monotonic()
        held = bytes(subscriber.pending)
        subscriber.pending.clear()
        self._set_alone(subscriber, page, offset)
        if held:
            # Replies that came in the middle of this pass: they wait for the end of the message.
            subscriber.finish_message()
            subscriber.pending += held
        self._block(subscriber)

    def _leave_group(self, subscriber: Subscriber) -> None:
        """Give a member a cursor of its own where the group is. Not during a pass."""
        assert self._group.page
        subscriber.progress_at = time.monotonic()
        self._group.drop(subscriber, State.ALONE)
        self._set_alone(subscriber, self._group.page, self._group.offset)
        self._compact()

    def _set_alone(self, subscriber: Subscriber, page: Page, offset: int) -> None:
        subscriber.state, subscriber.page, subscriber.offset = State.ALONE, page, offset
        self._alone.add(subscriber)

    def _block(self, subscriber: Subscriber) -> None:
        """Wait until the socket takes data again."""
        if not subscriber.blocked:
            subscriber.blocked = True
            subscriber.transport.watch_writable(lambda: self._unblock(subscriber))

    def _unblock(self, subscriber: Subscriber) -> None:
        subscriber.transport.unwatch_writable()
        subscriber.blocked = False
        self._serve(subscriber)

    def _serve(self, subscriber: Subscriber) -> None:
        """Send a subscriber what it has not had, up to the group's cursor, as far as its socket takes it.

        One that is not behind the group, since it has joined at a keyframe that the group has not come to yet, goes to the
        log's end: it must not wait for its first picture while the group rests.
        """
        if subscriber.blocked:
            return
        before, disposed = subscriber.sent, subscriber.disposed
        page, offset = self._group.page, self._group.offset
        if subscriber.page is not None and subscriber.page.base + subscriber.offset >= self._group.position:
            page, offset = self.wirelog.tail, self.wirelog.tail.end
        try:
            progress = subscriber.advance(self.wirelog, page, offset)
        except OSError as error:
            self._fail(subscriber, f"send failed: {error.strerror or error}")
            return
        finally:
            self.tally.bytes_sent += subscriber.sent - before
            self.tally.disposed += subscriber.disposed - disposed
            self.tally.dropped += subscriber.disposed - disposed
        if subscriber.sent != before:
            subscriber.progress_at = time.monotonic()
        if subscriber.disposed != disposed:
            self.backpressure.thinned(subscriber, time.monotonic())
        if progress is Progress.BLOCKED:
            self._block(subscriber)
        elif progress is Progress.LEVEL and self._group.is_at(page, offset):
            self._alone.discard(subscriber)
            self.backpressure.level(subscriber)
            self._group.enter(subscriber)

    def sent_bytes(self, subscriber: Subscriber) -> int:
        """Return how many bytes of the stream a subscriber's socket has taken."""
        return subscriber.sent + (self._group.position if subscriber.state is State.GROUP else 0)

    def _fail(self, subscriber: Subscriber, reason: str) -> None:
        """Give a subscriber up; its session ends when it notices that the transport is closed."""
        self._detach(subscriber)
        self._forget(subscriber)
        subscriber.transport.close(reason)

    # Back-pressure -----------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float, write_timeout_s: float = 0.0) -> None:
        """Look after those who lag, stall or wait: called every second or so, and by a pass when the log grows.

        Args:
            now_s: The monotonic clock.
            write_timeout_s: Who has taken nothing for this long is cut off; 0 leaves that to a later sweep.
        """
        self.backpressure.look(self, now_s)
        if write_timeout_s:
            for subscriber in [*self._alone, *self._waiting, *self._paused]:
                limit_s = subscriber.write_timeout_s or write_timeout_s
                if subscriber.blocked and now_s - subscriber.progress_at > limit_s:
                    self.tally.stalled += 1
                    self._fail(subscriber, f"it took nothing for {limit_s:g} s")
        if self._waiting and self._group.page is not None and self.wirelog.join_page is None:
            for subscriber in list(self._waiting):
                self._check_waiting(subscriber, now_s)

    def skip(self, subscriber: Subscriber) -> None:
        """Move a subscriber to the join point."""
        self._skip(subscriber)
        self._move_to_join_point(subscriber)
        self._serve(subscriber)

    def skip_and_wait(self, subscriber: Subscriber, now_s: float) -> None:
        """Take a subscriber's place away, until the next join point."""
        self._skip(subscriber)
        self._alone.discard(subscriber)
        self._set_waiting(subscriber, now_s)

    def turn_away(self, subscriber: Subscriber, farewell: bytes, reason: str) -> None:
        """Send a subscriber its last message, if its socket takes it now, and close its connection."""
        self.tally.disconnects += 1
        last = self._detach(subscriber) + farewell
        # What does not fit is lost: nobody waits for a player that is too slow.
        with suppress(OSError):
            sent = subscriber.transport.try_send(last)
            subscriber.sent += sent
            self.tally.bytes_sent += sent
        self._forget(subscriber)
        subscriber.transport.close(reason)

    def lag_ms(self) -> int:
        """Return how far the last of the players is behind the newest frame. Looks at all that are alone: not for hot paths."""
        places: tuple[Group | Subscriber, ...] = (self._group, *self._alone)
        last = min((each for each in places if each.page is not None), key=lambda each: each.position, default=None)
        return self.wirelog.lag_ms(last.page, last.offset) if last is not None and last.page is not None else 0

    def _skip(self, subscriber: Subscriber) -> None:
        subscriber.leave_at(*self.place_of(subscriber))
        subscriber.skipped = True
        subscriber.skips += 1
        self.tally.skips += 1

    def _check_waiting(self, subscriber: Subscriber, now_s: float) -> None:
        """Let a player that has waited long enough for a keyframe start without one: some encoders send none."""
        wirelog = self.wirelog
        early = now_s - subscriber.waiting_since < self.options.keyframe_wait_s
        if early or wirelog.newest_timestamp < 0 or subscriber.blocked:
            return
        self._waiting.discard(subscriber)
        self._start_at_end(subscriber)
        self.wake()

    def _start_at_end(self, subscriber: Subscriber) -> None:
        wirelog = self.wirelog
        subscriber.queue_headers(wirelog.headers, max(wirelog.newest_timestamp, 0), wirelog.chunk_size)
        self.tally.dropped += subscriber.begin_at(wirelog.tail, wirelog.tail.end)
        self._set_alone(subscriber, wirelog.tail, wirelog.tail.end)
