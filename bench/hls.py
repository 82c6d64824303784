"""Viewers of low-latency HLS: blocking reloads of the playlist, and a request for each part, on one connection each.

Runs as a process of its own: ``python -m bench.hls --port N --viewers N``. It prints one JSON line at the start of the
window, and one at the end. How late a part is counts from the moment when its last frame was published.
"""

import argparse
import json
import re
import resource
import select
import socket
import time
from urllib.parse import urljoin

from bench import rtmp
from bench.players import add_connection_options, percentile_ms
from bench.publisher import CLOCK_MARK, STAMP
from bench.servers import ServerSample, core_figures

READY_LIMIT_S = 40
CONNECTS_PER_S = 100
RECEIVE_BYTES = 256 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SEQUENCE = re.compile(rb"#EXT-X-MEDIA-SEQUENCE:(\d+)")
_SKIPPED = re.compile(rb"SKIPPED-SEGMENTS=(\d+)")
_URI = re.compile(rb'URI="([^"]+)"')

_scratch = bytearray(RECEIVE_BYTES)
_scratch_view = memoryview(_scratch)


class MediaPlaylist:
    """What a viewer needs of a media playlist: its parts, and which part comes next."""

    def __init__(self, body):
        found = _SEQUENCE.search(body)
        if not found:
            raise ValueError("no media playlist")
        segment, part = int(found[1]), 0
        self.parts = []  # (segment, part, URI)
        self.ended = b"#EXT-X-ENDLIST" in body
        for line in body.splitlines():
            if line.startswith(b"#EXT-X-PART:"):
                self.parts.append((segment, part, _URI.search(line)[1].decode()))
                part += 1
            elif line.startswith(b"#EXT-X-SKIP:"):
                segment += int(_SKIPPED.search(line)[1])
            elif line and not line.startswith(b"#"):
                segment, part = segment + 1, 0
        self.next = segment, part


