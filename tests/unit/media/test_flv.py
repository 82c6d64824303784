"""FLV files: tags, metadata that are overwritten in place, and repair after a crash; checked with ffmpeg where possible."""

from __future__ import annotations

import io
import random
import re
import struct
import subprocess
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import imageio_ffmpeg
import pytest

from rtmpd.errors import LocalProtocolError
from rtmpd.media import flv, flv_metadata, flv_repair
from rtmpd.media.audio_codecs import AudioConfig
from rtmpd.media.tags import Kind, audio_kind, video_kind
from rtmpd.media.video_codecs import VideoConfig
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import UNDEFINED, AmfDate, AmfLimits, EcmaArray

if TYPE_CHECKING:
    from pathlib import Path

PICTURE = "-f lavfi -i testsrc2=size=64x48:rate=25"
TONE = "-f lavfi -i sine=frequency=440:sample_rate=44100"
X264 = f"{PICTURE} -c:v libx264 -preset ultrafast -pix_fmt yuv420p"
AAC = "-c:a aac -b:a 32k -ac 1"

CLIPS = {
    "h264_aac": f"{TONE} {X264} -g 25 {AAC} -t 6",
    "h264_aac_b_frames": f"{TONE} {PICTURE} -c:v libx264 -preset medium -pix_fmt yuv420p -g 20 {AAC} -t 2",
    "h264_only": f"{X264} -g 12 -t 2",
    "h264_one_keyframe": f"{X264} -g 250 -t 1",
    "hevc_aac": f"{TONE} {PICTURE} -c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=25 {AAC} -t 2",
    "av1_opus": f"{TONE} {PICTURE} -c:v libsvtav1 -preset 12 -g 25 -c:a libopus -t 2",
    "vp9_mp3": f"{TONE} {PICTURE} -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 25 -c:a libmp3lame -t 2",
    "sorenson_mp3": f"{TONE} {PICTURE} -c:v flv -g 25 -c:a libmp3lame -t 2",
    "aac_only": f"{TONE} {AAC} -t 12",
    "mp3_only": f"{TONE} -c:a libmp3lame -t 3",
    "opus_only": f"{TONE} -c:a libopus -t 3",
    "flac_only": f"{TONE} -c:a flac -t 3",
    "tiny": "-f lavfi -i testsrc2=size=16x16:rate=10 -f lavfi -i sine=frequency=440:sample_rate=11025"
    " -c:v libx264 -preset ultrafast -x264-params info=0 -pix_fmt yuv420p -g 3 -c:a aac -b:a 8k -ac 1 -t 0.6",
}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Return a function that returns a clip of ffmpeg's as bytes."""
    directory = tmp_path_factory.mktemp("clips")

    @cache
    def make(name: str) -> bytes:
        path = directory / f"{name}.flv"
        made = run("-v", "error", *CLIPS[name].split(), "-f", "flv", path)
        assert made.returncode == 0, made.stderr
        return path.read_bytes()

    return make


class Tag(NamedTuple):
    type_id: int
    timestamp: int
    payload: bytes


def split(data: bytes) -> list[Tag]:
    """Take a good file apart."""
    tags = []
    position = 13
    while position < len(data):
        length = int.from_bytes(data[position + 1 : position + 4], "big")
        time = data[position + 7] << 24 | int.from_bytes(data[position + 4 : position + 7], "big")
        tags.append(Tag(data[position], time, data[position + 11 : position + 11 + length]))
        position += length + 15
    assert position == len(data)
    return tags


def media(data: bytes) -> list[Tag]:
    return [tag for tag in split(data) if tag.type_id != flv.SCRIPT]


def scan(data: bytes) -> flv_repair.ScanResult:
    return flv_repair.scan(io.BytesIO(data))


def record(tags: list[Tag], metadata: dict[str, object] | None = None, *, close: bool = True, **options: int) -> bytes:
    """Record tags as a recorder does: the metadata first, and patched in the end."""
    block = flv_metadata.MetadataBlock(metadata, **options)
    index = flv_metadata.KeyframeIndex()
    file = io.BytesIO()
    file.write(flv.file_header(True, True) + block.render())
    for type_id, timestamp, payload in tags:
        result = scan(flv.file_header(True, True) + flv.tag(type_id, timestamp, payload))
        position = file.tell()
        block.audio = block.audio or result.audio
        block.video = result.video if not block.video or (result.video and result.video.width) else block.video
        if result.frames == 0:
            index.header(timestamp, position, video=type_id == flv.VIDEO)
        elif type_id == flv.AUDIO:
            index.audio(timestamp, position)
        elif result.keyframes:
            index.keyframe(timestamp, position)
        file.write(flv.tag(type_id, timestamp, payload))
    if close:
        result = flv_repair.scan(file)
        block.has_audio, block.has_video = result.has_audio, result.has_video
        file.seek(0)
        file.write(flv.file_header(result.has_audio, result.has_video))
        file.write(
            block.render(
                duration_s=result.duration_ms / 1000,
                filesize_bytes=result.size,
                last_timestamp_ms=result.last_ms,
                keyframes=index.entries,
                sequence_header=index.sequence_header,
            )
        )
    return file.getvalue()


def repair(data: bytes) -> bytes:
    file = io.BytesIO(data)
    plan = flv_repair.repair_plan(flv_repair.scan(file))
    assert plan is not None
    flv_repair.apply_plan(file, plan)
    return file.getvalue()


