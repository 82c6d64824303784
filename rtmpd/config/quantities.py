"""The checks of numbers and of what has a unit: times, sizes, rates. See `rtmpd.config.checks`.

Imports nothing of rtmpd.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Duration", "Float", "Integer", "Rate", "Size"]

# ASCII only: int() and float() would also read the digits of other scripts.
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_TIMES = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(d|h|ms|m|s)", re.ASCII)
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+", re.ASCII)
_SIZES = {"T": 1 << 40, "G": 1 << 30, "M": 1 << 20, "K": 1 << 10, "": 1}
_SIZE = re.compile(r"\+?([0-9]{1,30}(?:\.[0-9]{1,15})?)([KMGTkmgt]?)(?:(?<=[KMGTkmgt])i?B)?", re.ASCII)
_RATES = {"G": 10**9, "M": 10**6, "k": 1000, "": 1}
_RATE = re.compile(r"\+?([0-9]{1,30}(?:\.[0-9]{1,15})?)([KMGkmg]?)(?:bit/s|bps)?", re.ASCII)


class Integer:
    """``integer(low, high, zero=meaning)``: a whole number; with ``zero`` also 0, which then means something special."""

    def __init__(self, low: str, high: str, zero: str = "") -> None:
        self._low, self._high, self._zero = int(low), int(high), zero

    def describe(self) -> str:
        """Say what it accepts."""
        special = f"0 ({self._zero}) or " if self._zero else ""
        return f"{special}a whole number from {self._low} to {self._high}"

    def convert(self, text: str) -> int:
        """Read a value; raises ValueError."""
        if not _INTEGER.fullmatch(text):
            raise ValueError
        number = int(text)
        if not (self._low <= number <= self._high or (self._zero and number == 0)):
            raise ValueError
        return number


class Float:
    """``float(low, high, zero=meaning)``: as ``integer``, with fractions."""

    def __init__(self, low: str, high: str, zero: str = "") -> None:
        self._low, self._high, self._zero = float(low), float(high), zero

    def describe(self) -> str:
        """Say what it accepts."""
        special = f"0 ({self._zero}) or " if self._zero else ""
        return f"{special}a number from {self._low:.15g} to {self._high:.15g}"

    def convert(self, text: str) -> float:
        """Read a value; raises ValueError."""
        if not _NUMBER.fullmatch(text):
            raise ValueError
        number = float(text)
        if self._zero and number == 0:
            return 0.0  # -0 would be printed with its sign
        if not self._low <= number <= self._high:
            raise ValueError
        return number


class Duration:
    """``duration(low, high, zero=meaning, unit=s)``: a time, in *unit* or with its own: ``90``, ``1.5h``, ``1h30m``."""

    def __init__(self, low: str, high: str, zero: str = "", unit: str = "s") -> None:
        self._low, self._high, self._zero, self._scale = float(low), float(high), zero, _TIMES[unit]

    def describe(self) -> str:
        """Say what it accepts."""
        special = f"0 ({self._zero}) or " if self._zero else ""
        low, high = (_with_unit(value * self._scale, _TIMES) for value in (self._low, self._high))
        return f"{special}a time from {low} to {high}"

    def convert(self, text: str) -> float:
        """Read a value; raises ValueError."""
        if _NUMBER.fullmatch(text):
            number = float(text)
        elif _DURATION.fullmatch(text):
            parts = _DURATION_PART.findall(text)
            if len({unit for _, unit in parts}) < len(parts):
                raise ValueError
            number = sum(float(value) * _TIMES[unit] for value, unit in parts) / self._scale
        else:
            raise ValueError
        if self._zero and number == 0:
            return 0.0
        if not self._low <= number <= self._high:
            raise ValueError
        return number


class Size:
    """``size(low, high, zero=meaning)``: a number of bytes, or with a unit of 1024 behind it: ``4K``, ``10M``, ``1.5GiB``."""

    def __init__(self, low: str, high: str, zero: str = "") -> None:
        self._low, self._high, self._zero = int(low), int(high), zero

    def describe(self) -> str:
        """Say what it accepts."""
        special = f"0 ({self._zero}) or " if self._zero else ""
        return f"{special}a size from {_with_unit(self._low, _SIZES)} to {_with_unit(self._high, _SIZES)}"

    def convert(self, text: str) -> int:
        """Read a value; raises ValueError."""
        number = _whole(_SIZE.fullmatch(text), _SIZES)
        if not (self._low <= number <= self._high or (self._zero and number == 0)):
            raise ValueError
        return number


class Rate:
    """``rate(low, high, zero=meaning)``: bits per second, or with a unit of 1000 behind it: ``2500k``, ``8M``, ``8Mbit/s``."""

    def __init__(self, low: str, high: str, zero: str = "") -> None:
        self._low, self._high, self._zero = int(low), int(high), zero

    def describe(self) -> str:
        """Say what it accepts."""
        special = f"0 ({self._zero}) or " if self._zero else ""
        return f"{special}a rate from {_with_unit(self._low, _RATES)}bit/s to {_with_unit(self._high, _RATES)}bit/s"

    def convert(self, text: str) -> int:
        """Read a value; raises ValueError."""
        number = _whole(_RATE.fullmatch(text), _RATES)
        if not (self._low <= number <= self._high or (self._zero and number == 0)):
            raise ValueError
        return number


def _whole(match: re.Match[str] | None, units: Mapping[str, int]) -> int:
    """Return a number with a unit, in either case, as a whole number of what is counted; raises ValueError."""
    if match is None or ("." in match[1] and not match[2]):
        raise ValueError
    scale = next(scale for unit, scale in units.items() if unit.upper() == match[2].upper())
    number = float(match[1]) * scale if "." in match[1] else int(match[1]) * scale
    if number != int(number):
        raise ValueError
    return int(number)


def _with_unit(number: float, units: Mapping[str, float]) -> str:
    """Write a number with the largest unit that leaves it whole."""
    for unit, scale in units.items():
        if number and number >= scale and number % scale == 0:
            return f"{number / scale:.15g}{unit}"
    return f"{number * 1000:.15g}ms" if units is _TIMES else f"{number:.15g}"
