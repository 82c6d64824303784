"""Identical copies: what is recognised as one, and what is emitted when."""

from __future__ import annotations

import random

import pytest

from rtmpd.live.copies import WINDOW_MS, CopyMatcher, CopyMerger, CopyOffsets
from rtmpd.live.framing import AUDIO, VIDEO

STEP_MS = 40


def frame(number, size=1500, key=False, salt=0):
    """A coded video frame that no other number or salt has."""
    return (b"\x17" if key else b"\x27") + b"\1\0\0\0" + random.Random(f"{number} {salt}").randbytes(size)


def sound(number, size=200, salt=0):
    return b"\xaf\1" + random.Random(f"audio {number} {salt}").randbytes(size)


# Recognition --------------------------------------------------------------------------------------------------------------


def note_video(matcher, source, numbers, offset_ms=0, **options):
    for number in numbers:
        matcher.note(source, VIDEO, (number * STEP_MS + offset_ms) % 2**32, frame(number, **options))


def test_sources_match_once_24_frames_agree():
    matcher = CopyMatcher()
    note_video(matcher, "a", range(100))
    note_video(matcher, "b", range(50, 73), offset_ms=7000)
    assert matcher.match("a", "b") is None
    note_video(matcher, "b", [73], offset_ms=7000)
    assert matcher.match("a", "b") == (7000, 7000)
    assert matcher.match("b", "a") == (-7000, -7000)


def test_the_timestamps_of_a_copy_may_have_wrapped():
    matcher = CopyMatcher()
    note_video(matcher, "a", range(100))
    note_video(matcher, "b", range(100), offset_ms=2**32 - 400)
    assert matcher.match("a", "b") == (-400, -400)


def test_audio_has_an_offset_of_its_own():
    matcher = CopyMatcher()
    for source, video_ms, audio_ms in (("a", 0, 0), ("b", 500, 510)):
        note_video(matcher, source, range(30), offset_ms=video_ms)
        for number in range(10):
            matcher.note(source, AUDIO, number * 21 + audio_ms, sound(number))
    assert matcher.match("a", "b") == CopyOffsets(500, 510)


def test_two_encoders_that_make_the_same_of_a_picture_and_a_tone_do_not_match():
    """A tone is periodic: its frames are the same seconds later, which no single encoder would send with the same pictures."""
    matcher = CopyMatcher()
    for source, audio_ms in (("a", 0), ("b", 2500)):
        note_video(matcher, source, range(30))
        for number in range(10):
            matcher.note(source, AUDIO, number * 21 + audio_ms, sound(number))
    assert matcher.match("a", "b") is None


def test_the_same_pictures_with_other_sound_do_not_match():
    """Two encoders of one test pattern send the same coded pictures."""
    matcher = CopyMatcher()
    for source, salt in (("a", 0), ("b", 1)):
        note_video(matcher, source, range(60))
        for number in range(60):
            matcher.note(source, AUDIO, number * 21, sound(number, salt=salt))
    assert matcher.match("a", "b") is None


def test_a_source_without_video_matches_by_audio():
    matcher = CopyMatcher()
    for source in "ab":
        for number in range(24):
            matcher.note(source, AUDIO, number * 21, sound(number))
    assert matcher.match("a", "b") == (0, 0)


def test_unknown_and_forgotten_sources_do_not_match():
    matcher = CopyMatcher()
    for source in "ab":
        note_video(matcher, source, range(30))
    assert matcher.match("a", "c") is None
    matcher.forget("b")
    matcher.forget("c")
    assert matcher.match("a", "b") is None


def test_two_encoders_of_one_scene_do_not_match():
    """Silence and still pictures are the same in both, and so is the sound of one mixer."""
    matcher = CopyMatcher()
    for source in "ab":
        for number in range(200):
            key = number % 50 == 0
            still = frame(number % 50, size=40 if not key else 3000, key=key, salt=0 if number % 3 else source)
            matcher.note(source, VIDEO, number * STEP_MS, still if number < 100 else frame(number, salt=source))
            matcher.note(source, AUDIO, number * STEP_MS, b"\xaf\1" + bytes(80))
            matcher.note(source, AUDIO, number * STEP_MS + 20, sound(number))
    assert matcher.match("a", "b") is None


def test_frames_that_agree_on_no_offset_do_not_match():
    matcher = CopyMatcher()
    note_video(matcher, "a", range(60))
    for number in range(60):
        matcher.note("b", VIDEO, number * 47, frame(number))
    assert matcher.match("a", "b") is None