def metadata_of(data: bytes) -> dict[str, object]:
    """Decode the first tag, which is the metadata."""
    name, value = amf0.decode_all(split(data)[0].payload, limits=AmfLimits(values=1 << 17))
    assert name == "onMetaData"
    assert isinstance(value, EcmaArray)
    count = struct.unpack_from(">I", split(data)[0].payload, 14)[0]
    assert count == len(value)
    return value


def index_of(data: bytes) -> list[tuple[float, float]]:
    keyframes = metadata_of(data)["keyframes"]
    return list(zip(keyframes["times"], keyframes["filepositions"], strict=True))


def play(path: Path, data: bytes) -> str:
    """Let ffmpeg decode all of a file without a word; return the duration that it prints."""
    path.write_bytes(data)
    played = run("-v", "warning", "-i", path, "-f", "null", "-")
    assert (played.returncode, played.stderr) == (0, "")
    return re.search(r"Duration: ([^,]+),", run("-i", path).stderr)[1]


def seconds(duration: str) -> float:
    hours, minutes, rest = duration.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


# Tags ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("audio", "video", "flags"), [(True, True, 5), (True, False, 4), (False, True, 1), (False, False, 0)])
def test_the_file_header_says_which_tags_there_are(audio, video, flags):
    header = flv.file_header(audio, video)
    assert header == b"FLV\1" + bytes((flags,)) + b"\0\0\0\x09\0\0\0\0"
    assert len(header) == flv.FILE_HEADER_SIZE


@pytest.mark.parametrize(
    ("timestamp", "encoded"),
    [
        (0, "00000000"),
        (1, "00000100"),
        (0xFFFFFF, "ffffff00"),
        (0x1000000, "00000001"),
        (0x12345678, "34567812"),
        (0xFFFFFFFF, "ffffffff"),
        (1 << 32, "00000000"),
    ],
)
def test_a_tag_has_its_timestamp_in_two_pieces(timestamp, encoded):
    made = flv.tag(flv.VIDEO, timestamp, b"payload")
    assert made == b"\x09\0\0\7" + bytes.fromhex(encoded) + b"\0\0\0payload\0\0\0\x12"
    assert len(made) == flv.tag_size(7) == 7 + flv.TAG_OVERHEAD


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65536])
def test_a_tag_is_written_into_a_buffer_without_touching_the_rest(length):
    payload = random.Random(length).randbytes(length)
    wanted = flv.tag(flv.AUDIO, 0x01020304, payload)
    for buffer in (bytearray(b"x" * (len(wanted) + 20)), memoryview(bytearray(b"x" * (len(wanted) + 20)))):
        assert flv.tag_into(buffer, 7, flv.AUDIO, 0x01020304, payload) == 7 + len(wanted)
        assert bytes(buffer) == b"x" * 7 + wanted + b"x" * 13


def test_the_largest_tag():
    made = flv.tag(flv.VIDEO, 0, bytes(flv.MAX_PAYLOAD_BYTES))
    assert made[:4] == b"\x09\xff\xff\xff"
    assert made[-4:] == b"\x01\x00\x00\x0a"
    with pytest.raises(LocalProtocolError):
        flv.tag(flv.VIDEO, 0, bytes(flv.MAX_PAYLOAD_BYTES + 1))


# Index --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "stride"), [(0, 1), (8, 1), (9, 2), (16, 2), (17, 4), (1000, 128)])
def test_an_index_above_its_capacity_keeps_every_second_entry(count, stride):
    index = flv_metadata.KeyframeIndex(8)
    for number in range(count):
        index.keyframe(number * 10, number * 100)
    assert index.entries == [(number * 10, number * 100) for number in range(0, count, stride)]


def test_an_index_of_one_entry_is_the_first():
    index = flv_metadata.KeyframeIndex(1)
    for number in range(100):
        index.keyframe(number, number)
    assert index.entries == [(0, 0)]


def test_an_index_of_audio_has_an_entry_a_second():
    index = flv_metadata.KeyframeIndex()
    index.header(0, 13, video=False)
    for number in range(200):
        index.audio(number * 23, 20 + number)
    assert index.entries == [(number * 23, 20 + number) for number in range(0, 200, 44)]
    assert index.sequence_header == (0, 13)


def test_an_index_of_audio_gives_way_to_keyframes():
    index = flv_metadata.KeyframeIndex(4)
    index.header(0, 13, video=False)
    for number in range(20):
        index.audio(number * 1000, 1000 + number)
    assert len(index.entries) == 3
    index.header(19_999, 1990, video=True)
    index.keyframe(20_000, 2000)
    index.audio(21_500, 2100)
    index.keyframe(22_000, 2200)
    index.header(22_500, 2250, video=True)
    assert index.entries == [(20_000, 2000), (22_000, 2200)]
    assert index.sequence_header == (19_999, 1990)


# Metadata -----------------------------------------------------------------------------------------------------------------

KEYFRAMES = [(number * 2000, 100_000 + number * 50_000) for number in range(100_000)]
VIDEO = VideoConfig("h264", "High", "4.0", 1920, 1080, 8, "4:2:0")
AUDIO = AudioConfig("aac", "LC", 48000, 2)


def rendered(block: flv_metadata.MetadataBlock, **arguments: object) -> dict[str, object]:
    data = block.render(**arguments)
    assert len(data) == block.tag_size
    return metadata_of(bytes(13) + data)


def without_padding(members: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if name != "padding"}


