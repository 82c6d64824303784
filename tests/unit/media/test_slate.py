"""Slates: what is sent in a loop, and the reasons for which a file is refused."""

from __future__ import annotations

import io
import subprocess

import imageio_ffmpeg
import pytest

from rtmpd.errors import SlateError
from rtmpd.media import flv
from rtmpd.media.flv import AUDIO, SCRIPT, VIDEO
from rtmpd.media.flv_metadata import read_metadata
from rtmpd.media.slate import MAX_MESSAGES, load_slate, read_parameters
from rtmpd.media.tags import Kind, audio_kind, video_info, video_kind
from tests.media_files import FILES, frames, split_flv

AVC = bytes.fromhex(
    "1700000000 0164000bffe1001a6764000bacd94284 7e22c044000003000400000300c83c50a658 01000668ebe3cb22c0 fdf8f800"
)
AAC = bytes.fromhex("af001208")
KEY, INTER, SOUND = b"\x17\1\0\0\0key", b"\x27\1\0\0\0inter", b"\xaf\1sound"
GOOD = [name for name in FILES if name != "prores.mov"]


def written(*tags: tuple[int, int, bytes]) -> bytes:
    return flv.file_header(True, True) + b"".join(flv.tag(*tag) for tag in tags)


def load(*tags: tuple[int, int, bytes]):
    return load_slate(io.BytesIO(written(*tags)))


@pytest.mark.parametrize("name", GOOD)
def test_rounds_follow_each_other(media_files, name):
    slate = load_slate(media_files.path(name))
    first = slate.messages[0]
    assert first.timestamp_ms == 0
    if slate.video:
        assert first.type_id == VIDEO
        assert video_kind(first.payload) == Kind.KEYFRAME
    rounds = [
        (message.type_id, start + message.timestamp_ms)
        for start in (0, slate.duration_ms, 2 * slate.duration_ms)
        for message in slate.messages
    ]
    times = [time for _, time in rounds]
    assert times == sorted(times)
    for type_id in (AUDIO, VIDEO) if "tracks" not in name else ():
        own = [time for kind, time in rounds if kind == type_id]
        assert len(own) == len(set(own))
    # The clips have 1 s; frames are at most 0.1 s long, and late_audio ends 0.3 s later.
    assert 990 <= slate.duration_ms <= 1400
    kinds = [type_id for type_id, _ in slate.headers]
    assert kinds == [SCRIPT] + [VIDEO] * kinds.count(VIDEO) + [AUDIO] * kinds.count(AUDIO)
    assert slate.size_bytes == sum(len(payload) for _, payload in slate.headers) + sum(
        len(message.payload) for message in slate.messages
    )


@pytest.mark.parametrize("name", GOOD)
def test_ffmpeg_decodes_three_rounds_without_an_error(media_files, tmp_path, name):
    slate = load_slate(media_files.path(name))
    tags = [(type_id, 0, payload) for type_id, payload in slate.headers]
    for start in (0, slate.duration_ms, 2 * slate.duration_ms):
        tags += [(type_id, start + time, payload) for type_id, time, payload in slate.messages]
    path = tmp_path / "rounds.flv"
    path.write_bytes(flv.file_header(bool(slate.audio), bool(slate.video)) + b"".join(flv.tag(*tag) for tag in tags))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", "warning", "-xerror", "-i", path, "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    problems = [line for line in done.stderr.splitlines() if "colorInfo" not in line]
    assert (done.returncode, problems) == (0, [])
    pictures = [line for line in done.stdout.splitlines() if line.startswith("0,")]
    count = sum(message.type_id == (VIDEO if slate.video else AUDIO) for message in slate.messages)
    assert abs(len(pictures) - 3 * count) <= 3 or "tracks" in name


def test_the_messages_of_a_flv_file_are_its_frames(media_files):
    data = media_files.path("h264_aac.flv").read_bytes()
    slate = load_slate(io.BytesIO(data))
    tags = split_flv(data)
    assert [each.data for each in frames(slate.messages, VIDEO)] == [each.data for each in frames(tags, VIDEO)]
    assert next(payload for type_id, _, payload in tags if type_id == VIDEO) in dict(slate.headers).values()
    metadata = read_metadata(slate.headers[0][1])
    assert metadata["width"] == 64
    assert metadata["framerate"] == 30
    assert "duration" not in metadata
    assert slate.description.startswith("video h264 High 1.0 64x48 4:2:0 8 bit 30 fps, audio aac LC 48000 Hz 1 channel, 1.0")


def test_what_is_known_of_several_tracks_is_that_of_the_first(media_files):
    slate = load_slate(media_files.path("two_tracks.flv"))
    assert slate.description.startswith("video h264 High 1.0 64x48 4:2:0 8 bit 30 fps, audio aac LC 48000 Hz 1 channel, 1.0")
    assert [type_id for type_id, _ in slate.headers if type_id != SCRIPT].count(VIDEO) == 2
    assert len({video_info(message.payload).tracks for message in slate.messages if message.type_id == VIDEO}) == 2


