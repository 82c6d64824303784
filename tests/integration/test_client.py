"""The client library against a real server, and against servers that misbehave."""

from __future__ import annotations

import signal
import socket
import threading

import gevent
import pytest

from rtmpd.client import Client, RtmpUrl
from rtmpd.errors import DeadlineExceeded, HandshakeError, Refused, RemoteProtocolError, RtmpdError, TransportClosed
from rtmpd.protocol.chunk import ChunkReader, frame_message
from rtmpd.protocol.command import decode_command, encode_command
from tests.integration.beside import wait_until
from tests.integration.wire import HANDSHAKE_BYTES, VIDEO, Item, begin, codes, gop, key, played, received, send, send_headers


class FakeServer:
    """Accepts one connection in a thread and does with it what a test says."""

    def __init__(self, act) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtmp://127.0.0.1:{self.listener.getsockname()[1]}/live/test"
        self.over = threading.Event()
        self._act = act
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        sock, _ = self.listener.accept()
        with sock:
            sock.settimeout(10)
            self._act(self, sock)

    def close(self) -> None:
        self.over.set()
        self._thread.join(10)
        self.listener.close()


def silent(fake, _sock):
    fake.over.wait(10)


def shake(sock):
    c0_c1 = read_exactly(sock, 1 + HANDSHAKE_BYTES)
    sock.sendall(b"\x03" + bytes(8) + b"\x55" * (HANDSHAKE_BYTES - 8) + c0_c1[1:])
    return read_exactly(sock, HANDSHAKE_BYTES)


