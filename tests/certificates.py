"""Certificates for tests: an authority of their own, and what it signs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

if TYPE_CHECKING:
    from pathlib import Path

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NOT_SO_LONG_AGO = datetime(2021, 1, 1, tzinfo=UTC)
FAR_OFF = datetime(2999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Pair:
    """Files with a certificate and its key; `both` has the key and the certificate in one."""

    cert: Path
    key: Path
    both: Path

    @property
    def ini(self) -> str:
        return f"tls_cert = {self.cert}\ntls_key = {self.key}\n"


class Authority:
    """Signs certificates."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ca = trustme.CA()
        self._numbers = count()
        self.path = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.path)

    def issue(self, *names: str, common_name: str | None = None, **options: Any) -> Pair:
        """Issue a certificate for these names."""
        number = next(self._numbers)
        found = self._ca.issue_cert(*names, common_name=common_name, **options)
        pair = Pair(*(self._directory / f"{number}.{kind}" for kind in ("crt", "key", "pem")))
        pair.cert.write_bytes(b"".join(each.bytes() for each in found.cert_chain_pems))
        found.private_key_pem.write_to_path(pair.key)
        found.private_key_and_cert_chain_pem.write_to_path(pair.both)
        return pair

    def expired(self, *names: str) -> Pair:
        return self.issue(*names, not_before=LONG_AGO, not_after=NOT_SO_LONG_AGO)

    def client_context(self, pair: Pair | None = None) -> ssl.SSLContext:
        """A client that trusts this authority, and shows a certificate if it has one."""
        context = ssl.create_default_context(cafile=self.path)
        if pair is not None:
            context.load_cert_chain(pair.both)
        return context

    def server_context(self, pair: Pair) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.both)
        return context


def encrypt_key(path: Path) -> None:
    """Give the key in a file a passphrase."""
    key = load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
