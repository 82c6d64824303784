"""A connection with TLS: a `Transport` whose bytes are encrypted on their way, and that waits no more than one.

gevent's TLS sockets wait for the socket inside of a send, and for a read in the middle of a write; so the fan-out, which sends
to thousands in turn, can't use them. Here OpenSSL never sees the socket: it works on two buffers in memory, and what it wants
to send or have is moved by the transport. A send that does not wait takes whole records (16 KiB) as long as the socket takes
them whole. What the socket leaves of the last one is kept and goes out as soon as it fits; before that nothing more is taken.

Imports gevent, rtmpd.errors and the transport.
"""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
import ssl
from typing import TYPE_CHECKING

import gevent
from gevent import get_hub
from gevent.socket import wait

from rtmpd.errors import TlsError, TransportClosed
from rtmpd.net.tls_records import RecordCounter
from rtmpd.net.tls_words import not_tls, words
from rtmpd.net.transport import RECEIVE_BYTES, Transport, deadline
from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.socket import socket

    from rtmpd.net.tls_turns import HandshakeTurns

__all__ = ["KEPT_LIMIT_BYTES", "TlsTransport"]

_WRITE = 2
_RECORD_BYTES = 16 << 10
_RECORD_OVERHEAD_BYTES = 256
_OWN_LIMIT_BYTES = 16 << 10
"""What TLS itself may have to say (answers to key updates, alerts) to a peer that does not read."""

KEPT_LIMIT_BYTES = _RECORD_BYTES + _RECORD_OVERHEAD_BYTES + _OWN_LIMIT_BYTES
"""The most that a transport keeps: the rest of one record, and what TLS itself has to say."""

_NOTHING = ssl.MemoryBIO()


