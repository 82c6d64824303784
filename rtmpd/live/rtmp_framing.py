"""RTMP chunks: the framing of RTMP players and relays.

The bytes are the same for all players: message stream id 1, fixed chunk stream ids, one chunk size. Each message starts with a
type 0 chunk header, so that none depends on the one before it (RTMP 1.0 section 5.3.1.2). Pure.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from typing import TYPE_CHECKING

from rtmpd.live.framing import AUDIO, DATA, VIDEO, Headers, KeptMessages, Message, Notice, NoticeKind
from rtmpd.media.tags import Kind
from rtmpd.protocol import amf0, status
from rtmpd.protocol.chunk import EXTENDED_TIMESTAMP, frame_into, frame_message, framed_size, pack_header
from rtmpd.protocol.command import encode_command
from rtmpd.protocol.message import (
    CSID_AUDIO,
    CSID_CONTROL,
    CSID_DATA,
    CSID_STATUS,
    CSID_VIDEO,
    MessageType,
    UserControlType,
    user_control,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.live.pages import Page

_CONTROL, _COMMAND = int(MessageType.USER_CONTROL), int(MessageType.COMMAND_AMF0)
_CSIDS = {AUDIO: CSID_AUDIO, VIDEO: CSID_VIDEO, DATA: CSID_DATA, _CONTROL: CSID_CONTROL, _COMMAND: CSID_STATUS}
_FIRST_BYTES = [_CSIDS.get(type_id, 0) << 24 for type_id in range(32)]
_MESSAGE_STREAM_ID = 0x01000000  # 1: the one little-endian field of the protocol
_SHORT_HEADER, _LONG_HEADER = 12, 16
_HEADER_WORDS = struct.Struct(">II")
_MEDIA = (AUDIO, VIDEO)

PageMessage = tuple[int, int, "bytes | memoryview", int, int]
"""Type id, timestamp, payload, kind, and the offset behind a message."""
_KEYFRAMES = (int(Kind.KEYFRAME), int(Kind.TRACK_KEYFRAME))
_FRAME = int(Kind.FRAME)
_SET_DATA_FRAME = amf0.encode("@setDataFrame")

_NOTICES: dict[NoticeKind, tuple[UserControlType | str, ...]] = {
    NoticeKind.PUBLISHED: (UserControlType.STREAM_BEGIN, status.PLAY_PUBLISH_NOTIFY),
    NoticeKind.UNPUBLISHED: (status.PLAY_UNPUBLISH_NOTIFY, UserControlType.STREAM_EOF),
    NoticeKind.TOO_SLOW: (status.PLAY_INSUFFICIENT_BW,),
    NoticeKind.UNSUPPORTED: (status.PLAY_NO_TRACK,),
}
"""The user control events and status codes of each notice, in their order."""


def _notice_messages(notice: Notice, message_stream_id: int, chunk_size: int) -> list[bytes]:
    """Return a notice as chunks, at timestamp 0: OBS reads no extended timestamp on type 3 chunks of a command."""
    found = []
    for part in _NOTICES.get(notice.kind, ()):
        if isinstance(part, UserControlType):
            # Control messages belong to message stream 0, and name the other one in their body.
            found.append(user_control(part, message_stream_id))
            continue
        # FMS sends NetStream.Play.InsufficientBW as a warning. Players show the text of an error.
        level = {"level": "error"} if notice.kind is NoticeKind.TOO_SLOW else {}
        payload = encode_command("onStatus", 0, None, status.info(part, notice.text, **level))
        found.append(frame_message(CSID_STATUS, _COMMAND, message_stream_id, 0, payload, chunk_size))
    return found


class RtmpFraming:
    """RTMP chunks of one size.

    Args:
        chunk_size: The server's outbound chunk size, bytes.
    """

    __slots__ = ("chunk_size",)

    name = "rtmp"
    over = False

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size

    @property
    def plain_chunk_size(self) -> int:
        """The chunk size, if the extension may write chunks instead of `write`; 0 if a subclass writes in another way."""
        return self.chunk_size if type(self).write is RtmpFraming.write else 0

    def for_log(self) -> RtmpFraming:
        """Return itself: chunks depend on nothing else."""
        return self

    def set_headers(self, headers: Headers) -> None:
        """Do nothing: chunks depend on nothing else."""

    def replay_headers(self, older: KeptMessages) -> Headers:
        """Return the headers of the join point."""
        return older.join_headers

    def size(self, timestamp: int, length: int) -> int:
        """Return the number of bytes that a message takes as chunks."""
        return framed_size(length, timestamp, self.chunk_size)

    def write(self, page: Page, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a message as chunks; return its end, or -1 if it does not fit."""
        start, length = page.end, len(payload)
        # Nearly every message fits into one chunk.
        if length <= self.chunk_size and timestamp < EXTENDED_TIMESTAMP:
            begin = start + _SHORT_HEADER
            end = begin + length
            if end > page.size:
                return -1
            page.buffer[begin:end] = payload
            pack_header(page.buffer, start, _FIRST_BYTES[type_id] | timestamp, length << 8 | type_id, _MESSAGE_STREAM_ID)
            return end
        if start + framed_size(length, timestamp, self.chunk_size) > page.size:
            return -1
        return frame_into(page.buffer, start, _CSIDS[type_id], type_id, 1, timestamp, payload, self.chunk_size)

    def read(self, page: Page, index: int) -> Message:
        """Read back a message."""
        buffer, offset, end = page.buffer, page.starts[index], page.message_end(index)
        data = page.view[offset:end]
        timestamp = int.from_bytes(buffer[offset + 1 : offset + 4], "big")
        length = int.from_bytes(buffer[offset + 4 : offset + 7], "big")
        type_id = buffer[offset + 7]
        offset += _SHORT_HEADER
        separator_size = 1
        if timestamp == EXTENDED_TIMESTAMP:
            timestamp = int.from_bytes(buffer[offset : offset + 4], "big")
            offset += 4
            separator_size = 5
        pieces = []
        left = length
        while left > self.chunk_size:
            pieces.append(page.view[offset : offset + self.chunk_size])
            offset += self.chunk_size + separator_size
            left -= self.chunk_size
        pieces.append(page.view[offset : offset + left])
        return Message(type_id, timestamp, b"".join(pieces), data, page.kinds[index], page, end)

    def read_page(self, page: Page, offset: int) -> Iterator[PageMessage]:
        """Yield the messages of a page from an offset on, to its present end, without a copy where that can be.

        It is several times as fast as `read`, for readers that look at each message. A view keeps the buffer of the page in
        memory.
        """
        starts, kinds, buffer, view = page.starts, page.kinds, page.buffer, page.view
        first = bisect_left(starts, offset)
        count = len(starts)
        for index in range(first, count):
            start = starts[index]
            end = starts[index + 1] if index + 1 < count else page.end
            word, length = _HEADER_WORDS.unpack_from(buffer, start)
            timestamp = word & 0xFFFFFF
            begin = start + _SHORT_HEADER
            if timestamp != EXTENDED_TIMESTAMP and end - begin == length >> 8:
                yield length & 0xFF, timestamp, view[begin:end], kinds[index], end
            else:
                message = self.read(page, index)
                yield message.type_id, message.timestamp, message.payload, message.kind, end

    def media_timestamp(self, page: Page, index: int) -> int:
        """Return the timestamp of an audio or video message; -1 for any other."""
        buffer, offset = page.buffer, page.starts[index]
        if buffer[offset + 7] not in _MEDIA:
            return -1
        timestamp = int.from_bytes(buffer[offset + 1 : offset + 4], "big")
        if timestamp == EXTENDED_TIMESTAMP:
            return int.from_bytes(buffer[offset + _SHORT_HEADER : offset + _LONG_HEADER], "big")
        return timestamp

    def notices(self, notice: Notice) -> list[bytes]:
        """Return a notice as messages of the log."""
        return _notice_messages(notice, 1, self.chunk_size)

    def for_subscriber(self) -> RtmpSubscriberFraming:
        """Return the framing of a player with message stream id 1."""
        return RtmpSubscriberFraming(self.chunk_size)


