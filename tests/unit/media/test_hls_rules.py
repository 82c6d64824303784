"""The checks of `tests.hls_rules`: a sound sequence of playlists passes, and each rule finds what breaks it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.hls_rules import RULES, Client, Media, check_multivariant

HEAD = """#EXTM3U
#EXT-X-VERSION:9
#EXT-X-TARGETDURATION:2
#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,CAN-SKIP-UNTIL=12.000,HOLD-BACK=6.000,PART-HOLD-BACK=3.000
#EXT-X-PART-INF:PART-TARGET=1.000
"""


def segment(number: int, *, head: str = "", parts: bool = False) -> str:
    lines = f"{head}#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:{2 * number:02}.000Z\n"
    if parts:
        lines += f'#EXT-X-PART:DURATION=1.000,URI="part-{number}-0.m4s",INDEPENDENT=YES\n'
        lines += f'#EXT-X-PART:DURATION=1.000,URI="part-{number}-1.m4s"\n'
    return f"{lines}#EXTINF:2.000,\nseg-{number}.m4s\n"


MAP = '#EXT-X-MAP:URI="init-a.mp4"\n'
CHANGED = '#EXT-X-DISCONTINUITY\n#EXT-X-MAP:URI="init-b.mp4"\n'
DATE = "#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:{}.000Z\n"
FIRST = (
    HEAD
    + "#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-DISCONTINUITY-SEQUENCE:0\n"
    + segment(0, head=MAP)
    + "".join(segment(number) for number in range(1, 7))
    + segment(7, head=CHANGED, parts=True)
    + segment(8, parts=True)
    + DATE.format(18)
    + '#EXT-X-PART:DURATION=0.900,URI="part-9-0.m4s",INDEPENDENT=YES\n'
    + '#EXT-X-PRELOAD-HINT:TYPE=PART,URI="part-9-1.m4s"\n'
)
LATER = (
    HEAD
    + "#EXT-X-MEDIA-SEQUENCE:1\n#EXT-X-DISCONTINUITY-SEQUENCE:0\n"
    + segment(1, head=MAP)
    + "".join(segment(number) for number in range(2, 7))
    + segment(7, head=CHANGED, parts=True)
    + segment(8, parts=True)
    + DATE.format(18)
    + '#EXT-X-PART:DURATION=0.900,URI="part-9-0.m4s",INDEPENDENT=YES\n'
    + '#EXT-X-PART:DURATION=0.900,URI="part-9-1.m4s"\n'
    + '#EXT-X-PRELOAD-HINT:TYPE=PART,URI="part-9-2.m4s"\n'
)
DELTA = (
    HEAD
    + "#EXT-X-MEDIA-SEQUENCE:1\n#EXT-X-DISCONTINUITY-SEQUENCE:0\n#EXT-X-SKIP:SKIPPED-SEGMENTS=2\n"
    + LATER[LATER.index(DATE.format("06")) :]
)


def media() -> dict[str, Media]:
    found = {}
    for number in range(10):
        start = Decimal(2000 * number)
        for index in range(2):
            at = start + (900 if number == 9 else 1000) * index
            end = at + (900 if number == 9 else 1000)
            found[f"part-{number}-{index}.m4s"] = Media(25, at, end, Decimal(40), not index, not index)
        found[f"seg-{number}.m4s"] = Media(50, start, start + 2000, Decimal(40), True, True)
    return found


def loads(*texts: str, **facts: object) -> set[str]:
    """The rules that are broken when a client loads *texts*."""
    client = Client({**media(), **facts.pop("media", {})})
    return {violation.rule for text in texts for violation in client.load(text, skip="SKIP" in text and not facts.get("whole"))}


def test_a_sound_sequence():
    assert loads(FIRST, LATER) == set()
    assert loads(FIRST, DELTA) == set()
    end = LATER[: LATER.index(DATE.format(18))] + "#EXT-X-ENDLIST\n"
    assert loads(FIRST.replace(FIRST[FIRST.index(DATE.format(18)) : FIRST.index("#EXT-X-PRELOAD")], ""), end, end) == set()


SHORT = '#EXT-X-PART:DURATION=0.84,URI="a"\n'
SECOND = '#EXT-X-PART:DURATION=1.000,URI="part-8-1.m4s"'
ALONE = [
    ("first line", "#EXTM3U", "#EXTM3U8"),
    ("syntax", "#EXTINF:2.000,\nseg-3.m4s", "seg-3.m4s"),
    ("syntax", "PART-TARGET=1.000", "PART-TARGET=1,000"),
    ("syntax", "#EXT-X-MEDIA-SEQUENCE:0", "#EXT-X-MEDIA-SEQUENCE:-1"),
    ("syntax", "2026-01-01T00:00:06.000Z", "yesterday"),
    ("one tag", "#EXT-X-VERSION:9", "#EXT-X-VERSION:9\n#EXT-X-VERSION:9"),
    ("required tags", "#EXT-X-TARGETDURATION:2\n", ""),
    ("required tags", "#EXT-X-PART-INF:PART-TARGET=1.000\n", ""),
    ("header first", "#EXTINF:2.000,\nseg-3.m4s\n", "#EXTINF:2.000,\nseg-3.m4s\n#EXT-X-DISCONTINUITY-SEQUENCE:0\n"),
    ("version", "#EXT-X-VERSION:9", "#EXT-X-VERSION:5"),
    ("map", MAP, ""),
    ("target duration", "#EXTINF:2.000,\nseg-3.m4s", "#EXTINF:2.500,\nseg-3.m4s"),
    ("part target", 'DURATION=1.000,URI="part-8-1.m4s"', 'DURATION=1.001,URI="part-8-1.m4s"'),
    ("part floor", "#EXT-X-PRELOAD-HINT", SHORT + '#EXT-X-PART:DURATION=0.9,URI="b"\n#EXT-X-PRELOAD-HINT'),
    ("part sum", 'DURATION=1.000,URI="part-8-1.m4s"', 'DURATION=0.999,URI="part-8-1.m4s"'),
    ("part tags", SECOND, f"#EXT-X-DISCONTINUITY\n{SECOND}"),
    ("hold back", ",HOLD-BACK=6.000", ",HOLD-BACK=5.999"),
    ("part hold back", ",PART-HOLD-BACK=3.000", ",PART-HOLD-BACK=2.999"),
    ("part hold back", ",PART-HOLD-BACK=3.000", ""),
    ("skip until", "CAN-SKIP-UNTIL=12.000", "CAN-SKIP-UNTIL=11.999"),
    ("part window", "#EXTINF:2.000,\nseg-3.m4s", segment(3, parts=True).rstrip().removeprefix(DATE.format("06"))),
    ("part missing", segment(8, parts=True), segment(8)),
    ("preload hint", '#EXT-X-PRELOAD-HINT:TYPE=PART,URI="part-9-1.m4s"\n', ""),
    ("preload hint", "#EXT-X-PRELOAD-HINT", "#EXT-X-ENDLIST\n#EXT-X-PRELOAD-HINT"),
    ("date", DATE.format("00"), ""),
    ("date", DATE.format("06"), DATE.format("07")),
    ("discontinuity", "#EXT-X-DISCONTINUITY\n", ""),
    ("rendition report", "#EXT-X-PRELOAD-HINT", '#EXT-X-RENDITION-REPORT:URI="b.m3u8"\n#EXT-X-PRELOAD-HINT'),
    ("independent part", 'URI="part-8-1.m4s"', 'URI="part-8-1.m4s",INDEPENDENT=YES'),
    ("independent part", 'URI="part-8-0.m4s",INDEPENDENT=YES', 'URI="part-8-0.m4s"'),
    ("gap", 'URI="part-8-1.m4s"', 'URI="part-8-1.m4s",GAP=YES'),
    ("media", 'URI="part-8-1.m4s"', 'URI="part-8-5.m4s"'),
    ("media", "seg-3.m4s", "seg-30.m4s"),
    ("media duration", "#EXTINF:2.000,\nseg-3.m4s", "#EXTINF:1.959,\nseg-3.m4s"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "old", "new"), ALONE)
def test_a_playlist_that_breaks_a_rule(rule, old, new):
    assert FIRST.count(old) >= 1
    assert rule in loads(FIRST.replace(old, new, 1))


OVER_TIME = [
    ("constants", "#EXT-X-PART-INF:PART-TARGET=1.000", "#EXT-X-PART-INF:PART-TARGET=0.999"),
    ("constants", "#EXT-X-TARGETDURATION:2", "#EXT-X-TARGETDURATION:3"),
    ("constants", ",HOLD-BACK=6.000", ",HOLD-BACK=7.000"),
    ("segment changed", "#EXTINF:2.000,\nseg-3.m4s", "#EXTINF:2.001,\nseg-3.m4s"),
    ("segment changed", "#EXT-X-MEDIA-SEQUENCE:1", "#EXT-X-MEDIA-SEQUENCE:2"),
    ("segment changed", 'DURATION=0.900,URI="part-9-0.m4s"', 'DURATION=0.950,URI="part-9-0.m4s"'),
    ("discontinuity sequence", "#EXT-X-DISCONTINUITY-SEQUENCE:0", "#EXT-X-DISCONTINUITY-SEQUENCE:1"),
    ("hint broken", 'URI="part-9-1.m4s"', 'URI="part-9-01.m4s"'),
    ("playlist shrinks", segment(8, parts=True), ""),
    ("playlist shrinks", LATER[LATER.index(DATE.format(18)) : LATER.index("#EXT-X-PRELOAD")], ""),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "old", "new"), OVER_TIME)
def test_a_reload_that_breaks_a_rule(rule, old, new):
    assert LATER.count(old) >= 1
    assert rule in loads(FIRST, LATER.replace(old, new, 1))


def test_rules_of_time():
    assert "media sequence" in loads(LATER, FIRST)
    short = LATER.replace("MEDIA-SEQUENCE:1", "MEDIA-SEQUENCE:7").replace(
        "DISCONTINUITY-SEQUENCE:0", "DISCONTINUITY-SEQUENCE:0"
    )
    begin = short.index(DATE.format("02"))
    short = short[:begin] + short[short.index("#EXT-X-DISCONTINUITY\n") :]
    assert "playlist duration" in loads(FIRST, short)
    end = LATER[: LATER.index(DATE.format(18))] + "#EXT-X-ENDLIST\n"
    assert "end" in loads(end, LATER)


def test_rules_of_delta_updates():
    more = DELTA.replace("SEGMENTS=2", "SEGMENTS=3")
    more = more[: more.index(DATE.format("06"))] + more[more.index(DATE.format("08")) :]
    assert "skip boundary" in loads(FIRST, more)
    assert "skip unknown" in loads(DELTA)
    assert "skip unasked" in loads(FIRST, DELTA, whole=True)
    assert "version" in loads(FIRST, DELTA.replace("VERSION:9", "VERSION:8"))


def test_rules_of_media():
    late = Media(50, Decimal(6100), Decimal(8100), Decimal(40), True, True)
    assert loads(FIRST, media={"seg-3.m4s": late}) == {"discontinuity"}
    inter = Media(50, Decimal(6000), Decimal(8000), Decimal(40), False, True)
    assert loads(FIRST, media={"seg-3.m4s": inter}) == {"keyframe"}


VARIANTS = """#EXTM3U
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="x",DEFAULT=YES
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="y"
#EXT-X-STREAM-INF:BANDWIDTH=2,AVERAGE-BANDWIDTH=1,CODECS="avc1.64001f,mp4a.40.2",RESOLUTION=2x2,FRAME-RATE=25.000,AUDIO="a"
index.m3u8
"""
MULTIVARIANT = [
    ("first line", "#EXTM3U", ""),
    ("independent segments", "#EXT-X-INDEPENDENT-SEGMENTS\n", ""),
    ("group", 'NAME="y"', 'NAME="x"'),
    ("group", 'NAME="y"', 'NAME="y",DEFAULT=YES'),
    ("group", 'AUDIO="a"', 'AUDIO="b"'),
    ("multivariant", "BANDWIDTH=2,", ""),
    ("multivariant", "BANDWIDTH=2,", "BANDWIDTH=0,"),
    ("multivariant", ",RESOLUTION=2x2", ""),
    ("multivariant", ",FRAME-RATE=25.000", ""),
    ("syntax", "index.m3u8\n", ""),
]


@pytest.mark.parametrize(("rule", "old", "new"), MULTIVARIANT)
def test_a_multivariant_playlist_that_breaks_a_rule(rule, old, new):
    assert not check_multivariant(VARIANTS)
    assert rule in {violation.rule for violation in check_multivariant(VARIANTS.replace(old, new, 1))}


def test_every_rule_is_tested():
    tested = {rule for rule, _, _ in [*ALONE, *OVER_TIME, *MULTIVARIANT]}
    assert RULES.keys() - tested == {
        *("media sequence", "playlist duration", "end", "skip boundary", "skip unknown", "skip unasked", "keyframe")
    }
