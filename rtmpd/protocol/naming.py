"""Stream keys and parameters from the app, the tcUrl and the stream name of a client.

Clients split a URL at different places, and append its query to any of the three parts. No I/O.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, unquote_plus

from rtmpd.util.stream_key import StreamKey

MAX_NAME_LENGTH = 1024
_MAX_PARAMETERS = 64
_DEFAULT_INSTANCE = "_definst_"
"""What Flash Media Server and Wowza call the instance of an application that has no other."""
_URL = re.compile(r"['\"]?rtmp[a-z]{0,2}://", re.IGNORECASE)
# The names of parameters whose values the log masks, too (`rtmpd.daemon.log_formats`).
_SECRET_PARAMETER = re.compile(r"(?:token|key|sign|signature|secret|pass\w{0,16}|pwd)=", re.IGNORECASE)
_NOT_IN_QUERIES = re.compile(r"[\s&#\"'<>\\^`{|}]")


class NameProblem(ValueError):
    """A name can't be served as it was sent; the message says what to change, and contains no part of the name."""


class StreamName(NamedTuple):
    """A resolved name.

    Attributes:
        key: The stream key, ``app/name`` without a query.
        parameters: The merged query: that of the stream name overrides that of the app, and both override that of the tcUrl.
        defaulted: The client named no stream, and got the default name.
    """

    key: StreamKey
    parameters: dict[str, str]
    defaulted: bool = False


def split_query(text: str) -> tuple[str, str]:
    """Return the text before and the text after the first ``?``."""
    head, _, query = text.partition("?")
    return head, query


def without_secrets(url: str) -> str:
    """Return a URL without its query, user and password; quotes around it are removed."""
    scheme, separator, rest = split_query(url.strip("'\""))[0].partition("://")
    if not separator:
        return scheme
    host, slash, path = rest.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path


def join_key(app: str, name: str) -> StreamKey:
    """Join app and name, with single slashes only. ``app/_definst_`` is the app."""
    parts = [part for part in f"{app}/{name}".split("/") if part]
    return StreamKey("/".join(part for index, part in enumerate(parts) if part != _DEFAULT_INSTANCE or not index))


def split_path(path: str) -> tuple[str, str]:
    """Split the path of a URL into app and name, either of them possibly empty.

    The name is the last part; after a double slash, all of the rest, for names with slashes.
    """
    path = path.strip("/")
    app, double, name = path.partition("//")
    if not double:
        app, _, name = path.rpartition("/")
    if not app:
        app, name = name, ""
    return join_key("", app), "/".join(part for part in name.split("/") if part)


def resolve(app: str, tc_url: str, name: str, default_name: str) -> StreamName:
    """Resolve the names that a client sent with connect and with publish or play.

    Args:
        app: The ``app`` of connect, possibly with slashes and a query, or a whole URL. If empty, the path of the tcUrl is used.
        tc_url: The ``tcUrl`` of connect; empty if missing, and in quotes from some clients.
        name: The stream name, possibly empty, or with slashes and a query; or a whole URL; or only the query, if app or tcUrl
            end with its ``?``.
        default_name: The name to use if *name* is empty and the app has one part or none. With more parts, the app is the key.

    Raises:
        NameProblem: The name is the URL of another application, or contains parameters without a ``?`` before them.
    """
    tc_url = tc_url.strip("'\"")
    if (app.endswith("?") or tc_url.endswith("?")) and "=" in name and "?" not in name and "/" not in name:
        name = f"?{name}"
    url, url_query = split_query(tc_url)
    app, app_query = split_query(app)
    name, name_query = split_query(name)
    if not app.strip("/") and "://" in url:
        app = url
    app = join_key("", _path_of(app))
    if _URL.match(name):
        path = join_key("", _path_of(name))
        if app and path != app and not path.startswith(f"{app}/"):
            raise NameProblem("the stream's name is a URL of another application: send only the part behind the application")
        name = path[len(app) :]
    key = join_key(app, name)
    parameters: dict[str, str] = {}
    for query in (url_query, app_query, name_query):
        first = "&".join(query[:8192].split("&", _MAX_PARAMETERS)[:_MAX_PARAMETERS])
        parameters.update(parse_qsl(first, keep_blank_values=True))
    if _SECRET_PARAMETER.search(unquote(key[:MAX_NAME_LENGTH])):
        # Otherwise the secret would be the name of a stream, and so public.
        raise NameProblem('the name contains a parameter with a secret, but no "?" before it: write the parameters after NAME?')
    if key == app and default_name and "/" not in app:
        return StreamName(join_key(app, default_name), parameters, defaulted=True)
    return StreamName(key, parameters)


def _path_of(text: str) -> str:
    """Return the path of a URL without a query; a text that is no URL is a path."""
    scheme, separator, rest = text.partition("://")
    return rest.partition("/")[2] if separator and "/" not in scheme else text


def decoded(text: str) -> str:
    """Return a value that is written in a query as `resolve` decodes it; the text itself if its escapes are not UTF-8."""
    found = unquote_plus(text)
    return text if "\ufffd" in found else found


def can_be_name(text: str) -> bool:
    """Return whether a stream name that a client sends arrives as it is."""
    try:
        return resolve("app", "", text, "").key == f"app/{text}" and not _NOT_IN_QUERIES.search(text.replace("&", ""))
    except NameProblem:
        return False


def needs_escapes(text: str) -> bool:
    """Return whether a value can't be written in the query of a URL as it is, so that clients must escape it."""
    return bool(_NOT_IN_QUERIES.search(text)) or not text.isascii() or "\ufffd" in unquote_plus(text)


def is_printable(text: str) -> bool:
    """Return whether a name can be logged unchanged: no control characters, and at most `MAX_NAME_LENGTH` characters."""
    return len(text) <= MAX_NAME_LENGTH and not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text)
