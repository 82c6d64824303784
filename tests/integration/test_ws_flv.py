"""FLV over WebSocket, as a client library and raw sockets see it."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from rtmpd.media import flv
from tests.integration.test_http import INI, LIMIT_S, QUICK, feed, fetch, http_port, open_socket, read_head
from tests.integration.wire import AAC_HEADER, AUDIO, AVC_HEADER, VIDEO, gop, gops

HEADERS = [(VIDEO, 0, AVC_HEADER), (AUDIO, 0, AAC_HEADER)]
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@pytest.fixture
def port(shared):
    return http_port(shared)


@pytest.fixture
def watch(opened):
    """Return a function that connects a WebSocket."""

    def make(port, path, scheme="ws", **options):
        return opened.enter_context(connect(f"{scheme}://127.0.0.1:{port}{path}", open_timeout=LIMIT_S, **options))

    return make


def tag_of(message):
    assert isinstance(message, bytes)
    assert int.from_bytes(message[-4:], "big") == len(message) - 4
    return message[0], int.from_bytes(message[4:7], "big") | message[7] << 24, message[11:-4]


def until(client, item):
    """Read messages until a tag; return the tags. The first message of a client is the file header."""
    found = []
    while not found or found[-1] != item:
        found.append(tag_of(client.recv(LIMIT_S)))
    return found


def begin(client):
    first = client.recv(LIMIT_S)
    assert len(first) == flv.FILE_HEADER_SIZE
    assert first[:4] == b"FLV\1"
    return first[4]


def published(server, raw, name):
    publisher = raw(server).publish(name)
    feed(publisher, [*HEADERS, *gop(0)])
    publisher.sync()
    return publisher


def test_each_tag_is_a_message_and_all_viewers_get_the_same(shared, port, raw, watch, name):
    publisher = published(shared, raw, name)
    clients = [watch(port, f"/live/{name}.flv") for _ in range(3)]
    feed(publisher, [*gops(1, 10), *gop(11, size=70_000)])
    last = gop(11, size=70_000)[-1]
    assert [begin(each) for each in clients] == [5, 5, 5]
    found = [until(each, last) for each in clients]
    assert found[0] == found[1] == found[2]
    assert [item for item in found[0] if item[2] not in (AVC_HEADER, AAC_HEADER)] == [
        *gops(0, 10),
        *gop(11, size=70_000),
    ]


def test_pings_are_answered_between_messages(shared, port, raw, watch, name):
    publisher = published(shared, raw, name)
    client = watch(port, f"/live/{name}.flv")
    begin(client)
    for number in range(1, 20):
        answered = client.ping(f"{number}")
        feed(publisher, gops(number, number))
        until(client, gops(number, number)[-1])
        assert answered.wait(LIMIT_S)


def test_a_client_that_closes_gets_its_answer(server, raw, watch):
    running = server(INI)
    published(running, raw, "a")
    client = watch(http_port(running), "/live/a.flv")
    begin(client)
    client.close()
    assert client.protocol.close_rcvd.code == 1000
    running.wait_for_line(r"stopped playing live/a by ws: closed by the client; ")


def test_the_end_of_the_stream_closes_behind_the_last_message(server, raw, watch):
    running = server(INI)
    publisher = published(running, raw, "a")
    client = watch(http_port(running), "/live/a.flv")
    begin(client)
    feed(publisher, gops(1, 3))
    publisher.close()
    until(client, gops(3, 3)[-1])
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(LIMIT_S)
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1000, "the stream has ended")
    running.wait_for_line(r"stopped playing live/a by ws: the stream has ended; ")


def test_a_viewer_that_waits_is_closed_with_the_stream_as_well(server, raw, watch):
    running = server(INI)
    client = watch(http_port(running), "/live/a.flv?wait=1")
    publisher = raw(running).publish("a")
    feed(publisher, HEADERS)
    publisher.sync()
    publisher.close()
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(LIMIT_S)
    assert caught.value.rcvd.code == 1000


def test_a_viewer_waits_for_a_stream(shared, port, raw, watch, name):
    client = watch(port, f"/live/{name}.flv?wait=1")
    published(shared, raw, name)
    assert begin(client) == 5
    assert until(client, gop(0)[-1])[0][2] in (AVC_HEADER, AAC_HEADER)


def test_refusals_are_those_of_http(server, raw, watch):
    running = server(INI + "[auth]\nauth_mode = token\nauth_tokens = live/a=s3cret\n")
    port = http_port(running)
    raw(running).publish("a?token=s3cret")
    for path, status in (("/live/a.flv", 401), ("/live/a.flv?token=x", 401), ("/nothing", 404), ("/live/b.flv?token=x", 401)):
        with pytest.raises(InvalidStatus) as caught:
            watch(port, path)
        assert caught.value.response.status_code == status


def test_pages_of_other_origins_are_refused(server, raw, watch):
    running = server(INI.replace(QUICK, "http_allow_origin = https://a.example\n" + QUICK))
    port = http_port(running)
    published(running, raw, "a")
    with pytest.raises(InvalidStatus) as caught:
        watch(port, "/live/a.flv", origin="https://b.example")
    assert caught.value.response.status_code == 403
    for origin in ("https://a.example", f"http://127.0.0.1:{port}", None):
        assert begin(watch(port, "/live/a.flv", origin=origin)) == 5


def test_it_comes_by_tls_too(server, raw, watch, authority):
    pair = authority.issue("localhost", "127.0.0.1")
    running = server(f"[http]\nhttp_listen =\nhttp_tls_listen = 127.0.0.1:0\n[tls]\n{pair.ini}{QUICK}")
    published(running, raw, "a")
    context = ssl.create_default_context(cafile=authority.path)
    client = watch(http_port(running, "https"), "/live/a.flv", "wss", ssl=context)
    assert begin(client) == 5
    until(client, gop(0)[-1])


# Odd and hostile clients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-WebSocket-Version": "8", "Sec-WebSocket-Key": KEY, "Connection": "Upgrade"}, 426),
        ({"Sec-WebSocket-Version": "13", "Connection": "Upgrade"}, 400),
        ({"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY, "Connection": "close"}, 400),
    ],
)
def test_an_invalid_handshake_is_refused(port, headers, status):
    assert fetch(port, "/live/a.flv", Upgrade="websocket", **headers)[0].status == status


def upgraded(port, path):
    sock = open_socket(port)
    head = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{head}Sec-WebSocket-Key: {KEY}\r\n\r\n".encode())
    status, headers = read_head(sock)
    assert (status, headers["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    return sock


@pytest.mark.parametrize("data", [b"\x82\x01a", b"\xff\xff" + bytes(20), b"\x89\xfe\0\x80" + bytes(200)])
def test_invalid_frames_end_the_connection_with_a_reason(shared, port, raw, name, data):
    published(shared, raw, name)
    with contextlib.closing(upgraded(port, f"/live/{name}.flv")) as sock:
        sock.sendall(data)
        got = b""
        while piece := sock.recv(65536):
            got += piece
    # The close frame with 1002 is the last one.
    assert got.endswith(b"\x88\x0f\x03\xeainvalid frame")
    shared.wait_for_line(r"WARNING .*playing by ws: invalid WebSocket frame: ")


def test_a_flood_of_pings_ends_the_connection_and_disturbs_no_other(shared, port, raw, watch, name):
    publisher = published(shared, raw, name)
    other = watch(port, f"/live/{name}.flv")
    begin(other)
    sock = upgraded(port, f"/live/{name}.flv")

    def flood():
        while True:
            sock.sendall(b"\x89\x80\0\0\0\0" * 10_000)

    with contextlib.closing(sock), pytest.raises(OSError, match=r"reset|[Bb]roken pipe|aborted"):
        flood()
    feed(publisher, gops(1, 2))
    until(other, gops(2, 2)[-1])
