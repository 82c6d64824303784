"""A publisher that returns is taken over at its first keyframe: nothing of what follows is known then."""

from __future__ import annotations

import pytest

from rtmpd.live.framing import VIDEO
from rtmpd.live.splice import End, Kept, Splice
from rtmpd.media.tags import Kind

HEAD = b"\x17\x01\0\0\0"


@pytest.mark.parametrize("behind_ms", [1, 2, 39, 40, 41, 80, 500, 3000])
@pytest.mark.parametrize("step_ms", [9, 16, 17, 33, 40, 100])
def test_no_two_frames_get_the_same_timestamp(behind_ms, step_ms):
    shown = 10_000
    begins = shown + 1 - behind_ms
    keyframe = Kept(VIDEO, begins, HEAD, Kind.KEYFRAME)
    splice = Splice(End(shown), [keyframe])
    later = (splice.take(VIDEO, begins + number * step_ms, HEAD, Kind.FRAME) for number in range(1, 500))
    times = [found[0] for found in (splice.take(*keyframe), *later)]
    assert times == sorted(set(times))
    assert times[0] > shown
    # It is soon over.
    assert times[-1] == begins + 499 * step_ms
