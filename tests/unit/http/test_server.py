"""The HTTP listener: its routes, and clients that are slow, odd or hostile."""

from __future__ import annotations

import logging
from collections import Counter

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from rtmpd.config.model import ListenAddress
from rtmpd.errors import RtmpdError
from rtmpd.http import limits
from rtmpd.http import places as places_module
from rtmpd.http import server as module
from rtmpd.http.messages import Response
from rtmpd.http.routes import Route
from rtmpd.http.server import HttpServer

LIMIT_S = 10
LOOPBACK = ListenAddress("127.0.0.1", 0)


def hello(request, exchange):
    return Response(body=b"hello\n")


def broken(request, exchange):
    raise KeyError("a bug")


def echo(request, exchange):
    return Response(body=request.body + b"|" + request.path.encode())


@pytest.fixture
def counted():
    return Counter()


@pytest.fixture
def serve(counted, monkeypatch):
    """Return a function that serves routes; times are short."""
    monkeypatch.setattr(limits, "REQUEST_S", 0.3)
    monkeypatch.setattr(limits, "WRITE_S", 0.3)
    monkeypatch.setattr(limits, "IDLE_S", 0.3)
    made = []

    def start(*routes, **options):
        table = routes or (Route("/hello", hello),)
        server = HttpServer("pages", (LOOPBACK,), table, lambda name: counted.update([name]), **options)
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