def test_a_payload_that_left_the_window_is_no_repetition():
    matcher = CopyMatcher()
    later = WINDOW_MS // STEP_MS + 10
    for source in "ab":
        note_video(matcher, source, range(30))
        for number in range(30):
            matcher.note(source, VIDEO, (number + later) * STEP_MS, frame(number))
    assert matcher.match("a", "b") == (0, 0)


def test_repeated_payloads_are_no_evidence_while_one_of_them_is_in_the_window():
    matcher = CopyMatcher()
    for source in "ab":
        note_video(matcher, source, range(30))
        for number in range(30):
            matcher.note(source, VIDEO, (number + 30) * STEP_MS, frame(number))
    assert matcher.match("a", "b") is None


# Merging ------------------------------------------------------------------------------------------------------------------


class Merge:
    """A merger whose copies send video frames by number; what is emitted, by number."""

    def __init__(self, *copies, **options):
        self.merger = CopyMerger(**options)
        self.names = {frame(number): number for number in range(200)}
        for copy in copies:
            self.merger.add(copy)

    def take(self, copy, *numbers, salt=0):
        found = []
        for number in numbers:
            found += self.merger.take(copy, VIDEO, number * STEP_MS, frame(number, salt=salt))
        return self.numbers(found)

    def numbers(self, frames):
        assert all(payload not in self.names or self.names[payload] * STEP_MS == time for _, time, payload in frames)
        return [self.names.get(payload, "other") for _, _, payload in frames]

    def expire(self, *times):
        return self.numbers([found for now_s in times for found in self.merger.expire(now_s)])

    def remove(self, copy):
        return self.numbers(self.merger.remove(copy))


def ticks(from_s, until_s):
    return [from_s + number / 20 for number in range(1, round((until_s - from_s) * 20) + 1)]


def both_at(number, *copies, **options):
    """A merger whose copies have all sent the frames before a number."""
    merge = Merge(*copies, **options)
    for copy in copies:
        merge.take(copy, *range(number))
    merge.expire(0.0)
    return merge


def test_each_frame_comes_from_the_copy_that_is_first():
    merge = both_at(20, "a", "b")
    assert merge.take("a", 20) == [20]
    assert merge.take("b", 20) == []
    assert merge.take("b", 21, 22) == [21, 22]
    assert merge.take("a", 21, 22, 23) == [23]
    assert merge.merger.counters == (20 + 3, 0, 0, 0, 0)


def test_the_end_of_the_faster_copy_leaves_no_gap():
    merge = both_at(20, "a", "b")
    assert merge.take("a", *range(20, 60)) == [*range(20, 60)]
    assert merge.remove("a") == []
    assert merge.take("b", *range(20, 65)) == [*range(60, 65)]


def test_a_copy_that_leaves_frames_out_waits_for_one_that_is_behind():
    merge = both_at(20, "a", "b")
    assert merge.take("a", *range(20, 30)) == [*range(20, 30)]
    assert merge.take("a", 32, 33, 34) == []
    assert merge.take("b", *range(20, 30)) == []
    assert merge.take("b", 30) == [30]
    assert merge.take("b", 31) == [31]
    assert merge.take("b", 32) == [32, 33, 34]
    assert merge.take("a", 35) == [35]
    assert merge.merger.counters.held == 3


def test_what_no_copy_brings_is_not_waited_for():
    merge = both_at(20, "a", "b")
    assert merge.take("a", 20, 24) == [20]
    # The other one has left more out, or less, or the same.
    assert merge.take("b", 20, 24) == [24]
    assert merge.take("b", 28) == []
    assert merge.take("a", 26) == [26]
    assert merge.take("a", 30) == [28]


def test_a_copy_that_is_behind_nothing_waits_for_nothing():
    merge = both_at(20, "a", "b")
    merge.take("a", *range(20, 30))
    assert merge.take("b", 25, 29, 30) == [30]
    alone = both_at(20, "a")
    assert alone.take("a", 50) == [50]


def test_a_copy_that_joins_ahead_waits_until_the_others_are_there():
    merge = both_at(20, "a")
    merge.merger.add("b")
    assert merge.take("b", 25, 26, 27) == []
    assert merge.take("a", *range(20, 26)) == [*range(20, 26), 26, 27]
    assert merge.take("b", 28) == [28]


def test_a_copy_that_joins_behind_adds_nothing_until_it_leads():
    merge = both_at(60, "a")
    merge.merger.add("b")
    assert merge.take("b", *range(5, 60)) == []
    assert merge.take("b", 60) == [60]


def test_a_copy_that_ends_is_not_waited_for():
    merge = both_at(20, "a", "b")
    merge.take("a", 20)
    assert merge.take("a", 22, 23) == []
    assert merge.remove("b") == [22, 23]


