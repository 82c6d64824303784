"""Loads the golden vectors of this folder. README.rst says where they are from."""

from __future__ import annotations

import json
import math
import pathlib
import struct
from typing import Any, NamedTuple

from rtmpd.protocol.amf_values import UNDEFINED, AmfDate, AmfDictionary, EcmaArray, TypedObject, XmlDocument

FILES = ("py3amf.json", "node.json", "commands.json")


class Vector(NamedTuple):
    name: str
    data: bytes
    values: list[Any] | None  # None: AmfError


def load(version: int) -> list[Vector]:
    """Return every vector of this version of AMF."""
    vectors = []
    for file in FILES:
        for vector in json.loads(pathlib.Path(__file__).with_name(file).read_text("ascii")):
            if vector["amf"] == version:
                values = vector["values"]
                expected = [_value(value) for value in values] if isinstance(values, list) else None
                vectors.append(Vector(f"{file}: {vector['name']}", _bytes(vector["hex"]), expected))
    return vectors


def same(one: object, other: object) -> bool:
    """Equal, and of the same types all the way down; NaN is NaN, 0.0 isn't -0.0, order of members is free."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, AmfDate) and isinstance(other, AmfDate):
        return same(one.milliseconds, other.milliseconds) and one.timezone_minutes == other.timezone_minutes
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, TypedObject) and isinstance(other, TypedObject) and one.class_name != other.class_name:
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return {(type(key), key) for key in one} == {(type(key), key) for key in other} and all(
            same(one[key], other[key]) for key in one
        )
    return one == other


def _bytes(text: str | list[Any]) -> bytes:
    if isinstance(text, str):
        return bytes.fromhex(text)
    before, (byte, count), after = text
    return bytes.fromhex(before) + bytes.fromhex(byte) * count + bytes.fromhex(after)


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(element) for element in value]
    if not isinstance(value, dict):
        return value
    match value.get("!"):
        case None:
            return {name: _value(member) for name, member in value.items()}
        case "undefined":
            return UNDEFINED
        case "float":
            return float(value["value"])
        case "repeat":
            return value["text"] * value["count"]
        case "date":
            return AmfDate(value["ms"])
        case "xml":
            return XmlDocument(value["text"])
        case "bytes":
            return bytes.fromhex(value["hex"])
        case "ecma":
            return EcmaArray({name: _value(member) for name, member in value["members"].items()})
        case "typed":
            return TypedObject(value["class"], {name: _value(member) for name, member in value["members"].items()})
        case "dictionary":
            return AmfDictionary({_value(key): _value(element) for key, element in value["items"]})
    raise AssertionError(value)
