"""Sessions of viewers: the requests of one viewer together are one play, from the first media playlist until none comes."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from weakref import WeakSet

import gevent

from rtmpd.admission import Admission
from rtmpd.config.access_rules import address_group
from rtmpd.errors import Refused
from rtmpd.player import Play
from rtmpd.protocol import status
from rtmpd.services.hls.session_ids import RANDOM_BYTES, Claim, check_id, make_id
from rtmpd.util.connection_log import ConnectionLog
from rtmpd.util.event_loop import Slices
from rtmpd.util.text import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from rtmpd.authorization import Request as PlayRequest
    from rtmpd.events import EventType, Scalar
    from rtmpd.hub import Hub
    from rtmpd.live.grant import Grant
    from rtmpd.live.stream import Decisions, Stream
    from rtmpd.phases import CloseReason
    from rtmpd.services.hls.packaged import Packaged
    from rtmpd.services.hls.packager import Packager
    from rtmpd.util.stream_key import StreamKey

log = logging.getLogger(__name__)

Value = TypeVar("Value")

ID_LIFE_S = 24 * 3600
"""How long a session id is valid, seconds. A session under way may last longer."""

_SWEEP_S = 1.0
_SHORTEST_S = 6.0
_REMEMBERED = 10_000
"""The ids that are remembered without a play: those with grants that are to be renewed, and those of expelled sessions."""

_REPORTED = 200
"""The streams that SIGUSR2 shows."""

_CLIENTS = 16
"""The clients (address, agent and stream) by which the media requests of a session without an id are counted for it."""


class Admitted(NamedTuple):
    """What the holder of an id was granted.

    Attributes:
        asked: What was asked for, with what the client has shown. Secret.
        grant: What was granted.
        at_s: When; monotonic, seconds.
    """

    asked: PlayRequest
    grant: Grant
    at_s: float

    @property
    def holds(self) -> bool:
        """Whether the grant has not expired. While a session lasts, it is renewed."""
        return not self.grant.expires_s or time.monotonic() - self.at_s < self.grant.expires_s


class SessionConnection:
    """Stands for the connection of a session, which may use any number of them, and has a number as they have.

    Args:
        hub: The hub.
        peer: The client's address and port, at the first request.
        agent: What the client calls itself.
    """

    protocol = "hls"

    def __init__(self, hub: Hub, peer: str, agent: str) -> None:
        self.hub = hub
        self.peer = peer
        self._number = hub.next_number()
        self._agent = agent
        self.log = ConnectionLog(log, self._number, peer)

    def emit(self, event_type: EventType, stream: Stream | None = None, /, **data: Scalar) -> None:
        """Publish an event."""
        bus = self.hub.bus
        if bus.wanted(event_type):
            bus.emit(event_type, {"remote_addr": self.peer, **data}, stream=stream, connection_id=str(self._number))

    def emit_end(self, event_type: EventType, stream: Stream, /, *, reason: str, **data: Scalar) -> None:
        """Publish the end of a play."""
        agent = {"agent": self._agent} if self._agent else {}
        self.emit(event_type, stream, reason=reason, **agent, **data)


class Session(Play):
    """One play by HLS.

    Args:
        connection: Stands for its connection.
        admitted: What it was granted: the stream that it may play, and its renditions.
        session_id: Its id.
        private: Its URLs of media must have its id, since the stream may not be played without one.
        on_expelled: Called when it is no longer authorized.

    Attributes:
        id: Its id. Secret, if it is private.
        admitted, private: Likewise.
        bytes_sent: What it was sent.
        used_at: When its last request was served; monotonic, seconds.
        requests: How many of its requests are being served.
        idle_s: How long it lasts without a request.
        address: The address group that it has come from.
        credentials: What finds it, if its client has no id; empty: the id does.
        clients: From where it has requested playlists.
        packagers: Those of the publish that it plays, by stream.
        finished: The renditions whose end it was sent.
    """

    def __init__(
        self,
        connection: SessionConnection,
        admitted: Admitted,
        session_id: str,
        on_expelled: Callable[[Session, CloseReason], None],
        *,
        private: bool,
    ) -> None:
        super().__init__(connection, Admission(admitted.asked, admitted.grant))
        self.id = session_id
        self.admitted = admitted
        self.private = private
        self.address = address_group(connection.peer.rpartition(":")[0])
        self.bytes_sent = 0
        self.used_at = time.monotonic()
        self.requests = 0
        self.idle_s = _SHORTEST_S
        self.credentials = ""
        self.clients: dict[Client, None] = {}
        self.packagers: dict[str, Packager] = {}
        self.finished: WeakSet[Packaged] = WeakSet()
        self._on_expelled = on_expelled

    @property
    def key(self) -> StreamKey:
        """The stream that it was admitted to."""
        return self.admitted.grant.key

    @property
    def media_query(self) -> str:
        """What its URLs of media end with."""
        return f"?s={self.id}" if self.private else ""

    def start(self, stream: Stream) -> None:
        """Begin; the hub has registered it."""
        self.stream = stream
        self._started_at = time.monotonic()
        self._announce(stream)
        self._keep_admitted(stream)

    def use(self, target_s: float | None = None) -> None:
        """Take note of a request.

        Args:
            target_s: The target duration of the playlist that it requests; None: it requests something else.
        """
        self.used_at = time.monotonic()
        if target_s is not None:
            self.idle_s = max(_SHORTEST_S, 3 * target_s + 1)

    def add_bytes(self, size: int) -> None:
        """Count what it is sent."""
        self.bytes_sent += size
        if self.stream is not None:
            self.stream.counters.bytes_sent += size

    def finish(self, reason: str) -> None:
        """End the play. Harmless if it has ended."""
        stream = self._take_leave()
        if stream is not None:
            self._announce_end(stream, reason, self.bytes_sent)

    def revise(self, decisions: Decisions) -> None:
        """Do nothing: what a session is sent does not depend on what its player supports."""

    def ended(self) -> None:
        """Do nothing: playlists say that the stream has ended, and the session ends when they are requested no longer."""

    def _expel(self, reason: CloseReason) -> None:
        self._on_expelled(self, reason)


Client = tuple[str, str, str]
"""The address of a client, its agent, and the stream of which it has requested a playlist."""


class Sessions:
    """The sessions of a server.

    Args:
        hub: The hub.
        secret: Signs ids.
    """

    def __init__(self, hub: Hub, secret: bytes) -> None:
        self._hub = hub
        self._secret = secret
        self._sessions: dict[str, Session] = {}
        self._by_credentials: dict[str, Session] = {}
        self._by_client: dict[Client, Session] = {}
        self._by_address: Counter[str] = Counter()
        self._admitted: OrderedDict[str, Admitted] = OrderedDict()
        self._expelled: OrderedDict[str, None] = OrderedDict()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def start(self) -> None:
        """Start to end sessions without requests."""
        self._hub.reports.append(self._report)
        self._greenlet = gevent.spawn(self._run)

    def reload(self, secret: bytes) -> None:
        """Sign with another secret from now on; sessions go on."""
        self._secret = secret

    def stop(self) -> None:
        """End all sessions."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        for session in list(self._sessions.values()):
            self._end(session, "the server is stopping")

    def _report(self) -> Iterator[str]:
        """Give lines for SIGUSR2: the streams with most sessions. Ids are secret."""
        counts = Counter(session.key for session in self._sessions.values())
        if counts:
            yield f"HLS: {count_of(counts.total(), 'session')}, of {count_of(len(counts), 'stream')}"
        for key, count in counts.most_common(_REPORTED):
            yield f"{key}: {count_of(count, 'HLS session')}"

    # Ids ---------------------------------------------------------------------------------------------------------------

    def new_id(self, admitted: Admitted, *, proved: bool) -> str:
        """Return the id of a session that may begin.

        If its grant expires, other servers, which don't know what it can be renewed with, accept the id until then only.
        """
        grant = admitted.grant
        until_s = int(time.time() + min(ID_LIFE_S, grant.expires_s or ID_LIFE_S))
        expires = 0 < grant.expires_s <= ID_LIFE_S
        found = make_id(self._secret, grant.key, until_s, os.urandom(RANDOM_BYTES), proved=proved, expires=expires)
        if grant.expires_s:
            _remember(self._admitted, found, admitted)
        return found

    def claim(self, session_id: str, keys: Collection[str]) -> Claim | None:
        """Return what an id stands for, if it is valid for one of these streams."""
        return check_id(self._secret, session_id, keys, time.time())

    def admitted(self, session_id: str, keys: Collection[str]) -> Admitted | None:
        """Return what the holder of an id was granted, if that is to be renewed and known here."""
        found = self._admitted.get(session_id)
        return found if found is not None and found.grant.key in keys else None

    def is_expelled(self, session_id: str) -> bool:
        """Return whether the session of an id was expelled."""
        return session_id in self._expelled

    # Sessions ----------------------------------------------------------------------------------------------------------

    def find(self, session_id: str, keys: Collection[str]) -> Session | None:
        """Return the session of an id, if it may play one of these streams."""
        session = self._sessions.get(session_id)
        return session if session is not None and session.key in keys else None

    def find_by_credentials(self, credentials: str) -> Session | None:
        """Return the session that a client without an id has begun with the same credentials."""
        return self._by_credentials.get(credentials)

    def find_by_client(self, client: Client) -> Session | None:
        """Return the session that has last requested a playlist of a stream from there."""
        return self._by_client.get(client)

    def begin(self, session: Session, stream_key: str, credentials: str = "") -> Session:
        """Begin a play; return its session, which is another one if its player has made two requests at once.

        Args:
            session: The session.
            stream_key: The stream that it plays.
            credentials: What finds it, for a client without an id.

        Raises:
            Refused: The stream is not published, or there are too many players of it or sessions.
        """
        earlier = self._sessions.get(session.id) or self._by_credentials.get(credentials)
        if earlier is not None:
            return earlier
        hub, limits = self._hub, self._hub.connection_limits
        most = limits.limit
        if len(self._sessions) >= most:
            raise Refused(
                status.PLAY_FAILED, "There are too many viewers.", f"connection_limit is {most}, also for HLS sessions"
            )
        most = limits.limits.connections_per_address_limit
        if most and self._by_address[session.address] >= most:
            reason = f"connections_per_address_limit is {most}, also for HLS sessions"
            raise Refused(status.PLAY_FAILED, "There are too many viewers at this address.", reason)
        stream = hub.play(stream_key, session, may_wait=False)
        self._sessions[session.id] = session
        self._by_address[session.address] += 1
        if credentials:
            self._by_credentials[credentials] = session
            session.credentials = credentials
        session.start(stream)
        return session

    def note_client(self, session: Session, client: Client) -> None:
        """Take note of where a session has requested a playlist from."""
        if self._by_client.get(client) is session:
            return
        self._by_client[client] = session
        session.clients[client] = None
        if len(session.clients) > _CLIENTS:
            self._forget_client(session, next(iter(session.clients)))

    def _forget_client(self, session: Session, client: Client) -> None:
        del session.clients[client]
        if self._by_client.get(client) is session:
            del self._by_client[client]

    def expel(self, session: Session, reason: CloseReason) -> None:
        """End a session for good: its id is no longer accepted."""
        _remember(self._expelled, session.id, None)
        self._admitted.pop(session.id, None)
        self._end(session, str(reason))

    def _end(self, session: Session, reason: str) -> None:
        if self._sessions.get(session.id) is not session:
            return
        del self._sessions[session.id]
        self._by_address[session.address] -= 1
        if not self._by_address[session.address]:
            del self._by_address[session.address]
        if self._by_credentials.get(session.credentials) is session:
            del self._by_credentials[session.credentials]
        for client in list(session.clients):
            self._forget_client(session, client)
        session.finish(reason)

    def _run(self) -> None:
        while True:
            gevent.sleep(_SWEEP_S)
            try:
                self.sweep(time.monotonic())
            except Exception:
                self._hub.count("internal_errors")
                log.exception("internal error: the sessions of HLS were not checked this time")

    def sweep(self, now_s: float) -> None:
        """End the sessions that have made no request for too long."""
        slices = Slices()
        for session in list(self._sessions.values()):
            if not session.requests and now_s - session.used_at > session.idle_s:
                over = session.stream is not None and not session.stream.available
                self._end(session, "the stream has ended" if over else f"no request for {session.idle_s:g} s")
            slices.check()


def _remember(table: OrderedDict[str, Value], name: str, value: Value) -> None:
    table[name] = value
    if len(table) > _REMEMBERED:
        table.popitem(last=False)


def credentials_of(key: str, address: str, agent: str, parameters: Mapping[str, str]) -> str:
    """Return a digest of what a client without an id shows with each of its requests."""
    shown = sorted((name, value) for name, value in parameters.items() if name not in _NOT_SHOWN)
    return hashlib.sha256(repr((key, address, agent, shown)).encode(errors="surrogatepass")).hexdigest()


_NOT_SHOWN = ("s", "_HLS_msn", "_HLS_part", "_HLS_skip", "_HLS_push", "_HLS_report")
