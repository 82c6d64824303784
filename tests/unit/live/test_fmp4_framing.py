"""Fragmented MP4 as a framing: what viewers of a stream get, and what the log holds."""

from __future__ import annotations

import time

import pytest

from rtmpd.errors import UnsupportedByMp4
from rtmpd.live.flv_framing import FLV
from rtmpd.live.fmp4_framing import FMP4, find_tracks
from rtmpd.live.framing import AUDIO, DATA, NO_HEADERS, VIDEO, Headers, Notice, NoticeKind
from rtmpd.live.log import NEVER, Log
from rtmpd.live.subscriber import Subscriber
from rtmpd.media.flv import tag
from rtmpd.media.fmp4.codecs import AUDIO_TRACK, VIDEO_TRACK
from rtmpd.media.tags import Kind
from tests.fmp4_files import all_kinds, boxes, decoded, samples
from tests.media_files import split_flv
from tests.unit.live.fakes import (
    FakeTransport,
    close_stream,
    kind_of,
    live_pages,
    new_source,
    new_stream,
    new_subscriber,
    settle,
)
from tests.unit.media.test_fmp4 import AAC, AVC

OTHER_AVC = AVC.replace(b"\1\x64\0\x0a", b"\1\x64\0\x1f")
HEADERS = Headers(((VIDEO, AVC), (AUDIO, AAC)))
KEY, INTER, SOUND = b"\x17\1\0\0\0key", b"\x27\1\0\0\x21inter", b"\xaf\1sound"


def new_log(headers=HEADERS):
    log = Log(FMP4.for_log(), NEVER)
    log.set_headers(headers)
    return log, log.tail


def append(log, *messages):
    for timestamp, (type_id, payload) in enumerate(messages):
        log.append(type_id, timestamp * 20, payload, kind_of(type_id, payload))


def data_of(log, page):
    return b"".join(bytes(message.data) for message in log.read_all(page, 0))


# The log ------------------------------------------------------------------------------------------------------------------


def test_messages_are_read_back_as_samples():
    log, page = new_log()
    log.append(VIDEO, 40, KEY, Kind.KEYFRAME)
    log.append(AUDIO, 45, SOUND, Kind.FRAME)
    log.append(VIDEO, 80, INTER, Kind.FRAME)
    read = list(log.read_all(page, 0))
    assert [(each.type_id, each.timestamp, each.kind, bytes(each.payload)) for each in read] == [
        (VIDEO, 40, Kind.KEYFRAME, b"key"),
        (AUDIO, 45, Kind.FRAME, b"sound"),
        (VIDEO, 80, Kind.FRAME, b"inter"),
    ]
    assert all(all_kinds(bytes(each.data)) == [b"moof", b"mdat"] for each in read)
    assert [log.framing.media_timestamp(log.tail, index) for index in range(3)] == [40, 45, 80]
    found = samples(data_of(log, page))
    assert [(each.track, each.time, each.composition, each.sync) for each in found] == [
        (VIDEO_TRACK, 3600, 0, True),
        (AUDIO_TRACK, 2160, 0, True),
        (VIDEO_TRACK, 7200, 33 * 90, False),
    ]


def test_what_mp4_does_not_carry_is_not_in_the_log():
    log, page = new_log()
    others = [
        (DATA, b"\2\0\x0aonMetaData"),
        (VIDEO, AVC),
        (AUDIO, AAC),
        (AUDIO, b"\xaf\1"),
        (VIDEO, b"\x57\0"),
        (VIDEO, b"\x17\2\0\0\0"),
    ]
    append(log, *others)
    assert log.position == 0
    assert list(log.read_all(page, 0)) == []
    assert log.newest_timestamp == 100


def test_a_join_point_at_a_frame_that_is_not_carried_begins_with_the_next_one():
    log, _ = new_log(Headers(((AUDIO, AAC),)))
    log.append(VIDEO, 0, b"\x12video of Flash", Kind.KEYFRAME, join_point=True)
    log.append(AUDIO, 10, SOUND, Kind.FRAME)
    assert [bytes(each.payload) for each in log.read_all(log.join_page, log.join_offset)] == [b"sound"]


