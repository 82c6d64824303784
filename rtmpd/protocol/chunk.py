"""The chunk layer: bytes to messages and back (RTMP 1.0 section 5.3). No I/O.

The reader takes bytes as they arrive and returns whole messages; every split of the input gives the same messages. The writer
starts each message with a type 0 header and repeats an extended timestamp on its type 3 chunks, so that a peer can start to
read at any message. This is the hottest code of ingest: plain loops without calls.
"""

from __future__ import annotations

import struct
import sys
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.errors import LimitExceeded, RemoteProtocolError
from rtmpd.util.speed import accelerated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_CHUNK_SIZE = 128
"""The initial chunk size of both directions, bytes."""

MAX_CHUNK_SIZE = 0x7FFFFFFF
MAX_CSID = 65599
MAX_MESSAGE_SIZE = 0xFFFFFF
EXTENDED_TIMESTAMP = 0xFFFFFF
"""Timestamps from here on are in a field of 32 bits after the header."""

GROWTH_BYTES = 1 << 20
"""By how much the incomplete messages of a reader grow between two calls of its `on_growth`. Few keyframes are as large."""

FRAMES_LIMIT = 64
"""The largest limit of chunks of `ChunkReader.feed_frames`."""

_ABORT = 2

_new_tuple = tuple.__new__
_two_words = struct.Struct(">II").unpack_from
_one_word = struct.Struct(">I").unpack_from
_little_word = struct.Struct("<I").unpack_from
pack_header = struct.Struct(">III").pack_into
"""``(buffer, offset, csid << 24 | timestamp, length << 8 | type_id, byte-swapped message stream id)``: a type 0 header."""
_pack_long_header = struct.Struct(">IIII").pack_into


class RawMessage(NamedTuple):
    """A whole message with its payload as bytes.

    ``timestamp`` is the absolute time in milliseconds, modulo 2**32.
    """

    type_id: int
    message_stream_id: int
    timestamp: int
    payload: bytes


class BufferedLimit(NamedTuple):
    """The limit of the bytes of incomplete messages, with its name for messages."""

    name: str
    bytes: int


class ChunkStreamState(NamedTuple):
    """The state of one chunk stream: the last header, and the message being assembled.

    Attributes:
        csid: The chunk stream id.
        timestamp, length, type_id, message_stream_id: Of the last message that has begun.
        delta: What a message that begins with a type 3 chunk adds to the timestamp.
        extended: The last header's extended timestamp as sent, which type 3 chunks may repeat; None: it had none.
        payload: What has arrived of an incomplete message; None: none has begun.
    """

    csid: int
    timestamp: int
    delta: int
    length: int
    type_id: int
    message_stream_id: int
    extended: int | None
    payload: bytes | None


class ReaderState(NamedTuple):
    """The state of a `ChunkReader` between two calls, without its limits. Plain values: another process can continue with it.

    Attributes:
        chunk_size: The peer's chunk size.
        streams: The chunk streams, ascending.
        current: The chunk stream of an incomplete chunk; None: all are complete.
        chunk_left: The missing bytes of that chunk.
        tail: Bytes that have not been processed: an incomplete header, or everything if `unread`.
        unread, dropped_messages: As of the reader.
    """

    chunk_size: int
    streams: tuple[ChunkStreamState, ...]
    current: int | None
    chunk_left: int
    tail: bytes
    unread: bool
    dropped_messages: int

    def check(self) -> None:
        """Check that a reader can be in this state.

        Raises:
            ValueError: It can't.
        """
        by_csid = {stream.csid: stream for stream in self.streams}
        good = 1 <= self.chunk_size <= MAX_CHUNK_SIZE and len(by_csid) == len(self.streams) and self.dropped_messages >= 0
        for csid, timestamp, delta, length, type_id, message_stream_id, extended, payload in self.streams:
            words = (timestamp, delta, message_stream_id, extended or 0)
            good = good and 2 <= csid <= MAX_CSID and min(words) >= 0 and max(words) <= 0xFFFFFFFF
            good = good and 0 <= length <= MAX_MESSAGE_SIZE and 0 <= type_id <= 0xFF
            good = good and len(payload or b"") <= max(length - 1, 0)
        current = by_csid.get(self.current) if self.current is not None else None
        if current is not None:
            good = good and current.payload is not None and not self.unread and not self.tail
            good = good and 1 <= self.chunk_left <= current.length - len(current.payload or b"")
        if not good or (current is None and (self.current is not None or self.chunk_left)):
            raise ValueError("no reader of chunks can be in this state")


