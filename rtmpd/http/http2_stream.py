"""One request of an HTTP/2 connection, from its headers to the end of its response: what handlers see as the exchange."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

import gevent
from gevent.event import Event
from h2.errors import ErrorCodes

from rtmpd.errors import DeadlineExceeded, TransportClosed
from rtmpd.http import limits
from rtmpd.http.http2_body import BodyTransport
from rtmpd.net.transport import deadline
from rtmpd.phases import NOT_CLOSED, CloseKind, CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rtmpd.events import Scalar
    from rtmpd.http.messages import Request, Response
    from rtmpd.http.responder import Responder
    from rtmpd.http.routes import Route
    from rtmpd.net.transport import Transport

log = logging.getLogger(__name__)

_COPY_BYTES = 16 << 10
_REST_S = 5.0
"""How long the rest of such a body may take when the handler has ended."""


class Frames(Protocol):
    """The connection, as its streams see it."""

    @property
    def transport(self) -> Transport:
        """Its transport."""

    def send_headers(self, stream_id: int, headers: Sequence[tuple[bytes, bytes]], *, end: bool) -> None:
        """Queue headers. Does not wait. Raises TransportClosed if the stream or the connection has ended."""

    def send_some(self, stream_id: int, data: memoryview, *, end: bool) -> int:
        """Queue as much of *data* as flow control and the bound of the queue allow; return how much. Raises likewise."""

    def send_end(self, stream_id: int) -> None:
        """Queue the end of a body. Raises likewise."""

    def send_reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Queue a RST_STREAM. Does not wait."""

    def send_error(self, stream_id: int) -> None:
        """Queue a RST_STREAM for a malformed request, behind the end of the response. Does not wait."""

    def ensure_room_for_body(self) -> None:
        """Raise HttpError if the connection has as many bodies that handlers send as it may."""

    def count_refusal(self) -> bool:
        """Count a response after which HTTP/1.1 closes the connection; return whether there are too many of them by now."""

    def drain(self) -> None:
        """Serve no further requests. Does not wait."""


