"""Starts servers for the tests by forking a process that has imported rtmpd: importing takes 0.3 s of CPU time for each.

The process is one per test process, with one thread and no event loop. What a test sees of a server is the same: its process,
its descriptors, signals and exit code. Run as a program, this module is that process.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
_REQUEST_BYTES = 1 << 17
_STATUS = 4


class Forked:
    """A process, with the part of the interface of `subprocess.Popen` that tests use."""

    def __init__(self, args: Sequence[str], pid: int, status: int, stderr: int) -> None:
        self.args = args
        self.pid = pid
        self.returncode: int | None = None
        self.stderr = open(stderr, "rb")  # noqa: SIM115
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115
        # Unlike the number, it never stands for another process.
        self._pidfd = os.pidfd_open(pid)

    def __del__(self) -> None:
        os.close(self._pidfd)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int.from_bytes(self._status.read(_STATUS), "big", signed=True)
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, None if the process still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _starter() -> socket.socket:
    """Start the process that forks, and return the socket for requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen([sys.executable, "-m", "tests.starter", str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()])
    return ours


def start(arguments: Sequence[str], stdout: int | None = None) -> Forked:
    """Run ``python -m rtmpd`` with these arguments in a fork; *stdout* is a descriptor."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    request = {"arguments": list(arguments), "environment": dict(os.environ), "descriptors": descriptors}
    stderr, stderr_end = os.pipe()
    status, status_end = os.pipe()
    ends = [stderr_end, status_end, *([] if stdout is None else [stdout])]
    try:
        socket.send_fds(_starter(), [json.dumps(request).encode()], ends)
        pid = int(_starter().recv(16))
    finally:
        os.close(stderr_end)
        os.close(status_end)
    return Forked(["rtmpd", *arguments], pid, status, stderr)


# The process that forks -----------------------------------------------------------------------------------------------------


def _forks(requests: socket.socket) -> None:
    """Fork for each request, and report the exit codes; return in each fork, in which everything else is closed."""
    ends: dict[int, tuple[int, int]] = {}
    while True:
        ready, _, _ = select.select([requests, *ends], [], [])
        for pidfd in ready:
            if pidfd is not requests:
                pid, status = ends.pop(pidfd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(status, code.to_bytes(_STATUS, "big", signed=True))
                os.close(status)
                os.close(pidfd)
        if requests not in ready:
            continue
        data, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 3)
        if not data:
            os._exit(0)
        stderr, status, *stdout = descriptors
        pid = os.fork()
        if pid == 0:
            os.dup2(stderr, 2)
            if stdout:
                os.dup2(stdout[0], 1)
            request = json.loads(data)
            requests.detach()
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            resource.setrlimit(resource.RLIMIT_NOFILE, request["descriptors"])
            os.environ.clear()
            os.environ.update(request["environment"])
            sys.argv[1:] = request["arguments"]
            return
        for descriptor in (stderr, *stdout):
            os.close(descriptor)
        ends[os.pidfd_open(pid)] = pid, status
        requests.send(str(pid).encode())


def _main() -> int:
    sys.argv[0] = str(ROOT / "rtmpd/__main__.py")
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in ("rtmpd.daemon.main", "rtmpd.daemon.preflight", "rtmpd.config.loader", "rtmpd.cli"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    _forks(requests)
    from rtmpd.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(_main())