def test_metadata_at_the_start_of_a_recording():
    block = flv_metadata.MetadataBlock(has_audio=False)
    assert without_padding(rendered(block)) == {
        "duration": 0.0,
        "filesize": 0.0,
        "lasttimestamp": 0.0,
        "lastkeyframetimestamp": 0.0,
        "lastkeyframelocation": 0.0,
        "hasVideo": True,
        "hasAudio": False,
        "hasKeyframes": False,
        "hasMetadata": True,
        "metadatacreator": "rtmpd",
    }
    assert 4096 * 18 < block.tag_size < 4096 * 18 + 1024


def test_metadata_at_the_end_of_a_recording():
    block = flv_metadata.MetadataBlock({"encoder": "an encoder", "videodatarate": 2500.0, "width": 1, "duration": 7.0})
    block.video, block.audio = VIDEO, AUDIO
    members = rendered(
        block,
        duration_s=4.52,
        filesize_bytes=250_000,
        last_timestamp_ms=4480,
        keyframes=KEYFRAMES[:3],
        sequence_header=(0, 90_000),
    )
    assert without_padding(members) == {
        "duration": 4.52,
        "filesize": 250_000.0,
        "lasttimestamp": 4.48,
        "lastkeyframetimestamp": 4.0,
        "lastkeyframelocation": 200_000.0,
        "width": 1920.0,
        "height": 1080.0,
        "videocodecid": 7.0,
        "audiocodecid": 10.0,
        "audiosamplerate": 48000.0,
        "audiosamplesize": 16.0,
        "stereo": True,
        "audiochannels": 2.0,
        "hasVideo": True,
        "hasAudio": True,
        "hasKeyframes": True,
        "hasMetadata": True,
        "metadatacreator": "rtmpd",
        "encoder": "an encoder",
        "videodatarate": 2500.0,
        "keyframes": {"filepositions": [90_000.0, 100_000.0, 150_000.0, 200_000.0], "times": [0.0, 0.0, 2.0, 4.0]},
    }
    assert list(members)[-2:] == ["padding", "keyframes"]  # old flv.js reads nothing behind an object


@pytest.mark.parametrize(
    ("count", "step"), [(0, 1), (1, 1), (2, 1), (7, 1), (4096, 1), (4098, 2), (8192, 2), (8195, 4), (16384, 4), (100_000, 32)]
)
def test_an_index_always_fits_and_the_size_never_changes(count, step):
    block = flv_metadata.MetadataBlock({"encoder": "e"}, video=VIDEO, audio=AUDIO)
    for header in ((), ((0, 90_000),)):
        arguments = {"keyframes": KEYFRAMES[:count], "sequence_header": header[0] if header else None}
        members = rendered(block, **arguments)
        wanted = [*header, *KEYFRAMES[:count:step]] if count else []
        assert members["hasKeyframes"] is (len(wanted) > 1)
        if len(wanted) > 1:
            assert members["keyframes"]["times"] == [time / 1000 for time, _ in wanted]
            assert members["keyframes"]["filepositions"] == [position for _, position in wanted]
        else:
            assert "keyframes" not in members
        assert members["lastkeyframelocation"] == (KEYFRAMES[count - 1][1] if count else 0)


def test_a_sequence_header_behind_the_first_keyframe_is_no_entry():
    block = flv_metadata.MetadataBlock()
    members = rendered(block, keyframes=KEYFRAMES[:2], sequence_header=(0, 100_001))
    assert members["keyframes"]["filepositions"] == [100_000.0, 150_000.0]


@pytest.mark.parametrize(
    ("codec", "number"),
    [("hevc", 1752589105), ("av1", 1635135537), ("vp9", 1987063865), ("vp8", 0x76703038), ("vvc", 0x76766331), ("h263", 2)],
)
def test_video_codecs_are_written_as_flvenc_does(codec, number):
    assert rendered(flv_metadata.MetadataBlock(video=VideoConfig(codec)))["videocodecid"] == number


def test_codecs_have_the_id_that_their_messages_have():
    block = flv_metadata.MetadataBlock(video=VideoConfig("hevc", codec_id=12), audio=AudioConfig("aac", codec_id=0x6D703461))
    assert (rendered(block)["videocodecid"], rendered(block)["audiocodecid"]) == (12, 0x6D703461)
    assert rendered(flv_metadata.MetadataBlock(audio=AudioConfig("pcm", codec_id=0)))["audiocodecid"] == 0


@pytest.mark.parametrize(
    ("codec", "number"),
    [("opus", 0x4F707573), ("flac", 0x664C6143), ("ac3", 0x61632D33), ("mp3", 2), ("speex", 11), ("g711u", 8), ("pcm", 0)],
)
def test_audio_codecs_are_written_as_flvenc_does(codec, number):
    assert rendered(flv_metadata.MetadataBlock(audio=AudioConfig(codec)))["audiocodecid"] == number


def test_unknown_members_are_the_publishers_or_missing():
    publisher = {"width": 640.0, "height": 360.0, "videocodecid": "avc1", "audiosamplerate": 44100.0, "stereo": True}
    block = flv_metadata.MetadataBlock(publisher, video=VideoConfig("id 8"), audio=AudioConfig("aac", "LC", 0, 0))
    members = rendered(block)
    assert {name: members[name] for name in publisher} == publisher
    assert members["audiocodecid"] == 10
    assert "audiochannels" not in members


