"""The files of recordings: how a part gets a name that nobody has, and how it becomes a recording.

A recording that is being written is called ``NAME.flv.part`` and is locked with flock by whoever writes it; a whole one is
called ``NAME.flv``. No file is ever overwritten, also when several servers write into one directory, or an operator moves files
about.

Everything here blocks: it runs in a native thread. Imports the standard library, and file_names of config.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rtmpd.config.file_names import FileNameTemplate

__all__ = ["BROKEN_SUFFIX", "PART_SUFFIX", "RECORDING_SUFFIX", "find_files", "is_same_file", "open_part", "publish_part"]

PART_SUFFIX = ".flv.part"
RECORDING_SUFFIX = ".flv"
BROKEN_SUFFIX = ".flv.broken"
"""What a part becomes that does not even begin as FLV."""

_NUMBERED = 99
"""So many names are tried with a number, and some more with random digits."""
_RANDOM = 20
_PART_FLAGS = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_PART_MODE = 0o640
_DIRECTORY_MODE = 0o750
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP))
_NO_LINKS = frozenset((errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK))
_DIRECTORY_TRIES = 5
_ENTRIES_AT_ONCE = 100


def open_part(directory: Path, relative: str) -> tuple[int, Path]:
    """Create and lock the part of a new recording.

    Directories below *directory* are made; of *directory* itself only the last component is. If there is a recording or a part
    of the name, ``-2`` and so on is added, as by `publish_part`. On a file system without locks the part has none, and a repair
    will leave it alone.

    Args:
        directory: Where recordings are kept.
        relative: The path of the recording in it, without an extension; what `FileNameTemplate.expand` returns.

    Returns:
        A descriptor, open for writing and locked until it is closed, and the part's path.

    Raises:
        OSError: There is none.
    """
    if any(component in ("", ".", "..") for component in relative.split("/")):
        raise OSError(errno.EINVAL, "not a path inside the directory", relative)
    base = directory / relative
    for number in range(_DIRECTORY_TRIES):
        try:
            _make_directories(directory, relative)
            return _open_unused(base)
        except FileNotFoundError:
            # An emptied directory was removed just now: make it again.
            if number == _DIRECTORY_TRIES - 1:
                raise
    raise AssertionError


def publish_part(part: Path, suffix: str = RECORDING_SUFFIX) -> Path:
    """Give a part its final name: ``NAME.flv``, or ``NAME-2.flv`` to ``NAME-99.flv``, or with eight random hexadecimal digits.

    The name is taken in one step, and never from another file. If this was interrupted when the file had both names, it is
    finished.

    Args:
        part: A path that ends in `PART_SUFFIX`.
        suffix: What is put in its place.

    Returns:
        The path that the file has now.

    Raises:
        OSError: It could not be renamed. It has its old name then, unless only that could not be removed.
    """
    base = _sibling(part, "")
    for candidate in _candidates(base):
        target = _sibling(candidate, suffix)
        # A part of that name wants it for itself.
        if candidate == base or not _exists(_sibling(candidate, PART_SUFFIX)):
            try:
                _rename(part, target)
            except FileExistsError:
                continue
            return target
    raise FileExistsError(errno.EEXIST, "no unused name", str(_sibling(base, suffix)))


def find_files(
    directory: Path,
    template: FileNameTemplate,
    suffix: str,
    pause: Callable[[], None],
    failed: Callable[[OSError], None],
) -> Iterator[tuple[str, str]]:
    """Find the files whose names the template may have given. Only directories that it may have made are looked into.

    Symbolic links are not followed, but for *directory* itself; hidden files and links are passed over. What is found may be
    anything else, such as a directory, and may be gone already.

    Args:
        directory: Where recordings are kept.
        template: The template of their names.
        suffix: How names end.
        pause: Called every 100 entries; may raise.
        failed: Called for each directory that can't be read.

    Yields:
        The path of each in the directory, and of the directory that it is in: ``""`` for the topmost.
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
                    if relative.endswith(suffix) and template.matches(relative.removesuffix(suffix)):
                        if not entry.is_symlink():
                            yield relative, inside
                    elif template.matches_directory(relative) and entry.is_dir(follow_symlinks=False):
                        waiting.append(relative)
        except OSError as error:
            failed(error)
        pause()


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether a path, not followed if it is a symbolic link, is still that of an open file."""
    try:
        there = path.lstat()
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _make_directories(directory: Path, relative: str) -> None:
    path = directory
    for component in ("", *relative.split("/")[:-1]):
        path = path / component
        try:
            path.mkdir(_DIRECTORY_MODE)
        except FileExistsError:
            continue


def _open_unused(base: Path) -> tuple[int, Path]:
    for candidate in _candidates(base):
        part, recording = _sibling(candidate, PART_SUFFIX), _sibling(candidate, RECORDING_SUFFIX)
        if _exists(recording):
            continue
        try:
            descriptor = os.open(part, _PART_FLAGS, _PART_MODE)
        except FileExistsError:
            continue
        try:
            if _lock(descriptor) and is_same_file(descriptor, part):
                if not _exists(recording):
                    return descriptor, part
                # Another server's recording was finished in between.
                part.unlink()
        except BaseException:
            # In this order, for as long as it is locked nobody else can have put another one there.
            with suppress(OSError):
                part.unlink()
            os.close(descriptor)
            raise
        # Otherwise a repair was faster, has the lock, and removes the part, because it is empty.
        os.close(descriptor)
    raise FileExistsError(errno.EEXIST, "no unused name", str(_sibling(base, PART_SUFFIX)))


def _lock(descriptor: int) -> bool:
    """Lock a file if nobody else has it locked; return whether it may be written."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _rename(source: Path, target: Path) -> None:
    """Rename without overwriting.

    Raises:
        FileExistsError: The name is taken.
        OSError: Anything else.
    """
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
    """Take the name with an empty file, and put the other in its place."""
    os.close(os.open(target, _PART_FLAGS, _PART_MODE))
    try:
        source.rename(target)
    except OSError:
        target.unlink()
        raise


def _candidates(base: Path) -> Iterator[Path]:
    yield base
    for number in range(2, _NUMBERED + 1):
        yield _sibling(base, f"-{number}")
    for _ in range(_RANDOM):
        yield _sibling(base, f"-{secrets.token_hex(4)}")


def _sibling(path: Path, suffix: str) -> Path:
    """Return a path with *suffix* in place of `PART_SUFFIX`, or behind it if it has none."""
    return path.with_name(path.name.removesuffix(PART_SUFFIX) + suffix)


def _exists(path: Path) -> bool:
    """Whether there is anything of that name, also a symbolic link to nothing."""
    return os.path.lexists(path)
