from __future__ import annotations

import gc
import logging
import weakref
from functools import partial

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from rtmpd.config.loader import load_text
from rtmpd.errors import Refused, TransportClosed
from rtmpd.hub import Hub
from rtmpd.net.transport import Transport
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.util.log_throttle import LogThrottle
from tests.unit.live.fakes import FakeTime, FakeTransport, frame, keyframe, new_source, new_subscriber, settle, texts

LIMIT_S = 10


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime()
    for module in ("hub", "live.stream", "live.source", "live.fanout", "live.ingest"):
        monkeypatch.setattr(f"rtmpd.{module}.time", made)
    return made


@pytest.fixture
def make_hub():
    made = []

    def make(ini=""):
        made.append(Hub(load_text(ini)))
        return made[-1]

    yield make
    for hub in made:
        if hub.greenlet is not None:
            hub.greenlet.kill()
        for stream in hub.streams.values():
            stream.end()
            stream.close()
    settle(2)


LEFT = CloseReason(CloseKind.PEER_LEFT, "closed by the peer")


class FakePublisher:
    """A source, with what ends it.

    Attributes:
        stopped: Why the source was stopped, by the hub or by the test.
    """

    def __init__(self, hub, key="live/test", **info):
        self.hub = hub
        self.stopped = None
        self.source = new_source(self.stop, **info)
        self.stream = hub.publish(key, self.source)

    def stop(self, reason):
        self.stopped = reason
        self.hub.unpublish(self.stream, self.source)


class FakeConnection:
    """A connection that the hub did not open, as far as the hub uses it."""

    number = 3

    def __init__(self):
        self.options = None
        self.swept = []
        self.ending = False

    def sweep(self, now_s):
        self.swept.append(now_s)

    def held_bytes(self):
        return 1000


class FakePlayer:
    """A player, as far as the hub uses it."""

    number = 0

    def ended(self):
        pass


class Playing:
    """A player that has joined the published output.

    Attributes:
        stream: What it plays.
        transport: What it is sent.
    """

    def __init__(self, hub, key="live/test"):
        self.player = FakePlayer()
        self.transport = FakeTransport()
        self._subscriber = new_subscriber(self.transport, chunk_size=hub.chunk_size)
        self._hub = hub
        self.stream = hub.play(key, self.player)
        self.stream.published.fanout.join(self._subscriber)

    def leave(self):
        self.stream.published.fanout.leave(self._subscriber)
        self._hub.unplay(self.stream, self.player)

    def texts(self):
        return texts(self.transport, self._hub.chunk_size)


# Publishing -------------------------------------------------------------------------------------------------------------


def test_a_publisher_opens_a_stream_with_the_servers_chunk_size(make_hub):
    hub = make_hub("[server]\nchunk_size_bytes = 5000\n")
    publisher = FakePublisher(hub)
    assert hub.streams == {"live/test": publisher.stream}
    assert publisher.stream.source is publisher.source
    assert publisher.stream.published.log.framing.chunk_size == 5000
    assert hub.counters["publishes"] == 1


def test_a_stream_has_one_publisher(make_hub, clock):
    hub = make_hub()
    first = FakePublisher(hub)
    with pytest.raises(Refused) as caught:
        FakePublisher(hub)
    assert caught.value.code == "NetStream.Publish.BadName"
    assert first.stream.source is first.source
    assert hub.counters["publishes"] == 1
    assert FakePublisher(hub, "live/other").stream is not first.stream


def test_a_silent_publisher_is_replaced(make_hub, clock):
    hub = make_hub("[publish]\npublisher_takeover_s = 5\n")
    first = FakePublisher(hub)
    clock.now_s += 5
    second = FakePublisher(hub)
    assert first.stopped == "another publisher took over"
    assert first.stopped.kind is CloseKind.TAKEN_OVER
    assert hub.streams["live/test"] is second.stream
    assert second.stream.source is second.source


def test_a_publisher_that_has_sent_since_the_last_sweep_is_not_silent(make_hub, clock):
    hub = make_hub("[publish]\npublisher_takeover_s = 5\n")
    first = FakePublisher(hub)
    clock.now_s += 5
    first.source.video(0, keyframe())
    with pytest.raises(Refused):
        FakePublisher(hub)


