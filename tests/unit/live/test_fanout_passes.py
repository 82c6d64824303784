"""Passes over many players: they give way to the event loop, rest in proportion to the work, and survive errors."""

from __future__ import annotations

import logging
import random

import gevent
import pytest

from tests.unit.live.fakes import FakeTime, FakeTransport, Scene, frame, keyframe, parse, remove_and_read_on, settle, texts

CROWD = 200  # more than a pass serves between two looks at the clock


@pytest.fixture
def slow_passes(monkeypatch):
    """Let each look at the clock find that the pass has held the event loop for too long."""
    clock = FakeTime(step_s=0.01)
    monkeypatch.setattr("rtmpd.live.fanout.time", clock)
    return clock


@pytest.fixture
def scene():
    made = Scene()
    yield made
    made.close()


def crowd(scene, size=CROWD):
    scene.video(keyframe())
    players = [scene.join() for _ in range(size)]
    settle()
    return players


def begin_pass(players):
    """Run the fan-out until it gives way inside a pass; return the players that were served, and the others."""
    before = [transport.sends for _, transport in players]
    gevent.sleep(0)
    served = [transport.sends > count for (_, transport), count in zip(players, before, strict=True)]
    first = served.index(False)
    assert 0 < first < len(players)
    assert not any(served[first:])
    return players[:first], players[first:]


# In the middle of a pass ------------------------------------------------------------------------------------------------


