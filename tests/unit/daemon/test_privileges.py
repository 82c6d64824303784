from __future__ import annotations

import grp
import logging
import os
import pwd
from types import SimpleNamespace

import pytest

from rtmpd.daemon.privileges import drop_privileges
from rtmpd.errors import RtmpdError

USER = pwd.struct_passwd(("media", "x", 1234, 2345, "", "/var/media", "/bin/sh"))
GROUP = grp.struct_group(("video", "x", 44, []))


@pytest.fixture
def system(monkeypatch):
    """A system with one user and one group, and the calls made to it; ``uid`` and ``gid`` are those of the process."""
    made = SimpleNamespace(uid=0, gid=0, calls=[], error=None)

    def note(name):
        def call(*arguments):
            if made.error is not None:
                raise made.error
            made.calls.append((name, *arguments))

        return call

    def look_up(record, key):
        def find(wanted):
            if wanted != key:
                raise KeyError(wanted)
            return record

        return find

    monkeypatch.setattr(os, "geteuid", lambda: made.uid)
    monkeypatch.setattr(os, "getegid", lambda: made.gid)
    for name in ("setgroups", "initgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, note(name))
    monkeypatch.setattr(pwd, "getpwnam", look_up(USER, "media"))
    monkeypatch.setattr(pwd, "getpwuid", look_up(USER, 1234))
    monkeypatch.setattr(grp, "getgrnam", look_up(GROUP, "video"))
    for name in ("HOME", "USER", "LOGNAME"):
        monkeypatch.setenv(name, "root")
    return made


def drop(user="", group=""):
    drop_privileges(SimpleNamespace(user=user, group=group))


@pytest.mark.parametrize("user", ["media", "1234"])
@pytest.mark.parametrize(("group", "gid"), [("", 2345), ("video", 44), ("55", 55)])
def test_groups_are_set_before_the_user_and_all_three_ids_are_set(system, user, group, gid):
    drop(user, group)
    assert system.calls == [
        ("initgroups", "media", gid),
        ("setresgid", gid, gid, gid),
        ("setresuid", 1234, 1234, 1234),
    ]
    assert [os.environ[name] for name in ("HOME", "USER", "LOGNAME")] == ["/var/media", "media", "media"]


def test_a_group_alone_replaces_all_groups(system):
    drop(group="video")
    assert system.calls == [("setgroups", [44]), ("setresgid", 44, 44, 44), ("setresuid", 0, 0, 0)]


def test_root_without_a_user_is_warned(system, caplog):
    caplog.set_level(logging.INFO, "rtmpd")
    drop()
    assert system.calls == []
    assert "running as root: set user in [server]" in caplog.text


def test_an_ordinary_user_without_a_user_is_not(system, caplog):
    system.uid = system.gid = 1000
    drop()
    assert system.calls == []
    assert not caplog.records


def test_a_process_that_has_this_user_need_not_be_root(system):
    system.uid, system.gid = 1234, 2345
    drop("media")
    assert system.calls == []


@pytest.mark.parametrize(("user", "group"), [("media", ""), ("media", "video"), ("", "video")])
def test_only_root_can_switch_to_another_user(system, user, group):
    system.uid = system.gid = 1000
    with pytest.raises(RtmpdError, match=r"^can't switch to .*: only root can, and rtmpd was not started as root$"):
        drop(user, group)


@pytest.mark.parametrize(
    ("user", "group", "problem"),
    [
        ("nobody-here", "", r"^\[server\] user: there is no user nobody-here: "),
        ("99", "", r"^\[server\] user: there is no user 99: "),
        ("media", "audio", r"^\[server\] group: there is no group audio: create it with systemd-sysusers or groupadd$"),
    ],
)
def test_a_user_or_group_that_does_not_exist_is_named(system, user, group, problem):
    with pytest.raises(RtmpdError, match=problem):
        drop(user, group)
    assert system.calls == []


def test_a_refusal_of_the_kernel_is_an_error(system):
    system.error = PermissionError(1, "Operation not permitted")
    with pytest.raises(RtmpdError, match=r"^can't switch to user media and group video: Operation not permitted$"):
        drop("media", "video")