def read(sock, head=False):
    """Read a response to its end; return its status line, headers and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionResetError
        data += piece
    start, _, body = data.partition(b"\r\n\r\n")
    status, *lines = start.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = 0 if head else int(headers.get("content-length", 0))
    while len(body) < length:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionResetError
        body += piece
    return status, headers, body


@pytest.fixture
def ask(connect):
    def send(server, text):
        sock = connect(server)
        sock.sendall(text if isinstance(text, bytes) else text.encode("latin-1"))
        return read(sock, head=text[:4] in ("HEAD", b"HEAD"))

    return send


# Routes -----------------------------------------------------------------------------------------------------------------


def test_a_route_is_found_by_its_path_whatever_the_query(serve, ask):
    status, headers, body = ask(serve(), "GET /hello?a=b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", b"hello\n")
    assert headers["connection"] == "keep-alive"
    assert headers["content-length"] == "6"
    assert headers["server"] == "rtmpd"
    assert headers["date"].endswith(" GMT")


def test_http_1_0_is_answered_and_closed(serve, ask):
    status, headers, body = ask(serve(), "GET /hello HTTP/1.0\r\n\r\n")
    assert (status, headers["connection"], body) == ("HTTP/1.1 200 OK", "close", b"hello\n")


def test_head_has_the_headers_of_get_and_no_body(serve, connect):
    server = serve()
    sock = connect(server)
    sock.sendall(b"HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n")
    status, headers, body = read(sock, head=True)
    assert (status, headers["content-length"], body) == ("HTTP/1.1 200 OK", "6", b"")
    # The connection is in step.
    sock.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
    assert read(sock)[2] == b"hello\n"


def test_a_connection_serves_several_requests_also_sent_at_once(serve, connect):
    sock = connect(serve(Route("/{name}", echo, ("GET", "POST"), takes_body=True)))
    sock.sendall(
        b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
        b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none"
        b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ntw\r\n1\r\no\r\n0\r\n\r\n"
        b"GET /d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    data = b""
    while piece := sock.recv(65536):
        data += piece
    assert [part.rpartition(b"\r\n\r\n")[2] for part in data.split(b"HTTP/1.1 200 OK\r\n")[1:]] == [
        b"|/a",
        b"one|/b",
        b"two|/c",
        b"|/d",
    ]


def test_a_body_may_wait_to_be_asked_for(serve, connect):
    sock = connect(serve(Route("/a", echo, ("POST",), takes_body=True)))
    sock.sendall(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    sock.sendall(b"one")
    assert read(sock)[2] == b"one|/a"


def test_an_idle_connection_is_closed_after_a_while(serve, connect, counted):
    sock = connect(serve())
    sock.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
    read(sock)
    assert sock.recv(1) == b""
    assert not counted


def test_a_body_in_pieces_is_sent_in_order_and_needs_no_place(serve, connect, monkeypatch):
    monkeypatch.setattr(module, "RESPONSES", 0)
    pieces = [b"a" * (1 << 20) + b"b", b"", b"c"]
    server = serve(Route("/piece", lambda request, exchange: Response(body=b"0", pieces=pieces), long=True))
    sock = connect(server)
    for method in ("GET", "HEAD", "GET"):
        sock.sendall(f"{method} /piece HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        status, headers, body = read(sock, head=method == "HEAD")
        assert status == "HTTP/1.1 200 OK"
        assert int(headers["content-length"]) == (1 << 20) + 3
        assert body == (b"" if method == "HEAD" else b"0" + b"".join(pieces))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", ["/", "/hello/", "/Hello", "//hello", "/hello%00x", "/%2e%2e/hello", "/../hello", "*", "/%ff"])
def test_another_path_is_not_found(serve, ask, method, path):
    status, headers, body = ask(serve(), f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status.split()[1] in ("404", "400")
    assert headers["content-type"].startswith("text/plain")
    assert b"hello" not in body


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
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "BREW"])
def test_other_methods_are_not_allowed(serve, ask, counted, method, rest):
    status, headers, body = ask(serve(), f"{method} /hello HTTP/1.1\r\nHost: x\r\n{rest}")
    assert status == "HTTP/1.1 405 Method Not Allowed"
    assert headers["allow"] == "GET, HEAD, OPTIONS"
    assert body == b"This page allows GET, HEAD, OPTIONS.\n"
    assert not counted


def test_a_route_that_fails_is_an_internal_error_and_affects_no_other_request(serve, ask, counted, caplog):
    server = serve(Route("/broken", broken), Route("/hello", hello))
    status, _, body = ask(server, "GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 500 Internal Server Error", b"Internal error.\n")
    assert counted == {"internal_errors": 1}
    assert "KeyError: 'a bug'" in caplog.text
    assert ask(server, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")[0] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    ("accept", "content_type", "begin"),
    [
        ("*/*", "text/plain; charset=utf-8", b"This page"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8", b"<!DOCTYPE html>"),
        ("application/json", "application/json; charset=utf-8", b'{"status": 404, "error": '),
    ],
)
def test_an_error_has_the_form_that_the_client_accepts(serve, ask, accept, content_type, begin):
    _, headers, body = ask(serve(), f"GET /x HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n")
    assert headers["content-type"] == content_type
    assert body.startswith(begin)


def test_pages_of_listed_origins_may_use_routes_that_allow_it(serve, ask):
    server = serve(Route("/open", hello, cors=True), Route("/hello", hello), allow_origin=("https://a.example",))

    def allowed(path, origin, method="GET"):
        preflight = "Access-Control-Request-Method: GET\r\n" if method == "OPTIONS" else ""
        _, headers, _ = ask(server, f"{method} {path} HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\n{preflight}\r\n")
        return headers

    assert allowed("/open", "https://a.example")["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in allowed("/open", "https://b.example")
    assert "access-control-allow-origin" not in allowed("/hello", "https://a.example")
    found = allowed("/open", "https://a.example", "OPTIONS")
    assert found["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
    assert "content-length" not in found


# Odd and hostile clients ------------------------------------------------------------------------------------------------

HOST = "Host: x\r\n"


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"),
        ("\x03" + "\0" * 1536 + "\r\n\r\n", "400"),
        ("GET\r\n\r\n", "400"),
        (f"GET /hello HTTP/1\r\n{HOST}\r\n", "400"),
        (f"GET /hello HTTP/a.b\r\n{HOST}\r\n", "400"),
        (f"GET /hello HTTP/2.0\r\n{HOST}\r\n", "505"),
        ("GET /hello HTTP/1.1\r\n\r\n", "400"),
        (f"GET /hello HTTP/1.1\r\n{HOST}Host: y\r\n\r\n", "400"),
        (f"GET /hello HTTP/1.1\r\n{HOST}Content-Length: many\r\n\r\n", "400"),
        (f"GET /hello HTTP/1.1\r\n{HOST}Content-Length: -1\r\n\r\n", "400"),
        (f"GET /hello HTTP/1.1\r\n{HOST}Content-Length: +1\r\n\r\n", "400"),
        (f"POST /hello HTTP/1.1\r\n{HOST}Content-Length: 1\r\nContent-Length: 1\r\n\r\n", "400"),
        (f"POST /hello HTTP/1.1\r\n{HOST}Content-Length: 1, 2\r\n\r\n", "400"),
        (f"POST /hello HTTP/1.1\r\n{HOST}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        (f"POST /hello HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", "400"),
        (f"POST /hello HTTP/1.1\r\n{HOST}Transfer-Encoding: gzip\r\n\r\n", "501"),
        ("POST /hello HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        (f"GET /hello HTTP/1.1\r\n{HOST}A: b\r\n c\r\n\r\n", "400"),
        (f"GET /hello HTTP/1.1\r\n{HOST}Content-Length : 1\r\n\r\n", "400"),
        (f"GET /hello HTTP/1.1\n{HOST}\r\n", "400"),
        ("GET /hello HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", "400"),
        ("GET /hello HTTP/1.1\r\nHost: x\rA: b\r\n\r\n", "400"),
        (f"GET /hello HTTP/1.1\r\n{HOST}A: " + "a" * 20000 + "\r\n\r\n", "431"),
        (f"GET /hello HTTP/1.1\r\n{HOST}" + "A: a\r\n" * 101 + "\r\n", "431"),
        (f"GET /hello HTTP/1.1\r\n{HOST}" + ("B: " + "b" * 700 + "\r\n") * 30 + "\r\n", "431"),
        ("GET /" + "a" * 20000 + " HTTP/1.1\r\n\r\n", "414"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(serve, ask, counted, caplog, request_text, status):
    server = serve()
    with caplog.at_level(logging.INFO, "rtmpd"):
        assert ask(server, request_text)[0].split()[1] == status
        assert ask(server, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")[0] == "HTTP/1.1 200 OK"
    assert counted == {"http_bad_requests": 1}
    assert [record.levelname for record in caplog.records if "bad request" in record.message] == ["WARNING"]


@pytest.mark.parametrize(
    "text",
    [
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + bytes(70000),
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"7000\r\n" + bytes(0x7000) + b"\r\n7000\r\n"
        + bytes(0x7000) + b"\r\n7000\r\n" + bytes(0x7000),
    ],
)  # fmt: skip
def test_a_body_that_is_too_long_is_refused(serve, ask, text):
    assert ask(serve(Route("/a", echo, ("POST",), takes_body=True)), text)[0].split()[1] == "413"


def test_a_client_that_sends_nothing_is_disconnected(serve, connect, counted):
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


@pytest.mark.parametrize(
    "begun", ["", "GET /a HTTP/1.1\r\nA: ", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"]
)
def test_a_request_that_drips_does_not_get_more_time(serve, connect, counted, begun):
    sock = connect(serve(Route("/a", echo, ("POST",), takes_body=True)))
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


def large(request, exchange):
    return Response(body=bytes(64 << 20))


def test_a_client_that_does_not_take_its_answer_is_given_up(serve, connect, ask, monkeypatch):
    monkeypatch.setattr(module, "RESPONSES", 1)
    server = serve(Route("/large", large), Route("/hello", hello))
    connect(server).sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    # There is one place: it must be free again.
    assert ask(server, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")[0] == "HTTP/1.1 200 OK"


def test_a_client_that_leaves_is_no_failure(serve, connect, ask, counted):
    server = serve()
    for text in (b"", b"GET /he", b"GET /hello HTTP/1.1\r\nA: b", b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"):
        sock = connect(server)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.sendall(text)
        sock.close()
    assert ask(server, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")[0] == "HTTP/1.1 200 OK"
    assert not counted


def test_more_clients_than_places_wait_for_their_turn(serve, connect, monkeypatch):
    monkeypatch.setattr(module, "RESPONSES", 2)
    inside, most, go = 0, 0, Event()

    def slow(request, exchange):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        go.wait(LIMIT_S)
        inside -= 1
        return hello(request, exchange)

    server = serve(Route("/slow", slow))
    socks = [connect(server) for _ in range(10)]
    for sock in socks:
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    gevent.sleep(0.05)
    go.set()
    assert [read(sock)[0] for sock in socks] == ["HTTP/1.1 200 OK"] * 10
    assert most == 2


@pytest.mark.parametrize("text", [b"", b"GET /hello HTTP/1.1\r\nHost: x\r\nA: "])
def test_clients_that_are_slow_to_ask_do_not_delay_others(serve, connect, ask, monkeypatch, counted, text):
    monkeypatch.setattr(limits, "REQUEST_S", 2 * LIMIT_S)
    server = serve()
    socks = [connect(server) for _ in range(5 * module.WAITING)]
    for sock in socks:
        sock.sendall(text)
    gevent.sleep(0.05)
    with gevent.Timeout(LIMIT_S / 4):
        assert ask(server, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")[0] == "HTTP/1.1 200 OK"
    # Without others in between the newest may take their time.
    socks[-1].sendall((b"" if text else b"GET /hello HTTP/1.1\r\nHost: x\r\nA: ") + b"b\r\n\r\n")
    assert read(socks[-1])[0] == "HTTP/1.1 200 OK"
    assert counted["http_deadlines"] == 4 * module.WAITING + 1


def test_idle_connections_give_way_before_those_that_ask(serve, connect, ask, monkeypatch, counted):
    monkeypatch.setattr(module, "WAITING", 2)
    monkeypatch.setattr(limits, "IDLE_S", LIMIT_S)
    monkeypatch.setattr(limits, "REQUEST_S", LIMIT_S)
    server = serve()
    idle, asking = connect(server), connect(server)
    idle.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
    read(idle)
    asking.sendall(b"GET /hello HTTP/1.1\r\n")
    gevent.sleep(0.02)
    assert ask(server, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")[0] == "HTTP/1.1 200 OK"
    assert idle.recv(1) == b""
    asking.sendall(b"Host: x\r\n\r\n")
    assert read(asking)[0] == "HTTP/1.1 200 OK"
    assert not counted


def test_clients_that_are_slow_to_read_do_not_delay_others(serve, connect, ask, monkeypatch):
    monkeypatch.setattr(limits, "WRITE_S", 2 * LIMIT_S)
    monkeypatch.setattr(places_module, "SLOW_S", 0.2)
    server = serve(Route("/large", large), Route("/hello", hello))
    for sock in [connect(server) for _ in range(module.RESPONSES)]:
        sock.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    gevent.sleep(0.05)
    with gevent.Timeout(LIMIT_S / 2):
        assert ask(server, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")[0] == "HTTP/1.1 200 OK"


def test_what_may_be_secret_is_not_logged(serve, ask, caplog, capfd):
    with caplog.at_level(logging.DEBUG, "rtmpd"):
        ask(serve(), "GET /hello?token=secret HTTP/1.1\r\nHost: x\r\nAuthorization: secret\r\n\r\n")
        ask(serve(), "GET /hello?token=secret HTTP/9.1\r\nAuthorization: secret\r\n\r\n")
        ask(serve(), "GET /hello?token=secret and more HTTP/1.1\r\n\r\n")
    assert "GET '/hello': 200, 6 bytes" in caplog.text
    assert caplog.text.count("bad request: ") == 2
    assert "secret" not in caplog.text
    assert capfd.readouterr() == ("", "")


# Start and stop ---------------------------------------------------------------------------------------------------------


def test_it_says_where_it_is(serve, caplog):
    with caplog.at_level(logging.INFO, "rtmpd"):
        server = serve(page="/hello")
    assert f"pages on http://{server.bound[0]}/hello" in caplog.text
    assert not server.bound[0].endswith(":0")


def test_without_addresses_it_does_nothing():
    server = HttpServer("pages", (), [Route("/hello", hello)], print)
    server.start()
    assert server.bound == []
    server.stop(1)


def test_an_address_in_use_is_an_error_that_says_so(serve):
    port = int(serve().bound[0].rpartition(":")[2])
    second = HttpServer("pages", (LOOPBACK, ListenAddress("127.0.0.1", port)), [Route("/hello", hello)], print)
    with pytest.raises(RtmpdError, match=rf"^can't listen on 127\.0\.0\.1:{port}: .*: another process listens on it$"):
        second.start()
    second.stop(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(second.bound[0].rpartition(":")[2])))


def test_an_optional_address_in_use_is_a_warning(serve, caplog):
    port = int(serve().bound[0].rpartition(":")[2])
    second = HttpServer("pages", (ListenAddress("127.0.0.1", port),), [Route("/hello", hello)], print, optional=True)
    second.start()
    assert second.bound == []
    assert "the server runs without this listener (http_listen)" in caplog.text
    second.stop(1)
