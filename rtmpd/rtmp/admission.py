"""Asking whether a client may come in: at connect, and before Publish.Start or Play.Start.

The answer may take a while (a web server gives it), in which the connection reads nothing; when it comes, the peer may be gone.
Imports the types of `rtmpd.authorization`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rtmpd.authorization import Action, Connect, Request
from rtmpd.errors import LoginRequired, Refused
from rtmpd.events import EventType
from rtmpd.protocol.naming import resolve, split_query

if TYPE_CHECKING:
    from rtmpd.protocol.naming import StreamName
    from rtmpd.rtmp.connection import Connection

__all__ = ["authorize", "log_in"]


def log_in(connection: Connection, found: StreamName, properties: dict[str, Any]) -> str:
    """Let a client connect; return the user's name, or "" for nobody in particular.

    Args:
        connection: The connection.
        found: The application's path and the parameters.
        properties: The connect command's object.

    Raises:
        Refused: It may not connect. LoginRequired: Not without logging in.
    """
    agent = properties.get("flashVer")
    queries = [split_query(text)[1] for text in (connection.app, connection.tc_url.strip("'\""))]
    connect = Connect(
        address=connection.transport.address,
        app=found.key,
        query="&".join(queries),
        parameters=found.parameters,
        # OBS and FFmpeg say both when they publish; librtmp and GStreamer the first.
        encoder=properties.get("type") == "nonprivate" or (isinstance(agent, str) and agent.startswith("FMLE")),
    )
    try:
        return connection.hub.authorizer.login(connect)
    except LoginRequired:
        connection.wish.settled = True
        raise
    except Refused as refused:
        connection.emit(EventType.AUTH_FAILED, action=str(Action.CONNECT), reason=refused.reason)
        raise


def authorize(connection: Connection, action: Action, found: StreamName) -> str:
    """Let a client publish or play; return the key of the stream that it gets.

    Raises:
        Refused: It may not. TransportClosed: It may, but has left meanwhile, or was closed.
    """

    def wait() -> None:
        # Answers to what came before need not.
        connection.flush()
        connection.authorizing = True

    request = Request(
        action,
        connection.transport.peer,
        connection.transport.address,
        found.key,
        found.parameters,
        connection.user,
        resolve(connection.app, connection.tc_url, "", "").key if connection.user else "",
        wait,
    )
    try:
        key = connection.hub.authorizer.authorize(request)
    except Refused as refused:
        connection.emit(EventType.AUTH_FAILED, action=str(action), reason=refused.reason)
        raise
    finally:
        waited, connection.authorizing = connection.authorizing, False
    connection.wish.stream_key = key
    if waited:
        connection.transport.ensure_open()
    return key
