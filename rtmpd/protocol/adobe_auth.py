"""Adobe's login: user and password inside of refused connects, as OBS, FFmpeg, librtmp and GStreamer speak it.

A client connects three times. The first connect is refused with "need auth". The second one carries ``authmod=adobe&user=NAME``
in the query of the application, and is refused with a salt and a challenge. The third carries the response to that::

    base64(md5(base64(md5(user + salt + password)) + opaque + challenge))

with the server's ``opaque`` and a challenge of the client's own. The password is never sent, but MD5 protects it badly: who
listens can try passwords. Pure, both roles; time and randomness are the caller's. Imports nothing of rtmpd.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from hashlib import blake2b, md5
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AUTH_FAILED", "NEED_AUTH", "UNKNOWN_AUTHMOD", "Challenges", "Login", "query_parameters", "response"]

NEED_AUTH: Final = "[ AccessManager.Reject ] : [ code=403 need auth; authmod=adobe ] : "
"""The description of the first refusal. Clients look for parts of it, GStreamer for all of it."""
AUTH_FAILED: Final = "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=authfailed&opaque=-"
"""Of the last one, for a wrong user as well: who asks need not know which users there are."""
UNKNOWN_AUTHMOD: Final = "[ AccessManager.Reject ] : [ authmod=unknown ] : ?reason=invalid_authmod&opaque=-"
"""For a client that insists on another way, such as llnw."""

_LIFE_S = 60
_USED_LIMIT = 20_000
_NONCE_BYTES = 9
_TAG_BYTES = 12
_RESPONSE_LENGTH = 24
_CHALLENGE_LENGTH = 8  # of FFmpeg, librtmp and GStreamer
_SEPARATORS = re.compile(r"[?&]")


def query_parameters(query: str) -> dict[str, str]:
    """Take a query apart as these clients put it together: base64 is in it as it is, so a ``+`` is no space.

    A query that was appended to another one has a ``?`` in the middle. The first of two parameters with one name counts.
    """
    found: dict[str, str] = {}
    for part in _SEPARATORS.split(query[:8192]):
        name, equals, value = part.partition("=")
        if equals:
            found.setdefault(name, value)
    return found


def _hashed(*parts: str) -> str:
    data = "".join(parts).encode("utf-8", "surrogatepass")
    return b64encode(md5(data, usedforsecurity=False).digest()).decode()


def response(user: str, password: str, salt: str, opaque: str, challenge: str) -> str:
    """Return what proves that the client knows the password."""
    return _hashed(_hashed(user, salt, password), opaque, challenge)


class Login:
    """The client's side: what to send after each refusal.

    Args:
        user, password: Who logs in.
    """

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._step = 0

    def answer(self, description: str, nonce: bytes) -> str:
        """Return the query for the next connect's application; empty if there is nothing left to try.

        Args:
            description: Of the refusal.
            nonce: Four random bytes.
        """
        user = quote(self._user, safe="!$'()*+,-.:;@_~")
        if self._step == 0 and "code=403 need auth" in description:
            self._step = 1
            return f"authmod=adobe&user={user}"
        if self._step < 2 and "?reason=needauth" in description:
            self._step = 2
            found = query_parameters(description.partition("?")[2])
            opaque = found.get("opaque", "")
            challenge = nonce.hex()
            # The server counts with the name as it says it.
            name = found.get("user") or user
            proof = response(name, self._password, found.get("salt", ""), opaque or found.get("challenge", ""), challenge)
            query = f"authmod=adobe&user={user}&challenge={challenge}&response={proof}"
            return f"{query}&opaque={opaque}" if opaque else query
        return ""


class Challenges:
    """The server's side: makes challenges, and judges responses to them.

    A challenge is signed and holds its time, so that nothing is kept for those who ask for one and never come back. It is good
    once, and for a minute. What is kept is which ones were used: at most as many as are given here, the oldest go first.

    Args:
        key: Random bytes, new for each process.
        used_limit: How many used challenges are remembered.
    """

    def __init__(self, key: bytes, used_limit: int = _USED_LIMIT) -> None:
        self._key = key
        self._used_limit = used_limit
        self._used: OrderedDict[str, float] = OrderedDict()

    def _tag(self, purpose: str, *parts: bytes) -> bytes:
        mac = blake2b(key=self._key, person=purpose.encode(), digest_size=_TAG_BYTES)
        for part in parts:
            mac.update(len(part).to_bytes(4, "big") + part)
        return mac.digest()

    def _salt(self, user: str) -> str:
        # The same each time, and for users that don't exist, too.
        return self._tag("salt", _encoded(user)).hex()[:8]

    def describe(self, user: str, now_s: float, nonce: bytes) -> str:
        """Return the description that asks *user* for a response.

        Args:
            user: As the client wrote it; the caller has checked that it is short, since FFmpeg reads 255 bytes.
            now_s: The time, of a clock that never goes back.
            nonce: Nine random bytes.
        """
        issued = int(now_s).to_bytes(6, "big") + nonce
        opaque = urlsafe_b64encode(issued + self._tag("opaque", issued, _encoded(user))).decode()
        return (
            "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=needauth"
            f"&user={user}&salt={self._salt(user)}&challenge={opaque}&opaque={opaque}"
        )

    def fresh(self, user: str, opaque: str, now_s: float) -> bool:
        """Whether a challenge is one of ours, for this user, and neither too old nor used before. It is used then."""
        data = _decoded(opaque)
        issued, tag = data[: 6 + _NONCE_BYTES], data[6 + _NONCE_BYTES :]
        if not hmac.compare_digest(tag, self._tag("opaque", issued, _encoded(user))):
            return False
        if now_s - int.from_bytes(issued[:6], "big") > _LIFE_S or opaque in self._used:
            return False
        while self._used and (len(self._used) >= self._used_limit or now_s - next(iter(self._used.values())) > _LIFE_S + 1):
            self._used.popitem(last=False)
        self._used[opaque] = now_s
        return True

    def proves(self, parameters: dict[str, str], passwords: Iterable[str]) -> bool:
        """Whether a client's response fits one of the passwords; `fresh` must have said yes to its challenge."""
        user, opaque = parameters.get("user", ""), parameters.get("opaque", "")
        challenge = parameters.get("challenge", "")
        # Debian's librtmp forgets to end both texts: what happens to lie in its memory follows.
        given = _encoded(unquote(parameters.get("response", ""))[:_RESPONSE_LENGTH])
        right = False
        for password in passwords:
            # FFmpeg takes a password out of its URL as it stands there, percent signs and all.
            for variant in {password, quote(password, safe="")}:
                for each in {challenge, challenge[:_CHALLENGE_LENGTH]}:
                    proof = response(user, variant, self._salt(user), opaque, each)
                    right |= hmac.compare_digest(_encoded(proof), given)
        return right


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(opaque: str) -> bytes:
    """Read base64 of ours; anything else gives bytes that no tag fits."""
    size = 6 + _NONCE_BYTES + _TAG_BYTES
    if len(opaque) != size // 3 * 4 or not re.fullmatch(r"[A-Za-z0-9_-]*", opaque, re.ASCII):
        return bytes(size)
    return urlsafe_b64decode(opaque)
