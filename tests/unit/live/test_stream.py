from __future__ import annotations

import pytest

from rtmpd.live.stream import Stream, stream_status
from rtmpd.live.subscriber import Subscriber
from rtmpd.protocol import amf0
from rtmpd.protocol.command import decode_command
from rtmpd.protocol.message import MessageType, RawMessage, UserControlType, parse_user_control
from tests.unit.live.fakes import (
    AAC_HEADER,
    AVC_HEADER,
    CHUNK,
    FakeTime,
    FakeTransport,
    app_options,
    audio_frame,
    frame,
    keyframe,
    live_pages,
    settle,
)

METADATA = amf0.encode("onMetaData", {"width": 1280.0})
PUBLISHER = object()
GRACE_S = 10


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime()
    monkeypatch.setattr("rtmpd.live.stream.time", made)
    monkeypatch.setattr("rtmpd.live.fanout.time", made)
    return made


@pytest.fixture
def open_stream(clock):
    made = []

    def make(**options):
        made.append(Stream("live/test", app_options(publisher_grace_s=GRACE_S, **options), CHUNK))
        return made[-1]

    yield make
    for stream in made:
        stream.close()
    settle(2)


@pytest.fixture
def stream(open_stream):
    return open_stream()


def join(stream, message_stream_id=1):
    transport = FakeTransport()
    subscriber = Subscriber(transport, message_stream_id)
    stream.players.add(Watcher())
    stream.fanout.join(subscriber)
    return subscriber, transport


class Watcher:
    """A player that takes everything as it is published."""

    def revise(self, decisions):
        pass


def data_message(*values, type_id=MessageType.DATA_AMF0, timestamp=0, prefix=b""):
    return RawMessage(type_id, 1, timestamp, prefix + amf0.encode(*values))


def summary(transport, dry=False):
    """What a player got, notices by name; that a stream is dry only if asked for."""
    settle()
    found = []
    for message in transport.messages():
        if message.type_id == MessageType.COMMAND_AMF0:
            assert message.timestamp == 0
            found.append(decode_command(message).arguments[0]["code"])
        elif message.type_id == MessageType.USER_CONTROL:
            assert (message.timestamp, message.message_stream_id) == (0, 0)
            control = parse_user_control(message)
            if control.event != UserControlType.STREAM_DRY or dry:
                found.append((UserControlType(control.event).name, control.value))
        else:
            found.append(message.payload)
    return found


def times(transport):
    settle()
    return [m.timestamp for m in transport.messages() if m.type_id in (MessageType.AUDIO, MessageType.VIDEO)]


BEGIN = [("STREAM_BEGIN", 1), "NetStream.Play.PublishNotify"]
END = ["NetStream.Play.UnpublishNotify", ("STREAM_EOF", 1)]


# Begin, pause, end ------------------------------------------------------------------------------------------------------


def test_a_new_stream_is_idle(stream):
    assert stream.idle
    assert (stream.publisher, stream.ended_at, stream.announced) == (None, None, False)


def test_a_stream_lives_from_begin_to_end(stream, clock):
    stream.begin(PUBLISHER)
    assert (stream.publisher, stream.ended_at, stream.announced, stream.active_at) == (PUBLISHER, None, True, clock.now_s)
    assert not stream.idle
    clock.now_s += 5
    stream.pause()
    assert (stream.publisher, stream.ended_at, stream.announced) == (None, clock.now_s, True)
    assert not stream.idle
    stream.end()
    assert not stream.announced
    assert stream.idle


def test_a_player_who_waits_for_the_publisher_is_told_when_it_comes(stream):
    _, transport = join(stream)
    assert not stream.idle
    stream.begin(PUBLISHER)
    stream.video(0, AVC_HEADER)
    stream.video(0, keyframe())
    assert summary(transport)[-3:] == ["NetStream.Play.PublishNotify", AVC_HEADER, keyframe()]


