"""Frames of ffmpeg's encoders without which all other frames decode to the same pictures; and frames written by hand."""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rtmpd.media.disposable import FrameFormat, is_disposable, read_formats
from rtmpd.media.flv import file_header, tag
from rtmpd.media.tags import Kind, video_info

if TYPE_CHECKING:
    from pathlib import Path

VIDEO = 9
# Motion and noise: what is decoded from a wrong reference is another picture.
PICTURE = "-f lavfi -i testsrc2=size=160x120:rate=25,noise=alls=20:allf=t"
X264 = f"{PICTURE} -c:v libx264 -preset veryfast -pix_fmt yuv420p -g 25"
X265 = f"{PICTURE} -c:v libx265 -preset veryfast -pix_fmt yuv420p -g 25 -x265-params log-level=none"
DIGESTS = ("-fps_mode", "passthrough", "-f", "framemd5", "-")


class Clip(NamedTuple):
    """How a clip is encoded, and how many of its 50 frames are disposable at least and at most."""

    arguments: str
    least: int
    most: int


CLIPS = {
    "h264_b_frames": Clip(f"{X264} -bf 2 -x264-params b-adapt=0:b-pyramid=none", 26, 36),
    "h264_pyramid": Clip(f"{X264} -bf 3 -x264-params b-adapt=0:b-pyramid=normal", 20, 28),
    "h264_slices": Clip(f"{X264} -bf 3 -x264-params b-adapt=0:b-pyramid=normal:slices=4", 20, 28),
    "h264_fields": Clip(f"{X264} -bf 2 -flags +ilme+ildct -x264-params interlaced=1:b-adapt=0", 14, 36),
    "h264_open_gop": Clip(f"{X264} -bf 3 -x264-params open-gop=1:b-adapt=0", 14, 36),
    "h264_without_b_frames": Clip(f"{X264} -tune zerolatency", 0, 0),
    "hevc_b_frames": Clip(f"{X265}:bframes=3:b-adapt=0:b-pyramid=0:open-gop=0", 28, 38),
    "hevc_pyramid": Clip(f"{X265}:bframes=4:b-adapt=0:b-pyramid=1:open-gop=0", 18, 30),
    "hevc_open_gop": Clip(f"{X265}:bframes=4:b-adapt=0:b-pyramid=1:open-gop=1", 18, 38),
    "hevc_two_sub_layers": Clip(f"{X265}:bframes=4:b-adapt=0:temporal-layers=2:open-gop=0", 10, 30),
    "hevc_three_sub_layers": Clip(f"{X265}:bframes=7:b-adapt=0:temporal-layers=3:open-gop=0", 10, 30),
    "hevc_without_b_frames": Clip(f"{X265}:bframes=0", 0, 0),
    "vp9": Clip(f"{PICTURE} -c:v libvpx-vp9 -deadline realtime -cpu-used 8", 0, 0),
    "av1": Clip(f"{PICTURE} -c:v libaom-av1 -usage realtime -cpu-used 8 -lag-in-frames 0", 0, 0),
    "sorenson": Clip(f"{PICTURE} -c:v flv", 0, 0),
}


def tags_of(data: bytes) -> list[tuple[int, int, bytes]]:
    """The tags of an FLV file: type, timestamp, payload."""
    found, position = [], 13
    while position < len(data):
        length = int.from_bytes(data[position + 1 : position + 4], "big")
        timestamp = int.from_bytes(data[position + 4 : position + 7], "big") | data[position + 7] << 24
        found.append((data[position], timestamp, data[position + 11 : position + 11 + length]))
        position += 15 + length
    return found


def run(ffmpeg: str, *arguments: object) -> bytes:
    """Run ffmpeg; it must have nothing to say."""
    done = subprocess.run(
        [ffmpeg, "-v", "error", "-nostdin", "-y", *map(str, arguments)], capture_output=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr.decode(errors="replace")) == (0, "")
    return done.stdout


def decoded(ffmpeg: str, path: Path) -> dict[int, str]:
    """Decode a file; return the digest of each picture by its time."""
    return digests(run(ffmpeg, "-copyts", "-i", path, *DIGESTS))


def digests(listed: bytes) -> dict[int, str]:
    rows = [line.split(",") for line in listed.decode().splitlines() if not line.startswith("#")]
    return {int(pts): digest.strip() for _, _, pts, _, _, digest in rows}


