"""Publishers that end, die, come back and collide, and the addresses that they publish to."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.e2e.media import AT_ONCE, assert_same, digests, until, wait_for_plays

FIRST, SECOND = "h264_aac", "h264_aac_other"


def assert_time_runs_forward(packets, limit_ms):
    steps = [after.dts - before.dts for before, after in pairwise(packets)]
    assert min(steps) >= 0
    assert max(steps) < limit_ms


def test_a_player_continues_with_the_next_publisher_of_the_name(server, programs, clips):
    running = server()
    player = programs.play(running.url())
    wait_for_plays(running, "live/test")
    programs.publish(FIRST, running.url()).succeed()
    programs.publish(SECOND, running.url()).succeed()
    expected = {name: digests(clips.packets(FIRST)[name] + clips.packets(SECOND)[name]) for name in ("video 0", "audio 0")}
    # FFmpeg holds back the last audio until it knows that no picture comes before it.
    until(lambda: digests(player.packets()["video 0"]) == expected["video 0"], "both clips")
    assert running.stop() == 0
    player.succeed()
    assert {name: digests(track) for name, track in player.packets().items()} == expected
    for packets in player.packets().values():
        assert_time_runs_forward(packets, 10_000)
    assert len(player.pictures()) == len(expected["video 0"])


def test_a_player_continues_when_its_killed_publisher_returns(server, programs, clips):
    running = server()
    player = programs.play(running.url())
    wait_for_plays(running, "live/test")
    killed = programs.publish(FIRST, running.url())
    until(lambda: player.has_reached(1000), "1 s of the stream")
    killed.kill()
    programs.publish(SECOND, running.url()).succeed()
    first, second = (digests(clips.packets(name)["video 0"]) for name in (FIRST, SECOND))
    until(lambda: digests(player.packets()["video 0"])[-len(second) :] == second, "the second clip")
    assert running.stop() == 0
    player.succeed()
    got = digests(player.packets()["video 0"])
    assert 25 <= len(got) - len(second) < len(first)
    assert got == first[: len(got) - len(second)] + second
    for packets in player.packets().values():
        assert_time_runs_forward(packets, 10_000)
    assert len(player.pictures()) == len(got)


def test_a_second_publisher_of_a_name_is_refused_and_the_first_continues(server, programs, clips):
    running = server(AT_ONCE)
    player = programs.play(running.url())
    wait_for_plays(running, "live/test")
    first = programs.publish(FIRST, running.url())
    running.wait_for_line("publishes live/test")
    second = programs.publish(SECOND, running.url())
    assert second.wait() != 0
    assert "live/test is already being published" in second.errors
    assert first.running
    first.succeed()
    player.succeed()
    assert_same(player.packets(), clips.packets(FIRST))


def test_addresses_name_the_same_stream_for_publisher_and_player(server, programs, clips):
    running = server(AT_ONCE)
    base = f"rtmp://127.0.0.1:{running.port}"
    forms = [
        # (to publish, to play, options of the publisher, the stream's key)
        (f"{base}/live/plain", f"{base}/live/plain", (), "live/plain"),
        (f"{base}/live/token?token=s3cret&user=x", f"{base}/live/token", (), "live/token"),
        (f"{base}/live/both?token=s3cret", f"{base}/live/both?token=other", (), "live/both"),
        (f"{base}/studio/north/camera", f"{base}/studio/north/camera", (), "studio/north/camera"),
        (f"{base}/studio/north/roof/camera", f"{base}/studio/north/roof/camera", (), "studio/north/roof/camera"),
        (f"{base}/live", f"{base}/live/stream", (), "live/stream"),
        (f"{base}/", f"{base}/live/path", ("-rtmp_app", "live", "-rtmp_playpath", "path"), "live/path"),
    ]
    players = [programs.play(play_url, name="play") for _, play_url, _, _ in forms]
    for *_, key in forms:
        wait_for_plays(running, key)
    publishers = [programs.publish(FIRST, url, *options) for url, _, options, _ in forms]
    for publisher in publishers:
        publisher.succeed()
    for player, (*_, key) in zip(players, forms, strict=True):
        player.succeed()
        assert_same(player.packets(), clips.packets(FIRST), key)
    assert not [line for line in running.log() if "s3cret" in line]


@pytest.mark.parametrize("app", ["other", "livelier"])
def test_application_that_is_not_configured_is_refused(app, server, programs):
    running = server("[applications]\n[[live]]\n")
    player = programs.play(running.url(app=app))
    assert player.wait() != 0
    assert "There is no such application" in player.errors
