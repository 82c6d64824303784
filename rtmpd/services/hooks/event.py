"""An event for a hook, as JSON, as environment variables, or as lines. Pure.

The names are those of go-rtmp, so that its hooks work here. Empty fields are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtmpd.util.text import json_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.events import Event, Scalar

_LINE_PREFIX = "RTMP_EVENT: "


@dataclass(frozen=True, slots=True)
class HookEvent:
    """An event that waits for a hook. It refers to no stream, whose group of pictures would stay in memory.

    Attributes:
        id: Unique among all events, also of other runs of the server.
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
    def of(cls, event: Event, number: str) -> HookEvent:
        """Make one of an event of the server; *number* becomes its id."""
        return cls(number, event.type.value, int(event.time_s), event.connection_id, event.stream_key, event.data)

    @property
    def lane(self) -> str:
        """The key of the events among which this one keeps its order: those of its stream, else of its connection."""
        return self.stream_key or f"#{self.connection_id}"

    @property
    def subject(self) -> str:
        """The stream, connection or server, for the log."""
        return self.stream_key or (f"#{self.connection_id}" if self.connection_id else "the server")

    def json(self) -> bytes:
        """Return the event as one line of JSON, UTF-8. Bytes of a name that are not UTF-8 become U+FFFD."""
        fields: dict[str, object] = {"type": self.type, "timestamp": self.time_s}
        if self.connection_id:
            fields["conn_id"] = self.connection_id
        if self.stream_key:
            fields["stream_key"] = self.stream_key
        if self.data:
            fields["data"] = dict(self.data)
        text = json_line(fields, (",", ":"))
        try:
            return text.encode()
        except UnicodeEncodeError:
            return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text).encode()

    def environment(self) -> dict[bytes, bytes]:
        """Return the event as environment variables. Names keep the bytes in which they came; NULs are left out."""
        return {name.encode(): _bytes(value.replace("\0", "")) for name, value in self._variables().items()}

    def lines(self, form: str) -> bytes:
        """Return the event as lines: one for the form ``json``, several and an empty one for ``env``.

        Control characters are escaped, so that no value begins another line.
        """
        if form == "json":
            return _LINE_PREFIX.encode() + self.json() + b"\n"
        lines = [f"# RTMP Event: {self.type}"]
        lines += [f"{name}={_one_line(value)}" for name, value in self._variables().items()]
        return _bytes("\n".join([*lines, "", ""]))

    def _variables(self) -> dict[str, str]:
        variables = {"RTMP_EVENT_TYPE": self.type, "RTMP_TIMESTAMP": str(self.time_s)}
        if self.connection_id:
            variables["RTMP_CONN_ID"] = self.connection_id
        if self.stream_key:
            variables["RTMP_STREAM_KEY"] = self.stream_key
        for name, value in self.data.items():
            variables[f"RTMP_{name.upper()}"] = str(value).lower() if isinstance(value, bool) else str(value)
        return variables


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
