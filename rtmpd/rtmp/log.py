"""The log of one connection: every line carries its number, its peer and its stream. Imports the standard library only."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["ConnectionLog"]


class ConnectionLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the fields ``connection``, ``peer`` and ``stream`` to each record.

    It holds no connection: that would be a cycle, and the collector comes seldom.

    Args:
        logger: Where lines go.
        number: The connection's number.
        peer: Its peer's address.

    Attributes:
        stream: The key of the stream that it published or played last; empty: there was none yet.
    """

    def __init__(self, logger: logging.Logger, number: int, peer: str) -> None:
        super().__init__(logger, {})
        self._number = number
        self._peer = peer
        self.stream = ""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Add the fields; a line that names another stream says so itself, in ``extra``."""
        kwargs["extra"] = {
            "connection": self._number,
            "peer": self._peer,
            "stream": self.stream,
            **(kwargs.get("extra") or {}),
        }
        return msg, kwargs
