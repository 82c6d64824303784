"""What clients in the field do up to connect; the rows are numbered as in the project's notes on interoperability."""

from __future__ import annotations

import os
import re

import pytest

from rtmpd.protocol import amf0, message
from rtmpd.protocol.amf_values import UNDEFINED, AmfDate, EcmaArray, XmlDocument
from rtmpd.protocol.command import encode_command
from rtmpd.protocol.handshake import ClientHandshake
from tests.integration.beside import warning_about
from tests.integration.wire import AUDIO, HANDSHAKE_BYTES, VIDEO, Item, begin, code_of, key, played

INI = "[live]\ndefault_stream_name = lobby\n"
CONNECT = {"app": "live", "tcUrl": "rtmp://localhost/live"}
OBS_CONNECT = {
    "app": "live",
    "type": "nonprivate",
    "flashVer": "FMLE/3.0 (compatible; FMSc/1.0)",
    "swfUrl": "rtmp://localhost/live",
    "tcUrl": "rtmp://localhost/live",
}
HEVC_HEADER = b"\x90hvc1" + bytes.fromhex("01016000000090000000000078f000fcfdf8f800000f00")
HEVC_KEY = b"\x91hvc1\0\0\0" + bytes(range(60))


def connect_bytes(properties=CONNECT, tid=1):
    return message.frame_message(3, 20, 0, 0, encode_command("connect", tid, properties), 128)


def connected(wire):
    return code_of(wire.answer(1)) == "NetConnection.Connect.Success"


def test_row_01_obs_plain_handshake_gets_its_c1_back(shared, raw):
    wire = raw(shared)
    c1 = bytes.fromhex("00012345 00000000") + os.urandom(HANDSHAKE_BYTES - 8)
    wire.write(b"\x03" + c1)
    reply = wire.read_exactly(1 + 2 * HANDSHAKE_BYTES)
    assert reply[0] == 3
    assert reply[1 + HANDSHAKE_BYTES :] == c1
    wire.write(reply[1 : 1 + HANDSHAKE_BYTES] + connect_bytes())
    assert connected(wire)


@pytest.mark.parametrize("scheme", [0, 1])
def test_row_02_digest_handshake_is_proven_in_the_clients_scheme(shared, raw, scheme):
    wire = raw(shared)
    handshake = ClientHandshake(os.urandom, scheme)
    wire.write(handshake.hello())
    wire.write(handshake.feed(wire.read_exactly(1 + 2 * HANDSHAKE_BYTES)) + connect_bytes())
    assert handshake.kind == "digest"
    assert handshake.done
    assert connected(wire)


def test_row_02_version_without_a_digest_falls_back_to_plain(shared, raw):
    wire = raw(shared)
    c1 = bytes.fromhex("00000000 09007c02") + os.urandom(HANDSHAKE_BYTES - 8)
    wire.write(b"\x03" + c1)
    reply = wire.read_exactly(1 + 2 * HANDSHAKE_BYTES)
    assert reply[1 + HANDSHAKE_BYTES :] == c1
    wire.write(reply[1 : 1 + HANDSHAKE_BYTES] + connect_bytes())
    assert connected(wire)


def test_row_03_rtmpe_is_refused_cleanly(shared, raw):
    wire = raw(shared)
    wire.write(b"\x06" + os.urandom(HANDSHAKE_BYTES))
    assert wire.read_bytes() == b""
    assert "handshake: C0 is 6: the client asks for RTMPE" in warning_about(shared, wire)


def test_row_04_gstreamer_c2_need_not_be_right(shared, raw):
    wire = raw(shared)
    wire.write(b"\x03" + bytes(HANDSHAKE_BYTES))
    wire.read_exactly(1 + 2 * HANDSHAKE_BYTES)
    wire.write(os.urandom(HANDSHAKE_BYTES) + connect_bytes())
    assert connected(wire)


