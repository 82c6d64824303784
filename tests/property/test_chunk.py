"""Rules for every list of messages in any chunks and segments, and for any bytes."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.errors import RemoteProtocolError
from rtmpd.protocol.chunk import ChunkReader, RawMessage, frame_into, frame_message, framed_size

CHUNK = settings(deadline=None, max_examples=150)

EDGE_TIMES = [0, 1, 0xFFFFFE, 0xFFFFFF, 0x1000000, 0x7FFFFFFF, 0x80000000, 0xFF000000, 0xFFFFFFFE, 0xFFFFFFFF]
EDGE_CSIDS = [3, 63, 64, 65, 319, 320, 321, 65598, 65599]
EDGE_CHUNK_SIZES = [1, 2, 5, 64, 127, 128, 129, 4096, 0xFFFFFF, 0x1000000, 0x7FFFFFFF]

times = st.sampled_from(EDGE_TIMES) | st.integers(0, 0xFFFFFFFF)
csids = st.sampled_from(EDGE_CSIDS) | st.integers(3, 65599)
chunk_sizes = st.sampled_from(EDGE_CHUNK_SIZES) | st.integers(1, 300)
lengths = st.sampled_from([0, 1, 3, 4, 5, 127, 128, 129, 256, 257]) | st.integers(0, 600)
payloads = st.binary(max_size=8) | st.builds(lambda n, seed: random.Random(seed).randbytes(n), lengths, st.integers(0, 9))
messages = st.builds(
    RawMessage,
    st.sampled_from([3, 4, 5, 6, 8, 9, 15, 17, 18, 20, 22, 255]),
    st.sampled_from([0, 1, 2, 0xFFFFFFFF]),
    times,
    payloads,
)
generators = st.integers(0, 2**32).map(random.Random)


def pieces_of(data: bytes, generator: random.Random) -> list[bytes]:
    """Cut anywhere: into a few pieces, into many small ones, or into single bytes."""
    kind = generator.randrange(3)
    if kind == 0:
        return [data[i : i + 1] for i in range(len(data))]
    cuts = sorted(generator.randrange(len(data) + 1) for _ in range(4 if kind == 1 else len(data) // 5))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def feed(reader: ChunkReader, pieces: list[bytes]) -> list[RawMessage]:
    return [message for piece in pieces for message in reader.feed(piece)]


def set_chunk_size(size: int, chunk_size: int) -> bytes:
    return frame_message(2, 1, 0, 0, size.to_bytes(4, "big"), chunk_size)


# Our own writer ----------------------------------------------------------------------------------------------------------


@CHUNK
@given(st.lists(st.tuples(csids, messages, chunk_sizes), max_size=8), generators)
def test_framed_messages_read_as_the_same_messages(sent, generator):
    chunk_size = 128
    data = b""
    for csid, message, new_size in sent:
        data += set_chunk_size(new_size, chunk_size)
        chunk_size = new_size
        data += frame_message(csid, message.type_id, message.message_stream_id, message.timestamp, message.payload, chunk_size)
    reader = ChunkReader()
    assert feed(reader, pieces_of(data, generator)) == [message for _, message, _ in sent]
    assert reader.buffered_bytes == 0
    assert reader.chunk_size == chunk_size


@CHUNK
@given(st.integers(2, 63), messages, chunk_sizes)
def test_framing_in_place_is_framing(csid, message, chunk_size):
    arguments = (csid, message.type_id, message.message_stream_id, message.timestamp, message.payload, chunk_size)
    size = framed_size(len(message.payload), message.timestamp, chunk_size)
    buffer = bytearray(size + 2)
    assert frame_into(buffer, 1, *arguments) == size + 1
    assert bytes(buffer) == b"\0" + frame_message(*arguments) + b"\0"


# An independent writer, which uses all that the specification and its readers in the field allow -------------------------


class Sent(NamedTuple):
    csid: int
    message: RawMessage


@dataclass
class Header:
    """What both ends remember of a chunk stream."""

    timestamp: int
    delta: int
    length: int
    type_id: int
    message_stream_id: int
    field: int | None


class CompressingWriter:
    """Chunks messages with header types, basic header forms and extended timestamp conventions as the generator throws them."""

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator
        self.headers: dict[int, Header] = {}

    def basic(self, fmt: int, csid: int) -> bytes:
        if csid < 64:
            return bytes((fmt << 6 | csid,))
        if csid < 320 and self.generator.random() < 0.7:
            return bytes((fmt << 6, csid - 64))
        return bytes((fmt << 6 | 1,)) + (csid - 64).to_bytes(2, "little")

    def choose_type(self, csid: int, message: RawMessage) -> int:
        before = self.headers.get(csid)
        types = [0]
        if before is not None and before.message_stream_id == message.message_stream_id:
            types.append(1)
            if before.length == len(message.payload) and before.type_id == message.type_id:
                types.append(2)
                if (message.timestamp - before.timestamp) & 0xFFFFFFFF == before.delta:
                    types += [3, 3, 3]
        return self.generator.choice(types)

    def start(self, csid: int, message: RawMessage, first_piece: bytes) -> bytes:
        fmt = self.choose_type(csid, message)
        data = self.basic(fmt, csid)
        size_and_type = len(message.payload).to_bytes(3, "big") + bytes((message.type_id,))
        if fmt == 3:
            header = self.headers[csid]
            data += self.repeated(header, first_piece)
            header.timestamp = message.timestamp
            return data
        before = self.headers.get(csid)
        value = message.timestamp if fmt == 0 else (message.timestamp - before.timestamp) & 0xFFFFFFFF
        # Small values may be written extended as well.
        extended = value >= 0xFFFFFF or self.generator.random() < 0.1
        data += b"\xff\xff\xff" if extended else value.to_bytes(3, "big")
        if fmt < 2:
            data += size_and_type
        if fmt == 0:
            data += message.message_stream_id.to_bytes(4, "little")
        if extended:
            data += value.to_bytes(4, "big")
        field = value if extended else None
        self.headers[csid] = Header(
            message.timestamp, value, len(message.payload), message.type_id, message.message_stream_id, field
        )
        return data

    def repeated(self, header: Header, piece: bytes) -> bytes:
        """Return what stands between a type 3 header and its payload."""
        if header.field is None:
            return b""
        candidates = (header.field, header.timestamp)
        # Without the timestamp, no reader can distinguish a payload that starts like a timestamp.
        ambiguous = not piece or any(piece[0] & 0x7F == candidate >> 24 & 0x7F for candidate in candidates)
        if not ambiguous and self.generator.random() < 0.4:
            return b""
        value = self.generator.choice(candidates)
        if self.generator.random() < 0.2:
            value ^= 0x80000000
        return value.to_bytes(4, "big")

    def follow(self, csid: int, piece: bytes) -> bytes:
        return self.basic(3, csid) + self.repeated(self.headers[csid], piece)


def write_interleaved(sent: list[Sent], generator: random.Random) -> tuple[bytes, list[RawMessage]]:
    """Write all messages, those of different csids interleaved; return the bytes, and the messages as they are completed."""
    writer = CompressingWriter(generator)
    queues: dict[int, deque[RawMessage]] = {}
    for csid, message in sent:
        queues.setdefault(csid, deque()).append(message)
    offsets = dict.fromkeys(queues, -1)  # -1: the first message of the queue has not begun
    chunk_size = 128
    data = b""
    completed = []
    while queues:
        if generator.random() < 0.1:
            new_size = generator.choice([1, 3, 50, 128, 129, 4096, 0x7FFFFFFF])
            data += set_chunk_size(new_size, chunk_size)
            chunk_size = new_size
        csid = generator.choice(list(queues))
        message = queues[csid][0]
        offset = offsets[csid]
        piece = message.payload[max(offset, 0) : max(offset, 0) + chunk_size]
        data += (writer.start(csid, message, piece) if offset < 0 else writer.follow(csid, piece)) + piece
        offset = max(offset, 0) + len(piece)
        if offset < len(message.payload):
            offsets[csid] = offset
            if generator.random() < 0.05:
                data += frame_message(2, 2, 0, 0, csid.to_bytes(4, "big"), chunk_size)
                offsets[csid] = -1
                queues[csid].popleft()
        else:
            completed.append(message)
            offsets[csid] = -1
            queues[csid].popleft()
        if not queues[csid]:
            del queues[csid]
    return data, completed


@st.composite
def message_lists(draw: st.DrawFn) -> list[Sent]:
    """Draw messages on few chunk streams, many of them alike, so that there is something to compress."""
    some_csids = draw(st.lists(csids, min_size=1, max_size=3))
    some_payloads = draw(st.lists(payloads, min_size=1, max_size=3))
    steps = st.sampled_from([0, 23, 40, 0xFFFFFE, 0xFFFFFF, 0x1000000, 0x80000000, -1, -198])
    count = draw(st.integers(0, 12))
    clock = draw(times)
    step = draw(steps)
    sent = []
    for _ in range(count):
        if draw(st.booleans()):
            step = draw(steps)
        clock = (clock + step) & 0xFFFFFFFF
        message = RawMessage(
            draw(st.sampled_from([8, 8, 9, 18])),
            draw(st.sampled_from([1, 1, 1, 0])),
            clock,
            draw(st.sampled_from(some_payloads)),
        )
        sent.append(Sent(draw(st.sampled_from(some_csids)), message))
    return sent


@settings(deadline=None, max_examples=400)
@given(message_lists(), generators)
def test_chunks_of_other_writers_read_as_the_same_messages(sent, generator):
    data, expected = write_interleaved(sent, generator)
    assert ChunkReader().feed(data) == expected
    reader = ChunkReader()
    assert feed(reader, pieces_of(data, generator)) == expected
    assert reader.buffered_bytes == 0


# Any bytes ---------------------------------------------------------------------------------------------------------------

# Headers of small numbers reach deeper than even noise does.
noise = st.lists(
    st.sampled_from([b"\x02", b"\x42", b"\x03", b"\xc3", b"\x83", b"\xc2", b"\x00", b"\x01", b"\xff\xff\xff", b"\0\0\0\4\1"])
    | st.binary(max_size=12),
    max_size=60,
).map(b"".join)


def outcome(pieces: list[bytes]) -> tuple[list[RawMessage], str]:
    """Feed pieces up to an error; return the messages before it, and its text. Anything else that is raised is a failure."""
    reader = ChunkReader(message_limit_bytes=100_000, chunk_stream_limit=5)
    messages: list[RawMessage] = []
    fed = 0
    for piece in pieces:
        fed += len(piece)
        try:
            messages += reader.feed(piece)
        except RemoteProtocolError as error:
            return messages, str(error)
        assert reader.buffered_bytes + sum(len(message.payload) for message in messages) <= fed
    return messages, ""


@settings(deadline=None, max_examples=400)
@given(noise, generators)
def test_any_bytes_are_messages_or_a_protocol_error_whatever_the_split(data, generator):
    whole, error = outcome([data])
    for pieces in ([data[i : i + 1] for i in range(len(data))], pieces_of(data, generator)):
        messages, split_error = outcome(pieces)
        assert split_error == error
        # A feed that raises gives no messages, so whole input gives none before an error.
        assert messages == whole or error


@settings(deadline=None, max_examples=300)
@given(message_lists(), generators, st.data())
def test_a_changed_byte_is_messages_or_a_protocol_error(sent, generator, data):
    written, _ = write_interleaved(sent, generator)
    damaged = bytearray(written + b"\0")
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    whole, error = outcome([bytes(damaged)])
    messages, split_error = outcome(pieces_of(bytes(damaged), generator))
    assert split_error == error
    assert messages == whole or error
