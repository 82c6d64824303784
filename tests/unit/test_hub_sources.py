"""Streams with several publishers: conflicts, takeovers, standbys, their events, and the options of a reload."""

from __future__ import annotations

import logging

import pytest

from rtmpd.config.loader import load_text
from rtmpd.errors import Refused
from rtmpd.events import EventType
from rtmpd.hub import Hub
from rtmpd.live.framing import VIDEO
from rtmpd.live.grant import Grant
from rtmpd.live.selection import SourceRole
from rtmpd.live.source import Source, SourceInfo, SourceKind
from rtmpd.media.slate import Slate, SlateMessage
from rtmpd.phases import CloseKind, CloseReason, StreamPhase
from rtmpd.util.stream_key import StreamKey
from tests.unit.live.fakes import FakeTime, FakeTransport, frame, keyframe, new_subscriber, settle, texts

KEY = "live/show"
PRIMARY, BACKUP = SourceRole.PRIMARY, SourceRole.BACKUP
TAKEOVER = "[publish]\non_conflict = takeover\npublisher_takeover_s = 0\n"
STANDBY = "[publish]\non_conflict = backup\n[live]\npacing = no\n"


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime()
    for module in ("hub", "live.stream", "live.source", "live.fanout", "live.ingest"):
        monkeypatch.setattr(f"rtmpd.{module}.time", made)
    return made


@pytest.fixture
def make_hub(clock):
    made = []

    def make(ini=""):
        made.append(Hub(load_text(ini)))
        return made[-1]

    yield make
    for hub in made:
        for stream in hub.streams.values():
            stream.ingest.stop_slate()
            stream.end()
            stream.close()
    settle(2)


def picture(label):
    """Return a keyframe without a composition time."""
    return keyframe(f"\0\0\0{label}")


class Publisher:
    """A source, with what ends it.

    Attributes:
        stopped: Why it was stopped by the hub.
    """

    def __init__(self, hub, role=None, *, address="192.0.2.1", credential="", key=KEY):
        self.hub, self.stopped = hub, None
        info = SourceInfo(SourceKind.RTMP, f"{address}:50000")
        grant = Grant(StreamKey(key), credential=credential)
        self.source = Source(info, logging.getLogger("test.source"), self._stop, grant=grant)
        self.stream = hub.publish(key, self.source, role, self._announce)

    def _announce(self, stream):
        self.hub.bus.emit(EventType.PUBLISH_START, {"id": self.source.number}, stream=stream)

    def _stop(self, reason):
        self.stopped = reason
        self.leave()

    def leave(self, *, lost=True, reason="it left"):
        self.hub.bus.emit(EventType.PUBLISH_STOP, {"id": self.source.number}, stream=self.stream)
        self.hub.unpublish(self.stream, self.source, lost=lost, reason=reason)

    def send(self, at_ms, label="", *, key=True):
        self.source.video(at_ms, picture(label) if key else frame(label))


class Viewer:
    number = 0

    def revise(self, decisions):
        pass

    def ended(self):
        pass


def watch(hub):
    """Let a player join; return its transport."""
    viewer, transport = Viewer(), FakeTransport()
    stream = hub.play(KEY, viewer)
    stream.output().fanout.join(new_subscriber(transport, chunk_size=hub.chunk_size))
    return transport


def refused(hub, *args, **more):
    with pytest.raises(Refused) as caught:
        Publisher(hub, *args, **more)
    return caught.value


# Conflicts --------------------------------------------------------------------------------------------------------------


def test_a_second_publisher_is_refused_with_the_option(make_hub):
    hub = make_hub()
    Publisher(hub)
    refusal = refused(hub)
    assert refusal.code == "NetStream.Publish.BadName"
    assert "on_conflict is refuse" in refusal.reason


