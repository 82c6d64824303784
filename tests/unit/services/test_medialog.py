from __future__ import annotations

import logging
import time

import pytest

from rtmpd.config.loader import load_text
from rtmpd.hub import Hub
from rtmpd.media.audio_codecs import AudioConfig
from rtmpd.media.description import describe_audio, describe_video
from rtmpd.media.video_codecs import VideoConfig
from rtmpd.services import medialog
from rtmpd.services.medialog import MediaLog
from tests.unit.live.fakes import FakeTime, close_stream, new_source

AVC = bytes.fromhex(
    "1700000000 0164000bffe1001a6764000bacd94284 7e22c044000003000400000300c83c50a658 01000668ebe3cb22c0 fdf8f800"
)
AAC = bytes.fromhex("af001208")
VP9 = b"\x90vp09" + bytes.fromhex("01000000000a820202020000")
VIDEO = "video h264 High 1.1 160x114 4:2:0 8 bit"
AUDIO = "audio aac LC 44100 Hz 1 channel"


class Publisher:
    def __init__(self, hub):
        self.hub = hub
        self.source = new_source()
        self.stream = hub.publish("live/a", self.source)

    def stop(self):
        self.hub.unpublish(self.stream, self.source, lost=False)


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime()
    monkeypatch.setattr(medialog, "time", made)
    return made


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "rtmpd.services.medialog")
    return lambda: [record.getMessage() for record in caplog.records]


def services(ini=""):
    """Yield the service on a hub, and end it."""
    config = load_text(f"[log]\nstream_summary_s = 10\n{ini}")
    hub = Hub(config)
    made = MediaLog(hub, MediaLog.select(config))
    made.hub = hub
    made.start()
    yield made
    made.stop(0)
    for stream in hub.streams.values():
        close_stream(stream)


@pytest.fixture
def service(clock):
    yield from services()


def test_the_codecs_are_logged_once_as_soon_as_both_tracks_are_known(service, lines):
    source = Publisher(service.hub).source
    source.video(0, AVC)
    assert lines() == []
    source.audio(0, AAC)
    source.video(0, AVC)
    source.audio(0, AAC)
    for number in range(100):
        source.video(number * 40, b"\x27\x01frame")
    assert lines() == [f"live/a is: {VIDEO}, {AUDIO}"]


@pytest.mark.parametrize(
    ("header", "line"), [("video", f"live/a is: {VIDEO}, no audio"), ("audio", f"live/a is: no video, {AUDIO}")]
)
def test_the_codec_of_a_single_track_is_logged_after_a_wait(service, lines, clock, header, line):
    source = Publisher(service.hub).source
    source.video(0, AVC) if header == "video" else source.audio(0, AAC)
    service.tick(clock.now_s + 1)
    assert lines() == []
    service.tick(clock.now_s + 2)
    service.tick(clock.now_s + 3)
    assert lines() == [line]


def test_a_decoder_configuration_without_dimensions_waits_for_the_keyframe(service, lines):
    source = Publisher(service.hub).source
    source.video(0, VP9)
    source.audio(0, AAC)
    assert lines() == []
    source.video(0, b"\x91vp09" + bytes.fromhex("824983420015f011f6"))
    assert lines() == [f"live/a is: video vp9 Profile 0 1.0 352x288 4:2:0 8 bit, {AUDIO}"]


def test_the_codecs_of_a_publish_that_ends_early_are_logged_at_its_end(service, lines):
    publisher = Publisher(service.hub)
    publisher.source.video(0, AVC)
    publisher.stop()
    assert lines() == [f"live/a is: {VIDEO}, no audio"]


def test_a_change_is_logged(service, lines):
    source = Publisher(service.hub).source
    source.video(0, AVC)
    source.audio(0, AAC)
    source.audio(0, bytes.fromhex("af001210"))
    assert lines()[1:] == [f"live/a is now: {VIDEO}, audio aac LC 44100 Hz 2 channels"]


def test_codecs_that_change_all_the_time_are_logged_once_in_ten_seconds(service, lines, clock):
    source = Publisher(service.hub).source
    source.video(0, AVC)
    for number in range(1000):
        source.audio(0, bytes.fromhex("af001210" if number % 2 else "af001208"))
    assert len(lines()) == 2
    for second in range(1, 10):
        service.tick(clock.now_s + second)
    assert len(lines()) == 2
    source.audio(0, AAC)
    clock.now_s += 10
    service.tick(clock.now_s)
    assert lines()[2:3] == [f"live/a is now: {VIDEO}, {AUDIO}"]


