"""What players of a live stream get: everything, in order, and a place to start."""

from __future__ import annotations

import pytest

from rtmpd.client import Client
from rtmpd.errors import Refused
from rtmpd.protocol import amf0
from tests.integration.wire import (
    AAC_HEADER,
    AUDIO,
    AVC_HEADER_2,
    DATA,
    METADATA,
    VIDEO,
    Item,
    arrived,
    begin,
    code_of,
    codes,
    gop,
    gops,
    headers,
    headers_of,
    inter,
    key,
    metadata,
    played,
    received,
    send,
    send_headers,
    sound,
    status,
)

APPLICATIONS = """
[live]
wait_for_publisher = no
[applications]
[[live]]
wait_for_publisher = yes
[[live/strict]]
[[cam]]
"""


def test_several_players_get_identical_media_in_order(shared, publisher, player, name):
    players = [player(shared, name) for _ in range(5)]
    encoder = publisher(shared, name)
    begin(encoder, *players)
    sent = gops(1, 19)
    send(encoder, sent)
    for one in players:
        assert played(one, sent[-1]) == sent


def test_large_and_small_frames_arrive_whole(shared, publisher, player, name):
    watcher = player(shared, name)
    encoder = publisher(shared, name)
    sizes = [0, 1, 59_990, 59_995, 60_000, 120_000, 1_000_000, 3]
    sent = [Item(VIDEO, n * 40, inter(n, size) if n else key(n, size)) for n, size in enumerate(sizes)]
    send(encoder, sent)
    assert played(watcher, sent[-1]) == sent


def test_a_player_that_connects_first_is_notified_when_the_publisher_starts(shared, publisher, player, name):
    watcher = player(shared, name)
    encoder = publisher(shared, name)
    assert codes(status(watcher, "NetStream.Play.PublishNotify")) == ["NetStream.Play.PublishNotify"]
    send_headers(encoder)
    # Audio and late video before the first keyframe can't be decoded alone.
    send(encoder, [Item(VIDEO, 0, inter(100)), *gop(0)])
    assert played(watcher, gop(0)[-1]) == headers() + gop(0)


def test_a_late_joiner_gets_headers_then_the_last_keyframe_and_all_after_it(shared, publisher, player, name):
    witness = player(shared, name)
    encoder = publisher(shared, name)
    begin(encoder, witness)
    send(encoder, gop(1) + gop(2)[:5])
    played(witness, gop(2)[4])
    late = player(shared, name)
    send(encoder, gop(2)[5:] + gop(3))
    start = gop(2)[0].timestamp
    assert played(late, gop(3)[-1]) == headers(start) + gop(2) + gop(3)
    assert played(witness, gop(3)[-1]) == gop(2)[5:] + gop(3)


def test_a_joiner_between_a_change_of_headers_and_the_next_keyframe_gets_both_in_order(shared, publisher, player, name):
    witness = player(shared, name)
    encoder = publisher(shared, name)
    begin(encoder, witness)
    change = Item(VIDEO, 160, AVC_HEADER_2)
    send(encoder, [change])
    played(witness, change)
    late = player(shared, name)
    send(encoder, gop(1))
    assert played(late, gop(1)[-1]) == [*headers(), *gop(0), change, *gop(1)]
    later = player(shared, name)
    assert played(later, gop(1)[-1]) == [
        Item(DATA, 0, metadata()),
        Item(AUDIO, 160, AAC_HEADER),
        Item(VIDEO, 160, AVC_HEADER_2),
        *gop(1),
    ]


def test_audio_only_late_joiners_start_at_most_about_a_second_back(shared, publisher, player, name):
    witness = player(shared, name)
    encoder = publisher(shared, name)
    encoder.send_audio(0, AAC_HEADER)
    sent = [Item(AUDIO, n * 23, sound(n)) for n in range(200)]
    send(encoder, sent[:1])
    assert played(witness, sent[0]) == [Item(AUDIO, 0, AAC_HEADER), sent[0]]
    send(encoder, sent[1:])
    assert played(witness, sent[-1]) == sent[1:]
    late = played(player(shared, name), sent[-1])
    assert late[0].payload == AAC_HEADER
    assert late[1:] == sent[-(len(late) - 1) :]
    assert 0 <= sent[-1].timestamp - late[1].timestamp <= 1100


def test_data_messages_arrive_in_order_among_the_media(shared, publisher, player, name):
    watcher = player(shared, name)
    encoder = publisher(shared, name)
    begin(encoder, watcher)
    cue = amf0.encode("onCuePoint", {"name": "ad", "time": 0.12, "type": "event"})
    text = amf0.encode("onTextData", {"text": "hello", "trackid": 1.0})
    update = {**METADATA, "width": 128.0}
    second = gop(1)
    send(encoder, [Item(DATA, 120, cue), Item(DATA, 121, text)])
    encoder.send_metadata(update, 130)
    send(encoder, second)
    assert played(watcher, second[-1]) == [
        Item(DATA, 120, cue),
        Item(DATA, 121, text),
        Item(DATA, 0, metadata(update)),
        *second,
    ]
    late = played(player(shared, name), second[-1])
    assert late[0] == Item(DATA, 0, metadata(update))


