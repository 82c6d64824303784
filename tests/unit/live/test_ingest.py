from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rtmpd.live.framing import AUDIO, DATA, VIDEO
from rtmpd.live.lane import Mode
from rtmpd.live.selection import Cause, SourceRole
from rtmpd.live.splice import signed
from rtmpd.media.slate import Slate, SlateMessage
from rtmpd.phases import StreamPhase
from rtmpd.protocol import amf0
from tests.unit.live.encoders import Encoder, Reader, check, longest_step_ms, names, run
from tests.unit.live.fakes import AVC_HEADER, FakeTime, app_options, close_stream, live_pages, new_stream, settle

PRIMARY, BACKUP = SourceRole.PRIMARY, SourceRole.BACKUP
OTHER_HEADER = AVC_HEADER + b"other"


class Room:
    """A stream on a clock of its own, and what it announces.

    Attributes:
        switches: The changes of the active source.
        stopped: The reasons for which the stream was no longer live.
        watched: Whether the stream has asked to be watched.
    """

    def __init__(self, clock, **options):
        self.clock = clock
        self.switches, self.stopped, self.watched = [], [], False
        self.slate = None
        options = {"match_copies": False, "stall_timeout_s": 1.0, "failback_after_s": 5.0, **options}
        self.stream = new_stream(
            options=app_options(**options),
            on_switch=lambda stream, switch, first: self.switches.append(switch),
            on_live_stop=lambda stream, reason: self.stopped.append(reason),
            watch=self._watch,
            slates=lambda path: self.slate,
        )

    def _watch(self, stream):
        self.watched = True

    def encoder(self, name, role=PRIMARY, **more):
        return Encoder(self.clock, self.stream, name, role, **more)

    def run(self, seconds, *encoders):
        run(self.clock, self.stream, seconds, *encoders)

    @property
    def active(self):
        lane = self.stream.ingest.active
        return lane.source if lane is not None else None

    @property
    def causes(self):
        return [each.cause for each in self.switches]


class Viewer:
    number = 1

    def revise(self, decisions):
        pass

    def ended(self):
        pass


def make_slate(count=10):
    key = SlateMessage(VIDEO, 0, b"\x17\x01\x00\x00\x00slate 0 0 ")
    frames = [SlateMessage(VIDEO, 40 * n, b"\x27\x01\x00\x00\x00slate %d 0 " % n) for n in range(1, count)]
    return Slate(((VIDEO, AVC_HEADER + b"slate"),), (key, *frames), 40 * count, "a slate", 100, None, None, 25.0)


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime()
    for module in ("stream", "source", "fanout", "ingest"):
        monkeypatch.setattr(f"rtmpd.live.{module}.time", made)
    return made


@pytest.fixture
def make(clock):
    made = []

    def open_room(**options):
        made.append(Room(clock, **options))
        return made[-1]

    yield open_room
    for room in made:
        room.stream.ingest.stop_slate()
        close_stream(room.stream)


# One source -------------------------------------------------------------------------------------------------------------


def test_a_source_that_is_alone_feeds_its_stream_directly(make):
    room = make()
    one = room.encoder("one")
    reader = Reader(room.stream)
    room.run(2, one)
    assert room.causes == [Cause.FIRST]
    assert one.source.feeds(room.stream)
    assert not room.watched
    check(reader.frames())


def test_a_publisher_that_returns_continues_with_its_first_keyframe_and_without_headers(make):
    room = make()
    one = room.encoder("one")
    reader = Reader(room.stream)
    room.run(2, one)
    one.leave()
    assert room.stream.phase is StreamPhase.GRACE
    room.run(3)
    before = len(reader.headers())
    two = room.encoder("two", base_ms=3_600_000)
    room.run(5, two)
    assert len(reader.headers()) == before
    frames = reader.frames()
    check(frames)
    assert names(frames) == ["one", "two"]
    assert room.causes == [Cause.FIRST, Cause.RETURN]
    assert 2900 <= longest_step_ms(frames) <= 3200
    # Alone, it feeds the stream directly again.
    assert two.source.feeds(room.stream)
    assert room.stream.timeline is two.source.timeline


