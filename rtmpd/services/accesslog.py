"""The access log: one line at the end of each publish and each play, for programs that make statistics of them.

The lines are records of the logger ``rtmpd.access``, with the fields in ``entry``; the daemon writes them to a file.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rtmpd.events import EventType

if TYPE_CHECKING:
    from rtmpd.config.model import Config
    from rtmpd.events import Event, Scalar
    from rtmpd.hub import Hub

__all__ = ["AccessLog"]

log = logging.getLogger("rtmpd.access")

_ACTIONS = {EventType.PUBLISH_STOP: "publish", EventType.PLAY_STOP: "play"}


class AccessLog:
    """The service. It follows the streams only while there is a file to write to."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._following = False

    def start(self) -> None:
        """Begin."""
        self.reload(self._hub.config)

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

    @staticmethod
    def _handle(event: Event) -> None:
        entry = entry_of(event)
        log.info("%s of %s ended", entry["action"], event.stream_key, extra={"entry": entry})


def entry_of(event: Event) -> dict[str, Scalar]:
    """Return the fields of the line, in their order; the time of the line is that of its record."""
    data = event.data
    duration_s = data.get("duration_s", 0.0)
    assert isinstance(duration_s, (int, float))
    return {
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
