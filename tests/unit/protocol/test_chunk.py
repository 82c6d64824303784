"""The chunk layer against bytes written by hand from RTMP 1.0 section 5.3, and against what peers do beyond it."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from itertools import pairwise
from typing import NamedTuple

import pytest

from rtmpd.errors import LimitExceeded, RemoteProtocolError
from rtmpd.protocol.chunk import (
    DEFAULT_CHUNK_SIZE,
    EXTENDED_TIMESTAMP,
    GROWTH_BYTES,
    MAX_CHUNK_SIZE,
    MAX_CSID,
    ChunkReader,
    RawMessage,
    frame_into,
    frame_message,
    framed_size,
    pack_header,
)

AUDIO, VIDEO, COMMAND = 8, 9, 20

P32 = bytes(range(0x60, 0x80))
P128 = bytes(range(0x40, 0xC0))
P307 = P128 + P128 + P128[:51]


class Vector(NamedTuple):
    """Messages and the bytes that carry them.

    ``writer`` is the csid and the chunk size with which our writer gives exactly these bytes, for those that it can give.
    """

    name: str
    messages: list[RawMessage]
    data: bytes
    writer: tuple[int, int] | None = None


def h(*parts: str | bytes) -> bytes:
    """Join hex strings (blanks are free) and payloads."""
    return b"".join(part if isinstance(part, bytes) else bytes.fromhex(part) for part in parts)


def m(payload: bytes, timestamp: int, type_id: int = VIDEO, msid: int = 1) -> RawMessage:
    return RawMessage(type_id, msid, timestamp, payload)


# The message headers are: timestamp(3) length(3) type(1) message stream id(4, little-endian).
BASIC = [
    Vector("type 0", [m(b"abcd", 0, COMMAND, 0)], h("03 000000 000004 14 00000000", b"abcd"), (3, 128)),
    Vector(
        "message stream id is little-endian",
        [m(b"a", 1, AUDIO, 0x01020304)],
        h("04 000001 000001 08 04030201", b"a"),
        (4, 128),
    ),
    Vector("message stream id of 32 bits", [m(b"a", 1, AUDIO, 0xFFFFFFFE)], h("04 000001 000001 08 feffffff", b"a"), (4, 128)),
    Vector(
        "section 5.3.2.1: types 0, 2, 3, 3",
        [m(P32, t, AUDIO, 12345) for t in (1000, 1020, 1040, 1060)],
        h("03 0003e8 000020 08 39300000", P32, "83 000014", P32, "c3", P32, "c3", P32),
    ),
    Vector(
        "section 5.3.2.2: one message in three chunks",
        [m(P307, 1000, VIDEO, 12346)],
        h("04 0003e8 000133 09 3a300000", P128, "c4", P128, "c4", P128[:51]),
        (4, 128),
    ),
    Vector(
        "type 1 changes length and type, keeps the message stream",
        [m(b"abcd", 100, VIDEO, 5), m(b"xy", 140, AUDIO, 5)],
        h("06 000064 000004 09 05000000", b"abcd", "46 000028 000002 08", b"xy"),
    ),
    Vector("a whole chunk, exactly", [m(P128, 7)], h("06 000007 000080 09 01000000", P128), (6, 128)),
    Vector(
        "one byte more than a chunk",
        [m(P128 + b"!", 7)],
        h("06 000007 000081 09 01000000", P128, "c6", b"!"),
        (6, 128),
    ),
    Vector("no payload", [m(b"", 7, AUDIO)], h("04 000007 000000 08 01000000"), (4, 128)),
    Vector(
        "no payload, by types 0, 1, 2, 3",
        [m(b"", t, AUDIO) for t in (7, 8, 10, 12)],
        h("04 000007 000000 08 01000000", "44 000001 000000 08", "84 000002", "c4"),
    ),
    Vector(
        "no payload with an extended timestamp, and again by type 3",
        [m(b"", 0x2000000, AUDIO), m(b"", 0x4000000, AUDIO), m(b"a", 5, AUDIO)],
        h("04 ffffff 000000 08 01000000 02000000", "c4 02000000", "04 000005 000001 08 01000000", b"a"),
    ),
]

CSIDS = [
    Vector(f"csid {csid}: {size} byte(s)", [m(P128 + b"a", 1)], h(first, P128, follow, b"a"), (csid, 128))
    for csid, size, first, follow in [
        (2, 1, "02 000001 000081 09 01000000", "c2"),
        (63, 1, "3f 000001 000081 09 01000000", "ff"),
        (64, 2, "0000 000001 000081 09 01000000", "c000"),
        (319, 2, "00ff 000001 000081 09 01000000", "c0ff"),
        (320, 3, "010001 000001 000081 09 01000000", "c10001"),
        (65599, 3, "01ffff 000001 000081 09 01000000", "c1ffff"),
    ]
] + [
    # Sections 5.3.1.1: ids 64 to 319 may be in either form.
    Vector(
        "csid 64 in the form of 2 bytes and in that of 3",
        [m(P128 + b"a", 1)],
        h("0000 000001 000081 09 01000000", P128, "c10000", b"a"),
    ),
    Vector(
        "all types with basic headers of 3 bytes",
        [m(b"ab", 1), m(b"c", 3, AUDIO), m(b"d", 6, AUDIO), m(b"e", 9, AUDIO)],
        h("01 2c01 000001 000002 09 01000000", b"ab", "41 2c01 000002 000001 08", b"c", "81 2c01 000003", b"d", "c1 2c01 65"),
    ),
]

TIMES = [
    Vector("the last time of three bytes", [m(b"a", 0xFFFFFE)], h("06 fffffe 000001 09 01000000", b"a"), (6, 128)),
    Vector("the first extended time", [m(b"a", 0xFFFFFF)], h("06 ffffff 000001 09 01000000 00ffffff", b"a"), (6, 128)),
    Vector("one more", [m(b"a", 0x1000000)], h("06 ffffff 000001 09 01000000 01000000", b"a"), (6, 128)),
    Vector("the last of all", [m(b"a", 0xFFFFFFFF)], h("06 ffffff 000001 09 01000000 ffffffff", b"a"), (6, 128)),
    Vector(
        "an extended time that had no need to be",
        [m(b"a", 5), m(b"b", 6)],
        h("06 ffffff 000001 09 01000000 00000005", b"a", "86 000001", b"b"),
    ),
    Vector(
        "extended and repeated on type 3",
        [m(P307, 0x01020304)],
        h("06 ffffff 000133 09 01000000 01020304", P128, "c6 01020304", P128, "c6 01020304", P128[:51]),
        (6, 128),
    ),
    Vector(
        "extended and repeated on type 3, csid of 3 bytes",
        [m(P128 + b"a", 0xFFFFFF)],
        h("01ffff ffffff 000081 09 01000000 00ffffff", P128, "c1ffff 00ffffff", b"a"),
        (65599, 128),
    ),
    Vector(
        "extended and not repeated on type 3",
        [m(P307, 0x01020304)],
        h("06 ffffff 000133 09 01000000 01020304", P128, "c6", P128, "c6", P128[:51]),
    ),
    Vector(
        "not repeated, and the last chunk is of one byte",
        [m(P128 + b"!", 0x21020304), m(b"b", 5)],
        h("06 ffffff 000081 09 01000000 21020304", P128, "c6", b"!", "06 000005 000001 09 01000000", b"b"),
    ),
    Vector(
        "repeated once, then left out",
        [m(P307, 0x01020304)],
        h("06 ffffff 000133 09 01000000 01020304", P128, "c6 01020304", P128, "c6", P128[:51]),
    ),
    Vector(
        "repeated without the top bit",
        [m(P128 + b"a", 0x81020304)],
        h("06 ffffff 000081 09 01000000 81020304", P128, "c6 01020304", b"a"),
    ),
    Vector(
        "repeated with a top bit that the header had not",
        [m(P128 + b"a", 0x01020304)],
        h("06 ffffff 000081 09 01000000 01020304", P128, "c6 81020304", b"a"),
    ),
    *[
        Vector(
            f"extended delta on type {fmt}, {how}",
            [m(P128 + b"1", 0x10), m(P128 + b"2", 0x01000010)],
            h("06 000010 000081 09 01000000", P128, "c6", b"1", header, "01000000", P128, f"c6 {repeated}", b"2"),
        )
        for fmt, header in ((1, "46 ffffff 000081 09"), (2, "86 ffffff"))
        for how, repeated in (
            ("repeated", "01000000"),
            ("left out", ""),
            ("absolute time instead", "01000010"),
            ("absolute time with the top bit", "81000010"),
        )
    ],
    Vector(
        "type 1 after an extended type 0 has a plain delta",
        [m(P128 + b"1", 0x01000000), m(P128 + b"2", 0x01000028)],
        h("06 ffffff 000081 09 01000000 01000000", P128, "c6 01000000", b"1", "46 000028 000081 09", P128, "c6", b"2"),
    ),
    Vector(
        "the 32 bits wrap by a delta",
        [m(b"a", 0xFFFFFFF0), m(b"b", 0x10), m(b"c", 0x30)],
        h("06 ffffff 000001 09 01000000 fffffff0", b"a", "86 000020", b"b", "c6", b"c"),
    ),
    Vector(
        "a negative delta, as librtmp sends it",
        [m(b"a", 1000, AUDIO), m(b"b", 802)],
        h("04 0003e8 000001 08 01000000", b"a", "44 ffffff 000001 09 ffffff3a", b"b"),
    ),
    Vector(
        "a negative delta over three chunks",
        [m(b"a", 1000, AUDIO), m(P307, 802)],
        h(
            *("04 0003e8 000001 08 01000000", b"a", "44 ffffff 000133 09 ffffff3a", P128),
            *("c4 ffffff3a", P128, "c4 ffffff3a", P128[:51]),
        ),
    ),
]

TYPE_3_STARTS = [
    Vector(
        "type 3 after type 0 adds that timestamp",
        [m(b"a", 20), m(b"b", 40), m(b"c", 60)],
        h("06 000014 000001 09 01000000", b"a", "c6", b"b", "c6", b"c"),
    ),
    Vector(
        "type 3 after type 1 adds the delta",
        [m(b"a", 20), m(b"b", 23), m(b"c", 26)],
        h("06 000014 000001 09 01000000", b"a", "46 000003 000001 09", b"b", "c6", b"c"),
    ),
    Vector(
        "type 3 after type 2 adds the delta",
        [m(b"a", 20), m(b"b", 23), m(b"c", 26)],
        h("06 000014 000001 09 01000000", b"a", "86 000003", b"b", "c6", b"c"),
    ),
    Vector(
        "type 3 starts and continues",
        [m(P128 + b"a", 0), m(P128 + b"b", 0)],
        h("06 000000 000081 09 01000000", P128, "c6", b"a", "c6", P128, "c6", b"b"),
    ),
    Vector(
        "type 3 after an extended type 0, repeated",
        [m(b"aaaa", 0x01000000), m(b"bbbb", 0x02000000)],
        h("06 ffffff 000004 09 01000000 01000000", b"aaaa", "c6 01000000", b"bbbb"),
    ),
    Vector(
        "type 3 after an extended type 0, left out",
        [m(b"aaaa", 0x01000000), m(b"bbbb", 0x02000000), m(b"cccc", 0x03000000)],
        h("06 ffffff 000004 09 01000000 01000000", b"aaaa", "c6", b"bbbb", "c6", b"cccc"),
    ),
    Vector(
        "type 3 after an extended delta, repeated at the start and on the continuation",
        [m(b"a", 8), m(P128 + b"b", 0x01000008), m(P128 + b"c", 0x02000008)],
        h(
            *("06 000008 000001 09 01000000", b"a", "46 ffffff 000081 09 01000000", P128, "c6 01000000", b"b"),
            *("c6 01000000", P128, "c6 01000000", b"c"),
        ),
    ),
    Vector(
        "type 3 after an extended delta, the continuation has the new absolute time",
        [m(b"a", 8), m(P128 + b"b", 0x01000008), m(P128 + b"c", 0x02000008)],
        h(
            *("06 000008 000001 09 01000000", b"a", "46 ffffff 000081 09 01000000", P128, "c6 01000008", b"b"),
            *("c6 01000000", P128, "c6 02000008", b"c"),
        ),
    ),
]

MULTIPLEX = [
    Vector(
        "audio inside a video message",
        [m(b"audio", 1001, AUDIO), m(b"AUDIO", 1002, AUDIO), m(P307, 1000)],
        h(
            *("06 0003e8 000133 09 01000000", P128, "04 0003e9 000005 08 01000000", b"audio"),
            *("c6", P128, "44 000001 000005 08", b"AUDIO", "c6", P128[:51]),
        ),
    ),
    Vector(
        "two messages chunk by chunk, finished in the other order",
        [m(P128 * 2, 2, AUDIO), m(P307, 1)],
        h("06 000001 000133 09 01000000", P128, "04 000002 000100 08 01000000", P128, "c6", P128, "c4", P128, "c6", P128[:51]),
    ),
    Vector(
        "interleaved with extended timestamps, one repeats and one does not",
        [m(P128 + b"a", 0x01000002, AUDIO), m(P128 + b"v", 0x01000001)],
        h(
            *("06 ffffff 000081 09 01000000 01000001", P128, "04 ffffff 000081 08 01000000 01000002", P128),
            *("c4 01000002", b"a", "c6", b"v"),
        ),
    ),
    Vector(
        "types and streams change on one csid",
        [m(b"cmd", 0, COMMAND), m(b"meta", 0, 18), m(b"a", 5, AUDIO), m(b"v", 9), m(b"w", 0, VIDEO, 2)],
        h(
            *("04 000000 000003 14 01000000", b"cmd", "44 000000 000004 12", b"meta", "44 000005 000001 08", b"a"),
            *("44 000004 000001 09", b"v", "04 000000 000001 09 02000000", b"w"),
        ),
    ),
]

ABORT_AND_SIZE = [
    Vector(
        "Abort drops what has come of a message",
        [m(b"new", 2)],
        h(
            *("06 000001 000133 09 01000000", P128, "02 000000 000004 02 00000000 00000006"),
            *("06 000002 000003 09 01000000", b"new"),
        ),
    ),
    Vector(
        "after Abort a type 3 starts the message anew",
        [m(P128 + b"a", 2)],
        h("06 000001 000081 09 01000000", P128, "02 000000 000004 02 00000000 00000006", "c6", P128, "c6", b"a"),
    ),
    Vector(
        "Abort of a csid of 3 bytes",
        [m(b"new", 2)],
        h(
            *("010001 000001 000133 09 01000000", P128, "02 000000 000004 02 00000000 00000140"),
            *("010001 000002 000003 09 01000000", b"new"),
        ),
    ),
    Vector(
        "Abort where nothing is under way, or no such csid",
        [m(b"a", 1), m(b"b", 2)],
        h(
            *("06 000001 000001 09 01000000", b"a", "02 000000 000004 02 00000000 00000006"),
            *("c2 0000abcd", "86 000001", b"b"),
        ),
    ),
    Vector(
        "Abort leaves other messages alone",
        [m(P128 + b"v", 1)],
        h(
            *("06 000001 000081 09 01000000", P128, "04 000001 000081 08 01000000", P128),
            *("02 000000 000004 02 00000000 00000004", "c6", b"v"),
        ),
    ),
    Vector(
        "Set Chunk Size 4096",
        [m(P307, 1)],
        h("02 000000 000004 01 00000000 00001000", "06 000001 000133 09 01000000", P307),
    ),
    Vector(
        "Set Chunk Size 1",
        [m(b"abc", 1)],
        h("02 000000 000004 01 00000000 00000001", "06 000001 000003 09 01000000", b"a", "c6", b"b", "c6", b"c"),
    ),
    Vector(
        "Set Chunk Size from 1 back to 4, itself in four chunks",
        [m(b"abc", 1)],
        h(
            *("02 000000 000004 01 00000000 00000001", "02 000000 000004 01 00000000 00 c2 00 c2 00 c2 04"),
            *("06 000001 000003 09 01000000", b"abc"),
        ),
    ),
    Vector(
        "Set Chunk Size 128 MiB",
        [m(P307, 1)],
        h("02 000000 000004 01 00000000 08000000", "06 000001 000133 09 01000000", P307),
    ),
    Vector(
        "Set Chunk Size 0x7FFFFFFF",
        [m(P307, 1)],
        h("02 000000 000004 01 00000000 7fffffff", "06 000001 000133 09 01000000", P307),
    ),
    Vector(
        "Set Chunk Size in the middle of a message",
        [m(P307, 1), m(P307, 2)],
        h(
            *("06 000001 000133 09 01000000", P128, "02 000000 000004 01 00000000 00000040", "c6", P128[:64]),
            *("c6", P128[64:], "c6", P128[:51], "02 000000 000004 01 00000000 00000800"),
            *("86 000001", P307),
        ),
    ),
    Vector(
        "Set Chunk Size between the chunks of two messages",
        [m(P128 * 2, 2, AUDIO), m(P128 * 2, 1)],
        h(
            *("06 000001 000100 09 01000000", P128, "04 000002 000100 08 01000000", P128),
            "02 000000 000004 01 00000000 00000060",
            *("c6", P128[:96], "c4", P128[:96], "c4", P128[96:], "c6", P128[96:]),
        ),
    ),
    Vector(
        "Set Chunk Size with more bytes than it needs",
        [m(P307, 1)],
        h("02 000000 000006 01 00000000 00001000 0000", "06 000001 000133 09 01000000", P307),
    ),
]

FIRST_TYPE_1 = [
    Vector(
        "type 1 first on csid 2",
        [m(bytes.fromhex("000700001234"), 0, 4, 0)],
        h("42 000000 000006 04 000700001234"),
    ),
    Vector(
        "type 1 first on csid 2 has its time from 0",
        [m(bytes.fromhex("000003e8"), 77, 3, 0), m(bytes.fromhex("000007d0"), 154, 3, 0)],
        h("42 00004d 000004 03 000003e8", "c2 000007d0"),
    ),
]

VECTORS = BASIC + CSIDS + TIMES + TYPE_3_STARTS + MULTIPLEX + ABORT_AND_SIZE + FIRST_TYPE_1

every_vector = pytest.mark.parametrize("vector", [pytest.param(v, id=v.name) for v in VECTORS])


def feed(reader: ChunkReader, pieces: list[bytes]) -> list[RawMessage]:
    return [message for piece in pieces for message in reader.feed(piece)]


def split(data: bytes, generator: random.Random, count: int = 6) -> list[bytes]:
    cuts = sorted(generator.randrange(len(data) + 1) for _ in range(count))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def read(data: bytes, **limits: int) -> list[RawMessage]:
    return ChunkReader(**limits).feed(data)


# The reader: every vector in four ways -----------------------------------------------------------------------------------


@every_vector
def test_reads_it_whole(vector):
    reader = ChunkReader()
    assert reader.feed(vector.data) == vector.messages
    assert reader.buffered_bytes == 0


@every_vector
def test_reads_it_byte_by_byte(vector):
    reader = ChunkReader()
    assert feed(reader, [vector.data[i : i + 1] for i in range(len(vector.data))]) == vector.messages
    assert reader.buffered_bytes == 0


@every_vector
def test_reads_it_at_random_splits(vector):
    generator = random.Random(vector.name)
    for count in (1, 2, 3, 5, 8, 13) * 5:
        reader = ChunkReader()
        assert feed(reader, split(vector.data, generator, count)) == vector.messages


@every_vector
def test_reads_it_split_in_two_anywhere(vector):
    for cut in range(len(vector.data)):
        assert feed(ChunkReader(), [vector.data[:cut], vector.data[cut:]]) == vector.messages


@every_vector
def test_keeps_what_follows_it(vector):
    # The start of a message on another csid: a part of its header, or all of it and not yet the payload.
    follows = h("3d ffffff 000001 09 01000000 01000000", b"a")
    for cut, held in ((1, 1), (5, 5), (12, 12), (15, 15), (16, 0)):
        reader = ChunkReader()
        assert reader.feed(vector.data + follows[:cut]) == vector.messages
        assert reader.buffered_bytes == held
        assert reader.feed(follows[cut:]) == [m(b"a", 0x01000000)]


@every_vector
def test_payloads_are_immutable_bytes(vector):
    for pieces in ([vector.data], [vector.data[i : i + 1] for i in range(len(vector.data))]):
        assert all(type(message.payload) is bytes for message in feed(ChunkReader(), pieces))


@pytest.mark.parametrize("vector", [pytest.param(v, id=v.name) for v in VECTORS if v not in FIRST_TYPE_1])
def test_two_copies_in_a_row_are_two_messages(vector):
    reader = ChunkReader()
    first = reader.feed(vector.data)
    # The vectors start with 128, whatever chunk size they end with.
    reader.chunk_size = DEFAULT_CHUNK_SIZE
    assert first + reader.feed(vector.data) == vector.messages * 2


def test_no_bytes_are_no_messages():
    reader = ChunkReader()
    assert reader.feed(b"") == []
    reader.feed(h("06 0000"))
    assert reader.feed(b"") == []
    assert reader.buffered_bytes == 3


def test_messages_come_as_soon_as_their_last_byte():
    reader = ChunkReader()
    data = h("06 000001 000133 09 01000000", P128, "c6", P128, "c6", P128[:51])
    for i in range(len(data) - 1):
        assert reader.feed(data[i : i + 1]) == []
    assert reader.feed(data[-1:]) == [m(P307, 1)]


def test_buffered_bytes_are_those_of_the_incomplete_messages():
    reader = ChunkReader()
    reader.feed(h("06 000001 000133 09 01000000", P128))
    assert reader.buffered_bytes == 128
    reader.feed(h("04 000001 000100 08 01000000", P128, "c4", b"1234"))
    assert reader.buffered_bytes == 260
    reader.feed(h(P128[4:], "c6", P128, "c6", P128[:50]))
    assert reader.buffered_bytes == 306
    assert reader.feed(b"x")
    assert reader.buffered_bytes == 0


def test_growth_of_incomplete_messages_is_reported_in_steps():
    reader = ChunkReader()
    reader.chunk_size = 65536
    reported = []
    reader.on_growth = lambda: reported.append(reader.buffered_bytes)
    header = h("06 000001 600000 09 01000000")
    pieces = [header + bytes(65536), *([b"\xc6" + bytes(65536)] * 49)]
    for piece in pieces:
        assert reader.feed(piece) == []
    assert reported == [GROWTH_BYTES + 65536, 2 * (GROWTH_BYTES + 65536)]
    assert reader.grown
    # From here on, whatever was before.
    reader.watch_growth()
    assert not reader.grown
    for _ in range(16):
        reader.feed(b"\xc6" + bytes(65536))
    assert not reader.grown
    # Bytes inside of a chunk, too.
    reader.feed(b"\xc6" + bytes(10))
    assert reader.grown


def test_growth_is_no_reason_to_exceed_the_limit():
    reader = ChunkReader()
    reader.limit_buffered(3 * GROWTH_BYTES, "the limit")
    reader.chunk_size = 1 << 24
    reader.feed(h("06 000001 600000 09 01000000") + bytes(3 * GROWTH_BYTES))
    assert reader.grown
    with pytest.raises(LimitExceeded, match="the limit is 3145728, the peer asked for 3145729"):
        reader.feed(b"x")


def test_abort_by_the_caller_gives_the_memory_back():
    reader = ChunkReader()
    reader.feed(h("06 000001 000133 09 01000000", P128))
    reader.abort(7)
    assert reader.buffered_bytes == 128
    reader.abort(6)
    assert reader.buffered_bytes == 0


# What can't be read ------------------------------------------------------------------------------------------------------

ERRORS = [
    ("type 2 first", "86 000001", r"csid 6: expected a type 0 header as the first one, found type 2"),
    ("type 3 first", "c6", r"csid 6: expected a type 0 header as the first one, found type 3"),
    ("type 3 first, csid of 3 bytes", "c1 ffff", r"csid 65599: expected a type 0 header as the first one, found type 3"),
    ("message type 0", "06 000000 000001 00 01000000 61", r"message type 0"),
    ("message type 0 without payload", "06 000000 000000 00 01000000", r"message type 0"),
    ("Set Chunk Size 0", "02 000000 000004 01 00000000 00000000", r"Set Chunk Size: expected 1 to 2147483647 bytes, found 0"),
    ("Set Chunk Size 0x80000000", "02 000000 000004 01 00000000 80000000", r"Set Chunk Size: expected .*, found 2147483648"),
    ("Set Chunk Size 0xFFFFFFFF", "02 000000 000004 01 00000000 ffffffff", r"Set Chunk Size: expected .*, found 4294967295"),
    ("Set Chunk Size of 3 bytes", "02 000000 000003 01 00000000 001000", r"type 1: expected 4 bytes, found 3"),
    ("Set Chunk Size of 0 bytes", "02 000000 000000 01 00000000", r"type 1: expected 4 bytes, found 0"),
    ("Abort of 3 bytes", "02 000000 000003 02 00000000 000004", r"type 2: expected 4 bytes, found 3"),
]


@pytest.mark.parametrize(("data", "text"), [pytest.param(bytes.fromhex(d), t, id=n) for n, d, t in ERRORS])
def test_an_invalid_chunk_stream_is_an_error_at_any_split(data, text):
    with pytest.raises(RemoteProtocolError, match=text):
        read(data)
    with pytest.raises(RemoteProtocolError, match=text):
        feed(ChunkReader(), [data[i : i + 1] for i in range(len(data))])


BEGUN = h("06 000001 000133 09 01000000", P128)
REST = [P128, P128[:51]]
NEXT = h("46 000028 000002 09") + b"ok"
"""The message after it: 40 ms later."""


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("06 000001 000133 09 01000000", id="type 0"),
        pytest.param("06 000777 000133 09 01000000", id="type 0 with another timestamp"),
        pytest.param("06 FFFFFF 000133 09 01000000 01000000", id="type 0 with an extended timestamp"),
        pytest.param("46 000000 000133 09", id="type 1"),
        pytest.param("46 FFFFFF 000133 09 01000000", id="type 1 with an extended timestamp"),
        pytest.param("86 000028", id="type 2"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_row_70_a_header_of_the_same_length_inside_a_message_continues_it(header, step):
    repeated = h("01000000") if "FFFFFF" in header else b""
    data = BEGUN + h(header) + REST[0] + h("C6") + repeated + REST[1] + NEXT
    reader = ChunkReader()
    found = feed(reader, [data[i : i + step] for i in range(0, len(data), step)])
    assert found == [RawMessage(9, 1, 1, P128 * 2 + P128[:51]), RawMessage(9, 1, 41, b"ok")]
    assert (reader.dropped_messages, reader.buffered_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param("06 000050 000002 09 01000000", RawMessage(9, 1, 0x50, b"ok"), id="type 0"),
        pytest.param("46 000028 000002 09", RawMessage(9, 1, 41, b"ok"), id="type 1"),
        pytest.param("46 FFFFFF 000002 09 01000000", RawMessage(9, 1, 0x1000001, b"ok"), id="an extended timestamp"),
        pytest.param("06 000050 000002 08 01000000", RawMessage(8, 1, 0x50, b"ok"), id="another type"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_row_70_a_header_of_another_length_inside_a_message_begins_another_one(header, expected, step):
    data = BEGUN + h(header) + b"ok"
    reader = ChunkReader()
    assert feed(reader, [data[i : i + step] for i in range(0, len(data), step)]) == [expected]
    assert (reader.dropped_messages, reader.buffered_bytes) == (1, 0)


@pytest.mark.parametrize("header", ["06 000050 000133 08 01000000", "06 000050 000133 09 02000000"])
def test_row_70_a_header_of_another_type_or_message_stream_drops_what_was_begun(header):
    reader = ChunkReader()
    assert feed(reader, [BEGUN + h(header) + P128 + h("C6") + P128 + h("C6") + P128[:51]])[0].timestamp == 0x50
    assert reader.dropped_messages == 1


def test_row_70_messages_that_are_dropped_again_and_again_take_no_memory():
    reader = ChunkReader()
    for length in range(0x200, 0x300):
        assert reader.feed(h("06 000001") + length.to_bytes(3, "big") + h("09 01000000", P128)) == []
    assert (reader.dropped_messages, reader.buffered_bytes) == (0xFF, 128)


def test_row_70_a_longer_message_inside_a_message_is_refused_at_the_limit():
    with pytest.raises(LimitExceeded):
        read(BEGUN + h("06 000001 000401 09 01000000"), message_limit_bytes=0x400)


def test_a_message_over_the_limit_is_refused_by_its_header():
    header = h("06 000001 000401 09 01000000")
    with pytest.raises(LimitExceeded) as caught:
        read(header, message_limit_bytes=0x400)
    assert (caught.value.limit, caught.value.allowed, caught.value.seen) == ("message_limit_bytes", 0x400, 0x401)
    assert read(h("06 000001 000080 09 01000000", P128), message_limit_bytes=128) == [m(P128, 1)]


def test_a_message_over_the_limit_is_refused_by_a_type_1_header():
    with pytest.raises(LimitExceeded):
        read(h("06 000001 000001 09 01000000", b"a", "46 000001 ffffff 09"), message_limit_bytes=0xFFFFFE)


def test_ten_thousand_chunk_streams_are_too_many():
    data = b"".join(frame_message(csid, AUDIO, 1, 0, b"a", 128) for csid in range(2, 10_002))
    with pytest.raises(LimitExceeded) as caught:
        read(data)
    assert (caught.value.limit, caught.value.allowed, caught.value.seen) == ("chunk_stream_limit", 256, 257)
    assert len(read(data, chunk_stream_limit=10_000)) == 10_000


def test_memory_is_taken_by_the_bytes_that_come_and_not_by_the_length_field():
    header = h("02 000000 000004 01 00000000 7fffffff", "06 000001 ffffff 09 01000000")
    tracemalloc.start()
    try:
        reader = ChunkReader(message_limit_bytes=0xFFFFFF)
        reader.feed(header)
        reader.feed(b"payload")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reader.buffered_bytes == 7
    assert peak < 50_000


def most_buffered(reader: ChunkReader, pieces: list[bytes]) -> int:
    """Feed pieces until the reader has had enough, which it must; return the most that it held."""
    most = 0
    with contextlib.suppress(LimitExceeded):
        for piece in pieces:
            reader.feed(piece)
            most = max(most, reader.buffered_bytes)
        pytest.fail("no limit was reached")
    return most


@pytest.mark.parametrize("half_headers", [False, True])
def test_the_incomplete_messages_together_are_bounded(half_headers):
    limit = 100_000
    reader = ChunkReader(message_limit_bytes=limit)
    reader.chunk_size = limit - 1
    messages = b"".join(frame_message(csid, VIDEO, 1, 0, bytes(limit), limit)[:-1] for csid in range(2, 64))
    # With half_headers every piece ends one byte into the next chunk's header, as segments on the network may.
    cuts = [0, *range((12 + limit - 1) + half_headers, len(messages), 12 + limit - 1)]
    assert most_buffered(reader, [messages[a:b] for a, b in pairwise(cuts)]) <= limit + (1 << 20)


def test_a_message_that_comes_in_small_pieces_is_bounded_too():
    # Two of three messages of 1 MB are whole but for their last bytes; the third comes a little at a time.
    size = 1 << 20
    reader = ChunkReader(message_limit_bytes=size)
    reader.chunk_size = size - 2
    first, second, third = (frame_message(csid, VIDEO, 1, 0, bytes(size), size)[:-2] for csid in (6, 7, 8))
    pieces = [first, second, *(third[i : i + 10_000] for i in range(0, len(third), 10_000))]
    assert most_buffered(reader, pieces) <= 2 * size


# The rows of what real clients do ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 128, 4096, 0xFFFFFF, 0x1000000, 128 << 20, 0x7FFFFFFF])
def test_row_40_set_chunk_size_takes_any_size_at_any_time(size):
    reader = ChunkReader()
    reader.feed(h("06 000001 000133 09 01000000", P128))
    assert reader.feed(frame_message(2, 1, 0, 0, size.to_bytes(4, "big"), 128)) == []
    assert reader.chunk_size == size
    rest = (P128 + P128)[:179]
    pieces = [rest[i : i + size] for i in range(0, len(rest), size)]
    assert reader.feed(b"\xc6" + b"\xc6".join(pieces)) == [m(P128 + rest, 1)]


@pytest.mark.parametrize("size", [0, 0x80000000, 0x80001000, 0xFFFFFFFF])
def test_row_40_set_chunk_size_of_zero_or_with_the_top_bit_is_an_error(size):
    with pytest.raises(RemoteProtocolError, match=f"Set Chunk Size: expected .*, found {size}"):
        read(frame_message(2, 1, 0, 0, size.to_bytes(4, "big"), 128))


def test_row_40_the_chunk_size_takes_no_memory():
    tracemalloc.start()
    try:
        reader = ChunkReader()
        reader.feed(frame_message(2, 1, 0, 0, (0x7FFFFFFF).to_bytes(4, "big"), 128))
        reader.feed(h("06 000001 000133 09 01000000", b"payload"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000


def test_row_42_type_3_repeats_or_omits_the_extended_timestamp():
    header = h("06 ffffff 000181 09 01000000 01020304", P128)
    for conventions in (("", "", ""), ("01020304",) * 3, ("", "01020304", ""), ("01020304", "", "81020304")):
        chunks = b"".join(h("c6", repeated, piece) for repeated, piece in zip(conventions, (P128, P128, b"a"), strict=True))
        assert read(header + chunks) == [m(P128 * 3 + b"a", 0x01020304)]


def test_row_42_fewer_than_four_bytes_decide_when_they_can():
    reader = ChunkReader()
    reader.feed(h("06 ffffff 000081 09 01000000 01020304", P128))
    # The last byte of the message is no beginning of 01020304: the message is complete with it.
    assert reader.feed(h("c6", b"!")) == [m(P128 + b"!", 0x01020304)]


def test_row_42_fewer_than_four_bytes_wait_when_they_can_not_decide():
    header = h("06 ffffff 000083 09 01000000 01020304", P128)
    reader = ChunkReader()
    reader.feed(header)
    assert reader.feed(h("c6 010203")) == []
    assert reader.buffered_bytes == 128 + 4
    assert reader.feed(h("04")) == []
    assert reader.feed(b"abc") == [m(P128 + b"abc", 0x01020304)]
    # The same three bytes are payload when the fourth is the next chunk's header.
    reader = ChunkReader()
    reader.feed(header + h("c6 010203"))
    assert reader.feed(h("06")) == [m(P128 + bytes((1, 2, 3)), 0x01020304)]


@pytest.mark.parametrize("known", ["", "01", "81", "0102", "8102", "010203", "810203"])
def test_row_42_the_beginning_of_a_repeated_timestamp_is_waited_for(known):
    reader = ChunkReader()
    reader.feed(h("06 ffffff 000081 09 01000000 01020304", P128))
    assert reader.feed(h("c6", known)) == []
    assert reader.feed(h("01020304")[len(known) // 2 :] + b"!") == [m(P128 + b"!", 0x01020304)]


def test_row_42_a_new_message_by_type_3_waits_too():
    reader = ChunkReader()
    assert reader.feed(h("06 ffffff 000004 09 01000000 01020304", b"aaaa"))
    assert reader.feed(h("c6 0102")) == []
    assert reader.feed(h("0304", b"bbb")) == []
    assert reader.feed(b"b") == [m(b"bbbb", 0x02040608)]


def test_row_42_an_empty_message_is_complete_with_its_repeated_timestamp():
    reader = ChunkReader()
    assert reader.feed(h("06 ffffff 000000 09 01000000 01020304")) == [m(b"", 0x01020304)]
    assert reader.feed(h("c6 01020304")) == [m(b"", 0x02040608)]


def test_row_44_an_extended_timestamp_on_types_1_and_2_is_a_delta():
    data = h(
        *("06 000064 000001 09 01000000", b"a", "46 ffffff 000001 09 01000000", b"b", "86 ffffff 00ffffff", b"c"),
        *("86 000001", b"d"),
    )
    assert [message.timestamp for message in read(data)] == [100, 0x1000064, 0x2000063, 0x2000064]


@pytest.mark.parametrize("start", [0xFFFFFD, 0x7FFFFFFD, 0xFFFFFFFD])
@pytest.mark.parametrize("fmt", [1, 2, 3])
def test_row_45_deltas_count_on_past_every_boundary(start, fmt):
    header = h("06 ffffff 000001 09 01000000", start.to_bytes(4, "big"), b"0", "86 000001", b"0")
    follow = {1: h("46 000001 000001 09 30"), 2: h("86 000001 30"), 3: h("c6 30")}[fmt]
    expected = [(start + i) & 0xFFFFFFFF for i in range(8)]
    assert [message.timestamp for message in read(header + follow * 6)] == expected


@pytest.mark.parametrize("timestamp", [0xFFFFFE, 0xFFFFFF, 0x1000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_row_45_absolute_times_around_every_boundary(timestamp):
    data = frame_message(6, VIDEO, 1, timestamp, P307, 128)
    assert read(data) == [m(P307, timestamp)]
    assert (data[1:4] == b"\xff\xff\xff") == (timestamp >= EXTENDED_TIMESTAMP)


def test_row_46_type_3_starts_a_new_message_and_advances_the_clock():
    # Audio of constant size, as current OBS sends it: type 0, type 1, then type 3 only.
    data = h("04 000000 000001 08 01000000", b"0", "44 000017 000001 08", b"1") + h("c4", b"x") * 3
    assert [message.timestamp for message in read(data)] == [0, 23, 46, 69, 92]


def test_row_46_type_3_after_type_0_adds_its_timestamp():
    # Section 5.3.1.2.4. FFmpeg compares the delta with the last field on the wire, whatever that was.
    data = h("04 000017 000001 08 01000000", b"0", "c4", b"1", "c4", b"2")
    assert [message.timestamp for message in read(data)] == [23, 46, 69]


@pytest.mark.parametrize("payload", [bytes.fromhex("000700001234"), bytes.fromhex("00070000123400000000")])
def test_row_47_type_1_first_on_csid_2_is_taken(payload):
    assert read(h("42 000000", len(payload).to_bytes(3, "big"), "04", payload)) == [RawMessage(4, 0, 0, payload)]


@pytest.mark.parametrize("csid", [2, 3, 63, 64, 65, 319, 320, 321, 576, 32768, 65598, 65599])
def test_row_48_every_csid_can_be_read_and_written(csid):
    data = frame_message(csid, VIDEO, 1, 0xFFFFFF, P307, 100)
    basic = 1 if csid < 64 else 2 if csid < 320 else 3
    assert len(data) == (basic + 11 + 4) + len(P307) + 3 * (basic + 4)
    assert read(h("02 000000 000004 01 00000000 00000064") + data) == [m(P307, 0xFFFFFF)]


def test_row_48_the_number_of_csids_is_bounded():
    reader = ChunkReader(chunk_stream_limit=2)
    reader.feed(frame_message(64, VIDEO, 1, 0, b"a", 128) + frame_message(320, VIDEO, 1, 0, b"a", 128))
    assert reader.feed(frame_message(64, VIDEO, 1, 0, b"a", 128)) == [m(b"a", 0)]
    with pytest.raises(LimitExceeded):
        reader.feed(b"\x03")


def test_row_49_audio_is_read_in_the_middle_of_a_video_message():
    video = frame_message(6, VIDEO, 1, 10, P307, 128)
    data = video[:140] + b"".join(
        frame_message(4, AUDIO, 1, t, bytes((t,)) * t, 128) + video[140 + 129 * i : 140 + 129 * (i + 1)]
        for i, t in enumerate((1, 100))
    )
    assert read(data) == [m(b"\1", 1, AUDIO), m(b"\x64" * 100, 100, AUDIO), m(P307, 10)]


def test_row_50_abort_drops_a_partial_message():
    reader = ChunkReader()
    reader.feed(h("06 000001 000133 09 01000000", P128))
    assert reader.feed(h("02 000000 000004 02 00000000 00000006")) == []
    assert reader.buffered_bytes == 0
    assert reader.feed(h("06 000002 000001 09 01000000", b"a")) == [m(b"a", 2)]


@pytest.mark.parametrize("csid", [6, 64, 320])
@pytest.mark.parametrize("timestamp", [0xFFFFFE, 0xFFFFFF, 0x81020304])
def test_row_67_every_type_3_chunk_repeats_the_extended_timestamp(csid, timestamp):
    payload = bytes(1000)
    data = frame_message(csid, VIDEO, 1, timestamp, payload, 100)
    basic = len(frame_message(csid, VIDEO, 1, 0, b"", 100)) - 11
    extended = timestamp.to_bytes(4, "big") if timestamp >= 0xFFFFFF else b""
    position = basic + 11
    assert data[position : position + len(extended)] == extended
    position += len(extended) + 100
    for _ in range(9):
        assert data[position] >> 6 == 3
        position += basic
        assert data[position : position + len(extended)] == extended
        position += len(extended) + 100
    assert position == len(data)


# The writer --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", [pytest.param(v, id=v.name) for v in VECTORS if v.writer])
def test_writes_it(vector):
    (message,), (csid, chunk_size) = vector.messages, vector.writer
    written = frame_message(csid, message.type_id, message.message_stream_id, message.timestamp, message.payload, chunk_size)
    assert written == vector.data


@pytest.mark.parametrize("timestamp", [0, 0xFFFFFE, 0xFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 255, 256, 257, 5000])
@pytest.mark.parametrize("chunk_size", [1, 128, 4096, MAX_CHUNK_SIZE])
@pytest.mark.parametrize("msid", [0, 1, 2, 0xFFFFFFFF])
def test_frame_message_frame_into_and_framed_size_agree(timestamp, length, chunk_size, msid):
    payload = bytes(i & 255 for i in range(length))
    size = framed_size(length, timestamp, chunk_size)
    written = frame_message(6, VIDEO, msid, timestamp, payload, chunk_size)
    assert len(written) == size
    reader = ChunkReader()
    reader.chunk_size = chunk_size
    assert reader.feed(written) == [RawMessage(VIDEO, msid, timestamp, payload)]
    for buffer in (bytearray(b"\xee" * (size + 20)), memoryview(bytearray(b"\xee" * (size + 20)))):
        assert frame_into(buffer, 10, 6, VIDEO, msid, timestamp, payload, chunk_size) == 10 + size
        assert bytes(buffer) == b"\xee" * 10 + written + b"\xee" * 10


def test_pack_header_writes_a_type_0_header():
    buffer = bytearray(14)
    pack_header(buffer, 1, 6 << 24 | 0x010203, 0x040506 << 8 | VIDEO, 1 << 24)
    assert buffer == h("00 06 010203 040506 09 01000000 00")


def test_framing_the_longest_message():
    payload = bytes(0xFFFFFF)
    data = frame_message(6, VIDEO, 1, 0, payload, 0x10000)
    assert len(data) == framed_size(len(payload), 0, 0x10000) == 0xFFFFFF + 12 + 255
    reader = ChunkReader(message_limit_bytes=0xFFFFFF)
    reader.chunk_size = 0x10000
    assert reader.feed(data) == [m(payload, 0)]


def test_timestamps_wrap_when_framed():
    assert frame_message(6, VIDEO, 1, 0x1_0000_0005, b"a", 128) == frame_message(6, VIDEO, 1, 5, b"a", 128)
    assert frame_message(6, VIDEO, 1, -1, b"a", 128) == frame_message(6, VIDEO, 1, 0xFFFFFFFF, b"a", 128)


@pytest.mark.parametrize("csid", [-1, 0, 1, MAX_CSID + 1])
def test_a_csid_out_of_range_is_the_callers_bug(csid):
    with pytest.raises(ValueError, match=f"expected a csid of 2 to 65599, found {csid}"):
        frame_message(csid, VIDEO, 1, 0, b"a", 128)


@pytest.mark.parametrize("chunk_size", [-1, 0, MAX_CHUNK_SIZE + 1])
def test_a_chunk_size_out_of_range_is_the_callers_bug(chunk_size):
    with pytest.raises(ValueError, match=f"expected a chunk size of 1 to 2147483647 bytes, found {chunk_size}"):
        frame_message(6, VIDEO, 1, 0, b"a", chunk_size)


def test_a_message_too_long_is_the_callers_bug():
    with pytest.raises(ValueError, match="expected a message of at most 16777215 bytes, found 16777216"):
        frame_message(6, VIDEO, 1, 0, bytes(0x1000000), 128)


@pytest.mark.parametrize("limit", [1, 2, 3, 64])
def test_a_feed_stops_at_its_limit_of_chunks_and_continues_there(limit):
    sent = [RawMessage(9, 1, number, bytes((number,)) * (number * 70)) for number in range(12)]
    wire = b"".join(frame_message(4, *one, 128) for one in sent) + bytes((0xC4,))
    whole, reader = ChunkReader(), ChunkReader()
    expected = whole.feed(wire)
    found = reader.feed(wire, limit)
    while reader.unread:
        assert len(found) <= len(expected)
        found += reader.feed(b"", limit)
    assert found == expected
    assert reader.buffered_bytes == whole.buffered_bytes


def test_a_feed_without_a_limit_leaves_nothing_unread():
    reader = ChunkReader()
    assert len(reader.feed(frame_message(4, 9, 1, 0, b"", 128) + b"\xc4" * 5000)) == 5001
    assert not reader.unread