def test_changed_headers_are_sent_before_the_keyframe(make):
    room = make()
    one = room.encoder("one")
    reader = Reader(room.stream)
    room.run(1, one)
    one.leave()
    two = room.encoder("two", headers=(OTHER_HEADER,))
    room.run(2, two)
    messages = reader.messages()
    header = next(n for n, each in enumerate(messages) if each[2] == OTHER_HEADER)
    keyframe = next(n for n, each in enumerate(messages) if each[2][5:8] == b"two")
    assert header < keyframe
    assert signed(messages[keyframe][1] - messages[header][1]) >= 0
    assert room.switches[-1].headers_changed
    assert OTHER_HEADER in [payload for _, payload in room.stream.headers.items]


def test_a_publisher_that_returns_without_readers_begins_afresh(make):
    room = make()
    one = room.encoder("one")
    room.run(1, one)
    one.leave()
    two = room.encoder("two", base_ms=5000)
    assert room.active is two.source
    room.run(1, two)
    assert room.stream.published.log.newest_timestamp >= 5000


def test_a_returning_publisher_that_never_sends_a_keyframe_continues_after_some_time(make):
    room = make(keyframe_wait_s=2.0)
    one = room.encoder("one")
    reader = Reader(room.stream)
    room.run(1, one)
    one.leave()
    two = room.encoder("two", gop=0)
    room.run(1.5, two)
    assert room.active is None
    room.run(2, two)
    assert room.active is two.source
    assert names(reader.frames()) == ["one", "two"]


# Failover ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base_ms", [0, 3_600_000, (1 << 32) - 2500])
def test_a_backup_takes_over_at_once_when_the_primary_ends(make, base_ms):
    room = make()
    one = room.encoder("one")
    reader = Reader(room.stream)
    room.run(1.3, one)
    two = room.encoder("two", BACKUP, base_ms=base_ms)
    room.run(3.3, one, two)
    assert room.active is one.source
    assert names(reader.frames()) == ["one"]
    one.leave()
    assert room.active is two.source
    room.run(3, two)
    frames = reader.frames()
    check(frames)
    assert names(frames) == names(frames, AUDIO) == ["one", "two"]
    assert longest_step_ms(frames) <= 120
    assert longest_step_ms(frames, AUDIO) <= 60
    assert room.causes == [Cause.FIRST, Cause.FAILOVER]
    assert room.switches[-1].reason == "the publisher left"
    assert room.switches[-1].gap_ms == 0
    assert room.stream.phase is StreamPhase.LIVE
    # Content stays at its time: both encoders are live.
    offsets = {each.timestamp - each.content_ms for each in frames if each.name == "one"}
    later = {each.timestamp - each.content_ms for each in frames[-50:]}
    assert abs(max(later) - max(offsets)) <= 60


def test_a_stalled_primary_is_replaced_within_its_timeout_and_returns(make):
    room = make(stall_timeout_s=0.5, failback_after_s=5.0)
    one = room.encoder("one")
    reader = Reader(room.stream)
    two = room.encoder("two", BACKUP)
    room.run(3, one, two)
    one.muted = True
    room.run(0.45, one, two)
    assert room.active is one.source or room.causes[-1] is Cause.FAILOVER
    room.run(0.1, one, two)
    assert room.active is two.source
    assert room.causes[-1] is Cause.FAILOVER
    one.muted = False
    room.run(4.5, one, two)
    assert room.active is two.source
    room.run(3, one, two)
    assert room.active is one.source
    assert room.causes[-1] is Cause.FAILBACK
    room.run(3, one, two)
    frames = reader.frames()
    check(frames)
    assert names(frames) == ["one", "two", "one"]


