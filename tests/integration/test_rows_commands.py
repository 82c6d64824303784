"""Commands as clients in the field send them; the rows are numbered as in the project's notes on interoperability."""

from __future__ import annotations

import pytest

from rtmpd.protocol import amf0, message
from rtmpd.protocol.command import encode_command
from rtmpd.protocol.message import UserControlType
from tests.integration.wire import (
    DATA,
    VIDEO,
    Item,
    code_of,
    codes,
    headers,
    key,
    metadata,
    played,
    received,
    send,
    send_headers,
    status,
)


@pytest.fixture
def wire(shared, raw):
    """A connection that has said connect."""
    made = raw(shared)
    made.connect()
    return made


def publishes(shared, wire, name):
    return shared.wait_for_line(f"{wire.address} publishes live/{name}$")


def stopped(shared, wire, name, reason):
    return shared.wait_for_line(f"{wire.address} stopped publishing live/{name}: {reason};")


def test_row_20_pipelined_commands_before_publish_are_all_answered(wire, name):
    wire.write(
        b"".join(
            wire.frame(20, 0, encode_command(command, tid, None, *arguments), 3, 0)
            for command, tid, arguments in (
                ("releaseStream", 2, [name]),
                ("FCPublish", 3, [name]),
                ("createStream", 4, []),
            )
        )
    )
    assert [wire.answer(tid).name for tid in (2, 3, 4)] == ["_result"] * 3
    wire.command("publish", name, "live", msid=1)
    wire.status("NetStream.Publish.Start")
    assert "onFCPublish" in [command.name for command in wire.commands_seen()]


@pytest.mark.parametrize(
    "command",
    ["_checkbw", "releaseStream", "FCSubscribe", "FCPublish", "FCUnpublish", "getStreamLength", "deleteStream", "seek"],
)
def test_row_21_ffmpeg_gets_no_error_for_any_of_its_commands(wire, name, command):
    wire.command(command, name)
    wire.sync()
    assert "_error" not in [one.name for one in wire.commands_seen()]


def test_row_22_players_preliminaries(wire, name):
    length = wire.call("getStreamLength", name)
    assert (length.name, length.argument(0)) == ("_result", 0)
    assert wire.call("FCSubscribe", name).name == "_result"
    wire.create_stream()
    wire.write(message.user_control(UserControlType.SET_BUFFER_LENGTH, 1, 3000, wire.chunk_size))
    wire.command("play", name, -2000, msid=wire.msid)
    wire.write(message.user_control(UserControlType.SET_BUFFER_LENGTH, 1, 30000, wire.chunk_size))
    wire.status("NetStream.Play.Start")


@pytest.mark.parametrize("start", [(-2000,), (-2,), (-1000,), (0,), (5000,), (-2000, -1), (-2000, -1, True), ()], ids=str)
def test_row_23_every_start_plays_live(shared, wire, raw, name, start):
    wire.command("play", name, *start, msid=wire.create_stream())
    wire.status("NetStream.Play.Start")
    raw(shared).publish(name).send(VIDEO, 5, key(1))
    assert wire.until(lambda one: one.type_id == VIDEO).payload == key(1)


def test_row_24_gstreamer_source_sets_its_buffer_length_twice(wire, name):
    wire.create_stream()
    wire.write(message.user_control(UserControlType.SET_BUFFER_LENGTH, 1, 300, wire.chunk_size))
    wire.command("play", name, -2, msid=wire.msid)
    wire.write(message.user_control(UserControlType.SET_BUFFER_LENGTH, 1, 30000, wire.chunk_size))
    wire.status("NetStream.Play.Start")
    wire.sync()


@pytest.mark.parametrize("command", ["closeStream", "deleteStream"])
def test_row_25_gstreamer_ends_with_the_streams_name_on_message_stream_0(shared, raw, name, command):
    wire = raw(shared).publish(name)
    wire.command(command, name, tid=0, msid=0)
    stopped(shared, wire, name, command)
    wire.status("NetStream.Unpublish.Success")


def test_row_26_message_streams_count_from_1_and_statuses_come_on_theirs(wire, name):
    assert wire.create_stream() == 1
    second = wire.create_stream()
    assert second == 2
    wire.command("publish", name, msid=second)
    assert wire.status("NetStream.Publish.Start").message_stream_id == second
    wire.command("play", "other", msid=1)
    assert wire.status("NetStream.Play.Start").message_stream_id == 1


