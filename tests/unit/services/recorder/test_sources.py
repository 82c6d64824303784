"""Recordings of streams whose source changes: a hub with sources that need no connection, and real files."""

from __future__ import annotations

import dataclasses

import gevent
import pytest

from rtmpd.config.loader import load_text
from rtmpd.events import EventType
from rtmpd.hub import Hub
from rtmpd.live.flv_framing import FLV
from rtmpd.live.grant import Grant
from rtmpd.live.selection import SourceRole
from rtmpd.live.source import SourceKind
from rtmpd.media import flv
from rtmpd.media.flv_repair import scan
from rtmpd.services.recorder.service import Recorder
from rtmpd.util.stream_key import StreamKey
from tests.unit.live.fakes import live_pages, new_source, settle
from tests.unit.services.recorder.recordings import read
from tests.unit.services.recorder.test_assembler import AAC, AVC, OTHER_AVC

KEY, INTER, SOUND = b"\x17\x01\0\0\0", b"\x27\x01\0\0\0", b"\xaf\x01"
LIMIT_S = 20


class Studio:
    """A hub with a recorder, and short words for what tests do with them."""

    def __init__(self, directory, ini):
        self.directory = directory
        text = f"[record]\nrecord_directory = {directory}\nrecord_file_name = {{name}}-{{n}}\ndisk_reserve_bytes = 0\n{ini}"
        config = load_text(text)
        self.hub = Hub(config)
        self.recorder = Recorder(self.hub, Recorder.select(config))
        self.recorder.start()
        self.done = []
        self.hub.bus.subscribe((EventType.RECORD_DONE,), self.done.append)
        self.stream = None

    def publish(self, avc=AVC, **info):
        source = new_source(**info)
        self.stream = self.hub.publish("live/test", source)
        source.video(0, avc)
        source.audio(0, AAC)
        return source

    def slate(self):
        source = new_source(kind=SourceKind.SLATE)
        self.stream.ingest.add(source, SourceRole.SLATE)
        source.video(0, OTHER_AVC)
        group(source, 0, b"slate")
        return source

    def lose(self, source, **how):
        self.hub.unpublish(self.stream, source, **{"reason": "lost", **how})

    def records(self):
        """Return whether the log of recordings has a reader."""
        return any(output.log.framing is FLV for output in self.stream.outputs)

    def files(self):
        """Wait until all recordings are closed; return the files."""
        with gevent.Timeout(LIMIT_S):
            while list(self.directory.glob("*.part")) or self.recorder._greenlets:
                gevent.sleep(0.005)
        return sorted(self.directory.glob("*.flv"))

    def close(self):
        self.recorder.stop(LIMIT_S)
        for stream in list(self.hub.streams.values()):
            for lane in list(stream.ingest.lanes):
                stream.ingest.remove(lane.source, "the end")
            stream.end()
            stream.close()
        settle(2)


@pytest.fixture
def studio(tmp_path):
    made = []

    def make(ini="record_all = yes\n"):
        made.append(Studio(tmp_path, ini))
        return made[-1]

    yield make
    for each in made:
        each.close()


def group(source, start_ms, label, frames=5):
    """Send a group of pictures, 40 ms each, with sound; each payload begins with what tells its kind, and has the label."""
    for number in range(frames):
        source.video(start_ms + number * 40, (INTER if number else KEY) + label + bytes([number]))
        source.audio(start_ms + number * 40 + 5, SOUND + label + bytes([number]))


def tags(path):
    """Return the tags of a complete file; its timestamps must not go back."""
    with path.open("rb") as file:
        assert scan(file).clean
    found = read(path)
    for type_id in (flv.AUDIO, flv.VIDEO):
        times = [time for each, time, _ in found if each == type_id]
        assert times == sorted(times)
    return found


def labels(found, label):
    return [payload for _, _, payload in found if label in payload]


def test_a_lost_publisher_that_returns_continues_the_file(studio):
    made = studio()
    first = made.publish(connection_id="7")
    group(first, 0, b"one")
    made.lose(first)
    assert made.records()
    second = made.publish(connection_id="8")
    group(second, 5_000_000, b"two")
    made.lose(second, lost=False, reason="FCUnpublish")
    (path,) = made.files()
    found = tags(path)
    assert len(labels(found, b"one")) == 10
    # What has been heard at the time of the switch is left out.
    assert len([each for each in labels(found, b"two") if each[0] & 0x0F == 7]) == 5
    assert [payload for _, _, payload in found].count(AVC) == 1
    (event,) = made.done
    assert (event.connection_id, event.data["reason"], event.data["segment"]) == ("7", "FCUnpublish", 1)


