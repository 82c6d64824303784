"""Detection of relay loops, by a member of the connect command that lists the servers of a stream's path.

A relay sends ``rtmpdVia``: the ids of the servers that the stream has passed and of its own, separated by commas. A server that
finds its own id there refuses the publish. Other servers ignore the member. No I/O.
"""

from __future__ import annotations

import re
from typing import Final

MEMBER: Final = "rtmpdVia"
"""The member of the connect command's object."""

LOOP: Final = "A relay loop: the stream has come from this server."
"""The description of the refusal, by which the relay recognizes it."""

VIA_LIMIT: Final = 16
"""The longest path of a stream, servers. A publish with a longer one is refused as a loop."""

_ID_LENGTH = 32
_ID = re.compile(r"[0-9a-f]{8,32}", re.ASCII)


def parse_via(value: object) -> tuple[str, ...]:
    """Return the ids in the member, at most `VIA_LIMIT`. Malformed ids are ignored."""
    if not isinstance(value, str):
        return ()
    ids = value[: VIA_LIMIT * (_ID_LENGTH + 1)].split(",")[:VIA_LIMIT]
    return tuple(each for each in ids if _ID.fullmatch(each))


def format_via(ids: tuple[str, ...]) -> str:
    """Return the value of the member."""
    return ",".join(ids)


def is_loop(via: tuple[str, ...], own: str) -> bool:
    """Return whether a stream with this path must be refused by the server with the id *own*."""
    return own in via or len(via) >= VIA_LIMIT
