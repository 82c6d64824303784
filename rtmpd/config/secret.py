"""Secrets of the configuration: keys, tokens and passwords, which no message, log line or printed configuration shows."""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Final, Self

__all__ = ["MASK", "Secret"]

MASK: Final = "********"
"""What stands for a secret wherever something is shown."""

_LENGTH = 4096


class Secret:
    """A text that shows itself to nobody who does not ask for it by `reveal`.

    Two secrets compare in a time that does not tell how much of them is equal. The empty one is false: it means "none".

    Args:
        value: The text itself.
        source: ``file:PATH`` or ``env:NAME``, if it came from there.
    """

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: str = "") -> None:
        self._value = value
        self.source = source

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a secret: ``file:PATH`` is the content of a file, ``env:NAME`` an environment variable, all else itself.

        A line feed at the end of a file is not part of the secret. A file or variable must hold something.

        Raises:
            ValueError: There is no such file or variable, or it holds no secret. The message shows none either.
        """
        kind, colon, name = text.partition(":")
        if colon and kind == "file":
            return cls(_checked(_read(name), text), text)
        if colon and kind == "env":
            value = os.environ.get(name)
            if value is None:
                raise ValueError("there is no such environment variable")
            return cls(_checked(value, text), text)
        return cls(_checked(text, "") if text else "")

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._value

    def matches(self, given: str) -> bool:
        """Whether *given* is the secret, in a time that does not tell how much of it is right. Nothing matches "none"."""
        return bool(self._value) & hmac.compare_digest(_encoded(self._value), _encoded(given))

    @property
    def shown(self) -> str:
        """What may be shown: where it comes from, else a mask; nothing for "none"."""
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
        with Path(path).open("rb") as file:
            data = file.read(_LENGTH + 3)
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ValueError(f"can't be read: {os.strerror(error.errno) if error.errno else 'error'}") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


def _checked(value: str, source: str) -> str:
    if not value:
        raise ValueError("it is empty")
    if value == MASK:
        raise ValueError("this is the mask of a printed configuration, not a secret")
    if len(value) > _LENGTH:
        raise ValueError(f"it is longer than {_LENGTH} characters")
    if not value.isprintable():
        where = "it" if source else "the value"
        raise ValueError(f"{where} has control characters or several lines")
    return value
