"""The rules that players enforce on HLS playlists, each with a name, and a client that checks them over time.

The rules are those of draft-pantos-hls-rfc8216bis-22 and of Apple's authoring specification, and what the parser of hls.js
refuses. A client loads a playlist again and again; `Client.load` returns the violations that a load adds.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

RULES = {
    "first line": "a playlist begins with #EXTM3U",
    "syntax": "tags and attributes have the syntax of section 4",
    "one tag": "a tag of the whole playlist comes once, as the parser of hls.js demands",
    "required tags": "EXT-X-TARGETDURATION and EXT-X-MEDIA-SEQUENCE are there; parts need EXT-X-PART-INF",
    "header first": "sequence numbers come before the first segment, part and EXT-X-SKIP",
    "version": "EXT-X-VERSION is high enough for what is used",
    "map": "every segment has an initialization segment",
    "target duration": "EXTINF, rounded to the nearest second, is at most the target duration",
    "part target": "no part is longer than the part target",
    "part floor": "a part has at least 85 % of the part target, unless it is last of its segment, independent, or at a gap",
    "part sum": "parts add up to their segment",
    "part tags": "tags of a segment come before its first part",
    "hold back": "HOLD-BACK is at least 3 target durations",
    "part hold back": "PART-HOLD-BACK is there if EXT-X-PART-INF is, and at least 3 part targets",
    "skip until": "CAN-SKIP-UNTIL is at least 6 target durations",
    "constants": "target duration, part target and server control do not change in a session",
    "media sequence": "the media sequence number never decreases",
    "segment changed": "a segment keeps its URI, duration, date, map and parts",
    "discontinuity sequence": "a segment keeps its discontinuity sequence number",
    "playlist shrinks": "the end of a playlist does not move back",
    "playlist duration": "no segment is removed if less than 3 target durations remain",
    "part window": "parts are not listed more than 3 target durations before the end",
    "part missing": "parts are listed near the end",
    "skip boundary": "only segments before the skip boundary are skipped",
    "skip unknown": "only segments that the client knows are skipped",
    "skip unasked": "a delta update comes only when it was asked for",
    "preload hint": "the next part is hinted at, once, unless the stream has ended",
    "hint broken": "the part that comes next is the one that was hinted at",
    "end": "nothing changes after EXT-X-ENDLIST",
    "date": "EXT-X-PROGRAM-DATE-TIME is there, and fits to the durations",
    "discontinuity": "the initialization segment and the timeline change only with a discontinuity",
    "rendition report": "a report has a URI and the last media sequence number",
    "independent part": "INDEPENDENT=YES is at parts that have a keyframe, and at no other",
    "gap": "GAP=YES is at parts, and EXT-X-GAP at segments, without media, and at no other",
    "media": "what a playlist lists exists",
    "media duration": "media lasts as long as the playlist says, within a frame",
    "keyframe": "a segment begins with a keyframe",
    "multivariant": "a variant has BANDWIDTH, AVERAGE-BANDWIDTH, CODECS, and for video RESOLUTION and FRAME-RATE",
    "group": "audio groups exist, names in them differ, and at most one rendition is the default",
    "independent segments": "EXT-X-INDEPENDENT-SEGMENTS is there",
}

SILENCE_MS = 1000
"""How long a track may be silent before the other one goes on alone."""


class Violation(NamedTuple):
    rule: str
    text: str


class Media(NamedTuple):
    """The driving track of a fragment, or of several.

    Attributes:
        frames: The number of frames; 0: only others have come.
        start_ms, end_ms: Of the first and the last frame.
        longest_ms: The longest frame that is near: the one before the first one, too.
        first_is_key, has_key: Whether the first frame, or any, is a keyframe.
        others_ms: The duration of the other track, which goes on alone while the driving one is silent.
    """

    frames: int
    start_ms: Decimal
    end_ms: Decimal
    longest_ms: Decimal
    first_is_key: bool
    has_key: bool
    others_ms: Decimal = Decimal(0)


@dataclass
class Piece:
    """A part."""

    uri: str
    duration: Decimal
    independent: bool
    gap: bool


@dataclass
class Chapter:
    """A segment; the last one may have parts only."""

    number: int
    discontinuities: int
    is_discontinuity: bool
    map_uri: str | None
    date: datetime | None
    uri: str = ""
    duration: Decimal = Decimal(0)
    parts: list[Piece] = field(default_factory=list)
    gap: bool = False


@dataclass
class Playlist:
    violations: list[Violation] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    control: dict[str, str] = field(default_factory=dict)
    segments: list[Chapter] = field(default_factory=list)
    open: Chapter | None = None
    hints: list[dict[str, str]] = field(default_factory=list)
    skipped: int = 0
    ended: bool = False
    target: Decimal = Decimal(0)
    part_target: Decimal = Decimal(0)
    first: int = 0
    discontinuity: int = 0

    def violate(self, rule: str, text: str) -> None:
        assert rule in RULES
        self.violations.append(Violation(rule, text))


_ATTRIBUTE = re.compile(r'([A-Z0-9-]+)=("[^"\r\n]*"|[^",\s]+)(?:,|$)')
_WHOLE = (
    "VERSION",
    "TARGETDURATION",
    "SERVER-CONTROL",
    "PART-INF",
    "MEDIA-SEQUENCE",
    "DISCONTINUITY-SEQUENCE",
    "SKIP",
    "ENDLIST",
)
_NUMBER = re.compile(r"\d+\Z")
_DECIMAL = re.compile(r"\d+(\.\d+)?\Z")


def attributes(text: str, playlist: Playlist) -> dict[str, str]:
    found, end = {}, 0
    while end < len(text):
        match = _ATTRIBUTE.match(text, end)
        if match is None or match[1] in found:
            playlist.violate("syntax", text)
            break
        found[match[1]] = match[2].strip('"')
        end = match.end()
    return found


def decimal(text: str, playlist: Playlist) -> Decimal:
    if not _DECIMAL.match(text):
        playlist.violate("syntax", f"{text!r} is no decimal number")
        return Decimal(0)
    return Decimal(text)


def number(text: str, playlist: Playlist) -> int:
    if not _NUMBER.match(text):
        playlist.violate("syntax", f"{text!r} is no number")
        return 0
    return int(text)


def parse(text: str) -> Playlist:
    """Parse a media playlist, and check what it says of itself."""
    playlist = Playlist()
    lines = text.split("\n")
    if lines[0] != "#EXTM3U":
        playlist.violate("first line", lines[0][:40])
    chapter: Chapter | None = None
    index = count = 0
    map_uri: str | None = None
    duration: Decimal | None = None
    seen: set[str] = set()
    needs = 1

    def current() -> Chapter:
        nonlocal chapter
        if chapter is None:
            chapter = Chapter(playlist.first + index, playlist.discontinuity + count, False, map_uri, None)
        return chapter

    for line in lines[1:]:
        if not line or (line.startswith("#") and not line.startswith("#EXT")):
            continue
        if not line.startswith("#"):
            if duration is None:
                playlist.violate("syntax", f"{line} without EXTINF")
            segment = current()
            segment.uri, segment.duration = line, duration or Decimal(0)
            playlist.segments.append(segment)
            chapter, duration = None, None
            index += 1
            continue
        name, _, value = line.removeprefix("#EXT-X-").removeprefix("#").partition(":")
        if name in _WHOLE:
            if name in seen:
                playlist.violate("one tag", name)
            seen.add(name)
            playlist.values[name] = value
        if name in ("MEDIA-SEQUENCE", "DISCONTINUITY-SEQUENCE") and (index or chapter):
            playlist.violate("header first", name)
        if name == "TARGETDURATION":
            playlist.target = Decimal(number(value, playlist))
        elif name == "MEDIA-SEQUENCE":
            playlist.first = number(value, playlist)
        elif name == "DISCONTINUITY-SEQUENCE":
            playlist.discontinuity = number(value, playlist)
        elif name == "SERVER-CONTROL":
            playlist.control = attributes(value, playlist)
        elif name == "PART-INF":
            playlist.part_target = decimal(attributes(value, playlist).get("PART-TARGET", ""), playlist)
        elif name == "SKIP":
            playlist.skipped = number(attributes(value, playlist).get("SKIPPED-SEGMENTS", ""), playlist)
            index += playlist.skipped
            needs = max(needs, 9)
        elif name == "DISCONTINUITY":
            segment = current()
            if segment.parts:
                playlist.violate("part tags", line)
            count += 1
            segment.is_discontinuity = True
            segment.discontinuities += 1
        elif name == "MAP":
            map_uri = attributes(value, playlist).get("URI")
            if current().parts:
                playlist.violate("part tags", line)
            current().map_uri = map_uri
            needs = max(needs, 6)
        elif name == "PROGRAM-DATE-TIME":
            if current().parts:
                playlist.violate("part tags", line)
            try:
                current().date = datetime.fromisoformat(value)
            except ValueError:
                playlist.violate("syntax", line)
        elif name == "GAP":
            current().gap = True
            needs = max(needs, 8)
        elif name == "EXTINF":
            duration = decimal(value.partition(",")[0], playlist)
            needs = max(needs, 3 if "." in value else 1)
        elif name == "PART":
            found = attributes(value, playlist)
            piece = Piece(
                found.get("URI", ""),
                decimal(found.get("DURATION", ""), playlist),
                found.get("INDEPENDENT") == "YES",
                found.get("GAP") == "YES",
            )
            current().parts.append(piece)
        elif name == "PRELOAD-HINT":
            playlist.hints.append(attributes(value, playlist))
        elif name == "RENDITION-REPORT":
            found = attributes(value, playlist)
            if "URI" not in found or not _NUMBER.match(found.get("LAST-MSN", "")):
                playlist.violate("rendition report", line)
        elif name == "ENDLIST":
            playlist.ended = True
    if duration is not None:
        playlist.violate("syntax", "EXTINF without a URI")
    playlist.open = chapter
    if int(playlist.values.get("VERSION", "1") or 1) < needs:
        playlist.violate("version", f"{playlist.values.get('VERSION')}, needed {needs}")
    _check_alone(playlist)
    return playlist


def _check_alone(playlist: Playlist) -> None:
    violate, target, part_target, control = playlist.violate, playlist.target, playlist.part_target, playlist.control
    chapters = [*playlist.segments, *([playlist.open] if playlist.open else [])]
    for name in ("TARGETDURATION", "MEDIA-SEQUENCE"):
        if name not in playlist.values:
            violate("required tags", name)
    if any(chapter.parts for chapter in chapters) and not part_target:
        violate("required tags", "PART-INF")
    for segment in playlist.segments:
        if segment.duration.to_integral_value("ROUND_HALF_UP") > target:
            violate("target duration", f"{segment.uri}: {segment.duration} s, {target}")
        if segment.parts and sum(part.duration for part in segment.parts) != segment.duration:
            violate("part sum", segment.uri)
    for chapter in chapters:
        for part, following in zip(chapter.parts, [*chapter.parts[1:], None], strict=False):
            if part.duration > part_target:
                violate("part target", f"{part.uri}: {part.duration} s, {part_target}")
            # Whether the newest part is the last of its segment is not known.
            exempt = part.independent or part.gap or following is None or following.gap
            if not exempt and part.duration * 100 < part_target * 85:
                violate("part floor", f"{part.uri}: {part.duration} s, {part_target}")
    if "HOLD-BACK" in control and decimal(control["HOLD-BACK"], playlist) < 3 * target:
        violate("hold back", control["HOLD-BACK"])
    if part_target and decimal(control.get("PART-HOLD-BACK", "0"), playlist) < 3 * part_target:
        violate("part hold back", control.get("PART-HOLD-BACK", "missing"))
    if "CAN-SKIP-UNTIL" in control and decimal(control["CAN-SKIP-UNTIL"], playlist) < 6 * target:
        violate("skip until", control["CAN-SKIP-UNTIL"])
    hints = [hint for hint in playlist.hints if hint.get("TYPE") == "PART"]
    if len(hints) != (1 if part_target and not playlist.ended else 0):
        violate("preload hint", f"{len(hints)} hints")
    open_s = sum((part.duration for part in playlist.open.parts), Decimal(0)) if playlist.open else Decimal(0)
    distance = open_s
    for segment in reversed(playlist.segments):
        end, distance = distance, distance + segment.duration
        if segment.parts and end >= 3 * target:
            violate("part window", segment.uri)
        if part_target and not segment.parts and distance <= 2 * target:
            violate("part missing", segment.uri)
    if playlist.skipped:
        if "CAN-SKIP-UNTIL" not in control:
            violate("skip boundary", "no CAN-SKIP-UNTIL")
        elif sum(segment.duration for segment in playlist.segments) < Decimal(control["CAN-SKIP-UNTIL"]):
            violate("skip boundary", f"{playlist.skipped} segments")


class Client:
    """A client that loads a media playlist over time.

    Args:
        media: The media by URI; None: only playlists are checked.
        has_keyframes: Whether each segment has to begin with a keyframe.
        has_dates: Whether there are dates.
    """

    def __init__(self, media: dict[str, Media] | None = None, *, has_keyframes: bool = True, has_dates: bool = True) -> None:
        self.media = media
        self.has_keyframes = has_keyframes
        self.has_dates = has_dates
        self.before: Playlist | None = None

    def load(self, text: str, *, skip: bool = False) -> list[Violation]:
        """Load a playlist.

        Args:
            text: The playlist.
            skip: Whether a delta update was asked for.
        """
        playlist = parse(text)
        before = self.before
        if playlist.skipped:
            if not skip:
                playlist.violate("skip unasked", f"{playlist.skipped} segments")
            self._merge(playlist)
        if before is not None:
            self._compare(before, playlist)
        self._check_run(playlist)
        if self.media is not None:
            self._check_media(playlist, self.media)
        self.before = playlist
        return playlist.violations

    def _merge(self, playlist: Playlist) -> None:
        """Put the segments that were skipped in front."""
        known = {segment.number: segment for segment in self.before.segments} if self.before else {}
        numbers = range(playlist.first, playlist.first + playlist.skipped)
        missing = [each for each in numbers if each not in known]
        if missing:
            playlist.violate("skip unknown", f"{missing}")
            return
        old = [known[each] for each in numbers]
        # Later segments go on from the last one that was skipped.
        last = old[-1]
        added = last.discontinuities - playlist.discontinuity
        for segment in [*playlist.segments, *([playlist.open] if playlist.open else [])]:
            segment.discontinuities += added
            if segment.map_uri is None:
                segment.map_uri = last.map_uri
        playlist.segments[:0] = [replace(each, parts=[]) for each in old]

    def _compare(self, before: Playlist, now: Playlist) -> None:
        violate = now.violate
        for name in ("TARGETDURATION", "PART-INF", "SERVER-CONTROL"):
            if before.values.get(name) != now.values.get(name):
                violate("constants", f"{name}: {before.values.get(name)}, then {now.values.get(name)}")
        if now.first < before.first:
            violate("media sequence", f"{before.first}, then {now.first}")
        if before.ended and (before.segments != now.segments or not now.ended):
            violate("end", "the playlist has changed")
        old = {segment.number: segment for segment in before.segments}
        new = {segment.number: segment for segment in now.segments}
        for same in old.keys() & new.keys():
            first, second = old[same], new[same]
            facts = [(each.uri, each.duration, each.date, each.map_uri) for each in (first, second)]
            if facts[0] != facts[1] or (first.parts and second.parts and first.parts != second.parts):
                violate("segment changed", f"{facts[0]}, then {facts[1]}")
            if first.discontinuities != second.discontinuities:
                violate("discontinuity sequence", f"{first.uri}: {first.discontinuities}, then {second.discontinuities}")
        self._compare_end(before, now, new)
        if now.first > before.first and not now.ended:
            rest = sum((each.duration for each in now.segments), Decimal(0))
            if rest < 3 * now.target:
                violate("playlist duration", f"{rest} s")

    @staticmethod
    def _compare_end(before: Playlist, now: Playlist, new: dict[int, Chapter]) -> None:
        violate = now.violate
        last = before.segments[-1].number if before.segments else before.first - 1
        newest = now.segments[-1].number if now.segments else now.first - 1
        if newest < last:
            violate("playlist shrinks", f"segment {last}, then {newest}")
        chapter = before.open
        following = new.get(last + 1, now.open if newest == last else None)
        if chapter is not None and following is not None and (following.parts or not following.uri):
            count = len(chapter.parts)
            if following.parts[:count] != chapter.parts:
                violate(
                    "segment changed" if len(following.parts) >= count else "playlist shrinks", f"parts of {chapter.number}"
                )
        elif chapter is not None and chapter.parts and following is None and newest == last:
            violate("playlist shrinks", f"parts of {chapter.number}")
        hint = next((each.get("URI") for each in before.hints), None)
        if hint is not None and following is not None and following.parts:
            count = len(chapter.parts) if chapter else 0
            if len(following.parts) > count and following.parts[count].uri != hint:
                violate("hint broken", f"{hint}, then {following.parts[count].uri}")

    def _check_run(self, playlist: Playlist) -> None:
        chapters = [*playlist.segments, *([playlist.open] if playlist.open else [])]
        for chapter in chapters:
            if chapter.map_uri is None:
                playlist.violate("map", chapter.uri)
        if self.has_dates and chapters and chapters[0].date is None:
            playlist.violate("date", "the first segment has none")
        for first, second in itertools.pairwise(chapters):
            if second.is_discontinuity:
                continue
            if first.map_uri != second.map_uri:
                playlist.violate("discontinuity", f"{second.uri}: {second.map_uri}")
            if first.date is not None and second.date is not None:
                passed = Decimal(str((second.date - first.date).total_seconds()))
                if abs(passed - first.duration) > Decimal("0.001"):
                    playlist.violate("date", f"{second.uri}: {passed} s after the one before, which lasts {first.duration} s")

    def _check_media(self, playlist: Playlist, media: dict[str, Media]) -> None:
        chapters = [*playlist.segments, *([playlist.open] if playlist.open else [])]
        for chapter in chapters:
            for part in chapter.parts:
                found = media.get(part.uri)
                if part.gap != (found is None):
                    playlist.violate("gap" if part.gap else "media", part.uri)
                if found is not None:
                    if part.independent != found.has_key:
                        playlist.violate("independent part", part.uri)
                    self._check_duration(playlist, part.uri, part.duration, found)
        for segment in playlist.segments:
            found = media.get(segment.uri)
            if segment.gap != (found is None):
                playlist.violate("gap" if segment.gap else "media", segment.uri)
            if found is None:
                continue
            self._check_duration(playlist, segment.uri, segment.duration, found)
            if self.has_keyframes and not found.first_is_key:
                playlist.violate("keyframe", segment.uri)
        for first, second in zip(playlist.segments, playlist.segments[1:], strict=False):
            one, two = media.get(first.uri), media.get(second.uri)
            if second.is_discontinuity or not one or not two or not one.frames or not two.frames:
                continue
            if abs(two.start_ms - one.end_ms) > max(one.longest_ms, two.longest_ms):
                playlist.violate("discontinuity", f"{second.uri} begins at {two.start_ms}, the one before ends at {one.end_ms}")

    @staticmethod
    def _check_duration(playlist: Playlist, uri: str, duration: Decimal, found: Media) -> None:
        if not found.frames or abs(found.end_ms - found.start_ms - duration * 1000) <= found.longest_ms:
            return
        if duration * 1000 - found.others_ms > 2 * SILENCE_MS + found.longest_ms or not found.others_ms:
            playlist.violate("media duration", f"{uri}: {duration} s, media {found.start_ms} to {found.end_ms}")


def check_multivariant(text: str) -> list[Violation]:
    """Check a multivariant playlist."""
    playlist = Playlist()
    lines = text.rstrip("\n").split("\n")
    if lines[0] != "#EXTM3U":
        playlist.violate("first line", lines[0][:40])
    if "#EXT-X-INDEPENDENT-SEGMENTS" not in lines:
        playlist.violate("independent segments", "missing")
    groups: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        if line.startswith("#EXT-X-MEDIA:"):
            found = attributes(line.partition(":")[2], playlist)
            if not {"TYPE", "GROUP-ID", "NAME"} <= found.keys():
                playlist.violate("group", line)
            groups.setdefault(found.get("GROUP-ID", ""), []).append(found)
    for members in groups.values():
        names = [member.get("NAME") for member in members]
        if len(set(names)) < len(names) or sum(member.get("DEFAULT") == "YES" for member in members) > 1:
            playlist.violate("group", f"{names}")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("#EXT-X-STREAM-INF:"):
            continue
        found = attributes(line.partition(":")[2], playlist)
        needed = {"BANDWIDTH", "AVERAGE-BANDWIDTH", "CODECS"}
        if re.search(r"avc1|hvc1|av01|vp0", found.get("CODECS", "")):
            needed |= {"RESOLUTION", "FRAME-RATE"}
        if not needed <= found.keys() or int(found["BANDWIDTH"]) < int(found["AVERAGE-BANDWIDTH"]):
            playlist.violate("multivariant", line)
        if "AUDIO" in found and found["AUDIO"] not in groups:
            playlist.violate("group", line)
        if not following or following.startswith("#"):
            playlist.violate("syntax", line)
    return playlist.violations
