"""The part of RTMP that a load generator needs: AMF0, and messages from and to chunks.

It is written apart from rtmpd.protocol on purpose: a mistake there must not hide behind the same mistake here, and a
change there must not move the cost of the load.
"""

import struct

SET_CHUNK_SIZE, ABORT, ACKNOWLEDGEMENT, USER_CONTROL, WINDOW_SIZE, PEER_BANDWIDTH = 1, 2, 3, 4, 5, 6
AUDIO, VIDEO, COMMAND_AMF3, DATA, COMMAND = 8, 9, 17, 18, 20
SET_BUFFER_LENGTH, PING_REQUEST, PING_RESPONSE = 3, 6, 7

DEFAULT_CHUNK_BYTES = 128


class ProtocolError(Exception):
    """The server sent bytes that are not RTMP."""


def amf(*values):
    """Encode values as AMF0, one after the other; a dict becomes an object."""
    out = bytearray()
    for value in values:
        if value is None:
            out += b"\x05"
        elif isinstance(value, bool):
            out += b"\x01" + bytes([value])
        elif isinstance(value, int | float):
            out += struct.pack(">Bd", 0, value)
        elif isinstance(value, str):
            out += b"\x02" + _short_string(value)
        else:
            out += b"\x03"
            for key, item in value.items():
                out += _short_string(key) + amf(item)
            out += b"\x00\x00\x09"
    return bytes(out)


def _short_string(text):
    data = text.encode()
    return struct.pack(">H", len(data)) + data


def amf_values(data):
    """Decode every AMF0 value of a command."""
    values, offset = [], 0
    while offset < len(data):
        value, offset = _amf_value(data, offset)
        values.append(value)
    return values


def _amf_value(data, offset):
    marker, offset = data[offset], offset + 1
    if marker == 0:
        return struct.unpack_from(">d", data, offset)[0], offset + 8
    if marker == 1:
        return data[offset] != 0, offset + 1
    if marker in {2, 12}:
        width = 2 if marker == 2 else 4
        start = offset + width
        end = start + int.from_bytes(data[offset:start], "big")
        return data[start:end].decode("utf-8", "replace"), end
    if marker in {5, 6}:
        return None, offset
    if marker in {3, 8}:
        return _amf_properties(data, offset if marker == 3 else offset + 4)
    if marker == 10:
        items = []
        count, offset = int.from_bytes(data[offset : offset + 4], "big"), offset + 4
        for _ in range(count):
            item, offset = _amf_value(data, offset)
            items.append(item)
        return items, offset
    if marker == 11:
        return struct.unpack_from(">d", data, offset)[0], offset + 10
    raise ProtocolError(f"AMF0 marker {marker}")


def _amf_properties(data, offset):
    found = {}
    while data[offset : offset + 3] != b"\x00\x00\x09":
        start = offset + 2
        end = start + int.from_bytes(data[offset:start], "big")
        found[data[start:end].decode("utf-8", "replace")], offset = _amf_value(data, end)
    return found, offset + 3


def message(chunk_stream, kind, stream_id, payload, chunk_bytes=DEFAULT_CHUNK_BYTES):
    """One message at timestamp 0, cut into chunks: a type 0 header, then type 3 headers."""
    out = bytearray([chunk_stream]) + bytes(3) + len(payload).to_bytes(3, "big") + bytes([kind])
    out += stream_id.to_bytes(4, "little")
    for offset in range(0, len(payload), chunk_bytes):
        if offset:
            out.append(0xC0 | chunk_stream)
        out += payload[offset : offset + chunk_bytes]
    return out


def control(kind, value, chunk_bytes=DEFAULT_CHUNK_BYTES):
    """A protocol control message that holds one 32-bit number."""
    return message(2, kind, 0, struct.pack(">I", value), chunk_bytes)


class _ChunkStream:
    __slots__ = ("body", "extended", "kind", "length", "stream_id")

    def __init__(self):
        self.body = bytearray()
        self.kind = self.length = self.stream_id = 0
        self.extended = False


class ChunkReader:
    """Assembles messages from chunks of any header type and size.

    Timestamps are skipped: latency comes from the clock inside the payload, which no server rewrites.
    """

    HEADER_BYTES = (11, 7, 3, 0)

    def __init__(self):
        self._buffer = bytearray()
        self._streams = {}
        self._chunk_bytes = DEFAULT_CHUNK_BYTES

    def feed(self, data):
        """Take bytes and return the (kind, payload) of each message that they complete."""
        buffer = self._buffer
        buffer += data
        done, position = [], 0
        while (end := self._chunk(buffer, position, done)) > position:
            position = end
        if position:
            del buffer[:position]
        return done

    def _chunk(self, buffer, position, done):
        """Consume one chunk that starts at position; return where it ends, or position when it is not complete."""
        have = len(buffer)
        if have < position + 3 and (have == position or buffer[position] & 63 < 2):
            return position  # a basic header may have three bytes
        form, identity = buffer[position] >> 6, buffer[position] & 63
        header = position + 1
        if identity < 2:
            identity = 64 + int.from_bytes(buffer[header : header + 1 + identity], "little")
            header += 1 if buffer[position] & 63 == 0 else 2
        body = header + self.HEADER_BYTES[form]
        if have < body:
            return position
        stream = self._streams.get(identity)
        if stream is None:
            if form:
                raise ProtocolError(f"type {form} header on unseen chunk stream {identity}")
            stream = self._streams[identity] = _ChunkStream()
        extended = stream.extended if form == 3 else buffer[header : header + 3] == b"\xff\xff\xff"
        body += 4 if extended else 0
        length = int.from_bytes(buffer[header + 3 : header + 6], "big") if form < 2 else stream.length
        end = body + min(length - len(stream.body), self._chunk_bytes)
        if have < end:
            return position
        if form < 3 and stream.body:
            raise ProtocolError("new header in the middle of a message")
        stream.length, stream.extended = length, extended
        if form < 2:
            stream.kind = buffer[header + 6]
        stream.body += buffer[body:end]
        if len(stream.body) == length:
            self._message(stream.kind, bytes(stream.body), done)
            stream.body.clear()
        return end

    def _message(self, kind, payload, done):
        if kind == SET_CHUNK_SIZE:
            self._chunk_bytes = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
            if not self._chunk_bytes:
                raise ProtocolError("chunk size 0")
        elif kind == ABORT:
            aborted = self._streams.get(int.from_bytes(payload[:4], "big"))
            if aborted:
                aborted.body.clear()
        elif 0 < kind <= 22:
            done.append((kind, payload))
        else:
            raise ProtocolError(f"message type {kind}")
