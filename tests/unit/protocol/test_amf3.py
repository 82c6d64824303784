"""AMF3 against the bytes of the specification, against other programs, and against hostile peers."""

from __future__ import annotations

import datetime as dt
import struct

import pytest

from rtmpd.errors import AmfError, LimitExceeded, LocalProtocolError
from rtmpd.protocol import amf3
from rtmpd.protocol.amf_values import (
    UNDEFINED,
    AmfDate,
    AmfDictionary,
    AmfLimits,
    EcmaArray,
    TypedObject,
    XmlDocument,
)
from tests.golden.amf.vectors import Vector, load, same

WRAPPER = "flex.messaging.io.ArrayCollection"


def name(text: str) -> str:
    """A string of up to 63 bytes without its marker, as hex."""
    return f"{len(text) << 1 | 1:02x}" + text.encode().hex()


# Both ways: section 3 of the specification, lengths at the borders of U29 (section 1.3.1).
EXACT = [
    pytest.param(UNDEFINED, "00", id="undefined"),
    pytest.param(None, "01", id="null"),
    pytest.param(False, "02", id="false"),
    pytest.param(True, "03", id="true"),
    pytest.param(0, "0400", id="zero"),
    pytest.param(0x7F, "047f", id="1 byte"),
    pytest.param(0x80, "048100", id="2 bytes, least"),
    pytest.param(0x3FFF, "04ff7f", id="2 bytes, most"),
    pytest.param(0x4000, "04818000", id="3 bytes, least"),
    pytest.param(0x1FFFFF, "04ffff7f", id="3 bytes, most"),
    pytest.param(0x200000, "0480c08000", id="4 bytes, least"),
    pytest.param(0x0FFFFFFF, "04bfffffff", id="highest"),
    pytest.param(-0x10000000, "04c0808000", id="lowest"),
    pytest.param(-1, "04ffffffff", id="minus one"),
    pytest.param(1.0, "053ff0000000000000", id="double"),
    pytest.param(float("nan"), "057ff8000000000000", id="NaN"),
    pytest.param("", "0601", id="empty string"),
    pytest.param("live", "06096c697665", id="string"),
    pytest.param("x" * 63, "067f" + "78" * 63, id="string, length of 1 byte"),
    pytest.param("x" * 64, "068101" + "78" * 64, id="string, length of 2 bytes"),
    pytest.param("x" * 70000, "0688c561" + "78" * 70000, id="string, length of 3 bytes"),
    pytest.param("é\udcff", "0607c3a9ff", id="string, not all of it UTF-8"),
    pytest.param(XmlDocument("<a/>"), "0709" + "3c612f3e", id="XMLDocument"),
    pytest.param(XmlDocument(""), "0701", id="XMLDocument, empty"),
    pytest.param(AmfDate(1000.0), "0801" + "408f400000000000", id="date"),
    pytest.param([], "090101", id="empty array"),
    pytest.param([1, [None]], "090501" + "0401" + "09030101", id="dense array"),
    pytest.param(EcmaArray(a=1), "0901" + name("a") + "0401" + "01", id="associative array"),
    pytest.param({}, "0a0b0101", id="empty object"),
    pytest.param({"a": "b"}, "0a0b01" + name("a") + "06" + name("b") + "01", id="object"),
    pytest.param(TypedObject("C", {"a": 1}), "0a0b" + name("C") + name("a") + "0401" + "01", id="typed object"),
    pytest.param(b"\x00\xff", "0c0500ff", id="byte array"),
    pytest.param(b"", "0c01", id="byte array, empty"),
    pytest.param(AmfDictionary(), "110100", id="dictionary, empty"),
    pytest.param(
        AmfDictionary({"a": 1, 2: "b", 0.5: None, True: False}),
        "110900" + "06" + name("a") + "0401" + "040206" + name("b") + "053fe000000000000001" + "0302",
        id="dictionary",
    ),
]


