"""``--remux``: the MP4 file that the command makes of a recording, and what it leaves behind when it fails."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import pytest

from rtmpd.media import flv
from rtmpd.media.flv import AUDIO, VIDEO
from tests.conftest import ROOT
from tests.fmp4_files import all_kinds, box, boxes, decoded, samples
from tests.media_files import run_ffmpeg, split_flv


class Ended(NamedTuple):
    status: int
    out: str
    errors: str


@pytest.fixture
def remux(tmp_path):
    """Return a function that runs the command in *tmp_path*."""

    def run(*arguments: object) -> Ended:
        command = [sys.executable, "-m", "rtmpd", "--remux", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
        assert "Traceback" not in done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Five seconds of H.264 with B-frames and AAC of 44.1 kHz, with a keyframe every 0.4 s."""
    path = tmp_path_factory.mktemp("remux") / "recording.flv"
    inputs = "-f lavfi -i testsrc2=size=64x48:rate=30 -f lavfi -i sine=sample_rate=44100"
    codecs = "-c:v libx264 -pix_fmt yuv420p -g 12 -bf 2 -c:a aac -t 5"
    run_ffmpeg(*f"{inputs} {codecs}".split(), path)
    return path


def test_the_new_file_has_the_same_frames_and_an_index_of_its_fragments(remux, recording, tmp_path):
    done = remux(recording, "made.mp4")
    assert (done.status, done.errors) == (0, "")
    made = tmp_path / "made.mp4"
    data = made.read_bytes()
    assert done.out == f'made.mp4: video/mp4; codecs="avc1.64000a,mp4a.40.2", 5.083 s, {len(data)} bytes\n'
    published, ours = decoded(recording), decoded(made)
    for kind, wanted in published.items():
        assert [digest for _, digest in ours[kind]] == [digest for _, digest in wanted]
        assert all(abs(mine - theirs) <= 1 for (mine, _), (theirs, _) in zip(ours[kind], wanted, strict=True))
    assert int.from_bytes(box(data, b"moov", b"mvex", b"mehd")[4:], "big") == 5083
    # It is no recording, which the server might delete.
    assert all_kinds(data)[:4] == [b"ftyp", b"moov", b"free", b"sidx"]
    fragments = [start - 8 for kind, start, _ in boxes(data) if kind == b"moof"]
    assert len(fragments) == 5
    tfra = box(data, b"mfra", b"tfra")
    entries = [tfra[at : at + 24] for at in range(16, len(tfra), 24)]
    assert [int.from_bytes(entry[8:16], "big") for entry in entries] == fragments
    assert int.from_bytes(data[-4:], "big") == len(box(data, b"mfra")) + 8
    keyframes = {sample.time + sample.composition for sample in samples(data) if sample.track == 1 and sample.sync}
    assert {int.from_bytes(entry[:8], "big") for entry in entries} <= keyframes


def test_a_recording_that_begins_late_begins_at_0(remux, recording, tmp_path):
    tags = split_flv(recording.read_bytes())
    late = flv.file_header(True, True) + b"".join(flv.tag(type_id, time + 4_294_965_000, data) for type_id, time, data in tags)
    (tmp_path / "late.flv").write_bytes(late)
    assert remux("late.flv", "late.mp4").status == 0
    assert remux(recording, "made.mp4").status == 0
    assert (tmp_path / "late.mp4").read_bytes() == (tmp_path / "made.mp4").read_bytes()


def test_audio_far_behind_video_makes_no_small_fragments(remux, recording, tmp_path):
    tags = split_flv(recording.read_bytes())
    tags = [(type_id, time if type_id == AUDIO else time + 1500, data) for type_id, time, data in tags]
    (tmp_path / "skewed.flv").write_bytes(flv.file_header(True, True) + b"".join(flv.tag(*each) for each in tags))
    assert remux("skewed.flv", "made.mp4").status == 0
    assert all_kinds((tmp_path / "made.mp4").read_bytes()).count(b"moof") == 5


def test_audio_alone_has_fragments_of_a_second(remux, recording, tmp_path):
    tags = [each for each in split_flv(recording.read_bytes()) if each[0] == AUDIO]
    (tmp_path / "audio.flv").write_bytes(flv.file_header(True, False) + b"".join(flv.tag(*each) for each in tags))
    done = remux("audio.flv", "audio.m4a")
    assert done.out.startswith('audio.m4a: audio/mp4; codecs="mp4a.40.2", 5.0')
    assert all_kinds((tmp_path / "audio.m4a").read_bytes()).count(b"moof") == 5


def test_a_codec_without_a_place_in_mp4_is_left_out_with_a_note(remux, recording, tmp_path):
    tags = [each if each[0] != AUDIO else (AUDIO, each[1], b"\xb2speex") for each in split_flv(recording.read_bytes())]
    (tmp_path / "speex.flv").write_bytes(flv.file_header(True, True) + b"".join(flv.tag(*each) for each in tags))
    done = remux("speex.flv", "made.mp4")
    assert done.status == 0
    assert done.errors == "rtmpd: note: not in the new file: MP4 can't carry audio codec speex\n"


def test_a_truncated_recording_is_kept_to_its_last_whole_tag(remux, recording, tmp_path):
    (tmp_path / "cut.flv").write_bytes(recording.read_bytes()[:-300])
    done = remux("cut.flv", "made.mp4")
    assert done.status == 0
    assert "note: the recording is truncated within a tag: its last " in done.errors
    decoded(tmp_path / "made.mp4")


def changed(data: bytes) -> bytes:
    """The recording with another sequence header of video behind it."""
    header = next(payload for type_id, _, payload in split_flv(data) if type_id == VIDEO and payload[1] == 0)
    return data + flv.tag(VIDEO, 6000, header.replace(b"\1\x64\0\x0a", b"\1\x64\0\x1f"))


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        (None, "made.mp4", "recording.flv: expected a recording, found no such file"),
        (lambda data: data, "made.flv", "made.flv: expected a name that ends in .mp4"),
        (lambda data: data, "missing/made.mp4", "No such file or directory"),
        (lambda data: b"RIFF" + data, "made.mp4", "recording.flv: expected an FLV file"),
        (
            lambda data: data[:5000] + b"x" * 5000,
            "made.mp4",
            "recording.flv: damaged: expected an audio, video or script tag at byte ",
        ),
        (lambda data: data[:13], "made.mp4", "recording.flv: there is neither an audio nor a video track"),
        (lambda data: data[:13] + flv.tag(AUDIO, 0, b"\xb2speex"), "made.mp4", "MP4 can't carry audio codec speex"),
        (changed, "made.mp4", "the parameters of video change at 6.000 s"),
    ],
)
def test_a_failure_is_one_line_and_leaves_the_old_file(remux, recording, tmp_path, content, out, message):
    (tmp_path / "made.mp4").write_bytes(b"old")
    if content is not None:
        (tmp_path / "recording.flv").write_bytes(content(recording.read_bytes()))
    before = sorted(each.name for each in tmp_path.iterdir())
    done = remux("recording.flv", out)
    assert done.status == 1
    assert done.errors.startswith("rtmpd: can't remux: ")
    assert message in done.errors
    assert done.errors.count("\n") == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == before
    assert (tmp_path / "made.mp4").read_bytes() == b"old"


def test_the_recording_itself_is_never_replaced(remux, recording, tmp_path):
    (tmp_path / "recording.mp4").write_bytes(recording.read_bytes())
    done = remux("recording.mp4", "./recording.mp4")
    assert "is the recording itself" in done.errors
    assert (tmp_path / "recording.mp4").read_bytes() == recording.read_bytes()
