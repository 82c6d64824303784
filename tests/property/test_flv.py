"""FLV files: for any bytes a scan ends and its repair is valid, and written files are read unchanged."""

from __future__ import annotations

import io
from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from rtmpd.media import flv, flv_metadata, flv_repair
from rtmpd.media.audio_codecs import audio_config
from rtmpd.media.tags import Kind, audio_kind, video_kind
from rtmpd.media.video_codecs import refine_video, video_config
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import AmfLimits

TIMESTAMPS = st.one_of(st.integers(0, 10_000), st.integers(0, 0xFFFFFFFF), st.sampled_from((0xFFFFFF, 0x1000000, 0xFFFFFFFF)))

# Beginnings that mean something, and anything behind them.
HEADS = st.sampled_from(
    [
        *(b"", b"\x17\0\0\0\0", b"\x17\1\0\0\0", b"\x27\1\0\0\0", b"\x12", b"\x13", b"\x5f", b"\xaf\0", b"\xaf\1", b"\x2f"),
        *(b"\x90hvc1", b"\x91hvc1", b"\x93hvc1", b"\xd4hvc1", b"\x90av01", b"\x91av01\x12\0\x0a", b"\x90vvc1\xff"),
        *(b"\x90vp09", b"\x91vp09", b"\x91vp08", b"\x90Opus", b"\x90fLaC", b"\x91ac-3\x0b\x77", b"\x91ec-3\x0b\x77"),
        *(b"\x91.mp3\xff\xfb", b"\x96\x00avc1", b"\x96\x10hvc1", b"\x96\x20", b"\x95\x20", b"\x97"),
        b"\x17\0\0\0\0\1\x64\0\x28\xff\xe1\0\x40\x67\x64\0\x28",
        b"\x90avc1\1\x4d\0\x28\xff\xe1\xff\xff\x67\x4d\0\x28",
        b"\x90hvc1\1\1" + bytes(20) + b"\2\x21\0\1\0\x40\x42\1\1",
        b"\2\0\x0aonMetaData\x08\0\0\0\1\0\x08duration\0",
    ]
)
PAYLOADS = st.builds(lambda head, rest: head + rest, HEADS, st.binary(max_size=200))


class Tag(NamedTuple):
    type_id: int
    timestamp: int
    payload: bytes


TAGS = st.lists(st.builds(Tag, st.sampled_from((8, 9, 18, 15)), TIMESTAMPS, PAYLOADS), max_size=12)


def scan(data: bytes) -> flv_repair.ScanResult:
    return flv_repair.scan(io.BytesIO(data))


def write(tags: list[Tag], *, audio: bool = True, video: bool = True) -> bytes:
    return flv.file_header(audio, video) + b"".join(flv.tag(*tag) for tag in tags)


def check(data: bytes) -> None:
    """Scan bytes, and see that the result makes sense, and that the repaired file is clean and stays as it is."""
    result = scan(data)
    assert result.size == len(data)
    assert 0 <= result.end <= result.size
    plan = flv_repair.repair_plan(result)
    if not result.valid:
        assert plan is None
        return
    assert plan is not None
    assert plan.truncate_to == result.end
    assert all(position >= 0 and position + len(patch) <= result.end for position, patch in plan.patches)
    assert len(result.keyframes) <= flv_metadata.DEFAULT_INDEX_ENTRIES
    assert result.duration_ms >= 0
    file = io.BytesIO(data)
    flv_repair.apply_plan(file, plan)
    again = scan(file.getvalue())
    assert again.clean
    assert again.size == result.end
    assert (again.keyframes, again.duration_ms, again.frames) == (result.keyframes, result.duration_ms, result.frames)
    assert flv_repair.repair_plan(again) == flv_repair.RepairPlan(result.end, ())


@given(st.binary(max_size=400))
@example(b"FLV\1\5\0\0\0\x09\0\0\0\0")
@example(b"FLV\1\5\0\0\0\x09" + bytes(400))
def test_a_scan_takes_any_bytes(data):
    check(data)
    check(flv.file_header(True, True) + data)


