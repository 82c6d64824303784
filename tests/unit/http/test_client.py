"""The HTTP client: its bounds, its deadline in each stage, and connections that are kept."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from pathlib import Path

import gevent
import pytest

from rtmpd.http import client as module
from rtmpd.http.client import BROKE_OFF, HEAD_LIMIT_BYTES, HttpClient, HttpError
from rtmpd.net.resolver import Resolver
from tests.ports import free_port
from tests.unit.http.servers import QUERY, SECRETS, RawServer, WebServer, drip, reply

LIMIT_S = 10
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def serve():
    made = []

    def start(answer=None, kind=RawServer, **more):
        made.append(kind(answer, **more))
        return made[-1]

    yield start
    for each in made:
        each.close()


def post(url, client=None, *, timeout_s=5.0, body_limit_bytes=100, **more):
    with gevent.Timeout(LIMIT_S, TimeoutError("the client kept to no deadline")):
        client = client or HttpClient(1)
        return client.post(url, b"{}", {"X-A": "b"}, timeout_s=timeout_s, body_limit_bytes=body_limit_bytes, **more)


def failure(*args, **more) -> HttpError:
    with pytest.raises(HttpError) as raised:
        post(*args, **more)
    assert "hunter2" not in repr(raised.value)
    assert raised.value.__cause__ is None
    return raised.value


def receive(connection) -> bytes:
    """Read a whole request: data that is not read when a socket is closed would become a reset."""
    data = b""
    while not data.endswith(b"\r\n\r\n{}"):
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    return data


def answering(*answers: bytes):
    """Return what a `RawServer` does: send these bytes after each request, and close."""

    def act(connection):
        for data in answers:
            if not receive(connection):
                return
            connection.sendall(data)

    return act


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# Requests and responses -------------------------------------------------------------------------------------------------


def test_a_request_has_its_headers_and_the_response_comes_back(serve):
    server = serve(lambda handler: reply(handler, 201, b"fine", X_Y="z"), WebServer)
    response = post(server.url)
    assert (response.status, response.body, response.defect) == (201, b"fine", "")
    assert response.headers["x-y"] == "z"
    assert response.cpu_s > 0
    ((path, headers, body),) = server.got
    assert (path, body) == (f"/hook{QUERY}", b"{}")
    assert headers["X-A"] == "b"
    assert headers["Content-Length"] == "2"
    assert headers["User-Agent"].startswith("rtmpd/")
    assert headers["Authorization"].startswith("Basic ")
    assert headers["Accept-Encoding"] == "identity"


def test_headers_of_one_request_are_not_those_of_the_next(serve):
    server = serve(kind=WebServer)
    client = HttpClient(1)
    client.post(server.url, b"first", {"X-First": "1"}, timeout_s=5, body_limit_bytes=10)
    client.post(server.url, b"2", {"X-Second": "2"}, timeout_s=5, body_limit_bytes=10)
    assert [headers["X-First"] for _, headers, _ in server.got] == ["1", None]
    assert [body for _, _, body in server.got] == [b"first", b"2"]


def test_nothing_is_decompressed(serve):
    server = serve(lambda handler: reply(handler, body=b"\x1f\x8bnot gzip", Content_Encoding="gzip"), WebServer)
    assert post(server.url).body == b"\x1f\x8bnot gzip"


def test_nothing_is_taken_from_the_environment(serve, monkeypatch, tmp_path):
    server = serve(kind=WebServer)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert post(server.url.replace(SECRETS, "")).status == 200
    assert server.got[0][1]["Authorization"] is None


@pytest.mark.parametrize(
    "url", ["http://a b/", "http://[::1/", f"http://{'x' * 70}.invalid/", "ftp://host/", "http://host:99999/", "nonsense"]
)
def test_a_url_that_can_not_be_used_is_a_permanent_failure(url):
    error = failure(url)
    assert str(error) == "the URL can't be used"
    assert error.permanent


def test_a_redirect_is_refused_without_reading_its_body(serve):
    sent = []

    def answer(connection):
        receive(connection)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 1073741824\r\n\r\n")
        with contextlib.suppress(OSError):
            while sum(sent) < 1 << 30:
                connection.sendall(bytes(1 << 20))
                sent.append(1 << 20)

    response = post(serve(answer).url)
    assert (response.status, response.body, response.defect) == (302, b"", "")
    gevent.sleep(0.2)
    assert sum(sent) < 64 << 20


def test_a_continue_comes_before_the_response(serve):
    assert post(serve(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)).url).body == b"ok"


# Bounds -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "defect"), [(99, ""), (100, ""), (101, "is longer than 100 bytes"), (1 << 20, None)])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_body_is_bounded(serve, size, defect, framing):
    body = b"x" * size
    head, data = {
        "length": (f"Content-Length: {size}", body),
        "chunked": ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)),
        "close": ("Connection: close", body),
    }[framing]
    response = post(serve(answering(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + data)).url)
    assert response.body == body[:100]
    assert response.defect == ("is longer than 100 bytes" if defect is None else defect)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 " + b"O" * HEAD_LIMIT_BYTES,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * HEAD_LIMIT_BYTES,
        b"HTTP/1.1 200 OK\r\n" + b"X: yyyyyyyyy\r\n" * (HEAD_LIMIT_BYTES // 13),
        b"HTTP/1.1 200 OK\r\n" + (b"X: " + b"y" * 600 + b"\r\n") * 60,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 2000,
    ],
    ids=["status", "one header", "short headers", "long headers", "continues"],
)
def test_a_head_is_bounded(serve, head):
    assert str(failure(serve(answering(head + OK)).url)) in (
        f"the head of the response is longer than {HEAD_LIMIT_BYTES} bytes",
        # More than 100 headers.
        "the response is not HTTP",
    )


@pytest.mark.parametrize("size", range(0, 37, 4))
def test_a_head_that_breaks_off_is_a_failure(serve, size):
    data = OK[:size]
    assert str(failure(serve(answering(data)).url)) in (
        "the server closed the connection without a response",
        "the response is not HTTP",
        "the response broke off within its head",
    )


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok",
    ],
    ids=["length", "chunk", "no chunk"],
)
def test_a_body_that_breaks_off_is_a_defect(serve, data):
    response = post(serve(answering(data)).url)
    assert (response.status, response.defect) == (200, BROKE_OFF)


# The deadline, in each stage --------------------------------------------------------------------------------------------


def check_late(error: HttpError, began: float, stage: str) -> None:
    assert str(error) == f"timed out after 0.4 s {stage}"
    assert error.timed_out
    assert not error.permanent
    assert 0.35 < time.monotonic() - began < 1.5


def test_the_deadline_holds_while_waiting_for_a_thread(serve):
    server = serve(lambda connection: receive(connection) and connection.recv(1))
    client = HttpClient(1)
    first = gevent.spawn(failure, server.url, client, timeout_s=2)
    gevent.sleep(0.1)
    began = time.monotonic()
    check_late(failure(server.url, client, timeout_s=0.4), began, "while waiting for a free thread")
    assert first.get(timeout=5).timed_out


def test_the_deadline_holds_while_looking_up_a_name():
    over = threading.Event()
    client = HttpClient(1, Resolver(look_up=lambda *_: over.wait(5) and []))
    began = time.monotonic()
    check_late(failure("http://host.invalid/", client, timeout_s=0.4), began, "while looking up the host name")
    over.set()


def test_a_name_that_hangs_delays_no_request_to_another_and_its_last_address_is_used(serve):
    over = threading.Event()
    hangs = set()

    def look_up(host, port):
        if host in hangs:
            over.wait(20)
        return [("127.0.0.1", port)]

    server = serve(lambda connection: receive(connection) and connection.sendall(OK))
    port = server.server.server_address[1]
    url = f"http://hang.invalid:{port}/"
    client = HttpClient(1, Resolver(look_up=look_up))
    assert post(url, client).status == 200
    hangs |= {"hang.invalid", "never.invalid"}
    waiting = [gevent.spawn(failure, "http://never.invalid/", client, timeout_s=5) for _ in range(20)]
    gevent.sleep(0)
    assert post(f"http://good.invalid:{port}/", client).status == 200
    assert not any(each.ready() for each in waiting)
    assert post(url, client, timeout_s=2).status == 200
    over.set()
    gevent.joinall(waiting)


@pytest.fixture
def deaf():
    """The port of a listener whose queue is full: the kernel answers no SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            waiting.append(sock)
        yield listener.getsockname()[1]
        for sock in waiting:
            sock.close()


