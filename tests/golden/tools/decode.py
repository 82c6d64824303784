"""A decoder of recorded RTMP bytes, written from the specification to judge the recordings, not to serve anybody.

It is independent on purpose: it imports nothing of rtmpd, so the two can be held against each other.

``decode.py FILE...`` lists the messages of recordings; ``decode.py --check INDEX`` decodes every recording that an
index.json names and fails if what it says about them is not so.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HANDSHAKE_SIZE = 1536
EXTENDED = 0xFFFFFF

SET_CHUNK_SIZE = 1
ABORT = 2
ACKNOWLEDGEMENT = 3
USER_CONTROL = 4
WINDOW_SIZE = 5
PEER_BANDWIDTH = 6
AUDIO = 8
VIDEO = 9
DATA_AMF3 = 15
SHARED_AMF3 = 16
COMMAND_AMF3 = 17
DATA_AMF0 = 18
SHARED_AMF0 = 19
COMMAND_AMF0 = 20
AGGREGATE = 22

TYPE_NAMES = {
    SET_CHUNK_SIZE: "set-chunk-size",
    ABORT: "abort",
    ACKNOWLEDGEMENT: "ack",
    USER_CONTROL: "user-control",
    WINDOW_SIZE: "window-ack-size",
    PEER_BANDWIDTH: "set-peer-bandwidth",
    AUDIO: "audio",
    VIDEO: "video",
    DATA_AMF3: "data(amf3)",
    COMMAND_AMF3: "command(amf3)",
    DATA_AMF0: "data",
    COMMAND_AMF0: "command",
    AGGREGATE: "aggregate",
}

# The first half of the keys that Flash Player and Flash Media Server sign C1 and S1 with.
CLIENT_KEY = b"Genuine Adobe Flash Player 001"
SERVER_KEY = b"Genuine Adobe Flash Media Server 001"


class DecodeError(Exception):
    """The recording is not RTMP."""


@dataclass
class Message:
    """One message, with what its chunks looked like."""

    offset: int
    csid: int
    fmt: int
    type: int
    stream_id: int
    timestamp: int
    payload: bytes
    chunks: int
    extended: bool
    basic_header: int


@dataclass
class Handshake:
    """What the first 1 + 1536 + 1536 bytes say."""

    protocol: int
    time: int
    version: bytes
    kind: str
    scheme: int | None


@dataclass
class Decoded:
    """Everything found in one direction of a connection."""

    handshake: Handshake
    messages: list[Message] = field(default_factory=list)
    chunk_formats: Counter[int] = field(default_factory=Counter)
    type3_starts: int = 0
    extended_headers: int = 0
    extended_repeated: int = 0
    extended_not_repeated: int = 0
    interleaved: int = 0
    trailing: int = 0


@dataclass
class _ChunkStream:
    timestamp: int = 0
    delta: int = 0
    length: int = 0
    type: int = 0
    stream_id: int = 0
    extended: int | None = None
    partial: bytearray | None = None
    first: tuple[int, int, int] = (0, 0, 0)
    chunks: int = 0


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise EOFError
        block = self.data[self.at : self.at + count]
        self.at += count
        return block

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")


def digest_scheme(block: bytes, key: bytes) -> int | None:
    """Where C1 or S1 carries a digest made with ``key``: scheme 0, 1, or None."""
    for scheme, at in ((0, 8), (1, 772)):
        offset = sum(block[at : at + 4]) % 728 + at + 4
        signed = block[:offset] + block[offset + 32 :]
        if hmac.new(key, signed, hashlib.sha256).digest() == block[offset : offset + 32]:
            return scheme
    return None


def _handshake(reader: _Reader) -> Handshake:
    protocol = reader.number(1)
    block = reader.take(HANDSHAKE_SIZE)
    reader.take(HANDSHAKE_SIZE)
    scheme = digest_scheme(block, CLIENT_KEY)
    if scheme is None:
        scheme = digest_scheme(block, SERVER_KEY)
    kind = "plain" if scheme is None else "digest"
    return Handshake(protocol, int.from_bytes(block[:4], "big"), block[4:8], kind, scheme)


def decode(data: bytes) -> Decoded:
    """Read one direction of a connection from its first byte (C0 or S0)."""
    reader = _Reader(data)
    try:
        result = Decoded(_handshake(reader))
    except EOFError:
        raise DecodeError("the handshake is not complete") from None
    streams: dict[int, _ChunkStream] = {}
    chunk_size = 128
    complete = reader.at
    while reader.at < len(data):
        start = reader.at
        try:
            message = _chunk(reader, streams, chunk_size, result)
        except EOFError:
            result.trailing = len(data) - start
            break
        if message is None:
            continue
        complete = reader.at
        result.messages.append(message)
        if message.type == SET_CHUNK_SIZE:
            chunk_size = int.from_bytes(message.payload, "big") & 0x7FFFFFFF
        elif message.type == ABORT:
            streams[int.from_bytes(message.payload, "big")].partial = None
    result.trailing = len(data) - complete
    return result


def _chunk(reader: _Reader, streams: dict[int, _ChunkStream], chunk_size: int, result: Decoded) -> Message | None:
    start = reader.at
    first = reader.number(1)
    fmt, csid = first >> 6, first & 0x3F
    basic_header = 1
    if csid == 0:
        csid = 64 + reader.number(1)
        basic_header = 2
    elif csid == 1:
        csid = 64 + int.from_bytes(reader.take(2), "little")
        basic_header = 3
    if csid not in streams and fmt > 0 and not (fmt == 1 and csid == 2):
        # Servers do let a stream begin with type 1 (librtmp does so on chunk stream 2); note anything else.
        print(f"  odd: chunk stream {csid} begins with type {fmt} at {start}", file=sys.stderr)
    stream = streams.setdefault(csid, _ChunkStream())
    begins = stream.partial is None
    if not begins and fmt != 3:
        raise DecodeError(f"type {fmt} in the middle of a message at {start}")

    header = EXTENDED + 1
    if fmt < 3:
        header = reader.number(3)
    if fmt < 2:
        stream.length = reader.number(3)
        stream.type = reader.number(1)
    if fmt == 0:
        stream.stream_id = int.from_bytes(reader.take(4), "little")
    if fmt < 3:
        stream.extended = None
        value = header
        if header == EXTENDED:
            value = stream.extended = reader.number(4)
            result.extended_headers += 1
        if fmt == 0:
            stream.timestamp, stream.delta = value, value
        else:
            stream.delta = value
            stream.timestamp = (stream.timestamp + value) & 0xFFFFFFFF
    else:
        if stream.extended is not None:
            # Some programs repeat the extended timestamp in type 3 chunks, as the specification says, and some do not.
            if reader.data[reader.at : reader.at + 4] == struct.pack(">I", stream.extended):
                reader.take(4)
                result.extended_repeated += 1
            else:
                result.extended_not_repeated += 1
        if begins:
            result.type3_starts += 1
            stream.timestamp = (stream.timestamp + stream.delta) & 0xFFFFFFFF

    if begins:
        stream.partial = bytearray()
        stream.first = (start, fmt, basic_header)
        stream.chunks = 0
        if any(other.partial for other in streams.values() if other is not stream):
            result.interleaved += 1
    assert stream.partial is not None
    stream.partial += reader.take(min(chunk_size, stream.length - len(stream.partial)))
    stream.chunks += 1
    result.chunk_formats[fmt] += 1
    if len(stream.partial) < stream.length:
        return None
    payload, stream.partial = bytes(stream.partial), None
    offset, first_fmt, basic = stream.first
    return Message(
        offset=offset,
        csid=csid,
        fmt=first_fmt,
        type=stream.type,
        stream_id=stream.stream_id,
        timestamp=stream.timestamp,
        payload=payload,
        chunks=stream.chunks,
        extended=stream.extended is not None,
        basic_header=basic,
    )


def amf0(data: bytes) -> list[Any]:
    """The AMF0 values of a command or data message."""
    reader = _Reader(data)
    values = []
    while reader.at < len(data):
        values.append(_amf0_value(reader))
    return values


def _amf0_value(reader: _Reader) -> Any:
    marker = reader.number(1)
    if marker == 0:
        return struct.unpack(">d", reader.take(8))[0]
    if marker == 1:
        return reader.number(1) != 0
    if marker == 2:
        return reader.take(reader.number(2)).decode()
    if marker == 3:
        return _amf0_object(reader)
    if marker in (5, 6):
        return None
    if marker == 8:
        reader.number(4)
        return _amf0_object(reader)
    if marker == 10:
        return [_amf0_value(reader) for _ in range(reader.number(4))]
    if marker == 11:
        value = struct.unpack(">d", reader.take(8))[0]
        reader.take(2)
        return value
    if marker == 12:
        return reader.take(reader.number(4)).decode()
    raise DecodeError(f"AMF0 marker {marker}")


def _amf0_object(reader: _Reader) -> dict[str, Any]:
    result = {}
    while True:
        name = reader.take(reader.number(2)).decode()
        if not name and reader.data[reader.at : reader.at + 1] == b"\x09":
            reader.take(1)
            return result
        result[name] = _amf0_value(reader)


def values_of(message: Message) -> list[Any]:
    """The AMF values of a command or data message."""
    if message.type in (COMMAND_AMF3, DATA_AMF3):
        if message.payload[:1] != b"\x00":
            raise DecodeError("AMF3 values are not decoded here")
        return amf0(message.payload[1:])
    return amf0(message.payload)


def facts(c2s: bytes, s2c: bytes) -> dict[str, Any]:
    """What index.json says about a recording, as far as its bytes tell."""
    decoded = decode(c2s)
    block1, block2 = slice(1, 1 + HANDSHAKE_SIZE), slice(1 + HANDSHAKE_SIZE, 1 + 2 * HANDSHAKE_SIZE)
    counts = Counter(message.type for message in decoded.messages)
    media = [message.payload for message in decoded.messages if message.type in (AUDIO, VIDEO)]
    commands = [m for m in decoded.messages if m.type in (COMMAND_AMF0, COMMAND_AMF3)]
    return {
        "handshake": decoded.handshake.kind,
        "c2_echoes_s1": c2s[block2] == s2c[block1],
        "s2_echoes_c1": s2c[block2] == c2s[block1],
        "commands": [values_of(message)[0] for message in commands],
        "audio_messages": counts[AUDIO],
        "video_messages": counts[VIDEO],
        "data_messages": counts[DATA_AMF0] + counts[DATA_AMF3],
        "aggregate_messages": counts[AGGREGATE],
        "ack_messages": counts[ACKNOWLEDGEMENT],
        "trailing_bytes": decoded.trailing,
        "digest_of_media": hashlib.sha256(b"".join(media)).hexdigest(),
    }


def describe(message: Message) -> str:
    """One line about a message."""
    name = TYPE_NAMES.get(message.type, f"type {message.type}")
    text = (
        f"{message.offset:7} csid {message.csid} fmt {message.fmt} msid {message.stream_id} ts {message.timestamp}"
        f"{' (extended)' if message.extended else ''} {len(message.payload)} B in {message.chunks}: {name}"
    )
    if message.type in (COMMAND_AMF0, COMMAND_AMF3, DATA_AMF0, DATA_AMF3):
        return f"{text} {values_of(message)}"
    if message.type in (SET_CHUNK_SIZE, ACKNOWLEDGEMENT, WINDOW_SIZE):
        return f"{text} {int.from_bytes(message.payload, 'big')}"
    if message.type == USER_CONTROL:
        event = int.from_bytes(message.payload[:2], "big")
        rest = [int.from_bytes(message.payload[at : at + 4], "big") for at in range(2, len(message.payload), 4)]
        return f"{text} event {event} {rest}"
    return f"{text} {message.payload[:12].hex(' ')}"


def report(path: Path, *, every: bool) -> None:
    data = path.read_bytes()
    decoded = decode(data)
    shake = decoded.handshake
    print(f"{path.name}: {len(data)} bytes")
    print(
        f"  handshake: version {shake.protocol}, time {shake.time}, bytes 4-8 {shake.version.hex(' ')}, {shake.kind}"
        + (f" (scheme {shake.scheme})" if shake.scheme is not None else "")
    )
    run: Counter[tuple[int, int, int]] = Counter()
    for message in decoded.messages:
        if message.type in (AUDIO, VIDEO) and not every and run[message.type, message.csid, message.fmt] >= 2:
            run[message.type, message.csid, message.fmt] += 1
            continue
        run[message.type, message.csid, message.fmt] += 1
        print(f"  {describe(message)}")
    for (kind, csid, fmt), count in sorted(run.items()):
        print(f"  {count:5} {TYPE_NAMES.get(kind, kind)} on csid {csid} starting with type {fmt}")
    print(
        f"  chunks by type {dict(sorted(decoded.chunk_formats.items()))}, type 3 starts {decoded.type3_starts},"
        f" extended headers {decoded.extended_headers}, repeated {decoded.extended_repeated},"
        f" not repeated {decoded.extended_not_repeated}, interleaved {decoded.interleaved},"
        f" trailing bytes {decoded.trailing}"
    )


def check(index: Path) -> int:
    wrong = 0
    for entry in json.loads(index.read_text()):
        folder = index.parent
        found = facts((folder / entry["file"]).read_bytes(), (folder / entry["server_file"]).read_bytes())
        for key, value in found.items():
            if entry[key] != value:
                print(f"{entry['name']}: {key} is {value!r}, the index says {entry[key]!r}")
                wrong += 1
    print(f"{index.name}: {wrong} differences")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--every", action="store_true", help="list every audio and video message too")
    parser.add_argument("--check", type=Path, metavar="INDEX")
    args = parser.parse_args()
    for path in args.files:
        report(path, every=args.every)
    return 1 if args.check and check(args.check) else 0


if __name__ == "__main__":
    sys.exit(main())
