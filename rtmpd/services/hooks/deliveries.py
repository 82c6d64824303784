"""How an event is delivered: to a program, by running it, and to a web server, by a POST with JSON."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import signal
from typing import TYPE_CHECKING

import gevent

from rtmpd.config.model import printable
from rtmpd.http.client import BROKE_OFF, HttpError
from rtmpd.services.hooks.dispatcher import Outcome
from rtmpd.util import children

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.hook_targets import ScriptHook, WebhookHook
    from rtmpd.config.model import HooksConfig
    from rtmpd.config.secret import Secret
    from rtmpd.http.client import HttpClient
    from rtmpd.services.hooks.event import HookEvent
    from rtmpd.util.threads import Threads

__all__ = ["Script", "Webhook"]

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
