"""Boxes of the ISO base media file format, as bytes (ISO/IEC 14496-12 section 4.2)."""

from __future__ import annotations

import struct

_HEADER = struct.Struct(">I4s")
_FULL = struct.Struct(">I4sI")


def box(kind: bytes, *content: bytes) -> bytes:
    """Return a box of at most 4 GiB."""
    size = _HEADER.size + sum(map(len, content))
    return b"".join((_HEADER.pack(size, kind), *content))


def full_box(kind: bytes, version: int, flags: int, *content: bytes) -> bytes:
    """Return a box with a version and flags."""
    size = _FULL.size + sum(map(len, content))
    return b"".join((_FULL.pack(size, kind, version << 24 | flags), *content))
