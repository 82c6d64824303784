"""The packagers: which streams are packaged, and the memory of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtmpd.config.model import Config, HlsConfig
    from rtmpd.hub import Hub
    from rtmpd.services.hls.packager import Packager


class Packagers:
    """The service.

    Args:
        hub: The hub.
        options: The options of ``[hls]``; those of applications come with the streams.
    """

    def __init__(self, hub: Hub, options: HlsConfig) -> None:
        self._hub = hub
        self.options = options
        self._packagers: dict[str, Packager] = {}

    @staticmethod
    def select(config: Config) -> HlsConfig:
        """Return the options of ``[hls]``."""
        return config.hls

    def start(self) -> None:
        """Follow the streams that are live."""

    def reload(self, options: HlsConfig) -> None:
        """Apply new options: new packagers get them; those of streams that are no longer to be packaged end."""
        self.options = options

    def stop(self, limit_s: float) -> None:
        """End all packagers, and remove their files."""

    def find(self, key: str) -> Packager | None:
        """Return the packager of a stream that is available or has just ended; it is started on demand.

        None: there is no such stream, or it is not packaged (``hls = off``). Does not wait.
        """
        return self._packagers.get(key)
