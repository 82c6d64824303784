"""An RTMP client that publishes or plays a stream. docs/client.rst has examples.

Each call blocks the calling greenlet only. Nothing is monkey patched, so programs without gevent can use it, too, with one
client per thread.
"""

from __future__ import annotations

import os
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

import gevent
from gevent.event import AsyncResult
from gevent.lock import BoundedSemaphore
from gevent.socket import AF_INET, AF_INET6, SOCK_STREAM, getaddrinfo, socket

from rtmpd.errors import DeadlineExceeded, Refused, RemoteProtocolError, RtmpdError, TransportClosed
from rtmpd.net.tls import client_context
from rtmpd.net.tls_transport import TlsTransport
from rtmpd.net.transport import Transport, deadline, format_address
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.protocol import amf0
from rtmpd.protocol.adobe_auth import Login
from rtmpd.protocol.command import Command, decode_command
from rtmpd.protocol.endpoint import DEFAULT_WINDOW_BYTES, Endpoint
from rtmpd.protocol.handshake import ClientHandshake
from rtmpd.protocol.message import (
    COMMAND_TYPES,
    CONTROL_TYPES,
    CSID_AUDIO,
    CSID_COMMAND,
    CSID_DATA,
    CSID_VIDEO,
    MessageType,
    UserControlType,
)
from rtmpd.protocol.naming import split_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from rtmpd.net.resolver import Address
    from rtmpd.protocol.chunk import RawMessage

__all__ = ["Client", "RtmpUrl"]

DEFAULT_PORT = 1935
TLS_PORT = 443

_ENCODER = "FMLE/3.0 (compatible; rtmpd)"
_PLAYER = "LNX 9,0,124,2"

_MEDIA_CSIDS = {
    int(MessageType.AUDIO): CSID_AUDIO,
    int(MessageType.VIDEO): CSID_VIDEO,
    int(MessageType.DATA_AMF0): CSID_DATA,
}


