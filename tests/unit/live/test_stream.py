from __future__ import annotations

import pytest

from rtmpd.live.framing import NO_HEADERS
from rtmpd.phases import IllegalTransition, StreamPhase
from rtmpd.protocol import amf0
from rtmpd.protocol.command import amf0_body, decode_command
from rtmpd.protocol.message import MessageType, RawMessage, UserControlType, parse_user_control
from tests.unit.live.fakes import (
    AAC_HEADER,
    AVC_HEADER,
    FakeTime,
    FakeTransport,
    app_options,
    audio_frame,
    close_stream,
    frame,
    keyframe,
    live_pages,
    new_source,
    new_stream,
    new_subscriber,
    settle,
)

METADATA = amf0.encode("onMetaData", {"width": 1280.0})
GRACE_S = 10


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime()
    monkeypatch.setattr("rtmpd.live.stream.time", made)
    monkeypatch.setattr("rtmpd.live.fanout.time", made)
    monkeypatch.setattr("rtmpd.live.source.time", made)
    monkeypatch.setattr("rtmpd.live.ingest.time", made)
    return made


@pytest.fixture
def open_stream(clock):
    made = []

    def make(**options):
        made.append(new_stream(options=app_options(publisher_grace_s=GRACE_S, **options)))
        return made[-1]

    yield make
    for stream in made:
        close_stream(stream)


@pytest.fixture
def stream(open_stream):
    return open_stream()


def begin(stream):
    """Make a new source the active one; return it."""
    source = new_source()
    stream.begin(source)
    return source


def send_data(source, message):
    """Hand a data message to a source, as the RTMP session does."""
    source.data(message.timestamp, amf0_body(message))


def join(stream, message_stream_id=1):
    transport = FakeTransport()
    subscriber = new_subscriber(transport, message_stream_id)
    stream.players.add(Player())
    stream.output().fanout.join(subscriber)
    return subscriber, transport


class Player:
    """A player that takes everything as it is published."""

    number = 1

    def revise(self, decisions):
        pass

    def ended(self):
        pass


def data_message(*values, type_id=MessageType.DATA_AMF0, timestamp=0, prefix=b""):
    return RawMessage(type_id, 1, timestamp, prefix + amf0.encode(*values))


def summary(transport):
    """Return what a player received, notices by name."""
    settle()
    found = []
    for message in transport.messages():
        if message.type_id == MessageType.COMMAND_AMF0:
            assert message.timestamp == 0
            found.append(decode_command(message).arguments[0]["code"])
        elif message.type_id == MessageType.USER_CONTROL:
            assert (message.timestamp, message.message_stream_id) == (0, 0)
            control = parse_user_control(message)
            found.append((UserControlType(control.event).name, control.value))
        else:
            found.append(message.payload)
    return found


def timestamps(transport):
    settle()
    return [m.timestamp for m in transport.messages() if m.type_id in (MessageType.AUDIO, MessageType.VIDEO)]


BEGIN = [("STREAM_BEGIN", 1), "NetStream.Play.PublishNotify"]
END = ["NetStream.Play.UnpublishNotify", ("STREAM_EOF", 1)]


# Begin, pause, end ------------------------------------------------------------------------------------------------------


def test_a_new_stream_is_idle(stream):
    assert stream.idle
    assert (stream.source, stream.ended_at, stream.announced) == (None, None, False)
    assert stream.phase is StreamPhase.IDLE


def test_the_phases_of_a_stream_from_begin_to_end(stream, clock):
    source = begin(stream)
    assert (stream.source, stream.ended_at, stream.announced, source.active_at) == (source, None, True, clock.now_s)
    assert stream.phase is StreamPhase.LIVE
    assert not stream.idle
    clock.now_s += 5
    stream.wait_for_source()
    assert (stream.source, stream.ended_at, stream.announced) == (None, clock.now_s, True)
    assert stream.phase is StreamPhase.GRACE
    assert not stream.idle
    stream.end()
    assert not stream.announced
    assert stream.phase is StreamPhase.IDLE
    assert stream.idle


def test_a_player_that_waits_for_the_source_is_notified_when_it_comes(stream):
    _, transport = join(stream)
    assert not stream.idle
    source = begin(stream)
    source.video(0, AVC_HEADER)
    source.video(0, keyframe())
    assert summary(transport)[-3:] == ["NetStream.Play.PublishNotify", AVC_HEADER, keyframe()]


