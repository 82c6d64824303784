"""When TLS handshakes compute: they are what costs the event loop most in one go. Imports gevent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import gevent
from gevent.lock import BoundedSemaphore

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HandshakeTurns"]


class HandshakeTurns:
    """Lets one TLS handshake compute at a time, and all of them half of the time at the most.

    A step of a handshake takes 0.4 ms (ECDSA) to 5 ms (RSA with 4096 bits), and can't be cut short. Fifty clients that come at
    once would otherwise hold the event loop for as long as all of theirs together, since it hands out in one go what is ready.
    """

    def __init__(self) -> None:
        self._turn = BoundedSemaphore(1)

    def run(self, step: Callable[[], None]) -> None:
        """Do one step of a handshake, when it is its turn."""
        with self._turn:
            begun = time.thread_time()
            try:
                step()
            finally:
                # Also after one that fails: a flood of nonsense costs as much.
                gevent.sleep(max(time.thread_time() - begun, 1e-6))