@pytest.mark.parametrize(("value", "encoded"), EXACT)
def test_both_ways(value, encoded):
    data = bytes.fromhex(encoded)
    assert amf3.encode(value) == data
    decoded, offset = amf3.decode(data)
    assert same(decoded, value)
    assert offset == len(data)


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        pytest.param("04808001", 1, id="integer, longer than need be"),
        pytest.param("0480808001", 1, id="integer of 4 bytes, longer than need be"),
        pytest.param("0b09" + "3c612f3e", XmlDocument("<a/>"), id="XML"),
        pytest.param("0903" + name("k") + "03" + "01" + "0407", EcmaArray({"k": True, "0": 7}), id="mixed array"),
        pytest.param("0903" + name("0") + "0401" + "01" + "0402", EcmaArray({"0": 2}), id="mixed array, index twice"),
        pytest.param("0a2301" + name("x") + name("y") + "04010402", {"x": 1, "y": 2}, id="sealed members, no class"),
        pytest.param("0a13" + name("C") + name("x") + "0401", TypedObject("C", {"x": 1}), id="sealed member"),
        pytest.param("0a03" + name("C"), TypedObject("C"), id="sealed, no members"),
        pytest.param(
            "0a1b" + name("C") + name("x") + "0401" + name("y") + "0402" + "01",
            TypedObject("C", {"x": 1, "y": 2}),
            id="sealed and dynamic members",
        ),
        pytest.param("0a07" + name(WRAPPER) + "09030104" + "01", [1], id="ArrayCollection"),
        pytest.param("0a07" + name("flex.messaging.io.ArrayList") + "090101", [], id="ArrayList"),
        pytest.param("0a07" + name("flex.messaging.io.ObjectProxy") + "0a0b0101", {}, id="ObjectProxy"),
        pytest.param("0d0500" + "7fffffff80000000", [2147483647, -2147483648], id="vector of int"),
        pytest.param("0d0100", [], id="vector of int, empty"),
        pytest.param("0e0501" + "7fffffff80000000", [2147483647, 2147483648], id="vector of uint"),
        pytest.param("0f0500" + "3fe0000000000000fff0000000000000", [0.5, float("-inf")], id="vector of double"),
        pytest.param("100500" + name("C") + "0a03" + name("C") + "01", [TypedObject("C"), None], id="vector of object"),
        pytest.param("100700" + "01" + "0401" + "05" + "0" * 16 + "06" + name("a"), [1, 0.0, "a"], id="vector of any"),
        pytest.param("110301" + "06" + name("a") + "090101", AmfDictionary({"a": []}), id="dictionary, weak keys"),
    ],
)
def test_decode_only(encoded, value):
    decoded, offset = amf3.decode(bytes.fromhex(encoded))
    assert same(decoded, value)
    assert offset == len(encoded) // 2


@pytest.mark.parametrize("vector", load(3), ids=lambda vector: vector.name)
def test_other_programs(vector: Vector):
    if vector.values is None:
        with pytest.raises(AmfError, match="inside itself"):
            amf3.decode(vector.data)
        return
    offset = 0
    for expected in vector.values:
        value, offset = amf3.decode(vector.data, offset)
        assert same(value, expected)
        if not vector.name.startswith("node.json: vector of"):  # ints over 29 bits would come back as floats
            assert same(amf3.decode(amf3.encode(value))[0], expected)
    assert offset == len(vector.data)


