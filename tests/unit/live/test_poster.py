"""The newest keyframe of a stream as a file of one picture, decoded by ffmpeg."""

from __future__ import annotations

import pytest

from rtmpd.errors import UnsupportedByMp4
from rtmpd.live.framing import AUDIO, VIDEO
from rtmpd.live.poster import poster
from tests.fmp4_files import decoded
from tests.media_files import split_flv
from tests.unit.live.fakes import close_stream, new_source, new_stream
from tests.unit.media.test_fmp4 import AAC, AVC


@pytest.fixture
def stream():
    made = new_stream()
    made.begin(new_source())
    yield made
    close_stream(made)


def publish(stream, tags):
    for type_id, timestamp, payload in tags:
        if type_id in (AUDIO, VIDEO):
            (stream.source.video if type_id == VIDEO else stream.source.audio)(timestamp, payload)


@pytest.mark.parametrize("name", ["b_frames.mp4", "hevc_mp3.mp4", "av1_eac3.mp4", "vp9_flac.mp4", "two_tracks.flv"])
def test_it_is_the_newest_keyframe(stream, media_files, tmp_path, name):
    flv = media_files.path(name).read_bytes() if name.endswith(".flv") else media_files.remuxed(name)
    publish(stream, split_flv(flv))
    found = poster(stream.published.log)
    (tmp_path / "poster.mp4").write_bytes(found)
    (tmp_path / "all.flv").write_bytes(flv)
    # A group of pictures has 15, and the file 30.
    (picture,) = decoded(tmp_path / "poster.mp4")["video"]
    assert picture == (0, decoded(tmp_path / "all.flv")["video"][15][1])


def test_there_is_none_without_a_keyframe(stream):
    assert poster(stream.published.log) is None
    publish(stream, [(VIDEO, 0, AVC), (AUDIO, 0, AAC), (AUDIO, 0, b"\xaf\1sound")])
    assert poster(stream.published.log) is None
    publish(stream, [(VIDEO, 40, b"\x17\1\0\0\0key")])
    assert poster(stream.published.log).endswith(b"mdatkey")


def test_there_is_none_of_a_stream_without_video(stream):
    publish(stream, [(AUDIO, 0, AAC), (AUDIO, 0, b"\xaf\1sound")])
    assert poster(stream.published.log) is None


def test_a_codec_that_mp4_does_not_carry_is_an_error(stream):
    publish(stream, [(VIDEO, 0, b"\x12keyframe of Flash")])
    with pytest.raises(UnsupportedByMp4, match="can't carry video codec"):
        poster(stream.published.log)
