"""Child processes that are real programs, well and badly behaved."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path

import gevent
import pytest

from rtmpd.util import children
from rtmpd.util.threads import Threads

LIMIT_S = 10
THREADS = Threads(4)


@pytest.fixture
def shell():
    """Return a function that starts a shell with a script; what it started is closed at the end."""
    made = []

    def go(text, environment=None, **more):
        options = {"timeout_s": 5.0, "output_limit_bytes": 1000} | more
        child = children.start(THREADS, ["/bin/sh", "-c", text], environment or {b"PATH": os.environb[b"PATH"]}, **options)
        made.append(child)
        return child

    yield go
    for child in made:
        if child.close_count == 0:
            child.close()


@pytest.fixture(autouse=True)
def closes(monkeypatch):
    """Count how often a child is closed, since a second time would be an error."""
    close = children.Child.close

    def counted(child):
        child.close_count += 1
        return close(child)

    monkeypatch.setattr(children.Child, "close_count", 0, raising=False)
    monkeypatch.setattr(children.Child, "close", counted)


def descriptors() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition) -> None:
    with gevent.Timeout(LIMIT_S, TimeoutError()):
        while not condition():
            gevent.sleep(0.005)


def test_a_child_has_its_environment_and_no_other_and_its_output_is_kept(shell):
    child = shell('echo "$A$HOME"; echo error >&2; cat; exit 3', {b"A": b"x\xe9"})
    assert child.cpu_s > 0
    assert child.wait(LIMIT_S)
    assert child.close() == 3
    assert child.output == "x\ufffd\nerror\n"


def test_the_end_of_a_child_by_a_signal_is_a_negative_status(shell):
    child = shell("kill -9 $$")
    assert child.wait(LIMIT_S)
    assert child.close() == -signal.SIGKILL


def test_a_child_leads_a_group_and_a_session(shell):
    child = shell("sleep 60")
    assert os.getpgid(child.pid) == os.getsid(child.pid) == child.pid
    assert not child.wait(0.05)
    child.stop(1, 1)
    assert child.close() == -signal.SIGTERM


def test_a_child_inherits_no_descriptors(shell):
    with Path("/dev/null").open("rb") as file:
        os.set_inheritable(file.fileno(), True)
        child = shell("ls /proc/$$/fd")
        assert child.wait(LIMIT_S)
    child.close()
    assert set(child.output.split()) <= {"0", "1", "2"}


@pytest.mark.parametrize(
    ("argv", "error"),
    [(["/no/such/program"], FileNotFoundError), (["/etc/passwd"], PermissionError), (["/"], PermissionError)],
)
def test_what_can_not_be_started_raises_and_leaves_nothing(argv, error):
    before = descriptors()
    with pytest.raises(error):
        children.start(THREADS, argv, {}, timeout_s=5, output_limit_bytes=10)
    assert descriptors() == before


def test_a_program_that_starts_too_late_is_killed(monkeypatch, tmp_path):
    made, go = [], threading.Event()
    begin = children.Child.__init__

    def slow(child, *args):
        go.wait(5)
        begin(child, *args)
        made.append(child)

    monkeypatch.setattr(children.Child, "__init__", slow)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        children.start(THREADS, ["/bin/sleep", "60"], {}, timeout_s=0.2, output_limit_bytes=10)
    assert time.monotonic() - began < 1
    killed = gevent.spawn(children.start, THREADS, ["/bin/sleep", "60"], {}, timeout_s=60, output_limit_bytes=10)
    gevent.sleep(0.05)
    killed.kill()
    go.set()
    wait_for(lambda: len(made) == 2 and all(child.close_count for child in made))
    wait_for(lambda: not any(alive(child.pid) for child in made))


def test_the_time_to_start_includes_the_wait_for_a_thread():
    threads = Threads(1)
    over = threading.Event()
    threads.spawn(over.wait, 5)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        children.start(threads, ["/bin/true"], {}, timeout_s=0.2, output_limit_bytes=10)
    assert time.monotonic() - began < 1
    over.set()


def test_a_child_that_ignores_term_is_killed_with_its_group(shell):
    child = shell("trap '' TERM; sleep 60 & echo $!; echo ready; while :; do sleep 1; done")
    gevent.spawn(child.wait, LIMIT_S)
    wait_for(lambda: "ready" in child.output)
    other = int(child.output.split()[0])
    began = time.monotonic()
    child.stop(0.3, 2)
    assert 0.25 < time.monotonic() - began < 2
    assert child.close() == -signal.SIGKILL
    wait_for(lambda: not alive(child.pid) and not alive(other))


def test_what_a_child_leaves_in_its_group_is_killed(shell):
    child = shell("sleep 60 & echo $!")
    assert child.wait(LIMIT_S)
    assert child.close() == 0
    wait_for(lambda: not alive(int(child.output)))


def test_only_the_beginning_of_the_output_is_kept_and_the_rest_costs_little(shell):
    ticks = []

    def tick():
        while True:
            ticks.append(time.monotonic())
            gevent.sleep(0.005)

    ticker = gevent.spawn(tick)
    cpu_s = time.thread_time()
    child = shell("echo begin; exec yes", output_limit_bytes=10)
    assert not child.wait(1)
    child.stop(1, 1)
    child.close()
    ticker.kill()
    assert child.output == "begin\ny\ny\n"
    assert time.thread_time() - cpu_s < 0.5
    assert max(after - before for before, after in itertools.pairwise(ticks)) < 0.1


def test_output_after_the_limit_does_not_block_a_child(shell):
    child = shell("head -c 1000000 /dev/zero; exit 4")
    assert child.wait(LIMIT_S)
    assert child.close() == 4
    assert len(child.output) == 1000


def test_a_pipe_that_another_process_holds_open_delays_nothing(shell):
    child = shell("setsid sleep 60 & sleep 0.1; echo $!")
    began = time.monotonic()
    assert child.wait(LIMIT_S)
    child.close()
    assert time.monotonic() - began < 5
    os.kill(int(child.output), signal.SIGKILL)


def test_children_leave_no_descriptors_and_no_zombies(shell):
    child = shell("exit 1")
    child.wait(LIMIT_S)
    child.close()
    before = descriptors()
    for _ in range(5):
        child = shell("echo a; exit 1")
        assert child.wait(LIMIT_S)
        assert child.close() == 1
    assert descriptors() == before
    assert not list(Path(f"/proc/{child.pid}").parent.glob(str(child.pid)))


def test_a_signal_that_is_not_permitted_is_remembered(shell, monkeypatch):
    child = shell("sleep 60")

    def refuse(pid, number):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(children.os, "killpg", refuse)
        child.send(signal.SIGTERM)
    assert not child.permitted
