"""The callback: a web server that decides about a publish or play, asked by a POST."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rtmpd.authorization import Action
from rtmpd.http.client import HttpClient, HttpError
from rtmpd.net.resolver import Resolver
from rtmpd.services.auth.formats import FORMATS, CallbackError
from rtmpd.services.auth.rules import Denied
from rtmpd.util.log_throttle import LogThrottle

if TYPE_CHECKING:
    from rtmpd.authorization import Request
    from rtmpd.config.model import AuthConfig
    from rtmpd.config.secret import Secret
    from rtmpd.http.client import Response
    from rtmpd.hub import Hub
    from rtmpd.live.grant import Grant
    from rtmpd.util.stream_key import StreamKey

log = logging.getLogger(__name__)

THREADS = 16
"""Requests at the same time."""
_ACTIVE_LIMIT = 256
"""Requests under way or waiting for a thread."""
BODY_LIMIT_BYTES = 8 << 10


class CallbackFailed(Denied):
    """A client is refused because the callback has failed."""

    def __init__(self) -> None:
        super().__init__("the authentication service failed", guess=False)


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

    def ask(self, options: AuthConfig, request: Request, key: StreamKey) -> Grant:
        """Ask whether a client may publish or play the stream *key*; return what it is granted.

        Waits for ``auth_callback_timeout_s`` at most, and calls ``request.waiting`` before.

        Raises:
            CallbackFailed: The callback has failed; that is counted and logged.
            Denied: The callback denies the request.
        """
        request.waiting()
        spoken = FORMATS[options.auth_callback_format]
        try:
            response = self._post(options, spoken.question(request, key), spoken.content_type)
            grant = spoken.grant(response, request, key)
        except CallbackError as error:
            self.failed(options, str(error), recheck=request.running_s is not None)
            raise CallbackFailed from None
        if grant is None:
            # A play without a token has guessed nothing.
            guess = bool(request.parameters.get("token")) or request.action is Action.PUBLISH
            raise Denied("the callback said no", guess=guess, unproved=False)
        return grant

    def failed(self, options: AuthConfig, problem: str, *, recheck: bool) -> None:
        """Count and log a failure of the callback."""
        self._hub.count("auth_callback_errors")
        failures = self._hub.counters["auth_callback_errors"]
        text = "auth_callback %s failed, clients are refused: %s; %d failures so far"
        if recheck:
            text = "auth_callback %s failed at a re-check, repeated for auth_recheck_grace_s: %s; %d failures so far"
        self._failures.log(log, logging.ERROR, text, _shown(options.auth_callback), problem, failures)

    def _post(self, options: AuthConfig, question: bytes, content_type: str) -> Response:
        if self.active >= _ACTIVE_LIMIT:
            raise CallbackError(f"{self.active} requests are waiting")
        self.active += 1
        try:
            response = self._client.post(
                options.auth_callback.reveal(),
                question,
                {"Content-Type": content_type},
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
        return response


def _shown(url: Secret) -> str:
    """Return what may be logged of a URL: scheme, host and port."""
    parts = urlsplit(url.reveal())
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
