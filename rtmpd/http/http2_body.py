"""The transport of a body that a handler sends by HTTP/2: a buffer from which the frames of the connection are made.

For the fan-out and for viewers it is what the socket of a viewer is by HTTP/1.1: it takes so much and no more, says when it
takes more, and ends. It needs no file descriptor: one connection has several viewers, for which no descriptors are reserved.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from gevent import get_hub
from gevent.event import Event

from rtmpd.errors import TransportClosed
from rtmpd.net.transport import Transport, deadline
from rtmpd.phases import NOT_CLOSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.phases import CloseReason

_LIMIT_BYTES = 64 << 10
_ONCE_BYTES = 128 << 10
"""What is taken at once while there is less than the limit: a keyframe need not be taken in pieces."""


class BodyTransport(Transport):
    """Takes a body; as `Transport`, of which it has the methods that send and those that wait for the end.

    Args:
        peer: The client's address and port.
    """

    __slots__ = ("_callback", "_filled", "_limit", "_over", "_pieces", "_room", "_size")

    _plain = False

    def __init__(self, peer: str) -> None:  # without that of `Transport`, which needs a socket
        self.peer = peer
        self.intake = None
        self.interactive = False
        self.close_reason = NOT_CLOSED
        self.bytes_sent = 0
        self.sending = False
        self.try_send = self._try_send
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._limit = _LIMIT_BYTES
        self._callback: Callable[[], None] | None = None
        # Each has one greenlet that waits for it, and clears it.
        self._filled = Event()
        self._room = Event()
        self._over = Event()

    @property
    def held_bytes(self) -> int:
        """The bytes that wait for the client to read."""
        return self._size

    def limit_unsent(self, limit_bytes: int) -> None:
        """Take at most about *limit_bytes* before the client reads; 0, and much: 64 KiB."""
        self._limit = min(limit_bytes or _LIMIT_BYTES, _LIMIT_BYTES)

    def keep_alive(self) -> None:
        """Do nothing: that is done for the connection."""

    def ensure_open(self) -> None:
        """Raise TransportClosed if it has ended."""
        if self.close_reason:
            raise TransportClosed(self.close_reason)

    # For the handler ---------------------------------------------------------------------------------------------------

    def _try_send(self, data: bytes | bytearray | memoryview) -> int:
        if self.close_reason:
            raise BrokenPipeError
        if self._size >= self._limit:
            raise BlockingIOError
        taken = bytes(data[:_ONCE_BYTES])
        self._pieces.append(taken)
        self._size += len(taken)
        self._filled.set()
        return len(taken)

    def send_all(self, data: bytes | memoryview, limit_s: float) -> None:
        """Take all of *data*, and wait until there is room for it; as `Transport.send_all`."""
        view = memoryview(data)
        with deadline(limit_s, "sending"):
            while view:
                try:
                    view = view[self._try_send(view) :]
                except BlockingIOError:
                    self._room.clear()
                    self._room.wait()
                except BrokenPipeError:
                    raise TransportClosed(self.close_reason) from None

    def watch_writable(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the event loop when there is room, until `unwatch_writable`."""
        self._callback = callback
        self._call_back()

    def unwatch_writable(self) -> None:
        """Stop calling the callback of `watch_writable`, if there is one."""
        self._callback = None

    def _call_back(self) -> None:
        if self._callback is not None and self._size < self._limit:
            get_hub().loop.run_callback(self._run_callback)

    def _run_callback(self) -> None:
        callback = self._callback
        if callback is not None and self._size < self._limit:
            callback()

    def recv_while(self, consume: Callable[[bytes | memoryview], Any]) -> Any:
        """Wait for the end, and raise TransportClosed: a client sends nothing behind its request."""
        self._over.wait()
        raise TransportClosed(self.close_reason)

    # For the stream of HTTP/2 ------------------------------------------------------------------------------------------

    def take(self, limit_bytes: int) -> bytes:
        """Wait for bytes, and return them, at most *limit_bytes*; none: it was closed, and all was taken."""
        while not self._pieces:
            if self.close_reason:
                return b""
            self._filled.clear()
            self._filled.wait()
        found = self._pieces.popleft()
        if len(found) > limit_bytes:
            self._pieces.appendleft(found[limit_bytes:])
            found = found[:limit_bytes]
        else:
            while self._pieces and len(found) + len(self._pieces[0]) <= limit_bytes:
                found += self._pieces.popleft()
        self._size -= len(found)
        self._room.set()
        self._call_back()
        return found

    def close(self, reason: CloseReason) -> None:
        """End it, behind what was taken. The first reason counts. Does not wait."""
        if not self.close_reason:
            self.close_reason = reason
            self._filled.set()
            self._room.set()
            self._over.set()

    def dispose(self) -> None:
        """Forget what waits, after the handler has ended."""
        self._pieces.clear()
        self._size = 0
        self._callback = None
        # A bound method stored in its own object is a reference cycle, and the garbage collector rarely runs.
        self.try_send = _disposed


def _disposed(data: object) -> int:
    raise BrokenPipeError
