"""Sinks of a log: standard error, a file, the journal.

A sink may block, so only the thread of a log uses it. A failed write raises nothing: it returns the number of lost lines, and
the next write tries again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
_FILE_MODE = 0o640
_FILE_BYTES = 65536
_PIPE_BYTES = 4096
"""The most that a pipe takes in one piece while other processes write to it (PIPE_BUF)."""
_LOOK_S = 5.0
_OPEN_LIMIT_S = 5.0

Opened = TypeVar("Opened")
_being_opened: set[str] = set()


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a log.

    Attributes:
        kind: stderr, file, journal or off.
        path: The path of the file.
    """

    kind: str
    path: str = ""

    def __str__(self) -> str:
        return {"file": self.path, "stderr": "standard error", "journal": "the journal"}.get(self.kind, "nowhere")


class Sink:
    """Discards lines; the base of all sinks.

    Attributes:
        batch_bytes: The preferred size of a batch, bytes.
        problem: Why the last write lost lines; empty: it did not.
    """

    batch_bytes = _FILE_BYTES
    problem = ""

    def write(self, lines: list[bytes]) -> int:
        """Write lines, however long that takes; return how many were lost."""
        return 0

    def reopen(self) -> None:
        """Open the target again, by its name. Raises OSError, and then continues with the old one."""

    def follow(self) -> None:
        """Open the target again if it was moved some time ago. Raises OSError, and then continues with the old one."""

    def close(self) -> None:
        """Close the sink and release its file descriptor."""


class StreamSink(Sink):
    """Writes lines to a file descriptor.

    If a full disk cuts a line off, the next write begins with the rest of the line.

    Args:
        descriptor: The descriptor. It is not closed.
        batch_bytes: Most bytes of one write, unless a line is longer.
    """

    def __init__(self, descriptor: int, batch_bytes: int = _PIPE_BYTES) -> None:
        self.batch_bytes = batch_bytes
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
        """Write lines at once; return how many were accepted. The last of them may be incomplete so far."""
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
                # Another process that shares the descriptor has made it non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


def _groups(lines: list[bytes], limit: int) -> Iterator[tuple[int, int]]:
    """Split a list of lines into ranges of at most *limit* bytes, or one line."""
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
    """Appends lines to a file, which is created if it does not exist.

    Writes notice a file that was moved or deleted. It is created again only after a while, since a log rotation creates the new
    file itself and then sends a signal.

    Args:
        path: The path of the file.
        clock: The monotonic clock, seconds.

    Raises:
        OSError: The file can't be opened.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(_open(path), _FILE_BYTES)
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._identity = _identity(os.fstat(self._descriptor))
        self._gone = False

    def reopen(self) -> None:
        """Open the file that has the name now. Raises OSError, and then continues with the old one."""
        descriptor = _in_time(self._path, lambda: _open(self._path), os.close)
        old, self._descriptor = self._descriptor, descriptor
        with contextlib.suppress(OSError):
            os.close(old)
        identity = _identity(os.fstat(descriptor))
        if identity != self._identity and self._rest:
            # A new file must begin with a whole line.
            self._rest = self._torn
        self._identity = identity
        self._gone = False

    def follow(self) -> None:
        """Reopen the file if two checks in a row found it moved. Raises OSError if it can't be created."""
        now = self._clock()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        try:
            gone = _identity(os.stat(self._path)) != self._identity  # noqa: PTH116 - the path is a text, as in the configuration
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
    # Non-blocking: to open a named pipe would wait for a reader. Without a reader it fails.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, _FILE_MODE)
    os.set_blocking(descriptor, True)
    return descriptor


def _in_time(path: str, action: Callable[[], Opened], close: Callable[[Opened], None]) -> Opened:
    """Open a file in a thread of its own, since a network file system that does not answer makes that wait.

    Blocks for 5 s at most. A file that is opened later is closed again; until then there is no other attempt.

    Raises:
        OSError: It can't be opened, or not in time.
    """
    if path in _being_opened:
        raise TimeoutError(errno.ETIMEDOUT, "an earlier attempt to open it has not ended: its disk does not answer", path)
    opened: list[Opened] = []
    errors: list[OSError] = []
    late = False
    lock, ended = threading.Lock(), threading.Event()

    def run() -> None:
        try:
            opened.append(action())
        except OSError as error:
            errors.append(error)
        with lock:
            _being_opened.discard(path)
            ended.set()
            if late and opened:
                close(opened[0])

    _being_opened.add(path)
    threading.Thread(target=run, name="open", daemon=True).start()
    ended.wait(_OPEN_LIMIT_S)
    with lock:
        if not ended.is_set():
            late = True
            raise TimeoutError(errno.ETIMEDOUT, f"not opened within {_OPEN_LIMIT_S:g} s: its disk does not answer", path)
    if errors:
        raise errors[0]
    return opened[0]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class JournalSink(Sink):
    """Sends lines to the journal's socket, each as a datagram with fields.

    Args:
        path: The path of the socket.

    Raises:
        OSError: No journal listens on the socket.
    """

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(path)
        # Not connected, so that a restarted journal is found again.
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

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def open_sink(target: Target) -> Sink:
    """Open a target. Blocks for 5 s at most.

    Raises:
        OSError: The target can't be opened.
    """
    match target.kind:
        case "file":
            return _in_time(target.path, lambda: FileSink(target.path), FileSink.close)
        case "journal":
            return JournalSink()
        case "stderr":
            descriptor = stderr_descriptor()
            return Sink() if descriptor is None else StreamSink(descriptor)
        case _:
            return Sink()


def stderr_descriptor() -> int | None:
    """Return the descriptor of standard error; None: it was closed at start, and its number may be another file by now."""
    return None if sys.__stderr__ is None else sys.__stderr__.fileno()


def is_journal(descriptor: int) -> bool:
    """Return whether *descriptor* is a stream to the journal, which systemd names in the environment."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"
