"""TLS, for a connection that came in where RTMPS is served. Imports net."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.errors import TransportClosed
from rtmpd.net.tls_transport import TlsTransport

if TYPE_CHECKING:
    from rtmpd.rtmp.connection import Connection

__all__ = ["secure"]


def secure(connection: Connection, first: bytes) -> bytes:
    """Do the TLS handshake, if there is to be one.

    Args:
        connection: It has been let in: the limits are looked at before there is anything to compute.
        first: What has been read of it already.

    Returns:
        What has been read of RTMP.

    Raises:
        TlsError, TransportClosed, DeadlineExceeded: As `TlsTransport.secure`.
    """
    transport, hub = connection.transport, connection.hub
    if not isinstance(transport, TlsTransport):
        return first
    connection.phase = "TLS handshake"
    server = hub.tls.server
    if server is None:
        # A reload came between.
        raise TransportClosed("RTMPS is no longer served")
    transport.secure(server.context, hub.config.tls.tls_handshake_timeout_s, first=first, turns=hub.tls.turns)
    hub.count("tls_handshakes")
    connection.log.debug("= TLS handshake done: %s", transport.description)
    subject = transport.certificate_subject
    if subject:
        connection.log.info("client certificate: %s", subject)
    connection.phase = "handshake"
    return b""
