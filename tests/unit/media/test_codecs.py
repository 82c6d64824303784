"""Track configurations: of ffmpeg's encoders, compared with ffmpeg's output; of recordings; and by hand from the standards."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from rtmpd.media.audio_codecs import AudioConfig, audio_config, refine_audio
from rtmpd.media.bits import BitReader, unescape
from rtmpd.media.flv_metadata import read_metadata
from rtmpd.media.tags import MAX_RECORD_BYTES
from rtmpd.media.video_codecs import VideoConfig, refine_video, video_color, video_config
from rtmpd.protocol.chunk import ChunkReader

WIRE = Path(__file__).parents[2] / "golden" / "wire"

SIZES = "testsrc2=size=162x118:rate=25"  # multiples of nothing: what is coded must be cropped
PICTURE = f"-f lavfi -i {SIZES}"
TONE = "-f lavfi -i sine=frequency=440:sample_rate=44100"
X264 = f"{PICTURE} -c:v libx264 -preset ultrafast"
X265 = f"{PICTURE} -c:v libx265 -preset ultrafast -x265-params log-level=none"
VP9 = f"{PICTURE} -c:v libvpx-vp9 -deadline realtime -cpu-used 8"


class Clip(NamedTuple):
    """How a clip is encoded, and what ffmpeg does not print about it."""

    arguments: str
    level: str = ""
    chroma: str = ""


CLIPS = {
    "h264_high": Clip(f"{X264} -pix_fmt yuv420p -x264-params cabac=1:8x8dct=1 -level 3.1", "3.1"),
    "h264_main_fields": Clip(
        "-f lavfi -i testsrc2=size=162x116:rate=25 -c:v libx264 -preset veryfast -pix_fmt yuv420p -profile:v main"
        " -flags +ilme+ildct -x264-params interlaced=1 -level 4.1",
        "4.1",
    ),
    "h264_baseline": Clip(f"{X264} -pix_fmt yuv420p -profile:v baseline -level 1b", "1b"),
    "h264_10_bit_4_2_2": Clip(f"{X264} -pix_fmt yuv422p10le -level 4.0", "4.0"),
    "h264_scaling_lists_4_4_4": Clip(f"{X264} -pix_fmt yuv444p -x264-params cqm=jvt:8x8dct=1 -level 5.1", "5.1"),
    "h264_grey": Clip(f"{X264} -pix_fmt gray -level 6", "6.0", "4:0:0"),
    "h264_10_bit_intra": Clip(f"{X264} -pix_fmt yuv420p10le -g 1 -level 3", "3.0"),
    "hevc_main": Clip(f"{X265}:level-idc=5.1 -pix_fmt yuv420p", "5.1"),
    "hevc_main_10": Clip(f"{X265}:level-idc=3.1:temporal-layers=3:bframes=4 -pix_fmt yuv420p10le", "3.1"),
    "hevc_rext": Clip(f"{X265}:level-idc=4 -pix_fmt yuv422p12le", "4.0"),
    "av1_10_bit": Clip(f"{PICTURE} -c:v libsvtav1 -preset 12 -pix_fmt yuv420p10le -svtav1-params level=41", "4.1"),
    "av1_empty_record": Clip(f"{PICTURE} -frames:v 2 -c:v libaom-av1 -usage realtime -cpu-used 8 -pix_fmt yuv420p", "2.0"),
    "vp9": Clip(f"{VP9} -pix_fmt yuv420p", "1.0"),
    "vp9_10_bit_4_2_2": Clip(f"{VP9} -pix_fmt yuv422p10le", "1.0"),
    "vp9_4_4_4": Clip(f"{VP9} -pix_fmt yuv444p", "1.0"),
    "vvc": Clip(f"{PICTURE} -frames:v 4 -c:v libvvenc -preset faster -pix_fmt yuv420p10le", "1.0"),
    "sorenson": Clip(f"{PICTURE} -c:v flv"),
    "screen": Clip(f"{PICTURE} -c:v flashsv"),
    "screen_2": Clip(f"{PICTURE} -c:v flashsv2"),
    "aac": Clip(f"{TONE} -c:a aac -ac 2 -ar 48000"),
    "aac_mono": Clip(f"{TONE} -c:a aac -ac 1 -ar 22050"),
    "opus": Clip(f"{TONE} -c:a libopus -ac 2"),
    "flac": Clip(f"{TONE} -c:a flac -ac 2 -ar 48000"),
    "mp3": Clip(f"{TONE} -c:a libmp3lame -ac 2"),
    "mp3_low": Clip(f"{TONE} -c:a libmp3lame -ar 11025 -ac 1"),
    "ac3": Clip(f"{TONE} -c:a ac3 -ac 6 -ar 48000"),
    "ac3_stereo": Clip(f"{TONE} -c:a ac3 -ac 2 -ar 32000"),
    "eac3": Clip(f"{TONE} -c:a eac3 -ac 6"),
    "nellymoser": Clip(f"{TONE} -c:a nellymoser -ar 22050 -ac 1"),
    "nellymoser_8k": Clip(f"{TONE} -c:a nellymoser -ar 8000 -ac 1"),
    "nellymoser_16k": Clip(f"{TONE} -c:a nellymoser -ar 16000 -ac 1"),
    "pcm": Clip(f"{TONE} -c:a pcm_s16le -ar 44100 -ac 2"),
    "adpcm": Clip(f"{TONE} -c:a adpcm_swf -ar 22050 -ac 1"),
    "g711a": Clip(f"{TONE} -c:a pcm_alaw -ar 8000 -ac 1"),
    "g711u": Clip(f"{TONE} -c:a pcm_mulaw -ar 8000 -ac 1"),
}

FFMPEG_NAMES = {
    "h263": "flv1",
    "screen": "flashsv",
    "screen2": "flashsv2",
    "pcm_le": "pcm_s16le",
    "adpcm": "adpcm_swf",
    "g711a": "pcm_alaw",
    "g711u": "pcm_mulaw",
}
DECODERS = {"flv", "libdav1d", "mp3float"}
PIXELS = {"gray": ("4:0:0", 8), "bgr24": ("", 0), "yuvj420p": ("4:2:0", 8)} | {
    f"yuv{chroma}p{suffix}": (":".join(chroma), depth)
    for chroma in ("420", "422", "444")
    for suffix, depth in (("", 8), ("10le", 10), ("12le", 12))
}
CHANNELS = {"mono": 1, "stereo": 2, "5.1(side)": 6, "5.1": 6}


def make(ffmpeg: str, path: Path, arguments: str) -> bytes:
    command = [ffmpeg, "-v", "error", "-y", *arguments.split(), "-t", "0.4", "-f", "flv", path]
    made = subprocess.run(command, capture_output=True, timeout=60)
    assert made.returncode == 0, made.stderr.decode(errors="replace")
    return path.read_bytes()


def printed(ffmpeg: str, path: Path) -> str:
    """Return what ffmpeg prints about a file."""
    return subprocess.run([ffmpeg, "-hide_banner", "-i", path], capture_output=True, text=True, timeout=60).stderr


def payloads(data: bytes, type_id: int) -> list[bytes]:
    """Return the payloads of one type of tag of an FLV file."""
    found = []
    position = 13
    while position < len(data):
        length = int.from_bytes(data[position + 1 : position + 4], "big")
        if data[position] == type_id:
            found.append(data[position + 11 : position + 11 + length])
        position += length + 15
    return found


def configs(data: bytes) -> tuple[VideoConfig | None, AudioConfig | None]:
    video, audio = None, None
    for payload in payloads(data, 9):
        video = refine_video(video, payload)
    for payload in payloads(data, 8):
        audio = audio or audio_config(payload)
    return video, audio


def head(text: str) -> tuple[str, str]:
    """Split ``h264 (High)`` into codec and profile."""
    codec = text.split()[0]
    profile = [word for word in re.findall(r"\(([^)]*)\)", text) if word not in DECODERS]
    return codec, profile[-1] if profile else ""


@pytest.mark.parametrize("name", CLIPS)
def test_configurations_are_those_that_ffmpeg_prints(name, ffmpeg, tmp_path):
    clip = CLIPS[name]
    path = tmp_path / "clip.flv"
    data = make(ffmpeg, path, clip.arguments)
    video, audio = configs(data)
    line = next(line for line in printed(ffmpeg, path).splitlines() if "Stream #0:0" in line)
    found = re.search(r"Video: ([^,]+), (\w+)[^,]*(?:,[^,]*\))?, (\d+)x(\d+)", line)
    if found:
        assert audio is None
        codec, profile = head(found[1])
        chroma, depth = PIXELS[found[2]]
        wanted = VideoConfig(codec, profile, clip.level, int(found[3]), int(found[4]), depth, clip.chroma or chroma)
        assert video is not None
        assert (FFMPEG_NAMES.get(video.codec, video.codec), *astuple(video)[1:]) == astuple(wanted)
    else:
        found = re.search(r"Audio: ([^,]+), (\d+) Hz, ([^,]+)", line)
        codec, profile = head(found[1])
        assert video is None
        assert audio is not None
        assert (FFMPEG_NAMES.get(audio.codec, audio.codec), *astuple(audio)[1:]) == (
            *(codec, profile, int(found[2]), CHANNELS[found[3]]),
        )
    metadata = read_metadata(payloads(data, 18)[0])
    # FFmpeg's metadata do not tell the three Nellymosers apart.
    ids = [6 if config.codec == "nellymoser" else config.codec_id for config in (video, audio) if config]
    assert ids == [metadata["audiocodecid" if audio else "videocodecid"]]


def astuple(config: VideoConfig | AudioConfig) -> tuple[object, ...]:
    """All that configurations are compared by."""
    return tuple(getattr(config, field.name) for field in fields(config) if field.compare)


# Recordings ---------------------------------------------------------------------------------------------------------------

H264 = VideoConfig("h264", "Constrained Baseline", "1.0", 64, 48, 8, "4:2:0")
AAC = AudioConfig("aac", "LC", 44100, 1)
OPUS = AudioConfig("opus", "", 48000, 1)

RECORDED = [
    ("ffmpeg_publish_h264_aac", [H264], [AAC]),
    ("ffmpeg_publish_hevc_enhanced", [VideoConfig("hevc", "Rext", "1.0", 64, 48, 8, "4:4:4")], [AAC]),
    ("ffmpeg_publish_hevc_hdr_enhanced", [VideoConfig("hevc", "Main 10", "1.0", 64, 48, 10, "4:2:0")], []),
    ("ffmpeg_publish_av1_opus_enhanced", [VideoConfig("av1", "Main", "2.0", 64, 48, 8, "4:2:0")], [OPUS]),
    (
        "ffmpeg_publish_vp9_enhanced",
        [VideoConfig("vp9", "Profile 1", "1.0", 0, 0, 8, "4:4:4"), VideoConfig("vp9", "Profile 1", "", 64, 48, 8, "4:4:4")],
        [AAC],
    ),
    (
        "ffmpeg_publish_vvc_flac_enhanced",
        [VideoConfig("vvc", "Main 10", "1.0", 64, 48, 10, "4:2:0")],
        [AudioConfig("flac", "", 44100, 1)],
    ),
    ("ffmpeg_publish_ac3_enhanced", [], [AudioConfig("ac3", "", 44100, 1)]),
    ("ffmpeg_publish_eac3_enhanced", [], [AudioConfig("eac3", "", 44100, 1)]),
    ("ffmpeg_publish_flv1_mp3", [VideoConfig("h263", "", "", 64, 48, 8, "4:2:0")], [AudioConfig("mp3", "", 44100, 1)]),
    ("ffmpeg_publish_multitrack_video", [H264, VideoConfig("h264", "Constrained Baseline", "1.0", 32, 32, 8, "4:2:0")], [AAC]),
    ("ffmpeg_publish_multitrack_audio", [H264], [AAC, OPUS]),
    ("gst_publish", [H264], [AAC]),
    ("gst_publish_speex", [H264], [AudioConfig("speex", "", 16000, 1)]),
]


@pytest.mark.parametrize(("name", "videos", "audios"), RECORDED)
def test_the_headers_of_a_recording_are_read(name, videos, audios):
    messages = ChunkReader().feed(WIRE.joinpath(f"{name}.c2s.bin").read_bytes()[3073:])
    for type_id, read, wanted in ((9, video_config, videos), (8, audio_config, audios)):
        found = dict.fromkeys(read(message.payload) for message in messages if message.type_id == type_id)
        assert [config for config in found if config] == wanted


def test_nothing_raises_wherever_a_recorded_message_is_cut():
    for name, _, _ in RECORDED:
        for message in ChunkReader().feed(WIRE.joinpath(f"{name}.c2s.bin").read_bytes()[3073:])[:40]:
            read = {8: audio_config, 9: video_config}.get(message.type_id)
            for end in range(min(len(message.payload), 200)) if read else ():
                config = read(message.payload[:end])
                assert config is None or config.codec


# Bits ---------------------------------------------------------------------------------------------------------------------


def bits(*fields: str | tuple[int, int]) -> bytes:
    """Join fields: bits as text, or a number and how many bits it takes. Zeros fill the last byte."""
    text = "".join(field if isinstance(field, str) else f"{field[0]:0{field[1]}b}" for field in fields).replace(" ", "")
    text += "0" * (-len(text) % 8)
    return bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))


def ue(number: int) -> str:
    return "0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}"


def se(number: int) -> str:
    return ue(2 * number - 1 if number > 0 else -2 * number)


def test_bits_are_read_from_the_most_significant_one():
    reader = BitReader(b"\xa5\x5a\xff")
    assert [reader.bits(1), reader.bits(3), reader.bits(7), reader.flag(), reader.bits(0), reader.bits(12)] == [
        *(1, 2, 0b0101010, True, 0, 0xAFF),
    ]
    with pytest.raises(EOFError):
        reader.flag()


@pytest.mark.parametrize("number", [0, 1, 2, 3, 7, 255, 65535, (1 << 32) - 2])
def test_exp_golomb_numbers_are_read(number):
    assert BitReader(bits("0", ue(number))[:]).bits(1) == 0
    assert BitReader(bits(ue(number))).ue() == number


def test_signed_exp_golomb_numbers_are_read():
    reader = BitReader(bits(*(se(number) for number in range(-9, 10))))
    assert [reader.se() for _ in range(19)] == list(range(-9, 10))


def test_an_endless_exp_golomb_number_ends():
    with pytest.raises(EOFError):
        BitReader(bytes(100)).ue()


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        (b"\0\0\3\1", b"\0\0\1"),
        (b"\0\0\3\0\0\3\0", b"\0\0\0\0\0"),
        (b"\0\0\3\3", b"\0\0\3"),
        (b"\0\3\0\3", b"\0\3\0\3"),
        (b"\1\0\0\3", b"\1\0\0"),
    ],
)
def test_emulation_prevention_bytes_are_removed(escaped, plain):
    assert unescape(escaped) == plain


# H.264 and HEVC by hand -------------------------------------------------------------------------------------------------------


def avc(profile: int, constraints: int, level: int, *sps: str | tuple[int, int], enhanced: bool = False) -> VideoConfig | None:
    """Read an avcC with one parameter set, of which *sps* is what follows profile and level."""
    head = bytes((profile, constraints, level))
    nal = b"\x67" + head + bits(*sps, "1")
    record = b"\1" + head + b"\xff\xe1" + len(nal).to_bytes(2, "big") + nal + b"\1\0\4\x68\xce\x0f\xc8"
    return video_config((b"\x90avc1" if enhanced else b"\x17\0\0\0\0") + record)


ORDER_TYPE_0 = ue(0) + ue(0) + ue(0)  # log2_max_frame_num, the type, log2_max_pic_order_cnt_lsb
FULL_HD = ue(4) + "0" + ue(119) + ue(67) + "1" + "1" + "1" + ue(0) + ue(0) + ue(0) + ue(4)


@pytest.mark.parametrize("enhanced", [False, True])
def test_a_parameter_set_with_cropping(enhanced):
    config = avc(77, 0, 40, ue(0), ORDER_TYPE_0, FULL_HD, enhanced=enhanced)
    assert config == VideoConfig("h264", "Main", "4.0", 1920, 1080, 8, "4:2:0")


def test_a_parameter_set_with_a_cycle_of_picture_orders():
    order = ue(0) + ue(1) + "0" + se(-3) + se(5) + ue(3) + se(1) + se(-1) + se(100)
    assert avc(66, 0x40, 31, ue(0), order, FULL_HD) == VideoConfig(
        *("h264", "Constrained Baseline", "3.1", 1920, 1080, 8, "4:2:0"),
    )


def test_a_parameter_set_with_separate_planes_is_cropped_by_pixels():
    chroma = ue(3) + "1" + ue(2) + ue(2) + "0" + "0"
    config = avc(244, 0, 51, ue(0), chroma, ORDER_TYPE_0, FULL_HD)
    assert config == VideoConfig("h264", "High 4:4:4 Predictive", "5.1", 1920, 1084, 10, "4:4:4")


def test_scaling_lists_are_stepped_over_even_if_they_end_early():
    lists = "1" + "1" + se(-8) + "0" * 5 + "1" + se(1) * 64 + "0"
    config = avc(100, 0, 30, ue(0), ue(1) + ue(0) + ue(0) + "0", lists, ORDER_TYPE_0, FULL_HD)
    assert config == VideoConfig("h264", "High", "3.0", 1920, 1080, 8, "4:2:0")


@pytest.mark.parametrize(
    ("profile", "constraints", "level", "name", "level_name"),
    [
        (66, 0, 11, "Baseline", "1.1"),
        (66, 0x50, 11, "Constrained Baseline", "1b"),
        (77, 0x10, 11, "Main", "1b"),
        (100, 0x10, 11, "High", "1.1"),
        (100, 0, 9, "High", "1b"),
        (110, 0x10, 30, "High 10 Intra", "3.0"),
        (122, 0, 30, "High 4:2:2", "3.0"),
        (88, 0, 30, "Extended", "3.0"),
        (200, 0, 30, "", "3.0"),
    ],
)
def test_profile_and_level_are_read_even_if_the_parameter_set_is_not(profile, constraints, level, name, level_name):
    assert avc(profile, constraints, level, "0" * 60) == VideoConfig("h264", name, level_name)


def test_an_impossible_size_is_unknown():
    huge = ue(4) + "0" + ue(1 << 20) + ue(67) + "1" + "1" + "0"
    assert avc(77, 0, 40, ue(0), ORDER_TYPE_0, huge) == VideoConfig("h264", "Main", "4.0", 0, 0, 8, "4:2:0")
    nothing_left = ue(4) + "0" + ue(0) + ue(0) + "1" + "1" + "1" + ue(20) + ue(0) + ue(0) + ue(0)
    assert avc(77, 0, 40, ue(0), ORDER_TYPE_0, nothing_left) == VideoConfig("h264", "Main", "4.0", 0, 0, 8, "4:2:0")


@pytest.mark.parametrize("payload", [b"\x17\0\0\0\0", b"\x17\0\0\0\0\1", b"\x90avc1", b"\x17\0\0\0\0\0\0\0\1\x67\x42"])
def test_an_invalid_record_leaves_only_the_codec(payload):
    assert video_config(payload) == VideoConfig("h264")


def test_an_hvcc_without_parameter_sets_has_profile_level_chroma_and_depth():
    record = b"\1\2" + bytes(10) + b"\x99\xf0\0\xfc\xfe\xfa\xfa\0\0\x0f\0"
    assert len(record) == 23
    wanted = VideoConfig("hevc", "Main 10", "5.1", 0, 0, 10, "4:2:2")
    assert video_config(b"\x90hvc1" + record) == wanted
    assert video_config(b"\x1c\0\0\0\0" + record) == wanted  # legacy codec 12
    # A set of another layer, and one that ends at once, are passed over.
    for sets in (b"\1\x21\0\2\0\3\x43\x01\x01\0\2\x42\x01", b"\3\x21\xff\xff\0\3\x42\x01\x01"):
        assert video_config(b"\x90hvc1" + record[:-1] + sets) == wanted


# Others by hand -----------------------------------------------------------------------------------------------------------


def test_an_av1_record_without_a_sequence_header_has_all_but_the_size():
    assert video_config(b"\x90av01\x81\x4d\x6c\0") == VideoConfig("av1", "Professional", "5.1", 0, 0, 12, "4:2:0")
    assert video_config(b"\x90av01\x81\x1f\x10\0") == VideoConfig("av1", "Main", "", 0, 0, 8, "4:0:0")
    assert video_config(b"\x90av01") == VideoConfig("av1")


def av1(*fields: str | tuple[int, int]) -> VideoConfig | None:
    """Read a keyframe that begins with a temporal delimiter, and then this sequence header."""
    unit = bits(*fields)
    return video_config(b"\x91av01\x12\0\x0a" + bytes((len(unit),)) + unit + b"\x32\x02\x10\x00")


SIZE = ("1011", "1010", (1919, 12), (1079, 11))


def test_an_av1_still_picture_has_a_short_header():
    # seq_profile, still_picture, reduced_still_picture_header, seq_level_idx; size; tools; color_config.
    assert av1("000 1 1 00101", *SIZE, "000", "000", "0 0 0 0") == VideoConfig("av1", "Main", "3.1", 1920, 1080, 8, "4:2:0")


def test_an_av1_header_with_timing_info_and_operating_points():
    fields = (
        *("010 0 0", "1", (1, 32), (25, 32), "1", ue(6)),  # timing_info
        *("1", "01001", (1, 32), "00000 00000"),  # decoder_model_info: delays of 10 bits
        *("1", "00001"),  # initial display delay, two points
        *("000000000001", "01100", "1", "1", (5, 10), (6, 10), "0", "1 0011"),
        *("000000000011", "00101", "0", "0"),
        *(*SIZE, "1 0000 000", "000", "0000", "1", "11", "0", "1", "0", "1", "101", "000"),
        *("1 1 0", "1", (9, 8), (16, 8), (9, 8), "0", "1", "0"),  # 12 bits, colors, 4:2:2
    )
    assert av1(*fields) == VideoConfig("av1", "Professional", "5.0", 1920, 1080, 12, "4:2:2")


def test_an_av1_header_of_rgb_is_4_4_4():
    fields = ("001 1 1 00101", *SIZE, "000", "000", "0", "1", (1, 8), (13, 8), (0, 8))
    assert av1(*fields) == VideoConfig("av1", "High", "3.1", 1920, 1080, 8, "4:4:4")


def test_av1_units_without_a_sequence_header_have_no_configuration():
    assert video_config(b"\x91av01\x12\0\x32\x01\0") is None
    assert video_config(b"\x91av01\x12\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f") is None
    assert video_config(b"\x91av01\x0a\x02\0") is None
    assert av1("000 0 0") is None


def test_vp8_is_read_from_its_keyframe():
    frame = b"\x10\x02\0\x9d\x01\x2a\x80\x02\xe0\x41"
    assert video_config(b"\x91vp08" + frame) == VideoConfig("vp8", "", "", 640, 480, 8, "4:2:0")
    assert video_config(b"\x91vp08\x11" + frame[1:]) is None
    assert video_config(b"\x90vp08\0\x1f\x80\2\2\2\0\0") == VideoConfig("vp8", "", "3.1", 0, 0, 8, "4:2:0")


@pytest.mark.parametrize("record", ["010a82020202 0000", "01000000 010a8202 02020000"])
def test_a_vpcc_is_read_with_and_without_the_head_of_its_box(record):
    config = video_config(b"\x90vp09" + bytes.fromhex(record))
    assert config == VideoConfig("vp9", "Profile 1", "1.0", 0, 0, 8, "4:2:0")


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        (("10 0 0 0 0 1 0", (0x498342, 24), "010 0"), VideoConfig("vp9", "Profile 0", "", 1920, 1080, 8, "4:2:0")),
        (("10 1 0 0 0 1 0", (0x498342, 24), "010 0 0 1 0"), VideoConfig("vp9", "Profile 1", "", 1920, 1080, 8, "4:4:0")),
        (("10 1 0 0 0 1 0", (0x498342, 24), "111 0"), VideoConfig("vp9", "Profile 1", "", 1920, 1080, 8, "4:4:4")),
        (("10 0 1 0 0 1 0", (0x498342, 24), "1 010 0"), VideoConfig("vp9", "Profile 2", "", 1920, 1080, 12, "4:2:0")),
        (("10 1 1 0 0 0 1 0", (0x498342, 24), "0 010 0 1 0 0"), VideoConfig("vp9", "Profile 3", "", 1920, 1080, 10, "4:2:2")),
        (("10 0 0 1 0 1 0", (0x498342, 24), "010 0"), None),
        (("10 0 0 0 1 1 0", (0x498342, 24), "010 0"), None),
        (("10 0 0 0 0 1 0", (0x498341, 24), "010 0"), None),
        (("11 0 0 0 0 1 0", (0x498342, 24), "010 0"), None),
    ],
)
def test_vp9_is_read_from_its_keyframe(fields, config):
    payload = b"\x91vp09" + bits(*fields, (1919, 16), (1079, 16))
    assert video_config(payload) == config
    assert video_config(payload[:-3]) is None


@pytest.mark.parametrize(
    ("code", "size"), [("000 10000000 01100000", (128, 96)), ("001 0000010000000000 0000000100000000", (1024, 256))]
)
def test_sorenson_h263_of_any_size(code, size):
    frame = bits("00000000000000001 00000 00000000", code)
    assert video_config(b"\x12" + frame) == VideoConfig("h263", "", "", *size, 8, "4:2:0")
    assert video_config(b"\x12" + frame[:3]) == VideoConfig("h263")


@pytest.mark.parametrize(("code", "size"), [(2, (352, 288)), (3, (176, 144)), (4, (128, 96)), (5, (320, 240)), (7, (0, 0))])
def test_sorenson_h263_of_a_usual_size(code, size):
    frame = bits("00000000000000001 00000 00000000", (code, 3), "0" * 40)
    assert video_config(b"\x12" + frame) == VideoConfig("h263", "", "", *size, 8, "4:2:0")


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\x17", b"\x27\1\0\0\0abc", b"\x17\1\0\0\0abc", b"\x17\2\0\0\0", b"\x22\0\0", b"\x57\0", b"\x91hvc1\0\0\0abc"),
        *(b"\x90", b"\x90hv", b"\xd4hvc1\2\0\x09", b"\x92avc1", b"\x97", b"\xd0hvc1"),
    ],
)
def test_video_messages_without_a_configuration(payload):
    assert video_config(payload) is None


def test_codecs_that_are_only_known_by_name():
    assert video_config(b"\x14\0\1\2") == VideoConfig("vp6")
    assert video_config(b"\x18\0\1\2") == VideoConfig("id 8")
    assert video_config(b"\x90abcd\1\2\3") == VideoConfig("0x61626364")
    assert video_config(b"\x95av01\x80\x04\x81\0\0\0") == VideoConfig("av1")  # the descriptor of MPEG-2 TS


RECORD = b"\1\x4d\0\x28"
MAIN = VideoConfig("h264", "Main", "4.0")


@pytest.mark.parametrize(
    "payload",
    [
        b"\x96\x00avc1\x05" + RECORD,
        b"\x96\x10avc1\x05\0\0\4" + RECORD + b"\x06\0\0\1\1",
        b"\x96\x20avc1\x05\0\0\4" + RECORD + b"hvc1\x06\0\0\1\1",
    ],
)
def test_the_first_track_of_a_multitrack_header_counts(payload):
    assert video_config(payload) == MAIN


def test_a_multitrack_header_behind_a_mod_ex_packet_is_read_too():
    assert video_config(b"\x97\x02\0\0\0\x06\x10avc1\x05\0\0\4" + RECORD) == MAIN
    assert audio_config(b"\x97\x02\0\0\0\x05\x10mp4a\x05\0\0\2\x12\x10") == AudioConfig("aac", "LC", 44100, 2)


def codec_id(config: VideoConfig | AudioConfig | None) -> int | None:
    return config and config.codec_id


def test_the_id_of_a_codec_is_that_of_its_header():
    for legacy in (7, 12):
        assert codec_id(video_config(bytes((0x10 | legacy,)) + bytes(4) + RECORD)) == legacy
    for four_cc in (b"avc1", b"hvc1", b"vvc1", b"av01", b"vp08", b"vp09", b"zzzz"):
        assert codec_id(video_config(b"\x90" + four_cc)) == int.from_bytes(four_cc, "big")
        assert codec_id(video_config(b"\x96\x00" + four_cc + b"\1")) == int.from_bytes(four_cc, "big")
    assert codec_id(audio_config(b"\xaf\0\x12\x10")) == 10
    for four_cc in (b"Opus", b"fLaC", b"mp4a"):
        assert codec_id(audio_config(b"\x90" + four_cc)) == int.from_bytes(four_cc, "big")
    assert codec_id(audio_config(b"\x91.mp3\xff\xfb\x94\x44")) == int.from_bytes(b".mp3", "big")
    assert [codec_id(audio_config(bytes((number << 4, 1)))) for number in (4, 5, 6, 14)] == [4, 5, 6, 14]


SURROUND = "01 06 0000003f"  # in native order: the six of 5.1


def test_a_multichannel_configuration_adds_to_what_is_known():
    known = AudioConfig("flac", "", 48000, 6)
    found = refine_audio(known, b"\x94fLaC" + bytes.fromhex(SURROUND))
    assert found == known
    assert found is not None
    assert found.layout == "5.1"
    found = refine_audio(AudioConfig("opus", "", 48000), b"\x95\x04Opus\0" + bytes.fromhex(SURROUND))
    assert found is not None
    assert (found.channels, found.layout) == (6, "5.1")


def test_a_multichannel_configuration_alone_has_the_channels():
    found = refine_audio(None, b"\x94Opus" + bytes.fromhex(SURROUND))
    assert found == AudioConfig("opus", channels=6)
    assert codec_id(found) == 0x4F707573
    # The frames of these say all of it, and come next.
    assert refine_audio(None, b"\x94ac-3" + bytes.fromhex(SURROUND)) is None


@pytest.mark.parametrize("body", ["", "01", "01 06 000000", "05 06 0000003f", "02 06 0001", "01 00 00000000"])
def test_an_invalid_multichannel_configuration_changes_nothing(body):
    known = AudioConfig("opus", "", 48000, 2)
    assert refine_audio(known, b"\x94Opus" + bytes.fromhex(body)) is known
    assert refine_audio(None, b"\x94Opus" + bytes.fromhex(body)) is None


def test_a_multichannel_configuration_of_another_codec_changes_nothing():
    known = AudioConfig("aac", "LC", 48000, 2)
    assert refine_audio(known, b"\x94Opus" + bytes.fromhex(SURROUND)) is known


def test_a_header_replaces_the_configuration_and_other_messages_do_not():
    known = AudioConfig("opus", "", 48000, 2)
    assert refine_audio(known, b"\xaf\0\x12\x10") == AudioConfig("aac", "LC", 44100, 2)
    assert refine_audio(known, b"\x91Opus\xfc") is known


def test_colors_are_those_of_ffmpegs_options(ffmpeg, tmp_path):
    options = "-vf setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
    data = make(ffmpeg, tmp_path / "clip.flv", f"{X265} -pix_fmt yuv420p10le {options}")
    assert [video_color(payload) for payload in payloads(data, 9) if payload[0] == 0xD4] == ["bt2020nc/bt2020/smpte2084"]
    assert {video_color(payload) for payload in payloads(data, 9) if payload[0] != 0xD4} == {None}


def test_the_layout_is_the_one_that_ffmpeg_encodes(ffmpeg, tmp_path):
    data = make(ffmpeg, tmp_path / "clip.flv", f"{TONE} -af aformat=channel_layouts=5.1(side) -c:a flac")
    config = None
    for payload in payloads(data, 8)[:2]:
        config = refine_audio(config, payload)
    assert config == AudioConfig("flac", "", 44100, 6)
    assert config is not None
    assert config.layout == "5.1(side)"


def test_a_configuration_is_refined_by_keyframes_of_its_codec_only():
    header = VideoConfig("vp9", "Profile 0", "3.1", 0, 0, 8, "4:2:0")
    keyframe = b"\x91vp09" + bits("10 0 0 0 0 1 0", (0x498342, 24), "010 0", (1919, 16), (1079, 16))
    full = VideoConfig("vp9", "Profile 0", "3.1", 1920, 1080, 8, "4:2:0")
    assert refine_video(header, keyframe) == full
    assert refine_video(header, b"\x21vp09abc") == header
    assert refine_video(header, b"\x12\0\0\x84\0\x40\x20") == header  # another codec
    assert refine_video(full, b"\x90vp09\0\x0a\x82") == full
    assert refine_video(None, keyframe) == video_config(keyframe)
    assert refine_video(None, b"\x21vp09abc") is None


# AAC ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        (("00010 0011 0010 000",), AudioConfig("aac", "LC", 48000, 2)),
        (("00001 0100 0001 000",), AudioConfig("aac", "Main", 44100, 1)),
        (("00010 1111", (50000, 24), "0010 000"), AudioConfig("aac", "LC", 50000, 2)),
        (("00010 1101 0010 000",), AudioConfig("aac", "LC", 0, 2)),
        (("00010 0011 0111 000",), AudioConfig("aac", "LC", 48000, 8)),
        (("00010 0011 1011 000",), AudioConfig("aac", "LC", 48000, 7)),
        (("00010 0011 0000 000", "0000 00 0011 0001"), AudioConfig("aac", "LC", 48000, 0)),
        (("11111 001010 0011 0010",), AudioConfig("aac", "xHE-AAC", 48000, 2)),
        (("11111 000111 0011 0010 0",), AudioConfig("aac", "ELD", 48000, 2)),
        # Hierarchical signalling.
        (("00101 0111 0001 0100 00010 000",), AudioConfig("aac", "HE-AAC", 44100, 1)),
        (("11101 0111 0001 0100 00010 000",), AudioConfig("aac", "HE-AACv2", 44100, 2)),
        (("00101 0110 0010 1111", (48000, 24), "00010 000"), AudioConfig("aac", "HE-AAC", 48000, 2)),
        # Backward compatible signalling.
        (("00010 0111 0001 000", (0x2B7, 11), "00101 1 0100"), AudioConfig("aac", "HE-AAC", 44100, 1)),
        (("00010 0111 0001 000", (0x2B7, 11), "00101 1 0100", (0x548, 11), "1"), AudioConfig("aac", "HE-AACv2", 44100, 2)),
        (("00010 0111 0001 000", (0x2B7, 11), "00101 1 0100", (0x548, 11), "0"), AudioConfig("aac", "HE-AAC", 44100, 1)),
        (("00010 0100 0001 000", (0x2B7, 11), "00101 0"), AudioConfig("aac", "LC", 44100, 1)),
        (("00010 0111 0001 0 1", (5, 14), "0", (0x2B7, 11), "00101 1 0100"), AudioConfig("aac", "HE-AAC", 44100, 1)),
        (("00010",), AudioConfig("aac")),
    ],
)
def test_an_audio_specific_config(fields, config):
    record = bits(*fields)
    assert audio_config(b"\xaf\0" + record) == config
    assert audio_config(b"\x90mp4a" + record) == config
    assert audio_config(b"\x95\x20mp4a\x01" + len(record).to_bytes(3, "big") + record) == config


@pytest.mark.parametrize("record", ["2b8a0800", "138856e5a0", "eb8a0800", "138856e5a54880"])
def test_ffmpeg_finds_the_same_rate_with_sbr(record, ffmpeg, tmp_path):
    path = tmp_path / "clip.flv"
    data = make(ffmpeg, path, f"{TONE} -c:a aac -ac 1 -ar 22050")
    header = next(payload for payload in payloads(data, 8) if payload[1] == 0)
    changed = b"\xaf\0" + bytes.fromhex(record)
    length, new_length = len(header).to_bytes(3, "big"), len(changed).to_bytes(3, "big")
    start = data.index(header) - 11
    tag = b"\x08" + new_length + bytes(7) + changed + (len(changed) + 11).to_bytes(4, "big")
    assert data[start + 1 : start + 4] == length
    path.write_bytes(data[:start] + tag + data[start + 15 + len(header) :])
    config = audio_config(changed)
    # Its profile and channels are what it finds in the frames, which have no SBR after all.
    found = re.search(r"Audio: aac \([^)]+\), (\d+) Hz", printed(ffmpeg, path))
    assert config is not None
    assert config.sample_rate_hz == int(found[1]) == 44100


# Other audio by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "config"),
    [
        (b"\xb6abc", AudioConfig("speex", "", 16000, 1)),
        (b"\xb7abc", AudioConfig("speex", "", 16000, 1)),
        (b"\x72abc", AudioConfig("g711a", "", 8000, 1)),
        (b"\x83abc", AudioConfig("g711u", "", 8000, 2)),
        (b"\x0babc", AudioConfig("pcm", "", 22050, 2)),
        (b"\x02abc", AudioConfig("pcm", "", 5512, 1)),
        (b"\x4fabc", AudioConfig("nellymoser", "", 16000, 1)),
        (b"\x5fabc", AudioConfig("nellymoser", "", 8000, 1)),
        (b"\x6eabc", AudioConfig("nellymoser", "", 44100, 1)),
        (b"\xdfabc", AudioConfig("opus", "", 48000, 2)),
        (b"\x2f\xff\xfb\x90\x44", AudioConfig("mp3", "", 44100, 2)),
        (b"\x2f\xff\xf3\x94\xc4", AudioConfig("mp3", "", 24000, 1)),
        (b"\x2f\xff\xe3\x98\xc4", AudioConfig("mp3", "", 8000, 1)),
        (b"\x91.mp3\xff\xfb\x94\x44", AudioConfig("mp3", "", 48000, 2)),
        # No frame header: the tag header has to do.
        (b"\x2fabcd", AudioConfig("mp3", "", 44100, 2)),
        (b"\x2f\xff\xeb\x90\x44", AudioConfig("mp3", "", 44100, 2)),
        (b"\x2f\xff\xfb\x9c\x44", AudioConfig("mp3", "", 44100, 2)),
        (b"\xefabcd", AudioConfig("mp3", "", 8000, 2)),
        (b"\x91.mp3abcd", None),
        (b"\x90.mp3", None),
        (b"\x90Opus", AudioConfig("opus", "", 48000, 0)),
        (b"\x90OpusOpusHead\1\6\0\0", AudioConfig("opus", "", 48000, 6)),
        (b"\x90fLaC", AudioConfig("flac")),
        (b"\x90fLaCfLaC\0\0\0\x22" + bytes(10) + b"\x0b\xb8\x02\xf0", AudioConfig("flac", "", 48000, 2)),
        (b"\x90abcdabc", AudioConfig("0x61626364")),
        (b"\x91abcdabc", None),
        (b"\x91ac-3\x0b\x77\0\0\x1e\x40\xe1\0\0", AudioConfig("ac3", "", 48000, 6)),
        (b"\x91ac-3\x0b\x77\0\0\x1e\x40\x44\0\0", AudioConfig("ac3", "", 48000, 3)),
        (b"\x91ac-3\x0b\x77\0\0\x5e\x48\x20\0\0", AudioConfig("ac3", "", 22050, 1)),
        (b"\x91ac-3\x0b\x77\0\0\xde\x40\xe1\0\0", None),
        (b"\x91ac-3\x0b\x78\0\0\x1e\x40\xe1\0\0", None),
        (b"\x91ec-3\x0b\x77\0\0\xc5\x80\0\0\0", AudioConfig("eac3", "", 24000, 3)),
        (b"\x91ec-3\x0b\x77\0\0\xf4\x80\0\0\0", AudioConfig("eac3", "", 0, 2)),
        (b"\x90ec-3", None),
        (b"\x94Opus\1\2\0\0\0\3", None),
        (b"\xaf\1abc", None),
        (b"\x91mp4aabc", None),
        (b"\x92mp4a", None),
        (b"", None),
        (b"\x9f", None),
        (b"\xaf", None),
    ],
)
def test_audio_that_is_not_aac(payload, config):
    assert audio_config(payload) == config


def test_the_work_is_bounded_whatever_a_message_holds():
    # The longest cycle, the most empty NAL units and OBUs: none of these may take noticeable time.
    order = ue(0) + ue(1) + "0" + se(0) + se(0) + ue(1 << 31) + "1" * (20 * MAX_RECORD_BYTES)
    assert avc(66, 0, 31, ue(0), order).profile == "Baseline"
    hevc = b"\1\2" + bytes(10) + b"\x99\xf0\0\xfc\xfe\xfa\xfa\0\0\x0f\xff" + b"\x21\xff\xff" + bytes(1 << 20)
    assert video_config(b"\x90hvc1" + hevc).width == 0
    assert video_config(b"\x91av01" + b"\x12\0" * (1 << 20)) is None
    vvc = b"\xff\0\x65\x5f\1\2\x10\x80\0\0\0\0\0\0\0\0\xff\x8f\xff\xff" + bytes(1 << 20)
    assert video_config(b"\x90vvc1" + vvc).width == 0