def test_metadata_have_no_members_of_a_missing_track():
    publisher = {"width": 640.0, "framerate": 25.0, "audiodatarate": 128.0, "stereo": True, "encoder": "e"}
    block = flv_metadata.MetadataBlock(publisher, video=VIDEO, audio=AUDIO)
    block.has_video = False
    assert not {"width", "height", "framerate", "videocodecid"} & rendered(block).keys()
    block.has_video, block.has_audio = True, False
    members = rendered(block)
    assert not {"audiodatarate", "stereo", "audiocodecid", "audiosamplerate"} & members.keys()
    assert (members["width"], members["encoder"]) == (1920, "e")


HOSTILE = {
    "nothing": None,
    "undefined": UNDEFINED,
    "date": AmfDate(0.0),
    "object": {"deep": {"deeper": 1.0}},
    "array": [1.0] * 100_000,
    "bytes": b"bytes",
    "nan": float("nan"),
    "infinite": float("-inf"),
    "huge": 1e300,
    "integer": 10**400,
    "empty": "",
    "long": "x" * 513,
    "wide": "\U0001f600" * 129,
    "control": "a\x1b[31mb",
    "surrogate": "\udcff",
    "newline": "a\nb",
    "": 1.0,
    "x" * 65: 1.0,
    "\udcff": 1.0,
    "a\0b": 1.0,
    7: 1.0,
    "framerate": -1.0,
    "keyframes": {"times": [0.0, 1.0], "filepositions": [0.0, 1.0]},
    "padding": 1.0,
    "duration": 1e9,
    "filesize": 1.0,
    "hasKeyframes": True,
    "hasVideo": False,
    "canSeekToEnd": True,
    "metadatacreator": "MEGA",
    "cuePoints": [{}],
}


def test_hostile_metadata_are_dropped():
    plain = flv_metadata.MetadataBlock()
    block = flv_metadata.MetadataBlock(HOSTILE)
    assert block.render() == plain.render()


def test_harmless_metadata_are_kept():
    publisher = {
        "text": "x" * 512,
        "wide": "\xfc\u4e2d",
        "name \xe4": "a b",
        "x" * 64: True,
        "no": False,
        "number": -1.5,
        "int": 3,
        "framerate": 29.97,
        "most": float(1 << 53),
        "Server": "NGINX RTMP",
    }
    members = rendered(flv_metadata.MetadataBlock({**HOSTILE, **publisher}))
    assert {name: members[name] for name in publisher} == publisher


def test_metadata_are_bounded_in_number_and_bytes():
    many = rendered(flv_metadata.MetadataBlock({f"name {number}": 1.0 for number in range(10_000)}))
    assert sum(name.startswith("name ") for name in many) == 64
    large = flv_metadata.MetadataBlock({f"name {number}": "x" * 500 for number in range(10_000)})
    assert large.tag_size - flv_metadata.MetadataBlock().tag_size <= 4096


@pytest.mark.parametrize("size", [flv_metadata.MIN_METADATA_BYTES, 64, 100, 183, 292, 1000, 70_001, 1 << 20])
def test_metadata_fit_into_any_room(size):
    block = flv_metadata.MetadataBlock({"encoder": "e", "text": "x" * 80}, video=VIDEO, audio=AUDIO, payload_bytes=size)
    assert block.payload_bytes == size
    for count in (0, 1, 5, 50, 5000):
        members = rendered(block, duration_s=1.5, keyframes=KEYFRAMES[:count], sequence_header=(0, 90_000))
        assert size < 64 or members["duration"] == 1.5
        assert ("keyframes" in members) is bool(count and size >= 1000)


@pytest.mark.parametrize("offset", range(27))
def test_metadata_fit_into_every_number_of_bytes(offset):
    block = flv_metadata.MetadataBlock(payload_bytes=5000 + offset)
    assert rendered(block, keyframes=KEYFRAMES[:10])["hasKeyframes"] is True


def test_metadata_that_cannot_fit_are_refused():
    with pytest.raises(LocalProtocolError):
        flv_metadata.MetadataBlock(payload_bytes=flv_metadata.MIN_METADATA_BYTES - 1)
    with pytest.raises(LocalProtocolError):
        flv_metadata.MetadataBlock(index_entries=1_000_000)


# Recordings, judged by ffmpeg -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CLIPS if name != "tiny"])
def test_a_recording_plays_and_its_duration_is_right(name, clip, tmp_path):
    original = clip(name)
    data = record(media(original), dict(scan(original).metadata))
    assert media(data) == media(original)
    result = scan(data)
    assert result.clean
    assert len(result.keyframes) >= 1
    assert metadata_of(data)["filesize"] == len(data)
    duration = seconds(play(tmp_path / "clip.flv", data))
    assert duration == pytest.approx(scan(original).metadata["duration"], abs=0.1)
    assert duration == pytest.approx(result.duration_ms / 1000, abs=0.01)
    for time, position in index_of(data):
        found = scan(data[:13] + data[int(position) :])
        assert found.first_ms == round(time * 1000)


