"""Command and data messages, as clients in the field make them."""

from __future__ import annotations

import struct

import pytest

from rtmpd.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import UNDEFINED, EcmaArray
from rtmpd.protocol.chunk import RawMessage
from rtmpd.protocol.command import Command, amf0_body, decode_command, encode_command
from rtmpd.protocol.message import MessageType


def command(payload: bytes, type_id: int = MessageType.COMMAND_AMF0, msid: int = 0) -> Command:
    return decode_command(RawMessage(type_id, msid, 0, payload))


def text(value: str) -> bytes:
    return b"\x02" + len(value).to_bytes(2, "big") + value.encode()


def number(value: float) -> bytes:
    return b"\0" + struct.pack(">d", value)


def member(name: str, value: bytes) -> bytes:
    return text(name)[1:] + value


END = b"\0\0\x09"
NULL = b"\x05"


def test_a_command_is_read():
    payload = text("publish") + number(5) + NULL + text("key") + text("live")
    assert command(payload, msid=1) == Command("publish", 5.0, None, ["key", "live"], 1)


def test_a_command_is_written():
    expected = text("onStatus") + number(0) + NULL + b"\x03" + member("code", text("x")) + END
    assert encode_command("onStatus", 0, None, {"code": "x"}) == expected


def test_what_is_written_is_read():
    values = [None, True, 1.5, "é", {"a": {"b": None}}, EcmaArray(x=1.0), [1.0, "two"]]
    assert command(encode_command("name", 3, {"app": "live"}, *values)) == Command("name", 3.0, {"app": "live"}, values)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (text("close"), Command("close", 0.0)),
        (text("close") + number(2), Command("close", 2.0)),
        (text("close") + number(2) + NULL, Command("close", 2.0)),
        (text("close") + NULL, Command("close", 0.0)),
        (text("deleteStream") + number(0) + NULL + number(1), Command("deleteStream", 0.0, None, [1.0])),
        (text(""), Command("", 0.0)),
    ],
)
def test_missing_values_have_defaults(payload, expected):
    assert command(payload) == expected


def test_arguments_that_were_not_sent_have_a_default():
    pause = command(encode_command("pause", 0, None, True))
    assert pause.argument(0) is True
    assert pause.argument(1) is None
    assert pause.argument(1, 7) == 7


@pytest.mark.parametrize(
    ("payload", "seen"),
    [
        (b"", "nothing"),
        (number(1), "float"),
        (NULL + text("connect"), "NoneType"),
        (b"\x01\x01", "bool"),
        (b"\x03" + END, "dict"),
    ],
)
def test_a_command_without_a_name_is_an_error(payload, seen):
    with pytest.raises(RemoteProtocolError, match=f"command message: expected the command's name first, found {seen}"):
        command(payload)


@pytest.mark.parametrize(("value", "seen"), [(text("1"), "str"), (b"\x01\x01", "bool"), (b"\x03" + END, "dict")])
def test_a_transaction_id_that_is_no_number_is_an_error(value, seen):
    text_of_error = f"command 'connect': expected a number as the transaction id, found {seen}"
    with pytest.raises(RemoteProtocolError, match=text_of_error):
        command(text("connect") + value)


def test_a_long_name_is_cut_in_the_error():
    with pytest.raises(RemoteProtocolError, match=f"command '{'x' * 40}': expected a number as the transaction id"):
        command(text("x" * 1000) + text("1"))


@pytest.mark.parametrize("payload", [b"\xff", text("connect")[:-1]])
def test_a_name_that_can_not_be_decoded_is_an_error(payload):
    with pytest.raises(RemoteProtocolError, match="expected the command's name first, found nothing"):
        command(payload)


APP = b"\x03" + member("app", text("live"))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param(number(1) + APP, Command("connect", 1, {"app": "live"}), id="no end marker"),
        pytest.param(number(1) + APP + b"\0", Command("connect", 1, {"app": "live"}), id="a third of an end marker"),
        pytest.param(number(1) + APP + b"\0\0", Command("connect", 1, {"app": "live"}), id="two thirds of an end marker"),
        pytest.param(number(1) + APP + b"\0\5ab", Command("connect", 1, {"app": "live"}), id="half a name"),
        pytest.param(number(1) + APP + member("x", b"\x02\0\5a"), Command("connect", 1, {"app": "live"}), id="half a value"),
        pytest.param(
            number(1) + APP + member("x", APP), Command("connect", 1, {"app": "live", "x": {"app": "live"}}), id="nested"
        ),
        pytest.param(
            number(1) + APP + member("x", b"\x0a\0\0\0\3" + NULL + text("a") + b"\0"),
            Command("connect", 1, {"app": "live", "x": [None, "a"]}),
            id="half an array",
        ),
        pytest.param(number(1) + APP + END + b"\0", Command("connect", 1, {"app": "live"}), id="a trailing NUL"),
        pytest.param(number(1) + APP + END + b"\xff\xfe", Command("connect", 1, {"app": "live"}), id="bytes behind"),
        pytest.param(number(1) + NULL + text("a") + END, Command("connect", 1, None, ["a"]), id="an end marker behind"),
        pytest.param(number(1) + NULL + text("a") + b"\x11\x0a", Command("connect", 1, None, ["a"]), id="half of AMF3"),
        pytest.param(number(1)[:-1], Command("connect", 0), id="half a transaction id"),
        pytest.param(b"\0", Command("connect", 0), id="a NUL behind the name"),
    ],
)
def test_row_69_a_damaged_command_is_read_as_far_as_it_goes(payload, expected):
    assert command(text("connect") + payload) == expected


