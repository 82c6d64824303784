"""What happens to players that are too slow, by policy."""

from __future__ import annotations

import pytest

from rtmpd.live.framing import NO_HEADERS
from rtmpd.live.subscriber import State
from rtmpd.phases import CloseKind
from rtmpd.protocol.command import decode_command
from tests.unit.live.fakes import FakeTime, Scene, app_options, audio_frame, keyframe, settle, texts, video_headers

AVC_HEADER = b"\x17\x00\0\0\0\x01\x64\0\x1f\xff\xe1\0\0"
HEADERS = video_headers(AVC_HEADER)
STEP_MS = 40


def disposable(label: str, size: int = 1000) -> bytes:
    """Return a frame that no other frame refers to: one slice with nal_ref_idc 0."""
    body = b"\x01" + label.encode().ljust(size - 10, b"b")
    return b"\x27\x01\0\0\0" + len(body).to_bytes(4, "big") + body


def referenced(label: str, size: int = 1000) -> bytes:
    body = b"\x41" + label.encode().ljust(size - 10, b"p")
    return b"\x27\x01\0\0\0" + len(body).to_bytes(4, "big") + body


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime()
    monkeypatch.setattr("rtmpd.live.fanout.time", made)
    return made


class Stage(Scene):
    """A scene with a healthy player, a slow player and a clock."""

    def __init__(self, clock, message_stream_id=1, **options):
        super().__init__(**options)
        self.clock = clock
        self.log.headers = HEADERS
        self.reports = []
        self.sent = []
        self.send(keyframe("first", 1000))
        self.healthy, self.healthy_transport = self.join()
        self.slow, self.transport = self.join(message_stream_id=message_stream_id)
        self.slow.on_slow = self.reports.append
        settle()
        self.transport.capacity = 0

    def send(self, payload, step_ms=STEP_MS):
        self.sent.append(payload)
        self.video(payload, self.timestamp + step_ms)
        settle(3)

    def flow(self, count, size=1000, step_ms=STEP_MS):
        """Send frames, every second of which is disposable."""
        first = len(self.sent)
        for number in range(first, first + count):
            self.send((disposable if number % 2 else referenced)(str(number), size), step_ms)

    def check(self):
        self.fanout.sweep(self.clock.now_s)

    def got(self):
        """Return the payloads that the slow player has received, without the headers."""
        return [payload for payload in texts(self.transport) if payload != AVC_HEADER]


@pytest.fixture
def stage(clock):
    made = []

    def make(policy="keyframe", **options):
        made.append(Stage(clock, backpressure_policy=policy, **options))
        return made[-1]

    yield make
    for each in made:
        # Whatever happened to the slow player, the healthy one has each message once.
        assert texts(each.healthy_transport)[1:] == each.sent
        assert each.healthy.dropped == each.healthy.skips == 0
        assert each.fanout.counters.dropped == each.slow.dropped
        assert each.fanout.counters.disposed == each.slow.disposed
        assert each.fanout.counters.bytes_sent == len(each.transport.data) + len(each.healthy_transport.data)
        assert each.fanout.sent_bytes(each.slow) == len(each.transport.data)
        each.close()


def without_disposable(payloads):
    return [payload for payload in payloads if payload[9:10] != b"\x01"]


# nonref -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message_stream_id", [1, 7])
def test_from_half_of_the_bounds_on_a_player_gets_no_disposable_frames(stage, message_stream_id):
    scene = stage("nonref", message_stream_id=message_stream_id, lag_limit_bytes=20_000)
    scene.flow(9)
    scene.check()
    assert not scene.slow.thin
    scene.flow(2)
    scene.check()
    assert scene.slow.thin
    scene.transport.take()
    settle()
    # For a player with a framing of its own the first one has been framed by then.
    ahead = 0 if message_stream_id == 1 else 1
    assert scene.got() == scene.sent[: 1 + ahead] + without_disposable(scene.sent[1 + ahead :])
    lost = len(scene.sent) - len(scene.got())
    assert (scene.slow.disposed, scene.slow.dropped, scene.slow.skips) == (lost, lost, 0)
    assert lost == 6 - ahead