@pytest.mark.parametrize(
    ("by", "credential", "address", "allowed"),
    [
        ("credential", "same", "192.0.2.9", True),
        ("credential", "other", "192.0.2.1", False),
        ("credential", "", "192.0.2.1", False),
        ("address", "other", "192.0.2.1", True),
        ("address", "same", "192.0.2.9", False),
        ("any", "other", "192.0.2.9", True),
    ],
)
def test_a_publisher_that_is_entitled_takes_over(make_hub, caplog, by, credential, address, allowed):
    hub = make_hub(f"{TAKEOVER}takeover_by = {by}\n")
    first = Publisher(hub, credential="same")
    if not allowed:
        assert f"takeover_by is {by}" in refused(hub, credential=credential, address=address).reason
        assert first.stopped is None
        assert hub.counters["takeovers_refused"] == 1
        return
    second = Publisher(hub, credential=credential, address=address)
    assert first.stopped.kind is CloseKind.TAKEN_OVER
    assert second.stream is first.stream
    assert second.stream.source is second.source
    assert f"takeover_by is {by}" in caplog.text


@pytest.mark.parametrize(("address", "allowed"), [("192.0.2.1", True), ("192.0.2.9", False)])
def test_without_credentials_the_address_decides(make_hub, address, allowed):
    hub = make_hub(TAKEOVER)
    first = Publisher(hub)
    if allowed:
        Publisher(hub, address=address)
    else:
        refused(hub, address=address)
    assert (first.stopped is not None) is allowed


def test_takeovers_in_turn_are_held_down_with_one_line(make_hub, clock, caplog):
    hub = make_hub(f"{TAKEOVER}takeover_hold_s = 10\n")
    Publisher(hub)
    second = Publisher(hub)
    for _ in range(5):
        clock.now_s += 1
        assert "takeover_hold_s is 10" in refused(hub).reason
    assert second.stopped is None
    assert hub.counters["takeovers_held"] == 5
    lines = [each for each in caplog.messages if "two publishers replace each other in turn" in each]
    assert len(lines) == 1
    clock.now_s += 5
    Publisher(hub)
    assert second.stopped is not None


def test_players_of_a_stream_that_is_taken_over_continue(make_hub):
    hub = make_hub(f"{TAKEOVER}publisher_grace_s = 0\n[live]\npacing = no\n")
    first = Publisher(hub)
    first.send(0, "first")
    transport = watch(hub)
    settle()
    second = Publisher(hub)
    second.send(0, "second")
    settle()
    received = texts(transport, hub.chunk_size)
    assert received[-1] == picture("second")
    assert not any(b"UnpublishNotify" in each for each in received)
    assert list(hub.streams.values()) == [second.stream]


def test_standbys_are_limited(make_hub):
    hub = make_hub(STANDBY)
    first, second = Publisher(hub), Publisher(hub)
    assert "it has 2 publishers, and standby_limit is 1" in refused(hub).reason
    first.leave()
    third = Publisher(hub)
    assert [lane.role for lane in third.stream.ingest.publishers] == [BACKUP, PRIMARY]
    assert second.stopped is first.stopped is None


def test_a_full_stream_replaces_the_publisher_that_is_silent(make_hub, clock):
    hub = make_hub("[publish]\non_conflict = backup\npublisher_takeover_s = 5\n")
    first, second = Publisher(hub), Publisher(hub)
    clock.now_s += 5
    second.send(0)
    third = Publisher(hub)
    assert first.stopped.kind is CloseKind.TAKEN_OVER
    assert second.stopped is None
    assert third.stream.ingest.lane_of(third.source).role is PRIMARY


def test_a_standby_is_no_stream_and_no_player(make_hub):
    hub = make_hub("[publish]\non_conflict = backup\n[limits]\nstream_limit = 1\nplayers_per_stream_limit = 1\n")
    Publisher(hub)
    Publisher(hub)
    hub.play(KEY, Viewer())
    with pytest.raises(Refused):
        hub.play(KEY, Viewer())
    refusal = refused(hub, key="live/other")
    assert "stream_limit is 1" in refusal.reason


