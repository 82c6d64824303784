"""The HTTP client of webhooks and callbacks: one POST with one deadline.

``requests`` blocks, and its timeouts hold for a single read: a server that sends a byte now and then would hold a thread
without end. So the request runs in a native thread, and the greenlet that waits for it has the deadline, and shuts the socket
down when the deadline passes. What ``requests`` raises contains the URL with its secrets: an `HttpError` has nothing of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from typing import TYPE_CHECKING, Any

import gevent
import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidURL, SSLError
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, InvalidHeader, NewConnectionError
from urllib3.exceptions import TimeoutError as PoolTimeoutError

import rtmpd
from rtmpd.net.resolver import Resolver, numeric
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rtmpd.net.resolver import Address

BROKE_OFF = "broke off"
"""The `Response.defect` of a body whose connection ended too early."""

HEAD_LIMIT_BYTES = 32 << 10
"""The largest status line and headers of a response, together."""

_CONNECT_LIMIT_S = 10.0
"""The longest attempt to connect to one of the addresses of a host."""

_IDLE_LIMIT_S = 15.0
"""A connection that was unused for longer is replaced: a firewall may have forgotten it, and would answer nothing."""

_QUEUED = "while waiting for a free thread"
_LOOK_UP = "while looking up the host name"
_RESPONSE = "while waiting for the response"
_KEPT_CONNECTIONS = 16
_KEPT_SERVERS = 32


class HttpError(Exception):
    """There is no response. The message says why, and contains nothing of the URL and the request.

    Attributes:
        timed_out: Whether the deadline passed.
        permanent: Whether another attempt would fail likewise: the URL can't be used.
        cpu_s: The CPU time of the attempt, seconds.
    """

    def __init__(self, message: str, *, timed_out: bool = False, permanent: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out
        self.permanent = permanent
        self.cpu_s = 0.0


@dataclass(frozen=True, slots=True)
class Response:
    """A response, of which at least the head is complete.

    Attributes:
        status: The status code.
        headers: The headers, by names in any case.
        body: The body, as it was sent: nothing is decompressed. Empty for a redirect, whose body is not read.
        defect: What is wrong with the body, as a text to follow "the response"; empty if it is complete.
        cpu_s: The CPU time of the exchange, seconds.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    defect: str = ""
    cpu_s: float = 0.0


class HttpClient:
    """Sends POST requests from native threads, and keeps connections open for further requests.

    Redirects are not followed. Certificates are verified. Nothing is taken from the environment: no proxy, password or
    certificate. Cookies are not kept.

    A host name is looked up by *resolver*, outside of these threads, when a new connection is needed.

    Args:
        threads: The largest number of requests at the same time.
        resolver: Looks up host names.
    """

    def __init__(self, threads: int, resolver: Resolver | None = None) -> None:
        self._threads = Threads(threads)
        self._resolver = resolver or Resolver()
        self._adapter = _Adapter(_KEPT_SERVERS, _KEPT_CONNECTIONS, max_retries=0)

    def resize(self, threads: int) -> None:
        """Change the largest number of requests at the same time."""
        self._threads.resize(threads)

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        body_limit_bytes: int,
        ca: str | bool = True,
    ) -> Response:
        """Send a POST request and wait for the response. If the waiting greenlet is killed, the exchange ends at once.

        A request is sent again, once, if a connection that was kept open turns out to be closed: a server may close it at the
        moment in which the next request is sent. The server may then get the request twice.

        Args:
            url: The URL. User and password in it are sent as Basic authentication.
            body: The body of the request.
            headers: Its headers.
            timeout_s: The time for all of it: waiting for a thread, name lookup, connection, TLS, request and response.
            body_limit_bytes: The largest body of a response; the rest of a longer one is not read.
            ca: A file of certificates to trust, or True: the system's.

        Raises:
            HttpError: No response, or not even its head, came in time.
        """
        exchange = _Exchange(self._adapter, url, body, headers, timeout_s, body_limit_bytes, ca, time.monotonic() + timeout_s)
        try:
            with gevent.Timeout(timeout_s, False):  # type: ignore[arg-type]
                return self._run(exchange)
        finally:
            exchange.abort()
        return exchange.late_response()

    def _run(self, exchange: _Exchange) -> Response:
        """Make an exchange; look up the host name, with no thread of the exchanges, if a connection has to be made."""
        try:
            return self._threads.call(exchange.run)
        except _UnresolvedError as error:
            host, port = error.host, error.port
        exchange.stage = _LOOK_UP
        try:
            exchange.addresses = self._resolver.resolve(host, port, exchange.timeout_s)
        except TimeoutError:
            raise HttpError(f"timed out after {exchange.timeout_s:g} s {_LOOK_UP}", timed_out=True) from None
        except OSError as error:
            raise HttpError(_reason([error])) from None
        exchange.stage = _QUEUED
        try:
            return self._threads.call(exchange.run)
        finally:
            if exchange.connected is not None:
                self._resolver.worked(host, port, exchange.connected)


