"""A rendition: frames go in, and its window is filled with fragments, by the rule of `rtmpd.media.hls.cutting`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rtmpd.media.flv import AUDIO, VIDEO
from rtmpd.media.hls.cutting import Cutter, Frame, When
from rtmpd.media.hls.window import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rtmpd.media.hls.cutting import Cut
    from rtmpd.media.hls.window import Window


class Fragment(Protocol):
    """A fragment of a `Fragmenter`."""

    @property
    def data(self) -> bytes:
        """moof and mdat."""


class Fragmenter(Protocol):
    """Collects samples. The last sample of each track waits for its successor, which says how long it lasts.

    Attributes:
        held_bytes: The size of the samples that were not taken yet, with those that wait.
    """

    held_bytes: int

    def add(self, type_id: int, timestamp: int, payload: bytes | memoryview) -> None:
        """Add a message."""

    def cut(self) -> Fragment | None:
        """Return a fragment of the samples that do not wait; None: there are none."""

    def empty(self) -> Fragment:
        """Return a fragment without samples."""

    def finish(self, *, even: bool = False) -> Fragment | None:
        """Return a fragment of all samples; None: there are none. With *even* the tracks end together, nearly."""


class Rendition:
    """Fills a window.

    A segment that becomes larger than *segment_limit_bytes* ends early, so that two of them and the samples that are
    collected are a bounded amount of memory.

    Args:
        window: The window; its targets are those of the session.
        fragmenter: Makes fragments for the initialization segment *init_id*.
        init_id: The initialization segment.
        has_video: Whether there is video.
        guided: Whether segments end where `guide` says; only without video.
        date_of: Returns the wall clock at a time of the timeline, both in milliseconds; None: it is not known.
        segment_limit_bytes: The size at which a segment ends early.

    Attributes:
        window: Likewise.
    """

    __slots__ = (
        "_cutter",
        "_date_of",
        "_fragmenter",
        "_init_id",
        "_is_discontinuity",
        "_room_bytes",
        "_segment_limit_bytes",
        "window",
    )

    def __init__(
        self,
        window: Window,
        fragmenter: Fragmenter,
        *,
        init_id: str,
        has_video: bool,
        date_of: Callable[[int], int | None],
        guided: bool = False,
        segment_limit_bytes: int = 1 << 62,
    ) -> None:
        self.window = window
        self._fragmenter = fragmenter
        self._init_id = init_id
        self._date_of = date_of
        self._is_discontinuity = False
        self._segment_limit_bytes = segment_limit_bytes
        self._room_bytes = segment_limit_bytes  # the most that the frames may be that are in no part yet
        self._cutter = Cutter(window.targets, has_video=has_video, guided=guided)

    def add(self, type_id: int, timestamp_ms: int, payload: bytes | memoryview, *, is_keyframe: bool) -> bool:
        """Add a frame of audio or video; return whether the window has changed.

        Args:
            type_id: `AUDIO` or `VIDEO`.
            timestamp_ms: Its timestamp, unwrapped.
            payload: The payload of the message. One without a frame must not be added.
            is_keyframe: Whether it is a keyframe of video.
        """
        is_video = type_id == VIDEO
        if not is_keyframe and self._cutter.passes(timestamp_ms, is_video=is_video):
            self._fragmenter.add(type_id, timestamp_ms & 0xFFFFFFFF, payload)
            if self._fragmenter.held_bytes > self._room_bytes:
                self._cutter.end_early()
            return False
        was_started = self._cutter.started
        cuts = self._cutter.add(Frame(is_video, timestamp_ms, is_video and is_keyframe))
        if cuts:
            self._apply([cut for cut in cuts if cut.when is not When.THIS])
        if self._cutter.started:
            if not was_started:
                self._open(self._cutter.segment_start_ms)
            self._fragmenter.add(VIDEO if is_video else AUDIO, timestamp_ms & 0xFFFFFFFF, payload)
        if cuts:
            self._apply([cut for cut in cuts if cut.when is When.THIS])
        segment = self.window.open
        self._room_bytes = self._segment_limit_bytes - (segment.size_bytes if segment is not None else 0)
        if self._fragmenter.held_bytes > self._room_bytes:
            self._cutter.end_early()
        return bool(cuts)

    @property
    def held_bytes(self) -> int:
        """The size of the frames that are in no part yet."""
        return self._fragmenter.held_bytes

    @property
    def expected_ms(self) -> int | None:
        """When the next part is expected to end; None: no segment has begun."""
        return self._cutter.expected_ms if self._cutter.started else None

    @property
    def segment_start_ms(self) -> int:
        """Where the segment begins, on the timeline."""
        return self._cutter.segment_start_ms

    def guide(self, end_ms: int) -> None:
        """Let the segment end at the first frame at or behind a time: where one of another rendition has ended."""
        self._cutter.guide(end_ms)

    @property
    def discontinuity_sequence(self) -> int:
        """The discontinuity sequence number of the segment that is open, or of the next one."""
        window = self.window
        flags = sum(segment.is_discontinuity for segment in window.listed)
        flags += window.open.is_discontinuity if window.open is not None else self._is_discontinuity
        return window.discontinuity_sequence + flags

    def pause(self) -> bool:
        """End the segment, since nothing follows for now, and then a discontinuity. Return whether there was a segment."""
        cuts = self._cutter.finish()
        self._apply(cuts, goes_on=False)
        self._is_discontinuity |= bool(cuts)
        return bool(cuts)

    def restart(self, fragmenter: Fragmenter, *, init_id: str, has_video: bool) -> None:
        """Continue with other headers, or with another source, behind a discontinuity."""
        self._apply(self._cutter.restart(has_video=has_video), goes_on=False)
        self._fragmenter = fragmenter
        self._init_id = init_id
        self._is_discontinuity = True

    def finish(self) -> None:
        """End the stream."""
        self._apply(self._cutter.finish(), goes_on=False)
        self.window.end()

    def _open(self, start_ms: int) -> None:
        self.window.open_segment(self._init_id, date_ms=self._date_of(start_ms), is_discontinuity=self._is_discontinuity)
        self._is_discontinuity = False

    def _apply(self, cuts: Sequence[Cut], *, goes_on: bool = True) -> None:
        window = self.window
        for index, cut in enumerate(cuts, 1):
            fragment = None
            if cut.frames:
                fragment = self._fragmenter.finish(even=True) if cut.when is When.FINISH else self._fragmenter.cut()
            has_media = fragment is not None
            # Not a gap: hls.js loads nothing more behind one of a part.
            data = (fragment or self._fragmenter.empty()).data
            window.add_part(Part(cut.duration_ms, cut.is_independent and has_media, data, has_media=has_media))
            if cut.ends_segment:
                window.close_segment()
                self._is_discontinuity = cut.next_discontinuity
                if goes_on or index < len(cuts):
                    self._open(cut.next_start_ms)
