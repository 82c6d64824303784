"""The interface between connections and the service that authorizes connections, publishes and plays.

The hub holds the authorizer, which the authentication service replaces by its own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, Self

from rtmpd.live.grant import Grant
from rtmpd.util.stream_key import StreamKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Action(enum.StrEnum):
    """A request of a client, by its name in callbacks and events."""

    CONNECT = "connect"
    PUBLISH = "publish"
    PLAY = "play"


@dataclass(frozen=True, slots=True)
class Connect:
    """A connect command that asks for authorization.

    Attributes:
        address: The client's address without the port.
        app: The application without a query.
        query: The raw queries of app and tcUrl. Secret.
        parameters: The parsed queries. Secret.
        encoder: Whether the client declares that it will publish. Encoders accept a demand for a password only at connect.
    """

    address: str
    app: str
    query: str = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)
    encoder: bool


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """What is known of a client besides its request, for authorizers that decide by more than names and secrets.

    All but the first two are what the client claims, cut to a bounded length.

    Attributes:
        connection_id: The number of the connection, as in log lines and events.
        protocol: ``rtmp`` or ``rtmps``.
        agent: ``flashVer``.
        tc_url: ``tcUrl`` without its query, user and password.
        page_url, swf_url: The page and the Flash program that the client was started from.
    """

    connection_id: str = ""
    protocol: str = "rtmp"
    agent: str = ""
    tc_url: str = ""
    page_url: str = field(default="", repr=False)
    swf_url: str = field(default="", repr=False)


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Request:
    """A publish or play command that asks for authorization.

    Attributes:
        action: Publish or play.
        peer: The client's address with the port.
        address: The client's address without the port.
        key: The stream key as the client sent it. The name of a publish may be a secret.
        parameters: The merged query. Secret.
        user: The user that has logged in on the connection; empty without a login.
        app: The application of the connect command, where the user logged in. The key may belong to another one.
        client: What else is known of the client.
        arguments: The other arguments of the command, as the client sent them: ``type`` of a publish; ``start``, ``duration``
            and ``reset`` of a play.
        running_s: How long the publish or play has been running, seconds, if this is a re-check; None: it has not begun.
        waiting: Must be called before the authorizer waits for an answer. Its exceptions must not be caught.
    """

    action: Action
    peer: str
    address: str
    key: str = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)
    user: str = ""
    app: str = ""
    client: ClientFacts = field(default_factory=ClientFacts, compare=False)
    arguments: Mapping[str, object] = field(default_factory=dict, compare=False)
    running_s: float | None = None
    waiting: Callable[[], None] = field(default=_nothing, repr=False, compare=False)

    def again(self, running_s: float) -> Self:
        """Return the request of a re-check."""
        return replace(self, running_s=running_s, waiting=_nothing)


class Authorizer(Protocol):
    """Authorizes connections, publishes and plays."""

    def bars(self, address: str) -> bool:
        """Return whether connections from an address must be closed at once. Must not wait."""

    def login(self, connect: Connect) -> str:
        """Authorize a connect, and return the user; empty without a login. Must not wait.

        Raises:
            Refused: The client may not connect.
        """

    def shown_app(self, app: str) -> str:
        """Return what may be shown of the application of a connect, which may end in a secret name. Must not wait."""

    def authorize(self, request: Request) -> Grant:
        """Authorize a publish or play, and return what is granted.

        May wait, with a deadline, after it has called ``request.waiting``.

        Raises:
            Refused: The client may not publish or play.
        """

    def is_open(self, request: Request) -> bool:
        """Return whether a client may do this that shows nothing and is known nowhere. Must not wait, and counts no failure."""

    def renew(self, request: Request, grant: Grant) -> Grant:
        """Authorize a running publish or play again, whose grant expires; return the grant that holds from now on.

        May wait for long: failures are retried. The key stays.

        Raises:
            Refused: The client may not continue.
        """


class AllowAll:
    """Authorizes every client."""

    def bars(self, address: str) -> bool:
        """Bar no address."""
        return False

    def login(self, connect: Connect) -> str:
        """Demand no login."""
        return ""

    def shown_app(self, app: str) -> str:
        """Show all of it."""
        return app

    def authorize(self, request: Request) -> Grant:
        """Allow every publish and play, with the key that the client sent."""
        return Grant(StreamKey(request.key))

    def is_open(self, request: Request) -> bool:
        """Everything is open."""
        return True

    def renew(self, request: Request, grant: Grant) -> Grant:
        """Renew every grant."""
        return grant
