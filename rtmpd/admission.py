"""The admission of a publish or play: what its authorizer has granted, and the question whether that still holds.

It is separate, since publishers and players need the same.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Protocol

import gevent

from rtmpd.errors import Refused
from rtmpd.events import EventType
from rtmpd.phases import CloseKind, CloseReason

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from rtmpd.authorization import Authorizer, Request
    from rtmpd.events import Scalar
    from rtmpd.live.grant import Grant
    from rtmpd.live.stream import Stream

LINGER_S = 1.5
"""The time that a client has to read why it is expelled, before its connection is closed."""

_EARLY = 0.1
"""A grant is renewed before it expires, by up to this share of its time: those of many clients expire together."""


class _Hub(Protocol):
    @property
    def authorizer(self) -> Authorizer:
        """Authorizes connections, publishes and plays."""


class AdmittedConnection(Protocol):
    """A connection that publishes or plays."""

    @property
    def hub(self) -> _Hub:
        """The hub."""

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Its log."""

    def emit(self, event_type: EventType, stream: Stream | None = None, /, **data: Scalar) -> None:
        """Publish an event of it."""


class Admission:
    """The admission of one publish or play.

    Args:
        request: What the client asked for.
        grant: What it was granted.

    Attributes:
        grant: What it is granted now.
    """

    __slots__ = ("_began_at_s", "_connection", "_end", "_greenlet", "_key", "_request", "grant")

    def __init__(self, request: Request, grant: Grant) -> None:
        self.grant = grant
        # Thousands of players have an admission; most need no request.
        self._request = request if grant.expires_s else None
        self._connection: AdmittedConnection | None = None
        self._end: Callable[[CloseReason], None] | None = None
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._began_at_s = 0.0
        self._key = ""

    def begin(self, connection: AdmittedConnection, key: str, end: Callable[[CloseReason], None]) -> None:
        """Renew the grant whenever it expires, from now on.

        Args:
            connection: The client's connection.
            key: The stream that it publishes or plays.
            end: Ends the publish or play. It must not wait.
        """
        if self._request is not None:
            self._connection, self._key, self._end = connection, key, end
            self._began_at_s = time.monotonic()
            self._schedule()

    def end(self) -> None:
        """Stop renewing: the publish or play has ended."""
        greenlet = self._greenlet
        # A reference cycle would keep the connection until the garbage collector runs.
        self._connection = self._end = self._greenlet = None
        if greenlet is not None:
            greenlet.kill(block=False)

    def _schedule(self) -> None:
        early = _EARLY * random.random()  # noqa: S311 - no secret
        self._greenlet = gevent.spawn_later(self.grant.expires_s * (1 - early), self._renew)

    def _renew(self) -> None:
        request, connection, end = self._request, self._connection, self._end
        assert request is not None
        assert connection is not None
        assert end is not None
        try:
            self.grant = connection.hub.authorizer.renew(request.again(time.monotonic() - self._began_at_s), self.grant)
        except Refused as refused:
            # This greenlet ends by itself.
            self._greenlet = None
            connection.log.warning(
                "%s: the %s is no longer authorized, and ends: %s (re-check, expires_s)",
                self._key,
                request.action,
                refused.reason,
                extra={"stream": self._key},
            )
            connection.emit(EventType.AUTH_FAILED, action=str(request.action), reason=refused.reason)
            text = f"no longer authorized: {refused.reason}"
            end(CloseReason(CloseKind.EXPELLED, text, client_text=f"No longer authorized: {refused.reason}."))
            return
        self._schedule()
