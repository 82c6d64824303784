"""Logging through a queue to a native thread: a terminal or journal that pauses must not pause the media.

The queue is bounded; lines that find it full are dropped and counted. Imports the standard library only.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import sys
import threading
from typing import IO

__all__ = ["LogPipe"]

_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


class _DroppingHandler(logging.handlers.QueueHandler):
    def __init__(self, lines: queue.Queue[logging.LogRecord | None]) -> None:
        super().__init__(lines)
        self.dropped = 0
        self._told = 0
        self._lines = lines

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self.dropped != self._told:
                lost = self.dropped - self._told
                message = f"{lost} log lines were dropped: whoever reads the log paused"
                self._lines.put_nowait(logging.LogRecord("rtmpd", logging.WARNING, "", 0, message, None, None))
                self._told = self.dropped
            self._lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class LogPipe:
    """The way of log lines out of the process.

    Args:
        level: debug, info, warning or error.
        queue_limit: Lines that may wait.
        stream: Where lines go; standard error by default.
    """

    def __init__(self, level: str, queue_limit: int, stream: IO[str] | None = None) -> None:
        target = stream or sys.stderr
        # Names come from the wire: what the terminal can't show is escaped, never an error.
        if hasattr(target, "reconfigure"):
            target.reconfigure(errors="backslashreplace")
        self._out = logging.StreamHandler(target)
        self._out.setFormatter(logging.Formatter(_FORMAT))
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(queue_limit)
        self._handler = _DroppingHandler(self._lines)
        self._root = logging.getLogger("rtmpd")
        self._root.addHandler(self._handler)
        self._root.setLevel(level.upper())
        self._root.propagate = False
        # A daemon thread: one that is stuck in a write must not keep the process.
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        while True:
            record = self._lines.get()
            if record is None:
                return
            self._out.handle(record)

    @property
    def dropped(self) -> int:
        """Lines that were dropped because the queue was full."""
        return self._handler.dropped

    def set_level(self, level: str) -> None:
        """Change the level."""
        self._root.setLevel(level.upper())

    def stop(self, limit_s: float = 2.0) -> bool:
        """Write out what waits and end the thread; return whether that was done within *limit_s*.

        If not, whoever reads the log has paused, and the thread is stuck in a write.
        """
        self._root.removeHandler(self._handler)
        try:
            self._lines.put(None, timeout=limit_s)
        except queue.Full:
            return False
        self._thread.join(limit_s)
        return not self._thread.is_alive()
