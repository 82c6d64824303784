"""Control messages, user control events and aggregates against bytes written by hand."""

from __future__ import annotations

import pytest

from rtmpd.errors import RemoteProtocolError
from rtmpd.protocol import message as wire
from rtmpd.protocol.chunk import ChunkReader
from rtmpd.protocol.message import (
    MessageType,
    RawMessage,
    UserControl,
    UserControlType,
    parse_uint32,
    parse_user_control,
    split_aggregate,
)


def control(type_id: int, payload: str) -> RawMessage:
    return RawMessage(type_id, 0, 0, bytes.fromhex(payload))


# The numbers of sections 5.4, 6.2 and 7.1 --------------------------------------------------------------------------------


def test_message_types_have_the_numbers_of_the_specification():
    assert {kind.name: kind.value for kind in MessageType} == {
        "SET_CHUNK_SIZE": 1,
        "ABORT": 2,
        "ACKNOWLEDGEMENT": 3,
        "USER_CONTROL": 4,
        "WINDOW_ACK_SIZE": 5,
        "SET_PEER_BANDWIDTH": 6,
        "AUDIO": 8,
        "VIDEO": 9,
        "DATA_AMF3": 15,
        "SHARED_OBJECT_AMF3": 16,
        "COMMAND_AMF3": 17,
        "DATA_AMF0": 18,
        "SHARED_OBJECT_AMF0": 19,
        "COMMAND_AMF0": 20,
        "AGGREGATE": 22,
    }


def test_user_control_events_have_the_numbers_of_the_specification():
    assert {event.name: event.value for event in UserControlType} == {
        "STREAM_BEGIN": 0,
        "STREAM_EOF": 1,
        "STREAM_DRY": 2,
        "SET_BUFFER_LENGTH": 3,
        "STREAM_IS_RECORDED": 4,
        "PING_REQUEST": 6,
        "PING_RESPONSE": 7,
        "BUFFER_EMPTY": 31,
        "BUFFER_READY": 32,
    }


def test_chunk_stream_ids_are_those_of_flash_media_server_and_all_different():
    csids = (wire.CSID_CONTROL, wire.CSID_COMMAND, wire.CSID_AUDIO, wire.CSID_STATUS, wire.CSID_VIDEO, wire.CSID_DATA)
    assert csids == (2, 3, 4, 5, 6, 8)


# Encoders ----------------------------------------------------------------------------------------------------------------

HEADER = "02 000000 0000"  # csid 2, timestamp 0, and the first bytes of the length

ENCODED = [
    ("Set Chunk Size", wire.set_chunk_size(4096), HEADER + "04 01 00000000 00001000"),
    ("Abort", wire.abort(65599), HEADER + "04 02 00000000 0001003f"),
    ("Acknowledgement", wire.acknowledgement(0xFFFFFFFF), HEADER + "04 03 00000000 ffffffff"),
    ("Acknowledgement wraps", wire.acknowledgement(0x1_0000_0001), HEADER + "04 03 00000000 00000001"),
    ("Window Acknowledgement Size", wire.window_ack_size(2_500_000), HEADER + "04 05 00000000 002625a0"),
    ("Set Peer Bandwidth, dynamic", wire.set_peer_bandwidth(2_500_000), HEADER + "05 06 00000000 002625a0 02"),
    ("Set Peer Bandwidth, hard", wire.set_peer_bandwidth(1, 0), HEADER + "05 06 00000000 00000001 00"),
    ("Stream Begin", wire.user_control(UserControlType.STREAM_BEGIN, 1), HEADER + "06 04 00000000 0000 00000001"),
    ("Stream EOF", wire.user_control(UserControlType.STREAM_EOF, 1), HEADER + "06 04 00000000 0001 00000001"),
    (
        "Set Buffer Length",
        wire.user_control(UserControlType.SET_BUFFER_LENGTH, 1, 30000),
        HEADER + "0a 04 00000000 0003 00000001 00007530",
    ),
    ("Ping Request", wire.user_control(UserControlType.PING_REQUEST, 0x12345678), HEADER + "06 04 00000000 0006 12345678"),
    ("Ping Request wraps", wire.user_control(UserControlType.PING_REQUEST, 2**32 + 7), HEADER + "06 04 00000000 0006 00000007"),
]


