"""HLS: targets, cutting, window, playlists; and what ffmpeg decodes of a playlist."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING

import imageio_ffmpeg
import pytest

from rtmpd.media.flv import AUDIO, VIDEO
from rtmpd.media.fmp4.fragmenter import Fragmenter
from rtmpd.media.fmp4.movie import init_segment
from rtmpd.media.fmp4.tracks import Tracks
from rtmpd.media.hls.assembly import Rendition
from rtmpd.media.hls.cutting import Cutter, Frame, When
from rtmpd.media.hls.playlist import (
    AudioRendition,
    Report,
    Resource,
    Variant,
    init_name,
    media_playlist,
    multivariant_playlist,
    parse_name,
    part_name,
    segment_name,
)
from rtmpd.media.hls.targets import Targets, choose_targets
from rtmpd.media.hls.window import Answer, Directives, Limits, Part, Window, first_sequence_number, parse_directives
from rtmpd.media.mp4.movie import read_movie
from rtmpd.media.tags import Kind, video_kind
from tests.hls_rules import Client, Media, check_multivariant
from tests.hls_stream import Show

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = Targets(2000, 500, 2)

# Targets ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame_ms", "gop_ms", "part_ms", "target_s"),
    [
        (0, 0, 500, 4),  # unknown: twice segment_ms
        (40, 2000, 500, 2),
        (1000 / 30, 2000, 500, 2),
        (1000 / 30, 2002, 500, 3),
        (40, 1500, 500, 3),  # two groups
        (40, 5000, 500, 5),
        (40, 30_000, 500, 10),  # cut within groups
        (21.33, 0, 500, 2),  # audio
        (100, 2000, 420, 2),  # 4 frames at 10 frames/s; 5 would leave no room for jitter
        (700, 2000, 0, 2),  # slides
    ],
)
def test_targets(frame_ms, gop_ms, part_ms, target_s):
    targets = choose_targets(2000, 500, frame_ms=frame_ms, gop_ms=gop_ms)
    assert targets == (2000, part_ms, target_s)


@pytest.mark.parametrize("rate", [10, 12, 15, 23.976, 24, 25, 29.97, 30, 48, 50, 59.94, 60, 120])
@pytest.mark.parametrize("part_ms", [200, 333, 500, 1000])
def test_whole_frames_fit_into_a_part(rate, part_ms):
    frame_ms = 1000 / rate
    target_ms = choose_targets(2000, part_ms, frame_ms=frame_ms, gop_ms=2000).part_ms
    assert 0.5 * part_ms <= target_ms <= part_ms
    assert any(0.86 * target_ms <= count * frame_ms <= 0.98 * target_ms for count in range(1, 200))


def test_the_advance_part_limit():
    assert [Targets(2000, part_ms, 2).advance_parts for part_ms in (0, 200, 500, 1000, 1500)] == [3, 15, 6, 3, 3]


# Cutting ------------------------------------------------------------------------------------------------------------------


def cuts_of(cutter, times, *, gop=50, video=True):
    """All cuts of a track, each with the time of the frame that brought it."""
    found = []
    for index, time_ms in enumerate(times):
        found += [(time_ms, cut) for cut in cutter.add(Frame(video, time_ms, index % gop == 0))]
    return found


def ends_of(found):
    return [cut.next_start_ms for _, cut in found if cut.ends_segment]


def test_parts_end_when_the_frame_behind_them_arrives():
    found = cuts_of(Cutter(TARGETS, has_video=True), range(0, 4001, 40))
    assert [cut.next_start_ms for _, cut in found] == [480, 960, 1440, 1920, 2000, 2480, 2960, 3440, 3920, 4000]
    assert all(time_ms == cut.next_start_ms and cut.when is When.THIS for time_ms, cut in found)
    assert ends_of(found) == [2000, 4000]
    assert [cut.is_independent for _, cut in found] == [True, False, False, False, False] * 2
    assert [cut.frames for _, cut in found[:5]] == [12] * 4 + [2]


def test_a_keyframe_that_is_a_frame_early_ends_a_segment():
    times = [index * 1000 // 30 for index in range(250)]
    times[60] -= 1
    assert ends_of(cuts_of(Cutter(TARGETS, has_video=True), times, gop=60)) == [1999, 4000, 6000, 8000]


def test_segments_wait_for_a_keyframe():
    found = cuts_of(Cutter(Targets(2000, 500, 3), has_video=True), range(0, 9001, 40), gop=38)
    assert ends_of(found) == [3040, 6080]


def test_a_segment_ends_early_if_the_next_keyframe_would_be_too_late():
    found = cuts_of(Cutter(TARGETS, has_video=True), range(0, 9001, 40), gop=38)
    assert ends_of(found) == [1520, 3040, 4560, 6080, 7600]


def test_a_group_of_30_seconds_is_cut_within():
    found = cuts_of(Cutter(Targets(2000, 1000, 10), has_video=True), range(0, 60_001, 40), gop=750)
    assert ends_of(found) == [10_480, 20_960, 30_000, 40_480, 50_960, 60_000]
    begins = [after.is_independent for (_, before), (_, after) in pairwise(found) if before.ends_segment]
    assert begins == [False, False, True, False, False]
    assert all(before.next_start_ms < after.next_start_ms for before, after in pairwise(cut for _, cut in found))


def test_audio_alone():
    found = cuts_of(Cutter(TARGETS, has_video=False), [index * 1024 * 1000 // 48000 for index in range(500)], video=False)
    assert all(425 <= cut.duration_ms <= 500 or cut.ends_segment for _, cut in found)
    assert all(cut.is_independent for _, cut in found)
    assert all(1980 <= after - before <= 2000 for before, after in pairwise(ends_of(found)))


def test_video_that_comes_before_its_first_keyframe_is_left_out():
    cutter = Cutter(TARGETS, has_video=True)
    cutter.add(Frame(False, 0, False))
    cutter.add(Frame(True, 10, False))
    assert not cutter.started
    cutter.add(Frame(True, 40, True))
    assert cutter.started
    assert cutter.segment_start_ms == 40


def test_a_wrong_guess_ends_the_part_before_the_last_frame():
    """After 460 ms a frame of 30 ms is expected, and lasts 80 ms."""
    times = [0, 40, 80, 120, 160, 200, 240, 280, 320, 360, 400, 430, 460, 540]
    found = cuts_of(Cutter(TARGETS, has_video=True), times)
    assert [(cut.when, cut.next_start_ms) for _, cut in found] == [(When.PREVIOUS, 460)]


def test_a_frame_of_irregular_duration_extends_over_the_end_of_a_part():
    times = [0, 100, 200, 300, 400, 500, 600, 700, 800, 1050, 1100]
    found = cuts_of(Cutter(TARGETS, has_video=True), times)
    assert [(cut.when, cut.duration_ms, cut.next_start_ms, cut.frames) for _, cut in found] == [
        (When.THIS, 500, 500, 5),
        (When.THIS, 500, 1000, 4),
    ]


def test_a_frame_that_lasts_for_several_parts_leaves_gaps():
    found = cuts_of(Cutter(Targets(2000, 500, 4), has_video=True), [0, 40, 80, 2200, 2240], gop=100)
    assert [(cut.when, cut.duration_ms, cut.frames) for _, cut in found] == [
        (When.PREVIOUS, 80, 2),  # it has a keyframe, and may be short
        (When.THIS, 500, 1),
        (When.THIS, 500, 0),
        (When.THIS, 500, 0),
        (When.THIS, 500, 0),
    ]


@pytest.mark.parametrize("to_ms", [30_000, 0])
def test_a_step_of_the_timeline_is_a_discontinuity(to_ms):
    cutter = Cutter(TARGETS, has_video=True)
    cuts_of(cutter, range(20_000, 21_001, 40))
    cuts = cutter.add(Frame(True, to_ms, False))
    assert len(cuts) == 1
    assert cuts[0].when is When.FINISH
    assert cuts[0].duration_ms == 21_040 - 20_960
    assert cuts[0].ends_segment
    assert (cuts[0].next_start_ms, cuts[0].next_discontinuity) == (to_ms, True)
    assert cutter.segment_start_ms == to_ms


def test_parts_go_on_while_video_is_silent():
    cutter, found = Cutter(TARGETS, has_video=True), []
    for time_ms in range(0, 6000, 20):
        if time_ms < 1000 and not time_ms % 40:
            found += cutter.add(Frame(True, time_ms, time_ms == 0))
        found += cutter.add(Frame(False, time_ms, False))
    assert sum(cut.duration_ms for cut in found) >= 4000
    assert all(cut.duration_ms <= 500 and cut.frames for cut in found)
    assert [cut.next_start_ms for cut in found if cut.ends_segment] == [2490]
    again = cutter.add(Frame(True, 6000, True))
    assert again[-1].ends_segment
    assert again[-1].next_start_ms == 6000


def test_audio_that_arrives_late_in_a_burst_ends_no_part():
    cutter = Cutter(TARGETS, has_video=True)
    cutter.add(Frame(True, 20_000, True))
    assert not [cut for time_ms in range(10_000, 20_500, 20) for cut in cutter.add(Frame(False, time_ms, False))]


def test_a_restart_ends_the_segment_and_waits_for_a_keyframe():
    cutter = Cutter(TARGETS, has_video=True)
    cuts_of(cutter, range(0, 601, 40))
    cuts = cutter.restart(has_video=True)
    assert [(cut.when, cut.next_start_ms, cut.ends_segment, cut.next_discontinuity) for cut in cuts] == [
        (When.FINISH, 640, True, True)
    ]
    assert not cutter.started
    assert not cutter.restart(has_video=False)
    cutter.add(Frame(False, 5, False))
    assert cutter.started
    assert cutter.finish()
    assert not cutter.finish()


# Window -------------------------------------------------------------------------------------------------------------------


def window_of(segments, *, targets=TARGETS, limits=None, first=100, part_ms=500, size=10):
    """A window with complete segments of four parts each, and an open one."""
    window = Window(targets, limits or Limits(), first_number=first)
    for number in range(segments):
        window.open_segment("a", date_ms=4 * part_ms * number)
        for index in range(4):
            window.add_part(Part(part_ms, index == 0, bytes(size)))
        window.close_segment()
    window.open_segment("a", date_ms=4 * part_ms * segments)
    return window


def test_numbers_follow_from_the_time_of_the_publish():
    assert first_sequence_number(1_577_836_800 + 5.9) == 5
    assert first_sequence_number(0) == 0
    assert first_sequence_number(4e9) < 1 << 32


def test_a_window_slides():
    window = window_of(10, limits=Limits(segments=5, seconds=1000))
    assert [segment.sequence_number for segment in window.listed] == [105, 106, 107, 108, 109]
    assert (window.first_number, window.last_number, window.last_part, window.next_part) == (105, 109, (109, 3), (110, 0))
    window = window_of(10, limits=Limits(segments=1, seconds=1))
    assert len(window.listed) == 3  # 3 target durations


def test_media_stays_after_it_has_left_the_playlist():
    window = window_of(20, limits=Limits(segments=5, seconds=1000))
    assert window.first_number == 115
    kept = [number for number in range(100, 121) if window.find_segment(number)[0] is Answer.READY]
    # The longest playlist had 6 segments for an instant, and each is there for its own duration in addition.
    assert kept[0] in (108, 109)
    assert kept[-1] == 119
    assert window.find_part(kept[0], 3)[0] is Answer.READY
    assert window.find_part(kept[0] - 1, 3) == (Answer.MISSING, None)
    assert window.size_bytes == len(kept) * 40


def test_memory_is_bounded_before_all_else():
    window = window_of(20, limits=Limits(bytes=100))
    assert window.size_bytes <= 100
    assert [segment.sequence_number for segment in window.listed] == [118, 119]
    window = window_of(20, limits=Limits(bytes=1))
    assert [segment.sequence_number for segment in window.listed] == [119]


def test_bit_rates():
    assert window_of(0).bit_rates == (0, 0)
    window = window_of(2, size=1000)
    assert window.bit_rates == (16_000, 16_000)
    window.add_part(Part(2000, True, bytes(8000)))
    window.close_segment()
    window.open_segment("a")
    window.add_part(Part(10, True, bytes(8000)))
    window.close_segment()
    assert window.bit_rates == (32_000, 8000 * 24_000 // 6010)


def test_what_comes_next_is_worth_a_wait():
    window = window_of(3)
    window.add_part(Part(500, True, b"x"))
    window.add_part(Part(500, False, b"", has_media=False))
    assert window.find_part(103, 0)[0] is Answer.READY
    assert window.find_part(103, 1)[0] is Answer.READY
    assert window.find_part(103, 2)[0] is Answer.WAIT
    assert window.find_part(103, 3)[0] is Answer.MISSING
    assert window.find_part(103, -1)[0] is Answer.MISSING
    assert window.find_part(104, 0)[0] is Answer.MISSING
    assert window.find_segment(103)[0] is Answer.MISSING
    assert window.find_segment(104)[0] is Answer.MISSING
    window.close_segment()
    assert window.find_part(104, 0)[0] is Answer.WAIT
    assert window.find_part(103, 2)[0] is Answer.MISSING
    window.end()
    assert window.find_part(104, 0)[0] is Answer.MISSING
    assert window.find_segment(103)[1].duration_ms == 1000


def test_a_segment_without_parts_is_given_up():
    window = window_of(2)
    window.end()
    assert window.last_number == 101
    assert window.next_part == (102, 0)
    with pytest.raises(ValueError, match="ended"):
        window.open_segment("a")
    with pytest.raises(ValueError, match="open"):
        window.add_part(Part(1, True, b"x"))


def test_discontinuities_are_counted_when_they_leave():
    window = Window(TARGETS, Limits(segments=3, seconds=1), first_discontinuity=4)
    for number in range(6):
        window.open_segment(str(number), is_discontinuity=number in (0, 2, 4))
        window.add_part(Part(2000, True, b"x"))
        window.close_segment()
    assert window.discontinuity_sequence == 6
    assert window.init_ids == {"0", "1", "2", "3", "4", "5"}


# Requests -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "directives"),
    [
        ("", Directives()),
        ("token=x&_HLS_msn=5", Directives(5)),
        ("_HLS_msn=5&_HLS_part=0&_HLS_skip=YES", Directives(5, 0, True)),
        ("_HLS_skip=v2", Directives(skip=True)),
        ("_HLS_skip=NO", Directives()),
        ("_HLS_part=1", None),
        ("_HLS_msn=", None),
        ("_HLS_msn=-1", None),
        ("_HLS_msn=1.5", None),
        ("_HLS_msn=+1", None),
        ("_HLS_msn=\u0661", None),
        ("_HLS_msn=" + "9" * 20, None),
        ("_HLS_msn=1&_HLS_msn=2", None),
        ("_HLS_msn=1&_HLS_part=x", None),
        ("x" * 1025, None),
        ("&" * 1000, Directives()),
    ],
)
def test_directives(query, directives):
    assert parse_directives(query) == directives


@pytest.mark.parametrize(
    ("number", "part", "answer"),
    [
        (None, None, Answer.READY),
        (0, None, Answer.READY),
        (102, None, Answer.READY),
        (103, None, Answer.WAIT),
        (104, None, Answer.WAIT),
        (105, None, Answer.BAD),
        (10**18, 0, Answer.BAD),
        (99, 50, Answer.READY),
        (102, 3, Answer.READY),
        (102, 4, Answer.READY),  # the first part of 103
        (102, 10**18, Answer.READY),
        (103, 1, Answer.READY),
        (103, 2, Answer.WAIT),
        (103, 7, Answer.WAIT),
        (103, 8, Answer.BAD),  # 6 parts ahead
        (104, 0, Answer.WAIT),
        (104, 6, Answer.BAD),
    ],
)
def test_blocking_reload(number, part, answer):
    window = window_of(3)
    window.add_part(Part(500, True, b"x"))
    window.add_part(Part(500, False, b"x"))
    assert window.answer(Directives(number, part)) is answer
    window.end()
    assert window.answer(Directives(number, part)) is Answer.READY


def test_a_wait_ends_when_a_segment_ends_without_the_part():
    window = window_of(3)
    window.add_part(Part(500, True, b"x"))
    asked = Directives(103, 1)
    assert window.answer(asked) is Answer.WAIT
    window.close_segment()
    window.open_segment("a")
    assert window.answer(asked) is Answer.WAIT  # for the first part of 104
    window.add_part(Part(500, True, b"x"))
    assert window.answer(asked) is Answer.READY


def test_the_first_request_waits_for_media():
    window = window_of(0)
    assert window.answer(Directives()) is Answer.WAIT
    assert window.answer(Directives(100, 0)) is Answer.WAIT
    window.add_part(Part(500, True, b"x"))
    assert window.answer(Directives(100, 0)) is Answer.READY
    assert window.answer(Directives()) is Answer.WAIT  # for a complete segment
    window = window_of(0, targets=Targets(2000, 0, 2))
    window.add_part(Part(2000, True, b"x"))
    assert window.answer(Directives()) is Answer.WAIT
    assert window.answer(Directives(100, 0)) is Answer.WAIT
    window.close_segment()
    assert window.answer(Directives()) is Answer.READY
    assert window.answer(Directives(100, 0)) is Answer.READY
    assert window.hold_limit_s == 6


# Playlists ----------------------------------------------------------------------------------------------------------------


def test_a_playlist():
    window = Window(TARGETS, Limits(), first_number=7)
    for number in range(2):
        window.open_segment(str(number), date_ms=1_700_000_000_123 + 900 * number, is_discontinuity=number > 0)
        window.add_part(Part(500, True, b"x"))
        window.add_part(Part(400, False, b"empty", has_media=False))
        window.close_segment()
    window.open_segment("1", date_ms=1_700_000_001_923)
    window.add_part(Part(467, True, b"x"))
    text = media_playlist(window, uri=lambda name: f"{name}?s=1", reports=[Report("../b/index.m3u8", 9, 0)])
    assert (
        text
        == """#EXTM3U
