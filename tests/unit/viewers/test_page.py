"""The routes of the player page: its headers, its scripts, and names that are hostile."""

from __future__ import annotations

import gzip
import re
from html.parser import HTMLParser
from urllib.parse import quote, urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.errors import HttpError
from rtmpd.http.messages import RequestHead
from rtmpd.http.routes import Routes
from rtmpd.viewers.page.service import PageOptions, PlayerPage

PAGE = PlayerPage(PageOptions(()))
HOSTILE = [
    "live/<script>alert(1)</script>",
    "live/</title><img src=x onerror=alert(1)>",
    'live/"onload="alert(1)',
    "live/'><svg onload=alert(1)>",
    "live/$name${assets}$$",
    "live/&lt;b&gt;",
    "a/b/c/d",
    "live/日本語",
    "live/..%2e",
    "live/javascript:alert(1)",
]


def ask(target, *headers, page=PAGE, method="GET"):
    """The response to a request, as a connection would send it."""
    head = RequestHead()
    lines = [f"{method} {target} HTTP/1.1", "Host: example.com", *headers]
    request, _ = head.parse(head.feed("\r\n".join([*lines, "", ""]).encode()))
    route, request = Routes(page.routes).find(request)
    return route.handler(request, None)


def headers_of(response):
    return dict(response.headers)


class Document(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.text = {}
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open = tag

    def handle_data(self, data):
        self.text[self.open] = self.text.get(self.open, "") + data.strip()


def document(path):
    return Document(ask(path).body.decode())


def test_any_name_has_the_same_page():
    one, other = ask("/live/test").body, ask("/live/other").body
    assert one.replace(b"live/test", b"live/other") == other


@pytest.mark.parametrize("key", HOSTILE)
def test_a_name_is_text_and_no_markup(key):
    found, plain = document("/" + quote(key)), document("/" + "/".join("x" for _ in key.split("/")))
    assert found.text["title"] == found.text["h1"] == key
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert [set(attributes) for _, attributes in found.elements] == [set(attributes) for _, attributes in plain.elements]


@given(st.text(st.characters(exclude_characters="/?#\\", codec="utf-8"), min_size=1, max_size=20))
def test_each_name_is_refused_or_text(name):
    try:
        response = ask("/live/" + quote(name))
    except HttpError:
        return
    assert Document(response.body.decode()).text["title"] == f"live/{name}".rstrip()


def test_nothing_comes_from_other_hosts_and_no_script_or_style_is_inline():
    found = document("/live/test")
    assert all(not re.match(r"on|style", name) for _, attributes in found.elements for name in attributes)
    assert not found.text.get("script")
    assert "style" not in [tag for tag, _ in found.elements]
    links = [value for _, attributes in found.elements for name, value in attributes.items() if name in ("src", "href")]
    assert links
    assert all(link.startswith(("../_player/", "#")) for link in links)
    for name in ("player.js", "session.js", "playback.js", "latency.js", "tracks.js", "codecs.js", "player.css"):
        text = ask(f"/_player/x/{name}").body.decode()
        assert not re.search(r"https?://|\burl\(|@import|innerHTML|\beval\b", text)
        assert all(imported.startswith("./") for imported in re.findall(r'from "([^"]+)"', text))


@pytest.mark.parametrize("path", ["/live/test", "/a/b/c/test", "/proxy/prefix/live/test"])
def test_scripts_are_found_from_any_depth_and_behind_a_prefix(path):
    prefix = "/proxy/prefix" if path.startswith("/proxy") else ""
    found = document(path.removeprefix(prefix))
    links = [attributes.get("src") or attributes.get("href") for tag, attributes in found.elements if tag in ("script", "link")]
    for link in links:
        target = urljoin("https://example.com" + path, link).removeprefix("https://example.com" + prefix)
        response = ask(target)
        assert response.status == 200
        assert headers_of(response)["Cache-Control"] == "public, max-age=31536000, immutable"


def test_the_page_may_do_nothing_but_play():
    headers = headers_of(ask("/live/test"))
    policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "media-src": "'self' blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'self'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-cache"


def test_frames_are_allowed_by_the_configuration_also_after_a_reload():
    page = PlayerPage(PageOptions(("https://a.example",)))
    assert "frame-ancestors 'self' https://a.example" in headers_of(ask("/live/test", page=page))["Content-Security-Policy"]
    page.reload(PageOptions(("*",)))
    assert headers_of(ask("/live/test", page=page))["Content-Security-Policy"].endswith("frame-ancestors 'self' *")


def test_the_page_and_its_scripts_are_compressed_and_asked_for_again():
    for target in ("/live/test", "/_player/x/player.js", "/_player/x/player.css"):
        plain, packed = ask(target), ask(target, "Accept-Encoding: gzip, br")
        assert gzip.decompress(packed.body) == plain.body
        assert headers_of(packed)["ETag"] != headers_of(plain)["ETag"]
        again = ask(target, "Accept-Encoding: gzip, br", f"If-None-Match: {headers_of(packed)['ETag']}")
        assert (again.status, again.body) == (304, b"")


def test_scripts_of_another_version_are_not_kept():
    assert headers_of(ask("/_player/0123456789abcdef/player.js"))["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("target", ["/_player/x/service.py", "/_player/x/player.html"])
def test_nothing_but_the_scripts_is_served(target):
    with pytest.raises(HttpError) as raised:
        ask(target)
    assert raised.value.status == 404


@pytest.mark.parametrize("target", ["/test", "/", "//live/test", "/live//test", "/favicon.ico"])
def test_what_is_no_name_has_no_page(target):
    with pytest.raises(HttpError) as raised:
        ask(target)
    assert raised.value.status == 404


def test_a_slash_at_the_end_is_removed():
    response = ask("/live/te%20st/?token=%41b")
    assert response.status == 308
    assert headers_of(response)["Location"] == "../te%20st?token=%41b"
    assert urljoin("http://h/prefix/live/te%20st/", "../te%20st?token=%41b") == "http://h/prefix/live/te%20st?token=%41b"


@pytest.mark.parametrize(("accept", "is_page"), [("*/*", True), ("text/html,*/*;q=0.8", True), ("application/json", False)])
def test_only_clients_that_take_html_get_the_page(accept, is_page):
    if is_page:
        assert ask("/live/test", f"Accept: {accept}").content_type.startswith("text/html")
    else:
        with pytest.raises(HttpError):
            ask("/live/test", f"Accept: {accept}")
