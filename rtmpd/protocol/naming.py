"""Stream keys and parameters from the app, the tcUrl and the stream name of a client.

Clients split a URL at different places, and append its query to any of the three parts. No I/O.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl

from rtmpd.util.stream_key import StreamKey

MAX_NAME_LENGTH = 1024
_MAX_PARAMETERS = 64


class StreamName(NamedTuple):
    """A resolved name.

    Attributes:
        key: The stream key, ``app/name`` without a query.
        parameters: The merged query: that of the stream name overrides that of the app, and both override that of the tcUrl.
    """

    key: StreamKey
    parameters: dict[str, str]


def split_query(text: str) -> tuple[str, str]:
    """Return the text before and the text after the first ``?``."""
    head, _, query = text.partition("?")
    return head, query


def join_key(app: str, name: str) -> StreamKey:
    """Join app and name, with single slashes only."""
    return StreamKey("/".join(part for part in f"{app}/{name}".split("/") if part))


def resolve(app: str, tc_url: str, name: str, default_name: str) -> StreamName:
    """Resolve the names that a client sent with connect and with publish or play.

    Args:
        app: The ``app`` of connect, possibly with slashes and a query. If empty, the path of the tcUrl is used.
        tc_url: The ``tcUrl`` of connect; empty if missing, and in quotes from some clients.
        name: The stream name, possibly empty, or with slashes and a query.
        default_name: The name to use if *name* is empty.
    """
    url, url_query = split_query(tc_url.strip("'\""))
    app, app_query = split_query(app)
    name, name_query = split_query(name)
    if not app.strip("/") and "://" in url:
        app = url.split("://", 1)[1].partition("/")[2]
    parameters: dict[str, str] = {}
    for query in (url_query, app_query, name_query):
        first = "&".join(query[:8192].split("&", _MAX_PARAMETERS)[:_MAX_PARAMETERS])
        parameters.update(parse_qsl(first, keep_blank_values=True))
    if not name.strip("/"):
        name = default_name
    return StreamName(join_key(app, name), parameters)


def is_printable(text: str) -> bool:
    """Return whether a name can be logged unchanged: no control characters, and at most `MAX_NAME_LENGTH` characters."""
    return len(text) <= MAX_NAME_LENGTH and not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text)
