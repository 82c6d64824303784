"""What is chosen from the first frames: durations and the frame rate."""

from __future__ import annotations

import pytest

from rtmpd.live.framing import AUDIO, DATA, VIDEO
from rtmpd.protocol import amf0
from rtmpd.services.hls.prelude import Prelude, frame_rate

KEY, INTER, SOUND = b"\x17\x01\0\0\0k", b"\x27\x01\0\0\0i", b"\xaf\x01s"


def prelude(steps, gop):
    made, time_ms = Prelude(), 0
    for number, step_ms in enumerate(steps):
        made.add(VIDEO, time_ms, INTER if number % gop else KEY)
        time_ms += step_ms
    return made


def targets(made, *, gop_ms=0, is_full=False, has_video=True):
    return made.targets(2000, 500, has_video=has_video, gop_ms=gop_ms, is_full=is_full)


def test_the_second_keyframe_is_waited_for():
    steps = [33, 33, 34] * 20
    assert targets(prelude(steps, 60)) is None
    assert targets(prelude([*steps, 33], 60)) == (2000, 500, 2)
    # It has been observed before.
    assert targets(prelude(steps[:10], 60), gop_ms=4000) == (2000, 500, 4)
    # It does not come.
    assert targets(prelude([33] * 160, 1000)).target_s == 10
    # No more can be held back.
    assert targets(prelude(steps, 60), is_full=True).target_s == 4


def test_frames_before_the_first_keyframe_are_left_out():
    made = Prelude()
    made.add(VIDEO, 0, INTER)
    made.add(AUDIO, 3, SOUND)
    assert targets(made, gop_ms=2000, is_full=True) is None
    made.add(VIDEO, 40, KEY)
    assert [frame.time_ms for frame in made.frames] == [40]


def test_uneven_frames_and_audio_alone():
    # The middle of an even number of steps is none of them.
    assert targets(prelude([10, 40] * 60, 60)) is not None
    made = Prelude()
    for number in range(8):
        made.add(AUDIO, round(number * 1024 / 44.1), SOUND)
    assert targets(made, has_video=False) == (2000, 500, 2)


@pytest.mark.parametrize(
    ("measured", "declared", "found"),
    [
        (29.9, 30.0, 30),
        (29.9, 30000 / 1001, 30000 / 1001),
        (29.99, None, 30),
        (29.9, 25.0, 30000 / 1001),
        (7.3, None, 7.3),
        (0, 50.0, 50),
        (0, None, 0),
        (60, float("nan"), 60),
        (60, -1.0, 60),
    ],
)
def test_frame_rates(measured, declared, found):
    items = [(DATA, amf0.encode("onMetaData", {"framerate": declared}))] if declared is not None else []
    assert frame_rate(measured, items) == pytest.approx(found)
