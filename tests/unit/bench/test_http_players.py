"""Tests of the bench's players over HTTP: what they find in bodies that the server makes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import hls, http_players, wire
from rtmpd.live.fmp4_framing import FMP4
from rtmpd.live.framing import AUDIO, VIDEO, Headers
from rtmpd.live.log import NEVER, Log
from rtmpd.media import flv
from rtmpd.media.tags import Kind
from tests.unit.media.test_fmp4 import AAC, AVC

FRAMES = [(VIDEO, b"\x17\1\0\0\0key"), (AUDIO, b"\xaf\1sound"), (VIDEO, b"\x27\1\0\0\0inter"), (AUDIO, b"\xaf\1more")]


def flv_body():
    tags = [flv.tag(type_id, 0, payload) for type_id, payload in [(VIDEO, AVC), (AUDIO, AAC), *FRAMES]]
    return flv.file_header(has_audio=True, has_video=True) + b"".join(tags)


def mp4_body():
    log = Log(FMP4.for_log(), NEVER)
    page = log.tail
    headers = Headers(((VIDEO, AVC), (AUDIO, AAC)))
    log.set_headers(headers)
    for number, (type_id, payload) in enumerate(FRAMES):
        log.append(type_id, number * 20, payload, Kind.FRAME)
    return log.framing.init_segment(headers) + b"".join(bytes(each.data) for each in log.read_all(page, 0))


BODIES = {http_players.FlvBody: flv_body(), http_players.Mp4Body: mp4_body()}


@settings(deadline=None)
@given(st.sampled_from(list(BODIES)), st.lists(st.integers(1, 400), max_size=5))
def test_frames_are_found_however_the_body_is_cut(kind, sizes):
    data, body, found = BODIES[kind], kind(), []
    for size in sizes:
        found += body.feed(data[:size])
        data = data[size:]
    found += body.feed(data)
    headers = [(VIDEO, AVC), (AUDIO, AAC)]
    assert [each for each in found if each not in headers] == FRAMES


@pytest.mark.parametrize("kind", BODIES)
def test_what_is_no_such_body_is_an_error(kind):
    with pytest.raises(wire.ProtocolError):
        kind().feed(bytes(20))


def test_the_parts_of_a_playlist_are_those_of_its_last_segments():
    playlist = hls.MediaPlaylist(
        b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:7\n#EXT-X-SKIP:SKIPPED-SEGMENTS=2\n#EXTINF:2,\nseg-9.m4s\n"
        b'#EXT-X-PART:DURATION=0.2,URI="part-10-0.m4s",INDEPENDENT=YES\n#EXT-X-PART:DURATION=0.2,URI="part-10-1.m4s"\n'
        b'#EXTINF:0.4,\nseg-10.m4s\n#EXT-X-PART:DURATION=0.2,URI="part-11-0.m4s"\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI="x"\n'
    )
    assert playlist.parts == [(10, 0, "part-10-0.m4s"), (10, 1, "part-10-1.m4s"), (11, 0, "part-11-0.m4s")]
    assert playlist.next == (11, 1)
    assert not playlist.ended
    with pytest.raises(ValueError, match="no media playlist"):
        hls.MediaPlaylist(b"#EXTM3U\n")
