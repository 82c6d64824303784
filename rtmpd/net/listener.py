"""Listening sockets.

Imports gevent, rtmpd.errors and the configuration's address type.
"""

from __future__ import annotations

import errno
import logging
import socket as stdlib_socket
from typing import TYPE_CHECKING

from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import socket

from rtmpd.config.model import ListenAddress
from rtmpd.errors import RtmpdError
from rtmpd.net.transport import Transport, format_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Listener", "bind", "inherit", "numeric", "places", "reserve", "why_not"]

log = logging.getLogger(__name__)

_BACKLOG = 4096
_MAX_ACCEPT = 16
"""Connections accepted in a row, so that a storm of reconnects can't delay media."""


def bind(address: ListenAddress) -> socket:
    """Make a listening socket; an empty host means every address, over one IPv6 socket where there is IPv6.

    Raises:
        RtmpdError: The address can't be listened on; the message says why and what to do.
    """
    try:
        sock = reserve(address)
        try:
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise RtmpdError(f"can't listen on {address}: {why_not(error)}") from None
    return sock


def why_not(error: OSError) -> str:
    """Say why an address can't be listened on, and what to do."""
    hint = {
        errno.EADDRINUSE: ": another server (or another rtmpd) has it",
        errno.EACCES: ": ports below 1024 need CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: ": no interface of this host has it",
    }.get(error.errno or 0, "")
    return f"{error.strerror or error}{hint}"


def reserve(address: ListenAddress) -> socket:
    """Make a socket for an address, bound as `bind` does, that does not listen.

    Raises:
        OSError: It can't be bound, or nobody knows the host.
    """
    host = address.host
    if not host:
        if stdlib_socket.has_dualstack_ipv6():
            family, host = stdlib_socket.AF_INET6, "::"
        else:
            family, host = stdlib_socket.AF_INET, "0.0.0.0"  # noqa: S104 - what an empty host means
        target: tuple[object, ...] = (host, address.port)
    else:
        family, target = _resolve(address)
    sock = socket(family, stdlib_socket.SOCK_STREAM)
    try:
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        if family == stdlib_socket.AF_INET6:
            sock.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, 1 if address.host else 0)
        sock.bind(target)
    except OSError:
        sock.close()
        raise
    return sock


def _resolve(address: ListenAddress) -> tuple[stdlib_socket.AddressFamily, tuple[object, ...]]:
    kind, flags = stdlib_socket.SOCK_STREAM, stdlib_socket.AI_PASSIVE
    family, _, _, _, target = stdlib_socket.getaddrinfo(address.host, address.port, type=kind, flags=flags)[0]
    return family, target


def inherit(descriptor: int) -> socket:
    """Return a socket that another process bound and listens with; it may go on to hold it."""
    return socket(fileno=descriptor)


def places(addresses: Iterable[ListenAddress], inherited: Iterable[socket]) -> list[ListenAddress | socket]:
    """Return where to listen: with every inherited socket, and on the addresses that none of them has.

    An address that one of them has at least a part of can't be bound, since the kernel knows that it is taken.
    """
    sockets = {sock: ListenAddress(*_bound(sock)) for sock in inherited}
    others: list[ListenAddress] = []
    for address in addresses:
        holder = next((has for has in sockets.values() if has.overlaps(numeric(address))), None)
        if holder is None:
            others.append(address)
        elif holder != numeric(address):
            log.warning("not listening on %s by itself: the socket %s, which was handed over, has it", address, holder)
    return [*sockets, *others]


def _bound(sock: socket) -> tuple[str, int]:
    """Return where a socket is bound; the host is empty when that is every address, IPv4 and IPv6."""
    addresses = _accepted(sock)
    return ("", addresses[0][1]) if len(addresses) > 1 else addresses[0]


def numeric(address: ListenAddress) -> ListenAddress:
    """Return an address without a name in it; as it is, if nobody knows the name: to bind it fails in time, and says so."""
    try:
        return ListenAddress(str(_resolve(address)[1][0]), address.port) if address.host else address
    except OSError:
        return address


def _accepted(sock: socket) -> tuple[tuple[str, int], ...]:
    """Return the addresses that a listening socket accepts connections on, IPv4 apart where it comes over an IPv6 socket."""
    host, port = sock.getsockname()[:2]
    dual = sock.family == stdlib_socket.AF_INET6 and not sock.getsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY)
    return ((host, port), ("0.0.0.0", port)) if dual else ((host, port),)  # noqa: S104


class Listener:
    """Accepts connections on one address and runs each in a greenlet of its own.

    Args:
        address: Where to listen; or a socket that listens already.
        serve: Called in the connection's greenlet; the connection is closed when it returns.
        kind: What connections are made of: with TLS or without.

    Attributes:
        place, kind: What it was made with.
        bound: Where it listens, as text.
        port: The port.
        addresses: Host and port of each address that it accepts connections on; the host may mean any.

    Raises:
        RtmpdError: The address can't be listened on; the message says why and what to do.
    """

    def __init__(
        self, address: ListenAddress | socket, serve: Callable[[Transport], None], kind: type[Transport] = Transport
    ) -> None:
        self.place = address
        self.kind = kind
        sock = address if isinstance(address, socket) else bind(address)
        self.bound = format_address(sock.getsockname())
        self.port = int(sock.getsockname()[1])
        self.addresses = _accepted(sock)
        self._serve = serve
        self._pool = Pool()
        self._server = StreamServer(sock, self._handle, spawn=self._pool)
        self._server.max_accept = _MAX_ACCEPT

    @property
    def busy(self) -> bool:
        """Whether there are connections."""
        return len(self._pool) > 0

    def start(self) -> None:
        """Begin to accept."""
        self._server.start()

    def _handle(self, sock: socket, address: tuple[object, ...]) -> None:
        try:
            transport = self.kind(sock, format_address(address))
        except OSError as error:
            log.debug("%s: gone before it was served: %s", format_address(address), error)
            return
        try:
            self._serve(transport)
        finally:
            transport.dispose()

    def close(self) -> None:
        """Accept no more; connections go on. On a socket that another process holds too, new ones wait for who is next."""
        self._server.close()

    def wait(self, limit_s: float) -> bool:
        """Wait until every connection has ended, at most *limit_s*; return whether they have."""
        return bool(self._pool.join(timeout=limit_s))

    def kill(self) -> None:
        """End the greenlets of connections that are still there."""
        self._pool.kill(timeout=1)
