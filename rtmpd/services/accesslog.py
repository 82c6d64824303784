"""The access log: one line at the end of each publish, each play, and each connection that did neither.

Lines of the last kind are limited in rate, since guessed names and tokens or a client in a retry loop would produce any number.
A line is a record of the logger ``rtmpd.access`` with the fields in ``entry``; the daemon writes these to a file.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from rtmpd.events import EventType
from rtmpd.util.stream_key import StreamKey
from rtmpd.util.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import Config
    from rtmpd.events import Event, Scalar
    from rtmpd.hub import Hub

log = logging.getLogger("rtmpd.access")

_ACTIONS = {EventType.PUBLISH_STOP: "publish", EventType.PLAY_STOP: "play", EventType.CONNECTION_CLOSE: "connect"}
_RATE = 10.0
"""Lines per second of connections that neither published nor played."""
_BURST = 100.0


class AccessLog:
    """The access log service. It follows events only while there is a file to write to.

    Args:
        hub: The hub.
        options: Whether ``access_log_file`` is set.
        clock: The monotonic clock.
    """

    def __init__(self, hub: Hub, options: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._hub = hub
        self._wanted = options
        self._clock = clock
        self._bucket = TokenBucket(_BURST, clock())
        self._unlisted = 0

    @staticmethod
    def select(config: Config) -> bool:
        """Return whether ``access_log_file`` is set."""
        return bool(config.log.access_log_file)

    def start(self) -> None:
        """Subscribe to events, if the log is wanted."""
        self.reload(self._wanted)

    def reload(self, options: bool) -> None:
        """Subscribe or unsubscribe."""
        self._hub.bus.unsubscribe(self._handle)
        if options:
            self._hub.bus.subscribe(_ACTIONS, self._handle)

    def stop(self, limit_s: float) -> None:
        """Unsubscribe."""
        self._hub.bus.unsubscribe(self._handle)

    def _handle(self, event: Event) -> None:
        closed = event.type is EventType.CONNECTION_CLOSE
        if closed:
            # A connection without a byte is a health check.
            if event.data.get("served") or not event.data.get("bytes_in"):
                return
            if not self._bucket.take(self._clock(), _RATE, _BURST):
                self._unlisted += 1
                return
        entry = entry_of(event)
        if closed:
            entry["unlisted"] = self._unlisted
            self._unlisted = 0
        log.info("%s of %s ended", entry["action"], entry["stream"] or entry["app"], extra={"entry": entry})


def entry_of(event: Event) -> dict[str, Scalar]:
    """Return the fields of the line in order. The time of the line is that of its log record."""
    data = event.data
    duration_s = data.get("duration_s", 0.0)
    assert isinstance(duration_s, (int, float))
    entry: dict[str, Scalar] = {
        "action": _ACTIONS[event.type],
        "connection": int(event.connection_id),
        "peer": data.get("remote_addr", ""),
        "agent": data.get("agent", ""),
        "user": data.get("user", ""),
        "app": StreamKey(event.stream_key).app,
        "stream": event.stream_key,
        "start": event.time_s - duration_s,
        "duration_s": duration_s,
        "bytes": data.get("bytes", 0),
        "skips": data.get("skips", 0),
        "dropped": data.get("dropped", 0),
        "reason": data.get("close_reason") or data.get("reason", ""),
    }
    if event.type is EventType.CONNECTION_CLOSE:
        entry |= {
            "app": data.get("app", ""),
            "stream": data.get("wanted_stream", ""),
            "bytes": data.get("bytes_in", 0),
            "wanted": data.get("wanted", ""),
        }
    return entry