def read_exactly(sock, count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError
        data += piece
    return data


def answering(answers):
    """Return what a server does that answers commands by a table: name to (name, object, arguments), None to say nothing."""

    def act(fake, sock):
        shake(sock)
        reader = ChunkReader()
        while data := sock.recv(65536):
            for one in reader.feed(data):
                if one.type_id == 20 and answers.get(name := decode_command(one).name):
                    reply, *values = answers[name]
                    number = decode_command(one).transaction_id if reply in ("_result", "_error") else 0
                    sock.sendall(frame_message(3, 20, one.message_stream_id, 0, encode_command(reply, number, *values), 128))
            if fake.over.is_set():
                return

    return act


CONNECTED = ("_result", {"fmsVer": "x"}, {"code": "NetConnection.Connect.Success"})
STARTED = ("onStatus", None, {"level": "status", "code": "NetStream.Publish.Start"})
REFUSED = ("onStatus", None, {"level": "error", "code": "NetStream.Publish.Denied", "description": "no more"})
REJECTED = ("_error", None, {"code": "NetConnection.Connect.Rejected", "description": "no"})


@pytest.fixture
def fake(opened):
    """Return a function that starts a `FakeServer`."""

    def start(act) -> FakeServer:
        made = FakeServer(act)
        opened.callback(made.close)
        return made

    return start


# With rtmpd


@pytest.mark.parametrize("handshake", ["digest", "plain"])
def test_publish_and_play_with_either_handshake(shared, publisher, player, name, handshake):
    watcher = player(shared, name, handshake=handshake)
    encoder = publisher(shared, name, handshake=handshake)
    assert watcher.handshake_kind == encoder.handshake_kind == handshake
    begin(encoder, watcher)
    send(encoder, gop(1))
    assert played(watcher, gop(1)[-1]) == gop(1)


def test_connect_returns_the_answer_of_the_server(shared, opened, name):
    client = opened.enter_context(Client(shared.url(name), connect_properties={"objectEncoding": 3}))
    client.connect()
    command_object, info = client.connect_result
    assert command_object["fmsVer"].startswith("FMS/")
    assert info["code"] == "NetConnection.Connect.Success"
    assert info["objectEncoding"] == 3
    assert client.call("getStreamLength", None, name).argument(0) == 0


@pytest.mark.parametrize("chunk_size", [128, 4096, 0xFFFFFF])
def test_any_chunk_size_works(shared, publisher, player, name, chunk_size):
    watcher = player(shared, name)
    encoder = publisher(shared, name, chunk_size=chunk_size)
    send_headers(encoder)
    frame = Item(VIDEO, 0x1000000, key(1, 300_000))
    send(encoder, [frame])
    assert played(watcher, frame)[-1] == frame


def test_unpublish_ends_the_publish_and_players_are_kept(shared, publisher, player, name):
    watcher = player(shared, name)
    encoder = publisher(shared, name)
    begin(encoder, watcher)
    encoder.unpublish()
    shared.wait_for_line(f"stopped publishing live/{name}: FCUnpublish;")
    again = publisher(shared, name)
    again.send_video(0, key(7))
    assert played(watcher, key(7))[-1].payload == key(7)


def test_a_query_is_sent_with_the_name_and_is_not_part_of_the_key(shared, opened, player, name):
    watcher = player(shared, name)
    encoder = opened.enter_context(Client(shared.url(name) + "?user=a&token=s3cret"))
    encoder.publish()
    encoder.send_video(0, key(1))
    assert played(watcher, key(1)) == [Item(VIDEO, 0, key(1))]


def test_bad_name_is_refused_with_its_code(shared, publisher, name):
    publisher(shared, name)
    with pytest.raises(Refused, match=f"live/{name} is already being published") as refused:
        publisher(shared, name)
    assert refused.value.code == "NetStream.Publish.BadName"


def test_commands_on_the_message_stream(shared, publisher, player, name):
    watcher = player(shared, name)
    encoder = publisher(shared, name)
    begin(encoder, watcher)
    watcher.command("pause", True, 0)
    got = received(watcher, lambda one: codes([one]) == ["NetStream.Pause.Notify"])
    assert [one for one in got if isinstance(one, Item)] == []


def test_commands_are_answered_while_publishing(shared, publisher, player, name):
    watcher = player(shared, name)
    encoder = publisher(shared, name)
    assert encoder.call("getStreamLength", None, name).argument(0) == 0
    begin(encoder, watcher)
    waiting = [gevent.spawn(encoder.call, "createStream") for _ in range(3)]
    assert sorted(each.get(timeout=5).argument(0) for each in waiting) == [2, 3, 4]
    send(encoder, gop(1))
    assert played(watcher, gop(1)[-1]) == gop(1)


def test_a_client_publishes_again_after_unpublish(shared, publisher, player, name):
    encoder = publisher(shared, name)
    encoder.unpublish()
    encoder.publish(f"{name}-2")
    watcher = player(shared, f"{name}-2")
    encoder.send_video(0, key(1))
    assert played(watcher, key(1)) == [Item(VIDEO, 0, key(1))]


def test_a_call_while_publishing_ends_with_the_publish(fake, opened):
    answers = {"connect": CONNECTED, "createStream": ("_result", None, 1), "publish": STARTED, "leave": REFUSED}
    client = opened.enter_context(Client(fake(answering(answers)).url, timeout_s=5))
    client.publish()
    for _ in range(2):
        with pytest.raises(Refused, match="no more"):
            client.call("leave")
    with pytest.raises(Refused, match="no more"):
        client.send_video(0, key(1))


def test_a_call_without_an_answer_while_publishing_times_out(fake, opened):
    answers = {"connect": CONNECTED, "createStream": ("_result", None, 1), "publish": STARTED}
    client = opened.enter_context(Client(fake(answering(answers)).url, timeout_s=0.5))
    client.publish()
    with pytest.raises(DeadlineExceeded, match="the answer to leave"):
        client.call("leave")
    client.send_video(0, key(1))


def test_acknowledgements_are_counted_while_publishing(shared, publisher, name):
    encoder = publisher(shared, name)
    for n in range(30):
        encoder.send_video(n, key(n, 100_000))
    # At each half of the window of 2.5 million.
    wait_until(lambda: encoder.endpoint.bytes_acknowledged > 2_500_000, "acknowledgements")


def test_a_client_may_be_closed_twice_and_can_not_be_used_after_that(shared, publisher, name):
    encoder = publisher(shared, name)
    encoder.close()
    encoder.close()
    with pytest.raises(TransportClosed):
        encoder.send_video(0, key(1))


def test_a_hundred_clients_in_one_thread(shared, publisher, player, name):
    watchers = [player(shared, name) for _ in range(100)]
    encoder = publisher(shared, name)
    encoder.send_video(0, key(1))
    jobs = [gevent.spawn(played, watcher, key(1)) for watcher in watchers]
    assert [job.get(timeout=10) for job in jobs] == [[Item(VIDEO, 0, key(1))]] * 100


def test_publisher_and_player_raise_when_the_server_closes(server, opened, name):
    running = server()
    watcher = opened.enter_context(Client(running.url(name)))
    watcher.play()
    encoder = opened.enter_context(Client(running.url(name)))
    encoder.publish()
    running.stop()
    with pytest.raises(TransportClosed, match="closed by the peer"):
        list(watcher.messages())
    frames = [Item(VIDEO, n, key(n, 100_000)) for n in range(1000)]
    with pytest.raises(TransportClosed):
        send(encoder, frames)
    with pytest.raises(TransportClosed):
        encoder.send_video(0, key(1))


def test_sending_to_a_server_that_does_not_read_times_out(server, opened, name):
    running = server()
    encoder = opened.enter_context(Client(running.url(name), timeout_s=0.5))
    encoder.publish()
    frames = [Item(VIDEO, n, key(n, 1_000_000)) for n in range(100)]
    running.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded, match=r"sending took longer than 0\.5 s"):
            send(encoder, frames)
    finally:
        running.process.send_signal(signal.SIGCONT)


