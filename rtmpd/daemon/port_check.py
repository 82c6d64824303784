"""Looks whether the addresses of a configuration can be listened on, without listening on them.

A check is often made beside the server that runs with the same file: its ports are taken, and that is as it should be. Imports
net and the configuration.
"""

from __future__ import annotations

import errno
import os
import pwd
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rtmpd.config.model import printable
from rtmpd.daemon.findings import Finding
from rtmpd.daemon.port_holders import holders_of, listening_sockets
from rtmpd.net.listener import numeric, reserve, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import Config, ListenAddress
    from rtmpd.daemon.port_holders import Holder, ListeningSocket

__all__ = ["check_ports"]

_SYSTEMD = 1
_Path = tuple[str, str]


def check_ports(config: Config, config_file: str = "") -> Iterator[Finding]:
    """Give what stands in the way of listening.

    Each address is bound, so that the kernel says whether it can be, and closed again. None is listened on: nobody who
    connects meanwhile gets to this process.

    Args:
        config: The configuration.
        config_file: Where it is from; empty: from no file.
    """
    wanted = [(("server", "listen"), each) for each in config.server.listen]
    wanted += [(("tls", "tls_listen"), each) for each in config.tls.tls_listen]
    wanted += [(("metrics", "metrics_listen"), each) for each in config.metrics.metrics_listen]
    seen: list[tuple[_Path, ListenAddress]] = []
    with ExitStack() as stack:
        for path, address in wanted:
            other = next((each for each in seen if numeric(each[1]).overlaps(numeric(address))), None)
            if other is not None:
                (section, option), has = other
                yield Finding(path, f"{address} can't be listened on: [{section}] {option} has {has}")
                continue
            seen.append((path, address))
            try:
                stack.enter_context(reserve(address))
            except OSError as error:
                yield from _judge(path, address, error, config_file)


def _judge(path: _Path, address: ListenAddress, error: OSError, config_file: str) -> Iterator[Finding]:
    """Say why an address can't be bound, and whether that matters.

    The right to bind is looked at before whether somebody has it: systemd may have a port below 1024, and hand it over.
    """
    sockets = listening_sockets(numeric(address)) if error.errno in (errno.EADDRINUSE, errno.EACCES) else []
    if sockets or error.errno == errno.EADDRINUSE:
        yield from _about_holders(path, address, sockets, config_file)
    else:
        yield Finding(path, f"{address} can't be listened on: {why_not(error)}")


def _about_holders(path: _Path, address: ListenAddress, sockets: list[ListeningSocket], config_file: str) -> Iterator[Finding]:
    """Say who has an address. An rtmpd may: what is asked is whether it can go on with this configuration."""
    holders = holders_of(sockets)
    servers = [each for each in holders if each.is_rtmpd]
    if os.getpid() in [each.pid for each in holders]:
        # It was handed over, and will be to the server.
        return
    if servers:
        yield Finding(path, f"{address} is in use by {_server(servers[0], config_file)}", is_note=True)
    elif _SYSTEMD in [each.pid for each in holders]:
        yield Finding(path, f"{address} is held by systemd: right if by rtmpd.socket, or another socket of rtmpd", is_note=True)
    elif holders:
        names = ", ".join(f"{printable(each.name)} (pid {each.pid})" for each in holders)
        yield Finding(path, f"{address} is in use by {names}: stop that, or choose another port")
    else:
        yield _unseen(path, address, sockets)


def _server(holder: Holder, config_file: str) -> str:
    """Name an rtmpd, and its file if that is another one."""
    name = f"rtmpd (pid {holder.pid})"
    other = holder.config_file
    try:
        same = Path(other).samefile(config_file) if other and config_file else other == config_file
    except OSError:
        # An editor may just have put another file in its place.
        same = other == str(Path(config_file).absolute())
    if same:
        return name
    return f"{name}, which runs with {printable(other)}" if other else f"{name}, which runs without a configuration file"


def _unseen(path: _Path, address: ListenAddress, sockets: list[ListeningSocket]) -> Finding:
    """Say what is known of sockets whose process may not be seen.

    Not root is told nothing of what root has open: that may be systemd, or an rtmpd that root has started.
    """
    if not sockets:
        return Finding(path, f"{address} is in use, by nobody who listens: choose another port, or look again in a minute")
    user_id = sockets[0].user_id
    owner = f"{address} is in use by a process of the user {_user(user_id)} that can't be looked at"
    if os.geteuid() != 0 and user_id in (0, os.geteuid()):
        return Finding(path, f"{owner}: as root this check says whether it is rtmpd", is_note=True)
    return Finding(path, f"{owner}: stop it, or choose another port")


def _user(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)
