"""The content of one file of a recording, as fragmented MP4. Pure.

The first frames are held back, since the file begins with its tracks: some codecs show their parameters in frames only, and
audio may begin a little later, or be late. Then each fragment is `pending` when it is complete: what is on the disk can be
played, and a crash costs a fragment. A track that begins later is added in place. What can't be added, such as another size of
the picture, is left out until another file begins, which is at the next keyframe.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rtmpd.media import flv
from rtmpd.media.flv import AUDIO, SCRIPT, VIDEO
from rtmpd.media.fmp4.files import SUFFIX, FragmentIndex, head_patches, head_size, render_head
from rtmpd.media.fmp4.fragmenter import Fragmenter
from rtmpd.media.fmp4.movie import init_segment
from rtmpd.media.fmp4.tracks import Tracks
from rtmpd.media.tags import Kind, audio_info, video_info
from rtmpd.services.recorder.segments import HALF, FlvSegment, Segment, Written

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.live.framing import Headers
    from rtmpd.live.stats import Stats
    from rtmpd.media.fmp4.codecs import Track
    from rtmpd.media.fmp4.fragmenter import Fragment

FRAGMENT_MS = 3000
"""The longest fragment. With keyframes at least as often, each fragment begins with one: FFmpeg's index demands that."""
_KEYFRAME_MS = 1500
"""A fragment ends at a keyframe that is as far from the last one that began a fragment: it lasts for two seconds if keyframes
are a second, or two, apart."""
_AUDIO_FRAGMENT_MS = 1000
"""Without video, fragments are as long as this."""
_LARGEST_FRAGMENT_BYTES = 16 << 20
_MOST_FRAMES = 8192
"""In a fragment, and the number of tags that are held back: tiny ones take much more memory than their bytes say. A fragment
usually has a few hundred."""
_IDLE_FLUSHES = 5
"""Frames are no longer waited for after as many flushes without any. A fragment that then ends between two keyframes leaves the
file without the index at its beginning."""
_LEAD_MS = 3000
"""How much earlier than the first keyframe audio may be. What is earlier is at the beginning: with a track whose clock stands,
each file would be longer than its limit at once."""
_GAP_MS = 3000
"""If there are no frames for longer, the last ones before are not long: they last as long as others."""

_MASK = 0xFFFFFFFF
_KEYFRAME, _HEADER, _OTHER = int(Kind.KEYFRAME), int(Kind.HEADER), int(Kind.OTHER)
_FRAMES = (int(Kind.FRAME), _KEYFRAME)
_NAMES = {VIDEO: "video", AUDIO: "audio"}

_Held = tuple[int, int, int, bytes]
"""Type, kind and timestamp of a tag, and the tag."""


