"""The logs: through a queue to a native thread, since a terminal, a disk or a journal that pauses must not pause the media.

The queue is bounded; lines that find it full are dropped and counted, and so are those that the sink does not take. The thread
does all that may block: it formats, opens and writes. The event loop only puts records into the queue.
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
import time
import traceback
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtmpd.daemon.log_formats import AccessJson, AccessText, JournalDatagram, JsonLine, TextLine
from rtmpd.daemon.log_sinks import StreamSink, Target, is_journal, open_sink, stderr_descriptor
from rtmpd.errors import RtmpdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import Config, LogConfig
    from rtmpd.daemon.log_formats import Format
    from rtmpd.daemon.log_sinks import Sink

__all__ = ["LogPipe", "Logs"]

log = logging.getLogger(__name__)

_STDERR = Target("stderr")
_OFF = Target("off")
_ACCESS = "rtmpd.access"
_COMPLAINT_S = 10.0

_Item = tuple[int, logging.LogRecord | None]
"""How many lines were dropped before, and the next line; or None, to look what else there is to do."""


@dataclass(frozen=True, slots=True)
class _Change:
    """What the thread is asked to do between two lines.

    Attributes:
        target: Where the log is to go.
        form: How it is to look.
        told: It was asked for in so many words, and so is worth a line.
    """

    target: Target
    form: str
    told: bool = False


class _Lines(logging.handlers.QueueHandler):
    """Puts records into the queue, or drops and counts them."""

    def __init__(self, lines: queue.Queue[_Item | None]) -> None:
        super().__init__(lines)
        self.dropped = 0
        self._told = 0
        self._lines = lines

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Make the message at once: what it is made of may change, and a traceback holds on to what it went through."""
        message = record.getMessage()
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record = copy.copy(record)
        record.msg = message
        record.args = record.exc_info = record.stack_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a record into the queue, with how many before it were lost."""
        try:
            self._lines.put_nowait((self.untold, record))
            self._told = self.dropped
        except queue.Full:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging calls it so
        """Say that a line can't be made, which is a bug, without the ways of `logging`, which would wait for a terminal."""
        text = f"internal error: a line can't be made of {record.msg!r}\n{traceback.format_exc()}"
        self.enqueue(_record(logging.ERROR, text))

    @property
    def untold(self) -> int:
        """How many lines were dropped since the last that was not."""
        return self.dropped - self._told


def _record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("rtmpd.daemon.logs", level, __file__, 0, message, None, None)


