"""The timeline: the clocks of publishers, and the timestamps that players get."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from rtmpd.media.tags import Kind, audio_kind, video_kind
from rtmpd.media.timestamps import Timeline
from rtmpd.protocol.chunk import ChunkReader

WIRE = Path(__file__).parents[2] / "golden" / "wire"


def run(timeline: Timeline, *stamps: tuple[str, int]) -> list[int]:
    """Stamp frames: ``("a", 20)`` is audio at 20 ms."""
    tracks = {"a": timeline.audio, "v": timeline.video}
    return [timeline.stamp(tracks[name], timestamp & 0xFFFFFFFF) for name, timestamp in stamps]


def both(start: int, stop: int, audio_start: int | None = None) -> list[tuple[str, int]]:
    """Video each 40 ms and audio each 20 ms from *start* to *stop*; *audio_start* is where audio's clock stands at *start*."""
    shift = 0 if audio_start is None else audio_start - start
    frames = []
    for time in range(start, stop, 40):
        frames += [("v", time), ("a", time + shift), ("a", time + 20 + shift)]
    return frames


def times(frames: list[tuple[str, int]]) -> list[int]:
    return [time & 0xFFFFFFFF for _, time in frames]


# A good timeline is left alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 5000, 0xFFFFFF - 200, 2**31 - 200, 2**31, 2**32 - 200, 2**32 - 1])
def test_row_45_a_good_timeline_passes_at_any_time_of_the_clock(start):
    timeline = Timeline()
    frames = both(start, start + 1000)
    assert run(timeline, *frames) == times(frames)
    assert timeline.jumps == 0
    assert timeline.newest == start + 980


def test_row_45_a_stream_of_fifty_days_wraps_and_goes_on():
    timeline = Timeline()
    for time in range(0, 2**32 + 10 * 50_000, 50_000):
        assert run(timeline, ("v", time), ("a", time + 7)) == [time & 0xFFFFFFFF, time + 7 & 0xFFFFFFFF]
    assert timeline.jumps == 0


def test_tracks_that_begin_some_seconds_apart_keep_their_distance():
    for first, second in ((0, 9000), (9000, 0), (0xFFFFFFF0, 5), (5, 0xFFFFFFF0)):
        timeline = Timeline()
        assert run(timeline, ("v", first), ("v", first + 40)) == times([("v", first), ("v", first + 40)])
        assert run(timeline, ("a", second + 60)) == times([("a", second + 60)])
        assert timeline.jumps == 0


@pytest.mark.parametrize("step", [2000, 2001, 30_000, 60_000])
def test_a_gap_is_no_jump(step):
    timeline = Timeline()
    assert run(timeline, ("v", 0), ("a", 0), ("v", step), ("a", step), ("v", step + 40)) == [0, 0, step, step, step + 40]
    assert timeline.jumps == 0


def test_a_track_that_begins_before_the_others_time_0_is_held_at_0():
    # Not at 2**32 less something, which players take for 49 days.
    timeline = Timeline()
    assert run(timeline, ("v", 0), ("a", -21), ("a", -1), ("a", 20), ("v", 40)) == [0, 0, 0, 20, 40]


def test_equal_timestamps_stay_equal():
    timeline = Timeline()
    assert run(timeline, *[("a", 7)] * 3, ("v", 7)) == [7] * 4


@pytest.mark.parametrize("name", [entry["name"] for entry in json.loads(WIRE.joinpath("index.json").read_text())])
def test_the_frames_of_a_recording_keep_their_times(name):
    timeline = Timeline()
    for message in ChunkReader().feed(WIRE.joinpath(f"{name}.c2s.bin").read_bytes()[3073:]):
        if message.type_id == 9 and video_kind(message.payload) not in (Kind.HEADER, Kind.METADATA, Kind.END):
            assert timeline.stamp(timeline.video, message.timestamp) == message.timestamp
        elif message.type_id == 8 and audio_kind(message.payload) == Kind.FRAME:
            assert timeline.stamp(timeline.audio, message.timestamp) == message.timestamp
        elif message.type_id in (8, 9, 18):
            timeline.beside(message.timestamp)
    assert timeline.jumps == 0


