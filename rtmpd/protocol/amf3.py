"""AMF3: the encoding of ActionScript 3, inside AMF0 values that switch to it ("AMF 3 Specification", Adobe, January 2013).

Section numbers are those of that document; `rtmpd.protocol.amf_values` has the table of Python values. Decoding takes every
type, references included; a reference inside the object that it names is an error (see
`rtmpd.protocol.amf_values.AmfReader.refer`). Vectors become lists. Dictionary keys are strings, numbers and booleans; others
are an error. Of the externalizable classes, whose format only the class defines, the three collection wrappers of Flex are
supported: they decode to the value that they wrap.

Encoding writes no references, dates without their time zone, and XML as XMLDocument.
"""

from __future__ import annotations

import datetime as dt
import struct
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from rtmpd.errors import AmfError, LocalProtocolError
from rtmpd.protocol.amf_values import (
    DEFAULT_LIMITS,
    UNDEFINED,
    AmfDate,
    AmfDictionary,
    AmfEncodable,
    AmfLimits,
    AmfReader,
    AmfTable,
    AmfValue,
    AmfWriter,
    EcmaArray,
    TypedObject,
    XmlDocument,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

INTEGER_MAX = (1 << 28) - 1
"""The highest int that is an AMF3 integer (section 3.6)."""
INTEGER_MIN = -(1 << 28)
"""The lowest int that is an AMF3 integer (section 3.6)."""

# Section 3.1.
_UNDEFINED = 0x00
_NULL = 0x01
_FALSE = 0x02
_TRUE = 0x03
_INTEGER = 0x04
_DOUBLE = 0x05
_STRING = 0x06
_XML_DOCUMENT = 0x07
_DATE = 0x08
_ARRAY = 0x09
_OBJECT = 0x0A
_BYTE_ARRAY = 0x0C
_DICTIONARY = 0x11

_WRAPPERS = frozenset(
    {
        "flex.messaging.io.ArrayCollection",
        "flex.messaging.io.ArrayList",
        "flex.messaging.io.ObjectProxy",
    }
)


_Entry = TypeVar("_Entry")


class _Traits(NamedTuple):
    """The description of a class, which its objects share (section 3.12)."""

    class_name: str
    names: list[str]
    dynamic: bool
    externalizable: bool
    size: int  # string bytes of the class name and the names


class Amf3Reader(AmfReader):
    """A reader with the three reference tables of AMF3 (section 2.2).

    Attributes:
        strings: The strings that are not empty, with their lengths in bytes.
        objects: The objects, arrays, dates, XML documents, byte arrays, vectors and dictionaries.
        traits: The class descriptions.
    """

    __slots__ = ("objects", "strings", "traits")

    def __init__(self, data: bytes, offset: int, limits: AmfLimits) -> None:
        super().__init__(data, offset, limits)
        self.strings: list[tuple[str, int]] = []
        self.objects: AmfTable = []
        self.traits: list[_Traits] = []


def decode(data: bytes, offset: int = 0, limits: AmfLimits = DEFAULT_LIMITS) -> tuple[AmfValue, int]:
    """Decode one value, with its own reference tables; arguments, result and errors as `rtmpd.protocol.amf0.decode`."""
    reader = Amf3Reader(data, offset, limits)
    return read_value(reader), reader.offset


def read_value(reader: Amf3Reader) -> AmfValue:
    """Read the value at the reader's offset, with the reader's reference tables and limits."""
    offset = reader.take(1, "an AMF3 value")
    reader.spend_values(1)
    marker = reader.data[offset]
    if marker < len(_SCALARS):
        return _SCALARS[marker](reader)
    if marker - len(_SCALARS) >= len(_OBJECTS):
        raise AmfError(f"AMF3: expected a type marker at offset {offset}, found 0x{marker:02x}")
    what, container, read = _OBJECTS[marker - len(_SCALARS)]
    header = _read_u29(reader, f"{what}'s header")
    if not header & 1:
        return reader.refer(reader.objects, header >> 1)
    if container:
        mark = reader.enter(reader.objects)
        value = read(reader, header >> 1)
        reader.leave(reader.objects, mark, value)
    else:
        bytes_left = reader.bytes_left
        value = read(reader, header >> 1)
        reader.remember(reader.objects, value, bytes_left - reader.bytes_left)
    return value


def _read_u29(reader: Amf3Reader, what: str) -> int:
    """Read an unsigned integer of 1 to 4 bytes, 0..2**29 - 1 (section 1.3.1)."""
    value = 0
    for _ in range(3):
        byte = reader.data[reader.take(1, what)]
        if byte < 0x80:
            return value << 7 | byte
        value = value << 7 | byte & 0x7F
    return value << 8 | reader.data[reader.take(1, what)]


def _read_integer(reader: Amf3Reader) -> int:
    value = _read_u29(reader, "an integer")
    return value - (1 << 29) if value > INTEGER_MAX else value


def _read_string(reader: Amf3Reader) -> str:
    """Read a string without its marker (UTF-8-vr, section 1.3.2)."""
    header = _read_u29(reader, "a string's header")
    if not header & 1:
        text, size = _look_up(reader, reader.strings, header >> 1, "strings")
        reader.spend_bytes(size)
        return text
    size = header >> 1
    if not size:
        return ""
    text = reader.text(size, "a string")
    reader.strings.append((text, size))
    return text


def _look_up(reader: Amf3Reader, table: list[_Entry], index: int, what: str) -> _Entry:
    if index >= len(table):
        raise AmfError(f"AMF3: expected a reference to one of {len(table)} {what} before offset {reader.offset}, found {index}")
    return table[index]


def _read_members(reader: Amf3Reader, members: dict[str, AmfValue]) -> None:
    """Read names and values up to the empty name."""
    while name := _read_string(reader):
        members[name] = read_value(reader)


def _read_array(reader: Amf3Reader, count: int) -> AmfValue:
    reader.check_count(count, 1, "array elements")
    named = EcmaArray()
    _read_members(reader, named)
    dense = [read_value(reader) for _ in range(count)]
    if not named:
        return dense
    named.update((str(index), element) for index, element in enumerate(dense))
    return named


def _read_traits(reader: Amf3Reader, header: int) -> _Traits:
    """Read the class description of an object, or look it up. *header* is without the object's own flag (section 3.12)."""
    if not header & 1:
        return _look_up(reader, reader.traits, header >> 1, "traits")
    bytes_left = reader.bytes_left
    class_name = _read_string(reader)
    names: list[str] = []
    externalizable = bool(header & 2)
    if not externalizable:
        count = header >> 3
        reader.check_count(count, 1, "member names")
        names = [_read_string(reader) for _ in range(count)]
    size = bytes_left - reader.bytes_left
    # Every object counts these bytes, the first one included.
    reader.bytes_left = bytes_left
    traits = _Traits(class_name, names, bool(header & 4), externalizable, size)
    reader.traits.append(traits)
    return traits


def _read_object(reader: Amf3Reader, header: int) -> AmfValue:
    traits = _read_traits(reader, header)
    reader.spend_bytes(traits.size)
    if traits.externalizable:
        if traits.class_name not in _WRAPPERS:
            raise AmfError(
                f"AMF3: expected an externalizable class of a known format before offset {reader.offset}, found "
                f"{traits.class_name!r}"
            )
        return read_value(reader)
    members: dict[str, AmfValue] = TypedObject(traits.class_name) if traits.class_name else {}
    for name in traits.names:
        members[name] = read_value(reader)
    if traits.dynamic:
        _read_members(reader, members)
    return members


def _read_number_vector(reader: Amf3Reader, count: int, code: str, size: int) -> AmfValue:
    """Read a vector of numbers of ``size`` bytes and the struct format ``code`` (section 3.14)."""
    reader.take(1, "a vector's fixed flag")
    reader.check_count(count, size, "vector elements")
    reader.spend_values(count)
    offset = reader.take(count * size, "vector elements")
    return list(struct.unpack_from(f">{count}{code}", reader.data, offset))


def _read_object_vector(reader: Amf3Reader, count: int) -> AmfValue:
    reader.take(1, "a vector's fixed flag")
    _read_string(reader)  # the class of the elements, which each element names as well
    reader.check_count(count, 1, "vector elements")
    return [read_value(reader) for _ in range(count)]


def _read_dictionary(reader: Amf3Reader, count: int) -> AmfValue:
    reader.take(1, "a dictionary's weak keys flag")
    reader.check_count(count, 2, "dictionary entries")
    value = AmfDictionary()
    for _ in range(count):
        offset = reader.offset
        key = read_value(reader)
        if not isinstance(key, (str, int, float)) or isinstance(key, XmlDocument):
            raise AmfError(
                "AMF3: expected a string, number or boolean as a dictionary's key at offset "
                f"{offset}, found {type(key).__name__}"
            )
        value[key] = read_value(reader)
    return value


def _read_xml(reader: Amf3Reader, size: int) -> AmfValue:
    return XmlDocument(reader.text(size, "an XML document"))


_SCALARS: tuple[Callable[[Amf3Reader], AmfValue], ...] = (
    lambda _: UNDEFINED,
    lambda _: None,
    lambda _: False,
    lambda _: True,
    _read_integer,
    lambda reader: reader.double("a double"),
    _read_string,
)
"""The readers of the types that are not in the object reference table, indexed by marker."""

_OBJECTS: tuple[tuple[str, bool, Callable[[Amf3Reader, int], AmfValue]], ...] = (
    ("an XML document", False, _read_xml),
    ("a date", False, lambda reader, _: AmfDate(reader.double("a date"))),
    ("an array", True, _read_array),
    ("an object", True, _read_object),
    ("an XML document", False, _read_xml),
    ("a byte array", False, lambda reader, size: reader.chunk(size, "a byte array")),
    ("a vector", True, lambda reader, count: _read_number_vector(reader, count, "i", 4)),
    ("a vector", True, lambda reader, count: _read_number_vector(reader, count, "I", 4)),
    ("a vector", True, lambda reader, count: _read_number_vector(reader, count, "d", 8)),
    ("a vector", True, _read_object_vector),
    ("a dictionary", True, _read_dictionary),
)
"""The types after those: name, whether values of it contain values, and the reader, which gets the header without its flag."""


def encode(value: AmfEncodable, limits: AmfLimits = DEFAULT_LIMITS) -> bytes:
    """Encode one value.

    An int outside the 29 bits of an integer becomes a double. A dict becomes an anonymous dynamic object, a TypedObject an
    object of its class, a list or tuple a dense array, an EcmaArray an array of named elements only; an empty EcmaArray decodes
    as an empty list.

    Raises:
        LocalProtocolError: AMF3 can't express the value, it exceeds ``limits``, or it contains itself.
    """
    writer = AmfWriter(limits)
    _write_value(writer, value)
    return bytes(writer.out)


def _write_u29(out: bytearray, value: int) -> None:
    if value < 0x80:
        out.append(value)
    elif value < 0x4000:
        out += bytes((value >> 7 | 0x80, value & 0x7F))
    elif value < 0x20_0000:
        out += bytes((value >> 14 | 0x80, value >> 7 & 0x7F | 0x80, value & 0x7F))
    else:
        out += bytes((value >> 22 | 0x80, value >> 15 & 0x7F | 0x80, value >> 8 & 0x7F | 0x80, value & 0xFF))


def _write_length(out: bytearray, length: int) -> None:
    """Write a length with the flag of a value that is not a reference."""
    if length > INTEGER_MAX:
        raise LocalProtocolError(f"an AMF3 length of {length}, expected at most {INTEGER_MAX}")
    _write_u29(out, length << 1 | 1)


def _write_chunk(out: bytearray, chunk: bytes | bytearray) -> None:
    _write_length(out, len(chunk))
    out += chunk


def _write_members(writer: AmfWriter, members: Iterable[tuple[object, AmfEncodable]]) -> None:
    for name, member in members:
        if not isinstance(name, str) or not name:
            raise LocalProtocolError(f"expected a non-empty name of an AMF3 member, found {name!r}")
        _write_chunk(writer.out, writer.utf8(name))
        _write_value(writer, member)
    writer.out.append(0x01)


def _write_value(writer: AmfWriter, value: object) -> None:
    writer.spend_value()
    out = writer.out
    if value is None:
        out.append(_NULL)
    elif value is UNDEFINED:
        out.append(_UNDEFINED)
    elif isinstance(value, bool):
        out.append(_TRUE if value else _FALSE)
    elif isinstance(value, int) and INTEGER_MIN <= value <= INTEGER_MAX:
        out.append(_INTEGER)
        _write_u29(out, value & 0x1FFF_FFFF)
    elif isinstance(value, (int, float)):
        out.append(_DOUBLE)
        writer.double(value)
    elif isinstance(value, str):
        out.append(_XML_DOCUMENT if isinstance(value, XmlDocument) else _STRING)
        _write_chunk(out, writer.utf8(value))
    elif isinstance(value, (bytes, bytearray)):
        out.append(_BYTE_ARRAY)
        writer.spend_bytes(len(value))
        _write_chunk(out, value)
    elif isinstance(value, (AmfDate, dt.datetime)):
        date = value if isinstance(value, AmfDate) else AmfDate.from_datetime(value)
        out += bytes((_DATE, 0x01))
        writer.double(date.milliseconds)
    elif isinstance(value, (dict, list, tuple)):
        writer.enter()
        _write_container(writer, value)
        writer.leave()
    else:
        raise LocalProtocolError(f"AMF3 can't express a {type(value).__name__}")


def _write_container(
    writer: AmfWriter, value: dict[object, AmfEncodable] | list[AmfEncodable] | tuple[AmfEncodable, ...]
) -> None:
    out = writer.out
    if isinstance(value, (list, tuple)):
        out.append(_ARRAY)
        _write_length(out, len(value))
        out.append(0x01)  # no named elements
        for element in value:
            _write_value(writer, element)
    elif isinstance(value, AmfDictionary):
        out.append(_DICTIONARY)
        _write_length(out, len(value))
        out.append(0x00)  # strong keys
        for key, element in value.items():
            if not isinstance(key, (str, int, float)) or isinstance(key, XmlDocument):
                raise LocalProtocolError(
                    f"expected a string, number or boolean as a dictionary's key, found {type(key).__name__}"
                )
            _write_value(writer, key)
            _write_value(writer, element)
    elif isinstance(value, EcmaArray):
        out += bytes((_ARRAY, 0x01))
        _write_members(writer, value.items())
    else:
        class_name = b""
        if isinstance(value, TypedObject):
            class_name = writer.utf8(value.class_name)
            if not class_name:
                raise LocalProtocolError("expected a TypedObject with a class name")
        out += bytes((_OBJECT, 0x0B))  # traits follow: dynamic, no sealed members
        _write_chunk(out, class_name)
        _write_members(writer, value.items())
