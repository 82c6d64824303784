"""Web servers for tests of HTTP clients: well and badly behaved, in threads."""

from __future__ import annotations

import contextlib
import http.server
import socketserver
import ssl
import threading

SECRETS = "user:hunter2@"
QUERY = "?token=hunter2"


class WebServer:
    """Answers as a test says, in threads. ``got`` has (path, headers, body) of each request, ``peers`` the connections."""

    def __init__(self, answer=None, secure=None):
        got, peers = self.got, self.peers = [], set()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got.append((self.path, self.headers, body))
                peers.add(self.client_address)
                try:
                    (answer or ok)(self)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        scheme = "http"
        if secure:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*secure)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{scheme}://{SECRETS}127.0.0.1:{self.server.server_port}/hook{QUERY}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class RawServer:
    """Does what a test says with each connection, below HTTP."""

    def __init__(self, serve):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    serve(self.request)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://{SECRETS}127.0.0.1:{self.server.server_address[1]}/hook{QUERY}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def reply(handler, status=200, body=b"", **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def ok(handler):
    reply(handler)


def drip(data, pause_s=0.05):
    """Return what a `RawServer` does to send a byte now and then."""

    def serve(connection):
        connection.recv(65536)
        for byte in data:
            connection.sendall(bytes([byte]))
            threading.Event().wait(pause_s)
        threading.Event().wait(5)

    return serve