def file(messages: list[tuple[int, bytes]]) -> bytes:
    """An FLV file of video messages."""
    return file_header(False, True) + b"".join(tag(VIDEO, timestamp, payload) for timestamp, payload in messages)


def encode(ffmpeg: str, path: Path, arguments: str) -> list[tuple[int, bytes]]:
    """The video messages of a clip."""
    run(ffmpeg, *arguments.split(), "-t", 2, path)
    return [(timestamp, payload) for kind, timestamp, payload in tags_of(path.read_bytes()) if kind == VIDEO]


def formats_of(messages: list[tuple[int, bytes]]) -> dict[int, FrameFormat]:
    return read_formats([payload for _, payload in messages if video_info(payload).kind == Kind.HEADER])


@pytest.mark.parametrize("name", CLIPS)
def test_all_other_frames_decode_to_the_same_pictures_without_the_disposable_ones(ffmpeg, tmp_path, name):
    clip = CLIPS[name]
    messages = encode(ffmpeg, tmp_path / "whole.flv", clip.arguments)
    formats = formats_of(messages)
    kept = [message for message in messages if not is_disposable(message[1], formats)]
    assert clip.least <= len(messages) - len(kept) <= clip.most
    (tmp_path / "thin.flv").write_bytes(file(kept))
    whole, thin = decoded(ffmpeg, tmp_path / "whole.flv"), decoded(ffmpeg, tmp_path / "thin.flv")
    assert len(whole) == 50
    assert len(thin) == len(whole) - (len(messages) - len(kept))
    assert thin.items() <= whole.items()


@pytest.mark.parametrize("name", ["h264_pyramid", "hevc_three_sub_layers"])
def test_a_frame_that_is_not_disposable_is_missed(ffmpeg, tmp_path, name):
    """Else the test above would show nothing: each of the others is left out by itself."""
    messages = encode(ffmpeg, tmp_path / "whole.flv", CLIPS[name].arguments)
    formats = formats_of(messages)
    whole = decoded(ffmpeg, tmp_path / "whole.flv")
    needed = [
        i for i, (_, payload) in enumerate(messages) if payload[0] in (0x27, 0xA1, 0xA3) and not is_disposable(payload, formats)
    ]
    for index in needed[1:4]:
        rest = messages[:index] + messages[index + 1 :]
        (tmp_path / "torn.flv").write_bytes(file(rest))
        command = [ffmpeg, "-v", "error", "-copyts", "-i", tmp_path / "torn.flv", *DIGESTS]
        done = subprocess.run(command, capture_output=True, timeout=100, check=True)
        assert done.stderr or not digests(done.stdout).items() <= whole.items()


@pytest.mark.parametrize("name", ["h264_pyramid", "hevc_pyramid"])
def test_every_form_of_a_message_says_the_same(ffmpeg, tmp_path, name):
    """Legacy and Enhanced, with and without composition time, ModEx, and the three kinds of multitrack."""
    messages = encode(ffmpeg, tmp_path / "clip.flv", CLIPS[name].arguments)
    codec, four_cc, legacy_id = ("h264", b"avc1", 7) if name.startswith("h264") else ("hevc", b"hvc1", 12)
    bare = []
    for _, payload in messages:
        info = video_info(payload)
        if info.codec == codec and info.kind in (Kind.HEADER, Kind.FRAME, Kind.KEYFRAME):
            timed = payload[0] < 0x80 or info.packet_type == 1
            body = payload[info.body_offset + (3 if timed and payload[0] >= 0x80 and info.kind != Kind.HEADER else 0) :]
            bare.append((info.frame_type, info.kind == Kind.HEADER, body))
    formats = formats_of(messages)
    kinds = (Kind.HEADER, Kind.FRAME, Kind.KEYFRAME)
    expected = [is_disposable(payload, formats) for _, payload in messages if video_info(payload).kind in kinds]
    assert any(expected)

    def said(make):
        payloads = [make(*each) for each in bare]
        formats = read_formats(payloads[:1])
        return [is_disposable(payload, formats) for payload in payloads]

    def legacy(frame_type, is_header, body):
        return bytes((frame_type << 4 | legacy_id, 0 if is_header else 1, 0, 0, 0)) + body

    def enhanced(frame_type, is_header, body, packet=1):
        time = b"\0\0\x28" if packet == 1 else b""
        return bytes((0x80 | frame_type << 4 | (0 if is_header else packet),)) + four_cc + (b"" if is_header else time) + body

    def without_time(*each):
        return enhanced(*each, packet=3)

    def mod_ex(*each):
        plain = enhanced(*each)
        return bytes((plain[0] & 0xF0 | 7, 2, 0, 0, 9, plain[0] & 15)) + plain[1:]

    def one_track(frame_type, is_header, body):
        return bytes((0x80 | frame_type << 4 | 6, 0 if is_header else 3)) + four_cc + b"\x25" + body

    def many_tracks(frame_type, is_header, body):
        data = b"".join(bytes((track,)) + len(body).to_bytes(3, "big") + body for track in (0, 4))
        return bytes((0x80 | frame_type << 4 | 6, 0x10 | (0 if is_header else 3))) + four_cc + data

    def many_codecs(frame_type, is_header, body):
        data = b"".join(four_cc + bytes((track,)) + len(body).to_bytes(3, "big") + body for track in (0, 4))
        return bytes((0x80 | frame_type << 4 | 6, 0x20 | (0 if is_header else 3))) + data

    for make in (legacy, enhanced, without_time, mod_ex, one_track, many_tracks, many_codecs):
        assert said(make) == expected, make.__name__