def test_the_deadline_holds_while_connecting(deaf):
    client = HttpClient(1)
    began = time.monotonic()
    check_late(failure(f"http://{SECRETS}127.0.0.1:{deaf}/", client, timeout_s=0.4), began, "while connecting")


def test_a_kill_ends_a_connection_attempt(deaf):
    client = HttpClient(1)
    greenlet = gevent.spawn(post, f"http://127.0.0.1:{deaf}/", client, timeout_s=60)
    gevent.sleep(0.2)
    greenlet.kill()
    # Its thread is free, long before the attempt would have ended.
    assert str(failure(f"http://127.0.0.1:{free_port()}/", client, timeout_s=2)) == "Connection refused"


def test_an_address_that_does_not_answer_is_not_the_last(serve, deaf, monkeypatch):
    server = serve(kind=WebServer)
    monkeypatch.setattr(module, "_CONNECT_LIMIT_S", 0.2)
    client = HttpClient(1, Resolver(look_up=lambda *_: [("127.0.0.1", port) for port in (deaf, server.server.server_port)]))
    assert post("http://two.invalid/", client).status == 200


def test_an_attempt_that_is_cut_says_after_what_time(deaf, monkeypatch):
    monkeypatch.setattr(module, "_CONNECT_LIMIT_S", 0.2)
    assert str(failure(f"http://127.0.0.1:{deaf}/", timeout_s=60)) == "timed out after 0.2 s while connecting"


