"""Texts of clients and operators in log lines and messages. Pure."""

from __future__ import annotations

_SHOWN_LENGTH = 80


def printable(text: str) -> str:
    """Return *text* with control characters escaped, safe for a log line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """Return a value in quotes for a message, shortened if it is long."""
    return f'"{printable(text[:_SHOWN_LENGTH])}{"..." if len(text) > _SHOWN_LENGTH else ""}"'
