"""FLV: the file header and tags ("Adobe Flash Video File Format Specification" version 10.1, annex E). No I/O.

Enhanced RTMP messages are stored unchanged, as its specification demands. A recording is the file header, a `MetadataBlock` of
`rtmpd.media.flv_metadata`, and one tag for each message::

    file.write(flv.file_header(True, True))
    block = flv_metadata.MetadataBlock(metadata, video=..., audio=...)
    file.write(block.render())
    position = flv.FILE_HEADER_SIZE + block.tag_size
    ... file.write(flv.tag(type_id, timestamp, payload)), index.keyframe(timestamp, position)
    file.seek(flv.FILE_HEADER_SIZE)
    file.write(block.render(duration_s=..., keyframes=index.entries, sequence_header=index.sequence_header, ...))

`rtmpd.media.flv_repair` repairs a recording after a crash.
"""

from __future__ import annotations

import struct

from rtmpd.errors import LocalProtocolError

AUDIO, VIDEO, SCRIPT = 8, 9, 18
"""Tag types, equal to the type ids of the corresponding RTMP messages."""

SUFFIX = ".flv"

FILE_HEADER_SIZE = 13
"""The bytes before the first tag: the header (section E.2), and the size of the previous tag, which is 0."""

TAG_HEADER_SIZE = 11
TAG_OVERHEAD = 15
"""The bytes of a tag besides its payload: the header before it, and the tag's size after it."""

MAX_PAYLOAD_BYTES = 0xFFFFFF

FLAGS_OFFSET = 4
"""The offset of the flags in the file header."""

_HAS_AUDIO, _HAS_VIDEO = 4, 1

TAG_HEADER = struct.Struct(">II3x")
"""Type and size, timestamp, and the stream id, which is 0."""

_U32 = struct.Struct(">I")


def file_header(has_audio: bool, has_video: bool) -> bytes:
    """Return the first `FILE_HEADER_SIZE` bytes of a file (sections E.2 and E.3)."""
    return b"FLV\1" + bytes((header_flags(has_audio, has_video),)) + b"\0\0\0\x09" + bytes(4)


def header_flags(has_audio: bool, has_video: bool) -> int:
    """Return the flags of the file header."""
    return _HAS_AUDIO * has_audio | _HAS_VIDEO * has_video


def tag_size(length: int) -> int:
    """Return the size of a tag with a payload of *length* bytes, including the size field after it."""
    return length + TAG_OVERHEAD


def tag(type_id: int, timestamp_ms: int, payload: bytes) -> bytes:
    """Return a tag (section E.4.1) with the size field after it.

    Args:
        type_id: `AUDIO`, `VIDEO` or `SCRIPT`.
        timestamp_ms: The timestamp modulo 2**32. Many players read it as signed, so recordings should start near 0.
        payload: At most `MAX_PAYLOAD_BYTES`, which no RTMP message exceeds.

    Raises:
        LocalProtocolError: The payload is longer.
    """
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(f"an FLV tag of {length} bytes, expected at most {MAX_PAYLOAD_BYTES}")
    time = timestamp_ms & 0xFFFFFFFF
    head = TAG_HEADER.pack(type_id << 24 | length, (time & 0xFFFFFF) << 8 | time >> 24)
    return b"".join((head, payload, _U32.pack(length + 11)))


def tag_into(buffer: bytearray | memoryview, offset: int, type_id: int, timestamp_ms: int, payload: bytes) -> int:
    """Write the bytes of `tag` into *buffer*, which must be large enough; return the offset after them.

    Runs for every message of a recorded stream, and checks nothing.
    """
    length = len(payload)
    TAG_HEADER.pack_into(buffer, offset, type_id << 24 | length, (timestamp_ms & 0xFFFFFF) << 8 | (timestamp_ms >> 24 & 0xFF))
    start = offset + 11
    end = start + length
    buffer[start:end] = payload
    _U32.pack_into(buffer, end, length + 11)
    return end + 4
