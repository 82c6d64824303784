"""Recordings as MP4: files that can be played up to their last fragment at any time, with the frames of the stream."""

from __future__ import annotations

import io
import struct

import pytest

from rtmpd.media.flv import AUDIO, SCRIPT, VIDEO
from rtmpd.media.flv_repair import apply_plan
from rtmpd.media.fmp4.codecs import AUDIO_TRACK, VIDEO_TRACK
from rtmpd.media.fmp4.frames import Plain
from rtmpd.media.fmp4.repair import repair_plan, scan
from rtmpd.media.tags import Kind, audio_kind, video_kind
from rtmpd.protocol import amf0
from tests.fmp4_files import all_kinds, box, boxes, decoded, samples
from tests.media_files import split_flv
from tests.unit.media.test_fmp4 import AVC, NAMES
from tests.unit.services.recorder.recordings import read
from tests.unit.services.recorder.test_assembler import AAC, INTER, KEY, OTHER_AVC, Scene

FRAMES = (Kind.FRAME, Kind.KEYFRAME, Kind.TRACK_KEYFRAME)
LIVE = [b"ftyp", b"uuid", b"moov", b"free"]
"""What a file begins with that is not finished."""


class Mp4Scene(Scene):
    """An assembler of MP4 files."""

    def __init__(self, headers=None, **limits):
        super().__init__(headers, **limits)
        self.assembler.record_format = "mp4"

    def begin(self, timestamp=0, avc=AVC):
        self.script(0)
        self.video(timestamp, avc)
        self.audio(timestamp, AAC)

    def seconds(self, first, last, gop=25, sound=True):
        """Feed 25 pictures a second, and audio."""
        for number in range(first * 25, last * 25):
            self.video(number * 40, INTER if number % gop else KEY)
            if sound:
                self.audio(number * 40 + 5)
            if number % 25 == 24:
                self.assembler.flush(at_once=False)
                self.write()

    def publish(self, tags):
        for type_id, time, payload in tags:
            kind = video_kind(payload) if type_id == VIDEO else audio_kind(payload) if type_id == AUDIO else Kind.METADATA
            self.append(type_id, time, payload, kind)


def fragments(data):
    return [start - 8 for kind, start, _ in boxes(data) if kind == b"moof"]


def of_track(data, track):
    return [sample for sample in samples(data) if sample.track == track]


