"""The repair of recordings that an earlier run could not finish.

A part that nobody has locked is what a crash has left. It is cut behind its last whole frame, gets its metadata, and is renamed
to what it would have become. This goes on while the server already serves and records.

Everything here blocks: it runs in a native thread, with pauses (see polite). Imports file_names of config, flv_repair of media,
paths and polite.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from rtmpd.media import flv
from rtmpd.media.flv_repair import apply_plan, repair_plan, scan
from rtmpd.services.recorder.paths import BROKEN_SUFFIX, PART_SUFFIX, find_files, is_same_file, publish_part
from rtmpd.services.recorder.polite import Cancelled, Pauses, PoliteFile

if TYPE_CHECKING:
    from pathlib import Path

    from rtmpd.config.file_names import FileNameTemplate
    from rtmpd.media.flv_repair import ScanResult

__all__ = ["PartRepair", "RepairOutcome", "Repaired"]

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MAX_PARTS = 100_000
_WINDOW_BYTES = 32 << 10
"""Read between two pauses: less than 1 ms of work."""
_MAX_REST_BYTES = 1 << 20
"""The most that is thrown away of a part without frames. Metadata take less, and with the first tag the whole chain is lost."""


class Repaired(enum.Enum):
    """What has been done to a part."""

    REPAIRED = "repaired"
    """It is a recording now."""
    REMOVED = "removed"
    """There was nothing in it."""
    BROKEN = "broken"
    """It can't be repaired, and is called ``NAME.flv.broken``."""
    SKIPPED = "skipped"
    """Somebody else writes it, or did until just now; or it is not ours."""
    CANCELLED = "cancelled"
    """It is as it was."""
    FAILED = "failed"
    """The disk did not let us; the next start tries again."""


@dataclass(frozen=True, slots=True)
class RepairOutcome:
    """What has become of a part.

    Attributes:
        path: Where the file is now; where it was, if it has been removed.
        action: What has been done.
        duration_s: How long the recording is.
        size_bytes: Its size now.
        cut_bytes: What has been cut off.
        reason: Why it was skipped, is broken or has failed; in a few words.
    """

    path: Path
    action: Repaired
    duration_s: float = 0.0
    size_bytes: int = 0
    cut_bytes: int = 0
    reason: str = ""


class PartRepair:
    """Finds and repairs parts. One thread at a time uses it::

        parts, problems = pool.apply(repair.find)
        for part in parts:
            outcome = pool.apply(repair.repair, (part,))

    Measured on two cores shared with others, the event loop late by 1 ms at the 99th percentile when nothing is done: 500 MB of
    video take 4 s (0.8 s of processor time), and the loop is late by 1 to 3 ms, at most 12 ms; without pauses 0.6 s, and 3 to
    15 ms. 500 MB of audio, 2.4 million small tags, take 90 s (17 s), and the loop is late by 11 to 16 ms, at most 137 ms;
    without pauses by 10 to 170 ms.

    Args:
        directory: Where recordings are kept.
        template: The template of their names. Parts whose names it can't have given are left alone.
        pauses: For tests.
    """

    def __init__(self, directory: Path, template: FileNameTemplate, pauses: Pauses | None = None) -> None:
        self._directory = directory
        self._template = template
        self._pauses = pauses or Pauses()

    def cancel(self) -> None:
        """Have what is under way end soon, and everything later at once. Called from any thread."""
        self._pauses.cancel()

    def find(self) -> tuple[list[Path], list[OSError]]:
        """Return the parts that there are, by name, and what could not be read. No directory: no parts."""
        parts: list[Path] = []
        problems: list[OSError] = []
        self._pauses.begin()
        try:
            for relative, _ in find_files(self._directory, self._template, PART_SUFFIX, self._pauses.pause, problems.append):
                parts.append(self._directory / relative)
                if len(parts) == _MAX_PARTS:
                    break
        except Cancelled:
            return [], []
        # A directory that was removed in between, or that there isn't yet, is no problem.
        return sorted(parts), [problem for problem in problems if not isinstance(problem, FileNotFoundError)]

    def repair(self, part: Path) -> RepairOutcome:
        """Repair one part. Raises nothing."""
        self._pauses.begin()
        try:
            return self._open(part)
        except FileNotFoundError:
            return RepairOutcome(part, Repaired.SKIPPED, reason="it is gone")
        except Cancelled:
            return RepairOutcome(part, Repaired.CANCELLED)
        except OSError as error:
            return RepairOutcome(part, Repaired.FAILED, reason=error.strerror or str(error))

    def _open(self, part: Path) -> RepairOutcome:
        self._pauses.pause()
        try:
            descriptor = os.open(part, _FLAGS)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                return RepairOutcome(part, Repaired.SKIPPED, reason="it is not a file")
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return RepairOutcome(part, Repaired.SKIPPED, reason="it is not a file")
        with os.fdopen(descriptor, "r+b") as file:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return RepairOutcome(part, Repaired.SKIPPED, reason="it is being written")
            if not is_same_file(descriptor, part):
                return RepairOutcome(part, Repaired.SKIPPED, reason="it is gone")
            return self._decide(part, file)

    def _decide(self, part: Path, file: BinaryIO) -> RepairOutcome:
        result = scan(cast(BinaryIO, PoliteFile(file, self._pauses)), _WINDOW_BYTES)
        if not result.valid:
            if _is_cut_header(file, result.size):
                return _remove(part, result)
            return _set_aside(part, result, "it does not begin as FLV")
        if result.metadata and result.metadata.get("metadatacreator") != "rtmpd":
            return RepairOutcome(part, Repaired.SKIPPED, size_bytes=result.size, reason="it is not a recording of rtmpd")
        if not result.frames:
            if result.size - result.end <= _MAX_REST_BYTES:
                return _remove(part, result)
            return _set_aside(part, result, "it has no frames at its beginning")
        return _mend(part, file, result)


def _is_cut_header(file: BinaryIO, size: int) -> bool:
    """Whether a file ends before or in its file header."""
    if size >= flv.FILE_HEADER_SIZE:
        return False
    file.seek(0)
    head = file.read(size)
    return any(flv.file_header(audio, video).startswith(head) for audio in (False, True) for video in (False, True))


def _remove(part: Path, result: ScanResult) -> RepairOutcome:
    part.unlink()
    return RepairOutcome(part, Repaired.REMOVED, cut_bytes=result.size)


def _set_aside(part: Path, result: ScanResult, reason: str) -> RepairOutcome:
    return RepairOutcome(publish_part(part, BROKEN_SUFFIX), Repaired.BROKEN, size_bytes=result.size, reason=reason)


def _mend(part: Path, file: BinaryIO, result: ScanResult) -> RepairOutcome:
    plan = repair_plan(result)
    assert plan is not None
    found = os.fstat(file.fileno())
    apply_plan(file, plan)
    file.flush()
    with suppress(PermissionError):
        # When it ended is what its age is counted from.
        os.utime(file.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
    os.fsync(file.fileno())
    path = publish_part(part)
    with suppress(OSError):
        # Without this a power failure may give it its old name again, and the next start repairs it again.
        _sync_directory(path.parent)
    return RepairOutcome(
        path,
        Repaired.REPAIRED,
        duration_s=result.duration_ms / 1000,
        size_bytes=plan.truncate_to,
        cut_bytes=result.size - plan.truncate_to,
    )


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