def test_a_notice_names_the_players_own_message_stream(stream):
    _, transport = join(stream, 6)
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    settle()
    stream.end()
    settle()
    notices = [m for m in transport.messages() if m.type_id == MessageType.COMMAND_AMF0]
    assert [m.message_stream_id for m in notices] == [6, 6]
    assert summary(transport)[-1] == ("STREAM_EOF", 6)


def test_players_are_told_of_the_end_behind_the_last_frame(stream):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    stream.video(40, frame("last"))
    stream.pause()
    stream.end()
    assert summary(transport) == [keyframe(), frame("last"), *END]


def test_a_slow_player_is_told_of_the_end_behind_the_last_frame_too(stream):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    settle()
    transport.capacity = 5
    stream.video(40, frame("last"))
    stream.end()
    settle()
    transport.take()
    assert summary(transport) == [keyframe(), frame("last"), *END]


def test_ending_twice_tells_once(stream):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    stream.end()
    stream.end()
    assert summary(transport) == [keyframe(), *END]


def test_a_stream_that_never_began_has_no_end(stream):
    _, transport = join(stream)
    stream.end()
    assert summary(transport) == []


def test_a_publisher_that_is_back_in_time_is_not_announced_again(stream, clock):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe("a"))
    _, transport = join(stream)
    stream.pause()
    clock.now_s += GRACE_S - 1
    stream.sweep(clock.now_s, 30)
    stream.begin(object())
    stream.video(0, keyframe("b"))
    assert summary(transport) == [keyframe("a"), keyframe("b")]


def test_players_are_told_that_nothing_comes_while_a_publisher_is_awaited(stream):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    stream.pause()
    stream.begin(object())
    stream.video(0, keyframe("b"))
    assert summary(transport, dry=True) == [keyframe(), ("STREAM_DRY", 1), keyframe("b")]


def test_players_who_pause_or_wait_are_told_of_the_end_too(open_stream):
    stream = open_stream(gop_cache_limit_bytes=1024)
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    pausing, paused = join(stream)
    settle()
    stream.fanout.pause(pausing)
    stream.video(40, frame("", 2000))
    stream.video(80, frame())
    _, waiting = join(stream)
    stream.end()
    assert summary(paused) == [keyframe(), *END]
    assert summary(waiting) == END


def test_the_stream_ends_when_the_grace_is_over(stream, clock):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    stream.pause()
    clock.now_s += GRACE_S
    stream.sweep(clock.now_s, 30)
    assert not stream.announced
    assert summary(transport) == [keyframe(), *END]


def test_players_who_stay_are_told_when_the_stream_is_back(stream, clock):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe("a"))
    _, transport = join(stream)
    stream.end()
    clock.now_s += 60
    stream.begin(object())
    stream.video(0, keyframe("b"))
    assert summary(transport) == [keyframe("a"), *END, *BEGIN, keyframe("b")]


def test_nobody_may_start_in_what_has_ended(stream):
    stream.begin(PUBLISHER)
    stream.data(data_message("@setDataFrame", "onMetaData", {}))
    stream.video(0, AVC_HEADER)
    stream.video(0, keyframe("old"))
    stream.end()
    _, transport = join(stream)
    assert summary(transport) == []
    stream.begin(object())
    stream.video(0, keyframe("new"))
    assert summary(transport) == [*BEGIN, keyframe("new")]


def test_nobody_starts_without_a_keyframe_in_what_has_ended(open_stream, clock):
    stream = open_stream(keyframe_wait_s=1)
    stream.begin(PUBLISHER)
    stream.video(0, frame())
    stream.end()
    _, transport = join(stream)
    clock.now_s += 10
    stream.sweep(clock.now_s, 30)
    assert summary(transport) == []


def test_the_publisher_is_active_while_messages_come(stream, clock):
    stream.begin(PUBLISHER)
    began = clock.now_s
    clock.now_s += 3
    stream.sweep(clock.now_s, 30)
    assert stream.active_at == began
    stream.audio(0, audio_frame())
    clock.now_s += 1
    stream.sweep(clock.now_s, 30)
    assert stream.active_at == clock.now_s
    clock.now_s += 1
    stream.sweep(clock.now_s, 30)
    assert stream.active_at == clock.now_s - 1


