"""Who may come in: what sessions say of a client that asks, and what decides.

The hub has an authorizer and asks it; a service may put its own there. Above the client library, below sessions. Imports errors
only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Action", "AllowAll", "Authorizer", "Connect", "Request"]


class Action(enum.StrEnum):
    """What a client asks for; the words are those of callbacks and of events."""

    CONNECT = "connect"
    PUBLISH = "publish"
    PLAY = "play"


@dataclass(frozen=True, slots=True)
class Connect:
    """A client connects to an application.

    Attributes:
        address: The client's, without the port.
        app: The path that it connects to, without any query.
        query: The raw queries of its app and tcUrl. Secret.
        parameters: The same, taken apart. Secret.
        encoder: Whether it looks like one: encoders say so, and must be asked for a password now or never.
    """

    address: str
    app: str
    query: str = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)
    encoder: bool


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Request:
    """A client wants to publish or play.

    Attributes:
        action: Which of both.
        peer: The client's address with its port.
        address: Without.
        key: ``app/name`` as the client says; when it publishes, the name may be a secret.
        parameters: The merged query. Secret.
        user: Who has logged in on the connection; empty: nobody.
        app: The path that it is connected to, where the user has logged in. The key may belong to another application.
        waiting: Is to be called before the answer is waited for; what it raises is for the session.
    """

    action: Action
    peer: str
    address: str
    key: str = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)
    user: str = ""
    app: str = ""
    waiting: Callable[[], None] = field(default=_nothing, repr=False, compare=False)


class Authorizer(Protocol):
    """Decides who may come in."""

    def bars(self, address: str) -> bool:
        """Whether connections from an address are to be closed at once. Must not wait."""

    def login(self, connect: Connect) -> str:
        """Let a client connect and return the user's name, or "" for nobody in particular. Must not wait.

        Raises:
            Refused: It may not.
        """

    def authorize(self, request: Request) -> str:
        """Let a client publish or play and return the key of the stream that it gets.

        May wait, but not for ever, and calls the request's ``waiting`` first.

        Raises:
            Refused: It may not.
        """


class AllowAll:
    """Lets everybody in."""

    def bars(self, address: str) -> bool:
        """Nobody is barred."""
        return False

    def login(self, connect: Connect) -> str:
        """Nobody need log in."""
        return ""

    def authorize(self, request: Request) -> str:
        """Everything is allowed."""
        return request.key
