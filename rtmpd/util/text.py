"""Texts of clients and operators in log lines and messages. Pure."""

from __future__ import annotations

import errno
import json

_SHOWN_LENGTH = 80
_DECEIVING = {
    number: f"\\u{number:04x}"
    for first, last in ((0x7F, 0x9F), (0x061C, 0x061C), (0x200E, 0x200F), (0x2028, 0x202E), (0x2066, 0x2069))
    for number in range(first, last + 1)
}
"""Characters that JSON allows and that forge or turn lines: controls, line separators, and marks of writing direction."""


def printable(text: str) -> str:
    """Return *text* with control characters escaped, safe for a log line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def harmless(text: str) -> str:
    """Return *text* without characters that end or turn a line, which are escaped; line feeds and other ASCII controls stay."""
    return text if text.isprintable() else text.translate(_DECEIVING)


def json_line(value: object, separators: tuple[str, str] | None = None) -> str:
    """Return *value* as JSON in one line, whatever a reader takes for the end of one. Other characters are not escaped."""
    return harmless(json.dumps(value, ensure_ascii=False, separators=separators))


def shown(text: str) -> str:
    """Return a value in quotes for a message, shortened if it is long."""
    return f'"{printable(text[:_SHOWN_LENGTH])}{"..." if len(text) > _SHOWN_LENGTH else ""}"'


def connection_error(verb: str, error: OSError) -> str:
    """Return why a connection has ended, by the error of a read or send. Peers that leave in a hurry reset it: no failure.

    Args:
        verb: What failed otherwise: ``read`` or ``send``.
        error: The error.
    """
    if error.errno in (errno.ECONNRESET, errno.EPIPE):
        return "closed by the peer (connection reset)"
    return f"{verb} failed: {error.strerror or error}"


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 stream``, ``2 streams``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