@dataclass(eq=False, slots=True)
class _Exchange:
    """One request and its response. `run` belongs to a thread; `abort` and `late_response` to the event loop.

    Attributes:
        stage: How far the exchange is, as a text to follow "timed out".
        addresses: The addresses of the host; empty: they have not been looked up.
        connected: The address that a new connection was made to.
        cpu_s: The CPU time so far, seconds.
        fresh: Whether no kept connection may be used.
        reused: Whether the present connection was kept from an earlier exchange.
        answered: Whether something of the response has come.
        head: The response without its body, when its head has come.
        twin: A second descriptor of the connection's socket: the first one changes hands with TLS, and when the body is read.
    """

    adapter: _Adapter
    url: str
    body: bytes
    headers: Mapping[str, str]
    timeout_s: float
    body_limit: int
    ca: str | bool
    deadline_s: float
    stage: str = _QUEUED
    addresses: Sequence[Address] = ()
    connected: Address | None = None
    cpu_s: float = 0.0
    fresh: bool = False
    reused: bool = False
    answered: bool = False
    aborted: bool = False
    head: Response | None = None
    twin: socket.socket | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    # In the event loop -------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """End the exchange, in whatever stage it is. No effect if it is over. Does not wait."""
        with self.lock:
            self.aborted = True
            if self.twin is not None:
                with contextlib.suppress(OSError):
                    self.twin.shutdown(socket.SHUT_RDWR)

    def late_response(self) -> Response:
        """Return the response of an exchange whose deadline has passed, if its head has come; else raise `HttpError`."""
        if self.head is None:
            raise self._timeout()
        return replace(self.head, defect=f"did not end within {self.timeout_s:g} s")

    def _timeout(self) -> HttpError:
        # Only an attempt to connect may have less time than the exchange.
        limit_s = _CONNECT_LIMIT_S if time.monotonic() < self.deadline_s else self.timeout_s
        return HttpError(f"timed out after {limit_s:g} s {self.stage}", timed_out=True)

    # In a thread -------------------------------------------------------------------------------------------------------

    def run(self) -> Response:
        """Make the exchange. Blocks.

        Raises:
            HttpError: There is no response.
            _UnresolvedError: The host name has to be looked up; run the exchange again then.
        """
        began_s = time.thread_time()
        _thread.exchange = self
        try:
            response = self._send()
        except HttpError as error:
            error.cpu_s = self.cpu_s + time.thread_time() - began_s
            raise
        finally:
            self.cpu_s += time.thread_time() - began_s
            _thread.exchange = None
            with self.lock:
                if self.twin is not None:
                    self.twin.close()
                    self.twin = None
        return replace(response, cpu_s=self.cpu_s)

    def _send(self) -> Response:
        try:
            request = _prepared(self.url).copy()
        except (requests.RequestException, ValueError):
            raise HttpError("the URL can't be used", permanent=True) from None
        request.headers.update(self.headers)
        request.prepare_body(self.body, None)
        while True:
            try:
                # Not by a session: it would look for cookies, proxies and redirects.
                with self.adapter.send(request, stream=True, timeout=self._left_s(), verify=self.ca, proxies={}) as response:
                    return self._receive(response)
            except (requests.RequestException, HTTPError, HTTPException, OSError, ValueError) as error:
                causes = list(_causes(error))
                if any(isinstance(each, (InvalidURL, UnicodeError)) for each in causes):
                    raise HttpError("the URL can't be used", permanent=True) from None
                if any(isinstance(each, (TimeoutError, requests.Timeout)) for each in causes):
                    raise self._timeout() from None
                if self.aborted or not self.reused or self.answered:
                    raise HttpError(_reason(causes)) from None
                self.fresh, self.reused = True, False

    def _left_s(self) -> float:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _receive(self, response: requests.Response) -> Response:
        head = self.head = Response(response.status_code, response.headers)
        if 300 <= response.status_code < 400:
            return head
        body = b""
        try:
            # To its end: the connection is only kept then, and a length that was not kept is noticed.
            while data := response.raw.read(self.body_limit + 1 - len(body), decode_content=False):
                body += data
                if len(body) > self.body_limit:
                    return replace(head, body=body[:-1], defect=f"is longer than {self.body_limit} bytes")
        except (PoolTimeoutError, TimeoutError):
            return self.late_response()
        except (HTTPError, HTTPException, OSError, ValueError):
            return replace(head, body=body, defect=BROKE_OFF)
        return replace(head, body=body, defect=BROKE_OFF if response.raw.length_remaining else "")

    def connect(self, host: str, port: int, after: str) -> socket.socket:
        """Return a new connection that `abort` can end; *after* is the stage that follows. Raises OSError."""
        addresses = self.addresses or numeric(host, port)
        if not addresses:
            raise _UnresolvedError(host, port)
        self.stage = "while connecting"
        failure = OSError(errno.EADDRNOTAVAIL, "no address")
        for address in addresses:
            sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
            try:
                self.watch(sock)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(min(_CONNECT_LIMIT_S, self._left_s()))
                sock.connect(address)
                sock.settimeout(self._left_s())
            except OSError as error:
                sock.close()
                failure = error
            else:
                self.stage = after
                self.connected = address
                return sock
        raise failure

    def watch(self, sock: socket.socket) -> None:
        """Let `abort` shut this socket down; raise ConnectionAbortedError if that has been called."""
        twin = socket.fromfd(sock.fileno(), sock.family, sock.type)
        with self.lock:
            if self.twin is not None:
                self.twin.close()
            self.twin = twin
            if self.aborted:
                raise ConnectionAbortedError


