"""What HLS answers with: playlists, made once for all that ask for the same, and media."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from rtmpd.http.messages import PLAYLIST, Response
from rtmpd.media.hls.playlist import (
    AudioRendition,
    Report,
    Variant,
    media_playlist,
    multivariant_playlist,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rtmpd.http.messages import Request
    from rtmpd.media.hls.window import Directives, Window
    from rtmpd.services.hls.packaged import Packaged
    from rtmpd.util.stream_key import StreamKey

MEDIA_AGE_S = 3600
"""How long caches may keep media. A URL never stands for anything else."""

_GZIP_LEAST_BYTES = 1024
_GZIP_LEVEL = 3
_CONDITIONS = ("if-none-match", "range", "if-range")
_CACHED = 8
"""The playlists of a rendition that are kept: with and without skipped segments, as text and compressed."""


# Multivariant playlists ---------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A stream in a multivariant playlist.

    Attributes:
        prefix: What the URIs of its renditions begin with: empty, or ``../NAME/``.
        renditions: Its renditions.
    """

    prefix: str
    renditions: Sequence[Packaged]


def prefix_of(asked: StreamKey, found: StreamKey) -> str:
    """Return what the URIs of the renditions of a stream begin with, in a playlist at ``/ASKED/index.m3u8``."""
    if asked == found:
        return ""
    if asked.app == found.app:
        return f"../{quote(found.name)}/"
    return "../" * (asked.count("/") + 1) + quote(found) + "/"


def index_playlist(members: Iterable[Member], query: str) -> str:
    """Return a multivariant playlist.

    Args:
        members: The streams, the one to start with first.
        query: What the URIs of media playlists end with.
    """
    variants: list[Variant] = []
    audio: list[AudioRendition] = []
    independent = True
    for member in members:
        found, group = _variants_of(member, query, f"audio{len(variants) + 1}")
        variants += found
        audio += group
        independent &= all(each.has_independent_segments for each in member.renditions)
    return multivariant_playlist(variants, audio, has_independent_segments=independent)


def _variants_of(member: Member, query: str, group: str) -> tuple[list[Variant], list[AudioRendition]]:
    """Return the variants of a stream, and its group of audio renditions, which is empty if there is no choice."""
    main, *others = member.renditions
    videos = [each for each in member.renditions if each.has_video] or [main]
    sounds = [each for each in others if each.has_audio and not each.has_video]
    renditions: list[AudioRendition] = []
    if sounds:
        if main.has_audio:
            # Its audio is in the segments of the variant.
            renditions.append(AudioRendition(group, _name_of(main, 1), "", main.language, main.channels, is_default=True))
        for number, sound in enumerate(sounds, len(renditions) + 1):
            uri, first = f"{member.prefix}{sound.name}/media.m3u8{query}", not renditions
            found = AudioRendition(group, _name_of(sound, number), uri, sound.language, sound.channels, is_default=first)
            renditions.append(found)
    more, more_average = max((_rates_of(each.window) for each in sounds), default=(0, 0))
    codecs = [codec for sound in sounds for codec in sound.codecs]
    variants = []
    for video in videos:
        highest, average = _rates_of(video.window)
        variant = Variant(
            uri=f"{member.prefix}{video.name}/media.m3u8{query}",
            bandwidth=highest + more,
            average_bandwidth=average + more_average,
            codecs=list(dict.fromkeys([*video.codecs, *codecs])),
            width=video.width,
            height=video.height,
            frame_rate=video.frame_rate,
            audio_group=group if renditions else "",
        )
        variants.append(variant)
    return variants, renditions


def _name_of(rendition: Packaged, number: int) -> str:
    """Return the name of an audio rendition, for viewers; unique in its group."""
    return f"{rendition.language} {number}" if rendition.language else f"Audio {number}"


def _rates_of(window: Window) -> tuple[int, int]:
    """Return the highest and the average bit rate of a window; before the first segment is complete, those of its parts."""
    rates = window.bit_rates
    if not rates[0] and window.open is not None and window.open.duration_ms:
        rate = window.open.size_bytes * 8000 // window.open.duration_ms
        return rate, rate
    return rates


# Media playlists ----------------------------------------------------------------------------------------------------------