def test_frames_have_a_page_of_their_own_if_they_need_it():
    log, page = new_log()
    big = KEY + bytes(300_000)
    append(log, (VIDEO, KEY), (VIDEO, big), (VIDEO, OTHER_AVC), (VIDEO, big), (AUDIO, SOUND))
    assert [len(each.data) for each in samples(b"".join(data_of(log, page).split(b"ftyp")[:1])[:-4])] == [3, 300_003]
    assert [len(each.payload) for each in log.read_all(page, 0)] == [3, 300_003, 300_003, 5]


def test_a_changed_header_is_an_initialization_segment_before_the_next_frame():
    log, page = new_log()
    append(log, (VIDEO, KEY), (AUDIO, SOUND), (VIDEO, OTHER_AVC), (AUDIO, AAC), (VIDEO, KEY), (VIDEO, INTER))
    read = list(log.read_all(page, 0))
    assert [all_kinds(bytes(each.data)) for each in read] == [
        [b"moof", b"mdat"],
        [b"moof", b"mdat"],
        [b"ftyp", b"moov", b"moof", b"mdat"],
        [b"moof", b"mdat"],
    ]
    assert b"avcC\1\x64\0\x1f" in read[2].data.tobytes()
    assert [(each.type_id, each.timestamp, bytes(each.payload)) for each in read[2:]] == [
        (VIDEO, 80, b"key"),
        (VIDEO, 100, b"inter"),
    ]


def test_the_mime_type_is_that_of_headers_and_frames():
    log, _ = new_log()
    assert log.framing.announce() == 'video/mp4; codecs="avc1.64000a,mp4a.40.2"'
    log, _ = new_log()
    log.set_headers(Headers(((VIDEO, OTHER_AVC),)))
    assert log.framing.announce() == 'video/mp4; codecs="avc1.64001f"'
    log, _ = new_log()
    log.set_headers(NO_HEADERS)
    with pytest.raises(UnsupportedByMp4, match="neither an audio nor a video track"):
        log.framing.announce()
    log.append(AUDIO, 0, b"\x2e\xff\xfb\x90\xc0" + bytes(20), Kind.FRAME)
    assert log.framing.announce() == 'audio/mp4; codecs="mp3"'


def test_the_same_headers_again_are_no_bytes():
    log, page = new_log()
    append(log, (VIDEO, KEY), (AUDIO, SOUND), (VIDEO, AVC), (AUDIO, AAC), (VIDEO, KEY))
    log.set_headers(NO_HEADERS)
    log.set_headers(Headers(((VIDEO, AVC),)))
    log.set_headers(Headers(HEADERS.items))
    log.append(VIDEO, 200, KEY, Kind.KEYFRAME)
    assert b"moov" not in data_of(log, page)


# The end of a log --------------------------------------------------------------------------------------------------------


def test_a_further_track_ends_the_log():
    log, page = new_log(Headers(((VIDEO, AVC),)))
    append(log, (VIDEO, KEY))
    assert not log.framing.over
    log.set_headers(HEADERS)
    assert log.framing.over
    append(log, (AUDIO, AAC), (AUDIO, SOUND), (VIDEO, KEY))
    assert [bytes(each.payload) for each in log.read_all(page, 0)] == [b"key"]


def test_another_codec_ends_the_log():
    log, page = new_log()
    append(log, (VIDEO, KEY), (AUDIO, SOUND), (AUDIO, b"\x2e\xff\xfb\x90\xc0" + bytes(20)), (VIDEO, KEY))
    assert log.framing.over
    assert [bytes(each.payload) for each in log.read_all(page, 0)] == [b"key", b"sound"]


@pytest.mark.parametrize("wait_ms", [960, 1000])
def test_a_track_may_be_missing_for_a_second(wait_ms):
    log, page = new_log()
    append(log, (VIDEO, KEY), (AUDIO, SOUND))
    log.set_headers(NO_HEADERS)
    log.set_headers(Headers(((VIDEO, OTHER_AVC),)))
    # Readers know both tracks.
    assert log.framing.init_segment(log.headers).count(b"trak") == 2
    log.append(VIDEO, 40, KEY, Kind.KEYFRAME)
    log.append(VIDEO, 40 + wait_ms, INTER, Kind.FRAME)
    log.set_headers(Headers(((VIDEO, OTHER_AVC), (AUDIO, AAC))))
    log.append(AUDIO, 40 + wait_ms, SOUND, Kind.FRAME)
    assert log.framing.over == (wait_ms == 1000)
    found = [bytes(each.payload) for each in log.read_all(page, 0)]
    assert found == [b"key", b"sound", b"key", *([] if log.framing.over else [b"inter", b"sound"])]
    assert data_of(log, page).count(b"moov") == 1


