"""Players that are slow, stalled, or wait for a keyframe that does not come."""

from __future__ import annotations

import pytest

from rtmpd.phases import CloseKind
from tests.unit.live.fakes import (
    AVC_HEADER,
    FakeTime,
    Scene,
    audio_frame,
    frame,
    keyframe,
    live_pages,
    settle,
    texts,
    video_headers,
)

HEADERS = video_headers(AVC_HEADER)


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime()
    monkeypatch.setattr("rtmpd.live.fanout.time", made)
    return made


@pytest.fixture
def stage(clock):
    """Make scenes that use the fake clock."""
    made = []

    def make(**options):
        made.append(Scene(**options))
        return made[-1]

    yield make
    for scene in made:
        scene.close()


# Too far behind ---------------------------------------------------------------------------------------------------------


def test_a_player_too_many_bytes_behind_skips_to_the_newest_keyframe(stage, clock):
    scene = stage(lag_limit_bytes=5000)
    scene.log.headers = HEADERS
    scene.video(keyframe("a"))
    slow, transport = scene.join()
    settle()
    transport.capacity = 20
    scene.video(frame("half sent", 1000))
    for number in range(5):
        scene.video(frame(str(number), 1000))
    scene.video(keyframe("b"))
    scene.video(frame("1"))
    settle()
    scene.fanout.sweep(clock.now_s)
    transport.take()
    settle()
    assert texts(transport) == [AVC_HEADER, keyframe("a"), frame("half sent", 1000), keyframe("b"), frame("1")]
    assert (slow.skips, scene.fanout.counters.skips) == (1, 1)


def test_a_player_too_long_behind_skips_to_the_newest_keyframe(stage, clock):
    scene = stage(lag_limit_s=2)
    scene.video(keyframe("a"), 0)
    slow, transport = scene.join(capacity=0)
    scene.video(keyframe("b"), 2000)
    settle()
    scene.fanout.sweep(clock.now_s)
    assert slow.skips == 0
    scene.video(keyframe("c"), 2001)
    settle()
    scene.fanout.sweep(clock.now_s)
    transport.take()
    assert texts(transport) == [keyframe("c")]
    assert slow.skips == 1


def test_lag_is_computed_across_the_wrap_of_timestamps(stage, clock):
    scene = stage(lag_limit_s=2)
    scene.video(keyframe("a"), 0xFFFFFFFF - 1000)
    slow, _ = scene.join(capacity=0)
    scene.video(keyframe("b"), 500)
    settle()
    scene.fanout.sweep(clock.now_s)
    assert slow.skips == 0
    scene.video(keyframe("c"), 1500)
    settle()
    scene.fanout.sweep(clock.now_s)
    assert slow.skips == 1


def test_a_player_whose_next_message_is_a_little_newer_than_the_newest_is_not_behind(stage, clock):
    """Audio and video come interleaved, and not quite in the order of time."""
    scene = stage()
    scene.video(keyframe("a"), 0)
    slow, transport = scene.join()
    settle()
    transport.capacity = 0
    scene.audio(audio_frame("1"), 1040)
    scene.video(keyframe("b"), 1000)
    settle()
    scene.fanout.sweep(clock.now_s)
    transport.take()
    assert texts(transport) == [keyframe("a"), audio_frame("1"), keyframe("b")]
    assert slow.skips == 0


def test_headers_that_a_player_has_had_are_not_sent_again(stage, clock):
    scene = stage(lag_limit_bytes=100)
    scene.log.headers = HEADERS
    scene.video(keyframe("a"))
    _, transport = scene.join()
    settle()
    transport.capacity = 0
    scene.video(frame("missed", 200))
    scene.video(keyframe("b"))
    settle()
    scene.fanout.sweep(clock.now_s)
    transport.capacity = 0
    scene.video(frame("1"))
    scene.log.headers = video_headers(AVC_HEADER + b"new")
    scene.video(frame("missed", 200))
    scene.video(keyframe("c"))
    settle()
    scene.fanout.sweep(clock.now_s)
    transport.take()
    assert texts(transport) == [AVC_HEADER, keyframe("a"), AVC_HEADER + b"new", keyframe("c")]


def test_a_player_within_the_limits_is_not_moved(stage, clock):
    scene = stage()
    scene.video(keyframe("a"))
    slow, transport = scene.join(capacity=0)
    for number in range(10):
        scene.video(keyframe(str(number)))
    settle()
    scene.fanout.sweep(clock.now_s)
    transport.take()
    assert texts(transport) == [keyframe("a"), *(keyframe(str(n)) for n in range(10))]
    assert slow.skips == 0


