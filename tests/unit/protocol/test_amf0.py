"""AMF0 against the bytes of the specification, against other programs, and against hostile peers."""

from __future__ import annotations

import datetime as dt
import enum
import struct

import pytest

from rtmpd.errors import AmfError, LimitExceeded, LocalProtocolError
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import (
    DEFAULT_LIMITS,
    UNDEFINED,
    AmfDate,
    AmfDictionary,
    AmfLimits,
    EcmaArray,
    TypedObject,
    XmlDocument,
)
from tests.golden.amf.vectors import Vector, load, same

END = "000009"
ONE = "003ff0000000000000"

# Both ways: section 2 of the specification.
EXACT = [
    pytest.param(0.0, "000000000000000000", id="zero"),
    pytest.param(1.0, ONE, id="number"),
    pytest.param(-0.0, "008000000000000000", id="negative zero"),
    pytest.param(float("inf"), "007ff0000000000000", id="infinity"),
    pytest.param(float("nan"), "007ff8000000000000", id="NaN"),
    pytest.param(False, "0100", id="false"),
    pytest.param(True, "0101", id="true"),
    pytest.param("", "020000", id="empty string"),
    pytest.param("live", "0200046c697665", id="string"),
    pytest.param("é€", "020005c3a9e282ac", id="UTF-8"),
    pytest.param("caf\udce9", "020004636166e9", id="Latin-1 in a string"),
    pytest.param("x" * 65535, "02ffff" + "78" * 65535, id="longest string"),
    pytest.param("x" * 65536, "0c00010000" + "78" * 65536, id="shortest long string"),
    pytest.param({}, "03" + END, id="empty object"),
    pytest.param({"app": "live"}, "030003617070" + "0200046c697665" + END, id="object"),
    pytest.param({"": 1.0}, "030000" + ONE + END, id="empty name"),
    pytest.param(None, "05", id="null"),
    pytest.param(UNDEFINED, "06", id="undefined"),
    pytest.param(EcmaArray(), "0800000000" + END, id="empty ECMA array"),
    pytest.param(EcmaArray(width=1.0), "0800000001" + "00057769647468" + ONE + END, id="ECMA array"),
    pytest.param([], "0a00000000", id="empty strict array"),
    pytest.param([1.0, [None]], "0a00000002" + ONE + "0a0000000105", id="strict array"),
    pytest.param(AmfDate(1000.0), "0b408f400000000000" + "0000", id="date"),
    pytest.param(AmfDate(-1.0, -60), "0bbff0000000000000" + "ffc4", id="date with a zone"),
    pytest.param(XmlDocument("<a/>"), "0f000000043c612f3e", id="XML document"),
    pytest.param(TypedObject("C", {"x": 1.0}), "10000143" + "000178" + ONE + END, id="typed object"),
    pytest.param(TypedObject("", {}), "100000" + END, id="class without a name"),
]


@pytest.mark.parametrize(("value", "encoded"), EXACT)
def test_both_ways(value, encoded):
    data = bytes.fromhex(encoded)
    assert amf0.encode(value) == data
    decoded, offset = amf0.decode(data)
    assert same(decoded, value)
    assert offset == len(data)


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        pytest.param("0102", True, id="any other boolean"),
        pytest.param("0c000000026869", "hi", id="short long string"),
        pytest.param("0d", UNDEFINED, id="unsupported"),
        pytest.param("03" + "000161" + "05" + "000161" + ONE + END, {"a": 1.0}, id="name twice"),
        pytest.param("0800000014" + "000161" + ONE + END, EcmaArray(a=1.0), id="count of OBS"),
        pytest.param("0800000000" + "000161" + ONE + END, EcmaArray(a=1.0), id="count too low"),
        pytest.param("08ffffffff" + END, EcmaArray(), id="count of 4 billion"),
        pytest.param("0800000001" + "000161" + ONE, EcmaArray(a=1.0), id="no end marker"),
        pytest.param("0800000000", EcmaArray(), id="no end marker, empty"),
        pytest.param("0800000001" + "000161" + "0800000000", EcmaArray(a=EcmaArray()), id="no two end markers"),
        pytest.param("110407", 7, id="AMF3 integer"),
        pytest.param("110a0b01" + "036101" + "01", {"a": None}, id="AMF3 object"),
        pytest.param("0a00000002" + "1106056869" + "0101", ["hi", True], id="AMF3 in an array, AMF0 after it"),
    ],
)
def test_decode_only(encoded, value):
    decoded, offset = amf0.decode(bytes.fromhex(encoded))
    assert same(decoded, value)
    assert offset == len(encoded) // 2