# Gaps --------------------------------------------------------------------------------------------------------------------


def tracks_of(start: int, stop: int, *, video: bool = True, audio: bool = True) -> list[tuple[str, int]]:
    return [frame for frame in both(start, stop) if (video if frame[0] == "v" else audio)]


@pytest.mark.parametrize("silent", ["a", "v"])
@pytest.mark.parametrize("length", [61_000, 90_500, 3_600_000, 2**31 + 60_000, 2**32 + 61_000])
@pytest.mark.parametrize("start", [0, 2**32 - 30_000])
def test_row_66_a_track_that_was_silent_for_long_comes_back_in_sync(silent, length, start):
    timeline = Timeline()
    run(timeline, *both(start, start + 1000))
    # The other one runs on, in steps that are gaps themselves.
    other = "v" if silent == "a" else "a"
    for time in range(start + 1000, start + length, 40 if length < 100_000 else 50_000):
        assert run(timeline, (other, time)) == [time & 0xFFFFFFFF]
    frames = [(silent, start + length - 500), (silent, start + length - 480), (other, start + length)]
    assert run(timeline, *frames) == times(frames)
    frames = both(start + length, start + length + 1000)
    assert run(timeline, *frames) == times(frames)
    assert timeline.jumps == 0


@pytest.mark.parametrize("behind", [0, 500, 9_000, 12_000, 60_000])
def test_row_66_a_burst_after_a_stall_keeps_its_times(behind):
    """Audio stalls for two minutes, and then brings what is up to a minute behind the video."""
    timeline = Timeline()
    run(timeline, *both(0, 1000), *tracks_of(1000, 120_000, audio=False))
    burst = [("a", time) for time in range(120_000 - behind, 120_000, 20)]
    assert run(timeline, *burst) == times(burst)
    frames = both(120_000, 121_000)
    assert run(timeline, *frames) == times(frames)
    assert timeline.jumps == 0


@pytest.mark.parametrize("audio_base", [0, 50_000_000])
@pytest.mark.parametrize("first", ["a", "v"])
@pytest.mark.parametrize(("back", "expected"), [(61_150, 61_150), (61_200, 61_200), (61_201, 1200), (100_000, 1200)])
def test_row_66_a_gap_or_jump_of_both_tracks_keeps_them_in_sync(first, audio_base, back, expected):
    """The first to return has been silent for 1.2 s longer than the other one, which may be back within a minute."""
    timeline = Timeline()
    other = "v" if first == "a" else "a"
    base = {"a": audio_base, "v": 0}
    run(timeline, ("v", 0), ("a", audio_base), (other, base[other] + 1200))
    stamped = run(timeline, (first, base[first] + back), (other, base[other] + back + 20), (first, base[first] + back + 40))
    assert stamped == [expected, expected + 20, expected + 40]


def test_row_66_a_clock_that_restarts_while_a_track_is_silent_holds_for_that_track_too():
    timeline = Timeline()
    run(timeline, *both(100_000, 101_000), *tracks_of(101_000, 130_000, audio=False))
    run(timeline, *tracks_of(98_000, 101_480, audio=False))
    newest = timeline.newest
    # Audio is back on the new clock, half a second after its last timestamp on the old one.
    assert run(timeline, ("a", 101_480), ("v", 101_480), ("a", 101_500)) == [newest + 40, newest + 40, newest + 60]


def test_row_66_a_track_that_is_silent_over_two_jumps_comes_back_in_sync():
    timeline = Timeline()
    run(timeline, *both(0, 1000, 50_000_000))
    run(timeline, *tracks_of(200_000, 201_000, audio=False), *tracks_of(400_000, 401_000, audio=False))
    video, audio, audio_after = run(timeline, ("v", 401_000), ("a", 50_000_000 + 401_010), ("a", 50_000_000 + 401_030))
    assert (audio - video, audio_after - video) == (10, 30)