def test_a_notice_names_the_message_stream_of_the_player(stream):
    _, transport = join(stream, 6)
    source = begin(stream)
    source.video(0, keyframe())
    settle()
    stream.end()
    settle()
    notices = [m for m in transport.messages() if m.type_id == MessageType.COMMAND_AMF0]
    assert [m.message_stream_id for m in notices] == [6, 6]
    assert summary(transport)[-1] == ("STREAM_EOF", 6)


def test_players_are_notified_of_the_end_behind_the_last_frame(stream):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    source.video(40, frame("last"))
    stream.wait_for_source()
    stream.end()
    assert summary(transport) == [keyframe(), frame("last"), *END]


def test_a_slow_player_is_notified_of_the_end_behind_the_last_frame_too(stream):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    settle()
    transport.capacity = 5
    source.video(40, frame("last"))
    stream.end()
    settle()
    transport.take()
    assert summary(transport) == [keyframe(), frame("last"), *END]


def test_ending_twice_notifies_players_once(stream):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    stream.end()
    stream.end()
    assert summary(transport) == [keyframe(), *END]


def test_a_stream_that_never_began_has_no_end(stream):
    _, transport = join(stream)
    stream.end()
    assert summary(transport) == []


def test_a_source_that_is_back_within_the_grace_is_not_announced_again(stream, clock):
    source = begin(stream)
    source.video(0, keyframe("a"))
    _, transport = join(stream)
    stream.wait_for_source()
    clock.now_s += GRACE_S - 1
    stream.sweep(clock.now_s, 30)
    source = begin(stream)
    source.video(0, keyframe("b"))
    assert summary(transport) == [keyframe("a"), keyframe("b")]


def test_players_that_pause_or_wait_are_notified_of_the_end_too(open_stream):
    stream = open_stream(gop_cache_limit_bytes=1024)
    source = begin(stream)
    source.video(0, keyframe())
    pausing, paused = join(stream)
    settle()
    stream.published.fanout.pause(pausing)
    source.video(40, frame("", 2000))
    source.video(80, frame())
    _, waiting = join(stream)
    stream.end()
    assert summary(paused) == [keyframe(), *END]
    assert summary(waiting) == END


def test_the_stream_ends_when_the_grace_is_over(stream, clock):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    stream.wait_for_source()
    clock.now_s += GRACE_S
    stream.sweep(clock.now_s, 30)
    assert not stream.announced
    assert summary(transport) == [keyframe(), *END]


def test_players_that_stay_are_notified_when_the_stream_is_back(stream, clock):
    source = begin(stream)
    source.video(0, keyframe("a"))
    _, transport = join(stream)
    stream.end()
    clock.now_s += 60
    source = begin(stream)
    source.video(0, keyframe("b"))
    assert summary(transport) == [keyframe("a"), *END, *BEGIN, keyframe("b")]


def test_no_player_starts_in_media_that_has_ended(stream):
    source = begin(stream)
    send_data(source, data_message("@setDataFrame", "onMetaData", {}))
    source.video(0, AVC_HEADER)
    source.video(0, keyframe("old"))
    stream.end()
    _, transport = join(stream)
    assert summary(transport) == []
    source = begin(stream)
    source.video(0, keyframe("new"))
    assert summary(transport) == [*BEGIN, keyframe("new")]


@pytest.mark.parametrize("lost", [False, True])
def test_a_player_that_joins_within_the_grace_waits_unless_the_publisher_was_lost(stream, clock, lost):
    source = begin(stream)
    send_data(source, data_message("@setDataFrame", "onMetaData", {"width": 1280.0}))
    source.video(0, AVC_HEADER)
    source.video(1000, keyframe("old"))
    _, kept = join(stream)
    settle()
    stream.wait_for_source(lost=lost)
    _, transport = join(stream)
    paused, _ = join(stream)
    stream.output().fanout.pause(paused)
    stream.output().fanout.resume(paused)
    clock.now_s += 6
    stream.sweep(clock.now_s, 30)
    assert summary(transport) == ([METADATA, AVC_HEADER, keyframe("old")] if lost else [])
    source = begin(stream)
    source.video(0, AVC_HEADER)
    source.video(0, keyframe("new"))
    # Those that have the headers are not sent them again.
    headers = [] if lost else [AVC_HEADER]
    assert summary(transport)[-2:] == [AVC_HEADER if not lost else keyframe("old"), keyframe("new")]
    assert summary(kept) == [METADATA, AVC_HEADER, keyframe("old"), *headers, keyframe("new")]
    # All are on one timeline.
    assert timestamps(transport)[-1] == timestamps(kept)[-1] == 7000


