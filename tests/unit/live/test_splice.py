from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.live.framing import AUDIO, DATA, VIDEO
from rtmpd.live.splice import End, Kept, Splice, signed
from rtmpd.media.composition import composition_ms, with_composition
from rtmpd.media.tags import Kind

WORD = 1 << 32
FRAME, KEYFRAME, HEADER, METADATA = int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.HEADER), int(Kind.METADATA)


def avc(composition=0, *, key=False, label=b""):
    return (b"\x17" if key else b"\x27") + b"\x01" + composition.to_bytes(3, "big", signed=True) + label


def hevc(composition=0, *, key=False, label=b""):
    return (b"\x91" if key else b"\xa1") + b"hvc1" + composition.to_bytes(3, "big", signed=True) + label


def av1(composition=0, *, key=False, label=b""):
    """Such frames have no composition time."""
    return (b"\x91" if key else b"\xa1") + b"av01" + label


def video(timestamp, composition=0, *, key=False, label=b"", make=avc):
    payload = make(composition, key=key, label=label)
    return Kept(VIDEO, timestamp % WORD, payload, KEYFRAME if key else FRAME)


def audio(timestamp, label=b""):
    return Kept(AUDIO, timestamp % WORD, b"\xaf\x01" + label, FRAME)


def shown(message):
    return message.timestamp + composition_ms(message.payload)


# Where the source before has ended --------------------------------------------------------------------------------------


def test_the_end_is_the_latest_picture_and_the_last_audio_frame():
    end = End.of([video(0, 80, key=True), audio(10), video(40, 160), audio(33), video(80, 0)])
    assert end == End(shown=200, audio=33, audio_step_ms=23, video=80)


def test_headers_and_damaged_composition_times_do_not_count():
    header = Kept(VIDEO, 9000, b"\x17\x00\x00\x00\x00", HEADER)
    assert End.of([video(100, key=True), header, video(140, 60_000), video(180, -50)]) == End(shown=180, video=180)


def test_the_end_of_nothing_is_not_known():
    assert not End.of([]).known
    assert End(audio=3).known


def test_an_end_is_not_before_what_the_timeline_tells():
    assert End().at_least(5, None) == End(shown=5, video=5)
    assert End(shown=100, audio=90, audio_step_ms=20, video=60).at_least(70, 95) == End(100, 95, 20, 70)
    assert End(shown=WORD - 5, video=WORD - 5).at_least(3, None).shown == 3


# Single cases -----------------------------------------------------------------------------------------------------------


def test_what_comes_after_the_end_is_left_as_it_is():
    group = [video(1200, 40, key=True), audio(1210), video(1240, 80)]
    splice = Splice(End(shown=1100, audio=1090, audio_step_ms=20, video=1060), group)
    assert [splice.take(*each) for each in group] == [(each.timestamp, each.payload) for each in group]
    assert splice.compressed == splice.skipped_audio == 0


def test_after_a_gap_audio_begins_with_the_picture():
    group = [video(1500, key=True), audio(1450), audio(1500)]
    splice = Splice(End(shown=1100, audio=1090, audio_step_ms=20), group)
    assert [splice.take(*each) is not None for each in group] == [True, False, True]


def test_a_group_that_is_older_is_compressed():
    group = [video(n * 40, key=not n) for n in range(50)]
    splice = Splice(End(shown=1961, audio=None), group)
    times = [splice.take(*each)[0] for each in group]
    assert times[0] == 1962
    assert times == sorted(set(times))
    assert times[-1] < 1962 + 300
    assert splice.compressed == 50


def test_a_source_with_audio_continues_behind_a_silent_one():
    """The source before had no audio: what is older than its last picture would take readers back in time."""
    group = [video(0, key=True), audio(5), audio(1000), audio(2010)]
    splice = Splice(End(shown=2000, video=2000), group)
    assert [splice.take(*each) is not None for each in group] == [True, False, False, True]


def test_an_audio_source_continues_behind_one_with_video_alone():
    group = [audio(100), audio(2000), audio(2050)]
    splice = Splice(End(shown=2000, video=2000), group)
    assert [splice.take(*each) is not None for each in group] == [False, False, True]
    assert splice.audio_begins == 2001


def test_an_audio_frame_that_comes_late_is_left_out_all_the_same():
    """Encoders send audio later than the video of its time."""
    splice = Splice(End(shown=1000, audio=1000, audio_step_ms=20, video=1000), [video(1010, key=True)])
    late = audio(900)
    assert not splice.done(1010)
    assert splice.take(*late) is None
    assert not splice.done(1800)
    assert splice.done(3100)


def test_a_picture_that_is_shown_before_its_timestamp_is_not_shown_too_early():
    group = [video(1000 + n * 40, -80 if n else 0, key=not n) for n in range(5)]
    splice = Splice(End(shown=1060, video=1060), group)
    out = [Kept(VIDEO, *splice.take(*each), FRAME) for each in group]
    assert min(map(shown, out)) > 1060


def test_headers_get_the_time_of_their_track_and_metadata_none():
    splice = Splice(End(shown=1100, audio=1000, audio_step_ms=20, video=1050), [video(400, key=True)])
    assert splice.take(DATA, 0, b"x", METADATA) == (0, b"x")
    assert splice.take(AUDIO, 300, b"\xaf\x00", HEADER) == (1015, b"\xaf\x00")
    assert splice.take(VIDEO, 300, b"\x17\x00", HEADER) == (1101, b"\x17\x00")
    assert splice.take(DATA, 300, b"cue", int(Kind.OTHER)) == (1101, b"cue")
    assert (splice.begins, splice.audio_begins) == (1101, 1015)


