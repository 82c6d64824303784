"""Packaging while publishers come, go, change everything and send junk: each playlist is valid, and nothing raises."""

from __future__ import annotations

import gevent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.services.hls.shows import AAC_48_HEADER, AAC_HEADER, AVC_HEADER, KEY, SMALL_HEADER, Publisher, Show

HEADERS = (
    AVC_HEADER,
    SMALL_HEADER,
    AAC_HEADER,
    AAC_48_HEADER,
    b"\x90avc1" + AVC_HEADER[5:],
    b"\x90hvc1" + bytes(30),
    b"\x96\x00avc1\x01" + AVC_HEADER[5:],
    b"\x95\x00mp4a\x01" + AAC_HEADER[2:],
)
AUDIO_FIRST = (0xAF, 0x95)

publishers = st.fixed_dictionaries(
    {
        "fps": st.sampled_from([0, 5, 25, 30, 60]),
        "gop": st.sampled_from([0, 5, 30, 250]),
        "audio": st.booleans(),
        "starts_ms": st.sampled_from([0, 5000, 2**32 - 3000]),
        "sends_headers": st.sampled_from([True, True, False]),
        "jitter": st.sampled_from([lambda number: 0, lambda number: number * 37 % 60]),
        "composition": st.sampled_from([lambda number: 0, lambda number: (80, 0, -20)[number % 3]]),
    }
)
pauses = st.sampled_from([40, 250, 250, 900, 3000])
actions = st.one_of(
    st.tuples(st.just("send"), pauses),
    st.tuples(st.just("send"), pauses),
    st.tuples(st.just("header"), st.sampled_from(HEADERS)),
    st.tuples(st.just("junk"), st.tuples(st.sampled_from(["audio", "video", "data"]), st.binary(max_size=30))),
    st.tuples(st.just("leave"), st.booleans()),
    st.tuples(st.just("come"), publishers),
    st.tuples(st.just("jump"), st.sampled_from([-5000, 7000, 100_000])),
)
options = st.tuples(
    st.sampled_from(["always", "on_demand"]),
    st.sampled_from([0, 100, 500]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 64]),
)


@given(options, publishers, st.lists(actions, min_size=10, max_size=40))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_every_playlist_is_valid(chosen, first, script):
    mode, part_ms, segment_s, limit_mib = chosen
    ini = f"hls = {mode}\nhls_part_ms = {part_ms}\nhls_segment_s = {segment_s}\nhls_memory_limit_bytes = {limit_mib}M\n"
    show = Show(f"[publish]\non_conflict = backup\n[hls]\n{ini}", has_keyframes=False)
    present = [Publisher(show, **first)]
    try:
        for action, value in script:
            time_ms = (present[0].starts_ms + int(present[0].time_ms)) % 2**32 if present else 0
            if action == "send":
                for each in present:
                    each.send(each.time_ms + value)
            elif action == "come" and len(present) < 2:
                present.append(Publisher(show, **value))
            elif action == "leave" and present:
                present.pop(0).leave(lost=value)
            elif action == "jump" and present:
                present[0].starts_ms = (present[0].starts_ms + value) % 2**32
            elif action == "header" and present:
                source = present[0].source
                (source.audio if value[0] in AUDIO_FIRST else source.video)(time_ms, value)
            elif action == "junk" and present:
                getattr(present[0].source, value[0])(time_ms, value[1])
            packager = show.packagers.find(KEY)
            if packager is not None:
                show.packager = packager
                show.step()
        for each in present:
            each.leave(lost=False)
        for _ in range(10):
            gevent.sleep(0.0005)
        if show.packager is not None:
            show.step()
        assert show.hub.counters["hls_errors"] == show.hub.bus.failures == 0
        # With too little memory a playlist becomes shorter than clients want.
        allowed = {"playlist duration"} if limit_mib == 1 else set()
        found = {each for viewer in show.viewers.values() for each in viewer.violations if each.rule not in allowed}
        assert not found
    finally:
        show.close()