def test_a_player_that_waits_within_the_grace_is_notified_of_the_end(stream, clock):
    begin(stream).video(0, keyframe("old"))
    stream.wait_for_source(lost=False)
    _, transport = join(stream)
    clock.now_s += GRACE_S
    stream.sweep(clock.now_s, 30)
    assert summary(transport) == END


def test_no_player_starts_without_a_keyframe_in_media_that_has_ended(open_stream, clock):
    stream = open_stream(keyframe_wait_s=1)
    source = begin(stream)
    source.video(0, frame())
    stream.end()
    _, transport = join(stream)
    clock.now_s += 10
    stream.sweep(clock.now_s, 30)
    assert summary(transport) == []


def test_a_source_is_active_while_its_messages_come(stream, clock):
    source = begin(stream)
    began = clock.now_s
    clock.now_s += 3
    stream.sweep(clock.now_s, 30)
    assert source.active_at == began
    source.audio(0, audio_frame())
    clock.now_s += 1
    stream.sweep(clock.now_s, 30)
    assert source.active_at == clock.now_s
    clock.now_s += 1
    stream.sweep(clock.now_s, 30)
    assert source.active_at == clock.now_s - 1


def test_the_sweep_closes_players_whose_sockets_accept_nothing(stream, clock):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    settle()
    transport.capacity = 0
    source.video(40, frame())
    settle()
    clock.now_s += 31
    stream.sweep(clock.now_s, 30)
    assert transport.close_reason


def test_a_closed_stream_holds_one_page():
    before = live_pages()
    stream = new_stream()
    source = begin(stream)
    source.video(0, keyframe())
    for index in range(100):
        source.video(index * 40, frame("", 10_000))
    assert live_pages() - before > 3
    stream.end()
    stream.close()
    assert live_pages() - before == 1


def test_a_stream_that_has_or_awaits_a_source_is_not_closed(stream):
    begin(stream)
    with pytest.raises(IllegalTransition):
        stream.close()
    stream.wait_for_source()
    with pytest.raises(IllegalTransition):
        stream.close()


def test_no_source_begins_in_a_closed_stream():
    stream = new_stream()
    stream.close()
    with pytest.raises(IllegalTransition):
        begin(stream)


def test_messages_of_a_source_that_was_detached_are_discarded(stream):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    stream.wait_for_source()
    source.video(40, keyframe("late"))
    source.audio(40, audio_frame("late"))
    send_data(source, data_message("onCuePoint", {}))
    assert summary(transport) == [keyframe()]
    assert stream.received == (2, 0, 1, 0, 1)


def test_the_stream_counts_what_all_its_sources_have_sent(stream):
    for payload in (keyframe("", 100), keyframe("", 200)):
        begin(stream).video(0, payload)
        stream.wait_for_source()
    source = begin(stream)
    source.video(0, AVC_HEADER)
    assert (stream.received.bytes, stream.received.video, stream.received.frames) == (300 + len(AVC_HEADER), 3, 2)
    assert (source.received.video, source.received.frames) == (1, 0)


def test_a_new_source_begins_without_codecs_and_reports_its_own(clock):
    found = []
    stream = new_stream(on_codec=lambda stream, codec: found.append((stream, codec.codec)))
    for _ in range(2):
        source = begin(stream)
        assert (stream.stats.video, stream.stats.keyframes, stream.headers) == (None, 0, NO_HEADERS)
        source.audio(0, AAC_HEADER)
        assert source.headers.codecs == {"audio 0": "aac"}
        stream.wait_for_source()
    assert found == [(stream, "aac")] * 2
    close_stream(stream)


# The timeline -----------------------------------------------------------------------------------------------------------


def test_a_new_stream_has_the_timestamps_of_its_source(stream):
    source = begin(stream)
    source.video(5_000_000, keyframe())
    _, transport = join(stream)
    source.video(5_000_040, frame())
    source.audio(5_000_050, audio_frame())
    assert timestamps(transport) == [5_000_000, 5_000_040, 5_000_050]


