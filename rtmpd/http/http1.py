"""HTTP/1.1 on one connection: requests one after the other, each with a deadline."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import h11

from rtmpd.errors import DeadlineExceeded, HttpError
from rtmpd.http import limits
from rtmpd.http.messages import RequestHead, response_head
from rtmpd.http.responder import Responder
from rtmpd.net.transport import deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rtmpd.events import Scalar
    from rtmpd.http.base import Wire
    from rtmpd.http.messages import Request, Response
    from rtmpd.phases import CloseReason

log = logging.getLogger(__name__)

_SMALL_BYTES = 64 << 10
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Http1:
    """A conversation in HTTP/1.1 or HTTP/1.0; for handlers, the exchange of the present request.

    Args:
        wire: The connection.

    Attributes:
        transport: Its transport.
        number: Names it in the log; 0: it has no name.
        version, agent, outcome, bytes_streamed: As of `rtmpd.http.base.Conversation`.
        extra_held: Returns the memory of what a handler holds for the client.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._host = wire.host
        self._responder = Responder(wire.host)
        self.transport = wire.transport
        self.number = wire.number
        self.version = "HTTP/1.1"
        self.bytes_streamed = 0
        self.agent = ""
        self.outcome: Mapping[str, Scalar] = {}
        self.extra_held: Callable[[], int] | None = None
        self._head = RequestHead()
        self._requests = 0
        self._may_keep = self._keep = False

    def held_bytes(self) -> int:
        """Return the memory of what the client has sent, and of what a handler holds."""
        return len(self._head.data) + (self.extra_held() if self.extra_held is not None else 0)

    def finish(self, reason: CloseReason) -> bool:
        """Return False: there is nothing to tell the client; as `rtmpd.http.base.Conversation.finish`."""
        return False

    def serve(self, first: bytes) -> None:
        """Serve requests until the connection must end; as `rtmpd.http.base.Conversation.serve`."""
        while self._serve_one(first):
            first = b""

    def _serve_one(self, first: bytes) -> bool:
        """Serve one request; return whether the connection may serve another one."""
        places, wire = self._host.places, self._wire
        self._requests += 1
        if self._requests > 1 and not self._head.data:
            try:
                with deadline(limits.IDLE_S, "waiting for a further request"):
                    first = wire.receive()
            except DeadlineExceeded:
                return False
            places.begin_reading(wire)
        # Not earlier: a connection that ends without a further request has served the last one.
        self.outcome = {}
        before = wire.bytes_received
        begun = bool(first or self._head.data)
        self._may_keep = self._keep = False
        try:
            with deadline(limits.REQUEST_S, "the request"):
                size = self._head.feed(first)
                while not size:
                    size = self._head.feed(wire.receive())
                request, parser = self._head.parse(size, wire.peer, secure=wire.secure)
                self.agent = request.headers.get("user-agent", "")[:256]
                request, found = self._responder.find(request)
                wanted = not isinstance(found, HttpError) and found.takes_body
                complete = True
                if parser is not None:
                    request, complete = self._read_body(request, parser, wanted=wanted)
        except DeadlineExceeded:
            self._give_up(begun=begun or wire.bytes_received > before)
            return False
        except HttpError as error:
            self._host.count("http_bad_requests")
            log.warning("http %s: bad request: %s", wire.peer, error.text)
            self._responder.refuse(error, None, self)
            self.transport.linger(limits.LINGER_S)
            return False
        places.end(wire)
        self._may_keep = complete and request.keep_alive and self._requests < limits.REQUESTS_LIMIT
        self._responder.serve(request, found, self)
        if self._keep:
            places.begin_idle(wire)
        elif not complete and not self.close_reason:
            # The client may still send, and would not read the response of a connection that is reset.
            self.transport.linger(limits.LINGER_S)
        return self._keep

    def _give_up(self, *, begun: bool) -> None:
        """End a connection whose request has not come in time."""
        if not begun:
            # Browsers and monitors connect before they have a request.
            log.debug("http %s: no request within %g s", self._wire.peer, limits.REQUEST_S)
            return
        self._host.count("http_deadlines")
        log.warning("http %s: request not complete within %g s, connection closed", self._wire.peer, limits.REQUEST_S)
        self._responder.refuse(HttpError(408, "The request was not complete in time."), None, self)

    # Reading -----------------------------------------------------------------------------------------------------------

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
                    if held > limits.BODY_LIMIT_BYTES:
                        raise HttpError(413, f"The body is longer than {limits.BODY_LIMIT_BYTES} bytes.")
                elif parser.they_are_waiting_for_100_continue and not rest:
                    self.transport.send_all(_CONTINUE, limits.WRITE_S)
                    parser.send(h11.InformationalResponse(status_code=100, headers=[]))
                    parser.receive_data(self._wire.receive())
                else:
                    parser.receive_data(rest or self._wire.receive())
                    rest = b""
        except h11.RemoteProtocolError:
            raise HttpError(400, "The body of the request is malformed.") from None

    # For handlers and for the response ---------------------------------------------------------------------------------

    @property
    def close_reason(self) -> CloseReason:
        """Why the connection has ended; empty while it is open."""
        return self.transport.close_reason

    def take_unread(self) -> bytes:
        """Return what the client has sent behind its request, and forget it."""
        found = bytes(self._head.data)
        self._head = RequestHead()
        return found

    def ensure_open(self) -> None:
        """Check that the connection is open, without waiting; raise TransportClosed if not."""
        self.transport.ensure_open()

    def allows_origin(self, request: Request) -> bool:
        """Return whether a page that makes a request may use the response."""
        return self._responder.allows_origin(request)

    def close(self, reason: CloseReason) -> None:
        """Close the connection. The first reason counts. Does not wait."""
        self._wire.close(reason)

    def send(self, headers: Sequence[tuple[str, str]], response: Response, *, last: bool) -> None:
        """Send a response; as `rtmpd.http.responder.Answering.send`."""
        self._keep = self._may_keep and not last
        head = response_head(response.status, [*headers, ("Connection", "keep-alive" if self._keep else "close")])
        body = response.body
        # A small body leaves with its head, by one system call; a large one is not copied.
        small = response.size <= _SMALL_BYTES
        for part in (b"".join((head, body, *response.pieces)),) if small else (head, body, *response.pieces):
            for begin in range(0, len(part), limits.PIECE_BYTES):
                self.transport.send_all(memoryview(part)[begin : begin + limits.PIECE_BYTES], limits.WRITE_S)

    def begin_stream(self, request: Request, more_headers: Sequence[tuple[str, str]], content_type: str) -> None:
        """Send the head of a response whose body has no known length, and ends with the connection.

        It has no transfer coding: the body consists of bytes that all clients share.

        Args:
            request: The request.
            more_headers: Further headers.
            content_type: The media type of the body.
        """
        headers = self._responder.stream_headers(request, more_headers, content_type)
        self.transport.send_all(response_head(200, [*headers, ("Connection", "close")]), limits.WRITE_S)
