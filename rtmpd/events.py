"""Events of the server, and the bus that delivers them.

Connections, the hub and services emit events, and services subscribe to them without depending on each other. The names of
events and of their data are public: hooks pass them to scripts and web servers.
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

log = logging.getLogger(__name__)

Scalar = str | int | float | bool
"""A value in the data of an event."""


class EventType(enum.StrEnum):
    """The types of events, by their public names. Each docstring lists the data; unknown values are left out."""

    CONNECTION_ACCEPT = "connection_accept"
    """A connection was accepted: remote_addr."""
    CONNECTION_CLOSE = "connection_close"
    """A connection has ended: remote_addr, user, agent, app, wanted (its last request: connect, publish or play), wanted_stream
    (the stream that it was authorized for), served (whether it published or played, or was a step of a login), reason,
    duration_s, bytes_in, bytes_out."""
    HANDSHAKE_COMPLETE = "handshake_complete"
    """The handshake of a connection is complete: remote_addr, kind."""
    STREAM_CREATE = "stream_create"
    """A stream was created, by its first publisher or by a player that waits for one."""
    STREAM_DELETE = "stream_delete"
    """A stream was removed: duration_s, bytes_in, bytes_out."""
    PUBLISH_START = "publish_start"
    """A publish has started: id, remote_addr."""
    PUBLISH_STOP = "publish_stop"
    """A publish has ended: id, remote_addr, user, agent, reason, close_reason (of the connection, if it ended with the
    publish),
    duration_s, bytes, skips (how often slow players were moved to a keyframe), dropped (messages that they missed)."""
    LIVE_START = "live_start"
    """A stream is live, by the first of its publishers: id (of that publish)."""
    LIVE_STOP = "live_stop"
    """A stream is no longer live: its last publisher has ended, or was lost and did not return within publisher_grace_s:
    reason."""
    SOURCE_ACTIVE = "source_active"
    """Another source feeds a stream: id (of the publish; 0: a slate), kind (rtmp or slate), role (primary, backup or slate),
    cause (first, return, failover, failback, slate or manual), headers_changed, remote_addr."""
    FAILOVER = "failover"
    """A source has taken over from the active one, which has failed: id, from_id, role, reason, gap_ms."""
    FAILBACK = "failback"
    """The preferred source is active again: the same data as FAILOVER."""
    PLAY_START = "play_start"
    """A play has started: id, remote_addr, protocol (rtmp, rtmps, http, https, ws, wss or hls)."""
    PLAY_STOP = "play_stop"
    """A play has ended: protocol, and the same data as PUBLISH_STOP, with the skips and dropped messages of this player."""
    PLAYER_SLOW = "player_slow"
    """A player is too slow and starts to miss messages: id, remote_addr, user, action (skip, thin or disconnect), policy,
    lag_ms, lag_bytes, skips, dropped. Emitted once until the player has caught up and at most every ten seconds, and for each
    disconnect."""
    CODEC_DETECTED = "codec_detected"
    """The configuration of a track was detected or has changed: kind (video or audio), codec, profile, and level, width,
    height,
    bit_depth, chroma, or sample_rate_hz, channels."""
    SUBSCRIBER_COUNT = "subscriber_count"
    """The number of players of a stream has changed: count."""
    AUTH_FAILED = "auth_failed"
    """A client was refused by authorization, at a request or a re-check: remote_addr, action, reason."""
    RECORD_DONE = "record_done"
    """A recording, or a segment of it, is complete: path, duration_s, bytes, segment, reason."""
    RELAY_UP = "relay_up"
    """A relay has started to send: destination."""
    RELAY_DOWN = "relay_down"
    """A relay has stopped: destination, reason, duration_s, bytes."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event.

    Attributes:
        type: The type.
        time_s: The time, seconds since 1970.
        connection_id: The number of the connection in the log; empty for events without a connection.
        stream_key: The stream key; empty for events without a stream.
        data: The data that `EventType` lists. No secrets.
        stream: The stream, for subscribers in this process.
    """

    type: EventType
    time_s: float
    connection_id: str = ""
    stream_key: str = ""
    data: Mapping[str, Scalar] = field(default_factory=dict)
    stream: Stream | None = None


class EventBus:
    """Delivers events to their handlers, immediately and in order.

    A handler runs in the greenlet that emits the event, and must not wait. Its exceptions are logged and counted.

    Attributes:
        failures: The number of exceptions in handlers, each of which is a bug.
    """

    def __init__(self) -> None:
        self._handlers: dict[EventType, list[Callable[[Event], None]]] = {kind: [] for kind in EventType}
        self.failures = 0

    def subscribe(self, types: Iterable[EventType], handler: Callable[[Event], None]) -> None:
        """Call *handler* for each event of these types."""
        for kind in types:
            self._handlers[kind].append(handler)

    def unsubscribe(self, handler: Callable[[Event], None]) -> None:
        """Stop calling *handler*."""
        for kind, handlers in self._handlers.items():
            self._handlers[kind] = [each for each in handlers if each != handler]

    def wanted(self, kind: EventType) -> bool:
        """Return whether events of this type have a handler, so that callers can avoid collecting data for nothing."""
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
        """Deliver an event to its handlers. Costs little without handlers.

        Args:
            kind: The type.
            data: The data that `EventType` lists.
            stream: The stream of the event.
            stream_key: The stream's key, if the stream itself may be gone.
            connection_id: The number of the connection.
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
