"""The listeners of the server, and how a reload changes them. Sockets that systemd handed over stay for the whole run."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.config.model import ListenAddress
from rtmpd.errors import RtmpdError
from rtmpd.net.listener import Listener, bind_problem, listening_places, resolved
from rtmpd.net.resolver import Resolver, numeric
from rtmpd.net.tls_transport import TlsTransport
from rtmpd.net.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gevent.socket import socket

    from rtmpd.config.model import Config

log = logging.getLogger(__name__)

_LOOK_UP_LIMIT_S = 5.0

OptionPath = tuple[str, ...]
"""A section and an option."""


class Addresses(NamedTuple):
    """The configured listening addresses for RTMP and RTMPS."""

    rtmp: Sequence[ListenAddress]
    rtmps: Sequence[ListenAddress]


def overlap_problems(wanted: Iterable[tuple[OptionPath, ListenAddress]]) -> dict[int, str]:
    """Return the addresses that overlap with an earlier one: the index of each, and the problem.

    Looks up host names, which blocks.
    """
    problems: dict[int, str] = {}
    seen: list[tuple[ListenAddress, OptionPath, ListenAddress]] = []
    for index, (path, address) in enumerate(wanted):
        found = resolved(address)
        for other_found, (section, option), other in seen:
            if other_found.overlaps(found):
                problems[index] = f"can't listen on {address}: it overlaps with {other} of [{section}] {option}"
                break
        else:
            seen.append((found, path, address))
    return problems


class Ports:
    """The listeners for RTMP and RTMPS.

    Args:
        serve: Called with each connection, in its greenlet.
        inherited: Sockets for RTMP that systemd handed over.
        tls_inherited: Sockets for RTMPS that systemd handed over.
        resolver: Looks up host names, so that one that hangs stops neither streams nor signals.

    Attributes:
        listeners: The listeners that accept connections.
    """

    def __init__(
        self,
        serve: Callable[[Transport], None],
        inherited: Sequence[socket] = (),
        tls_inherited: Sequence[socket] = (),
        resolver: Resolver | None = None,
    ) -> None:
        self._serve = serve
        self._resolver = resolver or Resolver()
        self._inherited = inherited
        self._tls_inherited = tls_inherited
        self.listeners: list[Listener] = []
        # Closed listeners whose connections are still open.
        self._retired: list[Listener] = []

    @staticmethod
    def select(config: Config) -> Addresses:
        """Return the addresses of a configuration, the arguments of `open` and `change`."""
        return Addresses(config.server.listen, config.tls.tls_listen)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each address that is listened on."""
        return tuple(each for listener in self.listeners for each in listener.addresses)

    def _numeric(self, addresses: Sequence[ListenAddress]) -> list[ListenAddress]:
        """Return addresses with names looked up; waits for 5 s for each at most. Raises RtmpdError if one can't be."""
        found = []
        for address in addresses:
            try:
                name = address.host if address.host and not numeric(address.host, address.port) else ""
                if not name:
                    found.append(address)
                    continue
                first = self._resolver.resolve(name, address.port, _LOOK_UP_LIMIT_S)[0]
            except (OSError, UnicodeError) as error:
                problem = bind_problem(error) if isinstance(error, OSError) else "it is not a valid host name"
                raise RtmpdError(f"can't listen on {address}: {problem}") from None
            self._resolver.worked(name, address.port, first)
            scope = f"%{first[3]}" if len(first) > 3 and first[3] else ""
            found.append(ListenAddress(f"{first[0]}{scope}", address.port))
        return found

    def _wanted(
        self, rtmp: Sequence[ListenAddress], rtmps: Sequence[ListenAddress]
    ) -> list[tuple[ListenAddress | socket, type[Transport]]]:
        """Return where to listen, and the kind of connections; raises RtmpdError if there is no address, or two overlap."""
        named = [(("server", "listen"), each) for each in rtmp] + [(("tls", "tls_listen"), each) for each in rtmps]
        for problem in overlap_problems(named).values():
            raise RtmpdError(problem)
        wanted: list[tuple[ListenAddress | socket, type[Transport]]]
        wanted = [(place, Transport) for place in listening_places(rtmp, self._inherited)]
        wanted += [(place, TlsTransport) for place in listening_places(rtmps, self._tls_inherited)]
        if not wanted:
            raise RtmpdError("there is nothing to listen on: [server] listen and [tls] tls_listen are empty")
        return wanted

    def open(self, rtmp: Sequence[ListenAddress], rtmps: Sequence[ListenAddress] = ()) -> None:
        """Bind all addresses.

        Raises:
            RtmpdError: An address can't be bound. All are closed then.
        """
        try:
            for place, kind in self._wanted(self._numeric(rtmp), self._numeric(rtmps)):
                self.listeners.append(Listener(place, self._serve, kind))
        except RtmpdError:
            self.close()
            raise

    def start(self) -> None:
        """Start to accept connections."""
        for listener in self.listeners:
            self._start(listener)

    @staticmethod
    def _start(listener: Listener) -> None:
        listener.start()
        log.info("listening on %s%s", listener.bound, " for RTMPS" if listener.kind is TlsTransport else "")

    def change(self, rtmp: Sequence[ListenAddress], rtmps: Sequence[ListenAddress] = ()) -> None:
        """Listen on exactly these addresses. Open connections stay, also those of other addresses.

        Raises:
            RtmpdError: An address can't be bound. The old ones are kept then.
        """
        wanted = self._wanted(self._numeric(rtmp), self._numeric(rtmps))
        kept, dropped = [], []
        for listener in self.listeners:
            if (listener.place, listener.kind) in wanted:
                wanted.remove((listener.place, listener.kind))
                kept.append(listener)
            else:
                dropped.append(listener)
        made: list[Listener] = []
        closed: list[Listener] = []
        try:
            for place, kind in wanted:
                # The kernel refuses an address that overlaps with an open listener, even if that will be closed.
                for listener in dropped:
                    if listener not in closed and _overlap(place, listener.place):
                        listener.close()
                        closed.append(listener)
                made.append(Listener(place, self._serve, kind))
        except RtmpdError:
            for listener in made:
                listener.close()
            self._reopen(closed)
            raise
        for listener in made:
            self._start(listener)
        for listener in dropped:
            listener.close()
            log.info("no longer listening on %s", listener.bound)
        self.listeners = kept + made
        self._retire(dropped)

    def _reopen(self, closed: list[Listener]) -> None:
        for listener in closed:
            self.listeners.remove(listener)
            try:
                again = Listener(listener.place, self._serve, listener.kind)
            except RtmpdError as error:
                log.error("reload: %s; it was listened on before: restart rtmpd", error)
            else:
                again.start()
                self.listeners.append(again)
        self._retire(closed)

    def _retire(self, listeners: list[Listener]) -> None:
        self._retired = [listener for listener in self._retired + listeners if listener.busy]

    def close(self) -> None:
        """Stop accepting connections."""
        for listener in self.listeners:
            listener.close()

    def wait(self, limit_s: float) -> None:
        """Wait until all connections have ended, at most *limit_s*."""
        deadline = time.monotonic() + limit_s
        for listener in self.listeners + self._retired:
            listener.wait(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End the greenlets of all connections."""
        for listener in self.listeners + self._retired:
            listener.kill()


def _overlap(one: ListenAddress | socket, other: ListenAddress | socket) -> bool:
    return isinstance(one, ListenAddress) and isinstance(other, ListenAddress) and one.overlaps(other)
