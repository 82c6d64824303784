"""The contexts of TLS: what we show and what we ask for. The only place that makes them.

Certificates are looked at by a handshake with ourselves, in memory: the interpreter has no public way to read one, and a
dependency for two dates and some names would be a large one. That also shows that the key does what it is for.

What is wrong with a certificate is told by `tls_problems`. Most of it makes a server impossible; that a certificate has expired
does not: clients say so themselves, and a server that does not even start at night because of it would be worse.

Imports gevent, rtmpd.errors and the configuration.
"""

from __future__ import annotations

import functools
import re
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gevent import get_hub

from rtmpd.errors import RtmpdError, TlsError
from rtmpd.net.tls_turns import HandshakeTurns
from rtmpd.net.tls_words import words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.config.model import TlsConfig

__all__ = ["Certificate", "ClientTls", "ServerTls", "Tls", "client_context", "tls_problems"]

_FILE_BYTES = 1 << 20
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = b"PRIVATE KEY-----"
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which the interpreter has no name."""

Problem = tuple[str, str]
"""An option of [tls], and what is wrong with it."""


class _Problem(Exception):
    """What is wrong with an option."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(text)
        self.problem = option, text


class _Encrypted(Exception):
    """A key wants a passphrase."""


class _ServerObject(ssl.SSLObject):
    asked_for = ""
    """The name of the server that the client wants."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is to be known of a certificate of ours.

    Attributes:
        path: Its file.
        names: The names of hosts in it, in lower case; the first label of one may be ``*``.
        not_before, not_after: When it is good, as Unix time.
    """

    path: str
    names: tuple[str, ...] = ()
    not_before: float = 0.0
    not_after: float = float("inf")


class ServerTls:
    """What connections that come in are shown and asked for.

    Args:
        tls: The options.

    Attributes:
        context: For `TlsTransport.secure`. It gives each client the certificate that has the name which it asks for.
        certificates: In the order of ``tls_cert``.

    Raises:
        RtmpdError: There is no server with these; the message has every reason.
    """

    def __init__(self, tls: TlsConfig) -> None:
        loaded, problems = _load(tls)
        if not loaded and not problems:
            problems = [("tls_cert", "it is not set: RTMPS needs a certificate")]
        _refuse(problems)
        self.certificates = tuple(certificate for _, certificate in loaded)
        self.context = loaded[0][0]
        self._by_name: dict[str, ssl.SSLContext] = {}
        for context, certificate in loaded:
            for name in certificate.names:
                self._by_name.setdefault(name, context)
        self.context.sni_callback = self._choose

    @property
    def not_after(self) -> float:
        """When the first of the certificates expires, as Unix time."""
        return min(each.not_after for each in self.certificates)

    def warnings(self, now_s: float) -> list[str]:
        """Return what clients will find wrong with the certificates at a time (Unix)."""
        return [text for each in self.certificates for _, text in _warnings(each, now_s)]

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        """Give a client the certificate with the name that it asks for (RFC 6066 section 3); without one it gets the first."""
        if name is None or not isinstance(connection, _ServerObject):
            return
        connection.asked_for = name
        name = name.lower().rstrip(".")
        found = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        if found is not None:
            connection.context = found


class ClientTls:
    """What servers that are connected to have to show.

    Args:
        tls: The options; None: those that are the default.

    Raises:
        RtmpdError: ``tls_ca`` can't be used.
    """

    def __init__(self, tls: TlsConfig | None = None) -> None:
        self._ca, self._verify = (tls.tls_ca, tls.tls_verify) if tls is not None else ("", True)
        self._context: ssl.SSLContext | None = None
        if self._ca:
            # What is wrong with the file is to be known now, though few servers relay.
            _refuse(_ca_problems("tls_ca", self._ca))

    @property
    def context(self) -> ssl.SSLContext:
        """For rtmps://. Made when it is first wanted, in a thread: to read the system's authorities takes 50 ms.

        Raises:
            TlsError: The file is not as it was at start.
        """
        if self._context is None:
            try:
                self._context = get_hub().threadpool.apply(client_context, (self._ca,), {"verify": self._verify})
            except OSError as error:
                raise TlsError(f"tls_ca can't be read any more: {error.strerror or error}") from None
        return self._context

    @property
    def ca(self) -> str | bool:
        """For https://, as ``requests`` has it: a file or directory; True where the system has neither: its own."""
        return self._ca or _system_ca()


