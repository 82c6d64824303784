"""What a hook is told: an event as JSON, as environment variables, or as lines.

The names are those of go-rtmp, so that its hooks work here. What is empty is left out. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.events import Event, Scalar

__all__ = ["Notice", "as_lines", "environment", "json_body"]

_LINE_PREFIX = "RTMP_EVENT: "


@dataclass(frozen=True, slots=True)
class Notice:
    """An event that waits for a hook. It holds on to nothing of the server.

    Attributes:
        id: Names it among all events, also of other runs of the server.
        type, connection_id, stream_key, data: As in `rtmpd.events.Event`.
        time_s: When it happened, whole seconds since 1970.
    """

    id: str
    type: str
    time_s: int
    connection_id: str
    stream_key: str
    data: Mapping[str, Scalar]

    @classmethod
    def of(cls, event: Event, number: str) -> Notice:
        """Return what is told of an event."""
        return cls(number, event.type.value, int(event.time_s), event.connection_id, event.stream_key, event.data)

    @property
    def lane(self) -> str:
        """Events of the same lane keep their order: those of a stream, or of a connection where there is no stream."""
        return self.stream_key or f"#{self.connection_id}"

    @property
    def subject(self) -> str:
        """What it has to do with, for the log."""
        return self.stream_key or (f"#{self.connection_id}" if self.connection_id else "the server")


def json_body(notice: Notice) -> bytes:
    """Return the event as one line of JSON, UTF-8. Bytes of a name that are not UTF-8 become U+FFFD."""
    fields: dict[str, object] = {"type": notice.type, "timestamp": notice.time_s}
    if notice.connection_id:
        fields["conn_id"] = notice.connection_id
    if notice.stream_key:
        fields["stream_key"] = notice.stream_key
    if notice.data:
        fields["data"] = dict(notice.data)
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text).encode()


def _variables(notice: Notice) -> dict[str, str]:
    variables = {"RTMP_EVENT_TYPE": notice.type, "RTMP_TIMESTAMP": str(notice.time_s)}
    if notice.connection_id:
        variables["RTMP_CONN_ID"] = notice.connection_id
    if notice.stream_key:
        variables["RTMP_STREAM_KEY"] = notice.stream_key
    for name, value in notice.data.items():
        variables[f"RTMP_{name.upper()}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return variables


def environment(notice: Notice) -> dict[bytes, bytes]:
    """Return the event as environment variables. Names have their bytes as they came; there is no NUL in any."""
    return {name.encode(): _bytes(value.replace("\0", "")) for name, value in _variables(notice).items()}


def as_lines(notice: Notice, form: str) -> bytes:
    """Return the event as lines for standard output: of form ``json``, or ``env`` with an empty line behind it.

    Nothing in a value begins another line.
    """
    if form == "json":
        return _LINE_PREFIX.encode() + json_body(notice) + b"\n"
    lines = [f"# RTMP Event: {notice.type}"]
    lines += [f"{name}={_one_line(value)}" for name, value in _variables(notice).items()]
    return _bytes("\n".join([*lines, "", ""]))


def _one_line(value: str) -> str:
    if value.isprintable():
        return value
    # Surrogates stand for bytes of a name that are not UTF-8: they go out as they came.
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode() for c in value)


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")