def test_what_is_before_the_first_keyframe_is_left_out():
    slate = load(
        (VIDEO, 5000, AVC),
        (AUDIO, 5000, AAC),
        (VIDEO, 5000, INTER),
        (AUDIO, 5010, SOUND),
        (AUDIO, 5100, SOUND),
        (VIDEO, 5100, KEY),
        (AUDIO, 5120, SOUND),
        (VIDEO, 5200, INTER),
        (VIDEO, 5300, INTER),
    )
    # Video comes before audio of the same time.
    assert [(type_id, time) for type_id, time, _ in slate.messages] == [
        *((VIDEO, 0), (AUDIO, 0), (AUDIO, 20), (VIDEO, 100), (VIDEO, 200))
    ]
    assert slate.duration_ms == 300
    assert [payload for _, payload in slate.headers[1:]] == [AVC, AAC]


def test_messages_that_are_no_frames_are_left_out():
    slate = load(
        (VIDEO, 0, AVC),
        (VIDEO, 0, KEY),
        (VIDEO, 100, AVC),
        (AUDIO, 100, b""),
        (SCRIPT, 100, b"\2\0\4text"),
        (VIDEO, 150, b"\x57\0"),
        (VIDEO, 200, INTER),
        (VIDEO, 240, b"\x17\2\0\0\0"),
    )
    assert [payload for _, _, payload in slate.messages] == [KEY, INTER]
    assert (slate.duration_ms, slate.fps) == (400, 5)
    assert [type_id for type_id, _ in slate.headers] == [SCRIPT, VIDEO]


def test_audio_alone_is_a_slate():
    slate = load((AUDIO, 0, AAC), *((AUDIO, 25 * number, SOUND) for number in range(10)))
    assert slate.duration_ms == 250
    assert slate.video is None
    assert slate.description == "audio aac LC 44100 Hz 1 channel, 0.25 s, 2 kbit/s, " + f"{slate.size_bytes} bytes"
    assert audio_kind(slate.messages[0].payload) == Kind.FRAME


FINE = ((VIDEO, 0, AVC), (VIDEO, 0, KEY), (VIDEO, 200, INTER))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected an FLV or MP4 file, found an empty one"),
        (b"#!/bin/sh\nexit", "expected an FLV or MP4 file, found one that begins with 23 21"),
        (b"FLV\1", "the header of the FLV file is invalid"),
        (written(), "expected audio or video frames, found none"),
        (written(*FINE)[:-1], "truncated"),
        (written(*FINE) + b"\x09", "the file ends within a tag"),
        (written(*FINE).replace(b"key\0\0", b"key\1\0"), "is not followed by its size"),
        (written(*FINE, (15, 300, b"")), "found one of type 15"),
        (written(FINE[0], FINE[2]), "expected a keyframe, found none"),
        (written(*FINE[1:]), "expected a sequence header before the first frame of h264"),
        (written((AUDIO, 0, SOUND)), "expected a sequence header before the first frame of aac"),
        (written(*FINE, (VIDEO, 300, AVC + b"\0")), "found another one of video at 300 ms"),
        (written(*FINE, (VIDEO, 100, INTER)), "the timestamps of video go back from 200 to 100 ms"),
        (written((VIDEO, 0, AVC), (VIDEO, 0, KEY), (VIDEO, 90, INTER)), "expected a duration from 0.2 s to 24 h, found 0.18 s"),
        (written(*FINE, (VIDEO, 86_400_000, INTER)), "expected a duration"),
        (written((VIDEO, 0, b"\x1f\1\0\0\0key")), "video codec id 15 is not supported"),
        (written((VIDEO, 0, b"\x91dvh1key")), "video codec 0x64766831 is not supported"),
    ],
)
def test_a_file_that_is_no_slate_is_refused_with_the_reason(data, message):
    with pytest.raises(SlateError, match=message):
        load_slate(io.BytesIO(data))


def test_a_large_file_is_refused(tmp_path):
    path = tmp_path / "slate.flv"
    path.write_bytes(written(*FINE))
    size = path.stat().st_size
    assert load_slate(path, size).duration_ms == 400
    with pytest.raises(SlateError, match=rf"slate.flv: expected a slate of at most {size - 1} bytes \(slate_limit_bytes\)"):
        load_slate(str(path), size - 1)


def test_many_frames_are_refused():
    head = written((AUDIO, 0, AAC))
    with pytest.raises(SlateError, match=f"at most {MAX_MESSAGES} frames"):
        load_slate(io.BytesIO(head + flv.tag(AUDIO, 0, SOUND) * (MAX_MESSAGES + 1)))


def test_a_file_that_can_not_be_read_is_named(tmp_path):
    with pytest.raises(SlateError, match=r"slate\.flv: No such file or directory"):
        load_slate(tmp_path / "slate.flv")
    with pytest.raises(SlateError, match="Is a directory"):
        load_slate(tmp_path)


@pytest.mark.parametrize("name", ["b_frames.mp4", "h264_aac.flv", "hevc_opus.mp4"])
def test_parameters_are_read_from_the_beginning_of_a_recording(media_files, name):
    data = media_files.path(name).read_bytes()
    found = read_parameters(io.BytesIO(data[:-10] if name.endswith("flv") else data))
    assert found.video.width == 64
    assert found.audio.sample_rate_hz == 48000
    assert found.fps == pytest.approx(30, abs=0.1)
    assert found.reordered
    assert not read_parameters(io.BytesIO(media_files.path("no_b_frames.mp4").read_bytes())).reordered
