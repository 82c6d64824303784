"""Segments in files: written, read and deleted by native threads, so that a disk that does not answer delays nothing else.

Each server has a directory of its own in ``hls_directory``, with a lock, so that a later one recognizes and deletes what a
crash has left. Names are random or numbers: nothing that comes from a client is part of a path. A segment stays in memory until
its file is complete, and for good if it can't be written.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
from collections import OrderedDict, deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
from gevent.event import AsyncResult, Event

from rtmpd.errors import HttpError
from rtmpd.util.log_throttle import LogThrottle
from rtmpd.util.text import printable
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.media.hls.window import Segment
    from rtmpd.services.hls.packaged import Packaged
    from rtmpd.services.hls.packager import Packager

log = logging.getLogger(__name__)

_PREFIX = "rtmpd-hls-"
_NAME = re.compile(rf"{_PREFIX}[0-9a-f]{{16}}")
_LOCK = "lock"
_WRITE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY_MODE, _FILE_MODE = 0o750, 0o640
_READERS = 4
_KEPT_BYTES = 16 << 20
"""What has been read last is kept: viewers request a new segment at about the same time."""

_READ_LIMIT_S = 10.0
_ERROR_LOG_S = 600.0


_Piece = tuple[Path, int, int]


class Lent(bytes):
    """A piece of a file in memory. It counts until nothing uses it any longer, neither as it is nor by a `memoryview`.

    Attributes:
        lender: Counts it.
    """

    lender: Reader

    def __del__(self) -> None:
        self.lender.lent_bytes -= len(self)


class Reader:
    """Reads files for responses, which share what they read at about the same time.

    Args:
        limit: Returns how many bytes responses may have in memory that are no longer kept here.

    Attributes:
        lent_bytes: How many there are.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self.lent_bytes = 0
        self._limit = limit
        self._threads = Threads(_READERS)
        self._kept: OrderedDict[_Piece, Lent] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[_Piece, AsyncResult[Lent | None]] = {}

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Return a piece of a file. Waits for the disk.

        Raises:
            OSError: It can't be read.
            HttpError: Too much is in memory.
        """
        piece = path, offset, size
        while True:
            if piece in self._kept:
                self._kept.move_to_end(piece)
                return self._kept[piece]
            if piece not in self._under_way:
                return self._read(piece)
            found = self._under_way[piece].get()
            if found is not None:
                return found
            # The request that has read it was cancelled.

    def _read(self, piece: _Piece) -> Lent:
        path, offset, size = piece
        if self.lent_bytes - self._kept_bytes + size > self._limit():
            raise HttpError(503, "Too many segments are being sent.", [("Retry-After", "1")])
        outcome: AsyncResult[Lent | None] = AsyncResult()
        self._under_way[piece] = outcome
        self.lent_bytes += size
        try:
            found = Lent(self._threads.call(_read, path, offset, size))
            found.lender = self
        except OSError as error:
            self.lent_bytes -= size
            outcome.set_exception(error)
            raise
        except BaseException:
            self.lent_bytes -= size
            outcome.set(None)
            raise
        finally:
            del self._under_way[piece]
        outcome.set(found)
        self._kept[piece] = found
        self._kept_bytes += size
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return found


class StoredFile:
    """The file of one segment.

    Args:
        path: Its path.
        reader: Reads it.
        throttle: Limits the lines about errors.
    """

    def __init__(self, path: Path, reader: Reader, throttle: LogThrottle) -> None:
        self.path = path
        self._reader = reader
        self._throttle = throttle

    def read(self, offset: int, size: int) -> bytes | None:
        """Return a piece of it; None: it can't be read, or has been deleted. Waits for the disk, at most `_READ_LIMIT_S`.

        Raises:
            HttpError: Too much is in memory.
        """
        late = TimeoutError(errno.ETIMEDOUT, f"the disk did not answer within {_READ_LIMIT_S:g} s")
        try:
            with gevent.Timeout(_READ_LIMIT_S, late):
                return self._reader.read(self.path, offset, size)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._throttle.log(log, logging.ERROR, "can't read %s: %s", printable(str(self.path)), error.strerror)
            return None


class Storage:
    """The files of all segments.

    Args:
        directory: ``hls_directory``.
        count: Increments a counter of failures.
        limit: As for `Reader`.

    Attributes:
        reader: Reads the files.
    """

    def __init__(self, directory: str, count: Callable[[str], None], limit: Callable[[], int]) -> None:
        self._base = Path(directory).absolute()
        self._directory = self._base / f"{_PREFIX}{secrets.token_hex(8)}"
        self._count = count
        self._writer, self.reader = Threads(1), Reader(limit)
        # By the identity of segments: what has been removed need not be written, and must not be kept here.
        self._due: dict[int, tuple[Packager, Packaged, Segment]] = {}
        self._deleted: deque[Path] = deque()
        self._woken = Event()
        self._lock = -1
        self._number = 0
        self._throttle = LogThrottle(_ERROR_LOG_S)
        self._read_throttle = LogThrottle()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Start to write, and delete what an earlier run left."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self, limit_s: float) -> None:
        """Delete all files."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
            self._greenlet = None
            with gevent.Timeout(limit_s, False):  # type: ignore[arg-type]
                self._writer.call(_delete_directory, self._directory, self._lock)

    def put(self, packager: Packager, packaged: Packaged, segment: Segment) -> None:
        """Have a complete segment written. Does not wait."""
        self._due[id(segment)] = packager, packaged, segment
        self._woken.set()

    def remove(self, segment: Segment) -> None:
        """Have the file of a segment deleted, if it has one. Does not wait."""
        self._due.pop(id(segment), None)
        if isinstance(segment.location, StoredFile):
            self._deleted.append(segment.location.path)
            self._woken.set()

    def _run(self) -> None:
        for path in self._writer.call(_left_over, self._base):
            log.info("deleted %s: HLS segments of an earlier run", printable(str(path)))
        while True:
            self._woken.wait()
            self._woken.clear()
            while self._due or self._deleted:
                if self._deleted:
                    paths, self._deleted = list(self._deleted), deque()
                    self._writer.call(_delete, paths)
                if self._due:
                    self._write(*self._due.pop(next(iter(self._due))))

    def _write(self, packager: Packager, packaged: Packaged, segment: Segment) -> None:
        if packaged.window.find_segment(segment.sequence_number)[1] is not segment or segment.is_gap:
            # It has been removed meanwhile, or there is nothing to write.
            return
        self._number += 1
        path = self._directory / f"{self._number}.m4s"
        try:
            if self._lock < 0:
                self._lock = self._writer.call(_make_directory, self._base, self._directory)
            self._writer.call(_write, path, segment.data)
        except OSError as error:
            self._count("hls_disk_errors")
            text = "can't write an HLS segment to %s: %s; segments stay in memory while that is so (hls_directory)"
            self._throttle.log(log, logging.ERROR, text, printable(str(self._base)), error.strerror or str(error))
            return
        file = StoredFile(path, self.reader, self._read_throttle)
        if packaged.window.store(segment, file):
            packager.count_memory()
        else:
            self._deleted.append(path)