class LogPipe:
    """The way of one logger's lines out of the process.

    Args:
        logger: The logger.
        queue_limit: Lines that may wait.
        make_format: Gives the format for a target, by the name of the configuration.
        complain: Says, elsewhere, what is wrong with the target.
        tells: Its own lines may say so, too: those of a log for people, not of one for programs.
    """

    def __init__(
        self,
        logger: logging.Logger,
        queue_limit: int,
        make_format: Callable[[Target, str], Format],
        complain: Callable[[int, str], None],
        *,
        tells: bool,
    ) -> None:
        self._logger = logger
        self._make_format = make_format
        self._complain = complain
        self._tells = tells
        self._lines: queue.Queue[_Item | None] = queue.Queue(queue_limit)
        self._handler = _Lines(self._lines)
        self._changes: deque[_Change] = deque()
        self._target = _OFF
        self._sink: Sink = open_sink(_OFF)
        self._format = make_format(_OFF, "text")
        self._lost = 0
        # Lines that were lost since the sink worked, and why.
        self._outage = 0
        self._why = ""
        self._complained = ""
        self._complained_at = -_COMPLAINT_S
        self._thread: threading.Thread | None = None
        logger.addHandler(self._handler)
        logger.propagate = False

    @property
    def dropped(self) -> int:
        """Lines that were dropped because the queue was full, or because the sink did not take them."""
        return self._handler.dropped + self._lost

    # In the event loop -------------------------------------------------------------------------------------------------

    def start(self, target: Target, form: str, sink: Sink | None = None) -> None:
        """Begin to write: also what has waited so far.

        Args:
            target: Where to.
            form: How: the name of a format.
            sink: The target, open; without it, it is opened.

        Raises:
            OSError: It can't be opened.
        """
        self._sink = sink or open_sink(target)
        self._target = target
        self._format = self._make_format(target, form)
        # A daemon thread: one that is stuck in a write must not keep the process.
        self._thread = threading.Thread(target=self._run, name=self._logger.name, daemon=True)
        self._thread.start()

    def change(self, target: Target, form: str, *, told: bool = False) -> None:
        """Ask for another target or format; a file is opened again in any case. Does not wait: what waits goes there, too."""
        self._changes.append(_Change(target, form, told))
        # If the queue is full the thread is awake.
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait((0, None))

    def stop(self, limit_s: float = 2.0) -> bool:
        """Write out what waits and end the thread; return whether that was done within *limit_s*.

        If not, whoever reads the log has paused, and the thread is stuck in a write.
        """
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
        going_on = True
        while going_on:
            try:
                going_on = self._turn()
            except Exception:  # noqa: BLE001 - the top of a thread
                self._lost += 1
                _to_stderr(logging.ERROR, f"internal error in the log: {traceback.format_exc()}")

    def _turn(self) -> bool:
        """Write what waits, as much as makes a batch; return whether there may be more."""
        item = self._lines.get()
        self._make_changes()
        lines: list[bytes] = []
        size = 0
        with contextlib.suppress(queue.Empty):
            while item is not None:
                dropped, record = item
                if dropped:
                    self._note_drops(dropped, lines)
                if record is not None:
                    lines.append(self._format(record))
                    size += len(lines[-1])
                if size >= self._sink.batch_bytes:
                    break
                item = self._lines.get_nowait()
        if item is None and self._handler.untold:
            self._note_drops(self._handler.untold, lines)
        if lines:
            self._write(lines)
        if item is None:
            self._sink.close()
        return item is not None

    def _note_drops(self, count: int, lines: list[bytes]) -> None:
        if self._tells:
            message = f"{count} log lines were dropped: whoever reads the log paused"
            lines.append(self._format(_record(logging.WARNING, message)))
        elif self._target != _OFF:
            self._complain(logging.WARNING, f"{count} lines for {self._target} were dropped: it is too slow")

    def _write(self, lines: list[bytes]) -> None:
        sink = self._sink
        try:
            sink.follow()
        except OSError as error:
            self._say_once(f"can't open {self._target}, which was moved, again: {error.strerror}; its lines go with the file")
        notice = [self._format(_record(logging.WARNING, self._about_outage()))] if self._outage and self._tells else []
        lost = sink.write([*notice, *lines])
        if not lost:
            if self._outage:
                self._complain(logging.WARNING, f"{self._target} can be written to again; {self._about_outage()}")
            self._outage = 0
            return
        if notice and lost <= len(lines):
            # It has been told, up to here.
            self._outage = 0
        lost = min(lost, len(lines))
        self._why = f"can't write to {self._target}: {sink.problem}"
        now = time.monotonic()
        if not self._outage and now - self._complained_at > _COMPLAINT_S:
            self._complained_at = now
            self._complain(logging.ERROR, f"{self._why}; its lines are dropped until that works again")
        self._outage += lost
        self._lost += lost

    def _about_outage(self) -> str:
        return f"{self._outage} log lines were dropped: {self._why}"

    def _say_once(self, problem: str) -> None:
        if problem != self._complained:
            self._complained = problem
            self._say(logging.ERROR, problem)

    def _say(self, level: int, message: str) -> None:
        """Say something about the log: in it if it is for people, and otherwise where complaints go."""
        if self._tells:
            self._sink.write([self._format(_record(level, message))])
        else:
            self._complain(level, message)

    def _make_changes(self) -> None:
        while self._changes:
            change = self._changes.popleft()
            if change.target == self._target:
                self._reopen(told=change.told)
            else:
                self._move(change.target)
            self._format = self._make_format(self._target, change.form)

    def _move(self, target: Target) -> None:
        try:
            sink = open_sink(target)
        except OSError as error:
            self._say(logging.ERROR, f"can't open {target}: {error.strerror}; the log stays with {self._target}")
            return
        old, self._sink = self._sink, sink
        self._target = target
        old.close()

    def _reopen(self, *, told: bool) -> None:
        try:
            self._sink.reopen()
        except OSError as error:
            self._say(logging.ERROR, f"can't open {self._target} again: {error.strerror}; the log stays with the old file")
        else:
            if told and self._target.kind == "file":
                self._say(logging.INFO, f"{self._target} was opened again")


