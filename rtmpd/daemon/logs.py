"""The log and the access log: a bounded queue, and a native thread that formats and writes.

A terminal, disk or journal that pauses must not pause the media, so the event loop only puts records into the queue. Lines that
find the queue full, and lines that the sink does not accept, are dropped and counted.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import logging.handlers
import queue
import select
import sys
import threading
import traceback
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.daemon.log_formats import access_json, access_text, journal_datagram, json_line, text_line
from rtmpd.daemon.log_sinks import StreamSink, Target, is_journal, open_sink, stderr_descriptor
from rtmpd.errors import RtmpdError
from rtmpd.util.log_throttle import LogThrottle
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import Config, LogConfig
    from rtmpd.daemon.log_formats import Format
    from rtmpd.daemon.log_sinks import Sink

log = logging.getLogger(__name__)

_STDERR = Target("stderr")
_OFF = Target("off")
_ACCESS = "rtmpd.access"

_Item = tuple[int, logging.LogRecord | None]
"""The number of lines dropped before this one, and the line; None instead of a line wakes the thread."""


class _Change(NamedTuple):
    """A new target and format for a pipe; *logged*: a reopened file is worth a log line."""

    target: Target
    format_name: str
    logged: bool


class _QueueHandler(logging.handlers.QueueHandler):
    """Puts records into the queue, or drops and counts them."""

    def __init__(self, lines: queue.Queue[_Item | None]) -> None:
        super().__init__(lines)
        self.dropped = 0
        self._reported = 0
        self._lines = lines

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Format the message at once: its arguments may change, and a traceback keeps frames alive."""
        message = record.getMessage()
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record = copy.copy(record)
        record.msg = message
        record.args = record.exc_info = record.stack_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a record into the queue, together with the number of lines dropped before it."""
        try:
            self._lines.put_nowait((self.unreported, record))
            self._reported = self.dropped
        except queue.Full:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name in logging
        """Log that a message can't be formatted. The method of `logging` would write to standard error, which may block."""
        self.enqueue(_record(logging.ERROR, f"internal error: can't format {record.msg!r}\n{traceback.format_exc()}"))

    @property
    def unreported(self) -> int:
        """The number of lines dropped since the last one that was not."""
        return self.dropped - self._reported


def _record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("rtmpd.daemon.logs", level, __file__, 0, message, None, None)


