"""Values that say who may do what: names with secrets, networks, the address of a callback.

Each has a function that reads it from its text. What these raise is shown to whoever reads the log, so no message has any part
of a secret in it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from rtmpd.config.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.config.model import AuthConfig

__all__ = [
    "Address",
    "NamedSecret",
    "Network",
    "address_group",
    "auth_problem",
    "parse_address",
    "parse_network",
    "parse_secret_url",
    "parse_stream_secret",
    "parse_user",
    "within",
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
"""Addresses that share a prefix; a single address is one, too."""

_NAME_LENGTH = 255
_NOT_IN_NAMES = re.compile(r"""[\s"'?#\[\]]""")
_USER = re.compile(r"[A-Za-z0-9_.@-]{1,64}", re.ASCII)
_URL_LENGTH = 2048
_V6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class NamedSecret:
    """A secret that belongs to something with a name.

    Attributes:
        name: Of a stream, ``app/name``, or of a user.
        secret: Its token, key or password.
    """

    name: str
    secret: Secret

    def __str__(self) -> str:
        return f"{self.name}={self.secret}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``NAME=SECRET``, split at the first ``=``.

        Raises:
            ValueError: It is something else; the message shows the name at most.
        """
        name, equals, secret = text.partition("=")
        name = name.strip()
        if not equals:
            # It may be the secret alone, so it is not shown.
            raise ValueError('there is one without "="')
        if not name or not name.isprintable():
            raise ValueError('there is one without a name before the "="')
        found = None
        try:
            found = Secret.parse(secret.strip())
        except ValueError as error:
            raise ValueError(f"the secret of {name[:_NAME_LENGTH]}: {error}") from None
        if not found:
            raise ValueError(f"{name[:_NAME_LENGTH]} has an empty secret")
        return cls(name, found)


def is_stream_key(text: str) -> bool:
    """Whether a text is ``app/name`` as streams are registered under."""
    parts = text.split("/")
    return len(parts) > 1 and all(parts) and len(text) <= 2 * _NAME_LENGTH and not _NOT_IN_NAMES.search(text)


def is_user_name(text: str) -> bool:
    """Whether a text can name a user: it stands in URLs as it is."""
    return bool(_USER.fullmatch(text))


def parse_stream_secret(text: str) -> NamedSecret:
    """Read ``APPLICATION/NAME=SECRET``; raises ValueError."""
    found = NamedSecret.parse(text)
    name = found.name.strip("/")
    if not is_stream_key(name):
        raise ValueError("there is one whose name is not APPLICATION/NAME")
    return NamedSecret(name, found.secret)


def parse_user(text: str) -> NamedSecret:
    """Read ``USER=PASSWORD``; raises ValueError."""
    found = NamedSecret.parse(text)
    if not is_user_name(found.name):
        raise ValueError("there is a user whose name has other characters than letters, digits, _ . @ and -, or more than 64")
    return found


def parse_network(text: str) -> Network:
    """Read an address or a network, ``192.0.2.0/24``; IPv4 that is written as IPv6 becomes IPv4.

    Raises:
        ValueError: It is neither, or has bits set behind its prefix.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f'got "{text[:80]}"') from None
        raise ValueError(f'got "{text[:80]}": write {meant}') from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def parse_secret_url(text: str) -> Secret:
    """Read the URL of a web server, which may hold a password: as a secret, that is also from a file or a variable.

    Raises:
        ValueError: It is no URL with http or https; the message does not show it.
    """
    found = Secret.parse(text)
    if not found:
        return found
    try:
        parts = urlsplit(found.reveal())
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right or len(found.reveal()) > _URL_LENGTH or any(c.isspace() for c in found.reveal()):
        raise ValueError("got something else")
    return found


def auth_problem(auth: AuthConfig) -> str:
    """Say what an application's ``auth_mode`` lacks; empty if nothing."""
    if auth.auth_mode == "token" and not auth.auth_tokens:
        return '"token" needs auth_tokens'
    if auth.auth_mode == "file" and not auth.auth_file:
        return '"file" needs auth_file'
    if auth.auth_mode == "callback" and not auth.auth_callback:
        return '"callback" needs auth_callback'
    return ""


def parse_address(text: str) -> Address | None:
    """Read the host of a peer, with or without brackets; IPv4 inside of IPv6 becomes IPv4. None: it is no address."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def address_group(text: str) -> str:
    """Return what counts as one address where clients are counted: of IPv6 a /64, which is what one customer has at least."""
    address = parse_address(text)
    if address is None:
        return text
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, _V6_PREFIX), strict=False))
    return str(address)


def within(address: Address | None, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of the networks. One that is not known is in none."""
    return address is not None and any(address in network for network in networks)
