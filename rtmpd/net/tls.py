"""TLS contexts and certificates: builds, checks and holds what connections use. The only module that makes contexts.

Certificates are parsed by a TLS handshake in memory between two contexts of this process: the standard library has no public
function for that, and a dependency would be large for two dates and some names. The handshake also proves that the key works.

`tls_problems` returns everything that is wrong with the options and their files. Most of it prevents a start; an expired
certificate does not, because a server that does not come up at night is worse than clients that refuse to connect.
"""

from __future__ import annotations

import functools
import re
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gevent import get_hub

from rtmpd.errors import RtmpdError, TransportClosed
from rtmpd.net.tls_errors import explain
from rtmpd.net.tls_transport import HandshakeTurns
from rtmpd.util.files import read_file, reading

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.config.model import TlsConfig
    from rtmpd.net.tls_transport import TlsTransport

_FILE_BYTES = 1 << 20
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = b"PRIVATE KEY-----"
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python's ssl does not define."""

_WEB_PROTOCOLS = ("h2", "http/1.1")

Problem = tuple[str, str]
"""An option of [tls] and a description of its problem."""


class _Problem(Exception):
    """An option can't be used as it is."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(text)
        self.problem = option, text


class _Encrypted(Exception):
    """A private key is encrypted with a passphrase."""


class _ServerObject(ssl.SSLObject):
    asked_for = ""
    """The server name that the client asked for (SNI)."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of the server.

    Attributes:
        path: Its file.
        names: Its host names in lower case; the first label of a name may be ``*``.
        not_before, not_after: Its period of validity, as Unix time in seconds.
    """

    path: str
    names: tuple[str, ...] = ()
    not_before: float = 0.0
    not_after: float = float("inf")


class ServerTls:
    """The certificates and the requirements for incoming TLS connections.

    Args:
        tls: The options.

    Attributes:
        context: The context for `TlsTransport.secure`. It selects the certificate by the name that the client asks for.
        web_context: Likewise, for HTTPS: the client chooses HTTP/2 or HTTP/1.1 (ALPN, RFC 7301).
        certificates: The certificates in the order of ``tls_cert``.

    Raises:
        RtmpdError: The options can't be used; the message has every reason.
    """

    def __init__(self, tls: TlsConfig) -> None:
        loaded, problems = _load(tls)
        if not loaded and not problems:
            problems = [("tls_cert", "not set: RTMPS needs a certificate")]
        _refuse(problems)
        self.certificates = tuple(each.certificate for each in loaded)
        self.context, self.web_context = loaded[0].context, loaded[0].web_context
        self._by_name: dict[str, _Loaded] = {}
        for each in loaded:
            for name in each.certificate.names:
                self._by_name.setdefault(name, each)
        self.context.sni_callback = self.web_context.sni_callback = self._choose

    @property
    def not_after(self) -> float:
        """The time when the first of the certificates expires, as Unix time in seconds."""
        return min(each.not_after for each in self.certificates)

    def warnings(self, now_s: float) -> list[str]:
        """Return the reasons why clients will reject the certificates at a time (Unix, seconds)."""
        return [text for each in self.certificates for _, text in _warnings(each, now_s)]

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        """Select the certificate with the name that the client asks for (RFC 6066 section 3), or else the first one."""
        if name is None or not isinstance(connection, _ServerObject):
            return
        connection.asked_for = name
        name = name.lower().rstrip(".")
        found = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        if found is not None:
            connection.context = found.web_context if context is self.web_context else found.context


class ClientTls:
    """The authorities for outgoing TLS connections.

    Args:
        tls: The options; None: the defaults.

    Raises:
        RtmpdError: ``tls_ca`` can't be used; the message says why.
    """

    def __init__(self, tls: TlsConfig | None = None) -> None:
        self._ca, self._verify = (tls.tls_ca, tls.tls_verify) if tls is not None else ("", True)
        self._context: ssl.SSLContext | None = None
        if self._ca:
            # A wrong file must be reported at start and reload, not at the first relay; and a relay must not wait for a disk.
            authorities, problems = _read_authorities("tls_ca", self._ca)
            _refuse(problems)
            self._context = _client_context(verify=self._verify)
            if self._verify:
                self._context.load_verify_locations(cadata=authorities)

    @property
    def context(self) -> ssl.SSLContext:
        """The context for rtmps://.

        Without ``tls_ca`` it is made at the first use, in a native thread: reading the system's authorities takes 50 ms.
        """
        if self._context is None:
            self._context = get_hub().threadpool.apply(client_context, (), {"verify": self._verify})
        return self._context

    @property
    def ca(self) -> str | bool:
        """The authorities for https://, as ``requests`` expects them: a file, a directory, or True for its own."""
        return self._ca or _system_ca()


