"""Secrets of the configuration: keys, tokens and passwords, which no message, log line or printed configuration contains."""

from __future__ import annotations

import hmac
import os
from typing import Final, Self

from rtmpd.util.files import read_file

MASK: Final = "********"
"""The text that is shown in place of a secret."""

_LENGTH = 4096


class Secret:
    """A text that only `reveal` returns. Comparisons take constant time. The empty secret is false: it means "none".

    Args:
        value: The text.
        source: ``file:PATH`` or ``env:NAME``, if the text was read from there.
    """

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: str = "") -> None:
        self._value = value
        self.source = source

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a secret: from a file (``file:PATH``), from an environment variable (``env:NAME``), or the text itself.

        A line feed at the end of a file is not part of the secret. A file or variable must not be empty.

        Raises:
            ValueError: There is no such file or variable, or no valid secret. The message contains no part of a secret.
        """
        kind, colon, name = text.partition(":")
        if colon and kind == "file":
            return cls(_checked(_read(name)), text)
        if colon and kind == "env":
            value = os.environ.get(name)
            if value is None:
                raise ValueError("the environment variable is not set")
            return cls(_checked(value), text)
        return cls(_checked(text) if text else "")

    def reveal(self) -> str:
        """Return the text of the secret."""
        return self._value

    def matches(self, given: str) -> bool:
        """Return whether *given* is the secret, in constant time. Nothing matches the empty secret."""
        return bool(self._value) & hmac.compare_digest(_encoded(self._value), _encoded(given))

    @property
    def shown(self) -> str:
        """The text to show: the source, else the mask; empty for the empty secret."""
        return self.source or (MASK if self._value else "")

    def __str__(self) -> str:
        return self.shown

    def __repr__(self) -> str:
        return f"Secret({self.shown})"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self.source == other.source and hmac.compare_digest(_encoded(self._value), _encoded(other._value))

    def __hash__(self) -> int:
        return hash((self.source, self._value))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _read(path: str) -> str:
    try:
        return read_file(path, _LENGTH + 3).decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ValueError(f"the file can't be read: {error.strerror or 'error'}") from None
    except UnicodeDecodeError:
        raise ValueError("the secret is not UTF-8 text") from None


def _checked(value: str) -> str:
    if not value:
        raise ValueError("the secret is empty")
    if value == MASK:
        raise ValueError("the secret is the mask of a printed configuration")
    if len(value) > _LENGTH:
        raise ValueError(f"the secret is longer than {_LENGTH} characters")
    if not value.isprintable():
        raise ValueError("the secret contains control characters or several lines")
    return value