class _ChunkStream:
    """The state of one chunk stream: the last header, and the message being assembled."""

    __slots__ = ("delta", "extended", "field", "length", "message_stream_id", "payload", "timestamp", "type_id")

    def __init__(self) -> None:
        self.timestamp = 0
        self.delta = 0
        self.length = 0
        self.type_id = 0
        self.message_stream_id = 0
        self.extended = False
        self.field = 0  # the 32 bits of the extended timestamp as sent
        self.payload: bytearray | None = None


@accelerated
class ChunkReader:
    """Assembles messages from chunks.

    Set Chunk Size and Abort Message are applied and not returned. After an exception the reader must not be used.

    Args:
        message_limit_bytes: The longest accepted message. Memory grows with the bytes received, never by the length field.
        chunk_stream_limit: The number of chunk stream ids that a peer may use.

    Attributes:
        dropped_messages: The number of messages that another one has replaced before they were complete.
        on_growth: Called when the bytes of incomplete messages have grown by `GROWTH_BYTES` since `watch_growth`, and after
            each further step. In the middle of `feed`: it may take note of that, and nothing else. None: nothing is called.
        grown: `on_growth` has been called since `watch_growth`.
        unread: The last `feed` stopped at its limit of chunks, and holds bytes that it has not looked at.
    """

    __slots__ = (
        "_buffered",
        "_chunk_left",
        "_current",
        "_growth_at",
        "_look_at",
        "_streams",
        "_tail",
        "buffered_limit",
        "chunk_size",
        "chunk_stream_limit",
        "dropped_messages",
        "grown",
        "message_limit_bytes",
        "on_growth",
        "unread",
    )

    def __init__(self, message_limit_bytes: int = 8 << 20, chunk_stream_limit: int = 256) -> None:
        self.chunk_size = DEFAULT_CHUNK_SIZE
        self.message_limit_bytes = message_limit_bytes
        self.chunk_stream_limit = chunk_stream_limit
        self.dropped_messages = 0
        self._streams: dict[int, _ChunkStream] = {}
        self._tail = b""  # an incomplete chunk header
        self._current: _ChunkStream | None = None  # the chunk stream of an incomplete chunk
        self._chunk_left = 0  # the missing bytes of that chunk
        self._buffered = 0
        self.unread = False
        self.on_growth: Callable[[], object] | None = None
        self.buffered_limit = BufferedLimit("", 0)
        self.grown = False
        self._growth_at = GROWTH_BYTES
        self._look_at = 0  # the lower one of limit and growth: only above it there is anything to check
        self.limit_buffered()

    @classmethod
    def from_state(cls, state: ReaderState, message_limit_bytes: int = 8 << 20, chunk_stream_limit: int = 256) -> ChunkReader:
        """Return a reader that continues where another one was, in this process or in another one.

        Args:
            state: Of the other reader.
            message_limit_bytes, chunk_stream_limit: As for a new reader. They hold for messages and chunk streams from now on.

        Raises:
            ValueError: No reader can be in this state.
        """
        state.check()
        reader = cls(message_limit_bytes, chunk_stream_limit)
        for csid, timestamp, delta, length, type_id, message_stream_id, extended, payload in state.streams:
            stream = reader._streams[csid] = _ChunkStream()
            stream.timestamp, stream.delta, stream.length = timestamp, delta, length
            stream.type_id, stream.message_stream_id = type_id, message_stream_id
            stream.extended, stream.field = extended is not None, extended or 0
            if payload is not None:
                stream.payload = bytearray(payload)
                reader._buffered += len(payload)
        reader.chunk_size, reader.dropped_messages = state.chunk_size, state.dropped_messages
        reader._tail, reader.unread, reader._chunk_left = state.tail, state.unread, state.chunk_left
        reader._current = reader._streams[state.current] if state.current is not None else None
        return reader

    def export_state(self) -> ReaderState:
        """Return the state, for `from_state`. Not after an exception."""
        streams = [
            ChunkStreamState(
                csid,
                stream.timestamp,
                stream.delta,
                stream.length,
                stream.type_id,
                stream.message_stream_id,
                stream.field if stream.extended else None,
                bytes(stream.payload) if stream.payload is not None else None,
            )
            for csid, stream in sorted(self._streams.items())
        ]
        current = next((csid for csid, stream in self._streams.items() if stream is self._current), None)
        return ReaderState(
            self.chunk_size,
            tuple(streams),
            current if self._chunk_left else None,
            self._chunk_left,
            self._tail,
            self.unread,
            self.dropped_messages,
        )

    @property
    def buffered_bytes(self) -> int:
        """The bytes held of incomplete messages."""
        return self._buffered + len(self._tail)

    def limit_buffered(self, limit_bytes: int = 0, name: str = "bytes of incomplete messages") -> None:
        """Limit the bytes of incomplete messages, whatever length they have announced.

        Args:
            limit_bytes: The limit; 0: as much as one longest message and some small ones, since messages may be interleaved.
            name: The name of the limit.
        """
        self.buffered_limit = BufferedLimit(name, limit_bytes or self.message_limit_bytes + (1 << 20))
        self._look_at = min(self.buffered_limit.bytes, self._growth_at)

    def watch_growth(self) -> None:
        """Call `on_growth` for bytes of incomplete messages that come from now on."""
        self.grown = False
        self._growth_at = self._buffered + GROWTH_BYTES
        self._look_at = min(self.buffered_limit.bytes, self._growth_at)

    def abort(self, csid: int) -> None:
        """Drop the incomplete message on *csid*, if there is one (section 5.4.2)."""
        stream = self._streams.get(csid)
        if stream is not None and stream.payload is not None:
            self._buffered -= len(stream.payload)
            stream.payload = None

    def feed(self, data: bytes | bytearray | memoryview, chunk_limit: int = sys.maxsize) -> list[RawMessage]:
        """Process bytes from the peer; return the messages that they complete, in order.

        Args:
            data: The bytes, which are not kept; none, to continue with those that the last call left `unread`.
            chunk_limit: How many chunks are processed at most: a chunk may be a single byte, and cause much work.

        Raises:
            RemoteProtocolError: The bytes are not a valid chunk stream; the message has the csid, the expected and the found.
            LimitExceeded: A message, or the number of chunk streams, exceeds its limit.
        """
        if self._tail:
            data = self._tail + data
            self._tail = b""
        elif type(data) is not bytes:
            data = bytes(data)
        messages: list[RawMessage] = []
        new_tuple = _new_tuple
        position = 0
        end = len(data)
        stream: _ChunkStream | None
        if self._chunk_left:
            # The last call ended inside this chunk.
            stream = self._current
            assert stream is not None
            assert stream.payload is not None
            piece = data[: self._chunk_left]
            position = len(piece)
            self._chunk_left -= position
            stream.payload += piece
            self._buffered += position
            if self._chunk_left:
                if self._buffered > self._look_at:
                    self._check_buffered()
                return messages
            if len(stream.payload) == stream.length:
                self._finish(stream, messages)
        streams = self._streams
        chunk_size = self.chunk_size
        self.unread = False
        for _ in repeat(None, chunk_limit):
            if position >= end:
                break
            start = position
            fmt = data[position] >> 6
            csid = data[position] & 63
            position += 1
            if csid < 2:
                position += 1 + csid
                if position > end:
                    self._tail = data[start:]
                    break
                csid = data[start + 1] + 64 if csid == 0 else data[start + 1] + (data[start + 2] << 8) + 64
            stream = streams.get(csid)
            if stream is None:
                stream = self._open(csid, fmt)

            if fmt == 3:
                payload = stream.payload
                if stream.extended:
                    skip = self._repeated_field(data, position, stream)
                    if skip < 0:
                        self._tail = data[start:]
                        break
                    position += skip
                if payload is None:
                    stream.timestamp = (stream.timestamp + stream.delta) & 0xFFFFFFFF
                    got = 0
                else:
                    got = len(payload)
                length = stream.length
            elif stream.payload is None:
                # The header has 11, 7 or 3 bytes, and 4 more with an extended timestamp. Words of 4 bytes are read from one
                # byte before it, which always exists: the last byte of the basic header.
                position += 11 - 4 * fmt
                if position > end:
                    self._tail = data[start:]
                    break
                if fmt == 2:
                    field = _one_word(data, position - 4)[0] & 0xFFFFFF
                elif fmt == 1:
                    word, size_and_type = _two_words(data, position - 8)
                    field = word & 0xFFFFFF
                else:
                    word, size_and_type = _two_words(data, position - 12)
                    field = word & 0xFFFFFF
                if field == EXTENDED_TIMESTAMP:
                    position += 4
                    if position > end:
                        self._tail = data[start:]
                        break
                    field = _one_word(data, position - 4)[0]
                    stream.extended = True
                    stream.field = field
                else:
                    stream.extended = False
                stream.delta = field
                if fmt == 0:
                    stream.timestamp = field
                    stream.message_stream_id = _little_word(data, position - (8 if stream.extended else 4))[0]
                else:
                    stream.timestamp = (stream.timestamp + field) & 0xFFFFFFFF
                if fmt != 2:
                    stream.length = size_and_type >> 8
                    stream.type_id = size_and_type & 0xFF
                length = stream.length
                if length > self.message_limit_bytes:
                    raise LimitExceeded("message_limit_bytes", self.message_limit_bytes, length)
                payload = None
                got = 0
            else:
                size = self._header_inside(data, position, fmt, stream)
                if size < 0:
                    self._tail = data[start:]
                    break
                if not size:
                    # The begun message was dropped: the header begins another one.
                    position = start
                    continue
                position += size
                payload = stream.payload
                got = len(payload)
                length = stream.length

            # The payload of the chunk.
            stop = position + length - got
            if length - got > chunk_size:
                stop = position + chunk_size
            elif payload is None and stop <= end:
                # The usual case: the whole message in one chunk.
                piece = data[position:stop]
                position = stop
                if stream.type_id <= _ABORT:
                    self._chunk_control(stream.type_id, piece)
                    chunk_size = self.chunk_size
                else:
                    # RawMessage(...) without the call of a named tuple's constructor, which is a Python function.
                    messages.append(new_tuple(RawMessage, (stream.type_id, stream.message_stream_id, stream.timestamp, piece)))
                continue
            piece = data[position:stop]
            if payload is None:
                payload = stream.payload = bytearray()
            payload += piece
            self._buffered += len(piece)
            position += len(piece)
            if position < stop:
                self._current = stream
                self._chunk_left = stop - position
                break
            if len(payload) == length:
                self._finish(stream, messages)
                chunk_size = self.chunk_size
        else:
            if position < end:
                self._tail = data[position:]
                self.unread = True
        if self._buffered > self._look_at:
            self._check_buffered()
        return messages

    def feed_frames(
        self, data: bytes | bytearray | memoryview, chunk_limit: int, sources: Mapping[int, object]
    ) -> tuple[int, list[RawMessage]]:
        """Process bytes from the peer; hand ordinary frames that come first to their sources without an object for each.

        Only the compiled form does that: this one hands over none.

        Args:
            data: As for `feed`.
            chunk_limit: Likewise; at most 64.
            sources: The sources (`rtmpd.live.source.Source`) by message stream id.

        Returns:
            The number of messages that were handed over, and those behind them.

        Raises:
            RemoteProtocolError, LimitExceeded: As `feed`; none was handed over then.
        """
        if chunk_limit > FRAMES_LIMIT:
            raise ValueError(f"expected at most {FRAMES_LIMIT} chunks, found {chunk_limit}")
        return 0, self.feed(bytes(data), chunk_limit)

    def _open(self, csid: int, fmt: int) -> _ChunkStream:
        # librtmp answers a ping with a type 1 header as the first one of its csid; the message stream id is then 0.
        if fmt > 1:
            raise RemoteProtocolError(f"csid {csid}: expected a type 0 header as the first one, found type {fmt}")
        if len(self._streams) >= self.chunk_stream_limit:
            raise LimitExceeded("chunk_stream_limit", self.chunk_stream_limit, len(self._streams) + 1)
        stream = self._streams[csid] = _ChunkStream()
        return stream

    def _check_buffered(self) -> None:
        name, limit_bytes = self.buffered_limit
        if self._buffered > limit_bytes:
            raise LimitExceeded(name, limit_bytes, self._buffered)
        if self._buffered > self._growth_at:
            self.watch_growth()
            self.grown = True
            if self.on_growth is not None:
                self.on_growth()

    def _header_inside(self, data: bytes, position: int, fmt: int, stream: _ChunkStream) -> int:
        """Process a header of type 0, 1 or 2 where only type 3 is allowed: inside a message, as some builds of OBS send it.

        If it can belong to the begun message, by its length, type and message stream id, that continues with its own timestamp.
        Otherwise the begun message is dropped and counted.

        Returns:
            The bytes of the header after its first; 0: the message was dropped; -1: the header has not arrived as a whole.
        """
        size = 11 - 4 * fmt
        if position + size > len(data):
            return -1
        field = int.from_bytes(data[position : position + 3], "big")
        same = fmt == 2 or (int.from_bytes(data[position + 3 : position + 6], "big"), data[position + 6]) == (
            stream.length,
            stream.type_id,
        )
        if fmt == 0:
            same = same and _little_word(data, position + 7)[0] == stream.message_stream_id
        if not same:
            assert stream.payload is not None
            self._buffered -= len(stream.payload)
            stream.payload = None
            self.dropped_messages += 1
            return 0
        extended = field == EXTENDED_TIMESTAMP
        if extended:
            if position + size + 4 > len(data):
                return -1
            stream.field = _one_word(data, position + size)[0]
            size += 4
        stream.extended = extended
        return size

    @staticmethod
    def _repeated_field(data: bytes, position: int, stream: _ChunkStream) -> int:
        """Detect whether a type 3 chunk repeats the extended timestamp.

        The specification demands it, and FFmpeg and current librtmp do it; older librtmp and some encoders omit it. The field
        counts as repeated if the next four bytes equal the field of the last header, or the absolute time of the message, which
        some peers repeat after a delta. Only 31 bits are compared, because some peers clear the top bit.

        Returns:
            The bytes to skip, 4 or 0; -1 if too few bytes have arrived to decide.
        """
        if position + 4 <= len(data):
            seen = _one_word(data, position)[0] & 0x7FFFFFFF
            return 4 if seen in (stream.field & 0x7FFFFFFF, stream.timestamp & 0x7FFFFFFF) else 0
        # Fewer than four bytes decide only if they can't be the start of either value.
        seen_bytes = data[position:]
        for candidate in (stream.field, stream.timestamp):
            for top_bit in (0, 0x80000000):
                if (candidate & 0x7FFFFFFF | top_bit).to_bytes(4, "big").startswith(seen_bytes):
                    return -1
        return 0

    def _chunk_control(self, type_id: int, payload: bytes) -> None:
        if type_id == 0:
            raise RemoteProtocolError("found message type 0, which does not exist: the chunk stream is out of step")
        if len(payload) < 4:
            raise RemoteProtocolError(f"control message of type {type_id}: expected 4 bytes, found {len(payload)}")
        value = int.from_bytes(payload[:4], "big")
        if type_id == _ABORT:
            self.abort(value)
        elif 1 <= value <= MAX_CHUNK_SIZE:
            self.chunk_size = value
        else:
            raise RemoteProtocolError(f"Set Chunk Size: expected 1 to {MAX_CHUNK_SIZE} bytes, found {value}")

    def _finish(self, stream: _ChunkStream, messages: list[RawMessage]) -> None:
        payload = stream.payload
        assert payload is not None
        stream.payload = None
        self._buffered -= len(payload)
        if stream.type_id <= _ABORT:
            self._chunk_control(stream.type_id, bytes(payload))
        else:
            messages.append(RawMessage(stream.type_id, stream.message_stream_id, stream.timestamp, bytes(payload)))


