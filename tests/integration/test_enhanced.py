"""Enhanced RTMP, live: what the server says of itself, what each player gets, and the request to reconnect."""

from __future__ import annotations

import signal

import gevent
import pytest

from rtmpd.client import Client
from rtmpd.errors import Refused, TransportClosed
from tests.integration.wire import (
    AUDIO,
    AVC_HEADER,
    VIDEO,
    Item,
    begin,
    code_of,
    gop,
    inter,
    key,
    played,
    received,
    send,
    status,
)

INI = """
[publish]
publisher_grace_s = 0
[applications]
[[live]]
[[old]]
hevc_fallback = codec12
[[all]]
multitrack_fallback = all
unsupported_codec = send
"""
RECORD = b"\x01" + bytes(range(22))
HVC1 = [Item(VIDEO, 0, b"\x90hvc1" + RECORD), Item(VIDEO, 0, b"\x93hvc1key"), Item(VIDEO, 40, b"\xa1hvc1\0\0\x28inter")]
CODEC12 = [
    Item(VIDEO, 0, b"\x1c\0\0\0\0" + RECORD),
    Item(VIDEO, 0, b"\x1c\1\0\0\0key"),
    Item(VIDEO, 40, b"\x2c\1\0\0\x28inter"),
]
FIRST_TRACK = [Item(VIDEO, 0, AVC_HEADER), Item(VIDEO, 0, key(1)), Item(VIDEO, 80, key(2))]
SECOND_TRACK = [Item(VIDEO, 0, b"\x96\x00avc1\x01" + RECORD), Item(VIDEO, 0, b"\x96\x01avc1\x01\0\0\0one")]
TRACKS = [FIRST_TRACK[0], SECOND_TRACK[0], FIRST_TRACK[1], SECOND_TRACK[1], FIRST_TRACK[2]]
AV1 = [Item(VIDEO, 0, b"\x90av01\x81\x00\x0c\x00"), Item(VIDEO, 0, b"\x91av01key")]
HEVC_ONLY = {"fourCcList": ["hvc1"]}
RECONNECT = {"capsEx": 1}
REQUEST = "NetConnection.Connect.ReconnectRequest"


def said(properties):
    return {"connect_properties": properties}


def test_the_answer_to_connect_announces_what_the_server_forwards(shared, opened, name):
    client = opened.enter_context(Client(shared.url(name), **said({"objectEncoding": 3, **HEVC_ONLY})))
    client.connect()
    properties, info = client.connect_result
    assert properties["fourCcList"] == ["*"]
    assert properties["videoFourCcInfoMap"] == properties["audioFourCcInfoMap"] == {"*": 4}
    assert properties["capsEx"] == 15
    assert (info["code"], info["objectEncoding"]) == ("NetConnection.Connect.Success", 3)


@pytest.mark.parametrize(
    "garbage",
    [
        {"fourCcList": "hvc1", "capsEx": "yes", "videoFourCcInfoMap": ["av01"]},
        {"fourCcList": [None, 5.0, "toolong", {}], "capsEx": float("nan"), "audioFourCcInfoMap": {"": -1.0}},
        {"fourCcList": ["hvc1"] * 3000, "objectEncoding": "3"},
    ],
)
def test_garbage_in_the_connect_command_is_not_refused(shared, player, publisher, name, garbage):
    watcher = player(shared, name, **said(garbage))
    begin(publisher(shared, name), watcher)


def test_a_player_without_multitrack_support_gets_the_first_track(shared, player, publisher, name):
    simple, capable = player(shared, name), player(shared, name, **said({"capsEx": 2}))
    encoder = publisher(shared, name)
    send(encoder, TRACKS[:-1])
    assert played(capable, TRACKS[-2]) == TRACKS[:-1]
    assert played(simple, FIRST_TRACK[1]) == FIRST_TRACK[:2]
    late = [player(shared, name), player(shared, name, **said({"capsEx": 2}))]
    send(encoder, TRACKS[-1:])
    assert played(late[0], TRACKS[-1]) == FIRST_TRACK
    assert played(late[1], TRACKS[-1]) == TRACKS
    assert played(capable, TRACKS[-1]) == TRACKS[-1:]
    assert played(simple, TRACKS[-1]) == FIRST_TRACK[-1:]


def test_every_player_can_get_all_tracks(shared, player, publisher, name):
    watcher = player(shared, name, app="all")
    send(publisher(shared, name, app="all"), TRACKS[:-1])
    assert played(watcher, TRACKS[-2]) == TRACKS[:-1]


