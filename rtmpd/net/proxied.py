"""Connections that come through a load balancer: who is behind it.

Imports gevent, the transport, the PROXY protocol and the configuration's networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.config.access_rules import parse_address, within
from rtmpd.net.transport import deadline, format_address
from rtmpd.protocol.proxy import ProxyHeader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.config.access_rules import Network
    from rtmpd.net.transport import Transport

__all__ = ["is_from", "read_proxy_header"]


def is_from(transport: Transport, networks: Iterable[Network]) -> bool:
    """Whether a connection comes from one of these networks."""
    return within(parse_address(transport.address), networks)


def read_proxy_header(transport: Transport, limit_s: float) -> bytes:
    """Read the PROXY header of a balancer; from then on ``transport.peer`` is the client's address.

    Returns:
        What the client has sent behind it.

    Raises:
        HandshakeError: There is none. DeadlineExceeded: It did not come in time. TransportClosed: The connection is gone.
    """
    header = ProxyHeader()
    with deadline(limit_s, "the PROXY header"):
        while not header.feed(transport.recv()):
            pass
    if header.source is not None:
        transport.peer = format_address(header.source)
    return header.remainder
