"""The HTTP server: its listeners, plain and with TLS, and the connections that they accept."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rtmpd.errors import RtmpdError
from rtmpd.http.connection import HttpConnection
from rtmpd.http.places import Places
from rtmpd.http.routes import Routes
from rtmpd.net.listener import Listener
from rtmpd.net.tls_transport import TlsTransport
from rtmpd.net.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gevent.socket import socket

    from rtmpd.config.model import Config, ListenAddress
    from rtmpd.http.routes import Route
    from rtmpd.net.tls import Tls

log = logging.getLogger(__name__)

RESPONSES = 16
"""The responses under way at the same time, each with its body in memory; further requests wait."""

WAITING = 64
"""The connections that may wait for a request, or send one, unless a `Gate` says otherwise."""

OPEN = WAITING + 2 * RESPONSES
"""About how many connections there are with `WAITING`."""

_STOP_S = 1.0


class Gate(Protocol):
    """Decides which connections are served, and counts them."""

    @property
    def waiting_limit(self) -> int:
        """How many connections may wait for a request, or send one."""

    def admit_http(self, transport: Transport) -> tuple[int, bytes] | None:
        """Decide about a connection; may wait for a PROXY header, and sets the peer of the transport by it.

        Returns:
            Its number, and what was read of the client's own bytes. None: it must be closed.
        """

    def enter_http(self, connection: HttpConnection) -> None:
        """Take note of a connection that begins."""

    def leave_http(self, connection: HttpConnection) -> None:
        """Take note that it has ended."""


class HttpOptions(NamedTuple):
    """The part of the configuration that applies to a running server.

    Attributes:
        allow_origin: ``http_allow_origin``.
    """

    allow_origin: tuple[str, ...]


class HttpServer:
    """The service that serves HTTP. Its addresses change only with a restart.

    Args:
        name: What is served, for the log.
        addresses: The addresses to listen on, and sockets that listen already; none: the service does nothing.
        routes: The table of routes.
        count: Adds to a counter of failures.
        tls_addresses: Likewise, for TLS.
        tls: The certificates.
        gate: Decides about connections; None: all are served.
        optional: An address that can't be listened on is logged, and ends nothing.
        page: The page that the log shows.

    Attributes:
        allow_origin: The origins whose pages may use routes with ``cors``.
        bound: The addresses of the listeners.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[ListenAddress | socket],
        routes: Sequence[Route],
        count: Callable[[str], None],
        *,
        tls_addresses: Sequence[ListenAddress | socket] = (),
        tls: Tls | None = None,
        gate: Gate | None = None,
        optional: bool = False,
        page: str = "/",
        allow_origin: tuple[str, ...] = (),
    ) -> None:
        self._name = name
        self._addresses: list[tuple[ListenAddress | socket, type[Transport]]] = [(each, Transport) for each in addresses]
        self._addresses += [(each, TlsTransport) for each in tls_addresses]
        self._gate = gate
        self._optional = optional
        self._page = page
        self._listeners: list[Listener] = []
        self._bound = False
        self.routes = Routes(routes)
        self.count = count
        self.tls = tls
        self.allow_origin = allow_origin
        self.places = Places(lambda: gate.waiting_limit if gate is not None else WAITING, RESPONSES, count)

    @property
    def bound(self) -> list[str]:
        """The addresses of the listeners, as text."""
        return [listener.bound for listener in self._listeners]

    def bind(self) -> None:
        """Listen, without accepting connections yet.

        Raises:
            RtmpdError: An address can't be listened on.
        """
        if self._bound:
            return
        self._bound = True
        for address, kind in self._addresses:
            try:
                self._listeners.append(Listener(address, self._serve, kind))
            except RtmpdError as error:
                if not self._optional:
                    raise
                log.warning("%s: the server runs without this listener (http_listen)", error)

    def start(self) -> None:
        """Listen on addresses that are not bound yet, and serve.

        Raises:
            RtmpdError: An address can't be listened on.
        """
        self.bind()
        for listener in self._listeners:
            listener.start()
            scheme = "https" if listener.kind is TlsTransport else "http"
            log.info("%s on %s://%s%s", self._name, scheme, listener.bound, self._page)

    @staticmethod
    def select(config: Config) -> HttpOptions:
        """Return the options of ``[http]`` that a reload may change."""
        return HttpOptions(config.http.http_allow_origin)

    def reload(self, options: HttpOptions) -> None:
        """Apply new options."""
        self.allow_origin = options.allow_origin

    def stop(self, limit_s: float) -> None:
        """Close the listeners, and wait a moment for responses under way."""
        for listener in self._listeners:
            listener.close()
        while self.places.close_idle():
            pass
        for listener in self._listeners:
            listener.wait(min(limit_s, _STOP_S))
            listener.kill()

    def _serve(self, transport: Transport) -> None:
        gate = self._gate
        if gate is None:
            HttpConnection(transport, self).serve()
            return
        admitted = gate.admit_http(transport)
        if admitted is None:
            return
        number, first = admitted
        connection = HttpConnection(transport, self, number)
        gate.enter_http(connection)
        try:
            connection.serve(first)
        finally:
            gate.leave_http(connection)
