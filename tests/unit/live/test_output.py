"""The outputs of a stream: which player reads which, and that none loses or repeats anything when it is moved."""

from __future__ import annotations

import gevent
import pytest

from rtmpd.live.flv_framing import FLV
from rtmpd.live.framing import AUDIO, VIDEO
from rtmpd.live.log import NEVER
from rtmpd.live.output import transfer
from rtmpd.live.subscriber import State, Subscriber
from rtmpd.media import flv
from rtmpd.media.rewrite import AS_PUBLISHED, Rewrite
from rtmpd.protocol import amf0
from rtmpd.protocol.message import MessageType
from tests.unit.live.fakes import (
    AAC_HEADER,
    AVC_HEADER,
    FakeTime,
    FakeTransport,
    app_options,
    audio_frame,
    close_stream,
    live_pages,
    new_source,
    new_stream,
    new_subscriber,
    settle,
)

PLAIN = Rewrite(default_track=True, mod_ex=False)
OTHER_HEADER = b"\x96\x00avc1\x01record"
_MEDIA = (AUDIO, VIDEO)


def key(label, track=None):
    return b"\x17\x01\0\0\0" + label if track is None else b"\x96\x01avc1" + bytes([track]) + b"\0\0\0" + label


def inter(label, track=None):
    return b"\x27\x01\0\0\0" + label if track is None else b"\xa6\x01avc1" + bytes([track]) + b"\0\0\0" + label


class Player:
    """A player without a connection."""

    number = 1

    def __init__(self, stream, wanted=PLAIN, message_stream_id=1):
        self.stream, self.wanted = stream, wanted
        self.transport = FakeTransport()
        self.subscriber = new_subscriber(self.transport, message_stream_id)
        stream.players.add(self)
        self.output = stream.output(wanted)
        self.fanout.join(self.subscriber)

    @property
    def fanout(self):
        return self.output.fanout

    def revise(self, decisions):
        output = self.stream.output(self.wanted)
        if output is not self.output:
            self.subscriber = transfer(self.subscriber, self.output.fanout, output.fanout)
            self.output = output

    def leave(self):
        self.stream.players.discard(self)
        self.fanout.leave(self.subscriber)

    @property
    def media(self):
        settle()
        return [m.payload for m in self.transport.messages() if m.type_id in _MEDIA]

    @property
    def timestamps(self):
        settle()
        return [m.timestamp for m in self.transport.messages() if m.type_id in _MEDIA]

    def ended(self):
        pass


def rewritten(stream):
    """Return the outputs of a stream that rewrite its messages."""
    published, *others = stream.outputs
    assert published is stream.published
    return others


@pytest.fixture
def open_stream():
    made = []

    def make(**options):
        made.append(new_stream(options=app_options(**options)))
        made[-1].begin(new_source())
        return made[-1]

    yield make
    for stream in made:
        close_stream(stream)


@pytest.fixture
def stream(open_stream):
    return open_stream()


def test_players_with_and_without_track_support_get_the_same_first_track(stream):
    capable, simple = Player(stream, AS_PUBLISHED), Player(stream)
    sent = [AVC_HEADER, key(b"a"), OTHER_HEADER, key(b"b", 1), inter(b"c"), inter(b"d", 1)]
    for number, payload in enumerate(sent):
        stream.source.video(number * 40, payload)
    assert capable.media == sent
    assert simple.media == [AVC_HEADER, key(b"a"), inter(b"c")]
    assert len(rewritten(stream)) == 1


def test_players_with_the_same_capabilities_share_an_output_that_is_dropped_a_while_after_the_last(stream):
    stream.source.video(0, OTHER_HEADER)
    players = [Player(stream) for _ in range(3)]
    (output,) = rewritten(stream)
    assert {player.output for player in players} == {output}
    for player in players[1:]:
        player.leave()
    stream.sweep(100, 30)
    players[0].leave()
    stream.sweep(101, 30)
    stream.sweep(105.9, 30)
    assert rewritten(stream) == [output]
    again = Player(stream)
    assert again.output is output
    stream.sweep(106.5, 30)
    again.leave()
    stream.sweep(107, 30)
    stream.sweep(112, 30)
    assert rewritten(stream) == []


def test_a_stream_that_all_players_can_take_has_one_output(stream):
    player = Player(stream)
    stream.source.video(0, AVC_HEADER)
    stream.source.video(0, key(b"a"))
    stream.source.audio(0, AAC_HEADER)
    assert (rewritten(stream), player.output) == ([], stream.published)


