"""Recordings as MP4 of what real ffmpeg publishes, read by ffprobe and ffmpeg: whole, in progress, and after kill -9."""

from __future__ import annotations

import json
import subprocess
import threading
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Server
from tests.e2e.conftest import serving
from tests.e2e.media import AT_ONCE, CLIPS, Programs, digests, until
from tests.e2e.test_recording import FRAME_MS, RECORD, Ranges, moved_to_zero
from tests.fmp4_files import all_kinds, boxes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.media import Clips

MP4 = AT_ONCE + RECORD + "record_format = mp4\n"
NAMES = ("h264_aac", "h264_aac_long_gop", "hevc_aac", "av1_opus", "two_audio_tracks", "fast")
OTHERS = ("sorenson_mp3",)
HALF_A_FRAME_S = 0.013
"""Audio follows its own clock, as long as timestamps are within half of a frame."""


@pytest.fixture(scope="module")
def recordings(ffmpeg, clips, tmp_path_factory) -> Iterator[dict[str, Path]]:
    """One recording of each clip, all made at the same time."""
    directory, work = tmp_path_factory.mktemp("recordings"), tmp_path_factory.mktemp("recording")
    for name in (*NAMES, *OTHERS):
        _ = clips[name]
    programs = Programs(ffmpeg, work, clips)
    try:
        with serving(MP4.format(directory), work) as server:
            publishers = [programs.publish(name, server.url(name), "-tcp_nodelay", 1) for name in (*NAMES, *OTHERS)]
            for publisher in publishers:
                publisher.succeed()
            for name in (*NAMES, *OTHERS):
                server.wait_for_line(rf"live/{name}: recorded {directory}/live/{name}\.")
            (work / "log").write_text("\n".join(server.log()))
        yield {path.stem: path for path in (directory / "live").iterdir()} | {"log": work / "log"}
    finally:
        programs.kill_all()


def probe(program: str, path: Path, *arguments: object) -> dict[str, object]:
    """Return what ffprobe says of a file, without a warning."""
    command = [program, "-v", "warning", "-show_format", "-show_streams", *map(str, arguments), "-of", "json", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_every_packet_is_in_the_recording_which_has_its_duration(name, recordings, clips: Clips, peer):
    path = recordings[name]
    expected = moved_to_zero(clips.packets(name))
    expected.pop("audio 1", None)
    found = probe(peer("ffprobe", "ffmpeg"), path, "-show_packets", "-show_data_hash", "md5")
    # FFmpeg adds the composition time of the first picture.
    assert abs(float(found["format"]["duration"]) - CLIPS[name].seconds) <= 0.15
    for number, (track, packets) in enumerate(expected.items()):
        got = [packet for packet in found["packets"] if packet["stream_index"] == number]
        if name != "av1_opus" or number:
            # Temporal delimiters of AV1 have no place in MP4.
            assert [packet["data_hash"] for packet in got] == [f"MD5:{packet.digest}" for packet in packets]
        limit_s = 0.0015 if track.startswith("video") else HALF_A_FRAME_S
        for mine, theirs in zip(got, packets, strict=True):
            assert abs(float(mine["dts_time"]) - theirs.dts / 1000) <= limit_s
            assert abs(float(mine["pts_time"]) - theirs.pts / 1000) <= limit_s


def test_what_mp4_cannot_carry_is_flv_and_named_once(recordings):
    log = recordings["log"].read_text()
    assert recordings["sorenson_mp3"].suffix == ".flv"
    assert log.count("live/sorenson_mp3: recording as FLV instead of MP4: MP4 can't carry video codec h263") == 1
    assert log.count("live/two_audio_tracks: not recorded: audio 1; an MP4 file has the first track of") == 1


def test_ffmpeg_seeks_by_the_index_and_reads_little(recordings, ffmpeg):
    data = recordings["fast"].read_bytes()
    positions = [start - 8 for kind, start, _ in boxes(data) if kind == b"moof"]

    class Handler(Ranges):
        content = data

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        command = [ffmpeg, "-v", "warning", "-ss", "2.02", "-i", f"http://127.0.0.1:{http.server_port}/", "-frames:v", "1"]
        done = subprocess.run([*command, "-f", "framemd5", "-"], capture_output=True, text=True, timeout=60)
        http.shutdown()
        thread.join()
    assert (done.returncode, done.stderr) == (0, "")
    assert set(Handler.starts) & set(positions[1:]), (Handler.starts, positions)
    # No fragment before it was asked for: the first index says where it is.
    assert len(Handler.starts) <= 5


@pytest.mark.parametrize(("name", "at_s"), [("h264_aac", "2.02"), ("h264_aac_long_gop", "4.02"), ("h264_aac_long_gop", "0.5")])
def test_ffmpeg_finds_the_right_picture(name, at_s, recordings, clips: Clips, ffmpeg):
    def picture(*arguments):
        command = [ffmpeg, "-v", "warning", *arguments, "-frames:v", "1", "-an", "-f", "framemd5", "-"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()[-1]

    # Of the clip, it decodes all before.
    assert picture("-ss", at_s, "-i", recordings[name]) == picture("-i", clips[name], "-ss", at_s)


@pytest.mark.peer
def test_a_recording_survives_kill_9_and_gets_its_index_at_the_next_start(clips: Clips, ffmpeg, peer, tmp_path, programs):
    _ = clips["h264_aac_minute"]
    part, path = tmp_path / "live/a.mp4.part", tmp_path / "live/a.mp4"
    ffprobe = peer("ffprobe", "ffmpeg")
    server = Server(MP4.format(tmp_path), directory=tmp_path)
    again = None
    try:
        programs.publish("h264_aac_minute", server.url("a"))
        player = programs.play(server.url("a"), "-analyzeduration", 100_000)
        until(lambda: player.has_reached(3500) and part.exists(), "three and a half seconds")
        server.process.kill()
        server.process.wait()
        seen_ms = player.packets()["video 0"][-1].dts
        assert b"mfra" not in all_kinds(part.read_bytes())
        found = probe(ffprobe, part, "-count_packets")
        pictures = int(found["streams"][0]["nb_read_packets"])
        # A fragment of two seconds, and a batch.
        assert pictures * FRAME_MS >= seen_ms - 3500
        again = Server(MP4.format(tmp_path), directory=tmp_path)
        again.wait_for_line(rf"repaired {path}; {pictures * FRAME_MS / 1000:.1f} s, \d+ bytes, 0 bytes cut off")
        assert again.stop() == 0
    finally:
        for each in (server, again):
            if each is not None:
                each.process.kill()
                each.process.wait()
    assert not part.exists()
    assert all_kinds(path.read_bytes())[-1] == b"mfra"
    found = probe(ffprobe, path, "-count_packets")
    assert int(found["streams"][0]["nb_read_packets"]) == pictures
    assert abs(float(found["format"]["duration"]) * 1000 - pictures * FRAME_MS) <= FRAME_MS
    wanted = clips.packets("h264_aac_minute")["video 0"]
    assert digests(clips.read(path)["video 0"]) == digests(wanted[:pictures])
    command = [ffmpeg, "-v", "warning", "-ss", "1.5", "-i", path, "-frames:v", "1", "-copyts", "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len([line for line in done.stdout.splitlines() if line and line[0] != "#"]) >= 1
