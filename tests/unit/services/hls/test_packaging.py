"""Packaging of live streams: every playlist of their whole lives is checked against the rules of clients."""

from __future__ import annotations

import time
from itertools import pairwise

import gevent
import pytest

from rtmpd.config.loader import load_text
from rtmpd.live.framing import VIDEO
from rtmpd.live.log import NEVER
from rtmpd.media.hls.playlist import media_playlist
from rtmpd.media.slate import Slate, SlateMessage
from tests.fmp4_files import samples
from tests.unit.services.hls.shows import AAC_48_HEADER, AAC_HEADER, AVC_HEADER, SMALL_HEADER, Publisher, Show, durations

ALWAYS = "[hls]\nhls = always\n"


@pytest.fixture
def make_show():
    made = []

    def make(ini="", **more):
        made.append(Show(ini, **more))
        return made[-1]

    yield make
    for show in made:
        show.close()


class Watcher:
    """A player without a connection: a slate is played only if there is one."""

    number = 0

    def revise(self, decisions):
        pass

    def ended(self):
        pass


def dates(playlist):
    return [line.partition(":")[2] for line in playlist.splitlines() if line.startswith("#EXT-X-PROGRAM-DATE-TIME")]


# The life of a stream -----------------------------------------------------------------------------------------------------


def test_on_demand_the_first_part_is_there_at_once(make_show):
    show = make_show()
    publisher = Publisher(show)
    publisher.send(9_000)
    assert show.packagers.memory_bytes == 0
    packager = show.find()
    packager.wait_ready(5)
    show.step()
    # The group of pictures that began at 8 s.
    assert "part" in show.main.playlists[0]
    assert samples(next(iter(show.main.media.values())), numbered=False)[0].time == 8_000 * 90
    show.run(20_000, publisher)
    show.end(publisher)
    show.check()
    assert "#EXT-X-ENDLIST" in show.main.playlists[-1]
    assert "DISCONTINUITY\n" not in show.main.playlists[-1]
    assert durations(show.main) == [2.0] * 5 + [2.001]
    (packaged,) = packager.renditions
    assert packaged.codecs == ("avc1.42c01f", "mp4a.40.2")
    assert (packaged.width, packaged.height, packaged.frame_rate, packaged.channels) == (1280, 720, 30, 1)
    # All samples are there, once, and continuous.
    data = b"".join(data for _, data in show.main.segments)
    video = [each for each in samples(data, numbered=False) if each.track == 1]
    assert len(video) == 12 * 30
    assert all(before.time + before.duration == after.time for before, after in pairwise(video))
    audio = [each for each in samples(data, numbered=False) if each.track == 2]
    assert all(before.time + before.duration == after.time for before, after in pairwise(audio))
    # It can be found for a while, although the stream has ended, and a new publish has higher numbers.
    assert show.packagers.find(packager.key) is packager
    last = packaged.window.next_part[0]
    again = Publisher(show, starts_ms=500)
    again.send(3_000)
    other = show.find()
    assert other is not packager
    show.step()
    assert other.renditions[0].window.first_number >= last
    # The one before is kept for its clients; that of a third publish takes its place, and memory is freed.
    assert show.packagers.earlier(packager.key) is packager
    assert packaged.segment_data(packaged.window.last_number)
    assert packager.memory_bytes + other.memory_bytes == show.packagers.memory_bytes
    again.leave(lost=False)
    third = Publisher(show, starts_ms=0)
    third.send(3_000)
    newest = show.find()
    show.wait(lambda: other.ended)
    show.step()
    assert show.packagers.earlier(packager.key) is other
    assert other.renditions[0].window.ended
    assert newest.renditions[0].window.first_number >= other.renditions[0].window.next_part[0]
    assert packager.renditions == ()
    assert packager.memory_bytes == 0


def test_always(make_show):
    show = make_show(ALWAYS)
    publisher = Publisher(show)
    show.packager = show.packagers.find("live/show")
    assert show.packager is not None
    show.run(6_500, publisher)
    assert samples(show.main.segments[0][1], numbered=False)[0].time == 0
    show.end(publisher)
    show.check()