@functools.cache
def _system_ca() -> str | bool:
    paths = ssl.get_default_verify_paths()
    # With an empty directory requests would trust no certificate.
    return paths.cafile or (paths.capath if paths.capath and any(Path(paths.capath).iterdir()) else True)


@dataclass
class Tls:
    """The TLS settings for new connections. A reload replaces them.

    Attributes:
        server: The settings of incoming connections; None: RTMPS is not served.
        client: The settings of outgoing connections.
        turns: Limits the handshakes of incoming connections.
    """

    server: ServerTls | None = None
    client: ClientTls = field(default_factory=ClientTls)
    turns: HandshakeTurns = field(default_factory=HandshakeTurns)

    def accept(self, transport: TlsTransport, limit_s: float, first: bytes = b"", *, web: bool = False) -> None:
        """Do the TLS handshake of an incoming connection.

        Args:
            transport: The connection. Limits and bans have been checked already: a refused client must not cost a handshake.
            limit_s: The time limit for the whole handshake.
            first: Bytes of the client that have been read already.
            web: It is one of HTTPS.

        Raises:
            TransportClosed: A reload has ended RTMPS since the connection was accepted; or as `TlsTransport.secure`.
            TlsError, DeadlineExceeded: As `TlsTransport.secure`.
        """
        if self.server is None:
            raise TransportClosed("RTMPS is no longer served")
        context = self.server.web_context if web else self.server.context
        transport.secure(context, limit_s, first=first, turns=self.turns)


def client_context(ca: str = "", *, verify: bool = True) -> ssl.SSLContext:
    """Return a context for outgoing connections.

    Args:
        ca: A file with the certificates of the trusted authorities (PEM); empty: the system's.
        verify: Whether to verify the server's certificate and name. Without, the connection can be intercepted.

    Raises:
        OSError: The file can't be read, or holds no certificate.
    """
    context = _client_context(verify=verify)
    if verify and ca:
        context.load_verify_locations(ca)
    elif verify:
        context.load_default_certs()
    return context


