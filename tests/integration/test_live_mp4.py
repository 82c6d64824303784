"""Live MP4 by HTTP and WebSocket, as sockets and a client library see it."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_websocket

from tests.fmp4_files import all_kinds, samples
from tests.integration.test_http import INI as HTTP_INI
from tests.integration.test_http import LIMIT_S, feed, fetch, http_port, open_socket, read_head
from tests.integration.wire import AUDIO, VIDEO, gop, gops, inter, key, sound
from tests.unit.media.test_fmp4 import AAC as AAC_HEADER
from tests.unit.media.test_fmp4 import AVC as AVC_HEADER

INI = HTTP_INI + "[hls]\nhls_renditions = _low, _high\n"
AVC_HEADER_2 = AVC_HEADER.replace(b"\1\x64\0\x0a", b"\1\x64\0\x1f")
VIDEO_TYPE = 'video/mp4; codecs="avc1.64000a"'
BOTH_TYPE = 'video/mp4; codecs="avc1.64000a,mp4a.40.2"'
HEADERS = [(VIDEO, 0, AVC_HEADER), (AUDIO, 0, AAC_HEADER)]


@pytest.fixture
def port(shared):
    return http_port(shared)


@pytest.fixture
def publish(shared, raw, name):
    """Return a function that publishes frames."""

    def make(*items):
        publisher = raw(shared).publish(name)
        feed(publisher, items)
        publisher.sync()
        return publisher

    return make


class Body:
    """A body, which is read up to the frame whose data is wanted."""

    def __init__(self, sock) -> None:
        self.sock = sock
        self.data = b""

    def until(self, data):
        while not self.data.endswith(data):
            piece = self.sock.recv(65536)
            assert piece, self.data[-200:]
            self.data += piece
        return self.data

    def rest(self):
        while piece := self.sock.recv(65536):
            self.data += piece
        return self.data


@pytest.fixture
def ask(port, name, opened):
    """Return a function that asks for the stream: status, headers and body."""

    def make(query="", path=None, headers=""):
        sock = opened.enter_context(contextlib.closing(open_socket(port)))
        sock.sendall(f"GET {path or f'/live/{name}.mp4{query}'} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        return *read_head(sock), Body(sock)

    return make


@pytest.fixture
def watch(port, name, opened):
    """Return a function that connects a WebSocket."""

    def make(query=""):
        return opened.enter_context(connect_websocket(f"ws://127.0.0.1:{port}/live/{name}.mp4{query}", open_timeout=LIMIT_S))

    return make


def rest_of(client):
    """Read to the end; return the last message, and the close frame."""
    last = b""
    with contextlib.suppress(ConnectionClosed):
        while True:
            last = client.recv(LIMIT_S)
    return last, client.protocol.close_rcvd


def frames(items):
    """Return the data of frames: without the headers of messages."""
    return [payload[5 if type_id == VIDEO else 2 :] for type_id, _, payload in items]


def test_viewers_of_http_and_websocket_join_at_the_keyframe_and_get_the_same(publish, ask, watch):
    publisher = publish(*HEADERS, *gops(0, 2))
    status, headers, body = ask()
    assert (status, headers["content-type"]) == (200, BOTH_TYPE)
    assert headers["connection"] == "close"
    assert not headers.keys() & {"content-length", "transfer-encoding"}
    client = watch()
    feed(publisher, [*gops(3, 5), *gop(6, size=70_000)])
    last = frames(gop(6, size=70_000))[-1]
    data = body.until(last)
    assert all_kinds(data)[:4] == [b"ftyp", b"moov", b"moof", b"mdat"]
    found = [each.data for each in samples(data, numbered=False)]
    sent = frames([*gops(0, 5), *gop(6, size=70_000)])
    assert found == sent[-len(found) :]
    assert found[0] in [frames(gop(number))[0] for number in range(4)]
    messages = [client.recv(LIMIT_S)]
    while not messages[-1].endswith(last):
        messages.append(client.recv(LIMIT_S))
    assert all_kinds(messages[0]) == [b"ftyp", b"moov"]
    assert all(all_kinds(each) == [b"moof", b"mdat"] for each in messages[1:])
    assert data.endswith(b"".join(messages[1:]))


def test_head_says_the_codecs(publish, port, name):
    assert fetch(port, f"/live/{name}.mp4", method="HEAD")[0].status == 404
    publish(*HEADERS, *gop(0))
    answer, body = fetch(port, f"/live/{name}.mp4", method="HEAD")
    assert (answer.status, answer.getheader("Content-Type"), body) == (200, BOTH_TYPE, b"")


def test_the_head_is_held_until_the_codecs_are_known(publish, port, name, opened):
    socks = [opened.enter_context(contextlib.closing(open_socket(port))) for _ in range(3)]
    for sock in socks:
        sock.sendall(f"GET /live/{name}.mp4?wait=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(LIMIT_S)
    publish(*HEADERS, *gop(0))
    for sock in socks:
        status, headers = read_head(sock)
        assert (status, headers["content-type"]) == (200, BOTH_TYPE)
        assert len(samples(Body(sock).until(frames(gop(0))[-1]))) == 8


def test_a_stream_that_is_not_there_is_404(ask, port, name):
    status, _, _ = ask()
    assert status == 404
    answer, body = fetch(port, f"/live/{name}.mp4", Accept="application/json")
    assert json.loads(body)["error"] == f"live/{name} is not being published."
    assert answer.status == 404


def test_a_codec_that_mp4_does_not_carry_is_415_and_other_outputs_continue(publish, port, name, ask):
    speex = b"\xb2" + bytes(30)
    publish((AUDIO, 0, speex), (AUDIO, 1200, speex))
    status, _, body = ask()
    assert status == 415
    assert b"speex" in body.rest().lower()
    assert fetch(port, f"/live/{name}.mp4", method="HEAD")[0].status == 415
    _, _, flv = ask(path=f"/live/{name}.flv")
    assert flv.until(speex + b"\0\0\0\x2a")


def test_audio_that_starts_late_ends_the_body_behind_the_last_frame(shared, publish, ask, watch, name):
    publisher = publish((VIDEO, 0, AVC_HEADER), (VIDEO, 0, key(0)), (VIDEO, 40, inter(1)))
    status, headers, body = ask()
    assert (status, headers["content-type"]) == (200, VIDEO_TYPE)
    client = watch()
    feed(publisher, [(VIDEO, 80, inter(2)), (AUDIO, 80, AAC_HEADER), (AUDIO, 80, sound(0)), (VIDEO, 120, inter(3))])
    assert [each.data for each in samples(body.rest(), numbered=False)] == [key(0)[5:], inter(1)[5:], inter(2)[5:]]
    last, closed = rest_of(client)
    assert last.endswith(inter(2)[5:])
    assert (closed.code, closed.reason) == (1012, "the codecs of the stream have changed")
    shared.wait_for_line(rf"stopped playing live/{name} by (?:http|ws): the codecs of the stream have changed; ")
    # Asked for again, the stream begins at the same keyframe, now with both tracks.
    status, headers, body = ask()
    assert (status, headers["content-type"]) == (200, BOTH_TYPE)
    found = samples(body.until(inter(3)[5:]))
    assert [each.data for each in found] == frames(
        [(VIDEO, 0, key(0)), (VIDEO, 0, inter(1)), (VIDEO, 0, inter(2)), (AUDIO, 0, sound(0)), (VIDEO, 0, inter(3))]
    )


def test_another_profile_is_an_initialization_segment_in_the_body(publish, ask):
    publisher = publish((VIDEO, 0, AVC_HEADER), (AUDIO, 0, AAC_HEADER), *gop(0))
    _, _, body = ask()
    feed(publisher, [(VIDEO, 160, AVC_HEADER_2), *gop(1)])
    data = body.until(frames(gop(1))[-1])
    assert all_kinds(data).count(b"moov") == 2
    assert [each.data for each in samples(data)] == frames(gops(0, 1))


def test_the_end_of_the_stream_ends_the_body(publish, ask, watch):
    publisher = publish(*HEADERS, *gop(0))
    _, _, body = ask()
    client = watch()
    feed(publisher, gops(1, 3))
    publisher.close()
    assert body.rest().endswith(frames(gop(3))[-1])
    last, closed = rest_of(client)
    assert last.endswith(frames(gop(3))[-1])
    assert (closed.code, closed.reason) == (1000, "the stream has ended")


def test_a_slow_viewer_is_moved_to_a_keyframe_and_disturbs_no_other(server, raw, opened):
    running = server(HTTP_INI + "[server]\nunsent_limit_bytes = 4096\n[backpressure]\nlag_limit_bytes = 1000000\n")
    publisher = raw(running).publish("a")
    feed(publisher, [*HEADERS, *gop(0)])
    publisher.sync()
    bodies = []
    for _ in range(2):
        sock = opened.enter_context(contextlib.closing(open_socket(http_port(running))))
        sock.sendall(b"GET /live/a.mp4 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_head(sock)[0] == 200
        bodies.append(Body(sock))
    slow, other = bodies
    sent = gop(0)
    number = 0
    while not any("the player is too slow (skip" in line for line in running.log()):
        number += 1
        items = gop(number, size=100_000)
        sent += items
        feed(publisher, items)
        other.until(frames(items)[-1])
        assert number < 300
    last = gop(number + 1)
    feed(publisher, last)
    assert [each.data for each in samples(other.until(frames(last)[-1]), numbered=False)] == frames([*sent, *last])
    # Whole fragments, and a keyframe behind what it was not sent.
    found = samples(slow.until(frames(last)[-1]), numbered=False)
    times = [each.time for each in found if each.track == 1]
    assert times == sorted(times)
    assert 0 < len(found) < len(sent)
    places = [frames([*sent, *last]).index(each.data) for each in found]
    for before, after in pairwise(zip(places, found, strict=True)):
        assert after[0] == before[0] + 1 or after[1].sync


# The pages beside a stream -----------------------------------------------------------------------------------------------


def test_the_poster_is_the_newest_keyframe(publish, port, name):
    path = f"/live/{name}/poster.mp4"
    assert fetch(port, path)[0].status == 404
    publisher = publish(*HEADERS, *gop(0))
    answer, body = fetch(port, path)
    assert (answer.status, answer.getheader("Content-Type")) == (200, "video/mp4")
    assert answer.getheader("Cache-Control") == "public, max-age=2"
    assert [each.data for each in samples(body)] == [key(0, 100)[5:]]
    assert fetch(port, path, **{"If-None-Match": answer.getheader("ETag")})[0].status == 304
    assert fetch(port, path, Range="bytes=0-7")[1] == body[:8]
    feed(publisher, gop(1))
    publisher.sync()
    assert samples(fetch(port, path)[1])[0].data == key(4, 100)[5:]


def test_a_poster_of_a_codec_that_mp4_does_not_carry_is_415(publish, port, name):
    publish((VIDEO, 0, b"\x12keyframe of Flash"))
    assert fetch(port, f"/live/{name}/poster.mp4")[0].status == 415


def test_the_information_of_a_stream_is_what_a_page_wants_to_know(publish, port, name):
    path = f"/live/{name}/info.json"
    answer, body = fetch(port, path)
    assert (answer.status, answer.getheader("Cache-Control")) == (200, "no-store")
    nothing = {"stream": f"live/{name}", "live": False, "mp4_type": "", "problem": "", "renditions": [], "hls": "index.m3u8"}
    assert json.loads(body) == nothing
    publish(*HEADERS, *gop(0))
    assert json.loads(fetch(port, path)[1]) == nothing | {"live": True, "mp4_type": BOTH_TYPE}


def test_the_renditions_of_a_stream_are_the_streams_with_the_suffixes(shared, publish, port, raw, name):
    publish(*HEADERS, *gop(0))
    other = raw(shared).publish(f"{name}_low")
    feed(other, [(VIDEO, 0, AVC_HEADER.replace(b"\x64\0\x0a", b"\x64\0\x0b"))])
    other.sync()
    found = json.loads(fetch(port, f"/live/{name}/info.json")[1])["renditions"]
    assert {each["name"] for each in found} == {name, f"{name}_low"}
    assert found[0].items() >= {"width": 64, "height": 48}.items()
    assert found[0].keys() == {"name", "width", "height", "frame_rate", "bit_rate"}
    # It has no choice itself.
    assert json.loads(fetch(port, f"/live/{name}_low/info.json")[1])["renditions"] == []


def test_the_pages_beside_a_stream_need_the_authorization_of_a_play(server, raw):
    running = server(HTTP_INI + "[auth]\nauth_mode = token\nauth_tokens = live/a=s3cret\n")
    port = http_port(running)
    publisher = raw(running).publish("a?token=s3cret")
    feed(publisher, [*HEADERS, *gop(0)])
    publisher.sync()
    for page in ("info.json", "poster.mp4"):
        assert fetch(port, f"/live/a/{page}")[0].status == 401
        answer, body = fetch(port, f"/live/a/{page}?token=s3cret")
        assert answer.status == 200
        assert body
    assert answer.getheader("Cache-Control") == "private, max-age=2"
    # No play has begun.
    assert running.stop() == 0
    assert not [line for line in running.lines if "plays live/a" in line]
