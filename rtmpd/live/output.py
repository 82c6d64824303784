"""Outputs: a stream's messages in one framing, as published or rewritten, with the readers of that log.

The published output is always there. Others are made for the first reader that needs them, begin with what the published log
keeps for late joiners, and are dropped soon after the last reader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.live.fanout import DeliveryCounters, Fanout
from rtmpd.live.framing import AUDIO, DATA, VIDEO, Headers
from rtmpd.live.log import Log
from rtmpd.live.subscriber import State, Subscriber
from rtmpd.media.rewrite import AS_PUBLISHED, Rewrite, rewritten_metadata

if TYPE_CHECKING:
    from rtmpd.config.model import ApplicationConfig
    from rtmpd.live.courier import Courier
    from rtmpd.live.framing import Framing
    from rtmpd.live.pages import Page

_REST_LIMIT_BYTES = 256 << 10
"""A subscriber that is further behind than this is not brought up to date before a transfer: it waits for a keyframe."""


class Output:
    """One way in which a stream's messages are delivered.

    Args:
        name: The stream's key, for the log.
        options: The application's options.
        framing: The format of the bytes.
        rewrite: The change that is made to each message.
        counters: Counts what is delivered, for all outputs of the stream.
        courier: Delivers to small groups of subscribers; None: one of its own.

    Attributes:
        framing: The format, as it was given.
        log: The messages.
        fanout: Delivers them to subscribers.
        keeps_join_point: New readers start at the newest keyframe. An output that is only read in batches keeps none.
        ended: Its readers have been notified that it is `over`.
        unused_since: Since when it has no subscriber (monotonic, seconds), as far as a sweep has seen; None: it has some.
    """

    def __init__(
        self,
        name: str,
        options: ApplicationConfig,
        framing: Framing,
        rewrite: Rewrite = AS_PUBLISHED,
        counters: DeliveryCounters | None = None,
        courier: Courier | None = None,
    ) -> None:
        self.rewrite = rewrite
        self.rewrites = not rewrite.identity
        self.framing = framing
        self.log = Log(framing.for_log(), options.limits.gop_cache_limit_bytes)
        self.fanout = Fanout(self.log, options, name, counters, courier)
        self.keeps_join_point = True
        self.unused_since: float | None = None
        self.ended = False
        self._gop_cache = options.live.gop_cache

    @property
    def takes_join_point(self) -> bool:
        """Whether a place to start at is to be marked in the log."""
        return not self.ended and ((self._gop_cache and self.keeps_join_point) or self.fanout.wants_keyframe)

    @property
    def over(self) -> bool:
        """Whether its log has ended, though the stream continues: its readers need another output."""
        return self.log.framing.over

    @property
    def used(self) -> bool:
        """Whether it has readers."""
        return len(self.fanout) > 0 or bool(self.log.readers)

    def append(self, type_id: int, timestamp: int, payload: bytes, kind: int, join_point: bool = False) -> None:
        """Append a message, rewritten. The stream itself appends to the logs of outputs that rewrite nothing."""
        own = self._rewritten(type_id, payload)
        if own is not None:
            self.log.append(type_id, timestamp, own, kind, join_point and self.takes_join_point)

    def _rewritten(self, type_id: int, payload: bytes) -> bytes | None:
        if not self.rewrites:
            return payload
        if type_id == VIDEO:
            return self.rewrite.video(payload)
        return self.rewrite.audio(payload) if type_id == AUDIO else rewritten_metadata(payload, self.rewrite)

    def set_headers(self, headers: Headers) -> None:
        """Set the headers in force, as they are published."""
        if self.rewrites:
            rewritten = ((type_id, self._rewritten(type_id, payload)) for type_id, payload in headers.items)
            headers = Headers(tuple(dict.fromkeys((type_id, own) for type_id, own in rewritten if own is not None)))
        self.log.set_headers(headers)

    def replay(self, published: Log) -> None:
        """Append what another log keeps from its join point on. Only while this one is empty."""
        joins = True
        if published.join_page is not None:
            self.set_headers(self.log.framing.replay_headers(published))
            for message in published.kept():
                if message.type_id in (AUDIO, VIDEO, DATA):
                    self.append(message.type_id, message.timestamp, bytes(message.payload), message.kind, joins)
                    joins = False
        if published.join_page is None or published.headers is not published.join_headers:
            self.set_headers(published.headers)
        # Without a join point nothing was appended; headers go out at this time all the same.
        self.log.newest_timestamp = published.newest_timestamp

    def keep_join_point(self, published: Log) -> None:
        """Let subscribers start at the newest keyframe, although the output was only read in batches so far."""
        if self.keeps_join_point:
            return
        self.keeps_join_point = True
        if published.join_page is not None and self.log.join_page is None:
            older = Log(self.log.framing.for_log(), self.log.cache_limit_bytes, self.log.account)
            older.set_headers(older.framing.replay_headers(published))
            joins = True
            for message in published.kept():
                if message.type_id in (AUDIO, VIDEO, DATA):
                    older.append(message.type_id, message.timestamp, bytes(message.payload), message.kind, joins)
                    joins = False
            self.log.prepend(older)

    def reload(self, options: ApplicationConfig) -> None:
        """Apply new options."""
        self._gop_cache = options.live.gop_cache
        self.fanout.reload(options)
        self.log.cache_limit_bytes = options.limits.gop_cache_limit_bytes

    def close(self) -> None:
        """Stop delivering, and free the pages."""
        self.log.forget_join_point()
        self.fanout.close()


def transfer(subscriber: Subscriber, old: Fanout, new: Fanout) -> Subscriber:
    """Move a subscriber to another output of the same stream, with the same framing; return its successor there.

    A subscriber that has had nothing yet starts as any other. One that is nearly in sync gets the rest of the old log and
    continues at the end of the new one, without a gap. Any other waits for the next keyframe: it may have had what the new log
    holds before that.
    """
    paused = subscriber.state is State.PAUSED
    requests = old.take_requests(subscriber)
    page, offset = old.place_of(subscriber)
    rest = b""
    near = page is not None and subscriber.framing.shared and old.log.position - page.base - offset <= _REST_LIMIT_BYTES
    if near:
        assert page is not None
        rest = _bytes_from(page, offset)
        subscriber.leave_at(old.log.tail, old.log.tail.end)
    owed = old.leave(subscriber)
    successor = subscriber.successor()
    successor.pending += owed + rest
    successor.unread_replies = subscriber.unread_replies
    if near:
        if old.log.headers.items == new.log.headers.items:
            # It has had them; a decoder might start afresh.
            successor.headers = new.log.headers
        new.join_at_end(successor)
    else:
        if subscriber.early_headers:
            # It is sent only those that it was not sent by the old output.
            successor.headers, successor.early_headers = subscriber.headers, True
        elif subscriber.headers is old.log.headers and old.log.headers.items == new.log.headers.items:
            successor.headers = new.log.headers
        fresh = not paused and not subscriber.messages and subscriber.left_at is None
        new.join(successor, None if fresh else new.log.position)
    if paused:
        new.pause(successor)
    for request in requests:
        new.when_between_passes(successor, request)
    return successor


def _bytes_from(page: Page | None, offset: int) -> bytes:
    """Return all bytes of a log from a cursor on."""
    pieces = []
    while page is not None:
        pieces.append(page.view[offset : page.end])
        page, offset = page.next, 0
    return b"".join(pieces)
