"""Message types, and the protocol's own control messages. Numbers and names are those of RTMP 1.0 sections 5.4, 6.2 and 7.1."""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.errors import RemoteProtocolError
from rtmpd.protocol.chunk import DEFAULT_CHUNK_SIZE, RawMessage, frame_message

if TYPE_CHECKING:
    from collections.abc import Iterator


class MessageType(enum.IntEnum):
    """Message type ids."""

    SET_CHUNK_SIZE = 1
    ABORT = 2
    ACKNOWLEDGEMENT = 3
    USER_CONTROL = 4
    WINDOW_ACK_SIZE = 5
    SET_PEER_BANDWIDTH = 6
    AUDIO = 8
    VIDEO = 9
    DATA_AMF3 = 15
    SHARED_OBJECT_AMF3 = 16
    COMMAND_AMF3 = 17
    DATA_AMF0 = 18
    SHARED_OBJECT_AMF0 = 19
    COMMAND_AMF0 = 20
    AGGREGATE = 22


COMMAND_TYPES = (MessageType.COMMAND_AMF0, MessageType.COMMAND_AMF3)
DATA_TYPES = (MessageType.DATA_AMF0, MessageType.DATA_AMF3)
CONTROL_TYPES = (
    MessageType.ACKNOWLEDGEMENT,
    MessageType.USER_CONTROL,
    MessageType.WINDOW_ACK_SIZE,
    MessageType.SET_PEER_BANDWIDTH,
)
"""The types for `Endpoint.control`. The chunk reader processes Set Chunk Size and Abort Message itself."""

# The chunk stream ids of sent messages. The specification defines 2; the others are those of Flash Media Server and librtmp.
CSID_CONTROL = 2
CSID_COMMAND = 3
CSID_AUDIO = 4
CSID_STATUS = 5
CSID_VIDEO = 6
CSID_DATA = 8


class UserControlType(enum.IntEnum):
    """Events of the User Control message (section 7.1.7, and 31/32 as Flash Media Server sends them)."""

    STREAM_BEGIN = 0
    STREAM_EOF = 1
    STREAM_DRY = 2
    SET_BUFFER_LENGTH = 3
    STREAM_IS_RECORDED = 4
    PING_REQUEST = 6
    PING_RESPONSE = 7
    BUFFER_EMPTY = 31
    BUFFER_READY = 32


class UserControl(NamedTuple):
    """A User Control message.

    ``event`` is a plain number, because peers send events that no specification lists. ``value`` is the message stream id, or
    the timestamp of a ping; ``buffer_ms`` is the second field of SetBufferLength.
    """

    event: int
    value: int
    buffer_ms: int = 0


_UINT32 = struct.Struct(">I")
_EVENT = struct.Struct(">HI")
_EVENT_2 = struct.Struct(">HII")
_BANDWIDTH = struct.Struct(">IB")


def _control(type_id: int, payload: bytes, chunk_size: int) -> bytes:
    # The timestamp is always 0, because OBS can't read an extended timestamp on type 3 chunks.
    return frame_message(CSID_CONTROL, type_id, 0, 0, payload, chunk_size)


def set_chunk_size(size_bytes: int, chunk_size: int = DEFAULT_CHUNK_SIZE) -> bytes:
    """Encode Set Chunk Size (section 5.4.1).

    Here and below *chunk_size* is the current outbound chunk size, which only matters below 10.
    """
    return _control(MessageType.SET_CHUNK_SIZE, _UINT32.pack(size_bytes), chunk_size)


def abort(csid: int, chunk_size: int = DEFAULT_CHUNK_SIZE) -> bytes:
    """Encode Abort Message (section 5.4.2): the peer drops the incomplete message on *csid*."""
    return _control(MessageType.ABORT, _UINT32.pack(csid), chunk_size)


def acknowledgement(sequence_number: int, chunk_size: int = DEFAULT_CHUNK_SIZE) -> bytes:
    """Encode Acknowledgement (section 5.4.3); *sequence_number* is the number of received bytes and wraps at 2**32."""
    return _control(MessageType.ACKNOWLEDGEMENT, _UINT32.pack(sequence_number & 0xFFFFFFFF), chunk_size)