def test_mod_ex_is_removed_for_players_without_support(shared, player, publisher, name):
    simple, capable = player(shared, name), player(shared, name, **said({"capsEx": 4}))
    nano = Item(VIDEO, 40, b"\xa7\x02\0\x12\x34\x01avc1\0\0\0inter")
    sent = [Item(VIDEO, 0, AVC_HEADER), Item(VIDEO, 0, key(1)), nano]
    send(publisher(shared, name), sent)
    assert played(capable, nano) == sent
    plain = Item(VIDEO, 40, b"\x27\1\0\0\0inter")
    assert played(simple, plain) == [*sent[:2], plain]


@pytest.mark.parametrize(
    ("app", "sent", "properties", "expected"),
    [
        ("live", HVC1, {}, HVC1),
        ("live", CODEC12, {}, CODEC12),
        ("live", CODEC12, HEVC_ONLY, HVC1),
        ("live", HVC1, HEVC_ONLY, HVC1),
        ("old", HVC1, {}, CODEC12),
        ("old", HVC1, HEVC_ONLY, HVC1),
        ("old", CODEC12, {}, CODEC12),
        ("old", HVC1, {"fourCcList": ["av01"]}, CODEC12),
    ],
)
def test_hevc_is_sent_in_the_form_that_a_player_supports(shared, player, publisher, name, app, sent, properties, expected):
    waiting = player(shared, name, app=app, **said(properties))
    send(publisher(shared, name, app=app), sent)
    assert played(waiting, expected[-1]) == expected
    assert played(player(shared, name, app=app, **said(properties)), expected[-1]) == expected


def test_h264_and_aac_under_a_four_cc_have_the_old_headers_for_players_without_a_list(shared, player, publisher, name):
    enhanced = [
        Item(VIDEO, 0, b"\x90avc1" + RECORD),
        Item(AUDIO, 0, b"\x90mp4a\x12\x10"),
        Item(VIDEO, 0, b"\x91avc1\0\0\x28key"),
        Item(AUDIO, 0, b"\x91mp4asound"),
    ]
    old = [
        Item(VIDEO, 0, b"\x17\0\0\0\0" + RECORD),
        Item(AUDIO, 0, b"\xaf\0\x12\x10"),
        Item(VIDEO, 0, b"\x17\1\0\0\x28key"),
        Item(AUDIO, 0, b"\xaf\1sound"),
    ]
    simple, capable = player(shared, name), player(shared, name, **said({"fourCcList": ["avc1", "mp4a"]}))
    send(publisher(shared, name), enhanced)
    assert played(capable, enhanced[-1]) == enhanced
    assert played(simple, old[-1]) == old
    assert played(player(shared, name), old[-1]) == old


def test_audio_that_is_not_in_the_players_list_is_left_out(shared, player, publisher, name):
    video_only = player(shared, name, **said({"audioFourCcInfoMap": {"fLaC": 1}}))
    sent = [
        Item(VIDEO, 0, AVC_HEADER),
        Item(AUDIO, 0, b"\x90OpusOpusHead"),
        Item(VIDEO, 0, key(1)),
        Item(AUDIO, 0, b"\x91Opusa"),
    ]
    last = Item(VIDEO, 40, inter(2))
    send(publisher(shared, name), [*sent, last])
    assert played(video_only, last) == [sent[0], sent[2], last]


def test_a_play_of_video_that_is_not_in_the_players_list_is_refused(shared, player, publisher, name):
    send(publisher(shared, name), AV1)
    assert played(player(shared, name), AV1[-1]) == AV1
    with pytest.raises(Refused) as raised:
        player(shared, name, **said(HEVC_ONLY))
    assert raised.value.code == "NetStream.Play.NoSupportedTrackFound"
    assert raised.value.description == "The video is av01, and the player has said that it takes only hvc1."
    shared.wait_for_line(r"WARNING .* play refused: NetStream.Play.NoSupportedTrackFound: The video is av01")


def test_a_waiting_player_is_refused_when_the_stream_has_an_unsupported_codec(shared, player, publisher, name):
    waiting, other = player(shared, name, **said(HEVC_ONLY)), player(shared, name)
    encoder = publisher(shared, name)
    send(encoder, AV1)
    got = status(waiting, "NetStream.Play.NoSupportedTrackFound")
    assert not [one for one in got if isinstance(one, Item)]
    with pytest.raises(TransportClosed):
        list(waiting.messages())
    assert played(other, AV1[-1]) == AV1
    assert [line for line in shared.log() if f"stopped playing live/{name}: " in line and "refused: " in line] == []


def test_unsupported_codecs_can_be_sent_nevertheless(shared, player, publisher, name):
    send(publisher(shared, name, app="all"), AV1)
    assert played(player(shared, name, app="all", **said(HEVC_ONLY)), AV1[-1]) == AV1