def test_the_sweep_cuts_off_players_that_take_nothing(stream, clock):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    settle()
    transport.capacity = 0
    stream.video(40, frame())
    settle()
    clock.now_s += 31
    stream.sweep(clock.now_s, 30)
    assert transport.close_reason


def test_a_closed_stream_holds_one_page():
    before = live_pages()
    stream = Stream("live/test", app_options(), CHUNK)
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    for index in range(100):
        stream.video(index * 40, frame("", 10_000))
    assert live_pages() - before > 3
    stream.close()
    assert live_pages() - before == 1


# The timeline -----------------------------------------------------------------------------------------------------------


def test_a_fresh_stream_has_its_publishers_own_time(stream):
    stream.begin(PUBLISHER)
    stream.video(5_000_000, keyframe())
    _, transport = join(stream)
    stream.video(5_000_040, frame())
    stream.audio(5_000_050, audio_frame())
    assert times(transport) == [5_000_000, 5_000_040, 5_000_050]


@pytest.mark.parametrize("graceful", [True, False])
def test_players_who_were_kept_see_time_go_on(stream, clock, graceful):
    stream.begin(PUBLISHER)
    stream.video(1000, keyframe())
    _, transport = join(stream)
    stream.video(2000, frame())
    settle()
    stream.pause()
    if not graceful:
        stream.end()
    clock.now_s += 3
    stream.begin(object())
    stream.video(0, keyframe())
    stream.audio(10, audio_frame())
    stream.video(40, frame())
    assert times(transport) == [1000, 2000, 5000, 5010, 5040]


def test_with_nobody_there_the_next_publisher_starts_its_own_time(stream, clock):
    stream.begin(PUBLISHER)
    stream.video(1000, keyframe())
    subscriber, _ = join(stream)
    settle()
    stream.fanout.leave(subscriber)
    stream.pause()
    clock.now_s += 3
    stream.begin(object())
    stream.video(77, keyframe("new"))
    _, transport = join(stream)
    assert times(transport) == [77]


def test_players_who_only_wait_do_not_keep_the_old_time(stream, clock):
    _, transport = join(stream)
    stream.begin(PUBLISHER)
    stream.video(90_000, frame("no keyframe came"))
    stream.pause()
    clock.now_s += 3
    stream.begin(object())
    stream.video(0, keyframe())
    assert times(transport) == [0]


def test_who_joins_between_two_publishers_gets_one_timeline(stream, clock):
    """Nobody was there, the grace is not over, and the old group of pictures is still in the log."""
    stream.begin(PUBLISHER)
    stream.video(1_000_000, keyframe("old"))
    stream.pause()
    clock.now_s += 1
    stream.begin(object())
    _, transport = join(stream)
    stream.video(0, keyframe("new"))
    stream.video(40, frame())
    shown = times(transport)
    assert shown == sorted(shown)
    assert shown[-1] - shown[0] < GRACE_S * 1000


# Keyframes and join points ----------------------------------------------------------------------------------------------


def test_players_join_at_the_last_keyframe(stream):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe("a"))
    stream.video(40, frame())
    stream.audio(45, audio_frame())
    stream.video(80, keyframe("b"))
    stream.audio(85, audio_frame("1"))
    _, transport = join(stream)
    assert summary(transport) == [keyframe("b"), audio_frame("1")]


def test_players_get_headers_and_metadata_first(stream):
    stream.begin(PUBLISHER)
    stream.video(0, AVC_HEADER)
    stream.audio(0, AAC_HEADER)
    stream.data(RawMessage(MessageType.DATA_AMF0, 1, 0, amf0.encode("@setDataFrame") + METADATA))
    stream.video(0, keyframe())
    _, transport = join(stream)
    assert summary(transport) == [METADATA, AVC_HEADER, AAC_HEADER, keyframe()]