def test_streams_that_are_not_packaged(make_show):
    show = make_show("[hls]\nhls = off\n")
    assert show.packagers.find("live/show") is None
    Publisher(show).send(1_000)
    assert show.packagers.find("live/show") is None


def test_packaging_on_demand_ends_without_viewers(make_show):
    show = make_show("[hls]\nhls_idle_s = 5\n")
    publisher = Publisher(show)
    publisher.send(3_000)
    packager = show.find()
    show.run(6_000, publisher)
    packager.touched_at_s = time.monotonic() - 6
    show.wait(lambda: packager.ended)
    assert show.packagers.memory_bytes == 0
    assert not publisher.stream.published.log.readers
    window = show.main.packaged.window
    assert window.ended
    assert window.size_bytes == len(window.listed) == 0
    last = show.main.packaged.window.next_part[0]
    again = show.find()
    assert again is not packager
    show.run(9_000, publisher)
    assert again.renditions[0].window.first_number >= last
    show.check()


# Sources and headers ------------------------------------------------------------------------------------------------------


def test_a_publisher_that_returns_is_a_discontinuity(make_show):
    show = make_show()
    publisher = Publisher(show)
    publisher.send(4_100)
    show.find()
    show.run(9_000, publisher)
    publisher.leave()
    show.step()
    again = Publisher(show, starts_ms=77_000, fps=25, gop=50)
    show.run(8_100, again)
    show.end(again)
    show.check()
    text = show.main.playlists[-1]
    assert text.count("#EXT-X-DISCONTINUITY\n") == 1
    assert text.count("#EXT-X-MAP") == 1
    found = dates(text)
    assert found == sorted(found)


def test_a_failover(make_show):
    show = make_show("[publish]\non_conflict = backup\nstall_timeout_s = 1\n")
    primary, backup = Publisher(show), Publisher(show, header=SMALL_HEADER, starts_ms=5000)
    for until_ms in range(250, 4_250, 250):
        primary.send(until_ms)
        backup.send(until_ms)
    show.find()
    show.run(7_000, primary, backup)
    primary.leave()
    show.run(13_000, backup)
    show.end(backup)
    show.check()
    text = show.main.playlists[-1]
    assert text.count("#EXT-X-DISCONTINUITY\n") == 1
    assert text.count("#EXT-X-MAP") == 2
    assert show.main.packaged.width == 64


def test_headers_that_change(make_show):
    show = make_show()
    publisher = Publisher(show)
    publisher.send(2_500)
    show.find()
    show.run(6_000, publisher)
    publisher.source.video(6_000, SMALL_HEADER)
    show.run(11_000, publisher)
    # Another audio format: from the next keyframe on.
    publisher.source.audio(11_000, AAC_48_HEADER)
    show.run(16_000, publisher)
    # The same headers again change nothing.
    publisher.source.video(16_000, SMALL_HEADER)
    publisher.source.audio(16_000, AAC_48_HEADER)
    show.run(19_000, publisher)
    show.end(publisher)
    show.check()
    text = show.main.playlists[-1]
    assert text.count("#EXT-X-DISCONTINUITY\n") == 2
    assert text.count("#EXT-X-MAP") == 3
    assert len(show.main.inits) == 3


# Odd streams --------------------------------------------------------------------------------------------------------------


def test_long_groups_of_pictures(make_show):
    show = make_show(has_keyframes=False)
    publisher = Publisher(show, gop=900)
    publisher.send(21_000)
    show.find()
    show.run(42_000, publisher)
    show.end(publisher)
    show.check()
    assert not show.main.packaged.has_independent_segments
    assert show.main.packaged.window.targets.target_s == 10