def test_a_late_joiner_gets_the_current_group_of_pictures_rewritten(stream):
    sent = [AVC_HEADER, OTHER_HEADER, key(b"old"), key(b"a"), key(b"b", 1), inter(b"c"), inter(b"d", 1)]
    for number, payload in enumerate(sent):
        stream.source.video(number * 40, payload)
    stream.source.audio(300, audio_frame("e"))
    late = Player(stream)
    assert late.media == [AVC_HEADER, key(b"a"), inter(b"c"), audio_frame("e")]
    stream.source.video(320, inter(b"f"))
    stream.source.video(320, inter(b"g", 1))
    assert late.media[-1] == inter(b"f")


def test_a_header_for_several_tracks_becomes_that_of_the_first(stream):
    many = b"\x96\x10avc1" + b"\x00" + (5).to_bytes(3, "big") + b"first" + b"\x01" + (6).to_bytes(3, "big") + b"second"
    stream.source.video(0, many)
    stream.source.video(0, key(b"a", 0))
    assert Player(stream).media == [b"\x90avc1first", b"\x91avc1\0\0\0a"]


def test_metadata_reaches_a_rewritten_output(stream):
    stream.source.video(0, OTHER_HEADER)
    stream.source.video(0, AVC_HEADER)
    player = Player(stream)
    payload = amf0.encode("onMetaData", {"width": 1.0})
    stream.source.data(0, amf0.encode("@setDataFrame") + payload)
    stream.source.video(0, key(b"a"))
    settle()
    assert payload in [message.payload for message in player.transport.messages()]


def test_notices_reach_the_players_of_a_rewritten_output(stream):
    stream.source.video(0, OTHER_HEADER)
    player = Player(stream)
    stream.source.video(0, AVC_HEADER)
    stream.source.video(0, key(b"a"))
    stream.wait_for_source()
    stream.end()
    settle()
    notices = player.transport.messages()[-2:]
    assert [message.type_id for message in notices] == [MessageType.COMMAND_AMF0, MessageType.USER_CONTROL]
    assert all(output.log.join_page is None for output in stream.outputs)


def test_a_player_in_sync_is_moved_without_a_gap_or_a_repetition(stream):
    simple = Player(stream)
    stream.source.video(0, AVC_HEADER)
    stream.source.video(0, key(b"a"))
    settle()
    # The frame that has not been delivered yet goes out first.
    stream.source.video(40, inter(b"b"))
    stream.source.video(40, OTHER_HEADER)
    stream.source.video(80, inter(b"c"))
    assert simple.media == [AVC_HEADER, key(b"a"), inter(b"b"), inter(b"c")]
    assert simple.timestamps == sorted(simple.timestamps)
    assert simple.subscriber.skips == 0


def test_a_player_far_behind_waits_for_the_next_keyframe(stream):
    simple = Player(stream)
    stream.source.video(0, AVC_HEADER)
    stream.source.video(0, key(b"a"))
    assert simple.media == [AVC_HEADER, key(b"a")]
    simple.transport.capacity = 100
    for number in range(10):
        stream.source.video(40 + number, inter(bytes(60_000)))
    settle()
    stream.source.video(60, OTHER_HEADER)
    assert simple.subscriber.state is State.WAITING
    stream.source.video(80, inter(b"lost"))
    simple.transport.take()
    stream.source.video(100, key(b"next"))
    media = simple.media
    assert media[-2:] == [AVC_HEADER, key(b"next")]
    assert inter(b"lost") not in media
    assert simple.timestamps == sorted(simple.timestamps)


def test_a_paused_player_stays_paused_in_another_output(stream):
    simple = Player(stream)
    stream.source.video(0, AVC_HEADER)
    stream.source.video(0, key(b"a"))
    assert simple.media == [AVC_HEADER, key(b"a")]
    simple.fanout.pause(simple.subscriber)
    stream.source.video(40, OTHER_HEADER)
    stream.source.video(80, key(b"b"))
    assert simple.media == [AVC_HEADER, key(b"a")]
    simple.fanout.resume(simple.subscriber)
    assert simple.media[-1] == key(b"b")


def test_a_player_that_paused_before_its_first_frame_gets_nothing_by_being_moved(stream):
    simple = Player(stream)
    simple.fanout.pause(simple.subscriber)
    stream.source.video(0, AVC_HEADER)
    stream.source.video(0, key(b"a"))
    stream.source.video(40, OTHER_HEADER)
    assert simple.media == []
    simple.fanout.resume(simple.subscriber)
    assert simple.media == [AVC_HEADER, key(b"a")]