#EXT-X-VERSION:9
#EXT-X-TARGETDURATION:2
#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,CAN-SKIP-UNTIL=12.000,HOLD-BACK=6.000,PART-HOLD-BACK=1.500
#EXT-X-PART-INF:PART-TARGET=0.500
#EXT-X-MEDIA-SEQUENCE:7
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-MAP:URI="init-0.mp4?s=1"
#EXT-X-PROGRAM-DATE-TIME:2023-11-14T22:13:20.123Z
#EXT-X-PART:DURATION=0.500,URI="part-7-0.m4s?s=1",INDEPENDENT=YES
#EXT-X-PART:DURATION=0.400,URI="part-7-1.m4s?s=1"
#EXTINF:0.900,
seg-7.m4s?s=1
#EXT-X-DISCONTINUITY
#EXT-X-MAP:URI="init-1.mp4?s=1"
#EXT-X-PROGRAM-DATE-TIME:2023-11-14T22:13:21.023Z
#EXT-X-PART:DURATION=0.500,URI="part-8-0.m4s?s=1",INDEPENDENT=YES
#EXT-X-PART:DURATION=0.400,URI="part-8-1.m4s?s=1"
#EXTINF:0.900,
seg-8.m4s?s=1
#EXT-X-PROGRAM-DATE-TIME:2023-11-14T22:13:21.923Z
#EXT-X-PART:DURATION=0.467,URI="part-9-0.m4s?s=1",INDEPENDENT=YES
#EXT-X-PRELOAD-HINT:TYPE=PART,URI="part-9-1.m4s?s=1"
#EXT-X-RENDITION-REPORT:URI="../b/index.m3u8",LAST-MSN=9,LAST-PART=0
"""
    )
    window.end()
    text = media_playlist(window)
    assert text.endswith("seg-9.m4s\n#EXT-X-ENDLIST\n")
    assert "PRELOAD" not in text


def test_without_parts_there_are_no_tags_of_parts():
    window = window_of(3, targets=Targets(2000, 0, 2))
    window.add_part(Part(500, True, b"x"))
    text = media_playlist(window)
    assert "PART" not in text
    assert "PRELOAD" not in text
    assert not Client().load(text)


def test_a_delta_update_skips_what_is_6_target_durations_away():
    window = window_of(20, targets=Targets(1000, 500, 1), limits=Limits(seconds=1000), part_ms=250)
    whole, delta = media_playlist(window), media_playlist(window, skip=True)
    assert "#EXT-X-SKIP:SKIPPED-SEGMENTS=13\n" in delta
    assert "MAP" not in delta
    assert whole[whole.index("#EXT-X-PROGRAM-DATE-TIME") :].endswith(delta[delta.index("#EXTINF") :])
    window = window_of(7, targets=Targets(1000, 500, 1), limits=Limits(seconds=1000), part_ms=250)
    assert media_playlist(window, skip=True) == media_playlist(window)
    window = window_of(20, targets=Targets(1000, 500, 1), limits=Limits(seconds=1000), part_ms=250)
    window.end()
    assert media_playlist(window, skip=True) == media_playlist(window)


@pytest.mark.parametrize(
    ("name", "resource"),
    [
        (segment_name(12), Resource(12, None, "")),
        (part_name(12, 3), Resource(12, 3, "")),
        (init_name("ab12"), Resource(0, None, "ab12")),
        ("seg-012.m4s", None),
        ("seg-12.mp4", None),
        ("seg-12-1.m4s", None),
        ("part-12.m4s", None),
        ("part-1-2-3.m4s", None),
        ("seg--1.m4s", None),
        ("seg-" + "9" * 5000 + ".m4s", None),
        ("init-../x.mp4", None),
        ("init-.mp4", None),
        ("init-" + "a" * 65 + ".mp4", None),
        ("", None),
        ("seg-\u0661.m4s", None),
    ],
)
def test_names(name, resource):
    assert parse_name(name) == resource


def test_a_multivariant_playlist():
    variants = [
        Variant("hd/index.m3u8", 5_000_000, 4_000_000, ["avc1.64001f", "mp4a.40.2"], 1280, 720, 29.97, "audio"),
        Variant("audio/index.m3u8", 128_000, 130_000, ["mp4a.40.2"]),
    ]
    audio = [
        AudioRendition("audio", "English", language="en", channels=2, is_default=True),
        AudioRendition("audio", 'Deutsch"\n#EXT', "de/index.m3u8", "de"),
    ]
    text = multivariant_playlist(variants, audio)
    assert (
        text
        == """#EXTM3U
