from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.errors import HandshakeError
from rtmpd.protocol.proxy import ProxyHeader

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def version_2(command=0x21, kind=0x11, body=b"\xc0\0\2\1\xc6\x33\x64\1\x1f\x90\x07\x8f", length=None):
    return SIGNATURE + struct.pack(">BBH", command, kind, len(body) if length is None else length) + body


GOOD = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.1 8080 1935\r\n", ("192.0.2.1", 8080)),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 1935\r\n", ("2001:db8::1", 65535)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    (version_2(), ("192.0.2.1", 8080)),
    (version_2(body=b"\xc0\0\2\1\xc6\x33\x64\1\x1f\x90\x07\x8f" + b"\x04\0\1x"), ("192.0.2.1", 8080)),
    (
        version_2(kind=0x21, body=ipaddress.ip_address("2001:db8::1").packed * 2 + b"\x1f\x90\x07\x8f"),
        ("2001:db8::1", 8080),
    ),
    (version_2(command=0x20, kind=0, body=b""), None),
    (version_2(command=0x20), None),
    (version_2(kind=0x31, body=bytes(216)), None),
]
WRONG = [
    (b"\x03", "expected a PROXY header"),
    (b"GET / HTTP/1.1\r\n", "expected a PROXY header"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.1 8080\r\n", "expected TCP4 or TCP6, two addresses and two ports"),
    (b"PROXY UDP4 192.0.2.1 198.51.100.1 8080 1935\r\n", "expected TCP4 or TCP6, two addresses and two ports"),
    (b"PROXY TCP4 2001:db8::1 198.51.100.1 8080 1935\r\n", "expected two TCP4 addresses"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.1 08080 1935\r\n", "expected two ports"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.1 70000 1935\r\n", "expected two ports"),
    (b"PROXY TCP4 " + b"1" * 200, "expected its end within 107 bytes"),
    (version_2(command=0x11), "version 1, command 1"),
    (version_2(command=0x22), "version 2, command 2"),
    (version_2(body=bytes(8)), "expected 12 bytes of addresses, found 8"),
    (version_2(length=60_000), "expected at most 4096 bytes, found 60000"),
]


@pytest.mark.parametrize(("header", "source"), GOOD)
def test_a_header_is_read_whole_or_byte_by_byte_and_leaves_what_follows(header, source):
    reader = ProxyHeader()
    assert reader.feed(header + b"\x03client")
    assert (reader.source, reader.remainder) == (source, b"\x03client")
    slow = ProxyHeader()
    for index in range(len(header)):
        assert slow.feed(header[index : index + 1]) is (index == len(header) - 1)
    assert (slow.source, slow.remainder) == (source, b"")


@pytest.mark.parametrize(("data", "problem"), WRONG)
def test_a_malformed_header_is_an_error(data, problem):
    with pytest.raises(HandshakeError, match=problem):
        ProxyHeader().feed(data)


@given(st.binary(max_size=200), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\0\x0c"]))
def test_any_bytes_are_an_error_or_an_incomplete_header(data, prefix):
    reader = ProxyHeader()
    try:
        reader.feed(prefix + data)
    except HandshakeError:
        return
    assert reader.done or len(prefix + data) < 5000
