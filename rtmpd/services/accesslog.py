"""The access log: one line at the end of each publish and each play, and of each connection that came to neither.

Of the last there may be any number: somebody who tries names or tokens, or a client that never gives up. They get lines at a
bounded rate, and a line says how many had none. The lines are records of the logger ``rtmpd.access``, with the fields in
``entry``; the daemon writes them to a file.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from rtmpd.events import EventType
from rtmpd.util.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rtmpd.config.model import Config
    from rtmpd.events import Event, Scalar
    from rtmpd.hub import Hub

__all__ = ["AccessLog"]

log = logging.getLogger("rtmpd.access")

_ACTIONS = {EventType.PUBLISH_STOP: "publish", EventType.PLAY_STOP: "play", EventType.CONNECTION_CLOSE: "connect"}
_RATE = 10.0
"""Lines of connections that came to nothing, per second in the long run: what a person or a disk can still take."""
_BURST = 100.0


class AccessLog:
    """The service. It follows the streams only while there is a file to write to.

    Args:
        hub: The hub.
        clock: The time in seconds, from any beginning.
    """

    def __init__(self, hub: Hub, clock: Callable[[], float] = time.monotonic) -> None:
        self._hub = hub
        self._clock = clock
        self._following = False
        self._lines = TokenBucket(_BURST, clock())
        self._unlisted = 0

    def start(self) -> None:
        """Begin."""
        self.reload(self._hub.config)

    @staticmethod
    def select(config: Config) -> Config:
        """Return the part of a configuration that the service uses."""
        return config

    def reload(self, config: Config) -> None:
        """Begin or end, as the configuration says."""
        wanted = bool(config.log.access_log_file)
        if wanted and not self._following:
            self._hub.bus.subscribe(_ACTIONS, self._handle)
        elif not wanted:
            self._hub.bus.unsubscribe(self._handle)
        self._following = wanted

    def stop(self, limit_s: float) -> None:
        """End."""
        self._hub.bus.unsubscribe(self._handle)
        self._following = False

    def _handle(self, event: Event) -> None:
        if event.type is EventType.CONNECTION_CLOSE:
            # Who has said nothing looks whether somebody is there.
            if event.data.get("served") or not event.data.get("bytes_in"):
                return
            if not self._lines.take(self._clock(), _RATE, _BURST):
                self._unlisted += 1
                return
        entry = entry_of(event)
        if event.type is EventType.CONNECTION_CLOSE:
            entry["unlisted"] = self._unlisted
            self._unlisted = 0
        log.info("%s of %s ended", entry["action"], entry["stream"] or entry["app"], extra={"entry": entry})


def entry_of(event: Event) -> dict[str, Scalar]:
    """Return the fields of the line, in their order; the time of the line is that of its record."""
    data = event.data
    duration_s = data.get("duration_s", 0.0)
    assert isinstance(duration_s, (int, float))
    entry: dict[str, Scalar] = {
        "action": _ACTIONS[event.type],
        "connection": int(event.connection_id),
        "peer": data.get("remote_addr", ""),
        "agent": data.get("agent", ""),
        "user": data.get("user", ""),
        "app": event.stream_key.rpartition("/")[0],
        "stream": event.stream_key,
        "start": event.time_s - duration_s,
        "duration_s": duration_s,
        "bytes": data.get("bytes", 0),
        "skips": data.get("skips", 0),
        "dropped": data.get("dropped", 0),
        "reason": data.get("close_reason") or data.get("reason", ""),
    }
    return entry | _of_connection(data) if event.type is EventType.CONNECTION_CLOSE else entry


def _of_connection(data: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return what is different in the line of a connection."""
    return {
        "app": data.get("app", ""),
        "stream": data.get("wanted_stream", ""),
        "bytes": data.get("bytes_in", 0),
        "wanted": data.get("wanted", ""),
    }
