"""Loads a configuration file into a ``Config``, or reports all its problems."""

from __future__ import annotations

import difflib
import functools
import os
import stat
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_type_hints

from configobj import ConfigObj, ConfigObjError, flatten_errors
from configobj.validate import ValidateError

from rtmpd.config.access_rules import NAME_LENGTH, is_name
from rtmpd.config.checks import converter
from rtmpd.config.model import DEFAULT_APPLICATION, ApplicationConfig, Config
from rtmpd.config.scan import Path, Scan, scan, split_values, title
from rtmpd.config.spec import MANY, configspec, sections
from rtmpd.errors import ConfigError
from rtmpd.protocol.naming import join_key
from rtmpd.util.files import reading
from rtmpd.util.text import printable

if TYPE_CHECKING:
    from pathlib import Path as FilePath

Overrides = Mapping[tuple[str, str], list[str] | str]
"""(section, option) to a value that overrides the file's: a list for an option with several values."""

_NO_OVERRIDES: Overrides = MappingProxyType({})
_FILE_LIMIT_BYTES = 1 << 20


def load_file(path: str | FilePath, overrides: Overrides = _NO_OVERRIDES) -> Config:
    """Load a configuration file; *overrides* take precedence over it. Blocks, as disks do.

    Raises:
        ConfigError: The file can't be read or is wrong; the error has all problems.
    """
    try:
        text = _read(path)
    except ValueError as error:
        raise ConfigError([f"{printable(str(path))}: {error}", *_overridden(overrides)[1]]) from None
    return load_text(text, str(path), overrides)


def load_text(text: str, filename: str = "<built-in>", overrides: Overrides = _NO_OVERRIDES) -> Config:
    """Load a configuration from its text. The empty text gives the defaults.

    Args:
        text: The text of a configuration file.
        filename: The name of the file in messages.
        overrides: Values that take precedence over the text's. They are checked, too.

    Raises:
        ConfigError: The configuration is wrong; the error has all problems.
    """
    found = scan(text)
    try:
        parsed = ConfigObj(found.lines, configspec=configspec(), interpolation=False)
    except ConfigObjError as error:
        # Not known to happen: the scan passes on only lines that configobj can read.
        found.problems += [(each.line_number, str(each)) for each in error.errors]
        parsed = ConfigObj(configspec=configspec(), interpolation=False)
    _remove_unknown(parsed, configspec(), (), found)
    applications = parsed.pop("applications", {})
    checked = parsed.validate(converter(), preserve_errors=True)
    for path, option, problem in flatten_errors(parsed, checked):
        found.problems.append((found.where[(*path, option)], f"{title(tuple(path))} {option}: {problem}"))
    _convert_applications(applications, found)
    values, flag_problems = _overridden(overrides)
    found.problems.sort(key=lambda problem: problem[0])
    problems = [f"{printable(filename)}:{line}: {what}" for line, what in found.problems] + flag_problems
    if problems:
        raise ConfigError(problems)
    for (section, option), value in values.items():
        parsed[section][option] = value
    config = _build(parsed, applications)
    problems = [f"{printable(filename)}{_line_of(found, path)}: {what}" for path, what in _contradictions(config)]
    if problems:
        raise ConfigError(problems)
    return config


def _contradictions(config: Config) -> list[tuple[Path, str]]:
    """Return problems between options that are valid by themselves: the option's path, and the problem."""
    parts: dict[Path, ApplicationConfig] = {("auth",): config.defaults}
    # A problem that an application takes from [auth] is reported there.
    parts |= {("applications", name): each for name, each in config.applications.items() if each.auth != config.auth}
    found = []
    for path, part in parts.items():
        mode = part.auth.auth_mode
        option = {"token": "auth_tokens", "file": "auth_file", "callback": "auth_callback"}.get(mode, "auth_mode")
        if not getattr(part.auth, option):
            found.append(((*path, "auth_mode"), f'{title(path)} auth_mode: "{mode}" needs {option}'))
    return found


def _line_of(found: Scan, path: Path) -> str:
    """Return the line of an option, of its section, or of the option in [auth]; empty if a flag has set the option."""
    line = found.where.get(path) or found.where.get(path[:-1]) or found.where.get(("auth", path[-1]))
    return f":{line}" if line else ""


def origins(path: str | FilePath | None, overrides: Overrides = _NO_OVERRIDES) -> dict[Path, str]:
    """Return where options are set: the path of each option to ``FILE:LINE`` or the flag.

    Args:
        path: The file, which has been loaded before; None: none was given.
        overrides: As for `load_file`.
    """
    try:
        lines = scan(_read(path)).where if path is not None else {}
    except ValueError:
        # A pipe can be read only once: only flags are known then.
        lines = {}
    found = {option: f"{printable(str(path))}:{line}" for option, line in lines.items()}
    return found | {option: _flags()[option] for option in overrides}