@pytest.mark.parametrize(("name", "target"), [("h264_aac", 4.5), ("h264_aac", 2.2), ("h264_only", 1.3), ("aac_only", 10.5)])
def test_ffmpeg_seeks_by_the_index(name, target, clip, tmp_path):
    path = tmp_path / "clip.flv"
    data = record(media(clip(name)))
    path.write_bytes(data)
    played = run("-v", "trace", "-ss", target, "-i", path, "-t", "0.1", "-f", "null", "-")
    assert played.returncode == 0
    assert "invalid" not in played.stderr.lower()
    index = index_of(data)
    taken = re.findall(r"keyframe filepositions = (\d+) times = (\d+)", played.stderr)
    entries = [(int(time), int(position)) for position, time in taken[-len(index) :]]
    assert entries == [scan(data).sequence_header, *scan(data).keyframes]
    # It logs where it is in each tag that it reads. Where that is not the tag behind the last one, it has sought.
    following = dict(pairwise(accumulate((flv.tag_size(len(tag.payload)) for tag in split(data)), initial=13)))
    positions = [int(position) - 8 for position in re.findall(r"dts:\d+ pos:(\d+)", played.stderr)]
    positions = [position for position in positions if position in following]
    sought = [after for before, after in pairwise(positions) if after != following[before]]
    assert sought[0] == max(position for time, position in index if time <= target)


def test_an_unfinished_recording_plays_too(clip, tmp_path):
    data = record(media(clip("h264_aac_b_frames")), close=False)
    assert seconds(play(tmp_path / "clip.flv", data)) == pytest.approx(2, abs=0.1)
    assert "keyframes" not in metadata_of(data)


def test_a_recording_with_hostile_metadata_plays(clip, tmp_path):
    publisher = {**HOSTILE, "encoder": "x" * 512, "audiocodecid": "text", "videodatarate": float(1 << 53), "framerate": 1000.0}
    data = record(media(clip("h264_only")), publisher)
    assert seconds(play(tmp_path / "clip.flv", data)) == pytest.approx(2, abs=0.1)


def test_ffmpeg_accepts_a_reduced_index(clip, tmp_path):
    path = tmp_path / "clip.flv"
    path.write_bytes(record(media(clip("h264_aac")), index_entries=3))
    assert [time for time, _ in index_of(path.read_bytes())] == pytest.approx([0, 0.023, 2.023, 4.023], abs=0.002)
    played = run("-v", "trace", "-ss", 5, "-i", path, "-t", "0.1", "-f", "null", "-")
    assert "invalid" not in played.stderr.lower()
    assert played.stderr.count("keyframe filepositions") >= 4


# Scan and repair ------------------------------------------------------------------------------------------------------------


def test_a_scan_returns_all_fields(clip):
    original = clip("h264_aac")
    data = record(media(original))
    result = scan(data)
    tags = media(data)
    assert (result.valid, result.clean, result.size, result.end) == (True, True, len(data), len(data))
    assert (result.header_flags, result.has_audio, result.has_video) == (5, True, True)
    assert result.audio_tags == sum(tag.type_id == 8 for tag in tags)
    assert result.video_tags == sum(tag.type_id == 9 for tag in tags)
    assert (result.script_tags, result.other_tags) == (1, 0)
    assert result.frames == len(tags) - 3  # two sequence headers, and the end of the sequence
    assert (result.metadata_position, result.metadata_bytes) == (13, len(split(data)[0].payload))
    assert result.metadata_tag == data[13 : 13 + flv.tag_size(result.metadata_bytes)]
    assert result.metadata["filesize"] == len(data)
    assert result.audio == AudioConfig("aac", "LC", 44100, 1)
    assert result.video == VideoConfig("h264", "Constrained Baseline", "1.0", 64, 48, 8, "4:2:0")
    assert result.first_ms == 0
    assert result.last_ms == max(tag.timestamp for tag in tags)
    assert len(result.keyframes) == 6
    assert (result.sequence_header, *result.keyframes) == tuple((round(t * 1000), int(p)) for t, p in index_of(data))
    assert flv_repair.repair_plan(result) == flv_repair.RepairPlan(len(data), ())
    assert "padding" not in repr(result)


def test_a_repaired_file_equals_a_closed_one(clip):
    for name in ("h264_aac", "aac_only", "vp9_mp3", "h264_only"):
        tags = media(clip(name))
        publisher = {"encoder": "e", "framerate": 25.0}
        assert repair(record(tags, publisher, close=False)) == record(tags, publisher)


def check_duration(tags: list[Tag], duration_ms: float) -> None:
    """See that the duration is that of the frames, with one frame at the end, which is shorter than 200 ms."""
    kinds = {8: audio_kind, 9: video_kind}
    frames = [tag.timestamp for tag in tags if kinds[tag.type_id](tag.payload) in (Kind.FRAME, Kind.KEYFRAME)]
    span = max(frames) - min(frames) if frames else 0
    assert span <= duration_ms <= span + (200 if len(frames) > 1 else 0)


def test_a_file_that_is_cut_anywhere_is_repaired(clip, tmp_path):
    tags = media(clip("tiny"))
    data = record(tags, {"encoder": "e"}, close=False, index_entries=8)
    ends = [13]
    for tag in split(data):
        ends.append(ends[-1] + flv.tag_size(len(tag.payload)))
    assert len(data) < 8000
    spot_checks = {*random.Random(1).sample(range(ends[8], len(data)), 5), len(data) - 1}
    for size in range(len(data)):
        cut = data[:size]
        result = scan(cut)
        if size < 13:
            assert not result.valid
            assert flv_repair.repair_plan(result) is None
            continue
        end = max(end for end in ends if end <= size)
        assert (result.valid, result.end, result.clean) == (True, end, end == size)
        repaired = repair(cut)
        assert len(repaired) == end
        again = scan(repaired)
        assert again.clean
        assert flv_repair.repair_plan(again) == flv_repair.RepairPlan(end, ())
        assert repaired[4] == (4 * again.has_audio | again.has_video)
        left = media(repaired)
        assert left == tags[: len(left)]
        if end > ends[0]:
            members = metadata_of(repaired)
            check_duration(left, members["duration"] * 1000)
            assert members["filesize"] == end
            assert members["encoder"] == "e"
        if size in spot_checks:
            assert seconds(play(tmp_path / "clip.flv", repaired)) == pytest.approx(again.duration_ms / 1000, abs=0.01)


