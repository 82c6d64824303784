"""How far players are behind the newest frame."""

from __future__ import annotations

import pytest

from rtmpd.live.framing import VIDEO
from rtmpd.live.log import Log
from rtmpd.live.rtmp_framing import RtmpFraming
from rtmpd.media.tags import Kind
from tests.unit.live.fakes import CHUNK, Scene, frame, keyframe, settle


@pytest.fixture
def scene():
    made = Scene()
    yield made
    made.close()


def test_without_players_the_lag_is_0(scene):
    scene.video(keyframe())
    assert scene.fanout.lag_ms() == 0


def test_players_in_sync_are_not_behind(scene):
    scene.video(keyframe(), 1000)
    scene.join()
    scene.join()
    scene.video(frame(), 1040)
    settle()
    assert scene.fanout.lag_ms() == 0


def test_the_player_that_is_furthest_behind_counts(scene):
    scene.video(keyframe(), 1000)
    transports = [scene.join()[1] for _ in range(3)]
    settle()
    scene.video(frame("a"), 1040)
    settle()
    transports[0].capacity = 0
    scene.video(frame("b"), 1080)
    settle()
    transports[1].capacity = 0
    scene.video(frame("c"), 1120)
    scene.video(frame("d"), 2000)
    settle()
    # The first player lacks the frame of 1080, the second that of 1120, the third none.
    assert scene.fanout.lag_ms() == 2000 - 1080


def test_a_player_that_waits_or_pauses_is_not_behind(scene):
    scene.join()
    paused, _ = scene.join()
    scene.fanout.pause(paused)
    scene.video(frame(), 40)
    scene.video(frame(), 4000)
    settle()
    assert scene.fanout.lag_ms() == 0


def log_with(*timestamps):
    log = Log(RtmpFraming(CHUNK), 1 << 20)
    start = (log.tail, log.tail.end)
    for timestamp in timestamps:
        log.append(VIDEO, timestamp, frame(), Kind.FRAME)
    return log, start


@pytest.mark.parametrize(
    ("timestamps", "lag_ms"),
    [((), 0), ((40,), 0), ((40, 80, 120), 80), ((2**32 - 40, 40), 80), ((80, 60), 0), ((0xFFFFFE, 0xFFFFFF, 0x1000000), 2)],
    ids=["an empty log", "one frame", "three frames", "timestamps wrap", "the newest is older", "extended timestamps"],
)
def test_lag_is_the_time_from_the_next_frame_to_the_newest(timestamps, lag_ms):
    log, start = log_with(*timestamps)
    assert log.lag_ms(*start) == lag_ms
    assert log.lag_ms(log.tail, log.tail.end) == 0


def test_after_the_end_of_the_stream_the_lag_is_0():
    """However far its timestamps have come: the end is not weeks later."""
    log, start = log_with(0xF0000000, 0xF0000028)
    assert log.lag_ms(*start) == 0x28
    log.newest_timestamp = -1
    assert log.lag_ms(*start) == 0