@pytest.mark.parametrize("vector", load(0), ids=lambda vector: vector.name)
def test_other_programs(vector: Vector):
    if vector.values is None:
        with pytest.raises(AmfError, match="inside itself"):
            amf0.decode_all(vector.data)
        return
    values = amf0.decode_all(vector.data)
    assert same(values, vector.values)
    if vector.data[0] != 0x11:  # an AMF3 integer would come back as a float
        assert same(amf0.decode_all(amf0.encode(*values)), vector.values)


@pytest.mark.parametrize("vector", [v for v in load(0) if v.name.startswith("commands")], ids=lambda vector: vector.name)
def test_same_bytes_as_ffmpeg_and_rtmpdump(vector: Vector):
    assert vector.values is not None
    assert amf0.encode(*vector.values) == vector.data


def test_offsets():
    data = bytes.fromhex("ffff" + "0101" + "05" + "ff")
    assert amf0.decode(data, 2) == (True, 4)
    assert amf0.decode(data, 4) == (None, 5)
    assert amf0.decode_all(data[:5], 2) == [True, None]
    assert amf0.decode_all(b"") == []


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_other_buffers(kind):
    data = amf0.encode("a", {"b": "c"}) + bytes.fromhex("110c0361")
    values = amf0.decode_all(kind(data))
    assert values == ["a", {"b": "c"}, b"a"]
    assert type(values[2]) is bytes


