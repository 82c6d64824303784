"""One end of a connection: acknowledgements, pings, windows, and the outbound chunk size."""

from __future__ import annotations

import pytest

from rtmpd.errors import LimitExceeded, RemoteProtocolError
from rtmpd.protocol import message as wire
from rtmpd.protocol.chunk import ChunkReader, RawMessage, frame_message, framed_size
from rtmpd.protocol.command import decode_command
from rtmpd.protocol.endpoint import DEFAULT_WINDOW_BYTES, Endpoint
from rtmpd.protocol.message import CSID_STATUS, MessageType, UserControl, UserControlType


def read(data: bytes, chunk_size: int = 128) -> list[RawMessage]:
    reader = ChunkReader()
    reader.chunk_size = chunk_size
    messages = reader.feed(data)
    assert reader.buffered_bytes == 0
    return messages


def numbers(data: bytes, type_id: int) -> list[int]:
    """Return the numbers of all control messages of one type in *data*; there must be no other message."""
    messages = read(data)
    assert {message.type_id for message in messages} <= {type_id}
    return [wire.parse_uint32(message) for message in messages]


def control(endpoint: Endpoint, type_id: int, payload: str) -> UserControl | None:
    return endpoint.control(RawMessage(type_id, 0, 0, bytes.fromhex(payload)))


def audio(size: int) -> bytes:
    """One audio message of *size* bytes on the wire, in chunks of 128."""
    length = next(length for length in range(size - 12, -1, -1) if framed_size(length, 0, 128) == size)
    return frame_message(4, MessageType.AUDIO, 1, 0, bytes(length), 128)


# Acknowledgements --------------------------------------------------------------------------------------------------------


def test_row_51_an_acknowledgement_is_due_at_half_the_peers_window():
    endpoint = Endpoint()
    assert endpoint.control(read(wire.window_ack_size(2000))[0]) is None
    assert endpoint.window_in_bytes == 2000
    endpoint.receive(audio(999))
    assert endpoint.take_outgoing() == b""
    endpoint.receive(audio(1000)[:1])
    assert endpoint.take_outgoing() == wire.acknowledgement(1000)
    endpoint.receive(audio(1000)[1:])
    assert endpoint.take_outgoing() == b""
    endpoint.receive(audio(500))
    assert numbers(endpoint.take_outgoing(), 3) == [2499]


def test_row_51_one_receive_is_one_acknowledgement_of_all():
    endpoint = Endpoint()
    control(endpoint, 5, "00000064")
    endpoint.receive(audio(5000))
    assert numbers(endpoint.take_outgoing(), 3) == [5000]
    # The next is due half a window later, and not for each half that has passed.
    endpoint.receive(audio(49))
    assert endpoint.take_outgoing() == b""
    endpoint.receive(audio(20))
    assert numbers(endpoint.take_outgoing(), 3) == [5069]


def test_row_51_the_count_wraps_on_the_wire():
    endpoint = Endpoint()
    endpoint.bytes_received = 0xFFFFFFFF - 50
    control(endpoint, 5, "00000064")
    endpoint.receive(audio(50))
    endpoint.receive(audio(50))
    endpoint.receive(audio(50))
    assert numbers(endpoint.take_outgoing(), 3) == [0xFFFFFFFF, 49, 99]
    assert endpoint.bytes_received == 0xFFFFFFFF + 100


@pytest.mark.parametrize("window", ["00000001", "00000002", "00000003"])
def test_row_51_a_tiny_window_is_acknowledged_with_every_receive(window):
    endpoint = Endpoint()
    control(endpoint, 5, window)
    for i in range(1, 4):
        endpoint.receive(audio(20))
        assert numbers(endpoint.take_outgoing(), 3) == [20 * i]


def test_row_51_a_window_of_zero_changes_nothing():
    endpoint = Endpoint()
    control(endpoint, 5, "00000000")
    assert endpoint.window_in_bytes == DEFAULT_WINDOW_BYTES


def test_row_53_without_a_window_the_default_is_acknowledged():
    endpoint = Endpoint()
    assert DEFAULT_WINDOW_BYTES == endpoint.window_in_bytes == 2_500_000
    message = audio(50_000)
    for _ in range(24):
        endpoint.receive(message)
    assert endpoint.take_outgoing() == b""
    endpoint.receive(message)
    assert numbers(endpoint.take_outgoing(), 3) == [1_250_000]