def test_row_05_handshake_split_over_segments_and_c2_together_with_connect(shared, raw):
    wire = raw(shared)
    c1 = bytes(8) + os.urandom(HANDSHAKE_BYTES - 8)
    for piece in (b"\x03", c1[:3], c1[3:700], c1[700:-1]):
        wire.write(piece)
    wire.write(c1[-1:])
    reply = wire.read_exactly(1 + 2 * HANDSHAKE_BYTES)
    c2 = reply[1 : 1 + HANDSHAKE_BYTES]
    wire.write(c2[:-9])
    wire.write(c2[-9:] + connect_bytes())
    assert connected(wire)


def test_row_05_everything_in_one_segment_before_the_server_has_answered(shared, raw):
    wire = raw(shared)
    c2 = bytes(HANDSHAKE_BYTES)
    wire.write(b"\x03" + bytes(HANDSHAKE_BYTES) + c2 + connect_bytes())
    wire.read_exactly(1 + 2 * HANDSHAKE_BYTES)
    assert connected(wire)


def test_row_06_obs_sets_the_chunk_size_before_connect(shared, raw):
    wire = raw(shared).handshake()
    wire.set_chunk_size(4096)
    answer = wire.call("connect", obj={**OBS_CONNECT, "padding": "x" * 3000})
    assert code_of(answer) == "NetConnection.Connect.Success"


def test_row_07_obs_sends_no_four_cc_list_and_publishes_enhanced_rtmp_all_the_same(shared, raw, player, name):
    watcher = player(shared, name)
    wire = raw(shared).handshake()
    assert code_of(wire.call("connect", obj=OBS_CONNECT)) == "NetConnection.Connect.Success"
    wire.command("publish", name, "live", msid=wire.create_stream())
    wire.send(VIDEO, 0, HEVC_HEADER)
    wire.send(VIDEO, 0, HEVC_KEY)
    assert played(watcher, HEVC_KEY) == [Item(VIDEO, 0, HEVC_HEADER), Item(VIDEO, 0, HEVC_KEY)]


def test_row_08_enhanced_codecs_reach_players_with_and_without_a_four_cc_list(shared, publisher, player, name):
    without = player(shared, name)
    with_list = player(shared, name, connect_properties={"fourCcList": ["hvc1", "av01", "vp09"]})
    encoder = publisher(shared, name)
    encoder.send_video(0, HEVC_HEADER)
    encoder.send_video(0, HEVC_KEY)
    assert played(without, HEVC_KEY) == played(with_list, HEVC_KEY) == [Item(VIDEO, 0, HEVC_HEADER), Item(VIDEO, 0, HEVC_KEY)]


@pytest.mark.parametrize(("asked", "answered"), [({"objectEncoding": 3}, 3), ({"objectEncoding": 0}, 0), ({}, 0)])
def test_row_10_object_encoding_is_answered_as_asked(shared, raw, asked, answered):
    assert raw(shared).connect(**asked).argument(0)["objectEncoding"] == answered


@pytest.mark.parametrize(
    "properties",
    [
        EcmaArray(CONNECT),
        {**CONNECT, "pageUrl": UNDEFINED, "audioCodecs": None},
        {**CONNECT, "date": AmfDate(1.5e12), "xml": XmlDocument("<a/>"), "list": ["hvc1", 1, {"a": [True]}]},
    ],
    ids=["ecma array", "undefined and null", "date, xml and strict array"],
)
def test_row_11_any_amf0_in_the_connect_object_is_taken(shared, raw, properties):
    wire = raw(shared).handshake()
    assert code_of(wire.call("connect", obj=properties)) == "NetConnection.Connect.Success"


def test_row_11_an_amf0_reference_in_the_connect_object_is_taken(shared, raw):
    wire = raw(shared).handshake()
    # Members a and b; b refers to a's object, which is number 1 after the connect object itself.
    body = amf0.encode("connect", 1.0) + b"\x03\0\x03app\x02\0\x04live\0\x01a\x03\0\0\x09\0\x01b\x07\0\x01\0\0\x09"
    wire.write(wire.frame(20, 0, body, 3))
    assert connected(wire)


