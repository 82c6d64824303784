"""The process: signals, addresses to listen on, the way out."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import gevent
import pytest

from rtmpd.client import Client
from rtmpd.errors import Refused
from rtmpd.protocol.command import encode_command
from rtmpd.protocol.message import UserControlType
from tests.conftest import ROOT
from tests.integration.beside import Bystander, wait_until
from tests.integration.wire import VIDEO, Item, Wire, begin, codes, gop, inter, key, played, send


class Process:
    """An rtmpd without the flags of the `server` fixture, its log in a file."""

    def __init__(self, directory, ini: str) -> None:
        self.ini = directory / "plain.ini"
        self.ini.write_text(ini)
        self.path = directory / "log"
        with self.path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rtmpd", "-c", str(self.ini), "--listen", "127.0.0.1:0"],
                stderr=log,
                cwd=ROOT,
            )
        self.port = int(self.wait_for(r"listening on .*:(\d+)")[1])

    def wait_for(self, pattern: str, after: int = 0):
        found = []

        def look():
            found[:] = [m for m in [re.search(pattern, self.path.read_text()[after:])] if m]
            return bool(found)

        wait_until(look, f"{pattern} in the log")
        return found[0]

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(15) == 0


@pytest.fixture
def plain(tmp_path):
    """Return a function that starts a `Process`."""
    started = []

    def start(ini: str) -> Process:
        started.append(Process(tmp_path, ini))
        return started[-1]

    yield start
    for process in started:
        process.stop()


# SIGHUP


def test_hang_up_applies_a_changed_log_level(plain, raw):
    process = plain("[log]\nlevel = info\n")
    first = raw(process.port)
    first.connect()
    process.wait_for(f"{first.address} connected")
    process.ini.write_text("[log]\nlevel = debug\n")
    process.process.send_signal(signal.SIGHUP)
    process.wait_for("INFO +configuration reloaded")
    assert "DEBUG" not in process.path.read_text()
    # The connection that was open goes on.
    first.command("_checkbw")
    process.wait_for(rf"DEBUG +#1 {first.address} < '_checkbw'")


@pytest.mark.parametrize(
    ("broken", "problems"),
    [
        ("[server]\nlissen = :1\nping_interval_s = -3\n", [r":2: \[server\] lissen: ", r":3: \[server\] ping_interval_s: "]),
        ("[log\n", [":1: "]),
        (None, ["plain.ini"]),
    ],
    ids=["unknown and wrong options", "no INI", "no file"],
)
def test_hang_up_with_a_wrong_file_keeps_the_old_configuration(plain, raw, broken, problems):
    process = plain("[log]\nlevel = debug\n[live]\nwait_for_publisher = no\n")
    if broken is None:
        process.ini.unlink()
    else:
        process.ini.write_text(broken)
    process.process.send_signal(signal.SIGHUP)
    process.wait_for("ERROR +reload failed: .*; the old configuration stays in force")
    for problem in problems:
        process.wait_for(f"ERROR +reload failed: .*{problem}")
    wire = raw(process.port)
    wire.connect()
    wire.command("play", "nothing", msid=wire.create_stream())
    assert codes([wire.status()]) == ["NetStream.Play.StreamNotFound"]
    process.wait_for(rf"DEBUG +#1 {wire.address} < 'play'")


def test_hang_up_changes_options_of_running_streams_which_continue(server, tmp_path, name):
    running = server("[live]\nwait_for_publisher = yes\n")
    bystander = Bystander(running)
    bystander.check()
    (tmp_path / "rtmpd.ini").write_text("[live]\nwait_for_publisher = no\n[server]\nchunk_size_bytes = 4096\nlisten = :1\n")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line("configuration reloaded")
    running.wait_for_line(r"WARNING reload: \[server\] chunk_size_bytes keeps its old value until rtmpd is restarted")
    bystander.check()
    with pytest.raises(Refused) as refused, Client(running.url(name)) as client:
        client.play()
    assert refused.value.code == "NetStream.Play.StreamNotFound"
    with Client(running.url("bystander")) as client:
        client.play()
        played_something = next(one for one in client.messages() if getattr(one, "type_id", 0) == VIDEO)
        assert played_something.payload
    bystander.check()
    bystander.close()


def test_hang_up_many_times_under_load(server, name):
    running = server("[live]\n")
    bystander = Bystander(running)
    for _ in range(20):
        running.process.send_signal(signal.SIGHUP)
        bystander.check()
    bystander.close()


# SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_at_a_stop_players_get_the_last_frame_and_then_the_end_of_the_stream(server, raw, name, number):
    running = server()
    wire = raw(running).play(name)
    encoder = raw(running).publish(name)
    begin(encoder, wire)
    wire.seen.clear()
    send(encoder, gop(1))
    encoder.sync()
    begun = time.monotonic()
    running.process.send_signal(number)
    assert wire.user_control(UserControlType.STREAM_EOF) == (1, 0)
    assert codes(wire.commands_seen()) == ["NetStream.Play.UnpublishNotify"]
    assert wire.media_seen() == gop(1)
    assert wire.rest() == []
    assert encoder.rest() == []
    assert running.process.wait(10) == 0
    assert time.monotonic() - begun < 5
    running.wait_for_line("stopping: 1 stream, 2 connections")
    running.wait_for_line(r" INFO +stopped\b")


def test_a_player_that_waits_for_a_stream_is_closed_on_the_way_out(server, raw, name):
    running = server()
    wire = raw(running).play(name)
    shaking = raw(running)
    shaking.write(b"\x03" + bytes(700))
    wire.sync()
    running.process.terminate()
    wire.rest()
    assert shaking.read_bytes() == b""
    assert running.process.wait(10) == 0


def test_a_stuck_player_can_not_hold_up_the_way_out(server, raw, name):
    running = server("[server]\ndrain_timeout_s = 1\n")
    fast = raw(running).play(name)
    encoder = raw(running).publish(name)
    encoder.send(VIDEO, 0, key(0))
    played(fast, key(0))
    raw(running, receive_buffer=4096).play(name)
    for n in range(1, 100):
        encoder.send(VIDEO, n, inter(n, 60_000))
        assert played(fast, inter(n, 60_000)) == [Item(VIDEO, n, inter(n, 60_000))]
    begun = time.monotonic()
    running.process.terminate()
    assert fast.user_control(UserControlType.STREAM_EOF) == (1, 0)
    assert running.process.wait(10) == 0
    assert time.monotonic() - begun < 5


def test_new_connections_are_refused_once_the_server_stops(server, raw):
    running = server()
    raw(running).connect()
    running.process.terminate()
    assert running.process.wait(10) == 0
    with pytest.raises(ConnectionRefusedError):
        Wire(running)


# Addresses


def test_a_port_in_use_ends_the_start_with_exit_code_1_and_a_clear_line(server):
    running = server()
    second = subprocess.run(
        [sys.executable, "-m", "rtmpd", "--listen", "127.0.0.1:0", "--listen", f"127.0.0.1:{running.port}"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )
    assert second.returncode == 1
    problem = f"can't listen on 127.0.0.1:{running.port}: Address already in use: another process listens on it"
    assert re.search(rf"ERROR +{re.escape(problem)}$", second.stderr, re.MULTILINE)
    assert "Traceback" not in second.stderr
    with Client(running.url()) as client:
        client.connect()


def test_ipv6(server, raw, opened, name):
    running = server("", "--listen", "[::1]:0")
    port = int(running.wait_for_line(r"listening on \[::1\]:(\d+)")[1])
    wire = raw(port, host="::1").play(name)
    running.wait_for_line(rf"{re.escape(wire.address)} plays live/{name}")
    encoder = opened.enter_context(Client(f"rtmp://[::1]:{port}/live/{name}"))
    encoder.publish()
    encoder.send_video(0, key(1))
    assert played(wire, key(1)) == [Item(VIDEO, 0, key(1))]


def test_several_addresses_serve_the_same_streams(server, raw, name):
    running = server("", "--listen", "127.0.0.2:0", "--listen", "localhost:0")
    wait_until(lambda: sum("listening on" in line for line in running.log()) == 3, "three addresses")
    ports = [(m[1], int(m[2])) for m in map(re.compile(r"listening on ([^:]+):(\d+)$").search, running.log()) if m]
    assert [host for host, _ in ports] == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
    watchers = [raw(port, host=host).play(name) for host, port in ports]
    encoder = raw(ports[1][1], host=ports[1][0]).publish(name)
    encoder.send(VIDEO, 0, key(1))
    for watcher in watchers:
        assert played(watcher, key(1)) == [Item(VIDEO, 0, key(1))]


def test_an_empty_host_is_every_address_and_ipv4_peers_are_logged_as_such(server, raw, name):
    running = server("", "--listen", ":0")
    port = int(running.wait_for_line(r"listening on \[::\]:(\d+)")[1])
    wire = raw(port)
    wire.connect()
    running.wait_for_line(rf" {re.escape(wire.address)} connected")
    raw(port, host="::1").connect()


@pytest.fixture
def unread(tmp_path):
    """Start an rtmpd whose log is not read after its first lines, and fill the log; return process, pipe and port."""
    reading, writing = os.pipe()
    (tmp_path / "rtmpd.ini").write_text("[log]\nqueue_limit = 100\n[limits]\ncommand_limit = 1000000\n")
    command = [sys.executable, "-m", "rtmpd", "-c", str(tmp_path / "rtmpd.ini")]
    process = subprocess.Popen([*command, "--listen", "127.0.0.1:0", "--log-level", "debug"], stderr=writing, cwd=ROOT)
    os.close(writing)
    with os.fdopen(reading, "rb") as log:
        line = b""
        while b"listening on" not in line:
            line = log.readline()
        port = int(line.rsplit(b":", 1)[1])
        with Wire(port) as wire:
            # Before a publish a client may send only a few messages.
            wire.publish("chatter")
            # Far more lines than the pipe and the queue hold.
            for _ in range(20):
                wire.write(wire.frame(20, 0, encode_command("xyz", 0), 3, 0) * 500)
                wire.sync()
        yield process, log, port
    process.kill()
    process.wait()


def test_a_log_pipe_without_a_reader_does_not_stop_the_media(unread, raw, name):
    _, _, port = unread
    watcher = raw(port).play(name)
    encoder = raw(port).publish(name)
    encoder.send(VIDEO, 0, key(1))
    assert played(watcher, key(1)) == [Item(VIDEO, 0, key(1))]


def test_a_log_pipe_that_is_read_again_continues_and_the_stop_is_clean(unread, raw):
    process, log, port = unread
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(log), daemon=True)
    reader.start()

    def logged():
        # Until the queue has room a line may be dropped.
        wire = raw(port)
        wire.connect()
        gevent.sleep(0.02)
        return any(wire.address.encode() in line for line in lines)

    wait_until(logged, "the log goes on")
    process.terminate()
    assert process.wait(10) == 0
    reader.join(10)
    assert not [line for line in lines if b"Traceback" in line]


def test_a_log_pipe_without_a_reader_does_not_delay_the_stop(unread):
    process, _, _ = unread
    process.terminate()
    assert process.wait(8) == 0
