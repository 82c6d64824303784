"""The pages beside a stream: what caches may keep of them."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from rtmpd.authorization import AllowAll
from rtmpd.config.loader import load_text
from rtmpd.config.model import ListenAddress
from rtmpd.http.messages import Request, Response
from rtmpd.http.routes import Route
from rtmpd.http.server import RESPONSES, HttpServer
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


class SlowCallback(AllowAll):
    """Waits for its callback."""

    def __init__(self):
        self.answers = Event()
        self.asked = 0

    def authorize(self, request):
        self.asked += 1
        self.answers.wait(10)
        return super().authorize(request)


def test_a_callback_that_does_not_answer_delays_no_other_page():
    hub = Hub(load_text(""))
    callback = hub.authorizer = SlowCallback()
    pages = StreamPages(hub, StreamPages.select(hub.config))
    routes = [*pages.routes, Route("/other", lambda request, exchange: Response(body=b"other"))]
    server = HttpServer("HTTP", [ListenAddress("127.0.0.1", 0)], routes, hub.count)
    server.start()
    address = ("127.0.0.1", int(server.bound[0].rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop, 1)

        def ask(path):
            sock = stack.enter_context(contextlib.closing(socket.create_connection(address, timeout=10)))
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return sock

        waiting = [ask("/live/test/info.json") for _ in range(RESPONSES + 1)]
        with gevent.Timeout(10):
            while callback.asked < len(waiting):
                gevent.sleep(0.01)
            assert ask("/other").recv(1000).endswith(b"other")
            callback.answers.set()
            assert all(b'"live": false' in each.recv(1000) for each in waiting)