@pytest.mark.parametrize(
    "properties",
    [
        {"app": "live"},
        {"app": "live", "tcurl": "rtmp://localhost/live"},
        {"app": "live", "tcUrl": "'rtmp://localhost/live'"},
        {"tcUrl": "'rtmp://localhost/live'"},
        {"app": "live", "tcUrl": 5},
    ],
    ids=["missing", "lower case", "quoted", "instead of the app", "no string"],
)
def test_row_12_the_tc_url_may_be_missing_or_odd(shared, raw, name, properties):
    wire = raw(shared).handshake()
    assert code_of(wire.call("connect", obj=properties)) == "NetConnection.Connect.Success"
    wire.command("publish", name, "live", msid=wire.create_stream())
    assert wire.status().argument(0)["details"] == f"live/{name}"


@pytest.mark.parametrize(
    ("app", "stream_name", "resolved"),
    [
        ("live/sub", "key", "live/sub/key"),
        ("live", "sub/key2", "live/sub/key2"),
        ("live/", "/key3", "live/key3"),
        ("/live//sub/", "key4/", "live/sub/key4"),
    ],
)
def test_row_13_slashes_are_normalised_wherever_the_url_was_cut(shared, raw, app, stream_name, resolved):
    wire = raw(shared)
    wire.connect(app)
    wire.command("publish", stream_name, msid=wire.create_stream())
    assert wire.status().argument(0)["details"] == resolved


def test_row_13_a_player_that_cuts_the_url_elsewhere_finds_the_stream(shared, raw, name):
    encoder = raw(shared).publish(f"sub/{name}", app="live")
    watcher = raw(shared).play(name, app="live/sub")
    encoder.send(VIDEO, 0, key(1))
    assert watcher.until(lambda one: one.type_id == VIDEO).payload == key(1)


@pytest.mark.parametrize(
    ("app", "tc_url", "query"),
    [
        ("live?token=s3cret", "rtmp://localhost/live?token=s3cret", ""),
        ("live", "rtmp://localhost/live?token=s3cret", ""),
        ("live", "rtmp://localhost/live", "?token=s3cret"),
        ("live?a=1", "rtmp://localhost/live?a=1", "?token=s3cret&a=2"),
    ],
    ids=["app", "tcUrl", "name", "two of them"],
)
def test_row_14_arguments_are_no_part_of_the_name_and_never_logged(shared, raw, name, app, tc_url, query):
    wire = raw(shared)
    wire.connect(app, tcUrl=tc_url)
    wire.command("releaseStream", name + query)
    wire.command("FCPublish", name + query)
    wire.command("publish", name + query, "live", msid=wire.create_stream())
    assert wire.status().argument(0)["details"] == f"live/{name}"
    shared.wait_for_line(f"{wire.address} publishes live/{name}$")
    assert not [line for line in shared.log() if "s3cret" in line]


@pytest.mark.parametrize("stream_name", ["", "?key=1", None])
def test_row_15_an_empty_stream_name_is_the_default_one(shared, raw, stream_name):
    wire = raw(shared)
    # Each under an application of its own, so that they are different streams.
    app = f"test_row_15_{len(stream_name or 'none')}"
    wire.connect(app)
    wire.command("publish", *([] if stream_name is None else [stream_name]), msid=wire.create_stream())
    assert wire.status().argument(0)["details"] == f"{app}/lobby"
    text = f"publish without a stream name: the stream is {app}/lobby (default_stream_name)"
    shared.wait_for_line(rf"WARNING #\d+ {wire.address} {re.escape(text)}$")


def test_row_15_a_play_without_a_name_warns_too(shared, raw):
    wire = raw(shared)
    wire.connect("test_row_15_play")
    wire.command("play", "", msid=wire.create_stream())
    shared.wait_for_line(rf"WARNING #\d+ {wire.address} play without a stream name: the stream is test_row_15_play/lobby ")


