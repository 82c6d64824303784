"""Metadata and sequence headers of one source, cached per track for readers that join late. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from rtmpd.live.framing import AUDIO, DATA, NO_HEADERS, VIDEO, Headers
from rtmpd.media.tags import Kind, audio_info, video_info

MAX_HEADER_BYTES = 64 << 10
"""Longer headers and metadata are delivered but not cached: no real encoder's come near this size."""

MAX_HEADERS = 64
"""The number of tracks whose headers are cached."""

_VIDEO_METADATA = "video metadata"


@dataclass(slots=True)
class HeaderCache:
    """Collects the headers of one source.

    Attributes:
        current: The headers in force now.
        codecs: Codec names by track, such as ``{"video 0": "h264", "audio 0": "aac"}``.
        refused: Headers that were not cached because of their size or number.
    """

    current: Headers = NO_HEADERS
    codecs: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    _metadata: bytes | None = None
    _headers: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    @property
    def sequence_headers(self) -> dict[str, tuple[int, bytes]]:
        """Type and payload of the sequence headers, by track, as in ``codecs``; without metadata."""
        return {track: item for track, item in self._headers.items() if not track.startswith(_VIDEO_METADATA)}

    def set_metadata(self, payload: bytes | None) -> None:
        """Cache the payload of an onMetaData message; None: forget it."""
        if payload is not None and len(payload) > MAX_HEADER_BYTES:
            self.refused += 1
            return
        if payload != self._metadata:
            self._metadata = payload
            self._rebuild()

    def add_video(self, payload: bytes) -> bool:
        """Cache a video sequence header or metadata packet; return whether it brought a new codec."""
        info = video_info(payload)
        prefix = _VIDEO_METADATA if info.kind == Kind.METADATA else "video"
        self._add(prefix, info.tracks, (VIDEO, payload))
        return info.kind == Kind.HEADER and self.name_codec("video", info.tracks, info.codec)

    def add_audio(self, payload: bytes) -> bool:
        """Cache an audio sequence header or multichannel configuration; return whether it brought a new codec."""
        info = audio_info(payload)
        prefix = "audio" if info.packet_type == 0 else "audio channels"
        self._add(prefix, info.tracks, (AUDIO, payload))
        return info.packet_type == 0 and self.name_codec("audio", info.tracks, info.codec)

    def name_codec(self, prefix: str, tracks: tuple[int, ...], codec: str) -> bool:
        """Store the codec of tracks; return whether that changes one."""
        changed = False
        for track in tracks[:MAX_HEADERS]:
            key = f"{prefix} {track}"
            if self.codecs.get(key) != codec and (key in self.codecs or len(self.codecs) < MAX_HEADERS):
                self.codecs[key] = codec
                changed = True
        return changed

    def _add(self, prefix: str, tracks: tuple[int, ...], item: tuple[int, bytes]) -> None:
        keys = [f"{prefix} {track}" for track in tracks]
        if all(self._headers.get(key) == item for key in keys):
            return
        if len(item[1]) > MAX_HEADER_BYTES or len(self._headers.keys() | set(keys)) > MAX_HEADERS:
            self.refused += 1
            return
        for key in keys:
            # The newest last: a multitrack header of which one track has been replaced must precede that track's new header.
            self._headers.pop(key, None)
            self._headers[key] = item
        self._rebuild()

    def _rebuild(self) -> None:
        items = [] if self._metadata is None else [(DATA, self._metadata)]
        self.current = Headers((*items, *dict.fromkeys(self._headers.values())))
