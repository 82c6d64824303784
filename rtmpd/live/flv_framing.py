"""FLV tags: the framing of recordings, and of whatever else takes FLV. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rtmpd.live.framing import AUDIO, DATA, VIDEO, Headers, KeptMessages, Message, Notice
from rtmpd.media import flv

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.live.pages import Page

_HEADER, _OVERHEAD = flv.TAG_HEADER_SIZE, flv.TAG_OVERHEAD


class FlvFraming:
    """FLV tags with the size of each behind it, at the stream's own timestamps. Data messages are script tags."""

    __slots__ = ()

    name = "flv"
    over = False

    def for_log(self) -> FlvFraming:
        """Return itself: a tag depends on nothing else."""
        return self

    def set_headers(self, headers: Headers) -> None:
        """Do nothing: a tag depends on nothing else."""

    def size(self, timestamp: int, length: int) -> int:
        """Return the number of bytes that a message takes as a tag."""
        return length + _OVERHEAD

    def write(self, page: Page, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a message as a tag; return its end, or -1 if it does not fit."""
        return self.write_at(page, page.end, type_id, timestamp, payload)

    def write_at(self, page: Page, start: int, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a message as a tag at *start*; return its end, or -1 if it does not fit."""
        if start + len(payload) + _OVERHEAD > page.size:
            return -1
        return flv.tag_into(page.buffer, start, type_id, timestamp, payload)

    def read(self, page: Page, index: int) -> Message:
        """Read back a tag. Its payload is a view too."""
        return self.read_at(page, index, page.starts[index])

    def read_at(self, page: Page, index: int, start: int) -> Message:
        """Read back the tag of message *index*, which begins at *start*."""
        end = page.message_end(index)
        buffer, data = page.buffer, page.view[start:end]
        timestamp = int.from_bytes(buffer[start + 4 : start + 7], "big") | buffer[start + 7] << 24
        return Message(buffer[start], timestamp, data[_HEADER:-4], data, page.kinds[index], page, end)

    def media_timestamp(self, page: Page, index: int) -> int:
        """Return the timestamp of an audio or video tag; -1 for a script tag."""
        return self.media_timestamp_at(page, page.starts[index])

    def media_timestamp_at(self, page: Page, start: int) -> int:
        """Return the timestamp of the audio or video tag at *start*; -1 for a script tag."""
        buffer = page.buffer
        if buffer[start] == DATA:
            return -1
        return int.from_bytes(buffer[start + 4 : start + 7], "big") | buffer[start + 7] << 24

    def replay_headers(self, older: KeptMessages) -> Headers:
        """Return the headers of the join point."""
        return older.join_headers

    def notices(self, notice: Notice) -> tuple[bytes, ...]:
        """Return nothing: FLV has no notices."""
        return ()

    def for_subscriber(self) -> FlvSubscriberFraming:
        """Return the framing of an FLV viewer, whose file header lists the tracks that have headers."""
        return FlvSubscriberFraming()


class FlvSubscriberFraming:
    """The tags of one viewer: the log's own, behind a file header.

    The file header is sent with the first frame, since it says which tracks there are.

    Args:
        tracks: Returns whether the stream has audio, and whether it has video; None: the headers show it. Not every codec has
            headers.
    """

    __slots__ = ("_begun", "_tracks")

    shared = True
    sends_early = False

    def __init__(self, tracks: Callable[[], tuple[bool, bool]] | None = None) -> None:
        self._begun = False
        self._tracks = tracks

    def _file_header(self, headers: Headers) -> bytes:
        types = {type_id for type_id, _ in headers.items}
        has_audio, has_video = self._tracks() if self._tracks is not None else (False, False)
        return flv.file_header(has_audio=has_audio or AUDIO in types, has_video=has_video or VIDEO in types)

    def headers(self, headers: Headers, timestamp: int) -> bytes:
        """Return headers as tags, the first time behind the file header."""
        return b"".join(self.pieces(headers, timestamp))

    def pieces(self, headers: Headers, timestamp: int) -> list[bytes]:
        """Return what `headers` does, as the file header and each tag."""
        found = [] if self._begun else [self._file_header(headers)]
        self._begun = True
        found += [flv.tag(type_id, 0 if type_id == DATA else timestamp, payload) for type_id, payload in headers.items]
        return found

    def message(self, message: Message) -> bytes:
        """Return a message as a tag."""
        return bytes(message.data)

    def notice(self, notice: Notice) -> bytes:
        """Return nothing: FLV has no notices."""
        return b""


FLV: Final = FlvFraming()
