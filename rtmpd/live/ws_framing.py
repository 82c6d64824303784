"""Messages of another framing in WebSocket frames: the framings of viewers by WebSocket. Pure.

What the inner framing makes of a message is one binary message of one frame (RFC 6455 section 5.2). A server's frames are not
masked, so that all viewers get the same bytes.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol

from rtmpd.live.flv_framing import FLV
from rtmpd.live.fmp4_framing import FMP4
from rtmpd.live.framing import Headers, KeptMessages, Message, Notice, NoticeKind, SubscriberFraming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtmpd.live.pages import Page

_BINARY, _CLOSE = 0x82, 0x88
"""The first byte of a frame: the last one of its message, and its opcode."""

_SHORT, _MEDIUM = 125, 0xFFFF
_REASON_BYTES = 123


class CloseCode(enum.IntEnum):
    """Why a WebSocket is closed (section 7.4.1, and the registry of IANA for `RESTART`)."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    POLICY = 1008
    RESTART = 1012
    """Service Restart: the client is to connect again."""


_CODES = {
    NoticeKind.UNPUBLISHED: CloseCode.NORMAL,
    NoticeKind.CHANGED: CloseCode.RESTART,
    NoticeKind.TOO_SLOW: CloseCode.POLICY,
    NoticeKind.UNSUPPORTED: CloseCode.POLICY,
}
_ENDS = {NoticeKind.UNPUBLISHED: "the stream has ended", NoticeKind.CHANGED: "the codecs of the stream have changed"}
"""The notices that end a log, and the reason that readers are given."""


def header_size(length: int) -> int:
    """Return the size of the header of a frame with a payload of *length* bytes."""
    if length <= _SHORT:
        return 2
    return 4 if length <= _MEDIUM else 10


def _header(length: int, first: int = _BINARY) -> bytes:
    if length <= _SHORT:
        return bytes((first, length))
    if length <= _MEDIUM:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")


def binary_frame(payload: bytes) -> bytes:
    """Return a binary message."""
    return _header(len(payload)) + payload


def close_frame(code: CloseCode, text: str) -> bytes:
    """Return a close frame (section 5.5.1). A text that is too long is cut."""
    reason = text.encode()[:_REASON_BYTES].decode(errors="ignore").encode()
    payload = code.to_bytes(2, "big") + reason
    return _header(len(payload), _CLOSE) + payload


class InnerSubscriberFraming(SubscriberFraming, Protocol):
    """What a WebSocket needs of the framing for one subscriber."""

    def pieces(self, headers: Headers, timestamp: int) -> Sequence[bytes]:
        """Return headers, as they precede a message of that timestamp, in the pieces that they consist of."""


