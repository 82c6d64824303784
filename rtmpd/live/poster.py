"""The newest keyframe of a stream as an MP4 file of one picture, read from what its log keeps for late joiners. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.errors import UnsupportedByMp4
from rtmpd.live.fmp4_framing import find_tracks
from rtmpd.live.framing import VIDEO
from rtmpd.media.fmp4.still import still

if TYPE_CHECKING:
    from rtmpd.live.framing import KeptMessages


def poster(log: KeptMessages) -> bytes | None:
    """Return the keyframe at the join point of a log of RTMP messages as MP4; None if there is none.

    Raises:
        UnsupportedByMp4: MP4 can't carry the video. The message says why.
    """
    tracks = find_tracks(log, [VIDEO])
    if tracks.video is None:
        if VIDEO in tracks.problems:
            raise UnsupportedByMp4(tracks.problems[VIDEO])
        return None
    for message in log.kept():
        if message.type_id == VIDEO:
            frame = tracks.plain.frame(VIDEO, bytes(message.payload))
            if frame is not None and frame.key and frame.codec == tracks.video.four_cc:
                return still(tracks.video, memoryview(frame.payload)[frame.body :])
    return None
