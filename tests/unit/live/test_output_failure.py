"""An exception in one output of a stream ends that output, and nothing else."""

from __future__ import annotations

import logging
import time

import pytest

from rtmpd.live.flv_framing import FLV, FlvFraming
from rtmpd.live.framing import VIDEO
from rtmpd.live.log import NEVER
from rtmpd.live.output import transfer
from rtmpd.live.rtmp_framing import RtmpFraming, RtmpSubscriberFraming
from rtmpd.live.stream import Stream
from rtmpd.live.subscriber import State, Subscriber
from rtmpd.media.rewrite import Rewrite
from rtmpd.media.timestamps import Timeline
from rtmpd.phases import CloseKind, StreamPhase
from tests.unit.live.fakes import (
    AAC_HEADER,
    AVC_HEADER,
    CHUNK,
    FakeTransport,
    app_options,
    audio_frame,
    close_stream,
    frame,
    keyframe,
    live_pages,
    new_source,
    settle,
    texts,
)

PLAIN = Rewrite(default_track=True, mod_ex=False)


class Breakable:
    """A framing that raises an exception for messages and notices while it is broken, or for one payload."""

    broken = False
    refused = None

    def write(self, page, type_id, timestamp, payload):
        if self.broken or payload == self.refused:
            raise ValueError("a bug of the framing")
        return super().write(page, type_id, timestamp, payload)

    def notices(self, notice):
        if self.broken:
            raise ValueError("a bug of the framing")
        return super().notices(notice)


class BreakableRtmp(Breakable, RtmpFraming):
    pass


class BreakableFlv(Breakable, FlvFraming):
    pass


class BatchReader:
    def __init__(self):
        self.wake_at = NEVER
        self.failed = 0

    def wake(self):
        raise AssertionError

    def fail(self):
        self.failed += 1


class Scene:
    """A stream with a source, whose published output may be broken."""

    def __init__(self):
        self.stopped = []
        self.framing = BreakableRtmp(CHUNK)
        self.stream = Stream("live/test", app_options(), self.framing)
        self.source = new_source(self.stopped.append)
        self.stream.begin(self.source)
        self.source.video(0, AVC_HEADER)
        self.source.video(0, keyframe("a"))

    def join(self, framing=None, wanted=None):
        output = self.stream.output(wanted or Rewrite(), framing)
        transport = FakeTransport()
        output.fanout.join(Subscriber(transport, output.log.framing.for_subscriber(), "the player"))
        settle()
        return output, transport

    def check_failed(self, transports, name, caplog):
        """The failure was counted and logged once, and only these connections are closed."""
        for transport in transports:
            assert transport.close_reason
            assert transport.close_reason.kind is CloseKind.INTERNAL
        assert self.stream.counters.errors == 1
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.getMessage().startswith(f"live/test: internal error in the {name} output")
        assert record.exc_info[0] is ValueError
        assert self.stopped == []
        assert (self.stream.source, self.stream.phase) == (self.source, StreamPhase.LIVE)


@pytest.fixture
def scene(caplog):
    caplog.set_level(logging.WARNING)
    made = Scene()
    yield made
    made.framing.broken = False
    close_stream(made.stream)


def test_an_error_in_another_output_closes_only_its_readers(scene, caplog):
    broken = BreakableFlv()
    reader, other_reader = BatchReader(), BatchReader()
    scene.stream.read(reader, broken)
    scene.stream.read(other_reader)
    _, player = scene.join()
    failed, viewer = scene.join(broken)
    second, simple = scene.join(FLV)
    assert len(scene.stream.outputs) == 3
    broken.broken = True
    scene.source.video(40, frame("1"))
    scene.source.video(80, frame("2"))
    settle()
    scene.check_failed([viewer], "flv", caplog)
    assert (reader.failed, other_reader.failed) == (1, 0)
    assert scene.stream.outputs == [scene.stream.published, second]
    assert texts(player) == [AVC_HEADER, keyframe("a"), frame("1"), frame("2")]
    assert not player.close_reason
    assert not simple.close_reason
    assert simple.data.endswith(frame("2") + (len(frame("2")) + 11).to_bytes(4, "big"))
    assert len(failed.fanout) == 0


