"""Players pause, switch tracks off and on, and share a connection with other plays and publishes."""

from __future__ import annotations

import pytest

from tests.integration.wire import (
    AUDIO,
    AVC_HEADER_2,
    DATA,
    VIDEO,
    Item,
    begin,
    codes,
    gop,
    gops,
    headers,
    inter,
    key,
    played,
    send,
    send_headers,
    sound,
)


@pytest.fixture
def encoder(shared, raw, name):
    return raw(shared).publish(name)


@pytest.fixture
def wire(shared, raw, name):
    """A player on a raw connection."""
    return raw(shared).play(name)


def tell(wire, command, *arguments):
    """Send a command of a player and wait until it has been done."""
    wire.command(command, *arguments, tid=0, msid=wire.msid)
    wire.sync()


def on_stream(wire, msid, last):
    """Return the media of one message stream up to a payload; that of others stays in ``wire.seen``."""
    got = []
    while not got or got[-1].payload != last.payload:
        one = wire.until(lambda one: one.type_id in (AUDIO, VIDEO, DATA))
        (got if one.message_stream_id == msid else wire.seen).append(one)
    return [Item(one.type_id, one.timestamp, one.payload) for one in got]


def test_a_paused_player_gets_no_media_and_continues_at_the_newest_keyframe(encoder, wire, shared, player, name):
    witness = player(shared, name)
    begin(encoder, wire, witness)
    tell(wire, "pause", True, 120)
    assert codes(wire.commands_seen())[-1] == "NetStream.Pause.Notify"
    send(encoder, gops(1, 3))
    played(witness, gop(3)[-1])
    wire.seen.clear()
    wire.sync()
    assert wire.media_seen() == []
    tell(wire, "pause", False, 120)
    send(encoder, gop(4))
    assert wire.media_seen() + played(wire, gop(4)[-1]) == gop(3) + gop(4)
    assert "NetStream.Unpause.Notify" in codes(wire.commands_seen())


def test_a_player_that_paused_over_a_change_of_headers_gets_the_new_ones(encoder, wire, shared, player, name):
    witness = player(shared, name)
    begin(encoder, wire, witness)
    tell(wire, "pause", True)
    send(encoder, [Item(VIDEO, 160, AVC_HEADER_2), *gop(1)])
    played(witness, gop(1)[-1])
    wire.seen.clear()
    wire.command("pause", False, tid=0, msid=1)
    got = played(wire, gop(1)[-1])
    assert got[-8:] == gop(1)
    assert Item(VIDEO, 160, AVC_HEADER_2) in got[:-8]


def test_pause_twice_and_unpause_twice_are_harmless(encoder, wire):
    begin(encoder, wire)
    for paused in (True, True, False, False):
        tell(wire, "pause", paused)
    send(encoder, gop(1))
    assert played(wire, gop(1)[-1])[-8:] == gop(1)


def test_a_paused_player_disconnects_cleanly(encoder, wire, shared, player, name):
    witness = player(shared, name)
    begin(encoder, wire, witness)
    tell(wire, "pause", True)
    wire.close()
    shared.wait_for_line(f"{wire.address} closed: ")
    send(encoder, gop(1))
    assert played(witness, gop(1)[-1]) == gop(1)


def test_receive_video_false_leaves_the_audio_and_true_brings_video_back_at_a_keyframe(encoder, wire):
    begin(encoder, wire)
    tell(wire, "receiveVideo", False)
    send(encoder, gop(1))
    assert played(wire, gop(1)[-1]) == [one for one in gop(1) if one.type_id == AUDIO]
    tell(wire, "receiveVideo", True)
    # These don't decode without the keyframe that it missed.
    rest = [Item(VIDEO, 300, inter(90)), Item(AUDIO, 301, sound(90))]
    send(encoder, rest + gop(2) + gop(3))
    got = wire.media_seen() + played(wire, gop(3)[-1])
    assert got[-17:] == rest[1:] + gop(2) + gop(3)
    assert [one.payload for one in got[:-17]] == [one.payload for one in headers()]


def test_headers_repeated_after_receive_video_are_not_older_than_what_came_before(encoder, wire):
    begin(encoder, wire)
    tell(wire, "receiveVideo", False)
    send(encoder, gop(1))
    before = played(wire, gop(1)[-1])
    tell(wire, "receiveVideo", True)
    send(encoder, [Item(VIDEO, 300, inter(90))])
    encoder.sync()
    send(encoder, gop(2))
    got = wire.media_seen() + played(wire, gop(2)[-1])
    stamps = [one.timestamp for one in before + got if one.type_id != DATA]
    assert stamps == sorted(stamps)


def test_receive_audio_false_leaves_the_video_and_true_brings_audio_back(encoder, wire):
    begin(encoder, wire)
    tell(wire, "receiveAudio", False)
    send(encoder, gop(1))
    assert played(wire, gop(1)[-2]) == [one for one in gop(1) if one.type_id == VIDEO]
    tell(wire, "receiveAudio", True)
    send(encoder, gop(2))
    assert played(wire, gop(2)[-1]) == gop(2)


