"""Peers that violate the protocol: one warning with phase and error, the end of the connection, no effect on others."""

from __future__ import annotations

import random
import re
import struct

import pytest

from rtmpd.protocol import amf0, message
from rtmpd.protocol.command import encode_command
from tests.integration.beside import warning_about
from tests.integration.wire import AUDIO, DATA, HANDSHAKE_BYTES, VIDEO, Item, code_of, key, played, sound

INI = """
[limits]
message_limit_bytes = 100000
chunk_stream_limit = 32
message_stream_limit = 4
command_limit = 200
"""
RSS_GROWTH_MB = 40


@pytest.fixture(scope="module", autouse=True)
def bounded(shared, bystander):
    """All the tests of the module together cost the server a bounded amount of memory."""
    before = shared.rss_mb()
    yield
    assert shared.rss_mb() < before + RSS_GROWTH_MB


@pytest.fixture(autouse=True)
def unnoticed(bystander):
    """Whatever a test does, a publisher and its player go on."""
    yield
    bystander.check()


@pytest.fixture
def wire(shared, raw):
    """A connection that has said connect and may use large chunks."""
    made = raw(shared)
    made.connect()
    return made


@pytest.fixture
def encoder(shared, raw, name):
    return raw(shared).publish(name)


def cut(server, wire, phase, text):
    """Assert that the server ends the connection, and that it says what was wrong in one warning."""
    wire.rest()
    warning = warning_about(server, wire)
    assert re.fullmatch(rf"#\d+ {re.escape(wire.address)} {phase}: .*{text}.*", warning), warning


def refused(server, wire, code, command="publish"):
    answer = wire.status(code)
    assert answer.argument(0)["level"] == "error"
    assert wire.rest() == []
    wire.close()
    assert f"{wire.address} {command} refused: {code}: " in warning_about(server, wire)


# No RTMP at all


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "C0 is 71, expected 3: this is not RTMP"),
        (bytes.fromhex("16030100c8010000c4"), "C0 is 22, expected 3"),
        (b"\0" * 10_000, "C0 is 0, expected 3"),
        (b"\x06" + bytes(HANDSHAKE_BYTES), "C0 is 6: the client asks for RTMPE"),
        (b"\xff" * 5, "C0 is 255, expected 3"),
    ],
    ids=["HTTP", "TLS", "zeros", "C0 is 6", "ones"],
)
def test_other_protocols_are_refused_without_an_answer(shared, raw, data, text):
    wire = raw(shared)
    wire.write(data)
    assert wire.read_bytes() == b""
    cut(shared, wire, "handshake", text)


@pytest.mark.parametrize("seed", range(8))
def test_garbage_after_the_handshake_ends_the_connection(shared, raw, seed):
    wire = raw(shared).handshake()
    rng = random.Random(seed)
    # Chunk headers of type 2 and 3 first can't be right; what follows is anything.
    wire.write(bytes([0x80 | rng.randrange(128)]) + rng.randbytes(5000))
    cut(shared, wire, "connect", "")


# Before connect


def test_publish_without_connect(shared, raw, name):
    wire = raw(shared).handshake()
    wire.command("publish", name, "live", msid=1)
    cut(shared, wire, "connect", "command 'publish' before connect")


def test_a_command_name_can_not_break_the_log(shared, raw, wire):
    first = raw(shared).handshake()
    first.command("evil\n2020-01-01 ERROR forged " + "x" * 1000)
    cut(shared, first, "connect", r"command 'evil\\n2020.*' before connect")
    wire.command("worse\n2020-01-01 ERROR forged")
    wire.sync()
    assert not [line for line in shared.log() if line.startswith("2020") or len(line) > 500]


@pytest.mark.parametrize("type_id", [AUDIO, VIDEO, DATA, 15])
def test_media_before_connect(shared, raw, type_id):
    wire = raw(shared).handshake()
    wire.write(wire.frame(type_id, 0, key(1)))
    cut(shared, wire, "connect", "media before connect")


def test_connect_twice(shared, wire):
    wire.command("connect", obj={"app": "live"})
    cut(shared, wire, "command", "connect for the second time")


def test_media_between_connect_and_publish_is_ignored(shared, wire):
    for type_id in (AUDIO, VIDEO, DATA):
        wire.write(wire.frame(type_id, 0, key(1)))
    wire.sync()


