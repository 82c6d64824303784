"""What a player is sent: joins, leaves, replies, pauses, switches. tests/property/test_fanout.py runs random scripts."""

from __future__ import annotations

import pytest

from rtmpd.live.fanout import PENDING_LIMIT_BYTES
from rtmpd.live.framing import Notice, NoticeKind
from rtmpd.live.rtmp_framing import RtmpSubscriberFraming
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.protocol.chunk import frame_message
from rtmpd.protocol.command import decode_command
from rtmpd.protocol.message import CSID_STATUS, MessageType, UserControlType, user_control
from tests.unit.live.fakes import (
    AVC_HEADER,
    CHUNK,
    FakeTransport,
    Scene,
    audio_frame,
    frame,
    keyframe,
    live_pages,
    parse,
    remove_and_read_on,
    settle,
    texts,
    video_headers,
)

RESET = ConnectionResetError(104, "Connection reset by peer")


@pytest.fixture
def scene():
    made = Scene()
    yield made
    made.close()


# Joining ----------------------------------------------------------------------------------------------------------------


def test_a_player_starts_with_the_headers_and_the_last_keyframe(scene):
    scene.log.headers = video_headers(AVC_HEADER)
    scene.video(keyframe("old"))
    scene.video(frame("old"))
    scene.video(keyframe("new"), 500)
    scene.video(frame("1"), 540)
    _, transport = scene.join()
    assert [(m.timestamp, m.payload) for m in transport.messages()] == [
        (500, AVC_HEADER),
        (500, keyframe("new")),
        (540, frame("1")),
    ]


def test_the_headers_are_those_of_the_join_point_not_the_newest(scene):
    scene.log.headers = video_headers(AVC_HEADER)
    scene.video(keyframe())
    scene.log.headers = video_headers(AVC_HEADER + b"new")
    _, transport = scene.join()
    assert texts(transport) == [AVC_HEADER, keyframe()]


def test_later_messages_reach_players_in_sync(scene):
    scene.video(keyframe())
    players = [scene.join()[1] for _ in range(3)]
    for number in range(10):
        scene.video(frame(str(number)))
        settle(3)
    assert all(texts(each) == [keyframe(), *(frame(str(n)) for n in range(10))] for each in players)


def test_messages_that_came_together_are_sent_together(scene):
    scene.video(keyframe())
    _, transport = scene.join()
    settle()
    sends = transport.sends
    for number in range(50):
        scene.video(frame(str(number)))
    settle()
    assert transport.sends == sends + 1
    assert len(texts(transport)) == 51


def test_without_a_join_point_a_player_waits_for_the_next(scene):
    scene.video(frame("before"))
    _, transport = scene.join()
    scene.video(frame("too early"))
    settle()
    assert not transport.data
    scene.log.headers = video_headers(AVC_HEADER)
    scene.video(keyframe())
    scene.video(frame("1"))
    settle()
    assert texts(transport) == [AVC_HEADER, keyframe(), frame("1")]


def test_a_player_that_joins_before_the_others_got_the_newest_keyframe_gets_it_once(scene):
    scene.video(keyframe("a"))
    _, first = scene.join()
    settle()
    scene.video(keyframe("b"))
    _, second = scene.join()
    scene.video(frame("1"))
    settle()
    assert texts(first) == [keyframe("a"), keyframe("b"), frame("1")]
    assert texts(second) == [keyframe("b"), frame("1")]


def test_a_player_that_accepts_little_at_a_time_gets_all_messages(scene):
    scene.video(keyframe("", 5000))
    _, transport = scene.join(capacity=0)
    for number in range(20):
        scene.video(frame(str(number), 777))
    settle()
    while transport.watched:
        transport.take(100)
        settle(2)
    assert texts(transport) == [keyframe("", 5000), *(frame(str(n), 777) for n in range(20))]


def test_a_player_that_has_caught_up_is_served_in_passes_again(scene):
    scene.video(keyframe())
    scene.join()
    _, slow = scene.join()
    settle()
    slow.capacity = 20
    scene.video(frame("1", 100))
    settle()
    assert slow.watched
    slow.take()
    assert not slow.watched
    scene.video(frame("2"))
    scene.video(frame("3"))
    sends = slow.sends
    settle()
    assert slow.sends == sends + 1
    assert texts(slow) == [keyframe(), frame("1", 100), frame("2"), frame("3")]


