"""A server of HLS for tests: real routes, sessions and pages on a loopback port, and packagers whose windows a test fills."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import gevent
from gevent import socket

from rtmpd.config.loader import load_text
from rtmpd.config.model import ListenAddress
from rtmpd.events import EventType
from rtmpd.http.server import HttpServer
from rtmpd.hub import Hub
from rtmpd.media.hls.targets import Targets
from rtmpd.media.hls.window import Limits, Part, Window
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.services.auth.service import Auth
from rtmpd.services.hls.packaged import Packaged
from rtmpd.services.hls.packager import Packager
from rtmpd.services.hls.service import Hls
from rtmpd.util.stream_key import StreamKey
from tests.unit.live.fakes import new_source

LIMIT_S = 10
TARGETS = Targets(2000, 500, 2)
PART = b"moofmdat" * 100
LEFT = CloseReason(CloseKind.PEER_LEFT, "closed by the peer")


class Rendition(Packaged):
    """A rendition that a test fills: parts of 500 ms, four of which are a segment."""

    def __init__(self, name: str = "main", *, targets: Targets = TARGETS, first_number: int = 100, video: bool = True) -> None:
        super().__init__(name, Window(targets, Limits(), first_number=first_number))
        self.codecs = ("avc1.64001f", "mp4a.40.2") if video else ("mp4a.40.2",)
        self.has_video, self.has_audio = video, True
        if video:
            self.width, self.height, self.frame_rate = 1280, 720, 25.0
        self.inits = {"1": b"ftypmoov"}
        self.count = 0

    def init_segment(self, init_id):
        return self.inits.get(init_id)

    def add(self, parts=1):
        """Add parts; the fourth one completes its segment."""
        window = self.window
        for _ in range(parts):
            if window.open is None:
                window.open_segment("1", date_ms=1_700_000_000_000 + 500 * self.count)
            number = len(window.open.parts)
            window.add_part(Part(500, number == 0, PART + bytes([self.count & 255])))
            self.count += 1
            if number == 3:
                window.close_segment()
                window.open_segment("1", date_ms=1_700_000_000_000 + 500 * self.count)
        self.notify()

    def end(self):
        self.window.end()
        self.notify()


class FakePackager(Packager):
    """A packager whose renditions a test gives."""

    def __init__(self, key, *renditions):
        self.key = StreamKey(key)
        self.renditions = renditions
        self.problem = ""
        self.ended = False
        self.touched = 0

    def wait_ready(self, timeout_s):
        gevent.sleep(min(timeout_s, 0.01))

    def touch(self):
        self.touched += 1


class FakePackagers(dict):
    """Packagers by stream.

    Attributes:
        before: Those of earlier publishes.
    """

    def __init__(self):
        super().__init__()
        self.before = {}

    def earlier(self, key):
        return self.before.get(key)

    def find(self, key):
        return self.get(key)

    def running(self, key):
        found = self.get(key)
        return found if found is not None and not found.ended else None

    def start(self):
        pass

    def reload(self, options):
        pass

    def stop(self, limit_s):
        pass


class Reply(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def text(self):
        return self.body.decode()


class Stage:
    """A server with a hub, authorization and HLS.

    Attributes:
        hub, hls: Likewise.
        events: The events that were published, as type and data.
    """

    def __init__(self, ini: str = "", secret: bytes = b"") -> None:
        config = load_text(ini)
        self.hub = Hub(config)
        self.auth = Auth(self.hub, Auth.select(config))
        self.auth.start()
        self.hls = Hls(self.hub, Hls.select(config))
        self.hls.packagers = FakePackagers()
        self.hls.start()
        self.events = []
        self.hub.bus.subscribe((EventType.PLAY_START, EventType.PLAY_STOP, EventType.AUTH_FAILED), self.events.append)
        self.server = HttpServer(
            "HTTP",
            (ListenAddress("127.0.0.1", 0),),
            self.hls.routes,
            self.hub.count,
            gate=self.hub,
            allow_origin=config.http.http_allow_origin,
        )
        self.server.start()
        self.port = int(self.server.bound[0].rpartition(":")[2])
        self.published = {}

    def publish(self, key="live/test", *renditions, parts=0):
        """Publish a stream, with a packager; return its first rendition."""
        source = new_source()
        self.published[key] = self.hub.publish(key, source), source
        made = renditions or (Rendition(),)
        self.hls.packagers[key] = FakePackager(key, *made)
        for each in made:
            if parts:
                each.add(parts)
        return made[0]

    def unpublish(self, key="live/test"):
        stream, source = self.published.pop(key)
        self.hub.unpublish(stream, source)

    def close(self):
        self.server.stop(1)
        self.hls.stop(1)
        self.auth.stop(1)
        for stream, source in self.published.values():
            self.hub.unpublish(stream, source)
        for stream in list(self.hub.streams.values()):
            stream.end()
            if not stream.players:
                stream.close()

    def get(self, path, method="GET", sock=None, **headers) -> Reply:
        """Make a request, on a connection of its own unless one is given."""
        with contextlib.ExitStack() as stack:
            if sock is None:
                sock = stack.enter_context(contextlib.closing(self.connect()))
            lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
            sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
            return read(sock, head=method == "HEAD")

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)

    def later(self, path, **headers):
        """Make a request in a greenlet; its value is the reply."""
        return gevent.spawn(self.get, path, **headers)

    @property
    def kinds(self):
        return [str(event.type) for event in self.events]


def read(sock, *, head=False) -> Reply:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    start, _, body = data.partition(b"\r\n\r\n")
    status, *lines = start.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = 0 if head else int(headers.get("content-length", 0))
    while len(body) < length:
        piece = sock.recv(65536)
        assert piece
        body += piece
    return Reply(int(status.split()[1]), headers, body)


def uris(text):
    """The URIs of a playlist that are lines of their own."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]