def test_without_takeover_no_publisher_is_replaced(make_hub, clock):
    hub = make_hub("[publish]\npublisher_takeover_s = 0\n")
    FakePublisher(hub)
    clock.now_s += 10_000
    with pytest.raises(Refused):
        FakePublisher(hub)


@pytest.mark.parametrize("grace_s", [0, 10])
@pytest.mark.parametrize("watched", [False, True])
def test_after_a_takeover_the_new_publisher_feeds_the_registered_stream(make_hub, clock, grace_s, watched):
    hub = make_hub(f"[publish]\npublisher_grace_s = {grace_s}\npublisher_takeover_s = 5\n[live]\npacing = no\n")
    FakePublisher(hub)
    early = Playing(hub) if watched else None
    clock.now_s += 5
    second = FakePublisher(hub)
    assert hub.streams == {"live/test": second.stream}
    late = Playing(hub)
    assert late.stream is second.stream
    second.source.video(0, keyframe())
    settle()
    assert late.texts()[-1] == keyframe()
    if early is not None:
        assert early.texts()[-1] == keyframe()


def test_a_replaced_publisher_does_not_end_the_stream(make_hub, clock):
    hub = make_hub("[publish]\npublisher_grace_s = 0\n")
    first = FakePublisher(hub)
    clock.now_s += 60
    second = FakePublisher(hub)
    hub.unpublish(second.stream, first.source)
    assert second.stream.source is second.source
    assert second.stream.announced


def test_a_publisher_may_return_within_the_grace(make_hub, clock):
    hub = make_hub("[publish]\npublisher_grace_s = 10\n")
    first = FakePublisher(hub)
    first.stop(LEFT)
    assert hub.streams["live/test"].announced
    clock.now_s += 9
    assert FakePublisher(hub).stream is first.stream


def test_without_grace_a_stream_ends_with_its_publisher(make_hub):
    hub = make_hub("[publish]\npublisher_grace_s = 0\n")
    FakePublisher(hub).stop(LEFT)
    assert hub.streams == {}


def test_without_grace_players_are_notified_at_once_and_may_stay(make_hub):
    hub = make_hub("[publish]\npublisher_grace_s = 0\n[live]\npacing = no\n")
    publisher = FakePublisher(hub)
    publisher.source.video(0, keyframe())
    playing = Playing(hub)
    publisher.stop(LEFT)
    settle()
    assert b"UnpublishNotify" in b"".join(playing.texts())
    assert hub.streams == {"live/test": playing.stream}
    playing.leave()
    assert hub.streams == {}


# Playing ----------------------------------------------------------------------------------------------------------------


def test_players_share_the_publishers_stream(make_hub):
    hub = make_hub()
    publisher = FakePublisher(hub)
    players = [Playing(hub) for _ in range(3)]
    assert all(each.stream is publisher.stream for each in players)
    assert publisher.stream.players == {each.player for each in players}
    assert hub.counters["plays"] == 3


def test_a_player_may_wait_for_a_publisher(make_hub):
    hub = make_hub("[live]\npacing = no\n")
    playing = Playing(hub)
    publisher = FakePublisher(hub)
    assert publisher.stream is playing.stream
    publisher.source.video(0, keyframe())
    settle()
    assert playing.texts()[-1] == keyframe()


def test_a_player_may_not_wait_for_a_publisher_if_that_is_switched_off(make_hub):
    hub = make_hub("[live]\nwait_for_publisher = no\n[publish]\npublisher_grace_s = 10\n")
    with pytest.raises(Refused) as caught:
        hub.play("live/test", FakePlayer())
    assert caught.value.code == "NetStream.Play.StreamNotFound"
    assert (hub.streams, hub.counters["plays"]) == ({}, 0)
    publisher = FakePublisher(hub)
    Playing(hub)
    publisher.stop(LEFT)
    # Within the grace the stream is still there.
    Playing(hub)
    publisher.stream.end()
    with pytest.raises(Refused):
        hub.play("live/test", FakePlayer())


def test_a_stream_is_removed_when_its_last_player_stops_waiting(make_hub):
    hub = make_hub()
    first, second = Playing(hub), Playing(hub)
    first.leave()
    assert hub.streams
    second.leave()
    assert hub.streams == {}
    second.leave()


