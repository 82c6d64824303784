"""The PROXY protocol, versions 1 and 2: who really connects, said by a load balancer before the client's own first byte.

"The PROXY protocol, versions 1 & 2", HAProxy Technologies; section numbers below are its. haproxy sends it with ``send-proxy``
or ``send-proxy-v2``, cloud balancers when it is switched on. Fed and drained, like everything here. Imports errors.
"""

from __future__ import annotations

import ipaddress
import re
import struct

from rtmpd.errors import HandshakeError

__all__ = ["ProxyHeader"]

_SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
_HEAD_2 = struct.Struct(">12sBBH")
_LONGEST_1 = 107
"""Section 2.1: with the line's end."""
_LONGEST_2 = 4096
"""Of what follows the head: addresses take 216 bytes at the most, the rest is TLVs, of which balancers send a few hundred."""
_TCP4, _TCP6 = 0x11, 0x21
_LOCAL, _PROXY = 0x20, 0x21
_PORT = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_SHOWN = 60


class ProxyHeader:
    """Reads the header at the beginning of a connection.

    Attributes:
        done: The header is whole.
        source: The client's host and port; None if the balancer speaks for itself (LOCAL, UNKNOWN), or for something that is
            not TCP over IP: then the connection's own address counts.
        remainder: What came behind the header: the client's first bytes.
    """

    def __init__(self) -> None:
        self.done = False
        self.source: tuple[str, int] | None = None
        self.remainder = b""
        self._data = b""

    def feed(self, data: bytes) -> bool:
        """Take bytes; return whether the header is whole.

        Raises:
            HandshakeError: There is no PROXY header, or a wrong one.
        """
        self._data += data
        head = self._data
        if head[:12] == _SIGNATURE_2[: len(head)]:
            self._version_2(head)
        elif head[:6] == b"PROXY "[: len(head)]:
            self._version_1(head)
        else:
            raise HandshakeError(f"expected a PROXY header, got {head[:16]!r}: does this address speak for a balancer?")
        return self.done

    def _version_1(self, data: bytes) -> None:
        """Read a line of text (section 2.1)."""
        end = data.find(b"\r\n", 0, _LONGEST_1)
        if end < 0:
            if len(data) >= _LONGEST_1:
                raise HandshakeError(f"a PROXY line without an end in {_LONGEST_1} bytes: {data[:_SHOWN]!r}")
            return
        words = data[:end].decode("latin-1").split(" ")
        if len(words) >= 2 and words[1] == "UNKNOWN":
            # Section 2.1: whatever follows is to be ignored.
            self._finish(None, data[end + 2 :])
            return
        if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
            raise HandshakeError(f"a wrong PROXY line: {data[:_SHOWN]!r}")
        family = ipaddress.IPv4Address if words[1] == "TCP4" else ipaddress.IPv6Address
        try:
            source, _ = family(words[2]), family(words[3])
        except ValueError:
            raise HandshakeError(f"a wrong address in a PROXY line: {data[:_SHOWN]!r}") from None
        if not all(_PORT.fullmatch(word) and int(word) <= 65535 for word in words[4:]):
            raise HandshakeError(f"a wrong port in a PROXY line: {data[:_SHOWN]!r}")
        self._finish((str(source), int(words[4])), data[end + 2 :])

    def _version_2(self, data: bytes) -> None:
        """Read a binary header (section 2.2)."""
        if len(data) < _HEAD_2.size:
            return
        _, command, kind, length = _HEAD_2.unpack_from(data)
        if command not in (_LOCAL, _PROXY):
            raise HandshakeError(f"a PROXY header of version {command >> 4}, command {command & 15}")
        if length > _LONGEST_2:
            raise HandshakeError(f"a PROXY header of {length} bytes, the most is {_LONGEST_2}")
        end = _HEAD_2.size + length
        if len(data) < end:
            return
        body = data[_HEAD_2.size : end]
        source = None
        if command == _PROXY and kind in (_TCP4, _TCP6):
            size = 4 if kind == _TCP4 else 16
            if length < 2 * size + 4:
                raise HandshakeError(f"a PROXY header of {length} bytes, addresses take {2 * size + 4}")
            source = (str(ipaddress.ip_address(body[:size])), int.from_bytes(body[2 * size : 2 * size + 2], "big"))
        self._finish(source, data[end:])

    def _finish(self, source: tuple[str, int] | None, remainder: bytes) -> None:
        self.done = True
        self.source = source
        self.remainder = remainder
        self._data = b""