def test_after_an_error_another_output_is_made_for_the_next_reader(scene, caplog):
    broken = BreakableFlv()
    failed, _ = scene.join(broken)
    broken.broken = True
    scene.source.video(40, frame("1"))
    broken.broken = False
    output, viewer = scene.join(broken)
    assert output is not failed
    scene.source.video(80, frame("2"))
    settle()
    assert [bytes(each.payload) for each in output.log.read_all(output.log.join_page, output.log.join_offset)] == [
        keyframe("a"),
        frame("1"),
        frame("2"),
    ]
    assert bytes(viewer.data).count(frame("2")) == 1
    assert not viewer.close_reason


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with another output"])
def test_after_an_error_in_the_published_output_new_players_join_at_the_next_keyframe(scene, caplog, alone):
    viewer = None if alone else scene.join(FLV)[1]
    old = scene.stream.published
    _, player = scene.join()
    scene.framing.broken = True
    scene.source.video(40, frame("lost"))
    scene.framing.broken = False
    settle()
    scene.check_failed([player], "rtmp", caplog)
    assert texts(player) == [AVC_HEADER, keyframe("a")]
    assert scene.stream.published is not old
    assert scene.stream.outputs[0] is scene.stream.published
    _, late = scene.join()
    scene.source.video(80, frame("no keyframe"))
    settle()
    assert texts(late) == []
    scene.source.video(120, keyframe("b"))
    scene.source.video(160, frame("1"))
    settle()
    assert texts(late) == [AVC_HEADER, keyframe("b"), frame("1")]
    assert texts(player) == [AVC_HEADER, keyframe("a")]
    if viewer is not None:
        assert not viewer.close_reason
        assert [bytes(viewer.data).count(payload) for payload in (frame("lost"), keyframe("b"), frame("1"))] == [1, 1, 1]


def test_an_error_in_the_published_output_does_not_reach_rewritten_outputs(scene, caplog):
    """Players that support one track only do not get the message that the framing can't write."""
    second_track = b"\xa6\x01avc1\x01\0\0\0frame"
    scene.source.video(0, b"\x96\x00avc1\x01record")
    rewritten, simple = scene.join(wanted=PLAIN)
    _, player = scene.join()
    scene.framing.refused = second_track
    scene.source.video(40, second_track)
    scene.source.video(40, frame("1"))
    settle()
    scene.check_failed([player], "rtmp", caplog)
    assert scene.stream.outputs == [scene.stream.published, rewritten]
    assert texts(simple) == [AVC_HEADER, keyframe("a"), frame("1")]
    assert not simple.close_reason


def test_players_of_a_failed_output_may_be_moved_before_their_connections_have_ended(scene, caplog):
    """Their connections are closed by then: the move does no harm."""
    old = scene.stream.published
    transport = FakeTransport()
    subscriber = Subscriber(transport, old.log.framing.for_subscriber(), "the player")
    old.fanout.join(subscriber)
    settle()
    scene.framing.broken = True
    scene.source.video(40, frame("lost"))
    scene.framing.broken = False
    transport.error = OSError("closed")
    successor = transfer(subscriber, old.fanout, scene.stream.published.fanout)
    scene.source.video(80, keyframe("b"))
    settle()
    assert successor.state is State.REMOVED
    assert len(scene.stream.published.fanout) == 0
    assert scene.stream.counters.errors == 1


def test_a_keyframe_that_fails_is_delivered_by_the_other_outputs(scene, caplog):
    _, viewer = scene.join(FLV)
    scene.framing.broken = True
    scene.source.video(40, keyframe("b"))
    scene.framing.broken = False
    settle()
    assert bytes(viewer.data).count(keyframe("b")) == 1
    assert scene.stream.counters.errors == 1


def test_the_figures_of_a_stream_survive_the_failure_of_its_published_output(scene, caplog):
    _, player = scene.join()
    sent = scene.stream.counters.bytes_sent
    assert sent == len(player.data)
    scene.framing.broken = True
    scene.source.video(40, frame("lost"))
    scene.framing.broken = False
    assert scene.stream.counters.bytes_sent == sent
    assert scene.stream.received.video == 3


def test_the_log_that_replaces_a_failed_one_holds_only_messages_of_the_present_live_period(scene, caplog):
    """A relay starts at the first keyframe behind the position where the stream became live."""
    scene.stream.end()
    source = new_source()
    scene.stream.begin(source)
    assert scene.stream.begun_at == scene.stream.published.log.position > 0
    scene.framing.broken = True
    source.video(0, keyframe("lost"))
    scene.framing.broken = False
    source.video(40, keyframe("b"))
    assert scene.stream.begun_at <= scene.stream.published.log.join_position


