"""Formats of log records: lines of text or JSON, datagrams for the journal. Pure.

Formats run in the thread of a log, not in the event loop. They mask what looks like a secret, in the message and in all fields
alike, as a last line of defence: no log call should contain a secret.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rtmpd.util.text import harmless
from rtmpd.util.text import json_line as one_json_line

if TYPE_CHECKING:
    from collections.abc import Mapping

Format = Callable[[logging.LogRecord], bytes]
"""Converts a record to bytes."""

MASK: Final = "***"
MESSAGE_LIMIT: Final = 48 * 1024
"""Longest message for the journal, characters. The datagram then fits into the default limits of Linux."""

_SECRET = re.compile(
    r"""((?:token|key|sign|signature|secret|pass\w{0,16}|pwd)(?:=|%3D|['"]\s*:\s*))("[^"]*"|'[^']*'|[^\s&'"]+)""", re.IGNORECASE
)
_USER = re.compile(r"://[^\s/?#]*@")
_CONTROLS: Final = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
}
_PRIORITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
_ORIGIN = ("connection", "peer", "stream")
_TIMES = logging.Formatter()
_PLAIN_VALUE = re.compile(r"[^\s\"'=\\]+")


def mask(text: str) -> str:
    """Mask values of parameters with names of secrets, and user and password of URLs."""
    if "=" in text or '"' in text or "'" in text or "%3" in text:
        text = _SECRET.sub(rf"\1{MASK}", text)
    if "@" in text:
        text = _USER.sub(f"://{MASK}@", text)
    return text


def time_text(seconds: float) -> str:
    """Return a local time in the form of RFC 3339, with milliseconds and the offset to UTC."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def _one_line(text: str) -> str:
    return text if text.isprintable() else harmless(text.translate(_CONTROLS))


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelno, 6)


def _text_message(record: logging.LogRecord) -> str:
    """Return the message after its connection, and before its stream if it does not contain the stream's key."""
    message = _one_line(mask(record.msg))
    origin = _origin(record)
    if "connection" not in origin:
        return message
    stream = _one_line(str(origin.get("stream", "")))
    where = f" [{stream}]" if stream and stream not in message else ""
    return f"#{origin['connection']} {_one_line(str(origin.get('peer', '')))} {message}{where}"


def _origin(record: logging.LogRecord) -> dict[str, Any]:
    """Return the connection, peer and stream of a record, as far as it has them."""
    return _masked({name: value for name in _ORIGIN if (value := getattr(record, name, None))})


def _masked(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: mask(value) if isinstance(value, str) else value for name, value in fields.items()}


def text_line(record: logging.LogRecord, *, encoding: str = "utf-8", journal: bool = False) -> bytes:
    """Return a record as a line for people, or as several lines with a traceback: time, level, message.

    Args:
        record: The record.
        encoding: The encoding of the terminal. Other characters are escaped.
        journal: The journal is the reader: it adds the time, and reads a number before each line as the level.
    """
    text = f"{record.levelname:<7} {_text_message(record)}"
    if record.exc_text:
        text += f"\n{harmless(mask(record.exc_text))}"
    if journal:
        front = f"<{_priority(record)}>"
        text = front + text.replace("\n", f"\n{front}")
    else:
        text = f"{_TIMES.formatTime(record)} {text}"
    return f"{text}\n".encode(encoding, "backslashreplace")


def json_line(record: logging.LogRecord, *, journal: bool = False) -> bytes:
    """Return a record as a line with a JSON object; *journal* as for `text_line`."""
    entry: dict[str, Any] = {
        "time": time_text(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": mask(record.msg),
    }
    entry |= _origin(record)
    if record.exc_text:
        entry["exception"] = mask(record.exc_text)
    return (f"<{_priority(record)}>" if journal else "").encode() + _json(entry)


def _json(entry: Mapping[str, Any]) -> bytes:
    # Only surrogates can't be encoded, and JSON escapes those as Python does.
    return f"{one_json_line(entry)}\n".encode("utf-8", "backslashreplace")


def journal_datagram(record: logging.LogRecord) -> bytes:
    """Return a record in the journal's native protocol: a field is a line or, if it contains a newline, a length and bytes."""
    message = _text_message(record)
    if record.exc_text:
        message += f"\n{harmless(mask(record.exc_text))}"
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
    fields |= {f"RTMPD_{name.upper()}": value for name, value in _origin(record).items()}
    return b"".join(_field(name, str(value)) for name, value in fields.items() if value)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
    return b"%s=%s\n" % (name.encode(), data)


def access_text(record: logging.LogRecord) -> bytes:
    """Return an entry of the access log as ``name=value``. Values with other than plain characters are quoted as in JSON."""
    text = " ".join(f"{name}={_quoted(value)}" for name, value in _entry(record).items())
    return f"{text}\n".encode("utf-8", "backslashreplace")


def access_json(record: logging.LogRecord) -> bytes:
    """Return an entry of the access log as a JSON object."""
    return _json(_entry(record))


def _entry(record: logging.LogRecord) -> dict[str, Any]:
    entry: Mapping[str, Any] = getattr(record, "entry", {})
    times = {"time": time_text(record.created), "start": time_text(entry.get("start", record.created))}
    return {"time": "", **_masked(entry), **times}


def _quoted(value: object) -> str:
    text = str(value)
    if _PLAIN_VALUE.fullmatch(text) and text.isprintable():
        return text
    return _one_line(json.dumps(text, ensure_ascii=False))
