"""Checks a configuration against this machine: ``--check-config``, once the values are right by themselves.

What a start would do as the server's user is looked at as that user, in a process that ends with the check: the rights of root
say nothing. Nothing is changed. Imports the configuration, net and the daemon's single checks.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
import traceback
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING

from rtmpd.config.model import printable
from rtmpd.config.scan import title
from rtmpd.daemon.descriptors import descriptors_problem
from rtmpd.daemon.file_check import check_files
from rtmpd.daemon.findings import Finding
from rtmpd.daemon.port_check import check_ports
from rtmpd.daemon.privileges import drop_privileges
from rtmpd.errors import RtmpdError
from rtmpd.net.tls import tls_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from rtmpd.config.model import Config

__all__ = ["Preflight", "preflight"]

_LIMIT_S = 20.0
"""Time that disks have."""
_READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found; lines as of `rtmpd.errors.ConfigError`.

    Attributes:
        problems: What keeps a start, a reload or a part of the server from working.
        notes: What an operator may want to know, and is right as it may be.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def preflight(config: Config, filename: str, origins: Mapping[tuple[str, ...], str], *, is_file: bool) -> Preflight:
    """Check a configuration against this machine.

    Args:
        config: The configuration.
        filename: What it is from, for what no line has set.
        origins: Where options are set; see `rtmpd.config.loader.origins`.
        is_file: Whether *filename* is a file.
    """
    config_file = filename if is_file else ""
    found = _in_child(lambda: _as_server(config, config_file), _LIMIT_S)
    found += check_ports(config, config_file)
    found += _check_descriptors(config)
    result = Preflight()
    for each in found:
        *section, option = each.path
        # What an application takes from its section is named where that sets it.
        place = origins.get(each.path) or origins.get(each.path[:-1]) or printable(filename)
        note = "note: " if each.is_note else ""
        line = f"{place}: {title(tuple(section))} {option}: {note}{each.text}"
        (result.notes if each.is_note else result.problems).append(line)
    return result


def _check_descriptors(config: Config) -> Iterator[Finding]:
    problem = descriptors_problem(config, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    if problem:
        yield Finding(("limits", "connection_limit"), problem)


def _as_server(config: Config, config_file: str) -> list[Finding]:
    """Look as the user that the server will be."""
    server = config.server
    option = ("server", "group" if server.group and not server.user else "user")
    notes = []
    if server.user or server.group:
        try:
            drop_privileges(server)
        except RtmpdError as error:
            # Whatever somebody else may do says nothing.
            text = str(error).removeprefix("[server] ").removeprefix(f"{option[1]}: ")
            return [Finding(option, f"{text}; files and programs were not looked at")]
    elif os.geteuid() == 0:
        text = "files were looked at as root, who may do everything: if the service runs as another user, check as that one"
        notes = [Finding(option, text, is_note=True)]
    certificates = [Finding(("tls", name), text) for name, text in tls_problems(config.tls)]
    return [*notes, *check_files(config, config_file), *certificates]


def _in_child(check: Callable[[], Iterable[Finding]], limit_s: float) -> list[Finding]:
    """Run a check in a process of its own, which may become somebody else, and is not waited for for ever."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run_child(check, reading, writing)
    os.close(writing)
    data = None
    try:
        data = _read_all(reading, time.monotonic() + limit_s)
    finally:
        os.close(reading)
        if data is None:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if data is None:
        return [
            Finding(("record", "record_directory"), f"the files could not be looked at within {limit_s:g} s: is a disk away?")
        ]
    if status:
        # A bug; its traceback has been printed.
        raise RuntimeError("the check of files failed")
    return [Finding(tuple(path), text, is_note) for path, text, is_note in json.loads(data)]


def _run_child(check: Callable[[], Iterable[Finding]], reading: int, writing: int) -> None:
    status = 1
    try:
        os.close(reading)
        # No codec but UTF-8: another may have to be loaded, from where this user may not read.
        data = json.dumps([astuple(each) for each in check()]).encode()
        while data:
            data = data[os.write(writing, data) :]
        status = 0
    except BaseException:  # noqa: BLE001 - the end of a process
        traceback.print_exc()
    finally:
        os._exit(status)


def _read_all(descriptor: int, deadline_s: float) -> bytes | None:
    """Read to the end; None if that does not come in time."""
    data = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
        part = os.read(descriptor, _READ_BYTES)
        if not part:
            return data
        data += part
    return None
