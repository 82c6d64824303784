"""A file of one picture, which ``<video>`` shows: a keyframe that has been encoded already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.media.fmp4.fragments import SYNC, Run, Sample, fragment
from rtmpd.media.fmp4.movie import init_segment

if TYPE_CHECKING:
    from rtmpd.media.fmp4.codecs import Track

_DURATION_MS = 1000


def still(track: Track, frame: bytes | memoryview) -> bytes:
    """Return an MP4 file of one picture, which lasts for a second.

    Args:
        track: The video track.
        frame: A keyframe, as it is in a sample.
    """
    duration = track.timescale * _DURATION_MS // 1000
    run = Run(track.track_id, 0, [Sample(frame, duration, SYNC, 0)])
    return init_segment([track], duration_ms=_DURATION_MS) + fragment(1, [run])