@pytest.mark.parametrize("name", ["h264_aac", "hevc_aac", "av1_opus", "aac_only"])
def test_a_larger_file_that_is_cut_anywhere_is_repaired(name, clip, tmp_path):
    data = record(media(clip(name)), close=False)
    start = flv.FILE_HEADER_SIZE + flv.tag_size(scan(data).metadata_bytes)
    randomly = random.Random(name)
    for number in range(24):
        size = randomly.randrange(start + 3000, len(data))
        tail = (b"", bytes(randomly.randrange(1, 9000)), randomly.randbytes(randomly.randrange(1, 9000)))[number % 3]
        repaired = repair(data[:size] + tail)
        result = scan(repaired)
        assert result.clean
        assert size - 9000 < len(repaired) <= size
        check_duration(media(repaired), result.duration_ms)
        if number < 2:
            assert seconds(play(tmp_path / "clip.flv", repaired)) == pytest.approx(result.duration_ms / 1000, abs=0.01)


def test_a_foreign_file_that_is_cut_is_repaired_as_far_as_it_has_room(clip, tmp_path):
    original = clip("h264_aac_b_frames")
    for size in (len(original), len(original) - 7, len(original) // 2):
        repaired = repair(original[:size])
        result = scan(repaired)
        assert result.clean
        assert (result.metadata["duration"], result.metadata["filesize"]) == (result.duration_ms / 1000, len(repaired))
        assert "keyframes" not in metadata_of(repaired)
        assert media(repaired) == media(original)[: len(media(repaired))]
        play(tmp_path / "clip.flv", repaired)


def test_a_truncated_file_with_only_audio_has_the_audio_flag(clip, tmp_path):
    # Cut before the first video tag: the header must not promise any.
    data = record(media(clip("h264_aac")), close=False)
    first_video = next(number for number, tag in enumerate(split(data)) if tag.type_id == flv.VIDEO)
    parts = split(data)[: first_video + 1]
    cut = data[: 13 + sum(flv.tag_size(len(tag.payload)) for tag in parts) - 1]
    repaired = repair(cut)
    assert repaired[4] & 1 == 0
    assert metadata_of(repaired)["hasVideo"] is False


FRAME = b"\x27\1\0\0\0" + b"f" * 50
KEYFRAME = b"\x17\1\0\0\0" + b"k" * 50


def simple(*payloads: bytes, step: int = 40) -> bytes:
    return flv.file_header(False, True) + b"".join(flv.tag(9, i * step, payload) for i, payload in enumerate(payloads))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"F", b"FLV\1", b"FLV\1\5\0\0\0\x09", b"FLV\1\5\0\0\0\x09\0\0\0", b"GIF89a" + bytes(100), bytes(100)),
        *(b"FLV\2\5\0\0\0\x09" + bytes(100), b"FLV\1\5\0\0\0\x08" + bytes(100), b"FLV\1\5\xff\xff\xff\xff" + bytes(100)),
    ],
)
def test_a_file_that_is_not_flv_is_not_repaired(data):
    result = scan(data)
    assert not result.valid
    assert not result.clean
    assert (result.size, result.end) == (len(data), 0)
    assert flv_repair.repair_plan(result) is None


def test_a_file_without_tags_is_valid_and_empty():
    result = scan(flv.file_header(True, False))
    assert (result.clean, result.frames, result.duration_ms, result.keyframes) == (True, 0, 0, ())
    assert flv_repair.repair_plan(result) == flv_repair.RepairPlan(13, ((4, b"\0"),))


def test_a_longer_file_header_is_skipped():
    data = b"FLV\1\1\0\0\0\x0cabc" + bytes(4) + simple(KEYFRAME)[13:]
    assert scan(data).clean
    assert scan(data).keyframes == ((0, 16),)


@pytest.mark.parametrize("size", [1, 14, 15, 16, 4096, 1 << 20])
def test_zeros_at_the_end_are_cut_off(size):
    data = simple(KEYFRAME, FRAME, FRAME)
    result = scan(data + bytes(size))
    assert (result.end, result.clean, result.video_tags) == (len(data), False, 3)


def test_behind_zeros_in_the_middle_a_scan_continues_at_the_next_sound_tag():
    data = bytearray(simple(KEYFRAME, FRAME, FRAME, FRAME))
    start = 13 + 2 * 70
    data[start - 10 : start + 30] = bytes(40)
    result = scan(bytes(data))
    assert (result.end, result.video_tags, result.clean) == (len(data), 2, False)
    assert [(gap.start, gap.end) for gap in result.gaps] == [(13 + 70, 13 + 3 * 70)]
    assert result.gap_ms == result.gaps[0].last_ms - result.gaps[0].first_ms > 0
    again = scan(repair(bytes(data)))
    assert (again.clean, again.video_tags, again.script_tags, again.frames) == (True, 2, 1, 2)


