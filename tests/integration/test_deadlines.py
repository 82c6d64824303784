"""Peers that take their time, and too many of them: every wait has a deadline, every number a bound."""

from __future__ import annotations

import itertools
import re
import select
import time

import pytest

from rtmpd.client import Client
from rtmpd.errors import TransportClosed
from rtmpd.protocol import message
from rtmpd.protocol.message import UserControlType
from tests.integration.beside import warning_about
from tests.integration.wire import HANDSHAKE_BYTES, VIDEO, Wire, key, sound

INI = """
[server]
handshake_timeout_s = 0.6
connect_timeout_s = 1
idle_timeout_s = 3
read_timeout_s = 1
ping_interval_s = 0.3
ping_timeout_s = 1
"""
SLACK_S = 5  # a sweep's second, and a busy machine


@pytest.fixture(autouse=True)
def unnoticed(bystander):
    """Whatever a test does, a publisher and its player go on: pings are answered, frames flow."""
    yield
    bystander.check()


def cut(server, wire, text, begun, limit_s):
    """Assert that the server ended the connection in time and said why in one warning."""
    wire.rest()
    lasted_s = time.monotonic() - begun
    assert limit_s * 0.9 < lasted_s < limit_s + SLACK_S
    warning = warning_about(server, wire)
    assert re.fullmatch(rf"#\d+ {re.escape(wire.address)} {text}(?: \[live/.*\])?", warning), warning


def drip(wire, data, pause_s):
    """Write a byte at a time until the server has closed the connection."""
    for byte in data:
        try:
            wire.write(bytes([byte]))
        except ConnectionError:
            return
        if select.select([wire.sock], [], [], pause_s)[0] and not wire.read_bytes():
            return
    raise AssertionError("the server never closed the connection")


HELLO = b"\x03" + bytes(HANDSHAKE_BYTES)


def test_truncated_handshakes_end_at_the_deadline(shared, raw):
    begun = time.monotonic()
    wires = []
    for data in (b"", HELLO[:1], HELLO[:700], HELLO, HELLO + bytes(HANDSHAKE_BYTES - 1)):
        wire = raw(shared)
        wire.write(data)
        if len(data) >= len(HELLO):
            wire.read_exactly(1 + 2 * HANDSHAKE_BYTES)
        wires.append(wire)
    for wire in wires:
        cut(shared, wire, "handshake: handshake took longer than 0.6 s", begun, 0.6)


def test_a_byte_at_a_time_does_not_move_the_handshakes_deadline(shared, raw):
    begun = time.monotonic()
    wire = raw(shared)
    drip(wire, HELLO, 0.02)
    cut(shared, wire, "handshake: handshake took longer than 0.6 s", begun, 0.6)


def test_neither_publish_nor_play_within_the_connect_timeout(shared, raw):
    begun = time.monotonic()
    connected, shaken = raw(shared), raw(shared).handshake()
    connected.connect()
    connected.create_stream()
    cut(shared, connected, "command: neither published nor played within 1 s", begun, 1)
    cut(shared, shaken, "connect: neither published nor played within 1 s", begun, 1)


def test_pings_and_commands_do_not_move_the_connect_deadline(shared, raw):
    begun = time.monotonic()
    wire = raw(shared)
    wire.connect()
    ping = message.user_control(UserControlType.PING_REQUEST, 1, chunk_size=wire.chunk_size)
    drip(wire, ping * 100, 0.01)
    cut(shared, wire, "command: neither published nor played within 1 s", begun, 1)


def test_a_command_a_byte_at_a_time_does_not_move_the_connect_deadline(shared, raw):
    begun = time.monotonic()
    wire = raw(shared).handshake()
    drip(wire, b"\x03\0\0\0\0\x10\0\x14\0\0\0\0" + bytes(1000), 0.02)
    cut(shared, wire, "connect: neither published nor played within 1 s", begun, 1)


def test_a_silent_publisher_that_answers_no_ping_is_disconnected(shared, raw, name):
    wire = raw(shared).publish(name)
    wire.answers_pings = False
    wire.send(VIDEO, 0, key(1))
    cut(shared, wire, "publish: the publisher sent no message for 1 s", time.monotonic(), 1)


def test_a_player_that_answers_no_ping_is_cut(shared, raw, name):
    begun = time.monotonic()
    wire = raw(shared).play(name)
    wire.answers_pings = False
    cut(shared, wire, "play: no answer to a ping for 1 s", begun, 1.3)
    pings = [one for one in wire.seen if one.type_id == 4]
    assert pings


def test_a_player_that_answers_pings_may_stay_though_nothing_is_published(shared, raw, name):
    wire = raw(shared).play(name)
    begun = time.monotonic()
    while time.monotonic() - begun < 3:
        wire.available(0.1)
    wire.sync()


