"""Copies of a stream, with delays, cuts and frames left out, are merged into every frame once and in order."""

from __future__ import annotations

import bisect
import functools
import heapq
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.live.copies import CopyMatcher, CopyMerger, CopyOffsets
from rtmpd.live.framing import AUDIO, VIDEO

COPIES = settings(deadline=None, max_examples=80)
FRAME_MS, KEYFRAME_EVERY = 40, 25
TICK_MS = 50


class Original(NamedTuple):
    """A frame as the encoder makes it."""

    type_id: int
    time_ms: int
    payload: bytes


@dataclass
class Link:
    """One connection of a copy: what it carries, and when.

    Attributes:
        delay_ms: Between the encoder and the server.
        from_ms, until_ms: The connection begins with the first keyframe after the one, and carries what is made before the
            other; all that it carries arrives.
        dropped: The numbers of the frames that the encoder leaves out.
        offset: Its timestamps minus the encoder's.
        stalls: When the network stops for how long; what waits arrives together then.
        rounds: Timestamps are 1 ms off at times, as those of OBS are.
    """

    delay_ms: int
    from_ms: int = 0
    until_ms: int = 1 << 40
    dropped: frozenset[int] = frozenset()
    offset: CopyOffsets = field(default_factory=CopyOffsets)
    stalls: tuple[tuple[int, int], ...] = ()
    rounds: bool = False

    def arrives_ms(self, original: Original) -> int:
        now_ms = original.time_ms + self.delay_ms
        for start_ms, length_ms in self.stalls:
            if start_ms <= now_ms < start_ms + length_ms:
                return start_ms + length_ms
        return now_ms

    def timestamp_ms(self, original: Original) -> int:
        offset_ms = self.offset.video_ms if original.type_id == VIDEO else self.offset.audio_ms
        off_ms = zlib.crc32(original.payload) % 2 if self.rounds else 0
        return (original.time_ms + offset_ms + off_ms) % 2**32

    def carried(self, originals: list[Original]) -> list[int]:
        start = next(
            (o.time_ms for o in originals if o.type_id == VIDEO and is_key(o) and o.time_ms >= self.from_ms),
            self.until_ms,
        )
        return [
            number
            for number, original in enumerate(originals)
            if start <= original.time_ms < self.until_ms and number not in self.dropped
        ]


def is_key(original: Original) -> bool:
    return original.payload[0] == 0x17