@pytest.mark.parametrize("graceful", [True, False])
def test_the_timeline_of_players_that_were_kept_continues(stream, clock, graceful):
    source = begin(stream)
    source.video(1000, keyframe())
    _, transport = join(stream)
    source.video(2000, frame())
    settle()
    stream.wait_for_source()
    if not graceful:
        stream.end()
    clock.now_s += 3
    source = begin(stream)
    source.video(0, keyframe())
    source.audio(10, audio_frame())
    source.video(40, frame())
    assert timestamps(transport) == [1000, 2000, 5000, 5010, 5040]


def test_without_players_the_next_source_starts_its_own_timeline(stream, clock):
    source = begin(stream)
    source.video(1000, keyframe())
    subscriber, _ = join(stream)
    settle()
    stream.published.fanout.leave(subscriber)
    stream.wait_for_source()
    clock.now_s += 3
    source = begin(stream)
    source.video(77, keyframe("new"))
    _, transport = join(stream)
    assert timestamps(transport) == [77]


def test_players_that_only_wait_do_not_keep_the_old_timeline(stream, clock):
    _, transport = join(stream)
    source = begin(stream)
    source.video(90_000, frame("no keyframe came"))
    stream.wait_for_source()
    clock.now_s += 3
    source = begin(stream)
    source.video(0, keyframe())
    assert timestamps(transport) == [0]


def test_a_player_that_joins_between_two_sources_gets_one_timeline(stream, clock):
    """There were no players, the grace is not over, and the old group of pictures is still in the log."""
    source = begin(stream)
    source.video(1_000_000, keyframe("old"))
    stream.wait_for_source()
    clock.now_s += 1
    source = begin(stream)
    _, transport = join(stream)
    source.video(0, keyframe("new"))
    source.video(40, frame())
    shown = timestamps(transport)
    assert shown == sorted(shown)
    assert shown[-1] - shown[0] < GRACE_S * 1000


# Keyframes and join points ----------------------------------------------------------------------------------------------


def test_players_join_at_the_last_keyframe(stream):
    source = begin(stream)
    source.video(0, keyframe("a"))
    source.video(40, frame())
    source.audio(45, audio_frame())
    source.video(80, keyframe("b"))
    source.audio(85, audio_frame("1"))
    _, transport = join(stream)
    assert summary(transport) == [keyframe("b"), audio_frame("1")]


def test_players_get_headers_and_metadata_first(stream):
    source = begin(stream)
    source.video(0, AVC_HEADER)
    source.audio(0, AAC_HEADER)
    send_data(source, RawMessage(MessageType.DATA_AMF0, 1, 0, amf0.encode("@setDataFrame") + METADATA))
    source.video(0, keyframe())
    _, transport = join(stream)
    assert summary(transport) == [METADATA, AVC_HEADER, AAC_HEADER, keyframe()]


def test_a_player_that_joins_between_header_and_frame_gets_headers_at_once(stream):
    source = begin(stream)
    send_data(source, data_message("@setDataFrame", "onMetaData", {"width": 1280.0}))
    source.video(0, AVC_HEADER)
    _, transport = join(stream)
    assert summary(transport) == [METADATA, AVC_HEADER]
    source.audio(0, AAC_HEADER)
    assert summary(transport) == [METADATA, AVC_HEADER, AAC_HEADER]
    source.video(0, AVC_HEADER + b"new")
    source.video(0, keyframe())
    assert summary(transport) == [METADATA, AVC_HEADER, AAC_HEADER, AVC_HEADER + b"new", keyframe()]


def test_players_that_wait_for_a_source_get_its_headers_at_once_and_only_once(stream):
    _, transport = join(stream)
    _, other = join(stream, 5)
    source = begin(stream)
    source.video(0, AVC_HEADER)
    assert summary(transport) == [*BEGIN, AVC_HEADER]
    assert summary(other)[2:] == [AVC_HEADER]
    source.video(0, AVC_HEADER)
    source.video(0, keyframe())
    assert summary(transport) == [*BEGIN, AVC_HEADER, keyframe()]
    assert summary(other)[2:] == [AVC_HEADER, keyframe()]


def test_a_player_with_a_full_socket_gets_headers_with_the_first_frame(stream):
    transport = FakeTransport(0)
    stream.output().fanout.join(new_subscriber(transport))
    source = begin(stream)
    for number in range(1000):
        source.video(0, AVC_HEADER + number.to_bytes(2, "big"))
        settle(2)
    source.video(0, keyframe())
    settle()
    transport.take()
    assert summary(transport) == [*BEGIN, AVC_HEADER + (999).to_bytes(2, "big"), keyframe()]


