from __future__ import annotations

import gc
import logging
import time
from collections import Counter

import gevent
import pytest

from rtmpd.live import memory
from rtmpd.live.memory import MemoryGuard
from rtmpd.live.pages import ALL_PAGES, MAX_PAGE_BYTES, Page, PageAccount
from rtmpd.live.selection import SourceRole
from rtmpd.live.subscriber import State
from rtmpd.phases import CloseKind
from rtmpd.protocol.chunk import GROWTH_BYTES
from rtmpd.util.log_throttle import LogThrottle
from tests.unit.live.fakes import (
    FakeTransport,
    app_options,
    frame,
    keyframe,
    new_source,
    new_stream,
    new_subscriber,
    settle,
    texts,
)

MB = 1 << 20
LIMIT_S = 5


@pytest.fixture
def streams():
    """Streams by key."""
    made = {}
    gc.collect()
    yield made
    for stream in made.values():
        stream.end()
        stream.close()
    settle(2)


@pytest.fixture
def before(streams):
    """Return the memory of the pages that other tests have left."""
    return ALL_PAGES.bytes


@pytest.fixture
def counters():
    return Counter()


@pytest.fixture
def connections():
    return set()


@pytest.fixture
def make_guard(streams, connections, counters, before):
    made = []

    def make(limit_bytes):
        """Make a guard whose limit is *limit_bytes* above what other tests have left; nine tenths of it are above that, too."""
        made.append(MemoryGuard(streams, connections, counters, before * 10 + limit_bytes))
        return made[-1]

    yield make
    for guard in made:
        guard.stop()


def publish(streams, key, **options):
    stream = streams[key] = new_stream(key, app_options(lag_limit_bytes=64 * MB, lag_limit_s=3600.0, **options))
    stream.begin(new_source())
    return stream


def play(stream, capacity=None):
    subscriber = new_subscriber(FakeTransport(capacity))
    stream.published.fanout.join(subscriber)
    settle()
    return subscriber


class Sender:
    """Sends frames of 40 ms; each 25th is a keyframe."""

    def __init__(self, stream, size=20_000):
        self.stream, self.size, self.number = stream, size, 0

    def send(self, count):
        for _ in range(count):
            make = frame if self.number % 25 else keyframe
            self.stream.source.video(self.number * 40, make(f"{self.number} ", self.size))
            self.number += 1
            settle(4)


def numbers(subscriber):
    """Return the numbers of the frames that a player received."""
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


def test_a_page_that_could_not_be_allocated_is_not_counted():
    account = PageAccount()
    with pytest.raises((MemoryError, OverflowError)):
        Page(1 << 62, 0, 0, account)
    assert account.bytes == 0


def test_a_long_log_is_freed_at_once_without_deep_recursion():
    account = PageAccount()
    first = last = Page(1, 0, 0, account)
    for _ in range(100_000):
        last.next = Page(1, 0, 0, account)
        last = last.next
    del last
    assert account.bytes == 100_001
    del first
    assert account.bytes == 0


def test_pages_of_garbage_are_no_longer_counted_when_it_is_collected():
    whole = PageAccount()
    account = PageAccount(whole)
    garbage = [account, Page(100, 0, 0, account)]
    garbage.append(garbage)
    del account, garbage
    gc.collect()
    assert whole.bytes == 0


def test_an_account_calls_its_alarm_for_each_page_above_the_limit():
    account, calls = PageAccount(), []
    account.alarm = lambda: calls.append(account.bytes)
    pages = [Page(10, 0, 0, account) for _ in range(3)]
    account.alarm_bytes = 35
    pages += [Page(10, 0, 0, account) for _ in range(2)]
    assert calls == [40, 50]
    pages.pop()
    assert calls == [40, 50]


def test_the_memory_of_a_stream_is_that_of_its_logs(streams, before):
    stream = publish(streams, "live/a")
    sender = Sender(stream)
    sender.send(20)
    held = stream.held_bytes()
    assert 20 * 20_000 < held < 20 * 20_000 + 2 * MAX_PAGE_BYTES
    assert ALL_PAGES.bytes - before == held

    class Reader:
        wake_at = 0

        def wake(self):
            pass

        def fail(self):
            raise AssertionError("the output has failed")

    reader = Reader()
    flv_log = stream.read(reader)
    first = flv_log.tail
    sender.send(20)
    assert stream.held_bytes() > held + 20 * 20_000
    assert flv_log.account.bytes > 20 * 20_000
    stream.stop_reading(reader)
    # A reader may still use its pages.
    del flv_log
    assert ALL_PAGES.bytes - before > stream.held_bytes() + 20 * 20_000
    del first
    assert ALL_PAGES.bytes - before == stream.held_bytes()