def test_multitrack_and_mod_ex_messages_are_unchanged_for_players_with_support(shared, publisher, player, name):
    capable = {"connect_properties": {"capsEx": 2 | 4}}
    watcher = player(shared, name, **capable)
    encoder = publisher(shared, name)
    # Two tracks of one codec in one message, then ModEx with a nanosecond offset before coded frames, and an audio track.
    start = b"\x96\x10avc1" + b"\x00" + (5).to_bytes(3, "big") + b"first" + b"\x01" + (6).to_bytes(3, "big") + b"second"
    frames = b"\x96\x13avc1" + b"\x00" + (4).to_bytes(3, "big") + b"key0" + b"\x01" + (4).to_bytes(3, "big") + b"key1"
    mod_ex = b"\xa7\x02\0\x12\x34\x01avc1\0\0\0" + bytes(range(20))
    audio = b"\x95\x01Opus\x01" + bytes(range(9))
    sent = [Item(VIDEO, 0, start), Item(VIDEO, 0, frames), Item(VIDEO, 40, mod_ex), Item(AUDIO, 40, audio)]
    send(encoder, sent)
    assert played(watcher, audio) == sent
    assert played(player(shared, name, **capable), audio) == sent


@pytest.mark.parametrize(
    ("start", "step"),
    [(0xFFFFFF - 200, 40), (0x7FFFFFFF - 200, 40), (0xFFFFFFFF - 200, 40), (0xFFFFFF - 3, 1)],
    ids=["24 bits", "31 bits", "32 bits", "exactly 0xFFFFFF"],
)
def test_timestamps_cross_the_edges_of_their_fields(shared, publisher, player, name, start, step):
    watcher = player(shared, name)
    encoder = publisher(shared, name)
    send_headers(encoder, start)
    sent = [
        Item(VIDEO, (start + n * step) & 0xFFFFFFFF, inter(n, 70_000 if n == 6 else 10) if n % 4 else key(n, 61_000))
        for n in range(12)
    ]
    send(encoder, sent[:1])
    assert played(watcher, sent[0]) == headers(start) + sent[:1]
    send(encoder, sent[1:])
    assert played(watcher, sent[-1]) == sent[1:]
    assert played(player(shared, name), sent[-1]) == headers(sent[8].timestamp) + sent[8:]


def test_a_stream_without_keyframes_starts_after_keyframe_wait(server, publisher, player, name):
    running = server("[live]\nkeyframe_wait_s = 0.3\n")
    watcher = player(running, name)
    encoder = publisher(running, name)
    send_headers(encoder)
    send(encoder, [Item(VIDEO, 0, inter(0))])
    # From the sweep on that lets it in; until then frames go by.
    got: list[Item] = []
    n = 0
    while len(got) <= len(headers()) and n < 2000:
        n += 1
        send(encoder, [Item(VIDEO, n * 10, inter(n))])
        got += [one for one in arrived(watcher, 0.01) if isinstance(one, Item)]
    if got[-1].payload != inter(n):
        got += played(watcher, inter(n))
    # The frame before its first one is the newest when it is let in.
    start, frames = got[:3], got[3:]
    assert start == headers_of(start, 0, frames[0].timestamp - 10)
    first = n + 1 - len(frames)
    assert first > 1
    assert frames == [Item(VIDEO, k * 10, inter(k)) for k in range(first, n + 1)]


def test_without_the_gop_cache_a_player_starts_at_the_next_keyframe(server, publisher, player, name):
    running = server("[live]\ngop_cache = no\n")
    witness = player(running, name)
    encoder = publisher(running, name)
    send_headers(encoder)
    send(encoder, gop(0))
    assert played(witness, gop(0)[-1], limit_s=3) == headers() + gop(0)
    late = player(running, name)
    send(encoder, gop(1))
    start = gop(1)[0].timestamp
    assert played(late, gop(1)[-1], limit_s=3) == headers(start) + gop(1)


def test_a_player_on_another_message_stream_id_gets_the_same_media(shared, raw, publisher, player, name):
    first = raw(shared)
    first.connect()
    for _ in range(3):
        first.create_stream()
    first.command("play", name, -2000, msid=3)
    assert first.status("NetStream.Play.Start").message_stream_id == 3
    encoder = publisher(shared, name)
    send_headers(encoder)
    sent = [*gop(0, start_ms=0xFFFFF0), Item(VIDEO, 0x1000100, inter(77, 150_000))]
    send(encoder, sent)
    raws = []
    while not raws or raws[-1].payload != sent[-1].payload:
        raws.append(first.read())
    media = [one for one in raws if one.type_id in (AUDIO, VIDEO, DATA)]
    assert {one.message_stream_id for one in media} == {3}
    got = [Item(one.type_id, one.timestamp, one.payload) for one in media]
    assert got == headers_of(got, 0, 0xFFFFF0) + sent
    notices = [one for one in raws if one.type_id == 20]
    assert {one.message_stream_id for one in notices} == {3}


