"""A player that is too slow: its log line, its event, and the end of its connection."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from rtmpd.events import EventType
from rtmpd.live.subscriber import Slow
from rtmpd.media.rewrite import Rewrite
from rtmpd.phases import CloseKind, ConnectionPhase
from rtmpd.rtmp.player import Player
from rtmpd.rtmp.session import Session
from tests.unit.live.fakes import CHUNK, app_options, frame, keyframe, new_source, new_stream, settle
from tests.unit.rtmp.fakes import FakePolicy, new_connection


@pytest.fixture
def scene():
    """A connection that plays; `events` are those of the bus, `counted` the counters that were incremented."""
    policy, events = FakePolicy(), []
    policy.bus.subscribe((EventType.PLAYER_SLOW, EventType.PLAY_STOP), events.append)
    connection = new_connection(policy, number=7, ini=f"[server]\nchunk_size_bytes = {CHUNK}\n")
    connection.enter(ConnectionPhase.CONNECT)
    connection.enter(ConnectionPhase.COMMAND)
    stream = new_stream("live/a", app_options(lag_limit_bytes=5000, backpressure_policy="disconnect"))
    player = Player(connection, connection.create_message_stream(), "a")
    player.number = 3
    stream.begin(new_source())
    stream.source.video(0, keyframe())
    player.start(stream)
    settle()
    yield SimpleNamespace(
        connection=connection,
        stream=stream,
        player=player,
        events=events,
        counted=policy.counted,
        transport=connection.transport,
    )
    player.stop("test")
    stream.end()
    stream.close()


def fall_behind(scene):
    scene.transport.capacity = 0
    for number in range(8):
        scene.stream.source.video(40 + number * 40, frame(str(number), 1000))
        settle(3)


def test_the_event_and_the_log_line_of_a_slow_player(scene, caplog):
    scene.connection.client.user = "ann"
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
    assert "live/a: the player is too slow (disconnect, backpressure_policy): 0.2 s and " in line


def test_without_a_login_the_event_has_no_user(scene):
    fall_behind(scene)
    assert "user" not in scene.events[0].data


def test_a_player_disconnected_by_policy_is_no_zombie_and_its_socket_accepts_a_last_message(scene, caplog):
    before = scene.transport.unsent_limit_bytes
    fall_behind(scene)
    assert scene.transport.close_reason.startswith("it was too slow: ")
    assert scene.transport.close_reason.kind is CloseKind.EXPELLED
    assert scene.transport.unsent_limit_bytes > before
    warnings = len(caplog.records)
    scene.connection.closed(Session(scene.connection).run())
    assert scene.connection.close_reason.startswith("it was too slow: ")
    assert scene.counted == []
    assert [record for record in caplog.records[warnings:] if record.levelno >= logging.WARNING] == []


def test_a_player_that_has_stopped_is_not_reported_as_slow(scene):
    on_slow = scene.player.subscriber.on_slow
    scene.player.stop("test")
    on_slow(Slow("skip", "keyframe", 1, 1))
    assert [event.type for event in scene.events] == [EventType.PLAY_STOP]


def test_the_event_of_the_end_of_a_play_has_skips_and_dropped_messages(scene):
    scene.player.subscriber.skips, scene.player.subscriber.dropped = 2, 70
    scene.player.stop("test")
    assert (scene.events[0].data["skips"], scene.events[0].data["dropped"]) == (2, 70)


def test_players_of_a_rewritten_output_are_counted_for_the_stream(scene):
    scene.stream.content.multitrack = True
    rewritten = scene.stream.output(Rewrite(default_track=True))
    assert rewritten is not scene.stream.published
    assert rewritten.fanout.counters is scene.stream.published.fanout.counters is scene.stream.counters
