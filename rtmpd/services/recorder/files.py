"""The files of recordings: unused names, locks, writing, searching. All functions block: they run in native threads.

A recording in progress is called ``NAME.flv.part``, and the server that writes it holds a flock on it; a finished one is called
``NAME.flv``. One that is MP4 is called ``NAME.mp4.part`` and ``NAME.mp4``. No file is ever overwritten, even if several servers
write into one directory or an operator moves files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from rtmpd.media import flv
from rtmpd.media.fmp4 import files as fmp4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from rtmpd.config.file_names import FileNameTemplate

FORMATS = (flv.SUFFIX, fmp4.SUFFIX)
"""The suffixes of finished recordings."""

PART = ".part"
"""Follows the suffix of a recording in progress."""

BROKEN = ".broken"
"""Follows the suffix of a part that does not begin as its format and can't be repaired."""

_COPY_BYTES = 256 << 10

_NUMBERED = 99
"""Names are tried with numbers up to this one, then with random digits."""
_RANDOM = 20
_PART_FLAGS = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_PART_MODE = 0o640
_DIRECTORY_MODE = 0o750
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP))
_NO_LINKS = frozenset((errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK))
_DIRECTORY_TRIES = 5
_ENTRIES_AT_ONCE = 100


def file_error(error: OSError) -> str:
    """Return the description of a file error without path and number."""
    return error.strerror or str(error)


# Writing ------------------------------------------------------------------------------------------------------------------


