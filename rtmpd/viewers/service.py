"""The viewers: the routes of streams, and what ends viewers when their stream has ended."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from rtmpd.errors import HttpError, Refused
from rtmpd.http.messages import Response
from rtmpd.http.routes import Route
from rtmpd.http.websocket import WebSocket, is_upgrade
from rtmpd.protocol import status
from rtmpd.viewers.codecs import CodecWatch
from rtmpd.viewers.formats import FlvFormat, Format, Mp4Format
from rtmpd.viewers.requests import authorize, find_stream, outcome, play_request, refusals, stream_of
from rtmpd.viewers.viewer import Viewer, ViewerConnection
from rtmpd.viewers.ws_viewer import WsViewer

if TYPE_CHECKING:
    from rtmpd.authorization import Request as PlayRequest
    from rtmpd.config.model import Config
    from rtmpd.http.messages import Request
    from rtmpd.http.routes import Exchange
    from rtmpd.hub import Hub
    from rtmpd.util.stream_key import StreamKey

_HEADERS = (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no"))
_TRUE = ("1", "true", "yes", "on")
_LAST_S = 5.0
"""How long a viewer that lags may take to read the rest of a stream that has ended."""

_HANDSHAKE_S = 10.0
_STEP_S = 0.02


class Viewers:
    """The service.

    Args:
        hub: The hub.

    Attributes:
        routes: The routes of streams.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._ending: dict[Viewer, float] = {}
        self._wakeup = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._find = partial(find_stream, hub)
        self._codecs = CodecWatch(self._find)
        flv, mp4 = FlvFormat(self._find), Mp4Format(self._codecs)
        self.routes = [
            Route("/{key}.flv", partial(self._serve, flv), long=True, cors=True),
            Route("/{key}.mp4", partial(self._serve, mp4), long=True, cors=True),
        ]

    @staticmethod
    def select(config: Config) -> None:
        """Return nothing: the options are those of the hub and of the streams."""

    def start(self) -> None:
        """Start to close viewers whose streams have ended, and to find out codecs."""
        self._codecs.start()
        self._greenlet = gevent.spawn(self._run)

    def reload(self, options: None) -> None:
        """Do nothing."""

    def stop(self, limit_s: float) -> None:
        """Stop. The hub has closed all viewers."""
        self._codecs.stop()
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    # The end of streams --------------------------------------------------------------------------------------------------

    def _end(self, viewer: Viewer) -> None:
        """Close a viewer when it was sent everything."""
        self._ending.setdefault(viewer, time.monotonic() + _LAST_S)
        self._wakeup.set()

    def _run(self) -> None:
        while True:
            self._wakeup.wait()
            self._wakeup.clear()
            while self._ending:
                # At least once: a pass may just have been requested.
                gevent.sleep(_STEP_S)
                self._close_those_that_have_all()

    def _close_those_that_have_all(self) -> None:
        now_s = time.monotonic()
        for viewer in [each for each, until_s in self._ending.items() if each.has_all or now_s >= until_s]:
            del self._ending[viewer]
            viewer.finish()

    # Requests ----------------------------------------------------------------------------------------------------------

    def _serve(self, media: Format, request: Request, exchange: Exchange) -> Response | None:
        """Serve a live stream in a format, until the connection ends."""
        websocket = self._websocket(request, exchange)
        protocol = ("ws" if websocket is not None else "http") + ("s" if request.secure else "")
        connection = ViewerConnection(exchange, self._hub, protocol)
        asked = play_request(request, exchange, protocol, *stream_of(request))
        exchange.outcome = outcome()
        with refusals(self._hub, exchange, connection):
            try:
                return self._play(media, request, asked, connection, exchange, websocket)
            except HttpError as error:
                # A page that waits for a publisher asks again and again.
                level = logging.DEBUG if error.status == 404 else logging.WARNING
                connection.log.log(level, "play by %s refused: %s", protocol, error.text)
                exchange.outcome = {**exchange.outcome, "reason": f"refused: {error.text}"}
                raise

    def _play(
        self,
        media: Format,
        request: Request,
        asked: PlayRequest,
        connection: ViewerConnection,
        exchange: Exchange,
        websocket: WebSocket | None,
    ) -> Response | None:
        """Authorize a client, send the head of the response, and play until the connection ends.

        Raises:
            Refused: The client may not play.
            HttpError: The format does not carry the stream, or the stream is not there.
        """
        admission = authorize(asked, self._hub, exchange, connection.emit)
        if request.method == "HEAD":
            return self._describe(media, admission.grant.key)
        if websocket is not None:
            viewer: Viewer = WsViewer(connection, admission, media, websocket, self._end)
        else:
            viewer = Viewer(connection, admission, media, self._end)
        may_wait = asked.parameters.get("wait", "").lower() in _TRUE
        if self._find(admission.grant.key) is not None or (may_wait and self._waits(admission.grant.key)):
            media.wait(admission.grant.key, exchange.ensure_open, long=may_wait)
        stream = self._hub.play(admission.grant.key, viewer, may_wait=may_wait)
        exchange.extra_held = lambda: viewer.held_bytes
        try:
            content_type = viewer.announce(stream)
            exchange.outcome = {**exchange.outcome, "served": True}
            if websocket is not None:
                exchange.transport.send_all(websocket.accept(), _HANDSHAKE_S)
            else:
                exchange.begin_stream(request, _HEADERS, content_type)
            viewer.run(stream, content_type, exchange.take_unread())
        finally:
            exchange.bytes_streamed = connection.bytes_played
            # A reference cycle would keep the viewer until the garbage collector runs, which is seldom.
            exchange.extra_held = None
            # Harmless if the end of the play has done it.
            self._hub.unplay(stream, viewer)
        return None

    @staticmethod
    def _websocket(request: Request, exchange: Exchange) -> WebSocket | None:
        """Return the WebSocket that a request asks for, if it does.

        Raises:
            HttpError: The handshake is invalid, or the page that asks is of an origin that may not use streams: browsers leave
                it to the server to check that.
        """
        if not is_upgrade(request):
            return None
        if not exchange.allows_origin(request):
            raise HttpError(403, "Pages of this origin may not use streams (http_allow_origin).", closes=True)
        return WebSocket(request)

    def _waits(self, key: StreamKey) -> bool:
        """Whether players may wait for a stream that is not there."""
        found = self._hub.config.application(key.app)
        return found is not None and found[1].live.wait_for_publisher

    def _describe(self, media: Format, key: StreamKey) -> Response:
        """Return the response to HEAD: whether the stream is there."""
        stream = self._find(key)
        if stream is None:
            raise Refused(status.PLAY_STREAM_NOT_FOUND, f"{key} is not being published.")
        return Response(content_type=media.describe(stream), headers=_HEADERS, sized=False)
