"""Publishers come, go, come back and get in each other's way; what players and the others notice of it."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from rtmpd.client import Client
from rtmpd.errors import Refused, TransportClosed
from rtmpd.protocol.message import MessageType, UserControlType, parse_user_control
from tests.integration.beside import wait_until, warning_about
from tests.integration.test_limits import reload
from tests.integration.test_metrics import metrics_port, scrape
from tests.integration.wire import (
    AUDIO,
    DATA,
    VIDEO,
    Item,
    begin,
    codes,
    gop,
    gops,
    inter,
    key,
    played,
    received,
    send,
    send_headers,
    status,
)

SHORT_GRACE = "[publish]\npublisher_grace_s = 0.5\n"


def reset(wire):
    """Close abruptly, as a host that crashes does."""
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@pytest.mark.parametrize("leave", ["reset", "close", "deleteStream", "closeStream"])
def test_a_publisher_that_returns_within_the_grace_keeps_its_players(shared, raw, player, name, leave):
    watcher, wire = player(shared, name), raw(shared).play(name)
    encoder = raw(shared).publish(name)
    begin(encoder, watcher, wire)
    if leave == "reset":
        reset(encoder)
    elif leave == "close":
        encoder.close()
    else:
        encoder.command(leave, *([1] if leave == "deleteStream" else []), tid=0, msid=encoder.msid)
    shared.wait_for_line(f"stopped publishing live/{name}")
    again = raw(shared).publish(name)
    send_headers(again)
    send(again, gop(0))
    got = received(watcher, lambda one: isinstance(one, Item) and one.payload == gop(0)[-1].payload)
    # Both begin at 0; players see the second go on after the first. Headers that they have are sent again after an orderly end.
    assert codes(got) == []
    headers = 0 if leave in ("reset", "close") else 2
    assert [one.payload for one in got if one.type_id != DATA][headers:] == [one.payload for one in gop(0)]
    stamps = [one.timestamp for one in got if one.type_id != DATA]
    assert stamps == sorted(stamps)
    assert 120 < stamps[0] < 20_000
    assert stamps[-1] - stamps[-8] == 120
    assert [one.timestamp for one in played(wire, gop(0)[-1]) if one.type_id != DATA] == stamps


def test_later_joiners_get_the_codecs_of_the_returned_publisher(shared, raw, player, name):
    first = player(shared, name)
    encoder = raw(shared).publish(name)
    begin(encoder, first)
    encoder.close()
    shared.wait_for_line(f"stopped publishing live/{name}")
    again = raw(shared).publish(name)
    vp6 = Item(VIDEO, 0, b"\x14\x00" + bytes(30))
    again.send(*vp6)
    assert played(first, vp6)[-1].payload == vp6.payload
    assert [one.payload for one in played(player(shared, name), vp6)] == [vp6.payload]


def test_after_the_grace_players_get_the_end_of_the_stream_after_the_last_frame_and_stay(server, raw, name):
    running = server(SHORT_GRACE)
    wire = raw(running).play(name)
    encoder = raw(running).publish(name)
    begin(encoder, wire)
    wire.seen.clear()
    send(encoder, gop(1))
    encoder.sync()
    reset(encoder)
    assert wire.user_control(UserControlType.STREAM_EOF) == (1, 0)
    assert [one for one in wire.media_seen() if one.type_id in (AUDIO, VIDEO, DATA)] == gop(1)
    assert codes(wire.commands_seen()) == ["NetStream.Play.UnpublishNotify"]
    assert wire.seen[-1].type_id == MessageType.COMMAND_AMF0
    again = raw(running).publish(name)
    wire.seen.clear()
    # They continue with its first keyframe, and are notified before that.
    send_headers(again)
    send(again, gop(0))
    assert wire.user_control(UserControlType.STREAM_BEGIN) == (1, 0)
    wire.status("NetStream.Play.PublishNotify")
    got = [one for one in played(wire, gop(0)[-1]) if one.type_id in (AUDIO, VIDEO)]
    assert [one.payload for one in got[2:]] == [one.payload for one in gop(0)]
    stamps = [one.timestamp for one in got]
    assert stamps == sorted(stamps)
    assert stamps[0] >= gop(1)[-1].timestamp


@pytest.mark.parametrize("state", ["waits for a keyframe", "is paused"])
def test_a_player_that_gets_no_media_is_notified_of_the_end_too(server, raw, name, state):
    running = server(SHORT_GRACE)
    wire = raw(running).play(name)
    encoder = raw(running).publish(name)
    wire.status("NetStream.Play.PublishNotify")
    if state == "is paused":
        begin(encoder, wire)
        wire.command("pause", True, 0, tid=0, msid=1)
        wire.status("NetStream.Pause.Notify")
    else:
        send_headers(encoder)
        encoder.sync()
    encoder.close()
    wire.sock.settimeout(4)
    wire.status("NetStream.Play.UnpublishNotify")
    assert wire.user_control(UserControlType.STREAM_EOF) == (1, 0)
    raw(running).publish(name)
    wire.status("NetStream.Play.PublishNotify")


def test_without_a_grace_players_get_the_end_of_the_stream_at_once(server, raw, player, name):
    running = server("[publish]\npublisher_grace_s = 0\n")
    watcher = player(running, name)
    encoder = raw(running).publish(name)
    begin(encoder, watcher)
    encoder.command("closeStream", tid=0, msid=1)
    encoder.status("NetStream.Unpublish.Success")
    assert codes(status(watcher, "NetStream.Play.UnpublishNotify", 0.9)) == ["NetStream.Play.UnpublishNotify"]


def test_a_player_joining_within_the_grace_gets_the_cache_and_a_later_player_waits(server, raw, player, name):
    running = server("[publish]\npublisher_grace_s = 1.5\n")
    witness = player(running, name)
    encoder = raw(running).publish(name)
    begin(encoder, witness)
    encoder.close()
    running.wait_for_line(f"stopped publishing live/{name}")
    within = player(running, name)
    assert len(played(within, gop(0)[-1])) == 11
    status(within, "NetStream.Play.UnpublishNotify")
    after = raw(running).play(name)
    after.sync()
    again = raw(running).publish(name)
    again.send(VIDEO, 5, key(50))
    assert received(after, lambda one: isinstance(one, Item))[-1].payload == key(50)


def test_a_second_publisher_is_refused_and_the_first_undisturbed(shared, raw, player, publisher, name):
    watcher = player(shared, name)
    encoder = publisher(shared, name)
    begin(encoder, watcher)
    second = raw(shared)
    second.connect()
    second.command("publish", name, "live", msid=second.create_stream())
    first_word = second.status()
    assert codes([first_word]) == ["NetStream.Publish.BadName"]
    second.close()
    warning = warning_about(shared, second)
    assert warning.endswith(
        f"publish refused: NetStream.Publish.BadName: live/{name} is already being published: on_conflict is refuse"
    )
    with pytest.raises(Refused) as refused:
        publisher(shared, name)
    assert refused.value.code == "NetStream.Publish.BadName"
    send(encoder, gops(1, 3))
    assert played(watcher, gop(3)[-1]) == gops(1, 3)


def test_a_silent_publisher_is_replaced_after_publisher_takeover_s(server, raw, player, name):
    running = server("[publish]\npublisher_takeover_s = 0.5\n")
    watcher = player(running, name)
    silent = raw(running).publish(name)
    begin(silent, watcher)
    newcomers = []

    def gets_in():
        newcomers.append(raw(running))
        newcomers[-1].connect()
        newcomers[-1].command("publish", name, msid=newcomers[-1].create_stream())
        return codes([newcomers[-1].status()]) == ["NetStream.Publish.Start"]

    # The connection stays open and silent: at first the publisher is protected, later not.
    assert not gets_in()
    wait_until(gets_in, "the newcomer gets in")
    assert silent.rest() == []
    running.wait_for_line(rf"WARNING .* live/{name}: its publisher has been silent for .* and is replaced by a new one")
    running.wait_for_line(rf"{silent.address} closed: another publisher took over")
    newcomers[-1].send(VIDEO, 0, key(9))
    got = received(watcher, lambda one: isinstance(one, Item) and one.payload == key(9))
    assert codes(got) == []
    assert got[-1].timestamp > gop(0)[-1].timestamp


def test_a_publisher_that_sends_is_not_replaced(server, raw, publisher, name):
    running = server("[publish]\npublisher_takeover_s = 0.5\n")
    encoder = raw(running).publish(name)
    for n in range(120):
        encoder.send(VIDEO, n * 10, inter(n) if n else key(n))
        encoder.available(0.01)
        if n % 15 == 14:
            with pytest.raises(Refused):
                publisher(running, name)
    encoder.sync()


def test_players_notice_nothing_of_a_publisher_on_another_stream(shared, raw, player, publisher, name):
    watcher = player(shared, name)
    encoder = publisher(shared, name)
    begin(encoder, watcher)
    for n in range(20):
        other = raw(shared).publish(f"{name}_{n}")
        send(other, gop(0))
        reset(other) if n % 2 else other.close()
    send(encoder, gops(1, 3))
    assert played(watcher, gop(3)[-1]) == gops(1, 3)


def test_a_publisher_whose_connection_the_server_closed_gets_an_error(server, opened, name):
    running = server("[server]\nread_timeout_s = 0.5\n")
    client = opened.enter_context(Client(running.url(name)))
    client.publish()
    running.wait_for_line("the publisher sent no message for 0.5 s")
    frames = [Item(VIDEO, n, key(n, 10_000)) for n in range(1000)]
    with pytest.raises(TransportClosed):
        send(client, frames)


def test_stream_begin_comes_on_message_stream_0_for_both_roles(shared, raw, name):
    encoder = raw(shared).publish(name)
    wire = raw(shared).play(name)
    for one in (encoder, wire):
        begins = [m for m in one.seen if m.type_id == 4 and parse_user_control(m).event == 0]
        assert [(parse_user_control(m).value, m.message_stream_id) for m in begins] == [(1, 0)]


def test_a_publisher_without_players_is_read_at_intervals_and_its_first_player_ends_that(server, raw, tmp_path):
    """With the longest interval the reads can be told from those of a publisher that is read as it sends."""
    running = server("[server]\nlazy_read_ms = 1000\n[metrics]\nmetrics_listen = 127.0.0.1:0\n")
    port = metrics_port(running)

    def ingested():
        return scrape(port)["rtmp_bytes_ingested_total",]

    encoder = raw(running).publish("a")
    send_headers(encoder)
    encoder.send(VIDEO, 0, key(0))
    number, waits = 0, []
    deadline = time.monotonic() + 30
    while len(waits) < 3 and time.monotonic() < deadline:
        number += 1
        before, begun = ingested(), time.monotonic()
        encoder.send(VIDEO, 40 * number, inter(number, 500))
        wait_until(lambda before=before: ingested() > before, "the message")
        if time.monotonic() - begun > 0.3:
            waits.append(time.monotonic() - begun)
    assert len(waits) == 3
    # A first player, in the middle of an interval, gets all of it at once, and what comes later.
    encoder.send(VIDEO, 40 * number + 40, inter(number + 1))
    watcher = raw(running).play("a")
    begun = time.monotonic()
    assert played(watcher, inter(number + 1))
    for later in range(number + 2, number + 12):
        encoder.send(VIDEO, 40 * later, inter(later))
        assert played(watcher, inter(later))
    assert time.monotonic() - begun < 3
    # A reload switches it off.
    watcher.close()
    reload(running, tmp_path, "[server]\nlazy_read_ms = 0\n[metrics]\nmetrics_listen = 127.0.0.1:0\n", "lazy_read_ms = 0")
    for later in range(100, 110):
        before, begun = ingested(), time.monotonic()
        encoder.send(VIDEO, 40 * later, inter(later))
        wait_until(lambda before=before: ingested() > before, "the message")
    encoder.close()
