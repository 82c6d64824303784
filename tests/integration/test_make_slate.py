"""``--make-slate``: the slate that the command makes with ffmpeg, and what it leaves behind when it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rtmpd.media.flv import AUDIO, VIDEO
from rtmpd.media.slate import load_slate
from rtmpd.media.tags import Kind, video_kind
from tests.conftest import ROOT
from tests.media_files import run_ffmpeg

if TYPE_CHECKING:
    from pathlib import Path


class Ended(NamedTuple):
    status: int
    out: str
    errors: str


@pytest.fixture
def make(ffmpeg, tmp_path):
    """Return a function that makes a slate in *tmp_path*, with the ffmpeg of the tests."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(ffmpeg)

    def run(*arguments: object, path: str = str(tmp_path / "bin")) -> Ended:
        command = [sys.executable, "-m", "rtmpd", "--make-slate", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path, env=environment)
        assert "Traceback" not in done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def picture(tmp_path) -> Path:
    """A blue square."""
    path = tmp_path / "picture.png"
    run_ffmpeg("-f", "lavfi", "-i", "color=blue:s=90x90", "-frames:v", "1", path)
    return path


def files(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir() if each.name != "bin")


def header(path: Path, type_id: int) -> bytes:
    """The sequence header of audio or video."""
    return next(payload for kind, payload in load_slate(path).headers if kind == type_id)


def test_a_slate_is_made_by_default_values(make, picture, tmp_path):
    out = tmp_path / "slate.flv"
    ended = make(picture, out)
    slate = load_slate(out)
    assert ended == (0, f"{out}: {slate.description}\n", "")
    assert slate.description.startswith("video h264 High 3.1 1280x720 4:2:0 8 bit 30 fps, audio aac LC 48000 Hz 2 channels, 10")
    keyframes = [time for type_id, time, payload in slate.messages if type_id == VIDEO and video_kind(payload) == Kind.KEYFRAME]
    assert keyframes == [0, 2000, 4000, 6000, 8000]
    assert sum(type_id == VIDEO for type_id, _, _ in slate.messages) == 300
    assert 10_000 <= slate.duration_ms < 10_030
    assert files(tmp_path) == ["picture.png", "slate.flv"]


def test_the_picture_is_in_the_middle_between_black_borders(make, picture, tmp_path):
    assert make(picture, "slate.mp4").status == 0
    pixels = run_ffmpeg("-i", tmp_path / "slate.mp4", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    assert len(pixels) == 1280 * 720 * 3

    def color(x: int, y: int) -> tuple[int, ...]:
        start = (y * 1280 + x) * 3
        return tuple(round(value / 64) * 64 for value in pixels[start : start + 3])

    assert [color(x, 360) for x in (0, 270, 290, 640, 990, 1010, 1279)] == [
        *[(0, 0, 0)] * 2,
        *[(0, 0, 256)] * 3,
        *[(0, 0, 0)] * 2,
    ]
    assert color(640, 0) == color(640, 719) == (0, 0, 256)


@pytest.mark.parametrize("suffix", [".flv", ".mp4"])
def test_a_slate_like_a_recording_has_its_parameters(make, picture, tmp_path, suffix):
    recording = tmp_path / "recording.flv"
    encoding = "-c:v libx264 -preset ultrafast -profile:v main -level 3.2 -pix_fmt yuv420p -bf 0 -c:a aac -t 1"
    sources = "-f lavfi -i testsrc2=size=322x180:rate=30000/1001 -f lavfi -i sine=sample_rate=44100"
    run_ffmpeg(*sources.split(), *encoding.split(), recording)
    out = tmp_path / f"slate{suffix}"
    ended = make(picture, out, "--like", recording)
    assert (ended.status, ended.errors) == (0, "")
    original, slate = load_slate(recording), load_slate(out)
    assert (slate.video, slate.audio) == (original.video, original.audio)
    assert (slate.fps, original.fps) == pytest.approx((29.97, 29.97), abs=0.001)
    # Profile, constraints and level of avcC.
    assert header(out, VIDEO)[6:9] == header(recording, VIDEO)[6:9]
    assert header(out, AUDIO)[:4] == header(recording, AUDIO)[:4]


def test_a_slate_like_a_recording_in_hevc(make, picture, media_files, tmp_path):
    recording = media_files.path("hevc_opus.mp4")
    out = tmp_path / "slate.flv"
    assert make(picture, out, "--like", recording).status == 0
    original, slate = load_slate(recording), load_slate(out)
    # HEVC is in FLV files whatever the version of ffmpeg.
    assert (slate.video.codec, slate.video.width, slate.video.height, slate.fps) == ("hevc", 64, 48, 30)
    assert slate.audio == original.audio
    assert header(out, VIDEO).startswith(b"\x90hvc1")


@pytest.mark.parametrize("name", ["-i.png", "a%03d.png", "http:x.png", "x,y [v]'.PNG", "plain"])
def test_a_name_is_nothing_but_a_name(make, picture, media_files, tmp_path, name):
    picture.rename(tmp_path / name)
    ended = make(f"./{name}", "./-out.flv", "--like", media_files.path("h264_only.mp4"))
    assert (ended.status, ended.errors) == (0, "")
    assert load_slate(tmp_path / "-out.flv").video


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.png", "out.flv"), "none.png: expected a picture, found no such file"),
        (("text.png", "out.flv"), "ffmpeg can't make the slate (exit status"),
        (("picture.png", "out.mkv"), "out.mkv: expected a name that ends in .flv or .mp4"),
        (("picture.png", "none/out.flv"), "none/out.flv: No such file or directory"),
        (("picture.png", "out.flv", "--like", "none.flv"), "none.flv: No such file or directory"),
        (("picture.png", "out.flv", "--like", "text.png"), "text.png: expected an FLV or MP4 file"),
    ],
)
def test_a_failure_has_a_reason_and_leaves_the_old_file(make, picture, tmp_path, arguments, message):
    (tmp_path / "text.png").write_text("no picture\n" * 100)
    (tmp_path / "out.flv").write_bytes(b"old")
    ended = make(*arguments)
    assert (ended.status, ended.out) == (1, "")
    assert ended.errors.startswith("rtmpd: can't make a slate: ")
    assert message in ended.errors
    assert ended.errors.count("\n") == 1
    assert files(tmp_path) == ["out.flv", "picture.png", "text.png"]
    assert (tmp_path / "out.flv").read_bytes() == b"old"


def test_a_missing_ffmpeg_is_named(make, picture, tmp_path):
    ended = make(picture, "out.flv", path=str(tmp_path))
    assert (ended.status, ended.errors) == (
        1,
        "rtmpd: can't make a slate: ffmpeg is not found in PATH: it is needed to make a slate\n",
    )


def test_like_alone_is_refused():
    done = subprocess.run([sys.executable, "-m", "rtmpd", "--like", "x"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "--like: only allowed with argument --make-slate" in done.stderr
