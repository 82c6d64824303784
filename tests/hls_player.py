"""A player of low-latency HLS: blocking reloads, parts, and media, over one connection, with each playlist checked."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

from gevent import socket

from tests.fmp4_files import samples
from tests.hls_rules import Client, Media, Playlist, Violation, check_multivariant, parse
from tests.hls_stream import media_of

if TYPE_CHECKING:
    from collections.abc import Callable

VIDEO, AUDIO = 9, 8


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Connection:
    """A connection of HTTP/1.1 that is kept, and made again when the server has closed it."""

    def __init__(self, host: str, port: int, limit_s: float = 30) -> None:
        self._address, self._limit_s = (host, port), limit_s
        self._sock: socket.socket | None = None

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def get(self, target: str, method: str = "GET", **headers: str) -> Reply:
        if self._sock is None:
            self._sock = socket.create_connection(self._address, timeout=self._limit_s)
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self._sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._receive()
        start, *fields = data[:end].decode().split("\r\n")
        found = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        size = end + 4 + (0 if method == "HEAD" else int(found.get("content-length", 0)))
        while len(data) < size:
            data += self._receive()
        if found.get("connection") == "close":
            self.close()
        return Reply(int(start.split()[1]), found, bytes(data[end + 4 :]))

    def _receive(self) -> bytes:
        assert self._sock is not None
        piece = self._sock.recv(1 << 18)
        if not piece:
            raise ConnectionResetError
        return piece


class Player:
    """Plays a stream.

    Args:
        url: The address of its index.
        checks: Whether media is taken apart, and all playlists are held against the rules.
        skips: Whether it asks for delta updates.
        agent: What it calls itself.

    Attributes:
        index: The multivariant playlist.
        playlist: The newest media playlist.
        media: The fragments and initialization segments that it has loaded, by their paths.
        targets: All that it has requested, without what identifies the session.
        violations: What is against the rules.
        frames: The frames of video that it has loaded in parts.
    """

    def __init__(self, url: str, *, checks: bool = False, skips: bool = False, agent: str = "a player") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.connection = Connection(parts.hostname, parts.port)
        self._index = f"{parts.path}?{parts.query}" if parts.query else parts.path
        self._checks, self._skips, self._agent = checks, skips, agent
        self.path = ""
        self.index = ""
        self.playlist = Playlist()
        self.media: dict[str, bytes] = {}
        self.targets: list[str] = []
        self.violations: list[Violation] = []
        self.frames = 0
        self._found: dict[str, Media] = {}
        self._client = Client(self._found)
        self._longest_ms = 0.0

    def get(self, target: str) -> Reply:
        self.targets.append(re.sub(r"([?&])s=[^&]*&?", r"\1", target).rstrip("?&"))
        return self.connection.get(target, User_Agent=self._agent)

    def start(self) -> None:
        """Load the index and the first media playlist."""
        reply = self.get(self._index)
        assert reply.status == 200, reply
        self.index = reply.text
        if self._checks:
            self.violations += check_multivariant(self.index)
        uri = next(line for line in self.index.splitlines() if line and not line.startswith("#"))
        self.path = urljoin(self._index, uri)
        self._load(self.path)

    def step(self) -> None:
        """Load the next playlist, when it comes, and what is new in it."""
        chapter = self.playlist.open
        last = self.playlist.segments[-1].number if self.playlist.segments else self.playlist.first - 1
        part = len(chapter.parts) if chapter is not None else 0
        join = "&" if "?" in self.path else "?"
        skip = "&_HLS_skip=YES" if self._skips else ""
        self._load(f"{self.path}{join}_HLS_msn={last + 1}&_HLS_part={part}{skip}", skip=self._skips)

    def run(self, condition: Callable[[], object]) -> None:
        """Play until a condition holds, or the stream ends."""
        while not condition() and not self.playlist.ended:
            self.step()

    def _load(self, target: str, *, skip: bool = False) -> None:
        reply = self.get(target)
        assert reply.status == 200, reply
        self.playlist = parse(reply.text)
        chapters = [*self.playlist.segments, *([self.playlist.open] if self.playlist.open else [])]
        for chapter in chapters:
            if chapter.map_uri is not None:
                self._take(chapter.map_uri)
            for part in chapter.parts:
                self._take(part.uri)
            if self._checks and chapter.uri:
                self._take(chapter.uri)
        if self._checks:
            self.violations += self._client.load(reply.text, skip=skip)

    def _take(self, uri: str) -> None:
        path = urljoin(self.path, uri)
        if path in self.media:
            return
        reply = self.get(path)
        assert reply.status == 200, (path, reply)
        self.media[path] = reply.body
        if ".m4s" in uri and (self._checks or "part-" in uri):
            self._examine(uri, reply.body)

    def _examine(self, uri: str, data: bytes) -> None:
        """Take a fragment apart. Track 1 is video with 90,000 ticks per second, 2 is audio with 44,100."""
        found = []
        for sample in samples(data, numbered=False):
            scale = 90 if sample.track == 1 else 44.1
            kind = VIDEO if sample.track == 1 else AUDIO
            found.append((kind, sample.time / scale, sample.duration / scale, sample.sync and sample.track == 1))
        self.frames += sum(each[0] == VIDEO for each in found) * ("part-" in uri)
        made = media_of(found, has_video=True, longest_ms=self._longest_ms)
        self._longest_ms = float(made.longest_ms)
        self._found[uri] = made._replace(longest_ms=made.longest_ms + Decimal(2))

    def close(self) -> None:
        self.connection.close()