def test_what_an_ended_copy_has_brought_is_not_lost():
    merge = both_at(20, "a", "b")
    assert merge.take("a", 20, 22, 23) == [20]
    assert merge.remove("a") == []
    assert merge.take("b", 20, 21) == [21]
    assert merge.take("b", 24) == [22, 23, 24]


def test_a_hold_ends_half_a_second_after_the_other_copy_should_have_come():
    merge = both_at(20, "a", "b")
    merge.take("a", *range(20, 45))  # 1 s
    assert merge.take("a", 47) == []
    # It was 28 frames behind: 1.12 s, and 0.5 s.
    assert merge.expire(*ticks(0, 1.6)) == []
    assert merge.expire(*ticks(1.6, 1.7)) == [47]
    # The silent copy is not waited for again, until it sends something.
    assert merge.take("a", 50) == [50]
    assert merge.take("b", *range(20, 30)) == []
    assert merge.take("a", 52) == []
    # What comes too late is dropped.
    assert merge.take("b", *range(30, 53)) == [51, 52]
    assert merge.merger.counters.late == 2 + 2


def test_a_late_tick_ends_no_hold():
    """The frames of the other copy are still to be read."""
    merge = both_at(20, "a", "b")
    assert merge.take("a", 21) == []
    assert merge.expire(5.0) == []
    assert merge.take("b", 20, 21) == [20, 21]


def test_a_copy_that_is_too_far_behind_is_not_waited_for():
    merge = both_at(20, "a", "b")
    for number in range(20, 160):
        merge.take("a", number)
    assert merge.take("a", 170) == [170]
    merge = both_at(20, "a", "b", max_wait_ms=200)
    merge.take("a", *range(20, 25))
    assert merge.take("a", 27) == [27]


def test_held_bytes_are_bounded():
    merge = both_at(20, "a", "b", max_held_bytes=4000)
    assert merge.take("a", 21, 22) == []
    assert merge.take("a", 23) == [21, 22, 23]


def test_held_bytes_of_ended_copies_count():
    merge = both_at(20, "a", "b", "c", max_held_bytes=4000)
    assert merge.take("a", 21, 22) == []
    assert merge.remove("a") == []
    assert merge.take("b", 23) == [21, 22, 23]


def test_one_different_frame_breaks_nothing():
    merge = both_at(20, "a", "b")
    assert merge.take("a", 20, 21) == [20, 21]
    assert merge.take("b", 20) == []
    assert merge.take("b", 21, salt=1) == []
    # It continues what was not emitted, until it matches again.
    assert merge.take("b", 22) == []
    assert merge.take("a", 22) == [22]
    assert merge.take("b", 23) == [23]
    assert merge.take("b", *range(24, 60)) == [*range(24, 60)]
    assert merge.merger.counters.mismatches == 1
    assert not merge.merger.broken("b")


def test_a_copy_that_differs_from_some_point_on_is_broken():
    merge = both_at(20, "a", "b")
    merge.take("a", *range(20, 40))
    merge.take("b", 20, 21)
    for number in range(22, 26):
        assert merge.take("b", number, salt=1) == []
        assert not merge.merger.broken("b")
    assert merge.take("b", 26, salt=1) == []
    assert merge.merger.broken("b")
    assert not merge.merger.broken("a")
    assert merge.take("b", 27, 45, 46) == []
    assert merge.take("a", 40, 45) == [40, 45]
    assert merge.merger.counters.mismatches == 5


def test_a_held_copy_can_turn_out_to_be_broken():
    merge = both_at(20, "a", "b")
    assert merge.take("b", 21, 22, 23, 24, 25, 26, salt=1) == []
    assert merge.take("a", *range(20, 40)) == [*range(20, 40)]
    assert merge.merger.broken("b")
    assert not merge.merger.broken("a")
    assert merge.merger.counters.mismatches == 5


def test_a_jump_of_the_clock_breaks_a_copy():
    merge = both_at(20, "a", "b")
    assert merge.merger.take("a", VIDEO, 2**31, b"\x27\1") == []
    assert merge.merger.broken("a")
    assert merge.take("a", 20) == []
    assert merge.take("b", 20) == [20]


@pytest.mark.parametrize("start", [0, 2**32 - 400])
def test_copies_have_clocks_of_their_own(start):
    merger, found = CopyMerger(), []
    merger.add("a")
    merger.add("b", CopyOffsets(7000, 7010))
    merger.add("c", CopyOffsets(-500, -500), relative_to="b")
    for number in range(30):
        time_ms = start + number * STEP_MS
        for copy, video_ms, audio_ms in (("a", 0, 0), ("b", 7000, 7010), ("c", 6500, 6510)):
            if copy != "a" or number < 20:
                found += merger.take(copy, VIDEO, (time_ms + video_ms) % 2**32, frame(number))
                found += merger.take(copy, AUDIO, (time_ms + audio_ms) % 2**32, sound(number))
    video = [(number, (start + number * STEP_MS) % 2**32) for number in range(30)]
    assert [(payload, time) for type_id, time, payload in found if type_id == VIDEO] == [(frame(n), time) for n, time in video]
    assert [(payload, time) for type_id, time, payload in found if type_id == AUDIO] == [(sound(n), time) for n, time in video]


