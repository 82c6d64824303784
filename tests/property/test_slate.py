"""Slates: whatever is wrong with a file, there is one kind of error, and little memory is taken."""

from __future__ import annotations

import io
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rtmpd.errors import Mp4Error, SlateError
from rtmpd.media.slate import load_slate, read_parameters
from rtmpd.media.tags import Kind, audio_kind, video_kind

FILES = ("b_frames.mp4", "fragments.mp4", "hevc_opus.mp4", "av1_eac3.mp4", "quicktime.mov", "h264_aac.flv", "hevc_aac.flv")
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from((0, 1, 8, 127, 128, 255)) | st.integers(0, 255)),
    min_size=1,
    max_size=8,
)
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(data: bytes) -> None:
    """Load a slate; it is sound, or refused with the one error."""
    try:
        slate = load_slate(io.BytesIO(data))
    except SlateError:
        pass
    else:
        times = [message.timestamp_ms for message in slate.messages]
        assert times[0] == 0
        assert times == sorted(times)
        assert slate.duration_ms >= max(200, times[-1] + 1)
        assert slate.size_bytes <= 2 * len(data) + 4096 + 16 * len(times)
        first = slate.messages[0]
        kind = video_kind(first.payload) if first.type_id == 9 else audio_kind(first.payload)
        assert kind == (Kind.KEYFRAME if first.type_id == 9 else Kind.FRAME)
        if slate.video:
            assert first.type_id == 9
    with suppress(SlateError, Mp4Error):
        read_parameters(io.BytesIO(data))


def tables(data: bytes) -> tuple[int, int]:
    """The range of a file that its tables are in; of an FLV file all of it."""
    start = data.find(b"moov")
    return (start - 4, start - 4 + int.from_bytes(data[start - 4 : start], "big")) if start > 0 else (0, len(data))


@pytest.mark.parametrize("name", FILES)
@SETTINGS
@given(changes=CHANGES)
def test_changed_files(media_files, name, changes):
    data = bytearray(media_files.path(name).read_bytes())
    start, end = tables(data)
    for place, value in changes:
        data[start + int(place * (end - start))] = value
    check(bytes(data))


@pytest.mark.parametrize("name", FILES)
@SETTINGS
@given(place=st.floats(0, 1), number=st.sampled_from((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)))
def test_files_with_an_extreme_number(media_files, name, place, number):
    data = bytearray(media_files.path(name).read_bytes())
    start, end = tables(data)
    position = start + int(place * (end - start - 4))
    data[position : position + 4] = number.to_bytes(4, "big")
    check(bytes(data))


@pytest.mark.parametrize("name", FILES)
@SETTINGS
@given(place=st.floats(0, 1), zeros=st.booleans())
def test_truncated_files(media_files, name, place, zeros):
    data = media_files.path(name).read_bytes()
    end = int(place * len(data))
    check(data[:end] + bytes(len(data) - end) * zeros)


@given(st.binary(max_size=300), st.sampled_from((b"FLV\1\5\0\0\0\x09\0\0\0\0", b"\0\0\0\x08ftyp", b"\0\0\0\0moov", b"")))
@example(b"", b"\0\0\0\1ftyp\0\0\0\0\0\0\0\x10")
def test_any_bytes(data, head):
    check(head + data)


@pytest.mark.parametrize("name", FILES[:3])
def test_no_number_in_the_tables_takes_memory(media_files, name):
    """Each number of the tables in turn is as large as it can be."""
    original = media_files.path(name).read_bytes()
    start, end = tables(original)
    step = max(4, (end - start) // 60 // 4 * 4)
    tracemalloc.start()
    try:
        for position in range(start + 8, end - 4, step):
            data = bytearray(original)
            data[position : position + 4] = b"\x7f\xff\xff\xff"
            check(bytes(data))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 60e6