class TlsTransport(Transport):
    """A connected TCP socket with TLS on it. Until `secure` it is a plain one, for what stands before TLS: a PROXY header.

    Memory: OpenSSL gives its own buffers back when they are empty; the two in memory grow to the largest piece that they have
    held (up to 32 KiB in, one record out) and stay so. With what is kept for the socket that makes less than 200 KiB, and 20 to
    45 KiB for who merely plays. In the handshake OpenSSL takes messages of up to 128 KiB.

    Attributes:
        try_send: As in `Transport`; returns how much of *data* was taken, as the fan-out counts: plain bytes, not encrypted.
        bytes_sent: Likewise plain, by `send_all` only.
        server_name: The name that a client asked for (SNI), or "".
    """

    __slots__ = (
        "_callback",
        "_ended",
        "_flush_watcher",
        "_full",
        "_incoming",
        "_outgoing",
        "_ready",
        "_records",
        "_rest",
        "_tls",
        "_watching",
        "server_name",
    )

    scheme = "rtmps"

    def __init__(self, sock: socket, peer: str) -> None:
        super().__init__(sock, peer)
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._rest = b""  # encrypted, what the socket did not take
        self._ready = b""  # read ahead by `ensure_open`
        self._ended = ""  # why no more can be read
        self._full = False  # the socket has probably more than was read last
        self._records = RecordCounter()
        self._callback: Callable[[], None] | None = None
        # One of its own: the other is waited for by `send_all`.
        self._flush_watcher = get_hub().loop.io(sock.fileno(), _WRITE)
        self._watching = False
        self.server_name = ""

    # The handshake -----------------------------------------------------------------------------------------------------

    def secure(
        self,
        context: ssl.SSLContext,
        limit_s: float,
        *,
        first: bytes = b"",
        host: str | None = None,
        turns: HandshakeTurns | None = None,
    ) -> None:
        """Shake hands; from then on everything is encrypted.

        Args:
            context: The certificates, and what is asked of the peer.
            limit_s: Time for all of it.
            first: What the peer has sent already.
            host: As a client: the server's name or address, which its certificate must have. None: we are the server.
            turns: When to compute.

        Raises:
            TlsError: It came to nothing; the message says why. TransportClosed: The peer has gone. DeadlineExceeded.
        """
        step = give_way_and_do if turns is None else turns.run
        with deadline(limit_s, "the TLS handshake"):
            if host is None:
                first = first or self.recv()
                problem = not_tls(first)
                if problem:
                    raise TlsError(problem)
            try:
                name = host.rstrip(".") if host is not None else None
                self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=name)
            except ValueError as error:
                raise TlsError(f"{host!r} can't be the name of a TLS server: {error}") from None
            self.try_send = self._try_send
            self._take(first)
            self._shake_hands(step, "client" if host is None else "server")
            # What came with the last of the handshake has been read from the socket already.
            self._more = True
        self.server_name = getattr(self._tls, "asked_for", "") if host is None else name or ""

    def _shake_hands(self, step: Callable[[Callable[[], None]], None], peer: str) -> None:
        tls = self._tls
        assert tls is not None
        done = False
        while not done:
            try:
                step(tls.do_handshake)
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLEOFError:
                raise TransportClosed(self.close_reason or "closed by the peer in the TLS handshake") from None
            except ssl.SSLError as error:
                self._say_why()
                # Whose name is wrong, or which of several certificates is meant, is told by the name that the client asked for.
                asked = getattr(tls, "asked_for", "")
                name = f" (it asked for {asked!r})" if asked else ""
                raise TlsError(f"{words(error, peer, tls.context)}{name}") from None
            try:
                self._send_own()
            except OSError as error:
                raise TransportClosed(self.close_reason or f"send failed: {error.strerror or error}") from None
            if not done:
                self._read_more()

    def _say_why(self) -> None:
        """Send the alert that tells the peer what is wrong, if the socket takes it."""
        try:
            self._send_own()
        except OSError:
            # It has gone. What was wrong is told by the error that led here.
            return

    @property
    def description(self) -> str:
        """Version, cipher and what else is of interest, for the log."""
        tls = self._tls
        if tls is None:
            return "no TLS"
        cipher = tls.cipher()
        name = f", name {self.server_name!r}" if self.server_name else ""
        return f"{tls.version()}, {cipher[0] if cipher else 'no cipher'}{name}"

    @property
    def certificate_subject(self) -> str:
        """The subject of the peer's certificate, if it has shown one that is good: its attributes, as ``commonName=x``."""
        found = self._tls.getpeercert() if self._tls is not None else None
        subject = found.get("subject", ()) if found else ()
        return ", ".join(f"{name}={value!r}" for part in subject for name, value in part)  # type: ignore[str-unpack]

    # Reading -----------------------------------------------------------------------------------------------------------

    def recv(self) -> bytes:
        """Wait for bytes from the peer and return them decrypted, at most `RECEIVE_BYTES`; else as `Transport.recv`.

        Raises:
            TransportClosed: As there. TlsError: What came is not TLS any more, or the peer says that something is wrong.
        """
        if self._tls is None:
            return super().recv()
        if self._more:
            give_way()
        else:
            wait(self._read_watcher)
        first = True
        while True:
            data = self._decrypt()
            if data:
                self._more = bool(self._full or self._incoming.pending or self._ended or self._tls.pending())
                return data
            if self._ended:
                raise TransportClosed(self.close_reason or self._ended)
            if not first:
                # What came was for TLS itself, or not yet a record. Who sends nothing else must not hold the event loop.
                give_way()
            first = False
            self._read_more()

    def _decrypt(self) -> bytes:
        """Return plain bytes of what has been read from the socket, at most `RECEIVE_BYTES`; nothing if there are none."""
        tls, ready = self._tls, self._ready
        assert tls is not None
        if ready:
            self._ready = b""
            return ready
        parts = []
        left = RECEIVE_BYTES
        try:
            # A read gives one record at the most.
            while left and not self._ended:
                part = tls.read(left)
                if part:
                    parts.append(part)
                    left -= len(part)
                else:
                    self._ended = "closed by the peer"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLEOFError:
            # Without a close_notify. Many do so, and RTMP says by itself where a message ends; but half a record is damage.
            missing = self._records.missing
            cut = f": the connection ended {missing} bytes before the end of a TLS record" if missing else ""
            self._ended = f"closed by the peer{cut}"
        except ssl.SSLError as error:
            self._say_why()
            if not self.close_reason:
                raise TlsError(words(error, "peer")) from None
            self._ended = self.close_reason
        try:
            self._send_own()
        except OSError as error:
            self._ended = f"send failed: {error.strerror or error}"
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_more(self) -> None:
        """Wait for encrypted bytes and hand them to OpenSSL."""
        while True:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                wait(self._read_watcher)
                continue
            except OSError as error:
                raise TransportClosed(self.close_reason or f"read failed: {error.strerror or error}") from None
            self._take(data, end=not data)
            if self.interactive:
                self._acknowledge()
            return

    def _take(self, data: bytes, *, end: bool = False) -> None:
        self._full = len(data) == RECEIVE_BYTES
        self._records.feed(data)
        self._incoming.write(data)
        if end:
            self._incoming.write_eof()

    def ensure_open(self) -> None:
        """Look whether the connection is still there, without waiting.

        A glance at the socket would not do: a close_notify that waits there looks like data. So what the socket has is read
        and decrypted, one piece at the most, and kept for the next `recv`.

        Raises:
            TransportClosed: It is not.
        """
        if self._tls is None:
            super().ensure_open()
            return
        if self.close_reason:
            raise TransportClosed(self.close_reason)
        if self._ready:
            return
        if not self._incoming.pending and not self._ended:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                raise TransportClosed(f"read failed: {error.strerror or error}") from None
            self._take(data, end=not data)
        self._ready = self._decrypt()
        # Else the next read would wait for the socket, which has nothing more.
        self._more = True
        if self._ended and not self._ready:
            raise TransportClosed(self._ended)

    # Writing -----------------------------------------------------------------------------------------------------------

    def _try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt and send as much as the socket takes, and up to one record more.

        Raises:
            BlockingIOError: The last record has not gone out yet. OSError: The connection is gone.
        """
        if self._rest:
            self._flush()
            if self._rest:
                raise BlockingIOError
        assert self._tls is not None
        write, read, send = self._tls.write, self._outgoing.read, self._sock.send
        taken, size = 0, len(data)
        # Views are given back even on the way out: whoever catches the error must be able to empty the buffer.
        with memoryview(data) as view:
            while taken < size:
                with view[taken : taken + _RECORD_BYTES] as piece:
                    taken += write(piece)
                record = read()
                try:
                    sent = send(record)
                except BlockingIOError:
                    sent = 0
                if sent < len(record):
                    self._keep(record[sent:])
                    break
        return taken

    def _sent(self, record: bytes) -> int:
        try:
            return self._sock.send(record)
        except BlockingIOError:
            return 0

    def _flush(self) -> None:
        """Send what is kept, as far as the socket takes it."""
        if self._rest:
            self._rest = self._rest[self._sent(self._rest) :]

    def _keep(self, rest: bytes) -> None:
        self._rest += rest
        self._watch()

    def _send_own(self) -> None:
        """Send what OpenSSL has to say for itself. Never waits: what does not fit is kept."""
        if not self._outgoing.pending:
            return
        self._keep(self._outgoing.read())
        self._flush()
        if len(self._rest) > KEPT_LIMIT_BYTES:
            self.close("it does not read the answers of TLS that it asks for")

    def send_all(self, data: bytes, limit_s: float) -> None:
        """Send everything, and wait until the socket has all of it; else as `Transport.send_all`."""
        if self._tls is None:
            super().send_all(data, limit_s)
            return
        view = memoryview(data)
        self.sending = True
        try:
            with deadline(limit_s, "sending"):
                while view:
                    try:
                        sent = self._try_send(view)
                    except BlockingIOError:
                        wait(self._write_watcher)
                        continue
                    self.bytes_sent += sent
                    view = view[sent:]
                self._finish()
        except OSError as error:
            raise TransportClosed(self.close_reason or f"send failed: {error.strerror or error}") from None
        finally:
            self.sending = False

    def _finish(self) -> None:
        """Wait until nothing is kept."""
        while self._rest:
            self._flush()
            if self._rest:
                wait(self._write_watcher)

    def watch_writable(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the event loop while the socket takes data and nothing is kept, until `unwatch_writable`."""
        self._callback = callback
        self._watch()

    def unwatch_writable(self) -> None:
        """Stop that. What is kept goes out all the same."""
        self._callback = None

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._flush_watcher.start(self._writable)

    def _writable(self) -> None:
        try:
            self._flush()
        except OSError as error:
            self._rest = b""
            self.close(f"send failed: {error.strerror or error}")
        if self._rest:
            return
        if self._callback is not None:
            self._callback()
        if self._callback is None and not self._rest:
            self._watching = False
            self._flush_watcher.stop()

    # The end -----------------------------------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Say good-bye (close_notify) if that does not have to wait, and shut the connection down. The first reason counts."""
        if not self.close_reason:
            self._say_goodbye()
        super().close(reason)

    def _say_goodbye(self) -> None:
        """Send a close_notify if it fits, unless a record is half sent: it would be taken for a part of that."""
        try:
            self._flush()
            if not self._rest:
                self._sent(self._goodbye())
        except OSError:
            # It has gone, or never came as far as to speak TLS.
            return

    def _goodbye(self) -> bytes:
        """Return a close_notify, once."""
        tls = self._tls
        if tls is None:
            return b""
        # What it wants to read is the peer's own, for which nobody waits.
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        return self._outgoing.read()

    def linger(self, limit_s: float) -> None:
        """Close orderly: as `Transport.linger`, with a close_notify. What the peer still sends is not even decrypted."""
        if self._tls is None:
            super().linger(limit_s)
            return
        with gevent.Timeout(limit_s, False):  # type: ignore[arg-type]
            try:
                self._finish()
                self._rest = self._goodbye()
                self._finish()
                self._shutdown(stdlib_socket.SHUT_WR)
                while True:
                    try:
                        if not self._sock.recv(RECEIVE_BYTES):
                            return
                        give_way()
                    except BlockingIOError:
                        wait(self._read_watcher)
            except OSError:
                # The peer has gone, in its own way.
                return

    def dispose(self) -> None:
        """Release the descriptor, and what OpenSSL holds. By the owner, once nobody else holds the transport."""
        self._flush_watcher.stop()
        self._flush_watcher.close()
        self._callback = None
        self._tls, self._incoming, self._outgoing, self._rest, self._ready = None, _NOTHING, _NOTHING, b"", b""
        # A bound method that is kept in its own object is a cycle, and the collector comes seldom.
        self.try_send = _disposed
        super().dispose()


def give_way_and_do(step: Callable[[], None]) -> None:
    """Do something that takes long for the event loop, after it has had its turn."""
    give_way()
    step()


def _disposed(data: object) -> int:
    raise OSError("the connection has been disposed of")
