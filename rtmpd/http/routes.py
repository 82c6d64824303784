"""The table of routes: which handler serves a method and a path."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from rtmpd.errors import HttpError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rtmpd.events import Scalar
    from rtmpd.http.messages import Request, Response
    from rtmpd.net.transport import Transport
    from rtmpd.phases import CloseReason

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Exchange(Protocol):
    """A request and its connection, as handlers see them that send the body themselves, or want to know more than the request.

    Attributes:
        transport: The connection; after `begin_stream`, what takes the body.
        number: Names it in the log; 0: it has no name.
        agent: What the client calls itself.
        bytes_streamed: What a handler has sent by other ways than `begin_stream` and the response.
        outcome: What the events say about the request, besides what they say of each connection.
        extra_held: Returns the memory of what the handler holds for the client.
    """

    transport: Transport
    number: int
    agent: str
    bytes_streamed: int
    outcome: Mapping[str, Scalar]
    extra_held: Callable[[], int] | None

    @property
    def close_reason(self) -> CloseReason:
        """Why the client gets no more; empty while it does."""

    def close(self, reason: CloseReason) -> None:
        """End the response. The first reason counts. Must not wait."""

    def ensure_open(self) -> None:
        """Raise TransportClosed if the client has gone. Does not wait."""

    def begin_stream(self, request: Request, more_headers: Sequence[tuple[str, str]], content_type: str) -> None:
        """Send the head of a response whose body ends with the connection."""

    def take_unread(self) -> bytes:
        """Return what the client has sent behind its request, and forget it."""

    def allows_origin(self, request: Request) -> bool:
        """Whether a page that makes a request may use the response."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route.

    Attributes:
        path: The path; ``{name}`` stands for one or more characters. The first one may contain slashes, others none: a path is
            matched in linear time then, whatever it is.
        handler: Serves a request; may wait. Returns the response; None: it has served the connection to its end.
        methods: The methods; HEAD is served by the handler of GET, whose body is not sent.
        takes_body: Read the body of a request. Otherwise a request with a body is answered, and its connection closed.
        long: The handler may run for long, and holds no whole response in memory: it needs none of the places of those that do.
        cors: Web pages of the origins in ``http_allow_origin`` may use it.
    """

    path: str
    handler: Callable[[Request, Exchange], Response | None]
    methods: tuple[str, ...] = ("GET",)
    takes_body: bool = False
    long: bool = False
    cors: bool = False

    @property
    def allowed(self) -> tuple[str, ...]:
        """The methods, with HEAD and OPTIONS."""
        head = ("HEAD",) if "GET" in self.methods else ()
        return (*self.methods, *head, "OPTIONS")


class Routes:
    """The routes of a listener. The first one that fits a path counts.

    Args:
        routes: The routes.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = [(re.compile(_pattern(route.path), re.DOTALL), route) for route in routes]

    def find(self, request: Request) -> tuple[Route, Request]:
        """Return the route of a request, and the request with what the placeholders stand for.

        Raises:
            HttpError: There is none (404), or none of that method (405).
        """
        for pattern, route in self._routes:
            found = pattern.fullmatch(request.path)
            if found is not None:
                if request.method not in route.allowed:
                    allowed = ", ".join(route.allowed)
                    raise HttpError(405, f"This page allows {allowed}.", [("Allow", allowed)])
                return route, replace(request, captured=found.groupdict())
        raise HttpError(404, "This page does not exist.")


def _pattern(path: str) -> str:
    """Return a path with placeholders as a regular expression."""
    parts = _PLACEHOLDER.split(path)
    found = re.escape(parts[0])
    for number, (name, literal) in enumerate(zip(parts[1::2], parts[2::2], strict=True)):
        found += f"(?P<{name}>{'[^/]+' if number else '.+'}){re.escape(literal)}"
    return found
