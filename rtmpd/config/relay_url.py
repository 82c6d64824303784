"""Destinations of relays: RTMP URLs with fields for the names of the stream.

The name of a stream at the destination often is a secret key, so such parts of a URL are masked wherever it is shown. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

from rtmpd.config.secret import MASK, Secret
from rtmpd.protocol.naming import split_path

_PORTS: Final = {"rtmp": 1935, "rtmps": 443}
_LENGTH = 2048
_SECOND_URL = re.compile(r",\s*rtmps?://", re.IGNORECASE)
_BRACES = re.compile(r"\{[^{}]*\}|[{}]")
_HOST = re.compile(r"(?!-)[\w{}-]{1,63}(?:\.[\w-]{1,63})*\.?", re.ASCII)
_FIELDS = ("{app}", "{name}")


@dataclass(frozen=True, slots=True)
class RelayUrl:
    """A destination: ``rtmp[s]://[user:password@]host[:port]/app/name``, with ``{app}`` and ``{name}`` in app and name.

    The name is the last part of the path, with the query; after a double slash, all of the rest, for names with slashes. If the
    path has only one part, the name is ``{name}``.

    Attributes:
        host: The host, without brackets.
        port: The TCP port.
        app, name: Application and name, with fields.
        user_info: ``user:password`` as the URL has it, or empty.
        source: ``file:PATH`` or ``env:NAME``, if the URL was read from there.
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
        """Parse a URL, or read it from a file (``file:PATH``) or an environment variable (``env:NAME``).

        Raises:
            ValueError: The URL is wrong; the message gives the reason and contains nothing that may be secret.
        """
        secret = Secret.parse(text)
        url = secret.reveal()
        scheme, separator, _ = url.partition("://")
        scheme = scheme.lower()
        if not separator or scheme not in _PORTS:
            raise ValueError("the URL does not begin with rtmp:// or rtmps://")
        if len(url) > _LENGTH:
            raise ValueError(f"the URL is longer than {_LENGTH} characters")
        if not url.isprintable() or " " in url:
            raise ValueError("the URL contains spaces or control characters")
        if _SECOND_URL.search(url):
            raise ValueError("the URL contains a second one after a comma: quote each URL by itself")
        if MASK in url:
            raise ValueError("the URL contains the mask of a printed configuration")
        host, port, user_info, path, query = _split(url)
        for found in _BRACES.findall(url):
            if found not in _FIELDS:
                raise ValueError(f"the fields are {{app}} and {{name}}, not {found[:20]}")
        if "{" in host or "{" in user_info:
            raise ValueError("fields are only possible in the path and the query")
        app, name = split_path(path)
        if not app:
            raise ValueError("the URL names no application")
        return cls(host, port or _PORTS[scheme], app, (name or "{name}") + query, user_info, secret.source, scheme)

    def expand(self, app: str, name: str) -> str:
        """Return the URL for a stream."""
        user = f"{self.user_info}@" if self.user_info else ""
        at_destination = _filled(self.name, app, name)
        slashes = "//" if "/" in at_destination.partition("?")[0] else "/"
        return f"{self.scheme}://{user}{self._address}/{_filled(self.app, app, name)}{slashes}{at_destination}"

    def hide(self, text: str, app: str, name: str) -> str:
        """Return a text in which the name of the stream at the destination and the query are masked, if they may be secret."""
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
        """The URL without secrets: address and application; the name only if it consists of fields."""
        name, _, query = self.name.partition("?")
        shown = name if re.fullmatch(r"[-_.]*", _BRACES.sub("", name)) else MASK
        return f"{self.scheme}://{self._address}/{self.app}/{shown}{'?' + MASK if query else ''}"

    def __str__(self) -> str:
        scheme = f"{self.scheme}://"
        return self.source or (scheme + f"{MASK}@" * bool(self.user_info) + self.label.removeprefix(scheme))


def _filled(text: str, app: str, name: str) -> str:
    return _BRACES.sub(lambda found: app if found[0] == "{app}" else name, text)


def _split(url: str) -> tuple[str, int, str, str, str]:
    """Split a URL into host, port (0: none is given), user info, path, and query with its first character."""
    problem = "the host or port is wrong"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        # The message of urlsplit would show a part of the URL.
        raise ValueError(problem) from None
    if ":" in host:
        # Only newer versions of Python check this in urlsplit.
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(problem) from None
    if port == 0 or not (_HOST.fullmatch(host) or ":" in host):
        raise ValueError(problem)
    # RTMP has no fragments: the text belongs to the name.
    query = ("?" + parts.query if parts.query else "") + ("#" + parts.fragment if parts.fragment else "")
    return host, port or 0, parts.netloc.rpartition("@")[0], parts.path, query


def labels(urls: tuple[RelayUrl, ...]) -> dict[RelayUrl, str]:
    """Return a unique label for each destination: equal labels are numbered."""
    found: dict[RelayUrl, str] = {}
    for url in urls:
        label, number = url.label, 1
        while label in found.values():
            number += 1
            label = f"{url.label} ({number})"
        found[url] = label
    return found
