"""What a record of the log looks like on its way out: a line of text or JSON, or a datagram for the journal.

All of it runs in the thread of a log, never in the event loop. What looks like a secret is masked here, whatever the message:
nothing that logs should hand over a secret, and this is what is left if something does. Imports the standard library only.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AccessJson", "AccessText", "Format", "JournalDatagram", "JsonLine", "TextLine", "mask", "time_text"]

MASK: Final = "***"
MESSAGE_LIMIT: Final = 48 * 1024
"""The longest message that the journal gets, in characters: with the rest it fits into one datagram by any default of Linux."""

_SECRET = re.compile(
    r"""((?:token|key|sign|signature|secret|pass\w{0,16}|pwd)(?:=|['"]\s*:\s*))("[^"]*"|'[^']*'|[^\s&'"]+)""", re.IGNORECASE
)
_USER = re.compile(r"://[^\s/?#]*@")
_CONTROLS: Final = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_PRIORITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
_PLAIN_VALUE = re.compile(r"[^\s\"'=\\]+")


class Format(Protocol):
    """What turns a record into bytes."""

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Return the record as it goes out."""


def mask(text: str) -> str:
    """Hide values of parameters that are named like secrets, and user and password of URLs."""
    if "=" in text or '"' in text or "'" in text:
        text = _SECRET.sub(rf"\1{MASK}", text)
    if "@" in text:
        text = _USER.sub(f"://{MASK}@", text)
    return text


def time_text(seconds: float) -> str:
    """Return a time as RFC 3339 has it, local, with milliseconds and the offset to UTC."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.translate(_CONTROLS)


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelno, 6)


def _text_message(record: logging.LogRecord) -> str:
    """Return the message with the connection in front, and its stream behind if the message does not name it."""
    message = _one_line(mask(record.msg))
    number = getattr(record, "connection", None)
    if number is None:
        return message
    stream = getattr(record, "stream", "")
    where = f" [{stream}]" if stream and stream not in message else ""
    return f"#{number} {getattr(record, 'peer', '')} {message}{where}"


class TextLine:
    """Lines for people: time, level, message.

    Args:
        encoding: Of the terminal; what it can't show is escaped.
        journal: The journal reads it: it adds the time itself, and takes a number in front of each line as its level.
    """

    def __init__(self, encoding: str = "utf-8", *, journal: bool = False) -> None:
        self._encoding = encoding
        self._journal = journal
        self._times = logging.Formatter()

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Return the record as a line, and as more with a traceback."""
        text = f"{record.levelname:<7} {_text_message(record)}"
        if record.exc_text:
            text += f"\n{mask(record.exc_text)}"
        if self._journal:
            front = f"<{_priority(record)}>"
            text = front + text.replace("\n", f"\n{front}")
        else:
            text = f"{self._times.formatTime(record)} {text}"
        return f"{text}\n".encode(self._encoding, "backslashreplace")


class JsonLine:
    """One object of JSON a line.

    Args:
        journal: As for `TextLine`.
    """

    def __init__(self, *, journal: bool = False) -> None:
        self._journal = journal

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Return the record as a line."""
        entry: dict[str, Any] = {
            "time": time_text(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask(record.msg),
        }
        for name in ("connection", "peer", "stream"):
            value = getattr(record, name, None)
            if value:
                entry[name] = value
        if record.exc_text:
            entry["exception"] = mask(record.exc_text)
        return (f"<{_priority(record)}>" if self._journal else "").encode() + _json(entry)


def _json(entry: Mapping[str, Any]) -> bytes:
    # Only surrogates can't be encoded, and JSON writes those as Python does.
    return f"{json.dumps(entry, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace")


class JournalDatagram:
    """The journal's own protocol: fields, each a line or, with a newline in it, a length and bytes."""

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Return the record as a datagram."""
        message = _text_message(record)
        if record.exc_text:
            message += f"\n{mask(record.exc_text)}"
        if len(message) > MESSAGE_LIMIT:
            message = message[:MESSAGE_LIMIT] + "..."
        fields = {
            "MESSAGE": message,
            "PRIORITY": _priority(record),
            "SYSLOG_IDENTIFIER": "rtmpd",
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
            "RTMPD_LOGGER": record.name,
        }
        for name in ("connection", "peer", "stream"):
            fields[f"RTMPD_{name.upper()}"] = getattr(record, name, None)
        return b"".join(_field(name, str(value)) for name, value in fields.items() if value)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
    return b"%s=%s\n" % (name.encode(), data)


class AccessText:
    """Lines of the access log as ``name=value``; a value with spaces or the like is quoted, as in JSON."""

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Return the record's entry as a line."""
        text = " ".join(f"{name}={_quoted(value)}" for name, value in _entry(record).items())
        return f"{text}\n".encode("utf-8", "backslashreplace")


class AccessJson:
    """Lines of the access log as objects of JSON."""

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Return the record's entry as a line."""
        return _json(_entry(record))


def _entry(record: logging.LogRecord) -> dict[str, Any]:
    entry: Mapping[str, Any] = getattr(record, "entry", {})
    times = {"time": time_text(record.created), "start": time_text(entry.get("start", record.created))}
    return {"time": "", **{name: mask(value) if isinstance(value, str) else value for name, value in entry.items()}, **times}


def _quoted(value: object) -> str:
    text = str(value)
    if _PLAIN_VALUE.fullmatch(text) and text.isprintable():
        return text
    return _one_line(json.dumps(text, ensure_ascii=False))
