"""One HTTP connection, as the server, the hub and the log see it: its handshake, the version of HTTP, and its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import gevent

from rtmpd.errors import DeadlineExceeded, RemoteProtocolError, TlsError, TransportClosed
from rtmpd.http import limits
from rtmpd.http.base import Wire
from rtmpd.http.http1 import Http1
from rtmpd.http.http2 import Http2
from rtmpd.net.tls_transport import TlsTransport
from rtmpd.phases import NOT_CLOSED, CloseKind, CloseReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.events import Scalar
    from rtmpd.http.base import Conversation, Host
    from rtmpd.net.transport import Transport

log = logging.getLogger(__name__)

_DISPENSABILITY = 16


class HttpConnection(Wire):
    """The server's end of one connection, in a greenlet of its own.

    Args:
        transport, host, number: As for `Wire`.

    Attributes:
        close_reason: Why the connection ended; empty while it is open.
    """

    def __init__(self, transport: Transport, host: Host, number: int = 0) -> None:
        super().__init__(transport, host, number)
        self.close_reason: CloseReason = NOT_CLOSED
        self._conversation: Conversation = Http1(self)

    @property
    def version(self) -> str:
        """The version of HTTP, ``HTTP/1.1`` (also for 1.0) or ``HTTP/2``."""
        return self._conversation.version

    @property
    def agent(self) -> str:
        """What the client calls itself, in its last request."""
        return self._conversation.agent

    @property
    def outcome(self) -> Mapping[str, Scalar]:
        """What the events say about the last request, besides what they say of each connection."""
        return self._conversation.outcome

    # As the holder of memory, and for the hub --------------------------------------------------------------------------

    @property
    def ending(self) -> bool:
        """Whether it has been closed."""
        return bool(self.transport.close_reason)

    @property
    def dispensability(self) -> int:
        """How much rather than a publisher with as much memory it is closed when memory is short."""
        return _DISPENSABILITY

    def held_bytes(self) -> int:
        """Return the memory of its buffers."""
        return self._conversation.held_bytes() + self.transport.held_bytes

    @property
    def bytes_out(self) -> int:
        """Bytes that the client's socket has accepted."""
        return self.transport.bytes_sent + self._conversation.bytes_streamed

    def close(self, reason: CloseReason) -> None:
        """Close the connection; as `Wire.close`."""
        if self.transport.close_reason or not self._conversation.finish(reason):
            self.transport.close(reason)

    # Serving -----------------------------------------------------------------------------------------------------------

    def serve(self, first: bytes = b"") -> None:
        """Serve the connection until it ends. Raises nothing but what ends the greenlet.

        Args:
            first: Bytes of the client that have been read already.
        """
        host, transport = self.host, self.transport
        host.places.begin_reading(self)
        reason = CloseReason(CloseKind.INTERNAL, "internal error")
        try:
            if isinstance(transport, TlsTransport):
                assert host.tls is not None
                host.tls.accept(transport, limits.REQUEST_S, first, web=True)
                first = b""
                if transport.application_protocol == "h2":
                    self._conversation = Http2(self)
            self.bytes_received += len(first)
            self._conversation.serve(first)
            reason = CloseReason(CloseKind.COMMAND, "the response was sent")
        except RemoteProtocolError as error:
            host.count("http_bad_requests")
            log.warning("http %s: bad request: %s", self.peer, error)
            reason = CloseReason(CloseKind.PROTOCOL, "HTTP was violated", detail=str(error))
            transport.linger(limits.LINGER_S)
        except TlsError as error:
            host.count("tls_failures")
            log.warning("http %s: TLS failed: %s", self.peer, error)
            reason = CloseReason(CloseKind.TLS, "TLS failed")
        except TransportClosed as error:
            log.debug("http %s: %s", self.peer, error)
            reason = CloseReason(CloseKind.PEER_LEFT, str(error))
        except DeadlineExceeded as error:
            log.debug("http %s: %s", self.peer, error)
            reason = CloseReason(CloseKind.DEADLINE, str(error))
        except gevent.GreenletExit:
            # The time limit of a stop is over.
            reason = CloseReason(CloseKind.SHUTDOWN, "the server is stopping")
        finally:
            host.places.end(self)
            self.close_reason = transport.close_reason or reason
            transport.close(self.close_reason)
