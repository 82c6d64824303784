"""The difference between two configurations at a reload: options that need a restart, and all changes in words. Pure."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from rtmpd.config.model import ApplicationConfig
from rtmpd.config.render import render_value
from rtmpd.config.spec import sections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import Config
    from rtmpd.config.spec import Option


def _fixed_and_different(old: Config, new: Config) -> Iterator[Option]:
    """Give the options that differ but only change with a restart."""
    for section in sections():
        for option in section.options:
            before, after = (getattr(getattr(config, section.name), option.name) for config in (old, new))
            if not option.reloadable and before != after:
                yield option


def restart_needed(old: Config, new: Config) -> list[str]:
    """Return the options that differ but only change with a restart, each as ``[section] option``."""
    return [f"[{option.section}] {option.name}" for option in _fixed_and_different(old, new)]


def keep_fixed(old: Config, new: Config) -> Config:
    """Return *new* with the values of *old* for options that only change with a restart."""
    for option in _fixed_and_different(old, new):
        kept = getattr(getattr(old, option.section), option.name)
        new = replace(new, **{option.section: replace(getattr(new, option.section), **{option.name: kept})})
    return new


def changes(old: Config, new: Config) -> list[str]:
    """Return the differences for a log line, with secrets masked.

    A difference is ``[section] option = value``, ``[[application]] option = value``, ``+[[name]]`` or ``-[[name]]``.
    """
    found = []
    for section in sections():
        if not section.subsections_of:
            before, after = getattr(old, section.name), getattr(new, section.name)
            found += [f"[{section.name}] {difference}" for difference in _differences(before, after)]
    common = {
        part.name: set(_differences(getattr(old, part.name), getattr(new, part.name))) for part in fields(ApplicationConfig)
    }
    for name in sorted(old.applications.keys() | new.applications.keys()):
        if name not in new.applications:
            found.append(f"-[[{name}]]")
        elif name not in old.applications:
            found.append(f"+[[{name}]]")
        else:
            for part in fields(ApplicationConfig):
                before, after = (getattr(config.applications[name], part.name) for config in (old, new))
                if before is getattr(old, part.name) and after is getattr(new, part.name):
                    # It sets none of these options itself.
                    continue
                # A difference that the application takes from its section is listed there.
                differences = [each for each in _differences(before, after) if each not in common[part.name]]
                found += [f"[[{name}]] {difference}" for difference in differences]
    return found


def _differences(old: Any, new: Any) -> list[str]:
    """Return the options of one section that differ, with their new values."""
    names = [each.name for each in fields(new) if getattr(old, each.name) != getattr(new, each.name)]
    return [f"{name} = {render_value(getattr(new, name))}" for name in names]
