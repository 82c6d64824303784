"""Back-pressure: what becomes of a player that is further behind than it may be.

The rules, and who is told; the fan-out does what they say. Looked at are only those players that have a cursor of their own:
who goes with the group is level. docs/backpressure.rst says what the policies are for. Imports no gevent and no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from rtmpd.live.subscriber import State
from rtmpd.protocol import status
from rtmpd.protocol.command import encode_command
from rtmpd.protocol.message import CSID_STATUS, MessageType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.config.model import BackpressureConfig
    from rtmpd.live.subscriber import Subscriber
    from rtmpd.live.wirelog import WireLog

__all__ = ["Backpressure", "Delivery", "Slow"]

_LOOK_MS = 500
_TELL_S = 10.0
_KEYFRAME, _NONREF, _DISCONNECT = "keyframe", "nonref", "disconnect"


class Slow(NamedTuple):
    """A player begins to lose something.

    Attributes:
        action: What is done: ``skip`` (it is moved to a keyframe), ``thin`` (it gets no disposable frames) or ``disconnect``.
        policy: ``backpressure_policy``, as it holds for it.
        lag_ms, lag_bytes: How far it is behind.
    """

    action: str
    policy: str
    lag_ms: int
    lag_bytes: int


class Delivery(Protocol):
    """What is asked of the fan-out."""

    @property
    def alone(self) -> Iterable[Subscriber]:
        """Those with a cursor of their own."""

    def skip(self, subscriber: Subscriber) -> None:
        """Move a subscriber to the join point."""

    def skip_and_wait(self, subscriber: Subscriber, now_s: float) -> None:
        """Take a subscriber's place away, until the next join point."""

    def turn_away(self, subscriber: Subscriber, farewell: bytes, reason: str) -> None:
        """Send a subscriber its last message, if its socket takes it now, and close its connection."""


