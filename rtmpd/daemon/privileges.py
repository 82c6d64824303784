"""From root to an ordinary user, once the ports are bound. Imports rtmpd.errors only."""

from __future__ import annotations

import grp
import logging
import os
import pwd
from typing import TYPE_CHECKING

from rtmpd.errors import RtmpdError

if TYPE_CHECKING:
    from rtmpd.config.model import ServerConfig

__all__ = ["drop_privileges"]

log = logging.getLogger(__name__)


def drop_privileges(server: ServerConfig) -> None:
    """Become the user and group of the configuration for good, in all threads.

    Who is that user already need not be root.

    Raises:
        RtmpdError: There is no such user or group, or it takes root to become it.
    """
    if not server.user and not server.group:
        if os.geteuid() == 0:
            log.warning("running as root: set user in [server], and rtmpd becomes that user once it listens")
        return
    user, uid, gid = _user(server.user)
    if server.group:
        gid = _group(server.group)
    assert gid is not None
    if os.geteuid() != 0:
        if (uid, gid) == (os.geteuid(), os.getegid()):
            return
        raise RtmpdError(f"can't become {_both(server)}: only root can, and rtmpd was not started as root")
    try:
        # Of all groups of root's, none is kept.
        if user is None:
            os.setgroups([gid])
        else:
            os.initgroups(user.pw_name, gid)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise RtmpdError(f"can't become {_both(server)}: {error.strerror}") from None
    if user is not None:
        os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
    log.info("became %s", _both(server))


def _both(server: ServerConfig) -> str:
    parts = [f"user {server.user}"] if server.user else []
    parts += [f"group {server.group}"] if server.group else []
    return " and ".join(parts)


def _user(name: str) -> tuple[pwd.struct_passwd | None, int, int | None]:
    """Return what is known of a user, its number, and the number of its group."""
    if not name:
        return None, os.geteuid(), os.getegid()
    try:
        found = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name.isdigit():
            raise RtmpdError(f"[server] user: there is no user {name}: make one, or give its name") from None
        raise RtmpdError(f"[server] user: there is no user {name}: systemd-sysusers, adduser or useradd makes one") from None
    return found, found.pw_uid, found.pw_gid


def _group(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise RtmpdError(f"[server] group: there is no group {name}") from None