def test_a_player_with_another_message_stream_id_gets_the_same_messages_with_its_id(scene):
    scene.log.headers = video_headers(AVC_HEADER)
    scene.video(keyframe("", 10_000), 0xFFFFFFF0)
    _, transport = scene.join(message_stream_id=5)
    scene.log.append_notice(user_control(UserControlType.STREAM_EOF, 1))
    scene.log.append_notice(frame_message(CSID_STATUS, MessageType.COMMAND_AMF0, 1, 0, b"onStatus", CHUNK))
    scene.audio(audio_frame("1"), 0xFFFFFFFF)
    settle()
    assert transport.messages() == [
        (MessageType.VIDEO, 5, 0xFFFFFFF0, AVC_HEADER),
        (MessageType.VIDEO, 5, 0xFFFFFFF0, keyframe("", 10_000)),
        (MessageType.USER_CONTROL, 0, 0, b"\0\1\0\0\0\5"),
        (MessageType.COMMAND_AMF0, 5, 0, b"onStatus"),
        (MessageType.AUDIO, 5, 0xFFFFFFFF, audio_frame("1")),
    ]


def test_the_fan_out_is_active_while_it_has_subscribers(scene):
    assert not scene.fanout.active
    assert len(scene.fanout) == 0
    first, _ = scene.join()
    second, _ = scene.join()
    assert (scene.fanout.active, len(scene.fanout), scene.fanout.has_cursors) == (True, 2, False)
    scene.video(keyframe())
    settle()
    assert (len(scene.fanout), scene.fanout.has_cursors) == (2, True)
    scene.fanout.leave(first)
    assert (scene.fanout.active, len(scene.fanout)) == (True, 1)
    scene.fanout.leave(second)
    assert (scene.fanout.active, len(scene.fanout), scene.fanout.has_cursors) == (False, 0, False)


# Leaving ----------------------------------------------------------------------------------------------------------------


def test_a_player_that_leaves_between_messages_is_owed_nothing_and_gets_nothing(scene):
    scene.video(keyframe())
    subscriber, transport = scene.join()
    settle()
    assert scene.fanout.leave(subscriber) == b""
    scene.video(frame("1"))
    settle()
    assert texts(transport) == [keyframe()]


def test_a_player_that_leaves_inside_a_message_is_owed_its_rest(scene):
    scene.video(keyframe("", 1000))
    scene.video(frame("1"))
    subscriber, transport = scene.join(capacity=400)
    owed = scene.fanout.leave(subscriber)
    assert [m.payload for m in parse(bytes(transport.data) + owed)] == [keyframe("", 1000)]
    assert not transport.watched


@pytest.mark.parametrize("taken", [1, 11, 12, 13, 13 + 3 + 11, 13 + 3 + 12, 1000, 4108, 4109, 5011, 5012])
def test_wherever_a_player_leaves_its_bytes_end_at_a_message_boundary(scene, taken):
    scene.video(keyframe("", 1))
    scene.video(frame("", 5000))
    scene.video(frame("", 50))
    subscriber, transport = scene.join(capacity=taken)
    owed = scene.fanout.leave(subscriber)
    got = [m.payload for m in parse(bytes(transport.data) + owed)]
    whole = [keyframe("", 1), frame("", 5000), frame("", 50)]
    assert got == whole[: len(got)]
    assert len(transport.data) == taken


def test_a_player_that_leaves_is_owed_its_pending_replies(scene):
    scene.video(keyframe("", 1000))
    subscriber, transport = scene.join(capacity=400)
    scene.fanout.write(subscriber, scene.reply("one"))
    scene.fanout.write(subscriber, scene.reply("two"))
    owed = scene.fanout.leave(subscriber)
    assert [m.payload for m in parse(bytes(transport.data) + owed)] == [keyframe("", 1000), b"one", b"two"]


def test_a_waiting_player_that_leaves_is_owed_its_pending_replies(scene):
    subscriber, _ = scene.join(capacity=0)
    scene.fanout.write(subscriber, scene.reply("one"))
    assert scene.fanout.leave(subscriber) == scene.reply("one")


