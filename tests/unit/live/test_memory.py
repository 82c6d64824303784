from __future__ import annotations

import gc
import logging
from collections import Counter

import gevent
import pytest

from rtmpd.live.memory import MemoryGuard, held_bytes
from rtmpd.live.pages import ALL_PAGES, MAX_PAGE_BYTES, Page, PageAccount
from rtmpd.live.stream import Stream
from rtmpd.live.subscriber import State, Subscriber
from tests.unit.live.fakes import CHUNK, FakeTransport, app_options, frame, keyframe, settle, texts

MB = 1 << 20
LIMIT_S = 5


@pytest.fixture
def streams():
    """Streams by key, and what there was of pages before: others may have left some."""
    made = {}
    gc.collect()
    yield made
    for stream in made.values():
        stream.close()
    settle(2)


@pytest.fixture
def before(streams):
    return ALL_PAGES.bytes


@pytest.fixture
def counters():
    return Counter()


@pytest.fixture
def make_guard(streams, counters, before):
    made = []

    def make(limit_bytes):
        """A guard whose limit is *limit_bytes* above what there was; nine tenths of it are above that, too."""
        made.append(MemoryGuard(streams, counters, before * 10 + limit_bytes))
        return made[-1]

    yield make
    for guard in made:
        guard.stop()


def publish(streams, key, **options):
    stream = streams[key] = Stream(key, app_options(lag_limit_bytes=64 * MB, lag_limit_s=3600.0, **options), CHUNK)
    stream.begin(object())
    return stream


def play(stream, capacity=None):
    subscriber = Subscriber(FakeTransport(capacity))
    stream.fanout.join(subscriber)
    settle()
    return subscriber


class Sender:
    """Sends frames of 40 ms, a keyframe each 25."""

    def __init__(self, stream, size=20_000):
        self.stream, self.size, self.number = stream, size, 0

    def send(self, count):
        for _ in range(count):
            make = frame if self.number % 25 else keyframe
            self.stream.video(self.number * 40, make(f"{self.number} ", self.size))
            self.number += 1
            settle(4)


def numbers(subscriber):
    """The numbers of the frames that a player got."""
    return [int(payload[2:].split(b" ")[0]) for payload in texts(subscriber.transport) if payload[1:2] == b"\x01"]


# Accounts ---------------------------------------------------------------------------------------------------------------


def test_pages_are_counted_as_long_as_they_live():
    account = PageAccount(PageAccount())
    first = Page(100, 0, 0, account)
    first.next = Page(50, 100, 0, account)
    assert (account.bytes, account.whole.bytes) == (150, 150)
    second = first.next
    del first
    assert (account.bytes, account.whole.bytes) == (50, 50)
    del second
    assert (account.bytes, account.whole.bytes) == (0, 0)


def test_a_page_that_there_is_no_memory_for_is_not_counted():
    account = PageAccount()
    with pytest.raises((MemoryError, OverflowError)):
        Page(1 << 62, 0, 0, account)
    assert account.bytes == 0


def test_a_long_log_goes_at_once_without_a_deep_recursion():
    account = PageAccount()
    first = last = Page(1, 0, 0, account)
    for _ in range(100_000):
        last.next = Page(1, 0, 0, account)
        last = last.next
    del last
    assert account.bytes == 100_001
    del first
    assert account.bytes == 0


def test_an_account_says_when_it_is_above_what_it_may_be():
    account, calls = PageAccount(), []
    account.alarm = lambda: calls.append(account.bytes)
    pages = [Page(10, 0, 0, account) for _ in range(3)]
    account.alarm_bytes = 35
    pages += [Page(10, 0, 0, account) for _ in range(2)]
    assert calls == [40, 50]
    pages.pop()
    assert calls == [40, 50]


