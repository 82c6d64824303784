"""Templates for the names of recordings, such as ``{app}/{name}-{start:%Y%m%d-%H%M%S}-{n}``.

A client chooses the name of a stream, so a field can't become more than one component of a path or a part of it: every
character except letters, digits and ``-_.``, and a dot in front, becomes ``%`` and hexadecimal digits. Pure.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datetime as dt

_FIELD = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")
_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)
_DIGITS = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2, "y": 2, "j": 3, "f": 6, "p": 2, "I": 2, "G": 4, "V": 2, "u": 1}
"""The strftime directives that produce ASCII of a fixed length in every locale, and that length. ``%p``: see `_format_time`."""
_NOT_TEXT = re.compile(r"[^\w .,;@+=()/~-]", re.ASCII)
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_NUMBER = re.compile(r"0[1-9]")
_FIELDS = ("app", "name", "start", "n")
_COMPONENT_BYTES = 200
"""The longest component: file systems accept 255 bytes, and ``.flv.part`` and a number can follow."""
_COMPONENTS = 16
_VALUE_CHARACTERS = 100
_LENGTH = 1000
_VALUE_PATTERN = rf"[\w.~%-]{{1,{_VALUE_CHARACTERS}}}"
_SHORTENED_PATTERN = rf"[ -~]{{{_COMPONENT_BYTES - 17}}}~[0-9a-f]{{16}}"
# A number is added if the file exists at the start of a recording, and another one if it exists at the end.
_ADDED_PATTERN = r"(?:-[0-9]{1,2}|-[0-9a-f]{8}){0,2}"


def safe_component(text: str) -> str:
    """Convert a text to a path component: unique, never empty, hidden, ``.`` or ``..``, at most 100 characters.

    Bytes that were not UTF-8 (lone surrogates) keep their value. A longer text becomes its beginning and a hash.
    """
    data = hashed = _as_bytes(text)
    if data is None:
        # No bytes of a client are decoded to this text, so the hash must differ from that of all bytes.
        data = text.encode("utf-8", "surrogatepass")
        hashed = b"\xff" + data
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in data)
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if hashed is not data or len(encoded) > _VALUE_CHARACTERS:
        # An escape must not be cut in the middle.
        head = re.sub(r"%[0-9A-F]?$", "", encoded[: _VALUE_CHARACTERS - 17])
        encoded = f"{head}~{hashlib.sha256(hashed or b'').hexdigest()[:16]}"
    return encoded or "%"


def _as_bytes(text: str) -> bytes | None:
    """Return the bytes that are decoded to this text; None if there are none."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    return data if data.decode("utf-8", "surrogateescape") == text else None


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a template: text, or a field with its format."""

    text: str = ""
    field: str = ""
    format: str = ""


@dataclass(frozen=True, slots=True)
class FileNameTemplate:
    """A checked template.

    Attributes:
        text: The template as the configuration has it.
        parts: The text and the fields of the template.
        patterns: A pattern for each path component that the template can produce.
    """

    text: str
    parts: tuple[_Part, ...]
    patterns: tuple[re.Pattern[str], ...] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> FileNameTemplate:
        """Parse and check a template.

        Raises:
            ValueError: The template is wrong; the message gives the reason.
        """
        if not text or len(text) > _LENGTH:
            raise ValueError(f"a template has 1 to {_LENGTH} characters")
        found = []
        position = 0
        for match in _FIELD.finditer(text):
            found.append(_Part(_literal(text[position : match.start()])))
            found.append(_field(match[1], match[2]))
            position = match.end()
        found.append(_Part(_literal(text[position:])))
        parts = tuple(part for part in found if part.text or part.field)
        if not any(part.field for part in parts):
            raise ValueError("a field such as {name} is missing")
        for suffix in (".flv", ".mp4"):
            if text.endswith(suffix):
                raise ValueError(f"{suffix} is added automatically")
        components = _components(parts)
        if len(components) > _COMPONENTS:
            raise ValueError(f'at most {_COMPONENTS} parts between "/" are possible')
        for component in components:
            _check_component(component)
        patterns = [f"(?:{''.join(map(_pattern, component))}|{_SHORTENED_PATTERN})" for component in components]
        patterns[-1] += _ADDED_PATTERN
        return cls(text, parts, tuple(re.compile(pattern, re.ASCII) for pattern in patterns))

    def expand(self, app: str, name: str, start: dt.datetime, number: int) -> str:
        """Return a relative path without an extension.

        Args:
            app: The stream's application. A slash in it does not create a directory.
            name: The stream's name.
            start: The start of the file.
            number: The number of the file within one publish.
        """
        values = {"app": safe_component(app), "name": safe_component(name)}
        pieces = []
        for part in self.parts:
            if part.field == "n":
                pieces.append(format(number, part.format or "d"))
            elif part.field == "start":
                pieces.append(_format_time(start, part.format))
            else:
                pieces.append(values.get(part.field, part.text))
        return "/".join(_shortened(component) for component in "".join(pieces).split("/"))

    def matches(self, path: str) -> bool:
        """Return whether this template can produce a relative path without an extension, with an added number or not.

        A field matches every value that it can have, so a file of another origin with such a name matches, too.
        """
        components = path.split("/")
        return len(components) == len(self.patterns) and self._match(components)

    def matches_directory(self, path: str) -> bool:
        """Return whether a relative path can be a directory of paths of this template. The top directory, ``""``, is not."""
        components = path.split("/")
        return len(components) < len(self.patterns) and self._match(components)

    def _match(self, components: list[str]) -> bool:
        return all(
            pattern.fullmatch(component) and not component.startswith(".")
            for pattern, component in zip(self.patterns, components, strict=False)
        )


def _literal(text: str) -> str:
    if "{" in text or "}" in text:
        raise ValueError("braces are only possible in {app}, {name}, {start:FORMAT} and {n}")
    if "%" in text:
        raise ValueError('"%" is only possible in {start:...}: write {name} for %s, {n} for %d, {start:%Y%m%d} for %Y%m%d')
    if _NOT_TEXT.search(text):
        raise ValueError("besides fields only letters from A to Z, digits, spaces and any of /.,;@+=()~_- are possible")
    return text


def _field(name: str, form: str | None) -> _Part:
    if name not in _FIELDS:
        raise ValueError("the fields are {app}, {name}, {start:FORMAT} and {n}")
    if name == "start":
        if not form:
            raise ValueError("{start} needs a format, such as {start:%Y%m%d-%H%M%S}")
        directives = _DIRECTIVE.findall(form)
        if not directives or any(directive not in _DIGITS for directive in directives):
            raise ValueError(f"{{start:...}} needs % and one of {''.join(_DIGITS)}")
        _literal(_DIRECTIVE.sub("", form))
        return _Part(field=name, format=form)
    if form is not None and (name != "n" or not _NUMBER.fullmatch(form)):
        raise ValueError("only {start} takes a format, and {n} a number of digits such as {n:03}")
    return _Part(field=name, format=form or "")


def _components(parts: tuple[_Part, ...]) -> list[list[_Part]]:
    """Split a template at its slashes, including those in time formats."""
    components: list[list[_Part]] = [[]]
    for part in parts:
        is_time = part.field == "start"
        if part.field and not is_time:
            components[-1].append(part)
            continue
        for number, piece in enumerate((part.format if is_time else part.text).split("/")):
            if number:
                components.append([])
            if piece:
                components[-1].append(_Part(field="start", format=piece) if is_time else _Part(piece))
    return components


def _check_component(parts: list[_Part]) -> None:
    fields = [part.field for part in parts if part.field not in ("", "start")]
    if len(set(fields)) < len(fields):
        # Two such fields in a row would also take long to match.
        raise ValueError('{app}, {name} and {n} are possible only once between two "/"')
    fixed = "".join(part.text or _DIRECTIVE.sub(_example, part.format) for part in parts)
    if not fields and not fixed.strip():
        raise ValueError('the path is relative, and no part between "/" can be empty')
    if (parts[0].text or parts[0].format).startswith("."):
        raise ValueError('no part between "/" can begin with "."')
    if len(fixed) > _COMPONENT_BYTES:
        raise ValueError(f'no part between "/" can be longer than {_COMPONENT_BYTES} characters')


def _example(directive: re.Match[str]) -> str:
    return "0" * _DIGITS[directive[1]]


def _pattern(part: _Part) -> str:
    """Return a regular expression for all values of a part."""
    if part.field == "n":
        return rf"[0-9]{{{part.format[1:] or 1},20}}"
    if part.field == "start":
        pieces = re.split(r"%(.)", part.format)  # every second one is a directive
        pieces[::2] = map(re.escape, pieces[::2])
        pieces[1::2] = ("(?:AM|PM)" if letter == "p" else rf"[0-9]{{{_DIGITS[letter]}}}" for letter in pieces[1::2])
        return "".join(pieces)
    return _VALUE_PATTERN if part.field else re.escape(part.text)


def _format_time(time: dt.datetime, form: str) -> str:
    # The %p of strftime depends on the locale: empty, with dots, or in another script.
    return time.strftime(form.replace("%p", "AM" if time.hour < 12 else "PM"))


def _shortened(component: str) -> str:
    if len(component) <= _COMPONENT_BYTES:
        return component
    return f"{component[: _COMPONENT_BYTES - 17]}~{hashlib.sha256(component.encode()).hexdigest()[:16]}"