def test_leaving_twice_is_harmless(scene):
    scene.video(keyframe("", 1000))
    subscriber, _ = scene.join(capacity=400)
    assert scene.fanout.leave(subscriber)
    assert scene.fanout.leave(subscriber) == b""
    assert len(scene.fanout) == 0


def test_requests_for_a_player_that_has_left_do_nothing(scene):
    scene.video(keyframe())
    subscriber, transport = scene.join()
    scene.fanout.leave(subscriber)
    scene.fanout.write(subscriber, scene.reply("too late"))
    scene.fanout.pause(subscriber)
    scene.fanout.resume(subscriber)
    scene.receive(subscriber, audio=False, video=False)
    scene.receive(subscriber, video=True)
    scene.video(keyframe("2"))
    settle()
    assert texts(transport) == [keyframe()]
    assert len(scene.fanout) == 0


def test_without_subscribers_only_the_last_page_is_kept(scene):
    """A stream is published for days: a player that once played it must not keep the pages that came since."""
    before = live_pages()
    scene.video(keyframe())
    players = [scene.join()[0], scene.join(capacity=0)[0], scene.join(message_stream_id=2)[0]]
    settle()
    for subscriber in players:
        scene.fanout.leave(subscriber)
    settle()
    for _ in range(500):
        scene.video(keyframe("", 10_000))
    settle()
    assert live_pages() - before <= 1


def test_a_closed_fan_out_keeps_no_page():
    before = live_pages()
    scene = Scene()
    scene.video(keyframe())
    subscriber, _ = scene.join()
    settle()
    scene.fanout.leave(subscriber)
    scene.close()
    del scene
    assert live_pages() == before


# Replies ----------------------------------------------------------------------------------------------------------------


def test_a_reply_comes_between_two_messages(scene):
    scene.video(keyframe("", 1000))
    scene.video(frame("1"))
    subscriber, transport = scene.join(capacity=400)
    scene.fanout.write(subscriber, scene.reply("reply"))
    transport.take()
    assert texts(transport) == [keyframe("", 1000), b"reply", frame("1")]


def test_replies_reach_players_that_wait_or_are_paused_or_in_sync(scene):
    waiting, waiting_transport = scene.join()
    scene.fanout.write(waiting, scene.reply("while it waits"))
    scene.video(keyframe())
    settle()
    in_sync, in_sync_transport = scene.join()
    scene.fanout.write(in_sync, scene.reply("while it is in sync"))
    paused, paused_transport = scene.join()
    scene.fanout.pause(paused)
    scene.fanout.write(paused, scene.reply("while it is paused"))
    scene.video(frame("1"))
    settle()
    assert texts(waiting_transport) == [b"while it waits", keyframe(), frame("1")]
    assert texts(in_sync_transport) == [keyframe(), b"while it is in sync", frame("1")]
    assert texts(paused_transport) == [keyframe(), b"while it is paused"]


def test_replies_keep_their_order_while_the_socket_is_full(scene):
    scene.video(keyframe("", 3000))
    subscriber, transport = scene.join(capacity=100)
    for number in range(5):
        scene.fanout.write(subscriber, scene.reply(f"reply {number}"))
        transport.take(40)
    transport.take()
    assert texts(transport) == [keyframe("", 3000), *(b"reply %d" % n for n in range(5))]


def test_a_player_that_does_not_read_its_replies_is_disconnected():
    scene = Scene(lag_limit_bytes=8 << 20)
    subscriber, transport = scene.join(capacity=0)
    reply = scene.reply("x" * 1000)
    for _ in range(1000):
        scene.fanout.write(subscriber, reply)
        if transport.close_reason:
            break
    assert transport.close_reason.kind is CloseKind.STALLED
    text = f"it does not read the replies to its commands: more than {PENDING_LIMIT_BYTES} bytes wait for it"
    assert transport.close_reason == text
    assert len(subscriber.pending) <= PENDING_LIMIT_BYTES
    assert len(scene.fanout) == 0
    assert scene.fanout.leave(subscriber) == b""
    scene.close()


