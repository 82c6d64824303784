"""Each policy for slow players: what they get, what is logged and counted, and that other players are not affected."""

from __future__ import annotations

import itertools
import re
import signal
import threading

import pytest

from tests.integration.beside import wait_until
from tests.integration.target import Target
from tests.integration.test_backpressure import FRAME_BYTES, GROUP, Flood, read_all
from tests.integration.test_hooks import Events
from tests.integration.test_metrics import metrics_port, scrape
from tests.integration.wire import AUDIO, AVC_HEADER, VIDEO, Item, inter, key, sound

INI = """
[server]
unsent_limit_bytes = 16384
write_timeout_s = 60
[metrics]
metrics_listen = 127.0.0.1:0
[hooks]
hook_stdio_format = json
[backpressure]
lag_limit_bytes = 2M
[applications]
[[live]]
[[nonref]]
backpressure_policy = nonref
[[disconnect]]
backpressure_policy = disconnect
[[late]]
max_latency_s = 1
"""


@pytest.fixture
def events(tmp_path):
    made = Events(tmp_path / "events")
    yield made
    made.file.close()


@pytest.fixture
def running(server, events):
    return server(INI, stdout=events.file)


def needless(number: int) -> bytes:
    """A frame that no other needs: one slice with nal_ref_idc 0."""
    body = b"\x01\x9e" + number.to_bytes(4, "big") + bytes(FRAME_BYTES)
    return b"\x27\x01\0\0\0" + len(body).to_bytes(4, "big") + body


class Stream(Flood):
    """A flood in an application of the test's choice; every second frame is disposable, and there is sound."""

    def __init__(self, server, raw, app, name) -> None:
        self.app = app
        super().__init__(server, lambda *arguments, **options: InApp(raw(*arguments, **options), app), name)

    def item(self) -> Item:
        n = self.number
        self.number += 1
        make = key if n % GROUP == 0 else inter
        return Item(VIDEO, n * 40, needless(n) if n % 2 else make(n, FRAME_BYTES))

    def send(self, count: int) -> None:
        for _ in range(count):
            if self.number:
                self.extra(Item(AUDIO, self.number * 40, sound(self.number)))
            super().send(1)


class InApp:
    """A wire that plays and publishes in another application than live."""

    def __init__(self, wire, app) -> None:
        self._wire, self._app = wire, app

    def __getattr__(self, name):
        return getattr(self._wire, name)

    def play(self, name):
        return self._wire.play(name, app=self._app)

    def publish(self, name):
        return self._wire.publish(name, app=self._app)


def slow_player(stream, server, raw, name):
    return raw(server, receive_buffer=4096).play(name, app=stream.app)


def values(port, key_):
    """The figures of one stream that back-pressure has."""
    found = scrape(port)
    names = ("skips", "messages_dropped", "frames_disposed", "disconnects")
    return {name: found[f"rtmp_stream_{name}_total", key_] for name in names}


def check_whole(stream, got):
    """What came was sent, in order and once; return it, and its places in the stream."""
    frames = [one for one in got if one in set(stream.sent)]
    order = {item: place for place, item in enumerate(stream.sent)}
    places = [order[one] for one in frames]
    assert places == sorted(set(places))
    return frames, places


def test_nonref_drops_only_disposable_frames(running, events, raw, name):
    port = metrics_port(running)
    stream = Stream(running, raw, "nonref", name)
    slow = slow_player(stream, running, raw, name)
    stream.send(76)  # 1.5 MB: beyond a half, and not beyond the bound
    running.process.send_signal(signal.SIGUSR2)
    running.wait_for_line(
        rf"nonref/{name}: player {slow.address} lagging: .* messages dropped, no disposable frames, its socket"
    )
    got = read_all(slow, stream.sent[-1])
    stream.check()
    frames, _ = check_whole(stream, got)
    missed = set(stream.sent) - set(frames)
    assert len(missed) > 20
    assert all(one.type_id == VIDEO and one.payload[9] == 1 for one in missed)
    (event,) = events.wait("player_slow")
    assert event["stream_key"] == f"nonref/{name}"
    data = event["data"]
    assert data["remote_addr"] == slow.address
    assert (data["action"], data["policy"], data["skips"]) == ("thin", "nonref", 0)
    assert data["dropped"] >= 1
    assert data["lag_bytes"] > 500_000
    assert data["lag_ms"] > 500
    figures = values(port, f"nonref/{name}")
    assert figures == {"skips": 0, "messages_dropped": len(missed), "frames_disposed": len(missed), "disconnects": 0}
    # It is level again, and gets everything.
    stream.send(10)
    assert read_all(slow, stream.sent[-1]) == stream.sent[-20:]
    slow.close()
    line = running.wait_for_line(rf"stopped playing nonref/{name}: .*, 0 skips, (\d+) messages? dropped$")
    assert int(line[1]) == len(missed)
    stop = next(each for each in events.wait("play_stop") if each["conn_id"] == event["conn_id"])
    assert (stop["data"]["skips"], stop["data"]["dropped"]) == (0, len(missed))