@functools.cache
def encode(frames: int, silent: bool = False) -> list[Original]:
    """Make video at 25 frames a second and audio beside it, in the order of time."""
    found = []
    for number in range(frames):
        first = 0x17 if number % KEYFRAME_EVERY == 0 else 0x27
        found.append(Original(VIDEO, number * FRAME_MS, bytes((first, 1)) + number.to_bytes(4, "big")))
    for number in range(frames * FRAME_MS * 48 // 1024):
        payload = b"\xaf\1silence" if silent else b"\xaf\1" + number.to_bytes(4, "big")
        found.append(Original(AUDIO, number * 1024 // 48, payload))
    return sorted(found, key=lambda original: original.time_ms)


def merge(originals: list[Original], links: list[Link]) -> tuple[list[tuple[int, Original]], CopyMerger]:
    """Run the merger through simulated time; return what it emits, and when."""
    merger, emitted = CopyMerger(), []
    events: list[tuple[int, int, int, int]] = []
    for index, link in enumerate(links):
        carried = link.carried(originals)
        for number in carried:
            heapq.heappush(events, (link.arrives_ms(originals[number]), 1, number, index))
        if carried:
            end = link.arrives_ms(originals[carried[-1]]) + 1
            if link.until_ms < 1 << 40:
                heapq.heappush(events, (end, 0, 0, index))
    last_ms = max(events)[0] + 10_000
    for tick_ms in range(0, last_ms, TICK_MS):
        heapq.heappush(events, (tick_ms, 2, 0, 0))
    added: set[int] = set()
    while events:
        now_ms, what, number, index = heapq.heappop(events)
        if what == 2:
            out = merger.expire(now_ms / 1000)
        elif what == 0:
            out = merger.remove(index)
        else:
            original, link = originals[number], links[index]
            if index not in added:
                added.add(index)
                merger.add(index, link.offset)
            out = merger.take(index, original.type_id, link.timestamp_ms(original), original.payload)
        emitted.extend((now_ms, Original(*frame)) for frame in out)
    return emitted, merger


def check_order(originals: list[Original], emitted: list[tuple[int, Original]]) -> None:
    """Each type: frames of the encoder, in its order, each once, with its timestamps."""
    for type_id in (AUDIO, VIDEO):
        found = [frame for _, frame in emitted if frame.type_id == type_id]
        assert [frame.time_ms for frame in found] == sorted({frame.time_ms for frame in found})
        assert set(found) <= set(originals)


def must_come(originals: list[Original], links: list[Link]) -> set[Original]:
    """What must be emitted: each frame that comes before another copy, which is without it, has passed its place.

    A copy that has left a frame out waits for one that brings it if that one has already sent something, from before it.
    """
    times = [original.time_ms for original in originals]
    carried = [
        {type_id: [n for n in link.carried(originals) if originals[n].type_id == type_id] for type_id in (AUDIO, VIDEO)}
        for link in links
    ]
    found = set()
    for index, link in enumerate(links):
        for type_id, numbers in carried[index].items():
            for number in numbers:
                # When each copy without the frame has brought a later one.
                passed = [
                    (times[mine[after]] + other.delay_ms)
                    for other, mine in ((links[o], carried[o][type_id]) for o in range(len(links)) if o != index)
                    if (after := bisect.bisect_left(mine, number)) < len(mine) and mine[after] != number
                ]
                known_ms = times[numbers[0]] + link.delay_ms if numbers[0] < number else 1 << 40
                if min(passed, default=1 << 40) > min(known_ms, times[number] + link.delay_ms):
                    found.add(originals[number])
    return found


delays = st.integers(0, 5000)
offsets = st.builds(
    lambda base, skew: CopyOffsets(base, base + skew), st.integers(0, 2**32 - 1) | st.just(2**32 - 1000), st.integers(-21, 21)
)


@st.composite
def drops(draw, first, last):
    """Numbers of frames that an encoder leaves out: some runs."""
    runs = draw(st.lists(st.tuples(st.integers(first, last), st.integers(1, 12)), max_size=4))
    return frozenset(number for start, length in runs for number in range(start, start + length))


@COPIES
@given(st.data(), st.integers(2, 3), st.booleans())
def test_frames_that_one_copy_leaves_out_come_from_the_others(data, copies, silent):
    """From 5 s on: until then, a copy may not have sent anything, and is not waited for."""
    originals = encode(200, silent)
    links = [Link(data.draw(delays), dropped=data.draw(drops(370, 560)), offset=data.draw(offsets)) for _ in range(copies)]
    links[0].offset = CopyOffsets()
    emitted, merger = merge(originals, links)
    check_order(originals, emitted)
    first = {
        type_id: max(min(n for n in link.carried(originals) if originals[n].type_id == type_id) for link in links)
        for type_id in (AUDIO, VIDEO)
    }
    union = {originals[n] for link in links for n in link.carried(originals) if n >= first[originals[n].type_id]}
    assert union - {frame for _, frame in emitted} == set()
    assert merger.counters.mismatches == 0
    assert not any(merger.broken(index) for index in range(copies))


@COPIES
@given(st.data(), st.integers(2, 3))
def test_stalls_of_a_network_and_rounded_timestamps_cost_no_frame(data, copies):
    """A copy is held for 500 ms more than another one was behind."""
    originals = encode(200)
    stalls = st.lists(st.integers(0, 20), max_size=6, unique=True).map(sorted)
    lengths = st.integers(1, 400)
    links = [
        Link(
            data.draw(delays),
            dropped=data.draw(drops(390, 560)),
            offset=data.draw(offsets) if index else CopyOffsets(),
            stalls=tuple((place * 600, data.draw(lengths)) for place in data.draw(stalls)),
            rounds=bool(index) and data.draw(st.booleans()),
        )
        for index in range(copies)
    ]
    emitted, merger = merge(originals, links)
    for type_id in (AUDIO, VIDEO):
        found = [frame for _, frame in emitted if frame.type_id == type_id]
        order = [frame.payload for frame in originals if frame.type_id == type_id]
        numbers = [order.index(frame.payload) for frame in found]
        assert numbers == sorted(set(numbers))
        missing = set(order) - {frame.payload for frame in found}
        assert not any(
            originals[number].payload in missing and number > 2 for link in links for number in link.carried(originals)
        )
        times = {frame.payload: frame.time_ms for frame in originals}
        assert all(0 <= frame.time_ms - times[frame.payload] <= 1 for frame in found)
    assert merger.counters.mismatches == 0


@COPIES
@given(st.data())
def test_cut_copies_cost_nothing_that_another_brings(data):
    originals = encode(300)
    links = []
    for _ in range(data.draw(st.integers(2, 3))):
        offset, delay_ms = data.draw(offsets), data.draw(delays)
        times = sorted(data.draw(st.lists(st.integers(500, 11_000), max_size=4, unique=True)))
        starts, ends = [0, *times[1::2]], [*times[0::2], 1 << 40]
        for start_ms, end_ms in zip(starts, ends, strict=False):
            links.append(Link(delay_ms, start_ms, end_ms, data.draw(drops(25, 860)), offset))
    links = [link for link in links if link.carried(originals)]
    if not links:
        return
    emitted, merger = merge(originals, links)
    check_order(originals, emitted)
    missing = must_come(originals, links) - {frame for _, frame in emitted}
    assert not missing
    assert merger.counters.mismatches == 0


@COPIES
@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(30, 200))
def test_whole_copies_delay_nothing(first_ms, second_ms, cut):
    """Each frame is emitted when the faster copy brings it, also after that one has ended."""
    originals = encode(250)
    links = [Link(first_ms, until_ms=cut * FRAME_MS), Link(second_ms)]
    emitted, _ = merge(originals, links)
    assert sorted(frame for _, frame in emitted) == sorted(originals)
    for now_ms, frame in emitted:
        both = frame.time_ms < cut * FRAME_MS
        assert now_ms == frame.time_ms + (min(first_ms, second_ms) if both else second_ms)


@COPIES
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([AUDIO, VIDEO]),
            st.integers(0, 2**32 - 1) | st.integers(0, 2000),
            st.binary(max_size=3),
        ),
        max_size=80,
    ),
    st.data(),
)
def test_any_frames_give_timestamps_that_never_decrease(frames, data):
    merger, now_s, newest = CopyMerger(max_held_bytes=40), 0.0, {}
    for copy in range(3):
        merger.add(copy)
    given_, emitted = 0, []
    for copy, type_id, timestamp_ms, payload in frames:
        given_ += 1
        emitted += merger.take(copy, type_id, timestamp_ms, payload)
        now_s += data.draw(st.sampled_from([0.0, 0.05, 3.0]))
        emitted += merger.expire(now_s)
    for copy in range(3):
        emitted += merger.remove(copy)
    assert len(emitted) <= given_
    for type_id, timestamp_ms, _ in emitted:
        before = newest.get(type_id, timestamp_ms)
        assert (timestamp_ms - before) % 2**32 < 2**31
        newest[type_id] = timestamp_ms


@COPIES
@given(st.integers(-5000, 5000), st.integers(0, 2**32 - 1), st.integers(-21, 21), st.booleans())
def test_copies_are_recognised_by_their_offsets(lag_ms, base, skew, jitter):
    matcher, originals = CopyMatcher(), encode(300)
    events = []
    for source, delay_ms in (("a", max(0, lag_ms)), ("b", max(0, -lag_ms))):
        events += [(original.time_ms + delay_ms, source, number) for number, original in enumerate(originals)]
    found = None
    for _, source, number in sorted(events):
        type_id, time_ms, payload = originals[number]
        payload += bytes(2000 if type_id == VIDEO else 200)
        if source == "b":
            # As OBS rounds: 1 ms more or less.
            shake = zlib.crc32(payload) % 2 if jitter else 0
            time_ms = (time_ms + base + shake + (skew if type_id == AUDIO else 0)) % 2**32
        matcher.note(source, type_id, time_ms, payload)
        found = found or (number % 25 == 0 and matcher.match("a", "b")) or None
    assert found is not None
    assert abs((found.video_ms - base + 5) % 2**32 - 5) <= 1
    assert abs((found.audio_ms - base - skew + 5) % 2**32 - 5) <= 1
