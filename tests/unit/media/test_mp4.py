"""MP4 files: the messages of a file are those of the FLV file that ffmpeg makes of it; damaged files have one kind of error."""

from __future__ import annotations

import io
import re
import struct
from itertools import pairwise

import pytest

from rtmpd.errors import Mp4Error
from rtmpd.media.flv import AUDIO, VIDEO
from rtmpd.media.mp4.movie import is_mp4, read_movie
from rtmpd.media.mp4.samples import MAX_SAMPLES
from tests.media_files import FILES, frames, sequence_headers, split_flv

GOOD = [name for name in FILES if not name.endswith(".flv") and name not in ("prores.mov", "cmaf.mp4")]


def read(data: bytes):
    return read_movie(io.BytesIO(data))


def complete(headers: list[bytes]) -> list[bytes]:
    """Sequence headers with the mark that HEVC's parameter sets are complete, which ffmpeg removes for FLV."""
    return [re.sub(rb"[\x20-\x22](?=\x00\x01\x00)", lambda found: bytes((found[0][0] | 0x80,)), each) for each in headers]


@pytest.mark.parametrize("name", GOOD)
def test_the_messages_are_those_of_ffmpeg(media_files, name):
    data = media_files.path(name).read_bytes()
    assert is_mp4(data[:16])
    movie = read(data)
    messages = list(movie.messages())
    assert [(message.timestamp_ms, message.type_id != VIDEO) for message in messages] == sorted(
        (message.timestamp_ms, message.type_id != VIDEO) for message in messages
    )
    wanted = split_flv(media_files.remuxed(name))
    tagged = [(type_id, 0, payload) for type_id, payload in movie.headers]
    compared = 0
    for type_id in (VIDEO, AUDIO):
        ours, theirs = frames(messages, type_id), frames(wanted, type_id)
        assert [(each.keyframe, each.data) for each in ours] == [(each.keyframe, each.data) for each in theirs]
        assert complete(sequence_headers(tagged, type_id)) == complete(sequence_headers(wanted, type_id))
        for mine, other in zip(ours, theirs, strict=True):
            # ffmpeg rounds to microseconds first.
            assert abs(mine.timestamp_ms - other.timestamp_ms) <= 1
            assert abs(mine.composition_ms - other.composition_ms) <= 1
            assert abs(mine.timestamp_ms + mine.composition_ms - other.timestamp_ms - other.composition_ms) <= 1
        compared += len(ours)
    assert compared == len(messages) > 20


@pytest.mark.parametrize("name", GOOD)
def test_the_end_of_a_track_is_that_of_its_last_frame(media_files, name):
    movie = read(media_files.path(name).read_bytes())
    messages = list(movie.messages())
    for type_id, end_ms in movie.ends_ms().items():
        times = [message.timestamp_ms for message in messages if message.type_id == type_id]
        longest = max(after - before for before, after in pairwise(times))
        assert times[-1] < end_ms <= times[-1] + longest + 1


def test_fragments_with_negative_composition_offsets_are_in_sync(media_files):
    """ffmpeg's FLV of this file has the video 67 ms late: it learns of negative offsets when it has read the first frames."""
    messages = list(read(media_files.path("cmaf.mp4").read_bytes()).messages())
    video, audio = frames(messages, VIDEO), frames(messages, AUDIO)
    assert video[0].timestamp_ms == 0
    assert video[0].composition_ms == audio[0].timestamp_ms == 67
    wanted = split_flv(media_files.remuxed("cmaf.mp4"))
    assert [each.data for each in video + audio] == [each.data for each in frames(wanted, VIDEO) + frames(wanted, AUDIO)]


def test_an_unsupported_codec_is_named(media_files):
    with pytest.raises(Mp4Error, match=r"video codec apc. is not supported: expected H\.264"):
        read(media_files.path("prores.mov").read_bytes())


# Files that are made here -------------------------------------------------------------------------------------------------


def box(kind: str, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind.encode()) + content


def table(kind: str, form: str, *entries: tuple[int, ...]) -> bytes:
    return box(kind, bytes(4), struct.pack(">I", len(entries)), *(struct.pack(form, *entry) for entry in entries))


AVCC = box(
    "avcC", bytes.fromhex("0164000bffe1001a6764000bacd94284 7e22c044000003000400000300c83c50a658 01000668ebe3cb22c0 fdf8f800")
)