def test_a_player_with_another_message_stream_id_is_moved_too(stream):
    simple = Player(stream, message_stream_id=3)
    stream.source.video(0, AVC_HEADER)
    stream.source.video(0, key(b"a"))
    assert simple.media == [AVC_HEADER, key(b"a")]
    stream.source.video(40, OTHER_HEADER)
    stream.source.video(80, key(b"b"))
    stream.source.video(80, key(b"x", 1))
    settle()
    media = [(m.message_stream_id, m.payload) for m in simple.transport.messages() if m.type_id in _MEDIA]
    assert media[-2:] == [(3, AVC_HEADER), (3, key(b"b"))]


def test_players_return_to_the_published_output_with_another_source(stream):
    simple = Player(stream)
    stream.source.video(0, AVC_HEADER)
    stream.source.video(0, OTHER_HEADER)
    stream.source.video(0, key(b"a"))
    assert simple.output is not stream.published
    stream.wait_for_source()
    stream.begin(new_source())
    source = stream.ingest.lanes[0].source
    source.video(0, AVC_HEADER)
    source.video(0, key(b"b"))
    assert simple.output is stream.published
    assert simple.media[-2:] == [AVC_HEADER, key(b"b")]


def test_a_source_that_changes_all_the_time_does_not_move_players_each_time(stream, monkeypatch):
    simple = Player(stream, Rewrite(hevc="codec12"))
    moved = []
    revise = simple.revise
    monkeypatch.setattr(simple, "revise", lambda decisions: (moved.append(1), revise(decisions)))
    for number in range(50):
        stream.source.video(number, (AVC_HEADER, b"\x90hvc1record")[number % 2])
    assert len(moved) == 4
    stream.sweep(100, 30)
    assert len(moved) == 5
    stream.sweep(101, 30)
    assert len(moved) == 5
    # Whatever came in between, the player ends where it belongs.
    assert simple.output is not stream.published
    stream.source.video(60, AVC_HEADER)
    assert len(moved) == 6


def test_options_reach_a_rewritten_output(stream):
    stream.source.video(0, OTHER_HEADER)
    player = Player(stream)
    options = app_options(stream.options, gop_cache_limit_bytes=2048, keyframe_wait_s=3)
    stream.reload(options)
    assert player.fanout.options is options.live
    assert player.output.log.cache_limit_bytes == 2048


def test_no_page_stays_of_a_dropped_output(open_stream):
    before = live_pages()
    stream = open_stream()
    for round_ in range(20):
        players = [Player(stream) for _ in range(3)]
        stream.source.video(round_, AVC_HEADER)
        stream.source.video(round_, key(b"a" * 1000))
        stream.source.video(round_, key(b"b" * 1000, 1))
        for player in players:
            player.leave()
    close_stream(stream)
    del stream, players, player
    settle(2)
    assert live_pages() <= before + 2


@pytest.fixture
def slow_passes(monkeypatch):
    """Let each look at the clock find that the pass has held the event loop for too long."""
    clock = FakeTime(step_s=0.01)
    monkeypatch.setattr("rtmpd.live.fanout.time", clock)


@pytest.mark.usefixtures("slow_passes")
def test_requests_during_a_pass_hold_for_players_that_are_moved_in_its_middle(stream):
    stream.source.video(0, AVC_HEADER)
    stream.source.video(0, key(b"a"))
    players = [Player(stream) for _ in range(200)]
    settle()
    stream.source.video(40, inter(b"b"))
    gevent.sleep(0)
    served, others = players[0], players[-1]
    assert (served.transport.messages()[-1].payload, others.transport.messages()[-1].payload) == (inter(b"b"), key(b"a"))
    for player in (served, others):
        player.fanout.pause(player.subscriber)
    silent = players[-2]
    silent.fanout.reframe(silent.subscriber, lambda subscriber: setattr(subscriber.framing, "receive_video", False))
    stream.source.video(80, OTHER_HEADER)
    assert len(rewritten(stream)) == 1
    settle()
    assert [each.subscriber.state for each in (served, others)] == [State.PAUSED] * 2
    assert not silent.subscriber.framing.receive_video
    stream.source.video(80, inter(b"c"))
    stream.source.audio(80, audio_frame("d"))
    assert served.media[-1] == others.media[-1] == inter(b"b")
    assert silent.media[-1] == audio_frame("d")
    assert players[1].media[-2:] == [inter(b"c"), audio_frame("d")]


