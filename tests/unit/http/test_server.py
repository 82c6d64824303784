"""The HTTP listener: its routes, and clients that are slow, odd or hostile."""

from __future__ import annotations

import logging
from collections import Counter

import gevent
import pytest
from gevent import get_hub, socket
from gevent.event import Event

from rtmpd.config.model import ListenAddress
from rtmpd.errors import RtmpdError
from rtmpd.http import server as module
from rtmpd.http.server import HttpServer

LIMIT_S = 10
LOOPBACK = ListenAddress("127.0.0.1", 0)


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]


def broken(environ, start_response):
    raise KeyError("a bug")


class Pieces:
    """A route that gives its answer piece by piece."""

    def __init__(self) -> None:
        self.closed = 0

    def __call__(self, environ, start_response):
        try:
            start_response("200 OK", [("Content-Type", "text/plain")])
            yield b"one "
            yield b"two"
        finally:
            self.closed += 1


@pytest.fixture
def counted():
    return Counter()


@pytest.fixture
def serve(counted, monkeypatch):
    """Return a function that serves routes; times are short."""
    monkeypatch.setattr(module, "_REQUEST_S", 0.3)
    monkeypatch.setattr(module, "_WRITE_S", 0.3)
    made = []

    def start(**routes):
        paths = {f"/{name}": route for name, route in (routes or {"hello": hello}).items()}
        server = HttpServer("pages", (LOOPBACK,), paths, lambda name: counted.update([name]))
        server.start()
        made.append(server)
        return server

    yield start
    for server in made:
        server.stop(1)


@pytest.fixture
def connect():
    made = []

    def make(server):
        sock = socket.create_connection(("127.0.0.1", int(server.bound[0].rpartition(":")[2])), timeout=LIMIT_S)
        made.append(sock)
        return sock

    yield make
    for sock in made:
        sock.close()