class TestReferences:
    def array(self, *elements: str) -> object:
        data = bytes.fromhex(f"09{len(elements) << 1 | 1:02x}01" + "".join(elements))
        value, offset = amf3.decode(data)
        assert offset == len(data)
        return value

    def test_strings(self):
        assert self.array("06" + name("a"), "06" + name("b"), "0600", "0602") == ["a", "b", "a", "b"]

    def test_the_empty_string_has_no_index(self):
        assert self.array("0601", "06" + name("a"), "0600") == ["", "a", "a"]

    def test_names_and_classes_are_strings(self):
        # 0 class C, 1 sealed x, 2 dynamic y.
        first = "0a1b" + name("C") + name("x") + "01" + name("y") + "01" + "01"
        assert self.array(first, "0600", "0602", "0604") == [TypedObject("C", {"x": None, "y": None}), "C", "x", "y"]
        assert self.array(first, "0a0b01" + "02" + "03" + "01")[1] == {"x": True}  # type: ignore[index]

    def test_xml_is_no_string(self):
        assert self.array("0705" + "6869", "06" + name("a"), "0600", "0702") == ["hi", "a", "a", "hi"]

    def test_objects_of_every_type(self):
        # 0 is the array itself.
        elements = {
            "0a": "0a0b0101",
            "09": "090101",
            "08": "0801" + "0" * 16,
            "07": "0703" + "61",
            "0b": "0b03" + "61",
            "0c": "0c03" + "61",
            "0d": "0d0100",
            "0e": "0e0100",
            "0f": "0f0100",
            "10": "10010001",
            "11": "110100",
        }
        references = [f"{marker}{index << 1:02x}" for index, marker in enumerate(elements, 1)]
        value = self.array(*elements.values(), *references)
        assert isinstance(value, list)
        assert len(value) == 22
        assert all(value[i] is value[i + 11] for i in range(11))
        assert same(value[:6], [{}, [], AmfDate(0.0), XmlDocument("a"), XmlDocument("a"), b"a"])

    def test_wrapper_and_what_it_wraps(self):
        # 1 the wrapper, 2 the array in it: to us both are the array.
        value = self.array("0a07" + name(WRAPPER) + "090101", "0a02", "0904")
        assert value == [[], [], []]

    def test_traits(self):
        first = "0a13" + name("C") + name("x") + "0401"
        second = "0a0b01" + "01"
        assert same(
            self.array(first, second, "0a01" + "0402", "0a05" + name("y") + "0403" + "01"),
            [TypedObject("C", {"x": 1}), {}, TypedObject("C", {"x": 2}), {"y": 3}],
        )

    def test_traits_of_a_wrapper(self):
        assert self.array("0a07" + name(WRAPPER) + "01", "0a01" + "0401") == [None, 1]

    def test_tables_are_per_call(self):
        data = bytes.fromhex("06" + name("a") + "0600")
        _, offset = amf3.decode(data)
        with pytest.raises(AmfError, match="reference to one of 0 strings before offset 5, found 0"):
            amf3.decode(data, offset)

    @pytest.mark.parametrize(
        ("encoded", "message"),
        [
            pytest.param("0600", "one of 0 strings before offset 2, found 0", id="string"),
            pytest.param("0a0b0102", "one of 0 strings before offset 4, found 1", id="name"),
            pytest.param("0a0b02", "one of 0 strings before offset 3, found 1", id="class name"),
            pytest.param("0a01", "one of 0 traits before offset 2, found 0", id="traits"),
            pytest.param("0a00", "one of 0 objects before offset 2, found 0", id="object"),
            pytest.param("09fffffffe", "one of 0 objects before offset 5, found 268435455", id="array, highest"),
            pytest.param("0802", "one of 0 objects before offset 2, found 1", id="date"),
            pytest.param("090301" + "0a04", "one of 1 objects before offset 5, found 2", id="forward"),
        ],
    )
    def test_out_of_range(self, encoded, message):
        with pytest.raises(AmfError, match=message):
            amf3.decode(bytes.fromhex(encoded))

    @pytest.mark.parametrize(
        "encoded",
        [
            pytest.param("0903010900", id="array"),
            pytest.param("0901" + name("a") + "0900", id="associative array"),
            pytest.param("0a0b01" + name("a") + "0a00", id="object"),
            pytest.param("0a13" + name("C") + name("a") + "0a00", id="sealed object"),
            pytest.param("0a07" + name(WRAPPER) + "0a00", id="wrapper"),
            pytest.param("1003000110" + "00", id="vector"),
            pytest.param("110300" + "0401" + "1100", id="dictionary"),
        ],
    )
    def test_inside_itself(self, encoded):
        with pytest.raises(AmfError, match="object 0 inside itself"):
            amf3.decode(bytes.fromhex(encoded))

    def test_written_out_size_is_limited(self):
        # [[], [1, 1], [2, 2], ...] where a number is the object of that index.
        data = bytes.fromhex("093d01" + "090101")
        for index in range(1, 30):
            data += bytes.fromhex("090501") + bytes((0x09, index << 1)) * 2
        with pytest.raises(LimitExceeded, match="amf_values is 4096"):
            amf3.decode(data)

    def test_written_out_depth_is_limited(self):
        data = bytes.fromhex("095101" + "090101")
        for index in range(1, 40):
            data += bytes.fromhex("090301") + bytes((0x09, index << 1))
        with pytest.raises(LimitExceeded, match="amf_depth is 32, the peer asked for 33"):
            amf3.decode(data)
        assert amf3.decode(data, limits=AmfLimits(depth=41))

    @pytest.mark.parametrize(
        ("first", "reference"),
        [
            pytest.param("06" + name("x" * 50), "0600", id="string"),
            pytest.param("07" + name("x" * 50), "0702", id="XML document"),
            pytest.param("0c" + name("x" * 50), "0c02", id="byte array"),
            pytest.param("0a0b01" + name("x" * 50) + "0101", "0a02", id="object with a name"),
            pytest.param("0a13" + "01" + name("x" * 50) + "01", "0a01" + "01", id="object of the same traits"),
            pytest.param("0a03" + name("x" * 50), "0a01", id="object of the same class"),
        ],
    )
    def test_written_out_strings_are_limited(self, first, reference):
        data = bytes.fromhex("090901" + first + reference * 3)
        assert amf3.decode(data, limits=AmfLimits(total_bytes=200))
        with pytest.raises(LimitExceeded, match="amf_total_bytes is 199, the peer asked for 200"):
            amf3.decode(data, limits=AmfLimits(total_bytes=199))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        pytest.param("", "expected an AMF3 value of 1 bytes at offset 0, found 0 bytes", id="nothing"),
        pytest.param("12", "expected a type marker at offset 0, found 0x12", id="unknown"),
        pytest.param("ff", "expected a type marker at offset 0, found 0xff", id="unknown, highest"),
        pytest.param("04", "expected an integer of 1 bytes at offset 1", id="integer"),
        pytest.param("04ffffff", "expected an integer of 1 bytes at offset 4", id="integer, last byte"),
        pytest.param("0500", "expected a double of 8 bytes at offset 1, found 1 bytes", id="double"),
        pytest.param("0605", "expected a string of 2 bytes at offset 2, found 0 bytes", id="string"),
        pytest.param("06ffffffff", "expected a string of 268435455 bytes at offset 5", id="string, longest"),
        pytest.param("07ffffffff", "expected an XML document of 268435455 bytes at offset 5", id="XML document"),
        pytest.param("0cffffffff", "expected a byte array of 268435455 bytes at offset 5", id="byte array"),
        pytest.param("080100", "expected a date of 8 bytes at offset 2, found 1 bytes", id="date"),
        pytest.param("09ffffffff01", "expected 268435455 array elements from offset 5 on, found 1", id="array"),
        pytest.param("090501" + "01", "expected an AMF3 value of 1 bytes at offset 4", id="array, one of two"),
        pytest.param("0901" + name("a"), "expected an AMF3 value of 1 bytes at offset 4", id="array, name only"),
        pytest.param("0a", "expected an object's header of 1 bytes", id="object"),
        pytest.param("0afffffff301", "expected 33554431 member names from offset 6 on, found 0", id="member names"),
        pytest.param("0a0b01", "expected a string's header of 1 bytes at offset 3", id="no end"),
        pytest.param("0a13" + name("C") + name("x"), "expected an AMF3 value of 1 bytes at offset 6", id="sealed"),
        pytest.param("0a07" + name("C"), "externalizable class of a known format before offset 4, found 'C'", id="ext"),
        pytest.param("0d05", "expected a vector's fixed flag of 1 bytes at offset 2", id="vector"),
        pytest.param("0dffffffff00", "expected 268435455 vector elements from offset 6 on", id="vector of int"),
        pytest.param("0e050000000000", "expected 2 vector elements from offset 3 on, found 4 bytes", id="of uint"),
        pytest.param("0f0300000000", "expected 1 vector elements from offset 3 on, found 3 bytes", id="of double"),
        pytest.param("10ffffffff0001", "expected 268435455 vector elements from offset 7 on", id="of object"),
        pytest.param("1103", "expected a dictionary's weak keys flag of 1 bytes at offset 2", id="dictionary"),
        pytest.param("11ffffffff00", "expected 268435455 dictionary entries from offset 6 on", id="entries"),
        pytest.param("110300" + "0401", "expected an AMF3 value", id="dictionary, key only"),
        pytest.param("110300" + "0101", "as a dictionary's key at offset 3, found NoneType", id="key null"),
        pytest.param("110300" + "0a0b010101", "as a dictionary's key at offset 3, found dict", id="key object"),
        pytest.param("110300" + "070101", "as a dictionary's key at offset 3, found XmlDocument", id="key XML"),
        pytest.param("110300" + "0c0101", "as a dictionary's key at offset 3, found bytes", id="key byte array"),
    ],
)
def test_malformed(encoded, message):
    with pytest.raises(AmfError, match=message):
        amf3.decode(bytes.fromhex(encoded))