def test_a_player_past_the_newest_keyframe_is_not_sent_back(stage, clock):
    scene = stage(lag_limit_bytes=1000)
    scene.video(keyframe("a"))
    slow, transport = scene.join()
    settle()
    transport.capacity = 0
    for number in range(10):
        scene.video(frame(str(number), 500))
    settle()
    scene.fanout.sweep(clock.now_s)
    assert slow.skips == 0
    transport.take()
    assert texts(transport) == [keyframe("a"), *(frame(str(n), 500) for n in range(10))]


def test_a_fast_stream_does_not_wait_for_the_sweep_of_the_hub(stage):
    """A pass checks for lag by itself when the log has grown by a part of the limit."""
    scene = stage(lag_limit_bytes=8000)
    scene.video(keyframe())
    slow, _ = scene.join(capacity=0)
    for number in range(30):
        scene.video(keyframe(str(number), 1000))
        settle(3)
    assert slow.skips >= 2


def test_a_player_may_skip_again_and_again(stage, clock):
    scene = stage(lag_limit_bytes=1000)
    scene.video(keyframe())
    slow, transport = scene.join(capacity=5)
    for number in range(10):
        scene.video(frame("missed", 2000))
        scene.video(keyframe(str(number)))
        settle()
        scene.fanout.sweep(clock.now_s)
    assert slow.skips == scene.fanout.counters.skips == 10
    transport.take()
    assert texts(transport) == [keyframe(), keyframe("9")]


def test_without_a_join_point_a_player_too_far_behind_waits_for_the_next(stage, clock):
    scene = stage(lag_limit_bytes=1000)
    scene.video(keyframe("a"))
    slow, transport = scene.join(capacity=5)
    scene.log.forget_join_point()
    scene.video(frame("missed", 2000))
    settle()
    scene.fanout.sweep(clock.now_s)
    assert slow.skips == 1
    assert not scene.fanout.has_cursors
    transport.take()
    scene.video(frame("too early"))
    settle()
    assert texts(transport) == [keyframe("a")]
    scene.video(keyframe("b"))
    scene.video(frame("1"))
    settle()
    assert texts(transport) == [keyframe("a"), keyframe("b"), frame("1")]


def test_the_pages_that_a_stuck_player_holds_are_bounded():
    """While 100 MB pass, a player that accepts nothing holds about as many pages as the limit allows."""
    before = live_pages()
    scene = Scene(lag_limit_bytes=1 << 20)
    scene.video(keyframe())
    _, healthy = scene.join()
    _, stuck = scene.join(capacity=10)
    _, other = scene.join(capacity=10, message_stream_id=2)
    settle()
    most = 0
    for index in range(5000):
        scene.video((keyframe if index % 20 == 0 else frame)("", 20_000))
        settle(2)
        healthy.data.clear()
        if index % 250 == 0:
            most = max(most, live_pages() - before)
    # The limit, the group of pictures and what comes between two checks, in pages of at most 256 kB.
    assert most <= 12
    assert (len(stuck.data), len(other.data)) == (10, 10)
    scene.close()


def test_a_player_that_accepts_nothing_holds_no_pages_without_a_join_point():
    before = live_pages()
    scene = Scene(lag_limit_bytes=1 << 20)
    scene.video(frame())
    scene.join()
    scene.join(capacity=0)
    for _ in range(1000):
        scene.video(frame("", 20_000))
        settle(2)
    assert live_pages() - before <= 12
    scene.close()


# Stalled ----------------------------------------------------------------------------------------------------------------


def test_a_stalled_player_is_disconnected(stage, clock):
    scene = stage()
    scene.video(keyframe())
    _, healthy = scene.join()
    subscriber, stalled = scene.join(capacity=3)
    settle()
    clock.now_s += 30
    scene.fanout.sweep(clock.now_s, 30)
    assert not stalled.close_reason
    clock.now_s += 0.1
    scene.fanout.sweep(clock.now_s, 30)
    assert stalled.close_reason == "it took nothing for 30 s"
    assert stalled.close_reason.kind is CloseKind.STALLED
    assert scene.fanout.counters.stalled == 1
    assert not healthy.close_reason
    assert not stalled.watched
    assert len(scene.fanout) == 1
    assert scene.fanout.leave(subscriber) == b""