@pytest.mark.parametrize("failback", ["manual", "never"])
def test_without_failback_the_backup_stays_until_an_operator_or_its_end_changes_that(make, failback):
    room = make(failback=failback)
    one, two = room.encoder("one"), room.encoder("two", BACKUP)
    reader = Reader(room.stream)
    room.run(2, one, two)
    one.muted = True
    room.run(1.5, one, two)
    one.muted = False
    room.run(20, one, two)
    assert room.active is two.source
    assert room.stream.ingest.request(one.source.number)
    assert room.active is one.source
    assert room.causes[-1] is Cause.MANUAL
    assert not room.stream.ingest.request(10**9)
    room.run(2, one, two)
    check(reader.frames())


def test_a_standby_that_has_sent_no_keyframe_takes_over_at_its_first(make):
    room = make()
    one = room.encoder("one")
    reader = Reader(room.stream)
    room.run(2, one)
    two = room.encoder("two", BACKUP)
    two.loses = lambda type_id, number: type_id == VIDEO and number == 0
    room.run(0.5, one, two)
    one.leave()
    assert room.active is None
    assert room.stream.phase is StreamPhase.LIVE
    room.run(1, two)
    assert room.active is two.source
    frames = reader.frames()
    check(frames)
    assert names(frames) == ["one", "two"]
    assert frames[-1].timestamp > 3000


def test_both_may_end_at_once(make):
    room = make()
    one, two = room.encoder("one"), room.encoder("two", BACKUP)
    Reader(room.stream)
    room.run(2, one, two)
    one.leave()
    two.leave()
    assert room.stream.phase is StreamPhase.GRACE
    room.stream.end("over")
    assert room.stream.phase is StreamPhase.IDLE
    assert room.stopped == ["over"]


def test_a_third_publisher_stands_by_and_serves_last(make):
    room = make()
    encoders = [room.encoder("one"), room.encoder("two", BACKUP), room.encoder("three", BACKUP)]
    reader = Reader(room.stream)
    room.run(2, *encoders)
    encoders.pop(0).leave()
    room.run(2, *encoders)
    encoders.pop(0).leave()
    room.run(2, *encoders)
    frames = reader.frames()
    check(frames)
    assert names(frames) == ["one", "two", "three"]


def test_a_primary_that_comes_and_goes_every_second_does_no_harm(make):
    room = make()
    two = room.encoder("two", BACKUP)
    reader = Reader(room.stream)
    room.run(2, two)
    for number in range(10):
        one = room.encoder(f"one{number}")
        room.run(1, one, two)
        one.leave()
    assert names(reader.frames()) == ["two"]
    check(reader.frames())


def test_an_active_source_that_stalls_every_second_leads_to_few_switches(make):
    room = make(stall_timeout_s=0.3)
    one, two = room.encoder("one"), room.encoder("two", BACKUP)
    reader = Reader(room.stream)
    room.run(2, one, two)
    for _ in range(15):
        one.muted = True
        room.run(0.5, one, two)
        one.muted = False
        room.run(0.5, one, two)
    check(reader.frames())
    assert names(reader.frames()) == ["one", "two"]


def test_a_stream_that_is_alone_and_then_not_is_not_taken_for_a_frozen_one(make):
    """Sizes are not observed of a source that is alone."""
    room = make(frozen_timeout_s=1.0, silence_timeout_s=1.0, failover_hold_s=0.0)
    room.slate = make_slate()
    room.stream.options = app_options(
        frozen_timeout_s=1.0, silence_timeout_s=1.0, failover_hold_s=0.0, slate_file="/slate.flv", match_copies=False
    )
    room.stream.reload(room.stream.options)
    one = room.encoder("one", fps=5, gop=10, audio=False)
    room.stream.players.add(Viewer())
    Reader(room.stream)
    room.run(5, one)
    two = room.encoder("two", BACKUP)
    room.run(2, one, two)
    assert room.active is one.source
    room.stream.players.clear()


