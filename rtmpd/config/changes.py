"""What a reload changes, in words."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rtmpd.config.model import ApplicationConfig
from rtmpd.config.render import render_value
from rtmpd.config.spec import sections

if TYPE_CHECKING:
    from rtmpd.config.model import Config

__all__ = ["changes"]


def changes(old: Config, new: Config) -> list[str]:
    """Return what is different in *new*, for a log line. Secrets are masked.

    That is ``[section] option = value``, ``[[application]] option = value``, ``+[[name]]`` and ``-[[name]]``.
    """
    found = []
    for section in sections():
        if section.subsections_of:
            continue
        before, after = getattr(old, section.name), getattr(new, section.name)
        found += [f"[{section.name}] {what}" for what in _differences(before, after)]
    for name in sorted(old.applications.keys() | new.applications.keys()):
        if name not in new.applications:
            found.append(f"-[[{name}]]")
        elif name not in old.applications:
            found.append(f"+[[{name}]]")
        else:
            for part in fields(ApplicationConfig):
                # What merely follows its section has been said there.
                before, after = (getattr(config.applications[name], part.name) for config in (old, new))
                common = set(_differences(getattr(old, part.name), getattr(new, part.name)))
                found += [f"[[{name}]] {what}" for what in _differences(before, after) if what not in common]
    return found


def _differences(old: Any, new: Any) -> list[str]:
    """Return the options of one section that differ, with their new values."""
    names = [each.name for each in fields(new) if getattr(old, each.name) != getattr(new, each.name)]
    return [f"{name} = {render_value(getattr(new, name))}" for name in names]
