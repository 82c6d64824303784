"""The pages beside a stream: the facts that the player page needs of it, and its newest picture."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.errors import HttpError, UnsupportedByMp4
from rtmpd.http.messages import JSON, Response
from rtmpd.http.routes import Route
from rtmpd.live.poster import poster
from rtmpd.util.stream_key import StreamKey
from rtmpd.viewers.codecs import mp4_codecs
from rtmpd.viewers.requests import authorize, find_stream, outcome, play_request, refusals, stream_of
from rtmpd.viewers.viewer import ViewerConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import Config, HlsConfig
    from rtmpd.http.messages import Request
    from rtmpd.http.routes import Exchange
    from rtmpd.hub import Hub
    from rtmpd.live.stream import Stream

_NO_STORE = ("Cache-Control", "no-store")
_POSTER_TYPE = "video/mp4"
_POSTER_AGE_S = 2


class StreamPagesOptions(NamedTuple):
    """The part of the configuration that applies to the pages.

    Attributes:
        hls_of: Returns ``[hls]`` of the application that a path belongs to; None if there is none.
    """

    hls_of: Callable[[str], HlsConfig | None]


class Rendition(NamedTuple):
    """A stream that shows the same as another one, in another quality. 0: unknown.

    Attributes:
        name: The name of the stream, in the application.
        width, height: The size of the picture, pixels.
        frame_rate: Frames per second.
        bit_rate: Bits per second.
    """

    name: str
    width: int
    height: int
    frame_rate: int
    bit_rate: int


class StreamPages:
    """The service.

    Args:
        hub: The hub.
        options: The options.

    Attributes:
        routes: The routes, which must come before those of streams.
    """

    def __init__(self, hub: Hub, options: StreamPagesOptions) -> None:
        self._hub = hub
        self._options = options
        self.routes = [
            # It is small, and may wait for a callback: it must not take one of the few places for responses meanwhile.
            Route("/{key}/info.json", self._serve_info, long=True, cors=True),
            Route("/{key}/poster.mp4", self._serve_poster, cors=True),
        ]

    @staticmethod
    def select(config: Config) -> StreamPagesOptions:
        """Return the options."""

        def hls_of(app: str) -> HlsConfig | None:
            found = config.application(app)
            return found[1].hls if found is not None else None

        return StreamPagesOptions(hls_of)

    def start(self) -> None:
        """Do nothing."""

    def reload(self, options: StreamPagesOptions) -> None:
        """Apply new options."""
        self._options = options

    def stop(self, limit_s: float) -> None:
        """Do nothing."""

    def _authorized(self, request: Request, exchange: Exchange) -> tuple[StreamKey, bool]:
        """Return the stream that a client asks about, which may play it, and whether any other may that shows nothing.

        Raises:
            HttpError: It may not.
        """
        protocol = "https" if request.secure else "http"
        connection = ViewerConnection(exchange, self._hub, protocol)
        key, parameters = stream_of(request)
        exchange.outcome = outcome()
        with refusals(self._hub, exchange, connection):
            asked = play_request(request, exchange, protocol, key, parameters)
            is_open = self._hub.authorizer.is_open(replace(asked, parameters={}))
            return authorize(asked, self._hub, exchange, connection.emit).grant.key, is_open

    # The facts that the player page needs ------------------------------------------------------------------------------------

    def _serve_info(self, request: Request, exchange: Exchange) -> Response:
        key, _ = self._authorized(request, exchange)
        stream = find_stream(self._hub, key)
        found = mp4_codecs(stream)
        hls = self._options.hls_of(key.app)
        info = {
            "stream": key,
            "live": stream is not None,
            "mp4_type": found.mime,
            "problem": found.problem,
            "renditions": [each._asdict() for each in self._renditions(key, hls)] if hls is not None else [],
            # Relative to this page.
            "hls": "index.m3u8" if hls is not None and hls.hls != "off" else "",
        }
        return Response(body=json.dumps(info).encode() + b"\n", content_type=JSON, headers=[_NO_STORE]).compressed(request)

    def _renditions(self, key: StreamKey, hls: HlsConfig) -> list[Rendition]:
        """Return the renditions of a stream that are live, the best first; none without a choice."""
        streams = [find_stream(self._hub, each) for each in (key, *(StreamKey(key + suffix) for suffix in hls.hls_renditions))]
        found = [_rendition(stream) for stream in streams if stream is not None]
        return sorted(found, key=lambda each: (-each.height, -each.bit_rate)) if len(found) > 1 else []

    # The newest picture ------------------------------------------------------------------------------------------------------

    def _serve_poster(self, request: Request, exchange: Exchange) -> Response:
        key, is_open = self._authorized(request, exchange)
        stream = find_stream(self._hub, key)
        if stream is None:
            raise HttpError(404, f"{key} is not being published.")
        try:
            body = poster(stream.published.log)
        except UnsupportedByMp4 as error:
            raise HttpError(415, f"{key}: {error}.") from None
        if body is None:
            raise HttpError(404, f"No keyframe of {key} is kept.")
        # What a token was needed for, or what a callback has allowed one client, is not for others.
        shared = "public" if is_open and not request.query and not request.bearer_token else "private"
        headers = [("Cache-Control", f"{shared}, max-age={_POSTER_AGE_S}")]
        return Response(body=body, content_type=_POSTER_TYPE, headers=headers).tagged(request).ranged(request)


def _rendition(stream: Stream) -> Rendition:
    stats = stream.stats
    width, height = (stats.video.width, stats.video.height) if stats.video is not None else (0, 0)
    return Rendition(stream.key.name, width, height, round(stats.fps), round(stats.bitrate))
