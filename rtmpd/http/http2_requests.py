"""Requests of HTTP/2: from a list of header fields (RFC 9113 section 8) to the same `Request` as by HTTP/1.1. Pure.

The fields are checked here and not by h2: it ends the whole connection for one malformed request, and its versions differ in
what they check. What a proxy that converts to HTTP/1.1 may read in another way is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rtmpd.errors import HttpError
from rtmpd.http.messages import HEAD_LIMIT_BYTES, HEADERS_LIMIT, LINE_LIMIT_BYTES, Request, split_target

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_VALUE = re.compile(rb"(?:[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_OF_CONNECTIONS = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_ALONE = frozenset((b"host", b"content-length"))
_FIELD_BYTES = 4


def request_of(fields: Iterable[tuple[bytes, bytes]], peer: str = "") -> Request:
    """Return a request.

    Args:
        fields: Its header fields, in the order in which they came.
        peer: The client's address and port.

    Raises:
        HttpError: It is malformed, ambiguous or too long.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: dict[str, str] = {}
    size = 0
    for number, (name, value) in enumerate(fields):
        size += len(name) + len(value) + _FIELD_BYTES
        if name == b":path" and len(value) > LINE_LIMIT_BYTES:
            raise HttpError(414, f"The path is longer than {LINE_LIMIT_BYTES} bytes.")
        if size > HEAD_LIMIT_BYTES:
            raise HttpError(431, f"The headers are longer than {HEAD_LIMIT_BYTES} bytes.")
        if number >= HEADERS_LIMIT + len(_PSEUDO):
            raise HttpError(431, f"There are more than {HEADERS_LIMIT} headers.")
        if _VALUE.fullmatch(value) is None:
            raise HttpError(400, "A header has a control character, or begins or ends with a space.")
        if name.startswith(b":"):
            if headers or name in pseudo or name not in _PSEUDO:
                raise HttpError(400, "A pseudo-header field is unknown, repeated or behind the others.")
            pseudo[name] = value
        else:
            _add(headers, name, value)
    return _request(pseudo, headers, peer)


def _add(headers: dict[str, str], name: bytes, value: bytes) -> None:
    if _NAME.fullmatch(name) is None:
        raise HttpError(400, "The name of a header is not valid, or has capital letters.")
    if name in _OF_CONNECTIONS or (name == b"te" and value.lower() != b"trailers"):
        raise HttpError(400, "A header is specific to connections of HTTP/1.1.")
    key, text = name.decode("ascii"), value.decode("latin-1")
    if key not in headers:
        headers[key] = text
    elif name in _ALONE:
        raise HttpError(400, f"There is more than one header {key}.")
    else:
        headers[key] += ("; " if name == b"cookie" else ", ") + text


def _request(pseudo: dict[bytes, bytes], headers: dict[str, str], peer: str) -> Request:
    method, target = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority", b"").decode("latin-1")
    if _METHOD.fullmatch(method) is None:
        raise HttpError(400, "The request has no valid method.")
    if pseudo.get(b":scheme", b"").lower() not in (b"https", b"http"):
        raise HttpError(400, "The request has no valid scheme.")
    if _TARGET.fullmatch(target) is None or (not target.startswith(b"/") and (target != b"*" or method != b"OPTIONS")):
        raise HttpError(400, "The target of the request is not a path.")
    host = headers.get("host", authority)
    if not host or "@" in host or (authority and authority.lower() != host.lower()):
        raise HttpError(400, "The request names no host, or two of them, or a user.")
    path, query = split_target(target)
    return Request(method.decode("ascii"), path, query, {**headers, "host": host}, peer=peer, secure=True)