def test_another_publishers_headers_replace_the_old_ones(stream):
    stream.begin(PUBLISHER)
    stream.video(0, AVC_HEADER)
    stream.video(0, keyframe("a"))
    stream.pause()
    stream.begin(object())
    stream.video(0, AVC_HEADER + b"new")
    stream.video(0, keyframe("b"))
    _, transport = join(stream)
    assert summary(transport) == [AVC_HEADER + b"new", keyframe("b")]


def test_an_audio_stream_can_be_joined_each_second(stream):
    stream.begin(PUBLISHER)
    for index in range(100):
        stream.audio(index * 25, audio_frame(str(index)))
    assert stream.wirelog.joins == 3
    _, transport = join(stream)
    assert summary(transport) == [audio_frame(str(index)) for index in range(80, 100)]


def test_audio_before_the_first_video_can_be_joined_and_later_audio_can_not(stream):
    stream.begin(PUBLISHER)
    stream.audio(0, audio_frame("a"))
    stream.video(10, AVC_HEADER)
    for index in range(100):
        stream.audio(20 + index * 25, audio_frame())
    assert stream.wirelog.joins == 1
    stream.video(2600, keyframe())
    assert stream.wirelog.joins == 2


def test_an_audio_header_is_no_place_to_join(stream):
    stream.begin(PUBLISHER)
    stream.audio(0, AAC_HEADER)
    assert stream.wirelog.join_page is None
    _, transport = join(stream)
    stream.audio(0, audio_frame())
    assert summary(transport) == [AAC_HEADER, audio_frame()]


def track_keyframe(track, label):
    """Enhanced RTMP: a keyframe of one track in a multitrack message."""
    return b"\x96\x01avc1" + bytes((track,)) + label.encode()


def test_with_several_tracks_players_join_at_the_lowest(stream):
    stream.begin(PUBLISHER)
    stream.video(0, track_keyframe(2, "c"))
    assert stream.wirelog.joins == 1
    stream.video(0, track_keyframe(1, "b"))
    assert stream.wirelog.joins == 2
    stream.video(40, track_keyframe(2, "c"))
    assert stream.wirelog.joins == 2
    # The lowest of all has the plain header of a single track.
    stream.video(80, keyframe())
    stream.video(80, track_keyframe(1, "b"))
    stream.video(80, track_keyframe(2, "c"))
    assert stream.wirelog.joins == 3
    _, transport = join(stream)
    assert summary(transport) == [keyframe(), track_keyframe(1, "b"), track_keyframe(2, "c")]


def test_another_publisher_may_have_other_tracks(stream):
    stream.begin(PUBLISHER)
    stream.video(0, track_keyframe(0, "a"))
    stream.pause()
    stream.begin(object())
    stream.video(0, track_keyframe(3, "d"))
    assert stream.wirelog.joins == 2


def test_a_group_of_pictures_over_the_limit_is_not_kept(open_stream):
    stream = open_stream(gop_cache_limit_bytes=10_000)
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    for index in range(20):
        stream.video(index * 40, frame("", 1000))
    assert stream.wirelog.join_page is None
    _, transport = join(stream)
    assert summary(transport) == []
    stream.video(800, keyframe("next"))
    assert summary(transport) == [keyframe("next")]


def test_without_the_gop_cache_players_start_at_the_next_keyframe(open_stream):
    stream = open_stream(gop_cache=False)
    stream.begin(PUBLISHER)
    stream.video(0, AVC_HEADER)
    stream.video(0, keyframe("before"))
    _, transport = join(stream)
    stream.video(40, frame("too early"))
    assert summary(transport) == []
    stream.video(80, keyframe("next"))
    stream.video(120, frame("1"))
    assert summary(transport) == [AVC_HEADER, keyframe("next"), frame("1")]