# Shedding ---------------------------------------------------------------------------------------------------------------


def test_below_the_limit_nothing_is_freed(streams, make_guard, counters, caplog):
    stream = publish(streams, "live/a")
    slow = play(stream)
    sender = Sender(stream)
    sender.send(1)
    slow.transport.capacity = 1
    sender.send(60)
    guard = make_guard(64 * MB)
    guard.shed(0.0)
    assert (slow.skips, counters, caplog.messages, guard.refusal(0.0)) == (0, {}, [], "")
    assert stream.published.log.join_page is not None


def test_without_a_limit_nothing_is_freed_or_refused(streams, connections, counters):
    stream = publish(streams, "live/a")
    Sender(stream).send(60)
    guard = MemoryGuard(streams, connections, counters, 0)
    guard.shed(0.0)
    assert (counters, guard.refusal(0.0)) == ({}, "")
    assert stream.published.log.join_page is not None


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
    guard.limit_bytes = before + (large.held_bytes() + small.held_bytes()) * 9 // 10
    assert guard.refusal(0.0).startswith(f"memory_limit_bytes is {guard.limit_bytes}, and streams and connections hold ")
    caplog.set_level(logging.WARNING, "rtmpd")
    guard.shed(0.0)
    assert (slow.skips, fast.skips, little.skips) == (1, 0, 0)
    # What is kept for new players is less than what the slow one held.
    assert large.published.log.join_page is not None
    assert slow.position == large.published.log.join_position
    assert guard.total_bytes() <= guard.limit_bytes
    assert counters == {"memory_sheds": 1}
    (line,) = caplog.messages
    assert line.startswith(f"memory_limit_bytes is {guard.limit_bytes}, and streams and connections held up to ")
    assert (
        f" bytes, most of all {large.key}: slow players skipped media in 1 streams, 0 streams freed what they kept of sources "
        "that stand by, and 0 what they kept for new players; now they hold "
    ) in line
    assert guard.refusal(0.0) == ""
    slow.transport.take()
    senders[0].send(5)
    assert numbers(fast) == list(range(110))
    assert numbers(slow) == [0, 1, *range(100, 110)]


def test_then_the_pages_kept_for_new_players_are_freed(streams, make_guard, counters, caplog, before):
    stream = publish(streams, "live/a")
    fast, late = play(stream), None
    sender = Sender(stream, 60_000)
    sender.send(20)
    late = play(stream, 1)
    guard = make_guard(0)
    guard.limit_bytes = before + 600_000
    now_s = time.monotonic()
    guard.shed(now_s)
    assert stream.published.log.join_page is None
    assert late.state is State.WAITING
    assert fast.state is State.GROUP
    assert guard.total_bytes() - before == stream.published.log.tail.size
    assert counters == {"memory_sheds": 1}
    assert "and 1 what they kept for new players" in caplog.text
    # Another stream would only make things worse.
    assert guard.refusal(now_s + 9) == f"memory_limit_bytes is {guard.limit_bytes}, and was exceeded less than 10 s ago"
    assert guard.refusal(now_s + 10) == ""
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


def test_a_player_that_is_hardly_behind_is_not_moved(streams, make_guard, counters, before):
    """It holds no pages that the others would not hold without it."""
    stream = publish(streams, "live/a")
    player = play(stream)
    sender = Sender(stream, 1000)
    sender.send(26)
    player.transport.capacity = 100
    sender.send(1)
    assert player.state is State.LAGGING
    guard = make_guard(0)
    guard.limit_bytes = before + 1
    stream.published.log.forget_join_point()
    guard.shed(0.0)
    assert (player.state, player.skips, counters) == (State.LAGGING, 0, {})


def test_shedding_is_logged_at_most_every_ten_seconds(streams, make_guard, caplog, before, counters):
    guard = make_guard(0)
    guard.limit_bytes = before + 300_000
    now_s = [0.0]
    guard._throttle = LogThrottle(clock=lambda: now_s[0])
    stream = publish(streams, "live/a")
    sender = Sender(stream, 60_000)
    for second in range(25):
        sender.send(10)
        now_s[0] = float(second)
        guard.shed(now_s[0])
    assert len(caplog.messages) == 3
    said = [int(message.split(" skipped media in ")[1].split(" and ")[1].split(" ")[0]) for message in caplog.messages]
    assert said[0] == 1
    assert sum(said) <= counters["memory_sheds"] == 10


# Connections ------------------------------------------------------------------------------------------------------------


