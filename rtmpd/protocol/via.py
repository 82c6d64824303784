"""The mark by which a relay that leads back to where it began is noticed.

A server that pushes a stream on names itself in the connect command, and before itself the servers that the stream has come
through: ``rtmpdVia``, a string of ids between commas. A server that finds itself there refuses to have the stream published.
Servers that don't know the member ignore it. Pure; imports nothing.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["LOOP", "MEMBER", "VIA_LIMIT", "format_via", "is_loop", "parse_via"]

MEMBER: Final = "rtmpdVia"
"""The member of the connect command's object."""

LOOP: Final = "A relay loop: the stream has come from this server."
"""What a publish is refused with; the relay knows it by this text."""

VIA_LIMIT: Final = 16
"""A stream that has come through as many servers goes no further, whoever they are."""

_ID_LENGTH = 32
_ID = re.compile(r"[0-9a-f]{8,32}", re.ASCII)


def parse_via(value: object) -> tuple[str, ...]:
    """Read the member; what is no list of ids is none. At most `VIA_LIMIT` are read."""
    if not isinstance(value, str):
        return ()
    ids = value[: VIA_LIMIT * (_ID_LENGTH + 1)].split(",")[:VIA_LIMIT]
    return tuple(each for each in ids if _ID.fullmatch(each))


def format_via(ids: tuple[str, ...]) -> str:
    """Write the member."""
    return ",".join(ids)


def is_loop(via: tuple[str, ...], own: str) -> bool:
    """Whether a stream that has come through these servers must not be published here."""
    return own in via or len(via) >= VIA_LIMIT
