"""What happens in a server, told to the parts that follow it.

Sessions and the hub emit events; services subscribe to them, and so meet without knowing each other. The names of the events
and of their data are public: hooks hand them to scripts and to web servers.

Above the streams, below sessions. Imports the stream's type only.
"""

from __future__ import annotations

import enum
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rtmpd.live.stream import Stream

__all__ = ["Event", "EventBus", "EventType", "Scalar"]

log = logging.getLogger(__name__)

Scalar = str | int | float | bool
"""What the data of an event is made of."""


class EventType(enum.StrEnum):
    """Every event, by its public name."""

    CONNECTION_ACCEPT = "connection_accept"
    """A connection was accepted: remote_addr."""
    CONNECTION_CLOSE = "connection_close"
    """It has ended: remote_addr, user, agent, app, wanted (connect, publish or play: what it asked for last), wanted_stream
    (the stream that it was let in for), served (whether it published or played, or was a step of a login), reason, duration_s,
    bytes_in, bytes_out. What is not known is left out."""
    HANDSHAKE_COMPLETE = "handshake_complete"
    """Its handshake is done: remote_addr, kind."""
    STREAM_CREATE = "stream_create"
    """A stream is known from now on: somebody publishes it or waits for it."""
    STREAM_DELETE = "stream_delete"
    """It is forgotten: duration_s, bytes_in, bytes_out."""
    PUBLISH_START = "publish_start"
    """A publish has begun: id, remote_addr."""
    PUBLISH_STOP = "publish_stop"
    """It has ended: id, remote_addr, user, agent, reason, close_reason (why the connection was closed, if that was the end of
    it), duration_s, bytes, skips (how often players that were too slow were moved to a keyframe), dropped (messages that they
    did not get)."""
    PLAY_START = "play_start"
    """A play has begun: id, remote_addr."""
    PLAY_STOP = "play_stop"
    """It has ended: likewise, with its own skips and dropped messages."""
    PLAYER_SLOW = "player_slow"
    """A player begins to lose something, being too slow: id, remote_addr, user, action (skip, thin or disconnect), policy,
    lag_ms, lag_bytes, skips, dropped. Once until it has caught up, and at most every ten seconds; a disconnect in any case."""
    CODEC_DETECTED = "codec_detected"
    """A track is known or has changed: kind (video or audio), codec, profile, and level, width, height, bit_depth, chroma, or
    sample_rate_hz, channels."""
    SUBSCRIBER_COUNT = "subscriber_count"
    """The number of players has changed: count."""
    AUTH_FAILED = "auth_failed"
    """Somebody was not let in: remote_addr, action, reason."""
    RECORD_DONE = "record_done"
    """A recording is finished: path, duration_s, bytes, segment, reason."""
    RELAY_UP = "relay_up"
    """A stream goes on to another server: destination."""
    RELAY_DOWN = "relay_down"
    """It does no longer: destination, reason, duration_s, bytes."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened.

    Attributes:
        type: What.
        time_s: When, seconds since 1970.
        connection_id: The number of the connection in the log; empty if it has to do with none.
        stream_key: ``app/name``; empty if it has to do with no stream.
        data: More about it, by the names that `EventType` lists. No secrets.
        stream: The live stream itself, for parts of this process.
    """

    type: EventType
    time_s: float
    connection_id: str = ""
    stream_key: str = ""
    data: Mapping[str, Scalar] = field(default_factory=dict)
    stream: Stream | None = None


class EventBus:
    """Hands events to those who asked for them, at once and in order.

    A handler runs in the greenlet of whoever emits: it must not wait. What it raises is logged and counted, and harms nobody.

    Attributes:
        failures: How often a handler raised something: a bug.
    """

    def __init__(self) -> None:
        self._handlers: dict[EventType, list[Callable[[Event], None]]] = {kind: [] for kind in EventType}
        self.failures = 0

    def subscribe(self, types: Iterable[EventType], handler: Callable[[Event], None]) -> None:
        """Call *handler* for each event of these types."""
        for kind in types:
            self._handlers[kind].append(handler)

    def unsubscribe(self, handler: Callable[[Event], None]) -> None:
        """Call *handler* no more."""
        for kind, handlers in self._handlers.items():
            self._handlers[kind] = [each for each in handlers if each != handler]

    def wanted(self, kind: EventType) -> bool:
        """Whether anybody subscribed to this type: if not, the event need not be made."""
        return bool(self._handlers[kind])

    def emit(
        self,
        kind: EventType,
        data: Mapping[str, Scalar] | None = None,
        *,
        stream: Stream | None = None,
        stream_key: str = "",
        connection_id: str = "",
    ) -> None:
        """Tell those who want to know. Cheap if nobody does.

        Args:
            kind: What has happened.
            data: More about it.
            stream: The stream that it has to do with.
            stream_key: Its key, where the stream itself may be gone.
            connection_id: The connection that it has to do with.
        """
        handlers = self._handlers[kind]
        if not handlers:
            return
        event = Event(kind, time.time(), connection_id, stream.key if stream is not None else stream_key, data or {}, stream)
        for handler in handlers:
            try:
                handler(event)
            except Exception:
                self.failures += 1
                log.exception("internal error: a handler of %s failed", kind)
