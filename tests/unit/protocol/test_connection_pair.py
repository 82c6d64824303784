"""A client and a server back to back: what one encodes the other decodes, at every chunk size and split."""

from __future__ import annotations

import random

import pytest

from rtmpd.protocol import amf0, status
from rtmpd.protocol.command import Command, decode_command
from rtmpd.protocol.endpoint import Endpoint
from rtmpd.protocol.handshake import ClientHandshake, ServerHandshake
from rtmpd.protocol.message import CSID_AUDIO, CSID_DATA, CSID_STATUS, CSID_VIDEO, MessageType, RawMessage, UserControlType


class ConnectionPair:
    """Both ends of one connection, and the wire between them.

    `transfer` carries what one end has queued to the other in pieces, gives control messages to the receiving endpoint as a
    session does, and returns the other messages and the events.
    """

    def __init__(self, scheme: int | None = None, seed: object = 0) -> None:
        self.generator = random.Random(f"{seed}")
        self.client = Endpoint()
        self.server = Endpoint()
        client = ClientHandshake(self.generator.randbytes, scheme)
        server = ServerHandshake(self.generator.randbytes)
        reply = self._through(server, client.hello())
        self._through(server, self._through(client, reply))
        assert client.done
        assert server.done
        assert not client.remainder
        assert not server.remainder

    def pieces(self, data: bytes) -> list[bytes]:
        if len(data) < 200:
            return [data[i : i + 1] for i in range(len(data))]
        cuts = sorted(self.generator.randrange(len(data) + 1) for _ in range(9))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _through(self, handshake: ClientHandshake | ServerHandshake, data: bytes) -> bytes:
        return b"".join(handshake.feed(piece) for piece in self.pieces(data))

    def transfer(self, sender: Endpoint) -> list[object]:
        receiver = self.server if sender is self.client else self.client
        received: list[object] = []
        for piece in self.pieces(sender.take_outgoing()):
            for message in receiver.receive(piece):
                if message.type_id in (3, 4, 5, 6):
                    event = receiver.control(message)
                    if event is not None:
                        received.append(event)
                elif message.type_id == MessageType.COMMAND_AMF0:
                    received.append(decode_command(message))
                else:
                    received.append(message)
        assert receiver.reader.buffered_bytes == 0
        return received

    def call(self, name: str, transaction_id: float, command_object: object = None, *arguments: object, msid: int = 0) -> None:
        """Send a command from the client and assert that the server reads the same."""
        self.client.send_command(name, transaction_id, command_object, *arguments, message_stream_id=msid)
        assert self.transfer(self.client) == [Command(name, transaction_id, command_object, list(arguments), msid)]

    def settle(self) -> None:
        """Carry acknowledgements and other replies of the protocol itself until there are none."""
        for _ in range(4):
            assert self.transfer(self.client) == []
            assert self.transfer(self.server) == []
        assert not self.client.outgoing
        assert not self.server.outgoing


def connect(pair: ConnectionPair, chunk_size: int) -> None:
    properties = {"app": "live", "flashVer": "FMLE/3.0 (compatible; rtmpd)", "tcUrl": "rtmp://host/live", "fpad": False}
    pair.call("connect", 1, properties)
    pair.server.send_window_ack_size(2_500_000)
    pair.server.send_peer_bandwidth(2_500_000)
    pair.server.send_chunk_size(chunk_size)
    success = status.info(status.CONNECT_SUCCESS, "Connection succeeded.", objectEncoding=0.0)
    pair.server.send_command("_result", 1, {"fmsVer": "FMS/3,5,7,7009", "capabilities": 31.0}, success)
    assert pair.transfer(pair.server) == [
        Command("_result", 1.0, {"fmsVer": "FMS/3,5,7,7009", "capabilities": 31.0}, [success])
    ]
    assert pair.client.reader.chunk_size == chunk_size
    assert pair.client.window_in_bytes == 2_500_000
    # Set Peer Bandwidth asks the client for its window.
    pair.settle()
    assert pair.server.window_in_bytes == 2_500_000


def create_stream(pair: ConnectionPair, transaction_id: float) -> int:
    pair.call("createStream", transaction_id)
    pair.server.send_command("_result", transaction_id, None, 1)
    (answer,) = pair.transfer(pair.server)
    assert answer == Command("_result", transaction_id, None, [1.0])
    return int(answer.argument(0))


CHUNK_SIZES = [1, 7, 128, 4096, 60_000, 0x7FFFFFFF]


