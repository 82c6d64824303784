"""Variants: a stream as players get it who can't take it as it is published.

Each is a wire log of its own, with every message rewritten once, and a fan-out of its own; it exists only while such players
do. Knows no session. Imports the fan-out (and so gevent).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.live.fanout import Fanout
from rtmpd.live.headers import Headers
from rtmpd.live.subscriber import State, Subscriber
from rtmpd.live.wirelog import WireLog
from rtmpd.media.rewrite import rewritten_metadata
from rtmpd.protocol.message import MessageType

if TYPE_CHECKING:
    from rtmpd.config.model import ApplicationConfig
    from rtmpd.live.pages import Page
    from rtmpd.media.rewrite import Rewrite

__all__ = ["Variant", "transfer"]

_AUDIO, _VIDEO, _DATA = int(MessageType.AUDIO), int(MessageType.VIDEO), int(MessageType.DATA_AMF0)
_REST_LIMIT_BYTES = 256 << 10
"""A player that is further behind than this is not brought up to date before it goes over: it waits for a keyframe."""


class Variant:
    """One way to rewrite one stream.

    Args:
        name: The stream's key, for the log.
        rewrite: What becomes of its messages.
        options: The application's options.
        published: The stream's log as it is published. What it keeps for late joiners, the variant has from the beginning.

    Attributes:
        unused_since: Since when nobody plays it (monotonic, seconds), as far as a sweep has seen; None: somebody does.
    """

    def __init__(self, name: str, rewrite: Rewrite, options: ApplicationConfig, published: WireLog) -> None:
        self.rewrite = rewrite
        self.wirelog = WireLog(published.chunk_size, options.limits.gop_cache_limit_bytes)
        self.fanout = Fanout(self.wirelog, options, name)
        self.unused_since: float | None = None
        self._gop_cache = options.live.gop_cache
        self._replay(published)

    def _replay(self, published: WireLog) -> None:
        """Take what the published log holds from its join point on."""
        page, offset = published.join_page, published.join_offset
        if page is not None:
            self.set_headers(published.join_headers)
            joins = True
            while True:
                message = published.read(page, offset)
                if message is None:
                    break
                page, offset = message.page, message.offset
                if message.type_id in (_AUDIO, _VIDEO, _DATA):
                    self.append(message.csid, message.type_id, message.timestamp, message.payload, joins)
                    joins = False
        self.set_headers(published.headers)
        # Without a join point nothing was taken; headers go out at this time all the same.
        self.wirelog.newest_timestamp = published.newest_timestamp

    def _rewritten(self, type_id: int, payload: bytes) -> bytes | None:
        if type_id == _VIDEO:
            return self.rewrite.video(payload)
        return self.rewrite.audio(payload) if type_id == _AUDIO else rewritten_metadata(payload, self.rewrite)

    def set_headers(self, headers: Headers) -> None:
        """Say what the headers of the published stream are from now on."""
        rewritten = ((csid, type_id, self._rewritten(type_id, payload)) for csid, type_id, payload in headers.items)
        items = dict.fromkeys((csid, type_id, payload) for csid, type_id, payload in rewritten if payload is not None)
        self.wirelog.headers = Headers(tuple(items), headers.version)

    def append(self, csid: int, type_id: int, timestamp: int, payload: bytes, joins: bool = False) -> None:
        """Append a message of the stream, rewritten.

        Args:
            joins: Players may start here.
        """
        own = self._rewritten(type_id, payload)
        if own is not None:
            self.wirelog.append(csid, type_id, timestamp, own, joins and (self._gop_cache or self.fanout.anyone_waits))
            if self.fanout.active:
                self.fanout.wake()

    def reload(self, options: ApplicationConfig) -> None:
        """Go on under other options."""
        self._gop_cache = options.live.gop_cache
        self.fanout.reload(options)
        self.wirelog.cache_limit_bytes = options.limits.gop_cache_limit_bytes

    def close(self) -> None:
        """Let go of everything."""
        self.wirelog.forget_join_point()
        self.fanout.close()


def transfer(subscriber: Subscriber, old: Fanout, new: Fanout) -> Subscriber:
    """Let a player go over to another fan-out of the same stream; return what stands for it there.

    One that has had nothing yet begins as any other. One that is nearly level gets the rest of the old log and goes on at the
    end of the new one, without a gap. Any other waits for the next keyframe: what the new log holds before it may have had.
    """
    paused = subscriber.state is State.PAUSED
    requests = old.take_requests(subscriber)
    page, offset = old.place_of(subscriber)
    rest = b""
    level = page is not None and not subscriber.walks and old.wirelog.position - page.base - offset <= _REST_LIMIT_BYTES
    if level:
        assert page is not None
        rest = _from(page, offset)
        subscriber.leave_at(old.wirelog.tail, old.wirelog.tail.end)
    owed = old.leave(subscriber)
    successor = subscriber.successor()
    successor.pending += owed + rest
    if level:
        if old.wirelog.headers.items == new.wirelog.headers.items:
            # It has had them; a decoder might start afresh.
            successor.headers_version = new.wirelog.headers.version
        new.join_at_end(successor)
    else:
        fresh = not paused and not subscriber.messages and subscriber.left_at is None
        new.join(successor, 0 if fresh else new.wirelog.position)
    if paused:
        new.pause(successor)
    for request in requests:
        new.when_at_rest(successor, request)
    return successor


def _from(page: Page | None, offset: int) -> bytes:
    """Return all bytes of a log from a cursor on."""
    pieces = []
    while page is not None:
        pieces.append(page.view[offset : page.end])
        page, offset = page.next, 0
    return b"".join(pieces)
