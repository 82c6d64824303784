"""FLV files: the file header, and tags.

"Adobe Flash Video File Format Specification" version 10.1, annex E; section numbers below are its. Enhanced RTMP messages are
stored as they are, as its specification wants it.

A recording is the file header, a `MetadataBlock` of flv_metadata, and one tag per message::

    file.write(flv.file_header(True, True))
    block = flv_metadata.MetadataBlock(metadata, video=..., audio=...)
    file.write(block.render())
    position = flv.FILE_HEADER_SIZE + block.tag_size
    ... file.write(flv.tag(type_id, timestamp, payload)), index.keyframe(timestamp, position)
    file.seek(flv.FILE_HEADER_SIZE)
    file.write(block.render(duration_s=..., keyframes=index.entries, sequence_header=index.sequence_header, ...))

What a crash leaves of it is found and set right by flv_repair.

Files are objects that are passed in. Imports errors; must not import flv_metadata or flv_repair, which import it.
"""

from __future__ import annotations

import struct

from rtmpd.errors import LocalProtocolError

__all__ = [
    "AUDIO",
    "SCRIPT",
    "VIDEO",
    "file_header",
    "header_flags",
    "tag",
    "tag_into",
    "tag_size",
    "FILE_HEADER_SIZE",
    "FLAGS_OFFSET",
    "MAX_PAYLOAD_BYTES",
    "TAG_HEADER",
    "TAG_HEADER_SIZE",
    "TAG_OVERHEAD",
]

AUDIO, VIDEO, SCRIPT = 8, 9, 18
"""Tag types: the type ids of the RTMP messages that hold the same."""

FILE_HEADER_SIZE = 13
"""Bytes before the first tag: the header (section E.2) and the size of the tag before it, which is 0."""

TAG_HEADER_SIZE = 11
TAG_OVERHEAD = 15
"""Bytes of a tag besides its payload: the header before it, its size after it."""

MAX_PAYLOAD_BYTES = 0xFFFFFF

FLAGS_OFFSET = 4
"""Where the file header has its flags."""

_HAS_AUDIO, _HAS_VIDEO = 4, 1

TAG_HEADER = struct.Struct(">II3x")
"""Type and size; timestamp; stream id, which is 0."""

_U32 = struct.Struct(">I")


def file_header(has_audio: bool, has_video: bool) -> bytes:
    """Return the `FILE_HEADER_SIZE` bytes that a file begins with (sections E.2 and E.3)."""
    return b"FLV\1" + bytes((header_flags(has_audio, has_video),)) + b"\0\0\0\x09" + bytes(4)


def header_flags(has_audio: bool, has_video: bool) -> int:
    """Return the flags of the file header."""
    return _HAS_AUDIO * has_audio | _HAS_VIDEO * has_video


def tag_size(length: int) -> int:
    """Return how many bytes the tag for a payload of *length* bytes takes, with its size behind it."""
    return length + 15


def tag(type_id: int, timestamp_ms: int, payload: bytes) -> bytes:
    """Return a tag (section E.4.1) and its size.

    Args:
        type_id: `AUDIO`, `VIDEO` or `SCRIPT`.
        timestamp_ms: Modulo 2**32. Many players take it for signed: begin recordings near 0.
        payload: At most `MAX_PAYLOAD_BYTES`, as every RTMP message has.

    Raises:
        LocalProtocolError: The payload is longer.
    """
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(f"an FLV tag of {length} bytes, the most is {MAX_PAYLOAD_BYTES}")
    time = timestamp_ms & 0xFFFFFFFF
    head = TAG_HEADER.pack(type_id << 24 | length, (time & 0xFFFFFF) << 8 | time >> 24)
    return b"".join((head, payload, _U32.pack(length + 11)))


def tag_into(buffer: bytearray | memoryview, offset: int, type_id: int, timestamp_ms: int, payload: bytes) -> int:
    """Write what `tag` returns into *buffer*, which has room for it.

    For every message of a recorded stream: plain code, and nothing is checked.

    Returns:
        The offset behind it.
    """
    length = len(payload)
    TAG_HEADER.pack_into(buffer, offset, type_id << 24 | length, (timestamp_ms & 0xFFFFFF) << 8 | (timestamp_ms >> 24 & 0xFF))
    start = offset + 11
    end = start + length
    buffer[start:end] = payload
    _U32.pack_into(buffer, end, length + 11)
    return end + 4