def video(data):
    return [(sample.time // 90, sample.data) for sample in of_track(data, VIDEO_TRACK)]


def audio(data, rate=44100):
    return [(round(sample.time * 1000 / rate), sample.data) for sample in of_track(data, AUDIO_TRACK)]


def references(data):
    """Return position and time (ms) of each entry of the sidx, and the duration of all."""
    start, end = next((start, end) for kind, start, end in boxes(data) if kind == b"sidx")
    track, timescale, time, offset, _, count = struct.unpack_from(">IIQQHH", data, start + 4)
    assert (track, offset) == (VIDEO_TRACK if b"vide" in data[:2000] else AUDIO_TRACK, 0)
    position, found, begin = end, [], time
    for number in range(count):
        size, duration, sap = struct.unpack_from(">III", data, start + 32 + 12 * number)
        assert sap in (0x90000000, 0)
        found.append((position, time * 1000 // timescale))
        position, time = position + size, time + duration
    assert data[position + 4 : position + 8] == b"mfra"
    return found, (time - begin) * 1000 // timescale


def check(file):
    """Check that a file is finished, by a scan and by its own indexes; return its bytes."""
    data = file.getvalue()
    assert all_kinds(data)[:4] == LIVE
    assert all_kinds(data)[-1] == b"mfra"
    result = scan(file)
    assert (result.valid, result.ours, result.gaps, result.rest_bytes) == (True, True, (), 0)
    assert int.from_bytes(box(data, b"moov", b"mvex", b"mehd")[4:], "big") == result.duration_ms
    # A repair of what is whole changes nothing.
    copy = io.BytesIO(data)
    apply_plan(copy, repair_plan(result))
    assert copy.getvalue() == data
    moofs = fragments(data)
    if b"sidx" in all_kinds(data):
        # FFmpeg reads no fragment that is not in it.
        assert [position for position, _ in references(data)[0]] == moofs
    for kind, start, end in boxes(box(data, b"mfra")):
        if kind == b"tfra":
            table = box(data, b"mfra")[start:end]
            track, _, count = struct.unpack_from(">III", table, 4)
            starts = {sample.time + sample.composition for sample in of_track(data, track) if sample.sync}
            for time, position, _, _, _ in struct.iter_unpack(">QQHHI", table[16:]):
                assert time in starts
                assert position in moofs
            assert count * 24 == len(table) - 16
    return data


# Content ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    NAMES,
)
def test_a_file_has_the_frames_of_the_stream(media_files, name):
    flv = media_files.path(name).read_bytes() if name.endswith(".flv") else media_files.remuxed(name)
    scene = Mp4Scene()
    tags = split_flv(flv)
    scene.publish(tags)
    (file,) = scene.end()
    data = check(file)
    plain = Plain()
    for type_id, _, payload in tags:
        if type_id != SCRIPT and len(payload) > 1 and (video_kind if type_id == VIDEO else audio_kind)(payload) is Kind.HEADER:
            plain.note_tracks(type_id, payload)
    first = next((time for type_id, time, payload in tags if type_id == VIDEO and video_kind(payload) == Kind.KEYFRAME), 0)
    for type_id, track in ((VIDEO, VIDEO_TRACK), (AUDIO, AUDIO_TRACK)):
        frames = [
            plain.frame(each, payload)
            for each, time, payload in tags
            if each == type_id and time >= first and (video_kind if type_id == VIDEO else audio_kind)(payload) in FRAMES
        ]
        assert [sample.data for sample in of_track(data, track)] == [frame.payload[frame.body :] for frame in frames if frame]


def test_ffmpeg_decodes_a_file_as_the_stream_and_in_progress_without_a_warning(media_files, tmp_path):
    (tmp_path / "published.flv").write_bytes(flv := media_files.remuxed("b_frames.mp4"))
    tags = split_flv(flv)
    scene = Mp4Scene()
    scene.publish(tags[: len(tags) // 2])
    scene.assembler.flush(at_once=True)
    scene.write()
    (tmp_path / "part.mp4").write_bytes(scene.files[1].getvalue())
    wanted, part = decoded(tmp_path / "published.flv"), decoded(tmp_path / "part.mp4")
    scene = Mp4Scene()
    scene.publish(tags)
    (tmp_path / "made.mp4").write_bytes(check(scene.end()[0]))
    made = decoded(tmp_path / "made.mp4")
    for kind, frames in wanted.items():
        assert [digest for _, digest in made[kind]] == [digest for _, digest in frames]
        assert 0 < len(part[kind]) < len(frames)
        assert [digest for _, digest in part[kind]] == [digest for _, digest in frames][: len(part[kind])]


# Fragments ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gop", "begin_ms"),
    [
        (25, [0, 2000, 4000, 6000]),
        (50, [0, 2000, 4000, 6000]),
        (10, [0, 1600, 3200, 4800, 6400]),
        (75, [0, 3000, 6000]),
        (100, [0, 3000, 4000, 7000]),
        (1000, [0, 3000, 6000]),
    ],
)
def test_fragments_begin_at_keyframes_and_last_three_seconds_at_most(gop, begin_ms):
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 8, gop)
    (file,) = scene.end()
    data = check(file)
    starts = []
    for position in fragments(data):
        end = position + sum(
            int.from_bytes(data[at : at + 4], "big")
            for at in (position, position + int.from_bytes(data[position : position + 4], "big"))
        )
        starts.append(next(sample.time // 90 for sample in samples(data[position:end], numbered=False) if sample.track == 1))
    assert starts == begin_ms
    if gop <= 75:
        found, duration_ms = references(data)
        assert [time for _, time in found] == begin_ms
        assert duration_ms == 8000
    else:
        assert b"sidx" not in all_kinds(data)
    assert [time for time, _ in video(data)] == [number * 40 for number in range(200)]


def test_audio_alone_has_fragments_of_a_second():
    scene = Mp4Scene()
    scene.audio(0, AAC)
    for number in range(430):
        scene.audio(number * 1024000 // 44100)
    (file,) = scene.end()
    data = check(file)
    assert len(fragments(data)) == 10
    assert len(audio(data)) == 430


def test_what_is_written_can_be_played_at_any_time_and_lacks_a_fragment_at_most():
    scene = Mp4Scene()
    scene.begin()
    for second in range(8):
        scene.seconds(second, second + 1, 50)
        if not scene.files:
            continue
        data = scene.files[1].getvalue()
        assert all_kinds(data)[:4] == LIVE
        assert b"mehd" not in data[:2000]
        assert len(video(data)) >= (second + 1) * 25 - 51


def test_frames_are_written_if_the_next_ones_do_not_come():
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 3)
    written = []
    for _ in range(7):
        scene.assembler.flush(at_once=False)
        scene.write()
        written.append(len(video(scene.files[1].getvalue())))
    assert written == [50, 50, 50, 50, 75, 75, 75]
    # Another publisher begins with a keyframe: each fragment still does.
    scene.seconds(60, 62)
    (file,) = scene.end()
    assert len(references(check(file))[0]) == 3


def test_a_short_recording_is_a_file_and_an_empty_one_is_none():
    scene = Mp4Scene()
    scene.begin()
    scene.video(0, KEY)
    (file,) = scene.end()
    assert video(check(file)) == [(0, KEY[5:])]
    scene = Mp4Scene()
    scene.begin()
    assert scene.end() == []


# Times --------------------------------------------------------------------------------------------------------------------


def test_audio_older_than_the_keyframe_of_the_next_file_keeps_its_time():
    scene = Mp4Scene(duration_s=2)
    scene.begin()
    sent = 0
    for number in range(100):
        scene.video(number * 40, INTER if number % 25 else KEY)
        # It comes 100 ms late.
        while sent * 1024 / 44.1 < number * 40 - 100:
            scene.audio(int(sent * 1024 / 44.1), b"\xaf\1%d" % sent)
            sent += 1
    first, second = map(check, scene.end())
    assert [data for _, data in audio(first) + audio(second)] == [b"%d" % number for number in range(sent)]
    assert audio(second)[0][0] == 0
    assert 60 < video(second)[0][0] <= 125
    for data in (first, second):
        gaps = {after.time - before.time for before, after in zip(of_track(data, 2), of_track(data, 2)[1:], strict=False)}
        assert gaps == {1024}


def test_a_gap_in_the_stream_is_a_gap_in_the_file():
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 2)
    scene.seconds(60, 62)
    (file,) = scene.end()
    data = check(file)
    assert [time for time, _ in video(data)][49:52] == [1960, 60_000, 60_040]
    sound = of_track(data, AUDIO_TRACK)
    assert max(sample.duration for sample in sound) < 3000
    assert round(sound[50].time / 44.1) == 60_005


def test_each_fragment_is_in_the_index_also_after_a_gap_that_ends_with_audio():
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 3)
    for number in range(20):
        scene.audio(6000 + number * 20)
    scene.seconds(7, 9)
    (file,) = scene.end()
    data = check(file)
    assert [time for _, time in references(data)[0]] == [0, 2000, 6000, 7000]


def test_audio_that_pauses_ends_no_fragment():
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 1)
    for number in range(25, 200):
        scene.video(number * 40, INTER if number % 25 else KEY)
        if number % 60 < 3:
            scene.audio(number * 40)
    (file,) = scene.end()
    assert len(fragments(check(file))) == 4


def test_audio_with_a_single_picture_is_written_before_the_end():
    scene = Mp4Scene()
    scene.begin()
    scene.video(0, KEY)
    for number in range(1200):
        scene.audio(number * 20)
        if number % 50 == 49:
            scene.assembler.flush(at_once=False)
            scene.write()
    assert len(audio(scene.files[1].getvalue())) > 850
    (file,) = scene.end()
    data = check(file)
    assert (len(audio(data)), len(video(data))) == (1200, 1)


def test_timestamps_wrap_and_composition_times_are_negative():
    scene = Mp4Scene()
    scene.begin(0xFFFFFF00)
    for number in range(100):
        payload = INTER if number % 25 else KEY
        scene.video(0xFFFFFF00 + number * 40, payload[:2] + (-30 & 0xFFFFFF).to_bytes(3, "big") + payload[5:])
    (file,) = scene.end()
    made = of_track(check(file), VIDEO_TRACK)
    assert [sample.time for sample in made] == [number * 3600 for number in range(100)]
    assert {sample.composition for sample in made} == {-2700}


# Tracks -------------------------------------------------------------------------------------------------------------------


def test_audio_that_begins_late_is_in_the_same_file(tmp_path):
    scene = Mp4Scene()
    scene.script(0)
    scene.video(0, AVC)
    scene.seconds(0, 5, sound=False)
    assert b"soun" not in scene.files[1].getvalue()[:2000]
    scene.audio(5000, AAC)
    scene.seconds(5, 8)
    # Also before the file is closed.
    data = scene.files[1].getvalue()
    assert b"soun" in data[:2000]
    assert audio(data)[0][0] == 5005
    (file,) = scene.end()
    data = check(file)
    assert len(audio(data)) == 75
    assert len(video(data)) == 200


def test_colours_that_become_known_later_are_in_the_head():
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 5)
    colour = {"colorConfig": {"colorPrimaries": 9.0, "transferCharacteristics": 16.0, "matrixCoefficients": 9.0}}
    scene.video(5000, b"\x94avc1" + amf0.encode("colorInfo", colour))
    scene.seconds(5, 8)
    for data in (scene.files[1].getvalue(), check(scene.end()[0])):
        assert b"colrnclx\0\x09\0\x10\0\x09" in data[:2000]
    assert len(video(data)) == 200


def test_a_header_without_frames_is_no_track():
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 4, sound=False)
    (file,) = scene.end()
    data = check(file)
    assert b"soun" not in data[:2000]


