"""What a decoder needs before the first frame: metadata and sequence headers, cached per track.

Pure. Imports the chunk writer, message names and media.tags.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rtmpd.media.tags import Kind, audio_info, video_info
from rtmpd.protocol.chunk import frame_message
from rtmpd.protocol.message import CSID_AUDIO, CSID_DATA, CSID_VIDEO, MessageType

__all__ = ["MAX_HEADERS", "MAX_HEADER_BYTES", "NO_HEADERS", "HeaderCache", "Headers"]

MAX_HEADER_BYTES = 64 << 10
"""A longer header or metadata is passed on, but not kept for late joiners: nothing real comes near it."""

MAX_HEADERS = 64
"""How many tracks' headers are kept."""


@dataclass(frozen=True, slots=True)
class Headers:
    """The headers in force at one moment, in the order in which to send them.

    Attributes:
        items: ``(csid, type_id, payload)``, metadata first.
        version: Grows with each change in a stream.
    """

    items: tuple[tuple[int, int, bytes], ...] = ()
    version: int = 0

    def frame(self, timestamp: int, message_stream_id: int, chunk_size: int) -> bytes:
        """Return them as chunks: sequence headers at *timestamp*, that of the frame that follows them, metadata at 0.

        FFmpeg takes onMetaData at any other time for a subtitle, and makes a stream of it.
        """
        return b"".join(
            frame_message(
                csid, type_id, message_stream_id, 0 if type_id == MessageType.DATA_AMF0 else timestamp, payload, chunk_size
            )
            for csid, type_id, payload in self.items
        )


NO_HEADERS = Headers()


@dataclass(slots=True)
class HeaderCache:
    """Collects the headers of one publisher.

    Attributes:
        current: The headers in force now.
        codecs: Codec names by track key, such as ``{"video 0": "h264", "audio 0": "aac"}``.
        refused: Headers not kept because of their size or number.
    """

    current: Headers = NO_HEADERS
    codecs: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    _metadata: bytes | None = None
    _headers: dict[str, tuple[int, int, bytes]] = field(default_factory=dict)

    def set_metadata(self, payload: bytes | None) -> None:
        """Keep the payload of an onMetaData message, or forget it."""
        if payload is not None and len(payload) > MAX_HEADER_BYTES:
            self.refused += 1
            return
        if payload != self._metadata:
            self._metadata = payload
            self._rebuild()

    def add_video(self, payload: bytes) -> bool:
        """Keep a video sequence header or metadata packet; return whether it brought a new codec."""
        info = video_info(payload)
        prefix = "video metadata" if info.kind == Kind.METADATA else "video"
        self._add(prefix, info.tracks, (CSID_VIDEO, MessageType.VIDEO, payload))
        return info.kind == Kind.HEADER and self.name_codec("video", info.tracks, info.codec)

    def add_audio(self, payload: bytes) -> bool:
        """Keep an audio sequence header or multichannel configuration; return whether it brought a new codec."""
        info = audio_info(payload)
        prefix = "audio" if info.packet_type == 0 else "audio channels"
        self._add(prefix, info.tracks, (CSID_AUDIO, MessageType.AUDIO, payload))
        return info.packet_type == 0 and self.name_codec("audio", info.tracks, info.codec)

    def name_codec(self, prefix: str, tracks: tuple[int, ...], codec: str) -> bool:
        """Note the codec of tracks; return whether that is news."""
        news = False
        for track in tracks[:MAX_HEADERS]:
            key = f"{prefix} {track}"
            if self.codecs.get(key) != codec and (key in self.codecs or len(self.codecs) < MAX_HEADERS):
                self.codecs[key] = codec
                news = True
        return news

    def _add(self, prefix: str, tracks: tuple[int, ...], item: tuple[int, int, bytes]) -> None:
        keys = [f"{prefix} {track}" for track in tracks]
        if all(self._headers.get(key) == item for key in keys):
            return
        if len(item[2]) > MAX_HEADER_BYTES or len(self._headers.keys() | set(keys)) > MAX_HEADERS:
            self.refused += 1
            return
        for key in keys:
            # The newest last: a multitrack header that one track has replaced since must come before that.
            self._headers.pop(key, None)
            self._headers[key] = item
        self._rebuild()

    def _rebuild(self) -> None:
        items = [] if self._metadata is None else [(CSID_DATA, int(MessageType.DATA_AMF0), self._metadata)]
        items += dict.fromkeys(self._headers.values())
        self.current = Headers(tuple(items), self.current.version + 1)

    def reset(self) -> None:
        """Forget everything: another publisher begins."""
        version = self.current.version + 1
        self._metadata = None
        self._headers.clear()
        self.codecs.clear()
        self.current = Headers((), version)