@pytest.mark.parametrize(("encoded", "expected"), [pytest.param(e, bytes.fromhex(x), id=n) for n, e, x in ENCODED])
def test_control_messages_encode_as_the_specification_says(encoded, expected):
    assert encoded == expected


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 5, 9])
@pytest.mark.parametrize(
    "encode",
    [
        lambda size: wire.abort(6, size),
        lambda size: wire.acknowledgement(77, size),
        lambda size: wire.window_ack_size(77, size),
        lambda size: wire.set_peer_bandwidth(77, 2, size),
        lambda size: wire.user_control(3, 1, 77, size),
    ],
)
def test_control_messages_are_cut_at_a_small_chunk_size(encode, chunk_size):
    small, usual = ChunkReader(), ChunkReader()
    small.chunk_size = chunk_size
    assert small.feed(encode(chunk_size)) == usual.feed(encode(128))
    assert small.buffered_bytes == 0


def test_row_43_control_messages_have_timestamp_0_on_csid_2():
    for _, encoded, _ in ENCODED:
        assert encoded[:4] == b"\x02\0\0\0"


# Parsers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_id", [3, 5, 6])
def test_the_number_of_a_control_message(type_id):
    assert parse_uint32(control(type_id, "ffffffff")) == 0xFFFFFFFF
    assert parse_uint32(control(type_id, "00000001 02")) == 1


@pytest.mark.parametrize("payload", ["", "00", "000000"])
@pytest.mark.parametrize("type_id", [3, 5, 6])
def test_a_control_message_without_its_number_is_an_error(type_id, payload):
    text = f"control message of type {type_id}: expected at least 4 bytes, found {len(payload) // 2}"
    with pytest.raises(RemoteProtocolError, match=text):
        parse_uint32(control(type_id, payload))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ("0000 00000001", UserControl(UserControlType.STREAM_BEGIN, 1)),
        ("0001 00000001", UserControl(UserControlType.STREAM_EOF, 1)),
        ("0003 00000001 00000bb8", UserControl(UserControlType.SET_BUFFER_LENGTH, 1, 3000)),
        ("0003 00000001", UserControl(UserControlType.SET_BUFFER_LENGTH, 1)),
        ("0003 00000001 0bb8", UserControl(UserControlType.SET_BUFFER_LENGTH, 1)),
        ("0006 ffffffff", UserControl(UserControlType.PING_REQUEST, 0xFFFFFFFF)),
        ("0007 00000000 00", UserControl(UserControlType.PING_RESPONSE, 0)),
        ("001f 00000001", UserControl(UserControlType.BUFFER_EMPTY, 1)),
        ("ffff 00000001", UserControl(0xFFFF, 1)),
        ("0000", UserControl(UserControlType.STREAM_BEGIN, 0)),
        ("0101 00", UserControl(0x101, 0)),
    ],
)
def test_user_control_is_read(payload, expected):
    found = parse_user_control(control(4, payload))
    assert found == expected
    assert found.buffer_ms == (3000 if len(payload.replace(" ", "")) == 20 else 0)


@pytest.mark.parametrize("payload", ["", "00"])
def test_user_control_without_an_event_is_an_error(payload):
    with pytest.raises(
        RemoteProtocolError, match=f"User Control message: expected at least 2 bytes, found {len(payload) // 2}"
    ):
        parse_user_control(control(4, payload))


@pytest.mark.parametrize("payload", ["0003", "0006", "0006 000000", "0007 0000"])
def test_user_control_without_the_value_that_it_needs_is_an_error(payload):
    with pytest.raises(RemoteProtocolError, match=r"User Control event \d: expected at least 6 bytes, found \d"):
        parse_user_control(control(4, payload))


@pytest.mark.parametrize("payload", ["001a", "001b 0101 5a5a5a5a 5a5a5a5a", "001b"])
def test_row_54_swf_verification_is_read_and_means_nothing(payload):
    assert parse_user_control(control(4, payload)).event in (26, 27)