@dataclass(frozen=True, slots=True)
class RtmpUrl:
    """A parsed RTMP URL: ``rtmp://[user:password@]host[:port]/app/name``, or with ``rtmps://``.

    The application is the path without its last part, which is the name. A double slash ends the application sooner, for a
    name with slashes: ``rtmp://host/app//part/of/name``. The query belongs to the name.
    """

    host: str
    port: int
    app: str
    name: str
    user: str = ""
    password: str = field(default="", repr=False)
    scheme: str = "rtmp"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse a URL.

        Raises:
            ValueError: The text is not an RTMP URL. The message has it without secrets.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            # An invalid bracket or port.
            host = None
        if not host or parts.scheme not in ("rtmp", "rtmps"):
            raise ValueError(f"expected rtmp[s]://host[:port]/app/name, found {_without_secrets(url)!r}")
        app, name = split_path(parts.path)
        if parts.query:
            name += "?" + parts.query
        if parts.fragment:
            # RTMP URLs have no fragments: the text is part of the name.
            name += "#" + parts.fragment
        port = port or (TLS_PORT if parts.scheme == "rtmps" else DEFAULT_PORT)
        return cls(host, port, app, name, unquote(parts.username or ""), unquote(parts.password or ""), parts.scheme)

    @property
    def tc_url(self) -> str:
        """The URL of the application, for the connect command."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/{self.app}"


def _without_secrets(url: str) -> str:
    """Return a URL without its query, user and password."""
    head = url.partition("?")[0]
    scheme, separator, rest = head.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


class Client:
    """A connection to an RTMP server.

    It is a context manager; without one, call `close`. Only one greenlet may use a client at a time.

    Args:
        url: ``rtmp[s]://[user:password@]host[:port]/app/name``, or a parsed URL. With a user, the client logs in on demand.
        timeout_s: The time limit for connecting, for each answer, and for each send.
        handshake: ``digest`` or ``plain``. With ``digest``, the plain handshake is used if the server answers with it.
        chunk_size: The outbound chunk size, bytes.
        window_ack_size: The number of bytes after which the server must acknowledge.
        connect_properties: Members of the connect command's object that are added or replaced.
        vet: Called with the address of the server before anything is sent. Its exceptions leave `connect`.
        resolve: Called with host, port and ``timeout_s``; returns the socket addresses to try in turn, or raises OSError.
            None: the system's resolver, in a thread of gevent's pool.
        tls: For rtmps://: a context, or a file with the certificates (PEM) of the trusted authorities. True: the system's
            authorities. False: no verification, so that the connection can be intercepted.

    Attributes:
        address: The socket address of the server; None before the first connection.
        endpoint: The state of the protocol, such as ``bytes_received`` and ``bytes_acknowledged``.
        message_stream_id: The message stream of the publish or play; 0 before.
        connect_result: The command object and the info object of the server's answer to connect.
        handshake_kind: The handshake that was used, ``plain`` or ``digest``.
    """

    def __init__(
        self,
        url: str | RtmpUrl,
        *,
        timeout_s: float = 10.0,
        handshake: str = "digest",
        chunk_size: int = 60_000,
        window_ack_size: int = DEFAULT_WINDOW_BYTES,
        connect_properties: dict[str, Any] | None = None,
        vet: Callable[[Address], None] | None = None,
        resolve: Callable[[str, int, float], Sequence[Address]] | None = None,
        tls: ssl.SSLContext | str | bool = True,
    ) -> None:
        self.url = RtmpUrl.parse(url) if isinstance(url, str) else url
        self.timeout_s = timeout_s
        self.address: Address | None = None
        self.endpoint = Endpoint(message_limit_bytes=0xFFFFFF)
        self.message_stream_id = 0
        self.connect_result: tuple[Any, Any] = (None, None)
        self.handshake_kind = ""
        self._scheme = {"digest": 1, "plain": None}[handshake]
        self._chunk_size = chunk_size
        self._window_ack_size = window_ack_size
        self._properties = connect_properties or {}
        self._plays = False
        self._vet = vet
        self._resolve = resolve or _system_addresses
        self._tls = tls
        self._transport: Transport | None = None
        self._transaction_id = 0
        self._inbox: list[RawMessage] = []
        self._drain: gevent.Greenlet[[], None] | None = None
        self._ended: RtmpdError | None = None
        self._published = ""
        self._writing = BoundedSemaphore()
        self._waiters: list[tuple[Callable[[Command], bool], AsyncResult[Command]]] = []
        self._write: Callable[[bytes], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # Connecting --------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect, do the handshake and send the connect command; repeat it with the login if the server demands one.

        Raises:
            TransportClosed: The server can't be reached, or has closed the connection.
            DeadlineExceeded: All of it, with looking up the name, took longer than ``timeout_s``.
            TlsError: The server's certificate can't be verified, or TLS failed otherwise.
            OSError: The file of ``tls`` can't be used.
            RemoteProtocolError: The server does not speak RTMP.
            Refused: The server refuses the application or the login.
        """
        login = Login(self.url.user, self.url.password) if self.url.user else None
        query = ""
        ends_at_s = time.monotonic() + self.timeout_s
        with deadline(self.timeout_s, f"looking up {self.url.host}"):
            try:
                addresses = self._resolve(self.url.host, self.url.port, self.timeout_s)
            except TimeoutError:
                raise DeadlineExceeded(f"looking up {self.url.host}", self.timeout_s) from None
            except OSError as error:
                raise self._unreachable(error) from None
        left_s = max(0.0, ends_at_s - time.monotonic())
        with gevent.Timeout(left_s, DeadlineExceeded("connecting", self.timeout_s)):
            while True:
                try:
                    self._connect(addresses, ends_at_s, query)
                except Refused as refused:
                    query = login.answer(refused.description, os.urandom(4)) if login is not None else ""
                    if not query or self.address is None:
                        raise
                    # The answer is to a challenge of this very server.
                    addresses = (self.address,)
                    self._disconnect()
                else:
                    return

    def _disconnect(self) -> None:
        """Reset the client to its initial state."""
        self.close()
        self.endpoint = Endpoint(message_limit_bytes=0xFFFFFF)
        self._transaction_id = 0
        self._inbox = []

    def _unreachable(self, error: OSError) -> TransportClosed:
        where = format_address((self.url.host, self.url.port))
        return TransportClosed(f"can't connect to {where}: {error.strerror or error}")

    def _open(self, addresses: Sequence[Address], ends_at_s: float) -> socket:
        """Return a connection to the first address that answers. Each attempt has its share of the time, the last all of it."""
        failure = OSError("the name has no address")
        for left, address in zip(range(len(addresses) - 1, -1, -1), addresses, strict=True):
            sock = socket(AF_INET6 if ":" in address[0] else AF_INET, SOCK_STREAM)
            connected = False
            try:
                # One share more than attempts: the handshake takes time, too.
                sock.settimeout(max(0.001, (ends_at_s - time.monotonic()) / (left + 2)) if left else None)
                sock.connect(address)
                sock.settimeout(None)
                connected = True
            except TimeoutError:
                failure = TimeoutError(f"{address[0]} does not answer")
            except OSError as error:
                failure = error
            finally:
                if not connected:
                    sock.close()
            if connected:
                self.address = address
                return sock
        raise failure

    def _connect(self, addresses: Sequence[Address], ends_at_s: float, query: str) -> None:
        """Connect once, with the query of a login appended to the application."""
        try:
            sock = self._open(addresses, ends_at_s)
            address = sock.getpeername()
        except OSError as error:
            raise self._unreachable(error) from None
        secure = self.url.scheme == "rtmps"
        self._transport = (TlsTransport if secure else Transport)(sock, format_address(address))
        if self._vet is not None:
            self._vet(address)
        if isinstance(self._transport, TlsTransport):
            self._transport.secure(self._tls_context(), self.timeout_s, host=self.url.host)
        self._handshake()
        self.endpoint.send_chunk_size(self._chunk_size)
        self.endpoint.send_window_ack_size(self._window_ack_size)
        properties = {
            "app": self.url.app,
            # Servers recognize encoders by these two, and demand a password from them.
            **({} if self._plays else {"type": "nonprivate"}),
            "flashVer": _PLAYER if self._plays else _ENCODER,
            "tcUrl": self.url.tc_url,
            "objectEncoding": 0,
            **self._properties,
        }
        if query:
            properties |= {name: f"{properties[name]}?{query}" for name in ("app", "tcUrl")}
        answer = self._call("connect", properties)
        self.connect_result = (answer.command_object, answer.argument(0))

    def _tls_context(self) -> ssl.SSLContext:
        if not isinstance(self._tls, ssl.SSLContext):
            ca = self._tls if isinstance(self._tls, str) else ""
            self._tls = client_context(ca, verify=bool(self._tls))
        return self._tls

    def _handshake(self) -> None:
        transport = self._connected()
        handshake = ClientHandshake(os.urandom, self._scheme)
        transport.send_all(handshake.hello(), self.timeout_s)
        while not handshake.done:
            reply = handshake.feed(transport.recv())
            if reply:
                transport.send_all(reply, self.timeout_s)
        self.handshake_kind = handshake.kind
        self._inbox += self.endpoint.receive(handshake.remainder)

    @property
    def transport(self) -> Transport:
        """The transport of the connection.

        Raises:
            TransportClosed: The client is not connected.
        """
        return self._connected()

    def _connected(self) -> Transport:
        if self._transport is None:
            raise TransportClosed("not connected")
        return self._transport

    # Commands ----------------------------------------------------------------------------------------------------------

    def call(self, name: str, command_object: Any = None, *arguments: Any) -> Command:
        """Send a command and wait for its ``_result``.

        Raises:
            Refused: The answer was ``_error``.
            DeadlineExceeded: There was no answer within ``timeout_s``.
            TransportClosed: The connection has ended.
        """
        with deadline(self.timeout_s, f"the answer to {name}"):
            return self._call(name, command_object, *arguments)

    def _call(self, name: str, command_object: Any = None, *arguments: Any, message_stream_id: int = 0) -> Command:
        number = self._send_command(name, command_object, *arguments, message_stream_id=message_stream_id)
        answer = self._wait_for(lambda c: c.name in ("_result", "_error") and c.transaction_id == number)
        if answer.name == "_error":
            raise _refused(answer.argument(0), name)
        return answer

    def _send_command(self, name: str, command_object: Any, *arguments: Any, message_stream_id: int = 0) -> int:
        self._transaction_id += 1
        self.endpoint.send_command(
            name,
            self._transaction_id,
            command_object,
            *arguments,
            message_stream_id=message_stream_id,
            csid=CSID_DATA if message_stream_id else CSID_COMMAND,
        )
        self._flush()
        return self._transaction_id

    def _wait_for(self, wanted: Callable[[Command], bool]) -> Command:
        """Return the first command that is *wanted*. Control messages before it are processed, other messages dropped."""
        if self._drain is not None:
            # The draining greenlet reads, and only one may.
            if self._ended is not None:
                raise self._ended
            answer: AsyncResult[Command] = AsyncResult()
            waiter = (wanted, answer)
            self._waiters.append(waiter)
            try:
                found = answer.get()
                assert found is not None
                return found
            finally:
                self._waiters.remove(waiter)
        for item in self._receive():
            if isinstance(item, Command) and wanted(item):
                return item
        raise AssertionError("unreachable: _receive ends by an exception")

    def _wait_for_status(self, codes: tuple[str, ...], what: str) -> Command:
        found = self._wait_for(
            lambda c: (
                c.name == "onStatus" and (_text(c.argument(0), "code") in codes or _text(c.argument(0), "level") == "error")
            )
        )
        if _text(found.argument(0), "code") not in codes:
            raise _refused(found.argument(0), what)
        return found

    # Publishing --------------------------------------------------------------------------------------------------------

    def publish(self, name: str | None = None, kind: str = "live", *, drain: bool = True) -> None:
        """Start to publish. Connects first if necessary, and may raise what `connect` raises.

        Args:
            name: The stream's name, possibly with a query; that of the URL by default.
            kind: The type in the publish command.
            drain: Read the server's messages in a greenlet of the client. Without, the caller must iterate over `messages` all
                the time, in a separate greenlet.

        Raises:
            Refused: The server refuses the publish; ``code`` is its status code.
        """
        if self._transport is None:
            self.connect()
        name = self._published = self.url.name if name is None else name
        with deadline(self.timeout_s, "publishing"):
            self._send_command("releaseStream", None, name)
            self._send_command("FCPublish", None, name)
            self.message_stream_id = _stream_id(self._call("createStream"))
            self._send_command("publish", None, name, kind, message_stream_id=self.message_stream_id)
            self._wait_for_status(("NetStream.Publish.Start",), "publish")
        if drain and self._drain is None:
            # The server sends acknowledgements and pings all the time. Unread, they fill the socket's buffers.
            self._drain = gevent.spawn(self._drain_forever)

    def _drain_forever(self) -> None:
        try:
            for item in self._receive():
                if not isinstance(item, Command):
                    continue
                answered = [answer for wanted, answer in self._waiters if not answer.ready() and wanted(item)]
                if answered:
                    answered[0].set(item)
                elif item.name == "onStatus" and _text(item.argument(0), "level") == "error":
                    raise _refused(item.argument(0), "publish")
        except RtmpdError as error:
            self._ended = error
            for _, answer in self._waiters:
                if not answer.ready():
                    answer.set_exception(error)

    def send(self, type_id: int, timestamp_ms: int, payload: bytes) -> None:
        """Send an audio (8), video (9) or data (18) message of the publish.

        Args:
            type_id: The message type.
            timestamp_ms: The timestamp; used modulo 2**32.
            payload: The payload: that of an FLV tag.

        Raises:
            TransportClosed, RemoteProtocolError, Refused: The publish has ended.
            DeadlineExceeded: The server did not read fast enough for ``timeout_s``.
        """
        if self._ended is not None:
            raise self._ended
        self.endpoint.send_message(_MEDIA_CSIDS[type_id], type_id, self.message_stream_id, timestamp_ms, payload)
        self._flush()

    def send_video(self, timestamp_ms: int, payload: bytes) -> None:
        """Send a video message, as `send`."""
        self.send(MessageType.VIDEO, timestamp_ms, payload)

    def send_audio(self, timestamp_ms: int, payload: bytes) -> None:
        """Send an audio message, as `send`."""
        self.send(MessageType.AUDIO, timestamp_ms, payload)

    def send_metadata(self, metadata: dict[str, Any], timestamp_ms: int = 0) -> None:
        """Send ``onMetaData`` with ``@setDataFrame``, so that the server keeps it for late players."""
        payload = amf0.encode("@setDataFrame", "onMetaData", metadata)
        self.send(MessageType.DATA_AMF0, timestamp_ms, payload)

    def unpublish(self) -> None:
        """End the publish as encoders do: send FCUnpublish, then deleteStream."""
        self._send_command("FCUnpublish", None, self._published)
        self._send_command("deleteStream", None, self.message_stream_id)

    # Playing -----------------------------------------------------------------------------------------------------------

    def play(self, name: str | None = None, start_s: float = -2) -> None:
        """Start to play; the caller then iterates over `messages`. Connects first if necessary, and may raise what it raises.

        Args:
            name: The stream's name; that of the URL by default.
            start_s: -2 for live or recorded, -1 for live only.

        Raises:
            Refused: The server refuses the play; ``code`` is its status code.
        """
        if self._transport is None:
            self._plays = True
            self.connect()
        name = self.url.name if name is None else name
        with deadline(self.timeout_s, "playing"):
            self.message_stream_id = _stream_id(self._call("createStream"))
            self._send_command(
                "play", None, name, start_s * 1000 if start_s < 0 else start_s, message_stream_id=self.message_stream_id
            )
            self.endpoint.send_user_control(UserControlType.SET_BUFFER_LENGTH, self.message_stream_id, 3000)
            self._flush()
            self._wait_for_status(("NetStream.Play.Start",), "play")

    def messages(self) -> Iterator[RawMessage | Command]:
        """Yield the server's messages until an exception: audio, video and data messages unchanged, commands decoded.

        Raises:
            TransportClosed: The connection has ended.
            RemoteProtocolError: The server violated the protocol.
        """
        yield from self._receive()

    def command(self, name: str, *arguments: Any) -> None:
        """Send a command on the message stream, such as pause or closeStream, without waiting for an answer."""
        self._send_command(name, None, *arguments, message_stream_id=self.message_stream_id)

    # Reading and writing -----------------------------------------------------------------------------------------------

    def _receive(self) -> Iterator[RawMessage | Command]:
        transport = self._connected()
        while True:
            while self._inbox:
                message = self._inbox.pop(0)
                type_id = message.type_id
                if type_id in COMMAND_TYPES:
                    command = decode_command(message)
                    if command.name == "close":
                        raise TransportClosed("the server sent close")
                    yield command
                elif type_id in CONTROL_TYPES:
                    event = self.endpoint.control(message)
                    if event is not None:
                        yield message
                else:
                    yield message
            self._flush()
            self._inbox = self.endpoint.receive(transport.recv())

    def delegate_writes(self, write: Callable[[bytes], None] | None) -> None:
        """Pass the client's own messages to *write* from now on, because the caller writes to the transport.

        With None the client writes to the transport itself again.
        """
        self._write = write

    def _flush(self) -> None:
        # During a publish, the caller and the draining greenlet both write. The lock keeps the order of encoding.
        if self.endpoint.outgoing and self._write is not None:
            self._write(self.endpoint.take_outgoing())
        elif self.endpoint.outgoing:
            with self._writing:
                self._connected().send_all(self.endpoint.take_outgoing(), self.timeout_s)

    def close(self) -> None:
        """Close the connection, if there is one."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.close(CloseReason(CloseKind.COMMAND, "closed by the client"))
        if self._drain is not None:
            self._drain.join()
            self._drain = None
        transport.dispose()


def _system_addresses(host: str, port: int, _limit_s: float) -> list[Address]:
    try:
        return [found[4] for found in getaddrinfo(host, port, type=SOCK_STREAM)]
    except UnicodeError:
        raise OSError("not a valid host name") from None


def _text(info: Any, name: str) -> str:
    """Return a text of an info object; empty if it is missing."""
    text = info.get(name) if isinstance(info, dict) else None
    return text if isinstance(text, str) else ""


def _refused(info: Any, what: str) -> Refused:
    return Refused(_text(info, "code") or f"{what} failed", _text(info, "description"))


def _stream_id(answer: Command) -> int:
    number = answer.argument(0)
    if not isinstance(number, (int, float)):
        raise RemoteProtocolError(f"answer to createStream: expected a number, found {type(number).__name__}")
    return int(number)
