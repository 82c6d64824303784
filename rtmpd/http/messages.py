"""Requests and responses of HTTP: what a handler gets and returns, and how they are read and written. Pure.

Requests are parsed by h11. Before that `RequestHead` refuses spellings that a proxy in front of the server may read in another
way (RFC 9112 section 11.2), which h11 accepts.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import parse_qsl, unquote_to_bytes

import h11

from rtmpd.errors import HttpError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEAD_LIMIT_BYTES = 16 << 10
"""The largest size of a request line and all headers together."""

LINE_LIMIT_BYTES = 8 << 10
"""The largest size of a request line."""

HEADERS_LIMIT = 100
"""The most headers of a request."""

_PARAMETERS_LIMIT = 100
_GZIP_LEAST_BYTES = 1024
_GZIP_LEVEL = 4
_OTHER_VERSION = re.compile(rb"HTTP/[02-9]\.[0-9]")
_VERSIONS = "Only HTTP/1.0 and HTTP/1.1 are supported."
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_BYTE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Control characters, except the tab and those of line ends."""

_HEX = frozenset(b"0123456789abcdefABCDEF")
_RANGE = re.compile(r"bytes=\s*(\d{0,15})-(\d{0,15})\s*", re.ASCII)
_ENTITY_TAG_BYTES = 16

TEXT: Final = "text/plain; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"
JSON: Final = "application/json; charset=utf-8"
PLAYLIST: Final = "application/vnd.apple.mpegurl"
_COMPRESSIBLE = ("text/", "application/json", "application/javascript", PLAYLIST, "image/svg")


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        method: As the client sent it: methods are case-sensitive.
        path: Without the query, percent-decoded once; it begins with ``/`` and has no part ``.`` or ``..``.
        query: As the client sent it. Secret: it may hold a token.
        headers: By name in lower case; several of one name are joined by commas. Secret.
        head: The bytes of the request line and the headers.
        peer: The client's address and port.
        secure: It came by TLS.
        keep_alive: The connection may serve another request after it.
        captured: What the placeholders of the route stand for.
        body: The body, if the route takes one.
    """

    method: str
    path: str
    query: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    head: bytes = field(default=b"", repr=False)
    peer: str = ""
    secure: bool = False
    keep_alive: bool = True
    captured: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)

    @property
    def address(self) -> str:
        """The client's address without the port."""
        return self.peer.rpartition(":")[0]

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of the query. Secret."""
        first = "&".join(self.query.split("&", _PARAMETERS_LIMIT)[:_PARAMETERS_LIMIT])
        return dict(parse_qsl(first, keep_blank_values=True))

    @property
    def bearer_token(self) -> str:
        """The token of the header ``Authorization: Bearer``; empty without one. Secret."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    def accepts(self, *types: str) -> str:
        """Return which of these media types the client prefers; the first if it does not care, or accepts none."""
        wanted: dict[str, float] = {}
        for item in self.headers.get("accept", "*/*").split(","):
            name, *parameters = [part.strip().lower() for part in item.split(";")]
            wanted[name] = next((_quality(part[2:]) for part in parameters if part.startswith("q=")), 1.0)

        def quality(media_type: str) -> float:
            group = media_type.partition("/")[0]
            return next((wanted[each] for each in (media_type, f"{group}/*", "*/*") if each in wanted), 0.0)

        return max(types, key=quality)

    @property
    def accepts_gzip(self) -> bool:
        """Whether the client accepts a body that is compressed with gzip."""
        for item in self.headers.get("accept-encoding", "").split(","):
            name, *parameters = [part.strip().lower() for part in item.split(";")]
            if name in ("gzip", "*"):
                return all(_quality(part[2:]) > 0 for part in parameters if part.startswith("q="))
        return False


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


