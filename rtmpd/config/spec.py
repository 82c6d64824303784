"""Reads rtmpd.configspec: the check of each option, and the facts in its comments."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from configobj import ConfigObj
from configobj.validate import ValidateError

from rtmpd.config.checks import converter, describer

MANY = "__many__"
"""configobj's name for "any subsection" in a spec."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the spec.

    Attributes:
        section: The name of its section.
        name: Its name.
        kind: The name of its check.
        expected: The accepted values, in words.
        default: The default, converted.
        description: One paragraph.
        unit: What a value counts; empty if a value is not a number.
        reloadable: Whether SIGHUP applies a new value.
        flag: The command-line flag that overrides the option, and the name of its argument: ``--listen ADDR``. Empty: none.
        scope: ``application`` in a section of which applications have only some options; else empty.
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

    @property
    def summary(self) -> str:
        """The first sentence of the description."""
        return re.split(r"(?<=[.]) (?=[A-Z])", self.description)[0]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the spec.

    Attributes:
        name: Its name.
        description: One paragraph.
        options: Its options, in the spec's order.
        subsections_of: If not empty, the section contains named subsections with the options of these other sections.
    """

    name: str
    description: str
    options: tuple[Option, ...]
    subsections_of: tuple[str, ...]

    @property
    def for_applications(self) -> tuple[Option, ...]:
        """The options that can be set for an application: those with that scope, or all if none has a scope."""
        return tuple(option for option in self.options if option.scope == "application") or self.options


@functools.cache
def configspec() -> Any:
    """Return the spec for configobj, with the options of named subsections filled in."""
    spec = _read()
    for section in sections():
        if section.subsections_of:
            parts = [other for other in sections() if other.name in section.subsections_of]
            options = [option for part in parts for option in part.for_applications]
            spec[section.name][MANY] = {option.name: spec[option.section][option.name] for option in options}
    return spec


@functools.cache
def sections() -> tuple[Section, ...]:
    """Return all sections with their options, in the spec's order."""
    spec = _read()
    # configobj assigns the comment before the first header to the file.
    spec.comments[spec.sections[0]] = spec.initial_comment
    return tuple(_section(spec, name) for name in spec.sections)


def option_value(section: str, name: str, text: str) -> object:
    """Convert a text as the value of an option.

    Raises:
        ValueError: The option does not accept it; the message says what it accepts, and shows the text.
    """
    try:
        return converter().check(configspec()[section][name], text)
    except ValidateError as error:
        raise ValueError(str(error)) from None


def _read() -> Any:
    text = resources.files(__package__).joinpath("rtmpd.configspec").read_text("utf-8")
    # With these arguments configobj does not interpret commas, quotes and %(name)s in a check.
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
    """Split the comment lines before an option or a section into its description and its facts."""
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
            words.clear()  # a blank line ends an unrelated comment
    return " ".join(words), facts
