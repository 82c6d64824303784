"""Players behind links that are too slow for the stream, which the kernel limits: what a decoder sees of each policy.

The server, the publishers and players that keep up are in one network namespace; each slow player is in one of its own, behind
a link with a token bucket filter. Needs root, and iproute2.
"""

from __future__ import annotations

import os
import re
import signal
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.conftest import Server
from tests.e2e.media import PATIENCE_S, Clips, Player, Programs, assert_same, until
from tests.e2e.namespaces import Namespace, link

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIP = "h264_b_frames"
KEYFRAME_MS = 1000
LINK = "900kbit"
PORT = 1935
INI = """
[server]
unsent_limit_bytes = 16384
[publish]
publisher_grace_s = 0
[hooks]
hook_scripts = player_slow={script}
[backpressure]
lag_limit_s = 2
[applications]
[[keyframe]]
[[nonref]]
backpressure_policy = nonref
lag_limit_s = 5
[[disconnect]]
backpressure_policy = disconnect
"""
POLICIES = ("keyframe", "nonref", "disconnect")

pytestmark = pytest.mark.peer


class Outcome(NamedTuple):
    """What there is to look at, when all is over."""

    lines: list[str]
    events: list[dict[str, str]]
    counted: dict[str, int]
    slow: dict[str, Player]
    fast: dict[str, Player]


