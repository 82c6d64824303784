"""Who is told of events: programs and web servers, as options name them."""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit, urlunsplit

from rtmpd.config.secret import MASK

__all__ = ["EVENT_NAMES", "ScriptHook", "WebhookHook"]

EVENT_NAMES: Final = (
    "connection_accept",
    "connection_close",
    "handshake_complete",
    "stream_create",
    "stream_delete",
    "publish_start",
    "publish_stop",
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
"""Every event of rtmpd.events, which is further up; a test compares."""

_LENGTH = 2000
_WORD = re.compile(r"[A-Za-z_*-]{1,40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ScriptHook:
    """A program that is run for events.

    Attributes:
        events: Which ones.
        argv: The program and its arguments.
        text: What the option says.
    """

    events: frozenset[str]
    argv: tuple[str, ...]
    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``EVENT=PATH ARGUMENTS``; quotes keep spaces together, as in a shell, and nothing else is special.

        Raises:
            ValueError: It is none; the message says why.
        """
        events, command = _split(text)
        if "'" in text and '"' in text:
            raise ValueError("it has both kinds of quotes")
        try:
            argv = tuple(shlex.split(command))
        except ValueError:
            raise ValueError("the closing quote is missing") from None
        if not argv or "/" not in argv[0]:
            raise ValueError("a program is named by a path with a slash in it: it is not searched for")
        return cls(events, argv, text.strip())

    @property
    def label(self) -> str:
        """What the log calls it: without arguments, which may be secret."""
        return self.argv[0]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class WebhookHook:
    """A web server that events are posted to.

    Attributes:
        events: Which ones.
        pattern: Which ones, as the option says it.
        url: Where to. User, password and query may be secret, so nothing but a request shows it.
    """

    events: frozenset[str]
    pattern: str
    url: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``EVENT=URL``.

        Raises:
            ValueError: It is none; the message says why, and shows nothing of the URL.
        """
        events, url = _split(text)
        pattern = text.partition("=")[0].strip()
        if not url.isprintable() or any(c in url for c in " '\"\\"):
            raise ValueError("a URL has no spaces, quotes or backslashes")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("this is not a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("a URL is http://HOST/PATH or https://HOST/PATH, with or without a port")
        if parts.fragment:
            raise ValueError("a URL that is asked for has no #")
        if MASK in url:
            raise ValueError("the secret parts of this URL are masked")
        return cls(events, pattern, url)

    @property
    def label(self) -> str:
        """What the log calls it: scheme, host and path."""
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
    """Give the events that a target is for, and the rest."""
    pattern, equals, rest = text.partition("=")
    pattern, rest = pattern.strip(), rest.strip()
    if not equals or not rest:
        raise ValueError("an event and what to do with it are joined by =")
    if len(text) > _LENGTH or not rest.isprintable():
        raise ValueError(f"it has at most {_LENGTH} characters, and no control characters")
    events = frozenset(name for name in EVENT_NAMES if fnmatchcase(name, pattern))
    if not events:
        if not _WORD.fullmatch(pattern):
            # It may be part of a URL that lacks its event.
            raise ValueError("what stands before the = is not an event")
        close = difflib.get_close_matches(pattern.lower(), EVENT_NAMES, n=1)
        raise ValueError(f'there is no event "{pattern}"' + (f', did you mean "{close[0]}"?' if close else ""))
    return events, rest