# Stray timestamps at the beginning, and in gaps ----------------------------------------------------------------------------


@pytest.mark.parametrize("stray", [3_000, 5_000, 9_000, 20_000, 5_000_000, 2**31, 2**32 - 5_000])
@pytest.mark.parametrize(
    "beginning",
    [
        [("v", None), ("v", 40), ("a", 20)],
        [("v", None), ("a", 0), ("v", 40), ("a", 20)],
        [("a", None), ("v", 0), ("a", 20), ("v", 40)],
        [("v", 0), ("a", None), ("v", 40), ("a", 20)],
        [("v", 0), ("a", None), ("a", 20), ("v", 40)],
        [("v", None), ("a", 0), ("a", 20), ("a", 40), ("v", 80)],
    ],
)
def test_row_66_a_stray_timestamp_at_the_beginning_moves_no_track(stray, beginning):
    timeline = Timeline()
    run(timeline, *[(name, stray if time is None else time) for name, time in beginning])
    frames = both(100, 30_000)
    run(timeline, *frames)
    video, audio = run(timeline, ("v", 30_000), ("a", 30_007))
    assert audio - video & 0xFFFFFFFF == 7


@pytest.mark.parametrize("stray", [3_000, 10_000, 30_000, 59_000])
@pytest.mark.parametrize("name", ["a", "v"])
def test_row_66_a_stray_timestamp_that_looks_like_a_gap_moves_no_track(stray, name):
    timeline = Timeline()
    run(timeline, *both(100_000, 110_000))
    run(timeline, (name, 110_000 + stray))
    run(timeline, *both(110_040, 175_000))
    frames = both(175_000, 176_000)
    assert run(timeline, *frames) == times(frames)


# Jitter ------------------------------------------------------------------------------------------------------------------


def test_a_small_step_back_is_held_level_until_the_clock_is_past_it():
    timeline = Timeline()
    stamps = [("v", 1000), ("v", 1040), ("v", 1000), ("v", 1020), ("v", 1039), ("v", 1041), ("v", 1080)]
    assert run(timeline, *stamps) == [1000, 1040, 1040, 1040, 1040, 1041, 1080]
    assert timeline.jumps == 0


def test_jitter_of_one_track_does_not_hold_the_other():
    timeline = Timeline()
    assert run(timeline, ("a", 1000), ("v", 3000), ("a", 1020), ("v", 2990), ("a", 1010), ("a", 1040), ("v", 3040)) == [
        *(1000, 3000, 1020, 3000, 1020, 1040, 3040),
    ]


@pytest.mark.parametrize("step", [-1, -500, -2000])
def test_a_step_back_of_up_to_two_seconds_is_jitter(step):
    timeline = Timeline()
    assert run(timeline, ("v", 5000), ("v", 5000 + step), ("v", 5040)) == [5000, 5000, 5040]
    assert timeline.jumps == 0


def test_jitter_across_the_wrap():
    timeline = Timeline()
    stamps = [("v", 0xFFFFFFF0), ("v", 0x10), ("v", 0xFFFFFFF8), ("v", 0x20)]
    assert run(timeline, *stamps) == [0xFFFFFFF0, 0x10, 0x10, 0x20]


# Jumps -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (100_000, 0),
        (100_000, 50_000),
        (100_000, 97_000),
        (8_000, 0),
        (3_000, 0),
        (100_000, 200_000),
        (0, 2**31 + 5),
        (2**31 + 5, 0),
        (0, 2**32 - 61_000),
        (2**32 - 61_000, 0),
        (2**32 - 500, 2**31),
    ],
)
def test_row_66_a_jump_goes_on_at_the_newest_time_with_both_tracks_in_step(before, after):
    timeline = Timeline()
    frames = both(before, before + 1000)
    assert run(timeline, *frames) == times(frames)
    newest = before + 980
    # Video jumps first: it is placed at the newest time, and audio keeps its distance to it.
    expected = [newest + time - after & 0xFFFFFFFF for _, time in both(after, after + 2000)]
    assert run(timeline, *both(after, after + 2000)) == expected
    assert timeline.jumps == 2


