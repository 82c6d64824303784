"""A path of a network between an encoder and the server, which can be slow and can be cut: a TCP proxy."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time


class NetworkPath:
    """Takes connections on a port, and forwards each.

    Args:
        target: The port on this machine to which connections go.
        delay_s: What is sent arrives this much later.
    """

    def __init__(self, target: int, delay_s: float = 0.0) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target, self._delay_s = target, delay_s
        self._sockets: list[socket.socket] = []
        self._start(self._accept)

    @staticmethod
    def _start(function, *arguments) -> None:
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket()
                far.connect(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                    self._start(self._receive, source, waiting)
                    self._start(self._send, sink, source, waiting)

    def _receive(self, source: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            waiting.put((time.monotonic() + self._delay_s, data))

    def _send(self, sink: socket.socket, source: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while True:
                due_s, data = waiting.get()
                threading.Event().wait(max(0.0, due_s - time.monotonic()))
                if not data:
                    break
                sink.sendall(data)
        self._close(sink, source)

    @staticmethod
    def _close(*sockets: socket.socket) -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections; what is on the way is lost. New ones are taken."""
        cut, self._sockets = self._sockets, []
        self._close(*cut)

    def close(self) -> None:
        self._listener.close()
        self.cut()
