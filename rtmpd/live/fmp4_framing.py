"""Fragmented MP4: the framing of what browsers play over HTTP. Pure.

Each frame is a fragment of its own, a moof and an mdat box, so that it is sent as soon as it comes. A reader first gets an
initialization segment of the headers in force. When headers change, another one precedes the next frame, in the log: readers
that are there get it, and one that joins just there gets it twice, which browsers allow. They take another size or profile in
it, but neither another codec nor a track more or less: then the log is over, and a page has to begin anew. Data messages,
headers, and frames that MP4 can't carry are not in the log.

How long a frame lasts is not known before the next one comes. It is estimated for video (`VideoTimes`), and exact for audio
whose codec says it.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from rtmpd.live.framing import AUDIO, NO_HEADERS, VIDEO, Headers, KeptMessages, Message, Notice
from rtmpd.media.fmp4.codecs import AUDIO_TRACK, VIDEO_TIMESCALE, VIDEO_TRACK
from rtmpd.media.fmp4.fragments import NOT_SYNC, OVERHEAD_BYTES, SYNC, sample_of, write_sample
from rtmpd.media.fmp4.frames import (
    AAC_BODY,
    AAC_HEADER,
    AVC_BODY,
    AVC_FRAME,
    AVC_KEYFRAME,
    NEGATIVE,
    WRAP,
    frame_ticks,
)
from rtmpd.media.fmp4.movie import init_segment, mime_type, require_tracks
from rtmpd.media.fmp4.times import AudioTimes, Unwrapper, VideoTimes
from rtmpd.media.fmp4.tracks import Tracks
from rtmpd.media.tags import Kind, audio_kind, video_kind

if TYPE_CHECKING:
    from collections.abc import Collection

    from rtmpd.live.pages import Page
    from rtmpd.media.fmp4.codecs import Track

_TICKS_PER_MS = VIDEO_TIMESCALE // 1000
_TYPES = {VIDEO_TRACK: VIDEO, AUDIO_TRACK: AUDIO}
_HEADERS = (int(Kind.HEADER), int(Kind.METADATA))
_MOOF = b"moof"
_MAX_RATES = 8
_LOOK_MESSAGES = 256
"""So many messages from the join point on are looked at for tracks that have no header."""

_MISSING_MS = 1000
"""So long after a change of headers a track may be missing: its header follows, if another publisher has just begun."""

_MASK = 0xFFFFFFFF


class Fmp4Framing:
    """Fragments of one frame each. Every log has a framing of its own, which `for_log` makes: it knows the tracks and times.

    Args:
        newest_ms: The newest time of the stream; None: the first timestamp is taken as it is.

    Attributes:
        over: Another codec has come, or a track more or less: what follows is for another log.
    """

    __slots__ = (
        "_aac",
        "_audio",
        "_audio_times",
        "_avc",
        "_carried",
        "_clock",
        "_headers",
        "_init",
        "_missing_since_ms",
        "_rates",
        "_sequence",
        "_tracks",
        "_video_times",
        "_written",
        "over",
    )

    name = "fmp4"

    def __init__(self, newest_ms: int | None = None) -> None:
        self._tracks = Tracks()
        self._headers = NO_HEADERS
        self._clock = Unwrapper(newest_ms)
        self._video_times = VideoTimes()
        self._audio_times = AudioTimes(1)
        self._audio: Track | None = None
        # Whether video is H.264, and audio AAC, with the legacy header.
        self._avc = self._aac = False
        self._sequence = 0
        # Sample rates of audio, each with the number of the first fragment that may have it.
        self._rates: list[tuple[int, int]] = []
        self._init = b""  # precedes the next fragment
        self._written: list[Track] | None = None  # the tracks that readers know; None: there is no fragment yet
        self._carried: list[Track] = []  # the tracks of the log: those of its headers, and those that are only missing
        self._missing_since_ms: int | None = None  # the time of the first fragment without a track that readers know
        self.over = False

    def for_log(self) -> Fmp4Framing:
        """Return a framing for another log; its times are near those of this one."""
        return Fmp4Framing(self._clock.newest_ms)

    # Tracks ------------------------------------------------------------------------------------------------------------

    def set_headers(self, headers: Headers) -> None:
        """Set the headers in force for the messages that follow."""
        self._headers = headers
        if self._tracks.set_headers(headers.items):
            self._change()

    def replay_headers(self, older: KeptMessages) -> Headers:
        """Return the headers at the end of the other log: a track whose header comes late is announced from the beginning."""
        find_tracks(older, tracks=self._tracks)
        self._change()
        return older.headers

    def init_segment(self, headers: Headers) -> bytes:
        """Return the initialization segment of headers, and of what frames have shown; empty if MP4 carries no track of it."""
        if headers is self._headers:
            tracks = self._carried
        else:
            tracks = _merged(self._written, self._tracks.with_headers(headers.items).tracks)
        return init_segment(tracks) if tracks else b""

    def announce(self) -> str:
        """Return the MIME type of the log, which its readers rely on from now on: other tracks would end it.

        Raises:
            UnsupportedByMp4: MP4 carries no track of the stream. The message says why.
        """
        if not self._carried:
            require_tracks(self._tracks)
        if self._written is None:
            self._written = self._carried
        return mime_type(self._carried)

    def _take(self, type_id: int, payload: bytes) -> bool:
        """Take a message that may change tracks; return whether the next fragment is longer than `size` has said."""
        before = self._init
        if self._tracks.take(type_id, payload):
            self._change()
        return len(self._init) > len(before)

    def _change(self) -> None:
        """Take over changed tracks."""
        tracks, before = self._tracks, self._audio
        self._audio = audio = tracks.audio
        self._avc = tracks.has_legacy_avc
        self._aac = tracks.has_legacy_aac
        if audio is not None and (before is None or before.timescale != audio.timescale):
            self._audio_times = AudioTimes(audio.timescale)
            self._rates = [*self._rates[1 - _MAX_RATES :], (self._sequence + 1, audio.timescale)]
        written = self._written
        carried = self._carried = _merged(written, tracks.tracks)
        self._init = b""
        if written is None:
            return
        if _codecs(carried) != _codecs(written):
            self.over = True
        elif carried != written:
            self._init = init_segment(carried)
        if not tracks.tracks or len(tracks.tracks) == len(carried):
            self._missing_since_ms = None
        else:
            # Ordinary frames go the long way too, until it is known whether the other track follows.
            self._avc = self._aac = False

    # Messages ----------------------------------------------------------------------------------------------------------

    def size(self, timestamp: int, length: int) -> int:
        """Return the number of bytes that a message takes at most."""
        return length + OVERHEAD_BYTES + len(self._init)

    def write(self, page: Page, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a frame as a fragment; return its end, -1 if it does not fit, and the page's end for any other message."""
        return self.write_at(page, page.end, type_id, timestamp, payload)

    def write_at(self, page: Page, start: int, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a frame as a fragment at *start*; return its end, -1 if it does not fit, and *start* for any other message."""
        if len(payload) <= AVC_BODY or self.over:
            return self._write_other(page, start, type_id, timestamp, payload)
        first = payload[0]
        if type_id == VIDEO:
            if self._avc and payload[1] == 1 and first in (AVC_KEYFRAME, AVC_FRAME):
                composition_ms = payload[2] << 16 | payload[3] << 8 | payload[4]
                if composition_ms >= NEGATIVE:
                    composition_ms -= WRAP
                return self._write_video(page, start, timestamp, payload, AVC_BODY, first == AVC_KEYFRAME, composition_ms)
        elif self._aac and payload[1] == 1 and first & 0xF0 == AAC_HEADER and type_id == AUDIO and self._audio is not None:
            return self._write_audio(page, start, timestamp, payload, AAC_BODY, self._audio.frame_ticks)
        return self._write_other(page, start, type_id, timestamp, payload)

    def _write_other(self, page: Page, start: int, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a message that is no ordinary frame of H.264 or AAC."""
        if type_id not in (AUDIO, VIDEO) or self.over:
            return start
        tracks = self._tracks
        if (video_kind if type_id == VIDEO else audio_kind)(payload) in _HEADERS:
            self._take(type_id, payload)
            return start
        if not tracks.settled(type_id) and self._take(type_id, payload):
            return -1
        if len(tracks.tracks) < len(self._carried):
            self._check_missing(timestamp)
        track = tracks.of(type_id)
        frame = tracks.plain.frame(type_id, payload) if track is not None else None
        if track is not None and frame is not None and frame.codec != track.four_cc:
            # The codec has changed without a sequence header: only some of audio have none.
            if self._take(type_id, payload):
                return -1
            track = tracks.of(type_id)
        if track is None or frame is None or frame.codec != track.four_cc or self.over:
            return start
        if type_id == VIDEO:
            return self._write_video(page, start, timestamp, frame.payload, frame.body, frame.key, frame.composition_ms)
        return self._write_audio(page, start, timestamp, frame.payload, frame.body, frame_ticks(frame, track.frame_ticks))

    def _write_video(
        self, page: Page, start: int, timestamp: int, payload: bytes, body: int, key: bool, composition_ms: int
    ) -> int:
        if start + len(payload) + OVERHEAD_BYTES + len(self._init) > page.size:
            return -1
        if self._init or self._written is None:
            start = self._begin(page, start)
        times = self._video_times
        time_ms = self._clock.unwrap(timestamp)
        time = times.place(time_ms)
        composition = (time_ms + composition_ms) * _TICKS_PER_MS - time
        self._sequence = sequence = (self._sequence + 1) & _MASK
        # Twice as long as expected: see VideoTimes.
        duration = times.duration << 1
        flags = SYNC if key else NOT_SYNC
        data = memoryview(payload)[body:]
        return write_sample(page.buffer, start, sequence, VIDEO_TRACK, time, duration, flags, composition, data)

    def _write_audio(self, page: Page, start: int, timestamp: int, payload: bytes, body: int, ticks: int) -> int:
        if start + len(payload) + OVERHEAD_BYTES + len(self._init) > page.size:
            return -1
        if self._init or self._written is None:
            start = self._begin(page, start)
        times = self._audio_times
        time = times.place(self._clock.unwrap(timestamp), ticks)
        self._sequence = sequence = (self._sequence + 1) & _MASK
        data = memoryview(payload)[body:]
        return write_sample(page.buffer, start, sequence, AUDIO_TRACK, time, times.duration, SYNC, 0, data)

    def _check_missing(self, timestamp: int) -> None:
        """End the log if one of its tracks has been missing for too long."""
        time_ms = self._clock.unwrap(timestamp)
        if self._missing_since_ms is None:
            self._missing_since_ms = time_ms
        elif time_ms - self._missing_since_ms >= _MISSING_MS:
            self.over = True

    def _begin(self, page: Page, start: int) -> int:
        """Write the initialization segment that precedes a fragment, if there is one; return its end."""
        init, self._init = self._init, b""
        self._written = self._carried
        end = start + len(init)
        page.buffer[start:end] = init
        return end

    # Reading -----------------------------------------------------------------------------------------------------------

    def read(self, page: Page, index: int) -> Message:
        """Read back a frame. Its payload is the sample, without the header that it had as an RTMP message."""
        return self.read_at(page, index, page.starts[index])

    def read_at(self, page: Page, index: int, start: int) -> Message:
        """Read back the frame of message *index*, which begins at *start*; as `read`."""
        end = page.message_end(index)
        at = self._fragment_at(page, start)
        track_id, timestamp = self._sample(page, at)
        payload = page.view[at + OVERHEAD_BYTES : end]
        return Message(_TYPES[track_id], timestamp, payload, page.view[start:end], page.kinds[index], page, end)

    def media_timestamp(self, page: Page, index: int) -> int:
        """Return the timestamp of a frame: to half of a frame, if it is audio."""
        return self.media_timestamp_at(page, page.starts[index])

    def media_timestamp_at(self, page: Page, start: int) -> int:
        """Return the timestamp of the frame at *start*; as `media_timestamp`."""
        return self._sample(page, self._fragment_at(page, start))[1]

    @staticmethod
    def _fragment_at(page: Page, start: int) -> int:
        """Return the offset of the fragment of a message, which an initialization segment may precede."""
        while page.buffer[start + 4 : start + 8] != _MOOF:
            start += int.from_bytes(page.buffer[start : start + 4], "big")
        return start

    def _sample(self, page: Page, offset: int) -> tuple[int, int]:
        sequence, track_id, time = sample_of(page.buffer, offset)
        if track_id == VIDEO_TRACK:
            return track_id, time // _TICKS_PER_MS & _MASK
        rate = next((rate for since, rate in reversed(self._rates) if (sequence - since) & _MASK < 1 << 31), 1)
        return track_id, (time * 1000 + rate // 2) // rate & _MASK

    def notices(self, notice: Notice) -> tuple[bytes, ...]:
        """Return nothing: MP4 has no notices."""
        return ()

    def for_subscriber(self) -> Fmp4SubscriberFraming:
        """Return the framing of a viewer of this log."""
        return Fmp4SubscriberFraming(self)


def find_tracks(log: KeptMessages, types: Collection[int] = (AUDIO, VIDEO), tracks: Tracks | None = None) -> Tracks:
    """Return the tracks of what a log of RTMP messages holds: of its headers, and of frames from the join point on.

    Args:
        log: The log.
        types: The types of message that frames are looked for of.
        tracks: Takes what is found; None: new ones.
    """
    found = tracks or Tracks()
    found.set_headers(log.headers.items)
    if not all(found.settled(each) for each in types):
        for message in islice(log.kept(), _LOOK_MESSAGES):
            if message.type_id in types and not found.settled(message.type_id):
                found.take(message.type_id, bytes(message.payload))
                if all(found.settled(each) for each in types):
                    break
    return found


def _codecs(tracks: list[Track]) -> list[tuple[int, str]]:
    """Return what readers rely on: the codec of each track, without its profile."""
    return [(track.track_id, track.codec.partition(".")[0]) for track in tracks]


def _merged(written: list[Track] | None, tracks: list[Track]) -> list[Track]:
    """Return tracks, and those that readers know beside them."""
    if not written:
        return tracks
    present = {track.track_id for track in tracks}
    return sorted((*tracks, *(each for each in written if each.track_id not in present)), key=lambda each: each.track_id)


class Fmp4SubscriberFraming:
    """The fragments of one viewer: the log's own, behind an initialization segment.

    Args:
        framing: That of the log.
    """

    __slots__ = ("_framing", "_last")

    shared = True
    sends_early = False

    def __init__(self, framing: Fmp4Framing) -> None:
        self._framing = framing
        self._last = b""

    def headers(self, headers: Headers, timestamp: int) -> bytes:
        """Return headers as an initialization segment; nothing if the viewer was last sent the same one here."""
        init = self._framing.init_segment(headers)
        if init == self._last:
            return b""
        self._last = init
        return init

    def pieces(self, headers: Headers, timestamp: int) -> list[bytes]:
        """Return what `headers` does, if it is something."""
        init = self.headers(headers, timestamp)
        return [init] if init else []

    def message(self, message: Message) -> bytes:
        """Return a frame as a fragment."""
        return bytes(message.data)

    def notice(self, notice: Notice) -> bytes:
        """Return nothing: MP4 has no notices."""
        return b""


FMP4: Final = Fmp4Framing()
"""Names the format; `Fmp4Framing.for_log` makes the framing of a log."""
