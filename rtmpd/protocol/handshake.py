"""The RTMP handshake of client and server, plain and digest. No I/O; random bytes come from the caller.

The plain handshake is RTMP 1.0 section 5.2. The digest ("complex") handshake is that of Flash Player 9 and later: C1 and S1
contain an HMAC-SHA256 of themselves, at an offset that they contain as well, in one of two layouts (the *schemes*); C2 and S2
end with an HMAC that is keyed with the peer's digest. FFmpeg's player and rtmpdump verify it, and refuse to play from some
servers without it. A client that may use it sends a version field in C1 that is not zero.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from rtmpd.errors import HandshakeError

if TYPE_CHECKING:
    from collections.abc import Callable

HANDSHAKE_SIZE = 1536
"""The size of C1, C2, S1 and S2, bytes."""

RTMP_VERSION = 3
RTMPE_VERSIONS = (6, 8)

_DIGEST_SIZE = 32
_SHARED_KEY = bytes.fromhex("f0eec24a8068bee82e00d0d1029e7e576eec5d2d29806fab93b8e636cfeb31ae")
_SERVER_NAME = b"Genuine Adobe Flash Media Server 001"
_CLIENT_NAME = b"Genuine Adobe Flash Player 001"
_SERVER_KEY = _SERVER_NAME + _SHARED_KEY
_CLIENT_KEY = _CLIENT_NAME + _SHARED_KEY

# The position of the four bytes in C1 or S1 whose sum gives the digest's offset, by scheme. The digest's block follows them.
_OFFSET_FIELDS = (8, 772)
_OFFSET_MODULUS = 728

# The first bytes of other protocols that reach an RTMP port by mistake.
_TLS_HANDSHAKE = 0x16
_HTTP_METHODS = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"HTTP/")
_LONGEST_METHOD = max(_HTTP_METHODS, key=len)

# A version field only announces that there may be a digest. These are the ones of Flash Media Server and Flash Player.
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
    """Find a valid digest in a C1 or S1.

    Args:
        block: The block of 1536 bytes.
        key: The part of the peer's key that its first block uses: the name without the shared half.

    Returns:
        The scheme (0 or 1) and the digest of 32 bytes; None if neither scheme has a valid digest.
    """
    for scheme in (0, 1):
        position = _digest_position(block, scheme)
        digest = block[position : position + _DIGEST_SIZE]
        if hmac.compare_digest(digest, _compute_digest(block, position, key)):
            return scheme, digest
    return None


def _signed_block(block: bytearray, scheme: int, key: bytes) -> bytes:
    """Return a C1 or S1 with its digest."""
    position = _digest_position(block, scheme)
    block[position : position + _DIGEST_SIZE] = _compute_digest(block, position, key)
    return bytes(block)


def _signed_reply(filler: bytes, key: bytes, peer_digest: bytes) -> bytes:
    """Return a C2 or S2: random bytes, and the proof that the peer's digest was read."""
    return filler + _hmac(_hmac(key, peer_digest), filler)


class _Handshake:
    """The part that both roles share. Two blocks are read from the peer: the first is answered, the second one checked.

    Attributes:
        done: The handshake is complete.
        kind: ``plain`` or ``digest``; empty until the peer's first block has been read.
    """

    _peer, _version_name = "client", "C0"

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._received = bytearray()
        self._answered = False
        self.done = False
        self.kind = ""

    @property
    def remainder(self) -> bytes:
        """The bytes after the handshake: the first ones of the chunk stream. Empty until ``done``."""
        return bytes(self._received) if self.done else b""

    def feed(self, data: bytes | memoryview) -> bytes:
        """Process bytes of the peer; return the bytes to send to the peer, possibly none.

        Raises:
            HandshakeError: The peer's version is not 3, or a server signed S1 but not S2. The object must not be used after it.
        """
        self._received += data
        reply = b""
        if not self._answered and self._received:
            self._check_version()
            if len(self._received) > HANDSHAKE_SIZE:
                reply = self._answer(self._take(1 + HANDSHAKE_SIZE)[1:])
                self._answered = True
        if self._answered and not self.done and len(self._received) >= HANDSHAKE_SIZE:
            self._check(self._take(HANDSHAKE_SIZE))
            self.done = True
        return reply

    def _answer(self, block: bytes) -> bytes:
        """Return the bytes to send after the peer's C1 or S1."""
        raise NotImplementedError

    def _check(self, block: bytes) -> None:
        """Check the peer's C2 or S2."""

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _check_version(self) -> None:
        name, version = self._version_name, self._received[0]
        if version in RTMPE_VERSIONS:
            raise HandshakeError(f"{name} is {version}: the {self._peer} asks for RTMPE, which is not supported; use rtmps://")
        if version != RTMP_VERSION:
            start = bytes(self._received[: len(_LONGEST_METHOD)])
            guess = ""
            if version == _TLS_HANDSHAKE:
                guess = f"; the {self._peer} speaks TLS: rtmps:// has its own port"
            elif any(method.startswith(start) or start.startswith(method) for method in _HTTP_METHODS):
                guess = f"; the {self._peer} speaks HTTP"
            raise HandshakeError(f"{name} is {version}, expected {RTMP_VERSION}: this is not RTMP{guess}")