class LogPipe:
    """Writes the lines of one logger to a target.

    Args:
        logger: The logger.
        queue_limit: Most lines that wait.
        make_format: Returns the format for a target and the name of a format.
        report: Logs a problem of the target elsewhere.
        self_reporting: The lines may also report problems of their own target: those of a log for people, not for programs.
    """

    def __init__(
        self,
        logger: logging.Logger,
        queue_limit: int,
        make_format: Callable[[Target, str], Format],
        report: Callable[[int, str], None],
        *,
        self_reporting: bool,
    ) -> None:
        self._logger = logger
        self._make_format = make_format
        self._report = report
        self._self_reporting = self_reporting
        self._lines: queue.Queue[_Item | None] = queue.Queue(queue_limit)
        self._handler = _QueueHandler(self._lines)
        self._changes: deque[_Change] = deque()
        self._target = _OFF
        self._sink: Sink = open_sink(_OFF)
        self._format = make_format(_OFF, "text")
        self._lost = 0
        # Lines lost since the last successful write, and the reason.
        self._outage = 0
        self._reason = ""
        self._outage_throttle = LogThrottle()
        self._last_problem = ""
        self._thread: threading.Thread | None = None
        logger.addHandler(self._handler)
        logger.propagate = False

    @property
    def dropped(self) -> int:
        """Lines dropped because the queue was full, or because the sink did not accept them."""
        return self._handler.dropped + self._lost

    # In the event loop -------------------------------------------------------------------------------------------------

    def start(self, target: Target, format_name: str, sink: Sink | None = None) -> None:
        """Start to write, including the lines that have waited so far.

        Args:
            target: The target.
            format_name: The name of the format.
            sink: The open target; None: open it.

        Raises:
            OSError: The target can't be opened.
        """
        self._sink = sink or open_sink(target)
        self._target = target
        self._format = self._make_format(target, format_name)
        # A daemon thread: one that blocks in a write must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=self._logger.name, daemon=True)
        self._thread.start()

    def change(self, target: Target, format_name: str, *, logged: bool = False) -> None:
        """Request another target or format, also for lines that wait. A file is reopened in any case. Does not wait."""
        self._changes.append(_Change(target, format_name, logged))
        # If the queue is full the thread is awake.
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait((0, None))

    def stop(self, limit_s: float = 2.0) -> bool:
        """Write all waiting lines and end the thread; return False if the target blocked for longer than *limit_s*."""
        self._logger.removeHandler(self._handler)
        if self._thread is None:
            return True
        try:
            self._lines.put(None, timeout=limit_s)
        except queue.Full:
            return False
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    # In the thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        running = True
        while running:
            try:
                running = self._write_batch()
            except Exception:  # noqa: BLE001 - the top of a thread
                self._lost += 1
                _write_stderr(logging.ERROR, f"internal error in the log: {traceback.format_exc()}")

    def _write_batch(self) -> bool:
        """Wait for lines, and write one batch; return False after the last."""
        item = self._lines.get()
        self._apply_changes()
        lines: list[bytes] = []
        size = 0
        with contextlib.suppress(queue.Empty):
            while item is not None:
                dropped, record = item
                if dropped:
                    self._report_drops(dropped, lines)
                if record is not None:
                    lines.append(self._format(record))
                    size += len(lines[-1])
                if size >= self._sink.batch_bytes:
                    break
                item = self._lines.get_nowait()
        if item is None and self._handler.unreported:
            self._report_drops(self._handler.unreported, lines)
        if lines:
            self._write(lines)
        if item is None:
            self._sink.close()
        return item is not None

    def _report_drops(self, count: int, lines: list[bytes]) -> None:
        message = f"{count} log lines were dropped: {self._target} is too slow (queue_limit)"
        if self._self_reporting:
            lines.append(self._format(_record(logging.WARNING, message)))
        elif self._target != _OFF:
            self._report(logging.WARNING, message)

    def _write(self, lines: list[bytes]) -> None:
        sink = self._sink
        try:
            sink.follow()
        except OSError as error:
            problem = f"can't reopen {self._target} after it was moved: {error.strerror}; lines are written to the moved file"
            if problem != self._last_problem:
                self._last_problem = problem
                self._log(logging.ERROR, problem)
        notice = []
        if self._outage and self._self_reporting:
            notice = [self._format(_record(logging.WARNING, self._about_outage()))]
        lost = sink.write([*notice, *lines])
        if not lost:
            if self._outage:
                self._report(logging.WARNING, f"{self._target} can be written to again; {self._about_outage()}")
            self._outage = 0
            return
        if notice and lost <= len(lines):
            # The notice was written, so the count starts again.
            self._outage = 0
        lost = min(lost, len(lines))
        self._reason = f"can't write to {self._target}: {sink.problem}"
        if not self._outage and self._outage_throttle.due():
            self._report(logging.ERROR, f"{self._reason}; its lines are dropped until writing works again")
        self._outage += lost
        self._lost += lost

    def _about_outage(self) -> str:
        return f"{self._outage} log lines were dropped: {self._reason}"

    def _log(self, level: int, message: str) -> None:
        """Log something about the target: in the target itself if it is for people, else elsewhere."""
        if self._self_reporting:
            self._sink.write([self._format(_record(level, message))])
        else:
            self._report(level, message)

    def _apply_changes(self) -> None:
        while self._changes:
            change = self._changes.popleft()
            if change.target == self._target:
                self._reopen(logged=change.logged)
            else:
                self._move(change.target)
            self._format = self._make_format(self._target, change.format_name)

    def _move(self, target: Target) -> None:
        try:
            sink = open_sink(target)
        except OSError as error:
            self._log(logging.ERROR, f"can't open {target}: {error.strerror}; the log is still written to {self._target}")
            return
        old, self._sink = self._sink, sink
        self._target = target
        old.close()

    def _reopen(self, *, logged: bool) -> None:
        try:
            self._sink.reopen()
        except OSError as error:
            self._log(logging.ERROR, f"can't reopen {self._target}: {error.strerror}; the log is still written to the old file")
        else:
            if logged and self._target.kind == "file":
                self._log(logging.INFO, f"{self._target} was reopened")


