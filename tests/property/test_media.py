"""Rules for every payload and every clock."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rtmpd.media.rewrite import Content, Rewrite, rewritten_metadata
from rtmpd.media.tags import Kind, TagInfo, audio_info, audio_kind, video_info, video_kind
from rtmpd.media.timestamps import Timeline
from rtmpd.protocol import amf0
from rtmpd.protocol.enhanced import parse_capabilities

MEDIA = settings(deadline=None, max_examples=300)

WRAP = 2**32

four_ccs = st.sampled_from([b"avc1", b"hvc1", b"vvc1", b"av01", b"vp08", b"vp09", b"mp4a", b"Opus", b"fLaC", b".mp3", b"ac-3"])
first_bytes = st.integers(0, 255).map(lambda byte: bytes((byte,)))
# Headers of any kind, cut anywhere: pieces that mean something, in any order.
payloads = st.builds(
    lambda first, pieces, cut: b"".join([first, *pieces])[:cut],
    first_bytes | st.sampled_from([b"\x96", b"\x97", b"\xa6", b"\x95", b"\xd7", b"\x17", b"\xaf"]),
    st.lists(four_ccs | first_bytes | st.sampled_from([b"\xff\0\2", b"\0\0\2", b"\x02\0\0\0\7", b"\x20", b"\0"]), max_size=8),
    st.integers(0, 40),
) | st.binary(max_size=40)


def check(info: TagInfo, payload: bytes) -> None:
    assert isinstance(info.kind, Kind)
    assert 1 <= len(info.tracks) <= 256
    assert all(0 <= track <= 255 for track in info.tracks)
    assert info.multitrack or info.tracks == (0,)
    assert 0 <= info.frame_type <= 7
    # The legacy headers have a fixed length, even where the payload has not.
    assert 0 <= info.body_offset <= max(len(payload), 5)


@MEDIA
@given(payloads)
def test_any_video_payload_is_understood_the_same_by_both_functions(payload):
    info = video_info(payload)
    check(info, payload)
    assert video_kind(payload) == info.kind
    if payload[:1] >= b"\x80":
        assert info.body_offset <= len(payload)


@MEDIA
@given(payloads)
def test_any_audio_payload_is_understood_the_same_by_both_functions(payload):
    info = audio_info(payload)
    check(info, payload)
    assert audio_kind(payload) == info.kind
    assert info.kind not in (Kind.KEYFRAME, Kind.TRACK_KEYFRAME, Kind.METADATA)
    assert info.frame_type == 0


def test_every_payload_of_two_bytes_is_understood_the_same_by_both_functions():
    for first in range(256):
        for second in range(256):
            payload = bytes((first, second))
            assert video_kind(payload) == video_info(payload).kind
            assert audio_kind(payload) == audio_info(payload).kind


@MEDIA
@given(payloads, st.binary(min_size=1, max_size=20))
def test_what_follows_the_header_changes_nothing(payload, more):
    for info_of in (video_info, audio_info):
        info = info_of(payload)
        if info.kind != Kind.OTHER and not info.multitrack:
            assert info_of(payload + more) == info


# Timestamps --------------------------------------------------------------------------------------------------------------

clock = st.sampled_from([0, 1, 0xFFFFFF, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, WRAP - 1)
steps = st.sampled_from([0, 20, 40, 2000, 2001, 60_000, 60_001, -1, -40, -2000, -2001, -9_000, -60_000]) | st.integers(
    -WRAP, WRAP
)
tracks = st.sampled_from(["audio", "video"])


def signed(step: int) -> int:
    return (step + WRAP // 2) % WRAP - WRAP // 2


class Watch:
    """A timeline, and what a player sees of it: each track must never go backwards."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.seen: dict[str, int] = {}

    def stamp(self, name: str, timestamp: int) -> int:
        timeline = self.timeline
        out = timeline.stamp(getattr(timeline, name), timestamp % WRAP)
        assert 0 <= out < WRAP
        if name in self.seen:
            assert signed(out - self.seen[name]) >= 0
        self.seen[name] = out
        # The newest is never behind what was given out, and at most a gap ahead of this track's last.
        assert signed(timeline.newest - out) >= 0
        return out


events = st.lists(
    st.one_of(
        st.tuples(st.just("step"), tracks, steps),
        st.tuples(st.just("step"), tracks, st.sampled_from([20, 40])),
        st.tuples(st.just("time"), tracks, clock),
        st.tuples(st.just("beside"), tracks, clock),
        st.tuples(st.just("shift"), tracks, st.integers(0, 10_000)),
    ),
    max_size=80,
)


@MEDIA
@given(events, clock)
@example([("step", "video", 0), ("shift", "video", 500), ("step", "video", 5000), ("step", "audio", -5000)], 100_000)
def test_no_track_ever_goes_backwards_whatever_the_clocks_do(happened, start):
    watch = Watch()
    now = {"audio": start, "video": start}
    for what, name, value in happened:
        if what == "shift":
            watch.timeline.shift(value)
        elif what == "beside":
            newest = watch.timeline.newest
            out = watch.timeline.beside(value)
            assert 0 <= out < WRAP
            assert watch.timeline.newest == newest
            assert newest < 0 or abs(signed(out - newest)) <= 10_000
        else:
            now[name] = value if what == "time" else now[name] + value
            watch.stamp(name, now[name])


