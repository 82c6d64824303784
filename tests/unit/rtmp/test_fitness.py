"""What a player gets, by what it said of itself."""

import dataclasses

import pytest

from rtmpd.config.loader import load_text
from rtmpd.media.rewrite import Content, Rewrite
from rtmpd.protocol.enhanced import NOTHING_DECLARED, parse_capabilities
from rtmpd.rtmp.fitness import unsupported, wanted

LIVE = load_text("").live
AV1, HEVC, AVC = Content(video_four_cc="av01"), Content(video_four_cc="hvc1", hevc="hvc1"), Content()
FFMPEG = parse_capabilities({"fourCcList": ["hvc1", "av01", "vp09"]})


def options(**changes):
    return dataclasses.replace(LIVE, **changes)


def test_who_declares_nothing_gets_plain_tracks_and_hevc_as_it_is():
    assert wanted(NOTHING_DECLARED, LIVE, AVC) == Rewrite(default_track=True, hevc="published", mod_ex=False, old_video=True)


def test_who_declares_everything_gets_everything():
    capable = parse_capabilities({"capsEx": 15, "videoFourCcInfoMap": {"*": 1}})
    assert wanted(capable, LIVE, AVC) == Rewrite(hevc="hvc1")


@pytest.mark.parametrize("form", ["published", "hvc1", "codec12"])
def test_hevc_for_those_who_do_not_say_is_the_operators_choice(form):
    assert wanted(NOTHING_DECLARED, options(hevc_fallback=form), AVC).hevc == form
    assert wanted(FFMPEG, options(hevc_fallback=form), AVC).hevc == "hvc1"


def test_several_tracks_can_be_for_everybody():
    assert not wanted(NOTHING_DECLARED, options(multitrack_fallback="all"), AVC).default_track


@pytest.mark.parametrize("content", [AV1, HEVC, AVC])
def test_who_declares_nothing_is_refused_nothing(content):
    assert unsupported(NOTHING_DECLARED, LIVE, content) == ""


def test_who_lists_codecs_is_told_of_another():
    only_hevc = parse_capabilities({"fourCcList": ["hvc1", "vp09"]})
    reason = "The video is av01, and the player has said that it takes only hvc1, vp09."
    assert unsupported(only_hevc, LIVE, AV1) == reason
    assert unsupported(only_hevc, LIVE, HEVC) == ""
    assert unsupported(FFMPEG, LIVE, AV1) == ""
    assert unsupported(only_hevc, options(unsupported_codec="send"), AV1) == ""


def test_the_old_tag_headers_are_no_matter_of_lists():
    assert unsupported(FFMPEG, LIVE, AVC) == ""


def test_hevc_under_the_old_codec_id_is_better_than_nothing():
    only_av1 = parse_capabilities({"videoFourCcInfoMap": {"av01": 1}})
    assert unsupported(only_av1, LIVE, HEVC)
    assert unsupported(only_av1, options(hevc_fallback="codec12"), HEVC) == ""
    assert wanted(only_av1, options(hevc_fallback="codec12"), AVC).hevc == "codec12"


def test_what_has_an_old_header_gets_it_unless_the_new_one_is_named():
    enhanced = Content(video_four_cc="avc1", audio_four_cc="mp4a")
    assert wanted(NOTHING_DECLARED, LIVE, enhanced).old_video
    assert wanted(NOTHING_DECLARED, LIVE, enhanced).old_audio
    capable = parse_capabilities({"fourCcList": ["avc1", "mp4a"]})
    assert not wanted(capable, LIVE, enhanced).old_video
    assert not wanted(capable, LIVE, enhanced).old_audio
    assert not wanted(parse_capabilities({"capsEx": 2}), LIVE, enhanced).old_audio
    assert wanted(FFMPEG, LIVE, enhanced).old_video
    assert unsupported(FFMPEG, LIVE, enhanced) == ""


def test_audio_that_is_not_taken_is_left_out():
    opus = Content(audio_four_cc="Opus")
    flac_only = parse_capabilities({"audioFourCcInfoMap": {"fLaC": 1}})
    assert wanted(flac_only, LIVE, opus).mute
    assert not wanted(flac_only, options(unsupported_codec="send"), opus).mute
    assert not wanted(NOTHING_DECLARED, LIVE, opus).mute
    assert not wanted(flac_only, LIVE, Content(audio_four_cc="mp4a")).mute
    assert not wanted(flac_only, LIVE, AVC).mute