# With servers that misbehave


def test_a_closed_port_is_an_error_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransportClosed, match=rf"can't connect to 127\.0\.0\.1:{port}: Connection refused"):
        Client(f"rtmp://127.0.0.1:{port}/live/x").connect()


@pytest.fixture
def deaf(opened):
    """An address that does not answer: the queue of its listener is full."""
    listener = opened.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        sock = opened.enter_context(socket.socket())
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
    return listener.getsockname()


def test_the_addresses_of_a_name_are_tried_in_turn_within_the_timeout(shared, opened, deaf, name):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()
    asked = []

    def resolve(*about):
        asked.append(about)
        return [("::1", closed[1], 0, 0), closed, deaf, ("127.0.0.1", shared.port)]

    client = opened.enter_context(Client(f"rtmp://far.example/live/{name}", timeout_s=3, resolve=resolve))
    client.publish()
    assert asked == [("far.example", 1935, 3)]
    assert client.address == ("127.0.0.1", shared.port)


def test_a_name_without_an_address_that_answers_is_an_error(opened, deaf):
    def unknown(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for found, error, text in (
        (unknown, TransportClosed, r"can't connect to far\.example:1935: Name or service not known"),
        (lambda *_: [], TransportClosed, r"can't connect to far\.example:1935: the name has no address"),
        (lambda *_: [deaf, deaf], DeadlineExceeded, r"connecting took longer than 0\.3 s"),
        (lambda *_: gevent.sleep(60), DeadlineExceeded, r"looking up far\.example took longer than 0\.3 s"),
    ):
        client = opened.enter_context(Client("rtmp://far.example/live/x", timeout_s=0.3, resolve=found))
        with pytest.raises(error, match=text):
            client.connect()


@pytest.mark.parametrize(
    "act", [silent, lambda fake, sock: (shake(sock), silent(fake, sock))], ids=["at all", "after the handshake"]
)
@pytest.mark.parametrize("method", ["connect", "publish", "play"])
def test_a_silent_server_causes_a_timeout(fake, opened, act, method):
    client = opened.enter_context(Client(fake(act).url, timeout_s=0.3))
    with pytest.raises(DeadlineExceeded, match=r"connecting took longer than 0\.3 s"):
        getattr(client, method)()


def test_a_server_that_never_answers_create_stream_runs_into_the_timeout(fake, opened):
    client = opened.enter_context(Client(fake(answering({"connect": CONNECTED})).url, timeout_s=0.3))
    client.connect()
    for call, what in ((client.publish, "publishing"), (client.play, "playing"), (lambda: client.call("x"), "the answer to x")):
        with pytest.raises(DeadlineExceeded, match=f"{what} took longer"):
            call()


def test_a_server_of_another_protocol_is_an_error(fake, opened):
    client = opened.enter_context(Client(fake(lambda fake, sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")).url))
    with pytest.raises(HandshakeError, match="S0 is 72, expected 3: this is not RTMP"):
        client.connect()


def test_a_server_that_closes_in_the_handshake(fake, opened):
    client = opened.enter_context(Client(fake(lambda fake, sock: sock.recv(10_000)).url))
    with pytest.raises(TransportClosed):
        client.connect()


def test_a_server_with_the_plain_handshake_gets_the_plain_handshake(fake, opened):
    client = opened.enter_context(Client(fake(answering({"connect": CONNECTED})).url, handshake="digest"))
    client.connect()
    assert client.handshake_kind == "plain"


@pytest.mark.parametrize(
    ("answers", "error", "text"),
    [
        (
            {"connect": ("_error", None, {"code": "NetConnection.Connect.Rejected", "description": "no"})},
            Refused,
            "Rejected: no",
        ),
        ({"connect": ("_error", None, None)}, Refused, "connect failed"),
        (
            {"connect": CONNECTED, "createStream": ("_result", None, "x")},
            RemoteProtocolError,
            "answer to createStream: expected a number, found str",
        ),
        ({"connect": CONNECTED, "createStream": ("_error", None, {"code": "Call.Failed"})}, Refused, "Call.Failed"),
        ({"connect": ("close", None)}, TransportClosed, "the server sent close"),
    ],
    ids=["rejected", "error without info", "no stream id", "no stream", "close"],
)
def test_answers_that_end_a_publish(fake, opened, answers, error, text):
    client = opened.enter_context(Client(fake(answering(answers)).url))
    with pytest.raises(error, match=text):
        client.publish()


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("rtmp://host/live/name", RtmpUrl("host", 1935, "live", "name")),
        ("rtmp://host:1936/live/sub/name", RtmpUrl("host", 1936, "live/sub", "name")),
        ("rtmp://[::1]:5/a/b", RtmpUrl("::1", 5, "a", "b")),
        ("rtmp://host/live/name?k=v/w", RtmpUrl("host", 1935, "live", "name?k=v/w")),
        ("rtmp://host/live//part/of/name?k=v", RtmpUrl("host", 1935, "live", "part/of/name?k=v")),
        ("rtmp://host/live", RtmpUrl("host", 1935, "live", "")),
        ("rtmp://host", RtmpUrl("host", 1935, "", "")),
        ("rtmps://host/live/x", RtmpUrl("host", 443, "live", "x", scheme="rtmps")),
        ("rtmps://host:1936/live/x", RtmpUrl("host", 1936, "live", "x", scheme="rtmps")),
    ],
)
def test_urls(url, parts):
    assert RtmpUrl.parse(url) == parts


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/live/x",
        "http://host/live/x",
        "rtmp:///live/x",
        "rtmp://",
        "rtmp://:1935/x",
        "rtmp://host:x/live/y?key=s3cret",
        "rtmp://host:70000/live/x",
        "rtmp://host:-1/x",
        "rtmp://[::1/live/x",
    ],
)
def test_the_error_of_an_invalid_url_has_the_expected_form(url):
    with pytest.raises(ValueError, match=r"expected rtmp\[s\]://") as error:
        Client(url)
    assert "s3cret" not in str(error.value)


def test_every_error_of_the_client_has_one_base():
    for error in (DeadlineExceeded, HandshakeError, Refused, RemoteProtocolError, TransportClosed):
        assert issubclass(error, RtmpdError)