def test_the_end_of_the_grace_closes_the_file_with_the_reason_of_the_loss(studio):
    made = studio()
    source = made.publish()
    group(source, 0, b"one")
    made.lose(source, reason="read timeout")
    made.stream.sweep(gevent.get_hub().loop.now() + 1e9, 1)
    made.files()
    assert made.done[0].data["reason"] == "read timeout"


def test_a_publisher_that_returns_with_other_headers_begins_another_file(studio):
    made = studio()
    first = made.publish()
    group(first, 0, b"one")
    made.lose(first)
    second = made.publish(OTHER_AVC)
    group(second, 0, b"two")
    group(second, 200, b"two")
    made.lose(second, lost=False, reason="FCUnpublish")
    one, two = (tags(path) for path in made.files())
    assert not labels(one, b"two")
    assert not labels(two, b"one")
    assert OTHER_AVC not in [payload for _, _, payload in one]
    assert two[0][2] in (AAC, OTHER_AVC)
    assert two[2][2].startswith(KEY + b"two")
    assert sorted(str(event.data["reason"]) for event in made.done) == ["FCUnpublish", "segment"]


def test_a_slate_is_not_recorded_and_leaves_a_gap(studio):
    made = studio()
    first = made.publish()
    group(first, 0, b"one")
    slate = made.slate()
    made.lose(first)
    assert made.stream.ingest.active.source is slate
    assert not made.records()
    group(slate, 200, b"slate")
    group(slate, 400, b"slate")
    second = made.publish()
    group(second, 0, b"two")
    assert made.stream.ingest.active.source is second
    made.lose(second, lost=False, reason="FCUnpublish")
    (path,) = made.files()
    found = tags(path)
    assert not labels(found, b"slate")
    # The headers of the slate were in force, so that those of the publisher are in the log again.
    assert OTHER_AVC not in [payload for _, _, payload in found]
    assert [len(labels(found, label)) > 4 for label in (b"one", b"two")] == [True, True]
    last = max(time for _, time, payload in found if b"one" in payload)
    begins = min(time for _, time, payload in found if b"two" in payload)
    assert begins - last >= 400


def test_a_paused_recording_holds_no_pages(studio):
    made = studio()
    first = made.publish()
    group(first, 0, b"one")
    slate = made.slate()
    made.lose(first)
    with gevent.Timeout(LIMIT_S):
        while not any(part.stat().st_size for part in made.directory.glob("*.part")):
            gevent.sleep(0.005)
    before = live_pages()
    for number in range(1, 200):
        group(slate, number * 200, b"slate" + bytes(20_000))
    assert live_pages() - before < 8
    made.lose(slate)


def test_a_slate_is_recorded_if_the_options_say_so(studio):
    made = studio("record_all = yes\n[slate]\nslate_record = yes\n")
    first = made.publish()
    group(first, 0, b"one")
    slate = made.slate()
    made.lose(first)
    group(slate, 200, b"slate")
    made.recorder.stop(LIMIT_S)
    # It has other headers.
    one, two = (tags(path) for path in made.files())
    assert labels(one, b"one")
    assert labels(two, b"slate")


def test_a_stream_with_nothing_but_a_slate_is_not_recorded_and_its_publisher_is(studio):
    made = studio()
    first = made.publish()
    made.slate()
    made.lose(first, lost=False)
    assert not made.records()
    second = made.publish()
    group(second, 0, b"two")
    made.lose(second, lost=False)
    (path,) = made.files()
    assert labels(tags(path), b"two")
    assert not labels(tags(path), b"slate")


def test_a_recording_that_a_reload_begins_while_a_slate_is_played_waits_for_its_end(studio):
    made = studio("")
    first = made.publish()
    group(first, 0, b"one")
    made.slate()
    made.lose(first)
    made.recorder.reload(dataclasses.replace(made.recorder.options, record_all=True))
    assert not made.records()
    second = made.publish()
    assert not made.records()
    group(second, 0, b"two")
    assert made.records()
    made.lose(second, lost=False)
    (path,) = made.files()
    found = tags(path)
    assert {payload for _, _, payload in found if payload in (AVC, AAC, OTHER_AVC)} == {AVC, AAC}
    assert not labels(found, b"one") + labels(found, b"slate")


def test_a_reload_during_the_grace_applies_what_the_last_publisher_was_granted(studio):
    made = studio("record_all = no\n")
    source = new_source()
    source.grant = Grant(StreamKey("live/test"), record=True)
    made.stream = made.hub.publish("live/test", source)
    source.video(0, AVC)
    group(source, 0, b"one")
    made.lose(source)
    made.recorder.reload(made.recorder.options)
    assert made.records()
    made.stream.end()
    assert len(made.files()) == 1
