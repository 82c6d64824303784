"""The RTMP handshake, both roles, plain and digest.

Fed and drained: ``feed(data)`` returns the bytes to send, ``done`` says when the chunk stream begins and ``remainder`` holds
what came after it. Randomness is a parameter. Imports nothing but rtmpd.errors and the standard library's hashing.

The plain handshake is RTMP 1.0 section 5.2. The digest ("complex") handshake is what Flash Player 9 and later speak: C1 and
S1 hide an HMAC-SHA256 of themselves at an offset that they also carry, in one of two places (the *schemes*), and C2 and S2
end in an HMAC that is keyed with the peer's digest. FFmpeg's player and rtmpdump verify it; without it they refuse to play
from some servers. A client says that it may speak it by a version field in C1 that is not zero.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from rtmpd.errors import HandshakeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HANDSHAKE_SIZE", "ClientHandshake", "ServerHandshake", "find_digest"]

HANDSHAKE_SIZE = 1536
"""Bytes of C1, C2, S1 and S2, each."""

RTMP_VERSION = 3
RTMPE_VERSIONS = (6, 8)

_DIGEST_SIZE = 32
_SHARED_KEY = bytes.fromhex("f0eec24a8068bee82e00d0d1029e7e576eec5d2d29806fab93b8e636cfeb31ae")
_SERVER_NAME = b"Genuine Adobe Flash Media Server 001"
_CLIENT_NAME = b"Genuine Adobe Flash Player 001"
_SERVER_KEY = _SERVER_NAME + _SHARED_KEY
_CLIENT_KEY = _CLIENT_NAME + _SHARED_KEY

# Where the four bytes that make up the digest's offset stand in C1/S1, by scheme; the digest's block follows them.
_OFFSET_FIELDS = (8, 772)
_OFFSET_MODULUS = 728

# What comes to an RTMP port by mistake begins with these.
_TLS_HANDSHAKE = 0x16
_HTTP_METHODS = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"HTTP/")
_LONGEST_METHOD = max(_HTTP_METHODS, key=len)

# The version fields only tell that a digest may be there. These are a Flash Media Server's and a Flash Player's.
_SERVER_VERSION = bytes((4, 5, 0, 1))
_CLIENT_VERSION = bytes((9, 0, 124, 2))


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _digest_position(block: bytes | bytearray, scheme: int) -> int:
    field = _OFFSET_FIELDS[scheme]
    return sum(block[field : field + 4]) % _OFFSET_MODULUS + field + 4


def _compute_digest(block: bytes | bytearray, position: int, key: bytes) -> bytes:
    return _hmac(key, bytes(block[:position]) + bytes(block[position + _DIGEST_SIZE :]))


def find_digest(block: bytes, key: bytes) -> tuple[int, bytes] | None:
    """Look for a valid digest in a C1 or S1.

    Args:
        block: The 1536 bytes.
        key: The part of the peer's key that its first message uses (its name, without the shared half).

    Returns:
        The scheme (0 or 1) and the digest of 32 bytes, or None when neither scheme holds a valid one.
    """
    for scheme in (0, 1):
        position = _digest_position(block, scheme)
        digest = block[position : position + _DIGEST_SIZE]
        if hmac.compare_digest(digest, _compute_digest(block, position, key)):
            return scheme, digest
    return None


def _signed_block(block: bytearray, scheme: int, key: bytes) -> bytes:
    """Put the digest into a random C1 or S1."""
    position = _digest_position(block, scheme)
    block[position : position + _DIGEST_SIZE] = _compute_digest(block, position, key)
    return bytes(block)


def _signed_reply(filler: bytes, key: bytes, peer_digest: bytes) -> bytes:
    """Make a C2 or S2: random bytes that end in a proof that the peer's digest was read."""
    return filler + _hmac(_hmac(key, peer_digest), filler)


class _Handshake:
    _peer = "client"

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._received = bytearray()
        self.done = False
        self.kind = ""
        """``plain`` or ``digest``, known once the peer's first block has been read."""

    @property
    def remainder(self) -> bytes:
        """What followed the handshake: the first bytes of the chunk stream. Empty before ``done``."""
        return bytes(self._received) if self.done else b""

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _check_version(self, name: str) -> None:
        version = self._received[0]
        if version in RTMPE_VERSIONS:
            raise HandshakeError(f"{name} asks for version {version}, the encrypted RTMPE, which is not supported; use rtmps")
        if version != RTMP_VERSION:
            start = bytes(self._received[: len(_LONGEST_METHOD)])
            guess = ""
            if version == _TLS_HANDSHAKE:
                guess = f"; the {self._peer} speaks TLS: rtmps:// has a port of its own"
            elif any(method.startswith(start) or start.startswith(method) for method in _HTTP_METHODS):
                guess = ", it looks like HTTP"
            raise HandshakeError(f"{name} is {version}, expected {RTMP_VERSION}: this is not RTMP{guess}")


