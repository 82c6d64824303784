"""The ports of the server: what is listened on, and how that changes while it runs.

A socket that was handed over is kept for good. Imports net.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from rtmpd.config.model import ListenAddress
from rtmpd.errors import RtmpdError
from rtmpd.net.listener import Listener, numeric, places
from rtmpd.net.tls_transport import TlsTransport
from rtmpd.net.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gevent.socket import socket

__all__ = ["Ports"]

log = logging.getLogger(__name__)


class Ports:
    """The listeners of the server.

    Args:
        serve: Called with each connection, in its greenlet.
        inherited: Sockets that were handed over.
        tls_inherited: Those among them that are for RTMPS.

    Attributes:
        listeners: Those that accept connections.
    """

    def __init__(
        self, serve: Callable[[Transport], None], inherited: Sequence[socket] = (), tls_inherited: Sequence[socket] = ()
    ) -> None:
        self._serve = serve
        self._inherited = inherited
        self._tls_inherited = tls_inherited
        self.listeners: list[Listener] = []
        # They accept no more, but have connections.
        self._retired: list[Listener] = []

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every address that is listened on."""
        return tuple(each for listener in self.listeners for each in listener.addresses)

    def _wanted(
        self, addresses: Iterable[ListenAddress], tls_addresses: Iterable[ListenAddress]
    ) -> list[tuple[ListenAddress | socket, type[Transport]]]:
        """Return where to listen, and for what; raises RtmpdError if that is nowhere, or for both somewhere."""
        addresses, tls_addresses = list(addresses), list(tls_addresses)
        for one in tls_addresses:
            other = next((each for each in addresses if numeric(each).overlaps(numeric(one))), None)
            if other is not None:
                raise RtmpdError(f"can't listen on {one} for RTMPS: [server] listen has {other}")
        wanted = [(place, Transport) for place in places(addresses, self._inherited)]
        wanted += [(place, TlsTransport) for place in places(tls_addresses, self._tls_inherited)]
        if not wanted:
            raise RtmpdError("there is nothing to listen on: [server] listen and [tls] tls_listen are empty")
        return wanted

    def open(self, addresses: Iterable[ListenAddress], tls_addresses: Iterable[ListenAddress] = ()) -> None:
        """Bind all addresses: those for RTMP, and those for RTMPS.

        Raises:
            RtmpdError: One can't be bound. Nothing is left open then.
        """
        try:
            for place, kind in self._wanted(addresses, tls_addresses):
                self.listeners.append(Listener(place, self._serve, kind))
        except RtmpdError:
            self.close()
            raise

    def start(self) -> None:
        """Begin to accept."""
        for listener in self.listeners:
            self._start(listener)

    @staticmethod
    def _start(listener: Listener) -> None:
        listener.start()
        log.info("listening on %s%s", listener.bound, " for RTMPS" if listener.kind is TlsTransport else "")

    def change(self, addresses: Iterable[ListenAddress], tls_addresses: Iterable[ListenAddress] = ()) -> None:
        """Listen on these addresses and on no others from now on. Connections go on, whatever they came in by.

        Raises:
            RtmpdError: One can't be bound. Everything is as it was then.
        """
        wanted = self._wanted(addresses, tls_addresses)
        stay, go = [], []
        for listener in self.listeners:
            if (listener.place, listener.kind) in wanted:
                wanted.remove((listener.place, listener.kind))
                stay.append(listener)
            else:
                go.append(listener)
        made: list[Listener] = []
        closed: list[Listener] = []
        try:
            for place, kind in wanted:
                # The kernel does not give an address that another listener has a part of, though that is about to go.
                for listener in go:
                    if listener not in closed and _overlap(place, listener.place):
                        listener.close()
                        closed.append(listener)
                made.append(Listener(place, self._serve, kind))
        except RtmpdError:
            for listener in made:
                listener.close()
            self._open_again(closed)
            raise
        for listener in made:
            self._start(listener)
        for listener in go:
            listener.close()
            log.info("no longer listening on %s", listener.bound)
        self.listeners = stay + made
        self._retire(go)

    def _open_again(self, closed: list[Listener]) -> None:
        for listener in closed:
            self.listeners.remove(listener)
            try:
                again = Listener(listener.place, self._serve, listener.kind)
            except RtmpdError as error:
                log.error("%s any more", error)
            else:
                again.start()
                self.listeners.append(again)
        self._retire(closed)

    def _retire(self, listeners: list[Listener]) -> None:
        self._retired = [listener for listener in self._retired + listeners if listener.busy]

    def close(self) -> None:
        """Accept no more."""
        for listener in self.listeners:
            listener.close()

    def wait(self, limit_s: float) -> None:
        """Wait until every connection has ended, at most *limit_s*."""
        deadline = time.monotonic() + limit_s
        for listener in self.listeners + self._retired:
            listener.wait(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End the greenlets of connections that are still there."""
        for listener in self.listeners + self._retired:
            listener.kill()


def _overlap(one: ListenAddress | socket, other: ListenAddress | socket) -> bool:
    return isinstance(one, ListenAddress) and isinstance(other, ListenAddress) and one.overlaps(other)