def test_without_the_gop_cache_no_player_starts_at_a_keyframe_that_is_past(open_stream):
    """That somebody waited for one before must not leave it there for those who come later."""
    stream = open_stream(gop_cache=False)
    stream.begin(PUBLISHER)
    _, first = join(stream)
    stream.video(0, keyframe("a"))
    stream.video(40, frame("1"))
    settle()
    _, second = join(stream)
    stream.video(80, frame("2"))
    settle()
    stream.video(120, keyframe("b"))
    settle()
    assert summary(first) == [keyframe("a"), frame("1"), frame("2"), keyframe("b")]
    assert summary(second) == [keyframe("b")]
    _, third = join(stream)
    stream.video(160, frame("3"))
    assert summary(third) == []


def test_without_the_gop_cache_a_player_that_waited_and_left_leaves_nothing_behind(open_stream):
    """It left between the keyframe that it waited for and the pass that would have let it in."""
    before = live_pages()
    stream = open_stream(gop_cache=False)
    stream.begin(PUBLISHER)
    subscriber, _ = join(stream)
    settle()
    stream.video(0, keyframe())
    stream.fanout.leave(subscriber)
    settle()
    for index in range(100):
        stream.video(index * 40, frame("", 10_000))
    assert live_pages() - before == 1


def test_without_the_gop_cache_nothing_is_kept_for_late_joiners(open_stream):
    before = live_pages()
    stream = open_stream(gop_cache=False)
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    for index in range(100):
        stream.video(index * 40, frame("", 10_000))
    assert live_pages() - before == 1


# What is passed on ------------------------------------------------------------------------------------------------------


def test_empty_messages_are_ignored_and_counted(stream):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    stream.audio(10, b"")
    stream.video(10, b"")
    assert summary(transport) == [keyframe()]
    assert (stream.audio_messages, stream.video_messages) == (1, 2)


def test_odd_messages_are_passed_on_and_change_nothing(stream):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    odd = [b"\x17", b"\x57\x01command", b"\x17\x02end of sequence", b"\x97xxx"]
    for payload in odd:
        stream.video(10, payload)
    stream.audio(10, b"\xaf")
    assert summary(transport) == [keyframe(), *odd, b"\xaf"]
    assert stream.wirelog.joins == 1
    assert stream.headers.current.items == ()


def test_everything_is_counted(stream):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe("", 100))
    stream.audio(0, audio_frame("", 50))
    stream.data(data_message("onCuePoint", {}))
    assert (stream.video_messages, stream.audio_messages, stream.data_messages) == (1, 1, 1)
    assert stream.bytes_in == 150 + len(amf0.encode("onCuePoint", {}))


def test_metadata_loses_its_envelope_and_stands_at_time_0(stream):
    stream.begin(PUBLISHER)
    stream.video(900, keyframe())
    _, transport = join(stream)
    stream.data(RawMessage(MessageType.DATA_AMF0, 1, 950, amf0.encode("@setDataFrame") + METADATA))
    settle()
    assert transport.messages()[1:] == [(MessageType.DATA_AMF0, 1, 0, METADATA)]
    stream.video(2000, keyframe("b"))
    _, late = join(stream)
    assert [(m.timestamp, m.payload) for m in late.messages()] == [(0, METADATA), (2000, keyframe("b"))]


def test_metadata_without_an_envelope_is_kept_as_well(stream):
    stream.begin(PUBLISHER)
    stream.data(RawMessage(MessageType.DATA_AMF0, 1, 0, METADATA))
    stream.video(0, keyframe())
    _, transport = join(stream)
    assert summary(transport) == [METADATA, keyframe()]


def test_cleared_metadata_is_forgotten_and_the_order_not_passed_on(stream):
    stream.begin(PUBLISHER)
    stream.data(RawMessage(MessageType.DATA_AMF0, 1, 0, METADATA))
    stream.video(0, keyframe("a"))
    _, transport = join(stream)
    stream.data(data_message("@clearDataFrame", "onMetaData"))
    stream.video(40, keyframe("b"))
    _, late = join(stream)
    assert summary(transport) == [METADATA, keyframe("a"), keyframe("b")]
    assert summary(late) == [keyframe("b")]