def test_row_27_stream_begin_and_eof_name_stream_1(server, raw, name):
    running = server("[publish]\npublisher_grace_s = 0\n")
    encoder = raw(running)
    encoder.connect()
    encoder.command("publish", name, msid=encoder.create_stream())
    assert encoder.user_control(UserControlType.STREAM_BEGIN) == (1, 0)
    encoder.status("NetStream.Publish.Start")
    watcher = raw(running)
    watcher.connect()
    watcher.command("play", name, -2, msid=watcher.create_stream())
    assert watcher.user_control(UserControlType.STREAM_BEGIN) == (1, 0)
    started = [watcher.status(), watcher.status()]
    assert codes(started) == ["NetStream.Play.Reset", "NetStream.Play.Start"]
    encoder.send(VIDEO, 0, key(1))
    encoder.sync()
    encoder.close()
    assert watcher.user_control(UserControlType.STREAM_EOF) == (1, 0)


def test_row_28_a_refused_encoder_reads_why_and_then_the_end(shared, raw, wire, name):
    raw(shared).publish(name)
    wire.create_stream()
    # OBS goes on sending; the reason must arrive all the same.
    wire.command("publish", name, "live", msid=1)
    wire.write(b"".join(wire.frame(VIDEO, n, key(n, 10_000), 6) for n in range(100)))
    refusal = wire.status()
    assert (code_of(refusal), refusal.argument(0)["level"]) == ("NetStream.Publish.BadName", "error")
    assert refusal.message_stream_id == 1
    assert wire.rest() == []
    assert "NetStream.Publish.Start" not in codes(wire.commands_seen())


def test_row_29_obs_stops_with_end_of_sequence_then_fc_unpublish_then_delete_stream(shared, raw, player, name):
    watcher = player(shared, name)
    wire = raw(shared).publish(name)
    wire.send(VIDEO, 0, key(1))
    end = b"\x92hvc1"
    wire.send(VIDEO, 40, end)
    wire.command("FCUnpublish", name)
    wire.command("deleteStream", 1)
    wire.command("deleteStream", 1)
    wire.command("FCUnpublish", name)
    wire.sync()
    assert codes(wire.commands_seen()).count("NetStream.Unpublish.Success") >= 1
    assert played(watcher, end)[-1] == Item(VIDEO, 40, end)
    stopped(shared, wire, name, "FCUnpublish")


@pytest.mark.parametrize("argument", [False, "", None], ids=["false", "empty", "null"])
def test_row_30_wirecast_publishes_false_to_stop(shared, raw, name, argument):
    wire = raw(shared).publish(name)
    wire.command("publish", argument, msid=1)
    wire.status("NetStream.Unpublish.Success")
    stopped(shared, wire, name, "publish without a name")
    wire.command("FCUnpublish", name)
    wire.command("publish", False, msid=1)
    wire.sync()
    raw(shared).publish(name)


@pytest.mark.parametrize("kind", [(), ("record",), ("append",), ("nonsense",), (None,), (7,)], ids=str)
def test_row_31_the_publish_type_may_be_missing_or_anything(shared, wire, name, kind):
    wire.command("publish", name, *kind, msid=wire.create_stream())
    wire.status("NetStream.Publish.Start")
    publishes(shared, wire, name)


def test_row_32_publish_again_on_the_same_connection_and_fc_publish_after_publish(shared, raw, name):
    wire = raw(shared).publish(name)
    wire.call("FCPublish", name)
    wire.command("FCUnpublish", name)
    wire.status("NetStream.Unpublish.Success")
    wire.command("deleteStream", 1)
    wire.call("releaseStream", name)
    wire.call("FCPublish", name)
    wire.command("publish", name, "live", msid=wire.create_stream())
    wire.status("NetStream.Publish.Start")
    watcher = raw(shared).play(name)
    wire.send(VIDEO, 0, key(2))
    assert watcher.until(lambda one: one.type_id == VIDEO).payload == key(2)


def test_row_32_a_second_publish_of_the_same_name_is_confirmed_and_the_stream_continues(shared, raw, name):
    wire = raw(shared).publish(name)
    wire.command("publish", name, "live", msid=1)
    wire.status("NetStream.Publish.Start")
    wire.command("publish", name + "2", "live", msid=1)
    wire.status("NetStream.Unpublish.Success")
    wire.status("NetStream.Publish.Start")
    publishes(shared, wire, name + "2")


def test_row_33_jw_player_pauses_with_close_stream_and_plays_again_on_the_same_message_stream(shared, raw, name):
    encoder = raw(shared).publish(name)
    send_headers(encoder)
    send(encoder, [Item(VIDEO, 0, key(1))])
    watcher = raw(shared).play(name)
    assert played(watcher, key(1)) == [*headers(), Item(VIDEO, 0, key(1))]
    watcher.command("closeStream", tid=0, msid=1)
    assert watcher.user_control(UserControlType.STREAM_EOF) == (1, 0)
    watcher.status("NetStream.Play.Stop")
    send(encoder, [Item(VIDEO, 40, key(2))])
    encoder.sync()
    watcher.command("play", name, -2000, msid=1)
    watcher.status("NetStream.Play.Start")
    assert not [one for one in watcher.seen if one.type_id == VIDEO]
    assert played(watcher, key(2)) == [*headers(40), Item(VIDEO, 40, key(2))]


