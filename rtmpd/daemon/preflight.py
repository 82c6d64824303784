"""Checks of a valid configuration against this machine: ``--check-config``.

Files and programs are checked with the rights of the server's user, in a child process that switches to it. Nothing is created,
changed or listened on.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import resource
import select
import signal
import stat
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rtmpd.config.access_rules import NamedSecret
from rtmpd.config.model import ApplicationConfig
from rtmpd.config.scan import title
from rtmpd.config.secret import Secret
from rtmpd.daemon.descriptors import descriptors_problem
from rtmpd.daemon.log_sinks import JournalSink
from rtmpd.daemon.port_holders import holders_of, listening_sockets
from rtmpd.daemon.ports import OptionPath, overlap_problems
from rtmpd.daemon.privileges import drop_privileges
from rtmpd.errors import RtmpdError, SlateError
from rtmpd.media.slate import load_slate
from rtmpd.net.listener import bind_problem, bound_socket, resolved
from rtmpd.net.tls import tls_problems
from rtmpd.protocol.naming import can_be_name, needs_escapes
from rtmpd.services.auth.credentials import CredentialsError, read_credentials
from rtmpd.util.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from rtmpd.config.model import AuthConfig, Config, ListenAddress, PublishConfig, ServerConfig
    from rtmpd.daemon.port_holders import Holder, ListeningSocket

_LIMIT_S = 20.0
"""Time for disks to answer."""
_READ_BYTES = 65536
_INTERPRETER_LENGTH = 256
_SYSTEMD = 1
_STANDBY_OPTIONS = ("frame_rate_floor", "bitrate_floor", "keyframe_timeout_s", "frozen_timeout_s", "silence_timeout_s")


class Finding(NamedTuple):
    """Something that an operator should know about an option.

    Attributes:
        path: The option, as in `rtmpd.config.loader.origins`: its section, or ``applications`` and a name, then its name.
        text: The problem and a hint.
        is_note: A start or reload would succeed all the same.
    """

    path: OptionPath
    text: str
    is_note: bool = False


@dataclass(frozen=True, slots=True)
class Preflight:
    """The findings as lines of text.

    Attributes:
        problems: Problems that prevent a start, a reload, or the work of a part of the server.
        notes: Facts that may be as intended.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def preflight(config: Config, filename: str, origins: Mapping[tuple[str, ...], str], *, is_file: bool) -> Preflight:
    """Check a configuration against this machine. Blocks, as disks do, for at most 20 s.

    Args:
        config: The configuration.
        filename: The name of its source, for options that no line sets.
        origins: Where options are set, see `rtmpd.config.loader.origins`.
        is_file: Whether *filename* is a file.
    """
    config_file = filename if is_file else ""
    found = _in_child(lambda: _check_as_server(config, config_file), _LIMIT_S)
    found += check_ports(config, config_file)
    problem = descriptors_problem(config, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    found += _findings(("limits", "connection_limit"), problem)
    result = Preflight()
    for each in found:
        *section, option = each.path
        # An option that an application takes from its section is reported where the section sets it.
        place = origins.get(each.path) or origins.get(each.path[:-1]) or printable(filename)
        note = "note: " if each.is_note else ""
        line = f"{place}: {title(tuple(section))} {option}: {note}{each.text}"
        (result.notes if each.is_note else result.problems).append(line)
    return result


def _findings(path: OptionPath, problem: str) -> list[Finding]:
    return [Finding(path, problem)] if problem else []


# The child process ------------------------------------------------------------------------------------------------------


def _check_as_server(config: Config, config_file: str) -> list[Finding]:
    """Switch to the user of the server and check files with its rights."""
    server = config.server
    option = ("server", "group" if server.group and not server.user else "user")
    notes = []
    if server.user or server.group:
        try:
            drop_privileges(server)
        except RtmpdError as error:
            # The rights of another user mean nothing.
            text = str(error).removeprefix("[server] ").removeprefix(f"{option[1]}: ")
            return [Finding(option, f"{text}; files and programs were not checked")]
    elif os.geteuid() == 0:
        text = "files were checked as root, which can access all: if the service runs as another user, check as that user"
        notes = [Finding(option, text, is_note=True)]
    certificates = [
        Finding(("tls", name), text) for name, text in tls_problems(config.tls, https=bool(config.http.http_tls_listen))
    ]
    return [*notes, *check_files(config, config_file), *certificates, *check_sources(config)]


def _in_child(check: Callable[[], Iterable[Finding]], limit_s: float) -> list[Finding]:
    """Run a check in a child process, which may switch to another user and is killed after *limit_s*."""
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
        text = f"the files could not be checked within {limit_s:g} s: does a disk or network file system not respond?"
        return [Finding(("record", "record_directory"), text)]
    if status:
        # A bug. The child has printed its traceback.
        raise RuntimeError("the check of files failed")
    return [Finding(tuple(path), text, is_note) for path, text, is_note in json.loads(data)]


def _run_child(check: Callable[[], Iterable[Finding]], reading: int, writing: int) -> None:
    status = 1
    try:
        os.close(reading)
        # UTF-8 only: another codec may have to be imported, and this user may not read its file.
        data = json.dumps(list(check())).encode()
        while data:
            data = data[os.write(writing, data) :]
        status = 0
    except BaseException:  # noqa: BLE001 - the end of a process
        traceback.print_exc()
    finally:
        os._exit(status)


def _read_all(descriptor: int, deadline_s: float) -> bytes | None:
    """Read to the end; None if the deadline passes before it."""
    data = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
        part = os.read(descriptor, _READ_BYTES)
        if not part:
            return data
        data += part
    return None


# Files and directories --------------------------------------------------------------------------------------------------


def check_files(config: Config, config_file: str = "") -> Iterator[Finding]:
    """Check the files, directories and programs of a configuration with the rights of this process. Blocks.

    Args:
        config: The configuration.
        config_file: Its file; empty: it has none.
    """
    if config.record.record_all or config.record.record_streams:
        yield from _findings(("record", "record_directory"), _place_problem(config.record.record_directory, is_directory=True))
    if config.hls.hls_directory:
        yield from _findings(("hls", "hls_directory"), _place_problem(config.hls.hls_directory, is_directory=True))
    for option, path in (("log_file", config.log.log_file), ("access_log_file", config.log.access_log_file)):
        yield from _findings(("log", option), path and _place_problem(path, is_directory=False))
    if config.log.log_target == "journal" and not config.log.log_file:
        yield from _findings(("log", "log_target"), _journal_problem())
    yield from _check_tables(config)
    yield from _check_tokens(config)
    yield from _check_slates(config)
    for program in dict.fromkeys(hook.argv[0] for hook in config.hooks.hook_scripts):
        yield from _findings(("hooks", "hook_scripts"), _program_problem(program))
    yield from _check_reload(config, config_file)


def _me() -> str:
    return f"the user {_user_name(os.geteuid())}"


def _user_name(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def _shown(path: Path | str) -> str:
    return printable(str(path))


def _directory_problem(directory: Path) -> str:
    """Return why nothing can be created in a directory; empty if it can."""
    if not os.access(directory, os.F_OK):
        return f"the directory {_shown(directory)} does not exist, or {_me()} can't access it: create it or set another one"
    if not directory.is_dir():
        return f"{_shown(directory)} is not a directory"
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return f"{_shown(directory)} is on a read-only file system"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"{_me()} may not write to the directory {_shown(directory)}: chown or chmod it, or set another one"
    return ""


def _place_problem(name: str, *, is_directory: bool) -> str:
    """Return why a directory or a log file can't be used or created; empty if it can. rtmpd does not create its parent."""
    path = Path(name).absolute()
    try:
        status = path.stat()
    except FileNotFoundError:
        # A file behind a dangling link is created at the target of the link.
        problem = _directory_problem((path if is_directory else Path(os.path.realpath(path))).parent)
        return f"can't create {_shown(path)}: {problem}" if problem else ""
    except OSError as error:
        return f"{_me()} can't access {_shown(path)}: {error.strerror}"
    if is_directory:
        return _directory_problem(path)
    if stat.S_ISDIR(status.st_mode):
        return f"{_shown(path)} is a directory: a file is expected"
    if stat.S_ISSOCK(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return f"{_shown(path)} is a socket or a block device: a file or a named pipe is expected"
    if not os.access(path, os.W_OK):
        return f"{_me()} may not write to {_shown(path)}: chown or chmod it, or set another one"
    return ""


def _journal_problem() -> str:
    try:
        JournalSink().close()
    except OSError as error:
        return f"can't reach the systemd journal: {error.strerror}: set log_target = stderr or a log_file"
    return ""


def _check_tables(config: Config) -> Iterator[Finding]:
    """Check each ``auth_file`` once, and report it at the first option that names it."""
    named: list[tuple[OptionPath, str]] = [(("auth", "auth_file"), config.auth.auth_file)]
    named += [(("applications", name, "auth_file"), each.auth.auth_file) for name, each in config.applications.items()]
    seen = {""}
    for path, file in named:
        if file in seen:
            continue
        seen.add(file)
        try:
            found = read_credentials(file)
        except CredentialsError as error:
            yield Finding(path, f"{_shown(Path(file).absolute())}: {error}")
        else:
            both = (*found.publish_tokens.items(), *found.play_tokens.items())
            yield from _check_secrets(path, "token", dict.fromkeys((name, each) for name, tokens in both for each in tokens))
            yield from _check_secrets(path, "publish key", found.publish_keys)


def _check_tokens(config: Config) -> Iterator[Finding]:
    """Note tokens and publish keys that clients can't write into a URL as they are."""
    parts: list[tuple[tuple[str, ...], AuthConfig]] = [(("auth",), config.auth)]
    for name, each in config.applications.items():
        if each.auth != config.auth:
            parts.append((("applications", name), each.auth))
    for path, auth in parts:
        for option, kind in (("auth_tokens", "token"), ("auth_publish_keys", "publish key")):
            named: tuple[NamedSecret, ...] = getattr(auth, option)
            if path == ("auth",) or named != getattr(config.auth, option):
                yield from _check_secrets((*path, option), kind, ((each.name, each.secret) for each in named))


def _check_secrets(path: OptionPath, kind: str, secrets: Iterable[tuple[str, Secret]]) -> Iterator[Finding]:
    """Note the secrets of streams that URLs can't carry as they are. No note shows a part of a secret."""
    for name, secret in secrets:
        if kind == "token" and needs_escapes(secret.reveal()):
            text = "contains characters that URLs can't carry as they are: percent-encode it in URLs (& as %26, # as %23)"
        elif kind == "publish key" and not can_be_name(secret.reveal()):
            text = "can't be sent as the name of a stream: use letters and digits"
        else:
            continue
        yield Finding(path, f"the {kind} of {printable(name)} {text}", is_note=True)


def _check_slates(config: Config) -> Iterator[Finding]:
    """Read each ``slate_file`` once, and report it at the first option that names it."""
    limits = config.slate_files
    named: list[tuple[OptionPath, str]] = [(("slate", "slate_file"), config.slate.slate_file)]
    named += [(("applications", name, "slate_file"), each.slate.slate_file) for name, each in config.applications.items()]
    for path, file in named:
        limit_bytes = limits.pop(file, 0)
        if limit_bytes:
            try:
                load_slate(file, limit_bytes)
            except SlateError as error:
                yield Finding(path, f"{_shown(Path(file).absolute())}: {str(error).removeprefix(f'{file}: ')}")


def _check_reload(config: Config, config_file: str) -> Iterator[Finding]:
    """Note files that a start could read, perhaps as root, but a reload could not."""
    if config_file and not os.access(config_file, os.R_OK):
        text = f"{_me()} may not read the configuration file: a reload will fail"
        yield Finding(("server", "user"), text, is_note=True)
    for path, secret in _secrets(config):
        kind, _, file = secret.source.partition(":")
        if kind == "file" and not os.access(file, os.R_OK):
            yield Finding(path, f"{_me()} may not read {_shown(secret.source)}: a reload will fail", is_note=True)


def _secrets(config: Config) -> Iterator[tuple[OptionPath, Secret]]:
    parts: dict[OptionPath, Any] = {
        (each.name,): getattr(config, each.name) for each in fields(config) if each.name != "applications"
    }
    for name, application in config.applications.items():
        for each in fields(ApplicationConfig):
            # A part that the application takes from its section is checked there.
            if getattr(application, each.name) != getattr(config, each.name):
                parts["applications", name, each.name] = getattr(application, each.name)
    for path, part in parts.items():
        for option in fields(part):
            value = getattr(part, option.name)
            for one in value if isinstance(value, tuple) else (value,):
                secret = one.secret if isinstance(one, NamedSecret) else one
                if isinstance(secret, Secret) and secret.source:
                    yield (*path[:2], option.name), secret


def _program_problem(name: str) -> str:
    """Return why a program can't be run; empty if it can."""
    path = Path(name).absolute()
    try:
        status = path.stat()
    except OSError as error:
        return f"{_me()} can't run {_shown(path)}: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{_shown(path)} is not a file: a program is expected"
    if not os.access(path, os.X_OK):
        return f"{_me()} may not run {_shown(path)}: chmod +x it, or set another program"
    return _interpreter_problem(path)


def _interpreter_problem(path: Path) -> str:
    """Return what is wrong with the first line of a script. The kernel would report only that there is no such file."""
    try:
        with path.open("rb") as file:
            head = file.read(_INTERPRETER_LENGTH)
    except OSError:
        # A program need not be readable.
        return ""
    if head.startswith(b"\x7fELF"):
        return ""
    if not head.startswith(b"#!"):
        return f'{_shown(path)} is not a program: a script needs a first line such as "#!/bin/sh"'
    words = head[2:].partition(b"\n")[0].split()
    interpreter = os.fsdecode(words[0]) if words else ""
    if not os.access(interpreter, os.X_OK):
        return f'{_shown(path)} begins with "#!{_shown(interpreter)}", which {_me()} can\'t run'
    return ""


# Sources of streams -----------------------------------------------------------------------------------------------------


def check_sources(config: Config) -> Iterator[Finding]:
    """Note options of ``[publish]`` that have no effect beside the others."""
    yield from _check_publish(("publish",), config.publish, config.server)
    for name, each in config.applications.items():
        if each.publish != config.publish:
            yield from _check_publish(("applications", name), each.publish, config.server)


def _check_publish(path: OptionPath, options: PublishConfig, server: ServerConfig) -> Iterator[Finding]:
    if options.stall_timeout_s >= server.read_timeout_s:
        text = f"a publisher that sends nothing is disconnected before, after read_timeout_s ({server.read_timeout_s:g} s)"
        yield Finding((*path, "stall_timeout_s"), text, is_note=True)
    if options.on_conflict != "backup":
        for option in _STANDBY_OPTIONS:
            if getattr(options, option):
                text = f"has no effect with on_conflict = {options.on_conflict}: no publisher stands by"
                yield Finding((*path, option), text, is_note=True)
        if options.backup_alias:
            text = f"with on_conflict = {options.on_conflict} a backup does not stand by beside a primary"
            yield Finding((*path, "backup_alias"), text, is_note=True)
    elif 0 < options.publisher_takeover_s < options.stall_timeout_s:
        text = f"a publisher beyond standby_limit replaces a silent one before, after {options.publisher_takeover_s:g} s"
        yield Finding((*path, "stall_timeout_s"), f"{text} (publisher_takeover_s)", is_note=True)
    if options.on_conflict != "takeover" and options.takeover_by != "credential":
        text = f"has no effect with on_conflict = {options.on_conflict}"
        yield Finding((*path, "takeover_by"), text, is_note=True)


# Ports ------------------------------------------------------------------------------------------------------------------


def check_ports(config: Config, config_file: str = "") -> Iterator[Finding]:
    """Check whether all addresses can be listened on, by binding each for a moment. A running rtmpd may have them already.

    Args:
        config: The configuration.
        config_file: Its file; empty: it has none.
    """
    wanted = [(("server", "listen"), each) for each in config.server.listen]
    wanted += [(("tls", "tls_listen"), each) for each in config.tls.tls_listen]
    wanted += [(("http", "http_listen"), each) for each in config.http.http_listen if not config.http.may_be_in_use]
    wanted += [(("http", "http_tls_listen"), each) for each in config.http.http_tls_listen]
    wanted += [(("metrics", "metrics_listen"), each) for each in config.metrics.metrics_listen]
    overlaps = overlap_problems(wanted)
    with ExitStack() as stack:
        for index, (path, address) in enumerate(wanted):
            if index in overlaps:
                yield Finding(path, overlaps[index])
                continue
            try:
                stack.enter_context(bound_socket(address))
            except OSError as error:
                yield from _explain_failure(path, address, error, config_file)


def _explain_failure(path: OptionPath, address: ListenAddress, error: OSError, config_file: str) -> Iterator[Finding]:
    """Report why an address can't be bound.

    The kernel checks the right to bind a port below 1024 first, but systemd may hold the port and hand it over.
    """
    sockets = listening_sockets(resolved(address)) if error.errno in (errno.EADDRINUSE, errno.EACCES) else []
    if not sockets and error.errno != errno.EADDRINUSE:
        yield Finding(path, f"can't listen on {address}: {bind_problem(error)}")
        return
    holders = holders_of(sockets)
    servers = [each for each in holders if each.is_rtmpd]
    if os.getpid() in [each.pid for each in holders]:
        # systemd handed the socket over to this process, and will hand it over to the server, too.
        return
    if servers:
        yield Finding(path, f"{address} is in use by {_described(servers[0], config_file)}", is_note=True)
    elif _SYSTEMD in [each.pid for each in holders]:
        text = f"{address} is held by systemd: as intended if by rtmpd.socket or another socket unit of rtmpd"
        yield Finding(path, text, is_note=True)
    elif holders:
        names = ", ".join(f"{printable(each.name)} (pid {each.pid})" for each in holders)
        yield Finding(path, f"{address} is in use by {names}: stop it or choose another port")
    else:
        yield _unknown_holder(path, address, sockets)


def _described(holder: Holder, config_file: str) -> str:
    """Return the name of a running rtmpd, with its configuration file if it is another one."""
    name = f"rtmpd (pid {holder.pid})"
    other = holder.config_file
    try:
        same = Path(other).samefile(config_file) if other and config_file else other == config_file
    except OSError:
        # The file may be missing for a moment while an editor replaces it.
        same = other == str(Path(config_file).absolute())
    if same:
        return name
    return f"{name}, which runs with {printable(other)}" if other else f"{name}, which runs without a configuration file"


def _unknown_holder(path: OptionPath, address: ListenAddress, sockets: list[ListeningSocket]) -> Finding:
    """Report an address whose process is not visible: only root can see the processes of root."""
    if not sockets:
        text = f"{address} is in use by a socket that does not listen: check again in a minute, or choose another port"
        return Finding(path, text)
    user_id = sockets[0].user_id
    text = f"{address} is in use by a process of the user {_user_name(user_id)} that is not visible to {_me()}"
    if os.geteuid() != 0 and user_id in (0, os.geteuid()):
        return Finding(path, f"{text}: check as root to see whether it is rtmpd", is_note=True)
    return Finding(path, f"{text}: stop it or choose another port")