def test_a_publisher_that_is_removed_just_after_another_came_causes_no_failover(make):
    room = make()
    one = room.encoder("one")
    Reader(room.stream)
    room.run(30, one)
    two, three = room.encoder("two", BACKUP), room.encoder("three", BACKUP)
    two.step()
    three.leave()
    assert room.active is one.source
    assert room.causes == [Cause.FIRST]


# Codecs, rates and clocks -----------------------------------------------------------------------------------------------


def test_audio_alone_takes_over_and_gives_way(make):
    room = make()
    one, two = room.encoder("one", fps=0), room.encoder("two", BACKUP, fps=0, base_ms=77_777)
    reader = Reader(room.stream)
    room.run(3, one, two)
    one.leave()
    room.run(3, two)
    frames = reader.frames()
    check(frames)
    assert names(frames, AUDIO) == ["one", "two"]
    assert longest_step_ms(frames, AUDIO) <= 60


def test_a_source_with_video_follows_one_without_and_the_reverse(make):
    room = make()
    one, two = room.encoder("one", fps=0), room.encoder("two", BACKUP, audio=False)
    reader = Reader(room.stream)
    room.run(3, one, two)
    one.leave()
    room.run(2, two)
    three = room.encoder("three", BACKUP, fps=0)
    room.run(3, two, three)
    two.leave()
    room.run(3, three)
    frames = reader.frames()
    check(frames)
    assert names(frames, AUDIO) == ["one", "three"]
    assert names(frames) == ["two"]
    times = [each.timestamp for each in frames]
    assert max(before - after for before, after in pairwise(times)) <= 60


def test_sources_with_other_codecs_and_frame_rates_follow_each_other(make):
    room = make()
    one = room.encoder("one", fps=60, gop=240)
    two = room.encoder("two", BACKUP, fps=24, gop=48, headers=(OTHER_HEADER,))
    reader = Reader(room.stream)
    room.run(5.3, one, two)
    one.leave()
    room.run(5, two)
    three = room.encoder("three", fps=60, gop=30)
    room.run(12, two, three)
    frames = reader.frames()
    check(frames)
    assert names(frames) == ["one", "two", "three"]
    assert reader.headers().count(OTHER_HEADER) == 1


@pytest.mark.parametrize("latency_s", [0.0, 2.0])
def test_clocks_that_are_apart_and_drift_leave_no_step(make, latency_s):
    """An hour apart, and 100 ms a minute."""
    room = make(failback_after_s=1.0)
    one = room.encoder("one", base_ms=3_600_000, speed=1 + 0.1 / 60)
    two = room.encoder("two", BACKUP, speed=1 - 0.1 / 60, latency_s=latency_s)
    reader = Reader(room.stream)
    for _ in range(4):
        room.run(15, one, two)
        one.muted = True
        room.run(4, one, two)
        one.muted = False
        one.source.video(0, AVC_HEADER)
    frames = reader.frames()
    check(frames, whole=False)
    assert names(frames)[:3] == ["one", "two", "one"]
    # Never further ahead of the time than it may be, and never left behind.
    elapsed_ms = frames[-1].content_ms - frames[0].content_ms
    assert abs(signed(frames[-1].timestamp - frames[0].timestamp) - elapsed_ms) < 2500
    assert longest_step_ms(frames) <= 1300 + latency_s * 1000


@pytest.mark.parametrize("align", [True, False])
def test_a_clock_in_the_content_aligns_two_encoders(make, align):
    """The backup's frames come 700 ms later; where both tell their time that is no error."""
    room = make(align_clocks=align)
    one, two = room.encoder("one"), room.encoder("two", BACKUP, latency_s=0.7)
    reader = Reader(room.stream)
    for _ in range(6):
        room.run(1, one, two)
        for each in (one, two):
            media_s = room.clock.now_s - each.began_s - each.latency_s
            at_ms = round((each.began_s + media_s) * 1000) % 86_400_000
            text = f"{at_ms // 3_600_000:02}:{at_ms // 60_000 % 60:02}:{at_ms // 1000 % 60:02}.{at_ms % 1000:03}"
            each.source.data(each.base_ms + round(media_s * 1000), amf0.encode("onFI", {"sd": "29-11-2026", "st": text}))
    one.muted = True
    room.run(4, one, two)
    frames = reader.frames()
    check(frames)
    assert names(frames) == ["one", "two"]
    moved = (frames[-1].timestamp - frames[-1].content_ms) - (frames[0].timestamp - frames[0].content_ms)
    assert abs(moved) <= 5 if align else 600 <= moved <= 800