def test_video_that_begins_late_begins_another_file():
    scene = Mp4Scene()
    scene.audio(0, AAC)
    for number in range(200):
        scene.audio(number * 25)
    scene.video(5000, AVC)
    for number in range(50):
        scene.video(5000 + number * 40, INTER if number % 25 else KEY)
        scene.audio(5000 + number * 40)
    first, second = map(check, scene.end())
    assert (len(audio(first)), len(video(first))) == (200, 0)
    assert (len(audio(second)), len(video(second))) == (50, 50)


@pytest.mark.parametrize("late", [False, True])
def test_another_header_begins_another_file_at_the_next_keyframe(late):
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 3 if late else 1)
    at = 3000 if late else 1000
    # Frames between the header and the keyframe can't be decoded with the header of the file.
    scene.video(at, OTHER_AVC)
    scene.video(at, b"\x27\1\0\0\0between")
    for number in range(1, 50):
        scene.video(at + number * 40, INTER if number % 25 != 1 else KEY)
    first, second = map(check, scene.end())
    assert len(video(first)) == at // 40
    assert OTHER_AVC[5:] in second[:2000]
    assert video(second)[0] == (0, KEY[5:])
    assert len(video(second)) == 49


@pytest.mark.parametrize("first", [False, True], ids=["behind", "before"])
def test_tracks_without_a_place_are_named(first):
    scene = Mp4Scene()
    if first:
        scene.video(0, b"\x96\x00avc1\x01" + AVC[5:])
    scene.begin()
    if not first:
        scene.video(0, b"\x96\x00avc1\x01" + AVC[5:])
    scene.video(0, b"\x96\x01avc1\x01\0\0\0other")
    scene.video(0, KEY)
    scene.video(0, b"\xa6\x01avc1\x01\0\0\0other")
    scene.video(40)
    (piece,) = (scene.assembler.end(), scene.assembler.take())[1]
    assert piece.segment.left_out == ["video 1"]
    assert [data for _, data in video(piece.data)] == [KEY[5:], INTER[5:]]


