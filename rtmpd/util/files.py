"""Reading of files that the configuration names: regular files only, opened without waiting.

To open a named pipe waits for its writer, to read a device may never end, and a network file system that does not answer makes
any call wait. So other files are refused, and while the event loop runs, files are read in a native thread with a deadline;
`being_read` then returns what does not answer.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_reading: dict[object, str] = {}


def being_read() -> list[str]:
    """Return the sorted paths of all files that threads are reading now."""
    return sorted(set(_reading.copy().values()))


@contextmanager
def reading(path: str) -> Iterator[None]:
    """List a file in `being_read` meanwhile."""
    mark = object()
    _reading[mark] = path
    try:
        yield
    finally:
        del _reading[mark]


def read_file(path: str, limit_bytes: int) -> bytes:
    """Return the content of a regular file, or its first *limit_bytes*. Blocks as long as its disk does.

    Raises:
        OSError: The file can't be read, or is none.
    """
    with reading(path):
        # Before it is opened, too: to open a device may have effects.
        _check(Path(path).stat(), path)
        descriptor = os.open(path, _FLAGS)
        try:
            _check(os.fstat(descriptor), path)
            data = bytearray()
            while len(data) < limit_bytes and (piece := os.read(descriptor, limit_bytes - len(data))):
                data += piece
            return bytes(data)
        finally:
            os.close(descriptor)


def _check(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, socket or device, and only regular files are read", path)