def test_players_moved_without_a_join_point_get_headers_at_the_timestamp_of_the_stream(open_stream):
    stream = open_stream(gop_cache=False)
    player = Player(stream)
    stream.source.video(5000, b"\x1c\0\0\0\0record")
    stream.source.video(5000, b"\x1c\1\0\0\0key")
    settle()
    player.wanted = Rewrite(hevc="hvc1")
    stream.revise()
    assert player.output is not stream.published
    stream.source.video(5040, b"\x2c\1\0\0\0inter")
    assert player.media[-1] == b"\xa3hvc1inter"
    assert player.timestamps == sorted(player.timestamps)


def test_a_player_that_is_moved_between_two_headers_is_sent_each_once(stream):
    simple = Player(stream)
    stream.source.video(0, AVC_HEADER)
    assert simple.media == [AVC_HEADER]
    stream.source.video(0, OTHER_HEADER)
    assert simple.output is not stream.published
    assert simple.media == [AVC_HEADER]
    stream.source.audio(0, AAC_HEADER)
    assert simple.media == [AVC_HEADER, AAC_HEADER]
    stream.source.video(0, key(b"a"))
    assert simple.media == [AVC_HEADER, AAC_HEADER, key(b"a")]


def test_a_player_that_is_moved_between_two_headers_is_sent_those_that_have_another_form_there(stream):
    player = Player(stream)
    stream.source.audio(0, AAC_HEADER)
    stream.source.video(0, b"\x1c\0\0\0\0record")
    assert player.media == [AAC_HEADER, b"\x1c\0\0\0\0record"]
    player.wanted = Rewrite(hevc="hvc1")
    stream.revise()
    assert player.output is not stream.published
    stream.source.video(0, b"\x1c\1\0\0\0key")
    assert player.media[2:] == [b"\x90hvc1record", b"\x93hvc1key"]


# Outputs that are only read in batches ----------------------------------------------------------------------------------


class BatchReader:
    """A reader such as a recording."""

    def __init__(self, stream, framing=FLV):
        self.wake_at = NEVER
        self.woken = 0
        self.log = stream.read(self, framing)
        self.page, self.offset = self.log.tail, self.log.tail.end

    def wake(self):
        self.woken += 1

    def fail(self):
        raise AssertionError("the output has failed")

    def take(self):
        """Return the payloads since the last call."""
        found = []
        for message in self.log.read_all(self.page, self.offset):
            found.append(bytes(message.payload))
            self.page, self.offset = message.page, message.offset
        return found


def view(stream):
    """Let a viewer join the FLV output; return the output, the subscriber and its transport."""
    output, transport = stream.output(framing=FLV), FakeTransport()
    subscriber = Subscriber(transport, FLV.for_subscriber(), "the viewer")
    output.fanout.join(subscriber)
    return output, subscriber, transport


def tags(transport):
    """Return the type, timestamp and payload of the tags that a viewer has received behind the file header."""
    settle()
    data, found = bytes(transport.data), []
    assert data.startswith(b"FLV\1")
    position = flv.FILE_HEADER_SIZE
    while position < len(data):
        size = int.from_bytes(data[position + 1 : position + 4], "big")
        timestamp = int.from_bytes(data[position + 4 : position + 7], "big") | data[position + 7] << 24
        payload = data[position + 11 : position + 11 + size]
        assert data[position : position + size + 15] == flv.tag(data[position], timestamp, payload)
        found.append((data[position], timestamp, payload))
        position += size + 15
    return found


def test_an_output_that_is_only_read_in_batches_keeps_no_pages_for_late_joiners(stream):
    before = live_pages()
    reader = BatchReader(stream)
    stream.source.video(0, key(b"a"))
    for number in range(20):
        stream.source.video(40 + number, inter(bytes(60_000)))
        reader.take()
    assert reader.log.join_page is None
    published = stream.published.log.account
    assert stream.held_bytes() - published.bytes == reader.log.tail.size
    stream.published.log.forget_join_point()
    assert live_pages() - before == 1
    stream.stop_reading(reader)
    assert stream.outputs == [stream.published]