def avc_entry(config: bytes = AVCC) -> bytes:
    return box("avc1", bytes(78), config)


def movie(**replaced: bytes | None) -> bytes:
    """A file of four frames of 10 bytes, 100 ticks of 10 ms each, with boxes replaced or, for None, left out."""
    sizes = {
        "stsd": box("stsd", bytes(4), struct.pack(">I", 1), avc_entry()),
        "stts": table("stts", ">II", (4, 100)),
        "ctts": b"",
        "stss": table("stss", ">I", (1,)),
        "stsc": table("stsc", ">III", (1, 4, 1)),
        "stsz": box("stsz", bytes(4), struct.pack(">II", 10, 4)),
        "stco": table("stco", ">I", (8,)),
    }
    inner = {**sizes, **{name: content or b"" for name, content in replaced.items() if name in sizes}}
    outer = {
        "mvhd": box("mvhd", bytes(12), struct.pack(">I", 1000)),
        "tkhd": box("tkhd", bytes(12), struct.pack(">I", 1)),
        "edts": b"",
        "mdhd": box("mdhd", bytes(12), struct.pack(">I", 10_000)),
        "hdlr": box("hdlr", bytes(8), b"vide"),
    }
    outer |= {name: content or b"" for name, content in replaced.items() if name not in sizes}
    minf = box("minf", box("stbl", *inner.values()))
    mdia = box("mdia", outer["mdhd"], outer["hdlr"], minf)
    return box("mdat", b"0123456789" * 4) + box("moov", outer["mvhd"], box("trak", outer["tkhd"], outer["edts"], mdia))


def times(data: bytes) -> list[tuple[int, int]]:
    """The timestamp and composition time of each frame."""
    return [(each.timestamp_ms, each.composition_ms) for each in frames(read(data).messages(), VIDEO)]


def test_a_small_file_is_read():
    assert [each.payload for each in read(movie()).messages()] == [
        b"\x17\1\0\0\0" + b"0123456789",
        *[b"\x27\1\0\0\0" + b"0123456789"] * 3,
    ]
    assert times(movie()) == [(0, 0), (10, 0), (20, 0), (30, 0)]


def test_boxes_of_64_bits_are_read():
    data = movie(stco=table("co64", ">Q", (16,)), mdhd=box("mdhd", b"\1" + bytes(19), struct.pack(">I", 10_000)))
    assert data[:8] == struct.pack(">I4s", 48, b"mdat")
    data = struct.pack(">I4sQ", 1, b"mdat", 56) + data[8:]
    assert times(data) == [(0, 0), (10, 0), (20, 0), (30, 0)]


@pytest.mark.parametrize(
    "sizes",
    [
        box("stz2", bytes(7), b"\4", struct.pack(">I", 4), b"\xaa\xaa"),
        box("stz2", bytes(7), b"\x08", struct.pack(">I", 4), b"\x0a" * 4),
        box("stz2", bytes(7), b"\x10", struct.pack(">I", 4), b"\0\x0a" * 4),
        box("stsz", bytes(8), struct.pack(">IIIII", 4, 10, 10, 10, 10)),
    ],
)
def test_all_forms_of_sizes_are_read(sizes):
    assert times(movie(stsz=sizes)) == [(0, 0), (10, 0), (20, 0), (30, 0)]


def test_chunks_and_their_runs_are_read():
    data = movie(stsc=table("stsc", ">III", (1, 1, 1), (3, 2, 1)), stco=table("stco", ">I", (9,), (8,), (10,)))
    assert [each.payload[5:6] for each in read(data).messages()] == [b"1", b"0", b"2", b"2"]


def test_negative_composition_offsets_move_decoding_times_back():
    offsets = table("ctts", ">Ii", (1, 0), (1, 100), (1, -100), (1, 0))
    assert times(movie(ctts=offsets)) == [(0, 10), (10, 20), (20, 0), (30, 10)]


def test_frames_before_the_start_of_an_edit_are_left_out_up_to_the_keyframe():
    edits = box("edts", table("elst", ">IiI", (1000, 250, 0x10000)))
    syncs = table("stss", ">I", (1,), (2,), (4,))
    (first, *_) = read(movie(edts=edits, stss=syncs)).messages()
    assert first.timestamp_ms == 0
    assert len(times(movie(edts=edits, stss=syncs))) == 3