def test_frames_are_left_out_by_time_as_well(stage):
    scene = stage("nonref", lag_limit_s=2)
    scene.flow(3, step_ms=400)
    scene.check()
    assert not scene.slow.thin
    scene.flow(1, step_ms=400)
    scene.check()
    assert scene.slow.thin


def test_a_thinned_player_gets_all_frames_again_in_sync(stage):
    scene = stage("nonref", lag_limit_bytes=20_000)
    scene.flow(12)
    scene.check()
    scene.transport.take()
    settle()
    assert scene.slow.state is State.GROUP
    had = len(scene.got())
    scene.flow(4)
    assert scene.got()[had:] == scene.sent[-4:]


def test_a_thinned_player_gets_all_frames_again_below_a_quarter_of_the_bounds_and_not_before(stage):
    scene = stage("nonref", lag_limit_bytes=20_000)
    scene.flow(14)
    scene.check()
    # What it lacks then is 8.5 kB: less than half, more than a quarter.
    scene.transport.take(2500)
    scene.check()
    assert scene.slow.thin
    scene.transport.take(2200)
    scene.check()
    assert not scene.slow.thin
    scene.transport.take()
    settle()
    # The last ones were behind the place at which thinning ended.
    assert scene.got() == without_disposable(scene.sent[:-4]) + scene.sent[-4:]


def test_a_disposable_frame_that_is_half_sent_is_finished(stage):
    scene = stage("nonref", lag_limit_bytes=20_000)
    scene.flow(1)
    first = scene.sent[1]
    assert first == disposable("1")
    scene.transport.take(300)
    scene.flow(12)
    scene.check()
    assert scene.slow.thin
    scene.transport.take()
    settle()
    assert scene.got() == [scene.sent[0], first, *without_disposable(scene.sent[1:])]


def test_beyond_the_bounds_a_thinned_player_skips(stage):
    scene = stage("nonref", lag_limit_bytes=20_000)
    scene.flow(12)
    scene.check()
    scene.flow(12)
    scene.send(keyframe("second", 1000))
    scene.check()
    assert scene.slow.skips == 1
    scene.transport.take()
    settle()
    assert scene.got() == [scene.sent[0], keyframe("second", 1000)]


def test_a_thinned_player_gets_audio_and_data(stage):
    scene = stage("nonref", lag_limit_bytes=20_000)
    for number in range(8):
        scene.flow(2)
        scene.sent.append(audio_frame(str(number), 300))
        scene.audio(scene.sent[-1], scene.timestamp + 1)
        scene.sent.append(b"\x02\x00\x05onCue" + bytes((number,)))
        scene.data(scene.sent[-1], scene.timestamp + 1)
    settle()
    scene.check()
    scene.transport.take()
    settle()
    assert scene.got() == without_disposable(scene.sent)
    assert scene.slow.disposed == 8


def test_headers_that_change_meanwhile_reach_a_thinned_player(stage):
    scene = stage("nonref", lag_limit_bytes=20_000)
    scene.flow(11)
    changed = AVC_HEADER + b"!"
    scene.log.headers = video_headers(changed)
    scene.send(changed)
    scene.flow(4)
    scene.check()
    scene.transport.take()
    settle()
    assert scene.got() == without_disposable(scene.sent)
    assert changed in scene.got()


def test_without_a_sequence_header_no_frames_are_disposable(stage):
    scene = stage("nonref", lag_limit_bytes=20_000)
    scene.log.headers = NO_HEADERS
    scene.flow(12)
    scene.check()
    assert scene.slow.thin
    scene.transport.take()
    settle()
    assert scene.got() == scene.sent
    assert scene.reports == []


def test_other_policies_do_not_look_for_disposable_frames(stage, monkeypatch):
    monkeypatch.setattr("rtmpd.live.log.is_disposable", None)
    for policy in ("keyframe", "disconnect"):
        scene = stage(policy)
        scene.flow(4)
        assert scene.log.tail.disposable == []


def test_the_policy_may_change_while_a_player_lags(stage):
    scene = stage("keyframe", lag_limit_bytes=20_000)
    scene.flow(6)
    scene.fanout.reload(app_options(scene.options, backpressure_policy="nonref"))
    scene.flow(6)
    scene.check()
    assert scene.slow.thin
    scene.transport.take()
    settle()
    # Disposable frames are only noted from the reload on.
    assert scene.got() == scene.sent[:7] + without_disposable(scene.sent[7:])
    scene.transport.capacity = 0
    scene.fanout.reload(app_options(scene.options, backpressure_policy="keyframe"))
    had = len(scene.sent)
    scene.flow(12)
    scene.check()
    assert not scene.slow.thin
    scene.transport.take()
    settle()
    assert scene.got()[-12:] == scene.sent[had:]


