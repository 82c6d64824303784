"""Texts name the subject of each sentence: no phrase that hides it is used (CONTRIBUTING.rst, Language)."""

from __future__ import annotations

import ast
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("rtmpd/**/*.py"), *ROOT.glob("bench/*.py")])
PATTERNS = (
    "*.rst",
    "docs/*.rst",
    "bench/*.rst",
    "man/*.?",
    "tests/golden/**/README*",
    "rtmpd/config/*.configspec",
    "rtmpd/*.pyx",
    "rtmpd/viewers/page/*.[!p]*",
    "etc/*.ini",
)
TEXTS = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
BANNED = re.compile(
    r"""\b(?:
        (?<!user\ =\ )(?<!user\ )nobody | somebody | anybody | everybody | someone | anyone | no\ one
        | who | (?<!-)whom | whoever | whomever
        | tak(?:e|es|en|ing)\ leave | let(?:s|ting)?\ go\ of | be(?:en)?\ told | is\ told | are\ told
        | any\ more | and\ the\ like | for\ ever | good-bye | makes?\ way
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> list[tuple[int, str]]:
    """The comments and strings of a source, or the paragraphs of a text, with the number of their first line."""
    if path.suffix != ".py":
        lines, found = path.read_text("utf-8").split("\n"), []
        for number, line in enumerate(lines, 1):
            text = re.sub(r"^#+ ?|^\.(?:BR?|I|RB|IR|BI|IB|RI)? ?|^\s*\.\. |\\f[BIRP]", "", line)
            if line.strip() and found and lines[number - 2].strip():
                found[-1] = (found[-1][0], f"{found[-1][1]} {text}")
            else:
                found.append((number, text))
        return found
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type in (tokenize.COMMENT, tokenize.STRING)]
    found = []
    for token in tokens:
        # A sentence goes on in the next line of a comment, or in the next string.
        if found and token.start[0] - found[-1][2] <= 1:
            found[-1] = (found[-1][0], f"{found[-1][1]} {token.string.strip('#')}", token.end[0])
        else:
            found.append((token.start[0], token.string, token.end[0]))
    return [(first, text) for first, text, _ in found]


@pytest.mark.parametrize("path", [*SOURCES, *TEXTS], ids=name_of)
def test_a_text_names_its_subjects(path):
    found = []
    for line, text in prose(path):
        for match in BANNED.finditer(" ".join(text.split())):
            start, end = match.span()
            found.append(f"{name_of(path)}:{line}: ...{match.string[max(0, start - 40) : end + 40]}...")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_docstring_of_a_module_lists_no_imports(path):
    """import-linter checks imports, so a list would only become wrong."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    assert not re.search(r"(?:^|[.:] )Imports\b", docstring, re.MULTILINE)