def test_a_stream_that_has_just_begun(make_show):
    """The second keyframe is waited for, but not for long."""
    show = make_show(ALWAYS)
    publisher = Publisher(show, gop=240)
    show.packager = show.packagers.find("live/show")
    show.run(20_000, publisher)
    show.end(publisher)
    show.check()
    assert show.main.packaged.window.targets.target_s == 10
    assert list(durations(show.main))[:2] == [8.0, 8.0]


@pytest.mark.parametrize(
    "options",
    [
        {"audio": False},
        {"fps": 0},
        {"composition": lambda number: (66, 0, -33)[number % 3]},
        {"jitter": lambda number: number * number % 23},
        {"fps": 24000 / 1001, "gop": 48},
        {"fps": 5, "gop": 10},
        {"fps": 60, "gop": 7},
    ],
    ids=["without audio", "audio alone", "B-frames", "uneven", "film", "few frames", "short groups"],
)
def test_streams_of_all_kinds(make_show, options):
    show = make_show()
    publisher = Publisher(show, **options)
    publisher.send(4_000)
    show.find()
    show.run(14_000, publisher)
    show.end(publisher)
    show.check()
    assert sum(durations(show.main)) > 8
    assert show.main.packaged.has_independent_segments


def test_variable_frame_rate(make_show):
    show = make_show()
    publisher = Publisher(show, fps=0)
    publisher.source.video(0, AVC_HEADER)
    time_ms, steps = 0, (33, 67, 100, 33, 500, 40)
    show.packager = None
    for number in range(120):
        publisher.send(time_ms)
        publisher.video(time_ms, key=number % 15 == 0)
        time_ms += steps[number % len(steps)]
        if number == 30:
            show.find()
        if show.packager is not None:
            show.step()
    show.end(publisher)
    show.check()


def test_audio_that_starts_late(make_show):
    show = make_show(ALWAYS)
    publisher = Publisher(show, audio=False)
    show.packager = show.packagers.find("live/show")
    show.run(5_000, publisher)
    publisher.audio = True
    publisher._sounds = round(5_000 / (1024 / 44.1))
    publisher.source.audio(5_000, AAC_HEADER)
    show.run(12_000, publisher)
    show.end(publisher)
    show.check()
    assert show.main.playlists[-1].count("#EXT-X-DISCONTINUITY\n") == 1
    assert show.main.packaged.has_audio
    # It begins with the keyframe that follows: no video is lost.
    data = b"".join(data for _, data in show.main.segments)
    assert len([each for each in samples(data, numbered=False) if each.track == 1]) == 12 * 30


def test_a_stream_without_media_and_codecs_without_a_place(make_show, monkeypatch):
    monkeypatch.setattr("rtmpd.services.hls.packager._UNKNOWN_S", 0.2)
    show = make_show()
    publisher = Publisher(show, sends_headers=False, audio=False, fps=0)
    publisher.source.data(0, b"\x02\x00\x04text")
    packager = show.find()
    packager.wait_ready(5)
    assert not packager.renditions
    assert "neither" in packager.problem
    for number in range(60):
        publisher.source.video(number * 33, b"\x12" + bytes(300))
    packager.wake()
    show.wait(lambda: "h263" in packager.problem)
    # A codec that has one.
    publisher.fps = 30
    publisher.source.video(2000, SMALL_HEADER)
    publisher._frames = 60
    show.run(9_000, publisher)
    assert not packager.problem
    show.end(publisher)
    show.check()


def test_jumps_of_timestamps(make_show):
    show = make_show()
    publisher = Publisher(show)
    publisher.send(3_000)
    show.find()
    show.run(8_000, publisher)
    publisher.starts_ms += 100_000
    show.run(16_000, publisher)
    publisher.starts_ms -= 90_000
    show.run(24_000, publisher)
    show.end(publisher)
    show.check()
    found = dates(show.main.playlists[-1])
    assert found == sorted(found)


# Memory -------------------------------------------------------------------------------------------------------------------


