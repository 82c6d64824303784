"""Metrics of a real hub with streams that come and go."""

from __future__ import annotations

import gc
import json
import time
import tracemalloc

import gevent
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from rtmpd.config.loader import load_text
from rtmpd.errors import HttpError
from rtmpd.http.messages import Request
from rtmpd.hub import Hub, RelayFigures
from rtmpd.services.metrics.exposition import LoopLag
from rtmpd.services.metrics.figures import OTHER, label
from rtmpd.services.metrics.service import Metrics
from rtmpd.util import speed
from tests.unit.live.fakes import (
    FakeTransport,
    audio_frame,
    close_stream,
    frame,
    keyframe,
    new_source,
    new_subscriber,
    settle,
)

LIMIT_S = 10


class FakePlayer:
    """The part of a player that the hub uses."""

    number = 0

    def ended(self):
        pass


class Publish:
    """A source and its stream."""

    def __init__(self, hub, key):
        self.source = new_source()
        self.stream = hub.publish(key, self.source)


class Stage:
    """A hub with metrics, and methods to publish, play and scrape."""

    def __init__(self, ini=""):
        config = load_text(ini)
        self.hub = Hub(config)
        self.metrics = Metrics(self.hub, Metrics.select(config))

    def publish(self, key="live/a"):
        return Publish(self.hub, key)

    def unpublish(self, publish):
        self.hub.unpublish(publish.stream, publish.source)

    def play(self, key="live/a", capacity=None):
        stream = self.hub.play(key, FakePlayer())
        transport = FakeTransport(capacity)
        stream.output().fanout.join(new_subscriber(transport, chunk_size=self.hub.config.server.chunk_size_bytes))
        return transport

    def samples(self):
        """All samples: name to labels (as a sorted tuple) to value."""
        found = {}
        for family in text_string_to_metric_families(self.metrics.text().decode()):
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                assert labels not in found.setdefault(sample.name, {}), f"{sample.name} {labels} twice"
                found[sample.name][labels] = sample.value
        return found

    def value(self, name, **labels):
        """One value; None if there is no such sample."""
        return self.samples().get(name, {}).get(tuple(sorted(labels.items())))

    def labels(self, name="rtmp_stream_players"):
        """The streams that have a sample, in their order."""
        return [dict(labels)["stream"] for labels in self.samples().get(name, {})]

    def vars(self):
        return json.loads(self.metrics.json())

    def close(self):
        self.metrics.stop(1)
        for stream in self.hub.streams.values():
            close_stream(stream)


@pytest.fixture
def stage():
    made = []

    def make(ini=""):
        made.append(Stage(ini))
        return made[-1]

    yield make
    for each in made:
        each.close()


# The server as a whole ----------------------------------------------------------------------------------------------------


def test_totals_include_live_streams_and_streams_that_have_ended(stage):
    scene = stage("[publish]\npublisher_grace_s = 0\n[live]\npacing = no\n")
    first = scene.publish()
    first.source.video(0, keyframe("x", 100))
    first.source.audio(0, audio_frame("y"))
    scene.unpublish(first)
    second = scene.publish("live/b")
    scene.play("live/b")
    for number in range(3):
        second.source.video(number * 40, keyframe("x", 100))
    settle()
    found = scene.samples()
    assert found["rtmp_messages_video_total"][()] == 4
    assert found["rtmp_messages_audio_total"][()] == 1
    assert found["rtmp_publishers_total"][()] == 2
    assert found["rtmp_publishers_active"][()] == 1
    assert found["rtmp_streams_active"][()] == 1
    assert found["rtmp_subscribers_total"][()] == found["rtmp_subscribers_active"][()] == 1
    assert found["rtmp_bytes_ingested_total"][()] == first.stream.received.bytes + second.stream.received.bytes > 400
    assert found["rtmp_bytes_egress_total"][()] == second.stream.counters.bytes_sent > 100


def test_counters_never_fall_while_streams_end_in_the_middle_of_a_scrape(stage, monkeypatch):
    scene = stage("[publish]\npublisher_grace_s = 0\n")
    publishes = [scene.publish(f"live/{number}") for number in range(40)]
    for publish in publishes:
        publish.source.video(0, keyframe())
    monkeypatch.setattr("rtmpd.services.metrics.figures._SLICE_S", 0.0)

    def leave():
        for publish in publishes:
            scene.unpublish(publish)
            gevent.sleep(0.001)

    leaving = gevent.spawn(leave)
    seen = []
    while not leaving.dead:
        seen.append(scene.value("rtmp_messages_video_total"))
    leaving.get()
    assert set(seen) == {40}
    assert scene.labels() == []