@pytest.mark.parametrize("begins", ["before the keyframe", "at the keyframe", "behind the keyframe"])
def test_the_first_subscriber_of_a_batch_output_starts_at_the_newest_keyframe(stream, begins):
    source = stream.source
    reader = BatchReader(stream) if begins == "before the keyframe" else None
    source.video(0, AVC_HEADER)
    source.video(0, key(b"old"))
    if begins == "at the keyframe":
        reader = BatchReader(stream)
    source.video(1000, key(b"a"))
    source.video(1040, inter(b"b"))
    source.audio(1045, audio_frame("c"))
    if begins == "behind the keyframe":
        reader = BatchReader(stream)
    source.video(1080, inter(b"d"))
    read = reader.take()
    assert read[-1] == inter(b"d")
    reader.log.schedule()
    position, number = reader.log.position, reader.log.tail.messages_before(reader.log.tail.end)
    output, subscriber, transport = view(stream)
    assert output.log is reader.log
    assert (reader.log.position, reader.log.tail.messages_before(reader.log.tail.end)) == (position, number)
    expected = [
        (9, 1000, AVC_HEADER),
        (9, 1000, key(b"a")),
        (9, 1040, inter(b"b")),
        (8, 1045, audio_frame("c")),
        (9, 1080, inter(b"d")),
    ]
    assert tags(transport) == expected
    source.video(1120, inter(b"e"))
    source.video(1160, key(b"f"))
    assert tags(transport) == [*expected, (9, 1120, inter(b"e")), (9, 1160, key(b"f"))]
    # The headers are no messages of the log.
    assert subscriber.messages_until(*output.fanout.place_of(subscriber)) == 6
    assert output.fanout.sent_bytes(subscriber) == len(transport.data)
    assert reader.take() == [inter(b"e"), key(b"f")]
    assert reader.woken == 0
    _, _, late = view(stream)
    assert tags(late) == [(9, 1160, AVC_HEADER), (9, 1160, key(b"f"))]


def test_the_lag_of_the_first_subscriber_of_a_batch_output_counts_from_the_keyframe(stream):
    source = stream.source
    source.video(1000, key(b"a"))
    for number in range(1, 11):
        source.video(1000 + number * 40, inter(bytes(1000)))
    reader = BatchReader(stream)
    source.video(1440, inter(b"b"))
    output, transport = stream.output(framing=FLV), FakeTransport(capacity=9)
    subscriber = Subscriber(transport, FLV.for_subscriber(), "the viewer")
    output.fanout.join(subscriber)
    settle()
    assert output.fanout.lag_ms() == stream.lag_ms() == 440
    payloads = [key(b"a"), *[inter(bytes(1000))] * 10, inter(b"b")]
    assert reader.log.position - subscriber.position == sum(flv.tag_size(len(each)) for each in payloads)
    transport.take()
    settle()
    assert output.fanout.lag_ms() == 0
    assert len(tags(transport)) == 12


def test_a_batch_reader_is_woken_at_its_position_although_subscribers_have_joined(stream):
    source = stream.source
    source.video(0, key(b"a"))
    reader = BatchReader(stream)
    reader.wake_at = reader.log.position + 2 * flv.tag_size(len(inter(b"b")))
    reader.log.schedule()
    view(stream)
    source.video(40, inter(b"b"))
    assert reader.woken == 0
    source.video(80, inter(b"c"))
    assert reader.woken == 1


def test_without_a_keyframe_the_first_subscriber_of_a_batch_output_waits_for_the_next(stream):
    reader = BatchReader(stream)
    stream.source.video(0, inter(b"a"))
    _, _, transport = view(stream)
    settle()
    assert transport.data == b""
    stream.source.video(40, key(b"b"))
    assert tags(transport) == [(9, 40, key(b"b"))]
    assert reader.take() == [inter(b"a"), key(b"b")]


def test_an_output_with_a_batch_reader_stays_when_its_subscribers_have_left(stream):
    stream.source.video(0, key(b"a"))
    reader = BatchReader(stream)
    output, subscriber, _ = view(stream)
    output.fanout.leave(subscriber)
    stream.source.video(40, key(b"b"))
    assert output.log.join_page is not None
    for second in range(100, 120):
        stream.sweep(second, 30)
    assert stream.outputs == [stream.published, output]
    # A recording needs no join point; the next viewer starts at the newest keyframe all the same.
    assert output.log.join_page is None
    _, subscriber, transport = view(stream)
    assert [payload for _, _, payload in tags(transport)] == [key(b"b")]
    output.fanout.leave(subscriber)
    stream.stop_reading(reader)
    for second in range(120, 140):
        stream.sweep(second, 30)
    assert stream.outputs == [stream.published]
