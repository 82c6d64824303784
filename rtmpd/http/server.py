"""The HTTP listener: WSGI applications by path, with the bounds that gevent.pywsgi lacks.

Pywsgi waits without limit for a request, reads megabytes of headers, and prints to standard error. Here a request has one
deadline, its head has a largest size, and a connection serves one request: a client that asks now and then gains nothing by
keeping a connection, and an idle one would take a place.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import gevent
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from rtmpd.config.model import ListenAddress
from rtmpd.net.listener import listening_socket
from rtmpd.net.transport import format_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from gevent.socket import socket

    from rtmpd.config.model import Config

log = logging.getLogger(__name__)

CONNECTIONS = 16
"""The requests that are answered at the same time on one address; further ones wait."""

_READING = 64
"""The connections whose request is not complete. Another one takes the place of the oldest of the address that has most."""

OPEN = 96
"""The connections on one address; further ones wait in the kernel's queue."""

_SLOW_S = 1.0
"""A client that has not taken a piece of its response for this long gives way to requests that wait."""

_REQUEST_S = 10.0
_WRITE_S = 10.0
"""The longest time to send one piece of a response."""

_STOP_S = 1.0
_HEAD_BYTES = 16 << 10
"""The largest size of all headers together; pywsgi bounds the request line, to 8 KiB."""

_BODY_BYTES = 64 << 10
"""A longer body is not read."""

_METHODS = ("GET", "HEAD")


class _Head:
    """The lines of a request's headers, as long as they are not too long all together."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = _HEAD_BYTES

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise ValueError(f"the headers are longer than {_HEAD_BYTES} bytes")
        return line


class _Displaced(BaseException):
    """Thrown into the greenlet of a client that is too slow while others wait. Not an Exception: pywsgi would print that."""


class _Places:
    """The connections of one listener: those that send their requests, and those that are answered.

    Slow clients delay no others: of those that still send a request the oldest is closed when there are too many; of those that
    are answered, one that does not read gives way to a request that waits.
    """

    def __init__(self) -> None:
        self._reading: dict[Any, str] = {}
        self._sending: dict[Any, float] = {}
        self._free = BoundedSemaphore(CONNECTIONS)

    def begin_reading(self, peer: str) -> None:
        """Take note that this greenlet reads a request; end the oldest that does if they are too many."""
        self._reading[gevent.getcurrent()] = peer.rpartition(":")[0]
        if len(self._reading) > _READING:
            most = Counter(self._reading.values()).most_common(1)[0][0]
            self._displace(self._reading, next(each for each, address in self._reading.items() if address == most))

    def end_reading(self) -> None:
        """Take note that the request is complete, or the connection over."""
        self._reading.pop(gevent.getcurrent(), None)

    def take(self) -> None:
        """Wait for a place."""
        while not self._free.acquire(timeout=_SLOW_S / 4):
            since_s, slowest = min(
                ((since_s, each) for each, since_s in self._sending.items()), default=(math.inf, None), key=_first
            )
            if time.monotonic() - since_s > _SLOW_S:
                self._displace(self._sending, slowest)

    def leave(self) -> None:
        """Free the place."""
        self._free.release()

    def begin_sending(self) -> None:
        """Take note that this greenlet waits for its client to read."""
        self._sending[gevent.getcurrent()] = time.monotonic()

    def end_sending(self) -> None:
        """Take note that the client has read."""
        self._sending.pop(gevent.getcurrent(), None)

    @staticmethod
    def _displace(those: dict[Any, Any], greenlet: Any) -> None:
        del those[greenlet]
        greenlet.kill(_Displaced, block=False)


def _first(pair: tuple[float, Any]) -> float:
    return pair[0]


class _Handler(WSGIHandler):
    """A connection, which serves one request."""

    server: _Server
    # What a send raises if the client is gone or does not read.
    ignored_socket_errors = (
        *WSGIHandler.ignored_socket_errors,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        "timed out",  # type: ignore[arg-type]
    )

    def __init__(self, sock: socket, address: Any, server: _Server) -> None:
        sock.settimeout(_WRITE_S)
        super().__init__(sock, address, server)
        self._peer = format_address(address)
        self._deadline: gevent.Timeout | None = None

    def handle(self) -> None:
        """Serve the connection."""
        places = self.server.places
        places.begin_reading(self._peer)
        try:
            super().handle()
        except OSError as error:
            log.debug("http %s: %s", self._peer, error)
        except _Displaced:
            self.server.count("http_deadlines")
            log.debug("http %s: too slow while others wait, connection closed", self._peer)
        finally:
            places.end_reading()

    def run_application(self) -> None:
        """Wait for a place, then respond."""
        places = self.server.places
        places.end_reading()
        places.take()
        try:
            super().run_application()
        finally:
            places.leave()

    def _sendall(self, data: bytes) -> None:
        places = self.server.places
        places.begin_sending()
        try:
            super()._sendall(data)  # type: ignore[misc]
        finally:
            places.end_sending()

    def handle_one_request(self) -> Any:
        """Read a request and respond to it. The deadline is for reading."""
        self._deadline = deadline = gevent.Timeout.start_new(_REQUEST_S)
        try:
            return super().handle_one_request()
        except gevent.Timeout as timeout:
            if timeout is not deadline:
                raise
            if not self.requestline:
                # Browsers and monitors connect before they have a request.
                log.debug("http %s: no request within %g s", self._peer, _REQUEST_S)
                return None
            self.server.count("http_deadlines")
            log.warning("http %s: request not complete within %g s, connection closed", self._peer, _REQUEST_S)
            return "408", _response("408 Request Timeout")
        finally:
            deadline.close()

    def read_requestline(self) -> str:
        """Read the request line; `requestline` is set as soon as it has begun."""
        first = self.rfile.peek(1)
        self.requestline = first[:1].decode("latin-1")
        return super().read_requestline()

    def read_request(self, raw_requestline: str) -> bool:  # type: ignore[override]
        """Read the headers and the body: a client that still sends would not read the response."""
        super().read_request(raw_requestline)
        self.close_connection = True
        if "transfer-encoding" in self.headers:
            # A chunked body is not read.
            del self.headers["transfer-encoding"]
        elif self.content_length and self.content_length <= _BODY_BYTES:
            self.rfile.read(self.content_length)
        self.content_length = 0
        if self._deadline is not None:
            self._deadline.cancel()
        return True

    def MessageClass(self, file: Any, *arguments: Any) -> Any:  # noqa: N802 - pywsgi's name
        """Parse the headers."""
        return super().MessageClass(_Head(file), *arguments)  # type: ignore[arg-type]

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Start the response, with the header that closes the connection."""
        if not any(name.lower() == "connection" for name, _ in headers):
            headers = [*headers, ("Connection", "close")]
        return super().start_response(status, headers, exc_info)

    def _handle_client_error(self, error: Exception) -> tuple[str, bytes] | None:
        """Respond to a malformed request. Pywsgi's own hook would print a traceback."""
        if isinstance(error, OSError):
            return None
        self.server.count("http_bad_requests")
        # Pywsgi quotes the request line, and a query may contain a token.
        reason = str(error).partition("?")[0] or type(error).__name__
        log.warning("http %s: bad request: %.200r", self._peer, reason)
        return "400", _response("400 Bad Request")

    def log_error(self, msg: str, *arguments: Any) -> None:
        """Log an error of pywsgi."""
        log.debug("http %s: %.200r", self._peer, msg % arguments if arguments else msg)

    def log_request(self) -> None:
        """Log the response, without the query, which may contain a token."""
        status = self.status.decode() if isinstance(self.status, bytes) else self.status
        request = str(self.requestline or "").partition("?")[0].rstrip()
        spent_ms = (time.time() - self.time_start) * 1000
        log.debug("http %s: %.80r: %s, %d bytes, %.1f ms", self._peer, request, status, self.response_length, spent_ms)