def test_row_34_pause_seek_receive_and_play2_are_answered(shared, raw, name):
    encoder = raw(shared).publish(name)
    wire = raw(shared).play(name)
    for command, arguments, code in (
        ("pause", [True, 1000], "NetStream.Pause.Notify"),
        ("pause", [False, 1000], "NetStream.Unpause.Notify"),
        ("seek", [5000], "NetStream.Seek.Failed"),
        ("receiveAudio", [True], "NetStream.Play.Start"),
        ("receiveVideo", [True], "NetStream.Play.Start"),
    ):
        wire.command(command, *arguments, tid=0, msid=1)
        answer = wire.status(code)
        assert answer.message_stream_id == 1
        assert answer.argument(0)["level"] == "status"
    raw(shared).publish(name + "2").send(VIDEO, 0, key(2))
    wire.command("play2", {"streamName": name + "2", "oldStreamName": name, "transition": "switch"}, tid=0, msid=1)
    wire.status("NetStream.Play.Start")
    encoder.send(VIDEO, 0, key(1))
    assert wire.until(lambda one: one.type_id == VIDEO).payload == key(2)


def test_row_35_the_server_never_sends_buffer_empty_and_accepts_the_pauses_of_rtmpdump(shared, raw, name):
    encoder = raw(shared).publish(name)
    wire = raw(shared).play(name)
    for paused in (True, False):
        wire.command("pause", paused, 0, tid=0, msid=1)
    for n in range(3):
        encoder.send(VIDEO, n, key(n))
    wire.until(lambda one: one.payload == key(2))
    events = [message.parse_user_control(one).event for one in wire.seen if one.type_id == 4]
    assert not {UserControlType.BUFFER_EMPTY, UserControlType.BUFFER_READY} & set(events)


def test_row_36_unpublish_notify_comes_only_when_the_stream_has_really_ended(server, raw, player, name):
    running = server("[publish]\npublisher_grace_s = 1\n")
    watcher = player(running, name)
    raw(running).publish(name).command("deleteStream", 1)
    running.wait_for_line(f"stopped publishing live/{name}")
    again = raw(running).publish(name)
    again.send(VIDEO, 0, key(1))
    assert codes(received(watcher, lambda one: isinstance(one, Item))) == ["NetStream.Play.PublishNotify"]
    again.close()
    # The grace begins again with the second.
    assert codes(status(watcher, "NetStream.Play.UnpublishNotify")) == ["NetStream.Play.UnpublishNotify"]


def test_row_37_a_pong_or_ping_from_obs_does_no_harm(wire):
    wire.command("pong", tid=0)
    wire.command("pong", tid=5)
    wire.command("ping", tid=0)
    wire.sync()
    assert wire.commands_seen() == []


def test_row_38_client_config_id_is_stripped_from_the_key(shared, wire, name):
    wire.command("publish", f"{name}?clientConfigId=0d5c-77", "live", msid=wire.create_stream())
    assert wire.status().argument(0)["details"] == f"live/{name}"


def test_row_38_vod_track_and_unknown_data_pass_untouched(shared, raw, player, name):
    watcher = player(shared, name)
    wire = raw(shared).publish(name)
    wire.send(VIDEO, 0, key(1))
    # The older form of the VOD track: audio inside an AMF data message.
    vod = amf0.encode("additionalMedia", {"id": "stream0", "media": b"\xaf\x00\x12".hex(), "type": "audio"})
    wire.send(DATA, 10, vod)
    assert played(watcher, vod) == [Item(VIDEO, 0, key(1)), Item(DATA, 10, vod)]


def test_row_39_amf3_commands_and_data(shared, raw, player, name):
    watcher = player(shared, name)
    wire = raw(shared).handshake()
    wire.write(wire.frame(17, 0, b"\0" + encode_command("connect", 1, {"app": "live", "objectEncoding": 3}), 3))
    assert wire.answer(1).argument(0)["objectEncoding"] == 3
    wire.write(wire.frame(17, 0, b"\0" + encode_command("createStream", 2), 3))
    wire.msid = int(wire.answer(2).argument(0))
    # The name switches to AMF3: marker 0x11, string, length * 2 + 1.
    spelt = b"\x11\x06" + bytes([len(name) * 2 + 1]) + name.encode()
    wire.write(wire.frame(17, 0, b"\0" + encode_command("publish", 3) + spelt, 3))
    wire.status("NetStream.Publish.Start")
    publishes(shared, wire, name)
    wire.write(wire.frame(15, 0, b"\0" + amf0.encode("@setDataFrame") + metadata(), 8))
    wire.send(VIDEO, 0, key(1))
    assert played(watcher, key(1)) == [Item(DATA, 0, metadata()), Item(VIDEO, 0, key(1))]
