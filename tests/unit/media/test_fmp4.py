"""Fragmented MP4: what ffmpeg decodes of it, the boxes and names of codecs, and what MP4 can't carry."""

from __future__ import annotations

import struct

import pytest

from rtmpd.errors import UnsupportedByMp4
from rtmpd.media.flv import AUDIO, SCRIPT, VIDEO
from rtmpd.media.fmp4.codecs import AUDIO_TRACK, VIDEO_TRACK
from rtmpd.media.fmp4.fragmenter import Fragmenter
from rtmpd.media.fmp4.fragments import NOT_SYNC, SYNC, Run, fragment, sample_of, write_sample
from rtmpd.media.fmp4.fragments import Sample as Made
from rtmpd.media.fmp4.frames import flac_ticks, opus_ticks
from rtmpd.media.fmp4.movie import init_segment, mime_type, require_tracks
from rtmpd.media.fmp4.times import AudioTimes, Unwrapper, VideoTimes
from rtmpd.media.fmp4.tracks import Tracks
from rtmpd.protocol import amf0
from tests.fmp4_files import all_kinds, box, decoded, samples
from tests.media_files import split_flv

AVC = b"\x17\0\0\0\0" + bytes.fromhex(
    "0164000affe100186764000aacd9447b0110000003001000000303c0f122596001000668ebe3cb22c0fdf8f800"
)
"""64x48, High, 1.0."""
AAC = b"\xaf\0\x11\x90"
NAMES = {
    "b_frames.mp4": 'video/mp4; codecs="avc1.64000a,mp4a.40.2"',
    "h264_only.mp4": 'video/mp4; codecs="avc1.64000a"',
    "aac_only.flv": 'audio/mp4; codecs="mp4a.40.2"',
    "late_audio.mp4": 'video/mp4; codecs="avc1.64000a,mp4a.40.2"',
    "variable_rate.mp4": 'video/mp4; codecs="avc1.64000a,mp4a.40.2"',
    "two_tracks.flv": 'video/mp4; codecs="avc1.64000a,mp4a.40.2"',
    "hevc_opus.mp4": 'video/mp4; codecs="hvc1.1.6.L30.90,opus"',
    "hevc_mp3.mp4": 'video/mp4; codecs="hvc1.1.6.L30.90,mp3"',
    "hevc_ac3.mp4": 'video/mp4; codecs="hvc1.1.6.L30.90,ac-3"',
    "av1_eac3.mp4": 'video/mp4; codecs="av01.0.00M.08,ec-3"',
    "vp9_flac.mp4": 'video/mp4; codecs="vp09.00.10.08,fLaC"',
}


def read_tracks(items):
    tracks = Tracks()
    tracks.set_headers(items)
    return require_tracks(tracks)


@pytest.mark.parametrize("name", NAMES)
def test_ffmpeg_decodes_the_same_frames_at_the_same_times(media_files, tmp_path, name):
    flv = media_files.path(name).read_bytes() if name.endswith(".flv") else media_files.remuxed(name)
    (tmp_path / "published.flv").write_bytes(flv)
    tags, tracks = split_flv(flv), Tracks()
    for type_id, _, payload in tags:
        if type_id == SCRIPT or not tracks.settled(type_id) or payload[1] == 0:
            tracks.take(type_id, payload)
    assert mime_type(tracks.tracks) == NAMES[name]
    assert not tracks.problems
    fragmenter = Fragmenter(tracks)
    pieces = [init_segment(tracks.tracks)]
    for number, tag in enumerate(tags):
        if tag[0] != SCRIPT:
            fragmenter.add(*tag)
        if number % 20 == 0 and (cut := fragmenter.cut()):
            # A fragment without samples changes nothing.
            pieces += (cut.data, fragmenter.empty().data)
    pieces.append(fragmenter.finish().data)
    made = tmp_path / "made.mp4"
    made.write_bytes(b"".join(pieces))
    published, ours = decoded(tmp_path / "published.flv"), decoded(made)
    assert published.keys() == ours.keys()
    for kind, wanted in published.items():
        assert [digest for _, digest in ours[kind]] == [digest for _, digest in wanted]
        assert all(abs(mine - theirs) <= 1 for (mine, _), (theirs, _) in zip(ours[kind], wanted, strict=True))