def framed_size(length: int, timestamp: int, chunk_size: int) -> int:
    """Return the size of a message of *length* bytes as chunks, for a csid below 64."""
    extended = 4 if timestamp >= EXTENDED_TIMESTAMP else 0
    if length <= chunk_size:
        return 12 + extended + length
    return 12 + extended + length + (length - 1) // chunk_size * (1 + extended)


def frame_into(
    buffer: bytearray | memoryview,
    offset: int,
    csid: int,
    type_id: int,
    message_stream_id: int,
    timestamp: int,
    payload: bytes,
    chunk_size: int,
) -> int:
    """Write one message as chunks into *buffer*; return the offset after it.

    The message starts with a type 0 header. An extended timestamp is repeated on every type 3 chunk (section 5.3.1.3).

    Args:
        buffer: Must have at least `framed_size` bytes from *offset* on.
        csid: 2..63.
        timestamp: Milliseconds, 0..2**32-1.
        payload: At most 0xFFFFFF bytes.
        chunk_size: 1..0x7FFFFFFF.
    """
    length = len(payload)
    # The message stream id is the only little-endian field of the protocol. Nearly all are 0 or 1.
    if message_stream_id == 1:
        msid = 0x01000000
    elif message_stream_id == 0:
        msid = 0
    else:
        msid = int.from_bytes(message_stream_id.to_bytes(4, "little"), "big")
    if timestamp < EXTENDED_TIMESTAMP:
        pack_header(buffer, offset, csid << 24 | timestamp, length << 8 | type_id, msid)
        offset += 12
        separator = b""
    else:
        _pack_long_header(buffer, offset, csid << 24 | EXTENDED_TIMESTAMP, length << 8 | type_id, msid, timestamp)
        offset += 16
        separator = timestamp.to_bytes(4, "big")
    if length <= chunk_size:
        end = offset + length
        buffer[offset:end] = payload
        return end
    separator = bytes((0xC0 | csid,)) + separator
    step = len(separator)
    position = chunk_size
    buffer[offset : offset + chunk_size] = payload[:chunk_size]
    offset += chunk_size
    while position < length:
        buffer[offset : offset + step] = separator
        offset += step
        piece = payload[position : position + chunk_size]
        position += chunk_size
        buffer[offset : offset + len(piece)] = piece
        offset += len(piece)
    return offset


