"""The health of a source: each rule, its precision, and late ticks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.live.health import Fault, Health, HealthFigures, HealthRules

TICK_S = 0.05
ALL = HealthRules(
    stall_timeout_s=2.0,
    frame_rate_floor=20.0,
    keyframe_timeout_s=5.0,
    bitrate_floor=100_000,
    frozen_timeout_s=4.0,
    frozen_frame_bytes=60,
    silence_timeout_s=6.0,
    silence_frame_bytes=20,
)


class Publisher:
    """Sends 25 frames and 50 audio messages a second, on a clock of its own, and is judged each 50 ms."""

    def __init__(self, rules=ALL, start_s=1000.0):
        self.health = Health(rules)
        self.now_s = start_s
        self.sent = HealthFigures(has_video=True, has_audio=True)
        self.faults = []
        self.video_due = self.audio_due = 0.0
        self.frame = 0

    def run(self, seconds, fps=25.0, inter=1000, audio=100, keyframe_every=50, ticks=True):
        """Send for some seconds; *audio* 0: none."""
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            frames = keys = inter_frames = sounds = 0
            self.video_due += TICK_S * fps
            while self.video_due >= 1:
                self.video_due -= 1
                self.frame += 1
                key = bool(keyframe_every) and self.frame % keyframe_every == 1 % keyframe_every
                frames, keys, inter_frames = frames + 1, keys + key, inter_frames + (not key)
            self.audio_due += TICK_S * (50 if audio else 0)
            sounds, self.audio_due = int(self.audio_due), self.audio_due % 1
            sent = self.sent
            self.sent = sent._replace(
                messages=sent.messages + frames + sounds,
                bytes=sent.bytes + inter_frames * inter + keys * 8000 + sounds * audio,
                video_frames=sent.video_frames + frames,
                keyframes=sent.keyframes + keys,
                largest_inter_bytes=inter if inter_frames else 0,
                largest_audio_bytes=audio if sounds else 0,
            )
            if ticks:
                self.tick()
        return self

    def tick(self):
        if self.health.tick(self.now_s, self.sent):
            self.faults.append((round(self.now_s - 1000, 2), self.health.fault, self.health.text))
        self.sent = self.sent._replace(largest_inter_bytes=0, largest_audio_bytes=0)

    def idle(self, seconds):
        return self.run(seconds, fps=0, audio=0)


def test_a_source_that_has_sent_nothing_is_not_healthy():
    publisher = Publisher().idle(10)
    assert publisher.faults == []
    assert publisher.health.fault is Fault.STALLED
    assert publisher.health.text == "it has sent nothing"
    assert publisher.health.healthy_since_s is None


def test_a_source_is_healthy_from_its_first_message():
    publisher = Publisher().idle(1).run(60)
    assert publisher.faults == [(1.05, None, "")]
    assert publisher.health.healthy_since_s == pytest.approx(1001.05)


def test_a_stall_is_declared_in_time_and_ends_with_the_next_message():
    publisher = Publisher(HealthRules(stall_timeout_s=2.0)).run(10).idle(3).run(1)
    (_, *_), (stalled_s, fault, text), (ended_s, *healthy) = publisher.faults
    assert fault is Fault.STALLED
    assert text == "no media for 2.0 s (stall_timeout_s)"
    assert 11.85 <= stalled_s <= 12.0
    assert (ended_s, healthy) == (13.05, [None, ""])
    assert publisher.health.healthy_since_s == pytest.approx(1013.05)


@settings(deadline=None)
@given(st.data(), st.sampled_from([0.3, 1.0, 2.0]))
def test_a_stall_is_never_declared_too_late_nor_two_ticks_too_early(data, timeout_s):
    """Ticks of 50 ms or less; messages in between, at any time."""
    health, now_s, messages, last_s = Health(HealthRules(stall_timeout_s=timeout_s)), 50.0, 0, None
    gaps = data.draw(st.lists(st.floats(0.001, timeout_s - 0.11), min_size=1, max_size=20))
    arrivals = [50.0 + sum(gaps[: n + 1]) for n in range(len(gaps))]
    steps = data.draw(st.lists(st.floats(0.01, 0.05), min_size=1, max_size=20))
    turn = 0
    while now_s < arrivals[-1] + timeout_s + 0.1:
        before_s = now_s
        now_s += steps[turn % len(steps)]
        turn += 1
        came = [time_s for time_s in arrivals if before_s < time_s <= now_s]
        messages += len(came)
        last_s = came[-1] if came else last_s
        changed = health.tick(now_s, HealthFigures(messages=messages, bytes=messages))
        if changed and health.fault is not None:
            assert last_s == arrivals[-1]
            assert timeout_s - 0.1001 <= now_s - last_s <= timeout_s
    assert health.fault is Fault.STALLED


def test_a_late_tick_gives_the_next_one_the_word():
    publisher = Publisher().run(10)
    # The event loop is busy for 3 s. The tick comes before the messages are read.
    publisher.now_s += 3.0
    publisher.tick()
    publisher.run(20)
    assert len(publisher.faults) == 1
    # Now nothing has come meanwhile.
    publisher.now_s += 3.0
    publisher.tick()
    assert publisher.health.fault is None
    publisher.idle(TICK_S)
    assert publisher.health.fault is Fault.STALLED


def test_late_ticks_in_a_row_still_see_a_stall():
    publisher = Publisher(HealthRules(stall_timeout_s=2.0)).run(10)
    for _ in range(20):
        publisher.now_s += 0.2
        publisher.tick()
    assert publisher.faults[1][:2] == (12.0, Fault.STALLED)


def test_a_backlog_that_is_read_within_a_late_tick_is_no_stall():
    publisher = Publisher().run(10).run(3, ticks=False)
    publisher.tick()
    publisher.run(10)
    assert len(publisher.faults) == 1


def test_a_low_frame_rate_recovers_at_110_percent():
    publisher = Publisher().run(10).run(10, fps=18).run(10, fps=21).run(10)
    assert [fault for _, fault, _ in publisher.faults] == [None, Fault.LOW_FRAME_RATE, None]
    assert publisher.faults[1][2].startswith("19.")
    assert publisher.faults[1][2].endswith(" frames/s, less than 20 (frame_rate_floor)")
    # Over 3 s.
    assert 11 < publisher.faults[1][0] < 14
    assert 30 < publisher.faults[2][0] < 33


def test_a_low_bitrate_recovers_at_110_percent():
    rules = HealthRules(bitrate_floor=100_000)
    publisher = Publisher(rules)
    publisher.run(10, inter=500, keyframe_every=0).run(10, inter=450, audio=0, keyframe_every=0)
    publisher.run(10, inter=520, audio=0, keyframe_every=0)
    assert publisher.health.fault is Fault.LOW_BITRATE
    publisher.run(10, inter=600, audio=0, keyframe_every=0)
    assert [fault for _, fault, _ in publisher.faults] == [None, Fault.LOW_BITRATE, None]
    assert publisher.faults[1][2].endswith(" kbit/s, less than 100 (bitrate_floor)")


def test_rates_are_not_judged_in_the_first_seconds():
    publisher = Publisher(HealthRules(frame_rate_floor=20, bitrate_floor=10**9)).run(2.9, fps=1)
    assert publisher.health.fault is None
    publisher.run(0.3, fps=1)
    assert publisher.health.fault is Fault.LOW_FRAME_RATE
    assert publisher.faults[1][0] == pytest.approx(3.05, abs=0.06)


def test_keyframes_must_come():
    publisher = Publisher().run(10, keyframe_every=0).run(3)
    assert publisher.faults[1] == (5.1, Fault.NO_KEYFRAME, "no keyframe for 5.0 s (keyframe_timeout_s)")
    assert publisher.faults[2][1] is None
    publisher.run(10, keyframe_every=0)
    assert publisher.health.fault is Fault.NO_KEYFRAME


def test_a_frozen_picture_has_tiny_inter_frames_only():
    publisher = Publisher(ALL._replace(bitrate_floor=0)).run(10, inter=2000).run(6, inter=60).run(2, inter=61)
    (_, *_), (frozen_s, fault, text), (moves_s, *healthy) = publisher.faults
    assert fault is Fault.FROZEN
    assert frozen_s == pytest.approx(14.0, abs=0.1)
    assert text == "98 inter frames of at most 60 bytes in 4.0 s (frozen_timeout_s, frozen_frame_bytes)"
    assert moves_s == pytest.approx(16.05, abs=0.1)
    assert healthy == [None, ""]


def test_a_source_of_keyframes_alone_is_not_frozen():
    publisher = Publisher().run(20, keyframe_every=1)
    assert [fault for _, fault, _ in publisher.faults] == [None]


def test_silence_is_tiny_audio_or_none():
    publisher = Publisher().run(10).run(8, audio=20).run(1).run(8, audio=0).run(1)
    assert [fault for _, fault, _ in publisher.faults] == [None, Fault.SILENT, None, Fault.SILENT, None]
    assert publisher.faults[1][0] == pytest.approx(16.0, abs=0.06)
    assert publisher.faults[1][2] == "no audio of more than 20 bytes for 6.0 s (silence_timeout_s, silence_frame_bytes)"


def test_the_rules_of_video_do_not_hold_without_it():
    publisher = Publisher(ALL._replace(bitrate_floor=20_000))
    publisher.sent = HealthFigures(has_audio=True)
    publisher.run(20, fps=0)
    assert [fault for _, fault, _ in publisher.faults] == [None]


def test_a_source_without_audio_is_not_silent():
    publisher = Publisher()
    publisher.sent = HealthFigures(has_video=True)
    publisher.run(20, audio=0)
    assert [fault for _, fault, _ in publisher.faults] == [None]


def test_only_the_stall_rule_is_always_on():
    publisher = Publisher(HealthRules()).run(30, fps=1, inter=1, audio=1, keyframe_every=0)
    assert [fault for _, fault, _ in publisher.faults] == [None]


def test_new_rules_hold_at_the_next_tick():
    publisher = Publisher(HealthRules()).run(10, fps=10)
    publisher.health.rules = ALL
    publisher.run(TICK_S, fps=10)
    assert publisher.health.fault is Fault.LOW_FRAME_RATE