def test_values_over_a_limit_are_an_error_in_a_damaged_command_too():
    with pytest.raises(LimitExceeded):
        command(text("connect") + number(1) + b"\x03" + b"\0\1a\x03" * 40)


def test_a_value_that_amf0_cannot_express_is_a_local_error():
    with pytest.raises(LocalProtocolError):
        encode_command("name", 1, None, object())


# The rows of what real clients do ----------------------------------------------------------------------------------------


def test_row_7_connect_of_obs_has_no_capabilities_at_all():
    payload = (
        text("connect") + number(1) + b"\x03" + member("app", text("live")) + member("type", text("nonprivate"))
        + member("flashVer", text("FMLE/3.0 (compatible; FMSc/1.0)")) + member("swfUrl", text("rtmp://a/live"))
        + member("tcUrl", text("rtmp://a/live")) + END
    )  # fmt: skip
    properties = command(payload).command_object
    assert properties["app"] == "live"
    assert not {"objectEncoding", "fourCcList", "capsEx"} & properties.keys()


def test_row_8_connect_of_ffmpeg_may_list_four_ccs():
    codecs = b"\x0a" + (3).to_bytes(4, "big") + text("hvc1") + text("av01") + text("vp09")
    payload = text("connect") + number(1) + b"\x03" + member("fourCcList", codecs) + END
    assert command(payload).command_object == {"fourCcList": ["hvc1", "av01", "vp09"]}


def test_row_9_connect_of_e_rtmp_has_maps_of_codecs_and_capabilities():
    codecs = b"\x03" + member("*", number(4)) + member("vp09", number(1)) + END
    payload = text("connect") + number(1) + b"\x03" + member("videoFourCcInfoMap", codecs) + member("capsEx", number(7)) + END
    assert command(payload).command_object == {"videoFourCcInfoMap": {"*": 4.0, "vp09": 1.0}, "capsEx": 7.0}


def test_row_11_the_connect_object_may_be_an_ecma_array():
    payload = text("connect") + number(1) + b"\x08" + (1).to_bytes(4, "big") + member("app", text("live")) + END
    found = command(payload)
    assert isinstance(found.command_object, dict)
    assert found.command_object["app"] == "live"


def test_row_11_values_may_be_undefined_dates_arrays_references_and_xml():
    payload = (
        text("connect") + number(1) + b"\x03" + member("a", b"\x06") + member("b", b"\x0b" + struct.pack(">dh", 1000.0, 0))
        + member("c", b"\x0a" + (2).to_bytes(4, "big") + NULL + number(1)) + member("d", b"\x07\0\1")
        + member("e", b"\x0f" + (4).to_bytes(4, "big") + b"<a/>") + END + b"\x06"
    )  # fmt: skip
    found = command(payload)
    assert found.command_object["a"] is UNDEFINED
    assert found.command_object["c"] == [None, 1.0]
    assert found.command_object["d"] == [None, 1.0]
    assert found.command_object["e"] == "<a/>"
    assert found.arguments == [UNDEFINED]


def test_row_25_delete_stream_may_carry_a_name():
    found = command(text("deleteStream") + number(0) + NULL + text("key"))
    assert found.argument(0) == "key"
    assert found.message_stream_id == 0


def test_row_30_publish_may_have_a_boolean_for_a_name():
    assert command(text("publish") + number(0) + NULL + b"\x01\x00").argument(0) is False


@pytest.mark.parametrize("type_id", [MessageType.COMMAND_AMF3, MessageType.COMMAND_AMF0])
def test_row_39_amf0_in_a_command_of_type_17(type_id):
    payload = text("play") + number(4) + NULL + text("key")
    lead = b"\0" if type_id == MessageType.COMMAND_AMF3 else b""
    assert command(lead + payload, type_id) == Command("play", 4.0, None, ["key"])


def test_row_39_a_command_of_type_17_without_the_leading_byte():
    assert command(text("play") + number(4), MessageType.COMMAND_AMF3) == Command("play", 4.0)


def test_row_39_values_may_switch_to_amf3():
    # 0x11, then AMF3: an integer 5, and a string of two characters.
    payload = b"\0" + text("call") + number(4) + NULL + b"\x11\x04\x05" + b"\x11\x06\x05hi"
    assert command(payload, MessageType.COMMAND_AMF3) == Command("call", 4.0, None, [5, "hi"])


def test_row_39_a_transaction_id_may_be_an_amf3_integer():
    assert command(b"\0" + text("call") + b"\x11\x04\x05", MessageType.COMMAND_AMF3).transaction_id == 5.0


def test_row_39_the_leading_byte_of_a_data_message_of_type_15():
    body = amf0.encode("onMetaData", {"width": 1.0})
    assert amf0_body(RawMessage(MessageType.DATA_AMF3, 1, 0, b"\0" + body)) == body
    assert amf0_body(RawMessage(MessageType.DATA_AMF3, 1, 0, body)) == body
    assert amf0_body(RawMessage(MessageType.DATA_AMF0, 1, 0, body)) == body
    assert amf0_body(RawMessage(MessageType.DATA_AMF3, 1, 0, b"")) == b""


def test_row_56_metadata_of_obs_counts_wrong_and_names_a_codec_by_number():
    members = member("width", number(1280)) + member("videocodecid", number(int.from_bytes(b"hvc1", "big")))
    payload = text("@setDataFrame") + text("onMetaData") + b"\x08" + (20).to_bytes(4, "big") + members + END
    name, what, values = amf0.decode_all(amf0_body(RawMessage(MessageType.DATA_AMF0, 1, 0, payload)))
    assert (name, what) == ("@setDataFrame", "onMetaData")
    assert values == {"width": 1280.0, "videocodecid": float(0x68766331)}
