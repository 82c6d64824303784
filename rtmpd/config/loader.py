"""Turns a configuration file into a ``Config``, or into a list of everything that is wrong with it."""

from __future__ import annotations

import difflib
import functools
import os
import stat
from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from configobj import ConfigObj, ConfigObjError, flatten_errors
from configobj.validate import ValidateError

from rtmpd.config.access_rules import auth_problem
from rtmpd.config.checks import NAME_LENGTH, converter, is_name
from rtmpd.config.model import (
    DEFAULT_APPLICATION,
    ApplicationConfig,
    AuthConfig,
    BackpressureConfig,
    Config,
    HooksConfig,
    LimitsConfig,
    LiveConfig,
    LogConfig,
    MetricsConfig,
    RecordConfig,
    RelayConfig,
    ServerConfig,
    TlsConfig,
    printable,
)
from rtmpd.config.scan import Path, Scan, scan, title
from rtmpd.config.spec import MANY, configspec, sections
from rtmpd.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path as FilePath

__all__ = ["Overrides", "keep_fixed", "load_file", "load_text", "origins", "restart_needed"]

Overrides = Mapping[tuple[str, str], list[str] | str]
"""(section, option) to a value that replaces the file's: a list for an option that takes several values."""

_NO_OVERRIDES: Overrides = MappingProxyType({})
_FILE_LIMIT_BYTES = 1 << 20


def load_file(path: str | FilePath, overrides: Overrides = _NO_OVERRIDES) -> Config:
    """Load the file ``path``; ``overrides`` win over it.

    Raises:
        ConfigError: It can't be read or is wrong; the error holds every problem.
    """
    try:
        text = _read(path)
    except ValueError as error:
        raise ConfigError([f"{printable(str(path))}: {error}", *_overridden(overrides)[1]]) from None
    return load_text(text, str(path), overrides)


def load_text(text: str, filename: str = "<built-in>", overrides: Overrides = _NO_OVERRIDES) -> Config:
    """Load a configuration from its text. The empty text gives the defaults.

    Args:
        text: What a configuration file would hold.
        filename: What problems name as their place.
        overrides: Values that win over the text's, checked as those are.

    Raises:
        ConfigError: It is wrong; the error holds every problem.
    """
    found = scan(text)
    try:
        parsed = ConfigObj(found.lines, configspec=configspec(), interpolation=False)
    except ConfigObjError as error:
        # Not reached as far as we know: the scan lets through only what configobj can read.
        found.problems += [(each.line_number, str(each)) for each in error.errors]
        parsed = ConfigObj(configspec=configspec(), interpolation=False)
    _remove_unknown(parsed, configspec(), (), found)
    checked = parsed.validate(converter(), preserve_errors=True)
    for path, option, problem in flatten_errors(parsed, checked):
        found.problems.append((found.where[(*path, option)], f"{title(tuple(path))} {option}: {problem}"))
    values, flag_problems = _overridden(overrides)
    found.problems.sort(key=lambda problem: problem[0])
    problems = [f"{printable(filename)}:{line}: {what}" for line, what in found.problems] + flag_problems
    if problems:
        raise ConfigError(problems)
    for (section, option), value in values.items():
        parsed[section][option] = value
    config = _build(parsed)
    problems = [f"{printable(filename)}{_line_of(found, path)}: {what}" for path, what in _contradictions(config)]
    if problems:
        raise ConfigError(problems)
    return config


def _contradictions(config: Config) -> list[tuple[Path, str]]:
    """What is wrong with options that are right each by itself: where, and what."""
    parts: dict[Path, ApplicationConfig] = {("auth",): config.defaults}
    # What an application takes from [auth] is reported there.
    parts |= {("applications", name): each for name, each in config.applications.items() if each.auth != config.auth}
    problems = [((*path, "auth_mode"), auth_problem(each.auth)) for path, each in parts.items()]
    return [(path, f"{title(path[:-1])} auth_mode: {problem}") for path, problem in problems if problem]


def _line_of(found: Scan, path: Path) -> str:
    """The line of an option, of its section, or of the option in [auth]; empty if a flag has set it."""
    line = found.where.get(path) or found.where.get(path[:-1]) or found.where.get(("auth", path[-1]))
    return f":{line}" if line else ""


def origins(path: str | FilePath | None, overrides: Overrides = _NO_OVERRIDES) -> dict[Path, str]:
    """Return where options are set: a section (or two) and the option's name to ``FILE:LINE`` or the flag.

    Args:
        path: The file, which has been loaded; None: there is none.
        overrides: As for `load_file`.
    """
    try:
        lines = scan(_read(path)).where if path is not None else {}
    except ValueError:
        # A pipe can be read but once: only flags are known then.
        lines = {}
    found = {option: f"{printable(str(path))}:{line}" for option, line in lines.items()}
    return found | {option: _flags()[option] for option in overrides}


def restart_needed(old: Config, new: Config) -> list[str]:
    """The options that differ between two configurations but can't be reloaded, each as ``[section] option``."""
    return [
        f"[{option.section}] {option.name}"
        for section in sections()
        for option in section.options
        if not option.reloadable
        and getattr(getattr(old, option.section), option.name) != getattr(getattr(new, option.section), option.name)
    ]


