"""The durations that an HLS session promises: target duration and part target, which must not change while it lasts.

They are chosen before the first playlist, from the configuration and, if the stream has been live for some seconds, from the
frames it has sent. `rtmpd.media.hls.cutting` then keeps them whatever the publisher sends.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

PART_FLOOR_PERCENT: Final = 85
"""The least share of the part target that a part lasts, unless it has a keyframe or is the last of a segment (4.4.4.9)."""

_LOWEST_PERCENT, _HIGHEST_PERCENT = 88, 97
_ROOM_PERCENT = 105
_ROUNDING_MS = 490  # EXTINF is rounded to the nearest second before it is compared (section 4.4.3.1)
_SHORTEST_PART_MS = 20


class Targets(NamedTuple):
    """The promised durations.

    Attributes:
        segment_ms: Segments end at the first keyframe after this time, or up to one frame before.
        part_ms: PART-TARGET; 0: there are no parts.
        target_s: TARGETDURATION.
    """

    segment_ms: int
    part_ms: int
    target_s: int

    @property
    def limit_ms(self) -> int:
        """The longest segment: EXTINF, rounded to seconds, is at most the target duration."""
        return self.target_s * 1000 + _ROUNDING_MS

    @property
    def advance_parts(self) -> int:
        """How many parts ahead of the last one a client may ask for: the Advance Part Limit (section 6.2.5.2)."""
        return math.ceil(3000 / self.part_ms) if 0 < self.part_ms < 1000 else 3


def choose_targets(
    segment_ms: int, part_ms: int, *, frame_ms: float = 0, gop_ms: float = 0, longest_target_s: int = 10
) -> Targets:
    """Return the durations for a session.

    The target duration: with groups of pictures of *gop_ms*, segments are the fewest whole groups that last *segment_ms*, and
    the target duration is their length, rounded up. If nothing is known it is twice *segment_ms*. It is at most
    *longest_target_s*: longer groups are cut within, and segments then begin without a keyframe.

    The part target: *part_ms*, if a whole number of frames lasts 88 to 97 % of it. Otherwise it is 105 % of the most frames
    that fit: 4 frames at 24 frames/s would last 83 % of 200 ms, and 5 of them 104 %. If a frame lasts longer than *part_ms*,
    there are no parts.

    Args:
        segment_ms, part_ms: The configuration; a *part_ms* of 0 means no parts.
        frame_ms: The usual duration of a frame of video, or of audio if there is no video; 0: unknown.
        gop_ms: The longest time between keyframes that was observed; 0: unknown, or there is no video.
        longest_target_s: The limit of the target duration.
    """
    target_ms = 2 * segment_ms
    if gop_ms > 0:
        target_ms = math.ceil(gop_ms * max(1, math.ceil((segment_ms - frame_ms) / gop_ms)))
    elif frame_ms > 0:
        target_ms = segment_ms
    target_s = max(1, min(longest_target_s, math.ceil(target_ms / 1000)))
    segment_ms = min(segment_ms, target_s * 1000)
    return Targets(segment_ms, min(_choose_part_ms(part_ms, frame_ms), segment_ms), target_s)


def _choose_part_ms(part_ms: int, frame_ms: float) -> int:
    if part_ms < _SHORTEST_PART_MS or frame_ms > part_ms:
        return 0
    if frame_ms <= 0:
        return part_ms
    frames = int(part_ms * _HIGHEST_PERCENT / 100 / frame_ms)
    if frames * frame_ms * 100 >= part_ms * _LOWEST_PERCENT:
        return part_ms
    frames = max(1, int(part_ms * 100 / _ROOM_PERCENT / frame_ms))
    return math.ceil(frames * frame_ms * _ROOM_PERCENT / 100)