def test_the_delivery_counters_of_a_removed_stream_are_kept(make_hub, clock):
    hub = make_hub("[backpressure]\nlag_limit_bytes = 1024\n[publish]\npublisher_grace_s = 0\n[live]\npacing = no\n")
    publisher = FakePublisher(hub)
    publisher.source.video(0, keyframe())
    playing = Playing(hub)
    settle()
    playing.transport.capacity = 0
    publisher.source.video(40, frame("", 5000))
    publisher.source.video(80, keyframe())
    settle()
    clock.now_s += 31
    publisher.stream.sweep(clock.now_s, 30)
    playing.leave()
    publisher.stop(LEFT)
    assert hub.streams == {}
    assert (hub.counters["player_skips"], hub.counters["players_stalled"]) == (1, 1)


# Applications -----------------------------------------------------------------------------------------------------------

APPLICATIONS = """
[live]
keyframe_wait_s = 1
[applications]
[[live]]
keyframe_wait_s = 2
[[live/sub]]
keyframe_wait_s = 3
[[deep/er]]
keyframe_wait_s = 4
"""


@pytest.mark.parametrize(
    ("key", "keyframe_wait_s"), [("live/a", 2), ("live/sub/a", 3), ("live/other/a", 2), ("deep/er/a", 4), ("live/sub", 2)]
)
def test_a_stream_has_the_options_of_its_application(make_hub, key, keyframe_wait_s):
    hub = make_hub(APPLICATIONS)
    assert FakePublisher(hub, key).stream.options.live.keyframe_wait_s == keyframe_wait_s
    assert hub.play(key, FakePlayer()).options.live.keyframe_wait_s == keyframe_wait_s


def test_without_applications_every_app_is_admitted(make_hub):
    hub = make_hub()
    assert hub.admit("anything/goes") == hub.config.live


def test_only_apps_that_may_lead_to_an_application_are_admitted(make_hub):
    hub = make_hub(APPLICATIONS)
    assert hub.admit("live").keyframe_wait_s == 2
    assert hub.admit("live/sub").keyframe_wait_s == 3
    assert hub.admit("deep").keyframe_wait_s == 1
    for app in ("other", "dee", "lively", ""):
        with pytest.raises(Refused) as caught:
            hub.admit(app)
        assert caught.value.code == "NetConnection.Connect.InvalidApp"


def test_a_stream_of_no_application_is_refused(make_hub):
    hub = make_hub(APPLICATIONS)
    with pytest.raises(Refused):
        FakePublisher(hub, "deep/a")
    with pytest.raises(Refused) as caught:
        hub.play("deep/a", FakePlayer())
    assert caught.value.code == "NetStream.Play.StreamNotFound"
    assert hub.streams == {}


def test_a_reload_changes_the_options_of_streams_and_connections(make_hub):
    hub = make_hub(APPLICATIONS)
    streams = [FakePublisher(hub, key).stream for key in ("live/a", "live/sub/a", "deep/er/a")]
    connection = FakeConnection()
    hub.connections.add(connection)
    hub.reload(
        load_text(
            "[server]\nping_interval_s = 7\n"
            "[applications]\n[[live]]\nkeyframe_wait_s = 20\n[[live/sub]]\nkeyframe_wait_s = 30\n"
        )
    )
    # The application of the last stream has been removed; the stream keeps its options.
    assert [stream.options.live.keyframe_wait_s for stream in streams] == [20, 30, 4]
    assert [stream.published.fanout.options.keyframe_wait_s for stream in streams] == [20, 30, 4]
    assert connection.options.server.ping_interval_s == 7
    hub.connections.clear()


# Connections ------------------------------------------------------------------------------------------------------------


class SilentTransport(FakeTransport):
    """A client that sends nothing until the test ends the connection."""

    scheme = "rtmp"
    bytes_sent = 0
    sending = False

    def __init__(self, peer="192.0.2.1:50000"):
        super().__init__()
        self.peer = peer
        self.address = peer.rpartition(":")[0]
        self.over = Event()
        self.failure: BaseException = TransportClosed("closed by the peer")

    def recv(self):
        self.over.wait()
        raise self.failure

    def close(self, reason):
        super().close(reason)
        self.over.set()


def serve(hub, *peers):
    transports = [SilentTransport(peer) for peer in peers]
    greenlets = [gevent.spawn(hub.serve, transport) for transport in transports]
    gevent.sleep(0)
    return transports, greenlets


def end(transports, greenlets):
    for transport in transports:
        transport.over.set()
    gevent.joinall(greenlets, timeout=LIMIT_S, raise_error=True)