def test_the_end_of_a_publisher_does_not_end_the_log():
    log, page = new_log()
    append(log, (VIDEO, KEY), (AUDIO, SOUND))
    log.set_headers(NO_HEADERS)
    assert not log.framing.over
    log.set_headers(Headers(((AUDIO, AAC),)))
    log.append(AUDIO, 4000, SOUND, Kind.FRAME)
    log.set_headers(HEADERS)
    log.append(VIDEO, 4010, KEY, Kind.KEYFRAME)
    assert not log.framing.over
    assert b"moov" not in data_of(log, page)


def test_what_was_announced_holds_before_the_first_frame():
    log, page = new_log(Headers(((VIDEO, AVC),)))
    assert log.framing.announce() == 'video/mp4; codecs="avc1.64000a"'
    log.set_headers(HEADERS)
    log.append(VIDEO, 0, KEY, Kind.KEYFRAME)
    assert log.framing.over
    assert list(log.read_all(page, 0)) == []
    other, _ = new_log(NO_HEADERS)
    with pytest.raises(UnsupportedByMp4, match="neither"):
        other.framing.announce()


def test_audio_keeps_its_timestamps_when_its_rate_changes():
    log, page = new_log()
    append(log, (AUDIO, SOUND), (AUDIO, SOUND), (AUDIO, b"\xaf\0\x12\x10"), (AUDIO, SOUND), (AUDIO, SOUND))
    assert [each.timestamp for each in log.read_all(page, 0)] == [0, 21, 60, 83]
    assert [log.framing.media_timestamp(log.tail, index) for index in range(4)] == [0, 21, 60, 83]


def test_frames_of_several_tracks_are_those_of_the_lowest():
    def both(packet, frame_type, first, second):
        tracks = b"".join(bytes((number,)) + len(data).to_bytes(3, "big") + data for number, data in ((1, second), (0, first)))
        return bytes((0x86 | frame_type << 4, 0x10 | packet)) + b"avc1" + tracks

    log, page = new_log(NO_HEADERS)
    composition = b"\0\0\x0a"
    append(
        log, (VIDEO, both(0, 1, AVC[5:], OTHER_AVC[5:])), (VIDEO, both(1, 1, composition + b"first", composition + b"second"))
    )
    (sample,) = samples(data_of(log, page))
    assert (sample.data, sample.composition, sample.sync) == (b"first", 900, True)


def test_logs_of_one_stream_that_are_joined_have_one_clock():
    log, _ = new_log()
    for timestamp in (0xFFFFFFF0, 0x10):
        log.append(VIDEO, timestamp, KEY, Kind.KEYFRAME)
    older = Log(log.framing.for_log(), NEVER)
    page = older.tail
    older.set_headers(HEADERS)
    older.append(VIDEO, 0x10, KEY, Kind.KEYFRAME)
    assert samples(data_of(older, page))[0].time == 90 * 0x1_0000_0010


@pytest.mark.parametrize("kind", NoticeKind)
def test_notices_are_no_bytes(kind):
    assert list(FMP4.notices(Notice(kind, "text"))) == []
    assert FMP4.for_subscriber().notice(Notice(kind, "text")) == b""


# Viewers of a stream ------------------------------------------------------------------------------------------------------


class Viewer:
    def __init__(self, stream):
        self.output = stream.output(framing=FMP4)
        self.transport = FakeTransport()
        self.subscriber = Subscriber(self.transport, self.output.log.framing.for_subscriber(), "the viewer")
        self.output.fanout.join(self.subscriber)

    @property
    def data(self):
        settle()
        return bytes(self.transport.data)


def publish(stream, source, tags):
    for type_id, timestamp, payload in tags:
        if type_id == VIDEO:
            source.video(timestamp, payload)
        elif type_id == AUDIO:
            source.audio(timestamp, payload)
        else:
            source.data(timestamp, payload)
        settle(4)


@pytest.fixture
def stream():
    made = new_stream()
    yield made
    close_stream(made)


