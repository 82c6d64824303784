"""One HTTP connection: reads requests, each with a deadline, and sends responses, in a greenlet of its own."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol

import gevent
import h11

from rtmpd.errors import DeadlineExceeded, HttpError, TlsError, TransportClosed
from rtmpd.http.messages import RequestHead, Response, error_response, response_head
from rtmpd.net.tls_transport import TlsTransport
from rtmpd.net.transport import deadline
from rtmpd.phases import NOT_CLOSED, CloseKind, CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rtmpd.events import Scalar
    from rtmpd.http.messages import Request
    from rtmpd.http.places import Places
    from rtmpd.http.routes import Route, Routes
    from rtmpd.net.tls import Tls
    from rtmpd.net.transport import Transport

log = logging.getLogger(__name__)

REQUEST_S = 10.0
"""The longest time for a whole request, from its first byte on, or from the beginning of the connection."""

IDLE_S = 30.0
"""How long a connection is kept for a further request."""

WRITE_S = 10.0
"""The longest time to send a response, or a mebibyte of a long one."""

BODY_LIMIT_BYTES = 64 << 10
"""The largest body of a request."""

_REQUESTS_LIMIT = 1000
"""The requests of one connection; then it is closed."""

_SMALL_BYTES = 16 << 10
_PIECE_BYTES = 1 << 20
_LINGER_S = 1.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_DISPENSABILITY = 16


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


class HttpConnection:
    """The server's end of one connection.

    Args:
        transport: The accepted connection.
        host: The server.
        number: Names the connection in the log; 0: it has no name.

    Attributes:
        opened_at: Monotonic, seconds.
        bytes_received: What the client has sent, of TLS decrypted.
        agent: What the client calls itself, in its last request.
        outcome: What the events say about the last request, besides what they say of each connection.
        gave_way: It was closed while it was idle, for another one, and is no longer counted.
        extra_held: Returns the memory of what a handler holds for the client.
        close_reason: Why the connection ended; empty while it is open.
    """

    def __init__(self, transport: Transport, host: Host, number: int = 0) -> None:
        self.transport = transport
        self.number = number
        self.opened_at = time.monotonic()
        self.bytes_received = 0
        self.bytes_streamed = 0
        self.agent = ""
        self.outcome: Mapping[str, Scalar] = {}
        self.extra_held: Callable[[], int] | None = None
        self.close_reason: CloseReason = NOT_CLOSED
        self.gave_way = False
        self._host = host
        self._head = RequestHead()
        self._requests = 0

    @property
    def secure(self) -> bool:
        """Whether it is encrypted."""
        return isinstance(self.transport, TlsTransport)

    # As the holder of memory, and for the hub --------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """The client's address and port."""
        return self.transport.peer

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
        more = self.extra_held() if self.extra_held is not None else 0
        return len(self._head.data) + self.transport.held_bytes + more

    @property
    def bytes_out(self) -> int:
        """Bytes that the client's socket has accepted."""
        return self.transport.bytes_sent + self.bytes_streamed

    def close(self, reason: CloseReason) -> None:
        """Close the connection; its greenlet ends when it notices that. The first reason counts. Does not wait."""
        self.transport.close(reason)

    # Serving -----------------------------------------------------------------------------------------------------------

    def serve(self, first: bytes = b"") -> None:
        """Serve the connection until it ends. Raises nothing but what ends the greenlet.

        Args:
            first: Bytes of the client that have been read already.
        """
        host, transport = self._host, self.transport
        places = host.places
        places.begin_reading(self)
        reason = CloseReason(CloseKind.INTERNAL, "internal error")
        try:
            if isinstance(transport, TlsTransport):
                assert host.tls is not None
                host.tls.accept(transport, REQUEST_S, first)
                first = b""
            self.bytes_received += len(first)
            while self._serve_one(first):
                first = b""
            reason = CloseReason(CloseKind.COMMAND, "the response was sent")
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
            places.end(self)
            self.close_reason = transport.close_reason or reason
            transport.close(self.close_reason)

    def _serve_one(self, first: bytes) -> bool:
        """Serve one request; return whether the connection may serve another one."""
        host = self._host
        self._requests += 1
        self.outcome = {}
        if self._requests > 1 and not self._head.data:
            try:
                with deadline(IDLE_S, "waiting for a further request"):
                    first = self._receive()
            except DeadlineExceeded:
                return False
            host.places.begin_reading(self)
        before = self.bytes_received
        begun = bool(first or self._head.data)
        try:
            with deadline(REQUEST_S, "the request"):
                size = self._head.feed(first)
                while not size:
                    size = self._head.feed(self._receive())
                request, parser = self._head.parse(size, self.peer, secure=self.secure)
                self.agent = request.headers.get("user-agent", "")[:256]
                problem: HttpError | None = None
                route = None
                try:
                    route, request = host.routes.find(request)
                except HttpError as error:
                    problem = error
                request, complete = self._read_body(request, parser, wanted=route is not None and route.takes_body)
        except DeadlineExceeded:
            self._give_up(begun=begun or self.bytes_received > before)
            return False
        except HttpError as error:
            host.count("http_bad_requests")
            log.warning("http %s: bad request: %s", self.peer, error.text)
            self._respond(error_response(error, None), None, keep=False)
            self.transport.linger(_LINGER_S)
            return False
        host.places.end(self)
        keep = complete and request.keep_alive and self._requests < _REQUESTS_LIMIT
        if problem is not None or route is None:
            keep = self._respond(error_response(problem or HttpError(404, ""), request), request, keep=keep)
        else:
            keep = self._handle(route, request, keep=keep)
        if keep:
            host.places.begin_idle(self)
        elif not complete and not self.ending:
            # The client may still send, and would not read the response of a connection that is reset.
            self.transport.linger(_LINGER_S)
        return keep

    def _give_up(self, *, begun: bool) -> None:
        """End a connection whose request has not come in time."""
        if not begun:
            # Browsers and monitors connect before they have a request.
            log.debug("http %s: no request within %g s", self.peer, REQUEST_S)
            return
        self._host.count("http_deadlines")
        log.warning("http %s: request not complete within %g s, connection closed", self.peer, REQUEST_S)
        self._respond(error_response(HttpError(408, "The request was not complete in time."), None), None, keep=False)

    # Reading -----------------------------------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        data = self.transport.recv()
        self.bytes_received += len(data)
        return data

    def _read_body(self, request: Request, parser: h11.Connection, *, wanted: bool) -> tuple[Request, bool]:
        """Read the body, if it is wanted; return the request with it, and whether the request has been read to its end."""
        parts: list[bytes] = []
        held = 0
        rest = bytes(self._head.data)
        try:
            while True:
                event = parser.next_event()
                if isinstance(event, h11.EndOfMessage):
                    self._head = RequestHead()
                    self._head.data += parser.trailing_data[0] + rest
                    return replace(request, body=b"".join(parts)), True
                if not wanted:
                    return request, False
                if isinstance(event, h11.Data):
                    parts.append(bytes(event.data))
                    held += len(event.data)
                    if held > BODY_LIMIT_BYTES:
                        raise HttpError(413, f"The body is longer than {BODY_LIMIT_BYTES} bytes.")
                elif parser.they_are_waiting_for_100_continue and not rest:
                    self.transport.send_all(_CONTINUE, WRITE_S)
                    parser.send(h11.InformationalResponse(status_code=100, headers=[]))
                    parser.receive_data(self._receive())
                else:
                    parser.receive_data(rest or self._receive())
                    rest = b""
        except h11.RemoteProtocolError:
            raise HttpError(400, "The body of the request is malformed.") from None

    def take_unread(self) -> bytes:
        """Return what the client has sent behind its request, and forget it."""
        found = bytes(self._head.data)
        self._head = RequestHead()
        return found

    # Responding --------------------------------------------------------------------------------------------------------

    def _handle(self, route: Route, request: Request, *, keep: bool) -> bool:
        """Let a handler respond; return whether the connection may serve another request."""
        if request.method == "OPTIONS" and "OPTIONS" not in route.methods:
            headers = [("Allow", ", ".join(route.allowed)), *self._preflight(route, request)]
            return self._respond(Response(204, headers=headers), request, keep=keep, route=route)
        places = self._host.places
        if not route.long:
            places.take(self)
        try:
            try:
                response = route.handler(request, self)
            except HttpError as error:
                response = error_response(error, request)
                keep = keep and not error.closes
            except (TransportClosed, DeadlineExceeded):
                raise
            except Exception:
                self._host.count("internal_errors")
                log.exception("internal error: a request for %.80r failed", request.path)
                response = error_response(HttpError(500, "Internal error."), request)
            return response is not None and self._respond(response, request, keep=keep, route=route)
        finally:
            if not route.long:
                places.leave()

    def _respond(self, response: Response, request: Request | None, *, keep: bool, route: Route | None = None) -> bool:
        """Send a response; return *keep*."""
        begun = time.monotonic()
        headers = [*self._common_headers(), *self._cors(route, request), *response.headers]
        headers.append(("Connection", "keep-alive" if keep else "close"))
        without_body = response.status in (204, 304)
        if not without_body:
            headers.append(("Content-Type", response.content_type))
            if response.sized:
                headers.append(("Content-Length", str(response.size)))
        if without_body or (request is not None and request.method == "HEAD"):
            response = replace(response, body=b"", pieces=())
        body = response.body
        self.outcome = {"served": response.status < 400, **self.outcome}
        head = response_head(response.status, headers)
        # A small body leaves with its head, in one packet; a large one is not copied.
        parts = [head + body] if len(body) <= _SMALL_BYTES else [head, body]
        places = self._host.places
        if route is None or not route.long:
            places.begin_sending(self)
        try:
            for part in (*parts, *response.pieces):
                for begin in range(0, len(part), _PIECE_BYTES):
                    self.transport.send_all(memoryview(part)[begin : begin + _PIECE_BYTES], WRITE_S)
        finally:
            places.end_sending(self)
        if request is not None:
            spent_ms = (time.monotonic() - begun) * 1000
            log.debug(
                "http %s: %.10s %.80r: %d, %d bytes, %.1f ms", self.peer, request.method, request.path, response.status,
                response.size, spent_ms,
            )  # fmt: skip
        return keep

    def begin_stream(self, request: Request, more_headers: Sequence[tuple[str, str]], content_type: str) -> None:
        """Send the head of a response whose body has no known length, and ends with the connection.

        It has no transfer coding: the body consists of bytes that all clients share.

        Args:
            request: The request.
            more_headers: Further headers.
            content_type: The media type of the body.
        """
        headers = [*self._common_headers(), *self._cors_headers(request), *more_headers]
        headers += [("Connection", "close"), ("Content-Type", content_type)]
        self.transport.send_all(response_head(200, headers), WRITE_S)

    @staticmethod
    def _common_headers() -> list[tuple[str, str]]:
        return [("Date", formatdate(usegmt=True)), ("Server", "rtmpd"), ("X-Content-Type-Options", "nosniff")]

    def _cors(self, route: Route | None, request: Request | None) -> list[tuple[str, str]]:
        return self._cors_headers(request) if route is not None and route.cors and request is not None else []

    def allows_origin(self, request: Request) -> bool:
        """Whether a page that makes a request may use the response; requests that no page makes have no origin."""
        origin, allowed = request.headers.get("origin", ""), self._host.allow_origin
        own = origin.partition("://")[2] == request.headers.get("host", "")
        return not origin or own or "*" in allowed or origin in allowed

    def _cors_headers(self, request: Request) -> list[tuple[str, str]]:
        """Return the headers that let a page of another origin use a response (Fetch, section 3.3)."""
        origin, allowed = request.headers.get("origin", ""), self._host.allow_origin
        if "*" in allowed:
            return [("Access-Control-Allow-Origin", "*")]
        vary = [("Vary", "Origin")] if allowed else []
        if origin and origin in allowed:
            return [("Access-Control-Allow-Origin", origin), *vary]
        return vary

    @staticmethod
    def _preflight(route: Route, request: Request) -> list[tuple[str, str]]:
        if not route.cors or "access-control-request-method" not in request.headers:
            return []
        return [
            ("Access-Control-Allow-Methods", ", ".join(route.allowed)),
            ("Access-Control-Allow-Headers", "Authorization, Content-Type, Range"),
            ("Access-Control-Max-Age", "86400"),
        ]
