"""Limits that the hub enforces: streams, players, memory."""

from __future__ import annotations

import gc

import pytest

from rtmpd.config.loader import load_text
from rtmpd.errors import Refused
from rtmpd.hub import Hub
from rtmpd.live.pages import ALL_PAGES, MIN_PAGE_BYTES
from rtmpd.live.rtmp_framing import RtmpSubscriberFraming
from rtmpd.live.stream import Stream
from rtmpd.live.subscriber import Subscriber
from tests.unit.live.fakes import FakeTransport, keyframe, new_source


@pytest.fixture
def make_hub():
    made = []

    def make(ini=""):
        made.append(Hub(load_text(ini)))
        return made[-1]

    yield make
    for hub in made:
        for stream in hub.streams.values():
            stream.end()
            stream.close()


def publish(hub, key):
    """Publish; return the stream."""
    return hub.publish(key, new_source())


class Player:
    number = 0

    def revise(self, decisions):
        pass

    def ended(self):
        pass


def play(hub, key):
    player = Player()
    player.stream = hub.play(key, player)
    return player


def refusal(action, *args):
    with pytest.raises(Refused) as caught:
        action(*args)
    return caught.value.code, caught.value.reason


def test_a_stream_beyond_the_limit_is_refused_so_that_encoders_retry(make_hub):
    hub = make_hub("[limits]\nstream_limit = 2\n[publish]\npublisher_grace_s = 0\n")
    first = publish(hub, "live/a")
    publish(hub, "live/b")
    assert refusal(publish, hub, "live/c") == ("NetStream.Failed", "stream_limit is 2")
    assert (sorted(hub.streams), hub.counters["streams_refused"], hub.counters["publishes"]) == (["live/a", "live/b"], 1, 2)
    hub.unpublish(first, first.source)
    publish(hub, "live/c")


def test_at_the_limit_existing_streams_can_be_played_and_published(make_hub):
    hub = make_hub("[limits]\nstream_limit = 2\nwaiting_stream_limit = 1\n")
    publish(hub, "live/a")
    # A player that waits for a stream creates it.
    play(hub, "live/b")
    play(hub, "live/a")
    play(hub, "live/b")
    publish(hub, "live/b")
    play(hub, "live/c")
    assert refusal(play, hub, "live/d") == ("NetStream.Play.Failed", "waiting_stream_limit is 1")
    assert hub.counters["streams_refused"] == 1
    assert refusal(publish, hub, "live/c") == ("NetStream.Failed", "stream_limit is 2")


def test_streams_that_players_wait_for_keep_no_publisher_out(make_hub):
    hub = make_hub("[limits]\nstream_limit = 2\nwaiting_stream_limit = 3\n")
    for name in "wxy":
        play(hub, f"live/{name}")
    assert refusal(play, hub, "live/z")[1] == "waiting_stream_limit is 3"
    publish(hub, "live/a")
    publish(hub, "live/x")
    # A published stream is not waited for: there is room for another name.
    play(hub, "live/z")
    assert refusal(publish, hub, "live/y")[1] == "stream_limit is 2"


def test_a_grace_without_players_ends_early_for_another_publisher(make_hub):
    hub = make_hub("[limits]\nstream_limit = 2\n")
    first, second = publish(hub, "live/a"), publish(hub, "live/b")
    hub.unpublish(second, second.source)
    hub.unpublish(first, first.source)
    assert sorted(hub.streams) == ["live/a", "live/b"]
    publish(hub, "live/c")
    # The older grace was the one that ended.
    assert sorted(hub.streams) == ["live/a", "live/c"]
    publish(hub, "live/a")
    assert refusal(publish, hub, "live/b")[1] == "stream_limit is 2"


def test_a_grace_with_players_keeps_its_place(make_hub):
    hub = make_hub("[limits]\nstream_limit = 1\n")
    stream = publish(hub, "live/a")
    player = play(hub, "live/a")
    hub.unpublish(stream, stream.source)
    assert refusal(publish, hub, "live/b")[1] == "stream_limit is 1"
    hub.unplay(stream, player)
    publish(hub, "live/b")
    assert list(hub.streams) == ["live/b"]