class Viewer:
    """One viewer, and its connection."""

    def __init__(self, run, *, sampled):
        self._run, self._sampled = run, sampled
        self.alive = True
        self.ready = False
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._descriptor = self._socket.fileno()
        self._socket.connect_ex(("127.0.0.1", run.options.port))
        self._got = bytearray()
        self._left = -1  # bytes of the body that are still to come; -1: the head is not complete
        self._answer, self._waits_for = self._take_index, f"/{run.options.app}/{run.options.name}/index.m3u8"
        self._playlist = ""
        self._queue = []  # URLs of parts
        self._seen = (0, 0)  # the part that comes next
        self.begin()
        run.loop.watch(self, select.EPOLLIN | select.EPOLLOUT)

    def begin(self):
        """Reset the counts at the start of the window."""
        self.parts = self.requests = 0
        self.late_ns = []

    def fileno(self):
        return self._descriptor

    def fail(self, reason):
        if self.alive:
            self.alive = False
            self._run.loop.error(reason)
            self._run.loop.forget(self)
            self._socket.close()

    # The connection ----------------------------------------------------------------------------------------------------

    def _ask(self, path, answer):
        self._answer = answer
        self.requests += 1
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: rtmpd-bench\r\nAccept: */*\r\n\r\n"
        try:
            self._socket.send(request.encode())
        except OSError as error:
            self.fail(f"send: {error.strerror}")

    def on_events(self, events):
        if events & select.EPOLLOUT and self._waits_for:
            # Connected.
            self._run.loop.want_write(self, wanted=False)
            path, self._waits_for = self._waits_for, ""
            self._ask(path, self._answer)
        if self.alive and events & ~select.EPOLLOUT:
            try:
                size = self._socket.recv_into(_scratch)
            except BlockingIOError:
                return
            except OSError as error:
                self.fail(f"receive: {error.strerror}")
                return
            if not size:
                self.fail("closed by the server")
                return
            self._feed(_scratch_view[:size])

    def _feed(self, data):
        if self._left < 0:
            self._got += data
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return
            status, length = bytes(self._got[9:12]), _LENGTH.search(self._got, 0, end + 2)
            if status != b"200" or not length:
                self.fail(f"status {status.decode()}")
                return
            # The match is a view of what is changed next.
            self._left = int(length[1])
            del self._got[: end + 4]
            self._left -= len(self._got)
        else:
            self._left -= len(data)
            if self._sampled or self._answer != self._take_part:
                self._got += data
        if self._left <= 0:
            body, self._left = bytes(self._got), -1
            self._got.clear()
            self._answer(body)

    # The stream --------------------------------------------------------------------------------------------------------

    def _take_index(self, body):
        path = f"/{self._run.options.app}/{self._run.options.name}/index.m3u8"
        uri = next((line for line in body.decode().splitlines() if line and not line.startswith("#")), "")
        if not uri:
            self.fail("the index has no variant")
            return
        self._playlist = urljoin(path, uri)
        self._ask(self._playlist, self._take_playlist)

    def _take_playlist(self, body):
        try:
            playlist = self._run.parsed(body)
        except ValueError as error:
            self.fail(str(error))
            return
        if playlist.ended:
            self.fail("the stream has ended")
            return
        if self.ready:
            self._queue = [urljoin(self._playlist, uri) for *place, uri in playlist.parts if tuple(place) >= self._seen]
        self.ready = True
        self._seen = playlist.next
        self._next()

    def _take_part(self, body):
        self.parts += 1
        if self._sampled:
            at = body.rfind(CLOCK_MARK)
            if at >= 0:
                sent_ns, _ = STAMP.unpack_from(body, at + len(CLOCK_MARK))
                self.late_ns.append(time.monotonic_ns() - sent_ns)
        self._next()

    def _next(self):
        if self._queue:
            self._ask(self._queue.pop(0), self._take_part)
            return
        segment, part = self._seen
        mark = "&" if "?" in self._playlist else "?"
        self._ask(f"{self._playlist}{mark}_HLS_msn={segment}&_HLS_part={part}&_HLS_skip=YES", self._take_playlist)


class Run:
    """A set of viewers from the first connect to the last figure."""

    KEPT_PLAYLISTS = 64

    def __init__(self, options):
        self.options = options
        self.loop = rtmp.Loop()
        self.viewers = []
        self._parsed = {}

    def parsed(self, body):
        """Return a playlist, which most viewers get the same."""
        found = self._parsed.get(body)
        if found is None:
            if len(self._parsed) >= self.KEPT_PLAYLISTS:
                self._parsed.clear()
            found = self._parsed[body] = MediaPlaylist(body)
        return found

    def figures(self):
        options, loop = self.options, self.loop
        every = max(1, options.viewers // max(1, options.sample))
        for index in range(options.viewers):
            self.viewers.append(Viewer(self, sampled=index % every == 0))
            loop.spin(1 / CONNECTS_PER_S)
        loop.spin(READY_LIMIT_S, lambda: all(viewer.ready or not viewer.alive for viewer in self.viewers))
        loop.spin(options.settle)
        for viewer in self.viewers:
            viewer.begin()
        print(json.dumps({"window_s": options.seconds}), flush=True)
        before, own_s = ServerSample.take(options.pid), _own_cpu_s()
        loop.spin(options.seconds)
        after, own_s = ServerSample.take(options.pid), _own_cpu_s() - own_s
        window_s = after.time_s - before.time_s
        late_ns = sorted(value for viewer in self.viewers for value in viewer.late_ns)
        requests = sum(viewer.requests for viewer in self.viewers)
        parts = [viewer.parts for viewer in self.viewers]
        return {
            "viewers": len(self.viewers),
            "ready": sum(viewer.ready and viewer.alive for viewer in self.viewers),
            **core_figures(before, after),
            "rss_mb": after.rss_mb,
            "requests_per_s": round(requests / window_s),
            "us_per_request": round((after.cpu_s - before.cpu_s) * 1e6 / max(1, requests)),
            "parts_per_s": round(sum(parts) / len(parts) / window_s, 2),
            "parts_per_s_min": round(min(parts) / window_s, 2),
            "p50_ms": percentile_ms(late_ns, 0.5),
            "p99_ms": percentile_ms(late_ns, 0.99),
            "max_ms": percentile_ms(late_ns, 1),
            "load_cpu": round(100 * own_s / window_s, 1),
            "errors": loop.errors,
        }


def _own_cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.hls", description=__doc__)
    add_connection_options(parser)
    parser.add_argument("--viewers", type=int, default=500)
    parser.add_argument("--sample", type=int, default=50, help="viewers that look into the parts")
    parser.add_argument("--settle", type=float, default=2, help="seconds between the last viewer and the window")
    parser.add_argument("--pid", type=int, default=0, help="server to sample")
    print(json.dumps(Run(parser.parse_args()).figures()), flush=True)


if __name__ == "__main__":
    main()