@pytest.mark.parametrize("name", ["b_frames.mp4", "hevc_mp3.mp4", "vp9_flac.mp4"])
def test_a_viewer_from_the_beginning_and_one_that_is_late_can_decode_what_they_get(stream, media_files, tmp_path, name):
    tags = split_flv(media_files.remuxed(name))
    source, first = new_source(), Viewer(stream)
    stream.begin(source)
    half = next(
        index
        for index, (type_id, time, payload) in enumerate(tags)
        if type_id == AUDIO and time > 700 and kind_of(AUDIO, payload) == 0
    )
    publish(stream, source, tags[:half])
    late = Viewer(stream)
    publish(stream, source, tags[half:])
    assert late.output is first.output
    assert (tmp_path / "first.mp4").write_bytes(first.data)
    assert (tmp_path / "late.mp4").write_bytes(late.data)
    assert (tmp_path / "all.flv").write_bytes(media_files.remuxed(name))
    wanted = decoded(tmp_path / "all.flv")
    assert [kind for kind in all_kinds(first.data) if kind in (b"ftyp", b"moov")] == [b"ftyp", b"moov"]
    for kind, frames in decoded(tmp_path / "first.mp4").items():
        assert [digest for _, digest in frames] == [digest for _, digest in wanted[kind]]
    found = samples_after_init(late.data)
    assert found[0].track == VIDEO_TRACK
    assert found[0].sync
    assert found[0].time >= 90 * 400
    shown = decoded(tmp_path / "late.mp4")["video"]
    assert [digest for _, digest in shown] == [digest for _, digest in wanted["video"][-len(shown) :]]
    assert len(shown) == 15


def samples_after_init(data):
    assert all_kinds(data)[:2] == [b"ftyp", b"moov"]
    # The numbers of fragments go on from where the viewer has joined.
    numbers = [int.from_bytes(data[start + 12 : start + 16], "big") for kind, start, _ in boxes(data) if kind == b"moof"]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return samples(data, numbered=False)


def test_a_viewer_that_waits_gets_one_initialization_segment_with_the_first_frame(stream):
    source = new_source()
    stream.begin(source)
    viewer = Viewer(stream)
    player = new_subscriber(FakeTransport())
    stream.output().fanout.join(player)
    source.video(0, AVC)
    settle()
    source.audio(0, AAC)
    assert viewer.data == b""
    assert player.transport.data  # RTMP players get headers as they come
    source.video(0, KEY)
    assert all_kinds(viewer.data) == [b"ftyp", b"moov", b"moof", b"mdat"]
    assert viewer.data.count(b"trak") == 2


def test_viewers_and_flv_readers_and_players_have_outputs_of_their_own(stream):
    source = new_source()
    stream.begin(source)
    first, second = Viewer(stream), Viewer(stream)
    flv = stream.output(framing=FLV)
    assert first.output is second.output
    assert len({id(each) for each in (first.output, flv, stream.published)}) == 3
    other = new_stream("live/other")
    assert Viewer(other).output.log.framing is not first.output.log.framing
    close_stream(other)


def test_a_viewer_stays_when_another_publisher_follows(stream):
    source = new_source()
    stream.begin(source)
    viewer = Viewer(stream)
    publish(stream, source, [(VIDEO, 0, AVC), (AUDIO, 0, AAC), (VIDEO, 0, KEY), (AUDIO, 10, SOUND)])
    settle()
    stream.end()
    settle()
    assert all_kinds(viewer.data).count(b"moov") == 1
    following = new_source()
    stream.begin(following)
    publish(stream, following, [(VIDEO, 0, OTHER_AVC), (AUDIO, 0, AAC), (VIDEO, 0, KEY), (VIDEO, 33, INTER)])
    kinds = all_kinds(viewer.data)
    assert kinds[kinds.index(b"moof") :].count(b"moov") == 1
    assert kinds[-4:] == [b"moof", b"mdat"] * 2
    assert viewer.data.endswith(b"inter")


def test_an_output_for_viewers_begins_with_the_group_of_pictures_that_is_kept(stream):
    source = new_source()
    stream.begin(source)
    publish(stream, source, [(VIDEO, 0, AVC), (AUDIO, 0, AAC), (VIDEO, 0, KEY), (AUDIO, 10, SOUND), (VIDEO, 33, INTER)])
    viewer = Viewer(stream)
    assert [each.data for each in samples(viewer.data)] == [b"key", b"sound", b"inter"]
    source.video(66, INTER)
    assert [each.time for each in samples(viewer.data) if each.track == VIDEO_TRACK] == [0, 2970, 5940]