@pytest.mark.parametrize("size", [15, 27, 28, 29, 4096, 0xFFFFFF, 0xFFFFFF + 15, 0xFFFFFF + 16, 0xFFFFFF + 29, 40 << 20])
def test_a_gap_of_any_size_becomes_tags(size):
    data = simple(KEYFRAME) + b"\xfe" * size + simple(FRAME, FRAME)[13:]
    result = scan(data)
    assert (result.video_tags, result.gap_bytes, result.end) == (3, size, len(data))
    repaired = scan(repair(data))
    assert (repaired.clean, repaired.video_tags, repaired.other_tags, repaired.size) == (True, 3, 0, len(data))


def test_ffmpeg_reads_everything_but_the_gap(ffmpeg, tmp_path):
    path = tmp_path / "clip.flv"
    source = ["-f", "lavfi", "-i", "testsrc=duration=10:size=64x48:rate=25", "-c:v", "flv1", "-g", "5", path]
    subprocess.run([ffmpeg, "-v", "error", *source], check=True)
    data = bytearray(path.read_bytes())
    place = len(data) // 10
    data[place : place + 4096] = bytes(4096)
    (gap,) = scan(bytes(data)).gaps
    path.write_bytes(repair(bytes(data)))
    arguments = ["-v", "error", "-i", path, "-c", "copy", "-f", "framecrc", "-"]
    shown = subprocess.run([ffmpeg, *arguments], capture_output=True, text=True, check=True)
    packets = [line for line in shown.stdout.splitlines() if not line.startswith("#")]
    assert shown.stderr == ""
    assert len(packets) == 250 - (gap.last_ms - gap.first_ms) // 40 + 1 > 200


def test_a_gap_without_room_for_a_tag_takes_the_next_one():
    data = simple(KEYFRAME) + b"\xff" * 14 + simple(FRAME, FRAME)[13:]
    assert scan(data).gap_bytes == 14 + 70
    assert scan(repair(data)).clean


def test_a_file_full_of_what_looks_like_tags_is_not_searched_without_end():
    data = simple(KEYFRAME) + b"\xff" * 15 + b"\x09\0\0\1\0\0\0\0\0\0\0" * 20_000 + simple(FRAME)[13:]
    result = scan(data)
    assert (result.end, result.rest_bytes, result.gaps) == (13 + 70, len(data) - 13 - 70, ())


def test_a_wrong_size_field_is_corrected_if_valid_tags_follow():
    data = bytearray(simple(KEYFRAME, FRAME, FRAME, FRAME))
    data[13 + 70 + 68] ^= 1
    result = scan(bytes(data))
    assert (result.end, result.video_tags, result.clean) == (len(data), 4, False)
    assert result.bad_sizes == ((13 + 70 + 66, 66),)
    assert repair(bytes(data)) == simple(KEYFRAME, FRAME, FRAME, FRAME)


def test_a_wrong_size_field_of_the_last_tag_ends_the_file_before_it():
    data = simple(KEYFRAME, FRAME, FRAME)
    assert scan(data[:-1] + b"\xff").end == len(data) - 70
    assert scan(data[:-1] + b"\xff" + bytes(100)).end == len(data) - 70


def test_two_wrong_sizes_in_a_row_are_a_gap():
    data = bytearray(simple(KEYFRAME, FRAME, FRAME, FRAME))
    data[13 + 70 + 69] ^= 1
    data[13 + 140 + 69] ^= 1
    result = scan(bytes(data))
    assert [(gap.start, gap.end) for gap in result.gaps] == [(13 + 70, 13 + 3 * 70)]
    assert result.end == len(data)


def test_the_number_of_corrected_size_fields_is_limited():
    data = bytearray(simple(*[FRAME] * 3000))
    for number in range(0, 2999, 2):
        data[13 + number * 70 + 69] ^= 1
    result = scan(bytes(data))
    assert len(result.bad_sizes) == 1024
    assert len(result.gaps) == 476
    assert result.end == len(data)


def test_tags_of_other_types_are_skipped():
    others = flv.tag(15, 40, b"amf3") + flv.tag(0x29, 40, FRAME) + flv.tag(18, 40, b"\2\0\1x") + flv.tag(9, 80, b"")
    result = scan(simple(KEYFRAME) + others)
    assert (result.clean, result.other_tags, result.script_tags, result.video_tags, result.frames) == (True, 2, 1, 2, 1)


def test_empty_tags_and_commands_make_no_track():
    data = flv.file_header(True, True) + flv.tag(8, 0, b"") + flv.tag(9, 0, b"\x57\0") + flv.tag(8, 5, b"\xaf")
    result = scan(data)
    assert (result.has_audio, result.has_video, result.frames) == (False, False, 0)


@pytest.mark.parametrize(
    ("times", "first", "last", "duration"),
    [
        ((0,), 0, 0, 0),
        ((0, 40), 0, 40, 80),
        ((1000, 1033, 1067), 1000, 1067, 101),
        ((0, 40, 80, 60), 0, 80, 120),
        ((0, 5000), 0, 5000, 5000),
        ((0, 40, 5040), 0, 5040, 5080),
        ((40, 0), 40, 40, 0),
        ((0xFFFFFF00, 0xFFFFFF28), 0xFFFFFF00, 0xFFFFFF28, 80),
    ],
)
def test_the_last_frame_lasts_as_long_as_the_one_before(times, first, last, duration):
    data = flv.file_header(False, True) + b"".join(flv.tag(9, time, FRAME) for time in times)
    result = scan(data)
    assert (result.first_ms, result.last_ms, result.duration_ms) == (first, last, duration)