@lru_cache(maxsize=_KEPT_SERVERS)
def _prepared(url: str) -> requests.PreparedRequest:
    """Return a request without a body. To take the URL apart is a fifth of what a request costs in ``requests``."""
    headers = {"User-Agent": f"rtmpd/{rtmpd.__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
    return requests.Request("POST", url, headers).prepare()


# What lets an exchange get at the sockets of urllib3 ----------------------------------------------------------------------


_thread = threading.local()
"""Its attribute `exchange` is the `_Exchange` that a thread is running."""


class _UnresolvedError(Exception):
    """The addresses of a host are needed. No OSError, so that urllib3 and requests let it pass."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host)
        self.host = host
        self.port = port


class _HeadError(HTTPException):
    """The head of a response is incomplete or too long."""


class _Head:
    """The lines of a response's head, as long as they are not too long all together."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = HEAD_LIMIT_BYTES
        self.last = b""

    def readline(self, limit: int) -> bytes:
        self.last = self._file.readline(min(limit, self._left + 1))
        _thread.exchange.answered |= bool(self.last)
        self._left -= len(self.last)
        if self._left < 0:
            raise _HeadError(f"the head of the response is longer than {HEAD_LIMIT_BYTES} bytes")
        return self.last

    def close(self) -> None:
        self._file.close()


class _BoundedResponse(HTTPResponse):
    """A response whose head is bounded and complete.

    http.client takes the end of the connection for the end of the headers. The length of a response that breaks off there is
    missing, and so it would pass for a complete one without a body.
    """

    fp: Any

    def begin(self) -> None:
        file = self.fp
        self.fp = head = _Head(file)
        try:
            super().begin()
        finally:
            # A response without a body has been closed by now.
            if self.fp is head:
                self.fp = file
        if not head.last.endswith(b"\n"):
            raise _HeadError("the response broke off within its head")


class _Abortable:
    """A connection of urllib3 that belongs to an exchange while it is in use."""

    after_connect = _RESPONSE
    response_class = _BoundedResponse
    sock: socket.socket | None
    used_at_s = 0.0

    def _new_conn(self) -> socket.socket:
        self.used_at_s = 0.0
        try:
            exchange: _Exchange = _thread.exchange
            return exchange.connect(self._dns_host.strip("[]"), self.port, self.after_connect)  # type: ignore[attr-defined]
        except OSError as error:
            # urllib3 would take an OSError of some kinds for a response that came before the request was sent.
            raise NewConnectionError(self, "no connection") from error  # type: ignore[arg-type]

    def request(self, *args: Any, **kwargs: Any) -> None:
        exchange: _Exchange = _thread.exchange
        now_s = time.monotonic()
        if self.used_at_s and self.sock is not None:
            if exchange.fresh or now_s - self.used_at_s > _IDLE_LIMIT_S:
                self.close()  # type: ignore[attr-defined]
            else:
                exchange.reused = True
                exchange.watch(self.sock)
        exchange.stage = _RESPONSE
        super().request(*args, **kwargs)  # type: ignore[misc]
        self.used_at_s = now_s


class _PlainConnection(_Abortable, HTTPConnection):  # type: ignore[misc]
    pass


class _TlsConnection(_Abortable, HTTPSConnection):  # type: ignore[misc]
    after_connect = "in the TLS handshake"


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}


# What went wrong, without the URL -----------------------------------------------------------------------------------------


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it wraps."""
    seen: list[BaseException] = []
    queue: list[object] = [error]
    while queue and len(seen) < 20:
        each = queue.pop(0)
        if isinstance(each, BaseException) and each not in seen:
            seen.append(each)
            yield each
            queue += [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]


def _reason(causes: list[BaseException]) -> str:
    """Describe what is wrong with a connection or a response."""
    for each in causes:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"the server's certificate can't be verified: {each.verify_message}"
        if isinstance(each, ssl.SSLError):
            return f"TLS failed: {each.reason or 'the connection was closed'}"
        if isinstance(each, socket.gaierror):
            return "the host name is unknown" if each.errno == socket.EAI_NONAME else "the host name can't be looked up now"
        if isinstance(each, _HeadError):
            return str(each)
        if isinstance(each, RemoteDisconnected):
            return "the server closed the connection without a response"
    for each in causes:
        if isinstance(each, OSError) and each.errno is not None and each.errno in errno.errorcode:
            return os.strerror(each.errno)
    if any(isinstance(each, SSLError) for each in causes):
        # urllib3 1 compares the host name itself.
        return "the server's certificate can't be verified"
    if any(isinstance(each, (HTTPException, InvalidHeader)) for each in causes):
        return "the response is not HTTP"
    return f"the request failed: {type(causes[0]).__name__}"
