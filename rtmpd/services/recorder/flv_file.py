"""The file of a recording, as the recorder's threads write it.

Every function blocks, as long as the disk likes: they run in native threads, one at a time for each file. Imports the standard
library and paths.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from rtmpd.services.recorder.paths import open_part, publish_part

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["FlvFile", "file_error"]


def file_error(error: OSError) -> str:
    """Describe an error of the disk in a few words."""
    return error.strerror or str(error)


class FlvFile:
    """A recording that is being written.

    Attributes:
        part: Its path while it is written.
        size: Bytes that are in it for certain.
        deleted: Somebody has deleted it: it has no name any more, and can't be given one.
    """

    def __init__(self, descriptor: int, part: Path) -> None:
        self._descriptor = descriptor
        self.part = part
        self.size = 0
        self.deleted = False

    @classmethod
    def create(cls, directory: Path, relative: str, reserve_bytes: int) -> FlvFile:
        """Open a new file, under a name that nobody has.

        Args:
            directory: Where recordings are kept.
            relative: Its path in there, without an extension.
            reserve_bytes: What must be free on the disk, and a quarter more, so that a full disk is not tried again and again.

        Raises:
            OSError: There is none.
        """
        file = cls(*open_part(directory, relative))
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
                raise OSError(errno.ENOSPC, f"{free_bytes >> 20} MiB are free on its disk, disk_reserve_bytes are to be left")

    def write(self, data: bytes, reserve_bytes: int) -> None:
        """Append *data*, all of it, unless less than *reserve_bytes* are free.

        Raises:
            OSError: It was not written, or only in part; the disk is full or nearly so; or the file has been deleted.
        """
        self.check_room(reserve_bytes)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        if not os.fstat(self._descriptor).st_nlink:
            self.deleted = True
            raise OSError(errno.ENOENT, "somebody has deleted the file")
        self.size += len(data)

    def finish(self, patches: Sequence[tuple[int, bytes]]) -> Path:
        """Make it whole, and give it its name; return that. It is closed in any case.

        Raises:
            OSError: It could not be renamed, and is left as it is.
        """
        try:
            try:
                # What was written only in part goes.
                os.ftruncate(self._descriptor, self.size)
                for position, data in patches:
                    os.pwrite(self._descriptor, data, position)
                os.fsync(self._descriptor)
            except OSError as error:
                # Some file systems need room to write in place. It can be played all the same.
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            return publish_part(self.part)
        finally:
            os.close(self._descriptor)

    def discard(self) -> None:
        """Delete it: there is nothing in it that is worth keeping."""
        try:
            if not self.deleted:
                self.part.unlink()
        finally:
            os.close(self._descriptor)
