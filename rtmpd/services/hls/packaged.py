"""A rendition of a stream as segments: what the pages of HLS serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent.event import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtmpd.media.hls.window import Segment, Window


class Packaged:
    """A rendition of a stream.

    Args:
        name: Its name.
        window: Its segments.

    Attributes:
        name: A component of a path, of lower-case letters and digits: ``main`` is the default video with the default audio, or
            the only one of them; ``video2``, ``audio2`` and so on are further tracks. If there is a choice of audio, ``main``
            is without, and ``audio1`` the default.
        window: Its segments. Media is to be read with `segment_data` and `part_data`, since it may be in a file.
        codecs: The names of its codecs (RFC 6381), video first.
        width, height: The size of the picture, pixels; 0: unknown, or there is no video.
        frame_rate: Frames per second; 0: unknown, or there is no video.
        channels: The channels of audio; 0: unknown, or there is no audio.
        language: The language of audio (RFC 5646); empty: unknown.
        has_video, has_audio: The tracks.
    """

    def __init__(self, name: str, window: Window) -> None:
        self.name = name
        self.window = window
        self.codecs: tuple[str, ...] = ()
        self.width = self.height = 0
        self.frame_rate = 0.0
        self.channels = 0
        self.language = ""
        self.has_video = self.has_audio = False
        self._init_segments: dict[str, bytes] = {}
        self._taken = window.first_number - 1
        self._changed = Event()

    @property
    def has_independent_segments(self) -> bool:
        """Whether each segment of the window begins with a keyframe."""
        return all(segment.is_independent for segment in self.window.listed)

    def init_segment(self, init_id: str) -> bytes | None:
        """Return an initialization segment; None: no media in the window needs it."""
        return self._init_segments.get(init_id)

    def add_init_segment(self, init_id: str, data: bytes) -> None:
        """Add an initialization segment, which the media that follows needs."""
        self._init_segments.pop(init_id, None)
        self._init_segments[init_id] = data

    def prune(self) -> None:
        """Forget initialization segments that no media in the window needs; the newest one is kept."""
        if len(self._init_segments) > 1:
            needed = self.window.init_ids | {next(reversed(self._init_segments))}
            self._init_segments = {init_id: data for init_id, data in self._init_segments.items() if init_id in needed}

    def take_complete(self) -> list[Segment]:
        """Return the segments of the playlist that have been completed since the last call."""
        found: list[Segment] = []
        for segment in reversed(self.window.listed):
            if segment.sequence_number <= self._taken:
                break
            found.append(segment)
        if found:
            self._taken = found[0].sequence_number
        return found[::-1]

    def segment_data(self, number: int) -> Sequence[bytes] | None:
        """Return the pieces of a complete segment; None: it is not, or no longer, available, or it is a gap.

        May wait for a disk.
        """
        segment = self.window.find_segment(number)[1]
        if segment is None or segment.is_gap:
            return None
        if segment.location is None:
            return segment.data
        data = segment.location.read(0, segment.size_bytes)
        return [data] if data is not None else None

    def part_data(self, number: int, index: int) -> bytes | None:
        """Return a part; None: it is not, or no longer, available. May wait for a disk."""
        part = self.window.find_part(number, index)[1]
        if part is None or not part.stored_bytes:
            return part.data if part is not None else None
        segment = self.window.find_segment(number)[1]
        if segment is None or segment.location is None:
            return None
        return segment.location.read(sum(each.stored_bytes for each in segment.parts[:index]), part.stored_bytes)

    def wait(self, timeout_s: float) -> None:
        """Wait until the window changes, or the stream ends. May return early."""
        if not self.window.ended:
            self._changed.wait(timeout_s)

    def notify(self) -> None:
        """Wake all that wait."""
        changed, self._changed = self._changed, Event()
        changed.set()
