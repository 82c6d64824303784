"""The records of TLS, as far as they can be seen from outside. Pure."""

from __future__ import annotations

__all__ = ["RecordCounter"]

_HEADER_BYTES = 5


class RecordCounter:
    """Follows the records (RFC 8446 section 5.1) of what is received, to know whether the end cuts one in two.

    Attributes:
        missing: Bytes of the record under way that have not come; 0: the last one is whole. With a header that is cut itself,
            what is missing of that.
    """

    __slots__ = ("_header", "missing")

    def __init__(self) -> None:
        self.missing = 0
        self._header = b""

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        position = self.missing
        if self._header:
            data = self._header + data
            position = 0
        size = len(data)
        while position + _HEADER_BYTES <= size:
            position += _HEADER_BYTES + (data[position + 3] << 8 | data[position + 4])
        self._header = data[position:] if position < size else b""
        self.missing = _HEADER_BYTES - len(self._header) if self._header else position - size
