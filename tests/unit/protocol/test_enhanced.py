"""Capabilities in connect, by hand from the specification and of real clients; and the answer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rtmpd.protocol import amf0, enhanced, status
from rtmpd.protocol.amf_values import UNDEFINED, EcmaArray
from rtmpd.protocol.chunk import ChunkReader
from rtmpd.protocol.command import decode_command
from rtmpd.protocol.enhanced import NOTHING_DECLARED, Capabilities, parse_capabilities, reconnect_request, server_answer

WIRE = Path(__file__).parents[2] / "golden" / "wire"

# The examples of the specification's table of new name-value pairs.
SPEC_LIST = ["av01", "vp09", "vp08", "hvc1", "avc1", "ac-3", "ec-3", "Opus", ".mp3", "fLaC", "mp4a"]
SPEC_VIDEO_MAP = {"*": 4, "vp09": 1 | 2}
SPEC_AUDIO_MAP = {"*": 4, "Opus": 1 | 2}


def connect_object(recording: str) -> dict[str, object]:
    """The command object of the connect in a recording of a client."""
    data = (WIRE / f"{recording}.c2s.bin").read_bytes()
    reader = ChunkReader()
    for message in reader.feed(data[1 + 2 * 1536 :]):
        if message.type_id == 20:
            command = decode_command(message)
            if command.name == "connect":
                assert isinstance(command.command_object, dict)
                return command.command_object
    raise AssertionError("no connect")


# The list ---------------------------------------------------------------------------------------------------------------


def test_a_client_that_declares_nothing():
    assert parse_capabilities({"app": "live"}) == NOTHING_DECLARED == Capabilities()
    assert NOTHING_DECLARED.takes_video("hvc1") is None
    assert NOTHING_DECLARED.takes_audio("Opus") is None
    flags = ("reconnect", "multitrack", "mod_ex")
    assert not any(getattr(NOTHING_DECLARED, flag) for flag in flags)


def test_the_list_of_the_specification():
    found = parse_capabilities({"fourCcList": SPEC_LIST})
    assert found.four_ccs == frozenset(SPEC_LIST)
    assert [found.takes_video(four_cc) for four_cc in ("hvc1", "avc1", "vvc1", "zzzz")] == [True, True, False, False]
    assert [found.takes_audio(four_cc) for four_cc in ("Opus", "mp4a", "zzzz")] == [True, True, False]


def test_a_list_of_video_codecs_alone_says_nothing_of_audio_and_the_other_way_round():
    assert parse_capabilities({"fourCcList": ["hvc1"]}).takes_audio("Opus") is None
    assert parse_capabilities({"fourCcList": ["Opus"]}).takes_video("hvc1") is None


def test_a_list_with_an_unknown_code_alone_says_nothing_of_what_is_known():
    found = parse_capabilities({"fourCcList": ["zzzz"]})
    assert (found.takes_video("zzzz"), found.takes_video("hvc1")) == (True, None)


def test_the_wildcard_of_the_list_takes_everything():
    found = parse_capabilities({"fourCcList": ["*"]})
    assert found.takes_video("zzzz") is found.takes_audio("zzzz") is True


# The maps ---------------------------------------------------------------------------------------------------------------


def test_the_maps_of_the_specification_take_everything_by_their_wildcard():
    found = parse_capabilities({"videoFourCcInfoMap": SPEC_VIDEO_MAP, "audioFourCcInfoMap": SPEC_AUDIO_MAP})
    assert (found.video, found.audio) == (SPEC_VIDEO_MAP, SPEC_AUDIO_MAP)
    assert found.takes_video("hvc1") is found.takes_video("vp09") is found.takes_audio("mp4a") is True


@pytest.mark.parametrize(
    ("mask", "taken"), [(0, False), (1, True), (2, False), (3, True), (4, True), (5, True), (6, True), (7, True), (8, False)]
)
def test_a_codec_is_taken_that_the_client_decodes_or_forwards(mask, taken):
    found = parse_capabilities({"videoFourCcInfoMap": {"hvc1": mask}, "audioFourCcInfoMap": {"Opus": mask}})
    assert found.takes_video("hvc1") is found.takes_audio("Opus") is taken


def test_a_codec_missing_in_a_map_is_not_supported():
    assert parse_capabilities({"videoFourCcInfoMap": {"hvc1": 1}}).takes_video("av01") is False


def test_a_map_says_nothing_of_the_other_kind():
    assert parse_capabilities({"videoFourCcInfoMap": {"*": 7}}).takes_audio("Opus") is None
    assert parse_capabilities({"audioFourCcInfoMap": {"*": 7}}).takes_video("hvc1") is None


def test_the_wildcard_of_a_map_overrides_a_codec_of_its_own():
    assert parse_capabilities({"videoFourCcInfoMap": {"*": 1, "hvc1": 0}}).takes_video("hvc1") is True
    assert parse_capabilities({"videoFourCcInfoMap": {"*": 2, "hvc1": 1}}).takes_video("av01") is False


def test_an_empty_map_declares_nothing():
    found = parse_capabilities({"videoFourCcInfoMap": {}, "fourCcList": []})
    assert found == NOTHING_DECLARED
    assert found.takes_video("hvc1") is None


def test_list_and_map_together():
    found = parse_capabilities({"fourCcList": ["hvc1", "av01"], "videoFourCcInfoMap": {"hvc1": 2, "vp09": 1}})
    # The map is the newer and says more; what it does not name may be in the list.
    taken = [found.takes_video(four_cc) for four_cc in ("hvc1", "av01", "vp09", "vvc1")]
    assert taken == [False, True, True, False]


# The other properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caps_ex", "flags"),
    [
        (0, ()),
        (1, ("reconnect",)),
        (2, ("multitrack",)),
        (4, ("mod_ex",)),
        (8, ("mod_ex",)),  # an offset is a ModEx packet
        (15, ("reconnect", "multitrack", "mod_ex")),
        (240, ()),
    ],
)
def test_caps_ex(caps_ex, flags):
    found = parse_capabilities({"capsEx": float(caps_ex)})
    assert found.caps_ex == caps_ex
    assert tuple(name for name in ("reconnect", "multitrack", "mod_ex") if getattr(found, name)) == flags


@pytest.mark.parametrize(
    ("value", "encoding"), [(0, 0), (3.0, 3), (1, 0), (4, 0), ("3", 0), (True, 0), (math.nan, 0), (None, 0)]
)
def test_the_object_encoding_is_3_or_0(value, encoding):
    assert parse_capabilities({"objectEncoding": value}).object_encoding == encoding


def test_legacy_codecs_and_video_function_make_no_difference():
    assert parse_capabilities({"videoCodecs": 252.0, "audioCodecs": 4071.0, "videoFunction": 1.0}) is NOTHING_DECLARED


# Real clients -------------------------------------------------------------------------------------------------------------


def test_ffmpeg_lists_the_four_ccs_of_its_option():
    found = parse_capabilities(connect_object("ffmpeg_publish_hevc_enhanced"))
    listed = frozenset(map(str, connect_object("ffmpeg_publish_hevc_enhanced")["fourCcList"]))
    assert found.four_ccs == listed
    assert "hvc1" in listed
    assert found.takes_video("hvc1") is True


@pytest.mark.parametrize("recording", ["ffmpeg_play", "librtmp_play", "rtmpdump_play"])
def test_players_of_today_declare_nothing(recording):
    found = parse_capabilities(connect_object(recording))
    assert found is NOTHING_DECLARED


# What is wrong ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, UNDEFINED, True, 5, -1.0, math.nan, math.inf, "hvc1", b"hvc1", "", [None], [["hvc1"]], [5], ["hvc"], ["hvc12"]],
)
def test_a_malformed_list_declares_nothing(value):
    assert parse_capabilities({"fourCcList": value}) == NOTHING_DECLARED
    assert parse_capabilities({"videoFourCcInfoMap": value, "audioFourCcInfoMap": value}) == NOTHING_DECLARED


def test_invalid_entries_are_ignored():
    found = parse_capabilities({"fourCcList": ["hvc1", 5, None, "toolong", "**", "a\nbc", "\xe4bcd", "*"]})
    assert found.four_ccs == {"hvc1", "*"}
    masks = {
        "hvc1": 1.0,
        "av01": "1",
        "vp09": math.nan,
        "vp08": -1,
        "vvc1": 1.5,
        "avc1": True,
        "long1": 1,
        "a\0bc": 1,
        "zzzz": 2.0**40,
    }
    assert parse_capabilities({"videoFourCcInfoMap": masks}).video == {"hvc1": 1}


def test_a_list_may_come_as_an_ecma_array_or_an_object():
    for value in (EcmaArray({"0": "hvc1", "1": "Opus"}), {"0": "hvc1", "1": "Opus"}, ("hvc1", "Opus")):
        assert parse_capabilities({"fourCcList": value}).four_ccs == {"hvc1", "Opus"}
    assert parse_capabilities({"videoFourCcInfoMap": EcmaArray({"hvc1": 1.0})}).video == {"hvc1": 1}


def test_of_a_long_list_the_first_entries_count():
    names = [f"{number:04}" for number in range(1000)]
    found = parse_capabilities(
        {
            "fourCcList": names,
            "videoFourCcInfoMap": dict.fromkeys(names, 1),
            "audioFourCcInfoMap": EcmaArray(dict.fromkeys(names, 1)),
        }
    )
    assert len(found.four_ccs) == len(found.video) == len(found.audio) == 64
    assert len(parse_capabilities({"fourCcList": dict(enumerate(names))}).four_ccs) == 64


# What the server says -----------------------------------------------------------------------------------------------------


def test_the_answer_declares_that_the_server_forwards_everything():
    answer = server_answer()
    assert answer == {
        "fourCcList": ["*"],
        "videoFourCcInfoMap": {"*": 4},
        "audioFourCcInfoMap": {"*": 4},
        "capsEx": 15,
    }
    found, _ = amf0.decode(amf0.encode(answer))
    assert isinstance(found, dict)
    assert parse_capabilities(found).takes_video("zzzz") is True


def test_each_answer_is_its_own():
    server_answer()["videoFourCcInfoMap"]["hvc1"] = 1
    assert server_answer()["videoFourCcInfoMap"] == {"*": 4}


def test_a_request_to_reconnect():
    assert reconnect_request("rtmp://foo.mydomain.com:1935/realtimeapp", "The streaming server is undergoing updates.") == {
        "level": "status",
        "code": "NetConnection.Connect.ReconnectRequest",
        "description": "The streaming server is undergoing updates.",
        "tcUrl": "rtmp://foo.mydomain.com:1935/realtimeapp",
    }
    # What is optional is left out: then the client comes back to where it is.
    assert reconnect_request() == {"level": "status", "code": status.CONNECT_RECONNECT_REQUEST}


def test_the_codes_are_those_of_the_specification():
    assert {"avc1", "hvc1", "vvc1", "av01", "vp08", "vp09"} == enhanced.VIDEO_FOUR_CCS
    assert {"ac-3", "ec-3", "Opus", ".mp3", "fLaC", "mp4a"} == enhanced.AUDIO_FOUR_CCS


def test_equal_capabilities_share_one_object():
    assert parse_capabilities({}) is NOTHING_DECLARED
    assert parse_capabilities({"capsEx": 6.0}) is parse_capabilities({"capsEx": 6})
    for number in range(100):
        assert parse_capabilities({"capsEx": number}).caps_ex == number
    assert parse_capabilities({"capsEx": 99}) is parse_capabilities({"capsEx": 99})
