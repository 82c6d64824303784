"""A player that is too slow: what is said, who is told, and how its connection ends."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from rtmpd.config.loader import load_text
from rtmpd.errors import TransportClosed
from rtmpd.events import EventBus, EventType
from rtmpd.live.backpressure import Slow
from rtmpd.live.stream import Stream
from rtmpd.media.rewrite import Rewrite
from rtmpd.rtmp.connection import Connection
from rtmpd.rtmp.player import Player
from tests.unit.live.fakes import CHUNK, FakeTransport, app_options, frame, keyframe, settle


class Socket(FakeTransport):
    """A transport as a session knows it, over a fake socket."""

    peer = "192.0.2.1:50000"
    bytes_sent = 0
    sending = False
    unsent = 0

    def recv(self):
        raise TransportClosed(self.close_reason)

    def limit_unsent(self, limit_bytes):
        self.unsent = limit_bytes


@pytest.fixture
def scene():
    """A connection that plays; `events` is what the bus tells, `counted` what it counts."""
    events, counted, bus = [], [], EventBus()
    bus.subscribe((EventType.PLAYER_SLOW, EventType.PLAY_STOP), events.append)
    hub = SimpleNamespace(config=load_text(""), stopping=False, bus=bus, count=counted.append, unplay=lambda *_: None)
    connection = Connection(Socket(), hub, 7)
    stream = Stream("live/a", app_options(lag_limit_bytes=5000, backpressure_policy="disconnect"), CHUNK)
    player = Player(connection, connection.create_message_stream(), "a")
    player.number = 3
    stream.begin(object())
    stream.video(0, keyframe())
    player.start(stream)
    settle()
    yield SimpleNamespace(
        connection=connection, stream=stream, player=player, events=events, counted=counted, transport=connection.transport
    )
    player.stop("test")
    stream.close()


def fall_behind(scene):
    scene.transport.capacity = 0
    for number in range(8):
        scene.stream.video(40 + number * 40, frame(str(number), 1000))
        settle(3)


def test_the_event_has_what_hooks_need(scene, caplog):
    scene.connection.user = "ann"
    fall_behind(scene)
    (event,) = scene.events
    assert (event.type, event.stream_key, event.connection_id) == (EventType.PLAYER_SLOW, "live/a", "7")
    data = dict(event.data)
    assert data.pop("lag_bytes") > 5000
    assert data.pop("lag_ms") >= 160
    assert data == {
        "remote_addr": "192.0.2.1:50000",
        "id": 3,
        "user": "ann",
        "action": "disconnect",
        "policy": "disconnect",
        "skips": 0,
        "dropped": 0,
    }
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "live/a: too slow (disconnect): 0.2 s and " in line


def test_without_a_login_there_is_no_user(scene):
    fall_behind(scene)
    assert "user" not in scene.events[0].data


def test_who_is_disconnected_is_no_zombie_and_its_socket_may_take_the_last_word(scene):
    before = scene.transport.unsent
    fall_behind(scene)
    assert scene.transport.close_reason.startswith("it was too slow: ")
    assert scene.transport.unsent > before
    scene.connection.run()
    assert scene.counted == []


def test_a_player_that_has_stopped_is_not_told_of(scene):
    on_slow = scene.player.subscriber.on_slow
    scene.player.stop("test")
    on_slow(Slow("skip", "keyframe", 1, 1))
    assert [event.type for event in scene.events] == [EventType.PLAY_STOP]


def test_the_end_of_a_play_has_what_was_lost(scene):
    scene.player.subscriber.skips, scene.player.subscriber.dropped = 2, 70
    scene.player.stop("test")
    assert (scene.events[0].data["skips"], scene.events[0].data["dropped"]) == (2, 70)


def test_players_of_a_variant_count_for_the_stream(scene):
    scene.stream.content.multitrack = True
    variant = scene.stream.fanout_for(Rewrite(default_track=True))
    assert variant is not scene.stream.fanout
    assert variant.tally is scene.stream.fanout.tally
