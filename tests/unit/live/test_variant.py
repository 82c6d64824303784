"""Variants of a stream: who gets which, and that nobody loses or repeats anything on the way into one."""

import gevent
import pytest

from rtmpd.live.stream import Stream
from rtmpd.live.subscriber import State, Subscriber
from rtmpd.live.variant import transfer
from rtmpd.media.rewrite import AS_PUBLISHED, Rewrite
from rtmpd.protocol import amf0
from rtmpd.protocol.message import MessageType, RawMessage
from tests.unit.live.fakes import (
    AAC_HEADER,
    AVC_HEADER,
    CHUNK,
    FakeTime,
    FakeTransport,
    app_options,
    audio_frame,
    live_pages,
    settle,
)

PUBLISHER = object()
PLAIN = Rewrite(default_track=True, mod_ex=False)
OTHER_HEADER = b"\x96\x00avc1\x01record"
_MEDIA = (MessageType.AUDIO, MessageType.VIDEO)


def key(label, track=None):
    return b"\x17\x01\0\0\0" + label if track is None else b"\x96\x01avc1" + bytes([track]) + b"\0\0\0" + label


def inter(label, track=None):
    return b"\x27\x01\0\0\0" + label if track is None else b"\xa6\x01avc1" + bytes([track]) + b"\0\0\0" + label


class Watcher:
    """A player as the session makes it, without a connection."""

    def __init__(self, stream, wanted=PLAIN, message_stream_id=1):
        self.stream, self.wanted = stream, wanted
        self.transport = FakeTransport()
        self.subscriber = Subscriber(self.transport, message_stream_id)
        stream.players.add(self)
        self.fanout = stream.fanout_for(wanted)
        self.fanout.join(self.subscriber)

    def revise(self, decisions):
        fanout = self.stream.fanout_for(self.wanted)
        if fanout is not self.fanout:
            self.subscriber = transfer(self.subscriber, self.fanout, fanout)
            self.fanout = fanout

    def leave(self):
        self.stream.players.discard(self)
        self.fanout.leave(self.subscriber)

    @property
    def media(self):
        settle()
        return [m.payload for m in self.transport.messages() if m.type_id in _MEDIA]

    @property
    def times(self):
        settle()
        return [m.timestamp for m in self.transport.messages() if m.type_id in _MEDIA]


@pytest.fixture
def open_stream():
    made = []

    def make(**options):
        made.append(Stream("live/test", app_options(**options), CHUNK))
        made[-1].begin(PUBLISHER)
        return made[-1]

    yield make
    for stream in made:
        stream.close()
    settle(2)


@pytest.fixture
def stream(open_stream):
    return open_stream()


def test_those_who_take_all_and_those_who_do_not_see_the_same_first_track(stream):
    capable, simple = Watcher(stream, AS_PUBLISHED), Watcher(stream)
    sent = [AVC_HEADER, key(b"a"), OTHER_HEADER, key(b"b", 1), inter(b"c"), inter(b"d", 1)]
    for number, payload in enumerate(sent):
        stream.video(number * 40, payload)
    assert capable.media == sent
    assert simple.media == [AVC_HEADER, key(b"a"), inter(b"c")]
    assert len(stream.variants) == 1


def test_players_who_want_the_same_share_a_variant_and_it_goes_a_while_after_the_last(stream):
    stream.video(0, OTHER_HEADER)
    watchers = [Watcher(stream) for _ in range(3)]
    (variant,) = stream.variants.values()
    assert {watcher.fanout for watcher in watchers} == {variant.fanout}
    for watcher in watchers[1:]:
        watcher.leave()
    stream.sweep(100, 30)
    watchers[0].leave()
    stream.sweep(101, 30)
    stream.sweep(105.9, 30)
    assert list(stream.variants.values()) == [variant]
    again = Watcher(stream)
    assert again.fanout is variant.fanout
    stream.sweep(106.5, 30)
    again.leave()
    stream.sweep(107, 30)
    stream.sweep(112, 30)
    assert stream.variants == {}


def test_an_ordinary_stream_has_no_variants(stream):
    watcher = Watcher(stream)
    stream.video(0, AVC_HEADER)
    stream.video(0, key(b"a"))
    stream.audio(0, AAC_HEADER)
    assert (stream.variants, watcher.fanout) == ({}, stream.fanout)


