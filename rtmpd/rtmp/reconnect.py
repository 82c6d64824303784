"""Asking clients to connect again, here or elsewhere, and waiting until they have gone (Enhanced RTMP v2, "Reconnect Request").

Imports gevent; not the hub.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import gevent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from rtmpd.rtmp.connection import Connection

__all__ = ["ask_to_reconnect", "wait_until_gone"]

_STEP_S = 0.02


def ask_to_reconnect(connections: Iterable[Connection], tc_url: str, description: str) -> list[Connection]:
    """Ask those of the connections that said they would, and return them. Does not wait.

    Args:
        tc_url: Where to; empty: where they are.
        description: For people; empty: none.
    """
    return [connection for connection in list(connections) if connection.ask_to_reconnect(tc_url, description)]


def wait_until_gone(asked: Collection[Connection], present: Collection[Connection], limit_s: float) -> None:
    """Wait until none of those who were *asked* is among those who are *present* any more, at most *limit_s*."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and any(connection in present for connection in asked):
        gevent.sleep(_STEP_S)