def test_a_stream_holds_what_its_logs_hold(streams, before):
    stream = publish(streams, "live/a")
    sender = Sender(stream)
    sender.send(20)
    held = held_bytes(stream)
    assert 20 * 20_000 < held < 20 * 20_000 + 2 * MAX_PAGE_BYTES
    assert ALL_PAGES.bytes - before == held

    class Reader:
        wake_at = 0

        def wake(self):
            pass

    reader = Reader()
    flvlog = stream.read_flv(reader)
    first = flvlog.tail
    sender.send(20)
    assert held_bytes(stream) > held + 20 * 20_000
    assert flvlog.account.bytes > 20 * 20_000
    stream.leave_flv(reader)
    # A reader of the log may still be at work.
    del flvlog
    assert ALL_PAGES.bytes - before > held_bytes(stream) + 20 * 20_000
    del first
    assert ALL_PAGES.bytes - before == held_bytes(stream)


# Shedding ---------------------------------------------------------------------------------------------------------------


def test_below_the_limit_nothing_is_given_up(streams, make_guard, counters, caplog):
    stream = publish(streams, "live/a")
    slow = play(stream)
    sender = Sender(stream)
    sender.send(1)
    slow.transport.capacity = 1
    sender.send(60)
    guard = make_guard(64 * MB)
    guard.shed(0.0)
    assert (slow.skips, counters, caplog.messages, guard.refusal(0.0)) == (0, {}, [], "")
    assert stream.wirelog.join_page is not None


def test_without_a_limit_there_is_none(streams, counters):
    stream = publish(streams, "live/a")
    Sender(stream).send(60)
    guard = MemoryGuard(streams, counters, 0)
    guard.shed(0.0)
    assert (counters, guard.refusal(0.0)) == ({}, "")
    assert stream.wirelog.join_page is not None


def test_slow_players_of_the_stream_that_holds_most_skip_first(streams, make_guard, counters, caplog, before):
    large, small = publish(streams, "live/large"), publish(streams, "live/small")
    slow, fast, little = play(large), play(large), play(small)
    senders = Sender(large), Sender(small, 2000)
    for sender in senders:
        sender.send(1)
    slow.transport.capacity = little.transport.capacity = 1
    for sender in senders:
        sender.send(104)
    guard = make_guard(0)
    guard.limit_bytes = before + (held_bytes(large) + held_bytes(small)) * 9 // 10
    assert guard.refusal(0.0).startswith(f"memory_limit_bytes is {guard.limit_bytes}, and the logs of streams take ")
    caplog.set_level(logging.WARNING, "rtmpd")
    guard.shed(0.0)
    assert (slow.skips, fast.skips, little.skips) == (1, 0, 0)
    # What is kept for new players is less than what the slow one held.
    assert large.wirelog.join_page is not None
    assert slow.position == large.wirelog.join_position
    assert guard.total_bytes() <= guard.limit_bytes
    assert counters == {"memory_sheds": 1}
    (line,) = caplog.messages
    assert line.startswith(f"memory_limit_bytes is {guard.limit_bytes}, and streams held up to ")
    assert ": 1 times a stream gave up what slow players had not taken, 0 times what it kept for new ones; now " in line
    assert guard.refusal(0.0) == ""
    slow.transport.take()
    senders[0].send(5)
    assert numbers(fast) == list(range(110))
    assert numbers(slow) == [0, 1, *range(100, 110)]


def test_then_what_is_kept_for_new_players_goes(streams, make_guard, counters, caplog, before):
    stream = publish(streams, "live/a")
    fast, late = play(stream), None
    sender = Sender(stream, 60_000)
    sender.send(20)
    late = play(stream, 1)
    guard = make_guard(0)
    guard.limit_bytes = before + 600_000
    guard.shed(100.0)
    assert stream.wirelog.join_page is None
    assert late.state is State.WAITING
    assert fast.state is State.GROUP
    assert guard.total_bytes() - before == stream.wirelog.tail.size
    assert counters == {"memory_sheds": 1}
    assert "0 times a stream gave up what slow players had not taken, 1 times what it kept" in caplog.text
    # Another stream would only make it worse.
    assert guard.refusal(109.0).endswith("have just had to be cut to fit")
    assert guard.refusal(110.0) == ""
    late.transport.take()
    sender.send(10)
    assert numbers(fast) == list(range(30))
    assert numbers(late) == [0, *range(25, 30)]


