"""Playlists as text: media playlists of a window, whole or as delta updates, and multivariant playlists (sections 4 and 6.2).

URIs are relative. A function makes them of file names, so that a server can add what identifies a session or a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rtmpd.media.hls.window import Part, Segment, Window

VERSION: Final = 9
"""EXT-X-SKIP needs 9 (section 8)."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def segment_name(number: int) -> str:
    """Return the name of a segment."""
    return f"seg-{number}.m4s"


def part_name(number: int, index: int) -> str:
    """Return the name of a part."""
    return f"part-{number}-{index}.m4s"


def init_name(init_id: str) -> str:
    """Return the name of an initialization segment."""
    return f"init-{init_id}.mp4"


class Resource(NamedTuple):
    """What a name stands for.

    Attributes:
        number: The media sequence number; of no meaning for an initialization segment.
        part: The index of the part; None: it is no part.
        init_id: The id of an initialization segment; empty: it is none.
    """

    number: int
    part: int | None
    init_id: str


def parse_name(name: str) -> Resource | None:
    """Return what a name stands for; None: such names are not made. The name may come from a client."""
    kind, _, rest = name.partition("-")
    stem, _, suffix = rest.rpartition(".")
    if kind == "init" and suffix == "mp4" and 0 < len(stem) <= _LONGEST_ID and stem.isascii() and stem.isalnum():
        return Resource(0, None, stem)
    numbers = stem.split("-", 2)
    if suffix != "m4s" or kind not in _PIECES or len(numbers) != _PIECES[kind]:
        return None
    # Only one spelling of a number is accepted, so that a cache holds each resource once.
    if not all(len(each) < _LONGEST_NUMBER and each.isascii() and each.isdigit() for each in numbers):
        return None
    if any(each != str(int(each)) for each in numbers):
        return None
    return Resource(int(numbers[0]), int(numbers[1]) if kind == "part" else None, "")


_LONGEST_ID = 64
_LONGEST_NUMBER = 19
_PIECES = {"seg": 1, "part": 2}


@dataclass(frozen=True, slots=True)
class Report:
    """How far another rendition is.

    Attributes:
        uri: The relative URI of its playlist.
        last_number: The number of its last segment, or of the one that its last part belongs to.
        last_part: The index of its last part; None: it has no parts.
    """

    uri: str
    last_number: int
    last_part: int | None = None


def _seconds(duration_ms: int) -> str:
    return f"{duration_ms // 1000}.{duration_ms % 1000:03}"