def test_failures_are_counted_by_reason_and_start_at_zero(stage):
    scene = stage()
    scene.hub.count("protocol_errors")
    scene.hub.count("something_new")
    assert scene.value("rtmpd_failures_total", reason="protocol_errors") == 1
    assert scene.value("rtmpd_failures_total", reason="refused") == 0
    # A counter without a family is not lost.
    assert scene.value("rtmpd_failures_total", reason="something_new") == 1


def test_gauges_and_counters_of_other_parts_are_exported(stage):
    scene = stage()
    assert scene.value("rtmp_recordings_active") == scene.value("rtmp_recording_errors_total") == 0
    scene.hub.gauges["recordings_active"] = lambda: 3
    scene.hub.gauges["log_lines_dropped"] = lambda: 7
    scene.hub.counters.update(recording_errors=2, auth_failures=5, relay_bytes_sent=6, zombie_connections=1)
    found = scene.samples()
    assert found["rtmp_recordings_active"][()] == 3
    assert found["rtmpd_log_lines_dropped_total"][()] == 7
    assert found["rtmp_recording_errors_total"][()] == 2
    assert found["rtmp_auth_failures_total"][()] == 5
    assert found["rtmp_relay_bytes_sent_total"][()] == 6
    assert found["rtmp_zombie_connections_total"][()] == 1


def test_the_process_and_its_versions_are_exported(stage):
    scene = stage()
    (labels,) = scene.samples()["rtmpd_build_info"]
    assert {name for name, _ in labels} == {"version", "code", "python", "gevent"}
    assert dict(labels)["code"] == speed.IN_USE
    assert scene.value("process_resident_memory_bytes") > 1e6
    assert scene.value("process_open_fds") > 3
    assert scene.value("process_cpu_seconds_total") > 0
    assert 0 <= scene.value("rtmp_uptime_seconds") < LIMIT_S


def test_the_global_registry_of_the_library_is_not_used(stage):
    before = [family.name for family in REGISTRY.collect()]
    stage().metrics.text()
    assert [family.name for family in REGISTRY.collect()] == before
    assert not any(name.startswith("rtmp") for name in before)


# The event loop -----------------------------------------------------------------------------------------------------------


def test_a_held_event_loop_is_measured(stage):
    scene = stage("[metrics]\nmetrics_listen = 127.0.0.1:0\n")
    scene.metrics.start()
    gevent.sleep(0.05)
    until = time.perf_counter() + 0.2
    while time.perf_counter() < until:
        pass
    with gevent.Timeout(LIMIT_S):
        while not scene.value("rtmpd_event_loop_lag_seconds_count"):
            gevent.sleep(0.01)
    found = scene.samples()["rtmpd_event_loop_lag_seconds_bucket"]
    assert found[("le", "0.05"),] == 0
    assert found[("le", "+Inf"),] >= 1
    assert scene.value("rtmpd_event_loop_lag_seconds_sum") > 0.1