class TestLimits:
    @pytest.mark.parametrize(
        ("level", "end"),
        [
            pytest.param("090301", "", id="array"),
            pytest.param("0901" + name("a"), "01", id="associative array"),
            pytest.param("0a0b01" + name("a"), "01", id="object"),
            pytest.param("0a13" + name("C") + name("a"), "", id="sealed object"),
            pytest.param("0a07" + name(WRAPPER), "", id="wrapper"),
            pytest.param("10030001", "", id="vector"),
            pytest.param("1103000401", "", id="dictionary"),
        ],
    )
    def test_depth(self, level, end):
        amf3.decode(bytes.fromhex(level * 32 + "01" + end * 32))
        with pytest.raises(LimitExceeded, match="amf_depth is 32, the peer asked for 33"):
            amf3.decode(bytes.fromhex(level * 10_000))

    def test_depth_of_dictionary_keys(self):
        with pytest.raises(LimitExceeded, match="amf_depth is 32, the peer asked for 33"):
            amf3.decode(bytes.fromhex("110300" * 10_000))

    @pytest.mark.parametrize(
        "encoded",
        [
            pytest.param("091301" + "01" * 9, id="array"),
            pytest.param("0d1300" + "00000000" * 9, id="vector of int"),
            pytest.param("0f1300" + "0000000000000000" * 9, id="vector of double"),
            pytest.param("101300" + "01" + "01" * 9, id="vector of object"),
            pytest.param("0a8113" + "01" + "".join(name(c) for c in "abcdefghi") + "01" * 9, id="sealed members"),
            pytest.param("0a0b01" + "".join(name(c) + "01" for c in "abcdefghi") + "01", id="dynamic members"),
            pytest.param("091101" + "110300" + "0401" + "01" + "01" * 6 + "01", id="dictionary"),
        ],
    )
    def test_values(self, encoded):
        amf3.decode(bytes.fromhex(encoded), limits=AmfLimits(values=12))
        with pytest.raises(LimitExceeded, match="amf_values is 9, the peer asked for"):
            amf3.decode(bytes.fromhex(encoded), limits=AmfLimits(values=9))

    def test_count_is_refused_before_the_elements_are_read(self):
        with pytest.raises(LimitExceeded, match="amf_values is 4096, the peer asked for 5001"):
            amf3.decode(bytes.fromhex("09ce11") + b"\xff" * 5000)

    @pytest.mark.parametrize("encoded", ["060b", "070b", "0c0b"])
    def test_string_bytes(self, encoded):
        data = bytes.fromhex(encoded) + b"abcde"
        amf3.decode(data, limits=AmfLimits(string_bytes=5))
        with pytest.raises(LimitExceeded, match="amf_string_bytes is 4, the peer asked for 5"):
            amf3.decode(data, limits=AmfLimits(string_bytes=4))


