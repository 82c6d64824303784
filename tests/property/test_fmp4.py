"""Fragmented MP4 of any frame times: decoding times increase, durations add up to them, and nothing is lost or changed."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rtmpd.live.fmp4_framing import FMP4
from rtmpd.live.framing import AUDIO, DATA, VIDEO, Headers
from rtmpd.live.log import NEVER, Log
from rtmpd.media.fmp4.codecs import AUDIO_TRACK, VIDEO_TRACK
from rtmpd.media.fmp4.fragmenter import Fragmenter
from rtmpd.media.fmp4.tracks import Tracks
from rtmpd.media.tags import audio_kind, video_kind
from tests.fmp4_files import samples
from tests.unit.media.test_fmp4 import AAC, AVC

HEADERS = Headers(((VIDEO, AVC), (AUDIO, AAC)))
RATE = 48000
FRAME = 1024

starts = st.sampled_from((0, 1, 5000, 0xFFFFFF00, 0xFFFFFFFF))


@st.composite
def streams(draw):
    """Messages of a stream: video of any steps and composition times; audio that begins late, is absent, or has lost frames."""
    start = draw(starts)
    messages = []
    time = start
    steps = st.one_of(st.sampled_from((33, 34, 40, 16, 17)), st.integers(0, 900))
    for number, step in enumerate(draw(st.lists(steps, max_size=60))):
        composition = draw(st.one_of(st.just(0), st.integers(-500, 500)))
        key = number == 0 or draw(st.integers(0, 15)) == 0
        head = (b"\x17\1" if key else b"\x27\1") + (composition & 0xFFFFFF).to_bytes(3, "big")
        messages.append((time, VIDEO, head + b"video %d" % number))
        time += step
    late_ms = draw(st.sampled_from((0, 300, 2000)))
    for number in range(draw(st.integers(0, 80))):
        if draw(st.integers(0, 9)):
            jitter = draw(st.integers(0, 3))
            messages.append((start + late_ms + number * FRAME * 1000 // RATE + jitter, AUDIO, b"\xaf\1audio %d" % number))
    messages.sort(key=lambda message: message[0])
    return [(type_id, time & 0xFFFFFFFF, payload) for time, type_id, payload in messages]


def frames(messages, type_id):
    return [message for message in messages if message[0] == type_id]


def check_data(found, messages):
    for track, type_id, head in ((VIDEO_TRACK, VIDEO, 5), (AUDIO_TRACK, AUDIO, 2)):
        mine = [sample for sample in found if sample.track == track]
        wanted = frames(messages, type_id)
        assert [sample.data for sample in mine] == [payload[head:] for _, _, payload in wanted]
        assert all(before.time < after.time for before, after in pairwise(mine))
        if not wanted:
            continue
        first = messages[0][1]
        for sample, (_, timestamp, payload) in zip(mine, wanted, strict=True):
            time_ms = first + (timestamp - first) % 2**32
            if track == VIDEO_TRACK:
                # Equal timestamps are a tick apart, and nothing accumulates.
                assert 0 <= sample.time - 90 * time_ms < 60
                composition = int.from_bytes(payload[2:5], "big", signed=True)
                assert sample.time + sample.composition == 90 * (time_ms + composition)
                assert sample.sync is (payload[0] == 0x17)
            else:
                assert abs(sample.time - time_ms * RATE / 1000) <= FRAME // 2 + 1
                assert sample.sync


@given(streams(), st.integers(1, 30))
def test_durations_of_collected_samples_add_up_to_their_times(messages, every):
    tracks = Tracks()
    tracks.set_headers(HEADERS.items)
    fragmenter = Fragmenter(tracks)
    pieces = []
    for number, message in enumerate(messages):
        fragmenter.add(*message)
        if number % every == 0:
            pieces.append(fragmenter.cut())
    pieces.append(fragmenter.finish())
    assert fragmenter.held_bytes == 0
    found = samples(b"".join(piece.data for piece in pieces if piece is not None))
    check_data(found, messages)
    for track in (VIDEO_TRACK, AUDIO_TRACK):
        mine = [sample for sample in found if sample.track == track]
        assert all(before.time + before.duration == after.time for before, after in pairwise(mine))
    assert all(sample.duration > 0 for sample in found)


def log_of(messages):
    log = Log(FMP4.for_log(), NEVER)
    first = log.tail
    log.set_headers(HEADERS)
    for type_id, timestamp, payload in messages:
        log.append(type_id, timestamp, payload, video_kind(payload) if type_id == VIDEO else audio_kind(payload))
    return log, first


@given(streams())
def test_each_message_of_a_log_is_a_fragment_at_its_own_time(messages):
    log, page = log_of(messages)
    read = list(log.read_all(page, 0))
    data = b"".join(bytes(message.data) for message in read)
    assert len(data) == log.position
    found = samples(data)
    check_data(found, messages)
    assert [message.type_id for message in read] == [type_id for type_id, _, _ in messages]
    assert [bytes(message.payload) for message in read] == [
        payload[5 if type_id == VIDEO else 2 :] for type_id, _, payload in messages
    ]
    for message, (type_id, timestamp, _) in zip(read, messages, strict=True):
        off = (message.timestamp - timestamp + 2**31) % 2**32 - 2**31
        assert abs(off) <= (0 if type_id == VIDEO else 12)


@given(st.lists(st.tuples(st.sampled_from((AUDIO, VIDEO)), st.binary(max_size=40)), max_size=20), st.booleans())
def test_hostile_messages_raise_nothing_and_leave_whole_boxes(messages, known):
    log = Log(FMP4.for_log(), NEVER)
    page = log.tail
    if known:
        log.set_headers(HEADERS)
    for number, (type_id, payload) in enumerate(messages):
        log.append(type_id, number * 20, payload, 0)
        log.framing.init_segment(Headers(((type_id, payload), (DATA, payload))))
    samples(b"".join(bytes(message.data) for message in log.read_all(page, 0)))