class FakeConnection:
    def __init__(self, held, dispensability=1, peer="192.0.2.1:1"):
        self.held, self.dispensability, self.peer = held, dispensability, peer
        self.ending = False
        self.reason = None

    def held_bytes(self):
        return self.held

    def close(self, reason):
        assert self.reason is None
        self.reason, self.ending = reason, True


@pytest.fixture
def pages(monkeypatch):
    """Replace the account of all pages, whatever other tests have left."""
    account = PageAccount()
    monkeypatch.setattr(memory, "ALL_PAGES", account)
    return account


@pytest.fixture
def new_guard(pages, connections, counters):
    made = []

    def make(limit_bytes, *those):
        connections.update(those)
        made.append(MemoryGuard({}, connections, counters, limit_bytes))
        return made[-1]

    yield make
    for guard in made:
        guard.stop()


def swept(guard):
    """Do what a sweep of the hub that counts, and the greenlet after it, do."""
    guard.count_connections()
    guard.shed(0.0)


def test_buffers_of_connections_count_like_pages(new_guard, pages, counters):
    guard = new_guard(10 * MB, FakeConnection(4 * MB), FakeConnection(3 * MB))
    guard.count_connections()
    assert guard.connection_bytes == guard.total_bytes() == 7 * MB
    assert guard.refusal(0.0) == ""
    pages.add(4 * MB)
    assert guard.refusal(0.0) == "memory_limit_bytes is 10485760, and streams and connections hold 11534336 bytes"
    pages.remove(4 * MB)
    assert guard.refusal(0.0) == ""
    assert not counters


def test_the_connections_that_hold_most_are_closed_first(new_guard, counters, caplog):
    big = [FakeConnection(30 * MB) for _ in range(3)]
    bigger = FakeConnection(31 * MB, peer="192.0.2.9:9")
    small = [FakeConnection(1000) for _ in range(10)]
    guard = new_guard(100 * MB, *big, bigger, *small)
    swept(guard)
    assert bigger.reason.kind is CloseKind.EXPELLED
    assert bigger.reason == "memory_limit_bytes is exceeded, and it holds 32505856 bytes"
    assert sum(each.ending for each in big) == 1
    assert not any(each.ending for each in small)
    assert guard.connection_bytes == 60 * MB + 10_000
    assert counters == {"memory_closes": 2}
    (line,) = caplog.messages
    assert line == (
        "memory_limit_bytes is 104857600, and buffers of connections took more than half of it: 2 connections, which held "
        "63963136 bytes, were closed, first that of 192.0.2.9:9; now streams and connections hold 62924560 bytes"
    )
    # Those that are about to end are neither counted nor closed again.
    guard.count_connections()
    assert guard.connection_bytes == 60 * MB + 10_000


def test_idle_connections_and_players_are_closed_rather_than_publishers(new_guard):
    publisher, player, idle = FakeConnection(12 * MB), FakeConnection(9 * MB, 4), FakeConnection(8 * MB, 16)
    swept(new_guard(20 * MB, publisher, player, idle))
    assert [each.ending for each in (idle, player, publisher)] == [True, True, False]


def test_connections_keep_half_of_the_limit_though_pages_take_the_other_half(new_guard, pages):
    holders = [FakeConnection(3 * MB) for _ in range(5)]
    guard = new_guard(20 * MB, *holders)
    pages.add(15 * MB)
    swept(guard)
    assert sum(not each.ending for each in holders) == 3


def test_the_log_has_one_line_for_connections_closed_within_ten_seconds(new_guard, connections, caplog):
    guard = new_guard(10 * MB)
    now_s = [0.0]
    guard._closes_throttle = LogThrottle(clock=lambda: now_s[0])
    for second in range(12):
        now_s[0] = float(second)
        connections.clear()
        connections.add(FakeConnection(11 * MB))
        swept(guard)
    assert [int(line.split(" half of it: ")[1].split(" ")[0]) for line in caplog.messages] == [1, 10]


def test_pages_are_freed_when_buffers_take_less_than_half(streams, make_guard, connections, counters, before):
    stream = publish(streams, "live/a")
    Sender(stream, 60_000).send(20)
    guard = make_guard(0)
    connection = FakeConnection(before + MB)
    connections.add(connection)
    guard.limit_bytes = 2 * connection.held
    assert guard.total_bytes() <= guard.limit_bytes
    guard.count_connections()
    guard.shed(0.0)
    assert not connection.ending
    assert stream.published.log.join_page is None
    assert counters == {"memory_sheds": 1}


