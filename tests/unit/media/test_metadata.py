"""onMetaData for late joiners."""

from __future__ import annotations

import pytest

from rtmpd.media.audio_codecs import AudioConfig
from rtmpd.media.metadata import made_metadata, sound_metadata
from rtmpd.media.video_codecs import VideoConfig
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import UNDEFINED, AmfDate, EcmaArray, TypedObject, XmlDocument

GOOD = {"width": 1280.0, "encoder": "test"}


def sound(payload):
    made = sound_metadata(payload)
    return None if made is None else amf0.decode_all(made)


@pytest.mark.parametrize("kind", [dict, EcmaArray])
def test_good_metadata_stays_as_it_is(kind):
    metadata = kind(
        {**GOOD, "stereo": True, "nothing": None, "date": AmfDate(5.0), "list": [1.0, {"a": 2.0}], "inner": {"b": 1.0}}
    )
    assert sound_metadata(amf0.encode("onMetaData", metadata)) == amf0.encode("onMetaData", metadata)


@pytest.mark.parametrize(
    "bad",
    [UNDEFINED, XmlDocument("<x/>"), TypedObject("a.B", {"c": 1.0}), float("nan"), float("inf"), "x" * 1024],
    ids=["undefined", "xml", "typed object", "nan", "infinite", "text"],
)
def test_members_that_players_cannot_read_are_left_out(bad):
    payload = amf0.encode(
        "onMetaData", EcmaArray({"first": bad, **GOOD, "inner": {"bad": bad, "good": 1.0}, "list": [bad, 2.0]})
    )
    assert sound(payload) == ["onMetaData", {**GOOD, "inner": {"good": 1.0}, "list": [2.0]}]


def test_a_short_text_that_is_encoded_as_a_long_one_becomes_a_short_one():
    payload = amf0.encode("onMetaData") + b"\x03\0\1a\x0c\0\0\0\1x\0\0\x09"
    assert sound_metadata(payload) == amf0.encode("onMetaData", {"a": "x"})


@pytest.mark.parametrize("kind", [dict, EcmaArray])
def test_metadata_without_an_end_marker_or_with_bytes_behind_it_is_read(kind):
    good = amf0.encode("onMetaData", kind(GOOD))
    for payload in (good[:-3], good[:-1], good + b"\0", good + b"\xffrest", good + amf0.encode(1.0)):
        assert sound_metadata(payload) == good


def test_the_count_of_an_ecma_array_becomes_right():
    good = amf0.encode("onMetaData", EcmaArray(GOOD))
    assert sound_metadata(good.replace(b"\x08\0\0\0\2", b"\x08\0\0\0\x14")) == good


def test_metadata_that_is_cut_off_keeps_the_members_before():
    good = amf0.encode("onMetaData", EcmaArray(GOOD))
    assert sound(good[: good.index(b"encoder") + 5]) == ["onMetaData", {"width": 1280.0}]


@pytest.mark.parametrize("rest", [b"", b"\xff", b"\x08\0\0", b"\x03\0\5wid", b"\2\0\1x", b"\x03\0\1a\x06\0\0\x09"])
def test_metadata_without_a_member_that_can_be_kept_is_none(rest):
    assert sound_metadata(amf0.encode("onMetaData") + rest) is None


def test_empty_metadata_stays_empty():
    assert sound(amf0.encode("onMetaData", {})) == ["onMetaData", {}]


def test_deep_metadata_are_left_out():
    deep = {"x": 1.0}
    for _ in range(20):
        deep = {"deep": deep}
    made = sound(amf0.encode("onMetaData", {**GOOD, "deep": deep}))
    assert made[1]["width"] == 1280.0


def test_made_metadata_says_what_is_known():
    assert made_metadata(None, None, fps=25.0, bitrate=1e6) is None
    video = VideoConfig("h264", "High", "4.0", 1920, 1080, codec_id=7)
    audio = AudioConfig("aac", "LC", 48000, 2, codec_id=10)
    members = {"width": 1920, "height": 1080, "videocodecid": 7, "framerate": 25.0}
    members |= {"audiocodecid": 10, "audiosamplerate": 48000, "audiochannels": 2, "stereo": True, "totaldatarate": 1000}
    assert amf0.decode_all(made_metadata(video, audio, fps=25.01, bitrate=1e6)) == ["onMetaData", members]
