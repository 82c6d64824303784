"""Writes the parts of the manual pages that describe options and flags, from rtmpd.configspec. Pure."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from rtmpd.config.spec import Option, Section, sections

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["replace_flags", "replace_options"]

_WIDTH = 72  # mandoc wants lines of 80 bytes, escapes included
_BEGIN = '.\\" Written by python -m rtmpd.config.render from rtmpd/config/rtmpd.configspec, do not edit\n'
_END = '.\\" The end of what is written\n'


def replace_options(text: str, render_value: Callable[[object], str]) -> str:
    """Put every section and option into ``text``, man/rtmpd.ini.5, between its two marks."""
    return _replace(text, "".join(_section(section, render_value) for section in sections()))


def replace_flags(text: str) -> str:
    """Put every flag that overrides an option into ``text``, man/rtmpd.8, between its two marks."""
    return _replace(text, "".join(_flag(option) for section in sections() for option in section.options if option.flag))


def _replace(text: str, lines: str) -> str:
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError("the marks in a manual page are missing")
    return f"{before}{begin}{lines}{end}{after}"


def _section(section: Section, render_value: Callable[[object], str]) -> str:
    return f".SS [{section.name}]\n{_paragraph(section.description)}" + "".join(
        _option(option, render_value) for option in section.options
    )


def _option(option: Option, render_value: Callable[[object], str]) -> str:
    expected = f"{option.expected} ({option.unit})" if option.unit else option.expected
    facts = [
        f"Value: {expected}.",
        f"Default: {render_value(option.default)}.",
        f"Reload: {'yes' if option.reloadable else 'no'}.",
    ]
    if option.flag:
        facts.append(f"Flag: {option.flag}.")
    return f".TP\n.B {_escaped(option.name)}\n{_paragraph(option.description)}.br\n{_paragraph(' '.join(facts))}"


def _flag(option: Option) -> str:
    name, _, argument = option.flag.partition(" ")
    shown = f".B {_escaped(name)}" if not argument else f'.BI {_escaped(name)} " {_escaped(argument)}"'
    first = re.split(r"(?<=[.]) (?=[A-Z])", option.description)[0]
    return f".TP\n{shown}\n{_paragraph(first)}.br\n{_paragraph(f'Option: {option.name} in [{option.section}].')}"


def _paragraph(text: str) -> str:
    """Return text as lines of roff: each sentence begins one."""
    lines = []
    for sentence in re.split(r"(?<=[.!?]) +", text):
        lines += textwrap.wrap(sentence, _WIDTH, break_on_hyphens=False, break_long_words=False)
    return "".join(f"{_escaped(line)}\n" for line in lines)


def _escaped(text: str) -> str:
    """Escape what would be roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq").replace("^", "\\(ha")
    text = text.replace("~", "\\(ti").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith(".") else text