class Logs:
    """The log and the access log; for the daemon, a service that starts before the others and ends after all else.

    Lines for standard error go out at once. Those for a file or the journal wait for `start`, when the process has become the
    user that is to own the file; if it never comes to that, they go to standard error.

    Args:
        config: What to begin with.
    """

    def __init__(self, config: LogConfig) -> None:
        self._config = config
        logger = logging.getLogger("rtmpd")
        logger.setLevel(config.level.upper())
        self._main = LogPipe(logger, config.queue_limit, _main_format, self._main_complains, tells=True)
        self._access = LogPipe(logging.getLogger(_ACCESS), config.queue_limit, _access_format, log.log, tells=False)
        logging.getLogger(_ACCESS).setLevel(logging.INFO)
        self._to = _STDERR
        self._begun = False
        if _main_target(config) == _STDERR:
            self._begin(_STDERR, config.log_format)

    def _begin(self, target: Target, form: str, sink: Sink | None = None) -> None:
        self._main.start(target, form, sink)
        self._to = target
        self._begun = True

    @property
    def dropped(self) -> int:
        """Lines of the log that were lost."""
        return self._main.dropped

    @property
    def access_dropped(self) -> int:
        """Lines of the access log that were lost."""
        return self._access.dropped

    def start(self) -> None:
        """Open what the configuration says.

        Raises:
            RtmpdError: It can't be opened.
        """
        config = self._config
        target, access = _main_target(config), _access_target(config)
        sinks = []
        for each in (target, access):
            try:
                sinks.append(open_sink(each))
            except OSError as error:
                raise RtmpdError(f"can't log to {each}: {error.strerror}") from None
        if not self._begun:
            self._begin(target, config.log_format, sinks[0])
        self._access.start(access, config.log_format, sinks[1])

    @staticmethod
    def select(config: Config) -> Config:
        """Return the part of a configuration that the service uses."""
        return config

    def reload(self, config: Config) -> None:
        """Take another configuration, and open files again. Where a target can't be opened, the old one stays."""
        self._config = config.log
        logging.getLogger("rtmpd").setLevel(config.log.level.upper())
        self._change(told=False)

    def reopen(self) -> None:
        """Open files again: they have been moved."""
        self._change(told=True)

    def _change(self, *, told: bool) -> None:
        config = self._config
        self._to = _main_target(config)
        self._main.change(self._to, config.log_format, told=told)
        self._access.change(_access_target(config), config.log_format, told=told)

    def stop(self, limit_s: float) -> None:
        """Nothing: others have things to say about their end. `finish` is the end."""

    def say_on_stderr(self, message: str) -> None:
        """Say an error on standard error, too, if the log goes elsewhere: somebody may wait there for the server to start."""
        if self._begun and self._to != _STDERR:
            _to_stderr(logging.ERROR, message)

    def finish(self) -> bool:
        """Write out what waits; return whether everything came out."""
        if not self._begun:
            self._begin(_STDERR, self._config.log_format)
        done = self._access.stop()
        return self._main.stop() and done

    def _main_complains(self, level: int, message: str) -> None:
        if self._to != _STDERR:
            _to_stderr(level, message)


def _main_target(config: LogConfig) -> Target:
    return Target("file", config.log_file) if config.log_file else Target(config.log_target)


def _access_target(config: LogConfig) -> Target:
    return Target("file", config.access_log_file) if config.access_log_file else _OFF


def _main_format(target: Target, form: str) -> Format:
    if target.kind == "journal":
        return JournalDatagram()
    terminal = sys.__stderr__ if target == _STDERR else None
    journal = terminal is not None and is_journal(terminal.fileno())
    if form == "json":
        return JsonLine(journal=journal)
    return TextLine(terminal.encoding if terminal is not None else "utf-8", journal=journal)


def _access_format(_target: Target, form: str) -> Format:
    return AccessJson() if form == "json" else AccessText()


def _to_stderr(level: int, message: str) -> None:
    """Write a line to standard error, unless it has paused: then nothing helps."""
    descriptor = stderr_descriptor()
    if descriptor is None:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if poll.poll(0):
        record = _record(level, message)
        StreamSink(descriptor).write([TextLine(journal=is_journal(descriptor))(record)])