# Chunks


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (message.set_chunk_size(0), "Set Chunk Size: expected 1 to 2147483647 bytes, found 0"),
        (message.set_chunk_size(0x80000000), "Set Chunk Size: expected 1 to 2147483647 bytes, found 2147483648"),
        (b"\xc3", "csid 3: expected a type 0 header as the first one, found type 3"),
        (b"\x03\0\0\0\0\0\x04\x00\0\0\0\0" + bytes(4), "found message type 0, which does not exist"),
        (b"\x02\0\0\0\0\0\x02\x01\0\0\0\0\0\0", "control message of type 1: expected 4 bytes, found 2"),
        (b"\x02\0\0\0\0\0\x02\x05\0\0\0\0\0\0", "control message of type 5: expected at least 4 bytes, found 2"),
        (b"\x02\0\0\0\0\0\x03\x04\0\0\0\0\0\x06\0", "User Control event 6: expected at least 6 bytes, found 3"),
        (b"\x02\0\0\0\0\0\0\x04\0\0\0\0", "User Control message: expected at least 2 bytes, found 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_chunks_and_control_messages(shared, raw, data, text):
    wire = raw(shared).handshake()
    wire.write(data)
    cut(shared, wire, "connect", re.escape(text))


def test_a_message_longer_than_the_limit_is_refused_by_its_header(shared, encoder):
    encoder.write(b"\x06\0\0\0" + (100_001).to_bytes(3, "big") + b"\x09\x01\0\0\0")
    cut(shared, encoder, "publish", "message_limit_bytes is 100000, the peer asked for 100001")


def test_a_message_at_the_limit_is_accepted(encoder):
    encoder.send(VIDEO, 0, key(1, 100_000 - 9))
    encoder.sync()


def test_ten_thousand_chunk_streams(shared, wire):
    one = b"".join(message.frame_message(csid, 9, 1, 0, b"x" * 9, 128) for csid in range(2, 10_002))
    with pytest.raises(ConnectionError):
        write_until_cut(wire, one)
    cut(shared, wire, "command", "chunk_stream_limit is 32, the peer asked for 33")


def test_incomplete_messages_on_every_chunk_stream(shared, wire):
    piece = b"".join(
        bytes([csid]) + bytes(3) + (100_000).to_bytes(3, "big") + b"\x09\x01\0\0\0" + bytes(60_000) for csid in range(4, 32)
    )
    with pytest.raises(ConnectionError):
        write_until_cut(wire, piece)
    cut(shared, wire, "command", "request_limit_bytes is 65536")


def write_until_cut(wire, data):
    """Write, and then more, until the server has had enough."""
    for _ in range(10_000):
        wire.write(data)


# AMF


def nested(depth):
    return b"\x03\0\x01a" * depth + b"\x05" + b"\0\0\x09" * depth


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (amf0.encode("x", 2) + nested(1000), "depth"),
        (amf0.encode("x", 2) + b"\x0a\0\0\0\x01" * 5000 + b"\x05", "depth"),
        (amf0.encode("x", 2) + b"\x11" + b"\x09\x03\x01" * 2000, ""),
        (amf0.encode("x", 2) + b"\x05" * 60_000, "values"),
        (amf0.encode("x", "not a number"), "expected a number as the transaction id, found str"),
        (amf0.encode(5, 2), "command message: expected the command's name first, found float"),
        (b"", "command message: expected the command's name first, found nothing"),
        (b"\xfe\xfe\xfe", ""),
    ],
    ids=[
        "objects nested 1000 deep",
        "arrays nested 5000 deep",
        "AMF3 arrays nested 2000 deep",
        "60,000 nulls",
        "transaction id is a string",
        "name is a number",
        "empty",
        "unknown marker",
    ],
)
def test_amf_bombs_and_rubbish(shared, wire, body, text):
    wire.write(wire.frame(20, 0, body, 3, 0))
    cut(shared, wire, "command", text)


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"\x0a\xff\xff\xff\xff\x05", id="strict array of 4294967295"),
        pytest.param(b"\x08\xff\xff\xff\xff\0\x01a", id="ECMA array of 4294967295"),
        pytest.param(b"\x0c\xff\xff\xff\xffabc", id="long string of 4 GB"),
        pytest.param(b"\x11\x09\x7f\xff\xff\xff\x01", id="AMF3 array of 268 million"),
        pytest.param(b"\x04", id="movie clip"),
        pytest.param(b"\x02\xff\xffabc", id="truncated string"),
        pytest.param(b"\0", id="trailing NUL"),
    ],
)
def test_row_69_rubbish_behind_a_command_does_no_harm(wire, rest):
    wire.write(wire.frame(20, 0, amf0.encode("x", 2) + rest, 3, 0))
    wire.sync()


def test_row_70_a_message_inside_another_one_replaces_it_and_is_counted(server, raw, player, name):
    running = server()
    encoder = raw(running).publish(name)
    encoder.send(VIDEO, 0, key(1))
    watcher = player(running, name)
    played(watcher, key(1))
    encoder.write(b"\x06\0\0\x28\0\xff\0\x09\x01\0\0\0" + bytes(encoder.chunk_size))
    encoder.send(VIDEO, 80, key(3))
    assert played(watcher, key(3)) == [Item(VIDEO, 80, key(3))]
    encoder.close()
    running.wait_for_line("the client began a message inside another one, which was dropped")


