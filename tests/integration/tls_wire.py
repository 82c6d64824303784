"""A raw RTMP peer that speaks TLS, by the interpreter's blocking sockets; and servers for it."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

from tests.integration.wire import Wire

if TYPE_CHECKING:
    from pathlib import Path

    from tests.certificates import Authority
    from tests.conftest import Server

LISTEN = "[tls]\ntls_listen = 127.0.0.1:0\n"


def tls_port(server: Server, number: int = 0) -> int:
    """Return the port for RTMPS: of several the one with this number, in the order in which they were listened on."""
    server.wait_for_line(r"listening on .*:(\d+) for RTMPS")
    found = [re.search(r"[^r] listening on .*:(\d+) for RTMPS", line) for line in server.log()]
    return int([one[1] for one in found if one][number])


class TlsWire(Wire):
    """A `Wire` with TLS."""

    def __init__(self, server: Server | int, context: ssl.SSLContext, host: str = "localhost", **options) -> None:
        super().__init__(server if isinstance(server, int) else tls_port(server), **options)
        self.sock = context.wrap_socket(self.sock, server_hostname=host)


def certificate_of(port: int, authority: Authority, host: str = "localhost") -> bytes:
    """Return the certificate (DER) that a server shows for a name."""
    context = authority.client_context()
    context.check_hostname = False
    wire = TlsWire(port, context, host)
    try:
        return wire.sock.getpeercert(binary_form=True)
    finally:
        wire.close()


def der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())
