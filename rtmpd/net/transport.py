"""A TCP connection: blocking-style reads in one greenlet, non-blocking writes from any.

One greenlet owns a transport: it reads from it, and disposes of it at the end. Other greenlets may call ``try_send`` and
``close``. Closing shuts the socket down, which ends the owner's read or write with the reason.
"""

from __future__ import annotations

import os
import socket as stdlib_socket
import struct
import sys
import termios
from contextlib import suppress
from fcntl import ioctl
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gevent import get_hub
from gevent.exceptions import ConcurrentObjectUseError
from gevent.hub import Waiter
from gevent.socket import wait

from rtmpd.errors import DeadlineExceeded, TransportClosed
from rtmpd.net.readers import readers
from rtmpd.phases import NOT_CLOSED
from rtmpd.util.deadline import Deadline
from rtmpd.util.event_loop import give_way
from rtmpd.util.speed import accelerated
from rtmpd.util.text import connection_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.socket import socket

    from rtmpd.net.readers import Pace, Readers
    from rtmpd.phases import CloseReason

_Found = TypeVar("_Found")

RECEIVE_BYTES = 32 << 10

_BUFFER = memoryview(bytearray(RECEIVE_BYTES))
"""What `Transport.readable` reads into, for all sockets: allocations of 32 KiB for each read would leave holes in the heap."""


_WRITE = 2
_KEEPALIVE = ((stdlib_socket.TCP_KEEPIDLE, 60), (stdlib_socket.TCP_KEEPINTVL, 15), (stdlib_socket.TCP_KEEPCNT, 4))

# The field tcpi_bytes_acked of Linux's struct tcp_info, and the answer to SIOCOUTQ, whose other name is TIOCOUTQ.
_TCP_INFO = struct.Struct("=120xQ")
_OUTSTANDING = struct.Struct("=i")


class Delivery(NamedTuple):
    """What TCP knows about sent data.

    Attributes:
        delivered: Bytes that the peer's host has acknowledged, of TLS with its overhead.
        outstanding: Bytes that the socket has accepted and the peer's host has not acknowledged, sent or not.
    """

    delivered: int
    outstanding: int


def deadline(limit_s: float, phase: str) -> Deadline:
    """Return a context manager that raises `DeadlineExceeded` if its body takes longer than *limit_s*."""
    return Deadline(limit_s, DeadlineExceeded(phase, limit_s))


def format_address(address: tuple[object, ...] | str) -> str:
    """Return a socket address as ``host:port``: IPv6 in brackets, IPv4 mapped to IPv6 as plain IPv4."""
    if isinstance(address, str):
        return address or "unix"
    host, port = str(address[0]), address[1]
    host = host.removeprefix("::ffff:") if "." in host else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@accelerated
class TransportState:
    """What a read needs of a transport.

    Attributes:
        intake: What takes the bytes of a read; None: only `Transport.readable` knows what to do with them.
    """

    __slots__ = ("intake",)

    intake: Callable[[bytes | memoryview], object] | None


