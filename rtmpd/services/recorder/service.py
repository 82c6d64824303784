"""The recorder: decides which streams are recorded, repairs what an earlier run left, and deletes old recordings.

All work on files is done by its own native threads, so that a disk that does not answer delays nothing else.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event as Flag
from gevent.pool import Group

from rtmpd.events import EventType
from rtmpd.live.selection import SourceRole
from rtmpd.services.recorder.recording import Recording
from rtmpd.services.recorder.repair import Repaired, find_parts, repair_part
from rtmpd.services.recorder.retention import STEADY_S, Limits, Retention
from rtmpd.services.recorder.throttle import Throttle
from rtmpd.util.text import printable
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rtmpd.config.model import Config, RecordConfig
    from rtmpd.events import Event, Scalar
    from rtmpd.hub import Hub
    from rtmpd.live.stream import Stream
    from rtmpd.services.recorder.repair import RepairOutcome
    from rtmpd.services.recorder.retention import RetentionReport
    from rtmpd.services.recorder.segments import Segment

log = logging.getLogger(__name__)

_WRITERS = 4
_RETENTION_S = 60.0
_RETENTION_PAUSE_S = 5.0
"""The shortest time between two rounds, also when an error or a reload requests one."""


class Recorder:
    """The recorder service.

    Args:
        hub: The hub.
        options: The options of ``[record]``.

    Attributes:
        options: The options in force.
        threads: The threads that write recordings.
    """

    def __init__(self, hub: Hub, options: RecordConfig) -> None:
        self.options = options
        self.threads = Threads(_WRITERS)
        self._hub = hub
        self._recordings: dict[Stream, Recording] = {}
        self._greenlets = Group()
        self._upkeep = Group()
        self._upkeep_thread = Threads(1)
        self._throttle = Throttle()
        self._round_due = Flag()
        self._repairs = False
        self._last_errors: list[str] = []

    @staticmethod
    def select(config: Config) -> RecordConfig:
        """Return the options of ``[record]``."""
        return config.record

    def start(self) -> None:
        """Follow the streams that are live, and start the repair and the retention."""
        self._hub.bus.subscribe((EventType.LIVE_START, EventType.SOURCE_ACTIVE, EventType.LIVE_STOP), self._handle)
        self._hub.gauges["recordings_active"] = lambda: len(self._recordings)
        self._hub.reports.append(self._report)
        if self.options.record_all or self.options.record_streams:
            self._begin_repair()
        self._upkeep.spawn(self._retain)

    def reload(self, options: RecordConfig) -> None:
        """Start and end recordings of live streams as the new options require."""
        self.options = options
        for stream in self._hub.streams.values():
            if not stream.live:
                continue
            wanted = self._wants(stream)
            if wanted and stream not in self._recordings:
                self._begin(stream, "")
            elif not wanted and stream in self._recordings:
                self._recordings.pop(stream).end("reload")
        self._round_due.set()

    def stop(self, limit_s: float) -> None:
        """Close all recordings."""
        self._hub.bus.unsubscribe(self._handle)
        self._upkeep.kill(block=False)
        self._throttle.cancel()
        for recording in self._recordings.values():
            recording.end("the server is stopping")
        self._recordings.clear()
        with gevent.Timeout(limit_s, False):  # type: ignore[arg-type]
            # A recording that ends spawns another greenlet, which closes its file.
            while self._greenlets:
                self._greenlets.join()
        if self._greenlets:
            log.error("%d recordings not closed within %g s: the next start repairs them", len(self._greenlets), limit_s)
            self._greenlets.kill(block=False)

    def _report(self) -> Iterator[str]:
        """Give lines for SIGUSR2: the recordings by their formats."""
        files = [each.file for each in self._recordings.values()]
        if files:
            counts = Counter(file.part.suffixes[-2][1:].upper() if file is not None else "without a file" for file in files)
            yield f"recordings: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}"

    # Recordings --------------------------------------------------------------------------------------------------------

    def _wants(self, stream: Stream) -> bool:
        granted = stream.grant.record
        if granted is not None:
            return granted
        options = self.options
        return options.record_all or any(fnmatchcase(stream.key, pattern) for pattern in options.record_streams)

    def _handle(self, event: Event) -> None:
        stream = event.stream
        assert stream is not None
        recording = self._recordings.get(stream)
        if event.type is EventType.LIVE_START:
            if self._wants(stream):
                self._begin(stream, event.connection_id)
        elif recording is None:
            return
        elif event.type is EventType.LIVE_STOP:
            self._recordings.pop(stream).end(str(event.data.get("reason", "")))
        elif stream.ingest.active is not None:
            recording.source_changed(stream.ingest.active.source.headers.current, pause=self._skips(stream))

    @staticmethod
    def _skips(stream: Stream) -> bool:
        """Return whether the active source is a slate that is not recorded."""
        active = stream.ingest.active
        return active is not None and active.role is SourceRole.SLATE and not stream.options.slate.slate_record

    def _begin_repair(self) -> None:
        """Repair what an earlier run left, once: at the start, or with the first recording after it."""
        if not self._repairs:
            self._repairs = True
            self._upkeep.spawn(self._repair)

    def _begin(self, stream: Stream, connection_id: str) -> None:
        self._begin_repair()
        recording = self._recordings[stream] = Recording(self, stream, connection_id, paused=self._skips(stream))
        self._greenlets.start(recording.greenlet)  # type: ignore[arg-type]

    # The interface for recordings --------------------------------------------------------------------------------------

    def spawn(self, action: Callable[[], None]) -> None:
        """Run an action that may wait for the disk in a greenlet that only `stop` waits for."""
        self._greenlets.spawn(action)

    def count_error(self) -> None:
        """Count a failure, and request a round of the retention: the disk may be full of old recordings."""
        self._hub.count("recording_errors")
        self._round_due.set()

    def count_other_format(self) -> None:
        """Count a file that is FLV since MP4 can't carry its codecs."""
        self._hub.count("recordings_other_format")

    def finished(self, recording: Recording, path: Path, segment: Segment, reason: str) -> None:
        """Log and announce a finished file."""
        duration_s, size = segment.written.duration_ms / 1000, segment.written.size_bytes
        log.info("%s: recorded %s; %.1f s, %d bytes", recording.key, printable(str(path)), duration_s, size)
        self._announce(path, duration_s, size, reason, segment.number, recording.key, recording.connection_id)

    def _announce(
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
        return Path(self.options.record_directory).absolute()

    def _repair(self) -> None:
        """Repair the recordings that an earlier run left. The server already serves meanwhile."""
        call, throttle = self._upkeep_thread.call, self._throttle
        parts, errors = call(find_parts, self._directory, self.options.record_file_name, throttle)
        for error in errors:
            self.count_error()
            path = printable(str(error.filename))
            log.error("can't search %s for unfinished recordings: %s; they are not repaired", path, error.strerror)
        for part in parts:
            self._report_repair(call(repair_part, part, throttle, self.options.disk_reserve_bytes))

    def _report_repair(self, outcome: RepairOutcome) -> None:
        path = printable(str(outcome.path))
        match outcome.action:
            case Repaired.REPAIRED:
                self._hub.count("recordings_repaired")
                seconds, size, cut = outcome.duration_s, outcome.size_bytes, outcome.cut_bytes
                log.info("repaired %s; %.1f s, %d bytes, %d bytes cut off", path, seconds, size, cut)
                if outcome.gaps or outcome.original is not None:
                    kept = f"as it was: {printable(str(outcome.original))}" if outcome.original else "no copy of it was kept"
                    text = "%s was damaged: lost %d bytes (%.1f s) in %d places and %d bytes at its end; %s"
                    log.warning(text, path, outcome.gap_bytes, outcome.gap_s, outcome.gaps, cut, kept)
                self._announce(outcome.path, seconds, size, "repaired")
            case Repaired.REMOVED:
                log.info("removed %s: it contained no media", path)
            case Repaired.BROKEN:
                self.count_error()
                log.error("can't repair an unfinished recording: %s; it was renamed to %s", outcome.reason, path)
            case Repaired.FAILED:
                self.count_error()
                log.error("can't repair %s: %s; the next start of the server tries again", path, outcome.reason)
            case _:
                log.debug("%s is not repaired: %s", path, outcome.reason)

    def _retain(self) -> None:
        """Delete old recordings, about once a minute."""
        retention = Retention(self._throttle)
        while True:
            options = self.options
            limits = Limits(options.keep_age_s, options.keep_size_bytes, options.keep_free_bytes)
            if limits != Limits():
                now_s, monotonic_s = time.time(), time.monotonic()
                template = options.record_file_name
                self._report_deleted(
                    self._upkeep_thread.call(retention.round, self._directory, template, limits, now_s, monotonic_s)
                )
            gevent.sleep(_RETENTION_PAUSE_S)
            self._round_due.wait(_RETENTION_S)
            self._round_due.clear()

    def _report_deleted(self, report: RetentionReport) -> None:
        for deleted in report.deleted:
            self._hub.count("recordings_deleted")
            log.info("deleted %s: %s; %d bytes", printable(str(deleted.path)), deleted.reason, deleted.size_bytes)
        if report.clock_trusted:
            log.warning("the system clock is steady again: recordings are deleted for keep_age_s again")
        elif report.clock_trusted is False:
            log.warning(
                "the system clock has jumped: no recording is deleted for keep_age_s until it is steady for %g s", STEADY_S
            )
        for error in report.errors:
            self._hub.count("retention_errors")
            # An error of the previous round is not logged again.
            if error not in self._last_errors:
                log.error("can't delete old recordings: %s", printable(error))
        self._last_errors = report.errors