def test_a_notice_reaches_all_players_once_those_without_a_place_in_the_log_directly(scene):
    scene.video(keyframe())
    _, in_sync = scene.join()
    paused_subscriber, paused = scene.join()
    scene.fanout.pause(paused_subscriber)
    scene.log.forget_join_point()
    _, waiting = scene.join(message_stream_id=4)
    scene.fanout.notify(Notice(NoticeKind.UNPUBLISHED, "The stream has ended."))
    scene.video(frame("1"))
    settle()
    status, end = waiting.messages()
    assert (status.type_id, status.message_stream_id, status.timestamp) == (MessageType.COMMAND_AMF0, 4, 0)
    assert decode_command(status).argument(0)["code"] == "NetStream.Play.UnpublishNotify"
    assert decode_command(status).argument(0)["description"] == "The stream has ended."
    assert end == (MessageType.USER_CONTROL, 0, 0, b"\0\1\0\0\0\4")
    assert texts(paused) == [keyframe(), status.payload, b"\0\1\0\0\0\1"]
    assert texts(in_sync) == [keyframe(), status.payload, b"\0\1\0\0\0\1", frame("1")]


# Pause and switches -----------------------------------------------------------------------------------------------------


def test_a_paused_player_gets_no_media(scene):
    scene.video(keyframe())
    subscriber, transport = scene.join()
    scene.join()
    settle()
    scene.fanout.pause(subscriber)
    scene.video(frame("1"))
    settle()
    scene.video(frame("2"))
    settle()
    assert texts(transport) == [keyframe()]
    assert len(scene.fanout) == 2


def test_a_paused_player_continues_at_the_newest_keyframe(scene):
    scene.video(keyframe("a"))
    subscriber, transport = scene.join()
    settle()
    scene.fanout.pause(subscriber)
    scene.video(frame("missed"))
    scene.video(keyframe("b"))
    scene.video(frame("1"))
    scene.fanout.resume(subscriber)
    scene.video(frame("2"))
    settle()
    assert texts(transport) == [keyframe("a"), keyframe("b"), frame("1"), frame("2")]


def test_a_player_that_pauses_and_resumes_at_once_is_subscribed_once(scene):
    scene.video(keyframe())
    subscriber, transport = scene.join()
    settle()
    scene.fanout.pause(subscriber)
    scene.fanout.resume(subscriber)
    assert len(scene.fanout) == 1
    scene.video(frame("1"))
    settle()
    assert texts(transport) == [keyframe(), keyframe(), frame("1")]


def test_pause_inside_a_message_finishes_it(scene):
    scene.video(keyframe("", 1000))
    scene.video(frame("1"))
    subscriber, transport = scene.join(capacity=400)
    scene.fanout.pause(subscriber)
    transport.take()
    scene.video(frame("2"))
    settle()
    assert texts(transport) == [keyframe("", 1000)]


def test_resume_without_pause_changes_nothing(scene):
    scene.video(keyframe())
    subscriber, transport = scene.join()
    settle()
    scene.fanout.resume(subscriber)
    scene.fanout.pause(subscriber)
    scene.fanout.pause(subscriber)
    scene.fanout.resume(subscriber)
    settle()
    assert texts(transport) == [keyframe(), keyframe()]


def test_a_paused_player_holds_no_pages(scene):
    before = live_pages()
    scene.video(keyframe())
    subscriber, _ = scene.join()
    settle()
    scene.fanout.pause(subscriber)
    for _ in range(300):
        scene.video(keyframe("", 10_000))
        settle(2)
    assert live_pages() - before < 5


def test_a_player_that_switches_audio_off_gets_video_and_data(scene):
    scene.video(keyframe())
    subscriber, transport = scene.join()
    settle()
    scene.receive(subscriber, audio=False)
    scene.audio(audio_frame("1"))
    scene.video(frame("1"))
    scene.data(b"\x02\x00\x05onCue")
    settle()
    scene.receive(subscriber, audio=True)
    scene.audio(audio_frame("2"))
    settle()
    assert texts(transport) == [keyframe(), frame("1"), b"\x02\x00\x05onCue", audio_frame("2")]


