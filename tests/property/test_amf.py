"""Rules for every AMF value and for any bytes."""

from __future__ import annotations

import contextlib
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rtmpd.errors import AmfError, LimitExceeded, LocalProtocolError
from rtmpd.protocol import amf0, amf3
from rtmpd.protocol.amf_values import (
    UNDEFINED,
    AmfDate,
    AmfDictionary,
    AmfLimits,
    EcmaArray,
    TypedObject,
    XmlDocument,
)
from tests.golden.amf.vectors import load, same

AMF = settings(deadline=None, max_examples=150)
DECODE = {0: amf0.decode_all, 3: amf3.decode}

texts = st.text(max_size=20)
names = st.text(string.ascii_letters + "é€🎥", min_size=1, max_size=8)
floats = st.floats()
dates = floats.map(AmfDate)
scalars = st.one_of(st.none(), st.just(UNDEFINED), st.booleans(), floats, texts, texts.map(XmlDocument))


def containers(inner: st.SearchStrategy[object], member_names: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    members = st.dictionaries(member_names, inner, max_size=4)
    return st.one_of(
        st.lists(inner, max_size=4),
        members,
        members.filter(bool).map(EcmaArray),  # AMF3 has no empty one
        st.builds(TypedObject, names, members),
    )


amf0_values = st.recursive(
    scalars | st.builds(AmfDate, floats, st.integers(-32768, 32767)),
    lambda inner: containers(inner, names | st.just("")),
    max_leaves=12,
)
amf3_values = st.recursive(
    scalars | dates | st.integers(amf3.INTEGER_MIN, amf3.INTEGER_MAX) | st.binary(max_size=20),
    lambda inner: (
        containers(inner, names)
        | st.dictionaries(texts | st.integers(-100, 100) | st.just(0.5), inner, max_size=4).map(AmfDictionary)
    ),
    max_leaves=12,
)


# Bytes that are nearly AMF: markers, lengths that fit, end markers, references.
pieces = st.one_of(
    st.binary(max_size=4),
    st.integers(0, 0x12).map(lambda marker: bytes((marker,))),
    st.sampled_from(
        [
            b"\x00\x00\x09",
            b"\x00\x01a",
            b"\x03\x00\x01a",
            b"\x07\x00\x00",
            b"\x08\x00\x00\x00\x01",
            b"\x0a\x00\x00\x00\x02",
            b"\x0a\xff\xff\xff\xff",
            b"\x0c\xff\xff\xff\xff",
            b"\x10\x00\x01C",
            b"\x11\x0a\x0b\x01",
            b"\x11\x09\x05\x01",
            b"\x03a",
            b"\x0a\x13\x03C\x03x",
            b"\x0a\x01",
            b"\x0d\x03\x00",
            b"\x11\x03\x00",
            b"\xff\xff\xff\xff",
        ]
    ),
)
nearly_amf = st.lists(pieces, max_size=30).map(b"".join)
valid = [vector.data for version in (0, 3) for vector in load(version) if len(vector.data) < 2000]


@AMF
@given(st.lists(amf0_values, max_size=3))
def test_amf0_round_trip(values):
    encoded = amf0.encode(*values)
    assert same(amf0.decode_all(encoded), values)
    offset = 3
    for value in values:
        decoded, offset = amf0.decode(b"xyz" + encoded, offset)
        assert same(decoded, value)
    assert offset == 3 + len(encoded)


@AMF
@given(amf3_values)
def test_amf3_round_trip(value):
    encoded = amf3.encode(value)
    decoded, offset = amf3.decode(b"xyz" + encoded + b"xyz", 3)
    assert same(decoded, value)
    assert offset == 3 + len(encoded)


@AMF
@given(amf3_values)
def test_amf3_inside_amf0(value):
    encoded = b"\x0a\x00\x00\x00\x02\x11" + amf3.encode(value) + b"\x05"
    assert same(amf0.decode(encoded)[0], [value, None])


@AMF
@given(st.binary(max_size=40))
@example(b"\xff\xfe\xed\xa0\x80")
def test_strings_give_their_bytes_back(text):
    encoded0 = b"\x02\x00" + bytes((len(text),)) + text
    assert amf0.encode(amf0.decode(encoded0)[0]) == encoded0
    encoded3 = b"\x06" + bytes((len(text) << 1 | 1,)) + text
    assert amf3.encode(amf3.decode(encoded3)[0]) == encoded3


@AMF
@pytest.mark.parametrize("version", [0, 3])
@given(st.one_of(st.binary(max_size=60), nearly_amf))
def test_any_bytes(version, data):
    try:
        value = DECODE[version](data)
    except (AmfError, LimitExceeded):
        return
    # What decodes, can be walked: neither endless nor deeper than the stack.
    assert len(repr(value)) < 1_000_000


@AMF
@pytest.mark.parametrize("version", [0, 3])
@given(st.sampled_from(valid), st.data())
def test_broken_bytes(version, encoded, data):
    position = data.draw(st.integers(0, len(encoded) - 1))
    broken = encoded[:position] + data.draw(st.binary(max_size=3)) + encoded[position + data.draw(st.integers(0, 3)) :]
    with contextlib.suppress(AmfError, LimitExceeded):
        DECODE[version](broken)


@AMF
@given(st.lists(amf0_values, max_size=2))
def test_truncated_amf0(values):
    encoded = amf0.encode(*values)
    for end in range(len(encoded)):
        try:
            decoded = amf0.decode_all(encoded[:end])
        except AmfError:
            continue
        # Cut between two values, or in front of the last end markers when all they end are ECMA arrays.
        assert same(decoded, values[: len(decoded)])
        assert encoded.startswith(amf0.encode(*decoded)) or encoded[end:].strip(b"\x00\x09") == b""


@pytest.mark.parametrize("vector", [vector for vector in load(0) if len(vector.data) < 2000], ids=lambda one: one.name)
def test_truncated_amf0_of_other_programs(vector):
    for end in range(len(vector.data)):
        with contextlib.suppress(AmfError):
            amf0.decode_all(vector.data[:end])


@AMF
@given(amf3_values.map(amf3.encode))
def test_truncated_amf3(encoded):
    for end in range(len(encoded)):
        with pytest.raises(AmfError):
            amf3.decode(encoded[:end])


@pytest.mark.parametrize(
    ("decode", "level"),
    [
        (amf0.decode, b"\x0a\x00\x00\x00\x01"),
        (amf0.decode, b"\x03\x00\x01a"),
        (amf0.decode, b"\x08\x00\x00\x00\x01\x00\x01a"),
        (amf0.decode, b"\x10\x00\x01C\x00\x01a"),
        (amf3.decode, b"\x09\x03\x01"),
        (amf3.decode, b"\x09\x01\x03a"),
        (amf3.decode, b"\x0a\x0b\x01\x03a"),
        (amf3.decode, b"\x10\x03\x00\x01"),
        (amf3.decode, b"\x11\x03\x00"),
    ],
)
@settings(deadline=None, max_examples=5)
@given(st.integers(33, 20_000))
@example(1000)
def test_nesting(decode, level, depth):
    with pytest.raises(LimitExceeded, match="amf_depth"):
        decode(level * depth)


@AMF
@given(amf0_values, st.integers(0, 8), st.integers(0, 30), st.integers(0, 60))
def test_what_encodes_within_limits_decodes_within_them(value, depth, values, total):
    limits = AmfLimits(depth=depth, values=values, string_bytes=total, total_bytes=total)
    for codec in (amf0, amf3):
        try:
            unlimited = codec.encode(value)
        except LocalProtocolError:  # an empty name in AMF3
            continue
        try:
            encoded = codec.encode(value, limits=limits)
        except LocalProtocolError:
            with pytest.raises(LimitExceeded):
                codec.decode(unlimited, limits=limits)
        else:
            codec.decode(encoded, limits=limits)
