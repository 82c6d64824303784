"""Requests of HTTP/2: header fields that are a request, and those that a proxy may read in another way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.errors import HttpError
from rtmpd.http.http2_requests import request_of

BASE = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example:8443"), (b":path", b"/live/%61.flv?b=c")]


def changed(**fields):
    """Return the pseudo-header fields with others; None: without."""
    new = {name.encode(): value for name, value in fields.items()}
    found = [(name, new.get(name[1:], value)) for name, value in BASE]
    return [(name, value) for name, value in found if value is not None]


def test_a_request_is_the_same_as_by_http_1():
    fields = [*BASE, (b"accept", b"a"), (b"cookie", b"a=b"), (b"accept", b"b"), (b"cookie", b"c=d"), (b"te", b"trailers")]
    found = request_of([*fields, (b"x", b""), (b"y", b"caf\xe9\tb")], "127.0.0.1:5555")
    assert (found.method, found.path, found.query, found.secure) == ("GET", "/live/a.flv", "b=c", True)
    assert found.peer == "127.0.0.1:5555"
    assert found.headers == {
        "host": "a.example:8443",
        "accept": "a, b",
        "cookie": "a=b; c=d",
        "te": "trailers",
        "x": "",
        "y": "caf\xe9\tb",
    }


@pytest.mark.parametrize(
    "fields",
    [
        [*changed(authority=None), (b"host", b"a.example")],
        [*BASE, (b"host", b"A.example:8443")],
        changed(method=b"OPTIONS", path=b"*"),
    ],
)
def test_host_and_authority_may_both_name_the_server(fields):
    assert request_of(fields).headers["host"]


@pytest.mark.parametrize(
    "fields",
    [
        [],
        changed(method=None),
        changed(method=b""),
        changed(method=b"GET /x HTTP/1.1"),
        changed(method=b"CONNECT", path=None, scheme=None),
        changed(scheme=None),
        changed(scheme=b"ftp"),
        changed(path=None),
        changed(path=b""),
        changed(path=b"live"),
        changed(path=b"*"),
        changed(path=b"http://a.example/live"),
        changed(path=b"/a b"),
        changed(path=b"/a HTTP/1.1\r\nx: y"),
        changed(path=b"/caf\xe9"),
        changed(path=b"/../a"),
        changed(path=b"/a/%2e%2e/b"),
        changed(path=b"/a%2fb"),
        changed(path=b"/a%00"),
        changed(authority=None),
        changed(authority=b"user@a.example"),
        [*BASE, (b"host", b"b.example")],
        [*BASE, (b"host", b"a.example:8443"), (b"host", b"a.example:8443")],
        [*BASE, BASE[0]],
        [*BASE, BASE[2]],
        [*BASE, (b":status", b"200")],
        [*BASE, (b":protocol", b"websocket")],
        [*BASE, (b":other", b"a")],
        [*BASE[:3], (b"a", b"b"), BASE[3]],
        [*BASE, (b"Accept", b"a")],
        [*BASE, (b"", b"a")],
        [*BASE, (b"a b", b"a")],
        [*BASE, (b"a:b", b"a")],
        [*BASE, (b"a\r\nb", b"a")],
        [*BASE, (b"caf\xe9", b"a")],
        [*BASE, (b"a", b"b\r\nc: d")],
        [*BASE, (b"a", b"b\0")],
        [*BASE, (b"a", b"b\x7f")],
        [*BASE, (b"a", b" b")],
        [*BASE, (b"a", b"b\t")],
        [*BASE, (b"connection", b"keep-alive")],
        [*BASE, (b"keep-alive", b"1")],
        [*BASE, (b"proxy-connection", b"close")],
        [*BASE, (b"transfer-encoding", b"chunked")],
        [*BASE, (b"upgrade", b"websocket")],
        [*BASE, (b"te", b"gzip")],
        [*BASE, (b"content-length", b"1"), (b"content-length", b"1")],
    ],
)
def test_what_is_malformed_or_ambiguous_is_refused(fields):
    with pytest.raises(HttpError) as caught:
        request_of(fields)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (changed(path=b"/" + b"a" * 8192), 414),
        ([*BASE, (b"a", b"b" * 16384)], 431),
        ([*BASE, *[(b"a", b"b" * 1000)] * 17], 431),
        ([*BASE, *[(b"a", b"b")] * 101], 431),
    ],
)
def test_what_is_too_long_is_refused(fields, status):
    with pytest.raises(HttpError) as caught:
        request_of(fields)
    assert caught.value.status == status


NAMES = st.sampled_from([b":method", b":path", b":authority", b"host", b"te", b"a"]) | st.binary(max_size=9)
VALUES = st.sampled_from([b"GET", b"/", b"/..", b"x", b"trailers"]) | st.binary(max_size=9)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_any_fields_are_a_request_or_an_error_of_http(fields):
    found, error = None, None
    try:
        found = request_of([(b":scheme", b"https"), *fields])
    except HttpError as refused:
        error = refused
    if found is None:
        assert error.status == 400
        return
    assert found.path.startswith("/") or found.path == "*"
    assert not any(ord(c) < 0x20 and c != "\t" for text in (found.method, found.path, *found.headers.values()) for c in text)
