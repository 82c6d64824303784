"""A raw RTMP client on a blocking socket, and synthetic media.

`Wire` shares the protocol's encoders and reader with the server, but none of its networking. It sends exactly what a test asks
for, also what no specification allows.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import gevent

from rtmpd.errors import TransportClosed
from rtmpd.protocol import amf0, message
from rtmpd.protocol.chunk import ChunkReader, RawMessage, frame_message
from rtmpd.protocol.command import Command, decode_command, encode_command
from rtmpd.protocol.message import MessageType, UserControlType, parse_user_control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rtmpd.client import Client
    from tests.conftest import Server

AUDIO, VIDEO, DATA = 8, 9, 18
_MEDIA = (AUDIO, VIDEO, DATA)
_COMMANDS = (17, 20)
HANDSHAKE_BYTES = 1536

_addresses = itertools.count(1)


class Item(NamedTuple):
    """An audio, video or data message that a publisher sends and a player must get."""

    type_id: int
    timestamp: int
    payload: bytes


# Synthetic media ---------------------------------------------------------------------------------------------------------

AVC_HEADER = bytes.fromhex("1700000000 0164001fffe1000467640010 01000468ee3c80")
AVC_HEADER_2 = bytes.fromhex("1700000000 01640028ffe1000467640020 01000468ee3c80")
AAC_HEADER = bytes.fromhex("af001210")
METADATA = {"width": 64.0, "height": 48.0, "encoder": "test"}


def metadata(values: dict[str, Any] | None = None) -> bytes:
    """Return the payload of onMetaData as players get it."""
    return amf0.encode("onMetaData", METADATA if values is None else values)


def _body(number: int, size: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(number * 7 + i & 255 for i in range(min(size, 64))) + bytes(max(0, size - 64))


def key(number: int, size: int = 100) -> bytes:
    """Return an H.264 keyframe; each number makes a different one."""
    return b"\x17\x01\0\0\0" + _body(number, size)


def inter(number: int, size: int = 50) -> bytes:
    """Return an H.264 inter frame."""
    return b"\x27\x01\0\0\0" + _body(number, size)


def sound(number: int, size: int = 20) -> bytes:
    """Return an AAC frame."""
    return b"\xaf\x01" + _body(number, size)


def gop(number: int, *, frames: int = 4, start_ms: int | None = None, size: int = 50) -> list[Item]:
    """Return a group of pictures, 40 ms each, with as many audio frames; groups of successive numbers follow each other."""
    begin = number * frames * 40 if start_ms is None else start_ms
    items = []
    for i in range(frames):
        n = number * frames + i
        stamp = (begin + i * 40) & 0xFFFFFFFF
        items += [Item(VIDEO, stamp, inter(n, size) if i else key(n, 2 * size)), Item(AUDIO, stamp, sound(n))]
    return items


def gops(first: int, last: int) -> list[Item]:
    """Return groups of pictures, *last* included."""
    return [item for number in range(first, last + 1) for item in gop(number)]


def headers(stamp: int = 0) -> list[Item]:
    """Return a player's first messages: metadata at 0, as FFmpeg needs it, and headers at the time of the first frame."""
    return [Item(DATA, 0, metadata()), Item(VIDEO, stamp, AVC_HEADER), Item(AUDIO, stamp, AAC_HEADER)]


def headers_of(items: list[Item], *stamps: int) -> list[Item]:
    """Return the headers that a player which waited must begin with.

    It gets those that the server has read before the first frame at once, at the publisher's time, and the rest with the first
    frame, at that one's time. How many come early depends on how the publisher's bytes fall into reads.

    Args:
        items: What the player gets.
        stamps: The publisher's time, and that of the first frame.
    """
    early, late = stamps
    count = 1 + sum(item.timestamp == early for item in items[1:3])
    return headers(early)[:count] + headers(late)[count:]


def send(publisher: Client | Wire, items: Iterable[Item]) -> None:
    for item in items:
        publisher.send(item.type_id, item.timestamp, item.payload)


def send_headers(publisher: Client | Wire, stamp: int = 0) -> None:
    """Send the first messages of an encoder."""
    publisher.send(DATA, stamp, amf0.encode("@setDataFrame") + metadata())
    publisher.send(VIDEO, stamp, AVC_HEADER)
    publisher.send(AUDIO, stamp, AAC_HEADER)


# Reading -----------------------------------------------------------------------------------------------------------------


def received(player: Client | Wire, wanted: Callable[[Item | Command], bool], limit_s: float = 10) -> list[Item | Command]:
    """Return what a player gets, media as items and commands decoded, up to the first that is wanted."""
    got: list[Item | Command] = []
    try:
        with gevent.Timeout(limit_s, TimeoutError()):
            for one in _decoded(player):
                got.append(one)
                if wanted(one):
                    return got
    except (TimeoutError, TransportClosed) as error:
        raise AssertionError(f"{str(error) or f'not within {limit_s:g} s'}; got {got}") from None
    raise AssertionError(f"the connection ended; got {got}")


