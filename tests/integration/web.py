"""A web server for auth_callback that misbehaves as a test demands. It runs in threads."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from pathlib import Path


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024

    def handle_error(self, *_: Any) -> None:
        """Ignore errors: clients that disconnect are part of these tests."""


class Web:
    """The server.

    Attributes:
        url: Its URL, with a password and a query that must not be logged.
        questions: The requests, in order.
        headers: The headers of the last request.
        answers: The answer by the name of the stream; "" is for all others. One of the functions below, or a status.
    """

    def __init__(self, certificate: Path | None = None, key: Path | None = None) -> None:
        self.questions: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.paths: list[str] = []
        self.answers: dict[str, Any] = {"": 200}
        self.over = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                form = self.headers["Content-Type"] == "application/x-www-form-urlencoded"
                question = dict(parse_qsl(body.decode(), keep_blank_values=True)) if form else json.loads(body)
                web.questions.append(question)
                web.headers = dict(self.headers)
                web.paths.append(self.path)
                answer = web.answers.get(question["name" if form else "stream_name"], web.answers[""])
                with contextlib.suppress(OSError):
                    if isinstance(answer, int):
                        reply(answer)(self, web)
                    else:
                        answer(self, web)

            def do_GET(self) -> None:
                web.paths.append(f"GET {self.path}")
                reply(200)(self, web)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://hook:s3cret-hook@127.0.0.1:{self.port}/auth?key=s3cret-key"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


def reply(status: int, body: bytes = b"", **headers: str):
    """Send a complete answer."""

    def act(handler: BaseHTTPRequestHandler, web: Web) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return act


def granting(status: int = 200, **members: object):
    """Allow the request, with a JSON object."""
    return reply(status, json.dumps(members).encode())


def first(answer, then):
    """Answer the request of a client, and re-checks in another way."""

    def act(handler: BaseHTTPRequestHandler, web: Web) -> None:
        question = web.questions[-1]
        again = question.get("recheck") or question.get("call", "").startswith("update_")
        chosen = then if again else answer
        (reply(chosen) if isinstance(chosen, int) else chosen)(handler, web)

    return act


def named(name: object):
    """Allow the request, and return another name."""
    return reply(200, json.dumps({"name": name}).encode())


def late(after_s: float, then=None):
    """Answer after a delay."""

    def act(handler: BaseHTTPRequestHandler, web: Web) -> None:
        if not web.over.wait(after_s):
            (then or reply(200))(handler, web)

    return act


def dripping(handler: BaseHTTPRequestHandler, web: Web) -> None:
    """Send endless headers, a byte at a time, so that no single read takes long."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not web.over.wait(0.2):
        handler.wfile.write(b"x")


def endless(handler: BaseHTTPRequestHandler, web: Web) -> None:
    """Announce a gigabyte, and send it."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
    begun = time.monotonic()
    for _ in range(1 << 14):
        handler.wfile.write(b"x" * (1 << 16))
        assert time.monotonic() - begun < 20


def nonsense(handler: BaseHTTPRequestHandler, web: Web) -> None:
    """Send another protocol."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    handler.close_connection = True


def breaking_off(data: bytes):
    """Send a part of an answer, and close the connection."""

    def act(handler: BaseHTTPRequestHandler, web: Web) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return act


def hang_up(handler: BaseHTTPRequestHandler, web: Web) -> None:
    """Close without an answer."""
    handler.close_connection = True
