from __future__ import annotations

import pytest

from rtmpd.live.flv_framing import FLV
from rtmpd.live.headers import HeaderCache
from rtmpd.live.log import NEVER, Log
from rtmpd.media import flv
from rtmpd.media.flv_repair import repair_plan, scan
from rtmpd.media.tags import Kind, audio_kind, video_kind
from rtmpd.protocol import amf0
from rtmpd.services.recorder.assembler import Assembler, SegmentLimits
from tests.unit.services.recorder.recordings import read, write_pieces

AVC = bytes.fromhex(
    "1700000000 0164000bffe1001a6764000bacd94284 7e22c044000003000400000300c83c50a658 01000668ebe3cb22c0 fdf8f800"
)
AAC = bytes.fromhex("af001208")
OTHER_AVC = bytes.fromhex("17000000000142c00affe100176742c00ad9047b011000000300100000030320f122648001000568cb83cb20")
METADATA = amf0.encode("onMetaData") + amf0.encode({"encoder": "a test", "width": 160.0, "duration": 5.0})
OTHER_METADATA = amf0.encode("onMetaData") + amf0.encode({"encoder": "another"})
KEY, INTER, SOUND = b"\x17\x01\0\0\0key", b"\x27\x01\0\0\0inter", b"\xaf\x01sound"


class Scene:
    """An assembler, the log that it is fed from, and the files that come of it."""

    def __init__(self, headers=None, **limits):
        self.assembler = Assembler(SegmentLimits(**limits))
        if headers is not None:
            self.assembler.restart(headers)
        self.log = Log(FLV, NEVER)
        self.cursor = (self.log.tail, 0)
        self.files = {}
        self.closed = []

    def append(self, type_id, timestamp, payload, kind):
        self.log.append(type_id, timestamp & 0xFFFFFFFF, payload, kind)
        for tag in self.log.read_all(*self.cursor):
            self.cursor = (tag.page, tag.offset)
            self.assembler.feed(tag)

    def video(self, timestamp, payload=INTER):
        self.append(9, timestamp, payload, video_kind(payload))

    def audio(self, timestamp, payload=SOUND):
        self.append(8, timestamp, payload, audio_kind(payload))

    def script(self, timestamp, payload=METADATA):
        self.append(18, timestamp, payload, Kind.METADATA if payload in (METADATA, OTHER_METADATA) else Kind.OTHER)

    def begin(self, timestamp=0):
        self.script(0)
        self.video(timestamp, AVC)
        self.audio(timestamp, AAC)

    def write(self):
        """Do what the recorder does."""
        self.closed += write_pieces(self.assembler, self.files)

    def end(self):
        self.assembler.end()
        self.write()
        assert set(self.closed) == set(self.files)
        return [self.files[number] for number in sorted(self.files)]


def check(file):
    """Return what the file's scan says; it must find nothing to mend."""
    result = scan(file)
    assert result.clean
    plan = repair_plan(result)
    assert plan.truncate_to == result.size
    assert plan.patches == ()
    return result


def test_a_file_begins_with_headers_and_a_keyframe_and_counts_from_there():
    scene = Scene()
    scene.begin(5000)
    scene.audio(5000)
    scene.video(5010)
    scene.video(5040, KEY)
    scene.audio(5043)
    scene.video(5080)
    (file,) = scene.end()
    assert read(file) == [(9, 0, AVC), (8, 0, AAC), (9, 0, KEY), (8, 3, SOUND), (9, 40, INTER)]
    result = check(file)
    assert result.duration_ms == 80
    assert result.metadata["duration"] == 0.08
    assert result.metadata["filesize"] == result.size
    assert result.metadata["width"] == 160
    assert result.metadata["height"] == 114
    assert result.metadata["encoder"] == "a test"
    assert result.header_flags == 5


def test_what_is_written_so_far_can_be_played_before_it_is_closed():
    scene = Scene()
    scene.begin()
    for number in range(50):
        scene.video(number * 40, INTER if number % 25 else KEY)
        scene.write()
    result = scan(scene.files[1])
    assert result.clean
    assert (result.frames, result.duration_ms) == (50, 2000)
    assert result.metadata["width"] == 160


def test_audio_before_the_first_picture_is_left_out_even_if_it_comes_late():
    scene = Scene()
    scene.begin()
    scene.audio(80)
    scene.video(100, KEY)
    scene.audio(90)
    scene.audio(110)
    (file,) = scene.end()
    assert read(file)[2:] == [(9, 0, KEY), (8, 10, SOUND)]


def test_audio_alone_is_recorded_from_its_first_frame():
    scene = Scene()
    scene.audio(0, AAC)
    for number in range(100):
        scene.audio(100 + number * 23)
    (file,) = scene.end()
    assert read(file) == [(8, 0, AAC), *((8, number * 23, SOUND) for number in range(100))]
    result = check(file)
    assert (result.has_video, result.header_flags, result.frames, result.duration_ms) == (False, 4, 100, 2300)
    # It can be sought in, by the second.
    assert len(result.keyframes) == 3