# Copies -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copies(make):
    """Return a function that makes a stream with two copies, the second one later by a latency, and lets them be found."""

    def begin(latency_s=0.3, **options):
        room = make(match_copies=True, stall_timeout_s=2.0, **options)
        one = room.encoder("same", size=600)
        reader = Reader(room.stream)
        two = room.encoder("same", BACKUP, base_ms=500_000, latency_s=latency_s, size=600)
        room.run(6 + latency_s, one, two)
        return room, reader, one, two

    return begin


def assert_no_frame_is_missing(frames):
    check(frames)
    for type_id in (AUDIO, VIDEO):
        numbers = [each.number for each in frames if each.type_id == type_id]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize("leaves", ["leader", "follower"])
@pytest.mark.parametrize("latency_s", [0.0, 0.3, 1.5])
def test_the_end_of_a_copy_is_not_noticed(copies, latency_s, leaves):
    room, reader, one, two = copies(latency_s)
    assert room.stream.ingest.copies_joined == 1
    gone, other = (one, two) if leaves == "leader" else (two, one)
    gone.leave()
    room.run(latency_s + 5, other)
    assert_no_frame_is_missing(reader.frames())
    assert room.active is other.source
    # It has caught up, and is alone.
    assert other.source.feeds(room.stream)
    assert not room.stream.ingest.copies


def test_an_active_copy_that_follows_goes_on_when_the_leader_ends(copies):
    room, reader, one, two = copies(1.5)
    room.stream.ingest.request(two.source.number)
    assert room.active is two.source
    room.run(1, one, two)
    one.leave()
    room.run(5, two)
    assert_no_frame_is_missing(reader.frames())


def test_what_one_copy_loses_the_other_brings(copies):
    room, reader, one, two = copies(0.2)
    one.loses = lambda type_id, number: number % 50 in range(10, 20)
    two.loses = lambda type_id, number: number % 50 in range(30, 40)
    room.run(10, one, two)
    one.loses = two.loses = lambda type_id, number: False
    room.run(2, one, two)
    assert_no_frame_is_missing(reader.frames())
    assert room.stream.ingest.merged.filled >= 0


def test_a_copy_that_stalls_is_replaced_and_returns_without_a_trace(copies):
    room, reader, one, two = copies(0.1)
    one.muted = True
    room.run(4, one, two)
    assert room.active is two.source
    one.muted = False
    room.run(8, one, two)
    assert_no_frame_is_missing(reader.frames())


def test_a_copy_that_sends_other_frames_is_one_no_longer(copies):
    room, reader, one, two = copies(0.1)
    two.name = "other"
    room.run(3, one, two)
    assert room.stream.ingest.copies_broken == 1
    assert room.stream.ingest.lane_of(two.source).mode is Mode.STANDBY
    assert room.active is one.source
    assert names(reader.frames()) == ["same"]
    one.leave()
    room.run(3, two)
    frames = reader.frames()
    check(frames)
    assert names(frames) == ["same", "other"]


def test_a_copy_whose_frame_differs_once_stays_one(copies):
    room, reader, one, two = copies(0.1)
    room.run(0.1, one, two)
    two.source.video(500_000 + round((room.clock.now_s - two.began_s - 0.1) * 1000), b"\x27\x01\x00\x00\x00same 99 0 damaged")
    room.run(3, one, two)
    assert room.stream.ingest.copies_broken == 0
    check(reader.frames(), whole=False)


