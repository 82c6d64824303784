"""The formats of ``auth_callback_format``: what a callback is sent, and what its response means. Pure.

``json`` is go-rtmp's request with more fields, and a response with terms of the publish. ``nginx`` is that of nginx-rtmp's
on_publish, on_play and on_update.
"""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlencode

from rtmpd.authorization import Action
from rtmpd.config.access_rules import is_name
from rtmpd.config.relay_url import RelayUrl
from rtmpd.config.spec import option_value
from rtmpd.live.grant import Grant
from rtmpd.util.stream_key import StreamKey
from rtmpd.util.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.authorization import Request
    from rtmpd.http.client import Response

LIMITS: Final = (
    "players_per_stream_limit",
    "publish_bitrate_limit",
    "publish_bitrate_grace_s",
    "publish_bitrate_action",
)
"""The options that ``limits`` in a response may set."""
DESTINATIONS: Final = 16
"""The most destinations of ``relay_to`` in a response."""
_YEAR_S = 366 * 86400.0
_SHORTEST_S = 1.0
_UINT32 = 0xFFFFFFFF


class CallbackError(Exception):
    """The callback gave no answer that can be used; the message says why, without the URL and without secrets."""


class Format(Protocol):
    """A format of requests and responses."""

    content_type: str

    def question(self, request: Request, key: StreamKey) -> bytes:
        """Return the body of a request about the stream *key*."""

    def grant(self, response: Response, request: Request, key: StreamKey) -> Grant | None:
        """Return what a response of a status below 500 allows; None: it denies.

        Raises:
            CallbackError: It can't be used. Nothing of it must be applied then: a name that the client gave may be a secret,
                and a limit that does not hold would be noticed too late.
        """


class JsonFormat:
    """JSON. Each status from 200 to 299 allows, also without a body."""

    content_type = "application/json"

    def question(self, request: Request, key: StreamKey) -> bytes:
        """Return the fields of go-rtmp, and what else is known of the client."""
        client = request.client
        fields: dict[str, object] = {
            "action": str(request.action),
            "app": key.app,
            "stream_name": key.name,
            "stream_key": key,
            "token": request.parameters.get("token", ""),
            "remote_addr": request.peer,
            "connection_id": client.connection_id,
            "protocol": client.protocol,
            "agent": client.agent,
            "tc_url": client.tc_url,
            "page_url": client.page_url,
            "swf_url": client.swf_url,
            "parameters": dict(request.parameters),
        }
        if request.running_s is not None:
            fields |= {"recheck": True, "running_s": round(request.running_s, 1)}
        return json.dumps(fields).encode()

    def grant(self, response: Response, request: Request, key: StreamKey) -> Grant | None:
        """Return the terms that the body contains."""
        if not 200 <= response.status < 300:
            return None
        if response.defect:
            raise CallbackError(f"the response {response.defect}")
        return parse_grant(response.body, request.action, key)


class NginxFormat:
    """A form, as nginx-rtmp sends it. Status 200 to 299 allows, and 300 to 399 renames or relays the stream by a Location.

    Parameters of the client follow the fields, as in nginx-rtmp, but none with the name of a field: a client could otherwise
    replace it.
    """

    content_type = "application/x-www-form-urlencoded"

    def question(self, request: Request, key: StreamKey) -> bytes:
        """Return the fields of on_publish or on_play; of on_update, for a running publish or play."""
        client = request.client
        fields = {
            "app": key.app,
            "flashver": client.agent,
            "swfurl": client.swf_url,
            "tcurl": client.tc_url,
            "pageurl": client.page_url,
            "addr": request.address.strip("[]"),
            "clientid": client.connection_id,
        }
        if request.running_s is None:
            fields |= {"call": str(request.action), "name": key.name} | _arguments(request)
        else:
            fields |= {"call": f"update_{request.action}", "time": str(int(request.running_s)), "name": key.name}
        own = {*fields, "time", "timestamp", "type", "start", "duration", "reset"}
        fields |= {name: value for name, value in request.parameters.items() if name not in own}
        return urlencode(fields, errors="surrogatepass").encode()

    def grant(self, response: Response, request: Request, key: StreamKey) -> Grant | None:
        """Return what status and Location allow; the body does not matter."""
        if 300 <= response.status < 400:
            # The answer to an update has no Location to follow.
            location = response.headers.get("Location", "") if request.running_s is None else ""
            return _redirected(location, request.action, key)
        return Grant(key) if 200 <= response.status < 300 else None


FORMATS: Final[Mapping[str, Format]] = {"json": JsonFormat(), "nginx": NginxFormat()}
"""By the value of ``auth_callback_format``."""


