"""The process as a service: what it tells systemd, sockets that it is handed, users, signals. systemd is played by the test."""

from __future__ import annotations

import os
import pwd
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gevent
import pytest
from gevent.socket import create_connection

from rtmpd.client import Client
from rtmpd.protocol.command import encode_command
from tests.conftest import ROOT
from tests.integration.beside import Bystander, wait_until
from tests.integration.wire import Wire, key

LIMIT_S = 20
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

# A process in which the event loop is blocked permanently, once a stream is published.
_BLOCKED = """
import sys, time
from rtmpd.rtmp.publisher import Publisher
Publisher.start = lambda *_: time.sleep(1000)
from rtmpd.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Manager:
    """The role of systemd: receives notifications, passes sockets, and restarts the service."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self.ini = directory / "rtmpd.ini"
        self.ini.write_text("[server]\nlisten = 127.0.0.1:0\n")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(self.path))
        # Every process may send notifications.
        self.path.chmod(0o777)
        # Another user is to get here, however deep pytest has put it.
        for parent in (directory, *directory.parents):
            if parent == Path(tempfile.gettempdir()):
                break
            parent.chmod(0o755)
        self.log = directory / "log"
        self.processes: list[subprocess.Popen] = []

    def start(self, *sockets, names="", watchdog_s=0.0, program=("-m", "rtmpd"), environment=(), **options):
        """Start the service; the sockets become its descriptors 3, 4 and so on."""
        variables = {**os.environ, "NOTIFY_SOCKET": str(self.path), **dict(environment)}
        if watchdog_s:
            variables["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))

        # A shell in between has the number of the process that it becomes, and moves the descriptors.
        moves = " ".join(f"{3 + index}<&{sock.fileno()}" for index, sock in enumerate(sockets))
        closed = " ".join(f"{sock.fileno()}<&-" for sock in sockets if sock.fileno() >= 3 + len(sockets))
        handed = f"LISTEN_PID=$$ LISTEN_FDS={len(sockets)} LISTEN_FDNAMES={names}" if sockets else ""
        script = f'export WATCHDOG_PID=$$ {handed}; exec "$@" {moves} {closed}'
        command = ["bash", "-c", script, "bash", sys.executable, *program, "-c", str(self.ini), "--log-level", "debug"]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, env=variables, stderr=log, cwd=ROOT, pass_fds=[sock.fileno() for sock in sockets], **options
            )
        self.processes.append(process)
        return process

    def told(self, limit_s: float = LIMIT_S) -> dict[str, str]:
        """Return the next message but those of the watchdog."""
        deadline = time.monotonic() + limit_s
        while True:
            self.sock.settimeout(max(0.01, deadline - time.monotonic()))
            fields = dict(line.split("=", 1) for line in self.sock.recv(4096).decode().splitlines())
            if "WATCHDOG" not in fields:
                return fields

    def pings(self, duration_s: float) -> int:
        """Return how often the watchdog is fed in this time."""
        end, count = time.monotonic() + duration_s, 0
        while (left := end - time.monotonic()) > 0:
            if select.select([self.sock], [], [], left)[0]:
                count += self.sock.recv(4096) == b"WATCHDOG=1"
        return count

    def wait_for(self, pattern: str) -> re.Match[str]:
        found = []

        def look():
            found[:] = [m for m in [re.search(pattern, self.log.read_text(), re.MULTILINE)] if m]
            return bool(found)

        try:
            wait_until(look, f"{pattern} in the log", LIMIT_S)
        except AssertionError:
            raise AssertionError(f"{pattern} is not in the log:\n{self.log.read_text()}") from None
        return found[0]

    @property
    def port(self) -> int:
        return int(self.wait_for(r"listening on .*:(\d+)$")[1])

    def reload(self) -> None:
        self.processes[-1].send_signal(signal.SIGHUP)

    def stop(self) -> int:
        self.processes[-1].terminate()
        return self.processes[-1].wait(15)


