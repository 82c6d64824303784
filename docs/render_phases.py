"""Render the tables of rtmpd/phases.py into docs/design.rst: run it from the repository's root after a change there."""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

from rtmpd import phases

BEGIN, END = "..\n   phases: rendered by docs/render_phases.py\n", "..\n   phases: end\n"
PAGE = Path(__file__).with_name("design.rst")
TABLES = {
    "Connection": phases.CONNECTION,
    "Stream": phases.STREAM,
    "Relay": phases.RELAY,
    "Recording": phases.RECORDING,
}


def _texts(kind: type) -> dict[str, str]:
    """Return the docstring of each member of an enum."""
    source = ast.parse(Path(phases.__file__).read_text("utf-8"))
    body = next(node.body for node in source.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[node.targets[0].id] = " ".join(str(after.value.value).split())
    return found


def rendered() -> str:
    """Return the section."""
    parts = []
    for title, table in TABLES.items():
        kind = type(next(iter(table)))
        texts = _texts(kind)
        width = max(len(phase.name) for phase in table)
        # In the order of the enum, so that the section is the same each time.
        arrows = [
            f"{phase.name:{width}}  →  {', '.join(each.name for each in kind if each in table[phase]) or '(the end)'}"
            for phase in table
        ]
        lines = [line for arrow in arrows for line in textwrap.wrap(arrow, 112, subsequent_indent=" " * (width + 5))]
        meanings = "\n".join(f"* {name}: {text}" for name, text in texts.items())
        wrapped = "\n".join(
            textwrap.fill(line, 118, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            for line in meanings.splitlines()
        )
        parts.append(f"**{title}**::\n\n" + textwrap.indent("\n".join(lines), "    ") + (f"\n\n{wrapped}" if wrapped else ""))
    return "\n\n".join(parts) + "\n"


def page_with(section: str, page: str) -> str:
    """Return the page with the section between its markers."""
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:begin]}\n{section}\n{page[end:]}"


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(page_with(rendered(), text), "utf-8")
    sys.stdout.write(f"{PAGE} rendered\n")
