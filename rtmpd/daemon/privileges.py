"""Switching from root to another user and group, once all addresses are bound."""

from __future__ import annotations

import grp
import logging
import os
import pwd
from typing import TYPE_CHECKING

from rtmpd.errors import RtmpdError

if TYPE_CHECKING:
    from rtmpd.config.model import ServerConfig

log = logging.getLogger(__name__)


def drop_privileges(server: ServerConfig) -> None:
    """Switch to the user and group of the configuration for good, in all threads.

    A process that already has this user and group need not be root.

    Raises:
        RtmpdError: The user or group does not exist, or the process is not root.
    """
    if not server.user and not server.group:
        if os.geteuid() == 0:
            log.warning("running as root: set user in [server] to switch to another user after binding the addresses")
        return
    user, uid, gid = _user(server.user)
    if server.group:
        gid = _group(server.group)
    assert gid is not None
    if os.geteuid() != 0:
        if (uid, gid) == (os.geteuid(), os.getegid()):
            return
        raise RtmpdError(f"can't switch to {_described(server)}: only root can, and rtmpd was not started as root")
    try:
        # No group of root is kept.
        if user is None:
            os.setgroups([gid])
        else:
            os.initgroups(user.pw_name, gid)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise RtmpdError(f"can't switch to {_described(server)}: {error.strerror}") from None
    if user is not None:
        os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
    log.info("switched to %s", _described(server))


def _described(server: ServerConfig) -> str:
    parts = [f"user {server.user}"] if server.user else []
    parts += [f"group {server.group}"] if server.group else []
    return " and ".join(parts)


def _user(name: str) -> tuple[pwd.struct_passwd | None, int, int | None]:
    """Return the entry of a user, the user id, and the id of the primary group."""
    if not name:
        return None, os.geteuid(), os.getegid()
    try:
        found = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        hint = "create it or set a name" if name.isdigit() else "create it with systemd-sysusers, adduser or useradd"
        raise RtmpdError(f"[server] user: there is no user {name}: {hint}") from None
    return found, found.pw_uid, found.pw_gid


def _group(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise RtmpdError(f"[server] group: there is no group {name}: create it with systemd-sysusers or groupadd") from None