# Responses of JSON ------------------------------------------------------------------------------------------------------


def parse_grant(body: bytes, action: Action, key: StreamKey) -> Grant:
    """Return what a body grants. A body that is no JSON object grants the stream, as in go-rtmp. Unknown members are ignored.

    ``{"stream": NAME}`` is for publishes and plays, go-rtmp's ``{"name": NAME}`` for publishes only.

    Raises:
        CallbackError: The object is broken, or a member has a wrong value.
    """
    text = body.strip()
    if not text.startswith(b"{"):
        return Grant(key)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise CallbackError("the response is broken JSON") from None
    name = found.get("stream")
    if name is None and action is Action.PUBLISH:
        name = found.get("name")
    return Grant(
        key if name is None else _renamed(key, name),
        _relay_to(found.get("relay_to")),
        _record(found.get("record")),
        _limits(found.get("limits")),
        _expires_s(found.get("expires_s")),
    )


def _wrong(member: str, expected: str) -> CallbackError:
    return CallbackError(f"{member} in the response is not {expected}")


def _renamed(key: StreamKey, name: object) -> StreamKey:
    if not isinstance(name, str) or not is_name(name) or not all(name.split("/")):
        raise CallbackError("the name in the response can't be the name of a stream")
    return StreamKey(f"{key.app}/{name}".lstrip("/"))


def _relay_to(value: object) -> tuple[RelayUrl, ...]:
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or len(texts) > DESTINATIONS:
        raise _wrong("relay_to", f"a URL, or a list of at most {DESTINATIONS} URLs")
    return tuple(dict.fromkeys(_relay_url(text) for text in texts))


def _relay_url(text: str) -> RelayUrl:
    # Not file:PATH and env:NAME, which the options accept: a web server reads no files here.
    if not text.lower().startswith(("rtmp://", "rtmps://")):
        raise _wrong("relay_to", "a URL that begins with rtmp:// or rtmps://")
    try:
        return RelayUrl.parse(text)
    except ValueError as error:
        raise CallbackError(f"relay_to in the response can't be used: {error}") from None


def _record(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise _wrong("record", "true or false")


def _limits(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong("limits", "an object with options of [limits]")
    found = {}
    for name, limit in value.items():
        if name not in LIMITS:
            raise CallbackError(f'limits in the response has "{printable(name[:40])}"; possible are {", ".join(LIMITS)}')
        if isinstance(limit, bool) or not isinstance(limit, (int, float, str)):
            raise _wrong(f"limits.{name}", "a number or a text, as in the configuration")
        if isinstance(limit, float) and limit.is_integer():
            # Some writers of JSON know no other numbers.
            limit = int(limit)
        try:
            found[name] = option_value("limits", name, str(limit))
        except ValueError as error:
            raise CallbackError(f"limits.{name} in the response is wrong: {error}") from None
    return found


def _expires_s(value: object) -> float:
    if value is None:
        return 0.0
    # Not 0 or less: it would be taken for an end that has passed, or for none.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _YEAR_S:
        raise _wrong("expires_s", f"a number above 0, up to {_YEAR_S:g}")
    return max(_SHORTEST_S, float(value))


# nginx-rtmp -------------------------------------------------------------------------------------------------------------


def _redirected(location: str, action: Action, key: StreamKey) -> Grant:
    """Return what a Location grants: another name for the stream, or a destination of a publish. Without one, the stream."""
    if not location:
        return Grant(key)
    if location.lower().startswith(("rtmp://", "rtmps://")):
        if action is Action.PLAY:
            raise CallbackError("the Location of a play is another server, and rtmpd can't pull")
        return Grant(key, (_relay_url(location),))
    if "://" in location:
        raise CallbackError("the Location is neither a stream's name nor an RTMP URL")
    with contextlib.suppress(UnicodeError):
        # HTTP headers are read as Latin-1.
        location = location.encode("latin-1").decode()
    return Grant(_renamed(key, location))


def _arguments(request: Request) -> dict[str, str]:
    """Return the other arguments of the command."""
    if request.action is Action.PUBLISH:
        kind = request.arguments.get("type")
        return {"type": kind[:32] if isinstance(kind, str) and kind else "live"}
    start, duration = (_uint32(request.arguments.get(name)) for name in ("start", "duration"))
    return {"start": start, "duration": duration, "reset": "1" if request.arguments.get("reset") else "0"}


def _uint32(value: object) -> str:
    """Return a number as nginx-rtmp writes it: -1 is 4294967295."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "0"
    return str(int(value) & _UINT32)