def test_acknowledgements_are_cut_at_the_outbound_chunk_size():
    endpoint = Endpoint()
    endpoint.chunk_size_out = 3
    control(endpoint, 5, "00000001")
    endpoint.receive(b"\x04")
    assert [wire.parse_uint32(message) for message in read(endpoint.take_outgoing(), 3)] == [1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0], 0),
        ([1000], 1000),
        ([1000, 5000], 5000),
        ([5000, 1000], 5000),
        ([0x7FFFFFFF], 0x7FFFFFFF),
        ([0x80000000], 0),
        ([0x7FFFFFFF, 0xFFFFFFFE, 0x10], 0x1_0000_0010),
        ([0x7FFFFFFF, 0xFFFFFFFE, 0x10, 0xFFFFFFFF, 0x20], 0x1_0000_0020),
        ([0x60000000, 0xC0000000, 0x20000000] * 2, 0x2_2000_0000),
    ],
)
def test_the_peers_acknowledgements_are_unwrapped_and_never_go_back(values, expected):
    endpoint = Endpoint()
    for value in values:
        assert control(endpoint, 3, value.to_bytes(4, "big").hex()) is None
    assert endpoint.bytes_acknowledged == expected
    # Each is a sign of life, also one whose number makes no sense.
    assert endpoint.acknowledgements == len(values)
    assert endpoint.take_outgoing() == b""


def test_row_52_acknowledgements_without_end_cost_nothing():
    endpoint = Endpoint()
    for value in range(0, 100_000, 10):
        for message in endpoint.receive(wire.acknowledgement(value)):
            endpoint.control(message)
    assert endpoint.bytes_acknowledged == 99_990
    assert endpoint.take_outgoing() == b""
    assert endpoint.reader.buffered_bytes == 0


# Windows and bandwidth ---------------------------------------------------------------------------------------------------


def test_row_53_a_set_peer_bandwidth_is_answered_with_the_window():
    endpoint = Endpoint()
    assert control(endpoint, 6, "002625a0 02") is None
    assert endpoint.peer_bandwidth_bytes == 2_500_000
    assert numbers(endpoint.take_outgoing(), 5) == [2_500_000]
    assert endpoint.window_out_bytes == 2_500_000


def test_row_53_a_set_peer_bandwidth_that_changes_nothing_is_not_answered():
    endpoint = Endpoint()
    endpoint.send_window_ack_size(2_500_000)
    endpoint.take_outgoing()
    control(endpoint, 6, "002625a0 02")
    assert endpoint.take_outgoing() == b""
    control(endpoint, 6, "002625a1 00")
    control(endpoint, 6, "002625a1 01")
    assert numbers(endpoint.take_outgoing(), 5) == [2_500_001]
    control(endpoint, 6, "00000000 02")
    assert endpoint.take_outgoing() == b""


def test_row_53_our_own_bandwidth_is_dynamic():
    endpoint = Endpoint()
    endpoint.send_peer_bandwidth(2_500_000)
    assert read(endpoint.take_outgoing())[0].payload == bytes.fromhex("002625a0 02")


# User control ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["00000000", "12345678", "ffffffff"])
def test_row_55_a_ping_is_answered_with_the_same_four_bytes(value):
    endpoint = Endpoint()
    assert control(endpoint, 4, "0006" + value) is None
    assert read(endpoint.take_outgoing()) == [RawMessage(4, 0, 0, bytes.fromhex("0007" + value))]


def test_row_55_the_answer_to_our_own_ping_is_an_event():
    assert control(Endpoint(), 4, "0007 00000005") == UserControl(UserControlType.PING_RESPONSE, 5)


@pytest.mark.parametrize("payload", ["0003 00000001 00000bb8", "0000 00000001", "001b", "001f 00000001", "0063 00000001"])
def test_other_events_are_the_callers_and_get_no_answer(payload):
    endpoint = Endpoint()
    event = control(endpoint, 4, payload)
    assert event is not None
    assert event.event == int(payload[:4], 16)
    assert endpoint.take_outgoing() == b""


