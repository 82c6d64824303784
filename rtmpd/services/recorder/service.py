"""The recorder: which streams are recorded, and the life of their recordings.

It follows publishes, mends what an earlier run has left, and deletes what is old. All work on files is done by native threads
of its own, so that a disk that stands still delays nothing else.
"""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import gevent
from gevent.pool import Group
from gevent.threadpool import ThreadPool

from rtmpd.config.model import printable
from rtmpd.events import EventType
from rtmpd.services.recorder.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.event import AsyncResult

    from rtmpd.config.model import Config, RecordConfig
    from rtmpd.events import Event, Scalar
    from rtmpd.hub import Hub
    from rtmpd.services.recorder.assembler import Segment
    from rtmpd.stream.stream import Stream

__all__ = ["Recorder"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_WRITERS = 4
_RETENTION_S = 60.0


class Recorder:
    """The service.

    Args:
        hub: The hub.
        retention_interval_s: Time between two looks at what is old.
    """

    def __init__(self, hub: Hub, retention_interval_s: float = _RETENTION_S) -> None:
        self._hub = hub
        self._retention_interval_s = retention_interval_s
        self._recordings: dict[Stream, Recording] = {}
        self._greenlets = Group()
        self._upkeep = Group()
        self._writers: ThreadPool | None = None
        self._keeper: ThreadPool | None = None

    @property
    def config(self) -> RecordConfig:
        """The options in force."""
        return self._hub.config.record

    def start(self) -> None:
        """Begin."""
        self._writers = ThreadPool(_WRITERS)
        self._keeper = ThreadPool(1)
        self._hub.bus.subscribe((EventType.PUBLISH_START, EventType.PUBLISH_STOP), self._handle)
        self._hub.gauges["recordings_active"] = lambda: len(self._recordings)

    def reload(self, config: Config) -> None:
        """Begin and end recordings of live streams as the new configuration wants it."""
        for stream in self._hub.streams.values():
            if stream.publisher is None:
                continue
            wanted = self.wants(stream.key)
            if wanted and stream not in self._recordings:
                self._begin(stream, "")
            elif not wanted and stream in self._recordings:
                self._recordings.pop(stream).end("reload")

    def stop(self, limit_s: float) -> None:
        """Close every recording, and wait for that."""
        self._hub.bus.unsubscribe(self._handle)
        self._upkeep.kill(block=False)
        for recording in self._recordings.values():
            recording.end("the server is stopping")
        self._recordings.clear()
        with gevent.Timeout(limit_s, False):  # type: ignore[arg-type]
            # Recordings that end leave files to be closed.
            while self._greenlets:
                self._greenlets.join()
        if self._greenlets:
            log.error(
                "%d recordings could not be closed in %g s: they are repaired at the next start", len(self._greenlets), limit_s
            )
            self._greenlets.kill(block=False)

    # Recordings --------------------------------------------------------------------------------------------------------

    def wants(self, key: str) -> bool:
        """Whether a stream is to be recorded."""
        config = self.config
        return config.record_all or any(fnmatchcase(key, pattern) for pattern in config.record_streams)

    def _handle(self, event: Event) -> None:
        stream = event.stream
        assert stream is not None
        if event.type is EventType.PUBLISH_START:
            if self.wants(stream.key):
                self._begin(stream, event.connection_id)
        elif stream in self._recordings:
            self._recordings.pop(stream).end(str(event.data.get("reason", "")))

    def _begin(self, stream: Stream, connection_id: str) -> None:
        recording = self._recordings[stream] = Recording(self, stream, connection_id)
        self._greenlets.start(recording.greenlet)  # type: ignore[arg-type]

    # What recordings ask for -------------------------------------------------------------------------------------------

    def spawn_job(self, job: Callable[..., Result], *args: object) -> AsyncResult[Result]:
        """Have a thread run *job*; waits while all threads are busy."""
        assert self._writers is not None
        return self._writers.spawn(job, *args)

    def look_after(self, action: Callable[[], None]) -> None:
        """Run what may wait for a disk that does not answer, in a greenlet that only a stop waits for."""
        self._greenlets.spawn(action)

    def count_error(self) -> None:
        """Count a recording that could not go on."""
        self._hub.count("recording_errors")

    def finished(self, recording: Recording, path: Path, segment: Segment, reason: str) -> None:
        """Take note of a file that is whole."""
        duration_s, size = segment.written_ms / 1000, segment.written_bytes
        log.info("%s: recorded %s; %.1f s, %d bytes", recording.key, printable(str(path)), duration_s, size)
        self._say_done(path, duration_s, size, reason, segment.number, recording.key, recording.connection_id)

    def _say_done(
        self, path: Path, duration_s: float, size: int, reason: str, segment: int = 0, key: str = "", connection_id: str = ""
    ) -> None:
        self._hub.counters["recordings"] += 1
        self._hub.counters["recorded_bytes"] += size
        data: dict[str, Scalar] = {
            "path": str(path),
            "duration_s": duration_s,
            "bytes": size,
            "segment": segment,
            "reason": reason,
        }
        self._hub.bus.emit(EventType.RECORD_DONE, data, stream_key=key, connection_id=connection_id)

    # Upkeep ------------------------------------------------------------------------------------------------------------

    @property
    def _directory(self) -> Path:
        return Path(self.config.record_directory).absolute()

    @property
    def _active(self) -> bool:
        """Whether anything is recorded at all: if not, the directory is none of our business."""
        return self.config.record_all or bool(self.config.record_streams)
