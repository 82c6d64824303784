from __future__ import annotations

import contextlib
import gc
import logging
import re
import time

import gevent
import pytest
from gevent.event import Event

from rtmpd.config.loader import load_text
from rtmpd.daemon.dump import Dump
from rtmpd.hub import Hub
from rtmpd.services.recorder.service import Recorder
from tests.unit.live.fakes import FakeTransport, keyframe, new_source, new_subscriber
from tests.unit.services.hls.shows import Publisher, Show
from tests.unit.services.hls.stage import Stage


@pytest.fixture
def hub():
    made = Hub(load_text(""))
    yield made
    for stream in list(made.streams.values()):
        stream.end()
        stream.close()


class Player:
    """A player, as far as the hub uses it."""

    number = 0

    def ended(self):
        pass


def play(hub, stream, address, **options):
    """Let a player play whose `FakeTransport` has these options; return its subscriber."""
    subscriber = new_subscriber(FakeTransport(**options), chunk_size=hub.chunk_size)
    subscriber.label = f"player {address}"
    hub.play(stream.key, Player())
    stream.published.fanout.join(subscriber)
    return subscriber


def nap(event):
    event.wait()


def test_greenlets_are_counted_by_where_they_wait(hub):
    event = Event()
    waiting = [gevent.spawn(nap, event) for _ in range(7)]
    gevent.sleep(0)
    lines = list(Dump(hub).lines())
    event.set()
    gevent.joinall(waiting)
    (line,) = [line for line in lines if " nap " in line]
    # What of gevent is compiled has no frames.
    assert re.fullmatch(r"greenlets: 7 in (\S+ \S+:\d+ < )*nap daemon/test_dump\.py:\d+( < .*)?", line), line


def test_greenlets_that_the_collector_no_longer_lists_are_counted(hub):
    event = Event()
    waiting = [gevent.spawn(nap, event) for _ in range(3)]
    gevent.sleep(0)
    dump = Dump(hub)
    dump.remember_greenlets()
    gc.freeze()
    try:
        late = gevent.spawn(nap, event)
        gevent.sleep(0)
        assert any(line.startswith("greenlets: 4 in") and " nap " in line for line in dump.lines())
    finally:
        # What was collected before the tests stays frozen, see tests/conftest.py.
        event.set()
        gevent.joinall([*waiting, late])


def test_streams_are_shown_with_the_players_that_are_furthest_behind_first(hub):
    stream = hub.publish("live/a", new_source(peer="192.0.2.1:1000"))
    stream.source.video(0, keyframe())
    play(hub, stream, "192.0.2.2:2000")
    slow = play(hub, stream, "192.0.2.3:3000", capacity=10)
    gevent.sleep(0.01)
    for number in range(1, 20):
        stream.source.video(number * 40, keyframe())
    gevent.sleep(0.01)
    before = bytes(slow.pending), slow.offset
    lines = [line for line in Dump(hub).lines() if line.startswith("live/a: ")]
    assert re.match(r"live/a: published by 192\.0\.2\.1:1000, 2 players, 0 s, log at \d+, join point \d+ bytes back$", lines[0])
    assert re.match(
        r"live/a: player 192\.0\.2\.3:3000 lagging: \d{3,} bytes and \d+ ms behind, 0 skips, 0 messages dropped, "
        r"its socket is full$",
        lines[1],
    )
    assert lines[2] == "live/a: player 192.0.2.2:2000 group: 0 bytes and 0 ms behind, 0 skips, 0 messages dropped"
    # The dump changes nothing.
    assert before == (bytes(slow.pending), slow.offset)


def test_a_stream_without_a_source_is_shown(hub):
    hub.play("live/later", Player())
    (line,) = [line for line in Dump(hub).lines() if line.startswith("live/later: ")]
    assert "no source, 1 players" in line
    assert line.endswith("join point none")


def test_the_sources_of_a_stream_are_shown_with_their_roles_and_health():
    hub = Hub(load_text("[publish]\non_conflict = backup\nstandby_limit = 2\nmatch_copies = no\n"))
    for port in (1001, 1002, 1003):
        stream = hub.publish("live/a", new_source(peer=f"192.0.2.1:{port}"))
    first, second, _ = (lane.source for lane in stream.ingest.lanes)
    for time_ms in (0, 1000):
        first.video(time_ms, keyframe("a"))
        second.video(time_ms, keyframe("b"))
    stream.tick(time.monotonic())
    lines = [line for line in Dump(hub).lines() if " (id " in line]
    kept_bytes = stream.ingest.lanes[1].held_bytes
    assert lines == [
        "live/a: primary from 192.0.2.1:1001 (id 1) is active: healthy, 0 kbit/s",
        f"live/a: backup from 192.0.2.1:1002 (id 2) stands by: healthy, 0 kbit/s, {kept_bytes} bytes kept",
        "live/a: backup from 192.0.2.1:1003 (id 3) stands by: it has sent nothing, 0 kbit/s, 0 bytes kept without a keyframe",
    ]
    assert not [line for line in Dump(hub).lines() if "changes of the active source" in line]
    for lane in list(stream.ingest.lanes):
        hub.unpublish(stream, lane.source)
    stream.end()