class _State(NamedTuple):
    """What the text of a playlist depends on."""

    last_part: tuple[int, int] | None
    first_number: int
    last_number: int
    discontinuities: int
    ended: bool
    reports: tuple[Report, ...]


class Playlists:
    """The media playlists of one rendition, made once for each change.

    Args:
        rendition: The rendition.
    """

    def __init__(self, rendition: Packaged) -> None:
        self._rendition = rendition
        self._state: _State | None = None
        self._made: dict[tuple[bool, str, bool], bytes] = {}

    def respond(self, request: Request, directives: Directives, reports: Sequence[Report], query: str) -> Response:
        """Return the playlist as it is now.

        Args:
            request: The request.
            directives: Its directives.
            reports: How far the other renditions are.
            query: What the URIs of media end with.
        """
        window = self._rendition.window
        state = _State(
            window.last_part,
            window.first_number,
            window.last_number,
            window.discontinuity_sequence,
            window.ended,
            tuple(reports),
        )
        if state != self._state:
            self._state, self._made = state, {}
        text = self._make(directives.skip, query, reports)
        headers = [("Cache-Control", _caching(window, directives, private=bool(query)))]
        if len(text) < _GZIP_LEAST_BYTES:
            return Response(body=text, content_type=PLAYLIST, headers=headers)
        headers.append(("Vary", "Accept-Encoding"))
        if request.accepts_gzip:
            headers.append(("Content-Encoding", "gzip"))
            text = self._compress(directives.skip, query, text)
        return Response(body=text, content_type=PLAYLIST, headers=headers)

    def _make(self, skip: bool, query: str, reports: Sequence[Report]) -> bytes:
        text = self._made.get((skip, query, False))
        if text is None:
            made = media_playlist(self._rendition.window, uri=lambda name: name + query, skip=skip, reports=reports)
            text = made.encode()
            self._keep((skip, query, False), text)
        return text

    def _compress(self, skip: bool, query: str, text: bytes) -> bytes:
        found = self._made.get((skip, query, True))
        if found is None:
            found = gzip.compress(text, _GZIP_LEVEL, mtime=0)
            self._keep((skip, query, True), found)
        return found

    def _keep(self, name: tuple[bool, str, bool], data: bytes) -> None:
        self._made[name] = data
        if len(self._made) > _CACHED:
            del self._made[next(iter(self._made))]


def _caching(window: Window, directives: Directives, *, private: bool) -> str:
    """Return how long a cache may keep a playlist.

    What a blocking request gets is right for every client that asks for the same, so it may be kept for long. Other answers
    are out of date with the next part, and are kept for half a target duration.
    """
    if private:
        return "no-store"
    target_s = window.targets.target_s
    blocking = directives.sequence_number is not None and not window.ended
    return f"max-age={6 * target_s if blocking else max(1, target_s // 2)}"


def report_of(rendition: Packaged, uri: str) -> Report | None:
    """Return how far a rendition is; None: it has nothing yet."""
    last = rendition.window.last_part
    if last is None:
        return None
    return Report(uri, last[0], last[1] if rendition.window.targets.part_ms else None)


# Media --------------------------------------------------------------------------------------------------------------------


def media_response(request: Request, rendition: Packaged, pieces: Sequence[bytes], tag: str, *, private: bool) -> Response:
    """Return a segment, a part or an initialization segment, or the range of it that the client asks for.

    Args:
        request: The request.
        rendition: The rendition.
        pieces: The media.
        tag: Its name.
        private: Caches that several clients share must not keep it.
    """
    content_type = "video/mp4" if rendition.has_video else "audio/mp4"
    scope = "private" if private else "public"
    headers = [("Cache-Control", f"{scope}, max-age={MEDIA_AGE_S}, immutable")]
    tag = f"{tag}-{sum(map(len, pieces))}"
    if request.headers.keys().isdisjoint(_CONDITIONS):
        # Most requests: the same as below, with fewer steps.
        headers += (("ETag", f'"{tag}"'), ("Accept-Ranges", "bytes"))
        return Response(content_type=content_type, headers=headers, pieces=pieces)
    return Response(content_type=content_type, headers=headers, pieces=pieces).tagged(request, tag).ranged(request)
