"""Names: what the app, the tcUrl and the stream name of a client come to.

Clients cut a URL in different places, and hang its query on any of the three parts. Pure; imports nothing of rtmpd.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl

from rtmpd.util.stream_key import StreamKey

__all__ = ["MAX_NAME_LENGTH", "StreamName", "is_printable", "join_key", "resolve", "split_query"]

MAX_NAME_LENGTH = 1024
_MAX_PARAMETERS = 64


class StreamName(NamedTuple):
    """A resolved name.

    Attributes:
        key: ``app/name`` without any query; what a stream is registered under.
        parameters: The merged query: the stream name's wins over the app's, and that over the tcUrl's.
    """

    key: StreamKey
    parameters: dict[str, str]


def split_query(text: str) -> tuple[str, str]:
    """Split off what follows the first ``?``."""
    head, _, query = text.partition("?")
    return head, query


def join_key(app: str, name: str) -> StreamKey:
    """Join app and name with one slash, whatever slashes they bring."""
    return StreamKey("/".join(part for part in f"{app}/{name}".split("/") if part))


def resolve(app: str, tc_url: str, name: str, default_name: str) -> StreamName:
    """Resolve what a client sent in connect and in publish or play.

    Args:
        app: The connect command's ``app``, possibly with slashes and a query. When empty, the tcUrl's path stands in.
        tc_url: Its ``tcUrl``; may be missing (empty), or quoted as some clients send it.
        name: The stream name, possibly with slashes and a query; may be empty.
        default_name: Used when the name is empty.
    """
    url, url_query = split_query(tc_url.strip("'\""))
    app, app_query = split_query(app)
    name, name_query = split_query(name)
    if not app.strip("/") and "://" in url:
        app = url.split("://", 1)[1].partition("/")[2]
    parameters: dict[str, str] = {}
    for query in (url_query, app_query, name_query):
        parameters.update(parse_qsl(query[:8192], keep_blank_values=True, max_num_fields=None)[:_MAX_PARAMETERS])
    if not name.strip("/"):
        name = default_name
    return StreamName(join_key(app, name), parameters)


def is_printable(text: str) -> bool:
    """Whether a name can stand in a log line as it is: no control characters, and not absurdly long."""
    return len(text) <= MAX_NAME_LENGTH and not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text)