#EXT-X-VERSION:9
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="audio",NAME="English",DEFAULT=YES,AUTOSELECT=YES,LANGUAGE="en",CHANNELS="2"
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="audio",NAME="Deutsch#EXT",DEFAULT=NO,AUTOSELECT=YES,LANGUAGE="de",URI="de/index.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=5000000,AVERAGE-BANDWIDTH=4000000,CODECS="avc1.64001f,mp4a.40.2",RESOLUTION=1280x720,\
FRAME-RATE=29.970,AUDIO="audio"
hd/index.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=130000,AVERAGE-BANDWIDTH=130000,CODECS="mp4a.40.2"
audio/index.m3u8
"""
    )
    assert not check_multivariant(text)
    assert "INDEPENDENT" not in multivariant_playlist(variants, has_independent_segments=False)


# With MP4 -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """Five seconds of H.264 with B-frames and AAC."""
    path = tmp_path_factory.mktemp("hls") / "source.mp4"
    source = "-f lavfi -i testsrc2=size=64x48:rate=25 -f lavfi -i sine=sample_rate=48000"
    codecs = "-c:v libx264 -preset veryfast -g 25 -bf 2 -pix_fmt yuv420p -c:a aac -t 5"
    ffmpeg(f"{source} {codecs}", path)
    return path


def ffmpeg(arguments: str, *more: object) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments.split(), *map(str, more)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_ffmpeg_plays_what_is_cut(movie, tmp_path):
    """Every frame of the source is in the segments, and in the parts, with its time."""
    targets = choose_targets(1000, 200, frame_ms=40, gop_ms=1000)
    window = Window(targets, Limits(), first_number=41)
    client = Client()
    with movie.open("rb") as file:
        source = read_movie(file)
        tracks = Tracks()
        tracks.set_headers(source.headers)
        rendition = Rendition(window, Fragmenter(tracks), init_id="a", has_video=True, date_of=lambda time_ms: time_ms)
        violations = []
        for message in source.messages():
            key = message.type_id == VIDEO and video_kind(message.payload) == Kind.KEYFRAME
            if rendition.add(message.type_id, message.timestamp_ms, message.payload, is_keyframe=key):
                violations += client.load(media_playlist(window))
        rendition.finish()
        violations += client.load(media_playlist(window))
    assert not violations
    assert [segment.duration_ms for segment in window.listed] == [1000] * 5
    (tmp_path / init_name("a")).write_bytes(init_segment(tracks.tracks))
    for segment in window.listed:
        (tmp_path / segment_name(segment.sequence_number)).write_bytes(b"".join(segment.data))
    (tmp_path / "index.m3u8").write_text(media_playlist(window))
    wanted = decoded(movie)
    assert decoded(tmp_path / "index.m3u8") == wanted
    assert len(wanted) == 125
    parts = [part for segment in window.listed for part in segment.data]
    (tmp_path / "parts.mp4").write_bytes(b"".join([init_segment(tracks.tracks), *parts]))
    assert decoded(tmp_path / "parts.mp4") == wanted


def decoded(path: Path) -> list[str]:
    """The checksums of all pictures."""
    lines = ffmpeg("-i", path, *["-map", "0:v", "-f", "framemd5", "-"]).splitlines()
    return [line.rsplit(",", 1)[1] for line in lines if not line.startswith("#")]


def test_ffmpegs_own_playlist_passes(movie, tmp_path):
    """The validator accepts segments of another program."""
    options = "-an -c:v copy -f hls -hls_time 1 -hls_list_size 0 -hls_segment_type fmp4 -hls_flags program_date_time"
    ffmpeg("-i", movie, *options.split(), tmp_path / "index.m3u8")
    init = (tmp_path / "init.mp4").read_bytes()
    media = {}
    for path in sorted(tmp_path.glob("*.m4s")):
        whole = tmp_path / f"{path.stem}.mp4"
        whole.write_bytes(init + path.read_bytes())
        with whole.open("rb") as file:
            source = read_movie(file)
            messages = list(source.messages())
            end_ms = source.ends_ms()[VIDEO]
        keys = [video_kind(message.payload) == Kind.KEYFRAME for message in messages]
        start_ms = 1000 * int(path.stem.removeprefix("index"))
        media[path.name] = Media(len(messages), start_ms, start_ms + end_ms, 40, keys[0], any(keys))
    assert len(media) == 5
    assert not Client(media).load((tmp_path / "index.m3u8").read_text())


def test_the_model_of_a_server():
    """A source with other headers follows, and then audio alone."""
    show = Show(choose_targets(1000, 500, frame_ms=40, gop_ms=1000), has_video=True, first_number=5, delta_every=2)
    for time_ms in range(0, 4000, 20):
        if not time_ms % 40:
            show.add(VIDEO, time_ms, key=not time_ms % 1000)
        show.add(AUDIO, time_ms)
    show.restart(has_video=True)
    for time_ms in range(50_000, 53_000, 40):
        show.add(VIDEO, time_ms, key=not time_ms % 1000)
    show.restart(has_video=False)
    for time_ms in range(0, 3000, 20):
        show.add(AUDIO, time_ms)
    show.finish()
    assert not show.violations
    assert [segment.is_discontinuity for segment, _, _ in show.closed] == [index in (4, 7) for index in range(len(show.closed))]