class TestReferences:
    def test_same_object(self):
        shared = {"k": 1.0}
        data = bytes.fromhex("0a00000003" + "0300016b" + ONE + END + "070001" + "070001")
        decoded, _ = amf0.decode(data)
        assert decoded == [shared, shared, shared]
        assert isinstance(decoded, list)
        assert decoded[0] is decoded[1] is decoded[2]

    def test_order_of_appearance(self):
        # 0 object, 1 its strict array, 2 ECMA array, 3 typed object.
        first = "03" + "000161" + "0a00000000" + END
        data = bytes.fromhex(first + "0800000000" + END + "10000143" + END + "070000070001070002070003")
        values = amf0.decode_all(data)
        assert same(values[3:], [{"a": []}, [], EcmaArray(), TypedObject("C")])

    def test_dates_and_strings_do_not_count(self):
        data = bytes.fromhex("0b00000000000000000000" + "020000" + "03" + END + "070000")
        assert amf0.decode_all(data)[3] == {}

    def test_tables_are_per_call(self):
        data = bytes.fromhex("03" + END + "070000")
        _, offset = amf0.decode(data)
        with pytest.raises(AmfError, match="reference to one of 0 objects before offset 7, found 0"):
            amf0.decode(data, offset)

    def test_amf3_tables_are_shared_in_a_call(self):
        assert amf0.decode_all(bytes.fromhex("1106056869" + "110600")) == ["hi", "hi"]

    @pytest.mark.parametrize("reference", ["070001", "07ffff"])
    def test_out_of_range(self, reference):
        with pytest.raises(AmfError, match="reference to one of 1 objects"):
            amf0.decode_all(bytes.fromhex("03" + END + reference))

    @pytest.mark.parametrize(
        "encoded",
        ["03000161" + "070000" + END, "0800000000" + "000161" + "070000" + END, "0a00000001" + "070000"],
    )
    def test_inside_itself(self, encoded):
        with pytest.raises(AmfError, match="object 0 inside itself"):
            amf0.decode(bytes.fromhex(encoded))

    def test_written_out_size_is_limited(self):
        # A list, then 30 lists which hold the one before twice: 2 ** 31 values in 600 bytes.
        data = bytes.fromhex("0a00000000")
        for index in range(30):
            data += bytes.fromhex("0a00000002") + 2 * (b"\x07" + struct.pack(">H", index))
        with pytest.raises(LimitExceeded, match="amf_values is 4096"):
            amf0.decode_all(data)

    def test_written_out_depth_is_limited(self):
        # Each list holds the one before: nesting is 1, written out it is 41.
        data = bytes.fromhex("0a00000000")
        for index in range(40):
            data += bytes.fromhex("0a00000001") + b"\x07" + struct.pack(">H", index)
        with pytest.raises(LimitExceeded, match="amf_depth is 32, the peer asked for 33"):
            amf0.decode_all(data)
        assert amf0.decode_all(data, limits=AmfLimits(depth=41))

    def test_written_out_depth_counts_what_is_around_a_reference(self):
        inner = "0a00000001" + "0a00000000"
        assert amf0.decode_all(bytes.fromhex(inner + "0a00000001" + "070000"), limits=AmfLimits(depth=3))
        with pytest.raises(LimitExceeded, match="amf_depth is 2, the peer asked for 3"):
            amf0.decode_all(bytes.fromhex(inner + "0a00000001" + "070000"), limits=AmfLimits(depth=2))

    def test_written_out_strings_are_limited(self):
        data = amf0.encode(["x" * 100]) + b"\x07\x00\x00" * 3
        assert len(amf0.decode_all(data, limits=AmfLimits(total_bytes=400))) == 4
        with pytest.raises(LimitExceeded, match="amf_total_bytes is 399, the peer asked for 400"):
            amf0.decode_all(data, limits=AmfLimits(total_bytes=399))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        pytest.param("", "expected an AMF0 value of 1 bytes at offset 0, found 0 bytes", id="nothing"),
        pytest.param("04", "expected a type marker at offset 0, found 0x04", id="movie clip"),
        pytest.param("09", "expected a type marker at offset 0, found 0x09", id="object end"),
        pytest.param("0e", "expected a type marker at offset 0, found 0x0e", id="record set"),
        pytest.param("12", "expected a type marker at offset 0, found 0x12", id="unknown"),
        pytest.param("ff", "expected a type marker at offset 0, found 0xff", id="unknown, highest"),
        pytest.param("003ff0", "expected a number of 8 bytes at offset 1, found 2 bytes", id="number"),
        pytest.param("01", "expected a boolean of 1 bytes at offset 1, found 0 bytes", id="boolean"),
        pytest.param("0200", "expected a string's length of 2 bytes at offset 1, found 1 bytes", id="string's length"),
        pytest.param("02000561", "expected a string of 5 bytes at offset 3, found 1 bytes", id="string"),
        pytest.param("0cffffffff61", "expected a long string of 4294967295 bytes at offset 5", id="long string"),
        pytest.param("0fffffffff61", "expected a long string of 4294967295 bytes at offset 5", id="XML document"),
        pytest.param("03", "expected the length of a name of 2 bytes at offset 1", id="object"),
        pytest.param("030000", "expected an AMF0 value of 1 bytes at offset 3", id="object, half an end marker"),
        pytest.param("030001", "expected a name of 1 bytes at offset 3", id="object, half a name"),
        pytest.param("03000161", "expected an AMF0 value of 1 bytes at offset 4", id="object, name only"),
        pytest.param("0300016109", "expected a type marker at offset 4, found 0x09", id="object, end for a value"),
        pytest.param("03000161" + ONE, "expected the length of a name", id="object, no end marker"),
        pytest.param("0800000002000161" + ONE, "expected the length of a name", id="ECMA array, one of two"),
        pytest.param("0800000001000161" + ONE + "00", "expected the length of a name", id="ECMA array, bit of end"),
        pytest.param("0800000001000161" + ONE + "0000", "expected an AMF0 value", id="ECMA array, most of end"),
        pytest.param("0800000000000161" + ONE, "expected the length of a name", id="ECMA array, more than it said"),
        pytest.param("08000000", "expected an ECMA array's count of 4 bytes at offset 1", id="ECMA array's count"),
        pytest.param("0a000000", "expected a strict array's count of 4 bytes at offset 1", id="strict array's count"),
        pytest.param("0affffffff05", "expected 4294967295 array elements from offset 5 on, found 1 bytes", id="array"),
        pytest.param("0a0000000205", "expected 2 array elements from offset 5 on, found 1 bytes", id="array of two"),
        pytest.param("0b0000000000000000", "expected a date's time zone of 2 bytes at offset 9", id="date"),
        pytest.param("0700", "expected a reference of 2 bytes at offset 1", id="reference"),
        pytest.param("100005", "expected a string of 5 bytes at offset 3", id="typed object"),
        pytest.param("11", "expected an AMF3 value of 1 bytes at offset 1", id="AMF3"),
        pytest.param("1112", "AMF3: expected a type marker at offset 1, found 0x12", id="AMF3 unknown"),
    ],
)
def test_malformed(encoded, message):
    with pytest.raises(AmfError, match=message):
        amf0.decode(bytes.fromhex(encoded))