def test_after_the_end_a_stream_with_players_is_only_waited_for(make_hub):
    hub = make_hub("[limits]\nstream_limit = 1\n[publish]\npublisher_grace_s = 0\n")
    stream = publish(hub, "live/a")
    play(hub, "live/a")
    hub.unpublish(stream, stream.source)
    publish(hub, "live/b")
    assert sorted(hub.streams) == ["live/a", "live/b"]


def test_waiting_for_twenty_thousand_names_takes_no_pages_and_sweeps_visit_few_of_them(make_hub, monkeypatch):
    hub = make_hub("[limits]\nwaiting_stream_limit = 0\n")
    before = ALL_PAGES.bytes
    count = 20_000
    for number in range(count):
        stream = play(hub, f"live/{number}").stream
        if number % 1000 == 0:
            stream.output().fanout.join(Subscriber(FakeTransport(), RtmpSubscriberFraming(4096, 1)))
    published = publish(hub, "live/published")
    assert ALL_PAGES.bytes - before <= MIN_PAGE_BYTES
    swept = []
    monkeypatch.setattr(Stream, "sweep", lambda stream, now_s, write_timeout_s: swept.append(stream))
    hub._sweep(0.0)
    assert published in swept
    assert len(swept) <= 1001
    for _ in range(20):
        hub._sweep(0.0)
    assert len(set(swept)) == count + 1


def test_a_player_beyond_the_limit_is_refused(make_hub):
    hub = make_hub("[limits]\nplayers_per_stream_limit = 2\n")
    publish(hub, "live/a")
    first = play(hub, "live/a")
    play(hub, "live/a")
    assert refusal(play, hub, "live/a") == ("NetStream.Play.Failed", "players_per_stream_limit is 2")
    assert (hub.counters["players_refused"], hub.counters["plays"]) == (1, 2)
    play(hub, "live/b")
    hub.unplay(first.stream, first)
    play(hub, "live/a")


def test_an_application_may_have_its_own_limit_of_players(make_hub):
    hub = make_hub("[limits]\nplayers_per_stream_limit = 3\n[applications]\n[[a]]\nplayers_per_stream_limit = 1\n[[b]]\n")
    play(hub, "a/x")
    assert refusal(play, hub, "a/x")[1] == "players_per_stream_limit is 1"
    for _ in range(3):
        play(hub, "b/x")
    assert refusal(play, hub, "b/x")[1] == "players_per_stream_limit is 3"


def test_reloaded_limits_apply_at_once_to_new_streams_and_players(make_hub):
    hub = make_hub()
    publish(hub, "live/a")
    publish(hub, "live/b")
    players = [play(hub, "live/a") for _ in range(3)]
    hub.reload(load_text("[limits]\nstream_limit = 1\nplayers_per_stream_limit = 2\n"))
    assert len(players[0].stream.players) == 3
    assert refusal(publish, hub, "live/c")[1] == "stream_limit is 1"
    assert refusal(play, hub, "live/a")[1] == "players_per_stream_limit is 2"
    hub.reload(load_text(""))
    publish(hub, "live/c")
    play(hub, "live/a")


# Memory -----------------------------------------------------------------------------------------------------------------


def test_above_the_memory_limit_new_publishers_are_refused(make_hub, monkeypatch):
    hub = make_hub("[limits]\nmemory_limit_bytes = 16M\n")
    monkeypatch.setattr(hub.memory, "total_bytes", lambda: 16 << 20)
    publish(hub, "live/a")
    monkeypatch.setattr(hub.memory, "total_bytes", lambda: (16 << 20) + 1)
    code, reason = refusal(publish, hub, "live/b")
    assert code == "NetStream.Failed"
    assert reason == "memory_limit_bytes is 16777216, and streams and connections hold 16777217 bytes"
    assert (list(hub.streams), hub.counters["memory_refusals"]) == (["live/a"], 1)
    play(hub, "live/a")
    hub.reload(load_text("[limits]\nmemory_limit_bytes = 17M\n"))
    publish(hub, "live/b")


def test_the_memory_of_streams_is_a_gauge(make_hub):
    hub = make_hub()
    gc.collect()
    before = hub.gauges["wire_log_bytes"]()
    stream = publish(hub, "live/a")
    stream.source.video(0, keyframe("", 1_000_000))
    assert hub.gauges["wire_log_bytes"]() - before == stream.published.log.account.bytes > 1_000_000