class InnerFraming(Protocol):
    """What a WebSocket needs of a framing, beside what logs do: the same at other places of a page."""

    @property
    def name(self) -> str:
        """The name of the format."""

    @property
    def over(self) -> bool:
        """As `rtmpd.live.framing.Framing.over`."""

    def for_log(self) -> InnerFraming:
        """As `rtmpd.live.framing.Framing.for_log`."""

    def set_headers(self, headers: Headers) -> None:
        """Set the headers in force for the messages that follow."""

    def replay_headers(self, older: KeptMessages) -> Headers:
        """As `rtmpd.live.framing.Framing.replay_headers`."""

    def size(self, timestamp: int, length: int) -> int:
        """Return the number of bytes that a message with a payload of *length* bytes takes at most."""

    def write_at(self, page: Page, start: int, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a message at *start*; return its end, -1 if it does not fit, *start* if the format does not carry it."""

    def read_at(self, page: Page, index: int, start: int) -> Message:
        """Read back message *index* of a page, which begins at *start*."""

    def media_timestamp_at(self, page: Page, start: int) -> int:
        """Return the timestamp of the message at *start*; -1 if it is neither audio nor video."""

    def for_subscriber(self) -> InnerSubscriberFraming:
        """Return the framing of an ordinary subscriber."""


class WsFraming:
    """The messages of another framing, each in a WebSocket frame of its own.

    Args:
        inner: The other framing.

    Attributes:
        inner: As given.
    """

    __slots__ = ("inner",)

    def __init__(self, inner: InnerFraming) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """The name of the format."""
        return f"ws-{self.inner.name}"

    @property
    def over(self) -> bool:
        """Whether the messages that follow need another log."""
        return self.inner.over

    def for_log(self) -> WsFraming:
        """Return the framing of one log: itself, if the inner one depends on nothing else."""
        inner = self.inner.for_log()
        return self if inner is self.inner else WsFraming(inner)

    def set_headers(self, headers: Headers) -> None:
        """Set the headers in force for the messages that follow."""
        self.inner.set_headers(headers)

    def replay_headers(self, older: KeptMessages) -> Headers:
        """Return the headers to begin with when the messages of another log are about to be written."""
        return self.inner.replay_headers(older)

    def size(self, timestamp: int, length: int) -> int:
        """Return the number of bytes that a message takes at most as a frame."""
        size = self.inner.size(timestamp, length)
        return header_size(size) + size

    def write(self, page: Page, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a message as a frame; return its end, or -1 if it does not fit."""
        frame, inner = page.end, self.inner
        room = header_size(inner.size(timestamp, len(payload)))
        start = frame + room
        end = inner.write_at(page, start, type_id, timestamp, payload)
        if end <= start:
            return frame if end == start else -1
        header = _header(end - start)
        if len(header) != room:
            # It is shorter than it might have been, and a length must be written as short as possible.
            page.buffer[frame + len(header) : end - room + len(header)] = page.buffer[start:end]
            end += len(header) - room
        page.buffer[frame : frame + len(header)] = header
        return end

    @staticmethod
    def _payload_at(page: Page, frame: int) -> int:
        """Return where the payload of a frame begins."""
        length = page.buffer[frame + 1]
        return frame + (2 if length <= _SHORT else 4 if length == 126 else 10)

    def read(self, page: Page, index: int) -> Message:
        """Read back a message. Its payload is a view too. The type of a close frame is 0."""
        frame, end = page.starts[index], page.message_end(index)
        data = page.view[frame:end]
        if page.buffer[frame] != _BINARY:
            return Message(0, 0, data[2:], data, page.kinds[index], page, end)
        return self.inner.read_at(page, index, self._payload_at(page, frame))._replace(data=data)

    def media_timestamp(self, page: Page, index: int) -> int:
        """Return the timestamp of an audio or video message; -1 for others, and for a close frame."""
        frame = page.starts[index]
        if page.buffer[frame] != _BINARY:
            return -1
        return self.inner.media_timestamp_at(page, self._payload_at(page, frame))

    def notices(self, notice: Notice) -> tuple[bytes, ...]:
        """Return the end of the log as a close frame; nothing for other notices."""
        text = _ENDS.get(notice.kind)
        return (close_frame(_CODES[notice.kind], text),) if text is not None else ()

    def for_subscriber(self) -> WsSubscriberFraming:
        """Return the framing of a viewer."""
        return WsSubscriberFraming(self.inner.for_subscriber())


class WsSubscriberFraming:
    """The frames of one viewer: the log's own, behind the headers of the inner framing, each piece of them in a frame.

    Args:
        inner: The inner framing of the viewer.
    """

    __slots__ = ("_inner",)

    def __init__(self, inner: InnerSubscriberFraming) -> None:
        self._inner = inner

    @property
    def shared(self) -> bool:
        """Whether the viewer gets the log's own bytes."""
        return self._inner.shared

    @property
    def sends_early(self) -> bool:
        """Whether headers are sent before the source's first frame."""
        return self._inner.sends_early

    def headers(self, headers: Headers, timestamp: int) -> bytes:
        """Return headers as frames."""
        return b"".join(binary_frame(piece) for piece in self._inner.pieces(headers, timestamp))

    def message(self, message: Message) -> bytes:
        """Return a message as a frame."""
        return bytes(message.data)

    def notice(self, notice: Notice) -> bytes:
        """Return a notice as a close frame; empty if the stream only begins."""
        code = _CODES.get(notice.kind)
        return close_frame(code, _ENDS.get(notice.kind, notice.text)) if code is not None else b""


WS_FLV: Final = WsFraming(FLV)
WS_FMP4: Final = WsFraming(FMP4)
"""Name the formats; `WsFraming.for_log` makes the framing of a log."""
