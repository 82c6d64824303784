"""The checks that rtmpd.configspec names: what an option accepts, and how its text becomes a value.

They replace configobj's own checks, which accept ``nan`` and ``1_000`` and report only that a value is "of the wrong type".
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from configobj.validate import ValidateError, Validator

from rtmpd.config.access_rules import (
    is_name,
    parse_network,
    parse_secret,
    parse_secret_url,
    parse_stream_secret,
    parse_user,
)
from rtmpd.config.file_names import FileNameTemplate
from rtmpd.config.hook_targets import ScriptHook, WebhookHook
from rtmpd.config.model import ListenAddress
from rtmpd.config.relay_url import RelayUrl
from rtmpd.config.secret import Secret
from rtmpd.util.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Numbers up to the largest user id of the kernel; names as adduser and systemd accept them.
_ACCOUNT = re.compile(r"[0-9]{1,9}|[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?", re.ASCII)
_TC_URL = re.compile(r"rtmps?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?/[^\s?#\"'@]+")
_BOOLEANS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
# ASCII only: int() and float() would also read the digits of other scripts.
_ORIGIN = re.compile(r"https?://[A-Za-z0-9._\[\]:-]{1,260}", re.ASCII)
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_TIMES = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(d|h|ms|m|s)", re.ASCII)
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+", re.ASCII)
_SUFFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_SIZES = {"T": 1 << 40, "G": 1 << 30, "M": 1 << 20, "K": 1 << 10, "": 1}
_SIZE = re.compile(r"\+?([0-9]{1,30}(?:\.[0-9]{1,15})?)([KMGTkmgt]?)(?:(?<=[KMGTkmgt])i?B)?", re.ASCII)
_RATES = {"G": 10**9, "M": 10**6, "k": 1000, "": 1}
_RATE = re.compile(r"\+?([0-9]{1,30}(?:\.[0-9]{1,15})?)([KMGkmg]?)(?:bit/s|bps)?", re.ASCII)


class Wrong(ValidateError):  # type: ignore[misc]  # configobj has no types
    """A value that a check does not accept. The message says what was expected and what the value is."""


class _Check:
    """A check of one value.

    Args:
        parse: Converts a text; raises ValueError, whose message gives the reason unless it is empty.
        expected: The accepted values, in words.
        hidden: Values may be secret, so no message shows them.
    """

    def __init__(self, parse: Callable[[str], object], expected: str, *, hidden: bool = False) -> None:
        self.parse = parse
        self.expected = expected
        self.hidden = hidden

    def describe(self) -> str:
        """Return the accepted values in words, for messages and the documentation."""
        return self.expected

    def convert(self, value: str | list[str]) -> object:
        """Convert an option's text, or its several texts; raises `Wrong`."""
        if isinstance(value, list):
            raise Wrong(f"expected {self.expected}, got a list of {len(value)}: quote a value that contains commas")
        return self._convert_one(value)

    def _convert_one(self, text: str, number: int = 0) -> object:
        try:
            return self.parse(text)
        except ValueError as error:
            got = shown(text) if text else "nothing"
            if self.hidden and not text.startswith(("file:", "env:")):
                got = f"a hidden value, number {number}" if number else "a hidden value"
            reason = f": {error}" if str(error) else ""
            raise Wrong(f"expected {self.expected}, got {got}{reason}") from None


# Numbers ----------------------------------------------------------------------------------------------------------------


def _number(
    kind: str, read: Callable[[str], float], written: Callable[[float], str], low: str, high: str, zero: str = ""
) -> _Check:
    """A number in a range: ``(low, high, zero=meaning)``. With ``zero``, 0 is accepted, too, and has that meaning."""

    def parse(text: str) -> float:
        number = read(text)
        if zero and number == 0:
            return abs(number)  # -0 would be printed with its sign
        if not float(low) <= number <= float(high):
            raise ValueError
        return number

    special = f"0 ({zero}) or " if zero else ""
    return _Check(parse, f"{special}{kind} from {written(float(low))} to {written(float(high))}")


def _plain(number: float) -> str:
    return f"{number:.15g}"