def test_the_bitrate_limit_holds_for_a_standby(make_hub, clock):
    hub = make_hub(
        "[publish]\non_conflict = backup\n"
        "[limits]\npublish_bitrate_limit = 10000\npublish_bitrate_grace_s = 1\npublish_bitrate_action = disconnect\n"
    )
    first, second = Publisher(hub), Publisher(hub)
    for number in range(20):
        clock.now_s += 1
        first.send(1000 * number)
        second.source.video(1000 * number, keyframe("", 50_000))
        if second.stopped is None:
            second.stream.sweep(clock.now_s, 10)
    assert second.stopped.kind is CloseKind.EXPELLED
    assert first.stopped is None
    assert hub.counters["publish_bitrate_exceeded"] == 1


# Events -----------------------------------------------------------------------------------------------------------------

EVENTS = [
    EventType.STREAM_CREATE,
    EventType.PUBLISH_START,
    EventType.LIVE_START,
    EventType.SOURCE_ACTIVE,
    EventType.FAILOVER,
    EventType.FAILBACK,
    EventType.PUBLISH_STOP,
    EventType.LIVE_STOP,
    EventType.STREAM_DELETE,
]


@pytest.fixture
def listen():
    def begin(hub):
        heard = []
        hub.bus.subscribe(EVENTS, lambda event: heard.append((str(event.type), event.data.get("id"))))
        return heard

    return begin


def test_the_events_of_one_publish_are_in_order(make_hub, listen):
    hub = make_hub("[publish]\npublisher_grace_s = 10\n")
    heard = listen(hub)
    Publisher(hub).leave(lost=False)
    assert heard == [
        ("stream_create", None),
        ("publish_start", 1),
        ("live_start", 1),
        ("source_active", 1),
        ("publish_stop", 1),
        ("live_stop", None),
    ]
    hub.streams[KEY].end()


@pytest.mark.parametrize("watched", [False, True])
def test_the_events_of_a_failover_are_in_order(make_hub, listen, watched):
    hub = make_hub(STANDBY)
    first = Publisher(hub)
    first.send(0, "first")
    if watched:
        watch(hub)
        settle()
    heard = listen(hub)
    second = Publisher(hub)
    second.send(0, "second")
    first.leave()
    second.leave()
    assert heard == [
        ("publish_start", 2),
        ("publish_stop", 1),
        ("source_active", 2),
        ("failover", 2),
        ("publish_stop", 2),
    ]
    assert hub.streams[KEY].phase is StreamPhase.GRACE
    hub.streams[KEY].end()


def test_a_live_stream_lasts_over_the_loss_of_its_publisher(make_hub, clock, listen):
    hub = make_hub("[publish]\npublisher_grace_s = 10\n")
    heard = listen(hub)
    Publisher(hub).leave()
    clock.now_s += 5
    second = Publisher(hub)
    second.leave()
    clock.now_s += 11
    hub.streams[KEY].sweep(clock.now_s, 10)
    kinds = [kind for kind, _ in heard]
    assert kinds.count("live_start") == kinds.count("live_stop") == 1
    assert kinds[-1] == "live_stop"


def test_a_handler_that_fails_does_not_stop_a_failover(make_hub):
    hub = make_hub(STANDBY)
    first = Publisher(hub)
    first.send(0, "first")
    transport = watch(hub)
    settle()
    second = Publisher(hub)
    second.send(0, "second")

    def fail(event):
        raise RuntimeError("a bug")

    hub.bus.subscribe(EVENTS, fail)
    first.leave()
    second.send(40, "\0\0\0more", key=False)
    settle()
    assert texts(transport, hub.chunk_size)[-1] == frame("\0\0\0more")
    assert hub.bus.failures