def test_players_without_a_keyframe_to_skip_to_wait_for_one(streams, make_guard, before):
    stream = publish(streams, "live/a", gop_cache=False)
    slow = play(stream)
    sender = Sender(stream, 60_000)
    sender.send(1)
    slow.transport.capacity = 1
    sender.send(20)
    guard = make_guard(0)
    guard.limit_bytes = before + 600_000
    guard.shed(0.0)
    assert slow.state is State.WAITING
    assert guard.total_bytes() <= guard.limit_bytes
    slow.transport.take()
    sender.send(10)
    assert numbers(slow) == [0, 1, *range(25, 31)]


def test_a_player_that_is_hardly_behind_is_left_alone(streams, make_guard, counters, before):
    """It holds nothing that the others would not hold without it."""
    stream = publish(streams, "live/a")
    player = play(stream)
    sender = Sender(stream, 1000)
    sender.send(26)
    player.transport.capacity = 100
    sender.send(1)
    assert player.state is State.ALONE
    guard = make_guard(0)
    guard.limit_bytes = before + 1
    stream.wirelog.forget_join_point()
    guard.shed(0.0)
    assert (player.state, player.skips, counters) == (State.ALONE, 0, {})


def test_what_there_is_to_say_is_said_now_and_then(streams, make_guard, caplog, before, counters):
    guard = make_guard(0)
    guard.limit_bytes = before + 300_000
    stream = publish(streams, "live/a")
    sender = Sender(stream, 60_000)
    for second in range(25):
        sender.send(10)
        guard.shed(float(second))
    assert len(caplog.messages) == 3
    said = [int(message.split("players had not taken, ")[1].split(" ")[0]) for message in caplog.messages]
    assert said[0] == 1
    assert sum(said) <= counters["memory_sheds"] == 10


# The greenlet -----------------------------------------------------------------------------------------------------------


def wait_until(condition):
    with gevent.Timeout(LIMIT_S):
        while not condition():
            gevent.sleep(0.001)


def test_a_page_above_the_limit_is_noticed_at_once(streams, make_guard, before):
    stream = publish(streams, "live/a")
    sender = Sender(stream, 60_000)
    guard = make_guard(0)
    guard.limit_bytes = before + 600_000
    guard.start()
    sender.send(20)
    wait_until(lambda: stream.wirelog.join_page is None)


def test_a_lower_limit_holds_at_once_and_none_does_too(streams, make_guard, before):
    stream = publish(streams, "live/a")
    sender = Sender(stream, 60_000)
    guard = make_guard(64 * MB)
    guard.start()
    sender.send(20)
    gevent.sleep(0.01)
    assert stream.wirelog.join_page is not None
    guard.reload(before + 600_000)
    wait_until(lambda: stream.wirelog.join_page is None)
    guard.reload(0)
    sender.send(20)
    gevent.sleep(0.1)
    assert stream.wirelog.join_page is not None
    assert ALL_PAGES.alarm_bytes is None


def test_a_bug_does_not_end_it(streams, make_guard, counters, caplog, before, monkeypatch):
    guard = make_guard(0)
    guard.limit_bytes = before + 1
    monkeypatch.setattr(guard, "shed", lambda now_s: 1 / 0)
    guard.start()
    wait_until(lambda: counters["internal_errors"])
    assert "internal error in shedding memory" in caplog.text
    monkeypatch.undo()
    stream = publish(streams, "live/a")
    Sender(stream, 60_000).send(20)
    wait_until(lambda: stream.wirelog.join_page is None)


def test_it_ends(streams, make_guard):
    guard = make_guard(1)
    guard.start()
    guard.stop()
    guard.stop()
    assert ALL_PAGES.alarm_bytes is None
