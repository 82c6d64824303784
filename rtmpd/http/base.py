"""What HTTP/1.1 and HTTP/2 need of their connection and of the server, and what the connection needs of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from rtmpd.net.tls_transport import TlsTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.events import Scalar
    from rtmpd.http.places import Places
    from rtmpd.http.routes import Routes
    from rtmpd.net.tls import Tls
    from rtmpd.net.transport import Transport
    from rtmpd.phases import CloseReason


class Host(Protocol):
    """The server, as its connections see it."""

    @property
    def routes(self) -> Routes:
        """The table of routes."""

    @property
    def places(self) -> Places:
        """The bounds of connections that wait, and of responses."""

    @property
    def allow_origin(self) -> tuple[str, ...]:
        """The origins whose pages may use routes with ``cors``."""

    @property
    def tls(self) -> Tls | None:
        """The certificates; None: the server has no listener for TLS."""

    def count(self, name: str) -> None:
        """Add to a counter."""


class Wire:
    """The server's end of one connection, below HTTP.

    Args:
        transport: The accepted connection.
        host: The server.
        number: Names the connection in the log; 0: it has no name.

    Attributes:
        opened_at: Monotonic, seconds.
        bytes_received: What the client has sent, of TLS decrypted.
        gave_way: It was closed while it was idle, for another one, and is no longer counted.
    """

    def __init__(self, transport: Transport, host: Host, number: int = 0) -> None:
        self.transport = transport
        self.host = host
        self.number = number
        self.opened_at = time.monotonic()
        self.bytes_received = 0
        self.gave_way = False

    @property
    def secure(self) -> bool:
        """Whether it is encrypted."""
        return isinstance(self.transport, TlsTransport)

    @property
    def peer(self) -> str:
        """The client's address and port."""
        return self.transport.peer

    def receive(self) -> bytes:
        """Wait for bytes of the client, and return them; as `Transport.recv`."""
        data = self.transport.recv()
        self.bytes_received += len(data)
        return data

    def close(self, reason: CloseReason) -> None:
        """Close the connection; its greenlet ends when it notices that. The first reason counts. Does not wait."""
        self.transport.close(reason)


class Conversation(Protocol):
    """What is spoken on a connection: HTTP/1.1 or HTTP/2.

    Attributes:
        version: Its name.
        agent: What the client calls itself, in its last request.
        outcome: What the events say about the last request, besides what they say of each connection.
        bytes_streamed: What was sent on the connection by other ways than `Transport.send_all`.
    """

    version: str
    agent: str
    outcome: Mapping[str, Scalar]
    bytes_streamed: int

    def serve(self, first: bytes) -> None:
        """Serve the connection until it ends.

        Args:
            first: Bytes of the client that have been read already.

        Raises:
            RemoteProtocolError: The client has violated the protocol.
            TransportClosed, DeadlineExceeded: The connection has ended, or must end.
        """

    def finish(self, reason: CloseReason) -> bool:
        """Tell the client that the connection ends. Does not wait.

        Returns:
            Whether the conversation closes the connection itself, in a moment.
        """

    def held_bytes(self) -> int:
        """Return the memory of its buffers, besides those of the transport."""
