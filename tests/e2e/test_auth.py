"""Real encoders and players authenticate, each in its own way. Every secret here has "s3cret" in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.media import assert_same, from_first_picture

CLIP = "h264_aac"
USERS = "[auth]\nauth_users = ann=s3cret-pw, bob=s3cret/p@w\n"
TOKENS = "[auth]\nauth_mode = token\nauth_tokens = live/test=s3cret-token\n"
GST_ENCODER = (
    "videotestsrc is-live=true num-buffers=25 ! video/x-raw,format=I420,width=160,height=120,framerate=25/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast ! h264parse ! flvmux streamable=true !"
)


@pytest.fixture
def serve(server):
    """A function that starts a server; the test fails if a secret has got into its log."""
    started = []

    def start(ini):
        started.append(server(ini))
        return started[-1]

    yield start
    for made in started:
        made.stop()
        told = [line for line in made.lines if "s3cret" in line]
        assert not told, told


def at(running, user, name="test"):
    return f"rtmp://{user}127.0.0.1:{running.port}/live/{name}"


def assert_refused(program, *words):
    """The program ends by itself, soon, and knows why."""
    assert program.wait() != 0
    for word in words:
        assert word in program.errors


# FFmpeg -----------------------------------------------------------------------------------------------------------------


def test_row_16_ffmpeg_logs_in_to_publish_and_to_play(serve, programs, clips):
    running = serve(USERS)
    player = programs.play(at(running, "bob:s3cret%2Fp%40w@"))
    running.wait_for_line(r"plays live/test$")
    programs.publish(CLIP, at(running, "ann:s3cret-pw@")).succeed()
    running.wait_for_line(r"connected to live as ann by 'FMLE/3.0 \(compatible; Lavf")
    running.wait_for_line(r"connected to live as bob by 'LNX ")
    assert running.stop() == 0
    player.succeed()
    assert_same(from_first_picture(player.packets()), clips.packets(CLIP), "what was played")


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("ann:s3cret-wrong@", "Incorrect username/password"),
        ("eve:s3cret-pw@", "Incorrect username/password"),
        ("", "No credentials set"),
    ],
)
def test_row_16_ffmpeg_prints_why_a_login_fails(serve, programs, user, words):
    running = serve(USERS)
    assert_refused(programs.publish(CLIP, at(running, user)), words)
    assert_refused(programs.play(at(running, user)), words)
    assert not any("publishes" in line or " plays " in line for line in running.log())


def test_ffmpeg_publishes_and_plays_with_a_token(serve, programs, clips):
    running = serve(TOKENS)
    player = programs.play(at(running, "", "test?token=s3cret-token"))
    running.wait_for_line(r"plays live/test$")
    programs.publish(CLIP, at(running, "", "test?token=s3cret-token")).succeed()
    assert running.stop() == 0
    player.succeed()
    assert_same(from_first_picture(player.packets()), clips.packets(CLIP), "what was played")


def test_ffmpeg_prints_that_a_token_is_wrong(serve, programs):
    running = serve(TOKENS)
    assert_refused(programs.publish(CLIP, at(running, "", "test?token=s3cret-x")), "Not authorized: wrong token.")
    assert_refused(programs.play(at(running, "", "test")), "Not authorized: no token.")


def test_ffmpeg_publishes_under_a_secret_name(serve, programs, clips):
    running = serve("[auth]\nauth_publish_keys = live/test=s3cret-key\n")
    player = programs.play(running.url())
    running.wait_for_line(r"plays live/test$")
    programs.publish(CLIP, at(running, "", "s3cret-key")).succeed()
    assert running.stop() == 0
    player.succeed()
    assert "s3cret" not in player.errors
    assert_same(from_first_picture(player.packets()), clips.packets(CLIP), "what was played")


def test_a_stream_continues_when_a_reload_withdraws_the_permission_of_its_publisher(serve, programs, clips, tmp_path):
    running = serve(USERS)
    publisher = programs.publish(CLIP, at(running, "ann:s3cret-pw@"))
    running.wait_for_line(r"publishes live/test$")
    (tmp_path / "rtmpd.ini").write_text(USERS.replace("ann", "eve"))
    os.kill(running.pid, signal.SIGHUP)
    running.wait_for_line("configuration reloaded")
    publisher.succeed()
    assert_refused(programs.publish(CLIP, at(running, "ann:s3cret-pw@")), "Incorrect username/password")


# rtmpdump and GStreamer -------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_rtmpdump_plays_with_a_token(serve, programs, clips, peer):
    running = serve(TOKENS)
    rtmpdump = peer("rtmpdump", "rtmpdump")
    out = programs.directory / "out.flv"
    dump = programs.start("rtmpdump", rtmpdump, "--live", "-r", at(running, "", "test?token=s3cret-token"), "-o", out)
    running.wait_for_line(r"plays live/test$")
    programs.publish(CLIP, at(running, "", "test?token=s3cret-token")).succeed()
    assert running.stop() == 0
    dump.wait()
    assert_same(from_first_picture(clips.read(out)), clips.packets(CLIP), "what rtmpdump has written")


@pytest.mark.peer
def test_rtmpdump_prints_that_its_token_is_wrong(serve, programs, peer):
    running = serve(TOKENS)
    rtmpdump = peer("rtmpdump", "rtmpdump")
    dump = programs.start("rtmpdump", rtmpdump, "-r", at(running, "", "test?token=s3cret-x"), "-o", programs.directory / "o")
    assert_refused(dump, "NetStream.Play.Failed")


def gstreamer(peer, element):
    launch = peer("gst-launch-1.0", "gstreamer1.0-tools")
    inspect = Path(launch).with_name("gst-inspect-1.0")
    for name in (element, "x264enc"):
        if subprocess.run([inspect, "--exists", name]).returncode:
            if os.environ.get("RTMPD_REQUIRE_PEERS"):
                pytest.fail(f"GStreamer has no {name}")
            pytest.skip(f"GStreamer has no {name}")
    assert shutil.which(launch)
    return launch


@pytest.mark.peer
@pytest.mark.parametrize("login", ["{password}", "{password} authmod=adobe"])
def test_row_16_gstreamer_logs_in(serve, programs, peer, login):
    running = serve(USERS)
    launch = gstreamer(peer, "rtmp2sink")
    for password, right in (("s3cret-pw", True), ("s3cret-wrong", False)):
        sink = f"rtmp2sink location={running.url()} username=ann password={login.format(password=password)}"
        program = programs.start("gst", launch, "-q", *GST_ENCODER.split(), *sink.split())
        assert (program.wait() == 0) is right, program.errors
    running.wait_for_line(r"connected to live as ann by")
    running.wait_for_line(r"connect refused: .*wrong user or password")