def arrived(player: Client | Wire, wait_s: float) -> list[Item | Command]:
    """Return what a player gets within a time."""
    got: list[Item | Command] = []
    with gevent.Timeout(wait_s, False):
        got.extend(_decoded(player))
    return got


def _decoded(player: Client | Wire) -> Iterator[Item | Command]:
    for one in player.messages():
        if isinstance(one, Command):
            yield one
        elif one.type_id in _MEDIA:
            yield Item(one.type_id, one.timestamp, one.payload)


def played(player: Client | Wire, last: Item | bytes, limit_s: float = 10) -> list[Item]:
    """Return the media that a player gets up to *last* (an item, or a payload whatever its time), without commands."""
    payload = last if isinstance(last, bytes) else last.payload
    got = received(player, lambda one: isinstance(one, Item) and one.payload == payload, limit_s)
    return [one for one in got if isinstance(one, Item)]


def begin(publisher: Client | Wire, *players: Client | Wire) -> None:
    """Send headers and group 0, and assert that waiting players get exactly these.

    Players join at the newest keyframe: send no second keyframe before they have the first.
    """
    send_headers(publisher)
    send(publisher, gop(0))
    for player in players:
        assert played(player, gop(0)[-1]) == headers() + gop(0)


def status(player: Client | Wire, code: str, limit_s: float = 10) -> list[Item | Command]:
    """Return what a player gets up to the onStatus with this code."""
    return received(player, lambda one: isinstance(one, Command) and code_of(one) == code, limit_s)


def code_of(command: Command | Item) -> str:
    """Return the status code of an onStatus, _result or _error; empty for anything else."""
    if isinstance(command, Item) or not isinstance(command.argument(0), dict):
        return ""
    return str(command.argument(0).get("code", ""))


def codes(got: Iterable[Item | Command]) -> list[str]:
    return [code_of(one) for one in got if isinstance(one, Command)]


# The raw client ----------------------------------------------------------------------------------------------------------


