"""Whole connections on real sockets, served by the hub: how each can end, and the phases until then."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import struct
import time
import weakref
from contextlib import suppress

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from rtmpd import phases
from rtmpd.authorization import AllowAll
from rtmpd.config.loader import load_text
from rtmpd.errors import LocalProtocolError, LoginRequired, Refused
from rtmpd.events import EventType
from rtmpd.hub import Hub
from rtmpd.live.grant import Grant
from rtmpd.net.tls import ServerTls
from rtmpd.net.tls_transport import TlsTransport
from rtmpd.net.transport import RECEIVE_BYTES, Transport
from rtmpd.phases import CloseKind, CloseReason, ConnectionPhase, Machine
from rtmpd.protocol import message
from rtmpd.protocol.chunk import GROWTH_BYTES
from rtmpd.protocol.endpoint import Endpoint
from rtmpd.protocol.enhanced import parse_capabilities
from rtmpd.protocol.handshake import ClientHandshake
from rtmpd.protocol.message import CSID_VIDEO, MessageType
from rtmpd.rtmp import commands, connection, publisher, session
from rtmpd.util.stream_key import StreamKey
from tests.unit.live.fakes import keyframe, new_source
from tests.unit.net.tls_peer import Peer

LIMIT_S = 10
FAILURES = {name for names in phases.CLOSE_COUNTERS.values() for name in names} | {
    "internal_errors",
    "publish_bitrate_exceeded",
    "unsupported_codecs",
    "players_stalled",
    "players_disconnected",
}
_C = ConnectionPhase


def wait_until(condition):
    with gevent.Timeout(LIMIT_S):
        while not condition():
            gevent.sleep(0.001)


class Client:
    """A client, and the server's end of its connection.

    Attributes:
        connection: The server's end.
        serving: Its greenlet.
        received: The bytes that the client has read, behind the handshake.
    """

    def __init__(self, hub, kind=Transport, *, tcp=False):
        if tcp:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                self.sock = socket.create_connection(listener.getsockname())
                ours, _ = listener.accept()
        else:
            ours, self.sock = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.sock.settimeout(LIMIT_S)
        self.transport = kind(ours, f"192.0.2.1:{ours.fileno()}")
        self.endpoint = Endpoint()
        self.received = b""
        self.connection = None
        hub.bus.subscribe([EventType.CONNECTION_ACCEPT], self._accepted)
        self._hub = hub
        self.serving = gevent.spawn(hub.serve, self.transport)
        wait_until(lambda: self.connection)
        hub.bus.unsubscribe(self._accepted)

    def _accepted(self, event):
        (self.connection,) = [each for each in self._hub.connections if str(each.number) == event.connection_id]

    def handshake(self):
        handshake = ClientHandshake(os.urandom)
        self.sock.sendall(handshake.hello())
        while not handshake.done:
            self.sock.sendall(handshake.feed(self.sock.recv(4096)))
        return self

    def send(self, name, *arguments, properties=None, message_stream_id=0):
        self.endpoint.send_command(name, 1, properties, *arguments, message_stream_id=message_stream_id)
        self.flush()

    def flush(self):
        self.sock.sendall(self.endpoint.take_outgoing())

    def connect(self, **properties):
        self.handshake()
        self.send("connect", properties={"app": "live", **properties})
        self.read_until(b"NetConnection.Connect.Success")
        return self

    def publish(self, name="cam"):
        self.connect()
        self.send("createStream")
        self.send("publish", name, message_stream_id=1)
        self.read_until(b"NetStream.Publish.Start")
        return self

    def play(self, name="cam", **properties):
        self.connect(**properties)
        self.send("createStream")
        self.send("play", name, message_stream_id=1)
        self.read_until(b"NetStream.Play.Start")
        return self

    def video(self, payload, timestamp=0):
        self.endpoint.send_message(CSID_VIDEO, MessageType.VIDEO, 1, timestamp, payload)
        self.flush()

    def read_until(self, text):
        while text not in self.received:
            data = self.sock.recv(65536)
            assert data, self.received
            self.received += data

    def reset(self):
        """Close the connection so that the server gets a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class World:
    """A hub with its clients.

    Attributes:
        closes: The data of the events of closed connections.
        kinds: Why connections were closed, in order.
    """

    def __init__(self):
        self.clients = []
        self.closes = []
        self.kinds = []
        self.use("")

    def use(self, ini, **server):
        """Use another hub, with options that may be shorter than a configuration file allows."""
        config = load_text(f"[publish]\npublisher_grace_s = 0\n[live]\npacing = no\n{ini}")
        tls = server.pop("tls_handshake_timeout_s", config.tls.tls_handshake_timeout_s)
        self.hub = Hub(
            dataclasses.replace(
                config,
                server=dataclasses.replace(config.server, **server),
                tls=dataclasses.replace(config.tls, tls_handshake_timeout_s=tls),
            )
        )
        self.hub.bus.subscribe([EventType.CONNECTION_CLOSE], lambda event: self.closes.append(dict(event.data)))

    def client(self, kind=Transport, *, tcp=False):
        made = Client(self.hub, kind, tcp=tcp)
        self.clients.append(made)
        return made

    def tls_client(self, authority):
        self.hub.tls.server = ServerTls(load_text(f"[tls]\n{authority.issue('localhost').ini}").tls)
        return self.client(TlsTransport)

    def end(self, client):
        """Wait until a connection has ended; return its event and the failures that were counted."""
        client.serving.get(timeout=LIMIT_S)
        self.kinds.append(client.connection.close_reason.kind)
        assert client.connection.phase is _C.CLOSED
        assert client.connection not in self.hub.connections
        totals = self.hub.totals()
        return self.closes[-1], {name: totals[name] for name in FAILURES if totals[name]}

    def close(self):
        for client in self.clients:
            client.serving.kill()
            client.sock.close()
            client.transport.dispose()
        for stream in self.hub.streams.values():
            stream.end()
            stream.close()