def test_audio_waits_with_the_video_of_its_copy():
    merge = both_at(20, "a", "b")
    for number in range(20):
        merge.merger.take("a", AUDIO, number * STEP_MS, sound(number))
        merge.merger.take("b", AUDIO, number * STEP_MS, sound(number))
    assert merge.take("a", 21) == []
    assert merge.merger.take("a", AUDIO, 20 * STEP_MS, sound(20)) == []
    merge.take("b", 20)
    found = merge.merger.take("b", VIDEO, 21 * STEP_MS, frame(21))
    assert [payload for _, _, payload in found] == [frame(21), sound(20)]


def test_silence_is_told_apart_by_its_place():
    merger, silence = CopyMerger(), b"\xaf\1" + bytes(6)
    merger.add("a")
    merger.add("b")
    found = []
    for number in range(100):
        found += merger.take("a", AUDIO, number * 21, silence)
        if number not in (50, 51):
            found += merger.take("b", AUDIO, number * 21 + number % 2, silence)
    found += merger.take("b", AUDIO, 2100, sound(1))
    assert [time for _, time, _ in found] == [number * 21 for number in range(101)]
    assert merger.counters.mismatches == 0


def test_several_tracks_have_the_same_timestamps():
    merger, found = CopyMerger(), []
    merger.add("a")
    merger.add("b")
    for number in range(100):
        for copy in "ab":
            if copy == "b" or not 40 <= number < 60:
                for track in range(3):
                    found += merger.take(copy, VIDEO, number * STEP_MS, frame(number, salt=track))
    assert len(found) == 300
    assert {payload for _, _, payload in found} == {frame(n, salt=track) for n in range(100) for track in range(3)}
    assert merger.counters.mismatches == 0


def test_a_sequence_header_inside_the_stream_is_taken_once_and_in_its_place():
    merge = both_at(20, "a", "b")
    header = b"\x17\0\0\0\0new"
    merge.take("a", 20)
    assert merge.merger.take("a", VIDEO, 20 * STEP_MS, header) == [(VIDEO, 20 * STEP_MS, header)]
    assert merge.take("a", 21) == [21]
    assert merge.take("b", 20) == []
    assert merge.merger.take("b", VIDEO, 20 * STEP_MS, header) == []
    assert merge.take("b", 21, 22) == [22]


def test_a_frame_that_is_stamped_back_stays_in_its_place():
    merger = CopyMerger()
    merger.add("a")
    merger.add("b")
    found = []
    times = [0, 40, 80, 70, 120]
    for copy in "ab":
        for number, time_ms in enumerate(times):
            found += merger.take(copy, VIDEO, time_ms, frame(number))
    assert [(time, payload) for _, time, payload in found] == [(t, frame(n)) for n, t in enumerate([0, 40, 80, 80, 120])]


def test_long_steps_of_both_copies_become_usual():
    """An encoder with a variable frame rate, whose second copy is behind."""
    merge = both_at(20, "a", "b")
    number, late = 19, []
    for turn in range(6):
        number += 3
        late.append(number)
        waits = merge.take("a", number) == []
        assert waits is (turn < 4)
        merge.take("b", number)
        for _ in range(8):
            number += 1
            merge.take("a", number)
            merge.take("b", number)


def test_what_only_one_copy_has_brought_is_counted_when_it_leaves_the_window():
    merge = both_at(20, "a", "b")
    merge.take("a", *range(20, 23))
    merge.take("b", *range(22, 30))
    merge.take("a", *range(23, 30))
    merge.merger.take("a", VIDEO, 30 * STEP_MS, frame(30))
    assert merge.merger.counters.filled == 0
    for number in range(31, 31 + WINDOW_MS // STEP_MS):
        merge.merger.take("a", VIDEO, number * STEP_MS, frame(number))
    assert merge.merger.counters.filled == 2 + 1 - 1


def test_the_lag_of_a_copy_is_media_time():
    merge = both_at(20, "a", "b")
    merge.take("a", *range(20, 30))
    assert merge.merger.lag_ms("a") == 0
    assert merge.merger.lag_ms("b") == 10 * STEP_MS
    merge.merger.add("c")
    assert merge.merger.lag_ms("c") == 0
