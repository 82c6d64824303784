"""Repairs recordings that an earlier run of the server could not finish.

A part that no process has locked was left by a crash. It is truncated after its last complete frame, or fragment of MP4, gets
its metadata, and is renamed to a recording, while the server already serves and records. If more than a trifle of it is
damaged, a copy of the part is kept beside it. All functions block: they run in a native thread.

Measured on two shared cores, with an event loop that is late by 1 ms at the 99th percentile without a repair: 500 MB of video
take 4 s (0.8 s of processor time), and the loop is late by 1 to 3 ms, at most 12 ms; without pauses 0.6 s, and 3 to 15 ms.
500 MB of audio, 2.4 million small tags, take 90 s (17 s), and the loop is late by 11 to 16 ms, at most 137 ms; without pauses
by 10 to 170 ms. An MP4 part of 276 MB, 3000 fragments, takes 4.6 s (0.4 s).
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from rtmpd.media import flv, flv_repair
from rtmpd.media.flv_repair import apply_plan
from rtmpd.media.fmp4 import files as fmp4
from rtmpd.media.fmp4 import repair as fmp4_repair
from rtmpd.services.recorder.files import (
    BROKEN,
    FORMATS,
    PART,
    copy_part,
    file_error,
    find_files,
    is_same_file,
    publish_part,
    recording_suffix,
)
from rtmpd.services.recorder.throttle import Cancelled, Throttle, ThrottledFile

if TYPE_CHECKING:
    from pathlib import Path

    from rtmpd.config.file_names import FileNameTemplate
    from rtmpd.media.flv_repair import RepairPlan, ScanResult
    from rtmpd.media.fmp4.repair import Mp4Scan

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MAX_PARTS = 100_000
_WINDOW_BYTES = 32 << 10
"""Read between two pauses: less than 1 ms of work."""
_TRIFLE_BYTES, _TRIFLE_MS = 256 << 10, 2000
"""The bytes and the time in gaps up to which no copy of the part is kept. A last frame that is incomplete is no gap."""
_MAX_REST_BYTES = 1 << 20
"""A part without frames is deleted, and one with frames is cut without a copy, only if less than this follows its last tag."""


class Repaired(enum.Enum):
    """What was done to a part."""

    REPAIRED = "repaired"
    """It is a recording now."""
    REMOVED = "removed"
    """It contained no media."""
    BROKEN = "broken"
    """It can't be repaired, and was renamed to ``NAME.flv.broken``."""
    SKIPPED = "skipped"
    """Another process writes it, or it is not a part of rtmpd."""
    CANCELLED = "cancelled"
    """It was not changed."""
    FAILED = "failed"
    """The disk reported an error; the next start tries again."""


@dataclass(frozen=True, slots=True)
class RepairOutcome:
    """The result for one part.

    Attributes:
        path: The present path of the file; its last one if it was removed.
        cut_bytes: The number of bytes that were cut off.
        gaps, gap_bytes, gap_s: The number of damaged places in the middle, their bytes and their time.
        original: A copy of the part as it was; None: none was kept.
        reason: Why the part was skipped, is broken or failed.
    """

    path: Path
    action: Repaired
    duration_s: float = 0.0
    size_bytes: int = 0
    cut_bytes: int = 0
    reason: str = ""
    gaps: int = 0
    gap_bytes: int = 0
    gap_s: float = 0.0
    original: Path | None = None


def find_parts(directory: Path, template: FileNameTemplate, throttle: Throttle) -> tuple[list[Path], list[OSError]]:
    """Return the sorted paths of all parts whose names match *template*, and errors. A missing directory is no error."""
    parts: list[Path] = []
    errors: list[OSError] = []
    throttle.begin()
    try:
        suffixes = [suffix + PART for suffix in FORMATS]
        for relative in find_files(directory, template, suffixes, throttle.pause, errors.append):
            parts.append(directory / relative)
            if len(parts) == _MAX_PARTS:
                break
    except Cancelled:
        return [], []
    return sorted(parts), [error for error in errors if not isinstance(error, FileNotFoundError)]


