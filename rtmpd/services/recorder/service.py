"""The recorder: which streams are recorded, and the life of their recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtmpd.config.model import Config
    from rtmpd.hub import Hub

__all__ = ["Recorder"]


class Recorder:
    """The service."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def start(self) -> None:
        """Begin."""

    def reload(self, config: Config) -> None:
        """Go on under another configuration."""

    def stop(self, limit_s: float) -> None:
        """End."""
