"""HTTP/2 on the listener with TLS: concurrent requests, flow control, and clients that are slow, odd or hostile."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter

import gevent
import pytest
from gevent.event import Event
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from rtmpd.config.loader import load_text
from rtmpd.config.model import ListenAddress
from rtmpd.errors import HttpError, TransportClosed
from rtmpd.http import http2, limits
from rtmpd.http import places as places_module
from rtmpd.http import server as module
from rtmpd.http.messages import Response
from rtmpd.http.routes import Route
from rtmpd.http.server import HttpServer
from rtmpd.net.tls import ServerTls, Tls
from rtmpd.phases import CloseKind, CloseReason
from tests.unit.http.http2_client import LIMIT_S, Http2Client, tls_socket

LOOPBACK = ListenAddress("127.0.0.1", 0)
SHORT_S = 0.3


def hello(request, exchange):
    return Response(body=b"hello\n")


def broken(request, exchange):
    raise KeyError("a bug")


def echo(request, exchange):
    return Response(body=request.body + b"|" + request.path.encode())


def large(request, exchange):
    return Response(body=b"begin", pieces=[bytes(300_000), bytes(700_000)])


def refused(request, exchange):
    exchange.outcome = {"wanted": "play"}
    raise HttpError(401, "No.", closes=True)


@pytest.fixture(scope="module")
def tls(authority):
    return Tls(ServerTls(load_text(f"[tls]\n{authority.issue('localhost').ini}", "test").tls))


@pytest.fixture
def counted():
    return Counter()


class OpenGate:
    """Lets every connection in, and keeps those that have ended."""

    waiting_limit = 64

    def __init__(self):
        self.open, self.ended, self.left = [], [], Event()

    def admit_http(self, transport):
        return 7, b""

    def enter_http(self, connection):
        self.open.append(connection)

    def leave_http(self, connection):
        self.ended.append(connection)
        self.left.set()

    def first_ended(self):
        assert self.left.wait(LIMIT_S)
        return self.ended[0]


@pytest.fixture
def gate():
    return OpenGate()


@pytest.fixture
def serve(counted, monkeypatch, tls, gate):
    """Return a function that serves routes by HTTPS."""
    monkeypatch.setattr(limits, "LINGER_S", SHORT_S / 3)
    made = []

    def start(*routes):
        table = routes or (Route("/hello", hello), Route("/large", large), Route("/broken", broken), Route("/no", refused))
        server = HttpServer(
            "pages", (), table, lambda name: counted.update([name]), tls_addresses=(LOOPBACK,), tls=tls, gate=gate
        )
        server.start()
        made.append(server)
        return server

    yield start
    for server in made:
        server.stop(1)


@pytest.fixture
def hurry(monkeypatch):
    """Return a function that makes limits short."""

    def make_short(*names):
        for name in names:
            monkeypatch.setattr(limits, name, SHORT_S)

    return make_short


@pytest.fixture
def open_socket(authority):
    with contextlib.ExitStack() as stack:

        def make(server, protocols=("h2",)):
            return stack.enter_context(tls_socket(authority, int(server.bound[0].rpartition(":")[2]), protocols))

        yield make


@pytest.fixture
def connect(open_socket):
    def make(server, settings=None):
        return Http2Client(open_socket(server), settings)

    return make


# Requests ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"), [(("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), (("x",), None), ((), None)]
)
def test_the_client_chooses_the_version(serve, open_socket, offered, chosen):
    sock = open_socket(serve(), offered)
    assert sock.selected_alpn_protocol() == chosen
    if chosen != "h2":
        sock.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_requests_are_answered_as_by_http_1(serve, connect, counted):
    client = connect(serve())
    answer = client.get("/hello?a=b")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"hello\n", "6")
    assert answer.headers["server"] == "rtmpd"
    assert answer.headers["date"].endswith(" GMT")
    assert not answer.headers.keys() & {"connection", "transfer-encoding"}
    answer = client.get("/hello", "HEAD")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "6")
    assert (client.get("/x").status, client.get("/%2e%2e/hello").status) == (404, 400)
    answer = client.get("/hello", "POST")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert client.get("/hello", "OPTIONS").status == 204
    answer = client.get("/x", "GET", ("accept", "application/json"))
    assert answer.body.startswith(b'{"status": 404')
    assert counted == {"http_bad_requests": 1}


def test_a_body_in_pieces_is_sent_whole(serve, connect):
    client = connect(serve())
    answer = client.get("/large")
    assert answer.headers["content-length"] == "1000005"
    assert answer.body == b"begin" + bytes(1_000_000)


def test_a_route_that_fails_is_an_internal_error_and_affects_no_other_request(serve, connect, counted, caplog):
    client = connect(serve())
    streams = [client.ask("/hello"), client.ask("/broken"), client.ask("/hello")]
    assert [client.answer(stream).status for stream in streams] == [200, 500, 200]
    assert counted == {"internal_errors": 1}
    assert "KeyError: 'a bug'" in caplog.text


def test_a_header_with_a_line_break_is_an_internal_error(serve, connect, counted):
    client = connect(serve(Route("/a", lambda request, exchange: Response(headers=[("Location", "a\r\nb: c")]))))
    assert client.get("/a").reset == ErrorCodes.CANCEL
    assert counted == {"internal_errors": 1}


def test_a_body_is_taken_by_routes_that_want_it(serve, connect):
    client = connect(serve(Route("/{name}", echo, ("POST",), takes_body=True), Route("/a/b", hello)))
    stream = client.ask("/x", "POST", end=False)
    for _ in range(4):
        client.send(stream, bytes(16384), end=False)
    client.send(stream, b"")
    assert client.answer(stream).body == bytes(65536) + b"|/x"
    stream = client.ask("/y", "POST", ("expect", "100-continue"), end=False)
    client.until(lambda: client.informed == ["100"])
    client.send(stream, b"one")
    assert client.answer(stream).body == b"one|/y"


def test_a_body_that_nothing_wants_is_not_waited_for(serve, connect):
    client = connect(serve())
    stream = client.ask("/hello", "POST", end=False)
    answer = client.answer(stream)
    assert answer.status == 405
    client.until(lambda: answer.reset == ErrorCodes.NO_ERROR)
    assert client.get("/hello").status == 200


def test_a_body_that_is_too_long_or_too_late_is_refused(serve, connect, counted, hurry):
    hurry("REQUEST_S")
    client = connect(serve(Route("/a", echo, ("POST",), takes_body=True)))
    late, long = client.ask("/a", "POST", end=False), client.ask("/a", "POST", end=False)
    for _ in range(4):
        client.send(long, bytes(16384), end=False)
    client.send(long, b"x", end=False)
    assert client.answer(long).status == 413
    assert client.answer(late).status == 408
    assert counted == {"http_bad_requests": 1, "http_deadlines": 1}
    assert client.get("/a").status == 405


def test_requests_that_are_held_do_not_block_others(serve, connect):
    go, inside = Event(), Counter()

    def held(request, exchange):
        inside.update([request.path])
        go.wait(LIMIT_S)
        return Response(body=b"held")

    client = connect(serve(Route("/held/{number}", held, long=True), Route("/hello", hello)))
    streams = [client.ask(f"/held/{number}") for number in range(10)]
    assert client.get("/hello").body == b"hello\n"
    assert len(inside) == 10
    # The limit is not that of the library, which would end the connection.
    streams += [client.ask(f"/held/{number}") for number in range(10, http2.STREAMS_LIMIT)]
    client.forget_limit()
    assert client.get("/hello").reset == ErrorCodes.REFUSED_STREAM
    go.set()
    assert [client.answer(stream).body for stream in streams] == [b"held"] * http2.STREAMS_LIMIT
    assert client.get("/hello").body == b"hello\n"


def test_a_request_that_is_cancelled_ends_its_handler(serve, connect, monkeypatch):
    monkeypatch.setattr(module, "RESPONSES", 1)
    ended = []

    def held(request, exchange):
        try:
            gevent.sleep(LIMIT_S)
        finally:
            ended.append(request.path)

    client = connect(serve(Route("/held", held), Route("/hello", hello)))
    for _ in range(3):
        stream = client.ask("/held")
        # It waits for the only place.
        waiting = client.ask("/hello")
        client.h2.reset_stream(stream)
        client.flush()
        assert client.answer(waiting).body == b"hello\n"
    assert set(ended) <= {"/held"}
    assert len(ended) <= 3


def test_the_end_of_the_connection_ends_its_handlers(serve, connect, gate):
    inside, ended = Event(), Event()

    def held(request, exchange):
        inside.set()
        try:
            gevent.sleep(LIMIT_S)
        finally:
            ended.set()

    client = connect(serve(Route("/held", held)))
    client.ask("/held")
    assert inside.wait(LIMIT_S)
    client.sock.close()
    assert ended.wait(LIMIT_S)


def test_a_refused_play_ends_its_stream_and_many_end_the_connection(serve, connect, gate):
    client = connect(serve())
    for _ in range(http2.REFUSALS_LIMIT - 1):
        refusal = client.get("/no", "GET", ("user-agent", "a browser"))
        assert (refusal.status, refusal.reset, client.goaway) == (401, None, None)
    assert client.get("/hello").body == b"hello\n"
    assert client.get("/no", "GET", ("user-agent", "a browser")).status == 401
    client.until(lambda: client.goaway == ErrorCodes.NO_ERROR)
    client.until_closed()
    ended = gate.first_ended()
    assert (dict(ended.outcome), ended.agent) == ({"served": False, "wanted": "play"}, "a browser")
    assert ended.bytes_out > 100


def test_refusals_whose_responses_are_cancelled_count(serve, connect):
    client = connect(serve(), {SettingCodes.INITIAL_WINDOW_SIZE: 0})
    for _ in range(http2.REFUSALS_LIMIT):
        stream = client.ask("/no")
        client.until(lambda stream=stream: client.answers[stream].status == 401)
        client.h2.reset_stream(stream)
        client.flush()
    client.until(lambda: client.goaway == ErrorCodes.NO_ERROR)


@pytest.mark.parametrize(
    ("then", "expected"),
    [("/hello", {"served": False, "wanted": "play"}), ("/play", {"served": True, "wanted": "play"})],
    ids=["a request for no stream", "a play"],
)
def test_events_report_a_refusal_unless_a_play_follows(serve, connect, gate, then, expected):
    def play(request, exchange):
        exchange.outcome = {"wanted": "play", "served": True}
        exchange.begin_stream(request, [], "video/mp4")
        with contextlib.suppress(TransportClosed):
            exchange.transport.recv_while(lambda data: None)

    client = connect(serve(Route("/no", refused), Route("/hello", hello), Route("/play", play, long=True)))
    assert client.get("/no").status == 401
    asked = client.ask(then)
    client.until(lambda: client.answers[asked].status == 200)
    if then == "/hello":
        client.answer(asked)
    client.sock.close()
    assert dict(gate.first_ended().outcome) == expected


# Bodies that a handler sends itself -------------------------------------------------------------------------------------


class Stream:
    """A route whose handler sends what a test says, until the client leaves."""

    def __init__(self):
        self.exchange = None
        self.begun, self.ended = Event(), Event()
        self.why = None

    def __call__(self, request, exchange):
        exchange.begin_stream(request, [("Cache-Control", "no-store")], "video/mp4")
        self.exchange = exchange
        self.begun.set()
        try:
            exchange.transport.recv_while(lambda data: None)
        except TransportClosed as error:
            self.why = str(exchange.transport.close_reason or error)
            self.ended.set()

    def send(self, data):
        self.exchange.transport.send_all(data, LIMIT_S)


@pytest.fixture
def live():
    return Stream()


def test_a_body_without_an_end_shares_the_connection(serve, connect, live):
    client = connect(serve(Route("/live", live, long=True), Route("/hello", hello)))
    stream = client.ask("/live")
    answer = client.answers[stream]
    client.until(lambda: answer.status)
    assert (answer.status, answer.headers["content-type"], answer.headers["cache-control"]) == (200, "video/mp4", "no-store")
    live.send(b"one")
    client.until(lambda: answer.body == b"one")
    assert client.get("/hello").status == 200
    sending = gevent.spawn(live.send, b"two" * 100_000)
    client.until(sending.ready)
    live.exchange.close(CloseReason(CloseKind.COMMAND, "the stream has ended"))
    assert client.answer(stream).body == b"one" + b"two" * 100_000
    assert answer.reset is None
    assert live.ended.wait(LIMIT_S)
    assert live.why == "the stream has ended"
    assert client.get("/hello").status == 200


def test_the_bodies_of_one_connection_are_limited(serve, connect, live, monkeypatch):
    monkeypatch.setattr(http2, "BODIES_LIMIT", 2)
    client = connect(serve(Route("/live", live, long=True)))
    streams = [client.ask("/live") for _ in range(2)]
    client.until(lambda: all(client.answers[stream].status == 200 for stream in streams))
    assert client.get("/live").status == 503
    client.h2.reset_stream(streams[0])
    client.flush()
    assert live.ended.wait(LIMIT_S)
    status = 503
    while status == 503:
        stream = client.ask("/live")
        client.until(lambda stream=stream: client.answers[stream].status)
        status = client.answers[stream].status
    assert status == 200


def test_a_viewer_that_cancels_is_noticed(serve, connect, live):
    client = connect(serve(Route("/live", live, long=True), Route("/hello", hello)))
    stream = client.ask("/live")
    client.until(lambda: client.answers[stream].status)
    client.h2.reset_stream(stream)
    client.flush()
    assert client.get("/hello").status == 200
    assert live.ended.wait(LIMIT_S)
    assert live.why == "the client has cancelled the request"


def test_a_viewer_that_reads_nothing_fills_its_own_buffers_only(serve, connect, live):
    client = connect(serve(Route("/live", live, long=True), Route("/hello", hello)))
    client.acknowledges = False
    stream = client.ask("/live")
    assert live.begun.wait(LIMIT_S)
    taken = 0
    client.sock.settimeout(0.02)
    with contextlib.suppress(BlockingIOError):
        while taken < 10 << 20:
            taken += live.exchange.transport.try_send(bytes(10_000))
            with contextlib.suppress(TimeoutError):
                client.read()
    assert taken < 500_000
    client.sock.settimeout(LIMIT_S)
    # The window of the connection is left to other requests: 65535 bytes of each were allowed.
    client.h2.increment_flow_control_window(100_000)
    assert client.get("/hello").status == 200
    live.exchange.close(CloseReason(CloseKind.STALLED, "it took nothing for 1 s"))
    client.h2.increment_flow_control_window(1 << 20, stream)
    client.h2.increment_flow_control_window(1 << 20)
    client.flush()
    assert len(client.answer(stream).body) == taken


# Flow control -----------------------------------------------------------------------------------------------------------


def test_a_window_of_one_byte_is_kept(serve, connect):
    client = connect(serve(), {SettingCodes.INITIAL_WINDOW_SIZE: 1})
    client.acknowledges = False
    stream = client.ask("/hello")
    for size in range(1, 6):
        client.until(lambda size=size: len(client.answers[stream].body) == size)
        client.h2.increment_flow_control_window(1, stream)
        client.flush()
    assert client.answer(stream).body == b"hello\n"


def test_a_client_that_opens_no_window_is_given_up_and_delays_no_other(serve, connect, monkeypatch, hurry):
    hurry("WRITE_S")
    monkeypatch.setattr(module, "RESPONSES", 1)
    client = connect(serve(), {SettingCodes.INITIAL_WINDOW_SIZE: 0})
    stuck = client.ask("/hello")
    other = client.ask("/hello")
    assert client.answer(stuck).reset == ErrorCodes.CANCEL
    client.h2.increment_flow_control_window(10, other)
    client.flush()
    assert client.answer(other).body == b"hello\n"


def test_a_client_that_opens_no_window_takes_few_places(serve, connect, monkeypatch, counted):
    monkeypatch.setattr(module, "RESPONSES", http2.PLACES_LIMIT + 1)
    server = serve()
    greedy = connect(server, {SettingCodes.INITIAL_WINDOW_SIZE: 0})
    stuck = [greedy.ask("/hello") for _ in range(http2.STREAMS_LIMIT)]
    greedy.until(lambda: sum(greedy.answers[each].status > 0 for each in stuck) == http2.PLACES_LIMIT)
    assert connect(server).get("/hello").body == b"hello\n"
    # No other client had to wait until it has given way.
    assert not counted
    for each in stuck:
        greedy.h2.increment_flow_control_window(10, each)
    greedy.flush()
    assert {greedy.answer(each).body for each in stuck} == {b"hello\n"}


def test_a_slow_client_gives_its_place_to_requests_that_wait(serve, connect, monkeypatch, counted):
    monkeypatch.setattr(module, "RESPONSES", 1)
    monkeypatch.setattr(places_module, "SLOW_S", 0.1)
    server = serve()
    slow = connect(server, {SettingCodes.INITIAL_WINDOW_SIZE: 0})
    stuck = slow.ask("/hello")
    slow.until(lambda: slow.answers[stuck].status)
    assert connect(server).get("/hello").body == b"hello\n"
    assert slow.answer(stuck).reset == ErrorCodes.CANCEL
    assert counted == {"http_deadlines": 1}


def test_a_client_that_reads_nothing_is_disconnected(serve, connect, gate, hurry):
    hurry("WRITE_S")
    client = connect(serve(), {SettingCodes.INITIAL_WINDOW_SIZE: 1 << 30})
    client.h2.increment_flow_control_window(1 << 30)
    client.flush()
    for _ in range(20):
        client.ask("/large")
    held = 0
    with gevent.Timeout(LIMIT_S):
        while not gate.ended:
            held = max(held, gate.open[0].held_bytes())
            gevent.sleep(0.01)
    assert str(gate.first_ended().close_reason) == "sending took longer than 0.3 s"
    assert held < 400_000


# Odd and hostile clients ------------------------------------------------------------------------------------------------

BASE = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/hello")]


def test_a_malformed_request_is_refused_and_affects_no_other(serve, connect, counted, caplog):
    client = connect(serve())
    for fields in ([*BASE, ("Upper", "a")], [*BASE[:3]], [*BASE, ("connection", "close")], [*BASE, ("a", "b\r\nc: d")]):
        answer = client.answer(client.send_fields(fields))
        assert answer.status == 400
        client.until(lambda answer=answer: answer.reset == ErrorCodes.PROTOCOL_ERROR)
    assert client.get("/hello").body == b"hello\n"
    assert counted == {"http_bad_requests": 4}
    assert caplog.text.count("bad request: ") == 4


def test_headers_that_are_too_long_are_refused(serve, connect, gate):
    client = connect(serve())
    assert client.get("/hello", "GET", *((f"a{number}", "b" * 1000) for number in range(20))).status == 431
    assert client.get("/hello", "GET", *((f"a{number}", "b") for number in range(101))).status == 431
    assert client.get("/" + "a" * 9000).status == 414
    # What is repeated takes hardly any bytes.
    client.ask("/hello", "GET", ("a", "b" * 4000), *[("a", "b" * 4000)] * 30)
    client.until_closed()
    assert client.goaway == ErrorCodes.ENHANCE_YOUR_CALM


def frames(frame, number=3000):
    return frame.serialize() * number


def rapid_reset(client):
    # Into a buffer: the server ends the connection in the middle of it.
    data = b""
    for _ in range(300):
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, BASE, end_stream=True)
        client.h2.reset_stream(stream)
        data += client.h2.data_to_send()
    return data


def continuations(client):
    head = HeadersFrame(1, data=client.h2.encoder.encode(BASE))
    return head.serialize() + frames(ContinuationFrame(1, data=b""), 2000)


def long_block(client):
    head = HeadersFrame(1, data=client.h2.encoder.encode(BASE))
    return head.serialize() + frames(ContinuationFrame(1, data=bytes(16000)), 3)


def empty_data(client):
    stream = client.ask("/post", "POST", end=False)
    return frames(DataFrame(stream))


FLOODS = {
    "pings": lambda client: frames(PingFrame(0)),
    "settings": lambda client: frames(SettingsFrame(0)),
    "many settings": lambda client: SettingsFrame(0, settings=dict.fromkeys(range(100, 200), 1)).serialize(),
    "priorities": lambda client: frames(PriorityFrame(1, depends_on=3)),
    "windows": lambda client: frames(WindowUpdateFrame(0, window_increment=1)),
    "resets": rapid_reset,
    "empty data": empty_data,
    "continuations": continuations,
    "a long header block": long_block,
    "unknown frames": lambda client: b"\0\0\0\x77\0\0\0\0\0" * 3000,
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_ends_the_connection(serve, connect, counted, caplog, kind):
    server = serve(Route("/hello", hello), Route("/post", echo, ("POST",), takes_body=True))
    client = connect(server)
    with contextlib.suppress(OSError):
        client.sock.sendall(FLOODS[kind](client))
    client.until_closed()
    assert client.goaway == ErrorCodes.ENHANCE_YOUR_CALM
    assert counted == {"http_bad_requests": 1}
    assert caplog.text.count("bad request: ") == 1
    assert connect(server).get("/hello").status == 200


def overflow(client):
    return WindowUpdateFrame(0, window_increment=(1 << 31) - 1).serialize()


def own_parent(client):
    return PriorityFrame(1, depends_on=1).serialize()


def even_stream(client):
    return HeadersFrame(2, data=client.h2.encoder.encode(BASE), flags=["END_HEADERS", "END_STREAM"]).serialize()


def data_without_a_stream(client):
    return DataFrame(7, data=b"a").serialize()


def bad_compression(client):
    return HeadersFrame(1, data=b"\xff\xff\xff", flags=["END_HEADERS", "END_STREAM"]).serialize()


@pytest.mark.parametrize(
    "data",
    [
        overflow,
        own_parent,
        even_stream,
        data_without_a_stream,
        bad_compression,
        lambda client: b"\xff\xff\xff" + bytes(6),
        lambda client: SettingsFrame(0, settings={SettingCodes.INITIAL_WINDOW_SIZE: 1 << 31}).serialize(),
        lambda client: HeadersFrame(1, data=b"").serialize() + PingFrame(0).serialize(),
        lambda client: RstStreamFrame(9).serialize(),
    ],
)
def test_a_violation_ends_the_connection(serve, connect, counted, gate, data):
    client = connect(serve())
    client.sock.sendall(data(client))
    client.until_closed()
    assert client.goaway not in (None, ErrorCodes.NO_ERROR)
    assert counted == {"http_bad_requests": 1}
    assert gate.first_ended().close_reason.kind is CloseKind.PROTOCOL


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/1.1\r\n\r\n", b"\0"])
def test_another_protocol_is_refused(serve, open_socket, counted, begin):
    sock = open_socket(serve())
    sock.sendall(begin)
    data = b""
    while piece := sock.recv(65536):
        data += piece
    assert data[-17:-8] == b"\0\0\x08\x07\0\0\0\0\0"
    assert counted == {"http_bad_requests": 1}


@pytest.mark.parametrize("begun", [b"", b"PRI * ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"])
def test_a_client_that_begins_and_does_not_go_on_is_disconnected(serve, open_socket, counted, begun, hurry):
    hurry("REQUEST_S")
    sock = open_socket(serve())
    sock.sendall(begun)
    with gevent.Timeout(LIMIT_S / 2):
        while sock.recv(65536):
            pass
    assert counted == ({"http_deadlines": 1} if begun else {})


def test_a_header_block_that_drips_does_not_get_more_time(serve, connect, counted, hurry):
    hurry("REQUEST_S")
    client = connect(serve())
    assert client.get("/hello").status == 200
    client.sock.sendall(HeadersFrame(3, data=client.h2.encoder.encode(BASE)).serialize())

    def drip():
        with contextlib.suppress(OSError):
            while True:
                client.sock.sendall(ContinuationFrame(3, data=b"").serialize())
                gevent.sleep(0.02)

    dripping = gevent.spawn(drip)
    with gevent.Timeout(LIMIT_S / 2):
        client.until_closed()
    dripping.kill()
    assert counted == {"http_deadlines": 1}


def test_pings_do_not_keep_a_connection(serve, connect, hurry):
    hurry("IDLE_S")
    client = connect(serve())
    assert client.get("/hello").status == 200

    def ping():
        with contextlib.suppress(OSError):
            while True:
                client.sock.sendall(PingFrame(0).serialize())
                gevent.sleep(0.05)

    pinging = gevent.spawn(ping)
    with gevent.Timeout(LIMIT_S / 2):
        client.until_closed()
    pinging.kill()
    assert client.goaway == ErrorCodes.NO_ERROR


def test_what_may_be_secret_is_not_logged(serve, connect, caplog):
    with caplog.at_level(logging.DEBUG, "rtmpd"):
        client = connect(serve())
        assert client.get("/hello?token=secret", "GET", ("authorization", "secret")).status == 200
        assert client.get("/hello/secret%zz?token=secret", "GET", ("authorization", "secret\x01")).status == 400
        client.ask("/hello?token=secret", "POST", ("content-length", "secret"))
        client.until_closed()
    assert "GET '/hello': 200, 6 bytes" in caplog.text
    assert caplog.text.count("bad request: ") == 2
    assert "secret" not in caplog.text


# The end ----------------------------------------------------------------------------------------------------------------


def test_an_idle_connection_gives_way_and_says_so(serve, connect, gate):
    server = serve()
    client = connect(server)
    assert client.get("/hello").status == 200
    assert server.places.close_idle() is gate.open[0]
    client.until_closed()
    assert client.goaway == ErrorCodes.NO_ERROR


def test_a_stop_lets_responses_end(serve, connect, gate, live):
    server = serve(Route("/live", live, long=True))
    client = connect(server)
    stream = client.ask("/live")
    client.until(lambda: client.answers[stream].status)
    live.send(b"last")
    gate.open[0].close(CloseReason(CloseKind.SHUTDOWN, "the server is stopping"))
    client.until_closed()
    answer = client.answers[stream]
    assert (answer.body, answer.ended, client.goaway) == (b"last", True, ErrorCodes.NO_ERROR)
    assert live.ended.wait(LIMIT_S)
    assert str(gate.first_ended().close_reason) == live.why == "the server is stopping"


def test_a_stop_ends_requests_that_are_held(serve, connect):
    server = serve(Route("/held", lambda request, exchange: gevent.sleep(LIMIT_S), long=True))
    client = connect(server)
    client.ask("/held")
    client.read()
    with gevent.Timeout(LIMIT_S / 2):
        server.stop(0.1)
        client.until_closed()
    assert client.goaway == ErrorCodes.NO_ERROR


def test_after_many_requests_the_connection_ends_in_order(serve, connect, monkeypatch):
    monkeypatch.setattr(http2, "REQUESTS_LIMIT", 3)
    client = connect(serve())
    assert [client.get("/hello").status for _ in range(2)] == [200, 200]
    client.ask("/hello")
    client.until_closed()
    assert client.goaway == ErrorCodes.NO_ERROR