def _date(date_ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=date_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def media_playlist(
    window: Window,
    *,
    uri: Callable[[str], str] = str,
    skip: bool = False,
    reports: Iterable[Report] = (),
) -> str:
    """Return the media playlist of a window.

    Args:
        window: The window.
        uri: Makes the URI of a file name.
        skip: Whether the client asks for a delta update. Segments that end more than 6 target durations before the end of the
            last one are replaced by EXT-X-SKIP then, with their tags. The whole playlist is returned if there are none.
        reports: The other renditions.
    """
    targets = window.targets
    lines = ["#EXTM3U", f"#EXT-X-VERSION:{VERSION}", f"#EXT-X-TARGETDURATION:{targets.target_s}"]
    control = [
        "CAN-BLOCK-RELOAD=YES",
        f"CAN-SKIP-UNTIL={6 * targets.target_s}.000",
        f"HOLD-BACK={3 * targets.target_s}.000",
    ]
    if targets.part_ms:
        control.append(f"PART-HOLD-BACK={_seconds(3 * targets.part_ms)}")
    lines.append(f"#EXT-X-SERVER-CONTROL:{','.join(control)}")
    if targets.part_ms:
        lines.append(f"#EXT-X-PART-INF:PART-TARGET={_seconds(targets.part_ms)}")
    lines.append(f"#EXT-X-MEDIA-SEQUENCE:{window.first_number}")
    lines.append(f"#EXT-X-DISCONTINUITY-SEQUENCE:{window.discontinuity_sequence}")
    segments = list(window.listed)
    distances_ms = _distances_ms(segments)
    skipped = 0
    if skip and not window.ended:
        boundary_ms = 6 * targets.target_s * 1000
        ends_ms = (distance - segment.duration_ms for segment, distance in zip(segments, distances_ms, strict=True))
        skipped = sum(end_ms > boundary_ms for end_ms in ends_ms)
        if skipped:
            lines.append(f"#EXT-X-SKIP:SKIPPED-SEGMENTS={skipped}")
    open_segment = window.open
    open_ms = open_segment.duration_ms if open_segment is not None else 0
    init_id = segments[skipped - 1].init_id if skipped else None
    for segment, distance_ms in zip(segments[skipped:], distances_ms[skipped:], strict=True):
        lines += _segment_tags(segment, init_id, uri)
        if targets.part_ms and distance_ms + open_ms <= 3 * targets.target_s * 1000:
            lines += _part_tags(segment.sequence_number, segment.parts, uri)
        if segment.is_gap:
            lines.append("#EXT-X-GAP")
        lines += (f"#EXTINF:{_seconds(segment.duration_ms)},", uri(segment_name(segment.sequence_number)))
        init_id = segment.init_id
    if targets.part_ms and not window.ended:
        if open_segment is not None and open_segment.parts:
            lines += _segment_tags(open_segment, init_id, uri)
            lines += _part_tags(open_segment.sequence_number, open_segment.parts, uri)
        lines.append(f'#EXT-X-PRELOAD-HINT:TYPE=PART,URI="{uri(part_name(*window.next_part))}"')
    for report in reports:
        last = "" if report.last_part is None else f",LAST-PART={report.last_part}"
        lines.append(f'#EXT-X-RENDITION-REPORT:URI="{report.uri}",LAST-MSN={report.last_number}{last}')
    if window.ended:
        lines.append("#EXT-X-ENDLIST")
    lines.append("")
    return "\n".join(lines)


def _distances_ms(segments: Sequence[Segment]) -> list[int]:
    """Return how far the start of each segment is from the end of the last one."""
    distances, distance_ms = [], 0
    for segment in reversed(segments):
        distance_ms += segment.duration_ms
        distances.append(distance_ms)
    return distances[::-1]


def _segment_tags(segment: Segment, init_id: str | None, uri: Callable[[str], str]) -> list[str]:
    """Return the tags that come before the parts of a segment."""
    lines = []
    if segment.is_discontinuity:
        lines.append("#EXT-X-DISCONTINUITY")
    if segment.init_id != init_id:
        lines.append(f'#EXT-X-MAP:URI="{uri(init_name(segment.init_id))}"')
    if segment.date_ms is not None:
        lines.append(f"#EXT-X-PROGRAM-DATE-TIME:{_date(segment.date_ms)}")
    return lines


def _part_tags(number: int, parts: Sequence[Part], uri: Callable[[str], str]) -> list[str]:
    lines = []
    for index, part in enumerate(parts):
        independent = ",INDEPENDENT=YES" if part.is_independent else ""
        name = uri(part_name(number, index))
        lines.append(f'#EXT-X-PART:DURATION={_seconds(part.duration_ms)},URI="{name}"{independent}')
    return lines


# Multivariant playlists ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant: a media playlist, and the audio group that goes with it.

    Attributes:
        uri: The relative URI of its media playlist.
        bandwidth, average_bandwidth: Of the segments with the highest bit rate, and of all, with their audio, bits per second.
        codecs: The names of the codecs (RFC 6381), with those of the audio group.
        width, height: The size of the picture, pixels; 0: unknown, or there is no video.
        frame_rate: Frames per second; 0: unknown.
        audio_group: The group of audio renditions; empty: there is none.
    """

    uri: str
    bandwidth: int
    average_bandwidth: int
    codecs: Sequence[str]
    width: int = 0
    height: int = 0
    frame_rate: float = 0.0
    audio_group: str = ""


@dataclass(frozen=True, slots=True)
class AudioRendition:
    """An audio rendition.

    Attributes:
        group: Its group.
        name: For the viewer; unique in the group.
        uri: The relative URI of its media playlist; empty: the audio is in the segments of the variant.
        language: RFC 5646; empty: unknown.
        channels: The number of channels; 0: unknown.
        is_default: Whether it is played unless the viewer chooses another one; at most one of a group.
    """

    group: str
    name: str
    uri: str = ""
    language: str = ""
    channels: int = 0
    is_default: bool = False


def multivariant_playlist(
    variants: Iterable[Variant], audio: Iterable[AudioRendition] = (), *, has_independent_segments: bool = True
) -> str:
    """Return a multivariant playlist.

    Args:
        variants: The variants, the one to start with first.
        audio: The audio renditions.
        has_independent_segments: Whether every segment begins with a keyframe, which is not so if groups of pictures last
            longer than the target duration.
    """
    lines = ["#EXTM3U", f"#EXT-X-VERSION:{VERSION}"]
    if has_independent_segments:
        lines.append("#EXT-X-INDEPENDENT-SEGMENTS")
    for rendition in audio:
        selected = "YES" if rendition.is_default else "NO"
        fields = [
            "TYPE=AUDIO",
            f"GROUP-ID={_quoted(rendition.group)}",
            f"NAME={_quoted(rendition.name)}",
            f"DEFAULT={selected}",
            "AUTOSELECT=YES",
        ]
        if rendition.language:
            fields.append(f"LANGUAGE={_quoted(rendition.language)}")
        if rendition.channels:
            fields.append(f'CHANNELS="{rendition.channels}"')
        if rendition.uri:
            fields.append(f"URI={_quoted(rendition.uri)}")
        lines.append(f"#EXT-X-MEDIA:{','.join(fields)}")
    for variant in variants:
        fields = [f"BANDWIDTH={max(variant.bandwidth, variant.average_bandwidth)}"]
        fields.append(f"AVERAGE-BANDWIDTH={variant.average_bandwidth}")
        fields.append(f"CODECS={_quoted(','.join(variant.codecs))}")
        if variant.width and variant.height:
            fields.append(f"RESOLUTION={variant.width}x{variant.height}")
        if variant.frame_rate:
            fields.append(f"FRAME-RATE={variant.frame_rate:.3f}")
        if variant.audio_group:
            fields.append(f"AUDIO={_quoted(variant.audio_group)}")
        lines += (f"#EXT-X-STREAM-INF:{','.join(fields)}", variant.uri)
    lines.append("")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """Return a quoted string; quotation marks and line breaks, which it can't have, are left out (section 4.2)."""
    return f'"{"".join(each for each in text if each.isprintable() and each != chr(34))}"'
