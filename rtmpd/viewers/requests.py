"""What requests for a stream have in common, of all formats: its name, the authorization, and how refusals are answered."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from rtmpd.admission import Admission
from rtmpd.authorization import Action, ClientFacts
from rtmpd.authorization import Request as PlayRequest
from rtmpd.errors import HttpError, Refused
from rtmpd.events import EventType
from rtmpd.protocol import status
from rtmpd.protocol.naming import NameProblem, is_printable, resolve, without_secrets
from rtmpd.util.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rtmpd.events import Scalar
    from rtmpd.http.messages import Request
    from rtmpd.http.routes import Exchange
    from rtmpd.hub import Hub
    from rtmpd.live.stream import Stream
    from rtmpd.util.stream_key import StreamKey
    from rtmpd.viewers.viewer import ViewerConnection

_URL_LENGTH = 1024
_NAMES = 1024
"""The names that are remembered: players of HLS request several files each second."""

_RETRY = (("Retry-After", "5"),)


def stream_of(request: Request) -> tuple[StreamKey, dict[str, str]]:
    """Return the stream that a request is for, by the placeholder ``key`` of its route, and the parameters with the token.

    Raises:
        HttpError: The path can't be the name of a stream.
    """
    parameters = request.parameters
    if request.bearer_token:
        parameters.setdefault("token", request.bearer_token)
    return _key_of(request.captured["key"]), parameters


@lru_cache(maxsize=_NAMES)
def _key_of(path: str) -> StreamKey:
    """Return the stream of a path; raises `HttpError`."""
    app, _, name = path.rpartition("/")
    try:
        found = resolve(app, "", name, "")
    except NameProblem:
        raise HttpError(400, "This can't be the name of a stream.", closes=True) from None
    if "?" in path or "#" in path or not is_printable(found.key) or not app.strip("/"):
        raise HttpError(404, "Streams have names like /APPLICATION/NAME.")
    return found.key


def find_stream(hub: Hub, key: str) -> Stream | None:
    """Return a stream that is published, or is kept after its last publisher."""
    stream: Stream | None = hub.streams.get(key)
    return stream if stream is not None and stream.available else None


def play_request(
    request: Request, exchange: Exchange, protocol: str, key: StreamKey, parameters: Mapping[str, str]
) -> PlayRequest:
    """Return the question to the authorizer whether a client may play a stream."""
    host = printable(request.headers.get("host", ""))[:_URL_LENGTH]
    return PlayRequest(
        Action.PLAY,
        exchange.transport.peer,
        exchange.transport.address,
        key,
        parameters,
        client=ClientFacts(
            connection_id=str(exchange.number),
            protocol=protocol,
            agent=printable(exchange.agent),
            tc_url=f"{protocol}://{host}/{key.app}",
            page_url=without_secrets(request.headers.get("referer", ""))[:_URL_LENGTH],
        ),
    )


def authorize(asked: PlayRequest, hub: Hub, exchange: Exchange, emit: Callable[..., None]) -> Admission:
    """Ask the authorizer; return the admission of the client. May wait.

    Args:
        asked: The question.
        hub: The hub.
        exchange: The connection.
        emit: Publishes an event of the connection.

    Raises:
        Refused: The client may not play.
    """
    try:
        grant = hub.authorizer.authorize(asked)
    except Refused as refused:
        emit(EventType.AUTH_FAILED, action=str(Action.PLAY), reason=refused.reason)
        raise
    exchange.outcome = {**exchange.outcome, "wanted_stream": grant.key}
    exchange.ensure_open()
    return Admission(asked, grant)


def outcome() -> dict[str, Scalar]:
    """Return what the events say about a request for a stream that was not served yet."""
    return {"wanted": str(Action.PLAY), "served": False}


@contextmanager
def refusals(hub: Hub, exchange: Exchange, connection: ViewerConnection) -> Iterator[None]:
    """Count, log and report a refusal of a play.

    Raises:
        HttpError: The refusal, as the client gets it.
    """
    try:
        yield
    except Refused as refused:
        hub.count("refused")
        connection.log.warning("play by %s refused: %s", connection.protocol, refused)
        exchange.outcome = {**exchange.outcome, "reason": f"refused: {refused}"}
        raise _error_of(refused) from None


def _error_of(refused: Refused) -> HttpError:
    """Return a refusal as an error of HTTP."""
    if refused.unproved:
        return HttpError(401, refused.description, [("WWW-Authenticate", "Bearer")], closes=True)
    if refused.code == status.PLAY_STREAM_NOT_FOUND:
        return HttpError(404, refused.description, closes=True)
    if refused.reason.partition(" ")[0].endswith("_limit"):
        return HttpError(503, refused.description, _RETRY, closes=True)
    return HttpError(403, refused.description, closes=True)