class TestEncode:
    def test_int_outside_29_bits(self):
        assert same(amf3.decode(amf3.encode(amf3.INTEGER_MAX + 1))[0], float(1 << 28))
        assert same(amf3.decode(amf3.encode(amf3.INTEGER_MIN - 1))[0], -float((1 << 28) + 1))

    def test_tuple_and_bytearray(self):
        assert amf3.encode((1,)) == amf3.encode([1])
        assert amf3.encode(bytearray(b"ab")) == amf3.encode(b"ab")  # type: ignore[arg-type]

    def test_dates_lose_their_zone(self):
        assert amf3.encode(AmfDate(1.0, 60)) == amf3.encode(AmfDate(1.0))
        assert amf3.decode(amf3.encode(dt.datetime(1970, 1, 2, tzinfo=dt.UTC)))[0] == AmfDate(86_400_000.0)

    def test_empty_ecma_array_is_a_list(self):
        assert same(amf3.decode(amf3.encode(EcmaArray()))[0], [])

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            pytest.param(object(), "AMF3 can't express a object", id="object"),
            pytest.param({1: "x"}, "expected a non-empty name of an AMF3 member, found 1", id="name"),
            pytest.param({"": "x"}, "expected a non-empty name of an AMF3 member, found ''", id="no name"),
            pytest.param(EcmaArray({"": 1}), "expected a non-empty name", id="no name in an array"),
            pytest.param(TypedObject(""), "expected a TypedObject with a class name", id="no class"),
            pytest.param(AmfDictionary({None: 1}), "as a dictionary's key, found NoneType", id="key"),  # type: ignore[dict-item]
            pytest.param("\ud800", "a string that UTF-8 can't express", id="surrogate"),
            pytest.param(10**400, "an int that no AMF number can express", id="int"),
            pytest.param(dt.datetime(2024, 1, 1), "expected a datetime with a time zone", id="naive"),  # noqa: DTZ001
            pytest.param(bytes((1 << 20) + 1), "an AMF string of 1048577 bytes exceeds 1048576", id="string bytes"),
            pytest.param([None] * 4096, "more than 4096 AMF values", id="values"),
        ],
    )
    def test_cannot(self, value, message):
        with pytest.raises(LocalProtocolError, match=message):
            amf3.encode(value)

    def test_length_beyond_u29(self):
        limits = AmfLimits(string_bytes=1 << 29, total_bytes=1 << 29)
        with pytest.raises(LocalProtocolError, match="an AMF3 length of 268435456, expected at most 268435455"):
            amf3.encode(bytes(1 << 28), limits)

    def test_value_that_holds_itself(self):
        value: list[object] = []
        value.append({"self": value})
        with pytest.raises(LocalProtocolError, match="nests deeper than 32, or contains itself"):
            amf3.encode(value)  # type: ignore[arg-type]


def test_large_vector():
    data = b"\x0f" + bytes.fromhex("a001") + b"\x00" + struct.pack(">2048d", *range(2048))
    value, offset = amf3.decode(data)
    assert value == [float(i) for i in range(2048)]
    assert offset == len(data)
