"""The recorder: which streams are recorded, and the life of their recordings.

It follows publishes, mends what an earlier run has left, and deletes what is old. All work on files is done by native threads
of its own, so that a disk that stands still delays nothing else.
"""

from __future__ import annotations

import logging
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event as Flag
from gevent.pool import Group

from rtmpd.config.model import printable
from rtmpd.events import EventType
from rtmpd.services.recorder.recording import Recording
from rtmpd.services.recorder.repair import PartRepair, Repaired, RepairOutcome
from rtmpd.services.recorder.retention import Limits, Retention, RetentionReport
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import Config, RecordConfig
    from rtmpd.events import Event, Scalar
    from rtmpd.hub import Hub
    from rtmpd.live.stream import Stream
    from rtmpd.services.recorder.assembler import Segment

__all__ = ["Recorder"]

log = logging.getLogger(__name__)

_WRITERS = 4
_RETENTION_S = 60.0
_RETENTION_PAUSE_S = 5.0
"""Between two looks, also when a full disk asks for one."""


class Recorder:
    """The service.

    Args:
        hub: The hub.
        retention_interval_s: Time between two looks at what is old.

    Attributes:
        threads: Those that write recordings.
    """

    def __init__(self, hub: Hub, retention_interval_s: float = _RETENTION_S) -> None:
        self._hub = hub
        self._retention_interval_s = retention_interval_s
        self._recordings: dict[Stream, Recording] = {}
        self._greenlets = Group()
        self._upkeep = Group()
        self.threads = Threads(_WRITERS)
        self._keeper = Threads(1)
        self._retention = Retention()
        self._repair: PartRepair | None = None
        self._look_soon = Flag()
        self._last_errors: list[str] = []

    @property
    def config(self) -> RecordConfig:
        """The options in force."""
        return self._hub.config.record

    def start(self) -> None:
        """Begin."""
        self._hub.bus.subscribe((EventType.PUBLISH_START, EventType.PUBLISH_STOP), self._handle)
        self._hub.gauges["recordings_active"] = lambda: len(self._recordings)
        if self._active:
            self._upkeep.spawn(self._mend_parts)
        self._upkeep.spawn(self._keep)

    @staticmethod
    def select(config: Config) -> Config:
        """Return the part of a configuration that the service uses."""
        return config

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
        self._look_soon.set()

    def stop(self, limit_s: float) -> None:
        """Close every recording, and wait for that."""
        self._hub.bus.unsubscribe(self._handle)
        self._upkeep.kill(block=False)
        self._retention.cancel()
        if self._repair is not None:
            self._repair.cancel()
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

    def look_after(self, action: Callable[[], None]) -> None:
        """Run what may wait for a disk that does not answer, in a greenlet that only a stop waits for."""
        self._greenlets.spawn(action)

    def count_error(self) -> None:
        """Count a recording that could not go on."""
        self._hub.count("recording_errors")
        # Perhaps the disk is full of what may be deleted.
        self._look_soon.set()

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

    def _mend_parts(self) -> None:
        """Repair what an earlier run has left, while the server already serves."""
        repair = self._repair = PartRepair(self._directory, self.config.record_file_name)
        parts, problems = self._keeper.call(repair.find)
        for problem in problems:
            self.count_error()
            log.error("can't look for unfinished recordings in %s: %s", printable(str(problem.filename)), problem.strerror)
        for part in parts:
            self._say_repaired(self._keeper.call(repair.repair, part))

    def _say_repaired(self, outcome: RepairOutcome) -> None:
        path = printable(str(outcome.path))
        match outcome.action:
            case Repaired.REPAIRED:
                self._hub.count("recordings_repaired")
                seconds, size, cut = outcome.duration_s, outcome.size_bytes, outcome.cut_bytes
                log.info("repaired %s; %.1f s, %d bytes, %d cut off", path, seconds, size, cut)
                self._say_done(outcome.path, seconds, size, "repaired")
            case Repaired.REMOVED:
                log.info("removed %s: there was nothing in it", path)
            case Repaired.BROKEN:
                self.count_error()
                log.error("an unfinished recording can't be repaired, and is now %s: %s", path, outcome.reason)
            case Repaired.FAILED:
                self.count_error()
                log.error("can't repair %s: %s; the next start tries again", path, outcome.reason)
            case _:
                log.debug("left %s alone: %s", path, outcome.reason)

    def _keep(self) -> None:
        """Delete old recordings, now and then."""
        while True:
            config = self.config
            limits = Limits(config.keep_age_s, config.keep_size_bytes, config.keep_free_bytes)
            if limits != Limits():
                now_s, monotonic_s = time.time(), time.monotonic()
                self._say_deleted(
                    self._keeper.call(
                        self._retention.round, self._directory, config.record_file_name, limits, now_s, monotonic_s
                    )
                )
            gevent.sleep(min(_RETENTION_PAUSE_S, self._retention_interval_s))
            self._look_soon.wait(self._retention_interval_s)
            self._look_soon.clear()

    def _say_deleted(self, report: RetentionReport) -> None:
        for deleted in report.deleted:
            self._hub.count("recordings_deleted")
            log.info("deleted %s: %s; %d bytes", printable(str(deleted.path)), deleted.reason, deleted.size_bytes)
        for note in report.notes:
            log.warning("recordings: %s", note)
        for error in report.errors:
            self._hub.count("retention_errors")
            # The same again is no news.
            if error not in self._last_errors:
                log.error("can't look after old recordings: %s", printable(error))
        self._last_errors = report.errors
