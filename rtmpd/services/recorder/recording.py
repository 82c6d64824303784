"""The recording of one stream: a greenlet that reads the stream's FLV log and has threads of the recorder write it.

A recording lasts while the stream is live, whatever its sources. It reads a list of parts of logs, one for each source.
The greenlet is a cursor in the log: nothing is copied before there is a batch to write. If the disk fails, is full or too slow,
the file is closed, the cursor and with it the memory of the log is released, and recording starts again after a while. The
publisher is never delayed.
"""

from __future__ import annotations

import datetime as dt
import errno
import logging
import os
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import gevent
from gevent.event import Event

from rtmpd.live.log import NEVER
from rtmpd.phases import RECORDING, Machine, RecordingPhase
from rtmpd.services.recorder.assembler import Assembler, SegmentLimits
from rtmpd.services.recorder.files import RecordingFile, file_error
from rtmpd.util.event_loop import give_way
from rtmpd.util.stream_key import StreamKey
from rtmpd.util.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import RecordConfig
    from rtmpd.live.framing import Headers
    from rtmpd.live.log import Log
    from rtmpd.live.stream import Stream
    from rtmpd.services.recorder.assembler import Piece
    from rtmpd.services.recorder.segments import Segment
    from rtmpd.util.threads import Job, Threads

log = logging.getLogger(__name__)

Result = TypeVar("Result")

BATCH_BYTES = 256 << 10
BATCH_S = 1.0
"""A batch is written when it has this size, or this long after the previous one."""
_TAKE_BYTES = 1 << 20
"""The most that is read from the log at once: assembling it holds the event loop."""

_WAITING, _WRITING, _RETRYING = RecordingPhase.WAITING, RecordingPhase.WRITING, RecordingPhase.RETRYING
_ENDING, _ENDED = RecordingPhase.ENDING, RecordingPhase.ENDED


class RecordingOwner(Protocol):
    """What a recording needs of the service.

    Attributes:
        options: The options in force.
        threads: The threads that write.
    """

    options: RecordConfig
    threads: Threads

    def count_error(self) -> None:
        """Count a failed attempt to record, or a file that could not be closed."""

    def count_other_format(self) -> None:
        """Count a file that is not in the format that was asked for."""

    def finished(self, recording: Recording, path: Path, segment: Segment, reason: str) -> None:
        """Log and announce a finished file."""

    def spawn(self, action: Callable[[], None]) -> None:
        """Run an action that may wait for the disk in a greenlet that only the stop of the service waits for."""


class _Part:
    """A part of a log that has to be recorded.

    Attributes:
        log: The log.
        page, offset: The cursor.
        end: The position at which the part ends; `NEVER`: it grows.
        headers: Those of its source, which are put in force before its first message; None: they are.
    """

    __slots__ = ("end", "headers", "log", "offset", "page")

    def __init__(self, log: Log, headers: Headers) -> None:
        self.log = log
        self.page = log.tail
        self.offset = log.tail.end
        self.end = NEVER
        self.headers: Headers | None = headers

    @property
    def position(self) -> int:
        """The cursor as a position in the log."""
        return self.page.base + self.offset


