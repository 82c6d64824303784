"""Templates for the names of recordings, such as ``{app}/{name}-{start:%Y%m%d-%H%M%S}-{n}``.

A stream is called whatever a client likes; a file of it is always inside its directory. What a field stands for is one
component of a path or a part of one: every character but letters, digits and ``-_.`` becomes ``%`` and hexadecimal digits, and
so does a dot in front. The template itself is checked when the configuration is loaded. Pure; imports nothing.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datetime as dt

__all__ = ["FileNameTemplate", "safe_component"]

_FIELD = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")
_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)
_DIRECTIVES = "YmdHMSyjfpIGVu"
_TEXT = re.compile(r"[\w .,;@+=()/~-]*", re.ASCII)
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_NUMBER = re.compile(r"0[1-9]")
_FIELDS = ("app", "name", "start", "n")
_COMPONENT_BYTES = 200
"""The longest component: file systems take 255 bytes, and ``.flv.part`` and a number may follow."""
_VALUE_CHARACTERS = 100
_LENGTH = 1000
_ADDED = r"(?:-\d+|-[0-9a-f]{8})?"
_SHORTENED = re.compile(r".{1,183}~[0-9a-f]{16}" + _ADDED)


def safe_component(text: str) -> str:
    """Make a part of a path of any text: never empty, hidden, ``.`` or ``..``, at most 100 characters, different for each text.

    Bytes of a name that were no UTF-8 (lone surrogates) keep their value. Of a longer text the beginning and a hash are left.
    """
    data = text.encode("utf-8", "surrogateescape")
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in data)
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if len(encoded) > _VALUE_CHARACTERS:
        digest = hashlib.sha256(data).hexdigest()[:16]
        # Not in the middle of an escape.
        head = re.sub(r"%[0-9A-F]?$", "", encoded[: _VALUE_CHARACTERS - 17])
        encoded = f"{head}~{digest}"
    return encoded or "%"


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a template: text, or a field with its format."""

    text: str = ""
    field: str = ""
    format: str = ""


@dataclass(frozen=True, slots=True)
class FileNameTemplate:
    """A template that has been checked.

    Attributes:
        text: As it is written in the configuration.
        parts: The same, taken apart.
    """

    text: str
    parts: tuple[_Part, ...]

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> FileNameTemplate:
        """Check a template.

        Raises:
            ValueError: It can't be used; the message says why.
        """
        if not text or len(text) > _LENGTH:
            raise ValueError(f"it has 1 to {_LENGTH} characters")
        parts = []
        position = 0
        for match in _FIELD.finditer(text):
            parts.append(_Part(_literal(text[position : match.start()])))
            parts.append(_field(match[1], match[2]))
            position = match.end()
        parts.append(_Part(_literal(text[position:])))
        for component in _FIELD.sub("x", text).split("/"):
            if not component.strip() or component.startswith("."):
                raise ValueError('it is relative to the directory, and no part of it is empty or begins with "."')
            if len(component.encode()) > _COMPONENT_BYTES:
                raise ValueError(f"no part of it is longer than {_COMPONENT_BYTES} bytes")
        if not any(part.field for part in parts):
            raise ValueError("it has a field, such as {name}")
        return cls(text, tuple(part for part in parts if part.text or part.field))

    def expand(self, app: str, name: str, start: dt.datetime, number: int) -> str:
        """Return a relative path, without an extension.

        Args:
            app: The stream's application; all but the last part of its key.
            name: The last part.
            start: When the file begins.
            number: Counts the files of one publish.
        """
        values = {"app": safe_component(app), "name": safe_component(name)}
        pieces = []
        for part in self.parts:
            if part.field == "n":
                pieces.append(format(number, part.format or "d"))
            elif part.field == "start":
                pieces.append(start.strftime(part.format))
            else:
                pieces.append(values.get(part.field, part.text))
        return "/".join(_shortened(component) for component in "".join(pieces).split("/"))

    def matches(self, path: str) -> bool:
        """Whether a relative path without an extension may be one that this template has given, with an added number or not.

        A field matches any value that it can have, so a file of the same shape that somebody else made matches too.
        """
        patterns, components = self._patterns(), path.split("/")
        if len(patterns) != len(components):
            return False
        return all(
            re.fullmatch(pattern, component) or _SHORTENED.fullmatch(component)
            for pattern, component in zip(patterns, components, strict=True)
        )

    def _patterns(self) -> list[str]:
        pieces = []
        for part in self.parts:
            if part.field == "n":
                pieces.append(r"\d+")
            elif part.field == "start":
                pieces += [r"\w+" if piece.startswith("%") else re.escape(piece) for piece in re.split(r"(%.)", part.format)]
            elif part.field:
                pieces.append(r"[A-Za-z0-9._~%-]+")
            else:
                pieces.append(re.escape(part.text))
        return ("".join(pieces) + _ADDED).split("/")


def _literal(text: str) -> str:
    if "{" in text or "}" in text:
        raise ValueError("braces only stand around {app}, {name}, {start:FORMAT} and {n}")
    if "%" in text:
        raise ValueError('"%" only stands inside {start:...}: write {name} for %s, {n} for %d, {start:%Y%m%d} for %Y%m%d')
    if not _TEXT.fullmatch(text):
        raise ValueError("besides fields it has letters, digits, spaces and any of /.,;@+=()~_-")
    return text


def _field(name: str, form: str | None) -> _Part:
    if name not in _FIELDS:
        raise ValueError(f"there is no field {{{name}}}: there are {{app}}, {{name}}, {{start:FORMAT}} and {{n}}")
    if name == "start":
        if not form:
            raise ValueError("{start} needs a format, such as {start:%Y%m%d-%H%M%S}")
        for directive in _DIRECTIVE.findall(form):
            if not directive or directive not in _DIRECTIVES:
                raise ValueError(f"{{start:...}} takes % and one of {_DIRECTIVES}")
        _literal(_DIRECTIVE.sub("", form))
        if "/" in (form[0], form[-1]) or "//" in form or re.search(r"(?:^|/)\.", form):
            raise ValueError('in {start:...}, "/" stands between two parts of a path')
        return _Part(field=name, format=form)
    if form is not None and (name != "n" or not _NUMBER.fullmatch(form)):
        raise ValueError("of the fields, {start} takes a format, and {n} a number of digits, such as {n:03}")
    return _Part(field=name, format=form or "")


def _shortened(component: str) -> str:
    encoded = component.encode()
    if len(encoded) <= _COMPONENT_BYTES:
        return component
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    # All of it is ASCII but for what a locale's %p may be.
    return encoded[: _COMPONENT_BYTES - 17].decode(errors="ignore") + "~" + digest
