"""How an event is delivered: a program is run, JSON is posted to a web server, or lines are written to standard output."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import queue
import signal
import threading
from typing import TYPE_CHECKING

import gevent
from gevent import get_hub

from rtmpd.http.client import BROKE_OFF, HttpError
from rtmpd.services.hooks.dispatcher import Outcome
from rtmpd.util import children
from rtmpd.util.log_throttle import LogThrottle
from rtmpd.util.text import printable

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from rtmpd.config.hook_targets import ScriptHook, WebhookHook
    from rtmpd.config.model import HooksConfig
    from rtmpd.config.secret import Secret
    from rtmpd.http.client import HttpClient
    from rtmpd.services.hooks.event import HookEvent
    from rtmpd.util.threads import Threads

log = logging.getLogger(__name__)

# What a program gets of the server's environment: nothing that is meant for the server, or secret.
_INHERITED = (b"PATH", b"HOME", b"USER", b"LOGNAME", b"SHELL", b"LANG", b"LANGUAGE", b"TZ", b"TMPDIR")
_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""
_KILL_S = 2.0
_OUTPUT_BYTES = 16384
_SHOWN_LINES = 5
_SHOWN_CHARACTERS = 400

_BODY_BYTES = 65536
_RETRIED = frozenset({408, 429})

_BATCH_BYTES = 4096
"""A pipe takes this much whole or not at all."""


class Script:
    """Runs a program for each event.

    Args:
        target: The program and its arguments.
        threads: Start it.
    """

    def __init__(self, target: ScriptHook, threads: Threads) -> None:
        self.label = printable(target.label)
        self._argv = target.argv
        self._threads = threads

    def deliver(self, event: HookEvent, attempt: int, options: HooksConfig) -> Outcome:
        """Run the program with the event in its environment, and wait for its end."""
        timeout_s = options.hook_timeout_s
        environment = _inherited() | event.environment()
        try:
            child = children.start(
                self._threads, self._argv, environment, timeout_s=timeout_s, output_limit_bytes=_OUTPUT_BYTES
            )
        except TimeoutError:
            return Outcome(f"the program could not be started within {timeout_s:g} s (hook_timeout_s)", timed_out=True)
        except OSError as error:
            return Outcome(f"the program can't be started: {error.strerror or error}")
        status: int | None = None
        try:
            in_time = child.wait(timeout_s)
            if not in_time:
                child.stop(_GRACE_S, _KILL_S)
        except gevent.GreenletExit:
            # The server stops, and the program with it.
            child.send(signal.SIGTERM)
            child.wait(_GRACE_S / 2)
            raise
        finally:
            status = child.close()
        lines = [printable(line) for line in child.output.splitlines() if line.strip()]
        for line in lines:
            log.debug("hook %s printed: %s", self.label, line)
        if in_time:
            return Outcome(_describe(status) + _quoted(lines) if status else "", cpu_s=child.cpu_s)
        end = "was killed" if status is not None else "can't be killed" if child.permitted else "runs as another user"
        problem = f"the program ran for more than {timeout_s:g} s (hook_timeout_s) and {end}{_quoted(lines)}"
        return Outcome(problem, timed_out=True, cpu_s=child.cpu_s)


def _inherited() -> dict[bytes, bytes]:
    inherited = {name: value for name, value in os.environb.items() if name in _INHERITED or name.startswith(b"LC_")}
    return {b"PATH": _PATH, **inherited}


def _describe(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _quoted(lines: list[str]) -> str:
    if not lines:
        return ""
    text = " | ".join(lines[:_SHOWN_LINES])
    more = len(text) > _SHOWN_CHARACTERS or len(lines) > _SHOWN_LINES
    return f': "{text[:_SHOWN_CHARACTERS]}{"..." if more else ""}"'


class Webhook:
    """Posts events to one URL.

    Args:
        target: The URL.
        client: Sends the requests.
        ca: Returns the authorities that may sign the certificate of an https:// server, as `HttpClient.post` takes them.
    """

    def __init__(self, target: WebhookHook, client: HttpClient, ca: Callable[[], str | bool] = lambda: True) -> None:
        self.label = target.label
        self._url = target.url
        self._client = client
        self._ca = ca

    def deliver(self, event: HookEvent, attempt: int, options: HooksConfig) -> Outcome:
        """Post an event, and wait for the response."""
        body = event.json()
        headers = {
            "Content-Type": "application/json",
            "X-Rtmpd-Event": event.type,
            "X-Rtmpd-Event-Id": event.id,
            "X-Rtmpd-Attempt": str(attempt),
        }
        if options.hook_secret:
            headers["X-Rtmpd-Signature"] = _signature(options.hook_secret, body)
        try:
            response = self._client.post(
                self._url, body, headers, timeout_s=options.hook_timeout_s, body_limit_bytes=_BODY_BYTES, ca=self._ca()
            )
        except HttpError as error:
            return Outcome(str(error), retry=not error.permanent, timed_out=error.timed_out, cpu_s=error.cpu_s)
        status = response.status
        if 200 <= status < 300:
            # A body that broke off is no matter: the status has come.
            remark = f"the response {response.defect}" if response.defect not in ("", BROKE_OFF) else ""
            return Outcome(remark=remark, cpu_s=response.cpu_s)
        problem = f"the server answered {status}" + ("; redirects are not followed" if 300 <= status < 400 else "")
        if status not in _RETRIED and status < 500:
            return Outcome(problem, cpu_s=response.cpu_s)
        text = response.headers.get("Retry-After", "")
        retry_after_s = float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
        return Outcome(problem, retry=True, retry_after_s=retry_after_s, cpu_s=response.cpu_s)


def _signature(secret: Secret, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()


class Stdio:
    """Writes events as lines, from a queue and in a native thread: a reader may pause.

    Args:
        options: The options in force; may be replaced.
        counters: The server's counters.
        descriptor: The file descriptor to write to.
    """

    def __init__(self, options: HooksConfig, counters: Counter[str], descriptor: int = 1) -> None:
        self.options = options
        self._counters = counters
        self._descriptor = descriptor
        # Bounded by `offer`, by an option that may change.
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._drops = LogThrottle()
        self._dropped = 0
        self._broken = ""
        self._loop = get_hub().loop
        # A daemon thread: one that is stuck in a write must not keep the process.
        self._thread = threading.Thread(target=self._run, name="hooks", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of events that are not written yet."""
        return self._lines.qsize()

    def offer(self, event: HookEvent) -> None:
        """Queue an event, or discard it if the queue is full. Never waits."""
        if self.waiting < self.options.hook_queue_limit and not self._broken:
            self._lines.put(event.lines(self.options.hook_stdio_format))
            return
        self._dropped += 1
        self._counters["hook_drops"] += 1
        reason = self._broken or "the reader has paused (hook_queue_limit)"
        text = "hook standard output: %s: %d events discarded so far"
        self._drops.log(log, logging.WARNING, text, reason, self._dropped)

    def end(self) -> None:
        """Ask the thread to write what is queued and to end. Does not wait."""
        self._lines.put(None)

    def stop(self, limit_s: float) -> None:
        """Write what is queued, for at most *limit_s*, and discard the rest."""
        self.end()
        # The event loop can't wait for a thread; a thread of gevent's own does.
        get_hub().threadpool.apply(self._thread.join, (limit_s,))
        if self._thread.is_alive():
            dropped = max(0, self.waiting - 1)
            self._counters["hook_drops"] += dropped
            log.warning("hook standard output: %d events discarded at shutdown", dropped)

    def _run(self) -> None:
        over = broken = False
        while not over:
            batch = [self._lines.get()]
            size = len(batch[0] or b"")
            while batch[-1] is not None and size < _BATCH_BYTES and not self._lines.empty():
                batch.append(self._lines.get())
                size += len(batch[-1] or b"")
            over = batch[-1] is None
            lines = [each for each in batch if each is not None]
            if not lines:
                continue
            problem = ""
            try:
                if not broken:
                    self._write(b"".join(lines))
            except OSError as error:
                broken = True
                problem = os.strerror(error.errno) if error.errno else "it can't be written to"
            self._loop.run_callback_threadsafe(self._settle, len(lines), broken, problem)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Another process with the same descriptor has made it non-blocking.
                os.set_blocking(self._descriptor, True)

    def _settle(self, number: int, broken: bool, problem: str) -> None:
        """Count what the thread has written; in the event loop, which owns the counters."""
        self._counters["hook_failures" if broken else "hook_deliveries"] += number
        if problem:
            self._broken = problem
            log.error("hook standard output: %s: no further events are written until rtmpd is restarted", problem)
