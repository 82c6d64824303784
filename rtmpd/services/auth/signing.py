"""Signed URLs: ``?expires=TIME&sign=SIGNATURE`` allows any client to publish or play one stream until that time. Pure.

The signature is HMAC-SHA256, in hexadecimal, with the secret as its key, over three lines::

    publish|play LF application/name LF expires

without a line feed at the end.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rtmpd.protocol.naming import join_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.config.secret import Secret

_EXPIRES = re.compile(r"[0-9]{1,12}", re.ASCII)


def sign(secret: Secret, action: str, key: str, expires_s: int) -> str:
    """Return the signature of a stream.

    Args:
        secret: The key of the HMAC.
        action: ``publish`` or ``play``.
        key: ``application/name`` as it is written in the URL.
        expires_s: The end of its validity, seconds since 1970.
    """
    text = f"{action}\n{key}\n{expires_s}"
    return hmac.new(_encoded(secret.reveal()), _encoded(text), "sha256").hexdigest()


def verified(secrets: Iterable[Secret], action: str, key: str, expires: str, signature: str) -> int | None:
    """Return when a URL expires, if one of the secrets has signed it; else None. The caller compares the time."""
    if not _EXPIRES.fullmatch(expires):
        return None
    given = _encoded(signature.lower())
    right = False
    for secret in secrets:
        right |= hmac.compare_digest(_encoded(sign(secret, action, key, int(expires))), given)
    # As it was signed: a leading zero would be another text.
    return int(expires) if right and expires == str(int(expires)) else None


def stream_of_url(url: str) -> str:
    """Return the key of the stream that an RTMP URL names; raises ValueError."""
    parts = urlsplit(url)
    # As it is written: RTMP clients decode nothing.
    key = join_key("", parts.path)
    if parts.scheme not in ("rtmp", "rtmps") or not parts.hostname or "/" not in key:
        raise ValueError("expected rtmp://HOST/APPLICATION/NAME")
    return key


def sign_url(secret: Secret, action: str, url: str, expires_s: int) -> str:
    """Return a URL with its signature; raises ValueError if that is no RTMP URL with application and name."""
    signature = sign(secret, action, stream_of_url(url), expires_s)
    return f"{url}{'&' if '?' in url else '?'}expires={expires_s}&sign={signature}"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