def test_a_player_that_starts_without_a_keyframe_is_sent_each_header_once(open_stream, clock):
    stream = open_stream(keyframe_wait_s=1)
    _, transport = join(stream)
    source = begin(stream)
    source.video(0, AVC_HEADER)
    assert summary(transport) == [*BEGIN, AVC_HEADER]
    source.audio(0, AAC_HEADER)
    source.video(0, frame("a"))
    assert summary(transport) == [*BEGIN, AVC_HEADER]
    clock.now_s += 2
    stream.sweep(clock.now_s, 30)
    source.video(40, frame("b"))
    assert summary(transport) == [*BEGIN, AVC_HEADER, AAC_HEADER, frame("b")]


def test_a_player_in_the_middle_gets_headers_with_the_frame_where_it_starts(open_stream):
    stream = open_stream(gop_cache=False)
    source = begin(stream)
    source.video(0, AVC_HEADER)
    source.video(0, keyframe("a"))
    _, transport = join(stream)
    source.audio(0, AAC_HEADER)
    assert summary(transport) == []
    source.video(40, keyframe("b"))
    assert summary(transport) == [AVC_HEADER, AAC_HEADER, keyframe("b")]


def test_the_headers_of_another_source_replace_the_old_ones(stream):
    source = begin(stream)
    source.video(0, AVC_HEADER)
    source.video(0, keyframe("a"))
    stream.wait_for_source()
    source = begin(stream)
    source.video(0, AVC_HEADER + b"new")
    source.video(0, keyframe("b"))
    _, transport = join(stream)
    assert summary(transport) == [AVC_HEADER + b"new", keyframe("b")]


def test_an_audio_stream_can_be_joined_each_second(stream):
    source = begin(stream)
    for index in range(100):
        source.audio(index * 25, audio_frame(str(index)))
    assert stream.published.log.joins == 3
    _, transport = join(stream)
    assert summary(transport) == [audio_frame(str(index)) for index in range(80, 100)]


def test_audio_before_the_first_video_can_be_joined_and_later_audio_can_not(stream):
    source = begin(stream)
    source.audio(0, audio_frame("a"))
    source.video(10, AVC_HEADER)
    for index in range(100):
        source.audio(20 + index * 25, audio_frame())
    assert stream.published.log.joins == 1
    source.video(2600, keyframe())
    assert stream.published.log.joins == 2


def test_players_do_not_join_at_an_audio_header(stream):
    source = begin(stream)
    source.audio(0, AAC_HEADER)
    assert stream.published.log.join_page is None
    _, transport = join(stream)
    source.audio(0, audio_frame())
    assert summary(transport) == [AAC_HEADER, audio_frame()]


def track_keyframe(track, label):
    """Enhanced RTMP: a keyframe of one track in a multitrack message."""
    return b"\x96\x01avc1" + bytes((track,)) + label.encode()


def test_with_several_tracks_players_join_at_the_lowest(stream):
    source = begin(stream)
    source.video(0, track_keyframe(2, "c"))
    assert stream.published.log.joins == 1
    source.video(0, track_keyframe(1, "b"))
    assert stream.published.log.joins == 2
    source.video(40, track_keyframe(2, "c"))
    assert stream.published.log.joins == 2
    # The lowest of all has the plain header of a single track.
    source.video(80, keyframe())
    source.video(80, track_keyframe(1, "b"))
    source.video(80, track_keyframe(2, "c"))
    assert stream.published.log.joins == 3
    _, transport = join(stream)
    assert summary(transport) == [keyframe(), track_keyframe(1, "b"), track_keyframe(2, "c")]


def test_another_source_may_have_other_tracks(stream):
    source = begin(stream)
    source.video(0, track_keyframe(0, "a"))
    stream.wait_for_source()
    source = begin(stream)
    source.video(0, track_keyframe(3, "d"))
    assert stream.published.log.joins == 2


def test_a_group_of_pictures_over_the_limit_is_not_kept(open_stream):
    stream = open_stream(gop_cache_limit_bytes=10_000)
    source = begin(stream)
    source.video(0, keyframe())
    for index in range(20):
        source.video(index * 40, frame("", 1000))
    assert stream.published.log.join_page is None
    _, transport = join(stream)
    assert summary(transport) == []
    source.video(800, keyframe("next"))
    assert summary(transport) == [keyframe("next")]


