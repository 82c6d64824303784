"""Writing for a connection that plays several streams at once.

Each stream's fan-out sends when it likes; without care the second would write into the middle of the first's message. An outlet
takes each write whole or not at all and keeps what the socket did not take. Imports the transport's types only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.net.transport import Transport

__all__ = ["SharedOutlet"]


class SharedOutlet:
    """Stands in for the transport of a connection with more than one player (see `SubscriberTransport`).

    Args:
        transport: The connection's.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._rest = bytearray()
        self._callbacks: list[Callable[[], None]] = []

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Take all of *data*, which must be whole messages.

        Raises:
            BlockingIOError: Something that was taken before has not gone out yet. OSError: The connection is gone.
        """
        if self._rest:
            self._flush()
            if self._rest:
                raise BlockingIOError
        try:
            sent = self._transport.try_send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._keep(data[sent:])
        return len(data)

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        """Keep bytes that were taken, and send them as soon as the socket takes them: the next message may be far off."""
        self._rest += data
        self._transport.watch_writable(self._writable)

    def _flush(self) -> None:
        sent = self._transport.try_send(self._rest)
        del self._rest[:sent]

    def owe(self, data: bytes) -> None:
        """Take bytes that must go out before anything else."""
        if data:
            self._keep(data)

    def take_rest(self) -> bytes:
        """Return what has not gone out yet, and forget it: the last player has left, and others write to the connection now."""
        rest = bytes(self._rest)
        self._rest.clear()
        self._callbacks.clear()
        self._transport.unwatch_writable()
        return rest

    def watch_writable(self, callback: Callable[[], None]) -> None:
        """Call every player's *callback* once what is kept has gone out; each is called once."""
        self._callbacks.append(callback)
        self._transport.watch_writable(self._writable)

    def _writable(self) -> None:
        try:
            if self._rest:
                self._flush()
        except BlockingIOError:
            return
        except OSError as error:
            self._rest.clear()
            self._transport.close(f"send failed: {error.strerror or error}")
        if not self._rest:
            callbacks, self._callbacks = self._callbacks, []
            self._transport.unwatch_writable()
            for callback in callbacks:
                callback()

    def unwatch_writable(self) -> None:
        """Nothing: the others may still wait, and a callback for a player that has left does no harm."""

    def close(self, reason: str) -> None:
        """Close the connection."""
        self._transport.close(reason)