def test_connections_are_counted_and_removed_when_they_end(make_hub):
    hub = make_hub()
    transports, greenlets = serve(hub, "192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1")
    assert len(hub.connections) == 3
    end(transports, greenlets)
    assert (len(hub.connections), hub.counters["connections"]) == (0, 3)


def test_more_connections_than_allowed_are_refused(make_hub):
    hub = make_hub("[limits]\nconnection_limit = 2\n")
    transports, greenlets = serve(hub, "192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1")
    assert [greenlet.ready() for greenlet in greenlets] == [False, False, True]
    assert (len(hub.connections), hub.counters["connections_refused"]) == (2, 1)
    end(transports, greenlets)
    transports, greenlets = serve(hub, "192.0.2.3:1")
    assert not greenlets[0].ready()
    end(transports, greenlets)


def test_more_connections_of_one_address_than_allowed_are_refused(make_hub):
    hub = make_hub("[limits]\nconnections_per_address_limit = 1\n")
    first = serve(hub, "192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "[::1]:1", "[::1]:2")
    assert [greenlet.ready() for greenlet in first[1]] == [False, True, False, False, True]
    end(*first)
    second = serve(hub, "192.0.2.1:3")
    assert not second[1][0].ready()
    end(*second)


def test_no_connection_is_served_once_the_server_stops(make_hub):
    hub = make_hub()
    hub.stop()
    _, greenlets = serve(hub, "192.0.2.1:1")
    assert greenlets[0].ready()
    assert hub.counters["connections_refused"] == 1


def test_repeated_refusals_are_logged_every_ten_seconds(make_hub, clock, caplog, monkeypatch):
    monkeypatch.setattr("rtmpd.hub.LogThrottle", partial(LogThrottle, clock=clock.monotonic))
    hub = make_hub("[limits]\nconnection_limit = 1\n")
    held = serve(hub, "192.0.2.1:1")
    with caplog.at_level(logging.WARNING, "rtmpd"):
        for _ in range(50):
            serve(hub, "192.0.2.9:1")
            clock.now_s += 0.3
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(lines) == 2
    assert lines[0] == "connection from 192.0.2.9:1 refused: connection_limit is 1 (1 refused so far)"
    end(*held)


def test_an_internal_error_is_logged_and_counted_and_ends_one_connection(make_hub, caplog):
    hub = make_hub("[limits]\nconnections_per_address_limit = 2\n")
    (failing, other), greenlets = serve(hub, "192.0.2.1:1", "192.0.2.1:2")
    failing.failure = RuntimeError("a bug")
    with caplog.at_level(logging.ERROR, "rtmpd"):
        failing.over.set()
        greenlets[0].get(timeout=LIMIT_S)
    assert "internal error in phase handshake: the connection is closed" in caplog.text
    assert hub.counters["internal_errors"] == 1
    assert len(hub.connections) == 1
    end([other], greenlets[1:])


def test_a_killed_connection_is_no_error(make_hub):
    hub = make_hub()
    _, greenlets = serve(hub, "192.0.2.1:1")
    greenlets[0].kill()
    assert greenlets[0].successful()
    assert (len(hub.connections), hub.counters["internal_errors"]) == (0, 0)


# Upkeep ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_sweeps(monkeypatch):
    monkeypatch.setattr("rtmpd.hub._SWEEP_S", 0.001)


def wait_until(condition):
    with gevent.Timeout(LIMIT_S):
        while not condition():
            gevent.sleep(0.001)


def test_streams_whose_grace_is_over_are_removed(make_hub, clock, quick_sweeps):
    hub = make_hub("[publish]\npublisher_grace_s = 10\n")
    hub.start()
    publisher = FakePublisher(hub)
    publisher.stop(LEFT)
    clock.now_s += 9
    gevent.sleep(0.01)
    assert hub.streams
    clock.now_s += 1
    wait_until(lambda: not hub.streams)


def test_connections_and_streams_are_swept(make_hub, clock, quick_sweeps):
    hub = make_hub()
    connection = FakeConnection()
    hub.connections.add(connection)
    publisher = FakePublisher(hub)
    publisher.source.video(0, keyframe())
    hub.start()
    clock.now_s += 3
    wait_until(lambda: publisher.source.active_at == clock.now_s and connection.swept)
    assert set(connection.swept) == {clock.now_s}
    hub.connections.clear()


@pytest.mark.parametrize(("timeouts", "share"), [("", 3), ("read_timeout_s = 6", 1), ("connect_timeout_s = 12", 2)])
def test_connections_with_long_timeouts_are_swept_in_turns(make_hub, timeouts, share):
    hub = make_hub(f"[server]\n{timeouts}\n")
    connections = [FakeConnection() for _ in range(6)]
    for number, connection in enumerate(connections):
        connection.number = number
    hub.connections.update(connections)
    for now_s in range(6):
        hub._sweep(float(now_s))
    assert [len(connection.swept) for connection in connections] == [6 // share] * 6
    hub.connections.clear()


def test_a_stop_notifies_players_and_closes_connections(make_hub):
    hub = make_hub("[live]\npacing = no\n")
    hub.start()
    publisher = FakePublisher(hub)
    publisher.source.video(0, keyframe())
    players = [Playing(hub) for _ in range(3)]
    settle()
    publisher.source.video(40, frame("last"))
    transports, greenlets = serve(hub, "192.0.2.1:1", "192.0.2.2:1")
    hub.stop()
    assert [transport.close_reason for transport in transports] == ["the server is stopping"] * 2
    for playing in players:
        got = playing.texts()
        assert got[:2] == [keyframe(), frame("last")]
        assert any(b"UnpublishNotify" in payload for payload in got[2:])
    end(transports, greenlets)
    settle()
    assert hub.greenlet.ready()


# Memory -----------------------------------------------------------------------------------------------------------------


def test_a_removed_stream_is_freed_without_the_garbage_collector(make_hub):
    """The collector runs seldom: streams that wait for it, each with its pages, add up to gigabytes."""
    hub = make_hub("[publish]\npublisher_grace_s = 0\n[live]\npacing = no\n")
    gc.collect()
    gc.disable()
    try:
        publisher, playing = FakePublisher(hub), Playing(hub)
        publisher.source.video(0, keyframe())
        settle()
        stream = weakref.ref(publisher.stream)
        publisher.stop(LEFT)
        playing.leave()
        # The stand-in is a cycle of its own; a publisher forgets its stream.
        publisher.stream = None
        del publisher, playing
        settle()
        assert hub.streams == {}
        assert stream() is None
    finally:
        gc.enable()


def test_a_connection_that_has_ended_is_freed_without_the_garbage_collector(make_hub):
    """The collector runs seldom, and thousands of connections may have come and gone by then."""
    hub = make_hub()
    gc.disable()
    try:
        here, there = socket.socketpair()
        serving = gevent.spawn(hub.serve, Transport(there, "192.0.2.1:1"))
        while not hub.connections:
            gevent.sleep(0)
        connection = weakref.ref(next(iter(hub.connections)))
        here.close()
        serving.join(LIMIT_S)
        del serving
        gevent.sleep(0)
        assert connection() is None
    finally:
        gc.enable()
        there.close()


# Loops of relays --------------------------------------------------------------------------------------------------------


def test_a_stream_that_has_come_through_this_server_is_refused(make_hub):
    hub = make_hub()
    with pytest.raises(Refused, match=r"NetStream\.Publish\.Rejected: A relay loop"):
        FakePublisher(hub, "live/a", via=("0123456789abcdef", hub.id))
    assert hub.counters["relay_loops"] == 1
    assert not hub.streams


def test_a_source_has_the_servers_that_its_stream_has_come_through(make_hub):
    publisher = FakePublisher(make_hub(), "live/a", via=("0123456789abcdef",))
    assert publisher.stream.source.info.via == ("0123456789abcdef",)


def test_each_hub_has_its_own_id(make_hub):
    assert make_hub().id != make_hub().id


def test_the_sweep_keeps_no_stream_that_has_ended(make_hub, monkeypatch):
    monkeypatch.setattr("rtmpd.hub._SWEEP_S", 0.001)
    hub = make_hub("[publish]\npublisher_grace_s = 0\n")
    hub.start()
    publisher = FakePublisher(hub)
    publisher.source.video(0, keyframe())
    before_s = publisher.source.active_at
    with gevent.Timeout(LIMIT_S):
        while publisher.source.active_at == before_s:
            gevent.sleep(0.001)
    stream = weakref.ref(publisher.stream)
    publisher.stop(LEFT)
    del publisher
    assert hub.streams == {}
    gc.collect()
    assert stream() is None
    hub.stop()
