"""Every exception that rtmpd raises on purpose.

The tree::

    RtmpdError
    ├── ConfigError              the INI file or a command-line flag is wrong
    ├── ProtocolError            (abstract)
    │   ├── RemoteProtocolError  the peer broke the protocol
    │   │   ├── HandshakeError
    │   │   ├── AmfError
    │   │   └── LimitExceeded
    │   └── LocalProtocolError   our own code asked for something the protocol can't say
    ├── TransportClosed          the connection is gone
    │   └── TlsError             TLS failed: in the handshake, or later
    ├── DeadlineExceeded         a phase took longer than it may
    └── Refused                  a connect, publish or play that policy does not allow
        └── LoginRequired        a connect that is a step of a login

This module imports nothing of rtmpd and none of these inherit from a gevent exception.
"""

from __future__ import annotations

__all__ = [
    "AmfError",
    "ConfigError",
    "DeadlineExceeded",
    "HandshakeError",
    "LimitExceeded",
    "LocalProtocolError",
    "LoginRequired",
    "ProtocolError",
    "Refused",
    "RemoteProtocolError",
    "RtmpdError",
    "TlsError",
    "TransportClosed",
]


class RtmpdError(Exception):
    """Base of every exception that rtmpd raises on purpose."""


class ConfigError(RtmpdError):
    """The configuration can't be used.

    Attributes:
        problems: One line per problem, each ``file:line: [section] option: what is wrong``.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ProtocolError(RtmpdError):
    """RTMP was violated; raised only as one of its two subclasses."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that RTMP does not allow. The connection can't go on."""


class HandshakeError(RemoteProtocolError):
    """The peer's part of the handshake is wrong."""


class AmfError(RemoteProtocolError):
    """AMF0 or AMF3 data that can't be decoded."""


class LimitExceeded(RemoteProtocolError):
    """The peer asked for more than a configured bound allows.

    Attributes:
        limit: The name of the bound, as in the configuration where it has an option.
        allowed: The bound's value.
        seen: What the peer asked for.
    """

    def __init__(self, limit: str, allowed: float, seen: float) -> None:
        super().__init__(f"{limit} is {allowed}, the peer asked for {seen}")
        self.limit = limit
        self.allowed = allowed
        self.seen = seen


class LocalProtocolError(ProtocolError):
    """Our own code asked for something that RTMP can't express. A bug in the caller."""


class TransportClosed(RtmpdError):
    """The connection is gone; the message says why and who closed it."""


class TlsError(TransportClosed):
    """TLS failed, and the connection with it; the message says what was expected and what came, without a secret."""


class DeadlineExceeded(RtmpdError):
    """A phase of a connection took longer than it may.

    Attributes:
        phase: What was being waited for.
        limit_s: The bound, seconds.
    """

    def __init__(self, phase: str, limit_s: float) -> None:
        super().__init__(f"{phase} took longer than {limit_s:g} s")
        self.phase = phase
        self.limit_s = limit_s


class Refused(RtmpdError):
    """Policy does not allow this connect, publish or play.

    Attributes:
        code: The status code for the peer, such as ``NetStream.Publish.BadName``.
        description: The text for the peer; it holds no secret.
        reason: The text for the log, where that is another one; it holds no secret either.
    """

    def __init__(self, code: str, description: str, reason: str = "") -> None:
        super().__init__(f"{code}: {reason or description}")
        self.code = code
        self.description = description
        self.reason = reason or description


class LoginRequired(Refused):
    """The client has to connect again and log in. That is how it is done, and nothing is wrong."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(code, description, "login required")