# Codecs that MP4 can't carry ----------------------------------------------------------------------------------------------

SORENSON, SORENSON_INTER, SPEEX = b"\x12\0\0\x84\0\x80", b"\x22\0\0\x84\0\x81", b"\xb2speex"


@pytest.mark.parametrize(
    ("key", "sound", "reason"),
    [
        (
            SORENSON,
            AAC[:1] + b"\1sound",
            "MP4 can't carry audio codec aac without a sequence header; MP4 can't carry video codec h263",
        ),
        (KEY, SPEEX, "MP4 can't carry audio codec speex"),
        (SORENSON, SPEEX, "MP4 can't carry audio codec speex; MP4 can't carry video codec h263"),
    ],
)
def test_a_stream_that_mp4_cannot_carry_is_recorded_as_flv_from_its_beginning(key, sound, reason):
    scene = Mp4Scene()
    scene.script(0)
    if key is KEY:
        scene.video(0, AVC)
    for number in range(100):
        scene.video(number * 40, key if number % 25 == 0 else SORENSON_INTER if key is SORENSON else INTER)
        scene.audio(number * 40, sound)
        if number == 10:
            # Data messages are kept, too.
            scene.script(400, b"\2\0\3cue")
    scene.assembler.end()
    (piece,) = scene.assembler.take()
    assert piece.segment.suffix == ".flv"
    assert piece.segment.instead_of == reason
    found = read(io.BytesIO(piece.data))
    assert [each[1] for each in found if each[0] == 9][-100:] == [number * 40 for number in range(100)]
    assert len([each for each in found if each[0] == 8]) == 100
    assert [each for each in found if each[0] == 18] == [(18, 400, b"\2\0\3cue")]