def test_the_messages_sent_to_a_thinned_player_are_counted(stage):
    scene = stage("nonref", lag_limit_bytes=20_000)
    scene.flow(12)
    scene.check()
    scene.transport.take()
    settle()
    place = scene.fanout.place_of(scene.slow)
    assert scene.slow.messages_until(*place) == len(scene.got()) == len(scene.sent) - scene.slow.dropped


def test_thinning_begins_at_half_of_max_latency_if_that_is_nearer(stage):
    scene = stage("nonref", lag_limit_s=100, max_latency_s=2)
    scene.flow(4, step_ms=400)
    scene.check()
    assert scene.slow.thin


# disconnect -------------------------------------------------------------------------------------------------------------


def test_beyond_the_bounds_a_player_gets_a_notice_and_is_disconnected(stage):
    scene = stage("disconnect", lag_limit_bytes=5000)
    scene.flow(4)
    scene.check()
    assert not scene.transport.close_reason
    scene.transport.capacity = None
    scene.flow(2)
    scene.check()
    lag = scene.reports[0].lag_bytes
    assert scene.transport.close_reason == (
        f"it was too slow: 0.2 s and {lag} bytes behind; lag_limit_s is 10, lag_limit_bytes is 5000"
    )
    assert scene.transport.close_reason.kind is CloseKind.EXPELLED
    last = decode_command(scene.transport.messages()[-1])
    assert last.name == "onStatus"
    assert last.argument(0)["code"] == "NetStream.Play.InsufficientBW"
    assert last.argument(0)["level"] == "error"
    assert last.message_stream_id == 1
    assert scene.fanout.counters.disconnects == 1
    assert len(scene.fanout) == 1
    assert scene.slow.state is State.REMOVED
    assert scene.fanout.leave(scene.slow) == b""
    scene.flow(3)


def test_a_message_that_is_half_sent_is_finished_before_the_notice(stage):
    scene = stage("disconnect", lag_limit_bytes=5000)
    scene.flow(1)
    scene.transport.take(300)
    scene.transport.capacity = None
    scene.flow(7)
    scene.check()
    assert scene.got()[:2] == scene.sent[:2]
    assert len(scene.got()) == 3


def test_a_player_whose_socket_accepts_nothing_is_disconnected_without_a_notice(stage):
    scene = stage("disconnect", lag_limit_bytes=5000)
    before = bytes(scene.transport.data)
    scene.flow(7)
    scene.check()
    assert scene.transport.close_reason
    assert bytes(scene.transport.data) == before
    assert not scene.transport.watched


def test_a_player_too_long_behind_is_disconnected(stage):
    scene = stage("disconnect", lag_limit_s=2)
    scene.flow(7, step_ms=400)
    scene.check()
    assert "bytes behind; lag_limit_s is 2," in scene.transport.close_reason


def test_a_player_is_disconnected_without_a_join_point_as_well(stage):
    scene = stage("disconnect", lag_limit_bytes=5000)
    scene.log.forget_join_point()
    scene.flow(7)
    scene.check()
    assert scene.transport.close_reason


@pytest.mark.parametrize("policy", ["disconnect", "nonref"])
def test_a_player_that_begins_far_back_is_given_the_time_to_catch_up(stage, policy):
    """The newest keyframe is further back than a player may be."""
    scene = stage(policy, lag_limit_bytes=5000, gop_cache_limit_bytes=1 << 20)
    scene.transport.take()
    scene.flow(20)
    late, transport = scene.join(capacity=500)
    settle()
    scene.check()
    assert not transport.close_reason
    assert not late.thin
    scene.flow(2)
    scene.check()
    assert not transport.close_reason
    scene.flow(4)
    scene.check()
    assert late.thin == (policy == "nonref")
    if policy == "disconnect":
        assert transport.close_reason
    scene.fanout.leave(late)
    scene.fanout.counters.bytes_sent -= len(transport.data)


