"""Listening sockets, and which addresses lead to them."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import socket

from rtmpd.config.model import ListenAddress
from rtmpd.errors import RtmpdError
from rtmpd.net.transport import Transport, format_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

_BACKLOG = 4096
_MAX_ACCEPT = 16
"""Connections accepted in one round of the event loop, so that many reconnects at once can't delay media."""


def listening_socket(address: ListenAddress) -> socket:
    """Return a socket that listens on an address. An empty host means every address of IPv4 and, if available, IPv6.

    Raises:
        RtmpdError: The address can't be listened on; the message has the reason and a hint.
    """
    try:
        sock = bound_socket(address)
        try:
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise RtmpdError(f"can't listen on {address}: {bind_problem(error)}") from None
    return sock


def bind_problem(error: OSError) -> str:
    """Return why an address can't be listened on, with a hint."""
    hint = {
        errno.EADDRINUSE: ": another process listens on it",
        errno.EACCES: ": ports below 1024 need CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: ": no network interface of this host has it",
    }.get(error.errno or 0, "")
    return f"{error.strerror or error}{hint}"


def bound_socket(address: ListenAddress) -> socket:
    """Return a socket that is bound as by `listening_socket`, but does not listen.

    Raises:
        OSError: The address can't be bound, or the host name can't be resolved.
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


def inherited_socket(descriptor: int) -> socket:
    """Return a listening socket of another process, which may keep its copy of the descriptor."""
    return socket(fileno=descriptor)


def listening_places(addresses: Iterable[ListenAddress], inherited: Iterable[socket]) -> list[ListenAddress | socket]:
    """Return where to listen: the inherited sockets, and the addresses that overlap none of them.

    An address that overlaps an inherited socket can't be bound: the kernel reports it as in use.
    """
    sockets = {sock: ListenAddress(*_bound(sock)) for sock in inherited}
    others: list[ListenAddress] = []
    for address in addresses:
        holder = next((has for has in sockets.values() if has.overlaps(resolved(address))), None)
        if holder is None:
            others.append(address)
        elif holder != resolved(address):
            log.warning("not listening on %s separately: the inherited socket %s includes it", address, holder)
    return [*sockets, *others]


def _bound(sock: socket) -> tuple[str, int]:
    """Return host and port of a bound socket; the host is empty for every address of IPv4 and IPv6."""
    addresses = _accepted(sock)
    return ("", addresses[0][1]) if len(addresses) > 1 else addresses[0]


def resolved(address: ListenAddress) -> ListenAddress:
    """Return an address with its host name resolved; unchanged if that fails, which `listening_socket` reports."""
    try:
        return ListenAddress(str(_resolve(address)[1][0]), address.port) if address.host else address
    except OSError:
        return address


def _accepted(sock: socket) -> tuple[tuple[str, int], ...]:
    """Return the addresses that a listening socket accepts connections on; two for a socket of both IPv6 and IPv4."""
    host, port = sock.getsockname()[:2]
    dual = sock.family == stdlib_socket.AF_INET6 and not sock.getsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY)
    return ((host, port), ("0.0.0.0", port)) if dual else ((host, port),)  # noqa: S104


def _parse(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an address. IPv4 mapped to IPv6 becomes IPv4."""
    address = ipaddress.ip_address(host)
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def is_local(address: tuple[Any, ...]) -> bool:
    """Return whether this host has an address: only those can be bound."""
    host = _parse(address[0])
    family = stdlib_socket.AF_INET if host.version == 4 else stdlib_socket.AF_INET6
    with stdlib_socket.socket(family, stdlib_socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(host), 0) if host.version == 4 else (address[0], 0, *address[2:]))
        except OSError:
            return False
    return True


def is_listened_on(address: tuple[Any, ...], listening: Iterable[tuple[str, int]]) -> bool:
    """Return whether a connection to *address* arrives at a listener of this process.

    Args:
        address: A socket address of IPv4 or IPv6.
        listening: `Listener.addresses` of every listener.
    """
    host, port = _parse(address[0]), address[1]
    for own, own_port in listening:
        found = _parse(own)
        if port == own_port and found.version == host.version and (found == host or found.is_unspecified):
            return found == host or is_local(address)
    return False


class Listener:
    """Accepts connections on one address, and serves each in its own greenlet.

    Args:
        address: The address to listen on, or a socket that already listens.
        serve: Called in the connection's greenlet. The connection is closed when it returns.
        kind: The class of the transports: with TLS or without.

    Attributes:
        place, kind: The arguments *address* and *kind*.
        bound: The address that the socket is bound to, as text.
        port: Its port.
        addresses: Host and port of each address that connections are accepted on; the host may be the unspecified one.

    Raises:
        RtmpdError: The address can't be listened on; the message has the reason and a hint.
    """

    def __init__(
        self, address: ListenAddress | socket, serve: Callable[[Transport], None], kind: type[Transport] = Transport
    ) -> None:
        self.place = address
        self.kind = kind
        sock = address if isinstance(address, socket) else listening_socket(address)
        self.bound = format_address(sock.getsockname())
        self.port = int(sock.getsockname()[1])
        self.addresses = _accepted(sock)
        self._serve = serve
        self._pool = Pool()
        self._server = StreamServer(sock, self._handle, spawn=self._pool)
        self._server.max_accept = _MAX_ACCEPT

    @property
    def busy(self) -> bool:
        """Whether a connection is being served."""
        return len(self._pool) > 0

    def start(self) -> None:
        """Start accepting connections."""
        self._server.start()

    def _handle(self, sock: socket, address: tuple[object, ...]) -> None:
        try:
            transport = self.kind(sock, format_address(address))
        except OSError as error:
            log.debug("%s: connection lost before it was served: %s", format_address(address), error)
            return
        try:
            self._serve(transport)
        finally:
            transport.dispose()

    def close(self) -> None:
        """Stop accepting. Open connections stay. If another process has the socket, too, it can accept the new ones."""
        self._server.close()

    def wait(self, limit_s: float) -> bool:
        """Wait up to *limit_s* until every connection has ended; return whether all have."""
        return bool(self._pool.join(timeout=limit_s))

    def kill(self) -> None:
        """Kill the greenlets of the connections that are still open."""
        self._pool.kill(timeout=1)