@pytest.fixture
def world(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rtmpd")
    monkeypatch.setattr(session, "_LINGER_S", 0.01)
    monkeypatch.setattr(publisher, "LINGER_S", 0.01)
    made = World()
    yield made
    made.close()


@pytest.fixture
def problems(caplog):
    """Return the log lines of level warning and above, with the level."""
    return lambda: [(each.levelname, each.getMessage()) for each in caplog.records if each.levelno >= logging.WARNING]


def closed_lines(caplog):
    return [each.getMessage() for each in caplog.records if each.getMessage().startswith("closed: ")]


# Before the connect command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_handshake", [False, True])
def test_a_client_that_leaves_before_connect_is_an_early_close(world, problems, after_handshake):
    client = world.client()
    if after_handshake:
        client.handshake()
        wait_until(lambda: client.connection.phase is _C.CONNECT)
    client.sock.close()
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.EARLY]
    assert (event["reason"], event["served"]) == ("closed by the peer", False)
    assert counted == {"early_closes": 1}
    assert problems() == []


def test_a_client_that_leaves_after_connect_is_no_failure(world, problems, caplog):
    client = world.client().connect()
    client.sock.close()
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.PEER_LEFT]
    assert (event["reason"], event["app"], event["wanted"], event["served"]) == ("closed by the peer", "live", "connect", False)
    assert (counted, problems()) == ({}, [])
    assert closed_lines(caplog)[0].startswith("closed: closed by the peer; 0.")


def test_a_connection_that_breaks_is_no_failure(world, problems):
    client = world.client(tcp=True).connect()
    client.reset()
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.PEER_LEFT]
    assert event["reason"] == "closed by the peer (connection reset)"
    assert (counted, problems()) == ({}, [])


def test_a_client_that_does_not_speak_tls_is_a_tls_failure(world, problems, authority):
    client = world.tls_client(authority)
    assert client.connection.phase is _C.TLS_HANDSHAKE
    client.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.TLS]
    assert event["reason"] == "TLS failed in phase TLS handshake"
    assert counted == {"tls_failures": 1}
    ((level, line),) = problems()
    assert level == "WARNING"
    assert line.startswith("TLS handshake: ")
    assert "HTTP" in line


def test_a_tls_handshake_that_takes_too_long_is_a_tls_failure(world, problems, authority):
    world.use("", tls_handshake_timeout_s=0.01)
    client = world.tls_client(authority)
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.TLS]
    assert event["reason"] == "too slow in phase TLS handshake"
    assert counted == {"tls_failures": 1}
    assert problems() == [("WARNING", "TLS handshake: the TLS handshake took longer than 0.01 s")]


def test_a_client_that_leaves_right_after_the_tls_handshake_gets_a_hint_in_the_log(world, problems, authority):
    client = world.tls_client(authority)
    Peer(client.sock, authority.client_context()).handshake()
    wait_until(lambda: client.connection.phase is _C.HANDSHAKE)
    client.sock.close()
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.EARLY]
    assert event["reason"].endswith(" right after the TLS handshake: it probably does not trust the certificate")
    assert counted == {"early_closes": 1}
    assert problems() == []


def test_a_reload_that_ends_rtmps_closes_connections_before_their_tls_handshake(world, problems):
    client = world.client(TlsTransport)
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.EARLY]
    assert event["reason"] == "RTMPS is no longer served"
    assert (counted, problems()) == ({"early_closes": 1}, [])


def test_a_client_that_does_not_speak_rtmp_is_a_handshake_failure(world, problems):
    client = world.client()
    client.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.HANDSHAKE]
    assert event["reason"] == "invalid RTMP in phase handshake"
    assert counted == {"handshake_failures": 1}
    ((level, line),) = problems()
    assert level == "WARNING"
    assert line.startswith("handshake: C0 is 71, expected 3")


def test_a_handshake_that_takes_too_long_is_a_handshake_failure(world, problems):
    world.use("", handshake_timeout_s=0.01)
    client = world.client()
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.HANDSHAKE]
    assert event["reason"] == "too slow in phase handshake"
    assert counted == {"handshake_failures": 1}
    assert problems() == [("WARNING", "handshake: handshake took longer than 0.01 s")]