class _Server(WSGIServer):
    """Pywsgi's server, with a counter of failures."""

    handler_class = _Handler

    def __init__(self, sock: socket, application: WSGIApplication, count: Callable[[str], None]) -> None:
        # With a name for the environment: pywsgi would look one up.
        name = {"SERVER_NAME": str(sock.getsockname()[0])}
        super().__init__(sock, application, spawn=Pool(OPEN), log=None, error_log=log, environ=name)
        self.count = count
        self.places = _Places()


class HttpServer:
    """The service that serves HTTP. Its addresses change only with a restart.

    Args:
        name: What is served, for the log.
        addresses: The addresses to listen on, and sockets that listen already; none: the service does nothing.
        routes: WSGI applications by path; the log shows the first path. They get GET and HEAD, may wait, and may give a
            response in pieces.
        count: Called with the name of a failure.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[ListenAddress | socket],
        routes: Mapping[str, WSGIApplication],
        count: Callable[[str], None],
    ) -> None:
        self._name = name
        self._addresses = addresses
        self._routes = routes
        self._count = count
        self._servers: list[_Server] = []
        self.bound: list[str] = []

    def bind(self) -> None:
        """Listen, without accepting connections yet.

        Raises:
            RtmpdError: An address can't be listened on.
        """
        for address in self._addresses[len(self._servers) :]:
            sock = listening_socket(address) if isinstance(address, ListenAddress) else address
            self._servers.append(_Server(sock, self._dispatch, self._count))
            self.bound.append(format_address(sock.getsockname()))

    def start(self) -> None:
        """Listen on addresses that are not bound yet, and serve.

        Raises:
            RtmpdError: An address can't be listened on.
        """
        self.bind()
        for server, bound in zip(self._servers, self.bound, strict=True):
            server.start()
            log.info("%s on http://%s%s", self._name, bound, next(iter(self._routes)))

    @staticmethod
    def select(config: Config) -> None:
        """Return nothing: the service uses no options."""

    def reload(self, options: None) -> None:
        """Do nothing."""

    def stop(self, limit_s: float) -> None:
        """Close the listeners, and wait a moment for responses under way."""
        for server in self._servers:
            server.close()
        for server in self._servers:
            server.stop(timeout=min(limit_s, _STOP_S))

    def _dispatch(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        route = self._routes.get(environ["PATH_INFO"])
        if route is None:
            pages = " ".join(self._routes)
            result: Iterable[bytes] = _text(start_response, "404 Not Found", f"This page does not exist. Pages: {pages}")
        elif method not in _METHODS:
            result = _text(start_response, "405 Method Not Allowed", "Only GET and HEAD.", ("Allow", ", ".join(_METHODS)))
        else:
            result = route(environ, start_response)
        return result if method != "HEAD" else _without_body(result)


def _without_body(result: Iterable[bytes]) -> Iterable[bytes]:
    # An application that is a generator sets its headers when the first piece is taken.
    next(iter(result), None)
    close = getattr(result, "close", None)
    if close is not None:
        close()
    return []


def _text(start_response: StartResponse, status: str, text: str, *headers: tuple[str, str]) -> list[bytes]:
    body = text.encode() + b"\n"
    plain = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(status, [*plain, *headers])
    return [body]


def _response(status: str) -> bytes:
    """Return a whole response to a request that could not be read."""
    return f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