def test_the_deadline_holds_in_a_tls_handshake(serve):
    server = serve(drip(bytes.fromhex("1603034000") + bytes(1000)))
    began = time.monotonic()
    check_late(failure(server.url.replace("http:", "https:"), timeout_s=0.4), began, "in the TLS handshake")


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 O" + b"K" * 1000, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100])
def test_the_deadline_holds_in_a_head(serve, data):
    server = serve(drip(data))
    began = time.monotonic()
    check_late(failure(server.url, timeout_s=0.4), began, "while waiting for the response")


@pytest.mark.parametrize("header", ["Content-Length: 1000", "Connection: close", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_end_in_time_is_a_defect(serve, header):
    def answer(connection):
        receive(connection)
        connection.sendall(f"HTTP/1.1 403 No\r\n{header}\r\n\r\n".encode())
        drip(b"5\r\nhello\r\n" * 50)(connection)

    began = time.monotonic()
    response = post(serve(answer).url, timeout_s=0.4)
    assert (response.status, response.defect) == (403, "did not end within 0.4 s")
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx"])
def test_a_kill_ends_an_exchange_in_any_stage_and_frees_its_thread(serve, begin, secure, authority):
    reached, ended = threading.Event(), threading.Event()

    def answer(handler):
        handler.wfile.write(begin)
        reached.set()
        with contextlib.suppress(OSError):
            handler.rfile.read(1)
        ended.set()

    pair = authority.issue("127.0.0.1")
    server = serve(answer, WebServer, secure=(pair.cert, pair.key) if secure else None)
    client = HttpClient(1)
    before = descriptors()
    greenlet = gevent.spawn(post, server.url, client, timeout_s=60, ca=str(authority.path))
    with gevent.Timeout(LIMIT_S, TimeoutError()):
        while not reached.is_set():
            gevent.sleep(0.01)
        gevent.sleep(0.05)
        greenlet.kill()
        while not ended.is_set():
            gevent.sleep(0.01)
        other = serve(kind=WebServer)
        assert post(other.url.replace("https:", "http:"), client).status == 200
    other.close()
    assert descriptors() <= before + 8


# Connections that are kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
def test_a_connection_is_used_again(serve, secure, authority):
    pair = authority.issue("127.0.0.1")
    server = serve(lambda handler: reply(handler, 500, b"x"), WebServer, secure=(pair.cert, pair.key) if secure else None)
    client = HttpClient(2)
    for _ in range(5):
        assert post(server.url, client, ca=str(authority.path)).body == b"x"
    assert len(server.peers) == 1


class Stale:
    """A server that answers the first request of each connection, and does something else at the second."""

    def __init__(self, second):
        self.second = second
        self.requests = 0
        self.connections = 0

    def __call__(self, connection):
        self.connections += 1
        for number in range(2):
            if not receive(connection):
                return
            self.requests += 1
            if number:
                self.second(connection)
            else:
                connection.sendall(OK)


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced(serve):
    server = serve(answering(OK))
    client = HttpClient(1)
    for _ in range(3):
        assert post(server.url, client).body == b"ok"
        gevent.sleep(0.05)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("end", [lambda connection: connection.close(), reset], ids=["close", "reset"])
def test_a_kept_connection_that_ends_when_the_request_comes_is_no_failure(serve, end):
    stale = Stale(end)
    server = serve(stale)
    client = HttpClient(1)
    for _ in range(4):
        assert post(server.url, client).body == b"ok"
    assert stale.connections == 4
    assert stale.requests == 7


def test_a_kept_tls_connection_that_ends_when_the_request_comes_is_no_failure(serve, authority):
    seen = {}

    def answer(handler):
        seen[handler.client_address] = seen.get(handler.client_address, 0) + 1
        if seen[handler.client_address] == 2:
            handler.close_connection = True
        else:
            reply(handler)

    pair = authority.issue("127.0.0.1")
    server = serve(answer, WebServer, secure=(pair.cert, pair.key))
    client = HttpClient(1)
    for _ in range(4):
        assert post(server.url, client, ca=str(authority.path)).status == 200
    assert list(seen.values()) == [2, 2, 2, 1]


def test_a_request_is_sent_again_on_a_new_connection_and_only_once(serve):
    stale = Stale(lambda connection: connection.close())
    server = serve(stale)
    client = HttpClient(2)
    # Two connections are kept, and both are bad.
    both = [gevent.spawn(post, server.url, client) for _ in range(2)]
    gevent.joinall(both, raise_error=True)
    stale.requests = stale.connections = 0
    assert post(server.url, client).body == b"ok"
    assert (stale.requests, stale.connections) == (2, 1)


def test_a_new_connection_that_ends_without_a_response_is_a_failure(serve):
    got = []
    server = serve(lambda connection: got.append(receive(connection)))
    assert str(failure(server.url)) == "the server closed the connection without a response"
    assert len(got) == 1


def test_a_request_whose_response_has_begun_is_not_sent_again(serve):
    stale = Stale(lambda connection: (connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le"), connection.close()))
    server = serve(stale)
    client = HttpClient(1)
    assert post(server.url, client).body == b"ok"
    assert str(failure(server.url, client)) == "the response broke off within its head"
    assert stale.requests == 2


def test_a_request_that_timed_out_is_not_sent_again(serve):
    stale = Stale(lambda connection: connection.recv(1))
    server = serve(stale)
    client = HttpClient(1)
    assert post(server.url, client).body == b"ok"
    assert failure(server.url, client, timeout_s=0.4).timed_out
    gevent.sleep(0.1)
    assert stale.requests == 2


@pytest.mark.parametrize("secure", [False, True])
def test_a_connection_that_was_idle_for_long_is_replaced(serve, monkeypatch, secure, authority):
    pair = authority.issue("127.0.0.1")
    server = serve(None, WebServer, secure=(pair.cert, pair.key) if secure else None)
    client = HttpClient(1)
    monkeypatch.setattr(module, "_IDLE_LIMIT_S", 0.1)
    for _ in range(2):
        assert post(server.url, client, ca=str(authority.path)).status == 200
    assert len(server.peers) == 1
    gevent.sleep(0.2)
    assert post(server.url, client, ca=str(authority.path)).status == 200
    assert len(server.peers) == 2


def test_a_connection_whose_body_was_not_read_is_not_kept(serve):
    server = serve(lambda handler: reply(handler, body=b"x" * 1000), WebServer)
    client = HttpClient(1)
    for _ in range(2):
        assert post(server.url, client).defect == "is longer than 100 bytes"
    assert len(server.peers) == 2


def test_exchanges_leave_no_descriptors(serve):
    server = serve(answering(OK))
    client = HttpClient(1)
    post(server.url, client)
    before = descriptors()
    for _ in range(10):
        post(server.url, client)
    failure(f"http://127.0.0.1:{free_port()}/", client)
    for _ in range(100):
        if descriptors() <= before + 1:
            break
        gevent.sleep(0.02)
    assert descriptors() <= before + 1


# TLS --------------------------------------------------------------------------------------------------------------------


def test_certificates_are_verified_by_the_authority_that_is_given(serve, authority):
    pair = authority.issue("127.0.0.1")
    server = serve(None, WebServer, secure=(pair.cert, pair.key))
    assert post(server.url, ca=str(authority.path)).status == 200
    assert str(failure(server.url)).startswith("the server's certificate can't be verified: ")
    other = authority.issue("localhost")
    server = serve(None, WebServer, secure=(other.cert, other.key))
    assert "127.0.0.1" in str(failure(server.url, ca=str(authority.path)))


def test_a_server_without_tls_is_a_failure_of_tls(serve):
    assert str(failure(serve(None, WebServer).url.replace("http:", "https:"))).startswith("TLS failed: ")


def test_the_event_loop_is_not_held_up(serve):
    server = serve(lambda handler: (threading.Event().wait(0.3), reply(handler)), WebServer)
    ticks = []
    ticker = gevent.spawn(lambda: [(ticks.append(1), gevent.sleep(0.005)) for _ in range(1000)])
    post(server.url)
    ticker.kill()
    assert len(ticks) > 30


def test_threads_can_be_added(serve):
    server = serve(lambda handler: (threading.Event().wait(0.2), reply(handler)), WebServer)
    client = HttpClient(1)
    client.resize(4)
    began = time.monotonic()
    gevent.joinall([gevent.spawn(post, server.url, client) for _ in range(4)], raise_error=True)
    assert time.monotonic() - began < 0.6


def test_a_missing_authority_is_a_failure_without_a_url(tmp_path: Path):
    assert "hunter2" not in str(failure(f"https://{SECRETS}127.0.0.1:1/", ca=str(tmp_path / "none")))


def test_many_exchanges_that_are_killed_leave_no_threads(serve):
    server = serve(lambda connection: receive(connection) and connection.recv(1))
    client = HttpClient(4)
    before = threading.active_count()
    for _ in range(5):
        greenlets = [gevent.spawn(post, server.url, client, timeout_s=60) for _ in range(4)]
        gevent.sleep(0.05)
        gevent.killall(greenlets)
    assert threading.active_count() <= before + 24
    other = serve(kind=WebServer)
    assert all(post(other.url, client).status == 200 for _ in range(4))