# Violations -------------------------------------------------------------------------------------------------------------


def test_a_violation_of_the_protocol_closes_the_connection(world, problems):
    client = world.client().handshake()
    client.send("createStream")
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.PROTOCOL]
    assert event["reason"] == "invalid RTMP in phase connect"
    assert counted == {"protocol_errors": 1}
    assert problems() == [("WARNING", "connect: command 'createStream' before connect")]


def test_a_connect_for_the_second_time_is_a_violation_of_the_protocol(world, problems):
    client = world.client().connect()
    client.send("connect", properties={"app": "live"})
    event, counted = world.end(client)
    assert event["reason"] == "invalid RTMP in phase command"
    assert counted == {"protocol_errors": 1}
    assert problems() == [("WARNING", "command: connect for the second time")]


def test_an_exceeded_limit_closes_the_connection(world, problems):
    world.use("[limits]\nmessage_stream_limit = 1\n")
    client = world.client().connect()
    client.send("createStream")
    client.send("createStream")
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.LIMIT]
    assert event["reason"] == "limit exceeded in phase command"
    assert counted == {"limits_exceeded": 1}
    ((level, line),) = problems()
    assert level == "WARNING"
    assert line.startswith("command: message_stream_limit is 1")


def test_a_client_that_does_not_read_its_replies_exceeds_a_deadline(world, problems):
    world.use("[limits]\ncommand_limit = 100000\n", write_timeout_s=0.02)
    client = world.client().connect()
    for _ in range(2000):
        client.endpoint.send_command("createStream" if not _ else "getStreamLength", 1, None)
    with suppress(OSError):
        client.flush()
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.DEADLINE]
    assert event["reason"] == "too slow in phase command"
    assert counted == {"deadlines_exceeded": 1}
    assert problems() == [("WARNING", "command: sending took longer than 0.02 s")]


# Silence ----------------------------------------------------------------------------------------------------------------


def test_a_client_that_neither_publishes_nor_plays_exceeds_a_deadline(world, problems):
    client = world.client().connect()
    client.connection.sweep(time.monotonic() + 1000)
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.DEADLINE]
    limit_s = world.hub.config.server.connect_timeout_s
    assert event["reason"] == f"neither published nor played within {limit_s:g} s"
    assert counted == {"deadlines_exceeded": 1}
    assert problems() == [("WARNING", f"command: neither published nor played within {limit_s:g} s")]


def test_a_silent_publisher_is_closed(world, problems):
    client = world.client().publish()
    client.connection.sweep(time.monotonic())
    client.connection.sweep(time.monotonic() + 1000)
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.SILENT]
    limit_s = world.hub.config.server.read_timeout_s
    assert event["reason"] == f"the publisher sent no message for {limit_s:g} s"
    assert event["served"] is True
    assert counted == {"deadlines_exceeded": 1, "zombie_connections": 1}
    assert problems() == [("WARNING", f"publish: the publisher sent no message for {limit_s:g} s")]
    assert world.hub.streams == {}


def test_a_player_that_answers_no_ping_is_closed(world, problems):
    world.use("[server]\nping_interval_s = 5\nping_timeout_s = 5\n")
    client = world.client().play()
    now_s = time.monotonic()
    client.connection.sweep(now_s)
    client.connection.sweep(now_s + 6)
    assert not client.connection.close_reason
    client.connection.sweep(now_s + 11)
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.SILENT]
    assert event["reason"] == "no answer to a ping for 5 s"
    assert counted == {"deadlines_exceeded": 1, "zombie_connections": 1}
    assert problems() == [("WARNING", "play: no answer to a ping for 5 s")]


def live(world):
    """Let a source begin the stream that clients play; return both."""
    source = new_source()
    stream = world.hub.publish("live/cam", source)
    source.video(0, keyframe())
    return stream, source


def test_a_player_that_answers_no_ping_stays_while_its_socket_takes_media(world, problems):
    world.use("[server]\nping_interval_s = 5\nping_timeout_s = 20\n")
    _stream, source = live(world)
    client = world.client().play()
    now_s = time.monotonic()
    for number in range(1, 20):
        source.video(number * 40, keyframe(f"frame {number}"))
        client.read_until(f"frame {number}".encode())
        now_s += 4
        client.connection.sweep(now_s)
        assert not client.connection.close_reason
    received = len(client.received)
    # The pings that follow are taken, too, and are no sign of life.
    for _ in range(4):
        now_s += 5.1
        client.connection.sweep(now_s)
        assert not client.connection.close_reason
    client.connection.sweep(now_s + 5.1)
    event, counted = world.end(client)
    assert event["reason"] == "no answer to a ping for 20 s"
    assert counted == {"deadlines_exceeded": 1, "zombie_connections": 1}
    assert problems() == [("WARNING", "play: no answer to a ping for 20 s")]
    assert received