class Transport(TransportState):
    """A connected TCP socket.

    Args:
        sock: gevent's socket; the transport only uses its descriptor, never its blocking methods.
        peer: The peer's address and port, as `format_address` returns it.

    Attributes:
        scheme: ``rtmp``; ``rtmps`` with TLS.
        try_send: ``send(data) -> int``, which never waits: raises BlockingIOError if nothing fits, OSError if the connection is
            lost. It is the socket's own method, because the fan-out calls it for every player.
        close_reason: The reason given to `close`; empty (`NOT_CLOSED`) while the transport is open.
        bytes_sent: Bytes sent by `send_all`; ``try_send`` does not count.
        sending: `send_all` is waiting with a part sent; other bytes would end up inside its data.
        interactive: Acknowledge received data at once (TCP_QUICKACK). FFmpeg and librtmp write C2 and each command in several
            small pieces with Nagle's algorithm on, and would wait 40 ms for the delayed acknowledgement at every step.
    """

    __slots__ = (
        "_consume",
        "_more",
        "_readers",
        "_sock",
        "_unread",
        "_unsent",
        "_waiter",
        "_write_watcher",
        "bytes_sent",
        "close_reason",
        "interactive",
        "peer",
        "sending",
        "sock",
        "try_send",
    )

    scheme = "rtmp"
    _plain = True  # what the socket has is what the peer has sent

    def __init__(self, sock: socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.close_reason = NOT_CLOSED
        self.bytes_sent = 0
        self.sending = False
        self.interactive = sock.family != stdlib_socket.AF_UNIX
        # The interpreter's socket inside gevent's is non-blocking already, and sends a fifth faster.
        self._sock: stdlib_socket.socket = sock._sock  # type: ignore[attr-defined]
        self.try_send: Callable[[bytes | bytearray | memoryview], int] = self._sock.send
        self._write_watcher = get_hub().loop.io(sock.fileno(), _WRITE)
        self._more = False
        self._readers: Readers | None = None
        self._consume: Callable[[bytes | memoryview], object] | None = None
        self.intake = None
        self._waiter: Waiter[Any] | None = None
        self._unread = False  # the socket has had an event for which it was not read to its end
        self._unsent = 0  # bytes that `send_all` still holds
        if sock.family != stdlib_socket.AF_UNIX:
            sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE, 1)

    @property
    def address(self) -> str:
        """The peer's address without its port, IPv6 in brackets; empty for a Unix socket."""
        return self.peer.rpartition(":")[0]

    @property
    def held_bytes(self) -> int:
        """The bytes that wait here: for the peer to read, or for the owner."""
        return self._unsent

    def limit_unsent(self, limit_bytes: int) -> None:
        """Let the kernel buffer at most about *limit_bytes* of unsent data (TCP_NOTSENT_LOWAT); 0 sets no limit.

        Without a limit the kernel accepts megabytes for a slow player: half a minute of video that is late however early the
        server notices.
        """
        if limit_bytes and self.sock.family != stdlib_socket.AF_UNIX:
            self.sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NOTSENT_LOWAT, limit_bytes)

    def keep_alive(self) -> None:
        """Let TCP find out that the peer's host is gone, in two minutes, while nothing is sent."""
        if self.sock.family != stdlib_socket.AF_UNIX:
            for option, value in _KEEPALIVE:
                self.sock.setsockopt(stdlib_socket.IPPROTO_TCP, option, value)

    def ensure_open(self) -> None:
        """Check that the connection is open, without waiting.

        Raises:
            TransportClosed: The peer or the server has closed the connection, or it has failed.
        """
        try:
            gone = bool(self.close_reason) or self._sock.recv(1, stdlib_socket.MSG_PEEK) == b""
        except BlockingIOError:
            return
        except OSError as error:
            raise TransportClosed(connection_error("read", error)) from None
        if gone:
            raise TransportClosed(self.close_reason or "closed by the peer")

    def delivery(self) -> Delivery:
        """Return how much of what was sent has arrived; zeros for a Unix socket and a lost connection."""
        if self.sock.family == stdlib_socket.AF_UNIX:
            return Delivery(0, 0)
        try:
            info = self._sock.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_INFO, _TCP_INFO.size)
            (outstanding,) = _OUTSTANDING.unpack(ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(_OUTSTANDING.size)))
            (delivered,) = _TCP_INFO.unpack(info)
        except (OSError, ValueError, struct.error):
            # The socket is closed, or the kernel is older than 4.1.
            return Delivery(0, 0)
        return Delivery(delivered, outstanding)

    def recv(self) -> bytes:
        """Wait for bytes from the peer and return at most `RECEIVE_BYTES` of them.

        Each call gives way to other greenlets: a peer that sends without a pause must not hold the event loop.

        Raises:
            TransportClosed: The peer or the server has closed the connection, or it has failed.
        """
        if self._more:
            give_way()
        else:
            # The last read emptied the socket: another one would only fail.
            self._wait_readable()
        while True:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                self._wait_readable()
                continue
            except OSError as error:
                raise TransportClosed(self.close_reason or connection_error("read", error)) from None
            if not data:
                raise TransportClosed(self.close_reason or "closed by the peer")
            self._more = len(data) == RECEIVE_BYTES
            if self.interactive:
                self._acknowledge()
            return data

    def _wait_readable(self) -> None:
        """Wait until the socket has data, or the connection has ended. Rarely returns too early."""
        self._wait(None)

    def _wait(self, consume: Callable[[bytes | memoryview], object] | None) -> Any:
        """Wait until *consume* returns something, and return it; None: until the socket is readable."""
        if self._waiter is not None:
            raise ConcurrentObjectUseError("another greenlet reads from this connection already")
        waiter = self._waiter = Waiter()
        self._consume = consume
        if self._plain and not self.interactive:
            self.intake = consume
        try:
            if self._readers is None:
                self._readers = readers()
                self._readers.add(self)
            elif self._unread:
                self._readers.ask_again(self)
            self._unread = False
            if consume is not None and self._has_read_ahead:
                get_hub().loop.run_callback(self.readable)
            return waiter.get()
        finally:
            if self._waiter is waiter:
                self._end_wait()

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 after `dispose`."""
        return self.sock.fileno()

    def recv_while(self, consume: Callable[[bytes | memoryview], _Found | None]) -> _Found:
        """Hand what comes from the peer to *consume* until that returns something; wait for it and return it.

        Args:
            consume: Called with bytes in the event loop, or with a view that is valid until it returns: it must not wait. What
                it raises is raised here. Nothing is read while nothing waits here.

        Raises:
            TransportClosed: As `recv`.
        """
        return self._wait(consume)  # type: ignore[no-any-return]

    @property
    def _has_read_ahead(self) -> bool:
        """Whether there are bytes of the peer that are not in the socket any longer."""
        return False

    def readable(self, *, ending: bool = False) -> None:
        """Read once, and hand the bytes to what waits for them. Called in the event loop.

        Args:
            ending: The peer has closed its side: behind the data is an end, for which there is no event of its own.
        """
        consume, waiter = self._consume, self._waiter
        if consume is None or waiter is None:
            # Nothing waits for it, or what waits for it reads itself.
            self._unread = ending or waiter is None
            if waiter is not None:
                self.wake(None)
            return
        try:
            data = self._receive_ready()
            if not data:
                return
            if ending and self._readers is not None:
                self._readers.ask_again(self)
            found = consume(data)
        except Exception:  # noqa: BLE001 - raised in the greenlet of the connection
            self.wake_with_error()
            return
        if found is not None:
            self.wake(found)

    def wake(self, found: object) -> None:
        """Wake the greenlet that waits, and let it return *found*. In the event loop."""
        waiter = self._waiter
        self._end_wait()
        if waiter is not None:
            waiter.switch(found)

    def wake_with_error(self) -> None:
        """Wake the greenlet that waits, and raise there the exception that is being handled. In the event loop."""
        waiter = self._waiter
        self._end_wait()
        if waiter is not None:
            waiter.throw(*sys.exc_info())

    def _end_wait(self) -> None:
        self._waiter = self._consume = self.intake = None

    def read_failed(self, number: int) -> None:
        """End the connection, whose socket has failed with an error number. In the event loop."""
        try:
            raise TransportClosed(self.close_reason or connection_error("read", OSError(number, os.strerror(number))))
        except TransportClosed:
            self.wake_with_error()

    def read_full(self) -> None:
        """Take note that a read was full, and has probably not emptied the socket."""
        if self._readers is not None:
            self._readers.ask_again(self)

    def _receive_ready(self) -> bytes | memoryview:
        """Return what the socket has, at most `RECEIVE_BYTES`; empty: nothing now. A view is valid until the next call.

        Raises as `recv`.
        """
        try:
            size = self._sock.recv_into(_BUFFER)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise TransportClosed(self.close_reason or connection_error("read", error)) from None
        if not size:
            raise TransportClosed(self.close_reason or "closed by the peer")
        if size == RECEIVE_BYTES:
            self.read_full()
        if self.interactive:
            self._acknowledge()
        return _BUFFER[:size]

    def set_pace(self, pace: Pace) -> None:
        """Read in another way from now on, in `recv_while`."""
        if self._readers is not None:
            self._readers.set_pace(self, pace)

    def _acknowledge(self) -> None:
        # The option is not permanent: the kernel returns to delayed acknowledgements by itself.
        try:
            self._sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_QUICKACK, 1)
        except OSError:
            self.interactive = False

    def send_all(self, data: bytes | memoryview, limit_s: float) -> None:
        """Send all of *data*, and wait until the socket has taken it.

        Raises:
            TransportClosed: The connection was closed, or has failed.
            DeadlineExceeded: The peer did not read fast enough for *limit_s*.
        """
        view = memoryview(data)
        self.sending = True
        try:
            # Most of what is sent fits into the socket's buffer: then there is nothing to wait for.
            view = self._send_some(view)
            if view:
                with deadline(limit_s, "sending"):
                    while view:
                        self._unsent = len(view)
                        wait(self._write_watcher)
                        view = self._send_some(view)
        except OSError as error:
            raise TransportClosed(self.close_reason or connection_error("send", error)) from None
        finally:
            self.sending = False
            self._unsent = 0

    def _send_some(self, view: memoryview) -> memoryview:
        """Send what the socket accepts at once; return the rest."""
        try:
            sent = self._sock.send(view)
        except BlockingIOError:
            return view
        self.bytes_sent += sent
        return view[sent:]

    def watch_writable(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the event loop whenever the socket takes data, until `unwatch_writable`."""
        self._write_watcher.start(callback)

    def unwatch_writable(self) -> None:
        """Stop calling the callback of `watch_writable`, if there is one."""
        self._write_watcher.stop()

    def close(self, reason: CloseReason) -> None:
        """Shut the connection down. Data sent before is still delivered. Only the first call's reason is kept."""
        if not self.close_reason:
            self.close_reason = reason
            self._shutdown(stdlib_socket.SHUT_RDWR)

    def linger(self, limit_s: float) -> None:
        """Half-close the connection, then read and discard until the peer closes or *limit_s* has passed.

        A refused encoder must be able to read the refusal: the data that it still sends would otherwise make the kernel reset
        the connection, and the refusal would be lost.
        """
        self._shutdown(stdlib_socket.SHUT_WR)
        with suppress(DeadlineExceeded, TransportClosed), deadline(limit_s, "lingering"):
            while True:
                self.recv()

    def _shutdown(self, how: int) -> None:
        try:
            self._sock.shutdown(how)
        except OSError:
            # The peer has closed the connection already.
            return

    def dispose(self) -> None:
        """Release the file descriptor. Called by the owner, after every other greenlet has dropped the transport."""
        if self._readers is not None:
            self._readers.remove(self)
        self._write_watcher.stop()
        self._write_watcher.close()
        self.sock.close()
