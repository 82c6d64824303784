"""The server's side of a WebSocket (RFC 6455): its handshake, and what the client sends. No I/O: wsproto does the parsing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Ping, RejectConnection
from wsproto.events import Request as Handshake
from wsproto.utilities import LocalProtocolError
from wsproto.utilities import RemoteProtocolError as WsProtocolError

from rtmpd.errors import HttpError, RemoteProtocolError

if TYPE_CHECKING:
    from rtmpd.http.messages import Request


class Received(NamedTuple):
    """What a client has sent.

    Attributes:
        reply: What must be sent to it: answers to pings, and the last frame.
        over: It has closed the WebSocket.
    """

    reply: bytes
    over: bool


def is_upgrade(request: Request) -> bool:
    """Return whether a request asks for a WebSocket."""
    return request.headers.get("upgrade", "").strip().lower() == "websocket"


class WebSocket:
    """A WebSocket that a client has asked for.

    Args:
        request: The request.

    Raises:
        HttpError: Its handshake is invalid, or of another version.
    """

    def __init__(self, request: Request) -> None:
        self._connection = WSConnection(ConnectionType.SERVER)
        try:
            self._connection.receive_data(request.head)
            event = next(self._connection.events(), None)
        except WsProtocolError as error:
            hint = error.event_hint
            if isinstance(hint, RejectConnection) and hint.status_code == 426:
                raise HttpError(426, "Only version 13 of WebSocket is supported.", [("Sec-WebSocket-Version", "13")]) from None
            raise HttpError(400, "The handshake of the WebSocket is invalid.", closes=True) from None
        if not isinstance(event, Handshake):
            raise HttpError(400, "The handshake of the WebSocket is invalid.", closes=True)

    def accept(self) -> bytes:
        """Return the response that accepts it. Without extensions: compressed frames could not be shared."""
        return self._connection.send(AcceptConnection())

    def feed(self, data: bytes) -> Received:
        """Take bytes of the client; its messages are discarded.

        Raises:
            RemoteProtocolError: The client has violated the protocol.
        """
        replies = []
        try:
            self._connection.receive_data(data)
            for event in self._connection.events():
                if isinstance(event, Ping):
                    replies.append(self._connection.send(event.response()))
                elif isinstance(event, CloseConnection):
                    if self._connection.state is not ConnectionState.REMOTE_CLOSING:
                        # Not from the client: the parser has failed.
                        raise RemoteProtocolError(f"invalid WebSocket frame: {event.reason}")
                    replies.append(self._connection.send(event.response()))
                    return Received(b"".join(replies), True)
        except (WsProtocolError, LocalProtocolError) as error:
            raise RemoteProtocolError(f"invalid WebSocket frame: {error}") from None
        return Received(b"".join(replies), False)