def test_a_publisher_that_answers_no_ping_stays_while_it_publishes(world):
    world.use("[server]\nping_interval_s = 5\nping_timeout_s = 20\n")
    client = world.client().publish()
    now_s = time.monotonic()
    for number in range(1, 20):
        messages = client.connection.messages
        client.video(keyframe(), number * 40)
        wait_until(lambda before=messages: client.connection.messages > before)
        now_s += 4
        client.connection.sweep(now_s)
        assert not client.connection.close_reason


@pytest.mark.parametrize("role", ["publish", "play"])
def test_after_a_publish_or_play_a_connection_may_be_idle_for_longer(world, problems, role):
    world.use("[server]\nping_interval_s = 0\n")
    client = getattr(world.client(), role)()
    client.send("deleteStream", 1)
    wait_until(lambda: client.connection.phase is _C.COMMAND)
    now_s = time.monotonic()
    client.connection.sweep(now_s + 599)
    assert not client.connection.close_reason
    world.hub.reload(load_text("[server]\nping_interval_s = 0\nidle_timeout_s = 700\n"))
    client.connection.sweep(now_s + 601)
    assert not client.connection.close_reason
    client.connection.sweep(now_s + 701)
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.DEADLINE]
    assert event["reason"] == "idle for 700 s after the last publish or play"
    assert counted == {"deadlines_exceeded": 1}
    assert problems() == [("WARNING", "command: idle for 700 s after the last publish or play")]


def test_an_idle_connection_that_answers_no_ping_is_closed(world):
    world.use("[server]\nping_interval_s = 5\nping_timeout_s = 20\n")
    client = world.client().publish()
    client.send("deleteStream", 1)
    wait_until(lambda: client.connection.phase is _C.COMMAND)
    now_s = time.monotonic()
    for seconds in (0, 6, 12, 18, 24):
        client.connection.sweep(now_s + seconds)
        assert not client.connection.close_reason
    client.connection.sweep(now_s + 26)
    assert client.connection.close_reason == "no answer to a ping for 20 s"


# Players ----------------------------------------------------------------------------------------------------------------


def fill(world, client, source, size=100_000):
    """Send media until the player's socket is full."""
    source.video(40, keyframe("", size))
    (player,) = client.connection.players()
    wait_until(lambda: player.subscriber is None or player.subscriber.blocked)


def flood_with(client, data):
    """Send until the server has closed the connection."""
    with suppress(OSError):
        client.sock.sendall(data)


def test_a_client_that_has_not_published_or_played_may_send_little(world, problems):
    client = world.client().connect()
    for _ in range(7):
        client.endpoint.send_message(3, 99, 0, 0, bytes(10_000))
    flood_with(client, client.endpoint.take_outgoing())
    _, counted = world.end(client)
    assert counted == {"limits_exceeded": 1}
    assert problems()[0][1].startswith("command: request_limit_bytes is 65536")


def test_a_client_that_has_not_published_or_played_may_send_few_messages(world, problems):
    client = world.client().connect()
    client.endpoint.send_message(3, 99, 0, 0, b"")
    flood_with(client, client.endpoint.take_outgoing() + bytes((0xC3,)) * 2000)
    world.end(client)
    assert world.kinds == [CloseKind.LIMIT]
    assert "messages before the first publish or play is 1000" in problems()[0][1]


@pytest.mark.parametrize("role", ["connected", "player"])
def test_a_client_that_does_not_publish_keeps_no_large_incomplete_message(world, problems, role):
    world.use("[limits]\nrequest_limit_bytes = 10000\n")
    live(world)
    client = world.client().connect() if role == "connected" else world.client().play()
    client.endpoint.send_message(3, 20, 0, 0, bytes(4_000_000))
    flood_with(client, client.endpoint.take_outgoing())
    world.end(client)
    assert client.connection.endpoint.reader.buffered_bytes < 10_000 + 3 * RECEIVE_BYTES
    assert world.kinds == [CloseKind.LIMIT]
    assert "request_limit_bytes is 10000" in problems()[0][1]


def test_a_publisher_may_send_large_frames_right_behind_its_publish_command(world, problems):
    client = world.client().connect()
    client.send("createStream")
    client.endpoint.send_command("publish", 1, None, "cam", message_stream_id=1)
    client.endpoint.send_message(CSID_VIDEO, MessageType.VIDEO, 1, 0, keyframe("", 300_000))
    client.flush()
    wait_until(lambda: world.hub.totals()["video_messages"] == 1)
    client.send("deleteStream", 1)
    client.endpoint.send_message(CSID_VIDEO, MessageType.VIDEO, 1, 40, keyframe("", 300_000))
    client.send("createStream")
    client.read_until(b"NetStream.Unpublish.Success")
    assert not problems()


