"""Connections through a load balancer: reads the PROXY header that names the client. I/O of `rtmpd.protocol.proxy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.config.access_rules import parse_address, within
from rtmpd.net.transport import deadline, format_address
from rtmpd.protocol.proxy import ProxyHeader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.config.access_rules import Network
    from rtmpd.net.transport import Transport


def is_from(transport: Transport, networks: Iterable[Network]) -> bool:
    """Return whether the peer's address is in one of the networks."""
    return within(parse_address(transport.address), networks)


def read_proxy_header(transport: Transport, limit_s: float) -> bytes:
    """Read a PROXY header, and set ``transport.peer`` to the client's address.

    Returns:
        The bytes after the header, which are the client's first ones.

    Raises:
        HandshakeError: The first bytes are not a PROXY header, or it is malformed.
        DeadlineExceeded: The header was not complete after *limit_s*.
        TransportClosed: The connection was closed, or has failed.
    """
    header = ProxyHeader()
    with deadline(limit_s, "the PROXY header"):
        while not header.feed(transport.recv()):
            pass
    if header.source is not None:
        transport.peer = format_address(header.source)
    return header.remainder
