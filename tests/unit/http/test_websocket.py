"""The server's side of a WebSocket, against wsproto's client, at every split of what the client sends."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong
from wsproto.events import Request as Handshake

from rtmpd.errors import HttpError, RemoteProtocolError
from rtmpd.http.messages import RequestHead
from rtmpd.http.websocket import WebSocket, is_upgrade


def connected():
    client = WSConnection(ConnectionType.CLIENT)
    head = RequestHead()
    size = head.feed(client.send(Handshake(host="localhost", target="/live/a.flv?token=x")))
    request, _ = head.parse(size)
    assert is_upgrade(request)
    server = WebSocket(request)
    client.receive_data(server.accept())
    assert isinstance(next(client.events()), AcceptConnection)
    return client, server


@given(st.lists(st.integers(0, 400), max_size=5), st.binary(max_size=125))
def test_pings_are_answered_and_messages_discarded_however_they_are_split(cuts, payload):
    client, server = connected()
    data = client.send(BytesMessage(data=bytes(200))) + client.send(Ping(payload=payload)) + client.send(CloseConnection(1000))
    places = [0, *sorted(cuts), len(data)]
    replies, over = b"", False
    for begin, end in pairwise(places):
        if not over and data[begin:end]:
            found = server.feed(data[begin:end])
            replies, over = replies + found.reply, found.over
    client.receive_data(replies)
    events = list(client.events())
    assert over
    assert events[0] == Pong(payload=payload)
    assert isinstance(events[1], CloseConnection)


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_an_error(data):
    _, server = connected()
    try:
        found = server.feed(data)
    except RemoteProtocolError:
        return
    assert len(found.reply) <= len(data) + 4


def test_a_request_that_is_no_handshake_is_refused():
    head = RequestHead()
    text = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n"
    request, _ = head.parse(head.feed(text))
    assert is_upgrade(request)
    with pytest.raises(HttpError) as caught:
        WebSocket(request)
    assert caught.value.status == 400