def test_frames_after_the_end_of_an_edit_are_left_out():
    edits = box("edts", table("elst", ">IiI", (20, 0, 0x10000)))
    assert times(movie(edts=edits)) == [(0, 0), (10, 0)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "moov is missing"),
        (box("ftyp", b"isom"), "moov is missing"),
        (movie()[:-1], "truncated"),
        (movie()[:100], "truncated"),
        (box("mdat", b"") + struct.pack(">I4s", 7, b"free"), "has a size of 7 bytes"),
        (struct.pack(">I4s", 1, b"mdat"), "ends within the header"),
        (box("free") * 10_001, "more than 10000 boxes"),
        (box("moof", b""), "without a moov"),
        (movie(stts=None), "stbl has no stts"),
        (movie(stts=table("stts", ">II", (3, 100))), "stts has 3 of 4 samples"),
        (movie(stts=table("stts", ">II", (4, 0xFFFFFFFF))), "a duration of 4294967295 ticks"),
        (movie(stts=box("stts", bytes(4), b"\xff\xff\xff\xff")), f"at most {MAX_SAMPLES}"),
        (movie(stts=box("stts", bytes(4), struct.pack(">I", 9))), "stts is too short"),
        (movie(stsc=table("stsc", ">III", (2, 4, 1))), "does not begin with the first chunk"),
        (movie(stsc=table("stsc", ">III", (1, 2, 1))), "have 2 of its 4 samples"),
        (movie(stsc=table("stsc", ">III", (1, 4, 2))), "description 2 of 1"),
        (
            movie(stsc=table("stsc", ">III", (1, 2, 1), (2, 2, 2)), stco=table("stco", ">I", (8,), (8,))),
            "changes its codec parameters",
        ),
        (movie(stco=table("stco", ">I", (0xFFFFFFFF,))), "a sample ends at byte"),
        (movie(stsz=box("stsz", bytes(4), struct.pack(">II", 1 << 31, 200_000))), "200000 samples of 2147483648 bytes"),
        (movie(stsz=box("stsz", bytes(4), struct.pack(">II", 1, 1 << 31))), "2147483648 samples, at most"),
        (movie(stsz=box("stsz", bytes(4), struct.pack(">II", 0, 0))), "no audio and no video samples"),
        (movie(mdhd=box("mdhd", bytes(16))), "timescale of 0"),
        (movie(hdlr=box("hdlr", bytes(8), b"subt")), "no audio and no video track"),
        (movie(stsd=box("stsd", bytes(4), struct.pack(">I", 1), avc_entry(b""))), "has no avcC"),
        (movie(stsd=box("stsd", bytes(4), struct.pack(">I", 1), avc_entry(box("avcC", b"\1")))), "avcC has 1 bytes"),
        (movie(stsd=box("stsd", bytes(4), struct.pack(">I", 1), box("avc1", b"x"))), "avc1 is too short"),
        (movie(edts=box("edts", table("elst", ">IiI", (1, 0, 0), (1, 2, 0)))), "several parts"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(data, message):
    with pytest.raises(Mp4Error, match=message):
        list(read(data).messages())


def test_fragments_of_millions_of_boxes_are_refused():
    defaults = box("mvex", box("trex", bytes(4), struct.pack(">IIIII", 1, 1, 100, 10, 0)))
    fragment = box("moof", *[box("traf", box("tfhd", bytes(4), struct.pack(">I", 1)))] * 900)
    data = movie()
    start = data.index(b"moov") - 4
    with pytest.raises(Mp4Error, match="more than 200000 boxes"):
        read(data[:start] + box("moov", data[start + 8 :], defaults) + fragment * 120)


def test_samples_that_share_bytes_are_not_multiplied():
    """One chunk of many bytes that thousands of samples refer to would take its size for each."""
    chunks = table("stco", ">I", *[(8,)] * 100)
    data = movie(
        stco=chunks,
        stsc=table("stsc", ">III", (1, 1, 1)),
        stts=table("stts", ">II", (100, 1)),
        stsz=box("stsz", bytes(8), struct.pack(">I", 100), struct.pack(">I", 40) * 100),
    )
    with pytest.raises(Mp4Error, match="samples of 4000 bytes in a file of"):
        read(data)