class Logs:
    """The log and the access log; for the daemon, a service that starts before all others and ends after them.

    Lines for standard error are written at once. Lines for a file or the journal wait for `start`, when the process runs as the
    user that must own the file. If `start` is never called, they are written to standard error.

    Args:
        options: ``[log]``.
    """

    def __init__(self, options: LogConfig) -> None:
        self._options = options
        logger = logging.getLogger("rtmpd")
        logger.setLevel(options.level.upper())
        self._main = LogPipe(logger, options.queue_limit, _main_format, self._report, self_reporting=True)
        access = logging.getLogger(_ACCESS)
        access.setLevel(logging.INFO)
        self._access = LogPipe(access, options.queue_limit, _access_format, log.log, self_reporting=False)
        self._target = _STDERR
        self._started = False
        if _main_target(options) == _STDERR:
            self._start(_STDERR)

    def _start(self, target: Target, sink: Sink | None = None) -> None:
        self._main.start(target, self._options.log_format, sink)
        self._target = target
        self._started = True

    @property
    def dropped(self) -> int:
        """The number of lost lines of the log."""
        return self._main.dropped

    @property
    def access_dropped(self) -> int:
        """The number of lost lines of the access log."""
        return self._access.dropped

    def start(self) -> None:
        """Open the targets.

        Raises:
            RtmpdError: A target can't be opened.
        """
        target, access = _main_target(self._options), _access_target(self._options)
        sinks = []
        for each in (target, access):
            try:
                # In a thread: signals are handled meanwhile.
                sinks.append(Threads(1).call(open_sink, each))
            except OSError as error:
                raise RtmpdError(f"can't log to {each}: {error.strerror}") from None
        if not self._started:
            self._start(target, sinks[0])
        self._access.start(access, self._options.log_format, sinks[1])

    @staticmethod
    def select(config: Config) -> LogConfig:
        """Return the options of the logs."""
        return config.log

    def reload(self, options: LogConfig) -> None:
        """Apply options and reopen files. A target that can't be opened is an error in the log, and the old one is kept."""
        self._options = options
        logging.getLogger("rtmpd").setLevel(options.level.upper())
        self._change(logged=False)

    def reopen(self) -> None:
        """Reopen files after a rotation."""
        self._change(logged=True)

    def _change(self, *, logged: bool) -> None:
        self._target = _main_target(self._options)
        self._main.change(self._target, self._options.log_format, logged=logged)
        self._access.change(_access_target(self._options), self._options.log_format, logged=logged)

    def stop(self, limit_s: float) -> None:
        """Do nothing: other services still log how they end. See `finish`."""

    def echo_error(self, message: str) -> None:
        """Write an error to standard error, too, if the log is elsewhere: an operator may have started the server there."""
        if self._started and self._target != _STDERR:
            _write_stderr(logging.ERROR, message)

    def finish(self) -> bool:
        """Write all waiting lines and end; return False if a target blocked."""
        if not self._started:
            self._start(_STDERR)
        done = self._access.stop()
        return self._main.stop() and done

    def _report(self, level: int, message: str) -> None:
        if self._target != _STDERR:
            _write_stderr(level, message)


def _main_target(options: LogConfig) -> Target:
    return Target("file", options.log_file) if options.log_file else Target(options.log_target)


def _access_target(options: LogConfig) -> Target:
    return Target("file", options.access_log_file) if options.access_log_file else _OFF


def _main_format(target: Target, format_name: str) -> Format:
    if target.kind == "journal":
        return journal_datagram
    terminal = sys.__stderr__ if target == _STDERR else None
    journal = terminal is not None and is_journal(terminal.fileno())
    if format_name == "json":
        return partial(json_line, journal=journal)
    return partial(text_line, encoding=terminal.encoding if terminal is not None else "utf-8", journal=journal)


def _access_format(_target: Target, format_name: str) -> Format:
    return access_json if format_name == "json" else access_text


def _write_stderr(level: int, message: str) -> None:
    """Write a line to standard error, unless that would block."""
    descriptor = stderr_descriptor()
    if descriptor is None:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if poll.poll(0):
        record = _record(level, message)
        StreamSink(descriptor).write([text_line(record, journal=is_journal(descriptor))])