class RtmpSubscriberFraming:
    """The chunks of one player.

    A player with another message stream id than 1, or that has switched audio or video off, can't use the log's bytes.

    Args:
        chunk_size: The server's outbound chunk size, bytes.
        message_stream_id: The player's.

    Attributes:
        receive_audio, receive_video: Changed by the receiveAudio and receiveVideo commands.
        video_gate: Video is held back until the next keyframe, after receiveVideo(true).
    """

    __slots__ = ("chunk_size", "message_stream_id", "receive_audio", "receive_video", "video_gate")

    sends_early = True

    def __init__(self, chunk_size: int, message_stream_id: int = 1) -> None:
        self.chunk_size = chunk_size
        self.message_stream_id = message_stream_id
        self.receive_audio = True
        self.receive_video = True
        self.video_gate = False

    @property
    def shared(self) -> bool:
        """Whether the player gets the log's own bytes."""
        return self.message_stream_id == 1 and self.receive_audio and self.receive_video and not self.video_gate

    def switch(self, *, audio: bool | None = None, video: bool | None = None) -> bool:
        """Switch audio or video on or off; return whether headers have to be sent again, since video is on again."""
        if audio is not None:
            self.receive_audio = audio
        if video is None or video == self.receive_video:
            return False
        self.receive_video = self.video_gate = video
        return video

    def frame(self, type_id: int, timestamp: int, payload: bytes) -> bytes:
        """Return a message as chunks on the player's message stream."""
        return frame_message(_CSIDS[type_id], type_id, self.message_stream_id, timestamp, payload, self.chunk_size)

    def headers(self, headers: Headers, timestamp: int) -> bytes:
        """Return headers as chunks: sequence headers at *timestamp*, metadata at 0.

        FFmpeg takes onMetaData at any other time for a subtitle, and makes a stream of it.
        """
        return b"".join(self.frame(type_id, 0 if type_id == DATA else timestamp, payload) for type_id, payload in headers.items)

    def message(self, message: Message) -> bytes:
        """Return a message as chunks; empty if the player has switched it off."""
        type_id, timestamp, payload = message.type_id, message.timestamp, bytes(message.payload)
        if type_id == _CONTROL:
            event = UserControlType(int.from_bytes(payload[:2], "big"))
            return user_control(event, self.message_stream_id)
        if (type_id == AUDIO and not self.receive_audio) or (type_id == VIDEO and not self._wants_video(message.kind)):
            return b""
        return self.frame(type_id, timestamp, payload)

    def _wants_video(self, kind: int) -> bool:
        if self.receive_video and self.video_gate:
            if kind in _KEYFRAMES:
                self.video_gate = False
            return kind != _FRAME
        return self.receive_video

    def notice(self, notice: Notice) -> bytes:
        """Return a notice as chunks."""
        return b"".join(_notice_messages(notice, self.message_stream_id, self.chunk_size))