# max_latency_s ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["keyframe", "nonref", "disconnect"])
def test_a_player_that_is_too_late_is_moved_whatever_the_policy(stage, policy):
    scene = stage(policy, max_latency_s=2)
    scene.flow(6, step_ms=400)
    scene.send(keyframe("second", 1000), 10)
    scene.flow(1, step_ms=10)
    scene.check()
    assert scene.slow.skips == 1
    assert not scene.transport.close_reason
    scene.transport.take()
    settle()
    assert scene.got() == [scene.sent[0], *scene.sent[-2:]]


def test_within_max_latency_no_player_is_moved(stage):
    scene = stage(max_latency_s=2)
    scene.flow(4, step_ms=400)
    scene.send(keyframe("second", 1000), 400)
    scene.check()
    assert scene.slow.skips == 0


def test_a_late_player_that_has_had_the_newest_keyframe_is_not_moved_until_the_next_one(stage):
    """Groups of pictures may be longer than max_latency_s: then there is no nearer keyframe."""
    scene = stage(max_latency_s=2)
    scene.flow(20, step_ms=400)
    scene.check()
    assert (scene.slow.skips, scene.slow.dropped) == (0, 0)
    scene.send(keyframe("second", 1000), 400)
    scene.check()
    assert scene.slow.skips == 1
    scene.flow(20, step_ms=400)
    scene.check()
    # It is late again, and has had the newest keyframe.
    assert scene.slow.skips == 1
    scene.transport.take()
    settle()
    assert scene.got() == [scene.sent[0], *scene.sent[21:]]


def test_without_the_gop_cache_a_late_player_is_moved_to_the_next_keyframe(stage):
    scene = stage(max_latency_s=2, gop_cache=False)
    # There was no player when the first keyframe came.
    scene.fanout.sweep(scene.clock.now_s + 100)
    settle()
    scene.sent.clear()
    scene.send(referenced("a"))
    assert scene.slow.blocked
    scene.flow(6, step_ms=400)
    scene.check()
    assert scene.fanout.wants_keyframe
    assert scene.slow.skips == 0
    scene.send(keyframe("second", 1000), 40)
    assert scene.slow.skips == 1
    assert scene.log.join_page is None
    assert not scene.fanout.wants_keyframe
    scene.flow(2)
    scene.transport.take()
    settle()
    assert scene.got()[-3:] == scene.sent[-3:]


def test_with_policy_disconnect_a_player_is_moved_first_if_max_latency_is_the_smaller_limit(stage):
    scene = stage("disconnect", max_latency_s=2, lag_limit_s=4)
    scene.flow(6, step_ms=400)
    scene.send(keyframe("second", 1000), 40)
    scene.check()
    assert scene.slow.skips == 1
    scene.flow(11, step_ms=400)
    assert scene.transport.close_reason


def test_with_policy_disconnect_a_player_is_disconnected_first_if_the_lag_limit_is_smaller(stage):
    scene = stage("disconnect", max_latency_s=4, lag_limit_s=2)
    scene.log.forget_join_point()
    for number in range(7):
        scene.send(keyframe(str(number), 1000), 400)
    scene.check()
    assert (scene.slow.skips, scene.transport.close_reason != "") == (0, True)


def test_with_policy_disconnect_a_player_beyond_both_limits_at_once_is_disconnected(stage):
    scene = stage("disconnect", max_latency_s=4, lag_limit_s=2)
    scene.flow(1)
    scene.send(keyframe("second", 1000), 5000)
    scene.check()
    assert (scene.slow.skips, scene.transport.close_reason != "") == (0, True)


@pytest.mark.parametrize(("max_latency_s", "within_ms"), [(0.2, 100), (1, 500), (3, 500)])
def test_passes_check_for_lag_often_enough_by_themselves(stage, max_latency_s, within_ms):
    """No sweep of the hub is needed: the growth of the log is enough."""
    scene = stage(max_latency_s=max_latency_s)
    begun = scene.timestamp
    while not scene.slow.skips:
        scene.send(keyframe(str(scene.timestamp), 100), 20)
        assert scene.timestamp - begun <= max_latency_s * 1000 + within_ms + 40


