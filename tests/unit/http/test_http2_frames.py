"""The meter of HTTP/2 frames, at every split of what a client sends."""

from __future__ import annotations

from itertools import pairwise

import pytest
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.http.http2_frames import (
    BLOCK_LIMIT_BYTES,
    CREDITS,
    CREDITS_PER_S,
    FRAME_LIMIT_BYTES,
    RESET_COST,
    FrameError,
    FrameMeter,
    StrictDecoder,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING = PingFrame(0).serialize()
LARGE = HeadersFrame(1, data=bytes(FRAME_LIMIT_BYTES)).serialize()
MORE = ContinuationFrame(1, data=bytes(FRAME_LIMIT_BYTES)).serialize()
BEGIN = PREFACE + PING
DATA = BEGIN + HeadersFrame(1, data=b"abc").serialize() + ContinuationFrame(1, flags=["END_HEADERS"]).serialize() + PING * 70


@given(st.lists(st.integers(0, len(DATA)), max_size=8))
def test_what_is_metered_is_the_same_at_every_split(cuts):
    meter, found = FrameMeter(0), []
    for begin, end in pairwise([0, *sorted(cuts), len(DATA)]):
        slices = meter.split(DATA[begin:end], 0)
        # A parser of the library recurses for each frame.
        assert all(len(each) <= 32 * len(PING) + len(PREFACE) + 20 for each in slices)
        found += slices
    assert b"".join(found) == DATA
    assert not meter.midway
    assert meter.steps == 72
    assert meter.credits == CREDITS - 73


@pytest.mark.parametrize("size", range(1, len(DATA) - 70 * len(PING)))
def test_a_part_of_a_frame_or_of_a_header_block_is_noticed(size):
    meter = FrameMeter(0)
    meter.split(DATA[:size], 0)
    assert meter.midway == (size not in (len(PREFACE), len(BEGIN)))


def test_credits_come_with_time_and_with_what_is_read():
    meter = FrameMeter(0)
    meter.split(PREFACE, 0)
    meter.split(PING * int(CREDITS), 0)
    with pytest.raises(FrameError) as caught:
        meter.split(PING, 0)
    assert caught.value.code == ErrorCodes.ENHANCE_YOUR_CALM
    meter = FrameMeter(0)
    meter.split(PREFACE + PING * int(CREDITS), 0)
    meter.split(PING * int(CREDITS_PER_S), 1)
    meter.earn(RESET_COST)
    meter.spend(RESET_COST)
    meter.earn(2 * CREDITS)
    assert meter.credits == CREDITS


def test_a_large_header_block_is_the_last_of_its_slice():
    meter = FrameMeter(0)
    whole = HeadersFrame(1, data=bytes(4000), flags=["END_HEADERS"]).serialize()
    assert meter.split(PREFACE + whole + PING + whole + PING, 0) == [PREFACE + whole, PING + whole, PING]


@pytest.mark.parametrize("block", [b"\x20\x20\x20\x82", b"\x20\x3f\xe1\x1f\x20", b"\x3f\xff\xff\xff", b"\x20" * 24000])
def test_a_header_block_changes_the_table_twice_at_most(block):
    with pytest.raises(HPACKError):
        StrictDecoder().decode(block)


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=5), st.binary(max_size=5)), max_size=5),
    st.integers(0, 9000),
    st.integers(),
)
def test_a_header_block_is_decoded_as_by_its_base_class(headers, size, seed):
    encoder = Encoder()
    encoder.header_table_size = size
    encoder.header_table_size = seed % 5000
    block = encoder.encode(headers)
    strict, other = StrictDecoder(), Decoder()
    strict.max_allowed_table_size = other.max_allowed_table_size = 10_000
    assert strict.decode(block, raw=True) == other.decode(block, raw=True) == headers


def test_bodies_cost_nothing():
    meter = FrameMeter(0)
    meter.split(PREFACE, 0)
    for _ in range(2000):
        meter.split(DataFrame(1, data=bytes(1024)).serialize(), 0)
    assert meter.credits == CREDITS


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (DataFrame(1, data=bytes(FRAME_LIMIT_BYTES + 1)).serialize()[:9], ErrorCodes.FRAME_SIZE_ERROR),
        (LARGE + MORE * (BLOCK_LIMIT_BYTES // FRAME_LIMIT_BYTES - 1) + MORE[:9], ErrorCodes.ENHANCE_YOUR_CALM),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_held(data, code):
    meter = FrameMeter(0)
    assert meter.split(PREFACE + data[:-9], 0)
    with pytest.raises(FrameError) as caught:
        meter.split(data[-9:], 0)
    assert caught.value.code == code