def window_ack_size(size_bytes: int, chunk_size: int = DEFAULT_CHUNK_SIZE) -> bytes:
    """Encode Window Acknowledgement Size (section 5.4.4)."""
    return _control(MessageType.WINDOW_ACK_SIZE, _UINT32.pack(size_bytes), chunk_size)


def set_peer_bandwidth(size_bytes: int, limit_type: int = 2, chunk_size: int = DEFAULT_CHUNK_SIZE) -> bytes:
    """Encode Set Peer Bandwidth (section 5.4.5); *limit_type* is 0 hard, 1 soft, 2 dynamic."""
    return _control(MessageType.SET_PEER_BANDWIDTH, _BANDWIDTH.pack(size_bytes, limit_type), chunk_size)


def user_control(event: int, value: int, buffer_ms: int | None = None, chunk_size: int = DEFAULT_CHUNK_SIZE) -> bytes:
    """Encode a User Control message (section 6.2); *buffer_ms* only with SET_BUFFER_LENGTH."""
    body = _EVENT.pack(event, value & 0xFFFFFFFF) if buffer_ms is None else _EVENT_2.pack(event, value, buffer_ms)
    return _control(MessageType.USER_CONTROL, body, chunk_size)


def parse_uint32(message: RawMessage) -> int:
    """Parse the number in an Acknowledgement, Window Acknowledgement Size or Set Peer Bandwidth.

    Raises:
        RemoteProtocolError: The payload has fewer than 4 bytes.
    """
    if len(message.payload) < 4:
        raise RemoteProtocolError(
            f"control message of type {message.type_id}: expected at least 4 bytes, found {len(message.payload)}"
        )
    return int(_UINT32.unpack_from(message.payload)[0])


def parse_user_control(message: RawMessage) -> UserControl:
    """Parse a User Control message. Missing fields are 0.

    Raises:
        RemoteProtocolError: The payload has fewer than 2 bytes, or fewer than 6 for a ping or SetBufferLength.
    """
    payload = message.payload
    if len(payload) < 2:
        raise RemoteProtocolError(f"User Control message: expected at least 2 bytes, found {len(payload)}")
    event = payload[0] << 8 | payload[1]
    if len(payload) >= 10:
        _, value, buffer_ms = _EVENT_2.unpack_from(payload)
        return UserControl(event, value, buffer_ms)
    if len(payload) >= 6:
        return UserControl(event, _EVENT.unpack_from(payload)[1])
    if event in (UserControlType.PING_REQUEST, UserControlType.PING_RESPONSE, UserControlType.SET_BUFFER_LENGTH):
        raise RemoteProtocolError(f"User Control event {event}: expected at least 6 bytes, found {len(payload)}")
    return UserControl(event, 0)


def split_aggregate(message: RawMessage) -> Iterator[RawMessage]:
    """Yield the messages inside an Aggregate message (section 7.1.6).

    It contains FLV tags: a header of 11 bytes, the payload, and 4 bytes with the tag's size, which are ignored. The first tag
    has the timestamp of the aggregate message; the timestamps of the others are relative to the first tag's.

    Raises:
        RemoteProtocolError: A tag is longer than the rest of the message.
    """
    payload = message.payload
    position, base = 0, -1
    while position + 11 <= len(payload):
        type_id = payload[position] & 0x1F
        size = int.from_bytes(payload[position + 1 : position + 4], "big")
        timestamp = int.from_bytes(payload[position + 4 : position + 7], "big") | payload[position + 7] << 24
        body = position + 11
        if body + size > len(payload):
            raise RemoteProtocolError(
                f"aggregate message: expected {size} bytes of the tag at offset {position}, found {len(payload) - body}"
            )
        if base < 0:
            base = timestamp
        stamp = (message.timestamp + timestamp - base) & 0xFFFFFFFF
        yield RawMessage(type_id, message.message_stream_id, stamp, payload[body : body + size])
        position = body + size + 4
