"""Supervision by systemd: readiness, status, reloads, the watchdog, and the sockets that it hands over.

The protocols are those of sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3). Their variables are removed from the
environment, so that the programs of hooks do not inherit them.
"""

from __future__ import annotations

import logging
import os
import socket as stdlib_socket
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import gevent
from gevent.event import Event

from rtmpd.errors import RtmpdError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from rtmpd.hub import Hub

log = logging.getLogger(__name__)

_FIRST_DESCRIPTOR = 3
_UNSENT = 16
_DEFAULT_NAMES = ("", "unknown")
"""The name of a socket without FileDescriptorName=: with other service managers, and with systemd."""

_STATUS_S = 1.0
_RELOAD_REST_S = 0.25
"""The pause between two reloads: each blocks the event loop while it reads the file."""


class Notifier:
    """Sends notifications to systemd. Never waits and never fails; without systemd it does nothing.

    Args:
        environment: Contains ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` under systemd; they are removed.

    Attributes:
        watchdog_s: systemd kills the service without a notification for this long; 0: it does not.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        name = environment.pop("NOTIFY_SOCKET", "")
        # A name with "@" is in the abstract namespace.
        self._address = b"\0" + os.fsencode(name[1:]) if name.startswith("@") else os.fsencode(name)
        self._socket: stdlib_socket.socket | None = None
        # Messages that found systemd's queue full, in order: READY=1 must not overtake RELOADING=1.
        self._unsent: deque[bytes] = deque(maxlen=_UNSENT)
        interval, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        ours = not process or process == str(os.getpid())
        self.watchdog_s = int(interval) / 1e6 if name and ours and interval.isascii() and interval.isdigit() else 0.0
        if name.startswith(("/", "@")):
            kind = stdlib_socket.SOCK_DGRAM | stdlib_socket.SOCK_CLOEXEC | stdlib_socket.SOCK_NONBLOCK
            self._socket = stdlib_socket.socket(stdlib_socket.AF_UNIX, kind)

    def send(self, **fields: str | int) -> None:
        """Send fields as one message: ``send(READY=1, STATUS="...")``. If the queue is full, it is sent with the next one."""
        if self._socket is not None:
            text = "\n".join(f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items())
            self._unsent.append(text.encode(errors="backslashreplace"))
            self.flush()

    def flush(self) -> bool:
        """Send messages that could not be sent before; return whether all are sent."""
        while self._unsent and self._socket is not None:
            try:
                self._socket.sendto(self._unsent[0], self._address)
            except BlockingIOError:
                return False
            except OSError:
                # There is no service manager.
                self._unsent.clear()
                break
            self._unsent.popleft()
        return True

    def feed_watchdog(self) -> None:
        """Notify systemd that the event loop runs. If its queue is full, nothing is stored, so that other messages are kept."""
        if self.flush():
            self.send(WATCHDOG=1)


class Inherited(NamedTuple):
    """A listening TCP socket that systemd handed over; *name* is its ``FileDescriptorName=``, or empty."""

    name: str
    descriptor: int


def take_sockets(environment: MutableMapping[str, str] = os.environ) -> list[Inherited]:
    """Return the sockets that systemd handed over, and remove ``LISTEN_*`` from the environment.

    Raises:
        RtmpdError: A socket can't be served; the message gives the reason.
    """
    process, count, names = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if process != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    given = names.split(":")
    found = []
    for index in range(int(count)):
        name = given[index] if index < len(given) else ""
        # Without FileDescriptorName=, the name is that of the socket unit.
        name = "" if name in _DEFAULT_NAMES or name.endswith(".socket") else name
        found.append(Inherited(name, _checked(_FIRST_DESCRIPTOR + index)))
    return found


def _checked(descriptor: int) -> int:
    """Check that a descriptor is a listening TCP socket, and keep programs of hooks from inheriting it."""
    try:
        os.set_inheritable(descriptor, False)
        with stdlib_socket.socket(fileno=os.dup(descriptor)) as sock:
            stream = sock.type == stdlib_socket.SOCK_STREAM
            listens = sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN)
            if sock.family not in (stdlib_socket.AF_INET, stdlib_socket.AF_INET6) or not stream or not listens:
                problem = "not a listening TCP socket: the socket unit needs ListenStream=PORT and Accept=no"
                raise RtmpdError(f"descriptor {descriptor} from systemd is {problem}")
    except OSError as error:
        raise RtmpdError(f"descriptor {descriptor} from systemd is not a socket: {error.strerror}") from None
    return descriptor


class Supervision:
    """Notifies systemd of the server's state, and runs reloads one at a time.

    Requests that arrive during a reload lead to one more reload, which reads the file as it is by then.

    Args:
        notifier: Sends to systemd.
        hub: The source of the status.
        reload: Reloads the configuration; returns the first problem, or an empty text.
    """

    def __init__(self, notifier: Notifier, hub: Hub, reload: Callable[[], str]) -> None:
        self._notifier = notifier
        self._hub = hub
        self._reload = reload
        self._requested = Event()
        self._problem = ""
        self._sent_status = ""
        self._greenlets: list[gevent.Greenlet[[], None]] = []
        self._watchdog: gevent.Greenlet[[float], None] | None = None

    def request_reload(self) -> None:
        """Request a reload. Safe in a signal handler's greenlet, and before `start`."""
        self._requested.set()

    def start(self) -> None:
        """Notify systemd that the server is ready, and start to supervise it."""
        self._send(READY=1)
        self._greenlets = [gevent.spawn(self._keep_status), gevent.spawn(self._run_reloads)]
        if self._notifier.watchdog_s:
            # Half of the limit, as sd_watchdog_enabled(3) recommends. A blocked event loop blocks this greenlet, too.
            self._watchdog = gevent.spawn(self._feed_watchdog, self._notifier.watchdog_s / 2)

    def stopping(self, limit_s: float) -> None:
        """Notify systemd that the server stops within *limit_s*. The watchdog stays active, since a stop can hang, too."""
        gevent.killall(self._greenlets, block=False)
        self._notifier.send(STOPPING=1, STATUS="stopping", EXTEND_TIMEOUT_USEC=int(limit_s * 1e6))

    def status(self) -> str:
        """Return the state of the server in a few words."""
        streams = list(self._hub.streams.values())
        live, players = sum(each.source is not None for each in streams), sum(len(each.players) for each in streams)
        text = f"{live} stream{'' if live == 1 else 's'}, {players} player{'' if players == 1 else 's'}"
        return f"{text}; reload failed: {self._problem}" if self._problem else text

    def _send(self, **fields: int) -> None:
        self._sent_status = self.status()
        self._notifier.send(**fields, STATUS=self._sent_status)

    def _keep_status(self) -> None:
        while True:
            gevent.sleep(_STATUS_S)
            if self._notifier.flush() and self.status() != self._sent_status:
                self._send()

    def _feed_watchdog(self, interval_s: float) -> None:
        while True:
            self._notifier.feed_watchdog()
            gevent.sleep(interval_s)

    def _run_reloads(self) -> None:
        while True:
            self._requested.wait()
            self._requested.clear()
            # systemd compares the time with that of its own request, and then waits for READY=1, also after a failure.
            self._notifier.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
            try:
                self._problem = self._reload()
            except Exception as error:
                # A bug must not prevent later reloads.
                log.exception("internal error in a reload: the configuration may be applied only in part, restart rtmpd")
                self._hub.count("internal_errors")
                self._problem = f"internal error: {type(error).__name__}"
            self._send(READY=1)
            gevent.sleep(_RELOAD_REST_S)