def test_video_resumes_with_headers_and_a_keyframe(scene):
    scene.log.headers = video_headers(AVC_HEADER)
    scene.video(keyframe("a"))
    subscriber, transport = scene.join()
    settle()
    scene.receive(subscriber, video=False)
    scene.video(frame("off"))
    scene.log.headers = video_headers(AVC_HEADER + b"new")
    scene.video(keyframe("off"))
    scene.audio(audio_frame("1"))
    settle()
    scene.receive(subscriber, video=True)
    scene.video(frame("too early"))
    scene.video(frame("too early as well"))
    scene.audio(audio_frame("2"))
    scene.video(keyframe("b"))
    scene.video(frame("1"))
    settle()
    assert texts(transport) == [
        AVC_HEADER,
        keyframe("a"),
        audio_frame("1"),
        AVC_HEADER + b"new",
        audio_frame("2"),
        keyframe("b"),
        frame("1"),
    ]


def test_video_resumes_with_headers_at_the_time_of_what_follows_them(scene):
    scene.log.headers = video_headers(AVC_HEADER)
    scene.video(keyframe("a"), 0)
    subscriber, transport = scene.join()
    settle()
    scene.receive(subscriber, video=False)
    scene.receive(subscriber, video=True)
    # All of it comes in one read of the publisher's socket.
    scene.video(frame("too early"), 40)
    scene.audio(audio_frame("1"), 45)
    scene.video(keyframe("b"), 80)
    scene.video(frame("1"), 120)
    settle()
    messages = transport.messages()
    assert [one.payload for one in messages[2:]] == [AVC_HEADER, audio_frame("1"), keyframe("b"), frame("1")]
    assert [one.timestamp for one in messages[2:]] == [40, 45, 80, 120]


def test_a_player_with_audio_and_video_on_again_is_served_in_passes(scene):
    scene.video(keyframe())
    subscriber, transport = scene.join()
    settle()
    scene.receive(subscriber, audio=False, video=False)
    settle()
    scene.receive(subscriber, audio=True, video=True)
    scene.video(keyframe("b"))
    settle()
    sends = transport.sends
    for number in range(20):
        scene.video(frame(str(number)))
    settle()
    assert transport.sends == sends + 1


def test_switching_on_what_is_on_changes_nothing(scene):
    scene.video(keyframe())
    subscriber, transport = scene.join()
    settle()
    scene.receive(subscriber, audio=True, video=True)
    scene.video(frame("1"))
    settle()
    assert texts(transport) == [keyframe(), frame("1")]


def test_a_switch_inside_a_message_finishes_it(scene):
    scene.audio(audio_frame())
    scene.video(keyframe("", 1000))
    scene.video(frame("1"))
    scene.audio(audio_frame("1"))
    subscriber, transport = scene.join(capacity=400)
    scene.receive(subscriber, video=False)
    transport.take()
    assert texts(transport) == [keyframe("", 1000), audio_frame("1")]


# Another transport ------------------------------------------------------------------------------------------------------


def test_a_player_continues_on_another_transport(scene):
    scene.video(keyframe("", 1000))
    scene.video(frame("1"))
    subscriber, old = scene.join(capacity=400)
    new = FakeTransport()
    owed = scene.fanout.change_transport(subscriber, new)
    taken = bytes(old.data)
    scene.video(frame("2"))
    settle()
    assert [m.payload for m in parse(taken + owed + bytes(new.data))] == [keyframe("", 1000), frame("1"), frame("2")]
    assert (bytes(old.data), old.watched) == (taken, False)


def test_a_player_in_sync_changes_its_transport_and_is_owed_nothing(scene):
    scene.video(keyframe())
    subscriber, old = scene.join()
    settle()
    new = FakeTransport()
    assert scene.fanout.change_transport(subscriber, new) == b""
    scene.video(frame("1"))
    settle()
    assert (texts(old), texts(new)) == ([keyframe()], [frame("1")])


def test_pending_replies_are_owed_on_the_old_transport(scene):
    subscriber, _ = scene.join(capacity=0)
    scene.fanout.write(subscriber, scene.reply("one"))
    new = FakeTransport()
    assert scene.fanout.change_transport(subscriber, new) == scene.reply("one")
    scene.video(keyframe())
    settle()
    assert texts(new) == [keyframe()]


# Failures ---------------------------------------------------------------------------------------------------------------


