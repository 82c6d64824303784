"""The exceptions of rtmpd. None of them inherits from an exception of gevent.

::

    RtmpdError
    ├── ConfigError              the INI file or a command-line flag is invalid
    ├── ProtocolError            (abstract)
    │   ├── RemoteProtocolError  the peer violated the protocol
    │   │   ├── HandshakeError
    │   │   ├── AmfError
    │   │   └── LimitExceeded
    │   └── LocalProtocolError   the caller asked for something that RTMP can't express
    ├── TransportClosed          the connection has ended
    │   └── TlsError             TLS failed, in the handshake or later
    ├── DeadlineExceeded         a phase exceeded its deadline
    ├── HttpError                an HTTP request can't be served
    ├── Mp4Error                 an MP4 file is damaged or not supported
    ├── SlateError               a file can't be used as a slate
    └── Refused                  policy does not allow a connect, publish or play
        └── LoginRequired        a connect that is a step of a login
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class RtmpdError(Exception):
    """The base class."""


class ConfigError(RtmpdError):
    """The configuration is invalid.

    Attributes:
        problems: A line for each problem: ``file:line: [section] option: problem``.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ProtocolError(RtmpdError):
    """RTMP was violated. Raised only as one of its two subclasses."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that RTMP does not allow. The connection can't continue."""


class HandshakeError(RemoteProtocolError):
    """The peer's part of the handshake is invalid."""


class AmfError(RemoteProtocolError):
    """AMF0 or AMF3 data that can't be decoded."""


class LimitExceeded(RemoteProtocolError):
    """The peer exceeded a limit.

    Attributes:
        limit: The name of the limit: that of its option, if there is one.
        allowed: The value of the limit.
        seen: The value that the peer asked for.
    """

    def __init__(self, limit: str, allowed: float, seen: float) -> None:
        super().__init__(f"{limit} is {allowed}, the peer asked for {seen}")
        self.limit = limit
        self.allowed = allowed
        self.seen = seen


class LocalProtocolError(ProtocolError):
    """The caller asked for something that RTMP can't express, which is a bug of the caller."""


class TransportClosed(RtmpdError):
    """The connection has ended. The message has the reason, and the side that closed it."""


class TlsError(TransportClosed):
    """TLS failed, which ends the connection. The message has the reason, without secrets."""


class DeadlineExceeded(RtmpdError):
    """A phase of a connection exceeded its deadline.

    Attributes:
        phase: The name of the phase.
        limit_s: The time limit, seconds.
    """

    def __init__(self, phase: str, limit_s: float) -> None:
        super().__init__(f"{phase} took longer than {limit_s:g} s")
        self.phase = phase
        self.limit_s = limit_s


class HttpError(RtmpdError):
    """An HTTP request can't be served.

    Attributes:
        status: The status code of the response.
        text: The text for the client, without secrets.
        headers: Further headers of the response.
        closes: The connection is closed after the response; by HTTP/2, which shares it, after several of them.
    """

    def __init__(self, status: int, text: str, headers: Sequence[tuple[str, str]] = (), *, closes: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers
        self.closes = closes


class Mp4Error(RtmpdError):
    """An MP4 or MOV file is damaged, or uses something that the reader does not support. The message says what."""


class UnsupportedByMp4(Mp4Error):
    """MP4 can't carry a track, or not with what is known of it so far. The message says why."""


class RemuxError(RtmpdError):
    """A recording can't be made an MP4 file. The message says why."""


class SlateError(RtmpdError):
    """A file can't be used as a slate, or a slate can't be made. The message says what was expected and what was found."""


class Refused(RtmpdError):
    """Policy does not allow a connect, publish or play.

    Attributes:
        code: The status code for the peer, such as ``NetStream.Publish.BadName``.
        description: The text for the peer, without secrets.
        reason: The text for the log, without secrets; the description by default.
        unproved: The client has to prove that it may: a token, signature or login is missing or wrong.
    """

    def __init__(self, code: str, description: str, reason: str = "", *, unproved: bool = False) -> None:
        super().__init__(f"{code}: {reason or description}")
        self.code = code
        self.description = description
        self.reason = reason or description
        self.unproved = unproved


class LoginRequired(Refused):
    """The client has to connect again with a login: a normal step of the login, not an error."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(code, description, "login required")