def repair_part(part: Path, throttle: Throttle, reserve_bytes: int = 0) -> RepairOutcome:
    """Repair one part. Raises nothing.

    Args:
        reserve_bytes: The disk space that a copy of a damaged part must leave free.
    """
    throttle.begin()
    try:
        return _open(part, throttle, reserve_bytes)
    except FileNotFoundError:
        return RepairOutcome(part, Repaired.SKIPPED, reason="it is gone")
    except Cancelled:
        return RepairOutcome(part, Repaired.CANCELLED)
    except OSError as error:
        return RepairOutcome(part, Repaired.FAILED, reason=file_error(error))


def _open(part: Path, throttle: Throttle, reserve_bytes: int) -> RepairOutcome:
    throttle.pause()
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
        found = _scan(cast(BinaryIO, ThrottledFile(file, throttle)), recording_suffix(part))
        return _repair(part, file, found, throttle, reserve_bytes)


class _Scanned(NamedTuple):
    """What a scan has found.

    Attributes:
        result: The result.
        ours: Whether rtmpd has made the file, as far as can be seen.
        is_cut: Whether it ends within what rtmpd's files begin with.
        plan: The changes that repair it; None: it has no frames.
        format_name: The name of the format.
    """

    result: ScanResult | Mp4Scan
    ours: bool
    is_cut: bool
    plan: RepairPlan | None
    format_name: str


def _scan(file: BinaryIO, suffix: str) -> _Scanned:
    if suffix == fmp4.SUFFIX:
        found = fmp4_repair.scan(file, _WINDOW_BYTES)
        is_cut = found.is_cut and found.size <= _MAX_REST_BYTES
        return _Scanned(found, found.ours, is_cut, fmp4_repair.repair_plan(found), "MP4")
    result = flv_repair.scan(file, _WINDOW_BYTES)
    ours = not result.metadata or result.metadata.get("metadatacreator") == "rtmpd"
    is_cut = not result.valid and _is_cut_header(file, result.size)
    return _Scanned(result, ours, is_cut, flv_repair.repair_plan(result) if result.frames else None, "FLV")


def _repair(part: Path, file: BinaryIO, scanned: _Scanned, throttle: Throttle, reserve_bytes: int) -> RepairOutcome:
    result, plan = scanned.result, scanned.plan
    if result.valid and not scanned.ours:
        return RepairOutcome(part, Repaired.SKIPPED, size_bytes=result.size, reason="it is not a recording of rtmpd")
    if plan is None:
        empty = result.size - result.end <= _MAX_REST_BYTES if result.valid else scanned.is_cut
        if empty:
            part.unlink()
            return RepairOutcome(part, Repaired.REMOVED, cut_bytes=result.size)
        reason = "it has no frames" if result.valid else f"it does not begin as {scanned.format_name}"
        return RepairOutcome(publish_part(part, BROKEN), Repaired.BROKEN, size_bytes=result.size, reason=reason)
    found = os.fstat(file.fileno())
    original = None
    if result.gap_bytes > _TRIFLE_BYTES or result.gap_ms > _TRIFLE_MS or result.rest_bytes > _MAX_REST_BYTES:
        space = os.fstatvfs(file.fileno())
        if space.f_bavail * space.f_frsize < result.size + reserve_bytes:
            raise OSError(errno.ENOSPC, "it is damaged, and there is no space for a copy of it as it is", str(part))
        original = copy_part(part, file, throttle.pause)
        with suppress(PermissionError):
            os.utime(original, ns=(found.st_atime_ns, found.st_mtime_ns))
    apply_plan(file, plan)
    file.flush()
    size_bytes = os.fstat(file.fileno()).st_size
    with suppress(PermissionError):
        # The age of a recording counts from its last write.
        os.utime(file.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
    os.fsync(file.fileno())
    path = publish_part(part)
    with suppress(OSError):
        # Without this, a power failure may restore the old name, and the next start repairs the file again.
        _sync_directory(path.parent)
    cut_bytes = result.size - plan.truncate_to
    return RepairOutcome(
        path,
        Repaired.REPAIRED,
        result.duration_ms / 1000,
        size_bytes,
        cut_bytes,
        gaps=len(result.gaps),
        gap_bytes=result.gap_bytes,
        gap_s=result.gap_ms / 1000,
        original=original,
    )


def _is_cut_header(file: BinaryIO, size: int) -> bool:
    """Return whether a file ends within its file header."""
    if size >= flv.FILE_HEADER_SIZE:
        return False
    file.seek(0)
    head = file.read(size)
    return any(flv.file_header(audio, video).startswith(head) for audio in (False, True) for video in (False, True))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