def test_a_late_joiner_gets_the_current_group_of_pictures_of_its_variant(stream):
    sent = [AVC_HEADER, OTHER_HEADER, key(b"old"), key(b"a"), key(b"b", 1), inter(b"c"), inter(b"d", 1)]
    for number, payload in enumerate(sent):
        stream.video(number * 40, payload)
    stream.audio(300, audio_frame("e"))
    late = Watcher(stream)
    assert late.media == [AVC_HEADER, key(b"a"), inter(b"c"), audio_frame("e")]
    stream.video(320, inter(b"f"))
    stream.video(320, inter(b"g", 1))
    assert late.media[-1] == inter(b"f")


def test_a_header_for_several_tracks_becomes_that_of_the_first(stream):
    many = b"\x96\x10avc1" + b"\x00" + (5).to_bytes(3, "big") + b"first" + b"\x01" + (6).to_bytes(3, "big") + b"second"
    stream.video(0, many)
    stream.video(0, key(b"a", 0))
    assert Watcher(stream).media == [b"\x90avc1first", b"\x91avc1\0\0\0a"]


def test_metadata_reaches_a_variant(stream):
    stream.video(0, OTHER_HEADER)
    stream.video(0, AVC_HEADER)
    watcher = Watcher(stream)
    payload = amf0.encode("onMetaData", {"width": 1.0})
    stream.data(RawMessage(MessageType.DATA_AMF0, 1, 0, amf0.encode("@setDataFrame") + payload))
    stream.video(0, key(b"a"))
    settle()
    assert payload in [message.payload for message in watcher.transport.messages()]


def test_notices_reach_those_in_a_variant(stream):
    stream.video(0, OTHER_HEADER)
    watcher = Watcher(stream)
    stream.video(0, AVC_HEADER)
    stream.video(0, key(b"a"))
    stream.pause()
    stream.end()
    settle()
    told = watcher.transport.messages()[-2:]
    assert [message.type_id for message in told] == [MessageType.COMMAND_AMF0, MessageType.USER_CONTROL]
    assert all(fanout.wirelog.join_page is None for fanout in stream.fanouts)


def test_a_level_player_goes_over_without_a_gap_or_anything_twice(stream):
    simple = Watcher(stream)
    stream.video(0, AVC_HEADER)
    stream.video(0, key(b"a"))
    settle()
    # What has not been delivered yet goes out first.
    stream.video(40, inter(b"b"))
    stream.video(40, OTHER_HEADER)
    stream.video(80, inter(b"c"))
    assert simple.media == [AVC_HEADER, key(b"a"), inter(b"b"), inter(b"c")]
    assert simple.times == sorted(simple.times)
    assert simple.subscriber.skips == 0


def test_a_player_far_behind_waits_for_the_next_keyframe(stream):
    simple = Watcher(stream)
    stream.video(0, AVC_HEADER)
    stream.video(0, key(b"a"))
    assert simple.media == [AVC_HEADER, key(b"a")]
    simple.transport.capacity = 100
    for number in range(10):
        stream.video(40 + number, inter(bytes(60_000)))
    settle()
    stream.video(60, OTHER_HEADER)
    assert simple.subscriber.state is State.WAITING
    stream.video(80, inter(b"lost"))
    simple.transport.take()
    stream.video(100, key(b"next"))
    media = simple.media
    assert media[-2:] == [AVC_HEADER, key(b"next")]
    assert inter(b"lost") not in media
    assert simple.times == sorted(simple.times)


def test_a_player_that_pauses_stays_paused_in_the_variant(stream):
    simple = Watcher(stream)
    stream.video(0, AVC_HEADER)
    stream.video(0, key(b"a"))
    assert simple.media == [AVC_HEADER, key(b"a")]
    simple.fanout.pause(simple.subscriber)
    stream.video(40, OTHER_HEADER)
    stream.video(80, key(b"b"))
    assert simple.media == [AVC_HEADER, key(b"a")]
    simple.fanout.resume(simple.subscriber)
    assert simple.media[-1] == key(b"b")


def test_a_player_that_paused_before_it_had_anything_gets_nothing_by_going_over(stream):
    simple = Watcher(stream)
    simple.fanout.pause(simple.subscriber)
    stream.video(0, AVC_HEADER)
    stream.video(0, key(b"a"))
    stream.video(40, OTHER_HEADER)
    assert simple.media == []
    simple.fanout.resume(simple.subscriber)
    assert simple.media == [AVC_HEADER, key(b"a")]


def test_a_player_on_another_message_stream_id_goes_over_too(stream):
    simple = Watcher(stream, message_stream_id=3)
    stream.video(0, AVC_HEADER)
    stream.video(0, key(b"a"))
    assert simple.media == [AVC_HEADER, key(b"a")]
    stream.video(40, OTHER_HEADER)
    stream.video(80, key(b"b"))
    stream.video(80, key(b"x", 1))
    settle()
    media = [(m.message_stream_id, m.payload) for m in simple.transport.messages() if m.type_id in _MEDIA]
    assert media[-2:] == [(3, AVC_HEADER), (3, key(b"b"))]


