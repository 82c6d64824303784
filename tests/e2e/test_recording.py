"""Recordings of what real ffmpeg publishes, read by ffprobe and ffmpeg: whole, in segments, and after kill -9."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from rtmpd.media.flv_repair import scan
from tests.conftest import Server
from tests.e2e.conftest import serving
from tests.e2e.media import AT_ONCE, CLIPS, Programs, assert_same, until, wait_for_plays
from tests.e2e.test_codecs import NAMES as CODECS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.media import Clips, Program, Tracks

NAMES = ("h264_aac", *CODECS, "fast")
FRAME_MS = 40
RECORD = "[record]\nrecord_all = yes\nrecord_directory = {}\nrecord_file_name = {{app}}/{{name}}\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def recordings(ffmpeg, clips, directory, tmp_path_factory) -> Iterator[dict[str, Path]]:
    """One recording of each clip, all made at the same time."""
    work = tmp_path_factory.mktemp("recording")
    for name in NAMES:
        _ = clips[name]
    programs = Programs(ffmpeg, work, clips)
    try:
        with serving(AT_ONCE + RECORD.format(directory), work) as server:
            # Without that ffmpeg may close before its last packets are out.
            publishers = [programs.publish(name, server.url(name), "-tcp_nodelay", 1) for name in NAMES]
            for publisher in publishers:
                publisher.succeed()
            for name in NAMES:
                server.wait_for_line(rf"live/{name}: recorded {directory}/live/{name}.flv; ")
            lines = "\n".join(server.log())
        assert "/0 Hz" not in lines
        (work / "log").write_text(lines)
        yield {name: directory / "live" / f"{name}.flv" for name in NAMES} | {"log": work / "log"}
    finally:
        programs.kill_all()


def moved_to_zero(tracks: Tracks) -> Tracks:
    """What a recording is to have: no audio before the first picture, and times that begin with 0."""
    first = min(packet.dts for track in tracks.values() for packet in track)
    return {
        name: [packet._replace(dts=packet.dts - first, pts=packet.pts - first) for packet in track]
        for name, track in tracks.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_packet_is_in_the_recording(name, recordings, clips: Clips):
    assert_same(clips.read(recordings[name]), moved_to_zero(clips.packets(name)), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_has_its_duration_and_needs_no_repair(name, recordings):
    with recordings[name].open("rb") as file:
        result = scan(file)
    assert result.clean
    assert result.metadata["filesize"] == recordings[name].stat().st_size
    assert abs(result.metadata["duration"] * 1000 - result.duration_ms) <= 1
    assert abs(result.metadata["duration"] - CLIPS[name].seconds) <= 0.1
    assert result.metadata["hasKeyframes"] is True
    if result.has_video:
        assert (result.metadata["width"], result.metadata["height"]) == CLIPS[name].noise or (160, 120)


@pytest.mark.parametrize("name", NAMES)
def test_ffmpeg_decodes_the_recording_without_warnings(name, recordings, ffmpeg):
    done = subprocess.run(
        [ffmpeg, "-v", "warning", "-i", recordings[name], "-map", "0", "-f", "null", "-"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.peer
@pytest.mark.parametrize("name", ["h264_aac", "sorenson_mp3", "aac_only", "mp3_only", "h264_only"])
def test_ffprobe_finds_the_duration_within_a_frame(name, recordings, peer, clips: Clips):
    command = [peer("ffprobe", "ffmpeg"), "-v", "error", "-show_format", "-show_streams", "-of", "json", recordings[name]]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    tracks = moved_to_zero(clips.packets(name))
    last_ms = max(track[-1].dts for track in tracks.values() if track)
    assert abs(float(found["format"]["duration"]) * 1000 - last_ms - FRAME_MS) <= FRAME_MS
    for stream in found["streams"]:
        if stream["codec_type"] == "video":
            assert (stream["width"], stream["height"]) == (160, 120)


class Ranges(BaseHTTPRequestHandler):
    """Serves one file, with ranges, and notes where clients begin to read."""

    protocol_version = "HTTP/1.1"
    content = b""
    starts: tuple[int, ...] = ()

    def do_GET(self):
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        type(self).starts += (start,)
        self.send_response(206)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        try:
            self.wfile.write(self.content[start:])
        except OSError:
            self.close_connection = True

    def log_message(self, *_):
        pass


def test_players_seek_by_the_index(recordings, ffmpeg):
    """The file is so large that a player does not read up to the position instead."""
    path = recordings["fast"]
    with path.open("rb") as file:
        positions = [position for _, position in scan(file).keyframes]

    class Handler(Ranges):
        content = path.read_bytes()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{http.server_port}/"
        command = [ffmpeg, "-v", "error", "-ss", "2.02", "-i", url, "-frames:v", "1", "-f", "framemd5", "-"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        http.shutdown()
        thread.join()
    assert (done.returncode, done.stderr) == (0, "")
    assert set(Handler.starts) & set(positions[1:]), (Handler.starts, positions)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("h264_aac", r"video h264 High 1\.\d 160x120 4:2:0 8 bit, audio aac LC 44100 Hz 1 channel$"),
        ("hevc_aac", r"video hevc Main \d.\d 160x120 4:2:0 8 bit, audio aac LC 44100 Hz 1 channel$"),
        ("av1_opus", r"video av1 Main \d.\d 160x120 4:2:0 8 bit, audio opus 48000 Hz 1 channel$"),
        ("vp9_aac", r"video vp9 Profile 0 1.0 160x120 4:2:0 8 bit, audio aac LC 44100 Hz 1 channel$"),
        ("sorenson_mp3", r"video h263 160x120 4:2:0 8 bit, audio mp3 44100 Hz 1 channel$"),
        ("aac_only", r"no video, audio aac LC 44100 Hz 1 channel$"),
        ("flac_only", r"no video, audio flac 44100 Hz 1 channel$"),
        ("h264_only", r"video h264 High 1\.\d 160x120 4:2:0 8 bit, no audio$"),
    ],
)
def test_the_log_has_the_codecs_of_each_stream(name, line, recordings):
    about = [each for each in recordings["log"].read_text().splitlines() if f" live/{name} is: " in each]
    assert len(about) == 1
    assert re.search(line, about[0]), about


def test_segments_begin_with_keyframes_and_lose_nothing(ffmpeg, clips: Clips, tmp_path, programs):
    with serving(AT_ONCE + RECORD.format(tmp_path) + "segment_duration_s = 2\n", tmp_path) as server:
        programs.publish("hevc_aac", server.url("a")).succeed()
        server.wait_for_line("recorded .*live/a-3.flv")
    paths = [tmp_path / "live" / f"a{suffix}.flv" for suffix in ("", "-2", "-3")]
    expected = moved_to_zero(clips.packets("hevc_aac"))
    got: Tracks = {name: [] for name in expected}
    for path in paths:
        tracks = clips.read(path)
        assert tracks["video 0"][0].dts == 0
        # FFmpeg sends audio a little ahead.
        assert abs(tracks["video 0"][-1].dts - 2000 + FRAME_MS) <= FRAME_MS
        for name, track in tracks.items():
            got[name] += track
    assert {name: [each.digest for each in track] for name, track in got.items()} == {
        name: [each.digest for each in track] for name, track in expected.items()
    }


# Publishers that are killed ---------------------------------------------------------------------------------------------


def publish_and_kill(programs: Programs, server: Server, part: Path) -> None:
    """Publish with ffmpeg, and kill it after some seconds of it have been recorded."""
    publisher = programs.publish("h264_aac_minute", server.url("a"))
    until(lambda: part.exists() and part.stat().st_size > 20_000, "the recording")
    publisher.kill()


def assert_decodes(ffmpeg: str, path: Path) -> None:
    # With the times of the file: frames may be closer to each other where a source takes over.
    command = [ffmpeg, "-v", "warning", "-i", path, "-map", "0", "-fps_mode", "passthrough", "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def assert_ascending(tracks: Tracks) -> None:
    for track in tracks.values():
        assert all(before.dts < after.dts for before, after in pairwise(track))


def test_a_publisher_that_is_killed_and_returns_is_recorded_in_one_file(clips: Clips, ffmpeg, tmp_path, programs):
    _ = clips["h264_aac"]
    with serving(RECORD.format(tmp_path), tmp_path) as server:
        publish_and_kill(programs, server, tmp_path / "live" / "a.flv.part")
        programs.publish("h264_aac", server.url("a")).succeed()
        server.wait_for_line(r"recorded .*live/a\.flv; ")
    assert [path.name for path in (tmp_path / "live").iterdir()] == ["a.flv"]
    assert_decodes(ffmpeg, tmp_path / "live" / "a.flv")
    tracks = clips.read(tmp_path / "live" / "a.flv")
    assert_ascending(tracks)
    video, expected = tracks["video 0"], clips.packets("h264_aac")["video 0"]
    second = video[-len(expected) :]
    assert [packet.digest for packet in second] == [packet.digest for packet in expected]
    # But for its first frames, which may be shown at once, it keeps its own pace.
    paces = [[packet.dts - track[-1].dts for packet in track[10:]] for track in (second, expected)]
    assert paces[0] == paces[1]
    assert len(video) - len(second) > 25


def test_a_publisher_that_is_killed_and_returns_with_another_codec_begins_another_file(clips, ffmpeg, tmp_path, programs):
    _ = clips["hevc_aac"]
    with serving(RECORD.format(tmp_path), tmp_path) as server:
        publish_and_kill(programs, server, tmp_path / "live" / "a.flv.part")
        programs.publish("hevc_aac", server.url("a")).succeed()
        server.wait_for_line(r"recorded .*live/a-2\.flv; ")
    first, second = tmp_path / "live" / "a.flv", tmp_path / "live" / "a-2.flv"
    for path in (first, second):
        assert_decodes(ffmpeg, path)
        assert_ascending(clips.read(path))
    got, expected = clips.read(second), clips.packets("hevc_aac")
    assert [packet.digest for packet in got["video 0"]] == [packet.digest for packet in expected["video 0"]]
    with first.open("rb") as one, second.open("rb") as other:
        assert [scan(one).metadata["videocodecid"], scan(other).metadata["videocodecid"]] == [7, int.from_bytes(b"hvc1", "big")]


# kill -9 ----------------------------------------------------------------------------------------------------------------


RUNS = 10


def test_a_recording_survives_kill_9_at_any_moment(clips: Clips, ffmpeg, tmp_path, programs):
    """Ten servers are killed at random moments, and started again: the repaired files have all but the last second."""
    chance = random.Random(3)
    _ = clips["h264_aac_minute"]
    servers: dict[int, Server] = {}
    players = {}
    moments_ms = {}
    seen_ms = {}

    def start(number: int) -> Server:
        work = tmp_path / str(number)
        work.mkdir(exist_ok=True)
        servers[number] = Server(AT_ONCE + RECORD.format(work), directory=work)
        return servers[number]

    def kill_those_due() -> bool:
        for number in set(moments_ms) - set(seen_ms):
            part = tmp_path / str(number) / "live" / "a.flv.part"
            if players[number].has_reached(moments_ms[number]) and part.exists():
                servers[number].process.kill()
                servers[number].process.wait()
                seen_ms[number] = max(track[-1].dts for track in players[number].packets().values() if track)
        return len(seen_ms) == RUNS

    try:
        for number in range(RUNS):
            server = start(number)
            moments_ms[number] = chance.randint(1300, 4500)
            programs.publish("h264_aac_minute", server.url("a"))
            players[number] = programs.play(server.url("a"), "-analyzeduration", 100_000, name=f"run{number}")
        until(kill_those_due, "all moments")
        for number in range(RUNS):
            part = tmp_path / str(number) / "live" / "a.flv.part"
            # What there is can be played as it is.
            played = subprocess.run([ffmpeg, "-v", "error", "-f", "flv", "-i", part, "-f", "null", "-"], timeout=60)
            assert played.returncode == 0
            path = part.with_name("a.flv")
            again = start(number)
            again.wait_for_line(rf"repaired {path}; ")
            assert again.stop() == 0
            assert not part.exists()
            with path.open("rb") as file:
                result = scan(file)
            assert result.clean
            assert result.metadata["duration"] > 0
            assert result.duration_ms >= seen_ms[number] - 1000, (number, moments_ms, seen_ms)
            done = subprocess.run(
                [ffmpeg, "-v", "error", "-i", path, "-f", "null", "-"], capture_output=True, text=True, timeout=60
            )
            assert (done.returncode, done.stderr) == (0, "")
    finally:
        for server in servers.values():
            server.process.kill()
            server.process.wait()


# Bad disks --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmpfs) -> Path:
    """A file system of 3 MB of its own."""
    return tmpfs("3m")


def lines_about(server: Server, pattern: str) -> list[str]:
    return [line for line in server.log() if re.search(pattern, line)]


def publish_forever(programs: Programs, url: str) -> Program:
    return programs.start(
        "forever",
        *(programs.ffmpeg, "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25"),
        *("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", 25, "-b:v", "4M", "-minrate", "4M"),
        *("-maxrate", "4M", "-bufsize", "1M", "-nal-hrd", "cbr", "-f", "flv", url),
    )


def fill(descriptor: int) -> None:
    while os.write(descriptor, bytes(4096)):
        pass


def test_a_full_disk_does_not_affect_the_player(tmp_path, mounted, programs):
    ini = AT_ONCE + RECORD.format(mounted) + "record_retry_s = 0.2\ndisk_reserve_bytes = 1000000\n"
    with serving(ini, tmp_path) as server:
        publisher = publish_forever(programs, server.url("full"))
        player = programs.play(server.url("full"), name="full")
        server.wait_for_line(r"ERROR +live/full: can't record .*are required \(disk_reserve_bytes\); retrying every 0.2 s")
        server.wait_for_line(r"recorded .*live/full\.flv")
        until(lambda: player.has_reached(0), "the player")
        seen = len(player.packets()["video 0"])
        until(lambda: len(player.packets()["video 0"]) > seen + 50, "two seconds of video with a full disk")
        # With free space again, the recording continues in another file.
        first = mounted / "live" / "full.flv"
        with first.open("rb") as file:
            assert scan(file).clean
        first.unlink()
        server.wait_for_line(r"WARNING +live/full: recording again, to .*full(-2)?.flv.part")
        until(lambda: any(part.stat().st_size for part in mounted.glob("live/*.part")), "the first batch")
        # Another program takes all remaining space.
        foreign = os.open(mounted / "foreign", os.O_CREAT | os.O_WRONLY)
        with pytest.raises(OSError, match="No space left"):
            fill(foreign)
        os.close(foreign)
        until(lambda: len(lines_about(server, "ERROR +live/full: can't record")) == 2, "the second failure")
        seen = len(player.packets()["video 0"])
        until(lambda: len(player.packets()["video 0"]) > seen + 25, "a second of video")
        assert len(lines_about(server, "ERROR")) == 2
        numbers = [packet.dts for packet in player.packets()["video 0"]]
        # Not one picture is missing.
        assert all(abs(after - before - FRAME_MS) <= 1 for before, after in pairwise(numbers))
        publisher.interrupt()
        publisher.wait()
        player.wait()


def test_a_read_only_disk_is_logged_once(tmp_path, mounted, programs):
    (mounted / "live").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True, timeout=20)
    with serving(AT_ONCE + RECORD.format(mounted) + "record_retry_s = 0.1\n", tmp_path) as server:
        player = programs.play(server.url("a"), name="ro")
        wait_for_plays(server, "live/a")
        programs.publish("h264_aac", server.url("a")).succeed()
        player.succeed()
        assert len(player.packets()["video 0"]) == 75
        (line,) = lines_about(server, "ERROR")
        assert (
            f"live/a: can't record: Read-only file system: {mounted}/live/a.flv.part; retrying every 0.1 s (record_retry_s)"
            in line
        )


def test_a_directory_that_is_removed_during_a_recording_is_created_again(tmp_path, programs):
    recordings = tmp_path / "recordings"
    with serving(AT_ONCE + RECORD.format(recordings) + "record_retry_s = 0.1\n", tmp_path) as server:
        publisher = publish_forever(programs, server.url("a"))
        until(lambda: list(recordings.glob("live/*.part")), "a part")
        (recordings / "live" / "a.flv.part").unlink()
        (recordings / "live").rmdir()
        recordings.rmdir()
        server.wait_for_line(r"ERROR +live/a: can't record .*the file was deleted by another program")
        server.wait_for_line(r"WARNING +live/a: recording again, to .*live/a.flv.part")
        publisher.interrupt()
        publisher.wait()
        server.wait_for_line(r"recorded .*live/a.flv; ")
    with (recordings / "live" / "a.flv").open("rb") as file:
        assert scan(file).clean


# Old recordings ---------------------------------------------------------------------------------------------------------


def test_old_recordings_are_deleted_and_nothing_else_is(tmp_path, clips: Clips, programs, recordings):
    """A directory with files that are ours to delete beside others that look like them."""
    kept = tmp_path / "recordings"
    (kept / "live").mkdir(parents=True)
    ours = recordings["h264_aac"].read_bytes()
    foreign = clips["h264_aac"].read_bytes()
    files = {
        "live/old-20200101-000000.flv": ours,
        "live/old-20200102-000000-2.flv": ours,
        "live/foreign-20200101-000000.flv": foreign,
        "live/best of 2020.flv": ours,
        "live/old-20200101-000000.mp4": ours,
        "live/new-20200103-000000.flv": ours,
        "notes.txt": b"text",
    }
    for name, content in files.items():
        (kept / name).write_bytes(content)
        if "new" not in name:
            os.utime(kept / name, (1_600_000_000, 1_600_000_000))
    (kept / "live" / "link-20200101-000000.flv").symlink_to(kept / "notes.txt")
    ini = f"[record]\nrecord_all = yes\nrecord_directory = {kept}\nkeep_age_s = 86400\n"
    with serving(ini, tmp_path) as server:
        server.wait_for_line(r"deleted .*live/old-20200101-000000.flv: keep_age_s; \d+ bytes")
        server.wait_for_line(r"deleted .*live/old-20200102-000000-2.flv: keep_age_s; \d+ bytes")
    left = {str(path.relative_to(kept)) for path in kept.rglob("*") if not path.is_dir()}
    assert left == {
        *("live/foreign-20200101-000000.flv", "live/best of 2020.flv", "live/old-20200101-000000.mp4"),
        *("live/new-20200103-000000.flv", "live/link-20200101-000000.flv", "notes.txt"),
    }