def begin_large_message(client, size=300_000):
    """Send half of a video message."""
    client.endpoint.send_message(CSID_VIDEO, MessageType.VIDEO, 1, 0, keyframe("", size))
    client.sock.sendall(client.endpoint.take_outgoing()[: size // 2])
    wait_until(lambda: client.connection.endpoint.reader.buffered_bytes > size // 3)


def test_a_client_that_has_stopped_publishing_begins_no_large_message(world, problems):
    client = world.client().publish()
    client.send("deleteStream", 1)
    client.read_until(b"NetStream.Unpublish.Success")
    client.connection.sweep(time.monotonic() + 1)
    begin_large_message(client)
    assert not world.kinds
    # What was on its way has arrived by now.
    client.connection.sweep(time.monotonic() + 3)
    world.end(client)
    assert world.kinds == [CloseKind.LIMIT]
    assert problems()[0][1].startswith("command: request_limit_bytes is 65536")


def test_a_client_that_publishes_again_may_send_large_frames_again(world, problems):
    client = world.client().publish()
    client.send("deleteStream", 1)
    client.read_until(b"NetStream.Unpublish.Success")
    client.connection.sweep(time.monotonic() + 3)
    client.received = b""
    client.send("createStream")
    client.send("publish", "cam", message_stream_id=1)
    client.read_until(b"NetStream.Publish.Start")
    client.connection.sweep(time.monotonic() + 3)
    begin_large_message(client)
    client.connection.sweep(time.monotonic() + 3)
    assert client.connection.phase is ConnectionPhase.PUBLISH
    assert not problems()


def test_a_connection_holds_names_incomplete_messages_and_unread_replies(world):
    live(world)
    client = world.client().connect(tcUrl="rtmp://localhost/live?token=" + "x" * 1000)
    names = client.connection.held_bytes()
    assert 2000 < names < 4000
    client.send("createStream")
    client.send("play", "cam?" + "\N{GRINNING FACE}" * 500, message_stream_id=1)
    client.read_until(b"NetStream.Play.Start")
    wait_until(lambda: client.connection.phase is ConnectionPhase.PLAY)
    # Python stores four bytes for each character of such a name.
    assert 4000 < client.connection.held_bytes() - names < 6000
    names = client.connection.held_bytes()
    (player,) = client.connection.players()
    player.subscriber.pending += bytes(100_000)
    assert client.connection.held_bytes() == names + 100_000
    del player.subscriber.pending[:]
    client.connection.endpoint.outgoing += bytes(10_000)
    assert client.connection.held_bytes() == names + 10_000
    client.connection.endpoint.outgoing.clear()
    publisher = world.client().publish("other")
    held = publisher.connection.held_bytes()
    begin_large_message(publisher)
    wait_until(lambda: publisher.connection.held_bytes() - held == 150_000 - 12 - 150_000 // 129)
    world.hub.memory.count_connections()
    assert world.hub.gauges["connection_buffer_bytes"]() == sum(each.held_bytes() for each in world.hub.connections)


def test_large_growth_is_counted_at_once(world):
    client = world.client().publish()
    begin_large_message(client, 5_000_000)
    wait_until(lambda: world.hub.memory.connection_bytes == 2 * GROWTH_BYTES)
    assert client.connection.held_bytes() > 2_400_000


def test_publishers_are_the_least_dispensable_and_idle_clients_the_most(world):
    live(world)
    idle, player, publisher = world.client().connect(), world.client().play(), world.client().publish("other")
    wait_until(lambda: player.connection.phase is ConnectionPhase.PLAY)
    order = sorted((idle, player, publisher), key=lambda each: each.connection.dispensability)
    assert order == [publisher, player, idle]


def test_a_connection_that_is_closed_for_its_memory_says_why(world, caplog):
    caplog.set_level(logging.INFO, "rtmpd")
    client = world.client().publish()
    world.hub.reload(load_text("[limits]\nmemory_limit_bytes = 16M\n"))
    world.hub.memory.note_growth()
    for _ in range(16):
        world.hub.memory.note_growth()
    client.connection.endpoint.outgoing += bytes(17 << 20)
    world.hub.memory.shed(0.0)
    assert client.connection.ending
    world.end(client)
    assert world.kinds == [CloseKind.EXPELLED]
    assert world.hub.counters["memory_closes"] == 1
    assert "closed: memory_limit_bytes is exceeded, and it holds 178" in caplog.text
    world.hub.memory.count_connections()
    assert world.hub.memory.connection_bytes == 0


def test_a_publisher_sends_no_large_commands(world, problems):
    client = world.client().publish()
    client.endpoint.send_command("anything", 1, "x" * 70_000)
    flood_with(client, client.endpoint.take_outgoing())
    world.end(client)
    assert world.kinds == [CloseKind.LIMIT]
    assert "request_limit_bytes is 65536" in problems()[0][1]


def test_a_player_that_reads_no_ping_responses_is_closed(world, problems):
    live(world)
    client = world.client().play()
    ping = message.user_control(message.UserControlType.PING_REQUEST, 1)
    with suppress(OSError):
        for _ in range(100):
            client.sock.sendall(ping * 1000)
    world.end(client)
    assert world.kinds == [CloseKind.STALLED]
    assert "does not read the replies to its commands: more than 262144 bytes" in problems()[0][1]


def test_a_stalled_player_is_a_zombie(world, problems):
    stream, source = live(world)
    client = world.client().play()
    fill(world, client, source)
    stream.sweep(time.monotonic() + 31, 30)
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.STALLED]
    assert event["reason"] == "it took nothing for 30 s"
    assert counted == {"zombie_connections": 1, "players_stalled": 1}
    assert problems() == [("WARNING", "play: it took nothing for 30 s")]


def test_a_player_that_is_disconnected_for_its_lag_is_no_zombie(world, problems):
    world.use("[backpressure]\nbackpressure_policy = disconnect\nlag_limit_bytes = 1024\n")
    _stream, source = live(world)
    client = world.client().play()
    fill(world, client, source)
    for number in range(100):
        source.video(80 + number * 40, keyframe("", 10_000))
        gevent.sleep(0)
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.EXPELLED]
    assert event["reason"].startswith("it was too slow: ")
    assert counted == {"players_disconnected": 1}
    ((level, line),) = problems()
    assert level == "WARNING"
    assert line.startswith("live/cam: the player is too slow (disconnect, backpressure_policy)")


def test_a_player_whose_connection_breaks_is_no_failure(world, problems):
    _stream, source = live(world)
    client = world.client(tcp=True).play()
    client.reset()
    source.video(40, keyframe())
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.PEER_LEFT]
    assert event["reason"].startswith("closed by the peer")
    assert (counted, problems()) == ({}, [])


def test_a_player_that_does_not_support_a_new_codec_is_expelled(world, problems):
    _stream, source = live(world)
    client = world.client().play(fourCcList=["hvc1"])
    assert client.connection.client.capabilities == parse_capabilities({"fourCcList": ["hvc1"]})
    source.video(40, b"\x90av01\x81\x00\x0c\x00")
    event, counted = world.end(client)
    client.read_until(b"NetStream.Play.NoSupportedTrackFound")
    assert world.kinds == [CloseKind.EXPELLED]
    problem = "The video is av01, and the player has said that it takes only hvc1."
    assert event["reason"] == f"refused: {problem}"
    assert counted == {"unsupported_codecs": 1}
    assert problems() == [("WARNING", f"play of live/cam refused: {problem} (unsupported_codec)")]


# Policy -----------------------------------------------------------------------------------------------------------------


def test_a_refused_publish_is_answered_and_counted_once(world, problems):
    live(world)
    client = world.client().connect()
    client.send("createStream")
    client.send("publish", "cam", message_stream_id=1)
    client.read_until(b"NetStream.Publish.BadName")
    client.sock.close()
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.REFUSED]
    text = "NetStream.Publish.BadName: live/cam is already being published: on_conflict is refuse"
    assert (event["reason"], event["wanted"], event["served"]) == (f"refused: {text}", "publish", False)
    assert counted == {"refused": 1}
    assert problems() == [("WARNING", f"publish refused: {text}")]