def test_a_failing_socket_removes_only_its_player(scene):
    scene.video(keyframe())
    healthy = [scene.join()[1] for _ in range(3)]
    subscriber, failing = scene.join()
    healthy += [scene.join()[1] for _ in range(3)]
    settle()
    failing.error = RESET
    scene.video(frame("1"))
    settle()
    scene.video(frame("2"))
    settle()
    assert failing.close_reason == "closed by the peer (connection reset)"
    assert failing.close_reason.kind is CloseKind.PEER_LEFT
    assert texts(failing) == [keyframe()]
    assert all(texts(each) == [keyframe(), frame("1"), frame("2")] for each in healthy)
    assert len(scene.fanout) == 6
    assert scene.fanout.leave(subscriber) == b""


@pytest.mark.parametrize("deed", ["join", "write", "resume", "unblock", "receive"])
def test_a_socket_may_fail_at_any_time(scene, deed):
    scene.video(keyframe("", 500))
    _, healthy = scene.join()
    if deed == "join":
        transport = FakeTransport()
        transport.error = RESET
        scene.fanout.join(scene.subscriber(transport))
    else:
        subscriber, transport = scene.join(capacity=100 if deed == "unblock" else None)
        settle()
        if deed == "resume":
            scene.fanout.pause(subscriber)
        transport.error = RESET
        if deed == "write":
            scene.fanout.write(subscriber, scene.reply("reply"))
        elif deed == "resume":
            scene.fanout.resume(subscriber)
        elif deed == "unblock":
            transport.take()
        else:
            scene.receive(subscriber, audio=False)
    scene.video(frame("1"))
    settle()
    assert transport.close_reason == "closed by the peer (connection reset)"
    assert not transport.watched
    assert len(scene.fanout) == 1
    assert texts(healthy) == [keyframe("", 500), frame("1")]


def test_the_sockets_of_all_players_may_fail_at_once(scene):
    scene.video(keyframe())
    transports = [scene.join()[1] for _ in range(100)]
    settle()
    for each in transports:
        each.error = RESET
    scene.video(frame("1"))
    settle()
    assert all(each.close_reason for each in transports)
    assert (len(scene.fanout), scene.fanout.active) == (0, False)
    _, transport = scene.join()
    scene.video(frame("2"))
    settle()
    assert texts(transport) == [keyframe(), frame("1"), frame("2")]


def test_an_error_in_the_framing_of_a_player_closes_only_its_connection(scene, caplog, monkeypatch):
    scene.video(keyframe())
    _, healthy = scene.join()
    broken, transport = scene.join(message_stream_id=2)
    settle()
    monkeypatch.setattr(RtmpSubscriberFraming, "message", lambda framing, message: 1 / 0)
    scene.video(frame("1"))
    settle()
    assert transport.close_reason == "internal error"
    assert transport.close_reason.kind is CloseKind.INTERNAL
    assert f"internal error while {broken.label} was served: its connection is closed" in caplog.text
    assert texts(transport) == [keyframe()]
    assert texts(healthy) == [keyframe(), frame("1")]
    assert len(scene.fanout) == 1


def test_the_connections_of_all_subscribers_may_be_closed(scene):
    scene.video(keyframe())
    in_sync, lagging, paused = scene.join(), scene.join(message_stream_id=2), scene.join()
    scene.fanout.pause(paused[0])
    scene.log.forget_join_point()
    waiting = scene.join()
    assert set(scene.fanout.subscribers()) == {each for each, _ in (in_sync, lagging, paused, waiting)}
    scene.fanout.close_connections(CloseReason(CloseKind.INTERNAL, "internal error"))
    assert [transport.close_reason for _, transport in (in_sync, lagging, paused, waiting)] == ["internal error"] * 4
    assert (len(scene.fanout), scene.fanout.active) == (0, False)


# Places in the log ----------------------------------------------------------------------------------------------------


def test_the_place_of_a_player_in_sync_is_that_of_the_group(scene):
    scene.video(keyframe("a"))
    subscriber, transport = scene.join()
    settle()
    scene.video(frame("1"))
    assert texts(remove_and_read_on(scene, subscriber, transport)) == [keyframe("a"), frame("1")]