def test_headers_do_not_count_for_the_duration():
    header = b"\x17\0\0\0\0\1\x4d\0\x28"
    data = flv.file_header(False, True) + b"".join(
        (flv.tag(9, 0, header), flv.tag(9, 5000, KEYFRAME), flv.tag(9, 5040, FRAME), flv.tag(9, 9000, b"\x17\2\0\0\0"))
    )
    result = scan(data)
    assert (result.first_ms, result.last_ms, result.duration_ms) == (5000, 5040, 80)
    assert result.sequence_header == (0, 13)


def test_a_track_that_ends_later_decides():
    audio = b"".join(flv.tag(8, 100 + time, b"\xaf\1abc") for time in range(0, 1000, 23))
    video = b"".join(flv.tag(9, 80 + time, KEYFRAME) for time in range(0, 1000, 40))
    result = scan(flv.file_header(True, True) + audio + video)
    assert (result.first_ms, result.last_ms, result.duration_ms) == (80, 1089, 1089 + 23 - 80)


def test_invalid_metadata_are_overwritten():
    payload = flv_metadata.MetadataBlock({"encoder": "e"}, index_entries=4).render()[11:-4]
    size = len(payload)
    for torn in (payload[:14] + bytes(size - 14), payload[:60] + b"\xff" * (size - 60), payload[:13] + b"\2\0\1x"):
        data = flv.file_header(True, True) + flv.tag(18, 7, torn) + simple(KEYFRAME, FRAME)[13:]
        result = scan(data)
        assert (result.metadata_position, result.metadata_bytes, result.metadata) == (13, len(torn), {})
        repaired = repair(data)
        assert len(repaired) == len(data)
        if len(torn) < flv_metadata.MIN_METADATA_BYTES:
            assert repaired[13:] == data[13:]
        else:
            assert metadata_of(repaired)["duration"] == 0.08
            assert split(repaired)[0].timestamp == 0


def test_metadata_may_be_an_object():
    encoded = amf0.encode("onMetaData", {"encoder": "e", "long": "x" * 100, "date": AmfDate(0.0)})
    data = flv.file_header(True, True) + flv.tag(18, 0, encoded) + simple(KEYFRAME, FRAME)[13:]
    assert scan(data).metadata == {"encoder": "e", "long": "x" * 100}


def test_metadata_behind_keyframes_index_only_what_follows():
    block = flv_metadata.MetadataBlock(index_entries=8)
    tags = simple(KEYFRAME, KEYFRAME)[13:]
    later = b"".join(flv.tag(9, 1000 + i * 40, KEYFRAME) for i in range(3))
    data = flv.file_header(False, True) + tags + block.render() + later
    repaired = repair(data)
    result = scan(repaired)
    position = result.metadata_position
    assert position == 13 + 140
    # What comes first in the file is not the metadata here.
    members = metadata_of(repaired[:13] + result.metadata_tag)
    assert members["keyframes"]["times"] == [1.0, 1.04, 1.08]
    assert min(members["keyframes"]["filepositions"]) > position


def test_metadata_of_a_megabyte_are_not_kept():
    payload = b"\2\0\x0aonMetaData\x08\0\0\0\1\0\1x\x0a\0\x10\0\0" + b"\5" * (1 << 20) + b"\0\0\x09"
    data = flv.file_header(False, True) + flv.tag(18, 0, payload) + simple(KEYFRAME, FRAME)[13:]
    result = scan(data)
    assert (result.metadata_bytes, result.metadata_tag, result.metadata) == (len(payload), b"", {})
    assert metadata_of(repair(data))["filesize"] == len(data)


class Counted(io.BytesIO):
    """A file that knows how much was read at once."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size >= 0
        self.largest = max(self.largest, size)
        return super().read(size)


def test_memory_does_not_grow_with_the_file():
    big = flv.tag(9, 80, b"\x17\1\0\0\0" + bytes(5_000_000))
    many = b"".join(flv.tag(9, time, KEYFRAME) for time in range(20_000))
    file = Counted(flv.file_header(True, True) + big + big + many + big)
    result = flv_repair.scan(file)
    assert result.clean
    assert result.video_tags == 20_003
    assert len(result.keyframes) <= 4096
    assert result.keyframes[0] == (80, 13)
    assert file.largest <= 1 << 18


def test_a_file_that_shrinks_while_it_is_read_ends_there():
    data = flv.file_header(True, True) + b"".join(flv.tag(9, i * 40, KEYFRAME + bytes(100_000)) for i in range(10))

    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 500_000:
                self.truncate(550_000)
            return super().read(size)

    result = flv_repair.scan(Shrinking(data))
    assert result.video_tags == 5
    assert result.end == 13 + 5 * flv.tag_size(len(KEYFRAME) + 100_000)


def test_the_size_of_the_picture_comes_from_a_keyframe_if_no_header_has_it():
    frame = b"\x91vp09\xa2\x49\x83\x42\xe0\x03\xf0\x02\xf6\x06" + bytes(200_000)
    header = b"\x90vp09\1\0\0\0\1\x0a\x87\2\2\2\0\0"
    data = flv.file_header(False, True) + flv.tag(9, 0, header) + flv.tag(9, 0, frame)
    assert scan(data).video == VideoConfig("vp9", "Profile 1", "1.0", 64, 48, 8, "4:4:4")