# Aggregates --------------------------------------------------------------------------------------------------------------


def tag(type_id: int, timestamp: int, payload: bytes, back: bytes | None = None) -> bytes:
    """An FLV tag: type, size, timestamp (24 bits and 8 above them), stream id 0, payload, back pointer."""
    return (
        bytes((type_id,))
        + len(payload).to_bytes(3, "big")
        + (timestamp & 0xFFFFFF).to_bytes(3, "big")
        + bytes((timestamp >> 24,))
        + bytes(3)
        + payload
        + ((11 + len(payload)).to_bytes(4, "big") if back is None else back)
    )


def aggregate(payload: bytes, timestamp: int = 0) -> RawMessage:
    return RawMessage(MessageType.AGGREGATE, 1, timestamp, payload)


def test_row_63_an_aggregate_is_split_with_times_counted_from_its_first_tag():
    payload = tag(9, 500, b"video") + tag(8, 510, b"audio") + tag(18, 540, b"data")
    assert list(split_aggregate(aggregate(payload, 100_000))) == [
        RawMessage(9, 1, 100_000, b"video"),
        RawMessage(8, 1, 100_010, b"audio"),
        RawMessage(18, 1, 100_040, b"data"),
    ]


def test_row_63_by_hand():
    # Two tags of one byte, at 0x01020304 and one later: the fourth byte of the time is the highest.
    payload = bytes.fromhex("08 000001 020304 01 000000 61 0000000c" + "09 000001 020305 01 000000 62 0000000c")
    assert list(split_aggregate(aggregate(payload, 7))) == [RawMessage(8, 1, 7, b"a"), RawMessage(9, 1, 8, b"b")]


def test_row_63_the_times_of_an_aggregate_wrap():
    payload = tag(8, 0xFFFFFFF0, b"a") + tag(8, 0x10, b"b")
    assert [part.timestamp for part in split_aggregate(aggregate(payload, 0xFFFFFFFF))] == [0xFFFFFFFF, 0x1F]


def test_row_63_a_tag_before_the_first_is_before_the_aggregate():
    payload = tag(9, 1000, b"v") + tag(8, 990, b"a")
    assert [part.timestamp for part in split_aggregate(aggregate(payload, 50))] == [50, 40]


def test_row_63_the_back_pointer_is_not_looked_at_and_the_last_may_be_missing():
    payload = tag(8, 0, b"a", b"\xff" * 4) + tag(8, 5, b"b", b"")
    assert [part.payload for part in split_aggregate(aggregate(payload))] == [b"a", b"b"]


def test_row_63_the_flags_above_the_type_are_ignored():
    assert next(split_aggregate(aggregate(tag(0x20 | 9, 0, b"a")))).type_id == 9


@pytest.mark.parametrize("rest", [b"", b"\x08", bytes(10)])
def test_row_63_less_than_a_tag_header_ends_it(rest):
    assert list(split_aggregate(aggregate(rest))) == []
    assert len(list(split_aggregate(aggregate(tag(8, 0, b"a") + rest)))) == 1


def test_row_63_an_empty_tag_is_an_empty_message():
    assert list(split_aggregate(aggregate(tag(8, 0, b"") + tag(9, 1, b"v"), 5))) == [
        RawMessage(8, 1, 5, b""),
        RawMessage(9, 1, 6, b"v"),
    ]


def test_row_63_an_empty_last_tag_may_be_without_a_back_pointer():
    assert list(split_aggregate(aggregate(tag(8, 0, b"a") + tag(9, 1, b"", b"")))) == [
        RawMessage(8, 1, 0, b"a"),
        RawMessage(9, 1, 1, b""),
    ]


def test_row_63_a_tag_that_is_cut_short_is_an_error():
    payload = tag(8, 0, b"audio") + tag(9, 5, b"video", b"")[:-1]
    with pytest.raises(RemoteProtocolError, match="aggregate message: expected 5 bytes of the tag at offset 20, found 4"):
        list(split_aggregate(aggregate(payload)))