def test_a_summary_is_logged_at_each_interval_and_counts_from_the_previous_one(service, lines, clock):
    source = Publisher(service.hub).source
    source.video(0, AVC)
    source.audio(0, AAC)
    start = source.bytes_in
    for number in range(300):
        source.video(number * 40, (b"\x27\x01" if number % 50 else b"\x17\x01") + bytes(4998))
    clock.now_s += 10
    service.tick(clock.now_s)
    assert source.bytes_in - start == 1_500_000
    service.tick(clock.now_s + 5)
    service.tick(clock.now_s + 10)
    assert lines()[1:] == [
        "live/a: 1200 kbit/s, 30.0 fps, a keyframe every 1.7 s, 0 players, 0 drops",
        "live/a: 0 kbit/s, 0.0 fps, no keyframes, 0 players, 0 drops",
    ]


def test_a_summary_can_be_switched_off_by_a_reload(service, lines, clock):
    source = Publisher(service.hub).source
    service.reload(MediaLog.select(load_text("[log]\nstream_summary_s = 0\n")))
    service.tick(clock.now_s + 1000)
    assert lines() == []
    assert service.hub.streams["live/a"].source is source


def test_no_state_is_kept_of_a_publish_that_has_ended(service):
    for _ in range(10):
        publisher = Publisher(service.hub)
        publisher.source.video(0, AVC)
        publisher.stop()
    assert service._entries == {}


# Streams with several sources ---------------------------------------------------------------------------------------------


@pytest.fixture
def backup(clock):
    yield from services("[publish]\non_conflict = backup\nmatch_copies = no\n")


def frames(source, count, size=4998):
    for number in range(count):
        source.video(number * 40, (b"\x27\x01" if number % 50 else b"\x17\x01") + bytes(size))


def test_a_standby_changes_nothing_in_the_lines_but_is_named(backup, lines, clock):
    first, second = Publisher(backup.hub), Publisher(backup.hub)
    first.source.video(0, AVC)
    first.source.audio(0, AAC)
    second.source.video(0, VP9)
    second.source.audio(0, AAC)
    frames(first.source, 300)
    frames(second.source, 100)
    first.stream.tick(time.monotonic())
    clock.now_s += 10
    backup.tick(clock.now_s)
    rates = "1200 kbit/s, 30.0 fps, a keyframe every 1.7 s, 0 players, 0 drops"
    assert lines() == [f"live/a is: {VIDEO}, {AUDIO}", f"live/a: {rates}; primary is active, backup stands by"]
    second.stop()
    frames(first.source, 100)
    clock.now_s += 10
    backup.tick(clock.now_s)
    assert lines()[2:] == ["live/a: 400 kbit/s, 10.0 fps, a keyframe every 5.0 s, 0 players, 0 drops"]


def test_a_summary_counts_what_each_source_has_sent_while_it_was_active(backup, lines, clock):
    first, second = Publisher(backup.hub), Publisher(backup.hub)
    first.source.video(0, AVC)
    frames(first.source, 100)
    frames(second.source, 150)
    assert backup.hub.streams["live/a"].ingest.request(second.source.number)
    frames(second.source, 50)
    frames(first.source, 200)
    clock.now_s += 10
    backup.tick(clock.now_s)
    assert lines()[-1].startswith("live/a: 600 kbit/s, 15.0 fps, ")


def test_other_codecs_of_a_source_that_takes_over_are_logged(backup, lines, clock):
    first, second = Publisher(backup.hub), Publisher(backup.hub)
    for publisher, size in ((first, b"\xaf\x00\x12\x08"), (second, b"\xaf\x00\x12\x10")):
        publisher.source.video(0, AVC)
        publisher.source.audio(0, size)
    frames(second.source, 2)
    backup.hub.streams["live/a"].ingest.request(second.source.number)
    backup.tick(clock.now_s + 2)
    assert lines() == [f"live/a is: {VIDEO}, {AUDIO}", f"live/a is now: {VIDEO}, audio aac LC 44100 Hz 2 channels"]


def test_unknown_parts_are_omitted():
    assert describe_video(VideoConfig("av1")) == "av1"
    assert describe_audio(AudioConfig("opus", "", 48000)) == "opus 48000 Hz"
    assert describe_audio(AudioConfig("aac", "HE-AACv2", 44100, 6)) == "aac HE-AACv2 44100 Hz 6 channels"
