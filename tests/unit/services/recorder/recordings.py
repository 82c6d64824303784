"""Recordings made by hand, for the tests of repair and retention."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rtmpd.media import flv, flv_metadata

if TYPE_CHECKING:
    from rtmpd.services.recorder.assembler import Assembler

KEYFRAME = b"\x17\1\0\0\0" + b"k" * 500
FRAME = b"\x27\1\0\0\0" + b"f" * 100
SOUND = b"\xaf\1" + b"s" * 50


def recording(frames: int = 50, metadata: dict[str, object] | None = None, index_entries: int = 64) -> bytes:
    """Return what rtmpd has written of a recording when it is killed: *frames* frames of video, 40 ms each, with sound."""
    block = flv_metadata.MetadataBlock(metadata, index_entries=index_entries)
    tags = [flv.file_header(True, True), block.render()]
    for number in range(frames):
        tags.append(flv.tag(flv.VIDEO, number * 40, KEYFRAME if number % 10 == 0 else FRAME))
        tags.append(flv.tag(flv.AUDIO, number * 40, SOUND))
    return b"".join(tags)


def write(path: Path, data: bytes, mtime_s: float | None = None) -> Path:
    """Write a file, with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if mtime_s is not None:
        os.utime(path, (mtime_s, mtime_s))
    return path


def write_pieces(assembler: Assembler, files: dict[int, io.BytesIO]) -> list[int]:
    """Do with an assembler's pieces what the recorder does: write, and patch what is closed; return the numbers of those."""
    closed = []
    for segment, data, last, patches in assembler.take():
        file = files.setdefault(segment.number, io.BytesIO())
        file.seek(0, io.SEEK_END)
        file.write(data)
        if data:
            segment.mark_written()
        for position, patch in (*patches, *(segment.patches() if last else ())):
            file.seek(position)
            file.write(patch)
        if last:
            closed.append(segment.number)
    return closed


def read(file: Path | io.BytesIO) -> list[tuple[int, int, bytes]]:
    """Return type, timestamp and payload of each tag behind the metadata."""
    data = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    position = flv.FILE_HEADER_SIZE
    tags = []
    while position < len(data):
        length = int.from_bytes(data[position + 1 : position + 4], "big")
        time = int.from_bytes(data[position + 4 : position + 7], "big") | data[position + 7] << 24
        tags.append((data[position], time, data[position + 11 : position + 11 + length]))
        position += length + 15
    assert tags[0][0] == 18
    return tags[1:]