def test_a_client_that_leaves_instead_of_reading_a_refusal_is_refused(world, problems):
    world.use("[applications]\n[[other]]\n")
    client = world.client().handshake()
    client.send("connect", properties={"app": "live"})
    client.sock.close()
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.REFUSED]
    text = "NetConnection.Connect.InvalidApp: There is no such application."
    assert event["reason"] == f"refused: {text}"
    assert counted == {"refused": 1}
    assert problems() == [("WARNING", f"connect refused: {text}")]


class Login(AllowAll):
    """Asks every client to log in."""

    def login(self, connect):
        raise LoginRequired("NetConnection.Connect.Rejected", "need auth")


def test_a_step_of_a_login_is_no_failure(world, problems):
    world.hub.authorizer = Login()
    client = world.client().handshake()
    client.send("connect", properties={"app": "live"})
    client.read_until(b"need auth")
    client.sock.close()
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.LOGIN]
    assert event["reason"] == "refused: NetConnection.Connect.Rejected: login required"
    assert event["served"] is True
    assert (counted, problems()) == ({}, [])


def test_a_publisher_that_exceeds_its_bitrate_limit_is_expelled(world, problems):
    world.use("[limits]\npublish_bitrate_limit = 8000\npublish_bitrate_grace_s = 1\n")
    client = world.client().publish()
    stream, now_s = world.hub.streams["live/cam"], time.monotonic()
    for number in range(8):
        if not client.connection.sources:
            break
        before = client.connection.messages
        client.video(keyframe("", 5000), number * 40)
        wait_until(lambda before=before: client.connection.messages > before)
        stream.sweep(now_s + number, 30)
    client.read_until(b"NetStream.Publish.Rejected")
    event, counted = world.end(client)
    assert world.kinds == [CloseKind.EXPELLED]
    assert event["reason"] == "publish_bitrate_limit"
    assert counted == {"publish_bitrate_exceeded": 1}
    ((level, line),) = problems()
    assert level == "WARNING"
    assert "(publish_bitrate_limit): it is disconnected" in line


