"""The log of one connection: its fields are in each record."""

from __future__ import annotations

import logging
from typing import Any


class ConnectionLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the fields ``connection``, ``peer`` and ``stream`` to each log record.

    It holds no connection: that would be a reference cycle, and the garbage collector runs seldom.

    Args:
        logger: Takes the records.
        number: The connection's number.
        peer: Its client's address and port.

    Attributes:
        stream: The key of the stream that it published or played last; empty: none yet.
    """

    def __init__(self, logger: logging.Logger, number: int, peer: str) -> None:
        super().__init__(logger, {})
        self._number = number
        self._peer = peer
        self.stream = ""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Add the fields; a line about another stream gives its own, in ``extra``."""
        own = {"connection": self._number, "peer": self._peer, "stream": self.stream}
        kwargs["extra"] = own | (kwargs.get("extra") or {})
        return msg, kwargs