def test_row_71_a_player_that_only_reads_is_kept_while_its_socket_takes_media(shared, raw, name):
    sender, wire = raw(shared).publish(name), raw(shared).play(name)
    # go2rtc does so. The publisher answers no pings either.
    wire.answers_pings = sender.answers_pings = False
    begun, number = time.monotonic(), 0
    while time.monotonic() - begun < 5:
        sender.send(VIDEO, number * 40, key(number))
        assert wire.until(lambda one: one.type_id == VIDEO).payload == key(number)
        number += 1
        sender.available(0.04)
    sender.close()
    cut(shared, wire, "play: no answer to a ping for 1 s", time.monotonic(), 1)


@pytest.mark.parametrize("answers", [True, False])
def test_after_unpublish_a_connection_may_be_idle_for_the_idle_timeout_if_it_answers_pings(shared, raw, name, answers):
    wire = raw(shared).publish(name)
    wire.command("closeStream", tid=0, msid=1)
    wire.status("NetStream.Unpublish.Success")
    wire.answers_pings = answers
    if answers:
        cut(shared, wire, "command: idle for 3 s after the last publish or play", time.monotonic(), 3)
    else:
        cut(shared, wire, "command: no answer to a ping for 1 s", time.monotonic(), 1)


def test_row_73_a_client_that_stops_one_publish_may_begin_another_after_the_connect_timeout(shared, raw, name):
    wire = raw(shared).publish(name)
    wire.command("closeStream", tid=0, msid=1)
    wire.status("NetStream.Unpublish.Success")
    begun = time.monotonic()
    while time.monotonic() - begun < 2.2:
        wire.available(0.1)
    wire.command("publish", name, "live", tid=0, msid=1)
    wire.status("NetStream.Publish.Start")


# Numbers


def test_connections_over_the_limit_are_refused_until_another_ends(server, raw, name):
    running = server("[limits]\nconnection_limit = 3\n")
    first = raw(running).publish(name)
    watcher = raw(running).play(name)
    third = raw(running)
    third.connect()
    for _ in range(3):
        fourth = raw(running)
        assert fourth.read_bytes() == b""
    third.close()
    running.wait_for_line(f"{third.address} closed")
    warnings = [line for line in running.log() if "WARNING" in line and "refused" in line]
    assert len(warnings) == 1, "a storm of refusals must not flood the log"
    assert re.search(
        r"WARNING connection from 127\.77\.\d+\.\d+:\d+ refused: connection_limit is 3 \(1 refused so far\)$", warnings[0]
    )
    raw(running).connect()
    first.send(VIDEO, 0, key(1))
    assert watcher.until(lambda one: one.type_id == VIDEO).payload == key(1)


def test_connections_over_the_limit_of_an_address_are_refused_and_those_of_others_are_not(server, raw):
    running = server("[limits]\nconnections_per_address_limit = 2\n")
    ours = [raw(running, source="127.88.0.1") for _ in range(2)]
    for wire in ours:
        wire.connect()
    over = raw(running, source="127.88.0.1")
    assert over.read_bytes() == b""
    running.wait_for_line(rf"WARNING connection from {re.escape(over.address)} refused: connections_per_address_limit is 2 ")
    raw(running, source="127.88.0.2").connect()
    ours[0].close()
    running.wait_for_line(f"{ours[0].address} closed")
    raw(running, source="127.88.0.1").connect()


def test_a_refused_client_sees_a_closed_connection(server, raw):
    running = server("[limits]\nconnection_limit = 1\n")
    raw(running).connect()
    with Client(running.url()) as client, pytest.raises(TransportClosed):
        client.connect()


def test_many_fast_connections_leave_nothing_behind(server):
    running = server("", level="info")
    before = running.rss_mb()
    wires = []
    for _ in range(300):
        wires.append(Wire(running))
        wires[-1].write(HELLO[:100])
    for wire in wires:
        wire.close()
    for wire in wires:
        running.wait_for_line(f"{wire.address} closed: closed by the peer")
    assert running.rss_mb() < before + 20
    running.stop()
    running.wait_for_line("stopping: 0 streams, 0 connections")


def test_bursts_of_commands_within_the_limit_are_accepted_every_ten_seconds(server, raw):
    running = server("[limits]\ncommand_limit = 50\n")
    wire = raw(running)
    wire.connect()
    answers = [wire.call("_checkbw") for _ in range(49)]
    assert {answer.name for answer in answers} == {"_result"}
    wire.command("_checkbw")
    wire.rest()
    assert "command_limit" in warning_about(running, wire)


def test_media_is_no_command_and_has_no_such_limit(server, raw, name):
    running = server("[limits]\ncommand_limit = 10\n")
    wire = raw(running).publish(name)
    wire.write(b"".join(wire.frame(8, n, sound(n)) for n in itertools.islice(itertools.count(), 5000)))
    wire.sync()
