"""Checks the syntax of a configuration before configobj parses it. Pure.

configobj forgets line numbers, cuts values at a ``#``, adds the options of a repeated section to the section before it, and
needs exponential time for some lists without a closing quote. So this pass, in linear time, records the line of each section
and option, reports each wrong line, and passes on only lines that configobj can read in exactly one way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rtmpd.util.text import printable, shown

Path = tuple[str, ...]
"""A section, ``("live",)`` or ``("applications", "studio")``, or an option: its section and its name."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")
_HEADER = re.compile(
    r"""(\[+)\s*
        ("[^"]+"|'[^']+'|[^\s\["'\]#](?:[^\["'\]#]*[^\s\["'\]#])?)
        \s*(\]+)\s*(?:\#.*)?""",
    re.VERBOSE,
)
# A value is a list of these tokens. A single quote character is one without its closing quote.
_TOKEN = re.compile(r"""\s*("[^"]*"|'[^']*'|[^\s"',#][^"',#]*|[,#"'])""")
_LINE_LENGTH = 4096
_SECRETIVE = frozenset(("auth", "relay", "hooks", "applications"))
"""Sections that can contain secrets."""


@dataclass(slots=True)
class Scan:
    """The result of a scan.

    Attributes:
        lines: The lines for configobj. Lines that it must not read are empty.
        where: The line number, from 1, of each section and option in ``lines``.
        problems: The line number and text of each problem.
    """

    lines: list[str] = field(default_factory=list)
    where: dict[Path, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def title(path: Path) -> str:
    """Return the path of a section as its headers: ``[applications] [[studio]]``."""
    return " ".join("[" * depth + printable(name) + "]" * depth for depth, name in enumerate(path, 1))


def scan(text: str) -> Scan:
    """Scan the text of a configuration."""
    found = Scan()
    # The current section, outermost first. None is a section with a wrong header: its options are not read.
    section: list[str | None] = []
    # Not splitlines(): editors count only line feeds, and Unicode has more line separators.
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = raw.strip()
        keep = ""
        if line and not line.startswith("#"):
            try:
                keep = _header(found, line, number, section) if line[0] == "[" else _option(found, line, number, section)
            except ValueError as error:
                found.problems.append((number, str(error)))
        found.lines.append(keep)
    return found


def _check_characters(line: str) -> None:
    if _CONTROL.search(line):
        raise ValueError("expected printable text, got a control character in this line")
    if len(line) > _LINE_LENGTH:
        raise ValueError(f"expected at most {_LINE_LENGTH} characters in a line, got {len(line)}")


def _header(found: Scan, line: str, number: int, section: list[str | None]) -> str:
    """Parse a section header; *section* becomes the path of the section. Return the line for configobj."""
    depth = len(line) - len(line.lstrip("["))
    orphan = depth > len(section) + 1
    del section[depth - 1 :]
    outer = [name for name in section if name is not None]
    skipped = len(outer) < len(section)
    section.append(None)
    _check_characters(line)
    match = _HEADER.fullmatch(line)
    if match is None or len(match[3]) != depth or not match[2].strip(" \t\"'"):
        raise ValueError(f"expected a section header like [server] or [[name]], got {shown(line)}")
    if skipped:
        return ""
    name = match[2][1:-1] if match[2][0] in "\"'" else match[2]
    if orphan:
        raise ValueError(f"{'[' * depth}{printable(name)}{']' * depth}: expected inside a section, got it outside")
    path = (*outer, name)
    if path in found.where:
        raise ValueError(f"{title(path)}: given twice (first in line {found.where[path]}): merge both")
    found.where[path] = number
    section[-1] = name
    return match[1] + match[2] + match[3]


def _option(found: Scan, line: str, number: int, section: list[str | None]) -> str:
    """Parse a line that sets an option. Return the line for configobj."""
    _check_characters(line)
    name, equals, value = line.partition("=")
    name = name.rstrip()
    if line[0] == ";":
        raise ValueError('expected a comment to start with "#", got ";"')
    outer = [part for part in section if part is not None]
    if not equals or not name or '"' in name or "'" in name:
        # The line may be a part of a list of secrets.
        got = "a hidden line" if _SECRETIVE.intersection(outer) else shown(line)
        raise ValueError(f'expected a section header or "option = value", got {got}')
    if len(outer) < len(section):
        return ""
    path = (*outer, name)
    label = f"{title(tuple(outer))} {printable(name)}".lstrip()
    if path in found.where:
        raise ValueError(f"{label}: given twice (first in line {found.where[path]})")
    # Before the value is checked: a second line of the same name is a separate problem.
    found.where[path] = number
    try:
        return f"{name} = {_value(value)}"
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def _value(text: str) -> str:
    """Return the value of an option without the comment after it."""
    if text.lstrip().startswith(('"""', "'''")):
        raise ValueError("expected a value on one line, in single or double quotes, got triple quotes")
    end = 0
    item_expected = True
    for match in _TOKEN.finditer(text):
        part = match[1]
        if part == "#":
            before = text[: match.start(1)]
            if not before.strip():
                raise ValueError('expected a value, got a comment: quote a value that contains "#"')
            if before[-1] not in "\"'," and not before[-1].isspace():
                raise ValueError('quote a value that contains "#", or put a space before a comment')
            break
        if part == ",":
            if item_expected:
                raise ValueError("expected a value before the comma, got nothing")
            item_expected = True
        elif not item_expected:
            raise ValueError("expected quotes around a whole value")
        elif part in ('"', "'"):
            raise ValueError("expected a closing quote")
        else:
            item_expected = False
        end = match.end()
    return text[:end].strip()


def split_values(text: str) -> list[str]:
    """Split the value of a flag at its commas, as the value of an option in a file; quotes around a whole value are removed.

    Other quotes are part of a value: a shell has its own.
    """
    found, start, quote = [], 0, ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and not text[start:index].strip() and character in text[index + 1 :]:
            quote = character
        elif character == ",":
            found.append(text[start:index])
            start = index + 1
    values = [each.strip() for each in (*found, text[start:])]
    return [
        each[1:-1] if len(each) > 1 and each[0] in "\"'" and each.find(each[0], 1) == len(each) - 1 else each for each in values
    ]