def test_a_stream_without_a_publisher_is_not_found_if_players_may_not_wait(server, raw, player, publisher, name):
    running = server("[live]\nwait_for_publisher = no\n")
    wire = raw(running)
    wire.connect()
    wire.command("play", name, -2000, msid=wire.create_stream())
    refusal = wire.status()
    assert (code_of(refusal), refusal.message_stream_id) == ("NetStream.Play.StreamNotFound", 1)
    assert wire.rest() == []
    running.wait_for_line(f"WARNING #1 {wire.address} play refused: NetStream.Play.StreamNotFound: live/{name} is not being")
    encoder = publisher(running, name)
    watcher = player(running, name)
    send(encoder, [Item(VIDEO, 0, key(1))])
    assert played(watcher, key(1)) == [Item(VIDEO, 0, key(1))]


def test_applications_of_the_ini_are_served_and_others_refused(server, raw, opened, publisher, player, name):
    running = server(
        "[live]\nwait_for_publisher = no\n[applications]\n[[live]]\nwait_for_publisher = yes\n[[live/strict]]\n[[cam]]\n"
    )
    wire = raw(running)
    answer = wire.connect("other")
    assert (answer.name, code_of(answer)) == ("_error", "NetConnection.Connect.InvalidApp")
    assert wire.rest() == []
    running.wait_for_line(f"WARNING #1 {wire.address} connect refused: NetConnection.Connect.InvalidApp")
    for app in ("lively", ""):
        with pytest.raises(Refused) as refused, Client(running.url(name, app)) as client:
            client.connect()
        assert refused.value.code == "NetConnection.Connect.InvalidApp"
    watcher = player(running, name, "live/sub")
    encoder = publisher(running, name, "live/sub")
    send(encoder, [Item(VIDEO, 0, key(1))])
    assert played(watcher, key(1)) == [Item(VIDEO, 0, key(1))]
    for app in ("live/strict", "live/strict/sub", "cam"):
        with pytest.raises(Refused) as refused:
            player(running, name, app)
        assert refused.value.code == "NetStream.Play.StreamNotFound"


def test_the_application_of_a_stream_is_found_wherever_the_url_was_cut(server, raw, name):
    running = server("[applications]\n[[cam/one]]\n")
    wire = raw(running)
    wire.connect("cam")
    wire.command("publish", f"one/{name}", msid=wire.create_stream())
    assert codes([wire.status()]) == ["NetStream.Publish.Start"]
    other = raw(running)
    other.connect("cam")
    other.command("publish", f"two/{name}", msid=other.create_stream())
    assert codes([other.status()]) == ["NetStream.Publish.Denied"]
    assert other.rest() == []
    assert code_of(raw(running).connect("camera")) == "NetConnection.Connect.InvalidApp"


def test_streams_of_one_name_in_two_applications_are_separate(shared, publisher, player, name):
    watchers = [player(shared, name, app) for app in ("one", "two")]
    for number, app in enumerate(("one", "two")):
        send(publisher(shared, name, app), [Item(VIDEO, 0, key(number))])
    for number, watcher in enumerate(watchers):
        got = received(watcher, lambda one: isinstance(one, Item))
        assert got[-1] == Item(VIDEO, 0, key(number))


def test_headers_are_sent_at_once_and_not_again_with_the_first_frame(shared, publisher, player, name):
    witness = player(shared, name)
    encoder = publisher(shared, name)
    send_headers(encoder)
    assert played(witness, headers()[-1])[-1] == headers()[-1]
    late = player(shared, name)
    assert played(late, headers()[-1]) == headers()
    send(encoder, gop(0))
    assert played(late, gop(0)[-1]) == played(witness, gop(0)[-1]) == gop(0)


def test_a_player_that_joins_within_the_grace_of_an_orderly_unpublish_waits(server, publisher, player, name):
    running = server("[publish]\npublisher_grace_s = 60\n")
    encoder = publisher(running, name)
    send_headers(encoder)
    send(encoder, gop(0))
    assert played(player(running, name), gop(0)[-1]) == headers() + gop(0)
    encoder.unpublish()
    running.wait_for_line(f"stopped publishing live/{name}")
    late = player(running, name)
    encoder = publisher(running, name)
    send_headers(encoder)
    send(encoder, [Item(VIDEO, 0, key(77))])
    assert [one.payload for one in played(late, key(77))] == [*(one.payload for one in headers()), key(77)]


def test_a_player_that_joins_within_the_grace_of_a_lost_publisher_sees_its_last_picture(server, publisher, player, name):
    running = server("[publish]\npublisher_grace_s = 60\n")
    encoder = publisher(running, name)
    send_headers(encoder)
    send(encoder, gop(0))
    witness = player(running, name)
    played(witness, gop(0)[-1])
    encoder.close()
    running.wait_for_line(f"stopped publishing live/{name}")
    assert played(player(running, name), gop(0)[-1]) == headers() + gop(0)
