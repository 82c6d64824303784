"""The checks that rtmpd.configspec names.

They replace configobj's own, which accept ``nan`` and ``1_000`` and say only that a value is "of the wrong type".
Each check is a class with two methods: ``describe`` says in words what it accepts, for messages and for the
documentation; ``convert`` turns text into a value or raises ``ValueError``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Protocol

from configobj.validate import ValidateError, Validator

from rtmpd.config.access_rules import parse_network, parse_secret_url, parse_stream_secret, parse_user
from rtmpd.config.file_names import FileNameTemplate
from rtmpd.config.hook_targets import ScriptHook, WebhookHook
from rtmpd.config.model import ListenAddress, shown
from rtmpd.config.quantities import Duration, Float, Integer, Rate, Size
from rtmpd.config.relay_url import RelayUrl
from rtmpd.config.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NAME_LENGTH", "Wrong", "converter", "describer", "is_name"]

_NOT_IN_NAMES = re.compile(r"""[\s"'?#\[\]]""")
# Numbers up to the last that the kernel takes for a user; names as adduser and systemd have them.
_ACCOUNT = re.compile(r"[0-9]{1,9}|[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?", re.ASCII)
_TC_URL = re.compile(r"rtmps?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?/[^\s?#\"'@]+")
NAME_LENGTH: Final = 255
"""The longest name of a stream or an application, in characters."""
_BOOLEANS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}


class Wrong(ValidateError):  # type: ignore[misc]  # configobj has no types
    """A value that a check does not accept; the message says what was expected and what was there."""


def is_name(text: str) -> bool:
    """Whether ``text`` can name a stream or an application."""
    return 0 < len(text) <= NAME_LENGTH and text.isprintable() and not _NOT_IN_NAMES.search(text)


class _Check(Protocol):
    """What a class below is built from: the arguments that the spec gives to it, all of them text."""

    def __init__(self, *args: str, **kwargs: str) -> None: ...

    def describe(self) -> str: ...

    def convert(self, text: str) -> object: ...


class _Boolean:
    """``boolean``: yes or no, also in the other usual words."""

    def describe(self) -> str:
        return "yes or no"

    def convert(self, text: str) -> bool:
        try:
            return _BOOLEANS[text.lower()]
        except KeyError:
            raise ValueError from None


class _Option:
    """``option(first, second...)``: one of these words."""

    def __init__(self, *words: str) -> None:
        self._words = words

    def describe(self) -> str:
        return ", ".join(self._words[:-1]) + " or " + self._words[-1]

    def convert(self, text: str) -> str:
        if text not in self._words:
            raise ValueError
        return text


class _Name:
    """``name``: a stream name."""

    def describe(self) -> str:
        return "a name without spaces, quotes, brackets, ? and #"

    def convert(self, text: str) -> str:
        if not is_name(text):
            raise ValueError
        return text


def _scalar(make: type[_Check]) -> Callable[..., object]:
    """A check function, as configobj calls it, for an option with one value."""

    def check(value: str | list[str], *args: str, **kwargs: str) -> object:
        checked = make(*args, **kwargs)
        if isinstance(value, list):
            got = f"a list of {len(value)}: quote a value that contains commas"
        else:
            try:
                return checked.convert(value)
            except ValueError as error:
                got = shown(value) if value else "nothing"
                if isinstance(error, _Because):
                    got += f": {error}"
        raise Wrong(f"expected {checked.describe()}, got {got}")

    return check


class _Path:
    """``path(empty=meaning)``: the path of a file or directory, relative to the working directory without a slash in front.

    With ``empty``, there may be none, which then means something special.
    """

    def __init__(self, empty: str = "") -> None:
        self._empty = empty

    def describe(self) -> str:
        return "a path" + (f", or nothing ({self._empty})" if self._empty else "")

    def convert(self, text: str) -> str:
        if (not text and not self._empty) or "\0" in text:
            raise ValueError
        return text


class _TcUrl:
    """``tc_url(empty=meaning)``: the URL of an application; or none, which then means something special."""

    def __init__(self, empty: str) -> None:
        self._empty = empty

    def describe(self) -> str:
        return f"rtmp:// or rtmps://HOST[:PORT]/APPLICATION, or nothing ({self._empty})"

    def convert(self, text: str) -> str:
        if text and not (_TC_URL.fullmatch(text) and text.isprintable()):
            raise ValueError
        return text


