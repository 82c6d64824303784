"""HLS: whatever frames come, a client that checks the rules of `tests.hls_rules` finds nothing."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rtmpd.media.flv import AUDIO, VIDEO
from rtmpd.media.fmp4.codecs import AUDIO_TRACK, VIDEO_TRACK
from rtmpd.media.fmp4.fragmenter import Fragmenter
from rtmpd.media.fmp4.times import Unwrapper
from rtmpd.media.fmp4.tracks import Tracks
from rtmpd.media.hls.assembly import Rendition
from rtmpd.media.hls.playlist import media_playlist
from rtmpd.media.hls.targets import Targets, choose_targets
from rtmpd.media.hls.window import Answer, Limits, Window, parse_directives
from tests.fmp4_files import samples
from tests.hls_rules import Client
from tests.hls_stream import Show
from tests.property.test_fmp4 import HEADERS, streams

STEPS = st.sampled_from((0, 1, 8, 16, 17, 33, 34, 40, 41, 42, 67, 100, 180, 260, 490, 730, 1500, 2600, 7000))
SETTINGS = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Stretch:
    """A part of a stream, with its own cadence, and what happens at its end."""

    frames: int
    steps: list[int]
    gop: int
    audio: str
    event: str


EVENTS = st.sampled_from(("", "", "restart", "gap", "back", "audio only"))
GOPS = st.sampled_from((1, 2, 12, 25, 50, 60, 400))
STEADY = st.lists(STEPS.filter(lambda step_ms: 0 < step_ms <= 100), min_size=1, max_size=3) | st.just([33, 33, 34])
AUDIO_MODES = st.sampled_from(("none", "level", "late", "ahead", "alone"))
STRETCHES = st.lists(
    st.builds(Stretch, st.integers(1, 120), st.lists(STEPS, min_size=1, max_size=3) | STEADY, GOPS, AUDIO_MODES, EVENTS),
    min_size=1,
    max_size=5,
)
STEADY_STRETCHES = st.lists(
    st.builds(Stretch, st.integers(1, 120), STEADY, GOPS, st.sampled_from(("none", "level")), EVENTS), min_size=1, max_size=5
)
TARGETS = st.builds(
    choose_targets,
    st.sampled_from((500, 1000, 2000, 6000)),
    st.sampled_from((0, 200, 333, 500, 1000)),
    frame_ms=st.sampled_from((0, 16.67, 33.3667, 40, 41.67, 100)),
    gop_ms=st.sampled_from((0, 480, 1000, 2000, 4004, 30000)),
)
AUDIO_STEP_MS = 21


def run(show: Show, stretches: list[Stretch]) -> None:
    """Send the frames of *stretches*."""
    time_ms, audio_ms = 5000, 5000
    for stretch in stretches:
        lag_ms = {"late": -700, "ahead": 500}.get(stretch.audio, 0)
        for index in range(stretch.frames):
            alone = stretch.audio == "alone" and index > 5
            if not alone and show.has_video:
                show.add(VIDEO, time_ms, key=index % stretch.gop == 0)
            time_ms += stretch.steps[index % len(stretch.steps)]
            while (stretch.audio != "none" or not show.has_video) and audio_ms <= time_ms + lag_ms:
                show.add(AUDIO, audio_ms)
                audio_ms += AUDIO_STEP_MS
        if stretch.event == "gap":
            time_ms += 20_000
            audio_ms = time_ms
        elif stretch.event == "back":
            time_ms = max(0, time_ms - 4000)
            audio_ms = time_ms
        elif stretch.event:
            show.restart(has_video=stretch.event == "restart")
    show.finish()


@SETTINGS
@given(TARGETS, STRETCHES, st.booleans(), st.integers(0, 3), st.sampled_from((Limits(), Limits(4, 5), Limits(1000, 20))))
# Segments that are gaps, and are skipped later.
@example(Targets(500, 200, 2), [Stretch(1, [33], 1, "none", ""), Stretch(7, [2600], 1, "level", "")], True, 1, Limits())
def test_no_rule_is_broken(targets, stretches, has_video, delta_every, limits):
    show = Show(targets, has_video=has_video, limits=limits, first_number=7, has_keyframes=False, delta_every=delta_every)
    run(show, stretches)
    assert not show.violations, show.violations[:3]


@SETTINGS
@given(TARGETS, STRETCHES, st.booleans())
def test_every_frame_is_in_a_segment_once_and_in_order(targets, stretches, has_video):
    show = Show(targets, has_video=has_video, limits=Limits(bytes=1 << 40, seconds=1e9), checks=False)
    run(show, stretches)
    for type_id in (VIDEO, AUDIO):
        end_ms = None
        for segment, whole, _ in show.closed:
            if segment.is_discontinuity:
                end_ms = None
            for kind, time_ms, duration_ms, _ in whole:
                if kind == type_id:
                    assert end_ms is None or time_ms == end_ms
                    end_ms = time_ms + duration_ms


@SETTINGS
@given(TARGETS, STEADY_STRETCHES, st.booleans())
def test_durations_add_up(targets, stretches, has_video):
    """A segment that begins with a keyframe begins where the durations of those before end."""
    show = Show(targets, has_video=has_video, limits=Limits(bytes=1 << 40, seconds=1e9), checks=False)
    run(show, stretches)
    start_ms = None
    for segment, whole, is_video in show.closed:
        driving = [sample for sample in whole if sample[0] == (VIDEO if is_video else AUDIO)]
        if segment.is_discontinuity or start_ms is None:
            start_ms = driving[0][1]
        elif driving[0][3] or not is_video:
            assert driving[0][1] == start_ms
        start_ms += segment.duration_ms


@given(st.sampled_from((12, 25, 50)), st.sampled_from(([40], [33, 33, 34], [16, 17, 17], [41, 42, 42])))
@settings(max_examples=12, deadline=None)
def test_a_steady_stream_has_whole_parts_and_independent_segments(gop, steps):
    frame_ms = sum(steps) / len(steps)
    targets = choose_targets(2000, 500, frame_ms=frame_ms, gop_ms=gop * frame_ms)
    show = Show(targets, has_video=True)
    run(show, [Stretch(1000, steps, gop, "level", "")])
    assert not show.violations
    for segment, whole, _ in show.closed[:-1]:
        assert segment.duration_ms >= 2000 - 42
        assert next(sample for sample in whole if sample[0] == VIDEO)[3]
        for part in segment.parts[:-1]:
            assert part.duration_ms >= 0.85 * targets.part_ms
            assert part.data


@SETTINGS
@given(streams(), TARGETS)
def test_mp4_segments_have_every_frame(messages, targets):
    """Composition times, audio that is late or absent, lost frames, and timestamps that wrap."""
    tracks = Tracks()
    tracks.set_headers(HEADERS.items)
    has_video = any(type_id == VIDEO for type_id, _, _ in messages)
    window = Window(targets, Limits(bytes=1 << 40, seconds=1e9))
    rendition = Rendition(window, Fragmenter(tracks), init_id="a", has_video=has_video, date_of=int)
    client, clock = Client(), Unwrapper()
    for type_id, timestamp, payload in messages:
        time_ms = clock.unwrap(timestamp)
        if rendition.add(type_id, time_ms, payload, is_keyframe=payload[0] == 0x17):
            assert not client.load(media_playlist(window))
    rendition.finish()
    assert not client.load(media_playlist(window))
    data = b"".join(piece for segment in window.listed for piece in segment.data)
    found = [(sample.track, sample.data) for sample in samples(data)]
    for track, type_id, head in ((VIDEO_TRACK, VIDEO, 5), (AUDIO_TRACK, AUDIO, 2)):
        wanted = [payload[head:] for each, _, payload in messages if each == type_id]
        assert [payload for each, payload in found if each == track] == wanted


@given(st.text(alphabet="_HLSmsnpartkiYESv2=&0123456789-+. x%", max_size=80) | st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_hostile_queries_have_an_answer(query):
    directives = parse_directives(query)
    if directives is not None:
        assert isinstance(Window(Targets(2000, 500, 4), Limits()).answer(directives), Answer)
