"""Child processes: started by a native thread, waited for in the event loop, ended with all that they have started.

A child runs in a session and process group of its own, without a shell. ``subprocess`` starts it with vfork, and so without a
copy of the server's memory; its pidfd says when it ends, without a signal handler, a thread or polling. The group is killed
before the child is reaped: until then the kernel gives its number to no other process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import gevent
from gevent.socket import wait_read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rtmpd.util.threads import Job, Threads

_READ_BYTES = 65536
_DRAIN_PAUSE_S = 0.01


def start(
    threads: Threads, argv: Sequence[str], environment: Mapping[bytes, bytes], *, timeout_s: float, output_limit_bytes: int
) -> Child:
    """Start a program in a thread, since a disk may not answer, and wait until it has started.

    A program that starts too late, or after the waiting greenlet was killed, is killed.

    Args:
        threads: Run what blocks.
        argv: The program, a path with a slash in it, and its arguments.
        environment: All of its environment variables.
        timeout_s: The time to start, with that until a thread is free.
        output_limit_bytes: How much of its standard output and standard error is kept.

    Raises:
        OSError: The program can't be started.
        TimeoutError: It was not started in time.
    """
    job: Job[Child] | None = None
    try:
        with gevent.Timeout(timeout_s, False):  # type: ignore[arg-type]
            job = threads.spawn(Child, argv, environment, output_limit_bytes)
            return job.get()
    except gevent.GreenletExit:
        _abandon(job)
        raise
    _abandon(job)
    raise TimeoutError


def _abandon(job: Job[Child] | None) -> None:
    if job is None:
        return
    started = job

    def close() -> None:
        if started.succeeded:
            started.get().close()

    started.when_done(close)


class Child:
    """A running program. A thread starts it; its methods are for the event loop. `close` must be called in any case.

    Attributes:
        pid: The number of the process and of its group.
        cpu_s: The CPU time that it took to start it, seconds.
        permitted: Whether signals could be sent: False if the program has become another user.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[bytes, bytes], output_limit_bytes: int) -> None:
        began_s = time.thread_time()
        self.permitted = True
        self._limit = output_limit_bytes
        self._text = bytearray()
        self._reader: gevent.Greenlet[[], None] | None = None
        self._pidfd = -1
        self._pipe, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._pipe, False)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - no shell
                argv, stdin=subprocess.DEVNULL, stdout=write_end, stderr=write_end, env=environment, start_new_session=True
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(write_end)
        self.pid = self._process.pid
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except BaseException:
            self.close()
            raise
        self.cpu_s = time.thread_time() - began_s

    def wait(self, limit_s: float) -> bool:
        """Wait for the end of the program, and read its output meanwhile. Return whether it has ended within *limit_s*."""
        if self._reader is None:
            self._reader = gevent.spawn(self._read)
        try:
            wait_read(self._pidfd, limit_s, TimeoutError())
        except TimeoutError:
            return False
        return True

    def stop(self, grace_s: float, kill_s: float) -> None:
        """Send SIGTERM to the group, wait for the end for *grace_s*, then send SIGKILL and wait for *kill_s*."""
        self.send(signal.SIGTERM)
        if not self.wait(grace_s):
            self.send(signal.SIGKILL)
            self.wait(kill_s)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the group. Only before `close`: another process may have the number after that."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            self.permitted = False

    def close(self) -> int | None:
        """Kill what is left of the group, read the last output, and release everything.

        Returns:
            The exit status, negative for a signal, as ``subprocess`` has it; None: the program can't be killed.
        """
        if self._reader is not None:
            self._reader.kill()
            self._read_rest()
        self.send(signal.SIGKILL)
        status = self._process.poll()
        for descriptor in (self._pipe, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        return status

    @property
    def output(self) -> str:
        """The beginning of what the program has printed."""
        return self._text.decode(errors="replace")

    def _read(self) -> None:
        """Keep the beginning of the output, and read the rest slowly: a program that prints without end costs little."""
        while True:
            wait_read(self._pipe)
            try:
                data = os.read(self._pipe, _READ_BYTES)
            except BlockingIOError:
                continue
            if not data:
                return
            full = len(self._text) >= self._limit
            self._keep(data)
            if full:
                gevent.sleep(_DRAIN_PAUSE_S)

    def _read_rest(self) -> None:
        try:
            while len(self._text) < self._limit and (data := os.read(self._pipe, _READ_BYTES)):
                self._keep(data)
        except BlockingIOError:
            # A process that has left the group still holds the pipe.
            return

    def _keep(self, data: bytes) -> None:
        self._text += data[: self._limit - len(self._text)]