def keep_fixed(old: Config, new: Config) -> Config:
    """Return *new*, with the values of *old* for options that can't be reloaded."""
    for section in sections():
        fixed = [option.name for option in section.options if not option.reloadable]
        if fixed:
            kept = getattr(old, section.name)
            values = replace(getattr(new, section.name), **{name: getattr(kept, name) for name in fixed})
            new = replace(new, **{section.name: values})
    return new


def _read(path: str | FilePath) -> str:
    """Read a file, or raise ValueError with what is wrong with it."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            data = file.read(_FILE_LIMIT_BYTES + 1)
            is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ValueError(f"can't be read: {reason}") from None
    if is_pipe and not data:
        # A shell's <(...), say, that a start has read to its end. It does not mean that all options are left out.
        raise ValueError("can't be read: it is a pipe that nobody writes to")
    if len(data) > _FILE_LIMIT_BYTES:
        raise ValueError(f"can't be read: it is larger than {_FILE_LIMIT_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"can't be read: line {line} is not UTF-8 (byte 0x{data[error.start]:02x})") from None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to, too, without waiting until somebody does."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _overridden(overrides: Overrides) -> tuple[dict[tuple[str, str], object], list[str]]:
    """Convert overrides as the file's values are converted; also gives what is wrong with them."""
    validator = converter()
    values: dict[tuple[str, str], object] = {}
    problems = []
    for (section, option), value in overrides.items():
        try:
            values[section, option] = validator.check(configspec()[section][option], value)
        except ValidateError as error:
            problems.append(f"{_flags().get((section, option), f'[{section}] {option}')}: {error}")
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
    """Report, and take out, what the spec does not know.

    configobj ignores all of it, ``[DEFAULT]`` even when asked for what it ignored, and fails over a section that has
    the name of an option.
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
    """Say that an option is unknown, and where it may belong."""
    homes = {option.name: section.name for section in sections() for option in section.options}
    if name in homes:
        return f"this option belongs in [{homes[name]}]" + _or_application(name, spec)
    return "unknown option" + _similar(name, spec.scalars if path else list(homes))


def _or_application(name: str, spec: Any) -> str:
    return " or in a [[name]] section" if name in spec.get(MANY, ()) else ""


def _similar(name: str, known: list[str]) -> str:
    # Case counts in the file, so it must not count here.
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f', did you mean "{close[0]}"?' if close else ""


def _bad_application(name: str) -> str:
    """Say why ``name`` can't name an application; empty if it can."""
    if name == DEFAULT_APPLICATION:
        return ""
    if "*" in name:
        return '"*" can be used only by itself: [[*]] takes what no other name takes'
    if name.startswith("/") or name.endswith("/") or "//" in name:
        return 'an application\'s name has "/" only between its parts'
    if len(name) > NAME_LENGTH:
        return f"an application's name has at most {NAME_LENGTH} characters"
    if not is_name(name):
        return "an application's name has no spaces, quotes, brackets, ? or #"
    if name == MANY:
        return "this name can't be used"
    return ""


def _build(parsed: Any) -> Config:
    live = LiveConfig(**_values(LiveConfig, parsed["live"]))
    auth = AuthConfig(**_values(AuthConfig, parsed["auth"]))
    relay = RelayConfig(**_values(RelayConfig, parsed["relay"]))
    limits = LimitsConfig(**_values(LimitsConfig, parsed["limits"]))
    backpressure = BackpressureConfig(**_values(BackpressureConfig, parsed["backpressure"]))
    base = ApplicationConfig(limits=limits, live=live, backpressure=backpressure, auth=auth, relay=relay)
    applications = {}
    for name in parsed["applications"].sections:
        section = parsed["applications"][name]
        # A default of the spec must not win over what [live] and the others say.
        own = {option: section[option] for option in section.scalars if option not in section.defaults}
        applications[name] = ApplicationConfig(**{part.name: _override(getattr(base, part.name), own) for part in fields(base)})
    return Config(
        server=ServerConfig(**_values(ServerConfig, parsed["server"])),
        limits=limits,
        tls=TlsConfig(**_values(TlsConfig, parsed["tls"])),
        log=LogConfig(**_values(LogConfig, parsed["log"])),
        live=live,
        backpressure=backpressure,
        auth=auth,
        record=RecordConfig(**_values(RecordConfig, parsed["record"])),
        relay=relay,
        metrics=MetricsConfig(**_values(MetricsConfig, parsed["metrics"])),
        hooks=HooksConfig(**_values(HooksConfig, parsed["hooks"])),
        applications=MappingProxyType(applications),
    )


def _override(options: Any, own: Mapping[str, object]) -> Any:
    """Return the options of a section with those of an application that belong to it."""
    return replace(options, **{each.name: own[each.name] for each in fields(options) if each.name in own})


def _values(kind: type[Any], section: Any) -> dict[str, Any]:
    return {each.name: section[each.name] for each in fields(kind)}
