"""What a session asks of the hub: everything that is policy.

Types only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rtmpd.authorization import Authorizer
    from rtmpd.config.model import Config, LiveConfig
    from rtmpd.events import EventBus
    from rtmpd.live.stream import Stream
    from rtmpd.net.tls import Tls
    from rtmpd.rtmp.player import Player
    from rtmpd.rtmp.publisher import Publisher

__all__ = ["ConnectionHub"]


class ConnectionHub(Protocol):
    """What a connection asks of the hub. Policy is there, not here."""

    @property
    def config(self) -> Config:
        """The configuration in force."""

    @property
    def tls(self) -> Tls:
        """What is in force for RTMPS."""

    @property
    def stopping(self) -> bool:
        """Whether the server is about to end."""

    @property
    def bus(self) -> EventBus:
        """Where to say what happens."""

    @property
    def authorizer(self) -> Authorizer:
        """Decides who may come in."""

    def admit(self, app: str) -> LiveConfig:
        """Let a client connect to an app and return what holds for it so far; raises `Refused`."""

    def publish(self, key: str, publisher: Publisher) -> Stream:
        """Let *publisher* publish *key*; raises `Refused`."""

    def unpublish(self, stream: Stream, publisher: Publisher) -> None:
        """Take leave of a publisher."""

    def play(self, key: str, player: Player) -> Stream:
        """Return the stream for a player; raises `Refused`."""

    def unplay(self, stream: Stream, player: Player) -> None:
        """Take leave of a player."""

    def count(self, name: str) -> None:
        """Count a failure."""
