"""Requests and responses: targets, what a client accepts, and heads at every split."""

from __future__ import annotations

import gzip
import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.errors import HttpError
from rtmpd.http.messages import Request, RequestHead, Response, error_response, response_head, split_target
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
        (b"HTTPS://host/a", "/a", ""),
        (b"/a#fragment?x", "/a", ""),
        (b"/public/x://y/metrics", "/public/x://y/metrics", ""),
        (b"/http://y/metrics", "/http://y/metrics", ""),
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
        b"x://y/metrics",
        b"host:80",
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


@pytest.mark.parametrize("first", [b"", b"Host: x\r\n"], ids=["h11", "plain"])
@pytest.mark.parametrize("end", [b"", b"\0", b"\x0b", b"\x7f", b"\x80", b"x\x0c\x80", b"x\x01"], ids=repr)
@pytest.mark.parametrize("value", [b" " * 15_000, b"x" + b"\t" * 15_000, b"x " * 7_500], ids=["spaces", "tabs", "words"])
def test_a_head_is_parsed_in_linear_time(first, end, value):
    reader = RequestHead()
    size = reader.feed(b"GET / HTTP/1.1\r\n" + first + b"A:" + value + end + b"\r\n\r\n")
    began_s = time.thread_time()
    with suppress(HttpError):
        reader.parse(size)
    # Quadratic: 0.7 to 3 s.
    assert time.thread_time() - began_s < 0.3


PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)
TOKENS = st.text(st.sampled_from("aZ0-_.!~:@ ("), max_size=5)


def parsed(head):
    """Return what a head is parsed as, without the header that says that there is no body; or the status of the error."""
    try:
        reader = RequestHead()
        found, _ = reader.parse(reader.feed(head))
    except HttpError as error:
        return error.status
    headers = {name: value for name, value in found.headers.items() if name != "content-length"}
    return found.method, found.path, found.query, headers, found.keep_alive


@settings(deadline=None)
@given(
    st.sampled_from(["GET", "HEAD", "POST", "G(T"]),
    st.one_of(st.just("/a?b=c"), PRINTABLE.map("/{}".format)),
    st.sampled_from(["1.1", "1.0", "1.2"]),
    st.lists(
        st.tuples(st.one_of(TOKENS, st.just("connection")), st.one_of(PRINTABLE, st.just("close"), st.just("é"))), max_size=3
    ),
    st.booleans(),
)
def test_a_plain_request_is_parsed_as_one_that_could_have_a_body(method, target, version, headers, host):
    lines = [f"{method} {target} HTTP/{version}", *(["Host: x"] if host else []), *(f"{a}: {b} " for a, b in headers)]
    plain, other = ("\r\n".join([*lines, *more, "", ""]).encode("latin-1") for more in ([], ["Content-Length: 0"]))
    assert parsed(plain) == parsed(other)


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


def test_a_body_that_the_client_has_is_not_sent_again():
    response = Response(body=b"text", headers=[("Cache-Control", "no-cache"), ("Content-Encoding", "gzip")])
    first = response.tagged(request())
    tag = dict(first.headers)["ETag"]
    assert (first.status, first.body) == (200, b"text")
    for known in (tag, f'"x", W/{tag}', "*"):
        again = response.tagged(request(if_none_match=known))
        assert (again.status, again.body, again.headers) == (304, b"", [("Cache-Control", "no-cache"), ("ETag", tag)])
    assert response.tagged(request(if_none_match='"x"')) == first
    assert dict(Response(body=b"texts").tagged(request()).headers)["ETag"] != tag
    assert dict(Response(body=b"te", pieces=[b"xt"]).tagged(request()).headers)["ETag"] == tag
    assert dict(response.tagged(request(), "seg-1").headers)["ETag"] == '"seg-1"'
    assert Response(404, b"text").tagged(request(if_none_match=tag)).status == 404
    # A range of it is none, either.
    assert response.tagged(request(if_none_match=tag, range="bytes=1-")).ranged(request(range="bytes=1-")).status == 304


@pytest.mark.parametrize(
    ("wanted", "body", "content_range"),
    [
        ("bytes=0-0", b"0", "0-0"),
        ("bytes=2-4", b"234", "2-4"),
        ("bytes=7-", b"789", "7-9"),
        ("bytes=7-999999999999999", b"789", "7-9"),
        ("bytes=-3", b"789", "7-9"),
        ("bytes=-99", b"0123456789", "0-9"),
        ("bytes= 9-9 ", b"9", "9-9"),
    ],
)
def test_a_range_is_sent_alone(wanted, body, content_range):
    part = Response(body=b"0123456789", content_type="video/mp4").ranged(request(range=wanted))
    assert (part.status, b"".join(part.pieces), part.content_type) == (206, body, "video/mp4")
    assert dict(part.headers) == {"Accept-Ranges": "bytes", "Content-Range": f"bytes {content_range}/10"}


