"""Players of an H.264 and AAC stream: what they get, when, and what happens to the others when one dies."""

from __future__ import annotations

import re
import time

import gevent
import pytest

from rtmpd.client import Client
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import UNDEFINED, XmlDocument
from rtmpd.protocol.message import MessageType
from tests.e2e.media import AT_ONCE, PATIENCE_S, assert_same, until, wait_for_plays

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


# Bodies of FLV tags: the AVC sequence header of H.264 at 64x48, and one keyframe.
SEQUENCE_HEADER = bytes.fromhex("17000000000142c00affe100176742c00aa61111ec0440000003004000000c83c489846001000668c8420f2c80")
KEYFRAME = bytes.fromhex("17010000000000001c65888205788c5000118c8e00024831c000451afbefaebaebaebaebc0")
GOOD = amf0.encode("onMetaData", {"width": 64.0, "height": 48.0})

BAD = {
    "an undefined member": amf0.encode("onMetaData", {"bad": UNDEFINED, "width": 64.0}),
    "an XML member": amf0.encode("onMetaData", {"bad": XmlDocument("<x/>"), "width": 64.0}),
    "no end marker": GOOD[:-3],
    "bytes behind it": GOOD + b"\xff\0\x0b\x0c",
    "no AMF": GOOD[:13] + b"\xffno AMF",
}


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD)
def test_row_77_metadata_of_any_kind_does_not_make_ffmpeg_refuse_the_stream(server, programs, sent):
    url = server(AT_ONCE).url()
    with Client(url) as publisher:
        publisher.publish()
        publisher.send(MessageType.DATA_AMF0, 0, amf0.encode("@setDataFrame") + sent)
        publisher.send_video(0, SEQUENCE_HEADER)
        publisher.send_video(0, KEYFRAME)
        player = programs.play(url, "-analyzeduration", 500_000, seconds=1)
        deadline, timestamp_ms = time.monotonic() + PATIENCE_S, 0
        while player.running and time.monotonic() < deadline:
            timestamp_ms += 40
            publisher.send_video(timestamp_ms, KEYFRAME)
            gevent.sleep(0.04)
    player.succeed()
    assert len(player.pictures()) > 20
    assert set(player.packets()) == {"video 0"}