def _read_integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def _read_float(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return float(text)


def _duration(low: str, high: str, zero: str = "", unit: str = "s") -> _Check:
    """``duration(..., unit=s)``: a time, in *unit* or with units of its own: ``90``, ``1.5h``, ``1h30m``."""
    scale = _TIMES[unit]

    def read(text: str) -> float:
        if _NUMBER.fullmatch(text):
            return float(text)
        parts = _DURATION_PART.findall(text)
        if not _DURATION.fullmatch(text) or len({unit for _, unit in parts}) < len(parts):
            raise ValueError
        return sum(float(value) * _TIMES[unit] for value, unit in parts) / scale

    def written(number: float) -> str:
        return _with_unit(number * scale, _TIMES) or f"{number * scale * 1000:.15g}ms"

    return _number("a time", read, written, low, high, zero)


def _read_unit(pattern: re.Pattern[str], units: Mapping[str, int], text: str) -> int:
    """Return a number with a unit, in either case, as a whole number; raises ValueError."""
    match = pattern.fullmatch(text)
    if match is None or ("." in match[1] and not match[2]):
        raise ValueError
    scale = next(scale for unit, scale in units.items() if unit.upper() == match[2].upper())
    number = float(match[1]) * scale if "." in match[1] else int(match[1]) * scale
    if number != int(number):
        raise ValueError
    return int(number)


def _with_unit(number: float, units: Mapping[str, float]) -> str:
    """Write a number with the largest unit that leaves it whole; empty if there is none."""
    return next(
        (f"{number / scale:.15g}{unit}" for unit, scale in units.items() if number >= scale and number % scale == 0), ""
    )


# Words and paths --------------------------------------------------------------------------------------------------------


def _parse_boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[text.lower()]


def _option(*words: str) -> _Check:
    """``option(first, second...)``: one of these words."""
    return _text(", ".join(words[:-1]) + " or " + words[-1], words.__contains__)


def _text(kind: str, accepts: Callable[[str], object], empty: str = "") -> _Check:
    """A text that is used as it is: ``(empty=meaning)``. With ``empty``, no text is accepted, too, and has that meaning."""

    def parse(text: str) -> str:
        if not (accepts(text) if text else empty):
            raise ValueError
        return text

    return _Check(parse, f"{kind}, or nothing ({empty})" if empty else kind)


def _is_path(text: str) -> bool:
    return "\0" not in text


def _is_tc_url(text: str) -> bool:
    return bool(_TC_URL.fullmatch(text)) and text.isprintable()


def _is_alias(text: str) -> bool:
    before, found, after = text.partition("{name}")
    rest = before + after
    return bool(found) and "{name}" not in after and "/" not in rest and bool(rest) and is_name(rest)


# Several values ---------------------------------------------------------------------------------------------------------


class _Several(_Check):
    """A check of any number of values."""

    def describe(self) -> str:
        return f"{self.expected}, separated by commas, or nothing"

    def convert(self, value: str | list[str]) -> tuple[object, ...]:
        texts = ([value] if isinstance(value, str) else value) if value else []
        return tuple(self._convert_one(text, number if len(texts) > 1 else 0) for number, text in enumerate(texts, 1))


class _Paths(_Several):
    """``paths(empty=meaning)``: paths of files. Without any, the meaning of ``empty`` holds."""

    def __init__(self, empty: str) -> None:
        super().__init__(_text("paths", _is_path).parse, "paths")
        self._empty = empty

    def describe(self) -> str:
        return f"{super().describe()} ({self._empty})"


class _RelayUrls(_Several):
    """``relay_urls``: destinations of relays, each once."""

    def convert(self, value: str | list[str]) -> tuple[object, ...]:
        urls = super().convert(value)
        for url in urls:
            if urls.count(url) > 1:
                raise Wrong(f"expected different destinations, got {url} twice")
        return urls


class _Addresses(_Check):
    """``addresses(host=default, empty=meaning)``: addresses to listen on; ``:PORT`` means *host*.

    With ``empty``, there may be none, which has that meaning.
    """

    def __init__(self, host: str = "", empty: str = "") -> None:
        super().__init__(ListenAddress.parse, "HOST:PORT, :PORT or [IPv6]:PORT" + (f", or nothing ({empty})" if empty else ""))
        self._host = host
        self._empty = empty

    def convert(self, value: str | list[str]) -> tuple[ListenAddress, ...]:
        if self._empty and value in ("", [], [""]):
            # A flag that can be repeated makes a list, also of nothing.
            return ()
        addresses: list[ListenAddress] = []
        for text in [value] if isinstance(value, str) else value:
            try:
                address = ListenAddress.parse(text)
            except ValueError as error:
                raise Wrong(str(error)) from None
            if not address.host:
                address = ListenAddress(self._host, address.port)
            for other in addresses:
                if address == other and address.port:
                    raise Wrong(f"expected different addresses, got {shown(str(address))} twice")
                if address.overlaps(other):
                    raise Wrong(f"expected addresses that do not overlap, got {shown(str(other))} and {shown(str(address))}")
            addresses.append(address)
        if not addresses:
            raise Wrong("expected at least one address, got nothing")
        return tuple(addresses)


def _parse_pattern(text: str) -> str:
    if not text or text != text.strip("/") or set(text) & set("[]") or not text.isprintable():
        raise ValueError
    return text


def _parse_suffix(text: str) -> str:
    if not _SUFFIX.fullmatch(text):
        raise ValueError
    return text


def _parse_origin(text: str) -> str:
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise ValueError
    return text


_CHECKS: Mapping[str, Callable[..., _Check]] = {
    "integer": partial(_number, "a whole number", _read_integer, _plain),
    "float": partial(_number, "a number", _read_float, _plain),
    "duration": _duration,
    # Bytes, also with a unit of 1024: 4K, 10M, 1.5GiB.
    "size": partial(_number, "a size", partial(_read_unit, _SIZE, _SIZES), lambda number: _with_unit(number, _SIZES)),
    # Bits per second, also with a unit of 1000: 2500k, 8M, 8Mbit/s.
    "rate": partial(_number, "a rate", partial(_read_unit, _RATE, _RATES), lambda number: f"{_with_unit(number, _RATES)}bit/s"),
    "boolean": partial(_Check, _parse_boolean, "yes or no"),
    "option": _option,
    "name": partial(_text, "a name without spaces, quotes, brackets, ? and #", is_name),
    "alias": partial(_text, "a name with {name} in it, such as {name}_backup", _is_alias),
    "path": partial(_text, "a path", _is_path),
    "tc_url": partial(_text, "rtmp:// or rtmps://HOST[:PORT]/APPLICATION", _is_tc_url),
    "account": partial(_text, "a name or a number", _ACCOUNT.fullmatch),
    "file_name": partial(_Check, FileNameTemplate.parse, "a relative path with {app}, {name}, {start:FORMAT} or {n} in it"),
    "secret": partial(_Check, Secret.parse, "a secret, file:PATH or env:NAME", hidden=True),
    "secret_url": partial(
        _Check, parse_secret_url, "http://HOST/PATH or https://HOST/PATH, or file:PATH or env:NAME that holds it", hidden=True
    ),
    "addresses": _Addresses,
    "paths": _Paths,
    "patterns": partial(
        _Several,
        _parse_pattern,
        "APPLICATION/NAME or NAME with * and ? for any text and any character",
    ),
    "networks": partial(_Several, parse_network, "addresses or networks such as 192.0.2.0/24"),
    "suffixes": partial(_Several, _parse_suffix, "ends of names such as _720p"),
    "origins": partial(_Several, _parse_origin, "origins such as https://example.com, or *"),
    "secrets": partial(_Several, parse_secret, "secrets", hidden=True),
    "stream_secrets": partial(_Several, parse_stream_secret, "APPLICATION/NAME=SECRET", hidden=True),
    "user_secrets": partial(_Several, parse_user, "USER=PASSWORD", hidden=True),
    "relay_urls": partial(_RelayUrls, RelayUrl.parse, "rtmp[s]://HOST[:PORT]/APPLICATION/NAME", hidden=True),
    "scripts": partial(_Several, ScriptHook.parse, "EVENT=PATH ARGUMENTS", hidden=True),
    "webhooks": partial(_Several, WebhookHook.parse, "EVENT=URL", hidden=True),
}


def converter() -> Any:
    """Return a configobj validator whose checks convert to the types of ``rtmpd.config.model``."""
    return _validator(lambda make: lambda value, *args, **kwargs: make(*args, **kwargs).convert(value))


def describer() -> Any:
    """Return a configobj validator whose checks return, for any value, a description of the accepted values."""
    return _validator(lambda make: lambda _value, *args, **kwargs: make(*args, **kwargs).describe())


def _validator(function: Callable[[Callable[..., _Check]], Callable[..., object]]) -> Any:
    validator = Validator()
    # Only these: a check of configobj's own in the spec must fail.
    validator.functions = {name: function(make) for name, make in _CHECKS.items()}
    return validator