@pytest.mark.parametrize(
    "wanted",
    ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=4-2", "bytes=0-1,4-5", "lines=0-1", "bytes=--1", "bytes=0-1-2",
     "bytes=0-" + "9" * 5000, "bytes=\u0663-4"],
)  # fmt: skip
def test_of_several_or_malformed_ranges_the_whole_is_sent(wanted):
    whole = Response(body=b"0123456789").ranged(request(range=wanted))
    assert (whole.status, whole.body, whole.headers) == (200, b"0123456789", [("Accept-Ranges", "bytes")])


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=10-11", "bytes=99-", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(wanted):
    refused = Response(body=b"0123456789").ranged(request(range=wanted))
    assert (refused.status, refused.headers) == (416, [("Content-Range", "bytes */10")])


def test_a_range_of_another_body_is_the_whole_body():
    tagged = Response(body=b"0123456789").tagged(request(), "a")
    for condition, status in (('"a"', 206), ('"b"', 200), ('W/"a"', 200), ("Sun, 29 Nov 2026 20:00:00 GMT", 200)):
        assert tagged.ranged(request(range="bytes=1-2", if_range=condition)).status == status
    assert Response(body=b"0").ranged(request(range="bytes=0-0", if_range='"a"')).status == 200
    assert Response(404, b"0").ranged(request(range="bytes=0-0")).status == 404
    head = Request("HEAD", "/", "", {"range": "bytes=0-0"})
    assert tagged.ranged(head).body == b"0123456789"


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=5), st.integers(0, 25), st.integers(0, 25))
def test_a_range_has_the_bytes_that_its_header_names(pieces, first, last):
    body = b"".join(pieces)
    part = Response(body=pieces[0], pieces=pieces[1:]).ranged(request(range=f"bytes={first}-{last}"))
    if part.status == 206:
        begin, end = dict(part.headers)["Content-Range"].split()[1].split("/")[0].split("-")
        assert (int(begin), part.body + b"".join(part.pieces)) == (first, body[int(begin) : int(end) + 1])
        assert int(end) == min(last, len(body) - 1)
        assert part.size == int(end) + 1 - int(begin)
    else:
        assert part.status == (200 if last < first else 416)


def test_a_header_holds_no_line_break():
    with pytest.raises(ValueError, match="line break"):
        response_head(200, [("Location", "a\r\nSet-Cookie: b")])


def test_only_the_first_placeholder_stands_for_text_with_slashes():
    routes = Routes([Route("/{key}/{rendition}/seg-{name}.m4s", print), Route("/{key}", len)])
    route, found = routes.find(request("/live/sub/a/main/seg-7.m4s"))
    assert (route.handler, found.captured) == (print, {"key": "live/sub/a", "rendition": "main", "name": "7"})
    for path in ("/live/main/seg-7/8.m4s", "/live//seg-7.m4s", "/main/seg-7.m4s", "/live/main/seg-.m4s"):
        assert routes.find(request(path))[0].handler is len


@pytest.mark.parametrize("part", ["/", "/a", "/seg-", "/seg-1.m4s/", "seg-", ".m4s"])
def test_a_path_is_matched_in_linear_time(part):
    routes = Routes([Route(f"/{{key}}/{{rendition}}/{name}", print) for name in ("seg-{name}.m4s", "media.m3u8")])
    path = "/" + part * (8000 // len(part)) + "\n"
    began_s = time.thread_time()
    with pytest.raises(HttpError):
        routes.find(request(path))
    # Quadratic: 0.2 s; cubic: 26 s.
    assert time.thread_time() - began_s < 0.1


def test_the_placeholder_of_a_stream_stands_for_text_with_slashes():
    routes = Routes([Route("/{key}.flv", print), Route("/{key}", len)])
    route, found = routes.find(request("/live/sub/a.b.flv"))
    assert (route.handler, found.captured) == (print, {"key": "live/sub/a.b"})
    assert routes.find(request("/.flv"))[0].handler is len
    with pytest.raises(HttpError) as caught:
        routes.find(request("/"))
    assert caught.value.status == 404


def test_errors_of_playlists_are_playlists_unless_the_client_wants_something_else():
    error = HttpError(404, 'No "live/x"\nhere.')
    asked = Request("GET", "/live/x/index.m3u8", "", {})
    response = error_response(error, asked)
    assert (response.status, response.content_type) == (404, "application/vnd.apple.mpegurl")
    assert response.body == b'#EXTM3U\n## No "live/x" here.\n'
    for accept, kind in (("text/html", "text/html"), ("application/json", "application/json"), ("*/*", "application/vnd")):
        assert error_response(error, Request("GET", asked.path, "", {"accept": accept})).content_type.startswith(kind)