# In threads ---------------------------------------------------------------------------------------------------------------


def _make_directory(base: Path, directory: Path) -> int:
    """Create and lock the directory of this server; return the descriptor of the lock."""
    with suppress(FileExistsError):
        base.mkdir(_DIRECTORY_MODE)
    directory.mkdir(_DIRECTORY_MODE)
    descriptor = os.open(directory / _LOCK, _WRITE, _FILE_MODE)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _left_over(base: Path) -> list[Path]:
    """Delete the directories of servers that no longer run; return them."""
    found = []
    try:
        entries = list(os.scandir(base))
    except OSError:
        return []
    for entry in entries:
        if not _NAME.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        path = base / entry.name
        try:
            descriptor = os.open(path / _LOCK, _READ)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            found.append(path)
        except OSError:
            # The server runs.
            continue
        finally:
            os.close(descriptor)
    return found


def _write(path: Path, pieces: list[bytes]) -> None:
    descriptor = os.open(path, _WRITE, _FILE_MODE)
    try:
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


def _read(path: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(path, _READ)
    try:
        data = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(data) < size:
        raise OSError(errno.EIO, f"the file has {len(data)} bytes from offset {offset} on, expected {size}")
    return data


def _delete(paths: list[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _delete_directory(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock >= 0:
        os.close(lock)
