"""Which addresses are this host's, and this server's."""

from __future__ import annotations

import ipaddress
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["is_listened_on", "is_local"]


def _parse(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address; IPv4 that is written as IPv6 becomes IPv4."""
    address = ipaddress.ip_address(host)
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def is_local(address: tuple[Any, ...]) -> bool:
    """Whether a socket address, of IPv4 or IPv6, is one of this host's: only those can be bound to."""
    host = _parse(address[0])
    family = stdlib_socket.AF_INET if host.version == 4 else stdlib_socket.AF_INET6
    with stdlib_socket.socket(family, stdlib_socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(host), 0) if host.version == 4 else (address[0], 0, *address[2:]))
        except OSError:
            return False
    return True


def is_listened_on(address: tuple[Any, ...], listening: Iterable[tuple[str, int]]) -> bool:
    """Whether a connection to *address* comes to this host, and to one of those that are listened on there."""
    host, port = _parse(address[0]), address[1]
    for own, own_port in listening:
        found = _parse(own)
        if port == own_port and found.version == host.version and (found == host or found.is_unspecified):
            return found == host or is_local(address)
    return False