def test_a_codec_without_a_place_that_comes_later_begins_an_flv_file():
    scene = Mp4Scene()
    scene.script(0)
    scene.video(0, AVC)
    scene.seconds(0, 4, sound=False)
    for number in range(110, 200):
        scene.video(number * 40, INTER if number % 25 else KEY)
        scene.audio(number * 40, SPEEX)
    scene.assembler.end()
    segments = [piece.segment for piece in scene.assembler.take()]
    assert [(segment.number, segment.suffix) for segment in segments] == [(1, ".mp4"), (2, ".flv")]
    assert segments[1].instead_of == "MP4 can't carry audio codec speex"


def test_the_format_applies_to_files_that_begin_later():
    scene = Mp4Scene(duration_s=2)
    scene.begin()
    scene.seconds(0, 1)
    scene.assembler.record_format = "flv"
    scene.seconds(1, 3)
    first, second = scene.end()
    check(first)
    assert second.getvalue().startswith(b"FLV\1")


# Failures -----------------------------------------------------------------------------------------------------------------


def test_what_could_not_be_written_is_in_no_index():
    scene = Mp4Scene()
    scene.begin()
    for number in range(250):
        scene.video(number * 40, INTER if number % 25 else KEY)
        if number == 130:
            scene.write()
    # What is taken now never gets to the disk.
    segment = scene.assembler.segment
    scene.assembler.take()
    file = scene.files[1]
    for position, data in segment.patches():
        file.seek(position)
        file.write(data)
    assert len(video(check(file))) == 100


