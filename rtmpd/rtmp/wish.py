"""What a connection has wanted, for those who ask when it ends: most of all of those who got nothing. Imports naming only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.protocol.naming import is_printable

if TYPE_CHECKING:
    from rtmpd.events import Scalar

__all__ = ["Wish"]


class Wish:
    """What a client asked for last.

    Attributes:
        action: connect, publish or play; empty: it has not come so far.
        stream_key: The stream that it was let in for. Until then nothing: the name of a publish may be a secret, and a client
            may confuse one with the name of a play.
        settled: It has published or played, or was but a step of a login: there is nothing left to be said about it.
    """

    __slots__ = ("_app", "action", "settled", "stream_key")

    def __init__(self) -> None:
        self._app = ""
        self.action = ""
        self.stream_key = ""
        self.settled = False

    def connect(self, app: str) -> None:
        """Note the application, without its query; nothing of it if it can't be shown."""
        self.action = "connect"
        self._app = app if is_printable(app) else ""

    def ask(self, action: str) -> None:
        """Note that it wants to publish or play."""
        self.action = action
        self.stream_key = ""

    def told(self) -> dict[str, Scalar]:
        """Return it as data of an event; what is empty is left out."""
        found = {"app": self._app, "wanted": self.action, "wanted_stream": self.stream_key}
        return {**{name: value for name, value in found.items() if value}, "served": self.settled}
