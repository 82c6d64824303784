"""One publish being recorded: a greenlet that reads the stream's FLV log and has the recorder's threads write it.

It is a cursor: nothing is copied, and nobody woken, until there is a batch worth writing. If the disk is too slow or full, or
the file can't be written for any other reason, the file is closed, the cursor is let go, and with it the memory, and after a
while the recording is begun again. The publisher never notices.

May import gevent; imports the assembler, the file, and the stream's log.
"""

from __future__ import annotations

import datetime as dt
import errno
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import gevent
from gevent.event import Event

from rtmpd.config.model import printable
from rtmpd.live.flvlog import NEVER
from rtmpd.services.recorder.assembler import Assembler, SegmentLimits
from rtmpd.services.recorder.flv_file import FlvFile, file_error
from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import RecordConfig
    from rtmpd.live.flvlog import FlvLog
    from rtmpd.live.pages import Page
    from rtmpd.live.stream import Stream
    from rtmpd.services.recorder.assembler import Piece, Segment
    from rtmpd.util.threads import Job, Threads

__all__ = ["Recording", "RecordingOwner"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

BATCH_BYTES = 256 << 10
BATCH_S = 1.0
"""A batch is written when there is as much as this, or this long after the one before."""
_TAKE_BYTES = 1 << 20
"""The most that is taken from the log at once: putting it together holds the event loop."""


class RecordingOwner(Protocol):
    """What a recording asks of the service."""

    @property
    def config(self) -> RecordConfig:
        """The options in force."""

    @property
    def threads(self) -> Threads:
        """Those that write."""

    def count_error(self) -> None:
        """Count a recording that could not go on."""

    def finished(self, recording: Recording, path: Path, segment: Segment, reason: str) -> None:
        """Take note of a file that is whole."""

    def look_after(self, action: Callable[[], None]) -> None:
        """Run what may wait for a disk that does not answer, in a greenlet that nobody waits for."""


class _Late(OSError):
    """The disk did not answer in time, or too much waits for it."""


class Recording:
    """The recording of one publish; a reader of the stream's FLV log.

    Args:
        owner: The service.
        stream: What is recorded, from now on.
        connection_id: The publisher's connection, for the event.

    Attributes:
        key: The stream's.
        connection_id: The publisher's.
        greenlet: To be started by the owner.
        wake_at: See `rtmpd.live.flvlog.FlvReader`.
        file: What is being written; None between files.
    """

    def __init__(self, owner: RecordingOwner, stream: Stream, connection_id: str = "") -> None:
        self.key = stream.key
        self.connection_id = connection_id
        self.wake_at = NEVER
        self.file: FlvFile | None = None
        self._owner = owner
        self._stream = stream
        self._log: FlvLog | None = None
        self._page: Page | None = None
        self._offset = 0
        self._end_position: int | None = None
        self._overrun = False
        self._writing = False
        self._failing = False
        self._reason = ""
        self._segment: Segment | None = None
        self._job: Job[Any] | None = None
        self._woken = Event()
        self._over = Event()
        self._assembler: Assembler | None = None
        self._attach()
        self.greenlet = gevent.Greenlet(self._run)

    # The log -----------------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Read from here on."""
        stream = self._stream
        if self._assembler is None:
            self._assembler = Assembler(stream.vitals, self._limits(), stream.headers.current)
        else:
            self._assembler.restart(stream.headers.current)
        self._overrun = False
        self._log = stream.read_flv(self)
        self._page, self._offset = self._log.tail, self._log.tail.end
        self._wake_when(BATCH_BYTES)

    def _detach(self) -> None:
        self._stream.leave_flv(self)
        self._log = self._page = None

    def _limits(self) -> SegmentLimits:
        config = self._owner.config
        return SegmentLimits(config.segment_duration_s, config.segment_size_bytes)

    def _wake_when(self, size_bytes: int) -> None:
        """Ask to be woken when so much waits in the log."""
        if self._log is not None and self._page is not None:
            self.wake_at = self._page.base + self._offset + size_bytes
            self._log.look()

    def wake(self) -> None:
        """Called by the log, in the publisher's greenlet: there is a batch, or too much."""
        if self._writing:
            # The pages go at once, whatever the disk does.
            self._overrun = True
            self._detach()
        self._woken.set()

    def end(self, reason: str) -> None:
        """Read no further than the log is now, and close the file."""
        if self._end_position is None:
            self._reason = reason
            self._end_position = self._log.position if self._log is not None else 0
            self._stream.leave_flv(self)
            self._over.set()
            self._woken.set()

    def _collect(self) -> bool:
        """Put together what is in the log, a piece at a time; return whether there is more."""
        page, log_ = self._page, self._log
        if page is None or log_ is None:
            return False
        assert self._assembler is not None
        self._assembler.limits = self._limits()
        start = page.base + self._offset
        end = self._end_position
        limit = start + _TAKE_BYTES
        for tag in log_.read(page, self._offset):
            position = tag.page.base + tag.offset
            if end is not None and position > end:
                break
            self._assembler.feed(tag)
            self._page, self._offset = tag.page, tag.offset
            if position >= limit:
                return True
        return False

    # The greenlet ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                try:
                    self._record()
                except OSError as error:
                    self._fail(error)
                if self._over.wait(self._owner.config.record_retry_s):
                    return
                self._attach()
        finally:
            # Whatever it ends with, a bug or a kill: a cursor that nobody moves would keep the stream's memory.
            self._detach()
            self._over.set()

    def _record(self) -> None:
        """Write until the end; raises OSError when the disk does not take it."""
        assert self._assembler is not None
        while True:
            if not self._over.is_set():
                self._wake_when(BATCH_BYTES)
                self._woken.wait(BATCH_S)
            self._woken.clear()
            over = self._over.is_set()
            more = True
            while more:
                more = self._collect()
                if over and not more:
                    self._assembler.end()
                    self._page = self._log = None
                for piece in self._assembler.take():
                    self._write(piece)
            if over:
                return

    def _write(self, piece: Piece) -> None:
        segment, data, last = piece
        config = self._owner.config
        if data:
            if self.file is None:
                self.file = self._disk(FlvFile.create, *self._place(segment), config.disk_reserve_bytes)
                log.log(
                    logging.WARNING if self._failing else logging.INFO,
                    "%s: recording %sto %s",
                    self.key,
                    "again, " if self._failing else "",
                    printable(str(self.file.part)),
                )
            self._segment = segment
            self._disk(self.file.write, data, config.disk_reserve_bytes)
            self._failing = False
            segment.mark_written()
        if last and self.file is not None:
            file, self.file = self.file, None
            # Nobody waits for that: writing through to the disk may take long, and the next file is to begin.
            self._owner.look_after(partial(self._close, file, segment, None, "segment" if segment.cut else self._reason))

    def _place(self, segment: Segment) -> tuple[Path, str]:
        """Return the directory and the name of a file that begins now."""
        config = self._owner.config
        app, _, name = self.key.rpartition("/")
        now = dt.datetime.now().astimezone()
        return Path(config.record_directory).absolute(), config.record_file_name.expand(app, name, now, segment.number)

    def _disk(self, job: Callable[..., Result], *args: object) -> Result:
        """Have a thread do something with the file.

        Raises:
            OSError: It failed; or took too long, or so long that too much waits: then it goes on, and `_fail` sees to the rest.
        """
        limit_s = self._owner.config.disk_timeout_s
        self._writing = True
        self._wake_when(self._owner.config.disk_backlog_limit_bytes)
        self._woken.clear()
        self._job = None
        try:
            with gevent.Timeout(limit_s, _Late(errno.ETIMEDOUT, f"the disk has not answered for {limit_s:g} s")):
                self._job = running = self._owner.threads.spawn(job, *args)
                # Woken when it is done, when the log has grown too much, and at the end, which does not matter here.
                running.when_done(self._woken.set)
                while not running.done and not self._overrun:
                    self._woken.wait()
                    self._woken.clear()
        finally:
            self._writing = False
        if self._overrun:
            backlog = self._owner.config.disk_backlog_limit_bytes
            raise _Late(errno.ETIMEDOUT, f"{backlog} bytes waited for the disk (disk_backlog_limit_bytes)")
        self._job = None
        return running.get()

    # When it fails -----------------------------------------------------------------------------------------------------

    def _fail(self, error: OSError) -> None:
        """Close what there is, let go of the log."""
        assert self._assembler is not None
        owner = self._owner
        self._detach()
        self._assembler.abandon()
        self._woken.clear()
        owner.count_error()
        file, self.file = self.file, None
        segment = self._segment if file is not None else None
        retry = "" if self._over.is_set() else f"; trying again every {owner.config.record_retry_s:g} s"
        kept = f" {printable(str(file.part))}" if file is not None else ""
        level = logging.DEBUG if self._failing else logging.ERROR
        log.log(level, "%s: can't record%s: %s%s", self.key, kept, _explain(error), retry)
        self._failing = True
        job = self._job
        if file is not None:
            owner.look_after(partial(self._close, file, segment, job, f"error: {file_error(error)}"))
        elif job is not None:
            # A file that is opened after all is not wanted any more.
            owner.look_after(partial(_discard_late, job))

    def _close(self, file: FlvFile, segment: Segment | None, job: Job[Any] | None, reason: str) -> None:
        """Make a whole file of what was written, once *job*, which is still at it, is done."""
        if job is not None:
            job.wait()
            if job.succeeded and segment is not None:
                # It was written after all.
                segment.mark_written()
        owner = self._owner
        # The index of a long recording takes some ms to put together, and many may end at the same time.
        give_way()
        try:
            if segment is None or not segment.written_frames or file.deleted:
                owner.threads.call(file.discard)
            else:
                owner.finished(self, owner.threads.call(file.finish, segment.patches()), segment, reason)
        except OSError as error:
            owner.count_error()
            log.error(
                "%s: can't close %s: %s; it is repaired at the next start", self.key, printable(str(file.part)), _explain(error)
            )


def _discard_late(job: Job[Any]) -> None:
    """Delete the file that a job opens too late."""
    job.wait()
    if job.succeeded:
        job.get().discard()


def _explain(error: OSError) -> str:
    text = file_error(error)
    if error.filename:
        text += f": {printable(os.fsdecode(error.filename))}"
    return text