def test_http_connections_and_the_sessions_of_hls_are_counted():
    stage = Stage()
    try:
        stage.publish(parts=5)
        stage.publish("live/other", parts=5)
        with contextlib.closing(stage.connect()) as sock:
            index = stage.get("/live/test/index.m3u8", sock=sock).text
            (playlist,) = (line for line in index.splitlines() if line.startswith("main/"))
            for path in (f"/live/test/{playlist}", "/live/other/main/media.m3u8", "/live/test/main/media.m3u8"):
                assert stage.get(path, sock=sock).status == 200
            lines = list(Dump(stage.hub).lines())
        assert "HTTP connections: 1 HTTP/1.1" in lines
        assert [line for line in lines if "HLS" in line] == [
            "HLS: 3 sessions, of 2 streams",
            "live/test: 2 HLS sessions",
            "live/other: 1 HLS session",
        ]
        session_id = re.search(r"s=([^&\s]+)", playlist)[1]
        assert not [line for line in lines if session_id in line]
    finally:
        stage.close()


def test_what_hls_keeps_of_a_stream_is_shown():
    show = Show("[hls]\nhls_part_ms = 500\nhls_segment_s = 2\n")
    try:
        publisher = Publisher(show)
        publisher.send(5_000)
        assert not [line for line in Dump(show.hub).lines() if "HLS" in line]
        packager = show.find()
        packager.wait_ready(5)
        show.run(11_000, publisher)
        lines = [line for line in Dump(show.hub).lines() if "HLS" in line]
        kept_bytes = packager.memory_bytes
        count = len(packager.renditions[0].window.listed)
        assert count
        targets = "segments of 2000 ms, target duration 2 s, parts of 500 ms"
        assert lines == [
            f"HLS: 1 stream, {kept_bytes} bytes of segments in memory",
            f"live/show: HLS for 0 s, last request 0 s ago, {kept_bytes} bytes; {targets}; main: {count} segments",
        ]
        show.end(publisher)
        assert any(line.startswith("live/show: HLS for ") and line.endswith("; ended") for line in Dump(show.hub).lines())
    finally:
        show.close()


def test_recordings_are_counted_by_format(tmp_path):
    show = Show(f"[record]\nrecord_all = yes\nrecord_format = mp4\nrecord_directory = {tmp_path}\n")
    recorder = Recorder(show.hub, Recorder.select(show.hub.config))
    recorder.start()
    try:
        publisher = Publisher(show)
        assert "recordings: 1 without a file" in Dump(show.hub).lines()
        publisher.send(5_000)
        with gevent.Timeout(10):
            while "recordings: 1 MP4" not in Dump(show.hub).lines():
                gevent.sleep(0.01)
    finally:
        recorder.stop(5)
        show.close()


def test_the_dump_is_bounded_and_lets_other_greenlets_run(hub):
    for number in range(300):
        hub.publish(f"live/{number}", new_source(peer="192.0.2.1:1000"))
    busy = hub.streams["live/0"]
    for number in range(100):
        play(hub, busy, f"192.0.2.2:{number}")
    late = []

    def tick():
        while True:
            due = time.monotonic() + 0.001
            gevent.sleep(0.001)
            late.append(time.monotonic() - due)

    ticking = gevent.spawn(tick)
    gevent.sleep(0.01)
    lines = list(Dump(hub).lines())
    ticking.kill()
    assert lines[-1] == "and 100 more streams"
    assert "live/0: and 80 more players and relays, no further behind" in lines
    assert len(lines) < 300
    assert len(late) > 5
    assert max(late) < 0.5


def test_one_dump_at_a_time_goes_to_the_log_as_warnings(hub, caplog):
    caplog.set_level(logging.WARNING, "rtmpd")
    dump = Dump(hub)
    gevent.joinall([gevent.spawn(dump.write) for _ in range(10)], raise_error=True)
    assert sum(record.getMessage().startswith("state: ") for record in caplog.records) == 1
    dump.write()
    assert sum(record.getMessage().startswith("state: ") for record in caplog.records) == 2