def test_another_publisher_brings_everybody_back(stream):
    simple = Watcher(stream)
    stream.video(0, AVC_HEADER)
    stream.video(0, OTHER_HEADER)
    stream.video(0, key(b"a"))
    assert simple.fanout is not stream.fanout
    stream.pause()
    stream.begin(PUBLISHER)
    stream.video(0, AVC_HEADER)
    assert simple.fanout is stream.fanout
    stream.video(0, key(b"b"))
    assert simple.media[-2:] == [AVC_HEADER, key(b"b")]


def test_a_publisher_that_changes_all_the_time_does_not_move_players_each_time(stream, monkeypatch):
    simple = Watcher(stream, Rewrite(hevc="codec12"))
    moved = []
    revise = simple.revise
    monkeypatch.setattr(simple, "revise", lambda decisions: (moved.append(1), revise(decisions)))
    for number in range(50):
        stream.video(number, (AVC_HEADER, b"\x90hvc1record")[number % 2])
    assert len(moved) == 4
    stream.sweep(100, 30)
    assert len(moved) == 5
    stream.sweep(101, 30)
    assert len(moved) == 5
    # Whatever came in between, it ends where it belongs.
    assert simple.fanout is not stream.fanout
    stream.video(60, AVC_HEADER)
    assert len(moved) == 6


def test_options_reach_a_variant(stream):
    stream.video(0, OTHER_HEADER)
    watcher = Watcher(stream)
    options = app_options(stream.options, gop_cache_limit_bytes=2048, keyframe_wait_s=3)
    stream.reload(options)
    assert watcher.fanout.options is options.live
    assert watcher.fanout.wirelog.cache_limit_bytes == 2048


def test_nothing_stays_of_a_variant_that_is_gone(open_stream):
    before = live_pages()
    stream = open_stream()
    for round_ in range(20):
        watchers = [Watcher(stream) for _ in range(3)]
        stream.video(round_, AVC_HEADER)
        stream.video(round_, key(b"a" * 1000))
        stream.video(round_, key(b"b" * 1000, 1))
        for watcher in watchers:
            watcher.leave()
    stream.close()
    del stream, watchers, watcher
    settle(2)
    assert live_pages() <= before + 2


@pytest.fixture
def slow_passes(monkeypatch):
    """Every look at the clock finds that the pass has held the event loop for too long."""
    clock = FakeTime(step_s=0.01)
    monkeypatch.setattr("rtmpd.live.fanout.time", clock)
    monkeypatch.setattr("rtmpd.live.group.time", clock)


@pytest.mark.usefixtures("slow_passes")
def test_what_is_asked_for_during_a_pass_holds_for_those_who_are_moved_in_its_middle(stream):
    stream.video(0, AVC_HEADER)
    stream.video(0, key(b"a"))
    watchers = [Watcher(stream) for _ in range(200)]
    settle()
    stream.video(40, inter(b"b"))
    gevent.sleep(0)
    served, others = watchers[0], watchers[-1]
    assert (served.transport.messages()[-1].payload, others.transport.messages()[-1].payload) == (inter(b"b"), key(b"a"))
    for watcher in (served, others):
        watcher.fanout.pause(watcher.subscriber)
    silent = watchers[-2]
    silent.fanout.receive(silent.subscriber, video=False)
    stream.video(80, OTHER_HEADER)
    assert len(stream.variants) == 1
    settle()
    assert [each.subscriber.state for each in (served, others)] == [State.PAUSED] * 2
    assert not silent.subscriber.receive_video
    stream.video(80, inter(b"c"))
    stream.audio(80, audio_frame("d"))
    assert served.media[-1] == others.media[-1] == inter(b"b")
    assert silent.media[-1] == audio_frame("d")
    assert watchers[1].media[-2:] == [inter(b"c"), audio_frame("d")]


def test_headers_come_at_the_time_of_the_stream_to_those_who_are_moved_without_a_join_point(open_stream):
    stream = open_stream(gop_cache=False)
    watcher = Watcher(stream)
    stream.video(5000, b"\x1c\0\0\0\0record")
    stream.video(5000, b"\x1c\1\0\0\0key")
    settle()
    watcher.wanted = Rewrite(hevc="hvc1")
    stream.revise()
    assert watcher.fanout is not stream.fanout
    stream.video(5040, b"\x2c\1\0\0\0inter")
    assert watcher.media[-1] == b"\xa3hvc1inter"
    assert watcher.times == sorted(watcher.times)
