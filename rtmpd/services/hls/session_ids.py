"""Session ids: short, opaque, and signed, so that each server with the same secret knows which of them are valid. Pure.

An id stands for the right to play one stream and its renditions until a time. It holds no token and no name.
"""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

LENGTH: Final = 32
"""The length of an id, characters of base64 for URLs."""

RANDOM_BYTES: Final = 7

_TIME_BYTES = 4
_HEAD_BYTES = _TIME_BYTES + 1 + RANDOM_BYTES
_MAC_BYTES = 12
_PROVED, _EXPIRES = 1, 2
_LATEST_S = (1 << 8 * _TIME_BYTES) - 1


class Claim(NamedTuple):
    """What a valid id stands for.

    Attributes:
        key: The stream.
        until_s: When it expires, seconds since 1970.
        proved: Whether the client had to show something for it: a token, a signature, or what a callback has accepted.
        expires: Whether the grant expires with it, so that a play must not last longer.
    """

    key: str
    until_s: int
    proved: bool
    expires: bool = False


def make_id(secret: bytes, key: str, until_s: int, random: bytes, *, proved: bool, expires: bool = False) -> str:
    """Return a session id.

    Args:
        secret: The key of the HMAC-SHA256.
        key: The stream.
        until_s: When it expires, seconds since 1970.
        random: `RANDOM_BYTES` that no other id has.
        proved, expires: As of `Claim`.
    """
    head = min(until_s, _LATEST_S).to_bytes(_TIME_BYTES, "big") + bytes([_PROVED * proved | _EXPIRES * expires]) + random
    return base64.urlsafe_b64encode(head + _mac(secret, head, key)).decode("ascii")


def check_id(secret: bytes, text: str, keys: Iterable[str], now_s: float) -> Claim | None:
    """Return what an id of a client stands for; None: it is not valid, not for these streams, or has expired.

    Args:
        secret: The key of the HMAC-SHA256.
        text: The id.
        keys: The streams that it may be for.
        now_s: The time of day, seconds since 1970.
    """
    if len(text) != LENGTH or not text.isascii():
        return None
    try:
        data = base64.b64decode(text, altchars=b"-_", validate=True)
    except ValueError:
        return None
    head, given = data[:_HEAD_BYTES], data[_HEAD_BYTES:]
    until_s = int.from_bytes(head[:_TIME_BYTES], "big")
    for key in keys:
        if hmac.compare_digest(_mac(secret, head, key), given):
            flags = head[_TIME_BYTES]
            return Claim(key, until_s, bool(flags & _PROVED), bool(flags & _EXPIRES)) if now_s < until_s else None
    return None


def _mac(secret: bytes, head: bytes, key: str) -> bytes:
    return hmac.digest(secret, b"hls" + head + key.encode("utf-8", "surrogatepass"), "sha256")[:_MAC_BYTES]