# Tracks -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"\xaf\0\x12\x10", "mp4a.40.2"),
        (b"\xaf\0\x2b\x92\x08\x00", "mp4a.40.5"),
        (b"\xaf\0\xeb\x8a\x08\x00", "mp4a.40.29"),
        (b"\x90mp4a\x12\x10", "mp4a.40.2"),
        (b"\x90Opus" + b"OpusHead\1\2\x38\1\x80\xbb\0\0\0\0\0", "opus"),
    ],
)
def test_audio_is_named_by_its_sequence_header(payload, name):
    (track,) = read_tracks([(AUDIO, payload)])
    assert track.codec == name


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ("01 01 60000000 b00000000000 5d", "hvc1.1.6.L93.B0"),
        ("01 22 20000000 900000000000 99", "hvc1.2.4.H153.90"),
        ("01 41 60000000 000000000000 78", "hvc1.A1.6.L120"),
        ("01 04 08000000 9d080000 0001 7b", "hvc1.4.10.L123.9D.8.0.0.0.1"),
    ],
)
@pytest.mark.parametrize("head", [b"\x1c\0\0\0\0", b"\x90hvc1"])
def test_hevc_is_named_by_its_record(head, record, name):
    payload = head + bytes.fromhex(record).ljust(23, b"\0")
    # The size is that of onMetaData, since there is no parameter set.
    metadata = amf0.encode("onMetaData", {"width": 640.0, "height": 360.0})
    (track,) = read_tracks([(SCRIPT, metadata), (VIDEO, payload)])
    assert (track.codec, track.width, track.height) == (name, 640, 360)


def test_an_aac_track_has_the_rate_of_its_decoded_audio_and_frames_of_that_rate():
    (track,) = read_tracks([(AUDIO, b"\xaf\0\x2b\x92\x08\x00")])
    assert (track.timescale, track.frame_ticks) == (44100, 2048)
    (track,) = read_tracks([(AUDIO, AAC)])
    assert (track.timescale, track.frame_ticks) == (48000, 1024)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "neither an audio nor a video track"),
        ([(AUDIO, b"\x90xxxx")], "MP4 can't carry audio codec 0x78787878"),
        ([(VIDEO, b"\x90vvc1" + bytes(20))], "MP4 can't carry video codec vvc"),
        ([(VIDEO, b"\x17\0\0\0\0\1")], "size of h264 video is not known"),
        ([(VIDEO, b"\x90hvc1")], "size of hevc video is not known"),
        ([(AUDIO, b"\xaf\0\x12")], "AudioSpecificConfig has 1 bytes"),
        ([(AUDIO, b"\x90OpusOpusHead")], "OpusHead has 8 bytes"),
        ([(AUDIO, b"\x90fLaC")], "STREAMINFO has 0 bytes"),
    ],
)
def test_headers_without_a_track_for_mp4_are_one_kind_of_error(items, message):
    with pytest.raises(UnsupportedByMp4, match=message):
        read_tracks(items)


@pytest.mark.parametrize(
    ("type_id", "payload", "codec"),
    [
        (VIDEO, b"\x12\0\0\0\0\0\0\0\0", "h263"),
        (VIDEO, b"\x14\0\0\0\0\0\0\0\0", "vp6"),
        (AUDIO, b"\x62\0\0\0", "nellymoser"),
        (AUDIO, b"\xb2\0\0\0", "speex"),
        (AUDIO, b"\x12\0\0\0", "adpcm"),
        (AUDIO, b"\x72\0\0\0", "g711a"),
    ],
)
def test_the_other_track_is_kept_beside_a_codec_that_mp4_can_not_carry(type_id, payload, codec):
    tracks = Tracks()
    other = (AUDIO, AAC) if type_id == VIDEO else (VIDEO, AVC)
    tracks.take(*other)
    assert not tracks.settled(type_id)
    assert not tracks.take(type_id, payload)
    assert tracks.settled(type_id)
    assert codec in tracks.problems[type_id]
    assert len(tracks.tracks) == 1
    assert init_segment(tracks.tracks).count(b"trak") == 1


def test_mp3_without_a_sequence_header_is_known_from_metadata_and_then_from_its_first_frame():
    metadata = amf0.encode("onMetaData", {"audiocodecid": 2.0, "audiosamplerate": 48000.0, "stereo": False})
    tracks = Tracks()
    assert tracks.take(SCRIPT, metadata)
    assert (tracks.audio.codec, tracks.audio.timescale) == ("mp3", 48000)
    assert not tracks.settled(AUDIO)
    assert tracks.take(AUDIO, b"\x2e\xff\xfb\x90\xc0" + bytes(20))
    assert (tracks.audio.timescale, tracks.audio.frame_ticks) == (44100, 1152)
    assert tracks.settled(AUDIO)
    # What the frame has shown is kept when other headers change.
    assert not tracks.set_headers([(SCRIPT, metadata)])
    assert tracks.audio.timescale == 44100


def test_a_frame_of_another_codec_without_a_sequence_header_replaces_the_track():
    tracks = Tracks()
    tracks.take(AUDIO, AAC)
    assert tracks.take(AUDIO, b"\x2e\xff\xfb\x90\xc0" + bytes(20))
    assert tracks.audio.codec == "mp3"
    assert tracks.take(AUDIO, b"\xaf\1abc")
    assert tracks.audio.codec == "mp4a.40.2"