class TestLimits:
    @pytest.mark.parametrize(
        "level",
        ["0a00000001", "03000161", "0800000001000161", "10000143000161"],
        ids=["strict array", "object", "ECMA array", "typed object"],
    )
    def test_depth(self, level):
        allowed = bytes.fromhex(level * 32 + "05") + bytes.fromhex(END) * 32
        amf0.decode(allowed)
        with pytest.raises(LimitExceeded, match="amf_depth is 32, the peer asked for 33"):
            amf0.decode(bytes.fromhex(level * 100_000))

    def test_depth_through_amf3(self):
        level = "0a00000001" * 20
        amf0.decode(bytes.fromhex(level + "11" + "090301" * 12 + "01"))
        with pytest.raises(LimitExceeded, match="amf_depth is 32, the peer asked for 33"):
            amf0.decode(bytes.fromhex(level + "11" + "090301" * 13 + "01"))

    def test_deepest_allowed_depth(self):
        limits = AmfLimits(depth=128)
        value: list[object] = []
        for _ in range(127):
            value = [value]
        assert amf0.decode(amf0.encode(value, limits=limits), limits=limits)[0] == value

    def test_values(self):
        limits = AmfLimits(values=10)
        assert len(amf0.decode_all(b"\x05" * 10, limits=limits)) == 10
        with pytest.raises(LimitExceeded, match="amf_values is 10, the peer asked for 11"):
            amf0.decode_all(b"\x05" * 11, limits=limits)
        assert amf0.decode(amf0.encode([None] * 9), limits=limits)
        with pytest.raises(LimitExceeded, match="amf_values is 10, the peer asked for 11"):
            amf0.decode(amf0.encode([None] * 10), limits=limits)

    def test_count_is_refused_before_the_elements_are_read(self):
        # The first element is malformed; the count is what is refused.
        data = b"\x0a" + struct.pack(">I", 5000) + b"\xff" * 5000
        with pytest.raises(LimitExceeded, match="amf_values is 4096, the peer asked for 5001"):
            amf0.decode(data)

    def test_switch_to_amf3_is_no_value(self):
        assert amf0.decode(bytes.fromhex("1101"), limits=AmfLimits(values=1))[0] is None
        with pytest.raises(LimitExceeded):
            amf0.decode_all(bytes.fromhex("11011101"), limits=AmfLimits(values=1))

    @pytest.mark.parametrize("encoded", ["02000561" + "61" * 4, "0c000000056161616161", "0f000000056161616161"])
    def test_string_bytes(self, encoded):
        amf0.decode(bytes.fromhex(encoded), limits=AmfLimits(string_bytes=5))
        with pytest.raises(LimitExceeded, match="amf_string_bytes is 4, the peer asked for 5"):
            amf0.decode(bytes.fromhex(encoded), limits=AmfLimits(string_bytes=4))

    def test_total_bytes_are_of_names_too(self):
        data = amf0.encode({"abc": "def"}, "g")
        amf0.decode_all(data, limits=AmfLimits(total_bytes=7))
        with pytest.raises(LimitExceeded, match="amf_total_bytes is 6, the peer asked for 7"):
            amf0.decode_all(data, limits=AmfLimits(total_bytes=6))

    @pytest.mark.parametrize("bound", ["depth", "values", "string_bytes", "total_bytes"])
    def test_nonsense(self, bound):
        with pytest.raises(LocalProtocolError, match=f"{bound}=-1"):
            AmfLimits(**{bound: -1})

    def test_depth_that_the_stack_may_not_bear(self):
        with pytest.raises(LocalProtocolError, match=r"depth of 0\.\.128"):
            AmfLimits(depth=129)

    def test_defaults(self):
        assert AmfLimits(32, 4096, 1 << 20, 8 << 20) == DEFAULT_LIMITS