# Commands


def test_a_million_commands_are_cut_at_the_limit(shared, wire):
    flood = wire.frame(20, 0, encode_command("_checkbw", 9), 3, 0) * 10_000
    with pytest.raises(ConnectionError):
        write_until_cut(wire, flood)
    cut(shared, wire, "command", r"command_limit \(commands in 10 s\) is 200, the peer asked for 201")


def test_too_many_message_streams(shared, wire):
    assert [wire.create_stream() for _ in range(4)] == [1, 2, 3, 4]
    wire.command("createStream")
    cut(shared, wire, "command", "message_stream_limit is 4, the peer asked for 5")


@pytest.mark.parametrize(
    "stream_name", ["a\nb", "a\0b", "a\x7fb", "a\x85b", "x" * 10_000], ids=["newline", "nul", "del", "nel", "too long"]
)
@pytest.mark.parametrize(
    ("command", "code"), [("publish", "NetStream.Publish.BadName"), ("play", "NetStream.Play.StreamNotFound")]
)
def test_invalid_names_are_refused(shared, wire, command, code, stream_name):
    wire.command(command, stream_name, msid=wire.create_stream())
    refused(shared, wire, code, command)


def test_an_application_with_a_newline_is_refused(shared, raw):
    wire = raw(shared)
    answer = wire.connect("li\nve")
    assert (answer.name, code_of(answer)) == ("_error", "NetConnection.Connect.InvalidApp")
    assert wire.rest() == []
    wire.close()
    assert "connect refused: NetConnection.Connect.InvalidApp: " in warning_about(shared, wire)


def test_a_name_that_is_not_utf_8_can_be_published_and_played(shared, raw, player, name):
    encoded = name.encode() + b"\xe9\xff"
    wires = []
    for command in ("play", "publish"):
        wire = raw(shared)
        wire.connect()
        wire.create_stream()
        body = amf0.encode(command, 3, None) + b"\x02" + struct.pack(">H", len(encoded)) + encoded
        wire.write(wire.frame(20, 0, body, 3))
        wires.append(wire)
    wires[1].status("NetStream.Publish.Start")
    wires[1].send(VIDEO, 0, key(1))
    assert played(wires[0], key(1)) == [Item(VIDEO, 0, key(1))]
    shared.wait_for_line(rf"{wires[1].address} publishes live/{name}\\udce9\\udcff$")


@pytest.mark.parametrize(
    ("aggregate", "text"),
    [
        (b"\x09\xff\xff\xff\0\0\0\0\0\0\0abc", "aggregate message: expected 16777215 bytes of the tag at offset 0, found 3"),
        (
            b"\x08\0\0\x03\0\0\0\0\0\0\0\xaf\x01x\0\0\0\x0e" + b"\x09\0\0\x09\0\0\0\0\0\0\0x",
            "aggregate message: expected 9 bytes of the tag at offset 18, found 1",
        ),
    ],
    ids=["first", "second"],
)
def test_an_aggregate_with_a_bad_tag(shared, encoder, aggregate, text):
    encoder.write(encoder.frame(22, 0, aggregate))
    cut(shared, encoder, "publish", text)


def test_aggregates_of_nothing_of_aggregates_and_of_commands_are_ignored(encoder):
    inner = b"\x16\0\0\x0b\0\0\0\0\0\0\0" + b"\x09\0\0\0\0\0\0\0\0\0\0" + b"\0\0\0\x16"
    for aggregate in (b"", b"short", inner, b"\x14\0\0\x03\0\0\0\0\0\0\0abc\0\0\0\x0e"):
        encoder.write(encoder.frame(22, 0, aggregate))
    encoder.sync()


def test_unknown_message_types_and_shared_objects_are_ignored(encoder):
    for type_id in (7, 10, 11, 16, 19, 23, 99, 255):
        encoder.write(encoder.frame(type_id, 0, b"whatever"))
    encoder.send(AUDIO, 0, sound(1))
    encoder.sync()


def test_data_messages_without_valid_amf_do_no_harm(shared, encoder, player, name):
    watcher = player(shared, name)
    encoder.send(VIDEO, 0, key(1))
    played(watcher, key(1))
    for payload in (b"", b"\xff" * 50, amf0.encode("@setDataFrame"), amf0.encode("@setDataFrame") + b"\xff" * 9):
        encoder.send(DATA, 0, payload)
    encoder.send(VIDEO, 40, key(2))
    assert played(watcher, key(2))[-1] == Item(VIDEO, 40, key(2))
    assert played(player(shared, name), key(2))[-1] == Item(VIDEO, 40, key(2))