def test_a_pass_gives_way_to_others(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    begin_pass(players)
    settle()
    assert all(texts(transport) == [keyframe(), frame("1")] for _, transport in players)


def test_a_player_that_leaves_during_a_pass_gets_nothing_more(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    served, others = begin_pass(players)
    for subscriber, transport in (served[0], served[-1], others[0], others[-1]):
        taken = bytes(transport.data)
        assert scene.fanout.leave(subscriber) == b""
        # Its connection sends something else now; media in between would corrupt that.
        transport.error = AssertionError("sent to a player that has left")
        assert scene.fanout.sent_bytes(subscriber) == len(taken)
        parse(taken)
    settle()
    assert len(scene.fanout) == CROWD - 4
    assert scene.fanout.counters.bytes_sent == sum(len(transport.data) for _, transport in players)


def test_a_player_that_joins_during_a_pass_gets_each_message_once(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    begin_pass(players)
    newcomers = [scene.join() for _ in range(5)]
    scene.video(frame("2"))
    settle()
    assert all(texts(transport) == [keyframe(), frame("1"), frame("2")] for _, transport in [*players, *newcomers])
    assert len(scene.fanout) == CROWD + 5


def test_the_bytes_of_a_player_that_joins_and_leaves_during_a_pass_are_counted(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    begin_pass(players)
    subscriber, transport = scene.join()
    assert texts(transport) == [keyframe(), frame("1")]
    assert scene.fanout.leave(subscriber) == b""
    assert scene.fanout.sent_bytes(subscriber) == len(transport.data)
    settle()
    assert scene.fanout.counters.bytes_sent == len(transport.data) + sum(len(other.data) for _, other in players)


@pytest.mark.parametrize(("size", "block"), [(1000, 64), (20_000, 8)])
def test_a_pass_looks_at_the_clock_more_often_where_each_send_takes_longer(scene, slow_passes, size, block):
    players = crowd(scene)
    scene.video(frame("1", size))
    served, _ = begin_pass(players)
    assert len(served) == block
    settle()
    assert all(texts(transport) == [keyframe(), frame("1", size)] for _, transport in players)


def test_a_player_that_falls_behind_and_catches_up_within_one_pass_is_listed_once(scene, slow_passes):
    players = crowd(scene)
    slow = players[0][1]
    slow.capacity = 5
    scene.video(frame("1"))
    begin_pass(players)
    assert slow.watched
    slow.take()
    settle()
    scene.video(frame("2"))
    settle()
    assert texts(slow) == [keyframe(), frame("1"), frame("2")]
    assert len(scene.fanout) == CROWD


def test_a_reply_during_a_pass_comes_between_messages(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    served, others = begin_pass(players)
    for subscriber, _ in (served[0], others[-1]):
        scene.fanout.write(subscriber, scene.reply("reply"))
    scene.video(frame("2"))
    settle()
    for _, transport in (served[0], others[-1]):
        assert sorted(texts(transport)) == sorted([keyframe(), frame("1"), b"reply", frame("2")])
        assert [text for text in texts(transport) if text != b"reply"] == [keyframe(), frame("1"), frame("2")]


def test_a_reply_during_a_pass_is_owed_to_a_player_that_then_leaves(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    served, others = begin_pass(players)
    for subscriber, transport in (served[0], others[-1]):
        scene.fanout.write(subscriber, scene.reply("reply"))
        owed = scene.fanout.leave(subscriber)
        assert [m.payload for m in parse(bytes(transport.data) + owed)][-1] == b"reply"


def test_requests_during_a_pass_take_effect_after_it(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    served, others = begin_pass(players)
    for subscriber, _ in (served[0], others[-1]):
        scene.fanout.pause(subscriber)
    for subscriber, _ in (served[1], others[-2]):
        scene.receive(subscriber, video=False)
    settle()
    scene.video(frame("2"))
    settle()
    for _, transport in (served[0], others[-1], served[1], others[-2]):
        assert texts(transport) == [keyframe(), frame("1")]
    for subscriber, _ in (served[0], others[-1]):
        scene.fanout.resume(subscriber)
    settle()
    for _, transport in (served[0], others[-1]):
        assert texts(transport) == [keyframe(), frame("1"), keyframe(), frame("1"), frame("2")]


def test_a_player_may_change_its_transport_during_a_pass(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    served, others = begin_pass(players)
    for subscriber, old in (served[0], others[-1]):
        new = FakeTransport()
        taken = bytes(old.data) + scene.fanout.change_transport(subscriber, new)
        old.error = AssertionError("sent through the old transport")
        others.append((taken, new))
    scene.video(frame("2"))
    settle()
    for taken, new in others[-2:]:
        assert [m.payload for m in parse(taken + bytes(new.data))] == [keyframe(), frame("1"), frame("2")]


def test_all_players_may_leave_during_a_pass(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    begin_pass(players)
    for subscriber, _ in players:
        scene.fanout.leave(subscriber)
    settle()
    assert (len(scene.fanout), scene.fanout.active) == (0, False)
    _, transport = scene.join()
    scene.video(frame("2"))
    settle()
    assert texts(transport) == [keyframe(), frame("1"), frame("2")]


def test_in_the_middle_of_a_pass_the_place_of_a_player_depends_on_its_turn(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    settle(1)
    counts = {len(parse(bytes(transport.data))) for _, transport in players}
    assert counts == {1, 2}
    for subscriber, transport in players:
        assert texts(remove_and_read_on(scene, subscriber, transport)) == [keyframe(), frame("1")]


def test_a_sweep_during_a_pass_does_no_harm(slow_passes):
    scene = Scene(lag_limit_bytes=1000)
    players = crowd(scene)
    behind = players[-1][1]
    behind.capacity = 5
    scene.video(frame("1", 2000))
    settle()
    scene.video(keyframe("b"))
    begin_pass(players[:-1])
    behind.capacity = None
    scene.fanout.sweep(slow_passes.now_s)
    behind.take()
    scene.video(frame("2"))
    settle()
    assert texts(players[0][1]) == [keyframe(), frame("1", 2000), keyframe("b"), frame("2")]
    assert texts(behind) == [keyframe(), frame("1", 2000), keyframe("b"), frame("2")]
    scene.close()


def test_players_may_leave_join_and_pause_while_a_socket_is_written_to(scene):
    """A send may remove the player itself, another before it and another behind it."""
    players = crowd(scene, 10)
    deeds = []

    def misbehave():
        players[4][1].on_send = None
        deeds.extend(scene.fanout.leave(players[index][0]) for index in (2, 4, 6))
        scene.fanout.pause(players[7][0])
        scene.fanout.write(players[8][0], scene.reply("reply"))
        deeds.append(scene.join())

    players[4][1].on_send = misbehave
    scene.video(frame("1"))
    settle()
    scene.video(frame("2"))
    settle()
    got = [texts(transport) for _, transport in players]
    both = [keyframe(), frame("1"), frame("2")]
    assert [got[index] for index in (0, 1, 3, 5, 9)] == [both] * 5
    assert got[2] == got[4] == got[7] == [keyframe(), frame("1")]
    assert got[6] == [keyframe()]
    assert got[8] == [keyframe(), frame("1"), b"reply", frame("2")]
    assert deeds[:3] == [b"", b"", b""]
    assert texts(deeds[3][1]) == both
    assert len(scene.fanout) == 8


def test_a_flush_sends_all_players_all_messages_of_the_log(scene):
    players = crowd(scene)
    scene.video(frame("1"))
    scene.fanout.flush()
    assert all(texts(transport) == [keyframe(), frame("1")] for _, transport in players)
    scene.fanout.flush()
    assert all(texts(transport) == [keyframe(), frame("1")] for _, transport in players)


def test_a_flush_without_players_does_nothing(scene):
    scene.video(keyframe())
    scene.fanout.flush()
    assert scene.fanout.counters.bytes_sent == 0


def test_a_flush_gives_way_to_a_stream_that_continues(scene, slow_passes):
    """Messages that come while a flush gives way must not overtake those that the flush sends."""
    players = crowd(scene)
    scene.video(frame("1"))

    def publisher():
        for number in range(2, 6):
            scene.video(frame(str(number)))
            gevent.sleep(0)

    others = gevent.spawn(publisher)
    scene.fanout.flush()
    others.join()
    settle()
    for _, transport in players:
        assert texts(transport) == [keyframe(), *(frame(str(number)) for number in range(1, 6))]


def test_a_request_right_after_a_flush_finds_no_pass_under_way(scene, slow_passes):
    """Messages that come while a flush gives way never start a second pass inside the first."""
    players = crowd(scene)
    scene.video(frame("1"))
    others = gevent.spawn(scene.video, frame("2"))
    scene.fanout.flush()
    others.join()
    subscriber, transport = players[-1]
    transport.capacity = 5
    scene.fanout.pause(subscriber)
    settle()
    transport.take()
    scene.fanout.resume(subscriber)
    settle()
    got = texts(transport)
    assert got[:2] == [keyframe(), frame("1")]
    assert got[-3:] == [keyframe(), frame("1"), frame("2")]


def test_a_flush_waits_for_a_pass_that_is_under_way(scene, slow_passes):
    """The server closes all connections right after a flush: the last message must have been sent by then."""
    players = crowd(scene)
    scene.video(frame("1"))
    begin_pass(players)
    scene.video(frame("2"))
    scene.fanout.flush()
    assert all(texts(transport)[-1] == frame("2") for _, transport in players)


# Many -------------------------------------------------------------------------------------------------------------------


def test_the_list_of_members_is_not_searched_for_each_player_that_leaves():
    scene = Scene()
    scene.video(keyframe("a"))
    members = [scene.join()[0] for _ in range(100)]
    settle()
    group = scene.fanout._group
    assert len(group) == len(group.members) == 100
    for subscriber in members[:20]:
        scene.fanout.leave(subscriber)
    assert (len(group), len(scene.fanout), len(group.members)) == (80, 80, 100)
    again, transport = scene.join()
    scene.video(frame("b"))
    settle()
    assert len(group) == len(group.members) == 81
    assert [message.payload for message in transport.messages()][-1] == frame("b")
    for subscriber in [*members[20:], again]:
        scene.fanout.leave(subscriber)
    assert (len(group.members), scene.fanout.active) == (0, False)


def test_two_thousand_players_with_sockets_of_all_kinds(slow_passes):
    source = random.Random(2000)
    scene = Scene(lag_limit_bytes=1 << 24)
    scene.video(keyframe("", 900))
    players = [scene.join(source.choice([None, None, None, source.randrange(4000)])) for _ in range(2000)]
    for number in range(30):
        scene.video(frame(str(number), 300))
        gevent.sleep(0)
        for _, transport in source.sample(players, 30):
            transport.take(source.randrange(2000))
    settle(3000)
    while any(transport.watched for _, transport in players):
        for _, transport in players:
            transport.take()
        settle(3000)
    expected = [keyframe("", 900), *(frame(str(number), 300) for number in range(30))]
    first = bytes(players[0][1].data)
    assert texts(players[0][1]) == expected
    assert all(transport.data == first for _, transport in players)
    assert scene.fanout.counters.bytes_sent == 2000 * len(first)
    assert len(scene.fanout) == 2000
    scene.close()


def test_a_pass_holds_the_event_loop_for_a_few_milliseconds_at_most():
    """With the real clock: another greenlet runs in between, many times, while 2000 slow sends are made."""
    scene = Scene()
    players = crowd(scene, 2000)
    for _, transport in players:
        transport.on_send = lambda: sum(range(3000))
    turns = 0
    scene.video(frame("1"))
    while players[-1][1].sends < 2:
        gevent.sleep(0)
        turns += 1
    assert turns > 4
    scene.close()


# Pacing -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rests(monkeypatch):
    """The rests that the fan-out takes between passes."""
    taken = []
    sleep = gevent.sleep

    def record(seconds=0.0):
        if seconds:
            taken.append(seconds)
        sleep(0)

    monkeypatch.setattr(gevent, "sleep", record)
    return taken


def busy(monkeypatch, pass_s, **options):
    """Make a scene with one player whose passes take *pass_s* of work, and append five messages, one pass each."""
    clock = FakeTime()
    monkeypatch.setattr("rtmpd.live.fanout.time", clock)
    monkeypatch.setattr("rtmpd.live.fanout.SMALL", 0)
    scene = Scene(**options)
    scene.video(keyframe())
    _, transport = scene.join()
    settle()

    def work():
        clock.worked_s += pass_s
        clock.now_s += pass_s

    transport.on_send = work
    for number in range(5):
        scene.video(frame(str(number)))
        settle(4)
    assert len(texts(transport)) == 6
    scene.close()


@pytest.mark.parametrize(("share", "pass_s", "rest_s"), [(0.5, 0.002, 0.002), (0.2, 0.002, 0.008), (0.25, 0.01, 0.03)])
def test_rests_are_in_proportion_to_the_work(monkeypatch, rests, share, pass_s, rest_s):
    busy(monkeypatch, pass_s, pacing=True, pacing_share=share, pacing_limit_ms=1000)
    assert rests == pytest.approx([rest_s] * 5)


def test_no_rest_is_longer_than_the_limit(monkeypatch, rests):
    busy(monkeypatch, 1.0, pacing=True, pacing_share=0.1, pacing_limit_ms=350)
    assert rests == [0.35] * 5


def test_after_a_very_short_pass_there_is_no_rest(monkeypatch, rests):
    busy(monkeypatch, 0.00001, pacing=True, pacing_share=0.2, pacing_limit_ms=350)
    assert rests == []


def test_with_a_pacing_share_of_one_there_is_no_rest(monkeypatch, rests):
    busy(monkeypatch, 0.01, pacing=True, pacing_share=1, pacing_limit_ms=350)
    assert rests == []


def test_without_pacing_there_is_no_rest(monkeypatch, rests):
    busy(monkeypatch, 1.0, pacing=False)
    assert rests == []


# Bugs -------------------------------------------------------------------------------------------------------------------


class BuggyTransport(FakeTransport):
    """Raises an exception that no socket raises, *failures* times."""

    def __init__(self, failures):
        super().__init__()
        self.failures = failures

    def try_send(self, data):
        if self.failures:
            self.failures -= 1
            self.sends += 1
            raise RuntimeError("a bug")
        return super().try_send(data)


def test_an_error_in_one_pass_does_not_end_delivery(scene, caplog):
    players = crowd(scene, 3)
    buggy = BuggyTransport(0)
    scene.fanout.join(scene.subscriber(buggy))
    settle()
    buggy.failures = 1
    with caplog.at_level(logging.ERROR, "rtmpd"):
        scene.video(frame("1"))
        settle()
        scene.video(frame("2"))
        with gevent.Timeout(5):
            while any(texts(transport)[-1] != frame("2") for _, transport in players):
                gevent.sleep(0.001)
    assert "live/test: internal error in the fan-out: one pass to its players was cut short" in caplog.text
    assert all(texts(transport)[-1] == frame("2") for _, transport in players)


def test_an_error_in_each_pass_does_not_hold_the_event_loop(scene, caplog, monkeypatch):
    """Even without pacing, failing passes must leave time for all other greenlets."""
    monkeypatch.setattr("rtmpd.live.fanout.SMALL", 0)
    scene.video(keyframe())
    scene.join()
    settle()
    tries = []

    def fail(now_s, write_timeout_s=0.0):
        tries.append(now_s)
        if len(tries) < 200:
            raise RuntimeError("a bug")

    monkeypatch.setattr(scene.fanout, "sweep", fail)
    with caplog.at_level(logging.CRITICAL, "rtmpd"):
        scene.video(frame("", scene.options.backpressure.lag_limit_bytes))
        gevent.sleep(0)
        gevent.sleep(0)
    assert 0 < len(tries) < 10


def test_an_error_in_a_request_after_a_pass_ends_its_player_and_no_other(scene, caplog):
    players = crowd(scene, 3)

    def fail(fanout, subscriber):
        raise RuntimeError("a bug")

    # Both come in the middle of a pass.
    players[0][1].on_send = lambda: scene.fanout.when_between_passes(players[1][0], fail)
    with caplog.at_level(logging.ERROR, "rtmpd"):
        scene.video(frame("1"))
        settle()
    players[0][1].on_send = None
    assert "internal error while" in caplog.text
    assert players[1][1].close_reason
    scene.video(frame("2"))
    settle()
    assert all(texts(players[index][1])[-1] == frame("2") for index in (0, 2))
    assert scene.fanout.counters.errors == 1
