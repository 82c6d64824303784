"""colorInfo and channel configurations, by hand from the specification."""

from __future__ import annotations

import math

import pytest

from rtmpd.media.audio_codecs import Channels, read_channels
from rtmpd.media.video_codecs import MAX_COLOR_INFO_BYTES, ColorInfo, read_color_info
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import UNDEFINED, EcmaArray

CONFIG = {"bitDepth": 10, "colorPrimaries": 9, "transferCharacteristics": 16, "matrixCoefficients": 9}
LIGHT = {"maxFall": 400, "maxCLL": 1000}
DISPLAY = {
    "redX": 0.708,
    "redY": 0.292,
    "greenX": 0.17,
    "greenY": 0.797,
    "blueX": 0.131,
    "blueY": 0.046,
    "whitePointX": 0.3127,
    "whitePointY": 0.329,
    "maxLuminance": 1000,
    "minLuminance": 0.005,
}


def info(**members: object) -> bytes:
    return amf0.encode("colorInfo") + amf0.encode(members)


def test_color_info_with_all_members():
    found = read_color_info(info(colorConfig=CONFIG, hdrCll=LIGHT, hdrMdcv=DISPLAY))
    white = (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, 0.3127, 0.329)
    assert found == ColorInfo(10, 9, 16, 9, 400.0, 1000.0, 0.005, 1000.0, white)
    assert str(found) == "bt2020nc/bt2020/smpte2084 1000 cd/m2"


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"colorConfig": {}}, ""),
        ({"colorConfig": {"colorPrimaries": 9}}, "unknown/bt2020/unknown"),
        ({"colorConfig": {"matrixCoefficients": 0}}, ""),
        ({"colorConfig": {"matrixCoefficients": 0, "colorPrimaries": 1}}, "gbr/bt709/unknown"),
        ({"colorConfig": {"colorPrimaries": 1, "transferCharacteristics": 1, "matrixCoefficients": 1}}, "bt709/bt709/bt709"),
        ({"colorConfig": {"transferCharacteristics": 18}}, "unknown/unknown/arib-std-b67"),
        ({"colorConfig": {"transferCharacteristics": 8}}, "unknown/unknown/linear"),
        ({"colorConfig": {"matrixCoefficients": 14}}, "ictcp/unknown/unknown"),
        ({"colorConfig": {"colorPrimaries": 2, "transferCharacteristics": 2, "matrixCoefficients": 2}}, ""),
        ({"hdrMdcv": {"maxLuminance": 600}}, "600 cd/m2"),
        ({"hdrCll": {"maxCLL": 1500.5}, "hdrMdcv": {"maxLuminance": 600}}, "1500.5 cd/m2"),
    ],
)
def test_color_info_is_described_as_far_as_it_is_known(members, text):
    assert str(read_color_info(info(**members))) == text


@pytest.mark.parametrize("value", [{}, UNDEFINED, None, 5.0, "x"])
def test_an_empty_color_info_resets_the_colors(value):
    assert read_color_info(amf0.encode("colorInfo") + amf0.encode(value)) == ColorInfo()


def test_color_info_may_be_an_ecma_array_after_another_value():
    body = (
        amf0.encode("other")
        + amf0.encode({"a": 1})
        + amf0.encode("colorInfo")
        + amf0.encode(EcmaArray({"colorConfig": CONFIG}))
    )
    assert read_color_info(body) == ColorInfo(10, 9, 16, 9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 256.0, "9", True, {}])
def test_numbers_of_color_info_out_of_range_are_ignored(value):
    names = (*CONFIG, *LIGHT, *DISPLAY)
    wrong = dict.fromkeys(names, value)
    if value == 256.0:
        wrong = dict.fromkeys(names, 10001.0)
    assert read_color_info(info(colorConfig=wrong, hdrCll=wrong, hdrMdcv=wrong)) == ColorInfo()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x02\x00\x09color",
        amf0.encode("colorInfo"),
        amf0.encode("other") + amf0.encode({}),
        amf0.encode("colorInfo") + b"\x0e",
        info(colorConfig=CONFIG)[:-4],
        info(colorConfig={f"m{number}": number for number in range(100)}),
        info(text="x" * 100),
        info() + bytes(MAX_COLOR_INFO_BYTES),
    ],
)
def test_malformed_color_info_is_none(body):
    assert read_color_info(body) is None


@pytest.mark.parametrize(
    ("body", "channels"),
    [
        ("00 06", Channels(6)),
        ("01 01 00000004", Channels(1, "mono")),
        ("01 02 00000003", Channels(2, "stereo")),
        ("01 06 0000003f", Channels(6, "5.1")),
        ("01 06 0000060f", Channels(6, "5.1(side)")),
        ("01 08 0000063f", Channels(8, "7.1")),
        ("01 18 00ffffff", Channels(24, "22.2")),
        ("01 02 00000201", Channels(2, "FL+SL")),
        ("01 02 ff000000", Channels(2, "")),
        ("02 03 00 01 03", Channels(3, "FL+FR+LFE")),
        ("02 04 17 fe ff 02", Channels(4, "BFR+?+FC")),
        ("02 01 00 ffffff", Channels(1, "FL")),
    ],
)
def test_channels(body, channels):
    assert read_channels(bytes.fromhex(body)) == channels


@pytest.mark.parametrize("body", ["", "00", "00 00", "01 06", "01 06 0000", "02 03 0001", "03 02", "ff ff"])
def test_truncated_channels_and_those_of_an_unknown_order_are_none(body):
    assert read_channels(bytes.fromhex(body)) is None


def test_the_list_of_speakers_is_bounded():
    assert len(read_channels(b"\2\xff" + bytes(255)).layout) < 100
