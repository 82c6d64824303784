"""The HTTP listener of a real server: FLV, authorization, limits, hooks, and clients that are slow or hostile."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import time

import gevent
import pytest

from rtmpd.media import flv
from tests.conftest import find_peer
from tests.integration.beside import wait_until
from tests.integration.wire import (
    AAC_HEADER,
    AUDIO,
    AVC_HEADER,
    DATA,
    VIDEO,
    Item,
    gop,
    gops,
    inter,
    key,
    metadata,
    send,
    sound,
)

LIMIT_S = 20
HTTP = "[http]\nhttp_listen = 127.0.0.1:0\n"
QUICK = "[publish]\npublisher_grace_s = 0\n"
INI = HTTP + QUICK


def feed(publisher, items):
    send(publisher, [Item(*each) for each in items])


def http_port(server, scheme="http"):
    return int(server.wait_for_line(rf"HTTP on {scheme}://127\.0\.0\.1:(\d+)/$")[1])


@pytest.fixture
def port(shared):
    return http_port(shared)


def open_socket(port):
    sock = socket.socket()
    sock.settimeout(LIMIT_S)
    sock.connect(("127.0.0.1", port))
    return sock


class Tags:
    """Reads FLV from a socket as it comes."""

    def __init__(self, read) -> None:
        self._read = read
        self.data = b""
        self.flags = None

    def take(self, size):
        while len(self.data) < size:
            piece = self._read(65536)
            if not piece:
                raise EOFError
            self.data += piece
        found, self.data = self.data[:size], self.data[size:]
        return found

    def next(self):
        if self.flags is None:
            begin = self.take(flv.FILE_HEADER_SIZE)
            assert begin[:4] == b"FLV\1"
            assert begin[5:] == b"\0\0\0\x09\0\0\0\0"
            self.flags = begin[4]
        head = self.take(11)
        size = int.from_bytes(head[1:4], "big")
        payload = self.take(size)
        assert int.from_bytes(self.take(4), "big") == size + 11
        return head[0], int.from_bytes(head[4:7], "big") | head[7] << 24, payload

    def until(self, item):
        found = []
        while not found or found[-1] != item:
            found.append(self.next())
        return found


@pytest.fixture
def connect(opened):
    def make(port):
        return opened.enter_context(contextlib.closing(open_socket(port)))

    return make


def read_head(sock):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(1)
        assert piece, data
        data += piece
    status, *lines = data.decode().rstrip().split("\r\n")
    return int(status.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@pytest.fixture
def watch(connect):
    """Return a function that asks for a stream: its status, headers and tags."""

    def ask(port, path, headers="", sock=None):
        sock = sock or connect(port)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        status, found = read_head(sock)
        return status, found, Tags(sock.recv)

    return ask


def fetch(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()


# FLV --------------------------------------------------------------------------------------------------------------------


def test_a_viewer_joins_at_the_keyframe_and_gets_what_follows(shared, port, raw, watch, name):
    publisher = raw(shared).publish(name)
    feed(publisher, [(VIDEO, 0, AVC_HEADER), (AUDIO, 0, AAC_HEADER), *gops(0, 2)])
    status, headers, tags = watch(port, f"/live/{name}.flv")
    assert status == 200
    assert headers["content-type"] == "video/x-flv"
    assert headers["connection"] == "close"
    assert not headers.keys() & {"content-length", "transfer-encoding"}
    later = gops(3, 3)
    feed(publisher, later)
    found = tags.until(later[-1])
    assert tags.flags == 5
    assert found[:2] == [(VIDEO, found[0][1], AVC_HEADER), (AUDIO, found[1][1], AAC_HEADER)]
    frames = [item for item in found if item[2] not in (AVC_HEADER, AAC_HEADER)]
    # From the beginning of the newest group of pictures on.
    assert frames == gops(0, 3)[-len(frames) :]
    assert frames[0] in [group[0] for group in (gops(number, number) for number in range(4))]


@pytest.mark.parametrize(
    ("items", "flags"),
    [
        ([(VIDEO, 0, AVC_HEADER), (VIDEO, 0, key(0)), (VIDEO, 40, inter(1))], 1),
        ([(AUDIO, 0, AAC_HEADER), (AUDIO, 0, sound(0)), (AUDIO, 23, sound(1))], 4),
        # MP3 has no header.
        ([(AUDIO, 0, b"\x2f" + bytes(50)), (AUDIO, 26, b"\x2f" + bytes(51))], 4),
        ([(AUDIO, 0, AAC_HEADER), (VIDEO, 0, AVC_HEADER), (VIDEO, 0, key(0)), (AUDIO, 0, sound(0))], 5),
    ],
    ids=["video", "audio", "audio without a header", "both"],
)
def test_the_file_header_lists_the_tracks(shared, port, raw, watch, name, items, flags):
    publisher = raw(shared).publish(name)
    feed(publisher, items)
    publisher.sync()
    _, _, tags = watch(port, f"/live/{name}.flv")
    feed(publisher, [(items[-1][0], 500, items[-1][2])])
    tags.until((items[-1][0], 500, items[-1][2]))
    assert tags.flags == flags


def test_metadata_are_a_script_tag(shared, port, raw, watch, name):
    publisher = raw(shared).publish(name)
    feed(publisher, [(DATA, 0, metadata()), (VIDEO, 0, AVC_HEADER), (AUDIO, 0, AAC_HEADER), *gop(0)])
    publisher.sync()
    _, _, tags = watch(port, f"/live/{name}.flv")
    kind, _, payload = tags.next()
    assert kind == DATA
    assert payload.startswith(b"\x02\x00\x0aonMetaData")


def test_viewers_of_both_protocols_get_the_same_frames(shared, port, raw, watch, player, name):
    publisher = raw(shared).publish(name)
    feed(publisher, [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    viewers = [watch(port, f"/live/{name}.flv")[2] for _ in range(3)]
    feed(publisher, gops(1, 20))
    last = gops(20, 20)[-1]
    found = [each.until(last) for each in viewers]
    assert found[0] == found[1] == found[2]


def test_when_the_stream_ends_the_connection_ends_behind_the_last_frame(server, raw, watch):
    running = server(INI)
    publisher = raw(running).publish("a")
    feed(publisher, [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    _, _, tags = watch(http_port(running), "/live/a.flv")
    feed(publisher, gops(1, 5))
    publisher.close()
    tags.until(gops(5, 5)[-1])
    with pytest.raises(EOFError):
        tags.next()
    running.wait_for_line(r"stopped playing live/a by http: the stream has ended; [\d.]+ s, \d+ bytes, 0 skips, 0 messages")


def test_a_stream_that_ends_before_its_tracks_are_known_is_404(server, raw, watch, connect):
    running = server(INI)
    publisher = raw(running).publish("a")
    feed(publisher, [(VIDEO, 0, AVC_HEADER), (VIDEO, 0, key(0))])
    publisher.sync()
    sock = connect(http_port(running))
    sock.sendall(b"GET /live/a.flv HTTP/1.1\r\nHost: x\r\n\r\n")
    # It waits for audio, for a second.
    sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    publisher.close()
    sock.settimeout(LIMIT_S)
    assert read_head(sock)[0] == 404


def test_a_viewer_is_kept_over_a_lost_publisher(server, raw, watch):
    running = server(HTTP + "[publish]\npublisher_grace_s = 20\n")
    publisher = raw(running).publish("a")
    feed(publisher, [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    _, _, tags = watch(http_port(running), "/live/a.flv")
    tags.until(gop(0)[-1])
    publisher.close()
    publisher = raw(running).publish("a")
    feed(publisher, [(VIDEO, 0, AVC_HEADER), *gop(7)])
    while tags.next()[2] != gop(7)[-1][2]:
        pass


def test_an_unknown_stream_is_404_unless_the_viewer_wants_to_wait(shared, port, raw, watch, name):
    answer, body = fetch(port, f"/live/{name}.flv", Accept="application/json")
    assert answer.status == 404
    assert json.loads(body) == {"status": 404, "error": f"live/{name} is not being published."}
    assert fetch(port, f"/live/{name}.flv", method="HEAD")[0].status == 404
    status, _, tags = watch(port, f"/live/{name}.flv?wait=1")
    assert status == 200
    publisher = raw(shared).publish(name)
    feed(publisher, [(VIDEO, 0, AVC_HEADER), (AUDIO, 0, AAC_HEADER), *gop(0)])
    tags.until(gop(0)[-1])
    assert tags.flags == 5
    answer, body = fetch(port, f"/live/{name}.flv", method="HEAD")
    assert (answer.status, answer.getheader("Content-Type"), body) == (200, "video/x-flv", b"")


@pytest.mark.parametrize("path", ["/x.flv", "/live/a%00.flv", "/live/../a.flv", "/live/%2e%2e/a.flv", "/live/a%3Fb.flv"])
def test_a_path_that_can_not_be_a_stream_is_refused(port, path):
    assert fetch(port, path)[0].status in (400, 404)


def test_wait_for_publisher_off_lets_no_viewer_wait(server):
    running = server(INI + "[live]\nwait_for_publisher = no\n")
    assert fetch(http_port(running), "/live/a.flv?wait=1")[0].status == 404


# Policy -----------------------------------------------------------------------------------------------------------------


def test_a_token_is_taken_from_the_query_and_from_the_header(watched_server, raw, watch):
    running = watched_server(INI + "[auth]\nauth_mode = token\nauth_tokens = live/a=s3cret\n")
    port = http_port(running)
    publisher = raw(running).publish("a?token=s3cret")
    feed(publisher, [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    for path, headers, status in (
        ("/live/a.flv", "", 401),
        ("/live/a.flv?token=wrong", "", 401),
        ("/live/a.flv", "Authorization: Bearer wrong\r\n", 401),
        ("/live/a.flv?token=s3cret", "", 200),
        ("/live/a.flv", "Authorization: Bearer s3cret\r\n", 200),
    ):
        found, fields, tags = watch(port, path, headers)
        assert found == status, (path, headers)
        if status == 200:
            tags.until(gop(0)[-1])
        else:
            assert fields["www-authenticate"] == "Bearer"
            assert fields["connection"] == "close"


def test_an_address_that_may_not_play_is_403(server):
    running = server(INI + "[auth]\nplay_deny = 127.0.0.1\n")
    assert fetch(http_port(running), "/live/a.flv")[0].status == 403


def test_an_application_that_does_not_exist_is_404(server):
    running = server(INI + "[applications]\n[[live]]\n")
    assert fetch(http_port(running), "/other/a.flv")[0].status == 404


def test_limits_are_those_of_players(server, raw, watch):
    running = server(INI + "[limits]\nplayers_per_stream_limit = 1\nconnections_per_address_limit = 4\n")
    port = http_port(running)
    publisher = raw(running).publish("a")
    feed(publisher, [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    _, _, tags = watch(port, "/live/a.flv")
    tags.next()
    answer, _ = fetch(port, "/live/a.flv")
    assert (answer.status, answer.getheader("Retry-After")) == (503, "5")
    # Idle connections give way: each of these is one more than the limit allows.
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            idle = stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)))
            idle.request("GET", "/nothing")
            assert idle.getresponse().read()
    # The viewer is still there.
    feed(publisher, gops(1, 1))
    tags.until(gops(1, 1)[-1])


def test_hooks_and_the_access_log_see_viewers(server, raw, watch, tmp_path):
    events, lines = tmp_path / "events", tmp_path / "access"
    ini = INI + f"[hooks]\nhook_stdio_format = json\n[log]\naccess_log_file = {lines}\n"
    with events.open("wb") as stdout:
        running = server(ini, stdout=stdout)
    port = http_port(running)
    publisher = raw(running).publish("a")
    feed(publisher, [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    sock = open_socket(port)
    with contextlib.closing(sock):
        _, _, tags = watch(port, "/live/a.flv", "User-Agent: a browser\r\n", sock)
        tags.until(gop(0)[-1])
        peer = "{}:{}".format(*sock.getsockname())
    fetch(port, "/live/none.flv")

    def found(kind):
        told = [json.loads(line.partition(": ")[2]) for line in events.read_text().splitlines()]
        return [each["data"] for each in told if each["type"] == kind]

    wait_until(lambda: found("play_stop"), "the play has ended")
    (start,), (stop,) = found("play_start"), found("play_stop")
    assert (start["protocol"], start["remote_addr"]) == ("http", peer)
    assert (stop["protocol"], stop["agent"], stop["id"]) == ("http", "a browser", start["id"])
    assert stop["bytes"] > 100
    wait_until(lambda: len(lines.read_text().splitlines()) >= 2, "the access log has its lines")
    text = lines.read_text()
    print(text)
    assert re.search(rf"\bplay\b.*{peer}.*a browser.*live/a\b", text)
    assert re.search(r"\bconnect\b.*live/none.*refused: NetStream\.Play\.StreamNotFound", text)


def test_a_page_of_another_origin_needs_permission(server, raw, watch):
    running = server(INI.replace(QUICK, "http_allow_origin = https://a.example\n" + QUICK))
    port = http_port(running)
    feed(publisher := raw(running).publish("a"), [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    assert watch(port, "/live/a.flv", "Origin: https://a.example\r\n")[1]["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in watch(port, "/live/a.flv", "Origin: https://b.example\r\n")[1]


def test_metrics_are_for_the_listed_addresses(server):
    running = server(HTTP + "http_metrics_from = 192.0.2.1\n")
    assert fetch(http_port(running), "/metrics")[0].status == 403
    answer, body = fetch(http_port(server(HTTP)), "/metrics")
    assert answer.status == 200
    assert b"rtmpd_http_connections_total 1.0" in body


# Hostile clients ---------------------------------------------------------------------------------------------------------


def test_a_viewer_that_reads_nothing_is_closed_and_disturbs_no_other(server, raw, watch):
    running = server(INI + "[server]\nwrite_timeout_s = 1\nunsent_limit_bytes = 4096\n")
    port = http_port(running)
    publisher = raw(running).publish("a")
    feed(publisher, [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    _, _, stuck = watch(port, "/live/a.flv")
    _, _, other = watch(port, "/live/a.flv")
    stuck.next()
    number = 1
    deadline = time.monotonic() + LIMIT_S
    while not any("it took nothing for 1 s" in line for line in running.log()):
        assert time.monotonic() < deadline
        items = gop(number, size=200_000)
        feed(publisher, items)
        other.until(items[-1])
        number += 1
        gevent.sleep(0.02)


def test_a_viewer_that_sends_much_is_disconnected(shared, port, raw, watch, connect, name):
    feed(publisher := raw(shared).publish(name), [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    sock = connect(port)
    watch(port, f"/live/{name}.flv", sock=sock)

    def flood():
        for _ in range(1000):
            sock.sendall(bytes(65536))

    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe|aborted"):
        flood()
    shared.wait_for_line(r"WARNING .*playing by http: bytes from a viewer is \d+, the peer asked for \d+")


def test_a_stop_ends_viewers_behind_the_last_frame(server, raw, watch):
    running = server(INI)
    feed(publisher := raw(running).publish("a"), [(VIDEO, 0, AVC_HEADER), *gops(0, 3)])
    publisher.sync()
    _, _, tags = watch(http_port(running), "/live/a.flv")
    begun = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - begun < 5
    tags.until(gops(3, 3)[-1])
    with pytest.raises(EOFError):
        tags.next()


# The listener ------------------------------------------------------------------------------------------------------------


def test_the_default_port_may_be_in_use(server):
    with contextlib.closing(socket.socket()) as taken:
        # If another program has it, it is in use as well.
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        running = server(start=("-m", "rtmpd", "--listen", "127.0.0.1:0"))
        running.wait_for_line(
            r"WARNING +can't listen on 127\.0\.0\.1:8080: Address already in use: another process listens on it: "
            r"the server runs without this listener \(http_listen\)$"
        )


def test_a_busy_port_is_an_error(server):
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=rf"can't listen on 127\.0\.0\.1:{port}: Address already in use"):
            server(f"[http]\nhttp_listen = 127.0.0.1:{port}\n")


def test_the_proxy_header_names_the_client(server, connect, raw, watch):
    running = server(INI + "[server]\nproxy_protocol_from = 127.0.0.1\n")
    sock = connect(http_port(running))
    sock.sendall(b"PROXY TCP4 198.51.100.7 127.0.0.1 5555 80\r\n")
    assert watch(0, "/live/a.flv", sock=sock)[0] == 404
    running.wait_for_line(r"WARNING .*198\.51\.100\.7:5555.*play by http refused: ")


def test_https_with_the_certificates_of_rtmps(server, raw, authority, opened):
    pair = authority.issue("localhost", "127.0.0.1")
    running = server(f"[http]\nhttp_listen =\nhttp_tls_listen = 127.0.0.1:0\n[tls]\n{pair.ini}{QUICK}")
    port = http_port(running, "https")
    feed(publisher := raw(running).publish("a"), [(VIDEO, 0, AVC_HEADER), *gop(0)])
    publisher.sync()
    sock = open_socket(port)
    secure = opened.enter_context(authority.client_context().wrap_socket(sock, server_hostname="localhost"))
    secure.sendall(b"GET /live/a.flv HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert read_head(secure)[0] == 200
    Tags(secure.recv).until(gop(0)[-1])
    publisher.close()
    while secure.recv(65536):
        pass
    plain = opened.enter_context(contextlib.closing(open_socket(port)))
    plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    running.wait_for_line(r"WARNING +http 127[\d.:]+: TLS failed: ")


def test_http_2_over_https(server, raw, authority, tmp_path):
    pair = authority.issue("localhost")
    events = tmp_path / "events"
    ini = f"[http]\nhttp_listen =\nhttp_tls_listen = 127.0.0.1:0\n[tls]\n{pair.ini}{QUICK}[hooks]\nhook_stdio_format = json\n"
    with events.open("wb") as stdout:
        running = server(ini, stdout=stdout)
    port = http_port(running, "https")
    feed(publisher := raw(running).publish("a"), [(VIDEO, 0, AVC_HEADER), (AUDIO, 0, AAC_HEADER), *gop(0)])
    publisher.sync()
    report = "%{http_version} %{http_code} %{num_connects} %{size_download}\n"
    program = find_peer("curl", "curl")

    def curl(*arguments):
        common = [program, "--silent", "--show-error", "--http2", "--cacert", authority.path, "--max-time", str(LIMIT_S)]
        return subprocess.Popen([*common, *arguments], stdout=subprocess.PIPE, text=True)

    def outcome(process):
        with process:
            return process.stdout.read().splitlines()

    def url(path):
        return f"https://localhost:{port}{path}"

    body = tmp_path / "a.flv"
    viewer = curl("--no-buffer", "--output", body, "--write-out", report, url("/live/a.flv"))
    wait_until(lambda: body.exists() and gop(0)[-1][2] in body.read_bytes(), "the viewer has the first frames")
    assert outcome(curl("--head", "--write-out", report, url("/live/a.flv")))[-1] == "2 200 1 0"
    assert outcome(curl("--data", "x" * 100_000, "--write-out", report, url("/metrics")))[-1].startswith("2 405 1 ")
    metrics = tmp_path / "metrics"
    wanted = {"/none": "/dev/null", "/live/none.flv": "/dev/null", "/metrics": metrics, "/": "/dev/null"}
    several = [part for path, output in wanted.items() for part in ("--output", output, url(path))]
    found = outcome(curl("--parallel", "--write-out", report, *several))
    assert sorted(line.split()[1] for line in found) == ["200", "404", "404", "404"]
    # All of them on one connection: no response ends it, also not that for a stream that is not published.
    assert sum(int(line.split()[2]) for line in found) == 1
    # That of the viewer and this one; the server may not have noticed the end of the earlier ones.
    assert 2 <= float(re.search(r"^rtmpd_http2_connections_active (\S+)$", metrics.read_text(), re.MULTILINE)[1]) <= 4
    feed(publisher, gops(1, 5))
    publisher.close()
    # The body ends as one of HTTP/1.1 can't: curl knows that it has all of it.
    assert outcome(viewer) == [f"2 200 1 {body.stat().st_size}"]
    assert viewer.returncode == 0
    data = body.read_bytes()
    tags = Tags(io.BytesIO(data).read)
    tags.until(gops(5, 5)[-1])
    with pytest.raises(EOFError):
        tags.next()

    def stops():
        told = [json.loads(line.partition(": ")[2]) for line in events.read_text().splitlines()]
        return [each["data"] for each in told if each["type"] == "play_stop"]

    wait_until(stops, "the play has ended")
    (stop,) = stops()
    assert (stop["protocol"], stop["bytes"], stop["reason"]) == ("https", len(data), "the stream has ended")
    assert stop["agent"].startswith("curl/")
