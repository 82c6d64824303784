"""Makes py3amf.json: run it with a Python that has Py3AMF (see README.rst), not rtmpd."""

import datetime as dt
import json
import pathlib
import re
import xml.etree.ElementTree as ET

import pyamf
from pyamf import amf3, flex


class Typed:
    def __init__(self, **members):
        self.__dict__.update(members)


class Sealed:
    def __init__(self, x, y):
        self.x, self.y = x, y

    class __amf__:  # noqa: N801  # the name that Py3AMF looks for
        static = ("x", "y")
        dynamic = False


pyamf.register_class(Typed, "com.example.Typed")
pyamf.register_class(Sealed, "com.example.Sealed")

MOMENT = dt.datetime(2024, 2, 29, 12, 34, 56, 789000)  # noqa: DTZ001  # Py3AMF takes naive UTC
DATE = {"!": "date", "ms": 1709210096789.0}
XML = "<a><b>text</b></a>"
UNDEFINED = {"!": "undefined"}

shared = {"k": "v"}
shared_list = ["shared"]
cyclic = {}
cyclic["self"] = cyclic
shared_typed = Typed(n=1.5)
sealed = Sealed(1, "two")


def ecma(**members):
    return {"!": "ecma", "members": members}


def typed(class_name, **members):
    return {"!": "typed", "class": class_name, "members": members}


# Name, values for Py3AMF, what rtmpd is to decode.
BOTH = [
    ("null", [None], [None]),
    ("undefined", [pyamf.Undefined], [UNDEFINED]),
    ("booleans", [True, False], [True, False]),
    ("doubles", [0.5, -1.25e300, 3.141592653589793], [0.5, -1.25e300, 3.141592653589793]),
    ("infinities", [float("inf"), float("-inf")], [{"!": "float", "value": "inf"}, {"!": "float", "value": "-inf"}]),
    ("nan", [float("nan")], [{"!": "float", "value": "nan"}]),
    ("strings", ["", "live", "Grüße, 世界, 🎥"], ["", "live", "Grüße, 世界, 🎥"]),
    ("long string", ["x" * 65536], [{"!": "repeat", "text": "x", "count": 65536}]),
    ("string of 65535 bytes", ["y" * 65535], [{"!": "repeat", "text": "y", "count": 65535}]),
    ("date", [MOMENT], [DATE]),
    ("date before 1970", [dt.datetime(1969, 12, 31, 23, 59, 59)], [{"!": "date", "ms": -1000.0}]),  # noqa: DTZ001
    ("xml", [ET.fromstring(XML)], [{"!": "xml", "text": XML}]),
    ("empty list", [[]], [[]]),
    ("list", [[0.5, "two", None, [True]]], [[0.5, "two", None, [True]]]),
    ("empty object", [{}], [{}]),
    ("object", [{"app": "live", "nested": {"a": 0.5}}], [{"app": "live", "nested": {"a": 0.5}}]),
    ("typed object", [Typed(name="n", ratio=0.5)], [typed("com.example.Typed", name="n", ratio=0.5)]),
    ("ecma array", [pyamf.MixedArray(width=1.5, codec="avc1")], [ecma(width=1.5, codec="avc1")]),
    ("object twice", [[shared, shared]], [[{"k": "v"}, {"k": "v"}]]),
    ("list twice", [[shared_list, shared_list]], [[["shared"], ["shared"]]]),
    ("typed object twice", [[shared_typed, shared_typed]], [[typed("com.example.Typed", n=1.5)] * 2]),
    ("object inside itself", [cyclic], {"!": "AmfError"}),
]
ONLY_AMF0 = [
    ("ints", [0, -1, 1 << 40], [0.0, -1.0, float(1 << 40)]),
    (
        "connect",
        ["connect", 1, {"app": "live", "flashVer": "FMLE/3.0", "tcUrl": "rtmp://localhost/live", "audioCodecs": 4071}],
        ["connect", 1.0, {"app": "live", "flashVer": "FMLE/3.0", "tcUrl": "rtmp://localhost/live", "audioCodecs": 4071.0}],
    ),
    ("sealed object", [sealed], [typed("com.example.Sealed", x=1.0, y="two")]),
]
ONLY_AMF3 = [
    (
        "ints",
        [[0, 1, 127, 128, 16383, 16384, 2097151, 2097152, 268435455, -1, -268435456]],
        [[0, 1, 127, 128, 16383, 16384, 2097151, 2097152, 268435455, -1, -268435456]],
    ),
    ("ints beyond 29 bits", [[268435456, -268435457]], [[268435456.0, -268435457.0]]),
    ("byte array", [amf3.ByteArray(b"\x00\x01\xfe\xff")], [{"!": "bytes", "hex": "0001feff"}]),
    ("strings twice", [["abc", "", "abc", "def", "", "def"]], [["abc", "", "abc", "def", "", "def"]]),
    ("date twice", [[MOMENT, MOMENT]], [[DATE, DATE]]),
    ("sealed objects", [[sealed, Sealed(3, "four")]], [
        [typed("com.example.Sealed", x=1, y="two"), typed("com.example.Sealed", x=3, y="four")]
    ]),
    ("array collection", [flex.ArrayCollection([1, "two"])], [[1, "two"]]),
    ("object proxy", [flex.ObjectProxy({"a": 1})], [{"a": 1}]),
]  # fmt: skip


def hex_of(encoded):
    """Return the bytes as hex; a run of 256 equal bytes or more becomes a list: byte, count."""
    parts = re.split(rb"((.)\2{255,})", encoded, flags=re.DOTALL)
    if len(parts) == 1:
        return encoded.hex()
    before, run, byte, after = parts
    return [before.hex(), [byte.hex(), len(run)], after.hex()]


def main():
    vectors = []
    for version, cases in ((0, BOTH + ONLY_AMF0), (3, BOTH + ONLY_AMF3)):
        for name, values, expected in cases:
            encoded = pyamf.encode(*values, encoding=version).getvalue()
            vectors.append({"name": name, "amf": version, "hex": hex_of(encoded), "values": expected})
    # Values that switch from AMF0 to AMF3, as in an AMF3 command message.
    for name, values, expected in (
        ("switch", ["connect", {"a": 1, "b": "connect"}], ["connect", {"a": 1, "b": "connect"}]),
        ("switch twice, tables shared", [shared, shared], [{"k": "v"}, {"k": "v"}]),
    ):
        encoder = pyamf.get_encoder(0)
        encoder.use_amf3 = True
        for value in values:
            encoder.writeElement(value)
        encoded = encoder.stream.getvalue()
        vectors.append({"name": name, "amf": 0, "hex": hex_of(encoded), "values": expected})
    text = "[\n" + ",\n".join(json.dumps(vector) for vector in vectors) + "\n]\n"
    pathlib.Path(__file__).with_name("py3amf.json").write_text(text, encoding="ascii")


main()