class ServerHandshake(_Handshake):
    """The server's side: reads C0, C1 and C2, answers S0, S1 and S2.

    S0, S1 and S2 are sent as soon as C1 is complete. C2 is read and not judged: clients in the field send all sorts
    (GStreamer and several encoders don't echo exactly, and nothing depends on it).

    Args:
        random_bytes: Gives that many random bytes.
    """

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        super().__init__(random_bytes)
        self._answered = False

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take what the client sent; return what to send to it, possibly nothing.

        Raises:
            HandshakeError: C0 is not version 3. The object must not be used after that.
        """
        self._received += data
        reply = b""
        if not self._answered and self._received:
            self._check_version("C0")
            if len(self._received) > HANDSHAKE_SIZE:
                reply = self._answer(self._take(1 + HANDSHAKE_SIZE)[1:])
                self._answered = True
        if self._answered and not self.done and len(self._received) >= HANDSHAKE_SIZE:
            self._take(HANDSHAKE_SIZE)
            self.done = True
        return reply

    def _answer(self, c1: bytes) -> bytes:
        found = find_digest(c1, _CLIENT_NAME) if c1[4:8] != bytes(4) else None
        if found is None:
            self.kind = "plain"
            s1 = bytes(8) + self._random_bytes(HANDSHAKE_SIZE - 8)
            s2 = c1
        else:
            self.kind = "digest"
            scheme, digest = found
            s1 = _signed_block(
                bytearray(bytes(4) + _SERVER_VERSION + self._random_bytes(HANDSHAKE_SIZE - 8)), scheme, _SERVER_NAME
            )
            s2 = _signed_reply(self._random_bytes(HANDSHAKE_SIZE - _DIGEST_SIZE), _SERVER_KEY, digest)
        return bytes((RTMP_VERSION,)) + s1 + s2


class ClientHandshake(_Handshake):
    """The client's side: ``hello`` first, then feed what the server sends.

    Args:
        random_bytes: Gives that many random bytes.
        scheme: None speaks plain; 0 or 1 puts a digest into C1 in that scheme. A server that answers plain gets plain.
    """

    _peer = "server"

    def __init__(self, random_bytes: Callable[[int], bytes], scheme: int | None = None) -> None:
        super().__init__(random_bytes)
        if scheme is None:
            self._c1 = bytes(8) + random_bytes(HANDSHAKE_SIZE - 8)
        else:
            block = bytearray(bytes(4) + _CLIENT_VERSION + random_bytes(HANDSHAKE_SIZE - 8))
            self._c1 = _signed_block(block, scheme, _CLIENT_NAME)
        self._scheme = scheme
        self._answered = False

    def hello(self) -> bytes:
        """Return C0 and C1."""
        return bytes((RTMP_VERSION,)) + self._c1

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take what the server sent; return what to send to it: C2, once S1 is complete.

        Raises:
            HandshakeError: S0 is not version 3, or the server signed S1 and its S2 does not prove that it read C1.
        """
        self._received += data
        reply = b""
        if not self._answered and self._received:
            self._check_version("S0")
            if len(self._received) > HANDSHAKE_SIZE:
                reply = self._answer(self._take(1 + HANDSHAKE_SIZE)[1:])
                self._answered = True
        if self._answered and not self.done and len(self._received) >= HANDSHAKE_SIZE:
            self._check_s2(self._take(HANDSHAKE_SIZE))
            self.done = True
        return reply

    def _answer(self, s1: bytes) -> bytes:
        found = find_digest(s1, _SERVER_NAME) if self._scheme is not None else None
        if found is None:
            self.kind = "plain"
            return s1
        self.kind = "digest"
        return _signed_reply(self._random_bytes(HANDSHAKE_SIZE - _DIGEST_SIZE), _CLIENT_KEY, found[1])

    def _check_s2(self, s2: bytes) -> None:
        if self.kind != "digest" or self._scheme is None:
            return
        position = _digest_position(self._c1, self._scheme)
        digest = self._c1[position : position + _DIGEST_SIZE]
        proof = _hmac(_hmac(_SERVER_KEY, digest), s2[:-_DIGEST_SIZE])
        if not hmac.compare_digest(proof, s2[-_DIGEST_SIZE:]):
            raise HandshakeError("S2 does not prove that the server read C1's digest")
