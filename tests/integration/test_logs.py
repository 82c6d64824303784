"""The logs of a server: formats, files that are rotated under load, a disk that fills up, the access log."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections import Counter
from datetime import datetime

import pytest

from rtmpd.client import Client
from rtmpd.errors import Refused
from rtmpd.protocol.command import encode_command
from tests.conftest import ROOT
from tests.integration.beside import Bystander, wait_until
from tests.integration.wire import begin, gop, headers, key, played, send

LIMITS = "[limits]\ncommand_limit = 1000000\n[publish]\npublisher_grace_s = 0\n"


class Process:
    """An rtmpd that logs to a file; what it says on standard error is in another."""

    def __init__(self, directory, ini: str, log) -> None:
        self.ini = directory / "rtmpd.ini"
        self.ini.write_text(ini)
        self.log = log
        self.stderr = directory / "stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rtmpd", "-c", str(self.ini), "--listen", "127.0.0.1:0"],
                stderr=stderr,
                cwd=ROOT,
            )

    def listening(self) -> Process:
        self.port = int(self.wait_for(r"listening on [^:]*:(\d+)")[1])
        return self

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        found = []

        def look():
            found[:] = [m for m in [re.search(pattern, self.text(), re.MULTILINE)] if m]
            return bool(found)

        wait_until(look, f"{pattern} in the log")
        return found[0]

    def url(self, name: str) -> str:
        return f"rtmp://127.0.0.1:{self.port}/live/{name}"

    def reload(self, ini: str) -> None:
        self.ini.write_text(ini)
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(15) == 0


@pytest.fixture
def process(tmp_path):
    """Return a function that starts a `Process`."""
    started = []

    def start(ini: str = "", directory=tmp_path) -> Process:
        text = f"{LIMITS}[log]\nlog_file = {directory}/log\n{ini}"
        started.append(Process(tmp_path, text, directory / "log").listening())
        return started[-1]

    yield start
    for each in started:
        each.stop()


# Formats ----------------------------------------------------------------------------------------------------------------


def test_lines_of_json_are_objects_and_those_of_a_connection_have_its_fields(server, raw, name):
    running = server("[log]\nlog_format = json\n")
    watcher = raw(running).play(name)
    encoder = raw(running).publish(name)
    begin(encoder, watcher)
    encoder.close()
    watcher.close()
    running.wait_for_line(rf"(?=.*closed: closed by the peer)(?=.*{re.escape(encoder.address)})")
    assert running.stop() == 0
    entries = [json.loads(line) for line in running.lines]
    of_encoder = [entry for entry in entries if entry.get("peer") == encoder.address]
    assert {entry["connection"] for entry in of_encoder} == {2}
    started = next(n for n, entry in enumerate(of_encoder) if entry["message"] == f"publishes live/{name}")
    assert {entry.get("stream") for entry in of_encoder[:started]} == {None}
    assert {entry["stream"] for entry in of_encoder[started:]} == {f"live/{name}"}
    assert of_encoder[-1]["message"].startswith("closed: closed by the peer; ")
    for entry in entries:
        assert datetime.fromisoformat(entry["time"]).tzinfo is not None
        assert entry["level"] in ("debug", "info", "warning")
        assert not entry["message"].startswith("#")


def test_lines_of_text_of_a_connection_name_its_stream(server, raw, name):
    running = server()
    encoder = raw(running).publish(name)
    encoder.close()
    running.wait_for_line(rf"INFO    #1 {encoder.address} stopped publishing live/{name}: connection closed; [^\[]*$")
    running.wait_for_line(rf"INFO    #1 {encoder.address} closed: closed by the peer; .* out \[live/{name}\]$")


def test_standard_error_connected_to_the_journal_gets_levels_and_no_times(tmp_path):
    """As systemd starts a service: JOURNAL_STREAM names standard error."""
    reading, writing = os.pipe()
    status = os.fstat(writing)
    process = subprocess.Popen(
        [sys.executable, "-m", "rtmpd", "--listen", "127.0.0.1:0"],
        stderr=writing,
        cwd=ROOT,
        env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
    )
    os.close(writing)
    with os.fdopen(reading) as log:
        lines = []
        while not any("listening on" in line for line in lines):
            lines.append(log.readline())
        process.terminate()
        lines += log.readlines()
    assert process.wait(15) == 0
    assert lines[0].startswith("<6>INFO    rtmpd ")
    assert all(re.match(r"<[2-7]>[A-Z]+ +\S", line) for line in lines)


def test_the_journal_gets_fields(tmp_path, raw, name):
    """A socket of the test's own takes the journal's place, for this rtmpd alone; that needs root."""
    directory = tmp_path / "journal"
    directory.mkdir()
    mounts = f"mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind {directory} /run/systemd/journal"
    command = f"{mounts} && exec {sys.executable} -m rtmpd --listen 127.0.0.1:0 --log-target journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(directory / "socket"))
        journal.settimeout(20)
        process = subprocess.Popen(["unshare", "-m", "sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE)

        def until(pattern):
            while True:
                datagram = journal.recv(1 << 20).decode()
                found = re.search(rf"^MESSAGE=.*{pattern}", datagram, re.MULTILINE)
                if found:
                    return found, datagram.splitlines()

        port = int(until(r"listening on .*:(\d+)")[0][1])
        encoder = raw(port).publish(name)
        _, fields = until("publishes live")
        assert {f"RTMPD_STREAM=live/{name}", f"RTMPD_PEER={encoder.address}", "RTMPD_CONNECTION=1", "PRIORITY=6"} <= set(fields)
        process.terminate()
        until("stopped; ")
        assert process.communicate(timeout=15)[1] == b""
        assert process.returncode == 0


# Files ------------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_rotated_under_load_loses_and_tears_no_line(process, raw, tmp_path):
    """As logrotate does it: rename, create, SIGUSR1."""
    running = process("level = debug\nqueue_limit = 1000000\n")
    # Before a publish a client may send only a few messages.
    wire = raw(running.port).publish("chatter")
    total = 40_000
    for start in range(0, total, 1000):
        wire.write(b"".join(wire.frame(20, 0, encode_command("xyz", number), 3, 0) for number in range(start, start + 1000)))
        if start % 4000 == 2000:
            number = start // 4000
            running.log.rename(tmp_path / f"log.{number}")
            running.log.touch(0o640)
            running.process.send_signal(signal.SIGUSR1)
            # logrotate does not come again before the signal has been heard.
            wire.sync()
            running.wait_for("was reopened$")
    wire.sync()
    wire.close()
    running.wait_for(f"{wire.address} closed: ")
    files = sorted(tmp_path.glob("log*"))
    assert len(files) == 11
    seen: Counter[int] = Counter()
    for file in files:
        text = file.read_text()
        assert text.endswith("\n")
        for line in text.splitlines():
            assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +\S", line), line
            found = re.search(r"< 'xyz' (\d+) on 0", line)
            if found:
                seen[int(found[1])] += 1
    assert seen == Counter(range(1, total)) + Counter([0])
    assert running.stderr.read_text() == ""


def test_a_full_disk_costs_lines_and_no_stream(process, tmpfs, raw):
    directory = tmpfs("256k")
    ballast = directory / "ballast"
    ballast.write_bytes(b"x" * 128 * 1024)
    running = process("level = debug\n", directory)
    bystander = Bystander(running)  # type: ignore[arg-type]
    wire = raw(running.port).publish("chatter")
    for start in range(0, 4000, 500):
        wire.write(b"".join(wire.frame(20, 0, encode_command("xyz", number), 3, 0) for number in range(start, start + 500)))
        wire.sync()
        bystander.check()
    wait_until(lambda: running.stderr.read_text().endswith("\n"), "the complaint")
    ballast.unlink()
    encoder = raw(running.port)
    encoder.connect()
    running.wait_for(f"{encoder.address} connected")
    bystander.check()
    bystander.close()
    (complaint,) = [line for line in running.stderr.read_text().splitlines() if " ERROR " in line]
    assert complaint.endswith(
        f"can't write to {running.log}: No space left on device; its lines are dropped until writing works again"
    )
    text = running.text()
    dropped = re.search(r"WARNING (\d+) log lines were dropped: can't write to .*/log: No space left on device$", text, re.M)
    assert dropped
    assert int(dropped[1]) > 1000
    for line in text.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +\S", line), line


def test_a_start_with_a_file_that_can_not_be_opened_is_one_clear_line(tmp_path):
    running = Process(tmp_path, f"[log]\nlog_file = {tmp_path}/nowhere/log\n", tmp_path / "log")
    assert running.process.wait(15) == 1
    errors = [line for line in running.stderr.read_text().splitlines() if " ERROR " in line]
    assert len(errors) == 1
    assert errors[0].endswith(f"can't log to {tmp_path}/nowhere/log: No such file or directory")


def test_a_failed_start_is_reported_on_standard_error_although_the_log_is_a_file(server, tmp_path):
    taken = server().port
    running = Process(
        tmp_path, f"[log]\nlog_file = {tmp_path}/log\n[metrics]\nmetrics_listen = 127.0.0.1:{taken}\n", tmp_path / "log"
    )
    assert running.process.wait(15) == 1
    assert running.stderr.read_text().count("Address already in use") == 1


def test_a_reload_moves_the_log_and_changes_its_format_and_keeps_the_old_file_on_errors(process, tmp_path):
    running = process()
    ini = running.ini.read_text()
    running.reload(ini.replace(f"{tmp_path}/log", f"{tmp_path}/nowhere/log"))
    running.wait_for(
        f"ERROR   can't open {tmp_path}/nowhere/log: No such file or directory; the log is still written to {tmp_path}/log$"
    )
    running.wait_for("configuration reloaded: ")
    running.reload(ini.replace(f"{tmp_path}/log", f"{tmp_path}/other") + "log_format = json\n")
    running.log = tmp_path / "other"
    running.wait_for('"message": "configuration reloaded: ')
    assert all(json.loads(line) for line in running.text().splitlines())


@pytest.fixture
def frozen(tmp_path):
    """A mount whose disk does not answer while it is frozen; returns a function that freezes or thaws it."""
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)

    def run(*command) -> bool:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0

    if not (run("mkfs.ext4", "-q", image) and run("mount", "-o", "loop", image, mount)):
        pytest.skip("no loop device can be mounted")

    def freeze(*, frozen: bool) -> None:
        assert run("fsfreeze", "-f" if frozen else "-u", mount)

    yield mount, freeze
    run("fsfreeze", "-u", mount)
    run("umount", "-l", mount)


@pytest.mark.parametrize("option", ["log_file", "access_log_file"])
def test_a_start_with_a_log_on_a_disk_that_does_not_answer_fails_with_the_reason(tmp_path, frozen, option):
    mount, freeze = frozen
    freeze(frozen=True)
    running = Process(tmp_path, f"[log]\n{option} = {mount}/new\n", tmp_path / "stderr")
    try:
        running.wait_for(rf"ERROR +can't log to {mount}/new: not opened within 5 s: its disk does not answer$")
    finally:
        # The kernel ends no process whose thread waits for such a disk.
        freeze(frozen=False)
        assert running.process.wait(15) == 1


def test_logs_on_a_disk_that_does_not_answer_stop_neither_streams_nor_the_old_logs(process, frozen):
    mount, freeze = frozen
    running = process()
    ini = running.ini.read_text()
    bystander = Bystander(running)
    moved = f"[log]\naccess_log_file = {mount}/access\nlog_file = {mount}/new"
    freeze(frozen=True)
    try:
        running.reload(re.sub(r"\[log\]\nlog_file = .*", moved, ini))
        for _ in range(3):
            bystander.check()
        running.wait_for(
            rf"can't open {mount}/new: not opened within 5 s: its disk does not answer; the log is still written to"
        )
        running.wait_for(rf"ERROR +can't open {mount}/access: not opened within 5 s: ")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for(rf"can't open {mount}/new: an earlier attempt to open it has not ended: its disk does not answer; ")
        bystander.check()
    finally:
        freeze(frozen=False)
    wait_until((mount / "new").exists, "the thread has ended")
    running.process.send_signal(signal.SIGHUP)
    running.log = mount / "new"
    running.wait_for("configuration reloaded")
    bystander.check()
    bystander.close()


# The access log ---------------------------------------------------------------------------------------------------------


def entries(path, form):
    """The lines of an access log, as dictionaries of texts."""
    lines = path.read_text().splitlines() if path.exists() else []
    if form == "json":
        return [{name: str(value) for name, value in json.loads(line).items()} for line in lines]
    return [dict(word.split("=", 1) for word in shlex.split(line)) for line in lines]


@pytest.mark.parametrize("form", ["text", "json"])
def test_each_publish_and_each_play_has_a_line_at_its_end(server, raw, tmp_path, name, form):
    path = tmp_path / "access"
    running = server(f"[log]\nlog_format = {form}\naccess_log_file = {path}\n[publish]\npublisher_grace_s = 0\n")
    watcher = raw(running)
    watcher.connect(flashVer='VLC "3"')
    watcher.command("play", f"{name}?token=hunter2", msid=watcher.create_stream())
    watcher.status("NetStream.Play.Start")
    with Client(running.url(name)) as encoder:
        encoder.publish()
        send(encoder, headers())
        send(encoder, gop(0))
        played(watcher, gop(0)[-1])
        encoder.unpublish()
    wait_until(lambda: len(entries(path, form)) == 1, "the line of the publish")
    watcher.close()
    wait_until(lambda: len(entries(path, form)) == 2, "the line of the play")
    publish, play = entries(path, form)
    who = ["action", "connection", "peer", "agent", "user", "app", "stream"]
    names = ["time", *who, "start", "duration_s", "bytes", "skips", "dropped", "reason"]
    for entry in (publish, play):
        assert list(entry) == names
        assert (entry["app"], entry["stream"], entry["user"]) == ("live", f"live/{name}", "")
        assert (entry["skips"], entry["dropped"]) == ("0", "0")
        lasted_s = (datetime.fromisoformat(entry["time"]) - datetime.fromisoformat(entry["start"])).total_seconds()
        assert abs(lasted_s - float(entry["duration_s"])) < 0.1
        assert int(entry["bytes"]) > 300
    assert (publish["action"], publish["connection"], publish["reason"]) == ("publish", "2", "FCUnpublish")
    assert (play["action"], play["connection"]) == ("play", "1")
    # What it had not read yet makes the kernel say the second.
    assert play["reason"] in ("closed by the peer", "closed by the peer (connection reset)")
    assert play["peer"] == watcher.address
    assert play["agent"] == 'VLC "3"'
    assert publish["agent"].startswith("FMLE")
    assert "hunter2" not in path.read_text()


def refused(client, ask) -> str:
    """Have a client ask for something that it is refused; return the code."""
    with client:
        try:
            client.connect()
            ask(client)
        except Refused as error:
            return error.code
    return ""


REFUSING = """
[log]
log_format = {}
access_log_file = {}
[live]
wait_for_publisher = no
[auth]
auth_mode = token
auth_play = no
auth_tokens = live/mine=right
auth_users = ann=password
[applications]
[[live]]
auth_users =
[[studio]]
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_each_connection_without_publish_or_play_has_a_line_with_its_request(server, raw, tmp_path, form):
    path = tmp_path / "access"
    running = server(REFUSING.format(form, path))
    publish, play = Client.publish, Client.play

    def url(name, app="live"):
        return f"rtmp://127.0.0.1:{running.port}/{app}/{name}"

    with Client(url("mine?token=right")) as encoder:
        encoder.publish()
        # Denied, where the name may be a key; a name that is taken; no such stream; no such application.
        assert refused(Client(url("hunter2-key?token=hunter2")), publish) == "NetStream.Publish.Denied"
        assert refused(Client(url("mine?token=right")), publish) == "NetStream.Publish.BadName"
        assert refused(Client(url("nothing")), play) == "NetStream.Play.StreamNotFound"
        assert refused(Client(url("x", "nowhere")), publish) == "NetConnection.Connect.InvalidApp"
        # A name that can't be shown, a client without a request, one that violates the protocol, and two silent ones.
        bad = raw(running)
        bad.connect()
        bad.command("publish", "a\nb", "live", msid=bad.create_stream())
        bad.rest()
        idle = raw(running)
        idle.connect(flashVer="idle one")
        idle.close()
        broken = raw(running).handshake()
        broken.command("play", "a")
        broken.rest()
        raw(running).close()
        raw(running).handshake().close()
        wait_until(lambda: len(entries(path, form)) == 7, "a line for each")
        # Steps of a login are none; with a wrong password, the last is.
        assert refused(Client("rtmp://ann:wrong@" + url("x", "studio").removeprefix("rtmp://")), publish)
        wait_until(lambda: len(entries(path, form)) == 8, "the login")
    wait_until(lambda: len(entries(path, form)) == 9, "the publish")
    found = entries(path, form)
    assert {(*list(entry)[:8], *list(entry)[-3:]) for entry in found[:8]} == {
        ("time", "action", "connection", "peer", "agent", "user", "app", "stream", "reason", "wanted", "unlisted")
    }
    # They may come in another order than they were asked.
    told = sorted((entry["app"], entry["wanted"], entry["stream"], entry["reason"].partition(":")[0]) for entry in found[:8])
    assert told == sorted(
        [
            ("live", "publish", "", "refused"),
            ("live", "publish", "live/mine", "refused"),
            ("live", "play", "live/nothing", "refused"),
            ("nowhere", "connect", "", "refused"),
            ("live", "publish", "", "refused"),
            ("live", "connect", "", "closed by the peer"),
            ("", "", "", "invalid RTMP in phase connect"),
            ("studio", "connect", "", "refused"),
        ]
    )
    assert {entry["action"] for entry in found[:8]} == {"connect"}
    assert found[8]["action"] == "publish"
    (quiet,) = [entry for entry in found if entry["agent"] == "idle one"]
    assert (quiet["peer"], quiet["unlisted"]) == (idle.address, "0")
    assert 50 < int(quiet["bytes"]) < 1000
    reasons = " ".join(entry["reason"] for entry in found)
    for text in (
        "Publish.Denied: wrong token",
        "live/mine is already being published: on_conflict is refuse",
        "has control characters",
    ):
        assert text in reasons
    # What may be secret is nowhere in it, at no level of the log either.
    for text in (path.read_text(), "\n".join(running.log())):
        assert "hunter2" not in text
        assert "wrong@" not in text