@pytest.mark.parametrize(("type_id", "header"), [(VIDEO, AVC), (AUDIO, AAC)])
def test_a_sequence_header_that_no_encoder_sends_changes_nothing(type_id, header):
    tracks = Tracks()
    tracks.take(type_id, header)
    assert not tracks.take(type_id, header + bytes(70_000))
    assert "bytes, expected at most 65536" in tracks.problems[type_id]
    assert tracks.of(type_id) is not None


def test_the_lowest_track_of_several_is_carried():
    first, second = AVC[5:], AVC[5:].replace(b"\1\x64\0\x0a", b"\1\x64\0\x1f")
    both = b"\x96\x10avc1" + b"".join(
        bytes((number,)) + len(record).to_bytes(3, "big") + record for number, record in ((2, second), (1, first))
    )
    (track,) = read_tracks([(VIDEO, both)])
    assert track.codec == "avc1.64000a"


def test_colours_and_luminance_of_color_info_are_boxes():
    color = {
        "colorConfig": {"colorPrimaries": 9.0, "transferCharacteristics": 16.0, "matrixCoefficients": 9.0},
        "hdrCll": {"maxFall": 400.0, "maxCLL": 1000.0},
        "hdrMdcv": {
            **dict(
                zip(("redX", "redY", "greenX", "greenY", "blueX", "blueY"), (0.68, 0.32, 0.265, 0.69, 0.15, 0.06), strict=True)
            ),
            "whitePointX": 0.3127,
            "whitePointY": 0.329,
            "maxLuminance": 1000.0,
            "minLuminance": 0.001,
        },
    }
    (track,) = read_tracks([(VIDEO, AVC), (VIDEO, b"\x94avc1" + amf0.encode("colorInfo", color))])
    init = init_segment([track])
    assert b"colrnclx" + struct.pack(">HHHB", 9, 16, 9, 0) in init
    assert b"mdcv" + struct.pack(">8H2I", 13250, 34500, 7500, 3000, 34000, 16000, 15635, 16450, 10_000_000, 10) in init
    assert b"clli" + struct.pack(">HH", 1000, 400) in init


def test_the_initialization_segment_has_the_size_and_the_duration():
    tracks = read_tracks([(VIDEO, AVC), (AUDIO, AAC)])
    live, file = init_segment(tracks), init_segment(tracks, duration_ms=5000)
    assert all_kinds(live) == [b"ftyp", b"moov"]
    assert struct.unpack(">II", box(live, b"moov", b"trak", b"tkhd")[-8:]) == (64 << 16, 48 << 16)
    assert box(file, b"moov", b"mvex", b"mehd")[4:] == (5000).to_bytes(8, "big")
    assert b"mehd" not in live


# Fragments ----------------------------------------------------------------------------------------------------------------


def test_both_builders_make_the_same_sample():
    buffer = bytearray(1000)
    end = write_sample(buffer, 10, 1, VIDEO_TRACK, 1 << 40, 3000, NOT_SYNC, -6000, b"frame")
    (one,) = samples(bytes(buffer[10:end]))
    (other,) = samples(fragment(1, [Run(VIDEO_TRACK, 1 << 40, [Made(b"frame", 3000, NOT_SYNC, -6000)])]))
    assert one == other == (VIDEO_TRACK, 1 << 40, 3000, -6000, False, b"frame")
    assert sample_of(buffer, 10) == (1, VIDEO_TRACK, 1 << 40)


def test_what_all_samples_share_is_written_once():
    even = [Made(b"a" * 10, 1024, SYNC, 0)] * 50
    uneven = [*even[:49], Made(b"a" * 10, 1025, SYNC, 0)]
    assert len(fragment(1, [Run(AUDIO_TRACK, 0, uneven)])) == len(fragment(1, [Run(AUDIO_TRACK, 0, even)])) + 50 * 4 - 4
    assert [sample.duration for sample in samples(fragment(1, [Run(AUDIO_TRACK, 0, uneven)]))] == [1024] * 49 + [1025]


AVC_HEADER = bytes.fromhex("17000000000142c00affe100176742c00aa61111ec0440000003004000000c83c489846001000668c8420f2c80")
AVC_FRAME = bytes.fromhex("2701000000") + b"frame"
AAC_HEADER, AAC_FRAME = bytes.fromhex("af001190"), bytes.fromhex("af01") + b"sound"


