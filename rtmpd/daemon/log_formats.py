"""Formats of log records: lines of text or JSON, datagrams for the journal. Pure.

Formats run in the thread of a log, not in the event loop. They mask what looks like a secret in any message, as a last line of
defence: no log call should contain a secret.
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
"""Longest message for the journal, characters. The datagram then fits into the default limits of Linux."""

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
    """Converts a record to bytes."""

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Return the record as bytes."""


def mask(text: str) -> str:
    """Mask values of parameters with names of secrets, and user and password of URLs."""
    if "=" in text or '"' in text or "'" in text:
        text = _SECRET.sub(rf"\1{MASK}", text)
    if "@" in text:
        text = _USER.sub(f"://{MASK}@", text)
    return text


def time_text(seconds: float) -> str:
    """Return a local time in the form of RFC 3339, with milliseconds and the offset to UTC."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.translate(_CONTROLS)


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelno, 6)


def _text_message(record: logging.LogRecord) -> str:
    """Return the message after its connection, and before its stream if it does not contain the stream's key."""
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
        encoding: The encoding of the terminal. Other characters are escaped.
        journal: The journal is the reader: it adds the time, and reads a number before each line as the level.
    """

    def __init__(self, encoding: str = "utf-8", *, journal: bool = False) -> None:
        self._encoding = encoding
        self._journal = journal
        self._times = logging.Formatter()

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Return the record as a line, or as several lines with a traceback."""
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
    """Lines with one JSON object each.

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
    # Only surrogates can't be encoded, and JSON escapes those as Python does.
    return f"{json.dumps(entry, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace")


class JournalDatagram:
    """The native protocol of the journal: each field is a line or, if it contains a newline, a length and bytes."""

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
    """Lines of the access log as ``name=value``. Values with spaces, quotes, ``=`` or ``\\`` are quoted as in JSON."""

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Return the record's entry as a line."""
        text = " ".join(f"{name}={_quoted(value)}" for name, value in _entry(record).items())
        return f"{text}\n".encode("utf-8", "backslashreplace")


class AccessJson:
    """Lines of the access log as JSON objects."""

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