class _Account:
    """``account(empty=meaning)``: the name or number of a user or a group; or none, which then means something special."""

    def __init__(self, empty: str) -> None:
        self._empty = empty

    def describe(self) -> str:
        return f"a name or a number, or nothing ({self._empty})"

    def convert(self, text: str) -> str:
        if text and not _ACCOUNT.fullmatch(text):
            raise ValueError
        return text


class _FileName:
    """``file_name``: a template for the names of files."""

    def describe(self) -> str:
        return "a relative path with {app}, {name}, {start:FORMAT} or {n} in it"

    def convert(self, text: str) -> FileNameTemplate:
        try:
            return FileNameTemplate.parse(text)
        except ValueError as error:
            raise _Because(str(error)) from None


class _Because(ValueError):
    """What is wrong with a value in particular, behind what was expected."""


def _addresses(value: str | list[str], host: str = "", empty: str = "") -> tuple[ListenAddress, ...]:
    """``addresses(host=default, empty=meaning)``: addresses to listen on.

    With ``host``, that is what ``:PORT`` means. With ``empty``, there may be none, which then means something special.
    """
    if empty and not value:
        return ()
    addresses: list[ListenAddress] = []
    for text in [value] if isinstance(value, str) else value:
        try:
            address = ListenAddress.parse(text)
        except ValueError as error:
            raise Wrong(str(error)) from None
        if not address.host:
            address = ListenAddress(host, address.port)
        for other in addresses:
            if address == other and address.port:
                raise Wrong(f"{shown(str(address))} is given twice")
            if address.overlaps(other):
                raise Wrong(f"{shown(str(other))} and {shown(str(address))} overlap")
        addresses.append(address)
    if not addresses:
        raise Wrong("expected at least one address")
    return tuple(addresses)


def _patterns(value: str | list[str]) -> tuple[str, ...]:
    """``patterns``: any number of patterns for stream keys."""
    patterns = [value] if isinstance(value, str) else value
    for pattern in patterns if value else ():
        if (
            "/" not in pattern.strip("/")
            or pattern != pattern.strip("/")
            or set(pattern) & set("[]")
            or not pattern.isprintable()
        ):
            raise Wrong(f"expected {_PATTERNS}, got {shown(pattern)}")
    return tuple(patterns) if value else ()


def _parse_one_secret(text: str) -> Secret:
    found = Secret.parse(text)
    if not found:
        raise ValueError("one is empty")
    return found


def _paths(value: str | list[str], empty: str) -> tuple[str, ...]:
    """``paths(empty=meaning)``: any number of paths of files; there may be none, which then means something special."""
    paths = ([value] if isinstance(value, str) else value) if value else ()
    for path in paths:
        if not path or "\0" in path:
            raise Wrong(f"expected {_describe_paths(None, empty)}, got {shown(path) if path else 'an empty one'}")
    return tuple(paths)


def _describe_paths(_value: object, empty: str) -> str:
    return f"paths, separated by commas, or nothing ({empty})"


def _several(parse: Callable[[str], object], expected: str) -> Callable[..., tuple[object, ...]]:
    """A check for any number of values, of which each is read by a function that never shows a secret."""

    def check(value: str | list[str]) -> tuple[object, ...]:
        texts = ([value] if isinstance(value, str) else value) if value else ()
        try:
            return tuple(parse(text) for text in texts)
        except ValueError as error:
            raise Wrong(f"expected {expected}: {error}") from None

    return check


def _secret_url(value: str | list[str]) -> Secret:
    """``secret_url``: the URL of a web server, kept as a secret; or nothing."""
    try:
        if isinstance(value, list):
            raise ValueError("got a list: quote a value that contains commas")
        return parse_secret_url(value)
    except ValueError as error:
        raise Wrong(f"expected {_CALLED}: {error}") from None


_CALLED = "http://HOST/PATH or https://HOST/PATH (file:PATH and env:NAME say where it stands)"
_LISTS: dict[str, tuple[Callable[[str], object], str]] = {
    "secrets": (_parse_one_secret, "secrets"),
    "stream_secrets": (parse_stream_secret, "APPLICATION/NAME=SECRET"),
    "user_secrets": (parse_user, "USER=PASSWORD"),
    "networks": (parse_network, "addresses or networks such as 192.0.2.0/24"),
}
_PATTERNS = "APPLICATION/NAME with * and ? for any text and any character"


