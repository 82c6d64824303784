"""The callback: a web server that decides about a publish or play, asked by a POST with JSON."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rtmpd.authorization import Action
from rtmpd.config.access_rules import is_name
from rtmpd.http.client import HttpClient, HttpError
from rtmpd.net.resolver import Resolver
from rtmpd.services.auth.rules import Denied
from rtmpd.util.log_throttle import LogThrottle
from rtmpd.util.stream_key import StreamKey

if TYPE_CHECKING:
    from rtmpd.authorization import Request
    from rtmpd.config.model import AuthConfig
    from rtmpd.config.secret import Secret
    from rtmpd.hub import Hub

log = logging.getLogger(__name__)

THREADS = 16
"""Requests at the same time."""
_ACTIVE_LIMIT = 256
"""Requests under way or waiting for a thread."""
BODY_LIMIT_BYTES = 8 << 10


class CallbackError(Exception):
    """The callback gave no answer that can be used; the message says why, without the URL."""


class Callback:
    """Asks the web servers of ``auth_callback``. Answers are not remembered.

    Args:
        hub: The hub, for its counters and the authorities to trust.

    Attributes:
        active: The number of requests that are under way or wait for a thread.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._client = HttpClient(THREADS, Resolver(hub.count))
        self._failures = LogThrottle()
        self.active = 0

    def ask(self, options: AuthConfig, request: Request, key: str) -> StreamKey:
        """Ask whether a client may publish or play the stream *key*; return the stream that it gets.

        Waits for ``auth_callback_timeout_s`` at most, and calls ``request.waiting`` before.

        Raises:
            Denied: The callback denies the request, or has failed.
        """
        request.waiting()
        app, name = StreamKey(key).app, StreamKey(key).name
        token = request.parameters.get("token", "")
        client = request.client
        question: dict[str, object] = {
            "action": str(request.action),
            "app": app,
            "stream_name": name,
            "stream_key": key,
            "token": token,
            "remote_addr": request.peer,
            "connection_id": client.connection_id,
            "protocol": client.protocol,
            "agent": client.agent,
            "tc_url": client.tc_url,
            "page_url": client.page_url,
            "swf_url": client.swf_url,
            "parameters": dict(request.parameters),
        }
        try:
            body = self._post(options, question)
            given = name_in(body, request.action) if body is not None else ""
        except CallbackError as error:
            self._hub.count("auth_callback_errors")
            failures = self._hub.counters["auth_callback_errors"]
            text = "auth_callback %s failed, clients are refused: %s; %d failures so far"
            self._failures.log(log, logging.ERROR, text, _shown(options.auth_callback), error, failures)
            raise Denied("the authentication service failed", guess=False) from None
        if body is None:
            # A play without a token has guessed nothing.
            raise Denied("the callback said no", guess=bool(token) or request.action is Action.PUBLISH)
        return StreamKey(f"{app}/{given}" if given else key)

    def _post(self, options: AuthConfig, question: dict[str, object]) -> bytes | None:
        """Return the body of a response that allows; None: the callback denies."""
        if self.active >= _ACTIVE_LIMIT:
            raise CallbackError(f"{self.active} requests are waiting")
        self.active += 1
        try:
            response = self._client.post(
                options.auth_callback.reveal(),
                json.dumps(question).encode(),
                {"Content-Type": "application/json"},
                timeout_s=options.auth_callback_timeout_s,
                body_limit_bytes=BODY_LIMIT_BYTES,
                ca=self._hub.tls.client.ca,
            )
        except HttpError as error:
            raise CallbackError(str(error)) from None
        finally:
            self.active -= 1
        if response.status >= 500:
            raise CallbackError(f"the server answered {response.status}")
        if not 200 <= response.status < 300:
            return None
        if response.defect:
            raise CallbackError(f"the response {response.defect}")
        return response.body


def name_in(body: bytes, action: Action) -> str:
    """Return the name that a response gives a stream; empty: it gives none.

    ``{"stream": NAME}`` is for publishes and plays, go-rtmp's ``{"name": NAME}`` for publishes only.

    A body that is no JSON object gives none: go-rtmp does the same.

    Raises:
        CallbackError: The object is broken, or its name can't be the name of a stream. To ignore it would be to publish under
            the name that the client gave, which may be a secret.
    """
    text = body.strip()
    if not text.startswith(b"{"):
        return ""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise CallbackError("the response is broken JSON") from None
    name = found.get("stream")
    if name is None and action is Action.PUBLISH:
        name = found.get("name")
    if name is None:
        return ""
    if not isinstance(name, str) or not is_name(name) or not all(name.split("/")):
        raise CallbackError("the name in the response can't be the name of a stream")
    return name


def _shown(url: Secret) -> str:
    """Return what may be logged of a URL: scheme, host and port."""
    parts = urlsplit(url.reveal())
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