def _read(path: str | FilePath) -> str:
    """Read a file; raises ValueError with the problem."""
    try:
        # A pipe is allowed here, for a start: a reload reads in a thread, with a deadline.
        with reading(str(path)), open(path, "rb", opener=_open_at_once) as file:
            data = file.read(_FILE_LIMIT_BYTES + 1)
            is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ValueError(f"can't be read: {reason}") from None
    if is_pipe and not data:
        # For example the <(...) of a shell, which the start has read. It must not count as an empty configuration.
        raise ValueError("can't be read: the file is a pipe without a writer")
    if len(data) > _FILE_LIMIT_BYTES:
        raise ValueError(f"can't be read: the file is larger than {_FILE_LIMIT_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"can't be read: line {line} is not UTF-8 (byte 0x{data[error.start]:02x})") from None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file. To open a pipe does not wait for its writer."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _overridden(overrides: Overrides) -> tuple[dict[tuple[str, str], object], list[str]]:
    """Convert overrides as the values of a file are. Return the values, and all problems."""
    validator = converter()
    values: dict[tuple[str, str], object] = {}
    problems = []
    for (section, option), value in overrides.items():
        texts = [part for text in value for part in split_values(text)] if isinstance(value, list) else value
        hint = ": quote a value that contains commas" if len(texts) > len(value) else ""
        try:
            values[section, option] = validator.check(configspec()[section][option], texts)
        except ValidateError as error:
            problems.append(f"{_flags().get((section, option), f'[{section}] {option}')}: {error}{hint}")
    return values, problems


@functools.cache
def _flags() -> Mapping[tuple[str, str], str]:
    return {
        (section.name, option.name): option.flag.partition(" ")[0]
        for section in sections()
        for option in section.options
        if option.flag
    }


def _remove_unknown(section: Any, spec: Any, path: Path, found: Scan) -> None:
    """Report and remove sections and options that the spec does not have.

    configobj ignores them, does not report ``[DEFAULT]`` even when asked, and fails on a section with the name of an option.
    """
    for name in list(section.scalars):
        if name not in spec.scalars:
            label = f"{title(path)} {printable(name)}".lstrip()
            found.problems.append((found.where[(*path, name)], f"{label}: {_unknown_option(name, spec, path)}"))
            del section[name]
    for name in list(section.sections):
        here = (*path, name)
        if MANY in spec:
            problem = _bad_application(name)
            inner = spec[MANY]
        elif path:
            problem = f"{title(path)} has no sections inside"
        else:
            problem = "" if name in spec.sections else f"unknown section{_similar(name, spec.sections)}"
            inner = spec.get(name)
        if problem:
            found.problems.append((found.where[here], f"{title(here)}: {problem}"))
            del section[name]
        else:
            _remove_unknown(section[name], inner, here, found)


def _unknown_option(name: str, spec: Any, path: Path) -> str:
    """Return the problem of an unknown option, with the section that it may belong to."""
    homes = {option.name: section.name for section in sections() for option in section.options}
    if name in homes:
        return f"this option belongs in [{homes[name]}]" + _or_application(name, spec)
    return "unknown option" + _similar(name, spec.scalars if path else list(homes))


def _or_application(name: str, spec: Any) -> str:
    return " or in a [[name]] section" if name in spec.get(MANY, ()) else ""


def _similar(name: str, known: list[str]) -> str:
    # Names are case-sensitive, and a wrong case must find the right name here.
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f', did you mean "{close[0]}"?' if close else ""


def _bad_application(name: str) -> str:
    """Return why *name* can't be the name of an application; empty if it can."""
    if name == DEFAULT_APPLICATION:
        return ""
    if "*" in name:
        return 'expected "*" alone ([[*]] takes all other connections) or a name without it'
    if name.startswith("/") or name.endswith("/") or "//" in name:
        return 'expected "/" only between the parts of an application\'s name'
    if name != join_key("", name):
        return f'clients that connect to it get the application "{join_key("", name)}": write that'
    if len(name) > NAME_LENGTH:
        return f"expected at most {NAME_LENGTH} characters in the name of an application"
    if not is_name(name):
        return "expected the name of an application without spaces, quotes, brackets, ? and #"
    if name == MANY:
        return "this name is reserved"
    return ""


def _convert_applications(applications: Any, found: Scan) -> None:
    """Convert the options that applications set themselves.

    configobj would convert the default of each option once more for each application: 0.4 ms each, while the server waits.
    """
    spec, validator = configspec()["applications"][MANY], converter()
    for name, section in applications.items():
        for option, value in list(section.items()):
            try:
                section[option] = validator.check(spec[option], value)
            except ValidateError as error:
                path = ("applications", name)
                found.problems.append((found.where[(*path, option)], f"{title(path)} {option}: {error}"))


def _build(parsed: Any, sections_of_applications: Mapping[str, Mapping[str, object]]) -> Config:
    kinds: dict[str, Any] = {name: kind for name, kind in get_type_hints(Config).items() if is_dataclass(kind)}
    values = {name: kind(**{option.name: parsed[name][option.name] for option in fields(kind)}) for name, kind in kinds.items()}
    base = ApplicationConfig(**{part.name: values[part.name] for part in fields(ApplicationConfig)})
    applications = {}
    for name, own in sections_of_applications.items():
        applications[name] = ApplicationConfig(**{part.name: _override(getattr(base, part.name), own) for part in fields(base)})
    return Config(**values, applications=MappingProxyType(applications))


def _override(options: Any, own: Mapping[str, object]) -> Any:
    """Return the options of a section with the values that an application sets itself."""
    changed = {each.name: own[each.name] for each in fields(options) if each.name in own} if own else {}
    return replace(options, **changed) if changed else options
