"""Recordings of real clients through the whole receiving side, held against their index and an independent decoder."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from rtmpd.protocol import amf0
from rtmpd.protocol.chunk import ChunkReader, RawMessage
from rtmpd.protocol.command import amf0_body, decode_command
from rtmpd.protocol.endpoint import Endpoint
from rtmpd.protocol.handshake import HANDSHAKE_SIZE, ClientHandshake, ServerHandshake, find_digest
from rtmpd.protocol.message import MessageType
from rtmpd.protocol.naming import resolve
from tests.golden.tools import decode as independent

WIRE = Path(independent.__file__).parents[1] / "wire"
INDEX = {entry["name"]: entry for entry in json.loads(WIRE.joinpath("index.json").read_text())}
HANDSHAKE_BYTES = 1 + 2 * HANDSHAKE_SIZE

COMMANDS = (MessageType.COMMAND_AMF0, MessageType.COMMAND_AMF3)
DATA = (MessageType.DATA_AMF0, MessageType.DATA_AMF3)
CONTROL = (3, 4, 5, 6)

every_recording = pytest.mark.parametrize("name", list(INDEX))


@cache
def recording(name: str, way: str = "c2s") -> bytes:
    return WIRE.joinpath(f"{name}.{way}.bin").read_bytes()


def halves(data: bytes, generator: random.Random, count: int) -> list[bytes]:
    cuts = sorted(generator.randrange(len(data) + 1) for _ in range(count))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class Replay(NamedTuple):
    kind: str
    messages: list[RawMessage]
    endpoint: Endpoint


def replay(pieces: list[bytes]) -> Replay:
    """Receive a client's bytes as a session does."""
    handshake = ServerHandshake(random.Random(1).randbytes)
    endpoint = Endpoint()
    messages: list[RawMessage] = []
    for piece in pieces:
        if handshake.done:
            messages += endpoint.receive(piece)
            continue
        handshake.feed(piece)
        if handshake.done:
            messages += endpoint.receive(handshake.remainder)
    for message in messages:
        if message.type_id in CONTROL:
            endpoint.control(message)
    return Replay(handshake.kind, messages, endpoint)


@cache
def replayed(name: str) -> Replay:
    return replay([recording(name)])


def commands_of(name: str) -> list:
    return [decode_command(message) for message in replayed(name).messages if message.type_id in COMMANDS]


# From client to server ---------------------------------------------------------------------------------------------------


@every_recording
def test_a_recorded_client_is_received_as_its_index_says(name):
    entry = INDEX[name]
    kind, messages, endpoint = replayed(name)
    counts = Counter(message.type_id for message in messages)
    media = b"".join(message.payload for message in messages if message.type_id in (8, 9))
    assert kind == entry["handshake"]
    assert [command.name for command in commands_of(name)] == entry["commands"]
    assert counts[MessageType.AUDIO] == entry["audio_messages"]
    assert counts[MessageType.VIDEO] == entry["video_messages"]
    assert counts[MessageType.DATA_AMF0] + counts[MessageType.DATA_AMF3] == entry["data_messages"]
    assert counts[MessageType.AGGREGATE] == entry["aggregate_messages"]
    assert counts[MessageType.ACKNOWLEDGEMENT] == entry["ack_messages"]
    assert hashlib.sha256(media).hexdigest() == entry["digest_of_media"]
    assert (endpoint.reader.buffered_bytes > 0) == (entry["trailing_bytes"] > 0)
    assert endpoint.bytes_received == len(recording(name)) - HANDSHAKE_BYTES


@every_recording
def test_a_recorded_client_is_read_as_the_independent_decoder_reads_it(name):
    expected = [
        (message.type, message.stream_id, message.timestamp, message.payload)
        for message in independent.decode(recording(name)).messages
        # Set Chunk Size and Abort stay inside our chunk layer.
        if message.type not in (1, 2)
    ]
    assert [tuple(message) for message in replayed(name).messages] == expected


@every_recording
def test_a_recorded_client_is_the_same_byte_by_byte(name):
    data = recording(name)
    assert replay([data[i : i + 1] for i in range(len(data))])[:2] == replayed(name)[:2]


