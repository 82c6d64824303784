"""Adobe's login with user and password, which OBS, FFmpeg, librtmp and GStreamer support; client and server. No I/O.

A client connects three times. The first connect is refused with "need auth". The second one has ``authmod=adobe&user=NAME`` in
the query of the application, and is refused with a salt and a challenge. The third one has the response to it::

    base64(md5(base64(md5(user + salt + password)) + opaque + challenge))

with the server's ``opaque`` and the client's own challenge. The password is never sent, but an eavesdropper can guess it
offline, because MD5 is fast. Time and random bytes come from the caller.
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

NEED_AUTH: Final = "[ AccessManager.Reject ] : [ code=403 need auth; authmod=adobe ] : "
"""The description of the first refusal. Clients search for parts of it, GStreamer compares all of it."""
AUTH_FAILED: Final = "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=authfailed&opaque=-"
"""The description of the last refusal, for unknown users as well: it must not reveal which users exist."""
UNKNOWN_AUTHMOD: Final = "[ AccessManager.Reject ] : [ authmod=unknown ] : ?reason=invalid_authmod&opaque=-"
"""The description for clients that use another method, such as llnw."""

_LIFE_S = 60
_USED_LIMIT = 20_000
_NONCE_BYTES = 9
_TAG_BYTES = 12
_RESPONSE_LENGTH = 24
_CHALLENGE_LENGTH = 8  # that of FFmpeg, librtmp and GStreamer
_SEPARATORS = re.compile(r"[?&]")


def query_parameters(query: str) -> dict[str, str]:
    """Parse a query of such a client. It contains unescaped base64, so that a ``+`` is not a space.

    A query that was appended to another one has a ``?`` in the middle. The first of several parameters with one name counts.
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
    """Return the response that proves knowledge of the password."""
    return _hashed(_hashed(user, salt, password), opaque, challenge)


class Login:
    """The client's side of a login.

    Args:
        user, password: The login.
    """

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._step = 0

    def answer(self, description: str, nonce: bytes) -> str:
        """Return the query to append to the application of the next connect; empty if the login has failed.

        Args:
            description: The description of the refusal.
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
            # The server computes the response with the name as it sends it.
            name = found.get("user") or user
            proof = response(name, self._password, found.get("salt", ""), opaque or found.get("challenge", ""), challenge)
            query = f"authmod=adobe&user={user}&challenge={challenge}&response={proof}"
            return f"{query}&opaque={opaque}" if opaque else query
        return ""


class Challenges:
    """The server's side of logins: issues challenges and checks the responses.

    A challenge contains its time and is signed, so that unanswered ones take no memory. It is valid once, for a minute. Used
    ones are remembered, up to a limit.

    Args:
        key: Random bytes, new for each process.
        used_limit: The number of used challenges to remember; the oldest ones are dropped.
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
        # The salt of a user is always the same, and unknown users have one, too.
        return self._tag("salt", _encoded(user)).hex()[:8]

    def describe(self, user: str, now_s: float, nonce: bytes) -> str:
        """Return the description that asks *user* for a response.

        Args:
            user: The name as the client sent it. The caller has limited its length, because FFmpeg reads only 255 bytes.
            now_s: The time of a monotonic clock.
            nonce: Nine random bytes.
        """
        issued = int(now_s).to_bytes(6, "big") + nonce
        opaque = urlsafe_b64encode(issued + self._tag("opaque", issued, _encoded(user))).decode()
        return (
            "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=needauth"
            f"&user={user}&salt={self._salt(user)}&challenge={opaque}&opaque={opaque}"
        )

    def fresh(self, user: str, opaque: str, now_s: float) -> bool:
        """Mark a challenge as used; return whether it was valid: issued here for this user, recent and unused."""
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
        """Return whether a client's response proves one of the passwords. The caller has checked the challenge by `fresh`."""
        user, opaque = parameters.get("user", ""), parameters.get("opaque", "")
        challenge = parameters.get("challenge", "")
        # Debian's librtmp does not terminate these two texts: random bytes of its memory may follow.
        given = _encoded(unquote(parameters.get("response", ""))[:_RESPONSE_LENGTH])
        right = False
        for password in passwords:
            # FFmpeg does not decode the percent escapes of a password in its URL.
            for variant in {password, quote(password, safe="")}:
                for each in {challenge, challenge[:_CHALLENGE_LENGTH]}:
                    proof = response(user, variant, self._salt(user), opaque, each)
                    right |= hmac.compare_digest(_encoded(proof), given)
        return right


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(opaque: str) -> bytes:
    """Decode an opaque value of `Challenges.describe`; other texts give bytes with an invalid tag."""
    size = 6 + _NONCE_BYTES + _TAG_BYTES
    if len(opaque) != size // 3 * 4 or not re.fullmatch(r"[A-Za-z0-9_-]*", opaque, re.ASCII):
        return bytes(size)
    return urlsafe_b64decode(opaque)