@functools.cache
def _system_ca() -> str | bool:
    paths = ssl.get_default_verify_paths()
    # There may be a directory with nothing in it.
    return paths.cafile or (paths.capath if paths.capath and any(Path(paths.capath).iterdir()) else True)


@dataclass
class Tls:
    """What is in force for new connections; a reload puts others in place.

    Attributes:
        server: For those that come in; None: RTMPS is not served.
        client: For those that are made.
        turns: When handshakes of those that come in compute.
    """

    server: ServerTls | None = None
    client: ClientTls = field(default_factory=ClientTls)
    turns: HandshakeTurns = field(default_factory=HandshakeTurns)


def client_context(ca: str = "", *, verify: bool = True) -> ssl.SSLContext:
    """Return a context for connections that we make.

    Args:
        ca: A file with the certificates of authorities, PEM; empty: the system's.
        verify: Whether the server has to be who it says; without, anybody can be it.

    Raises:
        OSError: The file can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca:
        context.load_verify_locations(ca)
    else:
        context.load_default_certs()
    return context


def tls_problems(tls: TlsConfig, now_s: float | None = None) -> list[Problem]:
    """Return everything that is wrong with the options, their files included: options, and what is wrong.

    Args:
        tls: The options.
        now_s: The time that certificates are to be good at (Unix); now by default.
    """
    loaded, problems = _load(tls)
    if tls.tls_listen and not tls.tls_cert:
        problems.append(("tls_cert", "it is not set, but tls_listen is: RTMPS needs a certificate"))
    if tls.tls_ca:
        problems += _ca_problems("tls_ca", tls.tls_ca)
    now_s = time.time() if now_s is None else now_s
    return problems + [problem for _, certificate in loaded for problem in _warnings(certificate, now_s)]


def _refuse(problems: Iterable[Problem]) -> None:
    text = "; ".join(f"[tls] {option}: {text}" for option, text in problems)
    if text:
        raise RtmpdError(text)


def _warnings(certificate: Certificate, now_s: float) -> list[Problem]:
    if now_s > certificate.not_after:
        return [("tls_cert", f"{certificate.path}: the certificate expired on {_day(certificate.not_after)}")]
    if now_s < certificate.not_before:
        return [("tls_cert", f"{certificate.path}: the certificate is not valid before {_day(certificate.not_before)}")]
    return []


def _day(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# Loading ----------------------------------------------------------------------------------------------------------------


def _load(tls: TlsConfig) -> tuple[list[tuple[ssl.SSLContext, Certificate]], list[Problem]]:
    """Return a context for each certificate that can be used, and what is wrong with the others and with the options."""
    problems: list[Problem] = []
    if tls.tls_key and len(tls.tls_key) != len(tls.tls_cert):
        text = f"it has {len(tls.tls_key)} files, and tls_cert has {len(tls.tls_cert)}"
        return [], [("tls_key", text)]
    asks = tls.tls_client_auth != "off"
    if asks and not tls.tls_client_ca:
        problems.append(("tls_client_ca", f"it is not set, but tls_client_auth is {tls.tls_client_auth}"))
    if tls.tls_client_ca:
        problems += _ca_problems("tls_client_ca", tls.tls_client_ca)
    asks = asks and not problems
    loaded = []
    for path, key_path in zip(tls.tls_cert, tls.tls_key or tls.tls_cert, strict=True):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # The ciphers are the interpreter's, which leaves out what OpenSSL only has for the sake of old peers.
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.tls_version == "1.3" else ssl.TLSVersion.TLSv1_2
        # To begin anew in the middle takes a lot of our time and little of the peer's.
        context.options |= ssl.OP_NO_RENEGOTIATION
        # TLS 1.3 sends them behind the handshake, and librtmp with GnuTLS takes them for the end of the connection. A client
        # that leaves them unread would close with a reset, too. RTMP connects seldom: there is little to resume.
        context.num_tickets = 0
        context.sslobject_class = _ServerObject
        try:
            certificate = _load_certificate(context, path, key_path)
        except _Problem as error:
            problems.append(error.problem)
            continue
        if asks:
            context.load_verify_locations(tls.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if tls.tls_client_auth == "required" else ssl.CERT_OPTIONAL
        loaded.append((context, certificate))
    return loaded, problems


def _read(option: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_FILE_BYTES)
    except OSError as error:
        raise _Problem(option, f"{path}: {error.strerror or error}") from None


def _load_certificate(context: ssl.SSLContext, path: str, key_path: str) -> Certificate:
    """Have a context use a certificate and its key; raises `_Problem`."""
    found = _CERTIFICATE.search(_read("tls_cert", path))
    if found is None:
        raise _Problem("tls_cert", f"{path}: there is no certificate (PEM) in it")
    if _KEY not in _read("tls_key", key_path):
        hint = "; tls_key says where the key is" if key_path == path else ""
        raise _Problem("tls_key", f"{key_path}: there is no private key (PEM) in it{hint}")

    def no_password() -> str:
        # Else OpenSSL would ask for it on the terminal, and wait.
        raise _Encrypted

    try:
        context.load_cert_chain(path, key_path, no_password)
    except _Encrypted:
        raise _Problem("tls_key", f"{key_path}: the key is encrypted; a server can't be asked for a passphrase") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _Problem("tls_key", f"{key_path}: the key is not that of the certificate in {path}") from None
        raise _Problem("tls_cert", f"{path} with {key_path}: {_plain(error)}") from None
    except OSError as error:
        raise _Problem("tls_cert", f"{path} with {key_path}: {error.strerror or error}") from None
    try:
        shown = _look_at(context, found[0].decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        text = words(error, "server") if isinstance(error, ssl.SSLError) else str(error)
        raise _Problem("tls_cert", f"{path}: no client would take it: {text}") from None
    return Certificate(
        path,
        tuple(_names(shown)),
        ssl.cert_time_to_seconds(str(shown["notBefore"])),
        ssl.cert_time_to_seconds(str(shown["notAfter"])),
    )


def _look_at(server_context: ssl.SSLContext, certificate: str) -> dict[str, object]:
    """Shake hands with ourselves, and return what the certificate says, as ``getpeercert`` does."""
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    # It is trusted for itself, and whatever the date.
    client_side.load_verify_locations(cadata=certificate)
    client_side.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(down, up)
    server = server_context.wrap_bio(up, down, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return dict(client.getpeercert() or {})


def _names(certificate: dict[str, object]) -> Iterable[str]:
    """Return the names of hosts in a certificate; its subject's only where it has no others (RFC 6125 section 6.4.4)."""
    alternatives = certificate.get("subjectAltName", ())
    assert isinstance(alternatives, tuple)
    if alternatives:
        return [value.lower() for kind, value in alternatives if kind == "DNS"]
    subject = certificate.get("subject", ())
    assert isinstance(subject, tuple)
    return [value.lower() for part in subject for kind, value in part if kind == "commonName"]


def _ca_problems(option: str, path: str) -> list[Problem]:
    try:
        if not _CERTIFICATE.search(_read(option, path)):
            raise _Problem(option, f"{path}: there is no certificate (PEM) in it")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except _Problem as error:
        return [error.problem]
    except ssl.SSLError as error:
        return [(option, f"{path}: {_plain(error)}")]
    except OSError as error:
        return [(option, f"{path}: {error.strerror or error}")]
    return []


def _plain(error: ssl.SSLError) -> str:
    return (error.reason or "can't be read").lower().replace("_", " ")