@every_recording
def test_a_recorded_client_is_the_same_at_random_splits(name):
    generator = random.Random(name)
    for count in (1, 5, 30, 400):
        assert replay(halves(recording(name), generator, count))[:2] == replayed(name)[:2]


@every_recording
def test_every_value_of_a_recorded_client_can_be_decoded(name):
    for message in replayed(name).messages:
        if message.type_id in COMMANDS:
            assert independent.amf0(amf0_body(message))[0] == decode_command(message).name
        elif message.type_id in DATA:
            values = amf0.decode_all(amf0_body(message))
            assert "onMetaData" in values[:2]
            assert isinstance(values[-1], dict)


@every_recording
def test_the_name_of_a_recorded_client_is_found(name):
    entry = INDEX[name]
    connect = commands_of(name)[0].command_object
    request = next(command for command in commands_of(name) if command.name in ("publish", "play"))
    found = resolve(connect["app"], connect["tcUrl"], request.argument(0), "stream")
    expected, _, query = entry["stream_name"].partition("?")
    # Clients leave the suffix of a recorded file out, in favour of a prefix for some.
    assert found.key == f"{entry['app']}/{expected.removesuffix('.flv')}"
    assert found.parameters == ({"user": "alice", "token": "s3cret"} if query else {})


# From server to client ---------------------------------------------------------------------------------------------------


@every_recording
def test_a_recorded_server_can_be_read(name):
    data = recording(name, "s2c")[HANDSHAKE_BYTES:]
    whole = ChunkReader()
    messages = whole.feed(data)
    reader = ChunkReader()
    assert [message for i in range(len(data)) for message in reader.feed(data[i : i + 1])] == messages
    # Recordings of this side stop at a limit, in the middle of a message maybe.
    assert INDEX[name]["server_truncated"] or whole.buffered_bytes == 0
    endpoint = Endpoint()
    names = []
    for message in messages:
        if message.type_id in CONTROL:
            endpoint.control(message)
        elif message.type_id in COMMANDS:
            names.append(decode_command(message).name)
        elif message.type_id in DATA:
            assert amf0.decode_all(amf0_body(message))
    assert "_result" in names
    if INDEX[name]["role"] == "player":
        assert {message.type_id for message in messages} & {8, 9}


@every_recording
def test_the_handshake_of_a_recorded_server_is_of_the_kind_that_we_gave_it(name):
    s1 = recording(name, "s2c")[1 : 1 + HANDSHAKE_SIZE]
    found = find_digest(s1, b"Genuine Adobe Flash Media Server 001")
    assert (found is not None) == (INDEX[name]["handshake"] == "digest")
    # As a client of that server: it can't prove that it read our C1, so only a plain client gets through.
    client = ClientHandshake(random.Random(1).randbytes)
    assert client.feed(recording(name, "s2c")) == s1
    assert client.done
    assert client.remainder == recording(name, "s2c")[HANDSHAKE_BYTES:]


# What the recordings are good for ----------------------------------------------------------------------------------------


def test_row_4_gstreamer_changes_a_field_of_s1_in_its_c2():
    for name in ("gst_publish", "gst_play"):
        assert not INDEX[name]["c2_echoes_s1"]
        s1 = recording(name, "s2c")[1 : 1 + HANDSHAKE_SIZE]
        c2 = recording(name)[1 + HANDSHAKE_SIZE : HANDSHAKE_BYTES]
        assert c2[:4] + c2[8:] == s1[:4] + s1[8:]
        assert replayed(name).kind == "plain"


def test_row_6_nginx_sends_chunk_and_window_size_before_connect():
    _, messages, endpoint = replayed("nginx_push")
    assert messages[0].type_id == MessageType.WINDOW_ACK_SIZE
    assert messages[1].type_id == MessageType.COMMAND_AMF0
    assert endpoint.reader.chunk_size > 128


def test_row_8_ffmpeg_lists_only_the_four_ccs_of_its_option():
    assert "fourCcList" not in commands_of("ffmpeg_publish_h264_aac")[0].command_object
    assert commands_of("ffmpeg_publish_av1_opus_enhanced")[0].command_object["fourCcList"] == ["av01", "Opus"]