class TestEncode:
    def test_several(self):
        assert amf0.encode("a", 1, None) == bytes.fromhex("02000161" + ONE + "05")
        assert amf0.encode() == b""

    def test_int_and_tuple(self):
        assert same(amf0.decode(amf0.encode((1, -2)))[0], [1.0, -2.0])

    def test_subclasses(self):
        class Code(enum.StrEnum):
            START = "NetStream.Play.Start"

        class Level(enum.IntEnum):
            ONE = 1

        assert amf0.encode(Code.START) == amf0.encode("NetStream.Play.Start")
        assert amf0.encode(Level.ONE) == amf0.encode(1)

    def test_datetime(self):
        zone = dt.timezone(dt.timedelta(hours=2))
        moment = dt.datetime(2024, 2, 29, 14, 34, 56, 789000, zone)
        assert amf0.decode(amf0.encode(moment))[0] == AmfDate(1709210096789.0)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            pytest.param(b"bytes", "AMF0 can't express a bytes", id="bytes"),
            pytest.param(object(), "AMF0 can't express a object", id="object"),
            pytest.param({1, 2}, "AMF0 can't express a set", id="set"),
            pytest.param(AmfDictionary(), "AMF0 can't express a AmfDictionary", id="dictionary"),
            pytest.param({1: "x"}, "expected a str as an AMF0 name, found 1", id="name"),
            pytest.param({"x" * 65536: 1}, "name of 65536 bytes", id="long name"),
            pytest.param(TypedObject("x" * 65536), "name of 65536 bytes", id="long class name"),
            pytest.param("\ud800", "a string that UTF-8 can't express", id="surrogate"),
            pytest.param(10**400, "an int that no AMF number can express", id="int"),
            pytest.param(dt.datetime(2024, 1, 1), "expected a datetime with a time zone", id="naive"),  # noqa: DTZ001
            pytest.param(AmfDate(0.0, 32768), "AMF0 can't express the time zone", id="time zone"),
            pytest.param(AmfDate(10**400), "an int that no AMF number can express", id="date"),
            pytest.param("x" * ((1 << 20) + 1), "an AMF string of 1048577 bytes exceeds 1048576", id="string bytes"),
            pytest.param(["x" * (1 << 20)] * 9, "with the strings before it", id="total bytes"),
            pytest.param([None] * 4096, "more than 4096 AMF values", id="values"),
        ],
    )
    def test_cannot(self, value, message):
        with pytest.raises(LocalProtocolError, match=message):
            amf0.encode(value)

    def test_value_that_holds_itself(self):
        members: dict[str, object] = {}
        members["self"] = [members]
        with pytest.raises(LocalProtocolError, match="nests deeper than 32, or contains itself"):
            amf0.encode(members)


class TestValues:
    def test_undefined_is_false_and_not_none(self):
        assert not UNDEFINED
        assert UNDEFINED is not None
        assert repr(UNDEFINED) == "UNDEFINED"

    def test_typed_object_equality(self):
        one = TypedObject("C", {"a": 1.0})
        assert one == TypedObject("C", {"a": 1.0})
        assert one != TypedObject("D", {"a": 1.0})
        assert one != {"a": 1.0}
        assert not ({"a": 1.0} == one)  # noqa: SIM201, SIM300  # dict on the left
        with pytest.raises(TypeError):
            hash(one)

    def test_repr(self):
        assert repr(EcmaArray(a=1)) == "EcmaArray({'a': 1})"
        assert repr(TypedObject("C", {"a": 1})) == "TypedObject('C', {'a': 1})"
        assert repr(AmfDictionary({1: 2})) == "AmfDictionary({1: 2})"
        assert repr(XmlDocument("<a/>")) == "XmlDocument('<a/>')"
