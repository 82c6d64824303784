from __future__ import annotations

import pytest

from rtmpd.live.stats import Stats
from rtmpd.media.audio_codecs import AudioConfig
from rtmpd.media.video_codecs import VideoConfig
from rtmpd.protocol import amf0

# x264's record of a picture of 160x120, High profile, level 1.1; AAC-LC at 44100 Hz, mono.
AVC = bytes.fromhex(
    "1700000000 0164000bffe1001a6764000bacd94284 7e22c044000003000400000300c83c50a65801000668ebe3cb22c0fdf8f800"
)
AAC = bytes.fromhex("af001208")
MP3 = bytes.fromhex("2ffffb90c4")


@pytest.fixture
def reported():
    return []


@pytest.fixture
def stats(reported):
    return Stats(reported.append)


def test_codecs_are_read_from_headers_and_reported_once(stats, reported):
    stats.video_header(AVC)
    stats.audio_header(AAC)
    stats.video_header(AVC)
    stats.audio_header(AAC)
    assert [type(each) for each in reported] == [VideoConfig, AudioConfig]
    assert reported == [stats.video, stats.audio]
    assert (stats.video.codec, stats.video.width, stats.video.height) == ("h264", 160, 114)
    assert (stats.audio.codec, stats.audio.sample_rate_hz, stats.audio.channels) == ("aac", 44100, 1)
    assert not stats.asks_audio


def test_a_changed_codec_is_reported(stats, reported):
    stats.audio_header(AAC)
    stats.audio_header(bytes.fromhex("af001210"))
    assert [each.channels for each in reported] == [1, 2]


def test_audio_without_headers_is_read_from_its_first_frame(stats, reported):
    assert stats.asks_audio
    stats.audio_frame(MP3)
    assert not stats.asks_audio
    assert reported == [AudioConfig("mp3", "", 44100, 1)]


def test_only_the_first_frames_are_examined_for_an_unknown_audio_codec(stats, reported):
    asked = 0
    while stats.asks_audio:
        stats.audio_frame(b"")
        asked += 1
        assert asked < 1000
    assert reported == []


def test_a_header_without_a_size_is_reported_with_the_keyframe_that_has_one(stats, reported):
    # An Enhanced sequence start of VP9 whose record has no size, then a keyframe of 352x288.
    stats.video_header(b"\x90vp09" + bytes.fromhex("01000000000a820202020000"))
    assert reported == []
    assert stats.video.codec == "vp9"
    stats.keyframe(0, b"\x91vp09" + bytes.fromhex("824983420015f011f6"), 1.0)
    assert [(each.codec, each.width, each.height) for each in reported] == [("vp9", 352, 288)]
    stats.video_header(b"\x90vp09" + bytes.fromhex("01000000000a820202020000"))
    assert len(reported) == 1
    assert stats.video.width == 352


def test_keyframes_are_counted_and_their_interval_is_known_over_a_wrap(stats):
    stats.keyframe(0xFFFFFF00, b"\x17\x01", 10.0)
    assert (stats.keyframes, stats.keyframe_at, stats.keyframe_interval_ms) == (1, 10.0, 0)
    stats.keyframe(0xFFFFFF00 + 2000 - (1 << 32), b"\x17\x01", 12.0)
    assert (stats.keyframes, stats.keyframe_at, stats.keyframe_interval_ms) == (2, 12.0, 2000)


def test_rates_are_those_of_the_last_seconds(stats):
    for second in range(20):
        stats.sweep(second, second * 125_000, second * 30)
    assert stats.bitrate == pytest.approx(1_000_000)
    assert stats.fps == pytest.approx(30)
    for second in range(20, 26):
        stats.sweep(second, 19 * 125_000, 19 * 30)
    assert (stats.bitrate, stats.fps) == (0, 0)


def test_new_stats_know_nothing(stats):
    assert (stats.video, stats.audio, stats.keyframes, stats.bitrate, stats.fps) == (None, None, 0, 0, 0)
    assert stats.asks_audio


def test_closed_stats_report_nothing(stats, reported):
    stats.close()
    stats.video_header(AVC)
    assert reported == []
    assert stats.video.codec == "h264"


# Enhanced RTMP ------------------------------------------------------------------------------------------------------------

HVC1 = b"\x90hvc1" + bytes.fromhex("0102200000009000000000003cf000fcfdfafa")
COLOR = b"\xd4hvc1" + amf0.encode("colorInfo") + amf0.encode({"colorConfig": {"transferCharacteristics": 16}})
RESET = b"\xd4hvc1" + amf0.encode("colorInfo") + amf0.encode({})


@pytest.mark.parametrize("messages", [(HVC1, COLOR), (COLOR, HVC1), (COLOR, HVC1, HVC1)])
def test_colors_are_known_before_and_after_the_header(stats, messages):
    for message in messages:
        stats.video_header(message)
    assert stats.video.color == "unknown/unknown/smpte2084"
    stats.video_header(RESET)
    assert stats.video.color == ""


def test_a_change_of_colors_alone_is_not_reported(stats, reported):
    stats.video_header(AVC)
    stats.video_header(COLOR.replace(b"hvc1", b"avc1"))
    assert stats.video.color
    assert len(reported) == 1


def test_colors_of_another_codec_are_of_another_track(stats):
    stats.video_header(AVC)
    stats.video_header(COLOR)
    assert stats.video.color == ""


def test_the_lowest_track_counts(stats, reported):
    stats.video_header(b"\x96\0hvc1\2" + HVC1[5:])
    stats.video_header(AVC)
    stats.video_header(b"\x96\0hvc1\1" + HVC1[5:])
    stats.audio_header(AAC)
    stats.audio_header(b"\x95\0Opus\1OpusHead\1\2")
    stats.audio_header(b"\x95\4Opus\1\1\6\0\0\0\x3f")
    assert (stats.video.codec, stats.audio) == ("h264", AudioConfig("aac", "LC", 44100, 1))
    assert stats.audio.layout == ""


def test_a_higher_track_counts_while_no_lower_one_is_known(stats):
    stats.video_header(b"\x96\0hvc1\1" + HVC1[5:])
    assert stats.video.codec == "hevc"


def test_a_channel_layout_alone_is_not_reported(stats, reported):
    stats.audio_header(b"\x90OpusOpusHead\1\6")
    stats.audio_header(b"\x94Opus\1\6\0\0\0\x3f")
    assert stats.audio.layout == "5.1"
    assert reported == [AudioConfig("opus", "", 48000, 6)]


def test_frames_are_examined_for_what_a_multichannel_configuration_leaves_out(stats):
    stats.audio_header(b"\x90ac-3")
    stats.audio_header(b"\x94ac-3\1\6\0\0\0\x3f")
    assert stats.asks_audio
