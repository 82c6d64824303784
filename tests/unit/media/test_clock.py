"""Clocks in the content: SEI messages, metadata OBUs and data messages, and what follows for timestamps.

The messages of OBS are made as its source describes them (shared/bpm/bpm.c, libobs/obs-av1.c).
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.media.clock import (
    DAY_MS,
    USUAL_LAYOUT,
    ClockKind,
    ContentClock,
    ContentTime,
    FrameLayout,
    data_time,
    frame_layout,
    timestamp_shift_ms,
    video_time,
)
from rtmpd.protocol import amf0

BPM_TIMES = bytes.fromhex("0aecffe752724e2fa62fd19cd61a93b5")
BPM_SESSION = bytes.fromhex("ca60e71c6a8b4388a377151df7bf8ac2")
COMPOSED = b"2024-05-31T12:26:03.591Z"
COMPOSED_MS = 1717158363591
SLICE = b"\x65" + bytes(range(1, 256)) * 80  # 20 KB


def escape(data):
    """Put in emulation prevention bytes."""
    found, zeros = bytearray(), 0
    for byte in data:
        if zeros >= 2 and byte <= 3:
            found.append(3)
            zeros = 0
        found.append(byte)
        zeros = 0 if byte else zeros + 1
    return bytes(found)


def sei(kind, data, head=b"\x06"):
    size = b"\xff" * (len(data) // 255) + bytes((len(data) % 255,))
    return head + escape(bytes((kind,)) + size + data) + b"\x80"


def units(*nals, length_size=4):
    return b"".join(len(nal).to_bytes(length_size, "big") + nal for nal in nals)


def legacy(body, codec=7, composition_ms=0, packet=1):
    return bytes((0x10 | codec, packet)) + composition_ms.to_bytes(3, "big", signed=True) + body


def bpm(*times):
    """The timestamp message: a count, then type, event, text and NUL of each."""
    return BPM_TIMES + bytes((len(times) - 1,)) + b"".join(bytes((kind, event)) + text for kind, event, text in times)


FER, PIR = (1, 2, b"2024-05-31T12:26:03.600Z\0"), (1, 4, b"2024-05-31T12:26:03.650Z\0")
OBS = bpm((1, 1, COMPOSED + b"\0"), FER, (1, 3, FER[2]), PIR)
SESSION = BPM_SESSION + b"\0\1\4" + PIR[2] + b"\3" + b"".join(bytes((n, 0, 0, 0, 60)) for n in (1, 2, 3, 4))
EXPECTED = ContentTime(ClockKind.BPM, COMPOSED_MS)


# OBS ----------------------------------------------------------------------------------------------------------------------


def test_obs_puts_its_times_behind_the_slices_of_h264():
    assert video_time(legacy(units(SLICE, sei(5, OBS), sei(5, SESSION)))) == EXPECTED


def test_hevc_has_them_in_prefix_or_suffix_units():
    for head in (b"\x4e\x01", b"\x50\x01"):
        body = units(b"\x26\x01" + SLICE, sei(5, SESSION, head), sei(5, OBS, head))
        assert video_time(legacy(body, codec=12)) == EXPECTED
        assert video_time(b"\x93hvc1" + body) == EXPECTED


def leb128(number):
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def obu(kind, data):
    return bytes((kind << 3 | 2,)) + leb128(len(data)) + data


def test_av1_has_them_in_metadata_units():
    frame = (
        obu(2, b"") + obu(1, bytes(10)) + obu(6, SLICE) + obu(5, b"\x06" + SESSION + b"\x80") + obu(5, b"\x06" + OBS + b"\x80")
    )
    assert video_time(b"\x91av01" + frame) == EXPECTED
    # With an extension byte, and without a size in the last unit.
    frame = bytes((6 << 3 | 6, 0)) + leb128(len(SLICE)) + SLICE + bytes((5 << 3,)) + b"\x06" + OBS + b"\x80"
    assert video_time(b"\x91av01" + frame) == EXPECTED


def test_of_several_tracks_the_first_one_counts():
    track = units(SLICE, sei(5, OBS))
    other = units(SLICE)

    def many(first, second):
        return b"\x96\x11avc1" + b"".join(
            bytes((number,)) + (len(data) + 3).to_bytes(3, "big") + b"\0\0\0" + data
            for number, data in enumerate((first, second))
        )

    assert video_time(many(track, other)) == EXPECTED
    assert video_time(many(other, track)) is None


@pytest.mark.parametrize("composition_ms", [0, 80, -40])
def test_the_time_is_that_of_the_timestamp(composition_ms):
    """The time of composition is that of the picture, which is shown later than the timestamp says."""
    body = units(SLICE, sei(5, OBS))
    expected = ContentTime(ClockKind.BPM, COMPOSED_MS - composition_ms)
    assert video_time(legacy(body, composition_ms=composition_ms)) == expected
    assert video_time(b"\x91avc1" + composition_ms.to_bytes(3, "big", signed=True) + body) == expected
    assert video_time(b"\x93avc1" + body) == EXPECTED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"2024-05-31T12:26:03Z", COMPOSED_MS - 591),
        (b"2024-05-31t12:26:03.5914z", COMPOSED_MS),
        (b"2024-05-31T14:26:03.591+02:00", COMPOSED_MS),
        (b"2024-05-31T06:56:03.591-05:30", COMPOSED_MS),
        (b"1970-01-01T00:00:00.001Z", 1),
        (b"2016-12-31T23:59:60Z", 1483228799000),
        (b"2024-05-31T12:26:03", None),
        (b"2024-02-30T12:26:03Z", None),
        (b"2024-05-31T24:26:03Z", None),
        (b"0000-05-31T12:26:03Z", None),
        ("\uff12024-05-31T12:26:03Z".encode(), None),
        (b"", None),
    ],
)
def test_times_are_those_of_rfc_3339(text, expected):
    found = video_time(legacy(units(sei(5, bpm((1, 1, text + b"\0"))))))
    assert (found and found.time_ms) == expected


def test_times_may_be_numbers():
    message = bpm((3, 2, bytes(8)), (2, 1, COMPOSED_MS.to_bytes(8, "big")))
    assert video_time(legacy(units(sei(5, message)))) == EXPECTED


@pytest.mark.parametrize(
    "message",
    [
        bpm(FER, PIR),  # without the time of composition
        bpm((3, 1, bytes(8))),  # relative to nothing
        bpm((2, 1, bytes(7))),
        bpm((9, 1, b"?\0")),
        BPM_TIMES,
        BPM_TIMES + b"\0",
        BPM_TIMES + b"\0\1\1" + COMPOSED,
        BPM_TIMES[:15],
    ],
)
def test_other_and_truncated_messages_have_no_time(message):
    assert video_time(legacy(units(sei(5, message)))) is None


# MISB ST 0604 -------------------------------------------------------------------------------------------------------------

# Made by ffmpeg 5.1, which puts the unit behind the slices:
# -f lavfi -i color=black:s=64x64:r=25 -c:v libx264 -preset ultrafast -x264-params slices=2
# -bsf:v filter_units=remove_types=6,h264_metadata=sei_user_data=4d4953506d6963726f73656374696d65+...
FFMPEG = (
    "17000000000142c00affe100166742c00ada109b011000000300100000030320f1226a01000468ce0fc8",
    (
        "1701000000000000106588843a2628000902c9c9c9d75d75e00000001165122210e898a000240b2727275d75d7800000002106051d4d4953506d696372"
        "6f73656374696d651f0102ff0304ff0506ff07080080"
    ),
    "270100000000000006419a203a84c00000000641126880ea13",
)


def test_units_are_found_where_ffmpeg_puts_them():
    header, keyframe, frame = map(bytes.fromhex, FFMPEG)
    layout = frame_layout(header)
    assert layout == USUAL_LAYOUT
    assert video_time(keyframe, layout) == ContentTime(ClockKind.MISP, 0x0102030405060708 // 1000)
    assert video_time(frame, layout) is None


def misp(number):
    return b"".join((b"\x1f", *(number.to_bytes(8, "big")[n : n + 2] + b"\xff" * (n < 6) for n in range(0, 8, 2))))


def test_precision_time_stamps_of_hevc():
    for uuid, unit in (("a8687dd4d7593758a5cef0338b6545f1", 1000), ("cf848278ee23306c9265e8fef22fb8b8", 1_000_000)):
        message = bytes.fromhex(uuid) + misp(COMPOSED_MS * unit + 7)
        found = video_time(legacy(units(sei(5, message, b"\x4e\x01")), codec=12))
        assert found == ContentTime(ClockKind.MISP, COMPOSED_MS)


def test_a_damaged_precision_time_stamp_has_no_time():
    stamp = misp(COMPOSED_MS * 1000)
    for damaged in (stamp[:11], stamp[:3] + b"\0" + stamp[4:]):
        assert video_time(legacy(units(sei(5, b"MISPmicrosectime" + damaged)))) is None


# Timecodes ----------------------------------------------------------------------------------------------------------------


class Bits:
    def __init__(self):
        self.text = ""

    def add(self, *fields):
        for value, width in fields:
            self.text += f"{value:0{width}b}"
        return self

    def done(self):
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def timecode(bits, frames, frame_bits, *, full=True, parts=(3, 26, 12)):
    """counting_type to hours."""
    bits.add((0, 5), (full, 1), (0, 2), (frames, frame_bits))
    for value, width in zip(parts, (6, 6, 5), strict=False):
        bits.add(*([] if full else [(1, 1)]), (value, width))
    if not full and len(parts) < 3:
        bits.add((0, 1))
    return bits


NOON_MS = ((12 * 60 + 26) * 60 + 3) * 1000


@pytest.mark.parametrize("full", [True, False])
def test_timecodes_of_whole_seconds_are_read(full):
    hevc = timecode(Bits().add((1, 2), (1, 1), (0, 1)), 0, 9, full=full).add((0, 5)).done()
    assert video_time(legacy(units(sei(136, hevc, b"\x4e\x01")), codec=12)) == ContentTime(ClockKind.TIMECODE, NOON_MS)
    av1 = timecode(Bits(), 0, 9, full=full).add((0, 5)).done()
    assert video_time(b"\x91av01" + obu(5, b"\x05" + av1)) == ContentTime(ClockKind.TIMECODE, NOON_MS)
    avc = timecode(Bits().add((5, 20), (0, 4), (1, 1), (0, 3)), 0, 8, full=full).done()
    frame = legacy(units(sei(1, avc), SLICE))
    assert video_time(frame, FrameLayout(4, 20)) == ContentTime(ClockKind.TIMECODE, NOON_MS)
    assert video_time(frame) is None


def test_other_timecodes_are_not():
    """Of later frames, whose duration is not known; without hours; invalid; truncated; without a clock."""
    bits = lambda: Bits().add((1, 2), (1, 1), (0, 1))  # noqa: E731
    for message in (
        timecode(bits(), 5, 9).done(),
        timecode(bits(), 0, 9, full=False, parts=(3, 26)).done(),
        timecode(bits(), 0, 9, parts=(3, 26, 24)).done(),
        timecode(bits(), 0, 9, parts=(60, 26, 12)).done(),
        timecode(bits(), 0, 9).done()[:3],
        Bits().add((1, 2), (0, 1)).done(),
        Bits().add((0, 2)).done(),
        b"",
    ):
        assert video_time(legacy(units(sei(136, message, b"\x4e\x01")), codec=12)) is None


# Made by ffmpeg 5.1: -c:v libx264 -x264-params nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500:pic-struct=1:range=full:
# colorprim=bt709:sar=3/2. Its filter trace_headers shows delays of 13 and 7 bits.
HRD_HEADER = (
    "170000000001f40009ffe1002667f40009919b2884d87b50102024000003000400000300c9808007a10001e84a4c300f8912cb01000668ebe3c44844fff8f8"
    "00"
)


def test_the_layout_of_picture_timing_comes_from_the_sequence_header():
    header = bytes.fromhex(HRD_HEADER)
    assert frame_layout(header) == FrameLayout(4, 20)
    for size in range(len(header)):
        layout = frame_layout(header[:size])
        assert layout.timing_bits in (None, 20)
    assert frame_layout(header[:9] + b"\xfd" + header[10:]) == FrameLayout(2, 20)
    # Frames are no headers.
    assert frame_layout(b"\x17\1" + header[2:]) == USUAL_LAYOUT


def test_the_lengths_of_units_have_the_size_that_the_header_tells():
    body = units(SLICE, sei(5, OBS), length_size=2)
    assert video_time(legacy(body), FrameLayout(2)) == EXPECTED
    record = bytearray(23)
    record[0], record[21] = 1, 0xFD
    assert frame_layout(b"\x1c\0\0\0\0" + bytes(record)) == FrameLayout(2)
    assert frame_layout(b"\x90hvc1" + bytes(record)) == FrameLayout(2)


# Hostile messages ---------------------------------------------------------------------------------------------------------


def test_a_frame_of_many_units_is_left_early():
    assert video_time(legacy(units(*[b"\x41"] * 63, sei(5, OBS)))) == EXPECTED
    assert video_time(legacy(units(*[b"\x41"] * 64, sei(5, OBS)))) is None


def test_only_some_bytes_of_sei_are_parsed():
    assert video_time(legacy(units(sei(4, b"\1" * 8000), sei(5, OBS)))) is not None
    assert video_time(legacy(units(sei(4, b"\1" * 9000), sei(5, OBS)))) is None


def test_only_some_messages_are_parsed():
    assert video_time(legacy(units(*[sei(4, b"")] * 31, sei(5, OBS)))) == EXPECTED
    assert video_time(legacy(units(*[sei(4, b"")] * 32, sei(5, OBS)))) is None
    assert video_time(legacy(units(sei(4, b"\4\0" * 40), sei(5, OBS)))) == EXPECTED


def test_frames_without_a_clock():
    for payload in (
        b"",
        b"\x17",
        legacy(b""),
        legacy(units(SLICE), packet=0),
        b"\x12" + bytes(9),
        b"\x91vp09" + SLICE,
        b"\x96\0",
    ):
        assert video_time(payload) is None


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(
        [
            b"\x17\1\0\0\0",
            b"\x1c\1\0\0\0",
            b"\x91av01",
            b"\x91avc1",
            b"\x93hvc1",
            b"\x96\x01avc1\0",
            b"\x96\x11avc1",
            b"\x17\0\0\0\0",
        ]
    ),
    st.lists(
        st.sampled_from(
            [units(sei(5, OBS)), obu(5, b"\x06" + OBS), obu(5, b"\5"), units(sei(136, b"\x60", b"\x4e\1")), units(sei(1, b""))]
        )
        | st.binary(max_size=12),
        max_size=6,
    ).map(b"".join),
    st.integers(0, 200),
    st.builds(FrameLayout, st.integers(1, 4), st.none() | st.integers(0, 64)),
)
def test_no_payload_raises(head, body, cut, layout):
    payload = (head + body)[: len(head + body) - cut] if cut < 100 else head + body
    found = video_time(payload, layout)
    assert found is None or isinstance(found.time_ms, int)
    assert isinstance(frame_layout(payload), FrameLayout)
    assert data_time(payload) is None


# Data messages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("onFI", {"sd": "31-05-2024", "st": "12:26:03.591", "tc": "10:00:00:04"}), ContentTime(ClockKind.ON_FI, COMPOSED_MS)),
        (("@setDataFrame", "onFI", {"sd": "2024-05-31", "st": "12:26:03"}), ContentTime(ClockKind.ON_FI, COMPOSED_MS - 591)),
        (("onFI", {"date": "31/05/2024", "time": "12:26:03.59"}), ContentTime(ClockKind.ON_FI, COMPOSED_MS - 1)),
        (("onFI", {"tc": "12:26:03:00"}), ContentTime(ClockKind.DATA_TIMECODE, NOON_MS)),
        (("onFI", {"tc": "12:26:03:07"}), None),
        (("onFI", {"sd": "05-31-2024", "st": "12:26:03"}), None),
        (("onFI", {"sd": "31-05-24", "st": "12:26:03"}), None),
        (("onFI", {"sd": 5, "st": None}), None),
        (("onTimecode", "12:26:03;00"), ContentTime(ClockKind.DATA_TIMECODE, NOON_MS)),
        (("onTimeCode", {"timecode": "12:26:03.250"}), ContentTime(ClockKind.DATA_TIMECODE, NOON_MS + 250)),
        (("onTextData", {"text": "2024-05-31T12:26:03.591Z"}), ContentTime(ClockKind.TEXT, COMPOSED_MS)),
        (("onTextData", {"text": "See you at 12:26:03"}), None),
        (("onTextData", {"text": "\udc80"}), None),
        (("onMetaData", {"time": "12:26:03"}), None),
        (("onTimecode",), None),
    ],
)
def test_data_messages(values, expected):
    payload = amf0.encode(*values)
    assert data_time(payload) == expected


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_data_message_is_bounded(rest):
    for head in (b"\2\0\4onFI", b"\2\0\x0aonTextData\2", b"onFI"):
        found = data_time(head + rest)
        assert found is None or found.time_ms >= 0
    assert data_time(amf0.encode("onTimecode", "12:26:03") + bytes(9000)) is None


# The clock of a source ----------------------------------------------------------------------------------------------------


def clock_of(*samples, kind=ClockKind.BPM):
    clock = ContentClock()
    for timestamp_ms, time_ms in samples:
        clock.note(timestamp_ms, ContentTime(kind, time_ms))
    return clock


def test_the_offset_is_the_median_of_steady_samples():
    clock = clock_of((0, 1000))
    assert clock.offset_ms is None
    assert clock.kind is None
    clock = clock_of((0, 1000), (2000, 3010), (4000, 5030))
    assert clock.offset_ms == 1010
    assert clock.kind is ClockKind.BPM


def test_a_clock_that_jumps_is_unsteady_until_all_samples_are_newer():
    clock = clock_of(*[(n * 1000, n * 1000) for n in range(9)], (9000, 9101))
    assert clock.offset_ms is None
    for number in range(10, 18):
        clock.note(number * 1000, ContentTime(ClockKind.BPM, number * 1000 + 101))
    assert clock.offset_ms == 101


def test_timestamps_that_wrap_do_not_make_a_clock_unsteady():
    clock = clock_of(*[((2**32 - 3000 + n * 1000) % 2**32, COMPOSED_MS + n * 1000) for n in range(9)])
    assert clock.offset_ms == COMPOSED_MS - 2**32 + 3000


@pytest.mark.parametrize("backwards", [False, True])
def test_a_time_of_day_that_wraps_does_not_either(backwards):
    samples = [(n * 1000, (DAY_MS - 3000 + n * 1000) % DAY_MS) for n in range(9)]
    clock = clock_of(*(samples[::-1] if backwards else samples), kind=ClockKind.TIMECODE)
    assert clock.offset_ms is not None
    assert clock.offset_ms % DAY_MS == DAY_MS - 3000


def test_the_same_content_has_other_timestamps_in_another_source():
    first = clock_of((1000, COMPOSED_MS), (3000, COMPOSED_MS + 2000))
    second = clock_of((500_000, COMPOSED_MS + 1000), (502_000, COMPOSED_MS + 3000))
    # What the first source stamps 2000, the second stamps 500000.
    assert timestamp_shift_ms(first, second) == 498_000
    assert timestamp_shift_ms(second, first) == -498_000


def test_only_clocks_of_one_kind_are_compared():
    first = clock_of((0, 0), (1000, 1000), kind=ClockKind.BPM)
    second = clock_of((0, 0), (1000, 1000), kind=ClockKind.ON_FI)
    assert timestamp_shift_ms(first, second) is None
    for timestamp_ms in (0, 1000):
        first.note(timestamp_ms, ContentTime(ClockKind.ON_FI, timestamp_ms + 300))
    assert timestamp_shift_ms(first, second) == 300
    assert first.kind is ClockKind.BPM


def test_a_shift_by_the_time_of_day_is_the_one_near_the_estimate():
    first = clock_of((3 * DAY_MS, NOON_MS), (3 * DAY_MS + 1000, NOON_MS + 1000), kind=ClockKind.TIMECODE)
    second = clock_of((0, NOON_MS + 40), (1000, NOON_MS + 1040), kind=ClockKind.TIMECODE)
    assert timestamp_shift_ms(first, second) == -40
    assert timestamp_shift_ms(first, second, near_ms=-3 * DAY_MS) == -3 * DAY_MS - 40