class RecordingFile:
    """A recording in progress. One thread at a time may use it.

    Attributes:
        part: Its path while it is written.
        size: The number of bytes that were written completely.
        deleted: Whether a write has found the file deleted by another program: it can't be published then.
    """

    def __init__(self, descriptor: int, part: Path) -> None:
        self._descriptor = descriptor
        self.part = part
        self.size = 0
        self.deleted = False

    @classmethod
    def create(cls, directory: Path, relative: str, reserve_bytes: int, suffix: str = flv.SUFFIX) -> RecordingFile:
        """Create a file, see `open_part`. It requires a quarter more than *reserve_bytes* of free space, so that a full disk is
        not filled again and again.

        Raises:
            OSError: No file was created.
        """
        file = cls(*open_part(directory, relative, suffix))
        try:
            file.check_room(reserve_bytes + reserve_bytes // 4)
        except OSError:
            file.part.unlink()
            os.close(file._descriptor)
            raise
        return file

    def check_room(self, reserve_bytes: int) -> None:
        """Raise OSError (ENOSPC) if less than *reserve_bytes* are free."""
        if reserve_bytes:
            found = os.fstatvfs(self._descriptor)
            free_bytes = found.f_bavail * found.f_frsize
            if free_bytes < reserve_bytes:
                text = f"{free_bytes} bytes are free on the disk, {reserve_bytes} are required (disk_reserve_bytes)"
                raise OSError(errno.ENOSPC, text)

    def write(self, data: bytes, reserve_bytes: int, patches: Sequence[tuple[int, bytes]] = ()) -> None:
        """Append *data* completely, and apply *patches* (positions and bytes), unless less than *reserve_bytes* are free.

        Raises:
            OSError: *data* was written in part or not at all, or the file has been deleted.
        """
        self.check_room(reserve_bytes)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        for position, patch in patches:
            os.pwrite(self._descriptor, patch, position)
        if not os.fstat(self._descriptor).st_nlink:
            self.deleted = True
            raise OSError(errno.ENOENT, "the file was deleted by another program")
        self.size += len(data)

    def finish(self, patches: Sequence[tuple[int, bytes]]) -> Path:
        """Apply *patches* (positions and bytes), give the file its final name, and return that. Always closes the file.

        A patch may be behind the end of the file: `size` grows.

        Raises:
            OSError: The file keeps the name of a part.
        """
        try:
            try:
                # Drop an incomplete write.
                os.ftruncate(self._descriptor, self.size)
                end = self.size
                for position, data in patches:
                    if os.pwrite(self._descriptor, data, position) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    end = max(end, position + len(data))
                os.fsync(self._descriptor)
                self.size = end
            except OSError as error:
                # Some file systems need free space to write in place. The file can be played without the patches.
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                os.ftruncate(self._descriptor, self.size)
            return publish_part(self.part)
        finally:
            os.close(self._descriptor)

    def discard(self) -> None:
        """Delete and close the file."""
        try:
            if not self.deleted:
                self.part.unlink()
        finally:
            os.close(self._descriptor)


# Names --------------------------------------------------------------------------------------------------------------------


def open_part(directory: Path, relative: str, suffix: str = flv.SUFFIX) -> tuple[int, Path]:
    """Create and lock the part of a new recording.

    Missing directories below *directory* are created; of *directory* itself only the last component. If a recording or part of
    that name exists, ``-2`` and so on is appended, as by `publish_part`. On a file system without locks the part is not locked,
    and a repair will not touch it.

    Args:
        directory: The record directory.
        relative: What `FileNameTemplate.expand` returned.
        suffix: That of the finished recording, one of `FORMATS`.

    Returns:
        A descriptor, open for writing and locked until it is closed, and the path of the part.

    Raises:
        OSError: No part was created.
    """
    if any(component in ("", ".", "..") for component in relative.split("/")):
        raise OSError(errno.EINVAL, "not a path inside the directory", relative)
    base = directory / relative
    for number in range(_DIRECTORY_TRIES):
        try:
            _make_directories(directory, relative)
            return _open_unused(base, suffix)
        except FileNotFoundError:
            # The retention has just removed an empty directory: create it again.
            if number == _DIRECTORY_TRIES - 1:
                raise
    raise AssertionError


def recording_suffix(part: Path) -> str:
    """Return the suffix of the recording that a part becomes, one of `FORMATS`."""
    return part.with_suffix("").suffix


def publish_part(part: Path, more: str = "") -> Path:
    """Give a part its final name: ``NAME.flv``, or ``NAME-2.flv`` to ``NAME-99.flv``, or with eight random hexadecimal digits.

    The name is taken atomically, and never from another file. If an earlier call was interrupted when the file had both names,
    this one completes it.

    Args:
        part: The part, ``NAME.flv.part``.
        more: Follows the suffix: `BROKEN`, or nothing.

    Returns:
        The path.

    Raises:
        OSError: The file keeps its old name; or it has the new one as well, and the old one could not be removed.
    """
    suffix = recording_suffix(part)
    base = _base(part)
    for candidate in _candidates(base):
        target = _with_suffix(candidate, suffix + more)
        # The name NAME-2.flv is reserved for a part NAME-2.flv.part.
        if candidate == base or not os.path.lexists(_with_suffix(candidate, suffix + PART)):
            try:
                _rename(part, target)
            except FileExistsError:
                continue
            return target
    raise FileExistsError(errno.EEXIST, "no unused name", str(_with_suffix(base, suffix + more)))


def copy_part(part: Path, file: BinaryIO, pause: Callable[[], None]) -> Path:
    """Copy a part, which is open as *file*, to ``NAME.flv.broken``, or with a number as in `publish_part`; return the path.

    Args:
        pause: Called between two pieces; may raise.

    Raises:
        OSError: There is no copy then.
    """
    base = _base(part)
    broken = recording_suffix(part) + BROKEN
    for candidate in _candidates(base):
        target = _with_suffix(candidate, broken)
        try:
            descriptor = os.open(target, _PART_FLAGS, _PART_MODE)
        except FileExistsError:
            continue
        try:
            with os.fdopen(descriptor, "wb") as copy:
                file.seek(0)
                while piece := file.read(_COPY_BYTES):
                    pause()
                    copy.write(piece)
                copy.flush()
                os.fsync(descriptor)
        except BaseException:
            target.unlink()
            raise
        return target
    raise FileExistsError(errno.EEXIST, "no unused name", str(_with_suffix(base, broken)))


def is_same_file(descriptor: int, path: Path) -> bool:
    """Return whether *path*, which may be a symbolic link and is not followed then, is still the path of an open file."""
    try:
        there = path.lstat()
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _make_directories(directory: Path, relative: str) -> None:
    path = directory
    for component in ("", *relative.split("/")[:-1]):
        path = path / component
        with suppress(FileExistsError):
            path.mkdir(_DIRECTORY_MODE)


def _open_unused(base: Path, suffix: str) -> tuple[int, Path]:
    for candidate in _candidates(base):
        part, recording = _with_suffix(candidate, suffix + PART), _with_suffix(candidate, suffix)
        if os.path.lexists(recording):
            continue
        try:
            descriptor = os.open(part, _PART_FLAGS, _PART_MODE)
        except FileExistsError:
            continue
        try:
            if _lock(descriptor) and is_same_file(descriptor, part):
                if not os.path.lexists(recording):
                    return descriptor, part
                # Another server has finished a recording of this name in the meantime.
                part.unlink()
        except BaseException:
            # Unlink before close: while the part is locked, no other server can have replaced it.
            with suppress(OSError):
                part.unlink()
            os.close(descriptor)
            raise
        # Otherwise a repair has locked the part first, and removes it because it is empty.
        os.close(descriptor)
    raise FileExistsError(errno.EEXIST, "no unused name", str(_with_suffix(base, suffix + PART)))


def _lock(descriptor: int) -> bool:
    """Lock a file without waiting. Return whether it may be written: it is locked, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _rename(source: Path, target: Path) -> None:
    """Rename without overwriting. Raises FileExistsError if the name is in use."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        if not os.path.samestat(source.lstat(), target.lstat()):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_without_links(source, target)
        return
    source.unlink()


def _rename_without_links(source: Path, target: Path) -> None:
    """Take the name with an empty file, then replace that."""
    os.close(os.open(target, _PART_FLAGS, _PART_MODE))
    try:
        source.rename(target)
    except OSError:
        target.unlink()
        raise


def _candidates(base: Path) -> Iterator[Path]:
    yield base
    for number in range(2, _NUMBERED + 1):
        yield _with_suffix(base, f"-{number}")
    for _ in range(_RANDOM):
        yield _with_suffix(base, f"-{secrets.token_hex(4)}")


def _base(part: Path) -> Path:
    """Return the path of a part without its suffixes."""
    return part.with_name(part.name.removesuffix(recording_suffix(part) + PART))


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# Searching ----------------------------------------------------------------------------------------------------------------


def find_files(
    directory: Path,
    template: FileNameTemplate,
    suffixes: Sequence[str],
    pause: Callable[[], None],
    failed: Callable[[OSError], None],
) -> Iterator[str]:
    """Yield the paths in *directory* that match *template* and one of *suffixes*. Only directories that match are searched.

    Hidden files and symbolic links are skipped; only *directory* itself may be a link. An entry that is found may be of any
    type, such as a directory, and may already be gone.

    Args:
        pause: Called every 100 entries; may raise.
        failed: Called for each directory that can't be read.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(directory / inside) as entries:
                for number, entry in enumerate(entries, 1):
                    if number % _ENTRIES_AT_ONCE == 0:
                        pause()
                    relative = f"{inside}/{entry.name}" if inside else entry.name
                    suffix = next(filter(relative.endswith, suffixes), "")
                    if suffix and template.matches(relative.removesuffix(suffix)):
                        if not entry.is_symlink():
                            yield relative
                    elif template.matches_directory(relative) and entry.is_dir(follow_symlinks=False):
                        waiting.append(relative)
        except OSError as error:
            failed(error)
        pause()
