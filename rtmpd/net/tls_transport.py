"""A `Transport` with TLS, whose sends do not wait either.

gevent's TLS sockets wait for the socket inside a send, and for a read in the middle of a write, so the fan-out, which sends to
thousands of players in turn, can't use them. Here OpenSSL never sees the socket: it works on two buffers in memory, and the
transport moves the bytes. A send that does not wait takes whole records (16 KiB) as long as the socket takes them whole. The
unsent end of the last record is kept and sent as soon as it fits; until then the transport takes nothing more.
"""

from __future__ import annotations

import contextlib
import select
import socket as stdlib_socket
import ssl
import time
from functools import partial
from typing import TYPE_CHECKING

import gevent
from gevent import get_hub
from gevent.lock import BoundedSemaphore
from gevent.socket import wait

from rtmpd.errors import DeadlineExceeded, TlsError, TransportClosed
from rtmpd.net.tls_errors import explain, not_tls
from rtmpd.net.transport import RECEIVE_BYTES, Transport, deadline
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.util.event_loop import give_way
from rtmpd.util.text import connection_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.socket import socket

_WRITE = 2
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_RECORD_BYTES = 16 << 10
_RECORD_HEADER_BYTES = 5
_RECORD_OVERHEAD_BYTES = 256
_OWN_LIMIT_BYTES = 16 << 10
"""The most that is kept of TLS's own messages (answers to key updates, alerts) for a peer that does not read."""

KEPT_LIMIT_BYTES = _RECORD_BYTES + _RECORD_OVERHEAD_BYTES + _OWN_LIMIT_BYTES
"""The most that a transport keeps: the end of one record, and TLS's own messages."""

_NOTHING = ssl.MemoryBIO()


class HandshakeTurns:
    """Limits the TLS handshakes of clients: one computes at a time, and all together at most half of the time.

    A step of a handshake takes 0.4 ms (ECDSA) to 5 ms (RSA with 4096 bits), and can't be interrupted. Fifty clients that
    connect at once would hold the event loop for the sum of all their steps, since it runs every ready greenlet in one round.

    Attributes:
        waiting: How many handshakes wait for their turn.
    """

    def __init__(self) -> None:
        self._turn = BoundedSemaphore(1)
        self.waiting = 0

    def run(self, step: Callable[[], None], check: Callable[[], None] = lambda: None) -> None:
        """Wait for a turn, then run one step of a handshake.

        Args:
            step: The step.
            check: Raises an exception if the client has gone meanwhile: the turn is the next one's then, without a rest.
        """
        self.waiting += 1
        try:
            self._turn.acquire()
        finally:
            self.waiting -= 1
        try:
            check()
            begun = time.thread_time()
            try:
                step()
            finally:
                # A failed step costs as much as a successful one, and a flood of them must not hold the event loop either.
                gevent.sleep(max(time.thread_time() - begun, 1e-6))
        finally:
            self._turn.release()


class RecordCounter:
    """Counts the bytes of TLS records (RFC 8446 section 5.1), to detect a connection that ends inside a record.

    Attributes:
        missing: Bytes of the current record (or of its header, if that is incomplete) that have not arrived; 0 between records.
    """

    __slots__ = ("_header", "missing")

    def __init__(self) -> None:
        self.missing = 0
        self._header = b""

    def feed(self, data: bytes) -> None:
        """Count received bytes."""
        position = self.missing
        if self._header:
            data = self._header + data
            position = 0
        size = len(data)
        while position + _RECORD_HEADER_BYTES <= size:
            position += _RECORD_HEADER_BYTES + (data[position + 3] << 8 | data[position + 4])
        self._header = data[position:] if position < size else b""
        self.missing = _RECORD_HEADER_BYTES - len(self._header) if self._header else position - size


