"""What of a stream players may have trouble with, and what is rewritten for them."""

import pytest

from rtmpd.live.content import Content
from rtmpd.media.rewrite import AS_PUBLISHED, Rewrite
from tests.unit.live.fakes import AAC_HEADER, AVC_HEADER, frame, keyframe

HVC1_HEADER = b"\x90hvc1\x01record"
CODEC12_HEADER = b"\x1c\0\0\0\0\x01record"
SECOND_TRACK = b"\x96\x00avc1\x01record"
FIRST_TRACK = b"\x96\x00av01\x00record"
NANO = b"\xa7\x02\0\x12\x34\x01avc1\0\0\0frame"
PLAIN = Rewrite(default_track=True, mod_ex=False)


def test_an_ordinary_stream_is_for_everybody():
    content = Content()
    for payload in (AVC_HEADER, keyframe(), frame()):
        content.look_at_video(payload)
    content.look_at_audio(AAC_HEADER)
    assert (content.video_four_cc, content.audio_four_cc, content.hevc) == ("", "", "")
    for wanted in (AS_PUBLISHED, PLAIN, Rewrite(hevc="hvc1"), Rewrite(hevc="codec12")):
        assert content.narrow(wanted).identity


def test_the_same_header_again_is_no_news():
    content = Content()
    assert content.look_at_video(HVC1_HEADER)
    assert not content.look_at_video(HVC1_HEADER)
    assert content.look_at_audio(b"\x90Opushead")
    assert not content.look_at_audio(b"\x90Opushead")
    assert (content.video_four_cc, content.audio_four_cc) == ("hvc1", "Opus")


@pytest.mark.parametrize(
    ("header", "form", "wanted", "rewritten"),
    [
        (HVC1_HEADER, "hvc1", "codec12", "codec12"),
        (HVC1_HEADER, "hvc1", "hvc1", "published"),
        (CODEC12_HEADER, "codec12", "hvc1", "hvc1"),
        (CODEC12_HEADER, "codec12", "codec12", "published"),
        (CODEC12_HEADER, "codec12", "published", "published"),
    ],
)
def test_hevc_is_rewritten_only_into_another_form(header, form, wanted, rewritten):
    content = Content()
    content.look_at_video(header)
    assert content.hevc == form
    assert content.narrow(Rewrite(hevc=wanted)) == Rewrite(hevc=rewritten)


def test_tracks_are_taken_apart_once_there_are_several():
    content = Content()
    content.look_at_video(AVC_HEADER)
    assert content.narrow(PLAIN).identity
    assert content.look_at_video(SECOND_TRACK)
    assert content.narrow(PLAIN) == Rewrite(default_track=True)
    assert content.narrow(AS_PUBLISHED).identity


def test_the_default_track_is_the_lowest_that_came():
    content = Content()
    content.look_at_video(SECOND_TRACK)
    assert content.narrow(PLAIN) == Rewrite(default_track=True, video_track=1)
    assert content.video_four_cc == "avc1"
    content.look_at_video(FIRST_TRACK)
    assert content.narrow(PLAIN) == Rewrite(default_track=True, video_track=0)
    assert content.video_four_cc == "av01"


def test_mod_ex_is_taken_off_for_those_who_do_not_know_it():
    content = Content()
    content.look_at_video(NANO)
    assert content.narrow(Rewrite(mod_ex=False)) == Rewrite(mod_ex=False)
    assert content.narrow(AS_PUBLISHED).identity


def test_what_is_known_need_not_be_looked_for():
    content = Content()
    assert content.known == 0
    content.look_at_video(SECOND_TRACK)
    content.look_at_video(NANO)
    known = content.known
    assert not content.look_at_video(NANO)
    assert content.known == known != 0


@pytest.mark.parametrize("payload", [b"", b"\x96", b"\x97\xff", b"\x90hv", b"\x1c", b"\x5f\x00"])
def test_garbage_is_no_content(payload):
    content = Content()
    if payload:
        content.look_at_video(payload)
    assert (content.video_four_cc, content.audio_four_cc) == ("", "")
