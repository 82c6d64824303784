"""The publisher's role of a connection: one message stream that feeds one live stream."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import gevent

from rtmpd.events import EventType
from rtmpd.live.bitrate import BitrateWatch
from rtmpd.protocol import status

if TYPE_CHECKING:
    from rtmpd.live.stream import Stream
    from rtmpd.rtmp.connection import Connection, MessageStream

__all__ = ["Publisher"]

_LINGER_S = 1.5
_WARN, _DISCONNECT = "warn", "disconnect"
_OUTCOMES = {_WARN: "it may go on", _DISCONNECT: "it is disconnected"}


class Publisher:
    """One publish.

    Attributes:
        name: As the client gave it, query and all. Never logged: it may hold the key.
        stream: What it feeds, once started.
        number: Counts the server's publishes; given by the hub.
    """

    def __init__(self, connection: Connection, message_stream: MessageStream, name: str) -> None:
        self.connection = connection
        self.message_stream = message_stream
        self.name = name
        self.stream: Stream | None = None
        self.number = 0
        self.started_at = 0.0
        self._bytes_before = 0
        self._skips_before = self._dropped_before = 0
        self._bitrate_watch = BitrateWatch()

    @property
    def key(self) -> str:
        """The stream's key."""
        return self.stream.key if self.stream is not None else ""

    def start(self, stream: Stream) -> None:
        """Take messages for *stream* from now on; the hub has agreed."""
        self.stream = stream
        self.started_at = time.monotonic()
        self._bytes_before = stream.bytes_in
        tally = stream.fanout.tally
        self._skips_before, self._dropped_before = tally.skips, tally.dropped
        self.message_stream.publisher = self
        self.connection.live[self.message_stream.id] = stream
        self.connection.phase = "publish"
        self.connection.log.stream = stream.key
        self.connection.log.info("publishes %s", stream.key)
        self.connection.emit(EventType.PUBLISH_START, stream, id=self.number)

    def stop(self, reason: str) -> None:
        """End the publish; harmless if it has ended."""
        stream = self.stream
        if stream is None:
            return
        self.stream = None
        self.message_stream.publisher = None
        self.connection.live.pop(self.message_stream.id, None)
        duration_s = time.monotonic() - self.started_at
        byte_count = stream.bytes_in - self._bytes_before
        codecs = ", ".join(f"{track} {codec}" for track, codec in stream.headers.codecs.items())
        self.connection.log.info(
            "stopped publishing %s: %s; %.1f s, %d bytes%s",
            stream.key,
            reason,
            duration_s,
            byte_count,
            f" ({codecs})" if codecs else "",
            extra={"stream": stream.key},
        )
        self.connection.emit_end(
            EventType.PUBLISH_STOP,
            stream,
            id=self.number,
            reason=reason,
            duration_s=round(duration_s, 3),
            bytes=byte_count,
            skips=stream.fanout.tally.skips - self._skips_before,
            dropped=stream.fanout.tally.dropped - self._dropped_before,
        )
        self.connection.hub.unpublish(stream, self)

    def sweep(self, now_s: float) -> None:
        """Deal with a publisher that sends more than it may. Called by the hub, once a second."""
        stream = self.stream
        if stream is None:
            return
        limits, bitrate = stream.options.limits, stream.vitals.bitrate
        limit, grace_s, action = limits.publish_bitrate_limit, limits.publish_bitrate_grace_s, limits.publish_bitrate_action
        if not self._bitrate_watch.is_due(now_s, bitrate, limit=limit, grace_s=grace_s, action=action):
            return
        connection = self.connection
        connection.hub.count("publish_bitrate_exceeded")
        told = f"it has sent {bitrate / 1000:.0f} kbit/s, and more than {limit / 1000:g} kbit/s for {grace_s:g} s"
        connection.log.warning("%s: %s (publish_bitrate_limit): %s", stream.key, told, _OUTCOMES[action])
        if action == _DISCONNECT:
            # An encoder that only tried again would send as much again.
            text = f"The bitrate is too high: {bitrate / 1000:.0f} kbit/s, and {limit / 1000:g} kbit/s are allowed."
            self._expel(status.PUBLISH_REJECTED, text, "publish_bitrate_limit")

    def _expel(self, code: str, description: str, reason: str) -> None:
        """End the publish, and tell the client why; its connection is closed when it has had the time to read that.

        Never waits. What the client sends meanwhile is read and thrown away: unread, it would make the kernel reset the
        connection, and the client would not learn why.
        """
        connection = self.connection
        connection.leave(self.message_stream, reason)
        connection.send_status(self.message_stream.id, status.info(code, description))
        if not connection.transport.sending:
            connection.send_now()
        gevent.spawn_later(_LINGER_S, connection.cut_off, reason)
