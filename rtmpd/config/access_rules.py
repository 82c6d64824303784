"""Values of access rules: names with secrets, networks, the URL of a callback.

The messages of their parsers are logged, so they contain no part of a secret. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from rtmpd.config.secret import Secret
from rtmpd.protocol.naming import join_key

if TYPE_CHECKING:
    from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
"""Addresses that share a prefix, or a single address."""

NAME_LENGTH: Final = 255
"""The longest name of a stream or an application, characters."""

_NOT_IN_NAMES = re.compile(r"""[\s"'?#\[\]]""")
_USER = re.compile(r"[A-Za-z0-9_.@-]{1,64}", re.ASCII)
_URL_LENGTH = 2048
_V6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class NamedSecret:
    """The secret of a stream or a user.

    Attributes:
        name: The key of the stream, ``app/name``, or the name of the user.
        secret: The token, key or password.
    """

    name: str
    secret: Secret

    def __str__(self) -> str:
        return f"{self.name}={self.secret}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``NAME=SECRET``, split at the first ``=``.

        Raises:
            ValueError: The text is wrong; the message contains the name at most.
        """
        name, equals, secret = text.partition("=")
        name = name.strip()
        if not equals:
            # The text may be the secret alone, so it is not shown.
            raise ValueError('there is no "=" in it')
        if not name or not name.isprintable():
            raise ValueError('there is no name before the "="')
        try:
            return cls(name, parse_secret(secret.strip()))
        except ValueError as error:
            raise ValueError(f"{name[:NAME_LENGTH]}: {error}") from None


def parse_secret(text: str) -> Secret:
    """Read a secret that must not be empty; raises ValueError."""
    found = Secret.parse(text)
    if not found:
        raise ValueError("the secret is empty")
    return found


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a stream or an application."""
    return 0 < len(text) <= NAME_LENGTH and text.isprintable() and not _NOT_IN_NAMES.search(text)


def is_stream_key(text: str) -> bool:
    """Return whether a text has the form of a stream key, ``app/name``."""
    parts = text.split("/")
    return "/" in join_key("", text) and all(parts) and len(text) <= 2 * NAME_LENGTH and not _NOT_IN_NAMES.search(text)


def is_user_name(text: str) -> bool:
    """Return whether a text can be the name of a user. Such names need no escapes in URLs."""
    return bool(_USER.fullmatch(text))


def parse_stream_secret(text: str) -> NamedSecret:
    """Parse ``APPLICATION/NAME=SECRET``; raises ValueError."""
    found = NamedSecret.parse(text)
    if not is_stream_key(found.name.strip("/")):
        raise ValueError("the name is not APPLICATION/NAME")
    name = join_key("", found.name)
    return NamedSecret(name, found.secret)


def parse_user(text: str) -> NamedSecret:
    """Parse ``USER=PASSWORD``; raises ValueError."""
    found = NamedSecret.parse(text)
    if not is_user_name(found.name):
        raise ValueError("the name of a user consists of 1 to 64 letters, digits and _ . @ -")
    return found


def parse_network(text: str) -> Network:
    """Parse an address or a network such as ``192.0.2.0/24``. IPv4 in IPv6 form becomes IPv4.

    Raises:
        ValueError: The text is neither, or has bits set after its prefix.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError from None
        raise ValueError(f"write {meant}") from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def parse_secret_url(text: str) -> Secret:
    """Parse the URL of a web server, which may contain a password, as a secret.

    Raises:
        ValueError: The text is not an http or https URL; the message does not contain it.
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
        raise ValueError
    return found


def parse_address(text: str) -> Address | None:
    """Parse the host of a peer, with or without brackets. IPv4 in IPv6 form becomes IPv4. None: the text is not an address."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def address_group(text: str) -> str:
    """Return the key under which an address is counted: the address, or the /64 of IPv6, the least that one customer has."""
    address = parse_address(text)
    if address is None:
        return text
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, _V6_PREFIX), strict=False))
    return str(address)


def within(address: Address | None, networks: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks. None is in no network."""
    return address is not None and any(address in network for network in networks)