class Recording:
    """The recording of one stream, for as long as it is live; a reader of the stream's FLV log.

    Args:
        owner: The service.
        stream: The stream; it is recorded from now on.
        connection_id: The connection of the first publisher, for the event.
        paused: A slate that is not recorded is played.

    Attributes:
        key: The stream key.
        connection_id: See above.
        greenlet: To be started by the owner.
        wake_at: See `rtmpd.live.log.LogReader`.
        file: The file in progress; None between files.
    """

    def __init__(self, owner: RecordingOwner, stream: Stream, connection_id: str = "", *, paused: bool = False) -> None:
        self.key = StreamKey(stream.key)
        self.connection_id = connection_id
        self.greenlet = gevent.Greenlet(self._run)
        self.wake_at = NEVER
        self.file: RecordingFile | None = None
        self._owner = owner
        self._stream = stream
        self._machine = Machine(RECORDING, _WAITING)
        self._failures = 0  # since the last successful write
        self._reason = ""
        self._segment: Segment | None = None
        self._job: Job[Any] | None = None
        self._woken = Event()
        self._noted = ""
        self._assembler = Assembler(self._limits(), self._record_format)
        self._parts: deque[_Part] = deque()
        self._paused = paused
        self._attach()

    def _is(self, *phases: RecordingPhase) -> bool:
        return self._machine.phase in phases

    @property
    def _record_format(self) -> str:
        return self._stream.options.record.record_format

    def _limits(self) -> SegmentLimits:
        options = self._owner.options
        return SegmentLimits(options.segment_duration_s, options.segment_size_bytes)

    # The log -----------------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Start to read at the present end of the log."""
        self._assembler.restart(self._stream.headers)
        if self._paused:
            self._stay_registered()
        else:
            self._read_part(self._stream.read(self), self._stream.headers)

    def _read_part(self, log_: Log, headers: Headers) -> None:
        """Read a log from its present end on."""
        self._parts.append(_Part(log_, headers))
        self._schedule_wake()

    def _stay_registered(self) -> None:
        """Read nothing, but remain a reader: the stream's timeline must go on, since the file does."""
        self.wake_at = NEVER
        self._stream.read(self, self._stream.published_log.framing)

    def _close_part(self) -> None:
        """Let the part that grows end at the present end of its log."""
        if self._parts and self._parts[-1].end == NEVER:
            self._parts[-1].end = self._parts[-1].log.position

    def _detach(self) -> None:
        """Release the cursor, and with it the memory of the log."""
        self._stream.stop_reading(self)
        self._parts.clear()

    def _schedule_wake(self) -> None:
        """Have `wake` called when a batch is unread, or, while a thread writes, when too much waits for the disk."""
        size_bytes = BATCH_BYTES if self._is(_WAITING) else self._owner.options.disk_backlog_limit_bytes
        if self._parts and self._parts[-1].end == NEVER:
            growing = self._parts[-1]
            before = sum(part.end - part.position for part in self._parts if part is not growing)
            self.wake_at = growing.position + max(0, size_bytes - before)
            growing.log.schedule()

    def wake(self) -> None:
        """Called by the log in the publisher's greenlet: a batch is complete, or too much data waits for the disk."""
        if self._is(_WRITING):
            # The memory is released here and now, even if the disk never answers.
            self._detach()
            self._machine.to(_RETRYING)
        self._woken.set()

    def fail(self) -> None:
        """Called by the stream: its log ends because of an error."""
        self.end("internal error")

    def source_changed(self, headers: Headers, *, pause: bool) -> None:
        """Another source is active, none of whose messages is in the log. Must not wait.

        Args:
            headers: The headers of the source.
            pause: It is not recorded: the recording continues with the next source.
        """
        was_paused, self._paused = self._paused, pause
        if not self._is(_WAITING, _WRITING):
            return
        if pause:
            self._close_part()
            self._stream.stop_reading(self)
            self._stay_registered()
            self._woken.set()
        elif was_paused:
            self._stream.stop_reading(self)
            self._read_part(self._stream.read(self), headers)
        else:
            self._close_part()
            self._read_part(self._parts[-1].log, headers)

    def end(self, reason: str) -> None:
        """Have everything up to the present end of the log written, and the file closed."""
        if self._is(_RETRYING):
            self._machine.to(_ENDED)
        elif self._is(_WAITING, _WRITING):
            self._machine.to(_ENDING)
            self._reason = reason
            self._close_part()
            self._stream.stop_reading(self)
        self._woken.set()

    def _collect(self) -> bool:
        """Assemble at most `_TAKE_BYTES` of the log. Return whether there is more."""
        self._assembler.limits = self._limits()
        self._assembler.record_format = self._record_format
        taken = 0
        while self._parts:
            part = self._parts[0]
            if part.headers is not None:
                self._assembler.replace_headers(part.headers)
                part.headers = None
            for tag in part.log.read_all(part.page, part.offset):
                if tag.page.base + tag.offset > part.end:
                    break
                self._assembler.feed(tag)
                part.page, part.offset = tag.page, tag.offset
                taken += len(tag.data)
                if taken >= _TAKE_BYTES:
                    return True
            if part.end == NEVER:
                break
            self._parts.popleft()
        return False

    # The greenlet ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is(_ENDED):
                try:
                    self._record()
                except OSError as error:
                    self._suspend(error)
                    self._wait_for_retry()
        finally:
            # Also after a bug or a kill: a cursor that no longer moves would keep the memory of the log.
            self._detach()
            self._machine.to(_ENDED)

    def _record(self) -> None:
        """Write until the stream is no longer live. Raises OSError if the disk fails or is too slow."""
        while not self._is(_ENDED):
            if self._is(_WAITING):
                self._schedule_wake()
                # A paused recording that has written all waits for the next source.
                self._woken.wait(BATCH_S if self._parts else None)
            self._woken.clear()
            ending = self._is(_ENDING)
            more = True
            while more:
                more = self._collect()
                if ending and not more:
                    self._assembler.end()
                    self._detach()
                elif not more:
                    self._assembler.flush(at_once=not self._parts)
                for piece in self._assembler.take():
                    self._write(piece)
            if ending:
                self._machine.to(_ENDED)

    def _write(self, piece: Piece) -> None:
        segment, data, last, patches = piece
        options = self._owner.options
        if data:
            if self.file is None:
                place = self._place(segment)
                self.file = self._disk(RecordingFile.create, *place, options.disk_reserve_bytes, segment.suffix)
                level = logging.WARNING if self._failures else logging.INFO
                again = "again, " if self._failures else ""
                log.log(level, "%s: recording %sto %s", self.key, again, printable(str(self.file.part)))
                self._note(segment)
                patches = (*patches, *segment.created(time.time()))
            self._segment = segment
            self._disk(self.file.write, data, options.disk_reserve_bytes, patches)
            self._failures = 0
            segment.mark_written()
        if last and self.file is not None:
            file, self.file = self.file, None
            # In a greenlet of its own: the fsync may take long, and the next file is to begin.
            self._owner.spawn(partial(self._close, file, segment, None, "segment" if segment.cut else self._reason))

    def _note(self, segment: Segment) -> None:
        """Count and log how a file differs from the options: its format, and tracks that are left out. Each difference once."""
        left_out = ", ".join(segment.left_out)
        found = segment.instead_of or left_out
        is_new = found != self._noted
        self._noted = found
        if segment.instead_of:
            self._owner.count_other_format()
            if is_new:
                log.warning("%s: recording as FLV instead of MP4: %s (record_format)", self.key, found)
        elif left_out and is_new:
            text = "%s: not recorded: %s; an MP4 file has the first track of video and of audio only (record_format)"
            log.warning(text, self.key, left_out)

    def _place(self, segment: Segment) -> tuple[Path, str]:
        """Return the directory and the name of a file that begins now."""
        options = self._owner.options
        now = dt.datetime.now().astimezone()
        name = options.record_file_name.expand(self.key.app, self.key.name, now, segment.number)
        return Path(options.record_directory).absolute(), name

    def _disk(self, job: Callable[..., Result], *args: object) -> Result:
        """Run a job in a thread, and return its result.

        Raises:
            OSError: The job failed, took too long, or too much data waits for it. An unfinished job continues in its thread;
                `_suspend` takes care of its result.
        """
        options = self._owner.options
        limit_s = options.disk_timeout_s
        if self._is(_WAITING):
            self._machine.to(_WRITING)
        self._schedule_wake()
        self._woken.clear()
        self._job = None
        late = TimeoutError(errno.ETIMEDOUT, f"the disk did not answer within {limit_s:g} s (disk_timeout_s)")
        with gevent.Timeout(limit_s, late):
            self._job = running = self._owner.threads.spawn(job, *args)
            # Also set by `wake` and `end`.
            running.when_done(self._woken.set)
            while not running.done and self._is(_WRITING, _ENDING):
                self._woken.wait()
                self._woken.clear()
        if not self._is(_WRITING, _ENDING):
            backlog = options.disk_backlog_limit_bytes
            raise TimeoutError(errno.ETIMEDOUT, f"the disk is too slow: {backlog} bytes wait for it (disk_backlog_limit_bytes)")
        self._job = None
        result = running.get()
        if self._is(_WRITING):
            self._machine.to(_WAITING)
        return result

    # Failures ----------------------------------------------------------------------------------------------------------

    def _suspend(self, error: OSError) -> None:
        """Release the log, and have the file closed."""
        self._detach()
        self._assembler.abandon()
        self._machine.to(_ENDED if self._is(_ENDING, _ENDED) else _RETRYING)
        owner = self._owner
        owner.count_error()
        file, self.file = self.file, None
        # Only the first failure is reported as an error, not each further attempt.
        level = logging.DEBUG if self._failures else logging.ERROR
        self._failures += 1
        to = f" to {printable(str(file.part))}" if file is not None else ""
        retry = "" if self._is(_ENDED) else f"; retrying every {owner.options.record_retry_s:g} s (record_retry_s)"
        log.log(level, "%s: can't record%s: %s%s", self.key, to, _explain(error), retry)
        if file is not None or self._job is not None:
            segment = self._segment if file is not None else None
            owner.spawn(partial(self._close, file, segment, self._job, f"error: {file_error(error)}"))

    def _wait_for_retry(self) -> None:
        with gevent.Timeout(self._owner.options.record_retry_s, False):  # type: ignore[arg-type]
            while self._is(_RETRYING):
                self._woken.wait()
                self._woken.clear()
        if self._is(_RETRYING):
            self._machine.to(_WAITING)
            self._attach()

    def _close(self, file: RecordingFile | None, segment: Segment | None, job: Job[Any] | None, reason: str) -> None:
        """Wait for the unfinished *job* on *file*, or that creates it; publish the file, or delete it if it has no frames."""
        if job is not None:
            job.wait()
            if job.succeeded:
                if file is None:
                    file = job.get()
                elif segment is not None:
                    segment.mark_written()
        if file is None:
            return
        owner = self._owner
        # Rendering the index of a long recording takes some ms, and many recordings may end at the same time.
        give_way()
        try:
            if segment is None or not segment.written.frames or file.deleted:
                owner.threads.call(file.discard)
            else:
                path = owner.threads.call(file.finish, segment.patches())
                segment.written = segment.written._replace(size_bytes=file.size)
                owner.finished(self, path, segment, reason)
        except OSError as error:
            owner.count_error()
            part = printable(str(file.part))
            log.error("%s: can't close %s: %s; the next start of the server repairs it", self.key, part, _explain(error))


def _explain(error: OSError) -> str:
    path = f": {printable(os.fsdecode(error.filename))}" if error.filename else ""
    return file_error(error) + path
