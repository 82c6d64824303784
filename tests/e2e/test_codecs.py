"""Every codec that ffmpeg puts into FLV, plain or by Enhanced RTMP, gets through to a player that waits and to a late one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import serving
from tests.e2e.media import AT_ONCE, Programs, assert_same, until, wait_for_plays

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.media import Clips, Player, Program

NAMES = (
    "hevc_aac",
    "av1_opus",
    "vp9_aac",
    "sorenson_mp3",
    "aac_only",
    "mp3_only",
    "flac_only",
    "h264_ac3",
    "h264_only",
    "two_audio_tracks",
    "two_tracks_of_each",
)


@dataclass
class Broadcast:
    publisher: Program
    player: Player
    late: Player


@pytest.fixture(scope="module")
def broadcasts(ffmpeg, clips, tmp_path_factory) -> Iterator[dict[str, Broadcast]]:
    """All of them at the same time, on one server."""
    directory = tmp_path_factory.mktemp("codecs")
    for name in NAMES:
        _ = clips[name]
    programs = Programs(ffmpeg, directory, clips)
    # FFmpeg would look at 5 s of audio before it gives any of it out.
    options = ("-analyzeduration", 1_000_000)
    try:
        # FFmpeg reads several tracks, but does not say so.
        with serving(AT_ONCE + "[live]\nmultitrack_fallback = all\n", directory) as server:
            players = {name: programs.play(server.url(name), *options, name=f"play_{name}") for name in NAMES}
            for name in NAMES:
                wait_for_plays(server, f"live/{name}")
            publishers = {name: programs.publish(name, server.url(name)) for name in NAMES}
            late: dict[str, Player] = {}

            def start_late() -> bool:
                for name in NAMES:
                    if name not in late and players[name].has_reached(2000):
                        late[name] = programs.play(server.url(name), *options, name=f"late_{name}")
                return len(late) == len(NAMES) or not any(publisher.running for publisher in publishers.values())

            until(start_late, "2 s of each stream")
            for program in (*publishers.values(), *players.values(), *late.values()):
                program.wait()
            yield {name: Broadcast(publishers[name], players[name], late[name]) for name in NAMES}
    finally:
        programs.kill_all()


@pytest.mark.parametrize("name", NAMES)
def test_waiting_player_gets_every_packet_and_decodes_it(name, broadcasts, clips: Clips):
    broadcast = broadcasts[name]
    broadcast.publisher.succeed()
    broadcast.player.succeed()
    expected = clips.packets(name)
    assert_same(broadcast.player.packets(), expected)
    assert len(broadcast.player.pictures()) == len(expected.get("video 0", ()))


@pytest.mark.parametrize("name", NAMES)
def test_late_player_begins_with_a_picture_and_gets_every_packet_from_there_on(name, broadcasts, clips: Clips):
    broadcast = broadcasts[name]
    broadcast.late.succeed()
    expected, got = clips.packets(name), broadcast.late.packets()
    assert got.keys() == expected.keys()
    for track, packets in got.items():
        assert packets == expected[track][-len(packets) :], track
        # It came when 2 s had been published, a keyframe comes every second, and of audio alone it is given the last second.
        assert 500 <= packets[0].dts <= 4500, track
    pictures = broadcast.late.pictures()
    assert len(pictures) == len(got.get("video 0", ()))
    assert pictures == broadcast.player.pictures()[len(broadcast.player.pictures()) - len(pictures) :]
