"""Destinations of events as options name them: programs and web servers. Pure."""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit, urlunsplit

from rtmpd.config.secret import MASK

EVENT_NAMES: Final = (
    "connection_accept",
    "connection_close",
    "handshake_complete",
    "stream_create",
    "stream_delete",
    "publish_start",
    "publish_stop",
    "live_start",
    "live_stop",
    "source_active",
    "failover",
    "failback",
    "play_start",
    "play_stop",
    "player_slow",
    "codec_detected",
    "subscriber_count",
    "auth_failed",
    "record_done",
    "relay_up",
    "relay_down",
)
"""The events of rtmpd.events, which this room can't import; a test compares the two."""

_LENGTH = 2000
_WORD = re.compile(r"[A-Za-z_*-]{1,40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ScriptHook:
    """A program that is run for events.

    Attributes:
        events: The events.
        argv: The program and its arguments.
        text: The value as the configuration has it.
    """

    events: frozenset[str]
    argv: tuple[str, ...]
    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``EVENT=PATH ARGUMENTS``. Quotes keep spaces together, as in a shell; nothing else is special.

        Raises:
            ValueError: The text is wrong; the message gives the reason.
        """
        events, command = _split(text)
        if "'" in text and '"' in text:
            raise ValueError("both kinds of quotes are used")
        try:
            argv = tuple(shlex.split(command))
        except ValueError:
            raise ValueError("the closing quote is missing") from None
        if not argv or "/" not in argv[0]:
            raise ValueError("the path of a program needs a slash: PATH is not searched")
        return cls(events, argv, text.strip())

    @property
    def label(self) -> str:
        """The program's path, for the log. Arguments may be secret."""
        return self.argv[0]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class WebhookHook:
    """A web server that events are posted to.

    Attributes:
        events: The events.
        pattern: The events as the configuration has them.
        url: The URL. User, password and query may be secret, so only a request contains it.
    """

    events: frozenset[str]
    pattern: str
    url: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``EVENT=URL``.

        Raises:
            ValueError: The text is wrong; the message gives the reason and contains no part of the URL.
        """
        events, url = _split(text)
        pattern = text.partition("=")[0].strip()
        if not url.isprintable() or any(c in url for c in " '\"\\"):
            raise ValueError("the URL contains spaces, quotes or backslashes")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("the URL can't be parsed") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("the URL is not http[s]://HOST[:PORT]/PATH")
        if parts.fragment:
            raise ValueError("the URL contains a #")
        if MASK in url:
            raise ValueError("the URL contains the mask of a printed configuration")
        return cls(events, pattern, url)

    @property
    def label(self) -> str:
        """Scheme, host and path, for the log."""
        parts = urlsplit(self.url)
        return urlunsplit(SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        _, at, host = parts.netloc.rpartition("@")
        netloc = f"{MASK}@{host}" if at else host
        masked = SplitResult(parts.scheme, netloc, parts.path, MASK if parts.query else "", "")
        return f"{self.pattern}={urlunsplit(masked)}"

    def __repr__(self) -> str:
        return f"WebhookHook({self})"


def _split(text: str) -> tuple[frozenset[str], str]:
    """Split a text into the events before the ``=`` and the destination after it."""
    pattern, equals, rest = text.partition("=")
    pattern, rest = pattern.strip(), rest.strip()
    if not equals or not rest:
        raise ValueError("an event, = and a destination are needed")
    if len(text) > _LENGTH or not rest.isprintable():
        raise ValueError(f"the value is longer than {_LENGTH} characters or contains control characters")
    events = frozenset(name for name in EVENT_NAMES if fnmatchcase(name, pattern))
    if not events:
        if not _WORD.fullmatch(pattern):
            # The text may be a part of a URL without an event in front, so it is not shown.
            raise ValueError("the text before the = is not an event")
        close = difflib.get_close_matches(pattern.lower(), EVENT_NAMES, n=1)
        raise ValueError(f'there is no event "{pattern}"' + (f', did you mean "{close[0]}"?' if close else ""))
    return events, rest
