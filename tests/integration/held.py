"""Runs rtmpd, and measures how long its event loop is held: ``python -m tests.integration.held ARGUMENTS``.

SIGWINCH prints the longest hold since the last SIGWINCH: processor time, which other programs on the machine do not change.
"""

from __future__ import annotations

import signal
import sys
import time

import gevent

from rtmpd.cli import main


class Watch:
    """A greenlet that is to run every millisecond."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        gevent.spawn(self._run)
        gevent.signal_handler(signal.SIGWINCH, self._print)

    def _run(self) -> None:
        while True:
            before_s = time.thread_time()
            gevent.sleep(0.001)
            self._longest_s = max(self._longest_s, time.thread_time() - before_s)

    def _print(self) -> None:
        print(f"held for {self._longest_s * 1000:.1f} ms", file=sys.stderr, flush=True)
        self._longest_s = 0.0


if __name__ == "__main__":
    watch = Watch()
    sys.exit(main())
