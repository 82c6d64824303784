"""A viewer by WebSocket: FLV in binary messages, answers to pings, and the closing handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent

from rtmpd.admission import LINGER_S
from rtmpd.errors import DeadlineExceeded, RemoteProtocolError, TransportClosed
from rtmpd.live.ws_flv_framing import WS_FLV, close_frame
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.player import LAST_MESSAGE_BYTES
from rtmpd.viewers.viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.admission import Admission
    from rtmpd.http.websocket import WebSocket
    from rtmpd.viewers.viewer import ViewerConnection

_PROTOCOL_ERROR, _POLICY = 1002, 1008
_LAST_S = 2.0
"""The longest time to send what is left when the client has closed the WebSocket."""


class WsViewer(Viewer):
    """One play by WebSocket; as `Viewer`.

    Args:
        connection, admission, end: As for `Viewer`.
        websocket: Parses what the client sends.
    """

    def __init__(
        self, connection: ViewerConnection, admission: Admission, websocket: WebSocket, end: Callable[[Viewer], None]
    ) -> None:
        super().__init__(connection, admission, WS_FLV, end)
        self._websocket = websocket
        self._closing: CloseReason | None = None  # a close frame is sent, or is in the log

    def ended(self) -> None:
        """Take note that the stream has ended: its log ends with a close frame."""
        self._closing = CloseReason(CloseKind.COMMAND, "the stream has ended")
        super().ended()

    def finish(self, reason: CloseReason) -> None:
        """End the play, once the client has answered the close frame, or has had time to."""
        gevent.spawn_later(LINGER_S, self.connection.close, reason)

    def _refuse_codec(self, problem: str) -> None:
        self._expel(CloseReason(CloseKind.EXPELLED, f"refused: {problem}"))

    def _expel(self, reason: CloseReason) -> None:
        if self.subscriber is not None and self._closing is None:
            self._closing = reason
            # Otherwise the socket of a slow viewer does not accept the last frame.
            self.connection.transport.limit_unsent(LAST_MESSAGE_BYTES)
            self.write(close_frame(_POLICY, reason.client_text))
        gevent.spawn_later(LINGER_S, self.connection.close, reason)

    def _listen(self, unread: bytes) -> CloseReason:
        try:
            last = (self._take(unread) if unread else None) or self.connection.transport.recv_while(self._take)
            reason = self._closing or CloseReason(CloseKind.PEER_LEFT, "closed by the client")
        except RemoteProtocolError as error:
            last = close_frame(_PROTOCOL_ERROR, "invalid frame")
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