def test_a_player_that_accepts_a_little_now_and_then_stays(stage, clock):
    scene = stage()
    scene.video(keyframe("", 5000))
    _, transport = scene.join(capacity=3)
    for _ in range(20):
        clock.now_s += 20
        scene.fanout.sweep(clock.now_s, 30)
        transport.take(3)
    assert not transport.close_reason
    assert scene.fanout.counters.stalled == 0


def test_a_player_with_nothing_to_receive_stays(stage, clock):
    scene = stage()
    scene.video(keyframe())
    transports = [scene.join()[1]]
    subscriber, paused = scene.join()
    scene.fanout.pause(subscriber)
    scene.log.forget_join_point()
    transports += [paused, scene.join()[1]]
    settle()
    clock.now_s += 10_000
    scene.fanout.sweep(clock.now_s, 30)
    assert not any(each.close_reason for each in transports)


@pytest.mark.parametrize("state", ["waiting", "paused"])
def test_a_waiting_or_paused_player_that_does_not_read_its_replies_is_disconnected(stage, clock, state):
    scene = stage()
    if state == "paused":
        scene.video(keyframe())
    subscriber, transport = scene.join()
    scene.fanout.pause(subscriber) if state == "paused" else None
    transport.capacity = 0
    scene.fanout.write(subscriber, scene.reply("reply"))
    clock.now_s += 31
    scene.fanout.sweep(clock.now_s, 30)
    assert transport.close_reason == "it took nothing for 30 s"
    assert len(scene.fanout) == 0


def test_without_a_write_timeout_no_player_is_disconnected(stage, clock):
    scene = stage()
    scene.video(keyframe())
    _, transport = scene.join(capacity=0)
    clock.now_s += 10_000
    scene.fanout.sweep(clock.now_s)
    assert not transport.close_reason


# Waiting for a keyframe -------------------------------------------------------------------------------------------------


def test_a_player_that_has_waited_long_enough_starts_without_a_keyframe(stage, clock):
    scene = stage(keyframe_wait_s=10)
    scene.log.headers = HEADERS
    scene.video(frame("before"), 400)
    _, transport = scene.join()
    clock.now_s += 9.9
    scene.fanout.sweep(clock.now_s)
    scene.video(frame("still waits"), 440)
    settle()
    assert not transport.data
    clock.now_s += 0.1
    scene.fanout.sweep(clock.now_s)
    scene.video(frame("1"), 480)
    settle()
    assert [(m.timestamp, m.payload) for m in transport.messages()] == [(440, AVC_HEADER), (480, frame("1"))]


def test_no_player_starts_while_there_is_no_media(stage, clock):
    scene = stage(keyframe_wait_s=10)
    scene.data(b"\x02\x00\x05onCue")
    _, transport = scene.join()
    clock.now_s += 100
    scene.fanout.sweep(clock.now_s)
    scene.data(b"\x02\x00\x05onCue")
    settle()
    assert not transport.data


def test_a_waiting_player_with_a_full_socket_does_not_start_without_a_keyframe(stage, clock):
    scene = stage(keyframe_wait_s=10)
    scene.video(frame())
    subscriber, transport = scene.join(capacity=0)
    scene.fanout.write(subscriber, scene.reply("reply"))
    clock.now_s += 100
    scene.fanout.sweep(clock.now_s)
    transport.take()
    scene.video(frame("missed"))
    settle()
    assert texts(transport) == [b"reply"]
    scene.fanout.sweep(clock.now_s)
    scene.video(frame("1"))
    settle()
    assert texts(transport) == [b"reply", frame("1")]


def test_a_keyframe_ends_the_wait_at_once(stage, clock):
    scene = stage(keyframe_wait_s=10)
    _, transport = scene.join()
    clock.now_s += 5
    scene.fanout.sweep(clock.now_s)
    scene.video(keyframe())
    settle()
    clock.now_s += 100
    scene.fanout.sweep(clock.now_s)
    settle()
    assert texts(transport) == [keyframe()]


def test_options_may_change_while_players_are_subscribed(stage, clock):
    scene = stage(lag_limit_bytes=1 << 20, keyframe_wait_s=100)
    scene.video(keyframe())
    slow, _ = scene.join(capacity=0)
    scene.video(frame("", 5000))
    scene.video(keyframe())
    settle()
    scene.fanout.sweep(clock.now_s)
    assert slow.skips == 0
    scene.fanout.reload(stage(lag_limit_bytes=1000).options)
    scene.fanout.sweep(clock.now_s)
    assert slow.skips == 1
