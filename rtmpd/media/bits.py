"""Reading of bit fields in codec headers of a few hundred bytes; not fast."""

from __future__ import annotations

_LONGEST_GOLOMB = 32  # the longest prefix in H.264 section 9.1 and AV1 section 4.10.3


def unescape(nal: bytes) -> bytes:
    """Remove the emulation prevention bytes of a NAL unit (H.264 section 7.4.1, HEVC section 7.4.2)."""
    return nal.replace(b"\0\0\3", b"\0\0")


class BitReader:
    """Reads bits, starting with the most significant bit of the first byte. Every method raises EOFError at the end of the
    data.

    Args:
        data: The bytes.
    """

    __slots__ = ("_data", "_end", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._end = len(data) * 8

    def skip(self, count: int) -> None:
        """Skip *count* bits."""
        self._position += count
        if self._position > self._end:
            raise EOFError

    def bits(self, count: int) -> int:
        """Read an unsigned number of *count* bits."""
        start = self._position
        self.skip(count)
        stop = self._position
        window = int.from_bytes(self._data[start >> 3 : (stop + 7) >> 3], "big")
        return window >> (-stop & 7) & ((1 << count) - 1)

    def flag(self) -> bool:
        """Read one bit."""
        return self.bits(1) == 1

    def ue(self) -> int:
        """Read an unsigned Exp-Golomb number: ue(v), or uvlc() of AV1."""
        zeros = 0
        while not self.flag():
            zeros += 1
            if zeros > _LONGEST_GOLOMB:
                raise EOFError
        return (1 << zeros) - 1 + self.bits(zeros)

    def se(self) -> int:
        """Read a signed Exp-Golomb number, se(v)."""
        number = self.ue()
        return (number + 1) // 2 if number & 1 else -(number // 2)