class RelayFraming(RtmpSubscriberFraming):
    """The chunks that a relay sends: metadata goes out as encoders send it.

    Headers have onMetaData in the envelope ``@setDataFrame``: Adobe's servers only keep it for late joiners then. Metadata that
    comes later in the stream goes out as players get it, and once more in the envelope; see `changed_metadata`.
    """

    __slots__ = ("_metadata",)

    def __init__(self, chunk_size: int, message_stream_id: int = 1) -> None:
        super().__init__(chunk_size, message_stream_id)
        self._metadata: bytes | None = None

    def headers(self, headers: Headers, timestamp: int) -> bytes:
        """Return headers as chunks, metadata in its envelope."""
        self._metadata = _metadata_of(headers) or self._metadata
        items = ((type_id, _SET_DATA_FRAME + payload if type_id == DATA else payload) for type_id, payload in headers.items)
        return super().headers(Headers(tuple(items)), timestamp)

    def changed_metadata(self, headers: Headers) -> bytes:
        """Return metadata in its envelope, if it has changed since it was last sent; else nothing."""
        metadata = _metadata_of(headers)
        if metadata is None or metadata == self._metadata:
            return b""
        self._metadata = metadata
        return self.frame(DATA, 0, _SET_DATA_FRAME + metadata)


def _metadata_of(headers: Headers) -> bytes | None:
    return next((payload for type_id, payload in headers.items if type_id == DATA), None)