def _client_context(*, verify: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def tls_problems(tls: TlsConfig, now_s: float | None = None, *, https: bool = False) -> list[Problem]:
    """Return every problem of the options and their files.

    Args:
        tls: The options.
        now_s: The time at which certificates must be valid (Unix, seconds); now by default.
        https: There is an address for HTTPS, which needs a certificate, too.
    """
    loaded, problems = _load(tls)
    if tls.tls_listen and not tls.tls_cert:
        problems.append(("tls_cert", "not set, but tls_listen is: RTMPS needs a certificate"))
    elif https and not tls.tls_cert:
        problems.append(("tls_cert", "not set, but http_tls_listen is: HTTPS needs a certificate"))
    if tls.tls_ca:
        problems += _read_authorities("tls_ca", tls.tls_ca)[1]
    now_s = time.time() if now_s is None else now_s
    return problems + [problem for each in loaded for problem in _warnings(each.certificate, now_s)]


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


class _Loaded(NamedTuple):
    """A certificate with its contexts, of which that for HTTPS has ALPN."""

    context: ssl.SSLContext
    web_context: ssl.SSLContext
    certificate: Certificate


def _load(tls: TlsConfig) -> tuple[list[_Loaded], list[Problem]]:
    """Return the usable certificates, and the problems of the others and of the options."""
    problems: list[Problem] = []
    if tls.tls_key and len(tls.tls_key) != len(tls.tls_cert):
        return [], [("tls_key", f"{len(tls.tls_key)} files, but tls_cert has {len(tls.tls_cert)}")]
    asks = tls.tls_client_auth != "off"
    if asks and not tls.tls_client_ca:
        problems.append(("tls_client_ca", f"not set, but tls_client_auth is {tls.tls_client_auth}"))
    authorities = ""
    if tls.tls_client_ca:
        authorities, found = _read_authorities("tls_client_ca", tls.tls_client_ca)
        problems += found
    asks = asks and not problems
    loaded = []
    for path, key_path in zip(tls.tls_cert, tls.tls_key or tls.tls_cert, strict=True):
        context, web_context = _server_context(tls), _server_context(tls)
        web_context.set_alpn_protocols(_WEB_PROTOCOLS)
        try:
            certificate = _load_certificate(context, web_context, path, key_path)
        except _Problem as error:
            problems.append(error.problem)
            continue
        if asks:
            for each in (context, web_context):
                each.load_verify_locations(cadata=authorities)
                each.verify_mode = ssl.CERT_REQUIRED if tls.tls_client_auth == "required" else ssl.CERT_OPTIONAL
        loaded.append(_Loaded(context, web_context, certificate))
    return loaded, problems


def _server_context(tls: TlsConfig) -> ssl.SSLContext:
    """Return a context for incoming connections, without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The ciphers are Python's default, which excludes those that OpenSSL keeps for old peers only.
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.tls_version == "1.3" else ssl.TLSVersion.TLSv1_2
    # A renegotiation costs the server much and the peer little.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # TLS 1.3 sends session tickets after the handshake. librtmp with GnuTLS takes them for the end of the connection, and a
    # client that closes without having read them resets it. RTMP clients connect rarely: resumption would save little.
    context.num_tickets = 0
    context.sslobject_class = _ServerObject
    return context


def _read(option: str, path: str) -> bytes:
    try:
        return read_file(path, _FILE_BYTES)
    except OSError as error:
        raise _Problem(option, f"{path}: {error.strerror or error}") from None


def _load_certificate(context: ssl.SSLContext, second: ssl.SSLContext, path: str, key_path: str) -> Certificate:
    """Load a certificate and its key into two contexts, and return the certificate; raises `_Problem`."""
    found = _CERTIFICATE.search(_read("tls_cert", path))
    if found is None:
        raise _Problem("tls_cert", f"{path}: contains no certificate (PEM)")
    if _KEY not in _read("tls_key", key_path):
        hint = "; if the key has its own file, set tls_key" if key_path == path else ""
        raise _Problem("tls_key", f"{key_path}: contains no private key (PEM){hint}")

    def no_password() -> str:
        # Without a callback OpenSSL would prompt on the terminal, and wait.
        raise _Encrypted

    try:
        with reading(path):
            context.load_cert_chain(path, key_path, no_password)
            second.load_cert_chain(path, key_path, no_password)
    except _Encrypted:
        raise _Problem("tls_key", f"{key_path}: the key is encrypted, and the server can't prompt for its passphrase") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _Problem("tls_key", f"{key_path}: the key does not belong to the certificate in {path}") from None
        raise _Problem("tls_cert", f"{path} with {key_path}: {_plain(error)}") from None
    except OSError as error:
        raise _Problem("tls_cert", f"{path} with {key_path}: {error.strerror or error}") from None
    try:
        shown = _parse(context, found[0].decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        text = explain(error, "server") if isinstance(error, ssl.SSLError) else str(error)
        raise _Problem("tls_cert", f"{path}: every client would reject it: {text}") from None
    return Certificate(
        path,
        tuple(_names(shown)),
        ssl.cert_time_to_seconds(str(shown["notBefore"])),
        ssl.cert_time_to_seconds(str(shown["notAfter"])),
    )


def _parse(server_context: ssl.SSLContext, certificate: str) -> dict[str, object]:
    """Return the fields of a certificate, as ``getpeercert`` does, by a TLS handshake in memory."""
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    # The certificate is its own trust anchor, and its dates are ignored.
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
    """Return the host names of a certificate; that of the subject only if it has no others (RFC 6125 section 6.4.4)."""
    alternatives = certificate.get("subjectAltName", ())
    assert isinstance(alternatives, tuple)
    if alternatives:
        return [value.lower() for kind, value in alternatives if kind == "DNS"]
    subject = certificate.get("subject", ())
    assert isinstance(subject, tuple)
    return [value.lower() for part in subject for kind, value in part if kind == "commonName"]


def _read_authorities(option: str, path: str) -> tuple[str, list[Problem]]:
    """Return the certificates in a file, without what is between them, and its problems."""
    try:
        authorities = b"\n".join(_CERTIFICATE.findall(_read(option, path))).decode("ascii", "replace")
        if not authorities:
            raise _Problem(option, f"{path}: contains no certificate (PEM)")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=authorities)
    except _Problem as error:
        return "", [error.problem]
    except ssl.SSLError as error:
        return "", [(option, f"{path}: {_plain(error)}")]
    except ValueError:
        return "", [(option, f"{path}: the certificates are not ASCII text")]
    return authorities, []


def _plain(error: ssl.SSLError) -> str:
    return (error.reason or "can't be read").lower().replace("_", " ")