def test_a_short_piece_of_audio_alone_is_recorded_when_it_ends():
    scene = Scene()
    scene.audio(0, AAC)
    scene.audio(0)
    scene.audio(23)
    (file,) = scene.end()
    assert len(read(file)) == 3


def test_video_that_comes_later_is_recorded_too():
    scene = Scene()
    scene.audio(0, AAC)
    for number in range(60):
        scene.audio(number * 23)
    scene.video(1400, AVC)
    scene.video(1400, KEY)
    (file,) = scene.end()
    result = check(file)
    assert (result.has_audio, result.has_video, result.header_flags) == (True, True, 5)
    assert read(file)[-1] == (9, 1400, KEY)


def test_without_a_frame_there_is_no_file():
    scene = Scene()
    scene.begin()
    scene.audio(0)
    scene.video(10)
    assert scene.end() == []


def test_an_encoder_that_sends_no_keyframes_is_recorded_after_a_while():
    scene = Scene()
    scene.begin()
    for number in range(300):
        scene.video(number * 40)
    (file,) = scene.end()
    tags = read(file)
    assert tags[2] == (9, 0, INTER)
    assert len(tags) == 2 + 50


def test_a_file_goes_on_in_another_at_the_first_keyframe_that_is_late_enough():
    scene = Scene(duration_s=2)
    scene.begin()
    for number in range(175):
        scene.video(number * 40, INTER if number % 30 else KEY)
        scene.audio(number * 40 + 1)
    files = scene.end()
    # Keyframes are 1.2 s apart: it is cut at 2.4 s, 4.8 s ...
    assert [check(file).duration_ms for file in files] == [2401, 2401, 2201]
    for file in files:
        assert [payload for _, _, payload in read(file)[:2]] == [AVC, AAC]
        assert read(file)[2] == (9, 0, KEY)
    assert sum(check(file).frames for file in files) == 350


def test_nothing_is_lost_where_a_file_is_cut_even_if_it_comes_late():
    scene = Scene(duration_s=1)
    scene.begin()
    scene.video(0, KEY)
    scene.video(1000, KEY)
    scene.audio(990)
    scene.audio(1013)
    files = scene.end()
    assert read(files[1])[2:] == [(9, 0, KEY), (8, 0, SOUND), (8, 13, SOUND)]


def test_a_file_is_cut_by_size():
    scene = Scene(size_bytes=200_000)
    scene.begin()
    for number in range(100):
        scene.video(number * 40, (INTER if number % 10 else KEY) + bytes(5000))
    files = scene.end()
    sizes = [len(file.getvalue()) for file in files]
    assert len(files) > 2
    assert all(200_000 <= size < 260_000 for size in sizes[:-1])
    assert sum(check(file).frames for file in files) == 100


def test_audio_alone_is_cut_at_any_frame():
    scene = Scene(duration_s=1)
    scene.audio(0, AAC)
    for number in range(200):
        scene.audio(number * 20)
    files = scene.end()
    assert [check(file).duration_ms for file in files] == [1000] * 4


def test_where_the_camera_is_off_audio_is_cut_after_a_while():
    scene = Scene(duration_s=5)
    scene.begin()
    scene.video(0, KEY)
    for number in range(1500):
        scene.audio(number * 20)
    files = scene.end()
    assert [check(file).duration_ms for file in files] == [10020, 5000, 5000, 5000, 4980]


def test_limits_may_change_under_way():
    scene = Scene()
    scene.begin()
    for number in range(100):
        if number == 50:
            scene.assembler.limits = SegmentLimits(duration_s=1)
        scene.video(number * 40, INTER if number % 25 else KEY)
    assert [check(file).duration_ms for file in scene.end()] == [2000, 1000, 1000]


def payloads(file):
    return [payload for _, _, payload in read(file)]


def test_changed_headers_begin_another_file_at_the_keyframe_and_are_only_in_that_one():
    scene = Scene()
    scene.begin()
    scene.video(0, KEY)
    scene.video(40)
    scene.script(0, OTHER_METADATA)
    scene.video(80, OTHER_AVC)
    scene.video(80, KEY)
    scene.audio(81)
    scene.video(120)
    first, second = scene.end()
    assert read(first) == [(9, 0, AVC), (8, 0, AAC), (9, 0, KEY), (9, 40, INTER)]
    # Headers that have been replaced are behind those that have not.
    assert read(second) == [(8, 0, AAC), (9, 0, OTHER_AVC), (9, 0, KEY), (8, 1, SOUND), (9, 40, INTER)]
    for file, width, height, encoder in ((first, 160, 114, "a test"), (second, 64, 48, "another")):
        metadata = check(file).metadata
        assert (metadata["width"], metadata["height"], metadata["encoder"]) == (width, height, encoder)