def test_row_25_gstreamer_ends_streams_by_name():
    ends = [command for command in commands_of("gst_publish_closestream") if command.name in ("closeStream", "deleteStream")]
    assert [(command.argument(0), command.message_stream_id) for command in ends] == [("gst_publish_closestream", 0)] * 2


def test_row_41_ffmpeg_echoes_the_servers_chunk_size():
    for name, size in (("ffmpeg_publish_h264_aac", 4096), ("ffmpeg_publish_h264_aac_chunk128", 128)):
        server = ChunkReader()
        server.feed(recording(name, "s2c")[HANDSHAKE_BYTES:])
        assert server.chunk_size == replayed(name).endpoint.reader.chunk_size == size


@pytest.mark.parametrize("name", ["ffmpeg_publish_ts_extended", "gst_publish_ts_extended", "librtmp_publish_ts_extended"])
def test_row_42_recordings_that_repeat_the_extended_timestamp_read_the_same_without(name):
    decoded = independent.decode(recording(name))
    assert decoded.extended_repeated > 0
    assert decoded.extended_not_repeated == 0
    # Cut the repeated fields out: the four bytes behind each type 3 basic header where they are the message's own.
    fields = {
        value.to_bytes(4, "big")
        for message in decoded.messages
        if message.extended
        for value in (message.timestamp, int.from_bytes(extended_field(name, message), "big"))
    }
    data = bytearray(recording(name))
    position = len(data)
    cut = 0
    while position > HANDSHAKE_BYTES:
        position -= 1
        if data[position] >> 6 == 3 and bytes(data[position + 1 : position + 5]) in fields:
            del data[position + 1 : position + 5]
            cut += 1
    assert cut == decoded.extended_repeated
    assert replay([bytes(data)]).messages == replayed(name).messages


def extended_field(name: str, message: independent.Message) -> bytes:
    at = message.offset + 1 + {0: 11, 1: 7, 2: 3}.get(message.fmt, 0)
    return recording(name)[at : at + 4]


def test_row_44_ffmpeg_sends_an_extended_delta():
    times = [message.timestamp for message in replayed("ffmpeg_publish_ts_extended").messages if message.type_id == 8]
    assert times[:2] == [0, 16779977]


def test_row_45_a_negative_delta_of_librtmp_counts_back():
    times = [message.timestamp for message in replayed("librtmp_publish_ts_extended").messages if message.type_id == 9]
    assert times[-1] == 16780800


@pytest.mark.parametrize(
    ("name", "starts"), [("ffmpeg_publish_av1_opus_enhanced", 73), ("ffmpeg_publish_pcm_mulaw", 20), ("gst_publish_speex", 70)]
)
def test_row_46_type_3_starts_messages_of_constant_size(name, starts):
    assert independent.decode(recording(name)).type3_starts >= starts
    times = [message.timestamp for message in replayed(name).messages if message.type_id == 8]
    assert times == sorted(times)
    assert times[-1] > 1000


def test_row_47_the_first_acknowledgement_of_rtmpdump_is_a_type_1_chunk():
    first = next(
        message for message in independent.decode(recording("rtmpdump_play_unpublished")).messages if message.type == 3
    )
    assert (first.csid, first.fmt) == (2, 1)
    acknowledgements = [message for message in replayed("rtmpdump_play_unpublished").messages if message.type_id == 3]
    assert acknowledgements[0].message_stream_id == 0


@pytest.mark.parametrize("name", ["ffmpeg_play_acks", "gst_play_acks", "rtmpdump_play_acks"])
def test_row_52_all_acknowledgements_are_read_and_the_last_is_the_peers_count(name):
    _, messages, endpoint = replayed(name)
    counts = [int.from_bytes(message.payload, "big") for message in messages if message.type_id == 3]
    assert counts == sorted(counts)
    assert endpoint.bytes_acknowledged == counts[-1] > 0


def test_row_53_gstreamer_says_its_own_window():
    assert replayed("gst_play").endpoint.window_in_bytes == 2_500_000