class TlsTransport(Transport):
    """A connected TCP socket with TLS. Until `secure` it is a plain one, so that a PROXY header can be read before TLS.

    Memory: OpenSSL frees its own buffers when they are empty. The two buffers in memory grow to the largest piece that they
    have held (up to 32 KiB inward, one record outward) and keep that size. Together with the kept bytes a transport takes less
    than 200 KiB, and that of a player 20 to 45 KiB. During the handshake OpenSSL accepts messages of up to 128 KiB.

    Attributes:
        try_send: As in `Transport`; returns the number of plain bytes taken, not of encrypted ones.
        bytes_sent: Plain bytes sent by `send_all`.
        server_name: The server name of the handshake (SNI), or "".
    """

    __slots__ = (
        "_callback",
        "_ended",
        "_flush_watcher",
        "_full",
        "_handshake_bytes",
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
    _plain = False

    def __init__(self, sock: socket, peer: str) -> None:
        super().__init__(sock, peer)
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._rest = b""  # encrypted bytes that the socket has not taken yet
        self._ready = b""  # plain bytes that `ensure_open` has read ahead
        self._ended = ""  # why nothing more can be read
        self._full = False  # the last read filled its buffer: the socket probably has more
        self._records = RecordCounter()
        self._handshake_bytes = 0  # of the peer's messages in the handshake, which OpenSSL keeps until they are complete
        self._callback: Callable[[], None] | None = None
        # `send_all` waits on the other write watcher, and a watcher has only one user.
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
        """Do the TLS handshake. From then on the connection is encrypted.

        Args:
            context: The certificates of this side, and the requirements on those of the peer.
            limit_s: The time limit for the whole handshake.
            first: Bytes of the peer that have been read already.
            host: For a client: the server's name or address, which its certificate must contain. None: this side is the server.
            turns: Limits the time that handshakes compute. None: no limit.

        Raises:
            TlsError: The handshake failed; the message says why.
            TransportClosed: The peer has closed the connection.
            DeadlineExceeded: The handshake took longer than *limit_s*.
        """
        step = _give_way_and_run if turns is None else turns.run
        first_step = step if turns is None else partial(turns.run, check=self._check_peer)
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
                raise TlsError(f"{host!r} is not a valid TLS server name: {error}") from None
            self.try_send = self._try_send
            self._take(first)
            self._shake_hands(first_step, step, "client" if host is None else "server")
            # Data that arrived together with the end of the handshake is in the buffer, not in the socket.
            self._more = True
        self.server_name = getattr(self._tls, "asked_for", "") if host is None else name or ""

    def _shake_hands(
        self, first_step: Callable[[Callable[[], None]], None], step: Callable[[Callable[[], None]], None], peer: str
    ) -> None:
        tls = self._tls
        assert tls is not None
        done, run = False, first_step
        while not done:
            self._handshake_bytes += self._incoming.pending
            try:
                run(tls.do_handshake)
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLEOFError:
                raise TransportClosed(self.close_reason or "closed by the peer in the TLS handshake") from None
            except ssl.SSLError as error:
                self._send_alert()
                # The name shows which of several certificates the client got, or that it used a wrong name.
                asked = getattr(tls, "asked_for", "")
                name = f" (the client asked for {asked!r})" if asked else ""
                raise TlsError(f"{explain(error, peer, tls.context)}{name}") from None
            try:
                self._send_own()
            except OSError as error:
                raise TransportClosed(self.close_reason or connection_error("send", error)) from None
            if not done:
                # Later a client may leave behind its last message, which may be an alert that says why.
                run = step
                self._read_more()

        self._handshake_bytes = 0

    def _check_peer(self) -> None:
        """Raise `TransportClosed` if the peer has closed the connection: none half-closes it in a handshake."""
        poll = select.poll()
        poll.register(self._sock, _GONE)
        if poll.poll(0):
            raise TransportClosed(self.close_reason or "closed by the peer in the TLS handshake")

    def _send_alert(self) -> None:
        """Send the alert that tells the peer what failed, if the socket takes it."""
        try:
            self._send_own()
        except OSError:
            # The connection is lost. The caller raises the error that matters.
            return

    @property
    def description(self) -> str:
        """The TLS version, the cipher and the server name, for the log."""
        tls = self._tls
        if tls is None:
            return "no TLS"
        cipher = tls.cipher()
        name = f", name {self.server_name!r}" if self.server_name else ""
        return f"{tls.version()}, {cipher[0] if cipher else 'no cipher'}{name}"

    @property
    def application_protocol(self) -> str:
        """The protocol that both sides have chosen (ALPN); empty: none."""
        return (self._tls.selected_alpn_protocol() or "") if self._tls is not None else ""

    @property
    def certificate_subject(self) -> str:
        """The attributes of the subject of the peer's verified certificate, as ``commonName=x``; empty without one."""
        found = self._tls.getpeercert() if self._tls is not None else None
        subject = found.get("subject", ()) if found else ()
        return ", ".join(f"{name}={value!r}" for part in subject for name, value in part)  # type: ignore[str-unpack]

    @property
    def held_bytes(self) -> int:
        """The bytes that wait here, plain or encrypted."""
        queued = self._incoming.pending + self._outgoing.pending + len(self._ready) + len(self._rest)
        return self._unsent + queued + self._handshake_bytes

    # Reading -----------------------------------------------------------------------------------------------------------

    def recv(self) -> bytes:
        """Wait for bytes from the peer and return at most `RECEIVE_BYTES` of them, decrypted.

        Raises:
            TransportClosed: The peer or the server has closed the connection, or it has failed.
            TlsError: The peer sent something that is not TLS, or a TLS alert.
        """
        if self._tls is None:
            return super().recv()
        if self._more:
            give_way()
        else:
            self._wait_readable()
        first = True
        while True:
            data = self._decrypt()
            if data:
                self._more = bool(self._full or self._incoming.pending or self._ended or self._tls.pending())
                return data
            if self._ended:
                raise TransportClosed(self.close_reason or self._ended)
            if not first:
                # The bytes were a message of TLS itself, or part of a record. A peer that sends nothing else must not hold
                # the event loop.
                give_way()
            first = False
            self._read_more()

    @property
    def _has_read_ahead(self) -> bool:
        return self._tls is not None and bool(self._ready or self._incoming.pending or self._ended or self._tls.pending())

    def _receive_ready(self) -> bytes | memoryview:
        if self._tls is None:
            return super()._receive_ready()
        if not self._has_read_ahead:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return b""
            except OSError as error:
                raise TransportClosed(self.close_reason or connection_error("read", error)) from None
            self._take(data, end=not data)
            if self.interactive:
                self._acknowledge()
        if self._full:
            self.read_full()
        # All of it: no event would come for what is left. It is hardly more than what the socket gives at once.
        data = self._decrypt(KEPT_LIMIT_BYTES + RECEIVE_BYTES)
        if not data and self._ended:
            raise TransportClosed(self.close_reason or self._ended)
        if self._ended:
            # It may have ended by a message of TLS, for which the socket has no event.
            get_hub().loop.run_callback(self.readable)
        return data

    def _decrypt(self, limit_bytes: int = RECEIVE_BYTES) -> bytes:
        """Decrypt what has been read from the socket, and return at most *limit_bytes*; empty without a whole record."""
        tls, ready = self._tls, self._ready
        assert tls is not None
        if ready:
            self._ready = b""
            return ready
        parts = []
        left = limit_bytes
        try:
            # Each read returns at most one record.
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
            # The peer closed without a close_notify. Many clients do, and RTMP messages carry their length; but an incomplete
            # record means lost data.
            missing = self._records.missing
            cut = f": the connection ended {missing} bytes before the end of a TLS record" if missing else ""
            self._ended = f"closed by the peer{cut}"
        except ssl.SSLError as error:
            self._send_alert()
            if not self.close_reason:
                raise TlsError(explain(error, "peer")) from None
            self._ended = self.close_reason
        try:
            self._send_own()
        except OSError as error:
            self._ended = connection_error("send", error)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_more(self) -> None:
        """Wait for encrypted bytes and pass them to OpenSSL."""
        while True:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                self._wait_readable()
                continue
            except OSError as error:
                raise TransportClosed(self.close_reason or connection_error("read", error)) from None
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
        """Check that the connection is open, without waiting.

        Peeking at the socket is not enough: a close_notify looks like data there. So one piece of data is read, decrypted and
        kept for the next `recv`.

        Raises:
            TransportClosed: The peer or the server has closed the connection, or it has failed.
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
                raise TransportClosed(connection_error("read", error)) from None
            self._take(data, end=not data)
        self._ready = self._decrypt()
        # Otherwise the next `recv` would wait for the socket, which may have no more data.
        self._more = True
        if self._ended and not self._ready:
            raise TransportClosed(self._ended)

    # Writing -----------------------------------------------------------------------------------------------------------

    def _try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt and send as much as the socket takes, and up to one record more.

        Raises:
            BlockingIOError: A part of the last record is still unsent.
            OSError: The connection is lost.
        """
        if self._rest:
            self._flush()
            if self._rest:
                raise BlockingIOError
        assert self._tls is not None
        write, read, send = self._tls.write, self._outgoing.read, self._sock.send
        taken, size = 0, len(data)
        # The views are released on errors, too: the caller that catches the error must be able to empty the buffer.
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
        """Send as much of the kept bytes as the socket takes."""
        if self._rest:
            self._rest = self._rest[self._sent(self._rest) :]

    def _keep(self, rest: bytes) -> None:
        self._rest += rest
        self._watch()

    def _send_own(self) -> None:
        """Send OpenSSL's own messages, without waiting. Bytes that do not fit are kept."""
        if not self._outgoing.pending:
            return
        self._keep(self._outgoing.read())
        self._flush()
        if len(self._rest) > KEPT_LIMIT_BYTES:
            self.close(CloseReason(CloseKind.STALLED, "the peer requests TLS messages and does not read them"))

    def send_all(self, data: bytes | memoryview, limit_s: float) -> None:
        """Send all of *data*, and wait until the socket has taken its last record; as `Transport.send_all`."""
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
                        self._unsent = len(view)
                        wait(self._write_watcher)
                        continue
                    self.bytes_sent += sent
                    view = view[sent:]
                self._finish()
        except OSError as error:
            raise TransportClosed(self.close_reason or connection_error("send", error)) from None
        finally:
            self.sending = False
            self._unsent = 0

    def _finish(self) -> None:
        """Wait until the socket has taken all kept bytes."""
        while self._rest:
            self._flush()
            if self._rest:
                wait(self._write_watcher)

    def watch_writable(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the event loop whenever the socket takes data and nothing is kept, until `unwatch_writable`."""
        self._callback = callback
        self._watch()

    def unwatch_writable(self) -> None:
        """Stop calling the callback of `watch_writable`. Kept bytes are still sent."""
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
            self.close(CloseReason(CloseKind.PEER_LEFT, connection_error("send", error)))
        if self._rest:
            return
        if self._callback is not None:
            self._callback()
        if self._callback is None and not self._rest:
            self._watching = False
            self._flush_watcher.stop()

    # The end -----------------------------------------------------------------------------------------------------------

    def close(self, reason: CloseReason) -> None:
        """Send a close_notify if the socket takes it, and shut the connection down. Only the first call's reason is kept."""
        if not self.close_reason:
            self._send_close_notify()
        super().close(reason)

    def _send_close_notify(self) -> None:
        """Send a close_notify if the socket takes it, and not after a part of a record, whose rest it would be taken for."""
        try:
            self._flush()
            if not self._rest:
                self._sent(self._close_notify())
        except OSError:
            # The connection is lost, or its TLS handshake failed.
            return

    def _close_notify(self) -> bytes:
        """Return a close_notify; empty at the second call."""
        tls = self._tls
        if tls is None:
            return b""
        # OpenSSL wants to read the peer's close_notify, which the transport does not wait for.
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        return self._outgoing.read()

    def linger(self, limit_s: float) -> None:
        """Send a close_notify, then do the same as `Transport.linger`. The data that the peer still sends is not decrypted."""
        if self._tls is None:
            super().linger(limit_s)
            return
        with contextlib.suppress(DeadlineExceeded), deadline(limit_s, "lingering"):
            try:
                self._finish()
                self._rest = self._close_notify()
                self._finish()
                self._shutdown(stdlib_socket.SHUT_WR)
                while True:
                    try:
                        if not self._sock.recv(RECEIVE_BYTES):
                            return
                        give_way()
                    except BlockingIOError:
                        self._wait_readable()
            except OSError:
                # The peer has reset the connection.
                return

    def dispose(self) -> None:
        """Release the file descriptor and OpenSSL's state. Called by the owner, as `Transport.dispose`."""
        self._flush_watcher.stop()
        self._flush_watcher.close()
        self._callback = None
        self._tls, self._incoming, self._outgoing, self._rest, self._ready = None, _NOTHING, _NOTHING, b"", b""
        # A bound method stored in its own object is a reference cycle, and the garbage collector rarely runs.
        self.try_send = _disposed
        super().dispose()


def _give_way_and_run(step: Callable[[], None]) -> None:
    """Give way to other greenlets, then run a step of a handshake."""
    give_way()
    step()


def _disposed(data: object) -> int:
    raise OSError("the transport has been disposed of")
