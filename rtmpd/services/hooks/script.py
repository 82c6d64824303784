"""Scripts: a program is run for each event, which it finds in its environment.

It is started by a native thread, in a process group of its own, without a shell and without what the server's environment says
beyond a few names. The event loop waits for it by its pidfd. When it has ended, by itself or since its time was over, whatever
it has left in its group is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import gevent
from gevent.socket import wait_read

from rtmpd.config.model import printable
from rtmpd.services.hooks.board import Outcome
from rtmpd.services.hooks.notice import environment
from rtmpd.services.hooks.share import Cost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.config.hook_targets import ScriptHook
    from rtmpd.config.model import HooksConfig
    from rtmpd.services.hooks.notice import Notice
    from rtmpd.services.hooks.share import CpuShare
    from rtmpd.util.threads import Job, Threads

__all__ = ["Script"]

log = logging.getLogger(__name__)

_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR")
_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""
_REAP_S = 2.0
_OUTPUT_BYTES = 16384
_READ_BYTES = 65536
_DRAIN_PAUSE_S = 0.01
_SHOWN_LINES = 5
_SHOWN_CHARACTERS = 400


def _base() -> dict[bytes, bytes]:
    """What of the server's environment a script gets: nothing that is meant for the server, or secret."""
    kept = {name.encode(): os.environb[name.encode()] for name in _KEPT if name.encode() in os.environb}
    kept |= {name: value for name, value in os.environb.items() if name.startswith(b"LC_")}
    return {b"PATH": _PATH, **kept}


class _Process:
    """A program that runs.

    Attributes:
        cpu_s: What it cost to start it.
    """

    def __init__(self, argv: tuple[str, ...], variables: Mapping[bytes, bytes]) -> None:
        """Start it; called in a thread, since a disk may not answer.

        Raises:
            OSError: It can't be started.
        """
        began_s = time.thread_time()
        self._output, write_end = os.pipe2(os.O_CLOEXEC)
        self._pidfd = -1
        try:
            self._child = subprocess.Popen(  # noqa: S603 - no shell, and nothing from the wire in it
                argv, stdin=subprocess.DEVNULL, stdout=write_end, stderr=write_end, env=variables, start_new_session=True
            )
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(write_end)
        try:
            self._pidfd = os.pidfd_open(self._child.pid)
            os.set_blocking(self._output, False)
        except BaseException:
            self.end()
            raise
        self._text = bytearray()
        self.cpu_s = time.thread_time() - began_s

    def wait(self, limit_s: float) -> bool:
        """Wait for its end; return whether that has come within *limit_s*."""
        if self._child.returncode is not None:
            return True
        try:
            wait_read(self._pidfd, limit_s, TimeoutError())
        except TimeoutError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its group. Only before `end`: the number may be somebody else's after that."""
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            # It has become another user: nothing that we may end.
            log.warning("hook %s: it runs as another user, and can't be ended", printable(str(self._child.args[0])))  # type: ignore[index]

    def read(self) -> None:
        """Keep the begin of its output, and drain the rest slowly. Runs until it is killed, or there is no more."""
        while True:
            wait_read(self._output)
            try:
                data = os.read(self._output, _READ_BYTES)
            except BlockingIOError:
                continue
            if not data:
                return
            if not self._keep(data):
                gevent.sleep(_DRAIN_PAUSE_S)

    def _keep(self, data: bytes) -> bool:
        room = _OUTPUT_BYTES - len(self._text)
        self._text += data[:room]
        return room > 0

    def end(self) -> int | None:
        """Kill what is left of its group, and let go of everything; return its exit status. None: it can't be killed.

        Its own number is not free before it is reaped, so the group is its own.
        """
        self.signal(signal.SIGKILL)
        status = self._child.poll()
        for descriptor in (self._output, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        return status

    def take_rest(self) -> str:
        """Read what has come last, and return all output that was kept."""
        try:
            while len(self._text) < _OUTPUT_BYTES:
                data = os.read(self._output, _READ_BYTES)
                if not data:
                    break
                self._keep(data)
        except BlockingIOError:
            # Somebody whom it has started still has the pipe.
            return self._text.decode(errors="replace")
        return self._text.decode(errors="replace")


class Script:
    """Runs one program.

    Args:
        target: What to run.
        threads: Start it.
        share: Says when.
    """

    def __init__(self, target: ScriptHook, threads: Threads, share: CpuShare) -> None:
        self._share = share
        self._cost = Cost()
        self.label = printable(target.label)
        self._argv = target.argv
        self._threads = threads

    def carry(self, notice: Notice, attempt: int, config: HooksConfig) -> Outcome:
        """Run the program for an event, and wait for its end."""
        timeout_s = config.hook_timeout_s
        self._share.wait(self._cost)
        try:
            process = self._start(notice, timeout_s)
        except OSError as error:
            return Outcome(f"it can't be started: {error.strerror or error}")
        if process is None:
            return Outcome(f"it could not be started in {timeout_s:g} s", timed_out=True)
        self._cost.add(process.cpu_s)
        return self._see_through(process, timeout_s)

    def _start(self, notice: Notice, timeout_s: float) -> _Process | None:
        job: Job[_Process] | None = None
        try:
            with gevent.Timeout(timeout_s, False):  # type: ignore[arg-type]
                job = self._threads.spawn(_Process, self._argv, _base() | environment(notice))
                return job.get()
        except gevent.GreenletExit:
            _abandon(job)
            raise
        _abandon(job)
        return None

    def _see_through(self, process: _Process, timeout_s: float) -> Outcome:
        reader = gevent.spawn(process.read)
        in_time = True
        status: int | None = None
        output = ""
        try:
            in_time = process.wait(timeout_s)
            if not in_time:
                process.signal(signal.SIGTERM)
                if not process.wait(_GRACE_S):
                    process.signal(signal.SIGKILL)
                    process.wait(_REAP_S)
        except gevent.GreenletExit:
            # The server ends, and the program with it.
            process.signal(signal.SIGTERM)
            process.wait(_GRACE_S / 2)
            raise
        finally:
            reader.kill()
            output = process.take_rest()
            status = process.end()
        lines = [printable(line) for line in output.splitlines() if line.strip()]
        for line in lines:
            log.debug("hook %s: it says: %s", self.label, line)
        said = _quoted(lines)
        if not in_time:
            end = "" if status is not None else ", and can't be killed"
            return Outcome(f"it ran for more than {timeout_s:g} s and was ended{end}{said}", timed_out=True)
        if status:
            return Outcome(f"{_describe(status)}{said}")
        return Outcome()


def _abandon(job: Job[_Process] | None) -> None:
    """See to it that a program that nobody waits for any more ends when it has begun."""
    if job is None:
        return
    begun = job

    def end() -> None:
        if begun.succeeded:
            begun.get().end()

    begun.when_done(end)


def _describe(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"


def _quoted(lines: list[str]) -> str:
    if not lines:
        return ""
    text = " | ".join(lines[:_SHOWN_LINES])
    more = len(text) > _SHOWN_CHARACTERS or len(lines) > _SHOWN_LINES
    return f': "{text[:_SHOWN_CHARACTERS]}{"..." if more else ""}"'
