"""A TCP proxy on the loopback that writes down what passes through it, one file per direction.

As a command: ``tap.py LISTEN_PORT SERVER_PORT NAME``, which relays one connection and writes ``NAME.c2s.bin`` (client to
server) and ``NAME.s2c.bin`` (server to client).  It changes no byte and knows nothing about RTMP.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
from pathlib import Path

HOST = "127.0.0.1"
READ_SIZE = 65536


class Recording:
    """The first ``limit`` bytes of one direction."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.data = bytearray()
        self.seen = 0

    def add(self, block: bytes) -> None:
        self.data += block[: max(0, self.limit - self.seen)]
        self.seen += len(block)

    @property
    def truncated(self) -> bool:
        return self.seen > self.limit


class Tap:
    """Relays the first connection made to ``port``, recording it, and refuses any other."""

    def __init__(self, port: int, server_port: int, *, c2s_limit: int = 150_000, s2c_limit: int = 150_000) -> None:
        self.server_port = server_port
        self.c2s = Recording(c2s_limit)
        self.s2c = Recording(s2c_limit)
        self.done = threading.Event()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((HOST, port))
        self._listener.listen(1)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)

    def start(self) -> Tap:
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop waiting for a connection (one that is under way is left to end by itself)."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def write(self, stem: Path) -> list[Path]:
        paths = []
        for suffix, recording in ((".c2s.bin", self.c2s), (".s2c.bin", self.s2c)):
            path = stem.with_name(stem.name + suffix)
            path.write_bytes(recording.data)
            paths.append(path)
        return paths

    def _run(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            self.done.set()
            return
        self._listener.close()
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.connect((HOST, self.server_port))
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        upward = threading.Thread(target=self._relay, args=(client, server, self.c2s), daemon=True)
        upward.start()
        self._relay(server, client, self.s2c)
        upward.join()
        client.close()
        server.close()
        self.done.set()

    @staticmethod
    def _relay(source: socket.socket, sink: socket.socket, recording: Recording) -> None:
        """Copy until ``source`` ends; what the sink no longer takes is still recorded."""
        sink_open = True
        while True:
            try:
                block = source.recv(READ_SIZE)
            except OSError:
                block = b""
            if not block:
                break
            recording.add(block)
            if sink_open:
                try:
                    sink.sendall(block)
                except OSError:
                    sink_open = False
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("listen_port", type=int)
    parser.add_argument("server_port", type=int)
    parser.add_argument("name", type=Path)
    parser.add_argument("--limit", type=int, default=150_000, help="bytes to keep of each direction")
    args = parser.parse_args()
    tap = Tap(args.listen_port, args.server_port, c2s_limit=args.limit, s2c_limit=args.limit).start()
    tap.done.wait()
    for path in tap.write(args.name):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
