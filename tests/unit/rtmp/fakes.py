"""Stand-ins for the tests of connections: a transport without a socket, and a connection on it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rtmpd.authorization import AllowAll
from rtmpd.config.loader import load_text
from rtmpd.errors import TransportClosed
from rtmpd.events import EventBus
from rtmpd.live.memory import MemoryGuard
from rtmpd.live.selection import SourceRole
from rtmpd.net.tls import Tls
from rtmpd.rtmp.connection import Connection, ConnectionOptions
from tests.unit.live.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.live.source import Source
    from rtmpd.live.stream import Stream, StreamPlayer
    from rtmpd.net.readers import Pace

PEER = "192.0.2.1:50000"


class ConnectionTransport(FakeTransport):
    """A transport as a connection uses it.

    Attributes:
        unsent_limit_bytes: The last limit that was set.
        paces: Those that were set, in order.
    """

    scheme = "rtmp"
    bytes_sent = 0
    sending = False
    interactive = True
    held_bytes = 0

    def __init__(self, capacity: int | None = None, peer: str = PEER) -> None:
        super().__init__(capacity)
        self.peer = peer
        self.unsent_limit_bytes = 0
        self.paces: list[Pace] = []

    @property
    def address(self) -> str:
        return self.peer.rpartition(":")[0]

    def ensure_open(self) -> None:
        if self.close_reason:
            raise TransportClosed(self.close_reason)

    def limit_unsent(self, limit_bytes: int) -> None:
        self.unsent_limit_bytes = limit_bytes

    def recv(self) -> bytes:
        raise TransportClosed(self.close_reason or "closed by the peer")

    def set_pace(self, pace: Pace) -> None:
        self.paces.append(pace)

    def send_all(self, data: bytes, limit_s: float) -> None:
        assert self.try_send(data) == len(data)


class FakePolicy:
    """The hub, as connections use it: allows everything, and keeps the streams that the test gives it.

    Attributes:
        streams: By key.
        counted: The counters that were incremented, in order.
    """

    def __init__(self) -> None:
        self.tls = Tls()
        self.bus = EventBus()
        self.authorizer = AllowAll()
        self.streams: dict[str, Stream] = {}
        self.counted: list[str] = []
        self.memory = MemoryGuard(self.streams, (), Counter(), 0)

    def admit(self, app: str) -> object:
        return load_text("").live

    def publish_options(self, key: str) -> object:
        return load_text("").publish

    def publish(
        self, key: str, source: Source, role: SourceRole | None = None, announce: Callable[[Stream], None] = lambda stream: None
    ) -> Stream:
        stream = self.streams[key]
        announce(stream)
        stream.begin(source, role or SourceRole.PRIMARY)
        return stream

    def unpublish(self, stream: Stream, source: Source, *, lost: bool = True, reason: str = "") -> None:
        if stream.source is source:
            stream.wait_for_source(lost=lost)

    def play(self, key: str, player: StreamPlayer) -> Stream:
        return self.streams[key]

    def unplay(self, stream: Stream, player: StreamPlayer) -> None:
        pass

    def count(self, name: str, number: int = 1) -> None:
        self.counted += [name] * number


def connection_options(ini: str = "") -> ConnectionOptions:
    config = load_text(ini)
    return ConnectionOptions(config.server, config.limits, config.tls.tls_handshake_timeout_s)


def new_connection(
    policy: FakePolicy | None = None, transport: ConnectionTransport | None = None, *, number: int = 1, ini: str = ""
) -> Connection:
    """Return a connection before its handshake."""
    return Connection(transport or ConnectionTransport(), policy or FakePolicy(), connection_options(ini), number)
