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
    renditions = [each.packaged for each in show.viewers.values()]
    assert [each.name for each in renditions] == ["main", "video2", "audio1", "audio2"]
    main, video, first, second = renditions
    assert (main.width, main.height, video.width, video.height, first.width, second.width) == (64, 48, 32, 32, 0, 0)
    # Players choose between audio tracks only if none is in the segments of video.
    assert [each.codecs for each in (first, second)] == [("mp4a.40.2",)] * 2
    assert [len(each.codecs) for each in (main, video)] == [1, 1]
    assert [(each.has_video, each.has_audio) for each in renditions] == [(True, False)] * 2 + [(False, True)] * 2
    # The cuts of video are the same, and the numbers.
    assert list(durations(show.viewers["main"])) == list(durations(show.viewers["video2"]))
    for name in ("audio1", "audio2"):
        assert len(list(durations(show.viewers[name]))) == len(list(durations(show.main)))
        assert all(abs(each - 1) < 0.07 for each in durations(show.viewers[name]))
    assert len({each.window.first_number for each in renditions}) == 1
    counts = {}
    for name in ("main", "video2", "audio1", "audio2"):
        frames = decoded(write(tmp_path / f"{name}.mp4", show.viewers[name]))
        counts[name] = [len(frames.get(kind, [])) for kind in ("video", "audio")]
    assert counts["main"] == counts["video2"] == [180, 0]
    # They differ in their rates.
    assert 0 == counts["audio1"][0] == counts["audio2"][0] < counts["audio2"][1] < counts["audio1"][1]
