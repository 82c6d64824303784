"""Enhanced RTMP with real programs: several tracks for players without multitrack support, and through a relay."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import serving
from tests.e2e.media import AT_ONCE, Programs, assert_same, until, wait_for_plays

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.media import Clips, Player

TRACKS = "two_tracks_of_each"
RELAYED = ("hevc_aac", "av1_opus", "flac_only", "h264_ac3", TRACKS)
OPTIONS = ("-analyzeduration", 1_000_000)


@pytest.fixture(scope="module")
def players(ffmpeg, clips, tmp_path_factory) -> Iterator[dict[str, Player]]:
    """The players: ``waiting`` and ``late`` at a server that sends one track, and one per clip behind a relay."""
    directory = tmp_path_factory.mktemp("enhanced")
    (directory / "far").mkdir()
    for name in RELAYED:
        _ = clips[name]
    programs = Programs(ffmpeg, directory, clips)
    with ExitStack() as stack:
        stack.callback(programs.kill_all)
        far = stack.enter_context(serving(AT_ONCE + "[live]\nmultitrack_fallback = all\n", directory / "far"))
        relay = f"[relay]\nrelay_to = rtmp://127.0.0.1:{far.port}/live\n"
        near = stack.enter_context(serving(AT_ONCE + relay, directory))
        made = {name: programs.play(far.url(name), *OPTIONS, name=f"far_{name}") for name in RELAYED}
        made["waiting"] = programs.play(near.url(TRACKS), *OPTIONS, name="waiting")
        for name in RELAYED:
            wait_for_plays(far, f"live/{name}")
        wait_for_plays(near, f"live/{TRACKS}")
        # The relay has come up by then: what comes before it does is lost to it.
        publishers = {name: programs.publish(name, near.url(name), "-tcp_nodelay", 1) for name in RELAYED}
        until(lambda: made["waiting"].has_reached(2000) or not publishers[TRACKS].running, "2 s of both tracks")
        made["late"] = programs.play(near.url(TRACKS), *OPTIONS, name="late")
        for program in (*publishers.values(), *made.values()):
            program.wait()
            program.succeed()
        yield made


def first_tracks(clips: Clips):
    return {name: packets for name, packets in clips.packets(TRACKS).items() if name.endswith(" 0")}


def test_a_player_without_multitrack_support_gets_the_first_track_of_each_kind(players, clips: Clips):
    expected = first_tracks(clips)
    assert sorted(expected) == ["audio 0", "video 0"]
    assert_same(players["waiting"].packets(), expected)
    assert len(players["waiting"].pictures()) == len(expected["video 0"])


def test_a_late_player_without_multitrack_support_gets_the_first_track_of_each_kind(players, clips: Clips):
    expected, got = first_tracks(clips), players["late"].packets()
    assert got.keys() == expected.keys()
    for track, packets in got.items():
        assert packets == expected[track][-len(packets) :], track
    assert len(players["late"].pictures()) == len(got["video 0"]) > 0


@pytest.mark.parametrize("name", RELAYED)
def test_a_relay_forwards_every_track(name, players, clips: Clips):
    got, expected = players[name].packets(), clips.packets(name)
    assert got.keys() == expected.keys()
    for track, packets in got.items():
        # The relay begins at the first keyframe that it can.
        assert packets == expected[track][-len(packets) :], track
        assert len(packets) >= len(expected[track]) * 2 // 3
    assert len(players[name].pictures()) == len(got.get("video 0", ()))