def test_with_audio_and_video_off_data_still_arrives_and_both_resume(encoder, wire):
    begin(encoder, wire)
    tell(wire, "receiveAudio", False)
    tell(wire, "receiveVideo", False)
    cue = Item(DATA, 200, b"\x02\0\x0aonCuePoint\x02\0\x01x")
    send(encoder, [*gop(1), cue])
    assert played(wire, cue) == [cue]
    tell(wire, "receiveVideo", True)
    tell(wire, "receiveAudio", True)
    send(encoder, gop(2))
    assert played(wire, gop(2)[-1])[-8:] == gop(2)


def test_two_plays_on_one_connection(encoder, wire, shared, raw, name):
    other = raw(shared).publish(name + "_2")
    begin(encoder, wire)
    second = wire.create_stream()
    assert second == 2
    wire.command("play", name + "_2", -2000, msid=second)
    assert wire.status("NetStream.Play.Start").message_stream_id == second
    send_headers(other)
    for n in range(1, 30):
        send(encoder, gop(n))
        send(other, gop(n - 1, size=5000))
    got = {1: [], 2: []}
    while not got[1] or not got[2] or got[1][-1] != gop(29)[-1] or got[2][-1] != gop(28, size=5000)[-1]:
        one = wire.until(lambda one: one.type_id in (AUDIO, VIDEO, DATA))
        got[one.message_stream_id].append(Item(one.type_id, one.timestamp, one.payload))
    assert got[1] == gops(1, 29)
    # The second began at some keyframe of the other stream.
    expected = [item for n in range(29) for item in gop(n, size=5000)]
    assert got[2][3:] == expected[-len(got[2][3:]) :]
    assert got[2][:3] == headers(got[2][3].timestamp)


def test_two_plays_of_the_same_stream_on_one_connection(encoder, wire, name):
    begin(encoder, wire)
    second = wire.create_stream()
    wire.command("play", name, -2000, msid=second)
    assert on_stream(wire, second, gop(0)[-1]) == headers() + gop(0)
    send(encoder, gops(1, 10))
    assert on_stream(wire, second, gop(10)[-1]) == gops(1, 10)
    wire.sync()
    assert wire.media_seen() == gops(1, 10)


def test_when_one_of_two_plays_ends_the_other_continues(encoder, wire, name):
    begin(encoder, wire)
    second = wire.create_stream()
    wire.command("play", name, -2000, msid=second)
    assert on_stream(wire, second, gop(0)[-1]) == headers() + gop(0)
    wire.command("deleteStream", 1, tid=0)
    wire.sync()
    send(encoder, gops(1, 3))
    assert on_stream(wire, second, gop(3)[-1]) == gops(1, 3)
    assert wire.media_seen() == []
    # And the lowest free id is used again.
    assert wire.create_stream() == 1


def test_a_publish_and_a_play_on_one_connection(shared, raw, player, name):
    wire = raw(shared).publish(name)
    watcher = player(shared, name)
    msid = wire.create_stream()
    wire.command("play", name, -2000, msid=msid)
    assert wire.status("NetStream.Play.Start").message_stream_id == msid
    wire.msid = 1
    send_headers(wire)
    send(wire, gop(0))
    assert on_stream(wire, msid, gop(0)[-1]) == headers() + gop(0)
    assert played(watcher, gop(0)[-1]) == headers() + gop(0)
    wire.command("deleteStream", 1, tid=0)
    wire.status("NetStream.Unpublish.Success")
    wire.sync()


def test_two_publishes_on_one_connection(shared, raw, player, name):
    watchers = [player(shared, f"{name}_{n}") for n in (1, 2)]
    wire = raw(shared).publish(f"{name}_1")
    wire.command("publish", f"{name}_2", "live", msid=wire.create_stream())
    wire.status("NetStream.Publish.Start")
    for wire.msid in (1, 2):
        wire.send(VIDEO, 0, key(wire.msid))
    for n, watcher in enumerate(watchers, 1):
        assert played(watcher, key(n)) == [Item(VIDEO, 0, key(n))]


def test_play_of_another_name_on_the_same_message_stream_switches(encoder, wire, shared, raw, name):
    other = raw(shared).publish(name + "_2")
    begin(encoder, wire)
    send_headers(other)
    send(other, gop(7))
    other.sync()
    wire.command("play", name + "_2", -2000, msid=1)
    wire.status("NetStream.Play.Start")
    send(encoder, gop(1))
    encoder.sync()
    assert played(wire, gop(7)[-1]) == headers(gop(7)[0].timestamp) + gop(7)
    wire.sync()
    shared.wait_for_line(f"{wire.address} stopped playing live/{name}: play of another name")


def test_players_that_disconnect_disturb_no_others_and_cause_no_warning(encoder, wire, shared, raw, name):
    others = [raw(shared).play(name) for _ in range(20)]
    begin(encoder, wire, *others)
    for n, other in enumerate(others, 1):
        # With bytes that it has not read, so that the connection is reset.
        send(encoder, gop(n))
        encoder.sync()
        other.close()
    assert played(wire, gop(20)[-1]) == gops(1, 20)
    for other in others:
        shared.wait_for_line(f"{other.address} closed: ")
        assert not [line for line in shared.log() if f" {other.address} " in line and "WARNING" in line]
