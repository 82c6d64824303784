"""The PROXY protocol, versions 1 and 2: a header by which a load balancer passes on the client's address. No I/O.

Section numbers are those of "The PROXY protocol, versions 1 & 2", HAProxy Technologies. haproxy sends the header with
``send-proxy`` or ``send-proxy-v2``; cloud load balancers have an option for it.
"""

from __future__ import annotations

import ipaddress
import re
import struct

from rtmpd.errors import HandshakeError

_SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
_HEAD_2 = struct.Struct(">12sBBH")
_LONGEST_1 = 107
"""The longest line of version 1, with its end (section 2.1)."""
_LONGEST_2 = 4096
"""The longest body of version 2: at most 216 bytes of addresses, and TLVs, of which load balancers send a few hundred bytes."""
_TCP4, _TCP6 = 0x11, 0x21
_LOCAL, _PROXY = 0x20, 0x21
_PORT = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_SHOWN = 60


class ProxyHeader:
    """Parses the header at the start of a connection.

    Attributes:
        done: The header is complete.
        source: The client's host and port; None if the connection is the load balancer's own (LOCAL, UNKNOWN), or not TCP over
            IP. Then the address of the connection itself is valid.
        remainder: The bytes after the header: the client's first ones.
    """

    def __init__(self) -> None:
        self.done = False
        self.source: tuple[str, int] | None = None
        self.remainder = b""
        self._data = b""

    def feed(self, data: bytes) -> bool:
        """Process received bytes; return whether the header is complete.

        Raises:
            HandshakeError: The bytes are not a PROXY header, or it is malformed.
        """
        self._data += data
        head = self._data
        if head[:12] == _SIGNATURE_2[: len(head)]:
            self._version_2(head)
        elif head[:6] == b"PROXY "[: len(head)]:
            self._version_1(head)
        else:
            raise HandshakeError(
                f"expected a PROXY header, found {head[:16]!r}: is the peer a load balancer (proxy_protocol_from)?"
            )
        return self.done

    def _version_1(self, data: bytes) -> None:
        """Parse a line of text (section 2.1)."""
        end = data.find(b"\r\n", 0, _LONGEST_1)
        if end < 0:
            if len(data) >= _LONGEST_1:
                raise HandshakeError(f"PROXY line: expected its end within {_LONGEST_1} bytes, found {data[:_SHOWN]!r}")
            return
        words = data[:end].decode("latin-1").split(" ")
        if len(words) >= 2 and words[1] == "UNKNOWN":
            # Section 2.1: the rest of the line must be ignored.
            self._finish(None, data[end + 2 :])
            return
        if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
            raise HandshakeError(f"PROXY line: expected TCP4 or TCP6, two addresses and two ports, found {data[:_SHOWN]!r}")
        family = ipaddress.IPv4Address if words[1] == "TCP4" else ipaddress.IPv6Address
        try:
            source, _ = family(words[2]), family(words[3])
        except ValueError:
            raise HandshakeError(f"PROXY line: expected two {words[1]} addresses, found {data[:_SHOWN]!r}") from None
        if not all(_PORT.fullmatch(word) and int(word) <= 65535 for word in words[4:]):
            raise HandshakeError(f"PROXY line: expected two ports, found {data[:_SHOWN]!r}")
        self._finish((str(source), int(words[4])), data[end + 2 :])

    def _version_2(self, data: bytes) -> None:
        """Parse a binary header (section 2.2)."""
        if len(data) < _HEAD_2.size:
            return
        _, command, kind, length = _HEAD_2.unpack_from(data)
        if command not in (_LOCAL, _PROXY):
            raise HandshakeError(
                f"PROXY header: expected version 2, command 0 or 1, found version {command >> 4}, command {command & 15}"
            )
        if length > _LONGEST_2:
            raise HandshakeError(f"PROXY header: expected at most {_LONGEST_2} bytes, found {length}")
        end = _HEAD_2.size + length
        if len(data) < end:
            return
        body = data[_HEAD_2.size : end]
        source = None
        if command == _PROXY and kind in (_TCP4, _TCP6):
            size = 4 if kind == _TCP4 else 16
            if length < 2 * size + 4:
                raise HandshakeError(f"PROXY header: expected {2 * size + 4} bytes of addresses, found {length}")
            source = (str(ipaddress.ip_address(body[:size])), int.from_bytes(body[2 * size : 2 * size + 2], "big"))
        self._finish(source, data[end:])

    def _finish(self, source: tuple[str, int] | None, remainder: bytes) -> None:
        self.done = True
        self.source = source
        self.remainder = remainder
        self._data = b""