def test_row_66_a_restart_at_0_holds_no_frame_level():
    timeline = Timeline()
    run(timeline, *both(0, 8000))
    out = [stamp for (name, _), stamp in zip(both(0, 8000), run(timeline, *both(0, 8000)), strict=True) if name == "v"]
    assert [b - a for a, b in pairwise(out)] == [40] * 199


@pytest.mark.parametrize("length", [2_400, 5_000, 9_000, 60_000, 100_000])
def test_row_66_a_clip_in_a_loop_is_a_timeline_that_runs_on(length):
    timeline = Timeline()
    out = [stamp for _ in range(5) for stamp in run(timeline, *both(0, length))]
    assert all(0 <= b - a <= 40 or a - b == 20 for a, b in pairwise(out))
    assert out[-1] == timeline.newest == 5 * (length - 20)
    assert timeline.jumps == 2 * 4


def test_row_66_the_audio_that_jumps_late_follows_the_video():
    timeline = Timeline()
    run(timeline, ("v", 100_000), ("a", 99_700), ("v", 100_040))
    # Video is on the new clock, audio still on the old one for some frames.
    assert run(timeline, ("v", 0), ("a", 99_720), ("v", 40), ("a", 99_740), ("a", 10), ("v", 80)) == [
        *(100_040, 99_720, 100_080, 99_740, 100_050, 100_120),
    ]
    assert timeline.jumps == 2


def test_row_66_a_track_that_jumps_alone_leaves_the_other_where_it_is():
    timeline = Timeline()
    run(timeline, ("v", 100_000), ("a", 100_000))
    assert run(timeline, ("a", 500), ("v", 100_040), ("a", 520), ("v", 100_080)) == [100_000, 100_040, 100_020, 100_080]
    assert timeline.jumps == 1


@pytest.mark.parametrize("audio_base", [50_000_000, 2**31, 2**32 - 20_000])
def test_row_66_audio_and_video_from_different_bases_run_side_by_side(audio_base):
    timeline = Timeline()
    stamped = run(timeline, *both(0, 2000, audio_base))
    assert stamped == [time for _, time in both(0, 2000)]
    assert timeline.jumps == 0


@pytest.mark.parametrize(("apart", "expected"), [(10_000, 10_000), (10_001, 0), (-10_000, -10_000), (-10_001, 0)])
def test_row_66_tracks_of_one_base_are_within_ten_seconds_of_each_other(apart, expected):
    timeline = Timeline()
    assert run(timeline, ("v", 50_000), ("a", 50_000 + apart)) == [50_000, 50_000 + expected]


def test_row_66_tracks_of_different_bases_jump_side_by_side_too():
    timeline = Timeline()
    run(timeline, *both(1000, 100_000, 50_000_000))
    stamped = run(timeline, *both(1000, 3000, 50_000_000))
    assert stamped == [100_000 - 20 + time for _, time in both(0, 2000)]


@pytest.mark.parametrize("stray", [0, 95_000, 50_000, 300_000, 2**31 + 100_000])
@pytest.mark.parametrize("count", [1, 3])
def test_row_66_stray_timestamps_do_not_part_the_tracks(stray, count):
    timeline = Timeline()
    run(timeline, *both(100_000, 101_000))
    strays = run(timeline, *[("a", stray + 20 * i) for i in range(count)])
    assert strays[0] == 100_980
    frames = both(101_080, 102_000)
    assert run(timeline, *frames) == times(frames)
    frames = both(102_000, 120_000)
    assert run(timeline, *frames) == times(frames)


