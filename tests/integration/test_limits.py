"""Limits of connections, streams, players, bitrate, memory and open files: what happens above each, to one client only."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtmpd.protocol import message
from tests.conftest import ROOT
from tests.integration.beside import Bystander, wait_until
from tests.integration.test_backpressure import Flood, stuck
from tests.integration.test_metrics import metrics_port, scrape
from tests.integration.wire import HANDSHAKE_BYTES, VIDEO, Wire, code_of, inter, key, played

FAILED = "NetStream.Failed"
PLAY_FAILED = "NetStream.Play.Failed"


def reload(running, path, ini, shown):
    """Have a server read another configuration; *shown* is what its log says of it."""
    (path / "rtmpd.ini").write_text(ini)
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line(f"configuration reloaded: .*{re.escape(shown)}")


def refused(wire, command, name):
    """Ask for something that is refused; return code and text. The connection must end."""
    wire.connect()
    wire.command(command, name, msid=wire.create_stream())
    info = wire.status().argument(0)
    assert info["level"] == "error"
    assert wire.rest() == []
    return info["code"], info["description"]


# Connections ------------------------------------------------------------------------------------------------------------


def rush(running, count, source):
    """Connect so often at once; return how many were let in, and how long it took."""
    begun = time.monotonic()
    wires = [Wire(running, source=source) for _ in range(count)]
    took_s = time.monotonic() - begun
    let_in = 0
    for wire in wires:
        with contextlib.suppress(ConnectionError):
            wire.write(b"\x03" + bytes(HANDSHAKE_BYTES))
            let_in += bool(wire.read_bytes())
        wire.close()
    return let_in, took_s


def test_of_many_connections_at_once_only_so_many_are_let_in(server, tmp_path):
    running = server("[limits]\nconnection_rate_limit = 5\n[metrics]\nmetrics_listen = 127.0.0.1:0\n")
    bystander = Bystander(running)
    let_in, took_s = rush(running, 100, "127.88.0.1")
    assert 10 <= let_in <= 11 + 5 * took_s
    # Other addresses are not affected.
    assert rush(running, 5, "127.88.0.2")[0] == 5
    bystander.check()
    lines = [line for line in running.log() if "refused" in line]
    assert len(lines) == 1
    assert re.search(
        r"WARNING connection from 127\.88\.0\.1:\d+ refused: connection_rate_limit is 5 per second \(1 refused so far\)$",
        lines[0],
    )
    assert scrape(metrics_port(running))["rtmpd_failures_total", "connections_refused"] == 100 - let_in
    reload(running, tmp_path, "[limits]\nconnection_rate_limit = 0\n", "[limits] connection_rate_limit = 0")
    assert rush(running, 40, "127.88.0.1")[0] == 40
    bystander.close()


# Streams and players ----------------------------------------------------------------------------------------------------


def test_a_stream_above_the_limit_is_refused_and_the_others_continue(server, raw, tmp_path):
    running = server("[limits]\nstream_limit = 2\nwaiting_stream_limit = 1\n")
    bystander = Bystander(running)
    waiting = raw(running).play("a")
    assert refused(raw(running), "play", "b") == (PLAY_FAILED, "Too many streams are waited for.")
    running.wait_for_line(r"WARNING .* play refused: NetStream\.Play\.Failed: waiting_stream_limit is 1$")
    # The name that a player waits for takes no publisher's place.
    publisher = raw(running).publish("a")
    publisher.send(VIDEO, 0, key(0))
    assert played(waiting, key(0))
    assert refused(raw(running), "publish", "b") == (FAILED, "The server has too many streams.")
    running.wait_for_line(r"WARNING .* publish refused: NetStream\.Failed: stream_limit is 2$")
    raw(running).play("b")
    bystander.check()
    ini = "[limits]\nstream_limit = 3\nwaiting_stream_limit = 1\n"
    reload(running, tmp_path, ini, "[limits] stream_limit = 3")
    raw(running).publish("b")
    assert refused(raw(running), "publish", "c")[0] == FAILED
    bystander.close()


def test_a_player_above_the_limit_of_its_application_is_refused(server, raw, tmp_path):
    ini = "[limits]\nplayers_per_stream_limit = {}\n[applications]\n[[live]]\n[[small]]\nplayers_per_stream_limit = 1\n"
    running = server(ini.format(2))
    first, _ = raw(running).play("a"), raw(running).play("a")
    third = raw(running)
    assert refused(third, "play", "a") == (PLAY_FAILED, "live/a has too many players.")
    running.wait_for_line(rf"{third.address} play refused: NetStream\.Play\.Failed: players_per_stream_limit is 2$")
    raw(running).play("b")
    raw(running).play("a", app="small")
    small = raw(running)
    small.connect("small")
    small.command("play", "a", msid=small.create_stream())
    assert code_of(small.status()) == PLAY_FAILED
    # A client that disconnects frees a place.
    first.close()
    running.wait_for_line(f"{first.address} closed")
    raw(running).play("a")
    assert refused(raw(running), "play", "a")[0] == PLAY_FAILED
    reload(running, tmp_path, ini.format(3), "[limits] players_per_stream_limit = 3")
    raw(running).play("a")
    assert refused(raw(running), "play", "a")[0] == PLAY_FAILED


# The bitrate of publishers ----------------------------------------------------------------------------------------------


class Encoder:
    """Publishes about 800 kbit/s in a thread until the server closes the connection, and keeps the statuses."""

    def __init__(self, wire, name, app="live"):
        self.wire = wire.publish(name, app)
        self.statuses = []
        self.ended = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        number = 0
        while not self._over.wait(0.05):
            with contextlib.suppress(ConnectionError):
                self.wire.send(VIDEO, number * 50, inter(number, 5000) if number % 20 else key(number, 5000))
            number += 1
            try:
                self.statuses += [one for one in self.wire.available() if one.type_id == 20]
            except AssertionError:
                # The server has closed the connection.
                self.ended = True
                return

    def close(self):
        self._over.set()
        self._thread.join()


BITRATE = "[limits]\npublish_bitrate_limit = 400k\npublish_bitrate_grace_s = 1\npublish_bitrate_action = {}\n"


def test_a_publisher_above_the_bitrate_limit_is_disconnected_with_a_reason(server, raw):
    ini = BITRATE.format("disconnect") + "[applications]\n[[live]]\n[[large]]\npublish_bitrate_limit = 2M\n"
    running = server(ini)
    encoder, other = Encoder(raw(running), "a"), Encoder(raw(running), "a", "large")
    watcher = raw(running).play("a")
    wait_until(lambda: encoder.ended, "the end of the publisher")
    (message,) = encoder.statuses
    assert b"NetStream.Publish.Rejected" in message.payload
    assert re.search(rb"The bitrate is too high: \d+ kbit/s, and 400 kbit/s are allowed\.", message.payload)
    line = running.wait_for_line(
        rf"WARNING .*{encoder.wire.address} live/a: the publisher sends (\d+) kbit/s, and has sent more than 400 kbit/s "
        r"for 1 s \(publish_bitrate_limit\): it is disconnected"
    )
    assert 500 < int(line[1]) < 1000
    running.wait_for_line(rf"{encoder.wire.address} stopped publishing live/a: publish_bitrate_limit; ")
    running.wait_for_line(rf"{encoder.wire.address} closed: publish_bitrate_limit; ")
    # Its players are kept, and another publisher may come; an application with a higher limit is left alone.
    watcher.sync()
    again = raw(running).publish("a")
    again.send(VIDEO, 0, key(7))
    assert played(watcher, key(7))
    assert not other.ended
    other.close()
    encoder.close()


def test_a_publisher_that_sends_too_much_may_be_only_warned_of_until_a_reload(server, raw, tmp_path):
    metrics = "[metrics]\nmetrics_listen = 127.0.0.1:0\n"
    running = server(metrics)
    encoder = Encoder(raw(running), "a")
    reload(running, tmp_path, BITRATE.format("warn") + metrics, "publish_bitrate_action = warn")
    running.wait_for_line(r"WARNING .* live/a: the publisher sends .*: it may continue")
    assert scrape(metrics_port(running))["rtmpd_publish_bitrate_exceeded_total",] == 1
    assert not encoder.ended
    reload(running, tmp_path, BITRATE.format("disconnect") + metrics, "publish_bitrate_action = disconnect")
    wait_until(lambda: encoder.ended, "the end of the publisher")
    assert scrape(metrics_port(running))["rtmpd_publish_bitrate_exceeded_total",] == 2
    assert sum("it may continue" in line for line in running.log()) == 1
    encoder.close()


# Memory -----------------------------------------------------------------------------------------------------------------

# Nothing but the limit of memory keeps what players do not take.
ENDLESS = """
[server]
unsent_limit_bytes = 16384
write_timeout_s = 600
[backpressure]
lag_limit_bytes = 1G
lag_limit_s = 3600
[metrics]
metrics_listen = 127.0.0.1:0
"""


def test_streams_with_stuck_players_stay_below_the_limit_and_others_lose_nothing(server, raw):
    running = server(ENDLESS + "[limits]\nmemory_limit_bytes = 16M\n", level="info")
    port = metrics_port(running)
    floods = [Flood(running, raw, f"s{number}") for number in range(4)]
    slow = [stuck(running, raw, f"s{number}") for number in range(4) for _ in range(2)]
    before_mb = running.rss_mb()
    most = 0.0
    for _ in range(30):
        for flood in floods:
            flood.send(25)
        most = max(most, scrape(port)["rtmpd_wire_log_bytes",])
    # 60 MB were published.
    assert 12e6 < most < 18e6
    assert running.rss_mb() - before_mb < 30
    for flood in floods:
        flood.check()
    assert scrape(port)["rtmpd_memory_sheds_total",] > 4
    line = running.wait_for_line(
        r"WARNING memory_limit_bytes is 16777216, and streams and connections held up to (\d+) bytes, most of all live/"
    )
    assert 16 << 20 < int(line[1]) < 18 << 20
    # Players that have skipped continue with whole messages, at a keyframe.
    last = floods[0].sent[-1]
    got = [one for one in played(slow[0], last, limit_s=20) if one.type_id == VIDEO]
    assert set(got[1:]) <= set(floods[0].sent)


def test_above_the_memory_limit_further_publishes_are_refused(server, raw, tmp_path):
    running = server(ENDLESS)
    bystander = Bystander(running)
    watcher = raw(running).play("a")
    publisher = raw(running).publish("a")
    publisher.send(VIDEO, 0, key(0, 1000))
    assert played(watcher, key(0, 1000))
    # One group of pictures that exceeds the limit alone.
    for number in range(1, 20):
        publisher.send(VIDEO, number * 40, inter(number, 1_000_000))
        assert len(played(watcher, inter(number, 1_000_000))) == 1
    raw(running).publish("b")
    assert scrape(metrics_port(running))["rtmpd_wire_log_bytes",] > 19e6
    reload(running, tmp_path, ENDLESS + "[limits]\nmemory_limit_bytes = 16M\n", "memory_limit_bytes = 16777216")
    running.wait_for_line(r"WARNING memory_limit_bytes is 16777216, .* [1-9]\d* what they kept for new players")
    assert scrape(metrics_port(running))["rtmpd_wire_log_bytes",] < 2e6
    assert refused(raw(running), "publish", "c") == (FAILED, "The server has too little memory.")
    running.wait_for_line(
        r"publish refused: NetStream\.Failed: memory_limit_bytes is 16777216, and was exceeded less than 10 s ago"
    )
    publisher.send(VIDEO, 1000, inter(99))
    assert len(played(watcher, inter(99))) == 1
    bystander.check()
    reload(running, tmp_path, ENDLESS, "memory_limit_bytes = 0")
    raw(running).publish("c")
    bystander.close()


def begin_message(wire, type_id, size=8 << 20):
    """Send nearly all of a long message, as far as the server takes it."""
    data = message.frame_message(6, type_id, wire.msid, 0, b"\x17\x01\0\0\0" + bytes(size - 5), wire.chunk_size)
    with contextlib.suppress(ConnectionError):
        for position in range(0, len(data) * 31 // 32, 1 << 16):
            wire.write(data[position : position + (1 << 16)])


MEMORY = "[limits]\nmemory_limit_bytes = 64M\n[metrics]\nmetrics_listen = 127.0.0.1:0\n"


def test_long_messages_of_many_publishers_stay_below_the_memory_limit_and_others_lose_nothing(server, raw):
    running = server(MEMORY, level="info")
    bystander = Bystander(running)
    port = metrics_port(running)
    idle = raw(running)
    idle.connect()
    before_mb, most_mb = running.rss_mb(), 0.0
    for number in range(20):
        begin_message(raw(running).publish(f"s{number}"), VIDEO)
        most_mb = max(most_mb, running.rss_mb())
        bystander.check()
    assert most_mb - before_mb < 64 * 1.25
    line = running.wait_for_line(
        r"WARNING memory_limit_bytes is 67108864, and buffers of connections took more than half of it: (\d+) connections, "
        r"which held (\d+) bytes, were closed, first that of \S+; now streams and connections hold (\d+) bytes$"
    )
    assert 1 <= int(line[1]) <= 4
    assert int(line[2]) > 7 << 20
    assert int(line[3]) <= 64 << 20
    running.wait_for_line(r"closed: memory_limit_bytes is exceeded, and it holds \d+ bytes; ")
    # 160 MB were sent, and less than 64 are held.
    figures = scrape(port)
    assert 12 <= figures["rtmpd_failures_total", "memory_closes"] <= 16
    assert 20e6 < figures["rtmpd_connection_buffer_bytes",] < 64 << 20
    # Those who hold nothing are left alone.
    idle.sync()
    bystander.check()
    bystander.close()


def half_a_message_before_connect(wire):
    wire.write(b"\x03" + bytes(HANDSHAKE_BYTES))
    wire.write(bytes(HANDSHAKE_BYTES))
    wire.msid = 0
    begin_message(wire, 20)


def half_a_message_of_a_waiting_player(wire):
    wire.play("nothing")
    begin_message(wire, 20)


def long_names(wire):
    wire.connect()
    for _ in range(16):
        wire.command("play", "\N{GRINNING FACE}" + "x" * 1_000_000, msid=wire.create_stream())


def long_urls(wire):
    wire.connect("a" * 1_000_000, tcUrl="rtmp://host/" + "/" * 1_000_000)


def unread_pings(wire):
    wire.play("nothing")
    pings = message.user_control(6, 1, chunk_size=128) * 1000
    for _ in range(400):
        wire.write(pings)


@pytest.mark.parametrize(
    "attack",
    [half_a_message_before_connect, half_a_message_of_a_waiting_player, long_names, long_urls, unread_pings],
    ids=lambda attack: attack.__name__,
)
def test_clients_that_do_not_publish_hold_little_memory(server, raw, attack):
    running = server(MEMORY)
    bystander = Bystander(running)
    before_mb = running.rss_mb()

    def connect(_):
        with contextlib.suppress(ConnectionError, AssertionError):
            attack(raw(running, receive_buffer=4096))

    # At the same time: writing to a server that has stopped reading waits for seconds.
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(connect, range(20)))
    assert running.rss_mb() - before_mb < 16
    assert scrape(metrics_port(running))["rtmpd_connection_buffer_bytes",] < 8e6
    bystander.check()
    bystander.close()


# Open files -------------------------------------------------------------------------------------------------------------


def test_more_connections_than_open_files_are_no_start(tmp_path):
    (tmp_path / "rtmpd.ini").write_text("[server]\nlisten = 127.0.0.1:0\n[limits]\nconnection_limit = 1000\n")
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", sys.executable, "-m", "rtmpd", "-c", tmp_path / "rtmpd.ini"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(
        r"ERROR +connection_limit = 1000 needs 1066 open files \(1000 connections, 2 addresses, 64 spare\), "
        r"but the hard limit is 200: lower connection_limit, or raise "
        r"the hard limit \(LimitNOFILE= in the unit, ulimit -Hn in a shell\)$",
        done.stderr,
        re.MULTILINE,
    )
    assert "Traceback" not in done.stderr


def test_connections_fit_the_open_files_and_an_explicit_limit_that_does_not_fit_fails_a_reload(server, raw, tmp_path):
    running = server("[live]\n", level="info")
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (200, 200))
    (tmp_path / "rtmpd.ini").write_text("[limits]\nconnection_limit = 1000\n")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line(
        r"ERROR +reload failed: connection_limit = 1000 needs 1065 open files .*, but the hard limit is 200: .*; "
        r"the old configuration stays in force$"
    )
    (tmp_path / "rtmpd.ini").write_text("[limits]\nstream_limit = 7\n")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line(
        r"WARNING connection_limit = 0 means 135 connections here, not 10000: the hard limit of open files is 200"
    )
    running.wait_for_line(r"configuration reloaded: \[limits\] stream_limit = 7$")
    # All of them fit, and whoever comes then is refused, not left waiting for a descriptor.
    wires = [raw(running) for _ in range(135)]
    for wire in wires:
        wire.connect()
    with pytest.raises((ConnectionError, AssertionError)):
        raw(running).connect()
    running.wait_for_line(r"refused: connection_limit is 135 \(1 refused so far\)$")
    for wire in wires:
        wire.sync()
    assert not [line for line in running.log() if "Too many open files" in line]
