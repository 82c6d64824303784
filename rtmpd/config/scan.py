"""Looks over the text of a configuration before configobj parses it.

configobj forgets line numbers, cuts values at a ``#``, adds the options of a repeated section to the section before
it, and takes exponential time over some lists that lack a quote. So this pass, in linear time, notes where every
section and option stands, reports each line that is wrong, and hands on only lines that configobj reads in one way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rtmpd.config.model import printable, shown

__all__ = ["Path", "Scan", "scan", "title"]

Path = tuple[str, ...]
"""A section, ``("live",)`` or ``("applications", "studio")``, or an option: its section and its name."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")
_HEADER = re.compile(
    r"""(\[+)\s*
        ("[^"]+"|'[^']+'|[^\s\["'\]#](?:[^\["'\]#]*[^\s\["'\]#])?)
        \s*(\]+)\s*(?:\#.*)?""",
    re.VERBOSE,
)
# A value is a list of these; a quote by itself lacks its other half.
_TOKEN = re.compile(r"""\s*("[^"]*"|'[^']*'|[^\s"',#][^"',#]*|[,#"'])""")
_LINE_LENGTH = 4096
_SECRETIVE = frozenset(("auth", "relay", "hooks", "applications"))
"""Sections with secrets in them."""


@dataclass(slots=True)
class Scan:
    """What was found.

    Attributes:
        lines: The text's lines for configobj; those that it must not see are empty.
        where: The line, counted from 1, of every section and option in ``lines``.
        problems: A line and what is wrong there.
    """

    lines: list[str] = field(default_factory=list)
    where: dict[Path, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def title(path: Path) -> str:
    """Show a section's path as its headers are written: ``[applications] [[studio]]``."""
    return " ".join("[" * depth + printable(name) + "]" * depth for depth, name in enumerate(path, 1))


def scan(text: str) -> Scan:
    """Look over the text of a configuration."""
    found = Scan()
    # The open section, outermost first. None stands for one with a bad header: what it holds is not read.
    section: list[str | None] = []
    # Not splitlines(): editors count lines by line feeds, whatever else Unicode takes for a line's end.
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
        raise ValueError("there is a control character in this line")
    if len(line) > _LINE_LENGTH:
        raise ValueError(f"this line is longer than {_LINE_LENGTH} characters")


def _header(found: Scan, line: str, number: int, section: list[str | None]) -> str:
    """Enter the section whose header ``line`` is; ``section`` becomes its path."""
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
        raise ValueError(f"{'[' * depth}{printable(name)}{']' * depth}: there is no section that it could be inside")
    path = (*outer, name)
    if path in found.where:
        raise ValueError(f"{title(path)}: given again (line {found.where[path]} has it first): put both together")
    found.where[path] = number
    section[-1] = name
    return match[1] + match[2] + match[3]


def _option(found: Scan, line: str, number: int, section: list[str | None]) -> str:
    """Check the syntax of a line that sets an option."""
    _check_characters(line)
    name, equals, value = line.partition("=")
    name = name.rstrip()
    if line[0] == ";":
        raise ValueError('comments start with "#", not ";"')
    outer = [part for part in section if part is not None]
    if not equals or not name or '"' in name or "'" in name:
        # It may be a part of a list of secrets, on a line of its own.
        got = "a line that is not shown here" if _SECRETIVE.intersection(outer) else shown(line)
        raise ValueError(f'expected a section header or "option = value", got {got}')
    if len(outer) < len(section):
        return ""
    path = (*outer, name)
    label = f"{title(tuple(outer))} {printable(name)}".lstrip()
    if path in found.where:
        raise ValueError(f"{label}: given again (line {found.where[path]} has it first)")
    # Before the value is judged: a second line of the same name is a problem of its own.
    found.where[path] = number
    try:
        return f"{name} = {_value(value)}"
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def _value(text: str) -> str:
    """Give the value in ``text``, checked, without the comment behind it."""
    if text.lstrip().startswith(('"""', "'''")):
        raise ValueError("triple quotes can't be used: a value is on one line, in single or double quotes")
    end = 0
    item_expected = True
    for match in _TOKEN.finditer(text):
        part = match[1]
        if part == "#":
            before = text[: match.start(1)]
            if not before.strip():
                raise ValueError('nothing stands before the "#", which starts a comment: quote a value that contains "#"')
            if before[-1] not in "\"'," and not before[-1].isspace():
                raise ValueError('quote a value that contains "#", or put a space before a comment')
            break
        if part == ",":
            if item_expected:
                raise ValueError("nothing stands before a comma")
            item_expected = True
        elif not item_expected:
            raise ValueError("quotes must be around a whole value")
        elif part in ('"', "'"):
            raise ValueError("the closing quote is missing")
        else:
            item_expected = False
        end = match.end()
    return text[:end].strip()