def test_timestamps_never_run_backwards(stage):
    scene = stage("nonref", max_latency_s=1, lag_limit_bytes=20_000)
    for number in range(12):
        scene.flow(5)
        scene.send(keyframe(str(number), 1000))
        scene.transport.take(1500)
    scene.transport.take()
    settle()
    stamps = [message.timestamp for message in scene.transport.messages()]
    assert stamps == sorted(stamps)
    assert scene.slow.skips
    assert scene.slow.disposed


# Relays -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["nonref", "disconnect"])
def test_a_subscriber_that_only_skips_is_neither_thinned_nor_disconnected(stage, policy):
    scene = stage(policy, lag_limit_bytes=20_000)
    scene.slow.skips_only = True
    scene.flow(15)
    scene.check()
    assert not scene.slow.thin
    scene.flow(10)
    scene.send(keyframe("second", 1000))
    scene.check()
    assert not scene.transport.close_reason
    scene.transport.take()
    settle()
    assert scene.got() == [scene.sent[0], scene.sent[-1]]


# Reports ------------------------------------------------------------------------------------------------------------


def test_skips_are_reported_once_until_the_player_has_caught_up(stage):
    scene = stage(lag_limit_bytes=5000)
    for number in range(5):
        scene.flow(7)
        scene.send(keyframe(str(number), 1000))
        scene.check()
        scene.flow(2)
        scene.clock.now_s += 20
        scene.check()
    assert scene.slow.skips == 5
    assert [(each.action, each.policy) for each in scene.reports] == [("skip", "keyframe")]
    assert scene.reports[0].lag_bytes > 7000
    assert scene.reports[0].lag_ms == 7 * STEP_MS
    scene.transport.take()
    settle()
    scene.transport.capacity = 0
    scene.flow(7)
    scene.send(keyframe("again", 1000))
    scene.check()
    assert len(scene.reports) == 2


def test_skips_are_reported_at_most_every_ten_seconds(stage):
    scene = stage(lag_limit_bytes=5000)
    for number in range(30):
        scene.flow(7)
        scene.send(keyframe(str(number), 1000))
        scene.check()
        scene.transport.take()
        settle()
        scene.transport.capacity = 0
        scene.clock.now_s += 1
    assert scene.slow.skips == 30
    assert len(scene.reports) == 3


def test_the_cost_of_a_skip_is_counted_before_it_is_reported(stage):
    scene = stage(lag_limit_bytes=5000)
    seen = []
    scene.slow.on_slow = lambda slow: seen.append((scene.slow.skips, scene.slow.dropped))
    scene.flow(7)
    scene.send(keyframe("second", 1000))
    scene.check()
    assert seen == [(1, 7)]


def test_thinning_is_reported_with_the_first_frame_that_is_left_out(stage):
    scene = stage("nonref", lag_limit_bytes=20_000)
    scene.flow(12)
    scene.check()
    assert scene.reports == []
    scene.transport.take(2000)
    assert [(each.action, each.policy) for each in scene.reports] == [("thin", "nonref")]
    assert scene.reports[0].lag_bytes > 8000
    scene.transport.take()
    assert len(scene.reports) == 1


def test_a_disconnect_is_reported_in_any_case(stage):
    scene = stage("disconnect", max_latency_s=2, lag_limit_s=4)
    scene.flow(6, step_ms=400)
    scene.send(keyframe("second", 1000), 40)
    scene.check()
    scene.flow(11, step_ms=400)
    assert [each.action for each in scene.reports] == ["skip", "disconnect"]


def test_waiting_for_a_keyframe_is_reported_as_a_skip(stage):
    scene = stage(lag_limit_bytes=5000)
    scene.log.forget_join_point()
    scene.flow(7)
    scene.check()
    assert scene.slow.state is State.WAITING
    assert [each.action for each in scene.reports] == ["skip"]
    scene.send(keyframe("second", 1000))
    scene.transport.take()
    settle()
    assert scene.got() == [scene.sent[0], scene.sent[-1]]
    assert scene.slow.dropped == 7


def test_messages_missed_in_a_pause_are_not_counted_as_dropped(stage):
    scene = stage()
    scene.transport.take()
    scene.fanout.pause(scene.slow)
    scene.flow(5)
    scene.send(keyframe("second", 1000))
    scene.fanout.resume(scene.slow)
    settle()
    assert scene.got() == [scene.sent[0], scene.sent[-1]]
    assert scene.slow.dropped == 0
