"""The Python values of AMF values, and the limits of decoding and encoding them.

=====================================  ==============================================================
AMF                                    Python
=====================================  ==============================================================
number, integer, double                float (AMF0); int or float (AMF3)
boolean, null                          bool, None
undefined, unsupported                 :data:`UNDEFINED`
string, long string                    str; bytes that are not UTF-8 become lone surrogates
XML document, XML                      :class:`XmlDocument`
date                                   :class:`AmfDate`
byte array                             bytes
object without a class                 dict
object with a class                    :class:`TypedObject`
strict array, dense array, vector      list
ECMA array, array with named elements  :class:`EcmaArray`
dictionary                             :class:`AmfDictionary`
=====================================  ==============================================================

:class:`AmfReader` and :class:`AmfWriter` hold the state of one decode or encode call of both AMF versions.
"""

from __future__ import annotations

import datetime as dt
import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NoReturn, TypeAlias

from rtmpd.errors import AmfError, LimitExceeded, LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Undefined(enum.Enum):
    """The type of :data:`UNDEFINED`, its only member. False in a boolean context."""

    UNDEFINED = "undefined"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined.UNDEFINED
"""AMF's undefined, which is not null (AMF0 section 2.8, AMF3 section 3.2)."""


class XmlDocument(str):
    """The text of an XML document, not parsed (AMF0 section 2.17, AMF3 sections 3.9 and 3.13)."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"XmlDocument({super().__repr__()})"


@dataclass(frozen=True, slots=True)
class AmfDate:
    """A point in time (AMF0 section 2.13, AMF3 section 3.10).

    Attributes:
        milliseconds: Milliseconds since 1970-01-01T00:00Z; may be NaN (Flash's invalid date).
        timezone_minutes: The time zone field of AMF0, -32768..32767. Reserved: it should be 0, and does not change
            ``milliseconds``. AMF3 has no such field.
    """

    milliseconds: float
    timezone_minutes: int = 0

    @classmethod
    def from_datetime(cls, moment: dt.datetime) -> AmfDate:
        """Return the date of an aware datetime.

        Raises:
            LocalProtocolError: ``moment`` has no time zone.
        """
        if moment.utcoffset() is None:
            raise LocalProtocolError(f"expected a datetime with a time zone for an AMF date, found {moment!r}")
        return cls((moment - _EPOCH) / dt.timedelta(milliseconds=1))


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class EcmaArray(dict[str, "AmfValue"]):
    """An array with named elements: AMF0 ECMA array (section 2.10), AMF3 array with associative part (section 3.11).

    Equal to a dict with the same members.
    """

    def __repr__(self) -> str:
        return f"EcmaArray({super().__repr__()})"


class TypedObject(dict[str, "AmfValue"]):
    """An object with a class (AMF0 section 2.18, AMF3 section 3.12).

    Equal only to another TypedObject of the same class and members.

    Attributes:
        class_name: The name under which the peer registered the class.
    """

    __slots__ = ("class_name",)

    def __init__(self, class_name: str, members: Mapping[str, AmfValue] | None = None) -> None:
        super().__init__(members or {})
        self.class_name = class_name

    __hash__ = None  # as in dict

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TypedObject) and self.class_name == other.class_name and super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        return f"TypedObject({self.class_name!r}, {super().__repr__()})"


class AmfDictionary(dict[str | float, "AmfValue"]):
    """An AMF3 dictionary (section 3.15): keys are str, int, float or bool.

    Keys that are equal in Python (1, 1.0 and True) are one key here, although ActionScript distinguishes some of them; the
    last one wins.
    """

    def __repr__(self) -> str:
        return f"AmfDictionary({super().__repr__()})"


AmfValue: TypeAlias = (
    "bool | int | float | str | bytes | Undefined | AmfDate | list[AmfValue] | dict[str, AmfValue] | AmfDictionary | None"
)
"""A decoded value. A tree: the same object may occur twice in it, but never inside itself."""

AmfEncodable: TypeAlias = (
    "bool | int | float | str | bytes | Undefined | AmfDate | dt.datetime | Sequence[AmfEncodable] | "
    "Mapping[str, AmfEncodable] | AmfDictionary | None"
)
"""A value to encode. Sequences are list or tuple, mappings are dict or a subclass; the type is wider than :data:`AmfValue`
so that mypy accepts a ``dict[str, str]``."""


@dataclass(frozen=True, slots=True)
class AmfLimits:
    """The limits of one decode or encode call.

    A value that comes by reference counts each time as if it were written out, so that the limits also bound the work of
    everything that walks, prints or encodes the result.

    Attributes:
        depth: The deepest nesting of objects and arrays, 0..128; a scalar has depth 0.
        values: The number of values, containers included, property names not.
        string_bytes: The length of one string, name, XML document or byte array.
        total_bytes: The length of all of these together.

    Raises:
        LocalProtocolError: A limit is negative, or the depth is more than the Python stack can safely hold.
    """

    depth: int = 32
    values: int = 4096
    string_bytes: int = 1 << 20
    total_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        if not 0 <= self.depth <= _DEEPEST or min(self.values, self.string_bytes, self.total_bytes) < 0:
            raise LocalProtocolError(f"expected AMF limits of 0 or more and a depth of 0..{_DEEPEST}, found {self}")


# Each level takes at most three Python frames: less than half of the interpreter's default recursion limit.
_DEEPEST = 128

DEFAULT_LIMITS: Final = AmfLimits()
"""Enough for every command and for the metadata of every encoder; a keyframe index of hours needs more ``values``."""

_DOUBLE = struct.Struct(">d")

AmfTable: TypeAlias = "list[tuple[AmfValue, int, int, int] | None]"
"""A reference table: value, values in it, string bytes in it, levels below its own; None until the value is complete."""

Mark: TypeAlias = tuple[int, int, int, int]
"""The start of a container: its index in the table, then the reader's counters at that point."""


class AmfReader:
    """The position and the counters of one decode call, shared by both versions of AMF.

    Its methods raise AmfError where the data ends too early, and LimitExceeded where a limit is exceeded. After an error the
    state is undefined and the reader must not be used.

    Attributes:
        data: The bytes.
        offset: The offset of the next byte to read.
        end: ``len(data)``.
        limits: The limits.
        values_left: The number of values that may follow.
        bytes_left: The number of string bytes that may follow.
        depth: The number of open containers.
        deepest: The highest depth inside the innermost open container so far.
    """

    __slots__ = ("bytes_left", "data", "deepest", "depth", "end", "limits", "offset", "values_left")

    def __init__(self, data: bytes, offset: int, limits: AmfLimits) -> None:
        self.data = data
        self.offset = offset
        self.end = len(data)
        self.limits = limits
        self.values_left = limits.values
        self.bytes_left = limits.total_bytes
        self.depth = 0
        self.deepest = 0

    def take(self, size: int, what: str) -> int:
        """Return the offset of the next ``size`` bytes, and move past them. ``what`` names them in the error."""
        offset = self.offset
        after = offset + size
        if after > self.end:
            raise AmfError(f"AMF: expected {what} of {size} bytes at offset {offset}, found {self.end - offset} bytes")
        self.offset = after
        return offset

    def double(self, what: str) -> float:
        """Read an IEEE 754 double, big-endian."""
        value: float = _DOUBLE.unpack_from(self.data, self.take(8, what))[0]
        return value

    def chunk(self, size: int, what: str) -> bytes:
        """Read ``size`` bytes that count as string bytes."""
        offset = self.take(size, what)
        self.bytes_left -= size
        if size > self.limits.string_bytes or self.bytes_left < 0:
            self._refuse_bytes(size)
        return bytes(self.data[offset : offset + size])

    def text(self, size: int, what: str) -> str:
        """Read ``size`` bytes of UTF-8. A byte that is not UTF-8 becomes a lone surrogate, which encodes to that byte again."""
        return str(self.chunk(size, what), "utf-8", "surrogateescape")

    def spend_bytes(self, size: int) -> None:
        """Count ``size`` string bytes."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            self._refuse_bytes(0)

    def _refuse_bytes(self, size: int) -> NoReturn:
        if size > self.limits.string_bytes:
            raise LimitExceeded("amf_string_bytes", self.limits.string_bytes, size)
        raise LimitExceeded("amf_total_bytes", self.limits.total_bytes, self.limits.total_bytes - self.bytes_left)

    def spend_values(self, count: int) -> None:
        """Count ``count`` values."""
        self.values_left -= count
        if self.values_left < 0:
            raise LimitExceeded("amf_values", self.limits.values, self.limits.values - self.values_left)

    def check_count(self, count: int, size: int, what: str) -> None:
        """Check an announced number of elements, before anything is read or allocated for them.

        Args:
            count: The number of elements, each of which contains a value.
            size: The smallest size of an element in bytes.
            what: The name of the elements in the error.

        Raises:
            AmfError: The rest of the data is too short for so many.
            LimitExceeded: More than ``values``.
        """
        if count * size > self.end - self.offset:
            raise AmfError(
                f"AMF: expected {count} {what} from offset {self.offset} on, found {self.end - self.offset} bytes, "
                f"too few for elements of at least {size} bytes"
            )
        if count > self.values_left:
            raise LimitExceeded("amf_values", self.limits.values, self.limits.values - self.values_left + count)

    def enter(self, table: AmfTable) -> Mark:
        """Open a container, and assign it the next index of the reference table."""
        self.depth += 1
        if self.depth > self.limits.depth:
            raise LimitExceeded("amf_depth", self.limits.depth, self.depth)
        mark = (len(table), self.values_left, self.bytes_left, self.deepest)
        table.append(None)
        self.deepest = self.depth
        return mark

    def leave(self, table: AmfTable, mark: Mark, value: AmfValue) -> None:
        """Close the container that :meth:`enter` opened. References to it are valid from here on."""
        index, values_left, bytes_left, deepest = mark
        table[index] = (value, values_left - self.values_left, bytes_left - self.bytes_left, self.deepest - self.depth)
        self.deepest = max(deepest, self.deepest)
        self.depth -= 1

    def remember(self, table: AmfTable, value: AmfValue, size: int) -> None:
        """Assign the next index of the reference table to a value without elements, of ``size`` string bytes."""
        table.append((value, 0, size, -1))

    def refer(self, table: AmfTable, index: int) -> AmfValue:
        """Return the value with an index of the reference table.

        Raises:
            AmfError: There is no such value yet, or the reference is inside it. AMF allows the latter; no RTMP peer has a
                use for it, and without it every walk over the result ends.
            LimitExceeded: Written out, the value would exceed a limit.
        """
        if index >= len(table):
            raise AmfError(
                f"AMF: expected a reference to one of {len(table)} objects before offset {self.offset}, found {index}"
            )
        entry = table[index]
        if entry is None:
            raise AmfError(f"AMF: expected a tree, found object {index} inside itself before offset {self.offset}")
        value, values, size, levels = entry
        self.spend_values(values)
        self.spend_bytes(size)
        depth = self.depth + 1 + levels
        if depth > self.limits.depth:
            raise LimitExceeded("amf_depth", self.limits.depth, depth)
        self.deepest = max(self.deepest, depth)
        return value


class AmfWriter:
    """The output and the counters of one encode call, shared by both versions of AMF.

    Its methods raise LocalProtocolError where a limit is exceeded, or AMF can't express a value.

    Attributes:
        out: The bytes encoded so far.
        limits: The limits.
    """

    __slots__ = ("_bytes_left", "_depth", "_values_left", "limits", "out")

    def __init__(self, limits: AmfLimits) -> None:
        self.out = bytearray()
        self.limits = limits
        self._values_left = limits.values
        self._bytes_left = limits.total_bytes
        self._depth = 0

    def spend_value(self) -> None:
        """Count a value."""
        self._values_left -= 1
        if self._values_left < 0:
            raise LocalProtocolError(f"more than {self.limits.values} AMF values")

    def spend_bytes(self, size: int) -> None:
        """Count a string of ``size`` bytes."""
        self._bytes_left -= size
        if size > self.limits.string_bytes or self._bytes_left < 0:
            raise LocalProtocolError(
                f"an AMF string of {size} bytes exceeds {self.limits.string_bytes}, or {self.limits.total_bytes} with the "
                "strings before it"
            )

    def utf8(self, text: str) -> bytes:
        """Return the bytes of a string, and count them."""
        try:
            encoded = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise LocalProtocolError(f"a string that UTF-8 can't express: {error}") from error
        self.spend_bytes(len(encoded))
        return encoded

    def enter(self) -> None:
        """Open a container. A container inside itself exceeds ``depth``."""
        self._depth += 1
        if self._depth > self.limits.depth:
            raise LocalProtocolError(f"an AMF value that nests deeper than {self.limits.depth}, or contains itself")

    def leave(self) -> None:
        """Close the container that :meth:`enter` opened."""
        self._depth -= 1

    def double(self, value: float) -> None:
        """Write an IEEE 754 double, big-endian. An int becomes the nearest double."""
        try:
            self.out += _DOUBLE.pack(float(value))
        except OverflowError as error:
            raise LocalProtocolError("an int that no AMF number can express") from error