def test_without_the_gop_cache_players_start_at_the_next_keyframe(open_stream):
    stream = open_stream(gop_cache=False)
    source = begin(stream)
    source.video(0, AVC_HEADER)
    source.video(0, keyframe("before"))
    _, transport = join(stream)
    source.video(40, frame("too early"))
    assert summary(transport) == []
    source.video(80, keyframe("next"))
    source.video(120, frame("1"))
    assert summary(transport) == [AVC_HEADER, keyframe("next"), frame("1")]


def test_without_the_gop_cache_no_player_starts_at_a_past_keyframe(open_stream):
    """A keyframe that was kept for a waiting player must not be kept for players that come later."""
    stream = open_stream(gop_cache=False)
    source = begin(stream)
    _, first = join(stream)
    source.video(0, keyframe("a"))
    source.video(40, frame("1"))
    settle()
    _, second = join(stream)
    source.video(80, frame("2"))
    settle()
    source.video(120, keyframe("b"))
    settle()
    assert summary(first) == [keyframe("a"), frame("1"), frame("2"), keyframe("b")]
    assert summary(second) == [keyframe("b")]
    _, third = join(stream)
    source.video(160, frame("3"))
    assert summary(third) == []


def test_without_the_gop_cache_no_pages_stay_for_a_player_that_waited_and_left(open_stream):
    """It left between the keyframe that it waited for and the pass that would have started it."""
    before = live_pages()
    stream = open_stream(gop_cache=False)
    source = begin(stream)
    subscriber, _ = join(stream)
    settle()
    source.video(0, keyframe())
    stream.published.fanout.leave(subscriber)
    settle()
    for index in range(100):
        source.video(index * 40, frame("", 10_000))
    assert live_pages() - before == 1


def test_without_the_gop_cache_nothing_is_kept_for_late_joiners(open_stream):
    before = live_pages()
    stream = open_stream(gop_cache=False)
    source = begin(stream)
    source.video(0, keyframe())
    for index in range(100):
        source.video(index * 40, frame("", 10_000))
    assert live_pages() - before == 1


# What is delivered ----------------------------------------------------------------------------------------------------


def test_empty_messages_are_ignored_and_counted(stream):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    source.audio(10, b"")
    source.video(10, b"")
    assert summary(transport) == [keyframe()]
    assert (stream.received.audio, stream.received.video) == (1, 2)


def test_odd_messages_are_delivered_and_change_nothing(stream):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    odd = [b"\x17", b"\x57\x01command", b"\x17\x02end of sequence", b"\x97xxx"]
    for payload in odd:
        source.video(10, payload)
    source.audio(10, b"\xaf")
    assert summary(transport) == [keyframe(), *odd, b"\xaf"]
    assert stream.published.log.joins == 1
    assert stream.headers.items == ()


def test_everything_is_counted(stream):
    source = begin(stream)
    source.video(0, keyframe("", 100))
    source.audio(0, audio_frame("", 50))
    send_data(source, data_message("onCuePoint", {}))
    received = stream.received
    assert (received.video, received.audio, received.data) == (1, 1, 1)
    assert received.bytes == 150 + len(amf0.encode("onCuePoint", {}))


def test_metadata_is_delivered_without_its_envelope_at_timestamp_0(stream):
    source = begin(stream)
    source.video(900, keyframe())
    _, transport = join(stream)
    send_data(source, RawMessage(MessageType.DATA_AMF0, 1, 950, amf0.encode("@setDataFrame") + METADATA))
    settle()
    assert transport.messages()[1:] == [(MessageType.DATA_AMF0, 1, 0, METADATA)]
    source.video(2000, keyframe("b"))
    _, late = join(stream)
    assert [(m.timestamp, m.payload) for m in late.messages()] == [(0, METADATA), (2000, keyframe("b"))]


def test_metadata_without_an_envelope_is_cached_as_well(stream):
    source = begin(stream)
    send_data(source, RawMessage(MessageType.DATA_AMF0, 1, 0, METADATA))
    source.video(0, keyframe())
    _, transport = join(stream)
    assert summary(transport) == [METADATA, keyframe()]


