"""The peer of a `TlsTransport` in tests, with Python's TLS; a test may move its bytes one by one."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gevent import socket


class Peer:
    """A client (with a host) or a server, blocking-style."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str | None = "localhost") -> None:
        self.sock = sock
        sock.settimeout(10)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=host is None, server_hostname=host)

    def _fill(self) -> None:
        data = self.sock.recv(65536)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    def handshake(self) -> Peer:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._out.read())
                self._fill()
            else:
                self.sock.sendall(self._out.read())
                return self

    def encrypt(self, data: bytes) -> bytes:
        """Return the records of some data, to be sent as the test likes."""
        taken = 0
        while taken < len(data):
            taken += self.tls.write(data[taken:])
        return self._out.read()

    def close_notify(self) -> bytes:
        """Return a close_notify, to be sent as the test likes."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._out.read()

    def send(self, data: bytes, sizes: Iterable[int] = ()) -> None:
        records = self.encrypt(data)
        for size in sizes:
            self.sock.sendall(records[:size])
            records = records[size:]
        self.sock.sendall(records)

    def read(self, size: int) -> bytes:
        """Read this much."""
        data = b""
        while len(data) < size:
            piece = self.read_some()
            assert piece, f"the end after {len(data)} of {size} bytes"
            data += piece
        return data

    def read_some(self) -> bytes:
        """Read something; nothing: a close_notify came. Raises ssl.SSLEOFError for an end without."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                self._fill()

    def read_all(self) -> bytes:
        """Read up to the close_notify."""
        pieces = []
        while piece := self.read_some():
            pieces.append(piece)
        return b"".join(pieces)