def test_a_silent_publisher_that_is_replaced_is_taken_over(world, problems, monkeypatch):
    first = world.client().publish()
    world.hub.streams["live/cam"].source.active_at -= 1000
    ended = []
    world.hub.bus.subscribe([EventType.PUBLISH_STOP], lambda event: ended.append(event.data["reason"]))
    second = world.client().publish()
    event, counted = world.end(first)
    assert world.kinds == [CloseKind.TAKEN_OVER]
    reason = "another publisher took over"
    assert event["reason"] == reason
    assert ended == [reason]
    assert counted == {"takeovers": 1}
    ((level, line),) = problems()
    assert level == "WARNING"
    assert "is replaced by a new one (publisher_takeover_s)" in line
    assert world.hub.streams["live/cam"].source is second.connection.sources[1]


# The server -------------------------------------------------------------------------------------------------------------


def test_a_stop_closes_connections_in_each_phase_and_is_no_failure(world, problems):
    clients = [world.client(), world.client().handshake(), world.client().connect(), world.client().publish()]
    clients.append(world.client().play())
    wait_until(
        lambda: [each.connection.phase for each in clients] == [_C.HANDSHAKE, _C.CONNECT, _C.COMMAND, _C.PUBLISH, _C.PLAY]
    )
    world.hub.stop()
    assert {each.connection.phase for each in clients} == {_C.CLOSING}
    for client in clients:
        event, counted = world.end(client)
        assert (event["reason"], counted) == ("the server is stopping", {})
    assert world.kinds == [CloseKind.SHUTDOWN] * 5
    assert problems() == []


def test_a_connection_that_outlasts_the_stop_is_killed_and_is_no_failure(world, problems):
    client = world.client().connect()
    client.serving.kill()
    event, counted = world.end(client)
    assert client.serving.successful()
    assert world.kinds == [CloseKind.SHUTDOWN]
    assert event["reason"] == "the server is stopping"
    assert (counted, problems()) == ({}, [])


@pytest.mark.parametrize("error", [RuntimeError("a bug"), LocalProtocolError("a bug"), KeyError("a bug")])
def test_an_internal_error_is_logged_once_with_its_traceback(world, problems, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "createStream", fail)
    client = world.client().connect()
    client.send("createStream")
    event, counted = world.end(client)
    assert client.serving.successful()
    assert world.kinds == [CloseKind.INTERNAL]
    assert event["reason"] == "internal error"
    assert counted == {"internal_errors": 1}
    assert problems() == [("ERROR", "internal error in phase command: the connection is closed")]
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.exc_info[1] is error


def test_each_kind_of_close_is_one_closing_line(world, caplog):
    client = world.client().publish()
    client.sock.close()
    world.end(client)
    (line,) = closed_lines(caplog)
    assert line.startswith("closed: closed by the peer; ")
    assert line.endswith(" out")


# Phases -----------------------------------------------------------------------------------------------------------------


class Waiting(AllowAll):
    """Answers when the test lets it."""

    def __init__(self):
        self.answer = Event()
        self.refused = False

    def authorize(self, request):
        request.waiting()
        self.answer.wait()
        if self.refused:
            raise Refused("NetStream.Publish.Denied", "no")
        return Grant(StreamKey(request.key))


@pytest.fixture
def entered(monkeypatch):
    """The phases that connections enter, in order."""
    found = []

    class RecordingMachine(Machine):
        def to(self, phase):
            if phase is not self.phase:
                found.append(phase)
            super().to(phase)

    monkeypatch.setattr(connection, "Machine", RecordingMachine)
    return found


def test_the_phases_of_a_connection_that_publishes_and_plays(world, entered):
    client = world.client().connect()
    assert entered == [_C.CONNECT, _C.COMMAND]
    for number in range(3):
        client.send("createStream")
        wait_until(lambda number=number: len(client.connection.message_streams) == number + 1)
    client.send("publish", "a", message_stream_id=1)
    client.read_until(b"live/a is now published")
    client.send("publish", "b", message_stream_id=2)
    client.read_until(b"live/b is now published")
    client.send("play", "a", message_stream_id=3)
    client.read_until(b"Started playing live/a")
    # A publish determines the phase, as long as there is one.
    assert entered == [_C.CONNECT, _C.COMMAND, _C.PUBLISH]
    client.send("closeStream", message_stream_id=1)
    client.read_until(b"live/a is now unpublished")
    assert client.connection.phase is _C.PUBLISH
    client.send("closeStream", message_stream_id=2)
    client.read_until(b"live/b is now unpublished")
    assert entered[3:] == [_C.PLAY]
    client.send("closeStream", message_stream_id=3)
    client.read_until(b"Stopped playing live/a")
    assert entered[4:] == [_C.COMMAND]
    client.sock.close()
    world.end(client)
    assert entered[5:] == [_C.CLOSED]