class Wire:
    """A connection that sends exactly what a test asks for, byte by byte if necessary.

    Each connection has its own source address (all of 127.0.0.0/8 is this host), by which a test finds it in the server's log.

    Args:
        server: The server, or its port.
        host: The server's address.
        receive_buffer: Of the socket, bytes; 0 is the kernel's default.
        source: The address to connect from.

    Attributes:
        msid: The message stream of the publish or play.
        seen: Messages that `wait_for` and `call` passed over.
        answers_pings: Whether `read` answers ping requests.
    """

    def __init__(
        self, server: Server | int, *, host: str = "127.0.0.1", receive_buffer: int = 0, source: str = "", timeout_s: float = 10
    ) -> None:
        port = server if isinstance(server, int) else server.port
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.sock.settimeout(timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if ":" not in host:
            number = next(_addresses)
            self.sock.bind((source or f"127.77.{number >> 8 & 255}.{number & 255}", 0))
        self.sock.connect((host, port))
        local, local_port = self.sock.getsockname()[:2]
        self.address = f"[{local}]:{local_port}" if ":" in local else f"{local}:{local_port}"
        self.reader = ChunkReader(message_limit_bytes=0xFFFFFF)
        self.chunk_size = 128
        self.msid = 0
        self.seen: list[RawMessage] = []
        self.answers_pings = True
        self.bytes_in = 0
        self._inbox: deque[RawMessage] = deque()
        self._transaction = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    # Bytes

    def write(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read_bytes(self) -> bytes:
        """Return received bytes, or none when the server has closed the connection."""
        try:
            data = self.sock.recv(1 << 16)
        except ConnectionError:
            data = b""
        self.bytes_in += len(data)
        return data

    def read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            assert piece, f"the server closed the connection after {len(data)} of {count} bytes"
            data += piece
        return data

    # Messages

    def messages(self) -> Iterator[RawMessage | Command]:
        """Yield messages, commands decoded, until the server closes the connection."""
        while True:
            one = self.read()
            if one is None:
                return
            yield decode_command(one) if one.type_id in _COMMANDS else one

    def read(self) -> RawMessage | None:
        """Return the next message; None when the server has closed the connection."""
        while not self._inbox:
            data = self.read_bytes()
            if not data:
                return None
            self._take(data)
        return self._inbox.popleft()

    def _take(self, data: bytes) -> None:
        for one in self.reader.feed(data):
            self._inbox.append(one)
            if one.type_id == MessageType.USER_CONTROL and self.answers_pings:
                event = parse_user_control(one)
                if event.event == UserControlType.PING_REQUEST:
                    self.write(message.user_control(UserControlType.PING_RESPONSE, event.value))

    def available(self, wait_s: float = 0) -> list[RawMessage]:
        """Return the messages that have arrived, or else those that arrive within a time."""
        if not self._inbox and select.select([self.sock], [], [], wait_s)[0]:
            data = self.read_bytes()
            assert data, "the server closed the connection"
            self._take(data)
        got = list(self._inbox)
        self._inbox.clear()
        return got

    def rest(self) -> list[RawMessage]:
        """Return all messages until the server closes the connection."""
        got = []
        while (one := self.read()) is not None:
            got.append(one)
        return got

    def until(self, wanted: Callable[[RawMessage], bool]) -> RawMessage:
        """Return the first message that is wanted; earlier messages are kept in `seen`."""
        while True:
            one = self.read()
            assert one is not None, f"the server closed the connection; seen: {self.seen}"
            if wanted(one):
                return one
            self.seen.append(one)

    def wait_for(self, wanted: Callable[[Command], bool]) -> Command:
        """Return the first command that is wanted."""
        return decode_command(self.until(lambda one: one.type_id in _COMMANDS and wanted(decode_command(one))))

    def user_control(self, event: int) -> tuple[int, int]:
        """Wait for a User Control message of this event; return its value and the message stream that it came on."""
        one = self.until(lambda one: one.type_id == MessageType.USER_CONTROL and parse_user_control(one).event == event)
        return parse_user_control(one).value, one.message_stream_id

    def commands_seen(self) -> list[Command]:
        return [decode_command(one) for one in self.seen if one.type_id in _COMMANDS]

    def media_seen(self, msid: int = 1) -> list[Item]:
        """Return the media of a message stream that was passed over."""
        return [
            Item(one.type_id, one.timestamp, one.payload)
            for one in self.seen
            if one.type_id in _MEDIA and one.message_stream_id == msid
        ]

    def sync(self) -> None:
        """Wait until the server has handled everything sent so far, by a ping."""
        self._transaction += 1
        number = 0x51000000 + self._transaction
        self.write(message.user_control(UserControlType.PING_REQUEST, number, chunk_size=self.chunk_size))
        self.until(lambda one: one.type_id == MessageType.USER_CONTROL and parse_user_control(one)[:2] == (7, number))

    def frame(self, type_id: int, timestamp: int, payload: bytes, csid: int = 4, msid: int | None = None) -> bytes:
        """Return a message as chunks of the size in force."""
        return frame_message(csid, type_id, self.msid if msid is None else msid, timestamp, payload, self.chunk_size)

    def send(self, type_id: int, timestamp: int, payload: bytes) -> None:
        self.write(self.frame(type_id, timestamp, payload, {AUDIO: 4, VIDEO: 6}.get(type_id, 8)))

    def set_chunk_size(self, size: int) -> None:
        self.write(message.set_chunk_size(size, self.chunk_size))
        self.chunk_size = size

    # Commands

    def command(self, name: str, *arguments: Any, tid: float | None = None, obj: Any = None, msid: int = 0) -> float:
        """Send a command; return its transaction id, a new one if none is given."""
        if tid is None:
            self._transaction += 1
            tid = self._transaction
        self.write(self.frame(20, 0, encode_command(name, tid, obj, *arguments), 3, msid))
        return tid

    def answer(self, tid: float) -> Command:
        """Wait for the ``_result`` or ``_error`` of a transaction."""
        return self.wait_for(lambda c: c.name in ("_result", "_error") and c.transaction_id == tid)

    def call(self, name: str, *arguments: Any, obj: Any = None, msid: int = 0) -> Command:
        return self.answer(self.command(name, *arguments, obj=obj, msid=msid))

    def status(self, code: str = "") -> Command:
        """Wait for an onStatus, with this code if one is given."""
        return self.wait_for(lambda c: c.name == "onStatus" and (not code or code_of(c) == code))

    # Whole sequences

    def handshake(self) -> Self:
        self.write(b"\x03" + bytes(8) + os.urandom(HANDSHAKE_BYTES - 8))
        s1 = self.read_exactly(1 + 2 * HANDSHAKE_BYTES)[1 : 1 + HANDSHAKE_BYTES]
        self.write(s1)
        return self

    def connect(self, app: str = "live", **properties: Any) -> Command:
        """Shake hands and connect; return the server's answer."""
        self.handshake()
        answer = self.call("connect", obj={"app": app, "tcUrl": f"rtmp://localhost/{app}", **properties})
        self.set_chunk_size(60_000)
        return answer

    def create_stream(self) -> int:
        self.msid = int(self.call("createStream").argument(0))
        return self.msid

    def publish(self, name: str, app: str = "live") -> Self:
        """Shake hands, connect and publish, up to Publish.Start."""
        self.connect(app)
        self.command("publish", name, "live", msid=self.create_stream())
        self.status("NetStream.Publish.Start")
        return self

    def play(self, name: str, app: str = "live") -> Self:
        """Shake hands, connect and play, up to Play.Start."""
        self.connect(app)
        self.command("play", name, -2000, msid=self.create_stream())
        self.status("NetStream.Play.Start")
        return self
