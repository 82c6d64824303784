"""Back-pressure: the rules for subscribers that are further behind than the options allow.

The fan-out carries out what the rules decide. Only subscribers with a cursor of their own are checked: those of the group are
in sync. docs/backpressure.rst describes the policies. Pure: the clock is an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rtmpd.live.framing import Notice, NoticeKind
from rtmpd.live.subscriber import Slow, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.config.model import BackpressureConfig
    from rtmpd.live.log import Log
    from rtmpd.live.subscriber import Subscriber

_CHECK_MS = 500
_REPORT_S = 10.0
_KEYFRAME, _NONREF, _DISCONNECT = "keyframe", "nonref", "disconnect"


class Delivery(Protocol):
    """What the rules ask of the fan-out."""

    @property
    def lagging(self) -> Iterable[Subscriber]:
        """The subscribers with a cursor of their own."""

    def skip(self, subscriber: Subscriber) -> None:
        """Move a subscriber to the join point."""

    def skip_and_wait(self, subscriber: Subscriber, now_s: float) -> None:
        """Take a subscriber's cursor away until the next join point."""

    def disconnect(self, subscriber: Subscriber, last: bytes, text: str) -> None:
        """Send a subscriber its last message, if its socket accepts it now, and close its connection."""


class Backpressure:
    """The rules for one log.

    Attributes:
        options: ``[backpressure]``, as it holds for the application.
        wants_keyframe: A subscriber would be moved, if there were a keyframe to move it to.
    """

    def __init__(self, log: Log, options: BackpressureConfig) -> None:
        self._log = log
        self._checked_position = 0
        self._checked_timestamp = 0
        self.wants_keyframe = False
        self.reload(options)

    def reload(self, options: BackpressureConfig) -> None:
        """Apply new options."""
        self.options = options
        self._limit_ms = options.lag_limit_s * 1000
        self._latency_ms = options.max_latency_s * 1000
        # Frames are left out early enough for that to help.
        self._thin_ms = min(self._limit_ms, self._latency_ms or self._limit_ms)
        self._step_bytes = options.lag_limit_bytes // 4
        self._step_ms = min(_CHECK_MS, self._limit_ms / 4, self._latency_ms / 2 or _CHECK_MS)
        self._log.find_disposable(wanted=options.backpressure_policy == _NONREF)

    @property
    def due(self) -> bool:
        """Whether the log has grown so much, in bytes or in media time, that `check` should not wait for the sweep.

        No subscriber falls behind while the log does not grow, so that no timer is needed.
        """
        log = self._log
        return (
            log.position - self._checked_position > self._step_bytes
            or (log.newest_timestamp - self._checked_timestamp) & 0xFFFFFFFF >= self._step_ms
            or (self.wants_keyframe and log.join_page is not None)
        )

    def check(self, delivery: Delivery, now_s: float) -> None:
        """Check all subscribers that may be behind.

        Args:
            delivery: The fan-out. It is not kept: a reference cycle would keep the stream's pages until the garbage collector
                runs.
            now_s: The monotonic clock.
        """
        log = self._log
        self._checked_position, self._checked_timestamp = log.position, log.newest_timestamp
        self.wants_keyframe = False
        for subscriber in list(delivery.lagging):
            self._check(delivery, subscriber, now_s)

    def _check(self, delivery: Delivery, subscriber: Subscriber, now_s: float) -> None:
        log, page, options = self._log, subscriber.page, self.options
        if page is None:
            return
        position = page.base + subscriber.offset
        lag_bytes, lag_ms = log.position - position, log.lag_ms(page, subscriber.offset)
        if lag_bytes <= options.lag_limit_bytes / 4 and lag_ms <= self._thin_ms / 4:
            self._caught_up(subscriber)
            if not lag_bytes and not subscriber.pending:
                # A subscriber with a framing of its own never enters the group.
                subscriber.slow = False
            return
        policy = _KEYFRAME if subscriber.skips_only else options.backpressure_policy
        far = lag_bytes > options.lag_limit_bytes or lag_ms > self._limit_ms
        late = 0 < self._latency_ms < lag_ms
        keyframe_ahead = log.join_page is not None and position < log.join_position
        if late and keyframe_ahead and (policy != _DISCONNECT or self._latency_ms <= self._limit_ms):
            self._skip(delivery, subscriber, policy, lag_ms, lag_bytes, now_s)
            return
        # One that began at a keyframe far back is given the time to catch up.
        more_bytes, more_ms = lag_bytes - subscriber.begun_behind_bytes, lag_ms - subscriber.begun_behind_ms
        if policy == _DISCONNECT:
            if more_bytes > options.lag_limit_bytes or more_ms > self._limit_ms:
                self._disconnect(delivery, subscriber, lag_ms, lag_bytes, now_s)
            elif late:
                self.wants_keyframe = True
            return
        if far and keyframe_ahead:
            self._skip(delivery, subscriber, policy, lag_ms, lag_bytes, now_s)
        elif log.join_page is None and lag_bytes > options.lag_limit_bytes:
            # There is no place to move it to: it gives up its cursor, and with it the pages that only it holds.
            self._report(subscriber, Slow("skip", policy, lag_ms, lag_bytes), now_s)
            delivery.skip_and_wait(subscriber, now_s)
        else:
            self.wants_keyframe = self.wants_keyframe or far or late
            if policy == _NONREF and (more_bytes > options.lag_limit_bytes / 2 or more_ms > self._thin_ms / 2):
                subscriber.thin = True

    def begins(self, subscriber: Subscriber) -> None:
        """Take note of how far behind a subscriber is that begins at the join point."""
        log = self._log
        assert log.join_page is not None
        subscriber.begun_behind_bytes = log.position - log.join_position
        subscriber.begun_behind_ms = log.lag_ms(log.join_page, log.join_offset)

    def in_sync(self, subscriber: Subscriber) -> None:
        """Take note that a subscriber is in sync: its next loss is reported again."""
        self._caught_up(subscriber)
        subscriber.slow = False

    @staticmethod
    def _caught_up(subscriber: Subscriber) -> None:
        subscriber.thin = False
        subscriber.begun_behind_bytes = subscriber.begun_behind_ms = 0

    def thinned(self, subscriber: Subscriber, now_s: float) -> None:
        """Take note that a subscriber was not sent some disposable frames."""
        page = subscriber.page
        if not subscriber.slow and page is not None:
            lag_bytes = self._log.position - page.base - subscriber.offset
            lag_ms = self._log.lag_ms(page, subscriber.offset)
            self._report(subscriber, Slow("thin", _NONREF, lag_ms, lag_bytes), now_s)

    def _skip(self, delivery: Delivery, subscriber: Subscriber, policy: str, lag_ms: int, lag_bytes: int, now_s: float) -> None:
        delivery.skip(subscriber)
        # By now its figures include what the skip cost.
        self._report(subscriber, Slow("skip", policy, lag_ms, lag_bytes), now_s)

    def _disconnect(self, delivery: Delivery, subscriber: Subscriber, lag_ms: int, lag_bytes: int, now_s: float) -> None:
        options = self.options
        behind = f"{lag_ms / 1000:.1f} s and {lag_bytes} bytes behind"
        limits = f"lag_limit_s is {options.lag_limit_s:g}, lag_limit_bytes is {options.lag_limit_bytes}"
        self._report(subscriber, Slow("disconnect", _DISCONNECT, lag_ms, lag_bytes), now_s)
        last = subscriber.framing.notice(Notice(NoticeKind.TOO_SLOW, f"The connection is too slow: {behind}."))
        delivery.disconnect(subscriber, last, f"it was too slow: {behind}; {limits}")

    @staticmethod
    def _report(subscriber: Subscriber, slow: Slow, now_s: float) -> None:
        """Report a loss: once until the subscriber has caught up, and seldom; a disconnect in any case."""
        news = not subscriber.slow and now_s - subscriber.slow_reported_at >= _REPORT_S
        subscriber.slow = True
        if subscriber.on_slow is None or subscriber.state is State.REMOVED:
            return
        if news or slow.action == _DISCONNECT:
            subscriber.slow_reported_at = now_s
            subscriber.on_slow(slow)