class Mp4Segment(Segment):
    """The content of a fragmented MP4 file.

    Args:
        number, base: See `Segment`. Audio that is earlier than the keyframe at *base* but comes later moves the beginning back.
        metadata: The payload of the publisher's onMetaData; empty: none.
        headers: The sequence headers in force.
        index_entries: The capacity of its index.
        track_names: The names of all tracks of the stream, such as ``video 0``.
    """

    suffix = SUFFIX

    def __init__(
        self,
        number: int,
        base: int,
        metadata: bytes,
        headers: Headers,
        index_entries: int,
        track_names: Iterable[str] = (),
    ) -> None:
        super().__init__(number, base)
        self._data: list[bytes] = []  # not taken yet
        self._beginning = (metadata, headers, index_entries)
        self._held: list[_Held] | None = []
        self._held_bytes = 0
        self._tracks = Tracks()
        self._tracks.set_headers([(SCRIPT, metadata)] if metadata else [])
        self._headers: dict[int, bytes] = {}
        of_tracks = [header for header in headers.items if header[0] != SCRIPT]
        # The first track is in the file, although the header of another one may have come first.
        for type_id, payload in sorted(of_tracks, key=_track_number):
            self._accepts_header(type_id, payload)
        self._leading = AUDIO
        self._in_file: dict[int, Track] = {}
        self._settled: set[int] = set()  # types whose frames say nothing new
        self._excluded: set[int] = set()  # types whose frames are left out
        self._cut_ms = self._key_ms = 0
        self._last_ms = 0
        self._frames = 0  # since the last cut
        self._flushes = 0  # since the last frame
        # Made when the file begins.
        self._fragmenter: Fragmenter
        self._index: FragmentIndex
        self._head_size = self._position = 0
        self._patches: tuple[tuple[int, bytes], ...] = ()
        self._created_s = 0
        self.left_out = _all_but_first(track_names)

    @property
    def size(self) -> int:
        """Return the size in bytes, including all that waits to be written."""
        return self._held_bytes if self._held is not None else self._position + self._fragmenter.held_bytes

    # Tags --------------------------------------------------------------------------------------------------------------

    def header(self, type_id: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add a sequence header or video metadata."""
        if self._held is not None:
            if self._hold(type_id, _HEADER, data, timestamp):
                self._open()
        elif type_id not in self._excluded:
            if not self._accepts_header(type_id, _payload(data)):
                self._exclude(type_id)
            elif self._tracks.of(type_id) != self._in_file.get(type_id):
                self._update(type_id)

    def frame(self, type_id: int, kind: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add a frame."""
        if self._held is None:
            self._place(type_id, kind, timestamp, _payload(data))
            return
        if type_id == VIDEO:
            self._leading = VIDEO
        is_full = self._hold(type_id, kind, data, timestamp)
        time_ms = (timestamp - self.base) & _MASK
        if is_full or (time_ms < HALF and self._ends(type_id, kind, time_ms)):
            self._open()

    def add(self, type_id: int, data: bytes | memoryview, timestamp: int) -> None:
        """Add another tag."""
        if self._held is not None:
            if self._hold(type_id, _OTHER, data, timestamp):
                self._open()
        elif type_id != SCRIPT:
            # Such as a multitrack message that has a keyframe of another track.
            self._place(type_id, _OTHER, timestamp, _payload(data))

    def _hold(self, type_id: int, kind: int, data: bytes | memoryview, timestamp: int) -> bool:
        """Hold a tag back. Return whether no more may be."""
        assert self._held is not None
        if kind in _FRAMES:
            self._flushes = 0
        self._held.append((type_id, kind, timestamp, bytes(data)))
        self._held_bytes += len(data)
        return self._held_bytes >= _LARGEST_FRAGMENT_BYTES or len(self._held) >= _MOST_FRAMES

    def _ends(self, type_id: int, kind: int, time_ms: int) -> bool:
        """Return whether a fragment ends where a frame begins."""
        lasted_ms = time_ms - self._cut_ms
        if type_id != self._leading:
            # Such as audio with a single picture.
            return lasted_ms >= 2 * FRAGMENT_MS
        if type_id == AUDIO:
            return lasted_ms >= _AUDIO_FRAGMENT_MS
        return lasted_ms >= FRAGMENT_MS or (kind == _KEYFRAME and time_ms - self._key_ms >= _KEYFRAME_MS)

    # Tracks ------------------------------------------------------------------------------------------------------------

    def _init(self, tracks: list[Track]) -> bytes:
        return init_segment(tracks, created_s=self._created_s)

    def _accepts_header(self, type_id: int, payload: bytes) -> bool:
        """Take a sequence header or video metadata. Return whether the frames behind it belong to the same track as before."""
        tracks = self._tracks
        info = video_info(payload) if type_id == VIDEO else audio_info(payload)
        is_sequence_header = info.kind is Kind.HEADER and (type_id == VIDEO or info.packet_type == 0)
        known = self._headers.get(type_id)
        if is_sequence_header and known is not None:
            # None: it is of another track.
            return tracks.plain.message(type_id, payload) in (None, known)
        tracks.take(type_id, payload)
        if is_sequence_header and (plain := tracks.plain.message(type_id, payload)):
            self._headers[type_id] = plain
        return True

    def _learn(self, type_id: int, payload: bytes) -> None:
        """Take a frame of a track of which not everything is known."""
        tracks = self._tracks
        if tracks.settled(type_id):
            self._settled.add(type_id)
        elif tracks.take(type_id, payload):
            self._update(type_id)
        if tracks.of(type_id) is None and type_id in tracks.problems:
            # The next file begins with this track, and is refused.
            self._exclude(type_id)

    def _exclude(self, type_id: int) -> None:
        """Leave out frames of a type until another file begins."""
        self._excluded.add(type_id)
        self.outgrown = True

    def _update(self, type_id: int) -> None:
        """Write a track into the head that has been added, or of which more is known now."""
        track, before = self._tracks.of(type_id), self._in_file.get(type_id)
        if track is None or (before is not None and _format(before) != _format(track)):
            self._exclude(type_id)
            return
        made = {**self._in_file, type_id: track}
        patches = head_patches(self._init([made[each] for each in (VIDEO, AUDIO) if each in made]), self._head_size)
        if not patches:
            self._exclude(type_id)
            return
        self._in_file = made
        self._fragmenter.take_tracks()
        self._index.add_track(track.track_id)
        self._patches = tuple(patches)

    # The beginning -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Begin the file with its tracks and the frames that were held; or refuse it."""
        held, tracks = self._held, self._tracks
        assert held is not None
        # The numbers of the tags from which on the frames of a type need another header.
        ends: dict[int, int] = {}
        for number, (type_id, kind, _, tag) in enumerate(held):
            if type_id in ends:
                continue
            if kind == _HEADER:
                if not self._accepts_header(type_id, _payload(tag)):
                    ends[type_id] = number
            elif kind in _FRAMES and not tracks.settled(type_id):
                tracks.take(type_id, _payload(tag))
        types = {type_id for type_id, kind, _, _ in held if kind in _FRAMES}
        problems = [problem for type_id in sorted(types) if (problem := self._problem(type_id, held[: ends.get(type_id)]))]
        if problems:
            self.refused = "; ".join(problems)
            return
        self._held = None
        self.admits_video = VIDEO in types
        if not self.admits_video:
            self._excluded.add(VIDEO)
        for type_id in (VIDEO, AUDIO):
            track = tracks.of(type_id)
            if track is not None and type_id not in self._excluded:
                self._in_file[type_id] = track
        init = self._init(list(self._in_file.values()))
        entries = self._beginning[2]
        self._head_size = self._position = head_size(init, entries)
        self._index = FragmentIndex([(track.track_id, track.timescale) for track in self._in_file.values()], entries)
        self._fragmenter = Fragmenter(tracks)
        head = render_head(init, self._head_size)
        assert head is not None
        self._data.append(head)
        base = self.base
        earliest = min(_difference(stamp, base) for _, kind, stamp, _ in held if kind in _FRAMES)
        self.base = (base + max(earliest, -_LEAD_MS)) & _MASK
        for number, (type_id, kind, timestamp, tag) in enumerate(held):
            if type_id != SCRIPT and kind != _HEADER and number < ends.get(type_id, len(held)):
                self._place(type_id, kind, timestamp, _payload(tag))
        for type_id in ends:
            self._exclude(type_id)

    def _problem(self, type_id: int, held: list[_Held]) -> str:
        """Return why the frames of a type, of which *held* has those for the first header, can't be in an MP4 file.

        Empty if they can.
        """
        track, plain = self._tracks.of(type_id), self._tracks.plain
        if track is None:
            return self._tracks.problems.get(type_id) or f"{_NAMES[type_id]} has no sequence header"
        frames = (plain.frame(each, _payload(tag)) for each, _, _, tag in held if each == type_id)
        if any(frame is not None and frame.codec == track.four_cc for frame in frames):
            return ""
        return f"the frames of {_NAMES[type_id]} are not those of its sequence header"

    def as_flv(self, stats: Stats) -> FlvSegment:
        """Return the same content as FLV."""
        made = FlvSegment(self.number, self.base, stats, *self._beginning)
        made.cut = self.cut
        made.instead_of = self.refused
        for type_id, kind, timestamp, tag in self._held or ():
            if kind == _HEADER:
                made.header(type_id, tag, timestamp)
            elif kind == _OTHER:
                made.add(type_id, tag, timestamp)
            else:
                made.frame(type_id, kind, tag, timestamp)
        return made

    # Fragments ---------------------------------------------------------------------------------------------------------

    def _place(self, type_id: int, kind: int, timestamp: int, payload: bytes) -> None:
        if type_id in self._excluded:
            return
        if type_id not in self._settled:
            self._learn(type_id, payload)
        fragmenter = self._fragmenter
        time_ms = (timestamp - self.base) & _MASK
        if time_ms >= HALF:
            time_ms = 0
        self._flushes = 0
        if time_ms > self._last_ms:
            if time_ms - self._last_ms > _GAP_MS:
                self._emit(fragmenter.finish())
            self._last_ms = time_ms
        fragmenter.add(type_id, time_ms, payload)
        self._frames += 1
        is_full = fragmenter.held_bytes >= _LARGEST_FRAGMENT_BYTES or self._frames >= _MOST_FRAMES
        if is_full or self._ends(type_id, kind, time_ms):
            # A frame whose successor is not known waits: the fragment ends before it.
            self._emit(fragmenter.cut())
            self._frames = 0
            self._cut_ms = time_ms
            if kind == _KEYFRAME:
                self._key_ms = time_ms

    def _emit(self, fragment: Fragment | None) -> None:
        if fragment is not None:
            self._index.add(fragment, self._position)
            self._data.append(fragment.data)
            self._position += len(fragment.data)

    def flush(self, *, at_once: bool) -> None:
        """Make frames pending that wait for the next ones."""
        self._flushes += 1
        if at_once or self._flushes > _IDLE_FLUSHES:
            self.finish()

    def finish(self) -> None:
        """Make all frames pending; more may follow."""
        if self._held:
            self._open()
        if self._held is None:
            self._emit(self._fragmenter.finish())

    # Output ------------------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there are bytes that have not been taken yet."""
        return bool(self._data)

    def take(self) -> bytes:
        """Return and clear the pending bytes: a fragment alone, which may be large, is not copied."""
        data, self._data = b"".join(self._data), []
        return data

    def created(self, now_s: float) -> tuple[tuple[int, bytes], ...]:
        """Write into the head when the first frame was recorded."""
        self._created_s = int(now_s - self._index.end_ms / 1000)
        return tuple(head_patches(self._init(list(self._in_file.values())), self._head_size))

    def take_patches(self) -> tuple[tuple[int, bytes], ...]:
        """Return a head with another track, if there is one."""
        patches, self._patches = self._patches, ()
        return patches

    def mark_written(self) -> None:
        """Record that all bytes taken are on the disk."""
        index = self._index
        self.written = Written(self._position - sum(map(len, self._data)), index.end_ms, index.end_ms, index.frames)

    def patches(self) -> list[tuple[int, bytes]]:
        """Return the head with the duration and an index, and the other index, which is appended."""
        size, duration_ms, _, _ = self.written
        index = self._index
        tracks = [track for track in self._in_file.values() if track.track_id in index.track_ids]
        head = head_patches(self._init(tracks), self._head_size, duration_ms, index.sidx(size, duration_ms))
        return [*head, (size, index.mfra(size))]


def _payload(tag: bytes | memoryview) -> bytes:
    return bytes(tag[flv.TAG_HEADER_SIZE : -4])


def _track_number(header: tuple[int, bytes]) -> int:
    type_id, payload = header
    return min((video_info if type_id == VIDEO else audio_info)(payload).tracks, default=0)


def _difference(timestamp: int, base: int) -> int:
    return ((timestamp - base + HALF) & _MASK) - HALF


def _format(track: Track) -> tuple[bytes, int]:
    return track.four_cc, track.timescale


def _all_but_first(names: Iterable[str]) -> list[str]:
    """Return the names of the tracks that are not the first one of their kind."""
    ordered = sorted((kind, int(number)) for kind, _, number in (name.rpartition(" ") for name in names))
    return [f"{kind} {number}" for kind, group in groupby(ordered, lambda each: each[0]) for _, number in list(group)[1:]]
