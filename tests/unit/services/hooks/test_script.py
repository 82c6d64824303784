"""Scripts that are real programs, well and badly behaved."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import time
from pathlib import Path

import gevent
import pytest

from rtmpd.config.hook_targets import ScriptHook
from rtmpd.services.hooks.script import Script
from rtmpd.services.hooks.share import CpuShare
from rtmpd.util.threads import Threads
from tests.unit.services.hooks.fakes import notice, options, wait_for, within

THREADS = Threads(4)


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a shell script for an event, and gives the outcome and how long it took."""

    def go(text: str, event=None, ini: str = "hook_timeout_s = 10\n", arguments: str = "", interpreter: str = "/bin/sh"):
        path = tmp_path / "hook"
        path.write_text(f"#!{interpreter}\n{text}")
        path.chmod(0o755)
        script = Script(ScriptHook.parse(f"*={path} {arguments}"), THREADS, CpuShare())
        began = time.monotonic()
        with within(20):
            outcome = script.carry(event or notice(), 1, options(ini))
        return outcome, time.monotonic() - began

    return go


def descriptors() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_script_finds_the_event_in_its_environment(run, tmp_path):
    outcome, _ = run(f"env > {tmp_path}/env; echo $# $1 > {tmp_path}/arguments", notice(3, reason="a b"), arguments="'x y'")
    assert not outcome.problem
    lines = (tmp_path / "env").read_text().splitlines()
    for line in ("RTMP_EVENT_TYPE=publish_start", "RTMP_STREAM_KEY=live/a", "RTMP_CONN_ID=7", "RTMP_ID=3", "RTMP_REASON=a b"):
        assert line in lines
    assert (tmp_path / "arguments").read_text() == "1 x y\n"


def test_a_script_gets_nothing_that_is_meant_for_the_server(run, tmp_path, monkeypatch):
    for name in (
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "WATCHDOG_USEC",
        "SECRET_OF_A_HOOK",
        "RTMP_STREAM_KEY",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "leaked")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    run(f"env > {tmp_path}/env; ls -l /proc/$$/fd > {tmp_path}/fds; cat > {tmp_path}/stdin", notice(1, ""))
    text = (tmp_path / "env").read_text()
    assert "leaked" not in text
    assert "PATH=" in text
    assert "LC_ALL=C.UTF-8" in text
    assert (tmp_path / "stdin").read_text() == ""
    assert "socket" not in (tmp_path / "fds").read_text()


def test_names_have_their_bytes_and_no_shell_reads_them(run, tmp_path):
    name = f"live/$(touch {tmp_path}/owned);`touch {tmp_path}/owned`\udce9'\""
    run(f'printf "%s" "$RTMP_STREAM_KEY" > {tmp_path}/key', notice(1, name))
    assert (tmp_path / "key").read_bytes() == os.fsencode(name)
    assert not (tmp_path / "owned").exists()


def test_a_script_that_fails_says_with_what(run, caplog):
    caplog.set_level(logging.DEBUG)
    outcome, _ = run("echo one; echo 'two\t\x07' >&2; exit 3")
    assert outcome.problem == 'exit status 3: "one | two\\t\\x07"'
    assert not outcome.again
    assert "it says: one" in caplog.text
    assert run("kill -9 $$")[0].problem == "ended by SIGKILL"
    assert run("exit 1")[0].problem == "exit status 1"


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda path: path, "it can't be started: No such file or directory"),
        (lambda path: path.write_text("#!/bin/sh\n"), "it can't be started: Permission denied"),
        (lambda path: path.mkdir(), "it can't be started: Permission denied"),
        (
            lambda path: (path.write_text("#!/nowhere/sh\n"), path.chmod(0o755)),
            "it can't be started: No such file or directory",
        ),
        (lambda path: (path.write_bytes(b"\x00\x01"), path.chmod(0o755)), "it can't be started: Exec format error"),
    ],
    ids=["missing", "not executable", "a directory", "no interpreter", "no program"],
)
def test_what_can_not_be_started(tmp_path, prepare, problem):
    path = tmp_path / "hook"
    prepare(path)
    before = descriptors()
    outcome = Script(ScriptHook.parse(f"*={path}"), THREADS, CpuShare()).carry(notice(), 1, options())
    assert outcome.problem == problem
    assert not outcome.again
    assert descriptors() == before


