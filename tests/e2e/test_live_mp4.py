"""Live MP4 of each codec, as ffmpeg plays it over HTTP."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import serving
from tests.e2e.media import AT_ONCE, Programs, digests, until
from tests.e2e.test_http import HTTP, address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.media import Clips, Player

CLIPS = {
    "av1_opus": {"video 0": 90_000, "audio 0": 48_000},
    "hevc_aac": {"video 0": 90_000, "audio 0": 44_100},
    "vp9_aac": {"video 0": 90_000, "audio 0": 44_100},
    "h264_ac3": {"video 0": 90_000, "audio 0": 44_100},
    "h264_only": {"video 0": 90_000},
    "aac_only": {"audio 0": 44_100},
    "mp3_only": {"audio 0": 44_100},
    "flac_only": {"audio 0": 44_100},
    # Of several tracks the first of each kind.
    "two_tracks_of_each": {"video 0": 90_000, "audio 0": 44_100},
}
"""Ticks per second by track."""

END = ("Stream ends prematurely", "Last message repeated", "Input/output error")
"""FFmpeg reports the end of a body that has no length."""


@pytest.fixture(scope="module")
def players(ffmpeg, clips, tmp_path_factory) -> Iterator[dict[str, Player]]:
    """A player of each clip, which was there before the publisher."""
    directory = tmp_path_factory.mktemp("live_mp4")
    for name in CLIPS:
        _ = clips[name]
    programs = Programs(ffmpeg, directory, clips)
    with ExitStack() as stack:
        stack.callback(programs.kill_all)
        server = stack.enter_context(serving(HTTP + AT_ONCE, directory))
        made = {
            name: programs.play(f"{address(server)}/live/{name}.mp4?wait=1", "-analyzeduration", 1_000_000, name=f"mp4_{name}")
            for name in CLIPS
        }
        publishers = [programs.publish(name, server.url(name)) for name in CLIPS]
        for publisher in publishers:
            publisher.succeed()
        until(lambda: not any(player.running for player in made.values()), "the end of the players")
        yield made


@pytest.mark.parametrize("name", CLIPS)
def test_ffmpeg_gets_the_published_frames_at_their_times(players, clips: Clips, name):
    player, rates = players[name], CLIPS[name]
    assert player.wait() == 0, player.errors
    assert [line for line in player.errors.splitlines() if not any(part in line for part in END)] == []
    got, published = player.packets(), clips.packets(name)
    assert got.keys() == rates.keys()
    for track, rate in rates.items():
        # A busy machine may make ffmpeg join late, then at a keyframe.
        expected = published[track][-len(got[track]) :]
        assert len(got[track]) >= len(published[track]) * 2 // 3
        if name == "av1_opus" and track == "video 0":
            # A sample has no temporal delimiter.
            assert [each.size for each in got[track]] == [each.size - 2 for each in expected]
        else:
            assert digests(got[track]) == digests(expected)
        for one, other in zip(got[track], expected, strict=True):
            # To half of a frame of audio.
            assert one.pts * 1000 / rate == pytest.approx(other.pts, abs=1 if track == "video 0" else 14)
    assert len(player.pictures()) == len(got.get("video 0", ()))
