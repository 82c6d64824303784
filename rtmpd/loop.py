"""Giving way to the event loop.

Below everything that runs in it; imports gevent only.
"""

from __future__ import annotations

import gevent

__all__ = ["give_way"]

_MOMENT_S = 1e-6


def give_way() -> None:
    """Let timers and sockets have their turn, and go on as soon as they have.

    gevent.sleep(0) does not do that: what it puts off is run before the loop looks at timers and sockets again, up to fifty
    times in a row. Slices of 2 ms then held the loop for 96 ms, and with this for 1.2 ms. Costs 3 µs.
    """
    gevent.sleep(_MOMENT_S)