class Http2Stream:
    """One request and its response.

    Args:
        frames: The connection.
        responder: That of the server.
        stream_id: The number of the stream.
        number: Names the connection in the log; 0: it has no name.

    Attributes:
        transport: That of the connection; after `begin_stream`, what takes the body.
        id, number: As above.
        agent, outcome, bytes_streamed, extra_held: As of `rtmpd.http.routes.Exchange`.
        close_reason: Why the response has ended before its end; empty while it has not.
        begun_s: When the request began, monotonic.
        path: Its path, once that is known.
        pending: The request and its route, if it has a body that is wanted.
        body: What has come of that.
        complete: The client has sent all of the request.
        greenlet: Serves the request; None: it is not complete.
        progress: Set when flow control or the queue may allow more to be sent, and when the response ends.
        malformed: The request can't be parsed.
        was_refused: HTTP/1.1 would close the connection after the response.
        ends_connection: The connection serves no request after this one.
    """

    def __init__(self, frames: Frames, responder: Responder, stream_id: int, number: int) -> None:
        self._frames = frames
        self._responder = responder
        self.id = stream_id
        self.transport: Transport = frames.transport
        self.number = number
        self.agent = ""
        self.outcome: Mapping[str, Scalar] = {}
        self.bytes_streamed = 0
        self.extra_held: Callable[[], int] | None = None
        self.close_reason: CloseReason = NOT_CLOSED
        self.begun_s = time.monotonic()
        self.path = ""
        self.pending: tuple[Request, Route] | None = None
        self.body = bytearray()
        self.complete = False
        self.greenlet: gevent.Greenlet[..., None] | None = None
        self.progress = Event()
        self.malformed = self.was_refused = False
        self.ends_connection = False
        self._begun = False  # the headers were sent
        self._ended = False  # the end of the response was sent
        self._over = False  # the stream was reset, or the connection ends
        self._copy: gevent.Greenlet[..., None] | None = None

    @property
    def is_sent_by_handler(self) -> bool:
        """Whether a handler sends the body of the response."""
        return self._copy is not None

    def held_bytes(self) -> int:
        """Return the memory of its body, and of what a handler holds."""
        unsent = self.transport.held_bytes if self._copy is not None else 0
        return len(self.body) + unsent + (self.extra_held() if self.extra_held is not None else 0)

    # For handlers ------------------------------------------------------------------------------------------------------

    def take_unread(self) -> bytes:
        """Return nothing: a client can send nothing behind its request."""
        return b""

    def ensure_open(self) -> None:
        """Check that the client waits for the response; raise TransportClosed if not."""
        if self.close_reason:
            raise TransportClosed(self.close_reason)

    def allows_origin(self, request: Request) -> bool:
        """Return whether a page that makes a request may use the response."""
        return self._responder.allows_origin(request)

    def close(self, reason: CloseReason) -> None:
        """End the response. The first reason counts. Does not wait."""
        if self._copy is not None:
            self.end_body(reason)
        elif not self.close_reason:
            self.close_reason = reason
            self._reset(ErrorCodes.CANCEL)
            self.progress.set()

    # For the connection ------------------------------------------------------------------------------------------------

    def end_body(self, reason: CloseReason) -> None:
        """End a body that the handler sends, behind what it has sent already. No effect on others. Does not wait."""
        if self._copy is not None:
            self.transport.close(reason)

    def abort(self, reason: CloseReason) -> None:
        """End the response and its greenlet: the client has reset the stream, or the connection ends. Does not wait."""
        self._over = True
        self.close_reason = self.close_reason or reason
        self.progress.set()
        if self._copy is not None:
            # The handler waits for this, and ends by itself.
            self.transport.close(reason)
        elif self.greenlet is not None:
            self.greenlet.kill(block=False)

    def run(self, serve: Callable[[], None]) -> None:
        """Serve the request, and end the stream, whatever happens. In the greenlet of the stream."""
        try:
            serve()
        except (TransportClosed, DeadlineExceeded) as error:
            log.debug("http %s: %s", self.transport.peer, error)
        finally:
            if self._copy is not None:
                self._end_copy(self._copy)
            if not self._ended:
                self._reset(ErrorCodes.CANCEL)
        if self.malformed:
            # A stream error, before which there may be a response (RFC 9113 section 8.1.1).
            self._frames.send_error(self.id)
        elif not self.complete:
            self._discard_rest()

    def _discard_rest(self) -> None:
        """Wait a moment for the rest of the request, which is not wanted; then reset the stream (RFC 9113 section 8.1).

        A client that is sending may not read the response if it finds the stream reset (curl 7.88).
        """
        until_s = time.monotonic() + limits.LINGER_S
        while not self.complete and not self._over and time.monotonic() < until_s:
            self.progress.clear()
            self.progress.wait(until_s - time.monotonic())
        if not self.complete:
            self._reset(ErrorCodes.NO_ERROR)

    def _reset(self, code: ErrorCodes) -> None:
        """Reset the stream, if it was not."""
        if not self._over:
            self._over = True
            self._frames.send_reset(self.id, code)

    # The response ------------------------------------------------------------------------------------------------------

    def send(self, headers: Sequence[tuple[str, str]], response: Response, *, last: bool) -> None:
        """Send a response; as `rtmpd.http.responder.Answering.send`."""
        if self._begun:
            raise TransportClosed("the body has begun already")
        # Before the response: a client may cancel the request as soon as it has the status.
        self.was_refused = last
        self.ends_connection = last and self._frames.count_refusal()
        try:
            self._send_response(headers, response)
        finally:
            if self.ends_connection:
                self._frames.drain()

    def _send_response(self, headers: Sequence[tuple[str, str]], response: Response) -> None:
        parts = [part for part in (response.body, *response.pieces) if part]
        self._send_headers(response.status, headers, end=not parts)
        for number, part in enumerate(parts, 1):
            for begin in range(0, len(part), limits.PIECE_BYTES):
                piece = memoryview(part)[begin : begin + limits.PIECE_BYTES]
                with deadline(limits.WRITE_S, "sending"):
                    self._send_data(piece, end=number == len(parts) and begin + len(piece) == len(part))
        self._ended = True

    def _send_headers(self, status: int, headers: Sequence[tuple[str, str]], *, end: bool) -> None:
        self.ensure_open()
        fields = [(":status", str(status)), *((name.lower(), value) for name, value in headers)]
        if any("\r" in text or "\n" in text for field in fields for text in field):
            raise ValueError("a header of a response contains a line break")
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        self._frames.send_headers(self.id, encoded, end=end)
        self._begun = True

    def _send_data(self, data: memoryview, *, end: bool) -> None:
        """Send data; wait until flow control allows it and the connection has taken most of it."""
        while data:
            self.ensure_open()
            sent = self._frames.send_some(self.id, data, end=end)
            data = data[sent:]
            if not sent:
                self.progress.clear()
                self.progress.wait()

    # Bodies that a handler sends ---------------------------------------------------------------------------------------

    def begin_stream(self, request: Request, more_headers: Sequence[tuple[str, str]], content_type: str) -> None:
        """Send the head of a response whose body has no known length. The handler sends it to `transport` from now on.

        The bytes are shared with viewers on connections of their own, so that they can't have the frames of this one: a
        greenlet copies them. A viewer that does not read is noticed as any other: its transport takes no more.

        Args:
            request: The request.
            more_headers: Further headers.
            content_type: The media type of the body.

        Raises:
            HttpError: The connection has too many of them.
        """
        self._frames.ensure_room_for_body()
        self._send_headers(200, self._responder.stream_headers(request, more_headers, content_type), end=False)
        self.transport.keep_alive()
        body = self.transport = BodyTransport(self.transport.peer)
        self._copy = gevent.spawn(self._copy_from, body)

    def _copy_from(self, body: BodyTransport) -> None:
        try:
            while data := body.take(_COPY_BYTES):
                self._send_data(memoryview(data), end=False)
            self.ensure_open()
            self._frames.send_end(self.id)
            self._ended = True
        except TransportClosed as error:
            log.debug("http %s: a body was not sent to its end: %s", body.peer, error)

    def _end_copy(self, copy: gevent.Greenlet[..., None]) -> None:
        self.transport.close(CloseReason(CloseKind.COMMAND, "the response was sent"))
        try:
            copy.join(_REST_S)
        finally:
            copy.kill()
            self.transport.dispose()