@pytest.mark.parametrize(("type_id", "payload"), [(3, "000000"), (4, "00"), (4, "0006 0000"), (5, ""), (6, "0026")])
def test_a_control_message_too_short_is_an_error(type_id, payload):
    with pytest.raises(RemoteProtocolError, match="expected at least"):
        control(Endpoint(), type_id, payload)


def test_control_of_another_type_changes_nothing():
    endpoint = Endpoint()
    assert control(endpoint, 1, "00000001") is None
    assert endpoint.take_outgoing() == b""
    assert endpoint.window_in_bytes == DEFAULT_WINDOW_BYTES


# Receiving ---------------------------------------------------------------------------------------------------------------


def test_row_6_set_chunk_size_may_come_before_connect():
    endpoint = Endpoint()
    connect = frame_message(3, MessageType.COMMAND_AMF0, 0, 0, bytes(1000), 4096)
    messages = endpoint.receive(wire.set_chunk_size(4096) + connect)
    assert [len(message.payload) for message in messages] == [1000]


def test_row_41_the_peers_chunk_size_is_its_own():
    endpoint = Endpoint()
    endpoint.send_chunk_size(60_000)
    endpoint.take_outgoing()
    # FFmpeg answers with the same size for its own direction, and could with any.
    assert endpoint.receive(wire.set_chunk_size(60_000)) == []
    assert endpoint.receive(wire.set_chunk_size(1)) == []
    assert endpoint.reader.chunk_size == 1
    assert endpoint.chunk_size_out == 60_000


def test_bytes_received_counts_what_came_and_not_what_it_made():
    endpoint = Endpoint()
    endpoint.receive(b"\x04")
    endpoint.receive(b"")
    endpoint.receive(audio(100)[1:])
    assert endpoint.bytes_received == 100


def test_the_limits_are_those_of_the_chunk_reader():
    endpoint = Endpoint(message_limit_bytes=100, chunk_stream_limit=1)
    assert endpoint.receive(frame_message(4, 8, 1, 0, bytes(100), 128))
    with pytest.raises(LimitExceeded, match="chunk_stream_limit"):
        endpoint.receive(b"\x05")
    with pytest.raises(LimitExceeded, match="message_limit_bytes"):
        Endpoint(message_limit_bytes=100).receive(frame_message(4, 8, 1, 0, bytes(101), 128))


# Sending -----------------------------------------------------------------------------------------------------------------


def test_a_new_chunk_size_applies_behind_its_own_message():
    endpoint = Endpoint()
    endpoint.send_message(6, MessageType.VIDEO, 1, 0, bytes(200))
    endpoint.send_chunk_size(4096)
    endpoint.send_message(6, MessageType.VIDEO, 1, 0, bytes(200))
    endpoint.send_chunk_size(2)
    endpoint.send_chunk_size(128)
    endpoint.send_message(6, MessageType.VIDEO, 1, 0, bytes(200))
    data = endpoint.take_outgoing()
    assert len(data) == (12 + 200 + 1) + 16 + (12 + 200) + 16 + (16 + 1) + (12 + 200 + 1)
    assert [message.payload for message in read(data)] == [bytes(200)] * 3


def test_outgoing_is_taken_once_and_in_order():
    endpoint = Endpoint()
    endpoint.send_user_control(UserControlType.STREAM_BEGIN, 1)
    endpoint.send_command("onStatus", 0, None, {"code": "x"}, message_stream_id=1, csid=CSID_STATUS)
    endpoint.send_user_control(UserControlType.SET_BUFFER_LENGTH, 1, 3000)
    data = endpoint.take_outgoing()
    assert endpoint.take_outgoing() == b""
    assert [message.type_id for message in read(data)] == [4, 20, 4]
    assert type(data) is bytes


def test_row_43_commands_have_timestamp_0_on_csid_3_or_5():
    endpoint = Endpoint()
    endpoint.send_command("_result", 1, {"fmsVer": "x" * 200}, {"code": "y"})
    data = endpoint.take_outgoing()
    assert data[:4] == b"\x03\0\0\0"
    found = decode_command(read(data)[0])
    assert (found.name, found.transaction_id, found.arguments) == ("_result", 1.0, [{"code": "y"}])
    endpoint.send_command("onStatus", 0, message_stream_id=7, csid=CSID_STATUS)
    data = endpoint.take_outgoing()
    assert data[:4] == b"\x05\0\0\0"
    assert read(data)[0].message_stream_id == 7
