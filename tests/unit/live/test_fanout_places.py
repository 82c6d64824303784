"""Where subscribers are in the log: for those who go on from there, and who count what was dropped."""

from __future__ import annotations

import pytest

from tests.unit.live.fakes import FakeTime, FakeTransport, Scene, Subscriber, frame, keyframe, parse, settle, texts


@pytest.fixture
def scene():
    made = Scene(lag_limit_bytes=5000)
    yield made
    made.close()


def take_out(scene, subscriber, transport):
    """Take a subscriber out, and have it get the rest, as one does who goes on from its place."""
    page, offset = scene.fanout.place_of(subscriber)
    transport.data += scene.fanout.leave(subscriber)
    while page is not None:
        transport.data += page.view[offset : page.end]
        page, offset = page.next, 0
    return transport


def test_a_member_is_where_the_group_is(scene):
    scene.video(keyframe("a"))
    subscriber, transport = scene.join()
    settle()
    scene.video(frame("1"))
    assert texts(take_out(scene, subscriber, transport)) == [keyframe("a"), frame("1")]


def test_one_that_is_alone_is_behind_the_message_that_it_has_half_got(scene):
    scene.video(keyframe("a"))
    subscriber, transport = scene.join()
    settle()
    transport.capacity = 20
    scene.video(frame("half sent", 1000))
    scene.video(frame("1"))
    settle()
    assert texts(take_out(scene, subscriber, transport)) == [keyframe("a"), frame("half sent", 1000), frame("1")]


def test_in_the_middle_of_a_pass_each_is_where_the_pass_has_left_it(scene, monkeypatch):
    clock = FakeTime(step_s=0.01)
    monkeypatch.setattr("rtmpd.live.fanout.time", clock)
    monkeypatch.setattr("rtmpd.live.group.time", clock)
    scene.video(keyframe("a"))
    players = [scene.join() for _ in range(200)]
    settle()
    scene.video(frame("1"))
    settle(1)
    counts = {len(parse(bytes(transport.data))) for _, transport in players}
    assert counts == {1, 2}
    for subscriber, transport in players:
        assert texts(take_out(scene, subscriber, transport)) == [keyframe("a"), frame("1")]


def test_one_without_a_place_has_none(scene):
    subscriber, _ = scene.join()
    assert scene.fanout.place_of(subscriber) == (None, 0)
    scene.fanout.leave(subscriber)
    assert scene.fanout.place_of(subscriber) == (None, 0)


def test_who_may_not_begin_before_a_position_waits_for_the_next_keyframe(scene):
    scene.video(keyframe("old"))
    position = scene.log.position
    scene.video(frame("1"))
    transport = FakeTransport()
    scene.fanout.join(Subscriber(transport), position)
    settle()
    assert texts(transport) == []
    scene.video(keyframe("new"))
    settle()
    assert texts(transport) == [keyframe("new")]


def test_messages_are_counted_that_were_sent_and_that_were_dropped(scene):
    for number in range(20):
        scene.video(frame(str(number), 1000))  # several pages
    scene.video(keyframe("a"))
    subscriber, transport = scene.join()
    settle()
    assert subscriber.messages_until(*scene.fanout.place_of(subscriber)) == 1
    transport.capacity = 20
    scene.video(frame("half sent", 1000))
    for number in range(9):
        scene.video(frame(str(number), 1000))
    scene.video(keyframe("b"))
    settle()
    scene.fanout.sweep(scene.options.backpressure.lag_limit_s)
    transport.take()
    settle()
    assert texts(transport) == [keyframe("a"), frame("half sent", 1000), keyframe("b")]
    assert (subscriber.skips, subscriber.dropped) == (1, 9)
    assert subscriber.messages_until(*scene.fanout.place_of(subscriber)) == 3
    scene.fanout.leave(subscriber)
    assert subscriber.messages == 3


def test_a_subscriber_may_have_a_write_timeout_of_its_own(scene):
    scene.video(keyframe("a"))
    one, other = scene.join(capacity=0), scene.join(capacity=0)
    one[0].write_timeout_s = 3
    begun = one[0].progress_at
    scene.fanout.sweep(begun + 4, 30)
    assert one[1].close_reason == "it took nothing for 3 s"
    assert other[1].close_reason == ""


def test_thousands_who_leave_one_by_one_are_not_looked_through_each_time():
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