def test_an_observed_lag_is_counted_in_the_right_bucket():
    lag = LoopLag()
    for late_s in (-0.001, 0.0, 0.001, 0.0011, 0.3, 1.0, 7.0):
        lag.observe(late_s)
    (family,) = lag.collect()
    counts = {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    assert [counts[each] for each in ("0.001", "0.0025", "0.25", "0.5", "1.0", "+Inf")] == [3, 4, 4, 5, 6, 7]
    assert [sample.value for sample in family.samples if sample.name.endswith("_sum")] == [pytest.approx(8.3021)]


def test_the_lag_of_the_event_loop_is_measured_only_if_metrics_are_served(stage):
    scene = stage()
    scene.metrics.start()
    gevent.sleep(0.15)
    assert scene.value("rtmpd_event_loop_lag_seconds_count") == 0


# Streams ------------------------------------------------------------------------------------------------------------------


def test_a_stream_has_its_figures(stage):
    scene = stage("[live]\npacing = no\n")
    stream = scene.publish().stream
    scene.play(), scene.play()
    slow = scene.play()
    now = time.monotonic()
    for number in range(5):
        stream.sweep(now + number, 0)
        stream.source.video(number * 1000, keyframe("k", 1000))
        settle()
        if number == 1:
            slow.capacity = 0
    found = scene.samples()
    mine = (("stream", "live/a"),)
    assert found["rtmp_stream_published"][mine] == 1
    assert found["rtmp_stream_players"][mine] == 3
    assert found["rtmp_stream_bitrate_bps"][mine] == pytest.approx(8 * len(keyframe("k", 1000)))
    assert found["rtmp_stream_fps"][mine] == pytest.approx(1)
    assert 0 <= found["rtmp_stream_keyframe_age_seconds"][mine] < LIMIT_S
    assert found["rtmp_stream_keyframe_interval_seconds"][mine] == 1
    # It lacks the frames of 2, 3 and 4 s.
    assert found["rtmp_stream_lag_seconds"][mine] == 2
    assert found["rtmp_stream_drops_total"][mine] == 0
    assert found["rtmp_stream_bytes_ingested_total"][mine] == stream.received.bytes
    assert found["rtmp_stream_bytes_egress_total"][mine] == stream.counters.bytes_sent


def test_an_unknown_value_has_no_sample(stage):
    scene = stage()
    scene.play()
    found = scene.samples()
    assert found["rtmp_stream_published"] == {(("stream", "live/a"),): 0}
    assert "rtmp_stream_keyframe_age_seconds" not in found
    publish = scene.publish()
    publish.source.video(0, keyframe())
    found = scene.samples()
    assert "rtmp_stream_keyframe_age_seconds" in found
    assert "rtmp_stream_keyframe_interval_seconds" not in found
    scene.unpublish(publish)
    assert "rtmp_stream_keyframe_age_seconds" not in scene.samples()


def test_the_oldest_streams_have_series_of_their_own_and_all_others_share_one(stage):
    scene = stage("[metrics]\nstream_series_limit = 2\n")
    for number in range(5):
        scene.publish(f"live/{number}")
        scene.play(f"live/{number}")
    assert scene.labels() == ["live/0", "live/1", OTHER]
    assert scene.value("rtmp_stream_players", stream=OTHER) == 3
    assert scene.value("rtmp_stream_published", stream=OTHER) == 3
    for name in ("rtmp_stream_bytes_ingested_total", "rtmp_stream_bytes_egress_total", "rtmp_stream_drops_total"):
        # The sum would fall when one of the streams ends.
        assert scene.labels(name) == ["live/0", "live/1"]
    assert list(scene.vars()["streams"]) == ["live/0", "live/1", OTHER]


def test_streams_without_a_publisher_come_after_published_streams(stage):
    scene = stage("[metrics]\nstream_series_limit = 2\n")
    for number in range(5):
        scene.play(f"live/nothing{number}")
    scene.publish("live/a")
    scene.publish("live/b")
    assert scene.labels() == ["live/a", "live/b", OTHER]


def test_with_a_limit_of_zero_all_streams_share_one_series(stage):
    scene = stage("[metrics]\nstream_series_limit = 0\n")
    scene.publish("live/a")
    scene.publish("live/b")
    assert scene.labels() == [OTHER]
    assert scene.value("rtmp_publishers_active") == scene.value("rtmp_stream_published", stream=OTHER) == 2


def test_a_reload_changes_the_limit(stage):
    scene = stage("[metrics]\nstream_series_limit = 1\n")
    for number in range(3):
        scene.publish(f"live/{number}")
    assert len(scene.labels()) == 2
    config = load_text("[metrics]\nstream_series_limit = 10\n")
    scene.metrics.reload(Metrics.select(config))
    assert len(scene.labels()) == 3


def test_thousands_of_short_streams_leave_nothing_behind(stage):
    scene = stage("[publish]\npublisher_grace_s = 0\n[metrics]\nstream_series_limit = 50\n")

    def some(begin, end):
        for number in range(begin, end):
            publish = scene.publish(f"live/{number}")
            publish.source.video(0, keyframe())
            if number % 500 == 0:
                assert scene.labels() == [f"live/{number}"]
            scene.unpublish(publish)
        assert scene.labels() == []
        gc.collect()
        return len(scene.metrics.text())

    size = some(0, 1000)
    tracemalloc.start()
    try:
        some(1000, 1500)
        before, _ = tracemalloc.get_traced_memory()
        assert some(1500, 3_500) == pytest.approx(size, abs=200)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # An object per stream would be more.
    assert after - before < 25 * 2000
    assert scene.value("rtmp_publishers_total") == 3_500


def test_a_thousand_streams_do_not_hold_the_event_loop(stage):
    scene = stage("[metrics]\nstream_series_limit = 1000\n")
    for number in range(1000):
        stream = scene.publish(f"live/{number}").stream
        stream.source.video(0, keyframe())
        stream.source.video(40, frame())
    late = []

    def watch():
        while True:
            # CPU time: that of other processes does not count.
            begun = time.thread_time()
            gevent.sleep(0.0005)
            late.append(time.thread_time() - begun)

    gc.collect()
    gc.disable()
    watching = gevent.spawn(watch)
    try:
        scene.metrics.text()
        scene.metrics.json()
    finally:
        gc.enable()
        watching.kill()
    # Measured: 2.7 ms; rendered without pauses, 70 ms.
    assert sorted(late)[-3] < 0.02
    assert len(late) > 20


# Sources ------------------------------------------------------------------------------------------------------------------


def fill(source, begin_ms, end_ms, letter="x"):
    """Send a picture every 40 ms, a keyframe each second."""
    for time_ms in range(begin_ms, end_ms, 40):
        text = f"{letter}{time_ms}"
        source.video(time_ms, keyframe(text, 1500) if time_ms % 1000 == 0 else frame(text, 800))


def test_each_source_of_a_stream_has_its_series(stage):
    scene = stage("[publish]\non_conflict = backup\nstandby_limit = 2\n")
    scene.play()
    first = scene.publish()
    assert scene.value("rtmp_stream_source_active", stream="live/a", source="primary") == 1
    # Alone, its health is not judged.
    assert scene.value("rtmp_stream_source_healthy", stream="live/a", source="primary") is None
    second, _ = scene.publish(), scene.publish()
    fill(first.source, 0, 400)
    fill(second.source, 0, 400, "y")
    first.stream.tick(time.monotonic())
    found = scene.samples()
    names = ["primary", "backup", "backup 2"]
    keys = [(("source", name), ("stream", "live/a")) for name in names]
    assert [found["rtmp_stream_source_active"][key] for key in keys] == [1, 0, 0]
    assert [found["rtmp_stream_source_healthy"][key] for key in keys] == [1, 1, 0]
    assert found["rtmp_stream_source_fault"] == {(("fault", "stalled"), ("source", "backup 2"), ("stream", "live/a")): 1}
    assert found["rtmp_stream_sources"][("stream", "live/a"),] == found["rtmp_publishers_active"][()] == 3
    shown = scene.vars()["sources"]
    assert [(each["stream"], each["source"], each["active"], each.get("fault")) for each in shown] == [
        ("live/a", "primary", 1, None),
        ("live/a", "backup", 0, None),
        ("live/a", "backup 2", 0, "stalled"),
    ]


def test_a_failover_is_counted_by_cause_and_for_its_stream(stage):
    scene = stage("[publish]\non_conflict = backup\nmatch_copies = no\n")
    scene.play()
    first, second = scene.publish(), scene.publish()
    fill(first.source, 0, 1000)
    assert scene.samples()["rtmpd_source_switches_total"] == {
        (("cause", cause),): 0 for cause in ("failback", "failover", "manual", "return", "slate")
    }
    now_s = time.monotonic()
    for time_ms in range(0, 3000, 40):
        # The first one has stalled.
        fill(second.source, time_ms, time_ms + 40, "y")
        first.stream.tick(now_s + time_ms / 1000)
    found = scene.samples()
    assert found["rtmpd_source_switches_total"][("cause", "failover"),] == 1
    assert found["rtmp_stream_source_switches_total"][("stream", "live/a"),] == 1
    assert found["rtmp_stream_source_active"][("source", "backup"), ("stream", "live/a")] == 1
    assert not [labels for labels in found["rtmpd_failures_total"] if "switch" in dict(labels)["reason"]]


def test_the_frames_of_copies_are_counted_beyond_the_end_of_their_stream(stage):
    scene = stage("[publish]\non_conflict = backup\npublisher_grace_s = 0\n")
    first, second = scene.publish(), scene.publish()
    stream, now_s = first.stream, time.monotonic()
    for second_ms in range(0, 4000, 1000):
        for each in (first, second):
            fill(each.source, second_ms, second_ms + 1000)
        stream.tick(now_s + second_ms / 1000)
    for second_ms in range(4000, 20000, 1000):
        fill(first.source, second_ms, second_ms + 1000)
        # The network of the second one loses two seconds.
        if second_ms not in {4000, 5000}:
            fill(second.source, second_ms, second_ms + 1000)
    totals = scene.hub.totals()
    assert totals["copies_joined"] == 1
    # Those of the group of pictures in which the second one has joined may count, too.
    filled = totals["copy_frames_filled"]
    assert 50 <= filled <= 75
    assert totals["copy_frames_duplicate"] > 300
    assert scene.value("rtmp_stream_copy_frames_filled_total", stream="live/a") == filled
    for each in (first, second):
        scene.unpublish(each)
    assert not scene.hub.streams
    assert scene.value("rtmpd_copies_joined_total") == 1
    assert scene.value("rtmpd_copies_broken_total") == 0
    assert scene.value("rtmpd_copy_frames_filled_total") >= filled


def test_sources_of_streams_without_series_of_their_own_have_none(stage):
    scene = stage("[metrics]\nstream_series_limit = 1\n")
    scene.publish("live/a")
    scene.publish("live/b")
    assert scene.labels("rtmp_stream_source_active") == ["live/a"]


# Labels -------------------------------------------------------------------------------------------------------------------

NAMES = [
    'live/a"b',
    "live/a\\b",
    "live/a\\nb",
    "live/a\nb",
    "live/a\r\n\tb",
    "live/\u00e9\u4e2d\U0001f3a5",
    "live/\x00\x7f\x85\u2028",
    "live/" + "a" * 1000 + "1",
    "live/" + "a" * 1000 + "2",
    'live/a"} 1\nrtmp_connections_active 99\n#',
]


@pytest.mark.parametrize("key", NAMES)
def test_unusual_names_are_exported_unchanged(stage, key):
    scene = stage()
    scene.publish(key)
    assert scene.labels() == [label(key)]
    assert list(scene.vars()["streams"]) == [label(key)]
    assert (label(key) == key) == (len(key) < 200)
    assert scene.value("rtmp_connections_active") == 0


def test_names_that_are_not_utf_8_are_escaped(stage):
    scene = stage()
    scene.publish(b"live/\xff\xc3".decode("utf-8", "surrogateescape"))
    assert scene.labels() == ["live/\\udcff\\udcc3"]
    assert scene.metrics.json().decode("ascii")


def test_streams_with_the_same_label_are_not_exported_twice(stage):
    scene = stage()
    scene.publish("live/\udcff")
    scene.publish("live/\\udcff")
    assert scene.labels() == ["live/\\udcff", OTHER]


def test_long_names_are_cut_and_stay_different():
    first, second = (label("live/" + "\u4e2d" * 5000 + end) for end in "12")
    assert first != second
    assert len(first) == len(second) == 200
    assert first.startswith("live/\u4e2d\u4e2d")


# Relays -------------------------------------------------------------------------------------------------------------------


def test_relays_have_their_figures(stage):
    scene = stage()
    scene.hub.relays = lambda: [
        RelayFigures("live/a", "one", "up", 1000, 20, 3, 1, 0.5),
        RelayFigures("live/a", 'rtmp://two/"live"', "waiting", reconnects=7),
    ]
    found = scene.samples()
    one = (("destination", "one"), ("stream", "live/a"))
    two = (("destination", 'rtmp://two/"live"'), ("stream", "live/a"))
    assert found["rtmp_relay_destination_up"] == {one: 1, two: 0}
    assert found["rtmp_relay_destination_lag_seconds"] == {one: 0.5, two: 0}
    assert found["rtmp_relay_destination_bytes_sent_total"] == {one: 1000, two: 0}
    assert found["rtmp_relay_destination_messages_sent_total"] == {one: 20, two: 0}
    assert found["rtmp_relay_destination_messages_dropped_total"] == {one: 3, two: 0}
    assert found["rtmp_relay_destination_reconnects_total"] == {one: 1, two: 7}
    assert [(each["destination"], each["state"]) for each in scene.vars()["relays"]] == [
        ("one", "up"),
        ('rtmp://two/"live"', "waiting"),
    ]


def test_the_limit_holds_for_relays_too(stage):
    scene = stage("[metrics]\nstream_series_limit = 2\n")
    scene.hub.relays = lambda: [RelayFigures(f"live/{number}", "one", "up", lag_s=number) for number in range(5)]
    found = scene.samples()
    others = (("destination", OTHER), ("stream", OTHER))
    assert len(found["rtmp_relay_destination_up"]) == 3
    assert found["rtmp_relay_destination_up"][others] == 3
    assert found["rtmp_relay_destination_lag_seconds"][others] == 4
    assert len(found["rtmp_relay_destination_bytes_sent_total"]) == 2


def test_a_relay_that_is_listed_twice_is_exported_once(stage):
    scene = stage()
    scene.hub.relays = lambda: [RelayFigures("live/a", "one", "up")] * 2
    assert len(scene.samples()["rtmp_relay_destination_up"]) == 2


# /debug/vars --------------------------------------------------------------------------------------------------------------

GO_RTMP = {
    "rtmp_connections_active",
    "rtmp_connections_total",
    "rtmp_streams_active",
    "rtmp_publishers_active",
    "rtmp_publishers_total",
    "rtmp_subscribers_active",
    "rtmp_subscribers_total",
    "rtmp_messages_audio",
    "rtmp_messages_video",
    "rtmp_bytes_ingested",
    "rtmp_relay_messages_sent",
    "rtmp_relay_messages_dropped",
    "rtmp_relay_bytes_sent",
    "rtmp_uptime_seconds",
}


def test_debug_vars_has_go_rtmps_names_as_integers(stage):
    scene = stage()
    publish = scene.publish()
    publish.source.video(0, keyframe())
    scene.play()
    found = scene.vars()
    assert all(type(found[name]) is int for name in GO_RTMP)
    assert found["rtmp_messages_video"] == found["rtmp_publishers_active"] == found["rtmp_subscribers_total"] == 1
    assert found["rtmp_server_info"].keys() == {"version", "code", "python", "gevent"}
    assert found["streams"]["live/a"]["bytes_in"] == found["rtmp_bytes_ingested"] == publish.stream.received.bytes
    assert found["relays"] == []


# Scrapes ------------------------------------------------------------------------------------------------------------------


def ask(metrics, path="/metrics"):
    (route,) = [each for each in metrics.routes() if each.path == path]
    found = route.handler(Request("GET", path, "", {}), None)
    return found.status, found.content_type, found.body


def test_only_one_scrape_runs_at_a_time(stage, monkeypatch):
    scene = stage()
    inside = []
    render = scene.metrics.text

    def text():
        inside.append(1)
        assert len(inside) == 1
        body = render()
        gevent.sleep(0.01)
        inside.pop()
        return body

    monkeypatch.setattr(scene.metrics, "text", text)
    scraping = [gevent.spawn(ask, scene.metrics) for _ in range(5)]
    for each in gevent.joinall(scraping, timeout=LIMIT_S):
        assert each.get()[:2] == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert ask(scene.metrics, "/debug/vars")[1] == "application/json; charset=utf-8"


def test_a_scrape_that_waits_too_long_for_another_is_refused(stage, monkeypatch):
    monkeypatch.setattr("rtmpd.services.metrics.service._TURN_S", 0.01)
    scene = stage()
    monkeypatch.setattr(scene.metrics, "text", lambda: gevent.sleep(LIMIT_S))
    stuck = gevent.spawn(ask, scene.metrics)
    gevent.sleep(0)
    try:
        with pytest.raises(HttpError) as caught:
            ask(scene.metrics)
        assert caught.value.status == 503
    finally:
        stuck.kill()
    monkeypatch.undo()
    assert ask(scene.metrics)[0] == 200


def test_a_scrape_that_fails_does_not_block_the_next(stage):
    scene = stage()

    def fail():
        raise RuntimeError("a bug")

    scene.hub.gauges["recordings_active"] = fail
    with pytest.raises(RuntimeError):
        ask(scene.metrics)
    del scene.hub.gauges["recordings_active"]
    assert ask(scene.metrics)[0] == 200