def test_the_limit_of_a_stream(make_show, caplog):
    show = make_show("[hls]\nhls_memory_limit_bytes = 1M\n")
    publisher = Publisher(show, key_bytes=40_000, frame_bytes=2_000)
    publisher.send(3_000)
    packager = show.find()
    show.run(30_000, publisher)
    show.check()
    assert packager.memory_bytes <= 1 << 20
    assert show.packagers.memory_bytes == packager.memory_bytes
    assert show.hub.counters["hls_segments_dropped"] > 3
    assert caplog.text.count("hls_memory_limit_bytes") == 1


def test_segments_that_would_be_too_large_end_early(make_show):
    show = make_show("[hls]\nhls_memory_limit_bytes = 1M\n", has_keyframes=False)
    publisher = Publisher(show, key_bytes=100_000, frame_bytes=30_000)
    publisher.send(1_000)
    packager = show.find()
    show.run(9_000, publisher, step_ms=100)
    show.end(publisher)
    assert packager.memory_bytes <= 1 << 20
    # With so little memory the playlist is shorter than clients want.
    assert {violation.rule for violation in show.main.violations} <= {"playlist duration"}


def test_the_limit_of_all(make_show, caplog):
    show = make_show("[hls]\nhls_total_limit_bytes = 1M\n")
    publisher = Publisher(show, key_bytes=40_000, frame_bytes=2_000)
    publisher.send(3_000)
    show.find()
    show.run(20_000, publisher)
    assert show.packagers.memory_bytes <= 1 << 20
    assert caplog.text.count("hls_total_limit_bytes") == 1
    show.check()


