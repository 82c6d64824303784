"""Where lines of a log go: standard error, a file, the journal.

A sink may block, and so is only used by the thread of a log. One that fails says how many lines were lost and why, and is tried
again with the next lines: it raises nothing. Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FileSink", "JournalSink", "NoSink", "Sink", "StreamSink", "Target", "is_journal", "open_sink", "stderr_descriptor"]

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
_FILE_MODE = 0o640
_FILE_BYTES = 65536
_PIPE_BYTES = 4096
"""What goes into a pipe in one piece (PIPE_BUF), whoever else writes to it."""
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where a log goes.

    Attributes:
        kind: stderr, file, journal, or off.
        path: The file's.
    """

    kind: str
    path: str = ""

    def __str__(self) -> str:
        return {"file": self.path, "stderr": "standard error", "journal": "the journal"}.get(self.kind, "nowhere")


class Sink(Protocol):
    """Takes lines.

    Attributes:
        batch_bytes: How much it likes to be given at a time.
        problem: Why lines were lost the last time; empty: none were.
    """

    batch_bytes: int
    problem: str

    def write(self, lines: list[bytes]) -> int:
        """Write lines, however long that takes; return how many of them were lost."""

    def reopen(self) -> None:
        """Open it again, under the name that it has; raises OSError, and then goes on as it was."""

    def follow(self) -> None:
        """Open it again if it has been moved away some time ago; raises OSError, and then goes on as it was."""

    def close(self) -> None:
        """Let go of it."""


class NoSink:
    """Takes lines that nobody wants."""

    batch_bytes = _FILE_BYTES
    problem = ""

    def write(self, lines: list[bytes]) -> int:
        """Drop them."""
        return 0

    def reopen(self) -> None:
        """Nothing."""

    def follow(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class StreamSink:
    """A descriptor that lines are written to.

    The rest of a line that was cut off, since a disk had no more room, is written before anything else.

    Args:
        descriptor: The descriptor; not closed.
        batch_bytes: The most that is written at a time, unless one line is longer.
    """

    def __init__(self, descriptor: int, batch_bytes: int = _PIPE_BYTES) -> None:
        self.batch_bytes = batch_bytes
        self.problem = ""
        self._descriptor = descriptor
        self._torn = b""
        self._rest = b""

    def write(self, lines: list[bytes]) -> int:
        """Write lines; return how many were lost."""
        for begin, end in _groups(lines, self.batch_bytes):
            kept = self._write_together(lines[begin:end])
            if kept < end - begin:
                return len(lines) - begin - kept
        return 0

    def _write_together(self, lines: list[bytes]) -> int:
        """Write lines in one go; return how many were taken, of which the last may be torn."""
        data = b"".join([self._rest, *lines])
        done = 0
        try:
            while done < len(data):
                done += self._write_some(data[done:] if done else data)
        except OSError as error:
            self.problem = error.strerror or str(error)
        else:
            self.problem = ""
            self._rest = b""
            return len(lines)
        if done < len(self._rest):
            self._rest = self._rest[done:]
            return 0
        done -= len(self._rest)
        self._rest = b""
        for index, line in enumerate(lines):
            if done < len(line):
                if not done:
                    return index
                self._torn, self._rest = line, line[done:]
                return index + 1
            done -= len(line)
        return len(lines)

    def _write_some(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                # Whoever shares it wants it like that.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()

    def reopen(self) -> None:
        """Nothing: it has no name."""

    def follow(self) -> None:
        """Nothing: it has no name."""

    def close(self) -> None:
        """Nothing: it belongs to others."""


def _groups(lines: list[bytes], limit: int) -> Iterator[tuple[int, int]]:
    """Cut a list of lines into parts of at most *limit* bytes, but of one line at least."""
    begin = size = 0
    for index, line in enumerate(lines):
        if size and size + len(line) > limit:
            yield begin, index
            begin = index
            size = 0
        size += len(line)
    if lines:
        yield begin, len(lines)


class FileSink(StreamSink):
    """A file that is appended to, and made if there is none.

    A file that was moved away, or deleted, is noticed when lines are written; it is made anew once that has been so for a
    while: what rotates logs makes the new file itself, and says so by a signal.

    Args:
        path: The file.
        clock: The time in seconds.

    Raises:
        OSError: It can't be opened.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(_open(path), _FILE_BYTES)
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._identity = _identity(os.fstat(self._descriptor))
        self._gone = False

    def reopen(self) -> None:
        """Open the file that has the name now; raises OSError, and then goes on with the old one."""
        descriptor = _open(self._path)
        old, self._descriptor = self._descriptor, descriptor
        with contextlib.suppress(OSError):
            os.close(old)
        identity = _identity(os.fstat(descriptor))
        if identity != self._identity and self._rest:
            # No half of a line at the head of a file.
            self._rest = self._torn
        self._identity = identity
        self._gone = False

    def follow(self) -> None:
        """Look, now and then, whether the file still has its name; raises OSError if it can't be made anew."""
        now = self._clock()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        try:
            gone = _identity(os.stat(self._path)) != self._identity  # noqa: PTH116 - the path is a text, as in the file
        except FileNotFoundError:
            gone = True
        if gone and self._gone:
            self.reopen()
        else:
            self._gone = gone

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _open(path: str) -> int:
    # Non-blocking, since opening a named pipe waits for its reader, who may never come; there must be one.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, _FILE_MODE)
    os.set_blocking(descriptor, True)
    return descriptor


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class JournalSink:
    """The journal's socket; each line is a datagram with fields.

    Args:
        path: The socket.

    Raises:
        OSError: Nobody listens there.
    """

    batch_bytes = _FILE_BYTES

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self.problem = ""
        self._path = path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(path)
        # Not connected: a journal that is started again is found again.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def write(self, lines: list[bytes]) -> int:
        """Send datagrams; return how many were lost."""
        lost = 0
        problem = ""
        for line in lines:
            try:
                self._socket.sendto(line, self._path)
            except OSError as error:
                lost += 1
                problem = error.strerror or str(error)
        self.problem = problem
        return lost

    def reopen(self) -> None:
        """Nothing: it is found by its name each time."""

    def follow(self) -> None:
        """Nothing: it is found by its name each time."""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def open_sink(target: Target) -> Sink:
    """Open a target.

    Raises:
        OSError: It can't be opened.
    """
    match target.kind:
        case "file":
            return FileSink(target.path)
        case "journal":
            return JournalSink()
        case "stderr":
            descriptor = stderr_descriptor()
            return NoSink() if descriptor is None else StreamSink(descriptor)
        case _:
            return NoSink()


def stderr_descriptor() -> int | None:
    """Return the descriptor of standard error; None: it was closed from the start, and may be anything by now."""
    return None if sys.__stderr__ is None else sys.__stderr__.fileno()


def is_journal(descriptor: int) -> bool:
    """Whether the journal reads what is written to *descriptor*: systemd names the stream that it has made for it."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"