def test_growth_between_two_counts_wakes_the_guard(new_guard, connections):
    guard = new_guard(10 * MB)
    guard.start()
    gevent.sleep(0)
    holder = FakeConnection(11 * MB)
    connections.add(holder)
    for _ in range(11):
        guard.note_growth()
    wait_until(lambda: holder.ending)
    assert guard.connection_bytes == 0


def test_pages_wake_the_guard_the_sooner_the_more_connections_hold(new_guard, pages, connections):
    holder = FakeConnection(7 * MB)
    guard = new_guard(10 * MB, holder)
    guard.start()
    gevent.sleep(0)
    guard.sweep()
    wait_until(lambda: pages.alarm_bytes == 3 * MB)
    pages.add(3 * MB)
    gevent.sleep(0.001)
    assert not holder.ending
    pages.add(1)
    wait_until(lambda: holder.ending)


def test_a_count_corrects_what_was_noted(new_guard):
    guard = new_guard(64 * MB, FakeConnection(10))
    guard.note_growth()
    assert guard.connection_bytes == GROWTH_BYTES
    guard.count_connections()
    assert guard.connection_bytes == 10


def test_many_connections_are_counted_in_slices(new_guard, monkeypatch):
    guard = new_guard(64 * MB, *(FakeConnection(10) for _ in range(1000)))
    clock, gaps = [0.0], []

    def thread_time():
        clock[0] += 0.002
        return clock[0]

    monkeypatch.setattr(memory.time, "thread_time", thread_time)
    monkeypatch.setattr(memory, "give_way", lambda: gaps.append(guard.note_growth()))
    guard.count_connections()
    assert len(gaps) == 7
    # What grows meanwhile counts.
    assert guard.connection_bytes == 10_000 + 7 * GROWTH_BYTES


def test_many_connections_are_counted_more_seldom_unless_memory_is_short(new_guard):
    guard = new_guard(0, *(FakeConnection(10) for _ in range(5000)))
    counts = []
    for _ in range(12):
        guard.connection_bytes = 0
        guard.sweep()
        counts.append(guard.connection_bytes)
    assert counts == [50_000, 0, 0, 0, 0, 0] * 2
    guard.limit_bytes = 50_000
    for _ in range(3):
        guard.connection_bytes = 30_000
        guard.sweep()
        assert guard.connection_bytes == 50_000


# The greenlet -----------------------------------------------------------------------------------------------------------


def wait_until(condition):
    with gevent.Timeout(LIMIT_S):
        while not condition():
            gevent.sleep(0.001)


def test_a_page_above_the_limit_starts_shedding_at_once(streams, make_guard, before):
    stream = publish(streams, "live/a")
    sender = Sender(stream, 60_000)
    guard = make_guard(0)
    guard.limit_bytes = before + 600_000
    guard.start()
    sender.send(20)
    wait_until(lambda: stream.published.log.join_page is None)


def test_a_reload_applies_a_lower_limit_and_no_limit_at_once(streams, make_guard, before):
    stream = publish(streams, "live/a")
    sender = Sender(stream, 60_000)
    guard = make_guard(64 * MB)
    guard.start()
    sender.send(20)
    gevent.sleep(0.01)
    assert stream.published.log.join_page is not None
    guard.reload(before + 600_000)
    wait_until(lambda: stream.published.log.join_page is None)
    guard.reload(0)
    sender.send(20)
    gevent.sleep(0.1)
    assert stream.published.log.join_page is not None
    assert ALL_PAGES.alarm_bytes is None


def rounds_of(guard, monkeypatch, computed_s):
    """Have each round of a guard free nothing and compute for so long; return the list to which it adds the memory found."""
    found = []

    def shed(_now_s):
        found.append(guard.total_bytes())
        guard._computed_s = computed_s

    monkeypatch.setattr(guard, "shed", shed)
    return found


def test_after_a_long_round_the_guard_rests_although_there_are_new_pages(make_guard, before, monkeypatch):
    guard = make_guard(0)
    guard.limit_bytes = before + 10 * MB
    rounds = rounds_of(guard, monkeypatch, LIMIT_S)
    guard.start()
    wait_until(lambda: rounds)
    pages = [Page(10 * MB, 0), Page(10_000, 0)]
    settle(4)
    for _ in range(10):
        pages.append(Page(10_000, 0))
        settle(4)
    gevent.sleep(0.06)
    assert len(rounds) == 1


