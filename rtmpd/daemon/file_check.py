"""Looks whether files, directories and programs of a configuration are there, and may be used as they will be.

Rights are those of who runs this, so it is run as the user of the server. Nothing is made, and nothing opened for writing.
Blocks, as disks do. Imports the configuration, the sinks of logs and the reader of ``auth_file``.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtmpd.config.access_rules import NamedSecret
from rtmpd.config.model import ApplicationConfig, printable
from rtmpd.config.secret import Secret
from rtmpd.daemon.findings import Finding
from rtmpd.daemon.log_sinks import JournalSink
from rtmpd.services.auth.table import TableError
from rtmpd.services.auth.table_file import read_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import Config

__all__ = ["check_files"]

_INTERPRETER_LENGTH = 256


def check_files(config: Config, config_file: str = "") -> Iterator[Finding]:
    """Give what is wrong with the files, directories and programs that a configuration names.

    Args:
        config: The configuration.
        config_file: Where it is from; empty: from no file.
    """
    if config.record.record_all or config.record.record_streams:
        yield from _found(("record", "record_directory"), _directory_problem(config.record.record_directory))
    yield from _found(("log", "log_file"), config.log.log_file and _log_problem(config.log.log_file))
    yield from _found(("log", "access_log_file"), config.log.access_log_file and _log_problem(config.log.access_log_file))
    if config.log.log_target == "journal" and not config.log.log_file:
        yield from _found(("log", "log_target"), _journal_problem())
    yield from _check_tables(config)
    for program in dict.fromkeys(hook.argv[0] for hook in config.hooks.hook_scripts):
        yield from _found(("hooks", "hook_scripts"), _program_problem(program))
    yield from _check_reload(config, config_file)


def _found(path: tuple[str, ...], problem: str) -> Iterator[Finding]:
    if problem:
        yield Finding(path, problem)


def _me() -> str:
    try:
        return f"the user {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"the user {os.geteuid()}"


def _shown(path: Path | str) -> str:
    return printable(str(path))


# Directories and logs ---------------------------------------------------------------------------------------------------


def _directory_problem(name: str) -> str:
    """Say why recordings can't be written to a directory. rtmpd makes the last component of its path, and no more."""
    path = Path(name).absolute()
    try:
        status = path.stat()
    except FileNotFoundError:
        problem = _place_problem(path.parent)
        return f"{_shown(path)} can't be made: {problem}" if problem else ""
    except OSError as error:
        return f"{_shown(path)} can't be looked at by {_me()}: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode):
        return f"{_shown(path)} is no directory, one is expected"
    return _place_problem(path)


def _place_problem(directory: Path) -> str:
    """Say why nothing can be made in a directory; empty if it can."""
    if not os.access(directory, os.F_OK):
        return f"there is no directory {_shown(directory)}, or {_me()} can't get to it: make it, or name another"
    if not directory.is_dir():
        return f"{_shown(directory)} is no directory, one is expected"
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return f"{_shown(directory)} is on a file system that is read-only here"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"{_me()} may not write to the directory {_shown(directory)}: chown or chmod it, or name another"
    return ""


def _log_problem(name: str) -> str:
    """Say why a log can't be written to a file. rtmpd makes the file, but not its directory."""
    path = Path(name).absolute()
    try:
        status = path.stat()
    except FileNotFoundError:
        # Through a link that leads nowhere, the file is made where it leads to.
        problem = _place_problem(Path(os.path.realpath(path)).parent)
        return f"{_shown(path)} can't be made: {problem}" if problem else ""
    except OSError as error:
        return f"{_shown(path)} can't be looked at by {_me()}: {error.strerror}"
    if stat.S_ISDIR(status.st_mode):
        return f"{_shown(path)} is a directory, a file is expected"
    if stat.S_ISSOCK(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return f"{_shown(path)} is a socket or a disk, a file or a named pipe is expected"
    if not os.access(path, os.W_OK):
        return f"{_me()} may not write to {_shown(path)}: chown or chmod it, or name another"
    return ""


def _journal_problem() -> str:
    try:
        JournalSink().close()
    except OSError as error:
        return f"the journal of systemd can't be reached: {error.strerror}; log_target = stderr, or a log_file, works without"
    return ""


# What is read -----------------------------------------------------------------------------------------------------------


def _check_tables(config: Config) -> Iterator[Finding]:
    """Look at each ``auth_file``, once, and report it where it is named."""
    named: list[tuple[tuple[str, ...], str]] = [(("auth", "auth_file"), config.auth.auth_file)]
    named += [(("applications", name, "auth_file"), each.auth.auth_file) for name, each in config.applications.items()]
    seen = {""}
    for path, file in named:
        if file in seen:
            continue
        seen.add(file)
        try:
            read_table(file)
        except TableError as error:
            yield Finding(path, f"{_shown(Path(file).absolute())}: {error}")


def _check_reload(config: Config, config_file: str) -> Iterator[Finding]:
    """Note what a start could read, maybe as root, and a reload could not."""
    if config_file and not os.access(config_file, os.R_OK):
        text = f"{_me()} may not read the configuration file: a reload will fail"
        yield Finding(("server", "user"), text, is_note=True)
    for path, secret in _secrets(config):
        kind, _, file = secret.source.partition(":")
        if kind == "file" and not os.access(file, os.R_OK):
            yield Finding(path, f"{_me()} may not read {_shown(secret.source)}: a reload will fail", is_note=True)


def _secrets(config: Config) -> Iterator[tuple[tuple[str, ...], Secret]]:
    parts: dict[tuple[str, ...], Any] = {
        (each.name,): getattr(config, each.name) for each in fields(config) if each.name != "applications"
    }
    for name, application in config.applications.items():
        for each in fields(ApplicationConfig):
            # What follows its section has been seen there.
            if getattr(application, each.name) != getattr(config, each.name):
                parts["applications", name, each.name] = getattr(application, each.name)
    for path, part in parts.items():
        for option in fields(part):
            value = getattr(part, option.name)
            for one in value if isinstance(value, tuple) else (value,):
                secret = one.secret if isinstance(one, NamedSecret) else one
                if isinstance(secret, Secret) and secret.source:
                    yield (*path[:2], option.name), secret


# Programs ---------------------------------------------------------------------------------------------------------------


def _program_problem(name: str) -> str:
    """Say why a program can't be run."""
    path = Path(name).absolute()
    try:
        status = path.stat()
    except OSError as error:
        return f"{_shown(path)} can't be run by {_me()}: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{_shown(path)} is no file, a program is expected"
    if not os.access(path, os.X_OK):
        return f"{_me()} may not run {_shown(path)}: chmod +x it, or name another program"
    return _interpreter_problem(path)


def _interpreter_problem(path: Path) -> str:
    """Say what is wrong with a script's first line, of which the kernel only says that there is no such file."""
    try:
        with path.open("rb") as file:
            head = file.read(_INTERPRETER_LENGTH)
    except OSError:
        # A program need not be readable.
        return ""
    if not head.startswith(b"#!"):
        return (
            "" if head.startswith(b"\x7fELF") else f'{_shown(path)} is no program: a script begins with "#!/bin/sh" or the like'
        )
    words = head[2:].partition(b"\n")[0].split()
    interpreter = os.fsdecode(words[0]) if words else ""
    if not os.access(interpreter, os.X_OK):
        return f'{_shown(path)} begins with "#!{_shown(interpreter)}", which {_me()} can\'t run'
    return ""