def test_a_message_of_several_tracks_needs_all_of_them_to_be_disposable():
    formats = {0: FrameFormat("h264", 4, 0), 1: FrameFormat("h264", 4, 0)}
    needless, needed = nals(b"\x01\x9a"), nals(b"\x41\x9a")

    def message(*bodies):
        data = b"".join(bytes((i,)) + len(body).to_bytes(3, "big") + body for i, body in enumerate(bodies))
        return b"\xa6\x13avc1" + data

    assert is_disposable(message(needless, needless), formats)
    assert not is_disposable(message(needless, needed), formats)
    assert not is_disposable(message(needed, needless), formats)
    assert not is_disposable(message(needless, needless), {0: formats[0]})
    assert not is_disposable(message(needless, needless)[:-1], formats)


# By hand ----------------------------------------------------------------------------------------------------------------


def nals(*units: bytes, size: int = 4) -> bytes:
    return b"".join(len(unit).to_bytes(size, "big") + unit for unit in units)


def avc(*units: bytes, first: int = 0x27) -> bytes:
    return bytes((first, 1, 0, 0, 0)) + nals(*units)


AVC = {0: FrameFormat("h264", 4, 0)}
SEI, DELIMITER, SPS, PPS, END = b"\x06\x05\x01", b"\x09\xf0", b"\x67\x42", b"\x68\xce", b"\x0a\x00"
B_SLICE, P_SLICE = b"\x01\x9e\x01", b"\x41\x9a\x01"


@pytest.mark.parametrize(
    ("payload", "disposable"),
    [
        (avc(B_SLICE), True),
        (avc(DELIMITER, SEI, B_SLICE, B_SLICE), True),
        (avc(B_SLICE, first=0x37), True),
        (avc(P_SLICE), False),
        (avc(P_SLICE, first=0x37), False),
        (avc(B_SLICE, P_SLICE), False),
        (avc(B_SLICE, first=0x17), False),
        (avc(SPS, B_SLICE), False),
        (avc(B_SLICE, PPS), False),
        (avc(B_SLICE, END), False),
        (avc(SEI), False),
        (avc(), False),
        (avc(b"\x05\x88"), False),  # an IDR slice with nal_ref_idc 0 is none
        (avc(b"\x81\x9e"), False),  # the forbidden bit
        (avc(B_SLICE)[:-1], False),
        (avc(B_SLICE) + b"\0", False),
        (avc(B_SLICE) + b"\0\0\0\0", False),
        (avc(*[B_SLICE] * 256), True),
        (avc(*[B_SLICE] * 257), False),
        (b"\x27\x00\0\0\0" + nals(B_SLICE), False),
        (b"\x27\x02\0\0\0", False),
        (b"\x57\x01\0\0\0" + nals(B_SLICE), False),
        (b"\x32frame", True),  # H.263
        (b"\x22frame", False),
        (b"\x34frame", True),  # VP6
        (b"\x3aframe", False),  # an unknown codec
        (b"\xa1vp08\x11\0\0frame", False),
        (b"\xa1av01\x32\x01frame", False),
        (b"\x27", False),
        (b"", False),
    ],
)
def test_legacy_messages(payload, disposable):
    assert is_disposable(payload, AVC) == disposable


