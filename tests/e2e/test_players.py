"""Players of an H.264 and AAC stream: what they get, when, and what happens to the others when one dies."""

from __future__ import annotations

import re
import time

from tests.e2e.media import AT_ONCE, assert_same, until, wait_for_plays

LONG = "h264_aac_long_gop"
LAST_KEYFRAME_MS = 1000


def test_late_player_starts_at_once_at_the_last_keyframe_and_has_the_same_end_as_the_others(server, programs, clips):
    running = server(AT_ONCE)
    url = running.url()
    first, second = (programs.play(url, name=name) for name in ("first", "second"))
    wait_for_plays(running, "live/test", 2)
    publisher = programs.publish(LONG, url)
    until(lambda: first.has_reached(3000), "3 s of the stream")
    asked_at = time.monotonic()
    late = programs.play(url, name="late")
    until(lambda: late.pictures() or not late.running, "the late player's first picture")
    waited_s = time.monotonic() - asked_at
    for program in (publisher, first, second, late):
        program.succeed()

    # The next keyframe would have been 11 s into the stream.
    assert waited_s < 4
    for player in (first, second):
        assert_same(player.packets(), clips.packets(LONG), player.name)
    video, audio = (clips.packets(LONG)[name] for name in ("video 0", "audio 0"))
    assert late.packets()["video 0"] == [packet for packet in video if packet.dts >= video[0].dts + LAST_KEYFRAME_MS]
    late_audio = late.packets()["audio 0"]
    assert late_audio == audio[-len(late_audio) :]
    assert 0 <= late_audio[0].dts - late.packets()["video 0"][0].dts < 50
    assert len(first.pictures()) == len(video)
    assert first.pictures() == second.pictures()
    assert late.pictures() == first.pictures()[-len(late.packets()["video 0"]) :]


def test_late_player_sees_no_track_that_was_not_published_and_can_record_a_second(server, programs, ffmpeg):
    running = server(AT_ONCE)
    url = running.url()
    first = programs.play(url)
    wait_for_plays(running, "live/test")
    publisher = programs.publish(LONG, url)
    until(lambda: first.has_reached(2000), "2 s of the stream")
    command = (ffmpeg, "-hide_banner", "-nostdin", "-i", url, "-map", "0", "-t", 1, "-c", "copy", "late.mkv")
    late = programs.start("late", *command)
    assert late.wait() == 0
    # FFmpeg makes a subtitle track of onMetaData whose timestamp is not 0, and then waits for a second of subtitles.
    described = late.errors.partition("Input #0")[2].partition("Output #0")[0]
    assert re.findall(r"Stream #\S+ (\w+):", described) == ["Video", "Audio"], described
    assert publisher.running


def test_a_killed_player_disturbs_no_other_client_and_its_connection_ends_once(server, programs, clips):
    running = server(AT_ONCE)
    url = running.url()
    others = [programs.play(url, name="other") for _ in range(2)]
    wait_for_plays(running, "live/test", 2)
    victim = programs.play(url, name="victim")
    number = wait_for_plays(running, "live/test", 3)
    publisher = programs.publish("h264_aac", url)
    until(lambda: victim.has_reached(1000), "1 s of the stream")
    victim.kill()
    line = running.wait_for_line(rf"#{number} \S+ closed: .*")
    assert publisher.running
    publisher.succeed()
    for player in others:
        player.succeed()
        assert_same(player.packets(), clips.packets("h264_aac"), player.name)
    about_victim = [line for line in running.log() if f"#{number} " in line]
    assert sum(" closed: " in line for line in about_victim) == 1, about_victim
    assert sum(" stopped playing " in line for line in about_victim) == 1, about_victim
    assert about_victim[-1].endswith(line[0])


def test_a_player_that_connects_before_the_publisher_waits(server, programs, clips):
    running = server(AT_ONCE)
    player = programs.play(running.url(), "-rtmp_live", "live")
    wait_for_plays(running, "live/test")
    assert player.packets() == {}
    programs.publish("h264_aac", running.url()).succeed()
    player.succeed()
    assert_same(player.packets(), clips.packets("h264_aac"), player.name)


def test_a_player_without_a_publisher_is_refused_if_wait_for_publisher_is_off(server, programs):
    running = server("[live]\nwait_for_publisher = no\n")
    player = programs.play(running.url())
    assert player.wait() != 0
    assert "live/test is not being published" in player.errors
