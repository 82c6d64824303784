"""Tables of tokens, publish keys and users: what ``auth_file`` holds, and the like of it in the INI file.

The file is go-rtmp's, ``{"live/stream": "token"}``. A stream may have an object in place of its token, and the name ``users``
has one with passwords::

    {
      "live/stream": "token",
      "live/camera": {"publish_token": "a", "play_token": "b", "publish_key": "c"},
      "users": {"ann": "password"}
    }

Pure. What is wrong with a file is said without any secret.
"""

from __future__ import annotations

import codecs
import json
import os
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from rtmpd.config.access_rules import is_stream_key, is_user_name
from rtmpd.config.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rtmpd.config.access_rules import NamedSecret

__all__ = ["FILE_LIMIT_BYTES", "PublishKeys", "Table", "TableError", "parse_table"]

FILE_LIMIT_BYTES = 4 << 20
_SECRET_LENGTH = 4096
_USERS = "users"
_FIELDS = ("token", "publish_token", "play_token", "publish_key")
_DIGEST_BYTES = 16


class TableError(ValueError):
    """A file that is no table; the message says why."""


class PublishKeys:
    """Secret names to publish under, and the streams that they stand for.

    They are looked up by a keyed digest, so that the time of a look-up says nothing about the keys that there are.
    """

    def __init__(self, keys: Iterable[tuple[str, str]] = ()) -> None:
        self._salt = os.urandom(16)
        self._streams: dict[bytes, str] = {}
        self._paths: set[str] = set()
        for stream, key in keys:
            path = stream.rpartition("/")[0]
            self._paths.add(path)
            self._streams[self._digest(f"{path}/{key}")] = stream

    def _digest(self, text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=_DIGEST_BYTES).digest()

    def __bool__(self) -> bool:
        return bool(self._paths)

    def hold_for(self, path: str) -> bool:
        """Whether there are keys for an application's path, or for what it is below of."""
        while path:
            if path in self._paths:
                return True
            path = path.rpartition("/")[0]
        return False

    def stream_of(self, key: str) -> str:
        """Return the stream that ``app/key`` stands for; empty if it is no key."""
        return self._streams.get(self._digest(key), "") if self._streams else ""


@dataclass(frozen=True, slots=True)
class Table:
    """What a file holds.

    Attributes:
        publish_tokens, play_tokens: By stream.
        publish_keys: Pairs of a stream and its key.
        users: Passwords by user.
    """

    publish_tokens: Mapping[str, tuple[Secret, ...]] = field(default_factory=dict)
    play_tokens: Mapping[str, tuple[Secret, ...]] = field(default_factory=dict)
    publish_keys: tuple[tuple[str, Secret], ...] = ()
    users: Mapping[str, Secret] = field(default_factory=dict)

    @classmethod
    def of_tokens(cls, tokens: Iterable[NamedSecret]) -> Table:
        """Make a table of tokens that are good for both, publishing and playing."""
        found: dict[str, tuple[Secret, ...]] = {}
        for each in tokens:
            found[each.name] = (*found.get(each.name, ()), each.secret)
        return cls(publish_tokens=found, play_tokens=found)


def parse_table(data: bytes) -> Table:
    """Read a file's content.

    Raises:
        TableError: It is no table; nothing of it is to be used then.
    """
    if len(data) > FILE_LIMIT_BYTES:
        raise TableError(f"it is larger than {FILE_LIMIT_BYTES} bytes")
    try:
        # Not by "utf-8-sig": that would be loaded now, maybe as a user who may not read where Python is.
        found = json.loads(data.removeprefix(codecs.BOM_UTF8).decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise TableError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise TableError(f"line {error.lineno} column {error.colno}: {error.msg}") from None
    except TableError:
        raise
    except ValueError:
        raise TableError("it has a number that is too long") from None
    except RecursionError:
        raise TableError("it is too deep") from None
    if not isinstance(found, dict):
        raise TableError('it is no object like {"live/stream": "token"}')
    publish: dict[str, tuple[Secret, ...]] = {}
    play: dict[str, tuple[Secret, ...]] = {}
    keys: list[tuple[str, Secret]] = []
    users: dict[str, Secret] = {}
    for name, value in found.items():
        if name == _USERS and isinstance(value, dict):
            users = _read_users(value)
            continue
        stream = name.strip("/")
        if not is_stream_key(stream):
            raise TableError(f"{_shown(name)} is not APPLICATION/NAME")
        if stream in publish:
            raise TableError(f"{_shown(name)} is there twice")
        entry = _read_entry(name, value)
        publish[stream] = tuple(entry[part] for part in ("token", "publish_token") if part in entry)
        play[stream] = tuple(entry[part] for part in ("token", "play_token") if part in entry)
        if "publish_key" in entry:
            keys.append((stream, entry["publish_key"]))
    return Table(publish, play, tuple(keys), users)


def _read_entry(name: str, value: Any) -> dict[str, Secret]:
    if isinstance(value, str):
        return {"token": _secret(name, "token", value)}
    if not isinstance(value, dict) or not value:
        raise TableError(f"{_shown(name)} has neither a token nor an object with {', '.join(_FIELDS)}")
    for part in value:
        if part not in _FIELDS:
            raise TableError(f"{_shown(name)} has the unknown field {_shown(part)}; there are {', '.join(_FIELDS)}")
    return {part: _secret(name, part, each) for part, each in value.items()}


def _read_users(found: dict[str, Any]) -> dict[str, Secret]:
    for name in found:
        if not is_user_name(name):
            raise TableError(f"the user {_shown(name)} has other characters than letters, digits, _ . @ and -, or more than 64")
    return {name: _secret(name, "password", value) for name, value in found.items()}


def _secret(name: str, what: str, value: Any) -> Secret:
    if not isinstance(value, str) or not 0 < len(value) <= _SECRET_LENGTH or not value.isprintable():
        raise TableError(f"the {what} of {_shown(name)} is not a text of 1 to {_SECRET_LENGTH} printable characters")
    return Secret(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise TableError(f"{_shown(name)} is there twice")
        found[name] = value
    return found


def _shown(name: str) -> str:
    return ascii(name[:80])