def test_an_error_in_a_notice_closes_only_the_readers_of_that_output(scene, caplog):
    broken = BreakableFlv()
    _, viewer = scene.join(broken)
    _, player = scene.join()
    broken.broken = True
    scene.stream.end()
    settle()
    assert viewer.close_reason.kind is CloseKind.INTERNAL
    assert scene.stream.counters.errors == 1
    assert not player.close_reason
    assert len(player.messages()) > 2
    assert scene.stream.outputs == [scene.stream.published]


def test_no_page_stays_of_an_output_that_has_failed(scene, monkeypatch):
    # A log record would hold the pages by its traceback.
    monkeypatch.setattr("rtmpd.live.stream.log.error", lambda *values, **more: None)
    before = live_pages()
    broken = BreakableFlv()
    for _ in range(10):
        scene.join(broken)
        broken.broken = True
        scene.source.video(40, frame("1"))
        broken.broken = False
    settle()
    assert live_pages() <= before + 1


def test_a_player_that_leaves_a_failed_output_is_owed_nothing(scene, caplog):
    output = scene.stream.published
    transport = FakeTransport()
    subscriber = Subscriber(transport, output.log.framing.for_subscriber(), "the player")
    output.fanout.join(subscriber)
    settle()
    scene.framing.broken = True
    scene.source.video(40, frame("lost"))
    assert subscriber.state is State.REMOVED
    assert output.fanout.leave(subscriber) == b""
    assert VIDEO in {message.type_id for message in transport.messages()}


# Errors in the headers of one subscriber --------------------------------------------------------------------------------


class HeadersBroken(RtmpSubscriberFraming):
    def headers(self, headers, timestamp):
        raise ValueError("a bug of the framing")


def join_among_others(stream):
    """Join three subscribers of which the second has an error in its framing; return their transports."""
    transports = [FakeTransport() for _ in range(3)]
    for transport, framing in zip(transports, [RtmpSubscriberFraming, HeadersBroken, RtmpSubscriberFraming], strict=True):
        stream.output().fanout.join(Subscriber(transport, framing(CHUNK), "the player"))
    return transports


def check_only_the_second_is_closed(transports):
    assert [bool(transport.close_reason) for transport in transports] == [False, True, False]
    assert transports[1].close_reason.kind is CloseKind.INTERNAL
    assert transports[1].data == b""


def test_an_error_in_the_headers_of_a_late_joiner_closes_only_its_connection(scene):
    transports = join_among_others(scene.stream)
    scene.source.video(40, frame("1"))
    settle()
    check_only_the_second_is_closed(transports)
    assert texts(transports[0]) == texts(transports[2]) == [AVC_HEADER, keyframe("a"), frame("1")]


def test_an_error_in_the_headers_of_a_waiting_player_closes_only_its_connection(scene):
    scene.stream.published.log.forget_join_point()
    transports = join_among_others(scene.stream)
    scene.source.video(40, keyframe("b"))
    settle()
    check_only_the_second_is_closed(transports)
    assert texts(transports[0]) == texts(transports[2]) == [AVC_HEADER, keyframe("b")]
    assert len(scene.stream.published.fanout) == 2


def test_an_error_in_the_headers_of_a_player_that_has_waited_long_enough_does_not_end_the_sweep(scene):
    scene.stream.published.log.forget_join_point()
    transports = join_among_others(scene.stream)
    scene.source.video(40, frame("no keyframe"))
    settle()
    scene.stream.sweep(time.monotonic() + 1000, 30)
    scene.source.video(80, frame("1"))
    settle()
    check_only_the_second_is_closed(transports)
    assert texts(transports[0]) == texts(transports[2]) == [AVC_HEADER, frame("1")]


@pytest.mark.parametrize("take", ["video", "audio"])
def test_an_error_of_a_source_is_no_failure_of_the_output(scene, caplog, take, monkeypatch):
    class BrokenTimeline(Timeline):
        def stamp(self, track, timestamp):
            raise ValueError("the timeline")

    monkeypatch.setattr("rtmpd.live.source.Timeline", BrokenTimeline)
    _, player = scene.join()
    source = new_source()
    source.audio(0, AAC_HEADER)
    source.attach(scene.stream, lambda found: None)
    with pytest.raises(ValueError, match="the timeline"):
        getattr(source, take)(40, frame("b") if take == "video" else audio_frame("b"))
    assert (scene.stream.counters.errors, player.close_reason) == (0, "")
    assert scene.stream.outputs == [scene.stream.published]
