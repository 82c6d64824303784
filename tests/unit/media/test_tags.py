"""Headers of audio and video messages: by hand from the FLV and Enhanced RTMP specifications, and from real encoders."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from rtmpd.media.tags import (
    AudioPacket,
    Kind,
    TagInfo,
    VideoPacket,
    audio_info,
    audio_kind,
    split_tracks,
    video_info,
    video_kind,
)
from rtmpd.protocol.chunk import ChunkReader

WIRE = Path(__file__).parents[2] / "golden" / "wire"

VIDEO_FOUR_CCS = {
    *((b"avc1", "h264"), (b"hvc1", "hevc"), (b"vvc1", "vvc"), (b"av01", "av1"), (b"vp08", "vp8"), (b"vp09", "vp9")),
}
AUDIO_FOUR_CCS = {
    *((b"mp4a", "aac"), (b"Opus", "opus"), (b"fLaC", "flac"), (b".mp3", "mp3"), (b"ac-3", "ac3"), (b"ec-3", "eac3")),
}


def h(*parts: str | bytes) -> bytes:
    """Join hex strings (blanks are free) and FourCCs."""
    return b"".join(part if isinstance(part, bytes) else bytes.fromhex(part) for part in parts)


def video(*parts: str | bytes) -> TagInfo:
    payload = h(*parts)
    info = video_info(payload)
    assert video_kind(payload) == info.kind
    return info


def audio(*parts: str | bytes) -> TagInfo:
    payload = h(*parts)
    info = audio_info(payload)
    assert audio_kind(payload) == info.kind
    return info


# Legacy video ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("17 00 000000 01", Kind.HEADER),
        ("17 01 000000 aa", Kind.KEYFRAME),
        ("27 01 00002a aa", Kind.FRAME),
        ("37 01 000000 aa", Kind.FRAME),
        ("47 01 000000 aa", Kind.FRAME),
        ("17 02 000000", Kind.END),
        ("27 02 000000", Kind.END),
        ("27 00 000000 01", Kind.HEADER),
        ("17 03 000000", Kind.OTHER),
        ("17 ff", Kind.OTHER),
    ],
)
def test_the_packet_type_of_avc_decides_the_kind(data, kind):
    assert video(data)[:7] == (kind, "h264", int(data[3:5], 16), (0,), False, 5, int(data[0]))


@pytest.mark.parametrize(
    ("codec_id", "codec"),
    [(2, "h263"), (3, "screen"), (4, "vp6"), (5, "vp6a"), (6, "screen2"), (0, "id 0"), (1, "id 1"), (8, "id 8"), (15, "id 15")],
)
def test_older_codecs_have_frames_and_keyframes_only(codec_id, codec):
    for frame_type, kind in ((1, Kind.KEYFRAME), (2, Kind.FRAME), (3, Kind.FRAME), (4, Kind.FRAME)):
        first = f"{frame_type:x}{codec_id:x}"
        assert video(first, "00 11 22")[:7] == (kind, codec, None, (0,), False, 1, frame_type)


@pytest.mark.parametrize(
    ("data", "kind"), [("1c 00 000000 01", 2), ("1c 01 000000 aa", 1), ("2c 01 000000 aa", 0), ("1c 02", 4)]
)
def test_row_60_hevc_as_codec_12_is_read_like_avc(data, kind):
    info = video(data)
    assert (info.kind, info.codec) == (Kind(kind), "hevc")


def test_row_59_hevc_as_codec_7_is_taken_for_what_it_says():
    info = video("17 00 000000", b"\x01\x01\x60\0\0\0\x90\0\0\0\0\0\x5d\xf0\0\xfc\xfd\xf8\xf8\0\0\x0f\x03")
    assert (info.kind, info.codec) == (Kind.HEADER, "h264")


@pytest.mark.parametrize("data", ["57 00", "57 01", "52 00", "5c 00", "57 01 000000 aa"])
def test_row_62_a_video_command_frame_is_no_frame(data):
    info = video(data)
    assert info.kind == Kind.OTHER
    assert info.frame_type == 5
    assert info.codec in ("h264", "h263", "hevc")


# Legacy audio ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "kind"), [("af 00 1210", Kind.HEADER), ("af 01 2112", Kind.FRAME), ("ae 02 00", Kind.FRAME)])
def test_the_packet_type_of_aac_decides_the_kind(data, kind):
    assert audio(data)[:7] == (kind, "aac", int(data[3:5], 16), (0,), False, 2, 0)


@pytest.mark.parametrize(
    ("sound_format", "codec"),
    [
        *((0, "pcm"), (1, "adpcm"), (2, "mp3"), (3, "pcm_le"), (4, "nellymoser"), (5, "nellymoser"), (6, "nellymoser")),
        *((7, "g711a"), (8, "g711u"), (11, "speex"), (12, "id 12"), (13, "opus"), (14, "mp3"), (15, "id 15")),
    ],
)
def test_other_audio_has_frames_only(sound_format, codec):
    for second in ("00", "01", "ff"):
        assert audio(f"{sound_format:x}2", second)[:7] == (Kind.FRAME, codec, None, (0,), False, 1, 0)


# Empty and short ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("info", [video_info, audio_info])
def test_row_62_an_empty_message_is_nothing(info):
    assert info(b"")[:7] == (Kind.OTHER, "", None, (0,), False, 0, 0)
    assert video_kind(b"") == audio_kind(b"") == Kind.OTHER


def test_a_message_of_one_byte_is_nothing():
    for first in range(256):
        assert video(bytes((first,))).kind == Kind.OTHER
        assert audio(bytes((first,))).kind == Kind.OTHER


@pytest.mark.parametrize(("data", "codec"), [("17", "h264"), ("af", "aac"), ("2e", "mp3")])
def test_a_message_of_one_byte_still_names_its_codec(data, codec):
    assert (video(data) if codec == "h264" else audio(data)).codec == codec


# Enhanced ----------------------------------------------------------------------------------------------------------------

VIDEO_PACKETS = [
    (VideoPacket.SEQUENCE_START, Kind.HEADER, Kind.HEADER),
    (VideoPacket.CODED_FRAMES, Kind.KEYFRAME, Kind.FRAME),
    (VideoPacket.SEQUENCE_END, Kind.END, Kind.END),
    (VideoPacket.CODED_FRAMES_X, Kind.KEYFRAME, Kind.FRAME),
    (VideoPacket.METADATA, Kind.METADATA, Kind.METADATA),
    (VideoPacket.MPEG2TS_SEQUENCE_START, Kind.HEADER, Kind.HEADER),
]
AUDIO_PACKETS = [
    (AudioPacket.SEQUENCE_START, Kind.HEADER),
    (AudioPacket.CODED_FRAMES, Kind.FRAME),
    (AudioPacket.SEQUENCE_END, Kind.END),
    (AudioPacket.MULTICHANNEL_CONFIG, Kind.HEADER),
]


@pytest.mark.parametrize(("packet", "on_key", "on_inter"), VIDEO_PACKETS)
@pytest.mark.parametrize(("four_cc", "codec"), sorted(VIDEO_FOUR_CCS))
def test_enhanced_video_of_every_four_cc(four_cc, codec, packet, on_key, on_inter):
    for frame_type, kind in ((1, on_key), (2, on_inter), (3, on_inter)):
        info = video(bytes((0x80 | frame_type << 4 | packet,)), four_cc, "000000 aabb")
        assert info[:7] == (kind, codec, packet, (0,), False, 5, frame_type)


@pytest.mark.parametrize(("packet", "kind"), AUDIO_PACKETS)
@pytest.mark.parametrize(("four_cc", "codec"), sorted(AUDIO_FOUR_CCS))
def test_enhanced_audio_of_every_four_cc(four_cc, codec, packet, kind):
    assert audio(bytes((0x90 | packet,)), four_cc, "aabb")[:7] == (kind, codec, packet, (0,), False, 5, 0)
    assert audio(bytes((0x90 | packet,)), four_cc).kind == kind


@pytest.mark.parametrize("packet", [8, 9, 15])
def test_packet_types_to_come_are_passed_on_as_other(packet):
    assert video(bytes((0x90 | packet,)), b"avc1", "00").kind == Kind.OTHER
    assert audio(bytes((0x90 | packet,)), b"mp4a", "00").kind == Kind.OTHER
    assert audio(b"\x93", b"mp4a", "00").kind == Kind.OTHER
    assert audio(b"\x96", b"mp4a", "00").kind == Kind.OTHER


def test_row_58_metadata_comes_before_the_sequence_start_and_is_no_keyframe():
    for first in ("94", "d4", "a4"):
        info = video(first, b"hvc1", "02 0009", b"colorInfo", "03 000009")
        assert (info.kind, info.codec, info.packet_type) == (Kind.METADATA, "hevc", VideoPacket.METADATA)


def test_row_58_the_end_of_a_sequence():
    assert video("92", b"av01").kind == Kind.END
    assert audio("92", b"Opus").kind == Kind.END


@pytest.mark.parametrize("packet", [0, 1, 2, 3, 5, 6])
def test_row_62_an_enhanced_command_frame_is_no_frame(packet):
    info = video(bytes((0xD0 | packet,)), "00 112233445566")
    assert (info.kind, info.frame_type, info.codec) == (Kind.OTHER, 5, "")


@pytest.mark.parametrize("four_cc", [b"\0\0\0\0", b"\xff\xfe\xfd\xfc", b"AVC1", b"opus", b"xxxx"])
def test_row_61_a_garbage_four_cc_is_shown_and_its_frames_are_frames(four_cc):
    name = f"0x{four_cc.hex()}"
    for parts, kind in ((("90", four_cc), Kind.HEADER), (("91", four_cc, "00"), Kind.KEYFRAME), (("a3", four_cc), Kind.FRAME)):
        assert (video(*parts).kind, video(*parts).codec) == (kind, name)
    for parts, kind in ((("90", four_cc), Kind.HEADER), (("91", four_cc, "00"), Kind.FRAME)):
        assert (audio(*parts).kind, audio(*parts).codec) == (kind, name)


@pytest.mark.parametrize("rest", [b"", b"a", b"ab", b"abc"])
def test_a_truncated_enhanced_header_is_other(rest):
    for info in [video(bytes((0x80 | i,)), rest) for i in range(128)] + [audio(bytes((0x90 | i,)), rest) for i in range(16)]:
        assert (info.kind, info.codec) == (Kind.OTHER, "")
        assert info.body_offset <= 1 + len(rest)


# Multitrack --------------------------------------------------------------------------------------------------------------


def test_one_track():
    assert video("96 00", b"avc1", "01 aabb")[:7] == (Kind.HEADER, "h264", 0, (1,), True, 7, 1)
    assert video("96 01", b"avc1", "01 aabb")[:7] == (Kind.TRACK_KEYFRAME, "h264", 1, (1,), True, 7, 1)
    assert video("96 03", b"avc1", "07")[:7] == (Kind.TRACK_KEYFRAME, "h264", 3, (7,), True, 7, 1)
    assert video("a6 03", b"avc1", "ff aabb")[:7] == (Kind.FRAME, "h264", 3, (255,), True, 7, 2)
    assert video("96 04", b"hvc1", "01 aabb")[:7] == (Kind.METADATA, "hevc", 4, (1,), True, 7, 1)
    assert video("96 02", b"hvc1", "01")[:7] == (Kind.END, "hevc", 2, (1,), True, 7, 1)
    assert audio("95 00", b"Opus", "01 aabb")[:7] == (Kind.HEADER, "opus", 0, (1,), True, 7, 0)
    assert audio("95 04", b"Opus", "01 aabb")[:7] == (Kind.HEADER, "opus", 4, (1,), True, 7, 0)
    assert audio("95 01", b"Opus", "01 aabb")[:7] == (Kind.FRAME, "opus", 1, (1,), True, 7, 0)


def test_many_tracks_of_one_codec():
    tracks = h("00 000002 aabb", "02 000000", "05 000001 cc")
    assert video("96 10", b"avc1", tracks)[:7] == (Kind.HEADER, "h264", 0, (0, 2, 5), True, 6, 1)
    assert video("96 11", b"avc1", tracks).kind == Kind.TRACK_KEYFRAME
    assert video("a6 11", b"avc1", tracks).kind == Kind.FRAME
    assert audio("95 11", b"mp4a", tracks)[:7] == (Kind.FRAME, "aac", 1, (0, 2, 5), True, 6, 0)


def test_many_tracks_of_many_codecs():
    tracks = h(b"avc1", "00 000002 aabb", b"hvc1", "01 000001 cc", b"av01", "02 000000")
    assert video("96 20", tracks)[:7] == (Kind.HEADER, "h264", 0, (0, 1, 2), True, 2, 1)
    sounds = h(b"fLaC", "03 000001 cc", b"mp4a", "00 000000")
    assert audio("95 21", sounds)[:7] == (Kind.FRAME, "flac", 1, (3, 0), True, 2, 0)


@pytest.mark.parametrize("rest", ["", "01", "01 0000", "01 000002 aa", "01 ffffff aa"])
def test_a_truncated_last_track_keeps_the_others(rest):
    expected = (0, 1) if rest else (0,)
    info = video("96 11", b"avc1", "00 000002 aabb", rest)
    assert (info.kind, info.tracks) == (Kind.TRACK_KEYFRAME, expected)


@pytest.mark.parametrize("data", ["96", "96 00", "96 00 61", "96 00 61766331", "96 10 617663", "96 20", "96 20 61766331"])
def test_multitrack_without_a_track_is_other(data):
    assert video(data).kind == Kind.OTHER
    assert audio("95", data[3:]).kind == Kind.OTHER
    assert video(data).tracks == (0,)


@pytest.mark.parametrize(("data", "codec"), [("96 00 61766331", "h264"), ("96 00 617663", ""), ("96 20 61", ""), ("96", "")])
def test_multitrack_without_a_whole_four_cc_names_no_codec(data, codec):
    assert video(data).codec == codec


def test_multitrack_inside_multitrack_is_other():
    assert video("96 06", b"avc1", "01 aa").kind == Kind.OTHER
    assert audio("95 05", b"Opus", "01 aa").kind == Kind.OTHER


def test_mod_ex_inside_multitrack_is_other():
    assert video("96 07", b"avc1", "01 aa").kind == Kind.OTHER
    assert audio("95 07", b"Opus", "01 aa").kind == Kind.OTHER


def test_an_unknown_layout_is_read_as_many_tracks():
    assert video("96 f0", b"avc1", "01 000000 02 000000").tracks == (1, 2)


def test_there_are_no_more_tracks_than_track_ids():
    info = video("96 11", b"avc1", b"\1\0\0\0" * 100_000)
    assert len(info.tracks) == 256


# ModEx -------------------------------------------------------------------------------------------------------------------

NANO = "02 000102 0"  # three bytes of nanoseconds; then the type of ModEx (0), and the next packet type


@pytest.mark.parametrize(("packet", "on_key", "_on_inter"), VIDEO_PACKETS)
def test_a_mod_ex_stands_before_any_video_packet(packet, on_key, _on_inter):
    info = video("97", f"{NANO}{packet:x}", b"hvc1", "aabb")
    assert info[:7] == (on_key, "hevc", packet, (0,), False, 10, 1)


@pytest.mark.parametrize(("packet", "kind"), AUDIO_PACKETS)
def test_a_mod_ex_stands_before_any_audio_packet(packet, kind):
    assert audio("97", f"{NANO}{packet:x}", b"Opus", "aabb")[:7] == (kind, "opus", packet, (0,), False, 10, 0)


def test_mod_ex_is_chained():
    assert video("97", f"{NANO}7 00 ff 07 {NANO}1", b"av01").kind == Kind.KEYFRAME
    assert audio("97", f"{NANO}7 00 ff 07 {NANO}0", b"Opus")[:7] == (Kind.HEADER, "opus", 0, (0,), False, 18, 0)


@pytest.mark.parametrize("size", [1, 2, 254, 255])
def test_mod_ex_of_up_to_255_bytes_has_a_size_of_one_byte(size):
    assert video("97", bytes((size - 1,)), bytes(size), "01", b"hvc1").body_offset == 1 + 1 + size + 1 + 4


@pytest.mark.parametrize("size", [1, 256, 257, 65536])
def test_mod_ex_of_more_has_a_size_of_two_bytes_behind_ff(size):
    info = video("97 ff", (size - 1).to_bytes(2, "big"), bytes(size), "01", b"hvc1")
    assert (info.kind, info.codec, info.body_offset) == (Kind.KEYFRAME, "hevc", 1 + 3 + size + 1 + 4)


def test_mod_ex_before_multitrack():
    info = video("97", f"{NANO}6 00", b"avc1", "01 aa")
    assert info[:7] == (Kind.HEADER, "h264", 0, (1,), True, 12, 1)
    assert audio("97", f"{NANO}5 01", b"Opus", "03 aa").tracks == (3,)


@pytest.mark.parametrize(
    "data", ["", "00", "00 aa", "02 0001", "02 000102", "ff", "ff 00", "ff 0000", "ff 0100 aa", "00 aa 07"]
)
def test_a_truncated_mod_ex_is_other(data):
    length = 1 + len(bytes.fromhex(data))
    assert video("97", data)[:7] == (Kind.OTHER, "", None, (0,), False, length, 1)
    assert audio("97", data)[:7] == (Kind.OTHER, "", None, (0,), False, length, 0)


def test_mod_ex_is_reported():
    assert video("97", f"{NANO}1", b"av01").mod_ex
    assert video("97").mod_ex
    assert audio("97", f"{NANO}1", b"Opus").mod_ex
    assert not video("91", b"av01").mod_ex
    assert not audio("91", b"Opus").mod_ex


@pytest.mark.parametrize(
    ("data", "offset_ns"),
    [
        ("02 000000 0", 0),
        ("02 000001 0", 1),
        ("02 0f423f 0", 999_999),
        ("02 0f4240 0", None),  # a whole millisecond
        ("02 ffffff 0", None),
        ("03 0003e8ff 0", 1000),  # of more than three bytes, the first three count
        ("01 0001 0", None),  # too short for an offset
        ("02 000001 1", None),  # another type
        ("ff 0002 00ffff 0", 65535),  # with the long size
        ("02 000005 17 02 000007 0", 7),  # behind another one
        ("02 000005 07 02 000007 1", 5),  # before another one
    ],
)
def test_a_mod_ex_offsets_the_timestamp_by_nanoseconds(data, offset_ns):
    assert video("97", f"{data}1", b"av01").nano_offset_ns == offset_ns
    assert audio("97", f"{data}1", b"Opus").nano_offset_ns == offset_ns
    assert video("97", f"{data}6 01", b"hvc1", "00").nano_offset_ns == offset_ns


def test_without_mod_ex_there_is_no_offset():
    assert video("91", b"av01").nano_offset_ns is None
    assert audio("91", b"Opus").nano_offset_ns is None
    assert video("97", "02 000001").nano_offset_ns is None


def test_the_four_cc_is_that_of_the_first_track():
    assert video("91", b"zzzz").four_cc == b"zzzz"
    assert video("97", f"{NANO}0", b"hvc1").four_cc == b"hvc1"
    assert video("96 00", b"vp09", "01").four_cc == b"vp09"
    assert audio("95 20", b"Opus", "00 000000", b"mp4a", "01 000000").four_cc == b"Opus"
    assert audio("90", b"ac-3").four_cc == b"ac-3"
    assert video("17 00 000000").four_cc == video("91", b"av0").four_cc == audio("af 00").four_cc == b""


def test_a_command_frame_behind_a_mod_ex():
    assert video("d7", f"{NANO}1 00").kind == Kind.OTHER
    assert video("d7", f"{NANO}4", b"hvc1").kind == Kind.METADATA


# Recordings of real encoders ---------------------------------------------------------------------------------------------


@cache
def media(name: str) -> tuple[list[TagInfo], list[TagInfo]]:
    """Return what is known of the video and the audio messages of a recording."""
    messages = ChunkReader().feed(WIRE.joinpath(f"{name}.c2s.bin").read_bytes()[3073:])
    return (
        [video(message.payload) for message in messages if message.type_id == 9],
        [audio(message.payload) for message in messages if message.type_id == 8],
    )


# Name; the video codecs, each with its number of headers, keyframes, frames and ends of sequence; the same for audio.
RECORDED = [
    ("ffmpeg_publish_h264_aac", {"h264": (1, 2, 13, 1)}, {"aac": (1, 0, 131, 0)}),
    ("ffmpeg_publish_hevc_enhanced", {"hevc": (1, 2, 13, 0)}, {"aac": (1, 0, 131, 0)}),
    ("ffmpeg_publish_av1_opus_enhanced", {"av1": (1, 2, 13, 0)}, {"opus": (2, 0, 151, 0)}),
    ("ffmpeg_publish_vp9_enhanced", {"vp9": (1, 2, 13, 0)}, {"aac": (1, 0, 131, 0)}),
    ("ffmpeg_publish_vvc_flac_enhanced", {"vvc": (1, 2, 8, 0)}, {"flac": (4, 0, 88, 0)}),
    ("ffmpeg_publish_ac3_enhanced", {}, {"ac3": (2, 0, 58, 0)}),
    ("ffmpeg_publish_eac3_enhanced", {}, {"eac3": (2, 0, 58, 0)}),
    ("ffmpeg_publish_flv1_mp3", {"h263": (0, 2, 13, 0)}, {"mp3": (0, 0, 116, 0)}),
    ("ffmpeg_publish_pcm_alaw", {}, {"g711a": (0, 0, 87, 0)}),
    ("ffmpeg_publish_pcm_mulaw", {}, {"g711u": (0, 0, 87, 0)}),
    ("gst_publish_speex", {"h264": (1, 2, 13, 1)}, {"speex": (0, 0, 152, 0)}),
    ("gst_publish", {"h264": (1, 2, 13, 1)}, {"aac": (1, 0, 129, 0)}),
]


def summary(infos: list[TagInfo]) -> dict[str, tuple[int, ...]]:
    counts = Counter((info.codec, info.kind) for info in infos)
    kinds = (Kind.HEADER, Kind.KEYFRAME, Kind.FRAME, Kind.END)
    return {codec: tuple(counts[codec, kind] for kind in kinds) for codec in {info.codec for info in infos}}


@pytest.mark.parametrize(("name", "videos", "audios"), RECORDED)
def test_codecs_headers_and_keyframes_of_a_recording_are_found(name, videos, audios):
    found_video, found_audio = media(name)
    assert summary(found_video) == videos
    assert summary(found_audio) == audios


@pytest.mark.parametrize("name", [entry["name"] for entry in json.loads(WIRE.joinpath("index.json").read_text())])
def test_every_message_of_every_recording_is_understood(name):
    for infos in media(name):
        assert not [info for info in infos if info.kind == Kind.OTHER or info.codec.startswith(("0x", "id"))]
        # What a decoder needs comes before the first frame, for each track of a codec that has headers.
        ready: set[tuple[int, ...]] = set()
        for info in infos:
            if info.kind == Kind.HEADER:
                ready.add(info.tracks)
            elif info.codec not in ("h263", "mp3", "g711a", "g711u", "speex") and info.kind in (Kind.FRAME, Kind.KEYFRAME):
                assert info.tracks in ready


def test_row_58_the_color_info_of_a_recording_is_metadata():
    for name in ("ffmpeg_publish_hevc_enhanced", "ffmpeg_publish_hevc_hdr_enhanced"):
        kinds = [info.kind for info in media(name)[0]]
        assert kinds.count(Kind.METADATA) == 1


def test_a_second_audio_track_of_a_recording_is_separate():
    tracks = Counter((info.tracks, info.codec, info.multitrack) for info in media("ffmpeg_publish_multitrack_audio")[1])
    assert tracks.keys() == {((0,), "aac", False), ((1,), "opus", True)}
    headers = [info.packet_type for info in media("ffmpeg_publish_multitrack_audio")[1] if info.kind == Kind.HEADER]
    assert sorted(headers) == [AudioPacket.SEQUENCE_START, AudioPacket.SEQUENCE_START, AudioPacket.MULTICHANNEL_CONFIG]


def test_a_second_video_track_of_a_recording_is_separate():
    infos = media("ffmpeg_publish_multitrack_video")[0]
    assert {(info.tracks, info.kind) for info in infos if info.kind in (Kind.KEYFRAME, Kind.TRACK_KEYFRAME)} == {
        ((0,), Kind.KEYFRAME),
        ((1,), Kind.TRACK_KEYFRAME),
    }
    assert Counter(info.tracks for info in infos if info.kind == Kind.HEADER) == {(0,): 1, (1,): 1}


def test_a_message_that_ends_before_its_multitrack_header_has_no_tracks():
    for payload in (b"", b"\x96"):
        assert list(split_tracks(payload, len(payload))) == []
        assert list(split_tracks(payload, len(payload) + 1)) == []
        assert video_info(payload).tracks == audio_info(payload).tracks == (0,)