def test_other_data_is_passed_on_at_its_time_and_not_kept(stream):
    stream.begin(PUBLISHER)
    stream.video(1000, keyframe())
    _, transport = join(stream)
    stream.data(data_message("onCuePoint", {"name": "x"}, timestamp=1010))
    stream.data(data_message("@setDataFrame", "onTextData", {"text": "x"}, timestamp=1020))
    settle()
    assert transport.messages()[1:] == [
        (MessageType.DATA_AMF0, 1, 1010, amf0.encode("onCuePoint", {"name": "x"})),
        (MessageType.DATA_AMF0, 1, 1020, amf0.encode("onTextData", {"text": "x"})),
    ]
    assert stream.headers.current.items == ()


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\1\2\3"])
def test_timecodes_that_are_no_amf_are_ignored(stream, payload):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    stream.data(RawMessage(MessageType.DATA_AMF0, 1, 0, payload))
    assert summary(transport) == [keyframe()]


def test_amf3_data_is_taken_as_the_amf0_inside(stream):
    stream.begin(PUBLISHER)
    stream.data(RawMessage(MessageType.DATA_AMF3, 1, 0, b"\0" + amf0.encode("@setDataFrame") + METADATA))
    stream.video(0, keyframe())
    _, transport = join(stream)
    settle()
    assert transport.messages()[0] == (MessageType.DATA_AMF0, 1, 0, METADATA)


def test_headers_and_data_do_not_move_the_time(stream):
    stream.begin(PUBLISHER)
    stream.video(500_000, keyframe())
    _, transport = join(stream)
    stream.video(0, AVC_HEADER)
    stream.audio(0, AAC_HEADER)
    stream.video(500_040, frame())
    assert times(transport) == [500_000, 500_000, 500_000, 500_040]


def test_codecs_are_named_as_headers_come(stream):
    stream.begin(PUBLISHER)
    stream.video(0, AVC_HEADER)
    stream.audio(0, AAC_HEADER)
    assert stream.headers.codecs == {"video 0": "h264", "audio 0": "aac"}
    stream.end()
    assert stream.headers.codecs == {}


def test_nobody_is_woken_while_nobody_listens(stream, monkeypatch):
    monkeypatch.setattr(stream.fanout, "wake", lambda: pytest.fail("woken"))
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    stream.audio(0, audio_frame())
    stream.data(data_message("onCuePoint", {}))
    stream.end()


# Options ----------------------------------------------------------------------------------------------------------------


def test_reloaded_options_take_effect_on_a_live_stream(stream, clock):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe())
    _, transport = join(stream)
    stream.reload(app_options(stream.options, publisher_grace_s=1, gop_cache_limit_bytes=2000, lag_limit_bytes=1500))
    assert stream.fanout.options is stream.options.live
    for index in range(5):
        stream.video(index, frame("", 1000))
    assert stream.wirelog.join_page is None
    stream.pause()
    clock.now_s += 1
    stream.sweep(clock.now_s, 30)
    assert summary(transport)[-2:] == END


def test_the_gop_cache_is_switched_off_and_on(stream):
    stream.begin(PUBLISHER)
    stream.video(0, keyframe("a"))
    stream.reload(app_options(stream.options, gop_cache=False))
    _, transport = join(stream)
    assert summary(transport) == []
    stream.reload(app_options(stream.options, gop_cache=True))
    stream.video(40, keyframe("b"))
    _, late = join(stream)
    assert summary(transport)[-1] == summary(late)[-1] == keyframe("b")


def test_a_status_is_a_command_of_its_own(stream):
    command = decode_command(RawMessage(MessageType.COMMAND_AMF0, 1, 0, stream_status("NetStream.Play.X", "text")))
    assert (command.name, command.transaction_id, command.command_object) == ("onStatus", 0, None)
    assert command.arguments[0]["code"] == "NetStream.Play.X"
    assert command.arguments[0]["description"] == "text"
