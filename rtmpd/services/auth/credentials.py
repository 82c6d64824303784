"""Tokens, publish keys and users, from ``auth_file`` and from the configuration.

The file is go-rtmp's, ``{"live/stream": "token"}``. A stream may have an object in place of its token, and the name ``users``
has one with passwords::

    {
      "live/stream": "token",
      "live/camera": {"publish_token": "a", "play_token": "b", "publish_key": "c"},
      "users": {"ann": "password"}
    }

Messages about a file contain no secret.
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
from rtmpd.protocol.naming import join_key
from rtmpd.util.files import read_file
from rtmpd.util.stream_key import StreamKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rtmpd.config.access_rules import NamedSecret

FILE_LIMIT_BYTES = 4 << 20
_SECRET_LENGTH = 4096
_USERS = "users"
_FIELDS = ("token", "publish_token", "play_token", "publish_key")
_DIGEST_BYTES = 16


class CredentialsError(ValueError):
    """A file can't be used; the message says why."""


class PublishKeys:
    """Secret names to publish under, and the streams that they stand for.

    They are found by a keyed digest, so that the time of a search tells nothing about the keys.
    """

    def __init__(self, keys: Iterable[tuple[str, str]] = ()) -> None:
        self._salt = os.urandom(16)
        self._streams: dict[bytes, str] = {}
        self._paths: set[str] = set()
        self._names: set[str] = set()
        for stream, key in keys:
            path = StreamKey(stream).app
            self._paths.add(path)
            self._names.add(stream)
            self._streams[self._digest(f"{path}/{key}")] = stream

    def _digest(self, text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=_DIGEST_BYTES).digest()

    def hold_for(self, path: str) -> bool:
        """Return whether there are keys for the path of an application, or for a path above it."""
        while path:
            if path in self._paths:
                return True
            path = path.rpartition("/")[0]
        return False

    def public_part(self, path: str) -> str:
        """Return the longest part of a path that contains no key: keys follow the names of applications."""
        found = path
        while self.hold_for(found) and found not in self._paths and found not in self._names:
            found = found.rpartition("/")[0]
        return found

    def allow_stream(self, key: StreamKey) -> bool:
        """Return whether a stream of this name may exist: one of a key, or in an application without keys."""
        return key in self._names or not self.hold_for(key.app)

    def stream_of(self, key: str) -> str:
        """Return the stream that ``app/key`` stands for; empty: the key is unknown."""
        return self._streams.get(self._digest(key), "") if self._streams else ""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The content of a file.

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
    def of_tokens(cls, tokens: Iterable[NamedSecret]) -> Credentials:
        """Make credentials of tokens that are valid for publishing and for playing."""
        found: dict[str, tuple[Secret, ...]] = {}
        for each in tokens:
            found[each.name] = (*found.get(each.name, ()), each.secret)
        return cls(publish_tokens=found, play_tokens=found)


def read_credentials(path: str) -> Credentials:
    """Read a file. Blocks.

    Raises:
        CredentialsError: The file can't be read, or is wrong.
    """
    try:
        return parse_credentials(read_file(path, FILE_LIMIT_BYTES + 1))
    except OSError as error:
        raise CredentialsError(f"can't be read: {error.strerror or 'error'}") from None


def parse_credentials(data: bytes) -> Credentials:
    """Parse the content of a file.

    Raises:
        CredentialsError: Something is wrong with it; nothing of it must be used then.
    """
    if len(data) > FILE_LIMIT_BYTES:
        raise CredentialsError(f"the file is larger than {FILE_LIMIT_BYTES} bytes")
    try:
        # Not by "utf-8-sig": that would be loaded now, maybe as a user that may not read Python's directory.
        found = json.loads(data.removeprefix(codecs.BOM_UTF8).decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise CredentialsError("the file is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise CredentialsError(f"line {error.lineno} column {error.colno}: {error.msg}") from None
    except CredentialsError:
        raise
    except ValueError:
        raise CredentialsError("the file contains a number that is too long") from None
    except RecursionError:
        raise CredentialsError("the file is nested too deeply") from None
    if not isinstance(found, dict):
        raise CredentialsError('the file is not an object like {"live/stream": "token"}')
    publish: dict[str, tuple[Secret, ...]] = {}
    play: dict[str, tuple[Secret, ...]] = {}
    keys: list[tuple[str, Secret]] = []
    users: dict[str, Secret] = {}
    for name, value in found.items():
        if name == _USERS and isinstance(value, dict):
            users = _parse_users(value)
            continue
        if not is_stream_key(name.strip("/")):
            raise CredentialsError(f"{_shown(name)} is not APPLICATION/NAME")
        stream = join_key("", name)
        if stream in publish:
            raise CredentialsError(f"{_shown(name)} is defined twice")
        entry = _parse_entry(name, value)
        publish[stream] = tuple(entry[part] for part in ("token", "publish_token") if part in entry)
        play[stream] = tuple(entry[part] for part in ("token", "play_token") if part in entry)
        if "publish_key" in entry:
            keys.append((stream, entry["publish_key"]))
    return Credentials(publish, play, tuple(keys), users)


def _parse_entry(name: str, value: Any) -> dict[str, Secret]:
    if isinstance(value, str):
        return {"token": _secret(name, "token", value)}
    if not isinstance(value, dict) or not value:
        raise CredentialsError(f"{_shown(name)} has neither a token nor an object with {', '.join(_FIELDS)}")
    for part in value:
        if part not in _FIELDS:
            raise CredentialsError(f"{_shown(name)} has the unknown field {_shown(part)}, the fields are {', '.join(_FIELDS)}")
    return {part: _secret(name, part, each) for part, each in value.items()}


def _parse_users(found: dict[str, Any]) -> dict[str, Secret]:
    for name in found:
        if not is_user_name(name):
            raise CredentialsError(f"the name of the user {_shown(name)} is not 1 to 64 letters, digits and _ . @ -")
    return {name: _secret(name, "password", value) for name, value in found.items()}


def _secret(name: str, kind: str, value: Any) -> Secret:
    if not isinstance(value, str) or not 0 < len(value) <= _SECRET_LENGTH or not value.isprintable():
        raise CredentialsError(f"the {kind} of {_shown(name)} is not a text of 1 to {_SECRET_LENGTH} printable characters")
    return Secret(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise CredentialsError(f"{_shown(name)} is defined twice")
        found[name] = value
    return found


def _shown(name: str) -> str:
    return ascii(name[:80])