@pytest.mark.parametrize("action", ["publish", "play"])
def test_the_phases_while_the_authorizer_decides(world, entered, action):
    waiting = world.hub.authorizer = Waiting()
    client = world.client().connect()
    client.send("createStream")
    client.send(action, "a", message_stream_id=1)
    wait_until(lambda: client.connection.phase is _C.AUTHORIZE)
    waiting.answer.set()
    client.read_until(b"live/a is now published" if action == "publish" else b"Started playing live/a")
    assert entered == [_C.CONNECT, _C.COMMAND, _C.AUTHORIZE, _C.COMMAND, _C.PUBLISH if action == "publish" else _C.PLAY]
    # A second stream on the same connection.
    waiting.answer.clear()
    client.send("createStream")
    client.send("publish", "b", message_stream_id=2)
    wait_until(lambda: client.connection.phase is _C.AUTHORIZE)
    waiting.answer.set()
    client.read_until(b"live/b is now published")
    first = [] if action == "publish" else [_C.PLAY]
    assert entered[5:] == [_C.AUTHORIZE, *(first or [_C.PUBLISH]), *([_C.PUBLISH] if first else [])]


def test_the_phases_of_a_refusal_after_a_wait(world, entered):
    waiting = world.hub.authorizer = Waiting()
    waiting.refused = True
    client = world.client().connect()
    client.send("createStream")
    client.send("publish", "a", message_stream_id=1)
    wait_until(lambda: client.connection.phase is _C.AUTHORIZE)
    waiting.answer.set()
    client.read_until(b"NetStream.Publish.Denied")
    world.end(client)
    assert entered[2:] == [_C.AUTHORIZE, _C.CLOSING, _C.CLOSED]
    assert world.kinds == [CloseKind.REFUSED]


def test_a_connection_that_is_closed_while_the_authorizer_decides_does_not_publish(world, entered):
    waiting = world.hub.authorizer = Waiting()
    client = world.client().connect()
    client.send("createStream")
    client.send("publish", "a", message_stream_id=1)
    wait_until(lambda: client.connection.phase is _C.AUTHORIZE)
    world.hub.stop()
    waiting.answer.set()
    event, counted = world.end(client)
    assert entered[2:] == [_C.AUTHORIZE, _C.CLOSING, _C.CLOSED]
    assert (event["reason"], counted) == ("the server is stopping", {})
    assert world.hub.counters["publishes"] == 0


def test_a_tls_connection_begins_with_the_tls_handshake(world, entered, authority):
    client = world.tls_client(authority)
    assert client.connection.phase is _C.TLS_HANDSHAKE
    peer = Peer(client.sock, authority.client_context()).handshake()
    handshake = ClientHandshake(os.urandom)
    peer.send(handshake.hello())
    while not handshake.done:
        peer.send(handshake.feed(peer.read_some()))
    wait_until(lambda: client.connection.phase is _C.CONNECT)
    assert entered == [_C.HANDSHAKE, _C.CONNECT]
    assert world.hub.counters["tls_handshakes"] == 1


class _Granting(AllowAll):
    """Grants for a time."""

    def __init__(self, expires_s):
        self.expires_s = expires_s

    def authorize(self, request):
        return Grant(StreamKey(request.key), expires_s=self.expires_s)


@pytest.mark.parametrize("expires_s", [0, 100])
def test_after_a_connection_has_ended_it_and_its_stream_are_freed_without_the_garbage_collector(world, expires_s):
    """The collector runs seldom: connections and the pages of streams that wait for it add up to gigabytes."""
    world.hub.authorizer = _Granting(expires_s)
    publishing, playing = world.client().publish(), world.client().play()
    publishing.video(keyframe())
    wait_until(lambda: publishing.connection.messages)
    gc.collect()
    gc.disable()
    try:
        ends = [weakref.ref(each) for each in (publishing.connection, playing.connection, world.hub.streams["live/cam"])]
        for client in (publishing, playing):
            client.sock.close()
            world.end(client)
            client.connection = None
            client.serving = gevent.spawn(lambda: None)
        gevent.sleep(0.01)
        assert world.hub.streams == {}
        assert [each() for each in ends] == [None] * 3
    finally:
        gc.enable()


def test_after_a_refused_publish_the_connection_is_freed_without_the_garbage_collector(world, caplog):
    # A record of the refusal would hold the exception, with its frames.
    caplog.set_level(logging.ERROR, "rtmpd")
    live(world)
    client = world.client().connect()
    gc.collect()
    gc.disable()
    try:
        end = weakref.ref(client.connection)
        client.send("createStream")
        client.send("publish", "cam", message_stream_id=1)
        client.read_until(b"NetStream.Publish.BadName")
        client.sock.close()
        world.end(client)
        client.connection = None
        client.serving = gevent.spawn(lambda: None)
        gevent.sleep(0.01)
        assert end() is None
    finally:
        gc.enable()


def test_a_reason_that_was_given_first_is_in_the_events_of_publish_and_connection(world):
    stops = []
    world.hub.bus.subscribe([EventType.PUBLISH_STOP], lambda event: stops.append(dict(event.data)))
    client = world.client().publish()
    reason = CloseReason(CloseKind.SILENT, "no answer to a ping for 5 s")
    client.connection.close(reason)
    event, _ = world.end(client)
    assert event["reason"] == reason
    (stop,) = stops
    assert (stop["reason"], stop["close_reason"]) == ("connection closed", reason)
