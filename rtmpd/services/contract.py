"""What a service is to the daemon that builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rtmpd.config.model import Config

__all__ = ["Service"]


class Service(Protocol):
    """A part that lives as long as the server. It is made with the hub, whose ``config`` is the one in force."""

    def start(self) -> None:
        """Begin, before the first connection. Must not wait.

        Raises:
            RtmpdError: The server can't start like this; the message says why.
        """

    def reload(self, config: Config) -> None:
        """Go on under another configuration, which the hub has already. Must not wait, and can't fail."""

    def stop(self, limit_s: float) -> None:
        """End, and wait for what is under way, at most *limit_s*. The streams have ended. Also called if it never began."""