def test_nonref_skips_when_that_is_not_enough(running, events, raw, name):
    stream = Stream(running, raw, "nonref", name)
    slow = slow_player(stream, running, raw, name)
    stream.send(160)
    got = read_all(slow, stream.sent[-1])
    stream.check()
    _, places = check_whole(stream, got)
    videos = [one for one in got if one.type_id == VIDEO and one.payload[0] == 0x17 and one.payload != AVC_HEADER]
    assert len(places) < len(stream.sent) - 50
    assert videos[-1].timestamp >= 140 * 40
    assert {each["data"]["action"] for each in events.wait("player_slow")} <= {"thin", "skip"}
    slow.close()
    running.wait_for_line(rf"stopped playing nonref/{name}: .*, [1-9]\d* skips?, [1-9]\d* messages? dropped$")


def test_disconnect_closes_a_player_with_a_reason(running, events, raw, name):
    port = metrics_port(running)
    stream = Stream(running, raw, "disconnect", name)
    slow = slow_player(stream, running, raw, name)
    stream.send(130)
    reason = running.wait_for_line(rf"{slow.address} closed: (it was too slow: .*); [\d.]+ s, \d+ bytes in")[1]
    assert re.fullmatch(
        r"it was too slow: [\d.]+ s and \d+ bytes behind; lag_limit_s is 10, lag_limit_bytes is 2097152", reason
    )
    # What its buffers held, and then the last word.
    status = slow.wait_for(lambda command: command.name == "onStatus" and "InsufficientBW" in str(command.argument(0)))
    assert status.argument(0)["code"] == "NetStream.Play.InsufficientBW"
    assert status.argument(0)["level"] == "error"
    videos = [Item(one.type_id, one.timestamp, one.payload) for one in slow.seen if one.type_id == VIDEO]
    assert set(videos[1:]) <= set(stream.sent)
    assert slow.rest() == []
    stream.send(10)
    stream.check()
    (event,) = events.wait("player_slow")
    assert (event["data"]["action"], event["data"]["remote_addr"]) == ("disconnect", slow.address)
    stop = events.wait("play_stop")[0]
    assert stop["data"]["close_reason"] == reason
    assert values(port, f"disconnect/{name}")["disconnects"] == 1
    found = scrape(port)
    assert found["rtmpd_players_disconnected_total",] == found["rtmp_subscriber_drops_total",] == 1
    assert found["rtmp_zombie_connections_total",] == 0


def test_max_latency_moves_a_player_long_before_the_bounds(running, events, raw, name):
    stream = Stream(running, raw, "late", name)
    slow = slow_player(stream, running, raw, name)
    stream.send(100)
    got = read_all(slow, stream.sent[-1])
    stream.check()
    _, places = check_whole(stream, got)
    jumps = [(a, b) for a, b in itertools.pairwise(places) if b != a + 1]
    assert jumps
    # Four seconds of the stream; within the last, after a keyframe, it has everything.
    assert stream.sent[jumps[-1][1]].payload[0] == 0x17
    assert stream.sent[jumps[-1][1]].timestamp >= (100 - 25 - 2 * GROUP) * 40
    (event,) = events.wait("player_slow")
    assert (event["data"]["action"], event["data"]["policy"]) == ("skip", "keyframe")
    assert 1000 < event["data"]["lag_ms"] <= 2000
    slow.close()


def test_a_reload_brings_another_policy_to_players_that_are_there(server, events, raw, name, tmp_path):
    running = server(INI, stdout=events.file)
    stream = Stream(running, raw, "live", name)
    slow = slow_player(stream, running, raw, name)
    stream.send(60)
    (tmp_path / "rtmpd.ini").write_text(
        INI.replace("[[live]]\n", "[[live]]\nbackpressure_policy = disconnect\nlag_limit_bytes = 300K\n")
    )
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line(r"\breload(ed)?\b")
    wait_until(lambda: bool(stream.send(1) or events.of("player_slow")), "it is disconnected")
    running.wait_for_line(rf"{slow.address} closed: it was too slow: .* lag_limit_bytes is 307200")
    stream.check()


@pytest.mark.parametrize("policy", ["nonref", "disconnect"])
def test_a_relay_only_skips(server, raw, name, opened, policy):
    gate = threading.Event()
    opened.callback(gate.set)
    there = Target(on_publish=lambda _: gate.wait(30), receive_buffer=4096)
    opened.callback(there.close)
    running = server(
        f"[server]\nunsent_limit_bytes = 16384\n[backpressure]\nbackpressure_policy = {policy}\nlag_limit_bytes = 400000\n"
        f"[relay]\nrelay_to = {there.url()}\n"
    )
    stream = Stream(running, raw, "live", name)
    there.wait(lambda: there.peers, "the relay")
    running.wait_for_line(r"relay to \S+ is up")
    stream.send(100)
    gate.set()
    peer = there.publishing()
    # Behind the bounds it has skipped; from its last keyframe on it has everything, also what is disposable.
    there.wait(lambda: peer.media and peer.media[-1].payload == stream.sent[-1].payload, "the newest")
    stream.check()
    got = [one.payload for one in peer.media if one.type_id == VIDEO and one.payload != AVC_HEADER]
    sent = [one.payload for one in stream.sent if one.type_id == VIDEO]
    places = [sent.index(payload) for payload in got]
    jumps = [b for a, b in itertools.pairwise(places) if b != a + 1]
    assert jumps
    assert all(number % GROUP == 0 for number in jumps)
    assert not [line for line in running.log() if "is down" in line or "too slow" in line]