def test_without_an_end_a_source_begins_where_it_begins():
    group = [video(700, 40, key=True), audio(720)]
    splice = Splice(End(), group)
    assert [splice.take(*each) for each in group] == [(each.timestamp, each.payload) for each in group]


@pytest.mark.parametrize("composition", [0x7FFFFF, -0x7FFFFF, 60_000, -60_000])
def test_a_damaged_composition_time_harms_only_its_frame(composition):
    group = [video(0, key=True), video(40, composition), video(80, 40)]
    splice = Splice(End(shown=1000, video=960), group)
    out = [splice.take(*each) for each in group]
    assert [time for time, _ in out] == sorted(time for time, _ in out)
    assert composition_ms(out[2][1]) <= 40
    assert len(out[1][1]) == len(group[1].payload)


# Any end, any group -----------------------------------------------------------------------------------------------------


@st.composite
def groups(draw):
    """A group of pictures in decoding order, with audio in between, as it may come late or early."""
    make = draw(st.sampled_from([avc, hevc, av1]))
    base = draw(st.sampled_from([0, 1000, WORD - 700, WORD - 3]))
    reorder = draw(st.sampled_from([0, 0, 1, 3]))  # pictures
    negative = draw(st.booleans())
    frames, count = [], draw(st.integers(0, 60))
    steps = draw(st.lists(st.integers(8, 50), min_size=1, max_size=4))
    times = [base]
    while len(times) < count:
        times.append(times[-1] + steps[len(times) % len(steps)])
    step = steps[0]
    for n in range(count):
        # Each picture that is referred to comes before those that are shown before it.
        order = n + reorder if n % (reorder + 1) == 1 and reorder else n - 1 if reorder and n else n
        composition = (order - n + (0 if negative else reorder)) * step if n or not negative else 0
        frames.append((times[n], 0, video(times[n], composition, key=not n, label=b"%d" % n, make=make)))
    last = times[-1] if count else base
    shift = draw(st.integers(-400, 400))
    audio_step = draw(st.integers(10, 40))
    if draw(st.booleans()) or not count:
        sound = [(t + shift, 1, audio(t, b"%d" % t)) for t in range(base, last + 400, audio_step)]
        frames += sound[: draw(st.integers(1, len(sound)))]
    ordered = [each[2] for each in sorted(frames, key=lambda each: each[:2])]
    keyframe = next((n for n, each in enumerate(ordered) if each.kind == KEYFRAME), 0)
    known = ordered[keyframe:]
    return known, draw(st.integers(1, len(known))), base


@st.composite
def ends(draw, base):
    at = base + draw(st.integers(-500, 3000))
    step = draw(st.integers(0, 40))
    ahead = draw(st.integers(0, 200))
    return draw(
        st.sampled_from(
            [
                End((at + ahead) % WORD, (at - 20) % WORD, step, at % WORD),
                End((at + ahead) % WORD, None, 0, at % WORD),
                End(None, at % WORD, step, None),
                End((at + ahead) % WORD, (at + ahead + 90) % WORD, step, at % WORD),
            ]
        )
    )


@st.composite
def cases(draw):
    messages, known, base = draw(groups())
    return draw(ends(base)), messages, known


@settings(deadline=None, max_examples=300)
@given(cases())
def test_any_group_continues_any_end(case):
    """*known* messages are in the group; the others come later."""
    end, messages, known = case
    splice = Splice(end, messages[:known])
    taken = []
    for n, message in enumerate(messages):
        found = splice.take(*message)
        if found is not None:
            taken.append((message, message._replace(timestamp=found[0], payload=found[1])))
        if n >= known and splice.done(message.timestamp):
            break
    was = [old for old, _ in taken if old.type_id == VIDEO]
    now = [new for _, new in taken if new.type_id == VIDEO]
    # All frames are kept, and nothing but the composition time differs.
    assert was == [each for each in messages[: n + 1] if each.type_id == VIDEO]
    for old, new in zip(was, now, strict=True):
        assert with_composition(new.payload, composition_ms(old.payload)) == old.payload
    origin = end.shown if end.shown is not None else end.audio
    times = [signed(each.timestamp - origin) for each in now]
    assert times == sorted(times)
    if now:
        assert times[0] > 0
    # Pictures are shown in the same order, and after all that was shown.
    pictures = [signed(shown(each) - origin) for each in now]
    assert all(time > 0 for time in pictures)
    order = sorted(range(len(was)), key=lambda i: signed(shown(was[i]) - origin))
    in_order = [pictures[i] for i in order]
    assert in_order == sorted(in_order)
    # What is compressed is short; what is behind it is left alone.
    if was and signed(was[0].timestamp - origin) < 0:
        begins = splice.begins
        limit_ms = max(signed(begins - was[0].timestamp) // 6 + 2, 2 * len(was))
        for old, new in zip(was, now, strict=True):
            if signed(old.timestamp - begins) >= limit_ms:
                assert new.timestamp == old.timestamp
            else:
                assert signed(new.timestamp - begins) < limit_ms
    # Audio does not overlap what was heard.
    sound = [each.timestamp for _, each in taken if each.type_id == AUDIO]
    if end.audio is not None:
        assert all(signed(time - end.audio) >= max(1, end.audio_step_ms * 3 // 4) for time in sound)
    elif sound and end.shown is not None:
        assert all(signed(time - end.shown) > 0 for time in sound)