@pytest.mark.parametrize("app", ["live/{name}", "live/{name}/", "live/_definst_/{name}"])
def test_row_15_an_empty_name_with_a_path_in_the_app_is_what_players_look_for(shared, raw, name, app):
    watcher = raw(shared).play(name)
    wire = raw(shared)
    wire.connect(app.format(name=name))
    wire.command("publish", "", msid=wire.create_stream())
    begin(wire, watcher)


@pytest.mark.parametrize(
    ("app", "stream_name"),
    [
        ("live/_definst_", "{name}"),
        ("live", "_definst_/{name}"),
    ],
)
def test_row_74_the_default_instance_is_the_app(shared, raw, name, app, stream_name):
    watcher = raw(shared)
    watcher.connect(app)
    watcher.command("play", stream_name.format(name=name), msid=watcher.create_stream())
    begin(raw(shared).publish(name), watcher)


def test_row_75_a_whole_url_is_published_under_its_path(shared, raw, name):
    watcher = raw(shared).play(name)
    wire = raw(shared)
    wire.connect("live")
    wire.command("publish", f"rtmp://user:s3cret@host/live/{name}?token=s3cret", msid=wire.create_stream())
    begin(wire, watcher)


def test_row_75_a_whole_url_of_another_application_is_refused_with_what_to_change(shared, raw):
    wire = raw(shared)
    wire.connect("live")
    wire.command("play", "rtmp://host/other/cam", msid=wire.create_stream())
    text = "The stream's name is a URL of another application: send only the part behind the application."
    assert warning_about(shared, wire).endswith(f"play refused: NetStream.Play.StreamNotFound: {text}")


def test_row_76_a_detached_query_is_a_query(shared, raw, name):
    watcher = raw(shared).play(name)
    wire = raw(shared)
    wire.connect(f"live/{name}?")
    wire.command("publish", "user=a&pass=s3cret", msid=wire.create_stream())
    begin(wire, watcher)
    assert not [line for line in shared.log() if "s3cret" in line]


@pytest.mark.parametrize("command", ["publish", "play"])
def test_row_76_a_parameter_without_a_question_mark_is_refused_and_not_logged(shared, raw, command):
    wire = raw(shared)
    wire.connect("live")
    wire.command(command, "cam&token=s3cret", msid=wire.create_stream())
    assert 'a parameter with a secret, but no "?" before it: write the parameters after NAME?.' in warning_about(shared, wire)
    assert not [line for line in shared.log() if "s3cret" in line]


def test_row_15_a_url_without_an_app_works(shared, raw, name):
    wire = raw(shared)
    wire.connect("", tcUrl="rtmp://localhost")
    wire.command("publish", name, msid=wire.create_stream())
    assert wire.status().argument(0)["details"] == name


def test_row_17_the_answer_to_connect_has_no_secure_token(shared, raw):
    answer = raw(shared).connect()
    assert answer.name == "_result"
    assert not [members for members in (answer.command_object, answer.argument(0)) if "secureToken" in members]


def test_row_18_the_server_sends_no_on_bw_done_and_answers_check_bw(shared, raw):
    wire = raw(shared)
    wire.connect()
    answer = wire.call("_checkbw")
    assert (answer.name, answer.command_object, answer.argument(0)) == ("_result", None, None)
    assert not [one for one in wire.seen if one.type_id == 20]


def test_row_19_every_unknown_command_with_a_transaction_is_answered(shared, raw, name):
    wire = raw(shared)
    wire.connect()
    assert wire.call("_checkbw").name == "_result"
    wire.create_stream()
    for command, arguments in (("FCPublish", [name]), ("noSuchThing", [1, {"a": 2}]), ("initStream", []), ("@x", [])):
        answer = wire.call(command, *arguments)
        assert (answer.name, answer.command_object, answer.argument(0)) == ("_result", None, None)
    wire.command("noSuchThing", tid=0)
    wire.command("_result", tid=77)
    wire.sync()
    assert [command.name for command in wire.commands_seen()] == ["onFCPublish"]
    wire.command("publish", name, msid=wire.msid)
    wire.status("NetStream.Publish.Start")
    wire.send(AUDIO, 0, b"\xaf\x01x")
    wire.sync()