def test_row_66_both_tracks_may_stray_and_come_back():
    timeline = Timeline()
    run(timeline, *both(100_000, 101_000))
    assert run(timeline, ("v", 0), ("a", 0), ("v", 40)) == [100_980, 100_980, 101_020]
    frames = both(101_080, 110_000)
    assert run(timeline, *frames) == times(frames)
    assert timeline.beside(109_000) == 109_000


def test_row_66_a_later_jump_is_not_taken_for_the_way_back():
    timeline = Timeline()
    run(timeline, *both(100_000, 101_000))
    run(timeline, *both(0, 2000))
    newest = timeline.newest
    # Two seconds on the new clock are no stray: the old clock is a jump like any other.
    assert run(timeline, ("v", 200_000), ("a", 200_000)) == [newest, newest]
    assert timeline.jumps == 4


def test_a_jump_into_the_future_of_the_wrap_is_a_jump_back():
    timeline = Timeline()
    assert run(timeline, ("v", 100), ("v", 2**32 - 30_000), ("v", 2**32 - 29_960)) == [100, 100, 140]
    assert timeline.jumps == 1


# Headers and metadata ----------------------------------------------------------------------------------------------------


def test_beside_before_the_first_frame_keeps_the_timestamp():
    timeline = Timeline()
    assert timeline.beside(12345) == 12345
    assert timeline.newest == -1
    assert run(timeline, ("v", 7)) == [7]


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        (100_000, 100_000),
        (99_990, 99_990),
        (90_000, 90_000),
        (110_000, 110_000),
        (0, 100_000),
        (89_999, 100_000),
        (2**31, 100_000),
    ],
)
def test_beside_keeps_a_near_timestamp_or_returns_the_newest(timestamp, expected):
    timeline = Timeline()
    run(timeline, ("v", 99_960), ("v", 100_000))
    assert timeline.beside(timestamp) == expected
    # It moves nothing.
    assert timeline.newest == 100_000
    assert run(timeline, ("v", 100_040), ("a", 100_050)) == [100_040, 100_050]


def test_beside_follows_a_jump():
    timeline = Timeline()
    run(timeline, ("v", 100_000), ("v", 0), ("v", 40))
    assert timeline.beside(50) == 100_050
    assert timeline.beside(0) == 100_000


def test_beside_wraps():
    timeline = Timeline()
    run(timeline, ("v", 2**32 - 20), ("v", 20))
    assert timeline.newest == 2**32 + 20
    assert timeline.beside(2**32 - 10) == 2**32 - 10
    assert timeline.beside(30) == 30


# Another timeline -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_ms", [0, 1, -1, 3000, -99_000, 3_600_000, 2**32 - 100_500])
@pytest.mark.parametrize("start", [100_000, 2**32 - 40])
def test_all_that_comes_after_a_shift_is_later_by_it(start, by_ms):
    moved, same = Timeline(), Timeline()
    before, after = both(start, start + 1000), both(start + 1000, start + 3000)
    assert run(moved, *before) == run(same, *before)
    moved.shift(by_ms)
    assert moved.newest == same.newest + by_ms
    assert moved.beside(start + 900) == (same.beside(start + 900) + by_ms) % 2**32
    assert run(moved, *after) == [(stamp + by_ms) % 2**32 for stamp in run(same, *after)]
    # Jumps, strays and gaps are treated as before.
    unusual = (("v", 7), ("a", 9), ("v", 47), ("a", 30), ("v", start), ("v", 87), ("a", 5_000_000), ("v", 5_000_000))
    assert run(moved, *unusual) == [(stamp + by_ms) % 2**32 for stamp in run(same, *unusual)]


def test_a_shift_before_the_first_frame_changes_nothing():
    timeline = Timeline()
    timeline.shift(0)
    assert not timeline.running
    assert timeline.beside(7) == 7
    assert run(timeline, ("v", 100)) == [100]