def read(sock):
    """Read an answer to its end; return its status line, headers and body."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return status, {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}, body


@pytest.fixture
def ask(connect):
    def send(server, text):
        sock = connect(server)
        sock.sendall(text if isinstance(text, bytes) else text.encode())
        return read(sock)

    return send


# Routes -----------------------------------------------------------------------------------------------------------------


def test_a_route_is_found_by_its_path_whatever_the_query(serve, ask):
    server = serve(hello=hello, other=broken)
    status, headers, body = ask(server, "GET /hello?a=b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", b"hello\n")
    assert headers["connection"] == "close"
    assert headers["content-length"] == "6"


def test_http_1_0_is_answered(serve, ask):
    status, headers, body = ask(serve(), "GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (status, headers["connection"], body) == ("HTTP/1.1 200 OK", "close", b"hello\n")


def test_head_has_the_headers_of_get_and_no_body(serve, ask):
    server = serve()
    _, headers, _ = ask(server, "GET /hello HTTP/1.1\r\n\r\n")
    status, those, body = ask(server, "HEAD /hello HTTP/1.1\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", b"")
    assert those.keys() == headers.keys()
    assert those["content-length"] == "6"


def test_an_answer_may_come_in_pieces(serve, ask):
    pieces = Pieces()
    server = serve(pieces=pieces)
    _, headers, body = ask(server, "GET /pieces HTTP/1.1\r\n\r\n")
    assert headers["transfer-encoding"] == "chunked"
    assert body == b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"
    status, _, body = ask(server, "HEAD /pieces HTTP/1.1\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", b"")
    assert pieces.closed == 2


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", ["/", "/hello/", "/Hello", "//hello", "/%ff", "/../hello", "*"])
def test_another_path_is_not_found(serve, ask, method, path):
    status, headers, body = ask(serve(), f"{method} {path} HTTP/1.1\r\n\r\n")
    assert status == "HTTP/1.1 404 Not Found"
    assert headers["content-type"].startswith("text/plain")
    assert body == (b"" if method == "HEAD" else b"This page does not exist. Pages: /hello\n")


@pytest.mark.parametrize(
    "rest",
    [
        "\r\n",
        "Content-Length: 4\r\n\r\nbody",
        "Content-Length: 4\r\nExpect: 100-continue\r\n\r\nbody",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "Content-Length: 99999999999\r\n\r\nbody",
    ],
    ids=["no body", "a body", "a body that waits to be asked for", "a body in chunks", "a body that is never read"],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_not_allowed(serve, ask, counted, method, rest):
    status, headers, body = ask(serve(), f"{method} /hello HTTP/1.1\r\n{rest}")
    assert status == "HTTP/1.1 405 Method Not Allowed"
    assert headers["allow"] == "GET, HEAD"
    assert body == b"Only GET and HEAD.\n"
    assert not counted


def test_a_route_that_fails_is_an_internal_error_and_affects_no_other_request(serve, ask, monkeypatch):
    seen = []
    monkeypatch.setattr(get_hub(), "print_exception", lambda _, kind, value, traceback: seen.append(kind))
    server = serve(broken=broken, hello=hello)
    status, _, body = ask(server, "GET /broken HTTP/1.1\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 500 Internal Server Error", b"Internal Server Error")
    assert seen == [KeyError]
    assert ask(server, "GET /hello HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"


# Odd and hostile clients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"),
        ("\x03" + "\0" * 1536 + "\r\n", "400"),
        ("GET\r\n\r\n", "400"),
        ("GET /hello HTTP/1\r\n\r\n", "400"),
        ("GET /hello HTTP/a.b\r\n\r\n", "400"),
        ("GET /hello HTTP/9.9\r\n\r\n", "400"),
        ("GET /hello HTTP/1.1\r\nContent-Length: many\r\n\r\n", "400"),
        ("GET /hello HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"),
        ("GET /hello HTTP/1.1\r\nA: " + "a" * 20000 + "\r\n\r\n", "400"),
        ("GET /hello HTTP/1.1\r\n" + "A: a\r\n" * 101 + "\r\n", "400"),
        ("GET /hello HTTP/1.1\r\n" + "A: " + "a" * 700 + "\r\n" * 1 + ("B: " + "b" * 700 + "\r\n") * 30 + "\r\n", "400"),
        ("GET /" + "a" * 20000 + " HTTP/1.1\r\n\r\n", "414"),
    ],
    ids=[
        "TLS",
        "RTMP",
        "one word",
        "half a version",
        "letters for a version",
        "a version to come",
        "a length in words",
        "a negative length",
        "a long header",
        "many headers",
        "headers that are long all together",
        "a long path",
    ],
)
def test_a_request_that_makes_no_sense_is_refused(serve, ask, counted, capfd, caplog, request_text, status):
    server = serve()
    with caplog.at_level(logging.INFO, "rtmpd"):
        assert ask(server, request_text)[0].split()[1] == status
        assert ask(server, "GET /hello HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"
    if status == "400":
        assert counted == {"http_bad_requests": 1}
        assert [record.levelname for record in caplog.records if "bad request" in record.message] == ["WARNING"]
    assert capfd.readouterr().err == ""


def test_a_client_that_sends_nothing_is_let_go(serve, connect, counted):
    sock = connect(serve())
    assert sock.recv(1) == b""
    assert not counted


@pytest.mark.parametrize(
    "begun", ["G", "GET /hello HTTP/1.1\r\n", "GET /hello HTTP/1.1\r\nHost: a\r\nX", "GET /hello HTTP/1.1\r\nA"]
)
def test_a_request_that_is_not_finished_in_time_is_given_up(serve, ask, counted, caplog, begun):
    status, _, _ = ask(serve(), begun)
    assert status == "HTTP/1.1 408 Request Timeout"
    assert counted == {"http_deadlines": 1}
    assert "request not complete within 0.3 s, connection closed" in caplog.text


@pytest.mark.parametrize("begun", ["", "GET /hello HTTP/1.1\r\nA: ", "POST /hello HTTP/1.1\r\nContent-Length: 60000\r\n\r\n"])
def test_a_request_that_drips_does_not_get_more_time(serve, connect, counted, begun):
    sock = connect(serve())
    sock.sendall(begun.encode())

    def drip():
        while True:
            sock.sendall(b"a")
            gevent.sleep(0.01)

    dripping = gevent.spawn(drip)
    try:
        assert read(sock)[0] == "HTTP/1.1 408 Request Timeout"
    except ConnectionResetError:
        # It was still sending.
        assert begun is not None
    finally:
        dripping.kill()
    assert counted == {"http_deadlines": 1}


def test_a_client_that_does_not_take_its_answer_is_given_up(serve, connect, ask, monkeypatch, caplog):
    seen = []
    monkeypatch.setattr(get_hub(), "print_exception", lambda *details: seen.append(details))
    monkeypatch.setattr(module, "CONNECTIONS", 1)

    def large(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [bytes(64 << 20)]

    server = serve(large=large, hello=hello)
    sock = connect(server)
    sock.sendall(b"GET /large HTTP/1.1\r\n\r\n")
    # There is one place: it must be free again.
    with caplog.at_level(logging.DEBUG, "rtmpd"):
        assert ask(server, "GET /hello HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"
    assert "socket error: timed out" in caplog.text
    assert not seen


def test_a_client_that_leaves_is_no_failure(serve, connect, ask, counted, monkeypatch):
    seen = []
    monkeypatch.setattr(get_hub(), "print_exception", lambda *details: seen.append(details))
    server = serve()
    for text in (b"", b"GET /he", b"GET /hello HTTP/1.1\r\nA: b", b"GET /hello HTTP/1.1\r\n\r\n"):
        sock = connect(server)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.sendall(text)
        sock.close()
    assert ask(server, "GET /hello HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"
    assert not seen


def test_more_clients_than_places_wait_for_their_turn(serve, connect, monkeypatch):
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    inside, most, go = 0, 0, Event()

    def slow(environ, start_response):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        go.wait(LIMIT_S)
        inside -= 1
        return hello(environ, start_response)

    server = serve(slow=slow)
    socks = [connect(server) for _ in range(10)]
    for sock in socks:
        sock.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
    gevent.sleep(0.05)
    go.set()
    assert [read(sock)[0] for sock in socks] == ["HTTP/1.1 200 OK"] * 10
    assert most == 2


@pytest.mark.parametrize("text", [b"", b"GET /hello HTTP/1.1\r\nA: "])
def test_clients_that_are_slow_to_ask_do_not_delay_others(serve, connect, ask, monkeypatch, counted, text):
    monkeypatch.setattr(module, "_REQUEST_S", 2 * LIMIT_S)
    server = serve()
    socks = [connect(server) for _ in range(5 * module._READING)]
    for sock in socks:
        sock.sendall(text)
    gevent.sleep(0.05)
    with gevent.Timeout(LIMIT_S / 4):
        assert ask(server, "GET /hello HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"
    # Without others in between the newest may take their time.
    socks[-1].sendall((b"" if text else b"GET /hello HTTP/1.1\r\nA: ") + b"b\r\n\r\n")
    assert read(socks[-1])[0] == "HTTP/1.1 200 OK"
    assert counted["http_deadlines"] == 4 * module._READING + 1


def test_clients_that_are_slow_to_read_do_not_delay_others(serve, connect, ask, monkeypatch):
    monkeypatch.setattr(module, "_WRITE_S", 2 * LIMIT_S)
    monkeypatch.setattr(module, "_SLOW_S", 0.2)

    def large(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [bytes(64 << 20)]

    server = serve(large=large, hello=hello)
    for sock in [connect(server) for _ in range(module.CONNECTIONS)]:
        sock.sendall(b"GET /large HTTP/1.1\r\n\r\n")
    gevent.sleep(0.05)
    with gevent.Timeout(LIMIT_S / 2):
        assert ask(server, "GET /hello HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"


def test_what_may_be_secret_is_not_logged(serve, ask, caplog, capfd):
    with caplog.at_level(logging.DEBUG, "rtmpd"):
        ask(serve(), "GET /hello?token=secret HTTP/1.1\r\nAuthorization: secret\r\n\r\n")
        ask(serve(), "GET /hello?token=secret HTTP/9.1\r\nAuthorization: secret\r\n\r\n")
        ask(serve(), "GET /hello?token=secret and more HTTP/1.1\r\n\r\n")
    assert "'GET /hello': 200 OK, " in caplog.text
    assert caplog.text.count("bad request: ") == 2
    assert "secret" not in caplog.text
    assert capfd.readouterr() == ("", "")


# Start and stop ---------------------------------------------------------------------------------------------------------


def test_it_says_where_it_is(serve, caplog):
    with caplog.at_level(logging.INFO, "rtmpd"):
        server = serve(hello=hello, other=hello)
    assert f"pages on http://{server.bound[0]}/hello" in caplog.text
    assert not server.bound[0].endswith(":0")


def test_without_addresses_it_does_nothing():
    server = HttpServer("pages", (), {"/hello": hello}, print)
    server.start()
    assert server.bound == []
    server.stop(1)


def test_an_address_in_use_is_an_error_that_says_so(serve):
    port = int(serve().bound[0].rpartition(":")[2])
    second = HttpServer("pages", (LOOPBACK, ListenAddress("127.0.0.1", port)), {"/hello": hello}, print)
    with pytest.raises(RtmpdError, match=rf"^can't listen on 127\.0\.0\.1:{port}: .*: another process listens on it$"):
        second.start()
    second.stop(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(second.bound[0].rpartition(":")[2])))


def test_no_name_is_looked_up(serve, ask, monkeypatch):
    monkeypatch.setattr("gevent.pywsgi.socket.getfqdn", lambda _: pytest.fail("it asked DNS"))
    assert ask(serve(), "GET /hello HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"


def test_a_stop_does_not_wait_for_answers_that_never_end(serve, connect, monkeypatch):
    monkeypatch.setattr(module, "_STOP_S", 0.05)

    def endless(environ, start_response):
        start_response("200 OK", [])
        while True:
            yield b"more"
            gevent.sleep(0.01)

    server = serve(endless=endless)
    sock = connect(server)
    sock.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
    assert sock.recv(10)
    with gevent.Timeout(LIMIT_S):
        server.stop(LIMIT_S)
    with pytest.raises(ConnectionRefusedError):
        connect(server)
