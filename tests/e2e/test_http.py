"""FLV and MP4 over HTTP as ffmpeg and curl play it."""

from __future__ import annotations

import subprocess

import pytest

from rtmpd.media import flv
from tests.e2e.media import AT_ONCE, assert_same, digests, until, wait_for_plays

HTTP = "[http]\nhttp_listen = 127.0.0.1:0\n"


def address(server, scheme="http"):
    return server.wait_for_line(rf"HTTP on ({scheme}://127\.0\.0\.1:\d+)/$")[1]


@pytest.mark.parametrize("clip", ["h264_aac", "h264_aac_long_gop"])
def test_ffmpeg_gets_what_was_published(server, programs, clips, clip):
    running = server(HTTP + AT_ONCE)
    player = programs.play(f"{address(running)}/live/test.flv?wait=1")
    wait_for_plays(running, "live/test")
    programs.publish(clip, running.url()).succeed()
    # FFmpeg reports each body without a length as one that has ended early.
    assert player.wait() == 0
    assert_same(player.packets(), clips.packets(clip))


def test_ffmpeg_gets_the_same_as_mp4(server, programs, clips):
    running = server(HTTP + AT_ONCE)
    player = programs.play(f"{address(running)}/live/test.mp4?wait=1")
    programs.publish("h264_aac", running.url()).succeed()
    assert player.wait() == 0, player.errors
    got, published = player.packets(), clips.packets("h264_aac")
    for name, rate in ("video 0", 90_000), ("audio 0", 44_100):
        # A busy machine may make ffmpeg join late, then at a keyframe.
        expected = published[name][-len(got[name]) :]
        assert digests(got[name]) == digests(expected)
        for one, other in zip(got[name], expected, strict=True):
            assert one.pts * 1000 / rate == pytest.approx(other.pts, abs=1)
            assert one.dts * 1000 / rate == pytest.approx(other.dts, abs=1)


def test_ffmpeg_gets_it_by_https(server, programs, clips, authority):
    pair = authority.issue("localhost", "127.0.0.1")
    running = server(f"[http]\nhttp_listen =\nhttp_tls_listen = 127.0.0.1:0\n[tls]\n{pair.ini}{AT_ONCE}")
    player = programs.play(f"{address(running, 'https')}/live/test.flv?wait=1", "-ca_file", authority.path)
    wait_for_plays(running, "live/test")
    programs.publish("h264_aac", running.url()).succeed()
    assert player.wait() == 0
    assert_same(player.packets(), clips.packets("h264_aac"))


def test_curl_ends_with_the_stream(server, programs, peer, tmp_path):
    running = server(HTTP + AT_ONCE)
    target = tmp_path / "curl.flv"
    command = [peer("curl", "curl"), "-sS", "--fail", "-o", target, f"{address(running)}/live/test.flv?wait=1"]
    with subprocess.Popen(command) as curl:
        wait_for_plays(running, "live/test")
        programs.publish("h264_aac", running.url()).succeed()
        until(lambda: curl.poll() is not None, "curl has ended")
    assert curl.returncode == 0
    data = target.read_bytes()
    assert data[:5] == b"FLV\1\5"
    position = flv.FILE_HEADER_SIZE
    while position < len(data):
        size = int.from_bytes(data[position + 1 : position + 4], "big")
        position += size + 15
        assert int.from_bytes(data[position - 4 : position], "big") == size + 11
    assert position == len(data)