def test_a_copy_that_is_5_s_behind_is_found(copies):
    room, reader, one, _ = copies(5.0)
    assert room.stream.ingest.copies_joined == 1
    one.leave()
    check(reader.frames())


def test_a_header_that_changes_in_copies_is_sent_once(copies):
    room, reader, one, two = copies(0.2)
    before = room.stream.headers
    for each in (one, two):
        each.source.video(each.base_ms + 7000, OTHER_HEADER)
        room.run(0.2, one, two)
    room.run(1, one, two)
    assert reader.headers().count(OTHER_HEADER) == 1
    assert room.stream.headers is not before
    assert OTHER_HEADER in [payload for _, payload in room.stream.headers.items]


# Slates -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slated(make):
    """Return a function that makes a stream with a slate and a viewer."""

    def begin(**options):
        room = make(slate_file="/slate.flv", **options)
        room.slate = make_slate()
        room.stream.players.add(Viewer())
        room.stream.output()
        return room

    return begin


def test_a_slate_plays_for_viewers_until_a_publisher_sends_a_keyframe(slated):
    room = slated()
    reader = Reader(room.stream)
    assert room.watched
    room.run(0.1)
    assert room.stream.phase is StreamPhase.SLATE
    assert not room.stream.live
    assert room.causes == [Cause.SLATE]
    one = room.encoder("one")
    room.run(1, one)
    assert room.stream.phase is StreamPhase.LIVE
    assert room.active is one.source
    frames = reader.frames()
    check(frames, whole=False)
    assert names(frames) == ["slate", "one"]
    assert len(room.stream.ingest.lanes) == 1
    room.stream.players.clear()


def test_a_slate_covers_a_stalled_publisher(slated):
    room = slated()
    one = room.encoder("one")
    reader = Reader(room.stream)
    room.run(2, one)
    one.muted = True
    room.run(1.2, one)
    assert room.active is not one.source
    assert room.stream.phase is StreamPhase.LIVE
    one.muted = False
    room.run(2, one)
    assert names(reader.frames()) == ["one", "slate", "one"]
    check(reader.frames(), whole=False)
    room.stream.players.clear()


def test_a_slate_ends_with_the_last_viewer(slated):
    room = slated()
    room.run(0.1)
    assert room.stream.phase is StreamPhase.SLATE
    room.stream.players.clear()
    room.run(0.1)
    assert room.stream.phase is StreamPhase.IDLE
    assert room.stream.idle
    assert not room.stream.tick(room.clock.now_s)


def test_a_slate_goes_on_when_its_stalled_publisher_ends(slated):
    """Readers that come later need its headers."""
    room = slated(publisher_grace_s=10)
    one = room.encoder("one")
    Reader(room.stream)
    room.run(1, one)
    one.muted = True
    room.run(1.2, one)
    room.stream.wait_for_source(lost=False, reason="it ended")
    assert room.stopped == ["it ended"]
    assert room.stream.published.log.headers.items == ((VIDEO, AVC_HEADER + b"slate"),)
    room.run(0.2)
    room.stream.end()
    assert room.stream.phase is StreamPhase.SLATE
    room.stream.players.clear()


@pytest.mark.parametrize("removed", [True, False])
def test_a_reload_replaces_or_removes_a_slate_that_plays(slated, removed):
    room = slated()
    reader = Reader(room.stream)
    room.run(0.1)
    before = room.active
    room.slate = None if removed else make_slate(20)
    room.stream.reload(room.stream.options)
    room.run(0.1)
    assert room.active is not before
    assert room.stream.phase is (StreamPhase.IDLE if removed else StreamPhase.SLATE)
    check([each for each in reader.frames() if each.type_id != DATA][-1:])
    room.stream.players.clear()


def test_a_source_without_keyframes_replaces_the_slate_after_some_time(slated):
    room = slated(keyframe_wait_s=2.0)
    Reader(room.stream)
    room.run(0.1)
    one = room.encoder("one", gop=0)
    room.run(1.5, one)
    assert room.active is not one.source
    room.run(1, one)
    assert room.active is one.source
    room.stream.players.clear()


