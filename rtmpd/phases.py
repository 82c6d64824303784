"""The states of connections, streams, relays and recordings: each an enum with one table of transitions.

`docs/design.rst` shows these tables, rendered by ``docs/render_phases.py``. Pure.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

Phase = TypeVar("Phase", bound=enum.Enum)
Table = dict[Phase, frozenset[Phase]]
"""For each phase, the phases that may follow it."""


class IllegalTransition(RuntimeError):
    """A change of phase that its table does not list: a bug."""


class Machine(Generic[Phase]):
    """One phase, changed only along its table.

    Args:
        table: The transitions.
        phase: The first phase.

    Attributes:
        phase: The present one.
    """

    __slots__ = ("_table", "phase")

    def __init__(self, table: Mapping[Phase, frozenset[Phase]], phase: Phase) -> None:
        self._table = table
        self.phase = phase

    def to(self, phase: Phase) -> None:
        """Change the phase; the present one is no change.

        Raises:
            IllegalTransition: The table does not list it.
        """
        if phase is self.phase:
            return
        if phase not in self._table[self.phase]:
            raise IllegalTransition(f"{type(phase).__name__}: {self.phase.name} is not followed by {phase.name}")
        self.phase = phase


def _table(*rows: tuple[Phase, tuple[Phase, ...]]) -> Table[Phase]:
    return {phase: frozenset(following) for phase, following in rows}


class ConnectionPhase(enum.Enum):
    """The phase of an RTMP connection; the value names it in log lines."""

    TLS_HANDSHAKE = "TLS handshake"
    HANDSHAKE = "handshake"
    CONNECT = "connect"
    """The handshake is complete; the connect command has not been accepted."""
    COMMAND = "command"
    """Connected; no message stream publishes or plays."""
    AUTHORIZE = "authorize"
    """A publish or play waits for the authorizer; nothing is read from the client meanwhile."""
    PUBLISH = "publish"
    """At least one message stream publishes."""
    PLAY = "play"
    """At least one message stream plays, and none publishes."""
    CLOSING = "closing"
    """The server has closed the connection; its greenlet has not ended yet."""
    CLOSED = "closed"


_C = ConnectionPhase
_OPEN = (_C.COMMAND, _C.AUTHORIZE, _C.PUBLISH, _C.PLAY)
_END = (_C.CLOSING, _C.CLOSED)

CONNECTION: Final = _table(
    (_C.TLS_HANDSHAKE, (_C.HANDSHAKE, *_END)),
    (_C.HANDSHAKE, (_C.CONNECT, *_END)),
    (_C.CONNECT, (_C.COMMAND, *_END)),
    *((phase, (*_OPEN, *_END)) for phase in _OPEN),
    (_C.CLOSING, (_C.CLOSED,)),
    (_C.CLOSED, ()),
)


class StreamPhase(enum.Enum):
    """The phase of a stream."""

    IDLE = "idle"
    """No source is active, and none is waited for. Players may wait for the next one."""
    SLATE = "slate"
    """Likewise, and a slate is played to them."""
    LIVE = "live"
    """The stream has a publisher: it is active, or a slate is while the publisher sends nothing."""
    GRACE = "grace"
    """The publisher was lost; the stream is kept for ``publisher_grace_s``."""
    LINGER = "linger"
    """The publisher has ended its publish; players are kept for ``publisher_grace_s``."""
    CLOSED = "closed"
    """The stream has been removed from the registry."""


_S = StreamPhase

STREAM: Final = _table(
    (_S.IDLE, (_S.LIVE, _S.SLATE, _S.CLOSED)),
    (_S.SLATE, (_S.LIVE, _S.IDLE)),
    (_S.LIVE, (_S.GRACE,)),
    (_S.GRACE, (_S.LIVE, _S.LINGER, _S.SLATE, _S.IDLE)),
    (_S.LINGER, (_S.LIVE, _S.SLATE, _S.IDLE)),
    (_S.CLOSED, ()),
)


class RelayPhase(enum.Enum):
    """The phase of a relay; the value is its state in metrics."""

    CONNECTING = "connecting"
    UP = "up"
    """The destination has accepted the publish; media is sent."""
    WAITING = "waiting"
    """The connection was up and has ended; the relay waits before the next attempt."""
    FAILED = "failed"
    """The last attempt did not come up; the relay waits before the next one."""
    ENDED = "ended"


_R = RelayPhase

RELAY: Final = _table(
    (_R.CONNECTING, (_R.UP, _R.FAILED, _R.ENDED)),
    (_R.UP, (_R.WAITING, _R.ENDED)),
    (_R.WAITING, (_R.CONNECTING, _R.ENDED)),
    (_R.FAILED, (_R.CONNECTING, _R.ENDED)),
    (_R.ENDED, ()),
)


class RecordingPhase(enum.Enum):
    """The phase of a recording."""

    WAITING = "waiting"
    """It reads the log of the stream and waits for a batch of media, or for the end of a slate that is not recorded."""
    WRITING = "writing"
    """A thread writes a batch; meanwhile the log may grow up to ``disk_backlog_limit_bytes``."""
    RETRYING = "retrying"
    """The disk failed or was too slow: the memory of the log is released, and another file follows after ``record_retry_s``."""
    ENDING = "ending"
    """The stream is no longer live; its remaining media is being written."""
    ENDED = "ended"


_W = RecordingPhase

RECORDING: Final = _table(
    (_W.WAITING, (_W.WRITING, _W.RETRYING, _W.ENDING, _W.ENDED)),
    (_W.WRITING, (_W.WAITING, _W.RETRYING, _W.ENDING, _W.ENDED)),
    (_W.RETRYING, (_W.WAITING, _W.ENDED)),
    (_W.ENDING, (_W.ENDED,)),
    (_W.ENDED, ()),
)


class CloseKind(enum.Enum):
    """Why a connection or a source ended."""

    PEER_LEFT = "the client closed the connection, or its connection broke"
    EARLY = "likewise, before its connect command was accepted: load balancers and port scanners do that"
    TLS = "TLS failed"
    HANDSHAKE = "the RTMP handshake failed"
    LIMIT = "the client exceeded a limit"
    PROTOCOL = "the client violated the protocol"
    DEADLINE = "a phase took longer than its option allows"
    SILENT = "a client that published or played stopped sending, or does not answer"
    STALLED = "a player's socket accepted no data for write_timeout_s"
    REFUSED = "policy does not allow the connect, publish or play"
    LOGIN = "the client has to connect again with its login: a normal step"
    EXPELLED = "a rule that logs and counts by itself: bitrate, back-pressure policy, unsupported codec"
    TAKEN_OVER = "a new publisher replaced this one (on_conflict, publisher_takeover_s)"
    COMMAND = "the client ended a publish or play with a command; the connection stays"
    SHUTDOWN = "the server stops"
    INTERNAL = "an error of the server: logged and counted where it happens"


_K = CloseKind
_LOGGED_WHERE_THEY_HAPPEN = (_K.EARLY, _K.REFUSED, _K.TAKEN_OVER)

CLOSE_COUNTERS: Final[dict[CloseKind, tuple[str, ...]]] = {
    _K.EARLY: ("early_closes",),
    _K.TLS: ("tls_failures",),
    _K.HANDSHAKE: ("handshake_failures",),
    _K.LIMIT: ("limits_exceeded",),
    _K.PROTOCOL: ("protocol_errors",),
    _K.DEADLINE: ("deadlines_exceeded",),
    _K.SILENT: ("deadlines_exceeded", "zombie_connections"),
    _K.STALLED: ("zombie_connections",),
    _K.REFUSED: ("refused",),
    _K.TAKEN_OVER: ("takeovers",),
}
"""The counters of each kind that counts as a failure."""


class CloseReason(str):
    """Why something ended. It is the text for the log, for events and for the access log; it holds no secrets.

    Args:
        kind: Decides the counters, and whether there is a warning.
        text: The text.
        detail: The text of its own log line, where that says more.
        client_text: The text for the client, where that is another one.
    """

    __slots__ = ("client_text", "detail", "kind")

    kind: CloseKind
    detail: str
    client_text: str

    def __new__(cls, kind: CloseKind, text: str, *, detail: str = "", client_text: str = "") -> CloseReason:
        """Make the text."""
        made = super().__new__(cls, text)
        made.kind = kind
        made.detail = detail or text
        made.client_text = client_text or text
        return made

    @property
    def counters(self) -> tuple[str, ...]:
        """The counters that it increments."""
        return CLOSE_COUNTERS.get(self.kind, ())

    @property
    def logged(self) -> bool:
        """Whether it has a warning of its own. Others have none, or one that says more where they happen."""
        return bool(self.counters) and self.kind not in _LOGGED_WHERE_THEY_HAPPEN


NOT_CLOSED: Final = CloseReason(CloseKind.COMMAND, "")
"""Stands for the reason of what is still open: empty."""