@MEDIA
@given(clock, st.integers(-4000, 4000), st.lists(st.tuples(tracks, st.integers(0, 2000)), max_size=60))
def test_clocks_that_run_forward_together_are_passed_through(start, apart, frames):
    watch = Watch()
    # A track that begins before the other's time 0 is held at 0.
    start += 4000
    now = {"audio": start + apart, "video": start}
    # Tracks with the same base are within ten seconds of each other: the one that is behind continues when they diverge.
    for name, step in frames:
        ahead = max(now, key=lambda track: now[track])
        name = name if now[ahead] - min(now.values()) < 6000 else next(track for track in now if track != ahead)
        now[name] += step
        assert watch.stamp(name, now[name]) == now[name] % WRAP
    assert watch.timeline.jumps == 0


gap_lengths = st.one_of(
    st.integers(0, 3_000),
    st.integers(1_900, 70_000),
    st.sampled_from(
        [2_000, 2_001, 59_980, 60_000, 60_001, 60_020, 62_000, 3_600_000, WRAP // 2 - 1, WRAP // 2, WRAP, WRAP + 61_000]
    ),
)
silences = st.lists(st.tuples(st.sampled_from(["audio", "video", "both"]), gap_lengths, st.integers(1, 3_000)), max_size=6)


@MEDIA
@given(clock, st.just(0) | clock, silences)
@example(0, 0, [("audio", 61_000, 500)])
@example(0, 50_000_000, [("both", 60_000, 10), ("audio", 61_000, 20)])
def test_lip_sync_is_kept_to_the_millisecond_through_any_pattern_of_gaps(start, audio_shift, pattern):
    """Video each 40 ms, audio each 23 ms; a silence is of one track, while the other runs on, or of both."""
    timeline = Timeline()
    clocks = {"video": start, "audio": start + audio_shift}
    learned: int | None = None

    def run(begin: int, end: int, silent: str = "") -> None:
        steps = {"video": 40, "audio": 23}
        if end - begin > 20_000:
            # Steps that are gaps themselves, and near the longest.
            steps = {"video": max(1_990, (end - begin) // 40), "audio": max(1_970, (end - begin) // 41)}
            steps = {name: min(step, 59_000) if silent else step for name, step in steps.items()}
        frames = sorted((at, name) for name in steps if name != silent for at in range(begin, end, steps[name]))
        for at, name in frames[:1_500]:
            timeline.stamp(getattr(timeline, name), (clocks[name] + at) % WRAP)

    def distance() -> int:
        video, audio = timeline.video, timeline.audio
        return (video.raw - video.last_in + clocks["video"] - audio.raw + audio.last_in - clocks["audio"]) % WRAP

    # Longer than a stray timestamp at the beginning is waited for.
    run(0, 1_200)
    now = 1_200
    for silent, length, after in pattern:
        learned = distance()
        if silent != "both":
            if length > 80_000_000:
                continue
            run(now, now + length, silent)
        now += length
        run(now, now + 100 + after)
        now += 100 + after
        assert distance() == learned


@MEDIA
@given(st.lists(st.tuples(clock, st.integers(30, 60)), min_size=1, max_size=8))
def test_a_clock_that_jumps_runs_at_its_own_rate_from_jump_to_jump(runs):
    watch = Watch()
    last: int | None = None
    previous: int | None = None
    for start, count in runs:
        step = 0 if previous is None else signed(start - previous)
        if -2000 <= step < 0:
            # Jitter: level for up to two seconds.
            continue
        for i in range(count):
            out = watch.stamp("video", start + 40 * i)
            if i:
                assert signed(out - last) == 40
            elif last is not None and not 0 <= step <= 60_000:
                assert out == last
            last = out
        previous = start + 40 * (count - 1)


# Rewriting for players ----------------------------------------------------------------------------------------------------

rewrites = st.builds(
    Rewrite,
    default_track=st.booleans(),
    hevc=st.sampled_from(["published", "hvc1", "codec12"]),
    mod_ex=st.booleans(),
    video_track=st.sampled_from([0, 0, 0, 1, 255]),
    audio_track=st.sampled_from([0, 0, 0, 1, 255]),
    old_video=st.booleans(),
    old_audio=st.booleans(),
)


@MEDIA
@given(payloads, rewrites)
def test_any_payload_can_be_rewritten_and_then_needs_no_more_of_it(payload, rewrite):
    for rewrites_it, info in ((rewrite.video, video_info), (rewrite.audio, audio_info)):
        made = rewrites_it(payload)
        if made is None:
            continue
        if made == payload:
            assert made is payload
        found = info(made)
        if rewrite.identity:
            assert made is payload
        if not rewrite.mod_ex:
            assert not found.mod_ex
        if rewrite.default_track:
            assert not found.multitrack
        assert found.kind in (info(payload).kind, Kind.KEYFRAME, Kind.OTHER)


@MEDIA
@given(payloads, rewrites)
def test_what_is_narrowed_to_the_content_does_the_same(payload, rewrite):
    content = Content()
    if payload and video_info(payload).kind in (Kind.HEADER, Kind.FRAME, Kind.KEYFRAME, Kind.TRACK_KEYFRAME):
        content.look_at_video(payload)
        whole = replace(rewrite, video_track=content.video_track, audio_track=0)
        assert content.narrow(whole).video(payload) == whole.video(payload)
    content = Content()
    if payload and audio_info(payload).kind in (Kind.HEADER, Kind.FRAME):
        content.look_at_audio(payload)
        whole = replace(rewrite, video_track=0, audio_track=content.audio_track)
        assert content.narrow(whole).audio(payload) == whole.audio(payload)


@MEDIA
@given(st.binary(max_size=60), rewrites)
def test_any_metadata_can_be_rewritten(data, rewrite):
    for payload in (
        data,
        amf0.encode("onMetaData") + data,
        amf0.encode("onMetaData") + b"\x08\0\0\0\1\0\x0cvideocodecid" + data,
    ):
        assert rewritten_metadata(payload, rewrite).startswith(payload[:10])


frame_types = st.integers(0, 4) | st.integers(6, 7)
offsets = st.sampled_from([b"\0\0\1", b"\x7f\xff\xff", b"\x80\0\0", b"\xff\xff\xff"])
hvc1_messages = st.one_of(
    st.builds(lambda kind, data: bytes((0x80 | kind << 4,)) + b"hvc1" + data, frame_types, st.binary(max_size=50)),
    st.builds(
        lambda kind, offset, data: bytes((0x81 | kind << 4,)) + b"hvc1" + offset + data,
        frame_types,
        offsets,
        st.binary(max_size=50),
    ),
    st.builds(lambda kind, data: bytes((0x83 | kind << 4,)) + b"hvc1" + data, frame_types, st.binary(max_size=50)),
    st.builds(lambda kind: bytes((0x82 | kind << 4,)) + b"hvc1", frame_types),
)


@MEDIA
@given(hvc1_messages)
def test_hevc_comes_back_from_codec_id_12_as_it_was(payload):
    legacy = Rewrite(hevc="codec12").video(payload)
    assert legacy is not None
    assert legacy[0] & 0x8F == 12
    assert video_kind(legacy) == video_kind(payload)
    assert Rewrite(hevc="hvc1").video(legacy) == payload


@MEDIA
@given(st.data())
def test_a_track_of_a_multitrack_message_becomes_the_message_that_it_would_have_been(data):
    track_ids = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=6, unique=True))
    track = data.draw(st.sampled_from(track_ids))
    video = data.draw(st.booleans())
    packet = data.draw(st.sampled_from([0, 1, 2, 3, 4, 5] if video else [0, 1, 2, 4]))
    layout = data.draw(st.sampled_from([0, 1, 2]))
    four_cc = data.draw(four_ccs)
    first = 0x80 | data.draw(frame_types) << 4 if video else 0x90
    bodies = {number: data.draw(st.binary(max_size=30)) for number in track_ids}
    codes = {number: data.draw(four_ccs) if layout == 2 else four_cc for number in track_ids}
    if layout == 0:
        tracks = bytes((track,)) + bodies[track]
    else:
        tracks = b"".join(
            (codes[number] if layout == 2 else b"") + bytes((number,)) + len(bodies[number]).to_bytes(3, "big") + bodies[number]
            for number in track_ids
        )
    head = bytes((first | (6 if video else 5), layout << 4 | packet)) + (b"" if layout == 2 else four_cc)
    rewrite = Rewrite(default_track=True, video_track=track, audio_track=track)
    made = (rewrite.video if video else rewrite.audio)(head + tracks)
    assert made == bytes((first | packet,)) + codes[track] + bodies[track]


# What clients declare -----------------------------------------------------------------------------------------------------

names = st.text(max_size=5) | st.sampled_from(["hvc1", "Opus", "*"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)
properties = st.dictionaries(
    st.sampled_from(
        ["fourCcList", "videoFourCcInfoMap", "audioFourCcInfoMap", "capsEx", "objectEncoding", "videoCodecs", "videoFunction"]
    ),
    values,
)


@MEDIA
@given(properties, names)
def test_whatever_a_client_declares_is_read(declared, four_cc):
    found = parse_capabilities(declared)
    assert found.object_encoding in (0, 3)
    assert found.caps_ex >= 0
    assert all(len(name) == 4 or name == "*" for name in (*found.four_ccs, *found.video, *found.audio))
    assert found.takes_video(four_cc) in (True, False, None)
    if not (found.four_ccs or found.video or found.audio):
        assert found.takes_video(four_cc) is None
        assert found.takes_audio(four_cc) is None