# Bad input --------------------------------------------------------------------------------------------------------------


def test_a_hundred_keyframes_a_second_do_no_harm(make):
    room = make()
    one, two = room.encoder("one", fps=100, gop=1), room.encoder("two", BACKUP, fps=100, gop=1)
    reader = Reader(room.stream)
    room.run(2, one, two)
    one.leave()
    room.run(2, two)
    check(reader.frames())


def test_metadata_alone_makes_no_source_active(make):
    room = make()
    one = room.encoder("one")
    reader = Reader(room.stream)
    room.run(1, one)
    two = room.encoder("two", BACKUP, fps=0, audio=False)
    two.source.data(0, amf0.encode("onMetaData", {"width": 1.0}))
    one.leave()
    room.run(3, two)
    assert room.active is None
    assert room.stream.phase is StreamPhase.LIVE
    assert names(reader.frames()) == ["one"]


def test_timestamps_that_jump_by_an_hour_in_a_standby_lead_to_no_step(make):
    room = make()
    one, two = room.encoder("one"), room.encoder("two", BACKUP)
    reader = Reader(room.stream)
    room.run(2, one, two)
    two.base_ms = 3_600_000
    room.run(3, one, two)
    one.leave()
    room.run(2, two)
    check(reader.frames())
    assert longest_step_ms(reader.frames()) <= 120


def test_headers_that_change_while_a_source_stands_by_are_those_in_force(make):
    room = make()
    one, two = room.encoder("one"), room.encoder("two", BACKUP, gop=100)
    Reader(room.stream)
    room.run(1.5, one, two)
    # Behind the keyframe that is kept.
    two.source.video(1500, OTHER_HEADER)
    room.run(0.5, one, two)
    one.leave()
    room.run(1, two)
    assert OTHER_HEADER in [payload for _, payload in room.stream.headers.items]
    assert OTHER_HEADER in [payload for _, payload in two.source.headers.current.items]


def test_without_join_points_a_failover_continues_behind_what_was_sent(make):
    room = make(gop_cache=False)
    one, two = room.encoder("one"), room.encoder("two", BACKUP)
    reader = Reader(room.stream)
    room.run(3.3, one, two)
    one.leave()
    room.run(3, two)
    check(reader.frames())
    assert names(reader.frames()) == ["one", "two"]


def test_a_failed_output_does_not_set_the_others_back(make):
    """What the published output has kept is lost with it; readers of another one continue."""
    room = make()
    one, two = room.encoder("one"), room.encoder("two", BACKUP)
    reader = Reader(room.stream)
    room.run(3.3, one, two)
    room.stream.append_failed(RuntimeError("a bug"))
    one.leave()
    room.run(3, two)
    check(reader.frames())
    assert names(reader.frames()) == ["one", "two"]
    assert not reader.failed


def test_an_output_that_fails_during_a_splice_is_replaced(make):
    room = make()
    one, two = room.encoder("one"), room.encoder("two", BACKUP)
    reader = Reader(room.stream)
    room.run(3.3, one, two)
    one.leave()
    assert room.stream.ingest.active.splicing
    room.stream.append_failed(RuntimeError("a bug"))
    room.run(3, two)
    check(reader.frames())
    assert room.stream.published.log.position


def test_kept_groups_are_bounded_and_freed_when_memory_is_short(make):
    room = make(gop_cache_limit_bytes=20_000)
    one = room.encoder("one")
    two = room.encoder("two", BACKUP, gop=10_000, size=2000)
    Reader(room.stream)
    room.run(5, one, two)
    lane = room.stream.ingest.lane_of(two.source)
    assert not lane.has_join_point
    assert lane.held_bytes < 300_000
    assert not room.stream.forget_standbys()
    three = room.encoder("three", BACKUP)
    room.run(1.1, one, two, three)
    assert room.stream.forget_standbys()
    assert not room.stream.ingest.lane_of(three.source).has_join_point
    # Its next keyframe makes it ready again.
    room.run(1.1, one, two, three)
    assert room.stream.ingest.lane_of(three.source).has_join_point