@dataclass(frozen=True, slots=True)
class Response:
    """A response with its whole body.

    Attributes:
        status: The status code.
        body: The body; not sent for HEAD.
        content_type: The media type of the body.
        headers: Further headers.
        sized: It has a Content-Length. Not so for HEAD, if that of the response to GET is not known.
        pieces: What follows *body*, in pieces that are shared with others and not copied. For routes with ``long``.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = TEXT
    headers: Sequence[tuple[str, str]] = ()
    sized: bool = True
    pieces: Sequence[bytes | memoryview] = ()

    @property
    def size(self) -> int:
        """The size of the whole body, bytes."""
        return len(self.body) + sum(map(len, self.pieces))

    def compressed(self, request: Request) -> Response:
        """Return the response with a compressed body, if the client accepts that and it is worth it."""
        worth = len(self.body) >= _GZIP_LEAST_BYTES and self.content_type.startswith(_COMPRESSIBLE)
        if not worth:
            return self
        headers = [*self.headers, ("Vary", "Accept-Encoding")]
        if not request.accepts_gzip:
            return Response(self.status, self.body, self.content_type, headers)
        body = gzip.compress(self.body, _GZIP_LEVEL, mtime=0)
        return Response(self.status, body, self.content_type, [*headers, ("Content-Encoding", "gzip")])

    def tagged(self, request: Request, entity_tag: str = "") -> Response:
        """Return the response with an entity tag; without its body (304) if the client has that already (If-None-Match).

        Args:
            request: The request.
            entity_tag: The tag, without quotes: it changes with every byte of the body, so a compressed body needs its own.
                Empty: a hash of the body.
        """
        tag = f'"{entity_tag or self._hash()}"'
        headers = [*self.headers, ("ETag", tag)]
        known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
        has_it = tag in known or known == ["*"]
        if self.status != 200 or not has_it or request.method not in ("GET", "HEAD"):
            return replace(self, headers=headers)
        return Response(304, headers=[(name, value) for name, value in headers if name != "Content-Encoding"])

    def ranged(self, request: Request) -> Response:
        """Return the part of the body that the client asks for (RFC 9110 section 14): 206, or 416 if there is none of it.

        The response stays whole if the client asks for nothing or for several ranges, if what it asks for is malformed, and if
        it has a part of another body (If-Range): that takes a response which is `tagged` already.
        """
        if self.status != 200 or not self.sized:
            return self
        size = self.size
        whole = replace(self, headers=[*self.headers, ("Accept-Ranges", "bytes")])
        found = _RANGE.fullmatch(request.headers.get("range", ""))
        if found is None or request.method != "GET" or request.headers.get("if-range", self._entity_tag) != self._entity_tag:
            return whole
        first, last = found.groups()
        if first:
            begin, end = int(first), min(int(last) + 1, size) if last else size
            if last and int(last) < begin:
                return whole
        elif last:
            begin, end = max(0, size - int(last)), size
        else:
            return whole
        if begin >= size:
            text = f"The body has {size} bytes.\n".encode()
            return Response(416, text, headers=[("Content-Range", f"bytes */{size}")])
        headers = [*whole.headers, ("Content-Range", f"bytes {begin}-{end - 1}/{size}")]
        return replace(whole, status=206, body=b"", pieces=self._cut(begin, end), headers=headers)

    def _cut(self, begin: int, end: int) -> list[memoryview]:
        """Return the bytes of the body from *begin* to *end*, which are not copied: any number of clients may ask for them."""
        found = []
        for piece in (self.body, *self.pieces):
            if begin < len(piece) and end > 0:
                found.append(memoryview(piece)[max(0, begin) : end])
            begin, end = begin - len(piece), end - len(piece)
        return found

    def _hash(self) -> str:
        digest = hashlib.blake2b(self.body, digest_size=_ENTITY_TAG_BYTES)
        for piece in self.pieces:
            digest.update(piece)
        return digest.hexdigest()

    @property
    def _entity_tag(self) -> str:
        return next((value for name, value in self.headers if name == "ETag"), "")


def response_head(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """Return the status line and the headers of a response.

    Raises:
        ValueError: A header contains a line break.
    """
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *[f"{name}: {value}" for name, value in headers]]
    text = "\r\n".join(lines)
    if text.count("\n") >= len(lines) or text.count("\r") >= len(lines):
        raise ValueError("a header of a response contains a line break")
    return f"{text}\r\n\r\n".encode("latin-1")


def error_response(error: HttpError, request: Request | None) -> Response:
    """Return the response to a request that failed: plain text, JSON, HTML, or a playlist, as the client accepts.

    Caches keep none of them.
    """
    title = f"{error.status} {HTTPStatus(error.status).phrase}"
    kind = "text/plain"
    if request is not None:
        playlist = (PLAYLIST,) if request.path.endswith(".m3u8") else ()
        kind = request.accepts(*playlist, "text/plain", "application/json", "text/html")
    if kind == "application/json":
        body, content_type = json.dumps({"status": error.status, "error": error.text}) + "\n", JSON
    elif kind == "text/html":
        text = f"<title>{title}</title><h1>{title}</h1><p>{html.escape(error.text)}</p>"
        body, content_type = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8">{text}</html>\n', HTML
    elif kind == PLAYLIST:
        body, content_type = f"#EXTM3U\n## {' '.join(error.text.split())}\n", PLAYLIST
    else:
        body, content_type = f"{error.text}\n", TEXT
    return Response(error.status, body.encode(), content_type, [*error.headers, ("Cache-Control", "no-store")])


class RequestHead:
    """Collects the bytes of a request line and its headers, and parses them.

    Attributes:
        data: What has come so far.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._checked = 0

    def feed(self, data: bytes) -> int:
        """Add bytes; return the size of the head if it is complete, else 0.

        Raises:
            HttpError: It is too long, or lines end in another way than in CR LF.
        """
        self.data += data
        if not self._checked:
            # Empty lines before a request are allowed (RFC 9112 section 2.2).
            while self.data.startswith(b"\r\n"):
                del self.data[:2]
            if bytes(self.data[:2]) in (b"", b"\r"):
                return 0
        found = self.data.find(b"\r\n\r\n", max(0, self._checked - 3))
        size = found + 4 if found >= 0 else 0
        end = size or len(self.data)
        line_end = self.data.find(b"\n", 0, LINE_LIMIT_BYTES + 1)
        if line_end < 0 and end > LINE_LIMIT_BYTES:
            raise HttpError(414, f"The request line is longer than {LINE_LIMIT_BYTES} bytes.")
        self._check_line_ends(end)
        if end > HEAD_LIMIT_BYTES:
            raise HttpError(431, f"The headers are longer than {HEAD_LIMIT_BYTES} bytes.")
        self._checked = end
        return size

    def _check_line_ends(self, end: int) -> None:
        position = max(0, self._checked - 1)
        while (position := self.data.find(b"\n", position, end)) >= 0:
            if position == 0 or self.data[position - 1] != 0x0D:
                raise HttpError(400, "A line of the request does not end in CR LF.")
            position += 1

    def parse(self, size: int, peer: str = "", *, secure: bool = False) -> tuple[Request, h11.Connection | None]:
        """Parse a head of that size, and forget it.

        Returns:
            The request, and h11's parser, from which the body can be read; None: it is a plain request, which has no body.

        Raises:
            HttpError: It is malformed, ambiguous or not supported.
        """
        head = bytes(self.data[:size])
        del self.data[:size]
        self._checked = 0
        lines = head[:-4].split(b"\r\n")[1:]
        if len(lines) > HEADERS_LIMIT:
            raise HttpError(431, f"There are more than {HEADERS_LIMIT} headers.")
        if any(line[:1] in (b" ", b"\t") for line in lines):
            raise HttpError(400, "A header is folded over several lines.")
        if b"\r" in head.replace(b"\r\n", b""):
            raise HttpError(400, "A carriage return stands within a line.")
        if _CONTROL_BYTE.search(head):
            # Besides, h11 takes seconds to find that a line of spaces ends in one of them.
            raise HttpError(400, "A control character stands within a line.")
        names = [line.partition(b":")[0].strip().lower() for line in lines]
        _check_framing(names)
        plain = _plain_request(head, names, peer, secure=secure)
        if plain is not None:
            return plain, None
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * HEAD_LIMIT_BYTES)
        try:
            parser.receive_data(head)
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            _refuse(head, error)
        if not isinstance(event, h11.Request):
            raise HttpError(400, "The request is not complete.")
        if event.http_version not in (b"1.0", b"1.1"):
            raise HttpError(505, _VERSIONS)
        if event.http_version == b"1.0" and b"transfer-encoding" in names:
            raise HttpError(400, "HTTP/1.0 has no transfer codings.")
        headers: dict[str, str] = {}
        for name, value in event.headers:
            key, text = name.decode("ascii"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        path, query = split_target(event.target)
        request = Request(
            event.method.decode("ascii"),
            path,
            query,
            headers,
            head,
            peer,
            secure,
            _keeps_alive(event.http_version, headers.get("connection", "")),
        )
        return request, parser


_PLAIN = re.compile(
    rb"(GET|HEAD) ([!-~]+) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ -~\t]*\r\n)+)\r\n"
)
"""A request line and headers of printable ASCII. No part of it can match the same bytes in two ways: the time is linear."""

_NOT_PLAIN = frozenset((b"content-length", b"transfer-encoding", b"expect", b"upgrade"))
"""Headers by which a request may have a body, or is the last one in HTTP/1.1."""


def _plain_request(head: bytes, names: Sequence[bytes], peer: str, *, secure: bool) -> Request | None:
    """Return a request that has no body and nothing unusual; None: h11 is to parse it. That takes 60 us more.

    Args:
        head: Its head, which has been checked as `RequestHead.parse` does.
        names: The names of its headers, in lower case.
        peer, secure: As for `Request`.
    """
    found = _PLAIN.fullmatch(head)
    if found is None or b"host" not in names or not _NOT_PLAIN.isdisjoint(names):
        return None
    method, target, lines = found.groups()
    headers: dict[str, str] = {}
    for line in lines.decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        key, value = name.lower(), value.strip(" \t")
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    path, query = split_target(target)
    keep_alive = _keeps_alive(b"1.1", headers["connection"]) if "connection" in headers else True
    return Request(method.decode("ascii"), path, query, headers, head, peer, secure, keep_alive)


def _refuse(head: bytes, error: h11.RemoteProtocolError) -> NoReturn:
    """Raise the error of a head that h11 does not accept. Nothing of the head is quoted, since it may contain a token."""
    if error.error_status_hint == 501:
        raise HttpError(501, "Only the transfer coding chunked is supported.") from None
    version = head.partition(b"\r\n")[0].rpartition(b" ")[2]
    if _OTHER_VERSION.fullmatch(version):
        raise HttpError(505, _VERSIONS) from None
    raise HttpError(400, "The request is malformed.") from None


def _check_framing(names: Sequence[bytes]) -> None:
    """Refuse what says in more than one way where the body ends, or what the server is."""
    lengths, codings = names.count(b"content-length"), names.count(b"transfer-encoding")
    if lengths > 1 or codings > 1 or (lengths and codings):
        raise HttpError(400, "The headers say in more than one way where the body ends.")
    if names.count(b"host") > 1:
        raise HttpError(400, "There is more than one Host header.")


def _keeps_alive(version: bytes, connection: str) -> bool:
    tokens = {token.strip().lower() for token in connection.split(",")}
    return "close" not in tokens and (version == b"1.1" or "keep-alive" in tokens)


def split_target(target: bytes) -> tuple[str, str]:
    """Return the decoded path and the query of a request target (RFC 9112 section 3.2).

    The path is decoded once, here. A slash, a control character, and ``.`` and ``..`` have no second spelling.

    Raises:
        HttpError: The target is none that a server is asked for, or its path is ambiguous.
    """
    path, _, query = target.partition(b"#")[0].partition(b"?")
    if path[:8].lower().startswith((b"http://", b"https://")):
        # The absolute form. Within a path, "://" is a part of it: a proxy finds its rules by the whole path.
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    if path == b"*":
        return "*", ""
    if not path.startswith(b"/"):
        raise HttpError(400, "The target of the request is not a path.")
    position = -1
    while (position := path.find(b"%", position + 1)) >= 0:
        digits = path[position + 1 : position + 3]
        if len(digits) < 2 or not _HEX.issuperset(digits):
            raise HttpError(400, "The path has an invalid percent escape.")
        if digits.lower() in (b"2f", b"5c"):
            raise HttpError(400, "The path contains an escaped slash or backslash.")
    try:
        decoded = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise HttpError(400, "The path is not UTF-8.") from None
    if _CONTROL.search(decoded) or "\\" in decoded:
        raise HttpError(400, "The path contains a control character or a backslash.")
    if any(part in (".", "..") for part in decoded.split("/")):
        raise HttpError(400, 'The path contains a part "." or "..".')
    return decoded, query.decode("latin-1")
