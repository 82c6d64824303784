"""A viewer by WebSocket: media in binary messages, answers to pings, and the closing handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent

from rtmpd.admission import LINGER_S
from rtmpd.errors import DeadlineExceeded, RemoteProtocolError, TransportClosed
from rtmpd.live.ws_framing import CloseCode, close_frame
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.player import LAST_MESSAGE_BYTES
from rtmpd.viewers.viewer import CHANGED, Viewer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.admission import Admission
    from rtmpd.http.websocket import WebSocket
    from rtmpd.live.framing import Framing
    from rtmpd.viewers.formats import Format
    from rtmpd.viewers.viewer import ViewerConnection

_LAST_S = 2.0
"""The longest time to send what is left when the client has closed the WebSocket."""


class WsViewer(Viewer):
    """One play by WebSocket; as `Viewer`.

    Args:
        connection, admission, media, end: As for `Viewer`.
        websocket: Parses what the client sends.
    """

    def __init__(
        self,
        connection: ViewerConnection,
        admission: Admission,
        media: Format,
        websocket: WebSocket,
        end: Callable[[Viewer], None],
    ) -> None:
        super().__init__(connection, admission, media, end)
        self._websocket = websocket
        self._closing: CloseReason | None = None  # a close frame is sent, or is in the log

    @staticmethod
    def _framing_of(media: Format) -> Framing:
        return media.ws_framing

    def _finish(self, reason: CloseReason) -> None:
        # Its log ends with a close frame.
        self._closing = self._closing or reason
        super()._finish(reason)

    def finish(self) -> None:
        """End the play, once the client has answered the close frame, or has had time to."""
        gevent.spawn_later(LINGER_S, self.connection.close, self.over)

    def _send_end(self) -> None:
        code = CloseCode.RESTART if self.over is CHANGED else CloseCode.NORMAL
        self.connection.transport.send_all(close_frame(code, self.over), _LAST_S)

    def _expel(self, reason: CloseReason) -> None:
        if self.subscriber is not None and self._closing is None:
            self._closing = reason
            # Otherwise the socket of a slow viewer does not accept the last frame.
            self.connection.transport.limit_unsent(LAST_MESSAGE_BYTES)
            self.write(close_frame(CloseCode.POLICY, reason.client_text))
        gevent.spawn_later(LINGER_S, self.connection.close, reason)

    def _listen(self, unread: bytes) -> CloseReason:
        try:
            last = (self._take(unread) if unread else None) or self.connection.transport.recv_while(self._take)
            reason = self._closing or CloseReason(CloseKind.PEER_LEFT, "closed by the client")
        except RemoteProtocolError as error:
            last = close_frame(CloseCode.PROTOCOL_ERROR, "invalid frame")
            reason = CloseReason(CloseKind.PROTOCOL, "invalid WebSocket frame", detail=str(error))
        rest = self._leave(str(reason))
        if self._closing is None:
            try:
                self.connection.transport.send_all(rest + last, _LAST_S)
            except (TransportClosed, DeadlineExceeded) as error:
                self.connection.log.debug("= the last frame was not sent: %s", error)
        return reason

    def _take(self, data: bytes | memoryview) -> bytes | None:
        """Take what the client has sent, in the event loop; return the last frame if it has closed the WebSocket."""
        self._check_received(len(data))
        reply, over = self._websocket.feed(bytes(data))
        if over:
            return reply
        if reply and self._closing is None and self.subscriber is not None:
            self.write(reply)
        return None