def test_a_reload_bounds_what_is_kept(make):
    room = make()
    one, two = room.encoder("one"), room.encoder("two", BACKUP, gop=10_000)
    Reader(room.stream)
    room.run(2, one, two)
    lane = room.stream.ingest.lane_of(two.source)
    assert lane.has_join_point
    room.stream.reload(app_options(gop_cache_limit_bytes=5000))
    room.run(0.2, one, two)
    assert not lane.has_join_point


def test_a_standby_with_a_high_bitrate_is_read_at_once(make):
    room = make()
    one, two = room.encoder("one"), room.encoder("two", BACKUP, size=100_000)
    Reader(room.stream)
    assert not two.source.wanted
    for _ in range(6):
        room.run(1, one, two)
        room.stream.sweep(room.clock.now_s, 10)
    assert two.source.wanted
    assert one.source.wanted


def test_closed_streams_are_freed_without_the_garbage_collector(clock):
    before = live_pages()
    room = Room(clock, match_copies=True)
    one, two = room.encoder("same", size=600), room.encoder("same", BACKUP, size=600)
    three = room.encoder("three", BACKUP)
    reader = Reader(room.stream)
    room.run(5, one, two, three)
    assert room.stream.ingest.copies
    room.stream.stop_reading(reader)
    stream = weakref.ref(room.stream)
    gc.disable()
    try:
        for each in (one, two, three):
            each.leave()
        room.stream.end()
        room.stream.close()
        settle(3)
        del reader, each
        for each in (one, two, three):
            each.stream = None
        room.stream = None
        assert stream() is None
    finally:
        gc.enable()
    assert live_pages() == before


# Any course of events ---------------------------------------------------------------------------------------------------

ACTIONS = ["run", "long", "mute one", "mute two", "loss", "leave one", "leave two", "jump", "sweep", "keyframe", "short"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 9)), max_size=14),
    st.sampled_from([0, 40, 1500]),
    st.sampled_from([0, 25, 25, 60]),
    st.booleans(),
)
@example([*[("run", 1)] * 5, *[("long", 9)] * 2, ("keyframe", 1), ("leave one", 1)], 0, 25, False)
def test_any_course_of_events_gives_one_stream(make, actions, latency_ms, fps, cached):
    room = make(stall_timeout_s=0.4, failback_after_s=0.5, failover_hold_s=0.0, gop_cache=cached)
    reader = Reader(room.stream)
    turn = 0

    def begin(name, role):
        nonlocal turn
        turn += 1
        return room.encoder(
            f"{name}{turn}",
            role,
            fps=25 if name == "one" else fps,
            gop=15 + turn % 20,
            base_ms=turn * 1_000_003 % 9_000_000,
            latency_s=latency_ms / 1000 if name == "two" else 0,
        )

    one, two = begin("one", PRIMARY), begin("two", BACKUP)
    room.run(0.5, one, two)
    for action, number in actions:
        match action:
            case "run":
                room.run(number / 10, one, two)
            case "long":
                room.run(number / 2, one, two)
            case "short":
                room.run(number / 100, one, two)
            case "mute one":
                one.muted = not one.muted
            case "mute two":
                two.muted = not two.muted
            case "loss":
                two.loses = lambda type_id, n, number=number: n % (number + 3) == 0
            case "leave one":
                one.leave()
                room.run(number / 20, two)
                one = begin("one", PRIMARY)
            case "leave two":
                two.leave()
                two = begin("two", BACKUP)
            case "jump":
                two.base_ms += number * 100_000
            case "sweep":
                room.stream.sweep(room.clock.now_s, 10)
            case "keyframe":
                room.stream.forget_standbys()
    room.run(1, one, two)
    check(reader.frames(), whole=False)
