"""One rendition while it is made: it gets the messages of the stream, and makes segments of those of its tracks."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.live.framing import AUDIO, DATA, VIDEO
from rtmpd.media.fmp4.fragmenter import Fragmenter
from rtmpd.media.fmp4.frames import AAC_BODY, AAC_HEADER, AVC_BODY, AVC_FRAME, AVC_KEYFRAME
from rtmpd.media.fmp4.movie import init_segment
from rtmpd.media.fmp4.tracks import Tracks
from rtmpd.media.hls.assembly import Rendition
from rtmpd.media.hls.window import Limits, Window
from rtmpd.media.rewrite import Rewrite
from rtmpd.media.tags import Kind, audio_info, video_info
from rtmpd.services.hls.packaged import Packaged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.media.fmp4.codecs import Track
    from rtmpd.media.hls.targets import Targets

MOST_TRACKS = 8
"""The most tracks of a kind that are packaged."""

MAIN, FIRST_AUDIO = "main", "audio1"

_HEADER = int(Kind.HEADER)
_ID_DIGITS = 16
_CHANNELS_AT = 24  # in a sample entry of audio (ISO/IEC 14496-12 section 12.2.3)


class TrackIds(NamedTuple):
    """The ids of the tracks of a stream, the default one first.

    Attributes:
        video, audio: By kind.
    """

    video: tuple[int, ...] = ()
    audio: tuple[int, ...] = ()

    @classmethod
    def of(cls, items: Iterable[tuple[int, bytes]]) -> TrackIds:
        """Return the tracks of headers, ``(type_id, payload)``; at most `MOST_TRACKS` of a kind."""
        video: set[int] = set()
        audio: set[int] = set()
        for type_id, payload in items:
            if type_id == VIDEO:
                info = video_info(payload)
                if info.kind is Kind.HEADER:
                    video.update(info.tracks)
            elif type_id == AUDIO:
                info = audio_info(payload)
                if info.kind is Kind.HEADER and info.packet_type == 0:
                    audio.update(info.tracks)
        return cls(tuple(sorted(video)[:MOST_TRACKS]), tuple(sorted(audio)[:MOST_TRACKS]))


class Selection(NamedTuple):
    """The tracks of a rendition.

    Attributes:
        name: The name of the rendition.
        video: The id of its video track; None: the default one. -1: it has none.
        audio: Likewise.
    """

    name: str
    video: int | None = None
    audio: int | None = None


NO_TRACK = -1


def selections(ids: TrackIds, *, is_muxed: bool) -> list[Selection]:
    """Return the renditions of a stream: the default video, each further video, and audio.

    Args:
        ids: Its tracks.
        is_muxed: Whether the default audio goes with each video. Clients can't choose other audio then: they play what is in
            the segments. Otherwise it is a rendition too.
    """
    beside = None if is_muxed else NO_TRACK
    found = [Selection(MAIN, audio=beside)]
    found += [Selection(f"video{number}", track, beside) for number, track in enumerate(ids.video[1:], 2)]
    if not is_muxed:
        found.append(Selection(FIRST_AUDIO, NO_TRACK))
    found += [Selection(f"audio{number}", NO_TRACK, track) for number, track in enumerate(ids.audio[1:], 2)]
    return found


def _rewrite_of(selection: Selection) -> Rewrite | None:
    """Return what makes messages of single tracks of those of several; None: there is no need."""
    if selection.video not in (None, NO_TRACK):
        return Rewrite(default_track=True, video_track=selection.video)
    if selection.audio not in (None, NO_TRACK):
        return Rewrite(default_track=True, audio_track=selection.audio)
    return None


class Feed:
    """Makes one rendition.

    Args:
        selection: Its tracks.
        items: The headers in force, ``(type_id, payload)``.

    Attributes:
        selection: Likewise.
        tracks: What is known of its tracks.
        packaged: The rendition; None: it has not begun.
        stale: The tracks are not those that segments are made of.
        anchor_ms: The wall clock at the time 0 of the timeline, milliseconds.
    """

    def __init__(self, selection: Selection, items: Iterable[tuple[int, bytes]] = ()) -> None:
        self.selection = selection
        self.tracks = Tracks()
        self.packaged: Packaged | None = None
        self.stale = False
        self.anchor_ms = 0
        self._used: list[Track] = []
        self._used_ids = (0, 0)  # of the tracks in the stream
        self._rendition: Rendition | None = None
        self._rewrite = _rewrite_of(selection)
        self._takes_all = selection.video is None and selection.audio is None
        self._avc = self._aac = False
        self.set_headers(items)

    # Tracks --------------------------------------------------------------------------------------------------------------

    def _select(self, type_id: int, payload: bytes) -> bytes | None:
        """Return a message of its tracks, as one of a single track; None: it is of another one."""
        selection, rewrite = self.selection, self._rewrite
        if type_id not in (AUDIO, VIDEO):
            return payload if selection.name in (MAIN, FIRST_AUDIO) else None
        track = selection.video if type_id == VIDEO else selection.audio
        if track is None:
            return payload
        if track == NO_TRACK or rewrite is None:
            return None
        return rewrite.video(payload) if type_id == VIDEO else rewrite.audio(payload)

    def set_headers(self, items: Iterable[tuple[int, bytes]]) -> None:
        """Set all headers in force."""
        own = ((type_id, self._select(type_id, payload)) for type_id, payload in items)
        self.tracks.set_headers([(type_id, payload) for type_id, payload in own if payload is not None])
        self._check()

    def take_header(self, type_id: int, payload: bytes) -> None:
        """Take a header, metadata, or a frame that may say more about its track."""
        own = self._select(type_id, payload)
        if own is not None:
            self.tracks.take(type_id, own)
            # The ids of tracks may have changed, though the tracks have not.
            self._check()

    def _check(self) -> None:
        self.stale = self.video_is_stale or self.audio_is_stale
        self._avc, self._aac = self.tracks.has_legacy_avc, self.tracks.has_legacy_aac

    @property
    def video_is_stale(self) -> bool:
        """Whether the video track is another one than that of the segments."""
        tracks = self.tracks
        used = next((track for track in self._used if track.width), None)
        return used != tracks.video or (used is not None and self._used_ids[0] != (tracks.plain.video_track or 0))

    @property
    def audio_is_stale(self) -> bool:
        """Whether the audio track is another one than that of the segments."""
        tracks = self.tracks
        used = next((track for track in self._used if not track.width), None)
        return used != tracks.audio or (used is not None and self._used_ids[1] != (tracks.plain.audio_track or 0))

    @property
    def is_audio_alone(self) -> bool:
        """Whether it is audio that clients play with the video of another rendition."""
        return self.selection.video == NO_TRACK

    @property
    def segment_start_ms(self) -> int:
        """Where the segment that is open begins, on the timeline."""
        return self._rendition.segment_start_ms if self._rendition is not None else 0

    def guide(self, end_ms: int) -> None:
        """Let the segment end where one of the default rendition has ended."""
        if self._rendition is not None:
            self._rendition.guide(end_ms)

    # Segments ------------------------------------------------------------------------------------------------------------

    def begin(self, targets: Targets, limits: Limits, first_number: int, first_discontinuity: int = 0) -> Packaged:
        """Begin to make segments. There must be tracks.

        Args:
            targets: The durations of the session.
            limits: The size of the window; its bytes are the size of a segment at which it ends early.
            first_number: The media sequence number of the first segment.
            first_discontinuity: Likewise.
        """
        window = Window(
            targets,
            limits._replace(bytes=1 << 62),
            first_number=first_number,
            first_discontinuity=first_discontinuity,
        )
        self.packaged = packaged = Packaged(self.selection.name, window)
        init_id = self._take_tracks(packaged)
        self._rendition = Rendition(
            window,
            Fragmenter(self.tracks.copy()),
            init_id=init_id,
            has_video=self.tracks.video is not None,
            date_of=self._date_of,
            guided=self.is_audio_alone,
            segment_limit_bytes=limits.bytes,
        )
        return packaged

    def restart(self) -> None:
        """Continue behind a discontinuity, with the tracks that there are now; there must be some."""
        assert self._rendition is not None
        assert self.packaged is not None
        init_id = self._take_tracks(self.packaged)
        self._rendition.restart(Fragmenter(self.tracks.copy()), init_id=init_id, has_video=self.tracks.video is not None)

    def _take_tracks(self, packaged: Packaged) -> str:
        """Make the initialization segment of the tracks, which hold from now on; return its id, which follows from it."""
        self._used = used = self.tracks.tracks
        self._used_ids = (self.tracks.plain.video_track or 0, self.tracks.plain.audio_track or 0)
        self.stale = False
        data = init_segment(used)
        init_id = hashlib.sha256(data).hexdigest()[:_ID_DIGITS]
        video, audio = self.tracks.video, self.tracks.audio
        packaged.add_init_segment(init_id, data)
        packaged.codecs = tuple(track.codec for track in used)
        packaged.has_video, packaged.has_audio = video is not None, audio is not None
        packaged.width, packaged.height = (video.width, video.height) if video is not None else (0, 0)
        packaged.channels = int.from_bytes(audio.entry[_CHANNELS_AT : _CHANNELS_AT + 2], "big") if audio is not None else 0
        return init_id

    def _date_of(self, time_ms: int) -> int:
        """Return the wall clock at a time of the timeline: never before the end of the segment before."""
        assert self.packaged is not None
        listed = self.packaged.window.listed
        date_ms = self.anchor_ms + time_ms
        if listed and listed[-1].date_ms is not None:
            end_ms = listed[-1].date_ms + listed[-1].duration_ms
            if date_ms < end_ms:
                self.anchor_ms += end_ms - date_ms
                return end_ms
        return date_ms

    @property
    def has_video(self) -> bool:
        """Whether the segments that are made now have video."""
        return any(track.width for track in self._used)

    @property
    def expected_ms(self) -> int | None:
        """When the next part is expected to end, on the timeline; None: no segment has begun."""
        return self._rendition.expected_ms if self._rendition is not None else None

    @property
    def discontinuity_sequence(self) -> int:
        """The discontinuity sequence number of the segment that is open, or of the next one."""
        return self._rendition.discontinuity_sequence if self._rendition is not None else 0

    @property
    def held_bytes(self) -> int:
        """The size of the frames that are in no part yet."""
        return self._rendition.held_bytes if self._rendition is not None else 0

    def add(self, type_id: int, time_ms: int, payload: bytes | memoryview) -> bool:
        """Add a frame of any track; return whether the window has changed.

        Args:
            type_id: `AUDIO` or `VIDEO`.
            time_ms: Its timestamp, unwrapped.
            payload: The message.
        """
        if not self._takes_all:
            selected = self._select(type_id, bytes(payload))
            if selected is None:
                return False
            payload = selected
        rendition = self._rendition
        if rendition is None or not self._used:
            return False
        if type_id == VIDEO:
            first = payload[0] if len(payload) > AVC_BODY else 0
            if self._avc and first in (AVC_KEYFRAME, AVC_FRAME) and payload[1] == 1:
                return rendition.add(VIDEO, time_ms, payload, is_keyframe=first == AVC_KEYFRAME)
        elif self._aac and len(payload) > AAC_BODY and payload[0] & 0xF0 == AAC_HEADER and payload[1] == 1:
            if self.stale and self.audio_is_stale:
                return False
            return rendition.add(AUDIO, time_ms, payload, is_keyframe=False)
        return self._add_other(rendition, type_id, time_ms, bytes(payload))

    def _add_other(self, rendition: Rendition, type_id: int, time_ms: int, payload: bytes) -> bool:
        """Add a frame that is no ordinary one of H.264 or AAC."""
        tracks = self.tracks
        if not tracks.settled(type_id) and tracks.take(type_id, payload):
            self._check()
        track = tracks.of(type_id)
        frame = tracks.plain.frame(type_id, payload) if track is not None else None
        if track is not None and frame is not None and frame.codec != track.four_cc:
            # The codec has changed without a sequence header: only some of audio have none.
            if tracks.take(type_id, payload):
                self._check()
            track = tracks.of(type_id)
        if track is None or frame is None or frame.codec != track.four_cc:
            return False
        if self.stale and (self.video_is_stale if type_id == VIDEO else self.audio_is_stale):
            return False
        return rendition.add(type_id, time_ms, payload, is_keyframe=frame.key and type_id == VIDEO)

    def pause(self) -> bool:
        """Let the segment end, since no frames come for now; return whether the window has changed."""
        return self._rendition.pause() if self._rendition is not None else False

    def finish(self) -> None:
        """End the rendition."""
        # A reference cycle would keep the last segment until the garbage collector runs, which is seldom.
        rendition, self._rendition = self._rendition, None
        if rendition is not None and self.packaged is not None and not self.packaged.window.ended:
            rendition.finish()
            self.packaged.notify()


def is_header(type_id: int, kind: int) -> bool:
    """Return whether a message says what frames that follow are encoded with."""
    return kind in (_HEADER, int(Kind.METADATA)) and type_id in (AUDIO, VIDEO, DATA)


def is_keyframe(type_id: int, payload: bytes | memoryview) -> bool:
    """Return whether a message has a keyframe of video."""
    return type_id == VIDEO and bool(payload) and payload[0] >> 4 & 7 == 1