def test_a_change_of_codec_moves_players_to_the_form_that_they_support(shared, player, publisher, name):
    """A player that gets HEVC rewritten goes on with H.264 as it is, on the same timeline."""
    watcher = player(shared, name, **said(HEVC_ONLY))
    first = publisher(shared, name)
    send(first, CODEC12)
    assert played(watcher, HVC1[-1]) == HVC1
    first.unpublish()
    status(watcher, "NetStream.Play.UnpublishNotify")
    second = publisher(shared, name)
    send(second, [Item(VIDEO, 0, AVC_HEADER), *gop(0)])
    got = played(watcher, gop(0)[-1])
    assert [one.payload for one in got] == [AVC_HEADER, *(item.payload for item in gop(0))]
    assert [one.timestamp for one in got] == sorted(one.timestamp for one in got)


def test_a_reload_changes_what_live_players_get(server, player, publisher, tmp_path):
    ini = "[live]\nhevc_fallback = {}\n"
    running = server(ini.format("published"))
    watcher, encoder = player(running, "a"), publisher(running, "a")
    send(encoder, HVC1)
    assert played(watcher, HVC1[-1]) == HVC1
    (tmp_path / "rtmpd.ini").write_text(ini.format("codec12"))
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line(r"configuration reloaded: \[live\] hevc_fallback = codec12")
    more = Item(VIDEO, 80, b"\xa1hvc1\0\0\x28more")
    send(encoder, [more])
    got = played(watcher, b"\x2c\1\0\0\x28more")
    assert [one.payload for one in got] == [CODEC12[0].payload, b"\x2c\1\0\0\x28more"]


def test_audio_of_several_tracks_is_reduced_to_the_first(shared, player, publisher, name):
    simple = player(shared, name)
    first, second = b"\x90OpusOpusHead", b"\x95\x00Opus\x01OpusHead"
    sent = [Item(AUDIO, 0, first), Item(AUDIO, 0, second), Item(AUDIO, 0, b"\x91Opusa"), Item(AUDIO, 0, b"\x95\x01Opus\x01b")]
    last = Item(AUDIO, 20, b"\x91Opusc")
    send(publisher(shared, name), [*sent, last])
    assert played(simple, last) == [sent[0], sent[2], last]


# ReconnectRequest -------------------------------------------------------------------------------------------------------


def request_of(client):
    """Return the request that a client gets."""
    got = received(client, lambda one: code_of(one) == REQUEST)
    return got[-1].argument(0)


def test_a_stop_asks_clients_with_support_to_reconnect(server, player, publisher, opened):
    running = server()
    encoder = opened.enter_context(Client(running.url("a"), **said(RECONNECT)))
    encoder.publish(drain=False)
    able, unable = player(running, "a", **said(RECONNECT)), player(running, "a")
    begin(encoder, able, unable)
    running.process.send_signal(signal.SIGTERM)
    assert request_of(able) == {"level": "status", "code": REQUEST, "description": "The server is stopping."}
    assert request_of(encoder)["code"] == REQUEST
    got = status(unable, "NetStream.Play.UnpublishNotify")
    assert REQUEST not in [code_of(one) for one in got]
    running.wait_for_line(r"stopped; counted: .*reconnect_requests 2\b")


def test_with_another_server_the_stream_continues_until_the_asked_clients_have_gone(server, player, opened):
    running = server("[server]\ndrain_reconnect_url = rtmp://other.example/live\ndrain_timeout_s = 20\n")
    encoder = opened.enter_context(Client(running.url("a"), **said(RECONNECT)))
    encoder.publish(drain=False)
    able, unable = player(running, "a", **said(RECONNECT)), player(running, "a")
    begin(encoder, able, unable)
    running.process.send_signal(signal.SIGTERM)
    for client in (able, encoder):
        assert request_of(client)["tcUrl"] == "rtmp://other.example/live"
    # Both find the other server, then leave this one.
    send(encoder, gop(1))
    assert played(unable, gop(1)[-1]) == gop(1)
    assert played(able, gop(1)[-1]) == gop(1)
    with gevent.Timeout(5):
        able.close()
        encoder.close()
        status(unable, "NetStream.Play.UnpublishNotify")
    running.wait_for_line(r"stopped; counted", 5)


def test_a_client_that_ignores_the_request_does_not_delay_the_stop(server, opened):
    running = server("[server]\ndrain_reconnect_url = rtmp://other.example/live\ndrain_timeout_s = 0.5\n")
    encoder = opened.enter_context(Client(running.url("a"), **said(RECONNECT)))
    encoder.publish(drain=False)
    running.process.send_signal(signal.SIGTERM)
    request_of(encoder)
    running.wait_for_line(r"stopped; counted", 5)
