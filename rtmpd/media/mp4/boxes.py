"""Boxes of the ISO base media file format (ISO/IEC 14496-12, section 4.2): walked without recursion, bounded in number."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.errors import Mp4Error

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BOXES = 1000
"""The number of boxes inside a box that are walked."""

LONGEST_HEADER_BYTES = 16

_HEADER = struct.Struct(">I4s")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


class Box(NamedTuple):
    """A box.

    Attributes:
        kind: Its type, such as ``b"moov"``.
        start: The offset of its header.
        content: The offset behind its header.
        end: The offset behind it.
    """

    kind: bytes
    start: int
    content: int
    end: int


def read_header(head: bytes, start: int, limit: int) -> Box:
    """Parse the header of a box.

    Args:
        head: The first bytes of the box, up to `LONGEST_HEADER_BYTES`.
        start: The offset of the box.
        limit: The end of what contains it.

    Raises:
        Mp4Error: The header is invalid, or the box longer than what contains it.
    """
    size, kind = _HEADER.unpack_from(head)
    length = _HEADER.size
    if size == 1:
        length = LONGEST_HEADER_BYTES
        if len(head) < length:
            raise Mp4Error(f"damaged: the file ends within the header of a box at byte {start}")
        size = _U64.unpack_from(head, _HEADER.size)[0]
    elif size == 0:
        size = limit - start
    if size < length:
        raise Mp4Error(f"damaged: box {name(kind)} at byte {start} has a size of {size} bytes")
    if start + size > limit:
        raise Mp4Error(
            f"damaged or truncated: box {name(kind)} at byte {start} should have {size} bytes, {limit - start} are left"
        )
    return Box(kind, start, start + length, start + size)


def name(kind: bytes) -> str:
    """Return a type of a box or codec for a message."""
    text = kind.decode("ascii", "replace")
    return text if text.isprintable() and text.isascii() else f"0x{kind.hex()}"


class Content:
    """A box in memory, and what is read from it.

    Args:
        data: The bytes that contain the box.
        box: The box, with offsets in *data*.
    """

    __slots__ = ("box", "data")

    def __init__(self, data: bytes, box: Box) -> None:
        self.data = data
        self.box = box

    def __len__(self) -> int:
        return self.box.end - self.box.content

    def take(self, offset: int, length: int) -> bytes:
        """Return *length* bytes from *offset* on, counted from the beginning of the content."""
        start = self.box.content + offset
        if start + length > self.box.end:
            raise Mp4Error(f"damaged: box {name(self.box.kind)} is too short: {len(self)} bytes")
        return self.data[start : start + length]

    def rest(self, offset: int) -> bytes:
        """Return the bytes from *offset* on."""
        return self.take(offset, max(0, len(self) - offset))

    def number(self, offset: int, length: int) -> int:
        """Return an unsigned number of *length* bytes."""
        return int.from_bytes(self.take(offset, length), "big")

    @property
    def version(self) -> int:
        """The version of a full box."""
        return self.number(0, 1)

    @property
    def flags(self) -> int:
        """The flags of a full box."""
        return self.number(1, 3)

    def table(self, offset: int, entry: str, limit: int) -> Iterator[tuple[int, ...]]:
        """Return the entries of a table behind its number of entries.

        Args:
            offset: The offset of the number of entries, 4 bytes.
            entry: The form of an entry for ``struct``.
            limit: The highest number of entries.

        Raises:
            Mp4Error: There are more entries than *limit*, or than the box has room for.
        """
        count = self.number(offset, 4)
        if count > limit:
            raise Mp4Error(f"box {name(self.box.kind)} has {count} entries, at most {limit} are read")
        return struct.iter_unpack(entry, self.take(offset + 4, count * struct.calcsize(entry)))

    def boxes(self, offset: int = 0) -> Iterator[Content]:
        """Yield the boxes inside this one, from *offset* on. What is too short for a box at the end is ignored."""
        position = self.box.content + offset
        for _ in range(MAX_BOXES):
            if position + _HEADER.size > self.box.end:
                return
            head = self.data[position : min(position + LONGEST_HEADER_BYTES, self.box.end)]
            box = read_header(head, position, self.box.end)
            yield Content(self.data, box)
            position = box.end
        raise Mp4Error(f"box {name(self.box.kind)} has more than {MAX_BOXES} boxes inside")

    def find(self, *path: bytes) -> Content | None:
        """Return the first box of a path of types, such as ``b"mdia", b"minf"``; None without one."""
        found: Content | None = self
        for kind in path:
            if found is None:
                return None
            found = next((each for each in found.boxes() if each.box.kind == kind), None)
        return found

    def need(self, *path: bytes) -> Content:
        """Return the first box of a path of types.

        Raises:
            Mp4Error: There is none.
        """
        found = self.find(*path)
        if found is None:
            raise Mp4Error(f"damaged: box {name(self.box.kind)} has no {'/'.join(map(name, path))}")
        return found