class ServerHandshake(_Handshake):
    """The server's handshake: reads C0, C1 and C2, sends S0, S1 and S2 as soon as C1 is complete.

    C2 is not checked, because several clients (GStreamer and some encoders) do not echo S1 exactly, and nothing depends on it.

    Args:
        random_bytes: Returns a number of random bytes.
    """

    def _answer(self, block: bytes) -> bytes:
        found = find_digest(block, _CLIENT_NAME) if block[4:8] != bytes(4) else None
        if found is None:
            self.kind = "plain"
            s1 = bytes(8) + self._random_bytes(HANDSHAKE_SIZE - 8)
            s2 = block
        else:
            self.kind = "digest"
            scheme, digest = found
            s1 = _signed_block(
                bytearray(bytes(4) + _SERVER_VERSION + self._random_bytes(HANDSHAKE_SIZE - 8)), scheme, _SERVER_NAME
            )
            s2 = _signed_reply(self._random_bytes(HANDSHAKE_SIZE - _DIGEST_SIZE), _SERVER_KEY, digest)
        return bytes((RTMP_VERSION,)) + s1 + s2


class ClientHandshake(_Handshake):
    """The client's handshake: send `hello` first, then pass the server's bytes to `feed`, which returns C2 after S1.

    Args:
        random_bytes: Returns a number of random bytes.
        scheme: None for the plain handshake; 0 or 1 for a digest in C1 with that scheme. If the server answers with the plain
            handshake, the client continues with it.
    """

    _peer, _version_name = "server", "S0"

    def __init__(self, random_bytes: Callable[[int], bytes], scheme: int | None = None) -> None:
        super().__init__(random_bytes)
        if scheme is None:
            self._c1 = bytes(8) + random_bytes(HANDSHAKE_SIZE - 8)
        else:
            block = bytearray(bytes(4) + _CLIENT_VERSION + random_bytes(HANDSHAKE_SIZE - 8))
            self._c1 = _signed_block(block, scheme, _CLIENT_NAME)
        self._scheme = scheme

    def hello(self) -> bytes:
        """Return C0 and C1."""
        return bytes((RTMP_VERSION,)) + self._c1

    def _answer(self, block: bytes) -> bytes:
        found = find_digest(block, _SERVER_NAME) if self._scheme is not None else None
        if found is None:
            self.kind = "plain"
            return block
        self.kind = "digest"
        return _signed_reply(self._random_bytes(HANDSHAKE_SIZE - _DIGEST_SIZE), _CLIENT_KEY, found[1])

    def _check(self, block: bytes) -> None:
        if self.kind != "digest" or self._scheme is None:
            return
        position = _digest_position(self._c1, self._scheme)
        digest = self._c1[position : position + _DIGEST_SIZE]
        proof = _hmac(_hmac(_SERVER_KEY, digest), block[:-_DIGEST_SIZE])
        if not hmac.compare_digest(proof, block[-_DIGEST_SIZE:]):
            raise HandshakeError("S2 does not prove that the server has read the digest in C1")
