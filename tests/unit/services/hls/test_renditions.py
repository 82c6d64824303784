"""Renditions of streams that real encoders have made: several tracks, other codecs, and what ffmpeg decodes of the segments."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.fmp4_files import decoded
from tests.unit.services.hls.shows import Show, Tape, durations

INI = "[hls]\nhls = always\nhls_segment_s = 1\n"


@pytest.fixture
def make_show():
    made = []

    def make(ini=INI, **more):
        made.append(Show(ini, **more))
        return made[-1]

    yield make
    for show in made:
        show.close()


def packaged(show, flv, until_ms=6_000):
    """Package a file that is played again and again."""
    tape = Tape(show, flv)
    show.packager = show.packagers.find("live/show")
    show.run(until_ms, tape)
    show.end(tape)


def write(path, viewer):
    """Write what a client has of a rendition, as one file."""
    (init,) = viewer.inits.values()
    path.write_bytes(init + b"".join(data for _, data in viewer.segments))
    return path


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("h264_aac.flv", ("avc1.64000a", "mp4a.40.2")),
        ("aac_only.flv", ("mp4a.40.2",)),
        ("hevc_opus.mp4", ("hvc1.1.6.L30.90", "opus")),
        ("av1_eac3.mp4", ("av01.0.00M.08", "ec-3")),
        ("vp9_flac.mp4", ("vp09.00.10.08", "fLaC")),
    ],
)
def test_ffmpeg_decodes_all_segments(make_show, media_files, tmp_path, name, codecs):
    flv = media_files.path(name).read_bytes() if name.endswith(".flv") else media_files.remuxed(name)
    show = make_show()
    packaged(show, flv)
    show.check()
    assert show.main.packaged.codecs == codecs
    # Fails on each warning of ffmpeg.
    frames = decoded(write(tmp_path / "all.mp4", show.main))
    if "video" in frames:
        times = [time for time, _ in frames["video"]]
        assert len(times) == 6 * 30
        assert all(32 <= after - before <= 35 for before, after in pairwise(times))
    assert len(frames["audio"]) >= 6 * 31


def test_tracks_are_renditions(make_show, media_files, tmp_path):
    show = make_show()
    packaged(show, media_files.path("two_tracks.flv").read_bytes())
    show.check()
    main, video, audio = (each.packaged for each in show.viewers.values())
    assert [each.name for each in (main, video, audio)] == ["main", "video2", "audio2"]
    assert (main.width, main.height, video.width, video.height, audio.width) == (64, 48, 32, 32, 0)
    assert main.codecs[1:] == video.codecs[1:] == audio.codecs == ("mp4a.40.2",)
    assert (main.has_audio, video.has_audio, audio.has_video) == (True, True, False)
    # The cuts of video are the same, and the numbers.
    assert list(durations(show.viewers["main"])) == list(durations(show.viewers["video2"]))
    assert len(list(durations(show.viewers["audio2"]))) == len(list(durations(show.main)))
    assert all(abs(each - 1) < 0.05 for each in durations(show.viewers["audio2"]))
    assert len({each.window.first_number for each in (main, video, audio)}) == 1
    for name, size in (("main", 180), ("video2", 180), ("audio2", 0)):
        frames = decoded(write(tmp_path / f"{name}.mp4", show.viewers[name]))
        assert len(frames.get("video", [])) == size
    # Further audio is other audio.
    assert len(decoded(tmp_path / "audio2.mp4")["audio"]) < len(decoded(tmp_path / "main.mp4")["audio"])
