"""The pages beside a stream: what caches may keep of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rtmpd.authorization import AllowAll
from rtmpd.config.loader import load_text
from rtmpd.http.messages import Request
from rtmpd.hub import Hub
from rtmpd.viewers import stream_pages
from rtmpd.viewers.stream_pages import StreamPages
from tests.unit.live.fakes import new_source


class Callback(AllowAll):
    """Allows what a callback is asked about."""

    def is_open(self, request):
        return False


@pytest.mark.parametrize(
    ("authorizer", "query", "headers", "shared"),
    [
        (AllowAll(), "", {}, "public"),
        (AllowAll(), "token=a", {}, "private"),
        (AllowAll(), "", {"authorization": "Bearer a"}, "private"),
        (Callback(), "", {}, "private"),
    ],
)
def test_a_poster_that_needs_an_authorization_is_not_for_shared_caches(monkeypatch, authorizer, query, headers, shared):
    hub = Hub(load_text(""))
    hub.authorizer = authorizer
    source = new_source()
    stream = hub.publish("live/test", source)
    monkeypatch.setattr(stream_pages, "poster", lambda log: b"picture")
    pages = StreamPages(hub, StreamPages.select(hub.config))
    route = next(each for each in pages.routes if each.path.endswith("poster.mp4"))
    transport = SimpleNamespace(peer="192.0.2.1:1", address="192.0.2.1")
    exchange = SimpleNamespace(transport=transport, number=1, agent="", outcome={}, ensure_open=lambda: None)
    request = Request("GET", "/live/test/poster.mp4", query, headers, captured={"key": "live/test"})
    response = route.handler(request, exchange)
    assert dict(response.headers)["Cache-Control"] == f"{shared}, max-age=2"
    hub.unpublish(stream, source)
    stream.end()
    stream.close()