class Backpressure:
    """The rules for one wire log.

    Attributes:
        options: ``[backpressure]``, as it holds for the application.
        wants_keyframe: Somebody would be moved, if there were a keyframe to move it to.
    """

    def __init__(self, wirelog: WireLog, options: BackpressureConfig) -> None:
        self._wirelog = wirelog
        self._looked_position = 0
        self._looked_timestamp = 0
        self.wants_keyframe = False
        self.reload(options)

    def reload(self, options: BackpressureConfig) -> None:
        """Go on under other options."""
        self.options = options
        self._limit_ms = options.lag_limit_s * 1000
        self._latency_ms = options.max_latency_s * 1000
        # Frames are left out early enough for that to help.
        self._thin_ms = min(self._limit_ms, self._latency_ms or self._limit_ms)
        self._step_bytes = options.lag_limit_bytes // 4
        self._step_ms = min(_LOOK_MS, self._limit_ms / 4, self._latency_ms / 2 or _LOOK_MS)
        self._wirelog.find_disposable(wanted=options.backpressure_policy == _NONREF)

    @property
    def due(self) -> bool:
        """Whether the log has grown so much, in bytes or in time of the media, that `look` should not wait for a sweep.

        Nobody falls behind while the log does not grow, so that no timer is needed.
        """
        wirelog = self._wirelog
        return (
            wirelog.position - self._looked_position > self._step_bytes
            or (wirelog.newest_timestamp - self._looked_timestamp) & 0xFFFFFFFF >= self._step_ms
            or (self.wants_keyframe and wirelog.join_page is not None)
        )

    def look(self, delivery: Delivery, now_s: float) -> None:
        """Look at everyone who may be behind.

        Args:
            delivery: The fan-out. It is not kept: with it, the stream's pages would stay until the garbage collector comes.
            now_s: The monotonic clock.
        """
        wirelog = self._wirelog
        self._looked_position, self._looked_timestamp = wirelog.position, wirelog.newest_timestamp
        self.wants_keyframe = False
        for subscriber in list(delivery.alone):
            self._look_at(delivery, subscriber, now_s)

    def _look_at(self, delivery: Delivery, subscriber: Subscriber, now_s: float) -> None:
        wirelog, page, options = self._wirelog, subscriber.page, self.options
        if page is None:
            return
        position = page.base + subscriber.offset
        lag_bytes, lag_ms = wirelog.position - position, wirelog.lag_ms(page, subscriber.offset)
        if lag_bytes <= options.lag_limit_bytes / 4 and lag_ms <= self._thin_ms / 4:
            self._caught_up(subscriber)
            if not lag_bytes and not subscriber.pending:
                # One that walks never comes into the group.
                subscriber.slow = False
            return
        policy = _KEYFRAME if subscriber.skips_only else options.backpressure_policy
        far = lag_bytes > options.lag_limit_bytes or lag_ms > self._limit_ms
        late = 0 < self._latency_ms < lag_ms
        keyframe_ahead = wirelog.join_page is not None and position < wirelog.join_position
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
        elif wirelog.join_page is None and lag_bytes > options.lag_limit_bytes:
            # Nothing to move it to: it gives up its place, and with it the pages that only it holds.
            self._told(subscriber, Slow("skip", policy, lag_ms, lag_bytes), now_s)
            delivery.skip_and_wait(subscriber, now_s)
        else:
            self.wants_keyframe = self.wants_keyframe or far or late
            if policy == _NONREF and (more_bytes > options.lag_limit_bytes / 2 or more_ms > self._thin_ms / 2):
                subscriber.thin = True

    def begins(self, subscriber: Subscriber) -> None:
        """Take note of how far a subscriber is behind that begins at the join point."""
        wirelog = self._wirelog
        assert wirelog.join_page is not None
        subscriber.begun_behind_bytes = wirelog.position - wirelog.join_position
        subscriber.begun_behind_ms = wirelog.lag_ms(wirelog.join_page, wirelog.join_offset)

    def level(self, subscriber: Subscriber) -> None:
        """Say that a subscriber is level: whatever befalls it next is news."""
        self._caught_up(subscriber)
        subscriber.slow = False

    @staticmethod
    def _caught_up(subscriber: Subscriber) -> None:
        subscriber.thin = False
        subscriber.begun_behind_bytes = subscriber.begun_behind_ms = 0

    def thinned(self, subscriber: Subscriber, now_s: float) -> None:
        """Say that a subscriber was not sent some disposable frames."""
        page = subscriber.page
        if not subscriber.slow and page is not None:
            lag_bytes = self._wirelog.position - page.base - subscriber.offset
            lag_ms = self._wirelog.lag_ms(page, subscriber.offset)
            self._told(subscriber, Slow("thin", _NONREF, lag_ms, lag_bytes), now_s)

    def _skip(self, delivery: Delivery, subscriber: Subscriber, policy: str, lag_ms: int, lag_bytes: int, now_s: float) -> None:
        delivery.skip(subscriber)
        # By now its figures have what the skip cost.
        self._told(subscriber, Slow("skip", policy, lag_ms, lag_bytes), now_s)

    def _disconnect(self, delivery: Delivery, subscriber: Subscriber, lag_ms: int, lag_bytes: int, now_s: float) -> None:
        options = self.options
        behind = f"{lag_ms / 1000:.1f} s and {lag_bytes} bytes behind"
        limits = f"lag_limit_s is {options.lag_limit_s:g}, lag_limit_bytes is {options.lag_limit_bytes}"
        self._told(subscriber, Slow("disconnect", _DISCONNECT, lag_ms, lag_bytes), now_s)
        # FMS says this, too, though only as a warning. Players show the text of an error.
        info = status.info(status.PLAY_INSUFFICIENT_BW, f"The connection is too slow: {behind}.", level="error")
        payload = encode_command("onStatus", 0, None, info)
        farewell = subscriber.frame(CSID_STATUS, int(MessageType.COMMAND_AMF0), 0, payload, self._wirelog.chunk_size)
        delivery.turn_away(subscriber, farewell, f"it was too slow: {behind}; {limits}")

    @staticmethod
    def _told(subscriber: Subscriber, slow: Slow, now_s: float) -> None:
        """Tell whoever wants to know: once until it has caught up, and seldom; of its end in any case."""
        news = not subscriber.slow and now_s - subscriber.told_at >= _TELL_S
        subscriber.slow = True
        if subscriber.on_slow is None or subscriber.state is State.GONE:
            return
        if news or slow.action == _DISCONNECT:
            subscriber.told_at = now_s
            subscriber.on_slow(slow)