def _relay_urls(value: str | list[str]) -> tuple[object, ...]:
    """``relay_urls``: any number of destinations of relays."""
    urls = _several(RelayUrl.parse, _RELAY_URL)(value)
    for url in urls:
        if urls.count(url) > 1:
            raise Wrong(f"{url} is given twice")
    return urls


_RELAY_URL = "rtmp[s]://HOST[:PORT]/APPLICATION/NAME"


def _secret(value: str | list[str]) -> Secret:
    """``secret``: a text that is never shown, or where it is; may be empty."""
    if isinstance(value, list):
        raise Wrong(f"expected {_HIDDEN}, got a list of {len(value)}: quote a value that contains commas")
    try:
        return Secret.parse(value)
    except ValueError as error:
        # What was given may be the secret, with a mistake.
        got = shown(value) if value.startswith(("file:", "env:")) else "one that is not shown here"
        raise Wrong(f"expected {_HIDDEN}, got {got}: {error}") from None


def _hooks(kind: type[ScriptHook | WebhookHook], expected: str) -> Callable[..., object]:
    """``scripts`` and ``webhooks``: any number of targets of events. What they say is not shown: it may hold secrets."""

    def check(value: str | list[str]) -> object:
        texts = [value] if isinstance(value, str) else value
        found = []
        for number, text in enumerate(texts if value else (), 1):
            try:
                found.append(kind.parse(text))
            except ValueError as error:
                which = f"number {number} is another: " if len(texts) > 1 else ""
                raise Wrong(f"expected {expected}: {which}{error}") from None
        return tuple(found)

    return check


_SCRIPTS = "EVENT=PATH ARGUMENTS"
_WEBHOOKS = "EVENT=URL"
_HIDDEN = "a secret, file:PATH or env:NAME"


_SCALARS: dict[str, type[_Check]] = {
    "integer": Integer,
    "duration": Duration,
    "size": Size,
    "rate": Rate,
    "tc_url": _TcUrl,
    "float": Float,
    "boolean": _Boolean,
    "option": _Option,
    "name": _Name,
    "path": _Path,
    "account": _Account,
    "file_name": _FileName,
}


def converter() -> Any:
    """A configobj validator whose checks give values of the types of ``rtmpd.config.model``."""
    validator = Validator()
    # Only these: a check of configobj's own in the spec must fail, not bring back what these replace.
    validator.functions = {name: _scalar(make) for name, make in _SCALARS.items()}
    validator.functions |= {"addresses": _addresses, "patterns": _patterns, "secret": _secret}
    validator.functions |= {"scripts": _hooks(ScriptHook, _SCRIPTS), "webhooks": _hooks(WebhookHook, _WEBHOOKS)}
    validator.functions |= {name: _several(parse, expected) for name, (parse, expected) in _LISTS.items()}
    validator.functions["relay_urls"] = _relay_urls
    validator.functions["secret_url"] = _secret_url
    validator.functions["paths"] = _paths
    return validator


def _describe(make: type[_Check]) -> Callable[..., str]:
    return lambda _value, *args, **kwargs: make(*args, **kwargs).describe()


def _describe_addresses(_value: object, host: str = "", empty: str = "") -> str:
    return "HOST:PORT, :PORT or [IPv6]:PORT" + (f", or nothing ({empty})" if empty else "")


def _describe_several(expected: str) -> Callable[..., str]:
    return lambda _value: f"{expected}, separated by commas, or nothing"


def describer() -> Any:
    """A configobj validator whose checks give, for any value, a description of what the check accepts."""
    validator = Validator()
    validator.functions = {name: _describe(make) for name, make in _SCALARS.items()}
    validator.functions["addresses"] = _describe_addresses
    validator.functions["patterns"] = lambda _value: _PATTERNS
    validator.functions["secret"] = lambda _value: _HIDDEN
    validator.functions["scripts"] = lambda _value: _SCRIPTS
    validator.functions["webhooks"] = lambda _value: _WEBHOOKS
    validator.functions |= {name: _describe_several(expected) for name, (_, expected) in _LISTS.items()}
    validator.functions["relay_urls"] = _describe_several(_RELAY_URL)
    validator.functions["secret_url"] = lambda _value: _CALLED
    validator.functions["paths"] = _describe_paths
    return validator