@pytest.mark.parametrize("scheme", [None, 0, 1])
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_a_publish_from_connect_to_delete_stream(chunk_size, scheme):
    pair = ConnectionPair(scheme, (chunk_size, scheme))
    pair.client.send_chunk_size(chunk_size)
    connect(pair, chunk_size)
    assert pair.server.reader.chunk_size == chunk_size
    pair.call("releaseStream", 2, None, "key")
    pair.call("FCPublish", 3, None, "key")
    stream = create_stream(pair, 4)
    pair.call("publish", 5, None, "key?token=a", "live", msid=stream)

    pair.server.send_user_control(UserControlType.STREAM_BEGIN, stream)
    started = status.info(status.PUBLISH_START, "live/key is now published.")
    pair.server.send_command("onStatus", 0, None, started, message_stream_id=stream, csid=CSID_STATUS)
    assert pair.transfer(pair.server) == [(UserControlType.STREAM_BEGIN, 1, 0), Command("onStatus", 0.0, None, [started], 1)]

    sent = [
        (CSID_DATA, RawMessage(MessageType.DATA_AMF0, stream, 0, amf0.encode("@setDataFrame", "onMetaData", {"width": 1.0})))
    ]
    for timestamp in (0, 0xFFFFFE, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        sent.append((CSID_VIDEO, RawMessage(MessageType.VIDEO, stream, timestamp, pair.generator.randbytes(700))))
        sent.append((CSID_AUDIO, RawMessage(MessageType.AUDIO, stream, timestamp, pair.generator.randbytes(9))))
        sent.append((CSID_AUDIO, RawMessage(MessageType.AUDIO, stream, timestamp, b"")))
    for csid, (type_id, message_stream_id, timestamp, payload) in sent:
        pair.client.send_message(csid, type_id, message_stream_id, timestamp, payload)
    assert pair.transfer(pair.client) == [message for _, message in sent]

    pair.call("FCUnpublish", 6, None, "key")
    pair.call("deleteStream", 7, None, 1.0)
    pair.settle()


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_a_play_with_control_events_both_ways(chunk_size):
    pair = ConnectionPair(0, chunk_size)
    connect(pair, chunk_size)
    stream = create_stream(pair, 2)
    pair.call("play", 3, None, "key", -2000.0, msid=stream)
    pair.client.send_user_control(UserControlType.SET_BUFFER_LENGTH, stream, 3000)
    assert pair.transfer(pair.client) == [(UserControlType.SET_BUFFER_LENGTH, 1, 3000)]

    for code in (status.PLAY_RESET, status.PLAY_START, status.PLAY_STREAM_NOT_FOUND):
        info = status.info(code, "text")
        pair.server.send_command("onStatus", 0, None, info, message_stream_id=stream, csid=CSID_STATUS)
        assert pair.transfer(pair.server) == [Command("onStatus", 0.0, None, [info], 1)]

    # A ping of either side is answered by the other endpoint alone.
    for asking, asked in ((pair.server, pair.client), (pair.client, pair.server)):
        asking.send_user_control(UserControlType.PING_REQUEST, 0x12345678)
        assert pair.transfer(asking) == []
        assert pair.transfer(asked) == [(UserControlType.PING_RESPONSE, 0x12345678, 0)]


@pytest.mark.parametrize("window", [100, 5000, 2_500_000])
def test_each_side_learns_how_much_of_its_bytes_have_arrived(window):
    pair = ConnectionPair()
    connect(pair, 4096)
    pair.server.send_window_ack_size(window)
    pair.transfer(pair.server)
    for i in range(60):
        pair.server.send_message(CSID_VIDEO, MessageType.VIDEO, 1, i * 40, bytes(60_000))
        pair.transfer(pair.server)
        sent = pair.client.bytes_received
        pair.transfer(pair.client)
        assert sent - pair.server.bytes_acknowledged < max(window // 2, 60_000)
    assert sent > 60 * 60_000
    pair.settle()


def test_both_sides_keep_their_own_chunk_sizes():
    pair = ConnectionPair()
    for i in range(20):
        pair.client.send_chunk_size(1 + 13 * i)
        pair.server.send_chunk_size(300 - 14 * i)
        for endpoint in (pair.client, pair.server):
            endpoint.send_message(CSID_VIDEO, MessageType.VIDEO, 1, i, bytes(range(200)))
            assert pair.transfer(endpoint) == [RawMessage(MessageType.VIDEO, 1, i, bytes(range(200)))]
    assert pair.server.reader.chunk_size == 248
    assert pair.client.reader.chunk_size == 34