@pytest.fixture(scope="module")
def outcome(ffmpeg: str, clips: Clips, tmp_path_factory) -> Iterator[Outcome]:
    """Let the clip go by one player that keeps up and one that does not, for each policy, all at the same time."""
    if os.geteuid():
        pytest.skip("needs root")
    directory: Path = tmp_path_factory.mktemp("backpressure")
    script = directory / "hook"
    script.write_text(f'#!/bin/sh\nenv | grep ^RTMP_ | tr "\\n" " " >> {directory}/told\necho >> {directory}/told\n')
    script.chmod(0o755)
    programs = Programs(ffmpeg, directory, clips)
    near = Namespace()
    far = {policy: Namespace() for policy in POLICIES}
    server = None

    def play(name: str, at: Namespace, address: str, policy: str) -> Player:
        url = f"rtmp://{address}:{PORT}/{policy}/test"
        command = [*at.prefix, ffmpeg, "-v", "error", "-nostdin", "-copyts", "-rw_timeout", PATIENCE_S * 1_000_000, "-i", url]
        player = Player(directory, f"{name}_{policy}", command, PATIENCE_S)
        programs.started.append(player)
        return player

    try:
        addresses = {policy: link(near, far[policy], number, LINK) for number, policy in enumerate(POLICIES)}
        server = Server(
            INI.format(script=script), "--listen", f":{PORT}", directory=directory, level="info", prefix=near.prefix
        )
        slow = {policy: play("slow", far[policy], addresses[policy], policy) for policy in POLICIES}
        fast = {policy: play("fast", near, "127.0.0.1", policy) for policy in POLICIES}
        until(lambda: sum(" plays " in line for line in server.log()) == 2 * len(POLICIES), "the players")
        command = (*near.prefix, ffmpeg, "-v", "error", "-nostdin", "-re", "-copyts", "-i", clips[CLIP], "-c", "copy")
        publishers = [
            programs.start(
                f"publish_{policy}",
                *(*command, "-flvflags", "no_duration_filesize", "-f", "flv", f"rtmp://127.0.0.1:{PORT}/{policy}/test"),
            )
            for policy in POLICIES
        ]
        for program in publishers:
            program.succeed()
        for player in (*slow.values(), *fast.values()):
            player.wait()
        server.process.send_signal(signal.SIGUSR2)
        counted = server.wait_for_line(r"counted: (.*)")[1]
        until(lambda: sum("stopped playing " in line for line in server.log()) == 2 * len(POLICIES), "the ends of the plays")
        told = (directory / "told").read_text().splitlines()
        yield Outcome(
            list(server.lines),
            [dict(re.findall(r"RTMP_(\w+)=(\S*)", line)) for line in told],
            {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", counted)},
            slow,
            fast,
        )
    finally:
        programs.kill_all()
        if server is not None:
            server.stop()
        for namespace in (near, *far.values()):
            namespace.close()


def numbers(outcome: Outcome, policy: str) -> tuple[int, int]:
    """The skips and dropped messages of the slow player, by the log."""
    line = next(each for each in outcome.lines if f"stopped playing {policy}/test" in each and "#" in each and "10.97." in each)
    found = re.search(r"(\d+) skips?, (\d+) messages? dropped$", line)
    assert found, line
    return int(found[1]), int(found[2])


def told(outcome: Outcome, policy: str) -> list[dict[str, str]]:
    return [event for event in outcome.events if event["STREAM_KEY"] == f"{policy}/test"]


@pytest.mark.parametrize("policy", POLICIES)
def test_players_that_keep_up_lose_nothing(outcome, clips, policy):
    player = outcome.fast[policy]
    player.succeed()
    assert_same(player.packets(), clips.packets(CLIP), player.name)


def test_keyframe_jumps_to_keyframes_and_every_picture_is_whole(outcome, clips):
    player = outcome.slow["keyframe"]
    player.succeed()
    clip, got = clips.packets(CLIP)["video 0"], player.packets()["video 0"]
    place = {packet: number for number, packet in enumerate(clip)}
    places = [place[packet] for packet in got]
    jumps = [b for a, b in pairwise(places) if b != a + 1]
    assert jumps
    assert all(b % 25 == 0 for b in jumps)
    assert places == sorted(places)
    assert len(player.pictures()) >= len(got) - 3 * len(jumps)
    skips, dropped = numbers(outcome, "keyframe")
    assert skips == len(jumps)
    assert dropped > len(clip) - len(got)
    (event, *_) = told(outcome, "keyframe")
    assert (event["EVENT_TYPE"], event["ACTION"], event["POLICY"]) == ("player_slow", "skip", "keyframe")
    assert int(event["LAG_MS"]) > 2000


def test_nonref_shows_fewer_pictures_and_jumps_nowhere(outcome, clips):
    player = outcome.slow["nonref"]
    player.succeed()
    clip, got = clips.packets(CLIP)["video 0"], player.packets()["video 0"]
    missing = len(clip) - len(got)
    assert missing > 20
    assert [packet for packet in clip if packet in set(got)] == got
    # Every picture that came was decoded, and all sound is there.
    assert len(player.pictures()) == len(got)
    assert player.packets()["audio 0"] == clips.packets(CLIP)["audio 0"]
    # It never has to do without for longer than between two pictures that others need.
    assert max(b.dts - a.dts for a, b in pairwise(got)) <= 4 * 40
    assert numbers(outcome, "nonref") == (0, missing)
    assert outcome.counted["player_frames_disposed"] == missing
    (event,) = told(outcome, "nonref")
    assert (event["ACTION"], event["POLICY"], event["SKIPS"]) == ("thin", "nonref", "0")
    # It has taken something since it was found too slow.
    assert int(event["LAG_MS"]) > 1000


def test_disconnect_ends_the_play_with_a_reason(outcome, clips):
    player = outcome.slow["disconnect"]
    clip, got = clips.packets(CLIP)["video 0"], player.packets()["video 0"]
    assert 10 < len(got) < len(clip)
    assert got == clip[: len(got)]
    assert player.process.returncode != 0 or "Server error: The connection is too slow" in player.errors
    assert [line for line in outcome.lines if re.search(r"10\.97\.\d+\.2:\d+ closed: it was too slow: 2\.\d s and", line)]
    assert outcome.counted["players_disconnected"] == 1
    (event,) = told(outcome, "disconnect")
    assert event["ACTION"] == "disconnect"
    assert event["REMOTE_ADDR"].startswith("10.97.")
