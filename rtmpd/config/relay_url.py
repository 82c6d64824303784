"""Where a relay pushes streams to: an RTMP URL with fields for the stream's names.

A stream key in such a URL is a password, so a URL shows itself without what may be one. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

from rtmpd.config.secret import MASK, Secret

__all__ = ["RelayUrl", "labels"]

_PORTS: Final = {"rtmp": 1935, "rtmps": 443}
_LENGTH = 2048
_BRACES = re.compile(r"\{[^{}]*\}|[{}]")
_HOST = re.compile(r"(?!-)[\w{}-]{1,63}(?:\.[\w-]{1,63})*\.?", re.ASCII)
_FIELDS = ("{app}", "{name}")


@dataclass(frozen=True, slots=True)
class RelayUrl:
    """A destination: ``rtmp[s]://[user:password@]host[:port]/app/name``, with ``{app}`` and ``{name}`` in app and name.

    The name is the last part of the path, with the query. It is the stream's own where the path has one part only.

    Attributes:
        host: Without brackets.
        port: The TCP port.
        app, name: With fields.
        user_info: ``user:password`` as the URL has it, or empty.
        source: ``file:PATH`` or ``env:NAME``, if the URL came from there.
        scheme: ``rtmp``, or ``rtmps`` with TLS.
    """

    host: str
    port: int
    app: str
    name: str = field(repr=False)
    user_info: str = field(default="", repr=False)
    source: str = ""
    scheme: str = "rtmp"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL, or the file or variable that holds it.

        Raises:
            ValueError: It can't be relayed to; the message says why, without what may be a secret.
        """
        secret = Secret.parse(text)
        url = secret.reveal()
        scheme, separator, _ = url.partition("://")
        scheme = scheme.lower()
        if not separator or scheme not in _PORTS:
            raise ValueError("it does not begin with rtmp:// or rtmps://")
        if len(url) > _LENGTH:
            raise ValueError(f"it is longer than {_LENGTH} characters")
        if not url.isprintable() or " " in url:
            raise ValueError("it has spaces or control characters")
        if MASK in url:
            raise ValueError("this is the mask of a printed configuration, not a URL")
        host, port, user_info, path, query = _split(url)
        for found in _BRACES.findall(url):
            if found not in _FIELDS:
                raise ValueError(f"there are only the fields {{app}} and {{name}}, not {found[:20]}")
        if "{" in host or "{" in user_info:
            raise ValueError("fields can only stand in the path and the query")
        parts = [part for part in path.split("/") if part]
        if not parts:
            raise ValueError("it names no application")
        name = parts.pop() if len(parts) > 1 else "{name}"
        return cls(host, port or _PORTS[scheme], "/".join(parts), name + query, user_info, secret.source, scheme)

    def expand(self, app: str, name: str) -> str:
        """Return the URL for a stream."""
        user = f"{self.user_info}@" if self.user_info else ""
        return f"{self.scheme}://{user}{self._address}/{_filled(self.app, app, name)}/{_filled(self.name, app, name)}"

    def hide(self, text: str, app: str, name: str) -> str:
        """Return a text without what a stream is called there, and without the query, if these may be secret."""
        if MASK in self.label:
            for part in sorted(_filled(self.name, app, name).split("?", 1), key=len, reverse=True):
                if part:
                    text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", MASK, text)
        return text

    @property
    def _address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def label(self) -> str:
        """What may be shown: address and application; the name only where it is nothing but fields."""
        name, _, query = self.name.partition("?")
        shown = name if re.fullmatch(r"[-_.]*", _BRACES.sub("", name)) else MASK
        return f"{self.scheme}://{self._address}/{self.app}/{shown}{'?' + MASK if query else ''}"

    def __str__(self) -> str:
        scheme = f"{self.scheme}://"
        return self.source or (scheme + f"{MASK}@" * bool(self.user_info) + self.label.removeprefix(scheme))


def _filled(text: str, app: str, name: str) -> str:
    return _BRACES.sub(lambda found: app if found[0] == "{app}" else name, text)


def _split(url: str) -> tuple[str, int, str, str, str]:
    """Take a URL apart: host, port (0: none is named), user info, path, and the query with what it begins with."""
    problem = "its host or port is wrong"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        # A bracket or a port that is none. Its own message would show a part of the URL.
        raise ValueError(problem) from None
    if ":" in host:
        # urlsplit looks at it in newer versions of Python only.
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(problem) from None
    if port == 0 or not (_HOST.fullmatch(host) or ":" in host):
        raise ValueError(problem)
    # RTMP knows no fragments: one is part of the name.
    query = ("?" + parts.query if parts.query else "") + ("#" + parts.fragment if parts.fragment else "")
    return host, port or 0, parts.netloc.rpartition("@")[0], parts.path, query


def labels(urls: tuple[RelayUrl, ...]) -> dict[RelayUrl, str]:
    """Give each of several destinations a label of its own: those that would have the same one are numbered."""
    found: dict[RelayUrl, str] = {}
    for url in urls:
        label, number = url.label, 1
        while label in found.values():
            number += 1
            label = f"{url.label} ({number})"
        found[url] = label
    return found
