"""Writes configurations, and the texts that describe the options, from rtmpd.configspec.

``python -m rtmpd.config.render`` brings etc/rtmpd.ini, docs/configuration.rst and the manual pages of a checkout up to date.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtmpd.config.file_names import FileNameTemplate
from rtmpd.config.render_man import replace_flags, replace_options
from rtmpd.config.secret import Secret
from rtmpd.config.spec import Option, Section, sections

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.config.model import Config

__all__ = ["main", "render_config", "render_rst_tables", "render_sample", "render_value", "replace_tables"]

_WIDTH = 100
_ORIGIN_COLUMN = 50
_BEGIN = ".. The tables begin: written by python -m rtmpd.config.render from rtmpd/config/rtmpd.configspec, do not edit\n"
_END = ".. The tables end\n"

_SAMPLE_HEAD = """\
# rtmpd.ini: the configuration of rtmpd.
#
# Every option is here with its default, commented out: remove the "#" in front of an option to set
# it. "rtmpd -c FILE --check-config" checks a changed file. docs/configuration.rst has the syntax.
#
# Units are in the names: _bytes, _s (seconds), _ms (milliseconds). A value may have its own: 4K, 10M,
# 500ms, 30s, 5m, 2h. SIGHUP reloads the options with "Reload: yes"; the others need a restart.
#
# Written by "python -m rtmpd.config.render" from rtmpd/config/rtmpd.configspec.
"""


def render_value(value: object) -> str:
    """Write an option's value as the loader reads it; a secret that is in the file itself, as a mask that it refuses."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case float():
            return repr(value).removesuffix(".0")
        case str() | FileNameTemplate() | Secret():
            return _quoted(str(value))
        case tuple():
            return ", ".join(_quoted(str(item)) for item in value) or '""'
        case _:
            raise TypeError(f"there is no way to write {value!r}")


def render_config(config: Config, origins: Mapping[tuple[str, ...], str] | None = None) -> str:
    """Write a whole configuration: every option of every section.

    It loads back to an equal ``Config``, unless it has secrets in it: these are masked.

    Args:
        config: The configuration.
        origins: Where options were set, as `rtmpd.config.loader.origins` gives it; written behind each.
    """
    blocks = []
    for section in sections():
        if section.subsections_of:
            parts = [other for other in sections() if other.name in section.subsections_of]
            blocks.append(f"[{section.name}]\n")
            for name, values in getattr(config, section.name).items():
                path = (section.name, name)
                lines = "".join(
                    _assignments(part.for_applications, getattr(values, part.name), origins, path) for part in parts
                )
                blocks.append(f"[[{_quoted(name)}]]\n{lines}")
        else:
            lines = _assignments(section.options, getattr(config, section.name), origins, (section.name,))
            blocks.append(f"[{section.name}]\n{lines}")
    return "\n".join(blocks)


def render_sample() -> str:
    """Write etc/rtmpd.ini: every option with its description and its default, commented out."""
    parts = [_SAMPLE_HEAD]
    for section in sections():
        parts.append(f"\n\n{_comment(section.description)}[{section.name}]\n")
        parts += [f"\n{_sample_option(option)}" for option in section.options]
        if section.subsections_of:
            parts.append("\n# For example, with options below each name:\n# [[live]]\n# [[*]]\n")
    return "".join(parts)


def render_rst_tables() -> str:
    """Write the reference of all options as reStructuredText, one table per section."""
    return "\n".join(_rst_section(section) for section in sections())


def replace_tables(text: str) -> str:
    """Put the current tables into ``text``, docs/configuration.rst, between its two marks."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError("the marks around the tables are missing")
    return f"{before}{begin}\n{render_rst_tables()}\n{end}{after}"


def main() -> int:
    """Rewrite what is written from the spec, in the checkout that this module is part of."""
    root = Path(__file__).resolve().parents[2]
    docs = root / "docs" / "configuration.rst"
    if not docs.is_file():
        sys.stderr.write(f"{root} is not a checkout of rtmpd: it has no docs/configuration.rst\n")
        return 1
    docs.write_text(replace_tables(docs.read_text("utf-8")), "utf-8")
    (root / "etc" / "rtmpd.ini").write_text(render_sample(), "utf-8")
    options, flags = root / "man" / "rtmpd.ini.5", root / "man" / "rtmpd.8"
    options.write_text(replace_options(options.read_text("utf-8"), render_value), "utf-8")
    flags.write_text(replace_flags(flags.read_text("utf-8")), "utf-8")
    return 0


def _assignments(
    options: tuple[Option, ...], values: Any, origins: Mapping[tuple[str, ...], str] | None, path: tuple[str, ...]
) -> str:
    lines = []
    for option in options:
        line = f"{option.name} = {render_value(getattr(values, option.name))}"
        if origins is not None:
            # What an application does not set itself it has from the option's own section.
            origin = origins.get((*path, option.name)) or origins.get((option.section, option.name)) or "default"
            line = f"{line:<{_ORIGIN_COLUMN}}  # {origin}"
        lines.append(line + "\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    """Quote text where it needs that. Text with both kinds of quotes can't be written; no check accepts it."""
    if text and text.strip() == text and not any(c in "\"',#\n" for c in text):
        return text
    quote = '"' if '"' not in text else "'"
    if quote in text or "\n" in text:
        raise ValueError(f"there is no way to write {text!r}")
    return f"{quote}{text}{quote}"


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, _WIDTH - 2, break_on_hyphens=False))


def _sample_option(option: Option) -> str:
    facts = f"Value: {_value_with_unit(option)}. Reload: {_yes_no(option)}."
    if option.scope:
        facts += " Also in [applications]."
    if option.flag:
        facts += f" Flag: {option.flag}."
    default = render_value(option.default)
    return f"{_comment(option.description)}{_comment(facts)}#{option.name} = {default}\n"


def _value_with_unit(option: Option) -> str:
    return f"{option.expected} ({option.unit})" if option.unit else option.expected


def _yes_no(option: Option) -> str:
    return "yes" if option.reloadable else "no"


def _rst_section(section: Section) -> str:
    heading = f"[{section.name}]"
    lines = [heading, "~" * len(heading), "", *_rst_wrapped(_rst(section.description), "")]
    if section.options:
        lines += ["", ".. list-table::", "   :header-rows: 1", "   :widths: 22 12 22 8 36", ""]
        lines += ["   * - Option", "     - Default", "     - Value", "     - Reload", "     - Meaning"]
    for option in section.options:
        flag = " Also in ``[applications]``." if option.scope else ""
        flag += f" Flag: ``{option.flag}``." if option.flag else ""
        lines += [
            f"   * - ``{option.name}``",
            f"     - ``{render_value(option.default)}``",
            *_rst_wrapped(_rst(_value_with_unit(option)), "     - "),
            f"     - {_yes_no(option)}",
            *_rst_wrapped(_rst(option.description) + flag, "     - "),
        ]
    return "\n".join(lines) + "\n"


def _rst(text: str) -> str:
    """Escape what would be markup."""
    # A "file:" would become a link, too.
    return text.replace("\\", r"\\").replace("*", r"\*").replace("`", r"\`").replace("file:", r"file\:")


def _rst_wrapped(text: str, start: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())