@given(TAGS, st.binary(max_size=40), st.data())
def test_a_damaged_file_is_repaired(tags, tail, draw):
    data = bytearray(write(tags))
    for _ in range(draw.draw(st.integers(0, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(data)))
    check(bytes(data[:cut]) + tail)


@given(TAGS, st.booleans(), st.booleans())
def test_what_is_written_is_found(tags, audio, video):
    data = write(tags, audio=audio, video=video)
    result = scan(data)
    assert result.clean
    assert result.header_flags == 4 * audio + video
    counts = [sum(tag.type_id == type_id for tag in tags) for type_id in (8, 9, 18, 15)]
    assert [result.audio_tags, result.video_tags, result.script_tags, result.other_tags] == counts
    kinds = {8: audio_kind, 9: video_kind}
    seen = [(tag.type_id, kinds[tag.type_id](tag.payload[:64])) for tag in tags if tag.type_id in kinds]
    assert result.frames == sum(kind in (Kind.FRAME, Kind.KEYFRAME, Kind.TRACK_KEYFRAME) for _, kind in seen)
    assert result.has_audio == any(type_id == 8 and kind != Kind.OTHER for type_id, kind in seen)
    assert result.has_video == any(type_id == 9 and kind != Kind.OTHER for type_id, kind in seen)
    check(data)


@given(st.sampled_from((8, 9, 18)), TIMESTAMPS, st.binary(max_size=300), st.integers(0, 20))
def test_a_tag_written_in_place_is_the_same_tag(type_id, timestamp, payload, offset):
    made = flv.tag(type_id, timestamp, payload)
    assert len(made) == flv.tag_size(len(payload))
    buffer = bytearray(offset + len(made) + 5)
    assert flv.tag_into(buffer, offset, type_id, timestamp, payload) == offset + len(made)
    assert buffer == bytes(offset) + made + bytes(5)
    assert made[0] == type_id
    assert int.from_bytes(made[1:4], "big") == len(payload)
    assert made[7] << 24 | int.from_bytes(made[4:7], "big") == timestamp
    assert made[11:-4] == payload
    assert int.from_bytes(made[-4:], "big") == len(made) - 4


SCALARS = st.one_of(st.floats(), st.booleans(), st.text(max_size=600), st.integers(), st.none(), st.binary(max_size=9))
METADATA = st.dictionaries(
    st.one_of(st.text(max_size=70), st.sampled_from(("duration", "keyframes", "width", "framerate", "stereo"))),
    st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)),
    max_size=80,
)
ENTRIES = st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(100_000, 1 << 50)), max_size=40).map(sorted)


@given(
    METADATA,
    ENTRIES,
    st.none() | st.integers(flv_metadata.MIN_METADATA_BYTES, 3000),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
)
def test_metadata_have_their_size_whatever_is_in_them(metadata, entries, payload_bytes, capacity, audio, video):
    block = flv_metadata.MetadataBlock(
        metadata, has_audio=audio, has_video=video, index_entries=capacity, payload_bytes=payload_bytes
    )
    for keyframes in ((), entries):
        header = (0, 90_000) if len(keyframes) % 2 else None
        data = block.render(duration_s=1.25, keyframes=keyframes, sequence_header=header)
        assert len(data) == block.tag_size == flv.tag_size(payload_bytes or block.payload_bytes)
        assert scan(flv.file_header(audio, video) + data).metadata_bytes == block.payload_bytes
        name, members = amf0.decode_all(data[11:-4], limits=AmfLimits(values=1 << 17))
        assert name == "onMetaData"
        if payload_bytes is None or payload_bytes > 60:
            assert members["duration"] == 1.25
        if "keyframes" in members:
            times, positions = members["keyframes"]["times"], members["keyframes"]["filepositions"]
            assert 2 <= len(times) == len(positions)
            read = [(int(time * 1000), int(position)) for time, position in zip(times, positions, strict=True)]
            assert read[0] == (header or keyframes[0])
            assert any(read[header is not None :] == keyframes[:: 1 << power] for power in range(7))
        elif payload_bytes is None:
            assert len(keyframes) + (header is not None) < 2 or capacity < 2


@given(PAYLOADS)
def test_configurations_are_read_from_any_payload(payload):
    for read, kind in ((video_config, video_kind), (audio_config, audio_kind)):
        config = read(payload)
        if config is not None:
            assert config.codec
            assert kind(payload) != Kind.OTHER
    video = refine_video(video_config(payload), payload)
    if video is not None:
        assert 0 <= video.width <= 1 << 16
        assert 0 <= video.height <= 1 << 16
        assert (video.width == 0) == (video.height == 0) or video.codec in ("vp8", "h263", "screen", "screen2")


@given(st.integers(1, 20), st.lists(st.booleans(), max_size=300))
def test_an_index_is_bounded_and_evenly_thinned(capacity, kinds):
    index = flv_metadata.KeyframeIndex(capacity)
    keyframes = []
    for number, is_video in enumerate(kinds):
        if is_video:
            index.keyframe(number * 300, number)
            keyframes.append((number * 300, number))
        else:
            index.audio(number * 300, number)
        assert len(index.entries) <= capacity
    if keyframes:
        assert any(index.entries == keyframes[:: 1 << power] for power in range(10))
    elif kinds:
        assert index.entries[0] == (0, 0)
