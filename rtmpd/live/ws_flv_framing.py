"""FLV tags in WebSocket frames: the framing of viewers by WebSocket. Pure.

Each tag is one binary message of one frame (RFC 6455 section 5.2). A server's frames are not masked, so that all viewers get
the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rtmpd.live.flv_framing import FlvSubscriberFraming
from rtmpd.live.framing import DATA, Headers, Message, Notice, NoticeKind
from rtmpd.media import flv

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.live.pages import Page

_BINARY, _CLOSE = 0x82, 0x88
"""The first byte of a frame: the last one of its message, and its opcode."""

_SHORT, _MEDIUM = 125, 0xFFFF
_NORMAL, _POLICY = 1000, 1008
_REASON_BYTES = 123
_OVERHEAD = flv.TAG_OVERHEAD
_HEADER = flv.TAG_HEADER_SIZE
_CODES = {NoticeKind.UNPUBLISHED: _NORMAL, NoticeKind.TOO_SLOW: _POLICY, NoticeKind.UNSUPPORTED: _POLICY}


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


def close_frame(code: int, text: str) -> bytes:
    """Return a close frame (section 5.5.1). A text that is too long is cut."""
    reason = text.encode()[:_REASON_BYTES].decode(errors="ignore").encode()
    payload = code.to_bytes(2, "big") + reason
    return _header(len(payload), _CLOSE) + payload


class WsFlvFraming:
    """FLV tags, each in a frame of its own."""

    __slots__ = ()

    name = "ws-flv"

    def for_log(self) -> WsFlvFraming:
        """Return itself: a frame depends on nothing else."""
        return self

    def set_headers(self, headers: Headers) -> None:
        """Do nothing: a frame depends on nothing else."""

    def size(self, timestamp: int, length: int) -> int:
        """Return the number of bytes that a message takes as a frame."""
        tag = length + _OVERHEAD
        return header_size(tag) + tag

    def write(self, page: Page, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a message as a frame; return its end, or -1 if it does not fit."""
        header = _header(len(payload) + _OVERHEAD)
        start = page.end + len(header)
        if start + len(payload) + _OVERHEAD > page.size:
            return -1
        page.buffer[page.end : start] = header
        return flv.tag_into(page.buffer, start, type_id, timestamp, payload)

    @staticmethod
    def _tag_at(page: Page, index: int) -> int:
        """Return where the tag in a frame begins."""
        start = page.starts[index]
        length = page.buffer[start + 1]
        return start + (2 if length <= _SHORT else 4 if length == 126 else 10)

    def read(self, page: Page, index: int) -> Message:
        """Read back a frame. Its payload is a view too. The type of a frame that is no tag is 0."""
        start, end = page.starts[index], page.message_end(index)
        buffer, data = page.buffer, page.view[start:end]
        if buffer[start] != _BINARY:
            return Message(0, 0, data[2:], data, page.kinds[index], page, end)
        tag = self._tag_at(page, index)
        timestamp = int.from_bytes(buffer[tag + 4 : tag + 7], "big") | buffer[tag + 7] << 24
        payload = page.view[tag + _HEADER : end - 4]
        return Message(buffer[tag], timestamp, payload, data, page.kinds[index], page, end)

    def media_timestamp(self, page: Page, index: int) -> int:
        """Return the timestamp of an audio or video tag; -1 for a script tag and for other frames."""
        buffer = page.buffer
        if buffer[page.starts[index]] != _BINARY:
            return -1
        tag = self._tag_at(page, index)
        if buffer[tag] == DATA:
            return -1
        return int.from_bytes(buffer[tag + 4 : tag + 7], "big") | buffer[tag + 7] << 24

    def notices(self, notice: Notice) -> tuple[bytes, ...]:
        """Return the end of the stream as a close frame; nothing for other notices."""
        return (close_frame(_NORMAL, "the stream has ended"),) if notice.kind is NoticeKind.UNPUBLISHED else ()

    def for_subscriber(self) -> WsFlvSubscriberFraming:
        """Return the framing of a viewer; as `rtmpd.live.flv_framing.FlvFraming.for_subscriber`."""
        return WsFlvSubscriberFraming()

    def for_viewer(self, tracks: Callable[[], tuple[bool, bool]]) -> WsFlvSubscriberFraming:
        """Return the framing of a viewer; as `rtmpd.live.flv_framing.FlvFraming.for_viewer`."""
        return WsFlvSubscriberFraming(tracks)


class WsFlvSubscriberFraming(FlvSubscriberFraming):
    """The frames of one viewer: the log's own, behind one with the file header."""

    __slots__ = ()

    def headers(self, headers: Headers, timestamp: int) -> bytes:
        """Return headers as frames, the first time behind one with the file header."""
        begin = b"" if self._begun else binary_frame(self._file_header(headers))
        self._begun = True
        return begin + b"".join(
            binary_frame(flv.tag(type_id, 0 if type_id == DATA else timestamp, payload)) for type_id, payload in headers.items
        )

    def notice(self, notice: Notice) -> bytes:
        """Return a notice as a close frame; empty if the stream only begins."""
        code = _CODES.get(notice.kind)
        return close_frame(code, notice.text) if code is not None else b""


WS_FLV: Final = WsFlvFraming()
