"""An outlet: what the players of a connection write to when it plays several streams at once.

The fan-out of each stream sends when it likes, and would write into the middle of another stream's message. An outlet accepts
each write whole or not at all, and keeps what the socket does not accept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.phases import CloseKind, CloseReason
from rtmpd.util.text import connection_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.net.transport import Transport


class SharedOutlet:
    """Replaces the transport for the players of a connection with more than one (see `SubscriberTransport`).

    Args:
        transport: The transport of the connection.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._rest = bytearray()
        self._callbacks: list[Callable[[], None]] = []

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Accept all of *data*, which must be whole messages.

        Raises:
            BlockingIOError: Bytes that were accepted before are not sent yet. OSError: The connection is gone.
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
        """Keep accepted bytes, and send them as soon as the socket accepts them: the next message may be far off."""
        self._rest += data
        self._transport.watch_writable(self._writable)

    def _flush(self) -> None:
        sent = self._transport.try_send(self._rest)
        del self._rest[:sent]

    @property
    def held_bytes(self) -> int:
        """The bytes that were accepted and are not sent yet."""
        return len(self._rest)

    def owe(self, data: bytes) -> None:
        """Accept bytes that must be sent before anything else."""
        if data:
            self._keep(data)

    def take_rest(self) -> bytes:
        """Return the bytes that are not sent yet, and forget them: the last player has left, and the connection sends them."""
        rest = bytes(self._rest)
        self._rest.clear()
        self._callbacks.clear()
        self._transport.unwatch_writable()
        return rest

    def watch_writable(self, callback: Callable[[], None]) -> None:
        """Call every player's *callback*, once, when the kept bytes are sent."""
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
            self._transport.close(CloseReason(CloseKind.PEER_LEFT, connection_error("send", error)))
        if not self._rest:
            callbacks, self._callbacks = self._callbacks, []
            self._transport.unwatch_writable()
            for callback in callbacks:
                callback()

    def unwatch_writable(self) -> None:
        """Do nothing: other players may still wait, and a callback for a player that has left does no harm."""

    def close(self, reason: CloseReason) -> None:
        """Close the connection."""
        self._transport.close(reason)
