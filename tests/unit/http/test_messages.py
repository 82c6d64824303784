"""Requests and responses: targets, what a client accepts, and heads at every split."""

from __future__ import annotations

import gzip
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.errors import HttpError
from rtmpd.http.messages import Request, RequestHead, Response, response_head, split_target
from rtmpd.http.routes import Route, Routes


def request(path="/", **headers):
    return Request("GET", path, "", {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/a/b.flv?token=x?y", "/a/b.flv", "token=x?y"),
        (b"/%6cive/caf%C3%A9%20%2525", "/live/café %25", ""),
        (b"http://host:80/a?b", "/a", "b"),
        (b"http://host", "/", ""),
        (b"/a#fragment?x", "/a", ""),
        (b"*", "*", ""),
    ],
)
def test_a_target_is_decoded_once(target, path, query):
    assert split_target(target) == (path, query)


@pytest.mark.parametrize(
    "target",
    [
        b"a",
        b"",
        b"/%",
        b"/%4",
        b"/%zz",
        b"/a%2Fb",
        b"/a%5cb",
        b"/a\\b",
        b"/%ff",
        b"/%00",
        b"/..",
        b"/a/%2e%2E/b",
        b"/./a",
        b"/%0a",
    ],
)
def test_an_ambiguous_target_is_refused(target):
    with pytest.raises(HttpError) as caught:
        split_target(target)
    assert caught.value.status == 400


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_no_path_leads_out_of_its_root(text):
    try:
        path, _ = split_target(b"/" + text.encode())
    except HttpError:
        return
    assert not {"..", "."} & set(path.split("/"))
    assert path.isprintable() or not any(ord(c) < 0x20 for c in path)


HEAD = b"\r\nGET /a?b=c HTTP/1.1\r\nHost: x\r\nA: 1\r\na: 2\r\n\r\n"


@given(st.lists(st.integers(0, len(HEAD)), max_size=6))
def test_a_head_is_read_at_every_split(cuts):
    head = RequestHead()
    places = [0, *sorted(cuts), len(HEAD)]
    sizes = [head.feed(HEAD[begin:end]) for begin, end in pairwise(places)]
    found, _ = head.parse(next(size for size in reversed(sizes) if size))
    assert (found.path, found.query, found.parameters) == ("/a", "b=c", {"b": "c"})
    assert found.headers["a"] == "1, 2"
    assert not head.data


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_an_error_of_http(data):
    head, error = RequestHead(), None
    try:
        size = head.feed(b"GET / HTTP/1.1\r\nHost: x\r\n" + data + b"\r\n\r\n")
        if size:
            head.parse(size)
    except HttpError as found:
        error = found
    assert error is None or error.status in (400, 414, 431, 501, 505)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("*/*", "text/plain"),
        ("text/html", "text/html"),
        ("text/*;q=0.5, application/json", "application/json"),
        ("text/html;q=0, */*;q=0.1", "text/plain"),
        ("image/png", "text/plain"),
        ("text/html;q=many", "text/plain"),
    ],
)
def test_the_type_that_a_client_prefers(accept, wanted):
    assert request(accept=accept).accepts("text/plain", "application/json", "text/html") == wanted


def test_a_bearer_token_is_found():
    assert request(authorization="bearer  abc").bearer_token == "abc"
    assert request(authorization="Basic abc").bearer_token == ""
    assert request().bearer_token == ""
    assert "abc" not in repr(request(authorization="bearer abc"))


def test_a_large_text_is_compressed_for_clients_that_accept_it():
    large = Response(body=b"text " * 1000)
    packed = large.compressed(request(accept_encoding="br, gzip;q=0.5"))
    assert gzip.decompress(packed.body) == large.body
    assert dict(packed.headers) == {"Vary": "Accept-Encoding", "Content-Encoding": "gzip"}
    assert large.compressed(request(accept_encoding="gzip;q=0")).body == large.body
    assert large.compressed(request()).body == large.body
    assert Response(body=b"short").compressed(request(accept_encoding="gzip")) == Response(body=b"short")


def test_a_header_holds_no_line_break():
    with pytest.raises(ValueError, match="line break"):
        response_head(200, [("Location", "a\r\nSet-Cookie: b")])


def test_placeholders_stand_for_text_with_slashes():
    routes = Routes([Route("/{key}.flv", print), Route("/{key}", len)])
    route, found = routes.find(request("/live/sub/a.b.flv"))
    assert (route.handler, found.captured) == (print, {"key": "live/sub/a.b"})
    assert routes.find(request("/.flv"))[0].handler is len
    with pytest.raises(HttpError) as caught:
        routes.find(request("/"))
    assert caught.value.status == 404