def test_without_a_header_no_frame_is_disposable():
    assert not is_disposable(avc(B_SLICE), {})
    assert not is_disposable(avc(B_SLICE), {0: FrameFormat("hevc", 4, 1)})
    assert not is_disposable(avc(B_SLICE), {1: AVC[0]})


@pytest.mark.parametrize("size", [1, 2, 4])
def test_lengths_have_as_many_bytes_as_the_header_says(size):
    header = b"\x17\x00\0\0\0\x01\x64\0\x1f" + bytes((0xFC | size - 1,)) + b"\xe1\0\0"
    formats = read_formats([header])
    assert formats == {0: FrameFormat("h264", size, 0)}
    assert is_disposable(b"\x27\x01\0\0\0" + nals(B_SLICE, B_SLICE, size=size), formats)
    for other in {1, 2, 4} - {size}:
        assert not is_disposable(b"\x27\x01\0\0\0" + nals(B_SLICE, B_SLICE, size=other), formats)


def hevc(kind: int, temporal_id: int, layer: int = 0) -> bytes:
    return b"\x2c\x01\0\0\0" + nals(bytes((kind << 1 | layer >> 5, (layer & 31) << 3 | temporal_id + 1)) + b"slice")


@pytest.mark.parametrize("kind", range(64))
def test_hevc_pictures_are_disposable_by_type(kind):
    assert is_disposable(hevc(kind, 0), {0: FrameFormat("hevc", 4, 1)}) == (kind in range(0, 16, 2))


@pytest.mark.parametrize("sub_layers", range(1, 8))
def test_hevc_pictures_are_disposable_in_the_highest_sub_layer_only(sub_layers):
    formats = {0: FrameFormat("hevc", 4, sub_layers)}
    found = [temporal_id for temporal_id in range(7) if is_disposable(hevc(0, temporal_id), formats)]
    assert found == [sub_layers - 1]


def test_hevc_of_other_layers_is_never_disposable():
    assert not any(is_disposable(hevc(0, 0, layer), {0: FrameFormat("hevc", 4, 1)}) for layer in (1, 31, 32, 63))


def hvcc(*sets: bytes) -> bytes:
    arrays = b"\xa1" + len(sets).to_bytes(2, "big") + b"".join(len(each).to_bytes(2, "big") + each for each in sets)
    return b"\x1c\x00\0\0\0\x01" + bytes(20) + b"\x03\x01" + arrays


def test_the_set_with_the_most_sub_layers_counts():
    one, three = b"\x42\x01\x01", b"\x42\x01\x05"
    assert read_formats([hvcc(one)])[0].sub_layers == 1
    assert read_formats([hvcc(three)])[0].sub_layers == 3
    assert read_formats([hvcc(one, three, one)])[0].sub_layers == 3
    assert read_formats([hvcc()]) == {}
    assert read_formats([hvcc(one, three)[:-1]]) == {}


def test_the_newest_header_of_a_track_counts_even_if_it_can_not_be_read():
    assert read_formats([hvcc(b"\x42\x01\x01"), b"\x1c\x00\0\0\0\x01"]) == {}


# Anything ---------------------------------------------------------------------------------------------------------------


def test_truncated_messages_are_not_disposable_and_nothing_raises(ffmpeg, tmp_path):
    source = random.Random(5)
    formats = {0: FrameFormat("h264", 4, 0), 1: FrameFormat("hevc", 4, 1)}
    seeds = [
        avc(SEI, B_SLICE),
        hevc(0, 0),
        b"\xa6\x13avc1\0\0\0\x07" + nals(B_SLICE),
        b"\xa1vp08" + bytes(40),
        hvcc(b"\x42\x01\1"),
    ]
    for _ in range(20_000):
        payload = bytearray(source.choice(seeds))
        for _ in range(source.randrange(4)):
            payload[source.randrange(len(payload))] = source.randrange(256)
        payload = bytes(payload[: source.randrange(len(payload) + 1)])
        assert is_disposable(payload, formats) in (True, False)
        read_formats([payload])
    for seed in seeds[:3]:
        for length in range(len(seed)):
            assert not is_disposable(seed[:length], formats)
