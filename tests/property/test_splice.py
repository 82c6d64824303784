"""Properties of a splice: what a decoder is sent goes forward, for all frame rates, also with B-frames."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rtmpd.live.framing import AUDIO, VIDEO
from rtmpd.live.splice import End, Kept, Splice
from rtmpd.media.composition import composition_ms
from rtmpd.media.tags import Kind

START_MS = 100_000


def frames(rate: float, first_ms: int, count: int, *, b_frames: bool) -> list[Kept]:
    made = []
    for number in range(count):
        decoded = first_ms + round(number * 1000 / rate)
        place = number + 1 if not number or not b_frames else (number - 1) // 3 * 3 + 1 + (3, 1, 2)[(number - 1) % 3]
        composition = first_ms + round(place * 1000 / rate) - decoded if b_frames else 0
        payload = bytes([0x27 if number else 0x17, 1]) + composition.to_bytes(3, "big") + b"frame"
        made.append(Kept(VIDEO, decoded, payload, int(Kind.FRAME if number else Kind.KEYFRAME)))
    return made


@given(
    rate=st.sampled_from([10, 15, 23.976, 24, 25, 29.97, 30, 48, 50, 59.94, 60, 100, 120]),
    before_ms=st.integers(0, 4000),
    known=st.integers(1, 300),
    b_frames=st.booleans(),
)
def test_pictures_are_decoded_and_shown_one_after_the_other(rate, before_ms, known, b_frames):
    sent = frames(rate, START_MS - before_ms, 600, b_frames=b_frames)
    splice = Splice(End(shown=START_MS), sent[:known])
    mapped = [found for each in sent if (found := splice.take(*each)) is not None]
    assert len(mapped) == len(sent)
    decoded = [timestamp for timestamp, _ in mapped]
    pictures = sorted(timestamp + composition_ms(payload) for timestamp, payload in mapped)
    assert [(a, b) for a, b in pairwise(decoded) if b < a] == []
    # All pictures come after what was shown, and no two at once.
    assert pictures[0] > START_MS
    assert [(a, b) for a, b in pairwise(pictures) if b <= a] == []


@given(
    before_ms=st.integers(-2000, 2000),
    audio_end_ms=st.integers(-500, 500),
    audio_behind_ms=st.integers(-800, 800),
    known=st.integers(1, 60),
)
def test_audio_goes_forward_however_far_it_is_from_video(before_ms, audio_end_ms, audio_behind_ms, known):
    first_ms = START_MS - before_ms
    video = frames(25, first_ms, 150, b_frames=False)
    audio = [Kept(AUDIO, first_ms + round(number * 21.33), b"\xaf\x01sound", int(Kind.FRAME)) for number in range(280)]
    # In the order in which they are sent.
    late_ms = {VIDEO: 0, AUDIO: audio_behind_ms}
    sent = sorted([*video, *audio], key=lambda each: each.timestamp + late_ms[each.type_id])
    begin = sent.index(video[0])
    sent = sent[begin:]
    end = End(shown=START_MS, audio=START_MS + audio_end_ms, audio_step_ms=21)
    splice: Splice | None = Splice(end, sent[:known])
    last = {VIDEO: START_MS, AUDIO: START_MS + audio_end_ms}
    for each in sent:
        timestamp: int | None = each.timestamp
        if splice is not None:
            found = splice.take(*each)
            timestamp = found[0] if found is not None else None
            if splice.done(each.timestamp):
                splice = None
        if timestamp is not None:
            assert timestamp > last[each.type_id]
            last[each.type_id] = timestamp
    assert splice is None
