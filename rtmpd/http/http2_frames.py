"""Meters the frames of an HTTP/2 client before they are parsed: their sizes, and how many of them ask for nothing. Pure.

The library h2 parses frames and keeps the rules of the protocol. It has no limits for clients that keep them and only cause
work: resets of requests, pings, settings, priorities, empty frames (CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316). A
frame costs credits here, and what the client gets earns it some: one that reads what it has asked for never runs out of them.
"""

from __future__ import annotations

from typing import Any, Final

from h2.errors import ErrorCodes
from hpack import Decoder
from hpack.exceptions import HPACKDecodingError

from rtmpd.errors import RemoteProtocolError

FRAME_LIMIT_BYTES = 16 << 10
"""The largest payload of a frame (SETTINGS_MAX_FRAME_SIZE): the least that RFC 9113 allows."""

BLOCK_LIMIT_BYTES = 24 << 10
"""The largest encoded header block. The worst one takes 13 ms to decode, in which the event loop is held."""

CREDITS = 1000.0
"""The most credits that a client can have, and what it begins with."""

CREDITS_PER_S = 50.0

RESPONSE_CREDITS = 10.0
"""What a whole response earns: several times what its request costs to be parsed."""

CREDITS_PER_BYTE = 1 / 4096
"""What each byte of a body earns that the client has allowed to be sent: it may send two WINDOW_UPDATE for each frame."""

RESET_COST = 10.0
"""What a request costs that is reset, malformed, or refused because there are too many."""

COST_PER_CPU_S = 10_000.0
"""What the CPU time costs that frames take to be parsed: 0.2 ms for a usual request."""

_PREFACE_BYTES = 24
_HEADER_BYTES = 9
_SLICE_FRAMES = 32
_SIZE_CHANGES = 2
_SETTINGS_LIMIT_BYTES = 32 * 6
_SMALL_DATA_BYTES = 1024
_LARGE_BLOCK_BYTES = 2048

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _CONTINUATION = 0, 1, 3, 4, 5, 9
_BLOCKS = (_HEADERS, _PUSH_PROMISE, _CONTINUATION)
_END_HEADERS = 0x04
_COSTS: Final = {_RST_STREAM: RESET_COST, _SETTINGS: RESET_COST}


class StrictDecoder(Decoder):
    """As hpack's, but a header block begins with two changes of the size of the table at most (RFC 7541 section 4.2).

    A block of nothing else would take longer than any other.
    """

    def decode(self, data: bytes, raw: bool = False) -> Any:
        """Decode a header block.

        Raises:
            HPACKDecodingError: It is malformed.
        """
        position = 0
        for _ in range(_SIZE_CHANGES + 1):
            if position >= len(data) or data[position] >> 5 != 1:
                return super().decode(data, raw)
            position = _end_of_integer(data, position)
        raise HPACKDecodingError("too many changes of the size of the table")


def _end_of_integer(data: bytes, position: int) -> int:
    """Return the position behind an integer with a prefix of 5 bits (RFC 7541 section 5.1)."""
    if data[position] & 0x1F == 0x1F:
        position += 1
        while position < len(data) and data[position] & 0x80:
            position += 1
    return position + 1


class FrameError(RemoteProtocolError):
    """A client exceeds a limit of frames.

    Attributes:
        code: The error code for GOAWAY.
    """

    def __init__(self, text: str, code: ErrorCodes) -> None:
        super().__init__(text)
        self.code = code


class FrameMeter:
    """Meters the frames of one connection.

    Args:
        now_s: The time, monotonic, seconds.

    Attributes:
        credits: What the client has left.
        steps: Counts frames; a header block is one.
    """

    def __init__(self, now_s: float) -> None:
        self.credits = CREDITS
        self.steps = 0
        self._refilled_s = now_s
        self._missing = _PREFACE_BYTES  # of the payload of the present frame
        self._header = b""
        self._block = -1  # the size of the present header block; -1: there is none

    @property
    def midway(self) -> bool:
        """Whether a frame or a header block has begun and not ended."""
        return self._missing > 0 or bool(self._header) or self._block >= 0

    def earn(self, credit: float) -> None:
        """Add credits."""
        self.credits = min(CREDITS, self.credits + credit)

    def spend(self, cost: float) -> None:
        """Take credits.

        Raises:
            FrameError: There are not enough of them.
        """
        self.credits -= cost
        if self.credits < 0:
            text = "too many HTTP/2 frames that ask for nothing, or requests that are reset"
            raise FrameError(text, ErrorCodes.ENHANCE_YOUR_CALM)

    def split(self, data: bytes, now_s: float) -> list[bytes]:
        """Meter what the client has sent; return it in slices of few frames, without the begin of an incomplete frame header.

        Raises:
            FrameError: A frame or a header block is too large, or the client has no credits left.
        """
        self.earn((now_s - self._refilled_s) * CREDITS_PER_S)
        self._refilled_s = now_s
        if self._header:
            data, self._header = self._header + data, b""
        slices = []
        begin, position, size, frames = 0, self._missing, len(data), 0
        while position + _HEADER_BYTES <= size:
            if frames == _SLICE_FRAMES:
                slices.append(data[begin:position])
                begin, frames = position, 0
            length, kind = int.from_bytes(data[position : position + 3], "big"), data[position + 3]
            self._check(length, kind, data[position + 4])
            # A large header block takes long, and is followed by nothing in its slice.
            frames = _SLICE_FRAMES if kind in _BLOCKS and length > _LARGE_BLOCK_BYTES else frames + 1
            position += _HEADER_BYTES + length
        self._missing = max(0, position - size)
        self._header = data[position:]
        slices.append(data[begin : size - len(self._header)])
        return [each for each in slices if each]

    def _check(self, length: int, kind: int, flags: int) -> None:
        if length > FRAME_LIMIT_BYTES:
            raise FrameError(f"an HTTP/2 frame is longer than {FRAME_LIMIT_BYTES} bytes", ErrorCodes.FRAME_SIZE_ERROR)
        if kind == _SETTINGS and length > _SETTINGS_LIMIT_BYTES:
            raise FrameError("an HTTP/2 frame has too many settings", ErrorCodes.ENHANCE_YOUR_CALM)
        if kind != _DATA or length < _SMALL_DATA_BYTES:
            self.spend(_COSTS.get(kind, 1.0))
        if kind in _BLOCKS and kind != _CONTINUATION:
            self._block = 0
        if self._block >= 0:
            self._block += length
            if self._block > BLOCK_LIMIT_BYTES:
                text = f"an HTTP/2 header block is longer than {BLOCK_LIMIT_BYTES} bytes"
                raise FrameError(text, ErrorCodes.ENHANCE_YOUR_CALM)
            if kind not in _BLOCKS or flags & _END_HEADERS:
                # Another frame inside a header block is an error, which h2 finds.
                self._block = -1
        if self._block < 0:
            self.steps += 1