def test_a_script_that_takes_too_long_is_told_to_end(run, tmp_path):
    outcome, took_s = run(f"trap 'echo bye > {tmp_path}/bye; exit 0' TERM; sleep 60 & wait", ini="hook_timeout_s = 0.3\n")
    assert outcome.timed_out
    assert outcome.problem == "it ran for more than 0.3 s and was ended"
    assert (tmp_path / "bye").exists()
    assert took_s < 2


def test_a_script_that_ignores_term_is_killed_with_all_that_it_began(run, tmp_path):
    text = f"trap '' TERM; echo $$ > {tmp_path}/pids; sleep 60 & echo $! >> {tmp_path}/pids; while :; do sleep 1; done"
    outcome, took_s = run(text, ini="hook_timeout_s = 0.3\n")
    assert outcome.timed_out
    assert 2 < took_s < 5
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    wait_for(lambda: not any(map(alive, pids)))


def test_children_that_outlive_a_script_are_killed(run, tmp_path):
    outcome, took_s = run(f"sleep 60 & echo $! > {tmp_path}/pid; echo started")
    assert not outcome.problem
    assert took_s < 5
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not alive(pid))


def test_a_child_in_a_session_of_its_own_may_stay_and_keeps_nobody(run, tmp_path):
    outcome, took_s = run(f"setsid sleep 60 & echo $! > {tmp_path}/pid; sleep 0.1; echo started; exit 1")
    assert outcome.problem == 'exit status 1: "started"'
    assert took_s < 5
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_sleep(path)]
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def _is_sleep(path: Path) -> bool:
    try:
        return (path / "cmdline").read_bytes() == b"sleep\x0060\x00" and os.getsid(int(path.name)) == int(path.name)
    except OSError:
        return False


def test_a_script_that_prints_a_lot_ends_and_its_begin_is_kept(run):
    ticks = []

    def tick():
        while True:
            ticks.append(time.monotonic())
            gevent.sleep(0.005)

    ticker = gevent.spawn(tick)
    outcome, _ = run("echo begin; head -c 2000000 /dev/zero | tr '\\0' x; exit 2", ini="hook_timeout_s = 15\n")
    ticker.kill()
    assert outcome.problem.startswith('exit status 2: "begin | xxx')
    assert outcome.problem.endswith('..."')
    assert len(outcome.problem) < 500
    assert max(after - before for before, after in itertools.pairwise(ticks)) < 0.1


def test_a_script_that_never_stops_printing_costs_little_and_is_ended(run):
    cpu_s = time.process_time()
    outcome, took_s = run("exec yes", ini="hook_timeout_s = 1\n")
    assert outcome.timed_out
    assert took_s < 3
    assert time.process_time() - cpu_s < 0.5


def test_nothing_is_left_behind(run):
    run("echo a")
    before = descriptors()
    for _ in range(5):
        run("echo a; exit 1")
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_event_loop_is_not_held_up_while_scripts_start(tmp_path):
    path = tmp_path / "hook"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    script = Script(ScriptHook.parse(f"*={path}"), THREADS, CpuShare())
    late = []

    def tick():
        while True:
            due = time.monotonic() + 0.002
            gevent.sleep(0.002)
            late.append(time.monotonic() - due)

    ticker = gevent.spawn(tick)
    gevent.joinall([gevent.spawn(script.carry, notice(n), 1, options()) for n in range(20)], timeout=20, raise_error=True)
    ticker.kill()
    assert sorted(late)[len(late) // 2] < 0.02


def test_a_kill_ends_the_script_too(tmp_path):
    path = tmp_path / "hook"
    path.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\ntrap '' TERM\nsleep 60 & wait; wait\n")
    path.chmod(0o755)
    greenlet = gevent.spawn(Script(ScriptHook.parse(f"*={path}"), THREADS, CpuShare()).carry, notice(), 1, options())
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    with within(5):
        greenlet.kill()
    wait_for(lambda: not alive(pid))


def test_an_interpreter_with_arguments_is_a_script_too(tmp_path):
    program = tmp_path / "hook.py"
    program.write_text(f"import os; open('{tmp_path}/out', 'w').write(os.environ['RTMP_EVENT_TYPE'])")
    target = ScriptHook.parse(f"*={sys.executable} -I {program}")
    assert not Script(target, THREADS, CpuShare()).carry(notice(), 1, options()).problem
    assert (tmp_path / "out").read_text() == "publish_start"
