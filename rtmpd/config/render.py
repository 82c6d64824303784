"""Renders configurations, and from rtmpd.configspec the texts that describe the options.

``python -m rtmpd.config.render`` updates etc/rtmpd.ini, docs/configuration.rst and the manual pages of a checkout.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtmpd.config.file_names import FileNameTemplate
from rtmpd.config.secret import Secret
from rtmpd.config.spec import Option, Section, sections

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.config.model import Config

_WIDTH = 100
_ORIGIN_COLUMN = 50
_BEGIN = ".. The tables begin: written by python -m rtmpd.config.render from rtmpd/config/rtmpd.configspec, do not edit\n"
_END = ".. The tables end\n"
_MAN_WIDTH = 72  # mandoc accepts lines of 80 bytes, including escapes
_MAN_BEGIN = '.\\" Written by python -m rtmpd.config.render from rtmpd/config/rtmpd.configspec, do not edit\n'
_MAN_END = '.\\" The end of what is written\n'

_SAMPLE_HEAD = """\
# rtmpd.ini: the configuration of rtmpd.
#
# Every option is listed with its default, commented out: remove the "#" before an option to set it.
# "rtmpd -c FILE --check-config" checks a changed file. docs/configuration.rst describes the syntax.
#
# Units are in the names: _bytes, _s (seconds), _ms (milliseconds). A value may have another unit: 4K,
# 10M, 500ms, 30s, 5m, 2h. SIGHUP reloads the options with "Reload: yes"; the others need a restart.
#
# Written by "python -m rtmpd.config.render" from rtmpd/config/rtmpd.configspec.
"""


def render_value(value: object) -> str:
    """Return a value as text that the loader can read. A secret in the file itself becomes a mask, which the loader refuses."""
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
            raise TypeError(f"can't render {value!r}")


def render_config(config: Config, origins: Mapping[tuple[str, ...], str] | None = None) -> str:
    """Return a whole configuration as text: every option of every section, with secrets masked.

    Without secrets the text loads back to an equal ``Config``.

    Args:
        config: The configuration.
        origins: Where options are set, as `rtmpd.config.loader.origins` returns it; written after each option.
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
    """Return etc/rtmpd.ini: every option with its description and its default, commented out."""
    parts = [_SAMPLE_HEAD]
    for section in sections():
        parts.append(f"\n\n{_comment(section.description)}[{section.name}]\n")
        parts += [f"\n{_sample_option(option)}" for option in section.options]
        if section.subsections_of:
            parts.append("\n# For example, with options below each name:\n# [[live]]\n# [[*]]\n")
    return "".join(parts)


def render_rst_tables() -> str:
    """Return the reference of all options as reStructuredText, one table per section."""
    return "\n".join(_rst_section(section) for section in sections())


def replace_tables(text: str) -> str:
    """Return *text*, docs/configuration.rst, with the current tables between its two marks."""
    return _replace(text, _BEGIN, f"\n{render_rst_tables()}\n", _END)


def _replace(text: str, begin: str, lines: str, end: str) -> str:
    """Return *text* with *lines* between the two marks."""
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"the marks are missing: {begin}{end}")
    return f"{before}{begin}{lines}{end}{after}"


def main() -> int:
    """Update the texts in the checkout that this module is part of."""
    root = Path(__file__).resolve().parents[2]
    docs = root / "docs" / "configuration.rst"
    if not docs.is_file():
        sys.stderr.write(f"{root} is not a checkout of rtmpd: it has no docs/configuration.rst\n")
        return 1
    docs.write_text(replace_tables(docs.read_text("utf-8")), "utf-8")
    (root / "etc" / "rtmpd.ini").write_text(render_sample(), "utf-8")
    options, flags = root / "man" / "rtmpd.ini.5", root / "man" / "rtmpd.8"
    options.write_text(replace_options(options.read_text("utf-8")), "utf-8")
    flags.write_text(replace_flags(flags.read_text("utf-8")), "utf-8")
    return 0


def _assignments(
    options: tuple[Option, ...], values: Any, origins: Mapping[tuple[str, ...], str] | None, path: tuple[str, ...]
) -> str:
    lines = []
    for option in options:
        line = f"{option.name} = {render_value(getattr(values, option.name))}"
        if origins is not None:
            # An application has the options that it does not set itself from the option's section.
            origin = origins.get((*path, option.name)) or origins.get((option.section, option.name)) or "default"
            line = f"{line:<{_ORIGIN_COLUMN}}  # {origin}"
        lines.append(line + "\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    """Return a text in quotes if it needs them. No check accepts a text with both kinds of quotes."""
    if text and text.strip() == text and not any(c in "\"',#\n" for c in text):
        return text
    quote = '"' if '"' not in text else "'"
    if quote in text or "\n" in text:
        raise ValueError(f"can't render {text!r}")
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
    """Escape reStructuredText markup."""
    # "file:" would become a link.
    return text.replace("\\", r"\\").replace("*", r"\*").replace("`", r"\`").replace("file:", r"file\:")


def _rst_wrapped(text: str, start: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


# Manual pages -----------------------------------------------------------------------------------------------------------


def replace_options(text: str) -> str:
    """Return *text*, man/rtmpd.ini.5, with the current sections and options between its two marks."""
    return _replace(text, _MAN_BEGIN, "".join(_man_section(section) for section in sections()), _MAN_END)


def replace_flags(text: str) -> str:
    """Return *text*, man/rtmpd.8, with the current flags of options between its two marks."""
    flags = "".join(_man_flag(option) for section in sections() for option in section.options if option.flag)
    return _replace(text, _MAN_BEGIN, flags, _MAN_END)


def _man_section(section: Section) -> str:
    return f".SS [{section.name}]\n{_paragraph(section.description)}" + "".join(map(_man_option, section.options))


def _man_option(option: Option) -> str:
    facts = f"Value: {_value_with_unit(option)}. Default: {render_value(option.default)}. Reload: {_yes_no(option)}."
    if option.flag:
        facts += f" Flag: {option.flag}."
    return f".TP\n.B {_escaped(option.name)}\n{_paragraph(option.description)}.br\n{_paragraph(facts)}"


def _man_flag(option: Option) -> str:
    name, _, argument = option.flag.partition(" ")
    shown = f".B {_escaped(name)}" if not argument else f'.BI {_escaped(name)} " {_escaped(argument)}"'
    return f".TP\n{shown}\n{_paragraph(option.summary)}.br\n{_paragraph(f'Option: {option.name} in [{option.section}].')}"


def _paragraph(text: str) -> str:
    """Return a text as lines of roff. Each sentence begins a line."""
    lines = []
    for sentence in re.split(r"(?<=[.!?]) +", text):
        lines += textwrap.wrap(sentence, _MAN_WIDTH, break_on_hyphens=False, break_long_words=False)
    return "".join(f"{_escaped(line)}\n" for line in lines)


def _escaped(text: str) -> str:
    """Escape roff markup."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq").replace("^", "\\(ha")
    text = text.replace("~", "\\(ti").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith(".") else text


if __name__ == "__main__":
    sys.exit(main())