def test_cleared_metadata_is_forgotten_and_the_command_not_delivered(stream):
    source = begin(stream)
    send_data(source, RawMessage(MessageType.DATA_AMF0, 1, 0, METADATA))
    source.video(0, keyframe("a"))
    _, transport = join(stream)
    send_data(source, data_message("@clearDataFrame", "onMetaData"))
    source.video(40, keyframe("b"))
    _, late = join(stream)
    assert summary(transport) == [METADATA, keyframe("a"), keyframe("b")]
    assert summary(late) == [keyframe("b")]


def test_other_data_is_delivered_at_its_timestamp_and_not_cached(stream):
    source = begin(stream)
    source.video(1000, keyframe())
    _, transport = join(stream)
    send_data(source, data_message("onCuePoint", {"name": "x"}, timestamp=1010))
    send_data(source, data_message("@setDataFrame", "onTextData", {"text": "x"}, timestamp=1020))
    settle()
    assert transport.messages()[1:] == [
        (MessageType.DATA_AMF0, 1, 1010, amf0.encode("onCuePoint", {"name": "x"})),
        (MessageType.DATA_AMF0, 1, 1020, amf0.encode("onTextData", {"text": "x"})),
    ]
    assert stream.headers.items == ()


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\1\2\3"])
def test_timecodes_that_are_no_amf_are_ignored(stream, payload):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    send_data(source, RawMessage(MessageType.DATA_AMF0, 1, 0, payload))
    assert summary(transport) == [keyframe()]


def test_amf3_data_is_delivered_as_the_amf0_inside(stream):
    source = begin(stream)
    send_data(source, RawMessage(MessageType.DATA_AMF3, 1, 0, b"\0" + amf0.encode("@setDataFrame") + METADATA))
    source.video(0, keyframe())
    _, transport = join(stream)
    settle()
    assert transport.messages()[0] == (MessageType.DATA_AMF0, 1, 0, METADATA)


def test_headers_and_data_do_not_change_the_timeline(stream):
    source = begin(stream)
    source.video(500_000, keyframe())
    _, transport = join(stream)
    source.video(0, AVC_HEADER)
    source.audio(0, AAC_HEADER)
    source.video(500_040, frame())
    assert timestamps(transport) == [500_000, 500_000, 500_000, 500_040]


def test_codecs_are_named_as_headers_come(stream):
    source = begin(stream)
    source.video(0, AVC_HEADER)
    source.audio(0, AAC_HEADER)
    assert source.headers.codecs == {"video 0": "h264", "audio 0": "aac"}
    assert stream.headers is source.headers.current
    stream.end()
    assert stream.headers is NO_HEADERS


def test_the_fan_out_is_not_woken_without_subscribers(stream, monkeypatch):
    monkeypatch.setattr(stream.published.fanout, "wake", lambda: pytest.fail("woken"))
    source = begin(stream)
    source.video(0, keyframe())
    source.audio(0, audio_frame())
    send_data(source, data_message("onCuePoint", {}))
    stream.end()


# Options ----------------------------------------------------------------------------------------------------------------


def test_reloaded_options_take_effect_on_a_live_stream(stream, clock):
    source = begin(stream)
    source.video(0, keyframe())
    _, transport = join(stream)
    stream.reload(app_options(stream.options, publisher_grace_s=1, gop_cache_limit_bytes=2000, lag_limit_bytes=1500))
    assert stream.published.fanout.options is stream.options.live
    for index in range(5):
        source.video(index, frame("", 1000))
    assert stream.published.log.join_page is None
    stream.wait_for_source()
    clock.now_s += 1
    stream.sweep(clock.now_s, 30)
    assert summary(transport)[-2:] == END


def test_the_gop_cache_is_switched_off_and_on(stream):
    source = begin(stream)
    source.video(0, keyframe("a"))
    stream.reload(app_options(stream.options, gop_cache=False))
    _, transport = join(stream)
    assert summary(transport) == []
    stream.reload(app_options(stream.options, gop_cache=True))
    source.video(40, keyframe("b"))
    _, late = join(stream)
    assert summary(transport)[-1] == summary(late)[-1] == keyframe("b")


@pytest.mark.parametrize("end", ["end", "orderly"])
def test_a_waiting_player_gets_media_that_ends_before_the_next_pass(stream, end):
    _, transport = join(stream)
    source = begin(stream)
    source.video(0, keyframe("a"))
    source.video(40, frame("b"))
    if end == "end":
        stream.end()
    else:
        stream.wait_for_source(lost=False)
    assert [each for each in summary(transport) if isinstance(each, bytes)] == [keyframe("a"), frame("b")]
