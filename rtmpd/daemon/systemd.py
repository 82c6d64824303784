"""What systemd and a service tell each other: notifications, the watchdog's interval, sockets that are handed over.

The protocols of sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3), without a library. Everything is taken from the
environment once, and out of it, so that programs which hooks start do not take it for theirs. Imports rtmpd.errors only.
"""

from __future__ import annotations

import os
import socket as stdlib_socket
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtmpd.errors import RtmpdError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Inherited", "Notifier", "take_sockets"]

_FIRST_DESCRIPTOR = 3
_UNSENT = 16
_DEFAULT_NAMES = ("", "unknown")
"""What a socket is called that nobody has named: by old or other managers, and by systemd."""


class Notifier:
    """Tells systemd how the service does. Never waits and never fails; without systemd it does nothing.

    Args:
        environment: Has ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``, if there is a systemd; they are removed.

    Attributes:
        watchdog_s: systemd ends the service when it hears nothing for this long; 0: it does not.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        name = environment.pop("NOTIFY_SOCKET", "")
        # A name with "@" is in the abstract namespace, which is not in the file system.
        self._address = b"\0" + os.fsencode(name[1:]) if name.startswith("@") else os.fsencode(name)
        self._socket: stdlib_socket.socket | None = None
        # What found systemd's queue full: in order, since RELOADING=1 and READY=1 mean nothing the other way round.
        self._unsent: deque[bytes] = deque(maxlen=_UNSENT)
        interval, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        ours = not process or process == str(os.getpid())
        self.watchdog_s = int(interval) / 1e6 if name and ours and interval.isascii() and interval.isdigit() else 0.0
        if name.startswith(("/", "@")):
            kind = stdlib_socket.SOCK_DGRAM | stdlib_socket.SOCK_CLOEXEC | stdlib_socket.SOCK_NONBLOCK
            self._socket = stdlib_socket.socket(stdlib_socket.AF_UNIX, kind)

    def send(self, **fields: str | int) -> None:
        """Send some fields as one message: ``send(READY=1, STATUS="...")``. What can't go out now does with the next one."""
        if self._socket is not None:
            text = "\n".join(f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items())
            self._unsent.append(text.encode(errors="backslashreplace"))
            self.flush()

    def flush(self) -> bool:
        """Send what could not be sent before; return whether nothing is left of it."""
        while self._unsent and self._socket is not None:
            try:
                self._socket.sendto(self._unsent[0], self._address)
            except BlockingIOError:
                return False
            except OSError:
                # Nobody is there, and nobody to tell.
                self._unsent.clear()
                break
            self._unsent.popleft()
        return True

    def feed_watchdog(self) -> None:
        """Say that the event loop runs; if systemd does not listen, this is not kept at the cost of what matters more."""
        if self.flush():
            self.send(WATCHDOG=1)

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass(frozen=True, slots=True)
class Inherited:
    """A socket that was handed over.

    Attributes:
        name: What the socket unit calls it (``FileDescriptorName=``); empty: nothing in particular.
        descriptor: It listens on TCP.
    """

    name: str
    descriptor: int


def take_sockets(environment: MutableMapping[str, str] = os.environ) -> list[Inherited]:
    """Return the sockets that this process was started with; take ``LISTEN_*`` out of the environment.

    Raises:
        RtmpdError: One is not what can be served; the message says which, and why.
    """
    process, count, names = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if process != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    given = names.split(":")
    found = []
    for index in range(int(count)):
        name = given[index] if index < len(given) else ""
        # Without FileDescriptorName=, a socket has the name of its unit.
        name = "" if name in _DEFAULT_NAMES or name.endswith(".socket") else name
        found.append(_checked(Inherited(name, _FIRST_DESCRIPTOR + index)))
    return found


def _checked(one: Inherited) -> Inherited:
    """Keep a descriptor from programs that hooks start, and see what it is."""
    label = f"descriptor {one.descriptor}, which systemd handed over,"
    try:
        os.set_inheritable(one.descriptor, False)
        with stdlib_socket.socket(fileno=os.dup(one.descriptor)) as sock:
            stream = sock.type == stdlib_socket.SOCK_STREAM
            listens = sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN)
            if sock.family not in (stdlib_socket.AF_INET, stdlib_socket.AF_INET6) or not stream or not listens:
                raise RtmpdError(f"{label} is no TCP socket that listens: a socket unit needs ListenStream=PORT and Accept=no")
    except OSError as error:
        raise RtmpdError(f"{label} is no socket: {error.strerror}") from None
    return one