def test_a_file_is_described_by_its_own_headers_even_if_it_is_closed_later():
    scene = Scene()
    scene.begin()
    scene.video(0, KEY)
    scene.write()
    segment = scene.assembler.segment
    scene.video(80, OTHER_AVC)
    # The disk fails here: what was written is closed.
    file = scene.files[1]
    for position, patch in segment.patches():
        file.seek(position)
        file.write(patch)
    assert check(file).metadata["width"] == 160


def test_the_same_headers_again_do_not_begin_another_file():
    scene = Scene()
    for number in range(3):
        scene.begin(number * 80)
        scene.video(number * 80, KEY)
        scene.audio(number * 80 + 1)
    # Replaced and back before any frame.
    scene.video(240, OTHER_AVC)
    scene.video(240, AVC)
    scene.video(240, KEY)
    (file,) = scene.end()
    assert OTHER_AVC not in payloads(file)
    assert payloads(file).count(AVC) == 4
    assert check(file).frames == 7


def test_a_header_of_a_further_track_does_not_begin_another_file():
    scene = Scene()
    scene.video(0, AVC)
    scene.video(0, KEY)
    scene.audio(20, AAC)
    scene.audio(20)
    scene.video(40, KEY)
    (file,) = scene.end()
    assert read(file) == [(9, 0, AVC), (9, 0, KEY), (8, 20, AAC), (8, 20, SOUND), (9, 40, KEY)]
    assert check(file).metadata["audiocodecid"] == 10


def test_frames_that_need_a_changed_header_before_the_next_keyframe_have_it():
    other = AAC[:3] + b"\x10"
    scene = Scene()
    scene.begin()
    scene.video(0, KEY)
    scene.audio(500, other)
    scene.video(510)
    scene.audio(520)
    scene.audio(540)
    scene.video(1000, KEY)
    first, second = scene.end()
    assert read(first)[3:] == [(9, 510, INTER), (8, 520, other), (8, 520, SOUND), (8, 540, SOUND)]
    assert read(second) == [(9, 0, AVC), (8, 0, other), (9, 0, KEY)]
    assert [check(file).metadata["audiochannels"] for file in (first, second)] == [1, 2]


def test_audio_alone_goes_on_in_another_file_at_once_when_its_header_changes():
    other = AAC[:3] + b"\x10"
    scene = Scene()
    scene.audio(0, AAC)
    for number in range(100):
        if number == 60:
            scene.audio(number * 20, other)
        scene.audio(number * 20)
    first, second = scene.end()
    assert (check(first).frames, check(second).frames) == (60, 40)
    assert other not in payloads(first)
    assert read(second)[0] == (8, 0, other)


def cache_of(*headers):
    cache = HeaderCache()
    for type_id, payload in headers:
        (cache.add_video if type_id == 9 else cache.add_audio)(payload)
    return cache.current


H263_KEY, MP3 = b"\x12\0\0\x84\0\x01", b"\x2f\xff\xfb\x90\xc4"


def test_a_codec_without_headers_begins_another_file():
    scene = Scene()
    scene.begin()
    scene.video(0, KEY)
    scene.audio(0)
    scene.assembler.replace_headers(cache_of((8, AAC)))
    scene.video(40, H263_KEY)
    scene.audio(50)
    scene.video(80, H263_KEY)
    files = scene.end()
    assert [check(file).metadata["videocodecid"] for file in files] == [7, 2]
    assert [check(file).frames for file in files] == [2, 3]


def test_audio_without_headers_that_follows_other_audio_begins_another_file_at_the_next_keyframe():
    scene = Scene()
    scene.begin()
    scene.video(0, KEY)
    scene.audio(0)
    scene.assembler.replace_headers(cache_of((9, AVC)))
    scene.video(40, KEY)
    scene.audio(50, MP3)
    scene.video(80, KEY)
    scene.audio(90, MP3)
    scene.audio(120, AAC)
    scene.video(120, KEY)
    scene.audio(130)
    files = scene.end()
    assert [check(file).metadata["audiocodecid"] for file in files] == [10, 2, 10]


def test_tracks_beside_the_main_one_may_have_another_codec():
    second = b"\x95\x01Opus\x01x"
    scene = Scene()
    scene.begin()
    for number in range(4):
        scene.video(number * 40, KEY)
        scene.audio(number * 40)
        scene.audio(number * 40, second)
    (file,) = scene.end()
    assert check(file).frames == 12