def test_growth_by_much_ends_a_rest_at_once(make_guard, before, monkeypatch):
    guard = make_guard(0)
    guard.limit_bytes = before + 10 * MB
    rounds = rounds_of(guard, monkeypatch, 3600.0)
    guard.start()
    # The first round is that of the start.
    wait_until(lambda: rounds)
    pages = [Page(10 * MB, 0)]
    for number in range(1, 10):
        pages.append(Page(MB, 0))
        wait_until(lambda number=number: len(rounds) == 1 + number)
    assert rounds == [before, *(before + (10 + number) * MB for number in range(1, 10))]
    guard.reload(before + 5 * MB)
    wait_until(lambda: len(rounds) == 11)


def test_growth_during_a_short_rest_is_found_after_it(make_guard, before, monkeypatch):
    guard = make_guard(0)
    guard.limit_bytes = before + 10 * MB
    rounds = rounds_of(guard, monkeypatch, 1e-4)
    guard.start()
    pages = [Page(10 * MB, 0), Page(10_000, 0)]
    wait_until(lambda: rounds)
    gevent.sleep(0)
    pages.append(Page(10_000, 0))
    wait_until(lambda: rounds[-1] == before + 10 * MB + 20_000)


def test_a_guard_that_can_free_nothing_is_quiet_without_new_pages(make_guard, before, monkeypatch):
    guard = make_guard(0)
    guard.limit_bytes = before + 10 * MB
    rounds = rounds_of(guard, monkeypatch, 0.0)
    pages = [Page(11 * MB, 0)]
    guard.start()
    wait_until(lambda: rounds)
    gevent.sleep(0.05)
    assert len(rounds) == 1
    pages.append(Page(10_000, 0))
    wait_until(lambda: len(rounds) == 2)


def test_the_time_that_a_round_computes_is_measured_without_that_of_others(streams, make_guard, before, monkeypatch):
    guard = make_guard(0)
    for number in range(3):
        Sender(publish(streams, f"live/{number}"), 60_000).send(20)
    guard.limit_bytes = before + 1
    clock = [0.0]

    def thread_time():
        clock[0] += 0.01
        return clock[0]

    def others():
        clock[0] += 60.0

    monkeypatch.setattr(memory.time, "thread_time", thread_time)
    monkeypatch.setattr(memory, "give_way", others)
    guard.shed(0.0)
    assert 0.05 < guard._computed_s < 1


def test_an_error_does_not_end_the_guard(streams, make_guard, counters, caplog, before, monkeypatch):
    guard = make_guard(0)
    guard.limit_bytes = before + 1
    monkeypatch.setattr(guard, "shed", lambda now_s: 1 / 0)
    guard.start()
    wait_until(lambda: counters["internal_errors"])
    assert "internal error: memory_limit_bytes was not enforced this time" in caplog.text
    monkeypatch.undo()
    stream = publish(streams, "live/a")
    Sender(stream, 60_000).send(20)
    wait_until(lambda: stream.published.log.join_page is None)


def test_the_guard_may_be_stopped_twice(streams, make_guard):
    guard = make_guard(1)
    guard.start()
    guard.stop()
    guard.stop()
    assert ALL_PAGES.alarm_bytes is None


# Sources that stand by --------------------------------------------------------------------------------------------------


def stand_by(stream, count, size=20_000):
    """Add a source that stands by, with one keyframe and as many frames."""
    source = new_source()
    source.number = 2
    stream.begin(source, SourceRole.BACKUP)
    for number in range(count):
        source.video(number * 40, (frame if number else keyframe)("", size))
    return source


def test_what_is_kept_of_a_standby_is_bounded(streams, before):
    stream = publish(streams, "live/a", gop_cache_limit_bytes=MB)
    source = stand_by(stream, 40)
    lane = stream.ingest.lane_of(source)
    assert lane.has_join_point
    assert MB // 2 < lane.held_bytes <= ALL_PAGES.bytes - before
    for number in range(40, 400):
        source.video(number * 40, frame("", 20_000))
    assert not lane.has_join_point
    assert lane.held_bytes < 2 * MAX_PAGE_BYTES
    assert stream.held_bytes() >= lane.held_bytes


def test_a_standby_is_forgotten_before_what_new_players_start_with(streams, make_guard, before):
    stream = publish(streams, "live/a", gop_cache_limit_bytes=64 * MB)
    play(stream)
    Sender(stream).send(24)
    source = stand_by(stream, 200)
    assert ALL_PAGES.bytes - before > 3 * MB
    guard = make_guard(0)
    guard.limit_bytes = before + 2 * MB
    guard.shed(0.0)
    lane = stream.ingest.lane_of(source)
    assert not lane.has_join_point
    assert stream.published.log.join_page is not None
    assert ALL_PAGES.bytes <= guard.limit_bytes
    # The next keyframe makes it ready again.
    source.video(200 * 40, keyframe("", 20_000))
    assert lane.has_join_point
