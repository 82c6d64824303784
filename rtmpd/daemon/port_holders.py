"""The processes that listen on a port of this machine, from /proc.

Only root can see the open files of other users' processes, so a socket may have no visible process.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtmpd.config.model import ListenAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROC: Final = Path("/proc")
_LISTEN = "0A"
_PROGRAM_ARGUMENTS = 4
"""The number of arguments among which the program's name is searched: ``python3 -P -m rtmpd``."""


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A listening TCP socket.

    Attributes:
        address: Its address. ``::`` may include IPv4: /proc does not tell.
        user_id: The user that created it.
        inode: Its inode, which identifies it among the open files of processes.
    """

    address: ListenAddress
    user_id: int
    inode: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a socket open.

    Attributes:
        pid: Its process id.
        name: Its name in the kernel.
        arguments: Its command line.
        directory: Its working directory; empty: not visible.
    """

    pid: int
    name: str
    arguments: tuple[str, ...]
    directory: str

    @property
    def is_rtmpd(self) -> bool:
        """Whether the process is an rtmpd, by its command line."""
        return any(Path(each).name == "rtmpd" for each in self.arguments[:_PROGRAM_ARGUMENTS])

    @property
    def config_file(self) -> str:
        """The absolute path of the configuration file of an rtmpd; empty: none."""
        found = ""
        for index, each in enumerate(self.arguments):
            if each in ("-c", "--config"):
                found = self.arguments[index + 1] if index + 1 < len(self.arguments) else ""
            elif each.startswith("--config="):
                found = each.partition("=")[2]
            elif each.startswith("-c") and not each.startswith("--"):
                found = each[2:]
        return str(Path(self.directory, found)) if found else ""


def listening_sockets(address: ListenAddress, proc: Path = _PROC) -> list[ListeningSocket]:
    """Return the sockets that prevent listening on a numeric address."""
    found = [each for table in ("tcp", "tcp6") for each in _of_table(proc / "net" / table) if each.address.port == address.port]
    # If no address overlaps, the socket is one whose "::" includes IPv4.
    return [each for each in found if each.address.overlaps(address)] or found


def _of_table(path: Path) -> Iterator[ListeningSocket]:
    try:
        lines = path.read_text().splitlines()[1:]
    except OSError:
        # A kernel without IPv6.
        return
    for line in lines:
        fields = line.split()
        if fields[3] == _LISTEN:
            host, _, port = fields[1].partition(":")
            yield ListeningSocket(ListenAddress(_host(host), int(port, 16)), int(fields[7]), int(fields[9]))


def _host(digits: str) -> str:
    """Parse an address: words of 32 bits in the byte order of the machine."""
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)))


def holders_of(sockets: list[ListeningSocket], proc: Path = _PROC) -> list[Holder]:
    """Return the visible processes that have one of the sockets open."""
    wanted = {f"socket:[{each.inode}]" for each in sockets}
    found = []
    for process in proc.iterdir():
        if process.name.isdigit() and _has_open(process, wanted):
            try:
                arguments = tuple(os.fsdecode(each) for each in (process / "cmdline").read_bytes().split(b"\0")[:-1])
                name = (process / "comm").read_text(errors="backslashreplace").strip()
            except OSError:
                continue
            found.append(Holder(int(process.name), name, arguments, _link(process / "cwd")))
    return sorted(found, key=lambda each: each.pid)


def _has_open(process: Path, wanted: set[str]) -> bool:
    try:
        return any(_link(each) in wanted for each in (process / "fd").iterdir())
    except OSError:
        # The process has ended, or belongs to another user.
        return False


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