def test_headers_that_change_with_each_keyframe_do_not_cost_a_file_each():
    scene = Scene()
    scene.begin()
    for number in range(100):
        scene.video(number * 40, (AVC, OTHER_AVC)[number % 2])
        scene.video(number * 40, KEY)
    files = scene.end()
    assert len(files) == 5
    assert sum(check(file).frames for file in files) == 100
    # Each keyframe has its header all the same.
    found = [payload for file in files for payload in payloads(file) if payload != AAC]
    assert found == [payload for number in range(100) for payload in ((AVC, OTHER_AVC)[number % 2], KEY)]


def test_another_source_with_the_same_headers_continues_the_file():
    scene = Scene()
    scene.begin()
    scene.video(0, KEY)
    scene.assembler.replace_headers(cache_of((9, AVC), (8, AAC)))
    scene.video(20_000, KEY)
    scene.audio(20_000)
    (file,) = scene.end()
    assert read(file)[2:] == [(9, 0, KEY), (9, 20_000, KEY), (8, 20_000, SOUND)]


def test_another_source_with_other_headers_begins_another_file_that_has_only_its_tracks():
    scene = Scene()
    scene.begin()
    scene.video(0, KEY)
    scene.audio(0)
    # It has sent them before it became active.
    scene.assembler.replace_headers(cache_of((9, OTHER_AVC)))
    scene.video(40, KEY)
    first, second = scene.end()
    assert payloads(first) == [AVC, AAC, KEY, SOUND]
    assert payloads(second) == [OTHER_AVC, KEY]
    assert check(second).header_flags == 1


def test_a_further_track_of_another_source_gets_its_header():
    scene = Scene()
    scene.video(0, AVC)
    scene.video(0, KEY)
    scene.assembler.replace_headers(cache_of((9, AVC), (8, AAC)))
    scene.video(40, KEY)
    scene.audio(50)
    (file,) = scene.end()
    assert payloads(file) == [AVC, KEY, KEY, AAC, SOUND]


def test_a_data_message_is_kept_and_metadata_is_only_at_the_head():
    cue = amf0.encode("onCuePoint") + amf0.encode({"name": "x"})
    scene = Scene()
    scene.script(0, cue)
    scene.begin()
    scene.video(0, KEY)
    scene.script(20, cue)
    scene.script(30)
    (file,) = scene.end()
    assert read(file)[2:] == [(9, 0, KEY), (18, 20, cue)]


def test_timestamps_may_wrap():
    scene = Scene(duration_s=2)
    scene.begin((1 << 32) - 500)
    for number in range(100):
        scene.video((1 << 32) - 500 + number * 40, INTER if number % 25 else KEY)
    files = scene.end()
    assert [check(file).duration_ms for file in files] == [2000, 2000]
    assert read(files[0])[-1][1] == 1960


def test_reading_may_begin_in_the_middle_with_the_headers_in_force():
    cache = HeaderCache()
    cache.set_metadata(METADATA)
    cache.add_video(AVC)
    cache.add_audio(AAC)
    scene = Scene(cache.current)
    scene.video(9960)
    scene.audio(9980)
    scene.video(10_000, KEY)
    (file,) = scene.end()
    assert read(file) == [(9, 0, AVC), (8, 0, AAC), (9, 0, KEY)]
    assert check(file).metadata["encoder"] == "a test"


def test_after_a_gap_it_goes_on_with_another_file_at_a_keyframe():
    scene = Scene()
    scene.begin()
    scene.video(0, KEY)
    scene.write()
    scene.video(40)
    scene.assembler.abandon()
    cache = HeaderCache()
    cache.add_video(AVC)
    scene.assembler.restart(cache.current)
    scene.video(80)
    scene.video(120, KEY)
    scene.assembler.end()
    ((segment, data, last, _),) = scene.assembler.take()
    assert (segment.number, last) == (2, True)
    assert data.endswith(flv.tag(9, 0, KEY))


def test_what_could_not_be_written_is_not_in_the_index():
    scene = Scene()
    scene.begin()
    for number in range(100):
        scene.video(number * 40, INTER if number % 25 else KEY)
        if number == 60:
            scene.write()
    segment = scene.assembler.segment
    # The disk is full; what was written is closed.
    file = scene.files[1]
    for position, patch in segment.patches():
        file.seek(position)
        file.write(patch)
    result = check(file)
    assert (result.frames, result.duration_ms, segment.written.duration_ms) == (61, 2440, 2440)
    assert result.metadata["filesize"] == segment.written.size_bytes == result.size
    assert len(result.keyframes) == 3


@pytest.mark.parametrize("size", [1 << 20, 5 << 20])
def test_audio_that_is_held_back_is_bounded(size):
    scene = Scene()
    for number in range(20):
        scene.audio(number, SOUND + bytes(size))
    assert scene.assembler.segment is not None
    (file,) = scene.end()
    assert check(file).frames == 20
