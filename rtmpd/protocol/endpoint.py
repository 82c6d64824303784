"""One end of a connection after the handshake, client or server: chunks, acknowledgements and control messages. No I/O.

``receive`` takes bytes and returns messages. Replies of the protocol itself (acknowledgements, ping responses) collect in
``outgoing`` until the caller sends them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rtmpd.protocol import message as wire
from rtmpd.protocol.chunk import DEFAULT_CHUNK_SIZE, ChunkReader, frame_message
from rtmpd.protocol.command import encode_command
from rtmpd.protocol.message import MessageType, UserControl, UserControlType
from rtmpd.util.speed import accelerated

if TYPE_CHECKING:
    from rtmpd.protocol.chunk import RawMessage

DEFAULT_WINDOW_BYTES = 2_500_000
"""The acknowledgement window of GStreamer, librtmp and Flash Media Server."""


@accelerated
class EndpointState:
    """What every read changes of an endpoint; compiled, if the extension is in use.

    Attributes:
        reader: The chunk reader.
        outgoing: Encoded bytes for the peer. The caller sends and clears them.
        bytes_received: Bytes received since the handshake; unlike the counter on the wire it never wraps.
        messages_received: Messages received since then.
        ack_at: The number of received bytes at which the next acknowledgement is due.
    """

    __slots__ = ("ack_at", "bytes_received", "messages_received", "outgoing", "reader")

    def __init__(self) -> None:
        self.reader: ChunkReader
        self.outgoing = bytearray()
        self.bytes_received = 0
        self.messages_received = 0
        self.ack_at = 0


class Endpoint(EndpointState):
    """The chunk reader, the acknowledgement counters and the control messages of one connection.

    Args:
        message_limit_bytes, chunk_stream_limit: As in `ChunkReader`.

    Attributes:
        acknowledgements: The number of Acknowledgements received: each shows that the peer reads.
        bytes_acknowledged: The bytes that the peer has acknowledged, without wrapping. A hint: many peers count otherwise.
        chunk_size_out: The outbound chunk size, bytes.
    """

    __slots__ = (
        "_ack_step",
        "acknowledgements",
        "bytes_acknowledged",
        "chunk_size_out",
        "peer_bandwidth_bytes",
        "window_in_bytes",
        "window_out_bytes",
    )

    def __init__(self, message_limit_bytes: int = 8 << 20, chunk_stream_limit: int = 256) -> None:
        super().__init__()
        self.reader = ChunkReader(message_limit_bytes, chunk_stream_limit)
        self.chunk_size_out = DEFAULT_CHUNK_SIZE
        self.acknowledgements = 0
        self.bytes_acknowledged = 0
        self.window_in_bytes = 0
        self.window_out_bytes = 0
        self.peer_bandwidth_bytes = 0
        self._set_window(DEFAULT_WINDOW_BYTES)

    def _set_window(self, size_bytes: int) -> None:
        # Acknowledge at half the window, as FFmpeg does, so that a peer that pauses at the full window never has to.
        self.window_in_bytes = size_bytes
        self._ack_step = max(1, size_bytes // 2)
        self.ack_at = self.bytes_received + self._ack_step

    def receive(self, data: bytes, chunk_limit: int = sys.maxsize) -> list[RawMessage]:
        """Process bytes from the peer; return the messages that they complete.

        The caller passes the control messages among them to `control`, in order. Arguments as for `ChunkReader.feed`.

        Raises:
            RemoteProtocolError, LimitExceeded: As `ChunkReader.feed`.
        """
        self.bytes_received += len(data)
        if self.bytes_received >= self.ack_at:
            self.acknowledge()
        messages = self.reader.feed(data, chunk_limit)
        self.messages_received += len(messages)
        return messages

    def acknowledge(self) -> None:
        """Queue an acknowledgement."""
        self.outgoing += wire.acknowledgement(self.bytes_received, self.chunk_size_out)
        self.ack_at = self.bytes_received + self._ack_step

    def control(self, message: RawMessage) -> UserControl | None:
        """Process a control message of type 3, 4, 5 or 6.

        Returns:
            The event of a User Control message, except a ping request, which is answered here; None for other messages.

        Raises:
            RemoteProtocolError: The message is too short.
        """
        type_id = message.type_id
        if type_id == MessageType.USER_CONTROL:
            event = wire.parse_user_control(message)
            if event.event == UserControlType.PING_REQUEST:
                self.outgoing += wire.user_control(UserControlType.PING_RESPONSE, event.value, chunk_size=self.chunk_size_out)
                return None
            return event
        value = wire.parse_uint32(message)
        if type_id == MessageType.ACKNOWLEDGEMENT:
            self.acknowledgements += 1
            # The counter has 32 bits on the wire. A step of half of that or more is a step back, and is ignored.
            step = (value - self.bytes_acknowledged) & 0xFFFFFFFF
            if step < 0x80000000:
                self.bytes_acknowledged += step
        elif type_id == MessageType.WINDOW_ACK_SIZE:
            if value:
                self._set_window(value)
        elif type_id == MessageType.SET_PEER_BANDWIDTH:
            # Section 5.4.5: answer with Window Acknowledgement Size if it differs from the last one sent. A dynamic limit
            # (type 2) may be ignored, but other servers answer it, too; so does this one, unless it has sent a window before.
            self.peer_bandwidth_bytes = value
            dynamic = message.payload[4:5] == b"\2"
            if value and value != self.window_out_bytes and not (dynamic and self.window_out_bytes):
                self.send_window_ack_size(value)
        return None

    def send_window_ack_size(self, size_bytes: int) -> None:
        """Queue Window Acknowledgement Size: the peer then acknowledges whenever it has received that many bytes."""
        self.window_out_bytes = size_bytes
        self.outgoing += wire.window_ack_size(size_bytes, self.chunk_size_out)

    def send_peer_bandwidth(self, size_bytes: int, limit_type: int = 2) -> None:
        """Queue Set Peer Bandwidth."""
        self.outgoing += wire.set_peer_bandwidth(size_bytes, limit_type, self.chunk_size_out)

    def send_chunk_size(self, size_bytes: int) -> None:
        """Queue Set Chunk Size. Messages queued after it use the new size."""
        self.outgoing += wire.set_chunk_size(size_bytes, self.chunk_size_out)
        self.chunk_size_out = size_bytes

    def send_user_control(self, event: int, value: int, buffer_ms: int | None = None) -> None:
        """Queue a User Control message."""
        self.outgoing += wire.user_control(event, value, buffer_ms, self.chunk_size_out)

    def send_command(
        self,
        name: str,
        transaction_id: float,
        command_object: Any = None,
        *arguments: Any,
        message_stream_id: int = 0,
        csid: int = wire.CSID_COMMAND,
    ) -> None:
        """Queue a command at timestamp 0, because OBS can't read an extended timestamp on type 3 chunks."""
        payload = encode_command(name, transaction_id, command_object, *arguments)
        self.send_message(csid, MessageType.COMMAND_AMF0, message_stream_id, 0, payload)

    def send_message(self, csid: int, type_id: int, message_stream_id: int, timestamp_ms: int, payload: bytes) -> None:
        """Queue a message."""
        self.outgoing += frame_message(csid, type_id, message_stream_id, timestamp_ms, payload, self.chunk_size_out)

    def take_outgoing(self) -> bytes:
        """Return the queued bytes and clear the queue."""
        data = bytes(self.outgoing)
        self.outgoing.clear()
        return data