def frame_message(csid: int, type_id: int, message_stream_id: int, timestamp: int, payload: bytes, chunk_size: int) -> bytes:
    """Return one message as chunks; arguments as `frame_into`, except that the csid may be up to 65599.

    Raises:
        ValueError: An argument is out of range, which is a bug in the caller.
    """
    if not 2 <= csid <= MAX_CSID:
        raise ValueError(f"expected a csid of 2 to {MAX_CSID}, found {csid}")
    if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
        raise ValueError(f"expected a chunk size of 1 to {MAX_CHUNK_SIZE} bytes, found {chunk_size}")
    if len(payload) > MAX_MESSAGE_SIZE:
        raise ValueError(f"expected a message of at most {MAX_MESSAGE_SIZE} bytes, found {len(payload)}")
    timestamp &= 0xFFFFFFFF
    if csid < 64:
        buffer = bytearray(framed_size(len(payload), timestamp, chunk_size))
        frame_into(buffer, 0, csid, type_id, message_stream_id, timestamp, payload, chunk_size)
        return bytes(buffer)
    basic = bytes((0, csid - 64)) if csid < 320 else bytes((1, csid - 64 & 255, csid - 64 >> 8))
    extended = timestamp.to_bytes(4, "big") if timestamp >= EXTENDED_TIMESTAMP else b""
    header = (
        min(timestamp, EXTENDED_TIMESTAMP).to_bytes(3, "big")
        + len(payload).to_bytes(3, "big")
        + bytes((type_id,))
        + message_stream_id.to_bytes(4, "little")
    )
    separator = bytes((0xC0 | basic[0],)) + basic[1:] + extended
    pieces = [payload[i : i + chunk_size] for i in range(0, len(payload), chunk_size)]
    return basic + header + extended + separator.join(pieces)
