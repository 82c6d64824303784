"""AMF0: the encoding of commands and metadata ("Action Message Format -- AMF 0", Adobe, December 2007).

Section numbers are those of that document; `rtmpd.protocol.amf_values` has the table of Python values. Decoding takes every
type except the two that the specification reserves (movie clip, record set). Deviations from the specification:

- The count of an ECMA array is a hint (section 2.10): OBS always sends 20. Elements are read up to the end marker. If the data
  ends instead after exactly as many elements as the count, the array is complete: some muxers omit the last marker.
- An empty name is a name unless the end marker follows it.
- A reference inside the object that it names is an error (see `rtmpd.protocol.amf_values.AmfReader.refer`).
- `decode_all` can read damaged values as far as they go: commands in the field lack an end marker, or have bytes behind them.
- The values that switch to AMF3 in one call share their AMF3 reference tables, as in Adobe's BlazeDS.
"""

from __future__ import annotations

import datetime as dt
import struct
from typing import TYPE_CHECKING

from rtmpd.errors import AmfError, LocalProtocolError
from rtmpd.protocol import amf3
from rtmpd.protocol.amf_values import (
    DEFAULT_LIMITS,
    UNDEFINED,
    AmfDate,
    AmfDictionary,
    AmfEncodable,
    AmfLimits,
    AmfTable,
    AmfValue,
    AmfWriter,
    EcmaArray,
    TypedObject,
    XmlDocument,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Section 2.1.
_NUMBER = 0x00
_BOOLEAN = 0x01
_STRING = 0x02
_OBJECT = 0x03
_NULL = 0x05
_UNDEFINED = 0x06
_REFERENCE = 0x07
_ECMA_ARRAY = 0x08
_OBJECT_END = 0x09
_STRICT_ARRAY = 0x0A
_DATE = 0x0B
_LONG_STRING = 0x0C
_UNSUPPORTED = 0x0D
_XML_DOCUMENT = 0x0F
_TYPED_OBJECT = 0x10
_AMF3 = 0x11

_U16 = struct.Struct(">H")
_S16 = struct.Struct(">h")
_U32 = struct.Struct(">I")

_U16_MAX = 0xFFFF


class _Reader(amf3.Amf3Reader):
    """A reader with the reference table of AMF0, which lists objects and arrays (section 2.9).

    If it is *lenient*, an object or array ends at the first member that can't be read, and with it the data.
    """

    __slots__ = ("complex", "lenient")

    def __init__(self, data: bytes, offset: int, limits: AmfLimits, *, lenient: bool = False) -> None:
        super().__init__(data, offset, limits)
        self.complex: AmfTable = []
        self.lenient = lenient

    def give_up(self, error: AmfError) -> None:
        """Move to the end of the data, if the reader is lenient; otherwise raise the error."""
        if not self.lenient:
            raise error
        self.offset = self.end


def decode(data: bytes, offset: int = 0, limits: AmfLimits = DEFAULT_LIMITS) -> tuple[AmfValue, int]:
    """Decode one value, with its own reference tables.

    Args:
        data: The bytes.
        offset: The offset of the value, 0..len(data).
        limits: The limits.

    Returns:
        The value and the offset after it.

    Raises:
        AmfError: The bytes at ``offset`` are not an AMF0 value.
        LimitExceeded: The value exceeds ``limits``.
    """
    reader = _Reader(data, offset, limits)
    return _read_value(reader), reader.offset


def decode_all(data: bytes, offset: int = 0, limits: AmfLimits = DEFAULT_LIMITS, *, lenient: bool = False) -> list[AmfValue]:
    """Decode all values from ``offset`` to the end of the data. They share reference tables and limits.

    Args:
        data, offset, limits: As in `decode`.
        lenient: Return the values and members before the first one that can't be decoded, instead of raising AmfError.

    Raises:
        AmfError: The bytes from ``offset`` on are not AMF0 values.
        LimitExceeded: The values exceed ``limits`` together.
    """
    reader = _Reader(data, offset, limits, lenient=lenient)
    values = []
    while reader.offset < reader.end:
        try:
            values.append(_read_value(reader))
        except AmfError as error:
            reader.give_up(error)
    return values


def _read_value(reader: _Reader) -> AmfValue:
    offset = reader.take(1, "an AMF0 value")
    reader.spend_values(1)
    marker = reader.data[offset]
    read = _CONTAINERS.get(marker)
    if read is not None:
        mark = reader.enter(reader.complex)
        value = read(reader)
        reader.leave(reader.complex, mark, value)
        return value
    read = _SCALARS.get(marker)
    if read is None:
        # Unknown, reserved (sections 2.6 and 2.16), or an end marker without an object (section 2.11).
        raise AmfError(f"AMF0: expected a type marker at offset {offset}, found 0x{marker:02x}")
    return read(reader)


def _read_boolean(reader: _Reader) -> bool:
    return reader.data[reader.take(1, "a boolean")] != 0


def _read_string(reader: _Reader) -> str:
    size = _U16.unpack_from(reader.data, reader.take(2, "a string's length"))[0]
    return reader.text(size, "a string")


def _read_long_string(reader: _Reader) -> str:
    size = _U32.unpack_from(reader.data, reader.take(4, "a long string's length"))[0]
    return reader.text(size, "a long string")


def _read_reference(reader: _Reader) -> AmfValue:
    index = _U16.unpack_from(reader.data, reader.take(2, "a reference"))[0]
    return reader.refer(reader.complex, index)


def _read_date(reader: _Reader) -> AmfDate:
    milliseconds = reader.double("a date")
    return AmfDate(milliseconds, _S16.unpack_from(reader.data, reader.take(2, "a date's time zone"))[0])


def _read_amf3(reader: _Reader) -> AmfValue:
    reader.values_left += 1  # the switch to AMF3 is not a value itself
    return amf3.read_value(reader)


def _read_members(reader: _Reader, members: dict[str, AmfValue], count: int = -1) -> AmfValue:
    """Read names and values up to the end marker, or ``count`` of them if the data ends there; return *members*."""
    data = reader.data
    read = 0
    try:
        while read != count or reader.offset < reader.end:
            size = _U16.unpack_from(data, reader.take(2, "the length of a name"))[0]
            if not size and reader.offset < reader.end and data[reader.offset] == _OBJECT_END:
                reader.offset += 1
                break
            name = reader.text(size, "a name")
            members[name] = _read_value(reader)
            read += 1
    except AmfError as error:
        reader.give_up(error)
    return members


def _read_ecma_array(reader: _Reader) -> AmfValue:
    count = _U32.unpack_from(reader.data, reader.take(4, "an ECMA array's count"))[0]
    return _read_members(reader, EcmaArray(), count)


def _read_strict_array(reader: _Reader) -> AmfValue:
    count = _U32.unpack_from(reader.data, reader.take(4, "a strict array's count"))[0]
    elements: list[AmfValue] = []
    try:
        reader.check_count(count, 1, "array elements")
        # What was read before an error stays in the list.
        elements.extend(_read_value(reader) for _ in range(count))
    except AmfError as error:
        reader.give_up(error)
    return elements


_SCALARS: dict[int, Callable[[_Reader], AmfValue]] = {
    _NUMBER: lambda reader: reader.double("a number"),
    _BOOLEAN: _read_boolean,
    _STRING: _read_string,
    _NULL: lambda _: None,
    _UNDEFINED: lambda _: UNDEFINED,
    _REFERENCE: _read_reference,
    _DATE: _read_date,
    _LONG_STRING: _read_long_string,
    _UNSUPPORTED: lambda _: UNDEFINED,
    _XML_DOCUMENT: lambda reader: XmlDocument(_read_long_string(reader)),
    _AMF3: _read_amf3,
}
_CONTAINERS: dict[int, Callable[[_Reader], AmfValue]] = {
    _OBJECT: lambda reader: _read_members(reader, {}),
    _ECMA_ARRAY: _read_ecma_array,
    _STRICT_ARRAY: _read_strict_array,
    _TYPED_OBJECT: lambda reader: _read_members(reader, TypedObject(_read_string(reader))),
}


def encode(*values: AmfEncodable, limits: AmfLimits = DEFAULT_LIMITS) -> bytes:
    """Encode values one after the other, without references.

    An int becomes the nearest number. A str becomes a string, or a long string if it has more than 65535 bytes. A dict becomes
    an anonymous object, a TypedObject an object of its class, an EcmaArray an ECMA array, a list or tuple a strict array. AMF0
    can't express bytes and AmfDictionary.

    Raises:
        LocalProtocolError: AMF0 can't express a value, the values exceed ``limits``, or a value contains itself.
    """
    writer = AmfWriter(limits)
    for value in values:
        _write_value(writer, value)
    return bytes(writer.out)


def _write_name(writer: AmfWriter, name: object) -> None:
    """Write a string of at most 65535 bytes, without a marker."""
    if not isinstance(name, str):
        raise LocalProtocolError(f"expected a str as an AMF0 name, found {name!r}")
    encoded = writer.utf8(name)
    if len(encoded) > _U16_MAX:
        raise LocalProtocolError(f"an AMF0 name of {len(encoded)} bytes, expected at most {_U16_MAX}")
    writer.out += _U16.pack(len(encoded))
    writer.out += encoded


def _write_string(writer: AmfWriter, text: str) -> None:
    encoded = writer.utf8(text)
    out = writer.out
    if len(encoded) <= _U16_MAX and not isinstance(text, XmlDocument):
        out.append(_STRING)
        out += _U16.pack(len(encoded))
    else:
        out.append(_XML_DOCUMENT if isinstance(text, XmlDocument) else _LONG_STRING)
        out += _U32.pack(len(encoded))
    out += encoded


def _write_value(writer: AmfWriter, value: object) -> None:
    writer.spend_value()
    out = writer.out
    if isinstance(value, str):
        _write_string(writer, value)
    elif value is None:
        out.append(_NULL)
    elif value is UNDEFINED:
        out.append(_UNDEFINED)
    elif isinstance(value, bool):
        out += bytes((_BOOLEAN, value))
    elif isinstance(value, (int, float)):
        out.append(_NUMBER)
        writer.double(value)
    elif isinstance(value, dict) and not isinstance(value, AmfDictionary):
        writer.enter()
        _write_members(writer, value)
        writer.leave()
    elif isinstance(value, (list, tuple)):
        writer.enter()
        out.append(_STRICT_ARRAY)
        out += _U32.pack(len(value))
        for element in value:
            _write_value(writer, element)
        writer.leave()
    elif isinstance(value, (AmfDate, dt.datetime)):
        date = value if isinstance(value, AmfDate) else AmfDate.from_datetime(value)
        out.append(_DATE)
        writer.double(date.milliseconds)
        try:
            out += _S16.pack(date.timezone_minutes)
        except struct.error as error:
            raise LocalProtocolError(f"AMF0 can't express the time zone of {date}") from error
    else:
        raise LocalProtocolError(f"AMF0 can't express a {type(value).__name__}")


def _write_members(writer: AmfWriter, members: Mapping[object, object]) -> None:
    out = writer.out
    if isinstance(members, TypedObject):
        out.append(_TYPED_OBJECT)
        _write_name(writer, members.class_name)
    elif isinstance(members, EcmaArray):
        out.append(_ECMA_ARRAY)
        out += _U32.pack(len(members))
    else:
        out.append(_OBJECT)
    for name, member in members.items():
        _write_name(writer, name)
        _write_value(writer, member)
    out += bytes((0x00, 0x00, _OBJECT_END))