def test_the_place_of_a_lagging_player_is_behind_the_message_that_is_half_sent(scene):
    scene.video(keyframe("a"))
    subscriber, transport = scene.join()
    settle()
    transport.capacity = 20
    scene.video(frame("half sent", 1000))
    scene.video(frame("1"))
    settle()
    assert texts(remove_and_read_on(scene, subscriber, transport)) == [keyframe("a"), frame("half sent", 1000), frame("1")]


def test_a_waiting_player_has_no_place(scene):
    subscriber, _ = scene.join()
    assert scene.fanout.place_of(subscriber) == (None, 0)
    scene.fanout.leave(subscriber)
    assert scene.fanout.place_of(subscriber) == (None, 0)


def test_a_player_that_must_not_begin_before_a_position_waits_for_the_next_keyframe(scene):
    scene.video(keyframe("old"))
    position = scene.log.position
    scene.video(frame("1"))
    transport = FakeTransport()
    scene.fanout.join(scene.subscriber(transport), position)
    settle()
    assert texts(transport) == []
    scene.video(keyframe("new"))
    settle()
    assert texts(transport) == [keyframe("new")]


def test_sent_and_dropped_messages_are_counted():
    scene = Scene(lag_limit_bytes=5000)
    for number in range(20):
        scene.video(frame(str(number), 1000))  # several pages
    scene.video(keyframe("a"))
    subscriber, transport = scene.join()
    settle()
    assert subscriber.messages_until(*scene.fanout.place_of(subscriber)) == 1
    transport.capacity = 20
    scene.video(frame("half sent", 1000))
    for number in range(9):
        scene.video(frame(str(number), 1000))
    scene.video(keyframe("b"))
    settle()
    scene.fanout.sweep(scene.options.backpressure.lag_limit_s)
    transport.take()
    settle()
    assert texts(transport) == [keyframe("a"), frame("half sent", 1000), keyframe("b")]
    assert (subscriber.skips, subscriber.dropped) == (1, 9)
    assert subscriber.messages_until(*scene.fanout.place_of(subscriber)) == 3
    scene.fanout.leave(subscriber)
    assert subscriber.messages == 3
    scene.close()


def test_a_subscriber_may_have_a_write_timeout_of_its_own(scene):
    scene.video(keyframe("a"))
    one, other = scene.join(capacity=0), scene.join(capacity=0)
    one[0].write_timeout_s = 3
    begun = one[0].progress_at
    scene.fanout.sweep(begun + 4, 30)
    assert one[1].close_reason == "it took nothing for 3 s"
    assert other[1].close_reason == ""


# Counting ---------------------------------------------------------------------------------------------------------------


def test_bytes_are_counted_per_player_and_together(scene):
    scene.video(keyframe("", 1000))
    fast, fast_transport = scene.join()
    slow, slow_transport = scene.join(capacity=500)
    other, other_transport = scene.join(message_stream_id=2)
    paused, paused_transport = scene.join()
    settle()
    scene.fanout.pause(paused)
    scene.video(frame("", 300))
    scene.fanout.write(fast, scene.reply("reply"))
    settle()
    slow_transport.take(700)
    settle()
    failing, failing_transport = scene.join()
    settle()
    failing_transport.error = RESET
    scene.video(frame("", 400))
    settle()
    pairs = [
        (fast, fast_transport),
        (slow, slow_transport),
        (other, other_transport),
        (paused, paused_transport),
        (failing, failing_transport),
    ]
    for subscriber, transport in pairs:
        assert scene.fanout.sent_bytes(subscriber) == len(transport.data)
    assert len(slow_transport.data) == 1200
    assert scene.fanout.counters.bytes_sent == sum(len(transport.data) for _, transport in pairs)
    for subscriber, transport in pairs:
        scene.fanout.leave(subscriber)
        assert scene.fanout.sent_bytes(subscriber) == len(transport.data)


def test_headers_and_long_messages_are_framed_with_the_chunk_size_of_the_log():
    scene = Scene(chunk_size=128)
    scene.log.headers = video_headers(AVC_HEADER.ljust(1000, b"x"))
    scene.video(keyframe("", 3000), 0x1000000)
    _, transport = scene.join()
    _, other = scene.join(message_stream_id=9)
    expected = [AVC_HEADER.ljust(1000, b"x"), keyframe("", 3000)]
    assert texts(transport, 128) == texts(other, 128) == expected
    assert CHUNK != 128
    scene.close()
