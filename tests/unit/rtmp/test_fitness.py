"""What a player gets of a stream, by the capabilities that it has declared."""

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


def test_a_player_without_capabilities_gets_plain_tracks_and_hevc_as_published():
    assert wanted(NOTHING_DECLARED, LIVE, AVC) == Rewrite(default_track=True, hevc="published", mod_ex=False, old_video=True)


def test_a_player_with_all_capabilities_gets_everything():
    capable = parse_capabilities({"capsEx": 15, "videoFourCcInfoMap": {"*": 1}})
    assert wanted(capable, LIVE, AVC) == Rewrite(hevc="hvc1")


@pytest.mark.parametrize("form", ["published", "hvc1", "codec12"])
def test_hevc_for_players_without_capabilities_is_an_option(form):
    assert wanted(NOTHING_DECLARED, options(hevc_fallback=form), AVC).hevc == form
    assert wanted(FFMPEG, options(hevc_fallback=form), AVC).hevc == "hvc1"


def test_an_option_sends_all_tracks_to_every_player():
    assert not wanted(NOTHING_DECLARED, options(multitrack_fallback="all"), AVC).default_track


@pytest.mark.parametrize("content", [AV1, HEVC, AVC])
def test_a_player_without_capabilities_is_refused_nothing(content):
    assert unsupported(NOTHING_DECLARED, LIVE, content) == ""


def test_a_player_that_lists_its_codecs_is_refused_any_other():
    only_hevc = parse_capabilities({"fourCcList": ["hvc1", "vp09"]})
    reason = "The video is av01, and the player has said that it takes only hvc1, vp09."
    assert unsupported(only_hevc, LIVE, AV1) == reason
    assert unsupported(only_hevc, LIVE, HEVC) == ""
    assert unsupported(FFMPEG, LIVE, AV1) == ""
    assert unsupported(only_hevc, options(unsupported_codec="send"), AV1) == ""


def test_codecs_with_legacy_headers_need_not_be_listed():
    assert unsupported(FFMPEG, LIVE, AVC) == ""


def test_hevc_with_the_legacy_codec_id_is_better_than_a_refusal():
    only_av1 = parse_capabilities({"videoFourCcInfoMap": {"av01": 1}})
    assert unsupported(only_av1, LIVE, HEVC)
    assert unsupported(only_av1, options(hevc_fallback="codec12"), HEVC) == ""
    assert wanted(only_av1, options(hevc_fallback="codec12"), AVC).hevc == "codec12"


def test_a_codec_has_its_legacy_header_unless_the_player_lists_its_four_cc():
    enhanced = Content(video_four_cc="avc1", audio_four_cc="mp4a")
    assert wanted(NOTHING_DECLARED, LIVE, enhanced).old_video
    assert wanted(NOTHING_DECLARED, LIVE, enhanced).old_audio
    capable = parse_capabilities({"fourCcList": ["avc1", "mp4a"]})
    assert not wanted(capable, LIVE, enhanced).old_video
    assert not wanted(capable, LIVE, enhanced).old_audio
    assert not wanted(parse_capabilities({"capsEx": 2}), LIVE, enhanced).old_audio
    assert wanted(FFMPEG, LIVE, enhanced).old_video
    assert unsupported(FFMPEG, LIVE, enhanced) == ""


def test_audio_that_the_player_does_not_support_is_left_out():
    opus = Content(audio_four_cc="Opus")
    flac_only = parse_capabilities({"audioFourCcInfoMap": {"fLaC": 1}})
    assert wanted(flac_only, LIVE, opus).mute
    assert not wanted(flac_only, options(unsupported_codec="send"), opus).mute
    assert not wanted(NOTHING_DECLARED, LIVE, opus).mute
    assert not wanted(flac_only, LIVE, Content(audio_four_cc="mp4a")).mute
    assert not wanted(flac_only, LIVE, AVC).mute
