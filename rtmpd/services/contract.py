"""The interface between a service and the daemon that builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rtmpd.config.model import Config


class Service(Protocol):
    """A part that lives as long as the server. It is made with the hub and the options that it selects."""

    @staticmethod
    def select(config: Config) -> Any:
        """Return the part of a configuration that the service uses: all that it may read."""

    def start(self) -> None:
        """Start, before the first connection. Must not wait.

        Raises:
            RtmpdError: The server can't start like this; the message says why.
        """

    def reload(self, options: Any) -> None:
        """Apply new options, as `select` returns them. Called by the hub at each reload. Must not wait or fail."""

    def stop(self, limit_s: float) -> None:
        """Stop, and wait for unfinished work, at most *limit_s*. All streams have ended. Also called if `start` was not."""