def test_an_exception_ends_only_the_packager(make_show, caplog, monkeypatch):
    show = make_show(ALWAYS)
    publisher = Publisher(show)
    show.packager = show.packagers.find("live/show")
    show.run(6_000, publisher)
    packager = show.packager

    def fail(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr("rtmpd.media.fmp4.fragmenter.Fragmenter.cut", fail)
    publisher.send(9_000)
    packager.wake()
    show.wait(lambda: packager.ended)
    assert show.hub.counters["hls_errors"] == 1
    assert "a bug" in caplog.text
    assert "#EXT-X-ENDLIST" in media_playlist(packager.renditions[0].window)
    assert not publisher.stopped
    assert not publisher.stream.published.log.readers
    assert show.packagers.find("live/show") is packager


# Viewers ------------------------------------------------------------------------------------------------------------------


def test_all_that_wait_are_woken_once_for_each_change(make_show):
    show = make_show()
    publisher = Publisher(show)
    publisher.send(4_000)
    packager = show.find()
    show.run(5_000, publisher)
    (packaged,) = packager.renditions
    woken = []

    def wait():
        before = packaged.window.next_part
        packaged.wait(10)
        woken.append(packaged.window.next_part != before)

    greenlets = [gevent.spawn(wait) for _ in range(500)]
    gevent.sleep(0)
    publisher.send(5_700)
    packager.wake()
    gevent.joinall(greenlets, timeout=10)
    assert woken == [True] * 500
    # The end wakes, too.
    greenlets = [gevent.spawn(packaged.wait, 10) for _ in range(3)]
    gevent.sleep(0)
    show.end(publisher)
    gevent.joinall(greenlets, timeout=10)
    assert all(each.ready() for each in greenlets)


def test_the_pace_of_a_live_stream(make_show):
    """In real time a part is there soon after its last frame: the packager is woken by nothing but the stream."""
    show = make_show("[hls]\nhls_part_ms = 200\n")
    publisher = Publisher(show, gop=30)
    publisher.send(4_000)
    packager = show.find()
    packager.wait_ready(5)
    (packaged,) = packager.renditions
    begun_s, delays = time.monotonic(), []
    before = packaged.window.last_part
    while publisher.time_ms < 5_200:
        publisher.send(4_000 + (time.monotonic() - begun_s) * 1000)
        gevent.sleep(0.002)
        window = packaged.window
        if window.last_part != before:
            before = window.last_part
            ends_ms = sum(segment.duration_ms for segment in (*window.listed, window.open)) + 3_000
            delays.append(publisher.time_ms - ends_ms)
    assert len(delays) >= 5
    # A part ends where the next frame begins, up to 34 ms later than its last one.
    assert sorted(delays)[len(delays) // 2] < 60, delays


def test_a_slate(make_show):
    show = make_show("[publish]\npublisher_grace_s = 30\nstall_timeout_s = 0.5\n[slate]\nslate_file = slate.flv\n")
    frames = tuple(
        SlateMessage(VIDEO, number * 40, (b"\x27" if number % 25 else b"\x17") + b"\1\0\0\0" + bytes(300))
        for number in range(50)
    )
    show.hub.slates = {"slate.flv": Slate(((VIDEO, SMALL_HEADER),), frames, 2000, "a slate", 100, None, None, 25.0)}
    publisher = Publisher(show)
    publisher.send(4_000)
    show.find()
    show.run(6_000, publisher)
    stream = publisher.stream
    show.hub.play("live/show", Watcher())
    publisher.leave()
    show.wait(lambda: stream.tick(time.monotonic()) is not None and stream.ingest.active is not None)
    show.step()
    until_s = time.monotonic() + 1.2
    while time.monotonic() < until_s:
        gevent.sleep(0.05)
        show.step()
    assert show.main.playlists[-1].count("#EXT-X-DISCONTINUITY\n") == 1
    assert show.main.packaged.width == 64
    again = Publisher(show, starts_ms=9_000)
    again.send(3_000)
    stream.tick(time.monotonic())
    show.wait(lambda: stream.source is not None)
    show.run(9_000, again)
    assert show.main.packaged.width == 1280
    show.check()
    assert show.main.playlists[-1].count("#EXT-X-DISCONTINUITY\n") == 2


def test_a_publisher_whose_stream_is_only_packaged_may_be_read_at_intervals(make_show):
    show = make_show(ALWAYS)
    publisher = Publisher(show)
    source, stream = publisher.source, publisher.stream
    publisher.send(1_000)
    packager = show.packagers.find("live/show")
    assert packager in stream.published.log.readers
    stream.sweep(time.monotonic() + 10, 60)
    assert not source.wanted
    reader = Watcher()
    reader.wake_at = NEVER
    stream.read(reader)
    assert source.wanted
    stream.sweep(time.monotonic() + 10, 60)
    assert source.wanted
    stream.stop_reading(reader)
    stream.sweep(time.monotonic() + 10, 60)
    assert not source.wanted


def test_a_reload(make_show):
    show = make_show()
    publisher = Publisher(show)
    publisher.send(3_000)
    packager = show.find()
    show.run(5_000, publisher)
    show.hub.reload(load_text("[hls]\nhls_window_s = 6\n"))
    show.run(20_000, publisher)
    assert len(packager.renditions[0].window.listed) == 3
    show.hub.reload(load_text("[applications]\n[[live]]\nhls = off\n"))
    assert show.packagers.find("live/show") is None
    show.wait(lambda: packager.ended)
    assert show.packagers.memory_bytes == 0
    show.hub.reload(load_text("[applications]\n[[live]]\nhls = always\n"))
    show.packager = show.packagers.find("live/show")
    assert show.packager is not packager
    show.run(26_000, publisher)
    assert show.packager.renditions
    show.check()


def test_a_viewer_that_comes_while_the_publisher_is_away(make_show):
    show = make_show()
    publisher = Publisher(show)
    publisher.send(3_500)
    publisher.leave()
    packager = show.find()
    packager.wait_ready(5)
    show.wait(lambda: packager.renditions and packager.renditions[0].window.listed)
    # What is kept of the last group of pictures is a segment.
    show.step()
    assert list(durations(show.main)) == [1.501]
    again = Publisher(show)
    show.run(4_500, again)
    show.end(again)
    show.check()
    assert show.main.playlists[-1].count("#EXT-X-DISCONTINUITY\n") == 1