def test_an_output_for_viewers_announces_a_track_whose_header_came_late_from_the_beginning(stream):
    source = new_source()
    stream.begin(source)
    publish(stream, source, [(VIDEO, 0, AVC), (VIDEO, 0, KEY)])
    early = Viewer(stream)
    publish(stream, source, [(VIDEO, 33, INTER), (AUDIO, 40, AAC), (AUDIO, 40, SOUND)])
    assert early.output.over
    assert [each.data for each in samples(early.data)] == [b"key", b"inter"]
    late = Viewer(stream)
    assert late.output is not early.output
    publish(stream, source, [(VIDEO, 66, INTER)])
    assert late.data.count(b"trak") == 2
    assert [each.data for each in samples(late.data)] == [b"key", b"inter", b"sound", b"inter"]
    assert [each.data for each in samples(early.data)] == [b"key", b"inter"]


def test_an_output_that_is_over_holds_no_memory_for_new_viewers_and_is_dropped_with_its_last_one(stream):
    source = new_source()
    stream.begin(source)
    publish(stream, source, [(VIDEO, 0, AVC), (VIDEO, 0, KEY)])
    viewer = Viewer(stream)
    publish(stream, source, [(AUDIO, 40, AAC), (AUDIO, 40, SOUND), (VIDEO, 80, KEY), (VIDEO, 120, INTER)])
    assert viewer.output.log.join_page is None
    stream.sweep(time.monotonic(), 30)
    assert viewer.output in stream.outputs
    viewer.output.fanout.leave(viewer.subscriber)
    stream.sweep(time.monotonic(), 30)
    assert stream.outputs == [stream.published]


def test_tracks_without_headers_are_looked_for_in_the_first_messages_only(stream):
    source = new_source()
    stream.begin(source)
    mp3 = b"\x2e\xff\xfb\x90\xc0" + bytes(20)
    publish(stream, source, [(VIDEO, 0, AVC), (VIDEO, 0, KEY)])
    for number in range(300):
        source.video(10 * number + 10, INTER)
    source.audio(3000, mp3)
    log = stream.published.log
    assert find_tracks(log).audio is None
    publish(stream, source, [(VIDEO, 3010, KEY), (AUDIO, 3020, mp3)])
    assert find_tracks(log).audio.codec == "mp3"


class Reader:
    """Reads a log in batches."""

    wake_at = NEVER

    def wake(self):
        pass

    def fail(self):
        pass


def test_a_viewer_of_an_output_that_was_read_in_batches_begins_with_the_group_of_pictures_too(stream):
    source, reader = new_source(), Reader()
    stream.begin(source)
    publish(stream, source, [(VIDEO, 0, AVC), (AUDIO, 0, AAC), (VIDEO, 0, KEY), (AUDIO, 10, SOUND)])
    log = stream.read(reader, FMP4)
    publish(stream, source, [(VIDEO, 33, INTER), (AUDIO, 31, SOUND)])
    viewer = Viewer(stream)
    assert viewer.output.log is log
    publish(stream, source, [(VIDEO, 66, INTER)])
    kinds = all_kinds(viewer.data)
    assert kinds == [b"ftyp", b"moov"] + [b"moof", b"mdat"] * 5
    times = [each.time for each in samples(viewer.data, numbered=False) if each.track == VIDEO_TRACK]
    assert times == [0, 2970, 5940]
    stream.stop_reading(reader)


def test_nothing_is_left_of_an_output_without_viewers(stream):
    before = live_pages()
    source = new_source()
    stream.begin(source)
    viewer = Viewer(stream)
    publish(stream, source, [(VIDEO, 0, AVC), (VIDEO, 0, KEY)])
    settle()
    viewer.output.fanout.leave(viewer.subscriber)
    output = viewer.output
    del viewer
    for now_s in (1000.0, 1010.0):
        stream.sweep(now_s, 10)
    assert output not in stream.outputs
    assert output.log.join_page is None
    del output
    assert live_pages() <= before + 2


def test_flv_of_the_same_stream_is_unchanged(stream):
    source = new_source()
    stream.begin(source)
    flv = stream.output(framing=FLV)
    Viewer(stream)
    publish(stream, source, [(VIDEO, 0, AVC), (VIDEO, 0, KEY)])
    assert bytes(flv.log.tail.view[: flv.log.tail.end]).endswith(tag(VIDEO, 0, KEY))
