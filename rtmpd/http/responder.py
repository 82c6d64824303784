"""From a request to its response: routes, handlers, places, errors and common headers, for HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from rtmpd.errors import DeadlineExceeded, HttpError, TransportClosed
from rtmpd.http.messages import Response, error_response
from rtmpd.http.routes import Exchange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtmpd.http.base import Host
    from rtmpd.http.messages import Request
    from rtmpd.http.routes import Route

log = logging.getLogger(__name__)


class Answering(Exchange, Protocol):
    """An exchange that sends its response."""

    def send(self, headers: Sequence[tuple[str, str]], response: Response, *, last: bool) -> None:
        """Send a response.

        Args:
            headers: All headers, except those that belong to the version of HTTP.
            response: The status, and the body as it is to be sent.
            last: The connection must serve no further requests, or, by HTTP/2, not many of this kind.

        Raises:
            TransportClosed, DeadlineExceeded: It could not be sent.
        """


class Responder:
    """Serves requests with the routes of a server.

    Args:
        host: The server.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def find(self, request: Request) -> tuple[Request, Route | HttpError]:
        """Return a request with what the placeholders stand for, and its route, or why it has none."""
        try:
            route, request = self._host.routes.find(request)
        except HttpError as error:
            return request, error
        return request, route

    def serve(self, request: Request, found: Route | HttpError, exchange: Answering) -> None:
        """Serve a complete request. May wait.

        Args:
            request: The request.
            found: As `find` has returned it.
            exchange: Sends the response.

        Raises:
            TransportClosed, DeadlineExceeded: The client has gone, or does not read.
        """
        if isinstance(found, HttpError):
            self.refuse(found, request, exchange)
        elif request.method == "OPTIONS" and "OPTIONS" not in found.methods:
            headers = [("Allow", ", ".join(found.allowed)), *self._preflight(found, request)]
            self._send(Response(204, headers=headers), request, found, exchange)
        elif found.long:
            self._handle(request, found, exchange)
        else:
            places = self._host.places
            places.take(exchange)
            try:
                self._handle(request, found, exchange)
            finally:
                places.leave()

    def refuse(self, error: HttpError, request: Request | None, exchange: Answering, *, last: bool = False) -> None:
        """Send the response to a request that no handler serves; None: it could not be parsed."""
        self._send(error_response(error, request), request, None, exchange, last=last)

    def _handle(self, request: Request, route: Route, exchange: Answering) -> None:
        last = False
        try:
            response = route.handler(request, exchange)
        except HttpError as error:
            response = error_response(error, request)
            last = error.closes
        except (TransportClosed, DeadlineExceeded):
            raise
        except Exception:
            self._host.count("internal_errors")
            log.exception("internal error: a request for %.80r failed", request.path)
            response = error_response(HttpError(500, "Internal error."), request)
        if response is not None:
            self._send(response, request, route, exchange, last=last)

    def _send(
        self, response: Response, request: Request | None, route: Route | None, exchange: Answering, *, last: bool = False
    ) -> None:
        begun_s = time.monotonic()
        cors = self._cors(request) if route is not None and route.cors and request is not None else []
        headers = [*_common_headers(), *cors, *response.headers]
        without_body = response.status in (204, 304)
        if not without_body:
            headers.append(("Content-Type", response.content_type))
            if response.sized:
                headers.append(("Content-Length", str(response.size)))
        if without_body or (request is not None and request.method == "HEAD"):
            response = replace(response, body=b"", pieces=())
        exchange.outcome = {"served": response.status < 400, **exchange.outcome}
        places = self._host.places
        if route is not None and not route.long:
            places.begin_sending(exchange)
        try:
            exchange.send(headers, response, last=last)
        finally:
            places.end_sending(exchange)
        if request is not None:
            spent_ms = (time.monotonic() - begun_s) * 1000
            log.debug(
                "http %s: %.10s %.80r: %d, %d bytes, %.1f ms", request.peer, request.method, request.path, response.status,
                response.size, spent_ms,
            )  # fmt: skip

    def stream_headers(
        self, request: Request, more_headers: Sequence[tuple[str, str]], content_type: str
    ) -> list[tuple[str, str]]:
        """Return the headers of a response whose body has no known length."""
        return [*_common_headers(), *self._cors(request), *more_headers, ("Content-Type", content_type)]

    # Pages of other origins --------------------------------------------------------------------------------------------

    def allows_origin(self, request: Request) -> bool:
        """Return whether a page that makes a request may use the response; requests that no page makes have no origin."""
        origin, allowed = request.headers.get("origin", ""), self._host.allow_origin
        own = origin.partition("://")[2] == request.headers.get("host", "")
        return not origin or own or "*" in allowed or origin in allowed

    def _cors(self, request: Request) -> list[tuple[str, str]]:
        """Return the headers that let a page of another origin use a response (Fetch, section 3.3)."""
        origin, allowed = request.headers.get("origin", ""), self._host.allow_origin
        if "*" in allowed:
            return [("Access-Control-Allow-Origin", "*")]
        vary = [("Vary", "Origin")] if allowed else []
        if origin and origin in allowed:
            return [("Access-Control-Allow-Origin", origin), *vary]
        return vary

    @staticmethod
    def _preflight(route: Route, request: Request) -> list[tuple[str, str]]:
        if not route.cors or "access-control-request-method" not in request.headers:
            return []
        return [
            ("Access-Control-Allow-Methods", ", ".join(route.allowed)),
            ("Access-Control-Allow-Headers", "Authorization, Content-Type, Range"),
            ("Access-Control-Max-Age", "86400"),
        ]


def _common_headers() -> list[tuple[str, str]]:
    return [("Date", _date(int(time.time()))), ("Server", "rtmpd"), ("X-Content-Type-Options", "nosniff")]


@lru_cache(maxsize=1)
def _date(now_s: int) -> str:
    """Return a time for a header. It costs more than most of a response."""
    return formatdate(now_s, usegmt=True)
