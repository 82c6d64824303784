"""Reads rtmpd.configspec: the checks, and what its comments say about each option."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

from configobj import ConfigObj

from rtmpd.config.checks import converter, describer

__all__ = ["MANY", "Option", "Section", "configspec", "sections"]

MANY = "__many__"
"""configobj's name for "any subsection" in a spec."""


@dataclass(frozen=True, slots=True)
class Option:
    """What the spec says about one option.

    Attributes:
        section: Its section.
        name: Its name.
        kind: The name of its check.
        expected: What a value may be, in words.
        default: The default, converted.
        description: One paragraph.
        unit: What a value counts; empty where there is nothing to count.
        reloadable: Whether SIGHUP takes a new value.
        flag: The command-line flag that overrides it, with its argument's name: ``--listen ADDR``. Empty: none.
        scope: ``application`` in a section of which applications take only some options; else empty.
    """

    section: str
    name: str
    kind: str
    expected: str
    default: object
    description: str
    unit: str
    reloadable: bool
    flag: str
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the spec.

    Attributes:
        name: Its name.
        description: One paragraph.
        options: Its options, in the spec's order.
        subsections_of: Not empty: it holds named subsections, each with any option of these other sections.
        for_applications: Of its options, those that subsections take: the ones of that scope, or else all.
    """

    name: str
    description: str
    options: tuple[Option, ...]
    subsections_of: tuple[str, ...]

    @property
    def for_applications(self) -> tuple[Option, ...]:
        """See above."""
        return tuple(option for option in self.options if option.scope == "application") or self.options


@functools.cache
def configspec() -> Any:
    """The spec as configobj uses it, with the options of each named subsection filled in."""
    spec = _read()
    for section in sections():
        if section.subsections_of:
            parts = [other for other in sections() if other.name in section.subsections_of]
            options = [option for part in parts for option in part.for_applications]
            spec[section.name][MANY] = {option.name: spec[option.section][option.name] for option in options}
    return spec


@functools.cache
def sections() -> tuple[Section, ...]:
    """Every section of the spec, with its options, in the spec's order."""
    spec = _read()
    # configobj takes every comment up to the first header for the file's.
    spec.comments[spec.sections[0]] = spec.initial_comment
    return tuple(_section(spec, name) for name in spec.sections)


def _read() -> Any:
    text = resources.files(__package__).joinpath("rtmpd.configspec").read_text("utf-8")
    # These three keep configobj from reading commas, quotes and %(name)s in a check as it does in a configuration.
    return ConfigObj(text.splitlines(), interpolation=False, list_values=False, _inspec=True, raise_errors=True)


def _section(spec: Any, name: str) -> Section:
    description, facts = _comment(spec.comments[name])
    options = tuple(_option(spec[name], name, key) for key in spec[name].scalars)
    section = Section(name, description, options, tuple(facts.pop("options", "").split()))
    if facts:
        raise ValueError(f"[{name}] has unknown facts: {', '.join(facts)}")
    return section


def _option(section: Any, section_name: str, name: str) -> Option:
    check = section[name]
    description, facts = _comment(section.comments[name])
    option = Option(
        section=section_name,
        name=name,
        kind=check.partition("(")[0],
        expected=describer().check(check, ""),
        default=converter().get_default_value(check),
        description=description,
        unit=facts.pop("unit", ""),
        reloadable={"yes": True, "no": False}[facts.pop("reload")],
        flag=facts.pop("flag", ""),
        scope=facts.pop("scope", ""),
    )
    if facts:
        raise ValueError(f"[{section_name}] {name} has unknown facts: {', '.join(facts)}")
    return option


def _comment(lines: list[str]) -> tuple[str, dict[str, str]]:
    """Split the comment lines that stand before something into its description and its facts."""
    words: list[str] = []
    facts: dict[str, str] = {}
    for line in lines:
        text = line.strip()
        if text.startswith("#:"):
            for fact in text[2:].split(";"):
                key, _, value = fact.partition(":")
                facts[key.strip()] = value.strip()
        elif text.startswith("#"):
            words.append(text[1:].strip())
        else:
            words.clear()  # a blank line ends a comment that is about something else
    return " ".join(words), facts
