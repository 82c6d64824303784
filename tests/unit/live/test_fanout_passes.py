"""Passes over many players: they give way in their middle, rest in proportion, and survive what happens meanwhile."""

from __future__ import annotations

import logging
import random

import gevent
import pytest

from rtmpd.live.subscriber import Subscriber
from tests.unit.live.fakes import FakeTime, FakeTransport, Scene, frame, keyframe, parse, settle, texts

CROWD = 200  # more than a pass serves without looking at the clock


@pytest.fixture
def slow_passes(monkeypatch):
    """Every look at the clock finds that the pass has held the event loop for too long."""
    clock = FakeTime(step_s=0.01)
    monkeypatch.setattr("rtmpd.live.fanout.time", clock)
    monkeypatch.setattr("rtmpd.live.group.time", clock)
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
    """Run the fan-out until it gives way inside a pass; return who has been served and who has not."""
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


def test_who_leaves_before_its_turn_gets_nothing_more(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    served, others = begin_pass(players)
    for subscriber, transport in (served[0], served[-1], others[0], others[-1]):
        taken = bytes(transport.data)
        assert scene.fanout.leave(subscriber) == b""
        # Its connection says something else now; media in between would corrupt it.
        transport.error = AssertionError("sent to a player that has left")
        assert scene.fanout.sent_bytes(subscriber) == len(taken)
        parse(taken)
    settle()
    assert len(scene.fanout) == CROWD - 4
    assert scene.fanout.tally.bytes_sent == sum(len(transport.data) for _, transport in players)


def test_who_joins_in_the_middle_of_a_pass_gets_everything_once(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    begin_pass(players)
    newcomers = [scene.join() for _ in range(5)]
    scene.video(frame("2"))
    settle()
    assert all(texts(transport) == [keyframe(), frame("1"), frame("2")] for _, transport in [*players, *newcomers])
    assert len(scene.fanout) == CROWD + 5


def test_who_joins_and_leaves_in_the_middle_of_a_pass_is_counted_right(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    begin_pass(players)
    subscriber, transport = scene.join()
    assert texts(transport) == [keyframe(), frame("1")]
    assert scene.fanout.leave(subscriber) == b""
    assert scene.fanout.sent_bytes(subscriber) == len(transport.data)
    settle()
    assert scene.fanout.tally.bytes_sent == len(transport.data) + sum(len(other.data) for _, other in players)


@pytest.mark.parametrize(("size", "block"), [(1000, 64), (20_000, 8)])
def test_the_clock_is_looked_at_more_often_where_each_member_takes_longer(scene, slow_passes, size, block):
    players = crowd(scene)
    scene.video(frame("1", size))
    served, _ = begin_pass(players)
    assert len(served) == block
    settle()
    assert all(texts(transport) == [keyframe(), frame("1", size)] for _, transport in players)


def test_who_falls_behind_and_catches_up_within_one_pass_is_there_once(scene, slow_passes):
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


def test_a_reply_in_the_middle_of_a_pass_comes_between_messages(scene, slow_passes):
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


def test_a_reply_in_the_middle_of_a_pass_is_owed_to_one_who_then_leaves(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    served, others = begin_pass(players)
    for subscriber, transport in (served[0], others[-1]):
        scene.fanout.write(subscriber, scene.reply("reply"))
        owed = scene.fanout.leave(subscriber)
        assert [m.payload for m in parse(bytes(transport.data) + owed)][-1] == b"reply"


def test_requests_in_the_middle_of_a_pass_take_effect_after_it(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    served, others = begin_pass(players)
    for subscriber, _ in (served[0], others[-1]):
        scene.fanout.pause(subscriber)
    for subscriber, _ in (served[1], others[-2]):
        scene.fanout.receive(subscriber, video=False)
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


def test_a_player_changes_its_transport_in_the_middle_of_a_pass(scene, slow_passes):
    players = crowd(scene)
    scene.video(frame("1"))
    served, others = begin_pass(players)
    for subscriber, old in (served[0], others[-1]):
        new = FakeTransport()
        taken = bytes(old.data) + scene.fanout.rehome(subscriber, new)
        old.error = AssertionError("sent through the old transport")
        others.append((taken, new))
    scene.video(frame("2"))
    settle()
    for taken, new in others[-2:]:
        assert [m.payload for m in parse(taken + bytes(new.data))] == [keyframe(), frame("1"), frame("2")]


def test_everyone_may_leave_in_the_middle_of_a_pass(scene, slow_passes):
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


def test_a_sweep_in_the_middle_of_a_pass_does_no_harm(slow_passes):
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


def test_what_a_send_sets_off_does_no_harm(scene):
    """A socket that ends its own player, another before it and another behind it, while it is being sent to."""
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


def test_flush_hands_everyone_what_the_log_holds(scene):
    players = crowd(scene)
    scene.video(frame("1"))
    scene.fanout.flush()
    assert all(texts(transport) == [keyframe(), frame("1")] for _, transport in players)
    scene.fanout.flush()
    assert all(texts(transport) == [keyframe(), frame("1")] for _, transport in players)


def test_flush_with_nobody_there_does_nothing(scene):
    scene.video(keyframe())
    scene.fanout.flush()
    assert scene.fanout.tally.bytes_sent == 0


def test_flush_gives_way_to_a_stream_that_goes_on(scene, slow_passes):
    """What comes while a flush gives way must not overtake what the flush sends."""
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
    """Whatever comes while a flush gives way, there is never a second pass inside the first."""
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


def test_flush_waits_for_a_pass_that_is_under_way(scene, slow_passes):
    """The server closes every connection right after it; the last message must be on its way by then."""
    players = crowd(scene)
    scene.video(frame("1"))
    begin_pass(players)
    scene.video(frame("2"))
    scene.fanout.flush()
    assert all(texts(transport)[-1] == frame("2") for _, transport in players)


# Many -------------------------------------------------------------------------------------------------------------------


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
    assert scene.fanout.tally.bytes_sent == 2000 * len(first)
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
    monkeypatch.setattr("rtmpd.live.group.time", clock)
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


def test_a_pass_that_took_next_to_nothing_needs_no_rest(monkeypatch, rests):
    busy(monkeypatch, 0.00001, pacing=True, pacing_share=0.2, pacing_limit_ms=350)
    assert rests == []


def test_a_whole_core_needs_no_rest(monkeypatch, rests):
    busy(monkeypatch, 0.01, pacing=True, pacing_share=1, pacing_limit_ms=350)
    assert rests == []


def test_without_pacing_there_is_no_rest(monkeypatch, rests):
    busy(monkeypatch, 1.0, pacing=False)
    assert rests == []


# Bugs -------------------------------------------------------------------------------------------------------------------


class BuggyTransport(FakeTransport):
    """Raises what no socket raises, so many times."""

    def __init__(self, failures):
        super().__init__()
        self.failures = failures

    def try_send(self, data):
        if self.failures:
            self.failures -= 1
            self.sends += 1
            raise RuntimeError("a bug")
        return super().try_send(data)


def test_a_bug_in_one_pass_does_not_end_delivery(scene, caplog):
    players = crowd(scene, 3)
    buggy = BuggyTransport(0)
    scene.fanout.join(Subscriber(buggy))
    settle()
    buggy.failures = 1
    with caplog.at_level(logging.ERROR, "rtmpd"):
        scene.video(frame("1"))
        settle()
        scene.video(frame("2"))
        with gevent.Timeout(5):
            while any(texts(transport)[-1] != frame("2") for _, transport in players):
                gevent.sleep(0.001)
    assert "the fan-out failed" in caplog.text
    assert all(texts(transport)[-1] == frame("2") for _, transport in players)


def test_a_bug_that_stays_does_not_hold_the_event_loop(scene, caplog, monkeypatch):
    """Without pacing either: pass after failing pass must leave room for everything else in the process."""
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