@pytest.fixture
def manager(tmp_path):
    made = Manager(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    made.sock.close()
    text = made.log.read_text()
    assert "internal error" not in text
    assert " CRITICAL" not in text


# Notifications to systemd ----------------------------------------------------------------------------------------------


def test_ready_is_sent_when_connections_are_served_and_stopping_before_they_end(manager, raw):
    process = manager.start()
    assert manager.told() == {"READY": "1", "STATUS": "0 streams, 0 players"}
    encoder = raw(manager.port).publish("a")
    assert manager.told() == {"STATUS": "1 stream, 0 players"}
    for _ in range(3):
        raw(manager.port).play("a")
    while (status := manager.told()) != {"STATUS": "1 stream, 3 players"}:
        assert status["STATUS"].startswith("1 stream, ")
    process.terminate()
    # 5 s for connections, 10 s for services, and some more.
    assert manager.told() == {"STOPPING": "1", "STATUS": "stopping", "EXTEND_TIMEOUT_USEC": "25000000"}
    encoder.rest()
    assert process.wait(15) == 0


def test_a_failed_start_reports_the_reason_and_never_ready(manager):
    manager.ini.write_text("[server]\nlisten = 127.0.0.1:0\nuser = nobody-here\n")
    assert manager.start().wait(LIMIT_S) == 1
    problem = r"\[server\] user: there is no user nobody-here: create it with systemd-sysusers, adduser or useradd"
    manager.wait_for(f"ERROR +{problem}$")
    assert re.fullmatch(problem, manager.told()["STATUS"])


def test_a_reload_is_reported_to_systemd_from_start_to_end(manager):
    manager.start()
    manager.told()
    before = time.monotonic_ns() // 1000
    manager.reload()
    reloading = manager.told()
    assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert manager.told() == {"READY": "1", "STATUS": "0 streams, 0 players"}


def test_a_failed_reload_ends_too_and_the_status_has_the_reason_until_one_succeeds(manager):
    manager.start()
    manager.told()
    good = manager.ini.read_text()
    manager.ini.write_text(f"{good}lissen = :1\n")
    manager.reload()
    assert "RELOADING" in manager.told()
    failed = manager.told()
    assert failed["READY"] == "1"
    assert re.match(r"0 streams, 0 players; reload failed: .*rtmpd\.ini:3: \[server\] lissen: unknown option", failed["STATUS"])
    manager.ini.write_text(good)
    manager.reload()
    assert "RELOADING" in manager.told()
    assert manager.told() == {"READY": "1", "STATUS": "0 streams, 0 players"}


def test_a_storm_of_hang_ups_is_a_few_reloads_and_no_stream_notices(manager):
    manager.start()
    manager.told()
    running = type("Running", (), {"port": manager.port})
    bystander = Bystander(running)
    bystander.check()
    for number in range(100):
        manager.reload()
        if number == 99:
            manager.ini.write_text("[server]\nlisten = 127.0.0.1:0\nping_interval_s = 77\n")
            manager.reload()
        gevent.sleep(0.01)
    # The last one is never lost: what the file says in the end is what holds.
    manager.wait_for("configuration reloaded: .*ping_interval_s")
    bystander.check()
    bystander.close()
    text = manager.log.read_text()
    assert 1 <= text.count("configuration reloaded") <= 12
    messages = []
    while select.select([manager.sock], [], [], 2.5)[0]:
        messages.append(manager.told())
    order = [name for fields in messages for name in ("RELOADING", "READY") if name in fields]
    assert order == ["RELOADING", "READY"] * (len(order) // 2)


# The watchdog -----------------------------------------------------------------------------------------------------------


def test_the_watchdog_is_fed_twice_in_its_time(manager):
    manager.start(watchdog_s=0.4)
    manager.told()
    assert 5 <= manager.pings(2) <= 11


def test_a_blocked_event_loop_does_not_feed_the_watchdog_and_sigabrt_shows_where_it_hangs(manager):
    process = manager.start(watchdog_s=0.2, program=("-c", _BLOCKED))
    manager.told()
    assert manager.pings(1) >= 3
    wire = Wire(manager.port)
    wire.connect()
    # No answer will come.
    wire.write(wire.frame(20, wire.create_stream(), encode_command("publish", 0, None, "a", "live"), 3, 0))
    manager.pings(0.3)
    assert manager.pings(1) == 0
    # As systemd does.
    process.send_signal(signal.SIGABRT)
    assert process.wait(LIMIT_S) == -signal.SIGABRT
    manager.wait_for("Fatal Python error: Aborted")
    manager.wait_for(r'File "<string>", line 4 in <lambda>')
    wire.close()


def test_a_watchdog_of_another_process_is_not_fed(manager):
    manager.start(watchdog_s=0.2, program=("-c", "import os, sys; os.environ['WATCHDOG_PID'] = '1'\n" + _BLOCKED))
    manager.told()
    assert manager.pings(0.5) == 0


# Sockets ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def held():
    """A socket that systemd listens on, so that the port is never free."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as sock:
        yield sock


def port_of(sock) -> int:
    return sock.getsockname()[1]


@pytest.mark.parametrize("names", ["rtmp", "rtmpd.socket", "unknown", ""])
def test_a_client_that_connects_before_the_start_is_served_after_it(manager, held, names):
    # The name of a configured address, which is not bound twice.
    manager.ini.write_text(f"[server]\nlisten = 127.0.0.1:{port_of(held)}\n")
    early = create_connection(held.getsockname(), LIMIT_S)
    early.sendall(b"\x03" + bytes(1536))
    manager.start(held, names=names)
    assert len(early.recv(1, socket.MSG_WAITALL)) == 1
    early.close()
    with Client(f"rtmp://127.0.0.1:{port_of(held)}/live/a") as client:
        client.publish()
    assert manager.stop() == 0
    assert "WARNING not listening" not in manager.log.read_text()


def test_no_connection_is_refused_during_a_restart(manager, held, raw):
    manager.ini.write_text(f"[server]\nlisten = 127.0.0.1:{port_of(held)}\n")
    manager.start(held)
    manager.told()
    first = raw(port_of(held)).publish("a")
    assert manager.stop() == 0
    first.rest()
    # No process accepts, and the connections wait.
    waiting = [create_connection(held.getsockname(), LIMIT_S) for _ in range(20)]
    for sock in waiting:
        sock.sendall(b"\x03" + bytes(1536))
    manager.start(held)
    for sock in waiting:
        assert sock.recv(1) == b"\x03"
        sock.close()


def test_connections_during_a_stop_wait_for_the_next_server(manager, held, raw):
    manager.ini.write_text(f"[server]\nlisten = 127.0.0.1:{port_of(held)}\ndrain_timeout_s = 2\n")
    manager.start(held)
    manager.told()
    stuck = raw(port_of(held), receive_buffer=4096).play("a")
    manager.processes[-1].terminate()
    manager.wait_for("stopping: ")
    late = create_connection(held.getsockname(), LIMIT_S)
    late.sendall(b"\x03" + bytes(1536))
    stuck.rest()
    assert manager.processes[-1].wait(15) == 0
    manager.start(held)
    assert late.recv(1) == b"\x03"
    late.close()


def test_sockets_are_served_besides_the_addresses_of_the_configuration(manager, held):
    manager.start(held, names="rtmp")
    manager.told()
    wait_until(lambda: manager.log.read_text().count("listening on") == 2, "both are listened on")
    ports = {int(port) for port in re.findall(r"listening on 127\.0\.0\.1:(\d+)$", manager.log.read_text(), re.MULTILINE)}
    assert port_of(held) in ports
    for port in ports:
        with Client(f"rtmp://127.0.0.1:{port}/live/a{port}") as client:
            client.publish()


def test_a_socket_for_metrics(manager, held):
    with socket.create_server(("127.0.0.1", 0)) as pages:
        manager.start(pages, held, names="metrics:rtmp")
        manager.told()

        def late():
            with create_connection(pages.getsockname(), LIMIT_S) as sock:
                sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: sock.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 OK")
            return re.search(rb"^rtmpd_event_loop_lag_seconds_count [1-9]", answer, re.MULTILINE)

        wait_until(late, "the event loop is looked at, too")


def test_a_socket_with_a_name_that_means_nothing_is_a_clear_error(manager, held):
    process = manager.start(held, names="rtmpx")
    assert process.wait(LIMIT_S) == 1
    manager.wait_for(r"ERROR +expected FileDescriptorName=rtmp, rtmps, http, https or metrics in the socket unit, got 'rtmpx'$")


def test_programs_of_hooks_see_nothing_of_systemd(manager, held, tmp_path):
    out = tmp_path / "environment"
    script = tmp_path / "hook"
    script.write_text(f"#!/bin/sh\nenv > {out}.new; ls -l /proc/self/fd >> {out}.new; mv {out}.new {out}\n")
    script.chmod(0o755)
    manager.ini.write_text(f"[server]\nlisten = 127.0.0.1:0\n[hooks]\nhook_scripts = publish_start={script}\n")
    manager.start(held, watchdog_s=10)
    manager.told()
    with Client(f"rtmp://127.0.0.1:{port_of(held)}/live/a") as client:
        client.publish()
        wait_until(out.exists, "the hook has run")
    text = out.read_text()
    assert not re.search(r"^(NOTIFY_SOCKET|WATCHDOG_|LISTEN_)", text, re.MULTILINE)
    assert "socket:" not in text


def test_without_systemd_a_port_in_use_is_a_clear_error(manager, held):
    manager.ini.write_text(f"[server]\nlisten = 127.0.0.1:{port_of(held)}\n")
    assert manager.start().wait(LIMIT_S) == 1
    manager.wait_for(
        rf"ERROR +can't listen on 127.0.0.1:{port_of(held)}: Address already in use: another process listens on it"
    )
    assert manager.told()["STATUS"].startswith("can't listen on ")
    assert "READY" not in manager.log.read_text()


# Users ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def low_port():
    """A free port below 1024."""
    for port in range(700, 1000):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    pytest.skip("there is no free port below 1024")


@root
def test_root_binds_a_low_port_and_switches_to_another_user_permanently(manager, low_port, tmp_path):
    nobody = pwd.getpwnam("nobody")
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    os.chown(recordings, nobody.pw_uid, nobody.pw_gid)
    manager.ini.write_text(
        f"[server]\nlisten = 127.0.0.1:{low_port}\nuser = nobody\n"
        f"[metrics]\nmetrics_listen = 127.0.0.1:0\n[record]\nrecord_all = yes\nrecord_directory = {recordings}\n"
    )
    process = manager.start()
    manager.told()
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        status = (task / "status").read_text()
        assert re.search(rf"^Uid:\t{'	'.join([str(nobody.pw_uid)] * 4)}$", status, re.MULTILINE)
        assert re.search(rf"^Gid:\t{'	'.join([str(nobody.pw_gid)] * 4)}$", status, re.MULTILINE)
        assert re.search(rf"^Groups:\t{nobody.pw_gid} $", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    manager.wait_for("INFO +switched to user nobody$")
    with Client(f"rtmp://127.0.0.1:{low_port}/live/a") as client:
        client.publish()
        client.send_video(0, key(1))
        wait_until(lambda: list(recordings.rglob("*.flv*")), "a recording", LIMIT_S)
    assert {path.stat().st_uid for path in recordings.rglob("*")} == {nobody.pw_uid}
    assert manager.stop() == 0


@root
def test_a_directory_that_the_user_may_not_write_to_is_noticed_as_that_user(manager, tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir(0o755)
    manager.ini.write_text(
        f"[server]\nlisten = 127.0.0.1:0\nuser = nobody\n[record]\nrecord_all = yes\nrecord_directory = {recordings}\n"
    )
    manager.start()
    manager.told()
    with Client(f"rtmp://127.0.0.1:{manager.port}/live/a") as client:
        client.publish()
        client.send_video(0, key(1))
        manager.wait_for("ERROR .*can't record: Permission denied")


@root
def test_root_without_a_user_is_warned(manager):
    manager.start()
    manager.told()
    manager.wait_for(r"WARNING running as root: set user in \[server\]")


# Signals ----------------------------------------------------------------------------------------------------------------


def test_usr2_logs_where_greenlets_wait_and_how_far_behind_players_are(manager, raw):
    process = manager.start()
    manager.told()
    encoder, watcher = raw(manager.port).publish("a"), raw(manager.port).play("a")
    encoder.sync()
    process.send_signal(signal.SIGUSR2)
    manager.wait_for("WARNING state: 1 streams, 2 connections, 0 of them RTMPS$")
    manager.wait_for(r"WARNING greenlets: 1 in .*_run rtmpd/hub\.py:\d+")
    manager.wait_for(rf"WARNING live/a: published by {re.escape(encoder.address)}, 1 players, ")
    manager.wait_for(rf"WARNING live/a: player {re.escape(watcher.address)} \w+: ")
    assert manager.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_during_the_start_is_handled_after_it(manager, number):
    process = manager.start(program=("-c", _EARLY.format(number=int(number))))
    if number == signal.SIGTERM:
        assert process.wait(LIMIT_S) == 0
    else:
        assert manager.told()["READY"] == "1"
        if number == signal.SIGHUP:
            manager.wait_for("configuration reloaded")
        assert manager.stop() == 0


# Sends itself a signal between the first line of the log and listening.
_EARLY = """
import os, sys
from rtmpd.daemon.main import Daemon
start = Daemon.start
def signal_first(self):
    os.kill(os.getpid(), {number})
    start(self)
Daemon.start = signal_first
from rtmpd.cli import main
sys.exit(main(sys.argv[1:]))
"""
