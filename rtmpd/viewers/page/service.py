"""The routes of the player page and of its scripts.

The page is the same for each name: it does not tell whether a stream exists, or whether the client may play it. Its script asks
for the stream with the query of the page.
"""

from __future__ import annotations

import hashlib
import html
from dataclasses import replace
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from rtmpd.errors import HttpError
from rtmpd.http.messages import HTML, Response
from rtmpd.http.routes import Route
from rtmpd.viewers.requests import stream_of

if TYPE_CHECKING:
    from rtmpd.config.model import Config
    from rtmpd.http.messages import Request
    from rtmpd.http.routes import Exchange

_FOLDER: Final = "_player"
_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_ASSETS: Final = ("player.js", "session.js", "playback.js", "latency.js", "tracks.js", "codecs.js", "player.css", "icon.svg")
_IMMUTABLE: Final = ("Cache-Control", "public, max-age=31536000, immutable")
_REVALIDATED: Final = ("Cache-Control", "no-cache")
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class PageOptions(NamedTuple):
    """The part of the configuration that applies to the page.

    Attributes:
        frame_ancestors: ``http_frame_ancestors``.
    """

    frame_ancestors: tuple[str, ...]


class PlayerPage:
    """The service.

    Args:
        options: The options.

    Attributes:
        routes: The routes of the scripts, and of the page: the latter matches each name of a stream, and so must be the last.
    """

    def __init__(self, options: PageOptions) -> None:
        self._options = options
        folder = files("rtmpd.viewers.page")
        contents = {name: folder.joinpath(name).read_bytes() for name in _ASSETS}
        self._assets = {name: Response(200, body, _TYPES[name[name.rindex(".") :]]) for name, body in contents.items()}
        self._page = Template(folder.joinpath("player.html").read_text("utf-8"))
        self._version = hashlib.blake2b(b"\0".join(contents.values()), digest_size=8).hexdigest()
        self.routes = [
            Route(f"/{_FOLDER}/{{version}}/{{file}}", self._serve_asset),
            Route("/{key}", self._serve_page),
        ]

    @staticmethod
    def select(config: Config) -> PageOptions:
        """Return the options of ``[http]`` that apply to the page."""
        return PageOptions(config.http.http_frame_ancestors)

    def start(self) -> None:
        """Do nothing."""

    def reload(self, options: PageOptions) -> None:
        """Apply new options."""
        self._options = options

    def stop(self, limit_s: float) -> None:
        """Do nothing."""

    def _serve_asset(self, request: Request, exchange: Exchange) -> Response:
        found = self._assets.get(request.captured["file"])
        if found is None:
            raise HttpError(404, "This page does not exist.")
        # A page of another version, of a server beside this one behind a load balancer, must not keep what it gets.
        current = request.captured["version"] == self._version
        return replace(found, headers=[_IMMUTABLE if current else _REVALIDATED]).compressed(request).tagged(request)

    def _serve_page(self, request: Request, exchange: Exchange) -> Response:
        if request.accepts("text/html", "text/plain", "application/json") != "text/html":
            raise HttpError(404, "This page does not exist.")
        key, _ = stream_of(request)
        if request.path == f"/{key}/":
            # The script finds the stream beside the page. A relative target holds behind a proxy that adds a prefix, too.
            query = f"?{request.query}" if request.query else ""
            return Response(308, headers=[("Location", f"../{quote(key.name)}{query}"), ("Cache-Control", "no-store")])
        if request.path != f"/{key}":
            raise HttpError(404, "Streams have names like /APPLICATION/NAME.")
        assets = "../" * (key.count("/")) + f"{_FOLDER}/{self._version}/"
        page = self._page.substitute(name=html.escape(key), assets=assets)
        own = " ".join(("'self'", *self._options.frame_ancestors))
        headers = [
            _REVALIDATED,
            ("Content-Security-Policy", f"{_POLICY}; frame-ancestors {own}"),
            # The query may hold a token: no other host gets it.
            ("Referrer-Policy", "same-origin"),
        ]
        return Response(200, page.encode(), HTML, headers).compressed(request).tagged(request)
