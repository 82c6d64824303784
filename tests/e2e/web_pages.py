"""A web server for the pages of tests: a site of another origin than rtmpd's."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Site:
    """Files in memory, served on a port of this machine; made by `serving_pages`.

    ``origin`` is the site by its name, ``other_origin`` the same by its address: two origins for a browser.
    """

    def __init__(self, port: int) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        self.origin = f"http://localhost:{port}"
        self.other_origin = f"http://127.0.0.1:{port}"

    def add(self, path: str, content: str | bytes, content_type: str = "text/html; charset=utf-8") -> None:
        """Serve a file from now on."""
        self.files[path] = content_type, content.encode() if isinstance(content, str) else content

    def add_script(self, path: str, content: str | bytes) -> None:
        self.add(path, content, "text/javascript; charset=utf-8")


@contextmanager
def serving_pages() -> Iterator[Site]:
    """Run a web server in a thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = site.files.get(self.path.partition("?")[0])
            content_type, content = found or ("text/plain", b"not found")
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        site = Site(server.server_port)
        # Browsers ask for it by themselves, and report on the console that it is missing.
        site.add("/favicon.ico", b"", "image/x-icon")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
