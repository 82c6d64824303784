"""Reads ``auth_file`` from a disk: the one place that does, for a start, a reload and a check of the configuration."""

from __future__ import annotations

import os
from pathlib import Path

from rtmpd.services.auth.table import FILE_LIMIT_BYTES, Table, TableError, parse_table

__all__ = ["read_table"]


def read_table(path: str) -> Table:
    """Read a file. Blocks.

    Raises:
        TableError: It can't be read, or is wrong.
    """
    try:
        with Path(path).open("rb") as file:
            return parse_table(file.read(FILE_LIMIT_BYTES + 1))
    except OSError as error:
        raise TableError(f"can't be read: {os.strerror(error.errno) if error.errno else 'error'}") from None