def test_a_failover_is_logged_and_counted(make_hub, caplog):
    caplog.set_level(logging.INFO)
    hub = make_hub(STANDBY)
    first = Publisher(hub)
    first.send(0, "first")
    watch(hub)
    settle()
    Publisher(hub, address="192.0.2.7").send(0, "second")
    first.leave(reason="closed by the peer")
    assert hub.counters["source_switches_failover"] == 1
    assert "live/show: the backup from 192.0.2.7:50000 is active from now on: closed by the peer" in caplog.text


# Reload and stop --------------------------------------------------------------------------------------------------------


def test_a_reload_changes_what_happens_to_a_second_publisher(make_hub):
    hub = make_hub()
    first = Publisher(hub)
    refused(hub)
    hub.reload(load_text("[publish]\non_conflict = backup\nstandby_limit = 2\n"))
    second, third = Publisher(hub), Publisher(hub)
    hub.reload(load_text("[publish]\non_conflict = backup\nstandby_limit = 1\n"))
    refused(hub)
    assert first.stopped is second.stopped is third.stopped is None
    hub.reload(load_text(f"{TAKEOVER}takeover_hold_s = 0\n"))
    fourth = Publisher(hub)
    assert [each.stopped.kind for each in (first, second, third)] == [CloseKind.TAKEN_OVER] * 3
    assert [lane.source for lane in fourth.stream.ingest.publishers] == [fourth.source]


SLATE = Slate(
    ((VIDEO, b"\x17\x00\x00\x00\x00slate"),), (SlateMessage(VIDEO, 0, keyframe("slate")),), 1000, "a slate", 9, None, None, 1.0
)


@pytest.fixture
def slated(make_hub):
    hub = make_hub("[slate]\nslate_file = /slate.flv\n[live]\npacing = no\n")
    hub.slates = {"/slate.flv": SLATE}
    return hub


def test_a_server_that_stops_ends_its_slates(slated, clock):
    hub = slated
    transport = watch(hub)
    stream = hub.streams[KEY]
    stream.tick(clock.now_s)
    settle()
    assert stream.phase is StreamPhase.SLATE
    assert texts(transport, hub.chunk_size)[-1] == keyframe("slate")
    hub.stop()
    assert any(b"UnpublishNotify" in each for each in texts(transport, hub.chunk_size))
    assert not stream.ingest.lanes


def test_a_slate_is_no_publisher(slated, clock):
    hub = slated
    watch(hub)
    stream = hub.streams[KEY]
    stream.tick(clock.now_s)
    assert not stream.available
    assert stream.source is None
    assert hub.counters["publishes"] == 0
    publisher = Publisher(hub)
    publisher.send(0, "first")
    assert stream.source is publisher.source
    stream.tick(clock.now_s)
    publisher.leave(lost=False)
    assert stream.phase is StreamPhase.LINGER
    stream.tick(clock.now_s)
    assert stream.published.log.headers.items == SLATE.headers


def test_a_slate_without_viewers_ends_and_its_stream_is_removed(slated, clock):
    hub = slated
    viewer = Viewer()
    stream = hub.play(KEY, viewer)
    stream.output()
    stream.tick(clock.now_s)
    assert stream.ingest.lanes
    hub.unplay(stream, viewer)
    stream.tick(clock.now_s)
    hub.unplay(stream, viewer)
    assert hub.streams == {}


def test_a_publisher_that_is_stopped_while_a_slate_covers_it_leaves_no_source(slated, clock):
    hub = slated
    publisher = Publisher(hub)
    publisher.send(0, "first")
    watch(hub)
    settle()
    stream = publisher.stream
    for _ in range(60):
        clock.now_s += 0.05
        stream.tick(clock.now_s)
    assert stream.source is None
    assert stream.phase is StreamPhase.LIVE
    publisher.source.stop(CloseReason(CloseKind.EXPELLED, "by an operator"))
    assert [lane.role for lane in stream.ingest.lanes] == [SourceRole.SLATE]
    assert stream.phase is StreamPhase.GRACE