def test_a_file_with_more_fragments_than_its_index_has_room_for_has_the_other_one():
    scene = Mp4Scene(duration_s=60)
    scene.begin()
    for number in range(400):
        scene.video(number * 1500, KEY)
        if number == 1:
            # A longer limit applies at once; the room is that of the shorter one, 128 entries.
            scene.assembler.limits = scene.assembler.limits._replace(duration_s=3600)
    (file,) = scene.end()
    data = check(file)
    assert b"sidx" not in all_kinds(data)
    assert len(fragments(data)) == 400


@pytest.mark.parametrize("begun", [False, True])
def test_tiny_frames_at_one_time_are_written_by_the_thousand(begun):
    scene = Mp4Scene()
    scene.begin()
    if begun:
        scene.seconds(0, 4)
    for number in range(20_000):
        scene.video(5000, INTER if number else KEY)
    scene.write()
    assert scene.assembler.segment.size - len(scene.files[1].getvalue()) < 8200 * 20
    assert len(video(check(*scene.end()))) == 20_000 + 100 * begun


@pytest.mark.parametrize("payload", [bytes(1 << 20), b""], ids=["large", "small"])
def test_messages_that_are_no_frames_are_not_held_back_without_a_limit(payload):
    scene = Mp4Scene()
    scene.begin()
    scene.video(0, KEY)
    for _ in range(17 if payload else 8192):
        scene.script(0, b"\2\0\4cue " + payload)
    scene.write()
    assert scene.assembler.segment.size < 1 << 20
    scene.seconds(1, 2)
    assert len(video(check(*scene.end()))) == 26


def test_messages_that_are_no_frames_do_not_keep_frames_from_being_written():
    scene = Mp4Scene()
    scene.begin()
    scene.video(0, KEY)
    for _ in range(8):
        scene.script(0, b"\2\0\4cue ")
        scene.assembler.flush(at_once=False)
    scene.write()
    assert len(video(scene.files[1].getvalue())) == 1


def test_a_stream_that_is_refused_because_of_its_messages_alone_is_recorded_as_flv():
    scene = Mp4Scene()
    scene.script(0)
    scene.video(0, b"\x12key")
    for _ in range(17):
        scene.script(0, b"\2\0\4cue " + bytes(1 << 20))
    scene.write()
    (file,) = scene.end()
    assert len(file.getvalue()) > 17 << 20
    assert read(file)[0] == (VIDEO, 0, b"\x12key")


@pytest.mark.parametrize("stuck", [VIDEO, AUDIO])
def test_a_track_whose_clock_stands_makes_no_more_files(stuck):
    scene = Mp4Scene(duration_s=10.0)
    scene.begin()
    for number in range(25 * 41):
        scene.video(0 if stuck == VIDEO else number * 40, INTER if number % 25 else KEY)
        scene.audio(0 if stuck == AUDIO else number * 40)
        if number % 25 == 24:
            scene.assembler.flush(at_once=False)
            scene.write()
    found = [check(file) for file in scene.end()]
    assert 4 <= len(found) <= 6
    assert sum(len(video(data)) for data in found) == 25 * 41


def test_the_smallest_limit_of_size_has_room_for_the_index_and_for_frames():
    scene = Mp4Scene(size_bytes=65_536)
    scene.begin()
    scene.seconds(0, 100)
    first, second = scene.end()
    assert len(references(check(first))[0]) > 40
    assert len(references(check(second))[0]) < 10


def test_a_track_that_begins_shortly_before_the_end_is_known_before_the_file_is_closed():
    scene = Mp4Scene(duration_s=10.0)
    scene.video(0, AVC)
    scene.seconds(0, 9, sound=False)
    scene.audio(9000, AAC)
    for number in range(225, 275):
        scene.video(number * 40, INTER if number % 25 else KEY)
        scene.audio(number * 40)
    file = scene.files[1]
    piece = scene.assembler.take()[0]
    assert piece.last
    file.write(piece.data)
    for position, patch in piece.patches:
        file.seek(position)
        file.write(patch)
    assert (scan(file).frames, scan(file).gaps) == (275, ())