@pytest.mark.parametrize(("video_ms", "audio_ms"), [(240, 213), (240, 256), (240, 100)])
def test_tracks_end_together_if_something_else_follows(video_ms, audio_ms):
    def made(*, even):
        tracks = Tracks()
        tracks.set_headers([(VIDEO, AVC_HEADER), (AUDIO, AAC_HEADER)])
        fragmenter = Fragmenter(tracks)
        for time_ms in range(0, video_ms, 40):
            fragmenter.add(VIDEO, time_ms, AVC_FRAME)
        for number in range(audio_ms * 48 // 1024):
            fragmenter.add(AUDIO, round(number * 64 / 3), AAC_FRAME)
        found = samples(fragmenter.finish(even=even).data)
        return [[(each.time, each.duration) for each in found if each.track == track] for track in (VIDEO_TRACK, AUDIO_TRACK)]

    video, audio = made(even=True)
    ends_s = [sum(track[-1]) / rate for track, rate in ((video, 90_000), (audio, 48_000))]
    assert ends_s[0] == pytest.approx(ends_s[1], abs=0.0001)
    assert ends_s[0] == pytest.approx(max(video_ms, audio_ms) / 1000, abs=0.003)
    # Nothing else is moved.
    for track, other in zip((video, audio), made(even=False), strict=True):
        assert track[:-1] == other[:-1]
        assert track[-1][0] == other[-1][0]


# Times --------------------------------------------------------------------------------------------------------------------


def test_timestamps_are_continuous_over_their_wrap():
    clock = Unwrapper()
    assert [clock.unwrap(timestamp) for timestamp in (0xFFFFFFF0, 0x10, 0xFFFFFFF8, 0x20)] == [
        0xFFFFFFF0,
        0x1_0000_0010,
        0xFFFFFFF8,
        0x1_0000_0020,
    ]


@pytest.mark.parametrize(("rate", "ticks"), [(44100, 1024), (48000, 1024), (48000, 960), (32000, 1152)])
def test_audio_has_no_gap_for_hours_though_timestamps_are_rounded(rate, ticks):
    times = AudioTimes(rate)
    for number in range(200_000):
        assert times.place(number * ticks * 1000 // rate, ticks) == number * ticks


def test_audio_of_unknown_durations_begins_where_its_timestamps_say():
    times = AudioTimes(48000)
    placed = [times.place(number * 4096 * 1000 // 48000, 0) for number in range(1000)]
    assert all(abs(time - number * 4096) <= 48 for number, time in enumerate(placed))
    assert abs(times.duration - 4096) <= 48


def test_a_lost_frame_of_audio_is_a_gap():
    times = AudioTimes(48000)
    assert [times.place(time, 1024) for time in (0, 21, 64, 85)] == [0, 1024, 3072, 4096]


def test_audio_of_a_slower_clock_is_placed_anew_before_it_is_off_by_a_frame():
    times, before = AudioTimes(48000), -1024
    for number in range(20_000):
        # The source's samples last 0.5 % longer than they should.
        time_ms = round(number * 1024 * 1005 / 48000)
        placed = times.place(time_ms, 1024)
        assert abs(placed - time_ms * 48) <= 512
        assert placed >= before + 1024
        before = placed


def test_equal_timestamps_of_video_increase_by_a_tick():
    times = VideoTimes()
    assert [times.place(time) for time in (100, 100, 99, 133)] == [9000, 9001, 9002, 11970]


def test_a_restart_of_the_clock_begins_anew():
    times = VideoTimes()
    assert [times.place(time) for time in (100_000, 0, 33)] == [9_000_000, 0, 2970]


def test_the_duration_of_video_follows_the_longest_step_of_late():
    times = VideoTimes()
    found = []
    for time in (0, 33, 66, 366, 399):
        times.place(time)
        found.append(times.duration)
    assert found[:4] == [3000, 2999, 2998, 27000]
    for frame in range(1, 60):
        times.place(399 + 33 * frame)
    assert 2970 <= times.duration < 4000
    times.place(10**7)
    assert times.duration == 90_000


@pytest.mark.parametrize(
    ("packet", "ticks"),
    [
        (b"\xfc", 960),
        (b"\x08", 960),
        (b"\x18", 2880),
        (b"\xe0", 120),
        (b"\xfd", 1920),
        (b"\xff\x03", 2880),
        (b"\xff", 0),
        (b"", 0),
    ],
)
def test_the_duration_of_opus_packets(packet, ticks):
    assert opus_ticks(packet) == ticks


@pytest.mark.parametrize(
    ("head", "samples_"),
    [
        ("fff8 1908 00", 192),
        ("fff8 5908 05", 4608),
        ("fff8 c908 c280", 4096),
        ("fff8 6908 0b ff", 256),
        ("fff8 7908 c280 037f", 896),
        ("fff8 7908 c280 03", 0),
        ("fff8 0908 00", 0),
        ("fff8 6908 ff ff", 0),
        ("fff8", 0),
        ("1234 5678 9abc", 0),
    ],
)
def test_the_duration_of_flac_frames(head, samples_):
    assert flac_ticks(bytes.fromhex(head)) == samples_
