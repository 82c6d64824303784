from __future__ import annotations

import pytest

from rtmpd.live.stats import Vitals
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
def told():
    return []


@pytest.fixture
def vitals(told):
    return Vitals(told.append)


def test_headers_say_what_it_is_and_are_told_once(vitals, told):
    vitals.video_header(AVC)
    vitals.audio_header(AAC)
    vitals.video_header(AVC)
    vitals.audio_header(AAC)
    assert [type(each) for each in told] == [VideoConfig, AudioConfig]
    assert told == [vitals.video, vitals.audio]
    assert (vitals.video.codec, vitals.video.width, vitals.video.height) == ("h264", 160, 114)
    assert (vitals.audio.codec, vitals.audio.sample_rate_hz, vitals.audio.channels) == ("aac", 44100, 1)
    assert not vitals.asks_audio


def test_a_change_is_told(vitals, told):
    vitals.audio_header(AAC)
    vitals.audio_header(bytes.fromhex("af001210"))
    assert [each.channels for each in told] == [1, 2]


def test_audio_without_headers_is_read_from_its_first_frame(vitals, told):
    assert vitals.asks_audio
    vitals.audio_frame(MP3)
    assert not vitals.asks_audio
    assert told == [AudioConfig("mp3", "", 44100, 1)]


def test_audio_that_says_nothing_is_not_asked_for_ever(vitals, told):
    asked = 0
    while vitals.asks_audio:
        vitals.audio_frame(b"")
        asked += 1
        assert asked < 1000
    assert told == []


def test_a_record_without_a_size_waits_for_the_keyframe_that_has_one(vitals, told):
    # An Enhanced sequence start of VP9 whose record has no size, then a keyframe of 352x288.
    vitals.video_header(b"\x90vp09" + bytes.fromhex("01000000000a820202020000"))
    assert told == []
    assert vitals.video.codec == "vp9"
    vitals.keyframe(0, b"\x91vp09" + bytes.fromhex("824983420015f011f6"), 1.0)
    assert [(each.codec, each.width, each.height) for each in told] == [("vp9", 352, 288)]
    vitals.video_header(b"\x90vp09" + bytes.fromhex("01000000000a820202020000"))
    assert len(told) == 1
    assert vitals.video.width == 352


def test_keyframes_are_counted_and_their_interval_is_known_over_a_wrap(vitals):
    vitals.keyframe(0xFFFFFF00, b"\x17\x01", 10.0)
    assert (vitals.keyframes, vitals.keyframe_at, vitals.keyframe_interval_ms) == (1, 10.0, 0)
    vitals.keyframe(0xFFFFFF00 + 2000 - (1 << 32), b"\x17\x01", 12.0)
    assert (vitals.keyframes, vitals.keyframe_at, vitals.keyframe_interval_ms) == (2, 12.0, 2000)


def test_rates_are_of_the_last_seconds(vitals):
    for second in range(20):
        vitals.sweep(second, second * 125_000, second * 30)
    assert vitals.bitrate == pytest.approx(1_000_000)
    assert vitals.fps == pytest.approx(30)
    for second in range(20, 26):
        vitals.sweep(second, 19 * 125_000, 19 * 30)
    assert (vitals.bitrate, vitals.fps) == (0, 0)


def test_another_publisher_begins_with_nothing(vitals, told):
    vitals.video_header(AVC)
    vitals.audio_header(AAC)
    vitals.keyframe(0, b"\x17\x01", 1.0)
    vitals.sweep(0, 0, 0)
    vitals.sweep(1, 1000, 1)
    vitals.reset()
    assert (vitals.video, vitals.audio, vitals.keyframes, vitals.bitrate, vitals.fps) == (None, None, 0, 0, 0)
    assert vitals.asks_audio
    vitals.video_header(AVC)
    assert len(told) == 3


# Enhanced RTMP ------------------------------------------------------------------------------------------------------------

HVC1 = b"\x90hvc1" + bytes.fromhex("0102200000009000000000003cf000fcfdfafa")
COLOR = b"\xd4hvc1" + amf0.encode("colorInfo") + amf0.encode({"colorConfig": {"transferCharacteristics": 16}})
RESET = b"\xd4hvc1" + amf0.encode("colorInfo") + amf0.encode({})


@pytest.mark.parametrize("messages", [(HVC1, COLOR), (COLOR, HVC1), (COLOR, HVC1, HVC1)])
def test_colors_are_known_whether_they_come_before_the_header_or_after_it(vitals, messages):
    for message in messages:
        vitals.video_header(message)
    assert vitals.video.color == "unknown/unknown/smpte2084"
    vitals.video_header(RESET)
    assert vitals.video.color == ""


def test_colors_alone_are_no_news(vitals, told):
    vitals.video_header(AVC)
    vitals.video_header(COLOR.replace(b"hvc1", b"avc1"))
    assert vitals.video.color
    assert len(told) == 1


def test_colors_of_another_codec_are_of_another_track(vitals):
    vitals.video_header(AVC)
    vitals.video_header(COLOR)
    assert vitals.video.color == ""


def test_the_lowest_track_counts(vitals, told):
    vitals.video_header(b"\x96\0hvc1\2" + HVC1[5:])
    vitals.video_header(AVC)
    vitals.video_header(b"\x96\0hvc1\1" + HVC1[5:])
    vitals.audio_header(AAC)
    vitals.audio_header(b"\x95\0Opus\1OpusHead\1\2")
    vitals.audio_header(b"\x95\4Opus\1\1\6\0\0\0\x3f")
    assert (vitals.video.codec, vitals.audio) == ("h264", AudioConfig("aac", "LC", 44100, 1))
    assert vitals.audio.layout == ""
    vitals.reset()
    vitals.video_header(b"\x96\0hvc1\1" + HVC1[5:])
    assert vitals.video.codec == "hevc"


def test_where_the_channels_are_is_no_news(vitals, told):
    vitals.audio_header(b"\x90OpusOpusHead\1\6")
    vitals.audio_header(b"\x94Opus\1\6\0\0\0\x3f")
    assert vitals.audio.layout == "5.1"
    assert told == [AudioConfig("opus", "", 48000, 6)]


def test_a_multichannel_configuration_leaves_the_rest_to_frames_that_say_it(vitals):
    vitals.audio_header(b"\x90ac-3")
    vitals.audio_header(b"\x94ac-3\1\6\0\0\0\x3f")
    assert vitals.asks_audio