def test_the_access_log_is_rotated_and_switched_by_reloads(process, raw, tmp_path):
    running = process(f"access_log_file = {tmp_path}/access\n")
    access = tmp_path / "access"

    def publish(name):
        with Client(running.url(name)) as client:
            client.publish()
        running.wait_for(f"stopped publishing live/{name}: ")

    publish("one")
    wait_until(lambda: "live/one" in access.read_text(), "one")
    access.rename(tmp_path / "access.1")
    running.process.send_signal(signal.SIGUSR1)
    running.wait_for("/access was reopened$")
    publish("two")
    wait_until(lambda: "live/two" in access.read_text(), "two")
    running.reload(running.ini.read_text().replace("access_log_file", "#access_log_file"))
    running.wait_for("configuration reloaded: ")
    publish("three")
    assert re.findall("stream=(\\S+)", (tmp_path / "access.1").read_text()) == ["live/one"]
    assert re.findall("stream=(\\S+)", access.read_text()) == ["live/two"]


def test_an_access_log_on_a_full_disk_is_an_error_in_the_log_and_disturbs_no_stream(process, raw, name):
    running = process("access_log_file = /dev/full\n")
    watcher = raw(running.port).play(name)
    for number in range(3):
        encoder = raw(running.port).publish(name)
        encoder.send(9, number, key(number))
        assert played(watcher, key(number))
        encoder.close()
        wait_until(lambda number=number: running.text().count("stopped publishing") == number + 1, "the end of the publish")
    running.wait_for(
        "ERROR   can't write to /dev/full: No space left on device; its lines are dropped until writing works again$"
    )
    assert running.text().count("/dev/full") == 1


# Secrets ----------------------------------------------------------------------------------------------------------------


def test_no_line_of_any_level_has_a_token(server, tmp_path, name):
    path = tmp_path / "access"
    tokens = f"[auth]\nauth_mode = token\nauth_tokens = live/{name}=hunter2\n"
    running = server(f"{tokens}[log]\naccess_log_file = {path}\n", level="debug")
    with Client(running.url(f"{name}?token=hunter2&pass=hunter2")) as client:
        client.publish()
    with pytest.raises(Refused), Client(running.url(f"{name}?token=hunter22")) as client:
        client.publish()
    running.wait_for_line("#2 .* closed: ")
    wait_until(path.exists, "the access log")
    assert "hunter2" not in "\n".join(running.log())
    assert "hunter2" not in path.read_text()
